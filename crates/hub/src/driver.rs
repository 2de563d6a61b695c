//! The driver: one task that owns the hub's state, makes records durable, then lets effects leave.
//!
//! ```text
//!   commands ──▶ batch ──▶ core::Hub::step … ──▶ append(records) ──┐
//!                                                                  ▼ durable up to seq
//!   sessions ◀── effects whose seq is durable, in order ◀── waiting (seq, effects)
//! ```
//!
//! Always true: an effect leaves only when the records of its batch and of all batches before are durable; the driver
//! itself never waits for the store nor for a session (a mailbox that is full ends its session).
//! After a failed append nothing new is taken until all appends under way have ended; then the state is thrown away and
//! replayed: what was not durable is refused by name, all sessions are closed and come back to the true state.
//! Deliberately not here: decisions (`essaim_core::hub`), output and input bytes ([`crate::feeds`] and the sessions).

use crate::blobs::BlobKeeper;
use crate::feeds::{Feed, Feeds};
use crate::handle::{Command, Mail};
use crate::limits::{APPENDS_MAX, BATCH_BYTES_MAX, BATCH_COMMANDS_MAX, SNAPSHOT_EVERY_BYTES, TICK};
use essaim_core::Now;
use essaim_core::hub::{
    Answer, Durable, Effect, Hub, Input, Out, Record, SessionId, ToWorker, decode_batch, encode_batch,
};
use essaim_core::lang::LanguageTable;
use essaim_proto::api::JobEvent;
use essaim_proto::{JobId, Refusal, RefusalCode};
use essaim_store::{AppendError, ReadError, Seq, Store, Term};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot};
use tracing::{error, trace, warn};

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
}

/// The driver's state.
pub(crate) struct Driver {
    hub: Hub,
    table: LanguageTable,
    store: Store,
    term: Term,
    /// The sequence of the last append that was asked for.
    asked: Seq,
    /// The last sequence that is durable.
    durable: Seq,
    /// Appends whose end was not told yet.
    under_way: usize,
    /// Why the state must be replayed, once nothing is under way.
    failed: Option<AppendError>,
    waiting: VecDeque<(Seq, Leaving)>,
    mailboxes: BTreeMap<SessionId, mpsc::Sender<Mail>>,
    feeds: Arc<Feeds>,
    blobs: BlobKeeper,
    since_snapshot_bytes: u64,
    snapshot_every_bytes: u64,
    begun: Instant,
    done_sender: mpsc::UnboundedSender<Result<Seq, AppendError>>,
    done: mpsc::UnboundedReceiver<Result<Seq, AppendError>>,
}

/// What leaves when its batch is durable.
#[derive(Debug, Default)]
struct Leaving {
    effects: Vec<Effect>,
    flushed: Vec<oneshot::Sender<()>>,
}

impl Driver {
    /// A driver on an open store, with the state that its journal holds.
    pub(crate) fn new(
        store: Store,
        term: Term,
        table: LanguageTable,
        feeds: Arc<Feeds>,
    ) -> Result<Driver, ReplayError> {
        let (durable, last) = replay(&store)?;
        let begun = Instant::now();
        // Bounded by APPENDS_MAX and the batches of one commit.
        let (done_sender, done) = mpsc::unbounded_channel();
        let blobs = BlobKeeper::new(store.blobs.clone(), &durable);
        let hub = Hub::new(now(begun), durable, table.clone());
        Ok(Driver {
            hub,
            table,
            store,
            term,
            asked: last,
            durable: last,
            under_way: 0,
            failed: None,
            waiting: VecDeque::new(),
            mailboxes: BTreeMap::new(),
            feeds,
            blobs,
            since_snapshot_bytes: 0,
            snapshot_every_bytes: SNAPSHOT_EVERY_BYTES,
            begun,
            done_sender,
            done,
        })
    }

