//! What the doctor found, for people and for scripts.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use crate::limiter::store::FaultKind;

/// Every step, in order. Those behind the first that fails are skipped. Behind sentinels and on a cluster there are more:
/// [`Report::expect`].
pub const STEPS: [&str; 14] = [
    "configuration",
    "dns",
    "tcp",
    "tls",
    "auth",
    "session",
    "permissions",
    "script",
    "role",
    "eviction",
    "memory",
    "clock",
    "latency",
    "plan",
];

/// What came of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it should be.
    Good,
    /// It works, and something is worse than it needs to be.
    Warning,
    /// It does not work.
    Failed,
    /// Not looked at, because an earlier step failed or there was nothing to look at.
    Skipped,
    /// The provider does not let us look. No failure.
    NotAllowed,
}

/// One step.
#[derive(Clone, Debug)]
pub struct Step {
    /// Which, of [`STEPS`].
    pub name: &'static str,
    /// What came of it.
    pub outcome: Outcome,
    /// What was found.
    pub found: String,
    /// How to mend it, where there is something to mend.
    pub cure: Option<String>,
    /// The cause, by the word that the metric, the log and the admin API have for it.
    pub kind: Option<FaultKind>,
    /// How long it took.
    pub took: Duration,
    /// What there is to say of each of several, a line each.
    pub details: Vec<String>,
}

/// What the latency step measured.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    /// Calls.
    pub calls: usize,
    /// Percentiles.
    pub p50: Duration,
    /// 95 of 100 were faster.
    pub p95: Duration,
    /// 99 of 100 were faster.
    pub p99: Duration,
}

/// Everything.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Where Redis is, without user and password; `None`: it is not configured.
    pub target: Option<String>,
    /// Who decides, and why, as a start would have it.
    pub in_force: String,
    /// In the order of [`STEPS`]; none when Redis is not configured.
    pub steps: Vec<Step>,
    /// What was measured, if it came to that.
    pub latency: Option<Latency>,
    /// Further steps: behind which, and which.
    pub further: Vec<(&'static str, &'static str)>,
    /// Whether the server locks the keys of a script alone where the script asks for it; `None`: it did not come to that.
    pub key_locking: Option<bool>,
}

/// Healthy 0, degraded 1, unusable 2: the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Nothing to mend.
    Healthy = 0,
    /// It works, and something should be mended.
    Degraded = 1,
    /// Redis would decide nothing.
    Unusable = 2,
}

impl Verdict {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Unusable => "unusable",
        }
    }
}

impl Outcome {
    /// The word for scripts.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::NotAllowed => "not_allowed",
        }
    }

    fn mark(self) -> &'static str {
        match self {
            Self::Good => "✅",
            Self::Warning => "⚠️ ",
            Self::Failed => "❌",
            Self::Skipped | Self::NotAllowed => "➖",
        }
    }

    /// The terminal's own green, yellow, red and grey.
    fn colour(self) -> &'static str {
        match self {
            Self::Good => "\x1b[32m",
            Self::Warning => "\x1b[33m",
            Self::Failed => "\x1b[31m",
            Self::Skipped | Self::NotAllowed => "\x1b[90m",
        }
    }
}

impl Report {
    /// The worst of the steps.
    pub fn verdict(&self) -> Verdict {
        let of = |step: &Step| match step.outcome {
            Outcome::Failed => Verdict::Unusable,
            Outcome::Warning => Verdict::Degraded,
            Outcome::Good | Outcome::Skipped | Outcome::NotAllowed => Verdict::Healthy,
        };
        self.steps.iter().map(of).max().unwrap_or(Verdict::Healthy)
    }

    /// Adds a step. Whatever a server said is made one line, without anything that a terminal obeys.
    pub(super) fn add(&mut self, mut step: Step) {
        step.found = one_line(&step.found);
        step.cure = step.cure.map(|cure| one_line(&cure));
        step.details = step.details.iter().map(|detail| one_line(detail)).collect();
        self.steps.push(step);
    }

    /// There is a further step, behind this one.
    pub(super) fn expect(&mut self, name: &'static str, behind: &'static str) {
        self.further.push((behind, name));
    }

