//! `completions`: what makes a shell complete our words.
//!
//! Deliberately not here: installing it, which is a matter of each shell.

use super::Context;
use crate::cli::Cli;
use crate::exit::{OK, Outcome};
use clap::CommandFactory;
use clap_complete::Shell;

pub(super) fn run(context: &Context, shell: Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "essaim", &mut script);
    context.printer.data(&String::from_utf8_lossy(&script))?;
    Ok(OK)
}
