//! A call to Redis under way, as the store in this process sees it: what rides on it, what it may have been granted,
//! and what its answer teaches.

use std::sync::atomic::Ordering;

use smallvec::SmallVec;

use super::calendar::Span;
use super::charge::{Charge, SET_BACK};
use super::clock::Micros;
use super::entry::Entry;
use super::memory::{Locked, Memory, Shard};
use super::store::{Charged, Readings};
use super::subject::Key;

/// One call to Redis under way. Dropped before its outcome is known, it keeps its charge as local debt: Redis may have made
/// it. So an attack that hangs up is denied by what is known here, and what Redis reports later is not mistaken for the
/// traffic of other instances.
#[must_use = "a passage holds budget until it ends"]
pub struct Passage<'a> {
    memory: &'a Memory,
    charges: &'a [Charge],
    tickets: SmallVec<[Ticket; 2]>,
    left_at: Micros,
    peek: bool,
    over: bool,
}

#[derive(Clone, Copy, Debug)]
struct Ticket {
    /// The debt that rides on the call.
    note: Micros,
    /// The calendar window that it belongs to.
    span: Option<Span>,
    /// What it asks for.
    amount: Micros,
    /// What the voyage had charged when it left: all of it rides in the note.
    charged: Micros,
    /// The voyage's era when it left.
    era: u32,
    /// The debt with this charge and with those that were in flight before it, and from when it counts.
    charged_by: (Micros, Micros),
}

/// The calls to Redis that are under way for one key, and what was charged here meanwhile.
#[derive(Clone, Debug)]
pub(super) struct Voyage {
    pub(super) key: Key,
    calls: u32,
    /// The sum of their charges: each may be granted at any moment.
    pub(super) in_flight: Micros,
    /// All that was charged here since the voyage began. It only grows.
    pub(super) charged: Micros,
    /// How much of `charged` rode in a call that was answered: Redis knows of it.
    pub(super) confirmed: Micros,
    /// What is on its way back (see [`super::settle`]): Redis is about to forget it, so it rides in no note.
    pub(super) returning: Micros,
    /// When something was given back last. What Redis said before is no more.
    pub(super) returned_at: Micros,
    /// What this process granted, by Redis' word and by its own, in the order of time. Redis can forget (a flush, a
    /// failover) between two calls that are under way; this cannot.
    granted: SmallVec<[(Micros, Micros); 2]>,
    /// When the bucket would be full again after all that was granted before those, and when the last of it was.
    granted_before: Micros,
    remembered_since: Micros,
    /// How often the key was forgiven meanwhile. A call that left before knows of debts that are no more.
    era: u32,
}

/// How many grants of a voyage are kept apart: by so many an answer may be overtaken and still be put in its place.
const REMEMBERED: usize = 64;

impl Voyage {
    /// How often the key was forgiven during the voyage.
    pub(super) fn era(&self) -> u32 {
        self.era
    }

    /// Adds a charge that Redis granted at `at`, unless the bucket had no room for it, as far as this process knows.
    /// In whatever order charges are added, they are judged in their order in time: answers overtake each other on
    /// their way to us, and whoever was granted must not be denied for that.
    fn grant(&mut self, at: Micros, amount: Micros, tolerance: Micros) -> bool {
        let Some(place) = self.add(at, amount) else { return true };
        let mut full_at = self.granted_before;
        let fits = self.granted.iter().all(|&(at, amount)| {
            full_at = full_at.max(at) + amount;
            full_at <= at + tolerance
        });
        if !fits {
            self.granted.remove(place);
        }
        fits
    }

    /// Forgets what this process granted.
    fn forget(&mut self) {
        self.granted.clear();
        self.granted_before = 0;
    }

    /// Adds a charge that was granted here.
    pub(super) fn charge(&mut self, at: Micros, amount: Micros) {
        self.charged += amount;
        self.add(at, amount);
    }

    /// Takes back a part of what was granted: of the latest first, so that what is said of an earlier moment stays
    /// rather too strict.
    pub(super) fn give_back(&mut self, mut amount: Micros) {
        for (_, granted) in self.granted.iter_mut().rev() {
            let part = amount.min(*granted);
            *granted -= part;
            amount -= part;
        }
        self.granted_before = self.granted_before.saturating_sub(amount);
    }

    /// Where it was put; `None` for a charge of nothing.
    fn add(&mut self, at: Micros, amount: Micros) -> Option<usize> {
        if amount == 0 {
            return None;
        }
        if self.granted.len() == REMEMBERED {
            let (at, amount) = self.granted.remove(0);
            self.granted_before = self.granted_before.max(at) + amount;
            self.remembered_since = at;
        }
        let at = at.max(self.remembered_since);
        let place = self.granted.partition_point(|&(other, _)| other <= at);
        self.granted.insert(place, (at, amount));
        Some(place)
    }

    /// When the bucket would be full again if only this process had charged it.
    pub(super) fn own_full_at(&self) -> Micros {
        self.granted.iter().fold(self.granted_before, |full_at, &(at, amount)| full_at.max(at) + amount)
    }
}

