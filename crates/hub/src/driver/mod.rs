//! The driver: one task that owns the hub's state, makes records durable, then lets effects leave.
//!
//! ```text
//!   commands ──▶ batch ──▶ core::Hub::step … ──▶ append(records) ──┐
//!                                                                  ▼ durable up to seq
//!   sessions ◀── effects whose seq is durable, in order ◀── waiting (seq, records, effects)
//!       ▲                                                          │ records
//!       └── answers ◀── reads ◀── published state ◀────────────────┴──▶ catalog, snapshots
//! ```
//!
//! Always true: an effect leaves only when the records of its batch and of all batches before are durable; the driver
//! itself never waits for the store nor for a session (a mailbox that is full ends its session); questions are answered
//! from what is durable, also while the store takes its time.
//! After a failed append nothing new is decided until all appends under way have ended; then the state is taken anew from
//! what is durable ([`recover`]): what was not durable is refused by name, clients stay, workers come back.
//! Deliberately not here: decisions (`essaim_core::hub`), output and input bytes ([`crate::feeds`] and the sessions).

mod leave;
mod published;
mod recover;

pub(crate) use leave::present;
pub(crate) use published::{Published, catch_up};

use crate::blobs::BlobKeeper;
use crate::catalog::Follower;
use crate::changes::Changes;
use crate::feeds::Feeds;
use crate::handle::{Command, Mail, Queues, Read};
use crate::keeper::{Room, Rubbish};
use crate::limits::{APPENDS_MAX, BATCH_BYTES_MAX, BATCH_COMMANDS_MAX, READS_AT_ONCE, SNAPSHOT_EVERY_BYTES, TICK};
use crate::notices::Due;
use crate::past::Past;
use crate::rates::Rates;
use essaim_core::Now;
use essaim_core::hub::{Effect, Hub, Input, Out, Record, Rules, SessionId, SmallOutput, encode_batch};
use essaim_core::lang::LanguageTable;
use essaim_proto::{AttemptId, Refusal, RefusalCode};
use essaim_store::{AppendError, CatalogError, ReadError, Seq, Small, Store, Term};
use recover::Recovered;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{trace, warn};

