//! Who ends what: Ctrl+C and its relatives, `job cancel`, and processes of ours that are killed without a word. We start
//! programs that do not want to die, look for them by a mark in their environment, and for the exit code of `run`.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod processes;
mod swarm;

use processes::{cage_of, descendants, is_alive, marked, new_mark, worker_of};
use rustix::process::Signal;
use std::path::Path;
use swarm::{Home, Running, Swarm, signal, wait_until};

/// Five processes: the program, a child in a session of its own, a daemon (forked twice), one that ignores all signals,
/// and one that was stopped. All but the stopped one ignore what can be ignored.
const STUBBORN: &str = "
import os, signal, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
def child(begin):
    pid = os.fork()
    if pid == 0:
        begin()
        while True: time.sleep(600)
    return pid
def daemon():
    os.setsid()
    if os.fork(): os._exit(0)
    os.chdir('/')
child(os.setsid)
os.waitpid(child(daemon), 0)
child(lambda: None)
child(lambda: os.kill(os.getpid(), signal.SIGSTOP))
print('all are there', flush=True)
while True: time.sleep(600)
";
const STUBBORN_PROCESSES: usize = 5;

/// Begins a run of the stubborn program; all of its processes are there when this returns.
fn stubborn(swarm: &Swarm, mark: &str, more: &[&str]) -> Running {
    stubborn_in(&swarm.home, mark, more)
}

fn stubborn_in(home: &Home, mark: &str, more: &[&str]) -> Running {
    let file = home.path().join("stubborn.py");
    std::fs::write(&file, STUBBORN).unwrap();
    let words = [&["run", "--env", mark], more, &[file.to_str().unwrap()]].concat();
    // For a run without a hub: its folder is to be seen.
    let mut run = home.essaim(&words).env("TMPDIR", &home.path().display().to_string()).start();
    assert_eq!(run.line(), "all are there");
    wait_until("the whole tree is there", || marked(mark).len() == STUBBORN_PROCESSES);
    run
}

/// A program that ends when `flag` is there, and says so.
fn patient(flag: &Path) -> String {
    let flag = flag.display();
    format!("echo begun; while [ ! -e '{flag}' ]; do sleep 0.05; done; echo ended")
}

/// What the hub says about the first job.
fn show(swarm: &Swarm) -> serde_json::Value {
    swarm.essaim(&["job", "show", "1", "--json"]).run().good().json()
}

fn gone(mark: &str) {
    wait_until("nothing of the program is left", || marked(mark).is_empty());
}

// Each signal that asks `run` to end: is the remote tree dead, and is that said by 130?
#[test]
fn a_signal_to_run_kills_the_remote_tree() {
    let swarm = Swarm::start();
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let mark = new_mark();
        let run = stubborn(&swarm, &mark, &[]);
        run.signal(signal);
        let ran = run.end().ended(130);
        assert!(ran.stderr.contains("cancelling job"), "{}", ran.stderr);
        gone(&mark);
    }
}

// From elsewhere: `job cancel` does the same, and the one who watches hears of it.
#[test]
fn job_cancel_kills_the_remote_tree() {
    let swarm = Swarm::start();
    let mark = new_mark();
    let run = stubborn(&swarm, &mark, &[]);
    swarm.essaim(&["job", "cancel", "1"]).run().good();
    let ran = run.end().ended(130);
    assert!(ran.stderr.contains("cancelled"), "{}", ran.stderr);
    gone(&mark);
    assert_eq!(show(&swarm)["state"], "cancelled");
}

// A program that somebody stopped cannot hear anything: is it killed all the same?
#[test]
fn a_stopped_program_is_killed() {
    let swarm = Swarm::start();
    let mark = new_mark();
    let run = stubborn(&swarm, &mark, &[]);
    for pid in marked(&mark) {
        signal(pid, Signal::STOP);
    }
    wait_until("all are stopped", || marked(&mark).iter().all(|pid| processes::state(*pid) == Some('T')));
    run.signal(Signal::INT);
    run.end().ended(130);
    gone(&mark);
}

// The first Ctrl+C waits for a worker that does not answer; the second does not. The worker does its duty later.
#[test]
fn a_second_ctrl_c_ends_run_at_once() {
    let swarm = Swarm::start();
    let mark = new_mark();
    let run = stubborn(&swarm, &mark, &[]);
    let worker = worker_of(swarm.up.pid());
    signal(worker, Signal::STOP);
    run.signal(Signal::INT);
    run.hear("cancelling job");
    run.signal(Signal::INT);
    run.end().ended(130);
    assert_eq!(marked(&mark).len(), STUBBORN_PROCESSES, "the worker was stopped: the first Ctrl+C was not waited for");
    signal(worker, Signal::CONT);
    gone(&mark);
}

