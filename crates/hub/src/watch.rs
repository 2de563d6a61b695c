//! One watched job: a task that tells a client its events and its output, as fast as the client takes them.
//!
//! Of an array the tasks are told as they end ([`array`]).
//!
//! A client session spawns it for a Submit with `watch` and for a Watch. It waits on the job's [`Feed`] and reads output
//! from the store by offset, so a slow client costs one window and never slows anybody else.
//!
//! Always true: all output of an attempt is sent before the event that carries its end; events may be skipped when
//! newer ones are there, the last one never; at most [`OUTPUT_WINDOW_BYTES`] are sent beyond what was acknowledged. Output
//! that is in the store no more is in the catalog if it was small; if it was dropped or is damaged, that is said, and what
//! follows is shown.
//! Deliberately not here: who may watch (the core), reading the client's frames (the session).

mod array;

use crate::feeds::Feed;
use crate::limits::DAMAGE_JOINED_MAX;
use crate::past::Past;
use essaim_net::{FrameSender, SendError};
use essaim_proto::api::{JobEvent, OutputChunk, OutputFrom, StdinAck, Stream};
use essaim_proto::frame::FLAG_LAST;
use essaim_proto::id::TASK_ONE;
use essaim_proto::limits::{CHUNK_BYTES, OUTPUT_WINDOW_BYTES};
use essaim_proto::{AttemptId, Frame, Function, TaskSet};
use essaim_store::{Chunk, Lengths, OutputReadError, Outputs, Small};
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::watch;
use tracing::warn;

/// What a watch needs.
pub(crate) struct Watching {
    /// The subscription's id on its connection.
    pub(crate) id: u64,
    /// With output?
    pub(crate) output: bool,
    /// End at what is there?
    pub(crate) no_follow: bool,
    /// Where to begin.
    pub(crate) from: Option<OutputFrom>,
    /// Of an array: only these tasks.
    pub(crate) tasks: Option<TaskSet>,
    /// Of an array: output in the order of its tasks.
    pub(crate) in_order: bool,
    /// The way to the client.
    pub(crate) sender: FrameSender,
    /// Chunk bytes that the client has dealt with.
    pub(crate) acked: watch::Receiver<u64>,
    /// Where output is,
    pub(crate) outputs: Outputs,
    /// and where small output is, once its attempt is over.
    pub(crate) past: Arc<Past>,
    /// Chunk bytes sent so far; 0 at the beginning.
    pub(crate) sent_bytes: u64,
}

/// What is watched.
pub(crate) enum Subject {
    /// A job that is not over.
    Live(Arc<Feed>),
    /// One that is, as it stands.
    Over(Box<JobEvent>),
    /// An array that is, with its tasks.
    OverArray(Box<JobEvent>, TaskSet),
}

/// How far the output of an attempt was sent.
struct Cursor {
    attempt: AttemptId,
    /// By stream: the next byte, and where to stop.
    next: [u64; 2],
    until: [u64; 2],
    /// Whose turn it is: 0 or 1.
    turn: usize,
    /// Once the attempt is over: how much it has written.
    wrote: Option<Wrote>,
    /// What the catalog has of it, once it was asked.
    small: Option<Small>,
}

/// What the record of an end says about output.
#[derive(Clone, Copy)]
struct Wrote {
    bytes: [u64; 2],
    /// Not all of that was kept.
    truncated: bool,
}

/// A piece of output, or of what is left of it.
#[derive(Default)]
struct Piece {
    /// Its bytes, where they begin, and whether some before were dropped.
    chunk: Chunk,
    /// How many before them are damaged.
    damaged: u64,
}

impl From<Chunk> for Piece {
    fn from(chunk: Chunk) -> Piece {
        Piece { chunk, damaged: 0 }
    }
}

/// What one step of sending came to.
enum Step {
    Sent,
    /// The client must acknowledge first.
    NoRoom,
    /// Nothing (more) is there.
    Drained,
}

const STREAMS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

impl Watching {
    /// Runs until the job is over and everything has been said, or the connection ends.
    pub(crate) async fn run(mut self, subject: Subject) {
        // A connection that ends is the session's business; this task just ends with it.
        let _ = match subject {
            Subject::Live(feed) => match &feed.array {
                Some(tail) => self.follow_array(&feed, tail).await,
                None => self.follow(&feed).await,
            },
            Subject::OverArray(event, tasks) => self.show_array(*event, tasks).await,
            Subject::Over(event) => self.show(*event).await,
        };
    }

