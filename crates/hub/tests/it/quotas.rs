//! How much and how often a key may: what its sessions hear, over all its connections.

use crate::scene::{PATIENCE, Scene, command, config, connect, refused, soon, submit_and_watch, submit_of};
use essaim_core::hub::{KeyLimits, Rules};
use essaim_core::limits::BURST_MIN;
use essaim_hub::{HubConfig, RunningHub};
use essaim_net::{Client, ConnectOptions};
use essaim_proto::api::{JobCancel, JobList, KeyCreate, KeyList, KeySet, NodeList};
use essaim_proto::hello::{Role, Secret};
use essaim_proto::job::{FileSpec, JobSpec, JobState};
use essaim_proto::quota::Quota;
use essaim_proto::{BlobHash, RefusalCode};
use std::time::Instant;

/// A hub with rules for keys that are no admin's, and such a key.
async fn scene(keys: KeyLimits) -> (Scene, Secret) {
    let home = tempfile::tempdir().unwrap();
    let config = HubConfig { rules: Rules { keys, ..Rules::default() }, ..config(home.path()) };
    let scene = Scene { hub: RunningHub::start(config).await.unwrap(), home };
    let create = KeyCreate { name: "ann".into(), role: Role::Operator, ..KeyCreate::default() };
    let key = soon(scene.admin().await.request(&create)).await.unwrap().key;
    (scene, key)
}

// Do all connections of a key share its rate, and is what must not wait let through? The admin asks as he likes, and lifts it
// at once; a client with patience gets through by itself.
#[tokio::test]
async fn a_rate_is_of_a_key_and_not_of_a_connection() {
    let limits = KeyLimits { requests_per_second: Some(1), ..KeyLimits::default() };
    let (scene, key) = scene(limits).await;
    let admin = scene.admin().await;
    let [one, two] =
        [connect(scene.clients(), key.clone()).await.unwrap(), connect(scene.clients(), key.clone()).await.unwrap()];
    let begun = Instant::now();
    let (job, mut watcher) = submit_and_watch(&one, command()).await;
    let mut asked = 1;
    let refusal = loop {
        let client = if asked % 2 == 0 { &one } else { &two };
        match soon(client.request(&JobList::default())).await {
            Ok(_) => asked += 1,
            refused_ => break refused(refused_),
        }
        assert!(begun.elapsed() < PATIENCE);
    };
    assert!(asked >= BURST_MIN && asked <= BURST_MIN + begun.elapsed().as_secs() + 1, "{asked} passed");
    assert_eq!((refusal.code, refusal.param("limit")), (RefusalCode::RateLimited, "1"));
    let retry_ms: u64 = refusal.param("retry_after_ms").parse().unwrap();
    assert!((1..=1_000).contains(&retry_ms), "{retry_ms}");
    // The watch goes on, and the end of it is not held up.
    soon(two.request(&JobCancel { job, ..JobCancel::default() })).await.unwrap();
    assert_eq!(watcher.finish().await.state, JobState::Cancelled);
    for _ in 0..2 * BURST_MIN {
        soon(admin.request(&NodeList::default())).await.unwrap();
    }
    let target = scene.clients();
    let options = ConnectOptions { key: Some(key), tries: 9, ..ConnectOptions::default() };
    let patient = soon(Client::connect(move || target.clone(), options, |_| ())).await.unwrap();
    while soon(one.request(&NodeList::default())).await.is_ok() {}
    soon(patient.request(&NodeList::default())).await.unwrap();
    let lift = KeySet { name: "ann".into(), requests_per_second: Some(Quota::Unlimited), ..KeySet::default() };
    soon(admin.request(&lift)).await.unwrap();
    for _ in 0..2 * BURST_MIN {
        soon(one.request(&NodeList::default())).await.unwrap();
    }
}

// Is an upload that would be too much refused before its bytes are taken, and a job that refers to it? A restart of the hub
// forgets no quota.
#[tokio::test]
async fn files_are_bounded_before_they_come() {
    let (scene, key) = scene(KeyLimits::default()).await;
    let admin = scene.admin().await;
    let set = KeySet { name: "ann".into(), stored_bytes: Some(Quota::At(150_000)), ..KeySet::default() };
    soon(admin.request(&set)).await.unwrap();
    let scene = scene.restart().await;
    let (admin, ann) = (scene.admin().await, connect(scene.clients(), key).await.unwrap());
    let (first, second) = (vec![1; 100_000], vec![2; 100_000]);
    soon(ann.put_blob(BlobHash::of(&first), 100_000, first.as_slice())).await.unwrap();
    let refusal = refused(soon(ann.put_blob(BlobHash::of(&second), 100_000, second.as_slice())).await);
    let params = ["key", "bytes", "used", "limit"].map(|name| refusal.param(name).to_owned());
    assert_eq!(
        (refusal.code, params),
        (RefusalCode::ByteQuota, ["ann", "100000", "100000", "150000"].map(str::to_owned))
    );
    // Somebody else's upload is no way around it.
    soon(admin.put_blob(BlobHash::of(&second), 100_000, second.as_slice())).await.unwrap();
    let spec = |bytes: &[u8]| {
        let file =
            FileSpec { path: "data".into(), hash: BlobHash::of(bytes), size_bytes: 100_000, ..FileSpec::default() };
        JobSpec { files: vec![file], ..command() }
    };
    assert_eq!(refused(soon(ann.request(&submit_of(spec(&second)))).await).code, RefusalCode::ByteQuota);
    let job = soon(ann.request(&submit_of(spec(&first)))).await.unwrap().job;
    let used = async || {
        let keys = soon(admin.request(&KeyList {})).await.unwrap().keys;
        let ann = keys.into_iter().find(|key| key.name == "ann").unwrap();
        (ann.queued_tasks.used, ann.stored_bytes.used, ann.stored_bytes.limit, ann.stored_bytes.own)
    };
    assert_eq!(used().await, (Some(1), Some(100_000), Some(150_000), true));
    soon(ann.request(&JobCancel { job, ..JobCancel::default() })).await.unwrap();
    assert_eq!(used().await, (Some(0), Some(0), Some(150_000), true));
    soon(ann.request(&submit_of(spec(&second)))).await.unwrap();
}
