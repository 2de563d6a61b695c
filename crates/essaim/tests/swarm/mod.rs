//! A swarm of real processes on loopback, for the tests of this crate.
//!
//! Used by every file of this folder with `mod swarm;`. Always true: each home is a fresh folder, each port is free, each
//! command has a cleared environment (PATH, ESSAIM_HOME and a mark to find its processes by), each wait has a deadline
//! ([`PATIENCE`]) and fails with what was seen; dropped things leave no process behind, also when the test fails.
//! Deliberately not here: what is expected of the answers (each test says that).
#![allow(dead_code)] // Each file uses its part of it.
#![allow(clippy::print_stdout)] // A failed test shows what it printed.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Nothing here takes longer on a healthy machine, however busy; only failures wait so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at a condition.
const LOOK_AGAIN: Duration = Duration::from_millis(15);

/// The built binary.
pub(crate) const ESSAIM: &str = env!("CARGO_BIN_EXE_essaim");

/// The project's root: examples and pages are named from here.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// `examples/NAME`, absolute.
pub(crate) fn example(name: &str) -> String {
    root().join("examples").join(name).display().to_string()
}

/// Looks until `look` gives something; fails with `what` after [`PATIENCE`].
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "waited in vain for: {what}");
        std::thread::sleep(LOOK_AGAIN); // poll: processes and folders of others tell nobody when they change
    }
}

/// Looks until `holds`; fails with `what` after [`PATIENCE`].
#[track_caller]
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    wait_for(what, || holds().then_some(()));
}

/// Sends a signal to a process that we started (or that one of them did).
pub(crate) fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let _ = kill_process(pid, signal);
}

/// The processes whose environment or command line contains `marker`, zombies left out.
pub(crate) fn processes_with(marker: &str) -> Vec<u32> {
    let contains = |bytes: std::io::Result<Vec<u8>>| {
        bytes.is_ok_and(|bytes| bytes.windows(marker.len()).any(|window| window == marker.as_bytes()))
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let read = |name: &str| std::fs::read(entry.path().join(name));
        if pid != std::process::id() && (contains(read("environ")) || contains(read("cmdline"))) {
            found.push(pid);
        }
    }
    found
}

/// All files and folders under `folder`, relative, sorted.
pub(crate) fn tree(folder: &Path) -> Vec<String> {
    fn walk(root: &Path, folder: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            found.push(path.strip_prefix(root).unwrap().display().to_string());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                walk(root, &path, found);
            }
        }
    }
    let mut found = Vec::new();
    walk(folder, folder, &mut found);
    found.sort();
    found
}

/// An `ESSAIM_HOME`.
pub(crate) struct Home {
    folder: TempDir,
}

impl Home {
    pub(crate) fn new() -> Home {
        Home { folder: tempfile::Builder::new().prefix("essaim-test-").tempdir().unwrap() }
    }

