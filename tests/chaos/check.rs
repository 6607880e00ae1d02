//! Holds what clients were answered and what instances showed against the rules of the record.

use std::fmt;

use serde_json::Value;

use crate::history::{Call, Done, History, Origin, Seen, Settled};
use crate::plan::{Op, Set};

/// What is wrong. Shrinking looks for the same kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// An acknowledged change was undone, and no later change or rule did it.
    Undone,
    /// A raise that was made apart lost against another change, and no row at its instance shows it.
    Silent,
    /// Redis decided although a rollback was acknowledged and nothing raised since.
    RedisAfterRollback,
    /// Two changes that were bound to one state were both made.
    Twice,
    /// Instances do not agree in time after all is whole.
    Disagree,
    /// What they agree on is a change that was refused, or of unknown origin.
    Unacknowledged,
    /// (epoch, revision) went back on an instance.
    Backwards,
    /// A raise was in force before its moment.
    Early,
    /// An override was in effect after its end or its deletion.
    Outlived,
    /// An override was not in effect although it was acknowledged and had not ended.
    Ended,
    /// An override that was deleted came back, or one that was replaced.
    Resurrected,
    /// There is not exactly one audit row for an acknowledged change.
    Audit,
    /// The environment changed the record although it was not news.
    Environment,
    /// A repeated request was answered in another way.
    Repeated,
    /// The front answered 5xx.
    ServerError,
}

/// One violation, with its evidence.
#[derive(Clone, Debug)]
pub struct Finding {
    pub kind: Kind,
    pub evidence: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{:?}: {}", self.kind, self.evidence)
    }
}

pub fn finding(kind: Kind, evidence: impl Into<String>) -> Finding {
    Finding { kind, evidence: evidence.into() }
}

/// All violations of a run.
pub fn findings(history: &History) -> Vec<Finding> {
    let mut all = Vec::new();
    for settled in &history.settled {
        all.extend(agreement(history, settled));
        if settled.agreed {
            all.extend(undone(history, settled));
            all.extend(silent(history, settled));
        }
    }
    all.extend(twice(history));
    all.extend(crate::decisions::findings(history));
    all.extend(crate::keys::findings(history));
    all.extend(crate::trail::findings(history));
    all
}

fn agreement(history: &History, settled: &Settled) -> Option<Finding> {
    let waited = settled.at - settled.healed;
    let shown: Vec<String> = settled.records.iter().map(Seen::short).collect();
    if !settled.agreed {
        let listed: Vec<String> =
            settled.overrides.iter().map(|overrides| format!("{:?}", overrides.listed)).collect();
        let evidence =
            format!("{waited:.1} s after healing: {} | overrides {}", shown.join(" | "), listed.join(" | "));
        return Some(finding(Kind::Disagree, evidence));
    }
    let record = &settled.records[0];
    let known = match record.origin() {
        Origin::Op(op) => history.call(op).is_none_or(Call::may_count),
        Origin::Env => true,
        Origin::Stands => history.may_stand_above(record.wanted(), None),
        Origin::Other => false,
    };
    (!known).then(|| finding(Kind::Unacknowledged, record.short()))
}

/// Acknowledged changes that the agreed record undoes.
fn undone(history: &History, settled: &Settled) -> Vec<Finding> {
    let record = &settled.records[0];
    let mut all = Vec::new();
    let say = |call: &Call, made: &Seen, why: &str| {
        let Call { number, at, op, start, end, .. } = call;
        let evidence = format!(
            "op-{number} {op:?} on {at} ({start:.2} to {end:.2} s) made {}; after healing at {:.2} s: {}: {why}",
            made.short(),
            settled.healed,
            record.short()
        );
        finding(Kind::Undone, evidence)
    };
    for (call, made) in history.lowerings() {
        if record.wanted() <= made.wanted() || call.end > settled.healed || !history.is_kept(call, settled.at)
        {
            continue;
        }
        if !history.may_be_raised_to(record.wanted(), call) {
            all.push(say(call, made, "lowered, and raised by a change that had not seen it"));
        }
    }
    for call in &history.calls {
        let Some(made) = call.made() else { continue };
        if call.end > settled.healed
            || !history.is_kept(call, settled.at)
            || record.origin() == Origin::Op(call.number)
        {
            continue;
        }
        let back = match record.origin() {
            Origin::Env if record.is_initial() => true,
            Origin::Env => {
                history.whole(call.at, call.start - 3.0, call.end + 0.5)
                    && !history.environment_may_set(record.percent, call.start, false)
            }
            Origin::Stands => {
                record.wanted() < made.wanted()
                    && !history.may_stand_above(record.wanted(), Some(call.number))
            }
            origin => history.has_surely_seen(call.number, origin),
        };
        // An instance that had not seen a change yet, which was made apart, may have put a lowering before it above others.
        let apart = history.stands_above_another(record, made)
            && !history.whole(call.at, call.start - 3.0, call.end + 0.5);
        if back && !apart && !withdrawn(history, record) {
            all.push(say(call, made, "what was before it is in force again"));
        }
    }
    all
}

