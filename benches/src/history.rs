//! A hub with 100,000 finished jobs: how long it takes to start, to list, to filter, to search.
//!
//! `main` calls [`history`]. The folder is filled the way a hub fills it: the real state machine decides, its records go
//! to the real store; then the real binary opens it. Always true: the hub has caught up once before anything is timed.
//! Deliberately not here: assertions; what running so many jobs costs.

use crate::ask::connect;
use crate::{Swarm, load, row};
use anyhow::{Context, Result, ensure};
use essaim_core::Now;
use essaim_core::hub::{Answer, Durable, Effect, Hub, Input, Out, SessionId, ToWorker, encode_batch};
use essaim_core::lang::LanguageTable;
use essaim_net::Client;
use essaim_proto::api::JobList;
use essaim_proto::hello::Role;
use essaim_proto::job::{JobKind, JobSpec, JobState, TaskResult, Verdict};
use essaim_proto::link::{Ended, Register};
use essaim_proto::{BlobHash, InstanceId, JobId, SubmitKey};
use essaim_store::{Seq, Store, StoreLimits, Term};
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const JOBS: u64 = 100_000;
/// Jobs whose records make one batch.
const BATCH_JOBS: u64 = 200;
const ROUNDS: usize = 20;

/// Starts of the hub, and requests to it.
pub(crate) fn history(binary: &Path) -> Result<()> {
    let mut home = tempfile::tempdir()?;
    fill(&home.path().join("store"))?;
    // The first start makes the catalog from the journal, once.
    let swarm = Swarm::on(binary, home, &["--local-workers", "0"])?;
    home = swarm.stop()?;
    let mut starts = Vec::new();
    for _ in 0..5 {
        let begun = Instant::now();
        let swarm = Swarm::on(binary, home, &["--local-workers", "0"])?;
        starts.push(begun.elapsed());
        home = swarm.stop()?;
    }
    println!();
    println!("load {}", load());
    println!("| a hub with {JOBS} finished jobs | median | p95 | how | |");
    println!("|---|---:|---:|---|---:|");
    row("`essaim up`, start to ready line", starts, "5 starts", "limit 1 s");
    let swarm = Swarm::on(binary, home, &["--local-workers", "0"])?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = runtime.block_on(connect(swarm.home.path()))?;
    let list = |limit| JobList { limit, ..JobList::default() };
    let name = |text: &str| Some(text.to_owned());
    let questions = [
        ("the newest 50", list(50), 50),
        ("50 in the middle", JobList { before: Some(JobId(JOBS / 2)), ..list(50) }, 50),
        ("failed ones", JobList { states: vec![JobState::Failed], ..list(50) }, 50),
        ("of one key and one node", JobList { owner: name("admin"), node: name("n1"), ..list(50) }, 50),
        ("search, one match in a thousand", JobList { text: name("RARE"), ..list(50) }, 50),
        ("search, one match in all", JobList { text: name("needle"), ..list(50) }, 1),
        ("search, no match", JobList { text: name("nothing like it"), ..list(50) }, 0),
    ];
    for (what, question, expected) in questions {
        let times = runtime.block_on(ask(&client, &question, expected)).context(what)?;
        row(&format!("list: {what}"), times, "request to answer", "limit 50 ms");
    }
    swarm.stop()?;
    Ok(())
}

async fn ask(client: &Client, question: &JobList, expected: usize) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        let page = client.request(question).await?;
        times.push(begun.elapsed());
        ensure!(page.jobs.len() == expected, "{} jobs instead of {expected}", page.jobs.len());
    }
    Ok(times)
}

/// Lets a hub without a shell accept, place and end all jobs, and keeps its records.
fn fill(folder: &Path) -> Result<()> {
    let store = Store::open(folder, StoreLimits::default())?;
    let mut writer = Writer { term: store.lead.acquire("fill", 0, 1_000)?, at: store.journal.last(), store };
    let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64;
    let mut now = Now { mono_ms: 0, unix_ms: unix_ms - 3_600_000 };
    let mut hub = Hub::new(now, Durable::default(), LanguageTable::built_in());
    let (client, worker, secret) = (SessionId(1), SessionId(2), BlobHash::of(b"fill"));
    let mut out = Out::default();
    hub.step(now, Input::LocalKey { name: "admin".parse()?, role: Role::Admin, secret }, &mut out);
    hub.step(now, Input::ClientOpened { session: client, secret }, &mut out);
    let register = Box::new(Register { instance: InstanceId([1; 16]), slots: 4, ..Register::default() });
    hub.step(now, Input::Register { session: worker, name: "n1".parse()?, register }, &mut out);
    for number in 1..=JOBS {
        now.unix_ms += 30;
        now.mono_ms += 1;
        let name = match number {
            n if n == JOBS / 3 => format!("needle-{n}"),
            n if n % 1_000 == 0 => format!("rare-{n}"),
            n => format!("simulation-{n}.py"),
        };
        let spec = Box::new(JobSpec { kind: JobKind::Command, name, args: vec!["true".into()], ..JobSpec::default() });
        let key = SubmitKey(u128::from(number).to_le_bytes());
        hub.step(now, Input::Submit { session: client, request: number, key, spec }, &mut out);
        let attempt = started(&out.effects).context("the job was not placed")?;
        let verdict = if number % 10 == 3 { Verdict::RuntimeError } else { Verdict::Ok };
        let result = TaskResult { verdict, node: "n1".into(), attempt: 1, ..TaskResult::default() };
        hub.step(now, Input::Ended { session: worker, ended: Box::new(Ended { attempt, result }) }, &mut out);
        out.effects.clear();
        if number % BATCH_JOBS == 0 {
            writer.append(encode_batch(&std::mem::take(&mut out.records)))?;
        }
    }
    Ok(())
}

fn started(effects: &[Effect]) -> Option<essaim_proto::AttemptId> {
    let accepted = effects.iter().any(|e| matches!(e, Effect::Answer { answer: Answer::Submitted { .. }, .. }));
    effects.iter().filter(|_| accepted).find_map(|effect| match effect {
        Effect::Tell { message: ToWorker::Start(start), .. } => Some(start.attempt),
        _ => None,
    })
}

struct Writer {
    store: Store,
    term: Term,
    at: Seq,
}

impl Writer {
    fn append(&mut self, batch: Vec<u8>) -> Result<()> {
        let (told, end) = channel();
        self.store.journal.append(self.at, self.term, batch, Box::new(move |end| drop(told.send(end))));
        self.at = end.recv()??;
        Ok(())
    }
}
