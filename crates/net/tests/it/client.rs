//! The typed client against a toy hub.

use crate::scene::{Scene, ToyHub, target};
use essaim_net::client::Lost;
use essaim_net::{
    Client, ClientError, ConnectError, ConnectOptions, DialError, DialTarget, DoorKind, HelloError, State,
};
use essaim_proto::api::{BlobGet, JobEvent, JobList, KeyList, NodeList, Submit};
use essaim_proto::id::AuthorityHash;
use essaim_proto::{BlobHash, Frame, Function, RefusalCode};
use std::sync::{Arc, Mutex};

async fn toy() -> (Scene, ToyHub) {
    let hub = ToyHub::default();
    let serving = hub.clone();
    (Scene::open(DoorKind::Client, move |accepted| serving.clone().serve(accepted)).await, hub)
}

fn options() -> ConnectOptions {
    ConnectOptions { key: Some(essaim_net::ticket::new_secret()), ..ConnectOptions::default() }
}

async fn connect(scene: &Scene) -> Client {
    Client::connect(|| scene.target(), options(), |_| ()).await.unwrap()
}

fn some_bytes(count: usize) -> Vec<u8> {
    let seed = essaim_net::ticket::random::<251>();
    seed.iter().copied().cycle().take(count).collect()
}

// Many requests at once must each get their own answer; refusals and unread answers must not disturb the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_answered_each_by_its_own() {
    let (scene, _hub) = toy().await;
    let client = connect(&scene).await;
    assert_eq!(client.welcome().hub, "test");
    assert_eq!(client.peer_addr(), Some(scene.address));
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let client = client.clone();
        asking.spawn(async move { client.request(&Submit::default()).await.unwrap().job });
    }
    let mut jobs: Vec<u64> = asking.join_all().await.into_iter().map(|job| job.0).collect();
    jobs.sort_unstable();
    assert_eq!(jobs, (1..=200).collect::<Vec<u64>>());
    match client.request(&JobList::default()).await {
        Err(ClientError::Refused(no)) => assert_eq!(no.code, RefusalCode::UnknownFunction),
        other => panic!("{other:?}"),
    }
    client.close("done").await;
    assert!(matches!(client.request(&Submit::default()).await, Err(ClientError::Lost(_))));
}

// Events must come to the subscription in order, also when two run beside each other; a dropped one harms nobody.
#[tokio::test]
async fn subscriptions_get_what_follows_the_answer() {
    let (scene, _hub) = toy().await;
    let client = connect(&scene).await;
    let watched = Submit { watch: true, ..Submit::default() };
    drop(client.open(&watched).await.unwrap());
    let (first, mut one) = client.open(&watched).await.unwrap();
    let (second, mut two) = client.open(&watched).await.unwrap();
    for (job, subscription) in [(second.job, &mut two), (first.job, &mut one)] {
        for last in [false, false, true] {
            let event: JobEvent = subscription.next().await.unwrap().message().unwrap();
            assert_eq!((event.job, event.last), (job, last));
        }
    }
    client.close("done").await;
    assert!(one.next().await.is_none() && !one.is_overrun());
}

// A lost connection must end everybody who waits, with the reason.
#[tokio::test]
async fn a_lost_connection_ends_all_waiting() {
    let (scene, _hub) = toy().await;
    let states = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&states);
    let note = move |state| seen.lock().unwrap().push(state);
    let client = Client::connect(|| scene.target(), options(), note).await.unwrap();
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.request(&NodeList::default()).await }
    });
    let error = client.request(&KeyList::default()).await.unwrap_err();
    let ClientError::Lost(lost) = error else { panic!("{error:?}") };
    assert!(matches!(&*lost, Lost::Closed { reason } if reason == "shutdown"), "{lost:?}");
    assert!(matches!(waiting.await.unwrap(), Err(ClientError::Lost(_))));
    assert!(matches!(client.send_bulk(Frame::empty(Function::UNWATCH, 1)).await, Err(ClientError::Lost(_))));
    // The state follows the reason; wait for it by giving way.
    while states.lock().unwrap().last() != Some(&State::Shutdown) {
        tokio::task::yield_now().await;
    }
    assert_eq!(*states.lock().unwrap(), [State::InProgress, State::Running, State::Shutdown]);
}