/// Kills `victim` while a program runs whose first attempt never ends; the second one does.
fn run_survives_the_death_of(swarm: &Swarm, victim: u32) {
    let mark = new_mark();
    let flag = swarm.home.path().join(format!("{victim}.flag"));
    let script = format!(
        "if [ -e '{0}' ]; then echo again; else touch '{0}'; (setsid sleep 600 &) ; echo once; sleep 600; fi",
        flag.display()
    );
    let mut run = swarm.essaim(&["run", "--env", &mark, "--command", "--", "sh", "-c", &script]).start();
    assert_eq!(run.line(), "once");
    let first_attempt = marked(&mark);
    signal(victim, Signal::KILL);
    wait_until("the first attempt is dead", || !first_attempt.iter().any(|pid| is_alive(*pid)));
    assert_eq!(run.line(), "again");
    let ran = run.end().ended(0);
    assert!(ran.stderr.contains("this is attempt 2"), "{}", ran.stderr);
    gone(&mark);
    wait_until("the victim is no zombie", || processes::state(victim).is_none());
}

// A worker that is killed takes its programs along; `up` starts it again, and the job runs again.
#[test]
fn a_killed_worker_leaves_nothing_and_comes_back() {
    let swarm = Swarm::start();
    let worker = worker_of(swarm.up.pid());
    run_survives_the_death_of(&swarm, worker);
    assert_ne!(worker_of(swarm.up.pid()), worker);
    assert_eq!(swarm.essaim(&["run", "--command", "--", "echo", "well"]).run().good().text(), "well\n");
}

// The same for the cage: its worker starts another one, and stays.
#[test]
fn a_killed_cage_leaves_nothing_and_comes_back() {
    let swarm = Swarm::start();
    let (worker, cage) = (worker_of(swarm.up.pid()), cage_of(swarm.up.pid()));
    run_survives_the_death_of(&swarm, cage);
    assert_eq!(worker_of(swarm.up.pid()), worker);
    assert_ne!(cage_of(swarm.up.pid()), cage);
    assert_eq!(swarm.essaim(&["run", "--command", "--", "echo", "well"]).run().good().text(), "well\n");
}

// A program that takes its cage along each time is not tried for ever. Between two cages no attempt is wasted.
#[test]
fn a_program_that_loses_its_cage_is_tried_three_times() {
    let swarm = Swarm::start();
    let mark = new_mark();
    let words = ["run", "--env", &mark, "--command", "--", "sh", "-c", "echo here; sleep 600"];
    let mut run = swarm.essaim(&words).start();
    for _ in 0..3 {
        assert_eq!(run.line(), "here");
        signal(cage_of(swarm.up.pid()), Signal::KILL);
    }
    let ran = run.end().ended(125);
    assert_eq!(ran.text().lines().count(), 3);
    assert!(ran.stderr.contains("this is attempt 3"), "{}", ran.stderr);
    gone(&mark);
}

// A client that vanishes leaves its job alone; what the program says is there for whoever asks.
#[test]
fn a_job_survives_its_client() {
    let swarm = Swarm::start();
    let mark = new_mark();
    let flag = swarm.home.path().join("flag");
    let mut run = swarm.essaim(&["run", "--env", &mark, "--command", "--", "sh", "-c", &patient(&flag)]).start();
    assert_eq!(run.line(), "begun");
    run.signal(Signal::KILL);
    run.end();
    std::fs::write(&flag, "").unwrap();
    swarm.essaim(&["job", "wait", "1"]).run().good();
    assert_eq!(swarm.essaim(&["job", "logs", "1"]).run().good().text(), "begun\nended\n");
    gone(&mark);
}

// With --ephemeral it is the other way round.
#[test]
fn an_ephemeral_job_ends_with_its_client() {
    let swarm = Swarm::start();
    let mark = new_mark();
    let run = stubborn(&swarm, &mark, &["--ephemeral"]);
    run.signal(Signal::KILL);
    run.end();
    gone(&mark);
    wait_until("the job is cancelled", || show(&swarm)["state"] == "cancelled");
}

// Without a hub `run` is all there is: when it ends, by a signal or without a word, nothing of its hub and worker is left.
#[test]
fn a_run_without_a_hub_leaves_nothing() {
    let home = Home::new();
    for (signal, code) in [(Signal::INT, Some(130)), (Signal::KILL, None)] {
        let mark = new_mark();
        let mut run = stubborn_in(&home, &mark, &[]);
        let ours = descendants(run.pid());
        run.signal(signal);
        assert_eq!(run.child.wait().unwrap().code(), code);
        gone(&mark);
        wait_until("worker and cage are gone", || !ours.iter().any(|pid| is_alive(*pid)));
        wait_until("only our own file is left", || swarm::tree(home.path()) == ["stubborn.py"]);
    }
}
