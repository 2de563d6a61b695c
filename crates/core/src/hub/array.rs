//! The tasks of an array: a range and two bits each, and more only for those that have something to tell.
//!
//! Part of a job in [`super::durable`]; changes only by records. Tasks are counted by their place in the array's set of
//! numbers, from 0.
//!
//! ```text
//!   0 ............ fresh ................... total
//!   placed, again, ended | never placed yet: all ready
//! ```
//!
//! Always true: a task is in exactly one of: placed, again, ended, or not placed yet; the counts agree with that; an ended
//! task stays ended; the memory is bounded by the tasks that run or failed, not by all.
//! Deliberately not here: where tasks run ([`super::placement`]), results of tasks that ended well (the catalog).

use crate::limits::ARRAY_FAILURES_MAX;
use essaim_proto::job::{JobState, TaskResult, TaskState};
use essaim_proto::{InstanceId, NodeName, TaskId, TaskSet};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The tasks of an array.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Array {
    /// Their numbers.
    pub ids: TaskSet,
    /// Two bits each: how it ended, or not.
    ended: Ends,
    /// Tasks from this place on were never placed; the task there is not over.
    fresh: u32,
    /// Tasks before it that are ready again.
    again: BTreeSet<u32>,
    /// Where the present attempts are.
    placed: BTreeMap<u32, Placed>,
    /// Tasks with more than one attempt.
    tries: BTreeMap<u32, Tries>,
    /// Tasks that somebody wants cancelled, and who; nobody but them when the whole job is.
    unwanted: BTreeMap<u32, String>,
    /// How tasks failed: the first ones of them.
    failures: BTreeMap<u32, Box<TaskResult>>,
    done: u32,
    failed: u32,
    cancelled: u32,
}

/// Where an attempt is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// On which node.
    pub node: NodeName,
    /// Which start of the worker there.
    pub instance: InstanceId,
}

/// What a task went through before its present attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Tries {
    /// The present or last attempt.
    pub attempt: u32,
    /// Attempts that were lost, without those that were given back.
    pub lost: u32,
    /// Attempts whose program failed.
    pub failed: u32,
}

/// Ready tasks that would begin the same attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) tasks: TaskSet,
    pub(super) attempt: u32,
}

impl Array {
    pub(super) fn new(ids: TaskSet) -> Array {
        let ended = Ends::new(ids.len() as usize);
        Array { ids, ended, ..Array::default() }
    }

    /// How many tasks.
    pub fn total(&self) -> u32 {
        self.ended.len
    }

    /// Tasks that ended well, otherwise, and cancelled.
    pub fn ends(&self) -> [u32; 3] {
        [self.done, self.failed, self.cancelled]
    }

    /// Tasks that are not over.
    pub fn live(&self) -> u32 {
        self.total() - self.done - self.failed - self.cancelled
    }

    /// Tasks that a node has.
    pub fn placed_count(&self) -> u32 {
        self.placed.len() as u32
    }

    /// Tasks that are not over and that no node has.
    pub fn ready(&self) -> u32 {
        self.live() - self.placed_count()
    }

    /// How the job stands.
    pub(super) fn state(&self) -> JobState {
        match (self.live(), self.ends()) {
            (0, [_, failed, _]) if failed > 0 => JobState::Failed,
            (0, [_, _, cancelled]) if cancelled > 0 => JobState::Cancelled,
            (0, _) => JobState::Done,
            (_, [0, 0, 0]) if self.placed.is_empty() => JobState::Queued,
            _ => JobState::Running,
        }
    }

    /// How a task stands; a running one counts as placed.
    pub fn task_state(&self, task: TaskId) -> Option<TaskState> {
        let at = self.ids.index_of(task)?;
        Some(match self.ended.get(at) {
            Some(state) => state,
            None if self.placed.contains_key(&at) => TaskState::Placed,
            None => TaskState::Ready,
        })
    }

