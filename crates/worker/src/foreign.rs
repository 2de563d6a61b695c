//! Work of others on this machine: is there more of it than its owner allows?
//!
//! The worker starts [`watch`] when its owner set a limit; the driver passes each change on to the hub. Always true: what
//! essaim itself does here, whichever worker does it, is not foreign; only what lasts counts, in both directions, so that
//! a burst changes nothing and the answer does not flutter around the limit.
//! Deliberately not here: the load that the hub shows (`facts`), what the hub makes of it.

use crate::driver::Event;
use crate::facts::{Ticks, machine_ticks};
use crate::limits::{FOREIGN_LASTS, FOREIGN_MARGIN, FOREIGN_STEP};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Instant;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

/// Measures for ever, and tells the driver when the machine becomes too busy with others' work, and when it is free again.
pub(crate) async fn watch(limit_percent: u32, driver: mpsc::Sender<Event>) {
    let mut judge = Judge::new(limit_percent);
    let mut meter = ForeignMeter::default();
    let mut step = interval(FOREIGN_STEP);
    step.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        step.tick().await;
        // It reads a file for each process of the machine: not on a thread that others wait for.
        let measured = tokio::task::spawn_blocking(move || {
            let percent = meter.percent();
            (meter, percent)
        });
        let Ok((back, percent)) = measured.await else { return };
        meter = back;
        let Some(percent) = percent else { continue };
        if let Some(overloaded) = judge.hear(percent, Instant::now()) {
            tracing::info!(overloaded, percent, limit_percent, "work of others on this machine");
            if driver.send(Event::Overloaded(overloaded)).await.is_err() {
                return;
            }
        }
    }
}

/// Decides what lasts.
#[derive(Debug)]
struct Judge {
    limit: f64,
    overloaded: bool,
    /// Since when it has been on the other side.
    since: Option<Instant>,
}

impl Judge {
    fn new(limit_percent: u32) -> Judge {
        Judge { limit: f64::from(limit_percent), overloaded: false, since: None }
    }

    /// A measurement. `Some`: the answer is another one now.
    fn hear(&mut self, percent: f64, now: Instant) -> Option<bool> {
        // A limit that is smaller than the margin must still be left at some time.
        let free_below = (self.limit - FOREIGN_MARGIN).max(self.limit / 2.0);
        let is_other_side = if self.overloaded { percent < free_below } else { percent > self.limit };
        if !is_other_side {
            self.since = None;
            return None;
        }
        let since = *self.since.get_or_insert(now);
        if now - since < FOREIGN_LASTS {
            return None;
        }
        self.since = None;
        self.overloaded = !self.overloaded;
        Some(self.overloaded)
    }
}

/// Measures the share of others between two calls.
#[derive(Debug, Default)]
struct ForeignMeter {
    before: Option<(Ticks, u64)>,
}

impl ForeignMeter {
    /// Percent of all processors that others used since the last call; `None` at the first, and when the system does not
    /// tell.
    fn percent(&mut self) -> Option<f64> {
        let now = (machine_ticks()?, ours(&processes()));
        let (before, own_before) = self.before.replace(now)?;
        foreign_percent(before, now.0, now.1.saturating_sub(own_before))
    }
}

fn foreign_percent(before: Ticks, now: Ticks, own: u64) -> Option<f64> {
    let all = now.all.checked_sub(before.all).filter(|all| *all > 0)?;
    let busy = all.saturating_sub(now.idle.saturating_sub(before.idle));
    Some(busy.saturating_sub(own) as f64 * 100.0 / all as f64)
}

/// A process as the table of the system has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    parent: u32,
    /// Processor time of itself and of its children that have ended, in the kernel's ticks.
    ticks: u64,
    /// Does it run our own executable?
    is_essaim: bool,
}

fn processes() -> BTreeMap<u32, Process> {
    let identity = |path: &str| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    let us = identity("/proc/self/exe");
    let mut processes = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // What has ended meanwhile is counted with its parent.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let Some((parent, ticks)) = parent_and_ticks(&stat) else { continue };
        // That of another user's process cannot be read: it is none of ours.
        let is_essaim = us.is_some() && identity(&format!("/proc/{pid}/exe")) == us;
        processes.insert(pid, Process { parent, ticks, is_essaim });
    }
    processes
}

