//! Nodes: registering, reporting, falling silent, coming back.
//!
//! ```text
//!             register                 15 s silent            30 s silent: closed
//!   offline ───────────▶ online ─────────────────▶ suspect ───────────────────▶ offline
//!      ▲                   │  ▲──────── any word ─────┘                            │
//!      └── clean stop ─────┘                              60 s since the last word: attempts are lost
//! ```
//!
//! Called by [`super::Hub::step`]. Always true: a new instance of a worker frees what the old one held at once; a
//! worker that comes back with the same instance keeps what the hub still wants from it.
//! Deliberately not here: what is given to a node ([`super::placement`]).

use super::changes::Loss;
use super::effect::{Effect, Out, ToWorker};
use super::input::SessionId;
use super::job::Job;
use super::queue::Class;
use super::record::Record;
use super::{Hub, Session, checked};
use crate::Now;
use crate::hub::keys::too_many;
use crate::limits::{
    AHEAD_MAX, KILL_MAX, LEASE_MS, NODES_MAX, SESSIONS_MAX, SILENCE_MS, SLEPT_MS, SLOTS_MAX, START_WAIT_MS, STARTS_MAX,
    SUSPECT_MS,
};
use essaim_proto::job::Reason;
use essaim_proto::limits::NAMED_TASKS_MAX;
use essaim_proto::link::{AttemptOutputAck, HeldMany, Leave, Register, Registered, Report, Stop};
use essaim_proto::node::{Facts, Load, NodeState, Toolchain};
use essaim_proto::{AttemptId, InstanceId, NodeName, Refusal, RefusalCode};
use std::collections::{BTreeMap, BTreeSet};

/// A node, as far as this hub has seen it since it started.
#[derive(Debug, Clone)]
pub(super) struct LiveNode {
    pub(super) session: Option<SessionId>,
    pub(super) instance: Option<InstanceId>,
    pub(super) state: NodeState,
    pub(super) reason: Reason,
    pub(super) since_ms: u64,
    pub(super) last_word_mono_ms: u64,
    pub(super) local: bool,
    /// The number under which the hub's own `up` started it; 0: it did not.
    pub(super) local_number: u32,
    /// Why it was told to finish and leave.
    pub(super) leaving: Option<Reason>,
    pub(super) slots: u32,
    pub(super) toolchains: Vec<Toolchain>,
    pub(super) probing: bool,
    pub(super) facts: Facts,
    pub(super) load: Option<Load>,
    pub(super) rtt_us: Option<u64>,
    pub(super) labels: BTreeMap<String, String>,
    /// Memory that programs may reserve; 0: nobody has said.
    pub(super) memory_bytes: u64,
    /// Programs at once, whatever they need; 0: as many as slots.
    pub(super) tasks_max: u32,
    /// Others use its processors more than its owner allows.
    pub(super) overloaded: bool,
    /// Attempts that it holds, as far as the hub knows.
    pub(super) held: BTreeSet<AttemptId>,
    /// What those of them reserve that are not leased ahead, and how many they are.
    pub(super) reserved: Needed,
    pub(super) reserved_tasks: u32,
    /// Those that are.
    pub(super) ahead: u32,
    /// When one of them last ended, or the worker was started, on the monotonic clock.
    pub(super) moved_mono_ms: u64,
    /// Slots that were reserved when it registered: more than it has when it came back with fewer of them.
    pub(super) brought: u32,
}

impl LiveNode {
    pub(super) fn offline(now: Now) -> LiveNode {
        LiveNode {
            session: None,
            instance: None,
            state: NodeState::Offline,
            reason: Reason::new("not_seen"),
            since_ms: now.unix_ms,
            last_word_mono_ms: now.mono_ms,
            local: false,
            local_number: 0,
            leaving: None,
            slots: 0,
            toolchains: Vec::new(),
            probing: false,
            facts: Facts::default(),
            load: None,
            rtt_us: None,
            labels: BTreeMap::new(),
            memory_bytes: 0,
            tasks_max: 0,
            overloaded: false,
            held: BTreeSet::new(),
            reserved: Needed::default(),
            reserved_tasks: 0,
            ahead: 0,
            moved_mono_ms: now.mono_ms,
            brought: 0,
        }
    }

