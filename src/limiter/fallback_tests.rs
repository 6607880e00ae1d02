//! The fallback bucket beside the bucket of its key, and what Redis teaches about the share: whole fleets by the real
//! arithmetic, on a clock that the test drives.

use std::num::NonZeroU32;

use smallvec::SmallVec;

use super::*;
use crate::limiter::calendar::{Calendar, Unit};
use crate::limiter::gcra::Quota;
use crate::limiter::store::{Charged, Charger};
use crate::limiter::subject::{PolicyTag, ProcessKey, Subject};

const NOW: Micros = 1_800_000_000 * SECOND;

/// One unit a second, so many at once.
fn quota(burst: u32) -> Quota {
    Quota::new(NonZeroU32::MIN, SECOND, NonZeroU32::new(burst).unwrap()).unwrap()
}

fn charge(number: u8, burst: u32, cost: u32) -> Charge {
    let key = ProcessKey::new(&[7; 16]).hash(&Subject::ip().identity_of(&[192, 0, 2, number]));
    let key = key.under(PolicyTag::of("p"));
    Charge { key, quota: quota(burst), span: None, cost, share: Share::WHOLE, enforce: true }
}

/// What Redis said at [`NOW`] of the one bucket of a call.
fn told(reading: Reading) -> Charged {
    let readings = Readings::from_elem(reading, 1);
    let from = SmallVec::from_elem(NOW, 1);
    Charged { readings, from, judged_at: NOW, last: SmallVec::new(), ahead: 0 }
}

/// What instances of equal shares admit together of a key that gets requests all the time, in units that the limit would
/// have allowed one of them.
fn admitted_in_fallback(
    instances: u32,
    charge: impl Fn(Micros) -> Charge,
    every: Micros,
    lasts: Micros,
) -> u32 {
    let share = Share::one_of(NonZeroU32::new(instances).unwrap());
    let fleet: Vec<Memory> = (0..instances).map(|_| Memory::new(1_000)).collect();
    let (mut admitted, mut sent, mut now) = (0, 0_u32, NOW);
    while now < NOW + lasts {
        let memory = &fleet[(sent * 11 % instances) as usize];
        let asked = [charge(now)];
        let here = [Charge { share, ..asked[0] }];
        let reading = memory.depart(&asked, false, now).decide_here(&here, now)[0];
        admitted += if reading.allowed { asked[0].cost } else { 0 };
        sent += 1;
        now += every;
    }
    admitted
}

#[test]
fn fallback_keeps_rate_and_burst_of_any_burst() {
    for instances in [1, 2, 4, 7, 8, 20] {
        for (burst, cost) in [(1, 1), (2, 1), (2, 2), (5, 1), (20, 1), (20, 5)] {
            // One unit a second for ten minutes, asked for four times as often of each instance.
            let units = 600;
            let every = SECOND / 4 / u64::from(instances);
            let one = |_| charge(1, burst, cost);
            let admitted = admitted_in_fallback(instances, one, every, 600 * SECOND);
            let of_limit = f64::from(admitted) / f64::from(units);
            assert!(
                of_limit <= 1.1,
                "{of_limit} of the limit by {instances} at a burst of {burst}, cost {cost}"
            );
            assert!(
                of_limit >= 0.9,
                "{of_limit} of the limit by {instances} at a burst of {burst}, cost {cost}"
            );
        }
    }
}

#[test]
fn fallback_keeps_the_limit_of_windows() {
    let calendar = Calendar::new(Unit::Minute, "UTC").unwrap();
    for instances in [1, 2, 4, 7, 8, 20] {
        for limit in [1, 2, 5, 20] {
            let minutes = 60;
            let quota = Quota::each(NonZeroU32::new(limit).unwrap(), Unit::Minute).unwrap();
            let one = |now| Charge { quota, span: Some(calendar.span(now, 0)), ..charge(1, 1, 1) };
            let every = 3 * SECOND / u64::from(instances);
            let admitted = admitted_in_fallback(instances, one, every, minutes * 60 * SECOND);
            let of_limit = f64::from(admitted) / f64::from(limit * minutes as u32);
            assert!(of_limit <= 1.1, "{of_limit} of {limit} a minute by {instances}");
            // Whole units of whole windows: less than one is lost in each.
            assert!(of_limit >= 0.5, "{of_limit} of {limit} a minute by {instances}");
        }
    }
}

#[test]
fn fallback_admits_a_client_that_waits_as_told() {
    let calendar = Calendar::new(Unit::Minute, "UTC").unwrap();
    let share = Share::one_of(NonZeroU32::new(8).unwrap());
    let minutes = Quota::each(NonZeroU32::new(5).unwrap(), Unit::Minute).unwrap();
    let window =
        |cost, now| Charge { quota: minutes, span: Some(calendar.span(now, 0)), ..charge(1, 1, cost) };
    let bucket = |cost, _| charge(1, 3, cost);
    let kinds: [&dyn Fn(u32, Micros) -> Charge; 2] = [&window, &bucket];
    for one in kinds {
        for cost in [1, 3] {
            let (memory, mut now) = (Memory::new(1_000), NOW + 17);
            for _ in 0..50 {
                let ask = |peek, now| {
                    let asked = [one(cost, now)];
                    let here = [Charge { share, ..asked[0] }];
                    memory.depart(&asked, peek, now).decide_here(&here, now)[0]
                };
                assert!(ask(true, now).remaining > 0, "{now}: what is admitted is left");
                assert!(ask(false, now).allowed, "{now}");
                let denied = ask(false, now);
                let wait = denied.retry_after.unwrap();
                assert!(!denied.allowed && denied.remaining == 0, "{denied:?}");
                assert!(!ask(false, now + wait - 1).allowed, "not a moment sooner than {wait}");
                now += wait;
            }
        }
    }
}

