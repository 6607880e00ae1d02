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

#[test]
fn a_passage_in_flight_counts_as_granted_for_whoever_is_decided_here() {
    let memory = Memory::new(1_000);
    let one = [charge(1, 2, 1)];
    let passage = memory.depart(&one, false, NOW);
    assert!(memory.charge(&one, false, NOW)[0].allowed);
    assert!(!memory.charge(&one, false, NOW)[0].allowed, "the other unit may be granted by Redis");
    assert!(!memory.charge(&[one[0], charge(2, 5, 1)], false, NOW)[0].allowed, "nor beside another policy");
    assert!(passage.decide_here(&one, NOW)[0].allowed, "nor by itself, once it is decided here");
    assert!(!memory.charge(&one, false, NOW)[0].allowed);
}

#[test]
fn answers_that_overtake_each_other_deny_nobody_whom_redis_granted() {
    // Interval 1 s. Redis grants the first at NOW and the others as soon as it can; their answers come back in reverse.
    for (burst, grants) in [(1, vec![0, SECOND, 2 * SECOND]), (3, vec![0, 10, 20, SECOND, 2 * SECOND])] {
        let memory = Memory::new(1_000);
        let one = [charge(1, burst, 1)];
        let tolerance = one[0].quota.tolerance();
        let (mut full_at, mut calls) = (0, Vec::new());
        for &after in &grants {
            let passage = memory.depart(&one, false, NOW);
            let at = NOW + after;
            full_at = at.max(full_at) + SECOND;
            assert!(full_at <= at + tolerance, "the test's own Redis grants too much");
            calls.push((passage, at, full_at - at));
        }
        for (passage, at, debt) in calls.into_iter().rev() {
            let reading = one[0].quota.reading(debt, 1, true);
            let readings = passage.answered(Charged { judged_at: at, ..told(reading) }, NOW + 3 * SECOND);
            assert!(readings[0].allowed, "burst {burst}, granted {} us after the first", at - NOW);
        }
    }
}

#[test]
fn a_hit_that_costs_nothing_is_never_denied_whatever_is_in_flight() {
    let memory = Memory::new(1_000);
    let all = [charge(1, 2, 2)];
    assert!(memory.charge(&all, false, NOW)[0].allowed);
    let passage = memory.depart(&all, false, NOW);
    let nothing = memory.charge(&[charge(1, 2, 0)], true, NOW)[0];
    assert_eq!((nothing.allowed, nothing.remaining, nothing.debt), (true, 0, 2 * SECOND));
    drop(passage);
}

#[test]
fn a_debt_of_a_greater_limit_drains_from_the_smaller_one_as_soon_as_it_is_asked_for() {
    let memory = Memory::new(1_000);
    for number in 1..=3 {
        assert!(memory.charge(&[charge(number, 1_000, 1_000)], false, NOW)[0].allowed);
    }
    let now = NOW + SECOND;
    // By itself, beside another policy, and as the note of a call to Redis.
    assert_eq!(memory.charge(&[charge(1, 10, 1)], false, now)[0].retry_after, Some(SECOND));
    let beside = [charge(2, 10, 1), charge(9, 5, 1)];
    assert_eq!(memory.charge(&beside, false, now)[0].retry_after, Some(SECOND));
    let note = |now| memory.depart(&[charge(3, 10, 1)], false, now).notes().next();
    assert_eq!(note(now), Some((10 * SECOND, None)));
    let later = now + SECOND;
    assert!(memory.charge(&[charge(1, 10, 1)], false, later)[0].allowed, "it came back as it was told");
    assert!(memory.charge(&beside, false, later)[0].allowed);
    assert_eq!(note(later), Some((9 * SECOND, None)));
}

