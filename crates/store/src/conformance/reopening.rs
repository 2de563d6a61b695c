//! Promises of a store that outlives its process: what was said to be done is there when it is opened again.
//!
//! Deliberately not here: a process that is killed in the middle (the back-end's tests do that).

use super::catalog::{job_of, row};
use super::journal::{append, lead};
use super::outputs::{check_unknown, print_some};
use super::{Again, Open, Opened};
use crate::{CatalogQuery, LeadError, ReadError, Seq, Store, StoreLimits, Term};
use essaim_proto::JobId;

fn reopened(opened: Opened, again: Again) -> Opened {
    let Opened { store, folder } = opened;
    drop(store);
    Opened { store: again(folder.path(), StoreLimits::default()), folder }
}

fn batch(n: u64) -> Vec<u8> {
    vec![n as u8; (n * 977 % 5_000) as usize]
}

fn check(store: &Store, from: u64, to: u64) {
    let found = store.journal.read(Seq(from), usize::MAX).expect("read");
    assert_eq!(found, (from..=to).map(|n| (Seq(n), batch(n))).collect::<Vec<_>>());
    assert_eq!(store.journal.last(), Seq(to));
}

fn fill(store: &Store, from: u64, to: u64) -> Term {
    let term = lead(store);
    for n in from..=to {
        append(&store.journal, n - 1, term, &batch(n)).expect("appended");
    }
    term
}

// Open, append, close, some times over: each time all of it is there, with its bytes and its order.
pub(crate) fn what_was_appended_is_there_again(open: Open, again: Again) {
    let mut opened = open(StoreLimits::default());
    for round in 0..4 {
        fill(&opened.store, round * 20 + 1, round * 20 + 20);
        opened = reopened(opened, again);
        check(&opened.store, 1, round * 20 + 20);
    }
}

// A hub that is started again gets a term greater than that of its former life; who else asks is refused as before.
pub(crate) fn a_term_outlives_its_process(open: Open, again: Again) {
    let opened = open(StoreLimits::default());
    let first = opened.store.lead.acquire("hub-a", 1_000, 500).expect("nobody leads");
    append(&opened.store.journal, 0, first, b"one").expect("leads");
    let opened = reopened(opened, again);
    let held = opened.store.lead.acquire("hub-b", 1_499, 500).expect_err("held");
    assert!(matches!(held, LeadError::HeldBy { term, expires_ms: 1_500, .. } if term == first), "{held}");
    append(&opened.store.journal, 1, first, b"two").expect("its term goes on");
    let second = opened.store.lead.acquire("hub-a", 1_100, 500).expect("its own");
    assert!(second > first);
    append(&opened.store.journal, 2, first, b"late").expect_err("fenced");
    append(&opened.store.journal, 2, second, b"three").expect("leads");
    opened.store.lead.release(second).expect("released");
    let opened = reopened(opened, again);
    append(&opened.store.journal, 3, second, b"late").expect_err("released");
    assert!(opened.store.lead.acquire("hub-b", 1_101, 500).expect("free") > second);
}

// What was trimmed stays away, what was not is there, and the snapshot with it.
pub(crate) fn a_trim_is_for_good(open: Open, again: Again) {
    let opened = open(StoreLimits::default());
    fill(&opened.store, 1, 30);
    opened.store.journal.snapshot(Seq(20), b"state".to_vec()).expect("kept");
    opened.store.journal.trim(Seq(11)).expect("trimmed");
    let opened = reopened(opened, again);
    check(&opened.store, 11, 30);
    let gone = opened.store.journal.read(Seq(10), 1_000).expect_err("gone");
    assert!(matches!(gone, ReadError::Trimmed { from: Seq(10), first: Seq(11) }), "{gone}");
    assert_eq!(opened.store.journal.latest_snapshot().expect("read"), Some((Seq(20), b"state".to_vec())));
}

// Snapshots of many pieces, of one and of none, one after the other: the latest is there, whole.
pub(crate) fn a_new_snapshot_takes_the_place_of_the_old_one(open: Open, again: Again) {
    let mut opened = open(StoreLimits::default());
    fill(&opened.store, 1, 5);
    for (at, size) in [(1, 5_000_000), (2, 3 << 20), (2, 10), (4, 0), (5, 1_048_577)] {
        let bytes: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
        opened.store.journal.snapshot(Seq(at), bytes.clone()).expect("kept");
        opened = reopened(opened, again);
        let (found, kept) = opened.store.journal.latest_snapshot().expect("read").expect("there");
        assert!(found == Seq(at) && kept == bytes, "at {found}, {} bytes", kept.len());
    }
}

// Everything was trimmed: the journal goes on after its end and does not begin again.
pub(crate) fn an_empty_journal_goes_on_after_its_end(open: Open, again: Again) {
    let opened = open(StoreLimits::default());
    let term = fill(&opened.store, 1, 5);
    opened.store.journal.snapshot(Seq(5), vec![]).expect("kept");
    opened.store.journal.trim(Seq(6)).expect("trimmed");
    let opened = reopened(opened, again);
    assert_eq!(opened.store.journal.last(), Seq(5));
    assert_eq!(append(&opened.store.journal, 5, term, &batch(6)).expect("appended"), Seq(6));
    check(&opened.store, 6, 6);
}

// The catalog has its rows and knows how far it was applied.
pub(crate) fn what_was_applied_is_there_again(open: Open, again: Again) {
    let opened = open(StoreLimits::default());
    fill(&opened.store, 1, 9);
    opened.store.catalog.apply(Seq(9), &[row(1), row(2)], &[]).expect("applied");
    let opened = reopened(opened, again);
    let catalog = &opened.store.catalog;
    assert_eq!(catalog.applied().expect("read"), Seq(9));
    let all = CatalogQuery { limit: 10, ..CatalogQuery::default() };
    assert_eq!(catalog.list(&all).expect("listed"), [job_of(row(2)), job_of(row(1))]);
    assert_eq!(catalog.output(JobId(2)).expect("read"), row(2).output);
}

// Outputs that are newer than the state that names them, with nothing of them in memory: what it does not know goes.
pub(crate) fn the_unknown_output_is_dropped_at_a_start(open: Open, again: Again) {
    let opened = open(StoreLimits::default());
    print_some(&opened.store.outputs);
    let opened = reopened(opened, again);
    check_unknown(&opened.store.outputs);
}
