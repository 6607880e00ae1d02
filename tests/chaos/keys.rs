//! Overrides: they end at their moment everywhere, those that were deleted stay deleted, and none is lost.

use crate::check::{Finding, Kind, finding};
use crate::history::{Call, History, Overrides, Settled};
use crate::plan::{KEYS, Op};

/// How far a moment may be missed: the fleet's clock is known within less.
const SLACK: f64 = 0.4;

pub fn findings(history: &History) -> Vec<Finding> {
    let mut all = Vec::new();
    for id in 0..KEYS {
        let touching =
            |call: &&Call| matches!(call.op, Op::Block(of, _) | Op::Lift(of) if of == id) && call.may_count();
        let calls: Vec<&Call> = history.calls.iter().filter(touching).collect();
        let seen = history.overrides.iter();
        all.extend(seen.clone().find_map(|look| outlived(history, id, &calls, look)));
        all.extend(seen.clone().find_map(|look| ended(history, id, &calls, look)));
        for settled in history.settled.iter().filter(|settled| settled.agreed) {
            all.extend(at_last(history, id, &calls, settled));
        }
    }
    all.extend(moments(history));
    all
}

fn is_block(call: &Call) -> bool {
    matches!(call.op, Op::Block(..))
}

/// When a block ends by what was answered, or by what was asked where there was no answer.
fn ends(call: &Call) -> f64 {
    match (call.done(), call.op) {
        (Some(done), _) => done.expires.unwrap_or(f64::INFINITY),
        (None, Op::Block(_, Some(lasts))) => call.start + lasts as f64 / 1_000.0 + 0.1,
        _ => f64::INFINITY,
    }
}

/// A look that shows a block which no change can account for.
fn outlived(history: &History, id: usize, calls: &[&Call], look: &Overrides) -> Option<Finding> {
    if !look.blocked.contains(&id) || !history.knows_the_time(look.at, look.life, look.sent) {
        return None;
    }
    let possible = |call: &&&Call| {
        is_block(call) && call.start <= look.got && ends(call) + SLACK + history.slack() >= look.sent
    };
    let left: Vec<&&Call> = calls.iter().filter(possible).collect();
    // A deletion that this very process answered, of all that was there before.
    let lifted = |block: &&&Call| {
        calls.iter().any(|lift| {
            !is_block(lift)
                && lift.done().is_some()
                && (lift.at, lift.life) == (look.at, look.life)
                && lift.end < look.sent
                && block.end < lift.start
                && history.whole(block.at, block.start - 1.0, lift.end)
                && history.whole(lift.at, block.start - 1.0, lift.end)
        })
    };
    let gone = left.iter().all(lifted);
    gone.then(|| {
        let evidence = format!("o{id} blocks on {} at {:.2} s; {}", look.at, look.got, texts(calls));
        finding(Kind::Outlived, evidence)
    })
}

/// A look at the instance that acknowledged a block, before its end, that does not show it.
fn ended(history: &History, id: usize, calls: &[&Call], look: &Overrides) -> Option<Finding> {
    if look.blocked.contains(&id) || !history.knows_the_time(look.at, look.life, look.sent) {
        return None;
    }
    let block = calls.iter().find(|call| {
        is_block(call)
            && call.done().is_some()
            && (call.at, call.life) == (look.at, look.life)
            && call.end < look.sent
            && look.got < ends(call) - SLACK - history.slack()
            && calls
                .iter()
                .all(|other| other.number == call.number || other.end < call.start || other.start > look.got)
    })?;
    // What was cut off before may bring a newer version now.
    if !history.whole(look.at, block.start - 3.0, look.got) && calls.len() > 1 {
        return None;
    }
    let evidence = format!("o{id} does not block on {} at {:.2} s; {}", look.at, look.got, texts(calls));
    Some(finding(Kind::Ended, evidence))
}

/// What all agree on after a healing.
fn at_last(history: &History, id: usize, calls: &[&Call], settled: &Settled) -> Option<Finding> {
    let look = settled.overrides.first()?;
    let shown = look.listed.get(&id).copied();
    let say = |kind, why: &str| {
        let evidence =
            format!("o{id} after healing at {:.2} s: {shown:?}: {why}; {}", settled.healed, texts(calls));
        Some(finding(kind, evidence))
    };
    if let Some((_, Some(ends))) = shown
        && ends < look.sent - SLACK - history.slack()
    {
        return say(Kind::Outlived, "its end is over");
    }
    let kept = |call: &&&Call| {
        call.end < settled.healed && history.is_kept(call, settled.at) && call.done().is_some()
    };
    for call in calls.iter().filter(kept) {
        let before = shown.and_then(|(op, _)| op).is_some_and(|op| has_seen(history, call, id, op));
        if before {
            return say(Kind::Resurrected, &format!("op-{} came after it", call.number));
        }
        let over = ends(call) < settled.at + SLACK;
        let later = |other: &&Call| other.number != call.number && other.end >= call.start;
        // Of changes that were made apart the one that more changes had gone before wins.
        let apart = |other: &&Call| !history.whole(other.at, other.start - 3.0, call.start);
        let superseded =
            calls.iter().any(|other| other.number != call.number && (later(other) || apart(other)));
        if is_block(call) && shown.is_none() && !over && !superseded {
            return say(Kind::Ended, &format!("op-{} is gone", call.number));
        }
    }
    None
}

/// Whether the instance of a change showed an override of this origin right before.
fn has_seen(history: &History, call: &Call, id: usize, op: usize) -> bool {
    let of_process =
        |look: &&Overrides| (look.at, look.life) == (call.at, call.life) && look.got < call.start;
    let last = history.overrides.iter().rfind(of_process);
    call.number != op
        && call.tag.is_some()
        && last.and_then(|look| look.listed.get(&id)).is_some_and(|(shown, _)| *shown == Some(op))
}

/// The end that an answer named is the one that was asked for.
fn moments(history: &History) -> Option<Finding> {
    history.calls.iter().find_map(|call| {
        let (Op::Block(id, Some(lasts)), Some(done)) = (call.op, call.done()) else { return None };
        let asked = call.start + lasts as f64 / 1_000.0;
        // Between the moment at which it was sent and that of the answer.
        let slack = SLACK + history.slack();
        let right = (asked - slack)..=(asked + call.end - call.start + slack);
        let right = done.expires.is_some_and(|ends| right.contains(&ends));
        let missed = !right && history.knows_the_time(call.at, call.life, call.start);
        missed.then(|| {
            let evidence =
                format!("op-{} asked for o{id} until {asked:.2} s and got {:?}", call.number, done.expires);
            finding(Kind::Outlived, evidence)
        })
    })
}

fn texts(calls: &[&Call]) -> String {
    let text = |call: &&Call| {
        let outcome = if call.done().is_some() { "answered" } else { "unanswered" };
        format!(
            "op-{} {:?} on {} from {:.2} to {:.2} s {outcome}, ends {:.2}",
            call.number,
            call.op,
            call.at,
            call.start,
            call.end,
            ends(call)
        )
    };
    calls.iter().map(text).collect::<Vec<_>>().join(", ")
}
