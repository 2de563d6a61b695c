//! A hub that takes the place of another in the same process, after the store did not take a record.
//!
//! The driver makes a new [`Hub`] from what is durable and calls [`Hub::succeed`]. Always true: a client whose key is
//! durable keeps its session and the jobs that end with it; workers are gone, which is told, and come back by themselves to
//! what they hold; what was left unsaid with the failed records is said again.
//! Deliberately not here: refusing what was not durable (the driver does), the restart of a process.

use super::effect::Out;
use super::input::SessionId;
use super::nodes::LiveNode;
use super::{Held, Hub, Session};
use crate::Now;
use essaim_proto::job::Reason;
use essaim_proto::node::NodeState;
use essaim_proto::{AttemptId, JobId};
use std::collections::BTreeSet;

impl Hub {
    /// Takes over from `before`: its clients stay, and hear how the jobs in `watched` stand now. `found` are the jobs of
    /// records that the store took without saying so: what became of them was not told. Says which clients stay; all
    /// other sessions are to be closed.
    pub fn succeed(
        &mut self,
        now: Now,
        before: &Hub,
        watched: &[JobId],
        found: &BTreeSet<JobId>,
        out: &mut Out,
    ) -> BTreeSet<SessionId> {
        let mut kept = BTreeSet::new();
        for (id, session) in &before.live.sessions {
            let Session::Client { key, role } = session else { continue };
            if self.durable.keys.get(key).is_some_and(|known| known.role == *role) {
                self.live.sessions.insert(*id, session.clone());
                kept.insert(*id);
            }
        }
        for (session, job) in before.live.ephemeral.held() {
            if kept.contains(&session) {
                self.live.ephemeral.adopt(session, job);
            }
        }
        self.live.draining = before.live.draining;
        self.live.local = before.live.local.untold();
        self.live.late_messages = before.live.late_messages;
        self.live.pace = before.live.pace.clone();
        self.rules = before.rules;
        self.succeed_uploads(before);
        self.live.told =
            before.live.told.iter().filter(|(job, _)| !found.contains(job)).map(|(j, s)| (*j, *s)).collect();
        self.succeed_nodes(now, before, out);
        // Those that run have been told.
        for job in found {
            if !self.runs(*job) {
                self.job_changed(now, *job, out);
            }
        }
        watched.iter().filter(|job| !found.contains(job)).for_each(|job| self.publish(*job, out));
        if let Some(urls) = before.live.notify_urls.clone() {
            // What was to be posted because of records that failed is not; the rest is said again, which changes nothing.
            self.allow_notices(now, urls, out);
        }
        self.settle_local(now, out);
        self.tell_arrays(now, out);
        kept
    }

    /// What was known of the nodes stays known. Changes that were to leave with the failed records have not: each node's
    /// state is told, whether that is news or not, and so is each job that runs.
    fn succeed_nodes(&mut self, now: Now, before: &Hub, out: &mut Out) {
        for (name, known) in &before.live.nodes {
            let held = self.live.nodes.remove(name).unwrap_or_else(|| LiveNode::offline(now));
            let LiveNode { held, reserved, reserved_tasks, ahead, .. } = held;
            let last_word_mono_ms = now.mono_ms;
            let mut node =
                LiveNode { session: None, held, reserved, reserved_tasks, ahead, last_word_mono_ms, ..known.clone() };
            let (state, reason) = match known.session {
                Some(_) => (NodeState::Offline, Reason::new("store_error")),
                None => (node.state, node.reason.clone()),
            };
            node.stand(now, name, state, reason, out);
            self.live.nodes.insert(name.clone(), node);
        }
        let is_same = |(attempt, held): (&AttemptId, &Held)| {
            let known = before.live.attempts.get(attempt).filter(|known| known.node == held.node)?;
            Some((*attempt, known.phase, known.waiting_for_input))
        };
        let same: Vec<_> = self.live.attempts.iter().filter_map(is_same).collect();
        let mut running: Vec<JobId> = same.iter().map(|(attempt, ..)| attempt.job).collect();
        same.into_iter().for_each(|(attempt, phase, waiting)| self.runs_now(attempt, phase, waiting));
        // Rising, so that each is told once.
        running.dedup();
        for job in running.into_iter().filter(|job| self.runs(*job)).collect::<Vec<JobId>>() {
            self.job_changed(now, job, out);
        }
    }
}
