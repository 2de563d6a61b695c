//! The two queues of a connection, and the handle that fills them.
//!
//! Everybody who sends holds a [`FrameSender`]; the writer's task takes out. Always true: the bytes of each queue stay
//! within their limit; nobody who must not wait is made to; the lock is held for copying one buffer at most and never
//! over an await.
//! Deliberately not here: the stream (see `writer`).

use crate::limits::{BULK_QUEUE_BYTES, CONTROL_QUEUE_BYTES, CONTROL_WAITING_BYTES, FRAME_COST_MIN, WRITE_BYTES};
use essaim_proto::limits::VALUE_BYTES_MAX;
use essaim_proto::{Frame, Function};
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::AsyncRead;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;

/// The receiving half of a stream.
pub(super) type ReadHalf = Box<dyn AsyncRead + Send + Unpin>;

/// Why a frame was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The connection is closed or closing.
    #[error("the connection is closed")]
    Closed,
    /// The peer does not read; the connection was closed for that.
    #[error("the peer does not read, the connection was closed")]
    Overflow,
    /// A mistake of ours: the value does not fit a frame.
    #[error("a value of {0} bytes exceeds one frame")]
    TooLarge(usize),
}

/// What broke a connection from the sending side.
#[derive(Debug, Clone)]
pub(super) enum Failure {
    Overflow(usize),
    Stalled(Duration),
    Write(Arc<io::Error>),
}

/// How far a connection is.
#[derive(Debug, Clone)]
pub(super) enum Phase {
    Open,
    Closing { until: Instant },
    Ended(Option<Failure>),
}

/// How many bytes wait, by queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Queued {
    /// Bytes of control frames, at most [`CONTROL_QUEUE_BYTES`].
    pub control_bytes: usize,
    /// Bytes of bulk frames, at most [`BULK_QUEUE_BYTES`] and one frame's excess over it.
    pub bulk_bytes: usize,
}

/// A control frame and what it holds of the waiting senders' room.
struct Control {
    frame: Frame,
    waited: usize,
}

#[derive(Default)]
struct Queues {
    control: VecDeque<Control>,
    bulk: VecDeque<Frame>,
    queued: Queued,
    /// Why we close; set once.
    closing: Option<String>,
    heartbeat: Option<Duration>,
    ping_at: Option<Instant>,
    ping_id: u64,
    ping_sent: Option<Instant>,
}

/// What senders, reader and writer of one connection share.
pub(super) struct Shared {
    queues: Mutex<Queues>,
    bulk_room: Semaphore,
    control_room: Semaphore,
    /// Wakes the writer.
    pub(super) wake: Notify,
    pub(super) phase: watch::Sender<Phase>,
    returned: Mutex<Option<ReadHalf>>,
    pub(super) reader_returned: Notify,
    rtt_us: AtomicU64,
}

/// What the writer finds when it looks into the queues.
pub(super) enum Taken {
    /// The buffer holds frames.
    Filled,
    /// Nothing waits; look again at this time.
    Empty { ping_at: Option<Instant> },
    /// Nothing waits and nothing will: say goodbye with this reason.
    Finished { reason: String },
}

impl Shared {
    pub(super) fn new() -> Shared {
        Shared {
            queues: Mutex::default(),
            bulk_room: Semaphore::new(BULK_QUEUE_BYTES),
            control_room: Semaphore::new(CONTROL_WAITING_BYTES),
            wake: Notify::new(),
            phase: watch::Sender::new(Phase::Open),
            returned: Mutex::default(),
            reader_returned: Notify::new(),
            rtt_us: AtomicU64::new(0),
        }
    }

