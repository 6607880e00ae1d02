//! Which part of the traffic of the last minutes a percentage would move: requests counted by their subject's bucket of the
//! canary, a cell for each percent. It keeps no key and costs a request one relaxed increment.
//!
//! A request counts once, by the subject of its rule's first policy.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::clock::{Micros, SECOND};
use super::rollout::Percent;

/// So many minutes are kept, the present one among them.
const MINUTES: usize = 5;
const MINUTE: Micros = 60 * SECOND;
/// One for each percent,
const CELLS: usize = 100;
/// and one for what no percentage splits: it moves last.
const EVERYONE: usize = CELLS;

/// The requests of the last minutes, by their bucket. 2 KiB.
#[derive(Debug)]
pub struct Recent {
    /// A row a minute.
    counts: [[AtomicU32; CELLS + 1]; MINUTES],
    /// The minute since the epoch that is counted; its row is the remainder by [`MINUTES`].
    minute: AtomicU64,
    /// When counting began; 0: it has not.
    since: AtomicU64,
}

/// What was counted, and what of it would be decided by another store.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moved {
    /// Requests that were counted.
    pub samples: u64,
    /// How many of them would move; within one percent of the keys they are taken to be spread evenly.
    pub moving: f64,
    /// Over how long they came.
    pub over: Micros,
}

impl Default for Recent {
    fn default() -> Self {
        let row = || std::array::from_fn(|_| AtomicU32::new(0));
        Self { counts: std::array::from_fn(|_| row()), minute: AtomicU64::new(0), since: AtomicU64::new(0) }
    }
}

impl Recent {
    /// A request whose subject has this bucket, 0 to 9 999; `None`: one that all share.
    #[inline]
    pub(super) fn count(&self, bucket: Option<u16>) {
        let row = self.minute.load(Ordering::Relaxed) as usize % MINUTES;
        let cell = bucket.map_or(EVERYONE, |bucket| usize::from(bucket / 100).min(CELLS - 1));
        self.counts[row][cell].fetch_add(1, Ordering::Relaxed);
    }

    /// Looks at the clock: a minute that has begun takes the place of the oldest. Call it every few seconds, from one place.
    pub(super) fn turn(&self, now: Micros) {
        if self.since.load(Ordering::Relaxed) == 0 {
            self.since.store(now.max(1), Ordering::Relaxed);
        }
        let (minute, known) = (now / MINUTE, self.minute.load(Ordering::Relaxed));
        if minute <= known {
            return;
        }
        // The first turn keeps what came before it.
        let passed = if known == 0 { 0 } else { (minute - known).min(MINUTES as u64) };
        for minute in (minute - passed + 1)..=minute {
            for cell in &self.counts[minute as usize % MINUTES] {
                cell.store(0, Ordering::Relaxed);
            }
        }
        if known == 0 {
            // What came before the first look is counted as of this minute.
            let (from, to) = (&self.counts[0], &self.counts[minute as usize % MINUTES]);
            if !std::ptr::eq(from, to) {
                for (from, to) in from.iter().zip(to) {
                    to.fetch_add(from.swap(0, Ordering::Relaxed), Ordering::Relaxed);
                }
            }
        }
        self.minute.store(minute, Ordering::Relaxed);
    }

    /// What of it would move between two shares, whichever is the greater.
    pub fn moved(&self, from: Percent, to: Percent, now: Micros) -> Moved {
        let cell = |cell: usize| -> u64 {
            self.counts.iter().map(|row| u64::from(row[cell].load(Ordering::Relaxed))).sum()
        };
        let (low, high) = (from.min(to), from.max(to));
        let (low_points, high_points) = (low.basis_points(), high.basis_points());
        let mut moved = Moved { samples: cell(EVERYONE), moving: 0.0, over: self.over(now) };
        if low < Percent::ALL && high == Percent::ALL {
            moved.moving += cell(EVERYONE) as f64;
        }
        for percent in 0..CELLS {
            let count = cell(percent);
            moved.samples += count;
            let start = percent as u16 * 100;
            let within = high_points.clamp(start, start + 100) - low_points.clamp(start, start + 100);
            moved.moving += count as f64 * f64::from(within) / 100.0;
        }
        moved
    }

    fn over(&self, now: Micros) -> Micros {
        let since = self.since.load(Ordering::Relaxed);
        if since == 0 {
            return 0;
        }
        let oldest = (now / MINUTE).saturating_sub(MINUTES as u64 - 1) * MINUTE;
        now.saturating_sub(since.max(oldest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(points: u16) -> Percent {
        Percent::from_basis_points(points).unwrap()
    }

    #[test]
    fn what_lies_between_two_shares_moves_whichever_way_and_what_all_share_moves_last() {
        let recent = Recent::default();
        let now = 1_000 * MINUTE;
        recent.turn(now);
        for bucket in (0..10_000).step_by(10) {
            recent.count(Some(bucket));
        }
        (0..500).for_each(|_| recent.count(None));
        let later = now + 30 * SECOND;
        let up = recent.moved(points(1_000), points(3_500), later);
        assert_eq!(up, Moved { samples: 1_500, moving: 250.0, over: 30 * SECOND });
        assert_eq!(recent.moved(points(3_500), points(1_000), later), up);
        assert_eq!(recent.moved(points(0), points(50), later).moving, 5.0, "half a cell");
        assert_eq!(recent.moved(points(9_999), Percent::ALL, later).moving.round(), 500.0);
        assert_eq!(recent.moved(Percent::ALL, Percent::ALL, later).moving, 0.0);
        assert_eq!(recent.moved(Percent::NONE, Percent::ALL, later).moving, 1_500.0);
    }

    #[test]
    fn five_minutes_are_kept_and_what_is_older_is_forgotten() {
        let recent = Recent::default();
        let samples = |now| recent.moved(Percent::NONE, Percent::NONE, now).samples;
        // Before anybody has looked at the clock.
        recent.count(Some(7));
        let start = 1_001 * MINUTE;
        for minute in 0..5 {
            recent.turn(start + minute * MINUTE);
            recent.count(Some(7));
            assert_eq!(samples(start + minute * MINUTE), minute + 2);
        }
        recent.turn(start + 5 * MINUTE);
        assert_eq!(samples(start + 5 * MINUTE), 4, "the first minute is gone, with two");
        recent.turn(start + 7 * MINUTE + 1);
        assert_eq!(samples(start + 7 * MINUTE + 1), 2);
        recent.turn(start + 1_000 * MINUTE);
        assert_eq!(samples(start + 1_000 * MINUTE), 0);
        let over = recent.moved(Percent::NONE, Percent::NONE, start + 1_000 * MINUTE).over;
        assert_eq!(over, 4 * MINUTE, "four whole ones and what has passed of the present");
    }
}
