//! Keeps the map of a cluster true: asks for it when something failed or moved, and now and then; makes links to masters
//! that came and drops those to nodes that left.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Refusal;
use super::epoch::Epochs;
use super::map::{self, Map, Node, Place, Shard};
use super::slot;
use super::standing::{Ear, Standing};
use crate::limiter::breaker::State;
use crate::limiter::clock::Clock;
use crate::limiter::event::{Event, Observer};
use crate::limiter::rollout::Rollout;
use crate::limiter::store::Fault;
use crate::redis::background::Background;
use crate::redis::link::{Common, Link, LinkState, Options, Part};
use crate::redis::login::BadLogin;
use crate::redis::{connect, probe, secret};

/// A node that is asked for the map answers within so long, over the connection in use,
const PATIENCE: Duration = Duration::from_millis(500);
/// or over a fresh one; else the next is asked.
const PATIENCE_TO_CONNECT: Duration = Duration::from_secs(1);
/// The map is asked for at most so often while it changes or slots are not served,
const BETWEEN: Duration = Duration::from_millis(250);
/// and so often else, whatever happens. After a quiet time it is asked for at once.
const BETWEEN_IN_QUIET: Duration = Duration::from_secs(1);
/// While slots are not served it is asked for again and again: the first waits are so long, later ones an eighth of what
/// it has lasted, up to so long. Half of each is chance.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// It is logged at most this often that the fleet's secret is out of reach.
const BETWEEN_WARNINGS: Duration = Duration::from_secs(300);
/// A node without slots that we were sent to is kept for so long: it is being given slots.
const KEPT: Duration = Duration::from_secs(600);

/// One server or a cluster, and what is shared by all links to it.
pub(in crate::redis) struct Servers {
    pub(in crate::redis) options: Options,
    pub(in crate::redis) common: Arc<Common>,
    /// To the server that the URL names, as long as it is not known to be a cluster's.
    pub(in crate::redis) first: Arc<Link>,
    pub(in crate::redis) standing: Arc<Standing>,
    pub(in crate::redis) observer: Arc<dyn Observer>,
    pub(in crate::redis) background: Background,
    /// Nodes outside of the map that we were sent to, and when.
    visited: Mutex<HashMap<Box<str>, (Place, Instant)>>,
}

/// Whom to ask for the map besides the masters, in turn.
struct Others {
    replicas: Vec<Place>,
    turn: usize,
    epochs: Epochs,
}

