//! The words between a worker and its cage.
//!
//! Written and read by `client` (the worker's end) and `cage` (the other end), lists of messages as packets of a SEQPACKET
//! socket, MessagePack with field names. A message that comes with file descriptors is alone in its packet. Both ends are the same executable, so there is no version; a message that
//! cannot be read is a bug and ends the cage.
//!
//! ```text
//!   worker → cage   Start (captured, or with three file descriptors)   Kill   Own   Disown
//!   worker → cage   PlanRooms   OpenRoom   CloseRoom
//!   cage → worker   RoomReady (with the room's folder) or RoomFailed      one of them per OpenRoom
//!   cage → worker   Started → (WaitingForInput | Sample)* → Ended        exactly one Ended per Started
//!                   StartFailed                                          instead of all of these
//!                   Returned                                             the same, of one that may wait for its turn
//!                   Ended, with all output                               captured, and over at once
//!                   Started → Output (with the pipes) → … → Ended        captured, and not over at once
//! ```
//!
//! What is always true: a size is checked before anything is decoded; paths travel as bytes because Linux paths are
//! bytes. Deliberately not here: the program's input, and the output of one that lives for more than a moment. They are
//! pipes between worker and program; the cage passes them on and never reads them.

use std::borrow::Cow;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::CageError;
use crate::limits::{LIST_BYTES, MESSAGE_BYTES_MAX, ROOM_BYTES, ROOM_FILES};
use crate::tree_fd::RoomFolder;

/// The worker's number for a room. The worker chooses it, and never gives it twice to one cage.
pub type RoomId = u64;

/// The worker's number for a program. The worker chooses it; it must not be in use when it is given again.
pub type ProgramId = u64;

/// What to start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The worker's number for it, used in all events.
    pub id: ProgramId,
    /// The program and its arguments. The first must contain a `/`: absolute, or relative to `cwd`. The caller resolves
    /// PATH; no shell is ever involved. Without a NUL byte.
    pub argv: Vec<String>,
    /// The whole environment: nothing is inherited. Names are not empty and hold no `=`; nothing holds a NUL byte.
    pub env: Vec<(String, String)>,
    /// The folder in which it starts, absolute.
    #[serde(with = "path_bytes")]
    pub cwd: PathBuf,
    /// Milliseconds from now after which the whole tree is killed. `None`: never. Zero is refused.
    pub wall_limit_ms: Option<u64>,
    /// Added to the cage's own niceness; 5 leaves the machine to its owner. Negative needs a privilege.
    pub nice: i32,
    /// `None`: it starts at once. Otherwise it is captured, and may wait: of all that may, at most so many run at once,
    /// however many were given; what was said last counts. Their ends are told some milliseconds late, many in one
    /// packet.
    #[serde(default)]
    pub at_once: Option<u32>,
    /// The open room in which it runs, one program of it after the other. `cwd` and `argv` are paths in the room then, and
    /// `at_once` is refused. `None`: on the host, without walls.
    #[serde(default)]
    pub room: Option<RoomId>,
    /// What each of its processes may take at most.
    #[serde(default)]
    pub limits: Limits,
}

/// Limits that the kernel keeps for each process. `None`: what the cage itself has. More than that is not to be had: a
/// larger number counts as the cage's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Descriptors open at once.
    pub open_files: Option<u64>,
    /// Bytes of one file that it writes.
    pub file_bytes: Option<u64>,
    /// Bytes of stack of its first thread.
    pub stack_bytes: Option<u64>,
    /// Processes and threads at once, counted exactly over all of the room. Refused without a room, where the kernel counts
    /// everything of that user.
    pub processes: Option<u64>,
}

/// How a cage makes its rooms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoomPlan {
    /// So many are made ahead and wait; at most `ROOMS_READY_MAX`.
    pub ready: u32,
    /// What programs of one room may write altogether (/box, /tmp, /dev/shm), bytes. It is memory.
    pub size_bytes: u64,
    /// How many files and folders they may make.
    pub files_max: u64,
    /// What of the host is shown beside its system folders, read-only, at the same path: interpreters that live elsewhere.
    /// Absolute; not where a room has something of its own (/proc, /dev, /sys, /box, /tmp, /etc, /var). A place that does not
    /// exist is left out.
    #[serde(with = "paths_bytes")]
    pub extra_places: Vec<PathBuf>,
}

