//! The hub: doors, sessions, the driver, and what passes beside the core.
//!
//! The binary starts one with [`RunningHub::start`] and stops it with [`RunningHub::shutdown`].
//!
//! ```text
//!   doors ──▶ sessions (client, worker) ──inputs──▶ driver ──▶ core::Hub
//!                │  ▲                                 │ records ──▶ store ──▶ published state ──▶ catalog
//!                │  └───────── mailboxes ◀── effects ─┘                            │
//!                │  └───────── answers ◀───────────────────────────── reads ◀──────┴── past
//!                └── output, input, blobs ──▶ store, feeds ──▶ watch tasks
//! ```
//!
//! Always true: decisions are made in `essaim_core` alone; a session translates, calls, answers; whatever a peer sends is
//! bounded (`limits`).
//! Deliberately not here: spawning programs or workers (the binary supervises), doors for HTTP (a later issue), policy.

// Tests in here and outside of it share one scene, which names this crate.
#[cfg(test)]
extern crate self as essaim_hub;

mod blobs;
mod catalog;
mod changes;
mod client;
mod doors;
mod download;
mod driver;
mod ends;
mod feeds;
mod handle;
mod hub;
mod keeper;
mod limits;
mod notices;
mod past;
mod rates;
mod session;
mod stdin;
mod upload;
mod watch;
mod worker;

pub use driver::ReplayError;
pub use hub::{HubConfig, Keep, Keeping, RunningHub, StartError};
