//! The back-end `memory`: everything in the process, large outputs in one unnamed file.
//!
//! [`crate::port`] calls it. Always true here: locks are short and no foreign code runs under them, so a lock that a
//! panicking thread left behind still guards a whole state and is used on.
//! Deliberately not here: anything that outlives the process.

mod blobs;
mod blocks;
mod journal;
mod spool;

pub(crate) use blobs::{MemoryBlobWriter, MemoryBlobs};
pub(crate) use journal::MemoryJournal;
pub(crate) use spool::Spool;

use std::sync::{Mutex, MutexGuard, PoisonError};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use crate::conformance::{Opened, suite};
    use crate::{Store, StoreLimits};

    fn open(limits: StoreLimits) -> Opened {
        let folder = tempfile::tempdir().expect("a folder for the spool");
        let store = Store::memory(folder.path(), limits).expect("a store");
        Opened { store, folder }
    }

    suite!(open);

    // We want to know that nothing is left behind: the folder is empty while the store is in use.
    #[test]
    fn leaves_nothing_in_the_folder() {
        let folder = tempfile::tempdir().expect("a folder for the spool");
        let store = Store::memory(folder.path(), StoreLimits::default()).expect("a store");
        let attempt = essaim_proto::AttemptId::default();
        let stream = essaim_proto::api::Stream::Stdout;
        store.outputs.append(attempt, stream, 0, &[7; 200_000]).expect("stored");
        assert_eq!(std::fs::read_dir(folder.path()).expect("readable").count(), 0);
    }

    // We want to know what a folder that is not there leads to.
    #[test]
    fn a_missing_folder_is_named() {
        let error =
            Store::memory(std::path::Path::new("/nowhere/at/all"), StoreLimits::default()).expect_err("refused");
        assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
        assert!(std::error::Error::source(&error).is_some());
    }
}
