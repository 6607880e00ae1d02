//! Who is there: what each instance says of itself, and by which way it was heard.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::control::record::Register;
use crate::doors::json::object;
use crate::limiter::clock::Micros;

/// So many ids of instances that have left are remembered.
const MOST_LEFT: usize = 256;
/// The longest time that [`Registry::listed_within`] knows of: twice the longest heartbeat.
const LONGEST_LISTED: Duration = Duration::from_secs(2 * 3_600);

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
    /// The entity tag of its record; empty: a version that says none.
    #[serde(default)]
    pub record: String,
    /// The lowerings that its record does not follow, in short; empty: there are none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub unheard: String,
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
    /// The same, in milliseconds of the fleet's clock; 0: a version that does not say so.
    #[serde(default)]
    pub since: u64,
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

impl Row {
    /// The name and the address of the admin API; `None` where the latter is not known.
    fn place(&self) -> Option<(&str, &str)> {
        Some((&self.name, self.admin.as_deref()?))
    }

    /// Whether its record is another one.
    pub(super) fn differs_from(&self, other: &Self) -> bool {
        let both_say = !self.record.is_empty() && !other.record.is_empty();
        (self.epoch, self.revision) != (other.epoch, other.revision)
            || both_say && self.record != other.record
    }

    /// Whether its instance may lack something of a register that was met with its own already.
    pub(super) fn lacks(&self, ours: &Register) -> bool {
        let record = &ours.record;
        if self.record.is_empty() {
            return (record.epoch, record.revision) > (self.epoch, self.revision);
        }
        self.record != record.etag() || self.unheard != ours.unheard_text()
    }
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
    /// When each instance was on the list last.
    listed: Mutex<HashMap<String, Instant>>,
}

impl Registry {
    /// These lines are there; `own` is what this instance says of itself. What is no row is passed over: a later version may
    /// say other things. So is one that another has replaced: it would count until it has been silent for long enough.
    pub(super) fn are(&self, lines: &[String], own: &Row) {
        let rows = lines.iter().filter_map(|line| object::<Row>(line.as_bytes()).ok());
        let rows: Vec<Row> =
            rows.filter(|row| row.id != own.id && is_id(&row.id) && !self.has_left(&row.id)).collect();
        let mut latest = HashMap::<(&str, &str), u64>::new();
        for row in rows.iter().chain([own]) {
            if let Some(place) = row.place() {
                let since = latest.entry(place).or_default();
                *since = row.since.max(*since);
            }
        }
        // One process can listen at an address: who was silent since a later one started there has ended without a word.
        let is_replaced = |row: &&Row| {
            row.place().and_then(|place| latest.get(&place)).is_some_and(|&since| since > row.at)
        };
        let replaced: HashSet<String> = rows.iter().filter(is_replaced).map(|row| row.id.clone()).collect();
        let there = rows.into_iter().filter(|row| !replaced.contains(&row.id));
        let rows: BTreeMap<_, _> = there.map(|row| (row.id.clone(), row)).collect();
        if !rows.is_empty() {
            *self.company.lock() = Some(Instant::now());
        }
        let mut listed = self.listed.lock();
        listed.retain(|id, last| !replaced.contains(id) && last.elapsed() < LONGEST_LISTED);
        listed.extend(rows.keys().map(|id| (id.clone(), Instant::now())));
        drop(listed);
        *self.rows.lock() = rows;
    }

    /// How many others were on the list within this time, those that have left or were replaced excepted. A Redis that lost
    /// the list names none of them until each has written its row again: by the list alone, the first to read it would
    /// take the whole of each limit for its share.
    pub(super) fn listed_within(&self, time: Duration) -> usize {
        self.listed.lock().values().filter(|last| last.elapsed() <= time).count()
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
        self.listed.lock().remove(id);
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
        record: String::new(),
        unheard: String::new(),
        percent: 10.0,
        breaker: "closed".into(),
        exposure: None,
        lag_ms: 0,
        in_force_since: 0,
        started_at: "now".into(),
        since: 0,
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
        registry.are(&[line(1), "{}".into(), "nonsense".into(), odd, line(2)], &row(1, 3));
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

    #[test]
    fn lost_list_does_not_shrink_the_fleet_at_once() {
        let registry = Registry::default();
        let lines = [1, 2, 3, 4].map(|id| serde_json::to_string(&row(id, 3)).unwrap());
        registry.are(&lines, &row(1, 3));
        registry.are(&lines[..1], &row(1, 3));
        let hour = Duration::from_secs(3_600);
        assert_eq!((registry.len(), registry.listed_within(hour)), (0, 3));
        registry.gone(&id_text(2));
        assert_eq!(registry.listed_within(hour), 2, "it said that it ends");
        assert_eq!(registry.listed_within(Duration::ZERO), 0);
    }

    #[test]
    fn killed_instance_is_replaced_by_a_later_one_of_its_place() {
        let at = |id, name: &str, admin: Option<&str>, since, at| Row {
            name: name.into(),
            admin: admin.map(Into::into),
            since,
            at,
            ..row(id, 3)
        };
        let others = |own: &Row, rows: &[Row]| -> Vec<String> {
            let registry = Registry::default();
            let lines: Vec<String> = rows.iter().map(|row| serde_json::to_string(row).unwrap()).collect();
            registry.are(&lines, own);
            registry.rows().into_iter().map(|row| row.id).collect()
        };
        let ids = |ids: &[u64]| ids.iter().map(|id| id_text(*id)).collect::<Vec<_>>();
        let (own, killed) = (at(1, "a", Some("h:1"), 5, 90), at(2, "b", Some("h:2"), 10, 50));
        let later = at(3, "b", Some("h:2"), 60, 80);
        assert_eq!(others(&own, &[killed.clone(), later.clone()]), ids(&[3]));
        assert_eq!(others(&later, &[killed.clone(), own.clone()]), ids(&[1]), "its own predecessor");
        let beats_on = Row { at: 70, ..killed.clone() };
        assert_eq!(others(&own, &[beats_on, later.clone()]), ids(&[2, 3]), "two of one name");
        let elsewhere = Row { admin: Some("h:3".into()), ..later.clone() };
        assert_eq!(others(&own, &[killed.clone(), elsewhere]), ids(&[2, 3]));
        let nowhere = [killed, later].map(|row| Row { admin: None, ..row });
        assert_eq!(others(&own, &nowhere), ids(&[2, 3]));
    }
}
