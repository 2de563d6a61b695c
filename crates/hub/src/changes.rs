//! Changes of nodes and jobs, for those who watch all of them.
//!
//! The driver sends what became durable; each watcher has a task that passes it on as fast as its client takes it. Always
//! true: nobody waits for a watcher; one that is too slow is told how many changes it missed; changes of one kind come in
//! their order.
//! Deliberately not here: why something changed (the core), who may watch (whoever may list: every client).

use crate::limits::{JOB_CHANGES_MAX, NODE_CHANGES_MAX};
use essaim_net::FrameSender;
use essaim_proto::api::{StateChange, StatesWatch};
use essaim_proto::{Frame, Function};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

/// Where changes pass. Nodes and jobs each have their own ring: jobs that end by hundreds push no node's change out.
#[derive(Debug)]
pub(crate) struct Changes {
    nodes: broadcast::Sender<StateChange>,
    jobs: broadcast::Sender<StateChange>,
}

/// One watcher's ends.
pub(crate) struct ChangeWatch {
    nodes: Option<broadcast::Receiver<StateChange>>,
    jobs: Option<broadcast::Receiver<StateChange>>,
}

impl Default for Changes {
    fn default() -> Changes {
        Changes { nodes: broadcast::Sender::new(NODE_CHANGES_MAX), jobs: broadcast::Sender::new(JOB_CHANGES_MAX) }
    }
}

impl Changes {
    /// Tells all who watch. Never waits.
    pub(crate) fn send(&self, change: StateChange) {
        let kind = if change.node.is_some() { &self.nodes } else { &self.jobs };
        // An error says that nobody watches.
        let _ = kind.send(change);
    }

    /// Everything of the wanted kinds from now on.
    pub(crate) fn watch(&self, wanted: StatesWatch) -> ChangeWatch {
        ChangeWatch {
            nodes: wanted.nodes.then(|| self.nodes.subscribe()),
            jobs: wanted.jobs.then(|| self.jobs.subscribe()),
        }
    }
}

impl ChangeWatch {
    /// Passes changes on under the id `id` until the connection or the hub ends.
    pub(crate) async fn run(mut self, id: u64, sender: FrameSender) {
        while let Some(change) = self.next().await {
            if sender.bulk(Frame::of(Function::STATE, id, &change)).await.is_err() {
                return;
            }
        }
    }

    async fn next(&mut self) -> Option<StateChange> {
        let (mut missed_nodes, mut missed_jobs) = (0, 0);
        loop {
            let (received, missed) = tokio::select! {
                received = of(self.nodes.as_mut()) => (received, &mut missed_nodes),
                received = of(self.jobs.as_mut()) => (received, &mut missed_jobs),
            };
            match received {
                Ok(change) => return Some(StateChange { missed: missed_nodes + missed_jobs, ..change }),
                Err(RecvError::Lagged(count)) => *missed += count,
                Err(RecvError::Closed) => return None,
            }
        }
    }
}

async fn of(changes: Option<&mut broadcast::Receiver<StateChange>>) -> Result<StateChange, RecvError> {
    match changes {
        Some(changes) => changes.recv().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use essaim_proto::api::{JobChange, NodeChange};

    fn node(at_ms: u64) -> StateChange {
        StateChange { at_ms, node: Some(NodeChange::default()), ..StateChange::default() }
    }

    fn job(at_ms: u64) -> StateChange {
        StateChange { at_ms, job: Some(JobChange::default()), ..StateChange::default() }
    }

    // Does a watcher get what it asked for, in order, and hear how many it missed?
    #[tokio::test]
    async fn a_slow_watcher_hears_how_many_it_missed() {
        let changes = Changes::default();
        changes.send(job(0));
        let mut nodes = changes.watch(StatesWatch { nodes: true, jobs: false });
        let mut jobs = changes.watch(StatesWatch { nodes: false, jobs: true });
        let more = 10;
        for n in 1..=(JOB_CHANGES_MAX + more) as u64 {
            changes.send(job(n));
        }
        changes.send(node(1));
        changes.send(node(2));
        for expected in [1, 2] {
            let change = nodes.next().await.expect("a change");
            assert_eq!((change.at_ms, change.missed), (expected, 0));
        }
        let first = jobs.next().await.expect("a change");
        assert_eq!((first.at_ms, first.missed), (more as u64 + 1, more as u64));
        let second = jobs.next().await.expect("a change");
        assert_eq!((second.at_ms, second.missed), (more as u64 + 2, 0));
        drop(changes);
        assert!(nodes.next().await.is_none());
    }
}
