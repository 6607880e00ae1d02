//! What a full table keeps: clients that are being denied, and the keys of every policy.

use std::num::NonZeroU32;

use crate::limiter::calendar::{Span, Unit};
use crate::limiter::charge::Charge;
use crate::limiter::clock::{Micros, SECOND};
use crate::limiter::gcra::Quota;
use crate::limiter::memory::Memory;
use crate::limiter::share::Share;
use crate::limiter::subject::{PolicyTag, ProcessKey, Subject};

const NOW: Micros = 1_800_000_000 * SECOND;
const DAY: Micros = 24 * 3_600 * SECOND;

/// One policy of a table that is too small.
struct Policy {
    tag: PolicyTag,
    quota: Quota,
    span: Option<Span>,
}

fn n(value: u32) -> NonZeroU32 {
    NonZeroU32::new(value).unwrap()
}

/// So many in such a time, all of them at once if need be.
fn bucket(name: &str, limit: u32, period: Micros) -> Policy {
    Policy { tag: PolicyTag::of(name), quota: Quota::new(n(limit), period, n(limit)).unwrap(), span: None }
}

/// So many each day, of which half is over.
fn day(name: &str, limit: u32) -> Policy {
    let start = NOW - DAY / 2;
    let span = Span { start, end: start + DAY, next: start + 2 * DAY, ahead: 0 };
    Policy { tag: PolicyTag::of(name), quota: Quota::each(n(limit), Unit::Day).unwrap(), span: Some(span) }
}

/// What a client, whose number it is, owes under these policies.
fn owed(policies: &[Policy], client: u64) -> Vec<Charge> {
    let identity = Subject::ip().identity_of(&client.to_be_bytes());
    let key = ProcessKey::new(&[7; 16]).hash(&identity);
    let charge = |policy: &Policy| Charge {
        key: key.under(policy.tag),
        quota: policy.quota,
        span: policy.span,
        cost: 1,
        share: Share::WHOLE,
        enforce: true,
    };
    policies.iter().map(charge).collect()
}

/// One request. True when it is admitted.
fn hit(memory: &Memory, policies: &[Policy], client: u64, now: Micros) -> bool {
    memory.charge(&owed(policies, client), false, now).iter().all(|reading| reading.allowed)
}

/// A request of each of so many clients that come once, `apart` from each other. Returns when the last was.
fn strangers(
    memory: &Memory,
    policies: &[Policy],
    clients: std::ops::Range<u64>,
    (now, apart): (Micros, Micros),
) -> Micros {
    let mut now = now;
    for client in clients {
        hit(memory, policies, client, now);
        now += apart;
    }
    now
}

const ABUSER: u64 = u64::MAX;

