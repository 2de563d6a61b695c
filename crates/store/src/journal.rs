//! The durable journal and its lead: one database, one thread that writes, readers beside it.
//!
//! [`crate::port`] calls it from any thread. An append is put into a queue; the writer (`writer`) takes all that waits
//! into one commit, and tells the ends. Readers have connections of their own.
//!
//! ```text
//! append ─┐                 ┌─ commit (append, append, lead, …) ─ mark ─ done, done …
//! lead ───┼─ queue ─ writer ┤
//! snapshot┤                 └─ then one small step of a snapshot, of a trim or of sweeping ─ and again
//! trim ───┘
//! ```
//!
//! Always true: `done`s come in the order of the appends, from the writer's thread, with no lock held; a snapshot and a
//! trim are done in steps, between which appends go on. How much is under way is for the caller to bound.
//! Deliberately not here: the rules (`rules`), the tables (`table`).

pub(crate) mod mark;
pub(crate) mod table;
mod writer;

use crate::error::{AppendError, Cause, LeadError, NoRoom, OpenError, ReadError, SnapshotError, TrimError};
use crate::folder::{self, FolderLock};
use crate::limits::{READ_BATCHES_MAX, StoreLimits};
use crate::port::{Done, Seq, Term};
use crate::rules;
use crate::sqlite::{self, Fault, Readers};
use mark::Mark;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use table::Found;
pub(crate) use writer::LeadChange;
use writer::{Append, Chore, LeadCall, Request, Shared, Writer};

/// See [`crate::port::Journal`] and [`crate::port::Lead`].
pub(crate) struct DiskJournal {
    folder: PathBuf,
    limits: StoreLimits,
    shared: Arc<Shared>,
    readers: Readers,
    writer: Option<JoinHandle<()>>,
}

/// Why a call that waits for the writer got no answer from it.
#[derive(Debug, Clone, Copy, thiserror::Error)]
enum NoAnswer {
    #[error("the journal's writer has ended: open the store again")]
    Ended,
    #[error("this call waits for the journal's writer, and was made on its thread: make it from another one")]
    OnItsThread,
}

impl DiskJournal {
    /// Opens the journal in a store's folder, which `lock` says is ours.
    pub(crate) fn open(folder: &Path, limits: StoreLimits, lock: Arc<FolderLock>) -> Result<DiskJournal, OpenError> {
        let path = folder.join(table::SCHEMA.file);
        let connection = sqlite::open(folder, &table::SCHEMA)?;
        // The writer copies the log back itself, between two commits.
        let ask = || {
            connection.pragma_update(None, "wal_autocheckpoint", 0)?;
            let (base, last) = (table::base(&connection)?, table::last(&connection)?);
            let snapshot = table::head(&connection)?.map_or(Seq(0), |head| head.at);
            Ok((last, snapshot, table::bytes_between(&connection, base, last)?))
        };
        let (last, snapshot, kept) = ask().map_err(|error| sqlite::open_error(&path, error))?;
        let (mark, marked) = Mark::open(folder)?;
        let confirmed = marked.max(snapshot);
        if last < confirmed {
            return Err(OpenError::Cut { folder: folder.to_owned(), last, confirmed });
        }
        let shared = Arc::new(Shared::new(last, kept));
        let writer = Writer::new(connection, path.clone(), limits, shared.clone(), mark);
        let run = move || {
            writer.run();
            // Only now, when the database is closed, may another process open the folder.
            drop(lock);
        };
        let thread = std::thread::Builder::new().name("store-journal".to_owned()).spawn(run);
        let writer = Some(thread.map_err(|source| folder::file_error(&path, source))?);
        Ok(DiskJournal { folder: folder.to_owned(), limits, shared, readers: Readers::new(path), writer })
    }

    pub(crate) fn append(&self, expected: Seq, term: Term, batch: Vec<u8>, done: Done) {
        let refused = self.shared.push(Request::Append(Append { expected, term, batch, done }));
        if let Err(Request::Append(append)) = refused {
            (append.done)(Err(AppendError::Io(NoAnswer::Ended.into())));
        }
    }

    pub(crate) fn room(&self) -> Result<(), AppendError> {
        rules::judge_room(self.shared.kept.load(Ordering::Acquire), self.limits.journal_bytes)?;
        let free = folder::free_bytes(&self.folder).map_err(|error| AppendError::Io(error.into()))?;
        let reserve = self.limits.reserve_bytes;
        if free < reserve { Err(AppendError::Full(NoRoom::Disk { free, reserve })) } else { Ok(()) }
    }

