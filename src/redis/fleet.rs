//! What instances tell each other through Redis: a channel that each of them listens to, on a connection of its own.

use std::time::Instant;

use futures_util::StreamExt as _;
use tokio::time::{sleep, timeout};

use super::backoff::Backoff;
use super::{RedisStore, connect, fault};
use crate::limiter::store::{Fault, FaultKind};

impl RedisStore {
    /// Tells the fleet. Returns how many listen, this instance included when it does.
    ///
    /// # Errors
    /// When Redis is away, or does not let this user publish.
    pub async fn tell_fleet(&self, message: &str) -> Result<usize, Fault> {
        let link = &self.0;
        let Some(connection) = link.connection.load_full() else { return Err(Fault::open()) };
        let mut connection = connection.calls();
        link.sent(1);
        let mut command = redis::cmd("PUBLISH");
        command.arg(link.channel()).arg(message);
        let told = timeout(link.options.connect_timeout, command.query_async(&mut connection)).await;
        let told = told.map_err(|_| Fault::new(FaultKind::Timeout, "no answer in time"))?;
        told.map_err(|error| fault::classify(&error))
    }

    /// Hears what the fleet tells, and calls `hear` with each message. Listens again whenever the connection is lost,
    /// with the same patience as for any other. Runs until it is dropped.
    pub async fn hear_fleet(&self, hear: impl Fn(String)) {
        let link = &self.0;
        let mut backoff = Backoff::new(link.options.reconnect_interval);
        loop {
            let kind = match timeout(link.options.connect_timeout, self.subscribed()).await {
                Ok(Ok(mut messages)) => {
                    let since = Instant::now();
                    while let Some(message) = messages.next().await {
                        if let Ok(text) = message.get_payload::<String>() {
                            hear(text);
                        }
                    }
                    backoff.healthy(since.elapsed());
                    FaultKind::Lost
                }
                Ok(Err(fault)) => fault.kind,
                Err(_) => FaultKind::Timeout,
            };
            sleep(backoff.wait(kind, rand::random())).await;
        }
    }

    async fn subscribed(&self) -> Result<redis::aio::PubSubStream, Fault> {
        let link = &self.0;
        let login = link.newest_login().await;
        let mut channel = connect::listen(&link.options.target, &login).await?;
        channel.subscribe(link.channel()).await.map_err(|error| fault::classify(&error))?;
        Ok(channel.into_on_message())
    }
}

impl super::link::Link {
    fn channel(&self) -> String {
        format!("{}:fleet", self.options.namespace)
    }
}
