//! The store in this process: synchronous, infallible, bounded. It decides in memory mode and in every fallback,
//! and it keeps the *note* of each key that Redis decides.
//!
//! An entry is 24 bytes: a 128-bit keyed hash and the theoretical arrival time (of a calendar window, its end plus the
//! count). That same time is the note: the
//! debt that Redis last told, plus what was admitted here since. While calls for a key are in flight, a
//! `Voyage` beside the entry counts them, so that a request that is decided here at the same moment cannot
//! spend what one of them may have been granted.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;

use super::charge::Charge;
use super::clock::Micros;
use super::entry::{Entry, Measure};
use super::gcra::{self, Reading};
use super::passage::Voyage;
use super::share::{Share, ShareEstimate};
use super::store::Readings;
use super::subject::Key;
use super::table::Table;

#[derive(Default)]
pub(super) struct Shard {
    pub(super) entries: Table,
    /// Few at a time, so a list is searched faster than a map is hashed.
    pub(super) voyages: Vec<Voyage>,
    /// When the last of the [fallback buckets](super::fallback) has drained.
    pub(super) fallbacks_until: Micros,
    /// Where the next search for a victim begins.
    pub(super) hand: usize,
}

/// A shard on cache lines of its own, so that threads in neighbouring shards do not slow each other down.
#[derive(Default)]
#[repr(align(64))]
struct Padded(Mutex<Shard>);

/// The in-process store.
pub struct Memory {
    shards: Box<[Padded]>,
    pub(super) keys_per_shard: usize,
    pub(super) evicted_in_debt: AtomicU64,
    /// Keys of Redis of which nothing was known here when they had to be decided here.
    pub(super) decided_unknown: AtomicU64,
    /// Which share of its subjects' traffic this process sees.
    pub(super) sight: ShareEstimate,
    /// By how much the clock of decisions is ahead of the slowest clock by which calendar windows end: the wall clock, or
    /// the shared store's.
    ahead: AtomicU64,
}

const MOST_SHARDS: usize = 256;
/// Below this many keys a shard of its own is not worth its lock.
const KEYS_WORTH_A_SHARD: usize = 64;
/// How often a lock is tried before the thread goes to sleep: 85 pauses in all, a few microseconds.
const SPINS: u32 = 4;

impl Memory {
    /// A store of at most `max_keys` keys (at least one).
    pub fn new(max_keys: usize) -> Self {
        let wanted = (max_keys / KEYS_WORTH_A_SHARD).clamp(1, MOST_SHARDS);
        let shards = 1 << wanted.ilog2();
        Self {
            shards: (0..shards).map(|_| Padded::default()).collect(),
            keys_per_shard: (max_keys / shards).max(1),
            evicted_in_debt: AtomicU64::new(0),
            decided_unknown: AtomicU64::new(0),
            sight: ShareEstimate::default(),
            ahead: AtomicU64::new(0),
        }
    }

    /// Charges every bucket that is enforced or none of them; with `peek` judges and writes nothing.
    pub fn charge(&self, charges: &[Charge], peek: bool, now: Micros) -> Readings {
        match charges {
            [] => Readings::new(),
            [charge] => Readings::from_elem(self.charge_one(charge, peek, now), 1),
            _ => {
                let mut locked = Locked::of(self, charges);
                self.charge_locked(&mut locked, charges, peek, now)
            }
        }
    }

    /// Notes the denials among `readings`, which a peek has found: an eviction takes other keys first.
    pub(super) fn mark_denied(&self, charges: &[Charge], readings: &Readings) {
        for (charge, _) in charges.iter().zip(readings).filter(|(_, reading)| !reading.allowed) {
            self.shard(self.shard_of(charge.key)).mark_denied(charge.key);
        }
    }

    /// The way of nearly every request: one bucket, looked up once, its lock held for nothing but that.
    #[inline]
    pub(super) fn charge_one(&self, charge: &Charge, peek: bool, now: Micros) -> Reading {
        let (amount, tolerance) = (charge.amount(), charge.quota.tolerance());
        let mut shard = self.shard(self.shard_of(charge.key));
        if !shard.voyages.is_empty() {
            let (reading, debt) = shard.judge(charge, peek, now);
            if !reading.allowed && !peek {
                shard.mark_denied(charge.key);
            }
            if !reading.allowed || peek {
                return reading;
            }
            let from = self.write(&mut shard, charge, debt, now);
            return charge.reading(debt + amount, true, from, now);
        }
        let mut entry = shard.entry_mut(charge.key);
        let full_at = entry.as_mut().map_or(0, |entry| charge.settle(entry, peek, now));
        let from = charge.from(full_at, now);
        let mut debt = full_at.saturating_sub(from).min(tolerance);
        let allowed = gcra::admits(debt, amount, tolerance);
        if allowed && !peek && amount > 0 {
            debt += amount;
            match entry {
                Some(entry) => entry.set(from + debt, Measure::of(charge, debt), debt),
                None => self.insert(&mut shard, charge, (from, debt), now),
            }
        } else if !allowed
            && !peek
            && let Some(entry) = entry
        {
            entry.mark_denied();
        }
        drop(shard);
        if allowed { charge.reading(debt, true, from, now) } else { charge.denial(debt, full_at, from, now) }
    }

