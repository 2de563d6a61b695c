//! Checks that the hub's parts agree with each other.
//!
//! Called by tests and by the simulator after each step, never by the hub itself. Always true: it changes nothing, and
//! looks at everything, so its work grows with the number of jobs.
//! Deliberately not here: repairing what disagrees; that would hide the mistake.

use super::nodes::Needed;
use super::{Hub, Session};
use essaim_proto::{AttemptId, JobId, KeyName, NodeName};
use std::collections::BTreeSet;

/// A promise that does not hold.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Broken {
    /// A count differs from what it counts.
    #[error("{what} says {said}, there are {counted}")]
    Count {
        /// Which.
        what: &'static str,
        /// What is noted.
        said: usize,
        /// What is there.
        counted: usize,
    },
    /// A task that could run is not in the one set of its class.
    #[error("job {0} could run and is not in the set of its class, or in another one too")]
    Ready(JobId),
    /// A placed attempt is not held by exactly the node that the record names.
    #[error("attempt {0} is not held by exactly the node that its record names")]
    Holder(AttemptId),
    /// A node holds more than it has slots, and did not bring that with it.
    #[error("node {0} holds more attempts than it has slots")]
    Slots(NodeName),
    /// A session and its node do not know each other.
    #[error("node {0} and its session do not know each other")]
    Session(NodeName),
    /// The parts of an array do not agree.
    #[error("array {job}: {what}")]
    Array {
        /// Which.
        job: JobId,
        /// What is wrong.
        what: &'static str,
    },
    /// What a key uses is not the sum over its jobs.
    #[error("what key {key} uses is not the sum over its jobs")]
    Use {
        /// Which.
        key: KeyName,
    },
    /// Something is remembered of a job that is over.
    #[error("{what} still names job {job}, which is over")]
    Leftover {
        /// Where.
        what: &'static str,
        /// Which.
        job: JobId,
    },
}

fn count(what: &'static str, said: usize, counted: usize) -> Result<(), Broken> {
    if said == counted { Ok(()) } else { Err(Broken::Count { what, said, counted }) }
}

impl Hub {
    /// Do all parts agree?
    ///
    /// # Errors
    /// The first promise that does not hold.
    pub fn check(&self) -> Result<(), Broken> {
        self.check_counts()?;
        self.check_uses()?;
        self.check_tasks()?;
        self.check_nodes()?;
        self.check_leftovers()
    }

    fn check_counts(&self) -> Result<(), Broken> {
        let (over, live): (Vec<_>, Vec<_>) = self.durable.jobs.values().partition(|job: &&super::Job| job.is_over());
        let bytes = |jobs: &[&super::Job]| jobs.iter().map(|job| job.bytes()).sum();
        let live_tasks = |job: &&super::Job| job.array.as_ref().map_or(1, |array| array.live() as usize);
        count("live_tasks", self.durable.live_tasks, live.iter().map(live_tasks).sum())?;
        count("live_bytes", self.durable.live_bytes, bytes(&live))?;
        count("ended_bytes", self.durable.ended_bytes, bytes(&over))?;
        count("the list of ended jobs", self.live.ended.len(), over.len())?;
        count("the jobs by key", self.live.submits.len(), self.durable.jobs.len())?;
        let placed = live.iter().map(|job| job.placements(JobId(0)).count()).sum();
        count("the attempts", self.live.attempts.len(), placed)?;
        let running = self.live.attempts.values().filter(|held| held.runs()).count();
        count("the attempts that run", self.live.running.values().map(|count| *count as usize).sum(), running)?;
        let held = self.live.nodes.values().map(|node| node.held.len()).sum();
        count("the attempts", self.live.attempts.len(), held)?;
        let ready = live.iter().filter(|job| job.ready() > 0).count();
        let is_bound = |job: &&&super::Job| job.ready() > 0 && !self.durable.awaited(job).is_empty();
        let bound = live.iter().filter(is_bound).count();
        count("the queue", self.live.queue.len(), ready - bound)?;
        let waiting: BTreeSet<JobId> = self.live.dependents.values().flatten().copied().collect();
        count("the jobs that wait for others", waiting.len(), bound)
    }

    fn check_tasks(&self) -> Result<(), Broken> {
        for (id, job) in self.durable.jobs.iter().filter(|(_, job)| !job.is_over()) {
            if let Some(Err(what)) = job.array.as_ref().map(|array| array.check()) {
                return Err(Broken::Array { job: id, what });
            }
            let waits = job.ready() > 0 && self.durable.awaited(job).is_empty();
            if waits != self.live.queue.contains(id, job) {
                return Err(Broken::Ready(id));
            }
            for (attempt, node) in job.placements(id) {
                let noted = self.live.attempts.get(&attempt).is_some_and(|held| held.node == *node);
                let holds = self.live.nodes.get(node).is_some_and(|node| node.held.contains(&attempt));
                if !(noted && holds) {
                    return Err(Broken::Holder(attempt));
                }
            }
        }
        Ok(())
    }

    fn check_nodes(&self) -> Result<(), Broken> {
        for (name, node) in &self.live.nodes {
            let (mut reserved, mut ahead) = (Needed::default(), 0);
            for attempt in &node.held {
                let Some(job) = self.durable.jobs.get(&attempt.job) else { continue };
                let needs = Needed::of(job);
                if self.live.attempts.get(attempt).is_some_and(|held| held.is_ahead) {
                    ahead += 1;
                } else {
                    reserved.slots += needs.slots;
                    reserved.memory_bytes += needs.memory_bytes;
                }
            }
            let agree = (reserved, ahead) == (node.reserved, node.ahead);
            if !agree || (node.session.is_some() && reserved.slots > node.brought.max(node.slots)) {
                return Err(Broken::Slots(name.clone()));
            }
            let speaks = |s: &super::SessionId| matches!(self.live.sessions.get(s), Some(Session::Worker { node }) if node == name);
            if !node.session.iter().all(speaks) {
                return Err(Broken::Session(name.clone()));
            }
        }
        for (session, speaker) in &self.live.sessions {
            if let Session::Worker { node } = speaker
                && self.live.nodes.get(node).and_then(|node| node.session) != Some(*session)
            {
                return Err(Broken::Session(node.clone()));
            }
        }
        Ok(())
    }

    fn check_leftovers(&self) -> Result<(), Broken> {
        let is_live = |job: &JobId| self.durable.jobs.get(job).is_some_and(|job| !job.is_over());
        let over = |what, jobs: Vec<JobId>| match jobs.into_iter().find(|job| !is_live(job)) {
            Some(job) => Err(Broken::Leftover { what, job }),
            None => Ok(()),
        };
        over("the list of nodes to avoid", self.live.avoid.keys().copied().collect())?;
        over("the counts of what runs", self.live.running.keys().copied().collect())?;
        let is_due = |job: &JobId| self.durable.jobs.get(job).is_some_and(|known| known.owes_notice());
        if let Some(job) = self.live.notices.iter().find(|job| !is_due(job)) {
            return Err(Broken::Leftover { what: "the list of notices", job: *job });
        }
        over("the list of ephemeral jobs", self.live.ephemeral.jobs().collect())
    }
}
