//! Quotas of keys and the profiles of a hub, with real processes.
//!
//! Always true: what is refused is refused as a whole, by name, with the figures and what to try; who has another key goes on.
//! Deliberately not here: the bucket and the counts (`essaim-core`), shared connections (`essaim-hub`).
#![allow(clippy::unwrap_used)]

mod swarm;

use serde_json::Value;
use swarm::{Home, Ran, Swarm, Words, up, wait_for, wait_until};

/// A hub with eight slots and these settings from the environment.
fn start(words: &[&str], settings: &[(&str, &str)]) -> Swarm {
    let home = Home::new();
    let up = up(&home, &[&["--slots", "8"], words].concat());
    Swarm::of(home, with(up, settings))
}

fn with(words: Words, variables: &[(&str, &str)]) -> Words {
    variables.iter().fold(words, |words, (name, value)| words.env(name, value))
}

fn new_key(swarm: &Swarm, name: &str, words: &[&str]) -> String {
    let made = swarm.essaim(&[&["key", "create", name, "--role", "operator"], words].concat()).run().good();
    made.text().trim().to_owned()
}

/// What the list says of a key.
fn listed(swarm: &Swarm, name: &str) -> Value {
    let keys = swarm.essaim(&["key", "list", "--json"]).run().good().json();
    keys.as_array().unwrap().iter().find(|key| key["name"] == name).unwrap().clone()
}

fn tasks_of(swarm: &Swarm, name: &str) -> u64 {
    listed(swarm, name)["queued_tasks"]["used"].as_u64().unwrap()
}

/// Submits an array of tasks that last.
fn submit(swarm: &Swarm, key: &str, range: &str) -> Words {
    let words = ["--detach", "--array", range, "--time", "10m", "--command", "--", "sleep", "600"];
    swarm.run(&words).env("ESSAIM_KEY", key)
}

#[track_caller]
fn sentence(ran: &Ran) -> String {
    assert_eq!(ran.text(), "");
    ran.stderr.trim().strip_prefix("error: ").unwrap_or_else(|| panic!("{}", ran.stderr)).to_owned()
}

// Over its quota a key is told so and submits nothing; another key goes on; an admin gives more at once; a hub that is killed
// and started again still knows what each key may and has.
#[test]
fn queued_tasks_are_bounded() {
    let settings = [("ESSAIM_QUOTA_QUEUED_TASKS", "5")];
    let swarm = start(&["--profile", "class"], &settings);
    let (ada, bob) = (new_key(&swarm, "ada", &[]), new_key(&swarm, "bob", &["--queued-tasks", "none"]));
    let job = submit(&swarm, &ada, "1-4").run().good().text().trim().to_owned();
    let refused = submit(&swarm, &ada, "1-2").run().ended(125);
    assert_eq!(
        sentence(&refused),
        "Key ada may have 5 waiting and running tasks and has 4: 2 more are too many. Wait until some end, or ask an \
         admin: `essaim key set ada --queued-tasks N`."
    );
    assert_eq!(tasks_of(&swarm, "ada"), 4, "nothing of it was submitted");
    let ran = swarm.run(&["--command", "--", "echo", "hi"]).env("ESSAIM_KEY", &bob).run().good();
    assert_eq!(ran.text(), "hi\n");
    let key = listed(&swarm, "ada")["queued_tasks"].clone();
    assert_eq!((&key["used"], &key["limit"], &key["own"]), (&4.into(), &5.into(), &false.into()));
    assert_eq!(listed(&swarm, "bob")["queued_tasks"]["limit"], Value::Null);
    swarm.essaim(&["key", "set", "ada", "--queued-tasks", "6"]).run().good();
    submit(&swarm, &ada, "1-2").run().good();
    let shown = swarm.essaim(&["key", "list"]).run().good();
    assert!(shown.text().lines().any(|line| line.starts_with("ada ") && line.contains("6 of 6")), "{}", shown.text());

    let Swarm { home, up: old, .. } = swarm;
    home.kill();
    drop(old);
    let again = up(&home, &["--slots", "8", "--profile", "class"]);
    let swarm = Swarm::of(home, with(again, &settings));
    assert_eq!(listed(&swarm, "ada")["queued_tasks"]["limit"], 6);
    assert_eq!(tasks_of(&swarm, "ada"), 6);
    assert!(sentence(&submit(&swarm, &ada, "1").run().ended(125)).starts_with("Key ada may have 6 "));
    swarm.essaim(&["job", "cancel", &job]).run().good();
    wait_until("the cancelled tasks are over", || tasks_of(&swarm, "ada") == 2);
    submit(&swarm, &ada, "1-4").run().good();
    let no = swarm.essaim(&["key", "set", "ada", "--queued-tasks", "7"]).env("ESSAIM_KEY", &ada).run().ended(3);
    assert!(sentence(&no).contains("its role is operator, and admin is needed"), "{}", no.stderr);
    swarm.essaim(&["key", "set", "ada"]).run().ended(2);
    swarm.home.kill();
}

