//! Promises of the journal: order, fencing, pipelining, paging, snapshot and trim.
//!
//! Deliberately not here: who may lead (`lead`).

use super::Open;
use crate::limits::{BATCH_BYTES_MAX, READ_BATCHES_MAX};
use crate::{AppendError, Journal, NoRoom, ReadError, Seq, SnapshotError, Store, StoreLimits, Term, TrimError};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

/// Longer than any back-end may take for one batch.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn lead(store: &Store) -> Term {
    store.lead.acquire("tester", 0, 1_000_000).expect("nobody leads")
}

pub(crate) fn append(journal: &Journal, expected: u64, term: Term, batch: &[u8]) -> Result<Seq, AppendError> {
    let (sender, receiver) = mpsc::channel();
    journal.append(Seq(expected), term, batch.to_vec(), Box::new(move |end| sender.send(end).expect("we wait")));
    receiver.recv_timeout(PATIENCE).expect("the end is told")
}

fn filled(store: &Store, count: u64) -> Term {
    let term = lead(store);
    for n in 0..count {
        assert_eq!(
            append(&store.journal, n, term, format!("batch {}", n + 1).as_bytes()).expect("appended"),
            Seq(n + 1)
        );
    }
    term
}

fn sequences(found: &[(Seq, Vec<u8>)]) -> Vec<u64> {
    found.iter().map(|(seq, _)| seq.0).collect()
}

// What does a reader find where nothing was written?
pub(crate) fn a_new_journal_is_empty(open: Open) {
    let opened = open(StoreLimits::default());
    let journal = &opened.store.journal;
    assert_eq!(journal.last(), Seq(0));
    assert!(journal.read(Seq(0), 1_000).expect("read").is_empty());
    assert!(journal.read(Seq(1), 1_000).expect("read").is_empty());
    assert!(journal.latest_snapshot().expect("read").is_none());
}

// Sequences are 1, 2, 3 …, and the bytes are those that were appended, an empty batch among them.
pub(crate) fn batches_come_back_in_order(open: Open) {
    let opened = open(StoreLimits::default());
    let journal = &opened.store.journal;
    let term = filled(&opened.store, 3);
    append(journal, 3, term, b"").expect("appended");
    append(journal, 4, term, &[0, 255, 10]).expect("appended");
    let found = journal.read(Seq(1), 1_000_000).expect("read");
    assert_eq!(sequences(&found), [1, 2, 3, 4, 5]);
    assert_eq!(found[1].1, b"batch 2");
    assert_eq!(found[3].1, b"");
    assert_eq!(found[4].1, [0, 255, 10]);
    assert_eq!(journal.last(), Seq(5));
    assert_eq!(journal.read(Seq(0), 1_000_000).expect("read"), found, "0 is the very first");
}

// A page holds what fits, at least one batch, and the next page goes on where it ended; small batches end a page too.
pub(crate) fn a_read_pages(open: Open) {
    let opened = open(StoreLimits::default());
    let journal = &opened.store.journal;
    let term = filled(&opened.store, 9);
    assert_eq!(sequences(&journal.read(Seq(1), 14).expect("read")), [1, 2], "7 bytes each");
    assert_eq!(sequences(&journal.read(Seq(3), 20).expect("read")), [3, 4]);
    assert_eq!(sequences(&journal.read(Seq(5), 0).expect("read")), [5]);
    assert_eq!(sequences(&journal.read(Seq(9), 1_000).expect("read")), [9]);
    assert!(journal.read(Seq(10), 1_000).expect("read").is_empty());
    assert!(journal.read(Seq(u64::MAX), 1_000).expect("read").is_empty());
    for n in 9..READ_BATCHES_MAX as u64 + 1 {
        append(journal, n, term, b"").expect("appended");
    }
    assert_eq!(journal.read(Seq(1), usize::MAX).expect("read").len(), READ_BATCHES_MAX);
}

// One who takes the journal for shorter than it is must not append.
pub(crate) fn a_foreign_end_is_fenced(open: Open) {
    let opened = open(StoreLimits::default());
    let term = filled(&opened.store, 3);
    let error = append(&opened.store.journal, 1, term, b"late").expect_err("fenced");
    assert!(matches!(error, AppendError::Fenced { expected: Seq(1), actual: Seq(3) }), "{error}");
    assert_eq!(opened.store.journal.last(), Seq(3));
}

// Without a term nobody appends: not before anybody leads, not with a number that was not given.
pub(crate) fn a_term_that_nobody_gave_is_deposed(open: Open) {
    let opened = open(StoreLimits::default());
    let journal = &opened.store.journal;
    let error = append(journal, 0, Term(0), b"x").expect_err("deposed");
    assert!(matches!(error, AppendError::Deposed { current: Term(0), .. }), "{error}");
    let term = lead(&opened.store);
    let guess = Term(term.0 + 1);
    let error = append(journal, 0, guess, b"x").expect_err("deposed");
    assert!(matches!(error, AppendError::Deposed { term, .. } if term == guess), "{error}");
    append(journal, 0, term, b"x").expect("appended");
}

