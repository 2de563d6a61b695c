//! The workers of the hub's own machine: how many there are to be, and which of them.
//!
//! ```text
//!            something that they could run has waited for LOCAL_WAIT_MS, and all of them are here
//!   1..=N ──────────────────────────────────────────────────────────────────────────────▶ one more, up to M
//!         ◀────────────────────────────────────────────────────────────────────────────── one fewer, the last first
//!            it has held nothing for `idle_ms`, and nothing waits that it could run
//! ```
//!
//! Called by [`Hub::step`] with the plan of `up`, with an administrator's wishes, and at each tick; by [`super::nodes`] when
//! a worker comes or goes. The answer is a set of numbers ([`super::Effect::LocalWorkers`]): `up` starts what is missing; who
//! is here and not in it is told to leave by its own session, finishes what runs and ends.
//! Always true: 1 to N are in the set while local mode is on, none while it is off; nothing beyond M ever is; the mode and
//! the numbers that an administrator sets are durable, the rest is found anew after a restart.
//! Deliberately not here: processes, folders and restarts (the binary's `supervise`), why a task waits ([`super::waiting`]).

use super::Hub;
use super::effect::{Answer, Effect, Out, ToWorker};
use super::input::SessionId;
use super::keys::too_many;
use super::nodes::LiveNode;
use super::queue::Class;
use super::record::Record;
use crate::Now;
use crate::limits::{LOCAL_CLASSES_MAX, LOCAL_WAIT_MS, LOCAL_WORKERS_MAX};
use essaim_proto::api::{LocalSet, LocalWorkers};
use essaim_proto::hello::Role;
use essaim_proto::job::Reason;
use essaim_proto::link::{Leave, Register};
use essaim_proto::node::NodeState;
use essaim_proto::{JobId, NodeName, Refusal, RefusalCode};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What an `up` starts its workers with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LocalPlan {
    /// So many always,
    pub workers: u32,
    /// and up to so many while work waits.
    pub workers_max: u32,
    /// Did its own words say the first, and the second? Then they count more than what an administrator set before.
    pub is_said: [bool; 2],
    /// One beyond the first goes when it has had nothing to do for so long.
    pub idle_ms: u64,
    /// Slots of each.
    pub slots: u32,
    /// What each is called by.
    pub labels: BTreeMap<String, String>,
    /// Memory that each of the first may promise; see [`LocalPlan::memory_of`].
    pub memory_bytes: u64,
}

impl LocalPlan {
    /// Memory that programs may reserve on a worker. Only the first, who share the machine's, have some: no byte is promised
    /// twice, however many are started beside them.
    pub fn memory_of(&self, number: u32) -> u64 {
        if number <= self.workers.max(1) { self.memory_bytes } else { 0 }
    }
}

/// What an administrator has set; what he has not is as `up` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LocalSettings {
    /// Is local mode off?
    pub off: bool,
    /// So many always,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers: Option<u32>,
    /// and up to so many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers_max: Option<u32>,
}

/// The workers of this machine, as this process knows them.
#[derive(Debug, Clone, Default)]
pub(super) struct Local {
    /// None: nobody starts any.
    plan: Option<LocalPlan>,
    /// The numbers of those that are to run.
    wanted: BTreeSet<u32>,
    /// The same as it was told last.
    told: Option<BTreeSet<u32>>,
    /// A job that waits for what one more of them could give, and since when: as long as it does, so does whatever is
    /// behind it.
    witness: Option<(JobId, u64)>,
}

/// A worker of this machine that has nothing to do.
struct Fresh<'a> {
    plan: &'a LocalPlan,
    memory_bytes: u64,
    /// What can be run here, as far as one of them has looked; none: nobody has, and anything may be there.
    langs: Option<BTreeSet<&'a str>>,
}

