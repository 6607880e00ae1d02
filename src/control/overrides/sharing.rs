//! The book beside what Redis has of it: what is to be brought there, what is lacking here, and whether both are the same.
//! Pure bookkeeping: what travels, and how, is the fleet's business.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};

use super::{Book, Entry, Held, MOST};
use crate::redis::{DIGEST_BITS, OverrideFront};

/// Of a sum of digests as Redis keeps it.
const DIGEST: u64 = (1 << DIGEST_BITS) - 1;
/// The most entries that are remembered to be in Redis and not here.
const MOST_EXTRAS: usize = 2 * MOST;
/// After its time an entry stays in Redis for so long, in milliseconds: clocks differ.
const GRACE_MS: u64 = 3_600 * 1_000;

/// What is known of the entries in Redis.
#[derive(Default)]
pub(super) struct Sharing {
    /// What names are made with; `None` before the fleet's secret is known.
    key: Option<[u8; 16]>,
    /// The id behind each name.
    ids: HashMap<u128, String>,
    /// Ids of what Redis does not have as it is here.
    unshared: BTreeSet<String>,
    /// Entries in Redis that are not in the book: forgotten here, or sealed with another secret. And whether one is to go
    /// before its time.
    extras: BTreeMap<u128, (OverrideFront, bool)>,
}

impl Sharing {
    /// Another version is in the book.
    pub(super) fn inserted(&mut self, id: &str) {
        self.unshared.insert(id.to_owned());
        if let Some(name) = self.name_of(id) {
            self.extras.remove(&name);
            self.ids.insert(name, id.to_owned());
        }
    }

    /// This one is not in the book any more; `early`: though Redis would keep it.
    pub(super) fn forgotten(&mut self, entry: &Entry, early: bool) {
        let was_shared = !self.unshared.remove(&entry.id);
        if let Some(front) = self.front(entry) {
            self.ids.remove(&front.name);
            if was_shared {
                self.extras.insert(front.name, (front, early));
            }
        }
    }

    /// Redis has this one as it is here, or lacks it.
    pub(super) fn is_shared(&mut self, id: &str, is_shared: bool) {
        if is_shared {
            self.unshared.remove(id);
        } else {
            self.unshared.insert(id.to_owned());
        }
    }

    /// Whether Redis has this one as it is here.
    pub(super) fn has(&self, id: &str) -> bool {
        !self.unshared.contains(id)
    }

    fn name_of(&self, id: &str) -> Option<u128> {
        // Ids are chosen by people, and may say whom they mean.
        let name =
            Sha256::new().chain_update(self.key?).chain_update(b"override\0").chain_update(id).finalize();
        name.first_chunk().map(|bytes| u128::from_be_bytes(*bytes))
    }

    fn front(&self, entry: &Entry) -> Option<OverrideFront> {
        Some(OverrideFront {
            name: self.name_of(&entry.id)?,
            order: entry.order(),
            till: entry.kept_till().unwrap_or(0),
            digest: super::digest(entry) & DIGEST,
        })
    }

    fn start_over(&mut self, ids: impl Iterator<Item = String>) {
        self.extras.clear();
        self.unshared = ids.collect();
    }
}

impl Book {
    /// Names follow from this key. Under another one Redis has none of the entries.
    pub fn name_by(&self, key: &[u8; 16]) {
        let mut held = self.held.lock();
        let Held { entries, sharing, .. } = &mut *held;
        if sharing.key.as_ref() != Some(key) {
            sharing.key = Some(*key);
            sharing.ids = entries.keys().filter_map(|id| Some((sharing.name_of(id)?, id.clone()))).collect();
            sharing.start_over(entries.keys().cloned());
        }
    }

    /// What Redis has is not known any more.
    pub fn share_all(&self) {
        let mut held = self.held.lock();
        let Held { entries, sharing, .. } = &mut *held;
        sharing.start_over(entries.keys().cloned());
    }

    /// The front of an entry as Redis has it; `None` before names can be made.
    pub fn front(&self, entry: &Entry) -> Option<OverrideFront> {
        self.held.lock().sharing.front(entry)
    }

    /// Which of these versions are lacking here. Of the others it is known now whether Redis has the newest.
    pub fn lacking(&self, fronts: Vec<OverrideFront>) -> Vec<OverrideFront> {
        let mut held = self.held.lock();
        let Held { entries, sharing, .. } = &mut *held;
        let mut lacks = |front: &OverrideFront| {
            let Some(id) = sharing.ids.get(&front.name).cloned() else {
                return sharing.extras.get(&front.name).is_none_or(|(known, _)| known.order != front.order);
            };
            let known = entries.get(&id).map(Entry::order).unwrap_or_default();
            if front.order <= known {
                sharing.is_shared(&id, front.order == known);
            }
            front.order > known
        };
        fronts.into_iter().filter(|front| lacks(front)).collect()
    }

    /// Of these, which Redis has, some did not become a part of the book.
    pub fn note_extras(&self, fronts: Vec<OverrideFront>) {
        let sharing = &mut self.held.lock().sharing;
        for front in fronts {
            if !sharing.ids.contains_key(&front.name) && sharing.extras.len() < MOST_EXTRAS {
                sharing.extras.insert(front.name, (front, false));
            }
        }
    }

    /// Entries that Redis may not have: `most` of them, from anywhere, so that instances which bring the same ones do not
    /// bring each of them once for each instance.
    pub fn to_bring(&self, most: usize) -> Vec<Entry> {
        let held = self.held.lock();
        let unshared = &held.sharing.unshared;
        let first = if unshared.len() > most { rand::random_range(0..unshared.len()) } else { 0 };
        let from_first = unshared.iter().skip(first).chain(unshared.iter().take(first));
        from_first.filter_map(|id| held.entries.get(id)).take(most).cloned().collect()
    }

    /// Entries that Redis need not keep any longer, and whether each goes before its time.
    pub fn to_remove(&self, most: usize, now: DateTime<Utc>) -> Vec<(OverrideFront, bool)> {
        let held = self.held.lock();
        let now = u64::try_from(now.timestamp_millis()).unwrap_or(0);
        let is_over =
            |front: &OverrideFront| front.order[3] == 1 && front.till.saturating_add(GRACE_MS) < now;
        let over = held.sharing.extras.values().filter(|(front, early)| *early || is_over(front));
        over.take(most).cloned().collect()
    }

    /// Redis has these now, or newer ones.
    pub fn are_shared(&self, brought: &[Entry]) {
        let mut held = self.held.lock();
        for entry in brought {
            if held.entries.get(&entry.id).is_none_or(|known| known.order() == entry.order()) {
                held.sharing.unshared.remove(&entry.id);
            }
        }
    }

    /// Redis does not have these any more, or as somebody has made them since.
    pub fn are_removed(&self, removed: &[(OverrideFront, bool)]) {
        let sharing = &mut self.held.lock().sharing;
        for (front, _) in removed {
            sharing.extras.remove(&front.name);
        }
    }

    /// Whether Redis may lack any.
    pub fn has_unshared(&self) -> bool {
        !self.held.lock().sharing.unshared.is_empty()
    }

    /// What the digests in Redis come to when it has all of this and nothing else; `None` while it is known to lack some.
    pub fn digest_in_redis(&self) -> Option<u64> {
        let held = self.held.lock();
        let extras = held.sharing.extras.values().map(|(front, _)| front.digest);
        let sum = extras.fold(held.digest, u64::wrapping_add);
        held.sharing.unshared.is_empty().then_some(sum & DIGEST)
    }
}
