//! Whose turn it is while an array of 100,000 tasks waits: an urgent task, another owner's ten, a machine that joins late.
//!
//! `main` calls [`turns`]. Real processes on a real worker with as many slots as twice the processors; the array's tasks
//! sleep, so that times are those of decisions and not of a busy machine. The times of jobs are the hub's own.
//! Deliberately not here: that the order is right (scenarios of the core), rates (`arrays`).

use crate::ask::{array, command, connect, connect_with, ended, lasted, submit};
use crate::launch::median;
use crate::{Swarm, load};
use anyhow::{Context, Result, ensure};
use essaim_net::Client;
use essaim_proto::api::{JobCancel, JobShow, JobView, KeyCreate, NodeList};
use essaim_proto::hello::Role;
use essaim_proto::job::JobSpec;
use essaim_proto::node::NodeView;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Tasks that wait, and how long each of them sleeps.
const TASKS: u32 = 100_000;
const SLEEP: &[&str] = &["/bin/sleep", "0.05"];
const SLEEP_MS: u64 = 50;
/// Urgent tasks, one after the other.
const URGENT: usize = 20;
/// Tasks of the other owner.
const FEW: u32 = 10;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(2);
/// Tasks of the array that end before anything is measured: their pace is known then.
const BEGUN: u64 = 40;

/// One table.
pub(crate) fn turns(binary: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let slots = (2 * std::thread::available_parallelism()?.get() as u32).to_string();
    let swarm = Swarm::on(binary, tempfile::tempdir()?, &["--slots", &slots])?;
    swarm.timed(&["run", "--command", "--", "/bin/true"])?;
    let (urgent, few, late) = runtime.block_on(measure(&swarm, &slots))?;
    println!();
    println!("load {}", load());
    println!("| while {TASKS} tasks of {SLEEP_MS} ms wait, {slots} slots | time | of {SLEEP_MS} ms |");
    println!("|---|---:|---:|");
    let row = |what: &str, ms: f64| println!("| {what} | {ms:.0} ms | {:.1} |", ms / SLEEP_MS as f64);
    row("an urgent task, from submitted to ended: median", median(urgent.clone()));
    row("the longest of them", urgent.into_iter().fold(0.0, f64::max));
    row(&format!("{FEW} tasks of another owner, all ended"), few);
    row("a worker that joins, from its registration until all its slots are taken", late);
    swarm.stop().map(drop)
}

async fn measure(swarm: &Swarm, slots: &str) -> Result<(Vec<f64>, f64, f64)> {
    let alice = connect(swarm.home.path()).await?;
    let bob = second_owner(swarm, &alice).await?;
    let crowd = submit(&alice, array(TASKS, SLEEP)).await?;
    while alice.request(&JobShow { job: crowd }).await?.counts.done < BEGUN {
        tokio::time::sleep(LOOK).await; // poll: until the hub says so
    }
    let mut urgent = Vec::new();
    for _ in 0..URGENT {
        let spec = JobSpec { priority: 10, ..command(&["/bin/true"]) };
        urgent.push(ms(&ended(&alice, submit(&alice, spec).await?).await?));
    }
    let few = ms(&ended(&bob, submit(&bob, array(FEW, SLEEP)).await?).await?);
    let (mut worker, late) = late_joiner(swarm, &alice, slots).await?;
    alice.request(&JobCancel { job: crowd, tasks: None }).await?;
    ended(&alice, crowd).await?;
    rustix::process::kill_process(rustix::process::Pid::from_child(&worker), rustix::process::Signal::INT)?;
    worker.wait()?;
    Ok((urgent, few, late))
}

fn ms(view: &JobView) -> f64 {
    lasted(view).as_secs_f64() * 1e3
}

/// A client with a key of its own.
async fn second_owner(swarm: &Swarm, admin: &Client) -> Result<Client> {
    let made = admin.request(&KeyCreate { name: "bob".into(), role: Role::Operator, ..KeyCreate::default() }).await?;
    connect_with(swarm.home.path(), &made.key.0).await
}

/// Starts another worker; gives it, and the milliseconds from when the hub lists it until its slots are taken.
async fn late_joiner(swarm: &Swarm, client: &Client, slots: &str) -> Result<(Child, f64)> {
    let line = swarm.command(&["join-line", "--quiet"]).output()?;
    ensure!(line.status.success(), "no join line");
    let mut worker = swarm
        .command(&["worker", "-", "--quiet", "--name", "late", "--slots", slots])
        .env("ESSAIM_HOME", swarm.home.path().join("late"))
        .stdin(Stdio::piped())
        .spawn()?;
    worker.stdin.take().context("no input")?.write_all(&line.stdout)?;
    let mut listed = None;
    loop {
        let nodes = client.request(&NodeList::default()).await?.nodes;
        let is_late = |node: &&NodeView| node.name.starts_with("late") && node.slots > 0;
        if let Some(node) = nodes.iter().find(is_late) {
            let since = *listed.get_or_insert_with(Instant::now);
            if node.slots_used >= node.slots {
                return Ok((worker, since.elapsed().as_secs_f64() * 1e3));
            }
        }
        ensure!(worker.try_wait()?.is_none(), "the worker has left");
        tokio::time::sleep(LOOK).await; // poll: until the hub says so
    }
}
