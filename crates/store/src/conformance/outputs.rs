//! Promises of the outputs: byte-exact, resumable, bounded.
//!
//! Deliberately not here: arbitrary cuts against a model (`outputs_model`).

use super::Open;
use crate::limits::READ_BYTES_MAX;
use crate::{Chunk, Lengths, OutputError, Outputs, StoreLimits};
use essaim_proto::api::Stream::{Stderr, Stdout};
use essaim_proto::{AttemptId, JobId, TaskId};

pub(crate) fn attempt(job: u64, task: u32, attempt: u32) -> AttemptId {
    AttemptId { job: JobId(job), task: TaskId(task), attempt }
}

const ONE: AttemptId = AttemptId { job: JobId(1), task: TaskId(1), attempt: 1 };

/// Byte at a position of an output whose bytes say where they stand.
fn byte_at(position: u64) -> u8 {
    (position % 251) as u8
}

fn pattern(from: u64, count: usize) -> Vec<u8> {
    (from..from + count as u64).map(byte_at).collect()
}

fn read(outputs: &Outputs, offset: u64, max: usize) -> Chunk {
    outputs.read(ONE, Stdout, offset, max).expect("read")
}

// Who asks too early, or for what was dropped whole, gets nothing and no error.
pub(crate) fn an_unknown_output_is_empty(open: Open) {
    let opened = open(StoreLimits::default());
    let outputs = &opened.store.outputs;
    assert_eq!(read(outputs, 5, 100), Chunk { offset: 5, bytes: vec![], dropped: false });
    assert_eq!(outputs.lengths(ONE), Lengths::default());
    outputs.drop_attempt(ONE);
    outputs.drop_job(JobId(1));
    outputs.drop_below(ONE, Stdout, 10);
    assert_eq!(outputs.append(ONE, Stdout, 0, b"").expect("nothing to store"), 0);
}

// Small and large pieces come back, each stream of each attempt for itself.
pub(crate) fn bytes_come_back(open: Open) {
    let opened = open(StoreLimits::default());
    let outputs = &opened.store.outputs;
    assert_eq!(outputs.append(ONE, Stdout, 0, b"hello ").expect("stored"), 6);
    assert_eq!(outputs.append(ONE, Stderr, 0, b"oops").expect("stored"), 4);
    assert_eq!(outputs.append(attempt(1, 1, 2), Stdout, 0, b"second try").expect("stored"), 10);
    assert_eq!(outputs.append(ONE, Stdout, 6, b"world").expect("stored"), 11);
    assert_eq!(read(outputs, 0, 100).bytes, b"hello world");
    assert_eq!(outputs.read(ONE, Stderr, 0, 100).expect("read").bytes, b"oops");
    assert_eq!(outputs.lengths(ONE), Lengths { stdout: 11, stderr: 4 });
    let large = pattern(0, 700_001);
    outputs.append(attempt(2, 1, 1), Stdout, 0, &large).expect("stored");
    assert_eq!(outputs.read(attempt(2, 1, 1), Stdout, 0, READ_BYTES_MAX).expect("read").bytes, large);
}

// A worker that was cut off sends again from where it knows: what is there is skipped, whatever it holds, and a resend
// that is all old changes nothing.
pub(crate) fn a_resend_is_skipped(open: Open) {
    let opened = open(StoreLimits::default());
    let outputs = &opened.store.outputs;
    outputs.append(ONE, Stdout, 0, b"abcdef").expect("stored");
    assert_eq!(outputs.append(ONE, Stdout, 3, b"defghi").expect("stored"), 9);
    assert_eq!(outputs.append(ONE, Stdout, 2, b"XYZ").expect("skipped"), 9);
    assert_eq!(outputs.append(ONE, Stdout, 9, b"").expect("nothing"), 9);
    assert_eq!(read(outputs, 0, 100).bytes, b"abcdefghi");
    assert_eq!(outputs.used_bytes(), 9);
}

// A gap is refused and says where to go on.
pub(crate) fn a_gap_is_refused(open: Open) {
    let opened = open(StoreLimits::default());
    let outputs = &opened.store.outputs;
    assert!(matches!(outputs.append(ONE, Stdout, 1, b"x"), Err(OutputError::Gap { length: 0, .. })));
    outputs.append(ONE, Stdout, 0, b"abc").expect("stored");
    let error = outputs.append(ONE, Stdout, 4, b"x").expect_err("gap");
    assert!(matches!(error, OutputError::Gap { attempt: ONE, stream: Stdout, offset: 4, length: 3 }), "{error}");
    assert!(!error.is_full());
    assert!(matches!(outputs.append(ONE, Stdout, u64::MAX, b"x"), Err(OutputError::Gap { .. })));
    assert_eq!(outputs.lengths(ONE).stdout, 3);
}

// A read is cut at the length, at `max` and at what one read gives; beyond the end there is nothing yet.
pub(crate) fn reads_are_cut(open: Open) {
    let opened = open(StoreLimits::default());
    let outputs = &opened.store.outputs;
    let length = READ_BYTES_MAX + 5_000;
    outputs.append(ONE, Stdout, 0, &pattern(0, length)).expect("stored");
    assert_eq!(read(outputs, 65_530, 20).bytes, pattern(65_530, 20));
    assert_eq!(read(outputs, 0, usize::MAX).bytes.len(), READ_BYTES_MAX);
    assert_eq!(read(outputs, length as u64 - 3, 100).bytes, pattern(length as u64 - 3, 3));
    assert!(read(outputs, 10, 0).bytes.is_empty());
    for offset in [length as u64, length as u64 + 1, u64::MAX] {
        assert_eq!(read(outputs, offset, usize::MAX), Chunk { offset, bytes: vec![], dropped: false });
    }
}

