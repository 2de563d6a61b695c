//! A job from its submission to its end, and those who watch it.

use crate::scene::{Scene, Watcher, command, next, noise, refused, soon, submit, submit_and_watch, submit_of};
use essaim_proto::api::{JobCancel, JobList, JobShow, OutputFrom, Stream, Submit, Watch};
use essaim_proto::job::{JobState, TaskState, Verdict};
use essaim_proto::limits::{CHUNK_BYTES, OUTPUT_WINDOW_BYTES};
use essaim_proto::link::{Ended, Stop};
use essaim_proto::{Frame, Function, JobId, RefusalCode};

/// Sends both streams in pieces of random length, and gives what was sent.
async fn print(worker: &mut crate::scene::Worker, attempt: essaim_proto::AttemptId, length: usize) -> [Vec<u8>; 2] {
    let whole = [noise(length, 7), noise(length / 3, 9)];
    let (mut sent, mut seed) = ([0, 0], 11);
    while sent[0] < whole[0].len() || sent[1] < whole[1].len() {
        let which = (next(&mut seed) % 2) as usize;
        let piece = (next(&mut seed) as usize % CHUNK_BYTES).min(whole[which].len() - sent[which]);
        let stream = if which == 0 { Stream::Stdout } else { Stream::Stderr };
        let bytes = &whole[which][sent[which]..sent[which] + piece];
        worker.output(attempt, stream, sent[which] as u64, bytes).await;
        sent[which] += piece;
    }
    whole
}

// Does a program's output reach two watchers whole, live and before its end, however it was cut?
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_arrives_whole_live_and_before_the_end() {
    let scene = Scene::open().await;
    let (client, mut worker) = (scene.admin().await, scene.worker().await);
    let (job, mut first) = submit_and_watch(&client, command()).await;
    let attempt = worker.started().await;
    assert_eq!((attempt.job, attempt.attempt), (job, 1));
    let other = scene.admin().await;
    let (_, frames) = soon(other.open(&Watch { job, output: true, ..Watch::default() })).await.unwrap();
    let mut second = Watcher::new(&other, frames);

    worker.output(attempt, Stream::Stdout, 0, b"first line\n").await;
    while first.stdout.is_empty() || second.stdout.is_empty() {
        let behind = if first.stdout.is_empty() { &mut first } else { &mut second };
        assert!(behind.step().await, "live, before the end");
    }
    let rest = noise(5 << 20, 3);
    let work = async {
        for (n, piece) in rest.chunks(70_001).enumerate() {
            worker.output(attempt, Stream::Stdout, 11 + n as u64 * 70_001, piece).await;
        }
        worker.end(attempt, Verdict::Ok).await;
    };
    let (last, _, ()) = tokio::join!(first.finish(), second.finish(), work);
    let whole = [b"first line\n".as_slice(), &rest].concat();
    assert!(first.stdout == whole && second.stdout == whole);
    assert_eq!((last.state, last.task.as_ref().unwrap().state), (JobState::Done, TaskState::Done));
    let states: Vec<TaskState> = first.events.iter().map(|event| event.task.as_ref().unwrap().state).collect();
    assert!(states.is_sorted(), "{states:?}");
    assert!(first.events.iter().filter(|event| event.last).count() == 1);
    assert_eq!(soon(client.request(&JobShow { job })).await.unwrap().state, JobState::Done);
    assert!(scene.hub.running().await.is_empty());
}

// Are both streams kept apart and whole, to one who watches after the end and to one who has half of it already?
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ended_job_is_shown_and_resumed_by_offset() {
    let scene = Scene::open().await;
    let (client, mut worker) = (scene.admin().await, scene.worker().await);
    let job = submit(&client, command()).await;
    let attempt = worker.started().await;
    let [stdout, stderr] = print(&mut worker, attempt, 3 << 20).await;
    worker.end(attempt, Verdict::RuntimeError).await;

    let (_, frames) = soon(client.open(&Watch { job, output: true, ..Watch::default() })).await.unwrap();
    let mut whole = Watcher::new(&client, frames);
    let last = whole.finish().await;
    assert!(whole.stdout == stdout && whole.stderr == stderr);
    assert_eq!((last.state, whole.events.len()), (JobState::Failed, 1));

    let from = OutputFrom { attempt, stdout: 1_234_567, stderr: stderr.len() as u64 };
    let watch = Watch { job, output: true, from: Some(from), no_follow: true, ..Watch::default() };
    let (_, frames) = soon(client.open(&watch)).await.unwrap();
    let mut rest = Watcher::new(&client, frames);
    (rest.attempt, rest.stdout, rest.stderr) = (attempt, stdout[..1_234_567].to_vec(), stderr.clone());
    rest.finish().await;
    assert!(rest.stdout == stdout && rest.stderr == stderr);

    let (_, frames) = soon(client.open(&Watch { job, ..Watch::default() })).await.unwrap();
    let mut without = Watcher::new(&client, frames);
    without.finish().await;
    assert!(without.stdout.is_empty());
    let missing = soon(client.open(&Watch { job: JobId(99), ..Watch::default() })).await;
    assert_eq!(refused(missing).code, RefusalCode::NoSuchJob);
}

