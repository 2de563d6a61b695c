//! Promises of the outputs: byte-exact, resumable, bounded.
//!
//! Deliberately not here: arbitrary cuts against a model (`outputs_model`).

use super::Open;
use crate::limits::{READ_BYTES_MAX, SMALL_BYTES_MAX};
use crate::{Chunk, Lengths, OutputError, Outputs, Settle, Small, StoreLimits};
use essaim_proto::api::Stream::{Stderr, Stdout};
use essaim_proto::{AttemptId, JobId, TaskId};
use std::sync::mpsc;
use std::time::Duration;

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

/// Settles and waits for the end; fails the test when it does not come.
pub(crate) fn settled(outputs: &Outputs, attempt: AttemptId, when: Settle) -> Result<Lengths, OutputError> {
    let (told, end) = mpsc::channel();
    outputs.settle(attempt, when, Box::new(move |end| told.send(end).expect("the test waits")));
    end.recv_timeout(Duration::from_secs(30)).expect("settling ends")
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

// What was appended before is durable when settling ends, whether somebody waits for it or not; a second time there is
// nothing to do, and an output that nobody knows is settled at its length.
pub(crate) fn settled_is_durable(open: Open) {
    let opened = open(StoreLimits::default());
    let outputs = &opened.store.outputs;
    assert_eq!(settled(outputs, ONE, Settle::Now).expect("settled"), Lengths::default());
    assert_eq!(settled(outputs, ONE, Settle::Soon).expect("settled"), Lengths::default());
    assert_eq!(outputs.durable(ONE), Lengths::default());
    let mut length = 0;
    for (when, count) in [(Settle::Now, 10), (Settle::Soon, 20), (Settle::Now, 100_000), (Settle::Soon, 3)] {
        length = outputs.append(ONE, Stdout, length, &pattern(length, count)).expect("stored");
        outputs.append(ONE, Stderr, 0, b"oops").expect("stored");
        let lengths = Lengths { stdout: length, stderr: 4 };
        assert_eq!(settled(outputs, ONE, when).expect("settled"), lengths);
        assert_eq!(outputs.durable(ONE), lengths);
        assert_eq!(settled(outputs, ONE, Settle::Now).expect("settled"), lengths);
    }
    assert_eq!(read(outputs, 0, READ_BYTES_MAX).bytes, pattern(0, length as usize));
    outputs.drop_attempt(ONE);
    assert_eq!(outputs.durable(ONE), Lengths::default());
}

// Many ends are waited for at once: each is told once, in order, with lengths that never go back and hold what was
// appended before the call.
pub(crate) fn settling_is_told_in_order_and_once(open: Open) {
    let opened = open(StoreLimits::default());
    let outputs = &opened.store.outputs;
    let (told, ends) = mpsc::channel();
    for n in 0..200u64 {
        let length = outputs.append(ONE, Stdout, n * 50, &pattern(n * 50, 50)).expect("stored");
        let told = told.clone();
        let when = if n % 3 == 2 { Settle::Now } else { Settle::Soon };
        let done =
            move |end: Result<Lengths, _>| told.send((n, length, end.map(|end| end.stdout))).expect("the test waits");
        outputs.settle(ONE, when, Box::new(done));
    }
    drop(told);
    let mut before = 0;
    for n in 0..200 {
        let (number, length, end) = ends.recv_timeout(Duration::from_secs(30)).expect("settling ends");
        let end = end.expect("settled");
        assert_eq!(number, n);
        assert!(end >= length && end >= before, "{end} after {before}, with {length} appended");
        before = end;
    }
    ends.recv_timeout(Duration::from_secs(30)).expect_err("each is told once");
}

// A program that printed little: all of it at once, up to the limit of both streams together and no further.
pub(crate) fn a_small_output_travels_whole(open: Open) {
    let opened = open(StoreLimits::default());
    let outputs = &opened.store.outputs;
    assert_eq!(outputs.small(ONE), Some(Small::default()));
    outputs.append(ONE, Stdout, 0, &pattern(0, 10_000)).expect("stored");
    outputs.append(ONE, Stderr, 0, &pattern(7, SMALL_BYTES_MAX - 10_000)).expect("stored");
    let small = Small { stdout: pattern(0, 10_000), stderr: pattern(7, SMALL_BYTES_MAX - 10_000) };
    assert_eq!(outputs.small(ONE), Some(small.clone()));
    assert_eq!(outputs.small(ONE), Some(small), "it is still there");
    assert_eq!(read(outputs, 0, 100).bytes, pattern(0, 100));
    outputs.append(ONE, Stdout, 10_000, b"x").expect("stored");
    assert_eq!(outputs.small(ONE), None);
    let other = attempt(1, 1, 2);
    outputs.append(other, Stdout, 0, b"abc").expect("stored");
    outputs.drop_below(other, Stdout, 1);
    assert_eq!(outputs.small(other), None, "a part of it is not the whole");
}

// What the end's record holds is forgotten here and gives its room back, also while it is being settled.
pub(crate) fn a_released_output_is_forgotten(open: Open) {
    let opened = open(StoreLimits { output_bytes: 1_000, ..StoreLimits::default() });
    let outputs = &opened.store.outputs;
    let (told, end) = mpsc::channel();
    outputs.append(ONE, Stdout, 0, &[1; 600]).expect("stored");
    outputs.append(ONE, Stderr, 0, &[2; 400]).expect("stored");
    outputs.settle(ONE, Settle::Soon, Box::new(move |end| told.send(end).expect("the test waits")));
    assert!(outputs.small(ONE).is_some());
    outputs.release(ONE);
    assert_eq!((outputs.lengths(ONE), outputs.used_bytes()), (Lengths::default(), 0));
    assert_eq!(read(outputs, 0, 10), Chunk::default());
    let end = end.recv_timeout(Duration::from_secs(30)).expect("settling ends").expect("durable elsewhere");
    assert_eq!(end, Lengths { stdout: 600, stderr: 400 });
    outputs.release(ONE);
    outputs.append(attempt(2, 1, 1), Stdout, 0, &[3; 1_000]).expect("room again");
}

// Releasing forgets nothing that the caller has not got: a large output, one that was never asked for, one that grew.
pub(crate) fn what_was_not_given_is_not_released(open: Open) {
    let opened = open(StoreLimits::default());
    let outputs = &opened.store.outputs;
    let [large, unasked, grown] = [attempt(1, 1, 1), attempt(1, 2, 1), attempt(1, 3, 1)];
    outputs.append(large, Stdout, 0, &pattern(0, 100_000)).expect("stored");
    assert_eq!(outputs.small(large), None);
    outputs.append(unasked, Stdout, 0, b"abc").expect("stored");
    outputs.append(grown, Stdout, 0, b"abc").expect("stored");
    assert!(outputs.small(grown).is_some());
    outputs.append(grown, Stderr, 0, b"d").expect("stored");
    for id in [large, unasked, grown] {
        outputs.release(id);
    }
    assert_eq!(outputs.lengths(large).stdout, 100_000);
    assert_eq!(outputs.lengths(unasked).stdout, 3);
    assert_eq!(outputs.lengths(grown), Lengths { stdout: 3, stderr: 1 });
    assert_eq!(outputs.used_bytes(), 100_007);
}

// Retention: the oldest bytes go first, whose they were is said, lengths stay, a reader is told, and the rest is whole.
pub(crate) fn the_oldest_goes_first(open: Open) {
    let opened = open(StoreLimits::default());
    let outputs = &opened.store.outputs;
    for job in 1..=5 {
        outputs.append(attempt(job, 1, 1), Stdout, 0, &pattern(job, 50_000)).expect("stored");
        outputs.append(attempt(job, 2, 1), Stderr, 0, &pattern(job, 50_000)).expect("stored");
        settled(outputs, attempt(job, 1, 1), Settle::Now).expect("settled");
        settled(outputs, attempt(job, 2, 1), Settle::Now).expect("settled");
    }
    assert!(outputs.drop_oldest(500_000).is_empty());
    assert_eq!(outputs.used_bytes(), 500_000);
    let jobs = outputs.drop_oldest(240_000);
    let last = *jobs.last().expect("some lost bytes");
    assert!(outputs.used_bytes() <= 240_000 && last >= JobId(3));
    assert_eq!(jobs, (1..=last.0).map(JobId).collect::<Vec<_>>());
    let mut held = 0;
    for job in 1..=5 {
        for (task, stream) in [(1, Stdout), (2, Stderr)] {
            let id = attempt(job, task, 1);
            let chunk = outputs.read(id, stream, 0, 50_000).expect("read");
            assert_eq!(chunk.dropped, chunk.offset > 0);
            assert!(!chunk.dropped || jobs.contains(&id.job));
            assert_eq!(chunk.bytes, pattern(job + chunk.offset, 50_000 - chunk.offset as usize));
            assert_eq!(outputs.lengths(id), outputs.durable(id));
            assert_eq!(outputs.lengths(id).stdout + outputs.lengths(id).stderr, 50_000);
            held += chunk.bytes.len() as u64;
        }
    }
    assert_eq!(outputs.used_bytes(), held);
    outputs.append(attempt(1, 1, 1), Stdout, 50_000, b"on").expect("it goes on");
    outputs.drop_oldest(0);
    assert_eq!(outputs.used_bytes(), 0);
    let end = Chunk { offset: 50_002, bytes: vec![], dropped: true };
    assert_eq!(outputs.read(attempt(1, 1, 1), Stdout, 0, 10).expect("read"), end);
    assert_eq!(outputs.append(attempt(1, 1, 1), Stdout, 50_002, b"!").expect("it goes on"), 50_003);
}

/// Output of three jobs, of which one tried twice, half of it durable.
pub(crate) fn print_some(outputs: &Outputs) {
    for id in [attempt(1, 1, 1), attempt(2, 1, 1), attempt(2, 1, 2), attempt(3, 1, 1)] {
        outputs.append(id, Stdout, 0, &pattern(id.job.0, 30_000)).expect("stored");
        settled(outputs, id, Settle::Now).expect("settled");
        outputs.append(id, Stderr, 0, &pattern(0, 100)).expect("stored");
    }
    outputs.drop_below(attempt(3, 1, 1), Stdout, u64::MAX);
}

/// What a state does not know that ends at job 2, of which it knows one try, goes, and its numbers begin anew.
pub(crate) fn check_unknown(outputs: &Outputs) {
    assert_eq!(outputs.drop_unknown(JobId(3), &[attempt(2, 1, 2)]).expect("nothing to do"), 0);
    assert_eq!(outputs.drop_unknown(JobId(2), &[attempt(1, 1, 1), attempt(2, 1, 1)]).expect("dropped"), 2);
    for gone in [attempt(2, 1, 2), attempt(3, 1, 1)] {
        assert_eq!(outputs.lengths(gone), Lengths::default());
        assert_eq!(outputs.append(gone, Stdout, 0, b"anew").expect("stored"), 4);
        assert_eq!(outputs.read(gone, Stdout, 0, 10).expect("read").bytes, b"anew");
    }
    for kept in [attempt(1, 1, 1), attempt(2, 1, 1)] {
        assert_eq!(outputs.lengths(kept), Lengths { stdout: 30_000, stderr: 100 });
        assert_eq!(outputs.read(kept, Stdout, 0, 30_000).expect("read").bytes, pattern(kept.job.0, 30_000));
    }
    assert_eq!(outputs.used_bytes(), 2 * 30_100 + 2 * 4);
    assert_eq!(outputs.drop_unknown(JobId(0), &[]).expect("dropped"), 4);
    assert_eq!(outputs.used_bytes(), 0);
    assert_eq!(outputs.drop_unknown(JobId(u64::MAX), &[attempt(1, 1, u32::MAX)]).expect("nothing is beyond"), 0);
}

// Outputs that are newer than the state that names them: what it does not know goes, and nothing else.
pub(crate) fn the_unknown_is_dropped(open: Open) {
    let opened = open(StoreLimits::default());
    print_some(&opened.store.outputs);
    check_unknown(&opened.store.outputs);
}

// Threads print and settle while others drop what they print: every settling ends, and nothing is counted that nobody
// holds.
pub(crate) fn settling_while_others_print_and_drop_is_told(open: Open) {
    let opened = open(StoreLimits::default());
    let outputs = &opened.store.outputs;
    let (told, ends) = mpsc::channel();
    std::thread::scope(|scope| {
        for job in 1..=3 {
            let told = told.clone();
            scope.spawn(move || {
                for n in 0..100u64 {
                    let id = attempt(job, 1, 1);
                    let length = outputs.lengths(id).stdout;
                    // A gap after a drop is the expected answer.
                    let _ = outputs.append(id, Stdout, length, &pattern(length, (n * 301 % 20_011) as usize));
                    let told = told.clone();
                    let when = if n % 10 == 0 { Settle::Now } else { Settle::Soon };
                    outputs.settle(id, when, Box::new(move |end| told.send(end).expect("the test waits")));
                }
            });
        }
        scope.spawn(|| {
            for n in 0..60 {
                match n % 3 {
                    0 => outputs.drop_attempt(attempt(n % 2 + 1, 1, 1)),
                    1 => outputs.drop_below(attempt(3, 1, 1), Stdout, n * 1_000),
                    _ => drop(outputs.drop_oldest(300_000)),
                }
                std::thread::yield_now();
            }
        });
    });
    drop(told);
    for _ in 0..300 {
        ends.recv_timeout(Duration::from_secs(30)).expect("settling ends").expect("settled");
    }
    for job in 1..=3 {
        let id = attempt(job, 1, 1);
        let (length, mut at) = (outputs.lengths(id).stdout, 0);
        while at < length {
            let chunk = outputs.read(id, Stdout, at, READ_BYTES_MAX).expect("read");
            assert_eq!(chunk.bytes, pattern(chunk.offset, chunk.bytes.len()));
            at = chunk.offset + chunk.bytes.len() as u64;
            assert!(at == length || !chunk.bytes.is_empty(), "a hole at {at} of {length}");
        }
        outputs.drop_job(JobId(job));
    }
    assert_eq!(outputs.used_bytes(), 0);
}
