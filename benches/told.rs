//! What it costs a request to be counted: `Telemetry::observe` of an answered request, with request lines off.
//!
//! The median of rounds, in nanoseconds a request. `cargo bench --bench told` fails above the limit.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a bench stops at the first surprise"
)]

use std::hint::black_box;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rows::{Most, Rows};
use tidegate::limiter::clock::{Clock, SECOND};
use tidegate::limiter::event::{Event, Exchange, Observer, Origin};
use tidegate::limiter::exposure::Exposure;
use tidegate::limiter::gcra::Quota;
use tidegate::limiter::policy::Rules;
use tidegate::limiter::{Check, Hit, Limiter};
use tidegate::telemetry::{Format, Options, Output, Telemetry};

#[path = "support/rows.rs"]
mod rows;

const ROUNDS: usize = 21;
/// Nanoseconds a request.
const LIMIT: f64 = 100.0;

fn main() {
    // `cargo test --benches` only wants to see it run.
    let bench = std::env::args().any(|argument| argument == "--bench");
    let times: u32 = if bench { 1_000_000 } else { 1_000 };
    let quota =
        Quota::new(NonZeroU32::new(100).unwrap(), 60 * SECOND, NonZeroU32::new(100).unwrap()).unwrap();
    let limiter = Arc::new(Limiter::in_memory(Rules::by_ip(quota), b"0123456789abcdef"));
    let Some(Check::Decided(Some(decision))) = limiter.check_key("default", b"client", Hit::ONE) else {
        panic!("memory decides at once")
    };
    let (output, _flush) = Output::start(Format::Text, "off").unwrap();
    let options = Options {
        request_lines: None,
        production: true,
        warn_interval: Duration::MAX,
        redis: true,
        redis_per_day: true,
        tls: true,
        exposure: Arc::new(Exposure::default()),
        clock: Clock::system(),
    };
    let telemetry = Telemetry::new(options, output, limiter.rules());
    let exchange = Exchange {
        request_id: "0",
        method: "GET",
        path: "/",
        client: None,
        status: 200,
        took: Duration::from_millis(3),
        origin: Origin::Upstream,
        decision: Some(&decision),
        deciding_took: Duration::from_micros(2),
        token: None,
        trace: None,
    };
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let started = Instant::now();
            for _ in 0..times {
                telemetry.observe(black_box(&Event::Answered(&exchange)));
            }
            started.elapsed().as_nanos() as f64 / f64::from(times)
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    let median = rounds[ROUNDS / 2];
    println!(
        "counting one request: {median:.0} ns ({:.0} to {:.0} in {ROUNDS} rounds)",
        rounds[0],
        rounds[ROUNDS - 1]
    );
    Rows::of("told").tell("counting one answered request", (median, "ns"), None, Some(Most::Figure(LIMIT)));
    assert!(!bench || median < LIMIT, "{median:.0} ns a request; at most {LIMIT:.0} are meant");
}
