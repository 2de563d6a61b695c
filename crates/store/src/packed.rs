//! Outputs on disk: bytes of many streams packed into segments, and an index by offset.
//!
//! [`crate::port`] calls it from any thread. The way of a byte:
//!
//! ```text
//! append ─▶ tail in memory (`attempt`) ─▶ `writer`, one thread, for all that are due:
//!                                           1. their bytes at the end of a segment, then fdatasync   (`segments`)
//!                                           2. one transaction of rows that name them, then fsync    (`index`)
//!                                           3. the durable lengths, then who waits for them
//! ```
//!
//! In the store's folder: `outputs.db`, `outputs/NNNNNNNN.seg`. After a crash nothing is searched: a byte counts when a
//! row names it. Always true: the map of attempts holds those with bytes in memory and a bounded number of others, which
//! are loaded from the index when somebody asks; a row is changed only by who holds the writing connection, and the
//! attempt in memory says the same before it lets go. Locks are taken in this order: the writing connection, one
//! attempt, the map or the queue; a reader holds its attempt alone, so nobody unlinks what it reads.
//! Deliberately not here: when to drop (the hub decides), copies (`copies`).

pub(crate) mod attempt;
mod drops;
pub(crate) mod index;
mod queue;
pub(crate) mod segments;
mod writer;

use crate::budget::Budget;
use crate::error::{OpenError, OutputError, OutputReadError};
use crate::folder::FolderLock;
use crate::limits::{
    ATTEMPTS_IDLE_MAX, ATTEMPTS_MAX, EAGER_BYTES, EXTENT_BYTES_MAX, GATHER, HOLD, READ_BYTES_MAX, SOON, TAIL_BYTES_MAX,
    TAILS_BYTES_MAX,
};
use crate::port::{Chunk, Lengths, Settle, Settled, Small};
use attempt::{Attempt, Output};
use essaim_proto::api::Stream;
use essaim_proto::{AttemptId, JobId};
use index::{Index, LoadError};
use queue::Queue;
use segments::{ExtentError, Segments};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::JoinHandle;
use std::time::Instant;

type Found = Arc<RwLock<Attempt>>;

/// See [`crate::port::Outputs`].
pub(crate) struct Packed {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

/// What callers and the writer share.
struct Shared {
    index: Index,
    segments: Segments,
    attempts: RwLock<BTreeMap<AttemptId, Found>>,
    /// Attempts that may leave the memory, and some that may not any more.
    ring: Mutex<VecDeque<AttemptId>>,
    queue: Queue,
    used: Budget,
    tails: Budget,
    attempts_max: usize,
    idle_max: usize,
    _lock: Arc<FolderLock>,
}

impl Packed {
    /// Opens the outputs of the store in `folder`, which hold at most `limit` bytes.
    pub(crate) fn open(folder: &Path, limit: u64, lock: Arc<FolderLock>) -> Result<Packed, OpenError> {
        Packed::start(Shared::open(folder, limit, lock)?, folder)
    }

    fn start(shared: Shared, folder: &Path) -> Result<Packed, OpenError> {
        let shared = Arc::new(shared);
        let of_writer = shared.clone();
        let writer =
            std::thread::Builder::new().name("outputs".to_owned()).spawn(move || of_writer.write_until_stopped());
        let writer = writer.map_err(|error| OpenError::Io { path: folder.to_owned(), source: error.into() })?;
        Ok(Packed { shared, writer: Some(writer) })
    }

    pub(crate) fn append(&self, id: AttemptId, stream: Stream, offset: u64, bytes: &[u8]) -> Result<u64, OutputError> {
        self.shared.append(id, stream, offset, bytes)
    }

    pub(crate) fn read(
        &self,
        id: AttemptId,
        stream: Stream,
        offset: u64,
        max: usize,
    ) -> Result<Chunk, OutputReadError> {
        let read = self.shared.look(id, |attempt| {
            let output = attempt.output(stream);
            let begin = offset.max(output.kept_from);
            let end = output.length().min(begin.saturating_add(max.min(READ_BYTES_MAX) as u64));
            let bytes = self.shared.bytes(output, begin, end)?;
            Ok(Chunk { offset: begin, bytes, dropped: offset < begin })
        });
        read.map_err(|error| load_error(id, stream, offset, error))?.map_err(|(piece, error)| match error {
            ExtentError::Corrupt => {
                OutputReadError::Corrupt { attempt: id, stream, offset: piece.start, end: piece.end }
            }
            ExtentError::Io(source) => OutputReadError::Io { attempt: id, source },
        })
    }

