//! CPU microseconds a request, user and system, of whole servers side by side in one run: a bare actix page, the same
//! behind actix-governor, the same behind our middleware, the whole front with the log off and on, deciding in memory and
//! by Redis, and throttlecrab-server, where it is installed (`cargo install throttlecrab-server`, which wants Debian's
//! protobuf-compiler): on the path, or where the variable `THROTTLECRAB` says.
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
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroU32;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_governor::{Governor, GovernorConfigBuilder};
use actix_web::{App, HttpServer, web};
use tidegate::doors::headers::Sets;
use tidegate::doors::middleware::RateLimit;
use tidegate::limiter::Limiter;
use tidegate::limiter::clock::SECOND;
use tidegate::limiter::gcra::Quota;
use tidegate::limiter::policy::Rules;

use rows::{Most, Rows};
use support::{Connection, cpu_nanos, median};

#[path = "support/rows.rs"]
mod rows;

mod support;

/// Few at once, as before most APIs: a server that finds thirty requests at each waking looks cheaper than it is.
const CONNECTIONS: usize = 4;
/// So many, that calls of Redis that are under way together travel together.
const MANY: usize = 32;
const WORKERS: usize = 1;

const GET: &str = "GET /hello HTTP/1.1\r\nHost: bench.example\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n";
const CHECK: &str = "POST /v1/check HTTP/1.1\r\nHost: bench.example\r\nUser-Agent: bench\r\nAccept: */*\r\n\
    Content-Type: application/json\r\nContent-Length: 16\r\n\r\n{\"key\":\"client\"}";

