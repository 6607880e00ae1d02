//! What the store in this process promises, one test a promise.

use std::num::NonZeroU32;
use std::sync::Barrier;
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::limiter::calendar::Span;
use crate::limiter::clock::SECOND;
use crate::limiter::eviction::CANDIDATES;
use crate::limiter::gcra::Quota;
use crate::limiter::store::Charged;

const NOW: Micros = 1_800_000_000 * SECOND;

/// One unit a second, so many at once.
fn quota(burst: u32) -> Quota {
    Quota::new(NonZeroU32::MIN, SECOND, NonZeroU32::new(burst).unwrap()).unwrap()
}

/// A key whose every bit depends on the number, as a hash's do.
fn key(number: u64) -> Key {
    let mix = |seed: u64| {
        let z = (number ^ seed).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 29)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 32)
    };
    // But for those that stand for the policy: all are of one.
    Key(mix(0x9E37_79B9_7F4A_7C15), mix(0x2545_F491_4F6C_DD1D) & !0xFFFF)
}

fn charge(number: u64, burst: u32, cost: u32) -> Charge {
    Charge { key: key(number), quota: quota(burst), span: None, cost, share: Share::WHOLE, enforce: true }
}

/// Windows of an hour that begin a second after [`NOW`].
const HOURS: Span = {
    let (start, hour) = (NOW + SECOND, 3_600 * SECOND);
    Span { start, end: start + hour, next: start + 2 * hour, ahead: 0 }
};

/// So many in each window of an hour.
fn hourly(number: u64, limit: u32, cost: u32) -> Charge {
    let quota = Quota::each(NonZeroU32::new(limit).unwrap(), crate::limiter::calendar::Unit::Hour).unwrap();
    Charge { quota, span: Some(HOURS), ..charge(number, 1, cost) }
}

/// What Redis said at [`NOW`] of the one bucket of a call.
fn told(reading: Reading) -> Charged {
    Charged {
        readings: Readings::from_elem(reading, 1),
        from: SmallVec::from_elem(NOW, 1),
        judged_at: NOW,
        last: SmallVec::new(),
        ahead: 0,
    }
}

/// The debt of a bucket of [`quota`], in whole units.
fn owed(memory: &Memory, number: u64, now: Micros) -> u32 {
    let reading = memory.charge(&[charge(number, 1_000, 0)], true, now)[0];
    1_000 - reading.remaining
}

