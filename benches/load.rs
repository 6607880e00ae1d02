//! Whether `tidegate load-test` says what oha says of the same server at the same rate: rate, statuses and latencies.
//!
//! Both send one request a millisecond, evenly spaced, to one front, and take turns round by round; a difference is the
//! median of the rounds' own differences. The page comes from an upstream that takes 4 to 20 ms for it, as APIs do: then
//! both must say the same. A page that the front answers by itself, in a tenth of a millisecond, is told beside it: there
//! the client's own part, how its timers fire and its threads wake, is as long as what it measures. oha is given
//! `-q RATE --latency-correction`, so that it waits for nobody either.
//! It is found on the path, or by the variable `OHA`; nothing is measured without (`cargo install oha`).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a bench stops at the first surprise"
)]

use std::convert::Infallible;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rows::{Most, Rows};
use serde_json::Value;
use support::median;

#[path = "support/rows.rs"]
mod rows;
#[allow(dead_code, reason = "each bench takes what it needs")]
mod support;

/// Requests a second.
const RATE: u32 = 1_000;
/// What the two may differ by, in percent.
const MOST: f64 = 5.0;

/// More a second than is sent.
const POLICIES: &str = "[[rule]]\nname = \"default\"\n[[rule.policy]]\nname = \"default\"\nby = \"ip\"\n\
    limit = \"1000000/second\"\nburst = 1000\n";

fn main() {
    let (rounds, seconds) = match std::env::args().any(|argument| argument == "--bench") {
        true => (5, 4),
        false => (1, 1),
    };
    let mut rows = Rows::of("load");
    let oha = std::env::var("OHA").unwrap_or_else(|_| "oha".into());
    if Command::new(&oha).arg("--version").stdout(Stdio::null()).status().is_err() {
        rows.skipped(
            "the load test beside oha",
            "oha is missing; `cargo install oha` brings it, OHA says where it is",
        );
        return;
    }
    let upstream = slow_upstream();
    println!(
        "{RATE} requests a second, medians of {rounds} rounds of {seconds} s; ms, and the difference in percent"
    );
    println!("{:<29} {:<14} {:>10} {:>10} {:>8}", "protocol", "", "load-test", "oha", "differs");
    for (page, upstream, http2) in [
        ("an upstream's page", Some(upstream), false),
        ("an upstream's page by HTTP/2", Some(upstream), true),
        ("the front's own page", None, false),
    ] {
        let front = Front::start(upstream);
        let mut seen: Vec<(Seen, Seen)> = Vec::new();
        // One round to warm up.
        for round in 0..=rounds {
            // Who begins, alternates.
            let pair = match round % 2 {
                0 => {
                    let ours = front.ours(http2, seconds);
                    (ours, front.theirs(&oha, http2, seconds))
                }
                _ => {
                    let theirs = front.theirs(&oha, http2, seconds);
                    (front.ours(http2, seconds), theirs)
                }
            };
            assert_eq!(pair.0.statuses, pair.1.statuses, "ours, and oha's");
            if round > 0 {
                seen.push(pair);
            }
        }
        for (what, of) in WHAT {
            let (ours, theirs) = (
                median(seen.iter().map(|(ours, _)| of(ours)).collect()),
                median(seen.iter().map(|(_, theirs)| of(theirs)).collect()),
            );
            let off =
                median(seen.iter().map(|(ours, theirs)| (of(ours) / of(theirs) - 1.0) * 100.0).collect());
            println!("{page:<29} {what:<14} {ours:>10.3} {theirs:>10.3} {off:>+8.1}");
            let what = format!("load-test beside oha, {page}: {what} off by");
            let most = upstream.map(|_| Most::Figure(MOST));
            rows.tell(&what, (off.abs(), "%"), Some((1.0 + off / 100.0, "oha's")), most);
        }
        let late = median(seen.iter().map(|(ours, _)| ours.late).collect());
        println!("{page:<29} {:<14} {late:>10.3}", "sent late, P50");
    }
}

/// What one run saw.
struct Seen {
    rate: f64,
    p50: f64,
    p95: f64,
    p99: f64,
    statuses: Value,
    /// Of ours only: the median of its own lateness, in milliseconds.
    late: f64,
}

/// One of its figures.
type Of = fn(&Seen) -> f64;

/// What is compared.
const WHAT: [(&str, Of); 4] = [
    ("rate, /s", |seen| seen.rate),
    ("P50", |seen| seen.p50),
    ("P95", |seen| seen.p95),
    ("P99", |seen| seen.p99),
];

