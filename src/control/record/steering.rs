//! The wheel: changes the record, takes what others have made of it, and puts it in force.
//!
//! What lowers acts first, here, before anything is awaited, and is told and kept right after. What raises is kept first
//! (`raise.rs`). A request is decided by two words in [`Rollout`] and knows nothing of all this.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use chrono::Utc;
use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::{Applied, Carrier, Change, Environment, Outcome, Record, Refusal, RememberedEnv, Source};
use crate::control::audit::{Audit, AuditRow, Stored};
use crate::limiter::clock::Micros;
use crate::limiter::event::{Event, Observer, RollbackCause};
use crate::limiter::rollout::{InForce, Percent, Rollout};

/// How far away the moment of a raise may be: two of the longest beats, and a little. What is further is of a wrong clock.
const LATEST: Duration = Duration::from_secs(2 * 3_600 + 60);

/// How long an answer waits for the disk and for the others. What takes longer goes on without it.
const ANSWER_BUDGET: Duration = Duration::from_secs(1);

/// Since when something is in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Since {
    /// By the fleet's clock.
    pub since: Micros,
    /// How much later than it was due.
    pub lag: Micros,
}

/// Changes the record and puts it in force.
pub struct Steering {
    pub(super) state: Mutex<State>,
    /// One raise at a time.
    pub(super) raising: tokio::sync::Mutex<()>,
    pub(super) environment: Environment,
    pub(super) audit: Arc<Audit>,
    pub(super) carrier: OnceLock<Arc<dyn Carrier>>,
    rollout: Arc<Rollout>,
    pub(super) observer: Arc<dyn Observer>,
}

pub(super) struct State {
    pub(super) record: Record,
    pub(super) remembered: RememberedEnv,
    standing: Standing,
    source: Source,
    since: Since,
    /// It was lowered here, and nobody else is known to have it.
    unheard: bool,
    /// Of a raise that is announced.
    timer: Option<AbortHandle>,
}

/// What this process knows of the time before its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Nothing: no disk and no other instance has told yet. `touched`: and somebody has changed something meanwhile.
    Unknown { touched: bool },
    /// What the disk has kept; `changed`: and the environment has made a newer change of it.
    OfDisk { changed: bool },
    /// What the fleet knows: the environment has had its say.
    Settled,
}

impl Steering {
    /// Puts what the environment says in force, until somebody tells what was before.
    pub fn new(
        record: Record,
        environment: Environment,
        audit: Arc<Audit>,
        rollout: Arc<Rollout>,
        observer: Arc<dyn Observer>,
    ) -> Arc<Self> {
        let state = State {
            record,
            remembered: environment.remember(RememberedEnv::default()),
            standing: Standing::Unknown { touched: false },
            source: Source::Here,
            since: Since::default(),
            unheard: false,
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
        };
        let in_force = steering.in_force_of(steering.state.lock().record.wanted(), 1);
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
        self.state.lock().record.clone()
    }

    /// The environment that goes with the record.
    pub fn remembered(&self) -> Option<RememberedEnv> {
        Some(self.state.lock().remembered)
    }

    /// Another instance has this record, or Redis does: whoever raises from now on has seen it.
    pub fn heard(&self, record: &Record) {
        let mut state = self.state.lock();
        state.unheard &= state.record.order() != record.order();
    }

    /// Since when it is in force.
    pub fn in_force(&self) -> Since {
        self.state.lock().since
    }

