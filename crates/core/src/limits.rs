//! The limits of decisions, each with its reason.
//!
//! The shells read some of them (heartbeats, leases), the rest is checked here. Always true: what is over a limit is
//! refused by name or cut, never stored.
//! Deliberately not here: limits of the wire (`essaim_proto::limits`) and of sockets (`net`).

use essaim_proto::limits::{NAMED_TASKS_MAX, VALUE_BYTES_MAX};

/// A worker says how it is this often, in milliseconds: three signs may be lost before anyone worries.
pub const HEARTBEAT_MS: u64 = 5_000;

/// Silence after which a node gets nothing new.
pub const SUSPECT_MS: u64 = 15_000;

/// Silence after which its connection is closed.
pub const SILENCE_MS: u64 = 30_000;

/// Silence after which its attempts are given to others. Longer than [`SILENCE_MS`], so that a worker whose
/// connection broke has time to come back with what it holds.
pub const LEASE_MS: u64 = 60_000;

/// Without a look at the clock for so long, the hub itself stood still and nobody's silence counts: it is to look at
/// least once a second.
pub const STALL_MS: u64 = 5_000;

/// So much more of the calendar's time than of the monotonic clock's means that a machine slept: clocks are set by less.
pub const SLEPT_MS: u64 = 10_000;

/// A worker that was told to start an attempt says within this time that it holds it: three reports, of which two were
/// written before the word arrived at worst.
pub const START_WAIT_MS: u64 = 15_000;

/// A worker is told to start an attempt this often; then the attempt is lost there.
pub const STARTS_MAX: u32 = 3;

/// A task whose attempts were lost this often ends as lost: it probably kills its workers.
pub const LOST_ATTEMPTS_MAX: u32 = 3;

/// Wall limit of a phase when the job names none, in milliseconds.
pub const WALL_DEFAULT_MS: u64 = 180_000;

/// Output of a program that names no limit, in bytes: more is a loop that does not end, or belongs into a file.
pub const OUTPUT_DEFAULT_BYTES: u64 = 1 << 30;

/// What a compiler may use where the table of languages does not say: large templates take half a minute, sources that
/// include `/dev/random` or themselves take for ever.
pub const COMPILE_WALL_MS: u64 = 120_000;
/// The same of its messages: an error in a template can print megabytes.
pub const COMPILE_OUTPUT_BYTES: u64 = 16 << 20;

/// Largest wall limit that a job may name: 7 days, so that a typing error does not hold a slot for ever.
pub const WALL_MAX_MS: u64 = 7 * 24 * 3_600_000;

/// Jobs that wait or run at once: each costs up to a kilobyte.
pub const LIVE_JOBS_MAX: usize = 250_000;

/// Tasks of all arrays that wait or run at once: each costs two bits, and a bound keeps their numbers small.
pub const LIVE_TASKS_MAX: u64 = 100_000_000;

/// Failures of an array that the core keeps whole, the first ones; the catalog has them all.
pub const ARRAY_FAILURES_MAX: usize = 1_000;

/// Tries after failures that a job may ask for.
pub const RETRY_MAX: u32 = 100;

/// A task that takes less than this, on average, is leased ahead: a round trip between two of them would be felt.
pub const SHORT_TASK_MS: u64 = 50;

/// So much work, in milliseconds, is leased ahead to each node: many round trips, and no more than a late worker or an
/// urgent task may wait for.
pub const AHEAD_MS: u64 = 50;

/// Tasks that are leased ahead to one node at most, so that the answer to its registration fits a frame.
pub const AHEAD_MAX: u32 = 4_096;

/// Classes of wide tasks for which a node is kept free at once, those whose turn is first: each costs a look at all nodes,
/// and many would keep all nodes idle.
pub const KEPT_FOR_MAX: usize = 16;

/// A task of an array that takes less than this, on average, takes a moment: a worker hands several of them to each slot,
/// so that a slot waits for nobody between two of them.
pub const MOMENT_MS: u64 = 3;

/// So much work, in milliseconds, is in the hands of one slot: some times as long as its ends wait for company, and no more
/// than an urgent task may wait for.
pub const IN_HAND_MS: u64 = 16;

/// Tasks in the hands of one slot at most.
pub const IN_HAND_MAX: u32 = 16;

/// Such tasks that a worker has begun at most, unless it has more slots: each has work folders of its own.
pub const IN_HAND_ALL_MAX: u32 = 256;

/// Attempts that a worker of so many slots has begun at once: beside those that run only such as take a moment.
pub fn begun_max(slots: u32) -> u32 {
    slots.max(slots.saturating_mul(IN_HAND_MAX).min(IN_HAND_ALL_MAX))
}

/// Jobs whose pace a worker remembers: more than run at once, and little memory.
pub const PACES_MAX: usize = 64;

/// Bytes of arguments and variables of a task that waits in the hands of a slot.
pub const IN_HAND_BYTES_MAX: usize = 2 << 10;

/// Ends of an array's tasks after which its pace is known.
pub const PACE_ENDS: u32 = 8;

/// Unstarted tasks that stand still for so long on a node while another one is free are taken back, in milliseconds.
pub const TAKE_BACK_MS: u64 = 500;

/// One more worker of this machine is started for what has waited so long, in milliseconds: a process and its look at the
/// machine's languages take about as much, so that what begins sooner would not have gained by it.
pub const LOCAL_WAIT_MS: u64 = 1_000;

