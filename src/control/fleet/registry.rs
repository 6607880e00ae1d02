//! Who is there: what each instance says of itself, and by which way it was heard.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::doors::json::object;
use crate::limiter::clock::Micros;

/// So many ids of instances that have left are remembered.
const MOST_LEFT: usize = 256;

/// What an instance says of itself: a line in Redis, and what peers tell each other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Made at its start.
    pub id: String,
    /// Its host's name, or what it was told to be called.
    pub name: String,
    /// Of tidegate.
    pub version: String,
    /// The revision of its record.
    pub revision: u64,
    /// The epoch of its record.
    pub epoch: u64,
    /// The share of the keys that Redis decides there, in percent: what is in force.
    pub percent: f64,
    /// Its breaker: `closed`, `half_open`, `open`, or `not_configured`.
    pub breaker: String,
    /// The share of the canary's decisions of the last minute that Redis really made; nothing: there were none.
    pub exposure: Option<f64>,
    /// How much later than it was due its record came into force there, in milliseconds.
    pub lag_ms: u64,
    /// Since when its record is in force there, in microseconds of the fleet's clock.
    pub in_force_since: Micros,
    /// When it started, in RFC 3339.
    pub started_at: String,
    /// Where its admin API listens.
    pub admin: Option<String>,
    /// Whether it hears at once what is told through Redis; else by its next beat.
    #[serde(default)]
    pub listens: bool,
    /// What tells its overrides from others; empty: a version that says so otherwise, and is handed none.
    #[serde(default, rename = "overrides_digest")]
    pub overrides: String,
    /// When it said so, in milliseconds of the fleet's clock.
    pub at: u64,
}

/// By which way an instance was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// It is this one.
    #[serde(rename = "self")]
    This,
    /// Its line in Redis.
    Redis,
    /// It answered over HTTP, or asked.
    Peer,
}

/// Those whose lines are in Redis, without this one.
#[derive(Debug, Default)]
pub(super) struct Registry {
    rows: Mutex<BTreeMap<String, Row>>,
    /// When others were there last.
    company: Mutex<Option<Instant>>,
    /// The last of those that have left: a list that was read before is late.
    left: Mutex<VecDeque<String>>,
}

impl Registry {
    /// These lines are there. What is no row is passed over: a later version may say other things.
    pub(super) fn are(&self, lines: &[String], here: &str) {
        let rows = lines.iter().filter_map(|line| object::<Row>(line.as_bytes()).ok());
        let rows: BTreeMap<_, _> = rows
            .filter(|row| row.id != here && is_id(&row.id) && !self.has_left(&row.id))
            .map(|row| (row.id.clone(), row))
            .collect();
        if !rows.is_empty() {
            *self.company.lock() = Some(Instant::now());
        }
        *self.rows.lock() = rows;
    }

    /// Whether others were on the list so short a time ago.
    pub(super) fn had_company_within(&self, time: Duration) -> bool {
        self.company.lock().is_some_and(|last| last.elapsed() < time)
    }

    /// One of those who are there says that it stands so by now; `from` is who really said it.
    pub(super) fn is(&self, row: Row, from: &str, here: &str) {
        if row.id == from && from != here {
            self.rows.lock().entry(row.id.clone()).and_modify(|known| *known = row);
        }
    }

    /// This one has ended.
    pub(super) fn gone(&self, id: &str) {
        let mut left = self.left.lock();
        left.push_back(id.to_owned());
        if left.len() > MOST_LEFT {
            left.pop_front();
        }
        drop(left);
        self.rows.lock().remove(id);
    }

    /// Whether the instance with this id has said that it ends. An id is made at each start.
    pub(super) fn has_left(&self, id: &str) -> bool {
        self.left.lock().iter().any(|left| left == id)
    }

    /// The others' rows.
    pub(super) fn rows(&self) -> Vec<Row> {
        self.rows.lock().values().cloned().collect()
    }

    /// How many others there are.
    pub(super) fn len(&self) -> usize {
        self.rows.lock().len()
    }

    /// Whether some of the others hear of things by their beats only.
    pub(super) fn has_deaf(&self) -> bool {
        self.rows.lock().values().any(|row| !row.listens)
    }

    /// What the instance with this id is called.
    pub(super) fn name_of(&self, id: &str) -> Option<String> {
        self.rows.lock().get(id).map(|row| row.name.clone())
    }
}

/// The text of an id.
pub(super) fn id_text(id: u64) -> String {
    format!("{id:016x}")
}

fn is_id(text: &str) -> bool {
    text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
pub(super) fn row(id: u64, revision: u64) -> Row {
    Row {
        id: id_text(id),
        name: format!("host-{id}"),
        version: "1".into(),
        revision,
        epoch: 0,
        percent: 10.0,
        breaker: "closed".into(),
        exposure: None,
        lag_ms: 0,
        in_force_since: 0,
        started_at: "now".into(),
        admin: None,
        listens: true,
        overrides: String::new(),
        at: 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_row_and_the_row_of_this_instance_are_passed_over() {
        let registry = Registry::default();
        let line = |id| serde_json::to_string(&row(id, 3)).unwrap();
        let odd = line(3).replace(&id_text(3), "not an id");
        registry.are(&[line(1), "{}".into(), "nonsense".into(), odd, line(2)], &id_text(1));
        let rows = registry.rows();
        assert_eq!((rows.len(), rows[0].name.as_str()), (1, "host-2"));
        assert_eq!((registry.name_of(&id_text(2)).as_deref(), registry.len()), (Some("host-2"), 1));
        registry.is(row(2, 4), &id_text(2), &id_text(1));
        registry.is(row(5, 4), &id_text(5), &id_text(1));
        registry.is(row(2, 9), &id_text(5), &id_text(1));
        assert_eq!(registry.rows(), [row(2, 4)], "of who is there, by its own word");
        registry.gone(&id_text(2));
        assert_eq!(registry.rows(), []);
    }
}
