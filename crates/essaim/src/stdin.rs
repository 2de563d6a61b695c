//! What the program reads: our own standard input or a file, sent as it comes and within the hub's window.
//!
//! `cmd::run` starts it, `follow` asks for the next part and tells what was taken. Always true: bytes are kept until the
//! program's node has them, so that a new connection can go on; a terminal is not read while we are in the background.
//! Deliberately not here: sending (`follow`), whether the program waits for input (the node says so).

use crate::exit::Failure;
use essaim_proto::limits::STDIN_WINDOW_BYTES;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::Path;
use std::time::Duration;
use tokio::sync::mpsc;

/// Bytes of one read, and so of one frame: a pipe's worth.
const READ_BYTES: usize = 32 << 10;

/// Reads that wait for the connection.
const READS_WAITING_MAX: usize = 2;

/// How often a command in the background looks whether it has the terminal.
const FOREGROUND_POLL: Duration = Duration::from_millis(200);

const _: () = assert!((READ_BYTES as u64) < STDIN_WINDOW_BYTES);

/// Input on its way.
pub(crate) struct Stdin {
    reads: mpsc::Receiver<Vec<u8>>,
    /// Bytes from `acked` on that were read.
    kept: VecDeque<u8>,
    acked: u64,
    sent: u64,
    is_over: bool,
    end_sent: bool,
}

/// The next part to send.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Offset of its first byte.
    pub(crate) offset: u64,
    /// The bytes.
    pub(crate) bytes: Vec<u8>,
    /// Nothing follows.
    pub(crate) end: bool,
}

/// Is our own standard input empty for sure (`/dev/null`)? Then nothing needs to be forwarded.
pub(crate) fn is_null() -> bool {
    #[cfg(unix)]
    {
        const NULL_MAJOR_MINOR: (u32, u32) = (1, 3);
        let stat = rustix::fs::fstat(io::stdin());
        let is_null = |stat: &rustix::fs::Stat| {
            let device = (rustix::fs::major(stat.st_rdev as _), rustix::fs::minor(stat.st_rdev as _));
            rustix::fs::FileType::from_raw_mode(stat.st_mode).is_char_device() && device == NULL_MAJOR_MINOR
        };
        cfg!(target_os = "linux") && stat.as_ref().is_ok_and(is_null)
    }
    #[cfg(not(unix))]
    false
}

/// Does a person type?
pub(crate) fn is_terminal() -> bool {
    io::stdin().is_terminal()
}

impl Stdin {
    /// Our own standard input.
    pub(crate) fn own() -> Result<Stdin, Failure> {
        let is_terminal = is_terminal();
        Stdin::start(move || {
            if is_terminal {
                wait_for_foreground();
            }
            io::stdin().lock().read_some()
        })
    }

    /// A file.
    pub(crate) fn file(path: &Path) -> Result<Stdin, Failure> {
        let unreadable =
            |error: io::Error| Failure::usage("unreadable", format!("{} cannot be read: {error}", path.display()));
        let mut file = File::open(path).map_err(unreadable)?;
        if file.metadata().map_err(unreadable)?.is_dir() {
            return Err(Failure::usage(
                "unreadable",
                format!("{} is a folder, not input for a program", path.display()),
            ));
        }
        Stdin::start(move || file.read_some())
    }

    /// A thread of its own: a read of a terminal cannot be cancelled, and must not hold up the end of the command.
    fn start(mut read: impl FnMut() -> io::Result<Vec<u8>> + Send + 'static) -> Result<Stdin, Failure> {
        let (sender, reads) = mpsc::channel(READS_WAITING_MAX);
        let thread = std::thread::Builder::new().name("input".into());
        let spawned = thread.spawn(move || {
            // Input that cannot be read any more has ended.
            while let Some(bytes) = read().ok().filter(|bytes| !bytes.is_empty()) {
                if sender.blocking_send(bytes).is_err() {
                    return;
                }
            }
        });
        spawned.map_err(|error| Failure::broken("internal", "standard input cannot be prepared", &error))?;
        Ok(Stdin::new(reads))
    }

    fn new(reads: mpsc::Receiver<Vec<u8>>) -> Stdin {
        Stdin { reads, kept: VecDeque::new(), acked: 0, sent: 0, is_over: false, end_sent: false }
    }

