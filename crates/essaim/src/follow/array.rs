//! What is different when the followed job is an array: many attempts at once, a bar, and an end that is asked for.
//!
//! `follow` calls it when it has a tally. Always true: a byte is shown once and as part of a whole line; each end that was
//! told counts once; the exit code is that of the worst task, also of those that nobody has told of.
//! Deliberately not here: what is new (`tally`), how a bar looks (`bar`), waiting, reconnecting (`follow`).

use super::{BAR_STEP, Bar, End, Follow, TALK_AFTER_TERMINAL, Tally, TaskSet};
use crate::exit::{Failure, Severity};
use essaim_proto::JobId;
use essaim_proto::api::{JobEvent, OutputChunk, TaskList};
use essaim_proto::job::{JobState, TaskCounts, TaskState};
use tokio::time::Instant;

/// Failed tasks are named as long as a line of a terminal can be read.
const NAMED_CHARS_MAX: usize = 120;

/// How an array ended.
#[derive(Debug)]
pub(crate) struct ArrayEnd {
    /// Which.
    pub(crate) job: JobId,
    /// How it stands.
    pub(crate) state: JobState,
    /// How many ended how.
    pub(crate) counts: TaskCounts,
    /// Which failed.
    pub(crate) failed: TaskSet,
    /// The worst of them.
    pub(crate) severity: Severity,
    /// Does its hub go with it, so that nobody can run it again?
    pub(crate) is_gone: bool,
}

impl<'a> Follow<'a> {
    /// The job is an array with these tasks; its output comes in their order, or as it comes.
    pub(crate) fn with_array(mut self, tally: Option<Tally>) -> Follow<'a> {
        // A person who sees only some tasks, or only what is there, waits for no bar.
        let has_bar = tally.as_ref().is_some_and(|tally| !tally.is_part()) && !self.manner.no_follow;
        if has_bar && self.screen.bar_width().is_some() {
            self.bar = Some(Bar::default());
            self.next_draw = Instant::now() + TALK_AFTER_TERMINAL;
        }
        self.tally = tally.map(|tally| tally.beginning_at(self.seen));
        if let Some(tally) = &self.tally {
            self.screen.show_array(tally.tasks());
        }
        self
    }

    pub(super) fn array_chunk(&mut self, chunk: OutputChunk) {
        let Some(tally) = &mut self.tally else { return };
        let counted = chunk.bytes.len();
        let fresh = tally.fresh(chunk);
        if let Some(task) = fresh.over {
            self.screen.tasks_over(&TaskSet::one(task));
        }
        self.screen.skip((counted - fresh.chunk.as_ref().map_or(0, |chunk| chunk.bytes.len())) as u64);
        if let Some(chunk) = fresh.chunk {
            self.screen.chunk(chunk);
        }
    }

    pub(super) fn array_event(&mut self, event: &JobEvent) {
        let Some(tally) = &mut self.tally else { return };
        let told = tally.event(event);
        self.screen.tasks_over(&event.ended);
        if let Some((task, result)) = told {
            self.screen.result(self.job, task, result);
        }
        let is_waiting = has_not_begun(tally.counts()) && !event.last;
        self.waits(is_waiting, None);
    }

    pub(super) fn draw(&mut self) {
        let now = Instant::now();
        self.next_draw = now + BAR_STEP;
        if let (Some(bar), Some(tally), Some(width)) = (&mut self.bar, &self.tally, self.screen.bar_width()) {
            let line = bar.line(tally.counts(), now, width);
            self.screen.draw_bar(&line);
        }
    }

    /// The last event was there: an array that is over is asked for what was not told.
    pub(super) async fn over(mut self, event: Box<JobEvent>) -> Result<End, Failure> {
        let Some(mut tally) = self.tally.take().filter(|tally| event.state.is_over() && !tally.is_part()) else {
            return Ok(End::Over(event));
        };
        let counts = *tally.counts();
        if self.screen.is_json() {
            self.tell(&mut tally, &[TaskState::Done, TaskState::Failed, TaskState::Cancelled]).await?;
        } else if tally.failures_told() < counts.failed {
            self.tell(&mut tally, &[TaskState::Failed]).await?;
        }
        let mut failed = TaskSet::default();
        if counts.failed > 0 {
            let states = vec![TaskState::Failed];
            let list = TaskList { job: self.job, states, numbers_only: true, ..TaskList::default() };
            failed = self.link.request(&list).await?.set;
        }
        let is_gone = self.manner.is_embedded;
        let severity = worst(tally.worst(), event.state, &counts);
        Ok(End::Array(Box::new(ArrayEnd { job: self.job, state: event.state, counts, failed, severity, is_gone })))
    }

    /// Asks for the ends of tasks, page after page, and shows those that are news.
    async fn tell(&mut self, tally: &mut Tally, states: &[TaskState]) -> Result<(), Failure> {
        let mut after = None;
        loop {
            let list = TaskList { job: self.job, after, states: states.to_vec(), ..TaskList::default() };
            let page = self.link.request(&list).await?;
            for view in &page.tasks {
                match &view.result {
                    Some(result) if tally.tell(view.task, result) => self.screen.result(self.job, view.task, result),
                    None if view.state.is_over() && tally.tell_state(view.task) => self.screen.state(self.job, view),
                    _ => {}
                }
            }
            match page.tasks.last().filter(|_| page.more) {
                Some(last) => after = Some(last.task),
                None => return Ok(()),
            }
        }
    }
}

