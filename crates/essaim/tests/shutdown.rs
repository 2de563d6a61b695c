//! The end of `essaim up`: what it says, what it waits for, and that nothing of it is left: no process, no program, no
//! port, no hub file. Programs are found by a mark in their environment.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod processes;
mod swarm;

use processes::{descendants, is_alive, marked, new_mark};
use rustix::process::Signal;
use std::net::TcpListener;
use swarm::{Home, Ran, Running, Swarm, up, wait_until};

/// Begins a program that ends when the file `flag` is in the home, and leaves a file `done` there.
fn patient(swarm: &Swarm, mark: &str) -> Running {
    let home = swarm.home.path().display();
    let script =
        format!("echo begun; until [ -e '{home}/flag' ]; do sleep 0.05; done; echo ended; touch '{home}/done'");
    let words = ["run", "--env", mark, "--name", "patient", "--command", "--", "sh", "-c", &script];
    let mut run = swarm.essaim(&words).start();
    assert_eq!(run.line(), "begun");
    run
}

/// Begins a program that ignores what can be ignored, with a child in a session of its own.
fn stubborn(swarm: &Swarm, mark: &str) -> Running {
    let script = "trap '' TERM INT HUP; (setsid sleep 600 &); echo begun; while :; do sleep 600; done";
    let mut run = swarm.essaim(&["run", "--env", mark, "--command", "--", "sh", "-c", script]).start();
    assert_eq!(run.line(), "begun");
    wait_until("the program is there with its children", || marked(mark).len() == 3);
    run
}

/// Waits for the end of `up` and looks whether anything of it is left.
fn ended_without_a_trace(swarm: Swarm, mark: &str) -> (Home, Ran) {
    let ours = descendants(swarm.up.pid());
    let addresses = [swarm.client_address(), swarm.worker_address()];
    let Swarm { home, up, .. } = swarm;
    let ran = up.end().good();
    assert_eq!(marked(mark), Vec::<u32>::new(), "a program outlived `up`");
    let alive: Vec<u32> = ours.into_iter().filter(|pid| is_alive(*pid)).collect();
    assert_eq!(alive, Vec::<u32>::new(), "a process of ours outlived `up`");
    for address in addresses {
        drop(TcpListener::bind(&address).unwrap());
    }
    assert!(!home.path().join("hub.json").exists());
    for work in std::fs::read_dir(home.path().join("local")).unwrap() {
        let left = swarm::tree(&work.unwrap().path().join("work"));
        assert!(left.is_empty(), "{left:?}");
    }
    (home, ran)
}

// The first Ctrl+C says what runs and lets it end; then `up` ends by itself. The one who watched got all of it.
#[test]
fn the_first_ctrl_c_waits_for_what_runs() {
    let swarm = Swarm::start();
    let mark = new_mark();
    let run = patient(&swarm, &mark);
    swarm.up.signal(Signal::INT);
    swarm.up.hear("waiting up to 10 s for what runs");
    swarm.up.hear("job 1  patient  on local-1");
    let refused = swarm.run(&["--command", "--", "true"]).run().ended(125);
    assert!(refused.stderr.starts_with("error:") && refused.stderr.contains("shutting down"), "{}", refused.stderr);
    std::fs::write(swarm.home.path().join("flag"), "").unwrap();
    assert_eq!(run.end().good().text(), "begun\nended\n");
    let (_home, ran) = ended_without_a_trace(swarm, &mark);
    assert!(!ran.stderr.contains("stopping what still runs"), "{}", ran.stderr);
}

// The second Ctrl+C stops at once. The one who watches hears of it in one sentence.
#[test]
fn a_second_ctrl_c_stops_at_once() {
    let swarm = Swarm::start();
    let mark = new_mark();
    let run = stubborn(&swarm, &mark);
    swarm.up.signal(Signal::INT);
    swarm.up.hear("waiting up to 10 s for what runs");
    swarm.up.signal(Signal::INT);
    let (_home, ran) = ended_without_a_trace(swarm, &mark);
    assert!(!ran.stderr.contains("stopping what still runs"), "{}", ran.stderr);
    let watched = run.end().ended(125);
    assert!(watched.stderr.contains("job 1: the hub was stopped"), "{}", watched.stderr);
    assert!(watched.stderr.lines().last().unwrap().starts_with("error: "), "{}", watched.stderr);
}

