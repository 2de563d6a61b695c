//! What a job is, how it stands and how it ended.
//!
//! A client builds a [`JobSpec`]; the hub answers with states, reasons and a [`TaskResult`]. These types are the same on
//! the wire, in the journal and in JSON.
//! Deliberately not here: how the states change (`core`), sentences (`view`).

use crate::id::{AttemptId, BlobHash, JobId, NodeName, TaskId};
use crate::task_set::TaskSet;
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;

/// What is submitted.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct JobSpec {
    /// Shown in lists; the hub takes the entry's name when empty.
    pub name: String,
    /// A program that is sent, or a command that is already on the node.
    pub kind: JobKind,
    /// Language by name or alias; by the entry's extension when missing.
    pub lang: Option<String>,
    /// The file that starts, a path among `files`. Empty: the hub finds it (a folder, or standard input).
    pub entry: String,
    /// The program's files.
    pub files: Vec<FileSpec>,
    /// Arguments of the program; for a command its whole argv.
    pub args: Vec<String>,
    /// Variables added to the program's environment.
    pub env: BTreeMap<String, String>,
    /// What the program reads.
    pub stdin: StdinSpec,
    /// Run there and nowhere else.
    pub on: Option<NodeName>,
    /// Limits of the program; its compiler has those of the language's table.
    pub limits: Limits,
    /// Limits that were asked for and are more than the hub gives; what a client says here counts for nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub clamped: Vec<Clamped>,
    /// Cancel when the submitting client vanishes.
    pub ephemeral: bool,
    /// Its tasks, when it is an array; otherwise it has one, number 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub array: Option<Box<ArraySpec>>,
    /// What each task needs of a node.
    #[serde(skip_serializing_if = "Needs::is_plain")]
    pub needs: Needs,
    /// Goes before jobs of a lower number; 0 when nobody says.
    #[serde(skip_serializing_if = "is_zero")]
    pub priority: i32,
    /// Tries after a failure of the program itself; a lost attempt does not count.
    #[serde(skip_serializing_if = "is_none_at_all")]
    pub retry: u32,
    /// Waits until these have ended well.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<JobId>,
    /// The hub posts the end of the job to this URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notify: Option<String>,
}

fn is_zero(priority: &i32) -> bool {
    *priority == 0
}

fn is_none_at_all(count: &u32) -> bool {
    *count == 0
}

/// What became of telling a URL the end of a job.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Notice {
    /// When it was taken there or given up, in milliseconds since 1970.
    pub at_ms: u64,
    /// How often it was tried.
    pub tries: u32,
    /// Why it was given up; nothing when it was taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The tasks of an array.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ArraySpec {
    /// Their numbers; each program finds its own in `ESSAIM_TASK_ID`.
    pub tasks: TaskSet,
    /// A file whose lines are given to the tasks, line n to task n, in `ESSAIM_LINE`. At most
    /// [`crate::limits::LINE_BYTES_MAX`] each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lines: Option<FileSpec>,
}

/// What a task needs of a node, and has for itself there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Needs {
    /// Slots; 0 means 1.
    pub cpus: u32,
    /// Memory in bytes; 0: as it comes.
    pub memory_bytes: u64,
    /// Labels that the node must have.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl Needs {
    /// Nothing said?
    pub fn is_plain(&self) -> bool {
        *self == Needs::default()
    }

    /// Slots, at least one.
    pub fn slots(&self) -> u32 {
        self.cpus.max(1)
    }
}

/// How many tasks of a job stand how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskCounts {
    /// All of them.
    pub total: u64,
    /// Not started: waiting, ready or placed.
    pub waiting: u64,
    /// A process runs.
    pub running: u64,
    /// Ended well.
    pub done: u64,
    /// Ended otherwise.
    pub failed: u64,
    /// Cancelled.
    pub cancelled: u64,
}

/// A program that is sent, or a command that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// Files, a language, an entry.
    #[default]
    Program,
    /// An argv that the node has.
    Command,
    /// A kind of a newer version.
    #[serde(other)]
    Unknown,
}

