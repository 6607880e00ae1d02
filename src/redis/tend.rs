//! While Redis is in use: what keeps it so. A connection that ended, went bad, or was made with a login that is out of
//! date is replaced by a fresh one, which was proven first, and only where that fails is it an outage.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::backoff::Backoff;
use super::connect::Connection;
use super::fresh::in_time;
use super::link::{LASTING, Link, Part};
use super::supervisor::closed;
use crate::limiter::breaker::State;
use crate::limiter::event::{Event, Replaced};
use crate::limiter::store::{Fault, FaultKind};

/// A connection that is suspect is replaced at most so often: where a fresh one is no better, Redis itself is slow.
const BETWEEN_RENEWALS: Duration = Duration::from_secs(60);
/// For so long, at most, nothing is said of a connection that was lost: then it is an outage.
const UNSAID: Duration = Duration::from_secs(2);
/// A login that Redis does not let in is tried again at most so late.
const LOGIN_AGAIN: Duration = Duration::from_secs(300);

/// How often it is looked whether a connection is there.
const BETWEEN_LOOKS: Duration = Duration::from_millis(5);

/// Why to act.
enum Occasion {
    /// The other side has closed the connection, or it broke.
    Over,
    /// Calls over it time out too often.
    Suspect,
    /// Calls come from another thread.
    Moved,
    /// Somebody has taken another login, or it is time to try it again.
    Login,
    /// The sentinels name another master.
    Switched,
    /// It is time to look after the secret.
    Look,
}

impl Link {
    /// Replaces connections as it must. Returns when neither the one in use nor a fresh one works.
    pub(super) async fn tend(&self) -> Fault {
        let mut renewed: Option<Instant> = None;
        let mut looked = Instant::now();
        let mut logins = Backoff::new(LOGIN_AGAIN);
        // Redis let in the login before: the wanted one is tried again now and then.
        let mut login_again =
            self.has_other_login().then(|| Instant::now() + logins.wait(FaultKind::Auth, rand::random()));
        let mut idle_ends = 0;
        loop {
            let Some(connection) = self.connection.load_full() else { return pending().await };
            let look = self.options.secret_interval.map(|interval| looked + interval);
            let occasion = tokio::select! {
                () = connection.over() => Occasion::Over,
                () = self.following.left(connection.target()) => Occasion::Switched,
                () = self.suspected.notified() => Occasion::Suspect,
                () = self.common.home.moved(&self.heard_home) => Occasion::Moved,
                () = self.common.logins.changed(&self.heard_login) => Occasion::Login,
                () = at(login_again) => Occasion::Login,
                () = at(look) => Occasion::Look,
                () = self.keeps_what_nobody_knows() => Occasion::Look,
            };
            match occasion {
                Occasion::Over => {
                    idle_ends = if connection.was_used() { 0 } else { idle_ends + 1 };
                    self.observer.observe(&Event::StoreDisconnected);
                    self.state.lock().protocol = None;
                    if connection.age() < LASTING {
                        return self.trip(closed()).await;
                    }
                    let quiet = self.quiet(&connection);
                    let Some(wait) = self.short_lived.wait(connection.age(), quiet, rand::random()) else {
                        let words = format!(
                            "the other side has closed the connection, and {} in a row that lived for less than 10 s",
                            self.short_lived.in_a_row()
                        );
                        return self.trip(Fault::new(FaultKind::Lost, words)).await;
                    };
                    sleep(wait + self.common.members.spread(rand::random())).await;
                    if idle_ends > 1 {
                        // Nobody uses it, and the other side closes it each time. Each connection costs commands that
                        // the provider bills: the next one is made when it is missed.
                        tokio::select! {
                            () = self.missed.notified() => {}
                            () = self.common.logins.changed(&self.heard_login) => {}
                            () = at(look) => {}
                        }
                    }
                    match self.fresh(UNSAID.min(self.options.connect_timeout)).await {
                        Ok(fresh) => {
                            let calls = connection.lost_calls();
                            self.replace(fresh, Replaced::Lost { calls }).await;
                            looked = Instant::now();
                        }
                        Err(fault) => {
                            self.observer.observe(&Event::StoreFailed(fault.kind));
                            return self.trip(fault).await;
                        }
                    }
                }
                Occasion::Suspect => {
                    if renewed.is_some_and(|renewed| renewed.elapsed() < BETWEEN_RENEWALS) {
                        continue;
                    }
                    renewed = Some(Instant::now());
                    // Requests get answers over the old connection: a server without room for a second one is no
                    // outage.
                    let _ = self.renew().await;
                }
                Occasion::Switched => match self.fresh_of_a_fleet().await {
                    // They said nothing new.
                    Ok(fresh) if fresh.target() == connection.target() => {}
                    Ok(fresh) => self.replace(fresh, Replaced::Failover).await,
                    // What the old master still counts is lost with it.
                    Err(fault) => {
                        self.observer.observe(&Event::StoreFailed(fault.kind));
                        return self.trip(fault).await;
                    }
                },
                Occasion::Look => {
                    looked = Instant::now();
                    let agreed = self.agree(&connection);
                    if in_time(self.options.connect_timeout, agreed).await.is_ok() {
                        continue;
                    }
                    renewed = Some(Instant::now());
                    // It is broken, and so is a fresh one: the outage need not wait for a request to find it.
                    if let Err(fault) = self.renew().await {
                        return self.trip(fault).await;
                    }
                }
                // Where that fails the one in use is as good, only dearer.
                Occasion::Moved => {
                    if let Ok(fresh) = self.fresh(self.options.connect_timeout).await {
                        self.put_in_place(fresh).await;
                    }
                }
                Occasion::Login => login_again = self.log_in_anew(&mut logins).await,
            }
        }
    }

