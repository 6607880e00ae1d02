//! How long calls take at most, as of lately.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::limiter::clock::{Micros, SECOND};

/// The longest call of the present five seconds and of those before.
///
/// Not exact between threads: a call that is lost at the border of two windows is followed by others.
#[derive(Debug, Default)]
pub(super) struct Lag {
    window: AtomicU64,
    present: AtomicU64,
    before: AtomicU64,
}

const WINDOW: Micros = 5 * SECOND;

impl Lag {
    /// A call took so long.
    pub(super) fn learn(&self, took: Micros, now: Micros) {
        let window = now / WINDOW;
        let known = self.window.swap(window, Ordering::Relaxed);
        if known != window {
            let last = if known + 1 == window { self.present.load(Ordering::Relaxed) } else { 0 };
            self.before.store(last, Ordering::Relaxed);
            self.present.store(took, Ordering::Relaxed);
        } else if took > self.present.load(Ordering::Relaxed) {
            self.present.store(took, Ordering::Relaxed);
        }
    }

    /// The longest lately, in microseconds. What was learned long ago still counts until something is learned again.
    pub(super) fn longest(&self) -> Micros {
        self.present.load(Ordering::Relaxed).max(self.before.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_call_counts_for_five_to_ten_seconds() {
        let lag = Lag::default();
        assert_eq!(lag.longest(), 0);
        lag.learn(900, 10 * WINDOW);
        lag.learn(100, 10 * WINDOW + 1);
        assert_eq!(lag.longest(), 900);
        lag.learn(200, 11 * WINDOW);
        assert_eq!(lag.longest(), 900);
        lag.learn(50, 12 * WINDOW);
        assert_eq!(lag.longest(), 200);
        lag.learn(10, 20 * WINDOW);
        assert_eq!(lag.longest(), 10);
    }
}