    /// Holds the attempt from now on.
    pub(super) fn take(&mut self, attempt: AttemptId, needs: Needed, is_ahead: bool) {
        if !self.held.insert(attempt) {
            return;
        }
        if is_ahead {
            self.ahead += 1;
        } else {
            self.reserved.slots += needs.slots;
            self.reserved.memory_bytes += needs.memory_bytes;
            self.reserved_tasks += 1;
        }
    }

    /// Does not hold it any more.
    pub(super) fn give_back(&mut self, attempt: AttemptId, needs: Needed, is_ahead: bool) {
        if !self.held.remove(&attempt) {
            return;
        }
        if is_ahead {
            self.ahead -= 1;
        } else {
            self.reserved.slots -= needs.slots;
            self.reserved.memory_bytes -= needs.memory_bytes;
            self.reserved_tasks -= 1;
        }
    }

    /// How it stands when it is heard; `draining`: it says that it takes nothing new.
    fn standing(&self, draining: bool) -> NodeState {
        if draining || self.leaving.is_some() { NodeState::Draining } else { NodeState::Online }
    }

    /// Why it takes nothing new.
    fn finishes_because(&self) -> Reason {
        self.leaving.clone().unwrap_or_else(|| Reason::new("draining"))
    }

    pub(super) fn takes_work(&self) -> bool {
        self.session.is_some() && self.state == NodeState::Online
    }

    /// Slots that nothing reserves; what is leased ahead goes on in them until somebody else comes.
    pub(super) fn slots_free(&self) -> u32 {
        self.slots.saturating_sub(self.reserved.slots)
    }

    /// Slots that programs have.
    pub(super) fn slots_used(&self) -> u32 {
        self.reserved.slots.saturating_add(self.ahead).min(self.slots.max(self.reserved.slots))
    }

    /// Slots that nothing runs in, not even what is leased ahead.
    pub(super) fn slots_idle(&self) -> u32 {
        self.slots.saturating_sub(self.slots_used())
    }

    pub(super) fn memory_free(&self) -> u64 {
        self.memory_bytes.saturating_sub(self.reserved.memory_bytes)
    }

    fn tasks_free(&self) -> u32 {
        if self.tasks_max == 0 { u32::MAX } else { self.tasks_max.saturating_sub(self.reserved_tasks) }
    }

    /// Might it take something now?
    pub(super) fn is_open(&self) -> bool {
        self.takes_work() && !self.overloaded && self.slots_free() > 0 && self.tasks_free() > 0
    }

    /// Has it what a class needs that does not change with what runs there?
    pub(super) fn suits(&self, class: &Class) -> bool {
        class.lang.as_ref().is_none_or(|lang| self.has(lang)) && self.has_labels(class)
    }

    pub(super) fn has_labels(&self, class: &Class) -> bool {
        class.labels.iter().all(|(name, value)| self.labels.get(name) == Some(value))
    }

    /// Could a task of the class run if nothing else did?
    pub(super) fn could_fit(&self, class: &Class) -> bool {
        class.slots <= self.slots && (class.memory_bytes == 0 || class.memory_bytes <= self.memory_bytes)
    }

    /// How many tasks of a class it can take now; `ahead`: so many per slot may be leased ahead, 0: none.
    pub(super) fn room(&self, class: &Class, ahead: u32) -> u32 {
        if !self.is_open() {
            return 0;
        }
        let memory = self.memory_free().checked_div(class.memory_bytes).unwrap_or(u64::MAX);
        let fit =
            (self.slots_free() / class.slots.max(1)).min(memory.min(u64::from(u32::MAX)) as u32).min(self.tasks_free());
        if !self.leases_ahead(class, ahead) {
            return fit;
        }
        let most = fit.saturating_mul(ahead).min(AHEAD_MAX);
        // Topped up at half, so that a message carries many.
        if self.ahead <= most / 2 { most - self.ahead } else { 0 }
    }

    /// May tasks of a class be leased ahead here? What is leased ahead runs in the slots of others, in turn with them: it
    /// must need no more than one of them, and nothing that is counted.
    pub(super) fn leases_ahead(&self, class: &Class, ahead: u32) -> bool {
        ahead > 0 && class.memory_bytes == 0 && class.slots == 1 && self.tasks_max == 0
    }

    pub(super) fn has(&self, lang: &str) -> bool {
        self.toolchains.iter().any(|t| t.lang == lang)
    }
}

/// What one task, or all tasks of a node, reserve there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Needed {
    pub(super) slots: u32,
    pub(super) memory_bytes: u64,
}

