//! The shell around a worker's decisions: its session to the hub, and the programs that it runs.
//!
//! The binary calls [`run`] once per process; it calls `core` (decisions), `net` (the connection) and `sandbox` (the
//! cage, which runs programs).
//!
//! ```text
//!             orders                        ┌─ attempt ─ folder, fetch, launch ─▶ cage hand ─▶ cage
//!               ▼                           │     └─ output, input  (bytes, straight to the link)
//!   hub ◀─▶ session ── frames ──▶ driver ───┼─ attempt …
//!              └──────── link ──────┘  ▲    ├─ quick  (without files and live input: within the driver)
//!                                      │    └─ probe
//!                                      └───────────────── cage ear ◀───────────────────────── cage
//! ```
//!
//! Always true: one task, the driver, owns the decisions and never waits; programs and their results outlive a lost
//! connection; when `run` has returned, or this process has died, no program of it is alive.
//! Deliberately not here: what runs where (the hub), limits and verdicts (`sandbox`), starting processes of our own (the
//! binary), printing.

mod attempt;
mod cage;
mod driver;
mod error;
mod facts;
mod fetch;
mod folder;
mod foreign;
mod home;
mod input;
mod join;
mod launch;
mod limits;
mod lines;
mod link;
mod output;
mod probe;
mod quick;
mod session;
mod sleep;

pub use cage::NewCage;
pub use error::RunError;
pub use facts::offered_memory;
pub use home::holder;

use attempt::Workshop;
use cage::CageKeeper;
use driver::{Driver, Event, Probes};
use essaim_net::ticket::random;
use essaim_net::{FrameSender, Ticket};
use essaim_proto::{InstanceId, NodeName};
use fetch::Fetcher;
use home::Home;
use join::Passport;
use launch::Surroundings;
use limits::{DRIVER_EVENTS, GOODBYE_TIME};
use session::{Itself, Sessions};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinSet};

/// What a worker needs to begin.
pub struct WorkerConfig {
    /// Its folder: identity, lock and work folders. Made if it is not there; one worker at a time.
    pub home: PathBuf,
    /// A join line; needed when `home` holds no identity of its hub.
    pub ticket: Option<Ticket>,
    /// For a worker on the hub's own machine: the hub's `hub.json`, read before each dial.
    pub hub_file: Option<PathBuf>,
    /// Programs that it runs at once.
    pub slots: u32,
    /// What else its owner offers, and does not.
    pub offer: Offer,
    /// The name that it would like; the hub decides.
    pub name: Option<NodeName>,
    /// The number under which the hub's own `up` started it; none: somebody else did.
    pub local: Option<u32>,
    /// Looks for these languages only.
    pub only: Option<Vec<String>>,
    /// The local address to dial from.
    pub bind: Option<IpAddr>,
    /// The worker's end of the socket to a cage that runs already.
    pub cage: OwnedFd,
    /// Starts another cage when that one died. Called from a thread that may wait.
    pub new_cage: NewCage,
}

/// What the owner of a machine offers besides slots.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Offer {
    /// What he calls it by: jobs may ask for it.
    pub labels: BTreeMap<String, String>,
    /// Memory that programs may reserve, in bytes; 0: nobody has said ([`offered_memory`] tells what is usual).
    pub memory_bytes: u64,
    /// At most so many programs at once; 0: as many as slots.
    pub tasks_max: u32,
    /// Nothing new while others use more than so many percent of its processors; 0: whatever they use.
    pub cpu_percent_max: u32,
}

impl std::fmt::Debug for WorkerConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerConfig").field("home", &self.home).field("slots", &self.slots).finish_non_exhaustive()
    }
}

/// What a worker is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// Run what comes.
    #[default]
    Run,
    /// Finish what is there, take nothing new, then leave.
    Drain,
    /// Kill everything and leave now.
    Stop,
}

/// What a worker tells whoever started it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkerEvent {
    /// The join line was good; the identity is saved.
    Joined {
        /// The name that the hub gave.
        name: NodeName,
    },
    /// The session is open.
    Connected {
        /// The hub's name.
        hub: String,
        /// Where it was reached.
        address: String,
        /// This node's name.
        name: String,
    },
    /// There is no session; programs go on.
    Disconnected {
        /// Why, as a sentence.
        why: String,
        /// When the next try begins.
        retry_in: Duration,
    },
    /// The order to drain was taken.
    Draining,
}

