//! Who changed what, when, from what to what, and why. And the way of the record to the disk, since the two belong together:
//! a change and its row are kept in one transaction.
//!
//! Nobody who acts waits here. What is to be kept stands in memory until the disk has it, however long the disk is away,
//! within bounds.

mod api;
mod row;

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

pub use api::audit;
pub use row::AuditRow;

use super::database::{Database, DiskFault};
use super::record::{Register, RememberedEnv};

/// Rows that memory holds: those that wait for the disk, and the last ones beside them.
const ROWS_IN_MEMORY: usize = 1_000;
/// Revisions that wait for the disk at most; of more, the newest.
const WAITING_REVISIONS: usize = 256;

/// What the disk keeps of the rollout.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// The record, and what goes with it.
    pub register: Register,
    /// The variables of the last start of this instance.
    pub own: RememberedEnv,
    /// Those of the start before it, as long as the fleet has not been met since.
    pub unasked: Option<RememberedEnv>,
    /// Whether the record is a change of this instance.
    pub made_here: bool,
}

/// The trail, in memory and on the disk.
pub struct Audit {
    database: Arc<Database>,
    held: Mutex<Held>,
    /// One writer at a time, in the order in which they came.
    writing: tokio::sync::Mutex<()>,
    wake: Notify,
}

#[derive(Default)]
struct Held {
    waiting: VecDeque<Stored>,
    rows: VecDeque<(AuditRow, bool)>,
    last_id: i64,
    /// Rows that were given up because too many waited.
    lost: u64,
}

/// A page of the trail, newest first.
pub struct Page {
    /// The rows, and whether the disk has each.
    pub rows: Vec<(AuditRow, bool)>,
    /// Whether there are older ones.
    pub more: bool,
    /// Why only what memory holds is in it.
    pub fault: Option<DiskFault>,
}

impl Audit {
    /// The trail that `database` keeps.
    pub fn new(database: Arc<Database>) -> Arc<Self> {
        Arc::new(Self {
            database,
            held: Mutex::default(),
            writing: tokio::sync::Mutex::default(),
            wake: Notify::new(),
        })
    }

    /// Where it is kept.
    pub fn database(&self) -> &Arc<Database> {
        &self.database
    }

    /// Adds a row. It is written soon.
    pub fn append(&self, row: AuditRow) {
        self.push(None, Some(row));
    }

    /// Has a record and a row written soon.
    pub(super) fn push(&self, stored: Option<Stored>, row: Option<AuditRow>) {
        self.held.lock().push(stored, row, false);
        self.wake.notify_one();
    }

    /// Rows come after `last`, the last that the disk has, whatever the clock says by now: the trail is in the order in which
    /// things were done. Those that wait for the disk are moved behind it.
    pub(super) fn continue_after(&self, last: i64) {
        let mut held = self.held.lock();
        held.last_id = held.last_id.max(last);
        for at in 0..held.rows.len() {
            let id = held.last_id.max(chrono::Utc::now().timestamp_micros()) + 1;
            if let Some((row, false)) = held.rows.get_mut(at)
                && row.id <= last
            {
                row.id = id;
                held.last_id = id;
            }
        }
    }

    /// Waits until all that was pushed is on the disk.
    ///
    /// # Errors
    /// When the disk can't keep it now, or never does (`sqlite::memory:`).
    pub async fn saved(self: &Arc<Self>) -> Result<(), DiskFault> {
        self.database.must_outlive()?;
        self.flush().await
    }

    /// Keeps a record and its row before anybody acts by it. Nothing of them stays behind here when that fails.
    ///
    /// # Errors
    /// When the disk can't.
    pub async fn keep_first(self: &Arc<Self>, stored: Stored, row: AuditRow) -> Result<(), DiskFault> {
        self.database.must_outlive()?;
        let this = Arc::clone(self);
        // Whoever stops waiting must not stop it half-way.
        let task = tokio::spawn(async move { this.write(Some((stored, row))).await });
        task.await.unwrap_or_else(|_| Err(this_ends()))
    }

