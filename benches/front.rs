//! CPU microseconds a request, user and system, of whole servers side by side in one run: a bare actix page, the same
//! behind actix-governor, the same behind our middleware, and the whole front with the log off and on.
//!
//! Each server is a process of its own. CPU time is the kernel's account of that process (its threads' schedstat)
//! over a round, divided by the requests of the round: on a shared machine it is far steadier than requests a second.
//! Contenders take turns round by round; a ratio is the median of the rounds' own ratios.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a bench stops at the first surprise"
)]

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use actix_governor::{Governor, GovernorConfigBuilder};
use actix_web::{App, HttpServer, web};
use tidegate::doors::headers::Sets;
use tidegate::doors::middleware::RateLimit;
use tidegate::limiter::Limiter;
use tidegate::limiter::clock::SECOND;
use tidegate::limiter::gcra::Quota;
use tidegate::limiter::policy::Rules;

use support::{Connection, cpu_nanos, median};

mod support;

/// Few at once, as before most APIs: a server that finds thirty requests at each waking looks cheaper than it is.
const CONNECTIONS: usize = 4;
const WORKERS: usize = 1;

const GET: &str = "GET /hello HTTP/1.1\r\nHost: bench.example\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n";
const CHECK: &str = "POST /v1/check HTTP/1.1\r\nHost: bench.example\r\nUser-Agent: bench\r\nAccept: */*\r\n\
    Content-Type: application/json\r\nContent-Length: 16\r\n\r\n{\"key\":\"client\"}";

/// More a second than this machine serves, so that nothing is denied, and a burst of the usual size.
const POLICIES: &str = "[[rule]]\nname = \"default\"\n[[rule.policy]]\nname = \"default\"\nby = \"ip\"\n\
    limit = \"1000000/second\"\nburst = 1000\n";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, which] = arguments.as_slice()
        && flag == "--serve"
    {
        serve(which);
        return;
    }
    let (rounds, requests) = match arguments.iter().any(|argument| argument == "--bench") {
        true => (9, 40_000),
        false => (1, 200),
    };
    let contenders = [
        Contender::page("bare actix page", "bare"),
        Contender::page("actix-governor", "governor"),
        Contender::page("our middleware", "middleware"),
        Contender::page("our middleware, no headers", "bare-headers"),
        Contender::front("front, GET judged, log off", GET, false),
        Contender::front("front, GET judged, log on", GET, true),
        Contender::front("front, POST /v1/check, log off", CHECK, false),
        Contender::front("front, POST /v1/check, log on", CHECK, true),
    ];
    let mut micros = vec![Vec::new(); contenders.len()];
    let mut rates = vec![Vec::new(); contenders.len()];
    // One round to warm up.
    for round in 0..=rounds {
        for (at, contender) in contenders.iter().enumerate() {
            let (cpu, rate) = contender.measure(requests);
            if round > 0 {
                micros[at].push(cpu);
                rates[at].push(rate);
            }
        }
    }
    println!("{:<34} {:>14} {:>10} {:>12}", "", "CPU µs/request", "× bare", "requests/s");
    let mut ratios = Vec::new();
    for (at, contender) in contenders.iter().enumerate() {
        let ratio = median(micros[at].iter().zip(&micros[0]).map(|(own, bare)| own / bare).collect());
        let (cpu, rate) = (median(micros[at].clone()), median(rates[at].clone()));
        println!("{:<34} {cpu:>14.2} {ratio:>10.2} {rate:>12.0}", contender.name);
        ratios.push(ratio);
    }
    for (at, most) in [(2, 1.15), (4, 1.6), (6, 1.6)] {
        let met = if ratios[at] <= most { "met" } else { "MISSED" };
        println!("target: {} ≤ {most} × bare: {met} ({:.2})", contenders[at].name, ratios[at]);
    }
}

