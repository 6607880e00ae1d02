//! The rollout's record: what is in force, since when, by whom, why. And what may change it.
//!
//! It lives in the process for now; the durable record and the fleet's agreement take their place here.

use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, Utc};
use parking_lot::Mutex;
use serde::Serialize;

use crate::limiter::decision::Backend;
use crate::limiter::event::{Event, Observer};
use crate::limiter::rollout::{InForce, Percent, Rollout};

/// What an operator sees and changes.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The flag: `memory` switches the whole percentage off.
    pub backend: Backend,
    /// Share of the keys that Redis decides when the flag is `redis`.
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
}

impl Record {
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
    /// Whether they may raise. Judged with the record locked: what lowers when it is sent may raise when it arrives.
    pub may_raise: bool,
}

/// Why a change is not made.
#[derive(Clone, Debug, PartialEq)]
pub enum Refusal {
    /// The environment rules out Redis; why.
    DisabledByEnv(&'static str),
    /// Only the environment may raise.
    PinnedByEnv,
    /// Whoever asks may only lower.
    MayNotRaise,
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
}

impl Steering {
    /// Puts `record` in force.
    pub fn new(
        record: Record,
        rules: EnvironmentRules,
        rollout: Arc<Rollout>,
        observer: Arc<dyn Observer>,
    ) -> Self {
        let steering = Self { record: Mutex::new(record), rules, rollout, observer };
        let in_force = steering.in_force(&steering.record.lock());
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
        if raises && !change.may_raise {
            return Err(Refusal::MayNotRaise);
        }
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
        let from = self.in_force(record);
        let lowers = next.wanted() < record.wanted();
        *record = Record {
            epoch: record.epoch + u64::from(lowers),
            revision: record.revision + 1,
            updated_at: Utc::now(),
            updated_by: actor.to_owned(),
            reason: reason.to_owned(),
            ..next
        };
        let to = self.in_force(record);
        self.rollout.put(to);
        self.observer.observe(&Event::RolloutChanged { from, to, actor, reason });
        record.clone()
    }

    fn in_force(&self, record: &Record) -> InForce {
        let percent = match self.rules.hard_off {
            Some(_) => Percent::NONE,
            None => record.wanted(),
        };
        InForce { percent, revision: record.revision }
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
        };
        Steering::new(record, rules, Arc::default(), Arc::new(Silent))
    }

    fn points(percent: u16) -> Percent {
        Percent::from_basis_points(percent * 100).unwrap()
    }

    fn to<'a>(percent: u16, seen: Option<&'a str>) -> Change<'a> {
        Change {
            percent: points(percent),
            backend: None,
            actor: "ana",
            reason: "a test",
            seen,
            may_raise: true,
        }
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

    #[test]
    fn whoever_may_not_raise_may_lower_whatever_they_have_seen() {
        let steering = steering(Backend::Redis, 50, EnvironmentRules::default());
        let lower = |percent, seen| Change { may_raise: false, ..to(percent, seen) };
        assert_eq!(steering.change(&lower(60, Some("*"))), Err(Refusal::MayNotRaise));
        assert!(steering.change(&lower(10, None)).is_ok());
        assert_eq!(steering.change(&lower(40, Some("*"))), Err(Refusal::MayNotRaise), "it was lower before");
    }
}
