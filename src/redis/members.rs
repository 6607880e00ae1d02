//! The members of a fleet: one hash, in which each instance keeps a row of its own. A heartbeat writes one field and reads
//! all of them by plain commands, which 1 000 rows take less than half a millisecond of: a script that went through as many
//! took sixteen times that.

use std::collections::HashMap;
use std::time::Duration;

use super::RedisStore;
use crate::limiter::store::Fault;

/// No row counts for longer: one that claims to was written by a clock that has stepped back since.
const LONGEST: Duration = Duration::from_secs(6 * 3_600);
/// A row is removed when it has not counted for so long. Not at once: its instance may be about to write it again.
const KEPT_AFTER: Duration = Duration::from_secs(600);
/// So many are removed in one call.
const REMOVED_AT_ONCE: usize = 100;

/// The rows of a fleet as they were read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Those that count.
    pub rows: Vec<String>,
    /// How many there are, those that do not count any more included.
    pub stored: usize,
}

impl RedisStore {
    /// Waits while the connection to where the members are listed is just being replaced. Of no use where Redis is away: then
    /// it returns at once.
    pub async fn replaced(&self) {
        if let Ok(link) = self.0.link_of(&self.key_of("members")) {
            link.replaced().await;
        }
    }

    /// Writes the row of the instance `id`, which counts for as long as `counts`. A row is one line.
    ///
    /// # Errors
    /// When Redis is away, or does not let this user write.
    pub async fn write_member(&self, id: &str, row: &str, counts: Duration) -> Result<(), Fault> {
        let until = self.now_ms() + counts.as_millis() as u64;
        let key = self.key_of("members");
        let mut write = redis::cmd("HSET");
        write.arg(&key).arg(id).arg(format!("{until} {row}"));
        match self.command::<i64>(&key, &write).await {
            Err(fault) if is_wrong_type(&fault) => {
                // Another kind of value is damage. Two that remove it at once lose a row until its next beat.
                self.remove_key(&key).await?;
                self.command::<i64>(&key, &write).await.map(drop)
            }
            outcome => outcome.map(drop),
        }
    }

    /// Removes the row of an instance that leaves.
    ///
    /// # Errors
    /// As [`RedisStore::write_member`].
    pub async fn remove_member(&self, id: &str) -> Result<(), Fault> {
        self.remove_members(&[id]).await
    }

    /// Reads the rows of all members, and removes those that have not counted for long.
    ///
    /// # Errors
    /// As [`RedisStore::write_member`].
    pub async fn members(&self) -> Result<Members, Fault> {
        let key = self.key_of("members");
        let mut read = redis::cmd("HGETALL");
        read.arg(&key);
        // What is no text is no row, and must not hide the others.
        let fields: HashMap<Vec<u8>, Vec<u8>> = self.command(&key, &read).await?;
        let now = self.now_ms();
        let (mut rows, mut over, stored) = (Vec::new(), Vec::new(), fields.len());
        for (id, value) in fields {
            let value = String::from_utf8_lossy(&value);
            let (until, row) = value.split_once(' ').unwrap_or_default();
            // Unsound: over since the epoch.
            let until = until.parse::<u64>().unwrap_or_default();
            // 0: the server's time is not known yet.
            let counts = now == 0 || (now..=now + LONGEST.as_millis() as u64).contains(&until);
            let is_over = until + (KEPT_AFTER.as_millis() as u64) < now;
            if counts && until > 0 {
                rows.push(row.to_owned());
            } else if is_over && over.len() < REMOVED_AT_ONCE {
                over.push(id);
            }
        }
        if !over.is_empty() {
            // What is left is removed by the next one who looks.
            let _ = self.remove_members(&over).await;
        }
        Ok(Members { rows, stored })
    }

    /// How many rows there are: one number, where [`RedisStore::members`] reads all of them.
    ///
    /// # Errors
    /// As [`RedisStore::write_member`].
    pub async fn member_count(&self) -> Result<usize, Fault> {
        let key = self.key_of("members");
        let mut count = redis::cmd("HLEN");
        count.arg(&key);
        self.command(&key, &count).await
    }

    async fn remove_members(&self, ids: &[impl redis::ToRedisArgs]) -> Result<(), Fault> {
        let key = self.key_of("members");
        let mut remove = redis::cmd("HDEL");
        remove.arg(&key);
        for id in ids {
            remove.arg(id);
        }
        self.command::<i64>(&key, &remove).await.map(drop)
    }

    /// Removes a key whose value may be of any kind and length: its memory is freed beside Redis' thread.
    pub(super) async fn remove_key(&self, key: &str) -> Result<(), Fault> {
        let mut remove = redis::cmd("UNLINK");
        remove.arg(key);
        self.command::<i64>(key, &remove).await.map(drop)
    }

    /// The server's time in milliseconds; 0 before it is known.
    fn now_ms(&self) -> u64 {
        self.server_time().unwrap_or_default() / 1_000
    }
}

/// Whether the key has another kind of value than the command is for.
pub(super) fn is_wrong_type(fault: &Fault) -> bool {
    fault.detail.starts_with("WRONGTYPE")
}
