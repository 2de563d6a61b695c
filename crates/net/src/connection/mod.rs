//! One framed connection: a reader that gives frames in order, a sender that queues them, a task that writes.
//!
//! `door` and `dial` make connections; sessions, workers and [`crate::client`] use them.
//!
//! ```text
//!   FrameSender ─ control ─▶┐
//!   (clones)    ─ bulk ────▶┴─ writer task ─▶ stream ─▶ FrameReader ─▶ next()
//!                 ▲ room                        ping answered here, pong swallowed
//!
//!   open ──close() or the reader dropped──▶ closing (queues drain, GOODBYE, end of stream) ──▶ ended
//!     └──── stalled, overflowing or broken ────────────────────────────────────────────────────▲
//! ```
//!
//! Always true: control goes before bulk, and each of the two keeps its order; both queues are bounded in bytes; any
//! received byte is a sign of life; the watch over silence does not wait for any write; dropping the reader ends the
//! connection in bounded time.
//! Deliberately not here: what frames mean, apart from PING, PONG and GOODBYE.

mod queue;
mod writer;

pub use queue::{FrameSender, Queued, SendError};

use crate::limits::{READ_BYTES, SILENCE_GRACE, UNTRUSTED_VALUE_BYTES};
use essaim_proto::hello::Goodbye;
use essaim_proto::limits::VALUE_BYTES_MAX;
use essaim_proto::{Decoder, Frame, FrameError, Function};
use queue::{Failure, Phase, ReadHalf, Shared};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::watch;
use tokio::time::Instant;

/// A connection with frames. Take it apart where reading and sending live in different tasks.
#[derive(Debug)]
pub struct Connection {
    /// The frames that come.
    pub reader: FrameReader,
    /// The way to send.
    pub sender: FrameSender,
    /// The near end, if the stream has addresses.
    pub local: Option<SocketAddr>,
    /// The far end.
    pub peer: Option<SocketAddr>,
}

impl Connection {
    /// Frames over `stream`; starts the writer's task, so it needs a tokio runtime. Values are limited to
    /// [`UNTRUSTED_VALUE_BYTES`] until [`FrameReader::trust`].
    pub fn over<S>(stream: S) -> Connection
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (read, write) = tokio::io::split(stream);
        let shared = Arc::new(Shared::new());
        tokio::spawn(writer::run(Box::new(write), Arc::clone(&shared)));
        let sender = FrameSender::new(Arc::clone(&shared));
        let reader = FrameReader {
            phase: shared.phase.subscribe(),
            half: Some(Box::new(read)),
            decoder: Decoder::with_limit(UNTRUSTED_VALUE_BYTES),
            buffer: vec![0; READ_BYTES],
            sender: sender.clone(),
            silence: None,
            received_at: Instant::now(),
            waiting_since: None,
            goodbye: None,
        };
        Connection { reader, sender, local: None, peer: None }
    }

    /// The same connection with the addresses of its ends.
    pub fn with_addresses(mut self, local: Option<SocketAddr>, peer: Option<SocketAddr>) -> Connection {
        self.local = local;
        self.peer = peer;
        self
    }
}

/// Why no more frames come. The connection is over.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The stream broke, or ended without a goodbye (the peer was killed, a cable was pulled).
    #[error("the connection broke")]
    Lost(#[source] io::Error),
    /// The stream ended inside a frame.
    #[error("the connection ended in the middle of a frame")]
    CutOff,
    /// The peer does not speak our frames.
    #[error("the peer sent something that is no frame")]
    Frame(#[from] FrameError),
    /// Nothing came for too long.
    #[error("nothing was received for {} ms", .0.as_millis())]
    Silent(Duration),
    /// The peer took nothing for too long.
    #[error("the peer took nothing for {} ms", .0.as_millis())]
    Stalled(Duration),
    /// So much waited for the peer that it cannot be reading.
    #[error("the peer does not read: {0} bytes of control frames wait for it")]
    Overflow(usize),
    /// Sending failed, and the reader had nothing more.
    #[error("the connection broke while sending")]
    Write(#[source] Arc<io::Error>),
}

/// The receiving half. Dropping it ends the connection: what is queued is still sent, within
/// [`crate::limits::CLOSE_TIME`].
pub struct FrameReader {
    /// `None` only while it is being dropped.
    half: Option<ReadHalf>,
    phase: watch::Receiver<Phase>,
    decoder: Decoder,
    buffer: Vec<u8>,
    sender: FrameSender,
    silence: Option<Duration>,
    received_at: Instant,
    /// Since when `next` has been waiting for bytes, over all its calls.
    waiting_since: Option<Instant>,
    goodbye: Option<String>,
}

impl std::fmt::Debug for FrameReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrameReader").field("goodbye", &self.goodbye).finish_non_exhaustive()
    }
}

