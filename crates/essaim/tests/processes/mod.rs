//! What /proc tells a test: which processes carry a mark, who is whose child, memory and descriptors.
//!
//! A mark is a variable with a value that no other test has; programs get it by `essaim run --env`. Our own processes
//! never have it in their environment, so whoever has it is a program of the test, wherever it hides.

#![allow(dead_code, reason = "each test file uses its part")]

use crate::swarm::wait_for;
use std::sync::atomic::{AtomicU64, Ordering};

/// The variable of the mark.
pub(crate) const MARK: &str = "E2E_MARK";

/// `NAME=VALUE` that no other test has.
pub(crate) fn new_mark() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{MARK}={}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Living processes with the mark in their environment. Zombies have none any more: they are seen by [`state`].
pub(crate) fn marked(mark: &str) -> Vec<u32> {
    let has_mark = |pid: &u32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
    };
    all().into_iter().filter(has_mark).collect()
}

fn all() -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").unwrap();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// The fields of `/proc/PID/stat` after the name: state, parent and so on.
fn stat(pid: u32) -> Option<(char, u32)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// The state letter; `None`: there is no such process.
pub(crate) fn state(pid: u32) -> Option<char> {
    stat(pid).map(|(state, _)| state)
}

/// Neither gone nor a zombie?
pub(crate) fn is_alive(pid: u32) -> bool {
    state(pid).is_some_and(|state| state != 'Z' && state != 'X')
}

/// Children, zombies too.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    all().into_iter().filter(|child| stat(*child).is_some_and(|(_, parent)| parent == pid)).collect()
}

/// Children, their children and so on.
pub(crate) fn descendants(pid: u32) -> Vec<u32> {
    let mut found = children(pid);
    let mut next = 0;
    while next < found.len() {
        found.extend(children(found[next]));
        next += 1;
    }
    found
}

/// The short name of a process.
pub(crate) fn name(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

/// Open descriptors.
pub(crate) fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// What the open descriptors are, for a failure's message.
pub(crate) fn descriptor_list(pid: u32) -> Vec<String> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let target = |entry: std::fs::DirEntry| std::fs::read_link(entry.path()).map(|path| path.display().to_string());
    entries.filter_map(|entry| target(entry.ok()?).ok()).collect()
}

/// Memory that is really there, in bytes.
pub(crate) fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// The worker process of an `up`.
#[track_caller]
pub(crate) fn worker_of(up: u32) -> u32 {
    wait_for("a worker", || children(up).into_iter().find(|pid| is_alive(*pid)))
}

/// The cage of an `up` with one worker.
#[track_caller]
pub(crate) fn cage_of(up: u32) -> u32 {
    let is_cage = |pid: &u32| is_alive(*pid) && name(*pid) == "essaim-cage";
    wait_for("a cage", || descendants(up).into_iter().find(is_cage))
}
