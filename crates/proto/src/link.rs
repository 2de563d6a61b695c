//! What the hub and its workers say to each other.
//!
//! ```text
//! worker                                hub
//!   register{held, unreported} ───────▶  decides what is kept
//!                              ◀───────  registered{name, kill, languages}
//!   report{load, toolchains}   ───────▶
//!                              ◀───────  start{attempt, files, phases}
//!   progress{compile|run}      ───────▶
//!   attempt_output…            ◀──────▶  attempt_output_ack, attempt_stdin, attempt_stdin_ack
//!   ended{result}              ───────▶  records it
//!                              ◀───────  end_ack: the worker may forget
//! ```
//!
//! Always true: the end of an attempt follows all of its output on the connection; the worker keeps unacknowledged
//! output and ends for a new connection.
//! Deliberately not here: what clients say (see [`crate::api`]).

use crate::api::Stream;
use crate::id::{AttemptId, BlobHash, InstanceId, MachineId};
use crate::job::{FileSpec, Phase, StdinSpec, TaskResult};
use crate::node::{Facts, Load, Toolchain};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A worker opens its session.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Register {
    /// Stays with the data folder.
    pub machine: MachineId,
    /// New at each start.
    pub instance: InstanceId,
    /// Was it started by the hub's own `up`?
    pub local: bool,
    /// Programs that it runs at once.
    pub slots: u32,
    /// What it is.
    pub facts: Facts,
    /// What it can run, as far as it knows.
    pub toolchains: Vec<Toolchain>,
    /// Is it still looking?
    pub probing: bool,
    /// Attempts that it holds: running, or ended and not acknowledged.
    pub held: Vec<AttemptId>,
    /// Takes nothing new.
    pub draining: bool,
    /// For how long its machine slept since it was last connected, in milliseconds, as far as its clocks tell.
    pub slept_ms: u64,
}

/// The worker's session is open.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Registered {
    /// The node's name.
    pub name: String,
    /// Held attempts that are nobody's business any more: kill and forget.
    pub kill: Vec<AttemptId>,
    /// Held attempts that go on, with what the hub has of their output.
    pub keep: Vec<AttemptOutputAck>,
    /// What to look for on the machine.
    pub languages: Vec<LanguageProbe>,
}

/// How to find out whether a machine has a toolchain.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LanguageProbe {
    /// The language's name.
    pub lang: String,
    /// Programs that must exist, each an argv whose first line of output is a version.
    pub probes: Vec<Vec<String>>,
    /// Argv that prints what really stands behind the first program (behind a shim), if the language has one.
    pub resolve: Option<Vec<String>>,
}

/// Start an attempt.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Start {
    /// Which.
    pub attempt: AttemptId,
    /// The language's name; empty for a command.
    pub lang: String,
    /// Files of the work folder.
    pub files: Vec<FileSpec>,
    /// What runs, one after the other; the first that does not end with 0 is the last.
    pub phases: Vec<PhaseSpec>,
    /// What the last phase reads.
    pub stdin: StdinSpec,
}

/// One thing to run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PhaseSpec {
    /// Its name.
    pub phase: Phase,
    /// Program and arguments; the program is looked up on the node.
    pub argv: Vec<String>,
    /// Variables beyond the worker's plain set.
    pub env: BTreeMap<String, String>,
    /// Make the C library write line by line.
    pub line_buffered: bool,
    /// Wall time, in milliseconds.
    pub wall_ms: u64,
}

/// Stop an attempt: kill its whole tree.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Stop {
    /// Which.
    pub attempt: AttemptId,
}

/// An attempt has come so far.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// Which.
    pub attempt: AttemptId,
    /// What runs now.
    pub phase: Phase,
    /// Does it wait for someone to type?
    pub waiting_for_input: bool,
}

/// An attempt is over; all of its output has been sent before.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Ended {
    /// Which.
    pub attempt: AttemptId,
    /// How.
    pub result: TaskResult,
}

/// The end is recorded: the worker may forget the attempt.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EndAck {
    /// Which.
    pub attempt: AttemptId,
}

/// How the worker is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// How loaded the node is.
    pub load: Load,
    /// Attempts that it holds.
    pub held: Vec<AttemptId>,
    /// What it can run, when that is news.
    pub toolchains: Option<Vec<Toolchain>>,
    /// Is it still looking?
    pub probing: bool,
    /// Takes nothing new.
    pub draining: bool,
}

/// Output bytes of an attempt.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AttemptOutput {
    /// Whose.
    pub attempt: AttemptId,
    /// Which stream.
    pub stream: Stream,
    /// Offset of the first byte in the stream.
    pub offset: u64,
    /// The bytes, at most [`crate::limits::CHUNK_BYTES`].
    #[serde(with = "crate::bytes_text")]
    pub bytes: Vec<u8>,
}

/// The hub has the output up to these offsets: the worker may drop it and send
/// [`crate::limits::OUTPUT_WINDOW_BYTES`] beyond their sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AttemptOutputAck {
    /// Whose.
    pub attempt: AttemptId,
    /// Bytes of standard output that the hub has.
    pub stdout: u64,
    /// Bytes of standard error that the hub has.
    pub stderr: u64,
}

/// Bytes for an attempt's standard input.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AttemptStdin {
    /// For which.
    pub attempt: AttemptId,
    /// Offset of the first byte.
    pub offset: u64,
    /// The bytes.
    #[serde(with = "crate::bytes_text")]
    pub bytes: Vec<u8>,
    /// Nothing follows.
    pub end: bool,
}

/// The worker has written the input up to this offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AttemptStdinAck {
    /// For which.
    pub attempt: AttemptId,
    /// All bytes up to here.
    pub offset: u64,
}

/// A worker asks for a blob with [`crate::api::BlobGet`]; this names the job that refers to it, which is its right to it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BlobWanted {
    /// For which attempt.
    pub attempt: AttemptId,
    /// Which blob.
    pub hash: BlobHash,
    /// First byte wanted.
    pub offset: u64,
}
