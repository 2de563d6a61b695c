//! The driver with a store that is full, and with one whose journal is cut behind snapshots.

use super::*;
use crate::handle::Handle;
use essaim_proto::hello::Role;
use essaim_proto::job::{JobKind, JobSpec, JobState, TaskResult, Verdict};
use essaim_proto::link::{Ended, Register};
use essaim_proto::{BlobHash, InstanceId, SubmitKey};
use essaim_store::{NoRoom, StoreLimits};

const KEY: BlobHash = BlobHash([7; 32]);

struct Scene {
    store: Store,
    feeds: Arc<Feeds>,
    handle: Handle,
    task: tokio::task::JoinHandle<Result<(), ReplayError>>,
    _home: tempfile::TempDir,
}

fn driver(store: &Store, feeds: &Arc<Feeds>) -> Driver {
    let term = store.lead.acquire("lab", 0, u64::MAX).expect("the lead");
    Driver::new(store.clone(), term, LanguageTable::built_in(), feeds.clone()).expect("a driver")
}

/// A driver that runs, with an operator's key.
async fn scene(limits: StoreLimits, snapshot_every_bytes: u64) -> Scene {
    let home = tempfile::tempdir().expect("a folder");
    let store = Store::memory(home.path(), limits).expect("a store");
    let feeds = Arc::new(Feeds::default());
    let mut driver = driver(&store, &feeds);
    driver.snapshot_every_bytes = snapshot_every_bytes;
    let (handle, commands) = Handle::new();
    let task = tokio::spawn(driver.run(commands));
    let name = "me".parse().expect("a name");
    handle.input(Input::LocalKey { name, role: Role::Operator, secret: KEY }, 0).await;
    assert!(handle.flush().await);
    Scene { store, feeds, handle, task, _home: home }
}

impl Scene {
    async fn client(&self) -> (SessionId, mpsc::Receiver<Mail>) {
        let (session, mut mail) = self.handle.open(64).await;
        self.handle.input(Input::ClientOpened { session, secret: KEY }, 0).await;
        assert!(matches!(mail.recv().await, Some(Mail::Admitted { .. })));
        (session, mail)
    }

    async fn submit(&self, session: SessionId, request: u64, bytes: usize) {
        let args = vec!["/bin/true".into(), "x".repeat(bytes)];
        let spec = Box::new(JobSpec { kind: JobKind::Command, args, ..JobSpec::default() });
        let key = SubmitKey([request as u8; 16]);
        self.handle.input(Input::Submit { session, request, key, spec }, bytes).await;
    }

    /// Is the state that runs the one that the journal gives?
    async fn replays_equal(self) {
        let Scene { store, feeds, handle, task, _home } = self;
        handle.flush().await;
        let (session, mut mail) = handle.open(64).await;
        handle.input(Input::ClientOpened { session, secret: KEY }, 0).await;
        mail.recv().await;
        let list = essaim_core::hub::Query::JobList(essaim_proto::api::JobList::default());
        handle.input(Input::Query { session, request: 9, query: list.clone() }, 0).await;
        let Some(Mail::Answer { answer: Answer::Jobs(before), .. }) = mail.recv().await else { panic!("no answer") };
        drop(handle);
        task.await.expect("it ended").expect("well");
        let mut again = driver(&store, &feeds);
        let mut out = Out::default();
        again.hub.step(again.now(), Input::ClientOpened { session, secret: KEY }, &mut out);
        again.hub.step(again.now(), Input::Query { session, request: 9, query: list }, &mut out);
        let Some(Effect::Answer { answer: Answer::Jobs(after), .. }) = out.effects.pop() else { panic!("no answer") };
        let ids = |page: &essaim_proto::api::JobPage| page.jobs.iter().map(|j| (j.job, j.state)).collect::<Vec<_>>();
        assert_eq!(ids(&before), ids(&after));
        let (replayed, last) = replay(&store).expect("it can be read");
        assert_eq!(&replayed, again.hub.durable());
        assert_eq!(last, store.journal.last());
    }
}

async fn letter(mail: &mut mpsc::Receiver<Mail>) -> Mail {
    mail.recv().await.expect("a letter")
}