    pub(crate) fn read(&self, from: Seq, max_bytes: usize) -> Result<Vec<(Seq, Vec<u8>)>, ReadError> {
        // A database's numbers are signed; nothing is beyond them.
        let from = from.clamp(Seq(1), Seq(i64::MAX as u64));
        let read = self.readers.with(|connection| {
            let first = table::base(connection)?.next();
            if from < first {
                return Err(Reading::No(ReadError::Trimmed { from, first }));
            }
            let mut found = Vec::new();
            let mut bytes = 0;
            let mut damaged = None;
            table::batches(connection, from, |seq, batch| {
                let Found::Batch(batch) = batch else {
                    damaged = Some(seq);
                    return false;
                };
                bytes += batch.len();
                if bytes > max_bytes && !found.is_empty() {
                    return false;
                }
                found.push((seq, batch));
                found.len() < READ_BATCHES_MAX
            })?;
            match damaged {
                // Those in front of it are whole: the next read begins with it and says so.
                Some(seq) if found.is_empty() => Err(Reading::No(damaged_at(seq, WRONG_SUM))),
                _ => Ok(found),
            }
        });
        read.map_err(|error| self.read_error(error, from))
    }

    pub(crate) fn last(&self) -> Seq {
        Seq(self.shared.last.load(Ordering::Acquire))
    }

    pub(crate) fn snapshot(&self, at: Seq, bytes: Vec<u8>) -> Result<(), SnapshotError> {
        let limit = self.limits.snapshot_bytes;
        if bytes.len() as u64 > limit {
            return Err(SnapshotError::TooLarge { bytes: bytes.len() as u64, limit });
        }
        self.ask(|reply| Request::Chore(Chore::Snapshot { at, bytes, reply }))
            .unwrap_or_else(|error| Err(SnapshotError::Io(error.into())))
    }

    pub(crate) fn latest_snapshot(&self) -> Result<Option<(Seq, Vec<u8>)>, ReadError> {
        let read = self.readers.with(|connection| {
            let Some(head) = table::head(connection)? else { return Ok(None) };
            match table::snapshot(connection, head)? {
                Some(bytes) => Ok(Some((head.at, bytes))),
                None => Err(Reading::No(damaged_at(head.at, WRONG_SNAPSHOT))),
            }
        });
        read.map_err(|error| self.read_error(error, Seq(0)))
    }

    pub(crate) fn trim(&self, below: Seq) -> Result<(), TrimError> {
        self.ask(|reply| Request::Chore(Chore::Trim { below, reply }))
            .unwrap_or_else(|error| Err(TrimError::Io(error.into())))
    }

    pub(crate) fn lead(&self, change: LeadChange) -> Result<Term, LeadError> {
        self.ask(|reply| Request::Lead(LeadCall { change, reply }))
            .unwrap_or_else(|error| Err(LeadError::Io(error.into())))
    }

    /// Puts a request into the queue and waits for the writer's answer.
    fn ask<T>(&self, request: impl FnOnce(mpsc::Sender<T>) -> Request) -> Result<T, NoAnswer> {
        if self.is_on_its_thread() {
            return Err(NoAnswer::OnItsThread);
        }
        let (reply, answer) = mpsc::channel();
        self.shared.push(request(reply)).map_err(|_| NoAnswer::Ended)?;
        answer.recv().map_err(|_| NoAnswer::Ended)
    }

    fn is_on_its_thread(&self) -> bool {
        self.writer.as_ref().is_some_and(|writer| writer.thread().id() == std::thread::current().id())
    }

    fn read_error(&self, error: Reading, from: Seq) -> ReadError {
        match error {
            Reading::No(error) => error,
            Reading::Database(error) => match sqlite::fault(&error, &self.folder.join(table::SCHEMA.file)) {
                Fault::Corrupt => ReadError::Corrupt { seq: from, source: error.into() },
                _ => ReadError::Io(error.into()),
            },
        }
    }
}

const WRONG_SUM: &str = "its row is missing, or its bytes are not those that were written";
const WRONG_SNAPSHOT: &str = "the snapshot's bytes are not those that were written";

fn damaged_at(seq: Seq, what: &str) -> ReadError {
    ReadError::Corrupt { seq, source: Cause::from(what) }
}

/// A read that ended early.
enum Reading {
    Database(rusqlite::Error),
    No(ReadError),
}

impl From<rusqlite::Error> for Reading {
    fn from(error: rusqlite::Error) -> Reading {
        Reading::Database(error)
    }
}

impl Drop for DiskJournal {
    /// What was appended before is written and told first.
    fn drop(&mut self) {
        self.readers.close();
        self.shared.close();
        // The last handle may go inside of a `done`: then the writer ends by itself, a moment later.
        if !self.is_on_its_thread()
            && let Some(writer) = self.writer.take()
        {
            writer.join().ok();
        }
    }
}

impl fmt::Debug for DiskJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskJournal").field("folder", &self.folder).field("last", &self.last()).finish_non_exhaustive()
    }
}