impl Fresh<'_> {
    /// Could it run a task of the class?
    fn could_run(&self, class: &Class) -> bool {
        let has = |lang: &str| self.langs.as_ref().is_none_or(|langs| langs.contains(lang));
        class.on.is_none()
            && class.slots <= self.plan.slots
            && class.memory_bytes <= self.memory_bytes
            && class.labels.iter().all(|(name, value)| self.plan.labels.get(name) == Some(value))
            && class.lang.as_deref().is_none_or(has)
    }
}

impl Local {
    /// The same for a hub that takes the place of another: what was told may not have left.
    pub(super) fn untold(&self) -> Local {
        Local { told: None, witness: None, ..self.clone() }
    }
}

impl Hub {
    /// `up` says what it starts workers with.
    pub(super) fn plan_local(&mut self, now: Now, plan: LocalPlan, out: &mut Out) {
        let kept = self.durable.local;
        let keep = |number: Option<u32>, is_said: bool| number.filter(|_| !is_said);
        let [workers, max] = plan.is_said;
        let settings =
            LocalSettings { workers: keep(kept.workers, workers), workers_max: keep(kept.workers_max, max), ..kept };
        if settings != kept {
            self.note(Record::LocalChanged { settings }, out);
        }
        self.live.local.plan = Some(plan);
        // Those that outlived an earlier `up` and were here before this one spoke.
        let here = self.live.nodes.values().filter(|node| node.takes_work() && node.local_number > 0);
        self.live.local.wanted.extend(here.map(|node| node.local_number));
        self.settle_local(now, out);
    }

    /// An administrator sets the mode or the numbers.
    pub(super) fn set_local(&mut self, now: Now, session: SessionId, request: u64, set: LocalSet, out: &mut Out) {
        if let Err(refusal) = self.may_set_local(session, set) {
            return out.effects.push(Effect::Refuse { session, request, refusal });
        }
        let kept = self.durable.local;
        let settings = LocalSettings {
            off: set.mode.map_or(kept.off, |mode| !mode),
            workers: set.workers.or(kept.workers),
            workers_max: set.workers_max.or(kept.workers_max),
        };
        if settings != kept {
            self.note(Record::LocalChanged { settings }, out);
        }
        self.settle_local(now, out);
        let answer = Answer::Local(self.local_view().unwrap_or_default());
        out.effects.push(Effect::Answer { session, request, answer });
        self.place(now, out);
    }

    fn may_set_local(&self, session: SessionId, set: LocalSet) -> Result<(), Refusal> {
        self.allowed(session, Role::Admin)?;
        if self.live.local.plan.is_none() {
            return Err(RefusalCode::NoLocalWorkers.into());
        }
        if [set.workers, set.workers_max].into_iter().flatten().any(|number| number > LOCAL_WORKERS_MAX) {
            return Err(too_many("local workers", LOCAL_WORKERS_MAX as usize));
        }
        self.has_room()
    }

    /// How many always, and at most.
    fn local_numbers(&self) -> Option<(u32, u32)> {
        let plan = self.live.local.plan.as_ref()?;
        let workers = self.durable.local.workers.unwrap_or(plan.workers);
        let most = self.durable.local.workers_max.unwrap_or(plan.workers_max);
        Some((workers, most.max(workers)))
    }

    /// The workers of this machine, as lists show them.
    pub(super) fn local_view(&self) -> Option<LocalWorkers> {
        let (workers, workers_max) = self.local_numbers()?;
        let wanted = self.live.local.wanted.len() as u32;
        Some(LocalWorkers { mode: !self.durable.local.off, workers, workers_max, wanted })
    }

