//! Before decisions go over a new connection the fleet's record is read over it: an instance that starts, or that was cut off,
//! knows what is in force before it decides anything by Redis.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::timeout;

use super::RedisStore;
use super::cluster::Refusal;
use super::link::Link;
use crate::limiter::store::Fault;

/// What is done with the text of the record before a connection is used: as it is in Redis, or why it can't be read over this
/// connection (of a cluster only one node has it).
pub type BeforeUse = Arc<dyn Fn(Result<Option<Vec<u8>>, Fault>) -> BoxFuture<'static, ()> + Send + Sync>;

/// The longest that a connection waits for it.
const PATIENCE: Duration = Duration::from_secs(3);

impl RedisStore {
    /// From now on this is done before a connection is used. Once, before the first connection.
    pub fn before_use(&self, act: BeforeUse) {
        let _ = self.0.common.before_use.set(act);
    }
}

impl Link {
    /// Reads the record over the connection that is about to be used, and waits until it is dealt with.
    pub(super) async fn read_record_first(&self) {
        let Some(act) = self.common.before_use.get() else { return };
        let mut read = redis::cmd("GET");
        read.arg(format!("{}:rollout", self.options.namespace));
        let dealt_with = async {
            let there = self.send(&read, false).await.map_err(Refusal::into_fault);
            act(there).await;
        };
        // What takes longer is what the heartbeat mends.
        let _ = timeout(PATIENCE, dealt_with).await;
    }
}
