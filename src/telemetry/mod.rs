//! Tells. Every log line and every metric is made here: [`Telemetry::observe`] is one match, one arm an event.

mod by_rules;
mod disk;
mod links;
mod metrics;
mod outage;
mod output;
mod panics;
mod parts;
mod reloads;
mod request_line;
mod root_span;
#[cfg(feature = "otel")]
mod spans;

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
pub use metrics::{Exposition, Scraped};
pub use output::{Flush, Format, Output};
pub use panics::log_panics;
pub use request_line::RequestLines;
pub use root_span::RootSpan;
#[cfg(feature = "otel")]
pub use spans::{Export, Spans};

use crate::limiter::Held;
use crate::limiter::breaker;
use crate::limiter::clock::Clock;
use crate::limiter::decision::Decision;
use crate::limiter::event::{Event, Observer};
use crate::limiter::exposure::Exposure;
use crate::limiter::policy::Rules;
use crate::limiter::store::Fault;
use links::Links;
use metrics::Metrics;
use outage::{Back, Outages, Sparing};
use parts::Parts;

/// What is told, and how.
pub struct Options {
    /// Request lines; none when they are switched off.
    pub request_lines: Option<RequestLines>,
    /// Whether this is production: an outage is an error there, a warning elsewhere.
    pub production: bool,
    /// The shortest time between two lines about Redis being away.
    pub warn_interval: Duration,
    /// Whether a shared store is configured.
    pub redis: bool,
    /// Whether it is known how many commands a day its plan allows.
    pub redis_per_day: bool,
    /// Whether the main listener shows a certificate.
    pub tls: bool,
    /// Counts what Redis really decides of the canary, by this clock.
    pub exposure: Arc<Exposure>,
    /// The limiter's.
    pub clock: Clock,
    /// Where spans of requests go, if anywhere.
    #[cfg(feature = "otel")]
    pub spans: Option<Spans>,
}

/// The one who writes down what happens.
pub struct Telemetry {
    options: Options,
    output: Output,
    metrics: Metrics,
    outages: Outages,
    /// What is said of the link to Redis while it is in use.
    links: Links,
    /// And of a part of it that is away.
    parts: Parts,
    /// Keep what an outage of the upstream, or somebody who guesses, writes to a line a second.
    upstream: Sparing,
    refusals: Sparing,
    forbidden: Sparing,
    costs: Sparing,
    disputed: Sparing,
}

impl Telemetry {
    /// Writes to `output`.
    pub fn new(options: Options, output: Output, rules: Arc<Rules>) -> Self {
        Self {
            metrics: Metrics::new(rules, options.redis, options.redis_per_day, options.tls),
            outages: Outages::new(options.warn_interval),
            links: Links::new(options.warn_interval),
            parts: Parts::new(options.warn_interval),
            upstream: Sparing::new(Duration::from_secs(1)),
            refusals: Sparing::new(Duration::from_secs(1)),
            forbidden: Sparing::new(Duration::from_secs(1)),
            costs: Sparing::new(Duration::from_secs(1)),
            disputed: Sparing::new(options.warn_interval),
            output,
            options,
        }
    }

    /// Everything that Prometheus is told.
    pub fn scrape(
        &self,
        held: Held,
        redis_in_flight: u32,
        redis_spent: (u64, Option<u64>),
        certificate_ends: Option<u64>,
        signature_checks: u64,
        exposition: Exposition,
    ) -> String {
        let exposure = self.options.exposure.ratio(self.options.clock.now());
        let lines_dropped = self.output.dropped();
        let scraped = Scraped {
            held,
            redis_in_flight,
            lines_dropped,
            exposure,
            redis_spent,
            certificate_ends,
            signature_checks,
        };
        self.metrics.print(scraped, exposition)
    }

    /// Delivers the spans that wait, if any are kept.
    #[cfg(feature = "otel")]
    pub async fn flush_spans(&self) {
        if let Some(spans) = &self.options.spans {
            spans.flush().await;
        }
    }

    /// Says what the process wants to tell whoever started it.
    pub fn say(&self, line: &str) {
        tracing::info!(target: "tidegate", "{line}");
    }

    /// Says what whoever started it should mend.
    pub fn warn(&self, line: &str) {
        tracing::warn!(target: "tidegate", "{line}");
    }

    /// Says how many lines were dropped since it last said so. Call it every few seconds.
    pub fn tell_of_dropped_lines(&self, told: &mut u64) {
        let dropped = self.output.dropped();
        if dropped > *told {
            let lines = dropped - *told;
            tracing::warn!(target: "tidegate", lines, "log lines were dropped: whoever reads standard output is too slow");
            *told = dropped;
        }
    }