/// The same question to throttlecrab-server.
const THROTTLE: &str = "POST /throttle HTTP/1.1\r\nHost: bench.example\r\nUser-Agent: bench\r\nAccept: */*\r\n\
    Content-Type: application/json\r\nContent-Length: 84\r\n\r\n\
    {\"key\":\"client\",\"max_burst\":1000,\"count_per_period\":1000000,\"period\":1,\"quantity\":1}";

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
        true => (9, 20_000),
        false => (1, 200),
    };
    let redis = Redis::start();
    let mut contenders = vec![
        Contender::page(BARE, "bare"),
        Contender::page("actix-governor", "governor"),
        Contender::page("our middleware", "middleware"),
        Contender::page("our middleware, no headers", "bare-headers"),
        Contender::front("front, GET judged, log off", GET, false, None),
        Contender::front("front, GET judged, log on", GET, true, None),
        Contender::front(BY_CHECK, CHECK, false, None),
        Contender::front("front, POST /v1/check, log on", CHECK, true, None),
    ];
    if let Some(redis) = &redis {
        for (name, connections) in [(BY_REDIS, CONNECTIONS), (BY_REDIS_MANY, MANY)] {
            let front = Contender::front(name, GET, false, Some(redis)).at_once(connections);
            redis.wait_until_it_decides(&front);
            contenders.push(front);
        }
        contenders.push(Contender::page(BARE_MANY, "bare").at_once(MANY));
    }
    contenders.extend(Contender::throttlecrab());
    let mut micros = vec![Vec::new(); contenders.len()];
    let mut rates = vec![Vec::new(); contenders.len()];
    let mut redis_micros = Vec::new();
    // One round to warm up.
    for round in 0..=rounds {
        for (at, contender) in contenders.iter().enumerate() {
            let redis = redis.as_ref().filter(|_| contender.name == BY_REDIS_MANY);
            let before = redis.map(|redis| (redis.decisions(), cpu_nanos(redis.child.id())));
            let (cpu, rate) = contender.measure(requests);
            if let (Some(redis), Some((decided, nanos)), 1..) = (redis, before, round) {
                let nanos = cpu_nanos(redis.child.id()) - nanos;
                let decided = redis.decisions() - decided;
                // A few more are the heartbeats of the fleet.
                let asked = (requests / MANY * MANY) as u64;
                let calls = asked..asked + 100;
                assert!(
                    calls.contains(&decided),
                    "{decided} calls: each request is one, and none falls back"
                );
                redis_micros.push(nanos as f64 / 1e3 / decided as f64);
            }
            if round > 0 {
                micros[at].push(cpu);
                rates[at].push(rate);
            }
        }
    }
    println!("{:<34} {:>14} {:>10} {:>12}", "", "CPU µs/request", "× bare", "requests/s");
    let mut ratios = Vec::new();
    for (at, contender) in contenders.iter().enumerate() {
        let beside = if contender.connections == MANY { BARE_MANY } else { BARE };
        let bare = contenders.iter().position(|bare| bare.name == beside).unwrap();
        let ratio = median(micros[at].iter().zip(&micros[bare]).map(|(own, bare)| own / bare).collect());
        let (cpu, rate) = (median(micros[at].clone()), median(rates[at].clone()));
        println!("{:<34} {cpu:>14.2} {ratio:>10.2} {rate:>12.0}", contender.name);
        ratios.push(ratio);
    }
    let mut rows = Rows::of("front");
    for (at, contender) in contenders.iter().enumerate() {
        let most = MOST.iter().find(|(name, _)| *name == contender.name).map(|&(_, most)| most);
        if let Some(most) = most {
            let met = if ratios[at] <= most { "met" } else { "MISSED" };
            println!("target: {} ≤ {most} × bare: {met} ({:.2})", contender.name, ratios[at]);
        }
        let figure = (median(micros[at].clone()), "CPU µs a request");
        rows.tell(contender.name, figure, Some((ratios[at], "the bare page")), most.map(Most::Ratio));
    }
    match redis_micros.is_empty() {
        false => {
            let spent = median(redis_micros);
            println!("redis-server, a decision of that front: {spent:.2} µs");
            rows.tell(
                "redis-server, a decision of that front, 32 at once",
                (spent, "CPU µs"),
                None,
                Some(Most::Figure(8.0)),
            );
        }
        true => rows.skipped(BY_REDIS, "redis-server is missing; `make test` installs it"),
    }
    let place = |name: &str| contenders.iter().position(|contender| contender.name == name);
    match (place(BY_CHECK), place(THROTTLECRAB)) {
        (Some(ours), Some(theirs)) => {
            let ratios = micros[ours].iter().zip(&micros[theirs]).map(|(ours, theirs)| ours / theirs);
            let ratio = median(ratios.collect());
            println!("POST /v1/check ÷ throttlecrab-server's POST /throttle: {ratio:.2}");
            let figure = (median(micros[ours].clone()), "CPU µs a request");
            let ratio = Some((ratio, "throttlecrab-server's"));
            rows.tell("POST /v1/check beside another's", figure, ratio, Some(Most::Ratio(1.0)));
        }
        _ => rows.skipped(
            "POST /v1/check beside throttlecrab-server",
            "it is missing; `cargo install throttlecrab-server` brings it, THROTTLECRAB says where it is",
        ),
    }
}

const BY_CHECK: &str = "front, POST /v1/check, log off";
const BARE: &str = "bare actix page";
const BARE_MANY: &str = "bare actix page, 32 at once";
const BY_REDIS: &str = "front, GET judged by Redis, log off";
const BY_REDIS_MANY: &str = "front, GET by Redis, 32 at once";
const THROTTLECRAB: &str = "throttlecrab-server, POST /throttle";

/// How many times the bare page each may take.
const MOST: [(&str, f64); 4] =
    [("our middleware", 1.15), ("front, GET judged, log off", 1.6), (BY_CHECK, 1.6), (BY_REDIS_MANY, 2.5)];

/// A server in a process of its own, and the request that it gets.
struct Contender {
    name: &'static str,
    request: &'static str,
    /// How many requests are under way at once.
    connections: usize,
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

