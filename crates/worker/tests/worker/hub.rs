//! A hub made of one door: it signs joiners, welcomes workers, and leaves every other word to the test.

use crate::bench::within;
use essaim_net::door::{Accepted, Door};
use essaim_net::hello::{await_hello, refuse, send_welcome};
use essaim_net::transfer::{Window, send};
use essaim_net::{Authority, Connection, DoorKind, HubFile, Ticket, TicketKind};
use essaim_proto::api::{Credit, Done, Stream};
use essaim_proto::frame::FLAG_ANSWER;
use essaim_proto::hello::{Join, Joined, PeerKind, Secret, Welcome};
use essaim_proto::job::TaskResult;
use essaim_proto::link::{
    AttemptOutput, AttemptOutputAck, AttemptStdin, AttemptStdinAck, BlobWanted, EndAck, Ended, LanguageProbe, Progress,
    Register, Registered, Start, Stop,
};
use essaim_proto::{AttemptId, Frame, Function, Refusal, RefusalCode};
use serde_bytes::ByteBuf;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tempfile::TempDir;
use tokio::sync::{Mutex, mpsc, oneshot};

/// An open hub. Dropping it closes the door.
pub(crate) struct Hub {
    folder: TempDir,
    authority: Arc<Authority>,
    secret: Secret,
    /// How often the join line may still be used.
    uses: Arc<AtomicU32>,
    pub(crate) address: String,
    workers: Mutex<mpsc::Receiver<(Connection, Frame)>>,
    _open: oneshot::Sender<()>,
}

impl Hub {
    pub(crate) async fn open() -> Hub {
        Hub::open_with(tempfile::tempdir().unwrap(), 1).await
    }

    /// A hub whose join line works `uses` times, with the authority that is in `folder`, if there is one.
    async fn open_with(folder: TempDir, uses: u32) -> Hub {
        let authority = Arc::new(Authority::load_or_create(folder.path()).unwrap());
        let door = Door::bind("127.0.0.1:0", authority.server_config(DoorKind::Worker)).await.unwrap();
        let address = door.local_addr().to_string();
        let secret = essaim_net::ticket::new_secret();
        let uses = Arc::new(AtomicU32::new(uses));
        let (to_test, workers) = mpsc::channel(8);
        let (open, closed) = oneshot::channel::<()>();
        let handler = {
            let (authority, secret, uses) = (Arc::clone(&authority), secret.clone(), Arc::clone(&uses));
            move |accepted| {
                let (authority, secret, uses) = (Arc::clone(&authority), secret.clone(), Arc::clone(&uses));
                let to_test = to_test.clone();
                async move {
                    if let Some(worker) = receive(accepted, &authority, &secret, &uses).await {
                        // The test may have had enough.
                        let _ = to_test.send(worker).await;
                    }
                }
            }
        };
        tokio::spawn(door.serve(handler, async {
            let _ = closed.await;
        }));
        Hub { folder, authority, secret, uses, address, workers: Mutex::new(workers), _open: open }
    }

    /// Closes the door and opens another one elsewhere, as the same hub.
    pub(crate) async fn moved(self) -> Hub {
        Hub::open_with(self.folder, self.uses.load(Ordering::SeqCst)).await
    }

    pub(crate) fn ticket(&self) -> Ticket {
        Ticket {
            kind: TicketKind::Join,
            authority: self.authority.hash(),
            secret: self.secret.clone(),
            addresses: vec![self.address.clone()],
        }
    }

    pub(crate) fn write_file(&self, folder: &Path) {
        let worker_addresses = vec![self.address.clone()];
        HubFile { authority: self.authority.hash(), worker_addresses, ..HubFile::default() }.write(folder).unwrap();
    }

    /// The next worker that registers, not answered yet.
    pub(crate) async fn registering(&self) -> (Connection, Frame, Register) {
        let mut workers = self.workers.lock().await;
        let (connection, frame) = within("a worker registers", workers.recv()).await.unwrap();
        let register = frame.message().unwrap();
        (connection, frame, register)
    }

    /// The next worker, registered: nothing kept, nothing probed.
    pub(crate) async fn worker(&self) -> Session {
        self.worker_with(|_| Registered::default()).await.0
    }

