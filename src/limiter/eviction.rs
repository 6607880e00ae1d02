//! Which entry of a full shard makes room for another.
//!
//! A drained entry goes first: its loss costs nothing. Then the least fill (debt ÷ τ, or count ÷ limit) among the next
//! few, never the least time: a day's bucket that is hardly used always outlasts a full one of a minute, so an eviction
//! by time would switch the short limits off. Keys that are being denied stay while there are others. And a policy makes
//! room only for its own keys and for those of policies that have fewer: a flood under one policy takes no more than an
//! equal part from another.

use std::sync::atomic::Ordering;

use super::charge::Charge;
use super::clock::Micros;
use super::entry::{Entry, Measure};
use super::memory::{Memory, Shard};

/// How many entries of such policies are looked at: enough for a good victim, few enough to be no pause.
pub(super) const CANDIDATES: usize = 32;
/// So many of them are not being denied: a client on its way to its limit must not be the only one that may go.
const NOT_DENIED: usize = 8;
/// After so many entries one candidate is enough: with many policies those that may go are sparse.
const LOOKED_AT: usize = 256;
/// How far a search goes for a key that is not being denied. Where fewer than about one in twenty is not, it ends without:
/// then keys that are being denied make room for each other, or a new one could never be held for long enough to be
/// denied itself. Where one in five is not, a search ends without for one eviction in 10^12.
const DENIED_IN_A_ROW: usize = 128;

/// The less, the sooner it goes: the fill, then the time, so that of equal fills the oldest goes.
type Rank = (i16, Micros);

impl Memory {
    /// Adds an entry, making room for it when the shard is full.
    pub(super) fn insert(
        &self,
        shard: &mut Shard,
        charge: &Charge,
        (from, debt): (Micros, Micros),
        now: Micros,
    ) {
        if shard.entries.len() >= self.keys_per_shard {
            if shard.evict_one(charge.key.policy(), now, self.past(now)) {
                self.evicted_in_debt.fetch_add(1, Ordering::Relaxed);
            }
        } else if shard.entries.len() == shard.entries.capacity() {
            // About to grow: first see whether the drained ones make room. Paid for by the insertions
            // that filled the table.
            shard.forget_drained(now, self.past(now));
            // Few made room: then it grows now, lest the next few insertions look at every entry again.
            if shard.entries.len() > shard.entries.capacity() / 4 * 3 {
                shard.entries.grow();
            }
        }
        shard.entries.insert(Entry::new(charge.key, from + debt, Measure::of(charge, debt)));
    }
}

impl Shard {
    /// Removes an entry to make room for a key of `policy`. True when it had a debt.
    pub(super) fn evict_one(&mut self, policy: u16, now: Micros, wall: Micros) -> bool {
        let places = self.entries.places();
        let own = self.entries.held_by(policy);
        // Whether the policy of the entry before may be asked for room: the next one nearly always has the same.
        let mut asked = (policy, true);
        let (mut looked_at, mut candidates, mut not_denied) = (0, 0, 0);
        let mut least: Option<(Rank, usize)> = None;
        let mut least_denied = None;
        for step in 0..places {
            let place = (self.hand + step) % places;
            let Some(entry) = self.entries.at(place) else { continue };
            looked_at += 1;
            if entry.is_drained(now, wall) {
                self.hand = place + 1;
                self.entries.remove(place);
                return false;
            }
            let its = entry.key.policy();
            if its != asked.0 {
                asked = (its, its == policy || self.entries.held_by(its) > own);
            }
            if asked.1 {
                candidates += 1;
                not_denied += usize::from(!entry.is_denied());
                let rank = (entry.fill(now), entry.full_at());
                let least = if entry.is_denied() { &mut least_denied } else { &mut least };
                if least.is_none_or(|(other, _)| rank < other) {
                    *least = Some((rank, place));
                }
            }
            let enough = match not_denied {
                0 => candidates >= DENIED_IN_A_ROW,
                NOT_DENIED.. if candidates >= CANDIDATES => true,
                _ => looked_at >= LOOKED_AT,
            };
            if enough {
                self.hand = place + 1;
                break;
            }
        }
        let victim = least.or(least_denied);
        if let Some((_, place)) = victim {
            self.entries.remove(place);
        }
        victim.is_some()
    }
}

#[cfg(test)]
#[path = "eviction_tests.rs"]
mod tests;
