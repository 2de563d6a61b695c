//! Faults of the disk and of people: each has a name, says what to do, and loses nothing silently.
//!
//! Deliberately not here: kills (`crash`), faults of blobs and outputs (their own tests).

use super::roles::{child, child_copied_to};
use crate::conformance::journal::{append, lead};
use crate::{AppendError, CatalogError, NoRoom, OpenError, ReadError, Seq, Store, StoreLimits, Term};
use rusqlite::Connection;
use rustix::process::{Resource, Rlimit};
use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;

fn open(folder: &Path) -> Store {
    Store::open(folder, StoreLimits::default()).expect("a store")
}

/// A closed store with `count` batches.
fn filled(folder: &Path, count: u64) {
    let store = open(folder);
    let term = lead(&store);
    for n in 0..count {
        append(&store.journal, n, term, &batch(n + 1)).expect("appended");
    }
}

fn batch(n: u64) -> Vec<u8> {
    format!("this is batch {n} of the journal").repeat(20).into_bytes()
}

fn sequences(store: &Store, from: u64) -> Vec<u64> {
    let found = store.journal.read(Seq(from), 1 << 30).expect("read");
    found.into_iter().map(|(seq, bytes)| if bytes == batch(seq.0) { seq.0 } else { 0 }).collect()
}

/// Changes a database behind the store's back.
fn change(folder: &Path, file: &str, sql: &str) {
    Connection::open(folder.join(file)).expect("opened").execute_batch(sql).expect("changed");
}

/// Appends until the disk is full, many at a time: the first that fails says why, those behind it that one before failed.
/// Gives the end of the journal.
fn append_until_full(store: &Store, term: Term) -> u64 {
    let journal = &store.journal;
    loop {
        let begin = journal.last();
        let (sender, receiver) = mpsc::channel();
        for n in 0..6 {
            let sender = sender.clone();
            let done = Box::new(move |end| sender.send(end).expect("we wait"));
            journal.append(Seq(begin.0 + n), term, vec![9; 150_000], done);
        }
        let ends: Vec<_> = receiver.iter().take(6).collect();
        let Some(first) = ends.iter().position(Result::is_err) else { continue };
        let failed = ends[first].as_ref().expect_err("failed");
        assert!(matches!(failed, AppendError::Full(NoRoom::Disk { .. })), "{failed:?}");
        assert!(failed.to_string().contains("free some space"), "{failed}");
        let actual = Seq(begin.0 + first as u64);
        for end in &ends[first + 1..] {
            assert!(matches!(end, Err(AppendError::AfterFailed { actual: end, .. }) if *end == actual), "{end:?}");
        }
        assert_eq!(journal.last(), actual);
        return actual.0;
    }
}

/// Everything that was said to be there is, and nothing else.
fn check_lengths(store: &Store, last: u64) {
    let mut next = 1;
    while next <= last {
        for (seq, bytes) in store.journal.read(Seq(next), 1 << 20).expect("read") {
            assert!(seq.0 == next && bytes.len() == 150_000);
            next += 1;
        }
    }
    assert_eq!(store.journal.last(), Seq(last));
}

/// The child: files may not grow beyond a limit, as on a full disk; then they may again.
pub(super) fn append_under_a_limit(folder: &Path) {
    let limit = |bytes| {
        let hard = rustix::process::getrlimit(Resource::Fsize).maximum;
        rustix::process::setrlimit(Resource::Fsize, Rlimit { current: bytes, maximum: hard }).expect("set");
    };
    let store = open(folder);
    let term = lead(&store);
    limit(Some(3_000_000));
    let last = append_until_full(&store, term);
    assert!(last >= 5, "{last}");
    check_lengths(&store, last);
    limit(None);
    append(&store.journal, last, term, &[9; 150_000]).expect("there is room again");
    drop(store);
    check_lengths(&open(folder), last + 1);
    println!("all of it is true");
}

// A file may not grow: the journal says that it is full, serves what it has, and goes on as soon as there is room.
#[test]
fn a_journal_that_may_not_grow_is_full_and_recovers() {
    let place = tempfile::tempdir().expect("a folder");
    let output = child("limited", &place.path().join("store")).output().expect("ran");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("all of it is true"), "{said}");
}

