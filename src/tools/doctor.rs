//! `tidegate doctor`: from the URL to a working limiter, step by step. The first step that fails is named with its cause and
//! its cure; nothing behind it is guessed at.
//!
//! It needs no command that a managed service forbids, prints no secret, and changes nothing but the probe's one
//! reserved key.

mod cluster;
mod info;
mod inside;
mod report;
mod sentinels;
mod way_in;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use crate::redis::cure::{FLEET_PERMISSIONS, LEAST_PERMISSIONS};
pub use report::{Latency, Outcome, Report, STEPS, Step, Verdict};

use crate::config::{Errors, Redis, Settings};
use crate::limiter::clock::Micros;
use crate::limiter::decision::Backend;
use crate::limiter::store::{Fault, FaultKind};
use crate::redis::cure::cure;
use crate::redis::wire::Probe;
use inside::Inside;
use way_in::way_in;

/// Told of each step as it begins.
pub type Progress<'a> = &'a mut dyn FnMut(&str);

/// Examines the Redis of these settings. Asks the network, for at most some seconds a step.
pub async fn examine(settings: &Settings, progress: Progress<'_>) -> Report {
    let mut report = Report { in_force: in_force(settings), ..Report::default() };
    let Some(redis) = &settings.redis else {
        if settings.rollout.backend == Backend::Redis {
            report.add(Step {
                name: "configuration",
                outcome: Outcome::Warning,
                found: "RATE_LIMIT_BACKEND is redis and REDIS_URL is not set".into(),
                cure: Some("set REDIS_URL, or RATE_LIMIT_BACKEND=memory".into()),
                kind: None,
                took: Duration::ZERO,
                details: Vec::new(),
            });
        }
        return report;
    };
    report.target = Some(redis.target.to_string());
    let mut examination = Examination {
        redis,
        report,
        progress,
        step: "configuration",
        began: Instant::now(),
        details: Vec::new(),
    };
    // A step that fails has said so itself.
    let _ = walk(&mut examination).await;
    let mut report = examination.report;
    report.skip_the_rest();
    report
}

async fn walk(examination: &mut Examination<'_>) -> Result<(), Stop> {
    let mut way = way_in(examination).await?;
    let probe = cluster::look(examination, &mut way).await?;
    let is_node = probe.is_some();
    let probe = probe.unwrap_or_else(|| Probe::new(&examination.redis.namespace));
    let sentinels = way.sentinels.take();
    Inside { examination, wire: way.wire, probe, is_node, sentinels }.look().await
}

/// The report on settings that can't even be read.
pub fn unreadable(errors: &Errors) -> Report {
    let mut report = Report { in_force: "The configuration can't be read.".into(), ..Report::default() };
    let problems: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
    report.add(Step {
        name: "configuration",
        outcome: Outcome::Failed,
        found: problems.join("; "),
        cure: Some("`tidegate config check` lists them one by one".into()),
        kind: None,
        took: Duration::ZERO,
        details: Vec::new(),
    });
    report.skip_the_rest();
    report
}

/// Who decides, and why, as a start would have it.
fn in_force(settings: &Settings) -> String {
    let rollout = &settings.rollout;
    match &settings.redis {
        None => "In force: every key is decided in memory, because REDIS_URL is not set. Each instance counts for \
                 itself."
            .into(),
        Some(_) if rollout.backend == Backend::Memory => {
            "In force: every key is decided in memory, because RATE_LIMIT_BACKEND is memory. Redis is examined all \
             the same."
                .into()
        }
        Some(_) => format!("In force: {} % of the keys are to be decided by Redis.", rollout.percent),
    }
}

/// An examination under way. Steps are begun and ended in the order of [`STEPS`].
struct Examination<'a> {
    redis: &'a Redis,
    report: Report,
    progress: Progress<'a>,
    step: &'static str,
    began: Instant,
    /// What there is to say of each of several in the step that is under way.
    details: Vec<String>,
}

fn now() -> Micros {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as Micros
}

/// A step failed, and has been written down.
struct Stop;

impl Examination<'_> {
    fn begin(&mut self, step: &'static str) {
        self.step = step;
        self.began = Instant::now();
        (self.progress)(step);
    }

    fn end(&mut self, outcome: Outcome, found: impl Into<String>, cure: Option<String>) {
        let took = self.began.elapsed();
        let details = std::mem::take(&mut self.details);
        self.report.add(Step {
            name: self.step,
            outcome,
            found: found.into(),
            cure,
            kind: None,
            took,
            details,
        });
    }

    fn good(&mut self, found: impl Into<String>) {
        self.end(Outcome::Good, found, None);
    }

    fn warn(&mut self, found: impl Into<String>, cure: impl Into<String>) {
        self.end(Outcome::Warning, found, Some(cure.into()));
    }

    fn skip(&mut self, found: impl Into<String>) {
        self.end(Outcome::Skipped, found, None);
        if let Some(step) = self.report.steps.last_mut() {
            step.took = Duration::ZERO;
        }
    }

    fn not_allowed(&mut self, why: &str) {
        self.end(Outcome::NotAllowed, format!("not allowed here, skipped ({why})"), None);
    }

    /// The step failed: its kind's cure, or a better one.
    fn fail(&mut self, fault: &Fault, better: Option<String>) -> Stop {
        let cure = better.unwrap_or_else(|| cure(fault, &self.redis.namespace));
        // No server is known to repeat the password. One that does is not quoted, and no word is cut out of what it
        // says either: the gap would tell.
        let target = &self.redis.target;
        let quotes = [target.password(), target.sentinel_password()]
            .into_iter()
            .flatten()
            .any(|password| !password.is_empty() && fault.detail.contains(password));
        let found = match quotes && !matches!(self.step, "configuration" | "dns" | "tcp" | "tls") {
            true => "the server refuses; what it says is not shown here",
            false => &*fault.detail,
        };
        self.end(Outcome::Failed, found, Some(cure));
        if let Some(step) = self.report.steps.last_mut() {
            step.kind = Some(fault.kind);
        }
        Stop
    }

    /// With TLS 1.3 a server refuses our certificate only after the handshake: that is the failure of an earlier step.
    fn fail_at_tls(&mut self, fault: &Fault) -> Stop {
        self.report.steps.retain(|step| !matches!(step.name, "tls" | "auth" | "session"));
        self.step = "tls";
        self.fail(fault, None)
    }

    fn failed(&mut self, fault: &Fault) -> Stop {
        if fault.kind == FaultKind::Tls && matches!(self.step, "auth" | "session") {
            self.fail_at_tls(fault)
        } else {
            self.fail(fault, None)
        }
    }
}
