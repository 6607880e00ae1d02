//! The machine against its promises: when it opens, who closes it, and that no permit is ever lost.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::limiter::clock::SECOND;

const SOON: Micros = 1_000;

/// In use, at 1000 s.
fn closed() -> (Breaker, Micros) {
    let breaker = Breaker::new(1_000);
    let now = 1_000 * SECOND;
    breaker.proven(now, 0);
    (breaker, now)
}

fn call(breaker: &Breaker, now: Micros) -> Permit<'_> {
    breaker.admit(0, now).unwrap()
}

fn fail(breaker: &Breaker, kind: FaultKind, now: Micros) -> Verdict {
    call(breaker, now).failed(kind, now)
}

#[test]
fn five_timeouts_in_a_row_open_and_an_answer_between_starts_the_count_again() {
    let (breaker, now) = closed();
    for _ in 0..4 {
        assert_ne!(fail(&breaker, FaultKind::Timeout, now), Verdict::Opened);
    }
    call(&breaker, now).succeeded(now);
    for _ in 0..4 {
        assert_ne!(fail(&breaker, FaultKind::Timeout, now), Verdict::Opened);
    }
    assert_eq!(fail(&breaker, FaultKind::Timeout, now), Verdict::Opened);
    assert_eq!(breaker.admit(0, now).unwrap_err(), FaultKind::Open);
}

#[test]
fn what_needs_a_person_and_what_ends_a_connection_open_at_once() {
    for kind in [
        FaultKind::Auth,
        FaultKind::Permission,
        FaultKind::Tls,
        FaultKind::Quota,
        FaultKind::Lost,
        FaultKind::Refused,
        FaultKind::ReadOnly,
    ] {
        let (breaker, now) = closed();
        assert_eq!(fail(&breaker, kind, now), Verdict::Opened, "{kind}");
    }
    for kind in [FaultKind::Timeout, FaultKind::Oom, FaultKind::Loading, FaultKind::Other] {
        let (breaker, now) = closed();
        assert_eq!(fail(&breaker, kind, now), Verdict::Counted, "{kind}");
    }
}

#[test]
fn half_of_twenty_calls_within_ten_seconds_open_and_spread_over_more_they_do_not() {
    for (pause, opens) in [(SECOND / 4, true), (SECOND, false)] {
        let (breaker, mut now) = closed();
        let mut opened = false;
        // One call fails, one is answered: never two failures in a row.
        for _ in 0..40 {
            opened |= fail(&breaker, FaultKind::Oom, now) == Verdict::Opened;
            if opened {
                break;
            }
            call(&breaker, now).succeeded(now);
            now += pause;
        }
        assert_eq!(opened, opens, "a pair of calls every {pause} µs");
    }
    let (breaker, now) = closed();
    let pairs = (1..40).find(|_| {
        call(&breaker, now).succeeded(now);
        fail(&breaker, FaultKind::Oom, now) == Verdict::Opened
    });
    assert_eq!(pairs, Some(10), "exactly half of exactly twenty");
}

#[test]
fn a_lower_rate_never_opens_but_makes_the_connection_suspect() {
    let (breaker, mut now) = closed();
    let mut suspected = 0;
    for round in 0..2_000 {
        now += SOON;
        // Three of ten time out, never two in a row.
        match round % 10 {
            0 | 3 | 6 => match fail(&breaker, FaultKind::Timeout, now) {
                Verdict::Opened => panic!("it opened at a rate of 30 %"),
                Verdict::Suspect => suspected += 1,
                _ => {}
            },
            _ => call(&breaker, now).succeeded(now),
        }
    }
    assert!(suspected > 100, "{suspected}");
    assert!(breaker.renewed());
    assert_eq!(fail(&breaker, FaultKind::Timeout, now), Verdict::Counted, "a fresh one starts blameless");
}

#[test]
fn one_timeout_in_a_hundred_is_nobodys_fault_and_two_in_a_row_are_the_connections() {
    let (breaker, now) = closed();
    for _ in 0..30 {
        (0..99).for_each(|_| call(&breaker, now).succeeded(now));
        assert_eq!(fail(&breaker, FaultKind::Timeout, now), Verdict::Counted);
    }
    assert_eq!(fail(&breaker, FaultKind::Timeout, now), Verdict::Suspect);
    assert_eq!(fail(&breaker, FaultKind::Oom, now), Verdict::Counted, "no fresh connection mends that");
}