    fn front(name: &'static str, request: &'static str, log: bool, redis: Option<&Redis>) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command
            .env_clear()
            .envs([("HOST", "127.0.0.1"), ("PORT", "0"), ("ADMIN_ADDR", "127.0.0.1:0")])
            .env("TIDEGATE__SERVER__WORKERS", WORKERS.to_string())
            .env("TIDEGATE__LOGGING__REQUESTS", log.to_string())
            // The life-cycle lines name the address; with the log off, nothing beyond them.
            .env("RUST_LOG", if log { "info" } else { "off,tidegate=info,tidegate::request=off" });
        if let Some(redis) = redis {
            command.env("REDIS_URL", format!("redis://{}", redis.address)).envs([
                ("TIDEGATE__REDIS__WARM_UP_S", "0"),
                // Nobody is to give up where the machine is busy.
                ("TIDEGATE__REDIS__TIMEOUT_MS", "1000"),
            ]);
        }
        Self::start(name, request, command)
    }

    fn at_once(mut self, connections: usize) -> Self {
        self.connections = connections;
        self
    }

    /// Where it is installed.
    fn throttlecrab() -> Option<Self> {
        let program = std::env::var("THROTTLECRAB").unwrap_or_else(|_| "throttlecrab-server".into());
        let address = free();
        let mut command = Command::new(program);
        command
            .args(["--http", "--http-host", "127.0.0.1", "--http-port", &address.port().to_string()])
            .args(["--log-level", "error"])
            .env("TOKIO_WORKER_THREADS", WORKERS.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command.spawn().ok()?;
        let directory = tempfile::tempdir().unwrap();
        let this = Self {
            name: THROTTLECRAB,
            request: THROTTLE,
            connections: CONNECTIONS,
            address,
            child,
            _directory: directory,
        };
        listening(address);
        Some(this)
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
        Self { name, request, connections: CONNECTIONS, address, child, _directory: directory }
    }

    /// CPU microseconds a request, and requests a second.
    fn measure(&self, requests: usize) -> (f64, f64) {
        let mut connections: Vec<Connection> =
            (0..self.connections).map(|_| Connection::to(self.address)).collect();
        let turns = requests / self.connections;
        let (cpu, started) = (cpu_nanos(self.child.id()), Instant::now());
        for _ in 0..turns {
            connections.iter_mut().for_each(|connection| connection.send(self.request));
            connections.iter_mut().for_each(Connection::receive);
        }
        let cpu = cpu_nanos(self.child.id()) - cpu;
        let count = (turns * self.connections) as f64;
        (cpu as f64 / 1000.0 / count, count / started.elapsed().as_secs_f64())
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A redis-server of its own.
struct Redis {
    child: Child,
    address: SocketAddr,
}

impl Redis {
    /// Where it is installed.
    fn start() -> Option<Self> {
        let address = free();
        let child = Command::new("redis-server")
            .args([
                "--port",
                &address.port().to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "no",
            ])
            .stdout(Stdio::null())
            .spawn()
            .ok()?;
        listening(address);
        Some(Self { child, address })
    }

    /// How many calls of a script it has answered.
    fn decisions(&self) -> u64 {
        let client = redis::Client::open(format!("redis://{}", self.address)).unwrap();
        let mut connection = client.get_connection().unwrap();
        let said: String = redis::cmd("INFO").arg("commandstats").query(&mut connection).unwrap();
        let calls = said.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
        calls.and_then(|calls| calls.split(',').next()).map_or(0, |calls| calls.parse().unwrap())
    }

    fn wait_until_it_decides(&self, front: &Contender) {
        let deadline = Instant::now() + Duration::from_secs(30);
        let before = self.decisions();
        while self.decisions() < before + 10 {
            assert!(Instant::now() < deadline, "the front does not decide by Redis");
            front.measure(2 * MANY);
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Waits until somebody listens there.
fn listening(address: SocketAddr) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < deadline, "nobody listens on {address}");
        std::thread::sleep(Duration::from_millis(20));
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