impl Default for RoomPlan {
    fn default() -> RoomPlan {
        RoomPlan { ready: 0, size_bytes: ROOM_BYTES, files_max: ROOM_FILES, extra_places: Vec::new() }
    }
}

/// How well a room is shut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Isolation {
    /// All walls stand: namespaces, an own /proc that shows own processes only, Landlock, forbidden calls.
    Full,
    /// Namespaces, but not all of the rest.
    Reduced {
        /// What this machine has not: `proc` (there is none), `proc limits` (it shows the machine too), `landlock`, `seccomp`.
        missing: Vec<String>,
    },
}

/// How the output of a program is captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Capture {
    /// Standard output and standard error each on its own.
    Apart,
    /// Both in one stream, in the order in which they were written, which counts as standard error.
    Joined,
}

/// Captured output of a program that was over at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Printed {
    /// Its standard output, whole.
    #[serde(with = "serde_bytes")]
    pub stdout: Vec<u8>,
    /// Its standard error, whole.
    #[serde(with = "serde_bytes")]
    pub stderr: Vec<u8>,
}

/// The pipes that captured output of a longer program comes out of, with all bytes from the first one on.
#[derive(Debug, Default)]
pub struct OutputPipes {
    /// The end to read of its standard output, unless that is joined.
    pub stdout: Option<OwnedFd>,
    /// The end to read of its standard error.
    pub stderr: Option<OwnedFd>,
}

impl OutputPipes {
    /// From what came along with a message.
    pub(crate) fn new(fds: Vec<OwnedFd>) -> OutputPipes {
        let mut fds = fds.into_iter().rev();
        let stderr = fds.next();
        OutputPipes { stdout: fds.next(), stderr }
    }

    /// In the order in which they go along with a message.
    pub(crate) fn fds(&self) -> impl Iterator<Item = &OwnedFd> {
        self.stdout.iter().chain(&self.stderr)
    }
}

impl PartialEq for OutputPipes {
    fn eq(&self, other: &OutputPipes) -> bool {
        self.fds().map(OwnedFd::as_raw_fd).eq(other.fds().map(OwnedFd::as_raw_fd))
    }
}

/// Why the cage stopped a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Stop {
    /// Its wall limit passed.
    Wall,
    /// The worker asked for it.
    Kill,
}

/// How a program ended and what it used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// Its exit code, 0 to 255, if it exited. If both this and `signal` are empty, its init was killed and nobody
    /// knows.
    pub exit_code: Option<i32>,
    /// The signal it died of.
    pub signal: Option<i32>,
    /// Set if we killed it, and why. Not set if it ended by itself at the last moment.
    pub stopped_by: Option<Stop>,
    /// User and system time of all its processes, milliseconds. Processes whose parent ignored SIGCHLD are counted as
    /// far as samples saw them.
    pub cpu_ms: u64,
    /// Milliseconds from the start to the end of the program itself, not of what it left behind.
    pub wall_ms: u64,
    /// The larger of: the peak of its largest process, the highest sum over its processes seen by a sample. Bytes.
    /// Never below some hundred KiB, the memory of its init before exec.
    pub memory_peak_bytes: u64,
    /// Most processes seen at once by a sample, at least 1.
    pub processes_peak: u64,
}

/// What the worker asks. Private: `Cage` has a method for each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Request<'a> {
    /// Start a program.
    Start {
        /// Which, and how.
        start: Cow<'a, Start>,
        /// `None`: stdin, stdout and stderr come along as file descriptors. Otherwise stdin is empty.
        capture: Option<Capture>,
    },
    /// Kill a program's tree. Unknown numbers are ignored: it may have ended meanwhile.
    Kill {
        /// Which.
        id: ProgramId,
    },
    /// Remove this folder when the worker is gone.
    Own {
        /// Absolute.
        #[serde(with = "path_bytes")]
        path: PathBuf,
    },
    /// From now on make rooms so. Those that wait and were made otherwise go.
    PlanRooms {
        /// How.
        plan: RoomPlan,
    },
    /// Give a room.
    OpenRoom {
        /// Which number it gets.
        id: RoomId,
    },
    /// Kill what runs in it, and the room. Unknown numbers are ignored.
    CloseRoom {
        /// Which.
        id: RoomId,
    },
    /// Do not remove it any more; the worker did.
    Disown {
        /// As given to `Own`.
        #[serde(with = "path_bytes")]
        path: PathBuf,
    },
}

