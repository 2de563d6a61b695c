//! The crate from outside: two ends in one process, over loopback or over a pipe in memory.

#![allow(clippy::unwrap_used, reason = "clippy takes only functions marked as tests for tests")]

mod client;
mod doors;
mod frames;
mod scene;