// Does `no_follow` end at what is there, although the program goes on printing?
#[tokio::test]
async fn no_follow_ends_at_what_is_there() {
    let scene = Scene::open().await;
    let (client, mut worker) = (scene.admin().await, scene.worker().await);
    let job = submit(&client, command()).await;
    let attempt = worker.started().await;
    worker.output(attempt, Stream::Stdout, 0, &vec![b'a'; 2 * CHUNK_BYTES]).await;
    worker.acknowledged(2 * CHUNK_BYTES as u64).await;
    let watch = Watch { job, output: true, no_follow: true, ..Watch::default() };
    let (_, frames) = soon(client.open(&watch)).await.unwrap();
    let mut watcher = Watcher::new(&client, frames);
    let last = watcher.finish().await;
    assert_eq!((watcher.stdout.len(), last.state, last.last), (2 * CHUNK_BYTES, JobState::Running, true));
    worker.end(attempt, Verdict::Ok).await;
}

// Does a watcher that never acknowledges stop its own output alone, at exactly its window, and cost the hub little?
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_watcher_slows_nobody() {
    let scene = Scene::open().await;
    let (client, mut worker) = (scene.admin().await, scene.worker().await);
    let slow_client = scene.admin().await;
    let (job, mut fast) = submit_and_watch(&client, command()).await;
    let (_, frames) = soon(slow_client.open(&Watch { job, output: true, ..Watch::default() })).await.unwrap();
    let mut slow = Watcher::new(&slow_client, frames);
    slow.acks = false;
    let attempt = worker.started().await;
    let whole = noise(30 << 20, 5);
    let before = crate::scene_memory();
    let work = async {
        worker.output(attempt, Stream::Stdout, 0, &whole).await;
        worker.end(attempt, Verdict::Ok).await;
    };
    // The watcher's own copy is no cost of the hub.
    fast.stdout.reserve(whole.len());
    let (last, ()) = tokio::join!(fast.finish(), work);
    assert!(fast.stdout == whole && last.state == JobState::Done);
    let grown = crate::scene_memory().saturating_sub(before);
    println!("slow watcher: RSS grew by {} KiB, 30 MiB of them the fast watcher's copy", grown >> 10);
    assert!(grown < (30 << 20) + (24 << 20), "{grown}");

    // What is in the window and not a byte more, while events that do not belong to the end pass.
    while slow.stdout.len() < OUTPUT_WINDOW_BYTES as usize {
        assert!(slow.step().await);
    }
    let more = tokio::time::timeout(std::time::Duration::from_millis(200), slow.frames.next()).await;
    assert!(more.is_err(), "{more:?}");
    // Once it acknowledges, it gets the rest.
    slow.acks = true;
    let ack = essaim_proto::api::OutputAck { received_bytes: OUTPUT_WINDOW_BYTES };
    slow_client.send_control(Frame::of(Function::OUTPUT_ACK, slow.frames.id(), &ack)).await.unwrap();
    slow.finish().await;
    assert!(slow.stdout == whole);
}

