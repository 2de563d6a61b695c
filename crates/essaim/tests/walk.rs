//! The walk of a program, with real processes: `up`, then `run` of the examples and of what users do with them.
//!
//! Each test has a swarm of its own and stops it at the end, which asserts that nothing is left. Always true: what is
//! expected is what the README and docs/run.md promise, byte for byte where the bytes are ours.
//! Deliberately not here: live output (`live`), what is refused (`refusals`), the other subcommands (`words`).
#![allow(clippy::unwrap_used)]

mod swarm;

use serde_json::Value;
use swarm::{Ran, Swarm, example, tree, wait_for};

/// The six languages: how they are called, their folder, the extension, and whether files begin with a capital.
const LANGUAGES: [(&str, &str, &str, bool); 6] = [
    ("Python", "python", "py", false),
    ("C", "c", "c", false),
    ("C++", "cpp", "cpp", false),
    ("Java", "java", "java", true),
    ("the shell", "shell", "sh", false),
    ("JavaScript", "javascript", "js", false),
];

/// `examples/FOLDER/NAME.EXTENSION`; Java's files are named like their classes.
fn file(folder: &str, name: &str, extension: &str, is_capital: bool) -> String {
    let name = match is_capital {
        true => name.split('_').map(|word| word[..1].to_uppercase() + &word[1..]).collect(),
        false => name.to_owned(),
    };
    example(&format!("{folder}/{name}.{extension}"))
}

// The first thing that everybody tries.
#[test]
fn each_language_says_hello() {
    let swarm = Swarm::start();
    for (name, folder, extension, is_capital) in LANGUAGES {
        let ran = swarm.run(&[&file(folder, "hello", extension, is_capital)]).run().good();
        assert_eq!(ran.text(), format!("Hello from {name}!\n"));
        assert_eq!(ran.stderr, "", "{name}: a good end needs no words");
    }
    swarm.stop();
}

// Input reaches the program, and its end does.
#[test]
fn each_language_answers_its_input() {
    let swarm = Swarm::start();
    for (name, folder, extension, is_capital) in LANGUAGES {
        let ran = swarm.run(&[&file(folder, "answer", extension, is_capital)]).input("Ann\nBob\n").run().good();
        assert_eq!(ran.text(), "Hello, Ann!\nHello, Bob!\n2 answered.\n", "{name}");
    }
    let names = swarm.home.path().join("names");
    std::fs::write(&names, "Zoë\n").unwrap();
    let from_file = swarm.run(&["--stdin", names.to_str().unwrap(), &example("python/answer.py")]).run().good();
    assert_eq!(from_file.text(), "Hello, Zoë!\n1 answered.\n");
    let nothing = swarm.run(&[&example("c/answer.c")]).run().good();
    assert_eq!(nothing.text(), "0 answered.\n", "an empty input ends at once");
    swarm.stop();
}

// No shell and no parser of ours touches what belongs to the program.
#[test]
fn arguments_arrive_exactly() {
    let swarm = Swarm::start();
    let words = ["one", "two words", "--json", "", "$HOME *", "\"'\\", "-", "--", "é"];
    let mut expected = format!("{} argument(s)\n", words.len());
    words.iter().enumerate().for_each(|(n, word)| expected += &format!("{}: {word}\n", n + 1));
    for (name, folder, extension, is_capital) in LANGUAGES {
        let program = file(folder, "arguments", extension, is_capital);
        let all: Vec<&str> = std::iter::once(program.as_str()).chain(words).collect();
        let ran = swarm.run(&all).run().good();
        assert_eq!(ran.text(), expected, "{name}");
    }
    swarm.stop();
}

// A program that does not compile is told apart from one that fails: the compiler speaks, its code is ours.
#[test]
fn a_compile_error_is_the_compilers() {
    let swarm = Swarm::start();
    let cases = [("c/compile_error.c", "error: expected"), ("cpp/compile_error.cpp", "error: conversion")];
    for (name, words) in cases.into_iter().chain([("java/CompileError.java", "incompatible types")]) {
        let ran = swarm.run(&["--json", &example(name)]).run().ended(1);
        let lines = ran.json_lines();
        let result = lines.last().unwrap();
        assert_eq!((&result["verdict"], &result["phase"]), (&"compile_error".into(), &"compile".into()), "{name}");
        assert!(output_of(&lines, "stderr").contains(words), "{name}: {}", ran.text());
        assert_eq!(output_of(&lines, "stdout"), "");
        let plain = swarm.run(&[&example(name)]).run().ended(1);
        assert!(plain.stderr.contains(words), "{}", plain.stderr);
        assert!(plain.stderr.trim_end().ends_with("on local-1: compile error (exit code 1)"), "{}", plain.stderr);
        assert_eq!(plain.text(), "");
    }
    swarm.stop();
}