#[test]
fn what_a_call_over_a_replaced_connection_reports_counts_for_nothing() {
    let (breaker, now) = closed();
    let (mut old, mut late) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        old.push(call(&breaker, now));
        late.push(call(&breaker, now));
    }
    assert!(breaker.renewed());
    for permit in old {
        assert_eq!(permit.failed(FaultKind::Lost, now), Verdict::Ignored);
    }
    assert_eq!(breaker.state(), State::Closed);
    for _ in 0..4 {
        let _ = fail(&breaker, FaultKind::Timeout, now);
    }
    // Nor do late answers make up for the failures of the connection in use, in a row or by their share.
    late.drain(..10).for_each(|permit| permit.succeeded(now));
    assert_eq!(fail(&breaker, FaultKind::Timeout, now), Verdict::Opened);
    let (breaker, now) = closed();
    let late: Vec<_> = (0..20).map(|_| call(&breaker, now)).collect();
    assert!(breaker.renewed());
    late.into_iter().for_each(|permit| permit.succeeded(now));
    let opened = (0..10).any(|_| {
        call(&breaker, now).succeeded(now);
        fail(&breaker, FaultKind::Oom, now) == Verdict::Opened
    });
    assert!(opened);
}

#[test]
fn exactly_one_failure_opens_and_the_others_say_nothing() {
    let (breaker, now) = closed();
    let calls: Vec<_> = (0..40).map(|_| call(&breaker, now)).collect();
    let opened = calls.into_iter().map(|permit| permit.failed(FaultKind::Timeout, now));
    assert_eq!(opened.filter(|verdict| *verdict == Verdict::Opened).count(), 1);
    assert!(!breaker.trip(), "it is open already");
    assert!(!breaker.renewed() && !breaker.warmed(), "nothing but a proof closes it");
    assert_eq!(breaker.admit(0, now + 3_600 * SECOND).unwrap_err(), FaultKind::Open, "time closes nothing");
}

#[test]
fn the_warm_up_lets_a_growing_share_of_the_subjects_through_and_keeps_whom_it_let_through() {
    let breaker = Breaker::new(10);
    let start = 1_000 * SECOND;
    breaker.proven(start, 4 * SECOND);
    assert_eq!(breaker.state(), State::HalfOpen);
    let mut before = HashSet::new();
    for (second, percent) in [(0, 10), (1, 25), (2, 50), (3, 100), (4, 100), (1_000, 100)] {
        let now = start + second * SECOND;
        let through: HashSet<u16> = (0..=u16::MAX).filter(|&rank| breaker.admit(rank, now).is_ok()).collect();
        let share = through.len() as f64 / 655.36;
        assert!((share - f64::from(percent)).abs() < 0.1, "second {second}: {share} %");
        assert!(before.is_subset(&through));
        before = through;
    }
    assert_eq!(breaker.admit(u16::MAX, start).unwrap_err(), FaultKind::Warming);
    assert!(breaker.warmed());
    assert_eq!(breaker.state(), State::Closed);
}

#[test]
fn in_the_warm_up_one_failure_opens_again_but_not_one_late_answer_among_many() {
    let now = 1_000 * SECOND;
    for kind in [FaultKind::Oom, FaultKind::Lost, FaultKind::Timeout] {
        let breaker = Breaker::new(10);
        breaker.proven(now, 4 * SECOND);
        assert_eq!(fail(&breaker, kind, now), Verdict::Opened, "{kind}");
        assert!(!breaker.warmed());
    }
    let breaker = Breaker::new(10);
    breaker.proven(now, 4 * SECOND);
    (0..19).for_each(|_| call(&breaker, now).succeeded(now));
    assert_eq!(fail(&breaker, FaultKind::Timeout, now), Verdict::Counted, "one of twenty");
    assert_eq!(fail(&breaker, FaultKind::Timeout, now), Verdict::Opened, "two of twenty-one");
}

#[test]
fn calls_under_way_are_bounded_and_the_next_is_turned_away_at_once() {
    let breaker = Breaker::new(3);
    breaker.proven(0, 0);
    let permits: Vec<_> = (0..3).map(|_| call(&breaker, 0)).collect();
    assert_eq!(breaker.admit(0, 0).unwrap_err(), FaultKind::Saturated);
    assert_eq!(breaker.in_flight(), 3);
    drop(permits);
    assert_eq!(breaker.in_flight(), 0);
    assert!(breaker.admit(0, 0).is_ok());
    assert_eq!(breaker.state(), State::Closed, "a client that left is no failure");
}

