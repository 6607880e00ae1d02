//! Opens the file: its directory, its mode, its tables.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
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
    /// The key of its own that lies beside it.
    pub(super) key: Option<[u8; 16]>,
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
    let mut key = None;
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
            let file = path.clone();
            let kept = tokio::task::spawn_blocking(move || keep_private(&file)).await;
            key = kept
                .map_err(std::io::Error::other)
                .and_then(|kept| kept)
                .map_err(|error| fault::of_file(&name, &error))?;
            options = options
                .filename(path)
                .create_if_missing(true)
                .journal_mode(SqliteJournalMode::Wal)
                // What is replaced or deleted is overwritten: a key of a client stays in no free page.
                .pragma("secure_delete", "ON")
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
        in_use = private(&beside(path, ".lock")).ok();
        shared = in_use.as_ref().is_some_and(|lock| lock.try_lock().is_err());
    }
    Ok(Open { pool, shared, file, key, in_use })
}

/// Makes the file and the key beside it, both for this user alone, and returns the key. SQLite gives its journals the mode of
/// the file; what an older version made is narrowed.
fn keep_private(path: &Path) -> std::io::Result<Option<[u8; 16]>> {
    // A file that is there is not opened: to close it would end SQLite's own locks on it.
    if !path.try_exists()? {
        private(path)?;
    }
    for ending in ["", "-wal", "-shm", ".lock", ".key"] {
        let file = beside(path, ending);
        if let Ok(found) = std::fs::metadata(&file)
            && found.is_file()
            && found.mode() & 0o077 != 0
        {
            // Another user's file stays as that user made it.
            let _ = std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600));
        }
    }
    let file = beside(path, ".key");
    if !file.try_exists()? {
        make_key(&file)?;
    }
    let key = read_key(&std::fs::read_to_string(&file)?);
    key.map(Some).ok_or_else(|| std::io::Error::other(format!("{} holds no key", file.display())))
}

/// Whole or not at all, and the first of two processes.
fn make_key(file: &Path) -> std::io::Result<()> {
    let made: String = rand::random::<[u8; 16]>().iter().map(|byte| format!("{byte:02x}")).collect();
    let draft = beside(file, &format!(".{}", std::process::id()));
    let mut new = private(&draft)?;
    let written = new.write_all(made.as_bytes()).and_then(|()| new.sync_all());
    let linked = written.and_then(|()| std::fs::hard_link(&draft, file));
    std::fs::remove_file(&draft)?;
    match linked {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked,
    }
}

/// The sixteen bytes of 32 hexadecimal digits.
fn read_key(text: &str) -> Option<[u8; 16]> {
    u128::from_str_radix(text.trim(), 16).ok().filter(|_| text.trim().len() == 32).map(u128::to_be_bytes)
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// A file that only this user may read, made where it is not there.
fn private(path: &Path) -> std::io::Result<File> {
    std::fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)
}

pub(super) fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_commit_is_flushed_to_the_disk_before_it_returns() {
        let directory = tempfile::tempdir().unwrap();
        let open = open(&Place::File(directory.path().join("a/b/t.db"))).await.unwrap();
        let mode: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&open.pool).await.unwrap();
        let synchronous: i64 = sqlx::query_scalar("PRAGMA synchronous").fetch_one(&open.pool).await.unwrap();
        assert_eq!((mode.as_str(), synchronous), ("wal", 2), "2 is FULL");
    }
}
