//! Sends the requests at their planned moments, whatever became of those before: an open loop. A server that stalls does
//! not slow the test down, and each answer is timed from the moment at which its request was planned, so that no wait
//! is left out ("coordinated omission").

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{Method, Request, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};

use super::plan::{Arrival, Plan};
use super::tally::{Done, Failure, Outcome, Tally};

type HttpClient = Client<HttpsConnector<HttpConnector>, Empty<Bytes>>;

/// Where requests go, and as whom.
#[derive(Clone, Debug)]
pub struct Aim {
    /// The page that is asked for.
    pub uri: Uri,
    /// How.
    pub method: Method,
    /// HTTP/2 rather than HTTP/1.1.
    pub http2: bool,
    /// What tells clients apart.
    pub clients: Clients,
    /// The most requests under way at once over HTTP/1.1; with HTTP/2 the number of connections.
    pub connections: usize,
    /// How long an answer is waited for.
    pub timeout: Duration,
}

/// What tells clients apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clients {
    /// A header with this prefix and the client's number; for headers of addresses, an address each.
    Header(HeaderName, String),
    /// Addresses of 127.0.0.0/8, which are all this machine's, from this one of them on: another for each test, so that none
    /// has a debt of an earlier one.
    Loopback(u32),
    /// Nothing: one client.
    One,
}

/// How long before its moment a request is handed to the thread that sends it, which then waits awake.
const EARLY: Duration = Duration::from_micros(150);

/// The most streams that are opened on one connection of HTTP/2 at once.
const STREAMS: usize = 100;

impl Clients {
    pub(super) fn header(&self, key: u32) -> Option<(HeaderName, HeaderValue)> {
        let Self::Header(name, prefix) = self else { return None };
        // 198.18.0.0/15 is set apart for such tests (RFC 2544).
        let address = Ipv4Addr::from_bits(0xC612_0000 | (key & 0x1_FFFF));
        let value = match name.as_str() {
            "forwarded" => format!("for={address}"),
            name if is_of_addresses(name) => address.to_string(),
            _ => format!("{prefix}{key}"),
        };
        Some((name.clone(), HeaderValue::from_str(&value).ok()?))
    }

    pub(super) fn source(&self, key: u32) -> Option<IpAddr> {
        let Self::Loopback(first) = self else { return None };
        // From 127.1.0.0 on: servers under test listen on the first of them.
        Some(Ipv4Addr::from_bits(0x7F01_0000 + first.wrapping_add(key) % 0xFE_0000).into())
    }
}

/// Whether a header of this name holds a client's address.
pub(super) fn is_of_addresses(name: &str) -> bool {
    matches!(name, "x-forwarded-for" | "x-real-ip" | "cf-connecting-ip" | "true-client-ip" | "forwarded")
}

/// How long a test goes on without any answer.
const LONGEST_WITHOUT_ANSWER: Duration = Duration::from_secs(5);

/// Asks once, as a client beyond those of the plan, and returns the headers of the answer.
///
/// # Errors
/// When there is none.
pub(super) async fn probe(aim: &Aim, keys: u32) -> std::io::Result<hyper::HeaderMap> {
    let client = http_client(connector(aim)?, aim.clients.source(keys), aim.http2);
    let asked = tokio::time::timeout(LONGEST_WITHOUT_ANSWER, client.request(request(aim, keys))).await;
    let answer = asked.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))?;
    answer.map(|answer| answer.headers().clone()).map_err(std::io::Error::other)
}

fn request(aim: &Aim, key: u32) -> Request<Empty<Bytes>> {
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = aim.uri.clone();
    *request.method_mut() = aim.method.clone();
    let headers = request.headers_mut();
    headers.insert(hyper::header::USER_AGENT, HeaderValue::from_static("tidegate-load-test"));
    headers.extend(aim.clients.header(key));
    request
}

