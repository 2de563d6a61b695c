//! The worker's cage: who asks it, who hears it, and a new one when it died.
//!
//! ```text
//!   attempts, driver ── CageHand ─▶ [hand thread] ── requests ──▶ cage
//!   driver ── start_all ──────────────────────────────────────▶  cage
//!   driver ◀── CageNews ────────── [ear, a task] ◀── events ────  cage     it died: Died, then a new one
//! ```
//!
//! Always true: requests reach the cage in the order in which they were made (a start may be early); every event of a cage comes before the
//! news of its death, and that before any event of the next one; folders stay owned over a change of cages.
//! Deliberately not here: starting the cage's process (the binary's `supervise`, through `new_cage`), and what an event
//! means for an attempt.

use crate::limits::{CAGE_PAUSE, CAGE_REQUESTS, CAGE_WAIT};
use essaim_sandbox::{Cage, CageError, Capture, Event, Order, ProgramId, Start, Stdio3};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

/// Starts a new cage process and gives the worker's end of its socket.
pub type NewCage = Box<dyn Fn() -> io::Result<OwnedFd> + Send + Sync>;

/// What the ear hears.
#[derive(Debug)]
pub(crate) enum CageNews {
    /// The cage said this at once.
    Events(Vec<Event>),
    /// The cage is gone, and with it every program that it had started.
    Died {
        /// Which cage, from 1.
        generation: u64,
    },
}

/// One request to the cage.
#[derive(Debug)]
enum Request {
    Own(PathBuf, oneshot::Sender<Result<(), CageError>>),
    Disown(PathBuf),
    Start(Box<Start>, Streams, oneshot::Sender<Result<u64, CageError>>),
    Kill(ProgramId),
}

/// What a program has as its streams.
#[derive(Debug)]
pub(crate) enum Streams {
    /// These.
    Given(Stdio3),
    /// Nothing to read; what it prints comes with the cage's events.
    Captured(Capture),
}

/// Asks the cage. Never waits for it, but where an answer is awaited.
#[derive(Clone)]
pub(crate) struct CageHand {
    requests: mpsc::Sender<Request>,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for CageHand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CageHand").finish_non_exhaustive()
    }
}

/// Keeps a cage alive; dropping it ends the cage and all its programs.
pub(crate) struct CageKeeper {
    shared: Arc<Shared>,
    hand: CageHand,
}

struct Shared {
    current: Mutex<Option<Current>>,
    /// There is a new cage, or there will be none any more.
    changed: Condvar,
    owned: Mutex<BTreeSet<PathBuf>>,
    is_stopping: AtomicBool,
}

#[derive(Clone)]
struct Current {
    generation: u64,
    cage: Arc<Cage>,
}

impl CageKeeper {
    /// Takes the first cage's socket, starts the hand's thread and the ear. What the cages say goes into `news`. Within a
    /// runtime.
    ///
    /// # Errors
    /// The system's, when it cannot start a thread.
    pub(crate) fn start<N>(socket: OwnedFd, new_cage: NewCage, news: mpsc::Sender<N>) -> io::Result<CageKeeper>
    where
        N: From<CageNews> + Send + 'static,
    {
        let current = Current { generation: 1, cage: Arc::new(Cage::new(socket)) };
        let shared = Arc::new(Shared {
            current: Mutex::new(Some(current)),
            changed: Condvar::new(),
            owned: Mutex::default(),
            is_stopping: AtomicBool::new(false),
        });
        let (requests, waiting) = mpsc::channel(CAGE_REQUESTS);
        // Made before the thread: should it fail to start, this one's drop ends the cage.
        let hand = CageHand { requests, shared: Arc::clone(&shared) };
        let keeper = CageKeeper { shared: Arc::clone(&shared), hand };
        let for_hand = Arc::clone(&shared);
        std::thread::Builder::new().name("cage-hand".to_owned()).spawn(move || serve(&for_hand, waiting))?;
        tokio::spawn(listen(shared, new_cage, news));
        Ok(keeper)
    }

    /// The way to ask.
    pub(crate) fn hand(&self) -> CageHand {
        self.hand.clone()
    }

