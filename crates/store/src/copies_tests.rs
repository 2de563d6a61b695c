//! Outputs and blobs in a backup: all of what was settled, while the store is in use; damage is named.
//!
//! Deliberately not here: the databases of a backup (`backup`).

use crate::conformance::outputs::{attempt, settled};
use crate::{BackupError, OpenError, Settle, Store, StoreLimits, backup, restore};
use essaim_proto::api::Stream::{Stderr, Stdout};
use essaim_proto::{BlobHash, JobId};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

fn open(folder: &Path) -> Store {
    Store::open(folder, StoreLimits::default()).expect("a store")
}

fn text(from: u64, count: usize) -> Vec<u8> {
    (from..from + count as u64).map(|n| (n % 251) as u8).collect()
}

fn check(store: &Store, hash: BlobHash) {
    let chunk = store.outputs.read(attempt(1, 1, 1), Stdout, 0, 1 << 20).expect("read");
    assert!((chunk.offset, chunk.dropped) == (7_000, true) && chunk.bytes == text(7_000, 293_000));
    assert_eq!(store.outputs.read(attempt(1, 1, 1), Stderr, 0, 100).expect("read").bytes, b"oops");
    assert_eq!(store.blobs.get(hash, 0, 100).expect("read"), Some(b"a blob".to_vec()));
    assert_eq!((store.outputs.used_bytes(), store.blobs.used_bytes()), (293_004, 6));
}

// We want to know that outputs and blobs come back, that neither of the two changes with the other from then on, and that
// files that never change cost no space: we go on with both, and look at one file.
#[test]
fn outputs_and_blobs_come_back() {
    let place = tempfile::tempdir().expect("a folder");
    let [first, copy, second] = ["first", "copy", "second"].map(|name| place.path().join(name));
    let store = open(&first);
    let hash = BlobHash::of(b"a blob");
    store.blobs.put(hash, b"a blob").expect("stored");
    store.outputs.append(attempt(1, 1, 1), Stdout, 0, &text(0, 300_000)).expect("stored");
    store.outputs.append(attempt(1, 1, 1), Stderr, 0, b"oops").expect("stored");
    settled(&store.outputs, attempt(1, 1, 1), Settle::Now).expect("settled");
    store.outputs.drop_below(attempt(1, 1, 1), Stdout, 7_000);
    backup(&first, &copy).expect("copied");
    restore(&copy, &second).expect("restored");
    let other = open(&second);
    for store in [&store, &other] {
        check(store, hash);
        store.outputs.append(attempt(2, 1, 1), Stdout, 0, &text(0, 100_000)).expect("stored");
        settled(&store.outputs, attempt(2, 1, 1), Settle::Now).expect("settled");
        store.outputs.drop_job(JobId(2));
    }
    store.outputs.drop_oldest(0);
    store.blobs.remove(hash).expect("removed");
    drop(store);
    check(&other, hash);
    drop(other);
    check(&open(&second), hash);
    check(&open(&copy), hash);
    let digits = hash.to_string();
    let blob = copy.join("blobs").join(&digits[..2]).join(&digits[2..]);
    assert_eq!(std::fs::metadata(blob).expect("there").nlink(), 2);
}

// We want to know that a backup of a store in use holds all that was settled before, while programs print and retention
// drops: each backup is opened and read.
#[test]
fn a_backup_while_others_print_and_drop_is_whole() {
    let place = tempfile::tempdir().expect("a folder");
    let folder = place.path().join("store");
    let store = open(&folder);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for job in 1.. {
                if is_over.load(Ordering::SeqCst) {
                    break;
                }
                let id = attempt(job, 1, 1);
                store.outputs.append(id, Stdout, 0, &text(job, 9_000_000)).expect("stored");
                settled(&store.outputs, id, Settle::Now).expect("settled");
                store.outputs.drop_oldest(150_000_000);
            }
        });
        for n in 0..4 {
            let copy = place.path().join(format!("copy{n}"));
            backup(&folder, &copy).expect("copied");
            let found = open(&copy);
            let jobs: Vec<u64> = (1..200).filter(|job| found.outputs.lengths(attempt(*job, 1, 1)).stdout > 0).collect();
            for job in jobs {
                let mut at = 0;
                while at < found.outputs.lengths(attempt(job, 1, 1)).stdout {
                    let chunk = found.outputs.read(attempt(job, 1, 1), Stdout, at, 1 << 20).expect("read");
                    assert!(chunk.bytes == text(job + chunk.offset, chunk.bytes.len()), "other bytes");
                    at = chunk.offset + chunk.bytes.len() as u64;
                }
            }
        }
        is_over.store(true, Ordering::SeqCst);
    });
}

// We want to know that a damaged segment or blob is not passed on: a byte of each is changed in turn.
#[test]
fn damage_is_not_copied() {
    let place = tempfile::tempdir().expect("a folder");
    let folder = place.path().join("store");
    let store = open(&folder);
    let hash = BlobHash::of(b"a blob");
    store.blobs.put(hash, b"a blob").expect("stored");
    store.outputs.append(attempt(1, 1, 1), Stdout, 0, &text(0, 300_000)).expect("stored");
    drop(store);
    let digits = hash.to_string();
    let blob = folder.join("blobs").join(&digits[..2]).join(&digits[2..]);
    for path in [folder.join("outputs/00000001.seg"), blob] {
        let whole = std::fs::read(&path).expect("read");
        let mut changed = whole.clone();
        changed[5] ^= 1;
        std::fs::write(&path, &changed).expect("written");
        let error = backup(&folder, &place.path().join("copy")).expect_err("damaged");
        assert!(matches!(error, BackupError::Open(OpenError::Corrupt { .. })), "{error}");
        assert!(!place.path().join("copy").exists());
        std::fs::write(&path, &whole).expect("written");
    }
    std::fs::remove_file(folder.join("outputs/00000001.seg")).expect("removed");
    let error = backup(&folder, &place.path().join("copy")).expect_err("missing");
    assert!(matches!(error, BackupError::Damaged { .. }), "{error}");
}
