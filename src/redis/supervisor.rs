//! What runs beside the requests and keeps the link: it alone makes connections, proves them by what a decision needs,
//! puts them to use, and takes them away.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::backoff::Backoff;
use super::link::Link;
use super::{connect, fault, probe, secret};
use crate::limiter::breaker::State;
use crate::limiter::event::Event;
use crate::limiter::store::{Fault, FaultKind};

/// So many probes in a row must be good before Redis is asked again after an outage,
const GOOD_PROBES: u32 = 3;
/// at this distance: long enough that three good ones are no accident, short enough that they cost a fifth of a second.
const BETWEEN_PROBES: Duration = Duration::from_millis(100);
/// A connection that is suspect is replaced at most so often: where a fresh one is no better, Redis itself is slow.
const BETWEEN_RENEWALS: Duration = Duration::from_secs(60);

impl Link {
    pub(super) async fn supervise(&self) {
        let mut backoff = Backoff::new(self.options.reconnect_interval);
        let mut secret = None;
        // The first attempt of a process follows no outage: nobody was decided without Redis, no fleet comes back
        // together. One proof is enough for it, and no subject waits for a warm-up.
        let mut after_outage = false;
        loop {
            let fault = match self.try_again(&mut secret, after_outage).await {
                Ok(connection) => {
                    let since = Instant::now();
                    let fault = self.serve(connection, &mut secret, after_outage).await;
                    backoff.healthy(since.elapsed());
                    self.lost(&fault);
                    fault
                }
                Err(fault) => {
                    self.unreachable(&fault);
                    fault
                }
            };
            after_outage = true;
            let wait = backoff.wait(fault.kind, rand::random());
            self.state.lock().next_probe = Some(self.clock.now() + wait.as_micros() as u64);
            sleep(wait).await;
        }
    }

