//! Why something waits: the one answer for every face, for a class of tasks and node by node.
//!
//! Called by [`super::view`] when somebody asks and by [`super::jobs`] before a job is accepted. Always true: it is computed
//! from what [`super::placement`] looks at, at the moment of the question; a node that is not ruled out has room.
//! Deliberately not here: the decision ([`super::placement`]), what a wait is called in French (`view`).

use super::Hub;
use super::job::Job;
use super::nodes::LiveNode;
use super::queue::Class;
use crate::Now;
use crate::lang::Program;
use crate::limits::{KEPT_FOR_MAX, TAKE_BACK_MS};
use essaim_proto::api::RuledOut;
use essaim_proto::job::{JobSpec, Reason};
use essaim_proto::node::NodeState;
use essaim_proto::{NodeName, Refusal, RefusalCode};
use std::collections::{BTreeMap, BTreeSet};

/// Nodes that an answer names one by one.
const RULED_OUT_MAX: usize = 50;

impl Hub {
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
        if hopeless && !self.local_might_run(&Class::of_spec(spec, Some(lang.clone()))) {
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

    /// Why the ready tasks of a job wait.
    pub(super) fn wait_reason(&self, job: &Job) -> Reason {
        let awaited = self.durable.awaited(job);
        if !awaited.is_empty() {
            let jobs: Vec<String> = awaited.iter().take(10).map(ToString::to_string).collect();
            return Reason::new("after").with("jobs", jobs.join(", "));
        }
        if self.live.draining {
            return Reason::new("hub_draining");
        }
        if self.live.storage_full {
            return Reason::new("hub_full");
        }
        let class = job.class();
        if let Some(on) = &class.on {
            return self.wait_for_node(on, class);
        }
        if self.waits_for_local_mode(class) {
            return Reason::new("local_mode_off");
        }
        let connected: Vec<&LiveNode> = self.live.nodes.values().filter(|n| n.session.is_some()).collect();
        if connected.is_empty() {
            return Reason::new("no_node");
        }
        let lang = class.lang.as_ref();
        let able: Vec<&LiveNode> = connected.iter().copied().filter(|n| lang.is_none_or(|l| n.has(l))).collect();
        if able.is_empty() {
            let lang = class.lang.clone().unwrap_or_default();
            let probing = connected.iter().filter(|n| n.probing).count();
            return match probing {
                0 => Reason::new("no_toolchain").with("tool", self.table.tools(&lang)).with("lang", lang),
                n => Reason::new("node_probing").with("nodes", n),
            };
        }
        let able: Vec<&LiveNode> = able.into_iter().filter(|n| n.has_labels(class) && n.could_fit(class)).collect();
        if able.is_empty() {
            return Reason::new("no_node_fits").with("nodes", connected.len());
        }
        let all = |state| able.iter().all(|node| node.state == state);
        if all(NodeState::Suspect) {
            return Reason::new("all_silent");
        }
        if all(NodeState::Draining) {
            return Reason::new("all_draining");
        }
        if able.iter().all(|node| node.takes_work() && node.overloaded) {
            return Reason::new("all_overloaded");
        }
        let taking: Vec<&LiveNode> = able.into_iter().filter(|n| n.takes_work() && !n.overloaded).collect();
        let is_plain = class.slots == 1 && class.memory_bytes == 0;
        if is_plain && !taking.is_empty() && taking.iter().all(|node| node.slots_idle() == 0) {
            let slots: u32 = taking.iter().map(|node| node.slots).sum();
            return Reason::new("no_free_slot").with("busy", slots).with("slots", slots);
        }
        // It would fit if nothing were kept free.
        let fits =
            |name: &NodeName| self.live.nodes.get(name).is_some_and(|node| self.rules_out(node, class).is_none());
        if let Some((_, reason)) = self.reserved(class).into_iter().find(|(name, _)| fits(name)) {
            return reason;
        }
        let reason = Reason::new("no_room").with("slots", class.slots);
        match class.memory_bytes {
            0 => reason,
            bytes => reason.with("memory", bytes),
        }
    }

    fn wait_for_node(&self, on: &NodeName, class: &Class) -> Reason {
        let Some(node) = self.live.nodes.get(on) else { return Reason::new("node_offline").with("node", on) };
        match self.rules_out(node, class).or_else(|| self.reserved(class).remove(on)) {
            Some(reason) if reason.code != "slots_busy" => reason.with("node", on),
            _ => Reason::new("node_busy").with("node", on),
        }
    }

    /// Each node that does not take a job's tasks now, by name, and why.
    pub(super) fn ruled_out(&self, job: &Job) -> Vec<RuledOut> {
        let class = job.class();
        let mut reserved = self.reserved(class);
        let told = |(name, node): (&NodeName, &LiveNode)| {
            let reason = match &class.on {
                Some(on) if on != name => Some(Reason::new("not_wanted").with("wanted", on)),
                _ => self.rules_out(node, class).or_else(|| reserved.remove(name)),
            };
            Some(RuledOut { node: name.to_string(), reason: reason? })
        };
        self.live.nodes.iter().filter_map(told).take(RULED_OUT_MAX).collect()
    }

    /// Nodes that are kept free for tasks of other classes whose turn is before, as [`Hub::place`] left them.
    fn reserved(&self, class: &Class) -> BTreeMap<NodeName, Reason> {
        let (mut kept, mut reasons) = (BTreeSet::new(), BTreeMap::new());
        let heads = self.waiting_heads().into_iter().take_while(|head| *head.class != *class);
        for head in heads.filter(|head| head.class.is_wide()).take(KEPT_FOR_MAX) {
            if let Some(node) = self.keep_free(&head.class, &kept) {
                reasons.insert(node.clone(), Reason::new("reserved").with("job", head.turn.job));
                kept.insert(node);
            }
        }
        reasons
    }

    /// What keeps a node from taking a task of a class, the most lasting thing first.
    fn rules_out(&self, node: &LiveNode, class: &Class) -> Option<Reason> {
        if self.is_off(node) {
            return Some(Reason::new("local_mode_off"));
        }
        if node.session.is_none() {
            return Some(Reason::new("node_offline"));
        }
        if node.state == NodeState::Draining {
            return Some(Reason::new("node_draining"));
        }
        if node.state == NodeState::Suspect {
            return Some(Reason::new("node_silent"));
        }
        if let Some((name, value)) = class.labels.iter().find(|(name, value)| node.labels.get(*name) != Some(*value)) {
            return Some(Reason::new("no_label").with("label", format!("{name}={value}")));
        }
        if let Some(lang) = class.lang.as_ref().filter(|lang| !node.has(lang)) {
            return Some(match node.probing {
                true => Reason::new("node_probing").with("nodes", 1),
                false => Reason::new("no_toolchain").with("tool", self.table.tools(lang)).with("lang", lang),
            });
        }
        if class.slots > node.slots {
            return Some(Reason::new("too_few_slots").with("slots", node.slots).with("needs", class.slots));
        }
        if class.memory_bytes > 0 && class.memory_bytes > node.memory_bytes {
            let reason = Reason::new("too_little_memory").with("bytes", node.memory_bytes);
            return Some(reason.with("needs", class.memory_bytes));
        }
        if node.overloaded {
            return Some(Reason::new("overloaded"));
        }
        if node.tasks_max > 0 && node.room(class, 0) == 0 && node.slots_free() >= class.slots {
            return Some(Reason::new("tasks_max").with("limit", node.tasks_max));
        }
        if class.slots > node.slots_idle() {
            return Some(match class.slots {
                1 => Reason::new("slots_busy").with("slots", node.slots),
                needs => Reason::new("slots_taken").with("free", node.slots_idle()).with("needs", needs),
            });
        }
        if class.memory_bytes > node.memory_free() {
            let reason = Reason::new("memory_in_use").with("free", node.memory_free());
            return Some(reason.with("needs", class.memory_bytes));
        }
        None
    }

    /// Nodes on which what was leased ahead stands still while another node has nothing to do, or while others have all of
    /// their slots.
    pub(super) fn stuck(&self, now: Now) -> Vec<NodeName> {
        let is_idle = |node: &LiveNode| node.is_open() && node.held.is_empty();
        let somewhere = self.live.nodes.values().any(is_idle);
        let stands = |node: &LiveNode| {
            let waits = if node.slots_free() == 0 { node.ahead > 0 } else { somewhere && node.ahead > node.slots };
            waits && node.takes_work() && now.mono_ms.saturating_sub(node.moved_mono_ms) >= TAKE_BACK_MS
        };
        self.live.nodes.iter().filter(|(_, node)| stands(node)).map(|(name, _)| name.clone()).collect()
    }
}
