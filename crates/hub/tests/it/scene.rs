//! A running hub on loopback with what peers need to reach it, and a worker that speaks frames by hand.

use essaim_core::hub::Rules;
use essaim_core::lang::LanguageTable;
use essaim_hub::{HubConfig, Keep, Keeping, RunningHub};
use essaim_net::client::ConnectError;
use essaim_net::hello::{HelloError, greet, join, ours};
use essaim_net::limits::DIAL_TIME;
use essaim_net::{
    Client, ClientError, ConnectOptions, Connection, DialTarget, Identity, JoinError, Subscription, Ticket, dial,
};
use essaim_proto::api::{JobEvent, OutputAck, OutputChunk, Stream, Submit, Submitted};
use essaim_proto::hello::{PeerKind, Secret};
use essaim_proto::job::{JobKind, JobSpec, Phase, StdinSpec, TaskResult, Verdict};
use essaim_proto::limits::{CHUNK_BYTES, OUTPUT_WINDOW_BYTES};
use essaim_proto::link::{AttemptOutput, AttemptOutputAck, EndAck, Ended, Progress, Register, Registered, Start};
use essaim_proto::{AttemptId, Frame, Function, InstanceId, JobId, Refusal, RefusalCode, SubmitKey};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// No step of a test takes longer on a slow machine; one that does is a failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The future's value, in time.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it takes too long")
}

/// A hub in a folder of its own.
pub(crate) struct Scene {
    pub(crate) hub: RunningHub,
    pub(crate) home: tempfile::TempDir,
}

pub(crate) fn config(home: &Path) -> HubConfig {
    HubConfig {
        home: home.to_owned(),
        name: "lab".into(),
        client_addr: "127.0.0.1:0".into(),
        worker_addr: "127.0.0.1:0".into(),
        table: LanguageTable::built_in(),
        keeping: Keeping::Folder,
        keep: Keep::default(),
        notify_urls: Vec::new(),
        rules: Rules::default(),
    }
}

impl Scene {
    pub(crate) async fn open() -> Scene {
        let home = tempfile::tempdir().unwrap();
        Scene { hub: RunningHub::start(config(home.path())).await.unwrap(), home }
    }

    /// Another hub on the same folder.
    pub(crate) async fn restart(self) -> Scene {
        let Scene { hub, home } = self;
        soon(hub.shutdown()).await;
        Scene { hub: soon(RunningHub::start(config(home.path()))).await.unwrap(), home }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.home.path().to_owned()
    }

    pub(crate) fn clients(&self) -> DialTarget {
        target(&self.hub, self.hub.client_addresses())
    }

    pub(crate) fn workers(&self) -> DialTarget {
        target(&self.hub, self.hub.worker_addresses())
    }

    /// A client with the admin key.
    pub(crate) async fn admin(&self) -> Client {
        connect(self.clients(), self.hub.admin_key()).await.unwrap()
    }

    /// A machine with a certificate.
    pub(crate) async fn machine(&self) -> Arc<Identity> {
        let line = self.hub.local_join_line(1).await;
        Arc::new(join_with(&line).await.unwrap())
    }

    /// A connected worker.
    pub(crate) async fn worker(&self) -> Worker {
        let identity = self.machine().await;
        Worker::connect(self.workers(), identity, InstanceId([1; 16]), Vec::new()).await
    }
}

fn target(hub: &RunningHub, addresses: Vec<String>) -> DialTarget {
    DialTarget { addresses, authority: hub.authority(), identity: None, bind: None }
}

pub(crate) async fn connect(target: DialTarget, key: Secret) -> Result<Client, ConnectError> {
    let options = ConnectOptions { key: Some(key), tries: 1, ..ConnectOptions::default() };
    soon(Client::connect(move || target.clone(), options, |_| ())).await
}

/// The refusal that a hello met.
pub(crate) fn refused_hello<T: std::fmt::Debug>(result: Result<T, ConnectError>) -> Refusal {
    match result {
        Err(ConnectError::Hello(HelloError::Refused(refusal))) => refusal,
        other => panic!("{other:?}"),
    }
}

