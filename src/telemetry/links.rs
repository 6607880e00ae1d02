//! What is said of the link to Redis while it is in use: sparingly, since nothing stops for it.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::outage::Sparing;
use crate::limiter::event::Replaced;
use crate::limiter::store::{Fault, FaultKind};

/// Calls that Redis refuses now and then are worth a word when they go on for so long,
const GOES_ON: Duration = Duration::from_secs(10);
/// and are another matter after so long without one.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// Keeps each kind of line to one an interval.
pub(super) struct Links {
    slow: Sparing,
    lost: Sparing,
    refused: Sparing,
    clock: Sparing,
    /// The first and the last call that was refused.
    refusals: Mutex<Option<(Instant, Instant)>>,
}

impl Links {
    pub(super) fn new(interval: Duration) -> Self {
        let sparing = || Sparing::new(interval);
        Self {
            slow: sparing(),
            lost: sparing(),
            refused: sparing(),
            clock: sparing(),
            refusals: Mutex::default(),
        }
    }

    /// A fresh connection took the place of another. Nothing is said of one that was closed while idle: that is what
    /// providers and load balancers do, and it cost nobody anything.
    pub(super) fn replaced(&self, why: Replaced) {
        let now = Instant::now();
        match why {
            Replaced::Slow => {
                if let Some(unsaid) = self.slow.say(now) {
                    tracing::info!(
                        target: "tidegate", unsaid,
                        "calls to Redis timed out: their connection was replaced by a fresh one, which works"
                    );
                }
            }
            Replaced::Lost { calls: 0 } => {}
            Replaced::Lost { calls } => {
                if let Some(unsaid) = self.lost.say(now) {
                    tracing::info!(
                        target: "tidegate", calls, unsaid,
                        "the connection to Redis was lost under calls and replaced by a fresh one, which works"
                    );
                }
            }
            Replaced::Login => tracing::info!(
                target: "tidegate",
                "Redis: the changed user, password or certificates are in use"
            ),
            Replaced::Failover => tracing::info!(
                target: "tidegate",
                "Redis: the new master is in use"
            ),
        }
    }

    /// Redis' clock was set by so many microseconds. Debts there are instants of that clock.
    pub(super) fn clock_set(&self, by: i64, now: Instant) {
        let Some(unsaid) = self.clock.say(now) else { return };
        let by_s = by as f64 / 1e6;
        if by < 0 {
            tracing::warn!(
                target: "tidegate", by_s, unsaid,
                "Redis' clock was set back: debts that are above their limit by that are cut to a full bucket, and counts of \
                 calendar windows that have not begun are carried into the present one; keep its clock by NTP, which slews"
            );
        } else {
            tracing::warn!(
                target: "tidegate", by_s, unsaid,
                "Redis' clock was set forward, or this machine was suspended: debts in Redis end earlier by that; keep its \
                 clock by NTP, which slews"
            );
        }
    }

    /// A call failed and the breaker stays closed. A timeout is no word of Redis, and is looked after otherwise.
    pub(super) fn refused_call(&self, fault: &Fault, now: Instant) {
        if matches!(fault.kind, FaultKind::Timeout | FaultKind::Lost) || !self.go_on(now) {
            return;
        }
        if let Some(unsaid) = self.refused.say(now) {
            let (error_kind, detail) = (fault.kind.as_str(), &*fault.detail);
            tracing::warn!(
                target: "tidegate", error_kind, detail, unsaid,
                "Redis refuses some calls and answers others: memory decides those requests in its place"
            );
        }
    }

    /// Redis is away: what was refused before is a part of that.
    pub(super) fn away(&self) {
        *self.refusals.lock() = None;
    }

    fn go_on(&self, now: Instant) -> bool {
        let mut refusals = self.refusals.lock();
        let began = match *refusals {
            Some((first, last)) if now.duration_since(last) < FORGOTTEN => first,
            _ => now,
        };
        *refusals = Some((began, now));
        now.duration_since(began) >= GOES_ON
    }
}

/// Redis is slower than a request waits.
pub(super) fn slow(took: Duration, timeout: Duration) {
    let (took, timeout) = (took.as_micros().div_ceil(1_000), timeout.as_millis());
    // Twice what was measured, in whole steps of fifty.
    let enough = (2 * took).div_ceil(50) * 50;
    tracing::warn!(
        target: "tidegate",
        "Redis is slower than requests wait for it: measured {took} ms, REDIS_TIMEOUT_MS is {timeout}: set {enough}"
    );
}

/// The sentinels have made another server the master.
pub(super) fn switched(to: &str) {
    tracing::info!(target: "tidegate", master = to, "Redis: the sentinels name another master");
}

/// No sentinel tells anything.
pub(super) fn unfollowed(fault: &Fault) {
    let (error_kind, detail) = (fault.kind.as_str(), &*fault.detail);
    tracing::warn!(
        target: "tidegate", error_kind, detail,
        "Redis: none of the sentinels can be listened to; a failover would be noticed only by calls that fail"
    );
}

/// A login that was just put in its files is not let in.
pub(super) fn login_refused(fault: &Fault) {
    let (error_kind, detail) = (fault.kind.as_str(), &*fault.detail);
    tracing::warn!(
        target: "tidegate", error_kind, detail,
        "Redis: a connection with the changed user, password or certificates failed; the one before stays in use"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_calls_are_worth_a_word_when_they_go_on_and_are_no_outage() {
        let links = Links::new(Duration::from_secs(300));
        let start = Instant::now();
        let at = |second: u64| start + Duration::from_secs(second);
        assert!(!links.go_on(at(0)) && !links.go_on(at(9)));
        assert!(links.go_on(at(10)));
        assert!(!links.go_on(at(71)), "a minute later it is another matter");
        links.away();
        assert!(!links.go_on(at(82)), "an outage has its own words");
        assert!(links.go_on(at(92)));
    }
}