    pub(super) fn charge_locked(
        &self,
        locked: &mut Locked<'_>,
        charges: &[Charge],
        peek: bool,
        now: Micros,
    ) -> Readings {
        let mut debts: SmallVec<[Micros; 4]> = SmallVec::new();
        let mut readings = Readings::new();
        for charge in charges {
            let (reading, debt) = locked.shard(self.shard_of(charge.key)).judge(charge, peek, now);
            readings.push(reading);
            debts.push(debt);
        }
        if !peek {
            for (charge, _) in charges.iter().zip(&readings).filter(|(_, reading)| !reading.allowed) {
                locked.shard(self.shard_of(charge.key)).mark_denied(charge.key);
            }
        }
        let denied = |(charge, reading): (&Charge, &Reading)| charge.enforce && !reading.allowed;
        if peek || charges.iter().zip(&readings).any(denied) {
            return readings;
        }
        for ((charge, reading), debt) in charges.iter().zip(&mut readings).zip(debts) {
            if reading.allowed {
                let shard = locked.shard(self.shard_of(charge.key));
                let from = self.write(shard, charge, debt, now);
                *reading = charge.reading(debt + charge.amount(), true, from, now);
            }
        }
        readings
    }

    /// Takes back what [`Memory::charge`] charged at `then`, because another store denied the request.
    ///
    /// What has drained since is not given back: had the hit never been charged, the bucket could have stood empty
    /// for as long, and nobody saves up more than a full bucket.
    pub fn refund(&self, charges: &[Charge], readings: &Readings, then: Micros, now: Micros) {
        for (charge, _) in charges.iter().zip(readings).filter(|(_, reading)| reading.allowed) {
            self.refund_part(charge, charge.amount(), then, now);
        }
    }

    /// Takes back an amount of what was charged at `then`, as far as it has not drained since.
    pub(super) fn refund_part(&self, charge: &Charge, amount: Micros, then: Micros, now: Micros) {
        let mut shard = self.shard(self.shard_of(charge.key));
        let Some(entry) = shard.entry_mut(charge.key) else { return };
        let (charged_from, full_at) = (charge.from(0, then), entry.full_at());
        let (from, full_at) = match charge.span {
            None => (now, full_at.saturating_sub(amount.saturating_sub(now.saturating_sub(then)))),
            // The window is over, or another thread has begun the next: nothing of the charge is left.
            Some(_) if charge.from(full_at, then) != charged_from => return,
            Some(_) => (charged_from, full_at.saturating_sub(amount).max(charged_from)),
        };
        let debt = full_at.saturating_sub(from);
        entry.set(full_at, Measure::of(charge, debt), debt);
    }

    /// How many keys are held.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.0.lock().entries.len()).sum()
    }

    /// Whether no key is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The most keys that are ever held.
    pub fn capacity(&self) -> usize {
        self.keys_per_shard * self.shards.len()
    }

    /// How many keys were evicted while they still had a debt: each got a fresh budget.
    pub fn evicted_in_debt(&self) -> u64 {
        self.evicted_in_debt.load(Ordering::Relaxed)
    }

    /// How many keys of Redis had to be decided here while nothing was known of them: each got a fresh budget, unless
    /// it had one in Redis as well.
    pub fn decided_unknown(&self) -> u64 {
        self.decided_unknown.load(Ordering::Relaxed)
    }

    /// Which share of its subjects' traffic this process sees, once Redis has told enough to know.
    pub fn share(&self) -> Option<Share> {
        self.sight.share()
    }

    /// Sets by how many microseconds the clock that `now` comes from is ahead of the slowest clock of calendar windows:
    /// a window is kept until the latter has come to its end.
    pub fn ahead_of_the_wall(&self, micros: Micros) {
        self.ahead.store(micros, Ordering::Relaxed);
    }

    pub(super) fn past(&self, now: Micros) -> Micros {
        now.saturating_sub(self.ahead.load(Ordering::Relaxed))
    }

    /// How many shards [`Memory::sweep`] can be asked to sweep.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Forgets the keys of one shard that have no debt, and gives memory back when most were such.
    /// Holds that shard's lock for as long as it takes to look at each of its keys once.
    pub fn sweep(&self, shard: usize, now: Micros) {
        let mut shard = self.shard(shard % self.shards.len());
        shard.forget_drained(now, self.past(now));
        let kept = shard.entries.len();
        if shard.entries.capacity() > 64 && shard.entries.capacity() / 4 > kept {
            shard.entries.shrink_to(kept * 2);
        }
        if shard.voyages.is_empty() {
            shard.voyages.shrink_to(8);
        }
    }

    /// Locks a shard. A holder needs it for some tens of nanoseconds, so a short wait on the spot is cheaper than
    /// the yields and the sleep that `lock` begins with; a holder that lost its core is waited for asleep.
    #[inline]
    pub(super) fn shard(&self, place: usize) -> MutexGuard<'_, Shard> {
        let mutex = &self.shards[place].0;
        for wait in 0..SPINS {
            if let Some(shard) = mutex.try_lock() {
                return shard;
            }
            // Four times as long each time: who looks too often takes the line from the holder who wants to give it back.
            for _ in 0..1u32 << (2 * wait) {
                std::hint::spin_loop();
            }
        }
        mutex.lock()
    }

    #[inline]
    pub(super) fn shard_of(&self, key: Key) -> usize {
        // The top byte, which is the same for all policies of a subject.
        (key.1 >> 56) as usize & (self.shards.len() - 1)
    }

    #[inline]
    pub(super) fn write(&self, shard: &mut Shard, charge: &Charge, debt: Micros, now: Micros) -> Micros {
        let amount = charge.amount();
        let from = charge.from(shard.entry(charge.key).map_or(0, Entry::full_at), now);
        if amount == 0 {
            return from;
        }
        // `debt` holds the calls in flight, which are not this entry's until they are answered.
        let in_flight = match shard.voyage_mut(charge.key) {
            Some(voyage) => {
                voyage.charge(from, amount);
                voyage.in_flight
            }
            None => 0,
        };
        let own = debt.saturating_sub(in_flight);
        self.set(shard, charge, (from, own + amount), now);
        from
    }

    /// Writes an entry: a debt, and from when it counts.
    pub(super) fn set(
        &self,
        shard: &mut Shard,
        charge: &Charge,
        (from, debt): (Micros, Micros),
        now: Micros,
    ) {
        match shard.entry_mut(charge.key) {
            Some(entry) => entry.set(from + debt, Measure::of(charge, debt), debt),
            None => self.insert(shard, charge, (from, debt), now),
        }
    }
}

