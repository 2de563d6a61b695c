//! Where a task runs: whose turn it is, then the node with the largest share of free slots.
//!
//! [`Hub::place`] is called whenever a task becomes ready or a slot free: no timer, no round. The order: higher priorities
//! first; among equals the owner who uses least; then the older job. A wide task whose turn it is and that fits nowhere yet
//! keeps a node free for itself, so that narrow ones cannot starve it.
//!
//! Tasks of an array that are short ([`super::pace`]) are leased ahead, some milliseconds of work beyond the slots, so that
//! no slot waits for a round trip. They take no room from others: who comes next goes behind what is leased.
//!
//! Always true: the needs of what a node holds, without what is leased ahead, never exceed what it offers; the work is
//! bounded by what is given, and not by the length of the queue.
//! Deliberately not here: why something waits ([`super::waiting`]), what a wait is called in French (`view`).

use super::array::Batch;
use super::effect::{Effect, Out, ToWorker};
use super::input::SessionId;
use super::nodes::{LiveNode, Needed};
use super::queue::{Class, Head};
use super::record::Record;
use super::{Held, Hub};
use crate::Now;
use crate::limits::{KEPT_FOR_MAX, TAKE_BACK_MS};
use essaim_proto::id::TASK_ONE;
use essaim_proto::limits::BATCH_TASKS_MAX;
use essaim_proto::link::Start;
use essaim_proto::{AttemptId, JobId, NodeName, Refusal, RefusalCode, TaskSet};
use std::borrow::Cow;
use std::collections::BTreeSet;

/// A node that takes tasks now.
struct Choice {
    node: NodeName,
    /// At most so many.
    tasks: u32,
    /// Beyond its slots.
    is_ahead: bool,
}

impl Hub {
    /// Gives ready tasks to free slots until one of the two runs out.
    pub(super) fn place(&mut self, now: Now, out: &mut Out) {
        if self.live.draining || self.live.storage_full || self.live.queue.is_empty() {
            return;
        }
        let mut heads = self.heads();
        // Nodes that wide tasks wait for.
        let mut kept: BTreeSet<NodeName> = BTreeSet::new();
        let mut kept_for = 0;
        // Rooms only shrink while tasks are given: what is larger than all of them need not be compared with each.
        let (slots, memory) = self.largest_rooms();
        while let Some(at) = self.next_head(&heads) {
            let Head { class, owner, turn } = heads[at].clone();
            let may_fit = class.slots <= slots && class.memory_bytes <= memory;
            match may_fit.then(|| self.best_node(&class, turn.job, &kept)).flatten() {
                Some(choice) => {
                    self.give(now, turn.job, choice, out);
                    match self.live.queue.head(&class, &owner) {
                        Some(turn) => heads[at].turn = turn,
                        None => drop(heads.swap_remove(at)),
                    }
                }
                // A class that has no place is not looked at again in this call.
                None => {
                    heads.retain(|head| head.class != class);
                    if class.is_wide() && kept_for < KEPT_FOR_MAX {
                        kept_for += 1;
                        kept.extend(self.keep_free(&class, &kept));
                    }
                }
            }
        }
    }

    /// The most slots and the most memory that are free on one node.
    fn largest_rooms(&self) -> (u32, u64) {
        let open = || self.live.nodes.values().filter(|node| node.is_open());
        let slots = open().map(LiveNode::slots_free).max().unwrap_or(0);
        (slots, open().map(LiveNode::memory_free).max().unwrap_or(0))
    }

    /// The first job of each class and owner that a free slot might suit. Classes of nodes without one are not looked at.
    fn heads(&self) -> Vec<Head> {
        let mut open = self.live.nodes.iter().filter(|(_, node)| node.is_open()).map(|(name, _)| name).peekable();
        if open.peek().is_none() {
            return Vec::new();
        }
        let mut heads: Vec<Head> = self.live.queue.heads_on(None).collect();
        if self.live.queue.names_a_node() {
            heads.extend(open.flat_map(|name| self.live.queue.heads_on(Some(name))));
        }
        heads
    }

    /// The first job of each class, in the order of their turns: what [`Hub::place`] looked at in vain.
    pub(super) fn waiting_heads(&self) -> Vec<Head> {
        let mut heads = self.heads();
        let mut first = Vec::new();
        while let Some(at) = self.next_head(&heads) {
            let head = heads[at].clone();
            heads.retain(|other| other.class != head.class);
            first.push(head);
        }
        first
    }

