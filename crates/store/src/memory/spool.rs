//! Output of programs: a short tail per stream in memory, the rest in blocks of the spool's file.
//!
//! [`crate::port`] calls it from any thread; it calls `blocks`. A stream, from its first byte on:
//!
//! ```text
//! 0            kept_from                        spilled          length
//! |  dropped   |  in blocks of the file         |  in the tail   |
//! ```
//!
//! Always true: a stream's bytes are under its attempt's lock, so a block cannot change its owner while it is read; the
//! map's lock is held for a look-up only. The index is one number per block, however the pieces were cut and whoever
//! printed between them.
//! Deliberately not here: what is old enough to be dropped (the hub decides), and the file.

use super::blocks::{Block, BlockFile};
use crate::budget::Budget;
use crate::error::{OpenError, OutputError, OutputReadError};
use crate::limits::{ATTEMPTS_MAX, BLOCK_BYTES, READ_BYTES_MAX, SMALL_BYTES_MAX, TAIL_BYTES_MAX, TAILS_BYTES_MAX};
use crate::port::{Chunk, Lengths, Small, of_job, unknown};
use essaim_proto::api::Stream;
use essaim_proto::{AttemptId, JobId};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::ops::{Bound, RangeInclusive};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Attempts that are dropped under one lock of the map: an array of a million must not stop everybody else's output.
const DROP_STEP: usize = 1_024;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// See [`crate::port::Outputs`].
pub(crate) struct Spool {
    room: SpoolRoom,
    attempts_max: usize,
    attempts: RwLock<BTreeMap<AttemptId, Arc<RwLock<Attempt>>>>,
}

/// What all streams share: the file and the counts against the limits.
struct SpoolRoom {
    file: BlockFile,
    used: Budget,
    tails: Budget,
}

#[derive(Default)]
struct Attempt {
    stdout: Output,
    stderr: Output,
    /// How long it was when it was given away as a small output.
    given: Option<Lengths>,
    /// Taken out of the map: who still holds it must look it up again.
    gone: bool,
}

impl Attempt {
    fn lengths(&self) -> Lengths {
        Lengths { stdout: self.stdout.length(), stderr: self.stderr.length() }
    }

    /// Ends it; returns the blocks that it held. A reader that looked it up before sees what a reader sees that comes
    /// after: nothing.
    fn bury(&mut self, room: &SpoolRoom) -> Vec<Block> {
        let mut freed = Vec::new();
        for stream in [Stream::Stdout, Stream::Stderr] {
            let output = self.output_mut(stream);
            freed.append(&mut output.drop_below(room, u64::MAX));
            // A block that waits for another try of a failed write.
            freed.extend(output.blocks.drain(..));
        }
        *self = Attempt { gone: true, ..Attempt::default() };
        freed
    }

    fn output(&self, stream: Stream) -> &Output {
        match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        }
    }

    fn output_mut(&mut self, stream: Stream) -> &mut Output {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }
}

/// One stream; see the drawing above.
#[derive(Default)]
struct Output {
    kept_from: u64,
    spilled: u64,
    tail: Vec<u8>,
    /// The blocks that hold `kept_from .. spilled`, in order.
    blocks: VecDeque<Block>,
    /// Which of the stream's blocks `blocks[0]` is: it holds the bytes from that many times [`BLOCK`] on.
    blocks_from: u64,
}

impl Spool {
    /// An empty spool whose file is in `folder` and which holds at most `limit` bytes.
    pub(crate) fn open(folder: &Path, limit: u64) -> Result<Spool, OpenError> {
        let file =
            BlockFile::create(folder).map_err(|source| OpenError::Spool { folder: folder.to_owned(), source })?;
        let room = SpoolRoom { file, used: Budget::new(limit), tails: Budget::new(TAILS_BYTES_MAX) };
        Ok(Spool { room, attempts_max: ATTEMPTS_MAX, attempts: RwLock::default() })
    }

    pub(crate) fn append(&self, id: AttemptId, stream: Stream, offset: u64, bytes: &[u8]) -> Result<u64, OutputError> {
        loop {
            let attempt = match self.find(id) {
                Some(attempt) => attempt,
                None if offset > 0 => return Err(OutputError::Gap { attempt: id, stream, offset, length: 0 }),
                None if bytes.is_empty() => return Ok(0),
                None => self.create(id, bytes.len() as u64)?,
            };
            let mut attempt = write(&attempt);
            if attempt.gone {
                continue;
            }
            let output = attempt.output_mut(stream);
            let length = output.length();
            if offset > length {
                return Err(OutputError::Gap { attempt: id, stream, offset, length });
            }
            let known = usize::try_from(length - offset).unwrap_or(usize::MAX);
            let fresh = bytes.get(known..).unwrap_or_default();
            return self.append_fresh(id, output, fresh);
        }
    }

