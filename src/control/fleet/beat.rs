//! The heartbeat: every few seconds an instance says through Redis that it is there, hears who else is, and holds its
//! record against the fleet's. Whatever got lost on another way, a beat mends.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::Fleet;
use super::registry::id_text;
use super::shared::Shared;
use super::tell::What;
use crate::control::record::Source;
use crate::limiter::breaker::State;
use crate::limiter::event::Event;
use crate::limiter::store::{Fault, FaultKind};
use crate::redis::{Brought, Members, RedisStore};

/// How often it is looked whether Redis is in use again.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Who knows of no other speaks no more often.
const ALONE: Duration = Duration::from_secs(60);
/// Who is silent for so many beats is gone.
const SILENT: u32 = 3;
/// So many rows of the list are read at a beat, on average.
const ROWS_A_BEAT: usize = 100;
/// How long the list is waited for when it is read again.
const REREAD: Duration = Duration::from_millis(200);
/// How often a record is brought anew when another came first.
const ATTEMPTS: u32 = 4;
/// How long the others are waited for when they are told what they lack.
const PATIENCE: Duration = Duration::from_secs(1);

impl Fleet {
    /// Beats until it is dropped.
    pub(super) async fn keep_beating(self: Arc<Self>) {
        let (Some(store), Some(every)) = (self.limiter.store(), self.heartbeat) else { return };
        let mut due = Instant::now();
        let mut away = true;
        let mut is_first = true;
        loop {
            if store.state().breaker == State::Open {
                away = true;
                // When it answered last is for nobody to rely on.
                self.redis.lock().take_if(|last| last.is_ok());
                sleep(LOOK_EVERY).await;
                continue;
            }
            if self.leaving.load(Ordering::Relaxed) {
                return;
            }
            if away || Instant::now() >= due {
                self.beat(store, every).await;
                away = false;
                if std::mem::take(&mut is_first) && self.registry.len() == 0 {
                    // A list that was lost names none of the others. One that has another secret cannot open this message,
                    // and looks at the secret in Redis at once.
                    let this = Arc::clone(&self);
                    tokio::spawn(async move { this.tell(What::Hello, PATIENCE).await });
                }
                due = Instant::now() + self.pace(every);
            }
            let soon =
                timeout(LOOK_EVERY.min(due.saturating_duration_since(Instant::now())), self.hurry.notified());
            if soon.await.is_ok() {
                due = Instant::now();
            }
        }
    }

    /// Whether each instance that is there has spoken since this one started.
    fn list_is_complete(&self) -> bool {
        let lasts = self.clock.now().saturating_sub(self.started);
        self.heartbeat.is_none_or(|every| Duration::from_micros(lasts) > every)
    }

    /// How many instances share the limits, this one included: those on the list of this heartbeat or the one before. Each of
    /// them writes its row again within one heartbeat when Redis lost the list.
    pub(super) fn members(&self) -> usize {
        let time = self.heartbeat.map_or(Duration::ZERO, |every| every * 2);
        self.registry.listed_within(time).max(self.registry.len()) + 1
    }

    /// How often: as configured, and rarely for an instance that is alone. One that has just lost sight of the others is not:
    /// Redis may have lost the list, and with it the secret, which is to be put back soon.
    pub(super) fn pace(&self, every: Duration) -> Duration {
        if self.registry.len() == 0 && !self.registry.had_company_within(ALONE) {
            every.max(ALONE)
        } else {
            every
        }
    }

