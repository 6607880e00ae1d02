//! The rollout's record: what is in force, since when, by whom, why. And what may change it.
//!
//! It lives in the process for now; the durable record and the fleet's agreement take their place here.

use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, Utc};
use parking_lot::Mutex;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::limiter::clock::Micros;
use crate::limiter::decision::Backend;
use crate::limiter::event::{Event, Observer};
use crate::limiter::rollout::{InForce, Percent, Rollout};

/// What an operator sees and changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The flag: `memory` switches the whole percentage off.
    #[serde(with = "flag")]
    pub backend: Backend,
    /// Share of the keys that Redis decides when the flag is `redis`.
    #[serde(with = "share")]
    pub percent: Percent,
    /// Counts rollbacks and lowerings, so that they win over raises made elsewhere.
    pub epoch: u64,
    /// Counts changes.
    pub revision: u64,
    /// When it was changed last.
    pub updated_at: DateTime<Utc>,
    /// By whom.
    pub updated_by: String,
    /// Why.
    pub reason: String,
    /// When a raise comes into force, in microseconds of the fleet's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective_at: Option<Micros>,
    /// The share in force until then.
    #[serde(default, with = "share")]
    pub previous: Percent,
}

/// The environment that a record was held against last.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RememberedEnv {
    /// `RATE_LIMIT_BACKEND`.
    pub backend: Option<String>,
    /// `RATE_LIMIT_CANARY_PERCENT`.
    pub percent: Option<f64>,
}

mod flag {
    use super::Backend;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};
    pub(super) fn serialize<S: Serializer>(backend: &Backend, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(backend.as_str())
    }
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Backend, D::Error> {
        match String::deserialize(from)?.as_str() {
            "redis" => Ok(Backend::Redis),
            "memory" => Ok(Backend::Memory),
            other => Err(D::Error::custom(other)),
        }
    }
}

mod share {
    use super::Percent;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};
    pub(super) fn serialize<S: Serializer>(percent: &Percent, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(percent.as_f64())
    }
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Percent, D::Error> {
        Percent::try_from(f64::deserialize(from)?).map_err(D::Error::custom)
    }
}

/// From where a record came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The key in Redis.
    Redis,
    /// The channel.
    Fleet,
    /// A peer.
    Peer,
}

/// How many have a change in force, of how many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// So many have.
    pub done: usize,
    /// So many there are.
    pub of: usize,
    /// The others.
    pub pending: Vec<String>,
}

/// What became of a raise.
#[derive(Clone, Debug, PartialEq)]
pub enum Raised {
    /// This is the fleet's record.
    Won(Box<Record>),
    /// This one came first.
    Lost(Box<Record>),
}

/// Nobody could be asked.
#[derive(Clone, Debug, PartialEq)]
pub struct CarrierFault(pub String);

/// How a record reaches the others.
pub trait Carrier: Send + Sync {
    /// Compare and set.
    fn raise<'a>(&'a self, seen: &'a Record, next: &'a Record) -> BoxFuture<'a, Result<Raised, CarrierFault>>;
    /// Tells everybody.
    fn announce<'a>(&'a self, record: &'a Record) -> BoxFuture<'a, Applied>;
    /// The fleet's clock.
    fn now(&self) -> Micros;
}

/// Since when something is in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Since {
    /// By the fleet's clock.
    pub since: Micros,
    /// How much later than it was due.
    pub lag: Micros,
}

impl Record {
    /// Whether this one is newer.
    pub fn supersedes(&self, other: &Self) -> bool {
        let order = |record: &Self| {
            (record.epoch, record.revision, std::cmp::Reverse(record.wanted().basis_points()))
        };
        order(self) > order(other)
    }

    /// The share that this record asks for.
    pub fn wanted(&self) -> Percent {
        match self.backend {
            Backend::Memory => Percent::NONE,
            Backend::Redis => self.percent,
        }
    }

    /// The entity tag: changes with every revision.
    pub fn etag(&self) -> String {
        format!("\"{}-{}\"", self.epoch, self.revision)
    }

    /// When it was changed last, in RFC 3339.
    pub fn updated_at_text(&self) -> String {
        self.updated_at.to_rfc3339_opts(SecondsFormat::Millis, true)
    }
}

