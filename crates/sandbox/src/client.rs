//! The worker's end of the socket to its cage.
//!
//! Held by the worker: any thread sends requests, one thread or task hears the events. What is always
//! true: a request is refused here, by name, if the cage would have to refuse it without being able to answer; the
//! worker holds no end of a program's stdio after `start`.
//!
//! Deliberately not here: starting the cage's process (`supervise` in the binary) and matching events to programs.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, sockopt};

use crate::error::CageError;
use crate::limits::{EVENT_BYTES_MAX, OWNED_FOLDERS_MAX, SEND_WAIT};
use crate::protocol::{Capture, Event, OutputPipes, ProgramId, Request, Start, decode, encode};
use crate::wire::{self, Packet};

/// The program's ends of its three streams. `stdout` and `stderr` may be copies of the same pipe.
#[derive(Debug)]
pub struct Stdio3 {
    /// What it reads: the read end of a pipe, or /dev/null.
    pub stdin: OwnedFd,
    /// Where it writes results.
    pub stdout: OwnedFd,
    /// Where it writes messages.
    pub stderr: OwnedFd,
}

/// A worker's cage. Dropping it (or the worker's death) makes the cage kill all its programs, remove the owned folders
/// and exit.
#[derive(Debug)]
pub struct Cage {
    socket: OwnedFd,
    /// What the cage owns as far as it was told, to keep it within its limit.
    owned: Mutex<BTreeSet<PathBuf>>,
    /// For one event.
    buffer: Mutex<Vec<u8>>,
}