#[test]
fn whoever_waits_as_told_is_admitted_however_much_greater_the_limit_was_before() {
    for before in [11, 12, 14, 15, 16, 30, 1_000] {
        let memory = Memory::new(1_000);
        for number in 1..=3 {
            assert!(memory.charge(&[charge(number, before, before)], false, NOW)[0].allowed);
        }
        let other = charge(9, 5, 0);
        for number in 1..=2 {
            let mine = charge(number, 10, 3);
            let all = if number == 1 { vec![mine] } else { vec![mine, other] };
            let peeked = memory.charge(&all, true, NOW)[0];
            let denied = memory.charge(&all, false, NOW)[0];
            let wait = denied.retry_after.unwrap();
            assert_eq!((denied.allowed, denied.remaining, denied.debt), (false, 0, 10 * SECOND), "{before}");
            assert_eq!(peeked, denied, "a peek tells the same");
            assert!(!memory.charge(&all, false, NOW + wait - 1)[0].allowed, "{before}: not a moment sooner");
            assert!(memory.charge(&all, false, NOW + wait)[0].allowed, "{before}: waited {wait} us");
        }
    }
}

#[test]
fn what_is_known_keeps_nobody_out_for_longer_than_it_says_however_much_greater_the_limit_was_before() {
    for before in [9, 11, 12, 14, 15, 16, 30, 1_000] {
        let memory = Memory::new(1_000);
        assert!(memory.charge(&[charge(1, before, before)], false, NOW)[0].allowed);
        let mine = [charge(1, 10, 3)];
        let denies = |now| memory.denies(&mine, 0, now);
        let denied = denies(NOW).unwrap()[0];
        let wait = denied.retry_after.unwrap();
        assert!(!denied.allowed);
        assert!(denies(NOW + wait - 1).is_some(), "{before}: not a moment sooner");
        assert!(denies(NOW + wait).is_none(), "{before}: waited {wait} us");
    }
}

#[test]
fn whoever_is_denied_by_the_share_alone_is_told_when_to_come_back() {
    let memory = Memory::new(1_000);
    let quarter = Share::one_of(NonZeroU32::new(4).unwrap());
    // Of eight, three more fit: less than the four that one hit stands for.
    assert!(memory.charge(&[charge(1, 8, 5)], false, NOW)[0].allowed);
    let one = [Charge { share: quarter, ..charge(1, 8, 1) }];
    for denied in [memory.charge(&one, false, NOW)[0], memory.denies(&one, 0, NOW).unwrap()[0]] {
        assert_eq!((denied.allowed, denied.retry_after), (false, Some(SECOND)));
    }
    assert!(memory.charge(&one, false, NOW + SECOND)[0].allowed);

    let now = HOURS.start;
    assert!(memory.charge(&[hourly(2, 8, 5)], false, now)[0].allowed);
    let denied = memory.charge(&[Charge { share: quarter, ..hourly(2, 8, 1) }], false, now)[0];
    assert_eq!((denied.allowed, denied.retry_after), (false, Some(HOURS.end - now)));
}

#[test]
fn a_dropped_passage_keeps_its_charge_as_debt_and_one_given_up_does_not() {
    let memory = Memory::new(1_000);
    let (first, second) = ([charge(1, 2, 2)], [charge(2, 2, 2)]);
    let passages = [&first, &second].map(|all| memory.depart(all, false, NOW));
    assert!(!memory.charge(&first, false, NOW)[0].allowed && !memory.charge(&second, false, NOW)[0].allowed);
    let [given_up, dropped] = passages;
    given_up.give_up();
    drop(dropped);
    assert!(memory.charge(&first, false, NOW)[0].allowed);
    assert!(!memory.charge(&second, false, NOW)[0].allowed, "Redis may have charged it");
    assert!(memory.charge(&second, false, NOW + 2 * SECOND)[0].allowed);
    assert_eq!(memory.shard(0).voyages.len(), 0);
    // A key that was reset meanwhile owes nothing, and neither does one whose answers say more.
    let passage = memory.depart(&first, false, NOW + 2 * SECOND);
    memory.forgive(first[0].key);
    drop(passage);
    assert!(memory.charge(&first, true, NOW + 2 * SECOND)[0].allowed);
}

