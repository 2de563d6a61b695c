//! When the writer looks at which attempt.
//!
//! Callers put attempts in, `writer` takes them out. Always true: an attempt with unwritten bytes stands in the queue, at
//! the time that its `due` says, unless the writer has it in its hands; its lock is held by who moves it.
//! Deliberately not here: what is written, and why it is due.

use super::attempt::{Attempt, Failure};
use super::lock;
use crate::limits::ROUND_ATTEMPTS_MAX;
use essaim_proto::AttemptId;
use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// There may be work.
    work: Condvar,
    /// A round of the writer has ended.
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    due: BTreeSet<Due>,
    /// Somebody waits for memory: whatever there is, is due.
    is_pressed: bool,
    is_stopped: bool,
    /// Rounds that have ended, and what the last one met.
    rounds: u64,
    failure: Option<Failure>,
}

/// An attempt and when it is due.
pub(super) type Due = (Instant, AttemptId);

impl Queue {
    /// The writer looks at it at that time, or earlier if it was to do so already.
    pub(super) fn schedule(&self, id: AttemptId, attempt: &mut Attempt, at: Instant) {
        if attempt.due.is_none_or(|due| at < due) {
            self.postpone(id, attempt, at);
        }
    }

    /// The writer looks at it at that time, not earlier.
    pub(super) fn postpone(&self, id: AttemptId, attempt: &mut Attempt, at: Instant) {
        let mut state = lock(&self.state);
        if let Some(before) = attempt.due.replace(at) {
            state.due.remove(&(before, id));
        }
        state.due.insert((at, id));
        if state.due.first() == Some(&(at, id)) {
            self.work.notify_one();
        }
    }

    /// It needs no look any more.
    pub(super) fn unschedule(&self, id: AttemptId, attempt: &mut Attempt) {
        if let Some(at) = attempt.due.take() {
            lock(&self.state).due.remove(&(at, id));
        }
    }

    /// What the writer took out and could not do goes back to its place.
    pub(super) fn put_back(&self, due: Due) {
        lock(&self.state).due.insert(due);
    }

    /// Waits for work and takes it out, what is due first at its head. `None`: stopped, and nothing is left.
    pub(super) fn next(&self) -> Option<Vec<Due>> {
        let mut state = lock(&self.state);
        loop {
            let is_urgent = state.is_pressed || state.is_stopped;
            let now = Instant::now();
            let first = state.due.first().map(|(at, _)| *at);
            if is_urgent || first.is_some_and(|first| first <= now) {
                break;
            }
            state = match first {
                Some(first) => {
                    let timed = self.work.wait_timeout(state, first - now);
                    timed.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
        if state.is_stopped && state.due.is_empty() {
            return None;
        }
        let is_urgent = state.is_pressed || state.is_stopped;
        state.is_pressed = false;
        let now = Instant::now();
        let mut taken = Vec::new();
        while taken.len() < ROUND_ATTEMPTS_MAX && state.due.first().is_some_and(|(at, _)| is_urgent || *at <= now) {
            taken.extend(state.due.pop_first());
        }
        Some(taken)
    }

    /// Tells who waits for memory that a round has ended. Says whether to go on: not when we are to stop and cannot write.
    pub(super) fn end_round(&self, failure: Option<Failure>) -> bool {
        let mut state = lock(&self.state);
        state.rounds += 1;
        let goes_on = !(state.is_stopped && failure.is_some());
        state.failure = failure;
        self.ended.notify_all();
        goes_on
    }

    /// Has the writer write what there is, and waits until a round has ended.
    pub(super) fn press(&self) -> Result<(), Failure> {
        let mut state = lock(&self.state);
        let before = state.rounds;
        state.is_pressed = true;
        self.work.notify_one();
        while state.rounds == before {
            state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.failure.clone().map_or(Ok(()), Err)
    }

    /// The writer writes what there is and ends.
    pub(super) fn stop(&self) {
        lock(&self.state).is_stopped = true;
        self.work.notify_one();
    }
}
