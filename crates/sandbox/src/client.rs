//! The worker's end of the socket to its cage.
//!
//! Held by the worker: any thread sends requests, one thread or task hears the events. What is always
//! true: a request is refused here, by name, if the cage would have to refuse it without being able to answer; the
//! worker holds no end of a program's stdio after `start`.
//!
//! Deliberately not here: starting the cage's process (`supervise` in the binary) and matching events to programs.

use std::borrow::Cow;
use std::collections::{BTreeSet, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, sockopt};

use crate::blueprint;
use crate::error::CageError;
use crate::limits::{EXTRA_PLACES_MAX, OWNED_FOLDERS_MAX, PACKET_BYTES_MAX, SEND_WAIT};
use crate::protocol::{Capture, Event, List, ProgramId, Request, RoomId, RoomPlan, Start, decode, encode};
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
    inbox: Mutex<Inbox>,
}

/// What came out of the socket.
#[derive(Debug)]
struct Inbox {
    /// For one packet.
    buffer: Vec<u8>,
    /// Events of a packet that were not asked for yet.
    events: VecDeque<Event>,
}

/// A request to start a captured program, checked and ready to be sent.
#[derive(Debug)]
pub struct Order(Vec<u8>);

impl Order {
    /// For a program that reads nothing and whose output comes back.
    ///
    /// # Errors
    /// `TooLarge`, `ZeroWallLimit`, `RelativePath` (for `cwd`).
    pub fn new(start: &Start, capture: Capture) -> Result<Order, CageError> {
        order(start, Some(capture)).map(Order)
    }
}

fn order(start: &Start, capture: Option<Capture>) -> Result<Vec<u8>, CageError> {
    if start.wall_limit_ms == Some(0) {
        return Err(CageError::ZeroWallLimit);
    }
    if !start.cwd.is_absolute() {
        return Err(CageError::RelativePath { path: start.cwd.clone() });
    }
    encode(&Request::Start { start: Cow::Borrowed(start), capture })
}

