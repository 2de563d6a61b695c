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
use crate::id::{AttemptId, BlobHash, InstanceId, JobId, MachineId, TaskId};
use crate::job::{FileSpec, Isolation, Limits, Needs, Phase, Reason, StdinSpec, TaskResult, Verdict};
use crate::node::{Facts, Load, Toolchain};
use crate::task_set::TaskSet;
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
    /// The same for tasks of arrays.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub held_many: Vec<HeldMany>,
    /// Takes nothing new.
    pub draining: bool,
    /// What its owner calls it by: jobs may ask for it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Memory that programs may reserve, in bytes; 0: nobody has said.
    pub memory_bytes: u64,
    /// At most so many programs at once, whatever they need; 0: as many as slots.
    pub tasks_max: u32,
    /// For how long its machine slept since it was last connected, in milliseconds, as far as its clocks tell.
    pub slept_ms: u64,
    /// The number under which the hub's own `up` started it, from 1; 0: somebody else did.
    #[serde(skip_serializing_if = "is_zero")]
    pub local_number: u32,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Register {
    /// Tasks of arrays that it names, to be compared with [`crate::limits::NAMED_TASKS_MAX`].
    pub fn tasks_named(&self) -> u64 {
        count(self.held_many.iter().map(|many| &many.tasks))
    }
}

/// Tasks of all these sets, counted without a look at each.
fn count<'a>(sets: impl Iterator<Item = &'a TaskSet>) -> u64 {
    sets.map(TaskSet::len).sum()
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
    /// Held attempts of arrays that go on, of whose output the hub has nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keep_many: Vec<HeldMany>,
    /// Held attempts of arrays to kill and forget.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kill_many: Vec<HeldMany>,
    /// What to look for on the machine.
    pub languages: Vec<LanguageProbe>,
}

impl Registered {
    /// Tasks of arrays that it names, to be compared with [`crate::limits::NAMED_TASKS_MAX`].
    pub fn tasks_named(&self) -> u64 {
        count(self.keep_many.iter().chain(&self.kill_many).map(|many| &many.tasks))
    }
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
    /// Of an array: start the attempt of this number of each of these tasks, as slots come free, at most
    /// [`crate::limits::BATCH_TASKS_MAX`] in one message. `attempt` names the first. Each program finds its number in
    /// `ESSAIM_TASK_ID`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tasks: Option<TaskSet>,
    /// The file whose lines the tasks get, see [`crate::job::ArraySpec::lines`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lines: Option<FileSpec>,
    /// What each task has for itself; waiting tasks of a higher priority go first.
    #[serde(skip_serializing_if = "Needs::is_plain")]
    pub needs: Needs,
    /// See [`crate::job::JobSpec::priority`].
    pub priority: i32,
}

impl Start {
    /// The attempts that it starts one by one.
    pub fn attempts(&self) -> impl Iterator<Item = AttemptId> + '_ {
        let AttemptId { job, attempt, .. } = self.attempt;
        let many = self.tasks.iter().flat_map(move |tasks| tasks.attempts(job, attempt));
        self.tasks.is_none().then_some(self.attempt).into_iter().chain(many)
    }
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
    /// What else is limited; the wall time is not said twice.
    #[serde(skip_serializing_if = "Limits::is_plain")]
    pub limits: Limits,
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

/// How one task of an array ended, as short as can be: hundreds travel in one message.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(from = "PackedEnd", into = "PackedEnd")]
pub struct TaskEnd {
    /// Which task.
    pub task: TaskId,
    /// Which try.
    pub attempt: u32,
    /// How. Its `attempt` and `node` are not sent.
    pub result: TaskResult,
    /// All of its standard output, unless it was kept elsewhere.
    pub stdout: Vec<u8>,
    /// All of its standard error.
    pub stderr: Vec<u8>,
}

/// Numbers without names: task, attempt, verdict, phase, exit code, signal, CPU and wall time, memory, bytes of stdout and
/// stderr, flags (1 truncated, 2 cache hit), isolation, reason, stdout, stderr.
#[derive(Serialize, Deserialize)]
struct PackedEnd(
    u32,
    u32,
    Verdict,
    Phase,
    Option<i32>,
    Option<i32>,
    u64,
    u64,
    u64,
    u64,
    u64,
    u8,
    Isolation,
    Option<Reason>,
    #[serde(with = "serde_bytes")] Vec<u8>,
    #[serde(with = "serde_bytes")] Vec<u8>,
);

impl From<PackedEnd> for TaskEnd {
    fn from(packed: PackedEnd) -> TaskEnd {
        let PackedEnd(task, attempt, verdict, phase, exit_code, signal, cpu_ms, wall_ms, ..) = packed;
        let PackedEnd(.., memory, stdout_bytes, stderr_bytes, flags, isolation, reason, stdout, stderr) = packed;
        let result = TaskResult {
            verdict,
            phase,
            exit_code,
            signal,
            cpu_ms,
            wall_ms,
            memory_peak_bytes: memory,
            stdout_bytes,
            stderr_bytes,
            truncated: flags & 1 != 0,
            cache_hit: flags & 2 != 0,
            isolation,
            reason,
            attempt,
            node: String::new(),
        };
        TaskEnd { task: TaskId(task), attempt, result, stdout, stderr }
    }
}

