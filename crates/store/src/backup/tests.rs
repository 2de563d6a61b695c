//! A backup is a store of one moment; restored, it is that store. What is wrong is named, and then there is no copy.
//!
//! Deliberately not here: faults of the parts (`tests`).

use super::{Copied, backup, restore};
use crate::conformance::catalog::row;
use crate::conformance::journal::{append, lead};
use crate::{BackupError, CatalogQuery, OpenError, Seq, Settle, Store, StoreLimits};
use essaim_proto::api::Stream;
use essaim_proto::{AttemptId, BlobHash, JobId, TaskId};
use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().expect("a folder"))
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Everything in the place: a copy that failed leaves nothing behind.
    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).expect("listed");
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("listed").file_name().into_string().expect("text")).collect();
        names.sort();
        names
    }
}

fn open(folder: &Path) -> Store {
    Store::open(folder, StoreLimits::default()).expect("a store")
}

fn batch(n: u64) -> Vec<u8> {
    vec![n as u8; 3_000]
}

/// A store with batches 11 to 30, a snapshot at 20 and the jobs that ended up to 25.
fn filled(folder: &Path) -> Store {
    let store = open(folder);
    let term = lead(&store);
    for n in 0..30 {
        append(&store.journal, n, term, &batch(n + 1)).expect("appended");
    }
    store.journal.snapshot(Seq(20), vec![8; 2_500_000]).expect("kept");
    store.journal.trim(Seq(11)).expect("trimmed");
    for n in 1..=5 {
        store.catalog.apply(Seq(n * 5), &[row(n)], &[]).expect("applied");
    }
    store.outputs.append(attempt(), Stream::Stdout, 0, &printed()).expect("appended");
    settle(&store);
    store.blobs.put(BlobHash(*blake3::hash(BLOB).as_bytes()), BLOB).expect("put");
    store
}

const BLOB: &[u8] = b"a file of a job";

fn attempt() -> AttemptId {
    AttemptId { job: JobId(6), task: TaskId(1), attempt: 1 }
}

fn printed() -> Vec<u8> {
    (0..200_000_u32).map(|n| (n % 249) as u8).collect()
}

fn settle(store: &Store) {
    let (sender, receiver) = mpsc::channel();
    store.outputs.settle(attempt(), Settle::Now, Box::new(move |end| sender.send(end).expect("we wait")));
    receiver.recv().expect("told").expect("durable");
}

fn check(store: &Store) {
    let found = store.journal.read(Seq(11), usize::MAX).expect("read");
    assert_eq!(found, (11..=30).map(|n| (Seq(n), batch(n))).collect::<Vec<_>>());
    assert_eq!(store.journal.latest_snapshot().expect("read"), Some((Seq(20), vec![8; 2_500_000])));
    assert_eq!(store.catalog.applied().expect("read"), Seq(25));
    assert_eq!(jobs(store), [5, 4, 3, 2, 1]);
    assert_eq!(store.catalog.output(JobId(4)).expect("read"), row(4).output);
    assert_eq!(store.outputs.read(attempt(), Stream::Stdout, 0, 1 << 20).expect("read").bytes, printed());
    let blob = store.blobs.get(BlobHash(*blake3::hash(BLOB).as_bytes()), 0, 1_000).expect("read");
    assert_eq!(blob.as_deref(), Some(BLOB));
}

fn jobs(store: &Store) -> Vec<u64> {
    let all = CatalogQuery { limit: 10_000, ..CatalogQuery::default() };
    store.catalog.list(&all).expect("listed").iter().map(|job| job.job.0).collect()
}

