//! What the process says when it ends: the exit codes, and the failures that lead to them.
//!
//! Every subcommand returns an exit code or a [`Failure`]; `main` turns the failure into a sentence (`print`) and a code
//! ([`code_of`]). Always true: one table for programs ([`of_result`]), used by `run` and `job wait` alike; a failure is
//! one sentence that says what failed, why, and what to try.
//! Deliberately not here: printing, and what a refusal is called (`essaim-view`).

use essaim_proto::job::{TaskResult, Verdict};
use essaim_proto::{Refusal, RefusalCode};
use std::fmt;

/// Done.
pub(crate) const OK: u8 = 0;
/// The work failed.
pub(crate) const WORK_FAILED: u8 = 1;
/// The words on the command line or in a settings file are wrong.
pub(crate) const USAGE: u8 = 2;
/// The hub said no.
pub(crate) const REFUSED: u8 = 3;
/// No hub, or no longer one.
pub(crate) const UNREACHABLE: u8 = 4;
/// essaim itself failed.
pub(crate) const INTERNAL: u8 = 70;
/// `run`: a limit other than time.
pub(crate) const OTHER_LIMIT: u8 = 123;
/// `run`: wall or CPU time.
pub(crate) const TIME_LIMIT: u8 = 124;
/// `run`: essaim failed or refused.
pub(crate) const NOT_RUN: u8 = 125;
/// `run`: cancelled.
pub(crate) const CANCELLED: u8 = 130;
/// Added to the number of the signal that ended a program.
const SIGNAL_BASE: u8 = 128;
/// What a program gets that writes to a closed pipe, as a shell shows it.
const BROKEN_PIPE: u8 = SIGNAL_BASE + 13;

/// Which table applies to a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Table {
    /// `run` and `job wait`: the program's own codes must stay recognisable.
    Program,
    /// Everything else.
    Command,
}

/// Whose fault a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The work was done and did not succeed.
    Work,
    /// The user's words or files.
    Usage,
    /// The hub said no.
    Refused,
    /// No hub.
    Unreachable,
    /// essaim or the machine it runs on.
    Internal,
    /// Nobody reads our standard output any more: nothing to say, and nobody to say it to.
    StdoutGone,
}

/// Why a subcommand did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Whose fault.
    pub(crate) cause: Cause,
    /// A word for programs (`--json`): a refusal's code, or one of ours.
    pub(crate) code: String,
    /// For people: what failed, why, what to try; without `error:` in front.
    pub(crate) message: String,
}

/// What a subcommand comes to.
pub(crate) type Outcome = Result<u8, Failure>;

impl Failure {
    /// The words or files of the user cannot be used.
    pub(crate) fn usage(code: &str, message: impl fmt::Display) -> Failure {
        Failure { cause: Cause::Usage, code: code.to_owned(), message: message.to_string() }
    }

    /// No hub answers.
    pub(crate) fn unreachable(code: &str, message: impl fmt::Display) -> Failure {
        Failure { cause: Cause::Unreachable, code: code.to_owned(), message: message.to_string() }
    }

    /// Something of ours or of the system broke.
    pub(crate) fn internal(code: &str, message: impl fmt::Display) -> Failure {
        Failure { cause: Cause::Internal, code: code.to_owned(), message: message.to_string() }
    }

    /// A "no", before anybody was asked.
    pub(crate) fn refused(code: &str, message: impl fmt::Display) -> Failure {
        Failure { cause: Cause::Refused, code: code.to_owned(), message: message.to_string() }
    }

    /// Something of ours or of the system broke; `error` and all that caused it follow the sentence.
    pub(crate) fn broken(code: &str, what: impl fmt::Display, error: &dyn std::error::Error) -> Failure {
        Failure::internal(code, format!("{what}: {}", chain(error)))
    }

    /// Nobody reads our standard output.
    pub(crate) fn stdout_gone() -> Failure {
        Failure { cause: Cause::StdoutGone, code: "stdout_gone".into(), message: String::new() }
    }

    /// The hub said no.
    pub(crate) fn from_refusal(refusal: &Refusal) -> Failure {
        // A hub that is going, or that has no store, will take the same words later: that is not the user's "no".
        let cause = match refusal.code {
            RefusalCode::ShuttingDown => Cause::Unreachable,
            RefusalCode::StoreFull | RefusalCode::StoreError => Cause::Work,
            _ => Cause::Refused,
        };
        let message = essaim_view::refusal(refusal, essaim_view::Language::English);
        Failure { cause, code: refusal.code.name().to_owned(), message }
    }

    /// The same failure with what to try.
    pub(crate) fn hint(mut self, hint: impl fmt::Display) -> Failure {
        self.message = format!("{}; {hint}", self.message.trim_end_matches('.'));
        self
    }
}

/// An error and its causes in one line; a cause that only repeats what was said is left out.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = cause.source();
    }
    text
}

/// The exit code for a failure.
pub(crate) fn code_of(failure: &Failure, table: Table) -> u8 {
    match (table, failure.cause) {
        (Table::Program, Cause::StdoutGone) => BROKEN_PIPE,
        (Table::Command, Cause::StdoutGone) => OK,
        (Table::Program, _) => NOT_RUN,
        (Table::Command, Cause::Work) => WORK_FAILED,
        (Table::Command, Cause::Usage) => USAGE,
        (Table::Command, Cause::Refused) => REFUSED,
        (Table::Command, Cause::Unreachable) => UNREACHABLE,
        (Table::Command, Cause::Internal) => INTERNAL,
    }
}

/// The exit code for the end of a program.
pub(crate) fn of_result(result: &TaskResult) -> u8 {
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
pub(crate) struct Severity {
    line: u8,
    code: u8,
}

impl Severity {
    /// Cancelled, by whomever.
    pub(crate) const CANCELLED: Severity = Severity { line: 5, code: CANCELLED };
    /// It did not come to a program's end.
    pub(crate) const NOT_RUN: Severity = Severity { line: 6, code: NOT_RUN };
    /// Failed, and nobody says how.
    pub(crate) const FAILED: Severity = Severity { line: 1, code: WORK_FAILED };

    /// Of one end.
    pub(crate) fn of(result: &TaskResult) -> Severity {
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
    pub(crate) fn code(self) -> u8 {
        self.code
    }

    /// Neither well nor cancelled?
    pub(crate) fn is_failure(self) -> bool {
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

    // The same failure has another code for `run`, where 1 to 4 belong to the program.
    #[test]
    fn a_failure_of_run_is_125_and_of_others_by_its_cause() {
        let causes =
            [(Cause::Work, 1), (Cause::Usage, 2), (Cause::Refused, 3), (Cause::Unreachable, 4), (Cause::Internal, 70)];
        for (cause, code) in causes {
            let failure = Failure { cause, code: "x".into(), message: "x".into() };
            assert_eq!(code_of(&failure, Table::Command), code);
            assert_eq!(code_of(&failure, Table::Program), 125);
        }
        assert_eq!(code_of(&Failure::stdout_gone(), Table::Command), 0);
        assert_eq!(code_of(&Failure::stdout_gone(), Table::Program), 141);
    }

    // Causes are told once and in order.
    #[test]
    fn an_error_is_told_with_its_causes() {
        let inner = std::io::Error::from_raw_os_error(2);
        let outer = std::io::Error::other(inner);
        assert_eq!(chain(&outer).matches("No such file").count(), 1);
    }
}
