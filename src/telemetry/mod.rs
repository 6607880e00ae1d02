//! Tells. Every log line and every metric is made here: [`Telemetry::observe`] is one match, one arm an event.

mod metrics;
mod outage;
mod output;
mod request_line;
mod root_span;

use std::sync::Arc;
use std::time::Duration;

pub use metrics::Scraped;
pub use output::{Flush, Format, Output};
pub use request_line::RequestLines;
pub use root_span::RootSpan;

use crate::limiter::event::{Event, Observer};
use crate::limiter::policy::Rules;
use crate::limiter::store::Fault;
use metrics::Metrics;
use outage::Outages;

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
}

/// The one who writes down what happens.
pub struct Telemetry {
    options: Options,
    output: Output,
    metrics: Metrics,
    outages: Outages,
    /// Keep what an outage of the upstream, its bad costs, or somebody who guesses, writes to a line a second.
    upstream: Outages,
    refusals: Outages,
    costs: Outages,
}

impl Telemetry {
    /// Writes to `output`.
    pub fn new(options: Options, output: Output, rules: Arc<Rules>) -> Self {
        Self {
            metrics: Metrics::new(rules, options.redis),
            outages: Outages::new(options.warn_interval),
            upstream: Outages::new(Duration::from_secs(1)),
            refusals: Outages::new(Duration::from_secs(1)),
            costs: Outages::new(Duration::from_secs(1)),
            output,
            options,
        }
    }

    /// Everything that Prometheus is told.
    pub fn scrape(&self, memory_keys: usize) -> String {
        self.metrics.print(Scraped { memory_keys, lines_dropped: self.output.dropped() })
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

    /// Redis can't be used: said at once, then at most once per interval.
    fn degraded(&self, fault: &Fault) {
        let Some(unsaid) = self.outages.began() else { return };
        let (error_kind, detail) = (fault.kind.as_str(), &*fault.detail);
        if self.options.production {
            tracing::error!(
                target: "tidegate", error_kind, detail, unsaid,
                "💥 PRODUCTION DEGRADED: Redis unavailable. Using in-memory fallback (single-instance only)."
            );
        } else {
            tracing::warn!(
                target: "tidegate", unsaid,
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
                if exchange.decision.is_some_and(|decision| decision.fallback().is_some()) {
                    self.outages.count_request();
                }
                if let Some(lines) = &self.options.request_lines {
                    lines.write(exchange, &self.output);
                }
            }
            Event::StoreAnswered { took } => self.metrics.store_answered(*took),
            Event::StoreFailed(kind) => self.metrics.store_failed(*kind),
            Event::StoreConnected => {
                self.metrics.store_up(true);
                tracing::info!(target: "tidegate", "✅ Redis rate limiting backend connected");
                if let Some((lasted, requests)) = self.outages.ended() {
                    let seconds = lasted.as_secs_f64();
                    tracing::info!(
                        target: "tidegate",
                        "Redis decides again: it was away for {seconds:.1} s, in which memory decided {requests} requests"
                    );
                }
            }
            Event::StoreLost(fault) => {
                self.metrics.store_up(false);
                self.degraded(fault);
            }
            Event::StoreUnreachable(fault) => self.degraded(fault),
            Event::StoreNotConfigured => self.degraded(&Fault::new(
                crate::limiter::store::FaultKind::Open,
                "RATE_LIMIT_BACKEND is redis and REDIS_URL is not set",
            )),
            Event::RolloutInForce(in_force) => self.metrics.in_force(*in_force),
            Event::RolloutChanged { from, to, actor, reason } => {
                self.metrics.in_force(*to);
                tracing::info!(
                    target: "tidegate", actor, reason, revision = to.revision,
                    "rollout: {} % → {} % of the keys in Redis", from.percent, to.percent
                );
            }
            Event::RolledBack => self.metrics.rolled_back(),
            Event::UpstreamFailed { detail } => {
                if let Some(unsaid) = self.upstream.began() {
                    tracing::warn!(target: "tidegate", detail, unsaid, "the upstream failed");
                }
            }
            Event::CostSettled(outcome) => self.metrics.settlements.settled(*outcome),
            Event::CostMalformed { value } => {
                self.metrics.settlements.malformed();
                if let Some(unsaid) = self.costs.began() {
                    tracing::warn!(
                        target: "tidegate", value, unsaid,
                        "the upstream told a cost that is none, and it was passed over; accepted: one whole number"
                    );
                }
            }
            Event::AdminRefused { peer } => {
                let peer = peer.map(tracing::field::display);
                if let Some(unsaid) = self.refusals.began() {
                    tracing::warn!(target: "tidegate", peer, unsaid, "wrong or missing token at the admin listener");
                }
            }
        }
    }
}
