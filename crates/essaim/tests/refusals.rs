//! What cannot be done is one sentence on standard error and the exit code of the table, with real processes.
//!
//! Always true: `run` ends with 125, everything else by its cause; the sentence names what was wrong and what to try, and
//! nothing is on standard output.
//! Deliberately not here: join lines (`join`), what runs well (`walk`).
#![allow(clippy::unwrap_used)]

mod swarm;

use std::os::unix::fs::PermissionsExt;
use swarm::{Home, Ran, Swarm, Words, example, up};

/// The one sentence of a refusal.
#[track_caller]
fn sentence(words: Words, code: i32) -> String {
    let ran: Ran = words.run().ended(code);
    assert_eq!(ran.text(), "", "nothing on standard output");
    let lines: Vec<&str> = ran.stderr.lines().collect();
    assert_eq!(lines.len(), 1, "one sentence: {}", ran.stderr);
    lines[0].strip_prefix("error: ").unwrap_or_else(|| panic!("{}", ran.stderr)).to_owned()
}

// Files and names that are wrong.
#[test]
fn wrong_words_of_run_are_named() {
    let swarm = Swarm::start();
    let no = |words: &[&str]| sentence(swarm.run(words), 125);
    let folder = swarm.home.path().display().to_string();
    let (unknown, secret, empty) = (format!("{folder}/x.xyz"), format!("{folder}/s.py"), format!("{folder}/empty"));
    std::fs::write(&unknown, "hi").unwrap();
    std::fs::write(&secret, "print(1)").unwrap();
    std::fs::create_dir(&empty).unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o000)).unwrap();
    let said = no(&[&unknown]);
    assert!(said.starts_with("The language of x.xyz is unknown. Known extensions: "), "{said}");
    assert!(said.contains(".py") && said.ends_with("Say it with `--lang`."), "{said}");
    let said = no(&["--lang", "pyton", &unknown]);
    assert!(said.starts_with("There is no language called pyton. Known languages: bash, c, cpp, "), "{said}");
    let said = no(&["-"]);
    assert!(said.contains("no extension that tells its language") && said.contains("--lang"), "{said}");
    let missing = format!("{folder}/none.py");
    assert!(no(&["/dev/null"]).starts_with("/dev/null is neither a file nor a folder"));
    let bind = sentence(swarm.essaim(&["--bind", "192.0.2.77", "node", "list"]), 2);
    assert!(bind.starts_with("192.0.2.77:0 cannot be used as the local address"), "{bind}");
    swarm.essaim(&["--bind", "127.0.0.3", "node", "list"]).run().good();
    assert_eq!(no(&[&missing]), format!("{missing} cannot be read: there is no such file"));
    assert!(no(&["--file", &missing, &example("python/hello.py")]).contains("none.py cannot be read"));
    assert!(no(&["--stdin", &missing, &example("python/hello.py")]).contains("none.py"));
    // Root reads everything.
    if !rustix::process::geteuid().is_root() {
        assert!(no(&[&secret]).contains("s.py cannot be read: "));
    }
    assert_eq!(no(&[&empty]), format!("the folder {empty} has no files"));
    std::fs::write(format!("{empty}/notes.txt"), "x").unwrap();
    let said = no(&[&empty]);
    assert!(said.starts_with("Which file of the folder is the program cannot be told."), "{said}");
    assert_eq!(
        no(&["--on", "lokal-1", &example("python/hello.py")]),
        "There is no node lokal-1. Did you mean local-1? `essaim node list` shows all of them."
    );
    let quiet = swarm.run(&["--quiet", &missing]).run().ended(125);
    assert!(quiet.stderr.contains("cannot be read"), "--quiet does not hide errors");
    let json = swarm.run(&["--json", &missing]).run().ended(125);
    assert_eq!((&json.json()["type"], &json.json()["code"]), (&"error".into(), &"unreadable".into()));
    swarm.stop();
}

/// A PATH with these programs only.
fn path_with(home: &Home, programs: &[&str]) -> String {
    let folder = home.path().join("bin");
    std::fs::create_dir(&folder).unwrap();
    let path = std::env::var_os("PATH").unwrap();
    for program in programs {
        let real = std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.exists());
        std::os::unix::fs::symlink(real.unwrap(), folder.join(program)).unwrap();
    }
    folder.display().to_string()
}

// A worker without node and gcc: refused at once and by the tool's name, with and without --on.
#[test]
fn a_missing_toolchain_is_named() {
    let home = Home::new();
    let path = path_with(&home, &["sh", "env"]);
    let up = up(&home, &[]).env("PATH", &path);
    let swarm = Swarm::of(home, up);
    assert_eq!(
        sentence(swarm.run(&[&example("javascript/hello.js")]), 125),
        "No node can run javascript: `node` was not found on the only connected node. Install it there (`essaim node \
         list` shows what each node has)."
    );
    assert_eq!(
        sentence(swarm.run(&["--on", "local-1", &example("c/hello.c")]), 125),
        "Node local-1 cannot run c: `gcc` was not found there. Install it on local-1, or leave out `--on` to use \
         another node."
    );
    assert_eq!(swarm.run(&[&example("shell/hello.sh")]).run().good().text(), "Hello from the shell!\n");
    let ran = swarm.run(&["--command", "--", "no-such-program"]).run();
    assert!(ran.code() != 0 && ran.stderr.contains("no-such-program"), "{ran:?}");
    swarm.stop();
}

