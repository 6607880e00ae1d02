//! What a client is told about its limits: the response headers.

use std::fmt::Write as _;

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use smallvec::SmallVec;

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

/// Text on its way into a header, on the stack.
#[derive(Default)]
struct Text(SmallVec<[u8; 128]>);

impl std::fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

impl Text {
    fn value(&self) -> Option<HeaderValue> {
        HeaderValue::from_bytes(&self.0).ok()
    }
}

/// Adds the headers of `decision` to a response. A name that the upstream set itself is replaced: it would speak
/// of another limit.
pub fn write(decision: &Decision, families: Families, headers: &mut HeaderMap) {
    let Some((policy, bound)) = decision.binding() else { return };
    let mut put = |name: HeaderName, text: Text| {
        if let Some(value) = text.value() {
            headers.insert(name, value);
        }
    };
    if families.ietf {
        let (mut policies, mut limits) = (Text::default(), Text::default());
        for (index, (policy, verdict)) in decision.verdicts().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            let quota = &policy.quota;
            // Policy names are plain (the configuration sees to it), so that quotes need no escape.
            let _ = write!(policies, "{comma}\"{}\";q={}", policy.name, quota.limit());
            // A window is whole seconds in the draft: one that is not is left out rather than rounded.
            if quota.period() % SECOND == 0 {
                let _ = write!(policies, ";w={}", quota.period() / SECOND);
            }
            let reading = &verdict.reading;
            let reset = reading.debt.div_ceil(SECOND);
            let _ = write!(limits, "{comma}\"{}\";r={};t={reset}", policy.name, reading.remaining);
        }
        put(RATELIMIT_POLICY, policies);
        put(RATELIMIT, limits);
    }
    if families.x_ratelimit {
        put(X_LIMIT, number(u64::from(policy.quota.limit())));
        put(X_REMAINING, number(u64::from(bound.reading.remaining)));
        put(X_RESET, number(bound.reading.debt.div_ceil(SECOND)));
    }
    if let (false, Some(wait)) = (decision.allowed(), decision.retry_after()) {
        put(RETRY_AFTER, number(retry_after_seconds(wait)));
    }
}

/// Whole seconds, rounded up: a client that waits exactly that long is admitted.
pub fn retry_after_seconds(wait: Micros) -> u64 {
    wait.div_ceil(SECOND).max(1)
}

fn number(value: u64) -> Text {
    let mut text = Text::default();
    let _ = write!(text, "{value}");
    text
}
