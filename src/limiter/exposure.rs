//! How much of the canary Redis really decides, as of lately: with memory in its place every figure of the canary looks
//! well, and says nothing of Redis.

use std::sync::atomic::{AtomicU64, Ordering};

use super::clock::{Clock, Micros, SECOND};
use super::decision::Decision;

/// Ten seconds.
const SPAN: Micros = 10 * SECOND;
/// The last minute, and the span that has just begun.
const SPANS: usize = 7;

/// Counts the canary's decisions of the last minute. One load and one add for each; what two threads count at the
/// border of two spans may fall into either.
#[derive(Debug, Default)]
pub struct Exposure {
    spans: [Span; SPANS],
}

#[derive(Debug, Default)]
struct Span {
    number: AtomicU64,
    asked: AtomicU64,
    decided: AtomicU64,
}

impl Exposure {
    /// Counts a decision, if Redis was to make it or a part of it: the subjects of its policies that the canary has. A
    /// policy of another store, such as one by everyone below 100 %, makes no difference. One that needed no asking (a denial
    /// known beforehand) does not count. The clock is read for those that count alone.
    pub fn count(&self, decision: &Decision, clock: &Clock) {
        if decision.cached {
            return;
        }
        if let Some(decided) = decision.canary_was_decided_by_redis() {
            self.add(decided, clock.now());
        }
    }

    fn add(&self, decided: bool, now: Micros) {
        let number = now / SPAN;
        let span = &self.spans[(number % SPANS as u64) as usize];
        if span.number.swap(number, Ordering::Relaxed) != number {
            span.asked.store(0, Ordering::Relaxed);
            span.decided.store(0, Ordering::Relaxed);
        }
        span.asked.fetch_add(1, Ordering::Relaxed);
        span.decided.fetch_add(u64::from(decided), Ordering::Relaxed);
    }

    /// The share of the canary's decisions of the last minute that Redis made, 0 to 1; `None` when there were none.
    pub fn ratio(&self, now: Micros) -> Option<f64> {
        let number = now / SPAN;
        let recent = |span: &&Span| number - span.number.load(Ordering::Relaxed).min(number) < SPANS as u64;
        let (asked, decided) = self.spans.iter().filter(recent).fold((0, 0), |(asked, decided), span| {
            (asked + span.asked.load(Ordering::Relaxed), decided + span.decided.load(Ordering::Relaxed))
        });
        (asked > 0).then(|| (decided as f64 / asked as f64).min(1.0))
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::sync::Arc;

    use super::*;
    use crate::limiter::decision::{Backend, Ruling, Verdict};
    use crate::limiter::gcra::Quota;
    use crate::limiter::policy::{Policy, Rules};
    use crate::limiter::rollout::Arm;
    use crate::limiter::route::Route;
    use crate::limiter::store::FaultKind;
    use crate::limiter::subject::{Part, Subject};

    const NOW: Micros = 1_000_000 * SECOND;

    /// A decision by a policy by address, which the canary has, and one by everyone, which it has not below 100 %.
    fn by_ip_and_everyone(fallback: Option<FaultKind>) -> Decision {
        let quota = Quota::new(NonZeroU32::MIN, SECOND, NonZeroU32::MIN).unwrap();
        let mut rules = Rules::none();
        let everyone = Subject::new([Part::Everyone]);
        let policies = [Policy::new("ip", Subject::ip(), quota), Policy::new("all", everyone, quota)];
        rules.add("default", Route::any(), 1, policies);
        let verdict = |policy, arm, backend, fallback| Verdict {
            reading: quota.reading(0, 0, true),
            arm,
            backend,
            fallback,
            missing: false,
            ..Verdict::missing(policy, quota)
        };
        let backend = if fallback.is_some() { Backend::Memory } else { Backend::Redis };
        let verdicts =
            [verdict(0, Arm::Canary, backend, fallback), verdict(1, Arm::Control, Backend::Memory, None)];
        Decision::of(Arc::new(rules), 1, verdicts.into_iter().collect())
    }

    #[test]
    fn policy_by_everyone_leaves_the_ratio_as_it_is() {
        let (exposure, clock) = (Exposure::default(), Clock::manual(NOW));
        (0..200).for_each(|_| exposure.count(&by_ip_and_everyone(None), &clock));
        assert_eq!(exposure.ratio(NOW), Some(1.0));
        exposure.count(&by_ip_and_everyone(Some(FaultKind::Timeout)), &clock);
        assert_eq!(exposure.ratio(NOW), Some(200.0 / 201.0), "one of 201 was not decided by Redis");
        let mut known = by_ip_and_everyone(None);
        known.cached = true;
        (0..200).for_each(|_| exposure.count(&known, &clock));
        assert_eq!(exposure.ratio(NOW), Some(200.0 / 201.0), "nothing was asked");
    }

    #[test]
    fn request_that_the_canary_has_no_part_of_is_not_counted() {
        let (exposure, clock) = (Exposure::default(), Clock::manual(NOW));
        let rules = Arc::new(Rules::none());
        exposure.count(&Decision::unlimited(Arc::clone(&rules), 1), &clock);
        assert_eq!(exposure.ratio(NOW), None);
        let away = Decision::ruled(rules, 1, Ruling::StoreAway(0, FaultKind::Timeout));
        exposure.count(&away, &clock);
        assert_eq!(exposure.ratio(NOW), Some(0.0), "Redis was asked, and is away");
    }

    #[test]
    fn it_is_the_share_of_the_last_minute_and_nothing_before_anybody_asked() {
        let exposure = Exposure::default();
        assert_eq!(exposure.ratio(NOW), None);
        for hit in 0..10 {
            exposure.add(hit < 7, NOW + hit * SECOND);
        }
        assert_eq!(exposure.ratio(NOW + 10 * SECOND), Some(0.7));
        exposure.add(true, NOW + 65 * SECOND);
        assert_eq!(exposure.ratio(NOW + 65 * SECOND), Some(8.0 / 11.0));
        assert_eq!(exposure.ratio(NOW + 75 * SECOND), Some(1.0), "what is older than a minute is forgotten");
        exposure.add(false, NOW + 3_600 * SECOND);
        assert_eq!(exposure.ratio(NOW + 3_600 * SECOND), Some(0.0), "an hour later in the same place");
        assert_eq!(exposure.ratio(NOW + 7_200 * SECOND), None);
    }
}
