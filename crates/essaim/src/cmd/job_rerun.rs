//! `job rerun`: a job, or tasks of it, once more, as a new job.
//!
//! `cmd::job` calls [`run`]. Always true: the request has a key, so asked twice it makes one job; without `--follow` it
//! prints the new number as `run --detach` does, with it Ctrl+C cancels the new job as `run` does.
//! Deliberately not here: which tasks those are (the hub knows), following (`follow`).

use super::Context;
use super::job::tally_of;
use super::run::{Detached, ended};
use crate::cli::Only;
use crate::exit::{CANCELLED, OK, Outcome};
use crate::follow::{Follow, Manner, OnInterrupt};
use crate::link::Link;
use crate::screen::{Screen, Shown};
use crate::signals::Interrupts;
use essaim_proto::api::JobRerun;
use essaim_proto::job::TaskState;
use essaim_proto::{JobId, SubmitKey};

/// How the new job's output is shown.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// At all?
    pub(super) follow: bool,
    /// With the task's number in front.
    pub(super) prefix: bool,
    /// One task after the other.
    pub(super) in_order: bool,
}

pub(super) async fn run(context: &Context, link: &mut Link, job: JobId, only: Option<Only>, shape: Shape) -> Outcome {
    let (tasks, states) = match only {
        None => (None, Vec::new()),
        Some(Only::Failed) => (None, vec![TaskState::Failed]),
        Some(Only::Tasks(tasks)) => (Some(tasks), Vec::new()),
    };
    let mut interrupts = Interrupts::listen()?;
    let key = SubmitKey(essaim_net::ticket::random());
    let rerun = JobRerun { job, key, tasks, states };
    let new = tokio::select! {
        biased;
        () = interrupts.next() => {
            context.printer.note("the hub may have the new job already; `essaim job list` shows it");
            return Ok(CANCELLED);
        }
        new = link.request(&rerun) => new?.job,
    };
    if !shape.follow {
        return match context.printer.is_json() {
            true => context.printer.json(&Detached { r#type: "submitted", job: new }),
            false => context.printer.data(&new.to_string()),
        }
        .map(|()| OK);
    }
    let array = tally_of(link, new, shape.in_order).await;
    let mut screen = Screen::new(context.printer, Shown { prefix: shape.prefix, ..Shown::default() })?;
    let manner = Manner {
        output: true,
        no_follow: false,
        on_interrupt: OnInterrupt::Cancel,
        to_person: context.printer.stderr_is_terminal(),
        from_person: false,
        is_embedded: false,
        retries: false,
        key: Some(key),
    };
    let end = Follow::new(link, &mut screen, &mut interrupts, new, manner).with_array(array).finish(None).await;
    let code = end.as_ref().map_or(CANCELLED, |end| ended(&mut screen, end));
    let written = screen.finish().await;
    end?;
    written.map(|()| code)
}
