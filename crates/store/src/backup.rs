//! Backup and restore of a whole store: the same copy, in both directions.
//!
//! `essaim backup` and `essaim restore` call it. The copy is made beside its place, checked, made to last, and only then
//! gets its name: what has the name of a backup is one. Always true: the source is only read, and may be in use; the copy
//! is of one moment of the journal, and what is kept behind the journal (catalog, output) may be ahead of that moment
//! only in what does no harm.
//! Deliberately not here: when to make backups and how many to keep, the hub's own files beside its store.

#[cfg(test)]
mod tests;

use crate::catalog;
use crate::copies;
use crate::error::{BackupError, OpenError};
use crate::folder::{self, FolderLock};
use crate::journal::{mark, table};
use crate::limits::OUTPUT_COPIES_MAX;
use crate::packed::index;
use crate::port::Seq;
use crate::sqlite::{self, Schema};
use rusqlite::Connection;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    /// The end of the copied journal.
    pub last: Seq,
    /// All bytes of the copy.
    pub bytes: u64,
}

/// Copies the store in `folder`, which a hub may be using, to the new folder `to`.
///
/// # Errors
/// [`BackupError`]: no store there, the target is not empty, something is damaged, no room. Then there is no `to`.
pub fn backup(folder: &Path, to: &Path) -> Result<Copied, BackupError> {
    refuse_filled(to)?;
    let staged = stage(to)?;
    let copied = copy(folder, staged.path())?;
    publish(staged, to)?;
    Ok(copied)
}

/// Puts the backup in `from` to `folder`, where no store may be, neither in use nor at rest.
///
/// # Errors
/// [`BackupError`]: no backup there, the folder has a store or is in use, something is damaged, no room. Then `folder`
/// is as it was.
pub fn restore(from: &Path, folder: &Path) -> Result<Copied, BackupError> {
    let was_there = folder.exists();
    let restored = put_back(from, folder);
    if restored.is_err() && !was_there {
        // Nothing but our lock's file can be in it; a folder with more stays.
        _ = fs::remove_file(folder.join(folder::LOCK_FILE));
        _ = fs::remove_dir(folder);
    }
    restored
}

fn put_back(from: &Path, folder: &Path) -> Result<Copied, BackupError> {
    folder::make(folder)?;
    let lock = FolderLock::take(folder)?;
    refuse_filled(folder)?;
    let staged = stage(folder)?;
    let copied = copy(from, staged.path())?;
    lock.remove(folder).map_err(|source| io_error(folder, source))?;
    publish(staged, folder)?;
    Ok(copied)
}

fn io_error(path: &Path, source: io::Error) -> BackupError {
    folder::file_error(path, source).into()
}

fn refuse_filled(folder: &Path) -> Result<(), BackupError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(io_error(folder, source)),
    };
    for entry in entries {
        if entry.map_err(|source| io_error(folder, source))?.file_name() != folder::LOCK_FILE {
            return Err(BackupError::NotEmpty { folder: folder.to_owned() });
        }
    }
    Ok(())
}

