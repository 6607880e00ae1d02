//! Makes connections and proves them by what a decision needs, with the login that the files hold now or the one before.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::cluster::Refusal;
use super::connect::Connection;
use super::link::{Link, Part};
use super::login::Login;
use super::secret::{Found, Shared};
use super::target::Protocol;
use super::{probe, secret};
use crate::limiter::event::{Event, Observer};
use crate::limiter::store::{Fault, FaultKind, SharedCharge};

impl Link {
    /// A connection that was just made and has proven itself by what a decision needs: the secret, the real script. With
    /// the login that the files hold now; where Redis does not let that in, with the last that it did: while a password
    /// is changed in two places one of them is first.
    pub(super) async fn fresh(&self, within: Duration) -> Result<Connection, Fault> {
        let made = async {
            loop {
                self.following.trying();
                tokio::select! {
                    made = in_time(within, self.with_either_login()) => break made,
                    // The master is another: whoever waits for the old one waits in vain.
                    () = self.following.switched() => {}
                }
            }
        };
        self.connecting(made).await
    }

    async fn with_either_login(&self) -> Result<Connection, Fault> {
        let newest = self.newest_login().await;
        let fault = match self.make(&newest).await {
            Ok(connection) => return Ok(connection),
            Err(fault) => fault,
        };
        let proven = self.login.lock().proven.clone();
        let proven = proven.filter(|proven| is_about_login(fault.kind) && !proven.is_same(&newest));
        let Some(proven) = proven else { return Err(fault) };
        match self.make(&proven).await {
            Ok(connection) => {
                self.complain(&newest, &fault);
                Ok(connection)
            }
            Err(_) => Err(fault),
        }
    }

    /// A connection with just this login.
    pub(super) async fn fresh_with(&self, login: &Arc<Login>) -> Result<Connection, Fault> {
        let made = self.make(login);
        self.connecting(in_time(self.options.connect_timeout, made)).await
    }

    async fn connecting<T>(&self, making: impl Future<Output = T>) -> T {
        let _connecting = Connecting::told_to(&*self.observer);
        making.await
    }

    async fn make(&self, login: &Arc<Login>) -> Result<Connection, Fault> {
        let connection = match self.make_with_hello(login).await {
            // Some proxies hang up on a command that they do not know, or lose count of the answers.
            Err(fault) if self.may_go_without_hello(fault.kind) => {
                let connection = self.reach(login).await?;
                self.settle(&connection).await.map_err(|fault| connection.why(fault))?;
                self.without_hello.store(true, Ordering::Relaxed);
                connection
            }
            made => made?,
        };
        let mut state = self.login.lock();
        state.proven = Some(Arc::clone(login));
        state.refused.take_if(|refused| refused.is_same(login));
        Ok(connection)
    }

    async fn make_with_hello(&self, login: &Login) -> Result<Connection, Fault> {
        let target = &self.options.target;
        let mut connection = self.reach(login).await?;
        if target.protocol() == Protocol::Resp2 || self.without_hello.load(Ordering::Relaxed) {
            self.settle(&connection).await.map_err(|fault| connection.why(fault))?;
            return Ok(connection);
        }
        // In one go: it costs no way there and back of its own.
        let both = async { tokio::try_join!(biased; connection.hello(), self.settle(&connection)) };
        let (protocol, ()) = both.await.map_err(|fault| connection.why(fault))?;
        if target.protocol() == Protocol::Resp3 && protocol != Protocol::Resp3 {
            let words = "the server knows no HELLO 3, and the URL asks for protocol=resp3";
            return Err(Fault::new(FaultKind::Protocol, words));
        }
        connection.speaks(protocol);
        Ok(connection)
    }

    fn may_go_without_hello(&self, kind: FaultKind) -> bool {
        matches!(kind, FaultKind::Lost | FaultKind::Protocol)
            && self.options.target.protocol() == Protocol::Auto
            && !self.without_hello.load(Ordering::Relaxed)
    }

    /// What a decision needs: the secret, the real script.
    async fn settle(&self, connection: &Connection) -> Result<(), Fault> {
        self.find_out(connection).await?;
        let settled = async {
            self.agree(connection).await?;
            self.prove(connection).await
        };
        let settled = settled.await;
        // A user who may not ask for the role finds out here. The next attempt is to another of the host's addresses.
        if let Err(Fault { kind: FaultKind::ReadOnly, .. }) = &settled
            && let Some(address) = connection.one_of_several()
        {
            self.replicas.lock().push(address);
        }
        settled
    }

    /// What the files hold now. One that is of no use is said once, and what it held before stays.
    pub(super) async fn newest_login(&self) -> Arc<Login> {
        let (newest, bad) = self.common.logins.newest().await;
        let mut state = self.login.lock();
        if let Some(bad) = bad.as_ref().filter(|bad| state.bad.as_ref() != Some(bad)) {
            self.observer.observe(&Event::StoreLoginUnreadable { detail: &bad.to_string() });
        }
        state.bad = bad;
        newest
    }

    /// Redis does not let this login in. Said once.
    pub(super) fn complain(&self, login: &Arc<Login>, fault: &Fault) {
        let mut state = self.login.lock();
        if !state.refused.as_ref().is_some_and(|refused| refused.is_same(login)) {
            state.refused = Some(Arc::clone(login));
            self.observer.observe(&Event::StoreLoginRefused(fault));
        }
    }

    /// Whether the login that is wanted is another than the one that was let in last.
    pub(super) fn has_other_login(&self) -> bool {
        let wanted = self.common.logins.wanted();
        self.login.lock().proven.as_ref().is_none_or(|proven| !proven.is_same(&wanted))
    }

