//! Rude peers at both doors of a real `essaim up`: garbage, half-open connections, wrong keys, lengths of 4 GB, readers that
//! do not read, thousands of connects. We look whether `essaim run` works all the time, and what remains in the hub's
//! process: memory and descriptors.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod processes;
mod swarm;

use essaim_net::hello::{greet, ours};
use essaim_net::limits::DIAL_TIME;
use essaim_net::tls::{SERVER_NAME, client_config};
use essaim_net::{Client, ConnectError, ConnectOptions, Connection, DialTarget, HelloError, Ticket, dial, tcp};
use essaim_proto::api::{JobList, Submit};
use essaim_proto::hello::{PeerKind, Secret};
use essaim_proto::job::{JobKind, JobSpec, JobState, Limits};
use essaim_proto::{Frame, Function, RefusalCode, SubmitKey};
use processes::{descriptor_list, descriptors, resident_bytes};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use swarm::{ESSAIM, PATIENCE, Swarm, Words};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// What all rudeness together may cost, in bytes.
const GROWTH_MAX: u64 = 32 << 20;

/// Output of the job whose client does not read.
const FLOOD_BYTES: usize = 50_000_000;

/// The future's value, in time.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it takes too long")
}

/// The two doors, and the admin's key.
struct Doors {
    clients: DialTarget,
    workers: DialTarget,
    key: Secret,
}

impl Doors {
    fn of(swarm: &Swarm) -> Doors {
        let line = std::fs::read_to_string(swarm.home.path().join("admin.key")).unwrap();
        let key: Ticket = line.trim().parse().unwrap();
        let target =
            |address| DialTarget { addresses: vec![address], authority: key.authority, identity: None, bind: None };
        let (clients, workers) = (target(swarm.client_address()), target(swarm.worker_address()));
        Doors { clients, workers, key: key.to_line() }
    }

    fn both(&self) -> [&DialTarget; 2] {
        [&self.clients, &self.workers]
    }

    async fn client(&self, key: Secret) -> Result<Client, ConnectError> {
        let options = ConnectOptions { key: Some(key), tries: 1, ..ConnectOptions::default() };
        soon(Client::connect(|| self.clients.clone(), options, |_| ())).await
    }

    /// A connection that has said its hello and reads nothing from now on.
    async fn mute(&self) -> Connection {
        let mut connection = soon(dial(&self.clients, DIAL_TIME)).await.unwrap();
        soon(greet(&mut connection, ours(PeerKind::Client, Some(self.key.clone())))).await.unwrap();
        connection
    }
}

/// `bytes` bytes that mean nothing, others for each seed.
fn noise(bytes: usize, seed: u32) -> Vec<u8> {
    let mut state = u64::from(seed) << 32 | 0x9e37_79b9;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

async fn raw(door: &DialTarget) -> tcp::Stream {
    let address = door.addresses[0].parse().unwrap();
    soon(tcp::connect(address, None, DIAL_TIME)).await.unwrap()
}

async fn tls(door: &DialTarget) -> TlsStream<tcp::Stream> {
    let config = client_config(door.authority, None).unwrap();
    let stream = raw(door).await;
    soon(TlsConnector::from(Arc::new(config)).connect(SERVER_NAME.try_into().unwrap(), stream)).await.unwrap()
}

/// Says it, and waits until the hub has closed.
async fn say_and_be_thrown_out(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin), bytes: &[u8]) {
    // The hub may close in the middle.
    let _ = soon(stream.write_all(bytes)).await;
    let _ = soon(stream.flush()).await;
    let mut rest = Vec::new();
    let _ = soon(stream.read_to_end(&mut rest)).await;
    assert!(rest.len() < 10_000, "the hub answers nonsense with {} bytes", rest.len());
}

/// Garbage instead of TLS, garbage after the first words of TLS, and garbage inside TLS.
async fn garbage(door: &DialTarget, times: u32) {
    for n in 0..times {
        say_and_be_thrown_out(&mut raw(door).await, &noise(20_000, 3 * n)).await;
        // A handshake record whose client hello is none; then one that promises more than comes.
        let hello = [&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3][..], &noise(5_000, 3 * n + 1)].concat();
        say_and_be_thrown_out(&mut raw(door).await, &hello).await;
        say_and_be_thrown_out(&mut tls(door).await, &noise(20_000, 3 * n + 2)).await;
    }
}

/// A length of 4 GB: as the first frame, and after a good hello.
async fn lies(door: &DialTarget, key: &Secret, times: u32) {
    let header = [&[0xff; 4][..], &16_u16.to_le_bytes(), &[1, 0], &1_u64.to_le_bytes()].concat();
    let mut hello = Vec::new();
    Frame::of(Function::HELLO, 0, &ours(PeerKind::Client, Some(key.clone()))).write_to(&mut hello);
    for _ in 0..times {
        for begin in [&[][..], &hello] {
            let bytes = [begin, &header, &noise(100_000, 7)].concat();
            say_and_be_thrown_out(&mut tls(door).await, &bytes).await;
        }
    }
}

