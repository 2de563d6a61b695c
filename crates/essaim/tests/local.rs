//! The workers of the hub's own machine: more while work waits, fewer when there is none, none while local mode is off.
//!
//! Programs wait for a file, so that the test says how long they take.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod processes;
mod swarm;

use processes::{children, descendants, is_alive};
use rustix::process::Signal;
use serde_json::Value;
use swarm::{Home, Swarm, up, wait_for, wait_until};

/// Two more at most, gone after a second without work.
const UP_TO_THREE: [&str; 6] = ["--slots", "1", "--local-workers-max", "3", "--local-idle", "1s"];

/// A program that ends when the file is there.
fn until_file(home: &Home, file: &str) -> String {
    format!("until [ -e '{}/{file}' ]; do sleep 0.05; done; echo ended", home.path().display())
}

fn touch(home: &Home, file: &str) {
    std::fs::write(home.path().join(file), "").unwrap();
}

/// Submits a program that ends when the file is there, as often as `words` say; gives the job's number.
fn submit(home: &Home, words: &[&str], file: &str) -> String {
    let script = until_file(home, file);
    let words = [&["run", "--detach"], words, &["--command", "--", "sh", "-c", &script]].concat();
    home.essaim(&words).run().good().text().trim().to_owned()
}

/// State, reason and used slots of each node.
fn nodes(home: &Home) -> Vec<(String, String, String, u64)> {
    let listed = home.essaim(&["node", "list", "--json"]).run().good().json();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let node = |node: &Value| {
        (text(&node["name"]), text(&node["state"]), text(&node["reason"]["code"]), node["slots_used"].as_u64().unwrap())
    };
    listed.as_array().unwrap().iter().map(node).collect()
}

fn wait_for_nodes(home: &Home, expected: &[(&str, &str, u64)]) {
    wait_until(&format!("nodes as in {expected:?}"), || {
        let nodes = nodes(home);
        let seen: Vec<(&str, &str, u64)> =
            nodes.iter().map(|(n, state, _, used)| (&n[..], &state[..], *used)).collect();
        seen == expected
    });
}

/// Why a job waits.
fn reason(home: &Home, job: &str) -> Option<String> {
    let view = home.essaim(&["job", "show", job, "--json"]).run().good().json();
    view["reason"]["code"].as_str().or(view["tasks"][0]["reason"]["code"].as_str()).map(str::to_owned)
}

fn set(home: &Home, setting: &str, value: &str) -> Value {
    home.essaim(&["config", "set", setting, value, "--json"]).run().good().json()
}

// An array of tasks that take their time: workers come one after the other, no more than allowed; when they have had nothing
// to do they go, and their names are used again.
#[test]
fn workers_come_with_work_and_go_without() {
    let swarm = Swarm::start_with(&UP_TO_THREE);
    let home = &swarm.home;
    let job = submit(home, &["--array", "1-8"], "go");
    wait_for_nodes(home, &[("local-1", "online", 1), ("local-2", "online", 1), ("local-3", "online", 1)]);
    let table = swarm.essaim(&["node", "list"]).run().good();
    assert!(table.stderr.contains("3 local workers now, 1 at least, up to 3 while work waits"), "{}", table.stderr);
    let pids: Vec<u32> = (1..=3).map(|number| home.worker(number).unwrap()).collect();
    touch(home, "go");
    swarm.essaim(&["job", "wait", &job]).run().good();
    wait_for_nodes(home, &[("local-1", "online", 0), ("local-2", "stopped", 0), ("local-3", "stopped", 0)]);
    assert_eq!(nodes(home)[2].2, "not_needed");
    wait_until("their processes are gone", || pids.iter().map(|pid| is_alive(*pid)).eq([true, false, false]));
    let job = submit(home, &["--array", "1-2"], "again");
    wait_for_nodes(home, &[("local-1", "online", 1), ("local-2", "online", 1), ("local-3", "stopped", 0)]);
    touch(home, "again");
    swarm.essaim(&["job", "wait", &job]).run().good();
    swarm.stop();
}

