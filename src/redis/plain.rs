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
}
