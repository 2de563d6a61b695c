//! `job list` with its filters, and `--watch` of nodes and jobs: what changes is told as it happens, with its reason.
//!
//! Deliberately not here: which reason applies when (the scenarios and the simulator of `core`).

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod processes;
mod swarm;

use rustix::process::Signal;
use serde_json::Value;
use swarm::{Running, Swarm, up};

/// Reads lines until one has all of these words.
#[track_caller]
fn line_with(watch: &mut Running, words: &[&str]) -> String {
    loop {
        let line = watch.line();
        if words.iter().all(|word| line.contains(word)) {
            return line;
        }
    }
}

/// The next change in JSON that fits.
#[track_caller]
fn change_with(watch: &mut Running, fits: impl Fn(&Value) -> bool) -> Value {
    loop {
        let value = watch.json();
        if fits(&value) {
            return value;
        }
    }
}

fn names(swarm: &Swarm, words: &[&str]) -> Vec<String> {
    let list = swarm.essaim(&[&["job", "list", "--json"], words].concat()).run().good().json();
    list.as_array().unwrap().iter().map(|job| job["name"].as_str().unwrap().to_owned()).collect()
}

// Each filter alone and together, newest first, as many as asked for.
#[test]
fn jobs_are_found_by_what_they_are() {
    let swarm = Swarm::start();
    let key = swarm.essaim(&["key", "create", "ada", "--role", "operator"]).run().good().text().trim().to_owned();
    for (name, code) in [("Render one", 0), ("render two", 3), ("count", 0)] {
        let script = format!("exit {code}");
        swarm.run(&["--name", name, "--command", "--", "sh", "-c", &script]).run().ended(code);
    }
    let words = ["run", "--name", "hers", "--command", "--", "true"];
    swarm.essaim(&words).env("ESSAIM_KEY", &key).run().good();
    swarm.run(&["--detach", "--name", "waits", "--on", "local-1", "--command", "--", "sleep", "600"]).run().good();
    assert_eq!(names(&swarm, &[]), ["waits", "hers", "count", "render two", "Render one"]);
    assert_eq!(names(&swarm, &["--limit", "2"]), ["waits", "hers"]);
    assert_eq!(names(&swarm, &["--live"]), ["waits"]);
    assert_eq!(names(&swarm, &["--state", "failed"]), ["render two"]);
    assert_eq!(names(&swarm, &["--state", "failed,done", "--search", "RENDER"]), ["render two", "Render one"]);
    assert_eq!(names(&swarm, &["--state", "done", "--limit", "2"]), ["hers", "count"]);
    assert_eq!(names(&swarm, &["--owner", "ada"]), ["hers"]);
    assert_eq!(names(&swarm, &["--node", "nowhere"]), Vec::<String>::new());
    assert_eq!(names(&swarm, &["--node", "local-1", "--search", "e", "--limit", "1"]), ["hers"]);
    let wrong = swarm.essaim(&["job", "list", "--state", "over"]).run().ended(2);
    assert!(wrong.stderr.contains("queued, running, done, failed, cancelled"), "{}", wrong.stderr);
    swarm.essaim(&["job", "cancel", "5"]).run().good();
    swarm.stop();
}

// The life of a job, line by line, for a person and for a program; Ctrl+C ends the watch well.
#[test]
fn a_watch_tells_the_life_of_a_job() {
    let swarm = Swarm::start();
    swarm.run(&["--name", "before", "--command", "--", "true"]).run().good();
    let mut people = swarm.essaim(&["job", "list", "--watch"]).start();
    let mut programs = swarm.essaim(&["job", "list", "--watch", "--json", "--search", "good"]).start();
    assert!(people.line().starts_with("JOB"));
    assert!(people.line().contains("before"));
    // The filter leaves nothing to list, so only a change shows that the watch stands.
    swarm.run(&["--name", "good one", "--command", "--", "true"]).run().good();
    swarm.run(&["--name", "bad one", "--command", "--", "sh", "-c", "exit 3"]).run().ended(3);
    line_with(&mut people, &["job 2", "good one", "running", "on local-1"]);
    line_with(&mut people, &["job 2", "running → done"]);
    line_with(&mut people, &["job 3", "bad one", "running → failed", "runtime error"]);
    let done = loop {
        swarm.run(&["--name", "good again", "--command", "--", "true"]).run().good();
        // It may have begun to watch after the first one.
        let change = programs.json();
        assert_eq!(change["type"], if change["submitted_ms"].is_u64() { "job" } else { "job_change" });
        if change["state"] == "done" {
            break change;
        }
    };
    assert!(done["name"].as_str().unwrap().starts_with("good"), "{done}");
    for watch in [people, programs] {
        watch.signal(Signal::INT);
        watch.end().good();
    }
    swarm.stop();
}

// A worker that crashes, one that is stopped, a hub that was away: each is told apart, and a watch goes on over all of it.
#[test]
fn a_watch_tells_why_a_node_changed() {
    let swarm = Swarm::start();
    let mut people = swarm.essaim(&["node", "list", "--watch"]).start();
    let mut programs = swarm.essaim(&["node", "list", "--watch", "--json"]).start();
    assert!(people.line().starts_with("NAME"));
    assert!(people.line().starts_with("local-1"));
    let listed = programs.json();
    assert_eq!(
        (&listed["type"], &listed["name"], &listed["state"]),
        (&"node".into(), &"local-1".into(), &"online".into())
    );
    swarm::signal(processes::worker_of(swarm.up.pid()), Signal::KILL);
    // The end of its connection may have been seen a moment before.
    let crashed = change_with(&mut programs, |change| change["reason"]["code"] == "crashed");
    assert_eq!((&crashed["type"], &crashed["state"]), (&"node_change".into(), &"offline".into()));
    assert!(crashed["at_ms"].is_u64() && crashed["missed"] == 0, "{crashed}");
    line_with(&mut people, &["Z  local-1", "offline", "its worker ended unexpectedly"]);
    change_with(&mut programs, |change| change["state"] == "online");
    line_with(&mut people, &["local-1", "→ online"]);
    // The next hub, with the same worker.
    swarm.up.signal(Signal::KILL);
    let Swarm { home, up: mut killed, .. } = swarm;
    killed.child.wait().unwrap();
    people.hear("the hub is gone");
    let words = up(&home, &["--slots", "2"]);
    let swarm = Swarm::of(home, words);
    people.hear("the hub is back");
    swarm::signal(swarm.home.worker(1).unwrap(), Signal::KILL);
    line_with(&mut people, &["local-1", "offline", "its worker ended unexpectedly"]);
    for watch in [people, programs] {
        watch.signal(Signal::INT);
        watch.end().good();
    }
    swarm.stop();
}
