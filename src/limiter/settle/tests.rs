//! Settlements in this process, on a clock that stands until it is moved.

use crate::limiter::share::Share;
use std::borrow::Cow;
use std::net::IpAddr;
use std::num::NonZeroU32;

use proptest::prelude::*;

use super::*;
use crate::limiter::Hit;
use crate::limiter::calendar::{Calendar, Unit};
use crate::limiter::check::Check;
use crate::limiter::clock::{Clock, SECOND};
use crate::limiter::gcra::Quota;
use crate::limiter::memory::Memory;
use crate::limiter::policy::Mode;
use crate::limiter::route::Route;
use crate::limiter::store::Readings;
use crate::limiter::store::{Charged, NoStore};
use crate::limiter::subject::{Facts, Part, ProcessKey, Subject};

/// 2026-11-22T12:00:00Z
const NOON: Micros = 1_795_348_800 * SECOND;

struct Somebody;

impl Facts for Somebody {
    fn ip(&self) -> Option<IpAddr> {
        Some(IpAddr::from([192, 0, 2, 1]))
    }
    fn method(&self) -> &str {
        "GET"
    }
    fn host(&self) -> &str {
        ""
    }
    fn path(&self) -> &str {
        "/"
    }
    fn header(&self, _: &str) -> Option<&[u8]> {
        None
    }
    fn query(&self, _: &str) -> Option<Cow<'_, [u8]>> {
        None
    }
    fn cookie(&self, _: &str) -> Option<Cow<'_, [u8]>> {
        None
    }
    fn carries(&self, _: &Part) -> bool {
        false
    }
}

/// One unit a second, so many at once.
fn a_second(burst: u32) -> Quota {
    Quota::new(NonZeroU32::MIN, SECOND, NonZeroU32::new(burst).unwrap()).unwrap()
}

struct Stage {
    limiter: Arc<Limiter<NoStore>>,
    clock: Clock,
}

impl Stage {
    fn of(cost: u32, policies: impl IntoIterator<Item = Policy>) -> Self {
        let mut rules = Rules::none();
        rules.add("rule", Route::any(), cost, policies);
        let clock = Clock::manual(NOON);
        let limiter = Limiter::new(rules, Memory::new(1_000), &[7; 16], clock.clone());
        Self { limiter: Arc::new(limiter), clock }
    }

    fn one(cost: u32, burst: u32) -> Self {
        Self::of(cost, [Policy::new("p", Subject::ip(), a_second(burst))])
    }

    fn hit(&self) -> (Tab, Decision) {
        let mut tab = Tab::default();
        let decision = self.decided(Hit::ONE, Some(&mut tab));
        (tab, decision)
    }

    fn decided(&self, hit: Hit, tab: Option<&mut Tab>) -> Decision {
        match self.limiter.check_on(&Somebody, hit, tab) {
            Check::Decided(Some(decision)) => decision,
            _ => panic!("memory decides at once"),
        }
    }

    fn settle(&self, (tab, decision): &(Tab, Decision), actual: u32) -> Option<Settlement> {
        let settlement = self.limiter.settle(tab, decision, actual, true)?;
        assert!(matches!(settlement.outcome, Settling::Done(Outcome::Memory)));
        Some(settlement)
    }

    /// The debts, in the order of the policies.
    fn debts(&self) -> Vec<Micros> {
        let peek = self.decided(Hit { cost: 0, peek: true }, None);
        peek.verdicts().map(|(_, verdict)| verdict.reading.debt).collect()
    }
}

#[test]
fn a_greater_cost_is_charged_beyond_what_was_left_and_never_above_a_full_bucket() {
    let stage = Stage::one(1, 10);
    let hit = stage.hit();
    let told = stage.settle(&hit, 5).unwrap().decision;
    assert_eq!(stage.debts(), [5 * SECOND]);
    assert_eq!(told.binding().unwrap().1.reading.remaining, 5, "as if it had cost so much from the start");
    let hit = stage.hit();
    let told = stage.settle(&hit, u32::MAX).unwrap().decision;
    assert!(told.allowed(), "the work is done");
    assert_eq!(stage.debts(), [10 * SECOND], "a client waits at most a full refill");
    assert!(!stage.hit().1.allowed());
    stage.clock.advance(SECOND);
    assert!(stage.hit().1.allowed());
}

