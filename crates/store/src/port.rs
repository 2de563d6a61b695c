//! The port: what the hub may ask of a store, and what it may count on.
//!
//! `hub` calls it from any thread; each part is a cheap handle on one of the back-ends. The promises, the same for every
//! back-end and tested by the same suite:
//!
//! ```text
//! order       Batches have the sequences 1, 2, 3 … without holes. append(expected) makes sequence expected + 1 or fails.
//!             `done` is called once per append, in the order of the appends, never under a lock of the store.
//!             append n+1 may be called before done(n). If n fails, every append after it fails until one is made
//!             on the true end. After a failure: `last` and `read` say what is there.
//! fencing     append succeeds only on the true end of the journal and under the present term. One who lost the lead to
//!             somebody else cannot append. An expired term may still append until somebody acquires.
//! terms       Every acquire gives a term greater than all before it. At any time at most one term may append.
//! durability  done(Ok), snapshot, trim, put, finish, remove and the drops of output have happened for good when they
//!             say so, an output's bytes when `settle` says so. The back-end `memory` alone forgets everything when its
//!             process ends, and leaves nothing behind.
//! visibility  What was said to be done is seen by every later call on any thread. A batch may be read before its `done`
//!             is called; half a batch, half a blob or a byte of output that was never appended is never seen.
//! refusals    What fails changes nothing. A limit is a named error, never a wait and never a silent loss.
//! ```
//!
//! Deliberately not here: how a back-end does it (`memory`, `journal`), what batches mean, retention (the hub drops what is old).

use crate::blob_files::{BlobFileWriter, BlobFiles};
use crate::catalog::Catalog;
use crate::error::{
    AppendError, BlobReadError, BlobRemoveError, LeadError, OpenError, OutputError, OutputReadError, PutError,
    ReadError, SnapshotError, TrimError,
};
use crate::folder::FolderLock;
use crate::journal::{DiskJournal, LeadChange};
use crate::limits::StoreLimits;
use crate::memory::{MemoryBlobWriter, MemoryBlobs, MemoryJournal, Spool};
use crate::packed::Packed;
use essaim_proto::api::Stream;
use essaim_proto::{AttemptId, BlobHash, JobId, TaskId};
use std::fmt;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

/// Sequence of a batch in the journal, counted from 1; 0 is the journal's beginning, before any batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Seq(pub u64);

