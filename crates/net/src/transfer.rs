//! Blobs on their way: chunks one way, credits the other, for both ends.
//!
//! `client` uses both halves; the hub sends with [`send`] where it serves BLOB_GET and receives with [`Incoming`] where
//! it takes BLOB_PUT.
//!
//! ```text
//!   BLOB_PUT{hash, size} ─▶              BLOB_GET{hash, offset} ─▶
//!   BLOB_BYTES… last     ─▶              ◀─ answer Done (or REFUSED)
//!   ◀─ CREDIT…                           ◀─ BLOB_BYTES… last
//!   ◀─ answer Done (or REFUSED)          CREDIT… ─▶
//! ```
//!
//! Always true: at most [`BLOB_WINDOW_BYTES`] are under way without a credit; the last chunk has the flag, also when the
//! blob is empty; a received blob is complete only when size and hash are right.
//! Deliberately not here: where the bytes lie, and who may have them.

use crate::connection::{FrameSender, SendError};
use crate::limits::CREDIT_STEP_BYTES;
use essaim_proto::api::Credit;
use essaim_proto::frame::{FLAG_LAST, ValueType};
use essaim_proto::limits::{BLOB_BYTES_MAX, BLOB_WINDOW_BYTES, CHUNK_BYTES};
use essaim_proto::{BlobHash, Frame, Function, Refusal, RefusalCode};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::Semaphore;

