//! The output of one attempt: from the program's pipes to the hub, in order, kept until the hub has it.
//!
//! An attempt starts one pump and gives it the pipes of each phase; the driver tells it what the hub has. Always true:
//! bytes are dropped only below what the hub acknowledged; at most [`OUTPUT_WINDOW_BYTES`] are kept, then the program
//! waits in its own write; what was read is sent at once; the end of the attempt goes out behind all of its bytes.
//!
//! ```text
//!   program ─ pipe ─▶ read (only with room) ─▶ kept ─▶ sent ─▶ acknowledged: dropped
//!                                               └── a new session sends again from what the hub has
//! ```
//!
//! The end of a phase is the death of its tree, not the end of its pipes: something outside the tree may hold them open
//! for ever. What the pipes hold at that moment is what the program wrote; exactly that is still read.
//! A program that prints more than it may is killed by its pump, which nothing can outrun: what is more is read and dropped,
//! so that neither memory nor the program's end waits for it.
//! Deliberately not here: what the bytes are, when a phase ends (`attempt`).

use crate::cage::CageHand;
use crate::limits::{GATHER, SMALL_READ_BYTES, SMALL_READS_AT_ONCE};
use crate::link::{Link, LinkWatch, Offsets};
use essaim_proto::api::Stream;
use essaim_proto::job::TaskResult;
use essaim_proto::limits::{CHUNK_BYTES, OUTPUT_WINDOW_BYTES};
use essaim_proto::link::{AttemptOutput, Ended};
use essaim_proto::{AttemptId, Frame, Function};
use essaim_sandbox::{Printed, ProgramId};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

/// Standard output, standard error: their places in every pair of this module.
const STREAMS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

/// The pipes of one phase.
#[derive(Debug)]
pub(crate) struct Pipes {
    /// Ours of standard output and standard error; a phase may use one alone.
    pub(crate) ends: [Option<pipe::Receiver>; 2],
    /// What was read of both before, and comes first.
    pub(crate) before: [Vec<u8>; 2],
    /// Tells that the tree is dead.
    pub(crate) over: oneshot::Receiver<()>,
    /// How much the phase may print.
    pub(crate) budget: Budget,
    /// Hears once all has been read.
    pub(crate) done: oneshot::Sender<Printing>,
}

/// How much a phase may print; whoever prints more is killed, and what is more is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    /// Bytes of both streams that may still come.
    pub(crate) left: u64,
    /// Who would kill it,
    pub(crate) hand: CageHand,
    /// by its number.
    pub(crate) program: ProgramId,
}

/// What a phase has printed, once all of it was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Printing {
    /// Bytes of both streams since the attempt began.
    pub(crate) ends: Offsets,
    /// Was it more than it may?
    pub(crate) is_cut: bool,
}

impl Budget {
    /// How much of `count` bytes may be kept; the first that may not ends the program.
    fn take(&mut self, count: usize, is_cut: &mut bool) -> usize {
        let kept = count.min(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= kept as u64;
        if kept < count && !std::mem::replace(is_cut, true) {
            self.hand.kill_now(self.program);
        }
        kept
    }
}

/// What the driver wants of a pump. The latest word counts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wishes {
    /// What the hub has.
    pub(crate) acked: Offsets,
    /// Tell the end on the link of this epoch.
    pub(crate) end: Option<(u64, Arc<TaskResult>)>,
}

/// What may be kept of a program that is over, at most so many bytes, and whether that is not all.
pub(crate) fn cut(mut printed: Printed, mut left: u64) -> (Printed, bool) {
    let whole = printed.stdout.len() + printed.stderr.len();
    for stream in [&mut printed.stdout, &mut printed.stderr] {
        stream.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        left -= stream.len() as u64;
    }
    let is_cut = printed.stdout.len() + printed.stderr.len() < whole;
    (printed, is_cut)
}

/// The pump of one attempt. It ends when its driver drops the wishes.
pub(crate) struct Pump {
    attempt: AttemptId,
    /// The session that brought the attempt: its hub has nothing yet.
    born: u64,
    watch: LinkWatch,
    wishes: watch::Receiver<Wishes>,
    phases: mpsc::Receiver<Pipes>,
    phase: Option<Phase>,
    kept: [Kept; 2],
    link: Option<Arc<Link>>,
    /// The hub does not want the attempt any more: what comes is dropped.
    is_unwanted: bool,
    end_told: u64,
    scrap: Vec<u8>,
    small_reads: u32,
    read_again_at: Option<Instant>,
}

