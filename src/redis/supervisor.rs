//! What runs beside the requests and keeps the link: it alone makes connections, proves them by what a decision needs,
//! puts them to use, and takes them away.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::backoff::Backoff;
use super::connect::Connection;
use super::fresh::{in_time, is_about_login};
use super::link::{Link, Part};
use crate::limiter::breaker::State;
use crate::limiter::event::Event;
use crate::limiter::store::{Fault, FaultKind};

/// So many probes in a row must be good before Redis is asked again after an outage,
const GOOD_PROBES: u32 = 3;
/// at this distance: long enough that three good ones are no accident, short enough that they cost a fifth of a second.
const BETWEEN_PROBES: Duration = Duration::from_millis(100);
/// So many more probes tell whether Redis is slow.
const PROBES_TO_MEASURE: u32 = 5;

impl Link {
    pub(super) async fn supervise(&self) {
        let mut backoff = Backoff::new(self.options.reconnect_interval);
        if matches!(self.part, Part::Node { .. }) {
            backoff = backoff.of_a_node();
        }
        // The first attempt of a process follows no outage: nobody was decided without Redis, no fleet comes back
        // together. One proof is enough for it, and no subject waits for a warm-up.
        let mut after_outage = false;
        // A node that only said that its cluster is down was there all the time: it need not warm up.
        let mut was_away = false;
        loop {
            let fault = match self.try_again(after_outage).await {
                Ok(connection) => {
                    if !after_outage {
                        self.measure(&connection).await;
                    }
                    let since = Instant::now();
                    let fault = self.serve(connection, (after_outage, was_away)).await;
                    backoff.healthy(since.elapsed());
                    was_away = false;
                    self.lost(&fault);
                    fault
                }
                Err(fault) => {
                    self.unreachable(&fault);
                    fault
                }
            };
            after_outage = true;
            was_away |= fault.kind != FaultKind::Cluster;
            let wait = backoff.wait(fault.kind, rand::random());
            self.state.lock().next_probe = Some(self.common.clock.now() + wait.as_micros() as u64);
            if self.pause(wait, fault.kind).await {
                backoff.anew();
                // All instances are told at the same moment.
                sleep(self.common.members.spread(rand::random())).await;
            }
        }
    }

    /// Waits before the next attempt, unless the login has changed since the last, or the sentinels have news: that may be
    /// all that was missing. Whether it was the sentinels.
    async fn pause(&self, wait: Duration, after: FaultKind) -> bool {
        let tried = self.common.logins.wanted();
        let differs = || !self.common.logins.wanted().is_same(&tried);
        if is_about_login(after) {
            self.newest_login().await;
        }
        let changed = async {
            while !differs() {
                self.common.logins.changed(&self.heard_login).await;
            }
        };
        // Whichever comes first.
        tokio::select! {
            () = self.following.worth_a_try() => true,
            _ = timeout(wait, changed) => false,
        }
    }

    /// Before the first request waits for it: is it quick enough? A few more probes, and only where the first was late
    /// (it may have had to teach the server the script).
    async fn measure(&self, connection: &Connection) {
        let took = || self.state.lock().probe_took.unwrap_or_default();
        if took() <= self.options.timeout {
            return;
        }
        let mut longest = Duration::ZERO;
        for _ in 0..PROBES_TO_MEASURE {
            if in_time(self.options.connect_timeout, self.prove(connection)).await.is_err() {
                return;
            }
            longest = longest.max(took());
        }
        if longest > self.options.timeout {
            self.observer.observe(&Event::StoreSlow { took: longest, timeout: self.options.timeout });
        }
    }