// What no worker of this machine can run starts none, and a program that they can run is not kept waiting by it.
#[test]
fn nobody_comes_for_what_he_could_not_run() {
    let swarm = Swarm::start_with(&UP_TO_THREE);
    let home = &swarm.home;
    let label = submit(home, &["--label", "gpu=a100"], "never");
    let wide = submit(home, &["--cpus", "2"], "never");
    // Each of these takes longer than the wait after which somebody would have come.
    for _ in 0..2 {
        let words = ["--command", "--", "sh", "-c", "sleep 1"];
        swarm.run(&words).run().good();
    }
    assert_eq!(nodes(home).len(), 1);
    for job in [&label, &wide] {
        assert_eq!(reason(home, job).as_deref(), Some("no_node_fits"));
        swarm.essaim(&["job", "cancel", job]).run().good();
    }
    swarm.stop();
}

// Off: what runs is finished, then there is no worker; what waits says why. On: it runs. Between them a new start of the
// hub's process.
#[test]
fn local_mode_goes_off_and_on() {
    let swarm = Swarm::start_with(&["--slots", "1"]);
    let home = &swarm.home;
    let runs = submit(home, &[], "first");
    wait_for_nodes(home, &[("local-1", "online", 1)]);
    let worker = home.worker(1).unwrap();
    let local = set(home, "local-mode", "off");
    assert_eq!(local, serde_json::json!({ "mode": false, "workers": 1, "workers_max": 1, "wanted": 0 }));
    wait_for_nodes(home, &[("local-1", "draining", 1)]);
    let waits = submit(home, &[], "second");
    assert_eq!(reason(home, &waits).as_deref(), Some("local_mode_off"));
    let shown = swarm.essaim(&["job", "show", &waits]).run().good();
    assert!(shown.text().contains("local mode is off"), "{}", shown.text());
    touch(home, "first");
    swarm.essaim(&["job", "wait", &runs]).run().good();
    assert_eq!(swarm.essaim(&["job", "logs", &runs]).run().good().text(), "ended\n");
    wait_until("the worker's process is gone", || !is_alive(worker));
    wait_for_nodes(home, &[("local-1", "stopped", 0)]);
    assert_eq!(nodes(home)[0].2, "local_mode_off");
    let table = swarm.essaim(&["node", "list"]).run().good();
    assert!(table.stderr.contains("local mode is off"), "{}", table.stderr);

    let home = swarm.stop();
    let mut up = up(&home, &["--slots", "1"]).start();
    assert_eq!(up.json()["ready"], true);
    wait_until("the hub knows what `up` starts", || reason(&home, &waits).as_deref() == Some("local_mode_off"));
    assert_eq!(descendants(up.pid()), Vec::<u32>::new(), "none was started");
    set(&home, "local-mode", "on");
    wait_for_nodes(&home, &[("local-1", "online", 1)]);
    touch(&home, "second");
    home.essaim(&["job", "wait", &waits]).run().good();
    up.signal(Signal::INT);
    up.end().good();
    home.assert_no_processes();
}

// Off and on again while a program runs: its worker stays, and takes what comes.
#[test]
fn a_worker_stays_when_local_mode_comes_back() {
    let swarm = Swarm::start_with(&["--slots", "2"]);
    let home = &swarm.home;
    let runs = submit(home, &[], "go");
    wait_for_nodes(home, &[("local-1", "online", 1)]);
    let worker = home.worker(1).unwrap();
    set(home, "local-mode", "off");
    wait_for_nodes(home, &[("local-1", "draining", 1)]);
    set(home, "local-mode", "on");
    assert_eq!(swarm.run(&["--command", "--", "echo", "well"]).run().good().text(), "well\n");
    assert_eq!((home.worker(1), is_alive(worker)), (Some(worker), true));
    touch(home, "go");
    swarm.essaim(&["job", "wait", &runs]).run().good();
    swarm.stop();
}

