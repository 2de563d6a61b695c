//! The only room that prints: what the user asked for on standard output, talk on standard error.
//!
//! Every subcommand gets a [`Printer`]; `run` and `job logs` also a [`Pump`], which writes a program's output without
//! ever holding up the connection. Always true: standard output is for what was asked (with `--json` only JSON); talk is
//! silent with `--quiet`, errors never; colours appear on terminals only and not with `NO_COLOR`; when nobody reads our
//! standard output any more, the command ends quietly.
//! Deliberately not here: what to say (`cmd`), sentences for codes (`essaim-view`).

use crate::exit::{Cause, Failure};
use serde::Serialize;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Pieces of the pump are joined up to this size: one write for a burst of lines, and no copy of megabytes.
const PIECE_BYTES: usize = 64 << 10;

/// How to print.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Printer {
    is_json: bool,
    is_quiet: bool,
    stdout_is_terminal: bool,
    stderr_is_terminal: bool,
}

impl Printer {
    /// As the flags and the two streams ask for.
    pub(crate) fn new(is_json: bool, is_quiet: bool) -> Printer {
        Printer {
            is_json,
            is_quiet,
            stdout_is_terminal: io::stdout().is_terminal(),
            stderr_is_terminal: io::stderr().is_terminal(),
        }
    }

    /// Is JSON wanted?
    pub(crate) fn is_json(self) -> bool {
        self.is_json
    }

    /// Is talk unwanted?
    pub(crate) fn is_quiet(self) -> bool {
        self.is_quiet
    }

    /// Does a person see standard output?
    pub(crate) fn stdout_is_terminal(self) -> bool {
        self.stdout_is_terminal
    }

    /// Does a person see standard error?
    pub(crate) fn stderr_is_terminal(self) -> bool {
        self.stderr_is_terminal
    }

    /// A line, or lines, of what was asked for.
    ///
    /// # Errors
    /// When nobody reads standard output any more, or it is full.
    pub(crate) fn data(self, text: &str) -> Result<(), Failure> {
        let mut line = text.to_owned();
        if !line.ends_with('\n') {
            line.push('\n');
        }
        let mut out = io::stdout().lock();
        out.write_all(line.as_bytes()).and_then(|()| out.flush()).map_err(|error| stdout_failure(&error))
    }

    /// One line of JSON.
    ///
    /// # Errors
    /// As [`Printer::data`].
    pub(crate) fn json(self, value: &impl Serialize) -> Result<(), Failure> {
        let line = serde_json::to_string(value)
            .map_err(|error| Failure::broken("internal", "the answer cannot be written as JSON", &error))?;
        self.data(&line)
    }

    /// A table, cut to the terminal when there is one.
    ///
    /// # Errors
    /// As [`Printer::data`].
    pub(crate) fn table(self, headers: &[&str], rows: &[Vec<String>]) -> Result<(), Failure> {
        let width = self.stdout_is_terminal.then(|| width_of(io::stdout())).flatten();
        self.data(&essaim_view::table(headers, rows, width))
    }

    /// A table whose words are the point: nothing is cut, the terminal breaks what is long.
    ///
    /// # Errors
    /// As [`Printer::data`].
    pub(crate) fn whole_table(self, headers: &[&str], rows: &[Vec<String>]) -> Result<(), Failure> {
        self.data(&essaim_view::table(headers, rows, None))
    }

    /// How wide the terminal of standard error is, if it is one that tells.
    pub(crate) fn stderr_width(self) -> Option<usize> {
        self.stderr_is_terminal.then(|| width_of(io::stderr())).flatten()
    }

    /// Talk that follows a Ctrl+C: the terminal has shown `^C` where the line begins.
    pub(crate) fn note_after_key(self, text: &str) {
        let echo = if self.stderr_is_terminal { "\n" } else { "" };
        self.note(&format!("{echo}{text}"));
    }

    /// Talk, for whoever looks on.
    pub(crate) fn note(self, text: &str) {
        if !self.is_quiet {
            // Whoever closed our standard error does not want to hear that it failed.
            let _ = writeln!(io::stderr().lock(), "{text}");
        }
    }

    /// Why the command failed: a sentence on standard error, and with `--json` an object on standard output.
    pub(crate) fn failure(self, failure: &Failure) {
        if failure.cause == Cause::StdoutGone {
            return;
        }
        let (on, off) = if self.has_colours() { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
        let text = essaim_view::visible(&failure.message);
        let _ = writeln!(io::stderr().lock(), "{on}error:{off} {text}");
        if self.is_json {
            let _ = self.json(&ErrorLine { r#type: "error", code: &failure.code, message: &failure.message });
        }
    }

    /// What clap has to say: help and version on standard output, mistakes on standard error.
    pub(crate) fn words(error: &clap::Error) {
        // clap decides about stream and colours by the same rules as we do.
        let _ = error.print();
    }

    fn has_colours(self) -> bool {
        self.may_colour(Side::Stderr)
    }

    /// May something of ours have a colour on this side?
    pub(crate) fn may_colour(self, side: Side) -> bool {
        let is_terminal = match side {
            Side::Stdout => self.stdout_is_terminal,
            Side::Stderr => self.stderr_is_terminal,
        };
        is_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
    }
}

#[derive(Serialize)]
struct ErrorLine<'a> {
    r#type: &'a str,
    code: &'a str,
    message: &'a str,
}

fn stdout_failure(error: &io::Error) -> Failure {
    match error.kind() {
        ErrorKind::BrokenPipe => Failure::stdout_gone(),
        _ => Failure::broken("stdout", "standard output cannot be written", error),
    }
}

#[cfg(unix)]
fn width_of(stream: impl std::os::fd::AsFd) -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(stream).ok()?;
    (size.ws_col > 0).then_some(usize::from(size.ws_col))
}

#[cfg(not(unix))]
fn width_of(_stream: impl IsTerminal) -> Option<usize> {
    None
}

/// Where a piece goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// Our standard output.
    Stdout,
    /// Our standard error.
    Stderr,
}

