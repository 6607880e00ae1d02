//! The rollout's record: what is in force, since when, by whom, why. And what may change it.
//!
//! It lives in the process for now; the durable record takes its place here. What is changed here is carried to the
//! other instances ([`Carrier`]), and what is changed there is adopted.

mod carrier;
mod text;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::limiter::clock::Micros;
use crate::limiter::decision::Backend;
use crate::limiter::event::{Event, Observer};
use crate::limiter::rollout::{InForce, Percent, Rollout};
pub use carrier::{Applied, Carrier, CarrierFault, Raised, Source};
use text::{flag, share};

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

/// The wheel: changes the record and puts it in force, here and everywhere.
pub struct Steering {
    record: Mutex<Record>,
    since: Mutex<Since>,
    rules: EnvironmentRules,
    rollout: Arc<Rollout>,
    observer: Arc<dyn Observer>,
    /// It hands on what is steered here: so it comes later.
    carrier: OnceLock<Arc<dyn Carrier>>,
}

/// What a change comes to.
enum Step {
    Nothing,
    Lowers,
    Raises,
}

impl Steering {
    /// Puts `record` in force.
    pub fn new(
        record: Record,
        rules: EnvironmentRules,
        rollout: Arc<Rollout>,
        observer: Arc<dyn Observer>,
    ) -> Arc<Self> {
        let since = Since { since: record.updated_at.timestamp_micros() as Micros, lag: 0 };
        let (record, since) = (Mutex::new(record), Mutex::new(since));
        let steering = Self { record, since, rules, rollout, observer, carrier: OnceLock::new() };
        let in_force = steering.as_in_force(&steering.record.lock());
        steering.rollout.put(in_force);
        steering.observer.observe(&Event::RolloutInForce(in_force));
        Arc::new(steering)
    }

    /// The way to the others.
    pub fn carried_by(&self, carrier: Arc<dyn Carrier>) {
        // Once, at the start.
        let _ = self.carrier.set(carrier);
    }

    /// The record as it is now.
    pub fn record(&self) -> Record {
        self.record.lock().clone()
    }

    /// The environment that it was held against last; nobody remembers one in this version.
    pub fn remembered(&self) -> Option<RememberedEnv> {
        None
    }

    /// Since when it is in force.
    pub fn in_force(&self) -> Since {
        *self.since.lock()
    }

    /// What the environment rules.
    pub fn rules(&self) -> EnvironmentRules {
        self.rules
    }

    /// Changes the share. Lowering is in force here when it returns; a raise comes at the moment that the record names.
    ///
    /// # Errors
    /// When the environment forbids it, or a raise was asked for without having seen the present state. Lowering
    /// needs neither.
    pub async fn change(self: &Arc<Self>, change: &Change<'_>) -> Result<(Record, Applied), Refusal> {
        let (seen, next) = {
            let mut record = self.record.lock();
            let (next, step) = self.judge(&record, change)?;
            match step {
                Step::Nothing => return Ok((next, Applied::HERE)),
                Step::Lowers => (None, self.put(&mut record, next)),
                Step::Raises => (Some(record.clone()), next),
            }
        };
        let Some(seen) = seen else {
            let applied = self.announce(&next).await;
            return Ok((next, applied));
        };
        let carried = match self.carrier.get() {
            Some(carrier) => carrier.raise(&seen, &next).await,
            None => Err(CarrierFault("there is no fleet".to_owned())),
        };
        let next = match carried {
            Ok(Raised::Won(record)) => *record,
            Ok(Raised::Lost(record)) => return Err(Refusal::Stale(record)),
            // Nobody can be asked: it is this instance's word, until somebody's is newer.
            Err(CarrierFault(_)) => next,
        };
        if !self.adopt(next.clone(), None, Source::Redis) && self.record() != next {
            return Err(Refusal::Stale(Box::new(self.record())));
        }
        let applied = self.announce(&next).await;
        Ok((next, applied))
    }

    /// Everything to memory, now. Always allowed; asked for twice, it changes nothing the second time. In force here
    /// before anything is waited for.
    pub async fn roll_back(self: &Arc<Self>, actor: &str, reason: &str) -> (Record, Applied) {
        let next = {
            let mut record = self.record.lock();
            if record.percent == Percent::NONE {
                record.clone()
            } else {
                self.observer.observe(&Event::RolledBack);
                let next = changed(&record, Percent::NONE, record.backend, actor, reason);
                self.put(&mut record, next)
            }
        };
        let applied = self.announce(&next).await;
        (next, applied)
    }

