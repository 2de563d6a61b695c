//! What a watcher of an array knows: which tasks are over, what of their output it has, how they ended.
//!
//! `follow` keeps one. Always true: a byte of an attempt is new once, whatever happens to the connection; a task costs two
//! bits when it is over, so that millions cost as little as their states on the hub.
//! Deliberately not here: asking the hub (`follow`), showing (`screen`, `bar`), exit codes (`exit`).

use crate::exit::Severity;
use essaim_proto::api::{JobEvent, OutputChunk, OutputFrom, Stream};
use essaim_proto::job::{TaskCounts, TaskResult};
use essaim_proto::limits::TASK_RANGES_MAX;
use essaim_proto::{TaskId, TaskSet};
use std::collections::BTreeMap;

/// What is known of an array.
#[derive(Debug)]
pub(crate) struct Tally {
    tasks: TaskSet,
    in_order: bool,
    /// Are there other tasks that nobody wants to see?
    is_part: bool,
    /// Whose output is complete.
    ended: Marks,
    /// Whose end was told.
    told: Marks,
    failures_told: u64,
    seen: BTreeMap<TaskId, Seen>,
    counts: TaskCounts,
    worst: Severity,
    /// In order: whose output came last.
    turn: Option<TaskId>,
}

/// How far the output of a task was received.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    attempt: u32,
    stdout: u64,
    stderr: u64,
}

/// A bit for each task, by its place in the array.
#[derive(Debug, Default)]
struct Marks(Vec<u64>);

impl Marks {
    fn has(&self, place: u32) -> bool {
        self.0.get(place as usize / 64).is_some_and(|word| word >> (place % 64) & 1 == 1)
    }

    /// Marks; `false`: it was marked before.
    fn mark(&mut self, place: u32) -> bool {
        let word = place as usize / 64;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        let is_new = !self.has(place);
        self.0[word] |= 1 << (place % 64);
        is_new
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// New bytes, and whose lines are over with them.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Fresh {
    /// The bytes, as far as they are new.
    pub(crate) chunk: Option<OutputChunk>,
    /// Nothing more comes of this task, or of its attempt before.
    pub(crate) over: Option<TaskId>,
}

impl Tally {
    /// Of an array with these tasks, whose output comes in order or as it comes.
    pub(crate) fn new(tasks: TaskSet, in_order: bool) -> Tally {
        Tally {
            counts: TaskCounts { total: tasks.len(), waiting: tasks.len(), ..TaskCounts::default() },
            tasks,
            in_order,
            is_part: false,
            ended: Marks::default(),
            told: Marks::default(),
            failures_told: 0,
            seen: BTreeMap::new(),
            worst: Severity::default(),
            turn: None,
        }
    }

    /// With output from there on only.
    pub(crate) fn beginning_at(mut self, from: OutputFrom) -> Tally {
        if from.attempt.attempt > 0 {
            let seen = Seen { attempt: from.attempt.attempt, stdout: from.stdout, stderr: from.stderr };
            self.seen.insert(from.attempt.task, seen);
        }
        self
    }

    /// Only these tasks of a larger array.
    pub(crate) fn of_part(mut self) -> Tally {
        self.is_part = true;
        self
    }

    /// Only some tasks of an array?
    pub(crate) fn is_part(&self) -> bool {
        self.is_part
    }

    /// How many stand how.
    pub(crate) fn counts(&self) -> &TaskCounts {
        &self.counts
    }

    /// Is the output wanted in order?
    pub(crate) fn in_order(&self) -> bool {
        self.in_order
    }

    /// The tasks that this watch is about.
    pub(crate) fn tasks(&self) -> &TaskSet {
        &self.tasks
    }

    /// The worst end that was told.
    pub(crate) fn worst(&self) -> Severity {
        self.worst
    }

    /// Failures whose end was told.
    pub(crate) fn failures_told(&self) -> u64 {
        self.failures_told
    }

