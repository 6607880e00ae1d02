//! The difference between the server's clock and ours, kept as one number that hardly ever moves.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use super::link::Link;
use crate::limiter::clock::{Micros, SECOND};
use crate::limiter::event::Event;

/// Less is drift, or a server's clock that NTP slews.
const CLOCK_SET: u64 = SECOND;

/// Notes are kept on our clock, the server judges by its own. Each answer proves that the true difference lies
/// between `server − received` and `server − sent`; the kept one moves only when it lies outside, and then to the
/// nearer end (as in Marzullo's algorithm). So a note that goes out again comes back to the server at exactly the
/// instant that it told, however the network's delay varies.
#[derive(Debug, Default)]
pub(super) struct ClockOffset {
    offset: AtomicI64,
    /// 0 until the first answer.
    answers: AtomicU64,
}

impl ClockOffset {
    /// The server's time at `now`, or 0 when nothing is known.
    pub(super) fn server_time(&self, now: Micros) -> Micros {
        match self.answers.load(Ordering::Acquire) {
            0 => 0,
            _ => now.saturating_add_signed(self.offset.load(Ordering::Relaxed)),
        }
    }

    /// By how many microseconds the server's clock is ahead of ours; `None` when nothing is known.
    pub(super) fn ahead(&self) -> Option<i64> {
        match self.answers.load(Ordering::Acquire) {
            0 => None,
            _ => Some(self.offset.load(Ordering::Relaxed)),
        }
    }

    /// Learns from an answer. Returns when the server judged, on our clock, and by how much its clock has moved against
    /// ours since the last answer: 0 at the first.
    pub(super) fn learn(&self, server: Micros, sent: Micros, received: Micros) -> (Micros, i64) {
        let least = server as i64 - received as i64;
        let most = (server as i64 - sent as i64).max(least);
        let (offset, moved) = match self.answers.load(Ordering::Acquire) {
            0 => (least, 0),
            _ => {
                let before = self.offset.load(Ordering::Relaxed);
                let offset = before.clamp(least, most);
                (offset, offset - before)
            }
        };
        self.offset.store(offset, Ordering::Relaxed);
        self.answers.store(1, Ordering::Release);
        (server.saturating_add_signed(-offset), moved)
    }
}

impl Link {
    /// Learns the server's time from an answer, and reports a clock that was set. Returns when it judged, on our clock.
    pub(super) fn learn_time(&self, server: Micros, sent: Micros, received: Micros) -> Micros {
        let (judged_at, moved) = self.offset.learn(server, sent, received);
        if moved.unsigned_abs() >= CLOCK_SET {
            self.observer.observe(&Event::StoreClockSet { by: moved });
        }
        judged_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offset_stays_put_while_answers_agree_with_it_however_slow_they_are() {
        let clock = ClockOffset::default();
        assert_eq!(clock.server_time(5), 0);
        // The server is 1000 ahead; the way there and back takes 10 and 10, then 500 and 3.
        assert_eq!(clock.learn(1_110, 100, 120), (120, 0));
        let offset = clock.offset.load(Ordering::Relaxed);
        clock.learn(2_500 + 1_000, 2_000, 2_503);
        assert!(clock.offset.load(Ordering::Relaxed).abs_diff(offset) <= 7);
    }

    #[test]
    fn another_server_with_another_clock_is_believed_at_its_first_answer() {
        let clock = ClockOffset::default();
        clock.learn(1_000_000, 10, 20);
        let (judged, moved) = clock.learn(50_000_000, 1_000, 1_400);
        assert!((1_000..=1_400).contains(&judged));
        assert!(moved.abs_diff(49_000_000) <= 1_400, "{moved}");
        assert!(clock.server_time(1_400).abs_diff(50_000_000) <= 400);
    }
}