impl Seq {
    /// The sequence after this one.
    pub fn next(self) -> Seq {
        Seq(self.0 + 1)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Number of a lead, counted from 1 and greater each time; 0 is nobody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Term(pub u64);

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What hears of an append's end, exactly once: on the caller's thread or on one of the back-end's. It must not block:
/// it may append and read, and must leave snapshots, trimming and the lead, which wait for the journal, to other threads.
pub type Done = Box<dyn FnOnce(Result<Seq, AppendError>) + Send>;

/// An open store: five parts, each to be cloned to who needs it.
#[derive(Debug, Clone)]
pub struct Store {
    /// The ordered records.
    pub journal: Journal,
    /// The right to append them.
    pub lead: Lead,
    /// Files by their hash.
    pub blobs: Blobs,
    /// What programs printed.
    pub outputs: Outputs,
    /// Jobs that are over.
    pub catalog: Catalog,
}

impl Store {
    /// The store in `folder`, which outlives the process; made if it is missing, brought to the present version if it is
    /// old. One process at a time may have it open.
    ///
    /// # Errors
    /// [`OpenError`] names what is wrong: in use, newer than this program, read-only, full, damaged, cut.
    pub fn open(folder: &Path, limits: StoreLimits) -> Result<Store, OpenError> {
        crate::folder::make(folder)?;
        let lock = Arc::new(FolderLock::take(folder)?);
        let journal = Arc::new(DiskJournal::open(folder, limits, lock.clone())?);
        let catalog = Catalog::open(folder, lock.clone())?;
        let applied =
            catalog.applied().map_err(|error| OpenError::Io { path: folder.to_owned(), source: error.into() })?;
        if journal.last() < applied {
            return Err(OpenError::Cut { folder: folder.to_owned(), last: journal.last(), confirmed: applied });
        }
        let blobs = BlobFiles::open(folder, limits.blob_bytes, lock.clone())?;
        let outputs = Packed::open(folder, limits.output_bytes, lock)?;
        Ok(Store {
            journal: Journal(JournalIn::Disk(journal.clone())),
            lead: Lead(LeadIn::Disk(journal)),
            blobs: Blobs(BlobsIn::Files(Arc::new(blobs))),
            outputs: Outputs(OutputsIn::Packed(Arc::new(outputs))),
            catalog,
        })
    }

    /// A store that lives as long as the process. Large outputs go to one unnamed file in `spool_folder`, which the
    /// system takes back even after `kill -9`.
    ///
    /// # Errors
    /// When that file cannot be made.
    pub fn memory(spool_folder: &Path, limits: StoreLimits) -> Result<Store, OpenError> {
        let spool = Spool::open(spool_folder, limits.output_bytes)?;
        let journal = Arc::new(MemoryJournal::new(limits.journal_bytes, limits.snapshot_bytes));
        Ok(Store {
            journal: Journal(JournalIn::Memory(journal.clone())),
            lead: Lead(LeadIn::Memory(journal)),
            blobs: Blobs(BlobsIn::Memory(Arc::new(MemoryBlobs::new(limits.blob_bytes)))),
            outputs: Outputs(OutputsIn::Spool(Arc::new(spool))),
            catalog: Catalog::in_memory()?,
        })
    }
}

// Each part hides an enum over the back-ends: callers see no type parameter and no back-end's name.

/// The ordered records, in batches whose bytes the store does not look into.
#[derive(Debug, Clone)]
pub struct Journal(JournalIn);

#[derive(Debug, Clone)]
enum JournalIn {
    Memory(Arc<MemoryJournal>),
    Disk(Arc<DiskJournal>),
}

impl Journal {
    /// Appends one batch of at most [`crate::limits::BATCH_BYTES_MAX`] bytes as sequence `expected + 1`, under a term
    /// that [`Lead::acquire`] gave. `done` hears the end; see the promises for order and failure.
    pub fn append(&self, expected: Seq, term: Term, batch: Vec<u8>, done: Done) {
        match &self.0 {
            JournalIn::Memory(journal) => journal.append(expected, term, batch, done),
            JournalIn::Disk(journal) => journal.append(expected, term, batch, done),
        }
    }

    /// Is there room for new work? Cheap; for who can say no to it. What runs already is appended as long as anything
    /// can be, and has [`StoreLimits::reserve_bytes`] and the last part of the journal's limit for itself.
    ///
    /// # Errors
    /// [`AppendError::Full`] with what is short.
    pub fn room(&self) -> Result<(), AppendError> {
        match &self.0 {
            JournalIn::Memory(journal) => journal.room(),
            JournalIn::Disk(journal) => journal.room(),
        }
    }

    /// Batches from sequence `from` on, oldest first: as many as fit `max_bytes` and
    /// [`crate::limits::READ_BATCHES_MAX`], but at least one if there is any. Empty means: nothing from there on.
    /// `Seq(0)` means from the very first.
    ///
    /// # Errors
    /// [`ReadError::Trimmed`] when `from` is no longer there.
    pub fn read(&self, from: Seq, max_bytes: usize) -> Result<Vec<(Seq, Vec<u8>)>, ReadError> {
        match &self.0 {
            JournalIn::Memory(journal) => journal.read(from, max_bytes),
            JournalIn::Disk(journal) => journal.read(from, max_bytes),
        }
    }

    /// The newest durable sequence, whether trimmed or not.
    pub fn last(&self) -> Seq {
        match &self.0 {
            JournalIn::Memory(journal) => journal.last(),
            JournalIn::Disk(journal) => journal.last(),
        }
    }

    /// Keeps `bytes` as the state after sequence `at`, in place of older snapshots. The same `at` again replaces it.
    ///
    /// # Errors
    /// Ahead of the journal, older than the latest snapshot, too large.
    pub fn snapshot(&self, at: Seq, bytes: Vec<u8>) -> Result<(), SnapshotError> {
        match &self.0 {
            JournalIn::Memory(journal) => journal.snapshot(at, bytes),
            JournalIn::Disk(journal) => journal.snapshot(at, bytes),
        }
    }

    /// The latest snapshot and the sequence of the last batch that it holds.
    ///
    /// # Errors
    /// When the back-end fails.
    pub fn latest_snapshot(&self) -> Result<Option<(Seq, Vec<u8>)>, ReadError> {
        match &self.0 {
            JournalIn::Memory(journal) => Ok(journal.latest_snapshot()),
            JournalIn::Disk(journal) => journal.latest_snapshot(),
        }
    }

    /// Forgets all batches with a sequence smaller than `below`. What is gone already stays gone.
    ///
    /// # Errors
    /// [`TrimError::BeyondSnapshot`] when a batch would go that the latest snapshot does not hold.
    pub fn trim(&self, below: Seq) -> Result<(), TrimError> {
        match &self.0 {
            JournalIn::Memory(journal) => journal.trim(below),
            JournalIn::Disk(journal) => journal.trim(below),
        }
    }
}

/// The right to append, given to one holder at a time. Times are the caller's clock, in milliseconds; clocks of
/// different holders must agree better than the time to live.
#[derive(Debug, Clone)]
pub struct Lead(LeadIn);

#[derive(Debug, Clone)]
enum LeadIn {
    Memory(Arc<MemoryJournal>),
    Disk(Arc<DiskJournal>),
}

impl Lead {
    /// Takes the lead until `now_ms + ttl_ms`. A holder that leads already gets a new term and loses its old one: a
    /// restarted hub goes on at once. So `holder` must name one data folder, not one machine.
    ///
    /// # Errors
    /// [`LeadError::HeldBy`] while another holder's time has not run out.
    pub fn acquire(&self, holder: &str, now_ms: u64, ttl_ms: u64) -> Result<Term, LeadError> {
        match &self.0 {
            LeadIn::Memory(journal) => journal.lead(|lead| lead.acquire(holder, now_ms, ttl_ms)),
            LeadIn::Disk(journal) => journal.lead(LeadChange::Acquire { holder: holder.to_owned(), now_ms, ttl_ms }),
        }
    }

    /// Keeps the lead until `now_ms + ttl_ms`.
    ///
    /// # Errors
    /// [`LeadError::Lost`] when the term has expired, was released or was followed by another.
    pub fn renew(&self, term: Term, now_ms: u64, ttl_ms: u64) -> Result<(), LeadError> {
        match &self.0 {
            LeadIn::Memory(journal) => journal.lead(|lead| lead.renew(term, now_ms, ttl_ms)),
            LeadIn::Disk(journal) => journal.lead(LeadChange::Renew { term, now_ms, ttl_ms }).map(|_| ()),
        }
    }

    /// Gives the lead back: another may acquire at once and `term` may no longer append. A term that is over already is
    /// no error.
    ///
    /// # Errors
    /// When the back-end fails.
    pub fn release(&self, term: Term) -> Result<(), LeadError> {
        match &self.0 {
            LeadIn::Memory(journal) => {
                journal.lead(|lead| lead.release(term));
                Ok(())
            }
            LeadIn::Disk(journal) => journal.lead(LeadChange::Release { term }).map(|_| ()),
        }
    }
}

/// Files known by the BLAKE3 of their bytes. A blob is there whole or not at all.
#[derive(Debug, Clone)]
pub struct Blobs(BlobsIn);

#[derive(Debug, Clone)]
enum BlobsIn {
    Files(Arc<BlobFiles>),
    Memory(Arc<MemoryBlobs>),
}

impl Blobs {
    /// Stores `bytes`, which must hash to `hash`. Stored already: checked and done.
    ///
    /// # Errors
    /// [`PutError::Mismatch`], [`PutError::Full`].
    pub fn put(&self, hash: BlobHash, bytes: &[u8]) -> Result<(), PutError> {
        match &self.0 {
            BlobsIn::Files(blobs) => blobs.put(hash, bytes),
            BlobsIn::Memory(blobs) => blobs.put(hash, bytes),
        }
    }

    /// Begins a blob of exactly `size_bytes` that comes in pieces. Its space is promised at once, so that an upload
    /// fails at its beginning; a writer that is dropped gives it back.
    ///
    /// # Errors
    /// [`PutError::Full`].
    pub fn begin(&self, size_bytes: u64) -> Result<BlobWriter, PutError> {
        match &self.0 {
            BlobsIn::Files(blobs) => Ok(BlobWriter(BlobWriterIn::Files(blobs.clone().begin(size_bytes)?))),
            BlobsIn::Memory(blobs) => Ok(BlobWriter(BlobWriterIn::Memory(blobs.clone().begin(size_bytes)?))),
        }
    }

    /// At most `max` bytes from `offset` on, never more than [`crate::limits::READ_BYTES_MAX`]; empty at or beyond the
    /// end. `None`: there is no such blob.
    ///
    /// # Errors
    /// When the back-end fails.
    pub fn get(&self, hash: BlobHash, offset: u64, max: usize) -> Result<Option<Vec<u8>>, BlobReadError> {
        match &self.0 {
            BlobsIn::Files(blobs) => blobs.get(hash, offset, max),
            BlobsIn::Memory(blobs) => Ok(blobs.get(hash, offset, max)),
        }
    }

    /// Its length in bytes. `None`: there is no such blob.
    pub fn size(&self, hash: BlobHash) -> Option<u64> {
        match &self.0 {
            BlobsIn::Files(blobs) => blobs.size(hash),
            BlobsIn::Memory(blobs) => blobs.size(hash),
        }
    }

    /// Those of `hashes` that are not there, in the same order, each once.
    pub fn missing(&self, hashes: &[BlobHash]) -> Vec<BlobHash> {
        match &self.0 {
            BlobsIn::Files(blobs) => blobs.missing(hashes),
            BlobsIn::Memory(blobs) => blobs.missing(hashes),
        }
    }

    /// Every blob that is there, in no order. Walks over all of them: for a start, on a thread that may wait.
    ///
    /// # Errors
    /// When the back-end fails.
    pub fn all(&self) -> std::io::Result<Vec<BlobHash>> {
        match &self.0 {
            BlobsIn::Files(blobs) => blobs.all(),
            BlobsIn::Memory(blobs) => Ok(blobs.all()),
        }
    }

    /// Removes a blob; says whether it was there. A read that has begun still ends well.
    ///
    /// # Errors
    /// When the back-end fails.
    pub fn remove(&self, hash: BlobHash) -> Result<bool, BlobRemoveError> {
        match &self.0 {
            BlobsIn::Files(blobs) => blobs.remove(hash),
            BlobsIn::Memory(blobs) => Ok(blobs.remove(hash)),
        }
    }

    /// Bytes of all blobs, those being written counted with their whole size.
    pub fn used_bytes(&self) -> u64 {
        match &self.0 {
            BlobsIn::Files(blobs) => blobs.used_bytes(),
            BlobsIn::Memory(blobs) => blobs.used_bytes(),
        }
    }
}

/// A blob on its way in. Nobody sees it before [`BlobWriter::finish`]; dropped before, it leaves nothing.
#[derive(Debug)]
pub struct BlobWriter(BlobWriterIn);

#[derive(Debug)]
enum BlobWriterIn {
    Files(BlobFileWriter),
    Memory(MemoryBlobWriter),
}

impl BlobWriter {
    /// Adds the next bytes.
    ///
    /// # Errors
    /// [`PutError::WrongSize`] when they are more than announced; none of them is taken.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), PutError> {
        match &mut self.0 {
            BlobWriterIn::Files(writer) => writer.write(bytes),
            BlobWriterIn::Memory(writer) => writer.write(bytes),
        }
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        match &self.0 {
            BlobWriterIn::Files(writer) => writer.written(),
            BlobWriterIn::Memory(writer) => writer.written(),
        }
    }

    /// Ends the blob and makes it visible.
    ///
    /// # Errors
    /// [`PutError::WrongSize`] when bytes are missing, [`PutError::Mismatch`].
    pub fn finish(self, expected: BlobHash) -> Result<(), PutError> {
        match self.0 {
            BlobWriterIn::Files(writer) => writer.finish(expected),
            BlobWriterIn::Memory(writer) => writer.finish(expected),
        }
    }
}

/// Bytes of an output.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chunk {
    /// Where the first byte stands in its stream: what was asked for, or more when `dropped`.
    pub offset: u64,
    /// The bytes; empty when there are none from `offset` on (yet).
    pub bytes: Vec<u8>,
    /// Were bytes between the offset asked for and `offset` dropped by retention?
    pub dropped: bool,
}

