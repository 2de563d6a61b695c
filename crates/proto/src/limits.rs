//! The limits of the wire, each with its reason.
//!
//! Both ends check them: the receiver before it reserves memory, the sender so that it fails where the mistake is.
//! Deliberately not here: limits of rooms that never see a frame (each crate has its own page).

/// Bytes of the fixed header in front of each value: length u32, function u16, type u8, flags u8, id u64.
pub const HEADER_BYTES: usize = 16;

/// Largest value of one frame, in bytes. 1 MiB: room for a job with its small files inline, yet a peer that lies about
/// a length can make us reserve no more than this.
pub const VALUE_BYTES_MAX: usize = 1 << 20;

/// Bulk bytes (output, blobs) travel in chunks of at most this many bytes, so that a control frame waits for one chunk
/// at most: 64 KiB are 5 ms on a 100 Mbit/s link (NET.md section 2).
pub const CHUNK_BYTES: usize = 64 << 10;

/// Output bytes of one attempt that may be on their way without an acknowledgement. 1 MiB fills a fast link with a
/// millisecond of delay; a worker must keep that many bytes to send them again.
pub const OUTPUT_WINDOW_BYTES: u64 = 1 << 20;

/// Standard input bytes of one task on their way without an acknowledgement. People type; files go as blobs.
pub const STDIN_WINDOW_BYTES: u64 = 256 << 10;

/// Bytes of one blob transfer on their way without a credit.
pub const BLOB_WINDOW_BYTES: u64 = 1 << 20;

/// Files of a job with at most this many bytes in all travel inside the Submit itself and save two round trips.
pub const INLINE_BYTES_MAX: u64 = 64 << 10;

/// Largest single file of a job. 1 GiB: data sets of a class; larger ones belong in a share.
pub const BLOB_BYTES_MAX: u64 = 1 << 30;

/// Files of one job. A source tree of a course project has hundreds; a description of 2,000 fits one frame.
pub const JOB_FILES_MAX: usize = 2_000;

/// Bytes of all paths of one job together, so that the job and the command that compiles it fit one frame each.
pub const JOB_PATHS_BYTES_MAX: usize = 128 << 10;

/// Arguments and environment of a program together, in bytes: below the 128 KiB that Linux allows for one string and
/// inside one message of the launcher's socket.
pub const ARGUMENT_BYTES_MAX: usize = 96 << 10;

/// Length of a node's or key's name, in bytes: fits a table's column and a DNS label.
pub const NAME_BYTES_MAX: usize = 63;

/// Length of one path inside a job, in bytes.
pub const PATH_BYTES_MAX: usize = 1_024;

/// Entries of one page of a listing, so that a listing always fits a frame.
pub const PAGE_ENTRIES_MAX: usize = 200;

/// Tasks of one array: ten times what the largest field reports of arrays name, and its states still fit 4 MB.
pub const ARRAY_TASKS_MAX: u64 = 10_000_000;

/// Ranges that one set of tasks is written as, so that it fits a frame beside other things.
pub const TASK_RANGES_MAX: usize = 10_000;

/// Bytes of one line of an array's lines: it travels in a variable of the program's environment.
pub const LINE_BYTES_MAX: usize = 32 << 10;

/// Jobs that a job may wait for.
pub const AFTER_MAX: usize = 1_000;

/// Labels of a node, and labels that a job may ask for.
pub const LABELS_MAX: usize = 32;

/// Running tasks, and failed tasks, of an array that its view shows one by one.
pub const SHOWN_TASKS_MAX: usize = 20;

/// Ends of one [`crate::link::EndedMany`], and tasks of one [`crate::link::Start`].
pub const BATCH_TASKS_MAX: usize = 4_096;

/// Tasks of arrays that one message between the hub and a worker names, written as ranges of a few bytes that either side
/// works on one by one. A worker is leased some eight thousand at most, and lets twice as many wait; this is twice that
/// again, and a list of them takes a megabyte.
pub const NAMED_TASKS_MAX: u64 = 32_768;

/// Nesting of a value. Our own messages need 6; typed values of programs some more; a stack is finite.
pub const VALUE_DEPTH_MAX: usize = 32;

const _: () = assert!(CHUNK_BYTES + 4_096 <= VALUE_BYTES_MAX, "a chunk and its envelope fit one frame");
const _: () = assert!(CHUNK_BYTES as u64 <= OUTPUT_WINDOW_BYTES);
const _: () = assert!(INLINE_BYTES_MAX as usize + ARGUMENT_BYTES_MAX < VALUE_BYTES_MAX / 2);
const _: () = assert!(
    JOB_FILES_MAX * 160 + 2 * JOB_PATHS_BYTES_MAX + INLINE_BYTES_MAX as usize + 2 * ARGUMENT_BYTES_MAX
        < VALUE_BYTES_MAX
);
