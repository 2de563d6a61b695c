//! essaim makes one computer out of several: this is the binary, the user's words.
//!
//! `main` parses, calls a subcommand and gives its exit code. Always true: the word `__cage` is handled before anything
//! else exists in the process, because a cage must have one thread and nothing of ours in its memory.
//! Deliberately not here: everything else (`cli` words, `cmd` subcommands, `print` printing, `exit` codes).

mod bar;
mod cli;
mod cmd;
mod each_line;
mod embedded;
mod exit;
mod files;
mod follow;
mod home;
mod job_file;
mod lines;
mod link;
mod notify;
mod print;
mod process;
mod screen;
mod settings;
mod signals;
mod spec;
mod stdin;
mod submit;
mod supervise;
mod tally;
mod target;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use cli::{Cli, Command};
use exit::{Outcome, Table};
use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|word| word == supervise::CAGE_WORD) {
        return ExitCode::from(supervise::be_cage());
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return ExitCode::from(words_are_wrong(&error)),
    };
    let table = match &cli.command {
        Command::Run(_) | Command::Job { command: cli::Job::Wait { .. } } => Table::Program,
        Command::Job { command: cli::Job::Submit(submit) } if submit.wait => Table::Program,
        _ => Table::Command,
    };
    let printer = cmd::printer(&cli.common);
    let code = match prepared(cli, printer) {
        Ok(code) => code,
        Err(failure) => {
            printer.failure(&failure);
            exit::code_of(&failure, table)
        }
    };
    ExitCode::from(code)
}

fn prepared(cli: Cli, printer: print::Printer) -> Outcome {
    let home = home::Home::find()?;
    let settings = settings::Settings::read(&home.settings_file(), &cli)?;
    cmd::run(&cmd::Context { home, settings, printer }, cli.command)
}

/// Help and version are no mistakes; a mistake in the words of `run` must not look like a program's own exit code.
fn words_are_wrong(error: &clap::Error) -> u8 {
    print::Printer::words(error);
    let commands = Cli::command();
    let mut words = std::env::args_os().skip(1);
    let command = words.find(|word| commands.find_subcommand(word).is_some());
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => exit::OK,
        _ if command.is_some_and(|command| command == "run") => exit::NOT_RUN,
        _ => exit::USAGE,
    }
}