/// One file of a job.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct FileSpec {
    /// Relative, `/` between components, no `.`, `..` or empty one.
    pub path: String,
    /// Hash of its bytes.
    pub hash: BlobHash,
    /// Its length.
    pub size_bytes: u64,
    /// May it be executed?
    pub executable: bool,
    /// Its bytes, when it travels inside the message; otherwise they are a blob.
    #[serde(with = "crate::bytes_text::option")]
    pub inline: Option<serde_bytes::ByteBuf>,
}

/// What the program reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StdinSpec {
    /// Nothing: end of file at once.
    #[default]
    Empty,
    /// What the client sends while the program runs.
    Live,
    /// A kind of a newer version.
    #[serde(other)]
    Unknown,
}

/// What a program may use. What is missing is, where a job asks, the default of its language or hub, and where a phase is
/// given its limits, not limited; zero is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Wall time, in milliseconds.
    pub wall_ms: Option<u64>,
    /// Processor time of all its processes together, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_ms: Option<u64>,
    /// Memory of all its processes together, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Processes and threads at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processes: Option<u64>,
    /// Bytes of standard output and standard error together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_bytes: Option<u64>,
    /// Bytes of its largest file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_bytes: Option<u64>,
    /// Bytes of all files in its folders.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
}

/// One of the [`Limits`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// `wall_ms`.
    Time,
    /// `cpu_ms`.
    CpuTime,
    /// `memory_bytes`.
    Memory,
    /// `processes`.
    Processes,
    /// `output_bytes`.
    Output,
    /// `file_bytes`.
    FileSize,
    /// `disk_bytes`.
    Disk,
    /// One of a newer version.
    #[default]
    #[serde(other)]
    Unknown,
}

impl Limit {
    /// All of them.
    pub const ALL: [Limit; 7] =
        [Limit::Time, Limit::CpuTime, Limit::Memory, Limit::Processes, Limit::Output, Limit::FileSize, Limit::Disk];

    /// The limit's word.
    pub fn name(self) -> &'static str {
        match self {
            Limit::Time => "time",
            Limit::CpuTime => "cpu_time",
            Limit::Memory => "memory",
            Limit::Processes => "processes",
            Limit::Output => "output",
            Limit::FileSize => "file_size",
            Limit::Disk => "disk",
            Limit::Unknown => "unknown",
        }
    }
}

/// A limit that was asked for and is more than a hub gives.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Clamped {
    /// Which.
    pub limit: Limit,
    /// What was asked for, in the limit's own unit.
    pub asked: u64,
    /// What was given.
    pub given: u64,
}

impl Limits {
    /// Is nothing said?
    pub fn is_plain(&self) -> bool {
        *self == Limits::default()
    }

    /// One of them.
    pub fn get(&self, limit: Limit) -> Option<u64> {
        match limit {
            Limit::Time => self.wall_ms,
            Limit::CpuTime => self.cpu_ms,
            Limit::Memory => self.memory_bytes,
            Limit::Processes => self.processes,
            Limit::Output => self.output_bytes,
            Limit::FileSize => self.file_bytes,
            Limit::Disk => self.disk_bytes,
            Limit::Unknown => None,
        }
    }

    /// Says one of them.
    pub fn set(&mut self, limit: Limit, value: Option<u64>) {
        let place = match limit {
            Limit::Time => &mut self.wall_ms,
            Limit::CpuTime => &mut self.cpu_ms,
            Limit::Memory => &mut self.memory_bytes,
            Limit::Processes => &mut self.processes,
            Limit::Output => &mut self.output_bytes,
            Limit::FileSize => &mut self.file_bytes,
            Limit::Disk => &mut self.disk_bytes,
            Limit::Unknown => return,
        };
        *place = value;
    }

    /// Forgets those that are not to be kept.
    pub fn retain(&mut self, keep: impl Fn(Limit, u64) -> bool) {
        for limit in Limit::ALL {
            self.set(limit, self.get(limit).filter(|value| keep(limit, *value)));
        }
    }

    /// These, and where they say nothing, what `others` say.
    pub fn or(mut self, others: &Limits) -> Limits {
        for limit in Limit::ALL {
            self.set(limit, self.get(limit).or(others.get(limit)));
        }
        self
    }