    /// One beat: the row, the list, the record and the secret in one way there and back. The secret is guarded by each beat:
    /// whoever starts after Redis lost it would make another, with buckets and keys of its own.
    async fn beat(self: &Arc<Self>, store: &RedisStore, every: Duration) {
        let Some(own) = self.row() else { return };
        let Ok(row) = serde_json::to_string(&own) else { return };
        let id = id_text(self.id);
        // Who is alone by now may be so no longer, and be looked for by the pace of the others: the longer counts.
        let counts = every.max(self.pace(every)) * SILENT;
        let (secret, wrote, rows, there) = tokio::join!(
            store.guard_secret(),
            store.write_member(&id, &row, counts),
            self.read_members(store),
            store.shared_record()
        );
        if let Err(fault) = secret {
            self.observer.observe(&Event::StoreFailed(fault.kind));
        }
        if self.leaving.load(Ordering::Relaxed) {
            // It may have been removed just before it was written.
            let _ = store.remove_member(&id).await;
            return;
        }
        let outcome = match (&wrote, &rows, &there) {
            (Ok(_), Ok(_), Ok(_)) => Ok(()),
            (Err(fault), _, _) | (_, Err(fault), _) | (_, _, Err(fault)) => Err(fault.kind),
        };
        *self.redis.lock() = Some(outcome);
        if let Ok(Some(rows)) = &rows {
            let alone = self.registry.len() == 0;
            self.registry.are(rows, &own);
            store.is_shared_by(u32::try_from(self.registry.len()).unwrap_or(u32::MAX).saturating_add(1));
            self.limiter.fleet_has(self.members(), self.list_is_complete());
            if alone && self.registry.len() > 0 {
                // They may know of nobody either.
                let this = Arc::clone(self);
                tokio::spawn(async move { this.tell(What::Hello, PATIENCE).await });
            }
        }
        match there {
            Ok(there) => self.settle(store, there.as_deref()).await,
            // Perhaps another kind of value is there: to bring ours finds out.
            Err(_) if wrote.is_ok() => self.settle(store, None).await,
            Err(_) => {}
        }
        self.overrides_due.notify_one();
    }

    /// The rows of the list in Redis; `None` when they are not read at this beat. Where there are many, all of them are read
    /// when their number has changed, and else so rarely that a beat reads a hundred on average.
    async fn read_members(&self, store: &RedisStore) -> Result<Option<Vec<String>>, Fault> {
        let (stored, beats) = *self.members_read.lock();
        if beats + 1 < stored.div_ceil(ROWS_A_BEAT) && store.member_count().await? == stored {
            self.members_read.lock().1 += 1;
            return Ok(None);
        }
        let Members { rows, stored } = store.members().await?;
        *self.members_read.lock() = (stored, 0);
        Ok(Some(rows))
    }

    /// Reads the list again, beside the beats.
    pub(super) async fn reread_members(&self, store: &RedisStore) {
        if let (Ok(Ok(members)), Some(own)) = (timeout(REREAD, store.members()).await, self.row()) {
            self.registry.are(&members.rows, &own);
        }
    }

    /// Meets what is in Redis, and brings what it lacks.
    async fn settle(self: &Arc<Self>, store: &RedisStore, there: Option<&[u8]>) {
        let theirs = there.and_then(Shared::read);
        match &theirs {
            Some(theirs) => {
                if !self.consider(theirs, Source::Redis).await.more {
                    return;
                }
            }
            None => _ = self.steering().map(|steering| steering.found_nothing()),
        }
        if self.bring(store).await.is_ok_and(|taken| taken) && theirs.is_some() {
            self.spread().await;
        }
    }

    /// Brings our register to Redis. Whether Redis has the record that is here now; what is newer there is met.
    pub(super) async fn bring(self: &Arc<Self>, store: &RedisStore) -> Result<bool, FaultKind> {
        let Some(steering) = self.steering() else { return Ok(false) };
        let mut unreadable = None;
        for _ in 0..ATTEMPTS {
            let ours = steering.register();
            let Some(text) = Shared::new(ours.clone()).text() else { return Ok(false) };
            let brought = store.bring_record(&text, unreadable.as_deref()).await;
            match brought.map_err(|fault| fault.kind)? {
                Brought::Taken => return Ok(true),
                Brought::Stays(theirs) => match Shared::read(&theirs) {
                    Some(theirs) => {
                        if !self.consider(&theirs, Source::Redis).await.more {
                            return Ok(ours.record.is_same(&theirs.record));
                        }
                    }
                    // An unreadable record must not stay for ever because of the number in front of it.
                    None if unreadable.is_none() => unreadable = Some(theirs),
                    None => return Ok(false),
                },
            }
        }
        Ok(false)
    }

    /// Tells the others our register, without anybody waiting for it.
    async fn spread(self: &Arc<Self>) {
        if let Some(ours) = self.shared() {
            self.tell(What::Record(Box::new(ours)), PATIENCE).await;
        }
    }
}
