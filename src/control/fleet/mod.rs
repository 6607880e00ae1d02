//! What instances of a fleet do together: each knows who is there, all have one record, and what concerns all is told to
//! all, through Redis and, where peers are configured, over HTTP as well. docs/fleet.md is the operator's side of it.

mod beat;
mod carrier;
mod first;
mod follow;
mod overrides;
pub mod peer_api;
mod peers;
pub mod registry;
pub(super) mod seal;
mod shared;
mod signature;
mod tell;
mod unopened;
mod view;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use super::overrides::Book;
use super::record::Steering;
use crate::config::UpstreamUrl;
use crate::limiter::Limiter;
use crate::limiter::clock::{Clock, Micros};
use crate::limiter::event::Observer;
use crate::limiter::exposure::Exposure;
use crate::limiter::store::FaultKind;
use crate::redis::RedisStore;
use peers::Peers;
use registry::{Registry, Row, id_text};

use tell::{Message, What};

pub use carrier::Way;
pub use peers::PATH;
pub use tell::Told;
pub use view::{FleetView, InstanceView};

/// How long the end of a process may be held up by saying so.
const GOODBYE: Duration = Duration::from_millis(500);

/// What an instance is told of itself and of the others.
pub struct Options {
    /// What it is called.
    pub name: String,
    /// How often it says through Redis that it is there; `None`: never.
    pub heartbeat: Option<Duration>,
    /// Admin addresses of the others, its own may be among them.
    pub peers: Vec<UpstreamUrl>,
    /// By which they know each other; without it there are no peers.
    pub peer_key: Option<[u8; 32]>,
    /// The limiter's clock.
    pub clock: Clock,
    /// What Redis really decides of the canary.
    pub exposure: Arc<Exposure>,
}

/// One instance's way to the others.
pub struct Fleet {
    limiter: Arc<Limiter<RedisStore>>,
    observer: Arc<dyn Observer>,
    /// Who this is: made at start.
    id: u64,
    name: String,
    started_at: String,
    /// The same, by `clock`.
    started: Micros,
    clock: Clock,
    exposure: Arc<Exposure>,
    /// What all agree on. It holds the way to the others itself: so it comes later, and is held loosely.
    steering: OnceLock<Weak<Steering>>,
    /// Single subjects' own terms.
    overrides: Arc<Book>,
    /// What Redis has of them is to be looked at.
    overrides_due: Notify,
    /// Where the admin API listens.
    admin: OnceLock<String>,
    heartbeat: Option<Duration>,
    registry: Registry,
    /// How many rows the list in Redis had when it was read last, and how many beats ago that was.
    members_read: Mutex<(usize, usize)>,
    peers: Option<Peers>,
    /// Whether Redis answered when it was asked last about the fleet; what it said, when it did not.
    redis: Mutex<Option<Result<(), FaultKind>>>,
    /// A beat is due before its time.
    hurry: Notify,
    leaving: AtomicBool,
    /// Whether it hears what is told through Redis.
    listens: AtomicBool,
    /// Messages that could not be opened.
    unopened: unopened::Unopened,
    /// Who waits for the others, by what they were told.
    waiting: Mutex<HashMap<u64, mpsc::UnboundedSender<tell::Answered>>>,
}

impl Fleet {
    /// The fleet of `limiter`'s store and of these peers.
    ///
    /// # Errors
    /// When the system's certificate authorities cannot be read, which an `https` peer needs.
    pub fn new(
        limiter: Arc<Limiter<RedisStore>>,
        options: Options,
        overrides: Arc<Book>,
        observer: Arc<dyn Observer>,
    ) -> std::io::Result<Arc<Self>> {
        let Options { name, heartbeat, peers, peer_key, clock, exposure } = options;
        let peers = match peer_key {
            Some(key) if !peers.is_empty() => Some(Peers::new(&peers, &key)?),
            _ => None,
        };
        Ok(Arc::new(Self {
            limiter,
            observer,
            id: rand::random(),
            name,
            started_at: super::status::time(clock.now()),
            started: clock.now(),
            clock,
            exposure,
            steering: OnceLock::new(),
            overrides,
            overrides_due: Notify::new(),
            admin: OnceLock::new(),
            heartbeat,
            registry: Registry::default(),
            members_read: Mutex::default(),
            peers,
            redis: Mutex::default(),
            hurry: Notify::new(),
            leaving: AtomicBool::new(false),
            listens: AtomicBool::new(false),
            unopened: unopened::Unopened::default(),
            waiting: Mutex::default(),
        }))
    }

