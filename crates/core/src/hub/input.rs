//! Everything that can happen to the hub, on one page.
//!
//! Sessions and the driver build these; [`super::Hub::step`] takes them. Always true: secrets come as hashes, sizes
//! were checked by the decoder.
//! Deliberately not here: what follows from an input (the other files of this folder).

use super::local::LocalPlan;
use super::notice::Url;
use essaim_proto::api::{JobList, JobRerun, KeySet, LocalSet, TaskList};
use essaim_proto::hello::Role;
use essaim_proto::job::JobSpec;
use essaim_proto::link::{Ended, EndedMany, GivenBack, Progress, Register, Report};
use essaim_proto::quota::Quotas;
use essaim_proto::{BlobHash, JobId, KeyName, NodeName, SubmitKey, TaskSet};

/// A connection that has shown who it is; drawn by the shell, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SessionId(pub u64);

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A client shows a key (its hash).
    ClientOpened {
        /// Its session.
        session: SessionId,
        /// BLAKE3 of the key's secret.
        secret: BlobHash,
    },
    /// A worker with a certificate opens its session.
    Register {
        /// Its session.
        session: SessionId,
        /// The name in its certificate.
        name: NodeName,
        /// What it says.
        register: Box<Register>,
    },
    /// A machine with a join line wants a certificate.
    Join {
        /// Its session.
        session: SessionId,
        /// Its request.
        request: u64,
        /// BLAKE3 of the line's secret.
        secret: BlobHash,
        /// The name that it would like.
        wish: Option<NodeName>,
    },
    /// A connection is gone.
    SessionClosed {
        /// Its session.
        session: SessionId,
        /// Did the peer say goodbye?
        clean: bool,
    },
    /// A client submits a job; its blobs are here.
    Submit {
        /// Its session.
        session: SessionId,
        /// Its request.
        request: u64,
        /// Makes a repeated Submit return the first job.
        key: SubmitKey,
        /// The job.
        spec: Box<JobSpec>,
    },
    /// A client cancels a job.
    Cancel {
        /// Its session.
        session: SessionId,
        /// Its request.
        request: u64,
        /// Which job.
        job: JobId,
        /// Only these tasks of an array; `None`: all of the job.
        tasks: Option<TaskSet>,
    },
    /// A client runs a job, or tasks of it, once more.
    Rerun {
        /// Its session.
        session: SessionId,
        /// Its request.
        request: u64,
        /// What.
        rerun: JobRerun,
    },
    /// A client wants to upload a file for a job.
    Upload {
        /// Its session.
        session: SessionId,
        /// Its request.
        request: u64,
        /// Which.
        hash: BlobHash,
        /// How large it will be.
        size_bytes: u64,
    },
    /// A client asks for something that changes nothing.
    Query {
        /// Its session.
        session: SessionId,
        /// Its request.
        request: u64,
        /// What.
        query: Query,
    },
    /// A client makes a key.
    KeyCreate {
        /// Its session.
        session: SessionId,
        /// Its request.
        request: u64,
        /// The key's name.
        name: KeyName,
        /// The key.
        key: NewKey,
    },
    /// A client changes how much a key may use.
    KeySet {
        /// Its session.
        session: SessionId,
        /// Its request.
        request: u64,
        /// The key's name.
        name: KeyName,
        /// What changes.
        set: Box<KeySet>,
    },
    /// A client revokes a key.
    KeyRevoke {
        /// Its session.
        session: SessionId,
        /// Its request.
        request: u64,
        /// The key's name.
        name: KeyName,
    },
    /// A client makes a join line.
    JoinCreate {
        /// Its session.
        session: SessionId,
        /// Its request.
        request: u64,
        /// BLAKE3 of its secret.
        secret: BlobHash,
        /// How many machines may use it; 0 means 1.
        uses: u32,
        /// For how long; 0 means the default.
        ttl_ms: u64,
    },
    /// The hub's own data folder holds this key (at start).
    LocalKey {
        /// Its name.
        name: KeyName,
        /// What it may do.
        role: Role,
        /// BLAKE3 of its secret.
        secret: BlobHash,
    },
    /// The hub's own `up` needs a join line for its workers.
    LocalJoin {
        /// BLAKE3 of its secret.
        secret: BlobHash,
        /// How many machines may use it.
        uses: u32,
        /// For how long.
        ttl_ms: u64,
    },
    /// A worker says how it is.
    Report {
        /// Its session.
        session: SessionId,
        /// How it is.
        report: Box<Report>,
        /// Time there and back, measured by the connection.
        rtt_us: Option<u64>,
    },
    /// An attempt has come so far.
    Progress {
        /// The worker's session.
        session: SessionId,
        /// How far.
        progress: Progress,
    },
    /// An attempt is over and all of its output is here.
    Ended {
        /// The worker's session.
        session: SessionId,
        /// How.
        ended: Box<Ended>,
    },
    /// Tasks of an array are over; their output, which was little, is kept beside.
    EndedMany {
        /// The worker's session.
        session: SessionId,
        /// How.
        ended: Box<EndedMany>,
    },
    /// A worker gives back tasks of an array that had not started.
    GivenBack {
        /// The worker's session.
        session: SessionId,
        /// Which.
        given: GivenBack,
    },
    /// The hub's own `up` says what it starts workers with.
    LocalPlan {
        /// What.
        plan: Box<LocalPlan>,
    },
    /// A client changes the workers of the hub's own machine.
    LocalSet {
        /// Its session.
        session: SessionId,
        /// Its request.
        request: u64,
        /// What.
        set: LocalSet,
    },
    /// `up` saw a worker process of its own end.
    WorkerProcessEnded {
        /// Which node it was.
        node: NodeName,
    },
    /// Which URLs an admin lets the hub post to, by their beginnings. Said once after each start.
    NotifyUrls {
        /// Their beginnings.
        urls: Vec<Url>,
    },
    /// The shell has posted the end of a job, or gives it up.
    NoticeEnded {
        /// Which.
        job: JobId,
        /// How often it was tried.
        tries: u32,
        /// Why it was given up; nothing when it was taken.
        error: Option<String>,
    },
    /// Time has passed: leases, silence, expiry. At least once a second.
    Tick,
    /// A shutdown begins: nothing new is accepted or placed.
    Drain,
    /// The store has no room for anything new, or has room again. A hub that was made anew believes in room until it is
    /// told; told the same again, it does nothing.
    Storage {
        /// Has it none?
        full: bool,
    },
}

/// A key that is to be made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NewKey {
    /// What it may do.
    pub role: Role,
    /// BLAKE3 of its secret, drawn by the shell.
    pub secret: BlobHash,
    /// How much it may use.
    pub quotas: Quotas,
}

/// A question that changes nothing.
#[derive(Debug, Clone, PartialEq)]
pub enum Query {
    /// Jobs, newest first.
    JobList(JobList),
    /// One job.
    JobShow(JobId),
    /// Tasks of a job.
    TaskList(TaskList),
    /// May this session watch the job with its output? Answered with the job as it stands.
    Watch {
        /// Which job.
        job: JobId,
        /// The key of its Submit, if the client has it: a job of another key is not the one that is meant.
        key: Option<SubmitKey>,
    },
    /// Nodes after this name.
    NodeList {
        /// The last name of the page before.
        after: Option<String>,
    },
    /// Keys.
    KeyList,
    /// May this session ask which files for jobs are here?
    Upload,
}