// New work leaves the reserve free: no disk has as much as this asks for, and what runs is appended all the same.
#[test]
fn the_reserve_is_for_what_runs() {
    let place = tempfile::tempdir().expect("a folder");
    let limits = StoreLimits { reserve_bytes: u64::MAX, ..StoreLimits::default() };
    let store = Store::open(place.path(), limits).expect("a store");
    let error = store.journal.room().expect_err("no room");
    assert!(matches!(error, AppendError::Full(NoRoom::Disk { reserve: u64::MAX, .. })), "{error:?}");
    append(&store.journal, 0, lead(&store), b"an end").expect("appended");
}

/// A disk of some megabytes, where this machine lets us have one.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(place: &Path) -> Option<SmallDisk> {
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=6m", "none"]).arg(place).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| SmallDisk(place.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).output().ok();
    }
}

// The same on a disk that is really full, where we may mount one; elsewhere the test before this one has the part of it.
#[test]
fn a_full_disk_is_named_and_recovered_from() {
    let place = tempfile::tempdir().expect("a folder");
    let Some(disk) = SmallDisk::mount(place.path()) else { return };
    let ballast = disk.0.join("ballast");
    std::fs::write(&ballast, vec![1; 2 << 20]).expect("written");
    let folder = disk.0.join("store");
    let store =
        Store::open(&folder, StoreLimits { reserve_bytes: 1 << 20, ..StoreLimits::default() }).expect("a store");
    let term = lead(&store);
    store.journal.room().expect("four megabytes");
    let last = append_until_full(&store, term);
    assert!(matches!(store.journal.room(), Err(AppendError::Full(NoRoom::Disk { .. }))));
    check_lengths(&store, last);
    let full = store.catalog.apply(Seq(last), &large_rows(), &[]).expect_err("full");
    assert!(matches!(full, CatalogError::Full(_)), "{full:?}");
    assert_eq!(store.catalog.applied().expect("read"), Seq(0));
    std::fs::remove_file(&ballast).expect("removed");
    append(&store.journal, last, term, &[9; 150_000]).expect("there is room again");
    store.journal.room().expect("for new work too");
    drop(store);
    check_lengths(&open(&folder), last + 1);
}

fn large_rows() -> Vec<crate::CatalogRow> {
    (1..100).map(|n| crate::CatalogRow { view: vec![7; 100_000], ..crate::conformance::catalog::row(n) }).collect()
}

/// The child: says how opening ends.
pub(super) fn open_and_say(folder: &Path) {
    match Store::open(folder, StoreLimits::default()) {
        Ok(_) => println!("opened"),
        Err(error) => println!("{error:?}: {error}"),
    }
}

/// Opens as somebody who is not root, to whom rights do not apply.
fn open_without_rights(place: &Path, folder: &Path) -> String {
    let mut command = child_copied_to(place, "open", folder);
    if rustix::process::geteuid().is_root() {
        std::os::unix::process::CommandExt::uid(&mut command, NOBODY);
    }
    String::from_utf8_lossy(&command.output().expect("ran").stdout).into_owned()
}

fn give_away(path: &Path) {
    std::os::unix::fs::chown(path, Some(NOBODY), None).expect("given");
    if path.is_dir() {
        std::fs::read_dir(path).expect("listed").for_each(|entry| give_away(&entry.expect("listed").path()));
    }
}

const NOBODY: u32 = 65534;

fn rights(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).expect("set");
}

// A folder, a database or a place in which nothing may be written: each is said by name, with the path, and nothing is
// changed.
#[test]
fn what_may_not_be_written_is_named() {
    let place = tempfile::tempdir().expect("a folder");
    rights(place.path(), 0o755);
    let folder = place.path().join("store");
    filled(&folder, 3);
    if rustix::process::geteuid().is_root() {
        give_away(&folder);
    }
    let said = |folder: &Path| open_without_rights(place.path(), folder);
    assert!(said(&folder).contains("opened"), "{}", said(&folder));
    rights(&folder, 0o500);
    assert!(said(&folder).contains("ReadOnly") && said(&folder).contains("may not be written"), "{}", said(&folder));
    rights(&folder, 0o700);
    rights(&folder.join("journal.db"), 0o400);
    assert!(said(&folder).contains("ReadOnly"), "{}", said(&folder));
    rights(&folder.join("journal.db"), 0o600);
    let nowhere = place.path().join("not-there");
    rights(place.path(), 0o555);
    assert!(said(&nowhere).contains("ReadOnly"), "{}", said(&nowhere));
    rights(place.path(), 0o755);
    assert_eq!(sequences(&open(&folder), 1), [1, 2, 3]);
}

