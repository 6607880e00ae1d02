//! Which share of the requests the limits must deny by the plan alone: its own keys and times through the arithmetic of
//! the limiter. What is denied beyond that is the server's, and what the plan denies itself is no fault of the server.

use super::plan::Plan;
use crate::limiter::gcra::{Quota, admits};

/// What is foretold of one phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Foretold {
    /// Requests.
    pub sent: u64,
    /// Those that a limit denies.
    pub denied: u64,
}

impl Foretold {
    /// The share that is denied, 0 to 1.
    pub fn share(self) -> f64 {
        if self.sent == 0 { 0.0 } else { self.denied as f64 / self.sent as f64 }
    }
}

/// For each phase of the plan, with every client under each of these quotas, all of which must admit, from full buckets.
pub fn foretell(plan: &Plan, quotas: &[Quota]) -> Vec<Foretold> {
    let mut phases = vec![Foretold::default(); plan.phases.len()];
    // When each bucket of each client is full again, in microseconds of the test.
    let mut full_at = vec![0_u64; plan.keys.max(1) as usize * quotas.len()];
    for arrival in plan.arrivals() {
        let now = arrival.at.as_micros() as u64;
        let buckets = &mut full_at[arrival.key as usize * quotas.len()..][..quotas.len()];
        let phase = &mut phases[arrival.phase];
        phase.sent += 1;
        let has_room =
            |(at, quota): (&u64, &Quota)| admits(at.saturating_sub(now), quota.charge(1), quota.tolerance());
        if !buckets.iter().zip(quotas).all(has_room) {
            phase.denied += 1;
            continue;
        }
        for (at, quota) in buckets.iter_mut().zip(quotas) {
            *at = (*at).max(now) + quota.charge(1);
        }
    }
    phases
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::time::Duration;

    use super::super::plan::{Phase, Spacing};
    use super::*;
    use crate::limiter::clock::SECOND;

    fn denied(keys: u32, rate: f64, seconds: u64, burst: u32) -> f64 {
        let phase = Phase { name: "burst", rate, lasts: Duration::from_secs(seconds), judged: true };
        let plan = Plan { phases: vec![phase], spacing: Spacing::Even, keys, skew: 0.0, seed: 1 };
        let of = |number| NonZeroU32::new(number).unwrap();
        foretell(&plan, &[Quota::new(of(60), 60 * SECOND, of(burst)).unwrap()])[0].share()
    }

    #[test]
    fn one_client_over_its_limit_is_denied_what_exceeds_it() {
        // 1 200 requests in a minute against 60 a minute and 60 at once: 120 pass.
        assert!((denied(1, 20.0, 60, 60) - 0.9).abs() < 0.002);
    }

    #[test]
    fn clients_within_their_limit_are_never_denied() {
        assert_eq!(denied(1, 1.0, 600, 1), 0.0);
        assert_eq!(denied(200, 20.0, 60, 60), 0.0);
    }

    #[test]
    fn without_a_quota_nothing_is_denied() {
        let phase = Phase { name: "burst", rate: 10.0, lasts: Duration::from_secs(1), judged: true };
        let plan = Plan { phases: vec![phase], spacing: Spacing::Even, keys: 1, skew: 0.0, seed: 1 };
        assert_eq!(foretell(&plan, &[]), [Foretold { sent: 10, denied: 0 }]);
    }
}
