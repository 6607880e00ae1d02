//! `tidegate load-test`: sends a front what the plan says, times each answer from its planned moment, and judges what came.

pub mod foretell;
mod front;
pub mod plan;
mod report;
mod send;
mod show;
pub mod tally;
pub mod verdict;

use std::collections::BTreeMap;

use hyper::Uri;

use crate::limiter::gcra::Quota;
use crate::limiter::policy::Rules;
use foretell::Foretold;
use plan::Plan;
pub use report::html;
pub use send::{Aim, Clients};
pub use show::{json, text};
use tally::{Counts, Second, Tally};
use verdict::{Check, Expected, Thresholds};

/// So many seconds after it began, a second's answers are in unless they are slow.
const SETTLED: u64 = 2;

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Test {
    /// What is sent when.
    pub plan: Plan,
    /// Where to, and as whom.
    pub aim: Aim,
    /// The front's admin listener, whose metrics say who decided.
    pub admin: Uri,
    /// The limit that predicts 429s; `None`: the front's rules, else the headers of one answer.
    pub quota: Option<Quota>,
    /// Token for the rules of the admin API; `None`: it is not asked.
    pub token: Option<String>,
    /// Who is to decide.
    pub backend: Expected,
    /// What is asked.
    pub thresholds: Thresholds,
}

/// What came of it.
pub struct Outcome {
    /// The page.
    pub url: String,
    /// Where the draws began.
    pub seed: u64,
    /// How many clients there were.
    pub keys: u32,
    /// The limits that 429s were foretold with, in words.
    pub limits: Vec<String>,
    /// What was asked.
    pub thresholds: Thresholds,
    /// Phase by phase.
    pub phases: Vec<SeenPhase>,
    /// Second by second.
    pub seconds: Vec<(u64, Second)>,
    /// Decisions by backend, if they could be seen.
    pub decisions: Option<BTreeMap<String, u64>>,
    /// Threshold by threshold.
    pub checks: Vec<Check>,
    /// When it was over, for people.
    pub ended_at: String,
}

/// What was seen of one phase.
pub struct SeenPhase {
    /// Its name.
    pub name: &'static str,
    /// Requests a second that were planned.
    pub rate: f64,
    /// How long.
    pub seconds: f64,
    /// Whether it was judged.
    pub judged: bool,
    /// The numbers.
    pub counts: Counts,
    /// The predicted share of 429s; `None` where no limit is known.
    pub foretold: Option<Foretold>,
}

impl Outcome {
    /// Whether all thresholds hold.
    pub fn holds(&self) -> bool {
        verdict::holds(&self.checks)
    }
}

