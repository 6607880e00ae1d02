//! Whether a change may be made, and what it would come to: the same judgement for who makes it and for who only asks.

use super::change::matches;
use super::{Change, Foreseen, Record, Refusal, Steering};
use crate::limiter::rollout::Percent;

/// What a change comes to.
struct Judged {
    next: Record,
    /// Whether it raises what is in force, and so has to be kept first.
    raises: bool,
    /// What stands in its way; the first is what it is refused for.
    objections: Vec<Refusal>,
}

impl Steering {
    /// The record that a change makes, and whether it raises what is in force.
    pub(super) fn judge(&self, record: &Record, change: &Change) -> Result<(Record, bool), Refusal> {
        let Judged { next, raises, objections } = self.weigh(record, change);
        objections.into_iter().next().map_or(Ok((next, raises)), Err)
    }

    /// What a change would come to, with everything that stands in its way. Changes nothing.
    pub fn foresee(&self, change: &Change) -> Foreseen {
        let record = self.record();
        let Judged { next, raises, mut objections } = self.weigh(&record, change);
        let unkept = self.nobody_keeps();
        objections.extend(unkept.clone().filter(|_| raises));
        Foreseen { in_force: self.here(&record), then: self.here(&next), unkept, record, next, objections }
    }

    /// What a rollback would come to: nothing stands in its way.
    pub fn foresee_rollback(&self) -> Foreseen {
        let record = self.record();
        let next = record.followed_by(record.backend, Percent::NONE, "", "");
        let (in_force, unkept) = (self.here(&record), self.nobody_keeps());
        Foreseen { in_force, then: Percent::NONE, unkept, record, next, objections: Vec::new() }
    }

    /// The share that a record puts in force here, now.
    fn here(&self, record: &Record) -> Percent {
        self.in_force_of(record.due(self.now()), record.revision).percent
    }

    /// Why a raise could not be kept, as far as is known without trying.
    fn nobody_keeps(&self) -> Option<Refusal> {
        let database = self.audit.database();
        let disk = database.is_open().and_then(|()| database.must_outlive()).err();
        let disk = database.trouble().or(disk)?.to_string();
        let redis = match self.carrier.get() {
            Some(carrier) => carrier.can_keep().err()?.0,
            None => "there is none".to_owned(),
        };
        Some(Refusal::NotDurable { disk, redis })
    }

    fn weigh(&self, record: &Record, change: &Change) -> Judged {
        let backend = change.backend.unwrap_or(record.backend);
        let next = record.followed_by(backend, change.percent, &change.actor, &change.reason);
        // Until its moment comes: not what was announced before and has not come either.
        let next = Record { previous: record.due(self.now()), ..next };
        let mut objections = Vec::new();
        if let Some(why) = self.environment.hard_off.filter(|_| next.wanted() > Percent::NONE) {
            objections.push(Refusal::DisabledByEnv(why));
        }
        let raises = next.wanted() > record.due(self.now());
        let announced = raises && next.wanted() == record.wanted();
        if raises && !change.may_raise {
            objections.push(Refusal::MayNotRaise);
        }
        if raises && !announced && self.environment.pinned {
            objections.push(Refusal::PinnedByEnv);
        }
        match &change.seen {
            None if raises => objections.push(Refusal::TagRequired),
            Some(seen) if !matches(seen, &record.etag()) => {
                objections.push(Refusal::Stale(Box::new(record.clone())));
            }
            _ => {}
        }
        // What is announced already needs no second announcement.
        Judged { next, raises: raises && !announced, objections }
    }
}
