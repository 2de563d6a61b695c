//! What clients and hub say to each other.
//!
//! One vocabulary for every face: the command line sends it in frames, JSON faces send the same structs as text.
//! Each request struct names the function that carries it; the answer has the same id and [`crate::frame::FLAG_ANSWER`],
//! or is [`crate::Function::REFUSED`].
//! Deliberately not here: what the hub and its workers say (see [`crate::link`]).

use crate::function::Function;
use crate::hello::{Role, Secret};
use crate::id::{AttemptId, BlobHash, JobId, KeyName, SubmitKey, TaskId};
use crate::job::{Clamped, JobSpec, JobState, Limits, Needs, Notice, Reason, TaskCounts, TaskState, TaskView, Verdict};
use crate::node::{NodeState, NodeView};
use crate::quota::{Quota, QuotaView, Quotas};
use crate::task_set::TaskSet;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A struct that asks for something, and what answers it.
pub trait Request: Serialize {
    /// The function that carries it.
    const FUNCTION: Function;
    /// The answer.
    type Answer: DeserializeOwned;
}

macro_rules! requests {
    ($($request:ty => $function:ident, $answer:ty;)+) => {
        $(impl Request for $request {
            const FUNCTION: Function = Function::$function;
            type Answer = $answer;
        })+
    };
}

requests! {
    Submit => SUBMIT, Submitted;
    Watch => WATCH, Done;
    JobCancel => JOB_CANCEL, Done;
    JobList => JOB_LIST, JobPage;
    JobShow => JOB_SHOW, JobView;
    TaskList => TASK_LIST, TaskPage;
    JobRerun => JOB_RERUN, Submitted;
    StatesWatch => STATES, Done;
    BlobsMissing => BLOBS_MISSING, BlobsMissing;
    BlobPut => BLOB_PUT, Done;
    BlobGet => BLOB_GET, Done;
    NodeList => NODE_LIST, NodePage;
    KeyCreate => KEY_CREATE, KeyCreated;
    KeyList => KEY_LIST, KeyPage;
    KeyRevoke => KEY_REVOKE, Done;
    KeySet => KEY_SET, Done;
    JoinLineMake => JOIN_LINE, JoinLineMade;
    LocalSet => LOCAL_SET, LocalWorkers;
}

/// Yes, and nothing more to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Done {}

/// Runs a job. With `watch`, its events follow under the same id after the answer.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Submit {
    /// Drawn by the client: a repeated Submit returns the first job.
    pub key: SubmitKey,
    /// The job.
    pub spec: JobSpec,
    /// Watch it from its beginning, with output.
    pub watch: bool,
    /// With `watch`, of an array: output in the order of the tasks, and not as they end.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub in_order: bool,
}

/// The job is recorded.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Submitted {
    /// Its id.
    pub job: JobId,
    /// Was it known already by its key?
    pub repeated: bool,
    /// Limits that the hub has cut.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub clamped: Vec<Clamped>,
}

/// Watches a job: events follow under the same id, from the present state to the end.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Watch {
    /// Which.
    pub job: JobId,
    /// With output?
    pub output: bool,
    /// Where to begin in the output of the attempt named here; other attempts begin at 0.
    pub from: Option<OutputFrom>,
    /// End at what is there now instead of following.
    pub no_follow: bool,
    /// The key of the job's Submit, for who has it: a hub that was started anew may have given the number to another
    /// job, which is then not watched by mistake.
    pub key: Option<SubmitKey>,
    /// Of an array: only these tasks; missing: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tasks: Option<TaskSet>,
    /// Of an array: output in the order of the tasks, and not as they end.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub in_order: bool,
}

/// Where to begin in an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct OutputFrom {
    /// Offsets count in this attempt's output.
    pub attempt: AttemptId,
    /// First byte of standard output wanted.
    pub stdout: u64,
    /// First byte of standard error wanted.
    pub stderr: u64,
}

