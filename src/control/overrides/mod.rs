//! Overrides: a subject's own limit, exemption or block. The book of them, of which every instance has a copy; each copy
//! takes what is newer, by one order, from wherever it comes: the disk, Redis, the other instances.

mod api;
mod entry;
mod keep;
mod put;
mod sharing;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::Notify;

pub use api::{delete, list, one, put, put_new};
pub use entry::{Body, Effect, Entry, Limit};

use super::database::Database;
use crate::limiter::Limiter;
use crate::limiter::overrides::Override;
use crate::redis::RedisStore;
use sharing::Sharing;

/// So many are in force at most.
pub const MOST: usize = 10_000;

/// From where versions come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// They are on the disk.
    Disk,
    /// They are in Redis.
    Redis,
    /// Another instance told them.
    Fleet,
}

/// All overrides that are known here.
pub struct Book {
    limiter: Arc<Limiter<RedisStore>>,
    database: Arc<Database>,
    /// Whether clients' keys may stand in the trail.
    raw_keys: bool,
    held: Mutex<Held>,
    /// One writer at a time.
    writing: tokio::sync::Mutex<u64>,
    wake: Notify,
}

#[derive(Default)]
struct Held {
    entries: BTreeMap<String, Entry>,
    /// Ids of what the disk does not have as it is here.
    unkept: BTreeSet<String>,
    /// What is known of Redis.
    sharing: Sharing,
    /// What tells all of this from others: the sum of the digests of all versions.
    digest: u64,
}

/// Why a change was not made.
#[derive(Clone, Debug)]
pub enum Refusal {
    /// There is none of this id.
    Unknown,
    /// There is one, and the tag is not given.
    TagRequired(Box<Entry>),
    /// There is another than the tag says; `None`: none any more.
    Stale(Option<Box<Entry>>),
    /// Another one is for the same subject: its id.
    Taken(String),
    /// There are [`MOST`].
    TooMany,
}

/// A change that was made: what was in force before, and what is.
#[derive(Clone, Debug)]
pub struct Changed {
    /// What was.
    pub was: Option<Entry>,
    /// What is.
    pub is: Entry,
}

impl Book {
    /// An empty book of the overrides of this limiter, kept in this database.
    pub fn new(limiter: Arc<Limiter<RedisStore>>, database: Arc<Database>, raw_keys: bool) -> Arc<Self> {
        let (held, writing, wake) = Default::default();
        Arc::new(Self { limiter, database, raw_keys, held, writing, wake })
    }

    /// The one with this id that is in force.
    pub fn get(&self, id: &str) -> Option<Entry> {
        self.held.lock().live(id, self.now()).cloned()
    }

    /// Those in force behind this id, in the order of their ids.
    pub fn page(&self, after: &str, limit: usize) -> (Vec<Entry>, usize) {
        let (held, now) = (self.held.lock(), self.now());
        let live = || held.entries.values().filter(|entry| is_live(entry, now));
        let page = live().filter(|entry| entry.id.as_str() > after).take(limit).cloned().collect();
        (page, live().count())
    }

    /// Every version that is known, of those that are over as well.
    pub fn all(&self) -> Vec<Entry> {
        self.held.lock().entries.values().cloned().collect()
    }

    /// What tells all of them from others'.
    pub fn digest(&self) -> String {
        format!("{:016x}", self.held.lock().digest)
    }