// Five appends are under way at once and the third cannot be made: two are there, the third says why, the fourth and
// fifth say that one before them failed, and the journal goes on from its true end.
pub(crate) fn a_failure_in_the_middle_fails_what_follows(open: Open) {
    let opened = open(StoreLimits::default());
    let journal = &opened.store.journal;
    let term = lead(&opened.store);
    let (sender, receiver) = mpsc::channel();
    for n in 0..5 {
        let batch = if n == 2 { vec![0; BATCH_BYTES_MAX + 1] } else { vec![n as u8] };
        let sender = sender.clone();
        journal.append(Seq(n), term, batch, Box::new(move |end| sender.send(end).expect("we wait")));
    }
    let mut ends = (0..5).map(|_| receiver.recv_timeout(PATIENCE).expect("told"));
    assert_eq!(ends.next().expect("first").expect("appended"), Seq(1));
    assert_eq!(ends.next().expect("second").expect("appended"), Seq(2));
    assert!(matches!(ends.next().expect("third"), Err(AppendError::TooLarge { .. })));
    for n in 3..5 {
        let end = ends.next().expect("later");
        assert!(
            matches!(end, Err(AppendError::AfterFailed { expected, actual: Seq(2) }) if expected == Seq(n)),
            "{end:?}"
        );
    }
    assert_eq!(sequences(&journal.read(Seq(1), 1_000).expect("read")), [1, 2]);
    assert_eq!(append(journal, 2, term, b"again").expect("appended"), Seq(3));
}

// The limit of a batch is exact.
pub(crate) fn too_large_is_refused(open: Open) {
    let opened = open(StoreLimits::default());
    let term = lead(&opened.store);
    append(&opened.store.journal, 0, term, &vec![1; BATCH_BYTES_MAX]).expect("appended");
    let error = append(&opened.store.journal, 1, term, &vec![1; BATCH_BYTES_MAX + 1]).expect_err("refused");
    assert!(matches!(error, AppendError::TooLarge { bytes, limit: BATCH_BYTES_MAX } if bytes == BATCH_BYTES_MAX + 1));
}

// A full journal says so, and a snapshot and a trim, which must still be possible, make room.
pub(crate) fn a_full_journal_refuses_and_goes_on_after_a_trim(open: Open) {
    let opened = open(StoreLimits { journal_bytes: 2_000_000, ..StoreLimits::default() });
    let journal = &opened.store.journal;
    let term = lead(&opened.store);
    journal.room().expect("it is empty");
    let mut last = 0;
    let error = loop {
        match append(journal, last, term, &[3; 100_000]) {
            Ok(seq) => last = seq.0,
            Err(error) => break error,
        }
        assert!(last <= 20, "over the limit");
    };
    assert!(matches!(error, AppendError::Full(NoRoom::Limit(2_000_000))), "{error}");
    assert!(last >= 10, "refused at half of the limit");
    assert!(matches!(journal.room(), Err(AppendError::Full(NoRoom::Limit(2_000_000)))));
    journal.snapshot(Seq(last), vec![4; 500_000]).expect("snapshot");
    journal.trim(Seq(last + 1)).expect("trimmed");
    assert_eq!(append(journal, last, term, &[3; 100_000]).expect("room again"), Seq(last + 1));
    journal.room().expect("for new work too");
}

// Two hundred appends under way: each end is told once and in order.
pub(crate) fn ends_are_told_in_order_and_once(open: Open) {
    let opened = open(StoreLimits::default());
    let term = lead(&opened.store);
    let (sender, receiver) = mpsc::channel();
    for n in 0..200 {
        let sender = sender.clone();
        let done = Box::new(move |end: Result<Seq, AppendError>| sender.send(end.expect("appended")).expect("we wait"));
        opened.store.journal.append(Seq(n), term, vec![n as u8], done);
    }
    drop(sender);
    for n in 1..=200 {
        assert_eq!(receiver.recv_timeout(PATIENCE).expect("told"), Seq(n));
    }
    assert!(receiver.recv_timeout(PATIENCE).is_err(), "told once");
}

// An end may call the store: no lock is held, and the batch is there for it to read.
pub(crate) fn an_end_may_append_again(open: Open) {
    let opened = open(StoreLimits::default());
    let term = lead(&opened.store);
    let (sender, receiver) = mpsc::channel();
    let journal = opened.store.journal.clone();
    let first = Box::new(move |end: Result<Seq, AppendError>| {
        let seq = end.expect("appended");
        assert_eq!(journal.read(seq, 1_000).expect("read").len(), 1);
        journal.append(seq, term, b"second".to_vec(), Box::new(move |end| sender.send(end).expect("we wait")));
    });
    opened.store.journal.append(Seq(0), term, b"first".to_vec(), first);
    assert_eq!(receiver.recv_timeout(PATIENCE).expect("told").expect("appended"), Seq(2));
}

