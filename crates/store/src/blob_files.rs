//! Blobs on disk: one file each, named by the hash of its bytes.
//!
//! [`crate::port`] calls it from any thread; it calls `folder`. In the store's folder:
//!
//! ```text
//! blobs/ab/cdef…    a blob: two digits of its hash, then the other 62
//! blobs/tmp/…       a blob on its way in; what a crash leaves there is removed at the next start
//! ```
//!
//! Always true: a file under a hash has exactly the bytes of that hash and was made durable before it got its name, so
//! that it never changes and may be linked elsewhere; `used` is the bytes of all blobs plus the announced sizes of all
//! writers, and never exceeds the limit. The file system is the index: a size is a look at the file.
//! Deliberately not here: who still needs a blob (the hub removes it), copies (`copies`).

use crate::error::{BlobReadError, BlobRemoveError, OpenError, PutError};
use crate::folder::{self, FolderLock, file_error};
use crate::limits::READ_BYTES_MAX;
use essaim_proto::BlobHash;
use std::collections::HashSet;
use std::fmt;
use std::fs::{DirBuilder, File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tempfile::NamedTempFile;

/// The folder of blobs in the store's folder.
pub(crate) const BLOBS: &str = "blobs";
const INCOMING: &str = "tmp";

/// See [`crate::port::Blobs`].
pub(crate) struct BlobFiles {
    folder: PathBuf,
    limit: u64,
    /// Taken by whoever gives or takes a name, so that each blob is counted once.
    used: Mutex<u64>,
    _lock: Arc<FolderLock>,
}

impl BlobFiles {
    /// Opens the blobs of the store in `folder`, counts them and removes what was never finished.
    pub(crate) fn open(folder: &Path, limit: u64, lock: Arc<FolderLock>) -> Result<BlobFiles, OpenError> {
        let folder = folder.join(BLOBS);
        let incoming = folder.join(INCOMING);
        make_folder(&incoming).map_err(|source| file_error(&incoming, source))?;
        let mut used = 0;
        let counted = clear(&incoming).and_then(|()| each(&folder, |_, _, metadata| used += metadata.len()));
        counted.map_err(|source| file_error(&folder, source))?;
        Ok(BlobFiles { folder, limit, used: Mutex::new(used), _lock: lock })
    }

    pub(crate) fn put(self: &Arc<BlobFiles>, expected: BlobHash, bytes: &[u8]) -> Result<(), PutError> {
        let actual = BlobHash::of(bytes);
        if actual != expected {
            return Err(PutError::Mismatch { expected, actual });
        }
        if self.size(expected).is_some() {
            // Whoever put it may not have made its name durable yet.
            return self.sync_name(expected).map_err(put_failed);
        }
        let mut writer = self.clone().begin(bytes.len() as u64)?;
        writer.write(bytes)?;
        writer.finish(expected)
    }

    pub(crate) fn begin(self: Arc<BlobFiles>, announced: u64) -> Result<BlobFileWriter, PutError> {
        let mut used = self.used();
        match used.checked_add(announced) {
            Some(sum) if sum <= self.limit => *used = sum,
            _ => return Err(PutError::Full { bytes: announced, limit: self.limit }),
        }
        drop(used);
        // From here on the promise is given back by its end.
        let mut writer =
            BlobFileWriter { blobs: self, announced, written: 0, file: None, hasher: blake3::Hasher::new() };
        writer.file = Some(NamedTempFile::new_in(writer.blobs.folder.join(INCOMING)).map_err(put_failed)?);
        Ok(writer)
    }

    pub(crate) fn get(&self, hash: BlobHash, offset: u64, max: usize) -> Result<Option<Vec<u8>>, BlobReadError> {
        read(&self.path(hash), offset, max).map_err(|error| BlobReadError::Io { hash, source: error.into() })
    }

    pub(crate) fn size(&self, hash: BlobHash) -> Option<u64> {
        Some(std::fs::metadata(self.path(hash)).ok()?.len())
    }

    pub(crate) fn missing(&self, hashes: &[BlobHash]) -> Vec<BlobHash> {
        let mut seen = HashSet::new();
        hashes.iter().copied().filter(|hash| seen.insert(*hash) && self.size(*hash).is_none()).collect()
    }

    pub(crate) fn all(&self) -> io::Result<Vec<BlobHash>> {
        let mut all = Vec::new();
        each(&self.folder, |hash, _, _| all.push(hash))?;
        Ok(all)
    }

    pub(crate) fn remove(&self, hash: BlobHash) -> Result<bool, BlobRemoveError> {
        let removed = self.take_name(hash).and_then(|was_there| {
            if was_there {
                self.sync_name(hash)?;
            }
            Ok(was_there)
        });
        removed.map_err(|error| BlobRemoveError::Io { hash, source: error.into() })
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        *self.used()
    }

    /// Takes a blob's name and its room away; says whether it was there.
    fn take_name(&self, hash: BlobHash) -> io::Result<bool> {
        let mut used = self.used();
        let path = self.path(hash);
        let size = match std::fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        std::fs::remove_file(&path)?;
        *used -= size;
        Ok(true)
    }

    /// Names a file whose bytes are durable. Says false when another was first: then the file is nobody's.
    fn give_name(&self, file: NamedTempFile, hash: BlobHash) -> io::Result<bool> {
        let path = self.path(hash);
        let shelf = path.parent().unwrap_or(&self.folder);
        let _used = self.used();
        if path.exists() {
            return Ok(false);
        }
        if !shelf.exists() {
            make_folder(shelf)?;
            folder::sync(&self.folder)?;
        }
        file.persist(&path).map_err(|error| error.error)?;
        Ok(true)
    }

    fn sync_name(&self, hash: BlobHash) -> io::Result<()> {
        folder::sync(self.path(hash).parent().unwrap_or(&self.folder))
    }

    fn path(&self, hash: BlobHash) -> PathBuf {
        let name = hash.to_string();
        let (shelf, rest) = name.split_at(2);
        self.folder.join(shelf).join(rest)
    }

    fn used(&self) -> MutexGuard<'_, u64> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn put_failed(error: io::Error) -> PutError {
    PutError::Io(error.into())
}

fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn clear(folder: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        std::fs::remove_file(entry?.path())?;
    }
    Ok(())
}

