//! What a client is told about its limits: the response headers.

use std::cell::RefCell;

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};

use crate::limiter::clock::{Micros, SECOND};
use crate::limiter::decision::Decision;

/// The families of headers that are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Families {
    /// `RateLimit-Policy` and `RateLimit`, draft-ietf-httpapi-ratelimit-headers-10.
    pub ietf: bool,
    /// `X-RateLimit-Limit`, `-Remaining`, `-Reset` (seconds from now).
    pub x_ratelimit: bool,
}

impl Default for Families {
    fn default() -> Self {
        Self { ietf: true, x_ratelimit: true }
    }
}

const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const X_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const X_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const X_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// Text on its way into a header. By hand: through `fmt` these five headers would cost more than the decision that
/// they tell of.
#[derive(Default)]
struct Text(Vec<u8>);

thread_local! {
    /// Written over by each header in turn, so that none of them allocates but for its own value.
    static SCRATCH: RefCell<(Text, Text)> = RefCell::default();
}

impl Text {
    fn text(&mut self, text: &str) -> &mut Self {
        self.0.extend_from_slice(text.as_bytes());
        self
    }

    fn number(&mut self, number: u64) -> &mut Self {
        let (mut digits, mut first, mut rest) = ([0; 20], 20, number);
        loop {
            first -= 1;
            digits[first] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        self.0.extend_from_slice(&digits[first..]);
        self
    }
}

/// Adds the headers of `decision` to a response. A name that the upstream set itself is replaced: it would speak
/// of another limit.
pub fn write(decision: &Decision, families: Families, headers: &mut HeaderMap) {
    let Some((policy, bound)) = decision.binding() else { return };
    SCRATCH.with_borrow_mut(|(one, other)| {
        if families.ietf {
            one.0.clear();
            other.0.clear();
            for (index, (policy, verdict)) in decision.verdicts().enumerate() {
                let comma = if index > 0 { ", \"" } else { "\"" };
                let (quota, reading) = (&policy.quota, &verdict.reading);
                // Policy names are plain (the configuration sees to it), so that quotes need no escape.
                one.text(comma).text(&policy.name).text("\";q=").number(u64::from(quota.limit()));
                // A window is whole seconds in the draft: one that is not is left out rather than rounded.
                if quota.period() % SECOND == 0 {
                    one.text(";w=").number(quota.period() / SECOND);
                }
                other.text(comma).text(&policy.name).text("\";r=").number(u64::from(reading.remaining));
                other.text(";t=").number(reading.debt.div_ceil(SECOND));
            }
            put(headers, RATELIMIT_POLICY, one);
            put(headers, RATELIMIT, other);
        }
        let mut put_number = |name, value| {
            one.0.clear();
            put(headers, name, one.number(value));
        };
        if families.x_ratelimit {
            put_number(X_LIMIT, u64::from(policy.quota.limit()));
            put_number(X_REMAINING, u64::from(bound.reading.remaining));
            put_number(X_RESET, bound.reading.debt.div_ceil(SECOND));
        }
        if let (false, Some(wait)) = (decision.allowed(), decision.retry_after()) {
            put_number(RETRY_AFTER, retry_after_seconds(wait));
        }
    });
}

fn put(headers: &mut HeaderMap, name: HeaderName, text: &Text) {
    let Ok(value) = HeaderValue::from_bytes(&text.0) else { return };
    // `insert` returns what was there, and moves a good deal of memory to do so: only when something was.
    if headers.contains_key(&name) {
        headers.insert(name, value);
    } else {
        headers.append(name, value);
    }
}

/// Whole seconds, rounded up: a client that waits exactly that long is admitted.
pub fn retry_after_seconds(wait: Micros) -> u64 {
    wait.div_ceil(SECOND).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_number_is_written_as_everybody_writes_it(number: u64) {
            let mut text = Text::default();
            text.number(number);
            prop_assert_eq!(String::from_utf8_lossy(&text.0), number.to_string());
        }
    }
}
