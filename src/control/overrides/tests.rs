//! What overrides promise.

use std::num::NonZeroU32;

use chrono::Duration;

use super::*;
use crate::control::database::Place;
use crate::limiter::clock::Clock;
use crate::limiter::event::{Event, Observer};
use crate::limiter::gcra::Quota;
use crate::limiter::memory::Memory;
use crate::limiter::policy::Rules;

struct Nobody;

impl Observer for Nobody {
    fn observe(&self, _: &Event<'_>) {}
}

fn book() -> Arc<Book> {
    let ten = NonZeroU32::new(10).unwrap();
    let rules = Rules::by_ip(Quota::new(ten, 1_000_000, ten).unwrap());
    let limiter = Arc::new(Limiter::new(rules, Memory::new(100), &[7; 16], Clock::system()));
    Book::new(limiter, Database::new(Place::Memory, 100, Arc::new(Nobody)), false)
}

fn body(key: &str) -> Body {
    Body {
        rule: "default".into(),
        policy: None,
        by: None,
        key: vec![key.into()],
        effect: Effect::Block,
        expires_at: None,
        reason: "a test".into(),
        created_by: "token:ana".into(),
        created_at: Utc::now(),
    }
}

fn entry(id: &str, version: u64, updated_at: u64, draw: u32, key: Option<&str>) -> Entry {
    let updated_at = u64::try_from(Utc::now().timestamp_micros()).unwrap() + updated_at;
    Entry { id: id.into(), version, updated_at, draw, body: key.map(body), ended_at: None, ran_out: false }
}

#[test]
fn versions_meet_in_any_order_and_any_number_of_times_with_one_outcome() {
    let at = 1;
    let versions = [
        entry("a", 1, at, 1, Some("192.0.2.1")),
        entry("a", 2, at, 9, Some("192.0.2.2")),
        entry("a", 2, at + 1_000_000, 1, Some("192.0.2.3")),
        entry("a", 3, at, 4, None),
        entry("b", 1, at, 5, Some("192.0.2.5")),
        entry("b", 1, at, 5, None),
    ];
    let orders: [[usize; 6]; 4] =
        [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [3, 5, 0, 4, 2, 1], [2, 0, 4, 3, 5, 1]];
    let outcomes: Vec<(Vec<Entry>, String)> = orders
        .iter()
        .map(|order| {
            let book = book();
            for &at in order.iter().chain(order) {
                book.merge(vec![versions[at].clone()], Origin::Fleet);
            }
            (book.all(), book.digest())
        })
        .collect();
    assert!(outcomes.iter().all(|outcome| *outcome == outcomes[0]), "{outcomes:?}");
    assert_eq!(outcomes[0].0, [versions[3].clone(), versions[5].clone()]);
}

#[test]
fn what_is_taken_back_does_not_come_back_with_one_who_was_away() {
    let (here, away) = (book(), book());
    let made = here.put("a", body("192.0.2.1"), None).unwrap().is;
    away.merge(vec![made.clone()], Origin::Fleet);
    let deleted = here.delete("a", None).unwrap().is;
    assert!(deleted.body.is_none() && deleted.supersedes(&made));
    here.are_shared(&here.all());
    here.merge(away.all(), Origin::Redis);
    assert!(here.get("a").is_none());
    assert_eq!(here.to_bring(9), [deleted], "Redis, which had the older one, is told");
    away.merge(here.all(), Origin::Fleet);
    assert!(away.get("a").is_none());
    assert_eq!(here.digest(), away.digest());
    // Made anew, it is newer than all that was.
    let again = here.put("a", body("192.0.2.1"), None).unwrap().is;
    assert_eq!((again.version, here.get("a").is_some()), (3, true));
}

#[test]
fn what_runs_out_ends_by_itself_and_for_whom_it_was_is_forgotten() {
    let book = book();
    let now = Utc::now();
    let ends = Body { expires_at: Some(now + Duration::seconds(60)), ..body("192.0.2.1") };
    book.put("a", ends, None).unwrap();
    book.put("b", body("192.0.2.2"), None).unwrap();
    let before = book.digest();
    book.prune(now + Duration::seconds(59));
    assert!(book.all().iter().all(|entry| entry.body.is_some()));
    book.prune(now + Duration::seconds(61));
    let all = book.all();
    assert!(all[0].body.is_none() && all[1].body.is_some());
    assert_eq!(book.digest(), before, "no version is new");
    book.prune(now + Duration::days(29));
    assert_eq!(book.all().len(), 2, "who was away must not bring it back");
    book.prune(now + Duration::days(31));
    assert_eq!(book.all().len(), 1);
    assert_ne!(book.digest(), before);
}

#[test]
fn one_subject_has_one_override_however_it_is_spelled() {
    for (first, other) in [
        ("192.0.2.1", "::ffff:192.0.2.1"),
        ("2001:db8::1", "2001:DB8:0:0:0::1"),
        ("2001:db8::1", "2001:db8::2"),
        ("2001:db8::/64", "2001:db8::2"),
    ] {
        let book = book();
        book.put("a", body(first), None).unwrap();
        for by in [None, Some("ip".to_owned())] {
            let refused = book.put("b", Body { by, ..body(other) }, None);
            assert!(matches!(&refused, Err(Refusal::Taken(id)) if id == "a"), "{first} {other}: {refused:?}");
        }
        // Under one policy of several it may have its own beside.
        let under_one = Body { policy: Some("default".into()), ..body(other) };
        assert!(book.put("b", under_one, None).is_ok());
        assert!(book.put("c", body("192.0.2.9"), None).is_ok());
    }
}

#[test]
fn there_are_so_many_and_no_more() {
    let book = book();
    let entries =
        (0..MOST).map(|number| entry(&format!("id-{number}"), 1, 0, 1, Some(&format!("key-{number}"))));
    book.merge(entries.collect(), Origin::Fleet);
    assert!(matches!(book.put("one", body("192.0.2.1"), None), Err(Refusal::TooMany)));
    book.delete("id-77", None).unwrap();
    assert!(book.put("one", body("192.0.2.1"), None).is_ok());
}

#[test]
fn what_no_instance_can_have_written_is_passed_over() {
    let book = book();
    let odd = [
        Entry { version: 1 << 50, ..entry("a", 1, 0, 1, Some("x")) },
        Entry { updated_at: 1 << 60, ..entry("a", 1, 0, 1, Some("x")) },
        entry("no id", 1, 0, 1, Some("x")),
        entry("a", 1, 0, 1, Some(&"x".repeat(5_000))),
        Entry { body: Some(Body { key: Vec::new(), ..body("x") }), ..entry("a", 1, 0, 1, None) },
        Entry { ended_at: Some(0), ..entry("a", 1, 0, 1, None) },
    ];
    book.merge(odd.to_vec(), Origin::Redis);
    assert!(book.all().is_empty());
}
