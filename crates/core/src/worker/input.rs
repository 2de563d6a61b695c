//! Everything that can happen to a worker, on one page.
//!
//! The session, the launcher and the file room build these. Deliberately not here: what follows from them.

use essaim_proto::AttemptId;
use essaim_proto::job::{Reason, Verdict};
use essaim_proto::link::{Start, TakeBack};

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// The session is open; the hub has compared what each side believes.
    Registered {
        /// Held attempts that go on.
        keep: Vec<AttemptId>,
        /// Held attempts that are nobody's business any more.
        kill: Vec<AttemptId>,
    },
    /// The connection is gone.
    Disconnected,
    /// The hub gives an attempt, or attempts of an array's tasks.
    Start(Box<Start>),
    /// The hub would like to have tasks back that have not started.
    TakeBack(TakeBack),
    /// Some tenth of a second has passed while something runs.
    Tick,
    /// The hub wants an attempt dead.
    Stop {
        /// Which.
        attempt: AttemptId,
    },
    /// The hub has recorded the end.
    EndAck {
        /// Of which.
        attempt: AttemptId,
    },
    /// The work folder is there with its files.
    Prepared {
        /// Whose.
        attempt: AttemptId,
    },
    /// The work folder could not be made.
    PrepareFailed {
        /// Whose.
        attempt: AttemptId,
        /// Why.
        reason: Reason,
    },
    /// The phase could not be started.
    LaunchFailed {
        /// Whose.
        attempt: AttemptId,
        /// `Rejected` when the program is to blame, `InternalError` when this worker is.
        verdict: Verdict,
        /// Why.
        reason: Reason,
    },
    /// The phase is over: its tree is dead and its output has been read to the end.
    PhaseEnded {
        /// Whose.
        attempt: AttemptId,
        /// How.
        end: PhaseEnd,
    },
    /// The program runs, and not for a moment only.
    RunsOn {
        /// Whose.
        attempt: AttemptId,
    },
    /// The program of a phase that may wait has not begun and would wait for long: it is as if it had not been launched.
    Returned {
        /// Whose.
        attempt: AttemptId,
    },
    /// The program began or ceased to wait for someone to type.
    WaitingForInput {
        /// Whose.
        attempt: AttemptId,
        /// Does it wait?
        waiting: bool,
    },
    /// Finish what is there, take nothing new: whoever started the worker says so, and does not take it back.
    Drain,
    /// The same when the hub says so; or it takes that back.
    Leave {
        /// Is it to leave?
        leave: bool,
    },
}

/// How a phase ended.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PhaseEnd {
    /// What it means.
    pub verdict: Verdict,
    /// Exit code, if it exited.
    pub exit_code: Option<i32>,
    /// Signal, if one ended it.
    pub signal: Option<i32>,
    /// CPU time of the whole tree, in milliseconds.
    pub cpu_ms: u64,
    /// Wall time, in milliseconds.
    pub wall_ms: u64,
    /// Largest memory seen, in bytes.
    pub memory_peak_bytes: u64,
    /// Was more printed than it may, and dropped?
    pub truncated: bool,
    /// Bytes of standard output of the attempt so far.
    pub stdout_bytes: u64,
    /// Bytes of standard error of the attempt so far.
    pub stderr_bytes: u64,
}
