//! The house-keeping of the store, on a thread of its own: is there room, what is old and goes, what nobody needs.
//!
//! It runs as long as the hub; the driver reads the latest word about room and hands over blobs to remove, so that nothing
//! here ever holds the driver up. Always true: what is removed is said in one line with counts; a step that fails is said
//! and tried again the next time.
//! Deliberately not here: what to refuse without room (the core), which blobs are needed ([`crate::blobs`]).

use crate::driver::Published;
use crate::handle::{Command, Handle};
use crate::hub::Keep;
use crate::limits::{EXPIRE_AT_ONCE, JOBS_KEPT_MAX, OUTPUT_KEPT_PERCENT, RETENTION_EVERY, TICK};
use essaim_proto::BlobHash;
use essaim_store::{AppendError, OutputError, Store};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;
use tracing::{info, warn};

const DAY_MS: u64 = 24 * 3_600_000;

/// The latest look at the store.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// Is there none for new work?
    pub(crate) is_full: bool,
    /// When the look began.
    pub(crate) looked_at: Instant,
}

/// Takes what is to be removed.
#[derive(Debug, Clone)]
pub(crate) struct Rubbish(Sender<Word>);

impl Rubbish {
    /// Nobody needs these blobs. Never waits; the driver hears when they are gone.
    pub(crate) fn blobs(&self, hashes: Vec<BlobHash>) {
        if !hashes.is_empty() {
            // A keeper that has ended leaves them to the next start.
            let _ = self.0.send(Word::Remove(hashes));
        }
    }
}

enum Word {
    Remove(Vec<BlobHash>),
    End,
}

/// The thread, to be waited for at the end.
#[derive(Debug)]
pub(crate) struct KeeperThread {
    words: Sender<Word>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl KeeperThread {
    /// Ends it and waits for that.
    pub(crate) fn stop(mut self) {
        let _ = self.words.send(Word::End);
        if let Some(thread) = self.thread.take() {
            // A panic was in the log when it happened.
            let _ = thread.join();
        }
    }
}

impl Drop for KeeperThread {
    fn drop(&mut self) {
        let _ = self.words.send(Word::End);
    }
}

/// What the driver needs of a keeper, before there is a driver.
pub(crate) struct Keeper {
    store: Store,
    keep: Keep,
    room: watch::Sender<Room>,
    words: Receiver<Word>,
    sender: Sender<Word>,
}

impl Keeper {
    /// A keeper of a store that keeps so much of what is over.
    pub(crate) fn new(store: Store, keep: Keep) -> Keeper {
        let (sender, words) = channel();
        let room = watch::Sender::new(look(&store));
        Keeper { store, keep, room, words, sender }
    }

    /// The driver's ends.
    pub(crate) fn ends(&self) -> (watch::Receiver<Room>, Rubbish) {
        (self.room.subscribe(), Rubbish(self.sender.clone()))
    }

    /// Starts the thread. It looks for what is old at once.
    pub(crate) fn start(self, handle: Handle) -> std::io::Result<KeeperThread> {
        let words = self.sender.clone();
        let thread = std::thread::Builder::new().name("keeper".into()).spawn(move || self.run(&handle))?;
        Ok(KeeperThread { words, thread: Some(thread) })
    }

    fn run(self, handle: &Handle) {
        let Keeper { store, keep, room, words, sender } = self;
        drop(sender);
        // Those that no job needs any more go like others.
        match store.blobs.all() {
            Ok(hashes) => handle.blocking_command(Command::BlobsFound { hashes }),
            Err(error) => {
                warn!(%error, "the files that jobs once had cannot be listed; they stay until the next start")
            }
        }
        let mut retention_due = Instant::now();
        loop {
            match words.recv_timeout(TICK) {
                Ok(Word::Remove(hashes)) => remove(&store, handle, hashes),
                Ok(Word::End) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
            room.send_replace(look(&store));
            if Instant::now() >= retention_due {
                let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                retain(&store, unix.as_millis() as u64, JOBS_KEPT_MAX, keep);
                retention_due = Instant::now() + RETENTION_EVERY;
            }
        }
    }
}

fn look(store: &Store) -> Room {
    let looked_at = Instant::now();
    let is_full = match store.journal.room() {
        Ok(()) => false,
        Err(AppendError::Full(_)) => true,
        Err(error) => {
            // Appends will tell what is the matter.
            warn!(%error, "it cannot be seen whether the store has room");
            false
        }
    };
    Room { is_full, looked_at }
}

fn remove(store: &Store, handle: &Handle, hashes: Vec<BlobHash>) {
    for hash in &hashes {
        if let Err(error) = store.blobs.remove(*hash) {
            warn!(%error, "an old blob could not be removed");
        }
    }
    handle.blocking_command(Command::BlobsGone { hashes });
}

/// Drops output that the journal knows nothing of, before its jobs' numbers are given again: what is there already would
/// be taken for what the new programs print. There is such output when the journal is older, as after a restore.
pub(crate) fn drop_unknown(store: &Store, published: &Published) -> Result<(), OutputError> {
    let before = store.outputs.used_bytes();
    let attempts = store.outputs.drop_unknown(published.last_job(), &published.newest_attempts())?;
    if attempts > 0 {
        let freed = before.saturating_sub(store.outputs.used_bytes());
        warn!(
            attempts,
            freed_bytes = freed,
            "output that is newer than the journal was dropped: nothing else is known of its jobs"
        );
    }
    Ok(())
}

/// Removes jobs that ended long ago, with their output, and output beyond its limit, oldest first.
pub(crate) fn retain(store: &Store, now_unix_ms: u64, jobs_max: usize, keep: Keep) {
    let ended_before_ms = now_unix_ms.saturating_sub(u64::from(keep.jobs_days) * DAY_MS);
    let mut expired = 0;
    loop {
        match store.catalog.expire(ended_before_ms, jobs_max, EXPIRE_AT_ONCE) {
            Ok(jobs) => {
                jobs.iter().for_each(|job| store.outputs.drop_job(*job));
                expired += jobs.len();
                if jobs.len() < EXPIRE_AT_ONCE {
                    break;
                }
            }
            Err(error) => {
                warn!(%error, "old jobs could not be removed");
                break;
            }
        }
    }
    if expired > 0 {
        info!(jobs = expired, "jobs that ended long ago were removed with their output");
    }
    let wanted = keep.output_bytes / 100 * OUTPUT_KEPT_PERCENT;
    let used = store.outputs.used_bytes();
    if used > wanted {
        let jobs = store.outputs.drop_oldest(wanted);
        let freed = used.saturating_sub(store.outputs.used_bytes());
        info!(jobs = jobs.len(), freed_bytes = freed, "the oldest output was dropped to make room");
    }
}
