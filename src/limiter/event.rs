//! What happens that somebody may want to hear of. The limiter and the doors say it, telemetry writes it down.

use std::net::IpAddr;
use std::time::Duration;

use super::decision::Decision;
use super::rollout::InForce;
use super::settle::Outcome;
use super::store::{Fault, FaultKind};

/// A happening. Each becomes at most one log line and some metrics, in one place.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A request was answered, or given up by its client.
    Answered(&'a Exchange<'a>),
    /// A call to the store was answered.
    StoreAnswered {
        /// How long it took.
        took: Duration,
    },
    /// A call to the store failed.
    StoreFailed(FaultKind),
    /// The store can be used.
    StoreConnected,
    /// The store can't be used: from now on memory decides.
    StoreLost(&'a Fault),
    /// An attempt to connect failed.
    StoreUnreachable(&'a Fault),
    /// The store is wanted and none is configured.
    StoreNotConfigured,
    /// This is in force from the start.
    RolloutInForce(InForce),
    /// An operator went back to memory.
    RolledBack,
    /// Another percentage is in force.
    RolloutChanged {
        /// What was in force.
        from: InForce,
        /// What is.
        to: InForce,
        /// Who asked for it.
        actor: &'a str,
        /// Why.
        reason: &'a str,
    },
    /// An upstream could not be reached, or broke off.
    UpstreamFailed {
        /// What went wrong, without the upstream's address.
        detail: &'a str,
    },
    /// An answer told another cost than was charged, and it was settled.
    CostSettled(Outcome),
    /// An answer told a cost that is none. It was passed over.
    CostMalformed {
        /// What it said, cut short.
        value: &'a str,
    },
    /// Somebody knocked at the admin listener with a wrong token.
    AdminRefused {
        /// From where.
        peer: Option<IpAddr>,
    },
}

/// Who made an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The limiter: a denial.
    Limiter,
    /// This process otherwise: its own pages, a client's bad request, an upstream out of reach.
    Gateway,
    /// The upstream.
    Upstream,
}

impl Origin {
    /// The word of the contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Limiter => "limiter",
            Self::Gateway => "gateway",
            Self::Upstream => "upstream",
        }
    }
}

/// One request and its answer.
#[derive(Debug)]
pub struct Exchange<'a> {
    /// The request's id, as in its span.
    pub request_id: &'a str,
    /// The method.
    pub method: &'a str,
    /// The path, without the query.
    pub path: &'a str,
    /// The client's address.
    pub client: Option<IpAddr>,
    /// The status of the answer; 499 when the client left before there was one.
    pub status: u16,
    /// From the head of the request to the end of the answer.
    pub took: Duration,
    /// Who made the answer.
    pub origin: Origin,
    /// What was decided; `None` on a page that is not judged.
    pub decision: Option<&'a Decision>,
    /// How long deciding took.
    pub deciding_took: Duration,
}

/// Whoever wants to hear of events. Called on the request's own thread: it must not block.
pub trait Observer: Send + Sync + 'static {
    /// Something happened.
    fn observe(&self, event: &Event<'_>);
}

/// Hears nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {
    fn observe(&self, _: &Event<'_>) {}
}
