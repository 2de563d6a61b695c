//! A real hub on loopback, with real clients and a worker by hand.

#![allow(clippy::unwrap_used, reason = "clippy takes only functions marked as tests for tests")]

mod arrays;
mod blobs;
mod doors;
mod jobs;
mod links;
mod quotas;
mod requests;
mod restart;
mod scene;
mod states;
mod stdin;

/// Resident memory of this process, in bytes.
pub(crate) fn scene_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}
