//! Starting and stopping a hub, and what its sessions share.
//!
//! The binary calls [`RunningHub::start`]. Always true: one hub per data folder (a lock says so); `hub.json` names what
//! was bound before anybody is told that the hub is ready, and goes with the hub; the admin key is in a file that only
//! its user can read; when a hub has stopped or could not start, nothing of it is left open.
//! Deliberately not here: doors ([`crate::doors`]), sessions ([`crate::client`], [`crate::worker`]), supervision of local
//! workers (the binary).

use crate::catalog::{Applier, Follower, FollowerThread};
use crate::changes::Changes;
use crate::doors::Doors;
use crate::driver::{Driver, Parts, ReplayError, catch_up};
use crate::feeds::Feeds;
use crate::handle::{Handle, Queues};
use crate::keeper::{Keeper, KeeperThread, drop_unknown};
use crate::limits::{GOODBYE_TIMEOUT, JOBS_KEPT_DAYS, STORE_FREE_POLL, STORE_FREE_TIMEOUT};
use crate::notices::{Due, Poster};
use crate::past::Past;
use crate::rates::Rates;
use essaim_core::hub::{Input, LocalPlan, Rules, Url};
use essaim_core::lang::LanguageTable;
use essaim_net::private_file::{PrivateFileError, read_private, write_private};
use essaim_net::ticket::{new_secret, secret_hash};
use essaim_net::{Authority, AuthorityError, BindError, HubFile, Ticket, TicketKind};
use essaim_proto::hello::{Role, Secret};
use essaim_proto::id::AuthorityHash;
use essaim_proto::{JobId, NodeName};
use essaim_store::{LeadError, OpenError, OutputError, Store, StoreLimits, Term};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{error, info};

/// The key that the hub's own user finds in the data folder.
const ADMIN_KEY_FILE: &str = "admin.key";
/// Its name.
const ADMIN_KEY_NAME: &str = "admin";
/// Held while a hub runs on the folder.
const LOCK_FILE: &str = "hub.lock";
/// Where the store is in the data folder.
const STORE_FOLDER: &str = "store";
/// Who leads a store that one hub alone uses: always the same, whatever the hub is called.
const LEADER: &str = "hub";

/// Where a hub keeps what it must not forget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeping {
    /// In its data folder: the next hub on the folder goes on with it.
    Folder,
    /// Nowhere: it is forgotten with the process.
    Memory,
}

/// How much of what is over is kept; the oldest goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Finished jobs, for so many days.
    pub jobs_days: u32,
    /// Output of all jobs, in bytes.
    pub output_bytes: u64,
}

impl Default for Keep {
    fn default() -> Keep {
        Keep { jobs_days: JOBS_KEPT_DAYS, output_bytes: StoreLimits::default().output_bytes }
    }
}

/// What a hub needs to start.
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// Its data folder; made if it is not there.
    pub home: PathBuf,
    /// Its name, for people.
    pub name: String,
    /// The clients' door, `HOST:PORT`; port 0 takes any, the last one first.
    pub client_addr: String,
    /// The workers' door.
    pub worker_addr: String,
    /// The languages.
    pub table: LanguageTable,
    /// Where its jobs, keys and output are kept.
    pub keeping: Keeping,
    /// What goes when it is old.
    pub keep: Keep,
    /// Beginnings of the URLs that jobs may have their ends posted to.
    pub notify_urls: Vec<Url>,
    /// What its keys and jobs may, when nothing else is said of them.
    pub rules: Rules,
}