    /// A fresh connection, never the old one, and as many good probes over it as it takes.
    async fn try_again(&self, after_outage: bool) -> Result<Connection, Fault> {
        self.state.lock().next_probe = None;
        let connection = self.fresh(self.options.connect_timeout).await?;
        if after_outage {
            for _ in 1..GOOD_PROBES {
                sleep(BETWEEN_PROBES).await;
                let started = Instant::now();
                in_time(self.options.connect_timeout, self.prove(&connection)).await?;
                // Requests would not wait for so slow an answer: with them it would be an outage again at once.
                let (took, most) = (started.elapsed(), self.options.timeout);
                if took > most {
                    let (took, most) = (took.as_millis(), most.as_millis());
                    let words = format!("a probe took {took} ms, and REDIS_TIMEOUT_MS is {most}");
                    return Err(Fault::new(FaultKind::Timeout, words));
                }
            }
        }
        Ok(connection)
    }

    /// Puts a connection to use until the breaker opens. Returns what opened it.
    async fn serve(&self, connection: Connection, (after_outage, was_away): (bool, bool)) -> Fault {
        let connection = Arc::new(connection);
        let warm_up = if was_away { self.options.warm_up } else { Duration::ZERO };
        let warm_up = self.following.warm_up(connection.target(), warm_up);
        if after_outage {
            self.recovers(warm_up + self.options.reconnect_interval);
        }
        // The breaker second: whoever it lets through must find the connection.
        self.put_to_use(&connection);
        self.read_record_first().await;
        self.breaker.proven(self.common.clock.now(), warm_up.as_micros() as u64);
        if !warm_up.is_zero() {
            self.came_to(State::HalfOpen);
            self.observer.observe(&Event::StoreWarming { lasts: warm_up });
            let relapse = async {
                tokio::select! {
                    fault = self.opened() => fault,
                    () = connection.over() => self.trip(closed()).await,
                    () = self.following.left(connection.target()) => self.trip(closed()).await,
                }
            };
            if let Ok(fault) = timeout(warm_up, relapse).await {
                return fault;
            }
            if !self.breaker.warmed() {
                return self.opened().await;
            }
        }
        self.came_to(State::Closed);
        self.following.deciding(connection.target());
        self.observer.observe(&Event::StoreConnected);
        // What this function holds would keep it open when another takes its place.
        drop(connection);
        // A complaint about an earlier connection says nothing about this one.
        std::pin::pin!(self.suspected.notified()).as_mut().enable();
        tokio::select! {
            fault = self.opened() => fault,
            fault = self.tend() => fault,
        }
    }

    /// What opened the breaker, as soon as a call has.
    async fn opened(&self) -> Fault {
        loop {
            if let Some(fault) = self.opened_by.lock().take() {
                return fault;
            }
            self.opened.notified().await;
        }
    }

    /// Opens the breaker, unless a call has, which then has the word.
    pub(super) async fn trip(&self, fault: Fault) -> Fault {
        if self.breaker.trip() { fault } else { self.opened().await }
    }

    /// From now on calls go over this one.
    pub(super) fn put_to_use(&self, connection: &Arc<Connection>) {
        self.connection.store(Some(Arc::clone(connection)));
        self.following.serving(connection.target());
        let master = self.options.target.master_name().map(|_| connection.target().to_string());
        let mut state = self.state.lock();
        state.protocol = Some(connection.protocol());
        state.master = master;
    }

    fn came_to(&self, breaker: State) {
        let mut state = self.state.lock();
        state.breaker = breaker;
        state.since = self.common.clock.now();
        state.next_probe = None;
    }

    /// The breaker is open: the connection goes, whatever it still promises.
    fn lost(&self, fault: &Fault) {
        self.connection.store(None);
        {
            let mut state = self.state.lock();
            state.last_fault = Some(fault.clone());
            state.protocol = None;
            state.master = None;
        }
        self.came_to(State::Open);
        self.observer.observe(&Event::StoreLost(fault));
    }

    fn unreachable(&self, fault: &Fault) {
        if let Part::First(found) = &self.part {
            found.suspect(fault.kind);
        }
        self.state.lock().last_fault = Some(fault.clone());
        self.observer.observe(&Event::StoreFailed(fault.kind));
        self.observer.observe(&Event::StoreUnreachable(fault));
    }
}

/// What became of a connection that nobody else explains.
pub(super) fn closed() -> Fault {
    Fault::new(FaultKind::Lost, "the other side has closed the connection")
}
