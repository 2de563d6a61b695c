//! What blobs on disk do beside the promises of the port: restarts, leftovers of a crash, names and rights.
//!
//! Deliberately not here: the promises of the port, which `conformance` tests.

use super::*;
use std::os::unix::fs::PermissionsExt;

fn blobs(folder: &Path, limit: u64) -> Arc<BlobFiles> {
    let lock = Arc::new(FolderLock::take(folder).expect("locked"));
    Arc::new(BlobFiles::open(folder, limit, lock).expect("opened"))
}

// We want to know that blobs are there after a restart and are counted, that what a crash left is removed, and that what
// is not ours stays: we open the folder again, with more in it than we put there.
#[test]
fn a_restart_keeps_blobs_and_removes_leftovers() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = blobs(folder.path(), 100);
    let hashes = [BlobHash::of(b"one"), BlobHash::of(b"four"), BlobHash::of(b"")];
    first.put(hashes[0], b"one").expect("stored");
    first.put(hashes[1], b"four").expect("stored");
    first.put(hashes[2], b"").expect("stored");
    drop(first);
    let leftover = folder.path().join("blobs/tmp/.tmpabc");
    std::fs::write(&leftover, [7; 90]).expect("written");
    let foreign = folder.path().join("blobs/README");
    std::fs::write(&foreign, "not ours").expect("written");

    let again = blobs(folder.path(), 100);
    assert!(!leftover.exists() && foreign.exists());
    assert_eq!(again.used_bytes(), 7);
    assert_eq!(again.get(hashes[1], 1, 10).expect("read"), Some(b"our".to_vec()));
    assert!(again.missing(&hashes).is_empty());
    assert!(again.remove(hashes[1]).expect("removed"));
    drop(again);
    let third = blobs(folder.path(), 100);
    assert_eq!((third.used_bytes(), third.missing(&hashes)), (3, vec![hashes[1]]));
}

// We want to know that nobody else reads what a program was given, and that a name tells the hash: we look at the files.
#[test]
fn files_are_for_their_owner_and_named_by_their_hash() {
    let folder = tempfile::tempdir().expect("a folder");
    let blobs = blobs(folder.path(), 100);
    let hash = BlobHash::of(b"secret");
    blobs.put(hash, b"secret").expect("stored");
    let digits = hash.to_string();
    let path = folder.path().join("blobs").join(&digits[..2]).join(&digits[2..]);
    assert_eq!(std::fs::read(&path).expect("there"), b"secret");
    let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    for shelf in path.ancestors().skip(1).take(2) {
        assert_eq!(mode(shelf), 0o700, "{}", shelf.display());
    }
    assert_eq!(std::fs::read_dir(folder.path().join("blobs/tmp")).expect("there").count(), 0);
}

// We want to know that a limit that was lowered below what is there refuses more, and goes on giving what is there.
#[test]
fn a_lowered_limit_refuses_more() {
    let folder = tempfile::tempdir().expect("a folder");
    let hash = BlobHash::of(b"0123456789");
    blobs(folder.path(), 10).put(hash, b"0123456789").expect("stored");
    let lowered = blobs(folder.path(), 5);
    assert!(matches!(lowered.clone().begin(0), Err(PutError::Full { .. })));
    assert_eq!(lowered.size(hash), Some(10));
    assert!(lowered.remove(hash).expect("removed"));
    lowered.put(BlobHash::of(b"01234"), b"01234").expect("room again");
}
