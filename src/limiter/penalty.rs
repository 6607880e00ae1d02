//! The penalty box: who keeps hammering while throttled is shut out for a while. Kept in this process only: it costs the
//! shared store nothing, and a client that is shut out here goes on hammering here.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::clock::Micros;
use super::subject::Key;

/// When a client is shut out, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Penalty {
    /// So many throttled requests
    pub after: NonZeroU32,
    /// within so many microseconds, counted from the first of them,
    pub within: Micros,
    /// shut it out for so many. Requests in that time do not make it longer.
    pub lasts: Micros,
}

/// How a client stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nothing is held against it.
    Clear,
    /// It was throttled lately.
    Offending,
    /// It is shut out for so many microseconds more.
    Blocked(Micros),
}

/// One client that is shut out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// By which policy.
    pub policy: Box<str>,
    /// Who it is to that policy, if that was seen.
    pub who: Option<Box<[u8]>>,
    /// When it ends, in microseconds since the epoch.
    pub until: Micros,
}

struct Offender {
    throttles: u32,
    since: Micros,
    /// 0 while it is not shut out.
    until: Micros,
    policy: Box<str>,
    who: Option<Box<[u8]>>,
}

/// Everybody who was throttled lately under a policy that has a penalty.
pub(super) struct PenaltyBox {
    shards: Box<[Mutex<HashMap<Key, Offender>>]>,
    /// How many are held, so that an empty box costs one look.
    held: AtomicUsize,
}

const SHARDS: usize = 16;
/// The most that a shard holds: a hundred thousand in all, some ten megabytes.
const HELD_BY_A_SHARD: usize = 6_250;
/// How many an eviction looks at.
const VICTIMS_LOOKED_AT: usize = 16;

