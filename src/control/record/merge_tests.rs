//! The merge over random histories: registers meet in any order and any number of times with one outcome, and no lowering
//! is lost on the way.

use proptest::prelude::*;

use super::super::merge_tests_support::changed;
use super::super::tests::points;
use super::super::{Environment, RememberedEnv};
use super::*;

/// What instances do, each with the register that it has.
#[derive(Clone, Debug)]
enum Act {
    Raise(usize, u16),
    Lower(usize, u16),
    RollBack(usize),
    Flag(usize, bool),
    Start(usize, u16),
    /// The first meets the second.
    Meet(usize, usize),
}

const INSTANCES: usize = 4;

fn act() -> impl Strategy<Value = Act> {
    let at = 0..INSTANCES;
    prop_oneof![
        (at.clone(), 0u16..=100).prop_map(|(at, to)| Act::Raise(at, to)),
        (at.clone(), 0u16..=100).prop_map(|(at, to)| Act::Lower(at, to)),
        at.clone().prop_map(Act::RollBack),
        (at.clone(), any::<bool>()).prop_map(|(at, redis)| Act::Flag(at, redis)),
        (at.clone(), 0u16..5).prop_map(|(at, to)| Act::Start(at, to)),
        (at.clone(), at).prop_map(|(one, other)| Act::Meet(one, other)),
    ]
}

/// Every register that any instance ever had.
fn history(acts: &[Act]) -> Vec<Register> {
    let start = Register::new(Record::initial(points(50), "start"));
    let mut now = vec![start.clone(); INSTANCES];
    let mut all = vec![start];
    for act in acts {
        let at = match *act {
            Act::Raise(at, to) => {
                let share = points(to).max(now[at].record.percent);
                now[at] = changed(&now[at], at as Origin, (Backend::Redis, share), false);
                at
            }
            Act::Lower(at, to) => {
                let (backend, share) = (now[at].record.backend, points(to).min(now[at].record.percent));
                now[at] = changed(&now[at], at as Origin, (backend, share), false);
                at
            }
            Act::RollBack(at) => {
                let backend = now[at].record.backend;
                now[at] = changed(&now[at], at as Origin, (backend, Percent::NONE), true);
                at
            }
            Act::Flag(at, redis) => {
                let backend = if redis { Backend::Redis } else { Backend::Memory };
                let share = now[at].record.percent;
                now[at] = changed(&now[at], at as Origin, (backend, share), false);
                at
            }
            Act::Start(at, to) => {
                let environment = Environment { percent: Some(points(to)), ..Environment::default() };
                let considered = environment.consider(&now[at], Some(RememberedEnv::default()));
                now[at].seen = considered.seen;
                if let Some(next) = considered.next {
                    now[at].record = next.made_by(at as Origin, &now[at], false);
                    let follows = now[at].record.follows();
                    now[at].unheard.keep_unknown_to(&follows);
                }
                at
            }
            Act::Meet(one, other) => {
                now[one] = now[one].merge(&now[other]);
                one
            }
        };
        all.push(now[at].clone());
    }
    all
}

/// By all that is compared; a lineage that was joined twice is the same as one that was joined once.
fn same(one: &Register, other: &Register) -> bool {
    one == other
}

proptest! {
    #[test]
    fn merge_has_one_outcome_whatever_the_order(
        acts in prop::collection::vec(act(), 1..60), picks in any::<[prop::sample::Index; 3]>(),
    ) {
        let all = history(&acts);
        let [a, b, c] = picks.map(|pick| pick.get(&all).clone());
        prop_assert!(same(&a.merge(&b), &b.merge(&a)), "commutative: {a:?} {b:?}");
        prop_assert!(same(&a.merge(&b).merge(&c), &a.merge(&b.merge(&c))), "associative: {a:?} {b:?} {c:?}");
        prop_assert!(same(&a.merge(&a), &a), "idempotent: {a:?}");
        prop_assert!(same(&a.merge(&b).merge(&b), &a.merge(&b)));
    }

    #[test]
    fn merge_keeps_each_lowering_followed_or_unheard(
        acts in prop::collection::vec(act(), 1..60), picks in any::<[prop::sample::Index; 2]>(),
    ) {
        let all = history(&acts);
        let [a, b] = picks.map(|pick| pick.get(&all).clone());
        let both = a.merge(&b);
        for known in [&a, &b] {
            let marks = known.record.follows().marks;
            for (origin, mark) in marks.iter().chain(known.unheard.iter()) {
                let Some(lowered) = mark.lowered else { continue };
                let follows = both.record.follows().contains(origin, lowered.at);
                prop_assert!(follows || both.unheard.contain(origin, lowered.at), "{lowered:?} of {known:?}");
            }
        }
        // And the way through text changes nothing.
        let text = serde_json::to_string(&(&both.record, &both.unheard, &both.seen)).unwrap();
        let (record, unheard, seen) = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(Register { record, unheard, seen }, both);
    }

    #[test]
    fn records_that_differ_have_an_order(acts in prop::collection::vec(act(), 2..60)) {
        let all = history(&acts);
        for (one, other) in all.iter().zip(&all[1..]) {
            let (one, other) = (&one.record, &other.record);
            let bare = |record: &Record| Record { lineage: None, effective_at: None, previous: Percent::NONE, ..record.clone() };
            if bare(one) != bare(other) {
                prop_assert!(one.supersedes(other) != other.supersedes(one));
            }
        }
    }
}

#[test]
fn record_of_an_older_version_follows_its_epochs() {
    let start = Register::new(Record::initial(points(50), "start"));
    let lowered = changed(&start, 7, (Backend::Redis, points(10)), false);
    let raised = |epoch| Record { epoch, revision: 9, lineage: None, ..Record::initial(points(80), "up") };
    // It counted epochs alone: one as high has seen the lowering, as far as that version could say.
    let both = lowered.merge(&Register::new(raised(1)));
    assert_eq!((both.record.percent, both.unheard_share()), (points(80), None));
    let both = lowered.merge(&Register::new(raised(0)));
    assert_eq!((both.record.percent, both.unheard_share()), (points(10), None));
    let text = r#"{"backend":"redis","percent":80.0,"epoch":3,"revision":9,"updated_at":"2026-01-01T00:00:00.123456789Z","updated_by":"ana","reason":"up"}"#;
    let old: Record = serde_json::from_str(text).unwrap();
    assert!(old.lineage.is_none() && old.follows().contains(7, Stamp { epoch: 3, revision: 1 }));
    assert!(!old.follows().contains(7, Stamp { epoch: 4, revision: 10 }));
}

#[test]
fn lineage_is_bounded_and_what_left_it_counts_as_followed() {
    let mut register = Register::new(Record::initial(points(100), "start"));
    for origin in 0..100 {
        let share = Percent::from_basis_points(9_999 - origin as u16).unwrap();
        register = changed(&register, origin, (Backend::Redis, share), false);
    }
    let follows = register.record.follows();
    assert_eq!(follows.marks.iter().count(), 64);
    let all =
        (0..100).all(|origin| follows.contains(origin, Stamp { epoch: origin + 1, revision: origin + 2 }));
    assert!(all, "{follows:?}");
    assert!(serde_json::to_string(&register.record).unwrap().len() < 8_000);
}