/// A change that somebody asks for.
#[derive(Clone, Debug)]
pub struct Change<'a> {
    /// The new share.
    pub percent: Percent,
    /// The new flag, if it is to change.
    pub backend: Option<Backend>,
    /// Who asks.
    pub actor: &'a str,
    /// Why.
    pub reason: &'a str,
    /// The entity tags that the asker has seen, as in `If-Match`.
    pub seen: Option<&'a str>,
}

/// Why a change is not made.
#[derive(Clone, Debug, PartialEq)]
pub enum Refusal {
    /// The environment rules out Redis; why.
    DisabledByEnv(&'static str),
    /// Only the environment may raise.
    PinnedByEnv,
    /// Whoever raises must say which state they have seen.
    TagRequired,
    /// The state has changed since; what it is now.
    Stale(Box<Record>),
}

/// What the environment rules.
#[derive(Clone, Copy, Debug, Default)]
pub struct EnvironmentRules {
    /// Why memory decides whatever the record says.
    pub hard_off: Option<&'static str>,
    /// Whether only the environment may raise.
    pub pinned: bool,
}

/// The wheel: changes the record and puts it in force.
pub struct Steering {
    record: Mutex<Record>,
    rules: EnvironmentRules,
    rollout: Arc<Rollout>,
    observer: Arc<dyn Observer>,
    carrier: std::sync::OnceLock<Arc<dyn Carrier>>,
    since: Mutex<Since>,
}

impl Steering {
    /// The way to the others.
    pub fn carried_by(&self, carrier: Arc<dyn Carrier>) {
        let _ = self.carrier.set(carrier);
    }

    /// The environment.
    pub fn remembered(&self) -> Option<RememberedEnv> {
        None
    }

    /// Since when.
    pub fn in_force(&self) -> Since {
        *self.since.lock()
    }

    /// A record from elsewhere.
    pub fn adopt(self: &Arc<Self>, record: Record, _: Option<RememberedEnv>, _: Source) -> bool {
        let mut ours = self.record.lock();
        if !record.supersedes(&ours) {
            return false;
        }
        *ours = record.clone();
        self.put_in_force(&record);
        true
    }

    fn now(&self) -> Micros {
        self.carrier.get().map_or(0, |carrier| carrier.now())
    }

    fn put_in_force(self: &Arc<Self>, record: &Record) {
        let now = self.now();
        let from = self.rollout.in_force();
        if let Some(at) = record.effective_at.filter(|&at| at > now) {
            self.rollout.put(InForce { percent: record.previous, revision: record.revision });
            let this = Arc::clone(self);
            let record = record.clone();
            tokio::spawn(async move {
                tokio::time::sleep(std::time::Duration::from_micros(at - now)).await;
                let still = this.record.lock();
                if *still == record {
                    this.comes(&record, from);
                }
            });
            return;
        }
        self.comes(record, from);
    }

    fn comes(&self, record: &Record, from: InForce) {
        let now = self.now();
        let due = record.effective_at.unwrap_or(record.updated_at.timestamp_micros() as Micros);
        *self.since.lock() = Since { since: now, lag: now.saturating_sub(due) };
        let to = self.to(record);
        self.rollout.put(to);
        self.observer.observe(&Event::RolloutChanged { from, to, actor: &record.updated_by, reason: &record.reason });
    }

    /// Everywhere.
    pub async fn change_everywhere(self: &Arc<Self>, change: &Change<'_>) -> Result<(Record, Option<Applied>), Refusal> {
        let seen = self.record();
        let raises = change.percent > seen.wanted() || change.backend == Some(Backend::Redis);
        let Some(carrier) = self.carrier.get() else { return Ok((self.change(change)?, None)) };
        if !raises {
            let next = self.change(change)?;
            let applied = carrier.announce(&next).await;
            return Ok((next, Some(applied)));
        }
        if change.seen.is_none() { return Err(Refusal::TagRequired); }
        if !matches(change.seen.unwrap_or_default(), &seen.etag()) { return Err(Refusal::Stale(Box::new(seen))); }
        if let Some(why) = self.rules.hard_off { return Err(Refusal::DisabledByEnv(why)); }
        if self.rules.pinned { return Err(Refusal::PinnedByEnv); }
        let next = Record {
            backend: change.backend.unwrap_or(seen.backend), percent: change.percent, revision: seen.revision + 1,
            updated_at: Utc::now(), updated_by: change.actor.to_owned(), reason: change.reason.to_owned(), previous: seen.wanted(), ..seen.clone()
        };
        match carrier.raise(&seen, &next).await {
            Ok(Raised::Won(record)) => {
                self.adopt((*record).clone(), None, Source::Redis);
                let applied = carrier.announce(&record).await;
                Ok((*record, Some(applied)))
            }
            Ok(Raised::Lost(record)) => Err(Refusal::Stale(record)),
            Err(_) => {
                self.adopt(next.clone(), None, Source::Redis);
                let applied = carrier.announce(&next).await;
                Ok((next, Some(applied)))
            }
        }
    }