// What does not end in 10 seconds is stopped, and SIGTERM is as good as Ctrl+C.
#[test]
fn what_does_not_end_in_time_is_stopped() {
    let swarm = Swarm::start();
    let mark = new_mark();
    let run = stubborn(&swarm, &mark);
    swarm.up.signal(Signal::TERM);
    let (_home, ran) = ended_without_a_trace(swarm, &mark);
    assert!(ran.stderr.contains("stopping what still runs"), "{}", ran.stderr);
    run.end().ended(125);
}

// With nothing to wait for, each signal ends it at once, and what it left is good for the next start.
#[test]
fn an_idle_up_ends_at_once_and_starts_again() {
    let mut home = None;
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let swarm = match home.take() {
            None => Swarm::start(),
            Some(home) => {
                let words = up(&home, &[]);
                Swarm::of(home, words)
            }
        };
        swarm.run(&["--command", "--", "true"]).run().good();
        swarm.up.signal(signal);
        let (left, ran) = ended_without_a_trace(swarm, "nobody");
        assert!(!ran.stderr.contains("waiting"), "{}", ran.stderr);
        home = Some(left);
    }
}

/// Kills `up` without a word and starts another one on the same folder and ports.
fn killed_and_started_again(swarm: Swarm) -> (Swarm, Vec<u32>) {
    let old = descendants(swarm.up.pid());
    let (clients, workers) = (swarm.client_address(), swarm.worker_address());
    swarm.up.signal(Signal::KILL);
    let Swarm { home, up: mut killed, .. } = swarm;
    // Its workers hold its standard error: waiting for the end of that would be waiting for them.
    killed.child.wait().unwrap();
    let words = home.essaim(&["up", "--json", "--slots", "2", "--client-addr", &clients, "--worker-addr", &workers]);
    let mut up = words.start();
    let ready = up.json();
    assert_eq!((&ready["client_addresses"][0], &ready["worker_addresses"][0]), (&clients.into(), &workers.into()));
    (Swarm { home, up, ready }, old)
}

// After a `kill -9` of an idle `up` a new one works with its workers, on the same ports at once, and takes them along when
// it ends.
#[test]
fn a_new_up_adopts_the_workers_of_a_killed_one() {
    let (swarm, old) = killed_and_started_again(Swarm::start());
    assert_eq!(swarm.run(&["--command", "--", "echo", "well"]).run().good().text(), "well\n");
    let alive: Vec<u32> = old.iter().copied().filter(|pid| is_alive(*pid)).collect();
    assert_eq!(alive, old, "worker and cage are the same");
    assert_eq!(descendants(swarm.up.pid()), Vec::<u32>::new(), "none was started");
    swarm.up.signal(Signal::INT);
    let (home, _) = ended_without_a_trace(swarm, "nobody");
    home.assert_no_processes();
}

// The end of an adopted worker is seen as that of a child: what it held is free, and there is another one.
#[test]
fn an_adopted_worker_that_dies_is_replaced() {
    let (swarm, old) = killed_and_started_again(Swarm::start());
    swarm.wait_for_node("local-1");
    for pid in old {
        swarm::signal(pid, Signal::KILL);
    }
    assert_eq!(swarm.run(&["--command", "--", "echo", "well"]).run().good().text(), "well\n");
    assert_ne!(descendants(swarm.up.pid()), Vec::<u32>::new(), "one was started");
    swarm.stop();
}

// Without a new `up` it may end by itself.
#[test]
fn what_ran_under_a_killed_up_may_end() {
    let swarm = Swarm::start();
    let mark = new_mark();
    let _run = patient(&swarm, &mark);
    let done = swarm.home.path().join("done");
    let begun = marked(&mark);
    swarm.up.signal(Signal::KILL);
    wait_until("`up` is gone", || !is_alive(swarm.up.pid()));
    assert!(begun.iter().any(|pid| is_alive(*pid)), "the program was left alone");
    std::fs::write(swarm.home.path().join("flag"), "").unwrap();
    wait_until("the program did its last deed", || done.exists());
    wait_until("the program is gone", || marked(&mark).is_empty());
}
