//! Everything that can go wrong in a store: one enum per operation, each variant a sentence.
//!
//! Callers match on the variants that they treat differently and show the rest. Always true: a variant that was caused
//! by something keeps it as its source, whatever back-end it came from.
//! Deliberately not here: the refusals that a peer hears; the hub makes them from these.

use crate::port::{Seq, Term};
use essaim_proto::api::Stream;
use essaim_proto::{AttemptId, BlobHash};
use std::io;
use std::path::PathBuf;

/// What a back-end says about itself: an IO error, a database's error.
pub type Cause = Box<dyn std::error::Error + Send + Sync + 'static>;

/// A store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder is missing, read-only or full.
    #[error("no spool file for output can be made in {}", folder.display())]
    Spool {
        /// Where it was tried.
        folder: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A process has it open.
    #[error("{} is in use by another process: end that hub first, or choose another folder", folder.display())]
    InUse {
        /// The store's folder.
        folder: PathBuf,
    },
    /// A newer essaim wrote it.
    #[error(
        "{} has version {found}, and this essaim knows versions up to {known}: use a newer essaim on this folder",
        path.display()
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest that we know.
        known: u32,
    },
    /// It may not be written.
    #[error("{} may not be written: check its owner, its rights and if its disk is mounted read-only", path.display())]
    ReadOnly {
        /// What was to be written.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// No room on its disk.
    #[error("there is no room to open {}: free some space on its disk", path.display())]
    Full {
        /// What was to be written.
        path: PathBuf,
        /// What the back-end said.
        #[source]
        source: Cause,
    },
    /// What is there is not what was written.
    #[error("{} is damaged: keep a copy of it, then restore a backup (`essaim restore`)", path.display())]
    Corrupt {
        /// The damaged file.
        path: PathBuf,
        /// What the back-end said.
        #[source]
        source: Cause,
    },
    /// Batches that were durable are not there: a file was cut, removed or exchanged for an older one.
    #[error(
        "the journal in {} ends at sequence {last}, but {confirmed} was written for good: a file of it was cut, removed \
         or exchanged; put it back or restore a backup (`essaim restore`)",
        folder.display()
    )]
    Cut {
        /// The store's folder.
        folder: PathBuf,
        /// The newest sequence that is there.
        last: Seq,
        /// The newest that was said to be there.
        confirmed: Seq,
    },
    /// The system or the back-end failed.
    #[error("{} could not be opened: check that its folder is there and its disk works", path.display())]
    Io {
        /// What was to be opened.
        path: PathBuf,
        /// What the back-end said.
        #[source]
        source: Cause,
    },
}

/// Why there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoRoom {
    /// The journal's own limit. A snapshot and a trim make room.
    #[error("it may hold {0} bytes; there is room again after the next snapshot")]
    Limit(u64),
    /// The disk.
    #[error("its disk has {free} bytes left and {reserve} are kept for what runs already; free some space on it")]
    Disk {
        /// What is left.
        free: u64,
        /// [`crate::StoreLimits::reserve_bytes`].
        reserve: u64,
    },
}