    /// What all agree on is steered here.
    pub fn steered_by(&self, steering: &Arc<Steering>) {
        // Once, at the start.
        let _ = self.steering.set(Arc::downgrade(steering));
    }

    /// Where the admin API listens.
    pub fn listens_at(&self, admin: String) {
        let _ = self.admin.set(admin);
    }

    /// Keeps company: says that it is there, hears the others, follows the record. Runs until it is dropped.
    pub async fn keep_company(self: Arc<Self>) {
        let following = self.peers.iter().flat_map(|peers| &peers.all);
        for peer in following {
            tokio::spawn(Arc::clone(&self).follow(Arc::clone(peer)));
        }
        let Some(store) = self.limiter.store() else { return };
        tokio::join!(
            Arc::clone(&self).keep_beating(),
            Arc::clone(&self).keep_overrides_shared(),
            self.hear(store)
        );
    }

    async fn hear(self: &Arc<Self>, store: &RedisStore) {
        let listens = |does: bool| {
            self.listens.store(does, Ordering::Relaxed);
            if does {
                // The others plan by it.
                self.hurry.notify_one();
            }
        };
        store.hear_fleet(|sealed| self.heard(&sealed), listens).await;
    }

    /// The others need not wait for this one any more.
    pub async fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
        if let (Some(store), Some(_)) = (self.limiter.store(), self.heartbeat) {
            let id = id_text(self.id);
            let bye = Message { from: self.id, telling: 0, what: What::Bye };
            let gone = async {
                // The thread that it lived on may have ended just now.
                store.replaced().await;
                let _ = store.remove_member(&id).await;
                let _ = self.publish(store, &bye).await;
            };
            // Who does not hear of it finds out.
            let _ = tokio::time::timeout(GOODBYE, gone).await;
        }
    }

    /// Now by the clock that the fleet agrees on: the Redis server's as last known, else this machine's.
    pub fn now(&self) -> Micros {
        let shared = self.limiter.store().and_then(RedisStore::server_time);
        shared.unwrap_or_else(|| self.clock.now().saturating_add_signed(self.clock.behind_the_wall()))
    }

    /// Share of the canary's decisions of the last minute that Redis made here; `None`: there were none.
    pub fn exposure(&self) -> Option<f64> {
        self.exposure.ratio(self.clock.now())
    }

    fn steering(&self) -> Option<Arc<Steering>> {
        self.steering.get()?.upgrade()
    }

    /// The key that messages are sealed with, once the fleet's secret is known.
    fn seal_key(&self) -> Option<[u8; 16]> {
        let keys = self.limiter.rollout().keys()?;
        Some(*keys.as_ref()?.seal())
    }

    /// Whether Redis answered when it was asked last about the fleet.
    fn redis_answers(&self) -> bool {
        *self.redis.lock() == Some(Ok(()))
    }

    /// What this instance says of itself.
    fn row(&self) -> Option<Row> {
        let steering = self.steering()?;
        let register = steering.register();
        let record = &register.record;
        let in_force = steering.in_force();
        let breaker = self.limiter.store().map_or("not_configured", |store| store.state().breaker.as_str());
        let now = self.now();
        let lasts = self.clock.now().saturating_sub(self.started);
        Some(Row {
            id: id_text(self.id),
            name: self.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: record.revision,
            epoch: record.epoch,
            record: record.etag(),
            unheard: register.unheard_text(),
            percent: self.limiter.rollout().in_force().percent.as_f64(),
            breaker: breaker.to_owned(),
            exposure: self.exposure.ratio(self.clock.now()),
            lag_ms: in_force.lag / 1_000,
            in_force_since: in_force.since,
            started_at: self.started_at.clone(),
            since: now.saturating_sub(lasts) / 1_000,
            admin: self.admin.get().cloned(),
            listens: self.listens.load(Ordering::Relaxed),
            overrides: self.overrides.digest(),
            at: now / 1_000,
        })
    }
}
