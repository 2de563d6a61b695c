//! What this machine is and how loaded it is.
//!
//! The session asks for the facts when it registers, the driver for the load with each report, `foreign` for the ticks of
//! the machine. Always true: what the
//! system does not tell is empty or zero, never an error.
//! Deliberately not here: toolchains (`probe`), whose work the load is (`foreign`).

use crate::limits::MEMORY_OFFERED_PERCENT;
use essaim_net::addresses::own_with_first;
use essaim_proto::node::{Facts, Load};
use std::net::IpAddr;

/// What this machine is; `local` is the near end of the connection to the hub.
pub(crate) fn facts(local: Option<IpAddr>) -> Facts {
    let addresses = local.and_then(|local| own_with_first(local).ok()).unwrap_or_default();
    let memory = read("/proc/meminfo");
    Facts {
        hostname: read("/proc/sys/kernel/hostname").trim().to_owned(),
        os: std::env::consts::OS.to_owned(),
        arch: std::env::consts::ARCH.to_owned(),
        cpus: std::thread::available_parallelism().map_or(0, |count| count.get() as u32),
        memory_bytes: meminfo(&memory, "MemTotal:").unwrap_or(0),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        addresses: addresses.iter().map(IpAddr::to_string).collect(),
    }
}

/// Measures the load between two questions.
#[derive(Debug, Default)]
pub(crate) struct LoadMeter {
    before: Ticks,
}

/// Processor time since the machine started, in the kernel's ticks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Ticks {
    pub(crate) idle: u64,
    pub(crate) all: u64,
}

impl LoadMeter {
    /// The load since the last call; since the machine's start at the first.
    pub(crate) fn load(&mut self) -> Load {
        let now = ticks(&read("/proc/stat")).unwrap_or(self.before);
        let (idle, all) = (now.idle.saturating_sub(self.before.idle), now.all.saturating_sub(self.before.all));
        self.before = now;
        let cpu = if all == 0 { 0.0 } else { 1.0 - (idle.min(all) as f64 / all as f64) };
        let memory = read("/proc/meminfo");
        let used = meminfo(&memory, "MemTotal:").zip(meminfo(&memory, "MemAvailable:"));
        Load { cpu, memory_used_bytes: used.map_or(0, |(total, available)| total.saturating_sub(available)) }
    }
}

/// Processor time of the whole machine, if the system tells.
pub(crate) fn machine_ticks() -> Option<Ticks> {
    ticks(&read("/proc/stat"))
}

/// Memory that programs may reserve on this machine when its owner does not say, for each of `workers` workers; 0 when the
/// system does not tell how much there is.
#[must_use]
pub fn offered_memory(workers: u32) -> u64 {
    let machine = meminfo(&read("/proc/meminfo"), "MemTotal:").unwrap_or(0);
    // In a container its limit is what there is; `max` is no number.
    let container = read("/sys/fs/cgroup/memory.max").trim().parse::<u64>().unwrap_or(u64::MAX);
    machine.min(container) / 100 * MEMORY_OFFERED_PERCENT / u64::from(workers.max(1))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// A line such as `MemTotal:  16384 kB`, in bytes (proc(5)).
fn meminfo(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.split_ascii_whitespace().next()?.parse::<u64>().ok()? * 1_024)
}

/// The first line of /proc/stat: user nice system idle iowait irq softirq steal … (proc(5)).
fn ticks(text: &str) -> Option<Ticks> {
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<u64> = line.split_ascii_whitespace().take(8).map_while(|field| field.parse().ok()).collect();
    let idle = fields.get(3)? + fields.get(4)?;
    Some(Ticks { idle, all: fields.iter().sum() })
}

#[cfg(test)]
mod tests {
    use super::*;

    // Are the kernel's tables read as they are documented, and is nonsense nothing?
    #[test]
    fn tables_are_read() {
        assert_eq!(ticks("cpu  10 0 20 60 10 0 0 0 5 5\ncpu0 1"), Some(Ticks { idle: 70, all: 100 }));
        assert_eq!(ticks("cpu  1 2"), None);
        assert_eq!(ticks(""), None);
        assert_eq!(meminfo("MemTotal:       2 kB\nMemAvailable: 1 kB\n", "MemAvailable:"), Some(1_024));
        assert_eq!(meminfo("MemTotal: x", "MemTotal:"), None);
    }

    // Is the load a share, also when asked twice at once?
    #[test]
    fn load_is_a_share() {
        let mut meter = LoadMeter::default();
        for _ in 0..3 {
            let load = meter.load();
            assert!((0.0..=1.0).contains(&load.cpu), "{load:?}");
        }
        assert!(facts(None).cpus > 0);
        let (whole, half) = (offered_memory(1), offered_memory(2));
        assert!(whole < facts(None).memory_bytes && whole / 2 == half, "{whole} {half}");
    }
}
