//! What an instance makes of what it meets: its disk at a start, the fleet's register from whatever carrier.

use std::sync::Arc;

use super::force::{BY_ENVIRONMENT, STANDS};
use super::steering::{LostRaise, Start, State};
use super::{Record, Register, RememberedEnv, Source, Steering};
use crate::control::audit::{AuditRow, Stored};
use crate::limiter::event::Event;

impl Steering {
    /// A register from another instance or from Redis: merged with the one here. In force at once when it lowers, at its
    /// moment when it raises. The instance that made it has audited it. The first of a start is held against the environment. Whether
    /// the record is another one now.
    pub fn meet(self: &Arc<Self>, theirs: &Register, from: Source) -> bool {
        let mut state = self.state.lock();
        let mut theirs = theirs.clone();
        // A moment that has passed is no part of a record: each instance reaches it for itself.
        theirs.record.effective_at.take_if(|at| *at <= self.now());
        let before = state.register.record.clone();
        let start = std::mem::replace(&mut state.start, Start::Settled);
        match start {
            Start::Settled => self.merge_in(&mut state, &theirs, from),
            Start::Unknown => {
                // Nothing was known: what was in force meanwhile is no claim.
                self.take_over(&mut state, theirs, from);
                self.ask_environment(&mut state, None, true);
            }
            Start::OfDisk { before: memory, made } => {
                // A value that only this start has seen is as new as the fleet's first sight of it, which is now.
                if let Some(seen) = state.seen_before.take() {
                    state.register.seen = seen;
                }
                self.merge_in(&mut state, &theirs, from);
                if made && state.register.record.is_same(&before) {
                    let epoch = state.register.record.epoch;
                    self.environment.see(&mut state.register.seen, epoch);
                    self.raise_anew(&mut state, theirs.record);
                } else {
                    self.ask_environment(&mut state, Some(memory), true);
                }
            }
        }
        if start != Start::Settled {
            self.audit.push(Some(state.stored()), None);
        }
        !state.register.record.is_same(&before)
    }

    /// Redis was read, and holds no record: the start is settled, and what is here is the fleet's.
    pub fn found_nothing(&self) {
        let mut state = self.state.lock();
        if state.start != Start::Settled {
            state.start = Start::Settled;
            if self.environment.hard_off.is_none() {
                self.audit.push(Some(state.stored()), None);
            }
        }
    }

    /// Whether the fleet's record is known, or the record was changed here since the start.
    pub fn is_settled(&self) -> bool {
        self.state.lock().start == Start::Settled
    }

    /// What the disk has kept, whenever it can be read: at the start, or when it is back. What it lacks is brought to it.
    pub fn disk_says(self: &Arc<Self>, stored: Option<Stored>) {
        let mut state = self.state.lock();
        match stored {
            Some(Stored { register, own, unasked, made_here }) if state.start == Start::Unknown => {
                let before = unasked.unwrap_or(own);
                state.start = Start::OfDisk { before, made: false };
                state.seen_before = Some(register.seen.clone());
                state.own = self.environment.remember(own);
                self.take_over(&mut state, register, Source::Disk);
                state.made_here |= made_here;
                let made = self.ask_environment(&mut state, Some(own), false);
                state.start = Start::OfDisk { before, made };
            }
            Some(Stored { register, own, .. }) => {
                state.own = self.environment.remember(own);
                self.merge_in(&mut state, &register, Source::Disk);
            }
            // Nothing is kept before there is something to keep: where the environment rules out Redis, its share is none.
            None if self.environment.hard_off.is_some() && state.register.record.revision == 1 => return,
            None => {}
        }
        self.audit.push(Some(state.stored()), None);
    }

    /// Takes a register as it is, where nothing is known here.
    fn take_over(self: &Arc<Self>, state: &mut State, register: Register, from: Source) {
        state.made_here = false;
        self.put_or_stand(state, register, None, from);
    }

    /// Merges, and puts a lowering that the outcome does not follow above it.
    pub(super) fn merge_in(self: &Arc<Self>, state: &mut State, theirs: &Register, from: Source) {
        let ours = state.register.clone();
        let merged = ours.merge(theirs);
        if merged == ours {
            return;
        }
        if merged.record.is_same(&ours.record) {
            let from = state.source;
            self.put_or_stand(state, merged, Some(&theirs.record), from);
        } else {
            self.note_lost(state, &ours.record, &merged.record);
            state.made_here = false;
            self.put_or_stand(state, merged, Some(&ours.record), from);
        }
        self.audit.push(Some(state.stored()), None);
    }

