//! What somebody asks for: read, and held against the rules in force.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::Value;

use super::entry::{Body, Effect, LONGEST_KEY, MOST_PARTS, is_id};
use crate::config;
use crate::control::record::short;
use crate::doors::json;
use crate::doors::problem::{Cause, Problem};
use crate::limiter::overrides::Effect as Does;
use crate::limiter::policy::Rules;

/// The longest time to an end: what is to last longer has none.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3_600);

/// The body of a `PUT`. What `GET` shows and nobody sets is passed over, so that what was read can be sent back.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Put {
    pub(super) id: Option<String>,
    rule: String,
    policy: Option<String>,
    by: Option<String>,
    key: Option<String>,
    keys: Option<Vec<String>>,
    effect: Value,
    expires_at: Option<String>,
    expires_in: Option<String>,
    reason: Option<String>,
    #[serde(rename = "created_by")]
    _created_by: Option<Value>,
    #[serde(rename = "created_at")]
    _created_at: Option<Value>,
    #[serde(rename = "updated_at")]
    _updated_at: Option<Value>,
    #[serde(rename = "in_effect")]
    _in_effect: Option<Value>,
    #[serde(rename = "no_effect")]
    _no_effect: Option<Value>,
}

impl Put {
    pub(super) fn read(body: &[u8]) -> Result<Self, Problem> {
        json::object(body).map_err(|error| {
            let accepted = r#"{"rule", "policy"?, "by"?, "key" or "keys", "effect", "expires_at"? or "expires_in"?, "reason"}"#;
            refuse("bad_body", format!("{error}. Accepted: {accepted}."))
        })
    }

    /// What is asked for, if the rules in force know what it is about.
    pub(super) fn body(
        self,
        id: &str,
        actor: &str,
        rules: &Rules,
        now: DateTime<Utc>,
    ) -> Result<Body, Problem> {
        let reason = self.reason.as_deref().map(str::trim).unwrap_or_default();
        if reason.is_empty() {
            return Err(refuse("no_reason", "reason: say why; whoever is on call next will read it."));
        }
        let body = Body {
            key: key(self.key, self.keys)?,
            effect: effect(self.effect)?,
            expires_at: expiry(self.expires_at.as_deref(), self.expires_in.as_deref(), now)?,
            reason: short(reason),
            created_by: actor.to_owned(),
            created_at: Utc::now(),
            rule: self.rule,
            policy: self.policy,
            by: self.by,
        };
        agree(&body, id, rules)?;
        Ok(body)
    }
}

/// An id as it is written in the path or the body.
pub(super) fn sound_id(id: &str) -> Result<(), Problem> {
    let detail = "id: accepted: 1 to 64 letters, digits, \"-\", \"_\", \".\".";
    if is_id(id) { Ok(()) } else { Err(refuse("bad_id", detail)) }
}

fn key(one: Option<String>, several: Option<Vec<String>>) -> Result<Vec<String>, Problem> {
    let key = match (one, several) {
        (Some(one), None) => vec![one],
        (None, Some(several)) => several,
        _ => Vec::new(),
    };
    let bytes: usize = key.iter().map(String::len).sum();
    if key.is_empty() || key.len() > MOST_PARTS || key.iter().any(String::is_empty) || bytes > LONGEST_KEY {
        let detail = format!(
            "Say whose: \"key\", as the request carries it (an address for \"ip\"), or \"keys\", a list with a value for each \
             part of the subject, in their order; at most {MOST_PARTS} values and {LONGEST_KEY} bytes."
        );
        return Err(refuse("no_key", detail));
    }
    Ok(key)
}

fn effect(value: Value) -> Result<Effect, Problem> {
    let accepted = r#"accepted: {"limit": "1000/minute", "burst"?: 50}, "exempt", "block""#;
    // An array would be read as the fields of a limit.
    let read = if value.is_array() { None } else { serde_json::from_value::<Effect>(value).ok() };
    let effect = read.ok_or_else(|| refuse("bad_effect", format!("effect: {accepted}.")))?;
    if let Effect::Limit(limit) = &effect {
        limit.read().map_err(|message| refuse("bad_limit", format!("effect.limit: {message}.")))?;
    }
    Ok(effect)
}

fn expiry(
    at: Option<&str>,
    within: Option<&str>,
    now: DateTime<Utc>,
) -> Result<Option<DateTime<Utc>>, Problem> {
    let bad = |detail: String| refuse("bad_expiry", detail);
    let at = match (at, within) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => return Err(bad("Give expires_at or expires_in, not both.".to_owned())),
        (Some(at), None) => DateTime::parse_from_rfc3339(at)
            .map_err(|_| bad(format!("expires_at: \"{at}\" is no time; accepted: 2027-01-31T12:00:00Z.")))?
            .with_timezone(&Utc),
        (None, Some(within)) => {
            let within =
                config::duration(within).map_err(|message| bad(format!("expires_in: {message}.")))?;
            now + within.min(LONGEST * 2)
        }
    };
    if at <= now || at > now + LONGEST {
        let time = super::entry::time(at);
        return Err(bad(format!(
            "It would end at {time}; accepted: a time to come, at most ten years from now. Without one it does not end."
        )));
    }
    Ok(Some(at))
}

/// Whether the rules in force know the rule and the policy, count such a subject, and can keep such a limit.
fn agree(body: &Body, id: &str, rules: &Rules) -> Result<(), Problem> {
    let Some(rule) = rules.named(&body.rule) else {
        return Err(refuse("unknown_rule", format!("There is no rule \"{}\".", body.rule)));
    };
    let names = || rule.policies.iter().map(|&id| &*rules.policy(id).name);
    if let Some(policy) = &body.policy
        && !names().any(|name| name == policy)
    {
        let there: Vec<&str> = names().collect();
        let detail =
            format!("Rule \"{}\" has no policy \"{policy}\"; it has: {}.", body.rule, there.join(", "));
        return Err(refuse("unknown_policy", detail));
    }
    let Some(spec) = body.spec(id) else {
        return Err(refuse("bad_effect", "effect: it can't be read."));
    };
    let meant = spec.meant(rules, rule);
    if meant.is_empty() {
        let parts = body.key.len();
        let detail = match &body.by {
            Some(by) => format!("No policy that is meant counts by \"{by}\" with {parts} value(s)."),
            None => format!(
                "No policy that is meant counts such a subject: {parts} value(s){}.",
                if body.key.iter().any(|value| value.parse::<std::net::IpAddr>().is_ok()) {
                    ", an address; to mean a value that looks like one say by what it is counted, \"by\": \"header:x-api-key\""
                } else {
                    ""
                }
            ),
        };
        return Err(refuse("no_such_subject", detail));
    }
    if let Does::Limit(own) = spec.effect {
        for (policy, _) in meant {
            own.under(policy).map_err(|message| {
                let name = &policy.name;
                let detail =
                    format!("effect.limit: {message}. Name one policy if it is not meant for \"{name}\".");
                refuse("bad_limit", detail)
            })?;
        }
    }
    Ok(())
}

/// Why it has no effect under these rules, if it has none.
pub(super) fn no_effect(body: &Body, id: &str, rules: &Rules) -> Option<String> {
    agree(body, id, rules).err().map(|problem| problem.to_string())
}

fn refuse(code: &'static str, detail: impl Into<String>) -> Problem {
    Problem::new(Cause::Unprocessable, detail).with_code(code)
}
