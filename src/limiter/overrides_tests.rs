//! What overrides promise.

use super::*;
use crate::limiter::calendar::Calendar;
use crate::limiter::clock::{Clock, SECOND};
use crate::limiter::decision::{Decision, State};
use crate::limiter::memory::Memory;
use crate::limiter::policy::Mode;
use crate::limiter::route::Route;
use crate::limiter::{Hit, check::Check};

const NOW: Micros = 1_700_000_000 * SECOND;

fn n(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).unwrap()
}

fn by_key() -> Subject {
    Subject::new([Part::Header("x-api-key".into())])
}

fn quota(limit: u32, seconds: u64) -> Quota {
    Quota::new(n(limit), seconds * SECOND, n(limit)).unwrap()
}

fn rules(policies: impl IntoIterator<Item = Policy>) -> Rules {
    let mut rules = Rules::none();
    rules.add("default", Route::any(), 1, policies);
    rules
}

fn per_key(limit: u32, seconds: u64) -> Policy {
    Policy::new("per-key", by_key(), quota(limit, seconds))
}

fn limiter(rules: Rules) -> Arc<Limiter> {
    Arc::new(Limiter::new(rules, Memory::new(1_000), &[7; 16], Clock::manual(NOW)))
}

fn one(id: &str, key: &str, effect: Effect) -> Override {
    Override {
        id: id.into(),
        rule: "default".into(),
        policy: None,
        by: None,
        key: vec![key.as_bytes().into()],
        effect,
        expires_at: None,
    }
}

fn limit(limit: u32, seconds: u64, burst: Option<u32>) -> Effect {
    Effect::Limit(OwnLimit {
        limit: n(limit),
        period: Some(seconds * SECOND),
        unit: None,
        burst: burst.map(n),
    })
}

fn ask(limiter: &Arc<Limiter>, key: &str) -> Decision {
    match limiter.check_key("default", key.as_bytes(), Hit::ONE) {
        Some(Check::Decided(Some(decision))) => decision,
        _ => panic!("memory decides at once"),
    }
}

fn state(limiter: &Arc<Limiter>, key: &str) -> State {
    ask(limiter, key).state
}

#[test]
fn a_debt_is_kept_when_a_subject_gets_a_limit_of_its_own_and_cut_to_what_that_may_owe() {
    let limiter = limiter(rules([per_key(2, 3_600)]));
    for wanted in [State::Allow, State::Allow, State::Throttle] {
        assert_eq!(state(&limiter, "busy"), wanted);
    }
    // An hour of debt. The new limit may owe two hours: one of them is left.
    limiter.put_overrides([one("more", "busy", limit(4, 3_600, Some(8)))]);
    for wanted in [State::Allow, State::Allow, State::Allow, State::Allow, State::Throttle] {
        let decision = ask(&limiter, "busy");
        assert_eq!((decision.state, decision.override_id()), (wanted, Some("more")));
    }
    // Two hours, cut to the ten seconds that this one may owe: a second later there is room for one.
    limiter.put_overrides([one("less", "busy", limit(10, 10, None))]);
    assert_eq!(state(&limiter, "busy"), State::Throttle);
    limiter.clock.advance(SECOND);
    let decision = ask(&limiter, "busy");
    let (policy, verdict) = decision.binding().unwrap();
    assert_eq!((decision.state, verdict.quota(policy).limit()), (State::Allow, 10));
    // Taken back, what it owes is what the policy may owe.
    limiter.put_overrides([]);
    assert_eq!(ask(&limiter, "busy").override_id(), None);
}

#[test]
fn an_override_ends_at_its_moment_and_the_next_in_rank_is_in_force() {
    let limiter = limiter(rules([per_key(1, 3_600)]));
    let ends = |seconds: u64, one: Override| Override { expires_at: Some(NOW + seconds * SECOND), ..one };
    limiter.put_overrides([
        ends(20, one("a-exempt", "x", Effect::Exempt)),
        ends(10, one("b-block", "x", Effect::Block)),
        one("c-limit", "x", limit(5, 3_600, None)),
    ]);
    for (state, id, left) in [
        (State::Block, "b-block", None),
        (State::Allow, "a-exempt", None),
        (State::Allow, "c-limit", Some(4)),
    ] {
        let decision = ask(&limiter, "x");
        let remaining = decision.binding().map(|(_, verdict)| verdict.reading.remaining);
        assert_eq!((decision.state, decision.override_id(), remaining), (state, Some(id), left));
        limiter.clock.advance(10 * SECOND);
    }
}