// A compiler's own number is passed on, also that of a language which a user has added.
#[test]
fn a_language_of_ones_own_compiles_and_runs() {
    let home = swarm::Home::new();
    let table = r#"
[upper]
extensions = ["up"]
source = "main.up"
compile = ["sh", "-c", "grep -q good \"$1\" || { echo bad program >&2; exit 7; }; tr a-z A-Z < \"$1\" > made", "sh", "{sources}"]
run = ["cat", "made"]
probes = [["sh", "-c", "echo 1"]]
"#;
    std::fs::write(home.path().join("languages.toml"), table).unwrap();
    let up = swarm::up(&home, &["--slots", "2"]);
    let swarm = Swarm::of(home, up);
    let program = swarm.home.path().join("x.up");
    std::fs::write(&program, "good\n").unwrap();
    assert_eq!(swarm.run(&[program.to_str().unwrap()]).run().good().text(), "GOOD\n");
    std::fs::write(&program, "nonsense\n").unwrap();
    let ran = swarm.run(&[program.to_str().unwrap()]).run().ended(7);
    assert!(ran.stderr.starts_with("bad program\n"), "{}", ran.stderr);
    swarm.stop();
}

// The table of exit codes in docs/run.md.
#[test]
fn a_program_ends_as_it_ends() {
    let swarm = Swarm::start();
    for (_, folder, extension, is_capital) in LANGUAGES {
        let ran = swarm.run(&[&file(folder, "exit_code", extension, is_capital)]).run().ended(3);
        assert!(ran.stderr.contains("Something is wrong: ending with 3.\n"), "{folder}: {}", ran.stderr);
        assert!(ran.stderr.trim_end().ends_with("runtime error: exit code 3"), "{}", ran.stderr);
    }
    let cases = [
        ("c/segfault.c", 139, "killed by SIGSEGV (segmentation fault)"),
        ("cpp/exception.cpp", 134, "nobody catches this"),
        ("python/exception.py", 1, "ZeroDivisionError: division by zero"),
        ("java/Uncaught.java", 1, "ArrayIndexOutOfBoundsException"),
        ("javascript/exception.js", 1, "TypeError: Cannot read properties of undefined"),
    ];
    for (name, code, words) in cases {
        let ran = swarm.run(&[&example(name)]).run().ended(code);
        assert!(ran.stderr.contains(words), "{name}: {}", ran.stderr);
    }
    let crash = swarm.run(&[&example("c/segfault.c")]).run().ended(139);
    assert_eq!(crash.text(), "About to crash.\n", "what was written before the crash is there");
    let late = swarm.run(&["--time", "300ms", "--command", "--", "sleep", "60"]).run().ended(124);
    assert!(late.stderr.contains("time limit: stopped after 300 ms"), "{}", late.stderr);
    swarm.stop();
}

// All the ways to say what runs.
#[test]
fn programs_come_as_folders_files_pipes_and_commands() {
    let swarm = Swarm::start();
    assert_eq!(
        swarm.run(&[&example("c/project")]).run().good().text(),
        "circle of 2: 12.57\nsquare of 3: 9.00\n",
        "the C files of a folder are compiled together"
    );
    assert_eq!(swarm.run(&[&example("java/project"), "Ann"]).run().good().text(), "Hello, Ann!\n");
    let header = example("c/project/shapes.h");
    let size = std::fs::metadata(&header).unwrap().len();
    let ran = swarm.run(&["--file", &header, "--command", "--", "wc", "-c", "shapes.h"]).run().good();
    assert_eq!(ran.text().split_whitespace().next(), Some(size.to_string().as_str()), "{}", ran.text());
    let ran = swarm.run(&["--file", &example("c"), "--command", "--", "ls", "c/project"]).run().good();
    assert_eq!(ran.text(), "circle.c\nmain.c\nshapes.h\nsquare.c\n");
    let piped = swarm.run(&["--lang", "python", "-", "7"]).input("import sys\nprint(6 * int(sys.argv[1]))\n");
    assert_eq!(piped.run().good().text(), "42\n");
    let named = swarm.run(&["--lang", "python", &example("README.md")]).run().ended(1);
    assert!(named.stderr.contains("SyntaxError"), "--lang wins over the extension: {}", named.stderr);
    let variable = swarm.run(&["--env", "COLOUR=dark red", "--command", "--", "sh", "-c", "echo $COLOUR"]);
    assert_eq!(variable.run().good().text(), "dark red\n");
    let environment = swarm.run(&["--command", "--", "env"]).run().good();
    assert!(!environment.text().contains("ESSAIM_HOME") && !environment.text().contains("MARK="), "{environment:?}");
    assert_eq!(
        swarm.run(&["--on", "local-1", &example("shell/hello.sh")]).run().good().text(),
        "Hello from the shell!\n"
    );
    swarm.stop();
}