/// From /proc/PID/stat: the parent, and utime + stime + cutime + cstime (proc(5)).
fn parent_and_ticks(stat: &str) -> Option<(u32, u64)> {
    // The name may contain anything, also what looks like the rest.
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let ticks = fields.get(11..15)?.iter().map(|field| field.parse::<u64>());
    Some((fields.get(1)?.parse().ok()?, ticks.sum::<Result<u64, _>>().ok()?))
}

/// The ticks of essaim and of everything that it started.
fn ours(processes: &BTreeMap<u32, Process>) -> u64 {
    let mut known: BTreeMap<u32, bool> = BTreeMap::new();
    let mut sum = 0;
    for (pid, process) in processes {
        let mut path = BTreeSet::new();
        let mut at = *pid;
        let is_ours = loop {
            if let Some(known) = known.get(&at) {
                break *known;
            }
            match processes.get(&at) {
                Some(process) if process.is_essaim => break true,
                // A parent that comes again is a table that changed while it was read.
                Some(process) if path.insert(at) => at = process.parent,
                _ => break false,
            }
        };
        known.extend(path.into_iter().chain([*pid]).map(|pid| (pid, is_ours)));
        if is_ours {
            sum += process.ticks;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    // Above the limit for three seconds it is too much; ten points below for three seconds it is free again; bursts and
    // pauses change nothing.
    #[test]
    fn only_what_lasts_counts() {
        let begin = Instant::now();
        let mut judge = Judge::new(50);
        let mut at = 0;
        let mut hear = |judge: &mut Judge, percent| {
            at += 1;
            judge.hear(percent, begin + Duration::from_secs(at))
        };
        let said: Vec<_> = [60.0, 70.0, 40.0, 60.0, 60.0, 60.0, 60.0].map(|p| hear(&mut judge, p)).into();
        assert_eq!(said, [None, None, None, None, None, None, Some(true)]);
        let said: Vec<_> = [45.0, 39.0, 39.0, 45.0, 39.0, 10.0, 0.0, 39.0].map(|p| hear(&mut judge, p)).into();
        assert_eq!(said, [None, None, None, None, None, None, None, Some(false)]);
        // A small limit can be left too.
        let mut small = Judge::new(5);
        for _ in 0..4 {
            hear(&mut small, 9.0);
        }
        assert!(small.overloaded);
        for _ in 0..4 {
            hear(&mut small, 1.0);
        }
        assert!(!small.overloaded);
    }

    // The kernel's line is read, whatever the process calls itself.
    #[test]
    fn a_process_is_read() {
        let stat = "42 (a) b (1) S 7 42 42 0 -1 4194560 100 200 0 0 5 6 70 800 20 0 1 0 100 1 1";
        assert_eq!(parent_and_ticks(stat), Some((7, 881)));
        assert_eq!(parent_and_ticks("42 (a) S 7"), None);
        assert_eq!(parent_and_ticks(""), None);
    }

    // What essaim started is its own, at any depth; what started it is not.
    #[test]
    fn what_essaim_started_is_its_own() {
        let process = |parent, ticks, is_essaim| Process { parent, ticks, is_essaim };
        let table = BTreeMap::from([
            (1, process(0, 1_000, false)),
            (10, process(1, 500, false)),
            (20, process(10, 1, true)),
            (5, process(21, 20, false)),
            (21, process(20, 300, false)),
            (30, process(1, 7_000, false)),
            // A circle, and a parent that is gone.
            (40, process(41, 1, false)),
            (41, process(40, 1, false)),
            (50, process(99, 1, false)),
        ]);
        assert_eq!(ours(&table), 321);
        let (before, now) = (Ticks { idle: 100, all: 1_000 }, Ticks { idle: 150, all: 1_200 });
        assert_eq!(foreign_percent(before, now, 30), Some(60.0));
        assert_eq!(foreign_percent(before, now, 900), Some(0.0));
        assert_eq!(foreign_percent(now, now, 0), None);
    }

    // On the real machine: our own work is not foreign.
    #[test]
    fn our_own_work_is_not_foreign() {
        let mut meter = ForeignMeter::default();
        assert_eq!(meter.percent(), None);
        let own_before = ours(&processes());
        let until = Instant::now() + Duration::from_millis(300);
        let mut number = 1_u64;
        while Instant::now() < until {
            number = std::hint::black_box(number.wrapping_mul(31) + 1);
        }
        assert!(ours(&processes()) > own_before, "300 ms of a processor are some ticks");
        assert!(meter.percent().is_some_and(|percent| (0.0..=100.0).contains(&percent)));
    }
}