// There and back, while the store is open and after it is closed: all of it is there. A backup can itself be opened.
#[test]
fn a_store_comes_back() {
    let place = Place::new();
    let store = filled(&place.at("store"));
    let copied = backup(&place.at("store"), &place.at("new/backup")).expect("copied");
    assert!(copied.last == Seq(30) && copied.bytes > 2_500_000, "{copied:?}");
    check(&store);
    drop(store);
    let again = backup(&place.at("store"), &place.at("backup-2")).expect("copied at rest");
    assert_eq!(again.last, Seq(30));
    let Copied { last, .. } = restore(&place.at("new/backup"), &place.at("restored")).expect("restored");
    assert_eq!(last, Seq(30));
    let restored = open(&place.at("restored"));
    check(&restored);
    let term = restored.lead.acquire("tester", 5, 5).expect("its own");
    assert_eq!(append(&restored.journal, 30, term, b"on").expect("appended"), Seq(31));
    check(&open(&place.at("backup-2")));
    assert_eq!(place.names(), ["backup-2", "new", "restored", "store"]);
}

// A hub works on while backups are made: each is a beginning of its journal, and its catalog is not ahead of it.
#[test]
fn a_backup_of_a_working_store_is_of_one_moment() {
    let place = Place::new();
    let store = open(&place.at("store"));
    let term = lead(&store);
    let (stop, said) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0;
            while !stop.load(Ordering::SeqCst) {
                n = append(&store.journal, n, term, &batch(n + 1)).expect("appended").0;
                store.catalog.apply(Seq(n), &[row(n)], &[]).expect("applied");
                said.store(n, Ordering::SeqCst);
                if n.is_multiple_of(50) {
                    store.journal.snapshot(Seq(n), vec![n as u8; 1_500_000]).expect("kept");
                    store.journal.trim(Seq(n - 10)).expect("trimmed");
                }
            }
        });
        for round in 0..6 {
            let before = said.load(Ordering::SeqCst);
            let to = place.at(&format!("backup-{round}"));
            let copied = backup(&place.at("store"), &to).expect("copied");
            assert!(copied.last.0 >= before);
            let copy = open(&to);
            assert_eq!(copy.journal.last(), copied.last);
            let (at, state) = copy.journal.latest_snapshot().expect("read").unwrap_or_default();
            assert!(state.iter().all(|byte| *byte == at.0 as u8));
            let mut next = at.next();
            for (seq, bytes) in copy.journal.read(next, usize::MAX).expect("read") {
                assert!(seq == next && bytes == batch(seq.0));
                next = next.next();
            }
            assert_eq!(next, copied.last.next());
            assert!(copy.catalog.applied().expect("read") <= copied.last);
            assert!(jobs(&copy).first().is_none_or(|newest| *newest <= copied.last.0));
        }
        stop.store(true, Ordering::SeqCst);
    });
}

// The catalog was ahead of the copied journal: what came from beyond its end is taken away, so that it can come again.
#[test]
fn a_catalog_ahead_of_its_journal_is_cut() {
    let place = Place::new();
    drop(filled(&place.at("store")));
    let ahead = "UPDATE meta SET applied = 33; UPDATE job SET applied = 33 WHERE id = 5";
    Connection::open(place.at("store/catalog.db")).expect("opened").execute_batch(ahead).expect("changed");
    backup(&place.at("store"), &place.at("backup")).expect("copied");
    let store = open(&place.at("backup"));
    assert_eq!(jobs(&store), [4, 3, 2, 1]);
    assert_eq!(store.catalog.applied().expect("read"), Seq(20), "it may have ended anywhere between 20 and 33");
    assert_eq!(store.catalog.job(JobId(5)).expect("read"), None);
    store.catalog.apply(Seq(31), &[row(5)], &[]).expect("applied again");
    assert_eq!(jobs(&store), [5, 4, 3, 2, 1]);
}

// Nothing is overwritten: not a folder with a file in it, not a store, least of all one in use. An empty folder is fine.
#[test]
fn nothing_is_overwritten() {
    let place = Place::new();
    let store = filled(&place.at("store"));
    std::fs::create_dir(place.at("backup")).expect("made");
    backup(&place.at("store"), &place.at("backup")).expect("an empty folder is no harm");
    let refused = backup(&place.at("store"), &place.at("backup")).expect_err("there is one");
    assert!(matches!(&refused, BackupError::NotEmpty { folder } if *folder == place.at("backup")), "{refused:?}");
    let refused = restore(&place.at("backup"), &place.at("store")).expect_err("in use");
    assert!(matches!(refused, BackupError::Open(OpenError::InUse { .. })), "{refused:?}");
    drop(store);
    let refused = restore(&place.at("backup"), &place.at("store")).expect_err("a store is there");
    assert!(matches!(refused, BackupError::NotEmpty { .. }), "{refused:?}");
    assert!(refused.to_string().contains("nothing is overwritten"), "{refused}");
    check(&open(&place.at("store")));
    assert_eq!(place.names(), ["backup", "store"]);
}

