//! A worker's session, and a joiner's: translates frames into inputs and what comes back into frames.
//!
//! The workers' door spawns one task per connection. Output goes from here to the store and is acknowledged when it is
//! there; input for programs is pumped by one small task per attempt.
//!
//! Always true: a peer without a certificate of ours may only join; a worker may touch only attempts that the core gave
//! to it; the end of an attempt reaches the core after all of its output is durable, or with it ([`settle`]).
//! Deliberately not here: decisions, and what clients see.

mod settle;

use crate::download::{Download, Sending};
use crate::feeds::{Feed, Stopped};
use crate::handle::Mail;
use crate::hub::Shared;
use crate::limits::{MAILBOX_MAX, TRANSFERS_MAX};
use crate::session::{
    LastWords, answered, last_word, read, refuse_and_close, refuse_frame, refuse_request, refused, told_to_end,
    unknown_function, welcome,
};
use crate::stdin::Next;
use essaim_core::hub::{Input, SessionId, ToWorker};
use essaim_net::door::Accepted;
use essaim_net::hello::{await_hello, negotiate, send_welcome};
use essaim_net::limits::HELLO_TIME;
use essaim_net::ticket::secret_hash;
use essaim_net::{Connection, FrameSender};
use essaim_proto::hello::{Join, Joined, PeerKind, Role};
use essaim_proto::limits::NAMED_TASKS_MAX;
use essaim_proto::link::{
    AttemptOutputAck, AttemptStdin, AttemptStdinAck, BlobWanted, Ended, EndedMany, GivenBack, Progress, Register,
    Registered, Report, Start, Stop,
};
use essaim_proto::{AttemptId, Frame, Function, NodeName, Refusal, RefusalCode, TaskSet};
use essaim_store::Lengths;
use settle::{Settling, Word};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tracing::{debug, info, warn};

struct WorkerSession {
    shared: Arc<Shared>,
    session: SessionId,
    sender: FrameSender,
    registering: u64,
    mine: BTreeMap<AttemptId, Mine>,
    tasks: JoinSet<TaskEnd>,
    downloads: BTreeMap<u64, Download>,
    /// What the store says about output; bounded by what it was asked.
    words: mpsc::UnboundedSender<Word>,
}

/// An attempt that this worker holds.
struct Mine {
    feed: Arc<Feed>,
    pump: Option<AbortHandle>,
    settling: Settling,
}

/// How a task of the session ended.
enum TaskEnd {
    /// A pump: the attempt needs input that is gone.
    InputLost(AttemptId),
    /// A pump whose connection is closing.
    Pump,
    /// A transfer.
    Download(u64),
}

/// Serves one connection of the workers' door to its end.
pub(crate) async fn serve(shared: Arc<Shared>, accepted: Accepted) {
    let mut ends = shared.shutdown.subscribe();
    let Accepted { mut connection, peer, node, .. } = accepted;
    let sender = connection.sender.clone();
    let opened = tokio::select! {
        opened = open(&shared, &mut connection, peer, node) => opened,
        () = told_to_end(&mut ends) => {
            refuse_and_close(&connection, &RefusalCode::ShuttingDown.into());
            None
        }
    };
    match opened {
        Some(opened) => work(&shared, connection, opened, &mut ends).await,
        None => drop(connection),
    }
    // The last word may take its time: it holds nothing of the hub.
    drop(shared);
    last_word(&sender, ends).await;
}

/// A worker that may register.
struct Opened {
    node: NodeName,
    request: u64,
    register: Box<Register>,
}