/// Why a hub does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another hub holds the folder.
    #[error("a hub runs already on {home} (process {pid}); stop it, or set ESSAIM_HOME to another folder")]
    AlreadyRunning {
        /// Its process.
        pid: String,
        /// The folder.
        home: PathBuf,
    },
    /// A door cannot be opened.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The hub's certificates cannot be had.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// A file of the data folder cannot be used.
    #[error(transparent)]
    File(#[from] PrivateFileError),
    /// The data folder cannot be used.
    #[error("the data folder {home} cannot be used")]
    Home {
        /// Which.
        home: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The hub file cannot be written.
    #[error(transparent)]
    HubFile(#[from] essaim_net::hubfile::HubFileError),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// Somebody else leads this store.
    #[error(transparent)]
    Lead(#[from] LeadError),
    /// The store's journal cannot be replayed.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// Output that the journal knows nothing of would mix with what new programs print.
    #[error("output of jobs that the journal does not know cannot be dropped; is the disk full, or read-only?")]
    Outputs(#[source] OutputError),
    /// A thread cannot be had.
    #[error("the system gives no thread to the hub")]
    Thread(#[source] std::io::Error),
    /// The store takes nothing.
    #[error("the store does not take the hub's own key; is its disk full?")]
    NotRecorded,
}

/// What all sessions share.
pub(crate) struct Shared {
    pub(crate) name: String,
    pub(crate) handle: Handle,
    pub(crate) feeds: Arc<Feeds>,
    pub(crate) changes: Arc<Changes>,
    pub(crate) store: Store,
    pub(crate) past: Arc<Past>,
    pub(crate) rates: Arc<Rates>,
    pub(crate) authority: Arc<Authority>,
    /// True when the hub ends. Whoever holds a receiver is waited for.
    pub(crate) shutdown: watch::Sender<bool>,
    pub(crate) home: PathBuf,
    pub(crate) started_ms: u64,
    pub(crate) doors: Doors,
}

/// A hub that runs.
pub struct RunningHub {
    shared: Arc<Shared>,
    driver: JoinHandle<()>,
    failure: watch::Receiver<Option<Arc<ReplayError>>>,
    local: watch::Receiver<BTreeSet<u32>>,
    admin_key: Secret,
    helpers: Helpers,
    _lock: HomeLock,
}

/// The threads beside the driver; dropped, they end by themselves.
struct Helpers {
    follower: FollowerThread,
    keeper: KeeperThread,
    /// Ends when it is dropped.
    poster: Poster,
}

impl RunningHub {
    /// Starts a hub; when this returns, its doors are open and `hub.json` is written.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left open then.
    pub async fn start(config: HubConfig) -> Result<RunningHub, StartError> {
        let output_bytes = config.keep.output_bytes;
        RunningHub::start_with(config, StoreLimits { output_bytes, ..StoreLimits::default() }).await
    }

    /// The same with other limits of the store.
    pub(crate) async fn start_with(config: HubConfig, limits: StoreLimits) -> Result<RunningHub, StartError> {
        let home = config.home;
        let in_home = |source: std::io::Error| StartError::Home { home: home.clone(), source };
        // Keys and certificates lie here: nobody else's business.
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&home).map_err(in_home)?;
        let lock = lock(&home)?;
        let authority = Arc::new(Authority::load_or_create(&home)?);
        let store = match config.keeping {
            Keeping::Folder => open_store(&home.join(STORE_FOLDER), limits).await?,
            Keeping::Memory => Store::memory(&home, limits)?,
        };
        let keep = Keep { output_bytes: limits.output_bytes, ..config.keep };
        let (driver, rest) = driver(&store, config.table, keep, config.rules)?;
        let Rest { handle, queues, feeds, changes, past, local, due, rates, follower, keeper } = rest;
        let shared = Arc::new(Shared {
            name: config.name,
            handle,
            feeds,
            changes,
            store,
            past,
            rates,
            authority,
            shutdown: watch::Sender::new(false),
            home,
            started_ms: unix_ms(),
            doors: Doors::default(),
        });
        let admin_key = shared.admin_key()?;
        // Until the end of this function the driver ends with its handles, in `shared` and `keeper`.
        let (driver, failure) = run_driver(driver, queues, shared.shutdown.clone());
        let keeper = keeper.start(shared.handle.clone()).map_err(StartError::Thread)?;
        let name = ADMIN_KEY_NAME.parse().expect("a constant name");
        let secret = secret_hash(&admin_key);
        shared.handle.input(Input::LocalKey { name, role: Role::Admin, secret }, 0).await;
        if !shared.handle.flush().await {
            return Err(StartError::NotRecorded);
        }
        shared.open_doors(&config.client_addr, &config.worker_addr).await?;
        let poster = Poster::start(Arc::downgrade(&shared), due);
        shared.handle.input(Input::NotifyUrls { urls: config.notify_urls }, 0).await;
        info!(hub = shared.name, "hub started");
        let helpers = Helpers { follower, keeper, poster };
        Ok(RunningHub { shared, driver, failure, local, admin_key, helpers, _lock: lock })
    }

    /// Addresses of the clients' doors.
    pub fn client_addresses(&self) -> Vec<String> {
        self.shared.doors.client_addresses()
    }

    /// Addresses of the workers' doors.
    pub fn worker_addresses(&self) -> Vec<String> {
        self.shared.doors.worker_addresses()
    }

    /// The hub's identity.
    pub fn authority(&self) -> AuthorityHash {
        self.shared.authority.hash()
    }

    /// The key of the hub's own user, as the line that its file holds.
    pub fn admin_key(&self) -> Secret {
        self.shared.key_line(self.admin_key.clone()).to_line()
    }

    /// A join line for workers that this process starts itself. When the store did not take it, which is in the log, it
    /// is refused as unknown to whoever uses it.
    pub async fn local_join_line(&self, uses: u32) -> Secret {
        let secret = new_secret();
        let hash = secret_hash(&secret);
        self.shared.handle.input(Input::LocalJoin { secret: hash, uses, ttl_ms: 0 }, 0).await;
        self.shared.handle.flush().await;
        let addresses = self.worker_addresses();
        Ticket { kind: TicketKind::Join, authority: self.authority(), secret, addresses }.to_line()
    }

    /// From now on this process starts workers of its own, with this plan; what comes of it says
    /// [`RunningHub::local_workers`].
    pub async fn plan_local_workers(&self, plan: LocalPlan) {
        self.shared.handle.input(Input::LocalPlan { plan: Box::new(plan) }, 0).await;
    }

    /// The numbers of the workers that this process is to start and to start again when they end. None before there is a
    /// plan. One that is too many is told to leave by its session.
    pub fn local_workers(&self) -> watch::Receiver<BTreeSet<u32>> {
        self.local.clone()
    }

    /// A worker process that this process started has ended: what it held need not be waited for.
    pub async fn worker_process_ended(&self, node: NodeName) {
        self.shared.handle.input(Input::WorkerProcessEnded { node }, 0).await;
    }

    /// Programs that run now: job, its name, where.
    pub async fn running(&self) -> Vec<(JobId, String, NodeName)> {
        self.shared.handle.running().await
    }

    /// Accepts and places nothing new from now on.
    pub async fn drain(&self) {
        self.shared.handle.input(Input::Drain, 0).await;
    }

    /// Returns when the hub can promise nothing any more, because its store cannot be read back; its sessions and doors
    /// are closed by then. Never returns otherwise.
    pub async fn failed(&self) -> Arc<ReplayError> {
        let mut failure = self.failure.clone();
        match failure.wait_for(Option::is_some).await.ok().and_then(|failure| failure.clone()) {
            Some(error) => error,
            None => std::future::pending().await,
        }
    }

    /// Says goodbye to everybody and closes the doors; what was said before is durable. Takes at most
    /// `GOODBYE_TIMEOUT` and the store's time.
    pub async fn shutdown(self) {
        self.shared.handle.flush().await;
        // Doors see it and close; sessions see it and say goodbye; each holds a receiver until it has.
        self.shared.shutdown.send_replace(true);
        HubFile::remove(&self.shared.home, std::process::id());
        let _ = tokio::time::timeout(GOODBYE_TIMEOUT, self.shared.shutdown.closed()).await;
        self.driver.abort();
        // When it has ended it holds the store no longer: another hub may take the folder.
        let _ = self.driver.await;
        let Helpers { follower, keeper, poster } = self.helpers;
        drop(poster);
        let ended = tokio::task::spawn_blocking(move || {
            keeper.stop();
            follower.stop();
        });
        // A panic was in the log when it happened.
        let _ = ended.await;
    }
}

/// The store of a folder whose lock is ours. A hub that has just ended in this process may hold it for a moment longer.
async fn open_store(folder: &Path, limits: StoreLimits) -> Result<Store, OpenError> {
    let begun = Instant::now();
    loop {
        match Store::open(folder, limits) {
            Err(OpenError::InUse { .. }) if begun.elapsed() < STORE_FREE_TIMEOUT => {
                tokio::time::sleep(STORE_FREE_POLL).await; // poll: for as long as an ending hub may take
            }
            opened => return opened,
        }
    }
}

/// What is made with the driver.
pub(crate) struct Rest {
    pub(crate) handle: Handle,
    pub(crate) queues: Queues,
    pub(crate) feeds: Arc<Feeds>,
    pub(crate) changes: Arc<Changes>,
    pub(crate) past: Arc<Past>,
    pub(crate) due: mpsc::UnboundedReceiver<Due>,
    pub(crate) rates: Arc<Rates>,
    pub(crate) local: watch::Receiver<BTreeSet<u32>>,
    pub(crate) follower: FollowerThread,
    pub(crate) keeper: Keeper,
}

/// The driver on what the store holds, with a catalog that has caught up.
pub(crate) fn driver(
    store: &Store,
    table: LanguageTable,
    keep: Keep,
    rules: Rules,
) -> Result<(Driver, Rest), StartError> {
    // One hub per folder is what the lock says; the lead is for stores that several hubs share.
    let term: Term = store.lead.acquire(LEADER, unix_ms(), 0)?;
    let begun = Instant::now();
    let published = catch_up(store, &mut Applier::new(store))?;
    drop_unknown(store, &published).map_err(StartError::Outputs)?;
    let (follower, thread) = Follower::start(store.clone(), published.at()).map_err(StartError::Thread)?;
    info!(seq = %published.at(), jobs = published.jobs(), ms = begun.elapsed().as_millis() as u64, "the store was read");
    let (handle, queues) = Handle::new();
    let feeds = Arc::new(Feeds::new(published.last_job()));
    let changes = Arc::new(Changes::default());
    let past = Arc::new(Past::new(store, follower.clone()));
    // All of it is in the catalog: a watch of an array reads it from there.
    past.ended(published.at());
    let keeper = Keeper::new(store.clone(), keep);
    let (room, rubbish) = keeper.ends();
    let (notices, due) = mpsc::unbounded_channel();
    let rates = Arc::new(Rates::default());
    let (local, local_end) = watch::channel(BTreeSet::new());
    let parts = Parts {
        store: store.clone(),
        term,
        table,
        feeds: feeds.clone(),
        changes: changes.clone(),
        follower,
        past: past.clone(),
        local,
        room,
        rubbish,
        notices,
        rates: rates.clone(),
        rules,
    };
    let rest = Rest { handle, queues, feeds, changes, past, local: local_end, due, rates, follower: thread, keeper };
    Ok((Driver::new(parts, published), rest))
}

/// Runs the driver; its failure ends the hub.
fn run_driver(
    driver: Driver,
    queues: Queues,
    shutdown: watch::Sender<bool>,
) -> (JoinHandle<()>, watch::Receiver<Option<Arc<ReplayError>>>) {
    let (failed, failure) = watch::channel(None);
    let task = tokio::spawn(async move {
        if let Err(error) = driver.run(queues).await {
            error!(%error, "the hub stops: its journal cannot be replayed");
            shutdown.send_replace(true);
            failed.send_replace(Some(Arc::new(error)));
        }
    });
    (task, failure)
}

impl Shared {
    pub(crate) fn key_line(&self, secret: Secret) -> Ticket {
        Ticket { kind: TicketKind::Key, authority: self.authority.hash(), secret, addresses: Vec::new() }
    }

    /// The secret of the admin key, made now if the folder has none for this authority.
    fn admin_key(&self) -> Result<Secret, StartError> {
        let path = self.home.join(ADMIN_KEY_FILE);
        let kept = read_private(&path)?.and_then(|bytes| String::from_utf8(bytes).ok());
        let ticket = kept.and_then(|text| Ticket::parse(&text, TicketKind::Key).ok());
        if let Some(ticket) = ticket.filter(|ticket| ticket.authority == self.authority.hash()) {
            return Ok(ticket.secret);
        }
        let secret = new_secret();
        let line = self.key_line(secret.clone()).to_line().0;
        write_private(&path, format!("{line}\n").as_bytes())?;
        Ok(secret)
    }
}

/// Takes the folder's lock, which the system frees with the process.
/// The right to be the hub of a folder.
struct HomeLock(OwnedFd);

impl Drop for HomeLock {
    // Closing would not do: a process that was forked a moment ago has a copy of the descriptor until it calls exec.
    fn drop(&mut self) {
        // What fails here is given back with the last copy.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

fn lock(home: &Path) -> Result<HomeLock, StartError> {
    let path = home.join(LOCK_FILE);
    let in_home = |error: Errno| StartError::Home { home: home.to_owned(), source: error.into() };
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = open(&path, flags, Mode::RUSR | Mode::WUSR).map_err(in_home)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let pid = std::fs::read_to_string(&path).unwrap_or_default().trim().to_owned();
            return Err(StartError::AlreadyRunning { pid, home: home.to_owned() });
        }
        Err(error) => return Err(in_home(error)),
    }
    let pid = format!("{}\n", std::process::id());
    rustix::fs::ftruncate(&file, 0).map_err(in_home)?;
    rustix::io::pwrite(&file, pid.as_bytes(), 0).map_err(in_home)?;
    Ok(HomeLock(file))
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

#[cfg(test)]
pub(crate) mod tests;
