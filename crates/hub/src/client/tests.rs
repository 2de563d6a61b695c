//! What a session does when the driver is slow: nobody empties its queue here.

use super::*;
use crate::catalog::Follower;
use crate::doors::Doors;
use crate::feeds::Feeds;
use crate::handle::{Handle, Queues};
use crate::past::Past;
use essaim_net::Authority;
use essaim_store::{Seq, Store, StoreLimits};

struct Scene {
    session: ClientSession,
    queues: Queues,
    peer: Connection,
    _home: tempfile::TempDir,
}

fn scene() -> Scene {
    let home = tempfile::tempdir().expect("a folder");
    let (handle, queues) = Handle::new();
    let store = Store::memory(home.path(), StoreLimits::default()).expect("a store");
    let (follower, _) = Follower::start(store.clone(), Seq(0)).expect("a thread");
    let shared = Arc::new(Shared {
        name: "lab".into(),
        handle,
        feeds: Arc::new(Feeds::default()),
        changes: Arc::default(),
        past: Arc::new(Past::new(&store, follower)),
        store,
        rates: Arc::default(),
        authority: Arc::new(Authority::load_or_create(home.path()).expect("an authority")),
        shutdown: watch::Sender::new(false),
        home: home.path().to_owned(),
        started_ms: 0,
        doors: Doors::default(),
    });
    let (near, far) = tokio::io::duplex(1 << 20);
    let who = Who { key: "me".parse().expect("a name"), role: essaim_proto::hello::Role::Admin };
    let session = ClientSession::new(&shared, SessionId(1), who, Connection::over(near).sender);
    Scene { session, queues, peer: Connection::over(far), _home: home }
}

fn list(id: u64) -> Frame {
    Frame::of(Function::JOB_LIST, id, &JobList::default())
}

// Is the request beyond the limit refused, and does it not disturb those that wait?
#[tokio::test]
async fn too_many_open_requests_are_refused() {
    let Scene { mut session, mut queues, .. } = scene();
    for id in 1..=PENDING_REQUESTS_MAX as u64 {
        session.request(&list(id)).await.expect("taken");
    }
    let refusal = session.request(&list(1_000)).await.expect_err("too many");
    assert_eq!((refusal.code, refusal.param("what")), (RefusalCode::TooMany, "open requests"));
    let refusal = session.request(&list(1)).await.expect_err("in use");
    assert_eq!(refusal.code, RefusalCode::BadValue);
    assert_eq!(session.pending.len(), PENDING_REQUESTS_MAX);
    let mut asked = 0;
    while queues.reads.try_recv().is_ok() {
        asked += 1;
    }
    assert_eq!(asked, PENDING_REQUESTS_MAX, "what is refused never reaches the driver");
}

// Do bytes that come before the upload is granted wait in bounded memory, and are uploads bounded?
#[tokio::test]
async fn bytes_before_the_grant_wait_within_the_window() {
    let Scene { mut session, queues: _queues, .. } = scene();
    let put = |id| Frame::of(Function::BLOB_PUT, id, &BlobPut { size_bytes: 8 << 20, ..BlobPut::default() });
    for id in 1..=TRANSFERS_MAX as u64 {
        session.request(&put(id)).await.expect("taken");
    }
    assert_eq!(session.request(&put(99)).await.expect_err("too many").param("what"), "uploads");
    let chunk = |id| Frame::bytes(Function::BLOB_BYTES, id, vec![7; 64 << 10]);
    for _ in 0..16 {
        session.request(&chunk(1)).await.expect("within the window");
    }
    assert!(session.request(&chunk(1)).await.is_err(), "nothing was credited");
    session.request(&chunk(1)).await.expect("skipped after the refusal");
    assert_eq!(session.uploads.len(), TRANSFERS_MAX - 1);
    session.request(&Frame::empty(Function::UNWATCH, 2)).await.expect("taken");
    assert_eq!(session.uploads.len(), TRANSFERS_MAX - 2, "given up");
    // The grant of what is over comes late and does no harm.
    session.mail(Mail::Answer { request: 1, answer: essaim_core::hub::Answer::Done, feed: None }).await;
    session.mail(Mail::Answer { request: 3, answer: essaim_core::hub::Answer::Done, feed: None }).await;
    assert_eq!(session.shared.store.blobs.used_bytes(), 8 << 20);
    drop(session.uploads);
    assert_eq!(session.shared.store.blobs.used_bytes(), 0, "the promise ends with its session");
}

// Is an event flood to a client that does not read bounded by its connection alone?
#[tokio::test]
async fn answers_to_a_client_that_does_not_read_close_its_connection() {
    let Scene { session, peer, .. } = scene();
    for id in 0..100_000 {
        session.send(list(id));
    }
    assert!(session.sender.is_closed());
    drop(peer);
}

// Is a peer left that lets us send nothing any more and goes on sending itself? Its last words are heard before.
#[tokio::test(start_paused = true)]
async fn a_peer_that_only_sends_is_left() {
    let Scene { session, .. } = scene();
    let mut last_words = LastWords::default();
    assert!(!last_words.are_over(&session.sender), "open");
    session.sender.close("done");
    assert!(!last_words.are_over(&session.sender), "its last words may be on their way");
    tokio::time::advance(essaim_net::limits::CLOSE_TIME).await;
    assert!(last_words.are_over(&session.sender));
}
