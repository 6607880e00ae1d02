//! The fallback bucket of a key: what this instance alone has charged since the shared store could not decide for the key.
//!
//! The key's own bucket holds the debt of the fleet as far as it is known, and never more than τ. The fallback bucket
//! holds the charges of this instance only, each as many times greater as its traffic share is smaller than the whole. So
//! an instance that sees a quarter of the traffic serves a quarter of the rate and of the burst. Where that is less than
//! one unit, a hit passes when the fallback bucket is empty, and the next one as late as the rate of the share has it: a
//! fleet of four at one unit a second with a burst of one admits one unit a second together, not four. A calendar window
//! that is too small for the fleet is skipped as many times.
//!
//! A fallback bucket also marks the key as one of which the shared store does not know all charges: what is known here is
//! not the store's word then. Its answer for the key ends that, and so does a debt that has drained.
//!
//! It is an entry of the same table under another key, bounded, swept and evicted like every other.

use smallvec::SmallVec;

use super::calendar::Span;
use super::charge::Charge;
use super::clock::{Micros, SECOND};
use super::entry::Measure;
use super::gcra::Reading;
use super::memory::{Locked, Memory, Shard};
use super::share::Share;
use super::store::Readings;
use super::subject::Key;

/// What tells the key of a fallback bucket from that of the bucket itself; the half that picks the shard stays.
const APART: u64 = 0x9E37_79B9_7F4A_7C15;
/// A debt that exceeds the greatest one by no more than this may be that of a thread that was held up.
const HELD_UP: Micros = 5 * SECOND;

/// The key of the fallback bucket of a key.
fn apart(Key(first, second): Key) -> Key {
    Key(first ^ APART, second)
}

/// What a fallback bucket says of one charge.
#[derive(Clone, Copy, Debug)]
pub(super) struct Own {
    pub(super) allowed: bool,
    /// In microseconds, of a calendar window in units.
    debt: Micros,
    amount: Micros,
    /// From when the debt counts: now, or the end of the calendar window by the wall clock.
    from: Micros,
    /// How long until the same charge fits.
    wait: Micros,
}

impl Charge {
    /// What a fallback bucket in `state` says of this charge.
    fn own(&self, state: Micros, now: Micros) -> Own {
        let tolerance = self.quota.tolerance();
        let amount = self.share.scale(self.quota.charge(self.cost));
        let (from, debt) = match &self.span {
            None => (now, state.saturating_sub(now)),
            Some(span) => {
                let from = span.end_at(span.wall(now));
                (from, state.saturating_sub(from).min(tolerance))
            }
        };
        let allowed = amount == 0 || debt == 0 || debt + amount <= tolerance;
        let wait = match &self.span {
            _ if allowed => 0,
            None if amount <= tolerance => debt + amount - tolerance,
            None => debt,
            Some(span) => {
                let windows = Windows::of(span, from);
                let (passed, rest) = windows.place(state);
                // From the beginning of that window on, or of the one after it.
                let until = windows.end(passed) - if rest + amount <= tolerance { windows.length } else { 0 };
                until.saturating_sub(span.wall(now))
            }
        };
        Own { allowed, debt, amount, from, wait }
    }

    /// What both buckets of the key together say, the fallback bucket at this debt.
    fn both(&self, of_key: Reading, own: &Own, debt: Micros) -> Reading {
        let mut both = of_key;
        both.allowed = of_key.allowed && own.allowed;
        both.remaining = match of_key.debt + debt {
            // An empty bucket admits at least one.
            0 => of_key.remaining.max(1),
            _ => {
                let fit =
                    self.quota.tolerance().saturating_sub(debt) / self.share.scale(self.quota.interval());
                of_key.remaining.min(u32::try_from(fit).unwrap_or(u32::MAX))
            }
        };
        if !own.allowed {
            both.retry_after = of_key.retry_after.map(|wait| wait.max(own.wait));
        }
        if self.span.is_none() {
            both.reset_after = of_key.reset_after.max(debt);
        }
        both
    }