/// Why the state cannot be rebuilt from the store.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The journal cannot be read.
    #[error("the journal cannot be read")]
    Read(#[from] ReadError),
    /// A row of the journal is no batch of records.
    #[error("row {seq} of the journal is damaged")]
    Row {
        /// Which.
        seq: u64,
        /// Why.
        #[source]
        source: essaim_proto::DecodeError,
    },
    /// The catalog does not take what the journal holds.
    #[error("the catalog of finished jobs cannot be written")]
    Catalog(#[source] CatalogError),
}

/// What a driver works with.
pub(crate) struct Parts {
    pub(crate) store: Store,
    pub(crate) term: Term,
    pub(crate) table: LanguageTable,
    pub(crate) feeds: Arc<Feeds>,
    pub(crate) changes: Arc<Changes>,
    pub(crate) follower: Follower,
    pub(crate) past: Arc<Past>,
    /// Tells `up` which workers of its own are to run.
    pub(crate) local: watch::Sender<BTreeSet<u32>>,
    pub(crate) room: watch::Receiver<Room>,
    pub(crate) rubbish: Rubbish,
    pub(crate) notices: mpsc::UnboundedSender<Due>,
    pub(crate) rates: Arc<Rates>,
    pub(crate) rules: Rules,
}

/// The driver's state.
pub(crate) struct Driver {
    hub: Hub,
    published: Published,
    parts: Parts,
    /// The sequence of the last append that was asked for.
    asked: Seq,
    /// Appends whose end was not told yet.
    under_way: usize,
    /// Why the state must be taken anew, once nothing is under way.
    failed: Option<AppendError>,
    /// Is what the journal holds being read back?
    is_recovering: bool,
    waiting: VecDeque<(Seq, Leaving)>,
    mailboxes: BTreeMap<SessionId, mpsc::Sender<Mail>>,
    blobs: BlobKeeper,
    is_snapshotting: bool,
    snapshot_every_bytes: u64,
    /// Size of the latest snapshot that was written.
    snapshot_bytes: u64,
    /// Does the core know that there is no room, and since when?
    full_since: Option<Instant>,
    begun: Instant,
    news_sender: mpsc::UnboundedSender<News>,
    news: mpsc::UnboundedReceiver<News>,
}

/// What the driver hears from those who work for it. Bounded by what it has asked for.
#[derive(Debug)]
enum News {
    /// An append has ended.
    Appended(Result<Seq, AppendError>),
    /// What the journal holds beyond the published state.
    Recovered(Result<Recovered, ReplayError>),
    /// A snapshot was taken and has so many bytes, or was given up.
    Snapshotted(Option<u64>),
}

/// What leaves when its batch is durable.
#[derive(Debug, Default)]
struct Leaving {
    records: Vec<Record>,
    effects: Vec<Effect>,
    /// Who watches what they submit, by their request.
    watching: Vec<(SessionId, u64)>,
    flushed: Vec<oneshot::Sender<()>>,
}

impl Driver {
    /// A driver on an open store, with the state that its journal holds.
    pub(crate) fn new(parts: Parts, published: Published) -> Driver {
        let begun = Instant::now();
        let (news_sender, news) = mpsc::unbounded_channel();
        let blobs = BlobKeeper::new(parts.store.blobs.clone(), &published.durable);
        Driver {
            hub: Hub::new(now(begun), published.durable.clone(), parts.table.clone()).with_rules(parts.rules),
            asked: published.at,
            published,
            parts,
            under_way: 0,
            failed: None,
            is_recovering: false,
            waiting: VecDeque::new(),
            mailboxes: BTreeMap::new(),
            blobs,
            is_snapshotting: false,
            snapshot_every_bytes: SNAPSHOT_EVERY_BYTES,
            snapshot_bytes: 0,
            full_since: None,
            begun,
            news_sender,
            news,
        }
    }

    /// Runs until all handles are gone.
    ///
    /// # Errors
    /// When what a store holds that did not take a record cannot be read: nothing can be promised any more.
    pub(crate) async fn run(mut self, mut queues: Queues) -> Result<(), ReplayError> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let is_ready = self.is_ready();
            tokio::select! {
                // The tick before the commands: they may never end. The commands before the reads: those get their turn
                // after each batch.
                biased;
                Some(news) = self.news.recv() => self.hear(news)?,
                _ = tick.tick(), if is_ready => self.tick(),
                command = queues.commands.recv(), if is_ready => match command {
                    Some(first) => self.batch(first, &mut queues.commands),
                    None => return Ok(()),
                },
                Some(read) = queues.reads.recv() => self.read(read),
            }
            for _ in 1..READS_AT_ONCE {
                let Ok(read) = queues.reads.try_recv() else { break };
                self.read(read);
            }
            // A store that answers on the spot needs no other round.
            while let Ok(news) = self.news.try_recv() {
                self.hear(news)?;
            }
        }
    }

    /// May something new be decided? Not on a state that will be thrown away, nor while the store is far behind.
    fn is_ready(&self) -> bool {
        self.failed.is_none() && !self.is_recovering && self.under_way < APPENDS_MAX
    }

    fn now(&self) -> Now {
        now(self.begun)
    }

    fn hear(&mut self, news: News) -> Result<(), ReplayError> {
        match news {
            News::Appended(end) => self.appended(end),
            News::Recovered(recovered) => self.recovered(recovered?),
            News::Snapshotted(bytes) => {
                self.is_snapshotting = false;
                self.snapshot_bytes = bytes.unwrap_or(self.snapshot_bytes);
            }
        }
        self.snapshot_if_due();
        Ok(())
    }

    fn batch(&mut self, first: Command, commands: &mut mpsc::Receiver<Command>) {
        // The clock is read once: everything in a batch happens at the same time.
        let now = self.now();
        let mut out = Out::default();
        let mut leaving = Leaving::default();
        let mut bytes = self.take(now, first, &mut out, &mut leaving);
        for _ in 1..BATCH_COMMANDS_MAX {
            if bytes > BATCH_BYTES_MAX {
                break;
            }
            let Ok(command) = commands.try_recv() else { break };
            bytes += self.take(now, command, &mut out, &mut leaving);
        }
        self.commit(now, out, leaving);
    }

    fn tick(&mut self) {
        let now = self.now();
        let mut out = Out::default();
        self.tell_room(now, &mut out);
        self.hub.step(now, Input::Tick, &mut out);
        let idle = self.blobs.sweep(now.mono_ms);
        self.parts.rubbish.blobs(idle);
        self.commit(now, out, Leaving::default());
    }

    /// Tells the core whether the store has room, when that is news.
    fn tell_room(&mut self, now: Now, out: &mut Out) {
        let room = *self.parts.room.borrow();
        // What was looked at before an append failed knows less than that.
        if self.full_since.is_some_and(|since| room.looked_at < since) {
            return;
        }
        if room.is_full != self.full_since.is_some() {
            if room.is_full {
                warn!("the store is full: new work is refused until there is room");
            } else {
                tracing::info!("the store has room again");
            }
            self.full_since = room.is_full.then_some(room.looked_at);
            self.hub.step(now, Input::Storage { full: room.is_full }, out);
        }
    }

    fn take(&mut self, now: Now, command: Command, out: &mut Out, leaving: &mut Leaving) -> usize {
        match command {
            Command::Open { session, mailbox } => {
                self.mailboxes.insert(session, mailbox);
            }
            Command::Input { input, bytes, output, watch } => {
                trace!(?input, "input");
                if let (true, Input::Submit { session, request, .. }) = (watch, &*input) {
                    leaving.watching.push((*session, *request));
                }
                let attempt = match &*input {
                    Input::Ended { ended, .. } => ended.attempt,
                    _ => AttemptId::default(),
                };
                let before = out.records.len();
                self.input(now, *input, out);
                if let Some(small) = output {
                    attach(&mut out.records[before..], attempt, small);
                }
                return bytes;
            }
            Command::BlobStored { hash } => self.blobs.stored(hash, now.mono_ms),
            Command::BlobsFound { hashes } => {
                hashes.into_iter().for_each(|hash| self.blobs.stored(hash, now.mono_ms));
            }
            Command::BlobsGone { hashes } => self.blobs.gone(&hashes),
            Command::BlobsMissing { session, request, hashes } => {
                let hashes = self.blobs.missing(&hashes, now.mono_ms);
                self.mail(session, Mail::BlobsMissing { request, hashes });
            }
            Command::Running { answer } => {
                let _ = answer.send(self.hub.running());
            }
            Command::Flush { done } => leaving.flushed.push(done),
        }
        0
    }

    fn input(&mut self, now: Now, input: Input, out: &mut Out) {
        // Checked here and not in the session: between its check and this moment another job's end may have removed it.
        if let Some((session, request, spec)) = self.hub.submits(&input)
            && let Some(hash) = self.blobs.first_missing(&spec)
        {
            let refusal = Refusal::new(RefusalCode::BlobMissing).with("hash", hash);
            return out.effects.push(Effect::Refuse { session, request, refusal });
        }
        if let Input::SessionClosed { session, .. } = &input {
            self.mailboxes.remove(session);
        }
        self.hub.step(now, input, out);
    }

    /// Answers what needs no record, at once and from what is durable.
    fn read(&mut self, read: Read) {
        match read {
            Read::Client { session, secret, mailbox } => {
                self.mailboxes.insert(session, mailbox);
                let mut out = Out::default();
                // A key that is not durable yet is known to nobody; one whose end is not durable yet is refused early.
                self.hub.step(self.now(), Input::ClientOpened { session, secret }, &mut out);
                out.effects.into_iter().for_each(|effect| self.carry_out(effect, &[]));
            }
            Read::Query { session, request, query } => {
                let effect = self.hub.read(&self.published.durable, session, request, &query);
                self.carry_out(effect, &[]);
            }
        }
    }

    fn commit(&mut self, now: Now, out: Out, mut leaving: Leaving) {
        self.blobs.follow(&out.records, self.hub.durable(), now.mono_ms);
        leaving.effects = out.effects;
        let batches = encode_batches(&out.records);
        leaving.records = out.records;
        if batches.is_empty() && leaving.effects.is_empty() && leaving.flushed.is_empty() {
            return;
        }
        // Queued before anything is appended: whatever the store says finds it there.
        self.waiting.push_back((Seq(self.asked.0 + batches.len() as u64), leaving));
        for batch in batches {
            self.append(batch);
        }
        self.leave_durable(self.durable());
    }

    fn append(&mut self, batch: Vec<u8>) {
        let size = batch.len() as u64;
        self.published.since_snapshot_bytes = self.published.since_snapshot_bytes.saturating_add(size);
        let news = self.news_sender.clone();
        let expected = self.asked;
        self.asked = expected.next();
        self.under_way += 1;
        let done = move |end| drop(news.send(News::Appended(end)));
        // The receiver lives as long as the driver.
        self.parts.store.journal.append(expected, self.parts.term, batch, Box::new(done));
    }

    /// The last sequence below which everything is durable: with nothing under way, all that was asked for.
    fn durable(&self) -> Seq {
        if self.under_way == 0 && self.failed.is_none() { self.asked } else { self.published.at }
    }

    fn appended(&mut self, end: Result<Seq, AppendError>) {
        self.under_way -= 1;
        match end {
            Ok(seq) => self.leave_durable(seq),
            // The first failure says why; those of the batches behind it follow from it.
            Err(error) => {
                self.failed.get_or_insert(error);
            }
        }
        if self.under_way == 0 && self.failed.is_some() {
            self.recover();
        }
    }

    /// A snapshot is written beside, from the published state, once the catalog holds what it leaves out.
    fn snapshot_if_due(&mut self) {
        let due = self.snapshot_every_bytes.max(self.snapshot_bytes);
        if self.is_snapshotting || self.published.since_snapshot_bytes < due {
            return;
        }
        self.is_snapshotting = true;
        self.published.since_snapshot_bytes = 0;
        let (durable, at) = (self.published.durable.clone(), self.published.at);
        let (store, follower, news) = (self.parts.store.clone(), self.parts.follower.clone(), self.news_sender.clone());
        tokio::spawn(async move {
            let mut bytes = None;
            if follower.applied(at).await {
                let written = tokio::task::spawn_blocking(move || write_snapshot(&store, at, &durable)).await;
                // A panic was in the log when it happened.
                bytes = written.ok().flatten();
            }
            drop(news.send(News::Snapshotted(bytes)));
        });
    }
}

