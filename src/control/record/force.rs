//! Puts the record in force: now, or at the moment of a raise that is announced.

use std::sync::Arc;
use std::time::Duration;

use super::steering::{Since, Start, State};
use super::{Record, Source, Steering};
use crate::control::audit::AuditRow;
use crate::limiter::clock::Micros;
use crate::limiter::event::{Event, RollbackCause};
use crate::limiter::rollout::Percent;

/// How far away the moment of a raise may be: two of the longest beats, and a little. What is further is of a wrong clock.
const LATEST: Duration = Duration::from_secs(2 * 3_600 + 60);
/// How often it is looked whether the moment has come. The fleet's clock may turn out to be another while it is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The action of a record that the environment makes.
pub(super) const BY_ENVIRONMENT: &str = "rollout.env";
/// The action of a lowering that is put above a record that did not follow it.
pub(super) const STANDS: &str = "rollout.stands";

impl Steering {
    /// Makes `next` the record, as a change of this instance that follows all that it knows.
    pub(super) fn make(
        self: &Arc<Self>,
        state: &mut State,
        next: Record,
        action: &'static str,
        request_id: Option<String>,
    ) -> Record {
        let before = &state.register.record;
        let row = AuditRow::of_change(before, &next, action, request_id);
        if next.wanted() == Percent::NONE && before.wanted() > Percent::NONE {
            let cause = match action {
                BY_ENVIRONMENT => RollbackCause::Environment,
                STANDS => RollbackCause::Stands,
                _ => RollbackCause::Operator,
            };
            self.observer.observe(&Event::RolledBack(cause));
        }
        let next = self.stamped(state, next, action);
        self.put_own(state, next);
        if action != BY_ENVIRONMENT && action != STANDS {
            // A change from now on is made after the start.
            state.start = Start::Settled;
            state.lost = None;
        }
        self.audit.push(Some(state.stored()), Some(row));
        state.register.record.clone()
    }

    /// As a change of this instance. A lowering counts as unheard by others unless a deploy made it: a deploy reaches many
    /// instances, and the fleet's record is the later.
    pub(super) fn stamped(&self, state: &State, next: Record, action: &str) -> Record {
        let lowers = next.epoch > state.register.record.epoch && action != BY_ENVIRONMENT;
        next.made_by(self.origin, &state.register, lowers)
    }

    /// Takes a record of this instance's own making.
    pub(super) fn put_own(self: &Arc<Self>, state: &mut State, record: Record) {
        state.register.unheard.keep_unknown_to(&record.follows());
        state.made_here = true;
        self.put(state, record, Source::Here);
    }

    /// Makes `record` the present one, in force now or at its moment. The timer of one that it supersedes dies.
    pub(super) fn put(self: &Arc<Self>, state: &mut State, record: Record, source: Source) {
        if let Some(timer) = state.timer.take() {
            timer.abort();
        }
        (state.register.record, state.source) = (record, source);
        let record = &mut state.register.record;
        let now = self.now();
        let latest = now.saturating_add(LATEST.as_micros() as Micros);
        record.effective_at = record.effective_at.map(|at| at.min(latest));
        let Some(at) = record.effective_at.filter(|at| *at > now) else { return self.comes(state) };
        self.rollout.put(self.in_force_of(record.due(now), record.revision));
        self.observer.observe(&Event::RolloutAnnounced {
            to: self.in_force_of(record.wanted(), record.revision),
            after: Duration::from_micros(at - now),
            actor: &record.updated_by,
            reason: &record.reason,
            source: source.as_str(),
        });
        let (this, record) = (Arc::downgrade(self), record.clone());
        let timer = tokio::spawn(async move {
            loop {
                let Some(steering) = this.upgrade() else { return };
                let left = Duration::from_micros(at.saturating_sub(steering.now()));
                if left.is_zero() {
                    let mut state = steering.state.lock();
                    if state.register.record.is_same(&record) {
                        steering.comes(&mut state);
                        // A moment that has passed is no part of the record any more.
                        steering.audit.push(Some(state.stored()), None);
                    }
                    return;
                }
                drop(steering);
                tokio::time::sleep(left.min(LOOK_EVERY)).await;
            }
        });
        state.timer = Some(timer.abort_handle());
    }

    fn comes(&self, state: &mut State) {
        let now = self.now();
        let record = &mut state.register.record;
        let due = record.effective_at.take();
        let due = due.unwrap_or(record.updated_at.timestamp_micros().max(0) as Micros);
        state.since = Since { since: now, lag: now.saturating_sub(due) };
        let from = state.acted_from.take().unwrap_or_else(|| self.rollout.in_force());
        let to = self.in_force_of(record.wanted(), record.revision);
        self.rollout.put(to);
        if state.source == Source::Disk && from.percent == to.percent {
            // A start that changes nothing: the line of what is in force follows.
            return self.observer.observe(&Event::RolloutInForce(to));
        }
        self.observer.observe(&Event::RolloutChanged {
            from,
            to,
            actor: &record.updated_by,
            reason: &record.reason,
            source: state.source.as_str(),
        });
    }

    /// Puts in force what the record asks for now, where something else was meanwhile.
    pub(super) fn put_again(&self) {
        let mut state = self.state.lock();
        state.acted_from = None;
        let record = &state.register.record;
        self.rollout.put(self.in_force_of(record.due(self.now()), record.revision));
    }
}
