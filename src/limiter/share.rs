//! Which share of its subjects' traffic this instance sees. While Redis is lost an instance that serves the full limit
//! makes it N limits for a fleet of N; one that serves its share keeps it about one.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};

use super::clock::Micros;

/// A share, 1 to 1 000 000 parts of a million.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u32);

impl Share {
    /// All of it.
    pub const WHOLE: Self = Self(1_000_000);

    /// One of so many equal parts.
    pub fn one_of(parts: NonZeroU32) -> Self {
        Self((1_000_000 / parts.get()).max(1))
    }

    /// So much of the whole; at least a millionth.
    fn of(part: u64, whole: u64) -> Self {
        let parts = u128::from(part) * 1_000_000 / u128::from(whole.max(1));
        Self((parts as u32).clamp(1, 1_000_000))
    }

    /// As a number up to 1.
    pub fn as_f64(self) -> f64 {
        f64::from(self.0) / 1_000_000.0
    }

    /// What a charge comes to when it stands for those of the others as well: as much more as the share is less than
    /// the whole. Never above `most`, so that at least one hit of a full bucket passes.
    #[inline]
    pub(super) fn stretch(self, amount: Micros, most: Micros) -> Micros {
        if self == Self::WHOLE || amount > most {
            return amount;
        }
        let (amount, parts) = (u128::from(amount), u128::from(self.0));
        let stretched = (amount * 1_000_000 + parts / 2) / parts;
        u64::try_from(stretched).unwrap_or(most).min(most)
    }

    /// How many of the units that a bucket has left are this instance's.
    pub(super) fn part_of(self, units: u32) -> u32 {
        (u64::from(units) * u64::from(self.0) / 1_000_000) as u32
    }
}

/// Learns the share from what Redis tells: a debt that grew between two of this instance's readings by more than its own
/// charges was charged by others.
///
/// The sums are of units over all subjects, never a mean of ratios by key: few keys with little traffic would weigh as
/// much as those that matter.
#[derive(Debug, Default)]
pub struct ShareEstimate {
    own: AtomicU64,
    others: AtomicU64,
}

/// So many units tell nothing yet.
const UNITS_TO_KNOW: u64 = 50;
/// Above so many the sums are halved: what is older counts for less.
const UNITS_REMEMBERED: u64 = 4_000;

impl ShareEstimate {
    /// A bucket that did not run empty between two readings: what this instance charged, and what others did.
    pub(super) fn sample(&self, own: u64, others: u64) {
        // Not one step: a sample that gets lost between two threads changes a sum of thousands by little.
        let (own, others) =
            (own + self.own.load(Ordering::Relaxed), others + self.others.load(Ordering::Relaxed));
        let halved = u32::from(own + others > UNITS_REMEMBERED);
        self.own.store(own >> halved, Ordering::Relaxed);
        self.others.store(others >> halved, Ordering::Relaxed);
    }

    /// The share, once it is known.
    pub fn share(&self) -> Option<Share> {
        let (own, others) = (self.own.load(Ordering::Relaxed), self.others.load(Ordering::Relaxed));
        (own + others >= UNITS_TO_KNOW).then(|| Share::of(own, own + others))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_known_after_some_units_and_follows_the_later_ones() {
        let estimate = ShareEstimate::default();
        assert_eq!(estimate.share(), None);
        for _ in 0..2_000 {
            estimate.sample(1, 3);
        }
        let share = estimate.share().unwrap().as_f64();
        assert!((share - 0.25).abs() < 0.01, "{share}");
        for _ in 0..20_000 {
            estimate.sample(1, 0);
        }
        assert!(estimate.share().unwrap().as_f64() > 0.95);
    }

    #[test]
    fn a_charge_stands_for_the_others_and_never_for_more_than_the_bucket() {
        let quarter = Share::one_of(NonZeroU32::new(4).unwrap());
        assert_eq!(quarter.stretch(600_000, 12_000_000), 2_400_000);
        assert_eq!(quarter.stretch(600_000, 1_000_000), 1_000_000);
        assert_eq!(quarter.stretch(0, 1_000_000), 0);
        // A cost above the burst is no less impossible.
        assert_eq!(quarter.stretch(12_000_001, 12_000_000), 12_000_001);
        assert_eq!(Share::WHOLE.stretch(7, 5_000), 7);
        assert_eq!(Share::one_of(NonZeroU32::MAX).stretch(1, u64::MAX), 1_000_000);
        assert_eq!((quarter.part_of(100), Share::WHOLE.part_of(100)), (25, 100));
    }
}