/// The refusal that a request met.
pub(crate) fn refused<T: std::fmt::Debug>(result: Result<T, ClientError>) -> Refusal {
    match result {
        Err(ClientError::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn join_with(line: &Secret) -> Result<Identity, JoinError> {
    let ticket: Ticket = line.0.parse().unwrap();
    let target =
        DialTarget { addresses: ticket.addresses.clone(), authority: ticket.authority, identity: None, bind: None };
    let mut connection = dial(&target, DIAL_TIME).await.unwrap();
    soon(join(&mut connection, &ticket, Some("pc".parse().unwrap()))).await
}

pub(crate) fn refused_join(result: Result<Identity, JoinError>) -> RefusalCode {
    match result {
        Err(JoinError::Hello(HelloError::Refused(refusal))) => refusal.code,
        other => panic!("{other:?}"),
    }
}

/// A command, which needs no toolchain.
pub(crate) fn command() -> JobSpec {
    JobSpec { kind: JobKind::Command, args: vec!["/bin/true".into()], ..JobSpec::default() }
}

pub(crate) fn live_command() -> JobSpec {
    JobSpec { stdin: StdinSpec::Live, ..command() }
}

pub(crate) fn submit_of(spec: JobSpec) -> Submit {
    Submit { key: SubmitKey(essaim_net::ticket::random()), spec, watch: false, in_order: false }
}

pub(crate) async fn submit(client: &Client, spec: JobSpec) -> JobId {
    soon(client.request(&submit_of(spec))).await.unwrap().job
}

pub(crate) async fn submit_and_watch(client: &Client, spec: JobSpec) -> (JobId, Watcher) {
    let (Submitted { job, repeated, .. }, frames) =
        soon(client.open(&Submit { watch: true, ..submit_of(spec) })).await.unwrap();
    assert!(!repeated);
    (job, Watcher::new(client, frames))
}

/// A watch and all that it has brought.
pub(crate) struct Watcher {
    pub(crate) client: Client,
    pub(crate) frames: Subscription,
    pub(crate) events: Vec<JobEvent>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) attempt: AttemptId,
    pub(crate) stdin_acked: u64,
    received: u64,
    /// Acknowledge output?
    pub(crate) acks: bool,
}

impl Watcher {
    pub(crate) fn new(client: &Client, frames: Subscription) -> Watcher {
        Watcher {
            client: client.clone(),
            frames,
            events: Vec::new(),
            stdout: Vec::new(),
            stderr: Vec::new(),
            attempt: AttemptId::default(),
            stdin_acked: 0,
            received: 0,
            acks: true,
        }
    }

    /// Takes the next frame; `false` after the last event.
    pub(crate) async fn step(&mut self) -> bool {
        let frame = soon(self.frames.next()).await.expect("the watch goes on");
        match frame.function {
            Function::EVENT => {
                let event: JobEvent = frame.message().unwrap();
                let is_last = event.last;
                assert_eq!(frame.has(essaim_proto::frame::FLAG_LAST), is_last);
                self.events.push(event);
                return !is_last;
            }
            Function::OUTPUT => self.output(frame.message().unwrap()).await,
            Function::STDIN_ACK => {
                self.stdin_acked = frame.message::<essaim_proto::api::StdinAck>().unwrap().offset;
            }
            other => panic!("{other:?}"),
        }
        true
    }

    async fn output(&mut self, chunk: OutputChunk) {
        if chunk.attempt != self.attempt {
            self.attempt = chunk.attempt;
            self.stdout.clear();
            self.stderr.clear();
        }
        self.received += chunk.bytes.len() as u64;
        let stream = if chunk.stream == Stream::Stdout { &mut self.stdout } else { &mut self.stderr };
        assert_eq!(chunk.offset, stream.len() as u64, "chunks are consecutive");
        assert!(chunk.bytes.len() <= CHUNK_BYTES && !chunk.dropped && chunk.damaged_bytes == 0);
        stream.extend(chunk.bytes);
        if self.acks {
            let ack = OutputAck { received_bytes: self.received };
            self.client.send_control(Frame::of(Function::OUTPUT_ACK, self.frames.id(), &ack)).await.unwrap();
        }
    }

    /// Takes everything to the last event, and gives it.
    pub(crate) async fn finish(&mut self) -> JobEvent {
        while self.step().await {}
        self.events.last().unwrap().clone()
    }

    /// Takes frames until an event is as wanted.
    pub(crate) async fn event(&mut self, wanted: impl Fn(&JobEvent) -> bool) {
        while !self.events.last().is_some_and(&wanted) {
            assert!(self.step().await, "{:?}", self.events);
        }
    }
}

/// A worker by hand.
pub(crate) struct Worker {
    pub(crate) connection: Connection,
    pub(crate) registered: Registered,
    /// Bytes beyond the last acknowledgement.
    unacked: u64,
    sent: u64,
    /// How much each attempt has printed.
    printed: BTreeMap<AttemptId, [u64; 2]>,
}

impl Worker {
    pub(crate) async fn connect(
        target: DialTarget,
        identity: Arc<Identity>,
        instance: InstanceId,
        held: Vec<AttemptId>,
    ) -> Worker {
        let target = DialTarget { identity: Some(identity), ..target };
        let mut connection = dial(&target, DIAL_TIME).await.unwrap();
        soon(greet(&mut connection, ours(PeerKind::Worker, None))).await.unwrap();
        let register = Register { instance, slots: 4, held, ..Register::default() };
        connection.sender.control(Frame::of(Function::REGISTER, 1, &register)).unwrap();
        let answer = soon(connection.reader.next()).await.unwrap().unwrap();
        assert_eq!(answer.function, Function::REGISTER);
        let registered = answer.message().unwrap();
        Worker { connection, registered, unacked: 0, sent: 0, printed: BTreeMap::new() }
    }

    pub(crate) async fn next(&mut self) -> Frame {
        soon(self.connection.reader.next()).await.unwrap().expect("the connection stands")
    }

    /// The next frame of this function; acknowledgements of output are passed over.
    pub(crate) async fn expect<T: serde::de::DeserializeOwned>(&mut self, function: Function) -> T {
        loop {
            let frame = self.next().await;
            if frame.function == function {
                return frame.message().unwrap();
            }
            assert_eq!(frame.function, Function::ATTEMPT_OUTPUT_ACK, "{frame:?}");
        }
    }

    /// The next frame of this function, whatever comes before it.
    pub(crate) async fn expect_past<T: serde::de::DeserializeOwned>(&mut self, function: Function) -> T {
        loop {
            let frame = self.next().await;
            if frame.function == function {
                return frame.message().unwrap();
            }
        }
    }

    pub(crate) async fn started(&mut self) -> AttemptId {
        let start: Start = self.expect(Function::START).await;
        self.running(start.attempt, false);
        start.attempt
    }

    pub(crate) fn running(&self, attempt: AttemptId, waiting_for_input: bool) {
        let progress = Progress { attempt, phase: Phase::Run, waiting_for_input };
        self.send(Function::PROGRESS, &progress);
    }

    pub(crate) fn send(&self, function: Function, message: &impl serde::Serialize) {
        self.connection.sender.control(Frame::of(function, 0, message)).unwrap();
    }

    /// Sends output as a real worker does: through the bulk queue, within its window.
    pub(crate) async fn output(&mut self, attempt: AttemptId, stream: Stream, offset: u64, bytes: &[u8]) {
        for (n, piece) in bytes.chunks(CHUNK_BYTES).enumerate() {
            while self.unacked + piece.len() as u64 > OUTPUT_WINDOW_BYTES {
                let frame = self.next().await;
                assert_eq!(frame.function, Function::ATTEMPT_OUTPUT_ACK);
                let ack: AttemptOutputAck = frame.message().unwrap();
                self.unacked = self.sent.saturating_sub(ack.stdout + ack.stderr);
            }
            let offset = offset + (n * CHUNK_BYTES) as u64;
            self.printed.entry(attempt).or_default()[stream as usize] = offset + piece.len() as u64;
            let message = AttemptOutput { attempt, stream, offset, bytes: piece.to_vec() };
            soon(self.connection.sender.bulk(Frame::of(Function::ATTEMPT_OUTPUT, 0, &message))).await.unwrap();
            self.sent += piece.len() as u64;
            self.unacked += piece.len() as u64;
        }
    }

    /// Waits until so many bytes of standard output are acknowledged.
    pub(crate) async fn acknowledged(&mut self, stdout: u64) {
        loop {
            let ack: AttemptOutputAck = self.expect(Function::ATTEMPT_OUTPUT_ACK).await;
            if ack.stdout >= stdout {
                return;
            }
        }
    }

    /// Tells an end and waits until it is recorded.
    pub(crate) async fn end(&mut self, attempt: AttemptId, verdict: Verdict) {
        let [stdout_bytes, stderr_bytes] = self.printed.get(&attempt).copied().unwrap_or_default();
        let result = TaskResult { verdict, exit_code: Some(0), stdout_bytes, stderr_bytes, ..TaskResult::default() };
        let ended = Frame::of(Function::ENDED, 0, &Ended { attempt, result });
        self.connection.sender.bulk(ended).await.unwrap();
        let ack: EndAck = self.expect(Function::END_ACK).await;
        assert_eq!(ack.attempt, attempt);
        (self.unacked, self.sent) = (0, 0);
    }
}

/// Bytes that a cut in a wrong place would spoil.
pub(crate) fn noise(length: usize, mut seed: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&next(&mut seed).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// xorshift: the same numbers in every run.
pub(crate) fn next(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}
