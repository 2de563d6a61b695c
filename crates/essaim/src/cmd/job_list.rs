//! `job list`: which jobs there are, and with `--watch` what becomes of them.
//!
//! `cmd::job` calls [`run`]. Always true: the hub filters, page after page, until there are as many as were asked for; with
//! `--watch` a change is shown if the job fits what was asked for then.
//! Deliberately not here: one job in full (`job`), waiting for changes (`changes`).

use super::changes::{self, Board};
use super::job::node_of;
use super::{Context, ago};
use crate::cli::JobFilter;
use crate::exit::{Failure, OK, Outcome};
use crate::link::Link;
use crate::print::Printer;
use essaim_proto::JobId;
use essaim_proto::api::{JobChange, JobList, JobShow, JobView, StateChange, StatesWatch};
use essaim_proto::job::{JobState, TaskView};
use essaim_proto::limits::PAGE_ENTRIES_MAX;
use essaim_view::Language;
use serde::Serialize;
use std::collections::BTreeMap;

pub(super) async fn run(context: &Context, link: &mut Link, filter: JobFilter) -> Outcome {
    let printer = context.printer;
    if filter.watch {
        let mut jobs = Jobs { printer, filter, known: None };
        return changes::watch(printer, link, &mut jobs).await;
    }
    let jobs = all(link, &filter).await?;
    if printer.is_json() {
        printer.json(&jobs)?;
    } else {
        table(printer, &jobs)?;
    }
    Ok(OK)
}

/// The newest jobs that fit, at most as many as asked for.
async fn all(link: &mut Link, filter: &JobFilter) -> Result<Vec<JobView>, Failure> {
    let mut jobs: Vec<JobView> = Vec::new();
    while jobs.len() < filter.limit {
        let question = JobList {
            before: jobs.last().map(|job| job.job),
            limit: (filter.limit - jobs.len()).min(PAGE_ENTRIES_MAX) as u32,
            live_only: filter.live,
            states: filter.state.clone(),
            owner: filter.owner.clone(),
            node: filter.node.clone(),
            text: filter.search.clone(),
        };
        let page = link.request(&question).await?;
        let is_last = !page.more || page.jobs.is_empty();
        jobs.extend(page.jobs);
        if is_last {
            break;
        }
    }
    Ok(jobs)
}

fn table(printer: Printer, jobs: &[JobView]) -> Result<(), Failure> {
    let rows: Vec<Vec<String>> = jobs.iter().map(row).collect();
    printer.table(&["JOB", "NAME", "LANGUAGE", "STATE", "NODE", "TIME", "SUBMITTED"], &rows)
}

fn row(job: &JobView) -> Vec<String> {
    let task = only_task(job);
    let result = task.and_then(|task| task.result.as_ref());
    let state = match result {
        _ if job.array.is_some() => array_state(job),
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

/// The task of a job that is no array.
fn only_task(job: &JobView) -> Option<&TaskView> {
    job.tasks.first().filter(|_| job.array.is_none())
}

/// How an array stands: how many of its tasks are over, and how many of these failed.
fn array_state(job: &JobView) -> String {
    let counts = &job.counts;
    let over = counts.done + counts.failed + counts.cancelled;
    let failed = if counts.failed > 0 { format!(", {} failed", counts.failed) } else { String::new() };
    format!("{} {over}/{}{failed}", essaim_view::job_state(job.state, Language::English), counts.total)
}

/// A job of the list that `--watch --json` begins with.
#[derive(Serialize)]
struct JobLine<'a> {
    r#type: &'static str,
    #[serde(flatten)]
    job: &'a JobView,
}

/// A change, for `--watch --json`.
#[derive(Serialize)]
struct ChangeLine<'a> {
    r#type: &'static str,
    at_ms: u64,
    missed: u64,
    was: Option<JobState>,
    #[serde(flatten)]
    change: &'a JobChange,
}

/// The jobs, for `--watch`.
struct Jobs {
    printer: Printer,
    filter: JobFilter,
    /// How each that is not over stands, as far as it was told; `None` before the first look. Those that are over are
    /// forgotten: nothing follows.
    known: Option<BTreeMap<JobId, Standing>>,
}

/// What makes a change worth a line: another state, attempt or reason.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Standing {
    state: JobState,
    attempt: u32,
    reason: Option<String>,
}

impl Standing {
    fn of(change: &JobChange) -> Standing {
        let reason = change.reason.as_ref().map(|reason| reason.code.clone());
        Standing { state: change.state, attempt: change.attempt, reason }
    }
}

impl Board for Jobs {
    fn wanted(&self) -> StatesWatch {
        StatesWatch { nodes: false, jobs: true }
    }