    async fn show(&mut self, event: JobEvent) -> Result<(), SendError> {
        let mut cursor = self.cursor(attempt_of(&event));
        // All of it: nothing follows.
        cursor.until = [u64::MAX, u64::MAX];
        cursor.wrote = wrote(&event);
        loop {
            self.acked.borrow_and_update();
            match self.send_next(&mut cursor).await? {
                Step::Sent => {}
                Step::NoRoom => self.acked.changed().await.map_err(|_| SendError::Closed)?,
                Step::Drained => return self.tell(JobEvent { last: true, ..event }).await,
            }
        }
    }

    async fn follow(&mut self, feed: &Feed) -> Result<(), SendError> {
        let mut events = feed.event.subscribe();
        let mut output = feed.output.subscribe();
        let mut stdin = feed.stdin.as_ref().map(|stdin| stdin.changed.subscribe());
        let mut cursor: Option<Cursor> = None;
        let mut told: Option<JobEvent> = None;
        let mut stdin_acked = 0;
        loop {
            // All are marked as seen before anything is read, so that no change falls between the look and the wait.
            let newest = events.borrow_and_update().clone();
            output.borrow_and_update();
            self.acked.borrow_and_update();
            if let Some(changes) = &mut stdin {
                changes.borrow_and_update();
            }
            if let Some(event) = newest {
                self.ack_stdin(feed, &mut stdin_acked, &event)?;
                let cursor = cursor.get_or_insert_with(|| self.cursor(attempt_of(&event)));
                let is_current = attempt_of(&event) == cursor.attempt;
                let is_last = event.last || self.no_follow;
                if is_current && event.last {
                    cursor.wrote = wrote(&event);
                }
                if is_current && !is_last && told.as_ref() != Some(&event) {
                    self.tell(event.clone()).await?;
                    told = Some(event.clone());
                }
                match self.send_next(cursor).await? {
                    Step::Sent => continue,
                    Step::Drained if !is_current => {
                        *cursor = self.cursor(attempt_of(&event));
                        continue;
                    }
                    Step::Drained if is_last => return self.tell(JobEvent { last: true, ..event }).await,
                    Step::Drained | Step::NoRoom => {}
                }
            }
            let changed = tokio::select! {
                changed = events.changed() => changed,
                changed = output.changed() => changed,
                changed = self.acked.changed() => changed,
                changed = changed_if_any(stdin.as_mut()) => changed,
            };
            changed.map_err(|_| SendError::Closed)?;
        }
    }

    /// Where to begin in an attempt's output, and where to stop.
    fn cursor(&self, attempt: AttemptId) -> Cursor {
        let from = self.from.filter(|from| from.attempt == attempt);
        let next = from.map_or([0, 0], |from| [from.stdout, from.stderr]);
        let until = match self.outputs.lengths(attempt) {
            Lengths { stdout, stderr } if self.no_follow => [stdout, stderr],
            _ => [u64::MAX, u64::MAX],
        };
        Cursor { attempt, next, until, turn: 0, wrote: None, small: None }
    }

    /// Sends one chunk of what the store has beyond the cursor, the streams in turn.
    async fn send_next(&mut self, cursor: &mut Cursor) -> Result<Step, SendError> {
        if !self.output {
            return Ok(Step::Drained);
        }
        let room = self.acked.borrow().saturating_add(OUTPUT_WINDOW_BYTES).saturating_sub(self.sent_bytes);
        for _ in STREAMS {
            let turn = cursor.turn;
            cursor.turn = 1 - turn;
            let (stream, offset) = (STREAMS[turn], cursor.next[turn]);
            let left = cursor.until[turn].saturating_sub(offset);
            if left == 0 {
                continue;
            }
            // One byte at least is read, to know whether the lack of room matters.
            let most = left.min(room.max(1)).min(CHUNK_BYTES as u64) as usize;
            let Piece { chunk, damaged } = self.read(cursor, stream, offset, most).await;
            let Chunk { offset, bytes, dropped } = chunk;
            if bytes.is_empty() && !dropped && damaged == 0 {
                continue;
            }
            if room == 0 {
                return Ok(Step::NoRoom);
            }
            cursor.next[turn] = offset + bytes.len() as u64;
            self.sent_bytes += bytes.len() as u64;
            let message =
                OutputChunk { attempt: cursor.attempt, stream, offset, bytes, dropped, damaged_bytes: damaged };
            self.sender.bulk(Frame::of(Function::OUTPUT, self.id, &message)).await?;
            return Ok(Step::Sent);
        }
        Ok(Step::Drained)
    }

