//! The reverse proxy: a request that was let through goes to the upstream, and its answer comes back, both as they
//! flow.
//!
//! The connections to the upstream are the worker's own, and whoever uses one drives it. So a request is one task from
//! its first byte to the last of its answer: dropped when its client leaves, and with it the upstream's part.

mod answer;
mod ask;
mod body;
mod capacity;
mod connection;
mod forwarding;
mod limits;
mod peers;
mod pool;
mod stalled;
mod upgrade;

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use actix_web::web::Payload;
use actix_web::{HttpRequest, HttpResponse};
use hyper::header::HeaderValue;
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;

use super::client_ip::TrustedProxies;
use super::framing;
use super::problem::{Cause, Problem};
use super::wire::Line;
use crate::limiter::event::{Event, Observer};
use body::Client;
pub use capacity::Bounds;
use capacity::Capacity;
pub use limits::Limits;
pub use peers::{Address, Health};
use peers::{Peer, Peers};
use pool::Pool;
use stalled::Stalled;
pub use upgrade::Upgrades;

/// The host that the upstream sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPolicy {
    /// The one that the client asked for.
    Client,
    /// The upstream's own, as its address has it.
    Upstream,
    /// This one.
    Name(HeaderValue),
}

/// Where requests go and how long they may take.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Its addresses, at least one.
    pub addresses: Vec<Address>,
    /// Whether TLS is spoken to those that are hosts.
    pub https: bool,
    /// What is put before every request's path: empty, or `/…` without a slash at its end.
    pub base_path: String,
    /// The host that it sees.
    pub host: HostPolicy,
    /// How this proxy calls itself in `Via`, for clients of HTTP/1.0, 1.1 and 2; `None`: it adds none.
    pub via: Option<[HeaderValue; 3]>,
    /// The header in which it tells what a request cost, in lower case. A client's own does not reach it: it may hand
    /// on what it was sent.
    pub cost_header: Option<String>,
    /// When an address is passed over.
    pub health: Health,
    /// Longest wait for a connection, over all addresses of a name.
    pub connect_timeout: Duration,
    /// Longest wait for the head of an answer, from the last byte that was sent or came.
    pub timeout: Duration,
    /// Longest pause within an answer.
    pub idle_timeout: Duration,
    /// The longest that a request and its answer may take; `None`: as long as they move.
    pub total_timeout: Option<Duration>,
    /// How many idle connections a worker keeps to each address.
    pub idle_connections: usize,
    /// How long it keeps them.
    pub keep_alive: Duration,
    /// The age at which a connection is replaced after its current request, so that a name is resolved again under steady
    /// traffic; `None`: never.
    pub max_age: Option<Duration>,
    /// How many connections carry requests at once, and how many requests wait for one.
    pub bounds: Bounds,
    /// What is accepted of clients.
    pub limits: Limits,
    /// Which upgrades pass, and how many.
    pub upgrades: Upgrades,
}

impl Default for Upstream {
    /// Of no address, with the figures of the configuration's defaults.
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            https: false,
            base_path: String::new(),
            host: HostPolicy::Client,
            via: Self::via("tidegate"),
            cost_header: None,
            health: Health { max_fails: 1, fail_timeout: Duration::from_secs(10) },
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(60),
            total_timeout: None,
            idle_connections: 64,
            keep_alive: Duration::from_secs(60),
            max_age: Some(Duration::from_secs(60)),
            bounds: Bounds::default(),
            limits: Limits::default(),
            upgrades: Upgrades::default(),
        }
    }
}

impl Upstream {
    /// What `Via` says for clients of HTTP/1.0, 1.1 and 2 when this proxy is called `name`; `None` when that is no name.
    pub fn via(name: &str) -> Option<[HeaderValue; 3]> {
        let via = |version: &str| HeaderValue::from_str(&format!("{version} {name}")).ok();
        Some([via("1.0")?, via("1.1")?, via("2")?])
    }
}

/// The gateway, without the connections of a worker.
#[derive(Clone)]
pub struct Gateway(Arc<Shared>);

struct Shared {
    upstream: Upstream,
    peers: Peers,
    tls: Option<TlsConnector>,
    proxies: Arc<TrustedProxies>,
    observer: Arc<dyn Observer>,
    tunnels: AtomicUsize,
    capacity: Capacity,
}

/// The gateway of one worker: its connections are its own, so that none crosses threads.
#[derive(Clone)]
pub struct WorkerGateway(Rc<Worker>);

struct Worker {
    shared: Arc<Shared>,
    pool: Rc<Pool>,
    stalled: Stalled,
}

