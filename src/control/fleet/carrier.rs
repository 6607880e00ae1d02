//! How a change of the record reaches the fleet: a raise by compare-and-set in Redis, for a moment that all hear of
//! before it comes; everything else by being told to all, at once.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::{Instant, timeout, timeout_at};

use super::Fleet;
use super::shared::Shared;
use super::tell::What;
use crate::control::record::{Applied, Carrier, CarrierFault, Raised, Record, Source};
use crate::limiter::clock::Micros;
use crate::redis::{Brought, RedisStore};

/// How long whoever changes something waits for the others: a little less than an answer may take.
const PATIENCE: Duration = Duration::from_millis(800);
/// How long before its moment a raise is announced to who listens,
const LEAD: Duration = Duration::from_secs(2);
/// and how much longer than two beats where some hear of it by their beat.
const LEAD_BY_BEAT: Duration = Duration::from_secs(1);

/// How often a change is tried again that lacked something of what is in Redis.
const ATTEMPTS: u32 = 4;

/// The way of a fleet.
pub struct Way(pub Arc<Fleet>);

impl Carrier for Way {
    fn raise<'a>(
        &'a self,
        seen: &'a Record,
        next: &'a Record,
    ) -> BoxFuture<'a, Result<Raised, CarrierFault>> {
        Box::pin(self.0.raise(seen, next))
    }

    fn announce<'a>(&'a self, record: &'a Record) -> BoxFuture<'a, Applied> {
        Box::pin(self.0.announce(record))
    }

    fn can_keep(&self) -> Result<(), CarrierFault> {
        self.0.can_keep()
    }

    fn is_shared(&self) -> bool {
        let fleet = &self.0;
        let is_alone = || fleet.redis_answers() && fleet.registry.len() == 0;
        fleet.peers.is_some() || fleet.limiter.store().is_some() && !is_alone()
    }

    fn now(&self) -> Micros {
        self.0.now()
    }
}

impl Fleet {
    fn can_keep(&self) -> Result<(), CarrierFault> {
        match self.limiter.store().filter(|_| self.heartbeat.is_some()) {
            None => Err(CarrierFault("Redis is not in use".to_owned())),
            Some(store) if !store.is_in_use() => Err(CarrierFault(store.state().last_fault.map_or_else(
                || "it is not connected yet".to_owned(),
                |fault| fault.kind.as_str().to_owned(),
            ))),
            Some(_) => Ok(()),
        }
    }

    /// Puts `next` in the place of what was `seen`, for everybody or for nobody.
    async fn raise(self: &Arc<Self>, seen: &Record, next: &Record) -> Result<Raised, CarrierFault> {
        let Some(store) = self.limiter.store().filter(|_| self.heartbeat.is_some()) else {
            return Err(CarrierFault("Redis is not in use".to_owned()));
        };
        let raised = timeout(4 * PATIENCE, self.raise_in(store, seen, next)).await;
        raised.unwrap_or_else(|_| Err(CarrierFault("Redis does not answer in time".to_owned())))
    }

    async fn raise_in(
        self: &Arc<Self>,
        store: &RedisStore,
        seen: &Record,
        next: &Record,
    ) -> Result<Raised, CarrierFault> {
        let away = |fault: crate::limiter::store::Fault| CarrierFault(fault.kind.as_str().to_owned());
        let raises = next.wanted() > seen.due(self.now());
        let lead = if raises { self.lead().await } else { None };
        let now = store.ask_server_time().await.map_err(away)?;
        let effective_at = lead.map(|lead| now + lead.as_micros() as Micros);
        let mut next = Record { effective_at, ..next.clone() };
        let steering = self.steering().ok_or_else(|| CarrierFault("just starting".to_owned()))?;
        let text = |record: &Record| {
            let text = Shared::new(steering.register_with(record)).text();
            text.ok_or_else(|| CarrierFault("the record can't be written".to_owned()))
        };
        let mut unreadable = None;
        for _ in 0..ATTEMPTS {
            let (seen_text, next_text) = (text(seen)?, text(&next)?);
            let raised = store.raise_record(&seen_text, &next_text, unreadable.as_deref()).await;
            match raised.map_err(away)? {
                Brought::Taken => return Ok(Raised::Won(Box::new(next))),
                Brought::Stays(theirs) => {
                    let Some(read) = Shared::read(&theirs) else {
                        if unreadable.replace(theirs).is_some() {
                            return Err(CarrierFault("what is in Redis can't be read".to_owned()));
                        }
                        continue;
                    };
                    self.consider(&read, Source::Redis).await;
                    let now = steering.record();
                    if now.is_same(seen) {
                        // Nothing newer than what was seen, but lowerings that it does not follow and that are no lower.
                        next = next.following(&steering.register().unheard);
                        continue;
                    }
                    // A lowering that the others did not know of may be above theirs by now.
                    let won = if now.supersedes(&read.record) { now } else { read.record };
                    return Ok(Raised::Lost(Box::new(won)));
                }
            }
        }
        Err(CarrierFault("others change the record all the time".to_owned()))
    }

    /// How long before its moment a raise has to be announced; `None` where nobody else is there.
    async fn lead(self: &Arc<Self>) -> Option<Duration> {
        let told = self.tell(What::Hello, PATIENCE).await;
        if told.of <= 1 {
            return None;
        }
        // Who listens and is silent has ended or is cut off, and hears of it when it is back, however long that takes.
        if told.done == told.of || !self.registry.has_deaf() {
            return Some(LEAD);
        }
        Some(self.heartbeat.unwrap_or_default() * 2 + LEAD_BY_BEAT)
    }

    /// Everybody hears of it, Redis keeps it, and who has it in force by now is counted.
    async fn announce(self: &Arc<Self>, record: &Record) -> Applied {
        let deadline = Instant::now() + PATIENCE;
        let Some(steering) = self.steering() else { return Applied::unknown() };
        // A change that arrived meanwhile is broadcast with it.
        let now = steering.register();
        let register = if now.record.supersedes(record) { now } else { steering.register_with(record) };
        let what = What::Record(Box::new(Shared::new(register)));
        let bring = async {
            let (Some(store), Some(_)) = (self.limiter.store(), self.heartbeat) else { return false };
            // What fails now is what the next beat does.
            timeout_at(deadline, self.bring(store)).await.is_ok_and(|kept| kept == Ok(true))
        };
        let (kept, told) = tokio::join!(bring, self.tell(what, PATIENCE));
        Applied { done: told.done, of: told.of, pending: told.pending, kept }
    }
}
