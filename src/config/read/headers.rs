//! Which headers tell clients of their limits.

use super::boolean;
use crate::config::settings::{Headers, XRateLimit};
use crate::config::take::Taken;

const ACCEPTED: &str =
    "accepted: a list of \"ietf\", \"x-ratelimit\" or \"github\", \"draft-03\"; or \"none\" alone";

pub(super) fn headers(taken: &mut Taken) -> Headers {
    let words = taken.list("headers.sets");
    let sets = sets(&words).unwrap_or_else(|message| {
        taken.refuse_read("headers.sets", &message);
        Headers::default()
    });
    let shadow = boolean(taken, "headers.shadow");
    if sets == Headers::default() {
        taken.show("headers.shadow", "false", Some("default (headers.sets is none)"));
        return sets;
    }
    Headers { shadow, ..sets }
}

fn sets(words: &[String]) -> Result<Headers, String> {
    let mut headers = Headers::default();
    for word in words {
        let form = match word.to_ascii_lowercase().as_str() {
            "ietf" => {
                headers.ietf = true;
                continue;
            }
            "draft-03" => {
                headers.draft_03 = true;
                continue;
            }
            "x-ratelimit" => XRateLimit::Delta,
            "github" => XRateLimit::GitHub,
            "none" if words.len() == 1 => continue,
            "none" => return Err(format!("\"none\" stands beside others; {ACCEPTED}")),
            _ => return Err(ACCEPTED.to_owned()),
        };
        if headers.x_ratelimit.replace(form).is_some_and(|other| other != form) {
            return Err(format!(
                "\"x-ratelimit\" and \"github\" give X-RateLimit-Reset two meanings, seconds from now and \
                 seconds since 1970; {ACCEPTED}"
            ));
        }
    }
    if words.is_empty() { Err(format!("the list is empty; {ACCEPTED}")) } else { Ok(headers) }
}