    /// A record from elsewhere: taken when it is newer than ours. In force at its moment, or at once when it names none.
    pub fn adopt(self: &Arc<Self>, record: Record, _: Option<RememberedEnv>, _: Source) -> bool {
        let mut ours = self.record.lock();
        if !record.supersedes(&ours) {
            return false;
        }
        self.put(&mut ours, record);
        true
    }

    async fn announce(&self, record: &Record) -> Applied {
        match self.carrier.get() {
            Some(carrier) => carrier.announce(record).await,
            None => Applied::HERE,
        }
    }

    fn judge(&self, record: &Record, change: &Change<'_>) -> Result<(Record, Step), Refusal> {
        let backend = change.backend.unwrap_or(record.backend);
        let mut next = changed(record, change.percent, backend, change.actor, change.reason);
        next.previous = self.rollout.in_force().percent;
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
        if (next.percent, next.backend) == (record.percent, record.backend) {
            return Ok((record.clone(), Step::Nothing));
        }
        Ok((next, if raises { Step::Raises } else { Step::Lowers }))
    }

    /// Makes `next` the record, and puts it in force or sees to it that it comes.
    fn put(self: &Arc<Self>, record: &mut Record, next: Record) -> Record {
        let now = self.now();
        *record = next.clone();
        match next.effective_at.filter(|&at| at > now) {
            None => self.enforce(&next, now),
            Some(at) => {
                let before = InForce { percent: next.previous, revision: next.revision };
                self.rollout.put(match self.rules.hard_off {
                    Some(_) => InForce { percent: Percent::NONE, ..before },
                    None => before,
                });
                let (this, coming) = (Arc::clone(self), next.clone());
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_micros(at - now)).await;
                    let record = this.record.lock();
                    // Unless something else is to be by now.
                    if *record == coming {
                        this.enforce(&coming, this.now());
                    }
                });
            }
        }
        next
    }

    fn enforce(&self, record: &Record, now: Micros) {
        let due = record.effective_at.unwrap_or(record.updated_at.timestamp_micros() as Micros);
        *self.since.lock() = Since { since: now, lag: now.saturating_sub(due) };
        let (from, to) = (self.rollout.in_force(), self.as_in_force(record));
        self.rollout.put(to);
        let (actor, reason) = (record.updated_by.as_str(), record.reason.as_str());
        self.observer.observe(&Event::RolloutChanged { from, to, actor, reason });
    }

    fn now(&self) -> Micros {
        let own = || Utc::now().timestamp_micros() as Micros;
        self.carrier.get().map_or_else(own, |carrier| carrier.now())
    }

    fn as_in_force(&self, record: &Record) -> InForce {
        let percent = match self.rules.hard_off {
            Some(_) => Percent::NONE,
            None => record.wanted(),
        };
        InForce { percent, revision: record.revision }
    }
}

