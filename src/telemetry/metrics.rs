//! The metrics of the contract. Labels come from the configuration, never from traffic; on the hot path each is a
//! handle that is looked up by place.

mod budget_resets;
mod classes;
mod disputed;
mod histogram;
mod limits;
mod overrides;
mod per_rules;
mod policy_decisions;
mod redis_link;
mod remaining;
mod scraped;
mod settlements;
mod text;
mod tokens;
mod without_client;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::by_rules::ByRules;
use super::reloads::Reloads;
use crate::limiter::Held;
use crate::limiter::decision::{Backend, Decision, State};
use crate::limiter::event::{Exchange, Origin, Reload, RollbackCause};
use crate::limiter::policy::Rules;
use crate::limiter::rollout::{Arm, InForce};
use crate::limiter::store::FaultKind;
use budget_resets::BudgetResets;
use classes::{CLASSES, class_of};
use histogram::{DECISION_BUCKETS, Histogram, REQUEST_BUCKETS};
use limits::Limits;
use overrides::Overrides;
use per_rules::{PerRules, for_each_label, labels};
use policy_decisions::PolicyDecisions;
use redis_link::RedisLink;
use remaining::{Family01, Remaining};
pub use scraped::{Exposition, Scraped};
use settlements::Settlements;
use tokens::Tokens;
use without_client::WithoutClient;