    /// Where a task is.
    pub fn placed(&self, task: TaskId) -> Option<&Placed> {
        self.placed.get(&self.ids.index_of(task)?)
    }

    /// What a task went through; its `attempt` is the present or last one, 0 before the first.
    pub fn tries(&self, task: TaskId) -> Tries {
        let Some(at) = self.ids.index_of(task) else { return Tries::default() };
        self.tries_at(at)
    }

    fn tries_at(&self, at: u32) -> Tries {
        let known = self.tries.get(&at).copied();
        known.unwrap_or(Tries { attempt: u32::from(self.was_placed(at)), ..Tries::default() })
    }

    fn was_placed(&self, at: u32) -> bool {
        at < self.fresh
    }

    /// How a task failed, if that is among the kept ones.
    pub fn failure(&self, task: TaskId) -> Option<&TaskResult> {
        self.failures.get(&self.ids.index_of(task)?).map(Box::as_ref)
    }

    /// Tasks that a node has, by number.
    pub fn running(&self) -> impl Iterator<Item = (TaskId, &Placed)> {
        self.placed.iter().filter_map(|(at, placed)| Some((self.ids.at(*at)?, placed)))
    }

    /// The failed tasks that are kept, by number.
    pub fn failures(&self) -> impl Iterator<Item = (TaskId, &TaskResult)> {
        self.failures.iter().filter_map(|(at, result)| Some((self.ids.at(*at)?, result.as_ref())))
    }

    /// The tasks that stand in one of these states, by number.
    pub fn in_states<'a>(&'a self, states: &'a [TaskState]) -> impl Iterator<Item = (TaskId, TaskState)> + 'a {
        let of = move |(at, task): (usize, TaskId)| {
            let at = at as u32;
            let state = self.ended.get(at).unwrap_or(match self.placed.contains_key(&at) {
                true => TaskState::Placed,
                false => TaskState::Ready,
            });
            states.contains(&state).then_some((task, state))
        };
        self.ids.iter().enumerate().filter_map(of)
    }

    /// The next ready tasks, at most `most` of them, that would begin the same attempt: those first that had one before.
    pub(super) fn next(&self, most: u32) -> Option<Batch> {
        if let Some(first) = self.again.first() {
            let attempt = self.tries_at(*first).attempt + 1;
            let same =
                self.again.iter().take(most as usize).take_while(|at| self.tries_at(**at).attempt + 1 == attempt);
            let tasks = same.filter_map(|at| self.ids.at(*at)).collect();
            return Some(Batch { tasks, attempt });
        }
        let until = self.fresh.saturating_add(most).min(self.total());
        // What was cancelled before it was placed lies among them.
        let until = (self.fresh..until).find(|at| self.ended.get(*at).is_some()).unwrap_or(until);
        (self.fresh < until).then(|| Batch { tasks: self.ids.slice(self.fresh, until), attempt: 1 })
    }

    /// The ready tasks among `only` (all of them without), as they would end without a run: by their last attempt.
    pub(super) fn ready_among(&self, only: Option<&TaskSet>) -> TaskSet {
        let is_wanted = |task: &TaskId| only.is_none_or(|only| only.contains(*task));
        let again = self.again.iter().copied();
        let fresh = (self.fresh..self.total()).filter(|at| self.ended.get(*at).is_none());
        again.chain(fresh).filter_map(|at| self.ids.at(at)).filter(is_wanted).collect()
    }

    /// A node has these tasks now. What does not fit changes nothing.
    pub(super) fn place(&mut self, tasks: &TaskSet, attempt: u32, node: &NodeName, instance: InstanceId) {
        for task in tasks.iter() {
            let Some(at) = self.ids.index_of(task) else { continue };
            if self.ended.get(at).is_some() || self.placed.contains_key(&at) || self.tries_at(at).attempt + 1 != attempt
            {
                continue;
            }
            if at > self.fresh {
                continue; // Nobody places one and leaves out another before it.
            }
            self.again.remove(&at);
            if at == self.fresh {
                self.fresh += 1;
                self.skip_ended();
            }
            if attempt > 1 {
                self.tries.entry(at).or_default().attempt = attempt;
            }
            self.placed.insert(at, Placed { node: node.clone(), instance });
        }
    }

