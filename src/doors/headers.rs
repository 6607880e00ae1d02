//! What a client is told about its limits: the response headers, in the forms that clients read.

mod text;

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};

use crate::limiter::clock::{Micros, SECOND};
use crate::limiter::decision::{Decision, State, Verdict};
use crate::limiter::gcra::Quota;
use crate::limiter::policy::{Policy, PolicyId, Rules};
use text::{Text, number};

/// The sets of headers that are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sets {
    /// `RateLimit-Policy` and `RateLimit`, draft-ietf-httpapi-ratelimit-headers-10.
    pub ietf: bool,
    /// `RateLimit-Limit`, `-Remaining` and `-Reset`, draft-ietf-httpapi-ratelimit-headers-03.
    pub draft_03: bool,
    /// `X-RateLimit-*`, one of the two sets that share these names.
    pub x_ratelimit: Option<XRateLimit>,
    /// `X-RateLimit-Shadow`: what policies would have done that deny nothing so far.
    pub shadow: bool,
}

/// What `X-RateLimit-*` are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XRateLimit {
    /// `-Limit`, `-Remaining`, and `-Reset` in seconds from now.
    Delta,
    /// As GitHub sends them: `-Reset` in seconds since the Unix epoch, `-Used` and `-Resource` besides.
    GitHub,
}

impl Sets {
    /// None of them.
    pub const NONE: Self = Self { ietf: false, draft_03: false, x_ratelimit: None, shadow: false };
}

impl Default for Sets {
    fn default() -> Self {
        Self { ietf: true, x_ratelimit: Some(XRateLimit::Delta), shadow: true, ..Self::NONE }
    }
}

const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("ratelimit-reset");
const X_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const X_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const X_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
const X_USED: HeaderName = HeaderName::from_static("x-ratelimit-used");
const X_RESOURCE: HeaderName = HeaderName::from_static("x-ratelimit-resource");
const X_SHADOW: HeaderName = HeaderName::from_static("x-ratelimit-shadow");

/// Adds the headers of `decision` to a response. A name that the upstream set itself is replaced: it would speak
/// of another limit.
pub fn write(decision: &Decision, sets: Sets, headers: &mut HeaderMap) {
    if sets.shadow {
        write_shadow(decision, headers);
    }
    let Some((_, bound)) = decision.bound_by() else {
        // Without a bucket there is nothing to tell but when to come back.
        if let (State::Block | State::Throttle, Some(wait @ 1..)) = (decision.state, decision.retry_after()) {
            put(headers, RETRY_AFTER, number(retry_after_seconds(wait)));
        }
        return;
    };
    if speaks_of_limits(headers) {
        clear(headers, sets, decision.allowed());
    }
    if sets != Sets::NONE {
        let told = Told { rules: decision.rules(), bound, verdicts: decision.enforced(), wall };
        DESK.with_borrow_mut(|desk| told.write(desk, sets, headers));
    }
    if let (false, Some(wait)) = (decision.allowed(), decision.retry_after()) {
        put(headers, RETRY_AFTER, number(retry_after_seconds(wait)));
    }
}

/// `"all";would=throttle;retry-after=3`: only where a shadow policy would have denied.
fn write_shadow(decision: &Decision, headers: &mut HeaderMap) {
    let mut denials = decision.shadow_denials().peekable();
    if denials.peek().is_none() {
        return;
    }
    let mut text = Text::default();
    for denial in denials {
        text.next().quoted(denial.policy).text(";would=").text(denial.state.as_str());
        if let Some(wait) = denial.retry_after {
            text.text(";retry-after=").number(retry_after_seconds(wait));
        }
    }
    headers.remove(X_SHADOW);
    put(headers, X_SHADOW, text.value());
}

/// Whole seconds, rounded up: a client that waits exactly that long is admitted.
pub fn retry_after_seconds(wait: Micros) -> u64 {
    wait.div_ceil(SECOND).max(1)
}