    /// The state of the fallback bucket after the charge.
    fn own_after(&self, own: &Own) -> Micros {
        let debt = own.debt + own.amount;
        match &self.span {
            None => own.from + debt,
            Some(span) => {
                let tolerance = self.quota.tolerance().max(1);
                let passed = debt.saturating_sub(1) / tolerance;
                Windows::of(span, own.from).end(passed) + (debt - passed * tolerance)
            }
        }
    }

    /// The greatest state that a fallback bucket comes to.
    fn own_most(&self, now: Micros) -> Micros {
        let most = self.share.scale(self.quota.tolerance());
        match &self.span {
            None => now + most,
            Some(span) => {
                let windows = Windows::of(span, span.end_at(span.wall(now)));
                windows.end(2 + most / self.quota.tolerance().max(1))
            }
        }
    }
}

/// The windows from one on, as if all of those after it were as long as the next.
struct Windows {
    first: Micros,
    length: Micros,
}

impl Windows {
    fn of(span: &Span, end: Micros) -> Self {
        Self { first: end, length: (span.end_at(end) - end).max(1) }
    }

    /// The end of the window after so many.
    fn end(&self, passed: u64) -> Micros {
        self.first + passed * self.length
    }

    /// In which window a state lies, and with how many units.
    fn place(&self, state: Micros) -> (u64, Micros) {
        let beyond = state.saturating_sub(self.first);
        let passed = beyond.saturating_sub(1) / self.length;
        (passed, beyond - passed * self.length)
    }
}

impl Shard {
    /// Whether the shared store does not know all charges of this key.
    #[inline]
    pub(super) fn has_fallback(&self, key: Key, now: Micros) -> bool {
        // Hardly ever anything but no: then a look at the table is saved.
        self.fallbacks_until > now && self.entry(apart(key)).is_some_and(|entry| entry.full_at() > now)
    }

    /// What the fallback bucket says of a charge. A debt that is greater than any of the present limit is cut to it for
    /// good.
    fn own(&mut self, charge: &Charge, peek: bool, now: Micros) -> Own {
        let (most, tolerance) = (charge.own_most(now), charge.quota.tolerance());
        let state = match self.entry_mut(apart(charge.key)) {
            None => 0,
            Some(entry) if entry.full_at() <= most + HELD_UP => entry.full_at(),
            Some(_) if peek => most,
            Some(entry) => {
                entry.set(most, Measure::of(charge, tolerance), tolerance);
                most
            }
        };
        charge.own(state, now)
    }

    /// The shared store knows all charges of this key, or is to know of none.
    #[inline]
    pub(super) fn forget_fallback(&mut self, key: Key, now: Micros) {
        if self.fallbacks_until > now {
            self.empty(apart(key));
        }
    }
}

impl Memory {
    /// Decides in the place of the shared store: each charge has to pass the bucket of its key and its fallback bucket.
    pub(super) fn charge_in_fallback(
        &self,
        locked: &mut Locked<'_>,
        charges: &[Charge],
        peek: bool,
        now: Micros,
    ) -> Readings {
        let mut judged: SmallVec<[(Own, Micros); 2]> = SmallVec::new();
        let mut readings = Readings::new();
        for charge in charges {
            let shard = locked.shard(self.shard_of(charge.key));
            let (reading, debt) = shard.judge(charge, peek, now);
            let own = shard.own(charge, peek, now);
            let both = charge.both(reading, &own, own.debt);
            if !both.allowed && !peek {
                shard.mark_denied(charge.key);
                shard.mark_denied(apart(charge.key));
            }
            readings.push(both);
            judged.push((own, debt));
        }
        let denied = |(charge, reading): (&Charge, &Reading)| charge.enforce && !reading.allowed;
        if peek || charges.iter().zip(&readings).any(denied) {
            return readings;
        }
        for ((charge, reading), (own, debt)) in charges.iter().zip(&mut readings).zip(judged) {
            if !reading.allowed || own.amount == 0 {
                continue;
            }
            let shard = locked.shard(self.shard_of(charge.key));
            let from = self.write(shard, charge, debt, now);
            let of_key = charge.reading(debt + charge.amount(), true, from, now);
            *reading = charge.both(of_key, &own, own.debt + own.amount);
            let state = charge.own_after(&own);
            shard.fallbacks_until = shard.fallbacks_until.max(state);
            let fallback = Charge { key: apart(charge.key), ..*charge };
            self.set(shard, &fallback, (own.from, state - own.from), now);
        }
        readings
    }

