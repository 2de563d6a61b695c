//! Forgetting output: an attempt, a job, the beginning of a stream, the oldest segments.
//!
//! `packed` calls it from any thread. Always true: what is dropped is dropped in the index first, then in memory, then
//! its segments are unlinked if nothing else is in them; what could not be dropped in the index is still there, whole.
//! Deliberately not here: when and how much (the hub's retention).

use super::attempt::{Attempt, Extent, Failure};
use super::index::{self, Doomed};
use super::{Found, Shared, read, write};
use crate::error::OutputError;
use crate::limits::DROP_ATTEMPTS_MAX;
use crate::port::{Lengths, of_job, unknown};
use essaim_proto::api::Stream;
use essaim_proto::{AttemptId, JobId};
use std::collections::BTreeSet;
use std::io;
use std::ops::{Bound, RangeInclusive};

impl Shared {
    /// Drops attempts whole, in one transaction; with `only`, those alone that are as long.
    pub(super) fn forget(&self, ids: &[AttemptId], only: Option<Lengths>) -> Result<(), Failure> {
        let mut writing = self.index.writing();
        let mut doomed: Vec<(AttemptId, Found)> = Vec::new();
        let mut has_rows = false;
        for id in ids {
            if let Some((found, is_on_disk)) = self.hold(*id, only) {
                doomed.push((*id, found));
                has_rows |= is_on_disk;
            }
        }
        let dropped = match has_rows {
            true => writing.change(|rows| doomed.iter().try_for_each(|(id, _)| index::forget(rows, *id))),
            false => Ok(()),
        };
        let mut unnamed: Vec<Extent> = Vec::new();
        for (id, found) in &doomed {
            let mut attempt = write(found);
            attempt.is_held = false;
            // A small one may have been released meanwhile.
            if dropped.is_ok() && attempt.gone.is_none() {
                unnamed.extend(attempt.stdout.extents.iter().chain(&attempt.stderr.extents));
                self.bury(*id, &mut attempt);
                drop(attempt);
                self.take_out(*id, found);
            }
        }
        drop(writing);
        self.unname(&unnamed);
        for (id, found) in doomed {
            self.tell(id, &found);
        }
        dropped
    }

    /// Keeps an attempt in memory until it is dropped; says if any of it is on disk. Rows that cannot be read can be
    /// removed all the same.
    fn hold(&self, id: AttemptId, only: Option<Lengths>) -> Option<(Found, bool)> {
        loop {
            let found = self.find(id);
            let mut attempt = write(&found);
            if attempt.gone.is_some() {
                continue;
            }
            let is_known = self.load(id, &mut attempt).is_ok();
            if only.is_some_and(|only| only != attempt.lengths()) {
                return None;
            }
            attempt.is_held = true;
            let is_on_disk = attempt.has_rows() || !is_known;
            drop(attempt);
            return Some((found, is_on_disk));
        }
    }

    pub(super) fn drop_job(&self, job: JobId) {
        // What could not be dropped is still there, whole.
        let _ = self.drop_range(&of_job(job));
    }

    /// See [`crate::port::Outputs::drop_unknown`].
    pub(super) fn drop_unknown(&self, last: JobId, newest: &[AttemptId]) -> Result<usize, OutputError> {
        let dropped =
            unknown(last, newest).map(|range| self.drop_range(&range).map_err(|error| error.error(*range.start())));
        dropped.sum()
    }

    /// Says how many attempts were dropped.
    fn drop_range(&self, range: &RangeInclusive<AttemptId>) -> Result<usize, Failure> {
        let mut dropped = 0;
        loop {
            let in_memory = || -> Vec<AttemptId> {
                read(&self.attempts).range(range.clone()).map(|(id, _)| *id).take(DROP_ATTEMPTS_MAX).collect()
            };
            let (ids, unread) = match self.index.attempts(*range.start(), *range.end(), DROP_ATTEMPTS_MAX) {
                Ok(ids) if !ids.is_empty() => (ids, None),
                Ok(_) => (in_memory(), None),
                Err(error) => (in_memory(), Some(Failure::of(&io::Error::other(error)))),
            };
            if ids.is_empty() {
                return unread.map_or(Ok(dropped), Err);
            }
            self.forget(&ids, None)?;
            dropped += ids.len();
        }
    }

