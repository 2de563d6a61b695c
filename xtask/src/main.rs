//! The chores: `test` passes the tests on a fresh machine, `tidy` checks the rules of the house, `prepush` checks
//! everything before a push, `soak` kills our processes for minutes instead of seconds.
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

const USAGE: &str = "usage: cargo xtask test | tidy | prepush | soak [TEST]";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let done = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["test"] => test(&root()),
        ["tidy"] => check_tidy(&root()),
        ["prepush"] => prepush(&root()),
        ["soak"] => soak(&root(), ""),
        ["soak", test] => soak(&root(), test),
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

/// The tests that kill our processes, with all of their rounds, one after the other: each prints the seed of its moments,
/// which `ESSAIM_SEED` gives again.
fn soak(root: &Path, test: &str) -> anyhow::Result<()> {
    let words = ["test", "-p", "essaim", "--test", "kills", test, "--", "--nocapture", "--test-threads=1"];
    let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
    cargo_with(root, &words, &[("ESSAIM_SOAK", "1")])
}

fn cargo(root: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    cargo_with(root, arguments, &[])
}

fn cargo_with(root: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> anyhow::Result<()> {
    println!("cargo {}", arguments.join(" "));
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.args(arguments).envs(variables.iter().copied()).current_dir(root);
    let status = command.status().context("cargo did not start")?;
    if !status.success() {
        bail!("cargo {} failed", arguments.join(" "));
    }
    Ok(())
}
