//! `run` without a hub: the README's first command, with real processes.
//!
//! Always true: the program's output and exit code are passed on, one line on standard error says what is done, and
//! afterwards no process, folder or file is left, however it ended.
//! Deliberately not here: what a hub of longer life does with programs (`walk`).
#![allow(clippy::unwrap_used)]

mod swarm;

use rustix::process::Signal;
use swarm::{Home, Running, Words, example, processes_with, tree, wait_until};

/// What the user is told.
const NOTE: &str = "no hub is running: using one for this run (start `essaim up` to keep one)\n";

/// A machine without a hub: a data folder that does not exist, and a folder for temporary files.
struct Machine {
    home: Home,
}

impl Machine {
    fn new() -> Machine {
        let home = Home::new();
        std::fs::create_dir(home.path().join("tmp")).unwrap();
        Machine { home }
    }

    fn run(&self, words: &[&str]) -> Words {
        let path = self.home.path();
        let words = [&["run"], words].concat();
        let (data, tmp) = (path.join("data").display().to_string(), path.join("tmp").display().to_string());
        Words::new(swarm::ESSAIM, &words).env("ESSAIM_HOME", &data).env("TMPDIR", &tmp)
    }

    /// Nothing is there that was not there before.
    #[track_caller]
    fn assert_clean(&self) {
        assert_eq!(tree(self.home.path()), ["tmp"], "files are left");
        assert_eq!(processes_with(&self.home.path().display().to_string()), Vec::<u32>::new(), "processes are left");
    }
}

// The first command of the README, on a machine that was never told anything.
#[test]
fn a_program_runs_without_a_hub() {
    let machine = Machine::new();
    for (name, text) in [("python/hello.py", "Python"), ("c/hello.c", "C"), ("shell/hello.sh", "the shell")] {
        let ran = machine.run(&[&example(name)]).run().good();
        assert_eq!((ran.text(), ran.stderr.as_str()), (format!("Hello from {text}!\n").as_str(), NOTE));
        machine.assert_clean();
    }
    let quiet = machine.run(&["--quiet", &example("python/answer.py")]).input("Ann\n").run().good();
    assert_eq!((quiet.text(), quiet.stderr.as_str()), ("Hello, Ann!\n1 answered.\n", ""));
    let command = machine.run(&["--command", "--", "echo", "two words"]).run().good();
    assert_eq!(command.text(), "two words\n");
    machine.assert_clean();
}

// Exit codes and refusals are those of any run.
#[test]
fn it_ends_as_the_program_ends() {
    let machine = Machine::new();
    for (name, code) in [("python/exit_code.py", 3), ("c/segfault.c", 139), ("c/compile_error.c", 1)] {
        let ran = machine.run(&[&example(name)]).run().ended(code);
        assert!(ran.stderr.starts_with(NOTE), "{}", ran.stderr);
        machine.assert_clean();
    }
    machine.run(&["--time", "200ms", "--command", "sleep", "60"]).run().ended(124);
    machine.assert_clean();
    let unknown = machine.run(&[&example("README.md")]).run().ended(125);
    assert!(unknown.stderr.starts_with("error: The language of README.md is unknown."), "{}", unknown.stderr);
    let lacking = machine.run(&["--lang", "javascript", "-"]).env("PATH", "/nowhere").input("1").run().ended(125);
    let said = lacking.stderr.strip_prefix(NOTE).unwrap();
    assert!(said.starts_with("error: No node can run javascript: `node` was not found"), "{said}");
    assert_eq!(said.lines().count(), 1);
    machine.assert_clean();
}

/// A program with a child in a session of its own; both carry the machine's path in their command lines.
fn start_family(machine: &Machine) -> Running {
    let mark = machine.home.path().display().to_string();
    let script = "setsid sleep 600.1 & exec sh -c 'echo started; sleep 600.2; true' sh \"$0\"";
    let mut run = machine.run(&["--command", "--", "sh", "-c", script, &mark]).start();
    assert_eq!(run.line(), "started");
    // Ourselves, the worker, its cage, the shell, and both sleeps: what is counted afterwards can be seen before.
    wait_until("six processes", || processes_with(&mark).len() >= 6);
    run
}

// The first Ctrl+C kills the program with all its children and clears up.
#[test]
fn ctrl_c_leaves_nothing_behind() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let machine = Machine::new();
        let run = start_family(&machine);
        run.signal(signal);
        run.end().ended(130);
        machine.assert_clean();
    }
}

// Not even a client that is killed leaves its worker, its program or its folder.
#[test]
fn a_killed_run_leaves_nothing_behind() {
    let machine = Machine::new();
    let run = start_family(&machine);
    run.signal(Signal::KILL);
    drop(run);
    let mark = machine.home.path().display().to_string();
    wait_until("the processes' end", || processes_with(&mark).is_empty());
    wait_until("the folder's end", || tree(machine.home.path()) == ["tmp"]);
}