// There is nothing to copy, or it is damaged, cut or newer: each has its name, and no copy has a good one.
#[test]
fn only_what_is_good_is_copied() {
    let place = Place::new();
    let missing = backup(&place.at("nowhere"), &place.at("backup")).expect_err("no store");
    assert!(matches!(missing, BackupError::NoStore { .. }), "{missing:?}");
    type Is = fn(&BackupError) -> bool;
    let damaged: Is = |error| matches!(error, BackupError::Damaged { .. });
    let cut: Is = |error| matches!(error, BackupError::Open(OpenError::Cut { .. }));
    let newer: Is = |error| matches!(error, BackupError::Open(OpenError::Newer { .. }));
    for (file, sql, expected) in [
        ("journal.db", "UPDATE batch SET bytes = zeroblob(9) WHERE seq = 30", damaged),
        ("journal.db", "DELETE FROM batch WHERE seq = 25", damaged),
        ("journal.db", "UPDATE piece SET bytes = zeroblob(9) WHERE number = 2", damaged),
        ("journal.db", "DELETE FROM batch WHERE seq = 30", cut),
        ("journal.db", "PRAGMA user_version = 7", newer),
        ("catalog.db", "PRAGMA user_version = 7", newer),
    ] {
        let place = Place::new();
        drop(filled(&place.at("store")));
        Connection::open(place.at("store").join(file)).expect("opened").execute_batch(sql).expect("changed");
        let error = backup(&place.at("store"), &place.at("backup")).expect_err(sql);
        assert!(expected(&error), "{sql}: {error:?}");
        let error = restore(&place.at("store"), &place.at("other")).expect_err(sql);
        assert!(expected(&error), "{sql}: {error:?}");
        assert_eq!(place.names(), ["store"], "nothing is left of the copy");
    }
    // Bytes of the catalog that no checksum of ours covers: the database's own check has them.
    drop(filled(&place.at("store")));
    let path = place.at("store/catalog.db");
    let mut bytes = std::fs::read(&path).expect("read");
    bytes[4_096..8_192].fill(0xa5);
    std::fs::write(&path, bytes).expect("written");
    let error = backup(&place.at("store"), &place.at("backup")).expect_err("damaged");
    let is_named = matches!(&error, BackupError::Open(OpenError::Corrupt { .. }) | BackupError::Damaged { .. });
    assert!(is_named && error.to_string().contains("store/catalog.db"), "{error:?}");
    assert_eq!(place.names(), ["store"]);
}

// What programs printed and blobs are checked too: a flipped byte is found, and the file is named.
#[test]
fn a_damaged_file_is_not_copied() {
    for folder in ["outputs", "blobs"] {
        let place = Place::new();
        drop(filled(&place.at("store")));
        let path = a_file(&place.at("store").join(folder)).expect("a file");
        let mut bytes = std::fs::read(&path).expect("read");
        bytes[7] ^= 1;
        std::fs::write(&path, bytes).expect("written");
        let error = backup(&place.at("store"), &place.at("backup")).expect_err("damaged");
        assert!(matches!(&error, BackupError::Open(OpenError::Corrupt { .. })), "{error:?}");
        let name = path.file_name().expect("a name").to_str().expect("text");
        assert!(error.to_string().contains(name), "{error}");
        assert_eq!(place.names(), ["store"]);
    }
}

/// A file somewhere below `folder`.
fn a_file(folder: &Path) -> Option<PathBuf> {
    let mut paths = std::fs::read_dir(folder).expect("listed").map(|entry| entry.expect("listed").path());
    paths.find_map(|path| if path.is_dir() { a_file(&path) } else { Some(path) })
}