#[test]
fn fallback_of_a_smaller_limit_denies_nobody_for_longer_than_it_takes() {
    let share = Share::one_of(NonZeroU32::new(10).unwrap());
    let memory = Memory::new(1_000);
    let day = Quota::new(NonZeroU32::MIN, 86_400 * SECOND, NonZeroU32::MIN).unwrap();
    let decide = |asked: Charge, now| {
        let here = [Charge { share, ..asked }];
        memory.depart(&[asked], false, now).decide_here(&here, now)[0]
    };
    assert!(decide(Charge { quota: day, ..charge(1, 1, 1) }, NOW).allowed);
    let denied = decide(charge(1, 1, 1), NOW + 6 * SECOND);
    let wait = denied.retry_after.unwrap();
    assert!(!denied.allowed && wait <= 15 * SECOND, "{denied:?}");
    assert!(decide(charge(1, 1, 1), NOW + 6 * SECOND + wait).allowed);
}

#[test]
fn fallback_gives_back_what_it_took() {
    let share = Share::one_of(NonZeroU32::new(4).unwrap());
    let memory = Memory::new(1_000);
    let asked = [charge(1, 1, 1)];
    let here = [Charge { share, ..asked[0] }];
    let decide = |now| memory.depart(&asked, false, now).decide_here(&here, now);
    let taken = decide(NOW);
    assert!(taken[0].allowed && !decide(NOW + SECOND)[0].allowed);
    memory.refund(&here, &taken, NOW, NOW + SECOND);
    memory.refund_fallback(&here[0], NOW, NOW + SECOND);
    assert!(decide(NOW + SECOND)[0].allowed);
    memory.forgive(asked[0].key);
    assert!(decide(NOW + SECOND)[0].allowed, "what an operator resets holds nothing");
}

/// A fleet's debt in Redis is no debt of this instance: only what it charged itself since counts against its share.
#[test]
fn share_of_a_store_that_is_back_is_held_against_own_charges_only() {
    let share = Share::one_of(NonZeroU32::new(4).unwrap());
    let memory = Memory::new(1_000);
    let at_share = |number, burst| [Charge { share, ..charge(number, burst, 1) }];
    let denied = |number, burst, now| memory.denies_by_share(&at_share(number, burst), now).is_some();
    // Redis told of a debt before the outage, nothing was charged since.
    memory.depart(&[charge(1, 3, 1)], false, NOW).answered(told(quota(3).reading(2 * SECOND, 1, true)), NOW);
    assert!(!denied(1, 3, NOW));
    // One of eight was charged here in the outage: there is one left of the two that are its share.
    let decide = |burst, now| {
        let asked = [charge(2, burst, 1)];
        memory.depart(&asked, false, now).decide_here(&at_share(2, burst), now)[0].allowed
    };
    assert!(decide(8, NOW) && !denied(2, 8, NOW));
    assert!(decide(8, NOW) && denied(2, 8, NOW));
    assert!(memory.denies(&[charge(2, 8, 1)], 0, NOW).is_none(), "what is known is not the store's word");
    assert!(memory.is_unconfirmed(&charge(2, 8, 1), NOW));
    assert!(!denied(2, 8, NOW + 4 * SECOND), "a quarter of the rate");
    // Redis has answered for the key: it decides.
    let asked = [charge(2, 8, 1)];
    let call = memory.depart(&asked, false, NOW);
    assert_eq!(call.notes().next().unwrap().0, 8 * SECOND, "what is known rides on the call");
    call.answered(told(quota(8).reading(8 * SECOND, 1, false)), NOW);
    assert!(!denied(2, 8, NOW) && !memory.is_unconfirmed(&charge(2, 8, 1), NOW));
    assert!(memory.denies(&asked, 0, NOW).is_some(), "now it is");
}

#[test]
fn every_charge_that_follows_another_teaches_the_share() {
    let memory = Memory::new(1_000);
    let one = [charge(1, 1_000, 1)];
    let answer = |last: Option<Charger>| {
        let told = told(quota(1_000).reading(SECOND, 1, true));
        Charged { last: SmallVec::from_elem(last, 1), ..told }
    };
    for _ in 0..50 {
        memory.depart(&one, false, NOW).answered(answer(None), NOW);
        drop(memory.depart(&one, false, NOW));
    }
    for _ in 0..30 {
        memory.depart(&one, false, NOW).answered(answer(Some(Charger::This)), NOW);
    }
    assert_eq!(memory.share(), None, "an empty bucket and a dropped call teach nothing");
    // Ten calls for one key under way at once, which is what a hot key looks like.
    for _ in 0..9 {
        let under_way: Vec<_> = (0..10).map(|_| memory.depart(&one, false, NOW)).collect();
        under_way.into_iter().for_each(|call| _ = call.answered(answer(Some(Charger::Other)), NOW));
    }
    assert_eq!(memory.share().unwrap().as_f64(), 0.25);
}
