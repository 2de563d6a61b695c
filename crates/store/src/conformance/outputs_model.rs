//! Outputs against a model: a vector of bytes per stream, and whatever somebody may do to it.
//!
//! Deliberately not here: threads and limits (`outputs`).

use super::Open;
use super::outputs::{attempt, settled};
use crate::{Lengths, Outputs, Settle, StoreLimits};
use essaim_proto::api::Stream;
use essaim_proto::{AttemptId, JobId};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::collections::BTreeMap;

#[derive(Debug, Clone)]
enum Step {
    /// So many bytes, the first `again` of them sent once more.
    Append {
        who: Who,
        size: usize,
        again: usize,
    },
    /// Bytes from a part of the length, in thousandths, which may be beyond it.
    Read {
        who: Who,
        at: u64,
        max: usize,
    },
    Settle {
        who: Who,
    },
    DropBelow {
        who: Who,
        at: u64,
    },
    DropAttempt {
        who: Who,
    },
    DropJob {
        job: u64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Who {
    attempt: AttemptId,
    stream: Stream,
}

fn who() -> impl Strategy<Value = Who> {
    let stream = prop_oneof![Just(Stream::Stdout), Just(Stream::Stderr)];
    (1..3u64, 1..3u32, 1..3u32, stream)
        .prop_map(|(job, task, number, stream)| Who { attempt: attempt(job, task, number), stream })
}

/// Sizes around all borders: a byte, a tail, a block, several blocks.
fn size() -> impl Strategy<Value = usize> {
    prop_oneof![0..40usize, 16_000..17_000usize, 60_000..70_000usize, 0..200_000usize]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (who(), size(), size()).prop_map(|(who, size, again)| Step::Append { who, size, again }),
        8 => (who(), 0..1_200u64, size()).prop_map(|(who, at, max)| Step::Read { who, at, max }),
        2 => who().prop_map(|who| Step::Settle { who }),
        2 => (who(), 0..1_200u64).prop_map(|(who, at)| Step::DropBelow { who, at }),
        1 => who().prop_map(|who| Step::DropAttempt { who }),
        1 => (1..3u64).prop_map(|job| Step::DropJob { job }),
    ]
}

#[derive(Default)]
struct Model {
    streams: BTreeMap<Who, Kept>,
    /// Makes all bytes differ from those of other streams and of dropped ones.
    salt: u64,
}

#[derive(Default, Clone)]
struct Kept {
    bytes: Vec<u8>,
    from: usize,
}

impl Model {
    fn kept(&self, who: Who) -> Kept {
        self.streams.get(&who).cloned().unwrap_or_default()
    }

    fn fresh(&mut self, size: usize) -> Vec<u8> {
        self.salt += 1;
        let salt = self.salt;
        (0..size as u64).map(|n| (n.wrapping_mul(31) ^ salt.wrapping_mul(0x9e37_79b9) ^ (n >> 8)) as u8).collect()
    }

    fn apply(&mut self, outputs: &Outputs, step: &Step) {
        match *step {
            Step::Append { who, size, again } => {
                let mut kept = self.kept(who);
                let offset = kept.bytes.len() - again.min(kept.bytes.len());
                let fresh = self.fresh(size);
                let sent = [&kept.bytes[offset..], &fresh].concat();
                let length = outputs.append(who.attempt, who.stream, offset as u64, &sent).expect("stored");
                kept.bytes.extend(fresh);
                assert_eq!(length, kept.bytes.len() as u64);
                self.streams.insert(who, kept);
            }
            Step::Settle { who } => {
                let length = |stream| self.kept(Who { stream, ..who }).bytes.len() as u64;
                let lengths = Lengths { stdout: length(Stream::Stdout), stderr: length(Stream::Stderr) };
                assert_eq!(settled(outputs, who.attempt, Settle::Now).expect("settled"), lengths);
            }
            Step::Read { who, at, max } => self.check(outputs, who, at, max),
            Step::DropBelow { who, at } => {
                let mut kept = self.kept(who);
                let below = kept.bytes.len() as u64 * at / 1_000;
                outputs.drop_below(who.attempt, who.stream, below);
                kept.from = kept.from.max((below as usize).min(kept.bytes.len()));
                self.streams.insert(who, kept);
            }
            Step::DropAttempt { who } => {
                outputs.drop_attempt(who.attempt);
                self.streams.retain(|other, _| other.attempt != who.attempt);
            }
            Step::DropJob { job } => {
                outputs.drop_job(JobId(job));
                self.streams.retain(|other, _| other.attempt.job != JobId(job));
            }
        }
    }

    fn check(&self, outputs: &Outputs, who: Who, at: u64, max: usize) {
        let kept = self.kept(who);
        let offset = kept.bytes.len() as u64 * at / 1_000;
        let begin = (offset as usize).max(kept.from);
        let end = kept.bytes.len().min(begin.saturating_add(max));
        let chunk = outputs.read(who.attempt, who.stream, offset, max).expect("read");
        assert_eq!(chunk.offset, begin as u64);
        assert_eq!(chunk.dropped, begin as u64 > offset);
        assert!(chunk.bytes == kept.bytes.get(begin..end).unwrap_or_default(), "other bytes");
    }
}

// Whatever is sent, sent again, read and dropped in whatever cuts: the bytes are those of the model, and what is in use
// is what is kept.
pub(crate) fn any_cuts_give_the_same_bytes(open: Open) {
    let mut runner = TestRunner::new(Config { cases: 48, failure_persistence: None, ..Config::default() });
    let steps = proptest::collection::vec(step(), 1..60);
    let outcome = runner.run(&steps, |steps| {
        let opened = open(StoreLimits::default());
        let outputs = &opened.store.outputs;
        let mut model = Model::default();
        for step in &steps {
            model.apply(outputs, step);
        }
        for who in model.streams.keys() {
            model.check(outputs, *who, 0, 1 << 20);
        }
        let kept: usize = model.streams.values().map(|kept| kept.bytes.len() - kept.from).sum();
        prop_assert_eq!(outputs.used_bytes(), kept as u64);
        Ok(())
    });
    outcome.expect("the model holds");
}
