//! The metrics of the link to Redis: whether it is asked, over which connections, with how many calls under way.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::{Labels, one};
use crate::limiter::breaker::State;
use crate::limiter::event::Replaced;

const REPLACED: [Replaced; 4] =
    [Replaced::Slow, Replaced::Lost { calls: 0 }, Replaced::Login, Replaced::Failover];

/// Handles. Without a store they are there and print nothing: an alert on an open breaker would be false.
pub(in crate::telemetry) struct RedisLink {
    up: Gauge,
    breaker: Gauge,
    in_use: Gauge,
    connecting: Gauge,
    in_flight: Gauge,
    nodes: [Gauge; 3],
    replaced: [Counter; 4],
}

impl RedisLink {
    /// Registers them if there is a store; `up` is the family of all backends.
    pub(super) fn registered_in(registry: &mut Registry, up: &Family<Labels, Gauge>, store: bool) -> Self {
        let (breaker, in_flight) = (Gauge::default(), Gauge::default());
        let connections = Family::<Labels, Gauge>::default();
        let replaced = Family::<Labels, Counter>::default();
        let nodes = Family::<Labels, Gauge>::default();
        if store {
            registry.register(
                "redis_nodes",
                "Masters of a Redis Cluster that serve slots, by the state of their breaker; all 0 without a cluster",
                nodes.clone(),
            );
            registry.register(
                "breaker_state",
                "Whether Redis is asked: 0 closed (it is), 1 half-open (for some keys), 2 open (it is not)",
                breaker.clone(),
            );
            breaker.set(State::Open as i64);
            registry.register("redis_connections", "Connections to Redis", connections.clone());
            registry.register(
                "redis_in_flight",
                "Calls to Redis under way, of at most redis.max_in_flight",
                in_flight.clone(),
            );
            registry.register(
                "redis_connections_replaced",
                "Connections to Redis that a fresh one took the place of without an outage, by cause",
                replaced.clone(),
            );
        }
        let up = match store {
            true => up.get_or_create_owned(&one("backend", "redis")),
            false => Gauge::default(),
        };
        Self {
            up,
            breaker,
            in_use: connections.get_or_create_owned(&one("state", "in_use")),
            connecting: connections.get_or_create_owned(&one("state", "connecting")),
            in_flight,
            nodes: [State::Closed, State::HalfOpen, State::Open]
                .map(|state| nodes.get_or_create_owned(&one("breaker", state.as_str()))),
            replaced: REPLACED.map(|why| replaced.get_or_create_owned(&one("cause", why.as_str()))),
        }
    }

    /// Notes whether Redis is asked.
    pub(in crate::telemetry) fn is(&self, breaker: State) {
        self.breaker.set(breaker as i64);
        self.in_use.set(i64::from(breaker != State::Open));
        self.up.set(i64::from(breaker == State::Closed));
    }

    /// Notes the same of the nodes of a cluster: the worst of them, their connections, and how many are in each state.
    pub(in crate::telemetry) fn are(&self, worst: State, connections: usize, nodes: [u32; 3]) {
        self.is(worst);
        self.in_use.set(connections as i64);
        for (gauge, nodes) in self.nodes.iter().zip(nodes) {
            gauge.set(i64::from(nodes));
        }
    }

    /// Notes that there is no connection until there is a fresh one.
    pub(in crate::telemetry) fn disconnected(&self) {
        self.in_use.set(0);
    }

    /// Counts a connection that another took the place of.
    pub(in crate::telemetry) fn replaced(&self, why: Replaced) {
        self.in_use.set(1);
        let place = REPLACED.iter().position(|one| one.as_str() == why.as_str());
        if let Some(counter) = place.and_then(|place| self.replaced.get(place)) {
            counter.inc();
        }
    }

    /// Notes that a connection is being made, or no longer is.
    pub(in crate::telemetry) fn connecting(&self, connecting: bool) {
        match connecting {
            true => self.connecting.inc(),
            false => self.connecting.dec(),
        };
    }

    /// Notes how many calls are under way.
    pub(super) fn in_flight(&self, calls: u32) {
        self.in_flight.set(i64::from(calls));
    }
}
