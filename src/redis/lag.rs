//! How long calls take at least, as of lately.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::limiter::clock::{Micros, SECOND};

/// The shortest call of the present five seconds and of those before.
///
/// Not exact between threads: a call that is lost at the border of two windows is followed by others.
#[derive(Debug, Default)]
pub(super) struct Lag {
    window: AtomicU64,
    present: AtomicU64,
    before: AtomicU64,
    /// When the last call was answered: in the line of `window`, which each call writes anyway.
    last: AtomicU64,
}

const WINDOW: Micros = 5 * SECOND;

impl Lag {
    /// A call took so long.
    pub(super) fn learn(&self, took: Micros, now: Micros) {
        self.last.store(now, Ordering::Relaxed);
        let window = now / WINDOW;
        if self.window.swap(window, Ordering::Relaxed) != window {
            self.before.store(self.present.swap(took, Ordering::Relaxed), Ordering::Relaxed);
        } else if took < self.present.load(Ordering::Relaxed) {
            self.present.store(took, Ordering::Relaxed);
        }
    }

    /// How long ago the last call was answered, in microseconds.
    pub(super) fn quiet(&self, now: Micros) -> Micros {
        now.saturating_sub(self.last.load(Ordering::Relaxed))
    }

    /// The shortest lately, in microseconds; 0 before anything is known.
    pub(super) fn shortest(&self) -> Micros {
        self.present.load(Ordering::Relaxed).min(self.before.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_call_of_this_window_and_the_one_before_counts() {
        let lag = Lag::default();
        assert_eq!(lag.shortest(), 0);
        lag.learn(900, 10 * WINDOW);
        lag.learn(300, 11 * WINDOW);
        assert_eq!(lag.shortest(), 300);
        lag.learn(500, 12 * WINDOW);
        lag.learn(400, 12 * WINDOW + 1);
        assert_eq!(lag.shortest(), 300);
        lag.learn(700, 13 * WINDOW);
        assert_eq!(lag.shortest(), 400);
    }
}