/// Writes a program's output from a thread of its own, in the order in which it is pushed.
///
/// The connection's task pushes and never waits: what lies here is bounded by the hub's window, because the hub sends no
/// more than [`essaim_proto::limits::OUTPUT_WINDOW_BYTES`] beyond what was acknowledged as written.
pub(crate) struct Pump {
    shared: Arc<Shared>,
    progress: watch::Receiver<Progress>,
}

/// How far the pump has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Counted bytes of the program that are written (or dropped, when the stream is gone).
    pub(crate) written: u64,
    /// All that was pushed is written, and nothing will follow.
    is_finished: bool,
    /// Standard output is gone or full.
    pub(crate) failed: Option<Failure>,
}

struct Piece {
    side: Side,
    bytes: Vec<u8>,
    counted: u64,
}

#[derive(Default)]
struct Queue {
    pieces: VecDeque<Piece>,
    is_closed: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // A queue is whole after every push, so a poisoned one is as good as any.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pump {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system's, when it has no thread left or a stream cannot be used.
    pub(crate) fn start() -> Result<Pump, Failure> {
        let failed = |error: io::Error| Failure::broken("internal", "the output cannot be prepared", &error);
        let streams = Streams {
            stdout: unbuffered(Side::Stdout).map_err(failed)?,
            stderr: unbuffered(Side::Stderr).map_err(failed)?,
        };
        let shared = Arc::<Shared>::default();
        let (report, progress) = watch::channel(Progress::default());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("output".into());
        thread.spawn(move || write_all(&theirs, streams, &report)).map_err(failed)?;
        Ok(Pump { shared, progress })
    }

    /// Adds bytes; `counted` of them are the program's and appear in [`Progress::written`].
    pub(crate) fn push(&self, side: Side, bytes: Vec<u8>, counted: u64) {
        if bytes.is_empty() && counted == 0 {
            return;
        }
        let mut queue = self.shared.lock();
        match queue.pieces.back_mut() {
            Some(last) if last.side == side && last.bytes.len() + bytes.len() <= PIECE_BYTES => {
                last.bytes.extend_from_slice(&bytes);
                last.counted += counted;
            }
            _ => queue.pieces.push_back(Piece { side, bytes, counted }),
        }
        drop(queue);
        self.shared.changed.notify_one();
    }

    /// Talk in its place among the output.
    pub(crate) fn note(&self, text: &str) {
        self.push(Side::Stderr, format!("{text}\n").into_bytes(), 0);
    }

    /// How far it has come, to wait on.
    pub(crate) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Waits until all is written.
    ///
    /// # Errors
    /// When standard output is gone or full.
    pub(crate) async fn finish(mut self) -> Result<(), Failure> {
        self.shared.lock().is_closed = true;
        self.shared.changed.notify_one();
        // The thread ends with its report; it cannot end without one.
        let _ = self.progress.wait_for(|progress| progress.is_finished || progress.failed.is_some()).await;
        let failed = self.progress.borrow().failed.clone();
        failed.map_or(Ok(()), Err)
    }
}

struct Streams {
    stdout: File,
    stderr: File,
}

/// The stream itself, without the line buffer of the standard library: bytes leave as they come.
#[cfg(unix)]
fn unbuffered(side: Side) -> io::Result<File> {
    use std::os::fd::AsFd;
    let copy = match side {
        Side::Stdout => io::stdout().as_fd().try_clone_to_owned()?,
        Side::Stderr => io::stderr().as_fd().try_clone_to_owned()?,
    };
    Ok(copy.into())
}

#[cfg(windows)]
fn unbuffered(side: Side) -> io::Result<File> {
    use std::os::windows::io::AsHandle;
    let copy = match side {
        Side::Stdout => io::stdout().as_handle().try_clone_to_owned()?,
        Side::Stderr => io::stderr().as_handle().try_clone_to_owned()?,
    };
    Ok(copy.into())
}

fn write_all(shared: &Shared, mut streams: Streams, report: &watch::Sender<Progress>) {
    loop {
        let mut queue = shared.lock();
        let piece = loop {
            match queue.pieces.pop_front() {
                Some(piece) => break Some(piece),
                None if queue.is_closed => break None,
                None => queue = shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
            }
        };
        drop(queue);
        let Some(Piece { side, bytes, counted }) = piece else {
            report.send_modify(|progress| progress.is_finished = true);
            return;
        };
        let written = match side {
            Side::Stdout => write_piece(&mut streams.stdout, &bytes),
            // Who closed standard error does not want it; the program's standard output goes on.
            Side::Stderr => write_piece(&mut streams.stderr, &bytes).or(Ok(())),
        };
        report.send_modify(|progress| {
            progress.written += counted;
            if let Err(error) = written {
                progress.failed = Some(stdout_failure(&error));
            }
        });
    }
}

/// Writes all, also to a stream that somebody else (a shell's pipeline) made non-blocking.
fn write_piece(stream: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => wait_for_room(stream)?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(unix)]
fn wait_for_room(stream: &File) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, poll};
    match poll(&mut [PollFd::new(stream, PollFlags::OUT)], None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(unix))]
fn wait_for_room(_stream: &File) -> io::Result<()> {
    std::thread::sleep(std::time::Duration::from_millis(1));
    Ok(())
}
