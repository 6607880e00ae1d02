//! Steers the rollout: changes the record, meets what others have made of it (`meet.rs`), and puts it in force (`force.rs`).
//!
//! What lowers acts first, here, before anything is awaited, and is told and kept right after. What raises is kept first
//! (`raise.rs`). A request is decided by two words in [`Rollout`] and knows nothing of all this.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use chrono::Utc;
use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::{
    Applied, Carrier, Change, Environment, Origin, Outcome, Record, Refusal, Register, RememberedEnv, Seen,
    Source,
};
use crate::control::audit::{Audit, Stored};
use crate::limiter::clock::Micros;
use crate::limiter::event::{Event, Observer, RollbackCause};
use crate::limiter::rollout::{InForce, Percent, Rollout};

/// How long an answer waits for the disk and for the others. What takes longer goes on without it.
pub(super) const ANSWER_BUDGET: Duration = Duration::from_secs(1);

/// Since when something is in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Since {
    /// By the fleet's clock.
    pub since: Micros,
    /// How much later than it was due.
    pub lag: Micros,
}

/// A raise that was made here while the fleet was out of reach, and that was replaced by another change when they met.
#[derive(Clone, Debug, PartialEq)]
pub struct LostRaise {
    /// What was made here.
    pub lost: Record,
    /// What took its place.
    pub won: Record,
}

/// Changes the record and puts it in force.
pub struct Steering {
    pub(super) state: Mutex<State>,
    /// One raise at a time.
    pub(super) raising: tokio::sync::Mutex<()>,
    pub(super) environment: Environment,
    pub(super) audit: Arc<Audit>,
    pub(super) carrier: OnceLock<Arc<dyn Carrier>>,
    pub(super) rollout: Arc<Rollout>,
    pub(super) observer: Arc<dyn Observer>,
    /// Which process this is, in lineages.
    pub(super) origin: Origin,
}

pub(super) struct State {
    pub(super) register: Register,
    pub(super) start: Start,
    /// What the fleet had seen of the environment before this start, until it is met.
    pub(super) seen_before: Option<Seen>,
    /// Why a variable of this start has no effect, as it was logged.
    pub(super) passed_over: Option<String>,
    /// The variables of this start, for the disk; before the disk was read, those that are set.
    pub(super) own: RememberedEnv,
    pub(super) source: Source,
    pub(super) since: Since,
    /// Whether the record is a change of this instance, in this process or before its start.
    pub(super) made_here: bool,
    pub(super) lost: Option<LostRaise>,
    /// What was in force before a lowering acted that is still being compared.
    pub(super) acted_from: Option<InForce>,
    /// Of a raise that is announced.
    pub(super) timer: Option<AbortHandle>,
}

/// How far a start has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// Neither the disk nor another instance is known.
    Unknown,
    /// The disk is known, no other instance. `before`: the values of the last start that met the fleet; `made`: the
    /// environment has changed the disk's record.
    OfDisk { before: RememberedEnv, made: bool },
    /// The fleet is known, or the record was changed since: the environment has no say any more.
    Settled,
}

impl Steering {
    /// Puts what the environment says in force, until it is known what was before.
    pub fn new(
        record: Record,
        environment: Environment,
        audit: Arc<Audit>,
        rollout: Arc<Rollout>,
        observer: Arc<dyn Observer>,
    ) -> Arc<Self> {
        let nothing = Register::new(record);
        let seen = environment.consider(&nothing, None).seen;
        let state = State {
            register: Register { seen, ..nothing },
            start: Start::Unknown,
            seen_before: None,
            passed_over: None,
            own: environment.remember(RememberedEnv::default()),
            source: Source::Here,
            since: Since::default(),
            made_here: false,
            lost: None,
            acted_from: None,
            timer: None,
        };
        let steering = Self {
            state: Mutex::new(state),
            raising: tokio::sync::Mutex::default(),
            environment,
            audit,
            carrier: OnceLock::new(),
            rollout,
            observer,
            origin: rand::random(),
        };
        let in_force = steering.in_force_of(steering.state.lock().register.record.wanted(), 1);
        steering.rollout.put(in_force);
        steering.observer.observe(&Event::RolloutInForce(in_force));
        Arc::new(steering)
    }