#[test]
fn of_ten_thousand_simultaneous_hits_exactly_the_burst_passes() {
    let memory = Memory::new(1_000);
    let (passed, start) = (AtomicUsize::new(0), Barrier::new(8));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                start.wait();
                for _ in 0..1_250 {
                    if memory.charge(&[charge(1, 137, 1)], false, NOW)[0].allowed {
                        passed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert_eq!(passed.into_inner(), 137);
}

#[test]
fn of_simultaneous_hits_on_crossing_buckets_each_passes_both_or_neither() {
    let memory = Memory::new(100_000);
    let (passed, start) = (AtomicUsize::new(0), Barrier::new(4));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (memory, passed, start) = (&memory, &passed, &start);
            scope.spawn(move || {
                // Half of the threads name the two in the other order: nobody may wait for each other.
                let mut both = [charge(1, 500, 1), charge(2, 300, 1)];
                if thread % 2 == 1 {
                    both.reverse();
                }
                start.wait();
                for _ in 0..1_000 {
                    if memory.charge(&both, false, NOW).iter().all(|reading| reading.allowed) {
                        passed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert_eq!(passed.into_inner(), 300);
    assert_eq!((owed(&memory, 1, NOW), owed(&memory, 2, NOW)), (300, 300));
}

#[test]
fn several_policies_are_charged_together_or_not_at_all() {
    let memory = Memory::new(1_000);
    let both = [charge(1, 5, 1), charge(2, 2, 1)];
    for left in [1, 0] {
        let readings = memory.charge(&both, false, NOW);
        assert!(readings.iter().all(|reading| reading.allowed));
        assert_eq!(readings[1].remaining, left);
    }
    let readings = memory.charge(&both, false, NOW);
    assert_eq!((readings[0].allowed, readings[1].allowed), (true, false));
    assert_eq!(readings[1].retry_after, Some(SECOND));
    assert_eq!((owed(&memory, 1, NOW), owed(&memory, 2, NOW)), (2, 2));
}

#[test]
fn a_shadow_denial_neither_denies_nor_keeps_the_others_from_being_charged() {
    let memory = Memory::new(1_000);
    let shadow = Charge { enforce: false, ..charge(2, 1, 1) };
    for hit in 1..=3 {
        let readings = memory.charge(&[charge(1, 5, 1), shadow], false, NOW);
        assert!(readings[0].allowed);
        assert_eq!(readings[1].allowed, hit == 1);
        assert_eq!(owed(&memory, 1, NOW), hit);
    }
    assert_eq!(owed(&memory, 2, NOW), 1, "a full shadow bucket is not charged beyond its burst");
}

#[test]
fn a_peek_writes_nothing() {
    let memory = Memory::new(1_000);
    let peeked = memory.charge(&[charge(1, 5, 3)], true, NOW)[0];
    assert!(peeked.allowed);
    assert_eq!(peeked.remaining, 5, "what is left before the hit that is only asked about");
    memory.charge(&[charge(1, 5, 1), charge(2, 5, 1)], true, NOW);
    memory.charge(&[charge(1, 5, 0)], false, NOW);
    assert!(memory.is_empty());
}

#[test]
fn a_refund_gives_back_what_was_charged_and_nothing_that_was_not() {
    let memory = Memory::new(1_000);
    memory.charge(&[charge(1, 5, 3)], false, NOW);
    let both = [charge(1, 5, 2), Charge { enforce: false, ..charge(2, 1, 2) }];
    let readings = memory.charge(&both, false, NOW);
    assert_eq!((owed(&memory, 1, NOW), readings[1].allowed), (5, false));
    memory.refund(&both, &readings, NOW, NOW);
    assert_eq!((owed(&memory, 1, NOW), owed(&memory, 2, NOW)), (3, 0));
}

#[test]
fn a_late_refund_does_not_give_back_what_has_drained_already() {
    let memory = Memory::new(1_000);
    let hit = [charge(1, 2, 1)];
    let readings = memory.charge(&hit, false, NOW);
    let half_a_second_later = NOW + SECOND / 2;
    // Another hit, which stays. Alone it would leave a whole second of debt.
    memory.charge(&hit, false, half_a_second_later);
    memory.refund(&hit, &readings, NOW, half_a_second_later);
    let debt = memory.charge(&[charge(1, 2, 0)], true, half_a_second_later)[0].debt;
    assert_eq!(debt, SECOND);
}

#[test]
fn the_cap_holds_under_a_million_distinct_keys() {
    let memory = Memory::new(10_000);
    for number in 0..1_000_000 {
        assert!(memory.charge(&[charge(number, 1, 1)], false, NOW)[0].allowed);
    }
    assert!(memory.len() <= memory.capacity() && memory.capacity() <= 10_000);
    assert!(memory.len() > 9_900, "the room is used: {}", memory.len());
    assert_eq!(memory.evicted_in_debt(), 1_000_000 - memory.len() as u64);
}

#[test]
fn the_drained_and_the_least_indebted_are_evicted_first() {
    let memory = Memory::new(CANDIDATES);
    let keys = CANDIDATES as u32;
    for number in 1..=keys {
        memory.charge(&[charge(u64::from(number), 1_000, number)], false, NOW);
    }
    assert_eq!(memory.len(), CANDIDATES);

    memory.charge(&[charge(1_000, 1_000, 500)], false, NOW);
    assert_eq!((owed(&memory, 1, NOW), owed(&memory, 2, NOW)), (0, 2), "one unit was the least");
    assert_eq!(memory.evicted_in_debt(), 1);

    let later = NOW + 10 * SECOND;
    for number in 1_001..1_010 {
        memory.charge(&[charge(number, 1_000, 500)], false, later);
    }
    assert_eq!(memory.evicted_in_debt(), 1, "two to ten had drained, and their going costs nobody a thing");
    for number in 11..=keys {
        assert_eq!(owed(&memory, u64::from(number), later), number - 10);
    }
}

#[test]
fn whoever_is_throttled_stays_throttled_while_a_million_others_pass_by_once() {
    let memory = Memory::new(10_000);
    let throttled = 0..100;
    for number in throttled.clone() {
        assert!(memory.charge(&[charge(number, 10, 10)], false, NOW)[0].allowed);
    }
    for number in 1_000..1_001_000 {
        memory.charge(&[charge(number, 10, 1)], false, NOW);
    }
    assert!(memory.evicted_in_debt() > 900_000 && memory.len() <= 10_000);
    for number in throttled {
        let hit = charge(number, 10, 1);
        assert!(!memory.charge(&[hit], false, NOW)[0].allowed, "{number} lost its debt to whoever owed less");
    }
}

#[test]
fn a_sweep_forgets_drained_keys_and_gives_memory_back() {
    let memory = Memory::new(200_000);
    let sweep_all = |now| (0..memory.shards()).for_each(|shard| memory.sweep(shard, now));
    let room = || -> usize { memory.shards.iter().map(|shard| shard.0.lock().entries.capacity()).sum() };
    for number in 0..100_000 {
        memory.charge(&[charge(number, 10, if number < 100 { 10 } else { 1 })], false, NOW);
    }
    sweep_all(NOW);
    assert_eq!(memory.len(), 100_000, "nobody has drained yet");
    assert!(room() >= 100_000);
    sweep_all(NOW + SECOND);
    assert_eq!(memory.len(), 100);
    assert!(room() < 20_000, "{}", room());
    assert!((0..100).all(|number| owed(&memory, number, NOW + SECOND) == 9));
}

#[test]
fn an_entry_is_24_bytes() {
    assert_eq!(size_of::<Entry>(), 24);
}

#[test]
fn no_two_shards_share_a_cache_line() {
    assert_eq!(align_of::<Padded>(), 64);
}

#[path = "memory_in_flight_tests.rs"]
mod in_flight;
#[path = "memory_invariant_tests.rs"]
mod invariant;
#[path = "memory_window_tests.rs"]
mod windows;
