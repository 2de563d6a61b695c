//! Whole lines out of the pieces that many programs print at once.
//!
//! `screen` gives it the output of an array's tasks and shows what comes out. Always true: a line of one task is never
//! mixed with another's; no byte is lost or moved within its stream; what is held is bounded, and a line that is longer
//! than the bound comes in parts, each with a newline.
//! Deliberately not here: how a line looks (`screen`), which bytes are new (`tally`).

use essaim_proto::api::Stream;
use essaim_proto::{TaskId, TaskSet};
use std::collections::BTreeMap;

/// A line that is longer goes out in parts: nobody reads it as a line any more.
const LINE_BYTES_MAX: usize = 64 << 10;

/// All beginnings of lines together; beyond that they go out as they are. Thousands of tasks hold a prompt each, far less.
const HELD_BYTES_MAX: usize = 4 << 20;

/// Lines of one task.
pub(crate) type Piece = (TaskId, Stream, Vec<u8>);

/// The lines that have begun.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    held: BTreeMap<(TaskId, Stream), Vec<u8>>,
    held_bytes: usize,
}

impl Lines {
    /// The lines that are whole with these bytes; mostly one piece, more when too much was held.
    pub(crate) fn push(&mut self, task: TaskId, stream: Stream, bytes: Vec<u8>) -> Vec<Piece> {
        let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let key = (task, stream);
        let mut whole = Vec::new();
        if end > 0 {
            whole = self.take(key);
            whole.extend_from_slice(&bytes[..end]);
        }
        if end < bytes.len() {
            self.held_bytes += bytes.len() - end;
            let held = self.held.entry(key).or_default();
            held.extend_from_slice(&bytes[end..]);
            if held.len() > LINE_BYTES_MAX {
                whole.extend(self.take(key));
                whole.push(b'\n');
            }
        }
        let mut pieces = Vec::new();
        if !whole.is_empty() {
            pieces.push((task, stream, whole));
        }
        if self.held_bytes > HELD_BYTES_MAX {
            pieces.extend(self.end_all());
        }
        pieces
    }

    /// Nothing follows of these tasks: what they hold becomes a line.
    pub(crate) fn end(&mut self, tasks: &TaskSet) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for task in tasks.iter() {
            if self.held.is_empty() {
                break;
            }
            self.end_one(task, &mut pieces);
        }
        pieces
    }

    /// Nothing follows at all.
    pub(crate) fn end_all(&mut self) -> Vec<Piece> {
        self.held_bytes = 0;
        let held = std::mem::take(&mut self.held);
        held.into_iter().map(|((task, stream), bytes)| (task, stream, ended(bytes))).collect()
    }

    fn end_one(&mut self, task: TaskId, pieces: &mut Vec<Piece>) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let bytes = self.take((task, stream));
            if !bytes.is_empty() {
                pieces.push((task, stream, ended(bytes)));
            }
        }
    }

    fn take(&mut self, key: (TaskId, Stream)) -> Vec<u8> {
        let bytes = self.held.remove(&key).unwrap_or_default();
        self.held_bytes -= bytes.len();
        bytes
    }
}

fn ended(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use Stream::{Stderr, Stdout};

    fn text(pieces: Vec<Piece>) -> Vec<(u32, Stream, String)> {
        pieces.into_iter().map(|(task, stream, bytes)| (task.0, stream, String::from_utf8(bytes).unwrap())).collect()
    }

    // Pieces of two tasks, as they come: lines stay whole, and a last one without its newline gets it at the end.
    #[test]
    fn lines_are_never_mixed() {
        let mut lines = Lines::default();
        let (one, two) = (TaskId(1), TaskId(2));
        assert_eq!(lines.push(one, Stdout, b"a".to_vec()), []);
        let whole = lines.push(two, Stdout, b"x\ny\nz".to_vec());
        assert_eq!(text(whole), [(2, Stdout, "x\ny\n".to_owned())]);
        assert_eq!(lines.push(one, Stderr, b"e".to_vec()), []);
        assert_eq!(text(lines.push(one, Stdout, b"b\n".to_vec())), [(1, Stdout, "ab\n".to_owned())]);
        assert_eq!(text(lines.end(&TaskSet::span(1, 1))), [(1, Stderr, "e\n".to_owned())]);
        assert_eq!(lines.end(&TaskSet::span(1, 1)), []);
        assert_eq!(text(lines.end_all()), [(2, Stdout, "z\n".to_owned())]);
        assert_eq!((lines.held_bytes, lines.held.len()), (0, 0));
    }

    // What is held is bounded, for a line and for all, and no byte is lost.
    #[test]
    fn what_is_held_is_bounded() {
        let mut lines = Lines::default();
        let long = vec![b'x'; LINE_BYTES_MAX + 1];
        let parts = lines.push(TaskId(1), Stdout, long.clone());
        assert_eq!((parts.len(), parts[0].2.len()), (1, long.len() + 1));
        let half = vec![b'y'; LINE_BYTES_MAX];
        let mut shown = 0;
        for task in 0..200 {
            let pieces = lines.push(TaskId(task), Stdout, half.clone());
            shown += pieces.iter().map(|(.., bytes)| bytes.len() - 1).sum::<usize>();
            assert!(lines.held_bytes <= HELD_BYTES_MAX);
        }
        shown += lines.end_all().iter().map(|(.., bytes)| bytes.len() - 1).sum::<usize>();
        assert_eq!(shown, 200 * half.len());
    }
}