impl From<TaskEnd> for PackedEnd {
    fn from(end: TaskEnd) -> PackedEnd {
        let TaskEnd { task, attempt, result, stdout, stderr } = end;
        let flags = u8::from(result.truncated) | (u8::from(result.cache_hit) << 1);
        PackedEnd(
            task.0,
            attempt,
            result.verdict,
            result.phase,
            result.exit_code,
            result.signal,
            result.cpu_ms,
            result.wall_ms,
            result.memory_peak_bytes,
            result.stdout_bytes,
            result.stderr_bytes,
            flags,
            result.isolation,
            result.reason,
            stdout,
            stderr,
        )
    }
}

/// Tasks of an array are over, each with all of its output, which was little. What printed much is told with [`Ended`].
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EndedMany {
    /// Of which job.
    pub job: JobId,
    /// How they ended, at most [`crate::limits::BATCH_TASKS_MAX`].
    pub ends: Vec<TaskEnd>,
}

/// These ends are recorded: the worker may forget the attempts.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EndAckMany {
    /// Of which job.
    pub job: JobId,
    /// Which, by the number of the try.
    pub tasks: Vec<(u32, TaskSet)>,
}

impl EndAckMany {
    /// Tasks that it names, to be compared with [`crate::limits::NAMED_TASKS_MAX`].
    pub fn tasks_named(&self) -> u64 {
        count(self.tasks.iter().map(|(_, tasks)| tasks))
    }

    /// The attempts one by one.
    pub fn attempts(&self) -> impl Iterator<Item = AttemptId> + '_ {
        self.tasks.iter().flat_map(|(attempt, tasks)| tasks.attempts(self.job, *attempt))
    }
}

/// The hub would like to give these tasks to others, if they have not started.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TakeBack {
    /// Of which job.
    pub job: JobId,
    /// Which.
    pub tasks: TaskSet,
}

/// The worker is not needed any more, or needed after all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Leave {
    /// Finish what runs, give back what has not started, take nothing new, and end? Otherwise: go on as before, unless
    /// somebody else has told it to leave.
    pub leave: bool,
}

/// These tasks had not started here and will not.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct GivenBack {
    /// Of which job.
    pub job: JobId,
    /// Which, by the number of the try.
    pub tasks: Vec<(u32, TaskSet)>,
}

impl GivenBack {
    /// Tasks that it names, to be compared with [`crate::limits::NAMED_TASKS_MAX`].
    pub fn tasks_named(&self) -> u64 {
        count(self.tasks.iter().map(|(_, tasks)| tasks))
    }

    /// The attempts one by one.
    pub fn attempts(&self) -> impl Iterator<Item = AttemptId> + '_ {
        self.tasks.iter().flat_map(|(attempt, tasks)| tasks.attempts(self.job, *attempt))
    }
}

/// Attempts of an array that a worker holds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HeldMany {
    /// Of which job.
    pub job: JobId,
    /// Which try.
    pub attempt: u32,
    /// Of which tasks.
    pub tasks: TaskSet,
}

impl HeldMany {
    /// The attempts one by one.
    pub fn attempts(&self) -> impl Iterator<Item = AttemptId> + '_ {
        self.tasks.attempts(self.job, self.attempt)
    }

    /// Attempts by job and number of the try, in rising order.
    pub fn gather(attempts: impl IntoIterator<Item = AttemptId>) -> Vec<HeldMany> {
        let mut sorted: Vec<AttemptId> = attempts.into_iter().collect();
        sorted.sort_unstable_by_key(|attempt| (attempt.job, attempt.attempt, attempt.task));
        let mut gathered: Vec<HeldMany> = Vec::new();
        for AttemptId { job, task, attempt } in sorted {
            match gathered.last_mut() {
                Some(last) if (last.job, last.attempt) == (job, attempt) => _ = last.tasks.push(task),
                _ => gathered.push(HeldMany { job, attempt, tasks: TaskSet::one(task) }),
            }
        }
        gathered
    }
}

/// How the worker is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// How loaded the node is.
    pub load: Load,
    /// Attempts that it holds.
    pub held: Vec<AttemptId>,
    /// The same for tasks of arrays.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub held_many: Vec<HeldMany>,
    /// Others use its processors more than its owner allows: nothing new for now.
    pub overloaded: bool,
    /// What it can run, when that is news.
    pub toolchains: Option<Vec<Toolchain>>,
    /// Is it still looking?
    pub probing: bool,
    /// Takes nothing new.
    pub draining: bool,
}

impl Report {
    /// Tasks of arrays that it names, to be compared with [`crate::limits::NAMED_TASKS_MAX`].
    pub fn tasks_named(&self) -> u64 {
        count(self.held_many.iter().map(|many| &many.tasks))
    }
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
