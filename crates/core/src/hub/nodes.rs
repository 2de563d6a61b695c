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
use super::record::Record;
use super::{Hub, Session, checked};
use crate::Now;
use crate::hub::keys::too_many;
use crate::limits::{
    KILL_MAX, LEASE_MS, NODES_MAX, SESSIONS_MAX, SILENCE_MS, SLEPT_MS, SLOTS_MAX, START_WAIT_MS, STARTS_MAX, SUSPECT_MS,
};
use essaim_proto::job::Reason;
use essaim_proto::link::{AttemptOutputAck, Register, Registered, Report, Stop};
use essaim_proto::node::{Facts, Load, NodeState, Toolchain};
use essaim_proto::{AttemptId, InstanceId, NodeName, Refusal, RefusalCode};
use std::collections::BTreeSet;

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
    pub(super) slots: u32,
    pub(super) toolchains: Vec<Toolchain>,
    pub(super) probing: bool,
    pub(super) facts: Facts,
    pub(super) load: Option<Load>,
    pub(super) rtt_us: Option<u64>,
    /// Attempts that it holds, as far as the hub knows.
    pub(super) held: BTreeSet<AttemptId>,
    /// How many it held when it registered: more than its slots when it came back with fewer of them.
    pub(super) brought: usize,
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
            slots: 0,
            toolchains: Vec::new(),
            probing: false,
            facts: Facts::default(),
            load: None,
            rtt_us: None,
            held: BTreeSet::new(),
            brought: 0,
        }
    }

    pub(super) fn takes_work(&self) -> bool {
        self.session.is_some() && self.state == NodeState::Online
    }

    pub(super) fn slots_free(&self) -> u32 {
        self.slots.saturating_sub(self.held.len() as u32)
    }

    pub(super) fn has_room(&self) -> bool {
        self.takes_work() && self.slots_free() > 0
    }

    pub(super) fn has(&self, lang: &str) -> bool {
        self.toolchains.iter().any(|t| t.lang == lang)
    }
}

impl Hub {
    pub(super) fn register(&mut self, now: Now, session: SessionId, name: NodeName, register: Register, out: &mut Out) {
        if let Err(refusal) = self.may_register(session, &name) {
            return out.effects.push(Effect::Refuse { session, request: 0, refusal });
        }
        if !self.durable.nodes.contains(&name) {
            self.note(Record::NodeKnown { name: name.clone() }, out);
        }
        let node = self.live.nodes.entry(name.clone()).or_insert_with(|| LiveNode::offline(now));
        let is_restart = node.instance.is_some_and(|known| known != register.instance);
        if let Some(old) = node.session.replace(session).filter(|old| *old != session) {
            self.live.sessions.remove(&old);
            out.effects.push(Effect::Close { session: old, reason: "replaced" });
        }
        node.instance = Some(register.instance);
        node.last_word_mono_ms = now.mono_ms;
        node.local = register.local;
        node.slots = register.slots.clamp(1, SLOTS_MAX);
        node.toolchains = checked::toolchains(register.toolchains);
        node.probing = register.probing;
        node.facts = checked::facts(register.facts);
        let reason = match register.slept_ms {
            _ if register.draining => Reason::new("draining"),
            _ if is_restart => Reason::new("restarted"),
            ms if ms >= SLEPT_MS => Reason::new("slept").with("ms", ms),
            _ => Reason::new("connected"),
        };
        let state = online_or_draining(register.draining);
        // Over a new connection it stands as before.
        if node.state != state || reason.code != "connected" {
            node.become_state(now, &name, state, reason, out);
        }
        self.live.sessions.insert(session, Session::Worker { node: name.clone() });
        let held: BTreeSet<AttemptId> = register.held.into_iter().collect();
        self.reconcile(now, session, &name, register.instance, held, out);
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
        node.brought = node.held.len();
        let believed = node.held.clone();
        let keep: Vec<AttemptId> = held.intersection(&believed).copied().collect();
        let kill: Vec<AttemptId> = held.difference(&believed).copied().take(KILL_MAX).collect();
        let keep_acks = keep.iter().map(|attempt| AttemptOutputAck { attempt: *attempt, ..Default::default() });
        let registered =
            Registered { name: name.to_string(), kill, keep: keep_acks.collect(), languages: self.table.probes() };
        out.effects.push(Effect::Tell { session, message: ToWorker::Registered(registered) });
        let is_stopping =
            |hub: &Hub, attempt: &AttemptId| hub.live.attempts.get(attempt).is_some_and(|held| held.stopping);
        for attempt in believed.difference(&held) {
            // The same start of the worker would have it if it had ever heard of it. With another one it may have run and
            // died: its number is not used again, or two runs could mix their output.
            let placed = self.durable.jobs.get(&attempt.job).and_then(|job| job.task.instance);
            if placed == Some(instance) && !is_stopping(self, attempt) {
                self.send_start(now, *attempt, session, out);
            } else {
                self.lose_attempt(now, *attempt, Loss::Node, out);
            }
        }
        for attempt in keep {
            if is_stopping(self, &attempt) {
                out.effects.push(Effect::Tell { session, message: ToWorker::Stop(Stop { attempt }) });
            }
        }
    }

    pub(super) fn report(&mut self, now: Now, session: SessionId, report: Report, rtt_us: Option<u64>, out: &mut Out) {
        let Some(name) = self.node_of(session) else { return };
        self.sign_of_life(now, &name, out);
        let Some(node) = self.live.nodes.get_mut(&name) else { return };
        if let Some(toolchains) = report.toolchains {
            node.toolchains = checked::toolchains(toolchains);
        }
        node.probing = report.probing;
        node.load = Some(checked::load(report.load));
        node.rtt_us = rtt_us.or(node.rtt_us);
        let state = online_or_draining(report.draining);
        if node.state != state {
            let reason = Reason::new(if report.draining { "draining" } else { "connected" });
            node.become_state(now, &name, state, reason, out);
        }
        let missing: Vec<AttemptId> = match report.held.into_iter().collect::<BTreeSet<AttemptId>>() {
            held if held.is_superset(&node.held) => Vec::new(),
            held => node.held.difference(&held).copied().collect(),
        };
        for attempt in missing {
            self.not_held(now, attempt, session, out);
        }
        self.place(now, out);
    }

    /// A worker does not name an attempt among those that it holds. It may not have heard of it when it wrote that; after
    /// a while it is told again, and in the end the attempt is lost.
    fn not_held(&mut self, now: Now, attempt: AttemptId, session: SessionId, out: &mut Out) {
        let Some(held) = self.live.attempts.get(&attempt) else { return };
        if now.mono_ms.saturating_sub(held.told_mono_ms) < START_WAIT_MS {
            return;
        }
        // What it said that it runs, it had: a second run under the same number could mix two outputs.
        if held.phase.is_none() && !held.stopping && held.told < STARTS_MAX {
            self.send_start(now, attempt, session, out);
        } else {
            self.lose_attempt(now, attempt, Loss::NotStarted, out);
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
                let (state, reason) = match clean {
                    true => (NodeState::Stopped, Reason::new("clean_stop")),
                    false => (NodeState::Offline, self.gone_because(now, Reason::new("connection_lost"))),
                };
                let Some(node) = self.live.nodes.get_mut(&name) else { return };
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
        node.become_state(now, &name, NodeState::Offline, Reason::new("crashed"), out);
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
        self.cancel_orphans(now, out);
        self.expire_joins(now, out);
    }
}

fn online_or_draining(draining: bool) -> NodeState {
    if draining { NodeState::Draining } else { NodeState::Online }
}
