//! Tells the time to everything that decides: microseconds since the Unix epoch, never backwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

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

/// The clock of [`Clock::System`]: the processor's counter, held against a clock of the kernel.
///
/// A counter can stand still while the machine is suspended and can begin at 0 after hibernation. The kernel's clock of
/// the time since boot does neither, but costs several times as much to read.
#[derive(Clone, Debug)]
pub struct SystemClock {
    counter: quanta::Clock,
    /// What the counter showed at the start, in its own unit.
    started: u64,
    started_at: Micros,
    anchor: Arc<Anchor>,
}

#[derive(Debug)]
struct Anchor {
    /// What is added to the counter, in its own unit and modulo 2^64.
    shift: AtomicU64,
    /// What counter and shift showed at the last look: less is a counter that went back.
    least: AtomicU64,
    /// By how much the wall clock is ahead of this one.
    behind: AtomicI64,
    /// What the kernel's clock showed at the last look.
    looked: Mutex<Duration>,
    kernel: Kernel,
}

/// The time since boot, suspended or not.
#[derive(Debug)]
enum Kernel {
    SinceBoot,
    #[cfg(test)]
    Manual(AtomicU64),
}

/// A counter that lags behind the kernel's clock by so much between two looks stood still. A look lasts microseconds and a
/// counter drifts by less than a second in hours, so that less is neither.
const STOOD_STILL: Duration = Duration::from_secs(1);