/// What the cage tells.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// The program runs (its exec succeeded). Not said of a captured one that is over at once.
    Started {
        /// Which.
        id: ProgramId,
        /// Its process, for display only: by the time you use the number it may be someone else's. 0: it is gone already.
        pid: i32,
    },
    /// It could not be started; nothing of it is alive and no other event follows.
    StartFailed {
        /// Which.
        id: ProgramId,
        /// What failed, as a word: `too many`, `id in use`, `stdio`, `argv`, `env`, `cwd`, `fork`, `pipe`, `init`,
        /// `session`, `nice`, `chdir`, `exec`, `room` (there is none of that number, or it has a program) or `limits`.
        step: String,
        /// The system's error number.
        errno: i32,
    },
    /// It may wait, but not so long: as many as may run at once run for longer than a moment. It has not begun, and is
    /// unknown to the cage from here on.
    Returned {
        /// Which.
        id: ProgramId,
    },
    /// A process of it began or stopped to be blocked in a read of the program's stdin. Sent on change only; after the
    /// end, nothing is sent.
    WaitingForInput {
        /// Which.
        id: ProgramId,
        /// Whether it waits.
        waiting: bool,
    },
    /// What it uses now; at most one a second, and dropped if the worker does not read.
    Sample {
        /// Which.
        id: ProgramId,
        /// User and system time so far, milliseconds.
        cpu_ms: u64,
        /// Memory now, bytes.
        memory_bytes: u64,
        /// Processes now.
        processes: u64,
    },
    /// It is captured and runs on: from here on its output is to be read by the worker.
    Output {
        /// Which.
        id: ProgramId,
        /// They come along as file descriptors.
        #[serde(skip)]
        pipes: OutputPipes,
    },
    /// The room is there, for the programs that are started in it, until it is closed.
    RoomReady {
        /// Which.
        id: RoomId,
        /// How well it is shut.
        isolation: Isolation,
        /// Its folder /box, which comes along as a file descriptor; always `Some`. What is in it lives as long as the room
        /// or this, whichever is longer.
        #[serde(skip)]
        folder: Option<RoomFolder>,
    },
    /// There will be no room of this number.
    RoomFailed {
        /// Which.
        id: RoomId,
        /// A sentence.
        why: String,
    },
    /// It is over, and no process of it is alive. Exactly one per program that was started.
    Ended {
        /// Which.
        id: ProgramId,
        /// How.
        evidence: Evidence,
        /// Its captured output, unless `Output` has given that away.
        output: Printed,
    },
}

impl Event {
    /// What comes along with it, in its order.
    pub(crate) fn fds(&self) -> impl Iterator<Item = &OwnedFd> {
        let (pipes, folder) = match self {
            Event::Output { pipes, .. } => (Some(pipes), None),
            Event::RoomReady { folder, .. } => (None, folder.as_ref()),
            _ => (None, None),
        };
        pipes.into_iter().flat_map(OutputPipes::fds).chain(folder.map(RoomFolder::fd))
    }

    /// Takes what came along with it.
    pub(crate) fn take_fds(&mut self, fds: Vec<OwnedFd>) {
        match self {
            Event::Output { pipes, .. } => *pipes = OutputPipes::new(fds),
            Event::RoomReady { folder, .. } => *folder = fds.into_iter().next().map(RoomFolder::new),
            _ => {}
        }
    }
}

/// Why a program could not be started, or a room not be made. `word` is what `StartFailed` carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    TooMany,
    IdInUse,
    Stdio,
    Argv,
    Env,
    Cwd,
    Fork,
    Pipe,
    Init,
    Session,
    Nice,
    Chdir,
    Exec,
    Room,
    Limits,
    Namespaces,
    Users,
    Mounts,
    Proc,
    Walls,
}

