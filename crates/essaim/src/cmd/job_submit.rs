//! `job submit`: the jobs of a file, all of them or none.
//!
//! `cmd` calls [`run`]. Always true: everything that can be checked here is, before a hub is asked for anything; when the
//! hub refuses one, those before it are cancelled and that is said.
//! Deliberately not here: what a file may say (`job_file`), bringing one job to the hub (`submit`), waiting (`cmd::job`).

use super::{Context, job};
use crate::cli::Submit;
use crate::exit::{CANCELLED, Failure, OK, Outcome};
use crate::job_file::{self, EXAMPLE, Jobs, Planned};
use crate::link::Link;
use crate::signals::Interrupts;
use crate::submit::{Manner, hand_over};
use essaim_proto::api::{JobCancel, JobShow};
use essaim_proto::job::{JobKind, JobSpec};
use essaim_proto::{JobId, SubmitKey};
use serde::Serialize;
use std::collections::BTreeMap;

/// A job that was submitted.
#[derive(Serialize)]
struct Submitted<'a> {
    name: &'a str,
    job: JobId,
}

/// A job that would be.
#[derive(Serialize)]
struct Wanted<'a> {
    name: &'a str,
    after: Vec<Awaited<'a>>,
    spec: JobSpec,
}

/// A job of the file by its name, one of the hub by its number.
#[derive(Serialize)]
#[serde(untagged)]
enum Awaited<'a> {
    Name(&'a str),
    Number(JobId),
}

pub(super) fn run(context: &Context, words: Submit) -> Outcome {
    let Some(file) = words.file else {
        // clap lets nothing else be left out.
        return context.printer.data(EXAMPLE.trim_end()).map(|()| OK);
    };
    let jobs = job_file::read(&file)?;
    jobs.list.iter().filter_map(|job| job.job.note.as_ref()).for_each(|note| context.printer.note(note));
    if words.dry_run {
        return show(context, &jobs).map(|()| OK);
    }
    if let Some((_, place)) = jobs.list.iter().find_map(|job| job.on_end.as_ref()).filter(|_| !words.wait) {
        let message = "a command of `notify` runs here when the job ends, and nobody is here then";
        let failure = Failure::usage("bad_job_file", message);
        return Err(place.blame(failure.hint("say --wait, or give a URL, which the hub tells")));
    }
    super::on_one_thread(async {
        let mut link = context.link().await?;
        let code = submit(context, &mut link, jobs, words.wait).await?;
        link.close().await;
        Ok(code)
    })
}

fn show(context: &Context, jobs: &Jobs) -> Result<(), Failure> {
    let in_order = || jobs.order.iter().map(|index| &jobs.list[*index]);
    if context.printer.is_json() {
        let wanted: Vec<Wanted<'_>> = in_order().map(|job| wanted(jobs, job)).collect();
        return context.printer.json(&wanted);
    }
    let row = |job: &Planned| {
        let spec = &job.job.spec;
        let tasks = spec.array.as_ref().map_or_else(|| "1".to_owned(), |array| array.tasks.len().to_string());
        let words = match spec.kind {
            JobKind::Command => spec.args.join(" "),
            _ => [std::slice::from_ref(&spec.entry), &spec.args].concat().join(" "),
        };
        let after = awaited(jobs, job).into_iter().map(|other| match other {
            Awaited::Name(name) => name.to_owned(),
            Awaited::Number(job) => job.to_string(),
        });
        vec![job.name.clone(), after.collect::<Vec<_>>().join(" "), tasks, spec.files.len().to_string(), words]
    };
    let rows: Vec<Vec<String>> = in_order().map(row).collect();
    context.printer.table(&["NAME", "AFTER", "TASKS", "FILES", "RUNS"], &rows)
}

fn awaited<'a>(jobs: &'a Jobs, job: &Planned) -> Vec<Awaited<'a>> {
    let own = job.awaits.iter().map(|index| Awaited::Name(&jobs.list[*index].name));
    own.chain(job.after.iter().map(|(number, _)| Awaited::Number(*number))).collect()
}

fn wanted<'a>(jobs: &'a Jobs, job: &'a Planned) -> Wanted<'a> {
    let mut spec = job.job.spec.clone();
    // The bytes of the files are there for whoever wants to see them.
    let lines = spec.array.as_mut().and_then(|array| array.lines.as_mut());
    spec.files.iter_mut().chain(lines).for_each(|file| file.inline = None);
    Wanted { name: &job.name, after: awaited(jobs, job), spec }
}

async fn submit(context: &Context, link: &mut Link, mut jobs: Jobs, wait: bool) -> Outcome {
    let mut interrupts = Interrupts::listen()?;
    for (number, place) in jobs.list.iter().flat_map(|job| &job.after) {
        link.request(&JobShow { job: *number }).await.map_err(|failure| place.blame(failure))?;
    }
    let mut numbers: BTreeMap<usize, JobId> = BTreeMap::new();
    for index in std::mem::take(&mut jobs.order) {
        let planned = &mut jobs.list[index];
        let own = planned.awaits.iter().filter_map(|other| numbers.get(other).copied());
        planned.job.spec.after = own.chain(planned.after.iter().map(|(number, _)| *number)).collect();
        let key = SubmitKey(essaim_net::ticket::random());
        let manner = Manner { key, watch: false, in_order: false };
        match hand_over(context.printer, link, &planned.job, manner, &mut interrupts).await {
            Ok(Some((submitted, _))) => {
                numbers.insert(index, submitted.job);
            }
            Ok(None) => {
                if let Some(said) = take_back(link, &numbers).await {
                    context.printer.note(&said);
                }
                return Ok(CANCELLED);
            }
            Err(failure) => {
                let said = take_back(link, &numbers).await;
                let failure = planned.place.blame(failure);
                return Err(said.map_or_else(|| failure.clone(), |said| failure.clone().hint(said)));
            }
        }
    }
    drop(interrupts);
    tell(context, &jobs, &numbers)?;
    match wait {
        true => {
            let on_end = |index: usize| jobs.list[index].on_end.as_ref().map(|(command, _)| command.clone());
            let all = numbers.into_iter().map(|(index, job)| (job, on_end(index)));
            job::wait(context, link, all.collect()).await
        }
        false => Ok(OK),
    }
}

fn tell(context: &Context, jobs: &Jobs, numbers: &BTreeMap<usize, JobId>) -> Result<(), Failure> {
    let all = numbers.iter().map(|(index, job)| Submitted { name: &jobs.list[*index].name, job: *job });
    if context.printer.is_json() {
        return context.printer.json(&all.collect::<Vec<_>>());
    }
    let lines: Vec<String> = all.map(|submitted| format!("{} {}", submitted.name, submitted.job)).collect();
    context.printer.data(&lines.join("\n"))
}

/// Cancels what was submitted already, those first that wait for others. Says what became of it.
async fn take_back(link: &mut Link, numbers: &BTreeMap<usize, JobId>) -> Option<String> {
    let mut all: Vec<JobId> = numbers.values().copied().collect();
    all.sort_unstable();
    let (mut cancelled, mut left) = (Vec::new(), Vec::new());
    for job in all.into_iter().rev() {
        match link.request(&JobCancel { job, tasks: None }).await {
            Ok(_) => cancelled.push(job.to_string()),
            Err(failure) => left.push(format!("job {job}, submitted before, stays: {}", failure.message)),
        }
    }
    cancelled.reverse();
    if !cancelled.is_empty() {
        left.insert(0, format!("what was submitted before is cancelled ({})", cancelled.join(", ")));
    }
    (!left.is_empty()).then(|| left.join("; "))
}
