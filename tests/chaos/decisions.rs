//! What each process decided and showed from moment to moment.

use crate::check::{Finding, Kind, finding};
use crate::history::{Call, History, Life, Look, Origin, Probe};
use crate::plan::Op;

pub fn findings(history: &History) -> Vec<Finding> {
    let mut all = Vec::new();
    all.extend(after_rollback(history));
    all.extend(backwards(history));
    all.extend(early(history));
    let failed = history.probes.iter().find(|probe| probe.status >= 500);
    all.extend(failed.map(|probe| finding(Kind::ServerError, format!("{probe:?}"))));
    for call in history.calls.iter().filter(|call| call.again == Some(false)) {
        // A process that ended meanwhile has forgotten it.
        if history.life(call.at, call.life).is_some_and(|life| life.to.is_infinite()) {
            let evidence = format!("op-{} on {}: another answer the second time", call.number, call.at);
            all.push(finding(Kind::Repeated, evidence));
        }
    }
    all
}

/// Whether a change or the environment may have raised the share between a rollback and a moment.
fn may_be_raised(history: &History, rollback: &Call, moment: f64) -> bool {
    let raised = history.calls.iter().filter(|call| call.may_count()).any(|call| {
        let raises = matches!(call.op, Op::Set(set) if set.percent > 0 || set.flag.is_some());
        raises && call.start <= moment && call.end >= rollback.start
    });
    let mut values: Vec<u8> =
        history.lives.iter().filter(|life| life.from <= moment).map(|life| life.percent).collect();
    values.retain(|percent| *percent > 0);
    raised
        || values
            .into_iter()
            .any(|percent| history.environment_may_set(f64::from(percent), rollback.start, true))
}

/// Decisions by Redis on the instance that acknowledged a rollback, and on those that started after it and could read it.
fn after_rollback(history: &History) -> Vec<Finding> {
    let mut all: Vec<Finding> = Vec::new();
    // Also one that found the share at 0 % and left the record as it was.
    let back = |call: &&Call| {
        let record = call.done().and_then(|done| done.record.as_ref());
        call.op == Op::Rollback && record.is_some_and(|record| record.wanted() == 0.0)
    };
    for rollback in history.calls.iter().filter(back) {
        let wrong = |probe: &&Probe| {
            probe.redis && probe.sent > rollback.end && {
                let Some(life) = history.life(probe.at, probe.life) else { return false };
                let same = (probe.at, probe.life) == (rollback.at, rollback.life);
                let own = probe.at == rollback.at && history.is_kept(rollback, probe.got);
                (same || own || reads_it(history, rollback, life, probe.got))
                    && !may_be_raised(history, rollback, probe.got)
            }
        };
        let found: Vec<&Probe> = history.probes.iter().filter(wrong).collect();
        if let (Some(first), Some(last)) = (found.first(), found.last()) {
            let evidence = format!(
                "op-{} on {} was answered at {:.2} s; {} decisions by Redis on {} from {:.3} to {:.3} s (process {})",
                rollback.number,
                rollback.at,
                rollback.end,
                found.len(),
                first.at,
                first.sent,
                last.got,
                first.life
            );
            all.push(finding(Kind::RedisAfterRollback, evidence));
        }
    }
    all
}

/// Whether a process that started after a rollback can read it from Redis before anything else.
fn reads_it(history: &History, rollback: &Call, life: &Life, until: f64) -> bool {
    life.from > rollback.end
        && history.reaches_redis(rollback.at, rollback.start - 2.0, rollback.end)
        && history.reaches_redis(life.at, life.from, until)
        && !history.losses.iter().any(|loss| (rollback.start - 2.0..=until).contains(loss))
}

/// Looks at one process whose record is older than one that it had before.
fn backwards(history: &History) -> Option<Finding> {
    let mut last: Option<&Look> = None;
    for look in &history.looks {
        if let Some(last) = last
            && (last.at, last.life) == (look.at, look.life)
            && look.record.order() < last.record.order()
        {
            let evidence = format!(
                "on {}: {} at {:.2} s, then {} at {:.2} s",
                look.at,
                last.record.short(),
                last.got,
                look.record.short(),
                look.got
            );
            return Some(finding(Kind::Backwards, evidence));
        }
        last = Some(look);
    }
    None
}

/// Raises that were in force before the moment that was announced, on instances that nothing kept from the fleet's clock.
fn early(history: &History) -> Option<Finding> {
    let slack = 0.1 + history.slack();
    history.looks.iter().find_map(|look| {
        let Origin::Op(op) = look.record.origin() else { return None };
        let call = history.call(op)?;
        let at = call.made()?.effective_at?;
        let parent = call.parent.as_ref()?;
        let raises = look.record.wanted() > parent.in_force && look.record.wanted() > parent.wanted();
        let same = look.record.order() == call.made()?.order();
        let early = look.got < at - slack && look.record.in_force >= look.record.wanted();
        let sound = history.whole(look.at, call.start - 2.0, look.got)
            && history.whole(call.at, call.start - 2.0, call.end);
        (raises && same && early && sound).then(|| {
            let evidence = format!(
                "op-{op} on {}: {} at {:.3} s, announced for {at:.3} s",
                look.at,
                look.record.short(),
                look.got
            );
            finding(Kind::Early, evidence)
        })
    })
}