    /// Charges the fallback bucket what a request cost more than it was charged by [`Memory::charge_in_fallback`]: unjudged,
    /// and never more than a full bucket of the share, so that no client waits longer than one refill.
    pub(super) fn charge_fallback_more(&self, charge: &Charge, now: Micros) {
        let mut shard = self.shard(self.shard_of(charge.key));
        let own = shard.own(charge, false, now);
        let most = charge.share.scale(charge.quota.tolerance());
        let amount = own.amount.min(most.saturating_sub(own.debt));
        if amount == 0 {
            return;
        }
        let state = charge.own_after(&Own { amount, ..own });
        shard.fallbacks_until = shard.fallbacks_until.max(state);
        let fallback = Charge { key: apart(charge.key), ..*charge };
        self.set(&mut shard, &fallback, (own.from, state - own.from), now);
    }

    /// Gives back what [`Memory::charge_in_fallback`] took for a charge from the fallback bucket.
    pub(super) fn refund_fallback(&self, charge: &Charge, then: Micros, now: Micros) {
        let mut shard = self.shard(self.shard_of(charge.key));
        let Some(entry) = shard.entry_mut(apart(charge.key)) else { return };
        let amount = charge.share.scale(charge.quota.charge(charge.cost));
        let (from, full_at) = match &charge.span {
            None => {
                let drained = now.saturating_sub(then);
                (now, entry.full_at().saturating_sub(amount.saturating_sub(drained)))
            }
            Some(span) => {
                let from = span.end_at(span.wall(then));
                let (passed, rest) = Windows::of(span, from).place(entry.full_at());
                let debt = (passed * charge.quota.tolerance() + rest).saturating_sub(amount);
                let own = Own { debt, amount: 0, ..charge.own(0, then) };
                (from, charge.own_after(&own))
            }
        };
        let debt = full_at.saturating_sub(from);
        entry.set(full_at, Measure::of(charge, debt), debt);
    }

    /// Whether the shared store does not know all charges of this key, so that what is known here is not its word.
    pub(super) fn is_unconfirmed(&self, charge: &Charge, now: Micros) -> bool {
        self.shard(self.shard_of(charge.key)).has_fallback(charge.key, self.past(now))
    }

    /// What this instance says while the shared store is only just back: denied where its share of the limit is used up by
    /// what it charged itself since the store was lost. Of other keys it says nothing.
    ///
    /// `charges` are at that share.
    pub fn denies_by_share(&self, charges: &[Charge], now: Micros) -> Option<Readings> {
        let mut denied = false;
        let readings = charges.iter().map(|charge| {
            let mut shard = self.shard(self.shard_of(charge.key));
            let whole = Charge { share: Share::WHOLE, ..*charge };
            let state = shard.settled(&whole, false, now);
            let of_key = whole.known(state, now);
            if !shard.has_fallback(charge.key, self.past(now)) {
                return of_key;
            }
            let own = shard.own(charge, false, now);
            denied |= charge.enforce && !own.allowed;
            charge.both(Reading { allowed: true, ..of_key }, &own, own.debt)
        });
        let readings = readings.collect();
        denied.then_some(readings)
    }
}

#[cfg(test)]
#[path = "fallback_tests.rs"]
mod tests;
