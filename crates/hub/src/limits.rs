//! The limits of the hub's shell, each with its reason.
//!
//! Deliberately not here: limits of decisions (`essaim_core::limits`), of the wire (`essaim_proto::limits`), of sockets
//! (`essaim_net::limits`).

use std::time::Duration;

/// Commands that wait for the driver. A full queue makes sessions wait, and so their peers: nothing is dropped.
pub(crate) const COMMANDS_MAX: usize = 4_096;

/// Commands that become one batch. More would delay the first of them; fewer would cost more appends.
pub(crate) const BATCH_COMMANDS_MAX: usize = 256;

/// Bytes of the inputs of one batch: its records must fit one append of the store (1 MB) with their envelopes.
pub(crate) const BATCH_BYTES_MAX: usize = 256 << 10;

/// Appends that the store has not ended yet. The driver goes on deciding meanwhile; a store that is this far behind gets
/// no more before it has caught up.
pub(crate) const APPENDS_MAX: usize = 64;

/// Effects that wait for a session to send them. A worker gets one word per slot at once when it registers, and has at
/// most `SLOTS_MAX` of them; a session that does not keep up is closed.
pub(crate) const MAILBOX_MAX: usize = 8_192;

/// Requests of one client that wait for their answer. A person has a few, a busy program some dozen; an answer may be a
/// page of a megabyte.
pub(crate) const PENDING_REQUESTS_MAX: usize = 64;

/// Jobs that one session watches at once: each is a task of ours.
pub(crate) const WATCHES_MAX: usize = 256;

/// Transfers of blobs that one session has open at once: each holds a window of chunks.
pub(crate) const TRANSFERS_MAX: usize = 16;

/// How often the driver tells the core that time has passed.
pub(crate) const TICK: Duration = Duration::from_millis(500);

/// Standard input that is kept from its beginning, so that a second attempt can read it again.
pub(crate) const STDIN_KEPT_BYTES: usize = 1 << 20;

/// A blob that no live job refers to is removed after this time: long enough for an upload to be followed by its
/// Submit.
pub(crate) const BLOB_GRACE_MS: u64 = 10 * 60_000;

/// Journal bytes after which a snapshot is taken and what is older is trimmed. A snapshot of 10,000 ended jobs has some
/// 10 MiB; writing it for each 32 MiB of journal costs little.
pub(crate) const SNAPSHOT_EVERY_BYTES: u64 = 32 << 20;

/// Addresses that one kind of door is open on: as many as a join line can name beside those of the first.
pub(crate) const DOORS_MAX: usize = 32;

/// Time that a shutdown gives to the last words of all sessions.
pub(crate) const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

const _: () = assert!(STDIN_KEPT_BYTES as u64 >= essaim_proto::limits::STDIN_WINDOW_BYTES);