    /// From now on changes go this way to the others.
    pub fn carried_by(&self, carrier: Arc<dyn Carrier>) {
        // There is one way, made at the start.
        let _ = self.carrier.set(carrier);
    }

    /// The record as it is now.
    pub fn record(&self) -> Record {
        self.state.lock().register.record.clone()
    }

    /// All that is handed on.
    pub fn register(&self) -> Register {
        self.state.lock().register.clone()
    }

    /// The same, with `next` in the place of the record.
    pub fn register_with(&self, next: &Record) -> Register {
        let mut register = Register { record: next.clone(), ..self.register() };
        register.unheard.keep_unknown_to(&next.follows());
        register
    }

    /// The variables of this start.
    pub fn own_environment(&self) -> RememberedEnv {
        self.state.lock().own
    }

    /// Since when it is in force.
    pub fn in_force(&self) -> Since {
        self.state.lock().since
    }

    /// From where the record is.
    pub fn source(&self) -> Source {
        self.state.lock().source
    }

    /// The last raise of this instance that lost against a change made elsewhere at the same time, until the record is
    /// changed here again.
    pub fn lost(&self) -> Option<LostRaise> {
        self.state.lock().lost.clone()
    }

    /// Whether it was logged why a variable of this start has no effect.
    pub fn has_passed_over(&self) -> bool {
        self.state.lock().passed_over.is_some()
    }

    /// What the environment rules.
    pub fn environment(&self) -> Environment {
        self.environment
    }

    /// Changes the share. Lowered, it is in force before anything is awaited; raised, once it is kept and its moment has
    /// come.
    ///
    /// # Errors
    /// When the environment forbids it; when a raise was asked for without having seen the present state, or nobody can
    /// keep it; when what was seen is not what is there. Lowering without a tag needs none of that.
    pub async fn change(self: &Arc<Self>, change: Change) -> Result<Outcome, Refusal> {
        let this = Arc::clone(self);
        // In a task of its own: who asked may hang up, and half a change must not be left behind.
        let task = tokio::spawn(async move { this.change_now(&change).await });
        match task.await {
            Ok(outcome) => outcome,
            // It was ended with the process.
            Err(_) => Err(Refusal::Stale(Box::new(self.record()))),
        }
    }

    async fn change_now(self: &Arc<Self>, change: &Change) -> Result<Outcome, Refusal> {
        let step = {
            let mut state = self.state.lock();
            let record = &state.register.record;
            let (next, raises) = self.judge(record, change)?;
            if raises {
                Step::Raise
            } else if (next.backend, next.percent) == (record.backend, record.percent)
                // A raise that is under way was asked for before: this is the later word, and has to be above it. One that
                // is announced is this record itself.
                && (self.raising.try_lock().is_ok() || record.due(self.now()) != record.wanted())
            {
                Step::Made(record.clone())
            } else if change.seen.as_deref().is_some_and(|seen| seen.trim() != "*")
                && self.carrier.get().is_some()
            {
                // In force at once if it lowers; whether it is the fleet's record is compared first.
                if next.wanted() < record.due(self.now()) {
                    let acts = self.in_force_of(next.wanted(), record.revision);
                    state.acted_from = Some(self.rollout.in_force());
                    self.rollout.put(acts);
                }
                Step::Compare
            } else {
                Step::Made(self.make(&mut state, next, "rollout.set", change.request_id.clone()))
            }
        };
        match step {
            Step::Made(record) => Ok(self.outcome(record).await),
            Step::Raise => self.raise(change).await,
            Step::Compare => self.compare_and_set(change).await,
        }
    }

