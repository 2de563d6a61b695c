//! The journal's one writer: group commit, the lead, and slow chores in small steps between commits.
//!
//! [`super::DiskJournal`] starts it on its own thread and hands it requests through a queue. Always true: an append is
//! judged by the end and the term that are in the database, inside of the transaction that inserts it; a group is
//! committed whole or not at all; ends are told after the commit, in order, with no lock held and no transaction open.
//! Deliberately not here: the rules (`rules`), the tables (`table`), reading.

use super::mark::Mark;
use super::table;
use crate::error::{AppendError, Cause, LeadError, NoRoom, SnapshotError, TrimError};
use crate::folder;
use crate::limits::{CHECKPOINT_BYTES, GROUP_BYTES_MAX, PIECE_BYTES, SWEEP_BYTES, StoreLimits, WAL_BYTES_KEPT};
use crate::port::{Done, Seq, Term};
use crate::rules::{self, LeadState};
use crate::sqlite::{self, Fault};
use rusqlite::{Connection, TransactionBehavior};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What the writer is asked.
pub(super) enum Request {
    Append(Append),
    Lead(LeadCall),
    Chore(Chore),
}

pub(super) struct Append {
    pub(super) expected: Seq,
    pub(super) term: Term,
    pub(super) batch: Vec<u8>,
    pub(super) done: Done,
}

pub(super) struct LeadCall {
    pub(super) change: LeadChange,
    pub(super) reply: Sender<Result<Term, LeadError>>,
}

/// A change of the lead; see [`crate::port::Lead`].
pub(crate) enum LeadChange {
    Acquire { holder: String, now_ms: u64, ttl_ms: u64 },
    Renew { term: Term, now_ms: u64, ttl_ms: u64 },
    Release { term: Term },
}

impl LeadChange {
    fn apply(&self, lead: &mut LeadState) -> Result<Term, LeadError> {
        match self {
            LeadChange::Acquire { holder, now_ms, ttl_ms } => lead.acquire(holder, *now_ms, *ttl_ms),
            LeadChange::Renew { term, now_ms, ttl_ms } => lead.renew(*term, *now_ms, *ttl_ms).map(|()| *term),
            LeadChange::Release { term } => {
                lead.release(*term);
                Ok(*term)
            }
        }
    }
}

/// Work that is done beside the commits.
pub(super) enum Chore {
    Snapshot { at: Seq, bytes: Vec<u8>, reply: Sender<Result<(), SnapshotError>> },
    Trim { below: Seq, reply: Sender<Result<(), TrimError>> },
}

/// What the callers and the writer share.
pub(super) struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    pub(super) last: AtomicU64,
    /// Bytes of the batches that were not trimmed.
    pub(super) kept: AtomicU64,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Request>,
    closed: bool,
}

impl Shared {
    pub(super) fn new(last: Seq, kept: u64) -> Shared {
        Shared { queue: Mutex::default(), wake: Condvar::new(), last: last.0.into(), kept: kept.into() }
    }

    /// Gives the request back when the writer has ended.
    pub(super) fn push(&self, request: Request) -> Result<(), Request> {
        let mut queue = self.lock();
        if queue.closed {
            return Err(request);
        }
        queue.waiting.push_back(request);
        drop(queue);
        self.wake.notify_one();
        Ok(())
    }

    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What waits, as much as one commit takes. `None`: closed, and nothing waits any more. Waits for something only
    /// when `patient`.
    fn take(&self, patient: bool) -> Option<Vec<Request>> {
        let mut queue = self.lock();
        while queue.waiting.is_empty() {
            if queue.closed {
                return None;
            }
            if !patient {
                break;
            }
            queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        let mut bytes = 0;
        let mut group = Vec::new();
        while bytes < GROUP_BYTES_MAX
            && let Some(request) = queue.waiting.pop_front()
        {
            if let Request::Append(append) = &request {
                bytes += append.batch.len();
            }
            group.push(request);
        }
        Some(group)
    }
}

/// However the writer ends, nobody waits for it in vain.
struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        let mut queue = self.0.lock();
        queue.closed = true;
        let left = std::mem::take(&mut queue.waiting);
        drop(queue);
        for request in left {
            // Those who wait for an answer see that nobody can give it any more.
            if let Request::Append(append) = request {
                (append.done)(Err(AppendError::Io(super::NoAnswer::Ended.into())));
            }
        }
    }
}

pub(super) struct Writer {
    connection: Connection,
    path: PathBuf,
    limits: StoreLimits,
    shared: Arc<Shared>,
    mark: Mark,
    chores: VecDeque<Chore>,
    /// The snapshot that is being written.
    saving: Option<Saving>,
    /// May there be rows that count no more?
    to_sweep: bool,
    /// Bytes written since the log was copied back.
    unchecked: u64,
}

struct Saving {
    at: Seq,
    bytes: Vec<u8>,
    generation: i64,
    pieces: i64,
    reply: Sender<Result<(), SnapshotError>>,
}

/// What a write of a group came to.
enum End {
    Append(Result<Seq, AppendError>),
    Lead(Result<Term, LeadError>),
}

