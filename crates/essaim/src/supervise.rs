//! The only room that starts our own executable: cages, and the local workers of `up`.
//!
//! ```text
//!   up / run without a hub ── starts ──▶ essaim worker --local N ── starts ──▶ essaim __cage
//!            │  stdin: the join line, then an open pipe: its end says that `up` is gone
//!            └─ the end of a worker is told to the hub at once; a new one is started, with growing pauses
//! ```
//!
//! Which numbers run decides the hub ([`RunningHub::local_workers`]): what is missing is started. Who is too many is told so
//! over its connection to the hub, leaves when nothing is left to finish, and is not started again.
//!
//! A worker outlives an `up` that was killed, with what it runs. A new `up` that finds its folder held adopts it: starts
//! none in its place, watches its end and stops it like a child.
//!
//! Called by `cmd::up`, `embedded` and `cmd::worker`. Always true: each child has a process group of its own, so that
//! Ctrl+C of the terminal reaches only us; a child never sees our keys or settings in its environment; no child is left
//! when a [`Crew`] has been stopped or dropped.
//! Deliberately not here: other people's programs (`essaim-sandbox`), what a worker does (`essaim-worker`).

use crate::exit::Failure;
use crate::home::{HOME_VARIABLE, Home};
use crate::process::Process;
use essaim_core::hub::LocalPlan;
use essaim_core::limits::LOCAL_WORKERS_MAX;
use essaim_hub::RunningHub;
use essaim_net::{Backoff, Identity};
use essaim_worker::Offer;
use rustix::process::{Pid, Signal};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The word that makes our executable a cage.
pub(crate) const CAGE_WORD: &str = "__cage";

/// A worker that lived as long as this is no failed start: the pauses begin anew.
const GOOD_LIFE: Duration = Duration::from_secs(10);

/// A worker that was told to stop kills its programs within a second; what is still there then is killed.
const STOP_TIME: Duration = Duration::from_secs(3);

/// Two signals of one kind that arrive together are one.
const SIGNAL_PAUSE: Duration = Duration::from_millis(20);

/// The exit code of a local worker whose folder another worker holds: one that outlived its `up` and was not seen.
pub(crate) const FOLDER_TAKEN: u8 = 75;

/// The life of a cage process: standard input is the socket to its worker. Returns the exit code.
pub(crate) fn be_cage() -> u8 {
    let Ok(socket) = io::stdin().as_fd().try_clone_to_owned() else { return crate::exit::INTERNAL };
    // No second copy of the socket may live on as standard input, here or in what the cage forks: the worker sees the
    // cage's death by the end of it.
    let null = std::fs::File::open("/dev/null").map(OwnedFd::from);
    let Ok(null) = null else { return crate::exit::INTERNAL };
    if rustix::stdio::dup2_stdin(null).is_err() {
        return crate::exit::INTERNAL;
    }
    match essaim_sandbox::run_cage(socket) {
        Ok(()) => crate::exit::OK,
        Err(_) => crate::exit::INTERNAL,
    }
}

/// Starts a cage and gives the worker's end of its socket.
///
/// # Errors
/// The system's.
pub(crate) fn start_cage() -> io::Result<OwnedFd> {
    let (ours, theirs) = essaim_sandbox::socket_pair()?;
    let mut command = own_executable();
    command.arg(CAGE_WORD).stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(Stdio::inherit());
    let mut child = command.spawn()?;
    // A cage that ends must not stay in the process table for as long as its worker lives.
    std::thread::Builder::new().name("cage-wait".into()).spawn(move || child.wait())?;
    Ok(ours)
}

/// This very executable, even when its file was replaced meanwhile.
fn own_executable() -> std::process::Command {
    let mut command = std::process::Command::new("/proc/self/exe");
    command.arg0("essaim").process_group(0);
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("ESSAIM_")) {
            command.env_remove(name);
        }
    }
    command
}

/// What local workers are started with.
#[derive(Debug, Clone)]
pub(crate) struct CrewPlan {
    /// The hub's data folder.
    pub(crate) home: Home,
    /// How many, with how many slots and how much memory: what the hub is told, which decides who runs.
    pub(crate) local: LocalPlan,
    /// What else each offers.
    pub(crate) offer: Offer,
    /// The workers' log level.
    pub(crate) log: String,
    /// Only this language, and gone with its hub: the worker of an embedded hub.
    pub(crate) only: Option<String>,
}

/// The local workers of one hub.
pub(crate) struct Crew {
    /// A set, because dropping it ends the one task in it, and with that all workers.
    tending: JoinSet<()>,
    stop: watch::Sender<bool>,
    adopted: usize,
}