    /// The next part, when there is one and the window has room. Cancellation-safe; waits for ever after the end.
    pub(crate) async fn next(&mut self) -> Part {
        loop {
            let end = self.acked + self.kept.len() as u64;
            if self.sent < end {
                let from = (self.sent - self.acked) as usize;
                let bytes: Vec<u8> = self.kept.range(from..).take(READ_BYTES).copied().collect();
                let part = Part { offset: self.sent, bytes, end: false };
                self.sent += part.bytes.len() as u64;
                return part;
            }
            if self.is_over && !self.end_sent {
                self.end_sent = true;
                return Part { offset: self.sent, bytes: Vec::new(), end: true };
            }
            if self.is_over || self.kept.len() + READ_BYTES > STDIN_WINDOW_BYTES as usize {
                std::future::pending::<()>().await;
            }
            match self.reads.recv().await {
                Some(bytes) => self.kept.extend(bytes),
                None => self.is_over = true,
            }
        }
    }

    /// The program's node has everything up to `offset`.
    pub(crate) fn taken(&mut self, offset: u64) {
        let taken = offset.min(self.sent).saturating_sub(self.acked);
        self.kept.drain(..taken as usize);
        self.acked += taken;
    }

    /// There is a new connection: what was not taken is sent again.
    pub(crate) fn rewind(&mut self) {
        self.sent = self.acked;
        self.end_sent = false;
    }
}

trait ReadSome {
    /// What is there now, at most [`READ_BYTES`]; nothing at the end.
    fn read_some(&mut self) -> io::Result<Vec<u8>>;
}

impl<T: Read> ReadSome for T {
    fn read_some(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; READ_BYTES];
        let count = loop {
            match self.read(&mut bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        bytes.truncate(count);
        Ok(bytes)
    }
}

/// A read from the background would stop the whole command (SIGTTIN), output and all.
#[cfg(unix)]
fn wait_for_foreground() {
    let is_background =
        || rustix::termios::tcgetpgrp(io::stdin()).is_ok_and(|group| group != rustix::process::getpgrp());
    while is_background() {
        std::thread::sleep(FOREGROUND_POLL);
    }
}

#[cfg(not(unix))]
fn wait_for_foreground() {
    let _ = FOREGROUND_POLL;
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn at_once(stdin: &mut Stdin) -> Option<Part> {
        tokio::time::timeout(Duration::from_millis(20), stdin.next()).await.ok()
    }

    // The window is never exceeded, and what was not taken is sent again over a new connection.
    #[tokio::test]
    async fn input_flows_within_the_window_and_survives_a_connection() {
        let (sender, reads) = mpsc::channel(64);
        let mut stdin = Stdin::new(reads);
        for n in 0..12 {
            sender.send(vec![n; READ_BYTES]).await.unwrap();
        }
        drop(sender);
        let mut sent = 0;
        while let Some(part) = at_once(&mut stdin).await {
            assert_eq!(part.offset, sent);
            sent += part.bytes.len() as u64;
        }
        assert!(sent <= STDIN_WINDOW_BYTES && sent + READ_BYTES as u64 > STDIN_WINDOW_BYTES);
        stdin.taken(READ_BYTES as u64 + 1);
        stdin.rewind();
        let part = at_once(&mut stdin).await.unwrap();
        assert_eq!((part.offset, part.bytes[0]), (READ_BYTES as u64 + 1, 1));
        let mut end = part.offset + part.bytes.len() as u64;
        loop {
            stdin.taken(end);
            let part = at_once(&mut stdin).await.unwrap();
            assert_eq!(part.offset, end);
            end += part.bytes.len() as u64;
            if part.end {
                break;
            }
        }
        assert_eq!(end, 12 * READ_BYTES as u64);
        assert!(at_once(&mut stdin).await.is_none(), "the end is said once");
        stdin.rewind();
        assert_eq!(at_once(&mut stdin).await.unwrap().end, end == stdin.acked);
    }

    // An acknowledgement of more than was sent is somebody's mistake, not our crash.
    #[tokio::test]
    async fn a_false_acknowledgement_is_ignored() {
        let (sender, reads) = mpsc::channel(1);
        let mut stdin = Stdin::new(reads);
        sender.send(b"abc".to_vec()).await.unwrap();
        stdin.taken(1_000);
        assert_eq!(at_once(&mut stdin).await.unwrap().bytes, b"abc");
        stdin.taken(u64::MAX);
        assert_eq!((stdin.acked, stdin.kept.len()), (3, 0));
    }

    // A file is read to its end; a folder is no input.
    #[tokio::test]
    async fn a_file_is_input() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("in.txt");
        std::fs::write(&path, "one\n").unwrap();
        let mut stdin = Stdin::file(&path).unwrap();
        assert_eq!(stdin.next().await.bytes, b"one\n");
        assert!(stdin.next().await.end);
        assert!(Stdin::file(folder.path()).is_err());
        assert!(Stdin::file(&folder.path().join("no")).is_err());
    }
}