impl Memory {
    /// Sets out for Redis with these charges. Until the [`Passage`] ends, they count as granted for whoever is
    /// decided here.
    pub fn depart<'a>(&'a self, charges: &'a [Charge], peek: bool, now: Micros) -> Passage<'a> {
        let mut tickets = SmallVec::new();
        for charge in charges {
            let mut shard = self.shard(self.shard_of(charge.key));
            let full_at = shard.settled(charge, peek, now);
            let from = charge.from(full_at, now);
            let told = full_at.saturating_sub(from).min(charge.quota.tolerance());
            let amount = if peek { 0 } else { charge.amount().min(charge.quota.tolerance()) };
            let voyage = shard.voyage_or_new(charge.key, full_at);
            // What Redis has not been told of may meet calls that it has not answered: then they ride along,
            // so that its `max` cannot swallow one of the two. Too strict by at most what is in flight.
            let dirty = voyage.charged > voyage.confirmed;
            let note = told.saturating_sub(voyage.returning) + if dirty { voyage.in_flight } else { 0 };
            let (charged, era) = (voyage.charged, voyage.era);
            // Calls of a key are answered in the order in which they left, as a rule: so this is what Redis holds at most
            // once it has charged this one, and no answer that came before is added to it twice.
            let debt = (told + voyage.in_flight + amount).min(charge.quota.tolerance());
            voyage.calls += 1;
            voyage.in_flight += amount;
            let span = charge.span.map(|span| span.around(from));
            tickets.push(Ticket {
                note: note.min(charge.quota.tolerance()),
                span,
                amount,
                charged,
                era,
                charged_by: (from, debt),
            });
        }
        Passage { memory: self, charges, tickets, left_at: now, peek, over: false }
    }
}

impl Passage<'_> {
    /// The debt to send with each charge, and the calendar window that it belongs to.
    pub fn notes(&self) -> impl Iterator<Item = (Micros, Option<Span>)> {
        self.tickets.iter().map(|ticket| (ticket.note, ticket.span))
    }

    /// The era in which each charge left: another one since means that its key was forgiven.
    pub(super) fn eras(&self) -> impl Iterator<Item = u32> {
        self.tickets.iter().map(|ticket| ticket.era)
    }

    /// Redis answered: its debts become the notes. Returns what it said, but for a grant that this process knows to
    /// be too much, because Redis lost data while calls were under way: that one is denied after all.
    pub fn answered(mut self, mut charged: Charged, now: Micros) -> Readings {
        self.over = true;
        let (judged_at, ahead) = (charged.judged_at, charged.ahead);
        let mut readings = std::mem::take(&mut charged.readings);
        let last = std::mem::take(&mut charged.last);
        let charges = self.charges.iter().zip(&self.tickets);
        if self.peek {
            for (charge, ticket) in charges {
                let mut shard = self.memory.shard(self.memory.shard_of(charge.key));
                // A peek wrote nothing, so it confirms nothing and teaches nothing.
                shard.arrive(charge.key, *ticket, false);
            }
            return readings;
        }
        let granted =
            self.charges.iter().zip(&readings).all(|(charge, reading)| reading.allowed || !charge.enforce);
        // Before anything is left out: the store has made these charges, whatever becomes of its answer here.
        last.into_iter().flatten().for_each(|last| self.memory.sight.sample(last));
        for (at, ((charge, ticket), reading)) in charges.zip(&mut readings).enumerate() {
            let mut shard = self.memory.shard(self.memory.shard_of(charge.key));
            let (from, past) = charged.from(at, charge, now);
            let mut full_at = from + reading.debt;
            if shard.voyage_mut(charge.key).is_some_and(|voyage| voyage.era != ticket.era) {
                // Forgiven while it was under way: what Redis said then is no more.
                shard.arrive(charge.key, *ticket, false);
                continue;
            }
            let charged = granted && reading.allowed;
            if let Some(span) = charge.span
                && span.ahead.saturating_sub(ahead) > SET_BACK as i64
                && let Some(voyage) = shard.voyage_mut(charge.key)
            {
                // The store's clock was set back under way: what was granted in a window that has not begun by it would deny
                // in the present one.
                voyage.forget();
            }
            if charged && let Some(voyage) = shard.voyage_mut(charge.key) {
                if !voyage.grant(from, ticket.amount, charge.quota.tolerance()) {
                    let debt = voyage.own_full_at().saturating_sub(from);
                    *reading = charge.reading(debt, false, from, judged_at);
                }
                full_at = full_at.max(voyage.own_full_at());
            }
            let stale = shard.voyage_mut(charge.key).is_some_and(|voyage| judged_at < voyage.returned_at);
            let unconfirmed = shard.arrive(charge.key, *ticket, true);
            full_at += unconfirmed;
            if unconfirmed == 0 {
                shard.forget_fallback(charge.key, self.memory.past(now));
            }
            let known = shard.entry(charge.key).map_or(0, Entry::full_at);
            if full_at > known && full_at > past && !stale {
                self.memory.set(&mut shard, charge, (from, full_at - from), now);
            }
            if !reading.allowed {
                shard.mark_denied(charge.key);
            }
        }
        readings
    }

    /// Redis did not answer, and the request is refused for that: nothing is charged here.
    pub fn give_up(mut self) {
        self.over = true;
        for (charge, ticket) in self.charges.iter().zip(&self.tickets) {
            let mut shard = self.memory.shard(self.memory.shard_of(charge.key));
            shard.arrive(charge.key, *ticket, false);
        }
    }

    /// Redis did not answer: the same charges are decided here, in one step with giving up the call.
    ///
    /// `charges` are those that it left with, at the share and under the conditions that hold here.
    pub fn decide_here(mut self, charges: &[Charge], now: Micros) -> Readings {
        self.over = true;
        let mut locked = Locked::of(self.memory, self.charges);
        let mut unknown: SmallVec<[bool; 2]> = SmallVec::new();
        for (charge, ticket) in self.charges.iter().zip(&self.tickets) {
            let shard = locked.shard(self.memory.shard_of(charge.key));
            shard.arrive(charge.key, *ticket, false);
            unknown.push(shard.entry(charge.key).is_none());
        }
        let readings = self.memory.charge_in_fallback(&mut locked, charges, self.peek, now);
        for (charge, unknown) in charges.iter().zip(unknown) {
            if unknown && locked.shard(self.memory.shard_of(charge.key)).entry(charge.key).is_some() {
                self.memory.decided_unknown.fetch_add(1, Ordering::Relaxed);
            }
        }
        readings
    }
}

