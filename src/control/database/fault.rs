//! What can be wrong with the disk: the cause, where, and what to do.

use std::fmt;
use std::path::Path;

use sqlx::migrate::MigrateError;

/// What is wrong, and the cure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskFault {
    /// What, and where.
    pub cause: String,
    /// What to do.
    pub cure: String,
}

impl DiskFault {
    /// Of these words.
    pub(crate) fn new(cause: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { cause: cause.into(), cure: cure.into() }
    }
}

impl fmt::Display for DiskFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; to mend it: {}", self.cause, self.cure)
    }
}

/// SQLite's result codes, <https://www.sqlite.org/rescode.html>.
mod code {
    pub(super) const BUSY: u32 = 5;
    pub(super) const LOCKED: u32 = 6;
    pub(super) const READONLY: u32 = 8;
    pub(super) const IOERR: u32 = 10;
    pub(super) const CORRUPT: u32 = 11;
    pub(super) const FULL: u32 = 13;
    pub(super) const CANTOPEN: u32 = 14;
    pub(super) const NOTADB: u32 = 26;
}

/// Of what sqlx says about the database at `place`.
pub(super) fn of(error: &sqlx::Error, place: &str) -> DiskFault {
    let sqlx::Error::Database(of_sqlite) = error else {
        return match error {
            sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } => broken(place, "a row can't be read"),
            other => {
                let cause = format!("{place}: {other}");
                DiskFault::new(cause, "look at the disk and at the rights on file and directory")
            }
        };
    };
    let code = of_sqlite.code().and_then(|code| code.parse::<u32>().ok()).unwrap_or_default();
    let said = of_sqlite.message();
    match code & 0xff {
        code::FULL => {
            DiskFault::new(format!("{place}: the disk is full"), "make room; it is tried again by itself")
        }
        code::READONLY => DiskFault::new(
            format!("{place}: it can't be written to ({said})"),
            "let the service write the file and its directory, or set DATABASE_URL to a place where it may",
        ),
        code::CANTOPEN => DiskFault::new(
            format!("{place}: it can't be opened or made ({said})"),
            "let the service write the file and its directory, or set DATABASE_URL to a place where it may",
        ),
        code::CORRUPT => broken(place, said),
        code::NOTADB => broken(place, "it is no SQLite database"),
        code::BUSY | code::LOCKED => DiskFault::new(
            format!("{place}: another process keeps it locked ({said})"),
            "end the other process; each instance needs a database of its own",
        ),
        code::IOERR => DiskFault::new(
            format!("{place}: the disk fails ({said}, code {code})"),
            "look at the disk, its free space and its limits; it is tried again by itself",
        ),
        _ => DiskFault::new(format!("{place}: {said} (code {code})"), "look at the file and its directory"),
    }
}

/// The tables can't be brought up to date.
pub(super) fn of_migration(error: &MigrateError, place: &str) -> DiskFault {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => of(error, place),
        MigrateError::VersionMissing(version) | MigrateError::VersionTooNew(version, _) => DiskFault::new(
            format!(
                "{place}: a newer tidegate made it (its schema has step {version}, unknown to this version)"
            ),
            "start that version again, or set DATABASE_URL to another file; nothing was changed in it",
        ),
        other => DiskFault::new(
            format!("{place}: its schema is not that of tidegate ({other})"),
            "set DATABASE_URL to a file of tidegate's own; nothing was changed in it",
        ),
    }
}

/// Its directory can't be made.
pub(super) fn no_directory(directory: &Path, error: &std::io::Error) -> DiskFault {
    DiskFault::new(
        format!("{}: the directory can't be made: {error}", directory.display()),
        "make it, writable for the service, or set DATABASE_URL to a place where the service may write",
    )
}

/// It, or the key beside it, can't be read or made.
pub(super) fn of_file(place: &str, error: &std::io::Error) -> DiskFault {
    if error.kind() == std::io::ErrorKind::StorageFull {
        return DiskFault::new(
            format!("{place}: the disk is full"),
            "make room; it is tried again by itself",
        );
    }
    DiskFault::new(
        format!("{place}: it can't be opened or made ({error})"),
        "let the service write the file and its directory, or set DATABASE_URL to a place where it may",
    )
}

/// It is not where it was opened.
pub(super) fn gone(place: &str) -> DiskFault {
    DiskFault::new(
        format!("{place}: the file was moved, replaced or deleted"),
        "nothing: it is opened anew by itself, and made if it is not there",
    )
}

fn broken(place: &str, said: &str) -> DiskFault {
    DiskFault::new(
        format!("{place}: the database is broken ({said})"),
        format!(
            "move it away (mv {place} {place}.broken, and {place}-wal and {place}-shm with it): a new one is made \
             within a minute, without a restart; `sqlite3 {place}.broken .recover` may save the audit trail"
        ),
    )
}