/// The first words: a joiner is served here, a worker goes on with what it wants to register.
async fn open(
    shared: &Shared,
    connection: &mut Connection,
    peer: SocketAddr,
    node: Option<NodeName>,
) -> Option<Opened> {
    let hello = match await_hello(connection).await {
        Ok(hello) => hello,
        Err(error) => {
            debug!(%peer, %error, "no hello");
            return None;
        }
    };
    if let Err(refusal) = negotiate(&hello) {
        refuse_and_close(connection, &refusal);
        return None;
    }
    let node = match (hello.kind, node) {
        (PeerKind::Joiner, _) => {
            join(shared, connection).await;
            return None;
        }
        (PeerKind::Worker, Some(node)) => node,
        _ => {
            refuse_and_close(connection, &Refusal::new(RefusalCode::WrongDoor).with("door", "workers"));
            return None;
        }
    };
    send_welcome(connection, &welcome(shared, node.to_string(), Role::Viewer, peer)).ok()?;
    info!(%node, %peer, "worker connected");
    let bad = Refusal::new(RefusalCode::BadValue).with("function", "register");
    match tokio::time::timeout(HELLO_TIME, connection.reader.next()).await {
        Ok(Ok(Some(frame))) if frame.function == Function::REGISTER => match read(&frame) {
            Ok(register) => return Some(Opened { node, request: frame.id, register: Box::new(register) }),
            Err(refusal) => refuse_request(connection, frame.id, &refusal),
        },
        Ok(Ok(Some(frame))) => refuse_request(connection, frame.id, &bad),
        Ok(Ok(None) | Err(_)) => debug!(%node, "the worker left before it registered"),
        Err(_) => refuse_and_close(connection, &bad),
    }
    None
}

/// A machine with a join line gets its certificate.
async fn join(shared: &Shared, connection: &mut Connection) {
    // A join is one frame: it gets the time of a hello.
    let Ok(Ok(Some(frame))) = tokio::time::timeout(HELLO_TIME, connection.reader.next()).await else { return };
    let request = frame.id;
    let bad = Refusal::new(RefusalCode::BadValue).with("function", "join");
    let join: Join = match read(&frame) {
        Ok(join) if frame.function == Function::JOIN => join,
        _ => return refuse_request(connection, request, &bad),
    };
    let (session, mut mail) = shared.handle.open(1).await;
    let secret = secret_hash(&join.secret);
    shared.handle.input(Input::Join { session, request, secret, wish: join.name }, 0).await;
    match mail.recv().await {
        Some(Mail::GrantJoin { name }) => match shared.authority.sign_worker(&join.csr, &name) {
            Ok(signed) => {
                info!(node = %name, "a machine joined");
                let chain = signed.chain.into_iter().map(Into::into).collect();
                let joined = Joined { chain, name: name.to_string() };
                let _ = connection.sender.control(answered(Function::JOIN, request, &joined));
                connection.sender.close("done");
            }
            Err(error) => {
                debug!(%error, "a certificate request was malformed");
                refuse_request(connection, request, &bad);
            }
        },
        Some(Mail::Refused { refusal, .. }) => refuse_request(connection, request, &refusal),
        _ => refuse_request(connection, request, &RefusalCode::StoreError.into()),
    }
    shared.handle.input(Input::SessionClosed { session, clean: true }, 0).await;
}

/// The session of a worker, from its registration to its end.
async fn work(shared: &Arc<Shared>, connection: Connection, opened: Opened, ends: &mut watch::Receiver<bool>) {
    let Opened { node, request, register } = opened;
    let (session, mut mail) = shared.handle.open(MAILBOX_MAX).await;
    let (words, mut settled) = mpsc::unbounded_channel();
    shared.handle.input(Input::Register { session, name: node.clone(), register }, 0).await;
    let mut worker = WorkerSession {
        shared: shared.clone(),
        session,
        sender: connection.sender.clone(),
        registering: request,
        mine: BTreeMap::new(),
        // Dropped with the session, and all pumps and downloads with it.
        tasks: JoinSet::new(),
        downloads: BTreeMap::new(),
        words,
    };
    let clean = worker.run(connection, &mut mail, &mut settled, ends).await;
    drop(worker);
    shared.handle.input(Input::SessionClosed { session, clean }, 0).await;
    info!(%node, clean, "worker gone");
}