    /// The attempt is gone: its task is ready again.
    pub(super) fn lose(&mut self, task: TaskId, attempt: u32, what: Gone) {
        let Some(at) = self.current(task, attempt).filter(|at| self.placed.remove(at).is_some()) else { return };
        let tries = self.tries.entry(at).or_insert(Tries { attempt, ..Tries::default() });
        match what {
            Gone::Lost => tries.lost += 1,
            Gone::Failed => tries.failed += 1,
            Gone::GivenBack => {}
        }
        self.again.insert(at);
    }

    /// The task is over. Says whether it was not before.
    pub(super) fn end(&mut self, task: TaskId, attempt: u32, result: &TaskResult) -> bool {
        let Some(at) = self.current(task, attempt) else { return false };
        self.placed.remove(&at);
        self.again.remove(&at);
        self.unwanted.remove(&at);
        let state = result.verdict.task_state();
        self.ended.set(at, state);
        self.skip_ended();
        match state {
            TaskState::Done => self.done += 1,
            TaskState::Cancelled => self.cancelled += 1,
            _ => {
                self.failed += 1;
                if self.failures.len() < ARRAY_FAILURES_MAX {
                    self.failures.insert(at, Box::new(result.clone()));
                }
            }
        }
        true
    }

    /// What ended before it was placed is never placed.
    fn skip_ended(&mut self) {
        while self.ended.get(self.fresh).is_some() {
            self.fresh += 1;
        }
    }

    /// The place of a task that is not over and whose present attempt this is.
    fn current(&self, task: TaskId, attempt: u32) -> Option<u32> {
        let at = self.ids.index_of(task)?;
        (self.ended.get(at).is_none() && self.tries_at(at).attempt == attempt).then_some(at)
    }

    /// Somebody wants these cancelled.
    pub(super) fn unwant(&mut self, tasks: &TaskSet, by: &str) {
        let places = tasks.iter().filter_map(|task| self.ids.index_of(task)).collect::<Vec<u32>>();
        for at in places.into_iter().filter(|at| self.ended.get(*at).is_none()) {
            self.unwanted.entry(at).or_insert_with(|| by.to_owned());
        }
    }

    /// Who wants the task cancelled, beside who wants that of the whole job.
    pub fn unwanted_by(&self, task: TaskId) -> Option<&str> {
        self.unwanted.get(&self.ids.index_of(task)?).map(String::as_str)
    }

    /// About what it costs in memory.
    pub(super) fn bytes(&self) -> usize {
        // What changes while it runs is not counted: slots and failures have limits of their own.
        self.ended.bits.len() + self.ids.ranges() * 12
    }

    /// Do its parts agree?
    pub(super) fn check(&self) -> Result<(), &'static str> {
        let mut counted = [0_u32; 3];
        for at in 0..self.total() {
            match self.ended.get(at) {
                Some(TaskState::Done) => counted[0] += 1,
                Some(TaskState::Failed) => counted[1] += 1,
                Some(_) => counted[2] += 1,
                None => {
                    let places = usize::from(self.placed.contains_key(&at))
                        + usize::from(self.again.contains(&at))
                        + usize::from(at >= self.fresh);
                    if places != 1 {
                        return Err("a task is in no place, or in several");
                    }
                    continue;
                }
            }
            if self.placed.contains_key(&at) || self.again.contains(&at) {
                return Err("a task that is over is somewhere");
            }
        }
        if counted != self.ends() {
            return Err("the counts of ended tasks are wrong");
        }
        Ok(())
    }
}

