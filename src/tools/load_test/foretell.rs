//! Which share of the requests the limits must deny by the plan alone: its own keys and times through the arithmetic of
//! the limiter. What is denied beyond that is the server's, and what the plan denies itself is no fault of the server.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use super::plan::Plan;
use super::send::{Aim, is_of_addresses};
use crate::limiter::clock::{Clock, Micros};
use crate::limiter::decision::State;
use crate::limiter::gcra::{Quota, admits};
use crate::limiter::memory::Memory;
use crate::limiter::policy::Rules;
use crate::limiter::store::NoStore;
use crate::limiter::subject::Facts;
use crate::limiter::{Check, Hit, Limiter};

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

/// For each phase of the plan, by the limiter itself under these rules, in memory and on a clock that begins at `began`,
/// in microseconds since 1970: windows end when those of the front do.
pub fn by_rules(plan: &Plan, aim: &Aim, rules: Rules, began: Micros) -> Vec<Foretold> {
    let mut phases = vec![Foretold::default(); plan.phases.len()];
    let clock = Clock::manual(began);
    // A fixed seed: these buckets are reached by the plan alone.
    let room = (plan.keys.max(1) as usize).saturating_mul(4 * rules.policies().len().max(1));
    let limiter =
        Arc::new(Limiter::<NoStore>::new(rules, Memory::new(room.max(1_000)), &[0; 16], clock.clone()));
    let mut now = Duration::ZERO;
    for arrival in plan.arrivals() {
        clock.advance((arrival.at - now).as_micros() as u64);
        // What is less than a microsecond is not lost.
        now += Duration::from_micros((arrival.at - now).as_micros() as u64);
        let phase = &mut phases[arrival.phase];
        phase.sent += 1;
        if let Check::Decided(Some(decision)) = limiter.check(&Planned::of(aim, arrival.key), Hit::ONE)
            && decision.state == State::Throttle
        {
            phase.denied += 1;
        }
    }
    phases
}

/// A request of the plan, as the front will see it.
pub(super) struct Planned<'a> {
    aim: &'a Aim,
    header: Option<(hyper::header::HeaderName, hyper::header::HeaderValue)>,
    ip: IpAddr,
}

impl<'a> Planned<'a> {
    /// The request of this client.
    pub(super) fn of(aim: &'a Aim, key: u32) -> Self {
        let header = aim.clients.header(key);
        let forwarded = || {
            let (name, value) = header.as_ref()?;
            // Only headers of addresses have one for a value: a front that is to be tested by them trusts this machine.
            let address = value.to_str().ok()?.trim_start_matches("for=").parse().ok()?;
            is_of_addresses(name.as_str()).then_some(address)
        };
        let ip = aim.clients.source(key).or_else(forwarded).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        Self { aim, header, ip }
    }
}

impl Facts for Planned<'_> {
    fn ip(&self) -> Option<IpAddr> {
        Some(self.ip)
    }
    fn method(&self) -> &str {
        self.aim.method.as_str()
    }
    fn host(&self) -> &str {
        self.aim.uri.authority().map_or("", |authority| authority.as_str())
    }
    fn path(&self) -> &str {
        self.aim.uri.path()
    }
    fn header(&self, name: &str) -> Option<&[u8]> {
        let (own, value) = self.header.as_ref()?;
        (own.as_str() == name).then(|| value.as_bytes())
    }
    fn query(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        let pairs = self.aim.uri.query()?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let mut values = pairs.filter(|(key, _)| *key == name).map(|(_, value)| value);
        let (value, None) = (values.next()?, values.next()) else { return None };
        Some(percent_encoding::percent_decode_str(value).collect::<Vec<u8>>().into())
    }
}

#[cfg(test)]
#[path = "foretell_rules_tests.rs"]
mod rules_tests;

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
