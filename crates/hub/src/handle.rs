//! The way to the driver: what sessions, doors and the binary may ask of it.
//!
//! A [`Handle`] is cheap to clone; every call puts one [`Command`] or one [`Read`] into a queue of the driver. Always
//! true: both queues are bounded and a full one makes the caller wait; the driver never waits for the one who asked;
//! reads are answered while commands wait for the store.
//! Deliberately not here: decisions (`essaim_core`), carrying out (the driver).

use crate::feeds::Feed;
use crate::limits::{COMMANDS_MAX, READS_MAX};
use essaim_core::hub::{Answer, Input, Query, SessionId, ToWorker};
use essaim_proto::hello::Role;
use essaim_proto::{BlobHash, JobId, NodeName, Refusal};
use essaim_store::Small;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{mpsc, oneshot};

/// What the driver's queue holds.
#[derive(Debug)]
pub(crate) enum Command {
    /// A session wants to hear what concerns it.
    Open { session: SessionId, mailbox: mpsc::Sender<Mail> },
    /// Something happened; `bytes` is roughly what its records will take. `output` is what a program printed whose end
    /// this is, when that travels with the record. `watch`: who submits this wants to watch it.
    Input { input: Box<Input>, bytes: usize, output: Option<Small>, watch: bool },
    /// A blob is complete and waits for a job that refers to it.
    BlobStored { hash: BlobHash },
    /// Blobs that the store had when the hub started.
    BlobsFound { hashes: Vec<BlobHash> },
    /// Blobs that nobody needed are removed.
    BlobsGone { hashes: Vec<BlobHash> },
    /// A client wants to refer to these blobs soon: which of them are not here?
    BlobsMissing { session: SessionId, request: u64, hashes: Vec<BlobHash> },
    /// Programs that run now.
    Running { answer: oneshot::Sender<Vec<(JobId, String, NodeName)>> },
    /// Wait until everything before this command is durable and has left.
    Flush { done: oneshot::Sender<()> },
}

/// What needs no record: dealt with at once, also while the store takes its time.
#[derive(Debug)]
pub(crate) enum Read {
    /// A client's session opens with a key (its hash); its mailbox hears whether it may.
    Client { session: SessionId, secret: BlobHash, mailbox: mpsc::Sender<Mail> },
    /// A question about what is durable.
    Query { session: SessionId, request: u64, query: Query },
}

/// The driver's ends of its queues.
#[derive(Debug)]
pub(crate) struct Queues {
    /// What changes something.
    pub(crate) commands: mpsc::Receiver<Command>,
    /// What does not.
    pub(crate) reads: mpsc::Receiver<Read>,
}

/// What a session hears from the driver.
#[derive(Debug)]
pub(crate) enum Mail {
    /// The client is who it says.
    Admitted { name: String, role: Role },
    /// Yes, with the job's feed when the answer concerns a job that may be watched.
    Answer { request: u64, answer: Answer, feed: Option<Arc<Feed>> },
    /// No.
    Refused { request: u64, refusal: Refusal },
    /// Which blobs are not here.
    BlobsMissing { request: u64, hashes: Vec<BlobHash> },
    /// Sign the joiner's certificate.
    GrantJoin { name: NodeName },
    /// Tell the worker; with the job's feed when an attempt starts.
    Tell { message: ToWorker, feeds: Vec<Arc<Feed>> },
    /// End the session.
    Close { reason: &'static str },
}

/// A way to the driver.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    commands: mpsc::Sender<Command>,
    reads: mpsc::Sender<Read>,
    next_session: Arc<AtomicU64>,
}

impl Handle {
    /// A handle and the driver's ends of it.
    pub(crate) fn new() -> (Handle, Queues) {
        let (commands, commands_end) = mpsc::channel(COMMANDS_MAX);
        let (reads, reads_end) = mpsc::channel(READS_MAX);
        let handle = Handle { commands, reads, next_session: Arc::new(AtomicU64::new(1)) };
        (handle, Queues { commands: commands_end, reads: reads_end })
    }

    /// Opens a mailbox under a new session id.
    pub(crate) async fn open(&self, capacity: usize) -> (SessionId, mpsc::Receiver<Mail>) {
        let session = self.next_session();
        let (mailbox, mail) = mpsc::channel(capacity);
        self.command(Command::Open { session, mailbox }).await;
        (session, mail)
    }

    /// Opens a client's session; the first letter says whether it may come in.
    pub(crate) async fn open_client(&self, capacity: usize, secret: BlobHash) -> (SessionId, mpsc::Receiver<Mail>) {
        let session = self.next_session();
        let (mailbox, mail) = mpsc::channel(capacity);
        self.read(Read::Client { session, secret, mailbox }).await;
        (session, mail)
    }

    /// Asks about what is durable. The answer comes as a letter.
    pub(crate) async fn query(&self, session: SessionId, request: u64, query: Query) {
        self.read(Read::Query { session, request, query }).await;
    }

    /// Tells the driver what happened. `bytes` is the size of the frame that said it.
    pub(crate) async fn input(&self, input: Input, bytes: usize) {
        self.command(Command::Input { input: Box::new(input), bytes, output: None, watch: false }).await;
    }

    /// The same for a job that its client submits, and perhaps wants to watch from the beginning.
    pub(crate) async fn submit(&self, input: Input, bytes: usize, watch: bool) {
        self.command(Command::Input { input: Box::new(input), bytes, output: None, watch }).await;
    }

    /// The same for the end of an attempt, with its output when that is small.
    pub(crate) async fn ended(&self, input: Input, bytes: usize, output: Option<Small>) {
        let bytes = bytes + output.as_ref().map_or(0, |small| small.stdout.len() + small.stderr.len());
        self.command(Command::Input { input: Box::new(input), bytes, output, watch: false }).await;
    }

    /// A blob is complete.
    pub(crate) async fn blob_stored(&self, hash: BlobHash) {
        self.command(Command::BlobStored { hash }).await;
    }

    /// Asks which of `hashes` are not here; the others stay for a while. The answer comes as a letter.
    pub(crate) async fn blobs_missing(&self, session: SessionId, request: u64, hashes: Vec<BlobHash>) {
        self.command(Command::BlobsMissing { session, request, hashes }).await;
    }

    /// Programs that run now.
    pub(crate) async fn running(&self) -> Vec<(JobId, String, NodeName)> {
        let (answer, result) = oneshot::channel();
        self.command(Command::Running { answer }).await;
        result.await.unwrap_or_default()
    }

    /// Waits until everything said before is durable and has left; `false` when the store did not take it, or the driver
    /// is gone.
    pub(crate) async fn flush(&self) -> bool {
        let (done, wait) = oneshot::channel();
        self.command(Command::Flush { done }).await;
        wait.await.is_ok()
    }

    /// A command from a thread that may wait.
    pub(crate) fn blocking_command(&self, command: Command) {
        let _ = self.commands.blocking_send(command);
    }

    fn next_session(&self) -> SessionId {
        SessionId(self.next_session.fetch_add(1, Ordering::Relaxed))
    }

    async fn command(&self, command: Command) {
        // The driver outlives its handles except at shutdown, when nobody waits for an answer any more.
        let _ = self.commands.send(command).await;
    }

    async fn read(&self, read: Read) {
        // As above.
        let _ = self.reads.send(read).await;
    }
}
