//! The outcome for people and for scripts.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::foretell::Foretold;
use super::verdict::{Check, ms, share};
use super::{Outcome, SeenPhase};

/// For scripts.
pub fn json(outcome: &Outcome) -> Value {
    let phase = |phase: &SeenPhase| {
        let counts = &phase.counts;
        let latency = |percent| counts.percentile_ms(percent);
        let failures: serde_json::Map<String, Value> =
            counts.failures.iter().map(|(why, count)| (why.as_str().to_owned(), json!(count))).collect();
        let statuses: serde_json::Map<String, Value> =
            counts.statuses.iter().map(|(status, count)| (status.to_string(), json!(count))).collect();
        json!({
            "phase": phase.name, "rate": phase.rate, "seconds": phase.seconds, "judged": phase.judged,
            "sent": counts.all(), "answered": counts.answered(),
            "answered_a_second": counts.answered() as f64 / phase.seconds,
            "latency_ms": {
                "mean": counts.latency.mean() / 1e3, "p50": latency(50.0), "p90": latency(90.0), "p95": latency(95.0),
                "p99": latency(99.0), "p999": latency(99.9), "max": counts.latency.max() as f64 / 1e3,
            },
            "lateness_ms": { "p50": counts.lateness_ms(50.0), "p99": counts.lateness_ms(99.0) },
            "waited_for_a_connection": counts.queued,
            "statuses": statuses, "failures": failures,
            "throttled": {
                "foretold": phase.foretold.map(Foretold::share),
                "seen": counts.share(counts.with_status(429..=429)),
            },
        })
    };
    json!({
        "url": outcome.url, "seed": outcome.seed, "keys": outcome.keys, "limits": outcome.limits,
        "thresholds": outcome.thresholds,
        "phases": outcome.phases.iter().map(phase).collect::<Vec<_>>(),
        "decisions": outcome.decisions,
        "checks": outcome.checks, "holds": outcome.holds(),
    })
}

/// For people.
pub fn text(outcome: &Outcome) -> String {
    let mut text = format!("{}\n", about(outcome));
    let _ = writeln!(
        text,
        "\n{:<10} {:>10} {:>9} {:>9} {:>10} {:>10} {:>10} {:>10} {:>8} {:>8}",
        "phase", "rate /s", "sent", "answered", "P50", "P95", "P99", "longest", "429", "5xx"
    );
    for phase in &outcome.phases {
        let counts = &phase.counts;
        let _ = writeln!(
            text,
            "{:<10} {:>10.1} {:>9} {:>9} {:>10} {:>10} {:>10} {:>10} {:>8} {:>8}",
            phase.name,
            phase.rate,
            counts.all(),
            counts.answered(),
            ms(counts.percentile_ms(50.0)),
            ms(counts.percentile_ms(95.0)),
            ms(counts.percentile_ms(99.0)),
            ms(counts.latency.max() as f64 / 1e3),
            share(counts.share(counts.with_status(429..=429))),
            share(counts.share(counts.with_status(500..=599))),
        );
    }
    text.push('\n');
    let wide =
        |of: fn(&Check) -> &str| outcome.checks.iter().map(|one| of(one).chars().count()).max().unwrap_or(0);
    let (what, seen, asked) = (wide(|one| one.what), wide(|one| &one.seen), wide(|one| &one.asked));
    for one in &outcome.checks {
        let mark = mark(one.holds);
        let Check { phase, what: name, seen: found, asked: wanted, .. } = one;
        let line = format!("{mark} {phase:<10} {name:<what$}  {found:>seen$}  {wanted:<asked$}");
        let _ = writeln!(text, "{}", line.trim_end());
        if let Some(why) = &one.why {
            let _ = writeln!(text, "     {why}");
        }
    }
    let verdict = if outcome.holds() { "✅ All thresholds hold." } else { "❌ Not all thresholds hold." };
    let _ = writeln!(text, "\n{verdict}");
    text
}

/// What was done, in a sentence.
pub(super) fn about(outcome: &Outcome) -> String {
    let limits = match outcome.limits.as_slice() {
        [] => "no limit known: no 429 is foretold".to_owned(),
        limits => format!("foretold with {}", limits.join(" and ")),
    };
    format!("{}: {} client(s), seed {}; {limits}", outcome.url, outcome.keys, outcome.seed)
}

fn mark(holds: Option<bool>) -> &'static str {
    match holds {
        Some(true) => "✅",
        Some(false) => "❌",
        None => "❔",
    }
}
