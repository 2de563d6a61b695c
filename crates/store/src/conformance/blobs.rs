//! Promises of the blobs: whole or not at all, checked, bounded.
//!
//! Deliberately not here: who may read them.

use super::Open;
use crate::limits::READ_BYTES_MAX;
use crate::{Blobs, PutError, StoreLimits};
use essaim_proto::BlobHash;

fn stored(blobs: &Blobs, bytes: &[u8]) -> BlobHash {
    let hash = BlobHash::of(bytes);
    blobs.put(hash, bytes).expect("stored");
    hash
}

fn small(open: Open, blob_bytes: u64) -> super::Opened {
    open(StoreLimits { blob_bytes, ..StoreLimits::default() })
}

// What was put comes back, and what was not put does not.
pub(crate) fn a_blob_comes_back(open: Open) {
    let opened = open(StoreLimits::default());
    let blobs = &opened.store.blobs;
    let hash = stored(blobs, b"hello");
    assert_eq!(blobs.get(hash, 0, 100).expect("read"), Some(b"hello".to_vec()));
    assert_eq!(blobs.size(hash), Some(5));
    let other = BlobHash::of(b"other");
    assert_eq!(blobs.get(other, 0, 100).expect("read"), None);
    assert_eq!(blobs.size(other), None);
    let second = stored(blobs, b"second");
    let mut all = blobs.all().expect("listed");
    all.sort_unstable();
    let mut both = [hash, second];
    both.sort_unstable();
    assert_eq!(all, both);
    blobs.remove(hash).expect("removed");
    assert_eq!(blobs.all().expect("listed"), [second]);
}

// Nothing is something too: an empty file of a job.
pub(crate) fn the_empty_blob_is_a_blob(open: Open) {
    let opened = open(StoreLimits::default());
    let blobs = &opened.store.blobs;
    let hash = BlobHash::of(b"");
    assert_eq!(blobs.missing(&[hash]), [hash]);
    blobs.begin(0).expect("room").finish(hash).expect("stored");
    assert_eq!(blobs.get(hash, 0, 100).expect("read"), Some(Vec::new()));
    assert_eq!(blobs.size(hash), Some(0));
    assert!(blobs.missing(&[hash]).is_empty());
    blobs.put(hash, b"").expect("stored");
}

// Bytes with another hash are refused, at once or in pieces, say both hashes, and leave nothing.
pub(crate) fn a_wrong_hash_is_refused(open: Open) {
    let opened = open(StoreLimits::default());
    let blobs = &opened.store.blobs;
    let announced = BlobHash::of(b"good");
    let error = blobs.put(announced, b"evil").expect_err("refused");
    let PutError::Mismatch { expected, actual } = error else { panic!("{error}") };
    assert_eq!((expected, actual), (announced, BlobHash::of(b"evil")));
    let mut writer = blobs.begin(4).expect("room");
    writer.write(b"evil").expect("taken");
    assert!(matches!(writer.finish(announced), Err(PutError::Mismatch { .. })));
    assert_eq!(blobs.missing(&[expected, actual]), [expected, actual]);
    assert_eq!(blobs.used_bytes(), 0);
}

// A range is cut at the blob's end and at what one read gives.
pub(crate) fn ranges_are_cut(open: Open) {
    let opened = open(StoreLimits::default());
    let blobs = &opened.store.blobs;
    let bytes: Vec<u8> = (0..READ_BYTES_MAX + 10).map(|n| (n % 251) as u8).collect();
    let hash = stored(blobs, &bytes);
    let get = |offset, max| blobs.get(hash, offset, max).expect("read").expect("there");
    assert_eq!(get(7, 3), bytes[7..10]);
    assert_eq!(get(0, usize::MAX), bytes[..READ_BYTES_MAX]);
    assert_eq!(get(READ_BYTES_MAX as u64, 100), bytes[READ_BYTES_MAX..]);
    assert!(get(bytes.len() as u64, 100).is_empty());
    assert!(get(u64::MAX, usize::MAX).is_empty());
    assert!(get(3, 0).is_empty());
}

// A blob in pieces is invisible until it is finished.
pub(crate) fn pieces_make_a_blob(open: Open) {
    let opened = open(StoreLimits::default());
    let blobs = &opened.store.blobs;
    let bytes: Vec<u8> = (0..300_000u32).map(|n| (n % 253) as u8).collect();
    let hash = BlobHash::of(&bytes);
    let mut writer = blobs.begin(bytes.len() as u64).expect("room");
    for piece in bytes.chunks(7_777) {
        writer.write(piece).expect("taken");
        assert_eq!(blobs.size(hash), None);
    }
    assert_eq!(writer.written(), 300_000);
    writer.finish(hash).expect("stored");
    assert_eq!(blobs.get(hash, 0, bytes.len()).expect("read"), Some(bytes));
}