/// Does all of it wait? Short tasks are over before anybody says that they run.
pub(super) fn has_not_begun(counts: &TaskCounts) -> bool {
    counts.waiting > 0 && counts.waiting == counts.total
}

/// The worst of the ends that were told, and of what the job's own state says of the others.
fn worst(told: Severity, state: JobState, counts: &TaskCounts) -> Severity {
    let has_failed = counts.failed > 0 || state == JobState::Failed;
    let was_cancelled = counts.cancelled > 0 || state == JobState::Cancelled;
    let failed = if has_failed { Severity::FAILED } else { Severity::default() };
    let cancelled = if was_cancelled { Severity::CANCELLED } else { Severity::default() };
    told.max(failed).max(cancelled)
}

/// The one line about an array that did not end well: which tasks, and what to type next.
pub(crate) fn array_summary(end: &ArrayEnd) -> Option<String> {
    let ArrayEnd { job, counts, failed, .. } = end;
    let tasks = |count: u64| if count == 1 { "task" } else { "tasks" };
    let total = counts.total;
    if counts.failed == 0 {
        let cancelled = counts.cancelled;
        return (cancelled > 0).then(|| format!("job {job}: {cancelled} of {total} {} cancelled", tasks(total)));
    }
    let cancelled = if counts.cancelled > 0 { format!(" ({} cancelled)", counts.cancelled) } else { String::new() };
    let named = named(failed);
    let (count, tasks) = (counts.failed, tasks(total));
    let again = if end.is_gone { String::new() } else { format!("; essaim job rerun {job} --only failed") };
    Some(format!("{count} of {total} {tasks} failed: {named}{cancelled}{again}"))
}

/// The tasks as a person reads them, cut when they are many.
pub(crate) fn named(tasks: &TaskSet) -> String {
    let text = tasks.to_string().replace(',', ", ");
    if text.len() <= NAMED_CHARS_MAX {
        return text;
    }
    let end = text[..NAMED_CHARS_MAX].rfind(", ").unwrap_or(0);
    format!("{}, …", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(failed: &str, cancelled: u64) -> ArrayEnd {
        let failed: TaskSet = if failed.is_empty() { TaskSet::default() } else { failed.parse().unwrap() };
        let counts = TaskCounts { total: 1_000, failed: failed.len(), cancelled, ..TaskCounts::default() };
        ArrayEnd { job: JobId(12), state: JobState::Failed, counts, failed, severity: Severity::FAILED, is_gone: false }
    }

    // What is said about an array that did not end well.
    #[test]
    fn the_summary_names_what_failed() {
        let said = array_summary(&end("17,204-205", 0)).unwrap();
        assert_eq!(said, "3 of 1000 tasks failed: 17, 204-205; essaim job rerun 12 --only failed");
        let said = array_summary(&end("17", 5)).unwrap();
        assert_eq!(said, "1 of 1000 tasks failed: 17 (5 cancelled); essaim job rerun 12 --only failed");
        assert_eq!(array_summary(&end("", 5)).unwrap(), "job 12: 5 of 1000 tasks cancelled");
        assert_eq!(array_summary(&end("", 0)), None);
        let said = array_summary(&ArrayEnd { is_gone: true, ..end("17", 0) }).unwrap();
        assert_eq!(said, "1 of 1000 tasks failed: 17");
        let many: Vec<String> = (1..200).map(|n| (n * 3).to_string()).collect();
        let said = array_summary(&end(&many.join(","), 0)).unwrap();
        assert!(said.len() < 200 && said.contains(", …; essaim"), "{said}");
    }

    // The exit code tells of failures that were not told one by one.
    #[test]
    fn the_worst_counts_what_was_not_told() {
        let counts = |failed, cancelled| TaskCounts { failed, cancelled, ..TaskCounts::default() };
        let well = Severity::default();
        assert_eq!(worst(well, JobState::Done, &counts(0, 0)).code(), 0);
        assert_eq!(worst(well, JobState::Failed, &counts(1, 0)).code(), 1);
        assert_eq!(worst(well, JobState::Failed, &counts(0, 0)).code(), 1);
        assert_eq!(worst(Severity::FAILED, JobState::Failed, &counts(1, 3)).code(), 130);
        assert_eq!(worst(well, JobState::Cancelled, &counts(0, 0)).code(), 130);
    }
}
