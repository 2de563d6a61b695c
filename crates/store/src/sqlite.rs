//! Databases in files: opening, migrating, connections for readers, and what an error of theirs means.
//!
//! The journal, the catalog and the index of outputs on disk call it. Always true: a database is written by one
//! connection and read by others that can only read, and never wait for it; what a commit wrote is on the disk before
//! the commit returns; files are for their owner alone; a database of a newer version is not touched.
//! Deliberately not here: tables (each owner has its own), the folder and its lock (`folder`).

use crate::error::{Cause, OpenError};
use crate::folder;
use crate::limits::{BUSY_TIMEOUT, READERS_IDLE_MAX, WAL_BYTES_KEPT};
use rusqlite::{Connection, ErrorCode, OpenFlags};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// One kind of database.
#[derive(Debug)]
pub(crate) struct Schema {
    /// Its file in the store's folder.
    pub(crate) file: &'static str,
    /// What leads from version n to n + 1, from version 0 (an empty file) on. A step that was ever released is never
    /// changed: add one, and a recorded store of the version before (`tests/data`).
    pub(crate) steps: &'static [&'static str],
}

impl Schema {
    /// The version that this program writes.
    pub(crate) fn known(&self) -> u32 {
        self.steps.len() as u32
    }
}

/// Opens a database for its one writer; makes it if it is missing, brings it to the present version if it is old.
pub(crate) fn open(folder: &Path, schema: &Schema) -> Result<Connection, OpenError> {
    let path = folder.join(schema.file);
    // Never twice: closing a second descriptor of a file gives up the locks that a database holds on it.
    if !path.exists() {
        folder::make_file(&path)?;
    }
    let failed = |error| open_error(&path, error);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(&path, flags).map_err(failed)?;
    prepare(&connection).map_err(failed)?;
    if connection.is_readonly("main").map_err(failed)? {
        return Err(OpenError::ReadOnly { source: io::ErrorKind::PermissionDenied.into(), path });
    }
    migrate(&mut connection, schema, &path)?;
    Ok(connection)
}

/// A database that is gone with its connection.
pub(crate) fn open_in_memory(schema: &Schema) -> Result<Connection, OpenError> {
    let path = Path::new(schema.file);
    let mut connection = Connection::open_in_memory().map_err(|error| open_error(path, error))?;
    migrate(&mut connection, schema, path)?;
    Ok(connection)
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "journal_size_limit", WAL_BYTES_KEPT)?;
    connection.pragma_update(None, "trusted_schema", false)
}

fn migrate(connection: &mut Connection, schema: &Schema, path: &Path) -> Result<(), OpenError> {
    let failed = |error| open_error(path, error);
    let found = refuse_newer(connection, schema, path)?;
    for (n, step) in schema.steps.iter().enumerate().skip(found as usize) {
        let migration = connection.transaction().map_err(failed)?;
        migration.execute_batch(step).map_err(failed)?;
        migration.pragma_update(None, "user_version", n as u32 + 1).map_err(failed)?;
        migration.commit().map_err(failed)?;
    }
    Ok(())
}

/// The version of a database, which must be one that we know.
pub(crate) fn refuse_newer(connection: &Connection, schema: &Schema, path: &Path) -> Result<u32, OpenError> {
    let found =
        connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(|error| open_error(path, error))?;
    let known = schema.known();
    if found > known { Err(OpenError::Newer { path: path.to_owned(), found, known }) } else { Ok(found) }
}

/// A connection that can only read.
pub(crate) fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}

/// Connections for readers, as many as read at once; a few are kept.
#[derive(Debug)]
pub(crate) struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

impl Readers {
    pub(crate) fn new(path: PathBuf) -> Readers {
        Readers { path, idle: Mutex::default() }
    }

    /// Reads on a connection of its own: everything that `read` sees is of one moment.
    pub(crate) fn with<T, E: From<rusqlite::Error>>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, E>,
    ) -> Result<T, E> {
        let idle = self.lock().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => open_reader(&self.path)?,
        };
        let moment = connection.unchecked_transaction()?;
        let found = read(&moment);
        drop(moment);
        let mut idle = self.lock();
        // One whose read failed is not used again: it may be in a state that we do not know.
        if idle.len() < READERS_IDLE_MAX && found.is_ok() {
            idle.push(connection);
        }
        drop(idle);
        found
    }

    /// Closes those that are kept: the writer, which closes last, then tidies up behind itself.
    pub(crate) fn close(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an error of a database means to who keeps data in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// No room on the disk.
    Full,
    /// It may not be written.
    ReadOnly,
    /// What is there is not what was written.
    Corrupt,
    /// Something else of the system.
    Other,
}

/// Does it say that what is there is not what was written?
pub(crate) fn is_corrupt(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// Judges an error of the database in `path`. An error that only says "input or output" is looked into by writing a
/// little beside the database: what that meets is what the database met.
pub(crate) fn fault(error: &rusqlite::Error, path: &Path) -> Fault {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => Fault::Full,
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => Fault::ReadOnly,
        _ if is_corrupt(error) => Fault::Corrupt,
        Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) => match folder::try_write(path) {
            Ok(()) => Fault::Other,
            Err(error) if folder::is_full(&error) => Fault::Full,
            Err(error) if folder::is_read_only(&error) => Fault::ReadOnly,
            Err(_) => Fault::Other,
        },
        // A column of another type, a missing table or row: somebody else wrote this.
        _ if !matches!(error, rusqlite::Error::SqliteFailure(..)) => Fault::Corrupt,
        _ => Fault::Other,
    }
}

pub(crate) fn open_error(path: &Path, error: rusqlite::Error) -> OpenError {
    let found = fault(&error, path);
    let (path, source): (_, Cause) = (path.to_owned(), error.into());
    match found {
        Fault::Full => OpenError::Full { path, source },
        Fault::ReadOnly => OpenError::ReadOnly { path, source: io::Error::other(source) },
        Fault::Corrupt => OpenError::Corrupt { path, source },
        Fault::Other => OpenError::Io { path, source },
    }
}
