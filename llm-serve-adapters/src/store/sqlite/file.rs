//! The file: who may open it, what it must look like, and what its errors mean.

use crate::host::{Error, Result};
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The format that this program writes. Another major is refused; a newer minor only adds what an older program can ignore.
const MAJOR: i64 = 1;
const MINOR: i64 = 0;
/// Minors per major in SQLite's `user_version`, which holds the format as one number.
const MINORS: i64 = 1_000;
/// "LLMr" in SQLite's `application_id`: the file is one of ours.
const OURS: i64 = 0x4c4c_4d72;
/// What the lock file says once the database has been laid out.
const LAID_OUT: &[u8] = b"locked by whoever has the database open; leave this file here\n";

const SCHEMA: &str = "
    CREATE TABLE endpoints (
        endpoint TEXT PRIMARY KEY NOT NULL,
        fence INTEGER NOT NULL,
        next INTEGER NOT NULL,
        split BLOB,
        sum INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE entries (
        endpoint TEXT NOT NULL,
        seq INTEGER NOT NULL,
        fence INTEGER NOT NULL,
        entry BLOB NOT NULL,
        sum INTEGER NOT NULL,
        PRIMARY KEY (endpoint, seq)
    ) STRICT;
    CREATE TABLE routers (
        endpoint TEXT NOT NULL,
        router TEXT NOT NULL,
        record BLOB NOT NULL,
        sum INTEGER NOT NULL,
        PRIMARY KEY (endpoint, router)
    ) STRICT;";

/// An open file, held against every other process.
#[derive(Debug)]
pub(super) struct Database {
    // In this order: the connection must be closed before the lock goes.
    connection: Connection,
    lock: Lock,
    path: PathBuf,
}

impl Database {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let path = &resolve(path)?;
        let (lock, said) = lock(path)?;
        let used_before = !said.is_empty();
        if used_before && path.metadata().is_ok_and(|m| m.len() == 0) {
            return Err(Error::permanent(format!(
                "the store {} is empty although it has been in use: put back a copy of it; to start with nothing, \
                 delete it and its .lock file",
                path.display()
            )));
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection =
            Connection::open_with_flags(path, flags).map_err(|e| failed(path, "be opened", e))?;
        let mut database = Self {
            connection,
            lock,
            path: path.clone(),
        };
        database.set_up().map_err(|e| match e {
            Setup::Sqlite(e) => database.failed("be opened", e),
            Setup::Refused(e) => e,
        })?;
        if !used_before {
            database.mark_laid_out()?;
        }
        Ok(database)
    }

    fn set_up(&mut self) -> std::result::Result<(), Setup> {
        let db = &mut self.connection;
        db.busy_timeout(Duration::ZERO)?;
        db.pragma_update(None, "locking_mode", "exclusive")?;
        let number = |db: &Connection, name: &str| {
            db.pragma_query_value(None, name, |row| row.get::<_, i64>(0))
        };
        // The format comes first: nothing in a file of another kind is touched.
        let (ours, format) = (number(db, "application_id")?, number(db, "user_version")?);
        let tables: i64 =
            db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        let path = self.path.display();
        let fresh = ours == 0 && format == 0 && tables == 0;
        if !fresh && ours != OURS {
            return Err(Error::permanent(format!(
                "{path} is an SQLite file of another program: give another path"
            ))
            .into());
        }
        let (major, minor) = (format.div_euclid(MINORS), format.rem_euclid(MINORS));
        if !fresh && major != MAJOR {
            return Err(Error::permanent(format!(
                "the store {path} has format {major}.{minor} and this program knows {MAJOR}.x: \
                 use the program version that wrote it, or give another path"
            ))
            .into());
        }
        let mode: String =
            db.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
        if mode != "wal" {
            return Err(Error::permanent(format!(
                "the store {path} cannot keep a write-ahead log (journal mode {mode:?}): put it on a local disk"
            ))
            .into());
        }
        db.pragma_update(None, "synchronous", "full")?;
        db.pragma_update(None, "fullfsync", true)?;
        db.pragma_update(None, "checkpoint_fullfsync", true)?;
        db.pragma_update(None, "trusted_schema", false)?;
        db.pragma_update(None, "cell_size_check", true)?;
        if fresh {
            let layout = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
            layout.execute_batch(SCHEMA)?;
            layout.pragma_update(None, "application_id", OURS)?;
            layout.pragma_update(None, "user_version", MAJOR * MINORS + MINOR)?;
            layout.commit()?;
            sync_folder(&self.path).map_err(|e| Setup::Refused(Error::transient(e)))?;
        }
        Ok(())
    }

    fn mark_laid_out(&mut self) -> Result<()> {
        let mut lock = &self.lock.0;
        lock.write_all(LAID_OUT)
            .and_then(|()| lock.sync_all())
            .map_err(|e| {
                Error::transient(format!(
                    "the lock file of the store {} cannot be written: check the disk",
                    self.path.display()
                ))
                .because(e)
            })
    }

    pub(super) fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// What an error of SQLite means, where "the store P could not `what`".
    pub(super) fn failed(&self, what: &str, error: rusqlite::Error) -> Error {
        failed(&self.path, what, error)
    }
}

enum Setup {
    Sqlite(rusqlite::Error),
    Refused(Error),
}

impl From<rusqlite::Error> for Setup {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<Error> for Setup {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

fn damaged(path: &Path, how: &str) -> Error {
    Error::permanent(format!(
        "the store {} is damaged ({how}), nothing has been changed: put back a copy of it, or recover it with `sqlite3 .recover`",
        path.display()
    ))
}

fn failed(path: &Path, what: &str, error: rusqlite::Error) -> Error {
    let path_shown = path.display();
    let message = |advice: &str| format!("the store {path_shown} could not {what}: {advice}");
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Error::transient(message(
            "it is open in another process (an SQLite shell?), and a store of this kind is for one; stop that one, then try again",
        )),
        Some(ErrorCode::DiskFull) => Error::transient(message("the disk is full; free some space, then try again")),
        Some(ErrorCode::OutOfMemory) => Error::transient(message("out of memory; try again")),
        Some(ErrorCode::SystemIoFailure) => Error::transient(message(
            "the disk failed, and whether it took effect is unknown; check the disk, then read again",
        )),
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => Error::permanent(message(
            "it cannot be written; check that file and folder exist and belong to this user",
        )),
        Some(ErrorCode::DatabaseCorrupt) => return damaged(path, &error.to_string()),
        Some(ErrorCode::NotADatabase) => Error::permanent(message("it is not an SQLite file; give another path")),
        _ => Error::permanent(message("SQLite refused; this is a fault of the program or of the file")),
    }
    .because(error)
}

/// The path without links, so that one file has one lock.
fn resolve(path: &Path) -> Result<PathBuf> {
    let unusable =
        |why: String| Error::permanent(format!("{} cannot hold a store: {why}", path.display()));
    let whole = std::path::absolute(path).map_err(|e| unusable(e.to_string()))?;
    if let Ok(there) = whole.canonicalize() {
        return if there.is_file() {
            Ok(there)
        } else {
            Err(unusable("it is not a file".to_owned()))
        };
    }
    let (Some(folder), Some(name)) = (whole.parent(), whole.file_name()) else {
        return Err(unusable("it does not name a file".to_owned()));
    };
    let folder = folder
        .canonicalize()
        .map_err(|e| unusable(format!("its folder cannot be used ({e}); create it first")))?;
    Ok(folder.join(name))
}

/// Ends with this value even while a child that was just forked still has the file open.
#[derive(Debug)]
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        let _gone_with_the_file_otherwise = self.0.unlock();
    }
}

