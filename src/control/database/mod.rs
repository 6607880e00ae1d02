//! The disk: a SQLite file that keeps the rollout's record, its history and the audit trail.
//!
//! Nothing waits for it that serves requests. When it can't be used that is said once, with the cure, and tried again in the
//! background. A file that is no good is left as it is: it may hold what somebody wants back.

mod fault;
mod keep;
mod open;
mod overrides;
mod rows;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use sqlx::SqlitePool;

pub use fault::DiskFault;
pub use keep::{keep_record, take_up};

use super::audit::{AuditRow, Stored};
use crate::limiter::event::{Event, Observer};
use open::Open;

/// Where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In this file.
    File(PathBuf),
    /// In this process: it outlives nothing.
    Memory,
}

/// The database, whether it can be used or not.
pub struct Database {
    place: Place,
    /// Rows of the trail that are kept at most.
    most_rows: u32,
    observer: Arc<dyn Observer>,
    state: Mutex<State>,
    /// How often it was opened: what is there may be another file by now.
    opened: AtomicU64,
}

struct State {
    open: Option<Open>,
    /// What is wrong, and since when.
    trouble: Option<(DiskFault, Instant)>,
}

impl Database {
    /// One at `place` that keeps so many rows of the trail. Nothing is opened yet.
    pub fn new(place: Place, most_rows: u32, observer: Arc<dyn Observer>) -> Arc<Self> {
        let state = Mutex::new(State { open: None, trouble: None });
        Arc::new(Self { place, most_rows, observer, state, opened: AtomicU64::new(0) })
    }

    /// Opens it, makes it if it is not there, and brings its tables up to date.
    ///
    /// # Errors
    /// When that can't be done: the cause, the path and the cure. It is said as well.
    pub async fn open(&self) -> Result<(), DiskFault> {
        match open::open(&self.place).await {
            Ok(open) => {
                if open.shared {
                    self.observer.observe(&Event::DiskShared { place: &self.name() });
                }
                let old = self.state.lock().open.replace(open);
                self.opened.fetch_add(1, Ordering::Relaxed);
                if let Some(old) = old {
                    old.close();
                }
                Ok(())
            }
            Err(fault) => Err(self.failed(fault)),
        }
    }

    /// The connections, for whoever keeps other tables in it.
    ///
    /// # Errors
    /// While it can't be used.
    pub fn pool(&self) -> Result<SqlitePool, DiskFault> {
        let state = self.state.lock();
        match (&state.open, &state.trouble) {
            (Some(open), _) => Ok(open.pool.clone()),
            (None, Some((fault, _))) => Err(fault.clone()),
            (None, None) => Err(DiskFault::new("the database is not open yet", "wait a moment")),
        }
    }

    /// Whether the file is still the one that was opened: somebody may have moved it away, and what is written to it then
    /// is written to nowhere.
    pub(super) async fn still_there(&self) -> Result<(), DiskFault> {
        let file = self.state.lock().open.as_ref().and_then(|open| open.file.clone());
        let Some((path, which)) = file else { return self.is_open() };
        match tokio::task::spawn_blocking(move || open::identity(&path)).await {
            Ok(now) if now != Some(which) => Err(self.failed(fault::gone(&self.name()))),
            _ => Ok(()),
        }
    }

    /// Whether it can be used, as far as is known.
    ///
    /// # Errors
    /// While it can't.
    pub fn is_open(&self) -> Result<(), DiskFault> {
        self.pool().map(drop)
    }

    /// Whether what it keeps outlives the process.
    pub fn outlives(&self) -> bool {
        self.place != Place::Memory
    }

    pub(super) fn must_outlive(&self) -> Result<(), DiskFault> {
        match self.outlives() {
            true => Ok(()),
            false => Err(DiskFault::new(
                "DATABASE_URL is sqlite::memory:, which outlives nothing",
                "set DATABASE_URL=sqlite://PATH, or wait for Redis",
            )),
        }
    }

    /// What is wrong with it now.
    pub fn trouble(&self) -> Option<DiskFault> {
        self.state.lock().trouble.as_ref().map(|(fault, _)| fault.clone())
    }