    /// Puts a register in force; where a lowering is below its record and not followed by it, that lowering instead, at once.
    fn put_or_stand(
        self: &Arc<Self>,
        state: &mut State,
        register: Register,
        older: Option<&Record>,
        from: Source,
    ) {
        let standing = register.standing(older.unwrap_or(&register.record));
        let now = &state.register.record;
        let is_in_force = register.record.is_same(now)
            && register.record.effective_at == now.effective_at
            && older.is_some();
        let record = register.record.clone();
        state.register = register;
        match standing {
            Some(next) => _ = self.make(state, next, STANDS, None),
            None if is_in_force => {}
            None => self.put(state, record, from),
        }
    }

    /// A raise of this instance that the other side did not know of, nor this one of the other's, is noted for its author.
    fn note_lost(&self, state: &mut State, lost: &Record, won: &Record) {
        let knew = lost.lineage.as_ref().is_none_or(|lineage| {
            let own = lineage.marks.iter().find(|(_, mark)| mark.last == lost.stamp());
            own.is_none_or(|(origin, mark)| won.follows().contains(origin, mark.last))
        });
        let raised = lost.wanted() > lost.previous && lost.revision > 1 && lost.updated_by != "env";
        if knew || !state.made_here || !raised {
            return;
        }
        let mut row = AuditRow::of_change(lost, won, "rollout.lost", None);
        row.result = "lost".to_owned();
        self.audit.push(None, Some(row));
        self.observer.observe(&Event::StoreWarning(&format!(
            "rollout: the raise to {} % that {} made here (epoch {}, revision {}) while the fleet was out of reach has lost: {} \
             changed the rollout to {} % elsewhere (epoch {}, revision {}), and that is in force on every instance",
            lost.wanted(),
            lost.updated_by,
            lost.epoch,
            lost.revision,
            won.updated_by,
            won.wanted(),
            won.epoch,
            won.revision
        )));
        state.lost = Some(LostRaise { lost: lost.clone(), won: won.clone() });
    }

    /// Holds the register against the environment. Whether that makes a record. `in_touch`: the fleet is known, and a raise
    /// comes at one moment for all.
    fn ask_environment(
        self: &Arc<Self>,
        state: &mut State,
        memory: Option<RememberedEnv>,
        in_touch: bool,
    ) -> bool {
        let considered = self.environment.consider(&state.register, memory);
        state.register.seen = considered.seen;
        // The disk and then the fleet may come to the same.
        if let Some(words) = considered.passed_over.filter(|words| state.passed_over.as_ref() != Some(words))
        {
            self.observer.observe(&Event::StoreWarning(&words));
            state.passed_over = Some(words);
        }
        let Some(next) = considered.next else { return false };
        let due = state.register.record.due(self.now());
        let raises = next.wanted() > due;
        let next = Record { previous: due, ..next };
        if raises && in_touch && self.carrier.get().is_some() {
            let next = self.stamped(state, next, BY_ENVIRONMENT);
            let (this, seen) = (Arc::clone(self), state.register.record.clone());
            tokio::spawn(async move { this.raise_by_environment(seen, next).await });
        } else {
            self.make(state, next, BY_ENVIRONMENT, None);
        }
        true
    }

    /// The environment has raised the disk's record, and the fleet's is no newer than that was: the raise comes at one moment
    /// for all, and until then the fleet's share is in force.
    fn raise_anew(self: &Arc<Self>, state: &mut State, seen: Record) {
        let now = self.now();
        let next = state.register.record.clone();
        if next.wanted() <= seen.due(now) || self.carrier.get().is_none() {
            return;
        }
        let next = Record { previous: seen.due(now), ..next };
        self.rollout.put(self.in_force_of(seen.due(now), seen.revision));
        let this = Arc::clone(self);
        tokio::spawn(async move {
            this.raise_by_environment(seen, next).await;
            this.put_again();
        });
    }
}