/// What follows on `record`.
fn changed(record: &Record, percent: Percent, backend: Backend, actor: &str, reason: &str) -> Record {
    let mut next = Record { percent, backend, ..record.clone() };
    next.epoch += u64::from(next.wanted() < record.wanted());
    next.revision += 1;
    next.updated_at = Utc::now();
    next.updated_by = actor.to_owned();
    next.reason = reason.to_owned();
    next.effective_at = None;
    next
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

    fn steering(backend: Backend, percent: u16, rules: EnvironmentRules) -> Arc<Steering> {
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

    /// What a change comes to, where there is nobody else.
    async fn asked(steering: &Arc<Steering>, change: &Change<'_>) -> Result<Record, Refusal> {
        let (record, applied) = steering.change(change).await?;
        assert_eq!(applied, Applied::HERE);
        Ok(record)
    }

    #[tokio::test]
    async fn raising_needs_the_present_tag_and_lowering_needs_none() {
        let steering = steering(Backend::Redis, 10, EnvironmentRules::default());
        assert_eq!(asked(&steering, &to(50, None)).await, Err(Refusal::TagRequired));
        assert!(matches!(asked(&steering, &to(50, Some("\"9-9\""))).await, Err(Refusal::Stale(_))));
        let tag = steering.record().etag();
        let raised = asked(&steering, &to(50, Some(&tag))).await.unwrap();
        assert_eq!((raised.percent, raised.revision, raised.epoch), (points(50), 2, 0));
        assert!(matches!(asked(&steering, &to(60, Some(&tag))).await, Err(Refusal::Stale(_))), "the tag is spent");
        let lowered = asked(&steering, &to(5, None)).await.unwrap();
        assert_eq!((lowered.percent, lowered.revision, lowered.epoch), (points(5), 3, 1));
        assert_eq!(steering.rollout.in_force(), InForce { percent: points(5), revision: 3 });
    }

    #[tokio::test]
    async fn rollback_is_in_force_at_once_and_idempotent() {
        let steering = steering(Backend::Redis, 10, EnvironmentRules { hard_off: None, pinned: true });
        let first = steering.roll_back("ana", "5xx").await.0;
        assert_eq!((first.percent, first.revision), (Percent::NONE, 2));
        assert_eq!(steering.rollout.in_force().percent, Percent::NONE);
        assert_eq!(steering.roll_back("ana", "again").await.0, first);
    }

    #[tokio::test]
    async fn a_pinned_percentage_is_raised_by_nobody_here_but_lowered_by_anybody() {
        let steering = steering(Backend::Redis, 10, EnvironmentRules { hard_off: None, pinned: true });
        assert_eq!(asked(&steering, &to(20, Some("*"))).await, Err(Refusal::PinnedByEnv));
        assert!(asked(&steering, &to(5, None)).await.is_ok());
        assert_eq!(asked(&steering, &to(10, Some("*"))).await, Err(Refusal::PinnedByEnv), "back up is a raise");
    }

    #[tokio::test]
    async fn without_redis_nothing_can_be_raised_and_memory_decides_whatever_the_record_says() {
        let rules = EnvironmentRules { hard_off: Some("REDIS_URL is not set"), pinned: false };
        let steering = steering(Backend::Redis, 10, rules);
        assert_eq!(steering.rollout.in_force().percent, Percent::NONE);
        assert!(matches!(asked(&steering, &to(20, Some("*"))).await, Err(Refusal::DisabledByEnv(_))));
        assert!(asked(&steering, &to(0, None)).await.is_ok());
    }

    #[tokio::test]
    async fn switching_the_flag_to_redis_is_a_raise() {
        let steering = steering(Backend::Memory, 100, EnvironmentRules::default());
        let change = Change { backend: Some(Backend::Redis), ..to(100, None) };
        assert_eq!(asked(&steering, &change).await, Err(Refusal::TagRequired));
        assert_eq!(steering.rollout.in_force().percent, Percent::NONE);
    }
    #[tokio::test]
    async fn what_comes_from_elsewhere_is_taken_when_it_is_newer_and_a_raise_waits_for_its_moment() {
        let steering = steering(Backend::Redis, 10, EnvironmentRules::default());
        let ours = steering.record();
        let other = |epoch: u64, revision: u64, percent: u16| Record {
            epoch,
            revision,
            percent: points(percent),
            previous: points(10),
            ..ours.clone()
        };
        let adopt = |record: Record| steering.adopt(record, None, Source::Fleet);
        assert!(!adopt(other(0, 0, 0)) && !adopt(other(0, 1, 10)) && !adopt(other(0, 1, 20)));
        assert!(adopt(other(0, 1, 9)), "of two at once the lower");
        let soon = Utc::now().timestamp_micros() as Micros + 100_000;
        assert!(adopt(Record { effective_at: Some(soon), ..other(0, 2, 50) }));
        assert_eq!(steering.rollout.in_force(), InForce { percent: points(10), revision: 2 });
        while steering.rollout.in_force().percent != points(50) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(steering.rollout.in_force(), InForce { percent: points(50), revision: 2 });
        assert!(steering.in_force().since >= soon);
        let later = Utc::now().timestamp_micros() as Micros + 200_000;
        assert!(adopt(Record { effective_at: Some(later), ..other(0, 3, 100) }));
        assert!(adopt(other(1, 2, 5)), "a higher epoch, whatever was raised without it");
        tokio::time::sleep(Duration::from_millis(250)).await;
        assert_eq!(steering.rollout.in_force(), InForce { percent: points(5), revision: 2 }, "it never came");
        let text = serde_json::to_string(&steering.record()).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), steering.record());
        for bad in [text.replace("5.0", "101"), text.replace("\"redis\"", "\"disk\"")] {
            assert!(serde_json::from_str::<Record>(&bad).is_err(), "{bad}");
        }
    }
}