/// A phase that runs, or whose pipes still hold something.
struct Phase {
    ends: [Option<pipe::Receiver>; 2],
    over: Option<oneshot::Receiver<()>>,
    /// Bytes that are still to be read, once the tree is dead.
    left: Option<[usize; 2]>,
    budget: Budget,
    is_cut: bool,
    done: oneshot::Sender<Printing>,
}

/// One stream's bytes that the hub may not have.
#[derive(Debug, Default)]
struct Kept {
    /// Offset of the first byte in `bytes`.
    start: u64,
    bytes: VecDeque<u8>,
    /// Offset of the first byte that has not been sent on the present link.
    sent: u64,
}

impl Kept {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    fn drop_below(&mut self, offset: u64) {
        let count = offset.clamp(self.start, self.end()) - self.start;
        self.bytes.drain(..count as usize);
        self.start += count;
        self.sent = self.sent.max(self.start);
    }

    /// The next bytes to send.
    fn next(&self) -> Option<(u64, Vec<u8>)> {
        let from = (self.sent - self.start) as usize;
        let count = (self.bytes.len() - from).min(CHUNK_BYTES);
        if count == 0 {
            return None;
        }
        // By slices: byte by byte would be felt at the speed of a fast program.
        let (front, back) = self.bytes.as_slices();
        let in_front = count.min(front.len().saturating_sub(from));
        let mut bytes = Vec::with_capacity(count);
        bytes.extend_from_slice(front.get(from..from + in_front).unwrap_or_default());
        let skipped = from.saturating_sub(front.len());
        bytes.extend_from_slice(&back[skipped..skipped + count - in_front]);
        Some((self.sent, bytes))
    }
}

/// What woke a pump.
enum Woken {
    Link,
    Wishes,
    Phase(Pipes),
    Readable(usize),
    Over,
    Gathered,
    Sent(usize, u64),
    EndTold(u64),
    LinkBroken,
    Finished,
}

impl Pump {
    /// A pump for `attempt`, given by the session `born`, that has printed `before` already.
    pub(crate) fn new(
        attempt: AttemptId,
        born: u64,
        watch: LinkWatch,
        wishes: watch::Receiver<Wishes>,
        phases: mpsc::Receiver<Pipes>,
        before: [Vec<u8>; 2],
    ) -> Pump {
        Pump {
            attempt,
            born,
            watch,
            wishes,
            phases,
            phase: None,
            kept: before.map(|bytes| Kept { bytes: bytes.into(), ..Kept::default() }),
            link: None,
            is_unwanted: false,
            end_told: 0,
            scrap: Vec::new(),
            small_reads: 0,
            read_again_at: None,
        }
    }

    /// Pumps until the attempt is forgotten.
    pub(crate) async fn run(mut self) {
        self.take_link();
        self.take_acks();
        loop {
            self.finish_phase();
            let woken = match self.next_frame() {
                Some((frame, sent)) => self.send(frame, sent).await,
                None => self.wait().await,
            };
            match woken {
                Woken::Link => self.take_link(),
                Woken::Wishes => self.take_acks(),
                Woken::Phase(Pipes { ends, before, over, mut budget, done }) => {
                    let mut is_cut = false;
                    for (kept, mut bytes) in self.kept.iter_mut().zip(before) {
                        bytes.truncate(budget.take(bytes.len(), &mut is_cut));
                        kept.bytes.extend(bytes);
                    }
                    if self.is_unwanted {
                        self.drop_acked(self.ends());
                    }
                    self.phase = Some(Phase { ends, over: Some(over), left: None, budget, is_cut, done });
                }
                Woken::Readable(stream) => self.read(stream),
                Woken::Over => self.tree_is_dead(),
                Woken::Gathered => self.read_again_at = None,
                Woken::Sent(stream, to) => self.kept[stream].sent = to,
                Woken::EndTold(epoch) => self.end_told = epoch,
                Woken::LinkBroken => self.link = None,
                Woken::Finished => return,
            }
        }
    }

