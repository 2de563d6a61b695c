//! A whole hub whose store is small, or whose journal is damaged.

use super::*;
use crate::past::Who;
use essaim_net::Client;
use essaim_proto::InstanceId;
use essaim_proto::api::{JobList, Stream, TaskList};
use essaim_proto::hello::Role;
use essaim_proto::job::{ArraySpec, JobSpec, TaskResult, TaskState, Verdict};
use essaim_proto::link::{EndedMany, Start, Stop, TaskEnd};
use essaim_proto::{Function, RefusalCode, TaskId, TaskSet};
use scene::{Scene, command, noise, soon, submit, submit_and_watch, submit_of};

#[path = "../../tests/it/scene.rs"]
#[allow(dead_code, clippy::unwrap_used)]
pub(crate) mod scene;

/// What the sessions of a hub share, for tests of one session.
pub(crate) fn shared(scene: &Scene) -> Arc<Shared> {
    scene.hub.shared.clone()
}

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

/// A small disk of its own; `None` where it cannot be had.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(megabytes: usize) -> Option<SmallDisk> {
        let folder = tempfile::tempdir().expect("a folder");
        let size = format!("size={megabytes}m");
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "none"]).arg(folder.path());
        let mounted = mount.output().is_ok_and(|output| output.status.success());
        mounted.then_some(SmallDisk(folder))
    }

    /// Takes all but `left` bytes.
    fn fill(&self, left: u64) -> PathBuf {
        let stat = rustix::fs::statvfs(self.0.path()).expect("its size");
        let path = self.0.path().join("ballast");
        let size = (stat.f_bavail * stat.f_frsize).saturating_sub(left);
        std::fs::write(&path, vec![7; size as usize]).expect("room for it");
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).output();
    }
}

