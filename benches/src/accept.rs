//! Accepted jobs per second against the floor of the disk: one append and one fdatasync per group.
//!
//! `main` calls [`accepted`]. A hub without workers takes jobs from connected clients, so that nothing but accepting is
//! measured; the floor writes as many bytes as the hub's journal got per job, in the same run, on the same disk, in
//! rounds that alternate with ours.
//! Deliberately not here: running jobs (`main`), what a hub with a history costs (`history`).

use crate::ask::{command, connect};
use crate::{Swarm, load};
use anyhow::{Result, ensure};
use essaim_proto::api::Submit;
use essaim_proto::{JobId, SubmitKey};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Rounds of each side; the median counts.
const ROUNDS: usize = 5;
/// Requests that a hub lets one session have open.
const PER_CONNECTION: usize = 64;
/// Bytes that a job like ours takes in the journal with its envelope.
const RECORD_BYTES: usize = 320;

/// One request in flight, and 256 on four connections.
pub(crate) fn accepted(binary: &Path) -> Result<()> {
    let swarm = Swarm::without_workers(binary)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    println!();
    println!("load {}", load());
    println!("| accepted jobs per second | ours | append + fdatasync | ratio |");
    println!("|---|---:|---:|---:|");
    for (in_flight, jobs) in [(1, 1_500), (256, 12_000)] {
        let (mut ours, mut floor) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(runtime.block_on(submit(swarm.home.path(), in_flight, jobs))?);
            floor.push(append(swarm.home.path(), in_flight, jobs)?);
        }
        let (ours, floor) = (rate(&mut ours, jobs), rate(&mut floor, jobs));
        println!("| {in_flight} in flight | {ours:.0} | {floor:.0} | {:.2} |", ours / floor);
    }
    swarm.stop()?;
    Ok(())
}

fn rate(times: &mut [Duration], jobs: usize) -> f64 {
    times.sort();
    jobs as f64 / times[times.len() / 2].as_secs_f64()
}

/// How long it takes until `jobs` are accepted with `in_flight` requests open at any time.
async fn submit(home: &Path, in_flight: usize, jobs: usize) -> Result<Duration> {
    static NEXT_KEY: AtomicU64 = AtomicU64::new(1);
    let mut clients = Vec::new();
    for _ in 0..in_flight.div_ceil(PER_CONNECTION) {
        clients.push(connect(home).await?);
    }
    let left = Arc::new(AtomicU64::new(jobs as u64));
    let begun = Instant::now();
    let mut askers = tokio::task::JoinSet::new();
    for asker in 0..in_flight {
        let (client, left) = (clients[asker % clients.len()].clone(), left.clone());
        askers.spawn(async move {
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
                let key = u128::from(NEXT_KEY.fetch_add(1, Ordering::Relaxed));
                let spec = command(&["/bin/true"]);
                let submit = Submit { key: SubmitKey(key.to_le_bytes()), spec, watch: false, in_order: false };
                let submitted = client.request(&submit).await?;
                ensure!(submitted.job > JobId(0) && !submitted.repeated, "the hub knows a job that is new");
            }
            Ok(())
        });
    }
    while let Some(ended) = askers.join_next().await {
        ended??;
    }
    Ok(begun.elapsed())
}

/// The floor: the same number of records of the same size, `group` of them per fdatasync.
fn append(folder: &Path, group: usize, jobs: usize) -> Result<Duration> {
    let path = folder.join("floor");
    let mut file = File::create(&path)?;
    let batch = vec![0x5a; RECORD_BYTES * group];
    let begun = Instant::now();
    for _ in 0..jobs.div_ceil(group) {
        file.write_all(&batch)?;
        file.sync_data()?;
    }
    let took = begun.elapsed();
    std::fs::remove_file(&path)?;
    Ok(took)
}
