//! The driver with a store that is full, and with one whose journal is cut behind snapshots.

use super::*;
use crate::hub::{Keep, Rest};
use crate::keeper::KeeperThread;
use essaim_core::hub::{Answer, Query, ToWorker, decode_batch};
use essaim_proto::api::JobList;
use essaim_proto::hello::Role;
use essaim_proto::job::{JobKind, JobSpec, JobState, TaskResult, Verdict};
use essaim_proto::link::{Ended, Register};
use essaim_proto::{BlobHash, InstanceId, JobId, SubmitKey};
use essaim_store::{NoRoom, StoreLimits};
use std::time::Duration;

const KEY: BlobHash = BlobHash([7; 32]);

struct Scene {
    store: Store,
    feeds: Arc<Feeds>,
    past: Arc<Past>,
    handle: crate::handle::Handle,
    task: tokio::task::JoinHandle<Result<(), ReplayError>>,
    keeper: KeeperThread,
    _follower: crate::catalog::FollowerThread,
    _home: tempfile::TempDir,
}

fn driver(store: &Store) -> (Driver, Rest) {
    crate::hub::driver(
        store,
        LanguageTable::built_in(),
        Keep { output_bytes: u64::MAX, ..Keep::default() },
        essaim_core::hub::Rules::default(),
    )
    .expect("a driver")
}

/// A driver that runs, with an operator's key.
async fn scene(limits: StoreLimits, snapshot_every_bytes: u64) -> Scene {
    let home = tempfile::tempdir().expect("a folder");
    let store = Store::memory(home.path(), limits).expect("a store");
    scene_on(store, home, snapshot_every_bytes).await
}

async fn scene_on(store: Store, home: tempfile::TempDir, snapshot_every_bytes: u64) -> Scene {
    let (mut driver, rest) = driver(&store);
    driver.snapshot_every_bytes = snapshot_every_bytes;
    let Rest { handle, queues, feeds, past, follower, keeper, .. } = rest;
    let keeper = keeper.start(handle.clone()).expect("a thread");
    let task = tokio::spawn(driver.run(queues));
    let name = "me".parse().expect("a name");
    handle.input(Input::LocalKey { name, role: Role::Operator, secret: KEY }, 0).await;
    assert!(handle.flush().await);
    Scene { store, feeds, past, handle, task, keeper, _follower: follower, _home: home }
}

impl Scene {
    async fn client(&self) -> (SessionId, mpsc::Receiver<Mail>) {
        let (session, mut mail) = self.handle.open_client(256, KEY).await;
        assert!(matches!(mail.recv().await, Some(Mail::Admitted { .. })));
        (session, mail)
    }

    /// The jobs that it lists.
    async fn jobs(&self) -> Vec<(JobId, JobState)> {
        let (session, mut mail) = self.client().await;
        self.handle.query(session, 1, Query::JobList(JobList::default())).await;
        let Mail::Answer { answer: Answer::Jobs(page), .. } = letter(&mut mail).await else { panic!("no answer") };
        page.jobs.iter().map(|job| (job.job, job.state)).collect()
    }

    /// Ends the driver and gives what it leaves.
    async fn end(self) -> (Store, tempfile::TempDir) {
        let Scene { store, handle, task, keeper, _home, .. } = self;
        drop(handle);
        tokio::task::spawn_blocking(move || keeper.stop()).await.expect("it ended");
        task.await.expect("it ended").expect("well");
        (store, _home)
    }

    async fn submit(&self, session: SessionId, request: u64, bytes: usize) {
        let args = vec!["/bin/true".into(), "x".repeat(bytes)];
        let spec = Box::new(JobSpec { kind: JobKind::Command, args, ..JobSpec::default() });
        let key = SubmitKey(u128::from(request).to_le_bytes());
        self.handle.submit(Input::Submit { session, request, key, spec }, bytes, true).await;
    }

    /// Is the state that runs the one that the journal gives?
    async fn replays_equal(self) {
        self.handle.flush().await;
        let before = self.jobs().await;
        let (store, home) = self.end().await;
        let replayed = Published::replay(&store, |_, _| ()).expect("it can be read");
        assert_eq!(replayed.at(), store.journal.last());
        let again = scene_on(store, home, u64::MAX).await;
        assert_eq!(again.jobs().await, before);
    }
}

async fn letter(mail: &mut mpsc::Receiver<Mail>) -> Mail {
    mail.recv().await.expect("a letter")
}

