//! Programs per second through the cage alone, against the bare floor: posix_spawn and wait.
//!
//! `main` calls [`launches`]. A real cage process of the real binary is driven directly, with captured output, as the worker
//! drives it; the floor captures nothing, kills nothing that is left behind, and knows no limit. Rounds of both sides
//! alternate.
//! Deliberately not here: hub, session and journal (`main`).

use crate::load;
use anyhow::{Context, Result, bail};
use essaim_sandbox::{Cage, Capture, Event, Limits, Start, socket_pair};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// Rounds of each side; the median counts.
const ROUNDS: usize = 5;
/// Programs in one round.
const PROGRAMS: u64 = 4_000;
/// Programs that warm up a cage.
const WARM_UP: u64 = 50;
/// What is started.
pub(crate) const PROGRAM: &str = "/bin/true";

/// One table: 1, 2 and 4 programs at once.
pub(crate) fn launches(binary: &Path) -> Result<()> {
    let (mut floors, mut ours) = (vec![Vec::new(); 2], vec![Vec::new(); 3]);
    for _ in 0..ROUNDS {
        for (rates, threads) in floors.iter_mut().zip([2, 4]) {
            rates.push(floor(threads)?);
        }
        for (rates, at_once) in ours.iter_mut().zip([1, 2, 4]) {
            rates.push(through_a_cage(binary, at_once)?);
        }
    }
    let floors: Vec<f64> = floors.into_iter().map(median).collect();
    let floor = floors.iter().copied().fold(0.0, f64::max);
    println!();
    println!("load {}; floor with 2 threads {:.0}/s, with 4 threads {:.0}/s", load(), floors[0], floors[1]);
    println!("| `{PROGRAM}` per second, through the cage | ours | floor | ratio | more per program |");
    println!("|---|---:|---:|---:|---:|");
    for (rates, at_once) in ours.into_iter().zip([1, 2, 4]) {
        let rate = median(rates);
        let more = (1.0 / rate - 1.0 / floor) * 1e3;
        println!("| {at_once} at once | {rate:.0} | {floor:.0} | {:.2} | {more:.3} ms |", rate / floor);
    }
    Ok(())
}

pub(crate) fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// Each thread starts one program after the other and waits for it.
pub(crate) fn floor(threads: u64) -> Result<f64> {
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let spawn = || -> std::io::Result<()> {
            // Without a change of streams, folder or user the standard library takes posix_spawn.
            (0..PROGRAMS / threads).try_for_each(|_| Command::new(PROGRAM).status().map(drop))
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(spawn)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or(Ok(())))
    })?;
    Ok(PROGRAMS as f64 / begun.elapsed().as_secs_f64())
}

fn through_a_cage(binary: &Path, at_once: u64) -> Result<f64> {
    let (ours, theirs) = socket_pair()?;
    let mut process: Child = Command::new(binary).arg("__cage").stdin(Stdio::from(theirs)).spawn()?;
    let cage = Cage::new(ours);
    run(&cage, WARM_UP, at_once)?;
    let begun = Instant::now();
    run(&cage, PROGRAMS, at_once)?;
    let took = begun.elapsed();
    drop(cage);
    process.wait()?;
    Ok(PROGRAMS as f64 / took.as_secs_f64())
}

fn run(cage: &Cage, programs: u64, at_once: u64) -> Result<()> {
    let env =
        [("PATH", "/usr/local/bin:/usr/bin:/bin"), ("HOME", "/tmp"), ("LANG", "C.UTF-8"), ("ESSAIM_TASK_ID", "1")];
    let mut start = Start {
        id: 0,
        argv: vec![PROGRAM.to_owned()],
        env: env.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        cwd: "/tmp".into(),
        wall_limit_ms: Some(60_000),
        nice: 5,
        at_once: None,
        room: None,
        limits: Limits::default(),
    };
    let mut over = 0;
    while over < programs {
        while start.id < programs && start.id - over < at_once {
            cage.start_captured(&start, Capture::Apart)?;
            start.id += 1;
        }
        match cage.next_event()?.context("the cage is gone")? {
            Event::Ended { .. } => over += 1,
            Event::StartFailed { step, errno, .. } => bail!("{PROGRAM} was not started: {step} {errno}"),
            _ => {}
        }
    }
    Ok(())
}
