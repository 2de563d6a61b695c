//! The subcommands that look and tell: help, version, settings, nodes, keys, completions, doctor.
//!
//! Always true: what a program reads (`--json`) has the documented fields; what a person reads has its headline.
//! Deliberately not here: running programs (`walk`), what is refused (`refusals`).
#![allow(clippy::unwrap_used)]

mod swarm;

use swarm::{Home, Swarm};

/// The subcommands that the help of `words` lists.
fn subcommands(home: &Home, words: &[&str]) -> Vec<String> {
    let help = home.essaim(&[words, &["--help"]].concat()).run().good();
    let Some((_, list)) = help.text().split_once("Commands:\n") else { return Vec::new() };
    let names = list.lines().take_while(|line| !line.is_empty()).filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

// Every subcommand explains itself with examples, and says which version it is part of.
#[test]
fn every_subcommand_has_help_with_examples() {
    let home = Home::new();
    let mut all: Vec<Vec<String>> = vec![Vec::new()];
    let mut seen = 0;
    while seen < all.len() {
        let words: Vec<&str> = all[seen].iter().map(String::as_str).collect();
        seen += 1;
        let help = home.essaim(&[&words[..], &["--help"]].concat()).run().good();
        assert!(help.text().contains("\nExamples:\n  "), "{words:?}: {}", help.text());
        assert!(help.text().contains("Usage: essaim"), "{words:?}");
        assert_eq!(help.stderr, "");
        let more = subcommands(&home, &words).into_iter().map(|name| [&all[seen - 1][..], &[name]].concat());
        let more: Vec<Vec<String>> = more.collect();
        all.extend(more);
    }
    let names: Vec<String> = all.iter().map(|words| words.join(" ")).collect();
    for name in [
        "up",
        "hub",
        "worker",
        "join-line",
        "run",
        "job logs",
        "node show",
        "key revoke",
        "doctor",
        "config show",
        "config set",
    ] {
        assert!(names.iter().any(|known| known == name), "{name} is missing among {names:?}");
    }
    assert_eq!(home.essaim(&["--version"]).run().good().text(), concat!("essaim ", env!("CARGO_PKG_VERSION"), "\n"));
    let wrong = home.essaim(&["nod", "list"]).run().ended(2);
    assert!(wrong.stderr.contains("'node'"), "did you mean: {}", wrong.stderr);
    let unknown = home.essaim(&["node", "list", "--jsno"]).run().ended(2);
    assert!(unknown.stderr.contains("--json"), "{}", unknown.stderr);
    assert_eq!(swarm::tree(home.path()), Vec::<String>::new(), "words make no files");
}

// Every setting with its value and the place that it comes from, later places before earlier ones.
#[test]
fn config_shows_where_each_value_comes_from() {
    let home = Home::new();
    let file = home.path().join("essaim.toml");
    std::fs::write(&file, "retries = 7\n\nlog = \"info\"\nclient_addr = \"127.0.0.1:1\"\n").unwrap();
    let show = |words: &[&str]| {
        let words = [words, &["config", "show"]].concat();
        home.essaim(&words).env("ESSAIM_LOG", "debug").env("ESSAIM_KEY", "secret").env("ESSAIM_HUB", "lab")
    };
    let shown = show(&["--json", "--hub", "here:9"]).run().good();
    assert!(!shown.text().contains("secret"));
    let shown = shown.json();
    let origin = |name: &str| {
        let setting = shown.as_array().unwrap().iter().find(|setting| setting["name"] == name).unwrap();
        (setting["value"].as_str().unwrap_or("-").to_owned(), setting["origin"].as_str().unwrap().to_owned())
    };
    let path = file.display();
    assert_eq!(origin("home"), (home.path().display().to_string(), "ESSAIM_HOME".into()));
    assert_eq!(origin("retries"), ("7".into(), format!("{path}:1")));
    assert_eq!(origin("client_addr"), ("127.0.0.1:1".into(), format!("{path}:4")));
    assert_eq!(origin("log"), ("debug".into(), "ESSAIM_LOG".into()));
    assert_eq!(origin("hub"), ("here:9".into(), "--hub".into()));
    assert_eq!(origin("key"), ("***".into(), "ESSAIM_KEY".into()));
    assert_eq!(origin("worker_addr"), ("127.0.0.1:5200".into(), "default".into()));
    let table = show(&[]).run().good();
    assert!(table.text().starts_with("SETTING ") && table.text().contains("ESSAIM_LOG"), "{}", table.text());
    std::fs::write(&file, "log = \"warn\"\nretrys = 7\n").unwrap();
    let wrong = show(&[]).run().ended(2);
    assert_eq!(wrong.stderr, format!("error: {path}:2: there is no setting `retrys`; did you mean `retries`?\n"));
}

// What completes our words is a script of the named shell.
#[test]
fn completions_are_scripts() {
    let home = Home::new();
    for (shell, mark) in [("bash", "complete -F"), ("zsh", "#compdef essaim"), ("fish", "complete -c essaim")] {
        let script = home.essaim(&["completions", shell]).run().good();
        assert!(script.text().contains(mark) && script.text().contains("join-line"), "{shell}");
    }
    let bash = home.essaim(&["completions", "bash"]).run().good();
    swarm::Words::new("bash", &["-n"]).input(bash.stdout).run().good();
    home.essaim(&["completions", "tcsh"]).run().ended(2);
}

// The doctor looks with a hub and without, and changes nothing.
#[test]
fn doctor_looks() {
    let home = Home::new();
    let alone = home.essaim(&["doctor", "--json"]).run().good().json();
    let of = |list: &serde_json::Value, what: &str| {
        list.as_array()
            .unwrap()
            .iter()
            .find(|finding| finding["what"] == what)
            .cloned()
            .unwrap_or_else(|| panic!("{list}"))
    };
    assert_eq!(of(&alone, "data folder")["state"], "ok");
    assert_eq!(of(&alone, "language python")["state"], "ok");
    assert!(of(&alone, "hub")["detail"].as_str().unwrap().starts_with("none runs here"));
    let table = home.essaim(&["doctor"]).run().good();
    assert!(table.text().starts_with("STATE ") && table.text().contains("language c "), "{}", table.text());
    let bad = home.essaim(&["doctor"]).env("PATH", "/nowhere").run().ended(1);
    assert!(bad.text().contains("any language"), "{}", bad.text());
    assert_eq!(swarm::tree(home.path()), Vec::<String>::new(), "looking makes no files");

    let swarm = Swarm::start();
    let with_hub = of(&swarm.essaim(&["doctor", "--json"]).run().good().json(), "hub");
    let detail = format!(" at {}, as admin (admin)", swarm.client_address());
    assert!(with_hub["detail"].as_str().unwrap().ends_with(&detail), "{with_hub}");
    swarm.stop();
}

// The fields of a node that programs rely on.
#[test]
fn nodes_tell_what_they_are() {
    let swarm = Swarm::start_with(&["--slots", "3", "--local-workers", "2", "--name", "lab"]);
    assert_eq!(swarm.ready["name"], "lab");
    assert_eq!(swarm.ready["home"], swarm.home.path().display().to_string());
    assert_eq!(swarm.ready["pid"], swarm.up.pid());
    swarm.wait_for_node("local-2");
    let nodes = swarm.nodes();
    let names: Vec<&str> = nodes.iter().map(|node| node["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["local-1", "local-2"]);
    for node in &nodes {
        assert_eq!((&node["state"], &node["slots"], &node["slots_used"]), (&"online".into(), &3.into(), &0.into()));
        assert_eq!((&node["local"], &node["facts"]["os"]), (&true.into(), &"linux".into()));
        assert!(node["facts"]["cpus"].as_u64().unwrap() > 0 && node["facts"]["memory_bytes"].as_u64().unwrap() > 0);
        let tools = node["toolchains"].as_array().unwrap();
        let has = |lang: &str| tools.iter().any(|tool| tool["lang"] == lang && tool["version"].is_string());
        assert!(["python", "c", "cpp", "java", "shell", "javascript"].into_iter().all(has), "{node}");
    }
    let table = swarm.essaim(&["node", "list"]).run().good();
    assert!(table.text().starts_with("NAME ") && table.text().lines().count() == 3, "{}", table.text());
    let shown = swarm.essaim(&["node", "show", "local-2"]).run().good();
    assert!(shown.text().contains("slots       0 of 3 used\n"), "{}", shown.text());
    assert_eq!(swarm.essaim(&["node", "show", "local-2", "--json"]).run().good().json()["name"], "local-2");
    let job = swarm.run(&["--detach", "--on", "local-2", "--command", "sleep", "600"]).run().good();
    let job: u64 = job.text().trim().parse().unwrap();
    swarm::wait_until("the used slot", || {
        let node = swarm.essaim(&["node", "show", "local-2", "--json"]).run().good().json();
        node["slots_used"] == 1 && node["jobs"] == serde_json::json!([job])
    });
    swarm.essaim(&["job", "cancel", &job.to_string()]).run().good();
    swarm.stop();
}