    /// A fresh connection to a new master, which all instances make at this moment.
    async fn fresh_of_a_fleet(&self) -> Result<Connection, Fault> {
        sleep(self.common.members.spread(rand::random())).await;
        self.fresh(self.options.connect_timeout).await
    }

    /// Waits until the map says that the fleet's secret is this node's, and no link has been told it: its slot came here
    /// after the connection was made.
    async fn keeps_what_nobody_knows(&self) {
        loop {
            self.mapped.notified().await;
            if let Part::Node { keeps_secret, .. } = &self.part
                && keeps_secret.load(Ordering::Relaxed)
                && self.options.secret_interval.is_some()
                && self.common.secret.lock().is_none()
            {
                return;
            }
        }
    }

    /// Waits while Redis is in use and the connection is over: the background is making another.
    pub(super) async fn replaced(&self) {
        while self.breaker.state() == State::Closed && !self.is_connected() {
            self.missed.notify_one();
            sleep(BETWEEN_LOOKS).await;
        }
    }

    /// A fresh connection in place of one that goes bad.
    async fn renew(&self) -> Result<(), Fault> {
        match self.fresh(self.options.connect_timeout).await {
            Ok(fresh) => {
                self.replace(fresh, Replaced::Slow).await;
                Ok(())
            }
            Err(fault) => {
                self.observer.observe(&Event::StoreFailed(fault.kind));
                Err(fault)
            }
        }
    }

    /// A connection with the login that is wanted by now in place of the one in use, which stays where Redis does not let
    /// that in. When to try again, if so.
    async fn log_in_anew(&self, logins: &mut Backoff) -> Option<Instant> {
        let newest = self.newest_login().await;
        if !self.has_other_login() {
            return None;
        }
        match self.fresh_with(&newest).await {
            Ok(fresh) => {
                self.replace(fresh, Replaced::Login).await;
                None
            }
            Err(fault) => {
                self.observer.observe(&Event::StoreFailed(fault.kind));
                self.complain(&newest, &fault);
                Some(Instant::now() + logins.wait(fault.kind, rand::random()))
            }
        }
    }

    async fn replace(&self, fresh: Connection, why: Replaced) {
        self.put_in_place(fresh).await;
        self.observer.observe(&Event::StoreReplaced(why));
    }

    /// Calls go over the fresh connection; those under way end over the old one. Never returns when the breaker opened
    /// first: then the supervisor is told so elsewhere.
    async fn put_in_place(&self, fresh: Connection) {
        // The breaker second: a call must not be counted for the fresh connection that went over the old.
        let fresh = Arc::new(fresh);
        self.put_to_use(&fresh);
        if !self.breaker.renewed() {
            pending::<()>().await;
        }
        self.following.deciding(fresh.target());
    }
}

/// Waits for that moment, for ever when there is none.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => pending().await,
    }
}
