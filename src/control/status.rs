//! How things stand, gathered from whoever knows.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;

use super::database::DiskFault;
use super::figures::{self, Figures};
use super::fleet::FleetView;
use super::record::{Environment, LostRaise, LostRaiseView, Record, RecordView};
use super::reload_api::PoliciesStatus;
use super::standing::Standing;
use super::tokens::Bearer;
use crate::doors::health::Readiness;
use crate::limiter::breaker::State;
use crate::limiter::clock::Micros;
use crate::limiter::rollout::Percent;
use crate::limiter::{Held, Limiter};
use crate::redis::target::Protocol;
use crate::redis::{LinkState, NodeState, RedisStore, Spending};

/// Where `/metrics` comes from.
pub type Scrape = Box<dyn Fn(Held, u32, Option<Spending>, bool) -> String + Send + Sync>;

/// Knows whom to ask.
pub struct Status {
    limiter: Arc<Limiter<RedisStore>>,
    scrape: Scrape,
    started: Instant,
    started_at: DateTime<Utc>,
}

/// The store in the admin API's words.
#[derive(Debug, Serialize)]
pub struct RedisView {
    configured: bool,
    /// The breaker's: `closed` (Redis is asked), `half_open` (for a growing share of its keys), `open` (it is not
    /// asked); or `not_configured`.
    state: &'static str,
    since: Option<String>,
    /// Milliseconds until it is tried again; `null` while it is in use or being tried.
    next_probe_in_ms: Option<u64>,
    last_error_kind: Option<&'static str>,
    last_error: Option<String>,
    address: Option<String>,
    /// The master in use, where sentinels name it.
    master: Option<String>,
    /// What is spent of the day's commands; `null` without Redis.
    commands: Option<CommandsView>,
    /// `resp2` or `resp3`, as the connection in use has agreed on.
    protocol: Option<&'static str>,
    /// How long the last probe took, in milliseconds.
    probe_ms: Option<f64>,
    /// Calls under way.
    in_flight: u32,
    /// Of a cluster its nodes; `null` of one server.
    nodes: Option<Vec<NodeView>>,
}

/// A node of a cluster in the admin API's words.
#[derive(Debug, Serialize)]
struct NodeView {
    address: String,
    /// How much of all slots it serves.
    slots_percent: f64,
    /// As `state` above.
    state: &'static str,
    since: String,
    next_probe_in_ms: Option<u64>,
    last_error_kind: Option<&'static str>,
    last_error: Option<String>,
    probe_ms: Option<f64>,
    in_flight: u32,
}

impl From<NodeState> for NodeView {
    fn from(NodeState { address, percent, link, in_flight }: NodeState) -> Self {
        let until = |at: Micros| at.saturating_sub(Utc::now().timestamp_micros().max(0) as Micros) / 1_000;
        Self {
            address,
            slots_percent: (percent * 10.0).round() / 10.0,
            state: link.breaker.as_str(),
            since: time(link.since),
            next_probe_in_ms: link.next_probe.map(until),
            last_error_kind: link.last_fault.as_ref().map(|fault| fault.kind.as_str()),
            last_error: link.last_fault.map(|fault| fault.detail.into()),
            probe_ms: link.probe_took.map(milliseconds),
            in_flight,
        }
    }
}

fn milliseconds(took: Duration) -> f64 {
    took.as_micros() as f64 / 1_000.0
}

/// The commands of a day in the admin API's words.
#[derive(Debug, Serialize)]
struct CommandsView {
    /// Sent by this instance since midnight UTC, as the provider counts them (`redis.billed_per_call`).
    today: u64,
    /// What `redis.commands_per_day` allows it; `null`: nobody says.
    per_day: Option<u64>,
    /// When they are used up at the pace of today; `null`: not today, or it is too early to say.
    exhausted_at: Option<String>,
}

/// The memory store in the admin API's words.
#[derive(Debug, Serialize)]
struct MemoryView {
    keys: usize,
    max_keys: usize,
    evicted_in_debt: u64,
}

/// The share of a limit in the admin API's words.
#[derive(Debug, Serialize)]
struct ShareView {
    share: f64,
    /// See [`ShareSource`](crate::limiter::share::ShareSource).
    source: &'static str,
}

