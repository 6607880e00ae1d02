//! The link to Redis: calls under our own deadline, over a connection that the background makes, proves and replaces
//! (`supervisor.rs`). No request ever waits for a connection.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, Value};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::charge::{self, Answer, SCRIPT};
use super::connect::Connection;
use super::fault;
use super::lag::Lag;
use super::login::{BadLogin, Login, LoginFiles, Logins};
use super::offset::ClockOffset;
use super::spent::{Spending, Spent};
use super::target::{Protocol, Target};
use crate::limiter::breaker::{Breaker, Permit, State, Verdict};
use crate::limiter::clock::{Clock, Micros};
use crate::limiter::event::{Event, Observer};
use crate::limiter::rollout::Rollout;
use crate::limiter::store::{Charged, Fault, FaultKind, SharedCharge, Store};
use crate::limiter::subject::SubjectHash;

/// How to reach Redis and how patiently.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it is.
    pub target: Target,
    /// User, password and certificates that stand in files, which are read again for each connection.
    pub files: LoginFiles,
    /// The longest that a request waits, queueing included.
    pub timeout: Duration,
    /// The longest that making and proving a connection may take, and any other step in the background.
    pub connect_timeout: Duration,
    /// The longest wait between two attempts to connect.
    pub reconnect_interval: Duration,
    /// How long the share of the subjects that Redis decides grows after an outage; 0: everybody at once.
    pub warm_up: Duration,
    /// The most calls under way at once. Whoever comes then is decided from memory, at once.
    pub max_in_flight: u32,
    /// What our keys begin with.
    pub namespace: String,
    /// How often the fleet's secret is looked at in Redis; `None` when one was given, so that Redis holds none. A
    /// cache under pressure evicts first what nobody reads, and the next instance to start would make another
    /// secret: buckets and keys of its own. Each look is a command that the provider bills.
    pub secret_interval: Option<Duration>,
}

/// The shared store in Redis. Cheap to clone: all clones are one.
#[derive(Clone)]
pub struct RedisStore(pub(super) Arc<Link>);

pub(super) struct Link {
    pub(super) options: Options,
    pub(super) logins: Arc<Logins>,
    /// What the connection in use was made with, and what was said of others.
    pub(super) login: Mutex<LoginState>,
    /// EVALSHA's first argument.
    script: redis::Script,
    /// The connection in use; the supervisor alone puts it there and takes it away. Whether it is asked is the
    /// breaker's to say.
    pub(super) connection: ArcSwapOption<Connection>,
    /// It was found that what is before Redis does not survive HELLO.
    pub(super) without_hello: AtomicBool,
    pub(super) breaker: Breaker,
    /// What opened the breaker, left here by the call that did for the supervisor to find.
    pub(super) opened_by: Mutex<Option<Fault>>,
    pub(super) opened: Notify,
    /// The connection in use fails more often than a sound one would.
    pub(super) suspected: Notify,
    /// A call found the connection closed.
    pub(super) missed: Notify,
    pub(super) offset: ClockOffset,
    lag: Lag,
    spent: Spent,
    /// Until when hits have to pass this instance's share as well.
    pub(super) recovered_at: AtomicU64,
    pub(super) clock: Clock,
    pub(super) rollout: Arc<Rollout>,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) state: Mutex<LinkState>,
}

/// A connection that lasted this long and is lost is replaced before it is called an outage. Where they break as soon as
/// they are made, Redis is not sound.
pub(super) const LASTING: Duration = Duration::from_millis(500);

/// What is known of logins beyond the one that is wanted.
#[derive(Default)]
pub(super) struct LoginState {
    /// The last that Redis has let in.
    pub(super) proven: Option<Arc<Login>>,
    /// The one of which was said that Redis does not let it in.
    pub(super) refused: Option<Arc<Login>>,
    /// The file of which was said that it is of no use.
    pub(super) bad: Option<BadLogin>,
}