/// A batch was not appended.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// Somebody else appended: this state is stale, replay or step down.
    #[error("the batch was to follow sequence {expected}, but the journal already ends at {actual}")]
    Fenced {
        /// What the caller took for the end.
        expected: Seq,
        /// The end.
        actual: Seq,
    },
    /// The term was never granted, was released, or somebody leads under a newer one.
    #[error("term {term} may not append: the journal's term is {current}")]
    Deposed {
        /// The caller's term.
        term: Term,
        /// The term that may append; 0 when nobody leads.
        current: Term,
    },
    /// A batch in front of this one failed, and its own error says why.
    #[error(
        "the batch was to follow sequence {expected}, but a batch before it failed and the journal ends at {actual}"
    )]
    AfterFailed {
        /// What the caller hoped would be the end.
        expected: Seq,
        /// The end.
        actual: Seq,
    },
    /// Over [`crate::limits::BATCH_BYTES_MAX`].
    #[error("the batch has {bytes} bytes, more than the {limit} that a batch may have")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The journal is at its limit, or the disk is full.
    #[error("the journal is full: {0}")]
    Full(NoRoom),
    /// It may not be written any more.
    #[error("the journal may not be written: check its folder's rights and if its disk was mounted read-only")]
    ReadOnly(#[source] Cause),
    /// The back-end failed; whether the batch is durable is unknown until the next replay.
    #[error("the journal could not be written: check the hub's disk")]
    Io(#[source] Cause),
    /// The back-end found its own data damaged.
    #[error("the journal is damaged: keep a copy of it, then restore a backup (`essaim restore`)")]
    Corrupt(#[source] Cause),
}

/// The journal or its snapshot could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The batches are gone; begin with the latest snapshot.
    #[error("sequence {from} was trimmed: the journal begins at {first}")]
    Trimmed {
        /// Asked for.
        from: Seq,
        /// The first that is kept.
        first: Seq,
    },
    /// The back-end failed.
    #[error("the journal could not be read")]
    Io(#[source] Cause),
    /// What was written is not what is there.
    #[error("the journal is damaged at sequence {seq}: keep a copy of it, then restore a backup (`essaim restore`)")]
    Corrupt {
        /// The first damaged batch.
        seq: Seq,
        /// What the back-end said.
        #[source]
        source: Cause,
    },
}

/// A snapshot was not kept; the one before it still is.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// It claims batches that are not durable.
    #[error("a snapshot at sequence {at} is ahead of the journal, which ends at {last}")]
    Ahead {
        /// The snapshot's sequence.
        at: Seq,
        /// The journal's end.
        last: Seq,
    },
    /// A newer one is there; batches that this one needs may be trimmed.
    #[error("a snapshot at sequence {at} is older than the latest one, at {latest}")]
    Older {
        /// The snapshot's sequence.
        at: Seq,
        /// The latest snapshot's.
        latest: Seq,
    },
    /// Over the store's limit for a snapshot.
    #[error("the snapshot has {bytes} bytes, more than the {limit} that a snapshot may have")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// No room on the disk.
    #[error("there is no room for a snapshot of the journal: {0}")]
    Full(NoRoom),
    /// The back-end failed.
    #[error("the snapshot could not be written")]
    Io(#[source] Cause),
}

/// Nothing was trimmed.
#[derive(Debug, thiserror::Error)]
pub enum TrimError {
    /// Batches would be lost that no snapshot holds.
    #[error("trimming below sequence {below} would lose batches: the latest snapshot is at {snapshot}")]
    BeyondSnapshot {
        /// Asked for.
        below: Seq,
        /// The latest snapshot's sequence; 0 when there is none.
        snapshot: Seq,
    },
    /// The back-end failed.
    #[error("the journal could not be trimmed")]
    Io(#[source] Cause),
}

/// The lead was not given or not kept.
#[derive(Debug, thiserror::Error)]
pub enum LeadError {
    /// Somebody else leads.
    #[error("{holder} leads under term {term} until {expires_ms} ms unless it renews")]
    HeldBy {
        /// Who.
        holder: String,
        /// Under which term.
        term: Term,
        /// Until when, on the clock of whoever acquired or renewed.
        expires_ms: u64,
    },
    /// The term is over: expired, released or followed by a newer one. Acquire again.
    #[error("term {term} is over: the journal's term is {current}")]
    Lost {
        /// The caller's term.
        term: Term,
        /// The present term; 0 when nobody leads.
        current: Term,
    },
    /// The back-end failed.
    #[error("the lead could not be read or written")]
    Io(#[source] Cause),
}

/// A store was not copied, in either direction; there is nothing half-copied.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Nothing to copy.
    #[error("there is no store in {}: give the folder that has a `journal.db`", folder.display())]
    NoStore {
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// The target has files.
    #[error("{} is not empty, and nothing is overwritten: choose another folder, or move what is there away", folder.display())]
    NotEmpty {
        /// The target.
        folder: PathBuf,
    },
    /// What is there is not what was written.
    #[error("{} is damaged ({what}): keep a copy of it, and use an older backup", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// One of the two could not be opened: in use, newer than this program, read-only, full, damaged.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// The catalog could not be read or written; what it holds is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// No room on its disk.
    #[error("there is no room for the catalog of finished jobs: free some space on the hub's disk")]
    Full(#[source] Cause),
    /// It may not be written.
    #[error("the catalog of finished jobs may not be written: check the rights of the hub's folder")]
    ReadOnly(#[source] Cause),
    /// What is there is not what was written.
    #[error("the catalog of finished jobs is damaged: restore a backup (`essaim restore`)")]
    Corrupt(#[source] Cause),
    /// The back-end failed.
    #[error("the catalog of finished jobs could not be read or written: check the hub's disk")]
    Io(#[source] Cause),
}

/// A blob was not stored; nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// The bytes are not those that were announced.
    #[error("the bytes hash to {actual}, not to {expected}")]
    Mismatch {
        /// Announced.
        expected: BlobHash,
        /// Found.
        actual: BlobHash,
    },
    /// More or fewer bytes than [`crate::Blobs::begin`] was told.
    #[error("the blob was announced with {announced} bytes, but {written} came")]
    WrongSize {
        /// Announced.
        announced: u64,
        /// Written, the refused piece included.
        written: u64,
    },
    /// The store's limit for all blobs.
    #[error("the store of blobs is full: {bytes} bytes more than the {limit} that it may hold")]
    Full {
        /// What was to be added.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The back-end failed.
    #[error("the blob could not be written")]
    Io(#[source] Cause),
}

impl PutError {
    /// Is there no room? True for the store's own limit and for a full disk.
    pub fn is_full(&self) -> bool {
        match self {
            PutError::Full { .. } => true,
            PutError::Io(cause) => cause.downcast_ref::<io::Error>().is_some_and(crate::folder::is_full),
            PutError::Mismatch { .. } | PutError::WrongSize { .. } => false,
        }
    }
}

/// A blob could not be read.
#[derive(Debug, thiserror::Error)]
pub enum BlobReadError {
    /// The back-end failed.
    #[error("blob {hash} could not be read")]
    Io {
        /// Which.
        hash: BlobHash,
        /// What the back-end said.
        #[source]
        source: Cause,
    },
}

/// A blob could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum BlobRemoveError {
    /// The back-end failed.
    #[error("blob {hash} could not be removed")]
    Io {
        /// Which.
        hash: BlobHash,
        /// What the back-end said.
        #[source]
        source: Cause,
    },
}

/// Output was not stored: none of the bytes of this append are there.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// Bytes in between are missing; the sender goes back to `length`.
    #[error("{stream:?} of attempt {attempt} has {length} bytes, so bytes at offset {offset} would leave a gap")]
    Gap {
        /// Whose.
        attempt: AttemptId,
        /// Which stream.
        stream: Stream,
        /// Offered.
        offset: u64,
        /// What is there.
        length: u64,
    },
    /// The store's limit for all output.
    #[error("the store of output is full: it may hold {limit} bytes")]
    Full {
        /// The limit.
        limit: u64,
    },
    /// [`crate::limits::ATTEMPTS_MAX`].
    #[error("the store of output is full: it may hold {limit} attempts")]
    TooManyAttempts {
        /// The limit.
        limit: usize,
    },
    /// The back-end failed.
    #[error("output of attempt {attempt} could not be written")]
    Io {
        /// Whose.
        attempt: AttemptId,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl OutputError {
    /// Would dropping older output help? True for the store's own limits and for a full disk.
    pub fn is_full(&self) -> bool {
        match self {
            OutputError::Full { .. } | OutputError::TooManyAttempts { .. } => true,
            OutputError::Io { source, .. } => crate::folder::is_full(source),
            OutputError::Gap { .. } => false,
        }
    }
}

/// Output could not be read.
#[derive(Debug, thiserror::Error)]
pub enum OutputReadError {
    /// What was written is not what is there.
    #[error("{stream:?} of attempt {attempt} is damaged from byte {offset} on: keep a copy, then restore a backup")]
    Corrupt {
        /// Whose.
        attempt: AttemptId,
        /// Which stream.
        stream: Stream,
        /// Where it begins: at the offset asked for, or where that is no longer kept, behind it.
        offset: u64,
        /// Where the damaged piece ends; behind it there may be bytes that are whole. [`u64::MAX`]: nothing behind it
        /// can be found.
        end: u64,
    },
    /// The back-end failed.
    #[error("output of attempt {attempt} could not be read")]
    Io {
        /// Whose.
        attempt: AttemptId,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}
