//! The link to one server: calls under a deadline, over a connection that the background makes, proves and replaces
//! (`supervisor.rs`). No request ever waits for a connection. Of a cluster each master has a link of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, FromRedisValue, RedisResult, Value};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};

use super::charge::{self, Answer, SCRIPT};
use super::cluster::{Found, Refusal};
pub(super) use super::common::Common;
pub use super::common::Options;
use super::connect::Connection;
use super::fault;
use super::lag::Lag;
use super::login::{BadLogin, Login};
use super::offset::ClockOffset;
use super::pacing::ShortLived;
use super::sentinel::Following;
use super::spent::Spending;
use super::target::Protocol;
use crate::limiter::breaker::{Breaker, Permit, State, Verdict};
use crate::limiter::clock::Micros;
use crate::limiter::event::{Event, Observer};
use crate::limiter::store::{Charged, Fault, FaultKind, SharedCharge};

pub(super) struct Link {
    pub(super) options: Options,
    pub(super) common: Arc<Common>,
    /// What it is of.
    pub(super) part: Part,
    /// The login that it has heard of: see [`Logins::changed`].
    pub(super) heard_login: AtomicU64,
    /// The home that it has heard of: see [`Home::moved`].
    pub(super) heard_home: AtomicU64,
    /// What the connection in use was made with, and what was said of others.
    pub(super) login: Mutex<LoginState>,
    /// The connection in use; the supervisor alone puts it there and takes it away. Whether it is asked is the
    /// breaker's to say.
    pub(super) connection: ArcSwapOption<Connection>,
    /// It was found that what is before Redis does not survive HELLO.
    pub(super) without_hello: AtomicBool,
    /// Addresses of the host that are those of replicas.
    pub(super) replicas: Mutex<Vec<SocketAddr>>,
    /// What the sentinels tell, if there are any.
    pub(super) following: Following,
    pub(super) breaker: Breaker,
    /// What opened the breaker, left here by the call that did for the supervisor to find.
    pub(super) opened_by: Mutex<Option<Fault>>,
    pub(super) opened: Notify,
    /// The connection in use fails more often than a sound one would.
    pub(super) suspected: Notify,
    /// A call found the connection closed.
    pub(super) missed: Notify,
    /// Connections that ended young, one after another.
    pub(super) short_lived: ShortLived,
    /// The map of the cluster says what is this node's.
    pub(super) mapped: Notify,
    pub(super) offset: ClockOffset,
    lag: Lag,
    /// Until when hits have to pass this instance's share as well.
    pub(super) recovered_at: AtomicU64,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) state: Mutex<LinkState>,
}

/// What a link is of.
pub(super) enum Part {
    /// Of the server that the URL names, which turns out to be the only one or a node of a cluster.
    First(Found),
    /// Of a node of a cluster.
    Node {
        /// Whose bucket the probe charges: a slot of this node's.
        probe: AtomicU64,
        /// Whether the slot of the fleet's secret is this node's.
        keeps_secret: AtomicBool,
    },
}

/// A connection that lasted this long and is lost is replaced before it is called an outage. Where they break as soon as
/// they are made, Redis is not sound.
pub(super) const LASTING: Duration = Duration::from_millis(500);
/// How long something may take that only makes a word clearer.
pub(super) const A_MOMENT: Duration = Duration::from_millis(300);

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
    /// The master in use, where sentinels name it.
    pub master: Option<String>,
    /// How long the last probe took: one call of the real script, or two where the server had to be taught it.
    pub probe_took: Option<Duration>,
}

impl Link {
    pub(super) fn new(
        options: Options,
        common: Arc<Common>,
        part: Part,
        observer: Arc<dyn Observer>,
    ) -> Self {
        let state = LinkState {
            breaker: State::Open,
            since: common.clock.now(),
            last_fault: None,
            next_probe: None,
            protocol: None,
            master: None,
            probe_took: None,
        };
        Self {
            common,
            part,
            heard_login: AtomicU64::new(0),
            heard_home: AtomicU64::new(0),
            login: Mutex::default(),
            connection: ArcSwapOption::empty(),
            without_hello: AtomicBool::new(false),
            replicas: Mutex::default(),
            following: Following::default(),
            breaker: Breaker::new(options.max_in_flight),
            opened_by: Mutex::new(None),
            opened: Notify::new(),
            suspected: Notify::new(),
            missed: Notify::new(),
            short_lived: ShortLived::default(),
            mapped: Notify::new(),
            offset: ClockOffset::default(),
            lag: Lag::default(),
            recovered_at: AtomicU64::new(0),
            observer,
            state: Mutex::new(state),
            options,
        }
    }

    /// What it says of itself.
    pub(super) fn state(&self) -> LinkState {
        self.state.lock().clone()
    }

