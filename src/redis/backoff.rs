//! How long to wait before Redis is tried again: equal jitter, longer each time, and longest where a person is needed.

use std::time::Duration;

use crate::limiter::store::FaultKind;

/// A wait that grows from here,
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// or from here, up to there, when a person has to mend something: asking hot would only fill the server's log.
const FIRST_WAIT_FOR_A_PERSON: Duration = Duration::from_secs(30);
const LONGEST_WAIT_FOR_A_PERSON: Duration = Duration::from_secs(300);
/// A node whose cluster is down is soon another one's replica, or sound again.
const FIRST_WAIT_FOR_A_CLUSTER: Duration = Duration::from_millis(250);
const LONGEST_WAIT_FOR_A_CLUSTER: Duration = Duration::from_secs(1);
/// A provider's quota is not asked for more often than this: each question may be billed.
const WAIT_FOR_QUOTA: Duration = Duration::from_secs(300);
/// So much health makes the next outage a new one.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);

/// The waits of one outage, or of several with little health between them.
#[derive(Debug)]
pub(super) struct Backoff {
    longest: Duration,
    attempt: u32,
    for_a_person: bool,
    of_a_node: bool,
}

impl Backoff {
    /// Waits of at most `longest`, but for what needs a person.
    pub(super) fn new(longest: Duration) -> Self {
        Self { longest, attempt: 0, for_a_person: false, of_a_node: false }
    }

    /// For a link to a node of a cluster, whose word that the cluster is down is soon out of date.
    pub(super) fn of_a_node(self) -> Self {
        Self { of_a_node: true, ..self }
    }

    /// Redis was in use for so long.
    pub(super) fn healthy(&mut self, lasted: Duration) {
        if lasted >= HEALTHY_AFTER {
            self.attempt = 0;
        }
    }

    /// The next outage is a new one: what led to the last is over.
    pub(super) fn anew(&mut self) {
        self.attempt = 0;
    }

    /// The wait after a fault of this kind; `chance` is a random number from 0 to 1. Half of the wait is fixed, half is
    /// chance: a fleet that lost Redis together does not come back together.
    pub(super) fn wait(&mut self, kind: FaultKind, chance: f64) -> Duration {
        let person = kind.needs_a_person();
        if person != self.for_a_person {
            self.for_a_person = person;
            self.attempt = 0;
        }
        let attempt = self.attempt;
        self.attempt = attempt.saturating_add(1);
        if kind == FaultKind::Quota {
            return WAIT_FOR_QUOTA + FIRST_WAIT_FOR_A_PERSON.mul_f64(chance);
        }
        let (first, longest) = match person {
            _ if self.of_a_node && kind == FaultKind::Cluster => {
                (FIRST_WAIT_FOR_A_CLUSTER, LONGEST_WAIT_FOR_A_CLUSTER)
            }
            true => (FIRST_WAIT_FOR_A_PERSON, LONGEST_WAIT_FOR_A_PERSON.max(self.longest)),
            false => (FIRST_WAIT, self.longest),
        };
        let full = first.saturating_mul(1 << attempt.min(16)).min(longest);
        full / 2 + (full / 2).mul_f64(chance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THIRTY: Duration = Duration::from_secs(30);

    fn seconds(backoff: &mut Backoff, kind: FaultKind, chance: f64) -> f64 {
        backoff.wait(kind, chance).as_secs_f64()
    }

    fn repeatedly(backoff: &mut Backoff, kind: FaultKind) {
        for _ in 0..20 {
            backoff.wait(kind, 0.5);
        }
    }

    #[test]
    fn waits_double_up_to_the_longest_and_half_of_each_is_chance() {
        let (mut least, mut most) = (Backoff::new(THIRTY), Backoff::new(THIRTY));
        for attempt in 0..40 {
            let full = f64::from(1 << attempt.min(5)).min(30.0);
            assert_eq!(seconds(&mut least, FaultKind::Refused, 0.0), full / 2.0);
            assert_eq!(seconds(&mut most, FaultKind::Refused, 1.0), full);
        }
    }

    #[test]
    fn what_needs_a_person_is_not_tried_hot_and_at_least_every_five_minutes() {
        for kind in [FaultKind::Auth, FaultKind::Permission, FaultKind::Tls] {
            let mut backoff = Backoff::new(Duration::from_secs(1));
            // However long Redis was away before: the person who mended it is not kept waiting for that.
            repeatedly(&mut backoff, FaultKind::Refused);
            assert_eq!(seconds(&mut backoff, kind, 0.0), 15.0);
            assert_eq!(seconds(&mut backoff, kind, 0.0), 30.0);
            repeatedly(&mut backoff, kind);
            assert_eq!(seconds(&mut backoff, kind, 1.0), 300.0);
            assert_eq!(
                seconds(&mut backoff, FaultKind::Lost, 1.0),
                1.0,
                "and what mends itself is tried soon"
            );
        }
    }

    #[test]
    fn a_quota_is_asked_for_at_most_every_five_minutes() {
        let mut backoff = Backoff::new(Duration::from_secs(1));
        for _ in 0..20 {
            let wait = backoff.wait(FaultKind::Quota, rand::random());
            assert!((300..=330).contains(&wait.as_secs()), "{wait:?}");
        }
    }

    #[test]
    fn a_minute_of_health_makes_the_next_outage_a_new_one_and_less_does_not() {
        let mut backoff = Backoff::new(THIRTY);
        repeatedly(&mut backoff, FaultKind::Lost);
        backoff.healthy(Duration::from_secs(59));
        assert_eq!(seconds(&mut backoff, FaultKind::Lost, 0.0), 15.0);
        backoff.healthy(Duration::from_secs(60));
        assert_eq!(seconds(&mut backoff, FaultKind::Lost, 0.0), 0.5);
    }

    #[test]
    fn fifty_instances_that_lost_redis_together_probe_it_at_most_ten_times_a_second_on_the_whole() {
        let mut probes = vec![0u32; 600];
        for _ in 0..50 {
            let (mut backoff, mut at) = (Backoff::new(THIRTY), 0.0);
            loop {
                at += seconds(&mut backoff, FaultKind::Refused, rand::random());
                let Some(second) = probes.get_mut(at as usize) else { break };
                *second += 1;
            }
        }
        let mut steady = probes.split_off(60);
        steady.sort_unstable();
        let p99 = steady[steady.len() * 99 / 100];
        assert!(p99 <= 10, "{p99} probes a second in the 99th percentile after the first minute");
    }
}