// A hub that is not there yet must be tried again, with its address asked anew; one that refuses must not.
#[tokio::test]
async fn only_what_may_pass_is_tried_again() {
    let (scene, _hub) = toy().await;
    let gone = essaim_net::tcp::listen("127.0.0.1:0").await.unwrap().local_addr().to_string();
    let mut asked = 0;
    let find = || {
        asked += 1;
        if asked < 3 { target(scene.authority.hash(), std::slice::from_ref(&gone)) } else { scene.target() }
    };
    Client::connect(find, options(), |_| ()).await.unwrap();
    assert_eq!(asked, 3);

    let mut asked = 0;
    let find = || {
        asked += 1;
        target(scene.authority.hash(), std::slice::from_ref(&gone))
    };
    let error = Client::connect(find, ConnectOptions { tries: 2, ..options() }, |_| ()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Dial(DialError::Refused { .. })), "{error:?}");
    assert_eq!(asked, 2);

    // A stranger at the address of a hub that we have known is there for the moment only.
    let mut asked = 0;
    let find = || {
        asked += 1;
        let authority = if asked < 2 { AuthorityHash([7; 32]) } else { scene.authority.hash() };
        DialTarget { authority, ..scene.target() }
    };
    Client::connect(find, ConnectOptions { was_open: true, ..options() }, |_| ()).await.unwrap();
    assert_eq!(asked, 2);

    let mut asked = 0;
    let find = || {
        asked += 1;
        scene.target()
    };
    let states = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&states);
    let note = move |state| seen.lock().unwrap().push(state);
    match Client::connect(find, ConnectOptions { key: None, ..options() }, note).await {
        Err(ConnectError::Hello(HelloError::Refused(no))) => assert_eq!(no.code, RefusalCode::WrongKey),
        other => panic!("{other:?}"),
    }
    assert_eq!(asked, 1);
    assert_eq!(*states.lock().unwrap(), [State::InProgress, State::Shutdown]);
}

// 5 MB both ways, more than any window or queue: the bytes must be the same, the hash checked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blobs_pass_both_ways() {
    let (scene, hub) = toy().await;
    let client = connect(&scene).await;
    for count in [0, 1, 65_536, 5_000_000] {
        let bytes = some_bytes(count);
        let hash = BlobHash::of(&bytes);
        client.put_blob(hash, count as u64, &bytes[..]).await.unwrap();
        assert_eq!(hub.blobs.lock().unwrap()[&hash], bytes);
        let mut back = Vec::new();
        let got = client.get_blob(&BlobGet { hash, offset: 0 }, &mut back).await.unwrap();
        assert_eq!((got, &back), (count as u64, &bytes));
    }
    let bytes = some_bytes(3_000_000);
    let hash = BlobHash::of(&bytes);
    client.put_blob(hash, bytes.len() as u64, &bytes[..]).await.unwrap();
    let mut tail = Vec::new();
    client.get_blob(&BlobGet { hash, offset: 1_000_000 }, &mut tail).await.unwrap();
    assert_eq!(tail, bytes[1_000_000..]);
}

// Wrong bytes must be refused on both sides, a short file told, and the connection live on.
#[tokio::test]
async fn wrong_blobs_are_refused() {
    let (scene, hub) = toy().await;
    let client = connect(&scene).await;
    let bytes = some_bytes(200_000);
    let (right, wrong) = (BlobHash::of(&bytes), BlobHash::of(b"other"));
    match client.put_blob(wrong, bytes.len() as u64, &bytes[..]).await {
        Err(ClientError::Refused(no)) => assert_eq!(no.code, RefusalCode::BlobMismatch),
        other => panic!("{other:?}"),
    }
    let short = client.put_blob(right, bytes.len() as u64 + 1, &bytes[..]).await;
    assert!(matches!(short, Err(ClientError::Transfer(_) | ClientError::Refused(_))), "{short:?}");
    match client.get_blob(&BlobGet { hash: right, offset: 0 }, Vec::new()).await {
        Err(ClientError::Refused(no)) => assert_eq!(no.code, RefusalCode::BlobMissing),
        other => panic!("{other:?}"),
    }
    hub.blobs.lock().unwrap().insert(wrong, bytes.clone());
    let forged = client.get_blob(&BlobGet { hash: wrong, offset: 0 }, Vec::new()).await;
    assert!(matches!(forged, Err(ClientError::Transfer(_))), "{forged:?}");
    client.put_blob(right, bytes.len() as u64, &bytes[..]).await.unwrap();
}
