//! The limits of the store, each with its reason.
//!
//! Back-ends check them; what an installation may choose is in [`StoreLimits`], the rest is constant.
//! Deliberately not here: quotas per key and retention, which are the hub's decisions.

use std::time::Duration;

/// Largest batch of the journal, in bytes. One million: below the request limit of every replicated engine that we
/// looked at (etcd takes 1.5 MiB), so that a batch which one back-end took is taken by all.
pub const BATCH_BYTES_MAX: usize = 1_000_000;

/// Batches that one read of the journal gives. Small batches must not make a reader reserve without bound: a row costs
/// some ten bytes beside its own.
pub const READ_BATCHES_MAX: usize = 4_096;

/// Bytes that one read of a blob or an output gives: some chunks of the wire, and no more than a peer may make us
/// reserve with one request.
pub const READ_BYTES_MAX: usize = 1 << 20;

/// Bytes of a stream that stay in memory before they are spilled to the spool. Most programs print less and never
/// touch the disk; one that prints a byte at a time costs one write in 16 384 prints.
pub const TAIL_BYTES_MAX: usize = 16 << 10;

/// Bytes of all tails together. Beyond it new output goes straight to the spool: a million finished tasks that each
/// printed a little must not fill the hub's memory.
pub const TAILS_BYTES_MAX: u64 = 64 << 20;

/// Largest output that travels with the record of its program's end, both streams together: one tail. Sixty of them fit a
/// batch of the journal.
pub const SMALL_BYTES_MAX: usize = TAIL_BYTES_MAX;

/// Unit in which the spool gives space to a stream. Four spilled tails; the index of a full 20 GB spool is then 300,000
/// numbers of 4 bytes. Space that a stream has not written yet is a hole and takes no disk.
pub const BLOCK_BYTES: usize = 64 << 10;

/// Largest run of bytes that the index of outputs on disk names, and that one checksum guards: a read of a byte checks at
/// most so many. The index of a full 20 GB store is then some 300,000 rows.
pub(crate) const EXTENT_BYTES_MAX: usize = 64 << 10;

/// Size of a segment of outputs. What retention drops at once: small beside 20 GB, large beside one output.
pub(crate) const SEGMENT_BYTES_MAX: u64 = 64 << 20;

/// Bytes that are written before they are made durable together. At 150 MB/s nobody waits longer than 0.1 s for the
/// bytes of others.
pub(crate) const ROUND_BYTES_MAX: usize = 16 << 20;

/// Attempts whose bytes are written together.
pub(crate) const ROUND_ATTEMPTS_MAX: usize = 4_096;

/// Unwritten bytes of one attempt that are written without waiting for more.
pub(crate) const EAGER_BYTES: u64 = 1 << 20;

/// How long a tail of at least [`TAIL_BYTES_MAX`] may wait for more bytes.
pub(crate) const GATHER: Duration = Duration::from_millis(100);

/// How long [`crate::Settle::Soon`] lets bytes gather. With the write it stays below a second.
pub(crate) const SOON: Duration = Duration::from_millis(700);

/// How long bytes stay in memory alone that nobody settles, or that were given away as a small output: long enough for
/// the record of an end to reach the catalog, short enough that they are not forgotten in a hub that runs for months.
pub(crate) const HOLD: Duration = Duration::from_secs(10);

/// After a failed write, the next try by itself. Who waits for room or settles tries at once.
pub(crate) const RETRY: Duration = Duration::from_secs(1);

/// Attempts of which everything is durable and whose index stays in memory for the next read or append. Ten thousand
/// programs that print a line now and then, and what people look at.
pub(crate) const ATTEMPTS_IDLE_MAX: usize = 16_384;

/// Segments that stay open for the next read: 4 GB of output, a sixteenth of the 1,024 files that a process may open.
pub(crate) const SEGMENTS_OPEN_MAX: usize = 64;

/// How often a backup copies the index of outputs because retention dropped a segment since the copy before. Copying
/// what is new takes less time than the minute between two runs of retention.
pub(crate) const OUTPUT_COPIES_MAX: usize = 5;

/// Attempts that are dropped in one transaction: others' writes come between.
pub(crate) const DROP_ATTEMPTS_MAX: usize = 256;

/// Attempts whose output is held. Twice the million tasks that a hub promises to hold, at some 300 bytes each.
pub const ATTEMPTS_MAX: usize = 2_000_000;

/// Rows that one list of the catalog gives: some pages of the wire. A row has a whole job's view.
pub const CATALOG_ROWS_MAX: usize = 4_096;

/// Bytes of ends of tasks after which a reader of the catalog is given no further part: it holds as much in memory.
pub const CATALOG_PARTS_BYTES: usize = 1 << 20;

/// How long a database waits for another process that holds it: a backup or a curious user with a shell.
pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Readers' connections that are kept open for the next read of a database. The hub reads with a handful of threads; a
/// connection costs some hundred kilobytes.
pub(crate) const READERS_IDLE_MAX: usize = 8;

/// Bytes of a database's log that stay on disk after it was copied back: writing over old bytes is cheaper to make
/// durable than making a file longer.
pub(crate) const WAL_BYTES_KEPT: u32 = 16 << 20;

/// Bytes of batches that one commit of the journal takes: more would make those in front wait for those behind.
pub(crate) const GROUP_BYTES_MAX: usize = 4 << 20;

/// Bytes written to the journal after which its log is copied back. Little enough to be copied between two commits.
pub(crate) const CHECKPOINT_BYTES: u64 = 4 << 20;

/// A piece of a snapshot: what an append may have to wait for, beside its own commit.
pub(crate) const PIECE_BYTES: usize = 1 << 20;

/// Bytes of rows that count no more that are taken away between two commits.
pub(crate) const SWEEP_BYTES: usize = 4 << 20;

/// Bytes written to learn why something else could not be written: some pages of a database.
pub(crate) const PROBE_BYTES: usize = 64 << 10;

/// The part of the journal's limit, in sixteenths, from which on new work is refused: what runs must still end.
pub(crate) const JOURNAL_NEAR_SIXTEENTHS: u64 = 14;

/// What an installation may choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreLimits {
    /// Batches kept in the journal together, in bytes. The driver writes a snapshot and trims long before.
    pub journal_bytes: u64,
    /// One snapshot, in bytes. Not part of `journal_bytes`, so that a full journal can still be snapshotted and trimmed.
    pub snapshot_bytes: u64,
    /// Blobs together, in bytes, those being written included.
    pub blob_bytes: u64,
    /// Output of all attempts together, in bytes.
    pub output_bytes: u64,
    /// Bytes of the disk that new work must leave free: what runs already can still be recorded to its end.
    pub reserve_bytes: u64,
}

impl Default for StoreLimits {
    /// Journal 256 MiB and snapshot 512 MiB: the state of a million tasks and the batches of some minutes. Blobs 2 GiB,
    /// which the memory back-end holds in memory. Output 20 GB on disk (DESIGN.md section 8). Reserve 64 MiB: the ends of
    /// ten thousand programs and a snapshot of some hundred thousand tasks.
    fn default() -> StoreLimits {
        StoreLimits {
            journal_bytes: 256 << 20,
            snapshot_bytes: 512 << 20,
            blob_bytes: 2 << 30,
            output_bytes: 20_000_000_000,
            reserve_bytes: 64 << 20,
        }
    }
}

const _: () = assert!(BLOCK_BYTES.is_multiple_of(TAIL_BYTES_MAX), "a tail that begins on its own size is one write");
const _: () = assert!(BATCH_BYTES_MAX < essaim_proto::limits::VALUE_BYTES_MAX, "a batch can travel in one frame");