    /// Brings the set to what is wanted now, tells it when it is another one, and has those leave or stay whom that
    /// concerns. Those beyond the first stay until they have nothing to do.
    pub(super) fn settle_local(&mut self, now: Now, out: &mut Out) {
        let Some((workers, most)) = self.local_numbers() else { return };
        let local = &mut self.live.local;
        match self.durable.local.off {
            true => local.wanted.clear(),
            false => {
                local.wanted.retain(|number| *number <= most);
                local.wanted.extend(1..=workers);
            }
        }
        if local.told.as_ref() != Some(&local.wanted) {
            local.told = Some(local.wanted.clone());
            out.effects.push(Effect::LocalWorkers { numbers: local.wanted.clone() });
        }
        if !self.durable.local.off {
            // Those that have left stay away until they are started again, and no longer because of that.
            for (name, node) in self.live.nodes.iter_mut().filter(|(_, node)| node.reason.code == "local_mode_off") {
                if node.session.is_none() {
                    node.become_state(now, name, NodeState::Stopped, Reason::new("clean_stop"), out);
                }
            }
        }
        let here = self.live.nodes.iter().filter(|(_, node)| node.session.is_some());
        let turned: Vec<NodeName> = here
            .filter(|(_, node)| node.leaving.is_some() != self.local_leaves(node.local_number).is_some())
            .map(|(name, _)| name.clone())
            .collect();
        for name in turned {
            self.turn(now, &name, out);
        }
    }

    /// Tells a worker of this machine to leave, or to stay after all.
    fn turn(&mut self, now: Now, name: &NodeName, out: &mut Out) {
        let Some(node) = self.live.nodes.get(name) else { return };
        let leaving = self.local_leaves(node.local_number);
        let Some(node) = self.live.nodes.get_mut(name) else { return };
        node.leaving = leaving.clone();
        if let Some(session) = node.session {
            let leave = Leave { leave: leaving.is_some() };
            out.effects.push(Effect::Tell { session, message: ToWorker::Leave(leave) });
        }
        match leaving {
            Some(reason) => node.become_state(now, name, NodeState::Draining, reason, out),
            None => node.become_state(now, name, NodeState::Online, Reason::new("connected"), out),
        }
    }

    /// Why a worker of this number is to leave; none for one that is wanted, and for one that nobody here has started.
    pub(super) fn local_leaves(&self, number: u32) -> Option<Reason> {
        let local = &self.live.local;
        if number == 0 || local.plan.is_none() || local.wanted.contains(&number) {
            return None;
        }
        Some(Reason::new(if self.durable.local.off { "local_mode_off" } else { "not_needed" }))
    }

    /// A worker that outlived its `up` comes: it is one of those beyond the first until it has nothing to do, if there may
    /// be so many. Says whether a word about staying or leaving is due after its registration.
    pub(super) fn local_comes(&mut self, register: &Register) -> bool {
        let Some((_, most)) = self.local_numbers().filter(|_| register.local_number > 0) else { return false };
        if !self.durable.local.off && !register.draining && register.local_number <= most {
            self.live.local.wanted.insert(register.local_number);
        }
        register.draining != self.local_leaves(register.local_number).is_some()
    }

    /// Time has passed: one more, one fewer, or neither.
    pub(super) fn mind_local(&mut self, now: Now, out: &mut Out) {
        let Some((workers, most)) = self.local_numbers() else { return };
        if self.live.draining || self.live.storage_full || self.durable.local.off {
            self.live.local.witness = None;
            return;
        }
        let next = (1..=most).find(|number| !self.live.local.wanted.contains(number));
        let known = self.live.local.witness.filter(|(job, _)| self.still_waits(*job, next));
        let witness = known.or_else(|| Some((self.waits_longest(next)?, now.mono_ms)));
        self.live.local.witness = witness;
        match (witness, next) {
            (Some((_, since)), Some(next)) => {
                let is_due = now.mono_ms.saturating_sub(since) >= LOCAL_WAIT_MS;
                if is_due && self.all_local_are_here() {
                    self.live.local.wanted.insert(next);
                    self.settle_local(now, out);
                }
            }
            (Some(_), None) => {}
            (None, _) => self.retire(now, workers, out),
        }
    }