#[test]
fn dropped_passage_teaches_nothing_of_other_instances() {
    let memory = Memory::new(1_000);
    let one = [charge(1, 1_000, 1)];
    for round in 1..=100 {
        drop(memory.depart(&one, false, NOW));
        // Redis had charged it as well.
        let answered = told(quota(1_000).reading(2 * round * SECOND, 1, true));
        memory.depart(&one, false, NOW).answered(answered, NOW);
    }
    let share = memory.share().map(Share::as_f64);
    assert!(share.is_none_or(|share| share > 0.95), "{share:?}");
}

#[test]
fn dropped_passages_at_once_keep_the_debt_of_each_and_no_answer_twice() {
    let memory = Memory::new(1_000);
    let one = [charge(1, 10, 1)];
    let mut calls: Vec<_> = (0..4).map(|_| memory.depart(&one, false, NOW)).collect();
    // The third is answered: Redis had charged the first two before it.
    let third = calls.remove(2);
    let told = told(quota(10).reading(3 * SECOND, 1, true));
    assert!(third.answered(told, NOW)[0].allowed);
    let left = || memory.charge(&one, true, NOW)[0].remaining;
    drop(calls.remove(0));
    drop(calls.remove(0));
    drop(calls.remove(0));
    assert_eq!(left(), 6, "four units in all");
}

#[test]
fn what_redis_told_is_what_memory_judges_from() {
    let memory = Memory::new(1_000);
    let one = [charge(1, 3, 1)];
    let told = told(quota(3).reading(3 * SECOND, 1, true));
    assert!(memory.depart(&one, false, NOW).answered(told, NOW)[0].allowed);
    assert!(!memory.charge(&one, false, NOW)[0].allowed);
    assert_eq!(memory.depart(&one, false, NOW + SECOND).notes().next(), Some((2 * SECOND, None)));
}

#[test]
fn of_two_grants_by_a_redis_that_forgot_between_them_the_second_is_denied_after_all() {
    let memory = Memory::new(1_000);
    let all = [charge(1, 3, 3)];
    let told = || told(quota(3).reading(3 * SECOND, 3, true));
    let (first, second) = (memory.depart(&all, false, NOW), memory.depart(&all, false, NOW));
    assert!(first.answered(told(), NOW)[0].allowed);
    assert!(!second.answered(told(), NOW)[0].allowed);
}

#[test]
fn only_a_key_that_was_charged_here_while_nothing_was_known_of_it_may_have_got_a_fresh_budget() {
    let memory = Memory::new(1_000);
    let decide = |charges: &[Charge], peek: bool| {
        let passage = memory.depart(charges, peek, NOW);
        passage.decide_here(charges, NOW)
    };
    assert!(memory.charge(&[charge(1, 1, 1)], false, NOW)[0].allowed);
    let denied = decide(&[charge(1, 1, 1), charge(2, 5, 1)], false);
    assert!(!denied[0].allowed && denied[1].allowed);
    decide(&[charge(2, 5, 1)], true);
    decide(&[charge(2, 5, 0)], false);
    assert_eq!(memory.decided_unknown(), 0, "nothing was given to anybody");
    for _ in 0..2 {
        assert!(decide(&[charge(2, 5, 1)], false)[0].allowed);
    }
    assert_eq!(memory.decided_unknown(), 1);
}

#[test]
fn a_window_admits_its_limit_and_the_next_one_as_many_again() {
    let memory = Memory::new(1_000);
    for (from, last) in [(NOW, HOURS.start - 1), (HOURS.start, HOURS.end - 1), (HOURS.end, HOURS.next - 1)] {
        for (at, wanted) in [(from, true), (from, true), (last, true), (last, false)] {
            let reading = memory.charge(&[hourly(1, 3, 1)], false, at)[0];
            assert_eq!(reading.allowed, wanted, "{at}");
            assert_eq!(reading.reset_after, last + 1 - at);
            assert_eq!(reading.retry_after, Some(if wanted { 0 } else { last + 1 - at }));
        }
    }
}

