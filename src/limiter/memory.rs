//! The store in this process: synchronous, infallible, bounded. It decides in memory mode and in every fallback,
//! and it keeps the *note* of each key that Redis decides.
//!
//! An entry is 24 bytes: a 128-bit keyed hash and the theoretical arrival time. That same time is the note: the
//! debt that Redis last told, plus what was admitted here since. While calls for a key are in flight, a
//! [`Voyage`] beside the entry counts them, so that a request that is decided here at the same moment cannot
//! spend what one of them may have been granted.

use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Slot;
use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;

use super::clock::Micros;
use super::gcra::{self, Quota, Reading};
use super::store::Readings;
use super::subject::Key;

/// One bucket that a request owes.
#[derive(Clone, Copy, Debug)]
pub struct Charge {
    /// The bucket.
    pub key: Key,
    /// Its quota.
    pub quota: Quota,
    /// Units to charge.
    pub cost: u32,
    /// Whether a denial here denies the request; `false` for a shadow policy.
    pub enforce: bool,
}

impl Charge {
    #[inline]
    fn amount(&self) -> Micros {
        self.quota.charge(self.cost)
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    key: Key,
    /// When the bucket is full again.
    full_at: Micros,
}

/// The calls to Redis that are under way for one key, and what was charged here meanwhile.
#[derive(Clone, Copy, Debug)]
struct Voyage {
    key: Key,
    calls: u32,
    /// The sum of their charges: each may be granted at any moment.
    in_flight: Micros,
    /// All that was charged here since the voyage began. It only grows.
    charged: Micros,
    /// How much of `charged` rode in a call that was answered: Redis knows of it.
    confirmed: Micros,
    /// When the bucket would be full again if only this process had charged it: what it granted by Redis' word
    /// and by its own. Redis can forget (a flush, a failover) between two calls that are under way; this cannot.
    own_full_at: Micros,
}

#[derive(Default)]
struct Shard {
    entries: HashTable<Entry>,
    /// Few at a time, so a list is searched faster than a map is hashed.
    voyages: Vec<Voyage>,
    /// Where the next search for a victim begins.
    hand: usize,
}

/// The in-process store.
pub struct Memory {
    shards: Box<[Mutex<Shard>]>,
    keys_per_shard: usize,
    evicted_in_debt: AtomicU64,
}

const MOST_SHARDS: usize = 256;
/// Below this many keys a shard of its own is not worth its lock.
const KEYS_WORTH_A_SHARD: usize = 64;
/// How many places an eviction looks at: enough for a good victim, few enough to be no pause.
const VICTIMS_LOOKED_AT: usize = 32;

impl Memory {
    /// A store of at most `max_keys` keys (at least one).
    pub fn new(max_keys: usize) -> Self {
        let wanted = (max_keys / KEYS_WORTH_A_SHARD).clamp(1, MOST_SHARDS);
        let shards = 1 << wanted.ilog2();
        Self {
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            keys_per_shard: (max_keys / shards).max(1),
            evicted_in_debt: AtomicU64::new(0),
        }
    }

    /// Charges every bucket that is enforced or none of them; with `peek` judges and writes nothing.
    pub fn charge(&self, charges: &[Charge], peek: bool, now: Micros) -> Readings {
        match charges {
            [] => Readings::new(),
            [charge] => {
                let mut shard = self.shards[self.shard_of(charge.key)].lock();
                let (mut reading, debt) = shard.judge(charge, now);
                if reading.allowed && !peek {
                    self.write(&mut shard, charge, debt, now);
                    reading = charge.quota.reading(debt + charge.amount(), charge.cost, true);
                }
                Readings::from_elem(reading, 1)
            }
            _ => {
                let mut locked = Locked::of(self, charges);
                self.charge_locked(&mut locked, charges, peek, now)
            }
        }
    }

