//! A hundred small runs of all kinds: good ones, failing ones, cancelled ones, some with much output. Afterwards nothing of
//! them is left: no process and no zombie, no file in the work folder, no descriptor in hub, worker and cage but for what
//! waits to serve again, which is no more than one for each slot.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod processes;
mod swarm;

use processes::{cage_of, children, descendants, descriptor_list, is_alive, marked, name, new_mark, state, worker_of};
use swarm::{ESSAIM, Ran, Swarm, Words, wait_until};

/// Runs in all, by [`AT_ONCE`] users.
const RUNS: usize = 100;
const AT_ONCE: usize = 4;

/// Programs that run at once.
const SLOTS: usize = 4;

/// Descriptors of hub, worker and cage for what waits to serve again: two folders, and the socket of an init, per slot.
const WARM: [usize; 3] = [0, 2 * SLOTS, SLOTS];

/// Output of a run with much of it.
const MUCH: usize = 3_000_000;

/// Files that the hub's store has open at most, however much goes on: it opens readers when they are needed and keeps them.
const STORE_FILES_MAX: usize = 48;

/// Open descriptors of a process: those that have nothing to do with the store, and those of the store's files.
fn open_files(pid: u32) -> (usize, usize) {
    let list = descriptor_list(pid);
    let store = list.iter().filter(|name| name.contains("/store/")).count();
    (list.len() - store, store)
}

/// All processes below `hub`, except inits that wait for a program: alive and without a child.
fn busy(hub: u32) -> Vec<u32> {
    let waits = |pid: &u32| name(*pid) == "essaim-init" && is_alive(*pid) && children(*pid).is_empty();
    descendants(hub).into_iter().filter(|pid| !waits(pid)).collect()
}

/// A user of the swarm, for a thread of his own.
struct User {
    home: String,
    mark: String,
}

impl User {
    fn essaim(&self, words: &[&str]) -> Ran {
        Words::new(ESSAIM, words).env("ESSAIM_HOME", &self.home).run()
    }

    fn run(&self, script: &str) -> Ran {
        self.essaim(&["run", "--env", &self.mark, "--command", "--", "sh", "-c", script])
    }

    /// One run; its number says of which kind.
    fn one(&self, number: usize) {
        match number % 7 {
            0 => assert_eq!(self.run("echo well > file; mkdir -p a/b; cat file").good().text(), "well\n"),
            1 => drop(self.run("echo bad >&2; exit 3").ended(3)),
            2 => drop(self.run("kill -SEGV $$").ended(139)),
            3 => assert_eq!(self.run(&format!("head -c {MUCH} /dev/zero")).good().stdout.len(), MUCH),
            // Its child would live on in a session of its own.
            4 => assert_eq!(self.run("(setsid sleep 600 >/dev/null 2>&1 &); echo left").good().text(), "left\n"),
            5 => {
                let words = ["run", "--detach", "--env", &self.mark, "--command", "--", "sleep", "600"];
                let job = self.essaim(&words).good().text().trim().to_owned();
                self.essaim(&["job", "cancel", &job]).good();
                self.essaim(&["job", "wait", &job]).ended(130);
            }
            _ => drop(
                self.essaim(&["run", "--time", "200ms", "--env", &self.mark, "--command", "sleep", "60"]).ended(124),
            ),
        }
    }
}

fn run_all(swarm: &Swarm, mark: &str, runs: usize) {
    std::thread::scope(|scope| {
        for user in 0..AT_ONCE {
            let me = User { home: swarm.home.path().display().to_string(), mark: mark.to_owned() };
            scope.spawn(move || (user..runs).step_by(AT_ONCE).for_each(|number| me.one(number)));
        }
    });
}

// After a hundred runs: is everything as it was before?
#[test]
fn nothing_is_left_of_a_hundred_runs() {
    let swarm = Swarm::start_with(&["--slots", &SLOTS.to_string()]);
    let hub = swarm.up.pid();
    let ours = [hub, worker_of(hub), cage_of(hub)];
    let mark = new_mark();
    // The first of each kind opens what stays open, such as the spool.
    run_all(&swarm, &mark, 7);
    wait_until("the first runs are over", || busy(hub) == ours[1..]);
    let open_at_first = |pid: u32| {
        // Clients that have just left may be counted still: it is the rest that counts.
        let mut least = open_files(pid).0;
        for _ in 0..20 {
            std::thread::sleep(std::time::Duration::from_millis(10)); // poll: the least of some looks
            least = least.min(open_files(pid).0);
        }
        least
    };
    let before = ours.map(open_at_first);

    run_all(&swarm, &mark, RUNS);

    assert_eq!(marked(&mark), Vec::<u32>::new(), "a program is left");
    let named = || busy(hub).into_iter().map(|pid| (pid, name(pid), state(pid))).collect::<Vec<_>>();
    // Zombies count as descendants.
    wait_until(&format!("only worker and cage are left: {:?}", named()), || busy(hub) == ours[1..]);
    let work = swarm.home.path().join("local/1/work");
    wait_until("the work folder is empty", || swarm::tree(&work).is_empty());
    for ((pid, before), warm) in ours.into_iter().zip(before).zip(WARM) {
        let what = format!("{} had {before} descriptors, has {:?}", name(pid), descriptor_list(pid));
        wait_until(&what, || open_files(pid).0 <= before + warm);
        let (_, store) = open_files(pid);
        assert!(store <= STORE_FILES_MAX, "{store} files of the store are open: {:?}", descriptor_list(pid));
    }
    println!("descriptors of hub, worker, cage: {before:?} before, {:?} after", ours.map(open_files));
    swarm.stop();
}