#[test]
fn a_window_and_a_bucket_are_charged_together_or_not_at_all() {
    let memory = Memory::new(1_000);
    let both = [hourly(1, 3, 1), charge(2, 5, 1)];
    for allowed in [true, true, true, false, false] {
        let readings = memory.charge(&both, false, NOW);
        assert_eq!(readings[0].allowed, allowed);
    }
    assert_eq!(owed(&memory, 2, NOW), 3);
}

#[test]
fn a_hit_that_comes_late_from_the_window_before_counts_in_the_one_that_has_begun() {
    let memory = Memory::new(1_000);
    assert!(memory.charge(&[hourly(1, 2, 1)], false, HOURS.start)[0].allowed);
    assert!(memory.charge(&[hourly(1, 2, 1)], false, HOURS.start - 1)[0].allowed);
    assert!(!memory.charge(&[hourly(1, 2, 1)], false, HOURS.start)[0].allowed);
}

#[test]
fn a_count_is_cut_to_a_smaller_limit_and_goes_on_under_a_greater_one() {
    let memory = Memory::new(1_000);
    assert!(memory.charge(&[hourly(1, 10, 8)], false, NOW)[0].allowed);
    let cut = memory.charge(&[hourly(1, 3, 1)], false, NOW)[0];
    assert_eq!((cut.allowed, cut.remaining, cut.retry_after), (false, 0, Some(SECOND)));
    assert_eq!(memory.charge(&[hourly(1, 10, 1)], false, NOW)[0].remaining, 6);
    assert!(memory.charge(&[hourly(1, 3, 3)], false, HOURS.start)[0].allowed);
}

#[test]
fn a_refund_gives_back_to_its_own_window_only() {
    let memory = Memory::new(1_000);
    let charges = [hourly(1, 3, 2)];
    let readings = memory.charge(&charges, false, NOW);
    memory.refund(&charges, &readings, NOW, NOW + SECOND / 2);
    assert_eq!(memory.charge(&[hourly(1, 3, 0)], true, NOW)[0].remaining, 3);
    let readings = memory.charge(&charges, false, NOW);
    assert!(memory.charge(&[hourly(1, 3, 1)], false, HOURS.start)[0].allowed);
    memory.refund(&charges, &readings, NOW, HOURS.start);
    assert_eq!(memory.charge(&[hourly(1, 3, 0)], true, HOURS.start)[0].remaining, 2);
}

#[test]
fn a_wall_clock_that_was_days_ahead_and_is_put_right_shuts_nobody_out() {
    let memory = Memory::new(1_000);
    let days = 72 * 3_600 * SECOND;
    let wrong = Span {
        start: HOURS.start + days,
        end: HOURS.end + days,
        next: HOURS.next + days,
        ahead: days as i64,
    };
    let now = HOURS.start;
    for number in 1..=3 {
        let early = Charge { span: Some(wrong), ..hourly(number, 8, 1) };
        assert!(memory.charge(&[early], false, now)[0].allowed);
    }
    let left = |number, cost, peek| {
        let reading = memory.charge(&[hourly(number, 8, cost)], peek, now)[0];
        (reading.allowed, reading.remaining)
    };
    assert_eq!((left(1, 1, true), left(1, 1, false), left(1, 1, false)), ((true, 8), (true, 7), (true, 6)));
    assert!(memory.denies(&[hourly(2, 8, 1)], 0, now).is_none());
    assert_eq!(memory.depart(&[hourly(3, 8, 1)], false, now).notes().next(), Some((0, Some(HOURS))));
}