// Does a cancel reach the worker, and the end say by whom?
#[tokio::test]
async fn a_cancel_stops_the_program() {
    let scene = Scene::open().await;
    let (client, mut worker) = (scene.admin().await, scene.worker().await);
    let (job, mut watcher) = submit_and_watch(&client, command()).await;
    let attempt = worker.started().await;
    soon(client.request(&JobCancel { job, tasks: None })).await.unwrap();
    assert_eq!(worker.expect::<Stop>(Function::STOP).await.attempt, attempt);
    worker.output(attempt, Stream::Stderr, 0, b"dying\n").await;
    worker.end(attempt, Verdict::Cancelled).await;
    let last = watcher.finish().await;
    assert_eq!((last.state, watcher.stderr.as_slice()), (JobState::Cancelled, b"dying\n".as_slice()));
    let reason = last.task.unwrap().result.unwrap().reason.unwrap();
    assert_eq!((reason.code.as_str(), reason.params["who"].as_str()), ("cancelled_by", "admin"));
    let again = refused(soon(client.request(&JobCancel { job, tasks: None })).await);
    assert_eq!((again.code, again.param("state")), (RefusalCode::JobEnded, "cancelled"));
}

// Does a submit that is repeated after a lost connection find its job, running or over?
#[tokio::test]
async fn a_repeated_submit_watches_the_first_job() {
    let scene = Scene::open().await;
    let (client, mut worker) = (scene.admin().await, scene.worker().await);
    let request = Submit { watch: true, ..submit_of(command()) };
    let (first, frames) = soon(client.open(&request)).await.unwrap();
    let attempt = worker.started().await;
    drop(frames);
    for is_over in [false, true] {
        let (again, frames) = soon(client.open(&request)).await.unwrap();
        assert!(again.repeated && again.job == first.job);
        let mut watcher = Watcher::new(&client, frames);
        if !is_over {
            watcher.event(|event| event.state == JobState::Running).await;
            worker.end(attempt, Verdict::Ok).await;
        }
        assert_eq!(watcher.finish().await.state, JobState::Done);
    }
}

// Is the watch of a job whose attempt was lost told of the second attempt, with its output from the beginning?
#[tokio::test]
async fn a_second_attempt_begins_at_0() {
    let scene = Scene::open().await;
    let (client, mut worker) = (scene.admin().await, scene.worker().await);
    let (_, mut watcher) = submit_and_watch(&client, command()).await;
    let attempt = worker.started().await;
    worker.output(attempt, Stream::Stdout, 0, b"half").await;
    worker.acknowledged(4).await;
    // The worker's process died: a new instance holds nothing.
    worker.connection.sender.close("shutdown");
    let mut worker = scene.worker().await;
    let second = worker.started().await;
    assert_eq!((second.job, second.attempt), (attempt.job, 2));
    worker.output(second, Stream::Stdout, 0, b"whole").await;
    // A late word of the first attempt changes nothing.
    let late = Ended { attempt, result: Default::default() };
    worker.send(Function::ENDED, &late);
    worker.expect::<essaim_proto::link::EndAck>(Function::END_ACK).await;
    worker.end(second, Verdict::Ok).await;
    let last = watcher.finish().await;
    assert_eq!((last.state, watcher.stdout.as_slice(), watcher.attempt), (JobState::Done, b"whole".as_slice(), second));
}

// Is a watch that was given up at once, before its answer or after it, really over?
#[tokio::test]
async fn a_watch_can_be_given_up_at_any_moment() {
    let scene = Scene::open().await;
    let client = scene.admin().await;
    let job = submit(&client, command()).await;
    // More than may be open at once: each must be gone when the next comes.
    for _ in 0..600 {
        let (_, frames) = soon(client.open(&Watch { job, output: true, ..Watch::default() })).await.unwrap();
        client.send_control(Frame::empty(Function::UNWATCH, frames.id())).await.unwrap();
    }
    for _ in 0..10 {
        let mut wire = crate::requests::Wire::open(&scene).await;
        for id in 1..=60 {
            wire.send(Frame::of(Function::WATCH, id, &Watch { job, output: true, ..Watch::default() }));
            wire.send(Frame::empty(Function::UNWATCH, id));
        }
        wire.send(Frame::of(Function::JOB_LIST, 1_000, &JobList::default()));
        while wire.next().await.id != 1_000 {}
    }
}

// Does a hub that drains refuse what is new by name and let finish what runs?
#[tokio::test]
async fn a_draining_hub_takes_nothing_new() {
    let scene = Scene::open().await;
    let (client, mut worker) = (scene.admin().await, scene.worker().await);
    let (_, mut watcher) = submit_and_watch(&client, command()).await;
    let attempt = worker.started().await;
    scene.hub.drain().await;
    assert_eq!(refused(soon(client.request(&submit_of(command()))).await).code, RefusalCode::ShuttingDown);
    worker.end(attempt, Verdict::Ok).await;
    assert_eq!(watcher.finish().await.state, JobState::Done);
}
