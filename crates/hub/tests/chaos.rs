//! Rude peers at both doors: alone in its process, since it counts the process's memory and descriptors.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "clippy takes only functions marked as tests for tests")]

#[path = "it/scene.rs"]
#[allow(dead_code)]
mod scene;

use essaim_net::hello::ours;
use essaim_net::limits::DIAL_TIME;
use essaim_net::tls::{SERVER_NAME, client_config};
use essaim_net::{Client, DialTarget, tcp};
use essaim_proto::api::JobList;
use essaim_proto::hello::{PeerKind, Secret};
use essaim_proto::{Frame, Function};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use scene::{Scene, command, connect, noise, refused_hello, soon, submit};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Connections to the catalog that stay open for the next reader: eight, with three files each.
const READERS_FILES: usize = 24;

/// What all rudeness together may cost, in bytes.
const GROWTH_MAX: u64 = 32 << 20;

fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

async fn raw(target: &DialTarget) -> tcp::Stream {
    let address = target.addresses[0].parse().unwrap();
    soon(tcp::connect(address, None, DIAL_TIME)).await.unwrap()
}

async fn tls(target: &DialTarget) -> TlsStream<tcp::Stream> {
    let config = client_config(target.authority, None).unwrap();
    let stream = raw(target).await;
    soon(TlsConnector::from(Arc::new(config)).connect(SERVER_NAME.try_into().unwrap(), stream)).await.unwrap()
}

fn bytes_of(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frames.iter().for_each(|frame| frame.write_to(&mut bytes));
    bytes
}

/// Somebody who behaves, all the time: how long he had to wait at most.
async fn honest(client: Client, ends: Arc<AtomicBool>) -> (Duration, usize) {
    let (mut longest, mut asked) = (Duration::ZERO, 0);
    while !ends.load(Ordering::Relaxed) {
        let begun = Instant::now();
        soon(client.request(&JobList { limit: 1, ..JobList::default() })).await.unwrap();
        longest = longest.max(begun.elapsed());
        asked += 1;
        tokio::time::sleep(Duration::from_millis(2)).await; // poll: his pace; nobody waits for it
    }
    (longest, asked)
}

/// Waits for `is_so`, in bounded time.
async fn settled(is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() && begun.elapsed() < Duration::from_secs(15) {
        tokio::time::sleep(Duration::from_millis(20)).await; // poll: 15 s at most
    }
}

async fn garbage(target: &DialTarget) {
    for n in 0..100 {
        let mut stream = raw(target).await;
        // The door may close in the middle.
        let _ = stream.write_all(&noise(20_000, n + 1)).await;
    }
    for n in 0..50 {
        let mut stream = tls(target).await;
        let _ = stream.write_all(&noise(20_000, n + 1)).await;
        let _ = stream.flush().await;
        let mut rest = Vec::new();
        let _ = soon(stream.read_to_end(&mut rest)).await;
    }
}

/// A length of 4 GB: as the first frame, and from one who was let in.
async fn lies(target: &DialTarget, key: Option<Secret>) {
    let header = [&[0xff; 4][..], &16_u16.to_le_bytes(), &[1, 0], &1_u64.to_le_bytes()].concat();
    let hello = bytes_of(&[Frame::of(Function::HELLO, 0, &ours(PeerKind::Client, key))]);
    for bytes in [header.clone(), [hello, header].concat()] {
        for _ in 0..20 {
            let mut stream = tls(target).await;
            stream.write_all(&bytes).await.unwrap();
            let _ = stream.write_all(&vec![7; 100_000]).await;
            let _ = stream.flush().await;
            let mut rest = Vec::new();
            // Closed, with or without a word.
            let _ = soon(stream.read_to_end(&mut rest)).await;
            assert!(rest.len() < 10_000);
        }
    }
}

