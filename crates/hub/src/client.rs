//! A client's session: translates frames into inputs and what comes back into frames.
//!
//! The clients' door spawns one task per connection. It reads frames and the session's mailbox, and spawns one task per
//! watched job. Always true: every request is answered, or refused by name, once; what a client may do is decided in the
//! core, not here; a client that floods or never reads costs bounded memory and its own connection.
//! Deliberately not here: decisions, the answers' frames ([`answer`]), what only the catalog knows ([`looked`]), output (the
//! watch tasks), TLS.

mod answer;
mod looked;
#[cfg(test)]
mod tests;

use crate::feeds::Feed;
use crate::handle::Mail;
use crate::hub::Shared;
use crate::limits::{MAILBOX_MAX, PENDING_REQUESTS_MAX, TRANSFERS_MAX, WATCHES_MAX};
use crate::past::Who;
use crate::rates::counts;
use crate::session::{
    LastWords, answered, bad_value, last_word, read, refuse_and_close, refuse_frame, told_to_end, unknown_function,
    welcome,
};
use crate::upload::{Progress, Upload};
use essaim_core::hub::{Input, NewKey, Query, SessionId};
use essaim_net::door::Accepted;
use essaim_net::hello::{await_hello, negotiate, send_welcome};
use essaim_net::ticket::{new_secret, secret_hash};
use essaim_net::{Connection, FrameSender, Ticket, TicketKind};
use essaim_proto::api::{
    BlobPut, BlobsMissing, Done, JobCancel, JobList, JobRerun, JobShow, JoinLineMake, KeyCreate, KeyRevoke, KeySet,
    LocalSet, NodeList, OutputAck, StatesWatch, StdinChunk, Submit, TaskList, Watch, key_name,
};
use essaim_proto::hello::{Hello, PeerKind, Secret};
use essaim_proto::limits::JOB_FILES_MAX;
use essaim_proto::{Frame, Function, JobId, Refusal, RefusalCode};
use looked::Looked;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tracing::{debug, info};

/// What a request waits for.
enum Pending {
    /// An answer that goes out as it is, under this function.
    Plain(Function),
    /// A page of jobs, which the catalog completes.
    List(Box<JobList>),
    /// A job, from the catalog if the core has forgotten it.
    Show(JobId),
    /// A page of tasks, which the catalog completes.
    Tasks(TaskList),
    /// What the catalog is being asked for, under this function.
    Looking(Function),
    Submit {
        watch: bool,
        in_order: bool,
    },
    Watch {
        /// `None`: the client has given it up meanwhile.
        watch: Option<Box<Watch>>,
        /// Did its client hear an answer already (to a Submit that was repeated)?
        answered: bool,
    },
    Upload,
    Missing(BlobsMissing),
    Key {
        secret: Secret,
    },
    Join {
        secret: Secret,
        make: Box<JoinLineMake>,
    },
}

impl Pending {
    fn will_watch(&self) -> bool {
        matches!(
            self,
            Pending::Submit { watch: true, .. }
                | Pending::Watch { watch: Some(_), .. }
                | Pending::Looking(Function::WATCH)
        )
    }
}

struct ClientSession {
    shared: Arc<Shared>,
    session: SessionId,
    who: Who,
    sender: FrameSender,
    pending: BTreeMap<u64, Pending>,
    watches: BTreeMap<u64, WatchEnd>,
    /// Watches of all states.
    states: BTreeMap<u64, AbortHandle>,
    tasks: JoinSet<TaskEnd>,
    uploads: BTreeMap<u64, Upload>,
}

/// How a task of the session ended.
enum TaskEnd {
    /// The watch with this id.
    Watch(u64),
    /// The catalog was asked for this request.
    Looked(u64, Box<Looked>),
}

/// The session's end of a watch.
struct WatchEnd {
    job: JobId,
    acked: watch::Sender<u64>,
    /// Of a job that is not over, when output was asked for.
    feed: Option<Arc<Feed>>,
    task: AbortHandle,
}

