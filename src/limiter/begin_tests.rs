//! What is refused before any claim is asked for.

use std::borrow::Cow;
use std::cell::Cell;
use std::net::IpAddr;
use std::num::NonZeroU32;

use super::super::access::AccessList;
use super::super::clock::{Clock, SECOND};
use super::super::decision::State;
use super::super::gcra::Quota;
use super::super::memory::Memory;
use super::super::overrides::{Effect, Override};
use super::super::penalty::Penalty;
use super::super::policy::{Mode, OnMissing};
use super::super::route::Route;
use super::super::subject::Part;
use super::*;

/// A request with an address and a token, whose claims are counted when they are asked for.
struct Asked {
    address: &'static str,
    sub: Option<&'static str>,
    times: Cell<u32>,
}

impl Facts for Asked {
    fn ip(&self) -> Option<IpAddr> {
        self.address.parse().ok()
    }
    fn claim(&self, _: &str) -> Option<Cow<'_, [u8]>> {
        self.times.set(self.times.get() + 1);
        self.sub.map(|sub| Cow::Borrowed(sub.as_bytes()))
    }
}

fn claim() -> Part {
    Part::Jwt("sub".into())
}

fn policy(name: &str, by: Subject, limit: u32) -> Policy {
    let limit = NonZeroU32::new(limit).unwrap();
    Policy::new(name, by, Quota::new(limit, 3_600 * SECOND, limit).unwrap())
}

fn by_ip(limit: u32) -> Policy {
    policy("ip", Subject::ip(), limit)
}

fn by_sub(limit: u32) -> Policy {
    policy("sub", Subject::new([claim()]), limit)
}

fn limiter(rules: Rules) -> Arc<Limiter> {
    Arc::new(Limiter::new(rules, Memory::new(1_000), &[7; 16], Clock::manual(1_700_000_000 * SECOND)))
}

fn rules(policies: impl IntoIterator<Item = Policy>, access: AccessList) -> Rules {
    let mut rules = Rules::none();
    rules.add("default", Route::any(), 1, policies);
    rules.list_for_the_last(access);
    rules
}

/// What one request comes to, and whether its claims were asked for.
fn ask(
    limiter: &Arc<Limiter>,
    address: &'static str,
    sub: Option<&'static str>,
) -> (State, Option<String>, bool) {
    let facts = Asked { address, sub, times: Cell::new(0) };
    let Check::Decided(Some(decision)) = limiter.check(&facts, Hit::ONE) else {
        panic!("memory decides at once")
    };
    (decision.state, decision.policy().map(str::to_owned), facts.times.get() > 0)
}

#[test]
fn request_over_its_ip_limit_is_asked_for_no_claim() {
    // The order of the policies does not matter.
    for policies in [[by_ip(2), by_sub(100)], [by_sub(100), by_ip(2)]] {
        let limiter = limiter(rules(policies, AccessList::default()));
        for _ in 0..2 {
            assert_eq!(ask(&limiter, "192.0.2.1", None).0, State::Allow);
        }
        for _ in 0..5 {
            assert_eq!(ask(&limiter, "192.0.2.1", Some("ana")), (State::Throttle, Some("ip".into()), false));
        }
        let (state, _, asked) = ask(&limiter, "192.0.2.2", Some("ana"));
        assert_eq!((state, asked), (State::Allow, true), "another address: nothing was charged for ana");
    }
}

#[test]
fn limits_by_ip_and_claim_admit_what_each_admits_alone() {
    let limiter = limiter(rules([by_ip(10), by_sub(3)], AccessList::default()));
    let admitted = (0..20).filter(|_| ask(&limiter, "192.0.2.1", Some("ana")).0 == State::Allow).count();
    assert_eq!(admitted, 3, "ana's limit");
    let admitted = (0..20).filter(|_| ask(&limiter, "192.0.2.1", Some("ben")).0 == State::Allow).count();
    assert_eq!(admitted, 3, "ben's limit");
    let admitted = (0..20).filter(|_| ask(&limiter, "192.0.2.1", Some("eva")).0 == State::Allow).count();
    assert_eq!(admitted, 3, "eva's limit");
    let admitted = (0..20).filter(|_| ask(&limiter, "192.0.2.1", Some("dan")).0 == State::Allow).count();
    assert_eq!(admitted, 1, "what the address has left");
}

