//! A data folder that an earlier essaim left behind still opens, with all that was in it.
//!
//! `tests/data/N` are whole data folders as the binary left them when it was killed, each recorded once and never changed:
//! a hub and a local worker that are gone, with jobs that ended and one that ran. To record one, before a change of what
//! is on disk lands: `ESSAIM_RECORD=N cargo test -p essaim --test old_folder`; then give `git add -f` the new folder, and
//! `RECORDED` its number. Always true: each holds the same jobs, those of `record`; what a version adds goes in there and,
//! for the folders that have it, into `check`.
//! Deliberately not here: what the databases hold row by row (the store's own test of the same name).

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod swarm;

use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use swarm::{Home, Swarm, up, wait_until};

/// The folders in `tests/data`.
const RECORDED: [u32; 2] = [1, 2];

/// Ran when everything was killed; it ends only by being cancelled.
const WAITS: &str = "echo begun; until [ -e /there/is/no/such/file ]; do sleep 0.05; done";

/// An array of which one task fails: since version 2.
const MANY: &str = "echo task $ESSAIM_TASK_ID; [ $ESSAIM_TASK_ID != 17 ] || exit 9";

fn recorded(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(version.to_string())
}

/// Copies a folder; what is in it is its owner's alone, as in a data folder (version control keeps no such thing).
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    std::fs::set_permissions(to, PermissionsExt::from_mode(0o700)).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => copy(&path, &to),
            kind if kind.is_file() => {
                std::fs::copy(&path, &to).unwrap();
                std::fs::set_permissions(&to, PermissionsExt::from_mode(0o600)).unwrap();
            }
            // Sockets and links belong to processes.
            _ => {}
        }
    }
}

fn jobs(swarm: &Swarm) -> Vec<Value> {
    let jobs = swarm.essaim(&["job", "list", "--json"]).run().good().json();
    jobs.as_array().unwrap().clone()
}

/// A file that is too large to travel inside a message, so that it is a blob.
fn large_file() -> String {
    let lines = (0..3_000).map(|n| format!("# line {n} of a program that is long\n"));
    format!("print('large')\n{}", lines.collect::<String>())
}

fn record(to: &Path) {
    assert!(!to.exists(), "{} is recorded: it is never changed", to.display());
    let swarm = Swarm::start();
    swarm.run(&["--name", "little", "--command", "--", "sh", "-c", "echo hello; echo careful >&2"]).run().good();
    swarm.run(&["--name", "much", "--command", "--", "sh", "-c", "seq 20000; exit 3"]).run().ended(3);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("large.py"), large_file()).unwrap();
    swarm.run(&["large.py"]).folder(folder.path()).run().good();
    swarm.run(&["--detach", "--name", "unwanted", "--command", "--", "sh", "-c", WAITS]).run().good();
    swarm.essaim(&["job", "cancel", "4"]).run().good();
    wait_until("the job is cancelled", || jobs(&swarm)[0]["state"] == "cancelled");
    swarm.run(&["--name", "many", "--array", "1-30", "--command", "--", "sh", "-c", MANY]).run().ended(9);
    swarm.essaim(&["key", "create", "ada", "--role", "operator"]).run().good();
    swarm.run(&["--detach", "--name", "runs", "--command", "--", "sh", "-c", WAITS]).run().good();
    wait_until("the last one runs", || swarm.essaim(&["job", "logs", "6", "--no-follow"]).run().text() == "begun\n");
    swarm.home.kill();
    copy(swarm.home.path(), to);
}

#[track_caller]
fn check(home: Home, version: u32) -> Home {
    // Nobody knows when this test runs: nothing of the recorded jobs may be too old.
    let words = up(&home, &["--slots", "2"]).env("ESSAIM_KEEP_JOBS_DAYS", "36500");
    let swarm = Swarm::of(home, words);
    let told: Vec<(String, String)> = jobs(&swarm)
        .iter()
        .map(|job| (job["name"].as_str().unwrap().to_owned(), job["state"].as_str().unwrap().to_owned()))
        .filter(|(name, _)| name != "runs" && name != "new" && name != "many")
        .collect();
    let told: Vec<(&str, &str)> = told.iter().map(|(name, state)| (name.as_str(), state.as_str())).collect();
    assert_eq!(told, [("unwanted", "cancelled"), ("large.py", "done"), ("much", "failed"), ("little", "done")]);
    let logs = |job: &str| swarm.essaim(&["job", "logs", job, "--no-follow"]).run().good();
    let little = logs("1");
    assert_eq!((little.text(), little.stderr.as_str()), ("hello\n", "careful\n"));
    assert_eq!(logs("2").text(), (1..=20_000).map(|n| format!("{n}\n")).collect::<String>());
    assert_eq!(logs("3").text(), "large\n");
    let (runs, has_arrays) = if version < 2 { ("5", false) } else { ("6", true) };
    if has_arrays {
        let shown = swarm.essaim(&["job", "show", "5", "--json"]).run().good().json();
        assert_eq!((&shown["counts"]["done"], &shown["counts"]["failed"]), (&29.into(), &1.into()), "{shown}");
        let many = swarm.essaim(&["job", "logs", "5", "--keep-order", "--no-follow"]).run();
        assert_eq!(many.text(), (1..=30).map(|n| format!("task {n}\n")).collect::<String>());
    }
    let keys = swarm.essaim(&["key", "list", "--json"]).run().good().json();
    assert!(keys.as_array().unwrap().iter().any(|key| key["name"] == "ada" && key["role"] == "operator"), "{keys}");
    // Its worker died with the machine: another try.
    wait_until("what ran runs again", || {
        let last = swarm.essaim(&["job", "show", runs, "--json"]).run().good().json();
        last["state"] == "cancelled" || (last["state"] == "running" && last["tasks"][0]["attempt"] == 2)
    });
    swarm.run(&["--name", "new", "--command", "--", "echo", "well"]).run().good();
    if jobs(&swarm).iter().any(|job| job["name"] == "runs" && job["state"] == "running") {
        swarm.essaim(&["job", "cancel", runs]).run().good();
    }
    swarm.stop()
}

// Every recorded folder is copied and opened twice by this version: all jobs are listed, all output is shown, keys are
// known, what ran runs again, and new jobs are taken.
#[test]
fn an_old_data_folder_still_opens() {
    if let Ok(version) = std::env::var("ESSAIM_RECORD") {
        record(&recorded(version.parse().unwrap()));
    }
    for version in RECORDED {
        let home = Home::new();
        copy(&recorded(version), home.path());
        check(check(home, version), version);
    }
}