#[test]
fn a_smaller_cost_is_given_back_and_nothing_makes_a_request_free() {
    let stage = Stage::one(4, 10);
    let hits = [stage.hit(), stage.hit()];
    assert_eq!(stage.debts(), [8 * SECOND]);
    stage.settle(&hits[0], 1);
    assert_eq!(stage.debts(), [5 * SECOND]);
    let told = stage.settle(&hits[1], 0).unwrap().decision;
    assert_eq!(stage.debts(), [SECOND]);
    assert_eq!(told.binding().unwrap().1.reading.remaining, 6);
    assert!(stage.settle(&hits[1], 4).is_none(), "what was charged is what it cost");
}

#[test]
fn what_has_drained_meanwhile_is_not_given_back_where_the_bucket_would_have_stood_empty() {
    let stage = Stage::one(4, 10);
    let hit = stage.hit();
    stage.clock.advance(3 * SECOND);
    stage.settle(&hit, 0);
    assert_eq!(stage.debts(), [0]);
    let hit = stage.hit();
    stage.clock.advance(100 * SECOND);
    stage.settle(&hit, 0);
    assert_eq!(stage.debts(), [0]);
    assert_eq!(stage.decided(Hit { cost: 0, peek: true }, None).binding().unwrap().1.reading.remaining, 10);
}

#[test]
fn a_client_whose_bucket_never_stood_empty_is_given_back_all_of_the_difference() {
    let stage = Stage::one(4, 10);
    assert!(stage.settle(&stage.hit(), 4).is_none());
    let hit = stage.hit();
    stage.clock.advance(3 * SECOND);
    assert_eq!(stage.debts(), [5 * SECOND]);
    stage.settle(&hit, 0);
    assert_eq!(stage.debts(), [SECOND], "the first hit's four have drained for three seconds");
    // While it is open what the first has cost, three of the second's four may have drained from an empty bucket.
    let stage = Stage::one(4, 10);
    let hits = [stage.hit(), stage.hit()];
    stage.clock.advance(3 * SECOND);
    stage.settle(&hits[1], 0);
    assert_eq!(stage.debts(), [4 * SECOND], "rather too strict");
}

#[test]
fn every_policy_that_was_charged_is_settled_and_one_in_shadow_that_had_no_room_is_not() {
    let policy =
        |name: &str, burst, mode| Policy { mode, ..Policy::new(name, Subject::ip(), a_second(burst)) };
    let stage = Stage::of(
        2,
        [
            policy("wide", 100, Mode::Enforce),
            policy("on-trial", 50, Mode::Shadow),
            policy("tiny", 3, Mode::Shadow),
        ],
    );
    stage.hit();
    let hit = stage.hit();
    assert_eq!(stage.debts(), [4, 4, 2].map(|units| units * SECOND));
    stage.settle(&hit, 10);
    assert_eq!(stage.debts(), [12, 12, 2].map(|units| units * SECOND));
    stage.settle(&hit, 0);
    assert_eq!(stage.debts(), [10, 10, 2].map(|units| units * SECOND));
}

#[test]
fn a_denied_request_is_settled_nothing_and_no_tab_stays_open() {
    let stage = Stage::one(4, 5);
    stage.hit();
    let denied = stage.hit();
    assert!(!denied.1.allowed());
    assert!(stage.settle(&denied, 5).is_none());
    assert_eq!(stage.debts(), [4 * SECOND]);
    assert_eq!(stage.limiter.open_tabs.len(), 1);
    drop(denied);
    assert_eq!(stage.limiter.open_tabs.len(), 0);
}

#[test]
fn a_calendar_window_gives_back_while_it_lasts_and_the_next_one_takes_what_comes_late() {
    let quota = Quota::each(NonZeroU32::new(10).unwrap(), Unit::Minute).unwrap();
    let calendar = Calendar::new(Unit::Minute, "UTC").unwrap();
    let stage = Stage::of(4, [Policy::new("p", Subject::ip(), quota).in_windows_of(calendar)]);
    let hits = [stage.hit(), stage.hit()];
    assert_eq!(stage.debts(), [8]);
    stage.clock.advance(30 * SECOND);
    let told = stage.settle(&hits[0], 1).unwrap().decision;
    assert_eq!(stage.debts(), [5], "nothing of a window drains");
    let reading = told.binding().unwrap().1.reading;
    assert_eq!((reading.remaining, reading.reset_after), (9, 60 * SECOND));
    stage.clock.advance(40 * SECOND);
    assert!(stage.settle(&hits[1], 0).is_none(), "that window is over");
    assert_eq!(stage.debts(), [0]);
    stage.settle(&hits[1], 40);
    assert_eq!(stage.debts(), [10], "as much as fits");
}