#[test]
fn count_of_the_next_window_is_carried_back_when_clock_was_set_back() {
    let memory = Memory::new(1_000);
    for number in 1..=2 {
        assert!(memory.charge(&[hourly(number, 8, 3)], false, HOURS.end + SECOND)[0].allowed);
    }
    let at = HOURS.start;
    for (peek, remaining) in [(true, 5), (false, 4), (false, 3)] {
        let reading = memory.charge(&[hourly(1, 8, 1)], peek, at)[0];
        assert_eq!((reading.remaining, reading.reset_after), (remaining, HOURS.end - at));
    }
    // Within a minute of its beginning, the next window has begun by another clock.
    let reading = memory.charge(&[hourly(2, 8, 1)], false, HOURS.end - 60 * SECOND)[0];
    assert_eq!((reading.remaining, reading.reset_after), (4, HOURS.next - HOURS.end + 60 * SECOND));
}

#[test]
fn a_thread_that_was_held_up_takes_no_count_away_from_a_window_that_has_begun() {
    let memory = Memory::new(1_000);
    let second = |late: u64| {
        let start = NOW + late * SECOND;
        let span = Span { start, end: start + SECOND, next: start + 2 * SECOND, ahead: 0 };
        Charge { span: Some(span), ..hourly(1, 8, 1) }
    };
    let hit = |of: u64| memory.charge(&[second(of)], false, NOW + of * SECOND)[0];
    assert_eq!(hit(4).remaining, 7);
    assert!(!hit(0).allowed, "four seconds late");
    assert_eq!(hit(4).remaining, 6);
}

#[test]
fn a_window_is_kept_until_the_wall_clock_has_come_to_its_end() {
    let memory = Memory::new(1_000);
    // The clock of decisions is three seconds ahead.
    let behind = |mut charge: Charge| {
        charge.span = Some(Span { ahead: -3 * SECOND as i64, ..HOURS });
        charge
    };
    let last = HOURS.start + 3 * SECOND - 1;
    assert!(memory.charge(&[behind(hourly(1, 1, 1))], false, last)[0].allowed);
    memory.ahead_of_the_wall(3 * SECOND);
    (0..memory.shards()).for_each(|shard| memory.sweep(shard, last));
    let denied = memory.charge(&[behind(hourly(1, 1, 1))], false, last)[0];
    assert_eq!((denied.allowed, denied.retry_after), (false, Some(1)));
    (0..memory.shards()).for_each(|shard| memory.sweep(shard, last + 2));
    assert!(memory.is_empty());
}

/// Whatever happens between this process and Redis, checked against a small Redis of our own.
mod invariant {
    use proptest::prelude::*;
    use proptest::test_runner::TestCaseResult;

    use super::*;
    use crate::limiter::passage::Passage;

