//! Job files on a real hub: several jobs with what they wait for, all of them or none.
//!
//! Always true: what is refused leaves no job that runs; a mistake is told with its place before a hub is asked.
//! Deliberately not here: each key and each mistake (the binary's own tests), `--after` of `run` (`many`).
#![allow(clippy::unwrap_used)]

mod swarm;

use serde_json::Value;
use std::path::Path;
use swarm::{Home, Swarm, wait_until};

fn write(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

fn shown(swarm: &Swarm, id: &str) -> Value {
    swarm.essaim(&["job", "show", id, "--json"]).run().good().json()
}

// Two jobs in the wrong order, with files beside the job file: submitted in the right one, from any folder, and waited for.
#[test]
fn jobs_run_after_each_other() {
    let swarm = Swarm::start();
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "lib/hello.sh", "echo \"hello $1 $WHO\"; cat data/x\n");
    write(folder.path(), "data/x", "from the data\n");
    let file = write(
        folder.path(),
        "jobs.toml",
        r#"
        [[job]]
        name = "second"
        file = "lib/hello.sh"
        args = ["dear"]
        files = ["data"]
        env = { WHO = "Ada" }
        after = ["first"]
        [[job]]
        name = "first"
        command = ["sh", "-c", "exit $((ESSAIM_TASK_ID == 4))"]
        array = "1-3"
        retry = 1
        "#,
    );
    let planned = swarm.essaim(&["job", "submit", &file, "--dry-run"]).run().good();
    let lines: Vec<Vec<&str>> = planned.text().lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[1][..3], ["first", "3", "0"], "{}", planned.text());
    assert_eq!(lines[2], ["second", "first", "1", "2", "hello.sh", "dear"], "{}", planned.text());
    let planned = swarm.essaim(&["job", "submit", &file, "--dry-run", "--json"]).run().good().json();
    assert_eq!((&planned[1]["after"][0], &planned[1]["spec"]["files"][0]["path"]), (&"first".into(), &"data/x".into()));
    let none = swarm.essaim(&["job", "list", "--json"]).run().good();
    assert_eq!(none.json().as_array().unwrap().len(), 0);

    let ran = swarm.essaim(&["job", "submit", &file, "--wait"]).run().good();
    assert_eq!(ran.text(), "second 2\nfirst 1\n", "{}", ran.stderr);
    let logs = swarm.essaim(&["job", "logs", "2"]).run().good();
    assert_eq!(logs.text(), "hello dear Ada\nfrom the data\n");

    // From standard input, as JSON, and after a job that is there already.
    let text = "[[job]]\ncommand = [\"sh\", \"-c\", \"exit 7\"]\nafter = [2]\n";
    let ran = swarm.essaim(&["job", "submit", "-", "--json"]).input(text).run().good();
    assert_eq!(ran.json(), serde_json::json!([{"name": "sh", "job": 3}]));
    swarm.essaim(&["job", "wait", "3"]).run().ended(7);
    let ran = swarm.essaim(&["job", "submit", "-", "--wait"]).input(text).run().ended(7);
    assert_eq!(ran.text(), "sh 4\n");
    swarm.stop();
}

// The hub refuses the third of three: the two before it are cancelled, which is said with their numbers, and no job runs.
#[test]
fn all_or_none_are_submitted() {
    let swarm = Swarm::start();
    let text = r#"
[[job]]
name = "waits"
command = ["sleep", "1000"]
[[job]]
name = "then"
command = ["true"]
after = ["waits"]
[[job]]
name = "impossible"
command = ["true"]
on = "nowhere"
after = ["then"]
"#;
    let ran = swarm.essaim(&["job", "submit", "-"]).input(text).run().ended(3);
    assert!(ran.stderr.starts_with("error: standard input:10:8: "), "{}", ran.stderr);
    assert!(ran.stderr.contains("what was submitted before is cancelled (1, 2)"), "{}", ran.stderr);
    for id in ["1", "2"] {
        wait_until("it is cancelled", || shown(&swarm, id)["state"] == "cancelled");
    }
    // A job of the hub that is none: told before anything is submitted, with its place.
    let text = "[[job]]\ncommand = [\"true\"]\n[[job]]\ncommand = [\"true\"]\nafter = [99]\n";
    let ran = swarm.essaim(&["job", "submit", "-"]).input(text).run().ended(3);
    assert!(ran.stderr.starts_with("error: standard input:5:10: ") && ran.stderr.contains("99"), "{}", ran.stderr);
    let all = swarm.essaim(&["job", "list", "--json"]).run().good().json();
    assert_eq!(all.as_array().unwrap().len(), 2);
    swarm.stop();
}

// What the example says is true: it is submitted as it comes, and all of its jobs end well.
#[test]
fn the_example_can_be_submitted() {
    let swarm = Swarm::start();
    let example = swarm.essaim(&["job", "submit", "--example"]).run().good();
    let ran = swarm.essaim(&["job", "submit", "--wait", "-"]).input(example.text()).run().good();
    assert_eq!(ran.text(), "prepare 1\nsimulate 2\nreport 3\n", "{}", ran.stderr);
    assert_eq!(swarm.essaim(&["job", "logs", "1"]).run().good().text(), "preparing the data\n");
    assert_eq!(shown(&swarm, "2")["counts"]["done"], 20);
    swarm.stop();
}

// A mistake is told before a hub is asked.
#[test]
fn mistakes_need_no_hub() {
    let home = Home::new();
    let file = write(home.path(), "bad.toml", "[[job]]\nname = \"a\"\ncommand = [\"true\"]\nafter = [\"a\"]\n");
    let ran = home.essaim(&["job", "submit", &file]).run().ended(2);
    assert_eq!(
        ran.stderr,
        format!("error: {file}:2:8: these jobs wait for each other and none could begin: a after a\n")
    );
    let ran = home.essaim(&["job", "submit", "/nowhere/x.toml"]).run().ended(2);
    assert!(ran.stderr.contains("/nowhere/x.toml cannot be read: there is no such file"), "{}", ran.stderr);
    home.essaim(&["job", "submit", "-", "--dry-run"]).input("[[job]]\ncommand = [\"true\"]\n").run().good();
    home.essaim(&["job", "submit"]).run().ended(2);
}