    fn charge_locked(
        &self,
        locked: &mut Locked<'_>,
        charges: &[Charge],
        peek: bool,
        now: Micros,
    ) -> Readings {
        let mut debts: SmallVec<[Micros; 4]> = SmallVec::new();
        let mut readings = Readings::new();
        for charge in charges {
            let (reading, debt) = locked.shard(self.shard_of(charge.key)).judge(charge, now);
            readings.push(reading);
            debts.push(debt);
        }
        let denied = |(charge, reading): (&Charge, &Reading)| charge.enforce && !reading.allowed;
        if peek || charges.iter().zip(&readings).any(denied) {
            return readings;
        }
        for ((charge, reading), debt) in charges.iter().zip(&mut readings).zip(debts) {
            if reading.allowed {
                let shard = locked.shard(self.shard_of(charge.key));
                self.write(shard, charge, debt, now);
                *reading = charge.quota.reading(debt + charge.amount(), charge.cost, true);
            }
        }
        readings
    }

    /// Takes back what [`Memory::charge`] charged at `then`, because another store denied the request.
    pub fn refund(&self, charges: &[Charge], readings: &Readings, now: Micros) {
        for (charge, reading) in charges.iter().zip(readings) {
            if !reading.allowed {
                continue;
            }
            let mut shard = self.shards[self.shard_of(charge.key)].lock();
            if let Some(entry) = shard.entry_mut(charge.key) {
                // A bucket that drained empty meanwhile has nothing left to give back.
                entry.full_at = entry.full_at.saturating_sub(charge.amount()).max(now);
            }
        }
    }

    /// Sets out for Redis with these charges. Until the [`Passage`] ends, they count as granted for whoever is
    /// decided here.
    pub fn depart<'a>(&'a self, charges: &'a [Charge], peek: bool, now: Micros) -> Passage<'a> {
        let mut tickets = SmallVec::new();
        for charge in charges {
            let mut shard = self.shards[self.shard_of(charge.key)].lock();
            let full_at = shard.entry(charge.key).map_or(0, |entry| entry.full_at);
            let told = full_at.saturating_sub(now).min(charge.quota.tolerance());
            let amount = if peek { 0 } else { charge.amount().min(charge.quota.tolerance()) };
            let voyage = shard.voyage_or_new(charge.key, full_at);
            // What Redis has not been told of may meet calls that it has not answered: then they ride along,
            // so that its `max` cannot swallow one of the two. Too strict by at most what is in flight.
            let dirty = voyage.charged > voyage.confirmed;
            let note = told + if dirty { voyage.in_flight } else { 0 };
            let charged = voyage.charged;
            voyage.calls += 1;
            voyage.in_flight += amount;
            tickets.push(Ticket { note: note.min(charge.quota.tolerance()), amount, charged });
        }
        Passage { memory: self, charges, tickets, peek, over: false }
    }

    /// How many keys are held.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().entries.len()).sum()
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

    /// How many shards [`Memory::sweep`] can be asked to sweep.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Forgets the keys of one shard that have no debt, and gives memory back when most were such.
    /// Holds that shard's lock for as long as it takes to look at each of its keys once.
    pub fn sweep(&self, shard: usize, now: Micros) {
        let mut shard = self.shards[shard % self.shards.len()].lock();
        shard.forget_drained(now);
        let kept = shard.entries.len();
        if shard.entries.capacity() > 64 && shard.entries.capacity() / 4 > kept {
            shard.entries.shrink_to(kept * 2, |entry| entry.key.0);
        }
        if shard.voyages.is_empty() {
            shard.voyages.shrink_to(8);
        }
    }

    #[inline]
    fn shard_of(&self, key: Key) -> usize {
        // The top byte, which is the same for all policies of a subject.
        (key.1 >> 56) as usize & (self.shards.len() - 1)
    }

    #[inline]
    fn write(&self, shard: &mut Shard, charge: &Charge, debt: Micros, now: Micros) {
        let amount = charge.amount();
        if amount == 0 {
            return;
        }
        // `debt` holds the calls in flight, which are not this entry's until they are answered.
        let in_flight = match shard.voyage_mut(charge.key) {
            Some(voyage) => {
                voyage.charged += amount;
                voyage.own_full_at = voyage.own_full_at.max(now) + amount;
                voyage.in_flight
            }
            None => 0,
        };
        let own = debt.saturating_sub(in_flight);
        self.set(shard, charge.key, now + own + amount, now);
    }