/// Serves one connection of the clients' door to its end.
pub(crate) async fn serve(shared: Arc<Shared>, accepted: Accepted) {
    let mut ends = shared.shutdown.subscribe();
    let (peer, mut connection) = (accepted.peer, accepted.connection);
    let sender = connection.sender.clone();
    let opened = tokio::select! {
        opened = open(&shared, &mut connection, peer) => opened,
        () = told_to_end(&mut ends) => {
            refuse_and_close(&connection, &RefusalCode::ShuttingDown.into());
            None
        }
    };
    match opened {
        Some((session, who, mut mail)) => {
            let mut client = ClientSession::new(&shared, session, who, sender.clone());
            let clean = client.run(connection, &mut mail, &mut ends).await;
            drop(client);
            shared.handle.input(Input::SessionClosed { session, clean }, 0).await;
            info!(session = session.0, clean, "client gone");
        }
        None => drop(connection),
    }
    // The last word may take its time: it holds nothing of the hub.
    drop(shared);
    last_word(&sender, ends).await;
}

/// The first words: who is it, and may it come in?
async fn open(
    shared: &Shared,
    connection: &mut Connection,
    peer: SocketAddr,
) -> Option<(SessionId, Who, mpsc::Receiver<Mail>)> {
    let hello = match await_hello(connection).await {
        Ok(hello) => hello,
        Err(error) => {
            debug!(%peer, %error, "no hello");
            return None;
        }
    };
    let secret = match read_key(hello) {
        Ok(secret) => secret,
        Err(refusal) => {
            refuse_and_close(connection, &refusal);
            return None;
        }
    };
    let (session, mut mail) = shared.handle.open_client(MAILBOX_MAX, secret_hash(&secret)).await;
    match mail.recv().await {
        Some(Mail::Admitted { name, role }) => {
            info!(session = session.0, key = name, %peer, "client connected");
            let who = Who { key: name.parse().expect("the core names a key"), role };
            // An error shows at the next read.
            let _ = send_welcome(connection, &welcome(shared, name, role, peer));
            return Some((session, who, mail));
        }
        Some(Mail::Refused { refusal, .. }) => refuse_and_close(connection, &refusal),
        _ => refuse_and_close(connection, &RefusalCode::StoreError.into()),
    }
    shared.handle.input(Input::SessionClosed { session, clean: true }, 0).await;
    None
}

fn read_key(hello: Hello) -> Result<Secret, Refusal> {
    negotiate(&hello)?;
    if hello.kind != PeerKind::Client {
        return Err(Refusal::new(RefusalCode::WrongDoor).with("door", "clients"));
    }
    let key = hello.key.ok_or(RefusalCode::WrongKey)?;
    // The whole line or only its secret: both are what a person was given.
    Ok(Ticket::parse(&key.0, TicketKind::Key).map_or(key, |ticket| ticket.secret))
}

impl ClientSession {
    fn new(shared: &Arc<Shared>, session: SessionId, who: Who, sender: FrameSender) -> ClientSession {
        ClientSession {
            shared: shared.clone(),
            session,
            who,
            sender,
            pending: BTreeMap::new(),
            watches: BTreeMap::new(),
            states: BTreeMap::new(),
            // Dropped with the session, and all watches with it.
            tasks: JoinSet::new(),
            uploads: BTreeMap::new(),
        }
    }