#[test]
fn list_of_refusals_is_read_before_any_claim() {
    let mut access = AccessList::default();
    access.add_network("192.0.2.0/24".parse().unwrap(), Access::Deny);
    access.add_subject(claim(), b"thief", Access::Deny);
    let limiter = limiter(rules([by_sub(100)], access.clone()));
    assert_eq!(ask(&limiter, "192.0.2.1", Some("ana")), (State::Block, None, false));
    assert_eq!(ask(&limiter, "198.51.100.1", Some("thief")), (State::Block, None, true));
    assert_eq!(ask(&limiter, "198.51.100.1", Some("ana")).0, State::Allow);
}

#[test]
fn exemption_by_a_claim_is_looked_for_first() {
    let mut access = AccessList::default();
    access.add_network("192.0.2.0/24".parse().unwrap(), Access::Deny);
    access.add_subject(claim(), b"partner", Access::Allow);
    let listed = limiter(rules([by_ip(1), by_sub(100)], access));
    assert_eq!(ask(&listed, "192.0.2.1", Some("partner")), (State::Allow, None, true));
    assert_eq!(ask(&listed, "192.0.2.1", Some("ana")), (State::Block, None, true));
    for _ in 0..3 {
        assert_eq!(ask(&listed, "198.51.100.1", Some("partner")).0, State::Allow);
    }

    let overridden = limiter(rules([by_ip(1), by_sub(100)], AccessList::default()));
    overridden.put_overrides([Override {
        id: "partner".into(),
        rule: "default".into(),
        policy: None,
        by: Some("jwt:sub".into()),
        key: vec![b"partner".as_slice().into()],
        effect: Effect::Exempt,
        expires_at: None,
    }]);
    for _ in 0..3 {
        assert_eq!(ask(&overridden, "192.0.2.1", Some("partner")).0, State::Allow);
    }
    assert_eq!(ask(&overridden, "192.0.2.1", Some("ana")).0, State::Allow);
    assert_eq!(ask(&overridden, "192.0.2.1", Some("ana")), (State::Throttle, Some("ip".into()), true));
}

#[test]
fn address_that_is_shut_out_is_asked_for_no_claim() {
    let penalty = Penalty { after: NonZeroU32::new(2).unwrap(), within: 60 * SECOND, lasts: 3_600 * SECOND };
    let limiter =
        limiter(rules([Policy { penalty: Some(penalty), ..by_ip(1) }, by_sub(100)], AccessList::default()));
    let states: Vec<State> = (0..5).map(|_| ask(&limiter, "192.0.2.1", Some("ana")).0).collect();
    assert_eq!(states, [State::Allow, State::Throttle, State::Throttle, State::Block, State::Block]);
    assert!(!ask(&limiter, "192.0.2.1", Some("ana")).2);
}

#[test]
fn shadow_limit_by_ip_refuses_nothing_before_the_claim() {
    let shadow = Policy { mode: Mode::Shadow, ..by_ip(1) };
    let insists = Policy { on_missing: OnMissing::Deny, ..by_sub(1) };
    let limiter = limiter(rules([shadow, insists], AccessList::default()));
    assert_eq!(ask(&limiter, "192.0.2.1", None), (State::Block, Some("sub".into()), true));
    assert_eq!(ask(&limiter, "192.0.2.1", Some("ana")).0, State::Allow);
    assert_eq!(ask(&limiter, "192.0.2.1", Some("ana")), (State::Throttle, Some("sub".into()), true));
}