/// Submits until there is room: what was refused for want of it comes again.
async fn submit_when_there_is_room(
    scene: &Scene,
    session: SessionId,
    mail: &mut mpsc::Receiver<Mail>,
    request: u64,
    bytes: usize,
) -> Answer {
    loop {
        scene.submit(session, request, bytes).await;
        match letter(mail).await {
            Mail::Answer { answer, .. } => return answer,
            Mail::Refused { refusal, .. } => assert_eq!(refusal.code, RefusalCode::StoreFull),
            other => panic!("{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await; // poll: the keeper looks twice a second
    }
}

// When the store takes nothing more: is every waiting request refused as that, is nothing told that is not durable, do
// clients stay while workers come back, and does the hub go on from what is durable when there is room?
#[tokio::test]
async fn a_full_store_refuses_by_name_and_the_hub_goes_on() {
    let limits = StoreLimits { journal_bytes: 60_000, ..StoreLimits::default() };
    let scene = scene(limits, u64::MAX).await;
    let (session, mut mail) = scene.client().await;
    let (other, mut others) = scene.client().await;
    let (worker, mut told) = scene.handle.open(64).await;
    let register = Box::new(Register { instance: InstanceId([1; 16]), slots: 1, ..Register::default() });
    let name = "pc".parse().expect("a name");
    scene.handle.input(Input::Register { session: worker, name, register }, 0).await;
    assert!(matches!(letter(&mut told).await, Mail::Tell { message: ToWorker::Registered(_), .. }));
    scene.submit(session, 1, 20_000).await;
    assert!(matches!(letter(&mut mail).await, Mail::Answer { request: 1, .. }));
    assert!(matches!(letter(&mut told).await, Mail::Tell { message: ToWorker::Start(_), .. }));
    assert_eq!(scene.feeds.len(), 1);
    scene.submit(session, 2, 50_000).await;
    match letter(&mut mail).await {
        Mail::Refused { request: 2, refusal } => assert_eq!(refusal.code, RefusalCode::StoreFull),
        other => panic!("{other:?}"),
    }
    assert!(matches!(letter(&mut told).await, Mail::Close { reason: "store_error" }));
    assert!(told.recv().await.is_none());
    assert_eq!(scene.feeds.len(), 1, "the job that was refused has no feed");
    // Clients are still there, and reads are served; what must be recorded waits for room.
    scene.handle.query(other, 7, Query::JobShow(JobId(1))).await;
    assert!(matches!(letter(&mut others).await, Mail::Answer { request: 7, answer: Answer::Job(_), .. }));
    let again = submit_when_there_is_room(&scene, session, &mut mail, 1, 20_000).await;
    assert_eq!(again, Answer::Submitted { job: JobId(1), repeated: true, clamped: vec![] });
    // The snapshot that was taken made room; and once more it is too much.
    let more = submit_when_there_is_room(&scene, other, &mut others, 4, 30_000).await;
    assert_eq!(more, Answer::Submitted { job: JobId(2), repeated: false, clamped: vec![] });
    assert_eq!(scene.jobs().await.len(), 2);
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
    for request in 2..5 {
        scene.submit(session, request, 20_000).await;
        match letter(&mut mail).await {
            Mail::Refused { refusal, .. } => assert_eq!(refusal.code, RefusalCode::StoreFull),
            other => panic!("{other:?}"),
        }
    }
    scene.replays_equal().await;
}

// Does a flush say that what it waited for was not durable?
#[tokio::test]
async fn a_flush_over_what_was_not_durable_says_so() {
    let scene = scene(StoreLimits { journal_bytes: 30_000, ..StoreLimits::default() }, u64::MAX).await;
    let (session, mut mail) = scene.client().await;
    scene.submit(session, 1, 50_000).await;
    assert!(!scene.handle.flush().await);
    assert!(matches!(letter(&mut mail).await, Mail::Refused { .. }));
}

// Does a job that lives no longer than its client outlive a store that was full, as its client does? And does whoever
// watches hear how the job stands?
#[tokio::test]
async fn what_a_client_holds_survives_a_full_store() {
    let limits = StoreLimits { journal_bytes: 30_000, ..StoreLimits::default() };
    let scene = scene(limits, u64::MAX).await;
    let (session, mut mail) = scene.client().await;
    let args = vec!["/bin/true".into()];
    let spec = JobSpec { kind: JobKind::Command, args, ephemeral: true, ..JobSpec::default() };
    let key = SubmitKey([1; 16]);
    scene.handle.submit(Input::Submit { session, request: 1, key, spec: Box::new(spec) }, 0, true).await;
    let Mail::Answer { feed: Some(feed), .. } = letter(&mut mail).await else { panic!("no feed") };
    scene.submit(session, 2, 40_000).await;
    assert!(matches!(letter(&mut mail).await, Mail::Refused { request: 2, .. }));
    assert_eq!(scene.jobs().await, [(JobId(1), JobState::Queued)]);
    // Its client goes: now it is cancelled, as before.
    scene.handle.input(Input::SessionClosed { session, clean: true }, 0).await;
    let mut event = feed.event.subscribe();
    let last = event.wait_for(|event| event.as_ref().is_some_and(|event| event.last)).await.expect("its end");
    assert_eq!(last.as_ref().map(|event| event.state), Some(JobState::Cancelled));
}

/// Makes the store hang: what it has to tell waits until the sender is dropped.
async fn hang(store: &Store) -> std::sync::mpsc::Sender<()> {
    let (release, wait) = std::sync::mpsc::channel::<()>();
    let (hangs, is_hanging) = oneshot::channel();
    let journal = store.journal.clone();
    std::thread::spawn(move || {
        // Nobody has that term: the journal stays as it is, and its only teller of ends waits.
        let done = move |end: Result<Seq, AppendError>| {
            assert!(end.is_err());
            let _ = hangs.send(());
            let _ = wait.recv();
        };
        journal.append(Seq(0), Term(u64::MAX), Vec::new(), Box::new(done));
    });
    is_hanging.await.expect("it hangs");
    release
}

// While the store hangs: are questions answered, can clients come, is nothing shown that is not durable, and is everything
// told when the store goes on?
#[tokio::test]
async fn questions_are_answered_while_the_store_hangs() {
    let scene = scene(StoreLimits::default(), u64::MAX).await;
    let (session, mut mail) = scene.client().await;
    scene.submit(session, 1, 10).await;
    assert!(matches!(letter(&mut mail).await, Mail::Answer { .. }));
    let release = hang(&scene.store).await;
    // More than the driver leaves under way, each in a batch of its own.
    for request in 2..=(APPENDS_MAX as u64 + 10) {
        scene.submit(session, request, 10).await;
        tokio::task::yield_now().await;
    }
    for _ in 0..10 {
        assert_eq!(scene.jobs().await, [(JobId(1), JobState::Queued)], "the rest is not durable");
    }
    scene.handle.query(session, 99, Query::JobShow(JobId(2))).await;
    match letter(&mut mail).await {
        Mail::Refused { request: 99, refusal } => assert_eq!(refusal.code, RefusalCode::NoSuchJob),
        other => panic!("{other:?}"),
    }
    for query in [Query::NodeList { after: None }, Query::JobShow(JobId(1))] {
        scene.handle.query(session, 100, query).await;
        assert!(matches!(letter(&mut mail).await, Mail::Answer { request: 100, .. }));
    }
    drop(release);
    for request in 2..=(APPENDS_MAX as u64 + 10) {
        match letter(&mut mail).await {
            Mail::Answer { request: told, answer: Answer::Submitted { job, .. }, .. } => {
                assert_eq!((told, job), (request, JobId(request)));
            }
            other => panic!("{other:?}"),
        }
    }
    scene.replays_equal().await;
}

// Are jobs that the core has forgotten still listed and shown, without holes and doubles, and are they there after a
// restart with a catalog that is new?
#[tokio::test]
async fn what_the_core_has_forgotten_is_in_the_catalog() {
    const JOBS: u64 = essaim_core::limits::ENDED_JOBS_MAX as u64 + 50;
    let scene = scene(StoreLimits::default(), 256 << 10).await;
    let (session, mut mail) = scene.client().await;
    for job in 1..=JOBS {
        scene.submit(session, 2 * job, 10).await;
        scene.handle.input(Input::Cancel { session, request: 2 * job + 1, job: JobId(job), tasks: None }, 0).await;
        for _ in 0..2 {
            assert!(matches!(letter(&mut mail).await, Mail::Answer { .. }));
        }
    }
    scene.handle.query(session, 1, Query::JobShow(JobId(3))).await;
    assert!(matches!(letter(&mut mail).await, Mail::Refused { .. }), "the core has forgotten it");
    let kept = scene.past.job(JobId(3)).await.expect("the catalog has it");
    assert_eq!((kept.view.job, kept.view.state), (JobId(3), JobState::Cancelled));
    assert_eq!(scene.past.job(JobId(JOBS + 1)).await.expect_err("none").code, RefusalCode::NoSuchJob);
    let who = crate::past::Who { key: "me".parse().expect("a name"), role: Role::Operator };
    let mut list = JobList::default();
    let mut seen = Vec::new();
    loop {
        scene.handle.query(session, 1, Query::JobList(list.clone())).await;
        let Mail::Answer { answer: Answer::Jobs(page), .. } = letter(&mut mail).await else { panic!("no page") };
        let page = scene.past.complete(&list, page, &who).await.expect("a page");
        seen.extend(page.jobs.iter().map(|job| job.job.0));
        list.before = page.jobs.last().map(|job| job.job);
        if !page.more {
            break;
        }
    }
    assert!(seen.iter().copied().eq((1..=JOBS).rev()), "{} jobs", seen.len());
    let at = loop {
        if let Some((at, _)) = scene.store.journal.latest_snapshot().expect("readable") {
            break at;
        }
        tokio::time::sleep(Duration::from_millis(5)).await; // poll: snapshots are written beside
    };
    assert!(scene.store.catalog.applied().expect("readable") >= at, "a snapshot is never ahead of the catalog");
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
    let trimmed = || scene.store.journal.read(Seq(1), 1_000).is_err();
    while !trimmed() {
        tokio::time::sleep(Duration::from_millis(5)).await; // poll: snapshots are written beside
    }
    let (at, _) = scene.store.journal.latest_snapshot().expect("readable").expect("a snapshot");
    assert!(at.0 > 5, "{at}");
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
    let (mut driver, _rest) = driver(&store);
    let name = "me".parse().expect("a name");
    let mut out = Out::default();
    driver.hub.step(driver.now(), Input::LocalKey { name, role: Role::Operator, secret: KEY }, &mut out);
    driver.commit(driver.now(), out, Leaving::default());
    let news = driver.news.recv().await.expect("it was appended");
    driver.hear(news).expect("durable");
    // As if three were under way and the first failed.
    let durable = driver.published.at;
    assert_eq!(driver.asked, durable);
    driver.asked = Seq(durable.0 + 3);
    driver.under_way = 3;
    let (flushed, mut waits) = oneshot::channel();
    driver.waiting.push_back((driver.asked, Leaving { flushed: vec![flushed], ..Leaving::default() }));
    driver.appended(Err(AppendError::Full(NoRoom::Limit(1))));
    assert!(!driver.is_ready() && !driver.is_recovering);
    let behind = || AppendError::AfterFailed { expected: Seq(5), actual: durable };
    driver.appended(Err(behind()));
    assert!(!driver.is_ready() && !driver.is_recovering && driver.asked != durable);
    driver.appended(Err(behind()));
    assert!(!driver.is_ready() && driver.is_recovering);
    let news = driver.news.recv().await.expect("it was read back");
    driver.hear(news).expect("readable");
    assert!(driver.is_ready());
    assert_eq!((driver.asked, driver.published.at), (durable, durable));
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

    let (store, home) = scene.end().await;
    let again = scene_on(store, home, u64::MAX).await;
    let (worker, mut told) = again.handle.open(64).await;
    again.handle.input(Input::Register { session: worker, name, register: register(vec![start.attempt]) }, 0).await;
    let Mail::Tell { message: ToWorker::Registered(kept), feeds } = letter(&mut told).await else {
        panic!("no answer")
    };
    assert_eq!(kept.keep.len(), 1);
    assert!(feeds[0].refers_to(hash) && feeds[0].stdin.is_some());
}

// Does a job that nobody watches and that only waits have no feed, and gets one when somebody watches it after all?
#[tokio::test]
async fn what_only_waits_has_no_feed() {
    let scene = scene(StoreLimits::default(), u64::MAX).await;
    let (session, mut mail) = scene.client().await;
    let spec = JobSpec { kind: JobKind::Command, args: vec!["/bin/true".into()], ..JobSpec::default() };
    let input = Input::Submit { session, request: 1, key: SubmitKey([1; 16]), spec: Box::new(spec) };
    scene.handle.submit(input, 0, false).await;
    assert!(matches!(letter(&mut mail).await, Mail::Answer { feed: None, .. }));
    assert!(scene.handle.flush().await);
    assert_eq!(scene.feeds.len(), 0);
    let query = essaim_core::hub::Query::Watch { job: JobId(1), key: None };
    scene.handle.query(session, 2, query).await;
    let Mail::Answer { feed: Some(feed), .. } = letter(&mut mail).await else { panic!("no feed") };
    assert_eq!(feed.event.borrow().as_ref().map(|event| event.state), Some(JobState::Queued));
    assert_eq!(scene.feeds.len(), 1);
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
        scene.handle.input(Input::Cancel { session: client, request, job, tasks: None }, 0).await;
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
    let (slow, mut full) = scene.handle.open_client(1, KEY).await;
    let (client, mut mail) = scene.client().await;
    scene.submit(slow, 1, 1).await;
    scene.submit(client, 2, 1).await;
    assert!(matches!(letter(&mut mail).await, Mail::Answer { .. }));
    assert!(matches!(letter(&mut full).await, Mail::Admitted { .. }));
    assert!(full.recv().await.is_none());
}