/// One beyond the first goes when it has had nothing to do for so long, if nobody says otherwise, in milliseconds: work
/// that comes in bursts, as people send it, finds it still there.
pub const LOCAL_IDLE_MS: u64 = 60_000;

/// Workers of the hub's own machine: far more than one has processors; each number has a folder that is looked at.
pub const LOCAL_WORKERS_MAX: u32 = 256;

/// Owners of classes of tasks that are looked at, at each tick, for one that another worker of this machine could run.
pub const LOCAL_CLASSES_MAX: usize = 1_000;

/// Largest and smallest priority.
pub const PRIORITY_MAX: i32 = 1_000;

/// Bytes of the descriptions of all jobs that wait or run, small files included: a folder of 2,000 files costs half a
/// megabyte, so the count alone would not bound the memory.
pub const LIVE_BYTES_MAX: usize = 512 << 20;

/// Bytes of the descriptions of all ended jobs that stay listed; the oldest job is forgotten first.
pub const ENDED_BYTES_MAX: usize = 128 << 20;

/// How long a file that was uploaded and that no job needs yet counts as its key's, in milliseconds: as long as the hub
/// keeps it.
pub const UPLOAD_COUNTED_MS: u64 = 10 * 60_000;

/// Uploads that are remembered for that; beyond it the oldest no longer count.
pub const UPLOADS_COUNTED_MAX: usize = 100_000;

/// Requests that a key with a rate may make at once after a silence: those of two seconds,
pub const BURST_SECONDS: u64 = 2;
/// and at least so many: one command of a person asks for some things at once.
pub const BURST_MIN: u64 = 10;

/// Ended jobs that the core still knows; the oldest is forgotten first, and the catalog answers for it. Enough that a
/// client that asks for what has just ended is answered from memory, few enough that a snapshot is small.
pub const ENDED_JOBS_MAX: usize = 2_000;

/// Submits whose jobs were forgotten and that are still told from new ones: a client tries again within minutes, and
/// this is many minutes of work at full speed, in 5 MB.
pub const SUBMIT_KEYS_MAX: usize = 100_000;

/// Ends of ephemeral jobs whose holders are remembered, in case the store does not take them: as many as the hub's shell
/// decides before it waits for the store (64 batches of 256 inputs).
pub const UNDONE_ENDS_MAX: usize = 16_384;

/// Notices that are due at once: each waits in the memory with its job's text (20 kB at most for an array that failed) for
/// the minutes that a machine may be away. What ends beyond that is not told, which its record says.
pub const NOTICES_MAX: usize = 1_000;

/// Bytes of a URL that a notice goes to: more than browsers and servers agree on is a mistake.
pub const URL_BYTES_MAX: usize = 2_000;

/// Length of what is kept of why a notice was given up, in characters.
pub const NOTICE_ERROR_CHARS_MAX: usize = 200;

/// Sessions at once, clients and workers together: the doors allow as many connections.
pub const SESSIONS_MAX: usize = 8_192;

/// Nodes that are known.
pub const NODES_MAX: usize = 10_000;

/// Keys: a school has hundreds, and one page of them must fit a frame.
pub const KEYS_MAX: usize = 1_000;

/// Join lines that are remembered, used and expired ones included, so that each is refused by its own name.
pub const JOINS_MAX: usize = 10_000;

/// How long a join line is remembered after it expired, to say so by name.
pub const JOIN_MEMORY_MS: u64 = 24 * 3_600_000;

/// Life of a join line when nothing else is said.
pub const JOIN_TTL_DEFAULT_MS: u64 = 3_600_000;

/// Largest number of slots that a worker may offer: beyond it, it is a typing error.
pub const SLOTS_MAX: u32 = 4_096;

/// Languages of a table, and toolchains that a node may name: a page of nodes must fit one frame.
pub const LANGUAGES_MAX: usize = 64;

/// Words of all probes of a table together, in bytes: they travel in the answer to every registration.
pub const PROBE_BYTES_MAX: usize = 64 << 10;

/// Attempts that a worker may name as held and that are not its any more, per registration: more than it can have
/// slots, and the answer still fits one frame. What is left over is acknowledged when it ends.
pub const KILL_MAX: usize = 2 * SLOTS_MAX as usize;

/// Bytes of the entries of one page: the rest of the frame is for its envelope.
pub const PAGE_BYTES_MAX: usize = VALUE_BYTES_MAX - (16 << 10);

/// Nodes of one page: each may take 40 KiB when it names everything at full length.
pub const NODE_PAGE_ENTRIES: usize = 20;

/// Length of a parameter of a reason that a worker gives, in characters; longer text is cut.
pub const REASON_CHARS_MAX: usize = 200;

/// Parameters of a reason that a worker gives: ours have at most three.
pub const REASON_PARAMS_MAX: usize = 8;

/// Length of what a peer may say about itself (versions, host names), in characters; longer text is cut.
pub const FACT_CHARS_MAX: usize = 80;

const _: () = assert!(HEARTBEAT_MS * 3 <= SUSPECT_MS && SUSPECT_MS < SILENCE_MS && SILENCE_MS < LEASE_MS);
// An attempt's acknowledgement takes at most 80 bytes in the answer to a registration, its name in it at most 48.
const _: () = assert!(SLOTS_MAX as usize * 80 + KILL_MAX * 48 + 2 * PROBE_BYTES_MAX < VALUE_BYTES_MAX);
// What a worker holds, and what it lets wait beyond that, is never too much to be named.
const _: () = assert!(4 * (AHEAD_MAX as u64 + SLOTS_MAX as u64) <= NAMED_TASKS_MAX);