    fn append_fresh(&self, id: AttemptId, output: &mut Output, fresh: &[u8]) -> Result<u64, OutputError> {
        let size = fresh.len() as u64;
        if !self.room.used.take(size) {
            return Err(OutputError::Full { limit: self.room.used.limit() });
        }
        match output.append(&self.room, fresh) {
            Ok(()) => Ok(output.length()),
            Err(source) => {
                self.room.used.give_back(size);
                Err(OutputError::Io { attempt: id, source })
            }
        }
    }

    pub(crate) fn read(
        &self,
        id: AttemptId,
        stream: Stream,
        offset: u64,
        max: usize,
    ) -> Result<Chunk, OutputReadError> {
        let Some(attempt) = self.find(id) else {
            return Ok(Chunk { offset, ..Chunk::default() });
        };
        let attempt = read(&attempt);
        let output = attempt.output(stream);
        let begin = offset.max(output.kept_from);
        let end = output.length().min(begin.saturating_add(max.min(READ_BYTES_MAX) as u64));
        let bytes =
            output.read(&self.room.file, begin, end).map_err(|source| OutputReadError::Io { attempt: id, source })?;
        Ok(Chunk { offset: begin, bytes, dropped: offset < begin })
    }

    pub(crate) fn lengths(&self, id: AttemptId) -> Lengths {
        let Some(attempt) = self.find(id) else { return Lengths::default() };
        read(&attempt).lengths()
    }

    pub(crate) fn small(&self, id: AttemptId) -> Option<Small> {
        let Some(attempt) = self.find(id) else { return Some(Small::default()) };
        let mut attempt = write(&attempt);
        let Attempt { stdout, stderr, .. } = &*attempt;
        let in_tails = stdout.spilled == 0 && stderr.spilled == 0;
        if !in_tails || stdout.tail.len() + stderr.tail.len() > SMALL_BYTES_MAX {
            return None;
        }
        let small = Small { stdout: stdout.tail.clone(), stderr: stderr.tail.clone() };
        attempt.given = Some(attempt.lengths());
        Some(small)
    }

    pub(crate) fn release(&self, id: AttemptId) {
        let Some(found) = self.find(id) else { return };
        let mut attempt = write(&found);
        if attempt.gone || attempt.given != Some(attempt.lengths()) {
            return;
        }
        let freed = attempt.bury(&self.room);
        drop(attempt);
        self.room.file.give_back(freed);
        let mut attempts = write(&self.attempts);
        if attempts.get(&id).is_some_and(|present| Arc::ptr_eq(present, &found)) {
            attempts.remove(&id);
        }
    }

    /// Oldest means: of the job that was accepted first.
    pub(crate) fn drop_oldest(&self, keep_bytes: u64) -> Vec<JobId> {
        let mut jobs = Vec::new();
        let mut from = Bound::Unbounded;
        while self.used_bytes() > keep_bytes {
            let next =
                read(&self.attempts).range((from, Bound::Unbounded)).next().map(|(id, found)| (*id, found.clone()));
            let Some((id, attempt)) = next else { break };
            for stream in [Stream::Stdout, Stream::Stderr] {
                let mut attempt = write(&attempt);
                let output = attempt.output_mut(stream);
                let over = self.used_bytes().saturating_sub(keep_bytes);
                let below = output.kept_from.saturating_add(over).min(output.length());
                if below > output.kept_from && jobs.last() != Some(&id.job) {
                    jobs.push(id.job);
                }
                let freed = output.drop_below(&self.room, below);
                drop(attempt);
                self.room.file.give_back(freed);
            }
            from = Bound::Excluded(id);
        }
        jobs
    }

    pub(crate) fn drop_below(&self, id: AttemptId, stream: Stream, below: u64) {
        let Some(attempt) = self.find(id) else { return };
        let freed = write(&attempt).output_mut(stream).drop_below(&self.room, below);
        self.room.file.give_back(freed);
    }

    pub(crate) fn drop_attempt(&self, id: AttemptId) {
        let taken = write(&self.attempts).remove(&id);
        self.bury(taken.into_iter().collect());
    }

    pub(crate) fn drop_job(&self, job: JobId) {
        self.drop_range(of_job(job));
    }

    pub(crate) fn drop_unknown(&self, last: JobId, newest: &[AttemptId]) -> usize {
        unknown(last, newest).map(|range| self.drop_range(range)).sum()
    }

    /// Says how many attempts were dropped.
    fn drop_range(&self, range: RangeInclusive<AttemptId>) -> usize {
        let mut dropped = 0;
        loop {
            let mut attempts = write(&self.attempts);
            let ids: Vec<AttemptId> = attempts.range(range.clone()).take(DROP_STEP).map(|(id, _)| *id).collect();
            let taken = ids.iter().filter_map(|id| attempts.remove(id)).collect();
            drop(attempts);
            self.bury(taken);
            dropped += ids.len();
            if ids.len() < DROP_STEP {
                return dropped;
            }
        }
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        self.room.used.used()
    }