impl Gateway {
    /// A gateway to `upstream`.
    ///
    /// # Errors
    /// When an address can't be written as a host; for an `https` upstream also when it can't be named in a certificate, or
    /// when the system's certificate authorities cannot be read.
    pub fn new(
        upstream: Upstream,
        proxies: Arc<TrustedProxies>,
        observer: Arc<dyn Observer>,
    ) -> std::io::Result<Self> {
        let tls = if upstream.https { Some(tls()?) } else { None };
        let peers = upstream.addresses.iter().map(|address| peer(address, upstream.https));
        let peers = Peers::new(peers.collect::<std::io::Result<_>>()?, upstream.health);
        let tunnels = AtomicUsize::new(0);
        let capacity = Capacity::new(upstream.bounds);
        Ok(Self(Arc::new(Shared { upstream, peers, tls, proxies, observer, tunnels, capacity })))
    }

    /// The same gateway with connections of its own.
    pub fn of_worker(&self) -> WorkerGateway {
        let upstream = &self.0.upstream;
        let pool = Pool::new(
            self.0.peers.len(),
            upstream.idle_connections,
            pool::Lifetime { idle: upstream.keep_alive, age: upstream.max_age },
        );
        WorkerGateway(Rc::new(Worker { shared: Arc::clone(&self.0), pool, stalled: Stalled::default() }))
    }
}

impl WorkerGateway {
    /// Forwards a request and returns the answer, or one that says why there is none.
    pub async fn forward(&self, request: HttpRequest, payload: Payload) -> HttpResponse {
        match self.0.exchange(&request, payload).await {
            Ok(response) => response,
            Err(problem) => problem.response(),
        }
    }
}

impl Worker {
    async fn exchange(
        self: &Rc<Self>,
        request: &HttpRequest,
        payload: Payload,
    ) -> Result<HttpResponse, Problem> {
        let upstream = &self.shared.upstream;
        upstream.limits.check(request)?;
        let line = request.conn_data::<Rc<Line>>().cloned();
        let upgrade = match &line {
            Some(line) => upgrade::wanted(request, line, &self.shared)?,
            None => None,
        };
        let client = Client::of(request, payload.into_inner(), upstream.limits.body).await;
        let protocols = upgrade.as_ref().map(upgrade::Wanted::protocols);
        let (response, connection) = self.ask(request, line.as_deref(), &client, protocols).await?;
        if let Some(detail) = framing::doubtful_answer(response.version(), response.headers()) {
            self.shared.observer.observe(&Event::UpstreamFailed { detail });
            return Err(Problem::new(
                Cause::UpstreamInvalid,
                "The upstream's answer can be read in two ways.",
            ));
        }
        match (response.status(), upgrade) {
            (hyper::StatusCode::SWITCHING_PROTOCOLS, Some(upgrade)) => {
                Ok(upgrade.grant(response, connection, &client).await)
            }
            (hyper::StatusCode::SWITCHING_PROTOCOLS, None) => Err(Problem::new(
                Cause::UpstreamInvalid,
                "The upstream changed to a protocol that nobody asked for.",
            )),
            _ => Ok(answer::answer(self, response, connection, request, client).await),
        }
    }
}

fn peer(address: &Address, https: bool) -> std::io::Result<Peer> {
    let invalid =
        |_| std::io::Error::new(std::io::ErrorKind::InvalidInput, "the host can't be written in a header");
    let unnameable = |_| {
        let why = "the host can't be named in a certificate, so TLS can't be spoken to it";
        std::io::Error::new(std::io::ErrorKind::InvalidInput, why)
    };
    let (authority, name) = match address {
        // What nginx and curl say to whoever listens on a path.
        Address::Unix(_) => ("localhost".to_owned(), None),
        Address::Host(host, port) => {
            let bracketed = if host.contains(':') { format!("[{host}]") } else { host.clone() };
            let own = if https { 443 } else { 80 };
            let authority = if *port == own { bracketed } else { format!("{bracketed}:{port}") };
            // Without a name there would be no TLS, and the requests would go out for all to read.
            let name = https.then(|| ServerName::try_from(host.clone()).map_err(unnameable)).transpose()?;
            (authority, name)
        }
    };
    let authority = HeaderValue::from_str(&authority).map_err(invalid)?;
    Ok(Peer::new(address.clone(), authority, name))
}

/// TLS as a client, which believes the system's authorities.
fn tls() -> std::io::Result<TlsConnector> {
    let mut roots = rustls::RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let why = found.errors.first().map_or_else(|| "there are none".to_owned(), ToString::to_string);
        return Err(std::io::Error::other(format!(
            "the system's certificate authorities can't be read: {why}"
        )));
    }
    let mut config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_no_certificate_can_name_is_refused_for_https_and_never_spoken_to_in_clear() {
        let at = |host: &str| Address::Host(host.to_owned(), 8443);
        for host in ["-a.example", "a..example", "a b"] {
            assert!(peer(&at(host), true).is_err(), "{host}");
        }
        for host in ["a.example", "a_b", "192.0.2.1", "2001:db8::1"] {
            assert!(peer(&at(host), true).unwrap().name.is_some(), "{host}");
            assert!(peer(&at(host), false).unwrap().name.is_none(), "{host}");
        }
    }
}
