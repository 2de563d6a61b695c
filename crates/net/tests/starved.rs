//! A door without file descriptors: alone in its process, since it takes them all.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "clippy takes only functions marked as tests for tests")]

#[path = "it/scene.rs"]
#[allow(dead_code)]
mod scene;

use essaim_net::hello::{greet, ours};
use essaim_net::limits::{ACCEPT_PAUSE, DIAL_TIME};
use essaim_net::{DialError, DoorKind, dial, tcp};
use essaim_proto::hello::PeerKind;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use scene::{Scene, echo};
use tokio::io::AsyncReadExt;

// When the process has no descriptor left the door must wait, not end: those who come later are served.
#[tokio::test]
async fn a_starved_door_recovers() {
    let scene = Scene::open(DoorKind::Client, echo).await;
    let used = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    let limit = Rlimit { current: Some(used + 20), ..getrlimit(Resource::Nofile) };
    setrlimit(Resource::Nofile, limit).unwrap();
    let mut taken = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        taken.push(file);
    }
    // One descriptor is free, and our end takes it: the door's end has none.
    taken.pop();
    let mut waiting = tcp::connect(scene.address, None, DIAL_TIME).await.unwrap();
    let nothing = tokio::time::timeout(3 * ACCEPT_PAUSE, waiting.read(&mut [0; 1])).await;
    assert!(nothing.is_err(), "{nothing:?}");
    assert!(matches!(dial(&scene.target(), DIAL_TIME).await, Err(DialError::Io { .. })));
    drop(taken);
    let mut connection = dial(&scene.target(), DIAL_TIME).await.unwrap();
    greet(&mut connection, ours(PeerKind::Client, None)).await.unwrap();
}