/// How long an attempt's streams are, dropped bytes included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lengths {
    /// Bytes of standard output.
    pub stdout: u64,
    /// Bytes of standard error.
    pub stderr: u64,
}

/// How soon [`Outputs::settle`] must have happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settle {
    /// Within about a second, so that small pieces gather.
    Soon,
    /// With the next group of writes: somebody waits.
    Now,
}

/// What hears that output is durable and how far, exactly once: on the caller's thread or on one of the back-end's. It
/// must not block; it may call the store.
pub type Settled = Box<dyn FnOnce(Result<Lengths, OutputError>) + Send>;

/// The whole output of an attempt that printed little.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Small {
    /// All of standard output.
    pub stdout: Vec<u8>,
    /// All of standard error.
    pub stderr: Vec<u8>,
}

/// What programs printed, by attempt, stream and offset. Calls on different attempts do not wait for each other.
#[derive(Debug, Clone)]
pub struct Outputs(OutputsIn);

#[derive(Debug, Clone)]
enum OutputsIn {
    Packed(Arc<Packed>),
    Spool(Arc<Spool>),
}

impl Outputs {
    /// Adds `bytes` that stand at `offset`; those that are there already are skipped without a look, so a resend does
    /// no harm. Returns the stream's new length. All of them are stored or none. They can be read at once, but they are
    /// not durable before [`Outputs::settle`] said so.
    ///
    /// # Errors
    /// [`OutputError::Gap`] when `offset` is beyond the length; the limits.
    pub fn append(&self, attempt: AttemptId, stream: Stream, offset: u64, bytes: &[u8]) -> Result<u64, OutputError> {
        match &self.0 {
            OutputsIn::Packed(packed) => packed.append(attempt, stream, offset, bytes),
            OutputsIn::Spool(spool) => spool.append(attempt, stream, offset, bytes),
        }
    }