// When the store takes nothing more: is every waiting request refused as that, every session closed, nothing told that is
// not durable, and does the hub go on from what is?
#[tokio::test]
async fn a_full_store_refuses_by_name_and_the_hub_goes_on() {
    let limits = StoreLimits { journal_bytes: 60_000, ..StoreLimits::default() };
    let scene = scene(limits, u64::MAX).await;
    let (session, mut mail) = scene.client().await;
    let (_, mut other) = scene.client().await;
    scene.submit(session, 1, 20_000).await;
    assert!(matches!(letter(&mut mail).await, Mail::Answer { request: 1, .. }));
    assert_eq!(scene.feeds.len(), 1);
    scene.submit(session, 2, 50_000).await;
    match letter(&mut mail).await {
        Mail::Refused { request: 2, refusal } => assert_eq!(refusal.code, RefusalCode::StoreFull),
        other => panic!("{other:?}"),
    }
    for mail in [&mut mail, &mut other] {
        assert!(matches!(letter(mail).await, Mail::Close { reason: "store_error" }));
        assert!(mail.recv().await.is_none());
    }
    assert_eq!(scene.feeds.len(), 1, "the job that was refused has no feed");
    // What comes late from a session that was closed has no right and no answer.
    scene.submit(session, 3, 10).await;
    scene.handle.input(Input::SessionClosed { session, clean: true }, 0).await;
    let (session, mut mail) = scene.client().await;
    scene.submit(session, 1, 20_000).await;
    match letter(&mut mail).await {
        Mail::Answer { answer: Answer::Submitted { job: JobId(1), repeated: true }, .. } => {}
        other => panic!("{other:?}"),
    }
    // The snapshot that was taken made room; and once more it is too much.
    scene.submit(session, 4, 30_000).await;
    match letter(&mut mail).await {
        Mail::Answer { answer: Answer::Submitted { job: JobId(2), repeated: false }, .. } => {}
        other => panic!("{other:?}"),
    }
    scene.replays_equal().await;
}

// When not even a snapshot fits: is each new submit refused cleanly, for ever, and nothing that was promised lost?
#[tokio::test]
async fn a_store_that_stays_full_refuses_cleanly() {
    let limits = StoreLimits { journal_bytes: 30_000, snapshot_bytes: 10, ..StoreLimits::default() };
    let scene = scene(limits, u64::MAX).await;
    let (session, mut mail) = scene.client().await;
    scene.submit(session, 1, 20_000).await;
    assert!(matches!(letter(&mut mail).await, Mail::Answer { .. }));
    for _ in 0..3 {
        let (session, mut mail) = scene.client().await;
        scene.submit(session, 2, 20_000).await;
        match letter(&mut mail).await {
            Mail::Refused { refusal, .. } => assert_eq!(refusal.code, RefusalCode::StoreFull),
            other => panic!("{other:?}"),
        }
        assert!(matches!(letter(&mut mail).await, Mail::Close { .. }));
    }
    assert!(
        !{
            scene.submit(session, 9, 20_000).await;
            let name = "new".parse().expect("a name");
            scene.handle.input(Input::LocalKey { name, role: Role::Viewer, secret: BlobHash([1; 32]) }, 0).await;
            let (session, _mail) = scene.client().await;
            scene.submit(session, 10, 20_000).await;
            scene.handle.flush().await
        },
        "a flush over what was not durable says so"
    );
    scene.replays_equal().await;
}

// Is the journal cut behind snapshots, with a state that replays equal?
#[tokio::test]
async fn the_journal_is_cut_behind_snapshots() {
    let scene = scene(StoreLimits::default(), 10_000).await;
    let (session, mut mail) = scene.client().await;
    for request in 1..=40 {
        scene.submit(session, request, 1_000).await;
        assert!(matches!(letter(&mut mail).await, Mail::Answer { .. }));
    }
    let (at, _) = scene.store.journal.latest_snapshot().expect("readable").expect("a snapshot");
    assert!(at.0 > 20, "{at}");
    assert!(scene.store.journal.read(Seq(1), 1_000).is_err(), "trimmed");
    assert!(scene.store.journal.last() > at);
    scene.replays_equal().await;
}

