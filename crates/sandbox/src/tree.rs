//! Finds and kills every descendant of a process, however it tries to get away.
//!
//! Called by `init` (its own tree) and by `cage` (the tree of an init that does not answer, and orphans that an init
//! left). Killing is done in rounds by the caller: one call here kills what it can find, the caller reaps, and calls
//! again until waitpid says that there is no child left. That answer is the proof; the lists of /proc are only the way
//! to it.
//!
//! Why nothing escapes: the caller is a subreaper, so an orphan becomes the caller's child, wherever it was in the tree
//! and whatever session it is in. A process that forks faster than we kill is stopped first: a pending SIGSTOP makes
//! fork fail with a restart, so the list of children of a stopped process is final.
//!
//! Why nobody else is hit, although process numbers are recycled: a number read from /proc is first turned into a
//! pidfd, which never changes its process. Only then its parent is read. If the number still belongs to the process of
//! the pidfd, that parent is the truth, and it must be the one in whose list we found it (or, once we kill, any of the
//! tree, since orphans move up). If the process died in between, the parent may be a lie, but then the signal through
//! the pidfd reaches nobody. The parent itself cannot have been recycled: it is the caller, who does not reap during a
//! walk, or it was verified and stopped in the same walk, and a stopped process neither ends nor reaps.
//!
//! Deliberately not here: process groups and sessions (a program chooses its own) and names.

use std::collections::BTreeSet;

use rustix::process::{Pid, PidfdFlags, Signal};

use crate::limits::FREEZE_PASSES_MAX;
use crate::proc::{Proc, RawPid};

/// One round: stops, then kills, everything below `root`, except the children of `root` in `spare` and what is below
/// them. `root` itself is not touched. Whether anything is left, the caller learns by reaping.
pub(crate) fn kill_below(proc: &Proc, root: RawPid, spare: &BTreeSet<RawPid>) {
    let mut frozen = BTreeSet::new();
    for _ in 0..FREEZE_PASSES_MAX {
        if !freeze_pass(proc, root, spare, &mut frozen) {
            break;
        }
    }
    // While we kill, children of the dead move up, to the root or to a subreaper of the tree's own.
    let is_ours = |parent| parent == root || frozen.contains(&parent);
    for pid in &frozen {
        signal_child(proc, *pid, is_ours, Signal::KILL);
    }
}

/// Sends SIGKILL to a process that the caller knows to be its own, not yet reaped child: its number cannot have been
/// recycled.
pub(crate) fn kill_own_child(child: Pid) {
    // An error means that it is dead already.
    let _ = rustix::process::kill_process(child, Signal::KILL);
}

/// Walks the tree from the top and stops whatever is not in `frozen` yet. Returns whether anything was new,
/// in which case there may be more.
fn freeze_pass(proc: &Proc, root: RawPid, spare: &BTreeSet<RawPid>, frozen: &mut BTreeSet<RawPid>) -> bool {
    let mut something_new = false;
    let mut parents = vec![root];
    let mut seen = BTreeSet::from([root]);
    while let Some(parent) = parents.pop() {
        for child in proc.children(parent) {
            if (parent == root && spare.contains(&child)) || !seen.insert(child) {
                continue;
            }
            if !frozen.contains(&child) {
                match signal_child(proc, child, |found| found == parent, Signal::STOP) {
                    Reached::Alive => frozen.insert(child),
                    // It has no children any more, and it stays in the list until it is reaped: it is no reason for
                    // another pass.
                    Reached::Zombie => continue,
                    // It went while we looked, and its children are elsewhere now.
                    Reached::Nobody => {
                        something_new = true;
                        continue;
                    }
                };
                something_new = true;
            }
            parents.push(child);
        }
    }
    something_new
}

/// What a signal found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reached {
    Alive,
    Zombie,
    Nobody,
}

/// Sends `signal` to `pid` if its parent is what it must be. See the header for why this is safe.
fn signal_child(proc: &Proc, pid: RawPid, is_parent: impl Fn(RawPid) -> bool, signal: Signal) -> Reached {
    let Some(target) = Pid::from_raw(pid) else { return Reached::Nobody };
    let pidfd = match rustix::process::pidfd_open(target, PidfdFlags::empty()) {
        Ok(pidfd) => Some(pidfd),
        Err(rustix::io::Errno::SRCH) => return Reached::Nobody,
        // A kernel before 5.3, a filter that does not know the call, or no descriptor left: then the plain number must
        // do. It was read from the list of a living parent microseconds ago; a recycling would need the whole number
        // space to be used up in that time.
        Err(_) => None,
    };
    match proc.stat(pid) {
        Some(stat) if !is_parent(stat.parent) => return Reached::Nobody,
        Some(stat) if stat.is_zombie => return Reached::Zombie,
        Some(_) => {}
        None => return Reached::Nobody,
    }
    let sent = match pidfd {
        Some(pidfd) => rustix::process::pidfd_send_signal(pidfd, signal),
        None => rustix::process::kill_process(target, signal),
    };
    if sent.is_ok() { Reached::Alive } else { Reached::Nobody }
}
