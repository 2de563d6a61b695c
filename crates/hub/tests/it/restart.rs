//! A hub that starts on the folder of another.

use crate::scene::{
    Scene, Watcher, Worker, command, config, connect, live_command, noise, soon, submit, submit_and_watch,
};
use essaim_hub::RunningHub;
use essaim_net::{Client, Ticket, TicketKind};
use essaim_proto::api::{JobList, JobShow, KeyCreate, NodeList, OutputFrom, StdinChunk, Stream, Watch};
use essaim_proto::hello::{Role, Secret};
use essaim_proto::id::TASK_ONE;
use essaim_proto::job::{JobState, Verdict};
use essaim_proto::link::{AttemptOutputAck, AttemptStdin, AttemptStdinAck};
use essaim_proto::{AttemptId, Frame, Function, InstanceId, JobId};
use essaim_store::{Store, StoreLimits};
use std::path::Path;
use std::time::Duration;

async fn watch(client: &Client, watch: Watch) -> Watcher {
    let (_, frames) = soon(client.open(&watch)).await.unwrap();
    Watcher::new(client, frames)
}

async fn whole(client: &Client, job: JobId) -> Watcher {
    let mut watcher = watch(client, Watch { job, output: true, ..Watch::default() }).await;
    watcher.finish().await;
    watcher
}

// Does a hub that starts anew know everything that was said before, and does what runs go on without losing a byte?
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_forgets_nothing() {
    let scene = Scene::open().await;
    let (client, identity) = (scene.admin().await, scene.machine().await);
    let connect_worker = |target, held| Worker::connect(target, identity.clone(), InstanceId([1; 16]), held);
    let mut worker = connect_worker(scene.workers(), Vec::new()).await;
    let key = soon(client.request(&KeyCreate { name: "eve".into(), role: Role::Operator, ..KeyCreate::default() }))
        .await
        .unwrap()
        .key;

    let small = submit(&client, command()).await;
    let attempt = worker.started().await;
    worker.output(attempt, Stream::Stdout, 0, b"hello\n").await;
    worker.output(attempt, Stream::Stderr, 0, b"oh\n").await;
    worker.end(attempt, Verdict::Ok).await;
    let large = submit(&client, command()).await;
    let attempt = worker.started().await;
    let bytes = noise(3 << 20, 7);
    worker.output(attempt, Stream::Stdout, 0, &bytes).await;
    worker.end(attempt, Verdict::RuntimeError).await;
    let running = submit(&client, command()).await;
    let attempt = worker.started().await;
    worker.output(attempt, Stream::Stdout, 0, &bytes[..200_000]).await;
    worker.acknowledged(200_000).await;
    // Seen, but not acknowledged: the worker has it still.
    worker.output(attempt, Stream::Stdout, 200_000, &bytes[200_000..200_100]).await;

    let scene = scene.restart().await;
    let client = scene.admin().await;
    let jobs = soon(client.request(&JobList::default())).await.unwrap().jobs;
    let states: Vec<(JobId, JobState)> = jobs.iter().rev().map(|job| (job.job, job.state)).collect();
    assert_eq!(states[..2], [(small, JobState::Done), (large, JobState::Failed)]);
    assert_eq!(states[2].0, running);
    assert!(!states[2].1.is_over());
    let nodes = soon(client.request(&NodeList::default())).await.unwrap().nodes;
    assert_eq!(nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>(), ["pc"]);
    let eve = Ticket::parse(&key.0, TicketKind::Key).unwrap();
    connect(scene.clients(), Secret(eve.secret.0)).await.unwrap();

    let watcher = whole(&client, small).await;
    assert_eq!((watcher.stdout.as_slice(), watcher.stderr.as_slice()), (b"hello\n".as_slice(), b"oh\n".as_slice()));
    assert!(whole(&client, large).await.stdout == bytes);

    let mut watcher = watch(&client, Watch { job: running, output: true, ..Watch::default() }).await;
    let mut worker = connect_worker(scene.workers(), vec![attempt]).await;
    let [AttemptOutputAck { stdout: has, .. }] = worker.registered.keep[..] else { panic!("it is kept") };
    assert!((200_000..=200_100).contains(&has), "{has}");
    worker.output(attempt, Stream::Stdout, has, &bytes[has as usize..300_000]).await;
    worker.end(attempt, Verdict::Ok).await;
    assert_eq!(watcher.finish().await.state, JobState::Done);
    assert!(watcher.stdout == bytes[..300_000]);
}

// Is the output of a job that is over there from any offset, large or small?
#[tokio::test]
async fn old_output_is_there_from_any_offset() {
    let scene = Scene::open().await;
    let (client, mut worker) = (scene.admin().await, scene.worker().await);
    let mut jobs = Vec::new();
    for length in [10, 100_000] {
        let job = submit(&client, command()).await;
        let attempt = worker.started().await;
        let bytes = noise(length, 3);
        worker.output(attempt, Stream::Stdout, 0, &bytes).await;
        worker.end(attempt, Verdict::Ok).await;
        jobs.push((job, attempt, bytes));
    }
    let scene = scene.restart().await;
    let client = scene.admin().await;
    for (job, attempt, bytes) in jobs {
        for no_follow in [false, true] {
            let from = Some(OutputFrom { attempt, stdout: 4, stderr: 0 });
            let mut watcher = watch(&client, Watch { job, output: true, from, no_follow, ..Watch::default() }).await;
            (watcher.attempt, watcher.stdout) = (attempt, bytes[..4].to_vec());
            watcher.finish().await;
            assert!(watcher.stdout == bytes);
        }
    }
}