    /// Everywhere.
    pub async fn roll_back_everywhere(self: &Arc<Self>, actor: &str, reason: &str) -> (Record, Option<Applied>) {
        let record = self.roll_back(actor, reason);
        let Some(carrier) = self.carrier.get() else { return (record, None) };
        let applied = carrier.announce(&record).await;
        (record, Some(applied))
    }

    fn to(&self, record: &Record) -> InForce {
        let percent = match self.rules.hard_off {
            Some(_) => Percent::NONE,
            None => record.wanted(),
        };
        InForce { percent, revision: record.revision }
    }

    /// Puts `record` in force.
    pub fn new(
        record: Record,
        rules: EnvironmentRules,
        rollout: Arc<Rollout>,
        observer: Arc<dyn Observer>,
    ) -> Self {
        let steering = Self { record: Mutex::new(record), rules, rollout, observer, carrier: Default::default(), since: Mutex::default() };
        let in_force = steering.to(&steering.record.lock());
        steering.rollout.put(in_force);
        steering.observer.observe(&Event::RolloutInForce(in_force));
        steering
    }

    /// The record as it is now.
    pub fn record(&self) -> Record {
        self.record.lock().clone()
    }

    /// What the environment rules.
    pub fn rules(&self) -> EnvironmentRules {
        self.rules
    }

    /// Changes the share. When it returns, the next request is decided by it.
    ///
    /// # Errors
    /// When the environment forbids it, or a raise was asked for without having seen the present state. Lowering
    /// needs neither.
    pub fn change(&self, change: &Change<'_>) -> Result<Record, Refusal> {
        let mut record = self.record.lock();
        let next = Record {
            backend: change.backend.unwrap_or(record.backend),
            percent: change.percent,
            ..record.clone()
        };
        if let Some(why) = self.rules.hard_off.filter(|_| next.wanted() > Percent::NONE) {
            return Err(Refusal::DisabledByEnv(why));
        }
        let raises = next.wanted() > record.wanted();
        if raises && self.rules.pinned {
            return Err(Refusal::PinnedByEnv);
        }
        match change.seen {
            None if raises => return Err(Refusal::TagRequired),
            Some(seen) if !matches(seen, &record.etag()) => {
                return Err(Refusal::Stale(Box::new(record.clone())));
            }
            _ => {}
        }
        if next == *record {
            return Ok(next);
        }
        Ok(self.put(&mut record, next, change.actor, change.reason))
    }

    /// Everything to memory, now. Always allowed; asked for twice, it changes nothing the second time.
    pub fn roll_back(&self, actor: &str, reason: &str) -> Record {
        let mut record = self.record.lock();
        if record.percent == Percent::NONE {
            return record.clone();
        }
        self.observer.observe(&Event::RolledBack);
        let next = Record { percent: Percent::NONE, ..record.clone() };
        self.put(&mut record, next, actor, reason)
    }

    fn put(&self, record: &mut Record, next: Record, actor: &str, reason: &str) -> Record {
        let from = self.to(record);
        let lowers = next.wanted() < record.wanted();
        *record = Record {
            epoch: record.epoch + u64::from(lowers),
            revision: record.revision + 1,
            updated_at: Utc::now(),
            updated_by: actor.to_owned(),
            reason: reason.to_owned(),
            effective_at: None,
            ..next
        };
        *self.since.lock() = Since { since: self.now(), lag: 0 };
        let to = self.to(record);
        self.rollout.put(to);
        self.observer.observe(&Event::RolloutChanged { from, to, actor, reason });
        record.clone()
    }
}

/// `If-Match` by RFC 9110, 13.1.1: a list of tags, or `*`.
fn matches(seen: &str, etag: &str) -> bool {
    seen.split(',').map(str::trim).any(|tag| tag == "*" || tag == etag)
}

/// The record for the admin API.
#[derive(Serialize)]
pub struct RecordView<'a> {
    backend: &'static str,
    percent: f64,
    epoch: u64,
    revision: u64,
    updated_at: String,
    updated_by: &'a str,
    reason: &'a str,
}