    /// Cuts each to what `most` allows; says which were more.
    pub fn clamp(&mut self, most: &Limits) -> Vec<Clamped> {
        let mut clamped = Vec::new();
        for limit in Limit::ALL {
            let (Some(asked), Some(given)) = (self.get(limit), most.get(limit)) else { continue };
            if asked > given {
                self.set(limit, Some(given));
                clamped.push(Clamped { limit, asked, given });
            }
        }
        clamped
    }
}

/// How a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// No task has started.
    #[default]
    Queued,
    /// A task runs or has ended, others have not.
    Running,
    /// All tasks ended well.
    Done,
    /// A task failed.
    Failed,
    /// Cancelled.
    Cancelled,
    /// A state of a newer version.
    #[serde(other)]
    Unknown,
}

impl JobState {
    /// Is it over?
    pub fn is_over(self) -> bool {
        matches!(self, JobState::Done | JobState::Failed | JobState::Cancelled)
    }

    /// The state's word.
    pub fn name(self) -> &'static str {
        match self {
            JobState::Queued => "queued",
            JobState::Running => "running",
            JobState::Done => "done",
            JobState::Failed => "failed",
            JobState::Cancelled => "cancelled",
            JobState::Unknown => "unknown",
        }
    }
}

/// How a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// Cannot run yet (dependencies).
    Waiting,
    /// Could run now; a [`Reason`] says what it waits for.
    #[default]
    Ready,
    /// Given to a worker, not started.
    Placed,
    /// A process runs.
    Running,
    /// Ended well.
    Done,
    /// Ended otherwise.
    Failed,
    /// Cancelled.
    Cancelled,
    /// A state of a newer version.
    #[serde(other)]
    Unknown,
}

impl TaskState {
    /// Is it over?
    pub fn is_over(self) -> bool {
        matches!(self, TaskState::Done | TaskState::Failed | TaskState::Cancelled)
    }

    /// The state's word.
    pub fn name(self) -> &'static str {
        match self {
            TaskState::Waiting => "waiting",
            TaskState::Ready => "ready",
            TaskState::Placed => "placed",
            TaskState::Running => "running",
            TaskState::Done => "done",
            TaskState::Failed => "failed",
            TaskState::Cancelled => "cancelled",
            TaskState::Unknown => "unknown",
        }
    }
}

/// Why something waits or has the state that it has: a code with parameters, rendered by `view`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Reason {
    /// The code, for example `no_free_slot`.
    pub code: String,
    /// Its parameters.
    pub params: BTreeMap<String, String>,
}

impl Reason {
    /// A reason without parameters.
    pub fn new(code: &str) -> Reason {
        Reason { code: code.to_owned(), params: BTreeMap::new() }
    }

    /// The same reason with a parameter.
    pub fn with(mut self, name: &str, value: impl ToString) -> Reason {
        self.params.insert(name.to_owned(), value.to_string());
        self
    }
}

/// How a program ended. A closed set, but a newer peer may know more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Exit code 0.
    Ok,
    /// Another exit code, or a signal.
    RuntimeError,
    /// Over its wall or CPU time.
    TimeLimit,
    /// Over its memory.
    MemoryLimit,
    /// Over its output.
    OutputLimit,
    /// Over its processes.
    ProcessLimit,
    /// Over its file size or disk.
    FileLimit,
    /// Did what the cage forbids.
    Forbidden,
    /// Did not compile.
    CompileError,
    /// Cancelled by someone.
    Cancelled,
    /// Could not be started as asked.
    Rejected,
    /// Its workers were lost too often.
    Lost,
    /// essaim failed, or a verdict of a newer version.
    #[default]
    #[serde(other)]
    InternalError,
}