async fn type_in(watcher: &Watcher, job: JobId, offset: u64, bytes: &[u8], end: bool) {
    let chunk = StdinChunk { job, task: TASK_ONE, offset, bytes: bytes.to_vec(), end };
    watcher.client.send_bulk(Frame::of(Function::STDIN, watcher.frames.id(), &chunk)).await.unwrap();
}

async fn read(worker: &mut Worker, attempt: AttemptId, offset: u64, bytes: &[u8], end: bool) {
    let more: AttemptStdin = worker.expect(Function::ATTEMPT_STDIN).await;
    assert_eq!((more.attempt, more.offset, more.bytes.as_slice(), more.end), (attempt, offset, bytes, end));
    worker.send(Function::ATTEMPT_STDIN_ACK, &AttemptStdinAck { attempt, offset: offset + bytes.len() as u64 });
}

// Does a program that reads go on where it was after a restart, whether more is typed or it has everything already?
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn input_goes_on_after_a_restart() {
    for has_all in [false, true] {
        let scene = Scene::open().await;
        let (client, identity) = (scene.admin().await, scene.machine().await);
        let mut worker = Worker::connect(scene.workers(), identity.clone(), InstanceId([1; 16]), Vec::new()).await;
        let (job, mut watcher) = submit_and_watch(&client, live_command()).await;
        let attempt = worker.started().await;
        type_in(&watcher, job, 0, b"hello", has_all).await;
        read(&mut worker, attempt, 0, b"hello", has_all).await;
        while watcher.stdin_acked < 5 {
            assert!(watcher.step().await);
        }
        let scene = scene.restart().await;
        let client = scene.admin().await;
        let mut watcher = watch(&client, Watch { job, output: true, ..Watch::default() }).await;
        // Its client says again what was not acknowledged: nothing, and the end.
        type_in(&watcher, job, 5, if has_all { b"" } else { b" world" }, true).await;
        let mut worker = Worker::connect(scene.workers(), identity, InstanceId([1; 16]), vec![attempt]).await;
        // Where is it? Five bytes are written.
        let question: AttemptStdin = worker.expect(Function::ATTEMPT_STDIN).await;
        assert_eq!(question, AttemptStdin { attempt, ..AttemptStdin::default() });
        worker.send(Function::ATTEMPT_STDIN_ACK, &AttemptStdinAck { attempt, offset: 5 });
        read(&mut worker, attempt, 5, if has_all { b"" } else { b" world" }, true).await;
        worker.end(attempt, Verdict::Ok).await;
        assert_eq!(watcher.finish().await.state, JobState::Done);
        let shown = soon(client.request(&JobShow { job })).await.unwrap();
        assert_eq!(shown.state, JobState::Done);
    }
}

/// Ends the hub, does something to its store, and starts another.
async fn meanwhile(scene: Scene, change: impl FnOnce(&Path)) -> Scene {
    let Scene { hub, home } = scene;
    soon(hub.shutdown()).await;
    let folder = home.path().join("store");
    while Store::open(&folder, StoreLimits::default()).is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await; // poll: the last session may hold it for a moment
    }
    change(&folder);
    Scene { hub: soon(RunningHub::start(config(home.path()))).await.unwrap(), home }
}

/// Puts the journal, its mark and its catalog from one folder to another.
fn copy_journal(from: &Path, to: &Path) {
    let files = |folder: &Path| {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        entries.filter(|name| name.starts_with("journal") || name.starts_with("catalog")).collect::<Vec<String>>()
    };
    for name in files(to) {
        std::fs::remove_file(to.join(name)).unwrap();
    }
    for name in files(from) {
        std::fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
}

// A journal that is older than the outputs, as in the copy of a hub that was at work: does what is printed under a number
// that is given again come alone and whole, and is what the journal knows still there?
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_that_are_given_again_have_no_output() {
    let old = tempfile::tempdir().unwrap();
    let mut scene = Scene::open().await;
    let identity = scene.machine().await;
    let (before, mut lost) = (submit(&scene.admin().await, command()).await, None);
    for life in 1..=3u64 {
        let client = scene.admin().await;
        // Each is another start of the worker: what it held is tried again.
        let instance = InstanceId([life as u8; 16]);
        let mut worker = Worker::connect(scene.workers(), identity.clone(), instance, Vec::new()).await;
        let attempt = worker.started().await;
        assert_eq!((attempt.job, attempt.attempt), (before, if life == 1 { 1 } else { 2 }));
        worker.output(attempt, Stream::Stdout, 0, &noise(50_000, life)).await;
        worker.acknowledged(50_000).await;
        if life == 1 {
            scene = meanwhile(scene, |store| copy_journal(store, old.path())).await;
            continue;
        }
        let after = submit(&client, command()).await;
        let other = worker.started().await;
        assert_eq!(*lost.get_or_insert(other), other, "its number is given again");
        worker.output(other, Stream::Stderr, 0, &noise(70_000, life)).await;
        worker.end(other, Verdict::Ok).await;
        assert!(whole(&client, after).await.stderr == noise(70_000, life));
        if life == 2 {
            scene = meanwhile(scene, |store| copy_journal(old.path(), store)).await;
            continue;
        }
        worker.end(attempt, Verdict::Ok).await;
        assert!(whole(&client, before).await.stdout == noise(50_000, life));
    }
}
