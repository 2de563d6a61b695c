//! One attempt's output as it is in memory: where its durable bytes stand, and the tail that is not written yet.
//!
//! `packed` and `writer` hold it under its lock. A stream, from its first byte on:
//!
//! ```text
//! 0            kept_from                 tail_from      durable          length
//! |  dropped   |  extents in segments    |  extents and tail  |  tail only  |
//! ```
//!
//! A program that prints a little every second would leave a row and a hole in time for each line. So the tail keeps
//! what was written since the last whole run of [`TAIL_BYTES_MAX`] bytes, and the next write joins it with extents before
//! that are no longer than what comes behind them; a full run becomes one extent. Each byte is written some ten times at
//! most, and there is about one row per 16 KiB in the end.
//!
//! Always true: extents are in order, without holes, and end at `durable`; later bytes stand in later segments, or
//! further in the same. Deliberately not here: files, rows and time.

use crate::budget::Budget;
use crate::error::OutputError;
use crate::limits::{SMALL_BYTES_MAX, TAIL_BYTES_MAX};
use crate::port::{Lengths, Settled, Small};
use essaim_proto::AttemptId;
use essaim_proto::api::Stream;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Bytes of a stream that stand together in a segment: a row of the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) start: u64,
    pub(crate) length: u32,
    pub(crate) segment: u32,
    pub(crate) position: u32,
    pub(crate) sum: u64,
}

impl Extent {
    pub(crate) fn end(&self) -> u64 {
        self.start + u64::from(self.length)
    }
}

/// One stream; see the drawing above.
#[derive(Debug, Default)]
pub(super) struct Output {
    pub(super) kept_from: u64,
    pub(super) extents: VecDeque<Extent>,
    pub(super) durable: u64,
    pub(super) tail_from: u64,
    pub(super) tail: Vec<u8>,
}

impl Output {
    /// What the index knows of a stream.
    pub(super) fn of(dropped_below: u64, extents: VecDeque<Extent>) -> Output {
        let durable = extents.back().map_or(0, Extent::end).max(dropped_below);
        Output { kept_from: dropped_below, extents, durable, tail_from: durable, tail: Vec::new() }
    }

    pub(super) fn length(&self) -> u64 {
        self.tail_from + self.tail.len() as u64
    }

    pub(super) fn unwritten(&self) -> u64 {
        self.length() - self.durable
    }

    pub(super) fn has_rows(&self) -> bool {
        self.kept_from > 0 || !self.extents.is_empty()
    }

    /// What is to be written next: it begins where an extent begins or at `durable`, and is at most `most` long.
    pub(super) fn to_write(&self, most: u64) -> Option<Range<u64>> {
        let length = self.length();
        let mut from = self.durable;
        let fills_a_run = length - self.tail_from >= TAIL_BYTES_MAX as u64;
        for extent in self.extents.iter().rev().take_while(|extent| extent.start >= self.tail_from) {
            if !fills_a_run && u64::from(extent.length) > length - from {
                break;
            }
            from = extent.start;
        }
        let end = length.min(from.saturating_add(most));
        (end > self.durable).then_some(from..end)
    }

    pub(super) fn tail_bytes(&self, range: &Range<u64>) -> &[u8] {
        &self.tail[(range.start - self.tail_from) as usize..(range.end - self.tail_from) as usize]
    }

    /// Rows name these extents now, in place of those from the first one's start on. Returns the extents that no row
    /// names any more and the bytes of the tail that were given up.
    pub(super) fn written(&mut self, extents: &[Extent]) -> (Vec<Extent>, u64) {
        let Some(first) = extents.first() else { return (Vec::new(), 0) };
        let keep = self.extents.partition_point(|extent| extent.start < first.start);
        let replaced = self.extents.drain(keep..).collect();
        self.extents.extend(extents.iter().filter(|extent| extent.end() > self.kept_from));
        self.durable = extents.last().map_or(0, Extent::end).max(self.durable);
        let full = self.durable.saturating_sub(self.tail_from) >= TAIL_BYTES_MAX as u64;
        (replaced, if full { self.give_up_tail(self.durable) } else { 0 })
    }

    /// Forgets the tail's bytes below `below`; says how many they were.
    fn give_up_tail(&mut self, below: u64) -> u64 {
        let count = below.saturating_sub(self.tail_from).min(self.tail.len() as u64);
        self.tail.drain(..count as usize);
        if self.tail.is_empty() {
            self.tail = Vec::new();
        }
        self.tail_from = self.tail_from.max(below);
        count
    }

    /// Where a drop below `below` cuts; `None` when there is nothing to drop.
    pub(super) fn cut_at(&self, below: u64) -> Option<u64> {
        let below = below.min(self.length());
        (below > self.kept_from).then_some(below)
    }

    /// Forgets what is below `below`, which is not beyond the length. Returns the extents of which nothing is left and
    /// the bytes of the tail that were given up.
    pub(super) fn cut(&mut self, below: u64) -> (Vec<Extent>, u64) {
        if below <= self.kept_from {
            return (Vec::new(), 0);
        }
        self.kept_from = below;
        self.durable = self.durable.max(below);
        let gone = self.extents.partition_point(|extent| extent.end() <= below);
        (self.extents.drain(..gone).collect(), self.give_up_tail(below))
    }
}

