//! What the process says when it ends: the exit codes, and the failures that lead to them.
//!
//! Every subcommand returns an exit code or a [`Failure`]; `main` turns the failure into a sentence (`print`) and a code
//! ([`code_of`]). Always true: `run` and `job wait` use one table for programs ([`essaim_view::exit_code`]); a failure is one
//! sentence that says what failed, why, and what to try.
//! Deliberately not here: printing, and what a refusal is called (`essaim-view`).

use essaim_proto::{Refusal, RefusalCode};
use essaim_view::exit_code;
use std::fmt;

pub(crate) use essaim_view::exit_code::{CANCELLED, NOT_RUN, OK, Severity, WORK_FAILED, of_result};

/// The words on the command line or in a settings file are wrong.
pub(crate) const USAGE: u8 = 2;
/// The hub said no.
pub(crate) const REFUSED: u8 = 3;
/// No hub, or no longer one.
pub(crate) const UNREACHABLE: u8 = 4;
/// essaim itself failed.
pub(crate) const INTERNAL: u8 = 70;
/// What a program gets that writes to a closed pipe, as a shell shows it.
const BROKEN_PIPE: u8 = exit_code::SIGNAL_BASE + 13;

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

#[cfg(test)]
mod tests {
    use super::*;

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