async fn wrong_keys(doors: &Doors, times: u32) {
    for _ in 0..times {
        let secret = essaim_net::ticket::new_secret().0;
        let key = Secret(format!("essaim-key.{}.{secret}", doors.clients.authority));
        match doors.client(key).await {
            Err(ConnectError::Hello(HelloError::Refused(refusal))) => assert_eq!(refusal.code, RefusalCode::WrongKey),
            other => panic!("{:?}", other.map(|_| "it was let in")),
        }
    }
}

/// Submits a job with much output, watches it, and never reads. The job must end all the same.
async fn slow_reader(doors: &Doors, honest: &Client, name: &str) -> Connection {
    let connection = doors.mute().await;
    let spec = JobSpec {
        kind: JobKind::Command,
        args: ["sh", "-c", &format!("head -c {FLOOD_BYTES} /dev/zero")].map(String::from).to_vec(),
        limits: Limits { wall_ms: Some(60_000), ..Limits::default() },
        name: name.into(),
        ..JobSpec::default()
    };
    let submit = Submit { key: SubmitKey(essaim_net::ticket::random()), spec, watch: true, in_order: false };
    connection.sender.control(Frame::of(Function::SUBMIT, 1, &submit)).unwrap();
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < PATIENCE, "the job does not end while nobody reads");
        tokio::time::sleep(Duration::from_millis(20)).await; // poll: until the job is over
        let page = soon(honest.request(&JobList { limit: 200, ..JobList::default() })).await.unwrap();
        if let Some(job) = page.jobs.iter().find(|job| job.name == name && job.state == JobState::Done) {
            assert_eq!(job.tasks[0].result.as_ref().unwrap().stdout_bytes, FLOOD_BYTES as u64);
            return connection;
        }
    }
}

/// Somebody who behaves, all the time; gives how often.
fn honest(swarm: &Swarm, ends: &Arc<AtomicBool>) -> std::thread::JoinHandle<u32> {
    let (home, ends) = (swarm.home.path().display().to_string(), Arc::clone(ends));
    std::thread::spawn(move || {
        let mut runs = 0;
        while !ends.load(Ordering::Relaxed) {
            let number = runs.to_string();
            let words = Words::new(ESSAIM, &["run", "--command", "--", "echo", &number]);
            let ran = words.env("ESSAIM_HOME", &home).run().good();
            assert_eq!(ran.text().trim_end(), number);
            runs += 1;
        }
        runs
    })
}

// Whatever strangers and friends do wrong at the doors: is everybody else served all the time, and does nothing remain?
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rude_peers_harm_nobody() {
    let swarm = Swarm::start();
    let hub = swarm.up.pid();
    let doors = Doors::of(&swarm);
    // What the first of each kind takes stays: buffers, threads' caches.
    for door in doors.both() {
        garbage(door, 5).await;
    }
    for _ in 0..20 {
        swarm.run(&["--command", "--", "true"]).run().good();
    }
    let (memory_before, descriptors_before) = (resident_bytes(hub), descriptors(hub));
    let grown = |after: &str| {
        let grown = resident_bytes(hub).saturating_sub(memory_before);
        println!("{after}: RSS {} KiB, grown by {} KiB", resident_bytes(hub) >> 10, grown >> 10);
        assert!(grown <= GROWTH_MAX, "after {after} the hub has grown by {grown} bytes");
    };
    let ends = Arc::new(AtomicBool::new(false));
    let served = honest(&swarm, &ends);

    let mut half_open = Vec::new();
    let mut half_said = Vec::new();
    for door in doors.both() {
        garbage(door, 50).await;
        lies(door, &doors.key, 20).await;
        for _ in 0..200 {
            half_open.push(raw(door).await);
        }
        for _ in 0..50 {
            half_said.push(tls(door).await);
        }
        grown("garbage, lies, half-open connections");
    }
    wrong_keys(&doors, 200).await;
    grown("wrong keys");
    let admin = doors.client(doors.key.clone()).await.unwrap();
    let mut mutes = Vec::new();
    for name in ["flood", "second flood"] {
        mutes.push(slow_reader(&doors, &admin, name).await);
        grown("a reader that does not read");
    }
    for door in doors.both() {
        for _ in 0..10_000 {
            drop(raw(door).await);
        }
        grown("10,000 connects");
    }

    ends.store(true, Ordering::Relaxed);
    let runs = served.join().unwrap();
    println!("{runs} honest runs meanwhile");
    assert!(runs > 10);
    drop((half_open, half_said, mutes, admin));
    let begun = Instant::now();
    while descriptors(hub) > descriptors_before + 4 {
        assert!(begun.elapsed() < PATIENCE, "{descriptors_before} before, now {:?}", descriptor_list(hub));
        tokio::time::sleep(Duration::from_millis(20)).await; // poll: until the hub has noticed who left
    }
    grown("the end");
    println!("descriptors: {descriptors_before} before, {} after", descriptors(hub));
    // Both doors do their work: a program, and a worker that comes anew.
    swarm.run(&["--command", "--", "true"]).run().good();
    swarm::signal(processes::worker_of(hub), rustix::process::Signal::KILL);
    swarm.run(&["--command", "--", "true"]).run().good();
    swarm.stop();
}
