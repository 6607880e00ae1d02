//! `?dry_run=1`: what a change of the rollout would come to. It is judged by the code of the change itself, and changes
//! nothing.

use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;

use super::api::{Admin, problem_of};
use super::record::{Foreseen, Record};
use crate::config::Scope;
use crate::doors::problem::{Cause, Problem};
use crate::limiter::clock::SECOND;
use crate::limiter::recent::Moved;
use crate::limiter::rollout::Percent;
use crate::redis::needs::{Habits, Load, needs};

/// How the commands of a day are reckoned.
#[derive(Clone, Copy, Debug)]
pub struct Reckoning {
    /// What instances ask of Redis besides decisions.
    pub habits: Habits,
    /// Whether the provider counts what scripts run beside the scripts.
    pub bills_inside_scripts: bool,
}

#[derive(Serialize)]
struct DryRunView {
    dry_run: bool,
    would: Would,
    keys: KeysView,
    requests: RequestsView,
    /// `null` where no Redis is configured or nothing is limited.
    commands_a_day: Option<CommandsView>,
    /// What it would be refused for, the first of them first. Empty: it would be done.
    blockers: Vec<BlockerView>,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct Would {
    from: StandView,
    to: StandView,
}

#[derive(Serialize)]
struct StandView {
    backend: &'static str,
    percent: f64,
    percent_in_force: f64,
}

#[derive(Serialize)]
struct KeysView {
    /// 0 to 1, exact: the share of all keys that another store would decide.
    share_moving: f64,
    /// Which store they would go to; `null`: none moves.
    moving_to: Option<&'static str>,
}

#[derive(Serialize)]
struct RequestsView {
    /// 0 to 1, of this instance's recent requests; `null`: there were none.
    share_moving: Option<f64>,
    /// Over how many minutes they came.
    minutes: f64,
    /// How many there were.
    samples: u64,
}

#[derive(Serialize)]
struct CommandsView {
    now: f64,
    then: f64,
    /// What `redis.commands_per_day` allows this instance; `null`: nobody says.
    per_day: Option<u64>,
}

#[derive(Serialize)]
struct BlockerView {
    code: &'static str,
    detail: String,
}

/// Whether the request only asks what would come of it.
///
/// # Errors
/// When `dry_run` has a value that means neither: a guess could change what was only asked about.
pub(super) fn asked(request: &HttpRequest) -> Result<bool, Problem> {
    let query = request.query_string();
    match values(query).iter().find(|value| meaning(value).is_none()) {
        None => Ok(is_asked(query)),
        Some(value) => {
            let detail = format!("dry_run: \"{value}\" is neither. Accepted: 1, true, 0, false.");
            Err(Problem::new(Cause::Unprocessable, detail).with_code("bad_query"))
        }
    }
}

/// Refuses a change that only the rollout knows how to foresee: it would be made, and whoever asks relies on it that it is
/// not.
///
/// # Errors
/// When `dry_run` is anything but a clear no.
pub(super) fn not_here(query: &str) -> Result<(), Problem> {
    if values(query).iter().all(|value| meaning(value) == Some(false)) {
        return Ok(());
    }
    let detail = "dry_run: this change can't be foreseen, and it was not made. Accepted at PUT /admin/rollout and POST \
                  /admin/rollout/rollback.";
    Err(Problem::new(Cause::Unprocessable, detail).with_code("bad_query"))
}

/// The same of a bare query; what means neither does not ask.
pub(super) fn is_asked(query: &str) -> bool {
    values(query).iter().any(|value| meaning(value) == Some(true))
}

/// The answer.
pub(super) fn answer(admin: &Admin, foreseen: Foreseen, scope: Option<Scope>) -> HttpResponse {
    let Foreseen { record, in_force, next, then, unkept, objections } = foreseen;
    let moved = admin.status.limiter().moved(in_force, then);
    let commands = commands(admin, moved, in_force, then);
    let mut warnings = Vec::new();
    if (next.backend, next.percent) == (record.backend, record.percent) {
        warnings.push("The record says so already.".to_owned());
    }
    let stands = |record: &Record, percent: Percent| StandView {
        backend: record.backend.as_str(),
        percent: record.percent.as_f64(),
        percent_in_force: percent.as_f64(),
    };
    if record.wanted() != record.due(admin.fleet.now()) {
        warnings.push(format!("A raise to {} % is announced and not in force yet.", record.percent));
    }
    if moved.samples == 0 {
        warnings.push(
            "No request was counted lately: what of the traffic would move, and its commands, are not known."
                .to_owned(),
        );
    }
    if then > Percent::NONE && admin.status.redis_away() {
        warnings
            .push("Redis is not in use at the moment: memory decides its keys until it is back.".to_owned());
    }
    if let Some(CommandsView { then, per_day: Some(allowed), .. }) = &commands
        && *then > *allowed as f64
    {
        warnings
            .push(format!("{then:.0} commands a day are more than the {allowed} of redis.commands_per_day."));
    }
    if unkept.is_some() && objections.is_empty() {
        warnings.push(
            "Neither the disk nor Redis can keep it now: it would be in force, with durable: false."
                .to_owned(),
        );
    }
    let blocker = |refusal| {
        let problem = problem_of(refusal, scope);
        BlockerView { code: problem.code().unwrap_or("refused"), detail: problem.to_string() }
    };
    HttpResponse::Ok().json(DryRunView {
        dry_run: true,
        would: Would { from: stands(&record, in_force), to: stands(&next, then) },
        keys: KeysView {
            share_moving: f64::from(then.basis_points().abs_diff(in_force.basis_points())) / 10_000.0,
            moving_to: match then.cmp(&in_force) {
                std::cmp::Ordering::Less => Some("memory"),
                std::cmp::Ordering::Equal => None,
                std::cmp::Ordering::Greater => Some("redis"),
            },
        },
        requests: RequestsView {
            share_moving: (moved.samples > 0).then(|| rounded(moved.moving / moved.samples as f64, 10_000.0)),
            minutes: rounded(minutes(moved), 10.0),
            samples: moved.samples,
        },
        commands_a_day: commands,
        blockers: objections.into_iter().map(blocker).collect(),
        warnings,
    })
}

/// The commands of a day at the pace of the last minutes, of this instance, as its provider counts them.
fn commands(admin: &Admin, moved: Moved, now: Percent, then: Percent) -> Option<CommandsView> {
    let reckoning = admin.reckoning?;
    let limiter = admin.status.limiter();
    let rules = limiter.rules();
    // Of a few seconds no day can be told: until then as if a minute had passed.
    let rpm = moved.samples as f64 / minutes(moved).max(1.0);
    let instances = u32::try_from(admin.fleet.view().instances()).unwrap_or(u32::MAX).max(1);
    let fleet = f64::from(instances);
    let at = |percent: Percent| {
        let load = Load { rpm: rpm * fleet, percent: percent.as_f64(), instances, clients: None };
        let needs = needs(&rules, reckoning.habits, load)?;
        let commands = if reckoning.bills_inside_scripts { needs.commands_a_day } else { needs.calls_a_day };
        Some((commands / fleet).ceil())
    };
    let per_day = limiter.store().and_then(|store| store.spending().per_day);
    Some(CommandsView { now: at(now)?, then: at(then)?, per_day })
}

fn minutes(moved: Moved) -> f64 {
    moved.over as f64 / (60 * SECOND) as f64
}

fn rounded(value: f64, parts: f64) -> f64 {
    (value * parts).round() / parts
}

fn values(query: &str) -> Vec<String> {
    let pairs = web::Query::<Vec<(String, String)>>::from_query(query).map(web::Query::into_inner);
    pairs
        .unwrap_or_default()
        .into_iter()
        .filter(|(name, _)| name == "dry_run")
        .map(|(_, value)| value)
        .collect()
}

fn meaning(value: &str) -> Option<bool> {
    match value {
        "1" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}
