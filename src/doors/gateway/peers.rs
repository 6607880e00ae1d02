//! The addresses of an upstream: one after the other, and past those that fail.
//!
//! The health is passive, as nginx has it: an address that failed `max_fails` times within `fail_timeout` is passed over
//! for so long, then tried again with what comes next.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use hyper::header::HeaderValue;
use parking_lot::Mutex;
use rustls::pki_types::ServerName;

/// Where one of them listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A host, by name or address (IPv6 without brackets), and a port.
    Host(String, u16),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

/// When an address is passed over.
#[derive(Clone, Copy, Debug)]
pub struct Health {
    /// So many failures; 0: never.
    pub max_fails: u32,
    /// Within such a time, and then for as long.
    pub fail_timeout: Duration,
}

/// All addresses of an upstream. Shared by the workers, so that what one of them learns is known to all.
pub(super) struct Peers {
    all: Vec<Peer>,
    next: AtomicUsize,
    health: Health,
    epoch: Instant,
}

/// One of them.
pub(super) struct Peer {
    pub(super) address: Address,
    /// As `Host` names it, where its own name is asked for.
    pub(super) authority: HeaderValue,
    /// As its certificate names it; `None`: no TLS.
    pub(super) name: Option<ServerName<'static>>,
    fails: AtomicU32,
    /// In milliseconds since `epoch`, as the next.
    first_fail: AtomicU64,
    down_until: AtomicU64,
    /// What of several addresses of one name could not be reached of late.
    pub(super) unreachable: Mutex<Vec<(SocketAddr, Instant)>>,
    /// Where among them the next connection goes.
    pub(super) turn: AtomicUsize,
    /// It let an `Expect: 100-continue` pass without a word: the next body is not held back for it.
    pub(super) ignores_expect: AtomicBool,
}

impl Peer {
    pub(super) fn new(address: Address, authority: HeaderValue, name: Option<ServerName<'static>>) -> Self {
        Self {
            address,
            authority,
            name,
            fails: AtomicU32::new(0),
            first_fail: AtomicU64::new(0),
            down_until: AtomicU64::new(0),
            unreachable: Mutex::default(),
            turn: AtomicUsize::new(0),
            ignores_expect: AtomicBool::new(false),
        }
    }

    /// This one of its addresses can't be reached now. Kept once, however many requests find out in an outage.
    pub(super) fn note_unreachable(&self, address: SocketAddr) {
        let mut unreachable = self.unreachable.lock();
        unreachable.retain(|(other, _)| *other != address);
        unreachable.push((address, Instant::now()));
    }
}

impl Peers {
    pub(super) fn new(all: Vec<Peer>, health: Health) -> Self {
        Self { all, next: AtomicUsize::new(0), health, epoch: Instant::now() }
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn health(&self) -> Health {
        self.health
    }

    pub(super) fn get(&self, index: usize) -> Option<&Peer> {
        self.all.get(index)
    }

    /// The one whose turn it is, not one of those `tried`. One that is passed over is better than none.
    pub(super) fn pick(&self, tried: &[usize]) -> Option<usize> {
        let count = self.all.len();
        if count == 1 {
            return tried.is_empty().then_some(0);
        }
        let start = self.next.fetch_add(1, Relaxed);
        let turn = || (0..count).map(|step| (start + step) % count).filter(|index| !tried.contains(index));
        let now = self.now();
        let up =
            |&index: &usize| self.all.get(index).is_some_and(|peer| peer.down_until.load(Relaxed) <= now);
        turn().find(up).or_else(|| turn().next())
    }

    /// It answered.
    pub(super) fn worked(&self, index: usize) {
        if let Some(peer) = self.all.get(index)
            && peer.fails.load(Relaxed) > 0
            && peer.down_until.load(Relaxed) <= self.now()
        {
            peer.fails.store(0, Relaxed);
        }
    }

    /// It could not be reached, was too slow or broke off.
    pub(super) fn failed(&self, index: usize) {
        let Some(peer) = self.all.get(index).filter(|_| self.health.max_fails > 0) else { return };
        let (now, window) = (self.now(), self.health.fail_timeout.as_millis() as u64);
        if now.saturating_sub(peer.first_fail.load(Relaxed)) > window || peer.fails.load(Relaxed) == 0 {
            peer.first_fail.store(now, Relaxed);
            peer.fails.store(0, Relaxed);
        }
        if peer.fails.fetch_add(1, Relaxed) + 1 >= self.health.max_fails {
            peer.down_until.store(now + window, Relaxed);
        }
    }

    fn now(&self) -> u64 {
        self.epoch.elapsed().as_millis() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(count: usize, max_fails: u32, fail_timeout: Duration) -> Peers {
        let peer = |_| Peer::new(Address::Host("h".into(), 80), HeaderValue::from_static("h"), None);
        Peers::new((0..count).map(peer).collect(), Health { max_fails, fail_timeout })
    }

    #[test]
    fn each_has_its_turn_and_one_that_fails_is_passed_over_for_its_time() {
        let peers = peers(3, 2, Duration::from_millis(80));
        let picked = |count| (0..count).map(|_| peers.pick(&[]).unwrap()).collect::<Vec<_>>();
        assert_eq!(picked(6), [0, 1, 2, 0, 1, 2]);
        peers.failed(1);
        assert!(picked(3).contains(&1), "one failure is not enough");
        peers.failed(1);
        assert!(!picked(6).contains(&1));
        std::thread::sleep(Duration::from_millis(100));
        assert!(picked(3).contains(&1), "its time is over");
        peers.worked(1);
        peers.failed(1);
        assert!(picked(3).contains(&1), "a success begins anew");
    }

    #[test]
    fn an_address_that_many_requests_cannot_reach_is_noted_once() {
        let peers = peers(1, 1, Duration::from_secs(60));
        let peer = peers.get(0).unwrap();
        for _ in 0..1000 {
            peer.note_unreachable("192.0.2.1:80".parse().unwrap());
            peer.note_unreachable("192.0.2.2:80".parse().unwrap());
        }
        assert_eq!(peer.unreachable.lock().len(), 2);
    }

    #[test]
    fn the_last_that_is_left_is_tried_whatever_its_health_and_none_twice() {
        let peers = peers(2, 1, Duration::from_secs(60));
        peers.failed(0);
        peers.failed(1);
        let first = peers.pick(&[]).unwrap();
        let second = peers.pick(&[first]).unwrap();
        assert_ne!(first, second);
        assert_eq!(peers.pick(&[first, second]), None);
    }
}