    /// Frees what attempts hold that are no longer in the map.
    fn bury(&self, attempts: Vec<Arc<RwLock<Attempt>>>) {
        let mut freed = Vec::new();
        for attempt in attempts {
            freed.append(&mut write(&attempt).bury(&self.room));
        }
        self.room.file.give_back(freed);
    }

    fn find(&self, id: AttemptId) -> Option<Arc<RwLock<Attempt>>> {
        read(&self.attempts).get(&id).cloned()
    }

    /// A place for an attempt that brings `bytes`; a full spool must not collect empty places.
    fn create(&self, id: AttemptId, bytes: u64) -> Result<Arc<RwLock<Attempt>>, OutputError> {
        if self.used_bytes().saturating_add(bytes) > self.room.used.limit() {
            return Err(OutputError::Full { limit: self.room.used.limit() });
        }
        let mut attempts = write(&self.attempts);
        if attempts.len() >= self.attempts_max && !attempts.contains_key(&id) {
            return Err(OutputError::TooManyAttempts { limit: self.attempts_max });
        }
        Ok(attempts.entry(id).or_default().clone())
    }
}

impl Output {
    fn length(&self) -> u64 {
        self.spilled + self.tail.len() as u64
    }

    /// Adds bytes at the end, all or none; they are counted as used already.
    fn append(&mut self, room: &SpoolRoom, bytes: &[u8]) -> io::Result<()> {
        let fits = self.tail.len() + bytes.len() < TAIL_BYTES_MAX;
        if fits && room.tails.take(bytes.len() as u64) {
            self.tail.extend_from_slice(bytes);
            return Ok(());
        }
        self.spill_tail(room)?;
        self.write(&room.file, bytes)
    }

    fn spill_tail(&mut self, room: &SpoolRoom) -> io::Result<()> {
        let tail = std::mem::take(&mut self.tail);
        if let Err(error) = self.write(&room.file, &tail) {
            self.tail = tail;
            return Err(error);
        }
        room.tails.give_back(tail.len() as u64);
        Ok(())
    }

    /// Bytes into blocks behind `spilled`; the tail is empty. After an error nothing has changed but that a block may
    /// wait for the next try.
    fn write(&mut self, file: &BlockFile, bytes: &[u8]) -> io::Result<()> {
        let end = self.spilled + bytes.len() as u64;
        let mut position = self.spilled;
        let mut rest = bytes;
        while !rest.is_empty() {
            let within = (position % BLOCK) as usize;
            let (piece, after) = rest.split_at(rest.len().min(BLOCK_BYTES - within));
            file.write(self.block_to_write(file, position)?, within, piece)?;
            position += piece.len() as u64;
            rest = after;
        }
        self.spilled = end;
        Ok(())
    }

    fn block_to_write(&mut self, file: &BlockFile, position: u64) -> io::Result<Block> {
        let number = position / BLOCK;
        if self.blocks.is_empty() {
            self.blocks_from = number;
        }
        let index = (number - self.blocks_from) as usize;
        if index == self.blocks.len() {
            self.blocks.push_back(file.take()?);
        }
        Ok(self.blocks[index])
    }

    /// The bytes `begin .. end`, which lie between `kept_from` and the length; empty when `begin` is not below `end`.
    fn read(&self, file: &BlockFile, begin: u64, end: u64) -> io::Result<Vec<u8>> {
        if begin >= end {
            return Ok(Vec::new());
        }
        let mut bytes = vec![0; end.min(self.spilled).saturating_sub(begin) as usize];
        let mut position = begin;
        let mut rest = bytes.as_mut_slice();
        while !rest.is_empty() {
            let within = (position % BLOCK) as usize;
            let size = rest.len().min(BLOCK_BYTES - within);
            let (piece, after) = rest.split_at_mut(size);
            file.read(self.blocks[(position / BLOCK - self.blocks_from) as usize], within, piece)?;
            position += size as u64;
            rest = after;
        }
        if end > self.spilled {
            let from = begin.saturating_sub(self.spilled) as usize;
            bytes.extend_from_slice(&self.tail[from..(end - self.spilled) as usize]);
        }
        Ok(bytes)
    }

    /// Forgets the bytes below `below`; returns the blocks that hold nothing else.
    fn drop_below(&mut self, room: &SpoolRoom, below: u64) -> Vec<Block> {
        let below = below.min(self.length());
        if below <= self.kept_from {
            return Vec::new();
        }
        room.used.give_back(below - self.kept_from);
        self.kept_from = below;
        if below > self.spilled {
            let size = below - self.spilled;
            self.tail.drain(..size as usize);
            room.tails.give_back(size);
            self.spilled = below;
        }
        if below == self.spilled {
            return self.blocks.drain(..).collect();
        }
        let whole = (below / BLOCK - self.blocks_from) as usize;
        self.blocks_from += whole as u64;
        self.blocks.drain(..whole).collect()
    }
}

impl fmt::Debug for Spool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spool").field("used", &self.used_bytes()).finish_non_exhaustive()
    }
}

fn read<T>(guarded: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    guarded.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(guarded: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    guarded.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "spool_tests.rs"]
mod tests;