    /// Returns whether the client said goodbye.
    async fn run(
        &mut self,
        mut connection: Connection,
        mail: &mut mpsc::Receiver<Mail>,
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
                    Ok(None) => return true,
                    Err(error) => {
                        debug!(session = self.session.0, %error, "connection lost");
                        return false;
                    }
                },
                letter = mail.recv() => match letter {
                    Some(Mail::Close { reason }) => return self.close(reason),
                    None => return self.close("overloaded"),
                    Some(letter) => self.mail(letter).await,
                },
                Some(ended) = self.tasks.join_next_with_id() => match ended {
                    // The client may have begun another watch under the same id meanwhile.
                    Ok((task, TaskEnd::Watch(id))) => {
                        if self.watches.get(&id).is_some_and(|watch| watch.task.id() == task) {
                            self.watches.remove(&id);
                        }
                    }
                    Ok((_, TaskEnd::Looked(request, looked))) => self.looked(request, *looked),
                    // One that was aborted has nothing to say.
                    Err(_) => {}
                },
                () = told_to_end(ends) => {
                    // What was decided is said.
                    while let Ok(letter) = mail.try_recv() {
                        self.mail(letter).await;
                    }
                    return self.close("shutdown");
                }
            }
        }
    }

    fn close(&self, reason: &str) -> bool {
        self.sender.close(reason);
        true
    }

    async fn frame(&mut self, frame: Frame) {
        if let Err(refusal) = self.request(&frame).await {
            refuse_frame(&self.sender, self.session, &frame, &refusal);
        }
    }

    /// Has it an id of its own, if it begins something, and does it not come too soon?
    fn may_ask(&self, frame: &Frame) -> Result<(), Refusal> {
        let goes_on = [Function::UNWATCH, Function::OUTPUT_ACK, Function::STDIN, Function::BLOB_BYTES];
        if !goes_on.contains(&frame.function) && (frame.id == 0 || self.is_used(frame.id)) {
            return Err(bad_value(frame));
        }
        if counts(frame.function) { self.shared.rates.take(&self.who.key) } else { Ok(()) }
    }

    /// Translates one frame.
    async fn request(&mut self, frame: &Frame) -> Result<(), Refusal> {
        let (session, request) = (self.session, frame.id);
        self.may_ask(frame)?;
        match frame.function {
            Function::SUBMIT => {
                let Submit { key, spec, watch, in_order } = read(frame)?;
                self.wait_for(request, Pending::Submit { watch, in_order })?;
                let input = Input::Submit { session, request, key, spec: Box::new(spec) };
                self.shared.handle.submit(input, frame.value.len(), watch).await;
            }
            Function::WATCH => {
                let watch: Watch = read(frame)?;
                let query = Query::Watch { job: watch.job, key: watch.key };
                let pending = Pending::Watch { watch: Some(Box::new(watch)), answered: false };
                self.ask(request, pending, query).await?;
            }
            Function::STATES => self.watch_states(request, read(frame)?)?,
            Function::UNWATCH => self.unwatch(request),
            Function::OUTPUT_ACK => {
                let ack: OutputAck = read(frame)?;
                if let Some(watch) = self.watches.get(&request) {
                    watch.acked.send_if_modified(|acked| {
                        let newer = ack.received_bytes > *acked;
                        *acked = (*acked).max(ack.received_bytes);
                        newer
                    });
                }
            }
            Function::STDIN => self.stdin(&read(frame)?)?,
            Function::JOB_CANCEL => {
                let JobCancel { job, tasks } = read(frame)?;
                self.wait_for(request, Pending::Plain(frame.function))?;
                self.shared.handle.input(Input::Cancel { session, request, job, tasks }, 0).await;
            }
            Function::JOB_LIST => {
                let list: JobList = read(frame)?;
                let pending = Pending::List(Box::new(list.clone()));
                self.query(request, pending, Query::JobList(list)).await?;
            }
            Function::JOB_SHOW => {
                let JobShow { job } = read(frame)?;
                self.query(request, Pending::Show(job), Query::JobShow(job)).await?;
            }
            Function::TASK_LIST => {
                let list: TaskList = read(frame)?;
                self.query(request, Pending::Tasks(list.clone()), Query::TaskList(list)).await?;
            }
            Function::JOB_RERUN => {
                let rerun: JobRerun = read(frame)?;
                self.wait_for(request, Pending::Plain(frame.function))?;
                self.shared.handle.input(Input::Rerun { session, request, rerun }, frame.value.len()).await;
            }
            Function::NODE_LIST => {
                let NodeList { after } = read(frame)?;
                self.query(request, Pending::Plain(frame.function), Query::NodeList { after }).await?;
            }
            Function::BLOBS_MISSING => {
                let missing: BlobsMissing = read(frame)?;
                if missing.hashes.len() > JOB_FILES_MAX {
                    let refusal = Refusal::new(RefusalCode::TooLarge).with("what", "the list of files");
                    return Err(refusal.with("limit", JOB_FILES_MAX));
                }
                self.ask(request, Pending::Missing(missing), Query::Upload).await?;
            }
            Function::BLOB_PUT => self.blob_put(request, read(frame)?).await?,
            Function::BLOB_BYTES => self.blob_bytes(frame).await?,
            Function::KEY_CREATE
            | Function::KEY_LIST
            | Function::KEY_REVOKE
            | Function::KEY_SET
            | Function::JOIN_LINE
            | Function::LOCAL_SET => {
                self.administration(frame).await?;
            }
            other => return Err(unknown_function(other)),
        }
        Ok(())
    }

    async fn administration(&mut self, frame: &Frame) -> Result<(), Refusal> {
        let (session, request) = (self.session, frame.id);
        match frame.function {
            Function::KEY_LIST => self.query(request, Pending::Plain(frame.function), Query::KeyList).await,
            Function::KEY_CREATE => {
                let create: KeyCreate = read(frame)?;
                let (name, secret) = (key_name(&create.name)?, new_secret());
                self.wait_for(request, Pending::Key { secret: secret.clone() })?;
                let secret = secret_hash(&secret);
                let key = NewKey { role: create.role, secret, quotas: create.quotas };
                let input = Input::KeyCreate { session, request, name, key };
                self.shared.handle.input(input, 0).await;
                Ok(())
            }
            Function::KEY_SET => {
                let set: Box<KeySet> = read(frame)?;
                let name = key_name(&set.name)?;
                self.wait_for(request, Pending::Plain(frame.function))?;
                self.shared.handle.input(Input::KeySet { session, request, name, set }, 0).await;
                Ok(())
            }
            Function::KEY_REVOKE => {
                let revoke: KeyRevoke = read(frame)?;
                let name = key_name(&revoke.name)?;
                self.wait_for(request, Pending::Plain(frame.function))?;
                self.shared.handle.input(Input::KeyRevoke { session, request, name }, 0).await;
                Ok(())
            }
            Function::LOCAL_SET => {
                let set: LocalSet = read(frame)?;
                self.wait_for(request, Pending::Plain(frame.function))?;
                self.shared.handle.input(Input::LocalSet { session, request, set }, 0).await;
                Ok(())
            }
            _ => {
                let make: JoinLineMake = read(frame)?;
                let secret = new_secret();
                let (hash, uses, ttl_ms) = (secret_hash(&secret), make.uses, make.ttl_ms);
                self.wait_for(request, Pending::Join { secret, make: Box::new(make) })?;
                let input = Input::JoinCreate { session, request, secret: hash, uses, ttl_ms };
                self.shared.handle.input(input, 0).await;
                Ok(())
            }
        }
    }

    fn is_used(&self, id: u64) -> bool {
        let is_watched = self.watches.contains_key(&id) || self.states.contains_key(&id);
        is_watched || self.pending.contains_key(&id) || self.uploads.contains_key(&id)
    }

    /// Asks what is durable, without waiting for what is not.
    async fn query(&mut self, request: u64, pending: Pending, query: Query) -> Result<(), Refusal> {
        self.wait_for(request, pending)?;
        self.shared.handle.query(self.session, request, query).await;
        Ok(())
    }

    /// Asks in the order of everything else that this session says.
    async fn ask(&mut self, request: u64, pending: Pending, query: Query) -> Result<(), Refusal> {
        self.wait_for(request, pending)?;
        self.shared.handle.input(Input::Query { session: self.session, request, query }, 0).await;
        Ok(())
    }

    fn wait_for(&mut self, request: u64, pending: Pending) -> Result<(), Refusal> {
        if self.pending.len() >= PENDING_REQUESTS_MAX {
            return Err(too_many("open requests", PENDING_REQUESTS_MAX));
        }
        // Said before the request is carried out: a job whose watch is refused afterwards would run unseen.
        if pending.will_watch() && self.watching() >= WATCHES_MAX {
            return Err(too_many("watched jobs", WATCHES_MAX));
        }
        self.pending.insert(request, pending);
        Ok(())
    }

    /// Watches that are open or will be.
    fn watching(&self) -> usize {
        let will = self.pending.values().filter(|pending| pending.will_watch()).count();
        self.watches.len() + self.states.len() + will
    }

    /// Every client may list nodes and jobs, so every client may watch them.
    fn watch_states(&mut self, request: u64, wanted: StatesWatch) -> Result<(), Refusal> {
        if self.watching() >= WATCHES_MAX {
            return Err(too_many("watched jobs", WATCHES_MAX));
        }
        // From this moment on: whoever lists after the answer misses nothing.
        let changes = self.shared.changes.watch(wanted);
        self.send(answered(Function::STATES, request, &Done {}));
        let sender = self.sender.clone();
        let task = self.tasks.spawn(async move {
            changes.run(request, sender).await;
            TaskEnd::Watch(request)
        });
        self.states.insert(request, task);
        Ok(())
    }

    /// The client wants nothing more under this id. An answer that is on its way still comes.
    fn unwatch(&mut self, id: u64) {
        if let Some(watch) = self.watches.remove(&id) {
            watch.task.abort();
        }
        if let Some(task) = self.states.remove(&id) {
            task.abort();
        }
        self.uploads.remove(&id);
        match self.pending.get_mut(&id) {
            Some(Pending::Submit { watch, .. }) => *watch = false,
            Some(Pending::Watch { watch, .. }) => *watch = None,
            Some(Pending::Looking(Function::WATCH)) => drop(self.pending.remove(&id)),
            _ => {}
        }
    }

    fn stdin(&self, chunk: &StdinChunk) -> Result<(), Refusal> {
        // Only who was granted a watch of the job with its output may type into it.
        let refusal = || Refusal::new(RefusalCode::NoStdin).with("job", chunk.job);
        let mut feeds =
            self.watches.values().filter(|watch| watch.job == chunk.job).map(|watch| &watch.feed).peekable();
        feeds.peek().ok_or_else(refusal)?;
        // A job that is over reads nothing more: its client may have come back too late to know.
        let Some(feed) = feeds.flatten().next() else { return Ok(()) };
        feed.stdin.as_ref().ok_or_else(refusal)?.push(chunk.offset, &chunk.bytes, chunk.end);
        Ok(())
    }

    async fn blob_put(&mut self, request: u64, put: BlobPut) -> Result<(), Refusal> {
        if self.uploads.len() >= TRANSFERS_MAX {
            return Err(too_many("uploads", TRANSFERS_MAX));
        }
        let (hash, size_bytes) = (put.hash, put.size_bytes);
        let upload = Upload::new(request, put)?;
        self.wait_for(request, Pending::Upload)?;
        self.shared.handle.input(Input::Upload { session: self.session, request, hash, size_bytes }, 0).await;
        // Bytes may follow at once.
        self.uploads.insert(request, upload);
        Ok(())
    }

    async fn blob_bytes(&mut self, frame: &Frame) -> Result<(), Refusal> {
        // Bytes after a refusal are still on their way when the client hears of it: they are dropped.
        let Some(upload) = self.uploads.get_mut(&frame.id) else { return Ok(()) };
        let progress = upload.take(frame).await;
        self.uploaded(frame.id, progress).await
    }

    async fn uploaded(&mut self, id: u64, progress: Result<Progress, Refusal>) -> Result<(), Refusal> {
        match progress {
            Ok(Progress::Open(credit)) => {
                if let Some(credit) = credit {
                    self.send(credit);
                }
            }
            Ok(Progress::Whole) => {
                if let Some(upload) = self.uploads.remove(&id) {
                    self.shared.handle.blob_stored(upload.hash()).await;
                    self.send(answered(Function::BLOB_PUT, id, &Done {}));
                }
            }
            Err(refusal) => {
                self.uploads.remove(&id);
                return Err(refusal);
            }
        }
        Ok(())
    }

    fn send(&self, frame: Frame) {
        // A queue that is full closes the connection, which the next read reports.
        let _ = self.sender.control(frame);
    }
}

fn too_many(what: &str, limit: usize) -> Refusal {
    Refusal::new(RefusalCode::TooMany).with("what", what).with("limit", limit)
}