    /// Whose turn it is.
    fn next_head(&self, heads: &[Head]) -> Option<usize> {
        let order = |head: &Head| (head.turn.priority, self.used(&head.owner), head.turn.job);
        (0..heads.len()).min_by_key(|at| order(&heads[*at]))
    }

    /// Slots that an owner's tasks have now.
    fn used(&self, owner: &essaim_proto::KeyName) -> u64 {
        self.live.used.get(owner).copied().unwrap_or(0)
    }

    /// The freest node that suits, one to avoid only when there is no other.
    fn best_node(&self, class: &Class, job: JobId, kept: &BTreeSet<NodeName>) -> Option<Choice> {
        let ahead = self.live.pace.tasks_ahead(job);
        let avoid = self.live.avoid.get(&job);
        let room = |name: &NodeName, node: &LiveNode| {
            let tasks = if kept.contains(name) { 0 } else { node.room(class, ahead) };
            (tasks > 0 && node.suits(class)).then_some(tasks)
        };
        let is_ahead = |node: &LiveNode| node.leases_ahead(class, ahead);
        if let Some(on) = &class.on {
            let node = self.live.nodes.get(on)?;
            return Some(Choice { node: on.clone(), tasks: room(on, node)?, is_ahead: is_ahead(node) });
        }
        // Compared as free_a * slots_b: no division, no rounding; the name decides between equals.
        let freer = |a: &LiveNode, b: &LiveNode| {
            a.slots_free() as u64 * b.slots as u64 > b.slots_free() as u64 * a.slots as u64
        };
        let mut best: Option<(&NodeName, &LiveNode, u32)> = None;
        let mut others = 0;
        for (name, node) in &self.live.nodes {
            let Some(tasks) = room(name, node) else { continue };
            others += 1;
            let is_better = match best {
                None => true,
                Some((known, _, _)) if avoid == Some(known) => true,
                Some(_) if avoid == Some(name) => false,
                Some((_, known, _)) => freer(node, known),
            };
            if is_better {
                best = Some((name, node, tasks));
            }
        }
        let (name, node, tasks) = best?;
        // Few tasks are spread over all nodes, many fill the first at once.
        let ready = self.durable.jobs.get(&job).map_or(1, |job| job.ready());
        let tasks = tasks.min(ready.div_ceil(others)).max(1);
        Some(Choice { node: name.clone(), tasks, is_ahead: is_ahead(node) })
    }

    /// A node to be kept free for a wide task that fits nowhere now: the one that is nearest to fitting.
    pub(super) fn keep_free(&self, class: &Class, kept: &BTreeSet<NodeName>) -> Option<NodeName> {
        let could = |(name, node): &(&NodeName, &LiveNode)| {
            node.takes_work() && node.could_fit(class) && node.suits(class) && !kept.contains(*name)
        };
        let nodes = self.live.nodes.iter().filter(|(name, _)| class.on.as_ref().is_none_or(|on| on == *name));
        let nearest = nodes.filter(could).max_by_key(|(_, node)| (node.slots_free(), node.memory_free()));
        nearest.map(|(name, _)| name.clone())
    }

    fn give(&mut self, now: Now, id: JobId, choice: Choice, out: &mut Out) {
        let Choice { node, tasks, is_ahead } = choice;
        let Some(batch) = self.durable.jobs.get(&id).and_then(|job| job.next(tasks.min(BATCH_TASKS_MAX as u32))) else {
            return self.no_longer_ready(id);
        };
        let Batch { tasks, attempt } = batch;
        let is_array = self.durable.jobs[&id].array.is_some();
        let first = AttemptId { job: id, task: tasks.first().unwrap_or(TASK_ONE), attempt };
        let start = match self.start_of(first, is_array.then_some(&tasks)) {
            Ok(start) => start,
            Err(refusal) => return self.reject_ready(now, id, refusal, out),
        };
        let instance = self.live.nodes.get(&node).and_then(|node| node.instance).unwrap_or_default();
        let record = match is_array {
            true => Record::TasksPlaced { job: id, tasks: tasks.clone(), attempt, node: node.clone(), instance },
            false => Record::TaskPlaced { attempt: first, node: node.clone(), instance },
        };
        self.note(record, out);
        for attempt in tasks.attempts(id, attempt) {
            self.hold(attempt, Held { told: 1, is_ahead, ..Held::by(node.clone(), now) });
        }
        if self.durable.jobs[&id].ready() == 0 {
            self.no_longer_ready(id);
        }
        if let Some(session) = self.live.nodes.get(&node).and_then(|node| node.session) {
            out.effects.push(Effect::Tell { session, message: ToWorker::Start(start) });
        }
        self.job_changed(now, id, out);
    }