/// Carries the test out; `progress` gets a line about every second.
///
/// # Errors
/// When it can't even begin: in words.
pub fn run(test: &Test, mut progress: impl FnMut(String)) -> Result<Outcome, String> {
    // Few words with the front, before and after: a runtime for each exchange is no waste.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("no runtime: {error}"))?;
    let (limits, forecast, exact) = match limits(test, &runtime) {
        Limits::Rules(rules) => {
            let began =
                std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            let limits = quotas_for(&rules, &test.aim).iter().map(in_words).collect();
            let forecast = foretell::by_rules(&test.plan, &test.aim, *rules, began.as_micros() as u64);
            (limits, Some(forecast), true)
        }
        Limits::Quotas(quotas) => {
            let forecast = foretell::foretell(&test.plan, &quotas);
            (quotas.iter().map(in_words).collect(), Some(forecast), false)
        }
        Limits::Unknown => (Vec::<String>::new(), None, false),
    };
    let foretold = |phase: usize| forecast.as_ref().and_then(|phases| phases.get(phase)).copied();
    let judged = test.plan.spans().enumerate().filter(|(_, (phase, ..))| phase.judged);
    for (foretold, (phase, ..)) in judged.filter_map(|(at, span)| Some((foretold(at)?, span))) {
        if foretold.share() >= test.thresholds.throttled {
            progress(format!(
                "the key plan of the {} goes over the limit by itself: {} of it will be 429",
                phase.name,
                verdict::share(foretold.share())
            ));
        }
    }
    let before = runtime.block_on(front::decisions(&test.admin));
    let seen = send::send(&test.plan, &test.aim, |since, tally| {
        if let Some(at) = since.as_secs().checked_sub(SETTLED) {
            progress(line(&test.plan, at, tally));
        }
    });
    let seen = seen.map_err(|error| error.to_string())?;
    let after = runtime.block_on(front::decisions(&test.admin));
    let decisions = match (&before, &after) {
        (Ok(before), Ok(after)) => Ok(after.since(before)),
        (Err(why), _) | (_, Err(why)) => Err(why.as_str()),
    };
    let percent = after.as_ref().ok().and_then(|after| after.percent);
    let seconds = seen.seconds().collect();
    let phases: Vec<SeenPhase> = test
        .plan
        .phases
        .iter()
        .zip(seen.phases)
        .enumerate()
        .map(|(at, (phase, counts))| SeenPhase {
            name: phase.name,
            rate: phase.rate,
            seconds: phase.lasts.as_secs_f64(),
            judged: phase.judged,
            counts,
            foretold: foretold(at),
        })
        .collect();
    let of_phase = |phase: &SeenPhase| {
        verdict::of_phase(phase.name, &phase.counts, (phase.foretold, exact), &test.thresholds)
    };
    let mut checks: Vec<Check> = phases.iter().filter(|phase| phase.judged).flat_map(of_phase).collect();
    checks.push(verdict::of_backend(
        decisions.as_ref().map_err(|why| *why),
        percent,
        test.backend,
        (test.plan.effective_keys(), phases.iter().map(|phase| phase.counts.answered()).sum()),
    ));
    Ok(Outcome {
        url: test.aim.uri.to_string(),
        seed: test.plan.seed,
        keys: test.plan.keys,
        limits,
        thresholds: test.thresholds,
        phases,
        seconds,
        decisions: decisions.ok(),
        checks,
        ended_at: chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
    })
}

/// What is known of the front's limits.
enum Limits {
    /// All of them.
    Rules(Box<Rules>),
    /// The limits of one answer's headers, or the given one: costs, windows and subjects are not known.
    Quotas(Vec<Quota>),
    Unknown,
}

fn limits(test: &Test, runtime: &tokio::runtime::Runtime) -> Limits {
    if let Some(quota) = test.quota {
        return Limits::Quotas(vec![quota]);
    }
    if let Some(token) = &test.token
        && let Ok(Some(rules)) = runtime.block_on(front::rules(&test.admin, token))
    {
        return Limits::Rules(Box::new(rules));
    }
    let told = runtime.block_on(send::probe(&test.aim, test.plan.keys));
    let quotas = told.map(|headers| front::quotas(&headers)).unwrap_or_default();
    if quotas.is_empty() { Limits::Unknown } else { Limits::Quotas(quotas) }
}

/// The quotas that the requests of the test meet.
fn quotas_for(rules: &Rules, aim: &Aim) -> Vec<Quota> {
    let rule = rules.matching(&foretell::Planned::of(aim, 0));
    let policies = rule.into_iter().flat_map(|rule| &rule.policies);
    policies.map(|&id| rules.policy(id).quota).collect()
}

fn in_words(quota: &Quota) -> String {
    let seconds = quota.period() as f64 / 1e6;
    format!("{} in {seconds} s, {} at once", quota.limit(), quota.burst())
}

/// One second in a line.
fn line(plan: &Plan, at: u64, tally: &Tally) -> String {
    let second = tally.second(at).unwrap_or_default();
    let spans = plan.spans();
    let phase = spans.filter(|(_, from, _)| from.as_secs() <= at).last().map_or("", |(phase, ..)| phase.name);
    let mut line = format!(
        "{at:>5} s of {} s  {phase:<9} {:>6}/s  P95 {:>9}  2xx/3xx {}",
        plan.lasts().as_secs(),
        second.sent,
        verdict::ms(second.p95_ms),
        second.ok
    );
    let more =
        [("429", second.throttled), ("4xx", second.refused), ("5xx", second.errors), ("none", second.failed)];
    for (name, count) in more.into_iter().filter(|(_, count)| *count > 0) {
        line += &format!("  {name} {count}");
    }
    line
}
