//! The limits of this crate, each with its reason.
//!
//! Every module of the crate reads them here; relations between them are checked when the crate is compiled.
//! Deliberately not here: limits of the wire (`essaim_proto::limits`), of decisions (`essaim_core::limits`) and of the
//! cage (`essaim_sandbox`).

use essaim_proto::limits::{BLOB_WINDOW_BYTES, CHUNK_BYTES, OUTPUT_WINDOW_BYTES};
use std::time::Duration;

/// Events that wait for the driver. It never waits itself, so more than a burst from every attempt is a bug elsewhere.
pub(crate) const DRIVER_EVENTS: usize = 1_024;

/// Words of the driver that wait for one attempt. An attempt gets a handful in its life (launch, kill, end of a phase,
/// clean), and is never away from its mailbox.
pub(crate) const ATTEMPT_WORDS: usize = 64;

/// Requests that wait for the cage's thread: own, start, kill and disown of each slot.
pub(crate) const CAGE_REQUESTS: usize = 1_024;

/// Other people's programs run this much nicer than the worker, so that a heartbeat always gets its turn.
pub(crate) const PROGRAM_NICE: i32 = 5;

/// Room of a pipe between program and worker, in bytes. Four times the system's default, so that a program which prints
/// fast does not stop while we pass on the previous read.
pub(crate) const PIPE_BYTES: usize = 256 << 10;

/// A read below this many bytes counts as small.
pub(crate) const SMALL_READ_BYTES: usize = 4 << 10;

/// Small reads in a row that are passed on without any pause: a line, or a screen of them, never waits.
pub(crate) const SMALL_READS_AT_ONCE: u32 = 8;

/// After that many small reads in a row the program's pipe gathers for so long: a program that writes single bytes as fast
/// as it can costs a thousand frames a second and not a hundred thousand.
pub(crate) const GATHER: Duration = Duration::from_millis(1);

/// Blobs that are fetched at the same time, over all attempts: hides the round trips of small files. Half of what a hub
/// serves to one session, so that it never says no.
pub(crate) const FETCHES_AT_ONCE: usize = 8;

/// Frames that wait for one blob's writer: a whole window even when the hub cuts it into pieces of 4 KiB.
pub(crate) const FETCH_FRAMES: usize = BLOB_WINDOW_BYTES as usize / (4 << 10);

/// A blob that brings no byte for so long over a live connection is asked for again.
pub(crate) const FETCH_STALL: Duration = Duration::from_secs(30);

/// Times that a blob may stall or arrive damaged before the attempt fails.
pub(crate) const FETCH_FAILURES_MAX: u32 = 3;

/// Probes that run at the same time: more would slow down what is measured and the machine's owner.
pub(crate) const PROBES_AT_ONCE: usize = 2;

/// One probe gets so long. A cold JVM needs seconds, a broken shim for ever.
pub(crate) const PROBE_TIME: Duration = Duration::from_secs(20);

/// Bytes of a probe's output that are read; the first line is what counts.
pub(crate) const PROBE_BYTES_MAX: u64 = 64 << 10;

/// The output that an attempt's end may carry past the pumps: a few lines, which the connection's control queue takes
/// for as many attempts as a worker has slots without ever being full.
pub(crate) const LITTLE_OUTPUT_BYTES: usize = 4 << 10;

/// A folder that was last changed so long before a program began tells of every later change by another time: clocks of
/// file systems go in steps of at most some 10 ms, those of old ones of 2 s.
pub(crate) const SETTLED: Duration = Duration::from_secs(3);

/// Tries to remove a work folder, when the system says that something is still in it: the tree of a killed cage takes a
/// moment to die.
pub(crate) const CLEAN_TRIES: u32 = 20;

/// Wait between two such tries.
pub(crate) const CLEAN_PAUSE: Duration = Duration::from_millis(50);

/// A session that lasted so long was a good one: the next pause is short again. One that ends at once (a hub that falls
/// over each time, two workers with one identity) must not be repeated ten times a second.
pub(crate) const SESSION_STOOD: Duration = Duration::from_secs(5);

/// Longest pause of a local worker's reconnect. Its hub is on the same machine, where a try costs next to nothing, and
/// whoever starts the hub anew waits for the programs that go on here.
pub(crate) const LOCAL_BACKOFF_MAX: Duration = Duration::from_secs(1);

/// A sleep of the machine explains a lost connection for so long: silence, closing and the first tries to come back.
pub(crate) const SLEEP_RECENT: Duration = Duration::from_secs(120);

/// The hub gets so long to answer a registration. It may be replaying its journal.
pub(crate) const REGISTER_TIME: Duration = Duration::from_secs(30);

/// How often a stop looks whether the probes that it killed are gone.
pub(crate) const GROUP_LOOK: Duration = Duration::from_millis(5);

/// An ordered stop waits so long for the programs' trees and the probes to be dead; the cage goes on afterwards.
pub(crate) const STOP_TIME: Duration = Duration::from_millis(800);

/// Events that the driver takes before it tells the ends of arrays' tasks that came of them.
pub(crate) const EVENTS_AT_ONCE: usize = 256;

/// Ends of arrays' tasks wait so long for company while more tasks wait here.
pub(crate) const GATHER_ENDS: Duration = Duration::from_millis(5);

/// Bytes of ends of arrays' tasks that are told in one message: it becomes one record, and a batch of the journal has a
/// million at most.
pub(crate) const ENDS_BYTES_MAX: usize = 256 << 10;

/// What an end takes beside its output.
pub(crate) const END_BYTES: usize = 96;

/// The core is told this often that time has passed while something runs: the second time, tasks of arrays are reported
/// as running.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// A goodbye gets so long to leave.
pub(crate) const GOODBYE_TIME: Duration = Duration::from_millis(500);

/// Tries to lock the worker's folder before another worker is believed to hold it.
pub(crate) const LOCK_TRIES: u32 = 10;

/// Wait between two such tries.
pub(crate) const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Wait before a cage that could not be started is tried again.
pub(crate) const CAGE_PAUSE: Duration = Duration::from_secs(1);

/// A program that is to start while there is no cage waits so long for the next one: one that could not be started is
/// tried once more. Who waits longer would only hide that this node is broken.
pub(crate) const CAGE_WAIT: Duration = Duration::from_secs(3);

/// How often the work of others is measured, when its owner limits it: reading the table of processes takes a few
/// milliseconds.
pub(crate) const FOREIGN_STEP: Duration = Duration::from_secs(1);

/// Others' work counts when it lasts so long, and is over when it is gone so long: starting a browser is no load.
pub(crate) const FOREIGN_LASTS: Duration = Duration::from_secs(3);

/// Points of a percentage below the limit where the machine is free again.
pub(crate) const FOREIGN_MARGIN: f64 = 10.0;

/// Of a machine's memory programs may reserve so many percent, when its owner does not say: the rest is for the system.
pub(crate) const MEMORY_OFFERED_PERCENT: u64 = 90;

const _: () = assert!(FOREIGN_STEP.as_millis() * 2 < FOREIGN_LASTS.as_millis(), "one measurement is no answer");
const _: () = assert!(CHUNK_BYTES as u64 <= OUTPUT_WINDOW_BYTES, "a full read finds room in an empty window");
const _: () = assert!(FETCH_FRAMES > 2 * (BLOB_WINDOW_BYTES as usize / CHUNK_BYTES) && SMALL_READ_BYTES < CHUNK_BYTES);
const _: () = assert!(GATHER.as_millis() < 5, "a line is at the hub in far less than 10 ms");
