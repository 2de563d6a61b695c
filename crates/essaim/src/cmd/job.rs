//! `job`: see and steer jobs.
//!
//! Always true: `logs` and `wait` only look on, so Ctrl+C leaves the job alone.
//! Deliberately not here: lists (`job_list`), following (`follow`), exit codes (`exit`).

use super::node::print_lines;
use super::{Context, ago};
use crate::cli::Job;
use crate::exit::{CANCELLED, Failure, OK, Outcome, WORK_FAILED};
use crate::follow::{End, Follow, Manner, OnInterrupt};
use crate::link::Link;
use crate::screen::{Screen, Shown};
use crate::signals::Interrupts;
use essaim_proto::api::{JobCancel, JobShow, OutputFrom, Stream};
use essaim_proto::id::TASK_ONE;
use essaim_proto::job::TaskView;
use essaim_proto::{AttemptId, JobId};
use essaim_view::Language;
use serde::Serialize;

#[derive(Serialize)]
struct Cancelled {
    cancelled: Vec<JobId>,
}

pub(super) async fn run(context: &Context, command: Job) -> Outcome {
    let mut link = context.link().await?;
    let code = match command {
        Job::List(filter) => super::job_list::run(context, &mut link, filter).await?,
        Job::Show { job } => show(context, &mut link, job).await?,
        Job::Logs { job, no_follow, stdout, stderr, from, raw } => {
            let only = match (stdout || from.is_some(), stderr) {
                (_, true) => Some(Stream::Stderr),
                (true, _) => Some(Stream::Stdout),
                _ => None,
            };
            let part = Part { no_follow, from: from.unwrap_or(0) };
            logs(context, &mut link, job, part, Shown { only, raw }).await?
        }
        Job::Wait { job } => wait(context, &mut link, job).await?,
        Job::Cancel { jobs } => cancel(context, &mut link, jobs).await?,
    };
    link.close().await;
    Ok(code)
}

/// Where a task is, or was.
pub(super) fn node_of(task: &TaskView) -> String {
    let ended_on = || Some(task.result.as_ref()?.node.clone());
    task.node.clone().or_else(ended_on).unwrap_or_default()
}

async fn show(context: &Context, link: &mut Link, job: JobId) -> Outcome {
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

/// How much of the output `logs` shows.
#[derive(Debug, Clone, Copy)]
struct Part {
    /// End at what is there?
    no_follow: bool,
    /// The first byte of the one stream that is shown, when it is not 0.
    from: u64,
}

fn manner(context: &Context, output: bool, no_follow: bool) -> Manner {
    Manner {
        output,
        no_follow,
        on_interrupt: OnInterrupt::Leave,
        to_person: context.printer.stderr_is_terminal(),
        from_person: false,
        is_embedded: false,
        key: None,
    }
}

/// Where to begin: offsets count in the present attempt; one that comes later is shown from its beginning.
async fn begin(link: &mut Link, job: JobId, from: u64, only: Option<Stream>) -> Result<OutputFrom, Failure> {
    if from == 0 {
        return Ok(OutputFrom::default());
    }
    let view = link.request(&JobShow { job }).await?;
    let attempt = view.tasks.first().map_or(1, |task| task.attempt.max(1));
    let attempt = AttemptId { job, task: TASK_ONE, attempt };
    Ok(match only {
        Some(Stream::Stderr) => OutputFrom { attempt, stdout: 0, stderr: from },
        _ => OutputFrom { attempt, stdout: from, stderr: 0 },
    })
}

async fn logs(context: &Context, link: &mut Link, job: JobId, part: Part, shown: Shown) -> Outcome {
    let from = begin(link, job, part.from, shown.only).await?;
    let mut screen = Screen::new(context.printer, shown)?;
    let mut interrupts = Interrupts::listen()?;
    let manner = manner(context, true, part.no_follow);
    let end = Follow::new(link, &mut screen, &mut interrupts, job, manner).beginning_at(from).finish(None).await;
    if let Ok(End::Over(event)) = &end
        && let Some((task, result)) = event.task.as_ref().and_then(|task| Some((task.task, task.result.as_ref()?)))
    {
        screen.result(job, task, result);
    }
    let is_damaged = screen.is_damaged();
    let written = screen.finish().await;
    let end = end?;
    written?;
    Ok(match end {
        End::Interrupted => CANCELLED,
        End::Over(_) if is_damaged => WORK_FAILED,
        End::Over(_) => OK,
    })
}

async fn wait(context: &Context, link: &mut Link, job: JobId) -> Outcome {
    let mut screen = Screen::new(context.printer, Shown::default())?;
    let mut interrupts = Interrupts::listen()?;
    let manner = manner(context, false, false);
    let end = Follow::new(link, &mut screen, &mut interrupts, job, manner).finish(None).await;
    let code = match &end {
        Ok(End::Over(event)) => super::run::ended(&mut screen, event),
        _ => CANCELLED,
    };
    let written = screen.finish().await;
    end?;
    written.map(|()| code)
}

/// Cancels each; a job that cannot be cancelled does not keep the others from it.
async fn cancel(context: &Context, link: &mut Link, jobs: Vec<JobId>) -> Outcome {
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