/// The server under test.
struct Front {
    child: Child,
    url: String,
    _directory: tempfile::TempDir,
}

impl Front {
    fn start(upstream: Option<SocketAddr>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("config")).unwrap();
        std::fs::write(directory.path().join("config/policies.toml"), POLICIES).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_tidegate"))
            .env_clear()
            .envs([("HOST", "127.0.0.1"), ("PORT", "0"), ("ADMIN_ADDR", "127.0.0.1:0")])
            .envs([("TIDEGATE__SERVER__WORKERS", "1"), ("TIDEGATE__LOGGING__REQUESTS", "false")])
            .env("RUST_LOG", "off,tidegate=info,tidegate::request=off")
            .envs(upstream.map(|upstream| ("UPSTREAM_URL", format!("http://{upstream}"))))
            .current_dir(directory.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let url = loop {
            let mut line = String::new();
            assert!(
                lines.read_line(&mut line).unwrap() > 0,
                "the front ended before it announced its address"
            );
            if let Some((_, address)) = line.split_once("API on ") {
                break format!("{}/hello", address.trim());
            }
        };
        // Somebody has to read the log, as in earnest.
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        Self { child, url, _directory: directory }
    }

    fn ours(&self, http2: bool, seconds: u32) -> Seen {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command
            .args(["load-test", "--target", "1x", "--warm-up", "0s", "--arrivals", "even", "--json", "-"])
            .args(["--keys", "1", "--url", &self.url, "--expect-backend", "any"])
            .args(["--baseline-rpm", &(RATE * 60).to_string(), "--burst", &format!("{seconds}s")]);
        if http2 {
            command.args(["--http2", "--connections", "1"]);
        }
        let said = read(&mut command);
        let phase = &said["phases"][0];
        let number = |of: &Value| of.as_f64().unwrap_or_else(|| panic!("{said:#}"));
        Seen {
            rate: number(&phase["answered_a_second"]),
            p50: number(&phase["latency_ms"]["p50"]),
            p95: number(&phase["latency_ms"]["p95"]),
            p99: number(&phase["latency_ms"]["p99"]),
            statuses: phase["statuses"].clone(),
            late: number(&phase["lateness_ms"]["p50"]),
        }
    }

    fn theirs(&self, oha: &str, http2: bool, seconds: u32) -> Seen {
        let mut command = Command::new(oha);
        command
            .args(["--no-tui", "--output-format", "json", "--latency-correction", "-q", &RATE.to_string()])
            .args(["-n", &(RATE * seconds).to_string()]);
        match http2 {
            true => command.args(["--http2", "-c", "1", "-p", "100"]),
            false => command.args(["-c", "50"]),
        };
        let said = read(command.arg(&self.url));
        let number = |of: &Value| of.as_f64().unwrap_or_else(|| panic!("{said:#}"));
        let percentiles = &said["latencyPercentiles"];
        Seen {
            rate: number(&said["summary"]["requestsPerSec"]),
            p50: number(&percentiles["p50"]) * 1e3,
            p95: number(&percentiles["p95"]) * 1e3,
            p99: number(&percentiles["p99"]) * 1e3,
            statuses: said["statusCodeDistribution"].clone(),
            late: 0.0,
        }
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An upstream in this process that takes 4 to 20 ms for a page, most of the time little and now and then long, as APIs do.
/// Timers count in milliseconds: each percentile that is compared lies well within those that take the same, or a hair's
/// breadth would move it by a millisecond.
fn slow_upstream() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    std::thread::spawn(move || {
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let asked = Arc::new(AtomicU64::new(0));
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                let asked = Arc::clone(&asked);
                let page = service_fn(move |_: Request<Incoming>| {
                    // An odd factor permutes: each comes as often as it should, and not in a row.
                    let millis = match asked.fetch_add(1, Ordering::Relaxed) * 37 % 100 {
                        0..40 => 4,
                        40..80 => 8,
                        80..97 => 12,
                        _ => 20,
                    };
                    async move {
                        tokio::time::sleep(Duration::from_millis(millis)).await;
                        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"hello, world\n"))))
                    }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), page));
            }
        });
    });
    address
}

/// What a command writes, as JSON.
fn read(command: &mut Command) -> Value {
    let output = command.stderr(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{command:?}: {error}: {text}"))
}
