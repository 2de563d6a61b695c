//! `job`: see and steer jobs.
//!
//! Always true: `logs` and `wait` only look on, so Ctrl+C leaves the job alone.
//! Deliberately not here: lists (`job_list`), one job in full (`job_show`), running again (`job_rerun`), following
//! (`follow`), exit codes (`exit`).

use super::{Context, job_list, job_rerun, job_show};
use crate::cli::Job;
use crate::exit::{CANCELLED, Failure, OK, Outcome, Severity, WORK_FAILED};
use crate::follow::{End, Follow, Manner, OnInterrupt, named};
use crate::link::Link;
use crate::notify::{self, Notify};
use crate::screen::{Screen, Shown};
use crate::signals::Interrupts;
use crate::tally::Tally;
use essaim_proto::api::{JobCancel, JobShow, OutputFrom, Stream, TaskList};
use essaim_proto::id::TASK_ONE;
use essaim_proto::job::TaskView;
use essaim_proto::{AttemptId, JobId, TaskId, TaskSet};
use serde::Serialize;

#[derive(Serialize)]
struct Cancelled {
    cancelled: Vec<JobId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tasks: Option<TaskSet>,
}

pub(super) async fn run(context: &Context, command: Job) -> Outcome {
    let mut link = context.link().await?;
    let code = match command {
        Job::Submit(_) => unreachable!("it may need no hub: `cmd` gives it to `job_submit`"),
        Job::List(filter) => job_list::run(context, &mut link, filter).await?,
        Job::Show { job, tasks: false, .. } => job_show::show(context, &mut link, job).await?,
        Job::Show { job, state, limit, .. } => job_show::tasks(context, &mut link, job, state, limit).await?,
        Job::Rerun { job, only, follow, prefix, keep_order } => {
            let shape = job_rerun::Shape { follow, prefix, in_order: keep_order };
            job_rerun::run(context, &mut link, job, only, shape).await?
        }
        Job::Logs { job, no_follow, stdout, stderr, from, raw, task, prefix, keep_order } => {
            let only = match (stdout || from.is_some(), stderr) {
                (_, true) => Some(Stream::Stderr),
                (true, _) => Some(Stream::Stdout),
                _ => None,
            };
            if prefix && context.printer.is_json() {
                let message = "--json names the task in each of its lines; leave out --prefix";
                return Err(Failure::usage("bad_words", message));
            }
            let part = Part { no_follow, from: from.unwrap_or(0), tasks: task, in_order: keep_order };
            logs(context, &mut link, job, part, Shown { only, raw, prefix }).await?
        }
        Job::Wait { jobs, notify } => {
            let command = match notify {
                Some(Notify::Url(_)) => {
                    let message = "a URL is told by the hub, for a job that was submitted with it";
                    return Err(Failure::usage("bad_words", message)
                        .hint("give it to `essaim run --notify`, or write a command here, such as curl"));
                }
                Some(Notify::Command(command)) => Some(command),
                None => None,
            };
            let jobs = jobs.into_iter().map(|job| (job, command.clone())).collect();
            wait(context, &mut link, jobs).await?
        }
        Job::Cancel { jobs, only } => cancel(context, &mut link, jobs, only.as_ref()).await?,
    };
    link.close().await;
    Ok(code)
}

/// Where a task is, or was.
pub(super) fn node_of(task: &TaskView) -> String {
    let ended_on = || Some(task.result.as_ref()?.node.clone());
    task.node.clone().or_else(ended_on).unwrap_or_default()
}

/// How much of the output `logs` shows.
#[derive(Debug, Clone)]
struct Part {
    /// End at what is there?
    no_follow: bool,
    /// The first byte of the one stream that is shown, when it is not 0.
    from: u64,
    /// Of an array: only these tasks.
    tasks: Option<TaskSet>,
    /// Of an array: one task after the other.
    in_order: bool,
}

fn manner(context: &Context, output: bool, no_follow: bool) -> Manner {
    Manner {
        output,
        no_follow,
        on_interrupt: OnInterrupt::Leave,
        to_person: context.printer.stderr_is_terminal(),
        from_person: false,
        is_embedded: false,
        retries: true,
        key: None,
    }
}

/// What is known of a job that may be an array, before it is followed; `None`: it is none.
pub(super) async fn tally_of(link: &mut Link, job: JobId, in_order: bool) -> Option<Tally> {
    // Whatever is wrong with the question is wrong with the watch too, which tells.
    let view = link.request(&JobShow { job }).await.ok()?;
    view.array.map(|tasks| Tally::new(tasks, in_order))
}

/// Where to begin: offsets count in the present attempt; one that comes later is shown from its beginning.
async fn begin(
    link: &mut Link,
    job: JobId,
    task: TaskId,
    from: u64,
    only: Option<Stream>,
) -> Result<OutputFrom, Failure> {
    if from == 0 {
        return Ok(OutputFrom::default());
    }
    let before = task.0.checked_sub(1).map(TaskId);
    let list = TaskList { job, after: before, limit: 1, ..TaskList::default() };
    let view = match task {
        TASK_ONE => link.request(&JobShow { job }).await?.tasks.into_iter().next(),
        _ => link.request(&list).await?.tasks.into_iter().find(|view| view.task == task),
    };
    let attempt = AttemptId { job, task, attempt: view.map_or(1, |view| view.attempt.max(1)) };
    Ok(match only {
        Some(Stream::Stderr) => OutputFrom { attempt, stdout: 0, stderr: from },
        _ => OutputFrom { attempt, stdout: from, stderr: 0 },
    })
}

