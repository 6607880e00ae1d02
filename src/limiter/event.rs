//! What happens that somebody may want to hear of. The limiter and the doors say it, telemetry writes it down.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::breaker;
use super::clock::Micros;
use super::decision::Decision;
use super::policy::Rules;
use super::rollout::InForce;
use super::settle::Outcome;
use super::store::{Fault, FaultKind};
use super::token::{KeysFetch, TokenOutcome};

/// Why everything went back to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RollbackCause {
    /// Somebody asked for it.
    Operator,
    /// A deploy changed the environment.
    Environment,
    /// It had been asked for before it was known what others had raised: so it was done once more, above that.
    Stands,
}

impl RollbackCause {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Operator, Self::Environment, Self::Stands];

    /// As the metric has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Environment => "environment",
            Self::Stands => "stands",
        }
    }
}

/// A happening. Each becomes at most one log line and some metrics, in one place.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A request was answered, or given up by its client.
    Answered(&'a Exchange<'a>),
    /// The client of a decision disconnected while the store was asked, and the decision was made without it. `None`: it was
    /// dropped unmade, because too many such were under way.
    DecidedWithoutClient(Option<&'a Decision>),
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
    /// Those who know say that another server is the store's master.
    StoreSwitched {
        /// Where it is.
        to: &'a str,
    },
    /// None of those who know the store's master can be listened to: another master would be found by calls that fail.
    StoreUnfollowed(&'a Fault),
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
    /// A part of the store can't be used: from now on memory decides for its share of the keys.
    StorePartLost {
        /// Which node, by its address.
        node: &'a str,
        /// How much of all slots it served.
        percent: f64,
        /// Why.
        fault: &'a Fault,
    },
    /// The store decides for that share of the keys again.
    StorePartBack {
        /// Which node had served it.
        node: &'a str,
        /// How much of all slots it was.
        percent: f64,
        /// How long memory decided.
        lasted: Duration,
    },
    /// The links to the nodes of a store that has several.
    StoreNodes {
        /// The worst of their states.
        worst: breaker::State,
        /// How many connections are in use.
        connections: usize,
        /// How many nodes are in each state.
        nodes: [u32; 3],
    },
    /// The store's clock was set, or this machine's stood still.
    StoreClockSet {
        /// By how many microseconds it is further ahead of this process' clock than before.
        by: i64,
    },
    /// Something about the store that is worth a word.
    StoreRemark(&'a str),
    /// Something about the store that an operator should know of, and may have to act on.
    StoreWarning(&'a str),
    /// What a request had been charged in one place was given back, because another denied it.
    ChargeReturned(Outcome),
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
    /// Everything went back to memory, by a change made on this instance.
    RolledBack(RollbackCause),
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
        /// From where this instance has it: `here`, `disk`, `redis`, `fleet`, `peer`.
        source: &'a str,
    },
    /// Another percentage will be in force.
    RolloutAnnounced {
        /// What will be.
        to: InForce,
        /// In how long.
        after: Duration,
        /// Who asked for it.
        actor: &'a str,
        /// Why.
        reason: &'a str,
        /// From where this instance has it.
        source: &'a str,
    },
    /// The disk that keeps the rollout's record can't be used, for another reason than was known.
    DiskFailed {
        /// The cause, the path, the cure.
        detail: &'a str,
    },
    /// It works again.
    DiskBack {
        /// The path.
        place: &'a str,
        /// How long it could not be used.
        after: Duration,
    },
    /// Another process uses the same file.
    DiskShared {
        /// The path.
        place: &'a str,
    },
    /// Overrides on the disk are sealed with another key than the one beside it.
    OverridesUnreadable {
        /// The path of the database.
        place: &'a str,
        /// How many.
        count: usize,
    },
    /// The disk was away for so long that rows of the audit trail were given up.
    AuditLost {
        /// How many.
        rows: u64,
    },
    /// These rules are about to be in force. Whoever keeps tables by policy makes them now: the first request that is
    /// judged by them should not wait for it.
    RulesComing(&'a Arc<Rules>),
    /// Files were read again.
    Reloaded(&'a Reload<'a>),
    /// The keys that tokens are verified with were fetched, or were not.
    Keys(KeysFetch<'a>),
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
    /// A token of the admin listener was used for something that it is not good for.
    AdminForbidden {
        /// From where.
        peer: Option<IpAddr>,
        /// Whose it is.
        actor: &'a str,
        /// The scope that it would need.
        needs: &'static str,
    },
    /// The proxies' headers name different clients, or hide the client of this request.
    ClientDisputed {
        /// The address that the request is counted by.
        counted: IpAddr,
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
    /// Another server is the master.
    Failover,
}

impl Replaced {
    /// The word of the metric.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Slow => "slow",
            Self::Lost { .. } => "lost",
            Self::Login => "login",
            Self::Failover => "failover",
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
    /// Something is wrong in a file, so nothing was changed but what stands alone.
    Failed {
        /// Everything that is wrong, one line each.
        errors: &'a [String],
        /// What stays in force, one line a source.
        still: &'a [String],
        /// What was changed all the same, one line each.
        changed: &'a [String],
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
    /// What became of its token; `None` where deciding took no claim.
    pub token: Option<TokenOutcome>,
    /// Its place in a distributed trace; `None` where none are kept.
    pub trace: Option<Trace>,
}

/// A request's place in a distributed trace, by the ids of W3C's Trace Context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The whole trace.
    pub trace_id: u128,
    /// This request's own span in it.
    pub span_id: u64,
    /// The span that it belongs to; `None`: the trace begins here.
    pub parent_id: Option<u64>,
    /// Whether it is recorded.
    pub is_sampled: bool,
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