    /// What it is called, for people.
    pub fn name(&self) -> String {
        match &self.place {
            Place::File(path) => path.display().to_string(),
            Place::Memory => "sqlite::memory:".to_owned(),
        }
    }

    /// The record that is kept, the newest.
    ///
    /// # Errors
    /// When it can't be read.
    pub async fn load(&self) -> Result<Option<Stored>, DiskFault> {
        rows::load(&self.pool()?).await.map_err(|error| self.failed(fault::of(&error, &self.name())))
    }

    /// Keeps records and rows, all or none. When it returns they outlive the process, and the machine as far as its disk
    /// keeps its word.
    ///
    /// # Errors
    /// When it can't, and none is kept.
    pub(super) async fn write(&self, records: &[Stored], rows: &[AuditRow]) -> Result<(), DiskFault> {
        let pool = self.pool()?;
        let written = rows::write(&pool, records, rows, self.most_rows).await;
        written.map_err(|error| self.failed(fault::of(&error, &self.name())))?;
        self.still_there().await?;
        self.works();
        Ok(())
    }

    /// How often it was opened. Whoever keeps something in it looks again what is there when this has changed.
    pub(super) fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    /// The overrides that are kept, as they were written.
    ///
    /// # Errors
    /// When they can't be read.
    pub(super) async fn overrides(&self) -> Result<Vec<String>, DiskFault> {
        let (pool, key) = (self.pool()?, self.key());
        let read = match overrides::load(&pool, key.as_ref()).await {
            Ok(kept) if !kept.unsealed.is_empty() => {
                // An older version kept them as they were typed.
                overrides::seal_old(&pool, &kept.unsealed, key.as_ref()).await.map(|()| kept)
            }
            read => read,
        };
        let kept = read.map_err(|error| self.failed(fault::of(&error, &self.name())))?;
        if kept.unreadable > 0 {
            let unreadable = Event::OverridesUnreadable { place: &self.name(), count: kept.unreadable };
            self.observer.observe(&unreadable);
        }
        Ok(kept.texts)
    }

    /// The key that clients' keys are sealed with.
    fn key(&self) -> Option<[u8; 16]> {
        self.state.lock().open.as_ref().and_then(|open| open.key)
    }

    /// Keeps overrides, each in the place of what has its id; without a text it is forgotten. All or none.
    ///
    /// # Errors
    /// As [`Database::write`].
    pub(super) async fn keep_overrides(
        &self,
        overrides: &[(String, Option<String>)],
    ) -> Result<(), DiskFault> {
        let written = overrides::write(&self.pool()?, overrides, self.key().as_ref()).await;
        written.map_err(|error| self.failed(fault::of(&error, &self.name())))?;
        self.still_there().await?;
        self.works();
        Ok(())
    }

    /// The id of the last row of the trail; 0 without any.
    ///
    /// # Errors
    /// When it can't be read.
    pub(super) async fn last_row(&self) -> Result<i64, DiskFault> {
        let last = rows::last_id(&self.pool()?).await;
        last.map_err(|error| self.failed(fault::of(&error, &self.name())))
    }

    /// Rows of the trail older than `before`, newest first.
    pub(super) async fn rows(&self, before: i64, limit: usize) -> Result<Vec<AuditRow>, DiskFault> {
        let rows = rows::page(&self.pool()?, before, limit).await;
        rows.map_err(|error| self.failed(fault::of(&error, &self.name())))
    }

    /// It failed: said when that is news. It is opened anew before it is used again.
    pub fn failed(&self, fault: DiskFault) -> DiskFault {
        let (old, news) = {
            let mut state = self.state.lock();
            let news = state.trouble.as_ref().is_none_or(|(known, _)| *known != fault);
            let since = state.trouble.as_ref().map_or_else(Instant::now, |(_, since)| *since);
            state.trouble = Some((fault.clone(), since));
            (state.open.take(), news)
        };
        if let Some(old) = old {
            old.close();
        }
        if news {
            self.observer.observe(&Event::DiskFailed { detail: &fault.to_string() });
        }
        fault
    }

    /// It works: said when it did not.
    fn works(&self) {
        let trouble = self.state.lock().trouble.take();
        if let Some((_, since)) = trouble {
            self.observer.observe(&Event::DiskBack { place: &self.name(), after: since.elapsed() });
        }
    }
}