    pub(crate) async fn worker_with(&self, answer: impl FnOnce(&Register) -> Registered) -> (Session, Register) {
        let (connection, frame, register) = self.registering().await;
        let registered = Registered { name: "n1".to_owned(), ..answer(&register) };
        let mut session = Session { connection };
        session.answer(&frame, &registered);
        (session, register)
    }
}

async fn receive(
    accepted: Accepted,
    authority: &Authority,
    secret: &Secret,
    uses: &AtomicU32,
) -> Option<(Connection, Frame)> {
    let Accepted { mut connection, node, .. } = accepted;
    let hello = await_hello(&mut connection).await.ok()?;
    let welcome = Welcome {
        proto: hello.proto_max,
        hub: "test hub".to_owned(),
        heartbeat_ms: 5_000,
        silence_ms: 30_000,
        ..Welcome::default()
    };
    if hello.kind == PeerKind::Joiner {
        let frame = connection.reader.next().await.ok()??;
        let join: Join = frame.message().unwrap();
        assert_eq!(join.secret, *secret);
        let left = uses.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if left.is_err() {
            let _ = refuse(&connection.sender, frame.id, &Refusal::new(RefusalCode::JoinUsed));
            return None;
        }
        let name = "n1".parse().unwrap();
        let chain = authority.sign_worker(&join.csr, &name).unwrap().chain;
        let chain = chain.into_iter().map(ByteBuf::from).collect();
        let joined = Joined { chain, name: name.to_string() };
        let _ = connection.sender.control(Frame::of(Function::JOIN, frame.id, &joined).with_flag(FLAG_ANSWER));
        // Until it leaves.
        let _ = connection.reader.next().await;
        return None;
    }
    assert_eq!(node.unwrap().as_str(), "n1", "a worker shows its certificate");
    send_welcome(&mut connection, &welcome).ok()?;
    let frame = connection.reader.next().await.ok()??;
    assert_eq!(frame.function, Function::REGISTER);
    Some((connection, frame))
}

/// One worker's session. Dropping it ends the connection.
pub(crate) struct Session {
    pub(crate) connection: Connection,
}

/// All output of an attempt and its end.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) result: TaskResult,
}

impl Outcome {
    pub(crate) fn stdout(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    pub(crate) fn stderr(&self) -> &str {
        std::str::from_utf8(&self.stderr).unwrap()
    }
}

impl Session {
    pub(crate) fn send(&self, frame: Frame) {
        self.connection.sender.control(frame).unwrap();
    }

    pub(crate) fn answer<T: serde::Serialize>(&mut self, request: &Frame, message: &T) {
        self.send(Frame::of(request.function, request.id, message).with_flag(FLAG_ANSWER));
    }

    pub(crate) fn start(&self, start: &Start) {
        self.send(Frame::of(Function::START, 0, start));
    }

    pub(crate) fn stop(&self, attempt: AttemptId) {
        self.send(Frame::of(Function::STOP, 0, &Stop { attempt }));
    }

    pub(crate) fn end_ack(&self, attempt: AttemptId) {
        self.send(Frame::of(Function::END_ACK, 0, &EndAck { attempt }));
    }

    pub(crate) fn output_ack(&self, attempt: AttemptId, stdout: u64, stderr: u64) {
        let ack = AttemptOutputAck { attempt, stdout, stderr };
        self.send(Frame::of(Function::ATTEMPT_OUTPUT_ACK, 0, &ack));
    }

    pub(crate) fn stdin(&self, attempt: AttemptId, offset: u64, bytes: &[u8], end: bool) {
        let stdin = AttemptStdin { attempt, offset, bytes: bytes.to_vec(), end };
        self.send(Frame::of(Function::ATTEMPT_STDIN, 0, &stdin));
    }

    /// The next frame that is no report.
    pub(crate) async fn next(&mut self) -> Frame {
        loop {
            let frame = within("a frame comes", self.connection.reader.next()).await.unwrap().unwrap();
            if frame.function != Function::REPORT {
                return frame;
            }
        }
    }

    /// The next frame of this function; others are dropped.
    pub(crate) async fn wait_for(&mut self, function: Function) -> Frame {
        loop {
            let frame = within(&format!("{function:?} comes"), self.connection.reader.next()).await.unwrap().unwrap();
            if frame.function == function {
                return frame;
            }
        }
    }