/// Who waits for bytes to be durable.
pub(super) struct Waiting {
    /// What there was when it began to wait.
    upto: Lengths,
    failed: Option<Failure>,
    /// In a lock that nobody waits for: only so that others may look at the attempt meanwhile.
    done: Mutex<Settled>,
}

/// A failed write, to be told to everybody who waited for it.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    kind: io::ErrorKind,
    text: String,
}

impl Failure {
    pub(super) fn of(error: &io::Error) -> Failure {
        Failure { kind: error.kind(), text: error.to_string() }
    }

    pub(super) fn error(&self, attempt: AttemptId) -> OutputError {
        OutputError::Io { attempt, source: io::Error::new(self.kind, self.text.clone()) }
    }
}

/// An attempt's two streams and who waits for them.
#[derive(Default)]
pub(super) struct Attempt {
    pub(super) stdout: Output,
    pub(super) stderr: Output,
    /// Has the index been asked what it knows?
    pub(super) is_loaded: bool,
    /// Out of the map: who still holds it must look it up again. Who waits hears these lengths.
    pub(super) gone: Option<Lengths>,
    /// How long it was when it was given away as a small output.
    pub(super) given: Option<Lengths>,
    /// Bytes of it are being written.
    pub(super) is_written: bool,
    /// It is being dropped.
    pub(super) is_held: bool,
    /// When the writer looks at it next: its place in the queue.
    pub(super) due: Option<Instant>,
    /// Looked at since the ring of idle attempts came by?
    pub(super) is_touched: bool,
    pub(super) is_in_ring: bool,
    waiting: VecDeque<Waiting>,
    is_telling: bool,
}

impl Attempt {
    pub(super) fn output(&self, stream: Stream) -> &Output {
        match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        }
    }

    pub(super) fn output_mut(&mut self, stream: Stream) -> &mut Output {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    pub(super) fn lengths(&self) -> Lengths {
        Lengths { stdout: self.stdout.length(), stderr: self.stderr.length() }
    }

    pub(super) fn durable(&self) -> Lengths {
        Lengths { stdout: self.stdout.durable, stderr: self.stderr.durable }
    }

    pub(super) fn unwritten(&self) -> u64 {
        self.stdout.unwritten() + self.stderr.unwritten()
    }

    /// Bytes that can be read.
    pub(super) fn held(&self) -> u64 {
        let of = |output: &Output| output.length() - output.kept_from;
        of(&self.stdout) + of(&self.stderr)
    }

    /// Is any of it on disk, or about to be?
    pub(super) fn has_rows(&self) -> bool {
        self.is_written || self.stdout.has_rows() || self.stderr.has_rows()
    }

    /// May it leave the memory? The index knows all of it and nobody waits.
    pub(super) fn is_idle(&self) -> bool {
        let is_quiet = self.waiting.is_empty() && !self.is_telling && self.due.is_none();
        is_quiet && !self.is_written && !self.is_held && self.gone.is_none() && self.unwritten() == 0
    }

    pub(super) fn small(&self) -> Option<Small> {
        let fits = self.stdout.tail.len() + self.stderr.tail.len() <= SMALL_BYTES_MAX;
        (fits && !self.has_rows()).then(|| Small { stdout: self.stdout.tail.clone(), stderr: self.stderr.tail.clone() })
    }

    /// Ends it, out of the map or on its way out; gives the memory of its tails back.
    pub(super) fn bury(&mut self, tails: &Budget) {
        self.gone.get_or_insert(self.lengths());
        for stream in [Stream::Stdout, Stream::Stderr] {
            let output = std::mem::take(self.output_mut(stream));
            tails.give_back(output.tail.len() as u64);
        }
    }

    pub(super) fn wait(&mut self, done: Settled) {
        self.waiting.push_back(Waiting { upto: self.lengths(), failed: None, done: Mutex::new(done) });
    }

    /// Does anybody wait for what is not durable yet?
    pub(super) fn is_awaited(&self) -> bool {
        self.waiting.iter().any(|waiting| !self.is_over(waiting))
    }

    /// All who wait hear of a failed write.
    pub(super) fn fail(&mut self, failure: &Failure) {
        for waiting in &mut self.waiting {
            waiting.failed.get_or_insert_with(|| failure.clone());
        }
    }

    fn is_over(&self, waiting: &Waiting) -> bool {
        let (durable, upto) = (self.durable(), waiting.upto);
        let is_durable = durable.stdout >= upto.stdout && durable.stderr >= upto.stderr;
        self.gone.is_some() || waiting.failed.is_some() || is_durable
    }

    /// The next who has waited long enough and what it hears. One thread at a time tells, so that all hear in order:
    /// `None` means nobody, or that another thread is at it. Who got one must ask again until there is none.
    pub(super) fn next_told(
        &mut self,
        id: AttemptId,
        is_mine: bool,
    ) -> Option<(Settled, Result<Lengths, OutputError>)> {
        if self.is_telling && !is_mine {
            return None;
        }
        self.is_telling = self.waiting.front().is_some_and(|waiting| self.is_over(waiting));
        if !self.is_telling {
            return None;
        }
        let waiting = self.waiting.pop_front()?;
        let end = match (self.gone, waiting.failed) {
            (Some(lengths), _) => Ok(lengths),
            (None, Some(failure)) => Err(failure.error(id)),
            (None, None) => Ok(self.durable()),
        };
        Some((waiting.done.into_inner().unwrap_or_else(PoisonError::into_inner), end))
    }
}