// Somebody flips bytes of the last batch in the file, where the database itself does not notice: those in front of it come,
// then its sequence is named. Nothing is dropped.
#[test]
fn a_flipped_byte_is_found() {
    let place = tempfile::tempdir().expect("a folder");
    filled(place.path(), 5);
    let path = place.path().join("journal.db");
    let bytes = std::fs::read(&path).expect("read");
    let last = batch(5);
    let at = bytes.windows(last.len()).position(|window| window == last).expect("it is there") + 100;
    let file = OpenOptions::new().write(true).open(&path).expect("opened");
    file.write_all_at(&[bytes[at] ^ 0x20], at as u64).expect("written");
    let store = open(place.path());
    assert_eq!(sequences(&store, 1), [1, 2, 3, 4]);
    let error = store.journal.read(Seq(5), 1_000).expect_err("damaged");
    assert!(matches!(error, ReadError::Corrupt { seq: Seq(5), .. }), "{error:?}");
    assert!(error.to_string().contains("sequence 5") && error.to_string().contains("essaim restore"), "{error}");
    assert_eq!(store.journal.last(), Seq(5));
}

// A row is changed, moved or taken out of the middle, or a piece of the snapshot is: each is found where it is.
#[test]
fn a_changed_row_is_found() {
    for (sql, damaged) in [
        ("UPDATE batch SET bytes = zeroblob(length(bytes)) WHERE seq = 2", 2),
        ("UPDATE batch SET term = term + 1 WHERE seq = 4", 4),
        ("UPDATE batch SET sum = zeroblob(32) WHERE seq = 1", 1),
        ("DELETE FROM batch WHERE seq = 3", 3),
        ("DELETE FROM batch WHERE seq = 2; UPDATE batch SET seq = 2 WHERE seq = 3", 2),
    ] {
        let place = tempfile::tempdir().expect("a folder");
        filled(place.path(), 5);
        change(place.path(), "journal.db", sql);
        let store = open(place.path());
        if damaged > 1 {
            assert_eq!(sequences(&store, 1), (1..damaged).collect::<Vec<_>>(), "{sql}");
        }
        let error = store.journal.read(Seq(damaged), 1_000).expect_err("damaged");
        assert!(matches!(error, ReadError::Corrupt { seq, .. } if seq == Seq(damaged)), "{sql}: {error:?}");
    }
    let place = tempfile::tempdir().expect("a folder");
    filled(place.path(), 5);
    open(place.path()).journal.snapshot(Seq(4), vec![1; 3_000_000]).expect("kept");
    change(place.path(), "journal.db", "DELETE FROM piece WHERE number = 1");
    let error = open(place.path()).journal.latest_snapshot().expect_err("damaged");
    assert!(matches!(error, ReadError::Corrupt { seq: Seq(4), .. }), "{error:?}");
}

// The newest batches go: as rows, as the database's log (a copy without it, and one with a part of it), as the whole file.
// The store does not open as if they had never been.
#[test]
fn a_cut_journal_is_refused() {
    let place = tempfile::tempdir().expect("a folder");
    let (folder, copy) = (place.path().join("store"), place.path().join("copy"));
    let refused = |folder: &Path, expected: u64| {
        let error = Store::open(folder, StoreLimits::default()).expect_err("cut");
        assert!(matches!(error, OpenError::Cut { last, confirmed: Seq(5), .. } if last <= Seq(expected)), "{error:?}");
        assert!(error.to_string().contains("restore a backup"), "{error}");
    };
    let store = open(&folder);
    let term = lead(&store);
    for n in 0..5 {
        append(&store.journal, n, term, &batch(n + 1)).expect("appended");
    }
    let log = |folder: &Path| folder.join("journal.db-wal");
    let take = || {
        std::fs::remove_dir_all(&copy).ok();
        std::fs::create_dir(&copy).expect("made");
        for file in ["journal.db", "journal.db-wal", "journal.mark", "catalog.db"] {
            std::fs::copy(folder.join(file), copy.join(file)).expect("copied");
        }
    };
    take();
    assert_eq!(sequences(&open(&copy), 1), [1, 2, 3, 4, 5], "nothing is wrong with the copy itself");
    take();
    std::fs::remove_file(log(&copy)).expect("removed");
    refused(&copy, 0);
    take();
    let file = OpenOptions::new().write(true).open(log(&copy)).expect("opened");
    file.set_len(file.metadata().expect("known").len() - 1).expect("cut");
    refused(&copy, 4);
    drop(store);
    change(&folder, "journal.db", "DELETE FROM batch WHERE seq = 5");
    refused(&folder, 4);
    std::fs::remove_file(folder.join("journal.db")).expect("removed");
    refused(&folder, 0);
}

