//! What a program uses and whether it waits for input, read from /proc.
//!
//! Called by `cage` on its tick, once per running program. Answers with one `Reading`; `program` keeps peaks and
//! decides what to tell.
//!
//! What is always true: a reading costs at most `INSPECTED_PER_PROGRAM` looks (a look is a process or a thread); a tree
//! that is larger is read in part, and says so by its cost. Figures are sums over processes that start and end while we
//! read, so they are good for people and for peaks, not for exact accounting: the exact CPU time comes from init's
//! waits.
//!
//! Deliberately not here: cgroups. They will answer with the same `Reading`.

use std::time::Duration;

use crate::limits::INSPECTED_PER_PROGRAM;
use crate::proc::{FileId, Proc, RawPid, Stat};
use crate::sys;

/// What one look at a program's tree found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reading {
    /// CPU time of living processes, and of those that were waited for.
    pub(crate) cpu: Duration,
    /// Private memory of all processes plus the largest shared part, bytes. Summing shared parts would count one
    /// library once per process.
    pub(crate) memory_bytes: u64,
    /// Living processes, without init.
    pub(crate) processes: u64,
    /// Some thread is blocked in a read of the program's stdin.
    pub(crate) reads_stdin: bool,
    /// Processes and threads looked at.
    pub(crate) looks: usize,
}

/// Reads /proc; knows the machine's units.
pub(crate) struct Meter {
    page_bytes: u64,
    ticks_per_second: u64,
}

impl Meter {
    /// Asks the system for its units once.
    pub(crate) fn new() -> Meter {
        Meter { page_bytes: sys::page_bytes(), ticks_per_second: sys::ticks_per_second() }
    }

    /// Looks at everything below `init`. `stdin` is the program's stdin if a reader of it may wait for the worker.
    pub(crate) fn read(&self, proc: &Proc, init: RawPid, stdin: Option<FileId>) -> Reading {
        let mut reading = Reading { looks: 1, ..Reading::default() };
        let mut ticks = proc.stat(init).map_or(0, |stat| stat.reaped_ticks);
        let (mut private_pages, mut shared_pages_max) = (0_u64, 0_u64);
        let mut below = Vec::new();
        proc.children_of_thread(init, init, &mut below);
        while let Some(pid) = below.pop() {
            if reading.looks >= INSPECTED_PER_PROGRAM {
                break;
            }
            reading.looks += 1;
            let Some(stat) = proc.stat(pid) else { continue };
            ticks = ticks.saturating_add(stat.own_ticks).saturating_add(stat.reaped_ticks);
            if stat.is_zombie {
                continue;
            }
            reading.processes += 1;
            if let Some(memory) = proc.memory(pid) {
                private_pages += memory.resident_pages.saturating_sub(memory.shared_pages);
                shared_pages_max = shared_pages_max.max(memory.shared_pages);
            }
            look_at_threads(proc, pid, stat, stdin, &mut reading, &mut below);
        }
        reading.cpu = Duration::from_millis(ticks.saturating_mul(1000) / self.ticks_per_second);
        reading.memory_bytes = private_pages.saturating_add(shared_pages_max).saturating_mul(self.page_bytes);
        reading
    }
}

/// Adds the children of a process to `below` and notes whether one of its threads reads stdin.
fn look_at_threads(
    proc: &Proc,
    pid: RawPid,
    stat: Stat,
    stdin: Option<FileId>,
    reading: &mut Reading,
    below: &mut Vec<RawPid>,
) {
    // Listing a folder costs more than reading a file, and most programs have one thread.
    let threads = match stat.threads {
        0 | 1 => vec![pid],
        _ => proc.threads(pid, INSPECTED_PER_PROGRAM.saturating_sub(reading.looks).max(1)),
    };
    reading.looks += threads.len().saturating_sub(1);
    for thread in threads {
        proc.children_of_thread(pid, thread, below);
        if let Some(stdin) = stdin
            && !reading.reads_stdin
        {
            reading.reads_stdin = proc.reads_stdin(pid, thread) && proc.stdin(pid) == Some(stdin);
        }
    }
}
