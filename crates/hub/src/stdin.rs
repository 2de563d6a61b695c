//! A job's live standard input between its client and its worker.
//!
//! Client sessions push, a pump of the worker's session takes, the worker's acknowledgements free. Always true: each byte
//! is taken once and in order; at most [`STDIN_KEPT_BYTES`] and a window are held; what is cheap to keep is kept from its
//! beginning, so that another attempt can read it again.
//! Deliberately not here: who may type (the core), frames (the sessions).

use crate::limits::STDIN_KEPT_BYTES;
use essaim_proto::AttemptId;
use essaim_proto::limits::{CHUNK_BYTES, STDIN_WINDOW_BYTES};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// A job's standard input.
#[derive(Debug, Default)]
pub(crate) struct Stdin {
    kept: Mutex<Kept>,
    /// Counts changes: bytes came, or were acknowledged.
    pub(crate) changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Kept {
    /// Bytes from offset `start` on.
    bytes: Vec<u8>,
    start: u64,
    /// Written by any attempt: what the client need not keep.
    acked: u64,
    ended: bool,
    /// Who reads now, and how far it has written.
    reader: AttemptId,
    written: u64,
}

/// What a pump sends next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// These bytes; `end` when nothing follows them.
    Bytes { offset: u64, bytes: Vec<u8>, end: bool },
    /// Nothing yet.
    Wait,
    /// Bytes that this attempt needs are no longer kept.
    Lost,
}

impl Stdin {
    /// Takes input from a client. Bytes that are there already are skipped, a gap and what exceeds the window are not
    /// taken: the client sends them again or breaks the protocol.
    pub(crate) fn push(&self, offset: u64, bytes: &[u8], end: bool) {
        let mut kept = self.lock();
        let length = kept.length();
        if offset > length || kept.ended {
            return;
        }
        let skip = usize::try_from(length - offset).unwrap_or(usize::MAX);
        let new = bytes.get(skip..).unwrap_or_default();
        let room = kept.acked.saturating_add(STDIN_WINDOW_BYTES).saturating_sub(length) as usize;
        let taken = &new[..new.len().min(room)];
        kept.bytes.extend_from_slice(taken);
        // An end that stands before bytes which are here already is a repetition of something else.
        kept.ended = end && taken.len() == new.len() && offset + bytes.len() as u64 >= length;
        drop(kept);
        self.changed.send_modify(|n| *n += 1);
    }

    /// An attempt begins to read, or goes on over a new connection: the offset from which it needs bytes.
    pub(crate) fn begin(&self, attempt: AttemptId) -> u64 {
        let mut kept = self.lock();
        if kept.reader != attempt {
            (kept.reader, kept.written) = (attempt, 0);
        }
        kept.written
    }

    /// The attempt's worker has written everything below `offset`.
    pub(crate) fn ack(&self, attempt: AttemptId, offset: u64) {
        let mut kept = self.lock();
        if kept.reader != attempt {
            return;
        }
        kept.written = kept.written.max(offset.min(kept.length()));
        kept.acked = kept.acked.max(kept.written);
        // Kept from the beginning while that is cheap, for another attempt; beyond that only what is not yet written.
        if kept.bytes.len() > STDIN_KEPT_BYTES {
            let written = (kept.written - kept.start) as usize;
            kept.bytes.drain(..written);
            kept.start = kept.written;
        }
        drop(kept);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Everything below is written: the client may forget it.
    pub(crate) fn acked(&self) -> u64 {
        self.lock().acked
    }

    /// What to send to an attempt that has been sent everything below `sent`.
    pub(crate) fn next(&self, sent: u64, end_sent: bool) -> Next {
        let kept = self.lock();
        if sent < kept.start {
            return Next::Lost;
        }
        let rest = kept.bytes.get((sent - kept.start) as usize..).unwrap_or_default();
        if rest.is_empty() && (!kept.ended || end_sent) {
            return Next::Wait;
        }
        let bytes = rest[..rest.len().min(CHUNK_BYTES)].to_vec();
        let end = kept.ended && bytes.len() == rest.len();
        Next::Bytes { offset: sent, bytes, end }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn length(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: usize = STDIN_WINDOW_BYTES as usize;

    fn attempt(number: u32) -> AttemptId {
        AttemptId { attempt: number, ..AttemptId::default() }
    }

    fn bytes(next: Next) -> (Vec<u8>, bool) {
        match next {
            Next::Bytes { bytes, end, .. } => (bytes, end),
            other => panic!("{other:?}"),
        }
    }

    // Is each byte taken once and in order, and can a second attempt read it again?
    #[test]
    fn input_passes_once_and_in_order_and_a_second_attempt_reads_it_again() {
        let stdin = Stdin::default();
        stdin.push(0, b"one\n", false);
        stdin.push(2, b"e\ntwo\n", false);
        assert_eq!(stdin.begin(attempt(1)), 0);
        assert_eq!(bytes(stdin.next(0, false)), (b"one\ntwo\n".to_vec(), false));
        assert_eq!(stdin.next(8, false), Next::Wait);
        stdin.ack(attempt(1), 8);
        stdin.push(0, b"one", true);
        assert_eq!(stdin.next(8, false), Next::Wait, "an end in the middle is none");
        stdin.push(8, b"", true);
        assert_eq!(bytes(stdin.next(8, false)), (Vec::new(), true));
        assert_eq!(stdin.next(8, true), Next::Wait);
        assert_eq!(stdin.begin(attempt(1)), 8, "a new connection goes on where the worker is");
        assert_eq!(stdin.begin(attempt(2)), 0);
        assert_eq!(bytes(stdin.next(0, false)), (b"one\ntwo\n".to_vec(), true), "another attempt");
        stdin.ack(attempt(1), 3);
        assert_eq!((stdin.begin(attempt(2)), stdin.acked()), (0, 8), "a late word of the first");
    }

    // Does memory stay bounded, whatever a client sends, and is what was dropped called lost for another attempt only?
    #[test]
    fn input_beyond_the_window_and_gaps_are_not_taken_and_memory_stays_bounded() {
        let stdin = Stdin::default();
        stdin.push(5, b"gap", false);
        stdin.push(u64::MAX, b"far", true);
        assert_eq!(stdin.next(0, false), Next::Wait);
        stdin.begin(attempt(1));
        let mut offset = 0;
        for _ in 0..20 {
            stdin.push(offset, &vec![7; WINDOW + 10], true);
            assert_eq!(stdin.lock().length(), offset + STDIN_WINDOW_BYTES);
            assert!(!stdin.lock().ended, "an end after bytes that were not taken is not an end");
            offset += STDIN_WINDOW_BYTES;
            stdin.ack(attempt(1), offset);
            assert!(stdin.lock().bytes.len() <= STDIN_KEPT_BYTES + WINDOW);
        }
        stdin.push(offset, b"more", false);
        assert_eq!(bytes(stdin.next(stdin.begin(attempt(1)), false)).0, b"more", "after a new connection");
        assert_eq!(stdin.next(stdin.begin(attempt(2)), false), Next::Lost);
    }
}