    /// At most `max` bytes from `offset` on, never more than [`crate::limits::READ_BYTES_MAX`]. An attempt that nobody
    /// knows, or that was dropped whole, is an empty output: the record of its end tells the two apart. Bytes in front of
    /// damage are given without it.
    ///
    /// # Errors
    /// [`OutputReadError::Corrupt`] when the first byte is damaged, with where to go on; when the back-end fails.
    pub fn read(&self, attempt: AttemptId, stream: Stream, offset: u64, max: usize) -> Result<Chunk, OutputReadError> {
        match &self.0 {
            OutputsIn::Packed(packed) => packed.read(attempt, stream, offset, max),
            OutputsIn::Spool(spool) => spool.read(attempt, stream, offset, max),
        }
    }

    /// How long its streams are; zero when it is not known.
    pub fn lengths(&self, attempt: AttemptId) -> Lengths {
        match &self.0 {
            OutputsIn::Packed(packed) => packed.lengths(attempt),
            OutputsIn::Spool(spool) => spool.lengths(attempt),
        }
    }

    /// Makes durable what was appended to the attempt before this call, then calls `done` with its durable lengths. The
    /// calls of one attempt are answered in their order. After an error the bytes are still there: settle again.
    pub fn settle(&self, attempt: AttemptId, when: Settle, done: Settled) {
        match &self.0 {
            OutputsIn::Packed(packed) => packed.settle(attempt, when, done),
            // Nothing lasts longer than the process here, so everything lasts as long as it can.
            OutputsIn::Spool(spool) => match when {
                Settle::Soon | Settle::Now => done(Ok(spool.lengths(attempt))),
            },
        }
    }

