//! Which tasks: ranges of numbers, so that a million of them cost as little as one.
//!
//! An array names its tasks with one, a lease and a record name theirs. As text `1-1000`, `1-99:2`, `3,7,10-20`; in
//! MessagePack a list of `[first, last, step]`; in JSON the text.
//! Always true: the numbers rise from range to range, so the n-th number and the place of a number are found without a
//! look at the others; what was read has at most [`TASK_RANGES_MAX`] ranges, what was gathered task by task may have more
//! and goes into messages and records in [`TaskSet::pieces`].
//! Deliberately not here: how the tasks stand (`core`).

use crate::id::{AttemptId, JobId, TaskId};
use crate::limits::{ARRAY_TASKS_MAX, TASK_RANGES_MAX};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// Numbers from `first` on, each `step` after the one before, up to `last`, which is one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Range {
    first: u32,
    last: u32,
    step: u32,
}

impl Range {
    fn len(self) -> u32 {
        (self.last - self.first) / self.step + 1
    }
}

/// A set of tasks, in rising order.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct TaskSet {
    ranges: Vec<Range>,
}

/// Text or ranges that are no set of tasks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TaskSetError {
    /// Not a list of numbers and ranges.
    #[error("{0:?} is no range of tasks: write 1-1000, 1-99:2 or 3,7,10-20")]
    NotARange(String),
    /// Numbers that do not rise.
    #[error("the tasks must rise, each named once: {0} comes after {1}")]
    NotRising(u32, u32),
    /// More ranges than a message may hold.
    #[error("more than {TASK_RANGES_MAX} ranges of tasks")]
    TooManyRanges,
    /// More tasks than an array may have.
    #[error("more than {ARRAY_TASKS_MAX} tasks")]
    TooManyTasks,
}

impl TaskSet {
    /// The one task.
    pub fn one(task: TaskId) -> TaskSet {
        TaskSet { ranges: vec![Range { first: task.0, last: task.0, step: 1 }] }
    }

    /// The tasks from `first` to `last`, both among them. Empty when `first` is greater.
    pub fn span(first: u32, last: u32) -> TaskSet {
        let ranges = if first <= last { vec![Range { first, last, step: 1 }] } else { Vec::new() };
        TaskSet { ranges }
    }

    /// How many.
    pub fn len(&self) -> u64 {
        self.ranges.iter().map(|range| u64::from(range.len())).sum()
    }

    /// None at all?
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The ranges that it is written as: what a message pays for.
    pub fn ranges(&self) -> usize {
        self.ranges.len()
    }

    /// The first task.
    pub fn first(&self) -> Option<TaskId> {
        self.ranges.first().map(|range| TaskId(range.first))
    }

    /// The last task.
    pub fn last(&self) -> Option<TaskId> {
        self.ranges.last().map(|range| TaskId(range.last))
    }