    /// Everything to memory, now. Always allowed; asked for again it comes to the same. Where a raise may be under way, here
    /// or out of sight, it is a new record even at 0 %: so that raise has not seen it, and loses.
    pub async fn roll_back(
        self: &Arc<Self>,
        actor: &str,
        reason: &str,
        request_id: Option<String>,
    ) -> Outcome {
        let made = self.roll_back_here(actor, reason, request_id.clone(), false);
        let known = made.clone().unwrap_or_else(|| self.record());
        let (this, actor, reason) = (Arc::clone(self), actor.to_owned(), reason.to_owned());
        let task = tokio::spawn(async move {
            let Some(record) = made else { return this.roll_back_again(&actor, &reason, request_id).await };
            this.outcome(record).await
        });
        task.await.unwrap_or_else(|_| Outcome { record: known, applied: Applied::unknown(), durable: false })
    }

    /// Makes the record of a rollback; `None`: the record is one already, and `always` does not ask for another.
    fn roll_back_here(
        self: &Arc<Self>,
        actor: &str,
        reason: &str,
        request_id: Option<String>,
        always: bool,
    ) -> Option<Record> {
        let mut state = self.state.lock();
        let raising = self.raising.try_lock().is_err();
        let record = &state.register.record;
        if raising && record.wanted() == Percent::NONE {
            self.observer.observe(&Event::RolledBack(RollbackCause::Operator));
        }
        let is_one = record.percent == Percent::NONE && record.epoch > 0;
        let is_alone = !self.carrier.get().is_some_and(|carrier| carrier.is_shared());
        if !always && !raising && (is_one || is_alone && record.percent == Percent::NONE) {
            return None;
        }
        let next = record.followed_by(record.backend, Percent::NONE, actor, reason);
        // Above what another may have raised meanwhile, even if it lowers nothing here.
        let epoch = Record::after(record.epoch);
        Some(self.make(&mut state, Record { epoch, ..next }, "rollout.rollback", request_id))
    }

    /// A rollback of what is rolled back already changes nothing where the others are known to have the same record. Else one
    /// of them may be raising from it, out of sight: then it is made once more, above that.
    async fn roll_back_again(
        self: &Arc<Self>,
        actor: &str,
        reason: &str,
        request_id: Option<String>,
    ) -> Outcome {
        let record = self.record();
        let outcome = self.outcome(record.clone()).await;
        let alone = !self.carrier.get().is_some_and(|carrier| carrier.is_shared());
        let others = outcome.applied.kept || outcome.applied.done == outcome.applied.of;
        if (alone || others) && self.record().is_same(&record) {
            return outcome;
        }
        match self.roll_back_here(actor, reason, request_id, true) {
            Some(record) => self.outcome(record).await,
            None => outcome,
        }
    }

    /// Tells everybody and waits for the disk, both for as long as an answer may take.
    pub(super) async fn outcome(&self, record: Record) -> Outcome {
        let told = async {
            let Some(carrier) = self.carrier.get() else { return Applied::alone() };
            timeout(ANSWER_BUDGET, carrier.announce(&record)).await.unwrap_or_else(|_| Applied::unknown())
        };
        let saved =
            async { timeout(ANSWER_BUDGET, self.audit.saved()).await.is_ok_and(|saved| saved.is_ok()) };
        let (applied, saved) = tokio::join!(told, saved);
        Outcome { durable: saved || applied.kept, record, applied }
    }

    pub(super) fn now(&self) -> Micros {
        let here = || Utc::now().timestamp_micros().max(0) as Micros;
        self.carrier.get().map_or_else(here, |carrier| carrier.now())
    }

    pub(super) fn in_force_of(&self, percent: Percent, revision: u64) -> InForce {
        let percent = if self.environment.hard_off.is_some() { Percent::NONE } else { percent };
        InForce { percent, revision }
    }
}

/// What a change needs.
enum Step {
    /// Nothing more: this record.
    Made(Record),
    /// To be kept first.
    Raise,
    /// To be compared with the fleet's record first.
    Compare,
}

impl State {
    /// As the disk keeps it.
    pub(super) fn stored(&self) -> Stored {
        let unasked = match self.start {
            Start::OfDisk { before, .. } => Some(before),
            Start::Unknown | Start::Settled => None,
        };
        Stored { register: self.register.clone(), own: self.own, unasked, made_here: self.made_here }
    }
}
