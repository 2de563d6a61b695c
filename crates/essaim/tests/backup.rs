//! `essaim backup` and `essaim restore`, and data folders that no hub can use: damaged ones, those of a newer essaim, those
//! that somebody else has open. Output that is damaged does not keep a hub from the rest.
//!
//! Always true: a failure is one sentence on standard error that says what to try, and changes nothing.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod swarm;

use rustix::process::Signal;
use serde_json::Value;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use swarm::{Home, Ran, Swarm, Words, tree, up, wait_until};

/// The one sentence of a failure.
#[track_caller]
fn sentence(words: Words, code: i32) -> String {
    let ran = words.run().ended(code);
    let errors: Vec<&str> = ran.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!((errors.len(), ran.stderr.lines().last()), (1, errors.first().copied()), "{}", ran.stderr);
    errors[0].trim_start_matches("error: ").to_owned()
}

fn jobs(swarm: &Swarm) -> Vec<Value> {
    swarm.essaim(&["job", "list", "--json"]).run().good().json().as_array().unwrap().clone()
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

// A backup that is made while the hub runs, brought back elsewhere: jobs, output, keys and the hub's identity are there, and
// what was running runs again.
#[test]
fn a_backup_is_the_hub() {
    let swarm = Swarm::start();
    swarm.run(&["--name", "first", "--command", "--", "echo", "well"]).run().good();
    swarm.run(&["--name", "second", "--command", "--", "sh", "-c", "seq 100000; echo bad >&2; exit 3"]).run().ended(3);
    let key = swarm.essaim(&["key", "create", "ada", "--role", "operator"]).run().good().text().trim().to_owned();
    let shelf = tempfile::tempdir().unwrap();
    let go = shelf.path().join("go");
    let waiting = format!("until [ -e '{}' ]; do sleep 0.05; done; echo went", go.display());
    swarm.run(&["--detach", "--name", "third", "--command", "--", "sh", "-c", &waiting]).run().good();
    wait_until("the third job runs", || jobs(&swarm)[0]["state"] == "running");
    let copy = shelf.path().join("monday");
    let made = swarm.essaim(&["backup", &text(&copy)]).run().good();
    assert!(made.text().starts_with(&format!("backup complete: {} (", text(&copy))), "{}", made.text());
    assert_eq!(std::fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o700);
    let again = sentence(swarm.essaim(&["backup", &text(&copy)]), 2);
    assert!(again.contains("is there already and not empty"), "{again}");
    swarm.run(&["--name", "too late", "--command", "--", "echo", "well"]).run().good();
    let before = jobs(&swarm);
    swarm.essaim(&["job", "cancel", "3"]).run().good();
    let old = swarm.stop();

    let home = Home::new();
    home.essaim(&["restore", &text(&copy)]).run().good();
    let words = up(&home, &["--slots", "2"]);
    let swarm = Swarm::of(home, words);
    let after = jobs(&swarm);
    let known =
        |jobs: &[Value]| -> Vec<Value> { jobs.iter().filter(|job| job["ended_ms"].is_u64()).cloned().collect() };
    assert_eq!(known(&after), known(&before)[1..], "all but the one that came too late");
    let logs = swarm.essaim(&["job", "logs", "2"]).run().good();
    assert_eq!((logs.text().lines().count(), logs.stderr.as_str()), (100_000, "bad\n"));
    swarm.essaim(&["--hub", &swarm.client_address(), "job", "list"]).env("ESSAIM_KEY", &key).run().good();
    std::fs::write(go, "").unwrap();
    swarm.essaim(&["job", "wait", "3"]).run().good();
    assert_eq!(jobs(&swarm)[0]["tasks"][0]["result"]["attempt"], 2);
    assert_eq!(swarm.essaim(&["job", "logs", "3"]).run().good().text(), "went\n");
    // What the old folder has is another story: it is not replaced.
    let refused = sentence(old.essaim(&["restore", &text(&copy)]), 3);
    assert!(refused.contains("store"), "{refused}");
    let running = sentence(swarm.essaim(&["restore", &text(&copy)]), 3);
    assert!(running.starts_with("a hub runs on") && running.contains("stop it first"), "{running}");
    swarm.stop();
}

// Folders that are no backup, or only half of one, are refused and nothing is made.
#[test]
fn what_is_no_backup_is_not_restored() {
    let swarm = Swarm::start();
    let shelf = tempfile::tempdir().unwrap();
    let copy = shelf.path().join("copy");
    swarm.run(&["--command", "--", "echo", "well"]).run().good();
    swarm.essaim(&["backup", &text(&copy)]).run().good();
    swarm.stop();
    let home = Home::new();
    let none = sentence(home.essaim(&["restore", &text(shelf.path())]), 2);
    assert!(none.contains("is no complete backup") && none.contains("essaim backup"), "{none}");
    let nothing = sentence(home.essaim(&["backup", &text(&shelf.path().join("other"))]), 2);
    assert!(nothing.starts_with("there is nothing to back up"), "{nothing}");
    damage(&copy.join("store/journal.db"));
    let damaged = home.essaim(&["restore", &text(&copy)]).run();
    assert_ne!(damaged.code(), 0);
    assert!(damaged.stderr.contains("damaged"), "{}", damaged.stderr);
    assert_eq!(tree(home.path()), Vec::<String>::new(), "nothing was made");
}

/// Overwrites the middle of a file.
fn damage(path: &Path) {
    let file = std::fs::File::options().write(true).open(path).unwrap();
    let length = file.metadata().unwrap().len();
    file.write_all_at(&vec![0x5a; 4_096.min(length as usize / 2)], length / 2).unwrap();
}

// A folder of a newer essaim stays as it is, and the sentence says what to do.
#[test]
fn a_newer_store_is_left_alone() {
    let home = Swarm::start().stop();
    let path = home.path().join("store/journal.db");
    let before = std::fs::read(&path).unwrap();
    let mut newer = before.clone();
    // The version's place in the file, as its format defines it.
    newer[60..64].copy_from_slice(&999_u32.to_be_bytes());
    std::fs::write(&path, &newer).unwrap();
    let said = sentence(up(&home, &[]), 3);
    assert!(said.contains("version 999") && said.contains("newer essaim"), "{said}");
    assert_eq!(std::fs::read(&path).unwrap(), newer, "it was changed");
    std::fs::write(&path, before).unwrap();
    let words = up(&home, &[]);
    Swarm::of(home, words).stop();
}

// A damaged store is named, with what to try, and a backup helps.
#[test]
fn a_damaged_store_is_named_and_a_backup_helps() {
    let swarm = Swarm::start();
    swarm.run(&["--name", "kept", "--command", "--", "echo", "well"]).run().good();
    let shelf = tempfile::tempdir().unwrap();
    let copy = shelf.path().join("copy");
    swarm.essaim(&["backup", &text(&copy)]).run().good();
    let home = swarm.stop();
    damage(&home.path().join("store/journal.db"));
    let said = sentence(up(&home, &[]), 3);
    assert!(said.contains("damaged") && said.contains("essaim restore"), "{said}");
    std::fs::rename(home.path().join("store"), home.path().join("old-store")).unwrap();
    home.essaim(&["restore", &text(&copy)]).run().good();
    let words = up(&home, &[]);
    let swarm = Swarm::of(home, words);
    assert_eq!(jobs(&swarm)[0]["name"], "kept");
    swarm.stop();
}

/// Changes a byte in every line `line` of the outputs that a home keeps, as a bad disk does; a hub may have it open.
fn damage_output(home: &Home, line: &str) {
    let line = format!("\n{line}\n");
    let mut count = 0;
    for entry in std::fs::read_dir(home.path().join("store/outputs")).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        for at in 0..bytes.len().saturating_sub(line.len()) {
            if bytes[at..].starts_with(line.as_bytes()) {
                file.write_all_at(b"x", at as u64 + 1).unwrap();
                count += 1;
            }
        }
    }
    assert!(count > 0, "no such line");
}