/// Asks and asks and never reads.
async fn slow_reader(target: &DialTarget, key: Secret) {
    let hello = Frame::of(Function::HELLO, 0, &ours(PeerKind::Client, Some(key)));
    let mut stream = tls(target).await;
    stream.write_all(&bytes_of(&[hello])).await.unwrap();
    for n in 0..50_000 {
        let some: Vec<Frame> =
            (1..=100).map(|id| Frame::of(Function::JOB_LIST, n * 100 + id, &JobList::default())).collect();
        let written = tokio::time::timeout(Duration::from_secs(1), stream.write_all(&bytes_of(&some))).await;
        if !matches!(written, Ok(Ok(()))) {
            return;
        }
    }
    panic!("5,000,000 answers went nowhere and nobody minded");
}

// Whatever strangers and friends do wrong at the doors: is everybody else served all the time, and does nothing remain?
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rude_peers_harm_nobody() {
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most.map(|most| most.min(65_536)), maximum: most }).unwrap();
    let scene = Scene::open().await;
    let admin = scene.admin().await;
    for _ in 0..200 {
        submit(&admin, command()).await;
    }
    let doors = [scene.clients(), scene.workers()];
    for door in &doors {
        // What the first of each kind takes stays: buffers, threads' caches.
        garbage(door).await;
    }
    let ends = Arc::new(AtomicBool::new(false));
    let well = tokio::spawn(honest(admin.clone(), ends.clone()));
    for _ in 0..50 {
        // What the first questions take stays as well.
        soon(admin.request(&JobList { limit: 1, ..JobList::default() })).await.unwrap();
    }
    let (memory_before, descriptors_before) = (memory(), descriptors() + READERS_FILES);
    let most_grown = AtomicU64::new(0);
    let grown = || memory().saturating_sub(memory_before);

    for (door, key) in doors.iter().zip([Some(scene.hub.admin_key()), None]) {
        garbage(door).await;
        lies(door, key).await;
        println!("garbage and lies: RSS grew by {} KiB", grown() >> 10);
        let mut silent = Vec::new();
        for _ in 0..300 {
            silent.push(raw(door).await);
        }
        let mut silent_after_tls = Vec::new();
        for _ in 0..100 {
            silent_after_tls.push(tls(door).await);
        }
        println!("400 half-open (both ends are here): RSS grew by {} KiB", grown() >> 10);
        assert!(grown() <= GROWTH_MAX + (16 << 20), "their own ends count too: {}", grown());
        connect(scene.clients(), scene.hub.admin_key()).await.unwrap();
    }
    for _ in 0..200 {
        let wrong = Secret(format!("essaim-key.{}.{}", scene.hub.authority(), essaim_net::ticket::new_secret().0));
        let refusal = refused_hello(connect(scene.clients(), wrong).await);
        assert_eq!(refusal.code, essaim_proto::RefusalCode::WrongKey);
    }
    println!("wrong keys: RSS grew by {} KiB", grown() >> 10);
    for _ in 0..3 {
        let mut reader = std::pin::pin!(slow_reader(&doors[0], scene.hub.admin_key()));
        while tokio::time::timeout(Duration::from_millis(1), &mut reader).await.is_err() {
            most_grown.fetch_max(grown(), Ordering::Relaxed);
        }
    }
    println!("slow readers: RSS grew by {} KiB at most", most_grown.load(Ordering::Relaxed) >> 10);
    assert!(most_grown.load(Ordering::Relaxed) <= GROWTH_MAX);
    let begun = Instant::now();
    for door in &doors {
        for _ in 0..10_000 {
            drop(raw(door).await);
        }
    }
    println!("2 x 10,000 connects in {:?}: RSS grew by {} KiB", begun.elapsed(), grown() >> 10);
    assert!(grown() <= GROWTH_MAX, "{}", grown());

    settled(|| descriptors() <= descriptors_before).await;
    assert!(descriptors() <= descriptors_before, "{descriptors_before} before, {} now", descriptors());
    ends.store(true, Ordering::Relaxed);
    let (longest, asked) = well.await.unwrap();
    println!("at the end: RSS grew by {} KiB; {asked} honest requests, {longest:?} at most", grown() >> 10);
    assert!(asked > 100 && longest < Duration::from_secs(2), "{asked} {longest:?}");
    scene.worker().await;
    let begun = Instant::now();
    let Scene { hub, home: _home } = scene;
    soon(hub.shutdown()).await;
    assert!(begun.elapsed() < Duration::from_secs(2));
}
