//! `job`: see and steer jobs.
//!
//! Always true: `logs` and `wait` only look on, so Ctrl+C leaves the job alone.
//! Deliberately not here: following (`follow`), exit codes (`exit`).

use super::node::print_lines;
use super::{Context, ago};
use crate::cli::Job;
use crate::exit::{CANCELLED, Failure, OK, Outcome, WORK_FAILED};
use crate::follow::{End, Follow, Manner, OnInterrupt};
use crate::link::Link;
use crate::screen::{Screen, Shown};
use crate::signals::Interrupts;
use essaim_proto::JobId;
use essaim_proto::api::{JobCancel, JobList, JobShow, JobView, Stream};
use essaim_proto::job::TaskView;
use essaim_proto::limits::PAGE_ENTRIES_MAX;
use essaim_view::Language;
use serde::Serialize;

#[derive(Serialize)]
struct Cancelled {
    cancelled: Vec<JobId>,
}

pub(super) async fn run(context: &Context, command: Job) -> Outcome {
    let mut link = context.link().await?;
    let code = match command {
        Job::List { live, limit } => list(context, &link, live, limit).await?,
        Job::Show { job } => show(context, &link, job).await?,
        Job::Logs { job, no_follow, stdout, stderr, raw } => {
            let only = match (stdout, stderr) {
                (true, _) => Some(Stream::Stdout),
                (_, true) => Some(Stream::Stderr),
                _ => None,
            };
            logs(context, &mut link, job, no_follow, Shown { only, raw }).await?
        }
        Job::Wait { job } => wait(context, &mut link, job).await?,
        Job::Cancel { jobs } => cancel(context, &link, jobs).await?,
    };
    link.close().await;
    Ok(code)
}

async fn list(context: &Context, link: &Link, live_only: bool, limit: usize) -> Outcome {
    let mut jobs: Vec<JobView> = Vec::new();
    while jobs.len() < limit {
        let before = jobs.last().map(|job| job.job);
        let page_limit = (limit - jobs.len()).min(PAGE_ENTRIES_MAX) as u32;
        let page = link.request(&JobList { before, limit: page_limit, live_only, ..JobList::default() }).await?;
        let is_last = !page.more || page.jobs.is_empty();
        jobs.extend(page.jobs);
        if is_last {
            break;
        }
    }
    if context.printer.is_json() {
        context.printer.json(&jobs)?;
        return Ok(OK);
    }
    let rows: Vec<Vec<String>> = jobs.iter().map(row).collect();
    context.printer.table(&["JOB", "NAME", "LANGUAGE", "STATE", "NODE", "TIME", "SUBMITTED"], &rows)?;
    Ok(OK)
}

fn row(job: &JobView) -> Vec<String> {
    let task = job.tasks.first();
    let result = task.and_then(|task| task.result.as_ref());
    let state = match result {
        Some(result) => essaim_view::outcome(result, Language::English),
        None => essaim_view::job_state(job.state, Language::English).to_owned(),
    };
    vec![
        job.job.to_string(),
        job.name.clone(),
        job.lang.clone(),
        state,
        task.map(node_of).unwrap_or_default(),
        result.map(|result| essaim_view::duration(result.wall_ms)).unwrap_or_default(),
        ago(job.submitted_ms),
    ]
}

/// Where a task is, or was.
fn node_of(task: &TaskView) -> String {
    let ended_on = || Some(task.result.as_ref()?.node.clone());
    task.node.clone().or_else(ended_on).unwrap_or_default()
}