// A fresh folder for each run, and nothing of it afterwards.
#[test]
fn a_work_folder_is_fresh_and_removed() {
    let swarm = Swarm::start();
    let script = "ls -A; echo x > left; mkdir -p deep/er; chmod 500 deep/er deep; pwd >&2";
    for _ in 0..2 {
        let ran = swarm.run(&["--command", "--", "sh", "-c", script]).run().good();
        assert_eq!(ran.text(), "", "the folder is empty at first");
        let folder = std::path::PathBuf::from(ran.stderr.trim_end());
        assert!(folder.starts_with(swarm.home.path()), "{}", folder.display());
        wait_for("the work folder's end", || (!folder.exists()).then_some(()));
    }
    let local = swarm.home.path().join("local/1/work");
    wait_for("an empty folder of work folders", || tree(&local).is_empty().then_some(()));
    swarm.stop();
}

/// The text of a stream in JSON lines.
fn output_of(lines: &[Value], stream: &str) -> String {
    let of_stream = lines.iter().filter(|line| line["type"] == "output" && line["stream"] == stream);
    of_stream.map(|line| line["text"].as_str().unwrap()).collect()
}

// The lines that DESIGN promised to programs, with every field.
#[test]
fn json_lines_have_every_field() {
    let swarm = Swarm::start();
    let script = "printf 'a \"b\"\\n'; printf '\\377\\000' >&2; exit 5";
    let ran = swarm.run(&["--json", "--name", "mine", "--command", "--", "sh", "-c", script]).run().ended(5);
    let lines = ran.json_lines();
    let words: Vec<&str> = ran.text().lines().collect();
    let first = r#"{"type":"output","task":1,"stream":"stdout","offset":0,"text":"a \"b\"\n"}"#;
    let second = r#"{"type":"output","task":1,"stream":"stderr","offset":0,"base64":"/wA="}"#;
    assert!(words.contains(&first) && words.contains(&second), "{}", ran.text());
    let (job, wall) = (lines[2]["job"].as_u64().unwrap(), lines[2]["wall_ms"].as_u64().unwrap());
    let (cpu, memory) = (lines[2]["cpu_ms"].as_u64().unwrap(), lines[2]["memory_peak_bytes"].as_u64().unwrap());
    let result = format!(
        r#"{{"type":"result","task":1,"verdict":"runtime_error","phase":"run","exit_code":5,"signal":null,"cpu_ms":{cpu},"wall_ms":{wall},"memory_peak_bytes":{memory},"stdout_bytes":6,"stderr_bytes":2,"truncated":false,"isolation":"none","node":"local-1","attempt":1,"cache_hit":false,"job":{job}}}"#
    );
    assert_eq!(words[2], result);
    assert_eq!(words.len(), 3);
    assert_eq!(swarm.essaim(&["job", "show", &job.to_string(), "--json"]).run().good().json()["name"], "mine");
    let killed = swarm.run(&["--json", "--command", "--", "sh", "-c", "kill -9 $$"]).run().ended(137).json();
    assert_eq!((&killed["signal"], &killed["exit_code"]), (&9.into(), &Value::Null));
    let late = swarm.run(&["--json", "--time", "200ms", "--command", "sleep", "60"]).run().ended(124).json();
    assert_eq!((&late["verdict"], &late["reason"]["code"]), (&"time_limit".into(), &"wall_limit".into()));
    swarm.stop();
}

/// The id that a detached run printed.
fn id(ran: &Ran) -> String {
    let id = ran.text().trim_end().to_owned();
    assert!(id.parse::<u64>().is_ok(), "{id}");
    id
}

