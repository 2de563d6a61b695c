//! `kill -9` of hub, worker, both, and of everything with a copy of the data folder, at random moments while programs run.
//!
//! A campaign lets a few clients run many short programs; each program appends a line to a file when it starts: its number
//! and its attempt, in one write. Meanwhile somebody is killed and started again, some rounds long. Afterwards the record
//! says that each program ended once and well, and the file says that it was started only when the record allows it.
//!
//! The suite plays few rounds; `cargo xtask soak` (`ESSAIM_SOAK=1`) all of them. The moments come from a seed that is
//! printed and can be given again (`ESSAIM_SEED=N`).
//! Deliberately not here: what else is in the journal (the simulator of `core`), a full disk (`disk`).

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]
#![allow(clippy::print_stdout)] // A failed test shows what it printed.

mod processes;
mod swarm;

use essaim_core::hub::{Record, decode_batch};
use essaim_store::{Seq, Store, StoreLimits};
use processes::is_alive;
use rustix::process::Signal;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use swarm::{Dice, ESSAIM, Home, Ran, Running, Words, free_address, signal, wait_for, wait_until};
use tempfile::TempDir;

/// Clients at the same time.
const CLIENTS: usize = 5;

/// Programs that the worker runs at once.
const SLOTS: &str = "4";

/// A kill comes up to so long after the campaign has come as far as it should have: any moment of a program's life.
const KILL_JITTER_MS: u64 = 80;

/// What a program of a campaign does: `$0` is its number, `$1` where it leaves its mark, `$2` how long it takes, `$3` its
/// exit code.
const PROGRAM: &str =
    r#"printf '%s %s\n' "$0" "$ESSAIM_ATTEMPT" >> "$1"; echo "begin $0"; sleep "$2"; echo "end $0"; exit "$3""#;

/// How much is played.
struct Scale {
    rounds: usize,
    programs: usize,
}

impl Scale {
    fn of_this_run() -> Scale {
        match std::env::var_os("ESSAIM_SOAK") {
            Some(_) => Scale { rounds: 20, programs: 2_000 },
            None => Scale { rounds: 3, programs: 150 },
        }
    }
}

/// A hub that is killed and started again on the same ports.
struct Mortal {
    home: Home,
    doors: [String; 2],
    up: Running,
}

impl Mortal {
    fn start() -> Mortal {
        let (home, doors) = (Home::new(), [free_address(), free_address()]);
        let up = up(&home, &doors);
        Mortal { home, doors, up }
    }

    /// Kills `up` without a word. Its worker lives.
    fn kill_hub(&mut self) {
        self.up.signal(Signal::KILL);
        // Its worker holds its standard error: waiting for the end of that would be waiting for the worker.
        self.up.child.wait().unwrap();
    }

    /// Kills the worker without a word, and with it its cage and its programs. There may be none in this moment.
    fn kill_worker(&self) {
        let Some(pid) = self.home.worker(1).filter(|pid| is_alive(*pid)) else { return };
        signal(pid, Signal::KILL);
        wait_until("the worker is dead", || !is_alive(pid));
    }

    fn revive(&mut self) {
        self.up = up(&self.home, &self.doors);
    }

    /// The power goes: everything dies at once; a hub elsewhere opens a copy of what is on the disk.
    fn lose_power(&mut self) {
        self.kill_hub();
        self.home.kill();
        let elsewhere = Home::new();
        Words::new("cp", &["-a", &format!("{}/.", text(self.home.path())), &text(elsewhere.path())]).run().good();
        self.home = elsewhere;
        self.revive();
    }

    /// A client that knows address and key and nothing else, so that it may be told of another folder's hub.
    fn client(&self) -> Client {
        let key = std::fs::read_to_string(self.home.path().join("admin.key")).unwrap().trim().to_owned();
        Client { home: Home::new(), key, hub: self.doors[0].clone() }
    }

    /// Ctrl+C; nothing is left but the folder, whose journal tells each end once.
    fn stop(self) {
        self.up.signal(Signal::INT);
        self.up.end().good();
        self.home.assert_no_processes();
        check_journal(&self.home.path().join("store"));
    }
}

/// Does the journal, as far as it reaches back, end no task twice, and is it whole?
fn check_journal(store: &Path) {
    let journal = Store::open(store, StoreLimits::default()).unwrap().journal;
    let snapshot = journal.latest_snapshot().unwrap();
    let mut next = snapshot.map_or(Seq(1), |(at, _)| at.next());
    let mut ended = BTreeSet::new();
    loop {
        let rows = journal.read(next, 1 << 20).unwrap();
        let Some((last, _)) = rows.last() else { break };
        next = last.next();
        for record in rows.iter().flat_map(|(_, batch)| decode_batch(batch).unwrap()) {
            if let Record::TaskEnded { attempt, .. } = record {
                assert!(ended.insert((attempt.job, attempt.task)), "{attempt} is the second end of its task");
            }
        }
    }
    assert_eq!(next, journal.last().next());
    println!("{} ends in the journal since its snapshot", ended.len());
}

