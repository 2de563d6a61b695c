//! Who waits for whom: readers not for the writer, appends not for a snapshot, an end for nobody.
//!
//! Deliberately not here: the order of ends, which the suite checks.

use super::open;
use crate::conformance::journal::{append, lead};
use crate::conformance::{Opened, catalog};
use crate::{AppendError, LeadError, Seq, StoreLimits};
use rusqlite::Connection;
use std::sync::mpsc;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

fn database(opened: &Opened, file: &str) -> Connection {
    Connection::open(opened.folder.path().join("store").join(file)).expect("opened")
}

// Somebody holds the right to write for as long as he likes: readers go on all the while.
#[test]
fn readers_do_not_wait_for_a_writer() {
    let opened = open(StoreLimits::default());
    let store = &opened.store;
    let term = lead(store);
    append(&store.journal, 0, term, b"one").expect("appended");
    store.catalog.apply(Seq(1), &[catalog::row(1)], &[]).expect("applied");
    let holders = ["journal.db", "catalog.db"].map(|file| database(&opened, file));
    for holder in &holders {
        holder.execute_batch("BEGIN IMMEDIATE").expect("held");
    }
    let (sender, receiver) = mpsc::channel();
    let done = Box::new(move |end| sender.send(end).expect("we wait"));
    store.journal.append(Seq(1), term, b"two".to_vec(), done);
    assert_eq!(store.journal.read(Seq(1), 1_000).expect("read").len(), 1);
    assert_eq!(store.journal.latest_snapshot().expect("read"), None);
    assert_eq!(store.catalog.job(essaim_proto::JobId(1)).expect("read"), Some(catalog::job_of(catalog::row(1))));
    assert!(receiver.try_recv().is_err(), "the append waits");
    for holder in holders {
        holder.execute_batch("COMMIT").expect("given back");
    }
    assert_eq!(receiver.recv_timeout(PATIENCE).expect("told").expect("appended"), Seq(2));
}

// A large snapshot is under way: appends are done before it is.
#[test]
fn appends_do_not_wait_for_a_snapshot() {
    let opened = open(StoreLimits::default());
    let journal = &opened.store.journal;
    let term = lead(&opened.store);
    append(journal, 0, term, b"one").expect("appended");
    std::thread::scope(|scope| {
        let snapshot = scope.spawn(|| journal.snapshot(Seq(1), vec![5; 64 << 20]));
        let mut meanwhile = 0;
        while !snapshot.is_finished() {
            let last = journal.last();
            append(journal, last.0, term, b"x").expect("appended");
            meanwhile += 1;
        }
        snapshot.join().expect("no panic").expect("kept");
        assert!(meanwhile > 5, "{meanwhile}");
    });
    assert_eq!(journal.latest_snapshot().expect("read").expect("there").1.len(), 64 << 20);
}

// What counts no more does not stay in the file for ever: rows that were trimmed, pieces of snapshots before the last.
#[test]
fn what_counts_no_more_is_swept() {
    let opened = open(StoreLimits::default());
    let journal = &opened.store.journal;
    let term = lead(&opened.store);
    for n in 0..30 {
        append(journal, n, term, &[1; 1_000]).expect("appended");
    }
    for at in [10, 20] {
        journal.snapshot(Seq(at), vec![1; 3_000_000]).expect("kept");
    }
    journal.trim(Seq(21)).expect("trimmed");
    let count = |sql: &str| database(&opened, "journal.db").query_row(sql, [], |row| row.get::<_, i64>(0));
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let found =
            (count("SELECT count(*) FROM batch").expect("known"), count("SELECT count(*) FROM piece").expect("known"));
        if found == (10, 3) {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{found:?}");
        std::thread::sleep(Duration::from_millis(5)); // poll: sweeping tells nobody
    }
}

// Ends come from the writer's thread; there, a call that would wait for this very thread is refused and does not hang.
#[test]
fn an_end_that_waits_is_refused() {
    let opened = open(StoreLimits::default());
    let term = lead(&opened.store);
    let (sender, receiver) = mpsc::channel();
    let store = opened.store.clone();
    let done = Box::new(move |_| {
        let thread = std::thread::current().name().map(str::to_owned);
        let ends = (store.lead.renew(term, 1, 1), store.journal.trim(Seq(0)), store.journal.snapshot(Seq(0), vec![]));
        sender.send((thread, ends)).expect("we wait");
    });
    opened.store.journal.append(Seq(0), term, vec![], done);
    let (thread, (renewed, trimmed, kept)) = receiver.recv_timeout(PATIENCE).expect("told");
    assert_eq!(thread.as_deref(), Some("store-journal"));
    assert!(matches!(renewed, Err(LeadError::Io(_))) && trimmed.is_err() && kept.is_err());
}

// An end that panics is its caller's bug: the others hear theirs, and the journal goes on.
#[test]
fn a_panicking_end_harms_nobody_else() {
    let opened = open(StoreLimits::default());
    let journal = &opened.store.journal;
    let term = lead(&opened.store);
    journal.append(Seq(0), term, vec![], Box::new(|_| panic!("a caller's bug, wanted by this test")));
    append(journal, 1, term, b"two").expect("appended");
}

// The store is dropped with appends under way, the last handle in an end: all of them are told, none is lost.
#[test]
fn dropping_tells_what_is_under_way() {
    let opened = open(StoreLimits::default());
    let Opened { store, folder } = opened;
    let term = lead(&store);
    let (sender, receiver) = mpsc::channel();
    for n in 0..100 {
        let sender = sender.clone();
        let end: Box<dyn FnOnce(Result<Seq, AppendError>) + Send> = if n == 99 {
            let last = store.clone();
            Box::new(move |end| {
                drop(last);
                sender.send(end).expect("we wait");
            })
        } else {
            Box::new(move |end| sender.send(end).expect("we wait"))
        };
        store.journal.append(Seq(n), term, vec![n as u8; 10_000], end);
    }
    drop((store, sender));
    let told: Vec<_> = receiver.iter().map(|end| end.expect("appended").0).collect();
    assert_eq!(told, (1..=100).collect::<Vec<u64>>());
    drop(folder);
}