// A job that nobody watches: seen, waited for, read and cancelled afterwards.
#[test]
fn a_detached_job_is_seen_waited_for_and_cancelled() {
    let swarm = Swarm::start();
    let job = |words: &[&str]| swarm.essaim(&[&["job"], words].concat());
    let ended =
        id(&swarm.run(&["--detach", "--command", "--", "sh", "-c", "echo out; echo err >&2; exit 4"]).run().good());
    let waited = job(&["wait", &ended]).run().ended(4);
    assert_eq!(waited.text(), "");
    let logs = job(&["logs", &ended]).run().good();
    assert_eq!((logs.text(), logs.stderr.as_str()), ("out\n", "err\n"));
    let only = job(&["logs", &ended, "--stderr"]).run().good();
    assert_eq!((only.text(), only.stderr.as_str()), ("", "err\n"));
    let shown = job(&["show", &ended]).run().good();
    assert!(shown.text().contains("outcome     runtime error: exit code 4\n"), "{}", shown.text());

    let submitted = swarm.run(&["--detach", "--json", "--command", "sleep", "600"]).run().good().json();
    assert_eq!(submitted["type"], "submitted");
    let long = submitted["job"].to_string();
    let running = wait_for("the job running", || {
        let view = job(&["show", &long, "--json"]).run().good().json();
        (view["state"] == "running").then_some(view)
    });
    assert_eq!((&running["name"], &running["tasks"][0]["node"]), (&"sleep".into(), &"local-1".into()));
    let live = job(&["list", "--live", "--json"]).run().good().json();
    let ids: Vec<String> = live.as_array().unwrap().iter().map(|job| job["job"].to_string()).collect();
    assert_eq!(ids, [long.as_str()]);
    let waiting = job(&["wait", &long]).start();
    let cancelled = job(&["cancel", &long]).run().good();
    assert_eq!(cancelled.stderr, format!("job {long} is cancelled\n"));
    let waited = waiting.end().ended(130);
    assert!(waited.stderr.contains("cancelled by admin"), "{}", waited.stderr);
    let again = job(&["cancel", &long]).run().ended(3);
    assert_eq!(again.stderr, format!("error: Job {long} has ended already: it is cancelled.\n"));
    let list = job(&["list"]).run().good();
    assert!(list.text().starts_with("JOB ") && list.text().lines().count() == 3, "{}", list.text());
    let newest = job(&["list", "--limit", "1", "--json"]).run().good().json();
    assert_eq!(newest[0]["job"].to_string(), long);
    assert_eq!(newest.as_array().unwrap().len(), 1);
    swarm.stop();
}

// A full node, and a hub without one: the job waits, says why, and runs when it can.
#[test]
fn a_job_that_waits_says_why() {
    let swarm = Swarm::start_with(&["--slots", "1"]);
    let why = |job: &str| {
        let view = swarm.essaim(&["job", "show", job, "--json"]).run().good().json();
        (view["state"].as_str().unwrap().to_owned(), view["tasks"][0]["reason"]["code"].clone())
    };
    let mut first = swarm.run(&[&example("python/answer.py")]).start();
    first.send("Ann\n");
    assert_eq!(first.line(), "Hello, Ann!");
    let mut second = swarm.run(&["--command", "--", "echo", "my turn"]).start();
    let job = wait_for("the second job", || {
        let list = swarm.essaim(&["job", "list", "--live", "--json"]).run().good().json();
        list.as_array().unwrap().iter().find(|job| job["name"] == "echo").map(|job| job["job"].to_string())
    });
    assert_eq!(why(&job).0, "queued");
    assert!(why(&job).1.is_string(), "{:?}", why(&job));
    let shown = swarm.essaim(&["job", "show", &job]).run().good();
    assert!(shown.text().contains("\nwhy "), "{}", shown.text());
    first.end().good();
    assert_eq!(second.line(), "my turn");
    second.end().good();
    // A job that waits can be cancelled like one that runs.
    let mut first = swarm.run(&[&example("python/answer.py")]).start();
    first.send("Ann\n");
    assert_eq!(first.line(), "Hello, Ann!");
    let waiting = id(&swarm.run(&["--detach", "--command", "true"]).run().good());
    swarm.essaim(&["job", "cancel", &waiting]).run().good();
    swarm.essaim(&["job", "wait", &waiting]).run().ended(130);
    first.end().good();
    swarm.stop();
}