/// What the link says of itself.
#[derive(Clone, Debug)]
pub struct LinkState {
    /// Whether Redis is in use, is warming up, or is away.
    pub breaker: State,
    /// Since when, in microseconds since the epoch.
    pub since: Micros,
    /// The last fault, even if it is over.
    pub last_fault: Option<Fault>,
    /// When it is tried next, in microseconds since the epoch; `None` while it is in use or being tried.
    pub next_probe: Option<Micros>,
    /// How the connection in use speaks; `None` without one.
    pub protocol: Option<Protocol>,
    /// How long the last probe took: one call of the real script, or two where the server had to be taught it.
    pub probe_took: Option<Duration>,
}

impl RedisStore {
    /// A store that is not connected yet: spawn [`RedisStore::keep_connected`].
    ///
    /// # Errors
    /// When a file can't be read or makes no sense. Nothing is asked of the network.
    pub fn new(
        options: Options,
        clock: Clock,
        rollout: Arc<Rollout>,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, BadLogin> {
        let logins = Arc::new(Logins::new(options.target.clone(), options.files.clone())?);
        let state = LinkState {
            breaker: State::Open,
            since: clock.now(),
            last_fault: None,
            next_probe: None,
            protocol: None,
            probe_took: None,
        };
        Ok(Self(Arc::new(Link {
            logins,
            login: Mutex::default(),
            script: redis::Script::new(SCRIPT),
            connection: ArcSwapOption::empty(),
            without_hello: AtomicBool::new(false),
            breaker: Breaker::new(options.max_in_flight),
            opened_by: Mutex::new(None),
            opened: Notify::new(),
            suspected: Notify::new(),
            missed: Notify::new(),
            offset: ClockOffset::default(),
            lag: Lag::default(),
            spent: Spent::default(),
            recovered_at: AtomicU64::new(0),
            clock,
            rollout,
            observer,
            state: Mutex::new(state),
            options,
        })))
    }

    /// What the provider's plan allows this instance a day, and what it counts for one script call.
    pub fn with_plan(self, commands_per_day: Option<NonZeroU64>, billed_per_call: u32) -> Self {
        let per_day = commands_per_day.map_or(0, NonZeroU64::get);
        self.0.spent.plan(per_day, u64::from(billed_per_call), self.0.clock.now());
        self
    }

    /// What is spent of that.
    pub fn spending(&self) -> Spending {
        self.0.spent.spending(self.0.clock.now())
    }

    /// Connects, and connects again whenever the connection is lost. Runs until it is dropped.
    pub async fn keep_connected(self) {
        self.0.supervise().await;
    }

    /// What the link says of itself.
    pub fn state(&self) -> LinkState {
        self.0.state.lock().clone()
    }

    /// Whether Redis is in use by all of its subjects.
    pub fn is_in_use(&self) -> bool {
        self.0.state.lock().breaker == State::Closed
    }

    /// How long until Redis is tried next; `None` while it is in use or being tried.
    pub fn next_probe_in(&self) -> Option<Duration> {
        let next = self.0.state.lock().next_probe?;
        Some(Duration::from_micros(next.saturating_sub(self.0.clock.now())))
    }

    /// The user, password and certificates, to be read again when their files change.
    pub fn logins(&self) -> &Arc<Logins> {
        &self.0.logins
    }

    /// Calls under way.
    pub fn in_flight(&self) -> u32 {
        self.0.breaker.in_flight()
    }

    /// Where Redis is, in words that hold no secret.
    pub fn target(&self) -> &Target {
        &self.0.options.target
    }
}

impl Store for RedisStore {
    async fn charge(&self, charges: &[SharedCharge<'_>], peek: bool, now: Micros) -> Result<Charged, Fault> {
        let link = &*self.0;
        let permit = link.breaker.admit(rank(charges), now).map_err(Fault::unasked)?;
        // After the permit: so this is the connection of its generation or a younger one, never an older.
        let Some(connection) = link.connection.load_full() else { return Err(Fault::open()) };
        if connection.is_over() {
            // The background makes a fresh one, and says how that goes.
            link.missed.notify_one();
            return Err(Fault::open());
        }
        connection.note_use();
        let started = Instant::now();
        let asked = link.ask(connection.calls(), charges, peek, now);
        let outcome = match timeout(link.options.timeout, asked).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Fault::new(FaultKind::Timeout, "no answer within REDIS_TIMEOUT_MS")),
        };
        match outcome {
            Ok(Answer { now: server, readings, from }) => {
                let received = link.clock.now();
                permit.succeeded(received);
                link.lag.learn(received.saturating_sub(now), received);
                link.observer.observe(&Event::StoreAnswered { took: started.elapsed() });
                let judged_at = link.offset.learn(server, now, received);
                Ok(Charged { readings, from, judged_at })
            }
            Err(fault) => {
                link.failed(permit, &connection, &fault);
                Err(fault)
            }
        }
    }