impl Cage {
    /// Takes the worker's end that `socket_pair` made.
    pub fn new(socket: OwnedFd) -> Cage {
        // Without the timeout a stopped cage would hold the caller for ever. It can only fail for something that is no
        // socket, and then every send will say so.
        let _ = sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(SEND_WAIT));
        let _ = rustix::io::ioctl_fionbio(&socket, false);
        Cage { socket, owned: Mutex::new(BTreeSet::new()), buffer: Mutex::new(vec![0; EVENT_BYTES_MAX]) }
    }

    /// Asks for a program to be started; the answer is `Event::Started` or `Event::StartFailed`. The streams are closed
    /// on this side, whatever happens.
    ///
    /// # Errors
    /// `TooLarge`, `ZeroWallLimit`, `RelativePath` (for `cwd`): nothing was sent. `Busy`, `Gone`, `Socket`.
    pub fn start(&self, start: Start, stdio: Stdio3) -> Result<(), CageError> {
        let fds = [stdio.stdin.as_fd(), stdio.stdout.as_fd(), stdio.stderr.as_fd()];
        self.ask(&start, None, &fds, SendFlags::empty())
    }

    /// Asks for a program to be started that reads nothing and whose output comes back: with `Event::Ended` if it is
    /// over at once (then there is no `Event::Started`), otherwise through the pipes of `Event::Output`.
    ///
    /// # Errors
    /// As `start`.
    pub fn start_captured(&self, start: &Start, capture: Capture) -> Result<(), CageError> {
        self.ask(start, Some(capture), &[], SendFlags::empty())
    }

    /// The same for a caller that must not wait: `Busy` if the cage has not taken all that it was asked before.
    ///
    /// # Errors
    /// As `start`.
    pub fn try_start_captured(&self, start: &Start, capture: Capture) -> Result<(), CageError> {
        self.ask(start, Some(capture), &[], SendFlags::DONTWAIT)
    }

    /// Asks for a program's whole tree to be killed; `Event::Ended` follows as for any end. Nothing happens if it is
    /// over already.
    ///
    /// # Errors
    /// `Busy`, `Gone`, `Socket`.
    pub fn kill(&self, id: ProgramId) -> Result<(), CageError> {
        self.send(&Request::Kill { id })
    }

    /// Tells the cage to remove this folder when the worker is gone. Twice is the same as once.
    ///
    /// # Errors
    /// `RelativePath`, `UnfitPath`, `TooManyFolders`: nothing was sent. `Busy`, `Gone`, `Socket`.
    pub fn own(&self, path: &Path) -> Result<(), CageError> {
        if !path.is_absolute() {
            return Err(CageError::RelativePath { path: path.to_owned() });
        }
        if path.file_name().is_none() || path.components().any(|part| part == Component::ParentDir) {
            return Err(CageError::UnfitPath { path: path.to_owned() });
        }
        let mut owned = self.owned.lock().unwrap_or_else(PoisonError::into_inner);
        if owned.contains(path) {
            return Ok(());
        }
        if owned.len() >= OWNED_FOLDERS_MAX {
            return Err(CageError::TooManyFolders { folders_max: OWNED_FOLDERS_MAX });
        }
        self.send(&Request::Own { path: path.to_owned() })?;
        owned.insert(path.to_owned());
        Ok(())
    }

    /// Takes back `own`, after the worker removed the folder itself.
    ///
    /// # Errors
    /// `Busy`, `Gone`, `Socket`.
    pub fn disown(&self, path: &Path) -> Result<(), CageError> {
        let mut owned = self.owned.lock().unwrap_or_else(PoisonError::into_inner);
        if !owned.contains(path) {
            return Ok(());
        }
        self.send(&Request::Disown { path: path.to_owned() })?;
        owned.remove(path);
        Ok(())
    }

    /// Waits for the next event. `None`: the cage is gone, and no event will ever follow. For one thread of its own;
    /// with several, each event goes to one of them.
    ///
    /// # Errors
    /// `TooLarge`, `Decode`: the cage sent nonsense, which is a bug. `Socket`.
    pub fn next_event(&self) -> Result<Option<Event>, CageError> {
        self.receive(RecvFlags::empty())
    }

    /// The next event if there is one already, for a caller that must not wait; the socket (`as_fd`) becomes readable
    /// when it is worth another try.
    ///
    /// # Errors
    /// `Busy`: there is none now. Otherwise as `next_event`.
    pub fn try_next_event(&self) -> Result<Option<Event>, CageError> {
        self.receive(RecvFlags::DONTWAIT)
    }

    /// Ends the cage as if this end were dropped, while other threads still hold it: `next_event` gives `None` once the
    /// events sent before were read.
    pub fn shut_down(&self) {
        // An error means that it is shut down already.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }

    fn receive(&self, flags: RecvFlags) -> Result<Option<Event>, CageError> {
        let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        match wire::receive(self.socket.as_fd(), &mut buffer, flags) {
            Ok(Packet::Whole(count, fds)) => {
                let mut event = decode(&buffer[..count], EVENT_BYTES_MAX)?;
                if let Event::Output { pipes, .. } = &mut event {
                    *pipes = OutputPipes::new(fds);
                }
                Ok(Some(event))
            }
            Ok(Packet::TooLarge) => Err(CageError::TooLarge { bytes: EVENT_BYTES_MAX + 1, bytes_max: EVENT_BYTES_MAX }),
            Ok(Packet::End) => Ok(None),
            Err(Errno::AGAIN) => Err(CageError::Busy),
            Err(error) => Err(CageError::Socket(error.into())),
        }
    }

    fn ask(
        &self,
        start: &Start,
        capture: Option<Capture>,
        fds: &[BorrowedFd<'_>],
        flags: SendFlags,
    ) -> Result<(), CageError> {
        if start.wall_limit_ms == Some(0) {
            return Err(CageError::ZeroWallLimit);
        }
        if !start.cwd.is_absolute() {
            return Err(CageError::RelativePath { path: start.cwd.clone() });
        }
        let bytes = encode(&Request::Start { start: Cow::Borrowed(start), capture })?;
        wire::send(self.socket.as_fd(), &[&bytes], fds, flags).map_err(send_error)
    }

    fn send(&self, request: &Request<'_>) -> Result<(), CageError> {
        wire::send(self.socket.as_fd(), &[&encode(request)?], &[], SendFlags::empty()).map_err(send_error)
    }
}

impl AsFd for Cage {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn send_error(error: Errno) -> CageError {
    match error {
        Errno::AGAIN => CageError::Busy,
        Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN => CageError::Gone,
        error => CageError::Socket(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MESSAGE_BYTES_MAX;
    use crate::wire::socket_pair;

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    fn stdio() -> Stdio3 {
        Stdio3 { stdin: null(), stdout: null(), stderr: null() }
    }

    fn start(argument_bytes: usize) -> Start {
        Start {
            id: 1,
            argv: vec!["/bin/true".to_owned(), "x".repeat(argument_bytes)],
            env: Vec::new(),
            cwd: PathBuf::from("/"),
            wall_limit_ms: None,
            nice: 0,
        }
    }

    /// Does the largest message that we allow fit the socket of this machine, with descriptors?
    #[test]
    fn largest_message_fits() {
        let (worker, other) = socket_pair().unwrap();
        let cage = Cage::new(worker);
        let overhead =
            encode(&Request::Start { start: Cow::Owned(start(70_000)), capture: None }).unwrap().len() - 70_000;
        cage.start(start(MESSAGE_BYTES_MAX - overhead), stdio()).unwrap();
        let mut buffer = vec![0; MESSAGE_BYTES_MAX];
        match wire::receive(other.as_fd(), &mut buffer, RecvFlags::DONTWAIT).unwrap() {
            Packet::Whole(count, fds) => assert_eq!((count, fds.len()), (MESSAGE_BYTES_MAX, 3)),
            _ => panic!("no packet"),
        }
        assert!(matches!(cage.start(start(MESSAGE_BYTES_MAX), stdio()), Err(CageError::TooLarge { .. })));
    }

    /// Are mistakes refused here, by name?
    #[test]
    fn refusals() {
        let (worker, other) = socket_pair().unwrap();
        let cage = Cage::new(worker);
        let zero = Start { wall_limit_ms: Some(0), ..start(1) };
        assert!(matches!(cage.start(zero, stdio()), Err(CageError::ZeroWallLimit)));
        let relative = Start { cwd: PathBuf::from("x"), ..start(1) };
        assert!(matches!(cage.start(relative, stdio()), Err(CageError::RelativePath { .. })));
        assert!(matches!(cage.own(Path::new("x")), Err(CageError::RelativePath { .. })));
        for path in ["/", "/a/..", "/a/../b"] {
            assert!(matches!(cage.own(Path::new(path)), Err(CageError::UnfitPath { .. })), "{path}");
        }
        drop(other);
        assert!(matches!(cage.kill(1), Err(CageError::Gone)));
        assert_eq!(cage.next_event().unwrap(), None);
        assert_eq!(cage.try_next_event().unwrap(), None);
    }

    /// Is there no event while the cage says nothing, without waiting for one?
    #[test]
    fn nothing_to_hear() {
        let (worker, _other) = socket_pair().unwrap();
        assert!(matches!(Cage::new(worker).try_next_event(), Err(CageError::Busy)));
    }

    /// Is the limit of owned folders exact, with repetitions and giving back?
    #[test]
    fn owned_folders_are_counted() {
        let (worker, other) = socket_pair().unwrap();
        let cage = Cage::new(worker);
        let mut buffer = vec![0; MESSAGE_BYTES_MAX];
        for number in 0..OWNED_FOLDERS_MAX {
            cage.own(Path::new(&format!("/x/{number}"))).unwrap();
            wire::receive(other.as_fd(), &mut buffer, RecvFlags::DONTWAIT).unwrap();
        }
        cage.own(Path::new("/x/0")).unwrap();
        assert!(matches!(cage.own(Path::new("/x/more")), Err(CageError::TooManyFolders { .. })));
        cage.disown(Path::new("/x/0")).unwrap();
        cage.own(Path::new("/x/more")).unwrap();
    }
}