/// Whether this machine could not make the connection: no file, no port or no memory was left for it.
fn is_our_own(error: &(dyn std::error::Error + 'static)) -> bool {
    // EMFILE, ENFILE, EADDRNOTAVAIL, ENOBUFS, ENOMEM of Linux.
    const OURS: [i32; 5] = [24, 23, 99, 105, 12];
    let mut error = Some(error);
    while let Some(one) = error {
        let system = one.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
        if system.is_some_and(|code| OURS.contains(&code)) {
            return true;
        }
        error = one.source();
    }
    false
}

/// Carries the plan out. `watch` is called about every second with what was seen so far.
///
/// # Errors
/// When the system's certificate authorities can't be read, which an `https` page needs, or threads can't be made.
pub(super) fn send(
    plan: &Plan,
    aim: &Aim,
    mut watch: impl FnMut(Duration, &Tally),
) -> std::io::Result<Tally> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    // One is enough for thousands a second, and leaves the other cores to the server under test.
    let threads = ((plan.peak() / 5_000.0) as usize + 1).min(threads);
    let blank = || Tally::new(plan.phases.len()).map_err(std::io::Error::other);
    let connector = connector(aim)?;
    let permits = if aim.http2 { aim.connections * STREAMS } else { aim.connections };
    let permits = Arc::new(Semaphore::new(permits.clamp(1, Semaphore::MAX_PERMITS)));
    // Connections and threads are made before the clock starts.
    let began = Instant::now() + Duration::from_millis(100);
    let mut senders = Vec::new();
    let mut tallies = Vec::new();
    let mut running = Vec::new();
    for _ in 0..threads {
        let (sender, arrivals) = mpsc::unbounded_channel();
        let tally = Arc::new(Mutex::new(blank()?));
        let worker = Worker {
            aim: aim.clone(),
            connector: connector.clone(),
            permits: Arc::clone(&permits),
            tally: Arc::clone(&tally),
            began,
        };
        senders.push(sender);
        tallies.push(tally);
        running.push(thread::Builder::new().name("load".into()).spawn(move || worker.run(arrivals))?);
    }
    let so_far = || -> std::io::Result<Tally> {
        let mut all = blank()?;
        tallies.iter().for_each(|tally| all.merge(&tally.lock()));
        Ok(all)
    };
    // A thread's sleep ends within some 60 µs, and another thread wakes as long after it was called; the timers of an
    // asynchronous runtime are a millisecond coarse. So the sender is called a little early, and looks at the clock.
    let planned = plan.clone();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let (over, is_over) = std::sync::mpsc::channel::<()>();
    let pacer = thread::Builder::new().name("pace".into()).spawn(move || {
        for arrival in planned.arrivals() {
            if stopped.load(Ordering::Relaxed) {
                break;
            }
            let call = (began + arrival.at).checked_sub(EARLY).unwrap_or(began);
            thread::sleep(call.saturating_duration_since(Instant::now()));
            // One client's requests stay in one thread, and so on its connections.
            let _ = senders[arrival.key as usize % senders.len()].send(arrival);
        }
        drop(senders);
        for thread in running {
            // A thread that panicked has told of it, and what it had seen is there.
            let _ = thread.join();
        }
        drop(over);
    })?;
    while is_over.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
        let seen = so_far()?;
        watch(began.elapsed(), &seen);
        let (answered, failed) = seen
            .phases
            .iter()
            .fold((0, 0), |(answered, failed), phase| (answered + phase.answered(), failed + phase.failed()));
        if began.elapsed() > LONGEST_WITHOUT_ANSWER && answered == 0 && failed > 0 {
            stop.store(true, Ordering::Relaxed);
        }
    }
    let _ = pacer.join();
    so_far()
}

/// One thread that sends.
struct Worker {
    aim: Aim,
    connector: HttpsConnector<HttpConnector>,
    permits: Arc<Semaphore>,
    tally: Arc<Mutex<Tally>>,
    began: Instant,
}

impl Worker {
    fn run(self, mut arrivals: mpsc::UnboundedReceiver<Arrival>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let Ok(runtime) = runtime else { return };
        let tasks = tokio::task::LocalSet::new();
        tasks.block_on(&runtime, async {
            let this = Arc::new(self);
            let mut clients = HttpClients::new(&this.aim, this.connector.clone());
            let mut under_way = tokio::task::JoinSet::new();
            while let Some(arrival) = arrivals.recv().await {
                let planned = this.began + arrival.at;
                while Instant::now() < planned {
                    // Answers are read meanwhile.
                    tokio::task::yield_now().await;
                }
                let client = clients.of(arrival.key);
                under_way.spawn_local(Arc::clone(&this).ask(client, arrival));
                while under_way.try_join_next().is_some() {}
            }
            while under_way.join_next().await.is_some() {}
        });
    }

