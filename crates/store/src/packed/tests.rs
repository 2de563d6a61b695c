//! What outputs on disk do beside the promises of the port: restarts, crashes, full disks, damage, many small prints.
//!
//! Deliberately not here: arbitrary steps and crashes (`crashes`), the promises of the port, which `conformance` tests.

use super::*;

#[path = "crash_tests.rs"]
mod crashes;

fn open(folder: &Path) -> Packed {
    open_with(folder, |_| {})
}

/// Opens with limits of its own.
fn open_with(folder: &Path, change: impl FnOnce(&mut Shared)) -> Packed {
    let lock = Arc::new(FolderLock::take(folder).expect("locked"));
    let mut shared = Shared::open(folder, 1 << 30, lock).expect("opened");
    change(&mut shared);
    Packed::start(shared, folder).expect("started")
}

/// The files of segments and their sizes.
fn segments(folder: &Path) -> Vec<(String, u64)> {
    let mut found: Vec<(String, u64)> = std::fs::read_dir(folder.join(segments::SEGMENTS))
        .expect("there")
        .map(|entry| entry.expect("listed"))
        .map(|entry| (entry.file_name().into_string().expect("a name"), entry.metadata().expect("metadata").len()))
        .collect();
    found.sort();
    found
}

fn id(job: u64, task: u32) -> AttemptId {
    AttemptId { job: JobId(job), task: essaim_proto::TaskId(task), attempt: 1 }
}

/// Settles and waits for the end; fails the test when it does not come.
fn settled(outputs: &Packed, id: AttemptId) -> Result<Lengths, OutputError> {
    let (told, end) = std::sync::mpsc::channel();
    outputs.settle(id, Settle::Now, Box::new(move |end| told.send(end).expect("the test waits")));
    end.recv_timeout(std::time::Duration::from_secs(30)).expect("settling ends")
}

// We want to know that what was settled, what was dropped and how much is in use outlives the process: we open the
// folder again, twice.
#[test]
fn a_restart_keeps_what_was_settled_and_what_was_dropped() {
    let folder = tempfile::tempdir().expect("a folder");
    let outputs = open(folder.path());
    outputs.append(id(1, 1), Stream::Stdout, 0, &[1; 200_000]).expect("stored");
    outputs.append(id(1, 1), Stream::Stderr, 0, &[2; 10]).expect("stored");
    outputs.append(id(2, 1), Stream::Stdout, 0, &[3; 100_000]).expect("stored");
    for job in [1, 2] {
        settled(&outputs, id(job, 1)).expect("settled");
    }
    outputs.drop_below(id(1, 1), Stream::Stdout, 100_000);
    outputs.drop_attempt(id(2, 1));
    drop(outputs);
    for _ in 0..2 {
        let again = open(folder.path());
        assert_eq!(again.used_bytes(), 100_010);
        assert_eq!(again.lengths(id(1, 1)), Lengths { stdout: 200_000, stderr: 10 });
        assert_eq!(again.durable(id(1, 1)), again.lengths(id(1, 1)));
        let chunk = again.read(id(1, 1), Stream::Stdout, 0, 10).expect("read");
        assert_eq!(chunk, Chunk { offset: 100_000, bytes: vec![1; 10], dropped: true });
        assert_eq!(again.read(id(1, 1), Stream::Stderr, 0, 100).expect("read").bytes, [2; 10]);
        assert_eq!(again.lengths(id(2, 1)), Lengths::default());
        assert_eq!(again.small(id(1, 1)), None);
    }
}

/// What a program prints that says where it stands.
fn text(from: u64, count: usize) -> Vec<u8> {
    (from..from + count as u64).map(|n| (n % 251) as u8).collect()
}

fn read_all(outputs: &Packed, id: AttemptId) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let chunk = outputs.read(id, Stream::Stdout, bytes.len() as u64, 64 << 10).expect("read");
        assert_eq!(chunk.offset, bytes.len() as u64);
        if chunk.bytes.is_empty() {
            return bytes;
        }
        bytes.extend(chunk.bytes);
    }
}