    /// Ends the cage: it kills every program, removes the owned folders and exits. No new one is started.
    pub(crate) fn shut_down(&self) {
        self.shared.is_stopping.store(true, Ordering::SeqCst);
        self.shared.changed.notify_all();
        if let Some(current) = self.shared.current() {
            current.cage.shut_down();
        }
    }
}

impl Drop for CageKeeper {
    fn drop(&mut self) {
        self.shut_down();
    }
}

impl CageHand {
    /// The cage removes `path` when this worker is gone.
    ///
    /// # Errors
    /// As [`Cage::own`]; after `Gone` the next cage owns it.
    pub(crate) async fn own(&self, path: PathBuf) -> Result<(), CageError> {
        let (answer, answered) = oneshot::channel();
        self.requests.send(Request::Own(path, answer)).await.map_err(|_| CageError::Gone)?;
        answered.await.unwrap_or(Err(CageError::Gone))
    }

    /// Takes back [`CageHand::own`].
    pub(crate) async fn disown(&self, path: PathBuf) {
        // Without a cage nobody owns anything.
        let _ = self.requests.send(Request::Disown(path)).await;
    }

    /// Starts a program; gives the number of the cage that was asked.
    ///
    /// # Errors
    /// As [`Cage::start`].
    pub(crate) async fn start(&self, start: Start, streams: Streams) -> Result<u64, CageError> {
        let (answer, answered) = oneshot::channel();
        let request = Request::Start(Box::new(start), streams, answer);
        self.requests.send(request).await.map_err(|_| CageError::Gone)?;
        answered.await.unwrap_or(Err(CageError::Gone))
    }

    /// Starts captured programs, for who must not wait; gives the number of the cage that was asked, and how many it took.
    /// For the others, [`CageHand::start`] may have more luck.
    pub(crate) fn start_all(&self, orders: &[Order]) -> (u64, usize) {
        let Some(Current { generation, cage }) = self.shared.current() else { return (0, 0) };
        let (sent, error) = cage.try_start_all(orders);
        if let Some(error) = error {
            tracing::debug!(%error, sent, of = orders.len(), "the cage did not take all programs");
        }
        (generation, sent)
    }

    /// Kills a program's tree; its end follows.
    pub(crate) async fn kill(&self, id: ProgramId) {
        // Without a cage it is dead.
        let _ = self.requests.send(Request::Kill(id)).await;
    }