impl Needed {
    pub(super) fn of(job: &Job) -> Needed {
        let class = job.class();
        Needed { slots: class.slots, memory_bytes: class.memory_bytes }
    }
}

impl Hub {
    pub(super) fn register(&mut self, now: Now, session: SessionId, name: NodeName, register: Register, out: &mut Out) {
        let checked = self.may_register(session, &name).and_then(|()| names_few(register.tasks_named()));
        if let Err(refusal) = checked {
            return out.effects.push(Effect::Refuse { session, request: 0, refusal });
        }
        if !self.durable.nodes.contains(&name) {
            self.note(Record::NodeKnown { name: name.clone() }, out);
        }
        let is_turned = self.local_comes(&register);
        let leaving = self.local_leaves(register.local_number);
        let node = self.live.nodes.entry(name.clone()).or_insert_with(|| LiveNode::offline(now));
        let is_restart = node.instance.is_some_and(|known| known != register.instance);
        if let Some(old) = node.session.replace(session).filter(|old| *old != session) {
            self.live.sessions.remove(&old);
            out.effects.push(Effect::Close { session: old, reason: "replaced" });
        }
        if node.instance.replace(register.instance) != Some(register.instance) {
            node.moved_mono_ms = now.mono_ms;
        }
        node.last_word_mono_ms = now.mono_ms;
        node.local = register.local;
        let leaves = leaving.is_some();
        (node.local_number, node.leaving) = (register.local_number, leaving);
        node.slots = register.slots.clamp(1, SLOTS_MAX);
        node.labels = checked::labels(register.labels);
        node.memory_bytes = register.memory_bytes;
        node.tasks_max = register.tasks_max;
        node.overloaded = false;
        node.toolchains = checked::toolchains(register.toolchains);
        node.probing = register.probing;
        node.facts = checked::facts(register.facts);
        let state = node.standing(register.draining);
        let reason = match register.slept_ms {
            _ if state == NodeState::Draining => node.finishes_because(),
            _ if is_restart => Reason::new("restarted"),
            ms if ms >= SLEPT_MS => Reason::new("slept").with("ms", ms),
            _ => Reason::new("connected"),
        };
        // Over a new connection it stands as before.
        if node.state != state || reason.code != "connected" {
            node.become_state(now, &name, state, reason, out);
        }
        self.live.sessions.insert(session, Session::Worker { node: name.clone() });
        let held: BTreeSet<AttemptId> =
            register.held.into_iter().chain(register.held_many.iter().flat_map(HeldMany::attempts)).collect();
        self.reconcile(now, session, &name, register.instance, held, out);
        if is_turned {
            let leave = Leave { leave: leaves };
            out.effects.push(Effect::Tell { session, message: ToWorker::Leave(leave) });
        }
        self.settle_local(now, out);
        self.place(now, out);
    }

    fn may_register(&self, session: SessionId, name: &NodeName) -> Result<(), Refusal> {
        match self.live.sessions.get(&session) {
            // Said twice on one session: what it says now counts.
            Some(Session::Worker { node }) if node == name => return Ok(()),
            Some(_) => return Err(Refusal::new(RefusalCode::BadValue).with("function", "register")),
            None => {}
        }
        let known = self.live.nodes.get(name);
        let replaces = known.is_some_and(|node| node.session.is_some());
        if self.live.sessions.len() >= SESSIONS_MAX && !replaces {
            return Err(too_many("sessions", SESSIONS_MAX));
        }
        let full = self.durable.nodes.len() >= NODES_MAX && !self.durable.nodes.contains(name);
        if full { Err(too_many("nodes", NODES_MAX)) } else { Ok(()) }
    }