    /// What of a chunk is new.
    pub(crate) fn fresh(&mut self, mut chunk: OutputChunk) -> Fresh {
        let task = chunk.attempt.task;
        if self.tasks.index_of(task).is_some_and(|place| self.ended.has(place)) {
            return Fresh::default();
        }
        let mut over = None;
        if self.in_order {
            over = self.turn.replace(task).filter(|before| *before != task);
        }
        let seen = self.seen.entry(task).or_default();
        if chunk.attempt.attempt < seen.attempt {
            return Fresh { chunk: None, over };
        }
        if chunk.attempt.attempt > seen.attempt {
            if seen.attempt > 0 {
                over = Some(task);
            }
            *seen = Seen { attempt: chunk.attempt.attempt, ..Seen::default() };
        }
        let known = match chunk.stream {
            Stream::Stdout => &mut seen.stdout,
            Stream::Stderr => &mut seen.stderr,
        };
        let end = chunk.offset + chunk.bytes.len() as u64;
        if end <= *known {
            return Fresh { chunk: None, over };
        }
        let old = known.saturating_sub(chunk.offset) as usize;
        chunk.bytes.drain(..old);
        chunk.offset += old as u64;
        *known = end;
        Fresh { chunk: Some(chunk), over }
    }

    /// Takes an event in. `Some`: the end of a task that is news.
    pub(crate) fn event<'a>(&mut self, event: &'a JobEvent) -> Option<(TaskId, &'a TaskResult)> {
        if let Some(counts) = event.counts {
            self.counts = counts;
        }
        for task in event.ended.iter() {
            if let Some(place) = self.tasks.index_of(task) {
                self.ended.mark(place);
            }
            self.seen.remove(&task);
        }
        let task = event.task.as_ref().filter(|task| task.state.is_over())?;
        let result = task.result.as_ref()?;
        self.tell(task.task, result).then_some((task.task, result))
    }

    /// Is the end of this task news, of which only the state is known?
    pub(crate) fn tell_state(&mut self, task: TaskId) -> bool {
        self.tasks.index_of(task).is_none_or(|place| self.told.mark(place))
    }

    /// Is the end of this task news? It counts once.
    pub(crate) fn tell(&mut self, task: TaskId, result: &TaskResult) -> bool {
        let is_news = self.tell_state(task);
        if is_news {
            let severity = Severity::of(result);
            self.failures_told += u64::from(severity.is_failure());
            self.worst = self.worst.max(severity);
        }
        is_news
    }

