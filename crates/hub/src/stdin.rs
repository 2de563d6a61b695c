//! A job's live standard input between its client and its worker.
//!
//! Client sessions push, a pump of the worker's session takes, the worker's acknowledgements free. Always true: each byte
//! is taken once and in order; at most [`STDIN_KEPT_BYTES`] and a window are held; what is cheap to keep is kept from its
//! beginning, so that another attempt can read it again.
//! After a restart of the hub nothing of what was typed before is here. A program that runs on has it already: its worker
//! says where it is, its client goes on from what was acknowledged. Only an attempt that begins anew lacks it.
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
    /// Nothing is known yet of an input that began before this process: the first word about it says where it stands.
    is_unknown: bool,
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
    /// An input that begins now, or one that began before this process (`is_inherited`).
    pub(crate) fn new(is_inherited: bool) -> Stdin {
        Stdin {
            kept: Mutex::new(Kept { is_unknown: is_inherited, ..Kept::default() }),
            changed: watch::Sender::default(),
        }
    }

    /// Takes input from a client. Bytes that are there already are skipped, a gap and what exceeds the window are not
    /// taken: the client sends them again or breaks the protocol.
    pub(crate) fn push(&self, offset: u64, bytes: &[u8], end: bool) {
        let mut kept = self.lock();
        if kept.is_unknown {
            // What is below was acknowledged to the client: somebody has it.
            kept.begin_at(offset);
        }
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

    /// An attempt begins to read, or goes on over a new connection: the offset from which it needs bytes. `None`: it began
    /// before this process, and its worker must say where it is ([`Stdin::ack`]).
    pub(crate) fn begin(&self, attempt: AttemptId, goes_on: bool) -> Option<u64> {
        let mut kept = self.lock();
        if kept.reader != attempt {
            if goes_on {
                return None;
            }
            (kept.reader, kept.written) = (attempt, 0);
        }
        Some(kept.written)
    }

    /// The attempt's worker has written everything below `offset`.
    pub(crate) fn ack(&self, attempt: AttemptId, offset: u64) {
        let mut kept = self.lock();
        if kept.reader == AttemptId::default() {
            // The first word about it in this process.
            kept.reader = attempt;
            if kept.is_unknown {
                kept.begin_at(offset);
            } else if offset > kept.length() {
                // Its client is behind what was written already: it repeats what is skipped.
                kept.bytes.clear();
                kept.start = offset;
            }
        }
        if kept.reader != attempt {
            return;
        }
        kept.written = kept.written.max(offset.min(kept.length()));
        kept.acked = kept.acked.max(kept.written);
        // Kept from the beginning while that is cheap, for another attempt; beyond that only what is not yet written.
        if kept.bytes.len() > STDIN_KEPT_BYTES {
            let written = kept.written.saturating_sub(kept.start) as usize;
            kept.bytes.drain(..written);
            kept.start += written as u64;
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

    /// Everything below `offset` is dealt with, as far as anybody here will ever know.
    fn begin_at(&mut self, offset: u64) {
        (self.start, self.acked, self.is_unknown) = (offset, offset, false);
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
        assert_eq!(stdin.begin(attempt(1), false), Some(0));
        assert_eq!(bytes(stdin.next(0, false)), (b"one\ntwo\n".to_vec(), false));
        assert_eq!(stdin.next(8, false), Next::Wait);
        stdin.ack(attempt(1), 8);
        stdin.push(0, b"one", true);
        assert_eq!(stdin.next(8, false), Next::Wait, "an end in the middle is none");
        stdin.push(8, b"", true);
        assert_eq!(bytes(stdin.next(8, false)), (Vec::new(), true));
        assert_eq!(stdin.next(8, true), Next::Wait);
        assert_eq!(stdin.begin(attempt(1), true), Some(8), "a new connection goes on where the worker is");
        assert_eq!(stdin.begin(attempt(2), false), Some(0));
        assert_eq!(bytes(stdin.next(0, false)), (b"one\ntwo\n".to_vec(), true), "another attempt");
        stdin.ack(attempt(1), 3);
        assert_eq!((stdin.begin(attempt(2), true), stdin.acked()), (Some(0), 8), "a late word of the first");
    }

    // Does memory stay bounded, whatever a client sends, and is what was dropped called lost for another attempt only?
    #[test]
    fn input_beyond_the_window_and_gaps_are_not_taken_and_memory_stays_bounded() {
        let stdin = Stdin::default();
        stdin.push(5, b"gap", false);
        stdin.push(u64::MAX, b"far", true);
        assert_eq!(stdin.next(0, false), Next::Wait);
        stdin.begin(attempt(1), false);
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
        assert_eq!(
            bytes(stdin.next(stdin.begin(attempt(1), true).expect("known"), false)).0,
            b"more",
            "after a new connection"
        );
        assert_eq!(stdin.next(stdin.begin(attempt(2), false).expect("known"), false), Next::Lost);
    }

    // After a restart: does a program that runs on get what follows, and none of what it has, whoever speaks first? And is
    // only an attempt that begins anew told that the beginning is lost?
    #[test]
    fn an_inherited_input_goes_on_where_its_worker_is() {
        for client_first in [true, false] {
            let stdin = Stdin::new(true);
            assert_eq!(stdin.begin(attempt(1), true), None, "only its worker knows");
            // Its client was acknowledged 4, its worker has written 6.
            if client_first {
                stdin.push(4, b"56", false);
            }
            stdin.ack(attempt(1), 6);
            stdin.push(4, b"5678", false);
            assert_eq!(stdin.begin(attempt(1), true), Some(6), "{client_first}");
            assert_eq!(bytes(stdin.next(6, false)), (b"78".to_vec(), false), "{client_first}");
            assert_eq!(stdin.acked(), 6);
            stdin.push(8, b"", true);
            stdin.ack(attempt(1), 8);
            assert_eq!(bytes(stdin.next(8, false)), (Vec::new(), true));
            let sent = stdin.begin(attempt(2), false).expect("known");
            assert_eq!(stdin.next(sent, false), Next::Lost);
        }
        let stdin = Stdin::new(true);
        stdin.begin(attempt(2), false);
        stdin.push(0, b"all of it", true);
        assert_eq!(bytes(stdin.next(0, false)), (b"all of it".to_vec(), true), "nothing was acknowledged before");
    }
}