/// Visits every blob in `folder`. What is there under another name than a hash is not ours and is left alone.
pub(crate) fn each(folder: &Path, mut visit: impl FnMut(BlobHash, &Path, &Metadata)) -> io::Result<()> {
    for shelf in std::fs::read_dir(folder)? {
        let shelf = shelf?;
        let name = shelf.file_name();
        if name == INCOMING || !shelf.file_type()?.is_dir() {
            continue;
        }
        for blob in std::fs::read_dir(shelf.path())? {
            let blob = blob?;
            let digits = [name.to_string_lossy(), blob.file_name().to_string_lossy()].concat();
            let Ok(hash) = digits.parse::<BlobHash>() else { continue };
            match blob.metadata() {
                Ok(metadata) => visit(hash, &blob.path(), &metadata),
                // Removed since it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

fn read(path: &Path, offset: u64, max: usize) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let left = file.metadata()?.len().saturating_sub(offset);
    let mut bytes = vec![0; max.min(READ_BYTES_MAX).min(usize::try_from(left).unwrap_or(usize::MAX))];
    if !bytes.is_empty() {
        file.read_exact_at(&mut bytes, offset)?;
    }
    Ok(Some(bytes))
}

impl fmt::Debug for BlobFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobFiles").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// See [`crate::port::BlobWriter`].
pub(crate) struct BlobFileWriter {
    blobs: Arc<BlobFiles>,
    /// Promised until the writer ends; 0 once the blob has taken it over.
    announced: u64,
    written: u64,
    /// Always there until `finish`.
    file: Option<NamedTempFile>,
    hasher: blake3::Hasher,
}

impl BlobFileWriter {
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), PutError> {
        let written = self.written.saturating_add(bytes.len() as u64);
        if written > self.announced {
            return Err(PutError::WrongSize { announced: self.announced, written });
        }
        if let Some(file) = &mut self.file {
            // At its place: a piece that failed half way is written over when it comes again.
            file.as_file().write_all_at(bytes, self.written).map_err(put_failed)?;
        }
        self.hasher.update(bytes);
        self.written = written;
        Ok(())
    }

    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    pub(crate) fn finish(mut self, expected: BlobHash) -> Result<(), PutError> {
        if self.written != self.announced {
            return Err(PutError::WrongSize { announced: self.announced, written: self.written });
        }
        let actual = BlobHash(*self.hasher.finalize().as_bytes());
        if actual != expected {
            return Err(PutError::Mismatch { expected, actual });
        }
        let Some(mut file) = self.file.take() else { return Ok(()) };
        file.flush().and_then(|()| file.as_file().sync_all()).map_err(put_failed)?;
        if self.blobs.give_name(file, expected).map_err(put_failed)? {
            // The blob holds the room from now on.
            self.announced = 0;
        }
        self.blobs.sync_name(expected).map_err(put_failed)
    }
}

impl Drop for BlobFileWriter {
    fn drop(&mut self) {
        *self.blobs.used() -= self.announced;
    }
}

impl fmt::Debug for BlobFileWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobFileWriter")
            .field("announced", &self.announced)
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "blob_files_tests.rs"]
mod tests;
