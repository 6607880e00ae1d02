//! Calendar windows in memory.

use super::*;

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
fn count_is_carried_back_when_the_clock_was_set_back() {
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
