//! Every limit, wait and rhythm of the cage, each with its reason.
//!
//! Read by all modules of this crate. What is always true: no number with a meaning stands anywhere else, and the
//! relations between the numbers are asserted when the crate is compiled.
//!
//! Deliberately not here: the limits of one program (wall time and the like). They come with its `Start`.

use std::time::Duration;

/// Largest message on the socket, in bytes.
///
/// A SEQPACKET message is one kernel buffer and must fit the sender's send buffer. The kernel's default for that is 212
/// 992 bytes, of which some are its own; 192 KiB fits on a machine where nobody raised anything. Linux itself allows
/// 128 KiB for one argument; arguments and environment together beyond this belong in a file.
pub const MESSAGE_BYTES_MAX: usize = 192 * 1024;

/// What we ask for as the send buffer: several full messages, so that a burst of starts does not wait for the cage. The
/// kernel clamps it to `net.core.wmem_max` without an error.
pub(crate) const SEND_BUFFER_BYTES: usize = 4 * MESSAGE_BYTES_MAX;

/// What a packet of messages takes beside them: the head of a list.
pub(crate) const LIST_BYTES: usize = 5;

/// Largest packet: what is read into, at both ends.
pub(crate) const PACKET_BYTES_MAX: usize = MESSAGE_BYTES_MAX + LIST_BYTES;

/// Largest event, in bytes: captured output, numbers and one short word.
pub(crate) const EVENT_BYTES_MAX: usize = CAPTURED_BYTES_MAX + 4 * 1024;

/// How long init keeps captured output for itself. A program that ends before costs one message; one that lives longer
/// has its output delayed by no more than this, which nobody sees.
pub(crate) const CAPTURE_TIME: Duration = Duration::from_millis(5);

/// Captured output that travels in the report of an end. A pipe holds as much by default, so a program that writes more
/// waits for `CAPTURE_TIME` at most, then the worker reads.
pub(crate) const CAPTURED_BYTES_MAX: usize = 64 * 1024;

/// Programs that run at once in one cage, and inits and rooms. Each costs the cage one file descriptor and the usual soft limit is
/// 1024; a worker has slots in the order of its cores, so 512 is a mistake elsewhere.
pub const PROGRAMS_MAX: usize = 512;

/// Programs that a cage knows at once: those that run, and as many that wait for their turn.
pub const KNOWN_MAX: usize = 2 * PROGRAMS_MAX;

/// Programs given to one init at once: the one that runs and those behind it. Some milliseconds of the shortest programs
/// that there are, so that an init never waits for the cage.
pub(crate) const GIVEN_MAX: usize = 16;

/// A program whose block is larger does not wait in the socket of an init: sixteen of them fit any send buffer.
pub(crate) const GIVEN_BYTES_MAX: usize = 4 * 1024;

/// A program with a shorter wall limit does not wait behind another one: the cage hears of its beginning some milliseconds
/// late.
pub(crate) const GIVEN_WALL_MIN: Duration = Duration::from_secs(1);

/// How long reports of inits that have more to do may wait for company: one wake-up of the cage and of the worker is for
/// several programs.
pub(crate) const HEAR_EVERY: Duration = Duration::from_millis(5);

/// Folders that the cage removes for a dead worker. Eight per program is more than any runner needs.
pub const OWNED_FOLDERS_MAX: usize = 4096;

/// Events that wait for a worker which does not read. Beyond it the cage stops reading requests (each request makes
/// at most a few events) and drops samples; ends are never dropped.
pub(crate) const EVENTS_WAITING_MAX: usize = 4 * PROGRAMS_MAX;

/// Pairs of pipes that wait for a worker which does not read. Beyond it the cage hears no inits, so that it never runs
/// out of file descriptors and loses none.
pub(crate) const PIPES_WAITING_MAX: usize = 128;

/// Inits that wait for a program however long it takes: one run after a pause does not pay for a fork.
pub(crate) const INITS_KEPT: usize = 2;

/// How long further inits wait. It bridges the pauses between jobs; an init costs some hundred KiB.
pub(crate) const INIT_IDLE: Duration = Duration::from_secs(30);

/// Rooms made ahead that wait. Each costs two descriptors, some hundred KiB, and the kernel's memory for its namespaces; a
/// worker wants as many as it has slots, and what is beyond is made faster than it is used.
pub const ROOMS_READY_MAX: u32 = 64;

/// Rooms that are made ahead at the same time: making one costs as much as a short program, which comes first.
pub(crate) const ROOMS_MADE_AT_ONCE: usize = 2;

/// How long a room that is to be made ahead waits after one was asked for, as long as others wait still: the program for that
/// room is to have the processor first. More than the shortest programs take, less than anybody needs to ask for many.
pub(crate) const ROOM_PAUSE: Duration = Duration::from_millis(3);

/// What programs of a room may write altogether, unless the worker says otherwise: room for what compilers leave behind, and
/// not much of a machine's memory.
pub(crate) const ROOM_BYTES: u64 = 256 << 20;

