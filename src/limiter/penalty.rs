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
    key: Key,
    penalty: Penalty,
    throttles: u32,
    since: Micros,
    /// 0 while it is not shut out.
    until: Micros,
    policy: Box<str>,
    who: Option<Box<[u8]>>,
}

impl Offender {
    /// How near it is to what ends its being held, in 65 536ths: of a block how much of it is left, else how many of the
    /// throttles that lead to one there were. Never by time: a policy that looks far back would outlast the others.
    fn fill(&self, now: Micros) -> u64 {
        let (part, whole) = match self.until > now {
            true => (self.until - now, self.penalty.lasts),
            false if now.saturating_sub(self.since) > self.penalty.within => (0, 1),
            false => (u64::from(self.throttles), u64::from(self.penalty.after.get())),
        };
        (u128::from(part) * 65_536 / u128::from(whole.max(1))) as u64
    }
}

/// Offenders in a row, which an eviction walks through, and the place of each.
#[derive(Default)]
struct Shard {
    places: HashMap<Key, usize>,
    offenders: Vec<Offender>,
    /// Where the next search for a victim begins.
    hand: usize,
}

impl Shard {
    fn get(&self, key: Key) -> Option<&Offender> {
        Some(&self.offenders[*self.places.get(&key)?])
    }

    fn remove(&mut self, key: Key) -> Option<Offender> {
        let place = self.places.remove(&key)?;
        let offender = self.offenders.swap_remove(place);
        if let Some(moved) = self.offenders.get(place) {
            self.places.insert(moved.key, place);
        }
        Some(offender)
    }

    fn retain(&mut self, keep: impl Fn(&Offender) -> bool) {
        self.offenders.retain(keep);
        self.places.clear();
        self.places.extend(self.offenders.iter().enumerate().map(|(place, offender)| (offender.key, place)));
    }

    /// Makes room: of the next few the one with the least fill, and a blocked one only where there is no other.
    fn evict_one(&mut self, now: Micros) {
        let held = self.offenders.len();
        let mut least: Option<((u64, Micros), Key)> = None;
        let (mut least_blocked, mut not_blocked) = (None, 0);
        for step in 0..held {
            let offender = &self.offenders[(self.hand + step) % held];
            let rank = (offender.fill(now), offender.since);
            let least_of = if offender.until > now { &mut least_blocked } else { &mut least };
            if least_of.is_none_or(|(other, _)| rank < other) {
                *least_of = Some((rank, offender.key));
            }
            not_blocked += usize::from(offender.until <= now);
            if not_blocked >= VICTIMS_LOOKED_AT || not_blocked > 0 && step >= LOOKED_AT {
                self.hand = (self.hand + step + 1) % held;
                break;
            }
        }
        if let Some((_, key)) = least.or(least_blocked) {
            self.remove(key);
        }
    }
}

/// Everybody who was throttled lately under a policy that has a penalty.
pub(super) struct PenaltyBox {
    shards: Box<[Mutex<Shard>]>,
    /// How many are held, so that an empty box costs one look.
    held: AtomicUsize,
}

const SHARDS: usize = 16;
/// The most that a shard holds: a hundred thousand in all, some ten megabytes.
const HELD_BY_A_SHARD: usize = 6_250;
/// How many that are not blocked an eviction looks at,
const VICTIMS_LOOKED_AT: usize = 16;
/// and after how many in all one of them is enough.
const LOOKED_AT: usize = 256;

impl PenaltyBox {
    pub(super) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), held: AtomicUsize::new(0) }
    }

    fn shard(&self, key: Key) -> &Mutex<Shard> {
        &self.shards[key.0 as usize % SHARDS]
    }

    /// How the client with this key stands.
    pub(super) fn standing(&self, key: Key, now: Micros) -> Standing {
        if self.held.load(Ordering::Relaxed) == 0 {
            return Standing::Clear;
        }
        match self.shard(key).lock().get(key) {
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
        let place = shard.places.get(&key).copied().unwrap_or_else(|| {
            if shard.offenders.len() >= HELD_BY_A_SHARD {
                shard.evict_one(now);
                self.held.fetch_sub(1, Ordering::Relaxed);
            }
            self.held.fetch_add(1, Ordering::Relaxed);
            let (penalty, policy) = (*penalty, policy.into());
            shard.offenders.push(Offender {
                key,
                penalty,
                throttles: 0,
                since: now,
                until: 0,
                policy,
                who: None,
            });
            let place = shard.offenders.len() - 1;
            shard.places.insert(key, place);
            place
        });
        let offender = &mut shard.offenders[place];
        offender.penalty = *penalty;
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
        let offender = self.shard(key).lock().remove(key);
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
        let of = |shard: &Mutex<Shard>| {
            shard.lock().offenders.iter().filter(|offender| offender.until > now).count()
        };
        self.shards.iter().map(of).sum()
    }

    /// Everybody who is shut out.
    pub(super) fn blocked(&self, now: Micros) -> Vec<Blocked> {
        let mut all = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            let blocked = shard.offenders.iter().filter(|offender| offender.until > now);
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
        let before = shard.offenders.len();
        shard.retain(|offender| offender.until > now || now.saturating_sub(offender.since) <= longest_within);
        self.held.fetch_sub(before - shard.offenders.len(), Ordering::Relaxed);
        if shard.offenders.capacity() > 64 && shard.offenders.capacity() / 4 > shard.offenders.len() {
            shard.offenders.shrink_to_fit();
            shard.places.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limiter::clock::SECOND;

    const NOW: Micros = 1_800_000_000 * SECOND;

    fn n(value: u32) -> NonZeroU32 {
        NonZeroU32::new(value).unwrap()
    }

    fn penalty(after: u32) -> Penalty {
        Penalty { after: n(after), within: 10 * SECOND, lasts: 60 * SECOND }
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

    /// A thousand are blocked for a minute, and one has been throttled two times of three.
    #[test]
    fn strangers_evict_no_client_that_is_blocked_or_near_it() {
        let held = PenaltyBox::new();
        for number in 1..=1_000 {
            assert!(held.throttled(key(number), ("p", &penalty(1)), None, NOW));
        }
        let near = key(5_000);
        (0..2).for_each(|_| assert!(!held.throttled(near, ("p", &penalty(3)), None, NOW)));
        // Each once, under a policy that looks back for longer, blocks for longer, and has just seen them.
        let long = Penalty { after: n(3), within: 3_600 * SECOND, lasts: 3_600 * SECOND };
        for number in 10_000..400_000 {
            held.throttled(key(number), ("q", &long), None, NOW + SECOND);
        }
        assert_eq!(held.count(NOW + SECOND), 1_000);
        assert!(held.throttled(near, ("p", &penalty(3)), None, NOW + 2 * SECOND));
        let all: usize = held.shards.iter().map(|shard| shard.lock().offenders.len()).sum();
        assert_eq!(all, held.held.load(Ordering::Relaxed));
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
