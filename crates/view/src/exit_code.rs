//! The exit codes of programs: one table for everybody who tells how a job ended, to a shell or over the network.
//!
//! The binary ends with them, the hub tells them in notices. Always true: a program that failed never looks like one that
//! did not; the worst of many ends is found by the table from its top.
//! Deliberately not here: codes of commands that run no program (the binary).

use essaim_proto::job::{TaskResult, Verdict};

/// Done.
pub const OK: u8 = 0;
/// The work failed.
pub const WORK_FAILED: u8 = 1;
/// `run`: a limit other than time.
pub const OTHER_LIMIT: u8 = 123;
/// `run`: wall or CPU time.
pub const TIME_LIMIT: u8 = 124;
/// `run`: essaim failed or refused.
pub const NOT_RUN: u8 = 125;
/// `run`: cancelled.
pub const CANCELLED: u8 = 130;
/// Added to the number of the signal that ended a program.
pub const SIGNAL_BASE: u8 = 128;

/// The exit code for the end of a program.
pub fn of_result(result: &TaskResult) -> u8 {
    match result.verdict {
        Verdict::Ok => OK,
        Verdict::RuntimeError | Verdict::CompileError => of_exit(result),
        Verdict::TimeLimit => TIME_LIMIT,
        Verdict::MemoryLimit
        | Verdict::OutputLimit
        | Verdict::ProcessLimit
        | Verdict::FileLimit
        | Verdict::Forbidden => OTHER_LIMIT,
        Verdict::Cancelled => CANCELLED,
        Verdict::Rejected | Verdict::Lost | Verdict::InternalError => NOT_RUN,
    }
}

/// How bad an end is, to compare the ends of many tasks: by the table from its top, within a line by the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Severity {
    line: u8,
    code: u8,
}

impl Severity {
    /// Cancelled, by whomever.
    pub const CANCELLED: Severity = Severity { line: 5, code: CANCELLED };
    /// It did not come to a program's end.
    pub const NOT_RUN: Severity = Severity { line: 6, code: NOT_RUN };
    /// Failed, and nobody says how.
    pub const FAILED: Severity = Severity { line: 1, code: WORK_FAILED };

    /// Of one end.
    pub fn of(result: &TaskResult) -> Severity {
        let code = of_result(result);
        let line = match (code, result.verdict) {
            (OK, _) => 0,
            (_, Verdict::RuntimeError | Verdict::CompileError) if result.signal.is_none() => 1,
            (_, Verdict::RuntimeError | Verdict::CompileError) => 2,
            (_, Verdict::TimeLimit) => 3,
            (OTHER_LIMIT, _) => 4,
            (CANCELLED, _) => Severity::CANCELLED.line,
            _ => Severity::NOT_RUN.line,
        };
        Severity { line, code }
    }

    /// The exit code of whoever waited for that.
    pub fn code(self) -> u8 {
        self.code
    }

    /// Neither well nor cancelled?
    pub fn is_failure(self) -> bool {
        self.line != 0 && self.line != Severity::CANCELLED.line
    }
}

fn of_exit(result: &TaskResult) -> u8 {
    match (result.signal, result.exit_code) {
        (Some(signal), _) => u8::try_from(signal).map_or(NOT_RUN, |signal| SIGNAL_BASE.saturating_add(signal)),
        // A program that failed must not look like one that did not: what does not fit a byte counts as 1.
        (None, Some(code)) => u8::try_from(code).ok().filter(|code| *code != 0).unwrap_or(WORK_FAILED),
        (None, None) => WORK_FAILED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(verdict: Verdict, exit_code: Option<i32>, signal: Option<i32>) -> u8 {
        of_result(&TaskResult { verdict, exit_code, signal, ..TaskResult::default() })
    }

    // The table of DESIGN.md section 6, line by line.
    #[test]
    fn a_program_ends_with_the_code_of_the_table() {
        assert_eq!(ended(Verdict::Ok, Some(0), None), 0);
        assert_eq!(ended(Verdict::RuntimeError, Some(7), None), 7);
        assert_eq!(ended(Verdict::RuntimeError, None, Some(11)), 139);
        assert_eq!(ended(Verdict::TimeLimit, None, Some(9)), 124);
        for limit in [Verdict::MemoryLimit, Verdict::OutputLimit, Verdict::ProcessLimit, Verdict::FileLimit] {
            assert_eq!(ended(limit, None, Some(9)), 123, "{limit:?}");
        }
        assert_eq!(ended(Verdict::CompileError, Some(2), None), 2);
        assert_eq!(ended(Verdict::CompileError, None, None), 1);
        assert_eq!(ended(Verdict::Cancelled, None, Some(9)), 130);
        for ours in [Verdict::Rejected, Verdict::Lost, Verdict::InternalError] {
            assert_eq!(ended(ours, None, None), 125, "{ours:?}");
        }
    }

    // The worst of many ends, down the table.
    #[test]
    fn the_worst_end_counts() {
        let of = |verdict, exit_code, signal| {
            Severity::of(&TaskResult { verdict, exit_code, signal, ..TaskResult::default() })
        };
        let rising = [
            of(Verdict::Ok, Some(0), None),
            Severity::FAILED,
            of(Verdict::RuntimeError, Some(3), None),
            // Its own codes are its own, even when they look like ours.
            of(Verdict::RuntimeError, Some(200), None),
            of(Verdict::RuntimeError, None, Some(9)),
            of(Verdict::TimeLimit, None, Some(9)),
            of(Verdict::MemoryLimit, None, Some(9)),
            of(Verdict::Cancelled, None, Some(9)),
            of(Verdict::Lost, None, None),
        ];
        assert!(rising.is_sorted(), "{rising:?}");
        assert_eq!(rising.map(Severity::code), [0, 1, 3, 200, 137, 124, 123, 130, 125]);
        assert_eq!(rising.iter().filter(|end| end.is_failure()).count(), 7);
        assert_eq!((rising[0], rising[7]), (Severity::default(), Severity::CANCELLED));
    }

    // A failed program never looks like a good one, whatever its numbers are.
    #[test]
    fn a_failed_program_never_ends_with_zero() {
        for code in [Some(0), Some(256), Some(-1), None] {
            assert_ne!(ended(Verdict::RuntimeError, code, None), 0, "{code:?}");
        }
    }
}