// A disk that is really full: is new work refused by name, are reads served and ends recorded, and does work go on when there
// is room, all without a restart?
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_survived() {
    let Some(disk) = SmallDisk::mount(64) else {
        // Only root may mount; the limits of the memory's store are tested above.
        return;
    };
    let home = tempfile::tempdir_in(disk.0.path()).expect("a folder");
    let limits = StoreLimits { reserve_bytes: 8 << 20, ..StoreLimits::default() };
    let hub = RunningHub::start_with(scene::config(home.path()), limits).await.expect("a hub");
    let scene = Scene { hub, home };
    let (client, mut worker) = (scene.admin().await, scene.worker().await);
    let job = submit(&client, command()).await;
    let attempt = worker.started().await;
    worker.output(attempt, Stream::Stdout, 0, b"12345").await;
    let ballast = disk.fill(4 << 20);
    loop {
        match soon(client.request(&submit_of(command()))).await {
            Err(refused) => {
                assert_eq!(scene::refused::<()>(Err(refused)).code, RefusalCode::StoreFull);
                break;
            }
            // Accepted before it was seen.
            Ok(_) => {
                let attempt = worker.started().await;
                worker.end(attempt, Verdict::Ok).await;
            }
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await; // poll: seen twice a second
    }
    assert!(!soon(client.request(&JobList::default())).await.expect("a page").jobs.is_empty());
    worker.end(attempt, Verdict::Ok).await;
    let shown = soon(client.request(&essaim_proto::api::JobShow { job })).await.expect("shown");
    assert_eq!(shown.state, essaim_proto::job::JobState::Done);
    std::fs::remove_file(ballast).expect("removed");
    while let Err(refused) = soon(client.request(&submit_of(command()))).await {
        assert_eq!(scene::refused::<()>(Err(refused)).code, RefusalCode::StoreFull);
        tokio::time::sleep(std::time::Duration::from_millis(50)).await; // poll: seen twice a second
    }
    let scene = scene.restart().await;
    let client = scene.admin().await;
    let shown = soon(client.request(&essaim_proto::api::JobShow { job })).await.expect("shown");
    assert_eq!(shown.state, essaim_proto::job::JobState::Done);
    soon(scene.hub.shutdown()).await;
}

/// All frames of a watch: the bytes of standard output, and whether something was said to be dropped.
async fn logs(client: &Client, job: JobId) -> (Vec<u8>, bool) {
    let watch = essaim_proto::api::Watch { job, output: true, ..Default::default() };
    let (_, mut frames) = soon(client.open(&watch)).await.expect("watched");
    let (mut bytes, mut is_dropped) = (Vec::new(), false);
    loop {
        let frame = soon(frames.next()).await.expect("the watch goes on");
        if frame.function == essaim_proto::Function::EVENT {
            return (bytes, is_dropped);
        }
        let chunk: essaim_proto::api::OutputChunk = frame.message().expect("output");
        is_dropped |= chunk.dropped;
        bytes.extend(chunk.bytes);
    }
}

// Is output that retention has dropped said to be dropped, and small output, which the catalog has, still there?
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_output_is_said() {
    let home = tempfile::tempdir().expect("a folder");
    let hub = RunningHub::start(scene::config(home.path())).await.expect("a hub");
    let scene = Scene { hub, home };
    let (client, mut worker) = (scene.admin().await, scene.worker().await);
    let mut jobs = Vec::new();
    for length in [1_000, 300_000] {
        let job = submit(&client, command()).await;
        let attempt = worker.started().await;
        let bytes = noise(length, 5);
        worker.output(attempt, Stream::Stdout, 0, &bytes).await;
        worker.end(attempt, Verdict::Ok).await;
        assert!(logs(&client, job).await == (bytes.clone(), false));
        jobs.push((job, bytes));
    }
    let store = scene.hub.shared.store.clone();
    crate::keeper::retain(&store, unix_ms(), usize::MAX, Keep { output_bytes: 0, ..Keep::default() });
    assert_eq!(store.outputs.used_bytes(), 0);
    drop(store);
    assert_eq!(logs(&client, jobs[1].0).await, (Vec::new(), true));
    let (bytes, is_dropped) = logs(&client, jobs[0].0).await;
    assert!(bytes == jobs[0].1 && !is_dropped);
    soon(scene.hub.shutdown()).await;
}

// Tasks of an array that the core may have forgotten: are they listed page after page, by state and by number alone, to
// those who may?
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_of_a_forgotten_array_are_listed() {
    let scene = open(StoreLimits::default()).await;
    let (client, mut worker) = (scene.admin().await, scene.worker().await);
    let tasks: TaskSet = "5-904:3".parse().expect("a set");
    let spec = JobSpec { array: Some(Box::new(ArraySpec { tasks: tasks.clone(), lines: None })), ..command() };
    let (job, mut watcher) = submit_and_watch(&client, spec).await;
    let mut left = tasks.len();
    while left > 0 {
        let start: Start = worker.expect_past(Function::START).await;
        let end = |task: TaskId| {
            let verdict = if task.0.is_multiple_of(2) { Verdict::Ok } else { Verdict::RuntimeError };
            let result = TaskResult { verdict, exit_code: Some(7), ..TaskResult::default() };
            TaskEnd { task, attempt: 1, result, ..TaskEnd::default() }
        };
        let ends: Vec<TaskEnd> = start.tasks.expect("an array").iter().map(end).collect();
        left -= ends.len() as u64;
        worker.send(Function::ENDED_MANY, &EndedMany { job, ends });
    }
    watcher.finish().await;
    let past = &scene.hub.shared.past;
    // As when the core forgets it.
    past.must_see(past.last_end());
    let who = |key: &str, role| Who { key: key.parse().expect("a name"), role };
    let (admin, other) = (who("admin", Role::Admin), who("other", Role::Viewer));
    let states = vec![TaskState::Failed];
    let list = TaskList { job, limit: 70, states: states.clone(), ..TaskList::default() };
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = past.tasks(TaskList { after, ..list.clone() }, &other).await.expect("listed");
        assert!(page.tasks.iter().all(|task| task.result.as_ref().is_some_and(|result| result.exit_code == Some(7))));
        found.extend(page.tasks.iter().map(|task| task.task));
        after = found.last().copied();
        if !page.more {
            break;
        }
        assert_eq!(page.tasks.len(), 70);
    }
    let odd: Vec<TaskId> = tasks.iter().filter(|task| !task.0.is_multiple_of(2)).collect();
    assert_eq!(found, odd);
    let numbers = TaskList { job, numbers_only: true, ..TaskList::default() };
    let set = past.tasks(numbers.clone(), &admin).await.expect("listed").set;
    assert!(set.iter().eq(tasks.iter()));
    assert_eq!(past.tasks(numbers, &other).await.expect_err("his own").code, RefusalCode::NotAllowed);
    let nobody = TaskList { job: JobId(99), ..TaskList::default() };
    assert_eq!(past.tasks(nobody, &admin).await.expect_err("none").code, RefusalCode::NoSuchJob);
}