/// Everything.
#[derive(Serialize)]
pub struct StatusView<'a> {
    version: &'static str,
    started_at: String,
    uptime_seconds: u64,
    /// What is in force and why, in words.
    standing: Standing,
    rollout: RecordView<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lost_raise: Option<LostRaiseView<'a>>,
    /// For `If-Match`: the tag of the record above.
    etag: String,
    percent_in_force: f64,
    pinned_by_env: bool,
    disabled_by_env: Option<&'static str>,
    effective_backend: &'static str,
    redis: RedisView,
    memory: MemoryView,
    policies: PoliciesStatus,
    /// How many keys are shut out by a penalty.
    blocked_keys: usize,
    /// What of a limit this instance serves while Redis is away.
    fallback_share: ShareView,
    /// What keeps the rollout's record and the audit trail.
    database: DatabaseView,
    /// Every instance, as far as this one knows.
    fleet: FleetView,
    /// How many requests the percentage in force is of.
    requests: RequestsView,
    /// Share of the canary's decisions of the last minute that Redis made; `null`: there were none.
    exposure: Option<f64>,
    /// Who asks, and what for; left out of a snapshot that several share.
    #[serde(skip_serializing_if = "Option::is_none")]
    caller: Option<CallerView>,
    /// Figures of `/metrics`, with policies added up.
    figures: Figures,
}

/// The requests of the last minutes in the admin API's words.
#[derive(Debug, Serialize)]
struct RequestsView {
    samples: u64,
    minutes: f64,
    /// Which share of them the rollout means for Redis, 0 to 1; `null`: there were none.
    share: Option<f64>,
}

/// The bearer of the token.
#[derive(Debug, Serialize)]
pub struct CallerView {
    name: String,
    scope: &'static str,
}

impl CallerView {
    /// Of a bearer.
    pub(super) fn of(bearer: &Bearer) -> Self {
        Self { name: bearer.name.clone(), scope: bearer.scope.as_str() }
    }
}

/// What others know.
pub struct Around<'a> {
    /// The record.
    pub record: &'a Record,
    /// A raise of this instance that lost.
    pub lost: Option<&'a LostRaise>,
    /// What this process was started with.
    pub environment: Environment,
    /// Of the fleet's clock.
    pub now: Micros,
    /// The disk.
    pub database: DatabaseView,
    /// Share of the canary's decisions of the last minute that Redis made.
    pub exposure: Option<f64>,
    /// Every instance.
    pub fleet: FleetView,
    /// The policies in force.
    pub policies: PoliciesStatus,
    /// Who asks; `None`: several do.
    pub caller: Option<CallerView>,
}

/// The disk in the admin API's words.
#[derive(Debug, Serialize)]
pub struct DatabaseView {
    place: String,
    /// `ok`, or `away`: what changes is kept in memory until it works again.
    state: &'static str,
    trouble: Option<String>,
}

impl DatabaseView {
    /// Of what is wrong with it, if anything is.
    pub(super) fn new(place: String, trouble: Option<&DiskFault>) -> Self {
        let state = if trouble.is_some() { "away" } else { "ok" };
        Self { place, state, trouble: trouble.map(ToString::to_string) }
    }

    /// What is wrong with it.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.clone()
    }
}

impl Status {
    /// Asks `limiter` and `scrape`, which is given what the limiter holds, how many calls to Redis are under way, what is
    /// spent of its commands, and whether OpenMetrics is wanted.
    pub fn new(limiter: Arc<Limiter<RedisStore>>, scrape: Scrape) -> Self {
        Self { limiter, scrape, started: Instant::now(), started_at: Utc::now() }
    }

    /// The limiter.
    pub(super) fn limiter(&self) -> &Arc<Limiter<RedisStore>> {
        &self.limiter
    }

    /// What Prometheus is told, in OpenMetrics or in its own text format.
    pub fn scrape(&self, open_metrics: bool) -> String {
        let in_flight = self.limiter.store().map_or(0, RedisStore::in_flight);
        let spending = self.limiter.store().map(RedisStore::spending);
        (self.scrape)(self.limiter.held(), in_flight, spending, open_metrics)
    }

    /// The store.
    pub fn redis(&self) -> RedisView {
        let Some(store) = self.limiter.store() else {
            return RedisView {
                configured: false,
                state: "not_configured",
                since: None,
                next_probe_in_ms: None,
                last_error_kind: None,
                last_error: None,
                address: None,
                master: None,
                commands: None,
                protocol: None,
                probe_ms: None,
                in_flight: 0,
                nodes: None,
            };
        };
        let LinkState { breaker, since, last_fault, protocol, master, probe_took, .. } = store.state();
        let Spending { today, per_day, exhausted_at } = store.spending();
        RedisView {
            configured: true,
            state: breaker.as_str(),
            since: Some(time(since)),
            next_probe_in_ms: store.next_probe_in().map(|wait| wait.as_millis() as u64),
            last_error_kind: last_fault.as_ref().map(|fault| fault.kind.as_str()),
            last_error: last_fault.map(|fault| fault.detail.into()),
            address: Some(store.target().to_string()),
            master,
            commands: Some(CommandsView { today, per_day, exhausted_at: exhausted_at.map(time) }),
            protocol: protocol.map(Protocol::as_str),
            probe_ms: probe_took.map(milliseconds),
            in_flight: store.in_flight(),
            nodes: store.nodes().map(|nodes| nodes.into_iter().map(NodeView::from).collect()),
        }
    }