    /// The tasks that a new watch shall be about: those whose output is not complete. `None`: all.
    pub(crate) fn rest(&self) -> Option<TaskSet> {
        if self.ended.is_empty() {
            return self.is_part.then(|| self.tasks.clone());
        }
        let left = |(place, task): (usize, TaskId)| (!self.ended.has(place as u32)).then_some(task);
        let rest: TaskSet = self.tasks.iter().enumerate().filter_map(left).collect();
        if rest.ranges() <= TASK_RANGES_MAX {
            return Some(rest);
        }
        // Too scattered to name: from the first one on; what is there already is not new then.
        let first = rest.first().and_then(|task| self.tasks.index_of(task)).unwrap_or(0);
        Some(self.tasks.slice(first, u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use essaim_proto::job::{TaskState, TaskView, Verdict};
    use essaim_proto::{AttemptId, JobId};

    fn chunk(task: u32, attempt: u32, offset: u64, bytes: &[u8]) -> OutputChunk {
        let attempt = AttemptId { job: JobId(7), task: TaskId(task), attempt };
        OutputChunk { attempt, offset, bytes: bytes.to_vec(), ..OutputChunk::default() }
    }

    fn new(tally: &mut Tally, chunk: OutputChunk) -> (String, Option<u32>) {
        let fresh = tally.fresh(chunk);
        let text = fresh.chunk.map(|chunk| String::from_utf8(chunk.bytes).unwrap()).unwrap_or_default();
        (text, fresh.over.map(|task| task.0))
    }

    fn tally(tasks: &str, in_order: bool) -> Tally {
        Tally::new(tasks.parse().unwrap(), in_order)
    }

    fn ended(tasks: &str) -> JobEvent {
        JobEvent { ended: tasks.parse().unwrap(), ..JobEvent::default() }
    }

    // The connection broke, all comes again: only what is new is shown, and a task that is over never again.
    #[test]
    fn a_byte_is_new_once() {
        let mut tally = tally("1-100", false);
        assert_eq!(tally.rest(), None);
        assert_eq!(new(&mut tally, chunk(1, 1, 0, b"abc")), ("abc".into(), None));
        assert_eq!(new(&mut tally, chunk(2, 1, 0, b"xyz")), ("xyz".into(), None));
        tally.event(&ended("2,4-100"));
        assert_eq!(tally.rest().unwrap().to_string(), "1,3");
        assert_eq!(new(&mut tally, chunk(1, 1, 0, b"ab")), (String::new(), None));
        assert_eq!(new(&mut tally, chunk(1, 1, 2, b"cde")), ("de".into(), None));
        assert_eq!(new(&mut tally, chunk(2, 1, 0, b"xyz")), (String::new(), None));
        // Another try begins at 0; what is late of the one before is not new.
        assert_eq!(new(&mut tally, chunk(1, 2, 0, b"a")), ("a".into(), Some(1)));
        assert_eq!(new(&mut tally, chunk(1, 1, 5, b"f")), (String::new(), None));
        // Bytes that the hub no longer has leave a hole and nothing else.
        assert_eq!(new(&mut tally, chunk(1, 2, 9, b"z")), ("z".into(), None));
        tally.event(&ended("1,3"));
        assert_eq!((tally.rest().unwrap().len(), tally.seen.len()), (0, 0));
    }

    // Who begins in the middle is not told what comes before, whether the hub sends it or not.
    #[test]
    fn a_beginning_in_the_middle_is_kept() {
        let from = OutputFrom { attempt: chunk(3, 1, 0, b"").attempt, stdout: 2, stderr: 0 };
        let mut tally = tally("3", false).beginning_at(from);
        assert_eq!(new(&mut tally, chunk(3, 1, 0, b"abcd")), ("cd".into(), None));
        assert_eq!(new(&mut tally, chunk(3, 1, 4, b"e")), ("e".into(), None));
    }

    // In order the next task's first byte ends the one before.
    #[test]
    fn in_order_a_turn_ends_with_the_next() {
        let mut tally = tally("1-3", true);
        assert_eq!(new(&mut tally, chunk(1, 1, 0, b"a")), ("a".into(), None));
        assert_eq!(new(&mut tally, chunk(1, 1, 1, b"b")), ("b".into(), None));
        assert_eq!(new(&mut tally, chunk(2, 1, 0, b"c")), ("c".into(), Some(1)));
    }

    // Scattered remains are named from the first on, within what a message may hold.
    #[test]
    fn the_rest_fits_a_message() {
        let mut tally = tally("1-60000", false);
        // What is left has gaps of one and of two in turn: more ranges than a message takes.
        for tasks in ["1-5", "6-60000:5", "8-60000:5"] {
            tally.event(&ended(tasks));
        }
        assert_eq!(tally.rest().unwrap().to_string(), "7-60000");
        assert_eq!(new(&mut tally, chunk(8, 1, 0, b"again")), (String::new(), None));
    }

    // Each end is told once; the worst one counts.
    #[test]
    fn an_end_is_news_once() {
        let mut tally = tally("1-9", false);
        let result = TaskResult { verdict: Verdict::RuntimeError, exit_code: Some(3), ..TaskResult::default() };
        let view = TaskView { task: TaskId(4), state: TaskState::Failed, result: Some(result), ..TaskView::default() };
        let counts = Some(TaskCounts { total: 9, failed: 1, ..TaskCounts::default() });
        let event = JobEvent { task: Some(view), counts, ..JobEvent::default() };
        assert!(tally.event(&event).is_some());
        assert!(tally.event(&event).is_none());
        assert_eq!((tally.failures_told(), tally.counts().failed, tally.worst().code()), (1, 1, 3));
        let ok = TaskResult { verdict: Verdict::Ok, ..TaskResult::default() };
        assert!(tally.tell(TaskId(5), &ok));
        assert_eq!((tally.failures_told(), tally.worst().code()), (1, 3));
    }
}
