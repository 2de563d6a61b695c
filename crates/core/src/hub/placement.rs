//! Where a task runs: the oldest ready task first, on the node with the largest share of free slots.
//!
//! [`Hub::place`] is called whenever a task becomes ready or a slot free: no timer, no round. Always true: a node holds
//! at most as many attempts as it has slots; tasks with equal needs (a class) are looked at once, and classes of
//! nodes without a free slot not at all, so the work is bounded by the free slots and not by the length of the queue.
//! Deliberately not here: priorities, shares, reservations (a later issue), what a wait is called in French (`view`).

use super::durable::Job;
use super::effect::{Effect, Out, ToWorker};
use super::input::SessionId;
use super::nodes::LiveNode;
use super::record::Record;
use super::{Held, Hub};
use crate::Now;
use crate::lang::Program;
use essaim_proto::job::{JobSpec, Reason};
use essaim_proto::link::Start;
use essaim_proto::node::NodeState;
use essaim_proto::{AttemptId, JobId, NodeName, Refusal, RefusalCode};
use std::collections::BTreeSet;

/// What a task needs: tasks with equal needs wait for the same thing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Class {
    /// First, so that the classes of one node lie side by side, and those of no node before all others.
    on: Option<NodeName>,
    lang: Option<String>,
}

impl Class {
    pub(super) fn of(job: &Job) -> Class {
        Class { on: job.spec.on.clone(), lang: job.spec.lang.clone() }
    }
}

impl Hub {
    /// Gives ready tasks to free slots until one of the two runs out.
    pub(super) fn place(&mut self, now: Now, out: &mut Out) {
        if self.live.draining || self.live.storage_full || self.live.ready.is_empty() {
            return;
        }
        // Oldest first among the classes that can run; a class that cannot is not looked at again in this call.
        let mut heads = self.heads();
        while let Some((job, class)) = heads.pop_first() {
            let Some(node) = self.best_node(&class, self.live.avoid.get(&job)) else { continue };
            self.give(now, job, &class, node, out);
            if let Some(next) = self.live.ready.get(&class).and_then(BTreeSet::first) {
                heads.insert((*next, class));
            }
        }
    }

    /// The oldest task of each class that a free slot might suit. Classes of nodes without one are not looked at.
    fn heads(&self) -> BTreeSet<(JobId, Class)> {
        let mut open = self.live.nodes.iter().filter(|(_, node)| node.has_room()).map(|(name, _)| name).peekable();
        if open.peek().is_none() {
            return BTreeSet::new();
        }
        let mut heads: BTreeSet<(JobId, Class)> = self.heads_on(None).collect();
        let some_name_a_node = self.live.ready.keys().next_back().is_some_and(|class| class.on.is_some());
        if some_name_a_node {
            heads.extend(open.flat_map(|name| self.heads_on(Some(name))));
        }
        heads
    }

    fn heads_on<'a>(&'a self, on: Option<&'a NodeName>) -> impl Iterator<Item = (JobId, Class)> + 'a {
        let first = Class { on: on.cloned(), lang: None };
        let classes = self.live.ready.range(first..).take_while(move |(class, _)| class.on.as_ref() == on);
        classes.filter_map(|(class, jobs)| Some((*jobs.first()?, class.clone())))
    }

    /// The freest node that suits, `avoid` only when there is no other.
    fn best_node(&self, class: &Class, avoid: Option<&NodeName>) -> Option<NodeName> {
        let suits = |node: &LiveNode| node.has_room() && class.lang.as_ref().is_none_or(|lang| node.has(lang));
        if let Some(on) = &class.on {
            return self.live.nodes.get(on).filter(|node| suits(node)).map(|_| on.clone());
        }
        // Compared as free_a * slots_b: no division, no rounding; the name decides between equals.
        let freer = |a: &LiveNode, b: &LiveNode| {
            let (left, right) = (a.slots_free() as u64 * b.slots as u64, b.slots_free() as u64 * a.slots as u64);
            left > right
        };
        let nodes = self.live.nodes.iter().filter(|(_, node)| suits(node));
        let best = nodes.reduce(|best, next| match (avoid == Some(best.0), avoid == Some(next.0)) {
            (true, false) => next,
            (false, true) => best,
            _ if freer(next.1, best.1) => next,
            _ => best,
        });
        best.map(|(name, _)| name.clone())
    }

