//! The hub and its journal without processes: simulated workers in a process of their own, over TLS.
//!
//! `main` calls [`hub`]; with the word `simulate` it becomes the other process ([`simulate`]), which gets a join line on
//! standard input and answers on standard output when all of its workers have registered. A simulated worker ends what
//! it is leased as soon as it has it, each task with an exit code and a usage of its own, reports as a real one does, and
//! holds its ends until they are acknowledged. Leases, journal, catalog and encryption are the real ones.
//! Deliberately not here: processes (`launch`, `arrays`), the core alone (`core`).

use crate::ask::{array, command, connect, ended, lasted, submit};
use crate::{Swarm, load};
use anyhow::{Context, Result, bail, ensure};
use essaim_net::hello::{greet, join, ours};
use essaim_net::{Client, Connection, DialTarget, Ticket, TicketKind, dial};
use essaim_proto::api::TaskList;
use essaim_proto::hello::PeerKind;
use essaim_proto::job::{Isolation, TaskResult, Verdict};
use essaim_proto::link::{
    EndAckMany, Ended, EndedMany, GivenBack, HeldMany, Register, Registered, Report, Start, TakeBack, TaskEnd,
};
use essaim_proto::{AttemptId, Frame, Function, InstanceId, JobId, TaskId};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Rounds; the median counts.
const ROUNDS: usize = 5;
/// Workers, and slots of each.
const WORKERS: usize = 16;
const SLOTS: u32 = 4;
/// What a task is said to be; nobody starts it.
const PROGRAM: &[&str] = &["/bin/true", "true"];
/// Tasks of an array.
const TASKS: u32 = 500_000;
/// Tasks that wait, of one array; and single jobs that wait, with so many bytes of arguments.
const WAITING_TASKS: u32 = 1_000_000;
const WAITING_JOBS: u64 = 100_000;
const ARGUMENT_BYTES: usize = 200;
/// Requests of a client that are open at once.
const IN_FLIGHT: u64 = 64;
/// Workers that do nothing.
const IDLE_WORKERS: usize = 1_000;
/// Ends in one frame at most, as the wire has it.
const ENDS_MAX: usize = 1_000;
/// A worker says how it is.
const REPORT_EVERY: Duration = Duration::from_secs(5);
/// Limit of a dial, and of a wait for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// One table of what the hub does, one of what it needs in memory.
pub(crate) fn hub(binary: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    throughput(binary, &runtime)?;
    memory_on(binary, &runtime)
}