    /// A thread that panicked with this lock held has left whole frames behind: go on.
    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves what waits into `buffer`, control first, up to [`WRITE_BYTES`] or one larger frame.
    pub(super) fn take(&self, buffer: &mut Vec<u8>, now: Instant) -> Taken {
        let (mut bulk_freed, mut control_freed) = (0, 0);
        let taken = {
            let mut queues = self.queues();
            while queues.control.front().is_some_and(|entry| fits(buffer, &entry.frame)) {
                let Some(entry) = queues.control.pop_front() else { break };
                entry.frame.write_to(buffer);
                queues.queued.control_bytes -= cost(&entry.frame);
                control_freed += entry.waited;
            }
            // After control: the hub's first frame is its welcome. Late by one buffer at most.
            queues.ping(buffer, now);
            // A control frame that did not fit must not be overtaken.
            if queues.control.is_empty() {
                while queues.bulk.front().is_some_and(|frame| fits(buffer, frame)) {
                    let Some(frame) = queues.bulk.pop_front() else { break };
                    frame.write_to(buffer);
                    queues.queued.bulk_bytes -= cost(&frame);
                    bulk_freed += bulk_permits(&frame);
                }
            }
            match &queues.closing {
                _ if !buffer.is_empty() => Taken::Filled,
                Some(reason) => Taken::Finished { reason: reason.clone() },
                None => Taken::Empty { ping_at: queues.ping_at },
            }
        };
        self.bulk_room.add_permits(bulk_freed);
        self.control_room.add_permits(control_freed);
        taken
    }

    pub(super) fn set_heartbeat(&self, heartbeat: Option<Duration>) {
        let mut queues = self.queues();
        queues.heartbeat = heartbeat;
        // The first ping at once: it measures the way while nothing else is on it.
        queues.ping_at = heartbeat.map(|_| Instant::now());
        drop(queues);
        self.wake.notify_one();
    }

    pub(super) fn pong(&self, id: u64) {
        let mut queues = self.queues();
        if id == queues.ping_id
            && let Some(sent) = queues.ping_sent.take()
        {
            let rtt = u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX);
            // 0 means "not measured".
            self.rtt_us.store(rtt.max(1), Ordering::Relaxed);
        }
    }

    /// The reader is gone; the writer reads on until the peer's end. When there is no writer any more the half goes at
    /// once: kept here, it would hold the socket for as long as somebody holds a sender.
    pub(super) fn give_back(&self, half: ReadHalf) {
        let mut returned = self.returned.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*self.phase.borrow(), Phase::Ended(_)) {
            *returned = Some(half);
        }
        drop(returned);
        self.reader_returned.notify_one();
    }

    pub(super) fn take_returned(&self) -> Option<ReadHalf> {
        self.returned.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Ends the connection; the first end counts. Everybody who waits for room is told.
    pub(super) fn end(&self, failure: Option<Failure>) {
        {
            let mut queues = self.queues();
            queues.closing.get_or_insert_default();
            // Frames that nobody will send must not keep their memory for as long as somebody holds a sender.
            queues.control = VecDeque::new();
            queues.bulk = VecDeque::new();
            queues.queued = Queued::default();
        }
        self.close_rooms();
        self.phase.send_if_modified(|phase| {
            let is_first = !matches!(phase, Phase::Ended(_));
            if is_first {
                *phase = Phase::Ended(failure);
            }
            is_first
        });
        // After the phase: a half that came before is here now, one that comes later is not kept.
        drop(self.take_returned());
    }

    fn close_rooms(&self) {
        self.bulk_room.close();
        self.control_room.close();
    }
}

impl Queues {
    fn ping(&mut self, buffer: &mut Vec<u8>, now: Instant) {
        let (Some(heartbeat), Some(at)) = (self.heartbeat, self.ping_at) else { return };
        if now < at || self.closing.is_some() {
            return;
        }
        self.ping_id += 1;
        self.ping_sent = Some(now);
        self.ping_at = Some(now + heartbeat);
        Frame::empty(Function::PING, self.ping_id).write_to(buffer);
    }
}

fn fits(buffer: &[u8], frame: &Frame) -> bool {
    buffer.is_empty() || buffer.len() + frame.wire_bytes() <= WRITE_BYTES
}

/// What a frame counts in a queue.
fn cost(frame: &Frame) -> usize {
    frame.wire_bytes().max(FRAME_COST_MIN)
}

/// A frame larger than the whole queue takes all of it.
fn bulk_permits(frame: &Frame) -> usize {
    cost(frame).min(BULK_QUEUE_BYTES)
}

/// The sending half; clones send on the same connection. Dropping it changes nothing.
#[derive(Clone)]
pub struct FrameSender {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for FrameSender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrameSender").field("queued", &self.queued()).finish_non_exhaustive()
    }
}

