//! How many calls there were in the last ten seconds and how many of them failed, in one atomic word a second.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::limiter::clock::{Micros, SECOND};

const SECONDS: u64 = 10;
/// A word holds the second that it counts (the last 20 bits of it: the same again after twelve days), then the
/// failures, then the calls.
const BITS: u32 = 22;
const COUNT: u64 = (1 << BITS) - 1;
const STAMP: u64 = !(COUNT << BITS | COUNT);
/// Where a count stops, four million calls a second: far enough from the edge for every thread to overshoot once.
const MOST: u64 = COUNT - 65_536;

/// The ten seconds.
#[derive(Debug, Default)]
pub(super) struct Window {
    seconds: [AtomicU64; SECONDS as usize],
}

impl Window {
    /// Counts one call.
    #[inline]
    pub(super) fn count(&self, now: Micros, failed: bool) {
        let second = now / SECOND;
        let (place, stamp) = (place(second), stamp(second));
        let one = 1 + (u64::from(failed) << BITS);
        let mut seen = self.seconds[place].load(Ordering::Relaxed);
        loop {
            if seen & STAMP == stamp {
                if seen & COUNT < MOST {
                    self.seconds[place].fetch_add(one, Ordering::Relaxed);
                }
                return;
            }
            let fresh = stamp | one;
            match self.seconds[place].compare_exchange_weak(seen, fresh, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return,
                Err(there) => seen = there,
            }
        }
    }

    /// Calls and failures of the present second and the nine before it.
    pub(super) fn sum(&self, now: Micros) -> (u64, u64) {
        let present = now / SECOND;
        (0..SECONDS).filter_map(|ago| present.checked_sub(ago)).fold((0, 0), |(calls, failures), second| {
            let seen = self.seconds[place(second)].load(Ordering::Relaxed);
            if seen & STAMP != stamp(second) {
                return (calls, failures);
            }
            (calls + (seen & COUNT), failures + (seen >> BITS & COUNT))
        })
    }

    /// Forgets all.
    pub(super) fn clear(&self) {
        self.seconds.iter().for_each(|second| second.store(0, Ordering::Relaxed));
    }
}

fn place(second: u64) -> usize {
    (second % SECONDS) as usize
}

fn stamp(second: u64) -> u64 {
    second << (2 * BITS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_sum_is_that_of_the_present_second_and_the_nine_before_it(
            start in 0u64..4_000_000_000,
            steps in prop::collection::vec((0u64..4_000_000, any::<bool>()), 1..200),
        ) {
            let window = Window::default();
            let mut now = start * SECOND;
            let mut past: Vec<(u64, bool)> = Vec::new();
            for (step, failed) in steps {
                now += step;
                window.count(now, failed);
                past.push((now / SECOND, failed));
                let recent = past.iter().filter(|(second, _)| second + SECONDS > now / SECOND);
                let (calls, failures) = recent.fold((0, 0), |(calls, failures), (_, failed)| {
                    (calls + 1, failures + u64::from(*failed))
                });
                prop_assert_eq!(window.sum(now), (calls, failures));
            }
        }
    }

    #[test]
    fn a_count_stops_before_it_spills_into_the_next() {
        let window = Window::default();
        let stamp = stamp(7);
        window.seconds[7].store(stamp | MOST << BITS | MOST, Ordering::Relaxed);
        window.count(7 * SECOND, true);
        assert_eq!(window.sum(7 * SECOND), (MOST, MOST));
        window.clear();
        assert_eq!(window.sum(7 * SECOND), (0, 0));
    }
}