/// Something happened to a watched job.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct JobEvent {
    /// Which job.
    pub job: JobId,
    /// How the job stands now.
    pub state: JobState,
    /// The task that changed, as it stands now; of an array only one that was shown to have failed.
    pub task: Option<TaskView>,
    /// Of an array: how many stand how.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counts: Option<TaskCounts>,
    /// Of an array: tasks that are over and of which this watch has been sent all the output that it is to have. Each
    /// task of the watch is named once, also one that was over when the watch began.
    #[serde(skip_serializing_if = "TaskSet::is_empty")]
    pub ended: TaskSet,
    /// Nothing follows: the job is over, or what was there has been sent.
    pub last: bool,
}

/// One of a program's two streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard output.
    #[default]
    Stdout,
    /// Standard error, the compiler's words first.
    Stderr,
}

/// Output bytes of a watched job. Consecutive: `offset` is where the one before ended, but for bytes that are gone.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct OutputChunk {
    /// Whose.
    pub attempt: AttemptId,
    /// Which stream.
    pub stream: Stream,
    /// Offset of the first byte in the stream.
    pub offset: u64,
    /// The bytes, at most [`crate::limits::CHUNK_BYTES`].
    #[serde(with = "crate::bytes_text")]
    pub bytes: Vec<u8>,
    /// Set when bytes before `offset` were dropped by retention.
    pub dropped: bool,
    /// So many bytes right before `offset` are damaged where they were kept, and lost.
    pub damaged_bytes: u64,
}

/// The watcher has dealt with so many bytes of this watch: the hub may send
/// [`crate::limits::OUTPUT_WINDOW_BYTES`] beyond that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct OutputAck {
    /// All bytes of all chunks received under this watch.
    pub received_bytes: u64,
}

/// Bytes for a program's standard input.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct StdinChunk {
    /// For which job.
    pub job: JobId,
    /// For which task.
    pub task: TaskId,
    /// Offset of the first byte.
    pub offset: u64,
    /// The bytes.
    #[serde(with = "crate::bytes_text")]
    pub bytes: Vec<u8>,
    /// Nothing follows: the program sees the end of its input.
    pub end: bool,
}

/// The program's node has written so many bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct StdinAck {
    /// For which job.
    pub job: JobId,
    /// For which task.
    pub task: TaskId,
    /// All bytes up to here.
    pub offset: u64,
}

/// Cancels a job: what waits never starts, what runs is killed with all its children.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct JobCancel {
    /// Which.
    pub job: JobId,
    /// Of an array: only these tasks; missing: all of the job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tasks: Option<TaskSet>,
}

/// Runs a job, or tasks of it, once more, as a new job of the asking key. Answered with [`Submitted`].
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct JobRerun {
    /// Which.
    pub job: JobId,
    /// Drawn by the client: a repeated request returns the first new job.
    pub key: SubmitKey,
    /// Of an array: only these tasks; missing: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tasks: Option<TaskSet>,
    /// Of an array: only those that stand so; empty means any.
    pub states: Vec<TaskState>,
}

/// Asks for tasks of a job, by number.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskList {
    /// Of which job.
    pub job: JobId,
    /// Only tasks with a number above this one (the next page).
    pub after: Option<TaskId>,
    /// At most so many; 0 means [`crate::limits::PAGE_ENTRIES_MAX`].
    pub limit: u32,
    /// Only those in one of these states; empty means any.
    pub states: Vec<TaskState>,
    /// Only their numbers, in `set`: all of them in one answer, unless they are more than
    /// [`crate::limits::TASK_RANGES_MAX`] ranges.
    pub numbers_only: bool,
}

/// Tasks of a job, by number.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskPage {
    /// The tasks; those that wait and are like all others are left out unless their state was asked for.
    pub tasks: Vec<TaskView>,
    /// Are there more?
    pub more: bool,
    /// With `numbers_only`: which tasks those are.
    pub set: TaskSet,
}

/// Asks for jobs, newest first.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct JobList {
    /// Only jobs with an id below this one (the next page).
    pub before: Option<JobId>,
    /// At most so many; 0 means [`crate::limits::PAGE_ENTRIES_MAX`].
    pub limit: u32,
    /// Only those that are not over.
    pub live_only: bool,
    /// Only those in one of these states; empty means any.
    pub states: Vec<JobState>,
    /// Only those of this key.
    pub owner: Option<String>,
    /// Only those whose task is or was on this node last.
    pub node: Option<String>,
    /// Only those whose name contains this, whatever the case of its letters.
    pub text: Option<String>,
}