    /// Tells a worker again to start attempts of one job; a worker that has them already ignores it.
    pub(super) fn send_start(
        &mut self,
        now: Now,
        job: JobId,
        attempt: u32,
        tasks: &TaskSet,
        session: SessionId,
        out: &mut Out,
    ) {
        for attempt in tasks.attempts(job, attempt) {
            if let Some(held) = self.live.attempts.get_mut(&attempt) {
                (held.told_mono_ms, held.told) = (now.mono_ms, held.told + 1);
            }
        }
        let is_array = self.durable.jobs.get(&job).is_some_and(|job| job.array.is_some());
        let first = AttemptId { job, task: tasks.first().unwrap_or(TASK_ONE), attempt };
        match self.start_of(first, is_array.then_some(tasks)) {
            Ok(start) => out.effects.push(Effect::Tell { session, message: ToWorker::Start(start) }),
            Err(refusal) => {
                for attempt in tasks.attempts(job, attempt) {
                    self.reject(now, attempt, refusal.clone(), out);
                }
            }
        }
    }

    /// What a worker needs to know to run attempts.
    ///
    /// # Errors
    /// The job was resolved when it was accepted; a table that has changed since may refuse it now.
    fn start_of(&self, attempt: AttemptId, tasks: Option<&TaskSet>) -> Result<Box<Start>, Refusal> {
        let no_such = || Refusal::new(RefusalCode::NoSuchJob).with("job", attempt.job);
        let job = self.durable.jobs.get(&attempt.job).ok_or_else(no_such)?;
        let mut spec = job.accepted.spec();
        let program = self.table.resolve(&spec)?;
        let files = match &mut spec {
            Cow::Borrowed(spec) => spec.files.clone(),
            Cow::Owned(spec) => std::mem::take(&mut spec.files),
        };
        Ok(Box::new(Start {
            attempt,
            lang: program.lang.unwrap_or_default(),
            files,
            phases: program.phases,
            stdin: spec.stdin,
            tasks: tasks.cloned(),
            lines: spec.array.as_ref().and_then(|array| array.lines.clone()),
            needs: spec.needs.clone(),
            priority: spec.priority,
        }))
    }

    /// A task that its worker tells of takes longer than what is leased ahead: it has its slot like any other, so that its
    /// node is full when its slots are.
    pub(super) fn is_long(&mut self, attempt: AttemptId) {
        let Some(held) = self.live.attempts.get_mut(&attempt).filter(|held| held.is_ahead && held.runs()) else {
            return;
        };
        let Some(needs) = self.durable.jobs.get(&attempt.job).map(Needed::of) else { return };
        let Some(node) = self.live.nodes.get_mut(&held.node).filter(|node| node.slots_free() >= needs.slots) else {
            return;
        };
        node.give_back(attempt, needs, true);
        node.take(attempt, needs, false);
        held.is_ahead = false;
    }

    /// What was leased ahead to a node and does not come to its turn there goes back, when another node is free or when
    /// what has the slots there is long: it would wait for them before whatever comes.
    pub(super) fn take_back(&mut self, now: Now, out: &mut Out) {
        for name in self.stuck(now) {
            let Some(node) = self.live.nodes.get(&name) else { continue };
            let Some(session) = node.session else { continue };
            let unstarted = |attempt: &&AttemptId| {
                self.live
                    .attempts
                    .get(attempt)
                    .is_some_and(|held| held.is_ahead && held.phase.is_none() && !held.stopping)
            };
            let mut by_job: Vec<(JobId, TaskSet)> = Vec::new();
            for attempt in node.held.iter().filter(unstarted) {
                match by_job.last_mut() {
                    Some((job, tasks)) if *job == attempt.job => drop(tasks.push(attempt.task)),
                    _ => by_job.push((attempt.job, TaskSet::one(attempt.task))),
                }
            }
            for (job, tasks) in by_job {
                self.live.pace.stalls(job, TAKE_BACK_MS);
                let message = ToWorker::TakeBack(essaim_proto::link::TakeBack { job, tasks });
                out.effects.push(Effect::Tell { session, message });
            }
            if let Some(node) = self.live.nodes.get_mut(&name) {
                node.moved_mono_ms = now.mono_ms;
            }
        }
    }
}
