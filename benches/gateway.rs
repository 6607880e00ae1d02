//! CPU microseconds a request, user and system, of whole proxies before one upstream in one run: nginx with limit_req, a
//! bare hyper proxy, and the front with the limiter on, its log off and on.
//!
//! As in `front.rs`: each is a process of its own with one worker, CPU time is the kernel's account of it, contenders take
//! turns round by round, and a ratio is the median of the rounds' own ratios. Needs Debian's nginx.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a bench stops at the first surprise"
)]

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rows::{Most, Rows};
use support::{Connection, cpu_nanos, median};

#[path = "support/rows.rs"]
mod rows;

mod support;

const CONNECTIONS: usize = 32;

const GET: &str = "GET /hello HTTP/1.1\r\nHost: bench.example\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n";

/// More a second than this machine serves, so that nothing is denied.
const POLICIES: &str = "[[rule]]\nname = \"default\"\n[[rule.policy]]\nname = \"default\"\nby = \"ip\"\n\
    limit = \"1000000/second\"\nburst = 1000\n";

/// What ours is held against, by its place below, and how much more it may take.
const NGINX: usize = 1;
const FRONT: usize = 4;
const TARGET: f64 = 1.3;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, port, upstream] = arguments.as_slice()
        && flag == "--serve"
    {
        bare_hyper(port.parse().unwrap(), upstream.parse().unwrap());
        return;
    }
    let (rounds, requests) = match arguments.iter().any(|argument| argument == "--bench") {
        true => (7, 32_000),
        false => (1, 320),
    };
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let mut rows = Rows::of("gateway");
    if Command::new("nginx").arg("-v").stderr(Stdio::null()).status().is_err() {
        rows.skipped("the gateway beside nginx", "nginx is missing; `apt-get install nginx-light` brings it");
        return;
    }
    let page =
        "location / { return 200 \"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde\\n\"; }";
    let upstream = Contender::nginx("nginx, the upstream itself", directory, "upstream", "", page);
    let to = upstream.address;
    let limited = format!("location / {{ limit_req zone=clients burst=1000 nodelay; {} }}", passed());
    let unlimited = format!("location / {{ {} }}", passed());
    let http = |log: &str| {
        format!(
            "limit_req_zone $binary_remote_addr zone=clients:10m rate=1000000r/s;\n\
             upstream application {{ server {to}; keepalive 64; keepalive_requests 100000000; }}\n{log}"
        )
    };
    let log = format!("access_log {}/access.log;", directory.display());
    let contenders = [
        Contender::nginx("nginx, no limit", directory, "plain", &http("access_log off;"), &unlimited),
        Contender::nginx("nginx + limit_req", directory, "limited", &http("access_log off;"), &limited),
        Contender::nginx("nginx + limit_req, log on", directory, "logged", &http(&log), &limited),
        Contender::hyper(to),
        Contender::front("the front, log off", to, false),
        Contender::front("the front, log on", to, true),
        upstream,
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
    println!("{:<28} {:>14} {:>20} {:>12}", "", "CPU µs/request", "× nginx + limit_req", "requests/s");
    let mut ratios = Vec::new();
    for (at, contender) in contenders.iter().enumerate() {
        let ratio = median(micros[at].iter().zip(&micros[NGINX]).map(|(own, nginx)| own / nginx).collect());
        let (cpu, rate) = (median(micros[at].clone()), median(rates[at].clone()));
        println!("{:<28} {cpu:>14.2} {ratio:>20.2} {rate:>12.0}", contender.name);
        if [FRONT - 1, FRONT, FRONT + 1].contains(&at) {
            let most = (at == FRONT).then_some(Most::Ratio(TARGET));
            rows.tell(
                &format!("gateway: {}", contender.name),
                (cpu, "CPU µs a request"),
                Some((ratio, "nginx + limit_req")),
                most,
            );
        }
        ratios.push(ratio);
    }
    let met = if ratios[FRONT] <= TARGET { "met" } else { "MISSED" };
    println!(
        "target: {} ≤ {TARGET} × nginx + limit_req: {met} ({:.2})",
        contenders[FRONT].name, ratios[FRONT]
    );
    let price = micros[FRONT + 1].iter().zip(&micros[FRONT]).map(|(on, off)| on - off).collect();
    println!("the log's price: {:.2} µs a request", median(price));
}

