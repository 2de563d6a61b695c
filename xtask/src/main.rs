//! The chores: `test` passes the tests on a fresh machine, `tidy` checks the rules of the house, `prepush` checks
//! everything before a push.
//!
//! Run with `cargo run -p xtask -- tidy`; the same rules run as a test of this package, so `cargo test` refuses what we
//! agreed not to do.
//! Deliberately not here: anything that the product does. Nothing of ours depends on this package.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a chore talks to the person at the keyboard")]

mod house;
mod rules;
mod text;
mod tidy;

use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const USAGE: &str = "usage: cargo xtask test | tidy | prepush";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let done = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["test"] => test(&root()),
        ["tidy"] => check_tidy(&root()),
        ["prepush"] => prepush(&root()),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The folder of the workspace: this package lies directly in it.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn check_tidy(root: &Path) -> anyhow::Result<()> {
    let findings = tidy::findings(root)?;
    for finding in &findings {
        println!("{finding}");
    }
    if !findings.is_empty() {
        bail!("tidy: {} finding(s)", findings.len());
    }
    println!("tidy: ok");
    Ok(())
}

/// Installs what the tests use, where that is missing and can be done, then runs them all.
fn test(root: &Path) -> anyhow::Result<()> {
    let install = root.join(".ci/install");
    let status = Command::new("bash").arg(&install).status().context("bash did not start")?;
    if !status.success() {
        bail!("the tests need programs that could not be installed; {} names them", install.display());
    }
    cargo(root, &["test", "--workspace"])
}

/// What CI runs, in the order in which it fails fastest.
fn prepush(root: &Path) -> anyhow::Result<()> {
    cargo(root, &["fmt", "--all", "--check"])?;
    check_tidy(root)?;
    cargo(root, &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    cargo(root, &["test", "--workspace"])
}

fn cargo(root: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    println!("cargo {}", arguments.join(" "));
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(program).args(arguments).current_dir(root).status().context("cargo did not start")?;
    if !status.success() {
        bail!("cargo {} failed", arguments.join(" "));
    }
    Ok(())
}
