//! The wire from outside: frames in any cut, every message old and new, recorded frames of past releases, the page.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on stops")]

mod frames;
mod messages;
mod page;
mod recorded;
mod samples;
mod value;