impl Crew {
    /// Starts those that the hub wants, now and later, and adopts those that are there; each is kept alive for as long as
    /// it is wanted. One that is there and not wanted is told so by the hub: it may have something to finish.
    pub(crate) fn start(hub: &Arc<RunningHub>, plan: &CrewPlan) -> Crew {
        let numbers = 1..=LOCAL_WORKERS_MAX;
        let outlived: Vec<(u32, Process)> =
            numbers.filter_map(|number| Some((number, outlived(&plan.home, number)?))).collect();
        let (stop, told) = watch::channel(false);
        let mut crew = Crew { tending: JoinSet::new(), stop, adopted: outlived.len() };
        let (hub, plan) = (Arc::clone(hub), Arc::new(plan.clone()));
        let wanted = hub.local_workers();
        let tender = Tender { hub, plan, wanted, stop: told, keepers: JoinSet::new(), kept: BTreeSet::new() };
        crew.tending.spawn(tender.run(outlived));
        crew
    }

    /// How many of them outlived an earlier `up`.
    pub(crate) fn adopted(&self) -> usize {
        self.adopted
    }

    /// Stops all workers at once, with what they run; returns when they are gone.
    pub(crate) async fn stop(mut self) {
        self.stop.send_replace(true);
        while self.tending.join_next().await.is_some() {}
    }
}

/// The worker of this number that outlived its `up`, if there is one.
fn outlived(home: &Home, number: u32) -> Option<Process> {
    let folder = home.local_worker(number);
    let pid = essaim_worker::holder(&folder)?;
    let process = Process::of(pid)?;
    // Still the holder when it is held: the number was not given to somebody else in between.
    (essaim_worker::holder(&folder) == Some(pid)).then_some(process)
}

/// Sees to it that each worker that the hub wants has somebody who keeps it alive.
struct Tender {
    hub: Arc<RunningHub>,
    plan: Arc<CrewPlan>,
    wanted: watch::Receiver<BTreeSet<u32>>,
    stop: watch::Receiver<bool>,
    /// They end with their worker's number.
    keepers: JoinSet<u32>,
    kept: BTreeSet<u32>,
}

impl Tender {
    async fn run(mut self, outlived: Vec<(u32, Process)>) {
        for (number, worker) in outlived {
            self.keep(number, Some(worker));
        }
        self.hub.plan_local_workers(self.plan.local.clone()).await;
        loop {
            let missing: Vec<u32> = self.wanted.borrow_and_update().difference(&self.kept).copied().collect();
            for number in missing {
                self.keep(number, self::outlived(&self.plan.home, number));
            }
            tokio::select! {
                () = told(&mut self.stop) => break,
                // A hub that has failed wants nothing else any more.
                Ok(()) = self.wanted.changed() => {}
                // One that panicked is missed for as long as this `up` lives; the panic was in the log.
                Some(Ok(number)) = self.keepers.join_next() => {
                    self.kept.remove(&number);
                }
            }
        }
        while self.keepers.join_next().await.is_some() {}
    }

    fn keep(&mut self, number: u32, outlived: Option<Process>) {
        let (hub, plan) = (Arc::clone(&self.hub), Arc::clone(&self.plan));
        let (wanted, stop) = (self.wanted.clone(), self.stop.clone());
        self.kept.insert(number);
        self.keepers.spawn(Keeper { hub, plan, number, wanted, stop }.run(outlived));
    }
}

/// Keeps one worker alive while it is wanted.
struct Keeper {
    hub: Arc<RunningHub>,
    plan: Arc<CrewPlan>,
    number: u32,
    wanted: watch::Receiver<BTreeSet<u32>>,
    stop: watch::Receiver<bool>,
}

/// How a worker's life ended.
enum Ended {
    Stopped,
    /// Another worker holds its folder.
    FolderTaken,
    /// It had said goodbye to its hub.
    Left,
    Died(String),
}

impl Keeper {
    /// Ends when the worker has ended and is not wanted any more, with its number.
    async fn run(mut self, mut outlived: Option<Process>) -> u32 {
        let mut pauses = Backoff::new();
        loop {
            let began = Instant::now();
            let ended = match outlived.take() {
                Some(worker) => self.adopt(worker).await,
                None if !self.is_wanted() => return self.number,
                None => self.live().await.unwrap_or_else(|error| Ended::Died(format!("it cannot be started: {error}"))),
            };
            match ended {
                Ended::Stopped => return self.number,
                Ended::FolderTaken => {}
                Ended::Left => tracing::info!(worker = self.number, "a local worker has left"),
                Ended::Died(why) if self.is_wanted() => {
                    tracing::warn!(worker = self.number, why, "a local worker ended, starting it again");
                }
                Ended::Died(why) => tracing::info!(worker = self.number, why, "a local worker ended"),
            }
            if began.elapsed() >= GOOD_LIFE {
                pauses.reset();
            }
            let number = self.number;
            tokio::select! {
                () = told(&mut self.stop) => return number,
                Ok(_) = self.wanted.wait_for(|wanted| !wanted.contains(&number)) => {}
                () = tokio::time::sleep(pauses.next_pause()) => {}
            }
            outlived = self::outlived(&self.plan.home, self.number);
        }
    }

    fn is_wanted(&self) -> bool {
        self.wanted.borrow().contains(&self.number)
    }