// Are more records than one row may hold still recorded, in order?
#[test]
fn a_flood_of_records_becomes_several_rows() {
    let record = |n: u64| Record::JoinMade { secret: BlobHash([n as u8; 32]), uses: 1, expires_ms: n };
    let records: Vec<Record> = (0..50_000).map(record).collect();
    let batches = encode_batches(&records);
    assert!(batches.len() > 1);
    assert!(batches.iter().all(|batch| batch.len() <= essaim_store::limits::BATCH_BYTES_MAX));
    let back: Vec<Record> = batches.iter().flat_map(|batch| decode_batch(batch).expect("whole")).collect();
    assert_eq!(back, records);
    assert!(encode_batches(&[]).is_empty());
}

// Is a state that failed not used again before all appends under way have ended? The port allows them to end later.
#[tokio::test]
async fn a_failure_waits_for_the_appends_behind_it() {
    let home = tempfile::tempdir().expect("a folder");
    let store = Store::memory(home.path(), StoreLimits::default()).expect("a store");
    let mut driver = driver(&store, &Arc::new(Feeds::default()));
    let name = "me".parse().expect("a name");
    let mut out = Out::default();
    driver.hub.step(driver.now(), Input::LocalKey { name, role: Role::Operator, secret: KEY }, &mut out);
    driver.commit(driver.now(), out, Leaving::default()).expect("durable");
    // As if three were under way and the first failed.
    let (asked, durable) = (driver.asked, driver.durable);
    driver.asked = Seq(asked.0 + 3);
    driver.under_way = 3;
    let (flushed, mut waits) = oneshot::channel();
    driver.waiting.push_back((driver.asked, Leaving { effects: Vec::new(), flushed: vec![flushed] }));
    driver.appended(Err(AppendError::Full(NoRoom::Limit(1)))).expect("not yet");
    assert!(!driver.is_ready());
    let behind = || AppendError::AfterFailed { expected: Seq(5), actual: durable };
    driver.appended(Err(behind())).expect("not yet");
    assert!(!driver.is_ready() && driver.asked != durable);
    driver.appended(Err(behind())).expect("replayed");
    assert!(driver.is_ready());
    assert_eq!((driver.asked, driver.durable), (durable, durable));
    assert!(waits.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed));
}

// Does an attempt that outlived its hub find its files and its input again? Nothing of the old feeds is there.
#[tokio::test]
async fn a_kept_attempt_finds_its_feed_after_a_restart() {
    let scene = scene(StoreLimits::default(), u64::MAX).await;
    let (client, mut mail) = scene.client().await;
    let hash = BlobHash::of(b"abc");
    scene.store.blobs.put(hash, b"abc").expect("stored");
    let register = |held| Box::new(Register { instance: InstanceId([1; 16]), slots: 2, held, ..Register::default() });
    let name: essaim_proto::NodeName = "pc".parse().expect("a name");
    let (worker, mut told) = scene.handle.open(64).await;
    let input = Input::Register { session: worker, name: name.clone(), register: register(Vec::new()) };
    scene.handle.input(input, 0).await;
    letter(&mut told).await;
    let file = essaim_proto::job::FileSpec { path: "a".into(), hash, size_bytes: 3, ..Default::default() };
    let stdin = essaim_proto::job::StdinSpec::Live;
    let args = vec!["/bin/cat".into()];
    let spec = JobSpec { kind: JobKind::Command, args, files: vec![file], stdin, ..JobSpec::default() };
    let key = SubmitKey([1; 16]);
    scene.handle.input(Input::Submit { session: client, request: 1, key, spec: Box::new(spec) }, 0).await;
    assert!(matches!(letter(&mut mail).await, Mail::Answer { .. }));
    let Mail::Tell { message: ToWorker::Start(start), .. } = letter(&mut told).await else { panic!("no start") };

    let Scene { store, handle, task, _home, .. } = scene;
    drop(handle);
    task.await.expect("it ended").expect("well");
    let (handle, commands) = Handle::new();
    tokio::spawn(driver(&store, &Arc::new(Feeds::default())).run(commands));
    let (worker, mut told) = handle.open(64).await;
    handle.input(Input::Register { session: worker, name, register: register(vec![start.attempt]) }, 0).await;
    let Mail::Tell { message: ToWorker::Registered(kept), feeds } = letter(&mut told).await else {
        panic!("no answer")
    };
    assert_eq!(kept.keep.len(), 1);
    assert!(feeds[0].refers_to(hash) && feeds[0].stdin.is_some());
}