// We want to know that small outputs never touch the disk when the catalog takes them in time, whether somebody waits
// for them or not: we print, give away, release, and look at the files.
#[test]
fn small_outputs_do_not_touch_the_disk() {
    let folder = tempfile::tempdir().expect("a folder");
    let outputs = open(folder.path());
    let (told, ends) = std::sync::mpsc::channel();
    for job in 1..=100 {
        outputs.append(id(job, 1), Stream::Stdout, 0, &text(job, 5_000)).expect("stored");
        let told = told.clone();
        outputs.settle(id(job, 1), Settle::Soon, Box::new(move |end| told.send(end).expect("the test waits")));
        assert_eq!(outputs.small(id(job, 1)).expect("small").stdout, text(job, 5_000));
    }
    for job in 1..=100 {
        outputs.release(id(job, 1));
        assert_eq!(ends.recv().expect("told").expect("durable elsewhere").stdout, 5_000);
    }
    assert_eq!((outputs.used_bytes(), outputs.shared.tails.used()), (0, 0));
    drop(outputs);
    assert!(segments(folder.path()).is_empty());
}

// We want to know that an output that was written before it was released is forgotten all the same, rows and segment.
#[test]
fn a_small_output_that_was_written_is_released_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let outputs = open(folder.path());
    outputs.append(id(1, 1), Stream::Stdout, 0, b"abc").expect("stored");
    assert!(outputs.small(id(1, 1)).is_some());
    settled(&outputs, id(1, 1)).expect("settled");
    assert_eq!(outputs.small(id(1, 1)), None);
    outputs.release(id(1, 1));
    assert_eq!(outputs.used_bytes(), 0);
    drop(outputs);
    assert!(segments(folder.path()).is_empty());
    assert_eq!(open(folder.path()).lengths(id(1, 1)), Lengths::default());
}

// We want to know that tails are bounded together: over their budget bytes go to the disk, and read the same.
#[test]
fn over_the_budget_of_tails_output_goes_to_the_disk() {
    let folder = tempfile::tempdir().expect("a folder");
    let outputs = open_with(folder.path(), |shared| shared.tails = Budget::new(100));
    for n in 0..30 {
        outputs.append(id(1, 1), Stream::Stdout, n * 7, &text(n * 7, 7)).expect("stored");
        outputs.append(id(2, 1), Stream::Stderr, n * 7, &text(n * 7, 7)).expect("stored");
        assert!(outputs.shared.tails.used() <= 100);
    }
    outputs.append(id(3, 1), Stream::Stdout, 0, &text(0, 500)).expect("more than the budget, by itself");
    assert_eq!(read_all(&outputs, id(1, 1)), text(0, 210));
    assert_eq!(read_all(&outputs, id(3, 1)), text(0, 500));
    for job in 1..=3 {
        outputs.drop_job(JobId(job));
    }
    assert_eq!((outputs.used_bytes(), outputs.shared.tails.used()), (0, 0));
}

// We want to know that the number of attempts in memory is bounded, that known ones go on, and that those that the index
// knows are loaded again when somebody asks.
#[test]
fn attempts_leave_the_memory_and_come_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let outputs = open_with(folder.path(), |shared| (shared.idle_max, shared.attempts_max) = (3, 50));
    for job in 1..=40 {
        outputs.append(id(job, 1), Stream::Stdout, 0, &text(job, 100)).expect("stored");
    }
    for job in 1..=40 {
        settled(&outputs, id(job, 1)).expect("settled");
    }
    for job in 1..=40 {
        assert_eq!(outputs.read(id(job, 1), Stream::Stdout, 0, 1_000).expect("read").bytes, text(job, 100));
        assert_eq!(outputs.append(id(job, 1), Stream::Stdout, 100, &text(job + 100, 10)).expect("goes on"), 110);
        settled(&outputs, id(job, 1)).expect("settled");
        assert_eq!(outputs.read(id(job, 1), Stream::Stdout, 0, 1_000).expect("read").bytes, text(job, 110));
    }
    assert!(read(&outputs.shared.attempts).len() <= 5, "{}", read(&outputs.shared.attempts).len());
    for job in 100..150 {
        outputs.append(id(job, 1), Stream::Stdout, 0, b"x").map_or_else(
            |error| assert!(matches!(error, OutputError::TooManyAttempts { limit: 50 }) && error.is_full()),
            |_| assert!(job < 150),
        );
    }
    assert!(read(&outputs.shared.attempts).len() <= 50);
    outputs.append(id(100, 1), Stream::Stdout, 1, b"y").expect("known");
}

