//! A process is killed while it appends, snapshots and trims: what it said to be done is there, nothing is half there.
//!
//! Deliberately not here: the hub that does this for a living (`crates/essaim` kills real ones).

use super::roles::child;
use crate::conformance::journal::lead;
use crate::limits::BATCH_BYTES_MAX;
use crate::{Seq, Store, StoreLimits};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};

/// Each batch says which it is with every byte; sizes from nothing to the largest, mostly small.
fn batch(seq: u64) -> Vec<u8> {
    let size = match seq % 50 {
        0 => BATCH_BYTES_MAX,
        1 => 0,
        n => n as usize * 83,
    };
    (0..size).map(|n| (n as u64 * 31 + seq * 7) as u8).collect()
}

fn state(at: u64) -> Vec<u8> {
    vec![at as u8; 2_500_000]
}

/// The child: prints what is done, as soon as it is done.
pub(super) fn append_until_killed(folder: &Path) {
    let store = Store::open(folder, StoreLimits::default()).expect("a store");
    let term = lead(&store);
    let (tell, told) = mpsc::sync_channel(64);
    let next = Arc::new(AtomicU64::new(store.journal.last().0));
    std::thread::scope(|scope| {
        let journal = &store.journal;
        scope.spawn(move || {
            // Snapshots on the way, with a trim behind each.
            for at in told.iter().filter(|seq: &u64| seq.is_multiple_of(40)) {
                journal.snapshot(Seq(at), state(at)).expect("kept");
                say(&format!("snapshot {at}"));
                journal.trim(Seq(at.saturating_sub(20))).expect("trimmed");
                say(&format!("trim {}", at.saturating_sub(20)));
            }
        });
        loop {
            // At most sixteen under way.
            let expected = next.fetch_add(1, Ordering::SeqCst);
            let tell = tell.clone();
            let (room, go) = mpsc::channel();
            store.journal.append(
                Seq(expected),
                term,
                batch(expected + 1),
                Box::new(move |end| {
                    let seq = end.expect("appended");
                    say(&format!("done {seq}"));
                    tell.try_send(seq.0).ok();
                    room.send(()).ok();
                }),
            );
            if expected.is_multiple_of(16) {
                go.recv().expect("told");
            }
        }
    });
}

fn say(words: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{words}").expect("somebody reads");
    out.flush().expect("somebody reads");
}

#[derive(Default)]
struct Said {
    done: u64,
    snapshot: u64,
    trim: u64,
}

impl Said {
    fn hear(&mut self, line: &str) {
        let mut words = line.split(' ');
        let (word, number) = (words.next(), words.next().and_then(|number| number.parse().ok()));
        match (word, number) {
            (Some("done"), Some(seq)) => {
                assert_eq!(seq, self.done + 1, "ends come in order");
                self.done = seq;
            }
            (Some("snapshot"), Some(at)) => self.snapshot = at,
            (Some("trim"), Some(below)) => self.trim = below,
            _ => (),
        }
    }

    fn check(&self, store: &Store) {
        let journal = &store.journal;
        let last = journal.last().0;
        assert!(last >= self.done, "{last} of {} said to be done", self.done);
        let (at, kept) = journal.latest_snapshot().expect("whole").unwrap_or_default();
        assert!(at.0 >= self.snapshot, "{at} of {} said to be done", self.snapshot);
        assert!(at == Seq(0) || kept == state(at.0));
        // From the snapshot on, every batch is there.
        let mut next = at.0 + 1;
        while next <= last {
            let found = journal.read(Seq(next), 1 << 20).expect("whole");
            assert!(!found.is_empty(), "a hole at {next}");
            for (seq, bytes) in found {
                assert!(seq.0 == next && bytes == batch(next), "at {next}");
                next += 1;
            }
        }
        if self.trim > 1 {
            journal.read(Seq(self.trim - 1), 1).expect_err("trimmed");
        }
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).expect("made");
    for entry in std::fs::read_dir(from).expect("listed") {
        let path = entry.expect("listed").path();
        let to = to.join(path.file_name().expect("a name"));
        if path.is_dir() { copy(&path, &to) } else { _ = std::fs::copy(&path, to).expect("copied") }
    }
}

// The process is killed at moments that differ; what it left is opened where it is and, as a copy, elsewhere, and the next
// round goes on there.
#[test]
fn what_was_said_to_be_done_outlives_a_kill() {
    let place = tempfile::tempdir().expect("a folder");
    let mut folder = place.path().join("0");
    let mut said = Said::default();
    for round in 0..8_u64 {
        let mut process = child("append", &folder).spawn().expect("started");
        let mut lines = BufReader::new(process.stdout.take().expect("a pipe")).lines();
        let enough = said.done + 1 + round * 37 % 90;
        while said.done < enough {
            said.hear(&lines.next().expect("it goes on").expect("text"));
        }
        process.kill().expect("killed");
        process.wait().expect("gone");
        // What it said before it died counts too.
        lines.map_while(Result::ok).for_each(|line| said.hear(&line));
        let elsewhere = place.path().join((round + 1).to_string());
        copy(&folder, &elsewhere);
        for folder in [&folder, &elsewhere] {
            said.check(&Store::open(folder, StoreLimits::default()).expect("opened"));
        }
        folder = elsewhere;
        said.done = Store::open(&folder, StoreLimits::default()).expect("opened").journal.last().0;
    }
}