// Four threads append on the same end under the same term, many times: each time exactly one wins.
pub(crate) fn only_one_of_two_appenders_wins(open: Open) {
    let opened = open(StoreLimits::default());
    let journal = &opened.store.journal;
    let term = lead(&opened.store);
    for round in 0..50 {
        let wins = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for n in 0..4u8 {
                let wins = &wins;
                scope.spawn(move || match append(journal, round, term, &[n]) {
                    Ok(_) => _ = wins.fetch_add(1, Ordering::SeqCst),
                    Err(error) => assert!(matches!(error, AppendError::Fenced { .. }), "{error}"),
                });
            }
        });
        assert_eq!(wins.into_inner(), 1);
    }
    assert_eq!(journal.last(), Seq(50));
}

// The latest snapshot is the one that comes back, and replaces one at the same sequence.
pub(crate) fn a_snapshot_is_kept(open: Open) {
    let opened = open(StoreLimits::default());
    let journal = &opened.store.journal;
    filled(&opened.store, 5);
    journal.snapshot(Seq(2), b"two".to_vec()).expect("kept");
    journal.snapshot(Seq(4), b"four".to_vec()).expect("kept");
    assert_eq!(journal.latest_snapshot().expect("read"), Some((Seq(4), b"four".to_vec())));
    journal.snapshot(Seq(4), b"four again".to_vec()).expect("kept");
    assert_eq!(journal.latest_snapshot().expect("read"), Some((Seq(4), b"four again".to_vec())));
    assert_eq!(sequences(&journal.read(Seq(1), 1_000).expect("read")), [1, 2, 3, 4, 5], "a snapshot trims nothing");
}

// A snapshot of the future, of the past or of too many bytes is refused by name, and the one before stays.
pub(crate) fn a_bad_snapshot_is_refused(open: Open) {
    let opened = open(StoreLimits { snapshot_bytes: 1_000, ..StoreLimits::default() });
    let journal = &opened.store.journal;
    filled(&opened.store, 5);
    journal.snapshot(Seq(4), b"four".to_vec()).expect("kept");
    let ahead = journal.snapshot(Seq(6), vec![]).expect_err("refused");
    assert!(matches!(ahead, SnapshotError::Ahead { at: Seq(6), last: Seq(5) }), "{ahead}");
    let older = journal.snapshot(Seq(3), vec![]).expect_err("refused");
    assert!(matches!(older, SnapshotError::Older { at: Seq(3), latest: Seq(4) }), "{older}");
    let large = journal.snapshot(Seq(5), vec![0; 1_001]).expect_err("refused");
    assert!(matches!(large, SnapshotError::TooLarge { bytes: 1_001, limit: 1_000 }), "{large}");
    assert_eq!(journal.latest_snapshot().expect("read"), Some((Seq(4), b"four".to_vec())));
}

// Trim takes what a snapshot holds and nothing else; the end stays, and what is gone is named.
pub(crate) fn trim_stops_at_the_snapshot(open: Open) {
    let opened = open(StoreLimits::default());
    let journal = &opened.store.journal;
    let term = filled(&opened.store, 5);
    let error = journal.trim(Seq(2)).expect_err("no snapshot");
    assert!(matches!(error, TrimError::BeyondSnapshot { below: Seq(2), snapshot: Seq(0) }), "{error}");
    journal.trim(Seq(1)).expect("nothing to trim");
    journal.snapshot(Seq(3), vec![]).expect("kept");
    assert!(matches!(journal.trim(Seq(5)), Err(TrimError::BeyondSnapshot { snapshot: Seq(3), .. })));
    journal.trim(Seq(4)).expect("trimmed");
    journal.trim(Seq(2)).expect("gone already");
    let error = journal.read(Seq(1), 1_000).expect_err("gone");
    assert!(matches!(error, ReadError::Trimmed { from: Seq(1), first: Seq(4) }), "{error}");
    assert_eq!(sequences(&journal.read(Seq(4), 1_000).expect("read")), [4, 5]);
    journal.snapshot(Seq(5), vec![]).expect("kept");
    journal.trim(Seq(6)).expect("all of it");
    assert_eq!(journal.last(), Seq(5));
    assert!(journal.read(Seq(6), 1_000).expect("read").is_empty());
    assert!(matches!(journal.read(Seq(5), 1_000), Err(ReadError::Trimmed { first: Seq(6), .. })));
    assert_eq!(append(journal, 5, term, b"six").expect("appended"), Seq(6));
}

// A reader that follows while batches are appended sees each whole and none twice.
pub(crate) fn a_reader_sees_no_half_batch(open: Open) {
    let opened = open(StoreLimits::default());
    let journal = opened.store.journal.clone();
    let term = lead(&opened.store);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let reader = {
        let (journal, seen) = (journal.clone(), seen.clone());
        std::thread::spawn(move || {
            let mut from = Seq(1);
            while from <= Seq(300) {
                for (seq, batch) in journal.read(from, 10_000).expect("read") {
                    assert_eq!(batch, vec![seq.0 as u8; 1_000]);
                    seen.lock().expect("whole").push(seq.0);
                    from = seq.next();
                }
            }
        })
    };
    for n in 0..300 {
        append(&journal, n, term, &[(n + 1) as u8; 1_000]).expect("appended");
    }
    reader.join().expect("the reader saw what it should");
    assert_eq!(*seen.lock().expect("whole"), (1..=300).collect::<Vec<u64>>());
}