// We want to know that a disk without room is named, leaves nothing half visible as durable, keeps the bytes, and that
// all is well when there is room: the writes fail, then the syncs.
#[test]
fn a_full_disk_is_named_and_recovers() {
    let folder = tempfile::tempdir().expect("a folder");
    let outputs = open(folder.path());
    let broken = |step| outputs.shared.segments.broken.store(step, std::sync::atomic::Ordering::SeqCst);
    let mut length = outputs.append(id(1, 1), Stream::Stdout, 0, &text(0, 10)).expect("stored");
    settled(&outputs, id(1, 1)).expect("settled");
    for step in [1, 2] {
        let durable = length;
        length = outputs.append(id(1, 1), Stream::Stdout, length, &text(length, 50_000)).expect("in memory");
        broken(step);
        for _ in 0..2 {
            let error = settled(&outputs, id(1, 1)).expect_err("full");
            assert!(error.is_full(), "{error}");
            assert_eq!(outputs.durable(id(1, 1)).stdout, durable);
            assert_eq!(read_all(&outputs, id(1, 1)), text(0, length as usize));
        }
        broken(0);
        assert_eq!(settled(&outputs, id(1, 1)).expect("settled").stdout, length);
    }
    assert_eq!(outputs.used_bytes(), length);
    drop(outputs);
    let again = open(folder.path());
    assert_eq!(read_all(&again, id(1, 1)), text(0, length as usize));
}

// We want to know that who prints more than the memory takes while the disk is full is told, and loses nothing that was
// taken.
#[test]
fn a_full_disk_and_full_tails_refuse_to_append() {
    let folder = tempfile::tempdir().expect("a folder");
    let outputs = open_with(folder.path(), |shared| shared.tails = Budget::new(1_000));
    outputs.shared.segments.broken.store(1, std::sync::atomic::Ordering::SeqCst);
    outputs.append(id(1, 1), Stream::Stdout, 0, &text(0, 900)).expect("in memory");
    let error = outputs.append(id(1, 1), Stream::Stdout, 900, &text(900, 200)).expect_err("no room");
    assert!(error.is_full(), "{error}");
    assert_eq!((outputs.lengths(id(1, 1)).stdout, outputs.used_bytes()), (900, 900));
    outputs.shared.segments.broken.store(0, std::sync::atomic::Ordering::SeqCst);
    outputs.append(id(1, 1), Stream::Stdout, 900, &text(900, 200)).expect("room again");
    assert_eq!(read_all(&outputs, id(1, 1)), text(0, 1_100));
}