impl PenaltyBox {
    pub(super) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), held: AtomicUsize::new(0) }
    }

    fn shard(&self, key: Key) -> &Mutex<HashMap<Key, Offender>> {
        &self.shards[key.0 as usize % SHARDS]
    }

    /// How the client with this key stands.
    pub(super) fn standing(&self, key: Key, now: Micros) -> Standing {
        if self.held.load(Ordering::Relaxed) == 0 {
            return Standing::Clear;
        }
        match self.shard(key).lock().get(&key) {
            None => Standing::Clear,
            Some(offender) if offender.until > now => Standing::Blocked(offender.until - now),
            Some(_) => Standing::Offending,
        }
    }

    /// The client was throttled. True when that shuts it out.
    pub(super) fn throttled(
        &self,
        key: Key,
        (policy, penalty): (&str, &Penalty),
        who: Option<&[u8]>,
        now: Micros,
    ) -> bool {
        let mut shard = self.shard(key).lock();
        if !shard.contains_key(&key) && shard.len() >= HELD_BY_A_SHARD {
            self.evict_one(&mut shard, now);
        }
        let offender = shard.entry(key).or_insert_with(|| {
            self.held.fetch_add(1, Ordering::Relaxed);
            Offender { throttles: 0, since: now, until: 0, policy: policy.into(), who: None }
        });
        if offender.until > now {
            return false;
        }
        let lapsed = now.saturating_sub(offender.since) > penalty.within;
        if lapsed || offender.until > 0 {
            (offender.throttles, offender.since, offender.until) = (0, now, 0);
        }
        offender.throttles += 1;
        if offender.who.is_none() {
            offender.who = who.map(Box::from);
        }
        let shut_out = offender.throttles >= penalty.after.get();
        if shut_out {
            offender.until = now + penalty.lasts;
        }
        shut_out
    }

    /// Forgets what is held against this key. True when it was shut out.
    pub(super) fn forgive(&self, key: Key, now: Micros) -> bool {
        let offender = self.shard(key).lock().remove(&key);
        if offender.is_some() {
            self.held.fetch_sub(1, Ordering::Relaxed);
        }
        offender.is_some_and(|offender| offender.until > now)
    }

    /// How many are shut out.
    pub(super) fn count(&self, now: Micros) -> usize {
        if self.held.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        let of = |shard: &Mutex<HashMap<Key, Offender>>| {
            shard.lock().values().filter(|offender| offender.until > now).count()
        };
        self.shards.iter().map(of).sum()
    }

    /// Everybody who is shut out.
    pub(super) fn blocked(&self, now: Micros) -> Vec<Blocked> {
        let mut all = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            let blocked = shard.values().filter(|offender| offender.until > now);
            all.extend(blocked.map(|offender| Blocked {
                policy: offender.policy.clone(),
                who: offender.who.clone(),
                until: offender.until,
            }));
        }
        all.sort_by_key(|blocked| std::cmp::Reverse(blocked.until));
        all
    }

    /// Forgets, in one of its parts, those who were quiet for as long as a policy with the longest memory looks back.
    pub(super) fn sweep(&self, part: usize, longest_within: Micros, now: Micros) {
        if self.held.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut shard = self.shards[part % SHARDS].lock();
        let before = shard.len();
        shard.retain(|_, offender| {
            offender.until > now || now.saturating_sub(offender.since) <= longest_within
        });
        self.held.fetch_sub(before - shard.len(), Ordering::Relaxed);
        if shard.capacity() > 64 && shard.capacity() / 4 > shard.len() {
            shard.shrink_to_fit();
        }
    }

    /// Makes room: who is not shut out goes first, the longest ago throttled of those that are looked at.
    fn evict_one(&self, shard: &mut HashMap<Key, Offender>, now: Micros) {
        let rank = |offender: &Offender| (offender.until > now, offender.until, offender.since);
        let victim = shard.iter().take(VICTIMS_LOOKED_AT).min_by_key(|(_, offender)| rank(offender));
        if let Some(key) = victim.map(|(key, _)| *key) {
            shard.remove(&key);
            self.held.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limiter::clock::SECOND;

    const NOW: Micros = 1_800_000_000 * SECOND;

    fn penalty(after: u32) -> Penalty {
        Penalty { after: NonZeroU32::new(after).unwrap(), within: 10 * SECOND, lasts: 60 * SECOND }
    }

    fn key(number: u64) -> Key {
        Key(number.wrapping_mul(0x9E37_79B9_7F4A_7C15), number)
    }

    #[test]
    fn so_many_throttles_within_the_window_shut_out_for_exactly_so_long() {
        let held = PenaltyBox::new();
        let throttled = |at| held.throttled(key(1), ("p", &penalty(3)), Some(b"me"), at);
        assert!(!throttled(NOW));
        assert!(!throttled(NOW + SECOND));
        assert_eq!(held.standing(key(1), NOW + SECOND), Standing::Offending);
        assert!(throttled(NOW + 10 * SECOND));
        let until = NOW + 70 * SECOND;
        assert_eq!(held.standing(key(1), until - 1), Standing::Blocked(1));
        assert_eq!(held.blocked(NOW), [Blocked { policy: "p".into(), who: Some((*b"me").into()), until }]);
        assert!(!throttled(until - 1), "who is shut out is not shut out once more");
        assert_eq!(held.standing(key(1), until), Standing::Offending);
        assert!(!throttled(until), "it starts again from nothing");
        assert_eq!(held.standing(key(2), NOW), Standing::Clear);
    }

    #[test]
    fn throttles_further_apart_than_the_window_are_forgotten() {
        let held = PenaltyBox::new();
        for at in 0..100 {
            let now = NOW + at * 6 * SECOND;
            assert!(!held.throttled(key(1), ("p", &penalty(3)), None, now), "{at}");
        }
        for shard in 0..SHARDS {
            held.sweep(shard, 10 * SECOND, NOW + 1_000 * SECOND);
        }
        assert_eq!(held.held.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_forgiven_start_again_and_the_box_is_bounded_with_the_shut_out_kept_longest() {
        let held = PenaltyBox::new();
        assert!(held.throttled(key(1), ("p", &penalty(1)), None, NOW));
        assert!(held.forgive(key(1), NOW));
        assert!(!held.forgive(key(1), NOW));
        assert_eq!(held.standing(key(1), NOW), Standing::Clear);
        assert!(held.throttled(key(2), ("p", &penalty(1)), None, NOW));
        for number in 1_000..400_000 {
            held.throttled(key(number), ("p", &penalty(2)), None, NOW);
        }
        let all = held.held.load(Ordering::Relaxed);
        assert!(all <= SHARDS * HELD_BY_A_SHARD, "{all}");
        assert_eq!((held.blocked(NOW).len(), held.count(NOW)), (1, 1));
    }
}
