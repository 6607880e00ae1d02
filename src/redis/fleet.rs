//! What instances tell each other through Redis: a channel that each of them listens to, on a connection of its own.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use tokio::time::{sleep, timeout};

use super::backoff::Backoff;
use super::connect::Connection;
use super::link::Link;
use super::{RedisStore, connect, fault};
use crate::limiter::breaker::State;
use crate::limiter::store::{Fault, FaultKind};

/// How often it is looked whether Redis is in use again.
const LOOK_EVERY: Duration = Duration::from_millis(250);

impl RedisStore {
    /// Tells the fleet. Returns how many listen, this instance included when it does.
    ///
    /// # Errors
    /// When Redis is away, or does not let this user publish.
    pub async fn tell_fleet(&self, message: &str) -> Result<usize, Fault> {
        let channel = self.channel();
        let mut command = redis::cmd("PUBLISH");
        command.arg(&channel).arg(message);
        self.command(&channel, &command).await
    }

    /// Hears what the fleet tells, and calls `hear` with each message, and `listens` when it begins and when it no longer
    /// does. Listens again whenever the connection is lost, with the same patience as for any other. Runs until it is
    /// dropped.
    pub async fn hear_fleet(&self, hear: impl Fn(String), listens: impl Fn(bool)) {
        let options = &self.0.options;
        let mut backoff = Backoff::new(options.reconnect_interval);
        loop {
            // Whether Redis is there is for the supervisor to find out. Of a cluster each node passes on what another is
            // told, but counts only who listens to itself: so all listen to the one that is told.
            let link = loop {
                match self.0.link_of(&self.channel()) {
                    Ok(link) if link.breaker.state() != State::Open => break link,
                    _ => sleep(LOOK_EVERY).await,
                }
            };
            // Weak: whoever holds a connection keeps it open.
            let beside = link.connection.load().as_ref().map(Arc::downgrade);
            let kind = match timeout(options.connect_timeout, self.subscribed(&link)).await {
                Ok(Ok(mut messages)) => {
                    let since = Instant::now();
                    listens(true);
                    let is_over = self.pass_on(&mut messages, beside.as_ref(), &hear).await;
                    listens(false);
                    backoff.healthy(since.elapsed());
                    if !is_over {
                        continue;
                    }
                    FaultKind::Lost
                }
                Ok(Err(fault)) => fault.kind,
                Err(_) => FaultKind::Timeout,
            };
            sleep(backoff.wait(kind, rand::random())).await;
        }
    }

    /// Passes on what is told, until the other side closes the connection, which is true, or the one that decisions go
    /// over is another than `beside`: whatever was wrong with that one may be wrong with this, which nobody asks.
    async fn pass_on(
        &self,
        messages: &mut redis::aio::PubSubStream,
        beside: Option<&Weak<Connection>>,
        hear: &impl Fn(String),
    ) -> bool {
        loop {
            tokio::select! {
                message = messages.next() => match message.map(|message| message.get_payload::<String>()) {
                    None => return true,
                    Some(Ok(text)) => hear(text),
                    // Not ours: what we tell is text.
                    Some(Err(_)) => {}
                },
                () = sleep(LOOK_EVERY) => {
                    let Ok(link) = self.0.link_of(&self.channel()) else { return false };
                    let now = link.connection.load();
                    if now.as_ref().map(Arc::as_ptr) != beside.map(Weak::as_ptr)
                        || link.breaker.state() == State::Open
                    {
                        return false;
                    }
                }
            }
        }
    }

    async fn subscribed(&self, link: &Link) -> Result<redis::aio::PubSubStream, Fault> {
        let login = link.newest_login().await;
        // To where the decisions go: sentinels may name another server than a moment ago.
        let beside = link.connection.load().as_ref().map(|connection| connection.target().clone());
        let Some(target) = beside else { return Err(Fault::open()) };
        let replicas = link.replicas.lock().clone();
        let mut channel = connect::listen(&target, &login, &replicas).await?;
        channel.subscribe(self.channel()).await.map_err(|error| fault::classify(&error))?;
        Ok(channel.into_on_message())
    }

    fn channel(&self) -> String {
        format!("{}:fleet", self.0.options.namespace)
    }
}