    /// Writes all that waits.
    ///
    /// # Errors
    /// When the disk can't take it. It goes on waiting.
    pub async fn flush(self: &Arc<Self>) -> Result<(), DiskFault> {
        let this = Arc::clone(self);
        let task = tokio::spawn(async move { this.write(None).await });
        task.await.unwrap_or_else(|_| Err(this_ends()))
    }

    async fn write(&self, first: Option<(Stored, AuditRow)>) -> Result<(), DiskFault> {
        let _turn = self.writing.lock().await;
        let (mut records, mut rows) = self.held.lock().waiting();
        let first = first.map(|(stored, mut row)| {
            row.id = self.held.lock().next_id();
            records.push(stored);
            rows.push(row.clone());
            row
        });
        if records.is_empty() && rows.is_empty() {
            // What was written lasts as long as the file is where it was.
            return self.database.still_there().await;
        }
        self.database.write(&records, &rows).await?;
        let mut held = self.held.lock();
        held.are_saved(&records, &rows);
        if let Some(row) = first {
            held.hold(row, true);
        }
        Ok(())
    }

    /// Something waits to be written.
    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// How many rows were given up because the disk was away for too long, since the last time that it was asked.
    pub(super) fn lost(&self) -> u64 {
        std::mem::take(&mut self.held.lock().lost)
    }

    /// The newest rows older than `before`: from the disk and from memory, or from memory alone while the disk is away.
    pub async fn page(&self, before: Option<i64>, limit: usize) -> Page {
        let before = before.unwrap_or(i64::MAX);
        let of_disk = self.database.rows(before, limit + 1).await;
        let (mut rows, fault) = match of_disk {
            Ok(rows) => (rows.into_iter().map(|row| (row, self.database.outlives())).collect(), None),
            Err(fault) => (Vec::new(), Some(fault)),
        };
        let all = fault.is_some();
        let held = self.held.lock();
        let here = held.rows.iter().filter(|(row, saved)| row.id < before && (all || !saved));
        rows.extend(here.cloned());
        drop(held);
        rows.sort_by_key(|(row, _)| std::cmp::Reverse(row.id));
        rows.dedup_by_key(|(row, _)| row.id);
        let more = rows.len() > limit;
        rows.truncate(limit);
        Page { rows, more, fault }
    }
}

impl Held {
    fn next_id(&mut self) -> i64 {
        let now = chrono::Utc::now().timestamp_micros();
        self.last_id = now.max(self.last_id + 1);
        self.last_id
    }

    fn push(&mut self, stored: Option<Stored>, row: Option<AuditRow>, saved: bool) {
        if let Some(stored) = stored.filter(|stored| self.waiting.back() != Some(stored)) {
            if self.waiting.len() == WAITING_REVISIONS {
                self.waiting.pop_front();
            }
            self.waiting.push_back(stored);
        }
        if let Some(mut row) = row {
            row.id = self.next_id();
            self.hold(row, saved);
        }
    }

    fn hold(&mut self, row: AuditRow, saved: bool) {
        if self.rows.len() == ROWS_IN_MEMORY
            && let Some((_, saved)) = self.rows.pop_front()
        {
            self.lost += u64::from(!saved);
        }
        self.rows.push_back((row, saved));
    }

    fn waiting(&self) -> (Vec<Stored>, Vec<AuditRow>) {
        let rows = self.rows.iter().filter(|(_, saved)| !saved).map(|(row, _)| row.clone());
        (self.waiting.iter().cloned().collect(), rows.collect())
    }

    fn are_saved(&mut self, records: &[Stored], rows: &[AuditRow]) {
        self.waiting.retain(|stored| !records.contains(stored));
        for (row, saved) in &mut self.rows {
            *saved |= rows.iter().any(|written| written.id == row.id);
        }
    }
}

fn this_ends() -> DiskFault {
    DiskFault::new("the process is ending", "start it again")
}