/// Says how large the snapshot is that was written.
fn write_snapshot(store: &Store, at: Seq, durable: &essaim_core::hub::Durable) -> Option<u64> {
    let bytes = essaim_proto::encode(durable);
    let size = bytes.len() as u64;
    if let Err(error) = store.journal.snapshot(at, bytes) {
        warn!(%error, "the snapshot failed; the journal keeps growing");
        return None;
    }
    if let Err(error) = store.journal.trim(at.next()) {
        warn!(%error, "the journal could not be trimmed");
    }
    Some(size)
}

/// Puts what a program printed into the record of its end.
fn attach(records: &mut [Record], ended: AttemptId, small: Small) {
    let mut small = Some(Box::new(SmallOutput { stdout: small.stdout, stderr: small.stderr }));
    for record in records {
        if let Record::TaskEnded { attempt, output, .. } = record
            && *attempt == ended
        {
            *output = small.take();
        }
    }
}

/// The records as rows of the journal, in order: one, unless they exceed what one may have.
fn encode_batches(records: &[Record]) -> Vec<Vec<u8>> {
    if records.is_empty() {
        return Vec::new();
    }
    let batch = encode_batch(records);
    if batch.len() <= essaim_store::limits::BATCH_BYTES_MAX || records.len() == 1 {
        return vec![batch];
    }
    let (first, second) = records.split_at(records.len() / 2);
    [encode_batches(first), encode_batches(second)].concat()
}

fn now(begun: Instant) -> Now {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { mono_ms: begun.elapsed().as_millis() as u64, unix_ms: unix.as_millis() as u64 }
}

#[cfg(test)]
mod tests;
