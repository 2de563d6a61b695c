//! Arrays and placement on a real hub, as a user steers them: lists, parts, running again, needs, and which goes first.
//!
//! Always true: what is said about a wait names the node and the reason; a part of an array is cancelled or run again, and
//! no other task of it.
//! Deliberately not here: the output of arrays (`arrays`), the words themselves (the binary's own tests).
#![allow(clippy::unwrap_used)]

mod swarm;

use rustix::process::Signal;
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use swarm::{Home, Swarm, wait_for, wait_until};

fn detached(swarm: &Swarm, words: &[&str]) -> String {
    let ran = swarm.run(&[&["--detach"], words].concat()).run().good();
    ran.text().trim().to_owned()
}

fn job(swarm: &Swarm, id: &str) -> Value {
    swarm.essaim(&["job", "show", id, "--json"]).run().good().json()
}

// An array that fails: the exit code is its tasks', one line says which, lists count, and the failed ones run again.
#[test]
fn an_array_is_counted_listed_and_run_again() {
    let swarm = Swarm::start();
    let ran = swarm.run(&["--array", "1-9:2", "--command", "--", "sh", "-c", "exit 4"]).run().ended(4);
    assert_eq!(ran.stderr, "5 of 5 tasks failed: 1-9:2; essaim job rerun 1 --only failed\n");
    let row = swarm.essaim(&["job", "list"]).run().good();
    assert!(row.text().contains("failed 5/5, 5 failed"), "{}", row.text());
    let shown = swarm.essaim(&["job", "show", "1"]).run().good();
    for line in [
        "tasks       1-9:2 (5 in all)\n",
        "            5 failed\n",
        "            7 on local-1: runtime error: exit code 4\n",
    ] {
        assert!(shown.text().contains(line), "{}", shown.text());
    }
    let tasks = swarm.essaim(&["job", "show", "1", "--tasks", "--state", "failed", "--json"]).run().good().json();
    let numbers: Vec<u64> = tasks.as_array().unwrap().iter().map(|task| task["task"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [1, 3, 5, 7, 9]);
    let none = swarm.essaim(&["job", "show", "1", "--tasks", "--state", "done", "--json"]).run().good().json();
    assert_eq!(none.as_array().unwrap().len(), 0);

    let again = swarm.essaim(&["job", "rerun", "1", "--only", "3,7", "--follow"]).run().ended(4);
    assert_eq!(again.stderr, "2 of 2 tasks failed: 3, 7; essaim job rerun 2 --only failed\n");
    let third = swarm.essaim(&["job", "rerun", "1", "--only", "failed"]).run().good();
    assert_eq!(third.text(), "3\n");
    swarm.essaim(&["job", "wait", "3", "2"]).run().ended(4);
    assert_eq!((&job(&swarm, "3")["array"], &job(&swarm, "2")["array"]), (&"1-9:2".into(), &"3,7".into()));
    swarm.stop();
}

// The hub is killed while tasks print, and started again: every line of every task comes whole and once.
#[test]
fn no_line_is_lost_or_printed_twice_when_the_hub_is_killed() {
    let (clients, workers) = (swarm::free_address(), swarm::free_address());
    let doors = ["--client-addr", &clients, "--worker-addr", &workers, "--slots", "2"];
    let home = Home::new();
    let begin = || home.essaim(&[&["up", "--json", "--quiet"], &doors[..]].concat()).start();
    let mut up = begin();
    up.line();
    let program = "echo $ESSAIM_TASK_ID begins; sleep 0.2; echo $ESSAIM_TASK_ID ends";
    let mut run = home.essaim(&["run", "--array", "1-30", "--command", "--", "sh", "-c", program]).start();
    (0..9).for_each(|_| drop(run.line()));
    // Its worker holds its standard error, so that only its own end is waited for.
    up.signal(Signal::KILL);
    up.child.wait().unwrap();
    let up = begin();
    let ran = run.end().good();
    let mut lines: Vec<String> = ran.text().lines().map(str::to_owned).collect();
    lines.sort();
    let mut expected: Vec<String> =
        (1..=30).flat_map(|task| [format!("{task} begins"), format!("{task} ends")]).collect();
    expected.sort();
    assert_eq!(lines, expected, "{}", ran.stderr);
    up.signal(Signal::TERM);
    up.end().good();
}

// What is over is shown again: all of it, in order, or the end of one task.
#[test]
fn output_is_shown_again() {
    let swarm = Swarm::start();
    let ran =
        swarm.run(&["--array", "8-11", "--command", "--", "sh", "-c", "echo $ESSAIM_TASK_ID and on"]).run().good();
    assert_eq!(ran.text().lines().count(), 4);
    let logs = |words: &[&str]| {
        let ran = swarm.essaim(&[&["job", "logs", "1"], words].concat()).run().good();
        ran.text().to_owned()
    };
    assert_eq!(logs(&["--keep-order", "--prefix"]), " 8: 8 and on\n 9: 9 and on\n10: 10 and on\n11: 11 and on\n");
    assert_eq!(logs(&["--keep-order", "--task", "9-10"]), "9 and on\n10 and on\n");
    assert_eq!(logs(&["--task", "11", "--from", "3"]), "and on\n");
    let no_such = swarm.essaim(&["job", "logs", "1", "--task", "7"]).run().ended(2);
    assert!(no_such.stderr.contains("has no task 7: it has 8-11"), "{}", no_such.stderr);
    swarm.stop();
}

// Each task of an array has its result line, and the array its own.
#[test]
fn json_has_a_line_for_each_end() {
    let swarm = Swarm::start();
    let ran = swarm.run(&["--json", "--array", "1-300", "--command", "true"]).run().good();
    let lines = ran.json_lines();
    let mut ends: Vec<u64> =
        lines.iter().filter(|line| line["type"] == "result").map(|line| line["task"].as_u64().unwrap()).collect();
    ends.sort_unstable();
    assert_eq!(ends, (1..=300).collect::<Vec<u64>>());
    assert!(lines.iter().all(|line| line["type"] != "result" || (line["verdict"] == "ok" && line["exit_code"] == 0)));
    let last = lines.last().unwrap();
    assert_eq!((&last["type"], &last["done"], &last["failed"]), (&"array".into(), &300.into(), &0.into()));
    swarm.stop();
}

// A wait is explained node by node; a part that waits is cancelled, the rest goes on waiting.
#[test]
fn a_wait_is_explained_and_parts_are_cancelled() {
    let swarm = Swarm::start_with(&["--slots", "2", "--label", "room=B12", "--mem", "1G"]);
    let node = swarm.essaim(&["node", "show", "local-1"]).run().good();
    assert!(node.text().contains("labels      room=B12\n"), "{}", node.text());
    swarm.run(&["--label", "room=B12", "--mem", "512M", "--cpus", "2", "--command", "true"]).run().good();
    let cases = [
        (["--cpus", "3"], "has 2 slots, 3 are needed"),
        (["--mem", "2G"], "offers 1 GiB of memory, 2 GiB are needed"),
        (["--label", "room=A1"], "has no label room=A1"),
    ];
    for (words, why) in cases {
        let id = detached(&swarm, &[&words[..], &["--array", "1-10", "--command", "true"]].concat());
        let shown = swarm.essaim(&["job", "show", &id]).run().good();
        assert!(shown.text().contains(&format!("ruled out   local-1: {why}\n")), "{}", shown.text());
        assert!(
            shown.text().contains("why         the connected node does not have what it needs\n"),
            "{}",
            shown.text()
        );
        let said = swarm.essaim(&["job", "cancel", &id, "--only", "2-4"]).run().good();
        assert_eq!(said.stderr, format!("job {id}: 2-4 cancelled\n"));
        let counts = &job(&swarm, &id)["counts"];
        assert_eq!((&counts["waiting"], &counts["cancelled"]), (&7.into(), &3.into()));
        swarm.essaim(&["job", "cancel", &id]).run().good();
        assert_eq!(job(&swarm, &id)["state"], "cancelled");
    }
    swarm.stop();
}

// A job begins after another one, never when that one failed, and a failure is tried again as often as was said.
#[test]
fn jobs_wait_for_jobs_and_failures_are_tried_again() {
    let swarm = Swarm::start();
    let go = swarm.home.path().join("go").display().to_string();
    let until_go = "while ! test -e \"$0\"; do sleep 0.05; done; exit $1";
    let first = |code| detached(&swarm, &["--command", "--", "sh", "-c", until_go, &go, code]);
    let (good, bad) = (first("0"), first("1"));
    let then = detached(&swarm, &["--after", &good, "--command", "--", "echo", "then"]);
    let never = detached(&swarm, &["--after", &format!("{good},{bad}"), "--command", "--", "echo", "never"]);
    wait_until("it says what it waits for", || {
        let shown = swarm.essaim(&["job", "show", &then]).run().good();
        shown.text().contains(&format!("waiting for the end of {good}\n"))
    });
    std::fs::write(&go, "").unwrap();
    swarm.essaim(&["job", "wait", &good, &then]).run().good();
    let ran = swarm.essaim(&["job", "wait", &never]).run().ended(130);
    assert!(ran.stderr.contains(&format!("job {bad}, which it waited for, did not end well")), "{}", ran.stderr);
    // What has failed already will not end well any more: the same end, whether somebody watches or not.
    let ran = swarm.run(&["--after", &bad, "--command", "echo", "never"]).run().ended(130);
    assert!(ran.stderr.contains(&format!("job {bad}, which it waited for, did not end well")), "{}", ran.stderr);
    assert_eq!(ran.text(), "");
    let late = detached(&swarm, &["--after", &bad, "--array", "1-3", "--command", "echo", "never"]);
    swarm.essaim(&["job", "wait", &late]).run().ended(130);
    assert_eq!(job(&swarm, &late)["counts"]["cancelled"], 3);
    // What never was is no predecessor.
    let ran = swarm.run(&["--after", "999", "--command", "echo", "never"]).run().ended(125);
    assert!(ran.stderr.contains("no job 999"), "{}", ran.stderr);
    let tried = swarm.run(&["--retry", "2", "--command", "--", "sh", "-c", "echo try; exit 3"]).run().ended(3);
    assert_eq!(tried.text(), "try\ntry\ntry\n", "{}", tried.stderr);
    swarm.stop();
}

/// Threads that do nothing but use the processors, until they are dropped.
struct Spinners(Arc<AtomicBool>, Vec<JoinHandle<()>>);

impl Spinners {
    fn start() -> Spinners {
        let ends = Arc::new(AtomicBool::new(false));
        // More than processors, so that they get their share beside whatever else runs.
        let count = 2 * std::thread::available_parallelism().unwrap().get();
        let spin = || {
            let ends = ends.clone();
            std::thread::spawn(move || {
                while !ends.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        };
        let threads = (0..count).map(|_| spin()).collect();
        Spinners(ends, threads)
    }
}

impl Drop for Spinners {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        self.1.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

/// Does the job wait because its node's owner uses the machine himself?
fn waits_for_owner(swarm: &Swarm, id: &str) -> bool {
    let job = job(swarm, id);
    let out = job["ruled_out"].as_array().into_iter().flatten();
    job["state"] == "queued" && out.into_iter().any(|out| out["node"] == "shy" && out["reason"]["code"] == "overloaded")
}

// Two workers on a machine that others use, one of which wants to be left alone then: nothing new goes there while it says so,
// the reason is shown, and it takes work again when the machine is free. What others do here we do not know: a job that
// waits for that worker alone tells what it says of itself, and only what follows from that is expected.
#[test]
fn a_worker_is_left_alone_while_others_use_its_machine() {
    let swarm = Swarm::start();
    let line = swarm.essaim(&["join-line"]).run().good();
    let line = line.text().trim_end().strip_prefix("essaim worker ").unwrap().to_owned();
    let home = Home::new();
    let shy = home.essaim(&["worker", "--name", "shy", "--slots", "2", "--max-cpu", "20", &line]).start();
    swarm.wait_for_node("shy");
    let spinners = Spinners::start();
    let held = wait_for("an array that ran while the shy worker wanted nothing", || {
        let held = detached(&swarm, &["--on", "shy", "--command", "true"]);
        wait_until("it runs, or says why not", || {
            waits_for_owner(&swarm, &held) || job(&swarm, &held)["state"] == "done"
        });
        if !waits_for_owner(&swarm, &held) {
            return None;
        }
        let shown = swarm.essaim(&["job", "show", &held]).run().good();
        let ran = swarm.run(&["--array", "1-8", "--command", "pwd"]).run().good();
        // It takes this one first as soon as it takes anything.
        let was_left_alone = waits_for_owner(&swarm, &held);
        if was_left_alone {
            let folders: Vec<&str> = ran.text().lines().collect();
            let here = swarm.home.path().to_str().unwrap();
            assert!(folders.len() == 8 && folders.iter().all(|folder| folder.starts_with(here)), "{folders:?}");
            let why = "shy: its processors are busy with other people's work\n";
            assert!(shown.text().contains(why), "{}", shown.text());
        }
        was_left_alone.then_some(held)
    });
    drop(spinners);
    // Where others go on, as on a machine that builds something, it goes on saying so, and that is right too.
    let end = Instant::now() + Duration::from_secs(20);
    wait_until("it runs, or the machine is still busy", || {
        job(&swarm, &held)["state"] == "done" || (Instant::now() > end && waits_for_owner(&swarm, &held))
    });
    if job(&swarm, &held)["state"] == "done" {
        assert_eq!(job(&swarm, &held)["tasks"][0]["result"]["node"], "shy");
    }
    shy.signal(Signal::INT);
    shy.end().good();
    swarm.stop();
}

// Words that make no sense together are refused before a hub is asked.
#[test]
fn senseless_words_are_refused() {
    let home = Home::new();
    for words in [
        &["run", "--prefix", "x.py"][..],
        &["run", "--array", "1-3", "--stdin", "x", "x.py"],
        &["run", "--array", "1-3", "--detach", "--keep-order", "x.py"],
        &["run", "--array", "1-3", "--json", "--prefix", "x.py"],
        &["run", "--array", "3-1", "x.py"],
        &["run", "--each-line", "/nowhere/lines", "--command", "true"],
    ] {
        let ran = home.essaim(words).run().ended(125);
        assert!(ran.stderr.starts_with("error: ") && !ran.stderr.contains("hub"), "{words:?}: {}", ran.stderr);
    }
}
