//! Machines and people join a hub, with real processes; a machine is another data folder.
//!
//! Always true: the line that is pasted is the line that was printed; what a line or key may not do is refused by name
//! and with the exit code of the table.
//! Deliberately not here: what dies and comes back (`deaths`), what runs on the nodes (`walk`).
#![allow(clippy::unwrap_used)]

mod swarm;

use rustix::process::Signal;
use swarm::{Home, Running, Swarm, Words, example, wait_for, wait_until};

/// The line of `join-line` with these words: without `essaim worker` in front.
#[track_caller]
fn line(swarm: &Swarm, words: &[&str]) -> String {
    let ran = swarm.essaim(&[&["join-line"], words].concat()).run().good();
    ran.text().trim_end().strip_prefix("essaim worker ").unwrap().to_owned()
}

/// The line with another list of addresses.
fn line_at(line: &str, address: &str) -> String {
    format!("{}@{address}", line.split('@').next().unwrap())
}

/// A worker with one slot, started in `home`.
fn worker(home: &Home, name: &str, words: &[&str]) -> Words {
    home.essaim(&[&["worker", "--name", name, "--slots", "1"], words].concat())
}

/// Ctrl+C ends it well.
#[track_caller]
fn stop(worker: Running) {
    worker.signal(Signal::INT);
    worker.end().good();
}

// One line, pasted: as an argument, the whole command through a pipe, and nothing at all the second time.
#[test]
fn a_machine_joins_with_the_printed_line() {
    let swarm = Swarm::start();
    let (garage, attic) = (Home::new(), Home::new());
    let by_argument = worker(&garage, "garage", &[&line(&swarm, &[])]).start();
    let mut by_pipe = worker(&attic, "attic", &["-"]).start();
    by_pipe.send(&format!("essaim worker {}\n", line(&swarm, &[])));
    for name in ["garage", "attic"] {
        let node = swarm.wait_for_node(name);
        assert_eq!((&node["slots"], &node["local"]), (&1.into(), &false.into()));
        let ran = swarm.run(&["--json", "--on", name, &example("c/hello.c")]).run().good();
        assert_eq!(ran.json_lines().last().unwrap()["node"], name);
    }
    let work = garage.path().join("worker/work");
    let folder = swarm.run(&["--on", "garage", "--command", "pwd"]).run().good();
    assert!(folder.text().starts_with(garage.path().to_str().unwrap()), "{}", folder.text());
    wait_until("no work folder", || swarm::tree(&work).is_empty());

    stop(by_argument);
    wait_until("garage offline", || {
        let node = swarm.essaim(&["node", "show", "garage", "--json"]).run().good().json();
        node["state"] != "online"
    });
    let again = worker(&garage, "garage", &[]).start();
    swarm.wait_for_node("garage");
    let second = worker(&garage, "garage", &[]).run().ended(3);
    assert!(second.stderr.contains(&format!("process {}", again.pid())), "one worker per folder: {}", second.stderr);
    stop(again);
    stop(by_pipe);
    garage.assert_no_processes();
    attic.assert_no_processes();
    swarm.stop();
}

