//! What the tests of the cage share: a cage in a process of its own, programs with pipes, and a look at /proc.
//!
//! Every wait here is for a condition and has a generous deadline; nothing sleeps instead of waiting.

use std::io::{PipeReader, PipeWriter, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use essaim_sandbox::{
    Cage, Capture, Event, Evidence, Isolation, Limits, OutputPipes, Printed, RoomFolder, Start, Stdio3,
};

/// How long a condition may take. Far more than anything needs on a loaded machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// The name of the environment variable by which we find the processes of one test.
pub(crate) const MARK: &str = "ESSAIM_SANDBOX_TEST";

/// A cage in its own process, and the worker's end of its socket.
pub(crate) struct Bench {
    pub(crate) cage: Arc<Cage>,
    pub(crate) process: Child,
    /// A value of `MARK` that no other test has.
    pub(crate) mark: String,
    events: Receiver<Event>,
    kept: Vec<Event>,
    next_id: u64,
}

impl Bench {
    pub(crate) fn new() -> Bench {
        Bench::of(None)
    }

    /// A cage of an ordinary user.
    pub(crate) fn of_user(user: u32) -> Bench {
        Bench::of(Some(user))
    }

    fn of(user: Option<u32>) -> Bench {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let mark = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let (worker_end, cage_end) = essaim_sandbox::socket_pair().unwrap();
        let executable = std::env::current_exe().unwrap();
        let mut command = match user {
            None => Command::new(executable),
            Some(user) => {
                let mut command = Command::new("setpriv");
                let ids = [format!("--reuid={user}"), format!("--regid={user}"), "--clear-groups".to_owned()];
                command.args(ids).arg("--").arg(executable);
                command
            }
        };
        let process = command.arg("__cage").stdin(Stdio::from(cage_end)).spawn().unwrap();
        let cage = Arc::new(Cage::new(worker_end));
        let (sender, events) = channel();
        let reading = Arc::clone(&cage);
        std::thread::spawn(move || {
            while let Ok(Some(event)) = reading.next_event() {
                if sender.send(event).is_err() {
                    return;
                }
            }
        });
        Bench { cage, process, mark, events, kept: Vec::new(), next_id: 1 }
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.process.id()).unwrap()
    }

    /// The plainest program: /bin/sh with a script, PATH and our mark in its environment.
    pub(crate) fn shell(&mut self, script: &str) -> Start {
        self.argv(&["/bin/sh", "-c", script])
    }

    pub(crate) fn argv(&mut self, argv: &[&str]) -> Start {
        self.next_id += 1;
        Start {
            id: self.next_id,
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            env: vec![
                ("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned()),
                (MARK.to_owned(), self.mark.clone()),
            ],
            cwd: "/".into(),
            wall_limit_ms: None,
            nice: 5,
            at_once: None,
            room: None,
            limits: Limits::default(),
        }
    }

    /// Starts it with three pipes.
    pub(crate) fn start(&self, start: Start) -> Running {
        let id = start.id;
        let (stdin, stdin_writer) = std::io::pipe().unwrap();
        let (stdout_reader, stdout) = std::io::pipe().unwrap();
        let (stderr_reader, stderr) = std::io::pipe().unwrap();
        let stdio = Stdio3 { stdin: stdin.into(), stdout: stdout.into(), stderr: stderr.into() };
        self.cage.start(start, stdio).unwrap();
        Running { id, stdin: Some(stdin_writer), stdout: drain(stdout_reader), stderr: drain(stderr_reader) }
    }

    /// Starts it with /dev/null as its three streams.
    pub(crate) fn start_quiet(&self, start: Start) -> u64 {
        let id = start.id;
        let null = || -> OwnedFd { std::fs::File::options().read(true).write(true).open("/dev/null").unwrap().into() };
        self.cage.start(start, Stdio3 { stdin: null(), stdout: null(), stderr: null() }).unwrap();
        id
    }

    /// Runs a script to its end.
    pub(crate) fn run(&mut self, script: &str) -> Ended {
        let start = self.shell(script);
        let mut running = self.start(start);
        running.stdin = None;
        self.finish(running)
    }

    /// Runs a script to its end, captured. Whether its output came with its end depends on how long it lived.
    pub(crate) fn run_captured(&mut self, script: &str, capture: Capture) -> Ended {
        let start = self.shell(script);
        let id = self.start_captured(start, capture);
        self.finish_captured(id)
    }

    pub(crate) fn start_captured(&self, start: Start, capture: Capture) -> u64 {
        let id = start.id;
        self.cage.start_captured(&start, capture).unwrap();
        id
    }

    /// Waits for the end and for all output, wherever it comes from.
    pub(crate) fn finish_captured(&mut self, id: u64) -> Ended {
        self.finish_or_return(id).expect("it has not begun")
    }

    /// The same for one that may wait. `None`: it has not begun, and came back.
    pub(crate) fn finish_or_return(&mut self, id: u64) -> Option<Ended> {
        let (mut pipes, mut ended) = (None, None);
        while ended.is_none() {
            match self.next_of(id) {
                Event::Started { .. } => assert!(pipes.is_none()),
                Event::Output { pipes: found, .. } => {
                    assert!(pipes.is_none(), "given away twice");
                    pipes = Some(OutputPipes { stdout: found.stdout, stderr: found.stderr });
                }
                Event::Ended { evidence, output, .. } => ended = Some((evidence, output)),
                Event::StartFailed { step, errno, .. } => panic!("{step} {errno}"),
                Event::Returned { .. } => {
                    assert!(pipes.is_none());
                    return None;
                }
                Event::WaitingForInput { .. } | Event::Sample { .. } => {}
                Event::RoomReady { .. } | Event::RoomFailed { .. } => {}
            }
        }
        let (evidence, output) = ended.unwrap();
        let at_once = pipes.is_none();
        let Printed { stdout, stderr } = match pipes {
            None => output,
            Some(pipes) => {
                assert_eq!(output, Printed::default(), "what is in the pipes is there only");
                let read = |end: Option<OwnedFd>| {
                    let mut bytes = Vec::new();
                    end.map(|end| PipeReader::from(end).read_to_end(&mut bytes).unwrap());
                    bytes
                };
                Printed { stdout: read(pipes.stdout), stderr: read(pipes.stderr) }
            }
        };
        Some(Ended { evidence, stdout, stderr, at_once })
    }

    /// Opens a room and waits for it.
    pub(crate) fn room(&mut self) -> Room {
        self.next_id += 1;
        let id = self.next_id;
        self.cage.open_room(id).unwrap();
        self.room_ready(id).unwrap_or_else(|why| panic!("{why}"))
    }

    /// Waits for the answer to a request for a room.
    pub(crate) fn room_ready(&mut self, id: u64) -> Result<Room, String> {
        let until = Instant::now() + DEADLINE;
        loop {
            let is_answer = |event: &Event| match event {
                Event::RoomReady { id: found, .. } | Event::RoomFailed { id: found, .. } => *found == id,
                _ => false,
            };
            if let Some(place) = self.kept.iter().position(is_answer) {
                return match self.kept.remove(place) {
                    Event::RoomReady { isolation, folder, .. } => Ok(Room { id, isolation, folder: folder.unwrap() }),
                    Event::RoomFailed { why, .. } => Err(why),
                    _ => unreachable!(),
                };
            }
            let left = until.saturating_duration_since(Instant::now());
            let event = self.events.recv_timeout(left).unwrap();
            self.kept.push(event);
        }
    }

    /// Runs a program in a room to its end, captured, in the room's folder.
    pub(crate) fn run_in(&mut self, room: &Room, argv: &[&str]) -> Ended {
        let start = self.in_room(room, argv);
        let id = self.start_captured(start, Capture::Apart);
        self.finish_captured(id)
    }

    /// A program for a room.
    pub(crate) fn in_room(&mut self, room: &Room, argv: &[&str]) -> Start {
        Start { room: Some(room.id), cwd: "/box".into(), ..self.argv(argv) }
    }

    /// Takes the pipes of a captured program that runs on.
    pub(crate) fn output(&mut self, id: u64) -> OutputPipes {
        loop {
            if let Event::Output { pipes, .. } = self.next_of(id) {
                return pipes;
            }
        }
    }

    /// The next event of a program.
    fn next_of(&mut self, id: u64) -> Event {
        let of = |event: &Event| match event {
            Event::RoomReady { .. } | Event::RoomFailed { .. } => None,
            Event::Started { id, .. }
            | Event::StartFailed { id, .. }
            | Event::WaitingForInput { id, .. }
            | Event::Sample { id, .. }
            | Event::Output { id, .. }
            | Event::Returned { id }
            | Event::Ended { id, .. } => Some(*id),
        };
        loop {
            if let Some(place) = self.kept.iter().position(|event| of(event) == Some(id)) {
                return self.kept.remove(place);
            }
            let event = self.events.recv_timeout(DEADLINE).unwrap();
            self.kept.push(event);
        }
    }

    /// Waits for the end and for all output.
    pub(crate) fn finish(&mut self, running: Running) -> Ended {
        let evidence = self.ended(running.id);
        let text = |thread: JoinHandle<Vec<u8>>| thread.join().unwrap();
        Ended { evidence, stdout: text(running.stdout), stderr: text(running.stderr), at_once: false }
    }

    pub(crate) fn started(&mut self, id: u64) -> i32 {
        self.event(|event| match event {
            Event::Started { id: found, pid } if *found == id => Some(*pid),
            _ => None,
        })
    }

    pub(crate) fn ended(&mut self, id: u64) -> Evidence {
        self.event(|event| match event {
            Event::Ended { id: found, evidence, .. } if *found == id => Some(evidence.clone()),
            _ => None,
        })
    }

    pub(crate) fn start_failed(&mut self, id: u64) -> (String, i32) {
        self.event(|event| match event {
            Event::StartFailed { id: found, step, errno } if *found == id => Some((step.clone(), *errno)),
            _ => None,
        })
    }

    /// Waits for the first event that `wanted` accepts and takes it out; keeps the others.
    pub(crate) fn event<T>(&mut self, wanted: impl Fn(&Event) -> Option<T>) -> T {
        let until = Instant::now() + DEADLINE;
        loop {
            if let Some((place, value)) =
                self.kept.iter().enumerate().find_map(|(place, event)| Some((place, wanted(event)?)))
            {
                self.kept.remove(place);
                return value;
            }
            match self.events.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(event) => self.kept.push(event),
                Err(RecvTimeoutError::Timeout) => panic!("event did not come; kept: {:?}", self.kept),
                Err(RecvTimeoutError::Disconnected) => panic!("the cage is gone; kept: {:?}", self.kept),
            }
        }
    }

    /// Events that came and were not taken.
    pub(crate) fn others(&mut self) -> Vec<Event> {
        self.kept.extend(self.events.try_iter());
        std::mem::take(&mut self.kept)
    }

    /// Processes alive that carry this bench's mark.
    pub(crate) fn marked(&self) -> Vec<i32> {
        marked(&self.mark)
    }

    /// Waits for the cage's process to exit.
    pub(crate) fn wait_for_exit(&mut self) -> std::process::ExitStatus {
        let mut status = None;
        until("the cage exits", || {
            status = self.process.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.cage.shut_down();
        if !std::thread::panicking() {
            self.wait_for_exit();
            assert_eq!(self.marked(), [], "processes left after the cage");
        }
    }
}

/// An open room.
pub(crate) struct Room {
    pub(crate) id: u64,
    pub(crate) isolation: Isolation,
    pub(crate) folder: RoomFolder,
}

impl Room {
    pub(crate) fn put(&self, name: &str, content: &str) {
        self.folder.put(Path::new(name), content.as_bytes(), 0o644).unwrap();
    }

    pub(crate) fn get(&self, name: &str) -> String {
        String::from_utf8(self.folder.get(Path::new(name), 1 << 20).unwrap()).unwrap()
    }
}

/// A program with the worker's ends of its pipes.
pub(crate) struct Running {
    pub(crate) id: u64,
    pub(crate) stdin: Option<PipeWriter>,
    stdout: JoinHandle<Vec<u8>>,
    stderr: JoinHandle<Vec<u8>>,
}

/// A program that ended, and all that it said.
pub(crate) struct Ended {
    pub(crate) evidence: Evidence,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    /// Its output came with its end.
    pub(crate) at_once: bool,
}

impl Ended {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    /// What it printed, if it ended well.
    pub(crate) fn ok(&self) -> &str {
        let complaint = String::from_utf8_lossy(&self.stderr);
        assert_eq!(self.evidence.exit_code, Some(0), "{:?} {complaint}", self.evidence);
        self.text()
    }
}

fn drain(mut pipe: PipeReader) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

/// Waits for a condition.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < DEADLINE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2)); // poll: other processes send us no event.
    }
}