#[test]
fn an_exemption_from_one_policy_leaves_the_others_and_one_from_the_rule_leaves_none() {
    let tight = Policy::new("tight", by_key(), quota(1, 3_600));
    let limiter = limiter(rules([
        tight,
        Policy { name: "wide".into(), ..Policy::new("wide", by_key(), quota(3, 3_600)) },
    ]));
    let from_tight = Override { policy: Some("tight".into()), ..one("a", "x", Effect::Exempt) };
    limiter.put_overrides([from_tight.clone()]);
    for wanted in [State::Allow, State::Allow, State::Allow, State::Throttle] {
        let decision = ask(&limiter, "x");
        assert_eq!((decision.state, decision.override_id()), (wanted, Some("a")));
        assert_eq!(decision.policy(), Some("wide"));
    }
    limiter.put_overrides([from_tight, one("b", "x", Effect::Exempt)]);
    let decision = ask(&limiter, "x");
    assert_eq!((decision.state, decision.policy(), decision.override_id()), (State::Allow, None, Some("b")));
}

#[test]
fn a_block_holds_whatever_the_policy_is_and_a_shadow_policy_stays_one_with_another_limit() {
    let shadow = Policy { mode: Mode::Shadow, ..per_key(1, 3_600) };
    let limiter = limiter(rules([shadow]));
    limiter.put_overrides([one("a", "nasty", Effect::Block), one("b", "few", limit(1, 7_200, None))]);
    assert_eq!(state(&limiter, "nasty"), State::Block);
    assert_eq!([state(&limiter, "few"), state(&limiter, "few")], [State::Allow; 2]);
    assert_eq!(ask(&limiter, "few").shadow_denials().count(), 1);
}

#[test]
fn what_rules_do_not_know_has_no_effect_until_they_do() {
    let limiter = limiter(rules([per_key(1, 3_600)]));
    let gone = Override { policy: Some("gone".into()), ..one("a", "x", Effect::Block) };
    limiter.put_overrides([gone, Override { rule: "gone".into(), ..one("b", "x", Effect::Block) }]);
    assert_eq!(state(&limiter, "x"), State::Allow);
    assert!(limiter.overrides_now().is_none(), "nothing to look at");
    assert!(limiter.overrides().policies_of("a").is_empty());
    limiter.replace_rules(rules([Policy::new("gone", by_key(), quota(1, 1))]));
    assert_eq!(state(&limiter, "x"), State::Block);
    assert_eq!(limiter.overrides().policies_of("a"), [Box::<str>::from("gone")]);
    assert!(limiter.overrides().policies_of("b").is_empty());
}

#[test]
fn in_calendar_windows_a_limit_of_ones_own_is_for_the_same_windows() {
    let unit = Unit::Day;
    let windows = |limit| {
        let policy = Policy::new("daily", by_key(), Quota::each(n(limit), unit).unwrap());
        policy.in_windows_of(Calendar::new(unit, "UTC").unwrap())
    };
    let policy = windows(2);
    let own = |limit, unit: Unit, burst: Option<u32>| OwnLimit {
        limit: n(limit),
        period: unit.length(),
        unit: Some(unit),
        burst: burst.map(n),
    };
    assert!(own(5, Unit::Hour, None).under(&policy).unwrap_err().contains("N/day"));
    assert!(own(5, Unit::Day, Some(2)).under(&policy).unwrap_err().contains("no burst"));
    assert!(own(5, Unit::Month, None).under(&per_key(1, 1)).unwrap_err().contains("month"));
    let limiter = limiter(rules([policy]));
    limiter.put_overrides([one("a", "x", Effect::Limit(own(3, Unit::Day, None)))]);
    let states: Vec<State> = (0..4).map(|_| state(&limiter, "x")).collect();
    assert_eq!(states, [State::Allow, State::Allow, State::Allow, State::Throttle]);
}

#[test]
fn one_bucket_for_all_and_a_subject_of_other_parts_are_nobodys() {
    let everyone = Policy::new("all", Subject::new([]), quota(1, 1));
    let pair =
        Policy::new("pair", Subject::new([Part::Header("a".into()), Part::Header("b".into())]), quota(1, 1));
    let rules = rules([everyone, pair]);
    let rule = rules.named("default").unwrap();
    let names = |key: &[&str]| -> Vec<String> {
        let key = key.iter().map(|value| value.as_bytes().into()).collect();
        let one = Override { key, ..one("a", "", Effect::Block) };
        one.meant(&rules, rule).iter().map(|(policy, _)| policy.name.to_string()).collect()
    };
    assert_eq!(names(&["x"]), ["pair"], "in the place of all parts, as to /v1/check");
    assert_eq!(names(&["x", "y"]), ["pair"]);
    assert!(names(&["x", "y", "z"]).is_empty());
}