    /// What is to be sent now, and what is true once it was: output first, then the end.
    fn next_frame(&self) -> Option<(Frame, Woken)> {
        let link = self.link.as_ref()?;
        for (place, stream) in STREAMS.into_iter().enumerate() {
            let Some((offset, bytes)) = self.kept[place].next() else { continue };
            let sent = Woken::Sent(place, offset + bytes.len() as u64);
            let output = AttemptOutput { attempt: self.attempt, stream, offset, bytes };
            return Some((Frame::of(Function::ATTEMPT_OUTPUT, 0, &output), sent));
        }
        let wishes = self.wishes.borrow();
        let (epoch, result) = wishes.end.as_ref().filter(|(epoch, _)| *epoch == link.epoch)?;
        if self.end_told >= *epoch || self.phase.is_some() {
            return None;
        }
        let mut result = TaskResult::clone(result);
        // A phase that ended with its cage has told nobody what it wrote.
        [result.stdout_bytes, result.stderr_bytes] = self.ends();
        let ended = Ended { attempt: self.attempt, result };
        Some((Frame::of(Function::ENDED, 0, &ended), Woken::EndTold(*epoch)))
    }

    async fn send(&mut self, frame: Frame, sent: Woken) -> Woken {
        let Some(link) = self.link.clone() else { return Woken::LinkBroken };
        tokio::select! {
            result = link.sender.bulk(frame) => if result.is_ok() { sent } else { Woken::LinkBroken },
            // The hub may be slow; that it has more, or is another one, is heard all the same.
            changed = self.watch.changed() => if changed.is_ok() { Woken::Link } else { Woken::Finished },
            changed = self.wishes.changed() => if changed.is_ok() { Woken::Wishes } else { Woken::Finished },
        }
    }

    async fn wait(&mut self) -> Woken {
        let may_read = self.room() > 0 && self.read_again_at.is_none();
        let (ends, over) = match &mut self.phase {
            Some(phase) => (phase.ends.each_ref().map(Option::as_ref), phase.over.as_mut()),
            None => ([None, None], None),
        };
        let [stdout, stderr] = ends.map(|end| end.filter(|_| may_read));
        tokio::select! {
            changed = self.watch.changed() => if changed.is_ok() { Woken::Link } else { Woken::Finished },
            changed = self.wishes.changed() => if changed.is_ok() { Woken::Wishes } else { Woken::Finished },
            pipes = self.phases.recv(), if !self.phases.is_closed() || !self.phases.is_empty() => match pipes {
                Some(pipes) => Woken::Phase(pipes),
                None => Woken::Gathered,
            },
            () = readable(stdout) => Woken::Readable(0),
            () = readable(stderr) => Woken::Readable(1),
            () = heard(over) => Woken::Over,
            () = until(self.read_again_at) => Woken::Gathered,
        }
    }

    fn take_link(&mut self) {
        let link = self.watch.borrow_and_update().clone();
        self.link = None;
        let Some(link) = link else { return };
        match link.keep.get(&self.attempt) {
            Some(has) => {
                self.drop_acked(*has);
                if self.kept.iter().zip(has).any(|(kept, has)| kept.start > *has) {
                    tracing::error!(attempt = %self.attempt, "the hub has lost output that it had acknowledged");
                }
                for kept in &mut self.kept {
                    // Everything that is kept: what the hub has was dropped.
                    kept.sent = kept.start;
                }
            }
            None if link.epoch == self.born => {}
            None => self.is_unwanted = true,
        }
        if self.is_unwanted {
            self.drop_acked(self.ends());
        } else {
            self.link = Some(link);
        }
    }

    fn take_acks(&mut self) {
        let acked = self.wishes.borrow_and_update().acked;
        self.drop_acked(acked);
    }

    fn drop_acked(&mut self, acked: Offsets) {
        for (kept, acked) in self.kept.iter_mut().zip(acked) {
            kept.drop_below(acked);
        }
    }

    fn ends(&self) -> Offsets {
        self.kept.each_ref().map(Kept::end)
    }

    fn room(&self) -> usize {
        let kept: usize = self.kept.iter().map(|kept| kept.bytes.len()).sum();
        (OUTPUT_WINDOW_BYTES as usize).saturating_sub(kept)
    }

