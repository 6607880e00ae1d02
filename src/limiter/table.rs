//! A hash table for keys that are hashes already: its look-up misses the cache once.
//!
//! A general table reads its tags in one place and the entry in another: two misses in a row when there are more keys
//! than cache. Here five entries share a bucket of two neighbouring cache lines, which the processor fetches
//! together. Who finds the bucket full goes to the next; how many passed is counted, so that a search knows when
//! to stop and no removal leaves a tombstone.

use super::entry::Entry;
use super::subject::Key;

const WAYS: usize = 5;
/// A bucket holds four on average at most: then about one search in ten goes on to the next.
const MEAN_WAYS: usize = 4;

#[derive(Clone, Default)]
#[repr(align(128))]
struct Bucket {
    entries: [Entry; WAYS],
    /// How many entries live further on because this bucket was full when they passed it.
    passed: u32,
}

#[derive(Default)]
pub(super) struct Table {
    /// As many as a power of two, or none.
    buckets: Vec<Bucket>,
    len: usize,
    holdings: Holdings,
}

/// How many entries each policy has, by [`Key::policy`]. Sorted: few policies are found in few steps.
#[derive(Default)]
struct Holdings(Vec<(u16, u32)>);

impl Holdings {
    fn of(&self, policy: u16) -> u32 {
        self.0.binary_search_by_key(&policy, |&(policy, _)| policy).map_or(0, |at| self.0[at].1)
    }

    fn add(&mut self, policy: u16) {
        match self.0.binary_search_by_key(&policy, |&(policy, _)| policy) {
            Ok(at) => self.0[at].1 += 1,
            Err(at) => self.0.insert(at, (policy, 1)),
        }
    }

    fn take(&mut self, policy: u16) {
        if let Ok(at) = self.0.binary_search_by_key(&policy, |&(policy, _)| policy) {
            self.0[at].1 -= 1;
            // A policy that a reload took away leaves nothing behind.
            if self.0[at].1 == 0 {
                self.0.remove(at);
            }
        }
    }
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// How many entries it holds before it grows.
    pub(super) fn capacity(&self) -> usize {
        self.buckets.len() * MEAN_WAYS
    }

    #[inline]
    pub(super) fn find(&self, key: Key) -> Option<&Entry> {
        let (bucket, way) = self.seek(key)?;
        Some(&self.buckets[bucket].entries[way])
    }

    #[inline]
    pub(super) fn find_mut(&mut self, key: Key) -> Option<&mut Entry> {
        let (bucket, way) = self.seek(key)?;
        Some(&mut self.buckets[bucket].entries[way])
    }

    /// Adds an entry whose key is not there.
    pub(super) fn insert(&mut self, entry: Entry) {
        if self.len >= self.capacity() {
            self.grow();
        }
        self.holdings.add(entry.key.policy());
        self.place(entry);
    }

    /// How many entries the policy with this mark has.
    #[inline]
    pub(super) fn held_by(&self, policy: u16) -> u32 {
        self.holdings.of(policy)
    }

    /// Makes room for as many again.
    pub(super) fn grow(&mut self) {
        self.resize((self.buckets.len() * 2).max(1));
    }