impl Servers {
    pub(in crate::redis) fn new(
        options: Options,
        clock: Clock,
        rollout: Arc<Rollout>,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, BadLogin> {
        let common = Arc::new(Common::new(&options, clock, rollout)?);
        let part = Part::First(super::Found::new(&options));
        let first = Link::new(options.clone(), Arc::clone(&common), part, Arc::clone(&observer));
        Ok(Self {
            options,
            common,
            first: Arc::new(first),
            standing: Arc::new(Standing::new(Arc::clone(&observer))),
            observer,
            background: Background::default(),
            visited: Mutex::default(),
        })
    }

    /// Connects, finds out what to, and stays connected.
    pub(in crate::redis) async fn keep(&self) {
        let Part::First(found) = &self.first.part else { return };
        self.common.home.known().await;
        let shards = tokio::select! {
            biased;
            shards = found.cluster() => shards,
            () = self.first.supervise() => return,
            // Where sentinels know the server; it never ends.
            () = self.first.follow() => return,
        };
        self.first.breaker.trip();
        self.first.connection.store(None);
        self.follow(shards).await;
    }

    pub(in crate::redis) fn is_cluster(&self) -> bool {
        self.standing.map.load().is_some()
    }

    /// The link of a cluster's node.
    ///
    /// # Errors
    /// When nobody serves the slot.
    #[inline]
    pub(in crate::redis) fn link_at(&self, slot: u16) -> Result<Arc<Link>, Fault> {
        let map = self.standing.map.load();
        let node = map.as_ref().and_then(|map| map.node_at(slot));
        match node {
            Some(node) => Ok(Arc::clone(&node.link)),
            None => {
                self.standing.doubted.notify_one();
                Err(Fault::open())
            }
        }
    }

    /// The link for what is about this key or channel.
    ///
    /// # Errors
    /// As [`Servers::link_at`].
    pub(in crate::redis) fn link_of(&self, key: &str) -> Result<Arc<Link>, Fault> {
        match self.is_cluster() {
            false => Ok(Arc::clone(&self.first)),
            true => self.link_at(slot::of(key.as_bytes())),
        }
    }

    /// A node sent us elsewhere. The link to there, if there is one; and the map is looked at anew.
    pub(in crate::redis) fn sent_elsewhere(
        &self,
        slot: u16,
        refusal: &Refusal,
        by: &Link,
    ) -> Option<Arc<Link>> {
        let (Refusal::Moved(said) | Refusal::Ask(said)) = refusal else { return None };
        let place = map::address(said, by.options.target.host().unwrap_or_default())?;
        let map = self.standing.map.load_full()?;
        let node = match refusal {
            Refusal::Moved(_) => {
                self.standing.doubted.notify_one();
                map.moved(slot, &place.address)
            }
            _ => map.node(&place.address),
        };
        if node.is_none() {
            self.visited.lock().insert(place.address.clone(), (place, Instant::now()));
            self.standing.doubted.notify_one();
        }
        node.map(|node| Arc::clone(&node.link))
    }

    async fn follow(&self, shards: Vec<Shard>) {
        // However this ends, no link outlives it.
        let _unmapped = Unmapped(&self.standing);
        let masters = shards.iter().map(|shard| &shard.master.address);
        let masters = masters.collect::<std::collections::HashSet<_>>().len();
        self.observer
            .observe(&Event::StoreRemark(&format!("Redis is a cluster, in which {masters} masters serve")));
        let mut others = Others { replicas: Vec::new(), turn: 0, epochs: Epochs::default() };
        let mut known = shards.clone();
        self.take(shards, &mut others);
        let Some(interval) = self.options.map_interval else { return std::future::pending().await };
        let (mut asked, mut trouble, mut changed) = (Instant::now(), None::<Instant>, true);
        let mut warned = None;
        loop {
            self.report_missed_secret(&mut warned);
            let wait = match self.standing.is_sound() {
                true => {
                    trouble = None;
                    interval
                }
                false => {
                    let lasted = trouble.get_or_insert_with(Instant::now).elapsed();
                    let full = (lasted / 8).clamp(FIRST_WAIT, LONGEST_WAIT);
                    full / 2 + (full / 2).mul_f64(rand::random())
                }
            };
            let between = if changed || trouble.is_some() { BETWEEN } else { BETWEEN_IN_QUIET };
            tokio::select! {
                () = self.standing.doubted.notified() => sleep_until(asked + between).await,
                () = sleep(wait) => {}
            }
            asked = Instant::now();
            if let Some(shards) = self.ask_around(&mut others).await {
                changed = shards != known;
                known.clone_from(&shards);
                self.take(shards, &mut others);
            }
        }
    }

    /// Logs that the fleet's secret is out of reach: until this process knows it no key has a name in Redis.
    fn report_missed_secret(&self, warned: &mut Option<Instant>) {
        let is_known = self.options.secret_interval.is_none() || self.common.secret.lock().is_some();
        if is_known || warned.is_some_and(|warned| warned.elapsed() < BETWEEN_WARNINGS) {
            return;
        }
        let key = secret::key(&self.options.namespace);
        let Some(map) = self.standing.map.load_full() else { return };
        let keeper = match map.node_at(slot::of(key.as_bytes())) {
            None => "no node, since no node serves its slot".to_owned(),
            Some(node) => {
                let LinkState { breaker, last_fault, .. } = node.link.state();
                let Some(fault) = last_fault.filter(|_| breaker == State::Open) else { return };
                format!("{}, which is away ({}: {})", node.place.address, fault.kind, fault.detail)
            }
        };
        *warned = Some(Instant::now());
        self.common.secret_is_missed.store(true, Ordering::Relaxed);
        let words = format!(
            "Redis Cluster: the fleet's secret ({key}) is kept by {keeper}: memory decides every key until it is read. Set \
             TIDEGATE_SECRET on every instance: then no start depends on one node"
        );
        self.observer.observe(&Event::StoreWarning(&words));
    }

    /// What the first node says that answers, and is not out of date: masters in use, another of them each time; then
    /// everybody else.
    async fn ask_around(&self, others: &mut Others) -> Option<Vec<Shard>> {
        others.turn = others.turn.wrapping_add(1);
        let map = self.standing.map.load_full()?;
        let (turn, masters) = (others.turn, map.nodes.len());
        for at in 0..masters {
            let link = &map.nodes[(turn + at) % masters].link;
            if link.breaker.state() == State::Open {
                continue;
            }
            let Some(connection) = link.connection.load_full() else { continue };
            link.sent(2);
            let host = link.options.target.host().unwrap_or_default();
            match timeout(PATIENCE, map::with_epoch(&mut connection.calls(), host)).await {
                Ok(Ok((shards, epoch)))
                    if !shards.is_empty() && others.epochs.accept(epoch, Instant::now()) =>
                {
                    return Some(shards);
                }
                _ => {}
            }
        }
        let masters = map.nodes.iter().map(|node| &node.place);
        let targets: Vec<_> = (others.replicas.iter().chain(masters))
            .map(|place| self.options.target.at(&place.host, place.port))
            .chain([self.options.target.clone()])
            .collect();
        for at in 0..targets.len() {
            let target = &targets[(turn + at) % targets.len()];
            let asked = async {
                let (login, _) = self.common.logins.newest().await;
                let connection = connect::connect(target, &login, None).await?;
                map::with_epoch(&mut connection.calls(), target.host().unwrap_or_default()).await
            };
            match timeout(PATIENCE_TO_CONNECT, asked).await {
                Ok(Ok((shards, epoch)))
                    if !shards.is_empty() && others.epochs.accept(epoch, Instant::now()) =>
                {
                    return Some(shards);
                }
                _ => {}
            }
        }
        None
    }

    /// Puts another map in the place of the one in use: links to nodes that it has as well stay.
    fn take(&self, shards: Vec<Shard>, others: &mut Others) {
        let before = self.standing.map.load_full();
        let mut places: Vec<&Place> = Vec::new();
        for shard in &shards {
            if !places.iter().any(|place| place.address == shard.master.address) {
                places.push(&shard.master);
            }
        }
        let visited: Vec<Place> = {
            let mut visited = self.visited.lock();
            visited.retain(|_, (_, when)| when.elapsed() < KEPT);
            visited.values().map(|(place, _)| place.clone()).collect()
        };
        for place in &visited {
            if !places.iter().any(|other| other.address == place.address) {
                places.push(place);
            }
        }
        let nodes = places.iter().map(|&place| {
            let known = before.as_ref().and_then(|map| map.node(&place.address));
            // Another name of the same is another certificate.
            match known.filter(|node| node.place == *place || visited.contains(place)) {
                Some(node) => Arc::clone(node),
                None => self.node(place.clone(), &shards, before.as_deref()),
            }
        });
        let map = Arc::new(Map::new(&shards, nodes.collect()));
        let kept = slot::of(secret::key(&self.options.namespace).as_bytes());
        let numbers = reserved(&map);
        for (node, number) in map.nodes.iter().zip(numbers) {
            let Part::Node { probe, keeps_secret } = &node.link.part else { continue };
            if let Some(number) = number {
                probe.store(number, Ordering::Relaxed);
            }
            let keeps = map.node_at(kept).is_some_and(|keeper| Arc::ptr_eq(keeper, node));
            keeps_secret.store(keeps, Ordering::Relaxed);
        }
        let links: Vec<Arc<Link>> = map.nodes.iter().map(|node| Arc::clone(&node.link)).collect();
        self.standing.map.store(Some(map));
        links.iter().for_each(|link| link.mapped.notify_one());
        self.standing.mapped();
        others.replicas = shards.into_iter().flat_map(|shard| shard.replicas).collect();
        others.replicas.sort_by(|one, other| one.address.cmp(&other.address));
        others.replicas.dedup_by(|one, other| one.address == other.address);
    }

    /// A node that was not known, with a link of its own.
    fn node(&self, place: Place, shards: &[Shard], before: Option<&Map>) -> Arc<Node> {
        let options =
            Options { target: self.options.target.at(&place.host, place.port), ..self.options.clone() };
        let part = Part::Node { probe: AtomicU64::new(0), keeps_secret: AtomicBool::new(false) };
        let ear = Ear { standing: Arc::clone(&self.standing), node: place.address.clone() };
        let link = Arc::new(Link::new(options, Arc::clone(&self.common), part, Arc::new(ear)));
        // Its slots were another's: what that one had counted last may not have come here.
        let had_owner = |slot: u16| before.is_some_and(|map| map.node_at(slot).is_some());
        if shards.iter().any(|shard| shard.master == place && had_owner(shard.first)) {
            link.recovers(self.options.reconnect_interval);
        }
        let keeper = tokio::spawn({
            let link = Arc::clone(&link);
            async move {
                // Not before the map says what its probe may charge.
                link.mapped.notified().await;
                link.supervise().await;
            }
        });
        Arc::new(Node { place, link, keeper })
    }
}

/// For each node a probe's number whose slot is the node's; `None` for a node without slots.
fn reserved(map: &Map) -> Vec<Option<u64>> {
    let owners: Vec<Option<usize>> = map.owners().collect();
    let mut numbers = vec![None; map.nodes.len()];
    let mut missing = (0..numbers.len()).filter(|at| owners.contains(&Some(*at))).count();
    // A slot has one number of 16 384 on average: by so many each slot is met, but for a chance of one in 10^12.
    for number in 0..1_000_000 {
        if missing == 0 {
            break;
        }
        let owner = owners.get(usize::from(slot::of_subject(probe::subject(number)))).copied().flatten();
        if let Some(empty) = owner.and_then(|at| numbers.get_mut(at)).filter(|number| number.is_none()) {
            *empty = Some(number);
            missing -= 1;
        }
    }
    numbers
}

/// Ends all links when it is dropped.
struct Unmapped<'a>(&'a Standing);

impl Drop for Unmapped<'_> {
    fn drop(&mut self) {
        self.0.map.store(None);
    }
}
