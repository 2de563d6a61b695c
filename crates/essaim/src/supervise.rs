//! The only room that starts our own executable: cages, and the local workers of `up`.
//!
//! ```text
//!   up / run without a hub ── starts ──▶ essaim worker --local N ── starts ──▶ essaim __cage
//!            │  stdin: the join line, then an open pipe: its end says that `up` is gone
//!            └─ the end of a worker is told to the hub at once; a new one is started, with growing pauses
//! ```
//!
//! Called by `cmd::up`, `embedded` and `cmd::worker`. Always true: each child has a process group of its own, so that
//! Ctrl+C of the terminal reaches only us; a child never sees our keys or settings in its environment; no child is left
//! when a [`Crew`] has been stopped or dropped.
//! Deliberately not here: other people's programs (`essaim-sandbox`), what a worker does (`essaim-worker`).

use crate::exit::Failure;
use crate::home::{HOME_VARIABLE, Home};
use essaim_hub::RunningHub;
use essaim_net::Backoff;
use essaim_proto::NodeName;
use rustix::process::{Pid, Signal};
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

/// The exit code of a local worker whose folder belongs to a worker that outlived its `up`.
pub(crate) const FOLDER_TAKEN: u8 = 75;

/// Folders that may be in use by workers of earlier starts before we only wait for one to become free.
const FOLDERS_TRIED_MAX: u32 = 8;

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
    /// How many.
    pub(crate) workers: u32,
    /// Programs that each runs at once.
    pub(crate) slots: u32,
    /// The workers' log level.
    pub(crate) log: String,
    /// Only this language, and gone with its hub: the worker of an embedded hub.
    pub(crate) only: Option<String>,
}

/// The local workers of one hub.
pub(crate) struct Crew {
    keepers: JoinSet<()>,
    stop: watch::Sender<bool>,
}

impl Crew {
    /// Starts them; each is kept alive from now on.
    pub(crate) fn start(hub: &Arc<RunningHub>, plan: &CrewPlan) -> Crew {
        let (stop, _) = watch::channel(false);
        let mut keepers = JoinSet::new();
        for number in 1..=plan.workers {
            let keeper = Keeper { hub: Arc::clone(hub), plan: plan.clone(), number, stop: stop.subscribe() };
            keepers.spawn(keeper.run());
        }
        Crew { keepers, stop }
    }

    /// Stops all workers at once, with what they run; returns when they are gone.
    pub(crate) async fn stop(mut self) {
        self.stop.send_replace(true);
        while self.keepers.join_next().await.is_some() {}
    }
}

/// Keeps one worker alive.
struct Keeper {
    hub: Arc<RunningHub>,
    plan: CrewPlan,
    number: u32,
    stop: watch::Receiver<bool>,
}

/// How a worker's life ended.
enum Ended {
    Stopped,
    /// Its folder is still held by a worker of an earlier start.
    FolderTaken,
    Died(String),
}

impl Keeper {
    async fn run(mut self) {
        let mut pauses = Backoff::new();
        let mut number = self.number;
        loop {
            let began = Instant::now();
            let ended = match self.live(number).await {
                Ok(ended) => ended,
                Err(error) => Ended::Died(format!("it cannot be started: {error}")),
            };
            match ended {
                Ended::Stopped => return,
                Ended::FolderTaken if number < self.plan.workers * FOLDERS_TRIED_MAX => {
                    number += self.plan.workers;
                    continue;
                }
                Ended::FolderTaken => {}
                Ended::Died(why) => tracing::warn!(worker = number, why, "a local worker ended, starting it again"),
            }
            if began.elapsed() >= GOOD_LIFE {
                pauses.reset();
            }
            tokio::select! {
                () = told(&mut self.stop) => return,
                () = tokio::time::sleep(pauses.next_pause()) => {}
            }
        }
    }

    /// One life of the worker.
    async fn live(&mut self, number: u32) -> io::Result<Ended> {
        let line = self.hub.local_join_line(1).await;
        let mut child = tokio::process::Command::from(self.command(number)).kill_on_drop(true).spawn()?;
        let mut pipe = child.stdin.take().ok_or_else(|| io::Error::other("the worker has no standard input"))?;
        // A worker that ends before it reads says why by its exit code.
        let _ = pipe.write_all(format!("{}\n", line.0).as_bytes()).await;
        let ended = tokio::select! {
            status = child.wait() => {
                let status = status?;
                match status.code() {
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
        if let (Ended::Died(_), Ok(name)) = (&ended, local_name(number).parse::<NodeName>()) {
            self.hub.worker_process_ended(name).await;
        }
        Ok(ended)
    }

    fn command(&self, number: u32) -> std::process::Command {
        let mut command = own_executable();
        command.args(["worker", "--quiet", "--local"]).arg(number.to_string());
        command.arg("--slots").arg(self.plan.slots.to_string());
        command.arg("--log").arg(&self.plan.log);
        if let Some(only) = &self.plan.only {
            command.arg("--only").arg(only);
        }
        command.env(HOME_VARIABLE, self.plan.home.path());
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::inherit());
        command
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
        // Two signals of one kind that arrive together are one.
        let pause = tokio::time::sleep(Duration::from_millis(20));
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
