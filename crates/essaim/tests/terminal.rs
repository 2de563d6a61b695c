//! Commands at a terminal, as a person has them: what a pipe does not show (logs, Ctrl+C as a key, Ctrl+D, what is said while
//! a program waits). The terminal is a pseudo-terminal whose other end we hold.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod swarm;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use swarm::{ESSAIM, Home, Swarm, example, wait_for, wait_until};

/// A command that has a terminal of its own.
struct Session {
    child: Child,
    keys: File,
    screen: Arc<Mutex<Vec<u8>>>,
}

impl Session {
    fn begin(home: &Home, words: &[&str]) -> Session {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let name = ptsname(&ours, Vec::new()).unwrap();
        tcsetwinsize(&ours, Winsize { ws_row: 24, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        let theirs = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        // With a session of its own, whose terminal this becomes: else Ctrl+C would be a byte and no signal.
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait", ESSAIM]).args(words).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap()).env("TERM", "xterm").env("ESSAIM_HOME", home.path());
        command.stdin(theirs.try_clone().unwrap()).stdout(theirs.try_clone().unwrap()).stderr(theirs);
        let child = command.spawn().unwrap();
        let keys = File::from(ours);
        let screen = Arc::<Mutex<Vec<u8>>>::default();
        let (mut from, into) = (keys.try_clone().unwrap(), Arc::clone(&screen));
        std::thread::spawn(move || {
            let mut buffer = [0; 4_096];
            // An error is the end: nobody has the terminal any more.
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                into.lock().unwrap().extend_from_slice(&buffer[..count]);
            }
        });
        Session { child, keys, screen }
    }

    fn screen(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().unwrap()).replace('\r', "")
    }

    #[track_caller]
    fn shows(&self, text: &str) {
        wait_until(&format!("{text:?} on the screen"), || {
            let shown = self.screen();
            assert!(!shown.contains("panicked"), "{shown}");
            shown.contains(text)
        });
    }

    fn types(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits for its end; gives the exit code.
    #[track_caller]
    fn ends(&mut self) -> i32 {
        let status = wait_for(&format!("the end of the session: {}", self.screen()), || self.child.try_wait().unwrap());
        status.code().unwrap()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// `up` at a terminal: it is ready, and the keys Ctrl+C end it. What it says stands on lines of its own.
#[test]
fn up_works_at_a_terminal() {
    let home = Home::new();
    let words = ["up", "--client-addr", "127.0.0.1:0", "--worker-addr", "127.0.0.1:0"];
    let mut up = Session::begin(&home, &words);
    up.shows(" is ready: clients 127.0.0.1:");
    up.shows("Ctrl+C stops");
    // Its worker logs to the same terminal.
    wait_until("the worker is there", || {
        let nodes = home.essaim(&["node", "list", "--json"]).run().good().json();
        nodes[0]["state"] == "online" && nodes[0]["probing"] == false
    });
    let mut run =
        home.essaim(&["run", "--name", "long", "--command", "--", "sh", "-c", "echo begun; sleep 600"]).start();
    assert_eq!(run.line(), "begun");
    up.types("\x03");
    up.shows("\nwaiting up to 10 s for what runs; Ctrl+C once more stops at once:\n  job 1  long  on local-1\n");
    up.types("\x03");
    assert_eq!(up.ends(), 0, "{}", up.screen());
    run.end().ended(125);
}

// `run` at a terminal: it says that the program waits, takes what is typed, and Ctrl+D ends that.
#[test]
fn a_program_is_talked_to_at_a_terminal() {
    let swarm = Swarm::start();
    let mut run = Session::begin(&swarm.home, &["run", &example("python/answer.py")]);
    run.shows("waiting for input (Ctrl+D ends it)\n");
    run.types("Ann\n");
    run.shows("Hello, Ann!\n");
    run.types("\x04");
    assert_eq!(run.ends(), 0, "{}", run.screen());
    run.shows("1 answered.\n");
}

// Ctrl+C as a key: the program is cancelled, and that is said on a line of its own.
#[test]
fn ctrl_c_at_a_terminal_cancels() {
    let swarm = Swarm::start();
    let mut run = Session::begin(&swarm.home, &["run", "--command", "--", "sh", "-c", "echo begun; sleep 600"]);
    run.shows("begun\n");
    run.types("\x03");
    assert_eq!(run.ends(), 130, "{}", run.screen());
    run.shows("\ncancelling job 1 (once more: leave at once)\n");
}

// Without a hub, all of it in one process tree: its worker has the terminal for its logs too.
#[test]
fn an_embedded_hub_works_at_a_terminal() {
    let home = Home::new();
    let mut run = Session::begin(&home, &["run", &example("shell/hello.sh")]);
    assert_eq!(run.ends(), 0, "{}", run.screen());
    run.shows("no hub is running: using one for this run");
    run.shows("Hello from");
}

// An array at a terminal: a line says how far it is while it runs, and is gone when it is over.
#[test]
fn an_array_shows_how_far_it_is() {
    let swarm = Swarm::start();
    let words =
        ["run", "--array", "1-2", "--command", "--", "sh", "-c", "while ! test -e \"$0\"; do sleep 0.05; done; exit 3"];
    let go = swarm.home.path().join("go");
    let mut run = Session::begin(&swarm.home, &[&words[..], &[go.to_str().unwrap()]].concat());
    run.shows("[....................]  0/2");
    std::fs::write(&go, "").unwrap();
    assert_eq!(run.ends(), 3, "{}", run.screen());
    run.shows("\x1b[K2 of 2 tasks failed: 1-2; essaim job rerun 1 --only failed\n");
}
