//! The fleet's record in Redis: read, brought, compared and set. The script compares by the order of `control/record/merge.rs`,
//! and never lets a record take the place of one that knows of a lowering which it does not.

use super::RedisStore;
use crate::limiter::clock::Micros;
use crate::limiter::store::{Fault, FaultKind};

const SCRIPT: &str = include_str!("record.lua");
/// Commands that the script runs.
const INSIDE: u64 = 2;

/// What became of a record that was brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Brought {
    /// It is the fleet's now.
    Taken,
    /// This one stays: it is newer, or the same, or knows of a lowering that the other does not. As it is there: it may be no
    /// text.
    Stays(Vec<u8>),
}

impl RedisStore {
    /// The fleet's record, if there is one. As it is there: it may be no text.
    ///
    /// # Errors
    /// When Redis is away, does not let this user read, or has another kind of value there.
    pub async fn shared_record(&self) -> Result<Option<Vec<u8>>, Fault> {
        let key = self.key_of("rollout");
        let mut command = redis::cmd("GET");
        command.arg(&key);
        self.command(&key, &command).await
    }

    /// Brings a record, the JSON of the register that holds it: it takes the place of an older one that knows of no lowering
    /// which this one does not, of none, and of the very bytes that are `unreadable` to the caller.
    ///
    /// # Errors
    /// When Redis is away, or does not let this user write.
    pub async fn bring_record(&self, record: &str, unreadable: Option<&[u8]>) -> Result<Brought, Fault> {
        self.record(record, None, unreadable).await
    }

    /// Puts a record in the place of the one that was `seen`, in one step, or nowhere when there is a newer one that is
    /// not `unreadable`, or one that knows of a lowering which this one does not.
    ///
    /// # Errors
    /// As [`RedisStore::bring_record`].
    pub async fn raise_record(
        &self,
        seen: &str,
        record: &str,
        unreadable: Option<&[u8]>,
    ) -> Result<Brought, Fault> {
        self.record(record, Some(seen), unreadable).await
    }

    async fn record(
        &self,
        record: &str,
        seen: Option<&str>,
        unreadable: Option<&[u8]>,
    ) -> Result<Brought, Fault> {
        let arguments =
            [record.as_bytes(), unreadable.unwrap_or_default(), seen.unwrap_or_default().as_bytes()];
        let (taken, there): (u8, Vec<u8>) =
            self.script(&[&self.key_of("rollout")], SCRIPT, &arguments, INSIDE).await?;
        Ok(if taken == 1 { Brought::Taken } else { Brought::Stays(there) })
    }

    /// Now by the clock of the server that holds the fleet's record, as last known; `None` before it is known.
    pub fn server_time(&self) -> Option<Micros> {
        let link = self.0.link_of(&self.key_of("rollout")).ok()?;
        Some(link.offset.server_time(self.0.common.clock.now())).filter(|&time| time > 0)
    }

    /// Asks that server for its time: clocks drift apart while nothing is asked.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn ask_server_time(&self) -> Result<Micros, Fault> {
        let (key, clock) = (self.key_of("rollout"), &self.0.common.clock);
        let link = self.0.link_of(&key)?;
        let sent = clock.now();
        let (seconds, micros): (u64, u64) = self.command(&key, &redis::cmd("TIME")).await?;
        let received = clock.now();
        let server = seconds
            .checked_mul(1_000_000)
            .and_then(|time| time.checked_add(micros))
            .ok_or_else(|| Fault::new(FaultKind::Protocol, "the answer to TIME is no time"))?;
        link.learn_time(server, sent, received);
        Ok(link.offset.server_time(clock.now()))
    }

    pub(super) fn key_of(&self, what: &str) -> String {
        format!("{}:{what}", self.0.options.namespace)
    }
}
