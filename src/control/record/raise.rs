//! Raising: kept first, by Redis for the whole fleet or else by this disk, and only then in force.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::{CarrierFault, Change, Outcome, Raised, Record, Refusal, Source, Steering};
use crate::control::audit::{AuditRow, Stored};

/// How long the disk may take to keep a raise that nobody else can keep.
const DISK_PATIENCE: Duration = Duration::from_secs(3);

impl Steering {
    pub(super) async fn raise(self: &Arc<Self>, change: &Change) -> Result<Outcome, Refusal> {
        let _turn = self.raising.lock().await;
        // Others may have changed it while this one waited for its turn.
        let (seen, next) = {
            let state = self.state.lock();
            (state.record.clone(), self.judge(&state.record, change)?.0)
        };
        let asked = match self.carrier.get() {
            Some(carrier) => carrier.raise(&seen, &next).await,
            None => Err(CarrierFault("there is no other instance, and no Redis that keeps it".to_owned())),
        };
        match asked {
            Ok(Raised::Won(won)) => {
                let row = AuditRow::of_change(&seen, &won, "rollout.set", change.request_id.clone());
                self.take(&won)?;
                self.audit.push(Some(self.stored(&won)), Some(row));
                let outcome = self.outcome(*won).await;
                Ok(Outcome { durable: true, ..outcome })
            }
            Ok(Raised::Lost(theirs)) => {
                self.adopt((*theirs).clone(), None, Source::Redis);
                Err(Refusal::Stale(theirs))
            }
            Err(CarrierFault(redis)) => self.raise_by_disk(change, &seen, next, redis).await,
        }
    }

    /// The environment raises what the fleet has told. Whoever came before has seen this environment or is newer than it.
    pub(super) async fn raise_by_environment(self: Arc<Self>, seen: Record, next: Record) {
        let Some(carrier) = self.carrier.get() else { return };
        match carrier.raise(&seen, &next).await {
            Ok(Raised::Won(won)) => {
                let row = AuditRow::of_change(&seen, &won, "rollout.env", None);
                if self.take(&won).is_ok() {
                    self.audit.push(Some(self.stored(&won)), Some(row));
                }
            }
            Ok(Raised::Lost(theirs)) => {
                self.adopt(*theirs, None, Source::Redis);
            }
            Err(_) => {
                let mut state = self.state.lock();
                if state.record == seen {
                    self.make(&mut state, next, "rollout.env", None);
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
        let row = AuditRow::of_change(seen, &next, "rollout.set", change.request_id.clone());
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

    /// Puts a raise that is kept in force, unless something that supersedes it came meanwhile: a rollback waits for nobody.
    fn take(self: &Arc<Self>, raised: &Record) -> Result<(), Refusal> {
        let mut state = self.state.lock();
        if raised.supersedes(&state.record) {
            self.put(&mut state, raised.clone(), Source::Here);
            return Ok(());
        }
        // Another way may have brought it here already.
        let same = !state.record.supersedes(raised);
        if same { Ok(()) } else { Err(Refusal::Stale(Box::new(state.record.clone()))) }
    }

    /// A raise was refused that may turn up yet, on the disk or in Redis: what is in force is made newer than it.
    fn withdraw(self: &Arc<Self>, refused: &Record) {
        let mut state = self.state.lock();
        if !refused.supersedes(&state.record) {
            return;
        }
        let now = state.record.clone();
        let reason = format!("a raise to {} % could not be kept: {}", refused.percent, now.reason);
        let next = Record { revision: refused.revision, ..now.clone() };
        let next = Record {
            epoch: refused.epoch,
            ..next.followed_by(now.backend, now.percent, &refused.updated_by, &reason)
        };
        self.make(&mut state, next, "rollout.withdrawn", None);
    }

    fn stored(&self, record: &Record) -> Stored {
        Stored { record: record.clone(), remembered: self.state.lock().remembered }
    }
}
