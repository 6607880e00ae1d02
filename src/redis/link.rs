//! The link to Redis: calls under our own deadline, and a background task that makes, proves and replaces the
//! connection. No request ever waits for a connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion,
    RedisConnectionInfo, TlsCertificates, Value,
};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::charge::{self, Answer, SCRIPT};
use super::offset::ClockOffset;
use super::target::{Protocol, Target};
use super::{fault, secret};
use crate::limiter::breaker::Breaker;
use crate::limiter::clock::{Clock, Micros};
use crate::limiter::event::{Event, Observer};
use crate::limiter::gcra::Quota;
use crate::limiter::rollout::Rollout;
use crate::limiter::store::{Charged, Fault, FaultKind, SharedCharge, Store};
use crate::limiter::subject::SubjectHash;

/// How to reach Redis and how patiently.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it is.
    pub target: Target,
    /// Certificates of the authorities to believe instead of the system's, PEM.
    pub ca_cert: Option<Vec<u8>>,
    /// Our certificate and key, PEM.
    pub client_identity: Option<(Vec<u8>, Vec<u8>)>,
    /// The longest that a request waits, queueing included.
    pub timeout: Duration,
    /// The longest that making and proving a connection may take, in the background.
    pub connect_timeout: Duration,
    /// The longest wait between two attempts to connect.
    pub reconnect_interval: Duration,
    /// What our keys begin with.
    pub namespace: String,
    /// How often the fleet's secret is looked at in Redis; `None` when one was given, so that Redis holds none. A
    /// cache under pressure evicts first what nobody reads, and the next instance to start would make another
    /// secret: buckets and keys of its own. Each look is a command that the provider bills.
    pub secret_interval: Option<Duration>,
}

/// The shared store in Redis. Cheap to clone: all clones are one.
#[derive(Clone)]
pub struct RedisStore(Arc<Link>);

struct Link {
    options: Options,
    client: Client,
    /// EVALSHA's first argument.
    script: redis::Script,
    /// The connection in use. None: nobody is asked.
    connection: ArcSwapOption<MultiplexedConnection>,
    breaker: Breaker,
    /// Set by the call that opens the breaker, so that one outage is told once.
    lost: AtomicBool,
    wake: Notify,
    offset: ClockOffset,
    clock: Clock,
    rollout: Arc<Rollout>,
    observer: Arc<dyn Observer>,
    state: Mutex<LinkState>,
}

/// What the link says of itself.
#[derive(Clone, Debug)]
pub struct LinkState {
    /// Whether Redis is in use.
    pub connected: bool,
    /// Since when, in microseconds since the epoch.
    pub since: Micros,
    /// The last fault, even if it is over.
    pub last_fault: Option<Fault>,
}

/// A wait that grows from here,
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// or from here, up to there, when a person has to mend something: asking hot would only fill the server's log.
const FIRST_WAIT_FOR_A_PERSON: Duration = Duration::from_secs(30);
const LONGEST_WAIT_FOR_A_PERSON: Duration = Duration::from_secs(300);
/// So much health makes the next outage a new one.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);

impl RedisStore {
    /// A store that is not connected yet: spawn [`RedisStore::keep_connected`].
    ///
    /// # Errors
    /// When the certificates make no sense. Nothing is asked of the network.
    pub fn new(
        options: Options,
        clock: Clock,
        rollout: Arc<Rollout>,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, Fault> {
        let client = open(&options).map_err(|error| fault::classify(&error))?;
        let state = LinkState { connected: false, since: clock.now(), last_fault: None };
        Ok(Self(Arc::new(Link {
            client,
            script: redis::Script::new(SCRIPT),
            connection: ArcSwapOption::empty(),
            breaker: Breaker::default(),
            lost: AtomicBool::new(true),
            wake: Notify::new(),
            offset: ClockOffset::default(),
            clock,
            rollout,
            observer,
            state: Mutex::new(state),
            options,
        })))
    }

    /// Connects, and connects again whenever the connection is lost. Runs until it is dropped.
    pub async fn keep_connected(self) {
        let link = &self.0;
        let mut attempt = 0;
        let mut secret = None;
        loop {
            let proven = timeout(link.options.connect_timeout, link.connect(&mut secret)).await;
            let fault = match proven {
                Ok(Ok(connection)) => {
                    let since = Instant::now();
                    link.use_connection(connection);
                    link.until_lost(&mut secret).await;
                    if since.elapsed() >= HEALTHY_AFTER {
                        attempt = 0;
                    }
                    let last = link.state.lock().last_fault.clone();
                    last.unwrap_or_else(Fault::open)
                }
                Ok(Err(fault)) => link.unreachable(fault),
                Err(_) => link.unreachable(Fault::new(
                    FaultKind::Timeout,
                    format!("no working connection within {} ms", link.options.connect_timeout.as_millis()),
                )),
            };
            sleep(wait(attempt, fault.kind, link.options.reconnect_interval)).await;
            attempt = attempt.saturating_add(1);
        }
    }

    /// What the link says of itself.
    pub fn state(&self) -> LinkState {
        self.0.state.lock().clone()
    }

    /// Where Redis is, in words that hold no secret.
    pub fn target(&self) -> &Target {
        &self.0.options.target
    }
}

impl Store for RedisStore {
    async fn charge(&self, charges: &[SharedCharge<'_>], peek: bool, now: Micros) -> Result<Charged, Fault> {
        let link = &*self.0;
        let Some(connection) = link.connection.load_full() else { return Err(Fault::open()) };
        let started = Instant::now();
        let asked = link.ask((*connection).clone(), charges, peek, now);
        let outcome = match timeout(link.options.timeout, asked).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Fault::new(FaultKind::Timeout, "no answer within REDIS_TIMEOUT_MS")),
        };
        match outcome {
            Ok(Answer { now: server, readings, from }) => {
                link.breaker.succeeded();
                link.observer.observe(&Event::StoreAnswered { took: started.elapsed() });
                let judged_at = link.offset.learn(server, now, link.clock.now());
                Ok(Charged { readings, from, judged_at })
            }
            Err(fault) => {
                link.failed(&fault, &connection);
                Err(fault)
            }
        }
    }
}

