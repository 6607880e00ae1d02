//! The audit trails: one row for each acknowledged change, and none of an environment that is not news.

use serde_json::Value;

use crate::check::{Finding, Kind, finding};
use crate::history::{Call, History, Life};
use crate::plan::Op;

pub fn findings(history: &History) -> Vec<Finding> {
    let mut all = Vec::new();
    let of = |at: usize| history.trails[at].iter().flatten();
    for call in history.calls.iter().filter(|call| call.done().is_some()) {
        // A disk that was away or is gone has lost rows, and an answer that was not durable may have none.
        let complete = history.trails[call.at].is_some() && history.disk_is_sound(call.at);
        if !complete || call.done().is_none_or(|done| !done.durable) {
            continue;
        }
        // An answer waits for a second for the disk, and Redis may have kept the change before.
        let ended = history.life(call.at, call.life).map_or(f64::INFINITY, |life| life.to);
        if call.end - call.start > 0.9 && ended < call.end + 3.0 {
            continue;
        }
        let reason = format!("op-{}", call.number);
        let action = match call.op {
            Op::Set(_) if call.made().is_some() => "rollout.set",
            Op::Rollback if call.made().is_some() => "rollout.rollback",
            Op::Block(..) => "overrides.put",
            _ => continue,
        };
        let is_row =
            |row: &&Value| row["reason"] == *reason && row["action"] == action && row["result"] == "done";
        let rows: Vec<&Value> = of(call.at).filter(is_row).collect();
        let elsewhere =
            (0..history.trails.len()).filter(|at| *at != call.at).flat_map(of).filter(is_row).count();
        if rows.len() != 1 || elsewhere > 0 {
            let evidence = format!(
                "{reason} {:?} on {} has {} rows there and {elsewhere} elsewhere",
                call.op,
                call.at,
                rows.len()
            );
            all.push(finding(Kind::Audit, evidence));
        }
    }
    for at in 0..history.trails.len() {
        all.extend(deletions(history, at));
        all.extend(environment(history, at));
        all.extend(order(history, at));
    }
    all
}

/// The trail is newest first, whatever the wall clock did: of two changes that came one after the other the later one
/// comes first.
fn order(history: &History, at: usize) -> Option<Finding> {
    let rows = history.trails[at].as_ref()?;
    let of_change = |call: &Call| {
        let reason = format!("op-{}", call.number);
        let own = |row: &Value| {
            let action = row["action"].as_str().unwrap_or_default();
            row["reason"] == *reason && ["rollout.set", "rollout.rollback", "overrides.put"].contains(&action)
        };
        rows.iter().position(own)
    };
    let answered = history.calls.iter().filter(|call| call.at == at && call.done().is_some());
    let places: Vec<(&Call, usize)> = answered.filter_map(|call| Some((call, of_change(call)?))).collect();
    places.iter().enumerate().find_map(|(index, (one, place))| {
        let wrong = |(other, before): &&(&Call, usize)| {
            one.end < other.start && before > place || other.end < one.start && place > before
        };
        places[index + 1..].iter().find(wrong).map(|(other, _)| {
            let evidence =
                format!("op-{} and op-{} on {at} are in the wrong order", one.number, other.number);
            finding(Kind::Audit, evidence)
        })
    })
}

/// A deletion has no reason: as many rows as answers, for each override.
fn deletions(history: &History, at: usize) -> Option<Finding> {
    let rows = history.trails[at].as_ref().filter(|_| history.disk_is_sound(at))?;
    (0..crate::plan::KEYS).find_map(|id| {
        let name = format!("o{id}");
        let made = rows
            .iter()
            .filter(|row| row["action"] == "overrides.delete" && row["from"]["id"] == *name)
            .count();
        let of_id = |call: &&Call| call.op == Op::Lift(id) && call.at == at;
        let answered = history
            .calls
            .iter()
            .filter(of_id)
            .filter(|call| call.done().is_some_and(|done| done.durable))
            .count();
        let possible = history.calls.iter().filter(of_id).filter(|call| call.may_count()).count();
        let right = (answered..=possible).contains(&made);
        (!right).then(|| {
            let evidence =
                format!("{made} rows of deletions of {name} on {at}, {answered} to {possible} were made");
            finding(Kind::Audit, evidence)
        })
    })
}

/// The environment of an instance changes the record only at a start with a value that is news to its disk: when the disk is
/// read, and once more at the first contact with the others.
fn environment(history: &History, at: usize) -> Option<Finding> {
    const AT_MOST: usize = 2;
    let rows = history.trails[at].as_ref()?;
    let mut values: Vec<u8> =
        history.lives.iter().filter(|life| life.at == at).map(|life| life.percent).collect();
    values.sort_unstable();
    values.dedup();
    // A clock that stepped dates rows wrongly.
    let dated = !history.steps.iter().any(|(of, _)| *of == at);
    values.into_iter().find_map(|value| {
        let of_value = |row: &&Value| {
            row["action"] == "rollout.env" && row["to"]["percent"].as_f64() == Some(f64::from(value))
        };
        let made: Vec<&Value> = rows.iter().filter(of_value).collect();
        let starts = history.lives.iter().filter(|life| life.at == at && life.percent == value);
        let news: Vec<&Life> = starts.filter(|life| history.is_news(life)).collect();
        let at_a_start = |row: &Value| {
            let moment = row["at"].as_str().and_then(|moment| history.since_began(moment));
            moment.is_none_or(|moment| {
                news.iter().any(|life| moment > life.from - 0.2 && moment < history.contact(life) + 0.5)
            })
        };
        let late = made.iter().find(|row| dated && !at_a_start(row));
        (late.is_some() || made.len() > AT_MOST * news.len()).then(|| {
            let text = |row: &&Value| {
                let moment = row["at"].as_str().and_then(|moment| history.since_began(moment));
                format!("{} → {} at {:.2} s", row["from"], row["to"], moment.unwrap_or(f64::NAN))
            };
            let texts: Vec<String> = made.iter().map(text).collect();
            let starts: Vec<String> = news
                .iter()
                .map(|life| format!("{:.2} to {:.2} s", life.from, history.contact(life)))
                .collect();
            let evidence = format!(
                "changes to {value} by the environment of {at}: {}; it was news in the starts {}",
                texts.join(", "),
                starts.join(", ")
            );
            finding(Kind::Environment, evidence)
        })
    })
}
