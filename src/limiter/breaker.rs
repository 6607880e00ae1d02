//! Whether Redis is away: a count of consecutive failures, per endpoint.
//!
//! Failure rates, the warm-up and the half-open state join here; the background probe that closes it is the
//! connection's own (`redis/link.rs`).

use std::sync::atomic::{AtomicU32, Ordering};

use super::store::FaultKind;

/// Consecutive failures that open the breaker.
const FAILURES_TO_OPEN: u32 = 5;

/// Open: nobody is asked. Closed: Redis decides.
#[derive(Debug, Default)]
pub struct Breaker {
    failures: AtomicU32,
}

impl Breaker {
    /// A call was answered.
    #[inline]
    pub fn succeeded(&self) {
        // Read first: the common case writes nothing that other threads share.
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// A call failed. True when this failure opens the breaker: a lost connection and what needs a person do
    /// at once, anything else the fifth time in a row.
    pub fn failed(&self, kind: FaultKind) -> bool {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        failures >= FAILURES_TO_OPEN
            || kind.needs_a_person()
            || matches!(kind, FaultKind::Lost | FaultKind::Refused | FaultKind::ReadOnly)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_timeouts_in_a_row_open_and_an_answer_between_starts_the_count_again() {
        let breaker = Breaker::default();
        for _ in 0..4 {
            assert!(!breaker.failed(FaultKind::Timeout));
        }
        breaker.succeeded();
        for _ in 0..4 {
            assert!(!breaker.failed(FaultKind::Timeout));
        }
        assert!(breaker.failed(FaultKind::Timeout));
    }

    #[test]
    fn what_needs_a_person_opens_at_once() {
        for kind in
            [FaultKind::Auth, FaultKind::Permission, FaultKind::Tls, FaultKind::Quota, FaultKind::Lost]
        {
            assert!(Breaker::default().failed(kind), "{kind}");
        }
    }
}