    fn read(&mut self, stream: usize) {
        let room = self.room();
        let Some(phase) = &mut self.phase else { return };
        let Some(end) = &phase.ends[stream] else { return };
        let left = phase.left.map_or(usize::MAX, |left| left[stream]);
        self.scrap.resize(CHUNK_BYTES, 0);
        match end.try_read(&mut self.scrap[..CHUNK_BYTES.min(room).min(left)]) {
            Ok(0) => phase.ends[stream] = None,
            Ok(count) => {
                if let Some(left) = &mut phase.left {
                    left[stream] -= count;
                }
                let kept = &mut self.kept[stream];
                kept.bytes.extend(&self.scrap[..phase.budget.take(count, &mut phase.is_cut)]);
                if self.is_unwanted {
                    kept.drop_below(kept.end());
                }
                self.slow_down(count);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::warn!(attempt = %self.attempt, %error, "a program's output cannot be read");
                phase.ends[stream] = None;
            }
        }
    }

    /// After many small reads in a row the next one waits a moment, so that more is there.
    fn slow_down(&mut self, count: usize) {
        self.small_reads = if count < SMALL_READ_BYTES { self.small_reads + 1 } else { 0 };
        let is_over = self.phase.as_ref().is_some_and(|phase| phase.left.is_some());
        if self.small_reads > SMALL_READS_AT_ONCE && !is_over {
            self.read_again_at = Some(Instant::now() + GATHER);
        }
    }

    /// Nobody writes any more who belongs to the program: what the pipes hold now is the rest.
    fn tree_is_dead(&mut self) {
        self.read_again_at = None;
        let Some(phase) = &mut self.phase else { return };
        phase.over = None;
        let held = |end: &Option<pipe::Receiver>| {
            let count = end.as_ref().map(rustix::io::ioctl_fionread);
            // An error would mean that it is no pipe.
            count.and_then(Result::ok).map_or(0, |count| count as usize)
        };
        phase.left = Some(phase.ends.each_ref().map(held));
    }

    /// Closes pipes that hold nothing more, and tells when that was all.
    fn finish_phase(&mut self) {
        let Some(phase) = &mut self.phase else { return };
        let Some(left) = phase.left else { return };
        for (end, left) in phase.ends.iter_mut().zip(left) {
            if left == 0 {
                *end = None;
            }
        }
        if phase.ends.iter().all(Option::is_none) {
            let ends = self.ends();
            if let Some(phase) = self.phase.take() {
                // Nobody waits for it if the attempt was dropped meanwhile.
                let _ = phase.done.send(Printing { ends, is_cut: phase.is_cut });
            }
        }
    }
}

/// Something can be read, or the end is reached.
async fn readable(end: Option<&pipe::Receiver>) {
    match end {
        // An error is found again by the read.
        Some(end) => drop(end.readable().await),
        None => std::future::pending().await,
    }
}

async fn heard(over: Option<&mut oneshot::Receiver<()>>) {
    match over {
        // A dropped sender means that the attempt is gone: the same.
        Some(over) => drop(over.await),
        None => std::future::pending().await,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Are bytes kept, cut and dropped by their offsets, also where the buffer wraps around?
    #[test]
    fn bytes_are_kept_by_offset() {
        let mut kept = Kept::default();
        let mut written = 0_u64;
        let byte = |offset: u64| (offset % 251) as u8;
        for round in 0..200 {
            let more: Vec<u8> = (written..written + 9_000).map(byte).collect();
            kept.bytes.extend(&more);
            written += 9_000;
            while let Some((offset, bytes)) = kept.next() {
                assert_eq!(offset, kept.sent);
                assert!(bytes.len() <= CHUNK_BYTES);
                assert!((offset..).zip(&bytes).all(|(at, found)| *found == byte(at)), "round {round}");
                kept.sent += bytes.len() as u64;
            }
            kept.drop_below(written.saturating_sub(30_000));
            // A new session that has less than was sent.
            if round % 7 == 0 {
                kept.sent = kept.start;
            }
        }
        assert_eq!((kept.end(), kept.bytes.len()), (written, 30_000));
        kept.drop_below(5);
        assert_eq!(kept.bytes.len(), 30_000, "an old acknowledgement changes nothing");
        kept.drop_below(u64::MAX);
        assert_eq!((kept.start, kept.sent, kept.bytes.len()), (written, written, 0));
    }
}
