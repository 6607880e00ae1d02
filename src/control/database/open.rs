//! Opens the file: its directory, its mode, its tables.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::SqlitePool;
use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

use super::Place;
use super::fault::{self, DiskFault};

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// How long another process' lock is waited for.
const BUSY: Duration = Duration::from_secs(2);
/// How long one waits for the only connection.
const TURN: Duration = Duration::from_secs(5);

/// An open database.
pub(super) struct Open {
    pub(super) pool: SqlitePool,
    /// Whether another process has it open as well.
    pub(super) shared: bool,
    /// Which file it is: device and number.
    pub(super) file: Option<(PathBuf, (u64, u64))>,
    /// Says to other processes that it is in use, as long as it is.
    in_use: Option<File>,
}

impl Open {
    /// Ends its connection in the background.
    pub(super) fn close(self) {
        let Self { pool, in_use, .. } = self;
        drop(in_use);
        tokio::spawn(async move { pool.close().await });
    }
}

pub(super) async fn open(place: &Place) -> Result<Open, DiskFault> {
    let mut options = SqliteConnectOptions::new();
    let mut name = "sqlite::memory:".to_owned();
    match place {
        Place::Memory => options = options.in_memory(true),
        Place::File(path) => {
            name = path.display().to_string();
            let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
            if let Some(directory) = directory {
                // A disk may take its time: not on a thread that serves.
                let made = tokio::fs::create_dir_all(directory).await;
                made.map_err(|error| fault::no_directory(directory, &error))?;
            }
            options = options
                .filename(path)
                .create_if_missing(true)
                .journal_mode(SqliteJournalMode::Wal)
                // A commit is on the disk when it returns: an answer says so.
                .synchronous(SqliteSynchronous::Full);
        }
    }
    let options = options.busy_timeout(BUSY);
    // One connection: one writer, and what is read is what was written.
    let pool = SqlitePoolOptions::new()
        .max_connections(1)
        .acquire_timeout(TURN)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_with(options)
        .await
        .map_err(|error| fault::of(&error, &name))?;
    if let Err(error) = MIGRATIONS.run(&pool).await {
        pool.close().await;
        return Err(fault::of_migration(&error, &name));
    }
    let (mut file, mut in_use, mut shared) = (None, None, false);
    if let Place::File(path) = place {
        file = identity(path).map(|which| (path.clone(), which));
        // Not the file itself: to close it would end SQLite's own locks on it.
        let mut lock = path.clone().into_os_string();
        lock.push(".lock");
        in_use = File::create(lock).ok();
        shared = in_use.as_ref().is_some_and(|lock| lock.try_lock().is_err());
    }
    Ok(Open { pool, shared, file, in_use })
}

pub(super) fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}
