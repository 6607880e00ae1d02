//! The shared store: one server, or a cluster of which each call goes to the node that serves its slot.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::Value;
use tokio::time::Instant;

use super::charge;
use super::cluster::{Refusal, Servers, slot};
use super::link::{Link, LinkState, Options};
use super::login::{BadLogin, Logins};
use super::spent::Spending;
use super::target::Target;
use crate::limiter::DecisionFuture;
use crate::limiter::breaker::State;
use crate::limiter::clock::{Clock, Micros};
use crate::limiter::event::{Event, Observer};
use crate::limiter::rollout::Rollout;
use crate::limiter::settle::Outcome;
use crate::limiter::store::{Charged, Fault, SharedCharge, Store};
use crate::limiter::subject::SubjectHash;

/// The shared store in Redis. Cheap to clone: all clones are one.
#[derive(Clone)]
pub struct RedisStore(pub(super) Arc<Servers>);

/// What the link to one node of a cluster says of itself.
#[derive(Clone, Debug)]
pub struct NodeState {
    /// `host:port`, as the cluster calls it.
    pub address: String,
    /// How much of all slots it serves, in percent.
    pub percent: f64,
    /// Its link.
    pub link: LinkState,
    /// Calls under way.
    pub in_flight: u32,
}

impl RedisStore {
    /// A store that is not connected yet: spawn [`RedisStore::keep_connected`].
    ///
    /// # Errors
    /// When a file can't be read or makes no sense. Nothing is asked of the network.
    pub fn new(
        options: Options,
        clock: Clock,
        rollout: Arc<Rollout>,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, BadLogin> {
        Ok(Self(Arc::new(Servers::new(options, clock, rollout, observer)?)))
    }

    /// What the provider's plan allows this instance a day, and what it counts for one script call.
    pub fn with_plan(self, commands_per_day: Option<NonZeroU64>, billed_per_call: u32) -> Self {
        let per_day = commands_per_day.map_or(0, NonZeroU64::get);
        let common = &self.0.common;
        common.spent.plan(per_day, u64::from(billed_per_call), common.clock.now());
        self
    }

    /// What is spent of that, on all nodes.
    pub fn spending(&self) -> Spending {
        self.0.common.spent.spending(self.0.common.clock.now())
    }

    /// All calls are going to come from one thread, of which [`RedisStore::called_from`] is told.
    pub fn called_from_one_thread(&self) {
        self.0.common.home.will_be_told();
    }

    /// Calls come from the thread of this runtime: the connection moves there, since a call from another thread wakes two
    /// threads. `None`: they come from anywhere, or that thread is about to end.
    pub fn called_from(&self, runtime: Option<tokio::runtime::Handle>) {
        self.0.common.home.is(runtime);
    }

    /// So many instances use this Redis, this one included: those that lose it together come back one after another.
    pub fn is_shared_by(&self, members: u32) {
        self.0.common.members.are(members);
    }

    /// Connects, and connects again whenever the connection is lost. Runs until it is dropped.
    pub async fn keep_connected(self) {
        self.0.keep().await;
    }

    /// What the link says of itself. Of a cluster: the worst of what the links of its nodes say.
    pub fn state(&self) -> LinkState {
        let Some(nodes) = self.nodes() else { return self.0.first.state() };
        let orphaned =
            self.0.standing.map.load().as_ref().is_none_or(|map| map.owners().any(|at| at.is_none()));
        let last_fault = nodes.iter().filter(|node| node.link.last_fault.is_some());
        let last_fault = last_fault.max_by_key(|node| node.link.since);
        let last_fault = last_fault.and_then(|node| node.link.last_fault.clone());
        let serving = nodes.iter().filter(|node| node.percent > 0.0);
        let worst = serving.max_by_key(|node| (node.link.breaker as u8, node.link.since));
        let Some(worst) = worst else { return LinkState { last_fault, ..self.0.first.state() } };
        // A slot that nobody serves is no node's state.
        let breaker = if orphaned { State::Open } else { worst.link.breaker };
        LinkState {
            breaker,
            last_fault,
            next_probe: nodes.iter().filter_map(|node| node.link.next_probe).min(),
            protocol: nodes.iter().find_map(|node| node.link.protocol),
            probe_took: nodes.iter().filter_map(|node| node.link.probe_took).max(),
            ..worst.link.clone()
        }
    }

    /// The nodes of a cluster that serve slots or were heard of; `None` of one server.
    pub fn nodes(&self) -> Option<Vec<NodeState>> {
        let map = self.0.standing.map.load_full()?;
        let mut slots = vec![0u32; map.nodes.len()];
        map.owners().flatten().for_each(|at| slots[at] += 1);
        let nodes = map.nodes.iter().zip(slots).map(|(node, slots)| NodeState {
            address: node.place.address.to_string(),
            percent: f64::from(slots) * 100.0 / f64::from(slot::SLOTS.get()),
            link: node.link.state(),
            in_flight: node.link.breaker.in_flight(),
        });
        Some(nodes.collect())
    }

    /// Whether Redis is in use by all of its subjects.
    pub fn is_in_use(&self) -> bool {
        self.state().breaker == State::Closed
    }

    /// What its keys begin with.
    pub fn namespace(&self) -> &str {
        &self.0.options.namespace
    }

    /// How long until Redis is tried next; `None` while it is in use or being tried.
    pub fn next_probe_in(&self) -> Option<Duration> {
        let next = self.state().next_probe?;
        Some(Duration::from_micros(next.saturating_sub(self.0.common.clock.now())))
    }

    /// The user, password and certificates, to be read again when their files change.
    pub fn logins(&self) -> &Arc<Logins> {
        &self.0.common.logins
    }

    /// Calls under way.
    pub fn in_flight(&self) -> u32 {
        match self.0.standing.map.load().as_ref() {
            None => self.0.first.breaker.in_flight(),
            Some(map) => map.nodes.iter().map(|node| node.link.breaker.in_flight()).sum(),
        }
    }

    /// Where Redis is, in words that hold no secret.
    pub fn target(&self) -> &Target {
        &self.0.options.target
    }
}

impl Store for RedisStore {
    async fn charge(&self, charges: &[SharedCharge<'_>], peek: bool, now: Micros) -> Result<Charged, Fault> {
        let servers = &*self.0;
        let deadline = Instant::now() + servers.options.timeout;
        if !servers.is_cluster() {
            let charged = servers.first.charge(charges, peek, now, (deadline, false)).await;
            return charged.map_err(|refusal| {
                // The address hides a cluster since a moment ago. Later requests are one call a subject.
                if let Refusal::CrossSlot(fault) = &refusal {
                    servers.observer.observe(&Event::StoreFailed(fault.kind));
                }
                refusal.into_fault()
            });
        }
        let slot = charges.first().map(|charge| slot::of_subject(charge.subject)).unwrap_or_default();
        let link = servers.link_at(slot)?;
        let refusal = match link.charge(charges, peek, now, (deadline, false)).await {
            Ok(charged) => return Ok(charged),
            Err(Refusal::Fault(fault)) => return Err(fault),
            Err(refusal) => refusal,
        };
        // Followed once: whoever is sent on again is caught in a map that is just changing.
        let asking = matches!(refusal, Refusal::Ask(_));
        let last = match servers.sent_elsewhere(slot, &refusal, &link) {
            None => refusal,
            Some(other) => match other.charge(charges, peek, now, (deadline, asking)).await {
                Ok(charged) => return Ok(charged),
                Err(Refusal::Fault(fault)) => return Err(fault),
                Err(refusal) => refusal,
            },
        };
        let fault = last.into_fault();
        link.observer.observe(&Event::StoreFailed(fault.kind));
        Err(fault)
    }

    fn place(&self, subject: SubjectHash) -> u16 {
        let is_by_slot = self.0.common.by_slot.load(Ordering::Relaxed) || self.0.is_cluster();
        if is_by_slot { slot::of_subject(subject) } else { 0 }
    }

    fn lag(&self, subject: SubjectHash) -> Option<Micros> {
        self.of(subject, Link::lag).flatten()
    }

    fn ahead(&self, subject: SubjectHash) -> Option<i64> {
        self.of(subject, |link| link.offset.ahead()).flatten()
    }

    fn least_ahead(&self) -> Option<i64> {
        match self.0.standing.map.load().as_ref() {
            None => self.0.first.offset.ahead(),
            Some(map) => map.nodes.iter().filter_map(|node| node.link.offset.ahead()).min(),
        }
    }

    fn is_recovering(&self, subject: SubjectHash, now: Micros) -> bool {
        self.of(subject, |link| link.is_recovering(now)).unwrap_or_default()
    }

    async fn forget(&self, policies: &[&str], subject: SubjectHash) -> Result<(), Fault> {
        let namespace = &self.0.options.namespace;
        let keys: Vec<String> =
            policies.iter().map(|policy| charge::key(namespace, policy, subject)).collect();
        let Some(first) = keys.first() else { return Ok(()) };
        let mut command = redis::cmd("DEL");
        command.arg(&keys);
        // All keys of a subject are in one place.
        self.command::<Value>(first, &command).await.map(drop)
    }

    fn behind(&self, refund: impl Future<Output = Outcome> + Send + 'static) -> bool {
        let observer = Arc::clone(&self.0.observer);
        let spawned = self.0.background.refunds.spawn(async move {
            let outcome = refund.await;
            observer.observe(&Event::ChargeReturned(outcome));
        });
        if !spawned {
            self.0.observer.observe(&Event::ChargeReturned(Outcome::Noted));
        }
        spawned
    }

    fn complete(&self, decision: DecisionFuture) {
        let observer = Arc::clone(&self.0.observer);
        let spawned = self.0.background.decisions.spawn(async move {
            let decision = decision.await;
            observer.observe(&Event::DecidedWithoutClient(Some(&decision)));
        });
        if !spawned {
            self.0.observer.observe(&Event::DecidedWithoutClient(None));
        }
    }
}

impl RedisStore {
    /// What the link says that this subject is decided over.
    #[inline]
    fn of<T>(&self, subject: SubjectHash, say: impl Fn(&Link) -> T) -> Option<T> {
        match self.0.standing.map.load().as_ref() {
            None => Some(say(&self.0.first)),
            Some(map) => map.node_at(slot::of_subject(subject)).map(|node| say(&node.link)),
        }
    }
}
