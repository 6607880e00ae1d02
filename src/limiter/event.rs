//! What happens that somebody may want to hear of. The limiter and the doors say it, telemetry writes it down.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::clock::Micros;
use super::decision::Decision;
use super::policy::Rules;
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
    /// A fresh connection to the store is being made and proven, or no longer is.
    StoreConnecting(bool),
    /// The store was away and works again: it decides for a growing share of its subjects, and for all of them when
    /// this time is over.
    StoreWarming {
        /// How long the warm-up takes.
        lasts: Duration,
    },
    /// The store can be used.
    StoreConnected,
    /// The other side has closed the connection to the store. A fresh one is made before that is called an outage.
    StoreDisconnected,
    /// A fresh connection took the place of another, and nobody needs to do anything.
    StoreReplaced(Replaced),
    /// A call failed, and the breaker stays closed.
    StoreRefusedCall(&'a Fault),
    /// Probes of the store take longer than a request waits for it.
    StoreSlow {
        /// The longest of a few.
        took: Duration,
        /// How long a request waits.
        timeout: Duration,
    },
    /// The store does not let in the login that its files hold by now; the one before stays in use.
    StoreLoginRefused(&'a Fault),
    /// The files of the store's login are of no use by now; what they held before stays in use.
    StoreLoginUnreadable {
        /// Which file, and why, without anything of what it holds.
        detail: &'a str,
    },
    /// The store can't be used: from now on memory decides.
    StoreLost(&'a Fault),
    /// An attempt to connect failed.
    StoreUnreachable(&'a Fault),
    /// Most of what the provider allows a day is spent.
    StoreAllowanceNearlySpent {
        /// Commands today.
        today: u64,
        /// Commands that are allowed.
        per_day: u64,
        /// When they are used up at the pace of today, in microseconds since the epoch; `None`: not today.
        exhausted_at: Option<Micros>,
    },
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
    /// These rules are about to be in force. Whoever keeps tables by policy makes them now: the first request that is
    /// judged by them should not wait for it.
    RulesComing(&'a Arc<Rules>),
    /// Files were read again.
    Reloaded(&'a Reload<'a>),
    /// Changes of files can't be noticed by themselves.
    NotWatching {
        /// Why, and where.
        detail: &'a str,
    },
    /// An upstream could not be reached, or broke off.
    UpstreamFailed {
        /// What went wrong, without the upstream's address.
        detail: &'a str,
    },
    /// A connection has changed to another protocol, or such a one has ended.
    ConnectionUpgraded {
        /// Whether it has changed just now.
        open: bool,
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

/// Why one connection took the place of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replaced {
    /// Its calls timed out too often.
    Slow,
    /// It was closed or broke, under so many calls.
    Lost {
        /// How many, 0 when it was idle.
        calls: u32,
    },
    /// The login has changed.
    Login,
}

impl Replaced {
    /// The word of the metric.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Slow => "slow",
            Self::Lost { .. } => "lost",
            Self::Login => "login",
        }
    }
}

/// One reading of the files that can be read again.
#[derive(Clone, Copy, Debug)]
pub struct Reload<'a> {
    /// What led to it, in words.
    pub cause: &'a str,
    /// Who asked for it, by a name that gives no token away; `None` when nobody did, or nobody knows.
    pub actor: Option<&'a str>,
    /// Whether somebody waits for a word, even when nothing has changed.
    pub asked: bool,
    /// What came of it.
    pub outcome: Reloaded<'a>,
    /// What is allowed and still worth a word, one line each.
    pub warnings: &'a [String],
}

/// What came of a reload.
#[derive(Clone, Copy, Debug)]
pub enum Reloaded<'a> {
    /// Something else is in force, one line a source.
    Applied(&'a [String]),
    /// The files hold what is in force.
    Unchanged(&'a [String]),
    /// Something is wrong in a file, so nothing was changed.
    Failed {
        /// Everything that is wrong, one line each.
        errors: &'a [String],
        /// What stays in force, one line a source.
        still: &'a [String],
        /// Whether all of it was said before, about the same contents.
        again: bool,
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