    async fn ask(self: Arc<Self>, client: HttpClient, arrival: Arrival) {
        let planned = self.began + arrival.at;
        let late = planned.elapsed();
        let queue = Instant::now();
        let asked = async {
            // Closed by nobody.
            let _permit = self.permits.acquire().await.ok();
            let queued = queue.elapsed();
            (queued, self.answer(&client, arrival.key).await)
        };
        // A test that cannot keep up ends all the same.
        let (queued, outcome) = match late > self.aim.timeout {
            true => (Duration::ZERO, Outcome::Failed(Failure::Unsent)),
            false => match tokio::time::timeout(self.aim.timeout, asked).await {
                Ok(outcome) => outcome,
                Err(_) => (Duration::ZERO, Outcome::Failed(Failure::Timeout)),
            },
        };
        let took = planned.elapsed();
        let done = Done { phase: arrival.phase, planned: arrival.at, late, queued, took, outcome };
        self.tally.lock().add(&done);
    }

    async fn answer(&self, client: &HttpClient, key: u32) -> Outcome {
        let mut response = match client.request(request(&self.aim, key)).await {
            Ok(response) => response,
            Err(error) if is_our_own(&error) => return Outcome::Failed(Failure::Own),
            Err(error) if error.is_connect() => return Outcome::Failed(Failure::Connect),
            Err(_) => return Outcome::Failed(Failure::Broken),
        };
        while let Some(frame) = response.body_mut().frame().await {
            if frame.is_err() {
                return Outcome::Failed(Failure::Broken);
            }
        }
        Outcome::Answered(response.status().as_u16())
    }
}

/// The connections of one thread: of each address its own, else as many pools as there are connections of HTTP/2.
struct HttpClients {
    connector: HttpsConnector<HttpConnector>,
    clients: Clients,
    http2: bool,
    pools: u32,
    made: HashMap<u32, HttpClient>,
}

impl HttpClients {
    fn new(aim: &Aim, connector: HttpsConnector<HttpConnector>) -> Self {
        let pools = if aim.http2 { u32::try_from(aim.connections).unwrap_or(u32::MAX).max(1) } else { 1 };
        Self { connector, clients: aim.clients.clone(), http2: aim.http2, pools, made: HashMap::new() }
    }

    fn of(&mut self, key: u32) -> HttpClient {
        let source = self.clients.source(key);
        let pool = if source.is_some() { key } else { key % self.pools };
        let (connector, http2) = (&self.connector, self.http2);
        self.made.entry(pool).or_insert_with(|| http_client(connector.clone(), source, http2)).clone()
    }
}

fn http_client(connector: HttpsConnector<HttpConnector>, source: Option<IpAddr>, http2: bool) -> HttpClient {
    let connector = match source {
        None => connector,
        Some(source) => {
            // From an address of loopback nothing is encrypted: the test is of a limiter, and by `http`.
            let mut tcp = tcp();
            tcp.set_local_address(Some(source));
            (tcp, rustls_nothing()).into()
        }
    };
    Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).http2_only(http2).build(connector)
}

fn connector(aim: &Aim) -> std::io::Result<HttpsConnector<HttpConnector>> {
    if aim.uri.scheme_str() != Some("https") {
        return Ok((tcp(), rustls_nothing()).into());
    }
    let tls = HttpsConnectorBuilder::new().with_native_roots()?.https_only();
    Ok(if aim.http2 {
        tls.enable_http2().wrap_connector(tcp())
    } else {
        tls.enable_http1().wrap_connector(tcp())
    })
}

fn tcp() -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    tcp.enforce_http(false);
    tcp
}

/// Trusts nobody: for pages without TLS.
fn rustls_nothing() -> rustls::ClientConfig {
    rustls::ClientConfig::builder()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth()
}
