//! Everything that a worker's decisions may ask for, on one page.
//!
//! The worker's driver carries them out in order. Deliberately not here: how.

use essaim_proto::AttemptId;
use essaim_proto::job::{FileSpec, StdinSpec, TaskResult};
use essaim_proto::link::{GivenBack, PhaseSpec, Progress};

/// Something to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Make a fresh work folder with these files; answer with `Prepared` or `PrepareFailed`.
    Prepare {
        /// For which attempt.
        attempt: AttemptId,
        /// Its files.
        files: Vec<FileSpec>,
        /// The file of which the program gets the line of its task's number.
        lines: Option<FileSpec>,
        /// Is its task one of an array's?
        of_array: bool,
        /// What its last phase reads.
        stdin: StdinSpec,
    },
    /// Start a phase in the work folder; answer with `PhaseEnded` or `LaunchFailed`.
    Launch {
        /// Of which attempt.
        attempt: AttemptId,
        /// The language, to find what stands behind a shim; empty for a command.
        lang: String,
        /// What to run.
        phase: Box<PhaseSpec>,
        /// What it reads.
        stdin: StdinSpec,
        /// It may wait until fewer than so many of those that may wait run; the last number said counts for all.
        at_once: Option<u32>,
    },
    /// Kill the phase that runs, with its whole tree; `PhaseEnded` follows.
    Kill {
        /// Of which attempt.
        attempt: AttemptId,
    },
    /// Tell the hub how far an attempt is.
    Progress(Progress),
    /// Tell the hub that an attempt is over, after all of its output.
    End {
        /// Which.
        attempt: AttemptId,
        /// How.
        result: Box<TaskResult>,
    },
    /// Remove the work folder.
    Clean {
        /// Of which attempt.
        attempt: AttemptId,
    },
    /// Drop what is kept of the output: the hub has it all.
    Forget {
        /// Of which attempt.
        attempt: AttemptId,
    },
    /// Tell the hub that these tasks have not started here and will not.
    GiveBack(GivenBack),
    /// Draining, and nothing is left.
    Idle,
}