    fn give(&mut self, now: Now, job: JobId, class: &Class, node: NodeName, out: &mut Out) {
        self.no_longer_ready(class, job);
        let known = &self.durable.jobs[&job];
        let last = known.attempt_id(job);
        let attempt = AttemptId { attempt: last.attempt + 1, ..last };
        let start = match self.start_of(attempt) {
            Ok(start) => start,
            Err(refusal) => return self.reject(now, last, refusal, out),
        };
        let instance = self.live.nodes.get(&node).and_then(|node| node.instance).unwrap_or_default();
        self.note(Record::TaskPlaced { attempt, node: node.clone(), instance }, out);
        self.live.attempts.insert(attempt, Held { told: 1, ..Held::by(node.clone(), now) });
        if let Some(known) = self.live.nodes.get_mut(&node) {
            known.held.insert(attempt);
            if let Some(session) = known.session {
                out.effects.push(Effect::Tell { session, message: ToWorker::Start(start) });
            }
        }
        self.job_changed(now, job, out);
    }

    /// Tells a worker again to start an attempt; a worker that has it already ignores it.
    pub(super) fn send_start(&mut self, now: Now, attempt: AttemptId, session: SessionId, out: &mut Out) {
        if let Some(held) = self.live.attempts.get_mut(&attempt) {
            (held.told_mono_ms, held.told) = (now.mono_ms, held.told + 1);
        }
        match self.start_of(attempt) {
            Ok(start) => out.effects.push(Effect::Tell { session, message: ToWorker::Start(start) }),
            Err(refusal) => self.reject(now, attempt, refusal, out),
        }
    }

    /// What a worker needs to know to run an attempt.
    ///
    /// # Errors
    /// The job was resolved when it was accepted; a table that has changed since may refuse it now.
    fn start_of(&self, attempt: AttemptId) -> Result<Box<Start>, Refusal> {
        let no_such = || Refusal::new(RefusalCode::NoSuchJob).with("job", attempt.job);
        let job = self.durable.jobs.get(&attempt.job).ok_or_else(no_such)?;
        let program = self.table.resolve(&job.spec)?;
        Ok(Box::new(Start {
            attempt,
            lang: program.lang.unwrap_or_default(),
            files: job.spec.files.clone(),
            phases: program.phases,
            stdin: job.spec.stdin,
            ..Start::default()
        }))
    }

    /// Refuses what no node could ever run, as far as the hub knows now: a toolchain that nobody has, a node that
    /// nobody knows. Whoever is still looking, or not connected, may have it.
    pub(super) fn check_possible(&self, spec: &JobSpec, program: &Program) -> Result<(), Refusal> {
        if let Some(on) = &spec.on {
            if !self.durable.nodes.contains(on) && !self.live.nodes.contains_key(on) {
                let refusal = Refusal::new(RefusalCode::NoSuchNode).with("node", on);
                return Err(refusal.with("near", self.near_node(on.as_str())));
            }
            let (Some(lang), Some(node)) = (&program.lang, self.live.nodes.get(on)) else { return Ok(()) };
            if node.session.is_some() && !node.probing && !node.has(lang) {
                let refusal = Refusal::new(RefusalCode::NoToolchainOnNode).with("node", on).with("lang", lang);
                return Err(refusal.with("tool", self.table.tools(lang)));
            }
            return Ok(());
        }
        let Some(lang) = &program.lang else { return Ok(()) };
        let connected: Vec<&LiveNode> = self.live.nodes.values().filter(|n| n.session.is_some()).collect();
        let hopeless = !connected.is_empty() && connected.iter().all(|n| !n.probing && !n.has(lang));
        if hopeless {
            let refusal = Refusal::new(RefusalCode::NoToolchain).with("lang", lang);
            return Err(refusal.with("tool", self.table.tools(lang)).with("nodes", connected.len()));
        }
        Ok(())
    }