impl Verdict {
    /// The verdict's word.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::RuntimeError => "runtime_error",
            Verdict::TimeLimit => "time_limit",
            Verdict::MemoryLimit => "memory_limit",
            Verdict::OutputLimit => "output_limit",
            Verdict::ProcessLimit => "process_limit",
            Verdict::FileLimit => "file_limit",
            Verdict::Forbidden => "forbidden",
            Verdict::CompileError => "compile_error",
            Verdict::Cancelled => "cancelled",
            Verdict::Rejected => "rejected",
            Verdict::Lost => "lost",
            Verdict::InternalError => "internal_error",
        }
    }

    /// The task state that it leads to: ok → done, cancelled → cancelled, every other → failed.
    pub fn task_state(self) -> TaskState {
        match self {
            Verdict::Ok => TaskState::Done,
            Verdict::Cancelled => TaskState::Cancelled,
            _ => TaskState::Failed,
        }
    }
}

/// What a program is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Its files are on their way.
    #[default]
    Prepare,
    /// The compiler runs.
    Compile,
    /// The program runs.
    Run,
    /// A phase of a newer version.
    #[serde(other)]
    Unknown,
}

impl Phase {
    /// The phase's word.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Prepare => "prepare",
            Phase::Compile => "compile",
            Phase::Run => "run",
            Phase::Unknown => "unknown",
        }
    }
}

/// How a task ended: exactly one per task.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskResult {
    /// How.
    pub verdict: Verdict,
    /// The last phase that ran.
    pub phase: Phase,
    /// Exit code of the last phase, if it exited.
    pub exit_code: Option<i32>,
    /// Signal of the last phase, if one ended it.
    pub signal: Option<i32>,
    /// CPU time of all phases and their children, in milliseconds.
    pub cpu_ms: u64,
    /// Wall time of all phases, in milliseconds.
    pub wall_ms: u64,
    /// Largest memory seen, in bytes.
    pub memory_peak_bytes: u64,
    /// Bytes written to standard output.
    pub stdout_bytes: u64,
    /// Bytes written to standard error, the compiler's words included.
    pub stderr_bytes: u64,
    /// Was output cut?
    pub truncated: bool,
    /// Walls around the program.
    pub isolation: Isolation,
    /// Where it ran; empty when it never did.
    pub node: String,
    /// Which try this was; 0 when none was made.
    pub attempt: u32,
    /// Was the compile phase answered from a cache?
    pub cache_hit: bool,
    /// What failed, when the program itself does not say it.
    pub reason: Option<Reason>,
}

/// The walls that a program had around it. A word on the wire; the two common ones cost no memory, for millions of ends
/// name them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum Isolation {
    /// Nobody has said.
    #[default]
    Unsaid,
    /// All that essaim has.
    Full,
    /// None.
    None,
    /// What else was said: `reduced[…]` with what is missing, or a word of a newer version.
    Other(Box<str>),
}

impl Isolation {
    /// The word: `full`, `reduced[…]`, `none`, or nothing.
    pub fn as_str(&self) -> &str {
        match self {
            Isolation::Unsaid => "",
            Isolation::Full => "full",
            Isolation::None => "none",
            Isolation::Other(word) => word,
        }
    }
}

impl From<&str> for Isolation {
    fn from(word: &str) -> Isolation {
        match word {
            "" => Isolation::Unsaid,
            "full" => Isolation::Full,
            "none" => Isolation::None,
            word => Isolation::Other(word.into()),
        }
    }
}

impl Serialize for Isolation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Isolation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Isolation, D::Error> {
        struct Word;
        impl Visitor<'_> for Word {
            type Value = Isolation;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the walls around a program")
            }

            fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<Isolation, E> {
                Ok(Isolation::from(word))
            }
        }
        deserializer.deserialize_str(Word)
    }
}

/// A task, as lists and watchers see it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskView {
    /// Which.
    pub task: TaskId,
    /// How it stands.
    pub state: TaskState,
    /// Why it stands there, when that is not plain.
    pub reason: Option<Reason>,
    /// The current try, 0 before the first.
    pub attempt: u32,
    /// Where, when it is placed.
    pub node: Option<String>,
    /// What its process is doing.
    pub phase: Option<Phase>,
    /// Does it wait for someone to type?
    pub waiting_for_input: bool,
    /// Its end.
    pub result: Option<TaskResult>,
}

impl TaskView {
    /// The attempt's full id within `job`.
    pub fn attempt_id(&self, job: JobId) -> AttemptId {
        AttemptId { job, task: self.task, attempt: self.attempt }
    }
}
