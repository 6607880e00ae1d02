//! Signatures that were checked, so that a token costs its arithmetic once. Bounded in memory: verified tokens and refused
//! ones have room of their own, so that no flood of forged tokens drives out those of clients.

use std::sync::Arc;

use foldhash::{HashMap, HashMapExt as _};
use parking_lot::Mutex;
use ring::digest::{Context, SHA256};

use super::Refusal;
use super::claims::Claims;

/// About so many bytes of claims are kept.
pub(super) const ROOM_FOR_VERIFIED: usize = 16 * 1024 * 1024;
/// About so many bytes of refusals are kept, each [`ENTRY`] bytes: some 40 000.
pub(super) const ROOM_FOR_REFUSED: usize = 4 * 1024 * 1024;
/// What an entry takes beside its value: the digest, and the slack of a table.
const ENTRY: usize = 96;
/// A power of two.
const SHARDS: usize = 16;

/// The SHA-256 of a key's place, of what is signed and of the signature, which is not to be found twice, in its one
/// spelling in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Digest([u8; 32]);

impl Digest {
    /// Of the check of this signature by the key at `place`.
    pub(super) fn of(place: usize, message: &[u8], signature: &[u8]) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(&place.to_be_bytes());
        context.update(message);
        // The message names the algorithm, and that and the key determine the signature's length: no two triples join to
        // the same bytes.
        context.update(signature);
        let mut digest = [0; 32];
        digest.copy_from_slice(context.finish().as_ref());
        Self(digest)
    }
}

/// What a check came to, but for the time, which is compared anew for each request.
pub(super) type Checked = Result<Arc<Claims>, Refusal>;

/// The outcomes of checks by one set of keys.
pub(super) struct Cache {
    shards: [Mutex<Shard>; SHARDS],
}

struct Shard {
    verified: Generations<Arc<Claims>>,
    refused: Generations<Refusal>,
}

impl Cache {
    /// A cache of about so many bytes for each kind of outcome.
    pub(super) fn new(verified: usize, refused: usize) -> Self {
        let shard = |_| {
            let (verified, refused) =
                (Generations::new(verified / SHARDS), Generations::new(refused / SHARDS));
            Mutex::new(Shard { verified, refused })
        };
        Self { shards: std::array::from_fn(shard) }
    }

    fn shard(&self, digest: &Digest) -> &Mutex<Shard> {
        &self.shards[usize::from(digest.0[0]) % SHARDS]
    }

    /// What the check came to, if it was made lately.
    pub(super) fn get(&self, digest: &Digest) -> Option<Checked> {
        let mut shard = self.shard(digest).lock();
        shard
            .verified
            .get(digest, |claims| claims.weight())
            .map(Ok)
            .or_else(|| shard.refused.get(digest, |_| 0).map(Err))
    }

    /// Keeps what a check came to.
    pub(super) fn put(&self, digest: Digest, checked: &Checked) {
        let mut shard = self.shard(&digest).lock();
        match checked {
            Ok(claims) => shard.verified.put(digest, Arc::clone(claims), claims.weight()),
            Err(refusal) => shard.refused.put(digest, *refusal, 0),
        }
    }
}

/// Entries in two generations: what is not used while the younger one fills is dropped with the older. No entry is
/// moved for another but once a generation.
struct Generations<V> {
    young: HashMap<Digest, V>,
    old: HashMap<Digest, V>,
    /// Bytes in `young`.
    weight: usize,
    /// The most bytes of one generation.
    room: usize,
}

impl<V: Clone> Generations<V> {
    fn new(room: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), weight: 0, room: room / 2 }
    }

    fn get(&mut self, digest: &Digest, weight: impl Fn(&V) -> usize) -> Option<V> {
        if let Some(value) = self.young.get(digest) {
            return Some(value.clone());
        }
        let value = self.old.remove(digest)?;
        let weight = weight(&value);
        self.put(*digest, value.clone(), weight);
        Some(value)
    }

    fn put(&mut self, digest: Digest, value: V, weight: usize) {
        let weight = weight + ENTRY;
        if weight > self.room {
            return;
        }
        if self.weight + weight > self.room {
            (self.old, self.weight) = (std::mem::take(&mut self.young), 0);
        }
        if self.young.insert(digest, value).is_none() {
            self.weight += weight;
        }
    }
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