/// Why a transfer failed.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The connection is closed.
    #[error("the connection was closed during a transfer")]
    Send(#[from] SendError),
    /// The window was closed: the other side wants no more.
    #[error("the transfer was ended by the other side")]
    Ended,
    /// The bytes to send could not be read.
    #[error("the bytes to send cannot be read")]
    Source(#[source] io::Error),
    /// The source has fewer bytes than announced.
    #[error("the file to send became shorter: {left} bytes are missing")]
    SourceShort {
        /// How many bytes are missing.
        left: u64,
    },
    /// The frame is no chunk.
    #[error("a frame of the transfer is not a chunk: {0:?}")]
    NotAChunk(Function),
    /// More bytes than announced or allowed.
    #[error("more than {limit} bytes came")]
    TooLong {
        /// What was announced or is allowed.
        limit: u64,
    },
    /// Fewer bytes than announced.
    #[error("{received} of {announced} bytes came")]
    TooShort {
        /// What came.
        received: u64,
        /// What was announced.
        announced: u64,
    },
    /// The sender did not wait for credits.
    #[error("the sender exceeded its window of {BLOB_WINDOW_BYTES} bytes")]
    OverWindow,
    /// The bytes are others.
    #[error("the bytes hash to {found}, {wanted} was wanted")]
    Mismatch {
        /// What was wanted.
        wanted: BlobHash,
        /// What came.
        found: BlobHash,
    },
}

impl TransferError {
    /// How a hub answers a BLOB_PUT of `hash` that failed like this.
    pub fn refusal(&self, hash: BlobHash) -> Refusal {
        match self {
            TransferError::TooLong { limit } => {
                Refusal::new(RefusalCode::TooLarge).with("what", "blob").with("limit", limit)
            }
            TransferError::Mismatch { .. } | TransferError::TooShort { .. } => {
                Refusal::new(RefusalCode::BlobMismatch).with("hash", hash)
            }
            _ => Refusal::new(RefusalCode::BadValue).with("function", Function::BLOB_BYTES.name().unwrap_or_default()),
        }
    }
}

/// What a sender may still send. The session that receives CREDIT frames adds to it while [`send`] takes.
#[derive(Debug)]
pub struct Window {
    room: Semaphore,
}

impl Default for Window {
    fn default() -> Window {
        Window::new()
    }
}

impl Window {
    /// A full window.
    pub fn new() -> Window {
        Window { room: Semaphore::new(BLOB_WINDOW_BYTES as usize) }
    }

    /// The receiver has dealt with so many more bytes. Credits for bytes that were never sent are ignored.
    pub fn add(&self, credit: Credit) {
        let missing = (BLOB_WINDOW_BYTES as usize).saturating_sub(self.room.available_permits());
        self.room.add_permits(missing.min(usize::try_from(credit.bytes).unwrap_or(usize::MAX)));
    }

    /// The receiver wants no more, or is gone: [`send`] ends.
    pub fn close(&self) {
        self.room.close();
    }

    async fn take(&self, bytes: usize) -> Result<(), TransferError> {
        self.room.acquire_many(bytes as u32).await.map_err(|_| TransferError::Ended)?.forget();
        Ok(())
    }
}

/// Sends `size` bytes of `source` as chunks of transfer `id`, within `window`.
///
/// # Errors
/// [`TransferError`]. When the source fails the receiver has been told by an early last chunk, which it refuses.
pub async fn send(
    sender: &FrameSender,
    id: u64,
    window: &Window,
    size: u64,
    mut source: impl AsyncRead + Unpin,
) -> Result<(), TransferError> {
    let mut left = size;
    loop {
        let length = left.min(CHUNK_BYTES as u64) as usize;
        window.take(length).await?;
        let mut chunk = vec![0; length];
        if let Err(error) = source.read_exact(&mut chunk).await {
            sender.bulk(Frame::bytes(Function::BLOB_BYTES, id, Vec::new()).with_flag(FLAG_LAST)).await?;
            let is_short = error.kind() == io::ErrorKind::UnexpectedEof;
            return Err(if is_short { TransferError::SourceShort { left } } else { TransferError::Source(error) });
        }
        left -= length as u64;
        let frame = Frame::bytes(Function::BLOB_BYTES, id, chunk);
        if left == 0 {
            return Ok(sender.bulk(frame.with_flag(FLAG_LAST)).await?);
        }
        sender.bulk(frame).await?;
    }
}

/// A blob that is coming in. The caller writes each accepted chunk to where it belongs, then calls [`Incoming::wrote`].
#[derive(Debug)]
pub struct Incoming {
    id: u64,
    wanted: Option<BlobHash>,
    announced: Option<u64>,
    received: u64,
    credited: u64,
    written: u64,
    hasher: Box<blake3::Hasher>,
}

impl Incoming {
    /// Transfer `id`. `wanted` is the hash that the bytes must have (`None`: a part of a blob, which cannot be checked),
    /// `announced` their number; without one [`BLOB_BYTES_MAX`] is the limit.
    pub fn new(id: u64, wanted: Option<BlobHash>, announced: Option<u64>) -> Incoming {
        Incoming { id, wanted, announced, received: 0, credited: 0, written: 0, hasher: Box::default() }
    }

    /// Checks the next frame of the transfer before its bytes are written anywhere. `true`: it was the last, and size and
    /// hash are right.
    ///
    /// # Errors
    /// [`TransferError`]; the transfer is over then, and what was written is to be removed.
    pub fn accept(&mut self, frame: &Frame) -> Result<bool, TransferError> {
        if frame.function != Function::BLOB_BYTES || frame.value_type != ValueType::Bytes {
            return Err(TransferError::NotAChunk(frame.function));
        }
        self.received += frame.value.len() as u64;
        let limit = self.announced.unwrap_or(BLOB_BYTES_MAX).min(BLOB_BYTES_MAX);
        if self.received > limit {
            return Err(TransferError::TooLong { limit });
        }
        if self.received - self.credited > BLOB_WINDOW_BYTES {
            return Err(TransferError::OverWindow);
        }
        self.hasher.update(&frame.value);
        if !frame.has(FLAG_LAST) {
            return Ok(false);
        }
        if let Some(announced) = self.announced.filter(|announced| *announced != self.received) {
            return Err(TransferError::TooShort { received: self.received, announced });
        }
        let found = BlobHash(*self.hasher.finalize().as_bytes());
        match self.wanted {
            Some(wanted) if wanted != found => Err(TransferError::Mismatch { wanted, found }),
            _ => Ok(true),
        }
    }

    /// So many accepted bytes are where they belong. Gives the CREDIT frame to send, when one is due.
    pub fn wrote(&mut self, bytes: usize) -> Option<Frame> {
        self.written += bytes as u64;
        let due = self.written.min(self.received) - self.credited;
        if due < CREDIT_STEP_BYTES {
            return None;
        }
        self.credited += due;
        Some(Frame::of(Function::CREDIT, self.id, &Credit { bytes: due }))
    }

    /// Bytes accepted so far.
    pub fn received_bytes(&self) -> u64 {
        self.received
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(bytes: &[u8], is_last: bool) -> Frame {
        let frame = Frame::bytes(Function::BLOB_BYTES, 1, bytes.to_vec());
        if is_last { frame.with_flag(FLAG_LAST) } else { frame }
    }

    // A blob is complete only with its size and hash; an empty one is a blob too.
    #[test]
    fn only_the_right_bytes_are_accepted() {
        let hash = BlobHash::of(b"abc");
        let mut good = Incoming::new(1, Some(hash), Some(3));
        assert!(!good.accept(&chunk(b"ab", false)).unwrap());
        assert!(good.accept(&chunk(b"c", true)).unwrap());
        assert!(Incoming::new(1, Some(BlobHash::of(b"")), Some(0)).accept(&chunk(b"", true)).unwrap());

        let fails = |announced, frame: &Frame| Incoming::new(1, Some(hash), announced).accept(frame).unwrap_err();
        assert!(matches!(fails(Some(3), &chunk(b"abd", true)), TransferError::Mismatch { .. }));
        assert!(matches!(fails(Some(3), &chunk(b"ab", true)), TransferError::TooShort { received: 2, announced: 3 }));
        assert!(matches!(fails(Some(3), &chunk(b"abcd", false)), TransferError::TooLong { limit: 3 }));
        assert!(matches!(fails(None, &Frame::empty(Function::PING, 1)), TransferError::NotAChunk(_)));
    }

    // A sender that ignores the window is stopped; one that gets credits goes on.
    #[test]
    fn the_window_is_watched() {
        let full = chunk(&[0; CHUNK_BYTES], false);
        let chunks = BLOB_WINDOW_BYTES as usize / CHUNK_BYTES;
        let mut greedy = Incoming::new(1, None, None);
        assert!((0..chunks).all(|_| greedy.accept(&full).is_ok()));
        assert!(matches!(greedy.accept(&full), Err(TransferError::OverWindow)));

        let mut patient = Incoming::new(1, None, None);
        let mut credits = 0;
        for _ in 0..4 * chunks {
            patient.accept(&full).unwrap();
            if let Some(frame) = patient.wrote(CHUNK_BYTES) {
                credits += frame.message::<Credit>().unwrap().bytes;
            }
        }
        assert_eq!(credits, patient.received_bytes());
    }

    // A liar's credits must not widen the window or overflow the count.
    #[test]
    fn false_credits_are_ignored() {
        let window = Window::new();
        for _ in 0..3 {
            window.add(Credit { bytes: u64::MAX });
        }
        assert_eq!(window.room.available_permits() as u64, BLOB_WINDOW_BYTES);
    }
}
