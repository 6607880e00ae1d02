//! How many commands a day this instance has sent, against what the provider's plan allows it.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::limiter::clock::{Micros, SECOND};

/// Quotas are by the day of UTC, which is that of the epoch.
const DAY: Micros = 24 * 3_600 * SECOND;
/// A projection from less than this is a guess, unless the end is near anyway.
const LEAST_TO_PROJECT: Micros = 600 * SECOND;
/// Percent of the allowance at which somebody should know.
const NEARLY: u64 = 80;

/// What is spent of a day's commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spending {
    /// Commands today, as the provider counts them.
    pub today: u64,
    /// What the plan allows a day; `None`: nobody says.
    pub per_day: Option<u64>,
    /// When the allowance is used up at the pace of today, in microseconds since the epoch; `None`: not today, or it is
    /// too early to say.
    pub exhausted_at: Option<Micros>,
}

/// Counts. Two adds and two loads a call; what two threads count at midnight may fall into either day.
#[derive(Debug, Default)]
pub(super) struct Spent {
    /// 0: nobody says.
    per_day: AtomicU64,
    per_call: AtomicU64,
    day: AtomicU64,
    /// Since when `today` is counted.
    since: AtomicU64,
    today: AtomicU64,
}

impl Spent {
    /// What the plan allows, and what the provider counts for one call.
    pub(super) fn plan(&self, per_day: u64, per_call: u64, now: Micros) {
        self.per_day.store(per_day, Ordering::Relaxed);
        self.per_call.store(per_call, Ordering::Relaxed);
        self.day.store(now / DAY, Ordering::Relaxed);
        self.since.store(now, Ordering::Relaxed);
    }

    /// A script call was sent. `Some` for the one call a day that passes 80 % of the allowance.
    pub(super) fn call(&self, now: Micros) -> Option<Spending> {
        self.count(self.per_call.load(Ordering::Relaxed).max(1), now)
    }

    /// So many plain commands were sent.
    pub(super) fn commands(&self, commands: u64, now: Micros) -> Option<Spending> {
        self.count(commands, now)
    }

    /// Whether the provider counts what scripts run beside the scripts.
    pub(super) fn counts_inside(&self) -> bool {
        self.per_call.load(Ordering::Relaxed) > 1
    }

    fn count(&self, commands: u64, now: Micros) -> Option<Spending> {
        let day = now / DAY;
        let known = self.day.load(Ordering::Relaxed);
        if known != day && self.day.compare_exchange(known, day, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            self.since.store(if known == 0 { now } else { day * DAY }, Ordering::Relaxed);
            self.today.store(0, Ordering::Relaxed);
        }
        let before = self.today.fetch_add(commands, Ordering::Relaxed);
        let allowed = self.per_day.load(Ordering::Relaxed);
        if allowed == 0 {
            return None;
        }
        let nearly = allowed.saturating_mul(NEARLY).div_ceil(100);
        (before < nearly && before + commands >= nearly).then(|| self.spending(now))
    }

    /// How things stand.
    pub(super) fn spending(&self, now: Micros) -> Spending {
        let fresh = self.day.load(Ordering::Relaxed) == now / DAY;
        let today = if fresh { self.today.load(Ordering::Relaxed) } else { 0 };
        let per_day = Some(self.per_day.load(Ordering::Relaxed)).filter(|&allowed| allowed > 0);
        let counted = now.saturating_sub(self.since.load(Ordering::Relaxed)).max(1);
        let exhausted_at = per_day.and_then(|allowed| project(today, allowed, counted, now));
        Spending { today, per_day, exhausted_at }
    }
}

fn project(today: u64, allowed: u64, counted: Micros, now: Micros) -> Option<Micros> {
    if today >= allowed {
        return Some(now);
    }
    let nearly = today.saturating_mul(100) >= allowed.saturating_mul(NEARLY);
    if today == 0 || (counted < LEAST_TO_PROJECT && !nearly) {
        return None;
    }
    let left = u128::from(allowed - today) * u128::from(counted) / u128::from(today);
    let at = u128::from(now) + left;
    let midnight = (now / DAY + 1) * DAY;
    (at < u128::from(midnight)).then_some(at as Micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Micros = 3_600 * SECOND;
    const MIDNIGHT: Micros = 20_000 * DAY;

    fn spent(per_day: u64, per_call: u64) -> Spent {
        let spent = Spent::default();
        spent.plan(per_day, per_call, MIDNIGHT);
        spent
    }

    #[test]
    fn the_hour_in_which_the_allowance_ends_is_projected_from_the_pace_of_today() {
        let spent = spent(10_000, 4);
        // A decision a second, four commands each: over after 2500 s. It is not said before ten minutes are counted.
        for second in 0..500 {
            assert_eq!(spent.call(MIDNIGHT + second * SECOND), None);
        }
        assert_eq!(spent.spending(MIDNIGHT + 500 * SECOND).exhausted_at, None);
        for second in 500..1_000 {
            spent.call(MIDNIGHT + second * SECOND);
        }
        let now = spent.spending(MIDNIGHT + 1_000 * SECOND);
        assert_eq!((now.today, now.per_day), (4_000, Some(10_000)));
        assert_eq!(now.exhausted_at, Some(MIDNIGHT + 2_500 * SECOND));
    }

    #[test]
    fn a_pace_that_lasts_until_midnight_is_no_end() {
        let spent = spent(10_000, 1);
        for hour in 0..12 {
            spent.commands(400, MIDNIGHT + hour * HOUR);
        }
        assert_eq!(spent.spending(MIDNIGHT + 12 * HOUR).exhausted_at, None);
    }

    #[test]
    fn eighty_percent_are_said_once_a_day() {
        let spent = spent(1_000, 4);
        for day in 0..3 {
            let said: Vec<Spending> =
                (0..400).filter_map(|second| spent.call(MIDNIGHT + day * DAY + second * SECOND)).collect();
            assert_eq!(said.len(), 1, "{said:?}");
            assert_eq!(said[0].today, 800);
            assert!(said[0].exhausted_at.is_some());
        }
        let over = spent.spending(MIDNIGHT + 2 * DAY + HOUR);
        assert_eq!((over.today, over.exhausted_at), (1_600, Some(MIDNIGHT + 2 * DAY + HOUR)));
        assert_eq!(spent.spending(MIDNIGHT + 3 * DAY).today, 0, "the next day has none yet");
    }

    #[test]
    fn without_a_plan_it_counts_and_says_nothing() {
        let spent = Spent::default();
        for second in 0..2_000 {
            assert_eq!(spent.call(MIDNIGHT + second * SECOND), None);
        }
        let now = spent.spending(MIDNIGHT + 2_000 * SECOND);
        assert_eq!(now, Spending { today: 2_000, per_day: None, exhausted_at: None });
    }
}