impl FrameSender {
    pub(super) fn new(shared: Arc<Shared>) -> FrameSender {
        FrameSender { shared }
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Queues a frame that goes before all bulk. Never waits.
    ///
    /// # Errors
    /// [`SendError::Overflow`] when [`CONTROL_QUEUE_BYTES`] wait already: the peer does not read, and this call has
    /// closed the connection. Otherwise [`SendError::Closed`] or [`SendError::TooLarge`].
    pub fn control(&self, frame: Frame) -> Result<(), SendError> {
        check(&frame)?;
        self.push_control(frame, 0)
    }

    /// Queues a control frame, waiting for room first: for those who ask more than they answer. Cancellation-safe.
    ///
    /// # Errors
    /// As [`FrameSender::control`].
    pub async fn control_when_room(&self, frame: Frame) -> Result<(), SendError> {
        check(&frame)?;
        let cost = cost(&frame);
        let room = self.shared.control_room.acquire_many(cost as u32).await.map_err(|_| SendError::Closed)?;
        room.forget();
        self.push_control(frame, cost)
    }

    /// Queues a frame behind all other bulk, waiting until there is room: this is the back-pressure. Cancellation-safe.
    ///
    /// # Errors
    /// [`SendError::Closed`] or [`SendError::TooLarge`].
    pub async fn bulk(&self, frame: Frame) -> Result<(), SendError> {
        check(&frame)?;
        let permits = bulk_permits(&frame) as u32;
        let room = self.shared.bulk_room.acquire_many(permits).await.map_err(|_| SendError::Closed)?;
        {
            let mut queues = self.shared.queues();
            if queues.closing.is_some() {
                return Err(SendError::Closed);
            }
            // The writer gives the room back when it takes the frame out.
            room.forget();
            queues.queued.bulk_bytes += cost(&frame);
            queues.bulk.push_back(frame);
        }
        self.shared.wake.notify_one();
        Ok(())
    }

    /// Closes cleanly: what is queued goes out, then GOODBYE with `reason` (a code: `shutdown`, `done` …), then the end of
    /// the stream; all within [`crate::limits::CLOSE_TIME`]. Nothing can be queued any more. The first call counts.
    pub fn close(&self, reason: &str) {
        {
            let mut queues = self.shared.queues();
            if queues.closing.is_some() {
                return;
            }
            queues.closing = Some(reason.to_owned());
        }
        self.shared.close_rooms();
        let until = Instant::now() + crate::limits::CLOSE_TIME;
        self.shared.phase.send_if_modified(|phase| {
            let was_open = matches!(phase, Phase::Open);
            if was_open {
                *phase = Phase::Closing { until };
            }
            was_open
        });
        self.shared.wake.notify_one();
    }

    /// Is the connection closing or closed?
    pub fn is_closed(&self) -> bool {
        !matches!(*self.shared.phase.borrow(), Phase::Open)
    }

    /// Returns when the connection has ended: all was sent and the peer has closed too, or time was up, or it broke.
    pub async fn closed(&self) {
        let mut phase = self.shared.phase.subscribe();
        // An error would mean that the sender of phases is gone, and it is here.
        let _ = phase.wait_for(|phase| matches!(phase, Phase::Ended(_))).await;
    }

    /// How many bytes wait now.
    pub fn queued(&self) -> Queued {
        self.shared.queues().queued
    }

    /// The last measured round trip in microseconds, from PING to the reading of PONG; `None` before the first.
    pub fn rtt_us(&self) -> Option<u64> {
        let rtt = self.shared.rtt_us.load(Ordering::Relaxed);
        (rtt > 0).then_some(rtt)
    }

    fn push_control(&self, frame: Frame, waited: usize) -> Result<(), SendError> {
        let cost = cost(&frame);
        let waiting = {
            let mut queues = self.shared.queues();
            if queues.closing.is_some() {
                return Err(SendError::Closed);
            }
            let waiting = queues.queued.control_bytes;
            if waiting + cost <= CONTROL_QUEUE_BYTES {
                queues.queued.control_bytes += cost;
                queues.control.push_back(Control { frame, waited });
                drop(queues);
                self.shared.wake.notify_one();
                return Ok(());
            }
            waiting
        };
        self.shared.end(Some(Failure::Overflow(waiting)));
        Err(SendError::Overflow)
    }
}

fn check(frame: &Frame) -> Result<(), SendError> {
    let bytes = frame.value.len();
    if bytes <= VALUE_BYTES_MAX { Ok(()) } else { Err(SendError::TooLarge(bytes)) }
}