    /// Writes an entry, making room for it when the shard is full.
    fn set(&self, shard: &mut Shard, key: Key, full_at: Micros, now: Micros) {
        if let Some(entry) = shard.entry_mut(key) {
            entry.full_at = full_at;
            return;
        }
        if shard.entries.len() >= self.keys_per_shard {
            if shard.evict_one(now) {
                self.evicted_in_debt.fetch_add(1, Ordering::Relaxed);
            }
        } else if shard.entries.len() == shard.entries.capacity() {
            // About to grow: first see whether the drained ones make room. Paid for by the insertions
            // that filled the table.
            shard.forget_drained(now);
        }
        if let Slot::Vacant(slot) = shard.entries.entry(key.0, |entry| entry.key == key, |entry| entry.key.0)
        {
            slot.insert(Entry { key, full_at });
        }
    }
}

impl Shard {
    #[inline]
    fn entry(&self, key: Key) -> Option<&Entry> {
        self.entries.find(key.0, |entry| entry.key == key)
    }

    #[inline]
    fn entry_mut(&mut self, key: Key) -> Option<&mut Entry> {
        self.entries.find_mut(key.0, |entry| entry.key == key)
    }

    #[inline]
    fn voyage_mut(&mut self, key: Key) -> Option<&mut Voyage> {
        self.voyages.iter_mut().find(|voyage| voyage.key == key)
    }

    fn voyage_or_new(&mut self, key: Key, full_at: Micros) -> &mut Voyage {
        let at = self.voyages.iter().position(|voyage| voyage.key == key);
        let at = at.unwrap_or_else(|| {
            self.voyages.push(Voyage {
                key,
                calls: 0,
                in_flight: 0,
                charged: 0,
                confirmed: 0,
                own_full_at: full_at,
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

    /// Whether the bucket has room, and its debt before the hit, calls in flight included.
    #[inline]
    fn judge(&self, charge: &Charge, now: Micros) -> (Reading, Micros) {
        let full_at = self.entry(charge.key).map_or(0, |entry| entry.full_at);
        let mut debt = full_at.saturating_sub(now).min(charge.quota.tolerance());
        if !self.voyages.is_empty()
            && let Some(voyage) = self.voyages.iter().find(|voyage| voyage.key == charge.key)
        {
            debt += voyage.in_flight;
        }
        let allowed = gcra::admits(debt, charge.amount(), charge.quota.tolerance());
        (charge.quota.reading(debt, charge.cost, allowed), debt)
    }

    fn forget_drained(&mut self, now: Micros) {
        self.entries.retain(|entry| entry.full_at > now);
    }

    /// Removes the entry with the least debt among the next few. True when it had any.
    fn evict_one(&mut self, now: Micros) -> bool {
        let places = self.entries.num_buckets();
        let mut victim: Option<(usize, Micros)> = None;
        let mut looked_at = 0;
        for step in 0..places {
            let place = (self.hand + step) % places;
            let Some(entry) = self.entries.get_bucket(place) else {
                continue;
            };
            if victim.is_none_or(|(_, least)| entry.full_at < least) {
                victim = Some((place, entry.full_at));
            }
            looked_at += 1;
            if entry.full_at <= now || looked_at == VICTIMS_LOOKED_AT {
                self.hand = place + 1;
                break;
            }
        }
        let Some((place, full_at)) = victim else {
            return false;
        };
        if let Ok(entry) = self.entries.get_bucket_entry(place) {
            entry.remove();
        }
        full_at > now
    }
}

/// The shards of several charges, locked in ascending order: no two requests can wait for each other.
struct Locked<'a>(SmallVec<[(usize, MutexGuard<'a, Shard>); 4]>);

impl<'a> Locked<'a> {
    fn of(memory: &'a Memory, charges: &[Charge]) -> Self {
        let mut places: SmallVec<[usize; 8]> =
            charges.iter().map(|charge| memory.shard_of(charge.key)).collect();
        places.sort_unstable();
        places.dedup();
        Self(places.into_iter().map(|place| (place, memory.shards[place].lock())).collect())
    }

    fn shard(&mut self, place: usize) -> &mut Shard {
        let at = self.0.iter().position(|(locked, _)| *locked == place);
        // Every charge's shard was locked by `of`.
        &mut self.0[at.unwrap_or(0)].1
    }
}

#[derive(Clone, Copy, Debug)]
struct Ticket {
    /// The debt that rides on the call.
    note: Micros,
    /// What it asks for.
    amount: Micros,
    /// What the voyage had charged when it left: all of it rides in the note.
    charged: Micros,
}

/// One call to Redis under way. Dropped without an answer (a client that left), it frees what it held.
#[must_use = "a passage holds budget until it ends"]
pub struct Passage<'a> {
    memory: &'a Memory,
    charges: &'a [Charge],
    tickets: SmallVec<[Ticket; 2]>,
    peek: bool,
    over: bool,
}

impl Passage<'_> {
    /// The debt to send with each charge.
    pub fn notes(&self) -> impl Iterator<Item = Micros> {
        self.tickets.iter().map(|ticket| ticket.note)
    }

