//! Journal and lead in memory.
//!
//! [`crate::port`] calls it from any thread. Both parts share one state, because an append is judged by the present
//! term. Always true: batches are the sequences `first ..= last` without holes, and ends are told in order, by one
//! thread at a time, with no lock held.
//! Deliberately not here: a clock; expiry is judged with the caller's time.

use super::lock;
use crate::error::{AppendError, ReadError, SnapshotError, TrimError};
use crate::limits::READ_BATCHES_MAX;
use crate::port::{Done, Seq, Term};
use crate::rules::{self, LeadState};
use std::collections::VecDeque;
use std::fmt;
use std::sync::Mutex;

/// See [`crate::port::Journal`] and [`crate::port::Lead`].
pub(crate) struct MemoryJournal {
    journal_bytes_max: u64,
    snapshot_bytes_max: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Kept batches, oldest first; the last one is `last`.
    batches: VecDeque<Vec<u8>>,
    last: Seq,
    bytes: u64,
    snapshot: Option<(Seq, Vec<u8>)>,
    lead: LeadState,
    /// Ends that were not told yet.
    ends: VecDeque<(Done, Result<Seq, AppendError>)>,
    /// Is a thread telling ends?
    telling: bool,
}

impl State {
    fn first(&self) -> Seq {
        Seq(self.last.0 + 1 - self.batches.len() as u64)
    }

    fn append(&mut self, expected: Seq, term: Term, batch: Vec<u8>, limit: u64) -> Result<Seq, AppendError> {
        let bytes = batch.len();
        let seq = rules::judge_append(self.last, &self.lead, (self.bytes, limit), (expected, term, bytes))?;
        self.bytes += bytes as u64;
        self.batches.push_back(batch);
        self.last = seq;
        Ok(seq)
    }
}

/// The right to tell ends; given back even when a `done` panics.
struct Telling<'a>(&'a Mutex<State>);

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        lock(self.0).telling = false;
    }
}

impl MemoryJournal {
    pub(crate) fn new(journal_bytes_max: u64, snapshot_bytes_max: u64) -> MemoryJournal {
        MemoryJournal { journal_bytes_max, snapshot_bytes_max, state: Mutex::default() }
    }

    pub(crate) fn append(&self, expected: Seq, term: Term, batch: Vec<u8>, done: Done) {
        let mut state = lock(&self.state);
        let end = state.append(expected, term, batch, self.journal_bytes_max);
        state.ends.push_back((done, end));
        drop(state);
        self.tell_ends();
    }

    /// Tells ends in order. When another thread, or a `done` further up on this one, is telling, it tells ours too.
    fn tell_ends(&self) {
        {
            let mut state = lock(&self.state);
            if state.telling {
                return;
            }
            state.telling = true;
        }
        let telling = Telling(&self.state);
        loop {
            let mut state = lock(&self.state);
            let Some((done, end)) = state.ends.pop_front() else {
                // Under the same lock as the look into the queue: an end that is queued now finds nobody telling.
                state.telling = false;
                drop(state);
                std::mem::forget(telling);
                return;
            };
            drop(state);
            done(end);
        }
    }

    pub(crate) fn room(&self) -> Result<(), AppendError> {
        rules::judge_room(lock(&self.state).bytes, self.journal_bytes_max)
    }

    pub(crate) fn read(&self, from: Seq, max_bytes: usize) -> Result<Vec<(Seq, Vec<u8>)>, ReadError> {
        let state = lock(&self.state);
        let from = from.max(Seq(1));
        let first = state.first();
        if from < first {
            return Err(ReadError::Trimmed { from, first });
        }
        let skip = usize::try_from(from.0 - first.0).unwrap_or(usize::MAX);
        let mut found = Vec::new();
        let mut bytes = 0;
        for (n, batch) in state.batches.iter().skip(skip).take(READ_BATCHES_MAX).enumerate() {
            bytes += batch.len();
            if bytes > max_bytes && n > 0 {
                break;
            }
            found.push((Seq(from.0 + n as u64), batch.clone()));
        }
        Ok(found)
    }

    pub(crate) fn last(&self) -> Seq {
        lock(&self.state).last
    }

    pub(crate) fn snapshot(&self, at: Seq, bytes: Vec<u8>) -> Result<(), SnapshotError> {
        let limit = self.snapshot_bytes_max;
        if bytes.len() as u64 > limit {
            return Err(SnapshotError::TooLarge { bytes: bytes.len() as u64, limit });
        }
        let mut state = lock(&self.state);
        if at > state.last {
            return Err(SnapshotError::Ahead { at, last: state.last });
        }
        if let Some((latest, _)) = state.snapshot
            && at < latest
        {
            return Err(SnapshotError::Older { at, latest });
        }
        state.snapshot = Some((at, bytes));
        Ok(())
    }

    pub(crate) fn latest_snapshot(&self) -> Option<(Seq, Vec<u8>)> {
        lock(&self.state).snapshot.clone()
    }

    pub(crate) fn trim(&self, below: Seq) -> Result<(), TrimError> {
        let mut state = lock(&self.state);
        let snapshot = state.snapshot.as_ref().map_or(Seq(0), |(at, _)| *at);
        if below > snapshot.next() {
            return Err(TrimError::BeyondSnapshot { below, snapshot });
        }
        while state.first() < below
            && let Some(batch) = state.batches.pop_front()
        {
            state.bytes -= batch.len() as u64;
        }
        Ok(())
    }

    /// See [`crate::port::Lead`].
    pub(crate) fn lead<T>(&self, change: impl FnOnce(&mut LeadState) -> T) -> T {
        change(&mut lock(&self.state).lead)
    }
}

impl fmt::Debug for MemoryJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = lock(&self.state);
        f.debug_struct("MemoryJournal")
            .field("last", &state.last)
            .field("bytes", &state.bytes)
            .field("term", &state.lead.term())
            .finish_non_exhaustive()
    }
}
