//! What this machine can run: the hub's list of probes, tried out.
//!
//! The driver starts one round when a hub sends a list that it has not tried; found toolchains come back one by one. The
//! only place of the worker that starts processes itself: these are programs of the machine, asked for their version.
//! Always true: at most [`PROBES_AT_ONCE`] run, each is killed with its children after [`PROBE_TIME`]; a round that was
//! ended has no process left; a toolchain that is found works in the surroundings that a job gets.
//! Deliberately not here: which languages there are (the hub's table), and running jobs (the cage).

use crate::driver::Event;
use crate::launch::{Resolved, Surroundings};
use crate::limits::{GROUP_LOOK, PROBE_BYTES_MAX, PROBE_TIME, PROBES_AT_ONCE};
use essaim_proto::link::LanguageProbe;
use essaim_proto::node::Toolchain;
use rustix::process::{Pid, Signal};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep};

/// What a round of probes tells.
#[derive(Debug)]
pub(crate) enum ProbeNews {
    /// A language works.
    Found {
        /// Which, and its version.
        toolchain: Toolchain,
        /// What stands behind its first word, if it is another program.
        resolved: Option<Resolved>,
    },
    /// All were tried.
    Done,
}

/// A round of probes that runs. Dropping it kills them.
#[derive(Debug)]
pub(crate) struct Round {
    task: JoinHandle<()>,
    groups: Groups,
}

impl Round {
    /// Tries all `languages` in the scratch folder `scratch`; tells `driver` under the number `round`.
    pub(crate) fn start(
        round: u64,
        languages: Vec<LanguageProbe>,
        surroundings: Arc<Surroundings>,
        scratch: PathBuf,
        driver: mpsc::Sender<Event>,
    ) -> Round {
        let groups = Groups::default();
        let places = Arc::new(Semaphore::new(PROBES_AT_ONCE));
        let prober = Prober { surroundings, scratch, places, groups: groups.clone() };
        Round { task: tokio::spawn(probe_all(round, languages, prober, driver)), groups }
    }

    /// Kills what runs, and returns when it is dead, or at `until`.
    pub(crate) async fn end(self, until: Instant) {
        // Before the task, whose end takes its time, could start another one.
        let mut left = self.groups.close();
        drop(self);
        loop {
            left.retain(|group| rustix::process::test_kill_process_group(*group).is_ok());
            if left.is_empty() || Instant::now() >= until {
                return;
            }
            sleep(GROUP_LOOK).await; // poll: nobody tells the end of a process that is no child of ours
        }
    }
}

impl Drop for Round {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn probe_all(round: u64, mut languages: Vec<LanguageProbe>, prober: Prober, driver: mpsc::Sender<Event>) {
    // Few commands are quick ones: the slow and rare wait for the others and not the other way round.
    languages.sort_by_key(|language| language.probes.len() + usize::from(language.resolve.is_some()));
    if let Err(error) = std::fs::create_dir_all(&prober.scratch) {
        tracing::warn!(%error, "there is no place for probes");
    }
    let mut running = JoinSet::new();
    for language in languages {
        running.spawn(prober.clone().language(language));
    }
    while let Some(found) = running.join_next().await {
        let Ok(Some(news)) = found else { continue };
        if driver.send(Event::Probe { round, news }).await.is_err() {
            return;
        }
    }
    // What a tool left there is of no use; what cannot be removed does no harm.
    let _ = essaim_sandbox::remove_tree(&prober.scratch);
    // Without a driver nobody wants to know.
    let _ = driver.send(Event::Probe { round, news: ProbeNews::Done }).await;
}

#[derive(Clone)]
struct Prober {
    surroundings: Arc<Surroundings>,
    scratch: PathBuf,
    places: Arc<Semaphore>,
    groups: Groups,
}

impl Prober {
    async fn language(self, language: LanguageProbe) -> Option<ProbeNews> {
        let word = language.probes.first()?.first()?.clone();
        let resolved = match &language.resolve {
            Some(argv) => self.resolve(argv).await.map(|program| Resolved { word, program }),
            None => None,
        };
        let mut probes = JoinSet::new();
        for (place, argv) in language.probes.into_iter().enumerate() {
            let (prober, resolved) = (self.clone(), resolved.clone());
            probes.spawn(async move { (place, prober.version(&argv, resolved.as_ref()).await) });
        }
        let mut version = String::new();
        while let Some(probed) = probes.join_next().await {
            let (place, found) = probed.ok()?;
            let found = found?;
            if place == 0 {
                version = found;
            }
        }
        Some(ProbeNews::Found { toolchain: Toolchain { lang: language.lang, version }, resolved })
    }