impl Cage {
    /// Takes the worker's end that `socket_pair` made.
    pub fn new(socket: OwnedFd) -> Cage {
        // Without the timeout a stopped cage would hold the caller for ever. It can only fail for something that is no
        // socket, and then every send will say so.
        let _ = sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(SEND_WAIT));
        let _ = rustix::io::ioctl_fionbio(&socket, false);
        let inbox = Inbox { buffer: vec![0; PACKET_BYTES_MAX], events: VecDeque::new() };
        Cage { socket, owned: Mutex::new(BTreeSet::new()), inbox: Mutex::new(inbox) }
    }

    /// Asks for a program to be started; the answer is `Event::Started` or `Event::StartFailed`. The streams are closed
    /// on this side, whatever happens.
    ///
    /// # Errors
    /// `TooLarge`, `ZeroWallLimit`, `RelativePath` (for `cwd`): nothing was sent. `Busy`, `Gone`, `Socket`.
    pub fn start(&self, start: Start, stdio: Stdio3) -> Result<(), CageError> {
        let fds = [stdio.stdin.as_fd(), stdio.stdout.as_fd(), stdio.stderr.as_fd()];
        self.send_list(&List::one(order(&start, None)?), &fds, SendFlags::empty())
    }

    /// Asks for a program to be started that reads nothing and whose output comes back: with `Event::Ended` if it is
    /// over at once (then there is no `Event::Started`), otherwise through the pipes of `Event::Output`.
    ///
    /// # Errors
    /// As `start`.
    pub fn start_captured(&self, start: &Start, capture: Capture) -> Result<(), CageError> {
        self.send_list(&List::one(order(start, Some(capture))?), &[], SendFlags::empty())
    }

    /// The same for many, and for a caller that must not wait: says how many were sent, and if these are not all, why.
    pub fn try_start_all(&self, orders: &[Order]) -> (usize, Option<CageError>) {
        let mut sent = 0;
        while sent < orders.len() {
            let mut list = List::default();
            for Order(encoded) in &orders[sent..] {
                if !list.push(encoded) {
                    break;
                }
            }
            if let Err(error) = self.send_list(&list, &[], SendFlags::DONTWAIT) {
                return (sent, Some(error));
            }
            sent += list.count();
        }
        (sent, None)
    }

    /// Asks for a program's whole tree to be killed; `Event::Ended` follows as for any end. Nothing happens if it is
    /// over already.
    ///
    /// # Errors
    /// `Busy`, `Gone`, `Socket`.
    pub fn kill(&self, id: ProgramId) -> Result<(), CageError> {
        self.send(&Request::Kill { id })
    }

    /// Says how rooms are to be made from now on, and how many ahead. Without it none are made ahead.
    ///
    /// # Errors
    /// `UnfitPath`, `TooManyPlaces` (for `extra_places`), `EmptyRoom` (a size of nothing): nothing was sent. `Busy`, `Gone`,
    /// `Socket`.
    pub fn plan_rooms(&self, plan: RoomPlan) -> Result<(), CageError> {
        if plan.extra_places.len() > EXTRA_PLACES_MAX {
            return Err(CageError::TooManyPlaces { places_max: EXTRA_PLACES_MAX });
        }
        if let Some(path) = plan.extra_places.iter().find(|place| !blueprint::is_fit(place)) {
            return Err(CageError::UnfitPath { path: path.clone() });
        }
        if plan.size_bytes == 0 || plan.files_max == 0 {
            return Err(CageError::EmptyRoom);
        }
        self.send(&Request::PlanRooms { plan })
    }

    /// Asks for a room; `Event::RoomReady` or `Event::RoomFailed` follows. The worker puts files in and takes them out
    /// through the folder that comes with the event (`RoomFolder`).
    ///
    /// # Errors
    /// `Busy`, `Gone`, `Socket`.
    pub fn open_room(&self, id: RoomId) -> Result<(), CageError> {
        self.send(&Request::OpenRoom { id })
    }

    /// Ends a room: what runs in it is killed, with `Event::Ended` as after `kill`. Nothing happens if there is none.
    ///
    /// # Errors
    /// `Busy`, `Gone`, `Socket`.
    pub fn close_room(&self, id: RoomId) -> Result<(), CageError> {
        self.send(&Request::CloseRoom { id })
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
        let mut inbox = self.inbox();
        while inbox.events.is_empty() {
            match self.receive(&mut inbox.buffer, RecvFlags::empty())? {
                Some(events) => inbox.events.extend(events),
                None => return Ok(None),
            }
        }
        Ok(inbox.events.pop_front())
    }

    /// The next events, if there are any already, for a caller that must not wait; the socket (`as_fd`) becomes readable
    /// when it is worth another try.
    ///
    /// # Errors
    /// `Busy`: there are none now. Otherwise as `next_event`.
    pub fn try_next_events(&self) -> Result<Option<Vec<Event>>, CageError> {
        let mut inbox = self.inbox();
        if !inbox.events.is_empty() {
            return Ok(Some(inbox.events.drain(..).collect()));
        }
        self.receive(&mut inbox.buffer, RecvFlags::DONTWAIT)
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the cage as if this end were dropped, while other threads still hold it: `next_event` gives `None` once the
    /// events sent before were read.
    pub fn shut_down(&self) {
        // An error means that it is shut down already.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }

    fn receive(&self, buffer: &mut [u8], flags: RecvFlags) -> Result<Option<Vec<Event>>, CageError> {
        match wire::receive(self.socket.as_fd(), buffer, flags) {
            Ok(Packet::Whole(count, fds)) => {
                let mut events: Vec<Event> = decode(&buffer[..count], PACKET_BYTES_MAX)?;
                if let [event] = &mut events[..] {
                    event.take_fds(fds);
                }
                Ok(Some(events))
            }
            Ok(Packet::TooLarge) => {
                Err(CageError::TooLarge { bytes: PACKET_BYTES_MAX + 1, bytes_max: PACKET_BYTES_MAX })
            }
            Ok(Packet::End) => Ok(None),
            Err(Errno::AGAIN) => Err(CageError::Busy),
            Err(error) => Err(CageError::Socket(error.into())),
        }
    }

    fn send(&self, request: &Request<'_>) -> Result<(), CageError> {
        self.send_list(&List::one(encode(request)?), &[], SendFlags::empty())
    }

    fn send_list(&self, list: &List, fds: &[BorrowedFd<'_>], flags: SendFlags) -> Result<(), CageError> {
        wire::send(self.socket.as_fd(), &[&list.head(), list.bytes()], fds, flags).map_err(send_error)
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
    use crate::protocol::Limits;
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
            at_once: None,
            room: None,
            limits: Limits::default(),
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
        let mut buffer = vec![0; PACKET_BYTES_MAX];
        match wire::receive(other.as_fd(), &mut buffer, RecvFlags::DONTWAIT).unwrap() {
            Packet::Whole(count, fds) => assert_eq!((count, fds.len()), (PACKET_BYTES_MAX, 3)),
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
        assert_eq!(cage.try_next_events().unwrap(), None);
    }

    /// Is there no event while the cage says nothing, without waiting for one?
    #[test]
    fn nothing_to_hear() {
        let (worker, _other) = socket_pair().unwrap();
        assert!(matches!(Cage::new(worker).try_next_events(), Err(CageError::Busy)));
    }

    /// Do many orders go in few packets, none of them too large, and is said how many found no room?
    #[test]
    fn orders_are_packed() {
        let (worker, other) = socket_pair().unwrap();
        let cage = Cage::new(worker);
        let mut buffer = vec![0; PACKET_BYTES_MAX];
        let mut receive = || match wire::receive(other.as_fd(), &mut buffer, RecvFlags::DONTWAIT) {
            Ok(Packet::Whole(count, _)) => {
                decode::<Vec<Request<'_>>>(&buffer[..count], PACKET_BYTES_MAX).unwrap().len()
            }
            _ => 0,
        };
        let orders = |bytes: usize, count: usize| -> Vec<Order> {
            (0..count).map(|_| Order::new(&start(bytes), Capture::Apart).unwrap()).collect()
        };
        assert!(matches!(cage.try_start_all(&orders(10, 64)), (64, None)));
        assert_eq!((receive(), receive()), (64, 0));
        assert!(matches!(cage.try_start_all(&orders(100_000, 1)), (1, None)));
        assert_eq!(receive(), 1);
        let (sent, error) = cage.try_start_all(&orders(60_000, 1_000));
        assert!(matches!(error, Some(CageError::Busy)));
        let mut received = 0;
        while let count @ 1..=3 = receive() {
            received += count;
        }
        assert_eq!(received, sent);
        drop(other);
        assert!(matches!(cage.try_start_all(&orders(10, 1)), (0, Some(CageError::Gone))));
    }

    /// Is the limit of owned folders exact, with repetitions and giving back?
    #[test]
    fn owned_folders_are_counted() {
        let (worker, other) = socket_pair().unwrap();
        let cage = Cage::new(worker);
        let mut buffer = vec![0; PACKET_BYTES_MAX];
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