// We want to know that damage is named and that no wrong byte is given: a byte is changed, a segment is cut, one is gone.
#[test]
fn damage_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let outputs = open(folder.path());
    outputs.append(id(1, 1), Stream::Stdout, 0, &text(0, 200_000)).expect("stored");
    settled(&outputs, id(1, 1)).expect("settled");
    drop(outputs);
    let [(name, size)] = &segments(folder.path())[..] else { panic!("one segment") };
    let path = folder.path().join(segments::SEGMENTS).join(name);
    let whole = std::fs::read(&path).expect("read");
    let mut changed = whole.clone();
    changed[70_000] ^= 1;
    let cut = whole[..*size as usize - 1].to_vec();
    let damaged_from = |bytes: Option<&[u8]>| {
        std::fs::remove_file(&path).ok();
        bytes.into_iter().for_each(|bytes| std::fs::write(&path, bytes).expect("written"));
        let outputs = open(folder.path());
        let (mut at, mut damaged) = (0, Vec::new());
        loop {
            match outputs.read(id(1, 1), Stream::Stdout, at, 7_001) {
                Ok(chunk) if chunk.bytes.is_empty() => break,
                Ok(chunk) => {
                    assert_eq!(chunk.bytes, text(at, chunk.bytes.len()));
                    at += chunk.bytes.len() as u64;
                }
                Err(OutputReadError::Corrupt { offset, end, .. }) => {
                    assert_eq!(offset, at, "what stands before it is given");
                    damaged.push((offset, end));
                    at = end;
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(at, 200_000);
        damaged
    };
    assert_eq!(damaged_from(Some(&changed)), [(65_536, 131_072)]);
    assert_eq!(damaged_from(Some(&cut)), [(196_608, 200_000)]);
    assert_eq!(damaged_from(None), [(0, 65_536), (65_536, 131_072), (131_072, 196_608), (196_608, 200_000)]);
    assert_eq!(damaged_from(Some(&whole)), []);
}

// We want to know that segments are of a bounded size, that one in which nothing is kept is unlinked, that retention drops
// whole ones, oldest first, and that all this is known after a restart.
#[test]
fn segments_come_and_go() {
    let folder = tempfile::tempdir().expect("a folder");
    let small = |shared: &mut Shared| shared.segments.set_size_max(150_000);
    let outputs = open_with(folder.path(), small);
    for job in 1..=6 {
        outputs.append(id(job, 1), Stream::Stdout, 0, &text(job, 100_000)).expect("stored");
        settled(&outputs, id(job, 1)).expect("settled");
    }
    let before = segments(folder.path());
    assert!(before.len() >= 4 && before.iter().all(|(_, size)| *size <= 150_000), "{before:?}");
    outputs.drop_job(JobId(6));
    outputs.drop_attempt(id(5, 1));
    assert_eq!(outputs.used_bytes(), 400_000);
    let jobs = outputs.drop_oldest(300_000);
    assert!(!jobs.is_empty() && jobs[0] == JobId(1), "{jobs:?}");
    let used = outputs.used_bytes();
    assert!(used <= 300_000);
    let on_disk: u64 = segments(folder.path()).iter().map(|(_, size)| size).sum();
    assert!(on_disk <= 300_000, "{on_disk}");
    drop(outputs);
    let again = open_with(folder.path(), small);
    assert_eq!(again.used_bytes(), used);
    let chunk = again.read(id(1, 1), Stream::Stdout, 0, 10).expect("read");
    assert!(chunk.dropped && chunk.offset > 0);
    assert_eq!(chunk.bytes, text(1 + chunk.offset, chunk.bytes.len()));
    assert_eq!(again.lengths(id(1, 1)).stdout, 100_000);
    again.drop_oldest(0);
    assert_eq!((again.used_bytes(), segments(folder.path())), (0, vec![]));
    again.append(id(1, 1), Stream::Stdout, 100_000, b"on").expect("it goes on");
    settled(&again, id(1, 1)).expect("settled");
    assert_eq!(segments(folder.path()).len(), 1);
}

// We want to know that a job with more attempts than one transaction drops is dropped whole, in memory and on disk, and
// its neighbours are not.
#[test]
fn a_large_array_is_dropped_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let outputs = open_with(folder.path(), |shared| shared.idle_max = 10);
    for task in 1..=600 {
        outputs.append(id(2, task), Stream::Stderr, 0, b"x").expect("stored");
    }
    for job in [1, 3] {
        outputs.append(id(job, 1), Stream::Stdout, 0, b"x").expect("stored");
    }
    // All are written together.
    settled(&outputs, id(2, 1)).expect("settled");
    outputs.shared.queue.press().expect("written");
    for task in 601..=900 {
        outputs.append(id(2, task), Stream::Stderr, 0, b"x").expect("stored");
    }
    outputs.drop_job(JobId(2));
    assert_eq!(outputs.used_bytes(), 2);
    drop(outputs);
    let again = open(folder.path());
    assert_eq!(again.used_bytes(), 2);
    assert_eq!(again.lengths(id(2, 300)), Lengths::default());
}

// We want to know that who is told that output is durable may hold the last handle: the store ends without waiting for
// itself.
#[test]
fn the_last_handle_may_go_with_the_news() {
    let folder = tempfile::tempdir().expect("a folder");
    let outputs = Arc::new(open(folder.path()));
    outputs.append(id(1, 1), Stream::Stdout, 0, b"abc").expect("stored");
    let (told, end) = std::sync::mpsc::channel();
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let last = outputs.clone();
    let done = move |end: Result<Lengths, _>| {
        gone.recv().expect_err("the other handle is gone");
        drop(last);
        told.send(end.map(|lengths| lengths.stdout)).expect("the test waits");
    };
    outputs.settle(id(1, 1), Settle::Now, Box::new(done));
    drop(outputs);
    drop(go);
    assert_eq!(end.recv().expect("told").expect("settled"), 3);
}

// We want to know that a program that prints a little all the time leaves few rows, and that its bytes are not written
// again and again: every print is written by itself, without a disk.
#[test]
fn many_small_prints_make_few_rows() {
    for print in [1_usize, 10, 700, 5_000] {
        let mut output = Output::default();
        let (mut written, mut rows_max) = (0, 0);
        let total = 400_000 / print * print;
        for n in 0..total / print {
            output.tail.extend(text((n * print) as u64, print));
            let range = output.to_write(u64::MAX).expect("something");
            assert_eq!(output.tail_bytes(&range), text(range.start, (range.end - range.start) as usize));
            written += range.end - range.start;
            let length = (range.end - range.start) as u32;
            output.written(&[attempt::Extent { start: range.start, length, segment: 1, position: 0, sum: 0 }]);
            rows_max = rows_max.max(output.extents.len());
            assert!(output.tail.len() < TAIL_BYTES_MAX && output.unwritten() == 0);
        }
        assert_eq!((output.length(), output.durable), (total as u64, total as u64));
        assert!(output.extents.len() <= total / TAIL_BYTES_MAX + 16 && rows_max <= total / TAIL_BYTES_MAX + 16);
        assert!(written <= 16 * total as u64, "{print}: {written}");
    }
}