// Do the feeds of jobs go with them, whatever became of them?
#[tokio::test]
async fn feeds_end_with_their_jobs() {
    let scene = scene(StoreLimits::default(), u64::MAX).await;
    let (client, mut mail) = scene.client().await;
    let (worker, mut told) = scene.handle.open(64).await;
    let register = || Box::new(Register { instance: InstanceId([1; 16]), slots: 2, ..Register::default() });
    let name: essaim_proto::NodeName = "pc".parse().expect("a name");
    scene.handle.input(Input::Register { session: worker, name: name.clone(), register: register() }, 0).await;
    assert!(matches!(letter(&mut told).await, Mail::Tell { message: ToWorker::Registered(_), .. }));
    for request in 1..=3 {
        scene.submit(client, request, 1).await;
        let Mail::Answer { feed: Some(feed), .. } = letter(&mut mail).await else { panic!("no feed") };
        let mut events = feed.event.subscribe();
        let event = events.wait_for(Option::is_some).await.expect("an event").clone();
        assert_eq!(event.map(|event| event.last), Some(false));
    }
    assert_eq!(scene.feeds.len(), 3);
    let mut started = Vec::new();
    for _ in 0..2 {
        let Mail::Tell { message: ToWorker::Start(start), feeds } = letter(&mut told).await else { panic!("no start") };
        started.push((start.attempt, feeds));
    }
    for request in [4, 5, 6] {
        // Two run, one waits: stopped, stopped, ended.
        let job = JobId(request - 3);
        scene.handle.input(Input::Cancel { session: client, request, job }, 0).await;
        assert!(matches!(letter(&mut mail).await, Mail::Answer { .. }));
    }
    for (attempt, feeds) in &started {
        let result = TaskResult { verdict: Verdict::Cancelled, ..TaskResult::default() };
        let ended = Box::new(Ended { attempt: *attempt, result });
        scene.handle.input(Input::Ended { session: worker, ended }, 0).await;
        let mut event = feeds[0].event.subscribe();
        let last = event.wait_for(|event| event.as_ref().is_some_and(|event| event.last)).await.expect("its end");
        assert_eq!(last.as_ref().map(|event| event.state), Some(JobState::Cancelled));
    }
    assert_eq!(scene.feeds.len(), 0);
    // A watch of what is over makes none, and a repeated submit neither.
    let query = essaim_core::hub::Query::Watch { job: JobId(1), key: None };
    scene.handle.input(Input::Query { session: client, request: 8, query }, 0).await;
    assert!(matches!(letter(&mut mail).await, Mail::Answer { feed: None, .. }));
    scene.submit(client, 1, 1).await;
    assert!(matches!(letter(&mut mail).await, Mail::Answer { feed: None, .. }));
    assert_eq!(scene.feeds.len(), 0);
    scene.replays_equal().await;
}

// Is a session that empties no mailbox cut off, and nobody else?
#[tokio::test]
async fn a_session_that_does_not_keep_up_is_cut_off() {
    let scene = scene(StoreLimits::default(), u64::MAX).await;
    let (slow, mut full) = scene.handle.open(1).await;
    let (client, mut mail) = scene.client().await;
    scene.handle.input(Input::ClientOpened { session: slow, secret: KEY }, 0).await;
    scene.submit(slow, 1, 1).await;
    scene.submit(client, 2, 1).await;
    assert!(matches!(letter(&mut mail).await, Mail::Answer { .. }));
    assert!(matches!(letter(&mut full).await, Mail::Admitted { .. }));
    assert!(full.recv().await.is_none());
}