    /// How much of its keys Redis decides, in percent, where that is a cluster of which some nodes are away.
    pub(super) fn part_in_use(&self) -> Option<f64> {
        let nodes = self.limiter.store()?.nodes()?;
        let closed = nodes.iter().filter(|node| node.link.breaker == State::Closed);
        let percent = closed.map(|node| node.percent).sum::<f64>().min(100.0);
        (percent > 0.0).then_some(percent)
    }

    /// Who decides for the keys of the canary right now.
    pub fn effective_backend(&self) -> &'static str {
        let in_use = self.limiter.store().is_some_and(RedisStore::is_in_use) || self.part_in_use().is_some();
        let wanted = self.limiter.rollout().in_force().percent > Percent::NONE;
        if in_use && wanted { "redis" } else { "memory" }
    }

    /// Whether there is a store, and it decides nothing at the moment.
    pub(super) fn redis_away(&self) -> bool {
        let store = self.limiter.store();
        store.is_some_and(|store| !store.is_in_use()) && self.part_in_use().is_none()
    }

    /// The share that is in force here.
    pub fn percent_in_force(&self) -> f64 {
        self.limiter.rollout().in_force().percent.as_f64()
    }

    /// Whether it can decide: always. Who does, and why, for `/readyz`.
    pub fn readiness(&self) -> Readiness {
        let percent = self.limiter.rollout().in_force().percent;
        let link = self.limiter.store().map(RedisStore::state);
        let redis = link.as_ref().map(|link| link.breaker.as_str());
        let reason = match link {
            None => "no Redis is in use: every key is decided in memory".to_owned(),
            Some(_) if percent == Percent::NONE => {
                "0 % of the keys are to be decided by Redis: every key is decided in memory".to_owned()
            }
            Some(LinkState { breaker: State::Closed, .. }) => {
                format!("Redis decides {percent} % of the keys")
            }
            Some(_) if let Some(part) = self.part_in_use() => {
                format!(
                    "degraded: nodes of the Redis Cluster are away, {part:.0} % of Redis' keys are decided by it"
                )
            }
            Some(LinkState { breaker: State::HalfOpen, .. }) => {
                "degraded: Redis is back and warms up, some of its keys are still decided in memory"
                    .to_owned()
            }
            Some(LinkState { last_fault, .. }) => {
                let why = last_fault.map_or("not connected yet", |fault| fault.kind.as_str());
                format!("degraded: Redis is away ({why}), its keys are decided in memory")
            }
        };
        Readiness { backend: self.effective_backend(), redis, reason }
    }

    /// Everything.
    pub fn view<'a>(&self, around: Around<'a>) -> StatusView<'a> {
        let standing = self.standing(&around);
        let Around { record, lost, environment, database, exposure, fleet, policies, caller, .. } = around;
        let memory = self.limiter.memory();
        let (share, source) = self.limiter.share_and_source();
        StatusView {
            version: env!("CARGO_PKG_VERSION"),
            started_at: self.started_at.to_rfc3339_opts(SecondsFormat::Millis, true),
            uptime_seconds: self.started.elapsed().as_secs(),
            standing,
            rollout: RecordView::from(record),
            lost_raise: lost.map(LostRaiseView::from),
            etag: record.etag(),
            percent_in_force: self.percent_in_force(),
            pinned_by_env: environment.pinned,
            disabled_by_env: environment.hard_off,
            effective_backend: self.effective_backend(),
            redis: self.redis(),
            memory: MemoryView {
                keys: memory.len(),
                max_keys: memory.capacity(),
                evicted_in_debt: memory.evicted_in_debt(),
            },
            policies,
            blocked_keys: self.limiter.held().blocked,
            fallback_share: ShareView { share: share.as_f64(), source: source.as_str() },
            database,
            fleet,
            requests: self.requests(),
            exposure,
            caller,
            figures: figures::of_scrape(&self.scrape(false)),
        }
    }

    /// What the share in force is of the requests of the last minutes.
    fn requests(&self) -> RequestsView {
        let in_force = self.limiter.rollout().in_force().percent;
        let moved = self.limiter.moved(Percent::NONE, in_force);
        let share = (moved.samples > 0).then(|| moved.moving / moved.samples as f64);
        RequestsView {
            samples: moved.samples,
            minutes: (moved.over as f64 / 6_000_000.0).round() / 10.0,
            share: share.map(|share| (share * 10_000.0).round() / 10_000.0),
        }
    }
}

pub(super) fn time(at: Micros) -> String {
    let time = DateTime::<Utc>::from_timestamp_micros(at as i64).unwrap_or_default();
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}