    /// All steps of this examination.
    pub fn expected(&self) -> Vec<&'static str> {
        let mut expected = STEPS.to_vec();
        for (behind, name) in &self.further {
            let place = expected.iter().position(|step| step == behind).map_or(expected.len(), |at| at + 1);
            expected.insert(place, name);
        }
        expected
    }

    /// Fills in the steps that nobody came to.
    pub(super) fn skip_the_rest(&mut self) {
        for name in self.expected().into_iter().skip(self.steps.len()) {
            self.steps.push(Step {
                name,
                outcome: Outcome::Skipped,
                found: "skipped: an earlier step failed".to_owned(),
                cure: None,
                kind: None,
                took: Duration::ZERO,
                details: Vec::new(),
            });
        }
    }

    /// For people.
    pub fn text(&self, coloured: bool) -> String {
        let mut text = format!("{}\n", self.in_force);
        if self.steps.is_empty() {
            return text;
        }
        text.push('\n');
        for step in &self.steps {
            let (on, off) = if coloured { (step.outcome.colour(), "\x1b[0m") } else { ("", "") };
            let took = if step.took.is_zero() { String::new() } else { format!("  ({})", spell(step.took)) };
            let kind = step.kind.map_or(String::new(), |kind| format!("[{kind}] "));
            let (mark, name, found) = (step.outcome.mark(), step.name, &step.found);
            let _ = writeln!(text, "{mark} {on}{name:<13}{off} {kind}{found}{took}");
            for detail in &step.details {
                let _ = writeln!(text, "   {:<13} · {detail}", "");
            }
            if let Some(cure) = &step.cure {
                let _ = writeln!(text, "   {:<13} → {cure}", "");
            }
        }
        let verdict = self.verdict();
        let meaning = match verdict {
            Verdict::Healthy => "Redis is fit to decide",
            Verdict::Degraded => "Redis can decide, and what is marked ⚠️  should be mended",
            Verdict::Unusable => "Redis would decide nothing: every key would be decided in memory",
        };
        let _ = writeln!(text, "\n{}: {meaning}.", verdict.as_str());
        text
    }

    /// For scripts.
    pub fn json(&self) -> Value {
        let steps: Vec<Value> = self.steps.iter().map(step_json).collect();
        let ms = |duration: Duration| duration.as_micros() as f64 / 1_000.0;
        json!({
            "verdict": self.verdict().as_str(),
            "exit_code": self.verdict() as u8,
            "target": self.target,
            "in_force": self.in_force,
            "steps": steps,
            "key_locking": self.key_locking,
            "latency": self.latency.map(|latency| json!({
                "calls": latency.calls,
                "p50_ms": ms(latency.p50),
                "p95_ms": ms(latency.p95),
                "p99_ms": ms(latency.p99),
            })),
        })
    }
}

fn one_line(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

fn step_json(step: &Step) -> Value {
    json!({
        "step": step.name,
        "outcome": step.outcome.as_str(),
        "found": step.found,
        "cure": step.cure,
        "kind": step.kind.map(FaultKind::as_str),
        "took_ms": step.took.as_micros() as f64 / 1_000.0,
        "details": step.details,
    })
}

/// `0.3 ms`, `62 ms`, `5.0 s`.
pub(super) fn spell(duration: Duration) -> String {
    let ms = duration.as_secs_f64() * 1_000.0;
    match ms {
        _ if ms < 10.0 => format!("{ms:.1} ms"),
        _ if ms < 1_000.0 => format!("{ms:.0} ms"),
        _ => format!("{:.1} s", ms / 1_000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(outcome: Outcome) -> Step {
        let found = "it said\u{1b}[2J\nand more".to_owned();
        Step {
            name: "auth",
            outcome,
            found,
            cure: None,
            kind: None,
            took: Duration::from_millis(62),
            details: Vec::new(),
        }
    }

    #[test]
    fn what_a_server_says_neither_breaks_the_line_nor_writes_to_the_terminal() {
        let mut report = Report::default();
        report.add(step(Outcome::Failed));
        let text = report.text(false);
        assert!(text.contains("it said [2J and more  (62 ms)"), "{text}");
        assert!(!text.contains('\u{1b}'));
        assert!(report.text(true).contains("\u{1b}[31mauth"));
    }

    #[test]
    fn the_verdict_is_the_worst_step_and_what_was_skipped_or_not_allowed_is_no_failure() {
        let mut report = Report::default();
        for (outcome, verdict) in [
            (Outcome::Good, Verdict::Healthy),
            (Outcome::Skipped, Verdict::Healthy),
            (Outcome::NotAllowed, Verdict::Healthy),
            (Outcome::Warning, Verdict::Degraded),
            (Outcome::Failed, Verdict::Unusable),
            (Outcome::Good, Verdict::Unusable),
        ] {
            report.add(step(outcome));
            assert_eq!(report.verdict(), verdict);
        }
        report.skip_the_rest();
        assert_eq!(report.steps.len(), STEPS.len());
    }
}