/// Ten a minute alone, beside a window of a day, beside a bucket of a day.
fn rows() -> [(&'static str, Vec<Policy>); 3] {
    let short = || bucket("short", 10, 60 * SECOND);
    [
        ("alone", vec![short()]),
        ("beside 1000 each day", vec![short(), day("long", 1_000)]),
        ("beside 1000 a day", vec![short(), bucket("long", 1_000, DAY)]),
    ]
}

/// 600 requests of the abuser, each followed by ten strangers, in less than the six seconds of one unit.
fn attack(memory: &Memory, policies: &[Policy]) -> (usize, Micros) {
    let (mut admitted, mut now) = (0, NOW);
    for request in 0..600 {
        admitted += usize::from(hit(memory, policies, ABUSER, now));
        now = strangers(memory, policies, request * 10..request * 10 + 10, (now, 900));
    }
    (admitted, now)
}

#[test]
fn short_limit_holds_beside_a_long_one_in_a_full_table() {
    for (row, policies) in rows() {
        let memory = Memory::new(1_000);
        let (admitted, now) = attack(&memory, &policies);
        assert_eq!(admitted, 10, "{row}");
        assert!(now < NOW + 6 * SECOND && memory.evicted_in_debt() > 1_000, "{row}");
        // The clock does not move, so no unit drains: what is admitted now was given by an eviction.
        strangers(&memory, &policies, 10_000..100_000, (now, 0));
        assert!(!hit(&memory, &policies, ABUSER, now), "{row}");
    }
}

#[test]
fn strangers_evict_no_client_that_is_denied() {
    denied_clients_outlast(200_000);
}

mod soak {
    #[test]
    fn ten_million_strangers_evict_no_client_that_is_denied() {
        super::denied_clients_outlast(if std::env::var_os("TIDEGATE_SOAK").is_some() {
            10_000_000
        } else {
            1
        });
    }
}

fn denied_clients_outlast(count: u64) {
    let policies = [day("long", 1_000), bucket("short", 10, 60 * SECOND)];
    let memory = Memory::new(1_000);
    let clients = 0..20;
    for client in clients.clone() {
        assert_eq!((0..12).filter(|_| hit(&memory, &policies[1..], client, NOW)).count(), 10);
    }
    // The long policy first: its keys hold every place but twenty when the short one begins.
    strangers(&memory, &policies[..1], 1_000..1_000 + count / 2, (NOW, 0));
    strangers(&memory, &policies[1..], 20_000_000..20_000_000 + count / 2, (NOW, 0));
    for client in clients {
        assert!(!hit(&memory, &policies[1..], client, NOW), "{client}");
    }
}

#[test]
fn flood_under_one_policy_takes_its_equal_part_at_most() {
    let policies = [bucket("flooded", 2, 60 * SECOND), bucket("other", 1_000, DAY)];
    let memory = Memory::new(1_000);
    let held = |clients: std::ops::Range<u64>| {
        let known =
            |client: &u64| memory.charge(&owed(&policies[1..], *client), true, NOW)[0].remaining < 1_000;
        clients.filter(known).count()
    };
    // As full as can be at half of its limit, against a thousandth: by fill alone the others would all go.
    strangers(&memory, &policies[1..], 0..400, (NOW, 0));
    strangers(&memory, &policies[..1], 10_000..200_000, (NOW, 0));
    // Shards differ in how many of the 400 they got: those that got more than half of their room keep half.
    assert!(held(0..400) >= 380, "{} of 400 are left", held(0..400));

    let memory = Memory::new(1_000);
    let held = |clients: std::ops::Range<u64>| {
        let known =
            |client: &u64| memory.charge(&owed(&policies[1..], *client), true, NOW)[0].remaining < 1_000;
        clients.filter(known).count()
    };
    strangers(&memory, &policies[1..], 0..5_000, (NOW, 0));
    strangers(&memory, &policies[..1], 10_000..200_000, (NOW, 0));
    assert!(held(0..5_000).abs_diff(500) < 10, "{} of 1000 are left", held(0..5_000));
}

/// Were every place kept by clients that are denied, a new abuser would never be held until its limit.
#[test]
fn table_full_of_denied_clients_still_denies_a_new_abuser() {
    let policies = [bucket("p", 3, DAY)];
    let memory = Memory::new(64_000);
    for client in 0..200_000 {
        (0..4).for_each(|_| _ = hit(&memory, &policies, client, NOW));
    }
    let mut now = NOW;
    for request in 0..10_000 {
        now =
            strangers(&memory, &policies, 1_000_000 + request * 10..1_000_000 + request * 10 + 10, (now, 10));
        hit(&memory, &policies, ABUSER, now);
    }
    let admitted = (0..100).filter(|_| hit(&memory, &policies, ABUSER, now)).count();
    assert_eq!(admitted, 0);
    let denied =
        (0..200_000).filter(|&client| !memory.charge(&owed(&policies, client), true, now)[0].allowed);
    assert!(denied.count() > 40_000, "most of those that were denied before are denied still");
}

/// An override gives a key a limit of its own: its fill is of that.
#[test]
fn fill_is_of_the_key_s_own_limit() {
    let policy = [bucket("p", 1_000, DAY)];
    let own = |client: u64| {
        let quota = bucket("own", 10, DAY / 100).quota;
        Charge { quota, ..owed(&policy, client)[0] }
    };
    let memory = Memory::new(1_000);
    for client in 0..100 {
        assert_eq!((0..10).filter(|_| memory.charge(&[own(client)], false, NOW)[0].allowed).count(), 10);
    }
    // Under the policy's limit their 864 seconds are a hundredth; these owe ten times as much.
    for client in 1_000..100_000 {
        memory.charge(&[Charge { cost: 100, ..owed(&policy, client)[0] }], false, NOW);
    }
    for client in 0..100 {
        assert!(!memory.charge(&[own(client)], true, NOW)[0].allowed, "{client}");
    }
}