    /// How far its streams are durable; zero when it is not known.
    pub fn durable(&self, attempt: AttemptId) -> Lengths {
        match &self.0 {
            OutputsIn::Packed(packed) => packed.durable(attempt),
            OutputsIn::Spool(spool) => spool.lengths(attempt),
        }
    }

    /// The whole output of an attempt that has ended, if both streams together have at most
    /// [`crate::limits::SMALL_BYTES_MAX`] bytes and none of them was dropped or written to the disk: it can travel with
    /// the record of the end. Empty for an attempt that nobody knows: it printed nothing. Until [`Outputs::release`] the
    /// store goes on holding it, and does not hurry to write it to the disk.
    pub fn small(&self, attempt: AttemptId) -> Option<Small> {
        match &self.0 {
            OutputsIn::Packed(packed) => packed.small(attempt),
            OutputsIn::Spool(spool) => spool.small(attempt),
        }
    }

    /// Forgets an output that [`Outputs::small`] gave: it is durable elsewhere. Nothing happens to an output that was
    /// not given, or that has grown since.
    pub fn release(&self, attempt: AttemptId) {
        match &self.0 {
            OutputsIn::Packed(packed) => packed.release(attempt),
            OutputsIn::Spool(spool) => spool.release(attempt),
        }
    }