    /// The next output that comes; nothing else but progress may come before it.
    pub(crate) async fn output(&mut self) -> AttemptOutput {
        loop {
            let frame = self.next().await;
            match frame.function {
                Function::ATTEMPT_OUTPUT => return frame.message().unwrap(),
                Function::PROGRESS | Function::ATTEMPT_STDIN_ACK | Function::CREDIT => {}
                other => panic!("{other:?} came instead of output"),
            }
        }
    }

    /// Standard output until all of `text` is there; acknowledges nothing.
    pub(crate) async fn stdout_until(&mut self, text: &str) {
        let mut bytes = Vec::new();
        while !String::from_utf8_lossy(&bytes).contains(text) {
            bytes.extend(self.output().await.bytes);
        }
    }

    /// Output and end of an attempt, from the offsets that `outcome` has; checks that no byte is missing or repeated.
    pub(crate) async fn end_from(&mut self, attempt: AttemptId, mut outcome: Outcome) -> Outcome {
        loop {
            let frame = self.next().await;
            match frame.function {
                Function::ATTEMPT_OUTPUT => {
                    let output: AttemptOutput = frame.message().unwrap();
                    let stream = match output.stream {
                        Stream::Stdout => &mut outcome.stdout,
                        Stream::Stderr => &mut outcome.stderr,
                    };
                    assert_eq!((output.attempt, output.offset), (attempt, stream.len() as u64));
                    assert!(!output.bytes.is_empty() && output.bytes.len() <= essaim_proto::limits::CHUNK_BYTES);
                    stream.extend(output.bytes);
                    self.output_ack(attempt, outcome.stdout.len() as u64, outcome.stderr.len() as u64);
                }
                Function::ENDED => {
                    let ended: Ended = frame.message().unwrap();
                    assert_eq!(ended.attempt, attempt);
                    outcome.result = ended.result;
                    let counted = (outcome.result.stdout_bytes, outcome.result.stderr_bytes);
                    assert_eq!(counted, (outcome.stdout.len() as u64, outcome.stderr.len() as u64));
                    return outcome;
                }
                Function::PROGRESS => assert_eq!(frame.message::<Progress>().unwrap().attempt, attempt),
                Function::ATTEMPT_STDIN_ACK | Function::CREDIT | Function::UNWATCH => {}
                other => panic!("{other:?} came before the end"),
            }
        }
    }

    /// Starts an attempt and waits for its end, which is acknowledged.
    pub(crate) async fn run(&mut self, start: &Start) -> Outcome {
        self.start(start);
        let outcome = self.end_from(start.attempt, Outcome::default()).await;
        self.end_ack(start.attempt);
        outcome
    }

    /// Waits until input up to `offset` is acknowledged.
    pub(crate) async fn stdin_acked(&mut self, attempt: AttemptId, offset: u64) {
        loop {
            let ack: AttemptStdinAck = self.wait_for(Function::ATTEMPT_STDIN_ACK).await.message().unwrap();
            assert_eq!(ack.attempt, attempt);
            assert!(ack.offset <= offset, "{} of {offset}", ack.offset);
            if ack.offset == offset {
                return;
            }
        }
    }

    /// Serves the next request for a blob; gives the offset that it began at.
    pub(crate) async fn serve_blob(&mut self, bytes: &[u8]) -> u64 {
        let request = self.wait_for(Function::BLOB_GET).await;
        let wanted: BlobWanted = request.message().unwrap();
        self.answer(&request, &Done {});
        let (window, sender) = (Window::new(), self.connection.sender.clone());
        let rest = &bytes[wanted.offset as usize..];
        let sent = send(&sender, request.id, &window, rest.len() as u64, rest);
        tokio::pin!(sent);
        loop {
            tokio::select! {
                sent = &mut sent => {
                    sent.unwrap();
                    return wanted.offset;
                }
                frame = self.connection.reader.next() => {
                    let frame = frame.unwrap().unwrap();
                    if frame.function == Function::CREDIT {
                        window.add(frame.message::<Credit>().unwrap());
                    }
                }
            }
        }
    }
}

/// A probe for `lang` with these commands.
pub(crate) fn probe(lang: &str, probes: &[&[&str]]) -> LanguageProbe {
    let words = |words: &&[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    LanguageProbe { lang: lang.to_owned(), probes: probes.iter().map(words).collect(), resolve: None }
}