    /// Runs until all handles are gone.
    ///
    /// # Errors
    /// When a store that did not take a record cannot be replayed: nothing can be promised any more.
    pub(crate) async fn run(mut self, mut commands: mpsc::Receiver<Command>) -> Result<(), ReplayError> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let is_ready = self.is_ready();
            tokio::select! {
                // The tick before the commands: they may never end.
                biased;
                Some(end) = self.done.recv() => self.appended(end)?,
                _ = tick.tick(), if is_ready => self.tick()?,
                command = commands.recv(), if is_ready => match command {
                    Some(first) => self.batch(first, &mut commands)?,
                    None => return Ok(()),
                },
            }
        }
    }

    /// May something new be decided? Not on a state that will be thrown away, nor while the store is far behind, nor when
    /// a snapshot is due: it is taken when everything is durable.
    fn is_ready(&self) -> bool {
        let snapshot_is_due = self.since_snapshot_bytes >= self.snapshot_every_bytes;
        self.failed.is_none() && self.under_way < if snapshot_is_due { 1 } else { APPENDS_MAX }
    }

    fn now(&self) -> Now {
        now(self.begun)
    }

    fn batch(&mut self, first: Command, commands: &mut mpsc::Receiver<Command>) -> Result<(), ReplayError> {
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
        self.commit(now, out, leaving)
    }

    fn tick(&mut self) -> Result<(), ReplayError> {
        let now = self.now();
        let mut out = Out::default();
        self.hub.step(now, Input::Tick, &mut out);
        self.blobs.sweep(now.mono_ms);
        self.commit(now, out, Leaving::default())
    }

    fn take(&mut self, now: Now, command: Command, out: &mut Out, leaving: &mut Leaving) -> usize {
        match command {
            Command::Open { session, mailbox } => {
                self.mailboxes.insert(session, mailbox);
            }
            Command::Input { input, bytes } => {
                trace!(?input, "input");
                self.input(now, *input, out);
                return bytes;
            }
            Command::BlobStored { hash } => self.blobs.stored(hash, now.mono_ms),
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
        if let Input::Submit { session, request, spec, .. } = &input
            && let Some(hash) = self.blobs.first_missing(spec)
        {
            let refusal = Refusal::new(RefusalCode::BlobMissing).with("hash", hash);
            out.effects.push(Effect::Refuse { session: *session, request: *request, refusal });
            return;
        }
        if let Input::SessionClosed { session, .. } = &input {
            self.mailboxes.remove(session);
        }
        self.hub.step(now, input, out);
    }

    fn commit(&mut self, now: Now, out: Out, mut leaving: Leaving) -> Result<(), ReplayError> {
        self.blobs.follow(&out.records, now.mono_ms);
        leaving.effects = out.effects;
        let batches = encode_batches(&out.records);
        if batches.is_empty() && leaving.effects.is_empty() && leaving.flushed.is_empty() {
            return Ok(());
        }
        // Queued before anything is appended: whatever the store says finds it there.
        self.waiting.push_back((Seq(self.asked.0 + batches.len() as u64), leaving));
        for batch in batches {
            self.append(batch);
        }
        self.leave_durable();
        // A store that answers on the spot needs no round through the loop.
        while let Ok(end) = self.done.try_recv() {
            self.appended(end)?;
        }
        Ok(())
    }

    fn append(&mut self, batch: Vec<u8>) {
        self.since_snapshot_bytes += batch.len() as u64;
        let done = self.done_sender.clone();
        let expected = self.asked;
        self.asked = expected.next();
        self.under_way += 1;
        // The receiver lives as long as the driver.
        self.store.journal.append(expected, self.term, batch, Box::new(move |end| drop(done.send(end))));
    }

    fn appended(&mut self, end: Result<Seq, AppendError>) -> Result<(), ReplayError> {
        self.under_way -= 1;
        match end {
            Ok(seq) => {
                self.durable = self.durable.max(seq);
                self.leave_durable();
            }
            // The first failure says why; those of the batches behind it follow from it.
            Err(error) => {
                self.failed.get_or_insert(error);
            }
        }
        if self.under_way > 0 {
            return Ok(());
        }
        match self.failed.take() {
            Some(cause) => self.start_over(&cause)?,
            None if self.since_snapshot_bytes >= self.snapshot_every_bytes => self.snapshot(),
            None => {}
        }
        Ok(())
    }

    /// Only while nothing is under way: the state is then what the journal's records up to `durable` say.
    fn snapshot(&mut self) {
        self.since_snapshot_bytes = 0;
        let bytes = essaim_proto::encode(self.hub.durable());
        if let Err(error) = self.store.journal.snapshot(self.durable, bytes) {
            return warn!(%error, "the snapshot failed; the journal keeps growing");
        }
        if let Err(error) = self.store.journal.trim(self.durable.next()) {
            warn!(%error, "the journal could not be trimmed");
        }
    }

    /// Throws the state away and takes up what the store really holds.
    fn start_over(&mut self, cause: &AppendError) -> Result<(), ReplayError> {
        error!(error = %cause, "the store did not take a record; what was not durable is refused");
        let is_full = matches!(cause, AppendError::Full { .. });
        let code = if is_full { RefusalCode::StoreFull } else { RefusalCode::StoreError };
        for (_, leaving) in std::mem::take(&mut self.waiting) {
            for (session, request) in leaving.effects.iter().filter_map(asked_by) {
                self.mail(session, Mail::Refused { request, refusal: code.into() });
            }
        }
        for (_, mailbox) in std::mem::take(&mut self.mailboxes) {
            // One that is full ends its session by being dropped.
            let _ = mailbox.try_send(Mail::Close { reason: "store_error" });
        }
        let (durable, last) = replay(&self.store)?;
        (self.asked, self.durable) = (last, last);
        let now = self.now();
        self.blobs.rebuild(&durable, now.mono_ms);
        self.hub = Hub::new(now, durable, self.table.clone());
        if is_full {
            // What the journal holds twice makes room for what comes.
            self.snapshot();
        }
        Ok(())
    }

    fn leave_durable(&mut self) {
        while self.waiting.front().is_some_and(|(needs, _)| *needs <= self.durable) {
            let Some((_, leaving)) = self.waiting.pop_front() else { return };
            for effect in leaving.effects {
                trace!(?effect, "effect");
                self.carry_out(effect);
            }
            for flushed in leaving.flushed {
                let _ = flushed.send(());
            }
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Admit { session, name, role } => self.mail(session, Mail::Admitted { name, role }),
            Effect::Answer { session, request, answer } => {
                let feed = self.watched(&answer);
                self.mail(session, Mail::Answer { request, answer, feed });
            }
            Effect::Refuse { session, request, refusal } => self.mail(session, Mail::Refused { request, refusal }),
            Effect::GrantJoin { session, name, .. } => self.mail(session, Mail::GrantJoin { name }),
            Effect::Tell { session, message } => {
                let feeds = match &message {
                    ToWorker::Start(start) => vec![self.feed(start.attempt.job)],
                    ToWorker::Registered(registered) => {
                        registered.keep.iter().map(|kept| self.feed(kept.attempt.job)).collect()
                    }
                    _ => Vec::new(),
                };
                self.mail(session, Mail::Tell { message, feeds });
            }
            Effect::Publish { event } => {
                let feed = if event.last { self.feeds.end(event.job) } else { Some(self.feed(event.job)) };
                if let Some(feed) = feed {
                    feed.event.send_replace(Some(event));
                }
            }
            // Nobody can ask for them yet.
            Effect::Changed { .. } => {}
            Effect::Close { session, reason } => {
                self.mail(session, Mail::Close { reason });
                self.mailboxes.remove(&session);
            }
            Effect::Forget { job } => self.store.outputs.drop_job(job),
        }
    }

    /// The feed of a job whose end has not left yet.
    fn feed(&self, job: JobId) -> Arc<Feed> {
        self.feeds.of(job, self.hub.durable().jobs.get(&job).map(|known| known.spec.as_ref()))
    }

    /// The feed of the job that an answer lets its session watch. None when the job is over: nothing will follow.
    fn watched(&self, answer: &Answer) -> Option<Arc<Feed>> {
        match answer {
            // Its first event follows.
            Answer::Submitted { job, repeated: false } => Some(self.feed(*job)),
            Answer::Watching(view) if !view.state.is_over() => {
                let feed = self.feed(view.job);
                // Reasons change without an event: who begins to watch sees the present one.
                let task = view.tasks.first().cloned();
                feed.event.send_replace(Some(JobEvent { job: view.job, state: view.state, task, last: false }));
                Some(feed)
            }
            _ => None,
        }
    }

    /// Never waits: a session that does not empty its mailbox is cut off by closing it.
    fn mail(&mut self, session: SessionId, mail: Mail) {
        let Some(mailbox) = self.mailboxes.get(&session) else { return };
        if let Err(error) = mailbox.try_send(mail) {
            if matches!(error, mpsc::error::TrySendError::Full(_)) {
                warn!(session = session.0, "a session does not keep up and is closed");
            }
            self.mailboxes.remove(&session);
        }
    }
}

