//! `tidegate cost`: what the policies need of a Redis by [`crate::redis::needs`], against each plan of
//! [`super::providers`].

mod show;

use serde::Serialize;

use super::providers::{Figure, Plan, Provider, Providers};
use crate::config::Settings;
use crate::limiter::rollout::Percent;
use crate::redis;
use crate::redis::needs::{DAYS_A_MONTH, Habits, Load, MAP_INTERVAL, Needs};

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
pub fn load(
    settings: &Settings,
    rpm: f64,
    percent: Option<Percent>,
    instances: Option<u32>,
    clients: Option<u32>,
) -> Load {
    let fleet = settings.redis.as_ref().and_then(|redis| redis.fleet_size).map_or(1, |size| size.get());
    let percent = percent.unwrap_or(settings.rollout.percent);
    Load { rpm, percent: percent.as_f64(), instances: instances.unwrap_or(fleet), clients }
}

/// What the policies need under this load, each figure by the rule that needs most of it; `None` when nothing is limited.
pub fn needs(settings: &Settings, load: Load) -> Option<Needs> {
    redis::needs::needs(&settings.rules, habits(settings), load)
}

/// What an instance with these settings asks of Redis besides decisions.
///
/// A cluster counts as one where `redis.cluster` says so: nothing is asked of the network.
pub fn habits(settings: &Settings) -> Habits {
    let is_cluster = settings.redis.as_ref().is_some_and(|redis| redis.cluster == Some(true));
    Habits {
        namespace: settings.redis.as_ref().map_or("tidegate".len(), |redis| redis.namespace.len()),
        secret_in_redis: settings.rollout.secret.is_none(),
        heartbeat: settings.fleet.heartbeat,
        map_interval: is_cluster.then_some(MAP_INTERVAL),
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
