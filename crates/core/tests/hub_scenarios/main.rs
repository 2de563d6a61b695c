//! Stories about the hub's decisions: inputs go in, effects are taken out one by one, and each story ends with "nothing
//! else was sent".
//!
//! The clock is made up. After every input the hub's parts are checked against each other, and at the end of a story the
//! replayed records must give the same durable part.
//! Deliberately not here: random inputs (`replay`), the worker's decisions (`worker_scenarios`).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod array_story;
mod arrays;
mod cancel;
mod jobs;
mod join;
mod keys;
mod local;
mod lost;
mod notices;
mod observer;
mod pages;
mod placing;
mod quotas;
mod restart;
mod shares;
mod sizes;
mod states;
mod storage;
mod story;
mod succession;
mod waits;