/// What a proxy that nginx's own manual describes says.
fn passed() -> &'static str {
    "proxy_pass http://application; proxy_http_version 1.1; proxy_set_header Connection \"\"; \
     proxy_set_header Host $host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; \
     proxy_set_header X-Forwarded-Proto $scheme; proxy_buffering on;"
}

/// A server in a process of its own.
struct Contender {
    name: &'static str,
    address: SocketAddr,
    child: Child,
    _directory: Option<tempfile::TempDir>,
}

impl Contender {
    fn nginx(
        name: &'static str,
        directory: &std::path::Path,
        called: &str,
        http: &str,
        server: &str,
    ) -> Self {
        let address = free();
        let own = directory.join(called);
        std::fs::create_dir(&own).unwrap();
        let log = if http.is_empty() { "access_log off;" } else { "" };
        let configuration = format!(
            "daemon off; master_process off; pid nginx.pid; error_log error.log;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ client_body_temp_path a; proxy_temp_path b; fastcgi_temp_path c; uwsgi_temp_path d; scgi_temp_path e;\n\
             {log} {http}\nkeepalive_requests 100000000;\nserver {{ listen {address}; {server} }} }}"
        );
        std::fs::write(own.join("nginx.conf"), configuration).unwrap();
        let mut command = Command::new("nginx");
        command.arg("-p").arg(&own).args(["-c", "nginx.conf", "-e", "error.log"]);
        Self::start(name, address, command, None)
    }

    fn hyper(upstream: SocketAddr) -> Self {
        let address = free();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--serve", &address.port().to_string(), &upstream.to_string()]);
        Self::start("bare hyper proxy", address, command, None)
    }

    fn front(name: &'static str, upstream: SocketAddr, log: bool) -> Self {
        let address = free();
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("config")).unwrap();
        std::fs::write(directory.path().join("config/policies.toml"), POLICIES).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command
            .env_clear()
            .envs([("HOST", "127.0.0.1"), ("ADMIN_ADDR", "127.0.0.1:0"), ("TIDEGATE__SERVER__WORKERS", "1")])
            .env("PORT", address.port().to_string())
            .env("UPSTREAM_URL", format!("http://{upstream}"))
            .env("TIDEGATE__LOGGING__REQUESTS", log.to_string())
            .env("RUST_LOG", if log { "info" } else { "off,tidegate=info,tidegate::request=off" })
            .current_dir(directory.path());
        Self::start(name, address, command, Some(directory))
    }

    fn start(
        name: &'static str,
        address: SocketAddr,
        mut command: Command,
        directory: Option<tempfile::TempDir>,
    ) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        // Somebody has to read the log, as in earnest.
        let mut lines = child.stdout.take().unwrap();
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(address).is_err() {
            assert!(child.try_wait().unwrap().is_none(), "{name} ended at once");
            assert!(Instant::now() < deadline, "{name} does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { name, address, child, _directory: directory }
    }

    /// CPU microseconds a request, and requests a second.
    fn measure(&self, requests: usize) -> (f64, f64) {
        let mut connections: Vec<Connection> =
            (0..CONNECTIONS).map(|_| Connection::to(self.address)).collect();
        let turns = requests / CONNECTIONS;
        let (cpu, started) = (cpu_nanos(self.child.id()), Instant::now());
        for _ in 0..turns {
            connections.iter_mut().for_each(|connection| connection.send(GET));
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

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// The least that a proxy does: it hands requests on and answers back.
fn bare_hyper(port: u16, upstream: SocketAddr) {
    type Body = UnsyncBoxBody<Bytes, hyper::Error>;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new()).build::<_, Body>(connector);
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let client = client.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let client = client.clone();
                async move {
                    let (mut parts, body) = request.into_parts();
                    let path = parts.uri.path_and_query().cloned().unwrap();
                    parts.uri = Uri::builder()
                        .scheme("http")
                        .authority(upstream.to_string())
                        .path_and_query(path)
                        .build()
                        .unwrap();
                    let answer = client.request(Request::from_parts(parts, body.boxed_unsync())).await;
                    Ok::<_, Infallible>(match answer {
                        Ok(answer) => answer.map(BodyExt::boxed_unsync),
                        Err(_) => {
                            let none: Body = Empty::new().map_err(|never| match never {}).boxed_unsync();
                            let mut answer = Response::new(none);
                            *answer.status_mut() = StatusCode::BAD_GATEWAY;
                            answer
                        }
                    })
                }
            });
            tokio::task::spawn_local(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
            );
        }
    });
}