    /// Redis answered: its debts, as of `judged_at` on this process' clock, become the notes. Returns what it said,
    /// but for a grant that this process knows to be too much, because Redis lost data while calls were under
    /// way: that one is denied after all.
    pub fn answered(mut self, mut readings: Readings, judged_at: Micros, now: Micros) -> Readings {
        self.over = true;
        let charges = self.charges.iter().zip(&self.tickets);
        if self.peek {
            for (charge, ticket) in charges {
                let mut shard = self.memory.shards[self.memory.shard_of(charge.key)].lock();
                // A peek wrote nothing, so it confirms nothing and teaches nothing.
                shard.arrive(charge.key, *ticket, false);
            }
            return readings;
        }
        let granted =
            self.charges.iter().zip(&readings).all(|(charge, reading)| reading.allowed || !charge.enforce);
        for ((charge, ticket), reading) in charges.zip(&mut readings) {
            let mut shard = self.memory.shards[self.memory.shard_of(charge.key)].lock();
            let mut full_at = judged_at + reading.debt;
            if granted
                && reading.allowed
                && let Some(voyage) = shard.voyage_mut(charge.key)
            {
                let own = voyage.own_full_at.max(judged_at);
                if gcra::admits(own - judged_at, ticket.amount, charge.quota.tolerance()) {
                    voyage.own_full_at = own + ticket.amount;
                } else {
                    *reading = charge.quota.reading(own - judged_at, charge.cost, false);
                }
                full_at = full_at.max(voyage.own_full_at);
            }
            full_at += shard.arrive(charge.key, *ticket, true);
            let known = shard.entry(charge.key).map_or(0, |entry| entry.full_at);
            if full_at > known && full_at > now {
                self.memory.set(&mut shard, charge.key, full_at, now);
            }
        }
        readings
    }

    /// Redis did not answer: the same charges are decided here, in one step with giving up the call.
    pub fn decide_here(mut self, now: Micros) -> Readings {
        self.over = true;
        let mut locked = Locked::of(self.memory, self.charges);
        for (charge, ticket) in self.charges.iter().zip(&self.tickets) {
            locked.shard(self.memory.shard_of(charge.key)).arrive(charge.key, *ticket, false);
        }
        self.memory.charge_locked(&mut locked, self.charges, self.peek, now)
    }
}

impl Drop for Passage<'_> {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        for (charge, ticket) in self.charges.iter().zip(&self.tickets) {
            let mut shard = self.memory.shards[self.memory.shard_of(charge.key)].lock();
            shard.arrive(charge.key, *ticket, false);
        }
    }
}