// A database that is cut in the middle or is something else altogether is called damaged, by its path, whether on opening
// or on reading; never an empty store.
#[test]
fn a_damaged_file_is_named() {
    for file in ["journal.db", "catalog.db"] {
        let place = tempfile::tempdir().expect("a folder");
        filled(place.path(), 50);
        let path = place.path().join(file);
        std::fs::write(&path, "this is no database ".repeat(1_000)).expect("written");
        let error = Store::open(place.path(), StoreLimits::default()).expect_err("damaged");
        assert!(matches!(&error, OpenError::Corrupt { path: named, .. } if *named == path), "{error:?}");
    }
    let place = tempfile::tempdir().expect("a folder");
    filled(place.path(), 50);
    let file = File::options().write(true).open(place.path().join("journal.db")).expect("opened");
    file.set_len(file.metadata().expect("known").len() / 2).expect("cut");
    match Store::open(place.path(), StoreLimits::default()) {
        Err(error) => assert!(matches!(error, OpenError::Corrupt { .. } | OpenError::Cut { .. }), "{error:?}"),
        Ok(store) => {
            let error = store.journal.read(Seq(50), 1_000).expect_err("damaged");
            assert!(matches!(error, ReadError::Corrupt { .. }), "{error:?}");
        }
    }
}

// A store is open: nobody else opens it, in this process or another; after it is closed, anybody may.
#[test]
fn a_second_opener_is_refused() {
    let place = tempfile::tempdir().expect("a folder");
    let folder = place.path().join("store");
    let store = open(&folder);
    let error = Store::open(&folder, StoreLimits::default()).expect_err("in use");
    assert!(matches!(&error, OpenError::InUse { folder: named } if *named == folder), "{error:?}");
    let said = |folder| String::from_utf8(child("open", folder).output().expect("ran").stdout).expect("text");
    assert!(said(&folder).contains("InUse"), "{}", said(&folder));
    drop(store);
    assert!(said(&folder).contains("opened"), "{}", said(&folder));
}

// A newer essaim has been here: its version is named, and nothing is changed.
#[test]
fn a_newer_version_is_refused() {
    for (file, now) in [("journal.db", 1), ("catalog.db", 2)] {
        let place = tempfile::tempdir().expect("a folder");
        filled(place.path(), 2);
        change(place.path(), file, "PRAGMA user_version = 99");
        let error = Store::open(place.path(), StoreLimits::default()).expect_err("newer");
        assert!(matches!(error, OpenError::Newer { found: 99, known, .. } if known == now), "{error:?}");
        assert!(error.to_string().contains(file) && error.to_string().contains("99"), "{error}");
        change(place.path(), file, &format!("PRAGMA user_version = {now}"));
        assert_eq!(sequences(&open(place.path()), 1), [1, 2]);
    }
}

// What programs printed is for its owner alone.
#[test]
fn files_are_for_their_owner() {
    let place = tempfile::tempdir().expect("a folder");
    let folder = place.path().join("store");
    std::fs::create_dir(&folder).expect("made");
    rights(&folder, 0o755);
    filled(&folder, 2);
    let store = open(&folder);
    store.catalog.apply(Seq(1), &[], &[]).expect("applied");
    let mode = |path: &Path| std::fs::metadata(path).expect("known").permissions().mode() & 0o777;
    assert_eq!(mode(&folder), 0o700);
    for entry in std::fs::read_dir(&folder).expect("listed") {
        let path = entry.expect("listed").path();
        assert_eq!(mode(&path), if path.is_dir() { 0o700 } else { 0o600 }, "{}", path.display());
    }
}