/// A write of a group.
enum Write {
    Append(Append),
    Lead(LeadCall),
}

impl Writer {
    pub(super) fn new(
        connection: Connection,
        path: PathBuf,
        limits: StoreLimits,
        shared: Arc<Shared>,
        mark: Mark,
    ) -> Writer {
        let chores = VecDeque::new();
        Writer { connection, path, limits, shared, mark, chores, saving: None, to_sweep: true, unchecked: 0 }
    }

    pub(super) fn run(mut self) {
        let _ending = Ending(self.shared.clone());
        loop {
            let patient = self.saving.is_none() && self.chores.is_empty() && !self.to_sweep;
            let Some(group) = self.shared.take(patient) else { return };
            let mut writes = Vec::new();
            for request in group {
                match request {
                    Request::Append(append) => writes.push(Write::Append(append)),
                    Request::Lead(call) => writes.push(Write::Lead(call)),
                    Request::Chore(chore) => self.chores.push_back(chore),
                }
            }
            if !writes.is_empty() {
                self.group(writes);
            }
            self.step();
            if self.unchecked >= CHECKPOINT_BYTES {
                self.checkpoint();
            }
        }
    }

    /// Commits a group and tells its ends.
    fn group(&mut self, writes: Vec<Write>) {
        let kept = self.shared.kept.load(Ordering::Acquire);
        let ends = match self.try_group(&writes, kept) {
            Ok((ends, last, added)) => {
                self.unchecked += added + COMMIT_BYTES;
                self.shared.kept.store(kept + added, Ordering::Release);
                if last.0 != self.shared.last.swap(last.0, Ordering::AcqRel) {
                    self.mark.set(last);
                }
                ends
            }
            Err(error) => self.failed_ends(&writes, kept, &error),
        };
        for (write, end) in writes.into_iter().zip(ends) {
            match (write, end) {
                // A caller that panics must not end the writer of all others; its panic was reported as such.
                (Write::Append(append), End::Append(end)) => {
                    catch_unwind(AssertUnwindSafe(move || (append.done)(end))).ok();
                }
                (Write::Lead(call), End::Lead(end)) => _ = call.reply.send(end),
                _ => unreachable!("an end is made from its write"),
            }
        }
    }