impl Step {
    const ALL: [(Step, &'static str); 20] = [
        (Step::TooMany, "too many"),
        (Step::IdInUse, "id in use"),
        (Step::Stdio, "stdio"),
        (Step::Argv, "argv"),
        (Step::Env, "env"),
        (Step::Cwd, "cwd"),
        (Step::Fork, "fork"),
        (Step::Pipe, "pipe"),
        (Step::Init, "init"),
        (Step::Session, "session"),
        (Step::Nice, "nice"),
        (Step::Chdir, "chdir"),
        (Step::Exec, "exec"),
        (Step::Room, "room"),
        (Step::Limits, "limits"),
        (Step::Namespaces, "namespaces"),
        (Step::Users, "users"),
        (Step::Mounts, "mounts"),
        (Step::Proc, "proc"),
        (Step::Walls, "walls"),
    ];

    /// The word for the worker.
    pub(crate) fn word(self) -> &'static str {
        Step::ALL[usize::from(self.number())].1
    }

    /// Its place in `ALL`, for the pipes between program, init and cage.
    pub(crate) fn number(self) -> u8 {
        self as u8
    }

    /// The step with that place, if there is one.
    pub(crate) fn from_number(number: u8) -> Option<Step> {
        Step::ALL.get(usize::from(number)).map(|(step, _)| *step)
    }
}

/// Encodes one message.
///
/// # Errors
/// `TooLarge` over `MESSAGE_BYTES_MAX`, `Encode` if it cannot be written at all.
pub(crate) fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, CageError> {
    let bytes = rmp_serde::to_vec_named(message).map_err(CageError::Encode)?;
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(CageError::TooLarge { bytes: bytes.len(), bytes_max: MESSAGE_BYTES_MAX });
    }
    Ok(bytes)
}

/// Encoded messages that travel in one packet.
#[derive(Debug, Default)]
pub(crate) struct List {
    count: u32,
    bytes: Vec<u8>,
}

impl List {
    /// One message alone.
    pub(crate) fn one(encoded: Vec<u8>) -> List {
        List { count: 1, bytes: encoded }
    }

    /// Adds a message. False: it does not fit any more.
    pub(crate) fn push(&mut self, encoded: &[u8]) -> bool {
        if self.bytes.len() + encoded.len() > MESSAGE_BYTES_MAX {
            return false;
        }
        self.count += 1;
        self.bytes.extend_from_slice(encoded);
        true
    }

    /// How many are in it.
    pub(crate) fn count(&self) -> usize {
        self.count as usize
    }

    /// What goes before them: MessagePack's head of a list with a long count.
    pub(crate) fn head(&self) -> [u8; LIST_BYTES] {
        let [a, b, c, d] = self.count.to_be_bytes();
        [0xdd, a, b, c, d]
    }

    /// The messages.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Decodes a packet of messages, or one message, of at most `bytes_max` bytes.
///
/// # Errors
/// `TooLarge` if it is longer (nothing was decoded), `Decode` if it is no such message.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8], bytes_max: usize) -> Result<T, CageError> {
    if bytes.len() > bytes_max {
        return Err(CageError::TooLarge { bytes: bytes.len(), bytes_max });
    }
    rmp_serde::from_slice(bytes).map_err(CageError::Decode)
}

/// Paths as bytes: serde would refuse those that are not UTF-8.
mod path_bytes {
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::path::{Path, PathBuf};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use serde_bytes::{ByteBuf, Bytes};

    pub(super) fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
        Bytes::new(path.as_os_str().as_bytes()).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        Ok(PathBuf::from(OsString::from_vec(ByteBuf::deserialize(from)?.into_vec())))
    }
}

