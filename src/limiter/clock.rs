//! Tells the time to everything that decides: microseconds since the Unix epoch, never backwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// A duration, or an instant since the Unix epoch, in whole microseconds.
pub type Micros = u64;

/// One second.
pub const SECOND: Micros = 1_000_000;

/// Where "now" comes from. A closed set, so that the hot path pays a predicted branch and no virtual call.
#[derive(Clone, Debug)]
pub enum Clock {
    /// The machine's wall clock, read once, and from then on the monotonic clock: a step of the wall
    /// clock (NTP, an operator) can neither refund nor steal anybody's budget.
    System(SystemClock),
    /// A clock that tests move by hand.
    Manual(Arc<AtomicU64>),
}

/// The anchor of [`Clock::System`].
#[derive(Clone, Debug)]
pub struct SystemClock {
    clock: quanta::Clock,
    /// What the counter showed at the start, in its own unit.
    started: u64,
    started_at: Micros,
    /// By how much the wall clock is ahead of this one.
    behind: Arc<AtomicI64>,
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        let clock = quanta::Clock::new();
        let started = clock.raw();
        Self::System(SystemClock { clock, started, started_at: wall(), behind: Arc::default() })
    }

    /// A clock that stands at `now` until [`Clock::advance`] moves it.
    pub fn manual(now: Micros) -> Self {
        Self::Manual(Arc::new(AtomicU64::new(now)))
    }

    /// The present instant.
    #[inline]
    pub fn now(&self) -> Micros {
        match self {
            Self::System(anchor) => {
                // From the counter at once: `Instant` and `Duration` would divide twice more on the way.
                let nanos = anchor.clock.delta_as_nanos(anchor.started, anchor.clock.raw());
                anchor.started_at + nanos / 1_000
            }
            Self::Manual(now) => now.load(Ordering::Relaxed),
        }
    }

    /// By how many microseconds the wall clock was ahead of this one when [`Clock::look_at_the_wall`] looked last:
    /// what calendar windows go by. A counter drifts by seconds a week, and an operator may set the time.
    pub fn behind_the_wall(&self) -> i64 {
        match self {
            Self::System(anchor) => anchor.behind.load(Ordering::Relaxed),
            Self::Manual(_) => 0,
        }
    }

    /// Compares this clock with the wall clock. Call it every few seconds.
    pub fn look_at_the_wall(&self) {
        if let Self::System(anchor) = self {
            anchor.behind.store(wall() as i64 - self.now() as i64, Ordering::Relaxed);
        }
    }

    /// Moves a manual clock forward by `by`. The system clock moves by itself: there it does nothing.
    pub fn advance(&self, by: Micros) {
        if let Self::Manual(now) = self {
            now.fetch_add(by, Ordering::Relaxed);
        }
    }
}

fn wall() -> Micros {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as Micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_clock_agrees_with_the_wall_clock_and_never_runs_backwards() {
        let clock = Clock::system();
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as Micros;
        assert!(clock.now().abs_diff(wall) < SECOND);
        let mut last = 0;
        for _ in 0..10_000 {
            let now = clock.now();
            assert!(now >= last);
            last = now;
        }
    }
}