// A key that is none, one of another hub, one that was revoked: exit 2 for words, 3 for the hub's no.
#[test]
fn a_wrong_key_is_told() {
    let (swarm, other) = (Swarm::start(), Swarm::start());
    let list = |key: &str| swarm.essaim(&["node", "list"]).env("ESSAIM_KEY", key);
    let said = sentence(list("nonsense"), 2);
    assert!(said.starts_with("the key in ESSAIM_KEY cannot be used: "), "{said}");
    let key = swarm.essaim(&["key", "create", "ann", "--role", "operator"]).run().good();
    let key = key.text().trim_end();
    list(key).run().good();
    swarm.essaim(&["key", "revoke", "ann"]).run().good();
    let revoked = sentence(list(key), 3);
    assert!(revoked.to_lowercase().contains("key"), "{revoked}");
    let foreign = other.essaim(&["key", "create", "ann", "--role", "operator"]).run().good();
    // The other hub's key at this hub's address.
    let at_home = format!("{}@{}", foreign.text().trim_end().split('@').next().unwrap(), swarm.client_address());
    let said = sentence(list(&at_home), 3);
    assert!(said.contains(&swarm.client_address()), "{said}");
    let missing = sentence(swarm.essaim(&["--key-file", "/no/such/key", "node", "list"]), 2);
    assert_eq!(missing, "the key file /no/such/key (from --key-file) does not exist");
    other.stop();
    swarm.stop();
}

// No hub: named, remembered or never there.
#[test]
fn a_hub_that_is_away_is_unreachable() {
    let swarm = Swarm::start_with(&["--client-addr", &swarm::free_address()]);
    let (address, key) =
        (swarm.client_address(), swarm.essaim(&["key", "create", "a", "--role", "admin"]).run().good());
    let key = key.text().trim_end().to_owned();
    let home = swarm.stop();
    let away = |words: &[&str]| home.essaim(words).env("ESSAIM_RETRIES", "1");
    let none = sentence(away(&["node", "list"]), 4);
    assert_eq!(
        none,
        format!("no hub runs on {}; start one with `essaim up`, or name one with --hub ADDR", home.path().display())
    );
    let named =
        format!("the hub cannot be reached: nobody listens on {address}; is it running? start one with `essaim up`");
    assert_eq!(sentence(away(&["--hub", &address, "node", "list"]).env("ESSAIM_KEY", &key), 4), named);
    let run = away(&["--hub", &address, "run", &example("python/hello.py")]).env("ESSAIM_KEY", &key);
    assert_eq!(sentence(run, 125), named, "a hub that was named is not replaced by one for this run");
    let detached = sentence(away(&["run", "--detach", &example("python/hello.py")]), 125);
    assert!(detached.starts_with("no hub is running to leave the job with"), "{detached}");
}

// A port of somebody else, a folder of another hub: who it is, and what to do.
#[test]
fn a_taken_port_or_folder_names_its_owner() {
    let swarm = Swarm::start();
    let pid = swarm.up.pid();
    let (clients, workers) = (swarm.client_address(), swarm.worker_address());
    let other = Home::new();
    for (flag, address) in [("--client-addr", &clients), ("--worker-addr", &workers)] {
        let mut words = vec!["hub", "--client-addr", "127.0.0.1:0", "--worker-addr", "127.0.0.1:0"];
        let place = words.iter().position(|word| word == &flag).unwrap();
        words[place + 1] = address;
        assert_eq!(
            sentence(other.essaim(&words), 3),
            format!(
                "{address} is taken by essaim (process {pid}); choose another address with --client-addr or \
                 --worker-addr (port 0: any free one)"
            )
        );
    }
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = held.local_addr().unwrap().to_string();
    let said = sentence(other.essaim(&["hub", "--client-addr", &address]), 3);
    assert!(said.contains(&format!("(process {})", std::process::id())), "{said}");
    let same = sentence(swarm.essaim(&["up"]), 3);
    let home = swarm.home.path().display().to_string();
    assert_eq!(
        same,
        format!("a hub runs already on {home} (process {pid}); stop it, or set ESSAIM_HOME to another folder")
    );
    swarm.run(&[&example("shell/hello.sh")]).run().good();
    swarm.stop();
}

// Numbers of jobs, names of nodes and keys that are nobody's.
#[test]
fn what_is_not_there_is_refused() {
    let swarm = Swarm::start();
    let job = "There is no job 999, or it is not yours. `essaim job list` shows those that you may see.";
    for (words, code) in [(["job", "show"], 3), (["job", "logs"], 3), (["job", "cancel"], 3), (["job", "wait"], 125)] {
        assert_eq!(sentence(swarm.essaim(&[words[0], words[1], "999"]), code), job);
    }
    let node = sentence(swarm.essaim(&["node", "show", "local-9"]), 3);
    assert!(node.starts_with("There is no node local-9."), "{node}");
    let key = sentence(swarm.essaim(&["key", "revoke", "zed"]), 3);
    assert_eq!(key, "There is no key called zed. `essaim key list` shows all of them.");
    swarm.essaim(&["key", "create", "ann"]).run().good();
    let twice = sentence(swarm.essaim(&["key", "create", "ann"]), 3);
    assert!(twice.starts_with("A key called ann exists already."), "{twice}");
    let wrong = swarm.essaim(&["job", "show", "x"]).run().ended(2);
    assert!(wrong.stderr.contains("a job is called by its number"), "{}", wrong.stderr);
    let last = sentence(swarm.essaim(&["key", "revoke", "admin"]), 3);
    assert!(last.starts_with("This is the last key that may administer the hub"), "{last}");
    swarm.stop();
}