    /// Compares what the worker holds with what the hub believes: keep, kill, start again, or lost.
    fn reconcile(
        &mut self,
        now: Now,
        session: SessionId,
        name: &NodeName,
        instance: InstanceId,
        held: BTreeSet<AttemptId>,
        out: &mut Out,
    ) {
        let Some(node) = self.live.nodes.get_mut(name) else { return };
        node.brought = node.reserved.slots;
        let believed = node.held.clone();
        let keep: Vec<AttemptId> = held.intersection(&believed).copied().collect();
        let kill: Vec<AttemptId> = held.difference(&believed).copied().take(KILL_MAX).collect();
        let is_one = |attempt: &AttemptId| self.durable.jobs.get(&attempt.job).is_none_or(|job| job.array.is_none());
        let (keep_one, keep_of_arrays): (Vec<AttemptId>, Vec<AttemptId>) =
            keep.iter().partition(|attempt| is_one(attempt));
        let (kill_one, kill_of_arrays): (Vec<AttemptId>, Vec<AttemptId>) =
            kill.iter().partition(|attempt| is_one(attempt));
        let ack = |attempt: AttemptId| AttemptOutputAck { attempt, ..Default::default() };
        let registered = Registered {
            name: name.to_string(),
            kill: kill_one,
            keep: keep_one.into_iter().map(ack).collect(),
            keep_many: HeldMany::gather(keep_of_arrays),
            kill_many: HeldMany::gather(kill_of_arrays),
            languages: self.table.probes(),
        };
        out.effects.push(Effect::Tell { session, message: ToWorker::Registered(registered) });
        let is_stopping =
            |hub: &Hub, attempt: &AttemptId| hub.live.attempts.get(attempt).is_some_and(|held| held.stopping);
        let mut again = Vec::new();
        for attempt in believed.difference(&held) {
            // The same start of the worker would have it if it had ever heard of it. With another one it may have run and
            // died: its number is not used again, or two runs could mix their output.
            let placed = self.durable.jobs.get(&attempt.job).and_then(|job| job.placed(attempt.task));
            if placed.map(|(_, instance)| instance) == Some(instance) && !is_stopping(self, attempt) {
                again.push(*attempt);
            } else {
                self.lose_attempt(now, *attempt, Loss::Node, out);
            }
        }
        self.start_again(now, again, session, out);
        for attempt in keep {
            if is_stopping(self, &attempt) {
                out.effects.push(Effect::Tell { session, message: ToWorker::Stop(Stop { attempt }) });
            }
        }
    }

    pub(super) fn report(&mut self, now: Now, session: SessionId, report: Report, rtt_us: Option<u64>, out: &mut Out) {
        let Some(name) = self.node_of(session) else { return };
        if let Err(refusal) = names_few(report.tasks_named()) {
            return out.effects.push(Effect::Refuse { session, request: 0, refusal });
        }
        self.sign_of_life(now, &name, out);
        let Some(node) = self.live.nodes.get_mut(&name) else { return };
        if let Some(toolchains) = report.toolchains {
            node.toolchains = checked::toolchains(toolchains);
        }
        node.probing = report.probing;
        node.load = Some(checked::load(report.load));
        node.overloaded = report.overloaded;
        node.rtt_us = rtt_us.or(node.rtt_us);
        let state = node.standing(report.draining);
        if node.state != state {
            let reason = match state {
                NodeState::Draining => node.finishes_because(),
                _ => Reason::new("connected"),
            };
            node.become_state(now, &name, state, reason, out);
        }
        let named = report.held.into_iter().chain(report.held_many.iter().flat_map(HeldMany::attempts));
        let missing: Vec<AttemptId> = match named.collect::<BTreeSet<AttemptId>>() {
            held if held.is_superset(&node.held) => Vec::new(),
            held => node.held.difference(&held).copied().collect(),
        };
        let again = missing.into_iter().filter(|attempt| self.not_held(now, *attempt, out)).collect();
        self.start_again(now, again, session, out);
        self.place(now, out);
    }

    /// A worker does not name an attempt among those that it holds. It may not have heard of it when it wrote that; after
    /// a while it is told again, and in the end the attempt is lost. Says whether it is to be told now.
    fn not_held(&mut self, now: Now, attempt: AttemptId, out: &mut Out) -> bool {
        let Some(held) = self.live.attempts.get(&attempt) else { return false };
        if now.mono_ms.saturating_sub(held.told_mono_ms) < START_WAIT_MS {
            return false;
        }
        // What it said that it runs, it had: a second run under the same number could mix two outputs.
        let is_told_again = held.phase.is_none() && !held.stopping && held.told < STARTS_MAX;
        if !is_told_again {
            self.lose_attempt(now, attempt, Loss::NotStarted, out);
        }
        is_told_again
    }

    fn start_again(&mut self, now: Now, attempts: Vec<AttemptId>, session: SessionId, out: &mut Out) {
        for HeldMany { job, attempt, tasks } in HeldMany::gather(attempts) {
            self.send_start(now, job, attempt, &tasks, session, out);
        }
    }