#[test]
fn permits_are_neither_lost_nor_made_up_by_threads_that_fight_over_them() {
    let breaker = Breaker::new(4);
    breaker.proven(0, 0);
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let breaker = &breaker;
            scope.spawn(move || {
                for turn in 0..20_000u64 {
                    let now = turn * 100;
                    let Ok(permit) = breaker.admit(0, now) else { continue };
                    match (turn + thread) % 7 {
                        0 => drop(permit),
                        1 => drop(permit.failed(FaultKind::Timeout, now)),
                        _ => permit.succeeded(now),
                    }
                    if turn % 1_000 == 0 {
                        breaker.proven(now, 0);
                    }
                }
            });
        }
    });
    assert_eq!(breaker.in_flight(), 0);
}

/// What can happen to a breaker.
#[derive(Clone, Debug)]
enum Step {
    Admit(u16),
    Succeed(usize),
    Fail(usize, u8),
    Leave(usize),
    Pass(Micros),
    /// What the supervisor does, whatever the state.
    Proven(bool),
    Warmed,
    Renewed,
    Trip,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => any::<u16>().prop_map(Step::Admit),
        4 => any::<usize>().prop_map(Step::Succeed),
        4 => (any::<usize>(), any::<u8>()).prop_map(|(which, kind)| Step::Fail(which, kind)),
        2 => any::<usize>().prop_map(Step::Leave),
        3 => (0..3 * SECOND).prop_map(Step::Pass),
        1 => any::<bool>().prop_map(Step::Proven),
        1 => Just(Step::Warmed),
        1 => Just(Step::Renewed),
        1 => Just(Step::Trip),
    ];
    prop::collection::vec(step, 1..300)
}

/// A kind of fault that a call can meet.
fn fault(number: u8) -> FaultKind {
    let kinds: Vec<FaultKind> = FaultKind::ALL.into_iter().filter(|kind| kind.is_of_the_store()).collect();
    kinds[usize::from(number) % kinds.len()]
}

proptest! {
    #[test]
    fn whatever_happens_no_permit_leaks_only_a_proof_closes_and_it_is_never_stuck(steps in steps()) {
        let breaker = Breaker::new(5);
        let mut now = 1_000 * SECOND;
        let mut permits = Vec::new();
        for step in steps {
            let before = breaker.state();
            match step.clone() {
                Step::Admit(rank) => match breaker.admit(rank, now) {
                    Ok(permit) => {
                        prop_assert_ne!(before, State::Open);
                        permits.push(permit);
                    }
                    Err(FaultKind::Open) => prop_assert_eq!(before, State::Open),
                    Err(FaultKind::Warming) => prop_assert_eq!(before, State::HalfOpen),
                    Err(kind) => {
                        prop_assert_eq!(kind, FaultKind::Saturated);
                        prop_assert_eq!(permits.len(), 5);
                    }
                },
                Step::Succeed(which) if !permits.is_empty() => {
                    permits.swap_remove(which % permits.len()).succeeded(now);
                    prop_assert_eq!(breaker.state(), before);
                }
                Step::Fail(which, kind) if !permits.is_empty() => {
                    let permit = permits.swap_remove(which % permits.len());
                    let old = permit.generation != generation_of(breaker.word.load(Ordering::Relaxed));
                    let verdict = permit.failed(fault(kind), now);
                    prop_assert_eq!(verdict == Verdict::Ignored, old || before == State::Open);
                    let after = if verdict == Verdict::Opened { State::Open } else { before };
                    prop_assert_eq!(breaker.state(), after);
                }
                Step::Leave(which) if !permits.is_empty() => {
                    drop(permits.swap_remove(which % permits.len()));
                    prop_assert_eq!(breaker.state(), before);
                }
                Step::Pass(time) => {
                    now += time;
                    prop_assert_eq!(breaker.state(), before);
                }
                Step::Proven(warm) => breaker.proven(now, if warm { 4 * SECOND } else { 0 }),
                Step::Warmed => prop_assert_eq!(breaker.warmed(), before == State::HalfOpen),
                Step::Renewed => prop_assert_eq!(breaker.renewed(), before == State::Closed),
                Step::Trip => prop_assert_eq!(breaker.trip(), before != State::Open),
                _ => {}
            }
            prop_assert_eq!(breaker.in_flight() as usize, permits.len());
        }
        // From wherever it is: one proof and a warm-up, and everybody is let through.
        permits.clear();
        breaker.proven(now, 4 * SECOND);
        prop_assert!(breaker.admit(0, now).is_ok());
        prop_assert!(breaker.warmed());
        prop_assert!(breaker.admit(u16::MAX, now).is_ok());
        prop_assert_eq!(breaker.in_flight(), 0);
    }
}
