//! Connections must not leak: alone in its process, since it counts the process's file descriptors.

#![allow(clippy::unwrap_used, reason = "clippy takes only functions marked as tests for tests")]

#[path = "it/scene.rs"]
#[allow(dead_code)]
mod scene;

use essaim_net::hello::{greet, ours};
use essaim_net::limits::DIAL_TIME;
use essaim_net::{DoorKind, tcp};
use essaim_proto::hello::PeerKind;
use scene::{Scene, echo};
use std::time::Duration;

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

// After thousands of connections of every kind the hub must serve as before and hold not one descriptor more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg(target_os = "linux")]
async fn thousands_of_connections_leave_nothing_behind() {
    let scene = Scene::open(DoorKind::Client, echo).await;
    let mut before = 0;
    for round in 0..2_100 {
        if round == 100 {
            before = settled(usize::MAX).await;
        }
        let raw = tcp::connect(scene.address, None, DIAL_TIME).await.unwrap();
        drop(raw);
        if round % 10 == 0 {
            let mut connection = scene.dial().await;
            greet(&mut connection, ours(PeerKind::Client, None)).await.unwrap();
        }
        if round % 10 == 5 {
            // Dropped before its hello.
            scene.dial().await;
        }
    }
    let after = settled(before).await;
    assert!(after <= before, "{before} descriptors before, {after} after");
    let mut connection = scene.dial().await;
    greet(&mut connection, ours(PeerKind::Client, None)).await.unwrap();
}

/// The number of descriptors once it is at most `wanted`, or does not sink any more.
async fn settled(wanted: usize) -> usize {
    let mut last = descriptors();
    let mut unchanged = 0;
    while last > wanted || unchanged < 3 {
        tokio::time::sleep(Duration::from_millis(50)).await; // poll: `unchanged` ends it
        let now = descriptors();
        unchanged = if now < last { 0 } else { unchanged + 1 };
        last = now;
        if unchanged > 200 {
            break;
        }
    }
    last
}