/// What of an array `logs` is about.
async fn part_of(link: &mut Link, job: JobId, part: &Part) -> Result<(Option<Tally>, TaskId), Failure> {
    let Some(all) = tally_of(link, job, part.in_order).await else {
        return match &part.tasks {
            Some(tasks) if *tasks != TaskSet::one(TASK_ONE) => {
                Err(Failure::usage("no_array", format!("job {job} is no array: it has task 1 only")))
            }
            _ => Ok((None, TASK_ONE)),
        };
    };
    let Some(tasks) = &part.tasks else {
        return match part.from {
            0 => Ok((Some(all), TASK_ONE)),
            _ => {
                Err(Failure::usage("bad_words", format!("job {job} is an array: say with --task where --from counts")))
            }
        };
    };
    if let Some(other) = tasks.iter().find(|task| !all.tasks().contains(*task)) {
        return Err(Failure::usage("no_task", format!("job {job} has no task {other}: it has {}", all.tasks())));
    }
    if part.from > 0 && tasks.len() > 1 {
        return Err(Failure::usage("bad_words", "--from counts in the output of one task; name one with --task"));
    }
    let first = tasks.first().unwrap_or(TASK_ONE);
    Ok((Some(Tally::new(tasks.clone(), part.in_order).of_part()), first))
}

async fn logs(context: &Context, link: &mut Link, job: JobId, part: Part, shown: Shown) -> Outcome {
    let (array, task) = part_of(link, job, &part).await?;
    let from = begin(link, job, task, part.from, shown.only).await?;
    let mut screen = Screen::new(context.printer, shown)?;
    let mut interrupts = Interrupts::listen()?;
    let manner = manner(context, true, part.no_follow);
    let follow = Follow::new(link, &mut screen, &mut interrupts, job, manner).beginning_at(from).with_array(array);
    let end = follow.finish(None).await;
    match &end {
        Ok(End::Over(event)) => {
            if let Some((task, result)) = event.task.as_ref().and_then(|task| Some((task.task, task.result.as_ref()?)))
            {
                screen.result(job, task, result);
            }
        }
        Ok(End::Array(end)) => screen.array_over(job, end.state, end.counts, &end.failed),
        Ok(End::Interrupted) | Err(_) => {}
    }
    let is_damaged = screen.is_damaged();
    let written = screen.finish().await;
    let end = end?;
    written?;
    Ok(match end {
        End::Interrupted => CANCELLED,
        End::Over(_) | End::Array(_) if is_damaged => WORK_FAILED,
        End::Over(_) | End::Array(_) => OK,
    })
}

/// Waits for each and runs its command then; the worst end counts.
pub(super) async fn wait(context: &Context, link: &mut Link, jobs: Vec<(JobId, Option<String>)>) -> Outcome {
    let mut screen = Screen::new(context.printer, Shown::default())?;
    let mut interrupts = Interrupts::listen()?;
    let manner = manner(context, false, false);
    let mut worst = (Severity::default(), OK);
    let mut failed = None;
    for (job, command) in jobs {
        screen.show_one();
        let array = tally_of(link, job, false).await;
        let follow = Follow::new(link, &mut screen, &mut interrupts, job, manner).with_array(array);
        match follow.finish(None).await {
            Ok(end) => {
                let code = super::run::ended(&mut screen, &end);
                worst = worst.max((severity(&end), code));
                if matches!(end, End::Interrupted) {
                    break;
                }
                if let Some(command) = command {
                    notify::tell(context.printer, link, &mut interrupts, (job, code), &command).await;
                }
            }
            Err(failure) => {
                failed = Some(failure);
                break;
            }
        }
    }
    let written = screen.finish().await;
    failed.map_or(Ok(()), Err)?;
    written.map(|()| worst.1)
}

fn severity(end: &End) -> Severity {
    match end {
        End::Over(event) => {
            let result = event.task.as_ref().and_then(|task| task.result.as_ref());
            result.map_or(Severity::NOT_RUN, Severity::of)
        }
        End::Array(end) => end.severity,
        End::Interrupted => Severity::CANCELLED,
    }
}

/// Cancels each; a job that cannot be cancelled does not keep the others from it.
async fn cancel(context: &Context, link: &mut Link, jobs: Vec<JobId>, only: Option<&TaskSet>) -> Outcome {
    let mut cancelled = Vec::new();
    let mut failures = Vec::new();
    for job in jobs {
        match link.request(&JobCancel { job, tasks: only.cloned() }).await {
            Ok(_) => cancelled.push(job),
            Err(failure) => failures.push(failure),
        }
    }
    if context.printer.is_json() {
        context.printer.json(&Cancelled { cancelled, tasks: only.cloned() })?;
    } else {
        for job in cancelled {
            context.printer.note(&match only {
                Some(tasks) => format!("job {job}: {} cancelled", named(tasks)),
                None => format!("job {job} is cancelled"),
            });
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
