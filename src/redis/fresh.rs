//! Makes connections and proves them by what a decision needs, with the login that the files hold now or the one before.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::cluster::Refusal;
use super::connect::Connection;
use super::link::{Link, Part};
use super::login::Login;
use super::target::Protocol;
use super::{probe, secret};
use crate::limiter::event::{Event, Observer};
use crate::limiter::store::{Fault, FaultKind, SharedCharge};

impl Link {
    /// A connection that was just made and has proven itself by what a decision needs: the secret, the real script. With
    /// the login that the files hold now; where Redis does not let that in, with the last that it did: while a password
    /// is changed in two places one of them is first.
    pub(super) async fn fresh(
        &self,
        secret: &mut Option<String>,
        within: Duration,
    ) -> Result<Connection, Fault> {
        let made = async {
            loop {
                self.following.trying();
                tokio::select! {
                    made = in_time(within, self.with_either_login(secret)) => break made,
                    // The master is another: whoever waits for the old one waits in vain.
                    () = self.following.switched() => {}
                }
            }
        };
        self.connecting(made).await
    }

    async fn with_either_login(&self, secret: &mut Option<String>) -> Result<Connection, Fault> {
        let newest = self.newest_login().await;
        let fault = match self.make(&newest, secret).await {
            Ok(connection) => return Ok(connection),
            Err(fault) => fault,
        };
        let proven = self.login.lock().proven.clone();
        let proven = proven.filter(|proven| is_about_login(fault.kind) && !proven.is_same(&newest));
        let Some(proven) = proven else { return Err(fault) };
        match self.make(&proven, secret).await {
            Ok(connection) => {
                self.complain(&newest, &fault);
                Ok(connection)
            }
            Err(_) => Err(fault),
        }
    }

    /// A connection with just this login.
    pub(super) async fn fresh_with(
        &self,
        login: &Arc<Login>,
        secret: &mut Option<String>,
    ) -> Result<Connection, Fault> {
        let made = self.make(login, secret);
        self.connecting(in_time(self.options.connect_timeout, made)).await
    }

    async fn connecting<T>(&self, making: impl Future<Output = T>) -> T {
        let _connecting = Connecting::told_to(&*self.observer);
        making.await
    }

    async fn make(&self, login: &Arc<Login>, secret: &mut Option<String>) -> Result<Connection, Fault> {
        let connection = match self.make_with_hello(login, secret).await {
            // Some proxies hang up on a command that they do not know, or lose count of the answers.
            Err(fault) if self.may_go_without_hello(fault.kind) => {
                let connection = self.reach(login).await?;
                self.settle(&connection, secret).await.map_err(|fault| connection.why(fault))?;
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

    async fn make_with_hello(&self, login: &Login, secret: &mut Option<String>) -> Result<Connection, Fault> {
        let target = &self.options.target;
        let mut connection = self.reach(login).await?;
        if target.protocol() == Protocol::Resp2 || self.without_hello.load(Ordering::Relaxed) {
            self.settle(&connection, secret).await.map_err(|fault| connection.why(fault))?;
            return Ok(connection);
        }
        // In one go: it costs no way there and back of its own.
        let both = async { tokio::try_join!(biased; connection.hello(), self.settle(&connection, secret)) };
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
    async fn settle(&self, connection: &Connection, secret: &mut Option<String>) -> Result<(), Fault> {
        self.find_out(connection).await?;
        self.agree(connection, secret).await?;
        self.prove(connection).await
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

    /// The real script on a reserved key: a PING would prove nothing of permissions, scripts or memory.
    pub(super) async fn prove(&self, connection: &Connection) -> Result<(), Fault> {
        let Some(probe) = probe::charge() else {
            return Err(Fault::new(FaultKind::Other, "the probe's quota is malformed"));
        };
        let subject = match &self.part {
            Part::First(_) => probe.subject,
            Part::Node { probe, .. } => probe::subject(probe.load(Ordering::Relaxed)),
        };
        let probe = SharedCharge { subject, ..probe };
        let (now, started) = (self.common.clock.now(), Instant::now());
        match self.ask(connection.calls(), &[probe], false, (now, false)).await {
            Ok(answer) => drop(self.offset.learn(answer.now, now, self.common.clock.now())),
            // It has no slot, or its slots were moved meanwhile: what it does have is the map's to tell.
            Err(Refusal::Moved(_) | Refusal::Ask(_) | Refusal::NotNow(_)) => {}
            Err(Refusal::Fault(fault)) => return Err(fault),
        }
        self.state.lock().probe_took = Some(started.elapsed());
        Ok(())
    }

    /// Takes the secret that is in Redis, or puts ours there.
    pub(super) async fn agree(
        &self,
        connection: &Connection,
        secret: &mut Option<String>,
    ) -> Result<(), Fault> {
        let elsewhere = match &self.part {
            Part::First(_) => false,
            Part::Node { keeps_secret, .. } => !keeps_secret.load(Ordering::Relaxed),
        };
        if self.options.secret_interval.is_none() || elsewhere {
            return Ok(());
        }
        // Another link may have been told it, whose slot this link's node has taken over.
        if secret.is_none() {
            secret.clone_from(&self.common.secret.lock());
        }
        // A GET, as a rule.
        self.sent(1);
        let mut calls = connection.calls();
        let shared = secret::shared(&mut calls, &self.options.namespace, secret.as_deref()).await;
        let shared = match shared.map_err(|error| self.refusal(&error)) {
            Ok(shared) => shared,
            Err(Refusal::Fault(fault)) => return Err(fault),
            // Its slot is another node's, or is just being moved: nothing is wrong with this one. Who keeps it is the map's
            // to tell, which is in doubt now, and then it is looked after there.
            Err(_) => {
                self.observer.observe(&Event::StoreFailed(FaultKind::Cluster));
                return Ok(());
            }
        };
        if secret.as_ref() != Some(&shared) {
            self.common.rollout.learn_keys(secret::derive(shared.as_bytes()));
            *self.common.secret.lock() = Some(shared.clone());
            *secret = Some(shared);
        }
        Ok(())
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