    /// What can happen. An index is taken modulo what there is.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        /// Time passes.
        Wait(Micros),
        /// A request that this process decides.
        Local { policies: usize, cost: usize, peek: bool },
        /// A locally admitted request turns out to be denied elsewhere.
        Refund(usize),
        /// A call sets out; Redis may or may not be told what time it was sent.
        Depart { policies: usize, cost: usize, peek: bool, dated: bool },
        /// Redis executes a call, be it long given up.
        Execute(usize),
        /// The answer of an executed call arrives.
        Answer(usize),
        /// A call is given up, and its request decided here, at one of so many parts.
        GiveUp(usize, u32),
        /// A call's client leaves.
        Leave(usize),
        /// Redis loses everything.
        Flush,
        /// Another process charges Redis.
        Elsewhere { policies: usize, cost: usize },
        /// Drained keys are forgotten.
        Sweep,
    }

    fn step() -> impl Strategy<Value = Step> {
        let (policies, cost) = (0..3usize, 0..4usize);
        let peek = prop::bool::weighted(0.1);
        prop_oneof![
            4 => prop_oneof![0..3_000u64, Just(0), Just(1_000), 3_000..20_000u64].prop_map(Step::Wait),
            4 => (policies.clone(), cost.clone(), peek)
                .prop_map(|(policies, cost, peek)| Step::Local { policies, cost, peek }),
            1 => any::<usize>().prop_map(Step::Refund),
            6 => (policies.clone(), cost.clone(), peek, prop::bool::weighted(0.7))
                .prop_map(|(policies, cost, peek, dated)| Step::Depart { policies, cost, peek, dated }),
            6 => any::<usize>().prop_map(Step::Execute),
            5 => any::<usize>().prop_map(Step::Answer),
            3 => (any::<usize>(), 1..4u32).prop_map(|(index, parts)| Step::GiveUp(index, parts)),
            1 => any::<usize>().prop_map(Step::Leave),
            1 => Just(Step::Flush),
            1 => (policies, cost).prop_map(|(policies, cost)| Step::Elsewhere { policies, cost }),
            1 => Just(Step::Sweep),
        ]
    }

    /// The arithmetic of the store's script for two buckets. A window is kept as its end plus the count.
    #[derive(Default)]
    struct Redis([Micros; 2]);

    impl Redis {
        fn execute(
            &mut self,
            charges: &[Charge],
            buckets: &[usize],
            notes: &[(Micros, Option<Span>)],
            underway: Micros,
            peek: bool,
            now: Micros,
        ) -> Charged {
            let from: SmallVec<[Micros; 2]> = (charges.iter().zip(buckets))
                .map(|(charge, &bucket)| charge.from(self.0[bucket], now))
                .collect();
            let debts: Vec<Micros> = (charges.iter().zip(buckets).zip(notes).zip(&from))
                .map(|(((charge, &bucket), &(note, span)), &from)| {
                    let note = match span {
                        None => note.saturating_sub(underway),
                        Some(span) if from == span.end => note,
                        // Of another window.
                        Some(_) => 0,
                    };
                    self.0[bucket].saturating_sub(from).max(note).min(charge.quota.tolerance())
                })
                .collect();
            let fits: Vec<bool> = (charges.iter().zip(&debts))
                .map(|(charge, &debt)| gcra::admits(debt, charge.amount(), charge.quota.tolerance()))
                .collect();
            let granted = charges.iter().zip(&fits).all(|(charge, &fits)| fits || !charge.enforce);
            let mut readings = Readings::new();
            for (at, charge) in charges.iter().enumerate() {
                let grows = granted && fits[at] && !peek;
                let debt = debts[at] + if grows { charge.amount() } else { 0 };
                if !peek {
                    // A note that is greater is kept even when the hit is denied.
                    self.0[buckets[at]] = self.0[buckets[at]].max(from[at] + debt);
                }
                readings.push(charge.reading(debt, fits[at], from[at], now));
            }
            Charged { readings, from, judged_at: now, last: SmallVec::new(), ahead: 0 }
        }
    }

    struct Call<'a> {
        policies: usize,
        charges: &'a [Charge],
        peek: bool,
        sent: Option<Micros>,
        notes: Vec<(Micros, Option<Span>)>,
        passage: Option<Passage<'a>>,
        outcome: Option<Charged>,
    }

    /// A hit that was let through: when it was judged, under which policies, at what cost.
    #[derive(Clone, Copy, Debug)]
    struct Admitted {
        at: Micros,
        policies: usize,
        cost: u32,
    }

    const BUCKETS: [&[usize]; 3] = [&[0], &[1], &[0, 1]];

    fn admitted(charges: &[Charge], readings: &Readings) -> bool {
        charges.iter().zip(readings).all(|(charge, reading)| reading.allowed || !charge.enforce)
    }

    fn holds(quotas: [Quota; 2], spans: [Option<Span>; 2], steps: &[Step]) -> TestCaseResult {
        let memory = Memory::new(1_000);
        let of = |bucket: usize, cost: u32| Charge {
            key: key(bucket as u64),
            quota: quotas[bucket],
            span: spans[bucket],
            cost,
            share: Share::WHOLE,
            enforce: true,
        };
        let bills: Vec<Vec<Vec<Charge>>> = BUCKETS
            .iter()
            .map(|buckets| {
                (0..4).map(|cost| buckets.iter().map(|&bucket| of(bucket, cost)).collect()).collect()
            })
            .collect();
        let mut now = NOW;
        let mut redis = Redis::default();
        let mut calls: Vec<Call<'_>> = Vec::new();
        let mut hits: Vec<Admitted> = Vec::new();
        let mut refundable: Vec<(usize, usize, Readings, Admitted)> = Vec::new();

        fn pick<'c, 'a>(
            calls: &'c mut [Call<'a>],
            index: usize,
            fit: impl Fn(&Call<'a>) -> bool,
        ) -> Option<&'c mut Call<'a>> {
            let mut fitting: Vec<&mut Call<'a>> = calls.iter_mut().filter(|call| fit(call)).collect();
            let count = fitting.len();
            (count > 0).then(|| fitting.swap_remove(index % count))
        }

        for &step in steps {
            match step {
                Step::Wait(by) => now += by,
                Step::Local { policies, cost, peek } => {
                    let charges = &bills[policies][cost];
                    let readings = memory.charge(charges, peek, now);
                    if admitted(charges, &readings) && !peek {
                        let hit = Admitted { at: now, policies, cost: cost as u32 };
                        refundable.push((policies, cost, readings, hit));
                    }
                }
                Step::Refund(index) => {
                    if !refundable.is_empty() {
                        let index = index % refundable.len();
                        let (policies, cost, readings, hit) = refundable.swap_remove(index);
                        memory.refund(&bills[policies][cost], &readings, hit.at, now);
                    }
                }
                Step::Depart { policies, cost, peek, dated } => {
                    let charges = &bills[policies][cost];
                    let passage = memory.depart(charges, peek, now);
                    let notes = passage.notes().collect();
                    let sent = dated.then_some(now);
                    let passage = Some(passage);
                    calls.push(Call { policies, charges, peek, sent, notes, passage, outcome: None });
                }
                Step::Execute(index) => {
                    if let Some(call) = pick(&mut calls, index, |call| call.outcome.is_none()) {
                        let underway = call.sent.map_or(0, |sent| now - sent);
                        let buckets = BUCKETS[call.policies];
                        let charged =
                            redis.execute(call.charges, buckets, &call.notes, underway, call.peek, now);
                        call.outcome = Some(charged);
                    }
                }
                Step::Answer(index) => {
                    let answerable = |call: &Call<'_>| call.outcome.is_some() && call.passage.is_some();
                    if let Some(call) = pick(&mut calls, index, answerable)
                        && let (Some(passage), Some(told)) = (call.passage.take(), call.outcome.clone())
                    {
                        let at = told.judged_at;
                        let readings = passage.answered(told, now);
                        if admitted(call.charges, &readings) && !call.peek {
                            hits.push(Admitted { at, policies: call.policies, cost: call.charges[0].cost });
                        }
                    }
                }
                Step::GiveUp(index, parts) => {
                    if let Some(call) = pick(&mut calls, index, |call| call.passage.is_some())
                        && let Some(passage) = call.passage.take()
                    {
                        let share = Share::one_of(NonZeroU32::new(parts).unwrap());
                        let here: Vec<Charge> =
                            call.charges.iter().map(|charge| Charge { share, ..*charge }).collect();
                        let readings = passage.decide_here(&here, now);
                        if admitted(call.charges, &readings) && !call.peek {
                            hits.push(Admitted {
                                at: now,
                                policies: call.policies,
                                cost: call.charges[0].cost,
                            });
                        }
                    }
                }
                Step::Leave(index) => {
                    if let Some(call) = pick(&mut calls, index, |call| call.passage.is_some()) {
                        call.passage = None;
                    }
                }
                Step::Flush => redis = Redis::default(),
                Step::Elsewhere { policies, cost } => {
                    let charges = &bills[policies][cost];
                    redis.execute(charges, BUCKETS[policies], &[(0, None); 2], 0, false, now);
                }
                Step::Sweep => (0..memory.shards()).for_each(|shard| memory.sweep(shard, now)),
            }
        }
        hits.extend(refundable.into_iter().map(|(_, _, _, hit)| hit));
        for (bucket, quota) in quotas.iter().enumerate() {
            let mut own: Vec<Admitted> =
                hits.iter().copied().filter(|hit| BUCKETS[hit.policies].contains(&bucket)).collect();
            own.sort_by_key(|hit| hit.at);
            if let Some(span) = spans[bucket] {
                for hit in &own {
                    let end = span.end_at(hit.at);
                    let spent: Micros = (own.iter().filter(|other| span.end_at(other.at) == end))
                        .map(|other| quota.charge(other.cost))
                        .sum();
                    prop_assert!(spent <= quota.tolerance(), "bucket {bucket}: {spent} in a window: {own:?}");
                }
                continue;
            }
            for first in 0..own.len() {
                let mut spent = 0;
                for hit in &own[first..] {
                    spent += quota.charge(hit.cost);
                    let span = hit.at - own[first].at;
                    prop_assert!(
                        spent <= quota.tolerance() + span,
                        "bucket {bucket}: {spent} µs spent in {span} µs, tolerance {}: {:?}",
                        quota.tolerance(),
                        own
                    );
                }
            }
        }
        Ok(())
    }

    fn quotas(first_burst: u32, second_burst: u32) -> [Quota; 2] {
        let of =
            |interval, burst| Quota::new(NonZeroU32::MIN, interval, NonZeroU32::new(burst).unwrap()).unwrap();
        [of(1_000, first_burst), of(1_700, second_burst)]
    }

    /// A bucket beside a window that lasts for some milliseconds.
    fn bucket_and_window(burst: u32, limit: u32, length: Micros) -> ([Quota; 2], [Option<Span>; 2]) {
        let [bucket, _] = quotas(burst, 1);
        let window =
            Quota::each(NonZeroU32::new(limit).unwrap(), crate::limiter::calendar::Unit::Second).unwrap();
        let start = NOW + 700;
        let span = Span { start, end: start + length, next: start + 2 * length, ahead: 0 };
        ([bucket, window], [None, Some(span)])
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]
        #[test]
        fn no_interleaving_with_redis_admits_more_than_burst_and_rate(
            first in 1u32..6, second in 1u32..6, steps in prop::collection::vec(step(), 1..80),
        ) {
            holds(quotas(first, second), [None; 2], &steps)?;
        }

        #[test]
        fn no_interleaving_with_redis_admits_more_than_its_limit_in_a_window(
            burst in 1u32..6, limit in 1u32..6, length in 2_000u64..15_000,
            steps in prop::collection::vec(step(), 1..80),
        ) {
            let (quotas, spans) = bucket_and_window(burst, limit, length);
            holds(quotas, spans, &steps)?;
        }
    }

    mod soak {
        use super::*;

        proptest! {
            #![proptest_config(ProptestConfig {
                cases: if std::env::var_os("TIDEGATE_SOAK").is_some() { 1_000_000 } else { 1 },
                ..ProptestConfig::default()
            })]
            #[test]
            fn nor_does_any_of_a_million_interleavings(
                first in 1u32..6, second in 1u32..6, steps in prop::collection::vec(step(), 1..120),
            ) {
                holds(quotas(first, second), [None; 2], &steps)?;
            }

            #[test]
            fn nor_does_any_of_a_million_beside_a_window(
                burst in 1u32..6, limit in 1u32..6, length in 2_000u64..15_000,
                steps in prop::collection::vec(step(), 1..120),
            ) {
                let (quotas, spans) = bucket_and_window(burst, limit, length);
                holds(quotas, spans, &steps)?;
            }
        }
    }
}
