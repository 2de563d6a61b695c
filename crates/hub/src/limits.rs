//! The limits of the hub's shell, each with its reason.
//!
//! Deliberately not here: limits of decisions (`essaim_core::limits`), of the wire (`essaim_proto::limits`), of sockets
//! (`essaim_net::limits`).

use std::time::Duration;

/// Commands that wait for the driver. A full queue makes sessions wait, and so their peers: nothing is dropped.
pub(crate) const COMMANDS_MAX: usize = 4_096;

/// Questions that wait for the driver: some dozen busy programs' worth. A full queue makes sessions wait.
pub(crate) const READS_MAX: usize = 1_024;

/// Questions that are answered between two batches. A page of jobs takes about a millisecond; more would be felt by those
/// who submit.
pub(crate) const READS_AT_ONCE: usize = 16;

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

/// Notices that are posted at once: each holds a thread for as long as its answer takes.
pub(crate) const NOTICES_AT_ONCE: usize = 8;

/// How often a notice is tried. With the pauses between them, which double from a second to [`NOTICE_PAUSE_MAX`], that is
/// about ten minutes: longer than a restart of whoever listens.
pub(crate) const NOTICE_TRIES: u32 = 10;

/// The first pause between two tries of a notice,
pub(crate) const NOTICE_PAUSE: Duration = Duration::from_secs(1);

/// and the longest.
pub(crate) const NOTICE_PAUSE_MAX: Duration = Duration::from_secs(256);

/// A blob that no live job refers to is removed after this time: long enough for an upload to be followed by its
/// Submit.
pub(crate) const BLOB_GRACE_MS: u64 = 10 * 60_000;

/// Journal bytes after which a snapshot is taken and what is older is trimmed, or as many as the snapshot before had if that
/// is more. A hub that is not full of waiting jobs has some 5 MiB; a start reads no more than this beside it, which takes
/// some tenths of a second.
pub(crate) const SNAPSHOT_EVERY_BYTES: u64 = 8 << 20;

/// Ended jobs that wait for the catalog, in bytes. Beyond it they are dropped here and read from the journal again: a
/// catalog that fails must not fill the memory.
pub(crate) const CATALOG_QUEUE_BYTES: usize = 64 << 20;

/// Ended jobs gather this long before the catalog takes them, so that a busy hub pays for few transactions. Nobody waits
/// for it: who reads sooner has them applied at once.
pub(crate) const CATALOG_GATHER: Duration = Duration::from_millis(200);

/// Ended jobs that one transaction of the catalog takes: it must end soon enough for a shutdown.
pub(crate) const CATALOG_ROWS_AT_ONCE: usize = 5_000;

/// Bytes in memory of what one transaction of the catalog takes: some ten thousand ends of tasks.
pub(crate) const CATALOG_BYTES_AT_ONCE: usize = 16 << 20;

/// Ends of an array's tasks that are one row of the catalog, and their bytes in memory, give or take a record: a row is
/// what a reader of one task decodes, which takes some milliseconds.
pub(crate) const CATALOG_ENDS_PER_ROW: usize = 4_096;
pub(crate) const CATALOG_ENDS_BYTES: usize = 1 << 20;

/// Ends of an array's tasks that are kept in memory for those who watch it and are a little behind. Whoever is further
/// behind reads them in the catalog.
pub(crate) const TAIL_BYTES_MAX: usize = 4 << 20;

/// Output of ended tasks that a watcher keeps who wants it in order, while a task before them runs. What is beyond it is
/// read in the catalog when its turn has come.
pub(crate) const ORDER_BYTES_MAX: usize = 2 << 20;

/// Ended tasks that one event names at most: their ranges fit a frame.
pub(crate) const TOLD_AT_ONCE: usize = 4_096;

/// A catalog that failed is tried again this often,
pub(crate) const CATALOG_RETRY: Duration = Duration::from_secs(1);
/// and is complained about this often.
pub(crate) const CATALOG_COMPLAINT: Duration = Duration::from_secs(60);

/// A reader waits this long for a catalog that is behind, then is shown what is there.
pub(crate) const CATALOG_WAIT: Duration = Duration::from_secs(2);

/// Readers of the catalog and of old output at once: each holds a thread.
pub(crate) const PAST_READS_MAX: usize = 8;

/// Finished jobs are kept this long when nobody says otherwise, in days (DESIGN.md section 8).
pub(crate) const JOBS_KEPT_DAYS: u32 = 30;

/// Finished jobs that are kept: a million rows are some 500 MB, and every list stays fast.
pub(crate) const JOBS_KEPT_MAX: usize = 1_000_000;

/// Finished jobs that are removed in one transaction: readers and the applier wait for one only.
pub(crate) const EXPIRE_AT_ONCE: usize = 1_000;

/// How often what is old is removed.
pub(crate) const RETENTION_EVERY: Duration = Duration::from_secs(60);

/// Output is dropped, oldest first, until this share of its limit is used: the rest is room for what comes within a
/// minute.
pub(crate) const OUTPUT_KEPT_PERCENT: u64 = 90;

/// Output bytes of one attempt that are not durable yet from which on we wait no longer for more: a quarter of the
/// worker's window, so that three quarters are on their way while the first is being written.
pub(crate) const SETTLE_NOW_BYTES: u64 = essaim_proto::limits::OUTPUT_WINDOW_BYTES / 4;

/// Damaged pieces of an output that are told as one gap: each is read and checked before the next is sent, and these are
/// 16 MiB, a fraction of a second.
pub(crate) const DAMAGE_JOINED_MAX: usize = 256;

/// Output that could not be made durable is tried again after this time.
pub(crate) const SETTLE_RETRY: Duration = Duration::from_secs(1);

/// Changes of nodes, and of jobs, that are kept for slow watchers. A node changes some times an hour; jobs end by
/// hundreds in one batch. Beyond it a watcher is told how many it missed.
pub(crate) const NODE_CHANGES_MAX: usize = 1_024;
pub(crate) const JOB_CHANGES_MAX: usize = 4_096;

/// Addresses that one kind of door is open on: as many as a join line can name beside those of the first.
pub(crate) const DOORS_MAX: usize = 32;

/// Time that a shutdown gives to the last words of all sessions.
pub(crate) const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// Time that a store is waited for which a hub that has just ended may still hold,
pub(crate) const STORE_FREE_TIMEOUT: Duration = Duration::from_secs(2);
/// and how often it is tried.
pub(crate) const STORE_FREE_POLL: Duration = Duration::from_millis(20);

// A file counts as its key's for as long as it is kept.
const _: () = assert!(BLOB_GRACE_MS == essaim_core::limits::UPLOAD_COUNTED_MS);
const _: () = assert!(STDIN_KEPT_BYTES as u64 >= essaim_proto::limits::STDIN_WINDOW_BYTES);
