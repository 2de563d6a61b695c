//! Outputs on disk against a model, with restarts and crashes between the steps, and crashes while others print.
//!
//! A crash is a copy of the files while they are in use, opened elsewhere: what the disk would have after a loss of
//! power, or more. Deliberately not here: what the promises of the port say without a crash (`conformance`).

use super::*;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rusqlite::{Connection, OpenFlags};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Copies what a crash at this moment would leave. The copy of a database that is in use is of one moment while somebody
/// reads it; the segments are linked, for they only grow.
fn crash(from: &Path, to: &Path) {
    std::fs::create_dir_all(to.join(segments::SEGMENTS)).expect("made");
    link_segments(from, to);
    let database = from.join(index::SCHEMA.file);
    let reader = Connection::open_with_flags(&database, OpenFlags::SQLITE_OPEN_READ_ONLY).expect("opened");
    reader.busy_timeout(std::time::Duration::from_secs(10)).expect("set");
    reader.execute_batch("BEGIN").expect("begun");
    let _: i64 = reader.query_row("SELECT COUNT(*) FROM dropped", [], |row| row.get(0)).expect("read");
    for suffix in ["", "-wal"] {
        let name = format!("{}{suffix}", index::SCHEMA.file);
        std::fs::copy(from.join(&name), to.join(&name)).expect("copied");
    }
    drop(reader);
    link_segments(from, to);
}

fn link_segments(from: &Path, to: &Path) {
    for (name, _) in segments(from) {
        let path = Path::new(segments::SEGMENTS).join(name);
        // There already, or just unlinked.
        let _ = std::fs::hard_link(from.join(&path), to.join(&path));
    }
}

#[derive(Debug, Clone)]
enum Step {
    Append { who: Who, size: usize },
    Settle { who: Who },
    DropBelow { who: Who, at: u64 },
    DropAttempt { who: Who },
    DropJob { job: u64 },
    DropOldest { part: u64 },
    Reopen,
    Crash,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Who {
    id: AttemptId,
    stream: Stream,
}

fn who() -> impl Strategy<Value = Who> {
    let stream = prop_oneof![Just(Stream::Stdout), Just(Stream::Stderr)];
    (1..4u64, 1..3u32, stream).prop_map(|(job, task, stream)| Who { id: id(job, task), stream })
}

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![1..60usize, 5_000..20_000usize, 60_000..140_000usize];
    prop_oneof![
        12 => (who(), size).prop_map(|(who, size)| Step::Append { who, size }),
        6 => who().prop_map(|who| Step::Settle { who }),
        2 => (who(), 0..1_200u64).prop_map(|(who, at)| Step::DropBelow { who, at }),
        1 => who().prop_map(|who| Step::DropAttempt { who }),
        1 => (1..4u64).prop_map(|job| Step::DropJob { job }),
        1 => (0..1_100u64).prop_map(|part| Step::DropOldest { part }),
        1 => Just(Step::Reopen),
        2 => Just(Step::Crash),
    ]
}

#[derive(Debug, Default, Clone)]
struct Kept {
    bytes: Vec<u8>,
    from: u64,
    /// Confirmed to be durable.
    durable: u64,
}

struct Scene {
    folder: tempfile::TempDir,
    outputs: Option<Packed>,
    model: BTreeMap<Who, Kept>,
    salt: u64,
}

impl Scene {
    fn new() -> Scene {
        let folder = tempfile::tempdir().expect("a folder");
        let outputs = Some(small(folder.path()));
        Scene { folder, outputs, model: BTreeMap::new(), salt: 0 }
    }

