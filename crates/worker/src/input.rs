//! The live standard input of one attempt: from the hub into the program's pipe, in order, each byte once.
//!
//! The driver feeds what comes, the attempt gives the pipe when the program starts, one pump writes. Always true: at most
//! [`STDIN_WINDOW_BYTES`] wait here; a byte is acknowledged when it is in the pipe, or when nobody will ever read it.
//! Deliberately not here: who types (clients), input that is a file.

use crate::link::LinkWatch;
use essaim_proto::limits::{CHUNK_BYTES, STDIN_WINDOW_BYTES};
use essaim_proto::link::{AttemptStdin, AttemptStdinAck};
use essaim_proto::{AttemptId, Frame, Function};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::net::unix::pipe;
use tokio::sync::{Notify, oneshot};

/// The way from the hub to the program.
#[derive(Debug, Default)]
pub(crate) struct Input {
    waiting: Mutex<Waiting>,
    /// Bytes, the end, or a word to acknowledge again.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    bytes: VecDeque<u8>,
    /// Offset of the first byte in `bytes`: all before it are dealt with.
    start: u64,
    /// Nothing follows.
    is_ended: bool,
    /// Nobody will read: what comes counts as dealt with.
    is_shut: bool,
    /// The hub repeated itself: it has not heard the last acknowledgement.
    is_owed: bool,
}

/// The program's end of things.
#[derive(Debug)]
pub(crate) struct Reader {
    /// Ours of its standard input.
    pub(crate) pipe: pipe::Sender,
    /// Tells that the program is over.
    pub(crate) over: oneshot::Receiver<()>,
}

/// The way back to the hub.
struct Acks {
    attempt: AttemptId,
    link: LinkWatch,
}

impl Acks {
    fn send(&self, offset: u64) {
        let Some(link) = self.link.borrow().clone() else { return };
        let ack = AttemptStdinAck { attempt: self.attempt, offset };
        // A closed connection hears nothing; over the next one the hub repeats what it has no word of.
        let _ = link.sender.control(Frame::of(Function::ATTEMPT_STDIN_ACK, 0, &ack));
    }

    /// Returns when the link has changed. A hub that was started anew asks nobody how far the input is: it must be told.
    async fn new_link(&mut self) {
        if self.link.changed().await.is_err() {
            // The worker ends, and this pump with it.
            std::future::pending().await
        }
    }
}

/// What is to be done next.
enum Next {
    Acknowledge(u64),
    Write(Vec<u8>),
    End,
    Wait,
}

impl Input {
    /// Takes what the hub sent. Bytes that are there already are skipped; a gap, and what exceeds the window, is a
    /// mistake of the hub and not taken.
    pub(crate) fn feed(&self, stdin: &AttemptStdin) {
        let mut waiting = self.lock();
        let end = waiting.start + waiting.bytes.len() as u64;
        let room = (STDIN_WINDOW_BYTES as usize).saturating_sub(waiting.bytes.len());
        let new = end.checked_sub(stdin.offset).map(|skip| stdin.bytes.get(skip as usize..).unwrap_or_default());
        match new {
            Some(new) if new.len() <= room && (new.is_empty() || !waiting.is_ended) => {
                if waiting.is_shut {
                    waiting.start += new.len() as u64;
                } else {
                    waiting.bytes.extend(new);
                }
                waiting.is_ended |= stdin.end;
                waiting.is_owed |= new.is_empty();
            }
            _ => tracing::warn!(attempt = %stdin.attempt, offset = stdin.offset, "input that does not fit was dropped"),
        }
        drop(waiting);
        self.changed.notify_one();
    }

    /// Writes until the attempt is dropped; acknowledges over the link of the moment.
    pub(crate) async fn pump(self: Arc<Input>, attempt: AttemptId, link: LinkWatch, reader: oneshot::Receiver<Reader>) {
        let mut acks = Acks { attempt, link };
        if let Ok(reader) = reader.await {
            self.serve(reader, &mut acks).await;
        }
        self.shut();
        loop {
            acks.send(self.lock().start);
            tokio::select! {
                () = self.changed.notified() => {}
                changed = acks.link.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Writes until the end, the program's or the input's.
    async fn serve(&self, reader: Reader, acks: &mut Acks) {
        let Reader { pipe, mut over } = reader;
        loop {
            match self.next() {
                Next::End => return,
                Next::Acknowledge(offset) => acks.send(offset),
                Next::Wait => {
                    tokio::select! {
                        () = self.changed.notified() => {}
                        () = acks.new_link() => acks.send(self.lock().start),
                        _ = &mut over => return,
                    }
                }
                Next::Write(bytes) => {
                    let writable = tokio::select! {
                        // First, or a program that reads all the time would keep a new hub waiting.
                        biased;
                        () = acks.new_link() => {
                            acks.send(self.lock().start);
                            continue;
                        }
                        writable = pipe.writable() => writable,
                        _ = &mut over => return,
                    };
                    match writable.and_then(|()| pipe.try_write(&bytes)) {
                        Ok(count) => acks.send(self.written(count)),
                        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                        // The program has closed its input.
                        Err(_) => return,
                    }
                }
            }
        }
    }

    fn next(&self) -> Next {
        let mut waiting = self.lock();
        if std::mem::take(&mut waiting.is_owed) {
            return Next::Acknowledge(waiting.start);
        }
        let (front, _) = waiting.bytes.as_slices();
        match front.is_empty() {
            false => Next::Write(front[..front.len().min(CHUNK_BYTES)].to_vec()),
            true if waiting.is_ended => Next::End,
            true => Next::Wait,
        }
    }

    fn written(&self, count: usize) -> u64 {
        let mut waiting = self.lock();
        waiting.bytes.drain(..count);
        waiting.start += count as u64;
        waiting.start
    }

    /// Nobody reads any more.
    fn shut(&self) {
        let mut waiting = self.lock();
        waiting.start += waiting.bytes.len() as u64;
        waiting.bytes = VecDeque::new();
        waiting.is_shut = true;
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stdin(offset: u64, bytes: &[u8], end: bool) -> AttemptStdin {
        AttemptStdin { offset, bytes: bytes.to_vec(), end, ..AttemptStdin::default() }
    }

    fn taken(input: &Input) -> (Vec<u8>, u64, bool) {
        let waiting = input.lock();
        (waiting.bytes.iter().copied().collect(), waiting.start, waiting.is_ended)
    }

    // Is each byte taken once, in order, within the window, whatever the hub repeats?
    #[test]
    fn repeated_input_is_taken_once() {
        let input = Input::default();
        input.feed(&stdin(0, b"abc", false));
        input.feed(&stdin(0, b"abcd", false));
        input.feed(&stdin(2, b"c", false));
        input.feed(&stdin(9, b"gap", true));
        assert_eq!(taken(&input), (b"abcd".to_vec(), 0, false));
        assert_eq!(input.written(2), 2);
        input.feed(&stdin(0, b"abcdef", true));
        assert_eq!(taken(&input), (b"cdef".to_vec(), 2, true));
        input.feed(&stdin(6, b"more", false));
        assert_eq!(taken(&input).0, b"cdef", "nothing follows the end");
        let input = Input::default();
        input.feed(&stdin(0, &vec![0; STDIN_WINDOW_BYTES as usize + 1], false));
        assert_eq!(taken(&input).0.len(), 0);
        input.shut();
        input.feed(&stdin(0, b"abc", true));
        assert_eq!(taken(&input), (Vec::new(), 3, true));
    }
}