/// Acknowledged raises that lost against a change whose author did not know of them, without a row on their instance.
fn silent(history: &History, settled: &Settled) -> Option<Finding> {
    let record = &settled.records[0];
    let Origin::Op(winner) = record.origin() else { return None };
    history.calls.iter().find_map(|call| {
        let made = call.made()?;
        let raised = call.parent.as_ref().is_some_and(|parent| made.wanted() > parent.wanted());
        // What was made on top of it speaks for it.
        let followed = |other: &Call| {
            other.number != call.number
                && other.may_count()
                && history.may_have_seen(other.number, call.number)
        };
        let trail = history.trails[call.at].as_ref().filter(|_| history.disk_is_sound(call.at))?;
        let lost = raised
            && winner != call.number
            && call.end < settled.healed
            && history.is_kept(call, settled.at)
            && !history.calls.iter().any(followed);
        let own = trail.iter().any(|row| {
            row["action"] == "rollout.lost" && row["from"]["percent"].as_f64() == Some(made.percent)
        });
        // An instance put a lowering above it, or its environment.
        let by_rule = ["rollout.stands", "rollout.withdrawn", "rollout.env"];
        let noted = own
            || history.trails.iter().any(|trail| {
                let of_rule = |row: &Value| by_rule.iter().any(|action| row["action"] == *action);
                trail.as_ref().is_none_or(|rows| rows.iter().any(of_rule))
            });
        (lost && !noted).then(|| {
            let evidence = format!(
                "op-{} on {} ({:.2} to {:.2} s) made {}, and {} took its place",
                call.number,
                call.at,
                call.start,
                call.end,
                made.short(),
                record.short()
            );
            finding(Kind::Silent, evidence)
        })
    })
}

/// Whether an instance made the record above a raise that it had refused and that could turn up yet.
fn withdrawn(history: &History, record: &Seen) -> bool {
    let rows = history.trails.iter().flatten().flatten();
    let mut of_record = rows.filter(|row| {
        (row["epoch"].as_u64(), row["revision"].as_u64()) == (Some(record.epoch), Some(record.revision))
    });
    of_record.any(|row| row["action"] == "rollout.withdrawn")
}

/// Pairs of changes that were bound to one state and both made, where nothing kept the instances apart.
fn twice(history: &History) -> Vec<Finding> {
    let bound =
        |call: &&Call| matches!(call.op, Op::Set(Set { .. })) && call.tag.is_some() && call.made().is_some();
    let calls: Vec<&Call> = history.calls.iter().filter(bound).collect();
    let mut all = Vec::new();
    for (index, one) in calls.iter().enumerate() {
        for other in &calls[index + 1..] {
            let (from, to) = (one.start.min(other.start) - 3.0, one.end.max(other.end) + 0.5);
            let apart = !history.whole(one.at, from, to) || !history.whole(other.at, from, to);
            let lost = history.losses.iter().any(|loss| (from - 3.0..=to).contains(loss));
            let one_state =
                one.parent.as_ref().zip(other.parent.as_ref()).is_some_and(|(one, other)| one.is_same(other));
            if one.tag == other.tag && one_state && !apart && !lost {
                let text = |call: &Call| {
                    let Some(Done { durable, applied, .. }) = call.done() else { return String::new() };
                    format!(
                        "op-{} {:?} on {} at {:.2} to {:.2} s, durable {durable}, applied {applied:?}",
                        call.number, call.op, call.at, call.start, call.end
                    )
                };
                let evidence = format!("with {:?}: {} and {}", one.tag, text(one), text(other));
                all.push(finding(Kind::Twice, evidence));
            }
        }
    }
    all
}