/// Runs a worker until it is told to leave, or cannot go on. Needs a tokio runtime with time and IO. When the future is
/// dropped, its programs are killed too, but the hub hears no goodbye.
///
/// # Errors
/// [`RunError`]. A network that does not work is none: the worker tries for ever.
pub async fn run(
    config: WorkerConfig,
    orders: watch::Receiver<Order>,
    on_event: impl Fn(WorkerEvent) + Send + Sync + 'static,
) -> Result<(), RunError> {
    let home = Home::open(&config.home)?;
    let hub_file = config.hub_file.as_deref();
    let passport = Passport::new(&home.folder, config.ticket, hub_file, config.name, config.bind)?;
    let (driver, events) = mpsc::channel(DRIVER_EVENTS);
    let keeper = CageKeeper::start(config.cage, config.new_cage, driver.clone()).map_err(RunError::Thread)?;
    let (publish, link) = watch::channel(None);
    let (idle, is_idle) = watch::channel(false);
    let workshop = Workshop {
        driver: driver.clone(),
        hand: keeper.hand(),
        fetcher: Fetcher::new(link.clone()),
        link: link.clone(),
        surroundings: Arc::new(Surroundings::of_this_process()),
        work: home.work.clone(),
        rooms: home.rooms.clone(),
    };
    let probes = Probes::new(config.only);
    // A set, because dropping it ends the driver, and with it every task that the driver began.
    let mut driving = JoinSet::new();
    driving.spawn(Driver::new(config.slots, workshop, probes, publish, idle).run(events));

    let on_event = Arc::new(on_event);
    // A set, for the same reason; that it ends is nobody's end.
    let mut watching = JoinSet::new();
    if config.offer.cpu_percent_max > 0 {
        watching.spawn(foreign::watch(config.offer.cpu_percent_max, driver.clone()));
    }
    let itself = Itself {
        machine: home.machine,
        instance: InstanceId(random()),
        local: config.local,
        slots: config.slots,
        offer: config.offer,
    };
    let sessions = Sessions { passport, itself, driver: driver.clone(), on_event: Arc::clone(&on_event), epoch: 0 };
    let mut sessions = Box::pin(sessions.run());
    let left = tokio::select! {
        error = &mut sessions => Err(error),
        leave = leave(orders, is_idle, &driver, &*on_event) => Ok(leave),
        // It ends before we told it to by a panic only, and then nobody knows what is true.
        ended = driving.join_next() => match ended.map(|ended| ended.map_err(JoinError::try_into_panic)) {
            Some(Err(Ok(panic))) => std::panic::resume_unwind(panic),
            _ => Ok(Leave::Stopped),
        },
    };
    let goodbye = say_goodbye(&driver, &link).await;
    // The goodbye goes out when nobody holds the reading half any more.
    drop(sessions);
    finish(goodbye, home, keeper).await;
    left.map(|_| ())
}

/// Why a worker leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leave {
    /// Nothing is left to finish.
    Drained,
    /// It was told to.
    Stopped,
}

/// Passes orders on until one of them, or the end of a drain, means to leave.
async fn leave(
    mut orders: watch::Receiver<Order>,
    mut is_idle: watch::Receiver<bool>,
    driver: &mpsc::Sender<Event>,
    on_event: &impl Fn(WorkerEvent),
) -> Leave {
    let mut is_draining = false;
    loop {
        let order = *orders.borrow_and_update();
        match order {
            Order::Stop => return Leave::Stopped,
            Order::Drain if !is_draining => {
                is_draining = true;
                // The driver lives as long as we do.
                let _ = driver.send(Event::Drain).await;
                on_event(WorkerEvent::Draining);
            }
            Order::Drain | Order::Run => {}
        }
        tokio::select! {
            true = order_changed(&mut orders) => {}
            true = becomes(&mut is_idle) => return Leave::Drained,
            // Nobody can give another order and nothing ends: the last order counts for ever.
            else => std::future::pending().await,
        }
    }
}

async fn order_changed(orders: &mut watch::Receiver<Order>) -> bool {
    orders.changed().await.is_ok()
}

async fn becomes(flag: &mut watch::Receiver<bool>) -> bool {
    flag.wait_for(|is_set| *is_set).await.is_ok()
}

/// Ends the programs and closes the session; gives what is still to be sent.
async fn say_goodbye(
    driver: &mpsc::Sender<Event>,
    link: &watch::Receiver<Option<Arc<link::Link>>>,
) -> Option<FrameSender> {
    // Before the driver goes: it takes the link along.
    let sender = link.borrow().as_ref().map(|link| link.sender.clone());
    let (stopped, is_stopped) = oneshot::channel();
    if driver.send(Event::Stop(stopped)).await.is_ok() {
        // An error: the driver is gone, and so are its programs.
        let _ = is_stopped.await;
    }
    let sender = sender?;
    // Not "done", which is also what a connection says that merely falls shut: the hub shall know that we left.
    sender.close("shutdown");
    Some(sender)
}

/// Last things: the goodbye leaves, the cage ends, nothing stays on the disk.
async fn finish(goodbye: Option<FrameSender>, home: Home, keeper: CageKeeper) {
    if let Some(sender) = goodbye {
        // Who does not hear it in time finds the connection closed.
        let _ = tokio::time::timeout(GOODBYE_TIME, sender.closed()).await;
    }
    keeper.shut_down();
    let removed = tokio::task::spawn_blocking(move || {
        let removed = folder::remove_patiently(&home.work).and(folder::remove_patiently(&home.rooms));
        // Only now may another worker have the folder.
        drop(home);
        removed
    });
    if let Ok(Err(error)) = removed.await {
        // The cage removes what it owns once the last program is dead.
        tracing::warn!(%error, "work folders could not be removed yet");
    }
}