    fn try_group(&mut self, writes: &[Write], kept: u64) -> rusqlite::Result<(Vec<End>, Seq, u64)> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut last = table::last(&transaction)?;
        let before = table::lead(&transaction)?;
        let mut lead = before.clone();
        let mut added = 0;
        let mut ends = Vec::with_capacity(writes.len());
        for write in writes {
            ends.push(match write {
                Write::Lead(call) => End::Lead(call.change.apply(&mut lead)),
                Write::Append(append) => {
                    let room = (kept + added, self.limits.journal_bytes);
                    let judged = rules::judge_append(last, &lead, room, append.asked());
                    if let Ok(seq) = judged {
                        table::insert(&transaction, seq, append.term, &append.batch)?;
                        added += append.batch.len() as u64;
                        last = seq;
                    }
                    End::Append(judged)
                }
            });
        }
        if lead != before {
            table::set_lead(&transaction, &lead)?;
        }
        transaction.commit()?;
        Ok((ends, last, added))
    }

    /// Nothing of the group is there: each is judged by what is, and one that would have been appended hears why not.
    fn failed_ends(&self, writes: &[Write], kept: u64, error: &rusqlite::Error) -> Vec<End> {
        let fault = sqlite::fault(error, &self.path);
        let last = Seq(self.shared.last.load(Ordering::Acquire));
        // If even that cannot be read, the judgement is left out: everybody hears the failure itself.
        let lead = table::lead(&self.connection).ok();
        let room = (kept, self.limits.journal_bytes);
        let end_of = |write: &Write| match write {
            Write::Lead(_) => End::Lead(Err(LeadError::Io(cause(error)))),
            Write::Append(append) => {
                let judged = lead.as_ref().map(|lead| rules::judge_append(last, lead, room, append.asked()));
                End::Append(Err(match judged {
                    Some(Err(refusal)) => refusal,
                    Some(Ok(_)) | None => self.append_error(fault, error),
                }))
            }
        };
        writes.iter().map(end_of).collect()
    }

    fn append_error(&self, fault: Fault, error: &rusqlite::Error) -> AppendError {
        match fault {
            Fault::Full => AppendError::Full(self.no_room()),
            Fault::ReadOnly => AppendError::ReadOnly(cause(error)),
            Fault::Corrupt => AppendError::Corrupt(cause(error)),
            Fault::Other => AppendError::Io(cause(error)),
        }
    }

    fn no_room(&self) -> NoRoom {
        NoRoom::Disk { free: folder::free_bytes(&self.path).unwrap_or(0), reserve: self.limits.reserve_bytes }
    }

    /// One small step of what is to be done beside the commits.
    fn step(&mut self) {
        if let Some(saving) = self.saving.take() {
            self.save_some(saving);
        } else if let Some(chore) = self.chores.pop_front() {
            match chore {
                Chore::Snapshot { at, bytes, reply } => self.begin_snapshot(at, bytes, reply),
                Chore::Trim { below, reply } => {
                    let trimmed = self.trim(below);
                    reply.send(trimmed).ok();
                }
            }
        } else if self.to_sweep {
            // What cannot be swept now is swept after the next chore, or when the store is opened again.
            self.to_sweep = self.sweep().unwrap_or(false);
        }
    }

    fn begin_snapshot(&mut self, at: Seq, bytes: Vec<u8>, reply: Sender<Result<(), SnapshotError>>) {
        let generation = self
            .judge_snapshot(at)
            .and_then(|()| table::new_generation(&self.connection).map_err(|error| self.snapshot_error(&error)));
        match generation {
            Ok(generation) => self.saving = Some(Saving { at, bytes, generation, pieces: 0, reply }),
            Err(error) => _ = reply.send(Err(error)),
        }
    }

    fn judge_snapshot(&self, at: Seq) -> Result<(), SnapshotError> {
        let last = Seq(self.shared.last.load(Ordering::Acquire));
        if at > last {
            return Err(SnapshotError::Ahead { at, last });
        }
        match table::head(&self.connection).map_err(|error| self.snapshot_error(&error))? {
            Some(head) if at < head.at => Err(SnapshotError::Older { at, latest: head.at }),
            _ => Ok(()),
        }
    }

    /// Writes the next piece; with the last one, the snapshot is there.
    fn save_some(&mut self, mut saving: Saving) {
        let written = self.write_piece(&saving);
        self.unchecked += PIECE_BYTES as u64;
        match written {
            Ok(false) => {
                saving.pieces += 1;
                self.saving = Some(saving);
                return;
            }
            Ok(true) => _ = saving.reply.send(Ok(())),
            Err(error) => _ = saving.reply.send(Err(self.snapshot_error(&error))),
        }
        // The one before, or the pieces of the one that failed.
        self.to_sweep = true;
    }

    fn write_piece(&mut self, saving: &Saving) -> rusqlite::Result<bool> {
        let begin = saving.pieces as usize * PIECE_BYTES;
        let end = (begin + PIECE_BYTES).min(saving.bytes.len());
        let is_last = end == saving.bytes.len();
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        table::insert_piece(&transaction, saving.generation, saving.pieces, &saving.bytes[begin..end])?;
        if is_last {
            table::set_head(&transaction, saving.generation, saving.at, saving.pieces + 1)?;
        }
        transaction.commit()?;
        Ok(is_last)
    }

    fn snapshot_error(&self, error: &rusqlite::Error) -> SnapshotError {
        match sqlite::fault(error, &self.path) {
            Fault::Full => SnapshotError::Full(self.no_room()),
            _ => SnapshotError::Io(cause(error)),
        }
    }

    fn trim(&mut self, below: Seq) -> Result<(), TrimError> {
        let mut freed = 0;
        let mut refused = None;
        let mut attempt = || {
            let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let base = table::base(&transaction)?;
            let snapshot = table::head(&transaction)?.map_or(Seq(0), |head| head.at);
            if below > snapshot.next() {
                refused = Some(TrimError::BeyondSnapshot { below, snapshot });
            } else if below > base.next() {
                let to = Seq(below.0 - 1);
                freed = table::bytes_between(&transaction, base, to)?;
                table::set_base(&transaction, to)?;
            }
            transaction.commit()
        };
        attempt().map_err(|error| TrimError::Io(cause(&error)))?;
        self.shared.kept.fetch_sub(freed, Ordering::AcqRel);
        self.to_sweep = true;
        refused.map_or(Ok(()), Err)
    }

    fn sweep(&mut self) -> rusqlite::Result<bool> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let more = table::sweep(&transaction, SWEEP_BYTES)?;
        transaction.commit()?;
        self.unchecked += COMMIT_BYTES;
        Ok(more)
    }

    /// Copies the log back into the database, as far as readers let. When they have kept it from being used again for
    /// long, it is cut; a reader that is still there is not waited for.
    fn checkpoint(&mut self) {
        self.unchecked = 0;
        let checkpoint = |how: &str| {
            self.connection.query_row(&format!("PRAGMA wal_checkpoint({how})"), [], |row| row.get::<_, i64>(1))
        };
        // A log that could not be copied back is whole all the same: the next one tries again.
        let Ok(pages) = checkpoint("PASSIVE") else { return };
        if pages.unsigned_abs() * PAGE_BYTES > u64::from(WAL_BYTES_KEPT)
            && self.connection.busy_timeout(Duration::ZERO).is_ok()
        {
            checkpoint("TRUNCATE").ok();
            self.connection.busy_timeout(crate::limits::BUSY_TIMEOUT).ok();
        }
    }
}

impl Append {
    fn asked(&self) -> (Seq, Term, usize) {
        (self.expected, self.term, self.batch.len())
    }
}

fn cause(error: &rusqlite::Error) -> Cause {
    Cause::from(error.to_string())
}

/// About what a commit writes beside its bytes: a few pages.
const COMMIT_BYTES: u64 = 2 * PAGE_BYTES;

/// A page of the database.
const PAGE_BYTES: u64 = 4096;