    /// The real script on a reserved key: a PING would prove nothing of permissions, scripts or memory. The first time on two
    /// keys in different slots, which a server refuses that hides a cluster.
    pub(super) async fn prove(&self, connection: &Connection) -> Result<(), Fault> {
        let Some(probe) = probe::charge() else {
            return Err(Fault::new(FaultKind::Other, "the probe's quota is malformed"));
        };
        let probes = match &self.part {
            Part::First(found) if found.slots_are_unknown() => {
                vec![probe, SharedCharge { subject: probe::subject(1), ..probe }]
            }
            Part::First(_) => vec![probe],
            Part::Node { probe: number, .. } => {
                vec![SharedCharge { subject: probe::subject(number.load(Ordering::Relaxed)), ..probe }]
            }
        };
        let started = Instant::now();
        let mut proof = self.proof(connection, &probes).await;
        if let Err(Refusal::CrossSlot(_)) = &proof {
            proof = self.proof(connection, &probes[..1]).await;
        }
        match proof {
            // It has no slot, or its slots were moved meanwhile: what it does have is the map's to tell.
            Ok(()) | Err(Refusal::Moved(_) | Refusal::Ask(_) | Refusal::NotNow(_)) => {}
            Err(Refusal::Fault(fault) | Refusal::CrossSlot(fault)) => return Err(fault),
        }
        if let Part::First(found) = &self.part {
            found.slots_are_known();
        }
        self.state.lock().probe_took = Some(started.elapsed());
        Ok(())
    }

    async fn proof(&self, connection: &Connection, probes: &[SharedCharge<'_>]) -> Result<(), Refusal> {
        let now = self.common.clock.now();
        let answer = self.ask(connection.calls(), probes, false, (now, false)).await?;
        self.learn_time(answer.now, now, self.common.clock.now());
        Ok(())
    }

    /// Takes over the secret that is in Redis, or puts ours there where Redis has none or a damaged one.
    pub(super) async fn agree(&self, connection: &Connection) -> Result<(), Fault> {
        let elsewhere = match &self.part {
            Part::First(_) => false,
            Part::Node { keeps_secret, .. } => !keeps_secret.load(Ordering::Relaxed),
        };
        if self.options.secret_interval.is_none() || elsewhere {
            return Ok(());
        }
        let known = self.common.secret.lock().clone();
        // A GET, as a rule.
        self.sent(1);
        let mut calls = connection.calls();
        let shared = secret::shared(&mut calls, &self.options.namespace, known.as_deref()).await;
        let Shared { secret, found } = match shared.map_err(|error| self.refusal(&error)) {
            Ok(shared) => shared,
            Err(Refusal::Fault(fault)) => return Err(fault),
            // Its slot is another node's, or is just being moved: nothing is wrong with this one. Who keeps it is the map's
            // to tell, which is in doubt now, and then it is looked after there.
            Err(_) => {
                self.observer.observe(&Event::StoreFailed(FaultKind::Cluster));
                return Ok(());
            }
        };
        if found != Found::Secret {
            self.sent(1);
            self.sent_inside(secret::INSIDE);
        }
        let before = self.common.secret.lock().replace(secret.clone());
        if before.as_deref() != Some(&*secret) {
            self.common.rollout.learn_keys(secret::derive(secret.as_bytes()));
        }
        if self.common.secret_is_missed.swap(false, Ordering::Relaxed) {
            self.observer.observe(&Event::StoreRemark(
                "Redis Cluster: the fleet's secret is read: Redis decides from now on",
            ));
        }
        self.report_secret(found, before.as_deref(), &secret);
        Ok(())
    }

    /// Logs what became of the secret, where that is more than that it is there or that the fleet is new.
    fn report_secret(&self, found: Found, before: Option<&str>, secret: &str) {
        let key = secret::key(&self.options.namespace);
        let words = match (found, before) {
            (Found::Nothing, Some(_)) => format!(
                "Redis had lost the fleet's secret ({key}); this instance has put it back, so keys and canary buckets stay"
            ),
            (Found::Damaged(damage), Some(_)) => format!(
                "the fleet's secret in Redis ({key}) was {damage}; this instance has put back the one in use"
            ),
            (Found::Damaged(damage), None) => format!(
                "the fleet's secret in Redis ({key}) was {damage}; this instance has made a new one: all keys are new, so each \
                 client's limits begin with nothing charged"
            ),
            (Found::Secret, Some(before)) if before != secret => format!(
                "Redis holds another secret ({key}) than this instance used: this instance uses the one in Redis from now on. \
                 All keys are new, so each client's limits begin with nothing charged. TIDEGATE_SECRET on every instance \
                 prevents that"
            ),
            _ => return,
        };
        self.observer.observe(&Event::StoreWarning(&words));
    }
}

/// A connection is being made, until this is dropped.
struct Connecting<'a>(&'a dyn Observer);

impl<'a> Connecting<'a> {
    fn told_to(observer: &'a dyn Observer) -> Self {
        observer.observe(&Event::StoreConnecting(true));
        Self(observer)
    }
}

impl Drop for Connecting<'_> {
    fn drop(&mut self) {
        self.0.observe(&Event::StoreConnecting(false));
    }
}

/// No step in the background takes longer than this.
pub(super) async fn in_time<T>(
    most: Duration,
    step: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    timeout(most, step).await.unwrap_or_else(|_| {
        let words = format!("no working connection within {} ms", most.as_millis());
        Err(Fault::new(FaultKind::Timeout, words))
    })
}

/// Whether another login may help.
pub(super) fn is_about_login(kind: FaultKind) -> bool {
    matches!(kind, FaultKind::Auth | FaultKind::Permission | FaultKind::Tls)
}