/// Files and folders that they may make: each costs about a KiB of the kernel's memory.
pub(crate) const ROOM_FILES: u64 = 64 << 10;

/// The tmpfs of a room's root, which has a few small files and many mount points.
pub(crate) const ROOM_ROOT_BYTES: u64 = 1 << 20;

/// Files and folders in it, a hundred of our own and one with its folders for each extra place.
pub(crate) const ROOM_ROOT_FILES: u64 = 4096;

/// Extra places shown in a room: each costs three system calls when a room is made.
pub const EXTRA_PLACES_MAX: usize = 64;

/// Users that rooms are outside, if the cage is root. Above all that distributions, containers and directories give out
/// (systemd ends at 0x6fff_ffff), below the half that is negative for some programs.
pub(crate) const ROOM_USER_FIRST: u32 = 0x7e00_0000;

/// How many of them. Each room gets the next one, so that limits that the kernel counts for a user are its own.
pub(crate) const ROOM_USERS: u32 = 1 << 24;

/// A file taken out of a room is read in pieces of this size.
pub(crate) const FILE_CHUNK_BYTES: usize = 64 * 1024;

/// Folders in folders that are looked at when a room is listed; programs that mean well have fewer.
pub(crate) const LIST_DEPTH_MAX: usize = 32;

/// Requests taken in one turn of the loop, so that a flood of them does not delay a deadline.
pub(crate) const REQUESTS_PER_TURN: usize = 64;

/// Rhythm of looking at running programs (memory, CPU, waiting for input). A person at a prompt does not feel 50 ms,
/// and one look costs about 0.1 ms.
pub(crate) const TICK: Duration = Duration::from_millis(50);

/// Least time between two `Sample` events of a program: people watch them, machines do not need them.
pub(crate) const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// Consecutive ticks with the same blocked read before we say "waits for input". One is not enough: a program that is
/// fed at full speed is between two reads whenever it is looked at.
pub(crate) const WAITING_TICKS: u32 = 2;

/// Processes looked at in one tick, over all programs; programs that did not get their turn get it first next time. At
/// about 20 µs each this is at most a quarter of the tick.
pub(crate) const INSPECTED_PER_TICK: usize = 640;

/// Processes and threads looked at in one program. What is beyond is not counted in its samples.
pub(crate) const INSPECTED_PER_PROGRAM: usize = 256;

/// How long an init gets to kill its tree before the cage does it itself. A tree of a few hundred processes takes some
/// milliseconds; an init that needs half a second was stopped or starved.
pub(crate) const INIT_GRACE: Duration = Duration::from_millis(500);

/// Wait between two rounds of killing, when a process that was killed has not gone yet.
pub(crate) const REAP_WAIT: Duration = Duration::from_millis(10);

/// How long the cage tries to empty itself once its worker is gone. Beyond it something hangs in the kernel, and
/// nothing that we can do would help.
pub(crate) const SHUT_DOWN_MAX: Duration = Duration::from_secs(5);

/// How long the worker's end waits for room in the socket. The cage answers within a millisecond; two seconds mean that
/// it is stopped or stuck.
pub(crate) const SEND_WAIT: Duration = Duration::from_secs(2);

/// Passes of freezing a tree before it is killed as far as it is known. Each pass catches what the previous one missed;
/// what sixteen passes miss, the next round takes.
pub(crate) const FREEZE_PASSES_MAX: usize = 16;

/// Tries of an exec that finds its file open for writing (ETXTBSY): another process was forked while the file was being
/// written and has not called exec yet, a matter of milliseconds.
pub(crate) const EXEC_TRIES: u32 = 10;

/// Wait between two such tries.
pub(crate) const EXEC_RETRY_WAIT: Duration = Duration::from_millis(5);

/// Depth below which a folder is carried to the top of its tree before it is emptied: a hostile tree may be hundreds of
/// thousands of folders deep, and each level on the way costs an open directory.
pub(crate) const FOLDER_DEPTH_MAX: usize = 32;

/// Passes over one folder that is being emptied. The last one finds nothing; more than two are needed only where a file
/// system skips entries while others are removed.
pub(crate) const FOLDER_PASSES_MAX: usize = 16;

const _: () = assert!(MESSAGE_BYTES_MAX + 4096 < 212_992, "a message must fit the default send buffer");
const _: () = assert!(EVENTS_WAITING_MAX >= 2 * PROGRAMS_MAX, "started and ended of every program must find room");
const _: () = assert!(INSPECTED_PER_PROGRAM <= INSPECTED_PER_TICK, "one program must fit a tick");
const _: () = assert!(GIVEN_MAX * (2 * GIVEN_BYTES_MAX + 1024) < 212_992, "what waits for an init must fit its socket");
const _: () = assert!(EVENT_BYTES_MAX <= MESSAGE_BYTES_MAX, "every event must fit a message");
const _: () = assert!(
    PROGRAMS_MAX + 2 * PIPES_WAITING_MAX + ROOMS_READY_MAX as usize + 64 < 1024,
    "sockets and pipes must fit the usual limit"
);
