//! Judges what was seen, threshold by threshold. A test holds when all of them do.

use serde::Serialize;
use std::collections::BTreeMap;

use super::foretell::Foretold;
use super::tally::Counts;

/// What is asked of the front. Shares are 0 to 1.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Thresholds {
    /// Latency of 95 % of the answers, in milliseconds.
    pub p95_ms: f64,
    /// Answers of 5xx, and requests without any.
    pub errors: f64,
    /// Answers of 429.
    pub throttled: f64,
}

/// Who was to decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Expected {
    /// What the front's own rollout says.
    Auto,
    /// Redis, always.
    Redis,
    /// Memory, always.
    Memory,
    /// Whoever.
    Any,
}

/// One thing that holds or does not.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// In which phase, or of the whole test.
    pub phase: &'static str,
    /// What.
    pub what: &'static str,
    /// What was seen.
    pub seen: String,
    /// What is asked.
    pub asked: String,
    /// Whether it holds; `None` when it could not be seen and nobody asked for it.
    pub holds: Option<bool>,
    /// What it means when it does not hold.
    pub why: Option<String>,
}

/// A generator that sends one request in a hundred later than this measures itself.
const LATEST_MS: f64 = 10.0;
/// So many more denials than foretold are the server's.
const UNFORETOLD: f64 = 0.005;

/// At least so much of the prediction by the front's own rules must be denied: a limiter that admits what it is there to
/// deny is no sound one. Half, for debts and the borders of windows shift a little with the clock.
const DENIED_AT_LEAST: f64 = 0.5;

/// Metrics that count fewer of the answered requests than this are another process', or one of several.
const COUNTED_AT_LEAST: f64 = 0.5;

/// The checks of one phase. Beside the prediction: whether it is by the front's own rules. Without a
/// prediction nothing is checked.
pub fn of_phase(
    name: &'static str,
    seen: &Counts,
    (foretold, exact): (Option<Foretold>, bool),
    asked: &Thresholds,
) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut check = |what, seen: String, asked: String, holds: bool, why: Option<String>| {
        let why = why.filter(|_| !holds);
        checks.push(Check { phase: name, what, seen, asked, holds: Some(holds), why });
    };
    let failed = seen.share(seen.failed());
    let reasons: Vec<String> =
        seen.failures.iter().map(|(failure, count)| format!("{count} {}", failure.as_str())).collect();
    let nobody = seen.answered() == 0;
    check(
        "answered",
        share(1.0 - failed),
        format!("> {}", share(1.0 - asked.errors)),
        !nobody && failed < asked.errors,
        Some(match nobody {
            true => format!(
                "nobody answers ({}): is the front running, and is this its address?",
                reasons.join(", ")
            ),
            false => format!("requests without an answer: {}", reasons.join(", ")),
        }),
    );
    let p95 = seen.percentile_ms(95.0);
    check(
        "P95 latency",
        if nobody { "none".to_owned() } else { ms(p95) },
        format!("< {}", ms(asked.p95_ms)),
        !nobody && p95 < asked.p95_ms,
        (!nobody).then(|| "measured from the moment at which each request was planned".to_owned()),
    );
    let errors = seen.share(seen.with_status(500..=599));
    let statuses: Vec<String> =
        seen.statuses.range(500..).map(|(status, count)| format!("{count} × {status}")).collect();
    check(
        "5xx",
        share(errors),
        format!("< {}", share(asked.errors)),
        errors < asked.errors,
        Some(statuses.join(", ")),
    );
    let throttled = seen.share(seen.with_status(429..=429));
    let by_plan = foretold.map_or(0.0, Foretold::share);
    check(
        "429",
        share(throttled),
        format!("< {}", share(asked.throttled)),
        throttled < asked.throttled,
        Some(match by_plan >= asked.throttled {
            _ if foretold.is_none() => {
                "no limit of the front is known, so none is predicted: set ADMIN_TOKEN, or --limit".to_owned()
            }
            true => format!(
                "the key plan itself goes over the limit and foretells {}: more clients (--keys), a lower rate, or less skew",
                share(by_plan)
            ),
            false => format!("the key plan foretells {}", share(by_plan)),
        }),
    );
    if foretold.is_some() {
        check(
            "429 beyond the plan",
            share(throttled - by_plan),
            format!("< {}", share(UNFORETOLD)),
            throttled - by_plan < UNFORETOLD,
            Some(
                "more is denied than the plan's own keys explain: does the limit differ from --limit, does \
                 the front tell these clients apart at all (--key-header), or do their buckets hold debts of an earlier test?"
                    .to_owned(),
            ),
        );
    }
    if exact && by_plan >= UNFORETOLD {
        let of_answers = seen.with_status(429..=429) as f64 / seen.answered().max(1) as f64;
        check(
            "429 as foretold",
            share(of_answers),
            format!("> {}", share(by_plan * DENIED_AT_LEAST)),
            nobody || of_answers > by_plan * DENIED_AT_LEAST,
            Some("the front lets pass what its own rules deny: is another process behind this address, or do several share the load without Redis?".to_owned()),
        );
    }
    let refused = seen.with_status(400..=428) + seen.with_status(430..=499);
    let late = seen.lateness_ms(99.0);
    check(
        "generator on time (P99)",
        ms(late),
        format!("< {}", ms(LATEST_MS)),
        late < LATEST_MS,
        Some(
            "the generator was the bottleneck: the latencies are its own. A lower rate, or another machine."
                .to_owned(),
        ),
    );
    let queued = seen.share(seen.queued);
    check(
        "found a free connection",
        share(1.0 - queued),
        format!("> {}", share(0.99)),
        queued < 0.01,
        Some(
            "requests waited for a connection: more of them (--connections), or the front stalls".to_owned(),
        ),
    );
    if refused > 0 {
        let statuses =
            seen.statuses.iter().filter(|(status, _)| (400..500).contains(*status) && **status != 429);
        let statuses: Vec<String> = statuses.map(|(status, count)| format!("{count} × {status}")).collect();
        let why = "the limiter was tested, and not what is behind it: is this the page (--url, --method)?";
        checks.push(Check {
            phase: name,
            what: "other 4xx",
            seen: share(seen.share(refused)),
            asked: "none".to_owned(),
            holds: None,
            why: Some(format!("{}: {why}", statuses.join(", "))),
        });
    }
    checks
}

