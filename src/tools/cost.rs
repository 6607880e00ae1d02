//! `tidegate cost`: what the policies in force need of a Redis, against each plan of [`super::providers`].
//!
//! One decision is one script call, whatever the number of its policies; the script runs TIME, MGET, and a SET for each
//! policy that it charges. `tests/cli/cost.rs` counts them on a real server, and measures the bytes below.

mod show;

use serde::Serialize;

use super::providers::{Figure, Plan, Provider, Providers};
use crate::config::Settings;
use crate::limiter::clock::SECOND;
use crate::limiter::policy::{Policy, Rule};
use crate::limiter::rollout::Percent;

/// What a bucket takes in Redis beside its name, expiry and the table's room included: at most this, measured on 7.0.
const BYTES_A_KEY: f64 = 200.0;
/// What a call takes on the wire beside its keys' names, both ways: at most this, measured.
const BYTES_A_CALL: f64 = 190.0;
/// What each policy adds to that beside its name.
const BYTES_A_POLICY: f64 = 140.0;
/// The keyed hash in a key, its braces and the colons.
const REST_OF_A_KEY: usize = 36;
/// The fleet's secret is looked at every ten minutes where Redis keeps it.
const SECRET_LOOKS: f64 = 144.0;
/// A heartbeat is a script, and a look at the rollout's record,
const CALLS_A_BEAT: f64 = 2.0;
/// and the script runs two commands.
const COMMANDS_A_BEAT: f64 = 4.0;
/// What a beat takes on the wire, both ways, and what each instance adds to that by its row: at most this, measured.
const BYTES_A_BEAT: f64 = 1_300.0;
const BYTES_A_ROW: f64 = 450.0;
/// Who knows of no other instance beats once a minute at most.
const SECONDS_ALONE: f64 = 60.0;
const SECONDS_A_DAY: f64 = 86_400.0;
/// The connection in use, the one that listens to the fleet, and for a moment one that takes the place of either.
const CONNECTIONS_AN_INSTANCE: u32 = 3;
/// A month that is reckoned with: the longest.
const DAYS_A_MONTH: f64 = 31.0;
const MINUTES_A_DAY: f64 = 1_440.0;

/// How much traffic is reckoned with.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Load {
    /// Requests a minute, of the whole fleet.
    pub rpm: f64,
    /// Share of the keys that Redis decides, in percent.
    pub percent: f64,
    /// Instances.
    pub instances: u32,
}

/// What that needs of a Redis, at most: for the rule that needs most.
#[derive(Clone, Debug, Serialize)]
pub struct Needs {
    /// The rule.
    pub rule: String,
    /// Script calls a decision, which are its round trips.
    pub calls_a_decision: u32,
    /// Commands a decision, those inside the script included.
    pub commands_a_decision: u32,
    /// Calls a day, the background's included.
    pub calls_a_day: f64,
    /// Commands a day, those inside scripts included.
    pub commands_a_day: f64,
    /// Calls in a second of even traffic.
    pub calls_a_second: f64,
    /// Keys alive at once.
    pub keys: f64,
    /// Their bytes.
    pub memory_bytes: f64,
    /// Connections.
    pub connections: u32,
    /// Bytes in and out a month.
    pub bandwidth_bytes_a_month: f64,
}

/// Whether a plan is enough.
#[derive(Clone, Debug, Serialize)]
pub struct Judgement {
    /// The service.
    pub provider: String,
    /// Its plan.
    pub plan: String,
    /// `true`, `false`, or `null` when a figure that could decide it is unknown.
    pub fits: Option<bool>,
    /// Commands a day as this provider counts them, at most.
    pub billed_a_day: f64,
    /// What a month costs in US dollars, at most; `null`: unknown.
    pub usd_a_month: Option<f64>,
    /// What is exceeded, one line each.
    pub exceeded: Vec<String>,
    /// What is unknown.
    pub unknown: Vec<&'static str>,
}

/// The load that the settings speak of, with whatever was said instead.
pub fn load(settings: &Settings, rpm: f64, percent: Option<Percent>, instances: Option<u32>) -> Load {
    let fleet = settings.redis.as_ref().and_then(|redis| redis.fleet_size).map_or(1, |size| size.get());
    let percent = percent.unwrap_or(settings.rollout.percent);
    Load { rpm, percent: percent.as_f64(), instances: instances.unwrap_or(fleet) }
}

/// What the policies need under this load, by the rule that needs most; `None` when nothing is limited.
pub fn needs(settings: &Settings, load: Load) -> Option<Needs> {
    let namespace = settings.redis.as_ref().map_or("tidegate".len(), |redis| redis.namespace.len());
    let looks = if settings.rollout.secret.is_none() { SECRET_LOOKS } else { 0.0 };
    let background = Background { looks, beats: beats_a_day(settings, load.instances) };
    let of = |rule: &Rule| {
        let policies: Vec<&Policy> = rule.policies.iter().map(|&id| settings.rules.policy(id)).collect();
        needs_of(rule, &policies, namespace, background, load)
    };
    let limited = settings.rules.all().iter().filter(|rule| !rule.policies.is_empty());
    limited
        .map(of)
        .max_by(|a, b| (a.commands_a_day + a.memory_bytes).total_cmp(&(b.commands_a_day + b.memory_bytes)))
}

/// What an instance asks of Redis a day besides decisions.
#[derive(Clone, Copy)]
struct Background {
    looks: f64,
    beats: f64,
}

