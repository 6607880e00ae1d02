//! Calls to the shared store that are in flight.

use super::*;

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