/// What `seq 1 TO` prints.
fn numbers(to: u32) -> String {
    (1..=to).map(|n| format!("{n}\n")).collect()
}

/// Checks that standard output is `whole` but for one gap that has `line` in it, and that standard error says which.
#[track_caller]
fn check_gap(ran: &Ran, whole: &str, line: &str) {
    let said: Vec<&str> = ran.stderr.lines().filter(|line| line.contains("damaged")).collect();
    let [said] = said[..] else { panic!("once: {}", ran.stderr) };
    let words: Vec<&str> = said.split(' ').collect();
    let ["error:", "bytes", from, "to", to, "of", "stdout", ..] = words[..] else { panic!("{said}") };
    let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap());
    assert!(whole[from..to].contains(line), "{said}");
    assert!(ran.text() == [&whole[..from], &whole[to..]].concat(), "the rest is shown, and nothing else: {said}");
}

// Output that was damaged on the hub's disk, of a job that is over: the bytes that are lost are named and all others shown,
// also with `--quiet`, and `job logs` does not call that a success.
#[test]
fn damaged_output_is_said_and_the_rest_is_shown() {
    let swarm = Swarm::start();
    swarm.run(&["--command", "--", "seq", "100000"]).run().good();
    let home = swarm.stop();
    damage_output(&home, "50000");
    let words = up(&home, &["--slots", "2"]);
    let swarm = Swarm::of(home, words);
    for words in [&["job", "logs", "1"][..], &["--quiet", "job", "logs", "1"]] {
        let ran = swarm.essaim(words).run().ended(1);
        check_gap(&ran, &numbers(100_000), "\n50000\n");
    }
    let ran = swarm.essaim(&["job", "logs", "1", "--stderr"]).run().good();
    assert_eq!((ran.text(), ran.stderr.as_str()), ("", ""), "what is not shown is not said to be damaged");
    swarm.stop();
}

// The same while `run` watches, which has fallen behind its program: its exit code is the program's.
#[test]
fn a_run_goes_on_behind_damage() {
    let swarm = Swarm::start();
    let shelf = tempfile::tempdir().unwrap();
    let go = text(&shelf.path().join("go"));
    let script = format!("until [ -e '{go}' ]; do sleep 0.05; done; seq 600000; exit 3");
    let run = swarm.run(&["--command", "--", "sh", "-c", &script]).start();
    wait_until("it runs", || jobs(&swarm).first().is_some_and(|job| job["state"] == "running"));
    // It reads nothing more: what comes stays at the hub, but for a window.
    run.signal(Signal::STOP);
    std::fs::write(go, "").unwrap();
    wait_until("it has ended", || jobs(&swarm)[0]["state"] == "failed");
    damage_output(&swarm.home, "500000");
    run.signal(Signal::CONT);
    check_gap(&run.end().ended(3), &numbers(600_000), "\n500000\n");
    swarm.stop();
}
