//! The book on the disk: taken up at a start and after the disk was away, written soon after each change. And what has run
//! out is ended.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::{Book, Entry, Origin};
use crate::control::database::DiskFault;

/// How long a start waits for the disk.
const START_PATIENCE: Duration = Duration::from_secs(2);
/// How often it is looked what has run out, and whether the disk is back.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl Book {
    /// Takes up at a start what the disk has kept. A disk that takes too long is taken up later.
    pub async fn take_up(self: &Arc<Self>) {
        // A failure has been said.
        let _ = timeout(START_PATIENCE, self.save()).await;
        self.prune(self.now());
    }

    /// Keeps it on the disk, and ends what has run out. Runs until it is dropped.
    pub async fn keep(self: Arc<Self>) {
        loop {
            let _ = timeout(LOOK_EVERY, self.wake.notified()).await;
            self.prune(self.now());
            // A disk that is away is tried again by those who keep the record.
            if self.database.is_open().is_ok() {
                let _ = self.save().await;
            }
        }
    }

    /// Waits until every change is on the disk.
    ///
    /// # Errors
    /// When the disk can't keep it now, or never does (`sqlite::memory:`).
    pub async fn saved(self: &Arc<Self>) -> Result<(), DiskFault> {
        self.database.must_outlive()?;
        self.save().await
    }

    async fn save(self: &Arc<Self>) -> Result<(), DiskFault> {
        let this = Arc::clone(self);
        // Whoever stops waiting must not stop it half-way.
        let task = tokio::spawn(async move { this.write().await });
        task.await.unwrap_or_else(|_| Err(DiskFault::new("the process is ending", "start it again")))
    }

    async fn write(&self) -> Result<(), DiskFault> {
        let mut taken_up = self.writing.lock().await;
        self.database.is_open()?;
        let opened = self.database.opened();
        if *taken_up != opened {
            // Another file, perhaps, or the first one.
            let kept = self.database.overrides().await?;
            // What is no override is of a later version.
            let kept: Vec<Entry> = kept.iter().filter_map(|text| serde_json::from_str(text).ok()).collect();
            {
                let mut held = self.held.lock();
                held.unkept = held.entries.keys().cloned().collect();
            }
            self.merge(kept, Origin::Disk);
            *taken_up = opened;
        }
        let rows: Vec<(String, Option<Entry>)> = {
            let held = self.held.lock();
            held.unkept.iter().map(|id| (id.clone(), held.entries.get(id).cloned())).collect()
        };
        if rows.is_empty() {
            return Ok(());
        }
        let text = |entry: &Entry| serde_json::to_string(entry).ok();
        let texts: Vec<(String, Option<String>)> =
            rows.iter().map(|(id, entry)| (id.clone(), entry.as_ref().and_then(text))).collect();
        self.database.keep_overrides(&texts).await?;
        let mut held = self.held.lock();
        for (id, written) in rows {
            if held.entries.get(&id) == written.as_ref() {
                held.unkept.remove(&id);
            }
        }
        Ok(())
    }
}
