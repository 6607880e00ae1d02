//! The order of records: whichever way they meet, one of them stands, and what was lowered stays lowered.

use proptest::prelude::*;

use super::tests::points;
use super::*;

fn any_record() -> impl Strategy<Value = Record> {
    (0u64..4, 0u64..4, 0u16..4, prop::bool::ANY).prop_map(|(epoch, revision, percent, redis)| Record {
        backend: if redis { Backend::Redis } else { Backend::Memory },
        epoch,
        revision,
        ..Record::initial(points(percent), "a test")
    })
}

/// Of two records the one that supersedes the other.
fn merged<'a>(ours: &'a Record, theirs: &'a Record) -> &'a Record {
    if theirs.supersedes(ours) { theirs } else { ours }
}

proptest! {
    #[test]
    fn records_merge_alike_in_any_order_and_any_number_of_times(
        a in any_record(), b in any_record(), c in any_record(),
    ) {
        prop_assert_eq!(merged(&a, &b).place(), merged(&b, &a).place());
        prop_assert_eq!(merged(merged(&a, &b), &c).place(), merged(&a, merged(&b, &c)).place());
        prop_assert_eq!(merged(&a, &a), &a);
        prop_assert_eq!(merged(merged(&a, &b), &b), merged(&a, &b));
        prop_assert!(!(a.supersedes(&b) && b.supersedes(&a)));
    }

    #[test]
    fn a_lowering_wins_over_every_raise_made_without_having_seen_it(
        seen in 50u16..=100, lower in 0u16..50, raises in prop::collection::vec(0u16..=100, 0..20),
    ) {
        let seen = Record::initial(points(seen), "a test");
        let lowered = seen.followed_by(seen.backend, points(lower), "ana", "down");
        let mut raised = seen;
        for raise in raises.into_iter().map(points) {
            if raise >= raised.wanted() {
                raised = raised.followed_by(Backend::Redis, raise, "ben", "up");
            }
        }
        prop_assert!(lowered.supersedes(&raised));
    }

    #[test]
    fn a_record_and_its_environment_survive_the_way_through_text(record in any_record(), percent in 0u16..=10_000) {
        let text = serde_json::to_string(&record).unwrap();
        prop_assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
        let env = RememberedEnv { backend: None, percent: Percent::from_basis_points(percent) };
        let text = serde_json::to_string(&env).unwrap();
        prop_assert_eq!(serde_json::from_str::<RememberedEnv>(&text).unwrap(), env);
    }
}