    /// From where the record is.
    pub fn source(&self) -> Source {
        self.state.lock().source
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
    /// keep it. Lowering needs none of that.
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
        let lowered = {
            let mut state = self.state.lock();
            let (next, raises) = self.judge(&state.record, change)?;
            if raises {
                None
            } else if (next.backend, next.percent) == (state.record.backend, state.record.percent)
                // A raise that is under way was asked for before: this is the later word, and has to be above it. One that
                // is announced is this record itself.
                && (self.raising.try_lock().is_ok() || state.record.due(self.now()) != state.record.wanted())
            {
                Some(state.record.clone())
            } else {
                Some(self.make(&mut state, next, "rollout.set", change.request_id.clone()))
            }
        };
        match lowered {
            Some(record) => Ok(self.outcome(record).await),
            None => self.raise(change).await,
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
        let record = {
            let mut state = self.state.lock();
            let raising = self.raising.try_lock().is_err();
            if raising && state.record.wanted() == Percent::NONE {
                self.observer.observe(&Event::RolledBack(RollbackCause::Operator));
            }
            let takes_back = state.record.percent > Percent::NONE || raising;
            if takes_back || self.carrier.get().is_some_and(|carrier| carrier.is_shared()) {
                let next = state.record.followed_by(state.record.backend, Percent::NONE, actor, reason);
                // Above what another may have raised meanwhile, even if it lowers nothing here.
                let epoch = Record::after(state.record.epoch);
                self.make(&mut state, Record { epoch, ..next }, "rollout.rollback", request_id)
            } else {
                state.record.clone()
            }
        };
        let this = Arc::clone(self);
        let told = record.clone();
        let task = tokio::spawn(async move { this.outcome(told).await });
        task.await.unwrap_or_else(|_| Outcome { record, applied: Applied::unknown(), durable: false })
    }

    /// A record from elsewhere: taken when it supersedes ours. In force at once when it lowers, at its moment when it raises.
    /// Whoever made it has audited it. The first that tells of the time before this start is held against the environment.
    pub fn adopt(self: &Arc<Self>, record: Record, remembered: Option<RememberedEnv>, from: Source) -> bool {
        let mut state = self.state.lock();
        let of_disk = from == Source::Disk;
        let knew = state.standing;
        let first = of_disk && knew == Standing::Unknown { touched: false };
        if !first && !record.supersedes(&state.record) {
            return false;
        }
        let ours = state.record.clone();
        let (theirs, kept) = (record.clone(), remembered.unwrap_or(state.remembered));
        let asks_environment = remembered.is_some()
            && match knew {
                Standing::Unknown { .. } | Standing::OfDisk { changed: true } => true,
                Standing::OfDisk { changed: false } | Standing::Settled => false,
            };
        state.remembered = kept;
        let changed = asks_environment.then(|| self.environment.change(&theirs, kept)).flatten();
        state.standing = match of_disk {
            true => Standing::OfDisk { changed: changed.is_some() },
            false => Standing::Settled,
        };
        // Of the same epoch it may have seen ours: the order has ruled between them.
        let unseen = std::mem::take(&mut state.unheard) && record.epoch > ours.epoch;
        self.put(&mut state, record, from);
        if let Some(next) = changed {
            self.environment_changes(&mut state, next, of_disk);
        }
        let unseen = unseen || knew == (Standing::Unknown { touched: true });
        if unseen && ours.wanted() < state.record.wanted() {
            // Somebody lowered before this was known: the lower share stands, above what they could not know.
            let (backend, percent) = (ours.backend, ours.percent);
            let next = state.record.followed_by(backend, percent, &ours.updated_by, &ours.reason);
            self.make(&mut state, next, "rollout.stands", None);
        }
        let kept = Stored { record: state.record.clone(), remembered: state.remembered };
        self.audit.push(Some(kept), None);
        true
    }

    /// What the disk has kept, whenever it can be read: at the start, or when it is back. What it lacks is brought to it.
    pub fn disk_says(self: &Arc<Self>, stored: Option<Stored>) {
        match stored {
            Some(stored) => {
                self.adopt(stored.record, Some(stored.remembered), Source::Disk);
            }
            // Nothing is kept before there is something to keep: where the environment rules out Redis, its share is none.
            None if self.environment.hard_off.is_some() && self.record().revision == 1 => return,
            None => {}
        }
        let state = self.state.lock();
        let kept = Stored { record: state.record.clone(), remembered: state.remembered };
        self.audit.push(Some(kept), None);
    }

    /// A deploy has changed the environment. That is kept by itself, so nothing has to keep it before it counts; but where a
    /// fleet is asked anyway, it raises at one moment for all.
    fn environment_changes(self: &Arc<Self>, state: &mut State, next: Record, of_disk: bool) {
        state.remembered = self.environment.remember(state.remembered);
        let due = state.record.due(self.now());
        let raises = next.wanted() > due;
        let next = Record { previous: due, ..next };
        match self.carrier.get() {
            Some(_) if raises && !of_disk => {
                let (this, seen) = (Arc::clone(self), state.record.clone());
                tokio::spawn(async move { this.raise_by_environment(seen, next).await });
            }
            _ => {
                self.make(state, next, "rollout.env", None);
            }
        }
    }

    /// Makes `next` the record, of this process' own making.
    pub(super) fn make(
        self: &Arc<Self>,
        state: &mut State,
        next: Record,
        action: &'static str,
        request_id: Option<String>,
    ) -> Record {
        let row = AuditRow::of_change(&state.record, &next, action, request_id);
        if next.wanted() == Percent::NONE && state.record.wanted() > Percent::NONE {
            let cause = match action {
                "rollout.env" => RollbackCause::Environment,
                "rollout.stands" => RollbackCause::Stands,
                _ => RollbackCause::Operator,
            };
            self.observer.observe(&Event::RolledBack(cause));
        }
        // Only what a person does: a deploy is one of many, and the fleet's word is the later.
        state.unheard |= next.epoch > state.record.epoch && action != "rollout.env";
        self.put(state, next, Source::Here);
        if let Standing::Unknown { touched } = &mut state.standing {
            *touched = true;
        }
        let kept = Stored { record: state.record.clone(), remembered: state.remembered };
        self.audit.push(Some(kept), Some(row));
        state.record.clone()
    }

    /// Makes `record` the present one, in force now or at its moment. The timer of one that it supersedes dies.
    pub(super) fn put(self: &Arc<Self>, state: &mut State, record: Record, source: Source) {
        if let Some(timer) = state.timer.take() {
            timer.abort();
        }
        (state.record, state.source) = (record, source);
        let now = self.now();
        let latest = now.saturating_add(LATEST.as_micros() as Micros);
        state.record.effective_at = state.record.effective_at.map(|at| at.min(latest));
        let Some(at) = state.record.effective_at.filter(|at| *at > now) else { return self.comes(state) };
        self.rollout.put(self.in_force_of(state.record.due(now), state.record.revision));
        self.observer.observe(&Event::RolloutAnnounced {
            to: self.in_force_of(state.record.wanted(), state.record.revision),
            after: Duration::from_micros(at - now),
            actor: &state.record.updated_by,
            reason: &state.record.reason,
            source: source.as_str(),
        });
        let (this, record) = (Arc::downgrade(self), state.record.clone());
        let timer = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_micros(at - now)).await;
            let Some(this) = this.upgrade() else { return };
            let mut state = this.state.lock();
            if state.record == record {
                this.comes(&mut state);
            }
        });
        state.timer = Some(timer.abort_handle());
    }

    fn comes(&self, state: &mut State) {
        let (now, record) = (self.now(), &state.record);
        let due = record.effective_at.unwrap_or(record.updated_at.timestamp_micros().max(0) as Micros);
        state.since = Since { since: now, lag: now.saturating_sub(due) };
        let from = self.rollout.in_force();
        let to = self.in_force_of(record.wanted(), record.revision);
        self.rollout.put(to);
        if state.source == Source::Disk && from.percent == to.percent {
            // A start that changes nothing: the line that says what is in force follows.
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

    /// Tells everybody and waits for the disk, both for as long as an answer may take.
    pub(super) async fn outcome(&self, record: Record) -> Outcome {
        let told = async {
            let Some(carrier) = self.carrier.get() else { return Applied::alone() };
            timeout(ANSWER_BUDGET, carrier.announce(&record)).await.unwrap_or_else(|_| Applied::unknown())
        };
        let saved =
            async { timeout(ANSWER_BUDGET, self.audit.saved()).await.is_ok_and(|saved| saved.is_ok()) };
        let (applied, saved) = tokio::join!(told, saved);
        if applied.kept || applied.done > 1 {
            self.heard(&record);
        }
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