    /// Kills a program's tree, for who must not wait.
    pub(crate) fn kill_now(&self, id: ProgramId) {
        if self.requests.try_send(Request::Kill(id)).is_err() {
            tracing::error!(program = id, "the cage has too many requests, or is gone");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Option<Current>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn owned(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        self.owned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> Option<Current> {
        self.lock().clone()
    }

    /// The current cage, or the next one: between two of them a program waits a moment and does not fail.
    fn current_or_next(&self) -> Option<Current> {
        let is_needed = |current: &mut Option<Current>| current.is_none() && !self.is_stopping();
        let waited = self.changed.wait_timeout_while(self.lock(), CAGE_WAIT, is_needed);
        waited.unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::SeqCst)
    }

    /// Makes `socket` the current cage, with the folders that the one before owned.
    fn install(&self, generation: u64, socket: OwnedFd) {
        let cage = Arc::new(Cage::new(socket));
        let owned = self.owned();
        for path in owned.iter() {
            if let Err(error) = cage.own(path) {
                tracing::warn!(folder = %path.display(), %error, "the new cage does not own a folder");
            }
        }
        *self.lock() = Some(Current { generation, cage: Arc::clone(&cage) });
        self.changed.notify_all();
        drop(owned);
        // An order to stop that came meanwhile has found no cage.
        if self.is_stopping() {
            cage.shut_down();
        }
    }
}

/// The hand thread: one request after the other.
fn serve(shared: &Shared, mut requests: mpsc::Receiver<Request>) {
    while let Some(request) = requests.blocking_recv() {
        // Noted before the cage is looked up: a cage that comes in between has seen the note.
        if let Request::Own(path, _) = &request {
            shared.owned().insert(path.clone());
        }
        let current = match &request {
            Request::Start(..) => shared.current_or_next(),
            _ => shared.current(),
        };
        match request {
            Request::Own(path, answer) => {
                let owned = current.map_or(Err(CageError::Gone), |current| current.cage.own(&path));
                // Who asked may have been dropped.
                let _ = answer.send(owned);
            }
            Request::Disown(path) => {
                shared.owned().remove(&path);
                log(current.map(|current| current.cage.disown(&path)));
            }
            Request::Start(start, streams, answer) => {
                let ask = |current: Current| {
                    let asked = match streams {
                        Streams::Given(stdio) => current.cage.start(*start, stdio),
                        Streams::Captured(capture) => current.cage.start_captured(&start, capture),
                    };
                    asked.map(|()| current.generation)
                };
                let asked = current.map_or(Err(CageError::Gone), ask);
                let _ = answer.send(asked);
            }
            Request::Kill(id) => log(current.map(|current| current.cage.kill(id))),
        }
    }
}

fn log(asked: Option<Result<(), CageError>>) {
    if let Some(Err(error)) = asked {
        // A dead cage needs no kill and owns no folder; the ear tells everybody.
        tracing::debug!(%error, "the cage was not told");
    }
}

/// The ear: one cage after the other. A task and no thread, so that the driver's answer to a word of the cage begins
/// where the word was read.
async fn listen<N: From<CageNews>>(shared: Arc<Shared>, new_cage: NewCage, news: mpsc::Sender<N>) {
    let new_cage = Arc::new(new_cage);
    while let Some(Current { generation, cage }) = shared.current() {
        if hear(&cage, &news).await.is_err() {
            cage.shut_down();
            return;
        }
        *shared.lock() = None;
        if shared.is_stopping() || news.send(CageNews::Died { generation }.into()).await.is_err() {
            return;
        }
        tracing::error!("the cage died with all its programs; a new one is started");
        let (for_new, new_cage) = (Arc::clone(&shared), Arc::clone(&new_cage));
        let installed = tokio::task::spawn_blocking(move || {
            let socket = replace(&for_new, &new_cage);
            socket.map(|socket| for_new.install(generation + 1, socket))
        });
        if !matches!(installed.await, Ok(Some(()))) {
            return;
        }
    }
}

/// A cage's socket, for the runtime to watch.
struct Ear(Arc<Cage>);

impl AsRawFd for Ear {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

#[expect(
    deprecated,
    reason = "its successor is unsafe, to promise what an ear keeps: one descriptor, open until it ends"
)]
fn watched(ear: Ear) -> io::Result<AsyncFd<Ear>> {
    AsyncFd::with_interest(ear, Interest::READABLE)
}

/// Passes on what one cage says until it is gone. An error: nobody listens any more.
async fn hear<N: From<CageNews>>(cage: &Arc<Cage>, news: &mpsc::Sender<N>) -> Result<(), ()> {
    let broken = |error: &dyn std::fmt::Display| {
        tracing::error!(%error, "the cage cannot be understood and is ended");
        cage.shut_down();
        Ok(())
    };
    let ear = match watched(Ear(Arc::clone(cage))) {
        Ok(ear) => ear,
        Err(error) => return broken(&error),
    };
    loop {
        let mut readable = match ear.readable().await {
            Ok(readable) => readable,
            Err(error) => return broken(&error),
        };
        match cage.try_next_events() {
            Ok(Some(events)) => news.send(CageNews::Events(events).into()).await.map_err(|_| ())?,
            Ok(None) => return Ok(()),
            Err(CageError::Busy) => readable.clear_ready(),
            Err(error) => return broken(&error),
        }
    }
}

/// A new cage, tried until there is one or the worker stops.
fn replace(shared: &Shared, new_cage: &NewCage) -> Option<OwnedFd> {
    while !shared.is_stopping() {
        match new_cage() {
            Ok(socket) => return Some(socket),
            Err(error) => tracing::error!(%error, "a new cage cannot be started, another try follows"),
        }
        std::thread::sleep(CAGE_PAUSE);
    }
    None
}