    /// Puts one in force: a new one, or in the place of the one whose tag was `seen` (`"*"`: whichever).
    ///
    /// # Errors
    /// When another is there, or there are too many.
    pub fn put(&self, id: &str, body: Body, seen: Option<&str>) -> Result<Changed, Refusal> {
        let (now, rules, spec) = (self.now(), self.limiter.rules(), body.spec(id));
        let mut held = self.held.lock();
        let was = held.live(id, now).cloned();
        agree(was.as_ref(), seen)?;
        if let (Some(was), None) = (&was, seen) {
            return Err(Refusal::TagRequired(Box::new(was.clone())));
        }
        let others = || held.entries.values().filter(|entry| entry.id != id && is_live(entry, now));
        let meets = |entry: &&Entry| {
            // Cheap first: there may be thousands.
            let other = entry
                .body
                .as_ref()
                .filter(|other| (&other.rule, &other.policy) == (&body.rule, &body.policy));
            let specs = spec.as_ref().zip(other.and_then(|other| other.spec(&entry.id)));
            specs.is_some_and(|(one, other)| one.meets(&other, &rules))
        };
        if let Some(other) = others().find(meets) {
            return Err(Refusal::Taken(other.id.clone()));
        }
        if was.is_none() && others().count() >= MOST {
            return Err(Refusal::TooMany);
        }
        let body = match was.as_ref().and_then(|was| was.body.as_ref()) {
            Some(was) => Body { created_by: was.created_by.clone(), created_at: was.created_at, ..body },
            None => body,
        };
        let is = held.next(id, Some(body), now);
        self.put_in_force(&held, now);
        drop(held);
        self.wake.notify_one();
        Ok(Changed { was, is })
    }

    /// Takes one back.
    ///
    /// # Errors
    /// When there is none, or another than was seen.
    pub fn delete(&self, id: &str, seen: Option<&str>) -> Result<Changed, Refusal> {
        let now = self.now();
        let mut held = self.held.lock();
        let was = held.live(id, now).cloned();
        agree(was.as_ref(), seen)?;
        let was = Some(was.ok_or(Refusal::Unknown)?);
        let is = held.next(id, None, now);
        self.put_in_force(&held, now);
        drop(held);
        self.wake.notify_one();
        Ok(Changed { was, is })
    }

    /// Takes what is newer than what is here, and puts it in force.
    pub fn merge(&self, theirs: Vec<Entry>, origin: Origin) {
        let now = self.now();
        let mut held = self.held.lock();
        let mut changed = false;
        for entry in theirs.into_iter().filter_map(Entry::sound) {
            if is_forgotten(&entry, now) {
                continue;
            }
            let known = held.entries.get(&entry.id).map(Entry::order);
            let id = entry.id.clone();
            let has_it = match known {
                Some(known) if known >= entry.order() => known == entry.order(),
                _ => {
                    changed = true;
                    held.insert(entry);
                    true
                }
            };
            match origin {
                Origin::Fleet => {}
                Origin::Redis => held.sharing.is_shared(&id, has_it),
                Origin::Disk if has_it => _ = held.unkept.remove(&id),
                Origin::Disk => _ = held.unkept.insert(id),
            }
        }
        if changed {
            self.put_in_force(&held, now);
            drop(held);
            self.wake.notify_one();
        }
    }

    /// Now, by the clock of the fleet.
    pub fn now(&self) -> DateTime<Utc> {
        let micros = i64::try_from(self.limiter.wall()).unwrap_or(i64::MAX);
        DateTime::from_timestamp_micros(micros).unwrap_or_else(Utc::now)
    }

    /// Ends what has run out, each instance for itself, and forgets what is over for long. Its subject is forgotten at
    /// once. By a clock that may not be the fleet's nothing is ended: it would not come back.
    fn prune(&self, now: DateTime<Utc>) {
        let mut held = self.held.lock();
        let may_end = self.limiter.knows_wall();
        let over = |entry: &&Entry| may_end && entry.body.as_ref().is_some_and(|body| body.is_over(now));
        let ended: Vec<Entry> = held.entries.values().filter(over).cloned().collect();
        let any = !ended.is_empty();
        for entry in ended {
            let at = entry.body.as_ref().and_then(|body| body.expires_at).unwrap_or(now);
            held.end(entry.ran_out(at));
        }
        // Every instance has ended it by now: what others still hold of it goes.
        let settled = |entry: &&Entry| may_end && entry.ran_out_long_ago(now);
        let settled: Vec<Entry> = held.entries.values().filter(settled).cloned().collect();
        settled.into_iter().for_each(|entry| held.insert(Entry { ran_out: false, ..entry }));
        let forgotten: Vec<String> = held
            .entries
            .values()
            .filter(|entry| is_forgotten(entry, now))
            .map(|entry| entry.id.clone())
            .collect();
        // Of too many that are over those that were over first.
        let mut over: Vec<(u64, String)> =
            held.entries.values().filter_map(|entry| Some((entry.kept_till()?, entry.id.clone()))).collect();
        if over.len() > MOST {
            over.sort_unstable();
            over.truncate(over.len() - MOST);
            over.iter().for_each(|(_, id)| held.forget(id, true));
        }
        forgotten.iter().for_each(|id| held.forget(id, false));
        if any {
            self.put_in_force(&held, now);
        }
    }