impl Drop for Passage<'_> {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        for (charge, ticket) in self.charges.iter().zip(&self.tickets) {
            let mut shard = self.memory.shard(self.memory.shard_of(charge.key));
            let reset = shard.voyage_mut(charge.key).is_some_and(|voyage| voyage.era != ticket.era);
            shard.arrive(charge.key, *ticket, false);
            let known = shard.entry(charge.key).map_or(0, Entry::full_at);
            let (from, debt) = ticket.charged_by;
            if ticket.amount > 0 && from + debt > known && !reset {
                self.memory.set(&mut shard, charge, ticket.charged_by, self.left_at);
            }
        }
    }
}

impl Memory {
    /// Whether these charges would be denied by Redis, by what it told last and was charged here since, also when it
    /// judges them `lag` from now. Then there is no need to ask. What is in flight does not count: it may be denied. Nor does
    /// what is known of a key of which Redis does not know all charges.
    pub fn denies(&self, charges: &[Charge], lag: Micros, now: Micros) -> Option<Readings> {
        let mut denied = false;
        let readings = charges.iter().map(|charge| {
            let mut shard = self.shard(self.shard_of(charge.key));
            let full_at = shard.settled(charge, false, now);
            let (amount, tolerance) = (charge.amount(), charge.quota.tolerance());
            let debt_then = full_at.saturating_sub(charge.from(full_at, now + lag)).min(tolerance);
            denied |= charge.enforce
                && amount > 0
                && debt_then + amount > tolerance
                && !shard.has_fallback(charge.key, self.past(now));
            let reading = charge.known(full_at, now);
            if !reading.allowed {
                shard.mark_denied(charge.key);
            }
            reading
        });
        let readings = readings.collect();
        denied.then_some(readings)
    }

    /// Forgets the debt of a bucket, and what calls under way for it will tell. True when there are such calls: they
    /// carry the debt to Redis once more.
    pub fn forgive(&self, key: Key) -> bool {
        let mut shard = self.shard(self.shard_of(key));
        shard.drain(key);
        let Some(voyage) = shard.voyage_mut(key) else { return false };
        voyage.era += 1;
        voyage.confirmed = voyage.charged;
        voyage.forget();
        true
    }
}

impl Shard {
    fn voyage_or_new(&mut self, key: Key, full_at: Micros) -> &mut Voyage {
        let at = self.voyages.iter().position(|voyage| voyage.key == key);
        let at = at.unwrap_or_else(|| {
            self.voyages.push(Voyage {
                key,
                calls: 0,
                in_flight: 0,
                charged: 0,
                confirmed: 0,
                returning: 0,
                returned_at: 0,
                granted: SmallVec::new(),
                granted_before: full_at,
                remembered_since: 0,
                era: 0,
            });
            self.voyages.len() - 1
        });
        &mut self.voyages[at]
    }

    /// Ends one call of a key's voyage, and returns what was charged here that the call did not carry and no
    /// other answered call did either.
    fn arrive(&mut self, key: Key, ticket: Ticket, answered: bool) -> Micros {
        let Some(at) = self.voyages.iter().position(|voyage| voyage.key == key) else {
            return 0;
        };
        let voyage = &mut self.voyages[at];
        voyage.calls -= 1;
        voyage.in_flight -= ticket.amount;
        if answered {
            voyage.confirmed = voyage.confirmed.max(ticket.charged);
        }
        let unconfirmed = voyage.charged - voyage.confirmed;
        if voyage.calls == 0 {
            self.voyages.swap_remove(at);
        }
        unconfirmed
    }
}