// A second address, opened while the hub runs: in the printed line, and reachable by it alone.
#[test]
fn an_opened_address_is_reachable_without_a_restart() {
    let swarm = Swarm::start();
    let port = swarm.worker_address().rsplit_once(':').unwrap().1.to_owned();
    let address = format!("127.0.0.2:{port}");
    std::net::TcpStream::connect(&address).expect_err("nobody listens there yet");
    let made = swarm.essaim(&["join-line", "--json", "--open", "127.0.0.2", "--uses", "2"]).run().good().json();
    let addresses: Vec<&str> = made["addresses"].as_array().unwrap().iter().map(|a| a.as_str().unwrap()).collect();
    assert_eq!(addresses.len(), 2);
    assert!(addresses.contains(&address.as_str()) && addresses.contains(&swarm.worker_address().as_str()), "{made}");
    assert_eq!(made["uses"], 2);
    let line = made["line"].as_str().unwrap();
    assert_eq!(made["command"], format!("essaim worker {line}"));
    assert!(line.ends_with(&format!("@{}", addresses.join(","))), "{line}");
    let home = Home::new();
    let far = worker(&home, "far", &[&line_at(line, &address)]).start();
    swarm.wait_for_node("far");
    assert_eq!(swarm.run(&["--on", "far", &example("shell/hello.sh")]).run().good().text(), "Hello from the shell!\n");

    let clients = swarm.client_address().rsplit_once(':').unwrap().1.to_owned();
    swarm.essaim(&["join-line", "--open-clients", "127.0.0.2", "--quiet"]).run().good();
    let hub = format!("127.0.0.2:{clients}");
    let named = swarm.essaim(&["--hub", &hub, "node", "list", "--json"]).run().good().json();
    assert_eq!(named.as_array().unwrap().len(), 2);
    let key = swarm.essaim(&["key", "create", "ann"]).run().good();
    assert!(key.text().contains(&hub), "a key made from now on names the address: {}", key.text());
    let taken = swarm.essaim(&["join-line", "--open", &swarm.client_address()]).run().ended(3);
    assert!(taken.stderr.contains(&format!("cannot open {}", swarm.client_address())), "{}", taken.stderr);
    stop(far);
    swarm.stop();
}

// Lines that let nobody in: each says why, with exit code 3.
#[test]
fn a_line_that_is_not_good_is_refused_by_name() {
    let (swarm, other) = (Swarm::start(), Swarm::start());
    let refused = |line: &str| {
        let ran = worker(&Home::new(), "garage", &[line]).run().ended(3);
        assert_eq!((ran.text(), ran.stderr.lines().count()), ("", 1), "{}", ran.stderr);
        ran.stderr
    };
    let foreign = refused(&line_at(&line(&other, &[]), &swarm.worker_address()));
    assert!(
        foreign.contains("another hub than the one that was meant answers")
            && foreign.contains(&swarm.worker_address()),
        "{foreign}"
    );
    let expired = refused(&line(&swarm, &["--ttl", "1ms"]));
    assert!(expired.contains("expired"), "{expired}");
    let used = line(&swarm, &[]);
    let home = Home::new();
    let first = worker(&home, "first", &[&used]).start();
    swarm.wait_for_node("first");
    let said = refused(&used);
    assert_eq!(said, "error: This join line was used as often as it allows. Make a new one with `essaim join-line`.\n");
    let (front, address) = used.split_once('@').unwrap();
    let invented = format!("{}.{}@{address}", front.rsplit_once('.').unwrap().0, "0".repeat(32));
    let said = refused(&invented);
    assert!(said.contains("does not know this join line"), "{said}");
    for (words, sentence) in [(&["nonsense"][..], "this is no join line"), (&[], "join-line")] {
        let ran = worker(&Home::new(), "garage", words).run().ended(2);
        assert!(ran.stderr.contains(sentence), "{}", ran.stderr);
    }
    stop(first);
    other.stop();
    swarm.stop();
}