    /// Removes every entry for which `keep` says no.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&Entry) -> bool) {
        for place in 0..self.places() {
            if self.at(place).is_some_and(|entry| !keep(entry)) {
                self.remove(place);
            }
        }
    }

    /// Gives memory back, but for room for `entries`.
    pub(super) fn shrink_to(&mut self, entries: usize) {
        let buckets = entries.max(self.len).div_ceil(MEAN_WAYS);
        let buckets = if buckets == 0 { 0 } else { buckets.next_power_of_two() };
        if buckets < self.buckets.len() {
            self.resize(buckets);
        }
    }

    /// How many places there are, free or not.
    pub(super) fn places(&self) -> usize {
        self.buckets.len() * WAYS
    }

    /// The entry at a place.
    pub(super) fn at(&self, place: usize) -> Option<&Entry> {
        let entry = &self.buckets[place / WAYS].entries[place % WAYS];
        (!entry.is_free()).then_some(entry)
    }

    /// Frees a place.
    pub(super) fn remove(&mut self, place: usize) {
        let (bucket, way) = (place / WAYS, place % WAYS);
        let entry = std::mem::take(&mut self.buckets[bucket].entries[way]);
        if entry.is_free() {
            return;
        }
        self.len -= 1;
        self.holdings.take(entry.key.policy());
        let mut passed = self.home(entry.key);
        while passed != bucket {
            self.buckets[passed].passed -= 1;
            passed = self.next(passed);
        }
    }

    #[inline]
    fn seek(&self, key: Key) -> Option<(usize, usize)> {
        if self.buckets.is_empty() {
            return None;
        }
        let mut at = self.home(key);
        // Bounded, for a table in which every bucket was passed.
        for _ in 0..self.buckets.len() {
            let bucket = &self.buckets[at];
            // All five are compared before any branch, by half a key: which of them it is can't be predicted.
            let mut found = WAYS;
            for (way, entry) in bucket.entries.iter().enumerate() {
                if entry.key.0 == key.0 {
                    found = way;
                }
            }
            if let Some(entry) = bucket.entries.get(found) {
                if entry.key.1 == key.1 && !entry.is_free() {
                    return Some((at, found));
                }
                // Two keys with the same half, or a free place that looks like the key: never but in a test.
                let is = |entry: &Entry| entry.key == key && !entry.is_free();
                if let Some(way) = bucket.entries.iter().position(is) {
                    return Some((at, way));
                }
            }
            if bucket.passed == 0 {
                return None;
            }
            at = self.next(at);
        }
        None
    }

    fn place(&mut self, entry: Entry) {
        let mut at = self.home(entry.key);
        loop {
            let bucket = &mut self.buckets[at];
            if let Some(free) = bucket.entries.iter_mut().find(|entry| entry.is_free()) {
                *free = entry;
                self.len += 1;
                return;
            }
            bucket.passed += 1;
            at = self.next(at);
        }
    }

    fn resize(&mut self, buckets: usize) {
        let old = std::mem::replace(&mut self.buckets, vec![Bucket::default(); buckets]);
        self.len = 0;
        for entry in old.iter().flat_map(|bucket| &bucket.entries).filter(|entry| !entry.is_free()) {
            self.place(*entry);
        }
    }

    #[inline]
    fn home(&self, key: Key) -> usize {
        key.0 as usize & (self.buckets.len() - 1)
    }

    #[inline]
    fn next(&self, bucket: usize) -> usize {
        (bucket + 1) & (self.buckets.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::limiter::clock::Micros;
    use crate::limiter::entry::Measure;

    #[test]
    fn five_entries_and_the_count_fill_two_cache_lines() {
        assert_eq!((size_of::<Bucket>(), align_of::<Bucket>()), (128, 128));
    }

    /// Few first halves, so that buckets overflow; second halves tell the keys apart.
    fn key() -> impl Strategy<Value = Key> {
        (0u64..6, 0u64..12).prop_map(|(first, second)| Key(first * 3, second))
    }

    #[derive(Clone, Debug)]
    enum Step {
        Put(Key, Micros),
        Remove(Key),
        KeepAbove(Micros),
        Shrink,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (key(), 1u64..100).prop_map(|(key, at)| Step::Put(key, at)),
            4 => key().prop_map(Step::Remove),
            1 => (0u64..60).prop_map(Step::KeepAbove),
            1 => Just(Step::Shrink),
        ]
    }

    proptest! {
        #[test]
        fn it_holds_what_a_map_holds(steps in prop::collection::vec(step(), 1..200)) {
            let (mut table, mut map) = (Table::default(), HashMap::new());
            for step in steps {
                match step {
                    Step::Put(key, full_at) => {
                        map.insert(key, full_at);
                        match table.find_mut(key) {
                            Some(entry) => *entry = Entry::new(key, full_at, Measure::default()),
                            None => table.insert(Entry::new(key, full_at, Measure::default())),
                        }
                    }
                    Step::Remove(key) => {
                        map.remove(&key);
                        let held = |place: &usize| table.at(*place).is_some_and(|entry| entry.key == key);
                        if let Some(place) = (0..table.places()).find(held) {
                            table.remove(place);
                        }
                    }
                    Step::KeepAbove(least) => {
                        map.retain(|_, full_at| *full_at > least);
                        table.retain(|entry| entry.full_at() > least);
                    }
                    Step::Shrink => table.shrink_to(0),
                }
                prop_assert_eq!(table.len(), map.len());
                prop_assert!(table.len() <= table.capacity());
                for policy in 0..12u16 {
                    let held = map.keys().filter(|key| key.policy() == policy).count();
                    prop_assert_eq!(table.held_by(policy) as usize, held);
                }
                for first in 0..6 {
                    for second in 0..12 {
                        let key = Key(first * 3, second);
                        prop_assert_eq!(table.find(key).map(Entry::full_at), map.get(&key).copied());
                    }
                }
            }
            table.retain(|_| false);
            prop_assert!(table.buckets.iter().all(|bucket| bucket.passed == 0), "no entry is counted twice");
            prop_assert!(table.holdings.0.is_empty());
        }
    }
}
