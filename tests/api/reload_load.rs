//! A thousand reloads under load.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::json;

use crate::support::process::Tidegate;
use crate::support::until;
use crate::support::upstream::Upstream;

/// Clients that ask without a pause.
const CLIENTS: usize = 2;
const RELOADS: usize = 1_000;
/// Reloads after which the process has what it needs: threads, buffers, the allocator's arenas.
const WARM_UP: usize = 250;
/// Rules that no request meets. They make a copy of the limits worth noticing: one that is kept of each reload after the
/// warm-up comes to 23 MiB (measured, 31 KiB each).
const IDLE_RULES: usize = 30;
/// What may come and go between two looks: log lines that wait for their writer, connections, freed memory that the
/// allocator keeps. Less than half a MiB was seen; keeping one copy in five would be too much.
const MARGIN_KIB: u64 = 4 * 1024;

/// A set of limits, by the headers that tell of it.
struct Limits {
    text: String,
    policies: &'static str,
    names: [&'static str; 2],
    limit: &'static str,
}

/// "kept" is in both, with other figures, and has the least left in both: every request is counted under its name.
fn limits() -> [Limits; 2] {
    let text = |kept: u32, other: &str, limit: u32, host: &str| {
        let mut text = format!(
            "[[rule]]\nname = \"load\"\nmatch = {{ path = \"/load/**\" }}\n\
             [[rule.policy]]\nname = \"{other}\"\nby = \"ip\"\nlimit = \"{limit}/minute\"\n\
             [[rule.policy]]\nname = \"kept\"\nby = \"ip\"\nlimit = \"{kept}/minute\"\n"
        );
        for number in 0..IDLE_RULES {
            text += &format!(
                "[[rule]]\nname = \"idle-{number}\"\nmatch = {{ host = \"{host}\", path = \"/idle-{number}/{{id}}/**\" }}\n\
                 [[rule.policy]]\nname = \"{other}-{number}\"\nby = \"header:x-key-{number}\"\nlimit = \"5/minute\"\n"
            );
        }
        text
    };
    [
        Limits {
            text: text(600_000, "one", 750_000, "one.example"),
            policies: r#""one";q=750000;w=60, "kept";q=600000;w=60"#,
            names: ["one", "kept"],
            limit: "600000",
        },
        Limits {
            text: text(1_200_000, "other", 1_500_000, "other.example"),
            policies: r#""other";q=1500000;w=60, "kept";q=1200000;w=60"#,
            names: ["other", "kept"],
            limit: "1200000",
        },
    ]
}

impl Limits {
    /// Whether every header of an answer is of these limits.
    fn told_by(&self, headers: &reqwest::header::HeaderMap) -> bool {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let names: Vec<&str> =
            text("ratelimit").split(", ").filter_map(|item| item.split('"').nth(1)).collect();
        text("ratelimit-policy") == self.policies
            && names == self.names
            && text("x-ratelimit-limit") == self.limit
            && !text("x-ratelimit-remaining").is_empty()
            && !text("x-ratelimit-reset").is_empty()
    }
}

fn resident_kib(tidegate: &Tidegate) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", tidegate.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_reloads_under_load_lose_no_request_mix_no_limits_and_keep_no_memory() {
    let upstream = Upstream::start();
    let url = upstream.url();
    let limits = Arc::new(limits());
    let tidegate = Arc::new(Tidegate::start(Some(&limits[0].text), &[("UPSTREAM_URL", &url)]).await);
    let stop = Arc::new(AtomicBool::new(false));
    let seen = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (tidegate, limits) = (Arc::clone(&tidegate), Arc::clone(&limits));
            let (stop, seen) = (Arc::clone(&stop), Arc::clone(&seen));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let answer = tidegate.get("/load/x").await;
                    assert_eq!(answer.status(), 200);
                    let headers = answer.headers();
                    let told = limits.iter().position(|one| one.told_by(headers));
                    seen[told.unwrap_or_else(|| panic!("neither in full: {headers:?}"))]
                        .fetch_add(1, Ordering::Relaxed);
                    answer.bytes().await.expect("the whole body");
                }
            })
        })
        .collect();

    let mut warm = 0;
    for number in 1..=RELOADS {
        tidegate.put_policies(&limits[number % 2].text);
        if number % 50 == 0 {
            tidegate.hang_up();
        }
        let (status, answer) = tidegate.reload().await;
        assert_eq!((status, &answer["rules"]), (200, &json!(IDLE_RULES + 1)), "{answer}");
        if number == WARM_UP {
            warm = resident_kib(&tidegate);
        }
    }
    let end = resident_kib(&tidegate);
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("no answer was lost, and none was of two sets of limits");
    }

    let [one, other] = [&seen[0], &seen[1]].map(|seen| seen.load(Ordering::Relaxed));
    assert!(one > 100 && other > 100, "{one} answers by one, {other} by the other");
    assert!(end <= warm + MARGIN_KIB, "{warm} KiB after {WARM_UP} reloads, {end} KiB after {RELOADS}");
    let metric = async |line: &str| -> Option<u64> {
        tidegate.metrics().await.lines().find_map(|text| text.strip_prefix(line)?.trim().parse().ok())
    };
    let kept = r#"tidegate_requests_total{backend="memory",state="allow",policy="kept",arm="control"}"#;
    until("every request is counted", async || metric(kept).await == Some(one + other)).await;
    let outcome =
        async |outcome: &str| metric(&format!("tidegate_reloads_total{{outcome=\"{outcome}\"}}")).await;
    // The watcher and the signals may have been faster than the one who asked.
    assert!(outcome("applied").await.unwrap() + outcome("unchanged").await.unwrap() >= RELOADS as u64);
    assert_eq!(outcome("failed").await, Some(0));
}
