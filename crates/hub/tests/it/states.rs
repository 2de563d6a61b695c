//! Watching the states of all nodes and jobs.

use crate::scene::{Scene, command, soon, submit};
use essaim_net::Subscription;
use essaim_proto::Function;
use essaim_proto::api::{StateChange, StatesWatch};
use essaim_proto::job::{JobState, Verdict};
use essaim_proto::node::NodeState;

async fn next(changes: &mut Subscription) -> StateChange {
    let frame = soon(changes.next()).await.expect("the watch goes on");
    assert_eq!(frame.function, Function::STATE);
    frame.message().unwrap()
}

// Does a watcher hear of every change of what it asked for, from its answer on, and of nothing else?
#[tokio::test]
async fn every_change_is_told_to_who_watches() {
    let scene = Scene::open().await;
    let client = scene.admin().await;
    let (_, mut nodes) = soon(client.open(&StatesWatch { nodes: true, jobs: false })).await.unwrap();
    let (_, mut jobs) = soon(client.open(&StatesWatch { nodes: false, jobs: true })).await.unwrap();
    let mut worker = scene.worker().await;
    loop {
        let change = next(&mut nodes).await;
        assert!(change.job.is_none() && change.missed == 0 && change.at_ms > 0);
        let node = change.node.unwrap();
        assert_eq!(node.name, "pc");
        if node.state == NodeState::Online {
            break;
        }
    }
    let job = submit(&client, command()).await;
    let attempt = worker.started().await;
    worker.end(attempt, Verdict::Ok).await;
    let mut states = Vec::new();
    while !states.last().is_some_and(|state: &JobState| state.is_over()) {
        let change = next(&mut jobs).await.job.unwrap();
        assert_eq!(change.job, job);
        states.push(change.state);
    }
    assert_eq!(states.first(), Some(&JobState::Queued));
    assert_eq!(states.last(), Some(&JobState::Done));
    // Given up, its id is free again.
    let id = jobs.id();
    drop(jobs);
    assert!(id > 0);
    let (_, mut both) = soon(client.open(&StatesWatch { nodes: true, jobs: true })).await.unwrap();
    submit(&client, command()).await;
    assert!(next(&mut both).await.job.is_some());
    worker.connection.sender.close("shutdown");
    while next(&mut both).await.node.is_none() {}
}