    /// Drops the bytes of one stream below `below` (at most its length) and goes on holding the rest.
    pub fn drop_below(&self, attempt: AttemptId, stream: Stream, below: u64) {
        match &self.0 {
            OutputsIn::Packed(packed) => packed.drop_below(attempt, stream, below),
            OutputsIn::Spool(spool) => spool.drop_below(attempt, stream, below),
        }
    }

    /// Drops an attempt's output whole.
    pub fn drop_attempt(&self, attempt: AttemptId) {
        match &self.0 {
            OutputsIn::Packed(packed) => packed.drop_attempt(attempt),
            OutputsIn::Spool(spool) => spool.drop_attempt(attempt),
        }
    }

    /// Drops the output of all attempts of a job.
    pub fn drop_job(&self, job: JobId) {
        match &self.0 {
            OutputsIn::Packed(packed) => packed.drop_job(job),
            OutputsIn::Spool(spool) => spool.drop_job(job),
        }
    }

    /// Drops what a state does not know that is older than the outputs: all of jobs after `last`, and of the task of each
    /// of `newest` the attempts after it. Numbers that are given again find nothing in their place. Says how many attempts
    /// went; costs what goes and what is named, not what stays.
    ///
    /// # Errors
    /// When the back-end fails; some may be gone then.
    pub fn drop_unknown(&self, last: JobId, newest: &[AttemptId]) -> Result<usize, OutputError> {
        match &self.0 {
            OutputsIn::Packed(packed) => packed.drop_unknown(last, newest),
            OutputsIn::Spool(spool) => Ok(spool.drop_unknown(last, newest)),
        }
    }

    /// Drops the oldest bytes until at most `keep_bytes` are held; a back-end may drop somewhat more. Says whose bytes
    /// went, each job once. Lengths stay, and a read below what is kept says that it was dropped.
    pub fn drop_oldest(&self, keep_bytes: u64) -> Vec<JobId> {
        match &self.0 {
            OutputsIn::Packed(packed) => packed.drop_oldest(keep_bytes),
            OutputsIn::Spool(spool) => spool.drop_oldest(keep_bytes),
        }
    }

    /// Bytes that are held, of all attempts together.
    pub fn used_bytes(&self) -> u64 {
        match &self.0 {
            OutputsIn::Packed(packed) => packed.used_bytes(),
            OutputsIn::Spool(spool) => spool.used_bytes(),
        }
    }
}

/// All attempts of a job.
pub(crate) fn of_job(job: JobId) -> RangeInclusive<AttemptId> {
    AttemptId { job, task: TaskId(0), attempt: 0 }..=AttemptId { job, task: TaskId(u32::MAX), attempt: u32::MAX }
}

/// What [`Outputs::drop_unknown`] drops.
pub(crate) fn unknown(last: JobId, newest: &[AttemptId]) -> impl Iterator<Item = RangeInclusive<AttemptId>> {
    let end = AttemptId { job: JobId(u64::MAX), task: TaskId(u32::MAX), attempt: u32::MAX };
    let of_jobs = last.0.checked_add(1).map(|next| AttemptId { job: JobId(next), task: TaskId(0), attempt: 0 }..=end);
    let of_task = |known: &AttemptId| {
        let next = known.attempt.checked_add(1)?;
        Some(AttemptId { attempt: next, ..*known }..=AttemptId { attempt: u32::MAX, ..*known })
    };
    of_jobs.into_iter().chain(newest.iter().filter_map(of_task))
}
