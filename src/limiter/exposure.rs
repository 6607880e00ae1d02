//! How much of the canary Redis really decides, as of lately: with memory in its place every figure of the canary looks
//! well, and says nothing of Redis.

use std::sync::atomic::{AtomicU64, Ordering};

use super::clock::{Clock, Micros, SECOND};
use super::decision::Decision;
use super::rollout::Arm;

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
    /// Counts a decision that was made at `now`, if it says something: one that needed no asking (a denial known
    /// beforehand) does not, nor does one of both stores.
    /// The clock is read for those alone.
    pub fn count(&self, decision: &Decision, clock: &Clock) {
        if decision.arm() == Arm::Canary && !decision.cached && !decision.mixed {
            self.add(decision.fallback().is_none(), clock.now());
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
    use super::*;

    const NOW: Micros = 1_000_000 * SECOND;

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