    /// The last of those beyond the first that have had nothing to do for long enough goes.
    fn retire(&mut self, now: Now, workers: u32, out: &mut Out) {
        let Some(idle_ms) = self.live.local.plan.as_ref().map(|plan| plan.idle_ms) else { return };
        let is_idle = |node: &LiveNode| {
            node.takes_work() && node.held.is_empty() && now.mono_ms.saturating_sub(node.moved_mono_ms) >= idle_ms
        };
        let idle = self.live.nodes.values().filter(|node| is_idle(node)).map(|node| node.local_number);
        let last = idle.filter(|number| *number > workers && self.live.local.wanted.contains(number)).max();
        if let Some(last) = last {
            self.live.local.wanted.remove(&last);
            self.settle_local(now, out);
        }
    }

    /// Are all that are wanted here, and do they know what they can run? One that does not come up would have no better
    /// company, and one that has just come may be enough.
    fn all_local_are_here(&self) -> bool {
        let is_here = |node: &&LiveNode| node.takes_work() && !node.probing && !node.overloaded;
        let here: BTreeSet<u32> = self.live.nodes.values().filter(is_here).map(|node| node.local_number).collect();
        self.live.local.wanted.is_subset(&here)
    }

    /// Does the job still wait for what one more worker could give?
    fn still_waits(&self, id: JobId, next: Option<u32>) -> bool {
        let job = self.durable.jobs.get(&id).filter(|job| self.live.queue.contains(id, job));
        job.is_some_and(|job| self.local_could(self.memory_of_next(next)).is_some_and(|it| it.could_run(job.class())))
    }

    /// Of what waits and one more worker could run, the job that will wait longest: the last of the least urgent.
    fn waits_longest(&self, next: Option<u32>) -> Option<JobId> {
        let fresh = self.local_could(self.memory_of_next(next))?;
        let tails = self.live.queue.tails_anywhere().take(LOCAL_CLASSES_MAX);
        tails.filter(|(class, _)| fresh.could_run(class)).map(|(_, turn)| turn).max().map(|turn| turn.job)
    }

    /// Memory that the next worker would offer. When there can be no next one, that of the last: it is not to go while
    /// something waits for it.
    fn memory_of_next(&self, next: Option<u32>) -> u64 {
        let number = next.or(self.live.local.wanted.last().copied()).unwrap_or_default();
        self.live.local.plan.as_ref().map_or(0, |plan| plan.memory_of(number))
    }

    /// A worker of this machine that has so much memory and nothing to do, if there may be any.
    fn local_could(&self, memory_bytes: u64) -> Option<Fresh<'_>> {
        let plan = self.live.local.plan.as_ref()?;
        let mut known = self.live.nodes.values().filter(|node| node.local_number > 0 && !node.probing).peekable();
        let is_known = known.peek().is_some();
        let langs = known.flat_map(|node| &node.toolchains).map(|tool| tool.lang.as_str()).collect();
        Some(Fresh { plan, memory_bytes, langs: is_known.then_some(langs) })
    }

    /// Could a worker that is not here run it, if one were started?
    pub(super) fn local_might_run(&self, class: &Class) -> bool {
        let Some((_, 1..)) = self.local_numbers() else { return false };
        let memory_bytes = self.live.local.plan.as_ref().map_or(0, |plan| plan.memory_bytes);
        self.local_could(memory_bytes).is_some_and(|fresh| fresh.could_run(class))
    }

    /// Does a job wait because local mode is off? Nobody takes its tasks now, and a worker of this machine could.
    pub(super) fn waits_for_local_mode(&self, class: &Class) -> bool {
        let takes = |node: &LiveNode| node.takes_work() && node.suits(class) && node.could_fit(class);
        self.durable.local.off && self.local_might_run(class) && !self.live.nodes.values().any(takes)
    }

    /// Is the node one of this machine's, and local mode off?
    pub(super) fn is_off(&self, node: &LiveNode) -> bool {
        self.durable.local.off && node.local_number > 0 && self.live.local.plan.is_some()
    }
}
