//! What a client types, on its way to the program.

use crate::scene::{Scene, Watcher, Worker, command, live_command, noise, refused, soon, submit, submit_and_watch};
use essaim_net::Client;
use essaim_proto::api::{StdinChunk, Watch};
use essaim_proto::id::TASK_ONE;
use essaim_proto::job::{JobState, Verdict};
use essaim_proto::limits::{CHUNK_BYTES, STDIN_WINDOW_BYTES};
use essaim_proto::link::{AttemptStdin, AttemptStdinAck, Stop};
use essaim_proto::{Frame, Function, InstanceId, JobId, Refusal, RefusalCode};

async fn type_in(client: &Client, id: u64, job: JobId, offset: u64, bytes: &[u8], end: bool) {
    let chunk = StdinChunk { job, task: TASK_ONE, offset, bytes: bytes.to_vec(), end };
    client.send_bulk(Frame::of(Function::STDIN, id, &chunk)).await.unwrap();
}

// Does what is typed arrive once and in order, is it acknowledged, and does its end arrive?
#[tokio::test]
async fn typed_bytes_arrive_once_with_their_end() {
    let scene = Scene::open().await;
    let (client, mut worker) = (scene.admin().await, scene.worker().await);
    let (job, mut watcher) = submit_and_watch(&client, live_command()).await;
    let id = watcher.frames.id();
    // Before the program runs.
    type_in(&client, id, job, 0, b"one\n", false).await;
    let attempt = worker.started().await;
    let first: AttemptStdin = worker.expect(Function::ATTEMPT_STDIN).await;
    assert_eq!(
        (first.attempt, first.offset, first.bytes.as_slice(), first.end),
        (attempt, 0, b"one\n".as_slice(), false)
    );
    worker.running(attempt, true);
    watcher.event(|event| event.task.as_ref().is_some_and(|task| task.waiting_for_input)).await;
    worker.send(Function::ATTEMPT_STDIN_ACK, &AttemptStdinAck { attempt, offset: 4 });
    // Sent twice, as after a lost connection; and with id 0, which is allowed.
    type_in(&client, id, job, 0, b"one\ntwo\n", false).await;
    type_in(&client, 0, job, 8, b"three\n", true).await;
    let mut got = Vec::new();
    while got != b"two\nthree\n" {
        let more: AttemptStdin = worker.expect(Function::ATTEMPT_STDIN).await;
        assert_eq!(more.offset, 4 + got.len() as u64);
        got.extend(more.bytes);
        assert_eq!(more.end, got.ends_with(b"three\n"));
    }
    worker.send(Function::ATTEMPT_STDIN_ACK, &AttemptStdinAck { attempt, offset: 14 });
    while watcher.stdin_acked < 14 {
        assert!(watcher.step().await);
    }
    worker.end(attempt, Verdict::Ok).await;
    assert_eq!(watcher.finish().await.state, JobState::Done);
}

// Is typing into a job that reads nothing, or that one does not watch, refused by name, and the connection none the worse?
#[tokio::test]
async fn input_that_nobody_reads_is_refused() {
    let scene = Scene::open().await;
    let client = scene.admin().await;
    let (job, mut watcher) = submit_and_watch(&client, command()).await;
    type_in(&client, watcher.frames.id(), job, 0, b"x", false).await;
    let refusal = loop {
        let frame = soon(watcher.frames.next()).await.unwrap();
        if frame.function == Function::REFUSED {
            break frame.message::<Refusal>().unwrap();
        }
    };
    assert_eq!((refusal.code, refusal.param("job")), (RefusalCode::NoStdin, "1"));
    let live = submit(&client, live_command()).await;
    type_in(&client, 0, live, 0, b"nobody watches", false).await;
    let stranger = soon(client.call(Function::STDIN, &StdinChunk { job: live, ..StdinChunk::default() })).await;
    assert_eq!(refused(stranger).code, RefusalCode::NoStdin);
}

