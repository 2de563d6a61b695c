//! Notices at the end of a job: commands that the client runs, URLs that the hub posts to, and what is refused.
//!
//! Always true: who listens is a thread of the test; whatever becomes of a notice, the exit code is the job's.
//! Deliberately not here: which URL is below which prefix, what a restart remembers (the core's own tests).
#![allow(clippy::unwrap_used)]

mod swarm;

use rustix::process::Signal;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};
use swarm::{Home, PATIENCE, Swarm, free_address, up, wait_until};

/// Somebody who listens at `address` and gives these answers, one to each request.
fn listen(address: &str, answers: &[&'static str]) -> Receiver<(String, Value)> {
    let listener = TcpListener::bind(address).unwrap();
    let (tell, told) = channel();
    let answers = answers.to_vec();
    std::thread::spawn(move || {
        for answer in answers {
            let Ok((stream, _)) = listener.accept() else { return };
            let mut reader = BufReader::new(&stream);
            let (mut line, mut length, mut head) = (String::new(), 0, String::new());
            while reader.read_line(&mut line).unwrap_or(0) > 2 {
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                head.push_str(&line);
                line.clear();
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let _ = (&stream).write_all(format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n").as_bytes());
            if tell.send((head, serde_json::from_slice(&body).unwrap())).is_err() {
                return;
            }
        }
    });
    told
}

/// A swarm whose hub may post to these.
fn swarm_that_may(urls: &str) -> Swarm {
    let home = Home::new();
    std::fs::write(home.path().join("essaim.toml"), format!("notify_urls = [{urls}]\n")).unwrap();
    let up = up(&home, &["--slots", "2"]);
    Swarm::of(home, up)
}

fn notice(swarm: &Swarm, id: &str) -> Value {
    let job = swarm.essaim(&["job", "show", id, "--json"]).run().good().json();
    job["notice"].clone()
}

// A command hears of the end of a run, good or bad, on its standard input and in variables; what it prints is no output of
// the program, and its failure is told and changes no exit code.
#[test]
fn a_command_hears_of_the_end() {
    let swarm = Swarm::start();
    let said = "echo \"$ESSAIM_JOB $ESSAIM_JOB_NAME $ESSAIM_JOB_STATE $ESSAIM_JOB_EXIT_CODE $ESSAIM_JOB_FAILED\"; cat";
    let words = ["--name", "sum", "--notify", said, "--command", "--", "sh", "-c", "echo out; exit 3"];
    let ran = swarm.run(&words).run().ended(3);
    assert_eq!(ran.text(), "out\n");
    let line = ran.stderr.lines().find(|line| line.starts_with("1 ")).unwrap();
    assert_eq!(line, "1 sum failed 3 1");
    let body: Value = serde_json::from_str(ran.stderr.lines().find(|line| line.starts_with('{')).unwrap()).unwrap();
    let shown = swarm.essaim(&["job", "show", "1", "--json"]).run().good().json();
    assert_eq!((&body["exit_code"], &body["ended_ms"]), (&3.into(), &shown["ended_ms"]));
    for (key, value) in shown.as_object().unwrap() {
        assert_eq!(&body[key], value, "{key}");
    }
    // Later, for several, an array among them; and what does not work.
    swarm
        .run(&["--detach", "--array", "1-5", "--command", "--", "sh", "-c", "exit $((ESSAIM_TASK_ID > 3))"])
        .run()
        .good();
    let ran = swarm.essaim(&["job", "wait", "1", "2", "--notify", said]).run().ended(3);
    for line in ["1 sum failed 3 1", "2 sh failed 1 2"] {
        assert!(ran.stderr.lines().any(|said| said == line), "{}", ran.stderr);
    }
    let ran = swarm.run(&["--notify", "exit 9", "--command", "true"]).run().good();
    assert!(
        ran.stderr.contains("job 3 has ended, but --notify did not work: the command ended with exit status: 9"),
        "{}",
        ran.stderr
    );
    // Who leaves before the end cannot run it.
    let ran = swarm.run(&["--detach", "--notify", "true", "--command", "true"]).run().ended(125);
    assert!(ran.stderr.contains("essaim job wait JOB --notify CMD"), "{}", ran.stderr);
    let ran = swarm.essaim(&["job", "wait", "1", "--notify", "http://a/"]).run().ended(125);
    assert!(ran.stderr.contains("a URL is told by the hub"), "{}", ran.stderr);
    let text = "[[job]]\nname = \"x\"\ncommand = [\"true\"]\nnotify = \"echo $ESSAIM_JOB_NAME has ended\"\n";
    let ran = swarm.essaim(&["job", "submit", "-"]).input(text).run().ended(2);
    assert!(ran.stderr.starts_with("error: standard input:4:10: ") && ran.stderr.contains("--wait"), "{}", ran.stderr);
    let ran = swarm.essaim(&["job", "submit", "-", "--wait"]).input(text).run().good();
    assert!(ran.stderr.contains("x has ended\n"), "{}", ran.stderr);
    swarm.stop();
}

// A run that brings its own hub runs the command too, and cannot promise to tell a URL.
#[test]
fn without_a_hub_only_commands_are_told() {
    let home = Home::new();
    let ran = home.essaim(&["run", "--notify", "echo told $ESSAIM_JOB_STATE", "--command", "true"]).run().good();
    assert!(ran.stderr.ends_with("told done\n"), "{}", ran.stderr);
    let ran = home.essaim(&["run", "--notify", "http://127.0.0.1:1/", "--command", "true"]).run().ended(125);
    assert!(ran.stderr.contains("no hub is running to tell a URL"), "{}", ran.stderr);
}

// The hub posts the end to a URL that its settings allow, again when the answer was no yes, and says so; nobody waits.
#[test]
fn a_url_hears_of_the_end() {
    let address = free_address();
    let told = listen(&address, &["500 Broken", "302 Found\r\nLocation: http://127.0.0.1:1/", "204 Fine"]);
    let swarm = swarm_that_may(&format!("\"http://{address}/hook\""));
    let url = format!("http://{address}/hook/1");
    let program = "exit $((ESSAIM_TASK_ID == 2))";
    let words = ["--detach", "--notify", &url, "--array", "1-3", "--command", "--", "sh", "-c", program];
    swarm.run(&words).run().good();
    for _ in 0..3 {
        let (head, body) = told.recv_timeout(PATIENCE).unwrap();
        assert!(head.starts_with("POST /hook/1 HTTP/1.1\r\n"), "{head}");
        assert!(head.to_ascii_lowercase().contains("content-type: application/json\r\n"), "{head}");
        assert_eq!((&body["job"], &body["state"], &body["exit_code"]), (&1.into(), &"failed".into(), &1.into()));
        assert_eq!((&body["counts"]["done"], &body["counts"]["failed"]), (&2.into(), &1.into()));
    }
    wait_until("it is recorded", || notice(&swarm, "1")["tries"] == 3);
    assert_eq!(notice(&swarm, "1")["error"], Value::Null);
    let shown = swarm.essaim(&["job", "show", "1"]).run().good();
    assert!(shown.text().contains(&format!("notifies    {url} (told ")), "{}", shown.text());
    swarm.stop();
}

// The hub is killed while nobody listens: the next one tells it, and remembers that it did.
#[test]
fn a_killed_hub_tells_it_later() {
    let address = free_address();
    let (clients, workers) = (free_address(), free_address());
    let home = Home::new();
    std::fs::write(home.path().join("essaim.toml"), format!("notify_urls = \"http://{address}\"\n")).unwrap();
    let begin = || up(&home, &["--slots", "2", "--client-addr", &clients, "--worker-addr", &workers]).start();
    let mut first = begin();
    first.json();
    let url = format!("http://{address}/");
    home.essaim(&["run", "--notify", &url, "--command", "--", "echo", "well"]).run().good();
    home.kill();
    drop(first);
    let told = listen(&address, &["200 OK"]);
    let mut second = begin();
    second.json();
    let (_, body) = told.recv_timeout(PATIENCE).unwrap();
    assert_eq!((&body["job"], &body["state"], &body["exit_code"]), (&1.into(), &"done".into(), &0.into()));
    let shown = || home.essaim(&["job", "show", "1", "--json"]).run().good().json();
    wait_until("it is recorded", || shown()["notice"]["at_ms"].is_u64());
    assert_eq!(home.essaim(&["job", "logs", "1"]).run().good().text(), "well\n", "the output is still there");
    second.signal(Signal::TERM);
    second.end().good();
    let mut third = begin();
    third.json();
    assert!(shown()["notice"]["at_ms"].is_u64());
    third.signal(Signal::TERM);
    third.end().good();
}

// A URL that no admin has allowed is refused with the setting's name; the hub's own doors hear nothing even if they are.
#[test]
fn not_every_url_is_told() {
    let swarm = Swarm::start();
    let refused = swarm.run(&["--notify", "http://127.0.0.1:9/x", "--command", "true"]).run().ended(125);
    assert!(refused.stderr.contains("notify_urls") && refused.stderr.contains("essaim.toml"), "{}", refused.stderr);
    swarm.stop();
    let workers = free_address();
    let home = Home::new();
    let port = workers.rsplit(':').next().unwrap();
    let setting = format!("http://localhost:{port}");
    let up = up(&home, &["--slots", "2", "--worker-addr", &workers]).env("ESSAIM_NOTIFY_URLS", &setting);
    let up = up.env("ESSAIM_LOG", "info");
    let swarm = Swarm::of(home, up);
    swarm.run(&["--notify", &format!("{setting}/x"), "--command", "true"]).run().good();
    swarm.up.hear("that is this hub itself");
    swarm.stop();
    let home = Home::new();
    let ran = home.essaim(&["up"]).env("ESSAIM_NOTIFY_URLS", "ftp://x").run().ended(2);
    assert!(ran.stderr.contains("ESSAIM_NOTIFY_URLS") && ran.stderr.contains("http://"), "{}", ran.stderr);
}
