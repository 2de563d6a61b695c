//! What the spool does inside, where the port cannot see it: small outputs in memory, few blocks, limits of its own.
//!
//! Deliberately not here: the promises of the port, which `conformance` tests.

use super::*;
use essaim_proto::TaskId;

fn id(job: u64) -> AttemptId {
    AttemptId { job: JobId(job), task: TaskId(1), attempt: 1 }
}

fn spool() -> Spool {
    Spool::open(&std::env::temp_dir(), 100 << 20).expect("a spool")
}

fn blocks(spool: &Spool, job: u64) -> usize {
    read(&spool.find(id(job)).expect("known")).stdout.blocks.len()
}

// We want to know that a small output never touches the disk, and that one that prints a byte at a time, between the
// prints of another, has an index that depends on its length alone.
#[test]
fn small_outputs_stay_in_memory_and_many_prints_make_few_blocks() {
    let spool = spool();
    spool.append(id(1), Stream::Stdout, 0, &[1; TAIL_BYTES_MAX - 1]).expect("stored");
    assert_eq!(blocks(&spool, 1), 0);
    for n in 0..200_000 {
        spool.append(id(2), Stream::Stdout, n, b"a").expect("stored");
        spool.append(id(3), Stream::Stdout, n, b"b").expect("stored");
    }
    assert_eq!(blocks(&spool, 2), 3);
    assert_eq!(blocks(&spool, 3), 3);
    let chunk = spool.read(id(2), Stream::Stdout, 100_000, 50_000).expect("read");
    assert_eq!(chunk.bytes, vec![b'a'; 50_000]);
}

// We want to know that tails are bounded together: over their budget, output goes to blocks, byte by byte if need be,
// and reads the same.
#[test]
fn over_the_budget_of_tails_output_goes_to_the_file() {
    let mut spool = spool();
    spool.room.tails = Budget::new(10);
    for n in 0..100 {
        spool.append(id(1), Stream::Stdout, n, &[n as u8]).expect("stored");
    }
    assert_eq!(blocks(&spool, 1), 1);
    assert!(spool.room.tails.used() <= 10);
    let chunk = spool.read(id(1), Stream::Stdout, 0, 1_000).expect("read");
    assert_eq!(chunk.bytes, (0..100).collect::<Vec<u8>>());
    spool.drop_attempt(id(1));
    assert_eq!((spool.room.tails.used(), spool.used_bytes()), (0, 0));
}

// We want to know that the number of attempts is bounded and that known ones go on.
#[test]
fn too_many_attempts_are_refused() {
    let mut spool = spool();
    spool.attempts_max = 2;
    spool.append(id(1), Stream::Stdout, 0, b"x").expect("stored");
    spool.append(id(2), Stream::Stdout, 0, b"x").expect("stored");
    let error = spool.append(id(3), Stream::Stdout, 0, b"x").expect_err("refused");
    assert!(matches!(error, OutputError::TooManyAttempts { limit: 2 }));
    assert!(error.is_full());
    spool.append(id(2), Stream::Stdout, 1, b"y").expect("known");
    spool.drop_job(JobId(1));
    spool.append(id(3), Stream::Stdout, 0, b"x").expect("room again");
}

// We want to know that a job with more attempts than one step drops is dropped whole, and its neighbours are not.
#[test]
fn a_large_array_is_dropped_whole() {
    let spool = spool();
    for task in 1..=(3 * DROP_STEP as u32) {
        spool.append(AttemptId { task: TaskId(task), ..id(2) }, Stream::Stderr, 0, b"x").expect("stored");
    }
    spool.append(id(1), Stream::Stdout, 0, b"x").expect("stored");
    spool.append(id(3), Stream::Stdout, 0, b"x").expect("stored");
    spool.drop_job(JobId(2));
    assert_eq!(spool.used_bytes(), 2);
    assert_eq!(read(&spool.attempts).len(), 2);
}

// We want to know that an appender that looked an attempt up just before it was dropped does not write into the void:
// many threads append and drop, and in the end nothing is counted that nobody holds.
#[test]
fn appends_and_drops_at_once_leak_nothing() {
    let spool = spool();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..2_000 {
                    // A gap after a drop is the expected answer.
                    let length = spool.lengths(id(1)).stdout;
                    let _ = spool.append(id(1), Stream::Stdout, length, &[5; 30_000]);
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..2_000 {
                spool.drop_attempt(id(1));
                std::thread::yield_now();
            }
        });
    });
    spool.drop_attempt(id(1));
    assert_eq!((spool.used_bytes(), spool.room.tails.used()), (0, 0));
}

// We want to know that output that the system refuses leaves the stream as it was: /dev/full refuses every write.
#[test]
fn a_full_disk_changes_nothing() {
    let mut spool = spool();
    spool.append(id(1), Stream::Stdout, 0, b"before").expect("stored");
    spool.room.file.break_writes();
    let error = spool.append(id(1), Stream::Stdout, 6, &[1; 100_000]).expect_err("refused");
    assert!(matches!(error, OutputError::Io { .. }), "{error}");
    assert!(error.is_full());
    assert_eq!(spool.lengths(id(1)).stdout, 6);
    assert_eq!(spool.used_bytes(), 6);
    assert_eq!(spool.read(id(1), Stream::Stdout, 0, 100).expect("read").bytes, b"before");
}