/// Jobs, newest first.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct JobPage {
    /// The jobs.
    pub jobs: Vec<JobView>,
    /// Are there older ones?
    pub more: bool,
}

/// Asks for one job.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct JobShow {
    /// Which.
    pub job: JobId,
}

/// A job, as lists show it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct JobView {
    /// Its id.
    pub job: JobId,
    /// Its name.
    pub name: String,
    /// Whose.
    pub owner: String,
    /// Its language, or `command`.
    pub lang: String,
    /// How it stands.
    pub state: JobState,
    /// When it was recorded, in milliseconds since 1970.
    pub submitted_ms: u64,
    /// When it ended.
    pub ended_ms: Option<u64>,
    /// Its task; of an array those that have something to tell: running and failed ones, the first
    /// [`crate::limits::SHOWN_TASKS_MAX`] of each.
    pub tasks: Vec<TaskView>,
    /// Its arguments, for those who may see the job in full.
    pub args: Vec<String>,
    /// The numbers of its tasks, when it is an array.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub array: Option<TaskSet>,
    /// How many tasks stand how.
    pub counts: TaskCounts,
    /// Its priority.
    pub priority: i32,
    /// What each task needs.
    #[serde(skip_serializing_if = "Needs::is_plain")]
    pub needs: Needs,
    /// What its program may use.
    #[serde(skip_serializing_if = "Limits::is_plain")]
    pub limits: Limits,
    /// Where that is less than was asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub clamped: Vec<Clamped>,
    /// Why tasks wait, when some do, or why its only task stands as it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// While tasks wait: each node that is ruled out for them, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ruled_out: Vec<RuledOut>,
    /// The URL that is told of its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notify: Option<String>,
    /// What became of that, once it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notice: Option<Notice>,
}

/// What is told of a job's end, as JSON: to a command that a client runs, to a URL that the hub posts to.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct JobNotice {
    /// The job as its owner sees it.
    #[serde(flatten)]
    pub job: JobView,
    /// How `run` would have ended.
    pub exit_code: u8,
}

/// A node that does not take a job's tasks now.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RuledOut {
    /// Which node.
    pub node: String,
    /// Why.
    pub reason: Reason,
}

/// Asks for every change of state from now on, of nodes, of jobs or of both. Who may list them may watch them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct StatesWatch {
    /// Changes of nodes.
    pub nodes: bool,
    /// Changes of jobs.
    pub jobs: bool,
}

/// A node or a job changed its state.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct StateChange {
    /// When, in milliseconds since 1970, on the hub's clock.
    pub at_ms: u64,
    /// Changes that were left out before this one because the watcher was too slow: list again to be sure.
    pub missed: u64,
    /// The node's change.
    pub node: Option<NodeChange>,
    /// The job's change.
    pub job: Option<JobChange>,
}

/// How a node changed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeChange {
    /// Its name.
    pub name: String,
    /// How it stood before.
    pub was: NodeState,
    /// How it stands now.
    pub state: NodeState,
    /// Why.
    pub reason: Option<Reason>,
}

/// How a job changed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct JobChange {
    /// Which.
    pub job: JobId,
    /// Its name.
    pub name: String,
    /// Whose key.
    pub owner: String,
    /// How it stands now.
    pub state: JobState,
    /// The task's attempt, 0 before the first.
    pub attempt: u32,
    /// Where it is or was last.
    pub node: Option<String>,
    /// How it ended, when it is over.
    pub verdict: Option<Verdict>,
    /// Why it waits, or why it ended so.
    pub reason: Option<Reason>,
}

/// Asks which of these blobs the hub lacks; the answer has the same shape.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BlobsMissing {
    /// The hashes.
    pub hashes: Vec<BlobHash>,
}

/// Uploads a blob: [`Function::BLOB_BYTES`] frames with the same id follow, within
/// [`crate::limits::BLOB_WINDOW_BYTES`] and the credits that come back.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BlobPut {
    /// What the bytes must hash to.
    pub hash: BlobHash,
    /// How many bytes will come.
    pub size_bytes: u64,
}