// A file that would be too much is refused before it is sent; small programs go on, and the quota is lifted at once.
#[test]
fn stored_bytes_are_bounded() {
    let swarm = start(&[], &[]);
    let ada = new_key(&swarm, "ada", &["--stored-bytes", "100K"]);
    let data = swarm.home.path().join("data");
    std::fs::write(&data, vec![b'x'; 200 << 10]).unwrap();
    let data = data.display().to_string();
    let run = |words: &[&str]| swarm.run(words).env("ESSAIM_KEY", &ada).run();
    let words = ["--file", &data, "--command", "--", "wc", "-c", "data"];
    let said = sentence(&run(&words).ended(125));
    assert!(
        said.starts_with("Key ada may keep 100 KiB of files on the hub and keeps 0 B: 200 KiB more are too many."),
        "{said}"
    );
    assert!(said.ends_with("ask an admin: `essaim key set ada --stored-bytes SIZE`."), "{said}");
    assert_eq!(run(&["--command", "--", "echo", "small"]).good().text(), "small\n");
    swarm.essaim(&["key", "set", "ada", "--stored-bytes", "none"]).run().good();
    assert_eq!(run(&words).good().text(), "204800 data\n");
    wait_until("what is over counts nothing", || listed(&swarm, "ada")["stored_bytes"]["used"] == 0);
    swarm.stop();
}

// Who asks too often is told when to come back; who has patience gets through without a word.
#[test]
fn requests_are_bounded() {
    let swarm = start(&[], &[]);
    let ada = new_key(&swarm, "ada", &["--requests-per-second", "1"]);
    let list = |retries: &str| swarm.essaim(&["job", "list", "--retries", retries]).env("ESSAIM_KEY", &ada).start();
    let refused = wait_for("a refusal", || {
        // Several at once: one after the other they might be slower than the rate.
        let asked: Vec<_> = (0..6).map(|_| list("1")).collect();
        asked.into_iter().map(swarm::Running::end).find(|ran| ran.code() == 3)
    });
    let said = sentence(&refused);
    assert!(said.starts_with("This key asks more often than it may: once a second. Try again in "), "{said}");
    let ran = list("9").end().good();
    assert_eq!(ran.stderr, "");
    swarm.essaim(&["node", "list"]).run().good();
    swarm.stop();
}

// A profile is written into the file, stands in the place of defaults, and acts when the hub is started.
#[test]
fn a_profile_is_a_setting() {
    let home = Home::new();
    let config = |words: &[&str]| home.essaim(&[&["config"], words].concat()).run();
    config(&["set", "profile", "class"]).good();
    config(&["set", "time_max", "20m"]).good();
    let said = sentence(&config(&["set", "profile", "school"]).ended(2));
    assert!(said.contains("\"school\" is no value for profile (class or lab: "), "{said}");
    let shown = config(&["show", "--json"]).good().json();
    let from = |name: &str| {
        let setting = shown.as_array().unwrap().iter().find(|setting| setting["name"] == name).unwrap();
        (setting["value"].as_str().unwrap().to_owned(), setting["origin"].as_str().unwrap().to_owned())
    };
    assert_eq!(from("quota_queued_tasks"), ("1000".into(), "profile class".into()));
    assert_eq!(from("time_max").0, "20m");
    assert!(from("time_max").1.ends_with("essaim.toml:2"));
    assert_eq!(from("retries"), ("5".into(), "default".into()));

    let words = up(&home, &["--slots", "2"]);
    let swarm = Swarm::of(home, words);
    let ada = new_key(&swarm, "ada", &[]);
    let limits = ["queued_tasks", "stored_bytes", "requests_per_second"];
    let of = |name: &str| limits.map(|limit| listed(&swarm, name)[limit]["limit"].clone());
    assert_eq!(of("ada"), [1_000_u64, 200 << 20, 20].map(Value::from));
    assert_eq!(of("admin"), [Value::Null, Value::Null, Value::Null]);
    let ran = swarm.run(&["--time", "30m", "--command", "--", "true"]).env("ESSAIM_KEY", &ada).run().good();
    assert!(ran.stderr.contains("--time 30 min is more than this hub gives: 20 min is the limit"), "{}", ran.stderr);
    // The default of the class.
    let begun = std::time::Instant::now();
    let ran = swarm.run(&["--command", "--", "sleep", "600"]).env("ESSAIM_KEY", &ada).run().ended(124);
    assert!(ran.stderr.contains("10 s") && begun.elapsed().as_secs() >= 10, "{}", ran.stderr);
    let home = swarm.stop();
    home.essaim(&["config", "unset", "profile"]).run().good();
    let file = std::fs::read_to_string(home.path().join("essaim.toml")).unwrap();
    assert_eq!(file, "time_max = \"20m\"\n");
}
