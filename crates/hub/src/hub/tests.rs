//! A whole hub whose store is small, or whose journal is damaged.

use super::*;
use essaim_net::Client;
use essaim_proto::InstanceId;
use essaim_proto::RefusalCode;
use essaim_proto::api::{JobList, Stream};
use essaim_proto::job::Verdict;
use essaim_proto::link::Stop;
use scene::{Scene, command, noise, soon, submit, submit_and_watch, submit_of};

#[path = "../../tests/it/scene.rs"]
#[allow(dead_code, clippy::unwrap_used)]
mod scene;

async fn open(limits: StoreLimits) -> Scene {
    let home = tempfile::tempdir().expect("a folder");
    let config = HubConfig { keeping: Keeping::Memory, ..scene::config(home.path()) };
    let hub = RunningHub::start_with(config, limits).await.expect("a hub");
    Scene { hub, home }
}

async fn submit_large(client: &Client) -> Result<JobId, essaim_net::ClientError> {
    let mut spec = command();
    spec.args.push("x".repeat(30_000));
    Ok(soon(client.request(&submit_of(spec))).await?.job)
}

// A journal that is full: does the client hear it by name and stay, does the worker come back to what it has, and does work
// go on when there is room?
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_journal_is_refused_by_name_and_everybody_goes_on() {
    let scene = open(StoreLimits { journal_bytes: 50_000, ..StoreLimits::default() }).await;
    let (client, identity) = (scene.admin().await, scene.machine().await);
    let connect = |held| scene::Worker::connect(scene.workers(), identity.clone(), InstanceId([1; 16]), held);
    let mut worker = connect(Vec::new()).await;
    assert_eq!(submit_large(&client).await.expect("there is room"), JobId(1));
    let attempt = worker.started().await;
    let refusal = scene::refused(submit_large(&client).await);
    assert_eq!(refusal.code, RefusalCode::StoreFull);
    while soon(worker.connection.reader.next()).await.expect("a clean end").is_some() {}
    assert_eq!(worker.connection.reader.goodbye(), Some("store_error"));
    let jobs = soon(client.request(&JobList::default())).await.expect("the same client").jobs;
    assert_eq!(jobs.len(), 1, "what was refused is not there");
    let mut worker = connect(vec![attempt]).await;
    assert_eq!(worker.registered.keep.len(), 1);
    worker.end(attempt, Verdict::Ok).await;
    // The snapshot makes room.
    let job = loop {
        match submit_large(&client).await {
            Ok(job) => break job,
            refused => assert_eq!(scene::refused(refused).code, RefusalCode::StoreFull),
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await; // poll: the store is looked at twice a second
    };
    assert_eq!(job, JobId(2));
    assert_eq!(worker.started().await.job, job);
}

// A store that holds no more output: is the program stopped, its end told as that, and are other programs left alone?
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_without_room_ends_its_program_alone() {
    let scene = open(StoreLimits { output_bytes: 1 << 20, ..StoreLimits::default() }).await;
    let (client, mut worker) = (scene.admin().await, scene.worker().await);
    let (_, mut watcher) = submit_and_watch(&client, command()).await;
    let attempt = worker.started().await;
    let bytes = noise(4 << 20, 3);
    for (n, piece) in bytes.chunks(60_000).enumerate() {
        let message = essaim_proto::link::AttemptOutput {
            attempt,
            stream: Stream::Stdout,
            offset: n as u64 * 60_000,
            bytes: piece.to_vec(),
        };
        let frame = essaim_proto::Frame::of(essaim_proto::Function::ATTEMPT_OUTPUT, 0, &message);
        soon(worker.connection.sender.bulk(frame)).await.expect("sent");
    }
    assert_eq!(worker.expect::<Stop>(essaim_proto::Function::STOP).await.attempt, attempt);
    // All of it is acknowledged: the worker can forget what nobody holds.
    worker.acknowledged(bytes.len() as u64).await;
    worker.end(attempt, Verdict::Cancelled).await;
    let result = watcher.finish().await.task.expect("a task").result.expect("a result");
    assert_eq!((result.verdict, result.truncated), (Verdict::OutputLimit, true));
    assert!(bytes.starts_with(&watcher.stdout) && watcher.stdout.len() > 100_000);
    submit(&client, command()).await;
    let attempt = worker.started().await;
    worker.end(attempt, Verdict::Ok).await;
}

// A journal that cannot be read back: does the hub say so, close everybody out, and end when it is told?
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_journal_ends_the_hub() {
    let scene = open(StoreLimits::default()).await;
    let client = scene.admin().await;
    let journal = &scene.hub.shared.store.journal;
    let term = scene.hub.shared.store.lead.acquire("another", u64::MAX / 4, 1).expect("the lead");
    journal.append(journal.last(), term, vec![0xc1], Box::new(|end| assert!(end.is_ok())));
    let refusal = scene::refused(soon(client.request(&submit_of(command()))).await);
    assert_eq!(refusal.code, RefusalCode::StoreError);
    let error = soon(scene.hub.failed()).await;
    assert!(error.to_string().contains("is damaged"), "{error}");
    soon(client.closed()).await;
    let target = scene.clients();
    assert!(scene::connect(target, scene.hub.admin_key()).await.is_err());
    soon(scene.hub.shutdown()).await;
}

// A store that takes not even the hub's own key: is that said before anything is open?
#[tokio::test]
async fn a_store_that_takes_nothing_is_no_start() {
    let home = tempfile::tempdir().expect("a folder");
    let limits = StoreLimits { journal_bytes: 10, ..StoreLimits::default() };
    let config = HubConfig { keeping: Keeping::Memory, ..scene::config(home.path()) };
    let error = RunningHub::start_with(config, limits).await.err().expect("no hub");
    assert!(matches!(error, StartError::NotRecorded), "{error}");
    assert!(HubFile::read(home.path()).expect("readable").is_none());
    RunningHub::start(scene::config(home.path())).await.expect("the folder is free").shutdown().await;
}
