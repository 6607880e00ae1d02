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
    /// Waits while the connection to where instances are listed is just being replaced. Of no use where Redis is away: then it
    /// returns at once.
    pub async fn replaced(&self) {
        if let Ok(link) = self.0.link_of(&self.key_of("instances")) {
            link.replaced().await;
        }
    }

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
            id.as_bytes(),
            now.to_string().as_bytes(),
            until.to_string().as_bytes(),
            row.unwrap_or_default().as_bytes(),
            KEPT.as_millis().to_string().as_bytes(),
        ]
        .map(<[u8]>::to_vec);
        let arguments: Vec<&[u8]> = arguments.iter().map(Vec::as_slice).collect();
        // What is no text is no row, and must not hide the others.
        let lines: Vec<u8> = self.script(&key, SCRIPT, &arguments, INSIDE).await?;
        let lines = String::from_utf8_lossy(&lines);
        Ok(lines.lines().filter_map(|line| Some(line.splitn(3, ' ').nth(2)?.to_owned())).collect())
    }
}