    /// Any word of a worker renews its leases and lifts suspicion. Says whether it did: then there is room for work.
    pub(super) fn sign_of_life(&mut self, now: Now, name: &NodeName, out: &mut Out) -> bool {
        let Some(node) = self.live.nodes.get_mut(name) else { return false };
        node.last_word_mono_ms = now.mono_ms;
        let was_suspect = node.state == NodeState::Suspect;
        if was_suspect {
            node.become_state(now, name, NodeState::Online, Reason::new("connected"), out);
        }
        was_suspect
    }

    pub(super) fn close_session(&mut self, now: Now, session: SessionId, clean: bool, out: &mut Out) {
        match self.live.sessions.remove(&session) {
            Some(Session::Client { .. }) => self.cancel_ephemeral(now, session, out),
            Some(Session::Worker { node: name }) => {
                let lost = self.gone_because(now, Reason::new("connection_lost"));
                let Some(node) = self.live.nodes.get_mut(&name) else { return };
                let (state, reason) = match clean {
                    true => (NodeState::Stopped, node.leaving.take().unwrap_or_else(|| Reason::new("clean_stop"))),
                    false => (NodeState::Offline, lost),
                };
                node.session = None;
                node.become_state(now, &name, state, reason, out);
                if clean {
                    // It said goodbye: whatever it held is not coming back.
                    self.lose_all(now, &name, Loss::Stopped, out);
                    self.place(now, out);
                }
            }
            None => {}
        }
    }

    /// `up` saw the process end: no need to wait for a lease.
    pub(super) fn worker_process_ended(&mut self, now: Now, name: NodeName, out: &mut Out) {
        let Some(node) = self.live.nodes.get_mut(&name) else { return };
        if node.state == NodeState::Stopped && node.session.is_none() {
            return; // It had said goodbye.
        }
        if let Some(session) = node.session.take() {
            self.live.sessions.remove(&session);
            out.effects.push(Effect::Close { session, reason: "process_ended" });
        }
        // One that was told to leave and has nothing left has left: its goodbye is on its way.
        let (state, reason) = match node.leaving.take().filter(|_| node.held.is_empty()) {
            Some(reason) => (NodeState::Stopped, reason),
            None => (NodeState::Offline, Reason::new("crashed")),
        };
        node.become_state(now, &name, state, reason, out);
        self.lose_all(now, &name, Loss::Node, out);
        self.place(now, out);
    }

    /// All that a node held is ready again; the caller places it.
    fn lose_all(&mut self, now: Now, name: &NodeName, loss: Loss, out: &mut Out) {
        let held = self.live.nodes.get(name).map(|n| n.held.clone()).unwrap_or_default();
        for attempt in held {
            self.lose_attempt(now, attempt, loss, out);
        }
    }

    pub(super) fn tick(&mut self, now: Now, out: &mut Out) {
        let mut expired = Vec::new();
        let away = self.gone_because(now, Reason::new("silent"));
        for (name, node) in &mut self.live.nodes {
            let silent_ms = now.mono_ms.saturating_sub(node.last_word_mono_ms);
            let silent = || match away.code.as_str() {
                "silent" => away.clone().with("seconds", silent_ms / 1_000),
                _ => away.clone(),
            };
            if let Some(session) = node.session {
                if silent_ms >= SILENCE_MS {
                    out.effects.push(Effect::Close { session, reason: "silence" });
                    self.live.sessions.remove(&session);
                    node.session = None;
                    node.become_state(now, name, NodeState::Offline, silent(), out);
                } else if silent_ms >= SUSPECT_MS && node.state == NodeState::Online {
                    node.become_state(now, name, NodeState::Suspect, silent(), out);
                }
            }
            if silent_ms >= LEASE_MS && !node.held.is_empty() {
                expired.push(name.clone());
            }
        }
        for name in &expired {
            self.lose_all(now, name, Loss::Node, out);
        }
        if !expired.is_empty() {
            self.place(now, out);
        }
        self.take_back(now, out);
        self.mind_local(now, out);
        self.cancel_orphans(now, out);
        self.expire_joins(now, out);
        self.expire_uploads(now);
    }
}

/// May a worker name so many tasks in one message? What it says is worked on one by one.
///
/// # Errors
/// `too_many`; whoever says so is not one of ours, and its session ends.
pub(super) fn names_few(tasks: u64) -> Result<(), Refusal> {
    if tasks > NAMED_TASKS_MAX { Err(too_many("tasks that a worker names", NAMED_TASKS_MAX as usize)) } else { Ok(()) }
}
