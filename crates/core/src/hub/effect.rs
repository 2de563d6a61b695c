//! Everything that the hub may ask for, on one page.
//!
//! The driver makes the records durable, then carries the effects out in order. Deliberately not here: how.

use super::input::SessionId;
use super::record::Record;
use essaim_proto::api::{JobEvent, JobPage, JobView, KeyPage, LocalWorkers, NodePage, StateChange, TaskPage};
use essaim_proto::hello::Role;
use essaim_proto::job::Clamped;
use essaim_proto::link::{EndAck, EndAckMany, Leave, Registered, Start, Stop, TakeBack};
use essaim_proto::{JobId, KeyName, NodeName, Refusal};
use std::collections::BTreeSet;

/// What one or more inputs lead to.
#[derive(Debug, Default, PartialEq)]
pub struct Out {
    /// Facts, durable before any effect leaves.
    pub records: Vec<Record>,
    /// What to do then, in order.
    pub effects: Vec<Effect>,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// The client is who it says: send the welcome.
    Admit {
        /// Its session.
        session: SessionId,
        /// The key's name.
        name: String,
        /// What it may do.
        role: Role,
        /// How often its key may ask in a second; `None`: as often as it likes.
        per_second: Option<u64>,
    },
    /// From now on the key may ask so often in a second.
    Rate {
        /// Which key.
        key: KeyName,
        /// How often; `None`: as often as it likes.
        per_second: Option<u64>,
    },
    /// Answer a request.
    Answer {
        /// Whose.
        session: SessionId,
        /// Which.
        request: u64,
        /// With what.
        answer: Answer,
    },
    /// Refuse a request.
    Refuse {
        /// Whose.
        session: SessionId,
        /// Which; 0 for the hello.
        request: u64,
        /// Why.
        refusal: Refusal,
    },
    /// Sign the joiner's certificate for this name.
    GrantJoin {
        /// Its session.
        session: SessionId,
        /// Its request.
        request: u64,
        /// The name that it gets.
        name: NodeName,
    },
    /// Tell a worker.
    Tell {
        /// Its session.
        session: SessionId,
        /// What.
        message: ToWorker,
    },
    /// Tell whoever watches the job.
    Publish {
        /// What happened.
        event: JobEvent,
    },
    /// Tell whoever watches all states (`StatesWatch`) that a node or a job changed its own. `missed` is for the shell to
    /// fill in.
    Changed {
        /// What changed, when and why.
        change: StateChange,
    },
    /// Post the end of a job; say with `Input::NoticeEnded` what became of it. It may be asked for twice.
    Notify {
        /// Which.
        job: JobId,
        /// Where.
        url: String,
    },
    /// These workers of this machine are to run, by their numbers, and no others: tell `up`, which starts those that are
    /// missing. Those that are too many are told themselves.
    LocalWorkers {
        /// Which.
        numbers: BTreeSet<u32>,
    },
    /// End a session.
    Close {
        /// Which.
        session: SessionId,
        /// Why: a code of [`essaim_proto::hello::Goodbye`].
        reason: &'static str,
    },
}

/// A yes, with what was asked for.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Yes.
    Done,
    /// The job is recorded.
    Submitted {
        /// Its id.
        job: JobId,
        /// Was it known by its key?
        repeated: bool,
        /// Limits that were cut.
        clamped: Vec<Clamped>,
    },
    /// The session may watch; this is how the job stands.
    Watching(Box<JobView>),
    /// Jobs.
    Jobs(JobPage),
    /// One job.
    Job(Box<JobView>),
    /// Tasks.
    Tasks(TaskPage),
    /// Nodes.
    Nodes(NodePage),
    /// Keys.
    Keys(KeyPage),
    /// The workers of this machine, as they are to be from now on.
    Local(LocalWorkers),
    /// The key is recorded.
    KeyMade,
    /// The join line is recorded.
    JoinMade {
        /// When it expires, in milliseconds since 1970.
        expires_ms: u64,
    },
}

/// A word to a worker.
#[derive(Debug, Clone, PartialEq)]
pub enum ToWorker {
    /// Its session is open.
    Registered(Registered),
    /// Start an attempt.
    Start(Box<Start>),
    /// Stop an attempt.
    Stop(Stop),
    /// The end is recorded.
    EndAck(EndAck),
    /// Those ends are recorded.
    EndAckMany(EndAckMany),
    /// Give back what has not started.
    TakeBack(TakeBack),
    /// It is not needed any more, or needed after all.
    Leave(Leave),
}