impl Shard {
    #[inline]
    pub(super) fn entry(&self, key: Key) -> Option<&Entry> {
        self.entries.find(key)
    }

    #[inline]
    pub(super) fn entry_mut(&mut self, key: Key) -> Option<&mut Entry> {
        self.entries.find_mut(key)
    }

    #[inline]
    pub(super) fn voyage_mut(&mut self, key: Key) -> Option<&mut Voyage> {
        self.voyages.iter_mut().find(|voyage| voyage.key == key)
    }

    /// Whether the bucket has room, and its debt before the hit, calls in flight included.
    #[inline]
    pub(super) fn judge(&mut self, charge: &Charge, peek: bool, now: Micros) -> (Reading, Micros) {
        let tolerance = charge.quota.tolerance();
        let full_at = self.settled(charge, peek, now);
        let from = charge.from(full_at, now);
        let mut debt = full_at.saturating_sub(from).min(tolerance);
        if !self.voyages.is_empty()
            && let Some(voyage) = self.voyages.iter().find(|voyage| voyage.key == charge.key)
        {
            debt += voyage.in_flight;
        }
        // What is in flight can exceed the tolerance by itself. A hit that costs nothing is admitted even then.
        let debt = debt.min(tolerance);
        let allowed = gcra::admits(debt, charge.amount(), tolerance);
        let reading = match allowed {
            true => charge.reading(debt, true, from, now),
            false => charge.denial(debt, full_at, from, now),
        };
        (reading, debt)
    }

    /// When the bucket is full again, by [`Charge::settle`]; 0 when it is.
    #[inline]
    pub(super) fn settled(&mut self, charge: &Charge, peek: bool, now: Micros) -> Micros {
        self.entry_mut(charge.key).map_or(0, |entry| charge.settle(entry, peek, now))
    }

    /// Makes a bucket as good as new, and its fallback bucket. The sweep takes them away.
    pub(super) fn drain(&mut self, key: Key) {
        self.empty(key);
        self.forget_fallback(key, 0);
    }

    pub(super) fn empty(&mut self, key: Key) {
        if let Some(entry) = self.entry_mut(key) {
            entry.drain();
        }
    }

    /// A hit on this key was denied: an eviction takes other keys first.
    #[inline]
    pub(super) fn mark_denied(&mut self, key: Key) {
        if let Some(entry) = self.entry_mut(key) {
            entry.mark_denied();
        }
    }

    pub(super) fn forget_drained(&mut self, now: Micros, wall: Micros) {
        self.entries.retain(|entry| !entry.is_drained(now, wall));
    }
}

/// The shards of several charges, locked in ascending order: no two requests can wait for each other.
pub(super) struct Locked<'a>(SmallVec<[(usize, MutexGuard<'a, Shard>); 4]>);

impl<'a> Locked<'a> {
    pub(super) fn of(memory: &'a Memory, charges: &[Charge]) -> Self {
        let mut places: SmallVec<[usize; 8]> =
            charges.iter().map(|charge| memory.shard_of(charge.key)).collect();
        places.sort_unstable();
        places.dedup();
        Self(places.into_iter().map(|place| (place, memory.shard(place))).collect())
    }

    pub(super) fn shard(&mut self, place: usize) -> &mut Shard {
        let at = self.0.iter().position(|(locked, _)| *locked == place);
        // Every charge's shard was locked by `of`.
        &mut self.0[at.unwrap_or(0)].1
    }
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
