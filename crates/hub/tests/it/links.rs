//! The worker's connection: lost, taken up again, left.

use crate::scene::{PATIENCE, Scene, Worker, command, soon, submit, submit_and_watch};
use essaim_net::hello::{greet, ours};
use essaim_net::limits::DIAL_TIME;
use essaim_net::{DialTarget, dial};
use essaim_proto::api::{NodeList, Stream};
use essaim_proto::hello::PeerKind;
use essaim_proto::job::{JobState, Verdict};
use essaim_proto::link::{AttemptOutput, AttemptOutputAck, GivenBack, HeldMany, Register, Report};
use essaim_proto::node::NodeState;
use essaim_proto::{AttemptId, Frame, Function, InstanceId, JobId, Refusal, RefusalCode, TaskId, TaskSet};

// Does a worker that comes back keep its programs, with the offsets from which the hub needs their output?
#[tokio::test]
async fn a_reconnect_keeps_what_runs() {
    let scene = Scene::open().await;
    let (client, identity) = (scene.admin().await, scene.machine().await);
    let connect = |held| Worker::connect(scene.workers(), identity.clone(), InstanceId([1; 16]), held);
    let mut worker = connect(Vec::new()).await;
    let (_, mut watcher) = submit_and_watch(&client, command()).await;
    let attempt = worker.started().await;
    worker.output(attempt, Stream::Stdout, 0, b"12345678").await;
    worker.output(attempt, Stream::Stderr, 0, b"abc").await;
    // Together or one after the other, as they became durable.
    while worker.expect::<AttemptOutputAck>(Function::ATTEMPT_OUTPUT_ACK).await
        != (AttemptOutputAck { attempt, stdout: 8, stderr: 3 })
    {}
    // The cable is pulled: no goodbye.
    let old = worker;
    let stranger = AttemptId { job: JobId(77), task: TaskId(1), attempt: 1 };
    let mut worker = connect(vec![attempt, stranger]).await;
    assert_eq!(worker.registered.kill, [stranger]);
    assert_eq!(worker.registered.keep, [AttemptOutputAck { attempt, stdout: 8, stderr: 3 }]);
    assert!(!worker.registered.languages.is_empty());
    // The old connection is told that it was replaced.
    let mut reader = old.connection.reader;
    while soon(reader.next()).await.unwrap().is_some() {}
    assert_eq!(reader.goodbye(), Some("replaced"));

    // Repeated bytes are skipped, a gap is not taken and said so.
    worker.output(attempt, Stream::Stdout, 4, b"5678, and more").await;
    worker.acknowledged(18).await;
    let gap = AttemptOutput { attempt, stream: Stream::Stdout, offset: 100, bytes: b"gap".to_vec() };
    worker.send(Function::ATTEMPT_OUTPUT, &gap);
    let ack: AttemptOutputAck = worker.expect(Function::ATTEMPT_OUTPUT_ACK).await;
    assert_eq!((ack.stdout, ack.stderr), (18, 3));
    // Output of what is not its own is acknowledged, so that it can forget it, and goes nowhere.
    let far = AttemptOutput { attempt: stranger, offset: u64::MAX, bytes: b"far".to_vec(), ..AttemptOutput::default() };
    worker.send(Function::ATTEMPT_OUTPUT, &far);
    assert_eq!(worker.expect::<AttemptOutputAck>(Function::ATTEMPT_OUTPUT_ACK).await.stdout, u64::MAX);
    worker.end(attempt, Verdict::Ok).await;
    assert_eq!(watcher.finish().await.state, JobState::Done);
    assert_eq!(
        (watcher.stdout.as_slice(), watcher.stderr.as_slice()),
        (b"12345678, and more".as_slice(), b"abc".as_slice())
    );
}

