//! What holds of the reckoning whatever the rules and the load are.

use std::num::NonZeroU32;

use proptest::prelude::*;

use super::*;
use crate::limiter::calendar::{Calendar, Unit};
use crate::limiter::gcra::Quota;
use crate::limiter::route::Route;
use crate::limiter::subject::{Part, Subject};

const HABITS: Habits = Habits {
    namespace: 8,
    secret_in_redis: false,
    heartbeat: Some(Duration::from_secs(10)),
    map_interval: None,
};

fn policy(name: &str, everyone: bool, unit: Option<Unit>, limit: u32) -> Policy {
    let by = if everyone { Subject::new([Part::Everyone]) } else { Subject::ip() };
    let limit = NonZeroU32::new(limit).unwrap();
    match unit {
        None => Policy::new(name, by, Quota::new(limit, 60 * SECOND, limit).unwrap()),
        Some(unit) => Policy::new(name, by, Quota::each(limit, unit).unwrap())
            .in_windows_of(Calendar::new(unit, "UTC").unwrap()),
    }
}

/// Rules by their policies: by everyone or by address, the window, the limit.
type Drawn = Vec<Vec<(bool, Option<Unit>, u32)>>;

fn drawn() -> impl Strategy<Value = Drawn> {
    let unit =
        prop_oneof![Just(None), Just(Some(Unit::Minute)), Just(Some(Unit::Day)), Just(Some(Unit::Month))];
    let policy = (any::<bool>(), unit, 1..1_000_u32);
    prop::collection::vec(prop::collection::vec(policy, 1..4), 1..4)
}

fn rules(drawn: &[Vec<(bool, Option<Unit>, u32)>]) -> Rules {
    let mut rules = Rules::none();
    for (at, policies) in drawn.iter().enumerate() {
        let named = policies.iter().enumerate();
        let policies = named
            .map(|(place, &(everyone, unit, limit))| policy(&format!("{at}-{place}"), everyone, unit, limit));
        rules.add(format!("rule-{at}"), Route::any(), 1, policies);
    }
    rules
}

fn figures(needs: &Needs) -> [f64; 9] {
    [
        f64::from(needs.calls_a_decision),
        f64::from(needs.commands_a_decision),
        needs.calls_a_day,
        needs.commands_a_day,
        needs.calls_a_second,
        needs.keys,
        needs.memory_bytes,
        f64::from(needs.connections),
        needs.bandwidth_bytes_a_month,
    ]
}

fn load() -> impl Strategy<Value = Load> {
    (1..100_000_u32, 0..=100_u32, 1..50_u32, prop::option::of(1..1_000_u32)).prop_map(
        |(rpm, percent, instances, clients)| Load {
            rpm: f64::from(rpm),
            percent: f64::from(percent),
            instances,
            clients,
        },
    )
}

proptest! {
    #[test]
    fn each_figure_is_that_of_the_rule_that_needs_most_of_it(drawn in drawn(), load in load()) {
        let all = figures(&needs(&rules(&drawn), HABITS, load).unwrap());
        let alone: Vec<[f64; 9]> = drawn
            .iter()
            .map(|one| figures(&needs(&rules(std::slice::from_ref(one)), HABITS, load).unwrap()))
            .collect();
        for (at, figure) in all.into_iter().enumerate() {
            let most = alone.iter().map(|figures| figures[at]).fold(0.0, f64::max);
            prop_assert_eq!(figure, most, "figure {}", at);
        }
    }

    #[test]
    fn more_load_needs_no_less(drawn in drawn(), one in load(), other in load()) {
        let most = |clients: fn(u32, u32) -> u32| one.clients.zip(other.clients).map(|(one, other)| clients(one, other));
        let less = Load {
            rpm: one.rpm.min(other.rpm),
            percent: one.percent.min(other.percent),
            instances: one.instances.min(other.instances),
            clients: most(u32::min),
        };
        let more = Load {
            rpm: one.rpm.max(other.rpm),
            percent: one.percent.max(other.percent),
            instances: one.instances.max(other.instances),
            clients: most(u32::max),
        };
        // Who is alone speaks less often than one of several: the fleet grows, or it does not.
        let less = Load { instances: if less.instances == 1 { more.instances } else { less.instances }, ..less };
        let rules = rules(&drawn);
        let [less, more] = [less, more].map(|load| figures(&needs(&rules, HABITS, load).unwrap()));
        for (at, (less, more)) in less.into_iter().zip(more).enumerate() {
            prop_assert!(less <= more, "figure {}: {} and {}", at, less, more);
        }
    }

    #[test]
    fn keys_are_bounded_by_clients(drawn in drawn(), load in load()) {
        let needs = needs(&rules(&drawn), HABITS, load).unwrap();
        let most = drawn.iter().map(|policies| {
            let one = |&(everyone, ..): &(bool, Option<Unit>, u32)| match (everyone, load.clients) {
                (true, _) => 1.0,
                (false, Some(clients)) => f64::from(clients),
                (false, None) => f64::INFINITY,
            };
            policies.iter().map(one).sum::<f64>()
        });
        let most = most.fold(0.0, f64::max);
        prop_assert!(needs.keys <= most, "{} of {}", needs.keys, most);
    }
}

#[test]
fn window_of_everyone_is_one_key() {
    let day = rules(&[vec![(true, Some(Unit::Day), 1_000)]]);
    let load = Load { rpm: 1_000.0, percent: 100.0, instances: 1, clients: None };
    assert_eq!(needs(&day, HABITS, load).unwrap().keys, 1.0);
    let half = Load { percent: 50.0, ..load };
    let below = needs(&day, HABITS, half).unwrap();
    assert_eq!((below.keys, below.calls_a_second), (0.0, 0.0), "it moves last");
}

#[test]
fn heartbeats_are_counted_at_zero_percent() {
    let rules = rules(&[vec![(false, None, 100)]]);
    let load = Load { rpm: 1_000.0, percent: 0.0, instances: 2, clients: None };
    let needs = needs(&rules, HABITS, load).unwrap();
    assert_eq!((needs.calls_a_day, needs.calls_a_second), (2.0 * 8_640.0 * 4.0, 0.0));
}
