//! Changes that the fleet has to agree to: raises, kept first, by Redis for the whole fleet or else by this disk, and only
//! then in force; and changes whose author has named the record that they are for.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::force::BY_ENVIRONMENT;
use super::steering::{ANSWER_BUDGET, Start};
use super::{CarrierFault, Change, Outcome, Raised, Record, Refusal, Register, Source, Steering};
use crate::control::audit::{AuditRow, Stored};

/// How long the way to Redis may take; it has limits of its own below this one.
const CARRIER_PATIENCE: Duration = Duration::from_secs(6);
/// How long the disk may take to keep a raise that nobody else can keep.
const DISK_PATIENCE: Duration = Duration::from_secs(3);
/// The action of a change that an operator asks for.
const SET: &str = "rollout.set";

impl Steering {
    pub(super) async fn raise(self: &Arc<Self>, change: &Change) -> Result<Outcome, Refusal> {
        let _turn = self.raising.lock().await;
        // Others may have changed it while this one waited for its turn.
        let (seen, next) = {
            let state = self.state.lock();
            let next = self.judge(&state.register.record, change)?.0;
            (state.register.record.clone(), self.stamped(&state, next, SET))
        };
        match self.ask_carrier(&seen, &next, CARRIER_PATIENCE).await {
            Ok(Raised::Won(won)) => {
                let row = AuditRow::of_change(&seen, &won, SET, change.request_id.clone());
                self.take(&won)?;
                self.audit.push(Some(self.stored(&won)), Some(row));
                let outcome = self.outcome(*won).await;
                Ok(Outcome { durable: true, ..outcome })
            }
            Ok(Raised::Lost(theirs)) => {
                self.meet(&Register::new((*theirs).clone()), Source::Redis);
                Err(Refusal::Stale(theirs))
            }
            Err(CarrierFault(redis)) => self.raise_by_disk(change, &seen, next, redis).await,
        }
    }

    /// A change that raises nothing and names the record that it is for: of two that name the same one is made, on whichever
    /// instances they are asked for. Where no carrier can compare, it is made here: a lowering waits for nothing.
    pub(super) async fn compare_and_set(self: &Arc<Self>, change: &Change) -> Result<Outcome, Refusal> {
        let outcome = {
            let state = self.state.lock();
            let record = &state.register.record;
            self.judge(record, change)
                .map(|(next, raises)| (record.clone(), self.stamped(&state, next, SET), raises))
        };
        let (seen, next) = match outcome {
            Ok((seen, next, false)) => (seen, next),
            // It was above what is in force by the time that it was compared.
            Ok((_, _, true)) => {
                self.put_again();
                return self.raise(change).await;
            }
            Err(refusal) => {
                self.put_again();
                return Err(refusal);
            }
        };
        let row = |made: &Record| AuditRow::of_change(&seen, made, SET, change.request_id.clone());
        let made = match self.ask_carrier(&seen, &next, ANSWER_BUDGET).await {
            Ok(Raised::Won(won)) => *won,
            Ok(Raised::Lost(theirs)) => {
                self.meet(&Register::new((*theirs).clone()), Source::Redis);
                self.put_again();
                return Err(Refusal::Stale(theirs));
            }
            Err(_) => next,
        };
        let taken = self.take(&made);
        self.put_again();
        taken?;
        self.audit.push(Some(self.stored(&made)), Some(row(&made)));
        Ok(self.outcome(made).await)
    }

    async fn ask_carrier(
        &self,
        seen: &Record,
        next: &Record,
        patience: Duration,
    ) -> Result<Raised, CarrierFault> {
        match self.carrier.get() {
            Some(carrier) => timeout(patience, carrier.raise(seen, next))
                .await
                .unwrap_or_else(|_| Err(CarrierFault("it does not answer in time".to_owned()))),
            None => Err(CarrierFault("there is no other instance, and no Redis that keeps it".to_owned())),
        }
    }

    /// The environment raises what the fleet has. An earlier one has seen this environment or is newer than it.
    pub(super) async fn raise_by_environment(self: &Arc<Self>, seen: Record, next: Record) {
        let Some(carrier) = self.carrier.get() else { return };
        match carrier.raise(&seen, &next).await {
            Ok(Raised::Won(won)) => {
                let mut state = self.state.lock();
                let row = (!won.is_same(&state.register.record))
                    .then(|| AuditRow::of_change(&seen, &won, BY_ENVIRONMENT, None));
                if won.supersedes(&state.register.record) {
                    self.put_own(&mut state, *won);
                } else {
                    self.merge_in(&mut state, &Register::new(*won), Source::Redis);
                }
                self.audit.push(Some(state.stored()), row);
            }
            Ok(Raised::Lost(theirs)) => {
                self.meet(&Register::new(*theirs), Source::Redis);
            }
            Err(_) => {
                let mut state = self.state.lock();
                if state.register.record.is_same(&seen) {
                    self.make(&mut state, next, BY_ENVIRONMENT, None);
                }
            }
        }
    }

    async fn raise_by_disk(
        self: &Arc<Self>,
        change: &Change,
        seen: &Record,
        next: Record,
        redis: String,
    ) -> Result<Outcome, Refusal> {
        let row = AuditRow::of_change(seen, &next, SET, change.request_id.clone());
        let kept = timeout(DISK_PATIENCE, self.audit.keep_first(self.stored(&next), row)).await;
        let (disk, unsure) = match kept {
            Ok(Ok(())) => {
                self.take(&next)?;
                let outcome = self.outcome(next).await;
                return Ok(Outcome { durable: true, ..outcome });
            }
            // It may have been made and only not been answered: Redis' side may be as well.
            Ok(Err(fault)) => (fault.to_string(), self.carrier.get().is_some()),
            Err(_) => (format!("it has not answered for {} s", DISK_PATIENCE.as_secs()), true),
        };
        if unsure {
            self.withdraw(&next);
        }
        Err(Refusal::NotDurable { disk, redis })
    }

    /// Puts a change that is kept in force, unless something that supersedes it came meanwhile: a rollback waits for no other change.
    fn take(self: &Arc<Self>, made: &Record) -> Result<(), Refusal> {
        let mut state = self.state.lock();
        if made.supersedes(&state.register.record) {
            self.put_own(&mut state, made.clone());
            state.start = Start::Settled;
            state.lost = None;
            return Ok(());
        }
        // Another way may have brought it here already.
        match made.is_same(&state.register.record) {
            true => {
                state.made_here = true;
                Ok(())
            }
            false => Err(Refusal::Stale(Box::new(state.register.record.clone()))),
        }
    }

    /// A raise was refused that may turn up yet, on the disk or in Redis: what is in force is made newer than it.
    fn withdraw(self: &Arc<Self>, refused: &Record) {
        let mut state = self.state.lock();
        if !refused.supersedes(&state.register.record) {
            return;
        }
        let now = state.register.record.clone();
        let reason = format!("a raise to {} % could not be kept: {}", refused.percent, now.reason);
        let next = Record { revision: refused.revision, ..now.clone() };
        let next = Record {
            epoch: refused.epoch,
            ..next.followed_by(now.backend, now.percent, &refused.updated_by, &reason)
        };
        self.make(&mut state, next, "rollout.withdrawn", None);
    }

    /// As the disk keeps it, with `record` as the record.
    fn stored(&self, record: &Record) -> Stored {
        let register = self.register_with(record);
        Stored { register, made_here: true, ..self.state.lock().stored() }
    }
}