/// The time that every set tells as the reset: until the budget is whole again, or, where a hit was denied, until the
/// same hit is admitted. Then it is the moment of `Retry-After`, as both drafts ask (-03, 4; -10, 6) and as clients
/// of GitHub take it.
fn reset_after(verdict: &Verdict) -> Micros {
    match verdict.reading.retry_after {
        Some(wait) if !verdict.reading.allowed => wait,
        _ => verdict.reading.reset_after,
    }
}

/// The time of day, which only GitHub's set tells.
fn wall() -> Micros {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as Micros)
}

thread_local! {
    static DESK: RefCell<Desk> = RefCell::default();
}

/// What a thread needs to write headers without allocating for each.
#[derive(Default)]
struct Desk {
    /// Written over by each header in turn.
    scratch: Text,
    fixed: Fixed,
}

/// What is told.
struct Told<'a, V> {
    rules: &'a Arc<Rules>,
    /// The policy that binds, which those sets tell of that know one only.
    bound: &'a Verdict,
    verdicts: V,
    wall: fn() -> Micros,
}

impl<'a, V: Iterator<Item = (&'a Policy, &'a Verdict)> + Clone> Told<'a, V> {
    fn write(&self, desk: &mut Desk, sets: Sets, headers: &mut HeaderMap) {
        let scratch = &mut desk.scratch;
        let Some(fixed) = desk.fixed.of(self.rules, self.bound.policy) else { return };
        let quota = self.bound.quota(self.rules.policy(self.bound.policy));
        let verdicts = || self.verdicts.clone();
        let policies = || verdicts().map(|(policy, verdict)| (&*policy.name, verdict.quota(policy)));
        // Who has a limit of its own is told that one.
        let own = self.bound.own.is_some();
        let alone = !own && verdicts().nth(1).is_none();
        let (remaining, reset) = (self.bound.reading.remaining, reset_after(self.bound));
        if sets.ietf {
            let listed = match alone {
                true => Some(fixed.ietf.clone()),
                false => scratch.clear().ietf_policies(policies()).value(),
            };
            put(headers, RATELIMIT_POLICY, listed);
            put(headers, RATELIMIT, scratch.clear().ietf_limits(verdicts()).value());
        }
        if sets.draft_03 {
            let limit = match alone {
                true => Some(fixed.draft_03.clone()),
                false => scratch.clear().draft_03_limit(quota, policies()).value(),
            };
            put(headers, LIMIT, limit);
            put(headers, REMAINING, number(u64::from(remaining)));
            put(headers, RESET, number(reset.div_ceil(SECOND)));
        }
        let Some(form) = sets.x_ratelimit else { return };
        put(headers, X_LIMIT, if own { number(u64::from(quota.limit())) } else { Some(fixed.limit.clone()) });
        put(headers, X_REMAINING, number(u64::from(remaining)));
        match form {
            XRateLimit::Delta => put(headers, X_RESET, number(reset.div_ceil(SECOND))),
            XRateLimit::GitHub => {
                put(headers, X_RESET, number(((self.wall)() + reset).div_ceil(SECOND)));
                // Of the units at once, as "remaining" is: "limit" is another number where the burst is.
                put(headers, X_USED, number(u64::from(quota.burst().saturating_sub(remaining))));
                put(headers, X_RESOURCE, Some(fixed.resource.clone()));
            }
        }
    }
}

/// By policy: what never changes while the rules are in force.
#[derive(Default)]
struct Fixed {
    /// The rules that `by_policy` belongs to, held so that no others take their place in memory.
    rules: Option<Arc<Rules>>,
    by_policy: Vec<Option<OfPolicy>>,
}

#[derive(Clone)]
struct OfPolicy {
    /// `RateLimit-Policy` of a rule with this policy alone.
    ietf: HeaderValue,
    /// `RateLimit-Limit` of such a rule.
    draft_03: HeaderValue,
    /// `X-RateLimit-Limit`
    limit: HeaderValue,
    /// `X-RateLimit-Resource`
    resource: HeaderValue,
}

