//! The one thread that writes outputs: rounds of bytes, rows and news, for all attempts that are due together.
//!
//! `packed` starts it; it calls `queue`, `segments` and `index`. Always true: bytes are durable before a row names them,
//! and rows before anybody hears of it; a round that fails leaves everything as it was, in memory.
//! Deliberately not here: what is due when (`packed`), drops.

use super::attempt::{Attempt, Extent, Failure, Output};
use super::index;
use super::queue::Due;
use super::segments::checksum;
use super::{Found, Shared, read, write};
use crate::limits::{EXTENT_BYTES_MAX, HOLD, RETRY, ROUND_BYTES_MAX, TAIL_BYTES_MAX};
use essaim_proto::AttemptId;
use essaim_proto::api::Stream;
use std::time::{Duration, Instant};

/// What one round writes.
#[derive(Default)]
struct Round {
    bytes: Vec<u8>,
    /// Lengths of the extents in `bytes`, those of one part together.
    lengths: Vec<usize>,
    parts: Vec<Part>,
    /// Whoever was due, with or without bytes.
    attempts: Vec<(AttemptId, Found)>,
}

/// What one round writes of one stream.
struct Part {
    id: AttemptId,
    found: Found,
    stream: Stream,
    from: u64,
    extents: Vec<Extent>,
}

impl Shared {
    pub(super) fn write_until_stopped(&self) {
        while let Some(due) = self.queue.next() {
            let mut round = self.gather(due);
            let failure = self.write_round(&mut round).err();
            self.end_round(&round, failure.as_ref());
            self.evict(0);
            if !self.queue.end_round(failure.clone()) {
                break;
            }
        }
        // One in which nothing is kept leaves no file.
        self.segments.end_current();
        // Only after a failure: those who still wait hear of it.
        let failure = Failure::of(&std::io::Error::other("the store was closed"));
        let left: Vec<(AttemptId, Found)> =
            read(&self.attempts).iter().map(|(id, found)| (*id, found.clone())).collect();
        for (id, found) in left {
            write(&found).fail(&failure);
            self.tell(id, &found);
        }
    }

    fn gather(&self, due: Vec<Due>) -> Round {
        let mut round = Round::default();
        for (at, id) in due {
            let Some(found) = read(&self.attempts).get(&id).cloned() else { continue };
            let mut attempt = write(&found);
            // Moved, or another attempt under its name.
            if attempt.due != Some(at) {
                continue;
            }
            if round.bytes.len() >= ROUND_BYTES_MAX {
                self.queue.put_back((at, id));
                continue;
            }
            attempt.due = None;
            for stream in [Stream::Stdout, Stream::Stderr] {
                attempt.is_written |= round.add(id, &found, stream, attempt.output(stream));
            }
            drop(attempt);
            round.attempts.push((id, found));
        }
        round
    }

    fn write_round(&self, round: &mut Round) -> Result<(), Failure> {
        if round.parts.is_empty() {
            return Ok(());
        }
        let places = self.segments.write(&round.bytes, &round.lengths).map_err(|error| Failure::of(&error))?;
        let mut places = places.into_iter();
        let mut rest = round.bytes.as_slice();
        for part in &mut round.parts {
            self.index.expect(part.id.job);
            for (extent, place) in part.extents.iter_mut().zip(places.by_ref()) {
                let (bytes, after) = rest.split_at(extent.length as usize);
                (extent.segment, extent.position, extent.sum) = (place.segment, place.position, checksum(bytes));
                rest = after;
            }
        }
        let mut writing = self.index.writing();
        // Nobody is dropped and nothing is cut while we may change rows.
        let named = writing.change(|rows| {
            for part in &round.parts {
                let attempt = read(&part.found);
                if attempt.gone.is_some() {
                    continue;
                }
                let kept_from = attempt.output(part.stream).kept_from;
                drop(attempt);
                let kept = part.extents.partition_point(|extent| extent.end() <= kept_from);
                index::put(rows, part.id, part.stream, part.from, &part.extents[kept..])?;
            }
            Ok(())
        });
        if let Err(failure) = named {
            // The segments stay: should the rows be there after a crash all the same, so are the bytes.
            for extent in round.parts.iter().flat_map(|part| &part.extents) {
                self.segments.unname(extent.segment, u64::from(extent.length));
            }
            return Err(failure);
        }
        let mut unnamed: Vec<Extent> = Vec::new();
        for part in &round.parts {
            unnamed.append(&mut self.publish(part));
        }
        drop(writing);
        self.unname(&unnamed);
        Ok(())
    }

    /// The attempt in memory says what the rows say. Returns what no row names.
    fn publish(&self, part: &Part) -> Vec<Extent> {
        let mut attempt = write(&part.found);
        if attempt.gone.is_some() {
            return part.extents.clone();
        }
        let output = attempt.output_mut(part.stream);
        let kept_from = output.kept_from;
        let (mut unnamed, tail) = output.written(&part.extents);
        self.tails.give_back(tail);
        unnamed.extend(part.extents.iter().filter(|extent| extent.end() <= kept_from));
        unnamed
    }

    /// No row names these any more.
    pub(super) fn unname(&self, extents: &[Extent]) {
        for extent in extents {
            self.segments.unname(extent.segment, u64::from(extent.length));
        }
        let mut segments: Vec<u32> = extents.iter().map(|extent| extent.segment).collect();
        segments.dedup();
        self.segments.sweep(segments);
    }

    fn end_round(&self, round: &Round, failure: Option<&Failure>) {
        for (id, found) in &round.attempts {
            let mut attempt = write(found);
            attempt.is_written = false;
            if let Some(failure) = failure {
                attempt.fail(failure);
            }
            if attempt.unwritten() > 0 {
                let patience = patience(&attempt, failure.is_some());
                self.queue.schedule(*id, &mut attempt, Instant::now() + patience);
            }
            drop(attempt);
            self.tell(*id, found);
        }
    }
}

/// How long the rest waits.
fn patience(attempt: &Attempt, has_failed: bool) -> Duration {
    if has_failed {
        RETRY
    } else if attempt.is_awaited() || attempt.unwritten() >= TAIL_BYTES_MAX as u64 {
        Duration::ZERO
    } else {
        HOLD
    }
}

impl Round {
    /// Adds what a stream has to write, as much as the round takes; says if there was any.
    fn add(&mut self, id: AttemptId, found: &Found, stream: Stream, output: &Output) -> bool {
        // At least one extent more than the longest run that is written again, so that each round leads on.
        let most = ROUND_BYTES_MAX.saturating_sub(self.bytes.len()).max(EXTENT_BYTES_MAX);
        let Some(range) = output.to_write(most as u64) else { return false };
        let mut extents = Vec::new();
        let mut start = range.start;
        for bytes in output.tail_bytes(&range).chunks(EXTENT_BYTES_MAX) {
            // Where they stand and their checksum come later, without the attempt's lock.
            extents.push(Extent { start, length: bytes.len() as u32, segment: 0, position: 0, sum: 0 });
            self.lengths.push(bytes.len());
            self.bytes.extend_from_slice(bytes);
            start += bytes.len() as u64;
        }
        self.parts.push(Part { id, found: found.clone(), stream, from: range.start, extents });
        true
    }
}