    /// Counts the backend of a decision, with or without a client: clients that leave while Redis hangs must not hide that.
    fn decided(&self, decision: &Decision) {
        self.options.exposure.count(decision, &self.options.clock);
        if decision.fallback().is_some() {
            self.outages.count_request();
        }
    }

    /// Redis is in use by all of its keys: said at the start, and after an outage that was said.
    fn connected(&self) {
        let back = self.outages.back(Instant::now());
        if back != Back::Unsaid {
            tracing::info!(target: "tidegate", "✅ Redis rate limiting backend connected");
        }
        if let Back::After(lasted, requests) = back {
            let seconds = lasted.as_secs_f64();
            tracing::info!(
                target: "tidegate",
                "Redis decides again: it was away for {seconds:.1} s, in which memory decided {requests} requests"
            );
        }
    }

    /// Redis can't be used: said at once, then at most once per interval.
    fn degraded(&self, fault: &Fault) {
        let Some(unsaid) = self.outages.away(Instant::now()) else { return };
        let (outages_unsaid, requests_unsaid) = (unsaid.outages, unsaid.requests);
        let (error_kind, detail) = (fault.kind.as_str(), &*fault.detail);
        if self.options.production {
            tracing::error!(
                target: "tidegate", error_kind, detail, outages_unsaid, requests_unsaid,
                "💥 PRODUCTION DEGRADED: Redis unavailable. Using in-memory fallback (single-instance only)."
            );
        } else {
            tracing::warn!(
                target: "tidegate", outages_unsaid, requests_unsaid,
                "⚠️  Development: Using in-memory rate limiting. Redis: [{error_kind}: {detail}]"
            );
        }
    }
}