pub(super) type Labels = Vec<(&'static str, String)>;

const BACKENDS: [Backend; 2] = [Backend::Memory, Backend::Redis];
const STATES: [State; 3] = [State::Allow, State::Throttle, State::Block];
const ARMS: [Arm; 2] = [Arm::Canary, Arm::Control];
const ORIGINS: [Origin; 3] = [Origin::Limiter, Origin::Gateway, Origin::Upstream];

/// Every metric and the registry that prints them.
pub(super) struct Metrics {
    registry: Registry,
    requests: Family<Labels, Counter>,
    policy_decisions: Family<Labels, Counter>,
    remaining: Family01,
    per_rules: ByRules<PerRules>,
    responses: [[[Counter; 3]; 2]; 7],
    request_seconds: [Histogram; 2],
    decision_seconds: [Histogram; 2],
    command_seconds: Histogram,
    commands: Counter,
    errors: Vec<Counter>,
    fallbacks: Vec<Counter>,
    link: RedisLink,
    limits: Limits,
    percent: Gauge<f64, AtomicU64>,
    revision: Gauge,
    exposure: Gauge<f64, AtomicU64>,
    /// In the order of [`RollbackCause::ALL`].
    rollbacks: [Counter; RollbackCause::ALL.len()],
    memory_keys: Gauge,
    blocked_keys: Gauge,
    budget_resets: BudgetResets,
    lines_dropped: Counter,
    overrides: Overrides,
    tokens: Tokens,
    reloads: Reloads,
    pub(super) settlements: Settlements,
    without_client: WithoutClient,
    /// Requests of clients whose address is in dispute.
    pub(super) disputed: Counter,
    /// Connections that have changed to another protocol.
    pub(super) upgraded: Gauge,
}

impl Metrics {
    /// Registers everything. `redis` says whether a shared store is configured, `per_day` whether its plan is known,
    /// `tls` whether the listener shows a certificate.
    pub(super) fn new(rules: Arc<Rules>, redis: bool, per_day: bool, tls: bool) -> Self {
        let mut registry = Registry::with_prefix("tidegate");
        let requests = Family::<Labels, Counter>::default();
        registry.register("requests", "Requests judged, by who decided and how", requests.clone());

        let policy_decisions = Family::<Labels, Counter>::default();
        registry.register(
            "policy_decisions",
            "What each judged policy came to by itself, whether it binds, is enforced or neither",
            policy_decisions.clone(),
        );

        let remaining = remaining::registered_in(&mut registry);
        let responses = Family::<Labels, Counter>::default();
        registry.register(
            "http_responses",
            "Answers, by status class, arm and who made them",
            responses.clone(),
        );
        let responses = CLASSES.map(|class| {
            ARMS.map(|arm| {
                ORIGINS.map(|origin| {
                    let labels = vec![
                        ("class", class.to_owned()),
                        ("arm", arm.as_str().to_owned()),
                        ("origin", origin.as_str().to_owned()),
                    ];
                    responses.get_or_create_owned(&labels)
                })
            })
        });

        let upgraded = Gauge::default();
        registry.register(
            "upgraded_connections",
            "Connections that have changed to another protocol, such as WebSockets",
            upgraded.clone(),
        );
        let request_seconds =
            Family::<Labels, Histogram>::new_with_constructor(|| Histogram::new(&REQUEST_BUCKETS));
        registry.register(
            "http_request_duration_seconds",
            "Seconds from the head of a request to the end of its answer",
            request_seconds.clone(),
        );
        let decision_seconds =
            Family::<Labels, Histogram>::new_with_constructor(|| Histogram::new(&DECISION_BUCKETS));
        registry.register(
            "decision_duration_seconds",
            "Seconds to decide, by who decided",
            decision_seconds.clone(),
        );
        let command_seconds =
            Family::<Labels, Histogram>::new_with_constructor(|| Histogram::new(&DECISION_BUCKETS));
        registry.register(
            "redis_command_duration_seconds",
            "Seconds until Redis answered a command",
            command_seconds.clone(),
        );
        let commands = Family::<Labels, Counter>::default();
        registry.register("redis_commands", "Commands that Redis answered", commands.clone());
        let errors = Family::<Labels, Counter>::default();
        registry.register("redis_errors", "Failed calls and attempts to connect, by cause", errors.clone());
        let fallbacks = Family::<Labels, Counter>::default();
        registry.register(
            "fallbacks",
            "Requests decided from memory although Redis was wanted, by reason",
            fallbacks.clone(),
        );
        let up = Family::<Labels, Gauge>::default();
        registry.register("backend_up", "Whether a backend can decide: 1 yes, 0 no", up.clone());
        up.get_or_create_owned(&one("backend", "memory")).set(1);
        let link = RedisLink::registered_in(&mut registry, &up, redis);
        let limits = Limits::registered_in(&mut registry, redis, per_day, tls);
        let percent = Gauge::<f64, AtomicU64>::default();
        registry.register(
            "rollout_percent",
            "Share of the keys that Redis is to decide, 0 to 100",
            percent.clone(),
        );
        let revision = Gauge::default();
        registry.register("rollout_revision", "Revision of the rollout in force", revision.clone());
        let exposure = Gauge::<f64, AtomicU64>::default();
        registry.register(
            "exposure_ratio",
            "Share of the canary's decisions of the last minute that Redis made; NaN when there were none",
            exposure.clone(),
        );
        let rollbacks = Family::<Labels, Counter>::default();
        registry.register("rollbacks", "Rollbacks to memory, by cause", rollbacks.clone());
        let memory_keys = Gauge::default();
        registry.register("memory_keys", "Keys held in memory", memory_keys.clone());
        let blocked_keys = Gauge::default();
        registry.register("blocked_keys", "Keys shut out by a penalty", blocked_keys.clone());
        let budget_resets = BudgetResets::new(&mut registry);
        let lines_dropped = Counter::default();
        registry.register(
            "log_lines_dropped",
            "Log lines dropped: whoever reads standard output is too slow",
            lines_dropped.clone(),
        );
        let overrides = Overrides::registered_in(&mut registry);
        let build = Family::<Labels, Gauge>::default();
        registry.register("build_info", "Always 1; the labels name this build", build.clone());
        let commit = option_env!("TIDEGATE_COMMIT").unwrap_or("unknown");
        let version = env!("CARGO_PKG_VERSION");
        build
            .get_or_create_owned(&vec![("version", version.to_owned()), ("commit", commit.to_owned())])
            .set(1);

        Self {
            per_rules: ByRules::new(&rules, PerRules::new(&requests, &policy_decisions, &remaining, &rules)),
            requests,
            policy_decisions,
            remaining,
            responses,
            request_seconds: ARMS.map(|arm| request_seconds.get_or_create_owned(&one("arm", arm.as_str()))),
            decision_seconds: BACKENDS
                .map(|backend| decision_seconds.get_or_create_owned(&one("backend", backend.as_str()))),
            command_seconds: command_seconds.get_or_create_owned(&one("command", "evalsha")),
            commands: commands.get_or_create_owned(&one("command", "evalsha")),
            errors: per_kind(&errors, "kind", FaultKind::is_of_the_store),
            fallbacks: per_kind(&fallbacks, "reason", |_| true),
            link,
            limits,
            percent,
            revision,
            exposure,
            rollbacks: RollbackCause::ALL
                .map(|cause| rollbacks.get_or_create_owned(&one("cause", cause.as_str()))),
            memory_keys,
            blocked_keys,
            budget_resets,
            lines_dropped,
            overrides,
            reloads: Reloads::registered_in(&mut registry),
            settlements: Settlements::registered_in(&mut registry),
            tokens: Tokens::registered_in(&mut registry),
            without_client: WithoutClient::registered_in(&mut registry),
            disputed: disputed::registered_in(&mut registry),
            upgraded,
            registry,
        }
    }

    /// Counts one exchange.
    pub(super) fn answered(&self, exchange: &Exchange<'_>) {
        let arm = exchange.decision.map_or(Arm::Control, Decision::arm);
        let class = class_of(exchange.status);
        self.responses[class][arm as usize][exchange.origin as usize].inc();
        self.request_seconds[arm as usize].observe(exchange.took.as_secs_f64());
        if let Some(token) = exchange.token {
            self.tokens.count(token);
        }
        let Some(decision) = exchange.decision else { return };
        let backend = decision.backend();
        self.decision_seconds[backend as usize].observe(exchange.deciding_took.as_secs_f64());
        self.decided(decision);
    }

    /// Counts a decision whose client disconnected meanwhile; `None`: one that was dropped unmade.
    pub(super) fn decided_without_client(&self, decision: Option<&Decision>) {
        self.without_client.count(decision);
        decision.inspect(|decision| self.decided(decision));
    }

    /// Counts a decision by its outcome.
    fn decided(&self, decision: &Decision) {
        let (backend, arm) = (decision.backend(), decision.arm());
        if let Some(kind) = decision.fallback() {
            self.fallbacks[place(kind)].inc();
        }
        let rules = decision.rules();
        let make = || self.tables_of(rules);
        self.per_rules.with(rules, make, |per_rules| {
            let table = decision.policy_id().and_then(|id| per_rules.policies.get(id));
            let table = table.unwrap_or(&per_rules.unlimited);
            table[backend as usize][decision.state as usize][arm as usize].inc();
            per_rules.decisions.count(decision);
            per_rules.remaining.observe(decision);
        });
    }

    /// Makes the series of `rules`, which are about to be in force. Those of a policy that stays go on.
    pub(super) fn follow(&self, rules: &Arc<Rules>) {
        self.per_rules.announce(rules, || self.tables_of(rules));
        self.forget_policies();
    }

    fn tables_of(&self, rules: &Rules) -> PerRules {
        PerRules::new(&self.requests, &self.policy_decisions, &self.remaining, rules)
    }

    /// Counts a reload.
    pub(super) fn reloaded(&self, reload: &Reload<'_>) {
        self.reloads.count(reload);
    }

    /// Counts a command that Redis answered.
    pub(super) fn store_answered(&self, took: Duration) {
        self.commands.inc();
        self.command_seconds.observe(took.as_secs_f64());
    }

    /// Counts a failed call or attempt to connect.
    pub(super) fn store_failed(&self, kind: FaultKind) {
        if let Some(errors) = self.errors.get(place(kind)) {
            errors.inc();
        }
    }

    /// What is known of the link to Redis.
    pub(super) fn link(&self) -> &RedisLink {
        &self.link
    }

    /// Notes what is in force.
    pub(super) fn in_force(&self, in_force: InForce) {
        self.percent.set(in_force.percent.as_f64());
        self.revision.set(in_force.revision as i64);
    }

    /// Counts a rollback.
    pub(super) fn rolled_back(&self, cause: RollbackCause) {
        self.rollbacks[cause as usize].inc();
    }

    /// Everything, as the scraper wants it.
    pub(super) fn print(&self, scraped: Scraped, exposition: Exposition) -> String {
        self.forget_policies();
        let Held { keys, blocked, evicted, decided_unknown, forgiven, overrides } = scraped.held;
        self.memory_keys.set(keys as i64);
        self.blocked_keys.set(blocked as i64);
        self.budget_resets.set([1, evicted, decided_unknown, forgiven]);
        self.link.in_flight(scraped.redis_in_flight);
        self.limits.spent(scraped.redis_spent);
        self.limits.certificate_ends(scraped.certificate_ends);
        self.lines_dropped.inner().store(scraped.lines_dropped, Ordering::Relaxed);
        self.overrides.set(overrides);
        self.tokens.checked(scraped.signature_checks);
        self.exposure.set(scraped.exposure.unwrap_or(f64::NAN));
        let mut text = String::with_capacity(16 * 1024);
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        match exposition {
            Exposition::OpenMetrics => text,
            Exposition::Text => text::classic(&text),
        }
    }

    /// Drops the series of policies that are gone, once nobody decides or tells by the last rules that had them.
    fn forget_policies(&self) {
        self.per_rules.drop_idle(|gone, staying| {
            let stay: HashSet<&str> =
                staying.iter().flat_map(|rules| &rules.names).map(|name| &**name).collect();
            for name in gone.names.iter().filter(|name| !stay.contains(&***name)) {
                PolicyDecisions::forget(&self.policy_decisions, name);
                Remaining::forget(&self.remaining, name);
                for_each_label(|backend, state, arm| {
                    self.requests.remove(&labels(backend, state, name, arm));
                });
            }
        });
    }
}

pub(super) fn one(name: &'static str, value: &str) -> Labels {
    vec![(name, value.to_owned())]
}

/// A counter for each kind that is `meant`: all, or the first of them.
fn per_kind(
    family: &Family<Labels, Counter>,
    label: &'static str,
    meant: impl Fn(FaultKind) -> bool,
) -> Vec<Counter> {
    let kinds = FaultKind::ALL.into_iter().filter(|kind| meant(*kind));
    kinds.map(|kind| family.get_or_create_owned(&one(label, kind.as_str()))).collect()
}

/// The place in [`FaultKind::ALL`], which lists the kinds in the order of their declaration.
fn place(kind: FaultKind) -> usize {
    kind as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limiter::clock::{Clock, SECOND};
    use crate::limiter::gcra::Quota;
    use crate::limiter::memory::Memory;
    use crate::limiter::policy::Policy;
    use crate::limiter::route::Route;
    use crate::limiter::store::NoStore;
    use crate::limiter::subject::Subject;
    use crate::limiter::{Check, Hit, Limiter};
    use std::num::NonZeroU32;

    #[test]
    fn every_kind_of_fault_has_its_own_place() {
        for (index, kind) in FaultKind::ALL.into_iter().enumerate() {
            assert_eq!(place(kind), index);
            // Those that are no error come last, so that the others keep their places without them.
            assert_eq!(kind.is_of_the_store(), index < FaultKind::ALL.len() - 4);
        }
    }

    /// A decision by `rules`, told as an answer of 200.
    fn answer(metrics: &Metrics, decision: &Decision) {
        metrics.answered(&Exchange {
            request_id: "",
            method: "GET",
            path: "/",
            client: None,
            status: 200,
            took: Duration::ZERO,
            origin: Origin::Upstream,
            decision: Some(decision),
            token: None,
            deciding_took: Duration::ZERO,
            trace: None,
        });
    }

    #[test]
    fn each_decision_is_counted_under_the_name_it_was_made_by_however_the_rules_change() {
        // "kept" has less left, so it is the one that decides.
        let quota = |name: &str| {
            let burst = NonZeroU32::new(if name == "kept" { 5 } else { 50 }).unwrap();
            Quota::new(burst, 60 * SECOND, burst).unwrap()
        };
        let rules = |names: &[&str]| {
            let mut rules = Rules::none();
            let policy = |name: &&str| Policy::new(*name, Subject::ip(), quota(name));
            rules.add("rule", Route::any(), 1, names.iter().map(policy));
            Arc::new(rules)
        };
        // The place of "kept" differs, so that a table of other rules would count another policy.
        let (old, new) = (rules(&["kept"]), rules(&["added", "kept"]));
        let limiter =
            Arc::new(Limiter::<NoStore>::new(Rules::none(), Memory::new(100), &[7; 16], Clock::manual(1)));
        let decide = |key: &[u8]| match limiter.check_key("rule", key, Hit::ONE) {
            Some(Check::Decided(Some(decision))) => decision,
            _ => panic!("memory decides at once"),
        };
        let metrics = Metrics::new(Arc::clone(&old), false, false, false);
        let count = |policy: &str| {
            let text = metrics.print(Scraped::default(), Exposition::OpenMetrics);
            let head = format!(
                r#"tidegate_requests_total{{backend="memory",state="allow",policy="{policy}",arm="control"}} "#
            );
            text.lines().find_map(|line| line.strip_prefix(&head)?.parse::<u64>().ok())
        };
        limiter.replace_rules(Arc::clone(&old));
        let before = decide(b"before");
        answer(&metrics, &before);
        metrics.follow(&new);
        assert_eq!((count("kept"), count("added")), (Some(1), Some(0)), "the series are there at once");
        limiter.replace_rules(Arc::clone(&new));
        let after = decide(b"after");
        answer(&metrics, &after);
        answer(&metrics, &before);
        answer(&metrics, &after);
        assert_eq!((count("kept"), count("added")), (Some(4), Some(0)));

        limiter.replace_rules(Arc::clone(&old));
        metrics.follow(&old);
        assert!(count("added").is_some(), "a decision by the rules that had it is still to be told");
        drop((after, new));
        assert_eq!((count("kept"), count("added")), (Some(4), None), "now it is gone, and the other goes on");
    }

    #[test]
    fn the_first_scrape_already_names_every_series_of_the_contract() {
        let metrics = Metrics::new(Arc::new(Rules::none()), true, true, true);
        let text = metrics.print(Scraped::default(), Exposition::OpenMetrics);
        for line in [
            r#"tidegate_requests_total{backend="redis",state="throttle",policy="-",arm="canary"} 0"#,
            r#"tidegate_http_responses_total{class="5xx",arm="control",origin="upstream"} 0"#,
            r#"tidegate_redis_errors_total{kind="maxclients"} 0"#,
            r#"tidegate_fallbacks_total{reason="timeout"} 0"#,
            r#"tidegate_fallbacks_total{reason="warming"} 0"#,
            r#"tidegate_backend_up{backend="redis"} 0"#,
            "tidegate_breaker_state 2",
            r#"tidegate_redis_connections{state="in_use"} 0"#,
            "tidegate_rollout_percent 0.0",
            "tidegate_exposure_ratio NaN",
            r#"tidegate_reloads_total{outcome="failed"} 0"#,
            "tidegate_config_last_reload_successful 1",
            "# EOF",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
