//! Plain commands of the background: what is kept in Redis besides the counts, and what instances tell each other.

use redis::{Cmd, FromRedisValue};

use super::RedisStore;
use super::cluster::{Refusal, slot};
use crate::limiter::store::Fault;

impl RedisStore {
    /// Sends one command, with the patience of a connection: nobody's request waits for it. `key` is the key or the
    /// channel that it is about, and names the server that it is for where there are several.
    ///
    /// # Errors
    /// When Redis is away, answers too late, or refuses.
    pub(super) async fn command<T: FromRedisValue>(&self, key: &str, command: &Cmd) -> Result<T, Fault> {
        let Some(slot) = self.0.is_cluster().then(|| slot::of(key.as_bytes())) else {
            return self.0.first.send(command, false).await.map_err(Refusal::into_fault);
        };
        let link = self.0.link_at(slot)?;
        let refusal = match link.send(command, false).await {
            Err(refusal @ (Refusal::Moved(_) | Refusal::Ask(_))) => refusal,
            outcome => return outcome.map_err(Refusal::into_fault),
        };
        let Some(other) = self.0.sent_elsewhere(slot, &refusal, &link) else {
            return Err(refusal.into_fault());
        };
        let asking = matches!(refusal, Refusal::Ask(_));
        other.send(command, asking).await.map_err(Refusal::into_fault)
    }

    /// Runs a script on keys of one slot; `inside` is how many commands it runs, for those who bill them. As text each time, but
    /// for its comments: the background calls too rarely for a digest to be worth a second way to a server that has
    /// forgotten it.
    ///
    /// # Errors
    /// As [`RedisStore::command`].
    pub(super) async fn script<T: FromRedisValue>(
        &self,
        keys: &[&str],
        text: &str,
        arguments: &[&[u8]],
        inside: u64,
    ) -> Result<T, Fault> {
        let mut command = redis::cmd("EVAL");
        let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("--")).collect();
        command.arg(code.join("\n")).arg(keys.len()).arg(keys).arg(arguments);
        let key = keys.first().copied().unwrap_or_default();
        self.0.link_of(key)?.sent_inside(inside);
        self.command(key, &command).await
    }
}