    fn outputs(&self) -> &Packed {
        self.outputs.as_ref().expect("open")
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Append { who, size } => {
                self.salt += 1;
                let salt = self.salt;
                let fresh: Vec<u8> =
                    (0..size as u64).map(|n| (n.wrapping_mul(31) ^ salt.wrapping_mul(977)) as u8).collect();
                let kept = self.model.entry(who).or_default();
                let offset = kept.bytes.len() as u64;
                kept.bytes.extend(&fresh);
                let length = self.outputs().append(who.id, who.stream, offset, &fresh).expect("stored");
                assert_eq!(length, offset + size as u64);
            }
            Step::Settle { who } => {
                let lengths = settled(self.outputs(), who.id).expect("settled");
                for (stream, length) in [(Stream::Stdout, lengths.stdout), (Stream::Stderr, lengths.stderr)] {
                    let kept = self.model.entry(Who { stream, ..who }).or_default();
                    assert_eq!(kept.bytes.len() as u64, length);
                    kept.durable = length;
                }
            }
            Step::DropBelow { who, at } => {
                let kept = self.model.entry(who).or_default();
                let below = (kept.bytes.len() as u64 * at / 1_000).min(kept.bytes.len() as u64);
                kept.from = kept.from.max(below);
                kept.durable = kept.durable.max(below);
                self.outputs().drop_below(who.id, who.stream, below);
            }
            Step::DropAttempt { who } => {
                self.outputs().drop_attempt(who.id);
                self.model.retain(|other, _| other.id != who.id);
            }
            Step::DropJob { job } => {
                self.outputs().drop_job(JobId(job));
                self.model.retain(|other, _| other.id.job != JobId(job));
            }
            Step::DropOldest { part } => self.drop_oldest(part),
            Step::Reopen => {
                self.outputs = None;
                self.outputs = Some(small(self.folder.path()));
                for kept in self.model.values_mut() {
                    kept.durable = kept.bytes.len() as u64;
                }
            }
            Step::Crash => {
                let folder = tempfile::tempdir().expect("a folder");
                crash(self.folder.path(), folder.path());
                self.outputs = None;
                self.outputs = Some(small(folder.path()));
                self.folder = folder;
                self.lose();
            }
        }
    }

    fn drop_oldest(&mut self, part: u64) {
        let keep = self.outputs().used_bytes() * part / 1_000;
        let jobs = self.outputs().drop_oldest(keep);
        assert!(self.outputs().used_bytes() <= keep.max(self.held()));
        let outputs = self.outputs.as_ref().expect("open");
        for (who, kept) in &mut self.model {
            let from = outputs.read(who.id, who.stream, 0, 0).expect("read").offset;
            assert!(
                from >= kept.from && (from == kept.from || jobs.contains(&who.id.job)),
                "{who:?} lost bytes unsaid"
            );
            kept.from = from;
            kept.durable = kept.durable.max(from);
        }
        assert!(self.outputs().used_bytes() <= keep || jobs.is_empty());
    }

    /// After a crash, of each stream what was confirmed is there, and perhaps more.
    fn lose(&mut self) {
        let outputs = self.outputs.as_ref().expect("open");
        for (who, kept) in &mut self.model {
            let lengths = outputs.lengths(who.id);
            let length = if who.stream == Stream::Stdout { lengths.stdout } else { lengths.stderr };
            assert!(length >= kept.durable, "{who:?} has {length} of {} confirmed bytes", kept.durable);
            assert!(length <= kept.bytes.len() as u64);
            kept.bytes.truncate(length as usize);
            kept.durable = length;
        }
    }

    fn held(&self) -> u64 {
        self.model.values().map(|kept| kept.bytes.len() as u64 - kept.from).sum()
    }

    fn check(&self) {
        for (who, kept) in &self.model {
            let mut at = 0;
            loop {
                let chunk = self.outputs().read(who.id, who.stream, at, 50_021).expect("read");
                assert_eq!((chunk.offset, chunk.dropped), (at.max(kept.from), at < kept.from), "{who:?}");
                let end = (chunk.offset as usize + chunk.bytes.len()).min(kept.bytes.len());
                assert!(chunk.bytes == kept.bytes[chunk.offset as usize..end], "other bytes of {who:?} at {at}");
                at = end as u64;
                if chunk.bytes.is_empty() {
                    break;
                }
            }
            assert_eq!(at, kept.bytes.len() as u64);
        }
        assert_eq!(self.outputs().used_bytes(), self.held());
    }
}

/// Small limits, so that a few steps meet all of them.
fn small(folder: &Path) -> Packed {
    open_with(folder, |shared| {
        shared.segments.set_size_max(200_000);
        shared.tails = Budget::new(150_000);
        shared.idle_max = 3;
    })
}

// Whatever is printed, settled and dropped, with restarts and crashes between: what was confirmed is there, no byte is
// wrong, and what is in use is what can be read.
#[test]
fn any_steps_and_crashes_lose_nothing_confirmed() {
    let mut runner = TestRunner::new(Config { cases: 24, failure_persistence: None, ..Config::default() });
    let steps = proptest::collection::vec(step(), 1..50);
    let outcome = runner.run(&steps, |steps| {
        let mut scene = Scene::new();
        for step in &steps {
            scene.apply(step);
        }
        scene.check();
        scene.apply(&Step::Reopen);
        scene.check();
        Ok(())
    });
    outcome.expect("the model holds");
}

// We want to know that a crash in the middle of it all loses nothing that was confirmed before it: threads print and
// settle, large and small, while the files are copied again and again; each copy is opened and read.
#[test]
fn a_crash_while_others_print_loses_nothing_confirmed() {
    const JOBS: u64 = 4;
    let folder = tempfile::tempdir().expect("a folder");
    let outputs = open_with(folder.path(), |shared| shared.segments.set_size_max(3_000_000));
    let confirmed: Vec<Arc<AtomicU64>> = (0..=JOBS).map(|_| Arc::default()).collect();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for job in 1..=JOBS {
            let (outputs, is_over, confirmed) = (&outputs, &is_over, confirmed[job as usize].clone());
            scope.spawn(move || {
                let mut at = 0;
                while !is_over.load(Ordering::SeqCst) {
                    let size = if job % 2 == 0 { 100_000 } else { 37 };
                    at = outputs.append(id(job, 1), Stream::Stdout, at, &text(at, size)).expect("stored");
                    let confirmed = confirmed.clone();
                    let done = move |end: Result<Lengths, OutputError>| {
                        confirmed.fetch_max(end.expect("settled").stdout, Ordering::SeqCst);
                    };
                    outputs.settle(id(job, 1), Settle::Now, Box::new(done));
                    if at > 30_000_000 || job % 2 == 1 {
                        settled(outputs, id(job, 1)).expect("settled");
                    }
                }
            });
        }
        for _ in 0..6 {
            let before: Vec<u64> = confirmed.iter().map(|confirmed| confirmed.load(Ordering::SeqCst)).collect();
            let copy = tempfile::tempdir().expect("a folder");
            crash(folder.path(), copy.path());
            let found = open(copy.path());
            for job in 1..=JOBS {
                let bytes = read_all(&found, id(job, 1));
                assert!(bytes.len() as u64 >= before[job as usize], "{} of {before:?} for {job}", bytes.len());
                assert!(bytes == text(0, bytes.len()), "wrong bytes");
            }
        }
        is_over.store(true, Ordering::SeqCst);
    });
}