    /// What stands behind a shim. Asked in the worker's own surroundings: a version manager finds itself by them.
    async fn resolve(&self, argv: &[String]) -> Option<PathBuf> {
        let mut command = Command::new(self.surroundings.find(argv.first()?)?);
        for name in std::env::vars_os().map(|(name, _)| name) {
            // Keys and places of our own are for nobody.
            if name.to_string_lossy().starts_with("ESSAIM_") {
                command.env_remove(name);
            }
        }
        let program = PathBuf::from(self.first_line(command, argv).await?);
        (program.is_absolute() && program.is_file()).then_some(program)
    }

    /// The version that a probe tells, in the surroundings of a job.
    async fn version(&self, argv: &[String], resolved: Option<&Resolved>) -> Option<String> {
        let word = argv.first()?;
        let program = match resolved.filter(|resolved| resolved.word == *word) {
            Some(resolved) => resolved.program.clone(),
            None => self.surroundings.find(word)?.into(),
        };
        let mut command = Command::new(program);
        command.env_clear().envs(self.surroundings.variables(&self.scratch, &self.scratch));
        self.first_line(command, argv).await
    }

    async fn first_line(&self, mut command: Command, argv: &[String]) -> Option<String> {
        command.args(&argv[1..]).current_dir(&self.scratch);
        let _place = self.places.acquire().await;
        let line = tokio::time::timeout(PROBE_TIME, run(command, &self.scratch, &self.groups)).await;
        if line.is_err() {
            tracing::warn!(program = argv[0], "a probe did not end and was killed");
        }
        line.ok()?
    }
}

/// The process groups of a round's probes; `None` once no more may begin.
#[derive(Debug, Clone)]
struct Groups(Arc<Mutex<Option<Vec<Pid>>>>);

impl Default for Groups {
    fn default() -> Groups {
        Groups(Arc::new(Mutex::new(Some(Vec::new()))))
    }
}

impl Groups {
    /// Starts a command as a group of its own, unless none may begin any more.
    fn start(&self, mut command: Command) -> Option<(Child, Group)> {
        let mut groups = self.lock();
        let running = groups.as_mut()?;
        let child = command.process_group(0).kill_on_drop(true).spawn().ok()?;
        let pid = child.id().and_then(|id| Pid::from_raw(id as i32))?;
        running.push(pid);
        Some((child, Group { pid, all: self.clone(), has_ended: false }))
    }