/// One hit of four units waits for its answer while four of an earlier one come back.
#[test]
fn an_answer_that_left_before_something_came_back_and_arrives_after_it_teaches_nothing() {
    let memory = Memory::new(1_000);
    let quota = a_second(20);
    let key = ProcessKey::new(&[7; 16]).hash(&Subject::ip().identity_of(b"192.0.2.1"));
    let charge = |cost| Charge { key, quota, span: None, cost, share: Share::WHOLE, enforce: true };
    let said = |debt: Micros, judged_at| Charged {
        readings: Readings::from_elem(quota.reading(debt, 4, true), 1),
        from: SmallVec::from_elem(judged_at, 1),
        judged_at,
        last: SmallVec::new(),
        ahead: 0,
    };
    let debt = |now| memory.charge(&[charge(0)], true, now)[0].debt;
    let charges = [charge(4)];
    let first = memory.depart(&charges, false, NOON);
    first.answered(said(4 * SECOND, NOON), NOON);
    assert_eq!(debt(NOON), 4 * SECOND);

    let overtaken = memory.depart(&charges, false, NOON);
    let dues = [Due { policy: 0, shared: None, charge: charge(4), change: Change::Less(4 * SECOND, NOON) }];
    let returning = memory.depart(&charges, true, NOON);
    memory.send_back(&dues);
    let later = memory.depart(&charges, false, NOON);
    assert_eq!(later.notes().next().unwrap().0, 0, "what is on its way back rides in no note");
    drop(later);
    let answer = said(4 * SECOND, NOON + 20);
    memory.sent_back(&returning, &dues, Some(&answer), NOON + 30);
    returning.answered(answer, NOON + 30);
    assert_eq!(debt(NOON + 30), 4 * SECOND - 10 + 4 * SECOND, "what is under way counts here");
    overtaken.answered(said(8 * SECOND, NOON + 10), NOON + 40);
    assert_eq!(debt(NOON + 40), 4 * SECOND - 20, "of the eight, four had come back since");
}

#[test]
fn what_comes_back_after_its_key_was_forgiven_brings_no_debt_along() {
    let memory = Memory::new(1_000);
    let quota = a_second(20);
    let key = ProcessKey::new(&[7; 16]).hash(&Subject::ip().identity_of(b"192.0.2.1"));
    let charge = |cost| Charge { key, quota, span: None, cost, share: Share::WHOLE, enforce: true };
    let answer = Charged {
        readings: Readings::from_elem(quota.reading(9 * SECOND, 4, true), 1),
        from: SmallVec::from_elem(NOON, 1),
        judged_at: NOON,
        last: SmallVec::new(),
        ahead: 0,
    };
    let charges = [charge(4)];
    memory.depart(&charges, false, NOON).answered(answer.clone(), NOON);
    let dues = [Due { policy: 0, shared: None, charge: charge(4), change: Change::Less(4 * SECOND, NOON) }];
    let returning = memory.depart(&charges, true, NOON);
    memory.send_back(&dues);
    assert!(memory.forgive(key), "something is under way");
    memory.sent_back(&returning, &dues, Some(&answer), NOON);
    returning.answered(answer, NOON);
    assert_eq!(memory.charge(&[charge(0)], true, NOON)[0].debt, 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Against the same requests, had each cost from the start what it told in the end.
    #[test]
    fn what_is_given_back_never_makes_more_room_than_the_true_costs_would_have(
        steps in prop::collection::vec((0u64..4_000_000, 0u32..=6, 0usize..4, any::<usize>()), 1..60),
    ) {
        let stage = Stage::one(6, 30);
        let mut full_at = 0;
        let mut open: Vec<((Tab, Decision), u32)> = Vec::new();
        for (after, actual, settled, which) in steps {
            stage.clock.advance(after);
            let now = stage.clock.now();
            for _ in 0..settled.min(open.len()) {
                let (hit, actual) = open.remove(which % open.len());
                stage.settle(&hit, actual);
            }
            let hit = stage.hit();
            if hit.1.allowed() {
                full_at = now.max(full_at) + u64::from(actual) * SECOND;
                open.push((hit, actual));
            }
            let (debt, wanted) = (stage.debts()[0], full_at.saturating_sub(now));
            prop_assert!(debt >= wanted, "{debt} µs of debt, {wanted} µs by the true costs");
        }
    }
}