/// Downloads a blob: bytes come under the same id.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BlobGet {
    /// Which.
    pub hash: BlobHash,
    /// First byte wanted.
    pub offset: u64,
}

/// The receiver of a transfer has dealt with so many more bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Credit {
    /// So many.
    pub bytes: u64,
}

/// Asks for the nodes.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeList {
    /// Only nodes whose name comes after this one (the next page).
    pub after: Option<String>,
}

/// Nodes by name.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NodePage {
    /// The nodes.
    pub nodes: Vec<NodeView>,
    /// Are there more?
    pub more: bool,
    /// The workers that the hub's own `up` starts; none: it starts none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<LocalWorkers>,
}

/// The workers that the hub's own `up` starts, as they are meant to be now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LocalWorkers {
    /// Are there to be any? (Local mode.)
    pub mode: bool,
    /// So many always,
    pub workers: u32,
    /// and up to so many while work waits for slots.
    pub workers_max: u32,
    /// So many are meant to run now.
    pub wanted: u32,
}

/// Changes the workers that the hub's own `up` starts: what is given here; the rest stays. For administrators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LocalSet {
    /// Are there to be any? Without them nothing new runs on the hub's own machine; what runs is finished.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<bool>,
    /// So many always,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers: Option<u32>,
    /// and up to so many while work waits for slots; never fewer than always.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers_max: Option<u32>,
}

/// Makes a key.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct KeyCreate {
    /// Its name.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// How much it may use.
    #[serde(skip_serializing_if = "Quotas::is_plain")]
    pub quotas: Quotas,
}

/// The key, shown this once.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct KeyCreated {
    /// The text that its holder gives to `ESSAIM_KEY` or keeps in a file.
    pub key: Secret,
    /// Addresses of the clients' door.
    pub addresses: Vec<String>,
}

/// Asks for the keys.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct KeyList {}

/// The keys, without their secrets.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct KeyPage {
    /// The keys.
    pub keys: Vec<KeyView>,
}

/// A key, without its secret.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct KeyView {
    /// Its name.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// Tasks that wait or run.
    pub queued_tasks: QuotaView,
    /// Bytes of files that its jobs keep on the hub.
    pub stored_bytes: QuotaView,
    /// Requests in a second.
    pub requests_per_second: QuotaView,
}

/// Changes the quotas of a key; what is missing stays.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct KeySet {
    /// Its name.
    pub name: String,
    /// Tasks that may wait or run.
    pub queued_tasks: Option<Quota>,
    /// Bytes of files that its jobs may keep on the hub.
    pub stored_bytes: Option<Quota>,
    /// Requests in a second.
    pub requests_per_second: Option<Quota>,
}

impl KeySet {
    /// The quotas after the change.
    pub fn of(&self, quotas: Quotas) -> Quotas {
        Quotas {
            queued_tasks: self.queued_tasks.unwrap_or(quotas.queued_tasks),
            stored_bytes: self.stored_bytes.unwrap_or(quotas.stored_bytes),
            requests_per_second: self.requests_per_second.unwrap_or(quotas.requests_per_second),
        }
    }
}

/// Revokes a key; its sessions end at once.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct KeyRevoke {
    /// Its name.
    pub name: String,
}

/// Makes a join line.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct JoinLineMake {
    /// Opens the workers' door on this address too, without a restart. `HOST` or `HOST:PORT`.
    pub open: Option<String>,
    /// Opens the clients' door on this address too.
    pub open_clients: Option<String>,
    /// How many machines may use it; 0 means 1.
    pub uses: u32,
    /// For how long, in milliseconds; 0 means one hour.
    pub ttl_ms: u64,
}

/// The join line.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct JoinLineMade {
    /// The line: `essaim-join.<authority>.<secret>@ADDR,ADDR…`.
    pub line: Secret,
    /// When it expires, in milliseconds since 1970.
    pub expires_ms: u64,
    /// The workers' addresses that it names.
    pub addresses: Vec<String>,
}

/// A key's name as it stands in a message, checked.
pub fn key_name(text: &str) -> Result<KeyName, crate::Refusal> {
    text.parse().map_err(|error: crate::id::NameError| {
        crate::Refusal::new(crate::RefusalCode::BadJob).with("field", "name").with("why", error)
    })
}
