//! Whose turn it is while an array of 100,000 tasks waits: an urgent task, another owner's ten, a machine that joins late.
//!
//! `main` calls [`turns`]. Real processes on a real worker with as many slots as twice the processors; the array's tasks
//! sleep, so that times are those of decisions and not of a busy machine. The times of jobs are the hub's own.
//! Deliberately not here: that the order is right (scenarios of the core), rates (`arrays`).

use crate::accept::connect;
use crate::launch::median;
use crate::{Swarm, load};
use anyhow::{Context, Result, ensure};
use essaim_net::{Client, ConnectOptions, DialTarget, HubFile, Ticket, TicketKind};
use essaim_proto::api::{JobCancel, JobShow, JobView, KeyCreate, NodeList, Submit};
use essaim_proto::hello::Role;
use essaim_proto::job::{ArraySpec, JobKind, JobSpec};
use essaim_proto::node::NodeView;
use essaim_proto::{JobId, SubmitKey, TaskSet};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Tasks that wait, and how long each of them sleeps.
const TASKS: u32 = 100_000;
const SLEEP: &str = "0.05";
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
        let spec = JobSpec { priority: 10, ..command("/bin/true", "") };
        urgent.push(lasted(&ended(&alice, submit(&alice, spec).await?).await?));
    }
    let few = lasted(&ended(&bob, submit(&bob, array(FEW, SLEEP)).await?).await?);
    let (mut worker, late) = late_joiner(swarm, &alice, slots).await?;
    alice.request(&JobCancel { job: crowd, tasks: None }).await?;
    ended(&alice, crowd).await?;
    rustix::process::kill_process(rustix::process::Pid::from_child(&worker), rustix::process::Signal::INT)?;
    worker.wait()?;
    Ok((urgent, few, late))
}

fn command(program: &str, argument: &str) -> JobSpec {
    let args = [program, argument].into_iter().filter(|word| !word.is_empty()).map(str::to_owned).collect();
    JobSpec { kind: JobKind::Command, args, ..JobSpec::default() }
}

fn array(tasks: u32, sleep: &str) -> JobSpec {
    let array = Some(Box::new(ArraySpec { tasks: TaskSet::span(1, tasks), lines: None }));
    JobSpec { array, ..command("/bin/sleep", sleep) }
}

async fn submit(client: &Client, spec: JobSpec) -> Result<JobId> {
    let key = SubmitKey(essaim_net::ticket::random());
    Ok(client.request(&Submit { key, spec, watch: false, in_order: false }).await?.job)
}

async fn ended(client: &Client, job: JobId) -> Result<JobView> {
    loop {
        let view = client.request(&JobShow { job }).await?;
        if view.state.is_over() {
            return Ok(view);
        }
        tokio::time::sleep(LOOK).await; // poll: until the hub says so
    }
}

/// Milliseconds by the hub's clock.
fn lasted(view: &JobView) -> f64 {
    view.ended_ms.unwrap_or_default().saturating_sub(view.submitted_ms) as f64
}

/// A client with a key of its own.
async fn second_owner(swarm: &Swarm, admin: &Client) -> Result<Client> {
    let made = admin.request(&KeyCreate { name: "bob".into(), role: Role::Operator, ..KeyCreate::default() }).await?;
    let ticket = Ticket::parse(&made.key.0, TicketKind::Key)?;
    let file = HubFile::read(swarm.home.path())?.context("no hub file")?;
    let target =
        DialTarget { addresses: file.client_addresses, authority: ticket.authority, identity: None, bind: None };
    let options = ConnectOptions { key: Some(ticket.to_line()), ..ConnectOptions::default() };
    Ok(Client::connect(|| target.clone(), options, |_| ()).await?)
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