    /// Kills all, and starts no more; gives those that were killed.
    fn close(&self) -> Vec<Pid> {
        let groups = self.lock().take().unwrap_or_default();
        groups.iter().for_each(|group| kill(*group));
        groups
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<Pid>>> {
        // Nothing in here panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Kills a probe's whole group, unless it ended by itself.
struct Group {
    pid: Pid,
    all: Groups,
    has_ended: bool,
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.has_ended {
            kill(self.pid);
        }
        if let Some(running) = self.all.lock().as_mut() {
            running.retain(|pid| *pid != self.pid);
        }
    }
}

fn kill(group: Pid) {
    // An error: it has just ended.
    let _ = rustix::process::kill_process_group(group, Signal::KILL);
}

/// The first line that a command prints, if it ends well. Dropping the future kills it.
async fn run(mut command: Command, folder: &Path, groups: &Groups) -> Option<String> {
    command.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let (mut child, mut group) = groups.start(command)?;
    let (stdout, stderr) = (child.stdout.take()?, child.stderr.take()?);
    let (stdout, stderr, status) = tokio::join!(read(stdout), read(stderr), child.wait());
    group.has_ended = true;
    if !status.is_ok_and(|status| status.success()) {
        return None;
    }
    // Some tools tell their version as an aside.
    let text = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let line = text.iter().flat_map(|text| text.lines()).map(str::trim).find(|line| !line.is_empty());
    Some(line.unwrap_or_default().to_owned())
}

async fn read(from: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut bytes = Vec::new();
    // What was read before an error counts.
    let _ = from.take(PROBE_BYTES_MAX).read_to_end(&mut bytes).await;
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn language(lang: &str, probes: &[&[&str]], resolve: Option<&[&str]>) -> LanguageProbe {
        let probes = probes.iter().map(|probe| argv(probe)).collect();
        LanguageProbe { lang: lang.to_owned(), probes, resolve: resolve.map(argv) }
    }

    // Does a round find what is there, with versions and what stands behind a word, and only that?
    #[tokio::test]
    async fn only_what_works_is_found() {
        let scratch = tempfile::tempdir().unwrap();
        let real = scratch.path().join("real sh");
        std::os::unix::fs::symlink("/bin/sh", &real).unwrap();
        let print_real = format!("echo {}", real.display());
        let languages = vec![
            language("plain", &[&["sh", "-c", "echo; echo one; echo two"]], None),
            language("aside", &[&["sh", "-c", "echo told aside >&2"]], None),
            language("shim", &[&["sh", "-c", "echo $0 $HOME"]], Some(&["sh", "-c", &print_real])),
            language("lost", &[&["sh", "-c", "echo 1"]], Some(&["sh", "-c", "echo /no/such/program"])),
            language("broken", &[&["sh", "-c", "echo no; exit 1"]], None),
            language("half", &[&["sh", "-c", "echo 1"], &["no-such-program"]], None),
            language("missing", &[&["no-such-program"]], None),
            language("empty", &[&[]], None),
        ];
        let (driver, mut events) = mpsc::channel(64);
        let place = scratch.path().join("probes");
        let _round = Round::start(7, languages, Arc::new(Surroundings::of_this_process()), place.clone(), driver);
        let mut found = Vec::new();
        while let Some(Event::Probe { round: 7, news }) = events.recv().await {
            let ProbeNews::Found { toolchain, resolved } = news else { break };
            found.push((toolchain.lang, toolchain.version, resolved.map(|resolved| resolved.program)));
        }
        found.sort();
        let expected = [
            ("aside", "told aside".to_owned(), None),
            ("lost", "1".to_owned(), None),
            ("plain", "one".to_owned(), None),
            ("shim", format!("{} {}", real.display(), place.display()), Some(real)),
        ];
        assert_eq!(found, expected.map(|(lang, version, resolved)| (lang.to_owned(), version, resolved)));
        assert!(!place.exists() && events.recv().await.is_none());
    }

    /// Writes its child's number to the file `child`, and waits for it.
    const HANGS: &str = "sleep 1000 & echo $! > child; wait";

    /// The child of a probe that hangs, once it is there.
    async fn child_in(folder: &Path) -> i32 {
        loop {
            let written = std::fs::read_to_string(folder.join("child"));
            if let Ok(Ok(pid)) = written.map(|text| text.trim().parse::<i32>()) {
                return pid;
            }
            sleep(GROUP_LOOK).await; // poll: the probe ends it
        }
    }

    fn is_alive(pid: i32) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z ")
    }

    // Is a probe that is given up dead, with its children?
    #[tokio::test]
    async fn a_probe_that_hangs_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", HANGS]);
        let groups = Groups::default();
        let pid = tokio::select! {
            line = run(command, folder.path(), &groups) => panic!("{line:?}"),
            pid = child_in(folder.path()) => pid,
        };
        for _ in 0..4_000 {
            if !is_alive(pid) {
                return;
            }
            sleep(GROUP_LOOK).await; // poll: 20 s at most
        }
        panic!("the probe's child {pid} lives on");
    }

    // Is nothing left, and nothing started any more, once a round has ended?
    #[tokio::test(flavor = "multi_thread")]
    async fn a_round_that_was_ended_has_no_process_left() {
        let folder = tempfile::tempdir().unwrap();
        let languages = vec![language("hangs", &[&["sh", "-c", HANGS]], None)];
        let (driver, _events) = mpsc::channel(64);
        let surroundings = Arc::new(Surroundings::of_this_process());
        let round = Round::start(1, languages, surroundings, folder.path().to_owned(), driver);
        let groups = round.groups.clone();
        let pid = child_in(folder.path()).await;
        round.end(Instant::now() + std::time::Duration::from_secs(60)).await;
        assert!(!is_alive(pid), "its child lives on");
        assert!(groups.start(Command::new("/bin/true")).is_none(), "no other begins");
    }
}