    fn put_in_force(&self, held: &Held, now: DateTime<Utc>) {
        let live = held.entries.values().filter(|entry| is_live(entry, now));
        let specs: Vec<Override> = live.filter_map(|entry| entry.body.as_ref()?.spec(&entry.id)).collect();
        self.limiter.put_overrides(specs);
    }
}

impl Held {
    fn live(&self, id: &str, now: DateTime<Utc>) -> Option<&Entry> {
        self.entries.get(id).filter(|entry| is_live(entry, now))
    }

    /// Makes the next version of one.
    fn next(&mut self, id: &str, body: Option<Body>, now: DateTime<Utc>) -> Entry {
        let known = self.entries.get(id);
        let entry = Entry {
            id: id.to_owned(),
            version: known.map_or(1, |known| known.version + 1),
            updated_at: u64::try_from(now.timestamp_micros()).unwrap_or(0),
            draw: rand::random(),
            ended_at: body.is_none().then(|| now.timestamp_millis()),
            ran_out: false,
            body,
        };
        self.insert(entry.clone());
        entry
    }

    fn insert(&mut self, entry: Entry) {
        self.unkept.insert(entry.id.clone());
        self.sharing.inserted(&entry.id);
        self.digest = self.digest.wrapping_add(digest(&entry));
        if let Some(old) = self.entries.insert(entry.id.clone(), entry) {
            self.digest = self.digest.wrapping_sub(digest(&old));
        }
    }

    /// Puts one that has run out in the place of what it was. It is not broadcast: each instance ends it for itself.
    fn end(&mut self, entry: Entry) {
        let id = entry.id.clone();
        let is_shared = self.sharing.has(&id);
        self.insert(entry);
        self.sharing.is_shared(&id, is_shared);
    }

    /// `early`: before the time until which it is to be known.
    fn forget(&mut self, id: &str, early: bool) {
        if let Some(old) = self.entries.remove(id) {
            self.digest = self.digest.wrapping_sub(digest(&old));
            self.sharing.forgotten(&old, early);
            self.unkept.insert(old.id);
        }
    }
}

/// Whether what was seen is what is there.
fn agree(is: Option<&Entry>, seen: Option<&str>) -> Result<(), Refusal> {
    match (seen, is) {
        (None, _) | (Some("*"), Some(_)) => Ok(()),
        (Some(seen), Some(is)) if is.etag() == seen => Ok(()),
        (Some(_), is) => Err(Refusal::Stale(is.cloned().map(Box::new))),
    }
}

fn is_live(entry: &Entry, now: DateTime<Utc>) -> bool {
    entry.body.as_ref().is_some_and(|body| !body.is_over(now))
}

fn is_forgotten(entry: &Entry, now: DateTime<Utc>) -> bool {
    entry.kept_till().is_some_and(|till| (till as i64) < now.timestamp_millis())
}

/// Of a version: one that has run out is the same until it is changed.
fn digest(entry: &Entry) -> u64 {
    let [version, updated_at, draw, _] = entry.order();
    let mut digest = Sha256::new();
    [version, updated_at, draw].iter().for_each(|number| digest.update(number.to_be_bytes()));
    let digest = digest.chain_update(&entry.id).finalize();
    digest.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}