// Does a worker that says goodbye free its tasks at once, and one that just vanishes not?
#[tokio::test]
async fn a_goodbye_frees_what_was_held() {
    let scene = Scene::open().await;
    let (client, mut first) = (scene.admin().await, scene.worker().await);
    let job = submit(&client, command()).await;
    let attempt = first.started().await;
    assert_eq!(scene.hub.running().await.iter().map(|(job, ..)| *job).collect::<Vec<_>>(), [job]);
    let mut second = scene.worker().await;
    first.connection.sender.close("shutdown");
    let again = second.started().await;
    assert_eq!((again.job, again.attempt), (attempt.job, 2));
    second.end(again, Verdict::Ok).await;
    let nodes = soon(client.request(&NodeList::default())).await.unwrap().nodes;
    let states: Vec<NodeState> = nodes.iter().map(|node| node.state).collect();
    assert_eq!(states, [NodeState::Stopped, NodeState::Online]);

    let job = submit(&client, command()).await;
    second.started().await;
    drop(second.connection.reader);
    second.connection.sender.closed().await;
    let offline = async {
        while soon(client.request(&NodeList::default())).await.unwrap().nodes[1].state != NodeState::Offline {
            tokio::task::yield_now().await;
        }
    };
    soon(offline).await;
    assert_eq!(scene.hub.running().await.len(), 1, "it may come back with {job}");
    scene.hub.worker_process_ended("pc-2".parse().unwrap()).await;
    assert!(scene.hub.running().await.is_empty());
}

// Does nonsense of a worker cost it an answer at most, and unknown functions nothing?
#[tokio::test]
async fn nonsense_of_a_worker_is_answered() {
    let scene = Scene::open().await;
    let mut worker = scene.worker().await;
    worker.connection.sender.control(Frame::empty(Function(999), 5)).unwrap();
    let answer = worker.next().await;
    assert_eq!((answer.function, answer.id), (Function::REFUSED, 5));
    // Without an id there is nothing to be answered: a refusal would end the connection.
    worker.connection.sender.control(Frame::empty(Function(999), 0)).unwrap();
    worker.connection.sender.control(Frame::empty(Function::REPORT, 0)).unwrap();
    worker.connection.sender.control(Frame::empty(Function::REPORT, 6)).unwrap();
    let answer = worker.next().await;
    assert_eq!((answer.function, answer.id), (Function::REFUSED, 6));
}

// What if a worker names tasks by the thousand million in a frame of a few bytes? Its session ends, with the reason, before
// anything is made of them; the hub and its other worker go on.
#[tokio::test]
async fn a_worker_that_names_too_many_tasks_is_left() {
    let scene = Scene::open().await;
    let client = scene.admin().await;
    let mut honest = scene.worker().await;
    let tasks = || TaskSet::span(0, 9_999_999);
    let many = || vec![HeldMany { job: JobId(1), attempt: 1, tasks: tasks() }; 5_000];
    let report = Report { held_many: many(), ..Report::default() };
    let given = GivenBack { job: JobId(1), tasks: vec![(1, tasks()); 5_000] };
    let begun = std::time::Instant::now();
    for frame in [Frame::of(Function::REPORT, 0, &report), Frame::of(Function::GIVEN_BACK, 0, &given)] {
        assert!(frame.value.len() < 300_000);
        let mut liar = scene.worker().await;
        liar.connection.sender.control(frame).unwrap();
        let refusal: Refusal = liar.expect_past(Function::REFUSED).await;
        assert_eq!((refusal.code, refusal.param("what")), (RefusalCode::TooMany, "tasks that a worker names"));
        assert!(soon(liar.connection.reader.next()).await.unwrap().is_none());
        assert_eq!(liar.connection.reader.goodbye(), Some("refused"));
    }
    let target = DialTarget { identity: Some(scene.machine().await), ..scene.workers() };
    let mut liar = dial(&target, DIAL_TIME).await.unwrap();
    soon(greet(&mut liar, ours(PeerKind::Worker, None))).await.unwrap();
    let register = Register { slots: 1, held_many: many(), ..Register::default() };
    liar.sender.control(Frame::of(Function::REGISTER, 1, &register)).unwrap();
    let answer = soon(liar.reader.next()).await.unwrap().unwrap();
    assert_eq!(answer.message::<Refusal>().unwrap().code, RefusalCode::TooMany);
    // One by one they would take minutes, and hundreds of gigabytes.
    assert!(begun.elapsed() < PATIENCE);
    submit(&client, command()).await;
    let attempt = honest.started().await;
    honest.end(attempt, Verdict::Ok).await;
}
