//! What a client is told about its limits: the response headers.

use std::cell::RefCell;
use std::sync::Arc;

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};

use crate::limiter::clock::{Micros, SECOND};
use crate::limiter::decision::{Decision, State};
use crate::limiter::policy::{Policy, PolicyId, Rules};

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
    static DESK: RefCell<Desk> = RefCell::default();
}

/// What a thread needs to write headers without allocating for each.
#[derive(Default)]
struct Desk {
    /// Written over by each header in turn.
    scratch: Text,
    /// The rules that `written` belongs to, held so that no others take their place in memory.
    rules: Option<Arc<Rules>>,
    /// By policy: what never changes while the rules are in force.
    written: Vec<Option<Written>>,
}

#[derive(Clone)]
struct Written {
    /// `RateLimit-Policy`
    policy: HeaderValue,
    /// `X-RateLimit-Limit`
    limit: HeaderValue,
}

impl Desk {
    fn written(&mut self, rules: &Arc<Rules>, id: PolicyId) -> Option<Written> {
        if !self.rules.as_ref().is_some_and(|known| Arc::ptr_eq(known, rules)) {
            self.rules = Some(Arc::clone(rules));
            self.written = vec![None; rules.policies().len()];
        }
        let place = self.written.get_mut(id)?;
        if place.is_none() {
            let policy = rules.policy(id);
            let mut text = Text::default();
            text.policy(policy);
            *place = Some(Written { policy: text.value()?, limit: number(u64::from(policy.quota.limit()))? });
        }
        place.clone()
    }
}

impl Text {
    fn policy(&mut self, policy: &Policy) -> &mut Self {
        let quota = &policy.quota;
        // Policy names are plain (the configuration sees to it), so that quotes need no escape.
        self.text("\"").text(&policy.name).text("\";q=").number(u64::from(quota.limit()));
        // A window is whole seconds in the draft: one that is not, or a month, is left out rather than rounded.
        if quota.period() > 0 && quota.period().is_multiple_of(SECOND) {
            self.text(";w=").number(quota.period() / SECOND);
        }
        self
    }

    fn value(&self) -> Option<HeaderValue> {
        HeaderValue::from_bytes(&self.0).ok()
    }

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
    let Some((_, bound)) = decision.binding() else {
        // Without a bucket there is nothing to tell but when a client is no longer shut out.
        if let (State::Block, Some(wait @ 1..)) = (decision.state, decision.retry_after()) {
            put(headers, RETRY_AFTER, number(retry_after_seconds(wait)));
        }
        return;
    };
    if speaks_of_limits(headers) {
        clear(headers, families, decision.allowed());
    }
    DESK.with_borrow_mut(|desk| {
        let bound_to = desk.written(decision.rules(), bound.policy);
        if families.ietf {
            let several = decision.verdicts().nth(1).is_some();
            desk.scratch.0.clear();
            let policies = if several {
                for (index, (policy, _)) in decision.verdicts().enumerate() {
                    desk.scratch.text(if index > 0 { ", " } else { "" }).policy(policy);
                }
                desk.scratch.value()
            } else {
                bound_to.as_ref().map(|written| written.policy.clone())
            };
            put(headers, RATELIMIT_POLICY, policies);
            desk.scratch.0.clear();
            for (index, (policy, verdict)) in decision.verdicts().enumerate() {
                let reading = &verdict.reading;
                desk.scratch.text(if index > 0 { ", \"" } else { "\"" }).text(&policy.name);
                desk.scratch.text("\";r=").number(u64::from(reading.remaining));
                desk.scratch.text(";t=").number(reading.reset_after.div_ceil(SECOND));
            }
            put(headers, RATELIMIT, desk.scratch.value());
        }
        if families.x_ratelimit {
            put(headers, X_LIMIT, bound_to.map(|written| written.limit));
            put(headers, X_REMAINING, number(u64::from(bound.reading.remaining)));
            put(headers, X_RESET, number(bound.reading.reset_after.div_ceil(SECOND)));
        }
    });
    if let (false, Some(wait)) = (decision.allowed(), decision.retry_after()) {
        put(headers, RETRY_AFTER, number(retry_after_seconds(wait)));
    }
}

fn put(headers: &mut HeaderMap, name: HeaderName, value: Option<HeaderValue>) {
    if let Some(value) = value {
        headers.append(name, value);
    }
}

/// Removes what is about to be written.
fn clear(headers: &mut HeaderMap, families: Families, allowed: bool) {
    let ietf = [RATELIMIT_POLICY, RATELIMIT].into_iter().filter(|_| families.ietf);
    let x_ratelimit = [X_LIMIT, X_REMAINING, X_RESET].into_iter().filter(|_| families.x_ratelimit);
    let retry_after = [RETRY_AFTER].into_iter().filter(|_| !allowed);
    for name in ietf.chain(x_ratelimit).chain(retry_after) {
        headers.remove(name);
    }
}

/// Whether a response speaks of some limit already. One look over the names costs less than five look-ups, and
/// `insert`, which returns what it replaces, a good deal more than `append`.
fn speaks_of_limits(headers: &HeaderMap) -> bool {
    let speaks = |name: &str| {
        let bare = name.strip_prefix("x-").unwrap_or(name);
        bare.starts_with("ratelimit") || name == "retry-after"
    };
    headers.keys().any(|name| speaks(name.as_str()))
}

/// Most numbers in these headers are small: they need no memory of their own.
static UP_TO_999: [[u8; 3]; 1000] = {
    let mut table = [[b'0'; 3]; 1000];
    let mut number = 0;
    while number < 1000 {
        table[number] =
            [b'0' + (number / 100) as u8, b'0' + (number / 10 % 10) as u8, b'0' + (number % 10) as u8];
        number += 1;
    }
    table
};

fn number(value: u64) -> Option<HeaderValue> {
    let small = usize::try_from(value).ok().and_then(|value| UP_TO_999.get(value));
    let Some(digits) = small else {
        let mut text = Text::default();
        return text.number(value).value();
    };
    let leading = usize::from(value < 100) + usize::from(value < 10);
    std::str::from_utf8(&digits[leading..]).ok().map(HeaderValue::from_static)
}

/// Whole seconds, rounded up: a client that waits exactly that long is admitted.
pub fn retry_after_seconds(wait: Micros) -> u64 {
    wait.div_ceil(SECOND).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn small_numbers_are_written_without_leading_zeros() {
        for value in (0..2_000).chain([u64::MAX]) {
            assert_eq!(number(value).unwrap().to_str().unwrap(), value.to_string());
        }
    }

    proptest! {
        #[test]
        fn a_number_is_written_as_everybody_writes_it(number: u64) {
            let mut text = Text::default();
            text.number(number);
            prop_assert_eq!(String::from_utf8_lossy(&text.0), number.to_string());
        }
    }
}