    /// The known node whose name is nearest to a mistyped one, or nothing.
    fn near_node(&self, wanted: &str) -> String {
        // Letters that are not in the common beginning nor in the common end: cheap, and good for one slip of a finger.
        let distance = |name: &str| {
            let same = |(a, b): &(char, char)| a.eq_ignore_ascii_case(b);
            let shorter = name.len().min(wanted.len());
            let beginning = name.chars().zip(wanted.chars()).take_while(same).count();
            let end = name.chars().rev().zip(wanted.chars().rev()).take_while(same).count();
            match (beginning + end).min(shorter) {
                0 => usize::MAX,
                alike => name.len().max(wanted.len()) - alike,
            }
        };
        let names = self.durable.nodes.iter().chain(self.live.nodes.keys());
        let near = names.map(|n| n.as_str()).min_by_key(|n| distance(n)).filter(|n| distance(n) <= 3);
        near.unwrap_or_default().to_owned()
    }

    /// Why the tasks of a class wait: the one sentence for every face. Computed when someone asks.
    pub(super) fn wait_reason(&self, job: &Job) -> Reason {
        if self.live.draining {
            return Reason::new("hub_draining");
        }
        if self.live.storage_full {
            return Reason::new("hub_full");
        }
        let Class { lang, on } = Class::of(job);
        if let Some(on) = &on {
            return self.wait_for_node(on, lang.as_deref());
        }
        let connected: Vec<&LiveNode> = self.live.nodes.values().filter(|n| n.session.is_some()).collect();
        if connected.is_empty() {
            return Reason::new("no_node");
        }
        let able: Vec<&LiveNode> =
            connected.iter().copied().filter(|n| lang.as_ref().is_none_or(|l| n.has(l))).collect();
        if able.is_empty() {
            let lang = lang.unwrap_or_default();
            let probing = connected.iter().filter(|n| n.probing).count();
            return match probing {
                0 => Reason::new("no_toolchain").with("tool", self.table.tools(&lang)).with("lang", lang),
                n => Reason::new("node_probing").with("nodes", n),
            };
        }
        let taking: Vec<&LiveNode> = able.iter().copied().filter(|n| n.takes_work()).collect();
        if taking.is_empty() {
            let silent = able.iter().any(|n| n.state == NodeState::Suspect);
            return Reason::new(if silent { "node_silent" } else { "node_draining" }).with("node", "all");
        }
        let slots: u32 = taking.iter().map(|n| n.slots).sum();
        let free: u32 = taking.iter().map(|n| n.slots_free()).sum();
        Reason::new("no_free_slot").with("busy", slots.saturating_sub(free)).with("slots", slots)
    }

    fn wait_for_node(&self, on: &NodeName, lang: Option<&str>) -> Reason {
        let named = |code| Reason::new(code).with("node", on);
        match self.live.nodes.get(on) {
            None => named("node_offline"),
            Some(node) if node.session.is_none() => named("node_offline"),
            Some(node) if node.state == NodeState::Draining => named("node_draining"),
            Some(node) if node.state == NodeState::Suspect => named("node_silent"),
            Some(node) if node.probing && lang.is_some_and(|l| !node.has(l)) => {
                Reason::new("node_probing").with("nodes", 1)
            }
            Some(node) if lang.is_some_and(|l| !node.has(l)) => {
                let lang = lang.unwrap_or_default();
                Reason::new("no_toolchain").with("tool", self.table.tools(lang)).with("lang", lang)
            }
            Some(_) => named("node_busy"),
        }
    }
}