    /// A fresh connection, never the old one, and as many good probes over it as it takes.
    async fn try_again(
        &self,
        secret: &mut Option<String>,
        after_outage: bool,
    ) -> Result<MultiplexedConnection, Fault> {
        self.state.lock().next_probe = None;
        let connection = self.fresh(secret).await?;
        if after_outage {
            for _ in 1..GOOD_PROBES {
                sleep(BETWEEN_PROBES).await;
                let started = Instant::now();
                self.in_time(self.prove(&connection)).await?;
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
    async fn serve(
        &self,
        connection: MultiplexedConnection,
        secret: &mut Option<String>,
        after_outage: bool,
    ) -> Fault {
        let warm_up = if after_outage { self.options.warm_up } else { Duration::ZERO };
        if after_outage {
            let recovering = warm_up + self.options.reconnect_interval;
            let until = self.clock.now() + recovering.as_micros() as u64;
            self.recovered_at.store(until, Ordering::Relaxed);
        }
        // The breaker second: whoever it lets through must find the connection.
        self.connection.store(Some(Arc::new(connection)));
        self.breaker.proven(self.clock.now(), warm_up.as_micros() as u64);
        if !warm_up.is_zero() {
            self.came_to(State::HalfOpen);
            self.observer.observe(&Event::StoreWarming { lasts: warm_up });
            if let Ok(fault) = timeout(warm_up, self.opened()).await {
                return fault;
            }
            if !self.breaker.warmed() {
                return self.opened().await;
            }
        }
        self.came_to(State::Closed);
        self.observer.observe(&Event::StoreConnected);
        // A complaint about an earlier connection says nothing about this one.
        std::pin::pin!(self.suspected.notified()).as_mut().enable();
        tokio::select! {
            fault = self.opened() => fault,
            fault = self.tend(secret) => fault,
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

    /// While Redis is in use: looks after the secret, and replaces a connection that calls complain of. Returns when
    /// neither it nor a fresh one works.
    async fn tend(&self, secret: &mut Option<String>) -> Fault {
        let mut renewed: Option<Instant> = None;
        let mut looked = Instant::now();
        loop {
            let time_to_look = async {
                match self.options.secret_interval {
                    Some(interval) => sleep_until(looked + interval).await,
                    None => pending().await,
                }
            };
            let idle_and_broken = tokio::select! {
                () = self.suspected.notified() => {
                    if renewed.is_some_and(|renewed| renewed.elapsed() < BETWEEN_RENEWALS) {
                        continue;
                    }
                    false
                }
                () = time_to_look => {
                    looked = Instant::now();
                    if self.look(secret).await.is_ok() {
                        continue;
                    }
                    true
                }
            };
            renewed = Some(Instant::now());
            match self.fresh(secret).await {
                Ok(connection) => {
                    // The breaker second: a call must not be counted for the fresh connection that went over the old.
                    self.connection.store(Some(Arc::new(connection)));
                    if !self.breaker.renewed() {
                        return pending().await;
                    }
                    self.observer.observe(&Event::StoreReplaced);
                }
                Err(fault) => {
                    self.observer.observe(&Event::StoreFailed(fault.kind));
                    // Requests get answers over the old connection: a server without room for a second one is no
                    // outage. When that one is broken as well, the outage need not wait for a request to find it.
                    if idle_and_broken {
                        return if self.breaker.trip() { fault } else { pending().await };
                    }
                }
            }
        }
    }

    /// Sees to it that the secret stays in Redis.
    async fn look(&self, secret: &mut Option<String>) -> Result<(), Fault> {
        let Some(connection) = self.connection.load_full() else { return Ok(()) };
        let mut connection = (*connection).clone();
        self.in_time(self.agree(&mut connection, secret)).await
    }

    /// A connection that was just made and has proven itself by what a decision needs: the secret, the real script.
    async fn fresh(&self, secret: &mut Option<String>) -> Result<MultiplexedConnection, Fault> {
        self.observer.observe(&Event::StoreConnecting(true));
        let made = self.in_time(async {
            let mut connection = connect::connect(&self.client, &self.options.target).await?;
            self.agree(&mut connection, secret).await?;
            self.prove(&connection).await?;
            Ok(connection)
        });
        let made = made.await;
        self.observer.observe(&Event::StoreConnecting(false));
        made
    }

    /// The real script on a reserved key: a PING would prove nothing of permissions, scripts or memory.
    async fn prove(&self, connection: &MultiplexedConnection) -> Result<(), Fault> {
        let Some(probe) = probe::charge() else {
            return Err(Fault::new(FaultKind::Other, "the probe's quota is malformed"));
        };
        let now = self.clock.now();
        let answer = self.ask(connection.clone(), &[probe], false, now).await?;
        self.offset.learn(answer.now, now, self.clock.now());
        Ok(())
    }

    /// Takes the secret that is in Redis, or puts ours there.
    async fn agree(
        &self,
        connection: &mut MultiplexedConnection,
        secret: &mut Option<String>,
    ) -> Result<(), Fault> {
        if self.options.secret_interval.is_none() {
            return Ok(());
        }
        // A GET, as a rule.
        self.sent(1);
        let shared = secret::shared(connection, &self.options.namespace, secret.as_deref()).await;
        let shared = shared.map_err(|error| fault::classify(&error))?;
        if secret.as_ref() != Some(&shared) {
            self.rollout.learn_keys(secret::derive(shared.as_bytes()));
            *secret = Some(shared);
        }
        Ok(())
    }

    /// No step in the background takes longer than this.
    async fn in_time<T>(&self, step: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
        let most = self.options.connect_timeout;
        timeout(most, step).await.unwrap_or_else(|_| {
            let words = format!("no working connection within {} ms", most.as_millis());
            Err(Fault::new(FaultKind::Timeout, words))
        })
    }

    fn came_to(&self, breaker: State) {
        let mut state = self.state.lock();
        state.breaker = breaker;
        state.since = self.clock.now();
        state.next_probe = None;
    }

    /// The breaker is open: the connection goes, whatever it still promises.
    fn lost(&self, fault: &Fault) {
        self.connection.store(None);
        self.state.lock().last_fault = Some(fault.clone());
        self.came_to(State::Open);
        self.observer.observe(&Event::StoreLost(fault));
    }

    fn unreachable(&self, fault: &Fault) {
        self.state.lock().last_fault = Some(fault.clone());
        self.observer.observe(&Event::StoreFailed(fault.kind));
        self.observer.observe(&Event::StoreUnreachable(fault));
    }
}