fn up(home: &Home, doors: &[String; 2]) -> Running {
    let words = ["up", "--json", "--slots", SLOTS, "--client-addr", &doors[0], "--worker-addr", &doors[1]];
    let mut up = home.essaim(&words).start();
    assert_eq!(up.json()["ready"], true);
    up
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// A user elsewhere.
struct Client {
    home: Home,
    key: String,
    hub: String,
}

impl Client {
    fn essaim(&self, words: &[&str]) -> Words {
        // The machine of a test may be busy: more patience than a person has.
        let all = [&["--hub", self.hub.as_str(), "--retries", "50"][..], words].concat();
        Words::new(ESSAIM, &all).env("ESSAIM_HOME", &text(self.home.path())).env("ESSAIM_KEY", &self.key)
    }

    fn jobs(&self, words: &[&str]) -> Vec<Value> {
        let list = self.essaim(&[&["job", "list", "--json"][..], words].concat()).run().good().json();
        list.as_array().unwrap().clone()
    }
}

/// Where programs leave their marks.
struct Marks {
    folder: TempDir,
}

impl Marks {
    fn new() -> Marks {
        Marks { folder: tempfile::Builder::new().prefix("essaim-marks-").tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("marks")
    }

    /// Number and attempt of each start, in order.
    fn read(&self) -> Vec<(usize, u64)> {
        let text = std::fs::read_to_string(self.path()).unwrap_or_default();
        let number = |line: &str| {
            let (number, attempt) = line.split_once(' ').unwrap();
            (number.parse().unwrap(), attempt.parse().unwrap())
        };
        text.lines().map(number).collect()
    }
}

/// The exit code of a program.
fn code(number: usize) -> i32 {
    (number % 4) as i32
}

/// Runs program `number` as users do: one stays and watches, one leaves and comes back, one only leaves it there.
fn run(client: &Client, marks: &Marks, number: usize) {
    let (name, mark) = (number.to_string(), text(&marks.path()));
    let (time, code_text) = (format!("0.{:02}", number % 7), code(number).to_string());
    let run = |how: &[&str]| {
        let program = ["--name", &name, "--command", "--", "sh", "-c", PROGRAM, &name, &mark, &time, &code_text];
        client.essaim(&[&["run"], how, &program[..]].concat()).run()
    };
    let says_all = |ran: &Ran| {
        // An attempt that was lost may have said something too; the last one says all.
        assert!(ran.text().ends_with(&format!("begin {number}\nend {number}\n")), "{number}: {ran:?}");
    };
    match number % 6 {
        0..3 => says_all(&run(&[]).ended(code(number))),
        3 => {
            run(&["--detach"]).good();
        }
        _ => {
            let job = run(&["--detach"]).good().text().trim().to_owned();
            client.essaim(&["job", "wait", &job]).run().ended(code(number));
            says_all(&client.essaim(&["job", "logs", &job]).run().good());
        }
    }
}

/// Plays a campaign: `strike` is called once per round, in the middle of it all, and leaves a hub behind.
fn play(strike: impl Fn(&mut Mortal, &mut Dice)) -> (Mortal, Client, Marks, Scale) {
    let scale = Scale::of_this_run();
    let mut dice = Dice::roll();
    let mut hub = Mortal::start();
    let marks = Marks::new();
    let clients: Vec<Client> = (0..CLIENTS).map(|_| hub.client()).collect();
    let began = Instant::now();
    std::thread::scope(|scope| {
        for (first, client) in clients.iter().enumerate() {
            let (marks, programs) = (&marks, scale.programs);
            scope.spawn(move || (first..programs).step_by(CLIENTS).for_each(|number| run(client, marks, number)));
        }
        for round in 0..scale.rounds {
            // Spread over the campaign, the last one well before its end.
            let goal = scale.programs * (round + 1) / (scale.rounds + 2);
            wait_until(&format!("{goal} programs have begun"), || marks.read().len() >= goal);
            std::thread::sleep(Duration::from_millis(dice.below(KILL_JITTER_MS))); // poll: the moment is chance
            strike(&mut hub, &mut dice);
        }
    });
    let client = clients.into_iter().next().unwrap();
    wait_until("nothing is left to do", || client.jobs(&["--live"]).is_empty());
    println!("{} programs, {} rounds, {:.1} s", scale.programs, scale.rounds, began.elapsed().as_secs_f32());
    (hub, client, marks, scale)
}

/// Is each program once and well in the record? Gives the attempt that ended it.
fn check_record(client: &Client, scale: &Scale) -> BTreeMap<usize, u64> {
    let jobs = client.jobs(&["--limit", "1000000"]);
    let mut ended = BTreeMap::new();
    for job in &jobs {
        let number: usize = job["name"].as_str().unwrap().parse().unwrap();
        let expected = if code(number) == 0 { "done" } else { "failed" };
        let result = &job["tasks"][0]["result"];
        assert_eq!((&job["state"], &result["exit_code"]), (&expected.into(), &code(number).into()), "{job:#}");
        let before = ended.insert(number, result["attempt"].as_u64().unwrap());
        assert_eq!(before, None, "program {number} is two jobs");
    }
    assert_eq!(ended.keys().copied().collect::<Vec<_>>(), (0..scale.programs).collect::<Vec<_>>());
    ended
}

/// Was each program started as often as the record says, and no attempt twice?
fn check_marks(marks: &Marks, ended: &BTreeMap<usize, u64>) -> usize {
    let mut seen = BTreeMap::new();
    for mark in marks.read() {
        let times = seen.entry(mark).or_insert(0);
        *times += 1;
        assert_eq!(*times, 1, "program {} was started twice as attempt {}", mark.0, mark.1);
        assert!(mark.1 <= ended[&mark.0], "program {} was started again after its end: attempt {}", mark.0, mark.1);
    }
    for last in ended {
        assert!(
            seen.contains_key(&(*last.0, *last.1)),
            "program {} ended as attempt {} without a start",
            last.0,
            last.1
        );
    }
    let again = ended.values().filter(|attempt| **attempt > 1).count();
    println!("{again} programs needed another attempt");
    again
}

// The hub alone dies: programs do not notice, each runs exactly once, and clients come back to its end.
#[test]
fn programs_outlive_their_hub() {
    let (hub, client, marks, scale) = play(|hub, _| {
        hub.kill_hub();
        hub.revive();
    });
    let ended = check_record(&client, &scale);
    check_marks(&marks, &ended);
    assert!(ended.values().all(|attempt| *attempt == 1), "a program was started again: {ended:?}");
    assert_eq!(marks.read().len(), scale.programs);
    hub.stop();
}

// The worker alone dies, and its programs with it: each that was not over runs again, as another attempt.
#[test]
fn programs_are_repeated_when_their_worker_dies() {
    let (hub, client, marks, scale) = play(|hub, _| hub.kill_worker());
    check_marks(&marks, &check_record(&client, &scale));
    hub.stop();
}

// Both die, one soon after the other, in any order.
#[test]
fn programs_end_once_when_hub_and_worker_die() {
    let (hub, client, marks, scale) = play(|hub, dice| {
        let pause = Duration::from_millis(dice.below(KILL_JITTER_MS));
        if dice.below(2) == 0 {
            hub.kill_hub();
            std::thread::sleep(pause); // poll: the moment is chance
            hub.kill_worker();
            hub.revive();
        } else {
            hub.kill_worker();
            std::thread::sleep(pause); // poll: the moment is chance
            hub.kill_hub();
            hub.revive();
        }
    });
    check_marks(&marks, &check_record(&client, &scale));
    hub.stop();
}

// Everything dies at once, and only the disk's content goes on, on another machine as it were: what was accepted is there.
#[test]
fn programs_end_once_after_a_loss_of_power() {
    let (hub, client, marks, scale) = play(|hub, _| hub.lose_power());
    check_marks(&marks, &check_record(&client, &scale));
    hub.stop();
}

/// Lines of the long program.
const LINES: usize = 100_000;

/// Prints a third of [`LINES`], waits for a file, prints a third, leaves a file, waits for another one, prints the rest.
const LONG: &str = r#"
import os, sys, time
folder, lines = sys.argv[1], int(sys.argv[2])
def wait(name):
    while not os.path.exists(os.path.join(folder, name)):
        time.sleep(0.01)
for n in range(lines):
    if n == lines // 3:
        wait("hub-is-dead")
    if n == 2 * lines // 3:
        sys.stdout.flush()
        open(os.path.join(folder, "two-thirds"), "w").close()
        wait("hub-is-back")
    sys.stdout.write("%d\n" % n)
sys.stdout.flush()
sys.exit(7)
"#;

// A program that prints before, during and after the death of its hub: is every line there, once and in order, for the one
// who watched and for the one who asks later? Is it the same process?
#[test]
fn no_byte_is_lost_over_the_death_of_the_hub() {
    let mut hub = Mortal::start();
    let (client, shared) = (hub.client(), Marks::new());
    let folder = text(shared.folder.path());
    let program = shared.folder.path().join("long.py");
    std::fs::write(&program, LONG).unwrap();
    let flag = |name: &str| std::fs::write(shared.folder.path().join(name), "").unwrap();
    let words = ["run", "--command", "--", "python3", &text(&program), &folder, &LINES.to_string()];
    let mut watched = client.essaim(&words).start();
    for n in 0..LINES / 6 {
        assert_eq!(watched.line(), n.to_string());
    }
    hub.kill_hub();
    flag("hub-is-dead");
    let two_thirds = shared.folder.path().join("two-thirds");
    wait_until("the program goes on without its hub", || two_thirds.exists());
    watched.hear("hub not reachable, try 2 of 50");
    let worker = hub.home.worker(1);
    hub.revive();
    flag("hub-is-back");
    let ran = watched.end().ended(7);
    let expected: String = (0..LINES).map(|n| format!("{n}\n")).collect();
    assert!(ran.text() == expected, "{} bytes for {}", ran.text().len(), expected.len());
    assert!(ran.stderr.contains("the hub is back"), "{}", ran.stderr);
    let logs = client.essaim(&["job", "logs", "1"]).run().good();
    assert!(logs.text() == expected, "{} bytes for {}", logs.text().len(), expected.len());
    assert_eq!(client.jobs(&[])[0]["tasks"][0]["result"]["attempt"], 1);
    let tail = client.essaim(&["job", "logs", "1", "--from", &(expected.len() - 12).to_string()]).run().good();
    assert_eq!(tail.text(), &expected[expected.len() - 12..]);
    assert_eq!(client.essaim(&["job", "logs", "1", "--from", "100000000"]).run().good().text(), "");
    assert_eq!(hub.home.worker(1), worker, "the worker is the same");
    hub.stop();
}

// What is typed before, during and after the death of the hub arrives once and in order.
#[test]
fn input_goes_on_over_the_death_of_the_hub() {
    let mut hub = Mortal::start();
    let client = hub.client();
    let mut watched = client.essaim(&["run", "--command", "--", "cat"]).start();
    for n in 0..100 {
        watched.send(&format!("{n}\n"));
    }
    for n in 0..100 {
        assert_eq!(watched.line(), n.to_string());
    }
    hub.kill_hub();
    for n in 100..5_000 {
        watched.send(&format!("{n}\n"));
    }
    watched.hear("hub not reachable");
    hub.revive();
    for n in 100..5_000 {
        assert_eq!(watched.line(), n.to_string());
    }
    for n in 5_000..5_100 {
        watched.send(&format!("{n}\n"));
    }
    let ran = watched.end().good();
    let expected: String = (0..5_100).map(|n| format!("{n}\n")).collect();
    assert!(ran.text() == expected, "{} bytes for {}", ran.text().len(), expected.len());
    hub.stop();
}

// Whoever asks a single question of a hub that dies waits for its next life; with a hub that does not come back he is told
// after the tries that he allowed.
#[test]
fn a_question_waits_for_the_next_hub() {
    let mut hub = Mortal::start();
    let client = hub.client();
    let job = client.essaim(&["run", "--detach", "--command", "--", "sleep", "600"]).run();
    let job = job.good().text().trim().to_owned();
    let waits = client.essaim(&["job", "wait", &job]).start();
    wait_for("the job runs", || (client.jobs(&[])[0]["state"] == "running").then_some(()));
    hub.kill_hub();
    let asks = client.essaim(&["job", "show", &job, "--json"]).start();
    asks.hear("hub not reachable, try 2 of 50");
    waits.hear("hub not reachable, try 2 of 50");
    hub.revive();
    // Its worker may not have come back yet.
    let state = asks.end().good().json()["state"].clone();
    assert!(state == "running" || state == "queued", "{state}");
    wait_for("the job runs on", || (client.jobs(&[])[0]["state"] == "running").then_some(()));
    client.essaim(&["job", "cancel", &job]).run().good();
    let waited = waits.end().ended(130);
    assert!(waited.stderr.contains("the hub is back"), "{}", waited.stderr);
    hub.kill_hub();
    let ran = client.essaim(&["job", "list", "--retries", "2"]).run().ended(4);
    let said: Vec<&str> = ran.stderr.lines().collect();
    assert_eq!(said[0], "hub not reachable, try 2 of 2");
    assert!(said[1].starts_with("error: the hub cannot be reached"), "{said:?}");
    hub.revive();
    hub.stop();
}
