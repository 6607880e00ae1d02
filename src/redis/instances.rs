//! The instances of a fleet, each known by a line that it writes every few seconds. One key, which a script reads and
//! writes, so that it costs the same commands however many they are, and none that a decision does not need as well.

use std::time::Duration;

use super::RedisStore;
use crate::limiter::store::Fault;

const SCRIPT: &str = include_str!("instances.lua");
/// Commands that the script runs.
const INSIDE: u64 = 2;
/// The key outlives any interval between two words of an instance.
const KEPT: Duration = Duration::from_secs(6 * 3_600);

impl RedisStore {
    /// Says that `id` is there with this row, and for how long it counts when nothing more is heard; without a row, that
    /// it leaves. Returns the rows of all that count. A row is one line; an id has no space.
    ///
    /// # Errors
    /// When Redis is away, or does not let this user do so.
    pub async fn beat(&self, id: &str, row: Option<&str>, counts: Duration) -> Result<Vec<String>, Fault> {
        let now = self.server_time().unwrap_or_default() / 1_000;
        let until = now + counts.as_millis() as u64;
        let key = self.key_of("instances");
        let arguments = [
            id,
            &now.to_string(),
            &until.to_string(),
            row.unwrap_or_default(),
            &KEPT.as_millis().to_string(),
        ];
        let lines: String = self.script(&key, SCRIPT, &arguments, INSIDE).await?;
        Ok(lines.lines().filter_map(|line| Some(line.splitn(3, ' ').nth(2)?.to_owned())).collect())
    }
}
