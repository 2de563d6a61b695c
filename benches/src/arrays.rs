//! Many short tasks through everything: command line, hub with journal, TLS, worker, cage; output captured on the hub.
//!
//! `main` calls [`arrays`]. One array of `/bin/true` on one local worker with as many slots as twice the processors, against
//! the bare floor of the same round (`launch`); then ten times and a hundred times fewer tasks, to see whether a task costs
//! the same. The times are the hub's own, from accepted to ended.
//! Deliberately not here: tasks that are no processes (a simulated worker would measure the hub alone).

use crate::launch::{PROGRAM, floor, median};
use crate::{Swarm, load};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

/// Rounds of each side; the median counts.
const ROUNDS: usize = 5;
/// Tasks of the largest array.
const TASKS: u64 = 50_000;

/// Two tables: the rate against the floor, and the time per task for arrays of different sizes.
pub(crate) fn arrays(binary: &Path) -> Result<()> {
    let slots = (2 * std::thread::available_parallelism()?.get()).to_string();
    let swarm = Swarm::on(binary, tempfile::tempdir()?, &["--slots", &slots])?;
    run(&swarm, 500)?;
    let (mut floors, mut ours) = (vec![Vec::new(); 2], Vec::new());
    for _ in 0..ROUNDS {
        for (rates, threads) in floors.iter_mut().zip([2, 4]) {
            rates.push(floor(threads)?);
        }
        ours.push(TASKS as f64 / run(&swarm, TASKS)?.as_secs_f64());
    }
    let floors: Vec<f64> = floors.into_iter().map(median).collect();
    let (floor, rate) = (floors.iter().copied().fold(0.0, f64::max), median(ours));
    println!();
    println!("load {}; floor with 2 threads {:.0}/s, with 4 threads {:.0}/s", load(), floors[0], floors[1]);
    println!("| {TASKS} tasks of `{PROGRAM}` in one array, per second | ours | floor | ratio | more per task |");
    println!("|---|---:|---:|---:|---:|");
    let more = (1.0 / rate - 1.0 / floor) * 1e3;
    println!(
        "| one worker, {slots} slots, output captured, journal and TLS on | {rate:.0} | {floor:.0} | {:.2} | {more:.3} ms |",
        rate / floor
    );
    println!();
    println!("| tasks in the array | time per task | of the largest |");
    println!("|---:|---:|---:|");
    let mut times = Vec::new();
    for tasks in [TASKS / 100, TASKS / 10] {
        let rounds: Result<Vec<f64>> =
            (0..ROUNDS).map(|_| Ok(run(&swarm, tasks)?.as_secs_f64() / tasks as f64)).collect();
        times.push((tasks, median(rounds?)));
    }
    times.push((TASKS, 1.0 / rate));
    let last = times.last().map_or(1.0, |(_, time)| *time);
    for (tasks, time) in times {
        println!("| {tasks} | {:.3} ms | {:.2} |", time * 1e3, time / last);
    }
    swarm.stop()?;
    Ok(())
}

/// How long the hub had the array.
fn run(swarm: &Swarm, tasks: u64) -> Result<Duration> {
    let range = format!("1-{tasks}");
    let output = swarm.command(&["run", "--detach", "--array", &range, "--command", "--", PROGRAM]).output()?;
    let job = String::from_utf8(output.stdout)?.trim().to_owned();
    ensure!(!job.is_empty(), "no job was made");
    swarm.timed(&["job", "wait", &job])?;
    let shown = swarm.command(&["job", "show", &job, "--json"]).output()?;
    let view: Value = serde_json::from_slice(&shown.stdout)?;
    let at = |field: &str| view[field].as_u64().with_context(|| format!("no {field}"));
    Ok(Duration::from_millis(at("ended_ms")? - at("submitted_ms")?))
}