/// Processes alive (a zombie has no environment any more) that carry a mark.
pub(crate) fn marked(mark: &str) -> Vec<i32> {
    let wanted = format!("{MARK}={mark}");
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(environment) = std::fs::read(entry.path().join("environ")) else { continue };
        if environment.split(|byte| *byte == 0).any(|line| line == wanted.as_bytes()) {
            found.push(pid);
        }
    }
    found
}

/// Open file descriptors of a process.
pub(crate) fn open_files(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Children of a cage, dead or alive, except inits that wait for a program: alive and without a child.
pub(crate) fn children(cage: i32) -> Vec<i32> {
    let children = |pid: i32| -> Vec<i32> {
        let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        list.split_ascii_whitespace().map(|word| word.parse().unwrap()).collect()
    };
    let waits = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        (stat.contains("(essaim-init) S") || stat.contains("(essaim-room) S")) && children(*pid).is_empty()
    };
    children(cage).into_iter().filter(|pid| !waits(pid)).collect()
}

/// Sends a signal by its name, as a person would.
pub(crate) fn send_signal(name: &str, pid: i32) {
    let status = Command::new("/bin/kill").args(["-s", name, &pid.to_string()]).status().unwrap();
    assert!(status.success(), "kill -s {name} {pid}");
}

/// Whether there is something at a path, a link to nothing included.
pub(crate) fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