    /// The rest of the life of a worker that outlived its `up`. It finds our hub by itself.
    async fn adopt(&mut self, worker: Process) -> Ended {
        tracing::info!(worker = self.number, "a local worker of an earlier start goes on");
        tokio::select! {
            () = worker.ended() => {
                self.tell_its_end().await;
                Ended::Died("the worker of an earlier start has ended".to_owned())
            }
            () = told(&mut self.stop) => {
                end_adopted(&worker).await;
                Ended::Stopped
            }
        }
    }

    /// One life of the worker.
    async fn live(&mut self) -> io::Result<Ended> {
        let line = self.hub.local_join_line(1).await;
        let mut child = tokio::process::Command::from(self.command(self.number)).kill_on_drop(true).spawn()?;
        let mut pipe = child.stdin.take().ok_or_else(|| io::Error::other("the worker has no standard input"))?;
        // A worker that ends before it reads says why by its exit code.
        let _ = pipe.write_all(format!("{}\n", line.0).as_bytes()).await;
        let ended = tokio::select! {
            status = child.wait() => {
                let status = status?;
                match status.code() {
                    Some(0) => Ended::Left,
                    Some(code) if code == i32::from(FOLDER_TAKEN) => Ended::FolderTaken,
                    _ => Ended::Died(status.to_string()),
                }
            }
            () = told(&mut self.stop) => {
                end(&mut child).await;
                Ended::Stopped
            }
        };
        drop(pipe);
        if let Ended::Died(_) = &ended {
            self.tell_its_end().await;
        }
        Ok(ended)
    }

    /// What it held need not be waited for.
    async fn tell_its_end(&self) {
        // The hub may have given it another name than it wished for.
        let known = Identity::load(&self.plan.home.local_worker(self.number)).ok().flatten();
        let name = known.map(|identity| identity.name).or_else(|| local_name(self.number).parse().ok());
        if let Some(name) = name {
            self.hub.worker_process_ended(name).await;
        }
    }

    fn command(&self, number: u32) -> std::process::Command {
        let mut command = own_executable();
        command.args(["worker", "--quiet", "--local"]).arg(number.to_string());
        command.arg("--slots").arg(self.plan.local.slots.to_string());
        let memory_bytes = self.plan.local.memory_of(number);
        offer_words(&mut command, &Offer { memory_bytes, ..self.plan.offer.clone() });
        command.arg("--log").arg(&self.plan.log);
        if let Some(only) = &self.plan.only {
            command.arg("--only").arg(only);
        }
        command.env(HOME_VARIABLE, self.plan.home.path());
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::inherit());
        command
    }
}

/// The words that tell a worker what it offers.
fn offer_words(command: &mut std::process::Command, offer: &Offer) {
    for (name, value) in &offer.labels {
        command.arg("--label").arg(format!("{name}={value}"));
    }
    let Offer { labels: _, memory_bytes, tasks_max, cpu_percent_max } = offer;
    let numbers =
        [("--mem", *memory_bytes), ("--max-tasks", (*tasks_max).into()), ("--max-cpu", (*cpu_percent_max).into())];
    for (word, number) in numbers.into_iter().filter(|(_, number)| *number > 0) {
        command.arg(word).arg(number.to_string());
    }
}

/// Waits for the order to stop, or for nobody being left who could give it.
async fn told(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// The name of the n-th local worker.
pub(crate) fn local_name(number: u32) -> String {
    format!("local-{number}")
}

/// Ends a worker now: two signals mean "at once" to it; then there is no more asking.
async fn end(child: &mut tokio::process::Child) {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        let _ = rustix::process::kill_process(pid, Signal::TERM);
        let pause = tokio::time::sleep(SIGNAL_PAUSE);
        tokio::select! {
            _ = child.wait() => return,
            () = pause => {}
        }
        let _ = rustix::process::kill_process(pid, Signal::TERM);
    }
    if tokio::time::timeout(STOP_TIME, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

/// The same for one that is no child of ours.
async fn end_adopted(worker: &Process) {
    worker.signal(Signal::TERM);
    tokio::select! {
        () = worker.ended() => return,
        () = tokio::time::sleep(SIGNAL_PAUSE) => {}
    }
    worker.signal(Signal::TERM);
    if tokio::time::timeout(STOP_TIME, worker.ended()).await.is_err() {
        worker.signal(Signal::KILL);
        worker.ended().await;
    }
}

/// Raises the soft limit of open files to the hard one: sockets, pipes and blobs of a thousand nodes need them.
pub(crate) fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Whoever may not raise it has fewer connections; `doctor` tells.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Programs at once for each of `workers` workers: the processors shared among them, rounded up.
///
/// # Errors
/// When the system does not say how many processors there are.
pub(crate) fn default_slots(workers: u32) -> Result<u32, Failure> {
    let cpus = std::thread::available_parallelism().map_err(|error| {
        Failure::broken("internal", "the number of processors is unknown", &error).hint("give --slots")
    })?;
    Ok(u32::try_from(cpus.get()).unwrap_or(u32::MAX).div_ceil(workers.max(1)))
}