/// A server in a process of its own, and the request that it gets.
struct Contender {
    name: &'static str,
    request: &'static str,
    address: SocketAddr,
    child: Child,
    _directory: tempfile::TempDir,
}

impl Contender {
    fn page(name: &'static str, which: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--serve", which]);
        Self::start(name, GET, command)
    }

    fn front(name: &'static str, request: &'static str, log: bool) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command
            .env_clear()
            .envs([("HOST", "127.0.0.1"), ("PORT", "0"), ("ADMIN_ADDR", "127.0.0.1:0")])
            .env("TIDEGATE__SERVER__WORKERS", WORKERS.to_string())
            .env("TIDEGATE__LOGGING__REQUESTS", log.to_string())
            // The life-cycle lines name the address; with the log off, nothing beyond them.
            .env("RUST_LOG", if log { "info" } else { "off,tidegate=info,tidegate::request=off" });
        Self::start(name, request, command)
    }

    fn start(name: &'static str, request: &'static str, mut command: Command) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("config")).unwrap();
        std::fs::write(directory.path().join("config/policies.toml"), POLICIES).unwrap();
        command.current_dir(directory.path()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let address = loop {
            let mut line = String::new();
            assert!(lines.read_line(&mut line).unwrap() > 0, "{name} ended before it announced its address");
            if let Some((_, address)) = line.split_once("API on http://") {
                break address.trim().parse().unwrap();
            }
        };
        // Somebody has to read the log, as in earnest.
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        Self { name, request, address, child, _directory: directory }
    }

    /// CPU microseconds a request, and requests a second.
    fn measure(&self, requests: usize) -> (f64, f64) {
        let mut connections: Vec<Connection> =
            (0..CONNECTIONS).map(|_| Connection::to(self.address)).collect();
        let turns = requests / CONNECTIONS;
        let (cpu, started) = (cpu_nanos(self.child.id()), Instant::now());
        for _ in 0..turns {
            connections.iter_mut().for_each(|connection| connection.send(self.request));
            connections.iter_mut().for_each(Connection::receive);
        }
        let cpu = cpu_nanos(self.child.id()) - cpu;
        let count = (turns * CONNECTIONS) as f64;
        (cpu as f64 / 1000.0 / count, count / started.elapsed().as_secs_f64())
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The servers beside which the front is measured, all alike but for what limits them.
fn serve(which: &str) {
    let which = which.to_owned();
    actix_web::rt::System::new().block_on(async move {
        let wide = NonZeroU32::new(1_000_000).unwrap();
        let quota = Quota::new(wide, SECOND, NonZeroU32::new(1_000).unwrap()).unwrap();
        let limiter = Arc::new(Limiter::in_memory(Rules::by_ip(quota), b"0123456789abcdef"));
        let governor = GovernorConfigBuilder::default()
            .nanoseconds_per_request(1)
            .burst_size(u32::MAX)
            .finish()
            .unwrap();
        let page = || web::get().to(async || "hello, world\n");
        macro_rules! listen {
            ($app:expr) => {{
                let server = HttpServer::new(move || $app)
                    .workers(WORKERS)
                    .disable_signals()
                    .bind("127.0.0.1:0")
                    .unwrap();
                println!("API on http://{}", server.addrs()[0]);
                server.run().await.unwrap();
            }};
        }
        match which.as_str() {
            "bare" => listen!(App::new().route("/hello", page())),
            "governor" => listen!(App::new().wrap(Governor::new(&governor)).route("/hello", page())),
            "middleware" => {
                listen!(App::new().wrap(RateLimit::new(Arc::clone(&limiter))).route("/hello", page()))
            }
            "bare-headers" => {
                let limit = (Arc::clone(&limiter), Sets::NONE);
                listen!(
                    App::new()
                        .wrap(RateLimit::with(Arc::clone(&limit.0), Arc::default(), limit.1))
                        .route("/hello", page())
                )
            }
            other => panic!("no server is called {other}"),
        }
    });
}
