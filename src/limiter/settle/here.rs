//! The difference that a bucket is due, and what becomes of it in this process: in its count, or in the note and the
//! voyage of a key that the shared store decides.

use crate::limiter::calendar::Span;
use crate::limiter::charge::Charge;
use crate::limiter::clock::{Clock, Micros};
use crate::limiter::entry::Entry;
use crate::limiter::memory::Memory;
use crate::limiter::passage::Passage;
use crate::limiter::policy::PolicyId;
use crate::limiter::settle::Outcome;
use crate::limiter::store::Charged;
use crate::limiter::subject::SubjectHash;

/// The difference that one bucket is due.
#[derive(Clone, Copy, Debug)]
pub(super) struct Due {
    pub(super) policy: PolicyId,
    pub(super) shared: Option<SubjectHash>,
    pub(super) charge: Charge,
    pub(super) change: Change,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    /// So much is charged, as far as it fits.
    More(Micros),
    /// So much was to be given back at this instant; of a calendar window, of what was charged at it.
    Less(Micros, Micros),
}

impl Due {
    /// What drains from a bucket on the way could have drained from an empty one: it is not given back.
    pub(super) fn age(&mut self, now: Micros) {
        if let (None, Change::Less(amount, then)) = (&self.charge.span, &mut self.change) {
            *amount = amount.saturating_sub(now.saturating_sub(*then));
            *then = now;
        }
    }
}

/// A call that settles `dues` in one place of the shared store. Dropped before its outcome is known, because the runtime
/// ends, it settles them in this process, as after a failed call.
pub(super) struct SettlingCall<'a> {
    memory: &'a Memory,
    clock: &'a Clock,
    /// `None` once it has ended.
    passage: Option<Passage<'a>>,
    dues: &'a [Due],
    /// Whether all of it is given back.
    back: bool,
}

impl<'a> SettlingCall<'a> {
    pub(super) fn of(
        memory: &'a Memory,
        clock: &'a Clock,
        passage: Passage<'a>,
        dues: &'a [Due],
        back: bool,
    ) -> Self {
        // What comes back is no charge: its passage only holds the voyage together.
        if back {
            memory.send_back(dues);
        }
        Self { memory, clock, passage: Some(passage), dues, back }
    }

    /// The debt to send with each charge, and the calendar window that it belongs to.
    pub(super) fn notes(&self) -> impl Iterator<Item = (Micros, Option<Span>)> {
        self.passage.iter().flat_map(Passage::notes)
    }

    /// The store answered; `None`: it did not.
    pub(super) fn end(mut self, charged: Option<Charged>) -> Outcome {
        self.settle(charged)
    }

    fn settle(&mut self, charged: Option<Charged>) -> Outcome {
        let Some(passage) = self.passage.take() else { return Outcome::Noted };
        let due = self.dues.len();
        let charged = charged.filter(|charged| charged.readings.len() == due && charged.from.len() == due);
        let now = self.clock.now();
        if self.back {
            self.memory.sent_back(&passage, self.dues, charged.as_ref(), now);
        }
        match charged {
            Some(charged) => {
                passage.answered(charged, now);
                Outcome::Redis
            }
            None => {
                passage.give_up();
                self.dues.iter().for_each(|&due| self.memory.take(due, now));
                Outcome::Noted
            }
        }
    }
}

impl Drop for SettlingCall<'_> {
    fn drop(&mut self) {
        self.settle(None);
    }
}

impl Memory {
    /// Settles one bucket here.
    pub(super) fn take(&self, mut due: Due, now: Micros) {
        due.age(now);
        let Due { charge, change, .. } = due;
        match change {
            Change::More(amount) => self.charge_more(&charge, amount, now),
            Change::Less(amount, _) if charge.span.is_none() => self.charge_less(&charge, amount, now),
            Change::Less(amount, then) => self.refund_part(&charge, amount, then, now),
        }
    }

    /// Charges what fits, unjudged.
    fn charge_more(&self, charge: &Charge, amount: Micros, now: Micros) {
        let tolerance = charge.quota.tolerance();
        let mut shard = self.shard(self.shard_of(charge.key));
        let full_at = shard.settled(charge, false, now);
        let from = charge.from(full_at, now);
        let debt = full_at.saturating_sub(from).min(tolerance);
        let amount = amount.min(tolerance - debt);
        if amount == 0 {
            return;
        }
        if let Some(voyage) = shard.voyage_mut(charge.key) {
            voyage.charge(from, amount);
        }
        self.set(&mut shard, charge, (from, debt + amount), now);
    }

    fn charge_less(&self, charge: &Charge, amount: Micros, now: Micros) {
        let mut shard = self.shard(self.shard_of(charge.key));
        let Some(full_at) = shard.entry(charge.key).map(Entry::full_at) else { return };
        if full_at > now {
            let debt = (full_at - now).saturating_sub(amount);
            self.set(&mut shard, charge, (now, debt), now);
        }
    }

    /// Something is on its way back to the shared store.
    pub(super) fn send_back(&self, dues: &[Due]) {
        for due in dues {
            let Change::Less(amount, _) = due.change else { continue };
            let mut shard = self.shard(self.shard_of(due.charge.key));
            if let Some(voyage) = shard.voyage_mut(due.charge.key) {
                voyage.returning += amount;
                voyage.give_back(amount);
            }
        }
    }

    /// It arrived, or it did not. What the shared store says of these buckets then becomes the note, be it less.
    /// It went with `passage`: a key that was forgiven since has nothing to be told.
    pub(super) fn sent_back(
        &self,
        passage: &Passage<'_>,
        dues: &[Due],
        charged: Option<&Charged>,
        now: Micros,
    ) {
        for ((at, due), era) in dues.iter().enumerate().zip(passage.eras()) {
            let Change::Less(amount, _) = due.change else { continue };
            let charge = &due.charge;
            let mut shard = self.shard(self.shard_of(charge.key));
            let Some(voyage) = shard.voyage_mut(charge.key) else { continue };
            voyage.returning = voyage.returning.saturating_sub(amount);
            let Some(charged) = charged.filter(|charged| charged.judged_at >= voyage.returned_at) else {
                continue;
            };
            if voyage.era() != era {
                continue;
            }
            voyage.returned_at = charged.judged_at;
            let (from, past) = charged.from(at, charge, now);
            let unknown_there = voyage.charged - voyage.confirmed;
            let full_at = (from + charged.readings[at].debt).max(voyage.own_full_at()) + unknown_there;
            if full_at > past || shard.entry(charge.key).is_some() {
                self.set(&mut shard, charge, (from, full_at - from), now);
            }
        }
    }
}