impl FrameReader {
    /// The next frame in order, or `None` when either side has closed cleanly ([`FrameReader::goodbye`] says why).
    /// PING is answered here and PONG is swallowed, so whoever holds the reader must keep calling. Cancellation-safe.
    ///
    /// # Errors
    /// [`ReadError`]; the connection is over then.
    pub async fn next(&mut self) -> Result<Option<Frame>, ReadError> {
        loop {
            if self.goodbye.is_some() {
                return Ok(None);
            }
            match self.decoder.next_frame() {
                Ok(Some(frame)) => match self.receive(frame) {
                    Some(frame) => return Ok(Some(frame)),
                    None => continue,
                },
                Ok(None) => {}
                Err(error) => {
                    self.sender.close("protocol");
                    return Err(error.into());
                }
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    /// The peer has shown who it is: values up to [`VALUE_BYTES_MAX`] are accepted from now on.
    pub fn trust(&mut self) {
        self.decoder.set_limit(VALUE_BYTES_MAX);
    }

    /// From now on sends a PING every `heartbeat` and fails with [`ReadError::Silent`] after `silence` without a received
    /// byte. Zero switches the one or the other off.
    pub fn keepalive(&mut self, heartbeat: Duration, silence: Duration) {
        self.silence = (!silence.is_zero()).then_some(silence);
        self.received_at = Instant::now();
        self.waiting_since = None;
        self.sender.shared().set_heartbeat((!heartbeat.is_zero()).then_some(heartbeat));
    }

    /// Why the peer closed, once it has: a code such as `shutdown` or `done`.
    pub fn goodbye(&self) -> Option<&str> {
        self.goodbye.as_deref()
    }

    /// Another way to send on this connection.
    pub fn sender(&self) -> FrameSender {
        self.sender.clone()
    }

    /// Deals with the frames that are the connection's own business; gives the others back.
    fn receive(&mut self, frame: Frame) -> Option<Frame> {
        match frame.function {
            Function::PING => {
                // When this fails the connection is ending, and the next read says so.
                let _ = self.sender.control(Frame::empty(Function::PONG, frame.id));
                None
            }
            Function::PONG => {
                self.sender.shared().pong(frame.id);
                None
            }
            Function::GOODBYE => {
                let reason = frame.message::<Goodbye>().unwrap_or_default().reason;
                self.goodbye = Some(reason);
                None
            }
            _ => Some(frame),
        }
    }

    /// Reads once into the decoder. `false` at a clean end.
    async fn fill(&mut self) -> Result<bool, ReadError> {
        // A peer that never reads but keeps sending would otherwise hold its connection for as long as it likes.
        if let Phase::Ended(Some(failure @ (Failure::Overflow(_) | Failure::Stalled(_)))) = &*self.phase.borrow() {
            return Err(failure.into());
        }
        let waiting_since = *self.waiting_since.get_or_insert_with(Instant::now);
        let deadline = self.silence.map(|silence| (self.received_at + silence).max(waiting_since + SILENCE_GRACE));
        let half = self.half.as_mut().expect("the half is there until the drop");
        let read = tokio::select! {
            // Bytes that have come count before anything else, a failed write too: the peer's last words explain it.
            biased;
            read = half.read(&mut self.buffer) => read,
            phase = self.phase.wait_for(|phase| matches!(phase, Phase::Ended(_))) => {
                return match phase.as_deref() {
                    Ok(Phase::Ended(Some(failure))) => Err(failure.into()),
                    _ => Ok(false),
                };
            }
            silence = silent_at(deadline, self.silence) => {
                self.sender.close("silence");
                return Err(ReadError::Silent(silence));
            }
        };
        self.take_in(read)
    }

    fn take_in(&mut self, read: io::Result<usize>) -> Result<bool, ReadError> {
        let is_open = matches!(*self.phase.borrow(), Phase::Open);
        match read {
            Ok(0) if is_open && self.decoder.pending_bytes() > 0 => Err(ReadError::CutOff),
            Ok(0) => Ok(false),
            Ok(count) => {
                self.received_at = Instant::now();
                self.waiting_since = None;
                self.decoder.feed(&self.buffer[..count]);
                Ok(true)
            }
            // Who has said goodbye does not mind how the other end falls shut.
            Err(_) if !is_open => Ok(false),
            Err(error) => Err(ReadError::Lost(error)),
        }
    }
}

impl Drop for FrameReader {
    fn drop(&mut self) {
        self.sender.close("done");
        // The writer reads on to the peer's end: closing a socket with unread bytes would reset it, and what we sent
        // last (a refusal, perhaps) would be lost on its way.
        if let Some(half) = self.half.take() {
            self.sender.shared().give_back(half);
        }
    }
}

impl From<&Failure> for ReadError {
    fn from(failure: &Failure) -> ReadError {
        match failure {
            Failure::Overflow(bytes) => ReadError::Overflow(*bytes),
            Failure::Stalled(limit) => ReadError::Stalled(*limit),
            Failure::Write(error) => ReadError::Write(Arc::clone(error)),
        }
    }
}

async fn silent_at(deadline: Option<Instant>, silence: Option<Duration>) -> Duration {
    match (deadline, silence) {
        (Some(deadline), Some(silence)) => {
            tokio::time::sleep_until(deadline).await;
            silence
        }
        _ => std::future::pending().await,
    }
}