// The numbers of a hub that runs: set by who may, refused by name else, and as they are in `--json`.
#[test]
fn the_numbers_change_while_the_hub_runs() {
    let swarm = Swarm::start_with(&["--slots", "1"]);
    let home = &swarm.home;
    assert_eq!(set(home, "local-workers", "2")["wanted"], 2);
    swarm.wait_for_node("local-2");
    assert_eq!(set(home, "local_workers_max", "4")["workers_max"], 4);
    set(home, "local-workers-max", "1");
    let said = swarm.essaim(&["config", "set", "local-workers", "1"]).run().good();
    assert_eq!((said.text(), said.stderr.as_str()), ("", "one local worker\n"));
    wait_for_nodes(home, &[("local-1", "online", 0), ("local-2", "stopped", 0)]);
    for (words, sentence) in [
        (["local-mode", "maybe"], "local-mode is on or off, not \"maybe\""),
        (["local-workers", "many"], "\"many\" is no number of workers"),
        (["local-mod", "off"], "there is no setting `local-mod`"),
    ] {
        let ran = swarm.essaim(&[&["config", "set"], &words[..]].concat()).run().ended(2);
        assert!(ran.stderr.contains(sentence), "{}", ran.stderr);
    }
    let ran = swarm.essaim(&["config", "set", "local-workers", "257"]).run().ended(3);
    assert!(ran.stderr.contains("256"), "{}", ran.stderr);
    let key = swarm.essaim(&["key", "create", "oscar", "--role", "operator"]).run().good();
    let oscar = Home::new().essaim(&["config", "set", "local-mode", "off"]).env("ESSAIM_KEY", key.text().trim());
    let ran = oscar.run().ended(3);
    assert!(ran.stderr.contains("its role is operator, and admin is needed"), "{}", ran.stderr);
    for words in [["--local-workers", "257"], ["--local-workers-max", "0"], ["--local-idle", "5"]] {
        Home::new().essaim(&[&["up"], &words[..]].concat()).run().ended(2);
    }
    swarm.stop();
}

// `essaim hub`: no worker of its own, and none to be had.
#[test]
fn a_hub_alone_has_no_workers() {
    let home = Home::new();
    let mut hub =
        home.essaim(&["hub", "--json", "--client-addr", "127.0.0.1:0", "--worker-addr", "127.0.0.1:0"]).start();
    assert_eq!(hub.json()["ready"], true);
    let job = submit(&home, &[], "never");
    assert_eq!(reason(&home, &job).as_deref(), Some("no_node"));
    assert!(nodes(&home).is_empty());
    let ran = home.essaim(&["config", "set", "local-workers", "2"]).run().ended(3);
    assert!(ran.stderr.contains("starts no workers of its own"), "{}", ran.stderr);
    assert_eq!(children(hub.pid()), Vec::<u32>::new());
    hub.signal(Signal::INT);
    hub.end().good();
}

// `up` is killed while a worker that was started for work has some: the next `up` takes it over, programs go on, and it goes
// when it has had nothing to do.
#[test]
fn one_started_for_work_outlives_its_up_and_goes_in_the_end() {
    let swarm = Swarm::start_with(&UP_TO_THREE);
    let job = submit(&swarm.home, &["--array", "1-2"], "go");
    wait_for_nodes(&swarm.home, &[("local-1", "online", 1), ("local-2", "online", 1)]);
    let Swarm { home, up: mut killed, .. } = swarm;
    let pids: Vec<u32> = [1, 2].map(|number| home.worker(number).unwrap()).into();
    killed.signal(Signal::KILL);
    killed.child.wait().unwrap();
    let again = up(&home, &UP_TO_THREE);
    let swarm = Swarm::of(home, again);
    wait_for_nodes(&swarm.home, &[("local-1", "online", 1), ("local-2", "online", 1)]);
    touch(&swarm.home, "go");
    swarm.essaim(&["job", "wait", &job]).run().good();
    let shown = swarm.essaim(&["job", "show", &job, "--json", "--tasks"]).run().good();
    assert!(!shown.text().contains("\"attempt\":2"), "no program was started again: {}", shown.text());
    wait_for_nodes(&swarm.home, &[("local-1", "online", 0), ("local-2", "stopped", 0)]);
    wait_until("its process is gone", || pids.iter().map(|pid| is_alive(*pid)).eq([true, false]));
    swarm.stop();
}

// All that were started for work end with `up`, at once when it is told twice.
#[test]
fn all_of_them_end_with_their_up() {
    let swarm = Swarm::start_with(&UP_TO_THREE);
    submit(&swarm.home, &["--array", "1-3"], "never");
    wait_for_nodes(&swarm.home, &[("local-1", "online", 1), ("local-2", "online", 1), ("local-3", "online", 1)]);
    let ours = descendants(swarm.up.pid());
    swarm.up.signal(Signal::INT);
    swarm.up.hear("waiting up to 10 s");
    swarm.up.signal(Signal::INT);
    let Swarm { home, up, .. } = swarm;
    up.end().good();
    let alive: Vec<u32> = ours.into_iter().filter(|pid| is_alive(*pid)).collect();
    assert_eq!(alive, Vec::<u32>::new());
    home.assert_no_processes();
    wait_for("no folder of a program is left", || {
        let left: Vec<String> =
            (1..=3).flat_map(|n| swarm::tree(&home.path().join(format!("local/{n}/work")))).collect();
        left.is_empty().then_some(())
    });
}
