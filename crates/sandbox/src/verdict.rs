//! How a program ended, as one word: a pure function from evidence to verdict.
//!
//! Called by the worker with the evidence of an `Ended` event. No clock, no system: the same evidence always gives the
//! same verdict, and the table of tests below is the specification.
//!
//! The order matters: what *we* did comes first (a program that we killed has a signal too), then its own exit.
//! Deliberately not here: limits that are not enforced yet. Each one that comes adds a `Stop` and a line to the table.

use crate::protocol::{Evidence, Stop};

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It exited with 0.
    Ok,
    /// It exited with another code or died of a signal that was not ours.
    RuntimeError,
    /// We stopped it at a time limit.
    TimeLimit,
    /// We stopped it because someone asked to.
    Cancelled,
    /// A compiler exited with another code than 0 or died of a signal.
    CompileError,
}

/// What the program was run for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// It compiles the user's program.
    Compile,
    /// It is the user's program.
    Run,
}

/// The verdict for a program of `phase` that ended with `evidence`.
pub fn verdict(phase: Phase, evidence: &Evidence) -> Verdict {
    match evidence.stopped_by {
        Some(Stop::Wall) => return Verdict::TimeLimit,
        Some(Stop::Kill) => return Verdict::Cancelled,
        None => {}
    }
    match (evidence.exit_code, phase) {
        (Some(0), _) => Verdict::Ok,
        (_, Phase::Compile) => Verdict::CompileError,
        (_, Phase::Run) => Verdict::RuntimeError,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(exit_code: Option<i32>, signal: Option<i32>, stopped_by: Option<Stop>) -> Evidence {
        Evidence { exit_code, signal, stopped_by, ..Evidence::default() }
    }

    /// Is every row of the table what we promise? Each row: phase, exit code, signal, who stopped it, verdict.
    #[test]
    fn table() {
        use Phase::{Compile, Run};
        let rows = [
            (Run, Some(0), None, None, Verdict::Ok),
            (Compile, Some(0), None, None, Verdict::Ok),
            (Run, Some(1), None, None, Verdict::RuntimeError),
            (Compile, Some(1), None, None, Verdict::CompileError),
            (Run, None, Some(11), None, Verdict::RuntimeError),
            (Compile, None, Some(11), None, Verdict::CompileError),
            (Run, None, Some(9), None, Verdict::RuntimeError),
            (Run, None, None, None, Verdict::RuntimeError),
            (Run, None, Some(9), Some(Stop::Wall), Verdict::TimeLimit),
            (Compile, None, Some(9), Some(Stop::Wall), Verdict::TimeLimit),
            (Run, None, Some(9), Some(Stop::Kill), Verdict::Cancelled),
            (Compile, None, Some(9), Some(Stop::Kill), Verdict::Cancelled),
            // Should both ever be said, what we did wins: the exit code of a stopped program means nothing.
            (Run, Some(0), None, Some(Stop::Wall), Verdict::TimeLimit),
            (Run, Some(0), None, Some(Stop::Kill), Verdict::Cancelled),
        ];
        for (phase, code, signal, stop, expected) in rows {
            assert_eq!(
                verdict(phase, &evidence(code, signal, stop)),
                expected,
                "{phase:?} {code:?} {signal:?} {stop:?}"
            );
        }
    }
}