    fn lag(&self) -> Option<Micros> {
        match self.0.breaker.state() {
            State::Closed | State::HalfOpen => Some(self.0.lag.shortest()),
            State::Open => None,
        }
    }

    fn is_recovering(&self, now: Micros) -> bool {
        now < self.0.recovered_at.load(Ordering::Relaxed)
    }

    async fn forget(&self, policies: &[&str], subject: SubjectHash) -> Result<(), Fault> {
        let namespace = &self.0.options.namespace;
        let keys: Vec<String> =
            policies.iter().map(|policy| charge::key(namespace, policy, subject)).collect();
        let Some(first) = keys.first() else { return Ok(()) };
        let mut command = redis::cmd("DEL");
        command.arg(&keys);
        // All keys of a subject are in one place.
        self.command::<Value>(first, &command).await.map(drop)
    }
}

impl Link {
    /// One EVALSHA; when the server has forgotten the script, one EVAL, which teaches it again.
    pub(super) async fn ask(
        &self,
        mut connection: MultiplexedConnection,
        charges: &[SharedCharge<'_>],
        peek: bool,
        now: Micros,
    ) -> Result<Answer, Fault> {
        let sent_at = self.offset.server_time(now);
        self.spend(self.spent.call(now));
        let mut command = redis::cmd("EVALSHA");
        command.arg(self.script.get_hash());
        charge::arguments(&mut command, &self.options.namespace, charges, peek, sent_at);
        let value = match answered(&mut connection, &command).await {
            Err(error) if charge::is_unknown_script(&error) => {
                self.spend(self.spent.call(now));
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

    /// Plain commands of the background were sent.
    pub(super) fn sent(&self, commands: u64) {
        self.spend(self.spent.commands(commands, self.clock.now()));
    }

    /// A script of the background ran so many commands, which some providers count as well.
    pub(super) fn sent_inside(&self, commands: u64) {
        if self.spent.counts_inside() {
            self.sent(commands);
        }
    }

    fn spend(&self, nearly: Option<Spending>) {
        if let Some(Spending { today, per_day, exhausted_at }) = nearly {
            let per_day = per_day.unwrap_or_default();
            self.observer.observe(&Event::StoreAllowanceNearlySpent { today, per_day, exhausted_at });
        }
    }

    /// A call failed. What that comes to is the supervisor's to tell and to mend.
    fn failed(&self, permit: Permit<'_>, connection: &Connection, fault: &Fault) {
        self.observer.observe(&Event::StoreFailed(fault.kind));
        // A connection that ends is no outage yet: providers and load balancers close them, and a fresh one may do.
        if fault.kind == FaultKind::Lost
            && connection.age() >= LASTING
            && self.breaker.state() == State::Closed
        {
            connection.note_lost_call();
            return;
        }
        match permit.failed(fault.kind, self.clock.now()) {
            Verdict::Opened => {
                *self.opened_by.lock() = Some(fault.clone());
                self.opened.notify_one();
            }
            Verdict::Suspect => self.suspected.notify_one(),
            Verdict::Counted => self.observer.observe(&Event::StoreRefusedCall(fault)),
            Verdict::Ignored => {}
        }
    }
}

/// Where a call stands in the order in which subjects are let through after an outage: all of its subjects must be
/// among them. The hash is keyed from the fleet's secret, so nobody outside can choose an early place, and it has nothing
/// to do with the canary's bucket.
fn rank(charges: &[SharedCharge<'_>]) -> u16 {
    let places = charges.iter().map(|charge| u16::from_be_bytes([charge.subject.0[0], charge.subject.0[1]]));
    places.max().unwrap_or_default()
}

/// The server's answer; an error among its values is one.
async fn answered(connection: &mut MultiplexedConnection, command: &Cmd) -> redis::RedisResult<Value> {
    connection.req_packed_command(command).await?.extract_error()
}