// One byte too many is refused when it comes, one too few at the end.
pub(crate) fn a_wrong_size_is_refused(open: Open) {
    let opened = open(StoreLimits::default());
    let blobs = &opened.store.blobs;
    let mut writer = blobs.begin(4).expect("room");
    writer.write(b"123").expect("taken");
    assert!(matches!(writer.write(b"45"), Err(PutError::WrongSize { announced: 4, written: 5 })));
    writer.write(b"4").expect("the refused piece was not taken");
    writer.finish(BlobHash::of(b"1234")).expect("stored");
    let mut writer = blobs.begin(4).expect("room");
    writer.write(b"123").expect("taken");
    let error = writer.finish(BlobHash::of(b"123")).expect_err("short");
    assert!(matches!(error, PutError::WrongSize { announced: 4, written: 3 }), "{error}");
    assert_eq!(blobs.used_bytes(), 4);
}

// The question that a client asks before it uploads.
pub(crate) fn missing_names_what_is_not_there(open: Open) {
    let opened = open(StoreLimits::default());
    let here = stored(&opened.store.blobs, b"here");
    let (a, b) = (BlobHash::of(b"a"), BlobHash::of(b"b"));
    assert_eq!(opened.store.blobs.missing(&[b, here, a, b]), [b, a]);
    assert!(opened.store.blobs.missing(&[]).is_empty());
}

// Removed is gone, says whether it was there, and gives its room back.
pub(crate) fn remove_forgets(open: Open) {
    let opened = small(open, 10);
    let blobs = &opened.store.blobs;
    let hash = stored(blobs, b"0123456789");
    assert!(blobs.remove(hash).expect("removed"));
    assert!(!blobs.remove(hash).expect("no error"));
    assert_eq!(blobs.get(hash, 0, 10).expect("read"), None);
    stored(blobs, b"9876543210");
}

// The limit is exact, counts what is announced, and comes back from a writer that gave up.
pub(crate) fn blobs_are_bounded(open: Open) {
    let opened = small(open, 10);
    let blobs = &opened.store.blobs;
    let first = stored(blobs, b"012345");
    assert!(matches!(blobs.put(BlobHash::of(b"abcde"), b"abcde"), Err(PutError::Full { bytes: 5, limit: 10 })));
    let writer = blobs.begin(4).expect("room");
    assert!(matches!(blobs.begin(1), Err(PutError::Full { bytes: 1, limit: 10 })));
    assert!(matches!(blobs.begin(u64::MAX), Err(PutError::Full { .. })));
    blobs.put(first, b"012345").expect("there already");
    drop(writer);
    stored(blobs, b"abcd");
    assert_eq!(blobs.used_bytes(), 10);
}

// Two uploads of the same file take its room once.
pub(crate) fn a_blob_twice_takes_its_room_once(open: Open) {
    let opened = small(open, 100);
    let blobs = &opened.store.blobs;
    let hash = BlobHash::of(b"same");
    let mut writers = [blobs.begin(4).expect("room"), blobs.begin(4).expect("room")];
    for writer in &mut writers {
        writer.write(b"same").expect("taken");
    }
    for writer in writers {
        writer.finish(hash).expect("stored");
    }
    blobs.put(hash, b"same").expect("stored");
    assert_eq!(blobs.used_bytes(), 4);
}

// Threads put and remove the same blobs at once: a reader sees all of a blob or nothing, and the count is right.
pub(crate) fn many_threads_put_at_once(open: Open) {
    let opened = open(StoreLimits::default());
    let blobs = &opened.store.blobs;
    let all: Vec<Vec<u8>> = (0..8u8).map(|n| vec![n; 5_000]).collect();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let all = &all;
            scope.spawn(move || {
                for round in 0..100 {
                    let bytes = &all[(round * (thread + 1)) % all.len()];
                    let hash = stored(blobs, bytes);
                    if let Some(found) = blobs.get(hash, 0, 10_000).expect("read") {
                        assert_eq!(found, *bytes);
                    }
                    if thread == 3 {
                        blobs.remove(hash).expect("removed");
                    }
                }
            });
        }
    });
    let held = all.iter().filter_map(|bytes| blobs.size(BlobHash::of(bytes))).sum::<u64>();
    assert_eq!(blobs.used_bytes(), held);
}