impl WorkerSession {
    /// Returns whether the worker left for good, so that what it held need not be waited for.
    async fn run(
        &mut self,
        mut connection: Connection,
        mail: &mut mpsc::Receiver<Mail>,
        settled: &mut mpsc::UnboundedReceiver<Word>,
        ends: &mut watch::Receiver<bool>,
    ) -> bool {
        let mut last_words = LastWords::default();
        loop {
            tokio::select! {
                frame = connection.reader.next() => match frame {
                    Ok(Some(frame)) => {
                        self.frame(frame).await;
                        if last_words.are_over(&self.sender) {
                            debug!(session = self.session.0, "the peer sends on and reads nothing");
                            return false;
                        }
                    }
                    Ok(None) => return connection.reader.goodbye() == Some("shutdown"),
                    Err(error) => {
                        debug!(session = self.session.0, %error, "connection lost");
                        return false;
                    }
                },
                letter = mail.recv() => match letter {
                    Some(Mail::Tell { message, feeds }) => self.tell(message, feeds),
                    // It may not register, or says what no worker of ours says.
                    Some(Mail::Refused { refusal, .. }) => {
                        warn!(session = self.session.0, code = refusal.code.name(), what = refusal.param("what"), "a worker is refused");
                        self.send(refused(self.registering, &refusal));
                        self.sender.close("refused");
                        return false;
                    }
                    Some(Mail::Close { reason }) => return self.close(reason),
                    Some(_) => {}
                    None => return self.close("overloaded"),
                },
                Some(word) = settled.recv() => self.settled(word).await,
                Some(ended) = self.tasks.join_next_with_id() => {
                    // One that was aborted has nothing to say.
                    if let Ok((task, end)) = ended {
                        self.task_ended(task, end);
                    }
                }
                () = told_to_end(ends) => {
                    // What was recorded is acknowledged.
                    while let Ok(letter) = mail.try_recv() {
                        if let Mail::Tell { message, feeds } = letter {
                            self.tell(message, feeds);
                        }
                    }
                    return self.close("shutdown");
                }
            }
        }
    }

    fn close(&self, reason: &str) -> bool {
        self.sender.close(reason);
        false
    }

    async fn frame(&mut self, frame: Frame) {
        if let Err(refusal) = self.word(&frame).await {
            refuse_frame(&self.sender, self.session, &frame, &refusal);
        }
    }

    fn task_ended(&mut self, task: tokio::task::Id, end: TaskEnd) {
        match end {
            TaskEnd::InputLost(attempt) => {
                warn!(%attempt, "input that this attempt needs is gone; it is stopped");
                self.stop(attempt, Stopped::InputLost);
            }
            TaskEnd::Download(id) if self.downloads.get(&id).is_some_and(|download| download.task() == task) => {
                self.downloads.remove(&id);
            }
            TaskEnd::Download(_) | TaskEnd::Pump => {}
        }
    }

    /// Has an attempt stopped that cannot go on; its end will say why.
    fn stop(&mut self, attempt: AttemptId, why: Stopped) {
        if let Some(mine) = self.mine.get(&attempt) {
            mine.feed.stop(attempt, why);
            self.send(Frame::of(Function::STOP, 0, &Stop { attempt }));
        }
    }