/// A folder beside `to`, on the same disk; gone when it is dropped.
fn stage(to: &Path) -> Result<tempfile::TempDir, BackupError> {
    let parent = parent(to);
    fs::create_dir_all(&parent).map_err(|source| io_error(&parent, source))?;
    tempfile::Builder::new().prefix(".essaim-copy-").tempdir_in(&parent).map_err(|source| io_error(&parent, source))
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Gives the copy its name, for good. A folder that has got files meanwhile is not replaced.
fn publish(staged: tempfile::TempDir, to: &Path) -> Result<(), BackupError> {
    fs::rename(staged.path(), to).map_err(|source| match source.kind() {
        io::ErrorKind::DirectoryNotEmpty => BackupError::NotEmpty { folder: to.to_owned() },
        _ => io_error(to, source),
    })?;
    // It has another name now; there is nothing to remove.
    _ = staged.keep();
    let parent = parent(to);
    folder::sync(&parent).map_err(|source| io_error(&parent, source))
}

/// Copies, checks the copy and makes it last.
fn copy(from: &Path, to: &Path) -> Result<Copied, BackupError> {
    if !from.join(table::SCHEMA.file).is_file() {
        return Err(BackupError::NoStore { folder: from.to_owned() });
    }
    // Before the journal is looked at: it may go on, but not back.
    let marked = mark::found(from)?;
    // The journal first: what the catalog has beyond its end is known, and taken away again.
    let last = {
        let journal = copy_database(from, to, &table::SCHEMA)?;
        let last = check_journal(&journal, &to.join(table::SCHEMA.file))?;
        if last < marked {
            return Err(OpenError::Cut { folder: from.to_owned(), last, confirmed: marked }.into());
        }
        close(journal, &to.join(table::SCHEMA.file))?;
        last
    };
    let path = to.join(catalog::SCHEMA.file);
    let copied = copy_database(from, to, &catalog::SCHEMA)?;
    catalog::cut(&copied, last).map_err(|error| sqlite::open_error(&path, error))?;
    close(copied, &path)?;
    copy_outputs(from, to)?;
    copies::blobs(from, to)?;
    mark::write(to, last)?;
    let bytes = sync_all(to).map_err(|source| io_error(to, source))?;
    Ok(Copied { last, bytes })
}

/// The index first, then the segments that it names. Retention may drop one meanwhile; then the index is copied anew.
fn copy_outputs(from: &Path, to: &Path) -> Result<(), BackupError> {
    let path = to.join(index::SCHEMA.file);
    for _ in 0..OUTPUT_COPIES_MAX {
        let copied = copy_database(from, to, &index::SCHEMA)?;
        let is_whole = copies::segments(&copied, from, to)?;
        close(copied, &path)?;
        if is_whole {
            return Ok(());
        }
        fs::remove_file(&path).map_err(|source| io_error(&path, source))?;
    }
    let what = "segments that the index of outputs names are not there".to_owned();
    Err(BackupError::Damaged { path: from.join(index::SCHEMA.file), what })
}

/// Copies a database as it is at one moment, brings the copy to the present version and checks every page of it.
fn copy_database(from: &Path, to: &Path, schema: &Schema) -> Result<Connection, BackupError> {
    let (from, path) = (from.join(schema.file), to.join(schema.file));
    folder::make_file(&path)?;
    let target = path.to_str().ok_or_else(|| io_error(&path, io::ErrorKind::InvalidFilename.into()))?;
    let source = sqlite::open_reader(&from).map_err(|error| sqlite::open_error(&from, error))?;
    sqlite::refuse_newer(&source, schema, &from)?;
    source.execute("VACUUM INTO ?", [target]).map_err(|error| {
        // What is damaged is the source; what is full is the target.
        let place = if sqlite::is_corrupt(&error) { &from } else { &path };
        sqlite::open_error(place, error)
    })?;
    let connection = sqlite::open(to, schema)?;
    let check = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get::<_, String>(0));
    match check.map_err(|error| sqlite::open_error(&path, error))?.as_str() {
        "ok" => Ok(connection),
        found => Err(BackupError::Damaged { path: from, what: found.to_owned() }),
    }
}

/// Every batch and the snapshot must be what was written, without a hole.
fn check_journal(journal: &Connection, path: &Path) -> Result<Seq, BackupError> {
    let failed = |error| BackupError::from(sqlite::open_error(path, error));
    let damaged = |what| BackupError::Damaged { path: path.to_owned(), what };
    let (mut end, last) = (table::base(journal).map_err(failed)?, table::last(journal).map_err(failed)?);
    table::batches(journal, end.next(), |seq, found| {
        if matches!(found, table::Found::Batch(_)) {
            end = seq;
        }
        true
    })
    .map_err(failed)?;
    if end != last {
        return Err(damaged(format!("the batch at sequence {} is not what was written", end.next())));
    }
    if let Some(head) = table::head(journal).map_err(failed)? {
        if head.at > last {
            return Err(damaged(format!("it ends at sequence {last}, before its own snapshot at {}", head.at)));
        }
        if table::snapshot(journal, head).map_err(failed)?.is_none() {
            return Err(damaged(format!("the snapshot at sequence {} is not what was written", head.at)));
        }
    }
    Ok(last)
}

/// Closes a copied database as one file, which can be read from a disk that is read-only.
fn close(connection: Connection, path: &Path) -> Result<(), BackupError> {
    let failed = |error| BackupError::from(sqlite::open_error(path, error));
    connection.pragma_update(None, "journal_mode", "DELETE").map_err(failed)?;
    connection.close().map_err(|(_, error)| failed(error))
}

/// Makes everything below `folder` last; counts its bytes.
fn sync_all(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            bytes += sync_all(&path)?;
        } else {
            let file = fs::File::open(&path)?;
            file.sync_all()?;
            bytes += file.metadata()?.len();
        }
    }
    folder::sync(folder)?;
    Ok(bytes)
}
