//! A store that an earlier version wrote still opens, with all that was in it.
//!
//! `tests/data/N` are stores as version N of their databases left them, each recorded once and never changed. To record
//! the present version, after a new step of a migration and before it lands:
//! `ESSAIM_RECORD=N cargo test -p essaim-store --test old_folder`, with N the newest version of all databases; then give
//! `git add` the new folder, and `CHECKED` its number. What a version adds to a store goes into `fill` and, for the
//! folders that have it, into `check`.

use essaim_proto::api::Stream;
use essaim_proto::job::JobState;
use essaim_proto::{AttemptId, BlobHash, JobId, TaskId};
use essaim_store::{
    CatalogEnds, CatalogJob, CatalogQuery, CatalogRow, LeadError, Seq, Settle, Small, Store, StoreLimits,
};
use std::path::{Path, PathBuf};
use std::sync::mpsc;

/// The folders in `tests/data`.
const CHECKED: [u32; 2] = [1, 2];

fn recorded(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(version.to_string())
}

fn batch(n: u64) -> Vec<u8> {
    format!("batch {n};").repeat(n as usize).into_bytes()
}

fn attempt(job: u64) -> AttemptId {
    AttemptId { job: JobId(job), task: TaskId(1), attempt: 1 }
}

fn row(job: u64) -> CatalogRow {
    CatalogRow {
        job: JobId(job),
        owner: "ann".to_owned(),
        name: format!("Räder-{job}"),
        state: if job == 2 { JobState::Failed } else { JobState::Done },
        node: "node-1".to_owned(),
        submitted_ms: 1_000 * job,
        ended_ms: 1_000 * job + 500,
        attempt: attempt(job),
        view: format!("view of {job}").into_bytes(),
        output: (job == 1).then(|| Small { stdout: b"hello\n".to_vec(), stderr: b"careful\n".to_vec() }),
    }
}

fn job(row: CatalogRow) -> CatalogJob {
    CatalogJob {
        job: row.job,
        owner: row.owner,
        name: row.name,
        state: row.state,
        node: row.node,
        submitted_ms: row.submitted_ms,
        ended_ms: row.ended_ms,
        attempt: row.attempt,
        view: row.view,
    }
}

/// More than a small output, so that it is in a segment.
fn printed() -> Vec<u8> {
    (0..20_000_u32).map(|n| (n % 251) as u8).collect()
}

const BLOB: &[u8] = b"the bytes of a blob";

fn blob_hash() -> BlobHash {
    "c72e7431a00df65d76ede52aa22d723519867c75a7a4d6c72d165b8ad266c1d7".parse().expect("a hash")
}

/// How some tasks of an array ended: since version 2.
fn ends() -> CatalogEnds {
    CatalogEnds { job: JobId(4), first: TaskId(1), last: TaskId(50), body: b"how fifty tasks ended".to_vec() }
}

fn fill(store: &Store) {
    let term = store.lead.acquire("the recorder", 1_000, 500).expect("nobody leads");
    for n in 1..=9 {
        let (sender, receiver) = mpsc::channel();
        store.journal.append(Seq(n - 1), term, batch(n), Box::new(move |end| sender.send(end).expect("we wait")));
        receiver.recv().expect("told").expect("appended");
    }
    store.journal.snapshot(Seq(6), b"the state after six".to_vec()).expect("kept");
    store.journal.trim(Seq(4)).expect("trimmed");
    store.catalog.apply(Seq(8), &[row(1), row(2), row(3)], &[ends()]).expect("applied");
    store.outputs.append(attempt(3), Stream::Stdout, 0, &printed()).expect("appended");
    store.outputs.append(attempt(3), Stream::Stderr, 0, b"and a word").expect("appended");
    let (sender, receiver) = mpsc::channel();
    store.outputs.settle(attempt(3), Settle::Now, Box::new(move |end| sender.send(end).expect("we wait")));
    receiver.recv().expect("told").expect("settled");
    store.blobs.put(blob_hash(), BLOB).expect("put");
}

fn check(store: &Store, version: u32) {
    let found = store.journal.read(Seq(4), 1 << 20).expect("read");
    assert_eq!(found, (4..=9).map(|n| (Seq(n), batch(n))).collect::<Vec<_>>());
    store.journal.read(Seq(3), 1).expect_err("trimmed");
    assert_eq!(store.journal.last(), Seq(9));
    assert_eq!(store.journal.latest_snapshot().expect("read"), Some((Seq(6), b"the state after six".to_vec())));
    let held = store.lead.acquire("somebody", 1_400, 1).expect_err("held");
    assert!(matches!(&held, LeadError::HeldBy { holder, expires_ms: 1_500, .. } if holder == "the recorder"), "{held}");
    let catalog = &store.catalog;
    assert_eq!(catalog.applied().expect("read"), Seq(8));
    let all = CatalogQuery { limit: 10, text: Some("RÄDER".to_owned()), ..CatalogQuery::default() };
    assert_eq!(catalog.list(&all).expect("listed"), [job(row(3)), job(row(2)), job(row(1))]);
    assert_eq!(catalog.output(JobId(1)).expect("read"), row(1).output);
    assert_eq!(catalog.output(JobId(2)).expect("read"), None);
    let parts = catalog.ends_among(JobId(4), TaskId(7), TaskId(7), None).expect("read");
    let bodies: Vec<Vec<u8>> = parts.into_iter().map(|part| part.body).collect();
    assert_eq!(bodies, if version < 2 { Vec::new() } else { vec![ends().body] });
    for (stream, bytes) in [(Stream::Stdout, printed()), (Stream::Stderr, b"and a word".to_vec())] {
        let chunk = store.outputs.read(attempt(3), stream, 0, 1 << 20).expect("read");
        assert!(chunk.offset == 0 && chunk.bytes == bytes && !chunk.dropped, "{stream:?}");
    }
    assert_eq!(store.blobs.get(blob_hash(), 0, 100).expect("read").as_deref(), Some(BLOB));
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("made");
    for entry in std::fs::read_dir(from).expect("listed") {
        let path = entry.expect("listed").path();
        let name = path.file_name().expect("a name");
        match path.is_dir() {
            true => copy(&path, &to.join(name)),
            false if name == "store.lock" => (),
            false => _ = std::fs::copy(&path, to.join(name)).expect("copied"),
        }
    }
}

// Every recorded store is copied, opened by this version, holds exactly what was put in, and can be written to.
#[test]
fn an_old_data_folder_still_opens() {
    let place = tempfile::tempdir().expect("a folder");
    if let Ok(version) = std::env::var("ESSAIM_RECORD") {
        let store = Store::open(&place.path().join("new"), StoreLimits::default()).expect("a store");
        fill(&store);
        check(&store, u32::MAX);
        drop(store);
        let to = recorded(version.parse().expect("a number"));
        assert!(!to.exists(), "{} is recorded: it is never changed", to.display());
        copy(&place.path().join("new"), &to);
    }
    for version in CHECKED {
        let folder = place.path().join(version.to_string());
        copy(&recorded(version), &folder);
        for _ in 0..2 {
            check(&Store::open(&folder, StoreLimits::default()).expect("opened"), version);
        }
        let store = Store::open(&folder, StoreLimits::default()).expect("opened");
        let term = store.lead.acquire("the next hub", 1_500, 500).expect("expired");
        let (sender, receiver) = mpsc::channel();
        store.journal.append(Seq(9), term, batch(10), Box::new(move |end| sender.send(end).expect("we wait")));
        assert_eq!(receiver.recv().expect("told").expect("appended"), Seq(10));
    }
}