    pub(crate) fn lengths(&self, id: AttemptId) -> Lengths {
        self.shared.look(id, Attempt::lengths).unwrap_or_default()
    }

    pub(crate) fn durable(&self, id: AttemptId) -> Lengths {
        self.shared.look(id, Attempt::durable).unwrap_or_default()
    }

    pub(crate) fn settle(&self, id: AttemptId, when: Settle, done: Settled) {
        self.shared.settle(id, when, done);
    }

    pub(crate) fn small(&self, id: AttemptId) -> Option<Small> {
        let shared = &self.shared;
        let small = shared.with(id, |attempt| {
            let small = attempt.small()?;
            attempt.given = Some(attempt.lengths());
            if attempt.unwritten() > 0 {
                shared.queue.postpone(id, attempt, Instant::now() + HOLD);
            }
            Some(small)
        });
        small.ok().flatten()
    }

    pub(crate) fn release(&self, id: AttemptId) {
        self.shared.release(id);
    }

    pub(crate) fn drop_below(&self, id: AttemptId, stream: Stream, below: u64) {
        self.shared.drop_below(id, stream, below);
    }

    pub(crate) fn drop_attempt(&self, id: AttemptId) {
        // What could not be dropped is still there, whole.
        let _ = self.shared.forget(&[id], None);
    }

    pub(crate) fn drop_job(&self, job: JobId) {
        self.shared.drop_job(job);
    }

    pub(crate) fn drop_unknown(&self, last: JobId, newest: &[AttemptId]) -> Result<usize, OutputError> {
        self.shared.drop_unknown(last, newest)
    }

    pub(crate) fn drop_oldest(&self, keep_bytes: u64) -> Vec<JobId> {
        self.shared.drop_oldest(keep_bytes)
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        self.shared.used.used()
    }
}

impl Drop for Packed {
    /// Writes what is in memory and ends the writer.
    fn drop(&mut self) {
        self.shared.queue.stop();
        let writer = self.writer.take();
        // Who is told that output is durable may hold the last handle.
        if let Some(writer) = writer.filter(|writer| writer.thread().id() != std::thread::current().id()) {
            let _ = writer.join();
        }
    }
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packed").field("used", &self.used_bytes()).finish_non_exhaustive()
    }
}

impl Shared {
    fn open(folder: &Path, limit: u64, lock: Arc<FolderLock>) -> Result<Shared, OpenError> {
        let (index, totals) = Index::open(folder)?;
        Ok(Shared {
            index,
            segments: Segments::open(folder, &totals.named)?,
            attempts: RwLock::default(),
            ring: Mutex::default(),
            queue: Queue::default(),
            used: Budget::with(limit, totals.used),
            tails: Budget::new(TAILS_BYTES_MAX),
            attempts_max: ATTEMPTS_MAX,
            idle_max: ATTEMPTS_IDLE_MAX,
            _lock: lock,
        })
    }

    fn append(&self, id: AttemptId, stream: Stream, offset: u64, bytes: &[u8]) -> Result<u64, OutputError> {
        self.check_count(id)?;
        let promised = bytes.len() as u64;
        self.take_tail_room(id, promised)?;
        let appended = self.with(id, |attempt| self.append_to(id, attempt, stream, offset, bytes));
        let appended = appended.map_err(|error| OutputError::Io { attempt: id, source: io_error(error) }).flatten();
        let taken = appended.as_ref().map_or(0, |(_, taken)| *taken);
        self.tails.give_back(promised - taken);
        appended.map(|(length, _)| length)
    }