    async fn list(&mut self, link: &mut Link) -> Result<(), Failure> {
        let jobs = all(link, &self.filter).await?;
        if let Some(mut before) = self.known.take() {
            for job in jobs.iter().rev() {
                let was = before.remove(&job.job);
                // What began and ended meanwhile is history, and in the list of whoever asks for it.
                if was.is_some() || !job.state.is_over() {
                    self.tell_if_new(job, was)?;
                }
            }
            // What fits the question no longer, because it is over, is news too.
            for (job, was) in before {
                if let Ok(job) = link.request(&JobShow { job }).await {
                    self.tell_if_new(&job, Some(was))?;
                }
            }
        } else if self.printer.is_json() {
            jobs.iter().try_for_each(|job| self.printer.json(&JobLine { r#type: "job", job }))?;
        } else {
            table(self.printer, &jobs)?;
        }
        let live = jobs.iter().filter(|job| !job.state.is_over());
        self.known = Some(live.map(|job| (job.job, Standing::of(&change_of(job)))).collect());
        Ok(())
    }

    fn change(&mut self, change: StateChange) -> Result<(), Failure> {
        let StateChange { at_ms, missed, job: Some(job), .. } = change else { return Ok(()) };
        let known = self.known.get_or_insert_default();
        let now = Standing::of(&job);
        let was = match job.state.is_over() {
            true => known.remove(&job.job),
            false => known.insert(job.job, now.clone()),
        };
        if was.as_ref() == Some(&now) || !fits(&self.filter, &job) {
            return Ok(());
        }
        self.tell(at_ms, missed, was.map(|was| was.state), &job)
    }
}

impl Jobs {
    fn tell_if_new(&self, job: &JobView, was: Option<Standing>) -> Result<(), Failure> {
        let change = change_of(job);
        if was.as_ref() == Some(&Standing::of(&change)) {
            return Ok(());
        }
        self.tell(job.ended_ms.unwrap_or_else(super::unix_ms), 0, was.map(|was| was.state), &change)
    }

    fn tell(&self, at_ms: u64, missed: u64, was: Option<JobState>, change: &JobChange) -> Result<(), Failure> {
        if self.printer.is_json() {
            return self.printer.json(&ChangeLine { r#type: "job_change", at_ms, missed, was, change });
        }
        let word = |state| essaim_view::job_state(state, Language::English);
        let step = changes::step(was.map(word), word(change.state));
        let place = change.node.as_ref().map(|node| format!("on {node}")).unwrap_or_default();
        let why = change.verdict.filter(|_| change.state == JobState::Failed);
        let why = why.map(|verdict| essaim_view::verdict(verdict, Language::English).to_owned());
        let reason = change.reason.as_ref().map(|reason| essaim_view::reason(reason, Language::English));
        let reason = [why, reason].into_iter().flatten().collect::<Vec<_>>().join(": ");
        let name = format!("job {}", change.job);
        let parts = [essaim_view::time_of_day(at_ms), name, change.name.clone(), step, place, reason];
        let parts: Vec<&str> = parts.iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
        self.printer.data(&essaim_view::visible(&parts.join("  ")))
    }
}

/// A job of a list as a change that nobody told us.
fn change_of(job: &JobView) -> JobChange {
    let task = only_task(job);
    let result = task.and_then(|task| task.result.as_ref());
    JobChange {
        job: job.job,
        name: job.name.clone(),
        owner: job.owner.clone(),
        state: job.state,
        attempt: task.map_or(0, |task| task.attempt),
        node: task.map(node_of).filter(|node| !node.is_empty()),
        verdict: result.map(|result| result.verdict),
        reason: (result.and_then(|result| result.reason.clone()))
            .or_else(|| task.and_then(|task| task.reason.clone()))
            .or_else(|| job.reason.clone()),
    }
}

/// Does a changed job fit what was asked for? As the hub does it for a list.
fn fits(filter: &JobFilter, job: &JobChange) -> bool {
    let is_named = |wanted: &Option<String>, name: Option<&str>| wanted.as_deref().is_none_or(|w| Some(w) == name);
    let contains = |text: &String| job.name.to_lowercase().contains(&text.to_lowercase());
    // With --live an end is news too: it is why the job is not in the list any more.
    (filter.state.is_empty() || filter.state.contains(&job.state))
        && is_named(&filter.owner, Some(&job.owner))
        && is_named(&filter.node, job.node.as_deref())
        && filter.search.as_ref().is_none_or(contains)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command, Job};
    use clap::Parser;
    use essaim_proto::TaskSet;
    use essaim_proto::job::TaskCounts;

    fn filter(words: &[&str]) -> JobFilter {
        let all = ["essaim", "job", "list"].iter().chain(words);
        match Cli::try_parse_from(all).unwrap().command {
            Command::Job { command: Job::List(filter) } => filter,
            other => panic!("{other:?}"),
        }
    }

    // An array is told by how many of its tasks are over, never by one of them.
    #[test]
    fn an_array_is_a_row() {
        let counts = TaskCounts { total: 1_000, running: 4, done: 509, failed: 3, waiting: 484, cancelled: 0 };
        let failed = TaskView { node: Some("attic".into()), attempt: 3, ..TaskView::default() };
        let array = Some(TaskSet::span(1, 1_000));
        let job = JobView { state: JobState::Running, array, counts, tasks: vec![failed], ..JobView::default() };
        assert_eq!(row(&job)[3..6], ["running 512/1000, 3 failed", "", ""]);
        assert_eq!((change_of(&job).attempt, change_of(&job).node), (0, None));
    }

    // Changes are filtered as the hub filters lists.
    #[test]
    fn a_change_fits_or_not() {
        let change = JobChange {
            name: "Render 7".into(),
            owner: "ada".into(),
            state: JobState::Failed,
            node: Some("garage".into()),
            ..JobChange::default()
        };
        let all = ["--state", "done,failed", "--owner", "ada", "--node", "garage", "--search", "render"];
        assert!(fits(&filter(&[]), &change) && fits(&filter(&all), &change));
        for other in [["--state", "done"], ["--owner", "bob"], ["--node", "attic"], ["--search", "rendre"]] {
            assert!(!fits(&filter(&other), &change), "{other:?}");
        }
        assert!(Cli::try_parse_from(["essaim", "job", "list", "--state", "over"]).is_err());
    }
}