impl<'a> From<&'a Record> for RecordView<'a> {
    fn from(record: &'a Record) -> Self {
        Self {
            backend: record.backend.as_str(),
            percent: record.percent.as_f64(),
            epoch: record.epoch,
            revision: record.revision,
            updated_at: record.updated_at_text(),
            updated_by: &record.updated_by,
            reason: &record.reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limiter::event::Silent;

    fn steering(backend: Backend, percent: u16, rules: EnvironmentRules) -> Steering {
        let record = Record {
            backend,
            percent: points(percent),
            epoch: 0,
            revision: 1,
            updated_at: Utc::now(),
            updated_by: "env".into(),
            reason: "start".into(),
            effective_at: None,
            previous: Percent::NONE,
        };
        Steering::new(record, rules, Arc::default(), Arc::new(Silent))
    }

    fn points(percent: u16) -> Percent {
        Percent::from_basis_points(percent * 100).unwrap()
    }

    fn to<'a>(percent: u16, seen: Option<&'a str>) -> Change<'a> {
        Change { percent: points(percent), backend: None, actor: "ana", reason: "a test", seen }
    }

    #[test]
    fn raising_needs_the_present_tag_and_lowering_needs_none() {
        let steering = steering(Backend::Redis, 10, EnvironmentRules::default());
        assert_eq!(steering.change(&to(50, None)), Err(Refusal::TagRequired));
        assert!(matches!(steering.change(&to(50, Some("\"9-9\""))), Err(Refusal::Stale(_))));
        let tag = steering.record().etag();
        let raised = steering.change(&to(50, Some(&tag))).unwrap();
        assert_eq!((raised.percent, raised.revision, raised.epoch), (points(50), 2, 0));
        assert!(matches!(steering.change(&to(60, Some(&tag))), Err(Refusal::Stale(_))), "the tag is spent");
        let lowered = steering.change(&to(5, None)).unwrap();
        assert_eq!((lowered.percent, lowered.revision, lowered.epoch), (points(5), 3, 1));
        assert_eq!(steering.rollout.in_force(), InForce { percent: points(5), revision: 3 });
    }

    #[test]
    fn rollback_is_in_force_at_once_and_idempotent() {
        let steering = steering(Backend::Redis, 10, EnvironmentRules { hard_off: None, pinned: true });
        let first = steering.roll_back("ana", "5xx");
        assert_eq!((first.percent, first.revision), (Percent::NONE, 2));
        assert_eq!(steering.rollout.in_force().percent, Percent::NONE);
        assert_eq!(steering.roll_back("ana", "again"), first);
    }

    #[test]
    fn a_pinned_percentage_is_raised_by_nobody_here_but_lowered_by_anybody() {
        let steering = steering(Backend::Redis, 10, EnvironmentRules { hard_off: None, pinned: true });
        assert_eq!(steering.change(&to(20, Some("*"))), Err(Refusal::PinnedByEnv));
        assert!(steering.change(&to(5, None)).is_ok());
        assert_eq!(steering.change(&to(10, Some("*"))), Err(Refusal::PinnedByEnv), "back up is a raise");
    }

    #[test]
    fn without_redis_nothing_can_be_raised_and_memory_decides_whatever_the_record_says() {
        let rules = EnvironmentRules { hard_off: Some("REDIS_URL is not set"), pinned: false };
        let steering = steering(Backend::Redis, 10, rules);
        assert_eq!(steering.rollout.in_force().percent, Percent::NONE);
        assert!(matches!(steering.change(&to(20, Some("*"))), Err(Refusal::DisabledByEnv(_))));
        assert!(steering.change(&to(0, None)).is_ok());
    }

    #[test]
    fn switching_the_flag_to_redis_is_a_raise() {
        let steering = steering(Backend::Memory, 100, EnvironmentRules::default());
        let change = Change { backend: Some(Backend::Redis), ..to(100, None) };
        assert_eq!(steering.change(&change), Err(Refusal::TagRequired));
        assert_eq!(steering.rollout.in_force().percent, Percent::NONE);
    }
}