// Retention drops the beginning: a reader that asks for it begins at what is kept and is told so; offsets and lengths
// stay, and the program goes on printing.
pub(crate) fn what_is_dropped_is_said(open: Open) {
    let opened = open(StoreLimits::default());
    let outputs = &opened.store.outputs;
    let mut length = 0;
    for cut in [10, 5_000, 20_000, 100_000, 300_000, 300_000, 450_000] {
        length = outputs.append(ONE, Stdout, length, &pattern(length, 90_000)).expect("stored");
        length = outputs.append(ONE, Stdout, length, &pattern(length, 9)).expect("stored");
        outputs.drop_below(ONE, Stdout, cut);
        let chunk = read(outputs, 0, READ_BYTES_MAX);
        assert_eq!((chunk.offset, chunk.dropped), (cut.min(length), true));
        assert_eq!(chunk.bytes, pattern(chunk.offset, (length - chunk.offset) as usize));
        assert!(!read(outputs, cut, 10).dropped);
        assert_eq!(outputs.lengths(ONE).stdout, length);
        assert_eq!(outputs.used_bytes(), length - chunk.offset);
    }
    outputs.drop_below(ONE, Stdout, u64::MAX);
    assert_eq!(read(outputs, 0, 10), Chunk { offset: length, bytes: vec![], dropped: true });
    assert_eq!(outputs.append(ONE, Stdout, length, b"on").expect("stored"), length + 2);
    assert_eq!(read(outputs, length, 10).bytes, b"on");
}

// What is dropped is forgotten, its neighbours are not, and its room is there for others.
pub(crate) fn dropping_gives_room_back(open: Open) {
    let opened = open(StoreLimits { output_bytes: 1_000_000, ..StoreLimits::default() });
    let outputs = &opened.store.outputs;
    let ids = [attempt(1, 1, 1), attempt(1, 2, 1), attempt(1, 2, 2), attempt(2, 1, 1)];
    for id in ids {
        outputs.append(id, Stdout, 0, &[7; 200_000]).expect("stored");
        outputs.append(id, Stderr, 0, &[8; 1_000]).expect("stored");
    }
    assert_eq!(outputs.used_bytes(), 804_000);
    outputs.drop_attempt(ids[1]);
    assert_eq!(outputs.lengths(ids[1]), Lengths::default());
    assert_eq!(outputs.lengths(ids[2]), Lengths { stdout: 200_000, stderr: 1_000 });
    outputs.drop_job(JobId(1));
    assert_eq!(outputs.lengths(ids[2]), Lengths::default());
    assert_eq!(outputs.used_bytes(), 201_000);
    outputs.append(attempt(3, 1, 1), Stdout, 0, &[9; 700_000]).expect("room again");
    let kept = outputs.read(ids[3], Stdout, 0, READ_BYTES_MAX).expect("read").bytes;
    assert!(kept.iter().all(|byte| *byte == 7) && kept.len() == 200_000, "untouched by who came after");
}

// The limit is exact; a refused append stores nothing of it, and dropping makes room.
pub(crate) fn output_is_bounded(open: Open) {
    let opened = open(StoreLimits { output_bytes: 100_000, ..StoreLimits::default() });
    let outputs = &opened.store.outputs;
    outputs.append(ONE, Stdout, 0, &pattern(0, 99_990)).expect("stored");
    let error = outputs.append(ONE, Stdout, 99_990, &[0; 11]).expect_err("full");
    assert!(matches!(error, OutputError::Full { limit: 100_000 }) && error.is_full(), "{error}");
    assert!(matches!(outputs.append(attempt(2, 1, 1), Stdout, 0, &[0; 11]), Err(OutputError::Full { .. })));
    assert_eq!(outputs.lengths(ONE).stdout, 99_990);
    assert_eq!(outputs.append(ONE, Stdout, 99_980, &pattern(99_980, 20)).expect("ten are old"), 100_000);
    assert_eq!(outputs.append(ONE, Stdout, 0, &pattern(0, 1_000)).expect("all are old"), 100_000);
    outputs.drop_below(ONE, Stdout, 50_000);
    outputs.append(attempt(2, 1, 1), Stdout, 0, &[1; 50_000]).expect("room again");
    assert_eq!(read(outputs, 50_000, 100_000).bytes, pattern(50_000, 50_000));
}

// Programs print while people watch: each watcher of each stream sees every byte once and in place.
pub(crate) fn reads_while_writing_are_exact(open: Open) {
    const LENGTH: u64 = 400_000;
    let opened = open(StoreLimits::default());
    let outputs = &opened.store.outputs;
    std::thread::scope(|scope| {
        for job in 1..=3 {
            let id = attempt(job, 1, 1);
            scope.spawn(move || {
                let (mut at, mut size) = (0, 1);
                while at < LENGTH {
                    let count = size.min((LENGTH - at) as usize);
                    at = outputs.append(id, Stdout, at, &pattern(at + job, count)).expect("stored");
                    size = size * 7 % 9_973 + 1;
                }
            });
            for _ in 0..2 {
                scope.spawn(move || {
                    let mut at = 0;
                    while at < LENGTH {
                        let chunk = outputs.read(id, Stdout, at, 10_007).expect("read");
                        assert_eq!((chunk.offset, chunk.dropped), (at, false));
                        assert_eq!(chunk.bytes, pattern(at + job, chunk.bytes.len()));
                        at += chunk.bytes.len() as u64;
                    }
                });
            }
        }
    });
}
