//! Which share of its subjects' traffic this instance sees. While Redis is lost an instance that serves the full limit
//! makes it N limits for a fleet of N; one that serves its share keeps it about one.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::clock::Micros;
use super::store::Charger;

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

    /// So much of the whole; at least a millionth. From 99 % on it is the whole: a hundredth less would take a whole unit
    /// off every burst.
    fn of(part: u64, whole: u64) -> Self {
        let parts = part * 1_000_000 / whole.max(1);
        if parts >= 990_000 { Self::WHOLE } else { Self((parts as u32).max(1)) }
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

    /// As much more of an amount as the share is less than the whole, however much that is.
    #[inline]
    pub(super) fn scale(self, amount: Micros) -> Micros {
        let parts = u128::from(self.0);
        u64::try_from((u128::from(amount) * 1_000_000 + parts / 2) / parts).unwrap_or(u64::MAX)
    }

    /// How many of the units that a bucket has left are this instance's.
    pub(super) fn part_of(self, units: u32) -> u32 {
        (u64::from(units) * u64::from(self.0) / 1_000_000) as u32
    }
}

/// Where the traffic share of an instance comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShareSource {
    /// The charges in Redis.
    Learned,
    /// The members of the fleet, as the heartbeats name them.
    Members,
    /// The configured fleet size.
    FleetSize,
    /// Nothing: it is the whole.
    Unknown,
}

impl ShareSource {
    /// The word of the admin API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Learned => "learned",
            Self::Members => "members",
            Self::FleetSize => "fleet_size",
            Self::Unknown => "unknown",
        }
    }
}

/// The traffic share of this instance, from one question asked at every charge of a bucket that was not empty: did this
/// instance make the earlier charge that the bucket's tag is of?
///
/// Where requests reach the instances independently of each other, the answer is yes with the probability of the share,
/// at every load and for every size of a fleet. The tag is not always that of the charge just before, since the calls of
/// one instance come in batches: see `redis/charge.lua`. A denied hit is no such question: the instance that made the last charge
/// knows of the denial without asking Redis, so it is the others that would hear "another". The counts are of charges over
/// all buckets, never a mean of ratios by key: few keys with little traffic would weigh as much as those that matter.
#[derive(Debug, Default)]
pub struct ShareEstimate {
    /// Charges after one of this instance, and in the upper half those after one of another.
    counts: AtomicU64,
    /// The instances that the fleet has had since the counts began to follow it; 0: not known.
    members: AtomicU32,
}

/// Fewer answers than this say nothing: the standard error of a share of a quarter is 17 % of it then.
const KNOWN_FROM: u64 = 100;
/// Above so many the counts are halved, so that older ones weigh less. With half as many the standard error of a share of
/// a sixteenth is 1 % of it, and 2 % where all of them are of one key, whose tag changes once in 32 charges of the fleet.
const REMEMBERED: u64 = 262_144;
/// When instances join or leave no more than so many are kept: what comes then outweighs them in seconds.
const KEPT_AT_A_CHANGE: u64 = 512;
const OTHER: u64 = 1 << 32;

impl ShareEstimate {
    /// Counts one answer.
    pub(super) fn sample(&self, last: Charger) {
        let one = match last {
            Charger::This => 1,
            Charger::Other => OTHER,
        };
        let before = self.counts.fetch_add(one, Ordering::Relaxed);
        if total(before) >= REMEMBERED {
            self.keep(REMEMBERED / 2);
        }
    }

    /// The fleet has so many instances by now.
    pub(super) fn of_members(&self, members: u32) {
        let before = self.members.swap(members, Ordering::Relaxed);
        if before != members && before != 0 {
            self.keep(KEPT_AT_A_CHANGE);
        }
    }

    /// How many instances the fleet has; `None` while nothing says so.
    pub(super) fn members(&self) -> Option<NonZeroU32> {
        NonZeroU32::new(self.members.load(Ordering::Relaxed))
    }

    /// Weakens the counts until they are of no more answers than `most`.
    fn keep(&self, most: u64) {
        let halved = |counts| {
            let (mut own, mut others) = parts(counts);
            while own + others > most {
                (own, others) = (own / 2, others / 2);
            }
            Some(own + others * OTHER)
        };
        // Two threads at once halve twice, which costs precision for a moment and no more.
        let _ = self.counts.fetch_update(Ordering::Relaxed, Ordering::Relaxed, halved);
    }

    /// The share, once it is known.
    pub fn share(&self) -> Option<Share> {
        let (own, others) = parts(self.counts.load(Ordering::Relaxed));
        (own + others >= KNOWN_FROM).then(|| Share::of(own, own + others))
    }
}

fn parts(counts: u64) -> (u64, u64) {
    (counts % OTHER, counts / OTHER)
}

fn total(counts: u64) -> u64 {
    let (own, others) = parts(counts);
    own + others
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(estimate: &ShareEstimate, last: Charger, times: usize) {
        (0..times).for_each(|_| estimate.sample(last));
    }

    #[test]
    fn share_is_known_from_a_hundred_answers_on() {
        let estimate = ShareEstimate::default();
        count(&estimate, Charger::This, 25);
        count(&estimate, Charger::Other, 74);
        assert_eq!(estimate.share(), None);
        estimate.sample(Charger::Other);
        assert_eq!(estimate.share().unwrap().as_f64(), 0.25);
    }

    #[test]
    fn share_follows_later_answers_and_its_counts_are_bounded() {
        let estimate = ShareEstimate::default();
        for _ in 0..200_000 {
            estimate.sample(Charger::This);
            estimate.sample(Charger::Other);
            estimate.sample(Charger::Other);
            estimate.sample(Charger::Other);
        }
        let share = estimate.share().unwrap().as_f64();
        assert!((share - 0.25).abs() < 0.001, "{share}");
        assert!(total(estimate.counts.load(Ordering::Relaxed)) <= REMEMBERED);
        count(&estimate, Charger::This, 1_200_000);
        assert_eq!(estimate.share(), Some(Share::WHOLE), "others are below a hundredth");
    }

    #[test]
    fn share_follows_a_change_of_the_fleet_at_once() {
        let estimate = ShareEstimate::default();
        estimate.of_members(2);
        count(&estimate, Charger::This, 10_000);
        count(&estimate, Charger::Other, 10_000);
        estimate.of_members(2);
        assert_eq!(total(estimate.counts.load(Ordering::Relaxed)), 20_000, "the same number is no change");
        estimate.of_members(8);
        let share = estimate.share().unwrap().as_f64();
        assert!((share - 0.5).abs() < 0.01, "what is known is no other: {share}");
        for _ in 0..1_000 {
            estimate.sample(Charger::This);
            count(&estimate, Charger::Other, 7);
        }
        let share = estimate.share().unwrap().as_f64();
        assert!((share - 0.125).abs() < 0.0125 * 2.0, "{share}");
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

#[cfg(test)]
#[path = "share_tests.rs"]
mod simulation;