    /// Says whether anything was dropped.
    pub(super) fn drop_below(&self, id: AttemptId, stream: Stream, below: u64) -> bool {
        let mut writing = self.index.writing();
        loop {
            let found = self.find(id);
            let mut attempt = write(&found);
            if attempt.gone.is_some() {
                continue;
            }
            if self.load(id, &mut attempt).is_err() {
                return false;
            }
            let output = attempt.output_mut(stream);
            let Some(at) = output.cut_at(below) else { return false };
            self.index.expect(id.job);
            if writing.change(|rows| index::drop_below(rows, id, stream, at)).is_err() {
                return false;
            }
            self.used.give_back(at - output.kept_from);
            let unnamed = self.cut(&mut attempt, stream, at);
            drop(attempt);
            drop(writing);
            self.unname(&unnamed);
            self.tell(id, &found);
            return true;
        }
    }

    fn cut(&self, attempt: &mut Attempt, stream: Stream, below: u64) -> Vec<Extent> {
        let (unnamed, tail) = attempt.output_mut(stream).cut(below);
        self.tails.give_back(tail);
        unnamed
    }

    /// Whole segments, oldest first, then what is in memory alone. What it counts is what the disk holds, so that it may
    /// drop more than who counts what can be read.
    pub(super) fn drop_oldest(&self, keep_bytes: u64) -> Vec<JobId> {
        let mut jobs = BTreeSet::new();
        while self.segments.size() + self.tails.used() > keep_bytes {
            let Some(segment) = self.segments.oldest() else { break };
            match self.drop_segment(segment) {
                Some(dropped) => jobs.extend(dropped),
                None => break,
            }
        }
        if self.segments.oldest().is_none() {
            self.segments.end_current();
        }
        self.drop_oldest_tails(keep_bytes, &mut jobs);
        jobs.into_iter().collect()
    }

    /// Drops what is in a segment; says whose it was. `None`: it cannot be dropped now.
    fn drop_segment(&self, segment: u32) -> Option<BTreeSet<JobId>> {
        let mut writing = self.index.writing();
        let doomed = self.index.in_segment(segment).ok().filter(|doomed| !doomed.is_empty())?;
        // Later bytes of a stream never stand in earlier segments: all that is below goes, and nothing else.
        let streams: Vec<&Doomed> =
            doomed.chunk_by(|a, b| (a.id, a.stream) == (b.id, b.stream)).filter_map(|of_one| of_one.last()).collect();
        let dropped = writing.change(|rows| {
            streams.iter().try_for_each(|last| index::drop_below(rows, last.id, last.stream, last.extent.end()))
        });
        dropped.ok()?;
        let mut cut = Vec::new();
        for last in &streams {
            let Some(found) = read(&self.attempts).get(&last.id).cloned() else { continue };
            let mut attempt = write(&found);
            // One that is loaded later loads what is left.
            if attempt.is_loaded && attempt.gone.is_none() {
                self.cut(&mut attempt, last.stream, last.extent.end());
                drop(attempt);
                cut.push((last.id, found));
            }
        }
        self.used.give_back(doomed.iter().map(Doomed::live).sum());
        drop(writing);
        self.unname(&doomed.iter().map(|row| row.extent).collect::<Vec<_>>());
        for (id, found) in cut {
            self.tell(id, &found);
        }
        Some(doomed.iter().filter(|row| row.live() > 0).map(|row| row.id.job).collect())
    }

    fn drop_oldest_tails(&self, keep_bytes: u64, jobs: &mut BTreeSet<JobId>) {
        let mut from = Bound::Unbounded;
        while self.used.used() > keep_bytes && self.segments.oldest().is_none() {
            let next = read(&self.attempts).range((from, Bound::Unbounded)).next().map(|(id, _)| *id);
            let Some(id) = next else { return };
            for stream in [Stream::Stdout, Stream::Stderr] {
                if self.drop_below(id, stream, u64::MAX) {
                    jobs.insert(id.job);
                }
            }
            from = Bound::Excluded(id);
        }
    }
}