impl Kernel {
    fn now(&self) -> Duration {
        match self {
            Self::SinceBoot => since_boot(),
            #[cfg(test)]
            Self::Manual(micros) => Duration::from_micros(micros.load(Ordering::Relaxed)),
        }
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn since_boot() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Elsewhere the time since the first look, without that of a suspension on most systems.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn since_boot() -> Duration {
    static FIRST: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    FIRST.get_or_init(std::time::Instant::now).elapsed()
}

impl SystemClock {
    fn new(counter: quanta::Clock, kernel: Kernel, started_at: Micros) -> Self {
        let started = counter.raw();
        let looked = Mutex::new(kernel.now());
        let anchor = Anchor {
            shift: AtomicU64::new(0),
            least: AtomicU64::new(started),
            behind: AtomicI64::new(0),
            looked,
            kernel,
        };
        Self { counter, started, started_at, anchor: Arc::new(anchor) }
    }

    /// The counter, continued where it stood still or went back.
    #[inline]
    fn count(&self) -> u64 {
        self.counter.raw().wrapping_add(self.anchor.shift.load(Ordering::Relaxed))
    }

    #[inline]
    fn now(&self) -> Micros {
        let mut count = self.count();
        if count < self.anchor.least.load(Ordering::Relaxed) {
            count = self.look();
        }
        // From the counter at once: `Instant` and `Duration` would divide twice more on the way.
        self.started_at + self.counter.delta_as_nanos(self.started, count) / 1_000
    }

    /// Compares the counter with the kernel's clock, and continues it by that where it lags behind. Returns the counter.
    #[cold]
    fn look(&self) -> u64 {
        let anchor = &*self.anchor;
        let mut looked = anchor.looked.lock();
        let (kernel, count) = (anchor.kernel.now(), self.count());
        let before = anchor.least.load(Ordering::Relaxed);
        let passed = kernel.saturating_sub(*looked);
        let counted = Duration::from_nanos(self.counter.delta_as_nanos(before, count));
        let mut shown = count.max(before);
        if count < before || passed > counted + STOOD_STILL {
            shown = before.saturating_add(self.ticks(passed));
            anchor.shift.fetch_add(shown.wrapping_sub(count), Ordering::Relaxed);
        }
        *looked = kernel;
        anchor.least.store(shown, Ordering::Relaxed);
        shown
    }

    /// So much time in the counter's unit.
    fn ticks(&self, time: Duration) -> u64 {
        const TICKS: u64 = 1 << 40;
        let nanos = u128::from(self.counter.delta_as_nanos(0, TICKS)).max(1);
        (time.as_nanos() * u128::from(TICKS) / nanos) as u64
    }
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self::System(SystemClock::new(quanta::Clock::new(), Kernel::SinceBoot, wall()))
    }

    /// A clock that stands at `now` until [`Clock::advance`] moves it.
    pub fn manual(now: Micros) -> Self {
        Self::Manual(Arc::new(AtomicU64::new(now)))
    }

    /// The present instant.
    #[inline]
    pub fn now(&self) -> Micros {
        match self {
            Self::System(clock) => clock.now(),
            Self::Manual(now) => now.load(Ordering::Relaxed),
        }
    }

    /// By how many microseconds the wall clock was ahead of this one when [`Clock::look_at_the_wall`] looked last:
    /// what calendar windows go by. A counter drifts by seconds a week, and an operator may set the time.
    pub fn behind_the_wall(&self) -> i64 {
        match self {
            Self::System(clock) => clock.anchor.behind.load(Ordering::Relaxed),
            Self::Manual(_) => 0,
        }
    }

    /// Compares this clock with the kernel's, by which it goes on after a suspension, and with the wall clock. Call it
    /// every few seconds.
    pub fn look_at_the_wall(&self) {
        if let Self::System(clock) = self {
            clock.look();
            clock.anchor.behind.store(wall() as i64 - clock.now() as i64, Ordering::Relaxed);
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

    const START: Micros = 1_800_000_000 * SECOND;

    /// A clock over a counter of nanoseconds and a kernel's clock, and both of them to drive.
    fn driven() -> (SystemClock, Arc<quanta::Mock>) {
        let (counter, drive) = quanta::Clock::mock();
        drive.increment(Duration::from_secs(500));
        (SystemClock::new(counter, Kernel::Manual(AtomicU64::new(77)), START), drive)
    }

    fn pass(clock: &SystemClock, seconds: u64) {
        let Kernel::Manual(micros) = &clock.anchor.kernel else {
            panic!("a kernel's clock cannot be set in a test")
        };
        micros.fetch_add(seconds * SECOND, Ordering::Relaxed);
    }

    #[test]
    fn counter_that_stood_still_is_continued() {
        let (clock, drive) = driven();
        drive.increment(Duration::from_secs(10));
        pass(&clock, 10);
        assert_eq!(clock.now(), START + 10 * SECOND);
        clock.look();
        // Suspended for an hour, and the counter with it.
        pass(&clock, 3_600);
        let suspended = clock.clone();
        Clock::System(suspended).look_at_the_wall();
        assert_eq!(clock.now(), START + 3_610 * SECOND);
        drive.increment(Duration::from_secs(5));
        pass(&clock, 5);
        clock.look();
        assert_eq!(clock.now(), START + 3_615 * SECOND);
    }

    #[test]
    fn counter_that_began_again_is_continued_at_once() {
        let (clock, drive) = driven();
        drive.increment(Duration::from_secs(10));
        pass(&clock, 10);
        clock.look();
        // Hibernated for an hour: the counter begins at 0 and is ahead of nothing that it showed before.
        drive.decrement(drive.value());
        pass(&clock, 3_600);
        assert_eq!(clock.now(), START + 3_610 * SECOND, "without a look of the background");
        drive.increment(Duration::from_secs(5));
        assert_eq!(clock.now(), START + 3_615 * SECOND);
    }

    #[test]
    fn counter_that_drifts_or_jumps_ahead_is_left_alone() {
        let (clock, drive) = driven();
        let mut last = clock.now();
        for (counted, passed) in [(100, 100), (9, 10), (400, 1), (0, 1), (10, 10)] {
            drive.increment(Duration::from_secs(counted));
            pass(&clock, passed);
            clock.look();
            assert_eq!(clock.now(), last + counted * SECOND);
            last = clock.now();
        }
    }

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