/// Who decided. `seen` is by backend; an error says why it could not be seen.
pub fn of_backend(
    seen: Result<&BTreeMap<String, u64>, &str>,
    percent: Option<f64>,
    expected: Expected,
    (keys, answered): (f64, u64),
) -> Check {
    let mut check = Check {
        phase: "all",
        what: "rl_backend",
        seen: String::new(),
        asked: String::new(),
        holds: None,
        why: None,
    };
    let share_of_redis = match expected {
        Expected::Any => None,
        Expected::Redis => Some(1.0),
        Expected::Memory => Some(0.0),
        Expected::Auto => percent.map(|percent| percent / 100.0),
    };
    check.asked = match share_of_redis {
        None => "any".to_owned(),
        Some(1.0) => "redis".to_owned(),
        Some(0.0) => "memory".to_owned(),
        Some(part) => format!("redis for {} of the keys", share(part)),
    };
    let by_backend = match seen {
        Ok(by_backend) => by_backend,
        Err(why) => {
            check.seen = "not seen".to_owned();
            check.why = Some(format!("the front's metrics can't be read ({why}): --admin-url"));
            check.holds = matches!(expected, Expected::Redis | Expected::Memory).then_some(false);
            return check;
        }
    };
    let all: u64 = by_backend.values().sum();
    let redis = by_backend.get("redis").copied().unwrap_or_default();
    let told: Vec<String> = by_backend
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(backend, count)| format!("{backend} {}", share(*count as f64 / all.max(1) as f64)))
        .collect();
    check.seen = if told.is_empty() { "no decision".to_owned() } else { told.join(", ") };
    if all > 0 && (all as f64) < answered as f64 * COUNTED_AT_LEAST {
        check.holds = matches!(expected, Expected::Redis | Expected::Memory).then_some(false);
        check.why = Some(format!(
            "these metrics count {all} decisions, and {answered} requests were answered: another process listens at --admin-url"
        ));
        return check;
    }
    check.holds = share_of_redis.map(|wanted| {
        let seen = redis as f64 / all.max(1) as f64;
        // Some requests may fall back; of a share of the keys the draw has its spread.
        let spread = match wanted {
            0.0 | 1.0 => 0.005,
            part => 0.005 + 4.0 * (part * (1.0 - part) / keys.max(1.0)).sqrt(),
        };
        all > 0 && (seen - wanted).abs() <= spread
    });
    if check.holds == Some(false) {
        check.why = Some(match all {
            0 => "the front decided nothing: is the page one of tidegate's own, or under no rule?".to_owned(),
            _ => "the wanted store did not decide: `tidegate doctor` and the front's log say why".to_owned(),
        });
    }
    check
}

/// Whether everything that was asked holds.
pub fn holds(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.holds != Some(false))
}

/// A share in percent, with as many digits as tell it from none.
pub fn share(share: f64) -> String {
    let percent = share * 100.0;
    if percent != 0.0 && percent.abs() < 10.0 { format!("{percent:.2} %") } else { format!("{percent:.1} %") }
}

/// Milliseconds.
pub fn ms(ms: f64) -> String {
    if ms < 10.0 { format!("{ms:.2} ms") } else { format!("{ms:.0} ms") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(redis: u64, memory: u64, percent: f64, expected: Expected) -> Option<bool> {
        let seen = [("redis".to_owned(), redis), ("memory".to_owned(), memory)].into();
        of_backend(Ok(&seen), Some(percent), expected, (1_000.0, redis + memory)).holds
    }

    #[test]
    fn the_backend_is_the_one_that_was_asked_for_or_the_rollouts() {
        assert_eq!(backend(1_000, 0, 100.0, Expected::Auto), Some(true));
        assert_eq!(backend(900, 100, 100.0, Expected::Auto), Some(false));
        assert_eq!(backend(120, 880, 10.0, Expected::Auto), Some(true));
        assert_eq!(backend(300, 700, 10.0, Expected::Auto), Some(false));
        assert_eq!(backend(0, 1_000, 100.0, Expected::Memory), Some(true));
        assert_eq!(backend(0, 1_000, 100.0, Expected::Any), None);
        assert_eq!(backend(0, 0, 100.0, Expected::Redis), Some(false));
    }

    #[test]
    fn a_backend_that_cannot_be_seen_fails_only_whoever_asked_for_one() {
        let unseen = |expected| of_backend(Err("it answers 401"), None, expected, (1.0, 1)).holds;
        assert_eq!(unseen(Expected::Auto), None);
        assert_eq!(unseen(Expected::Redis), Some(false));
    }
}