    /// At most `most` bytes from `offset` on. Nothing, and `dropped`: what follows is no longer kept.
    async fn read(&self, cursor: &mut Cursor, stream: Stream, offset: u64, most: usize) -> Piece {
        let attempt = cursor.attempt;
        let chunk = match self.look(cursor, stream, offset, most).await {
            Ok(chunk) => chunk,
            Err(OutputReadError::Corrupt { offset: from, end, .. }) => {
                return self.damaged(cursor, stream, offset, from..end).await;
            }
            Err(error) => {
                warn!(%attempt, %error, "output cannot be read");
                Chunk::default()
            }
        };
        let Some(wrote) = cursor.wrote.filter(|_| chunk.bytes.is_empty()) else { return chunk.into() };
        let end = wrote.bytes[stream as usize];
        if offset >= end {
            return Chunk { offset, ..Chunk::default() }.into();
        }
        if cursor.small.is_none() {
            cursor.small = Some(self.past.output(attempt).await.unwrap_or_default());
        }
        let small =
            cursor.small.as_ref().map(|small| if stream == Stream::Stdout { &small.stdout } else { &small.stderr });
        let rest = small.and_then(|bytes| bytes.get(offset as usize..)).unwrap_or_default();
        if !rest.is_empty() {
            return Chunk { offset, bytes: rest[..rest.len().min(most)].to_vec(), dropped: false }.into();
        }
        // What was cut off while it ran was never here.
        let is_lost = !wrote.truncated || offset == 0;
        Chunk { offset: if is_lost { end } else { offset }, bytes: Vec::new(), dropped: is_lost }.into()
    }

    /// What the store of outputs has.
    async fn look(&self, cursor: &Cursor, stream: Stream, offset: u64, most: usize) -> Result<Chunk, OutputReadError> {
        match cursor.wrote {
            Some(_) => self.past.chunk(cursor.attempt, stream, offset, most).await,
            // It runs: what it printed was here a moment ago.
            None => self.outputs.read(cursor.attempt, stream, offset, most),
        }
    }

    /// The gap that damage has left, with what is damaged right behind it.
    async fn damaged(&self, cursor: &Cursor, stream: Stream, asked: u64, mut gap: Range<u64>) -> Piece {
        let attempt = cursor.attempt;
        for _ in 0..DAMAGE_JOINED_MAX {
            match self.look(cursor, stream, gap.end, 1).await {
                Err(OutputReadError::Corrupt { offset, end, .. }) if offset == gap.end => gap.end = end,
                _ => break,
            }
        }
        let Lengths { stdout, stderr } = self.outputs.lengths(attempt);
        let there = cursor.wrote.map_or([stdout, stderr], |wrote| wrote.bytes)[stream as usize];
        gap.end = gap.end.min(there);
        if gap.is_empty() {
            return Piece::default();
        }
        warn!(%attempt, ?stream, from = gap.start, to = gap.end, "output is damaged and lost; what follows it is shown");
        let chunk = Chunk { offset: gap.end, bytes: Vec::new(), dropped: asked < gap.start };
        Piece { chunk, damaged: gap.end - gap.start }
    }

    /// Events go the way of output, so that they cannot overtake it.
    async fn tell(&self, event: JobEvent) -> Result<(), SendError> {
        let is_last = event.last;
        let frame = Frame::of(Function::EVENT, self.id, &event);
        self.sender.bulk(if is_last { frame.with_flag(FLAG_LAST) } else { frame }).await
    }

    fn ack_stdin(&self, feed: &Feed, acked: &mut u64, event: &JobEvent) -> Result<(), SendError> {
        let now = feed.stdin.as_ref().map_or(0, |stdin| stdin.acked());
        if now > *acked {
            *acked = now;
            let ack = StdinAck { job: event.job, task: TASK_ONE, offset: now };
            self.sender.control(Frame::of(Function::STDIN_ACK, self.id, &ack))?;
        }
        Ok(())
    }
}

async fn changed_if_any(changes: Option<&mut watch::Receiver<u64>>) -> Result<(), watch::error::RecvError> {
    match changes {
        Some(changes) => changes.changed().await,
        None => std::future::pending().await,
    }
}

fn attempt_of(event: &JobEvent) -> AttemptId {
    event.task.as_ref().map(|task| task.attempt_id(event.job)).unwrap_or_default()
}

fn wrote(event: &JobEvent) -> Option<Wrote> {
    let result = event.task.as_ref()?.result.as_ref()?;
    Some(Wrote { bytes: [result.stdout_bytes, result.stderr_bytes], truncated: result.truncated })
}