    /// Translates one frame.
    async fn word(&mut self, frame: &Frame) -> Result<(), Refusal> {
        let session = self.session;
        match frame.function {
            Function::ATTEMPT_OUTPUT => self.output(read(frame)?),
            Function::REPORT => {
                let report: Report = read(frame)?;
                let rtt_us = self.sender.rtt_us();
                self.shared.handle.input(Input::Report { session, report: Box::new(report), rtt_us }, 0).await;
            }
            Function::PROGRESS => {
                let progress: Progress = read(frame)?;
                self.shared.handle.input(Input::Progress { session, progress }, 0).await;
            }
            Function::ENDED => {
                let ended: Ended = read(frame)?;
                self.ended(Box::new(ended), frame.value.len()).await;
            }
            Function::ENDED_MANY => {
                let ended: EndedMany = read(frame)?;
                self.ended_many(ended, frame.value.len()).await;
            }
            Function::GIVEN_BACK => {
                let given: GivenBack = read(frame)?;
                // More than that the core refuses, which ends the session.
                if given.tasks_named() <= NAMED_TASKS_MAX {
                    given.attempts().for_each(|attempt| _ = self.mine.remove(&attempt));
                }
                let session = self.session;
                self.shared.handle.input(Input::GivenBack { session, given }, frame.value.len()).await;
            }
            Function::ATTEMPT_STDIN_ACK => {
                let ack: AttemptStdinAck = read(frame)?;
                let feed = self.mine.get(&ack.attempt).map(|mine| &mine.feed);
                if let Some(stdin) = feed.and_then(|feed| feed.stdin.as_ref()) {
                    stdin.ack(ack.attempt, ack.offset);
                }
            }
            Function::BLOB_GET => self.blob(frame.id, read(frame)?)?,
            Function::CREDIT => {
                if let Some(download) = self.downloads.get(&frame.id) {
                    download.credit(read(frame)?);
                }
            }
            // The worker has given the transfer up.
            Function::UNWATCH => drop(self.downloads.remove(&frame.id)),
            other => return Err(unknown_function(other)),
        }
        Ok(())
    }

    fn blob(&mut self, id: u64, wanted: BlobWanted) -> Result<(), Refusal> {
        if id == 0 || self.downloads.contains_key(&id) {
            return Err(Refusal::new(RefusalCode::BadValue).with("function", "blob_get"));
        }
        let allowed = self.mine.get(&wanted.attempt).is_some_and(|mine| mine.feed.refers_to(wanted.hash));
        let known = self.shared.store.blobs.size(wanted.hash).filter(|_| allowed);
        let Some(size) = known else { return Err(Refusal::new(RefusalCode::BlobMissing).with("hash", wanted.hash)) };
        if self.downloads.len() >= TRANSFERS_MAX {
            return Err(Refusal::new(RefusalCode::TooMany).with("what", "downloads").with("limit", TRANSFERS_MAX));
        }
        let blobs = self.shared.store.blobs.clone();
        let tasks = &mut self.tasks;
        let spawn = |sending: Sending| {
            tasks.spawn(async move {
                sending.await;
                TaskEnd::Download(id)
            })
        };
        let download = Download::begin(spawn, blobs, self.sender.clone(), id, wanted, size);
        self.downloads.insert(id, download);
        Ok(())
    }

    fn tell(&mut self, message: ToWorker, feeds: Vec<Arc<Feed>>) {
        match message {
            ToWorker::Registered(registered) => self.registered(registered, feeds),
            ToWorker::Start(start) => self.start(&start, feeds),
            ToWorker::Stop(stop) => self.send(Frame::of(Function::STOP, 0, &stop)),
            ToWorker::EndAck(ack) => {
                if let Some(Mine { pump: Some(pump), .. }) = self.mine.remove(&ack.attempt) {
                    pump.abort();
                }
                // Whoever gave up with its attempt waits for no credit any more.
                self.downloads.retain(|_, download| download.attempt() != ack.attempt);
                self.send(Frame::of(Function::END_ACK, 0, &ack));
            }
            ToWorker::EndAckMany(ack) => {
                ack.attempts().for_each(|attempt| _ = self.mine.remove(&attempt));
                self.send(Frame::of(Function::END_ACK_MANY, 0, &ack));
            }
            ToWorker::Leave(leave) => self.send(Frame::of(Function::LEAVE, 0, &leave)),
            ToWorker::TakeBack(wanted) => self.send(Frame::of(Function::TAKE_BACK, 0, &wanted)),
        }
    }