impl Observer for Telemetry {
    fn observe(&self, event: &Event<'_>) {
        match event {
            Event::Answered(exchange) => {
                self.metrics.answered(exchange);
                exchange.decision.inspect(|decision| self.decided(decision));
                #[cfg(feature = "otel")]
                if let Some(spans) = &self.options.spans {
                    spans.tell(exchange);
                }
                if let Some(lines) = &self.options.request_lines {
                    lines.write(exchange, &self.output);
                }
            }
            Event::DecidedWithoutClient(decision) => {
                self.metrics.decided_without_client(*decision);
                decision.inspect(|decision| self.decided(decision));
            }
            Event::StoreAnswered { took } => self.metrics.store_answered(*took),
            Event::StoreFailed(kind) => self.metrics.store_failed(*kind),
            Event::StoreConnecting(connecting) => self.metrics.link().connecting(*connecting),
            Event::StoreWarming { lasts } => {
                self.metrics.link().is(breaker::State::HalfOpen);
                if self.outages.warming() {
                    let seconds = lasts.as_secs_f64();
                    tracing::info!(
                        target: "tidegate",
                        "Redis works again: within {seconds} s it decides for all of its keys, some of them first"
                    );
                }
            }
            Event::StoreConnected => {
                self.metrics.link().is(breaker::State::Closed);
                self.connected();
            }
            Event::StoreDisconnected => self.metrics.link().disconnected(),
            Event::StoreReplaced(why) => {
                self.metrics.link().replaced(*why);
                self.links.replaced(*why);
            }
            Event::StoreSwitched { to } => links::switched(to),
            Event::StoreUnfollowed(fault) => links::unfollowed(fault),
            Event::StoreRefusedCall(fault) => self.links.refused_call(fault, Instant::now()),
            Event::StoreSlow { took, timeout } => links::slow(*took, *timeout),
            Event::StoreLoginRefused(fault) => links::login_refused(fault),
            Event::StoreLoginUnreadable { detail } => tracing::warn!(
                target: "tidegate", detail,
                "a file of the login to Redis is of no use now; what it held before stays in use"
            ),
            Event::StoreLost(fault) => {
                self.metrics.link().is(breaker::State::Open);
                self.links.away();
                self.degraded(fault);
            }
            Event::StoreUnreachable(fault) => self.degraded(fault),
            Event::StorePartLost { node, percent, fault } => self.parts.lost(node, *percent, fault),
            Event::StorePartBack { node, percent, lasted } => self.parts.back(node, *percent, *lasted),
            Event::StoreNodes { worst, connections, nodes } => {
                self.metrics.link().are(*worst, *connections, *nodes);
            }
            Event::StoreClockSet { by } => self.links.clock_set(*by, Instant::now()),
            Event::StoreRemark(words) => self.say(words),
            Event::StoreWarning(words) => self.warn(words),
            Event::ChargeReturned(outcome) => self.metrics.settlements.returned(*outcome),
            Event::StoreAllowanceNearlySpent { today, per_day, exhausted_at } => {
                let end = exhausted_at.and_then(|at| DateTime::<Utc>::from_timestamp_micros(at as i64));
                let end = end.map_or("not today".to_owned(), |at| at.format("%H:%M UTC").to_string());
                tracing::warn!(
                    target: "tidegate", today, per_day, exhausted_at = end,
                    "most of the Redis commands that redis.commands_per_day allows today are spent; when they are used up, memory decides"
                );
            }
            Event::StoreNotConfigured => self.degraded(&Fault::new(
                crate::limiter::store::FaultKind::Open,
                "RATE_LIMIT_BACKEND is redis and REDIS_URL is not set",
            )),
            Event::RolloutInForce(in_force) => self.metrics.in_force(*in_force),
            Event::RolloutChanged { from, to, actor, reason, source } => {
                self.metrics.in_force(*to);
                tracing::info!(
                    target: "tidegate", actor, reason, revision = to.revision, source,
                    "rollout: {} % → {} % of the keys in Redis", from.percent, to.percent
                );
            }
            Event::RolloutAnnounced { to, after, actor, reason, source } => tracing::info!(
                target: "tidegate", actor, reason, revision = to.revision, source,
                "rollout: {} % of the keys in Redis is announced, in force in {:.1} s", to.percent, after.as_secs_f64()
            ),
            Event::DiskFailed { detail } => disk::failed(detail),
            Event::DiskBack { place, after } => disk::back(place, *after),
            Event::DiskShared { place } => disk::shared(place),
            Event::OverridesUnreadable { place, count } => disk::unreadable(place, *count),
            Event::AuditLost { rows } => disk::lost(*rows),
            Event::RolledBack(cause) => self.metrics.rolled_back(*cause),
            Event::RulesComing(rules) => self.metrics.follow(rules),
            Event::Reloaded(reload) => {
                self.metrics.reloaded(reload);
                reloads::tell(reload);
            }
            Event::Keys(fetch) => reloads::keys(fetch),
            Event::NotWatching { detail } => tracing::warn!(
                target: "tidegate", detail,
                "changes of the policy file are not noticed by themselves; SIGHUP and POST /admin/reload still read it"
            ),
            Event::UpstreamFailed { detail } => {
                if let Some(unsaid) = self.upstream.say(Instant::now()) {
                    tracing::warn!(target: "tidegate", detail, unsaid, "the upstream failed");
                }
            }
            Event::ConnectionUpgraded { open: true } => drop(self.metrics.upgraded.inc()),
            Event::ConnectionUpgraded { open: false } => drop(self.metrics.upgraded.dec()),
            Event::CostSettled(outcome) => self.metrics.settlements.settled(*outcome),
            Event::CostMalformed { value } => {
                self.metrics.settlements.malformed();
                if let Some(unsaid) = self.costs.say(Instant::now()) {
                    tracing::warn!(
                        target: "tidegate", value, unsaid,
                        "the upstream told a cost that is none, and it was passed over; accepted: one whole number"
                    );
                }
            }
            Event::ClientDisputed { counted } => {
                self.metrics.disputed.inc();
                if let Some(unsaid) = self.disputed.say(Instant::now()) {
                    tracing::warn!(
                        target: "tidegate", %counted, unsaid,
                        "X-Forwarded-For and Forwarded of a trusted proxy name different clients, or hide the client: such requests \
                         are counted by the proxy's address, and exempt from no limit. Set server.client_ip_header to the header \
                         that the proxies write, or have them drop the other one"
                    );
                }
            }
            Event::AdminForbidden { peer, actor, needs } => {
                let peer = peer.map(tracing::field::display);
                if let Some(unsaid) = self.forbidden.say(Instant::now()) {
                    tracing::warn!(target: "tidegate", peer, actor, needs, unsaid, "a token of the admin listener is not good for what it was used for");
                }
            }
            Event::AdminRefused { peer } => {
                let peer = peer.map(tracing::field::display);
                if let Some(unsaid) = self.refusals.say(Instant::now()) {
                    tracing::warn!(target: "tidegate", peer, unsaid, "wrong or missing token at the admin listener");
                }
            }
        }
    }
}