    /// All of them, rising.
    pub fn iter(&self) -> impl Iterator<Item = TaskId> + '_ {
        let numbers = |range: &Range| (range.first..=range.last).step_by(range.step as usize);
        self.ranges.iter().flat_map(numbers).map(TaskId)
    }

    /// The attempts of this number of all of them, rising.
    pub fn attempts(&self, job: JobId, attempt: u32) -> impl Iterator<Item = AttemptId> + '_ {
        self.iter().map(move |task| AttemptId { job, task, attempt })
    }

    /// The task at place `index`, counted from 0.
    pub fn at(&self, index: u32) -> Option<TaskId> {
        let mut left = index;
        for range in &self.ranges {
            if left < range.len() {
                return Some(TaskId(range.first + left * range.step));
            }
            left -= range.len();
        }
        None
    }

    /// The place of a task, counted from 0.
    pub fn index_of(&self, task: TaskId) -> Option<u32> {
        let mut before = 0;
        for range in &self.ranges {
            if task.0 < range.first {
                return None;
            }
            if task.0 <= range.last {
                let offset = task.0 - range.first;
                return offset.is_multiple_of(range.step).then_some(before + offset / range.step);
            }
            before += range.len();
        }
        None
    }

    /// Is the task among them?
    pub fn contains(&self, task: TaskId) -> bool {
        self.index_of(task).is_some()
    }

    /// The tasks at the places from `from` up to and without `to`, as a set.
    pub fn slice(&self, from: u32, to: u32) -> TaskSet {
        let mut ranges = Vec::new();
        let mut before = 0;
        for range in &self.ranges {
            let (begin, end) = (from.max(before), to.min(before + range.len()));
            if begin < end {
                let at = |index: u32| range.first + (index - before) * range.step;
                let step = if begin + 1 == end { 1 } else { range.step };
                ranges.push(Range { first: at(begin), last: at(end - 1), step });
            }
            before += range.len();
        }
        TaskSet { ranges }
    }

    /// Adds a task that is greater than all others; anything else changes nothing and gives `false`.
    pub fn push(&mut self, task: TaskId) -> bool {
        let Some(last) = self.ranges.last_mut() else {
            self.ranges.push(Range { first: task.0, last: task.0, step: 1 });
            return true;
        };
        if task.0 <= last.last {
            return false;
        }
        let gap = task.0 - last.last;
        if last.first == last.last {
            // One number may begin a range of any step, but only 1 is worth guessing.
            if gap == 1 {
                last.last = task.0;
                return true;
            }
        } else if gap == last.step {
            last.last = task.0;
            return true;
        }
        let last = *last;
        // Three single numbers with equal gaps are a range: every second task of a million is one, not half a million.
        let before = self.ranges.len().checked_sub(2).and_then(|at| self.ranges.get_mut(at));
        match before.filter(|before| before.first == before.last && last.first == last.last) {
            Some(before) if last.first - before.last == gap => {
                (before.last, before.step) = (task.0, gap);
                self.ranges.pop();
            }
            _ => self.ranges.push(Range { first: task.0, last: task.0, step: 1 }),
        }
        true
    }

    /// The same tasks in sets of at most [`TASK_RANGES_MAX`] ranges each, as many as a message or a record holds.
    pub fn pieces(self) -> impl Iterator<Item = TaskSet> {
        let mut ranges = self.ranges;
        std::iter::from_fn(move || {
            let rest = ranges.split_off(ranges.len().min(TASK_RANGES_MAX));
            let piece = std::mem::replace(&mut ranges, rest);
            (!piece.is_empty()).then_some(TaskSet { ranges: piece })
        })
    }

    fn new(ranges: impl Iterator<Item = (u32, u32, u32)>) -> Result<TaskSet, TaskSetError> {
        let mut set = TaskSet::default();
        let mut tasks = 0_u64;
        for (first, last, step) in ranges {
            if let Some(before) = set.ranges.last().filter(|before| before.last >= first) {
                return Err(TaskSetError::NotRising(first, before.last));
            }
            if last < first || step == 0 {
                return Err(TaskSetError::NotRising(last, first));
            }
            let range = Range { first, last: last - (last - first) % step, step };
            let range = if range.first == range.last { Range { step: 1, ..range } } else { range };
            // All numbers at once are one more than a u32 holds.
            tasks += u64::from((range.last - range.first) / range.step) + 1;
            if tasks > ARRAY_TASKS_MAX {
                return Err(TaskSetError::TooManyTasks);
            }
            if set.ranges.len() == TASK_RANGES_MAX {
                return Err(TaskSetError::TooManyRanges);
            }
            set.ranges.push(range);
        }
        Ok(set)
    }
}

impl FromIterator<TaskId> for TaskSet {
    /// Tasks in rising order; one that does not rise is left out.
    fn from_iter<I: IntoIterator<Item = TaskId>>(tasks: I) -> TaskSet {
        let mut set = TaskSet::default();
        for task in tasks {
            set.push(task);
        }
        set
    }
}

impl FromStr for TaskSet {
    type Err = TaskSetError;

    fn from_str(text: &str) -> Result<TaskSet, TaskSetError> {
        let wrong = || TaskSetError::NotARange(text.chars().take(80).collect());
        let number = |text: &str| text.trim().parse::<u32>().map_err(|_| wrong());
        let mut ranges = Vec::new();
        for part in text.split(',') {
            let (span, step) = part.split_once(':').map_or((part, None), |(span, step)| (span, Some(step)));
            let (first, last) = span.split_once('-').unwrap_or((span, span));
            let step = step.map_or(Ok(1), number)?;
            let (first, last) = (number(first)?, number(last)?);
            if last < first || step == 0 {
                return Err(wrong());
            }
            ranges.push((first, last, step));
        }
        TaskSet::new(ranges.into_iter())
    }
}