    /// Charges until the deadline. `asking`: of a slot that is about to be this node's.
    ///
    /// # Errors
    /// See [`Store::charge`](crate::limiter::store::Store::charge), and where else to ask.
    pub(super) async fn charge(
        &self,
        charges: &[SharedCharge<'_>],
        peek: bool,
        now: Micros,
        (deadline, asking): (Instant, bool),
    ) -> Result<Charged, Refusal> {
        let permit = self.breaker.admit(rank(charges), now).map_err(Fault::unasked)?;
        // After the permit: so this is the connection of its generation or a younger one, never an older.
        let Some(connection) = self.connection.load_full() else { return Err(Fault::open().into()) };
        if connection.is_over() {
            // The background makes a fresh one, and says how that goes.
            self.missed.notify_one();
            return Err(Fault::open().into());
        }
        connection.note_use();
        let started = Instant::now();
        let asked = self.ask(connection.calls(), charges, peek, (now, asking));
        let outcome = match timeout_at(deadline, asked).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Fault::new(FaultKind::Timeout, "no answer within REDIS_TIMEOUT_MS").into()),
        };
        match outcome {
            Ok(Answer { now: server, readings, from, last }) => {
                let received = self.common.clock.now();
                permit.succeeded(received);
                self.lag.learn(received.saturating_sub(now), received);
                self.observer.observe(&Event::StoreAnswered { took: started.elapsed() });
                let judged_at = self.learn_time(server, now, received);
                let ahead = server as i64 - judged_at as i64;
                Ok(Charged { readings, from, judged_at, last, ahead })
            }
            Err(Refusal::Fault(fault)) => {
                self.failed(permit, &connection, &fault);
                Err(fault.into())
            }
            // A sound node's word about one slot counts neither way.
            Err(elsewhere) => Err(elsewhere),
        }
    }

    /// One EVALSHA; when the server has forgotten the script, one EVAL, which teaches it again.
    pub(super) async fn ask(
        &self,
        mut connection: MultiplexedConnection,
        charges: &[SharedCharge<'_>],
        peek: bool,
        (now, asking): (Micros, bool),
    ) -> Result<Answer, Refusal> {
        let sent_at = (self.offset.server_time(now), self.common.tag);
        let (namespace, script) = (&*self.options.namespace, self.common.script.get_hash());
        self.spend(self.common.spent.call(now));
        let command = charge::call("EVALSHA", script, namespace, charges, peek, sent_at);
        let value = match answered(&mut connection, &command, asking).await {
            Err(error) if charge::is_unknown_script(&error) => {
                self.spend(self.common.spent.call(now));
                let command = charge::call("EVAL", SCRIPT, namespace, charges, peek, sent_at);
                answered(&mut connection, &command, asking).await
            }
            outcome => outcome,
        };
        let value = value.map_err(|error| self.refusal(&error))?;
        Ok(charge::answer(&value, charges)?)
    }

    /// Sends one command of the background, with the patience of a connection. `asking` as for [`Link::charge`].
    pub(super) async fn send<T: FromRedisValue>(&self, command: &Cmd, asking: bool) -> Result<T, Refusal> {
        let Some(connection) = self.connection.load_full() else { return Err(Fault::open().into()) };
        let mut calls = connection.calls();
        self.sent(1);
        let answer = timeout(self.options.connect_timeout, answered(&mut calls, command, asking)).await;
        let answer = answer.map_err(|_| Fault::new(FaultKind::Timeout, "no answer in time"))?;
        let value = answer.map_err(|error| self.refusal(&error))?;
        redis::from_redis_value(value).map_err(|_| Fault::new(FaultKind::Protocol, "an odd answer").into())
    }

    /// Nobody but a node of a cluster sends us elsewhere: from another server it is a fault as any other.
    pub(super) fn refusal(&self, error: &redis::RedisError) -> Refusal {
        match &self.part {
            Part::Node { .. } => Refusal::of(error),
            Part::First(found) => {
                if let Some(refusal) = Refusal::of_several_slots(error) {
                    self.is_by_slot();
                    return refusal;
                }
                let fault = fault::classify(error);
                found.suspect(fault.kind);
                fault.into()
            }
        }
    }

    /// The server refuses calls with keys of several slots, and tells no slots: from now on each call has keys of one.
    fn is_by_slot(&self) {
        if !self.common.by_slot.swap(true, Ordering::Relaxed) {
            self.observer.observe(&Event::StoreRemark(
                "Redis: one address hides a cluster (it answers CROSSSLOT): a request whose policies count by several subjects \
                 is one call for each of them",
            ));
        }
    }

    /// The shortest call of late; `None` while it is away.
    pub(super) fn lag(&self) -> Option<Micros> {
        match self.breaker.state() {
            State::Closed | State::HalfOpen => Some(self.lag.shortest()),
            State::Open => None,
        }
    }

    /// How long no call has been answered over this connection, or lost with it.
    pub(super) fn quiet(&self, connection: &Connection) -> Duration {
        match connection.lost_calls() {
            0 => Duration::from_micros(self.lag.quiet(self.common.clock.now())),
            _ => Duration::ZERO,
        }
    }

    /// Whether there is a connection that is not known to be over.
    pub(super) fn is_connected(&self) -> bool {
        self.connection.load().as_ref().is_some_and(|connection| !connection.is_over())
    }

    /// Whether it came back a short while ago.
    pub(super) fn is_recovering(&self, now: Micros) -> bool {
        now < self.recovered_at.load(Ordering::Relaxed)
    }

    /// From now on, and for so long, it is as one that came back.
    pub(super) fn recovers(&self, lasts: Duration) {
        let until = self.common.clock.now() + lasts.as_micros() as u64;
        self.recovered_at.store(until, Ordering::Relaxed);
    }

    /// Plain commands of the background were sent.
    pub(super) fn sent(&self, commands: u64) {
        self.spend(self.common.spent.commands(commands, self.common.clock.now()));
    }

    /// A script of the background ran so many commands, which some providers count as well.
    pub(super) fn sent_inside(&self, commands: u64) {
        if self.common.spent.counts_inside() {
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
        match permit.failed(fault.kind, self.common.clock.now()) {
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
async fn answered(connection: &mut MultiplexedConnection, command: &Cmd, asking: bool) -> RedisResult<Value> {
    if !asking {
        return connection.req_packed_command(command).await?.extract_error();
    }
    // In one piece: the permission is for the next command of the connection, which others use as well.
    let mut both = redis::pipe();
    both.cmd("ASKING").add_command(command.clone());
    let mut values = connection.req_packed_commands(&both, 0, 2).await?;
    values.pop().unwrap_or(Value::Nil).extract_error()
}
