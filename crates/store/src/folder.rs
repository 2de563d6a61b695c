//! The folder of a store: making it, locking it, and the room that its disk has.
//!
//! Whatever keeps data on disk calls it. Always true: folders are 0700 and files 0600, so that what a program printed is
//! for its owner alone; one process has a store open at a time.
//! Deliberately not here: what is in the files.

use crate::error::OpenError;
use crate::limits::PROBE_BYTES;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// The file whose lock says that a process has the store open.
pub(crate) const LOCK_FILE: &str = "store.lock";

/// Makes the folder of a store if it is missing, for its owner alone.
pub(crate) fn make(folder: &Path) -> Result<(), OpenError> {
    let failed = |source| file_error(folder, source);
    if !folder.is_dir() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        // The folder's own name must last as long as what is in it.
        let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
        sync(parent.unwrap_or(Path::new("."))).map_err(failed)?;
    }
    if std::fs::metadata(folder).map_err(failed)?.permissions().mode() & 0o077 != 0 {
        std::fs::set_permissions(folder, Permissions::from_mode(0o700)).map_err(failed)?;
    }
    Ok(())
}

/// Makes a file if it is missing, for its owner alone. What a database puts beside it has the same rights.
pub(crate) fn make_file(path: &Path) -> Result<File, OpenError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|source| file_error(path, source))
}

/// Makes names in a folder last.
pub(crate) fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// The right to have a store open, given back when dropped, whatever way the process ends.
#[derive(Debug)]
pub(crate) struct FolderLock(File);

impl Drop for FolderLock {
    // Closing would not do: a process that was forked a moment ago has a copy of the descriptor until it calls exec.
    fn drop(&mut self) {
        // What fails here is given back with the last copy.
        let _ = self.0.unlock();
    }
}

impl FolderLock {
    /// Takes it or says who cannot: it never waits.
    pub(crate) fn take(folder: &Path) -> Result<FolderLock, OpenError> {
        let path = folder.join(LOCK_FILE);
        let file = make_file(&path)?;
        match file.try_lock() {
            Ok(()) => Ok(FolderLock(file)),
            Err(std::fs::TryLockError::WouldBlock) => Err(OpenError::InUse { folder: folder.to_owned() }),
            Err(std::fs::TryLockError::Error(source)) => Err(file_error(&path, source)),
        }
    }
}

impl FolderLock {
    /// Removes its file, so that the folder is empty. Only for who puts another folder in its place at once.
    pub(crate) fn remove(self, folder: &Path) -> io::Result<()> {
        std::fs::remove_file(folder.join(LOCK_FILE))
    }
}

/// Bytes that we may still write to the disk that `path` is on.
pub(crate) fn free_bytes(path: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(path)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Writes a little beside the database in `path` and takes it away again, to learn why something else could not be
/// written. It writes as far from a file's beginning as the database's log does: files may be limited too.
pub(crate) fn try_write(path: &Path) -> io::Result<()> {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let end = std::fs::metadata(log).map_or(0, |log| log.len());
    let file = tempfile::tempfile_in(path.parent().unwrap_or(path))?;
    file.write_all_at(&[0; PROBE_BYTES], end)?;
    file.sync_all()
}

/// Does it say that there is no room?
pub(crate) fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// Does it say that we may not write?
pub(crate) fn is_read_only(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

pub(crate) fn file_error(path: &Path, source: io::Error) -> OpenError {
    let path = path.to_owned();
    if is_full(&source) {
        OpenError::Full { path, source: source.into() }
    } else if is_read_only(&source) {
        OpenError::ReadOnly { path, source }
    } else {
        OpenError::Io { path, source: source.into() }
    }
}
