//! `job show`: one job in full, or the tasks of an array.
//!
//! `cmd::job` calls [`show`] and [`tasks`]. Always true: while something waits, every node that is ruled out is named with
//! its reason; an array tells of its tasks by counts and ranges, and of single ones only what is worth a line.
//! Deliberately not here: lists of jobs (`job_list`), sentences for reasons (`essaim-view`).

use super::job::node_of;
use super::node::print_lines;
use super::{Context, ago};
use crate::exit::{Failure, OK, Outcome};
use crate::follow::named;
use crate::link::Link;
use essaim_proto::JobId;
use essaim_proto::api::{JobShow, JobView, TaskList};
use essaim_proto::job::{Limit, Notice, TaskCounts, TaskState, TaskView};
use essaim_proto::limits::PAGE_ENTRIES_MAX;
use essaim_view::Language::English;

/// A line: what, and what is to be said.
type Line = (&'static str, String);

pub(super) async fn show(context: &Context, link: &mut Link, job: JobId) -> Outcome {
    let view = link.request(&JobShow { job }).await?;
    if context.printer.is_json() {
        context.printer.json(&view)?;
        return Ok(OK);
    }
    let mut lines = about(&view);
    match &view.array {
        None => view.tasks.iter().for_each(|task| about_task(task, &mut lines)),
        Some(_) if view.counts.failed > 0 => {
            let states = vec![TaskState::Failed];
            let list = TaskList { job, states, numbers_only: true, ..TaskList::default() };
            let failed = link.request(&list).await?.set;
            about_array(&view, &named(&failed), &mut lines);
        }
        Some(_) => about_array(&view, "", &mut lines),
    }
    waiting(&view, &mut lines);
    print_lines(context, &lines)?;
    Ok(OK)
}

fn about(job: &JobView) -> Vec<Line> {
    let needs = &job.needs;
    let labels: Vec<String> = needs.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let over = |is_said: bool, text: String| if is_said { text } else { String::new() };
    vec![
        ("job", job.job.to_string()),
        ("name", job.name.clone()),
        ("owner", job.owner.clone()),
        ("language", job.lang.clone()),
        ("state", essaim_view::job_state(job.state, English).to_owned()),
        ("submitted", ago(job.submitted_ms)),
        ("ended", job.ended_ms.map(ago).unwrap_or_default()),
        ("arguments", job.args.join(" ")),
        ("priority", over(job.priority != 0, job.priority.to_string())),
        ("slots", over(needs.cpus > 1, needs.cpus.to_string())),
        ("reserves", over(needs.memory_bytes > 0, format!("{} of memory", essaim_view::bytes(needs.memory_bytes)))),
        ("labels", labels.join(" ")),
        ("limits", limits(job)),
        ("notifies", notified(job)),
    ]
}

/// Limits that are not the usual ones, and what was asked for where the hub gave less.
fn limits(job: &JobView) -> String {
    let asked = |limit| job.clamped.iter().find(|cut| cut.limit == limit).map(|cut| cut.asked);
    let value = |limit, value| essaim_view::limit_value(limit, value, English);
    let shown = Limit::ALL.into_iter().filter_map(|limit| {
        let given = format!("{} {}", essaim_view::limit_flag(limit), value(limit, job.limits.get(limit)?));
        Some(match asked(limit) {
            None => given,
            Some(asked) => format!("{given} (asked for {})", value(limit, asked)),
        })
    });
    shown.collect::<Vec<_>>().join(", ")
}

/// Whom the hub tells of the job's end, and what became of that.
fn notified(job: &JobView) -> String {
    let url = job.notify.clone().unwrap_or_default();
    match &job.notice {
        None => url,
        Some(Notice { error: None, at_ms, .. }) => format!("{url} (told {})", ago(*at_ms)),
        Some(Notice { error: Some(why), tries: 0, .. }) => format!("{url} (not told: {why})"),
        Some(Notice { error: Some(why), tries, .. }) => format!("{url} (given up after {tries} tries: {why})"),
    }
}

fn about_task(task: &TaskView, lines: &mut Vec<Line>) {
    lines.push(("node", node_of(task)));
    lines.push(("attempt", if task.attempt > 1 { task.attempt.to_string() } else { String::new() }));
    if let Some(result) = &task.result {
        lines.push(("outcome", essaim_view::outcome(result, English)));
        lines.push(("time", essaim_view::duration(result.wall_ms)));
        lines.push(("processor", essaim_view::duration(result.cpu_ms)));
        lines.push(("memory", essaim_view::bytes(result.memory_peak_bytes)));
        let bytes = essaim_view::bytes;
        lines.push(("output", format!("{} + {} of errors", bytes(result.stdout_bytes), bytes(result.stderr_bytes))));
    } else {
        let phase = task.phase.map(|phase| essaim_view::phase(phase, English).to_owned());
        lines.push(("phase", phase.unwrap_or_default()));
        let reason = task.reason.as_ref().map(|reason| essaim_view::reason(reason, English));
        lines.push(("why", reason.unwrap_or_default()));
    }
}

fn about_array(job: &JobView, failed: &str, lines: &mut Vec<Line>) {
    let range = job.array.as_ref().map(named).unwrap_or_default();
    lines.push(("tasks", format!("{range} ({} in all)", job.counts.total)));
    lines.push(("", counted(&job.counts)));
    if job.counts.waiting > 0 {
        let why = job.reason.as_ref().map(|reason| essaim_view::reason(reason, English));
        lines.push(("why", why.unwrap_or_default()));
    }
    lines.push(("failed", failed.to_owned()));
    for task in job.tasks.iter().filter(|task| task.state != TaskState::Done) {
        lines.push(("", task_line(task)));
    }
}

/// The counts that are not zero, in the order of a task's life.
fn counted(counts: &TaskCounts) -> String {
    let all = [
        (counts.waiting, "waiting"),
        (counts.running, "running"),
        (counts.done, "done"),
        (counts.failed, "failed"),
        (counts.cancelled, "cancelled"),
    ];
    let said: Vec<String> =
        all.into_iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")).collect();
    said.join(", ")
}

fn task_line(task: &TaskView) -> String {
    let node = node_of(task);
    let place = if node.is_empty() { node } else { format!(" on {node}") };
    format!("{}{place}: {}", task.task, standing(task))
}

/// How a task stands, in a few words.
fn standing(task: &TaskView) -> String {
    match (&task.result, &task.reason) {
        (Some(result), _) => essaim_view::outcome(result, English),
        (None, Some(reason)) if task.state != TaskState::Running => essaim_view::reason(reason, English),
        _ => essaim_view::task_state(task.state, English).to_owned(),
    }
}

/// While something waits: each node, and why it does not take it.
fn waiting(job: &JobView, lines: &mut Vec<Line>) {
    for (n, out) in job.ruled_out.iter().enumerate() {
        let what = if n == 0 { "ruled out" } else { "" };
        lines.push((what, format!("{}: {}", out.node, essaim_view::ruled_out(&out.reason, English))));
    }
}

pub(super) async fn tasks(
    context: &Context,
    link: &mut Link,
    job: JobId,
    states: Vec<TaskState>,
    limit: usize,
) -> Outcome {
    let (tasks, more) = all(link, job, states, limit).await?;
    if context.printer.is_json() {
        context.printer.json(&tasks)?;
        return Ok(OK);
    }
    let row = |task: &TaskView| {
        let time = task.result.as_ref().map(|result| essaim_view::duration(result.wall_ms)).unwrap_or_default();
        let attempt = if task.attempt > 1 { task.attempt.to_string() } else { String::new() };
        vec![task.task.to_string(), standing(task), node_of(task), time, attempt]
    };
    let rows: Vec<Vec<String>> = tasks.iter().map(row).collect();
    context.printer.table(&["TASK", "STATE", "NODE", "TIME", "ATTEMPT"], &rows)?;
    if more {
        context.printer.note(&format!("there are more than {limit}: --limit shows them, --state fewer"));
    }
    Ok(OK)
}

/// The first tasks that fit, and whether there are more.
async fn all(
    link: &mut Link,
    job: JobId,
    states: Vec<TaskState>,
    limit: usize,
) -> Result<(Vec<TaskView>, bool), Failure> {
    let mut tasks: Vec<TaskView> = Vec::new();
    let mut more = true;
    while more && tasks.len() < limit {
        let list = TaskList {
            job,
            after: tasks.last().map(|task| task.task),
            limit: (limit - tasks.len()).min(PAGE_ENTRIES_MAX) as u32,
            states: states.clone(),
            numbers_only: false,
        };
        let page = link.request(&list).await?;
        more = page.more && !page.tasks.is_empty();
        tasks.extend(page.tasks);
    }
    Ok((tasks, more))
}

#[cfg(test)]
mod tests {
    use super::*;
    use essaim_proto::api::RuledOut;
    use essaim_proto::job::{Needs, Reason, TaskResult, Verdict};
    use essaim_proto::{TaskId, TaskSet};

    fn said(lines: &[Line]) -> Vec<String> {
        lines.iter().filter(|(_, text)| !text.is_empty()).map(|(what, text)| format!("{what}|{text}")).collect()
    }

    // An array that waits and has failures: counts, why, who failed how, and each node that is ruled out.
    #[test]
    fn an_array_is_told_by_counts() {
        let result = TaskResult {
            verdict: Verdict::RuntimeError,
            exit_code: Some(3),
            node: "attic".into(),
            ..TaskResult::default()
        };
        let failed =
            TaskView { task: TaskId(17), state: TaskState::Failed, result: Some(result), ..TaskView::default() };
        let out = |node: &str, reason| RuledOut { node: node.into(), reason };
        let busy = Reason::new("slots_busy").with("slots", 4);
        let view = JobView {
            array: Some(TaskSet::span(1, 1_000)),
            counts: TaskCounts { total: 1_000, waiting: 900, done: 99, failed: 1, ..TaskCounts::default() },
            priority: -2,
            needs: Needs { cpus: 4, memory_bytes: 8 << 30, ..Needs::default() },
            reason: Some(Reason::new("no_free_slot").with("busy", 4).with("slots", 4)),
            ruled_out: vec![out("attic", busy), out("garage", Reason::new("no_label").with("label", "gpu=a100"))],
            tasks: vec![failed],
            ..JobView::default()
        };
        let mut lines = Vec::new();
        about_array(&view, "17", &mut lines);
        waiting(&view, &mut lines);
        let expected = [
            "tasks|1-1000 (1000 in all)",
            "|900 waiting, 99 done, 1 failed",
            "why|waiting for a free slot (4 of 4 in use)",
            "failed|17",
            "|17 on attic: runtime error: exit code 3",
            "ruled out|attic: all of its 4 slots are in use",
            "|garage: has no label gpu=a100",
        ];
        assert_eq!(said(&lines), expected);
        let about = said(&about(&view));
        for line in ["priority|-2", "slots|4", "reserves|8 GiB of memory"] {
            assert!(about.contains(&line.to_owned()), "{about:?}");
        }
    }
}