/// Locks the file beside the store, and says what stood in it. SQLite's own locks alone do not do: on POSIX they go as soon as
/// anything in the process opens and closes the file once, a backup say.
fn lock(path: &Path) -> Result<(Lock, Vec<u8>)> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let name = PathBuf::from(name);
    let unusable = |e: std::io::Error| {
        Error::permanent(format!(
            "the lock file {} cannot be written; check that its folder belongs to this user",
            name.display()
        ))
        .because(e)
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&name)
        .map_err(unusable)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(Error::transient(format!(
                "the store {} is open in another process (or twice in this one), and is for one: stop that one, then try again",
                path.display()
            )));
        }
        Err(TryLockError::Error(e)) => return Err(unusable(e)),
    }
    let mut said = Vec::new();
    (&file)
        .take(LAID_OUT.len() as u64)
        .read_to_end(&mut said)
        .map_err(unusable)?;
    Ok((Lock(file), said))
}

/// A new file survives a power cut only once its folder does.
fn sync_folder(path: &Path) -> std::result::Result<(), String> {
    match path.parent() {
        Some(folder) if cfg!(unix) => File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|e| {
                format!(
                    "the folder {} cannot be synchronised ({e}): check the disk",
                    folder.display()
                )
            }),
        _ => Ok(()),
    }
}