    /// On a disk of its own.
    pub(crate) fn on(disk: &Path) -> Home {
        Home { folder: tempfile::Builder::new().prefix("essaim-test-").tempdir_in(disk).unwrap() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Words for the binary, in this home.
    pub(crate) fn essaim(&self, words: &[&str]) -> Words {
        let home = self.path().display().to_string();
        // Cages get no ESSAIM_ variables; MARK tells whose they are.
        Words::new(ESSAIM, words).env("ESSAIM_HOME", &home).env("MARK", &home)
    }

    /// The process of the local worker `number`, as its lock says; it may be dead.
    pub(crate) fn worker(&self, number: u32) -> Option<u32> {
        let lock = self.path().join("local").join(number.to_string()).join("worker.lock");
        std::fs::read_to_string(lock).ok()?.trim().parse().ok()
    }

    /// Kills everything of this home without a word, and returns when it is gone.
    #[track_caller]
    pub(crate) fn kill(&self) {
        wait_until("everything is dead", || {
            let alive = self.processes();
            alive.iter().for_each(|pid| signal(*pid, Signal::KILL));
            alive.is_empty()
        });
    }

    /// The processes of this home: `up`, workers, cages, clients, and programs that name a work folder.
    pub(crate) fn processes(&self) -> Vec<u32> {
        processes_with(&self.path().display().to_string())
    }

    /// Fails, with their words, when processes of this home are left.
    #[track_caller]
    pub(crate) fn assert_no_processes(&self) {
        let words = |pid: u32| {
            let read = |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
            let (words, status) = (read("cmdline"), read("status"));
            format!("{pid} {} {}", String::from_utf8_lossy(&words).replace('\0', " "), String::from_utf8_lossy(&status))
        };
        let left: Vec<String> = self.processes().into_iter().map(words).collect();
        assert!(left.is_empty(), "processes are left: {left:#?}");
    }
}

impl Drop for Home {
    // What an `up` or a worker that was killed left behind.
    fn drop(&mut self) {
        for pid in self.processes() {
            signal(pid, Signal::KILL);
        }
    }
}

/// A command to be: cleared environment, standard input empty.
pub(crate) struct Words {
    command: Command,
    shown: String,
    input: Option<Vec<u8>>,
}

impl Words {
    pub(crate) fn new(program: &str, words: &[&str]) -> Words {
        let mut command = Command::new(program);
        command.args(words).env_clear().current_dir(root()).stdin(Stdio::null());
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        Words { command, shown: format!("{program} {}", words.join(" ")), input: None }
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Words {
        self.command.env(name, value);
        self
    }

    pub(crate) fn folder(mut self, folder: &Path) -> Words {
        self.command.current_dir(folder);
        self
    }

    /// Standard input: these bytes, then its end.
    pub(crate) fn input(mut self, bytes: impl Into<Vec<u8>>) -> Words {
        self.input = Some(bytes.into());
        self
    }

    /// Starts it with its standard input open for [`Running::send`].
    pub(crate) fn start(mut self) -> Running {
        self.command.stdin(Stdio::piped());
        self.spawn()
    }

    fn spawn(mut self) -> Running {
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().unwrap_or_else(|error| panic!("{}: {error}", self.shown));
        let (tell, lines) = channel();
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let said = std::thread::spawn(move || read_lines(stdout, |line| drop(tell.send(line))));
        let heard = Arc::<Mutex<Vec<u8>>>::default();
        let hears = Arc::clone(&heard);
        let hear = move |line: Vec<u8>| hears.lock().unwrap().extend_from_slice(&line);
        let complaint = std::thread::spawn(move || read_lines(stderr, hear));
        Running {
            stdin: child.stdin.take(),
            child,
            shown: self.shown,
            lines: Mutex::new(lines),
            said: Some(said),
            complaint: Some(complaint),
            heard,
        }
    }

    /// Runs it to its end.
    #[track_caller]
    pub(crate) fn run(mut self) -> Ran {
        let Some(input) = self.input.take() else { return self.spawn().end() };
        let mut running = self.start();
        let mut stdin = running.stdin.take().unwrap();
        let writer = std::thread::spawn(move || {
            // Whoever does not read all of it has his reasons.
            let _ = stdin.write_all(&input);
        });
        let ran = running.end();
        writer.join().unwrap();
        ran
    }
}

/// Reads to the end, and tells each line on the way.
fn read_lines(from: impl Read, mut tell: impl FnMut(Vec<u8>)) -> Vec<u8> {
    let mut from = BufReader::with_capacity(1 << 16, from);
    let mut all = Vec::new();
    loop {
        let begin = all.len();
        match from.read_until(b'\n', &mut all) {
            Ok(0) | Err(_) => return all,
            Ok(_) => tell(all[begin..].to_vec()),
        }
    }
}

/// A command that runs. Dropped: killed.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) stdin: Option<std::process::ChildStdin>,
    shown: String,
    /// Behind a lock only so that threads of a test may share a swarm.
    lines: Mutex<Receiver<Vec<u8>>>,
    said: Option<JoinHandle<Vec<u8>>>,
    complaint: Option<JoinHandle<Vec<u8>>>,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line of standard output, without its end; fails when none comes.
    #[track_caller]
    pub(crate) fn line(&mut self) -> String {
        match self.lines.get_mut().unwrap().recv_timeout(PATIENCE) {
            Ok(line) => String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned(),
            Err(RecvTimeoutError::Timeout) => panic!("no line in time from: {}", self.shown),
            Err(RecvTimeoutError::Disconnected) => {
                let _ = self.child.wait();
                let complaint = self.complaint.take().map(|thread| thread.join().unwrap()).unwrap_or_default();
                panic!("no more lines from: {}\n{}", self.shown, String::from_utf8_lossy(&complaint))
            }
        }
    }

    /// The next line of standard output as JSON.
    #[track_caller]
    pub(crate) fn json(&mut self) -> Value {
        let line = self.line();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{}: {error}: {line}", self.shown))
    }

    /// What it has said on standard error so far.
    pub(crate) fn heard(&self) -> String {
        String::from_utf8_lossy(&self.heard.lock().unwrap()).into_owned()
    }

    /// Waits until `text` is on standard error.
    #[track_caller]
    pub(crate) fn hear(&self, text: &str) {
        wait_until(&format!("{text:?} on standard error of: {}", self.shown), || self.heard().contains(text));
    }

    pub(crate) fn send(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(text.as_bytes()).unwrap();
        stdin.flush().unwrap();
    }

    pub(crate) fn signal(&self, which: Signal) {
        signal(self.pid(), which);
    }

    /// Its exit status, if it has ended.
    pub(crate) fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Ends its standard input and waits for its end.
    #[track_caller]
    pub(crate) fn end(mut self) -> Ran {
        self.stdin = None;
        let end = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > end {
                let _ = self.child.kill();
                let complaint = self.complaint.take().unwrap().join().unwrap();
                panic!("does not end: {}\n{}", self.shown, String::from_utf8_lossy(&complaint));
            }
            std::thread::sleep(LOOK_AGAIN); // poll: the standard library has no wait with a deadline
        };
        let stdout = self.said.take().unwrap().join().unwrap();
        let complaint = self.complaint.take().unwrap().join().unwrap();
        let stderr = String::from_utf8_lossy(&complaint).into_owned();
        Ran { shown: std::mem::take(&mut self.shown), status, stdout, stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command that has run.
#[derive(Debug)]
pub(crate) struct Ran {
    shown: String,
    status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Ran {
    /// The exit code; a signal fails the test.
    #[track_caller]
    pub(crate) fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("{}: {}\n{}", self.shown, self.status, self.stderr))
    }

    /// Fails unless it ended with `code`.
    #[track_caller]
    pub(crate) fn ended(self, code: i32) -> Ran {
        let out = String::from_utf8_lossy(&self.stdout[..self.stdout.len().min(2_000)]);
        assert_eq!(self.status.code(), Some(code), "{}\n--- stdout:\n{out}\n--- stderr:\n{}", self.shown, self.stderr);
        self
    }

    /// Fails unless it ended with 0.
    #[track_caller]
    pub(crate) fn good(self) -> Ran {
        self.ended(0)
    }

    /// Standard output as text.
    #[track_caller]
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    /// Standard output as JSON values, one per line.
    #[track_caller]
    pub(crate) fn json_lines(&self) -> Vec<Value> {
        self.text().lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
    }

    /// Standard output as one JSON value.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(self.text()).unwrap_or_else(|error| panic!("{}: {error}: {}", self.shown, self.text()))
    }
}

/// A hub with local workers: `essaim up`.
pub(crate) struct Swarm {
    pub(crate) home: Home,
    pub(crate) up: Running,
    /// The ready line.
    pub(crate) ready: Value,
}

impl Swarm {
    /// One local worker with two slots; its languages are known.
    pub(crate) fn start() -> Swarm {
        Swarm::start_with(&["--slots", "2"])
    }

    /// `up` with these words too.
    pub(crate) fn start_with(words: &[&str]) -> Swarm {
        let home = Home::new();
        let up = up(&home, words);
        Swarm::of(home, up)
    }

    /// An `up` that was just started: waits until it is ready and its first worker is.
    pub(crate) fn of(home: Home, up: Words) -> Swarm {
        let mut up = up.start();
        let ready = up.json();
        assert_eq!(ready["ready"], true, "{ready}");
        let swarm = Swarm { home, up, ready };
        swarm.wait_for_node("local-1");
        swarm
    }

    /// Words for the binary, as this hub's user.
    pub(crate) fn essaim(&self, words: &[&str]) -> Words {
        self.home.essaim(words)
    }

    /// `run` with these words.
    pub(crate) fn run(&self, words: &[&str]) -> Words {
        self.essaim(&[&["run"], words].concat())
    }

    /// What `node list` says.
    #[track_caller]
    pub(crate) fn nodes(&self) -> Vec<Value> {
        let nodes = self.essaim(&["node", "list", "--json"]).run().good().json();
        nodes.as_array().unwrap().clone()
    }

    /// Waits until a node is online and its languages are known.
    #[track_caller]
    pub(crate) fn wait_for_node(&self, name: &str) -> Value {
        wait_for(&format!("{name} online with its languages"), || {
            let node = self.nodes().into_iter().find(|node| node["name"] == name)?;
            (node["state"] == "online" && node["probing"] == false).then_some(node)
        })
    }

    /// The first address of the clients' door.
    pub(crate) fn client_address(&self) -> String {
        self.ready["client_addresses"][0].as_str().unwrap().to_owned()
    }

    /// The first address of the workers' door.
    pub(crate) fn worker_address(&self) -> String {
        self.ready["worker_addresses"][0].as_str().unwrap().to_owned()
    }

    /// Ctrl+C; everything is gone afterwards.
    #[track_caller]
    pub(crate) fn stop(self) -> Home {
        self.up.signal(Signal::INT);
        let Swarm { home, up, .. } = self;
        up.end().good();
        home.assert_no_processes();
        home
    }
}

/// The words of an `up`, on free ports unless `words` say others.
pub(crate) fn up(home: &Home, words: &[&str]) -> Words {
    let mut all = vec!["up", "--json"];
    for door in ["--client-addr", "--worker-addr"] {
        if !words.contains(&door) {
            all.extend([door, "127.0.0.1:0"]);
        }
    }
    home.essaim(&[&all, words].concat())
}

/// Numbers that look like chance and come again with the same seed.
pub(crate) struct Dice(u64);

impl Dice {
    /// With the seed of `ESSAIM_SEED`, or a new one, which is printed.
    pub(crate) fn roll() -> Dice {
        let named = std::env::var("ESSAIM_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = named.unwrap_or_else(|| u64::from_le_bytes(essaim_net::ticket::random()) >> 16);
        println!("ESSAIM_SEED={seed}");
        Dice(seed | 1 << 63)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        // Xorshift: short, and good enough to hit different moments.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
}

/// An address that stays free while nobody listens there: below the ports that systems give away by themselves.
pub(crate) fn free_address() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    wait_for("a free port", || {
        let number = std::process::id() * 16 + NEXT.fetch_add(1, Ordering::Relaxed);
        let address = format!("127.0.0.1:{}", 12_000 + number % 20_000);
        std::net::TcpListener::bind(&address).ok().map(|_| address)
    })
}
