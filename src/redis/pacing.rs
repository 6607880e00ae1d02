//! Paces connections that replace others: those that end soon after they were made are replaced less and less often, and the
//! instances of a fleet that lose their connections together do not come back together.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A connection that ends younger than this is short-lived.
const SHORT: Duration = Duration::from_secs(10);
/// So many short-lived connections in a row are replaced at once: what is between here and Redis was restarted, say.
const AT_ONCE: u32 = 3;
/// Of those that were closed while nothing went over them, which providers do, so many are.
const IDLE_AT_ONCE: u32 = 10;
/// Nothing went over a connection that was not used for so long.
const IDLE: Duration = Duration::from_millis(500);
/// Then each waits, twice as long as the one before,
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// up to this: whoever has to wait longer is without Redis, and that is an outage, unless nobody was asking.
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// Instances of a fleet spread their connections over so long for each of them, which are 50 a second,
const SPREAD_A_MEMBER: Duration = Duration::from_millis(20);
/// but no longer than this: meanwhile memory decides.
const LONGEST_SPREAD: Duration = Duration::from_secs(1);

/// Short-lived connections, one after another.
#[derive(Debug, Default)]
pub(super) struct ShortLived {
    used: AtomicU32,
    idle: AtomicU32,
}

impl ShortLived {
    /// How long to wait before a connection is replaced that ended at this age, `quiet` after its last call; `chance` is a random
    /// number from 0 to 1, and half of the wait is chance. `None`: it is an outage.
    pub(super) fn wait(&self, age: Duration, quiet: Duration, chance: f64) -> Option<Duration> {
        if age >= SHORT {
            self.used.store(0, Ordering::Relaxed);
            self.idle.store(0, Ordering::Relaxed);
            return Some(Duration::ZERO);
        }
        let is_idle = quiet >= IDLE;
        let (counted, at_once) = if is_idle { (&self.idle, IDLE_AT_ONCE) } else { (&self.used, AT_ONCE) };
        let in_a_row = counted.fetch_add(1, Ordering::Relaxed);
        let Some(waits) = in_a_row.checked_sub(at_once) else { return Some(Duration::ZERO) };
        let full = FIRST_WAIT * 2u32.saturating_pow(waits.min(16));
        let full = if is_idle { full.min(LONGEST_WAIT) } else { full };
        (full <= LONGEST_WAIT).then(|| full / 2 + (full / 2).mul_f64(chance))
    }

    /// How many there were that ended in use, the last included.
    pub(super) fn in_a_row(&self) -> u32 {
        self.used.load(Ordering::Relaxed)
    }
}

/// How many instances there are, this one included.
#[derive(Debug)]
pub(super) struct Members(AtomicU32);

impl Default for Members {
    fn default() -> Self {
        Self(AtomicU32::new(1))
    }
}

impl Members {
    pub(super) fn are(&self, members: u32) {
        self.0.store(members.max(1), Ordering::Relaxed);
    }

    /// How long this one waits before it does what all of them do at this moment; `chance` as above. One that is alone does
    /// not wait.
    pub(super) fn spread(&self, chance: f64) -> Duration {
        match self.0.load(Ordering::Relaxed) {
            1 => Duration::ZERO,
            members => SPREAD_A_MEMBER.saturating_mul(members).min(LONGEST_SPREAD).mul_f64(chance),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YOUNG: Duration = Duration::from_millis(700);

    #[test]
    fn short_lived_connections_wait_longer_each_time() {
        let short = ShortLived::default();
        let used = Duration::ZERO;
        let waits = |chance| (0..7).map(|_| short.wait(YOUNG, used, chance)).collect::<Vec<_>>();
        let ms = |ms| Some(Duration::from_millis(ms));
        assert_eq!(waits(0.0), [ms(0), ms(0), ms(0), ms(250), ms(500), ms(1_000), None]);
        assert_eq!((short.in_a_row(), short.wait(YOUNG, used, 1.0)), (7, None));
        assert_eq!(short.wait(SHORT, used, 0.0), ms(0), "one that lasted ends the row");
        assert_eq!(waits(1.0), [ms(0), ms(0), ms(0), ms(500), ms(1_000), ms(2_000), None]);
    }

    #[test]
    fn idle_connections_that_are_closed_are_no_outage() {
        let short = ShortLived::default();
        let waits: Vec<_> = (0..20).filter_map(|_| short.wait(YOUNG, IDLE, 1.0)).collect();
        assert!(waits[..10].iter().all(Duration::is_zero), "{waits:?}");
        assert_eq!(waits[10..13], [FIRST_WAIT, FIRST_WAIT * 2, LONGEST_WAIT]);
        assert_eq!((waits.len(), waits[19]), (20, LONGEST_WAIT));
        assert_eq!(short.in_a_row(), 0);
    }

    #[test]
    fn members_spread_over_20_ms_each_up_to_a_second() {
        let members = Members::default();
        assert_eq!(members.spread(1.0), Duration::ZERO, "one is alone");
        for (count, most) in [(0, 0), (2, 40), (12, 240), (50, 1_000), (5_000, 1_000)] {
            members.are(count);
            assert_eq!(members.spread(1.0), Duration::from_millis(most), "{count}");
            assert_eq!(members.spread(0.5), Duration::from_millis(most / 2), "{count}");
        }
    }
}