/// Who waits for an effect, under which request.
fn asked_by(effect: &Effect) -> Option<(SessionId, u64)> {
    match effect {
        Effect::Answer { session, request, .. }
        | Effect::Refuse { session, request, .. }
        | Effect::GrantJoin { session, request, .. } => Some((*session, *request)),
        Effect::Admit { session, .. } => Some((*session, 0)),
        _ => None,
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

/// The durable part as the store holds it: the latest snapshot and all batches after it.
fn replay(store: &Store) -> Result<(Durable, Seq), ReplayError> {
    let (mut last, mut durable) = match store.journal.latest_snapshot()? {
        None => (Seq(0), Durable::default()),
        Some((seq, bytes)) => {
            let durable = essaim_proto::decode(&bytes).map_err(|source| ReplayError::Row { seq: seq.0, source })?;
            (seq, durable)
        }
    };
    loop {
        let batches = store.journal.read(last.next(), essaim_store::limits::READ_BYTES_MAX)?;
        if batches.is_empty() {
            return Ok((durable, last));
        }
        for (seq, bytes) in batches {
            let records = decode_batch(&bytes).map_err(|source| ReplayError::Row { seq: seq.0, source })?;
            records.iter().for_each(|record| durable.apply(record));
            last = seq;
        }
    }
}

#[cfg(test)]
mod tests;