impl Link {
    /// One EVALSHA; when the server has forgotten the script, one EVAL, which teaches it again.
    async fn ask(
        &self,
        mut connection: MultiplexedConnection,
        charges: &[SharedCharge<'_>],
        peek: bool,
        now: Micros,
    ) -> Result<Answer, Fault> {
        let sent_at = self.offset.server_time(now);
        let mut command = redis::cmd("EVALSHA");
        command.arg(self.script.get_hash());
        charge::arguments(&mut command, &self.options.namespace, charges, peek, sent_at);
        let value = match answered(&mut connection, &command).await {
            Err(error) if charge::is_unknown_script(&error) => {
                let mut command = redis::cmd("EVAL");
                command.arg(SCRIPT);
                charge::arguments(&mut command, &self.options.namespace, charges, peek, sent_at);
                answered(&mut connection, &command).await
            }
            outcome => outcome,
        };
        let value = value.map_err(|error| fault::classify(&error))?;
        charge::answer(&value, charges)
    }

    /// Makes a connection and proves it by what a decision needs: the secret and the real script.
    async fn connect(&self, secret: &mut Option<String>) -> Result<MultiplexedConnection, Fault> {
        let classified = |error| fault::classify(&error);
        let config = AsyncConnectionConfig::new()
            // Our own deadlines are around every use of it.
            .set_connection_timeout(None)
            .set_response_timeout(None);
        let mut connection =
            self.client.get_multiplexed_async_connection_with_config(&config).await.map_err(classified)?;
        self.agree(&mut connection, secret).await.map_err(classified)?;
        let Some(quota) = probe_quota() else {
            return Err(Fault::new(FaultKind::Other, "the probe's quota is malformed"));
        };
        let probe = SharedCharge {
            policy: "probe",
            subject: SubjectHash([0; 16]),
            quota,
            span: None,
            cost: 1,
            enforce: false,
            note: 0,
            change: None,
        };
        let now = self.clock.now();
        let answer = self.ask(connection.clone(), &[probe], false, now).await?;
        self.offset.learn(answer.now, now, self.clock.now());
        Ok(connection)
    }

    /// Takes the secret that is in Redis, or puts ours there.
    async fn agree(
        &self,
        connection: &mut MultiplexedConnection,
        secret: &mut Option<String>,
    ) -> redis::RedisResult<()> {
        if self.options.secret_interval.is_none() {
            return Ok(());
        }
        let shared = secret::shared(connection, &self.options.namespace, secret.as_deref()).await?;
        if secret.as_ref() != Some(&shared) {
            self.rollout.learn_keys(secret::derive(shared.as_bytes()));
            *secret = Some(shared);
        }
        Ok(())
    }

    /// Waits until the connection is out of use, and meanwhile sees to it that the secret stays in Redis.
    async fn until_lost(&self, secret: &mut Option<String>) {
        let Some(interval) = self.options.secret_interval else { return self.wake.notified().await };
        while timeout(interval, self.wake.notified()).await.is_err() {
            let Some(connection) = self.connection.load_full() else { continue };
            let mut connection = (*connection).clone();
            // A failure is for the requests to notice: they decide when the connection is lost.
            let _ = timeout(self.options.connect_timeout, self.agree(&mut connection, secret)).await;
        }
    }

    fn use_connection(&self, connection: MultiplexedConnection) {
        self.breaker.succeeded();
        {
            let mut state = self.state.lock();
            state.connected = true;
            state.since = self.clock.now();
        }
        self.lost.store(false, Ordering::Release);
        self.connection.store(Some(Arc::new(connection)));
        self.observer.observe(&Event::StoreConnected);
    }

    /// A call on `connection` failed. The one that opens the breaker takes the connection out of use.
    fn failed(&self, fault: &Fault, connection: &Arc<MultiplexedConnection>) {
        self.observer.observe(&Event::StoreFailed(fault.kind));
        let current = self.connection.load();
        // The fault of a connection that was replaced meanwhile says nothing about the one in use.
        if current.as_ref().is_none_or(|current| !Arc::ptr_eq(current, connection)) {
            return;
        }
        if self.breaker.failed(fault.kind) && !self.lost.swap(true, Ordering::AcqRel) {
            self.connection.store(None);
            {
                let mut state = self.state.lock();
                state.connected = false;
                state.since = self.clock.now();
                state.last_fault = Some(fault.clone());
            }
            self.observer.observe(&Event::StoreLost(fault));
            self.wake.notify_one();
        }
    }

    fn unreachable(&self, fault: Fault) -> Fault {
        self.observer.observe(&Event::StoreFailed(fault.kind));
        self.observer.observe(&Event::StoreUnreachable(&fault));
        self.state.lock().last_fault = Some(fault.clone());
        fault
    }
}

/// The server's answer; an error among its values is one.
async fn answered(connection: &mut MultiplexedConnection, command: &Cmd) -> redis::RedisResult<Value> {
    connection.req_packed_command(command).await?.extract_error()
}

/// Half of the wait is fixed, half is chance: a fleet that lost Redis together does not come back together.
fn wait(attempt: u32, kind: FaultKind, longest: Duration) -> Duration {
    let (first, longest) = match kind.needs_a_person() {
        true => (FIRST_WAIT_FOR_A_PERSON, LONGEST_WAIT_FOR_A_PERSON),
        false => (FIRST_WAIT, longest),
    };
    let full = first.saturating_mul(1 << attempt.min(16)).min(longest);
    full / 2 + (full / 2).mul_f64(rand::random::<f64>())
}

/// Soon forgotten, and wide enough that it is admitted, and so written, beside the probes of a whole fleet.
fn probe_quota() -> Option<Quota> {
    let thousand = std::num::NonZeroU32::new(1_000)?;
    Quota::new(thousand, crate::limiter::clock::SECOND, thousand).ok()
}

fn open(options: &Options) -> redis::RedisResult<Client> {
    let info = connection_info(&options.target)?;
    if !options.target.tls() {
        return Client::open(info);
    }
    let client_tls = options
        .client_identity
        .as_ref()
        .map(|(cert, key)| redis::ClientTlsConfig { client_cert: cert.clone(), client_key: key.clone() });
    Client::build_with_tls(info, TlsCertificates { client_tls, root_cert: options.ca_cert.clone() })
}

fn connection_info(target: &Target) -> redis::RedisResult<ConnectionInfo> {
    let host = target.host().unwrap_or_default().to_owned();
    let port = target.port().unwrap_or_default();
    let address = match target.socket_path() {
        Some(path) => ConnectionAddr::Unix(path.into()),
        None if target.tls() => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
        None => ConnectionAddr::Tcp(host, port),
    };
    let mut settings =
        RedisConnectionInfo::default().set_db(target.db()).set_protocol(match target.protocol() {
            Protocol::Resp2 => ProtocolVersion::RESP2,
            Protocol::Resp3 => ProtocolVersion::RESP3,
        });
    if let Some(username) = target.username() {
        settings = settings.set_username(username);
    }
    if let Some(password) = target.password() {
        settings = settings.set_password(password);
    }
    // Small commands, each awaited: Nagle's algorithm would hold them back on a real network.
    let tcp = redis::io::tcp::TcpSettings::default().set_nodelay(true);
    Ok(address.into_connection_info()?.set_tcp_settings(tcp).set_redis_settings(settings))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_half_of_each_is_chance() {
        let longest = Duration::from_secs(30);
        for attempt in 0..40 {
            let full = Duration::from_secs(1 << attempt.min(5)).min(longest);
            for _ in 0..100 {
                let wait = wait(attempt, FaultKind::Refused, longest);
                assert!(wait >= full / 2 && wait <= full, "{attempt}: {wait:?}");
            }
        }
    }

    #[test]
    fn a_wrong_password_is_not_tried_hot() {
        assert!(wait(0, FaultKind::Auth, Duration::from_secs(1)) >= Duration::from_secs(15));
        assert!(wait(30, FaultKind::Auth, Duration::from_secs(1)) <= Duration::from_secs(300));
    }
}