    /// Returns the new length and how much memory the tail took.
    fn append_to(
        &self,
        id: AttemptId,
        attempt: &mut Attempt,
        stream: Stream,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(u64, u64), OutputError> {
        let output = attempt.output_mut(stream);
        let length = output.length();
        if offset > length {
            return Err(OutputError::Gap { attempt: id, stream, offset, length });
        }
        let known = usize::try_from(length - offset).unwrap_or(usize::MAX);
        let fresh = bytes.get(known..).unwrap_or_default();
        if fresh.is_empty() {
            return Ok((length, 0));
        }
        if !self.used.take(fresh.len() as u64) {
            return Err(OutputError::Full { limit: self.used.limit() });
        }
        output.tail.extend_from_slice(fresh);
        let length = output.length();
        attempt.given = None;
        let patience = match attempt.unwritten() {
            EAGER_BYTES.. => std::time::Duration::ZERO,
            unwritten if unwritten >= TAIL_BYTES_MAX as u64 => GATHER,
            _ => HOLD,
        };
        self.queue.schedule(id, attempt, Instant::now() + patience);
        Ok((length, fresh.len() as u64))
    }

    fn check_count(&self, id: AttemptId) -> Result<(), OutputError> {
        let attempts = read(&self.attempts);
        if attempts.len() < self.attempts_max || attempts.contains_key(&id) {
            return Ok(());
        }
        Err(OutputError::TooManyAttempts { limit: self.attempts_max })
    }

    /// Memory for a tail. When there is none, idle attempts leave and the writer writes whatever there is.
    fn take_tail_room(&self, id: AttemptId, bytes: u64) -> Result<(), OutputError> {
        if bytes == 0 || self.tails.take_at_last(bytes) {
            return Ok(());
        }
        loop {
            self.evict(bytes);
            if self.tails.take_at_last(bytes) {
                return Ok(());
            }
            self.queue.press().map_err(|failure| failure.error(id))?;
        }
    }

    fn settle(&self, id: AttemptId, when: Settle, done: Settled) {
        let mut done = Some(done);
        let waits = self.with(id, |attempt| {
            let Some(done) = done.take() else { return };
            attempt.wait(done);
            if !attempt.is_awaited() {
                return;
            }
            match when {
                Settle::Now => self.queue.schedule(id, attempt, Instant::now()),
                // What was given away is about to be released.
                Settle::Soon if attempt.given.is_some() && attempt.due.is_some() => {}
                Settle::Soon => self.queue.schedule(id, attempt, Instant::now() + SOON),
            }
        });
        match (waits, done) {
            (Err(error), Some(done)) => done(Err(OutputError::Io { attempt: id, source: io_error(error) })),
            _ => {
                // One that is gone was told by who took it away.
                let found = read(&self.attempts).get(&id).cloned();
                found.into_iter().for_each(|found| self.tell(id, &found));
            }
        }
    }

    fn release(&self, id: AttemptId) {
        let Some(found) = read(&self.attempts).get(&id).cloned() else { return };
        let mut attempt = write(&found);
        let lengths = attempt.lengths();
        if attempt.gone.is_some() || attempt.given != Some(lengths) {
            return;
        }
        if attempt.has_rows() {
            drop(attempt);
            let _ = self.forget(&[id], Some(lengths));
            return;
        }
        self.bury(id, &mut attempt);
        drop(attempt);
        self.take_out(id, &found);
        self.tell(id, &found);
    }

    /// Calls those who have waited long enough, in their order, without a lock.
    fn tell(&self, id: AttemptId, found: &Found) {
        let mut is_mine = false;
        loop {
            let mut attempt = write(found);
            let Some((done, end)) = attempt.next_told(id, is_mine) else {
                self.rest(id, &mut attempt);
                return;
            };
            drop(attempt);
            is_mine = true;
            done(end);
        }
    }

    /// Looks at an attempt, beside others who look.
    fn look<T>(&self, id: AttemptId, look: impl FnOnce(&Attempt) -> T) -> Result<T, LoadError> {
        loop {
            let found = self.find(id);
            let attempt = read(&found);
            if attempt.gone.is_some() {
                continue;
            }
            if attempt.is_loaded {
                return Ok(look(&attempt));
            }
            drop(attempt);
            self.load(id, &mut write(&found))?;
        }
    }

    /// Changes an attempt.
    fn with<T>(&self, id: AttemptId, change: impl FnOnce(&mut Attempt) -> T) -> Result<T, LoadError> {
        loop {
            let found = self.find(id);
            let mut attempt = write(&found);
            if attempt.gone.is_some() {
                continue;
            }
            self.load(id, &mut attempt)?;
            let changed = change(&mut attempt);
            attempt.is_touched = true;
            self.rest(id, &mut attempt);
            return Ok(changed);
        }
    }

    /// An attempt, made if it is not in the map; it may be gone or not loaded yet.
    fn find(&self, id: AttemptId) -> Found {
        if let Some(found) = read(&self.attempts).get(&id) {
            return found.clone();
        }
        let found = write(&self.attempts).entry(id).or_default().clone();
        self.rest(id, &mut write(&found));
        self.evict(0);
        found
    }

    fn load(&self, id: AttemptId, attempt: &mut Attempt) -> Result<(), LoadError> {
        if attempt.is_loaded || attempt.gone.is_some() { Ok(()) } else { self.index.load(id, attempt) }
    }

    /// Into the ring, if it may leave the memory.
    fn rest(&self, id: AttemptId, attempt: &mut Attempt) {
        if !attempt.is_in_ring && attempt.is_idle() {
            attempt.is_in_ring = true;
            lock(&self.ring).push_back(id);
        }
    }

    /// Lets attempts leave the memory that the index knows whole: those beyond the number that may stay, and while a tail
    /// needs memory as many as make half of it free, or what is needed if that is more. What was looked at since the ring
    /// came by stays for another round.
    fn evict(&self, needed: u64) {
        let limit = self.tails.limit();
        let tails_max = (limit / 2).min(limit.saturating_sub(needed));
        let mut tries = 2 * lock(&self.ring).len();
        while tries > 0 {
            tries -= 1;
            let mut ring = lock(&self.ring);
            let is_over = ring.len() > self.idle_max || (needed > 0 && self.tails.used() > tails_max);
            if !is_over {
                return;
            }
            let Some(id) = ring.pop_front() else { return };
            drop(ring);
            let Some(found) = read(&self.attempts).get(&id).cloned() else { continue };
            let mut attempt = write(&found);
            attempt.is_in_ring = false;
            if !attempt.is_idle() {
                continue;
            }
            if std::mem::take(&mut attempt.is_touched) {
                self.rest(id, &mut attempt);
                continue;
            }
            attempt.bury(&self.tails);
            drop(attempt);
            self.take_out(id, &found);
        }
    }

    /// Ends an attempt whose rows are gone, or that has none.
    fn bury(&self, id: AttemptId, attempt: &mut Attempt) {
        self.used.give_back(attempt.held());
        self.queue.unschedule(id, attempt);
        attempt.bury(&self.tails);
    }

    fn take_out(&self, id: AttemptId, found: &Found) {
        let mut attempts = write(&self.attempts);
        if attempts.get(&id).is_some_and(|present| Arc::ptr_eq(present, found)) {
            attempts.remove(&id);
        }
    }

    /// The bytes `begin .. end`, which lie between `kept_from` and the length, or those in front of a piece that cannot be
    /// read; empty when `begin` is not below `end`.
    ///
    /// # Errors
    /// When the first of them cannot be read, with the piece that it is of.
    fn bytes(&self, output: &Output, begin: u64, end: u64) -> Result<Vec<u8>, (Range<u64>, ExtentError)> {
        if begin >= end {
            return Ok(Vec::new());
        }
        let mut bytes = Vec::with_capacity((end - begin) as usize + EXTENT_BYTES_MAX);
        let mut at = begin;
        let first = output.extents.partition_point(|extent| extent.end() <= begin);
        for extent in output.extents.range(first..) {
            let to = end.min(extent.end()).min(output.tail_from);
            if at >= to {
                break;
            }
            let (from, until) = ((at - extent.start) as usize, (to - extent.start) as usize);
            let whole = bytes.len();
            if let Err(error) = self.segments.read(extent, from, until, &mut bytes) {
                bytes.truncate(whole);
                let piece = at..extent.end().min(output.tail_from);
                return if whole == 0 { Err((piece, error)) } else { Ok(bytes) };
            }
            at = to;
        }
        if at < end {
            bytes.extend_from_slice(output.tail_bytes(&(at..end)));
        }
        Ok(bytes)
    }
}

fn load_error(attempt: AttemptId, stream: Stream, offset: u64, error: LoadError) -> OutputReadError {
    match error {
        // Of both streams: where which bytes stand is no longer sure.
        LoadError::Hole { .. } => OutputReadError::Corrupt { attempt, stream, offset, end: u64::MAX },
        LoadError::Database(_) => OutputReadError::Io { attempt, source: io_error(error) },
    }
}

fn io_error(error: LoadError) -> io::Error {
    match error {
        LoadError::Database(error) => io::Error::other(error),
        LoadError::Hole { stream, at } => {
            io::Error::new(io::ErrorKind::InvalidData, format!("the index names no bytes of {stream:?} from {at} on"))
        }
    }
}

fn read<T>(guarded: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    guarded.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(guarded: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    guarded.write().unwrap_or_else(PoisonError::into_inner)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "packed/tests.rs"]
mod tests;
