//! When Redis was away, and what was already said about it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Keeps the log to one outage an interval, however many there are and however many requests fall back. What is said of
/// an outage at its beginning is said to its end: an outage that was passed over is passed over whole, and counted.
pub(super) struct Outages {
    interval: Duration,
    requests: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    present: Option<Outage>,
    said: Option<Instant>,
    /// Outages since then that came and went without a word.
    unsaid: u64,
    /// How many requests had been counted when that was said.
    requests_said: u64,
}

struct Outage {
    began: Instant,
    requests_before: u64,
    said: bool,
    warmed: bool,
}

/// What was not said since the last line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unsaid {
    /// Outages that came and went.
    pub(super) outages: u64,
    /// Requests that were decided from memory.
    pub(super) requests: u64,
}

/// What is to be said of Redis being in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Back {
    /// It was not away.
    FromTheStart,
    /// Nothing: neither was it said that it went.
    Unsaid,
    /// How long it was away, and how many requests were decided from memory meanwhile.
    After(Duration, u64),
}

impl Outages {
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, requests: AtomicU64::new(0), state: Mutex::default() }
    }

    /// A request was decided from memory although Redis was wanted.
    pub(super) fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Redis is away, for the first time or still. `None`: nothing is to be said now.
    pub(super) fn away(&self, now: Instant) -> Option<Unsaid> {
        let requests = self.requests.load(Ordering::Relaxed);
        let mut state = self.state.lock();
        let soon = state.said.is_some_and(|said| now.duration_since(said) < self.interval);
        let outage = state.present.get_or_insert(Outage {
            began: now,
            requests_before: requests,
            said: false,
            warmed: false,
        });
        if soon {
            return None;
        }
        outage.said = true;
        state.said = Some(now);
        let unsaid = Unsaid {
            outages: std::mem::take(&mut state.unsaid),
            requests: requests.saturating_sub(state.requests_said),
        };
        state.requests_said = requests;
        Some(unsaid)
    }

    /// Redis answers again and warms up. Whether that is to be said: once an outage.
    pub(super) fn warming(&self) -> bool {
        let mut state = self.state.lock();
        state
            .present
            .as_mut()
            .is_some_and(|outage| outage.said && !std::mem::replace(&mut outage.warmed, true))
    }

    /// Redis is in use by all.
    pub(super) fn back(&self, now: Instant) -> Back {
        let requests = self.requests.load(Ordering::Relaxed);
        let mut state = self.state.lock();
        let Some(outage) = state.present.take() else { return Back::FromTheStart };
        if !outage.said {
            state.unsaid += 1;
            return Back::Unsaid;
        }
        state.requests_said = requests;
        Back::After(now.duration_since(outage.began), requests.saturating_sub(outage.requests_before))
    }
}

/// Keeps one kind of line to one an interval.
pub(super) struct Sparing {
    interval: Duration,
    state: Mutex<(Option<Instant>, u64)>,
}

impl Sparing {
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, state: Mutex::default() }
    }

    /// How often it was not said since it last was; `None` when it is not to be said now.
    pub(super) fn say(&self, now: Instant) -> Option<u64> {
        let (said, unsaid) = &mut *self.state.lock();
        if said.is_some_and(|said| now.duration_since(said) < self.interval) {
            *unsaid += 1;
            return None;
        }
        *said = Some(now);
        Some(std::mem::take(unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIVE_MINUTES: Duration = Duration::from_secs(300);

    fn counting(outages: &Outages, requests: u64) {
        (0..requests).for_each(|_| outages.count_request());
    }

    #[test]
    fn a_day_of_flapping_is_one_line_an_interval_and_each_counts_what_was_not_said() {
        let outages = Outages::new(FIVE_MINUTES);
        let start = Instant::now();
        let (mut away, mut back) = (Vec::new(), 0);
        // Ten seconds up and ten down, a request a second.
        for second in 0..86_400u64 {
            let now = start + Duration::from_secs(second);
            if second % 20 < 10 {
                outages.count_request();
                away.extend(outages.away(now));
            } else if second % 20 == 10 {
                back += usize::from(matches!(outages.back(now), Back::After(..)));
            }
        }
        assert_eq!(away.len(), 288, "one in five minutes");
        assert_eq!(back, 288, "and each of them is closed");
        let total = away.iter().map(|unsaid| unsaid.outages + 1).sum::<u64>();
        assert!(total.abs_diff(4_320) <= 15, "{total} outages were told or counted");
        assert!(away.iter().skip(1).all(|unsaid| unsaid.outages == 14 && unsaid.requests <= 150), "{away:?}");
    }

    #[test]
    fn a_long_outage_is_said_again_every_interval_with_the_requests_since() {
        let outages = Outages::new(FIVE_MINUTES);
        let start = Instant::now();
        let said: Vec<Unsaid> = (0..3_600u64)
            .filter_map(|second| {
                outages.count_request();
                outages.away(start + Duration::from_secs(second))
            })
            .collect();
        assert_eq!(said.len(), 12);
        assert!(said[1..].iter().all(|unsaid| *unsaid == Unsaid { outages: 0, requests: 300 }), "{said:?}");
    }

    #[test]
    fn the_end_of_an_outage_counts_only_its_own_requests_and_time() {
        let outages = Outages::new(Duration::ZERO);
        let start = Instant::now();
        assert_eq!(outages.back(start), Back::FromTheStart);
        counting(&outages, 1);
        assert_eq!(outages.away(start), Some(Unsaid { outages: 0, requests: 1 }));
        counting(&outages, 2);
        assert!(outages.away(start + Duration::from_secs(1)).is_some());
        let lasted = Duration::from_secs(7);
        assert_eq!(outages.back(start + lasted), Back::After(lasted, 2));
        assert_eq!(outages.back(start + lasted), Back::FromTheStart);
    }

    #[test]
    fn the_warm_up_is_said_once_an_outage_and_not_of_one_that_was_passed_over() {
        let outages = Outages::new(FIVE_MINUTES);
        let start = Instant::now();
        assert!(!outages.warming());
        assert!(outages.away(start).is_some());
        assert!(outages.warming());
        assert!(!outages.warming(), "it fell back and tries again");
        assert!(matches!(outages.back(start), Back::After(..)));
        assert_eq!(outages.away(start), None);
        assert!(!outages.warming());
        assert_eq!(outages.back(start), Back::Unsaid);
    }

    #[test]
    fn a_line_is_spared_within_its_interval_and_counted() {
        let sparing = Sparing::new(Duration::from_secs(1));
        let start = Instant::now();
        assert_eq!(sparing.say(start), Some(0));
        assert_eq!(sparing.say(start), None);
        assert_eq!(sparing.say(start), None);
        assert_eq!(sparing.say(start + Duration::from_secs(1)), Some(2));
    }
}