async fn show(context: &Context, link: &Link, job: JobId) -> Outcome {
    let job = link.request(&JobShow { job }).await?;
    if context.printer.is_json() {
        context.printer.json(&job)?;
        return Ok(OK);
    }
    let mut lines = vec![
        ("job", job.job.to_string()),
        ("name", job.name.clone()),
        ("owner", job.owner.clone()),
        ("language", job.lang.clone()),
        ("state", essaim_view::job_state(job.state, Language::English).to_owned()),
        ("submitted", ago(job.submitted_ms)),
        ("ended", job.ended_ms.map(ago).unwrap_or_default()),
        ("arguments", job.args.join(" ")),
    ];
    for task in &job.tasks {
        lines.push(("node", node_of(task)));
        lines.push(("attempt", if task.attempt > 1 { task.attempt.to_string() } else { String::new() }));
        if let Some(result) = &task.result {
            lines.push(("outcome", essaim_view::outcome(result, Language::English)));
            lines.push(("time", essaim_view::duration(result.wall_ms)));
            lines.push(("processor", essaim_view::duration(result.cpu_ms)));
            lines.push(("memory", essaim_view::bytes(result.memory_peak_bytes)));
            let bytes = essaim_view::bytes;
            lines
                .push(("output", format!("{} + {} of errors", bytes(result.stdout_bytes), bytes(result.stderr_bytes))));
        } else {
            let phase = task.phase.map(|phase| essaim_view::phase(phase, Language::English).to_owned());
            lines.push(("phase", phase.unwrap_or_default()));
            let reason = task.reason.as_ref().map(|reason| essaim_view::reason(reason, Language::English));
            lines.push(("why", reason.unwrap_or_default()));
        }
    }
    print_lines(context, &lines)?;
    Ok(OK)
}

async fn follow(
    context: &Context,
    link: &mut Link,
    screen: &mut Screen,
    job: JobId,
    (output, no_follow): (bool, bool),
) -> Result<End, Failure> {
    let mut interrupts = Interrupts::listen()?;
    let manner = Manner {
        output,
        no_follow,
        on_interrupt: OnInterrupt::Leave,
        to_person: context.printer.stderr_is_terminal(),
        from_person: false,
        is_embedded: false,
        key: None,
    };
    Follow::new(link, screen, &mut interrupts, job, manner).finish(None).await
}

async fn logs(context: &Context, link: &mut Link, job: JobId, no_follow: bool, shown: Shown) -> Outcome {
    let mut screen = Screen::new(context.printer, shown)?;
    let end = follow(context, link, &mut screen, job, (true, no_follow)).await;
    if let Ok(End::Over(event)) = &end
        && let Some((task, result)) = event.task.as_ref().and_then(|task| Some((task.task, task.result.as_ref()?)))
    {
        screen.result(job, task, result);
    }
    let written = screen.finish().await;
    let end = end?;
    written?;
    Ok(if matches!(end, End::Interrupted) { CANCELLED } else { OK })
}

async fn wait(context: &Context, link: &mut Link, job: JobId) -> Outcome {
    let mut screen = Screen::new(context.printer, Shown::default())?;
    let end = follow(context, link, &mut screen, job, (false, false)).await;
    let code = match &end {
        Ok(End::Over(event)) => super::run::ended(&mut screen, event),
        _ => CANCELLED,
    };
    let written = screen.finish().await;
    end?;
    written.map(|()| code)
}

/// Cancels each; a job that cannot be cancelled does not keep the others from it.
async fn cancel(context: &Context, link: &Link, jobs: Vec<JobId>) -> Outcome {
    let mut cancelled = Vec::new();
    let mut failures = Vec::new();
    for job in jobs {
        match link.request(&JobCancel { job }).await {
            Ok(_) => cancelled.push(job),
            Err(failure) => failures.push(failure),
        }
    }
    if context.printer.is_json() {
        context.printer.json(&Cancelled { cancelled })?;
    } else {
        for job in cancelled {
            context.printer.note(&format!("job {job} is cancelled"));
        }
    }
    match failures.len() {
        0 => Ok(OK),
        1 => Err(failures.remove(0)),
        _ => {
            failures.iter().for_each(|failure| context.printer.failure(failure));
            Ok(WORK_FAILED)
        }
    }
}
