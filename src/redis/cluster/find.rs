//! Whether the server that the URL names is one of a cluster: asked once, over the first connection, in the background.

use std::future::pending;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::map::{self, Shard};
use crate::limiter::event::Event;
use crate::limiter::store::{Fault, FaultKind};
use crate::redis::connect::Connection;
use crate::redis::link::{Link, Options, Part};

/// What is known of it.
pub(in crate::redis) struct Found {
    /// What the configuration says; `None`: it is to be found out.
    wanted: Option<bool>,
    /// Sentinels know the server, and none of them ever looks after a cluster: nothing is to be found out.
    by_sentinels: bool,
    /// It answered that it is none, or nothing that can be made use of.
    is_one_server: AtomicBool,
    /// It sent us elsewhere, as only a node of a cluster does.
    suspected: AtomicBool,
    /// It was tried whether one call may have keys of several slots.
    slots_known: AtomicBool,
    cluster: Mutex<Option<Vec<Shard>>>,
    found: Notify,
}

impl Found {
    pub(in crate::redis) fn new(options: &Options) -> Self {
        Self {
            wanted: options.cluster,
            by_sentinels: options.target.master_name().is_some(),
            is_one_server: AtomicBool::new(false),
            suspected: AtomicBool::new(false),
            slots_known: AtomicBool::new(false),
            cluster: Mutex::default(),
            found: Notify::new(),
        }
    }

    /// A call failed so.
    pub(in crate::redis) fn suspect(&self, kind: FaultKind) {
        if kind == FaultKind::Cluster {
            self.suspected.store(true, Ordering::Relaxed);
        }
    }

    /// Whether it is yet to be tried if one call may have keys of several slots. Sentinels look after no cluster.
    pub(in crate::redis) fn slots_are_unknown(&self) -> bool {
        !self.by_sentinels && !self.slots_known.load(Ordering::Relaxed)
    }

    /// It was tried.
    pub(in crate::redis) fn slots_are_known(&self) {
        self.slots_known.store(true, Ordering::Relaxed);
    }

    /// Waits until it turns out to be a cluster.
    pub(in crate::redis) async fn cluster(&self) -> Vec<Shard> {
        loop {
            if let Some(shards) = self.cluster.lock().take() {
                return shards;
            }
            self.found.notified().await;
        }
    }

    fn is_to_be_asked(&self) -> bool {
        if self.by_sentinels {
            return false;
        }
        self.suspected.load(Ordering::Relaxed)
            || (self.wanted != Some(false) && !self.is_one_server.load(Ordering::Relaxed))
    }

    /// It is no use asking again.
    fn is_one_server(&self) {
        self.is_one_server.store(true, Ordering::Relaxed);
        self.suspected.store(false, Ordering::Relaxed);
    }
}

impl Link {
    /// Asks whether it is a cluster, where nobody knows. Never returns where it is one: whoever waits for
    /// [`Found::cluster`] ends this link.
    pub(in crate::redis) async fn find_out(&self, connection: &Connection) -> Result<(), Fault> {
        let Part::First(found) = &self.part else { return Ok(()) };
        if !found.is_to_be_asked() {
            return Ok(());
        }
        let wrong = |words: &str| Err(Fault::new(FaultKind::Cluster, words));
        self.sent(1);
        let suspected = found.suspected.load(Ordering::Relaxed);
        let host = self.options.target.host().unwrap_or_default();
        match map::of(&mut connection.calls(), host).await {
            Ok(_) if found.wanted == Some(false) => wrong(
                "the server is a node of a Redis Cluster, and REDIS_CLUSTER is false: set it to auto or true",
            ),
            Ok(_) if self.options.target.db() != 0 => {
                wrong("a Redis Cluster has database 0 only: remove /DB from REDIS_URL")
            }
            Ok(shards) if shards.is_empty() => wrong("no node of the cluster serves any slot yet"),
            Ok(shards) => {
                *found.cluster.lock() = Some(shards);
                found.found.notify_one();
                pending().await
            }
            // "This instance has cluster support disabled", "unknown command".
            Err(fault) if fault.kind == FaultKind::Other && found.wanted == Some(true) => wrong(
                "the server is not a node of a Redis Cluster, and REDIS_CLUSTER is true: set it to auto or false",
            ),
            Err(fault)
                if fault.kind == FaultKind::Permission && (found.wanted == Some(true) || suspected) =>
            {
                let words = "it is a Redis Cluster, and this user may not ask for its map: allow +cluster|slots +asking";
                Err(Fault::new(FaultKind::Permission, words))
            }
            Err(fault) if fault.kind == FaultKind::Permission => {
                self.observer.observe(&Event::StoreRemark(
                    "Redis is taken for one server: this user may not run CLUSTER SLOTS, which tells. Where it is a cluster, \
                     allow +cluster|slots +asking; where not, REDIS_CLUSTER=false asks no more",
                ));
                found.is_one_server();
                Ok(())
            }
            Err(fault) if fault.kind == FaultKind::Other => {
                found.is_one_server();
                Ok(())
            }
            // Some proxies hang up on what they do not know. Whatever it was, calls will find out.
            Err(fault) if matches!(fault.kind, FaultKind::Lost | FaultKind::Protocol) => {
                if found.wanted.is_none() {
                    found.is_one_server();
                }
                Err(fault)
            }
            Err(fault) => Err(fault),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::redis::login::LoginFiles;
    use crate::redis::target::Target;

    fn found(url: &str, cluster: Option<bool>) -> Found {
        Found::new(&Options {
            target: Target::parse(url).unwrap(),
            files: LoginFiles::default(),
            timeout: Duration::from_millis(50),
            connect_timeout: Duration::from_secs(1),
            reconnect_interval: Duration::from_secs(1),
            warm_up: Duration::ZERO,
            max_in_flight: 1,
            namespace: "tidegate".to_owned(),
            secret_interval: None,
            cluster,
            map_interval: None,
        })
    }

    #[test]
    fn a_server_that_sentinels_name_is_never_taken_for_one_of_a_cluster() {
        for cluster in [None, Some(false), Some(true)] {
            let found = found("redis+sentinel://s1,s2/main", cluster);
            assert!(!found.is_to_be_asked());
            // A replica that has lost its master says MASTERDOWN.
            found.suspect(FaultKind::Cluster);
            assert!(!found.is_to_be_asked(), "{cluster:?}");
        }
        let found = found("redis://h", Some(false));
        assert!(!found.is_to_be_asked());
        found.suspect(FaultKind::Cluster);
        assert!(found.is_to_be_asked(), "who sends us elsewhere is asked, whatever the configuration says");
    }
}
