//! A worker in this process with a cage in another one, and what tests say to it.
//!
//! Every wait here is for a condition and has a generous deadline; nothing sleeps instead of waiting.

use crate::hub::{Hub, Session};
use essaim_proto::job::{FileSpec, Phase, StdinSpec};
use essaim_proto::link::{PhaseSpec, Start};
use essaim_proto::{AttemptId, BlobHash, JobId, TaskId};
use essaim_worker::{Order, RunError, WorkerConfig, WorkerEvent, run};
use rustix::process::{Pid, Signal};
use serde_bytes::ByteBuf;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// How long a condition may take. Far more than anything needs on a loaded machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// A worker's folder, which outlives the worker.
pub(crate) struct Home(pub(crate) TempDir);

/// A running worker.
pub(crate) struct Worker {
    pub(crate) home: PathBuf,
    pub(crate) orders: watch::Sender<Order>,
    pub(crate) events: mpsc::UnboundedReceiver<WorkerEvent>,
    pub(crate) ended: JoinHandle<Result<(), RunError>>,
    cages: Arc<Mutex<Vec<Child>>>,
}

impl Home {
    pub(crate) fn new() -> Home {
        Home(tempfile::tempdir().unwrap())
    }

    /// A configuration for `hub` with a cage of its own.
    pub(crate) fn config(&self, hub: &Hub) -> (WorkerConfig, Arc<Mutex<Vec<Child>>>) {
        let cages = Arc::new(Mutex::new(Vec::new()));
        let again = Arc::clone(&cages);
        let config = WorkerConfig {
            home: self.0.path().join("worker"),
            ticket: Some(hub.ticket()),
            hub_file: None,
            slots: 4,
            offer: essaim_worker::Offer::default(),
            name: None,
            local: None,
            only: None,
            bind: None,
            cage: new_cage(&cages).unwrap(),
            new_cage: Box::new(move || new_cage(&again)),
        };
        (config, cages)
    }

    pub(crate) fn worker(&self, hub: &Hub) -> Worker {
        let (config, cages) = self.config(hub);
        Worker::begin(config, cages)
    }
}

fn new_cage(cages: &Mutex<Vec<Child>>) -> std::io::Result<OwnedFd> {
    let (ours, theirs) = essaim_sandbox::socket_pair()?;
    let child = Command::new(std::env::current_exe()?).arg("__cage").stdin(Stdio::from(theirs)).spawn()?;
    cages.lock().unwrap().push(child);
    Ok(ours)
}

impl Worker {
    pub(crate) fn begin(config: WorkerConfig, cages: Arc<Mutex<Vec<Child>>>) -> Worker {
        let home = config.home.clone();
        let (orders, ordered) = watch::channel(Order::Run);
        let (to_test, events) = mpsc::unbounded_channel();
        let ended = tokio::spawn(run(config, ordered, move |event| {
            // The test may have had enough.
            let _ = to_test.send(event);
        }));
        Worker { home, orders, events, ended, cages }
    }

    /// The next event that `wanted` takes.
    pub(crate) async fn event<T>(&mut self, wanted: impl Fn(WorkerEvent) -> Option<T>) -> T {
        loop {
            let event = within("an event comes", self.events.recv()).await.unwrap();
            if let Some(value) = wanted(event) {
                return value;
            }
        }
    }

    /// How the worker ended by itself.
    pub(crate) async fn end(&mut self) -> Result<(), RunError> {
        within("the worker ends", &mut self.ended).await.unwrap()
    }

    pub(crate) fn kill_cage(&self) {
        let mut cages = self.cages.lock().unwrap();
        cages.last_mut().unwrap().kill().unwrap();
    }

    pub(crate) fn folder(&self, attempt: AttemptId) -> PathBuf {
        let AttemptId { job, task, attempt } = attempt;
        self.home.join(format!("work/{job}.{task}.{attempt}"))
    }

    /// Nothing is in the place of work folders.
    pub(crate) async fn is_clean(&self) {
        until("the work folders are gone", || {
            std::fs::read_dir(self.home.join("work")).is_ok_and(|mut entries| entries.next().is_none())
        })
        .await;
    }

    /// Stops the worker whose hub listens to the end, and sees that nothing stays.
    pub(crate) async fn finish(self, mut session: Session) {
        let hub = tokio::spawn(async move { while let Ok(Some(_)) = session.connection.reader.next().await {} });
        self.finish_alone().await;
        within("the connection ends", hub).await.unwrap();
    }

    /// Stops the worker, and sees that nothing stays.
    pub(crate) async fn finish_alone(mut self) {
        self.orders.send_replace(Order::Stop);
        self.end().await.unwrap();
        assert!(!self.home.join("work").exists());
        let mut cages = std::mem::take(&mut *self.cages.lock().unwrap());
        until("the cages are gone", || cages.iter_mut().all(|cage| cage.try_wait().unwrap().is_some())).await;
    }
}

pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

/// Looks again and again until `is_so`.
pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    within(what, async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(2)).await; // poll: `within` has the deadline
        }
    })
    .await;
}

/// Is the process there, and not only its entry?
pub(crate) fn is_alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

pub(crate) fn kill(pid: i32) {
    rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

/// The only attempt of the only task of job `job`.
pub(crate) fn attempt(job: u64) -> AttemptId {
    AttemptId { job: JobId(job), task: TaskId(1), attempt: 1 }
}

pub(crate) fn phase(phase: Phase, argv: &[&str]) -> PhaseSpec {
    let argv = argv.iter().map(|word| (*word).to_owned()).collect();
    PhaseSpec { phase, argv, wall_ms: 60_000, ..PhaseSpec::default() }
}

/// A shell script as job `job`.
pub(crate) fn shell(job: u64, script: &str) -> Start {
    let phases = vec![phase(Phase::Run, &["sh", "main.sh"])];
    Start { attempt: attempt(job), files: vec![file("main.sh", script.as_bytes())], phases, ..Start::default() }
}

/// The same with live input.
pub(crate) fn live(start: Start) -> Start {
    Start { stdin: StdinSpec::Live, ..start }
}

pub(crate) fn file(path: &str, bytes: &[u8]) -> FileSpec {
    FileSpec { inline: Some(ByteBuf::from(bytes)), ..blob(path, bytes) }
}

pub(crate) fn blob(path: &str, bytes: &[u8]) -> FileSpec {
    FileSpec { path: path.to_owned(), hash: BlobHash::of(bytes), size_bytes: bytes.len() as u64, ..FileSpec::default() }
}