/// The table of memory alone.
pub(crate) fn memory(binary: &Path) -> Result<()> {
    memory_on(binary, &tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

fn throughput(binary: &Path, runtime: &tokio::runtime::Runtime) -> Result<()> {
    let swarm = Swarm::without_workers(binary)?;
    let mut workers = Simulated::start(&swarm, WORKERS)?;
    let client = runtime.block_on(connect(swarm.home.path()))?;
    let pid = swarm.up.id();
    let (mut rates, mut cpus, mut lags) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let before = processor_time(pid)?;
        let (took, lag) = runtime.block_on(worked_off(&client, TASKS))?;
        let cpu = processor_time(pid)? - before;
        // The first one warms up.
        if round > 0 {
            rates.push(f64::from(TASKS) / took.as_secs_f64());
            cpus.push(cpu.as_secs_f64() * 1e6 / f64::from(TASKS));
            lags.push(lag.as_secs_f64());
        }
    }
    let median = crate::launch::median;
    println!();
    println!("load {}", load());
    println!(
        "| hub and journal, {WORKERS} simulated workers of {SLOTS} slots over TLS, {TASKS} tasks | goal | measured |"
    );
    println!("|---|---:|---:|");
    println!("| tasks per second | 100,000 | {:.0} |", median(rates));
    println!("| processor time of the hub per task | 3 µs | {:.2} µs |", median(cpus));
    println!("| catalog behind at the end | 2 s | {:.2} s |", median(lags));
    workers.stop()?;
    swarm.stop().map(drop)
}

/// How long the hub had an array of so many tasks, and how long its catalog took to follow.
async fn worked_off(client: &Client, tasks: u32) -> Result<(Duration, Duration)> {
    let job = submit(client, array(tasks, PROGRAM)).await?;
    let view = ended(client, job).await?;
    let begun = Instant::now();
    // The page of the last task that does not fail (the core has some failures itself) needs its row, for which the hub
    // waits.
    let after = Some(TaskId(tasks - 2));
    let page = client.request(&TaskList { job, after, limit: 1, ..TaskList::default() }).await?;
    ensure!(page.tasks.iter().any(|task| task.result.is_some()), "the last task has no result");
    Ok((lasted(&view), begun.elapsed()))
}

fn memory_on(binary: &Path, runtime: &tokio::runtime::Runtime) -> Result<()> {
    println!();
    println!("| memory of a whole hub over idle | limit | used |");
    println!("|---|---:|---:|");
    let (took, used) = waiting(binary, runtime, |client| async move {
        let begun = Instant::now();
        submit(&client, array(WAITING_TASKS, PROGRAM)).await?;
        Ok(begun.elapsed())
    })?;
    let took = took.as_secs_f64() * 1e3;
    println!(
        "| {WAITING_TASKS} queued tasks of one array (submitted in {took:.1} ms, limit 50 ms) | 24 MB | {used:.1} MB |"
    );
    let (_, used) = waiting(binary, runtime, |client| async move { submit_jobs(&client).await })?;
    println!("| {WAITING_JOBS} queued jobs with {ARGUMENT_BYTES} bytes of arguments | 60 MB | {used:.1} MB |");
    let swarm = Swarm::without_workers(binary)?;
    let idle = settled(swarm.up.id())?;
    let mut workers = Simulated::start(&swarm, IDLE_WORKERS)?;
    let used = settled(swarm.up.id())? - idle;
    println!("| {IDLE_WORKERS} idle workers | 100 MB | {used:.1} MB |");
    workers.stop()?;
    swarm.stop().map(drop)
}

/// What `fill` says, and the megabytes that a hub without workers has more after it.
fn waiting<F, T>(binary: &Path, runtime: &tokio::runtime::Runtime, fill: impl FnOnce(Client) -> F) -> Result<(T, f64)>
where
    F: Future<Output = Result<T>>,
{
    let swarm = Swarm::without_workers(binary)?;
    let client = runtime.block_on(connect(swarm.home.path()))?;
    let idle = settled(swarm.up.id())?;
    let said = runtime.block_on(fill(client))?;
    let used = settled(swarm.up.id())? - idle;
    swarm.stop()?;
    Ok((said, used))
}

async fn submit_jobs(client: &Client) -> Result<()> {
    let mut askers = tokio::task::JoinSet::new();
    for asker in 0..IN_FLIGHT {
        let client = client.clone();
        askers.spawn(async move {
            for number in (asker..WAITING_JOBS).step_by(IN_FLIGHT as usize) {
                submit(&client, command(&["/bin/true", &format!("{number:0>ARGUMENT_BYTES$}")])).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(asker) = askers.join_next().await {
        asker??;
    }
    Ok(())
}

/// Memory of a process in megabytes, once it grows no more.
fn settled(pid: u32) -> Result<f64> {
    let mut before = resident(pid)?;
    loop {
        std::thread::sleep(Duration::from_millis(500)); // poll: until it grows no more
        let now = resident(pid)?;
        if now <= before + 0.1 {
            return Ok(now);
        }
        before = now;
    }
}

fn resident(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? * 1024.0 / 1e6)
}

/// Processor time of a process and all of its threads.
fn processor_time(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("no name")?;
    let ticks: u64 = fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().unwrap_or(0)).sum();
    // USER_HZ is 100 on every Linux.
    Ok(Duration::from_millis(ticks * 10))
}

/// The process with the simulated workers. They end with its standard input.
struct Simulated(Child);

impl Simulated {
    fn start(swarm: &Swarm, workers: usize) -> Result<Simulated> {
        let line = swarm.command(&["join-line", "--quiet", "--uses", &workers.to_string()]).output()?;
        ensure!(line.status.success(), "no join line: {}", String::from_utf8_lossy(&line.stderr));
        let mut child = Command::new(std::env::current_exe()?)
            .args(["simulate", &workers.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = child.stdin.as_mut().context("no input")?;
        input.write_all(&line.stdout)?;
        input.flush()?;
        let mut ready = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut ready)?;
        ensure!(ready.trim() == "ready", "the simulated workers did not register");
        Ok(Simulated(child))
    }

    fn stop(&mut self) -> Result<()> {
        drop(self.0.stdin.take());
        ensure!(self.0.wait()?.success(), "a simulated worker failed");
        Ok(())
    }
}

/// The life of the other process.
pub(crate) fn simulate(workers: &str) -> Result<()> {
    let workers: usize = workers.parse()?;
    let mut line = String::new();
    let mut input = BufReader::new(std::io::stdin());
    input.read_line(&mut line)?;
    let word = line.split_whitespace().last().context("no join line")?;
    let ticket = Ticket::parse(word, TicketKind::Join)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut all = tokio::task::JoinSet::new();
        for number in 0..workers {
            let worker = Worker::open(&ticket, number).await?;
            all.spawn(worker.run());
        }
        println!("ready");
        let closed = tokio::task::spawn_blocking(move || input.read_to_end(&mut Vec::new()));
        tokio::select! {
            _ = closed => Ok(()),
            Some(ended) = all.join_next() => ended?,
        }
    })
}

/// One simulated worker.
struct Worker {
    connection: Connection,
    /// Ended and not acknowledged, of arrays.
    held: BTreeMap<(JobId, u32), BTreeSet<TaskId>>,
}

impl Worker {
    async fn open(ticket: &Ticket, number: usize) -> Result<Worker> {
        let mut target =
            DialTarget { addresses: ticket.addresses.clone(), authority: ticket.authority, identity: None, bind: None };
        let mut connection = dial(&target, PATIENCE).await?;
        let name = format!("simulated-{number:04}").parse()?;
        target.identity = Some(Arc::new(join(&mut connection, ticket, Some(name)).await?));
        let mut connection = dial(&target, PATIENCE).await?;
        greet(&mut connection, ours(PeerKind::Worker, None)).await?;
        let instance = InstanceId(essaim_net::ticket::random());
        let register = Register { instance, slots: SLOTS, ..Register::default() };
        connection.sender.control(Frame::of(Function::REGISTER, 1, &register))?;
        let answer = connection.reader.next().await?.context("the hub has left")?;
        ensure!(answer.function == Function::REGISTER, "the hub answers {:?}", answer.function);
        let _: Registered = answer.message()?;
        Ok(Worker { connection, held: BTreeMap::new() })
    }

    async fn run(mut self) -> Result<()> {
        let mut report = tokio::time::interval(REPORT_EVERY);
        loop {
            tokio::select! {
                frame = self.connection.reader.next() => match frame? {
                    Some(frame) => self.take(&frame)?,
                    None => bail!("the hub has left"),
                },
                _ = report.tick() => self.report()?,
            }
        }
    }

    fn take(&mut self, frame: &Frame) -> Result<()> {
        match frame.function {
            Function::START => self.start(&frame.message()?),
            Function::END_ACK_MANY => {
                let ack: EndAckMany = frame.message()?;
                for AttemptId { job, task, attempt } in ack.attempts() {
                    if let Some(held) = self.held.get_mut(&(job, attempt)) {
                        held.remove(&task);
                    }
                }
                self.held.retain(|_, held| !held.is_empty());
                Ok(())
            }
            // All have ended that it was given.
            Function::TAKE_BACK => {
                let TakeBack { job, .. } = frame.message()?;
                self.send(Function::GIVEN_BACK, &GivenBack { job, tasks: Vec::new() })
            }
            _ => Ok(()),
        }
    }

    fn start(&mut self, start: &Start) -> Result<()> {
        let AttemptId { job, attempt, .. } = start.attempt;
        if start.tasks.is_none() {
            return self.send(Function::ENDED, &Ended { attempt: start.attempt, result: result(start.attempt.task) });
        }
        let tasks: Vec<TaskId> = start.attempts().map(|attempt| attempt.task).collect();
        self.held.entry((job, attempt)).or_default().extend(&tasks);
        for tasks in tasks.chunks(ENDS_MAX) {
            let end = |task: &TaskId| {
                let (stdout, stderr) = (Vec::new(), Vec::new());
                TaskEnd { task: *task, attempt, result: result(*task), stdout, stderr }
            };
            self.send(Function::ENDED_MANY, &EndedMany { job, ends: tasks.iter().map(end).collect() })?;
        }
        Ok(())
    }

    fn report(&self) -> Result<()> {
        let held = |((job, attempt), tasks): (&(JobId, u32), &BTreeSet<TaskId>)| {
            let tasks = tasks.iter().copied().collect();
            HeldMany { job: *job, attempt: *attempt, tasks }
        };
        let held_many = self.held.iter().map(held).collect();
        self.send(Function::REPORT, &Report { held_many, ..Report::default() })
    }

    fn send(&self, function: Function, message: &impl serde::Serialize) -> Result<()> {
        Ok(self.connection.sender.control(Frame::of(function, 0, message))?)
    }
}

/// An exit code and a usage of its own: one in a thousand fails.
fn result(task: TaskId) -> TaskResult {
    let fails = task.0.is_multiple_of(1_000);
    TaskResult {
        verdict: if fails { Verdict::RuntimeError } else { Verdict::Ok },
        exit_code: Some(if fails { 1 + (task.0 / 1_000 % 100) as i32 } else { 0 }),
        wall_ms: u64::from(task.0 % 7),
        cpu_ms: u64::from(task.0 % 5),
        memory_peak_bytes: 1 << 20 | u64::from(task.0 % 4_096) << 8,
        isolation: Isolation::None,
        ..TaskResult::default()
    }
}
