//! What a program may use, and what is said when it wants more.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod swarm;

use swarm::Swarm;

/// Runs a command of the shell; its words for `run` first.
fn sh<'a>(words: &[&'a str], script: &'a str) -> Vec<&'a str> {
    [words, &["--command", "--", "sh", "-c", script]].concat()
}

// A flood ends, whether it would go on for ever or is over at once, on one stream or both; what came before the limit is
// there, byte for byte, and the flag that allows more is named.
#[test]
fn who_prints_too_much_is_stopped() {
    let swarm = Swarm::start();
    let flood = swarm.run(&sh(&["--output-limit", "1M"], "yes")).run().ended(123);
    assert_eq!(flood.stdout, "y\n".repeat(512 << 10).as_bytes());
    assert!(
        flood.stderr.contains("output limit: it printed more than 1 MiB (--output-limit allows more)"),
        "{}",
        flood.stderr
    );
    let both = swarm.run(&sh(&["--output-limit", "1M"], "yes & yes >&2")).run().ended(123);
    let errors = both.stderr.lines().filter(|line| *line == "y").count() * 2;
    assert_eq!(both.stdout.len() + errors, 1 << 20);
    // Over before anybody could stop it: it has not ended well all the same.
    let short = swarm.run(&sh(&["--output-limit", "5", "--json"], "echo 1234; echo 5678")).run().ended(123);
    let lines: Vec<serde_json::Value> = short.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let result = lines.last().unwrap();
    assert_eq!((&result["verdict"], &result["truncated"]), (&"output_limit".into(), &true.into()));
    assert_eq!((&result["stdout_bytes"], &result["reason"]["params"]["limit"]), (&5.into(), &"5".into()));
    let just = swarm.run(&sh(&["--output-limit", "10"], "echo 1234; echo 5678")).run().good();
    assert_eq!(just.text(), "1234\n5678\n");
    swarm.stop();
}

// The same for the tasks of an array, each on its own.
#[test]
fn each_task_has_a_limit_of_its_own() {
    let swarm = Swarm::start();
    let words = ["--array", "1-3", "--output-limit", "6", "--keep-order"];
    let array =
        swarm.run(&sh(&words, "echo $ESSAIM_TASK_ID; [ $ESSAIM_TASK_ID != 2 ] || echo far too much")).run().ended(123);
    assert_eq!(array.text().lines().collect::<Vec<_>>(), ["1", "2", "far ", "3"]);
    swarm.stop();
}

// A hub cuts what is more than it gives, and says so; nothing at all is no limit that a program can keep.
#[test]
fn a_hub_gives_so_much_and_no_more() {
    let home = swarm::Home::new();
    home.essaim(&["config", "set", "output_max", "2K"]).run().good();
    home.essaim(&["config", "set", "output_default", "1K"]).run().good();
    let up = swarm::up(&home, &["--slots", "1"]);
    let swarm = Swarm::of(home, up);
    let asked = swarm.run(&sh(&["--output-limit", "1M"], "yes")).run().ended(123);
    assert_eq!(asked.stdout.len(), 2 << 10);
    let note = "--output-limit 1 MiB is more than this hub gives: 2 KiB is the limit";
    assert!(asked.stderr.contains(note), "{}", asked.stderr);
    let shown = swarm.essaim(&["job", "show", "1"]).run().good();
    assert!(shown.text().contains("--output-limit 2 KiB (asked for 1 MiB)"), "{}", shown.text());
    let silent = swarm.run(&sh(&[], "yes")).run().ended(123);
    assert_eq!(silent.stdout.len(), 1 << 10);
    let none = swarm.run(&sh(&["--output-limit", "0"], "true")).run().ended(125);
    assert!(none.stderr.contains("the smallest size is 1 byte"), "{}", none.stderr);
    swarm.stop();
}
