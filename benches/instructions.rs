//! Instructions of one decision by each door, counted by callgrind: the one figure that no neighbour changes.
//!
//! Each is run twice in a process of its own under valgrind, the second time with so many decisions more; the difference
//! by those is one decision, free of what the process does once. Needs Debian's valgrind.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a bench stops at the first surprise"
)]

use std::future::Future;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::pin::pin;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use actix_web::dev::Service;
use actix_web::test::{TestRequest, init_service};
use actix_web::{App, web};
use rows::Rows;
use tidegate::doors::client_ip::TrustedProxies;
use tidegate::doors::headers::Sets;
use tidegate::doors::middleware::RateLimit;
use tidegate::limiter::charge::Charge;
use tidegate::limiter::clock::{Clock, SECOND};
use tidegate::limiter::gcra::Quota;
use tidegate::limiter::memory::Memory;
use tidegate::limiter::policy::{Policy, Rules};
use tidegate::limiter::route::Route;
use tidegate::limiter::share::Share;
use tidegate::limiter::subject::{Facts, Part, ProcessKey, Subject};
use tidegate::limiter::{Hit, Limiter};

#[path = "support/rows.rs"]
mod rows;

/// A name for `--run`, what it is, and beside which it is read.
const DOORS: [(&str, &str, Option<&str>); 8] = [
    ("bucket", "hash and charge of one bucket", None),
    ("check-ip", "`Limiter::check` by address", Some("bucket")),
    ("check-key", "`Limiter::check` by a header", Some("bucket")),
    ("check-denied", "`Limiter::check` that denies", Some("bucket")),
    ("check-two", "`Limiter::check` of two policies", Some("bucket")),
    ("bare", "a bare actix page, in process", None),
    ("silent", "the same behind our middleware, no headers", Some("bare")),
    ("telling", "the same behind our middleware, its headers", Some("bare")),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, which, times] = arguments.as_slice()
        && flag == "--run"
    {
        run(which, times.parse().unwrap());
        return;
    }
    let times = if arguments.iter().any(|argument| argument == "--bench") { 5_000 } else { 10 };
    let mut rows = Rows::of("instructions");
    if Command::new("valgrind").arg("--version").stdout(Stdio::null()).status().is_err() {
        rows.skipped("instructions a decision", "valgrind is missing; `apt-get install valgrind` brings it");
        return;
    }
    println!("{:<46} {:>22}", "", "instructions a decision");
    let mut seen: Vec<(&str, f64)> = Vec::new();
    for (name, what, beside) in DOORS {
        let each = (instructions(name, 2 * times) - instructions(name, times)) / times as f64;
        println!("{what:<46} {each:>22.0}");
        let beside = beside.and_then(|beside| seen.iter().find(|(name, _)| *name == beside));
        let ratio =
            beside.map(|(name, theirs)| (each / theirs, if *name == "bare" { "bare" } else { "the bucket" }));
        rows.tell(what, (each, "instructions"), ratio, None);
        seen.push((name, each));
    }
}

/// All instructions of a process that decides so often.
fn instructions(which: &str, times: u64) -> f64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().unwrap())
        .args(["--run", which, &times.to_string()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let collected = said.lines().find_map(|line| line.split_once("Collected : "));
    let (_, count) = collected.unwrap_or_else(|| panic!("valgrind counted nothing: {said}"));
    count.trim().parse().unwrap()
}

struct Client;

impl Facts for Client {
    fn ip(&self) -> Option<IpAddr> {
        Some(Ipv4Addr::new(192, 0, 2, 17).into())
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        (name == "x-api-key").then_some(b"ak_live_0123456789")
    }
}

/// One that stands still: the machine's is calibrated when it is made, for a time and not for a number of instructions.
fn clock() -> Clock {
    Clock::manual(1_800_000_000 * SECOND)
}

fn quota(burst: u32) -> Quota {
    Quota::new(NonZeroU32::MIN, SECOND, NonZeroU32::new(burst).unwrap()).unwrap()
}

fn limiter(parts: &[Part], burst: u32) -> Arc<Limiter> {
    let policy = |(at, part): (usize, &Part)| {
        Policy::new(format!("policy-{at}"), Subject::new([part.clone()]), quota(burst))
    };
    let mut rules = Rules::none();
    rules.add("default", Route::any(), 1, parts.iter().enumerate().map(policy));
    Arc::new(Limiter::new(rules, Memory::new(1_000), &[7; 16], clock()))
}

fn run(which: &str, times: u64) {
    let by_key = || Part::Header("x-api-key".into());
    let plenty = 1_000_000;
    match which {
        "bucket" => bucket(times),
        "check-ip" => check(&limiter(&[Part::Ip], plenty), times),
        "check-key" => check(&limiter(&[by_key()], plenty), times),
        "check-denied" => check(&limiter(&[Part::Ip], 1), times),
        "check-two" => check(&limiter(&[Part::Ip, by_key()], plenty), times),
        "bare" | "silent" | "telling" => page(which, times),
        other => panic!("no door is called {other}"),
    }
}

fn bucket(times: u64) {
    let (subject, process_key) = (Subject::ip(), ProcessKey::new(&[7; 16]));
    let (memory, clock, quota) = (Memory::new(1_000), clock(), quota(1_000_000));
    let identity = subject.identify(&Client).unwrap();
    for _ in 0..times {
        let key = process_key.hash(black_box(&identity));
        let charge = Charge { key, quota, span: None, cost: 1, share: Share::WHOLE, enforce: true };
        black_box(memory.charge(&[charge], false, clock.now()));
    }
}

fn check(limiter: &Arc<Limiter>, times: u64) {
    for _ in 0..times {
        let mut check = pin!(limiter.check(black_box(&Client), Hit::ONE));
        match check.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(decision) => black_box(decision.allowed()),
            Poll::Pending => panic!("memory decides at once"),
        };
    }
}

fn page(which: &str, times: u64) {
    macro_rules! ask {
        ($app:expr) => {{
            let app = init_service($app.route("/", web::get().to(async || "hello"))).await;
            for _ in 0..times {
                let request = TestRequest::get()
                    .uri("/")
                    .insert_header(("x-api-key", "ak_live_0123456789"))
                    .peer_addr("192.0.2.17:1234".parse().unwrap())
                    .to_request();
                assert_eq!(app.call(request).await.unwrap().status(), 200);
            }
        }};
    }
    let limited = |sets: Sets| {
        let limiter = limiter(&[Part::Header("x-api-key".into())], 1_000_000);
        RateLimit::with(limiter, Arc::new(TrustedProxies::default()), sets)
    };
    actix_web::rt::System::new().block_on(async {
        match which {
            "bare" => ask!(App::new()),
            "silent" => ask!(App::new().wrap(limited(Sets::NONE))),
            _ => ask!(App::new().wrap(limited(Sets::default()))),
        }
    });
}