    fn registered(&mut self, mut registered: Registered, feeds: Vec<Arc<Feed>>) {
        for kept in &mut registered.keep {
            // What is not durable could be lost with this hub: the worker sends it again, and it is skipped.
            let lengths = self.shared.store.outputs.durable(kept.attempt);
            (kept.stdout, kept.stderr) = (lengths.stdout, lengths.stderr);
        }
        // Tasks of arrays are named one by one when there is output of them.
        let mut kept: Vec<AttemptId> = registered.keep.iter().map(|kept| kept.attempt).collect();
        for many in &mut registered.keep_many {
            let mut without_output = TaskSet::default();
            for attempt in many.attempts() {
                kept.push(attempt);
                match self.shared.store.outputs.durable(attempt) {
                    Lengths { stdout: 0, stderr: 0 } => _ = without_output.push(attempt.task),
                    Lengths { stdout, stderr } => registered.keep.push(AttemptOutputAck { attempt, stdout, stderr }),
                }
            }
            many.tasks = without_output;
        }
        self.send(answered(Function::REGISTER, self.registering, &registered));
        for (attempt, feed) in kept.into_iter().zip(feeds) {
            self.hold(attempt, feed, true);
        }
    }

    fn start(&mut self, start: &Start, feeds: Vec<Arc<Feed>>) {
        self.send(Frame::of(Function::START, 0, start));
        let Some(feed) = feeds.into_iter().next() else { return };
        start.attempts().for_each(|attempt| self.hold(attempt, feed.clone(), false));
    }

    /// The worker has been told of the attempt: only now may input for it be sent.
    fn hold(&mut self, attempt: AttemptId, feed: Arc<Feed>, goes_on: bool) {
        if self.mine.contains_key(&attempt) {
            return; // Told to start it again: its input is pumped already, and its end may be waiting for its output.
        }
        let pump = feed.stdin.is_some().then(|| {
            let pump = pump_stdin(attempt, goes_on, feed.clone(), self.sender.clone());
            self.tasks.spawn(pump)
        });
        if feed.stopped(attempt).is_some() {
            // Over the connection before; the word may have been lost with it.
            self.send(Frame::of(Function::STOP, 0, &Stop { attempt }));
        }
        self.mine.insert(attempt, Mine { feed, pump, settling: Settling::default() });
    }

    fn send(&self, frame: Frame) {
        // A queue that is full closes the connection, which the next read reports.
        let _ = self.sender.control(frame);
    }
}

/// Sends a job's input to its attempt as it comes.
async fn pump_stdin(attempt: AttemptId, goes_on: bool, feed: Arc<Feed>, sender: FrameSender) -> TaskEnd {
    let Some(stdin) = &feed.stdin else { return TaskEnd::Pump };
    let mut changed = stdin.changed.subscribe();
    let mut sent = stdin.begin(attempt, goes_on);
    if sent.is_none() {
        // It began before this hub: a chunk without bytes makes its worker say where it is.
        let question = AttemptStdin { attempt, ..AttemptStdin::default() };
        if sender.bulk(Frame::of(Function::ATTEMPT_STDIN, 0, &question)).await.is_err() {
            return TaskEnd::Pump;
        }
    }
    while sent.is_none() {
        if changed.changed().await.is_err() {
            return TaskEnd::Pump;
        }
        sent = stdin.begin(attempt, goes_on);
    }
    let (mut sent, mut end_sent) = (sent.unwrap_or_default(), false);
    loop {
        changed.borrow_and_update();
        match stdin.next(sent, end_sent) {
            Next::Bytes { offset, bytes, end } => {
                sent = offset + bytes.len() as u64;
                end_sent = end;
                let message = AttemptStdin { attempt, offset, bytes, end };
                if sender.bulk(Frame::of(Function::ATTEMPT_STDIN, 0, &message)).await.is_err() {
                    return TaskEnd::Pump;
                }
            }
            Next::Wait => {
                if changed.changed().await.is_err() {
                    return TaskEnd::Pump;
                }
            }
            Next::Lost => return TaskEnd::InputLost(attempt),
        }
    }
}

#[cfg(test)]
mod tests;