/// The same for many.
mod paths_bytes {
    use std::path::PathBuf;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Bytes(#[serde(with = "super::path_bytes")] PathBuf);

    pub(super) fn serialize<S: Serializer>(paths: &[PathBuf], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(paths.iter().cloned().map(Bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<PathBuf>, D::Error> {
        Ok(Vec::<Bytes>::deserialize(from)?.into_iter().map(|Bytes(path)| path).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;
    use crate::limits::{CAPTURED_BYTES_MAX, EVENT_BYTES_MAX, PACKET_BYTES_MAX};

    fn start() -> Start {
        Start {
            id: 7,
            argv: vec!["/bin/echo".to_owned(), "é".to_owned()],
            env: vec![("A".to_owned(), "1".to_owned())],
            cwd: PathBuf::from(OsStr::from_bytes(b"/tmp/\xff")),
            wall_limit_ms: Some(1000),
            nice: 5,
            at_once: None,
            room: Some(3),
            limits: Limits { open_files: Some(9), ..Limits::default() },
        }
    }

    /// Does what is written come back the same, with a path that is not UTF-8?
    #[test]
    fn requests_survive_the_trip() {
        for request in [
            Request::Start { start: Cow::Owned(start()), capture: None },
            Request::Start { start: Cow::Owned(start()), capture: Some(Capture::Joined) },
            Request::Kill { id: u64::MAX },
            Request::Own { path: start().cwd },
            Request::PlanRooms {
                plan: RoomPlan { extra_places: vec![start().cwd, "/".into()], ..RoomPlan::default() },
            },
            Request::OpenRoom { id: 1 },
            Request::CloseRoom { id: 2 },
            Request::Disown { path: PathBuf::from("/") },
        ] {
            let bytes = encode(&request).unwrap();
            assert_eq!(decode::<Request<'_>>(&bytes, MESSAGE_BYTES_MAX).unwrap(), request);
        }
    }

    /// Does a packet of several messages come back, is it full when the limit says so, and can it be empty?
    #[test]
    fn lists_survive_the_trip() {
        let mut list = List::default();
        let packet = |list: &List| [&list.head()[..], list.bytes()].concat();
        assert_eq!(decode::<Vec<Event>>(&packet(&list), PACKET_BYTES_MAX).unwrap(), []);
        let event = Event::Returned { id: 7 };
        let encoded = encode(&event).unwrap();
        while list.push(&encoded) {}
        assert!(list.bytes().len() + encoded.len() > MESSAGE_BYTES_MAX);
        let events: Vec<Event> = decode(&packet(&list), PACKET_BYTES_MAX).unwrap();
        assert!(events.len() == list.count() && events.iter().all(|found| *found == event));
    }

    /// Do captured bytes of any kind and an end of any kind come back? Is the largest output within the largest event?
    #[test]
    fn ends_survive_the_trip() {
        let all: Vec<u8> = (0..=255).collect();
        let output = Printed { stdout: all.repeat(200), stderr: all.repeat(56) };
        assert_eq!(output.stdout.len() + output.stderr.len(), CAPTURED_BYTES_MAX);
        let evidence = Evidence { exit_code: Some(-1), cpu_ms: u64::MAX, ..Evidence::default() };
        let event = Event::Ended { id: u64::MAX, evidence, output };
        let bytes = encode(&event).unwrap();
        assert_eq!(decode::<Event>(&bytes, EVENT_BYTES_MAX).unwrap(), event);
    }

    /// Is a message over the limit refused by name on both sides?
    #[test]
    fn sizes_are_checked() {
        let long = Start { argv: vec!["x".repeat(MESSAGE_BYTES_MAX)], ..start() };
        assert!(matches!(
            encode(&Request::Start { start: Cow::Owned(long), capture: None }),
            Err(CageError::TooLarge { .. })
        ));
        let bytes = encode(&Request::Start { start: Cow::Owned(start()), capture: None }).unwrap();
        assert!(matches!(decode::<Request<'_>>(&bytes, 3), Err(CageError::TooLarge { bytes_max: 3, .. })));
    }

    /// Does garbage give an error and never a panic? Every prefix and every single changed byte of a real message is
    /// tried.
    #[test]
    fn garbage_is_refused() {
        let bytes = encode(&Request::Start { start: Cow::Owned(start()), capture: None }).unwrap();
        for end in 0..bytes.len() {
            assert!(decode::<Request<'_>>(&bytes[..end], MESSAGE_BYTES_MAX).is_err(), "prefix of {end} bytes");
        }
        for place in 0..bytes.len() {
            for value in [0, 0x7f, 0xc1, 0xdd, 0xff] {
                let mut changed = bytes.clone();
                changed[place] = value;
                let _ = decode::<Request<'_>>(&changed, MESSAGE_BYTES_MAX);
            }
        }
    }

    /// Is the table of steps in the order of the enum? `word` and `from_number` depend on it.
    #[test]
    fn steps_are_in_order() {
        for (place, (step, word)) in Step::ALL.iter().enumerate() {
            assert_eq!(usize::from(step.number()), place);
            assert_eq!(step.word(), *word);
            assert_eq!(Step::from_number(step.number()), Some(*step));
        }
        assert_eq!(Step::from_number(20), None);
    }
}