impl Fixed {
    fn of(&mut self, rules: &Arc<Rules>, id: PolicyId) -> Option<&OfPolicy> {
        if !self.rules.as_ref().is_some_and(|known| Arc::ptr_eq(known, rules)) {
            self.rules = Some(Arc::clone(rules));
            self.by_policy = vec![None; rules.policies().len()];
        }
        let place = self.by_policy.get_mut(id)?;
        if place.is_none() {
            *place = OfPolicy::new(rules.policy(id));
        }
        place.as_ref()
    }
}

impl OfPolicy {
    fn new(policy: &Policy) -> Option<Self> {
        let alone = || std::iter::once((&*policy.name, &policy.quota));
        Some(Self {
            ietf: Text::default().ietf_policies(alone()).value()?,
            draft_03: Text::default().draft_03_limit(&policy.quota, alone()).value()?,
            limit: number(u64::from(policy.quota.limit()))?,
            resource: Text::default().text(&policy.name).value()?,
        })
    }
}

impl Text {
    /// `"per-client";q=100;w=60, "all";q=5000;w=3600`
    fn ietf_policies<'a>(&mut self, policies: impl Iterator<Item = (&'a str, &'a Quota)>) -> &mut Self {
        for (name, quota) in policies {
            self.next().quoted(name).text(";q=").number(u64::from(quota.limit()));
            if let Some(seconds) = window(quota) {
                self.text(";w=").number(seconds);
            }
        }
        self
    }

    /// `"per-client";r=99;t=1, "all";r=4999;t=1`
    fn ietf_limits<'a>(&mut self, verdicts: impl Iterator<Item = (&'a Policy, &'a Verdict)>) -> &mut Self {
        for (policy, verdict) in verdicts {
            self.next().quoted(&policy.name).text(";r=").number(u64::from(verdict.reading.remaining));
            self.text(";t=").number(reset_after(verdict).div_ceil(SECOND));
        }
        self
    }

    /// `100, 100;w=60;burst=20, 5000;w=3600`: the limit that binds, then every policy.
    fn draft_03_limit<'a>(
        &mut self,
        bound: &Quota,
        policies: impl Iterator<Item = (&'a str, &'a Quota)>,
    ) -> &mut Self {
        self.number(u64::from(bound.limit()));
        for (_, quota) in policies {
            // There a policy is nothing without its window.
            let Some(seconds) = window(quota) else { continue };
            self.next().number(u64::from(quota.limit())).text(";w=").number(seconds);
            if quota.burst() != quota.limit() {
                self.text(";burst=").number(u64::from(quota.burst()));
            }
        }
        self
    }
}

/// A quota's window, whole seconds in both drafts: one that is not, or a month, is left out rather than rounded.
fn window(quota: &Quota) -> Option<u64> {
    (quota.period() > 0 && quota.period().is_multiple_of(SECOND)).then(|| quota.period() / SECOND)
}

fn put(headers: &mut HeaderMap, name: HeaderName, value: Option<HeaderValue>) {
    if let Some(value) = value {
        headers.append(name, value);
    }
}

/// Removes what is about to be written.
fn clear(headers: &mut HeaderMap, sets: Sets, allowed: bool) {
    let x_ratelimit = [X_LIMIT, X_REMAINING, X_RESET];
    for (names, written) in [
        (&[RATELIMIT_POLICY, RATELIMIT][..], sets.ietf),
        (&[LIMIT, REMAINING, RESET], sets.draft_03),
        (&x_ratelimit, sets.x_ratelimit.is_some()),
        (&[X_USED, X_RESOURCE], sets.x_ratelimit == Some(XRateLimit::GitHub)),
        (&[RETRY_AFTER], !allowed),
    ] {
        names.iter().filter(|_| written).for_each(|name| {
            headers.remove(name);
        });
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

#[cfg(test)]
mod tests;
