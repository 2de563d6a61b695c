//! What outputs on disk do beside the promises of the port: restarts, crashes, full disks, damage, many small prints.
//!
//! Deliberately not here: the promises of the port, which `conformance` tests.

use super::*;

fn open(folder: &Path) -> Packed {
    let lock = Arc::new(FolderLock::take(folder).expect("locked"));
    Packed::open(folder, 1 << 30, lock).expect("opened")
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
