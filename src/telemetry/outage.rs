//! When Redis was away, and what was already said about it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Keeps the log to one line an interval, however many outages there are and however many requests fall back.
pub(super) struct Outages {
    interval: Duration,
    requests: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    since: Option<(Instant, u64)>,
    said: Option<Instant>,
    unsaid: u64,
}

impl Outages {
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, requests: AtomicU64::new(0), state: Mutex::default() }
    }

    /// A request was decided from memory although Redis was wanted.
    pub(super) fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Redis is away. Returns how often that was not said since it last was, or `None` when it is not to be said
    /// now.
    pub(super) fn began(&self) -> Option<u64> {
        let now = Instant::now();
        let mut state = self.state.lock();
        state.since.get_or_insert_with(|| (now, self.requests.load(Ordering::Relaxed)));
        if state.said.is_some_and(|said| now.duration_since(said) < self.interval) {
            state.unsaid += 1;
            return None;
        }
        state.said = Some(now);
        Some(std::mem::take(&mut state.unsaid))
    }

    /// Redis is back: how long it was away, and how many requests fell back meanwhile.
    pub(super) fn ended(&self) -> Option<(Duration, u64)> {
        let (since, requests) = self.state.lock().since.take()?;
        Some((since.elapsed(), self.requests.load(Ordering::Relaxed) - requests))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_outages_are_one_line_an_interval_and_the_next_line_counts_the_silent_ones() {
        let outages = Outages::new(Duration::from_millis(50));
        assert_eq!(outages.began(), Some(0));
        assert_eq!(outages.began(), None);
        assert!(outages.ended().is_some());
        assert_eq!(outages.began(), None);
        std::thread::sleep(Duration::from_millis(60));
        assert_eq!(outages.began(), Some(2));
    }

    #[test]
    fn the_end_of_an_outage_counts_only_its_own_requests() {
        let outages = Outages::new(Duration::ZERO);
        outages.count_request();
        outages.began();
        outages.count_request();
        outages.count_request();
        assert_eq!(outages.ended().map(|(_, requests)| requests), Some(2));
        assert_eq!(outages.ended(), None);
    }
}
