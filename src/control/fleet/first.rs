//! What an instance finds out before it decides anything by Redis: the fleet's record, or that there is none.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Fleet;
use super::shared::Shared;
use super::tell::{Message, What};
use crate::control::record::Source;
use crate::limiter::store::Fault;
use crate::redis::RedisStore;

/// How long the record is waited for where Redis has none and another instance listens: less than the link waits.
const PATIENCE: Duration = Duration::from_millis(1_500);
/// How often it is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(50);

impl Fleet {
    /// From now on the record is read over each new connection before it is used, where this instance takes part in it.
    pub fn reads_record_first(self: &Arc<Self>) {
        let (Some(store), Some(_)) = (self.limiter.store(), self.heartbeat) else { return };
        let this = Arc::downgrade(self);
        store.before_use(Arc::new(move |there| Box::pin(Self::know_record(Weak::clone(&this), there))));
    }

    async fn know_record(this: Weak<Self>, there: Result<Option<Vec<u8>>, Fault>) {
        let Some(this) = this.upgrade() else { return };
        let (Some(steering), Some(store)) = (this.steering(), this.limiter.store()) else { return };
        match there {
            Ok(Some(text)) => match Shared::read(&text) {
                Some(theirs) => _ = this.consider(&theirs, Source::Redis).await,
                None => this.ask_for_record(store).await,
            },
            Ok(None) if steering.is_settled() => {}
            Ok(None) => this.ask_for_record(store).await,
            // Of a cluster another node has it, which is read over its own connection.
            Err(_) => {
                let deadline = Instant::now() + PATIENCE;
                while store.nodes().is_some() && !steering.is_settled() && Instant::now() < deadline {
                    sleep(LOOK_EVERY).await;
                }
            }
        }
    }

    /// Redis has lost the record, or never had one. An instance that listens and has one puts it back when a newcomer says hello.
    async fn ask_for_record(self: &Arc<Self>, store: &RedisStore) {
        let Some(steering) = self.steering() else { return };
        let hello = Message { from: self.id, telling: rand::random(), what: What::Hello };
        let deadline = Instant::now() + PATIENCE;
        // An instance that may not publish cannot ask.
        let mut is_alone = !self.publish(store, &hello).await.is_ok_and(|listening| listening > 0);
        while !is_alone && Instant::now() < deadline {
            match store.shared_record().await {
                Ok(Some(text)) => {
                    if let Some(theirs) = Shared::read(&text) {
                        self.consider(&theirs, Source::Redis).await;
                        return;
                    }
                }
                Ok(None) => {}
                Err(_) => is_alone = true,
            }
            sleep(LOOK_EVERY).await;
        }
        steering.found_nothing();
    }
}
