//! Plain commands of the background: what is kept in Redis besides the counts, and what instances tell each other.

use redis::{Cmd, FromRedisValue};
use tokio::time::timeout;

use super::{RedisStore, fault};
use crate::limiter::store::{Fault, FaultKind};

impl RedisStore {
    /// Sends one command, with the patience of a connection: nobody's request waits for it. `key` is the key or the
    /// channel that it is about, and names the server that it is for where there are several.
    ///
    /// # Errors
    /// When Redis is away, answers too late, or refuses.
    pub(super) async fn command<T: FromRedisValue>(&self, key: &str, command: &Cmd) -> Result<T, Fault> {
        // One server holds every key.
        let _ = key;
        let link = &self.0;
        let Some(connection) = link.connection.load_full() else { return Err(Fault::open()) };
        let mut connection = connection.calls();
        link.sent(1);
        let answer = timeout(link.options.connect_timeout, command.query_async(&mut connection)).await;
        let answer = answer.map_err(|_| Fault::new(FaultKind::Timeout, "no answer in time"))?;
        answer.map_err(|error| fault::classify(&error))
    }
    /// Runs a script on one key; `inside` is how many commands it runs, for those who bill them. As text each time, but
    /// for its comments: the background calls too rarely for a digest to be worth a second way to a server that has
    /// forgotten it.
    ///
    /// # Errors
    /// As [`RedisStore::command`].
    pub(super) async fn script<T: FromRedisValue>(
        &self,
        key: &str,
        text: &str,
        arguments: &[&str],
        inside: u64,
    ) -> Result<T, Fault> {
        let mut command = redis::cmd("EVAL");
        let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("--")).collect();
        command.arg(code.join("\n")).arg(1).arg(key).arg(arguments);
        self.0.sent_inside(inside);
        self.command(key, &command).await
    }
}