impl fmt::Display for TaskSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, Range { first, last, step }) in self.ranges.iter().enumerate() {
            if n > 0 {
                f.write_str(",")?;
            }
            write!(f, "{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
            if *step > 1 {
                write!(f, ":{step}")?;
            }
        }
        Ok(())
    }
}

impl Serialize for TaskSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            return serializer.collect_str(self);
        }
        serializer.collect_seq(self.ranges.iter().map(|range| (range.first, range.last, range.step)))
    }
}

impl<'de> Deserialize<'de> for TaskSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TaskSet, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            return if text.is_empty() { Ok(TaskSet::default()) } else { text.parse().map_err(D::Error::custom) };
        }
        let ranges = Vec::<(u32, u32, u32)>::deserialize(deserializer)?;
        TaskSet::new(ranges.into_iter()).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    // What people write is understood, and told back in the same words.
    #[test]
    fn text_is_read_and_written() {
        for (text, tasks) in
            [("1", vec![1]), ("1-3", vec![1, 2, 3]), ("0-9:4", vec![0, 4, 8]), ("3,7,10-12", vec![3, 7, 10, 11, 12])]
        {
            let set: TaskSet = text.parse().unwrap();
            assert_eq!(set.iter().map(|task| task.0).collect::<Vec<_>>(), tasks, "{text}");
        }
        assert_eq!("1-10:4".parse::<TaskSet>().unwrap().to_string(), "1-9:4");
        assert_eq!(" 1 - 3 , 9 ".parse::<TaskSet>().unwrap().to_string(), "1-3,9");
        for text in ["", "x", "1-", "-3", "3-1", "1-3:0", "1,,2", "1-3:2:1", "4294967296", "1-3-5"] {
            assert!(matches!(text.parse::<TaskSet>(), Err(TaskSetError::NotARange(_))), "{text}");
        }
        assert_eq!("1-5,3".parse::<TaskSet>(), Err(TaskSetError::NotRising(3, 5)));
        assert_eq!("0-4294967295".parse::<TaskSet>(), Err(TaskSetError::TooManyTasks));
    }

    // Regular gaps cost one range, and irregular ones are cut into what a record holds.
    #[test]
    fn ranges_stay_few() {
        let even: TaskSet = (0..1_000_000).step_by(2).map(TaskId).collect();
        assert_eq!((even.to_string().as_str(), even.ranges()), ("0-999998:2", 1));
        let one = even.slice(3, 4);
        assert_eq!(one, TaskSet::one(TaskId(6)));
        let uneven = |n: u32| TaskId(n * 10 + n % 2 + n % 3);
        let set: TaskSet = (0..25_000).map(uneven).collect();
        let pieces: Vec<TaskSet> = set.clone().pieces().collect();
        assert!(pieces.len() > 1 && pieces.iter().all(|piece| piece.ranges() <= TASK_RANGES_MAX));
        assert!(pieces.iter().flat_map(TaskSet::iter).eq(set.iter()));
        assert_eq!(TaskSet::default().pieces().count(), 0);
    }

    proptest! {
        // Places and numbers belong together, slices and texts and both encodings lose nothing.
        #[test]
        fn a_set_is_what_it_lists(numbers in proptest::collection::btree_set(0_u32..500, 0..60), cut in 0_u32..70) {
            let set: TaskSet = numbers.iter().map(|number| TaskId(*number)).collect();
            prop_assert_eq!(set.len(), numbers.len() as u64);
            prop_assert!(set.iter().map(|task| task.0).eq(numbers.iter().copied()));
            for (index, number) in numbers.iter().enumerate() {
                prop_assert_eq!(set.at(index as u32), Some(TaskId(*number)));
            }
            for number in 0..510 {
                let index = numbers.iter().position(|known| *known == number).map(|index| index as u32);
                prop_assert_eq!(set.index_of(TaskId(number)), index);
            }
            let (left, right) = (set.slice(0, cut), set.slice(cut, u32::MAX));
            prop_assert!(left.iter().chain(right.iter()).eq(set.iter()));
            let back: TaskSet = crate::decode(&crate::encode(&set)).unwrap();
            prop_assert_eq!(&back, &set);
            let text: TaskSet = serde_json::from_str(&serde_json::to_string(&set).unwrap()).unwrap();
            prop_assert!(text.iter().eq(set.iter()));
        }
    }
}