/// Why an attempt is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gone {
    /// With its worker.
    Lost,
    /// In good order: it does not count as a try.
    GivenBack,
    /// Its program failed and may try again.
    Failed,
}

/// Two bits per task.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
struct Ends {
    len: u32,
    #[serde(with = "serde_bytes")]
    bits: Vec<u8>,
}

impl Ends {
    fn new(len: usize) -> Ends {
        Ends { len: len as u32, bits: vec![0; len.div_ceil(4)] }
    }

    fn get(&self, at: u32) -> Option<TaskState> {
        let byte = self.bits.get(at as usize / 4)?;
        match byte >> (at % 4 * 2) & 3 {
            1 => Some(TaskState::Done),
            2 => Some(TaskState::Failed),
            3 => Some(TaskState::Cancelled),
            _ => None,
        }
    }

    fn set(&mut self, at: u32, state: TaskState) {
        let code = match state {
            TaskState::Done => 1,
            TaskState::Cancelled => 3,
            _ => 2,
        };
        if let Some(byte) = self.bits.get_mut(at as usize / 4) {
            *byte |= code << (at % 4 * 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use essaim_proto::job::Verdict;
    use proptest::prelude::*;

    fn node() -> NodeName {
        "here".parse().unwrap()
    }

    fn result(verdict: Verdict) -> TaskResult {
        TaskResult { verdict, ..TaskResult::default() }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Place(u32),
        Lose(u32, bool),
        End(u32, Verdict),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (1_u32..5).prop_map(Step::Place),
            (0_u32..40, any::<bool>()).prop_map(|(task, given_back)| Step::Lose(task, given_back)),
            (0_u32..40, prop_oneof![Just(Verdict::Ok), Just(Verdict::RuntimeError), Just(Verdict::Cancelled)])
                .prop_map(|(task, verdict)| Step::End(task, verdict)),
        ]
    }

    proptest! {
        // Whatever happens in whatever order: the parts agree, nothing ends twice, and in the end everything is over.
        #[test]
        fn parts_agree(steps in proptest::collection::vec(step(), 0..120)) {
            let mut array = Array::new("1-19:2,20-29".parse().unwrap());
            let mut over = 0;
            for step in steps {
                match step {
                    Step::Place(most) => {
                        if let Some(batch) = array.next(most) {
                            let before = array.ready();
                            array.place(&batch.tasks, batch.attempt, &node(), InstanceId::default());
                            prop_assert_eq!(array.ready(), before - batch.tasks.len() as u32);
                        }
                    }
                    Step::Lose(task, given_back) => {
                        let attempt = array.tries(TaskId(task)).attempt;
                        array.lose(TaskId(task), attempt, if given_back { Gone::GivenBack } else { Gone::Lost });
                    }
                    Step::End(task, verdict) => {
                        let attempt = array.tries(TaskId(task)).attempt;
                        over += u32::from(array.end(TaskId(task), attempt, &result(verdict)));
                        prop_assert!(!array.end(TaskId(task), attempt, &result(verdict)), "ended twice");
                    }
                }
                prop_assert_eq!(array.check(), Ok(()));
                prop_assert_eq!(array.total() - array.live(), over);
            }
            while let Some(batch) = array.next(7) {
                array.place(&batch.tasks, batch.attempt, &node(), InstanceId::default());
                for task in batch.tasks.iter() {
                    prop_assert!(array.end(task, batch.attempt, &result(Verdict::Ok)));
                }
            }
            let placed: Vec<TaskId> = array.running().map(|(task, _)| task).collect();
            for task in placed {
                let attempt = array.tries(task).attempt;
                prop_assert!(array.end(task, attempt, &result(Verdict::Ok)));
            }
            prop_assert_eq!(array.live(), 0);
            prop_assert!(array.state().is_over());
            prop_assert_eq!(array.check(), Ok(()));
            let back: Array = essaim_proto::decode(&essaim_proto::encode(&array)).unwrap();
            prop_assert_eq!(back, array);
        }
    }
}
