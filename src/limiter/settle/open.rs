//! How much of each bucket's debt was charged for requests whose true cost is not known yet.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::limiter::clock::Micros;
use crate::limiter::subject::Key;

const SHARDS: usize = 16;

/// The sum of what is charged on open tabs, by bucket. Only buckets with open tabs are held.
#[derive(Default)]
pub(in crate::limiter) struct OpenTabs([Mutex<HashMap<Key, Micros>>; SHARDS]);

impl OpenTabs {
    /// One more charge is open. Returns how much was open before.
    pub(super) fn open(&self, key: Key, amount: Micros) -> Micros {
        let mut shard = self.shard(key).lock();
        let sum = shard.entry(key).or_default();
        let before = *sum;
        *sum += amount;
        before
    }

    pub(super) fn close(&self, key: Key, amount: Micros) {
        let mut shard = self.shard(key).lock();
        if let Some(sum) = shard.get_mut(&key) {
            *sum = sum.saturating_sub(amount);
            if *sum == 0 {
                shard.remove(&key);
            }
        }
    }

    fn shard(&self, key: Key) -> &Mutex<HashMap<Key, Micros>> {
        &self.0[key.0 as usize % SHARDS]
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.iter().map(|shard| shard.lock().len()).sum()
    }
}