/// Takes input at the worker, acknowledging all of it, up to `until`.
async fn drain(worker: &mut Worker, attempt: essaim_proto::AttemptId, from: u64, until: u64) -> Vec<u8> {
    let mut got = Vec::new();
    while from + (got.len() as u64) < until {
        let more: AttemptStdin = worker.expect(Function::ATTEMPT_STDIN).await;
        assert_eq!((more.attempt, more.offset), (attempt, from + got.len() as u64));
        got.extend(more.bytes);
        worker.send(Function::ATTEMPT_STDIN_ACK, &AttemptStdinAck { attempt, offset: from + got.len() as u64 });
    }
    got
}

/// Types `bytes` within the window.
async fn type_all(watcher: &mut Watcher, job: JobId, bytes: &[u8]) {
    for (n, piece) in bytes.chunks(CHUNK_BYTES).enumerate() {
        let offset = (n * CHUNK_BYTES) as u64;
        while offset + piece.len() as u64 > watcher.stdin_acked + STDIN_WINDOW_BYTES {
            assert!(watcher.step().await);
        }
        type_in(&watcher.client, watcher.frames.id(), job, offset, piece, false).await;
    }
}

// Does a second attempt read short input again, and does a kept attempt go on after a reconnect where it was, also when
// the beginning is long gone?
#[tokio::test]
async fn input_survives_its_connection_and_while_it_is_short_its_worker() {
    let scene = Scene::open().await;
    let (client, identity) = (scene.admin().await, scene.machine().await);
    let connect = |n: u8, held| Worker::connect(scene.workers(), identity.clone(), InstanceId([n; 16]), held);
    let mut worker = connect(1, Vec::new()).await;
    let (job, mut watcher) = submit_and_watch(&client, live_command()).await;
    let attempt = worker.started().await;
    type_all(&mut watcher, job, b"short").await;
    assert_eq!(drain(&mut worker, attempt, 0, 5).await, b"short");
    // Another instance: the first attempt is lost.
    let mut worker = connect(2, Vec::new()).await;
    let second = worker.started().await;
    assert_eq!(drain(&mut worker, second, 0, 5).await, b"short", "again");

    let long = [b"short".as_slice(), &noise(3 << 20, 5)].concat();
    let length = long.len() as u64;
    let (_, got) = tokio::join!(type_all(&mut watcher, job, &long), drain(&mut worker, second, 5, length));
    assert!(got == long[5..]);
    let mut worker = connect(2, vec![second]).await;
    assert_eq!(worker.registered.keep.len(), 1);
    type_in(&client, 0, job, length, b"!", true).await;
    let more: AttemptStdin = worker.expect(Function::ATTEMPT_STDIN).await;
    assert_eq!((more.offset, more.bytes.as_slice(), more.end), (length, b"!".as_slice(), true));

    // A third attempt cannot have the beginning: it is stopped, and the end says why.
    let mut worker = connect(3, Vec::new()).await;
    let third = worker.started().await;
    assert_eq!(worker.expect::<Stop>(Function::STOP).await.attempt, third);
    worker.end(third, Verdict::Cancelled).await;
    let result = watcher.finish().await.task.unwrap().result.unwrap();
    assert_eq!((result.verdict, result.reason.unwrap().code.as_str()), (Verdict::Rejected, "stdin_lost"));
}

// Does a client that watches anew learn from which offset to type on?
#[tokio::test]
async fn a_new_watch_says_how_much_was_written() {
    let scene = Scene::open().await;
    let (client, mut worker) = (scene.admin().await, scene.worker().await);
    let (job, mut watcher) = submit_and_watch(&client, live_command()).await;
    let attempt = worker.started().await;
    type_all(&mut watcher, job, b"12345").await;
    drain(&mut worker, attempt, 0, 5).await;
    let again = scene.admin().await;
    let (_, frames) = soon(again.open(&Watch { job, output: true, ..Watch::default() })).await.unwrap();
    let mut watcher = Watcher::new(&again, frames);
    while watcher.stdin_acked < 5 {
        assert!(watcher.step().await);
    }
}