// People: a key on another machine, what its role may, and the end of it.
#[test]
fn a_key_opens_as_much_as_its_role() {
    let swarm = Swarm::start();
    let elsewhere = Home::new();
    let key = |name: &str, role: &str| {
        let ran = swarm.essaim(&["key", "create", name, "--role", role]).run().good();
        ran.text().trim_end().to_owned()
    };
    let (viewer, user, operator) = (key("vera", "viewer"), key("uma", "user"), key("oscar", "operator"));
    let with = |key: &str, words: &[&str]| elsewhere.essaim(words).env("ESSAIM_KEY", key);
    let hello = example("shell/hello.sh");
    assert_eq!(with(&operator, &["run", &hello]).run().good().text(), "Hello from the shell!\n");
    assert_eq!(with(&viewer, &["node", "list", "--json"]).run().good().json()[0]["name"], "local-1");
    for (key, role) in [(&viewer, "viewer"), (&user, "user")] {
        let ran = with(key, &["run", &hello]).run().ended(125);
        assert_eq!(
            ran.stderr,
            format!("error: This key may not do that: its role is {role}, and operator is needed.\n")
        );
    }
    let ran = with(&operator, &["join-line"]).run().ended(3);
    assert_eq!(ran.stderr, "error: This key may not do that: its role is operator, and admin is needed.\n");
    let seen = with(&viewer, &["job", "list", "--json"]).run().good().json();
    assert_eq!((&seen[0]["name"], &seen[0]["owner"]), (&"hello.sh".into(), &"oscar".into()));
    let job = seen[0]["job"].to_string();
    with(&viewer, &["job", "logs", &job]).run().ended(3);

    let listed = swarm.essaim(&["key", "list", "--json"]).run().good();
    for secret in [&viewer, &operator] {
        let secret = secret.split(['.', '@']).nth(2).unwrap();
        assert!(!listed.text().contains(secret), "secrets are shown once");
    }
    let names: Vec<String> =
        listed.json().as_array().unwrap().iter().map(|key| format!("{}:{}", key["name"], key["role"])).collect();
    for name in ["\"admin\":\"admin\"", "\"oscar\":\"operator\"", "\"vera\":\"viewer\"", "\"uma\":\"user\""] {
        assert!(names.iter().any(|known| known == name), "{names:?}");
    }
    let file = elsewhere.path().join("oscar.key");
    std::fs::write(&file, &operator).unwrap();
    elsewhere.essaim(&["--key-file", file.to_str().unwrap(), "node", "list"]).run().good();
    swarm.stop();
}

// A revoked key ends what is open with it, at once; the job goes on.
#[test]
fn a_revoked_key_ends_its_sessions() {
    let swarm = Swarm::start();
    let key = swarm.essaim(&["key", "create", "oscar", "--role", "operator"]).run().good();
    let elsewhere = Home::new();
    let script = "echo started; sleep 600";
    let mut run = elsewhere.essaim(&["run", "--command", "--", "sh", "-c", script]);
    run = run.env("ESSAIM_KEY", key.text().trim_end());
    let mut run = run.start();
    assert_eq!(run.line(), "started");
    let job = swarm.essaim(&["job", "list", "--live", "--json"]).run().good().json()[0]["job"].to_string();
    swarm.essaim(&["key", "revoke", "oscar"]).run().good();
    let ran = run.end().ended(125);
    assert!(ran.stderr.contains("key"), "{}", ran.stderr);
    let view = swarm.essaim(&["job", "show", &job, "--json"]).run().good().json();
    assert_eq!(view["state"], "running");
    swarm.essaim(&["job", "cancel", &job]).run().good();
    swarm.stop();
}

// The hub is started again: its workers come back without anybody's help, its name and identity are the old ones.
#[test]
fn a_worker_comes_back_to_a_restarted_hub() {
    let (clients, workers) = (swarm::free_address(), swarm::free_address());
    let swarm = Swarm::start_with(&["--slots", "1", "--client-addr", &clients, "--worker-addr", &workers]);
    let home = Home::new();
    let garage = worker(&home, "garage", &[&line(&swarm, &[])]).start();
    swarm.wait_for_node("garage");
    let (clients, workers, authority) =
        (swarm.client_address(), swarm.worker_address(), swarm.ready["authority"].clone());
    let hub = swarm.stop();
    let words = ["up", "--json", "--slots", "1", "--client-addr", &clients, "--worker-addr", &workers];
    let up = hub.essaim(&words);
    let swarm = Swarm::of(hub, up);
    assert_eq!((&swarm.ready["authority"], swarm.worker_address()), (&authority, workers));
    swarm.wait_for_node("garage");
    let ran = swarm.run(&["--on", "garage", &example("python/hello.py")]).run().good();
    assert_eq!(ran.text(), "Hello from Python!\n");
    wait_for("both nodes", || (swarm.nodes().len() == 2).then_some(()));
    stop(garage);
    // It said goodbye: that is told apart from a connection that was lost.
    let has_left = |node: &serde_json::Value| node["name"] == "garage" && node["state"] == "stopped";
    wait_for("the hub knows that it left", || swarm.nodes().iter().any(has_left).then_some(()));
    swarm.stop();
}
