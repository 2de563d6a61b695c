//! Blobs in memory.
//!
//! [`crate::port`] calls it. Always true: `used` is the bytes of all blobs plus the announced sizes of all writers, and
//! never exceeds the limit; no bytes are copied while the lock is held.
//! Deliberately not here: who still needs a blob (the hub removes it).

use super::lock;
use crate::error::PutError;
use crate::limits::READ_BYTES_MAX;
use essaim_proto::BlobHash;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex};

/// What a writer reserves at its beginning; the rest grows with what really comes, so a lie costs its teller more.
const WRITER_RESERVE_BYTES: u64 = 64 << 10;

/// See [`crate::port::Blobs`].
pub(crate) struct MemoryBlobs {
    limit: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    blobs: HashMap<BlobHash, Arc<Vec<u8>>>,
    used: u64,
}

impl MemoryBlobs {
    pub(crate) fn new(limit: u64) -> MemoryBlobs {
        MemoryBlobs { limit, state: Mutex::default() }
    }

    pub(crate) fn put(&self, expected: BlobHash, bytes: &[u8]) -> Result<(), PutError> {
        let actual = BlobHash::of(bytes);
        if actual != expected {
            return Err(PutError::Mismatch { expected, actual });
        }
        if self.size(expected).is_some() {
            return Ok(());
        }
        let size = bytes.len() as u64;
        self.reserve(size)?;
        self.insert(expected, bytes.to_vec());
        Ok(())
    }

    pub(crate) fn begin(self: Arc<MemoryBlobs>, announced: u64) -> Result<MemoryBlobWriter, PutError> {
        self.reserve(announced)?;
        let reserve = usize::try_from(announced.min(WRITER_RESERVE_BYTES)).unwrap_or(0);
        Ok(MemoryBlobWriter {
            blobs: self,
            announced,
            bytes: Vec::with_capacity(reserve),
            hasher: blake3::Hasher::new(),
        })
    }

    pub(crate) fn get(&self, hash: BlobHash, offset: u64, max: usize) -> Option<Vec<u8>> {
        let blob = lock(&self.state).blobs.get(&hash).cloned()?;
        let begin = usize::try_from(offset).unwrap_or(usize::MAX).min(blob.len());
        let end = begin + max.min(READ_BYTES_MAX).min(blob.len() - begin);
        Some(blob[begin..end].to_vec())
    }

    pub(crate) fn size(&self, hash: BlobHash) -> Option<u64> {
        lock(&self.state).blobs.get(&hash).map(|blob| blob.len() as u64)
    }

    pub(crate) fn missing(&self, hashes: &[BlobHash]) -> Vec<BlobHash> {
        let state = lock(&self.state);
        let mut seen = HashSet::new();
        hashes.iter().copied().filter(|hash| !state.blobs.contains_key(hash) && seen.insert(*hash)).collect()
    }

    pub(crate) fn all(&self) -> Vec<BlobHash> {
        lock(&self.state).blobs.keys().copied().collect()
    }

    pub(crate) fn remove(&self, hash: BlobHash) -> bool {
        let mut state = lock(&self.state);
        let Some(blob) = state.blobs.remove(&hash) else { return false };
        state.used -= blob.len() as u64;
        true
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        lock(&self.state).used
    }

    fn reserve(&self, bytes: u64) -> Result<(), PutError> {
        let mut state = lock(&self.state);
        match state.used.checked_add(bytes) {
            Some(used) if used <= self.limit => {
                state.used = used;
                Ok(())
            }
            _ => Err(PutError::Full { bytes, limit: self.limit }),
        }
    }

    fn release(&self, bytes: u64) {
        lock(&self.state).used -= bytes;
    }

    /// Makes a blob visible whose bytes are reserved; when another writer was first, gives them back.
    fn insert(&self, hash: BlobHash, bytes: Vec<u8>) {
        let size = bytes.len() as u64;
        let mut state = lock(&self.state);
        if state.blobs.insert(hash, Arc::new(bytes)).is_some() {
            state.used -= size;
        }
    }
}

impl fmt::Debug for MemoryBlobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBlobs").field("used", &self.used_bytes()).finish_non_exhaustive()
    }
}

/// See [`crate::port::BlobWriter`].
pub(crate) struct MemoryBlobWriter {
    blobs: Arc<MemoryBlobs>,
    /// Reserved until the writer ends; 0 once the blob has taken it over.
    announced: u64,
    bytes: Vec<u8>,
    hasher: blake3::Hasher,
}

impl MemoryBlobWriter {
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), PutError> {
        let written = self.written() + bytes.len() as u64;
        if written > self.announced {
            return Err(PutError::WrongSize { announced: self.announced, written });
        }
        self.hasher.update(bytes);
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    pub(crate) fn written(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub(crate) fn finish(mut self, expected: BlobHash) -> Result<(), PutError> {
        let written = self.written();
        if written != self.announced {
            return Err(PutError::WrongSize { announced: self.announced, written });
        }
        let actual = BlobHash(*self.hasher.finalize().as_bytes());
        if actual != expected {
            return Err(PutError::Mismatch { expected, actual });
        }
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.shrink_to_fit();
        self.blobs.insert(expected, bytes);
        self.announced = 0;
        Ok(())
    }
}

impl Drop for MemoryBlobWriter {
    fn drop(&mut self) {
        self.blobs.release(self.announced);
    }
}

impl fmt::Debug for MemoryBlobWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBlobWriter")
            .field("announced", &self.announced)
            .field("written", &self.written())
            .finish_non_exhaustive()
    }
}