fn beats_a_day(settings: &Settings, instances: u32) -> f64 {
    let Some(every) = settings.fleet.heartbeat else { return 0.0 };
    let seconds = every.as_secs_f64();
    SECONDS_A_DAY / if instances > 1 { seconds } else { seconds.max(SECONDS_ALONE) }
}

fn needs_of(
    rule: &Rule,
    policies: &[&Policy],
    namespace: usize,
    background: Background,
    load: Load,
) -> Needs {
    let count = policies.len() as f64;
    let mut subjects: Vec<String> =
        policies.iter().map(|policy| format!("{:?}", policy.by.parts())).collect();
    subjects.sort();
    subjects.dedup();
    // A request asks Redis when any of its subjects is decided there.
    let share = (load.percent / 100.0 * subjects.len() as f64).min(1.0);
    let Background { looks, beats } = background;
    let (instances, is_used) = (f64::from(load.instances), load.percent > 0.0);
    let of_background = |a_beat: f64| if is_used { instances * (looks + beats * a_beat) } else { 0.0 };
    let calls = load.rpm * MINUTES_A_DAY * share;
    let inside = 2.0 + count;
    let names: usize = policies.iter().map(|policy| policy.name.len() + namespace + REST_OF_A_KEY).sum();
    let keys_of = |policy: &&Policy| {
        // Little's law: a hit keeps its key alive as long as its debt lasts, and no longer.
        let lives = match &policy.calendar {
            None => policy.quota.charge(rule.cost),
            Some(calendar) => calendar.unit().length().unwrap_or(31 * 24 * 3_600 * SECOND),
        };
        load.rpm / 60.0 * (load.percent / 100.0) * (lives as f64 / SECOND as f64)
    };
    let alive: Vec<f64> = policies.iter().map(|policy| keys_of(policy).ceil()).collect();
    let memory = alive
        .iter()
        .zip(policies)
        .map(|(keys, policy)| keys * (BYTES_A_KEY + (policy.name.len() + namespace + REST_OF_A_KEY) as f64));
    let wire = BYTES_A_CALL + BYTES_A_POLICY * count + names as f64;
    Needs {
        rule: rule.name.to_string(),
        calls_a_decision: 1,
        commands_a_decision: 1 + inside as u32,
        calls_a_day: calls + of_background(CALLS_A_BEAT),
        commands_a_day: calls * (1.0 + inside) + of_background(COMMANDS_A_BEAT),
        calls_a_second: load.rpm / 60.0 * share,
        keys: alive.iter().sum(),
        memory_bytes: memory.sum(),
        connections: CONNECTIONS_AN_INSTANCE * load.instances,
        bandwidth_bytes_a_month: DAYS_A_MONTH
            * (calls * wire
                + if is_used { instances * beats * (BYTES_A_BEAT + BYTES_A_ROW * instances) } else { 0.0 }),
    }
}

/// Each plan against the needs.
pub fn judge(needs: &Needs, providers: &Providers) -> Vec<Judgement> {
    let plans = |provider: &'_ Provider| -> Vec<Judgement> {
        provider.plans.iter().map(|plan| judge_one(needs, provider, plan)).collect()
    };
    providers.all.iter().flat_map(plans).collect()
}

fn judge_one(needs: &Needs, provider: &Provider, plan: &Plan) -> Judgement {
    // Where nobody knows, the greater figure: a plan that looks enough is enough.
    let (billed_a_day, billed_a_call) = match provider.bills_inside_scripts {
        Some(false) => (needs.calls_a_day, 1),
        _ => (needs.commands_a_day, needs.commands_a_decision),
    };
    let billed_a_second = needs.calls_a_second * f64::from(billed_a_call);
    let (mut exceeded, mut unknown) = (Vec::new(), Vec::new());
    let mut hold = |name: &'static str, needed: f64, figure: Figure| match figure {
        Figure::Is(most) if needed > most => {
            exceeded.push(format!("{name}: {} of {}", show::grouped(needed), show::grouped(most)));
        }
        Figure::Unknown => unknown.push(name),
        Figure::Is(_) | Figure::Unlimited => {}
    };
    hold("commands a day", billed_a_day, plan.commands_per_day);
    hold("commands a month", billed_a_day * DAYS_A_MONTH, plan.commands_per_month);
    hold("commands a second", billed_a_second, plan.commands_per_second);
    hold("memory in MB", needs.memory_bytes / (1 << 20) as f64, plan.memory_mb);
    hold("connections", f64::from(needs.connections), plan.connections);
    hold("bandwidth in GB a month", needs.bandwidth_bytes_a_month / 1e9, plan.bandwidth_gb_month);
    let by_command = billed_a_day * DAYS_A_MONTH / 100_000.0 * plan.per_100k_commands_usd;
    let usd_a_month = match plan.price_usd_month {
        Figure::Is(flat) => Some(flat + by_command),
        Figure::Unlimited | Figure::Unknown => None,
    };
    let fits = match (exceeded.is_empty(), unknown.is_empty()) {
        (false, _) => Some(false),
        (true, true) => Some(true),
        (true, false) => None,
    };
    Judgement {
        provider: provider.name.clone(),
        plan: plan.name.clone(),
        fits,
        billed_a_day,
        usd_a_month,
        exceeded,
        unknown,
    }
}

pub use show::{json, text};

#[cfg(test)]
mod tests;
