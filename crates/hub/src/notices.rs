//! Notices: the ends of jobs, posted to the URLs that they named.
//!
//! The driver sends a [`Due`] for each effect of the core; the task of a [`Poster`] posts it and tells the core what became of
//! it, which makes a record. Always true: the driver never waits for it; what was posted and not yet recorded when the hub
//! ends is posted again by the next one (at least once); one notice of a job is under way at a time; at most
//! [`NOTICES_AT_ONCE`] threads post.
//! Deliberately not here: which URLs are allowed and how many notices may be due (`essaim_core`), HTTP (`essaim_net::post`).

use crate::hub::Shared;
use crate::limits::{NOTICE_PAUSE, NOTICE_PAUSE_MAX, NOTICE_TRIES, NOTICES_AT_ONCE};
use essaim_core::hub::{Durable, Input};
use essaim_net::post;
use essaim_proto::JobId;
use essaim_proto::api::JobNotice;
use essaim_proto::job::JobState;
use essaim_view::exit_code::Severity;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tracing::{info, warn};

/// A notice to be posted.
#[derive(Debug)]
pub(crate) struct Due {
    job: JobId,
    url: String,
    json: Vec<u8>,
}

impl Due {
    /// The end of a job as JSON; nothing for one that is not over, or no longer known.
    pub(crate) fn of(durable: &Durable, job: JobId, url: String) -> Option<Due> {
        let view = durable.ended_view(job)?;
        let notice = JobNotice { exit_code: exit_code(durable, job)?, job: view };
        let json = serde_json::to_vec(&notice).ok()?;
        Some(Due { job, url, json })
    }
}

/// How `run` would have ended: with the worst of its tasks.
fn exit_code(durable: &Durable, job: JobId) -> Option<u8> {
    let known = durable.jobs.get(&job)?;
    let Some(array) = &known.array else {
        let result = known.task.result.as_deref();
        return Some(result.map_or(Severity::NOT_RUN, Severity::of).code());
    };
    let worst = match known.state() {
        JobState::Cancelled => Severity::CANCELLED,
        // Of very many failures only some are kept.
        JobState::Failed => Severity::FAILED,
        _ => Severity::default(),
    };
    let all = array.failures().map(|(_, result)| Severity::of(result));
    let cancelled = if array.ends()[2] > 0 { Severity::CANCELLED } else { Severity::default() };
    Some(all.fold(worst.max(cancelled), Severity::max).code())
}

/// The task that posts. Dropped, it ends, and what is under way is posted again by the next hub.
#[derive(Debug)]
pub(crate) struct Poster(JoinHandle<()>);

impl Drop for Poster {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Poster {
    /// Starts posting what is due, never to the hub's own doors.
    pub(crate) fn start(hub: Weak<Shared>, due: mpsc::UnboundedReceiver<Due>) -> Poster {
        let doors = hub.clone();
        // Without a hub there is nobody to keep away from, and nothing is posted any more.
        let is_own = move |address: SocketAddr| doors.upgrade().is_none_or(|hub| hub.doors.are_at(address));
        let work =
            Work { poster: post::Poster::new(Arc::new(is_own)), gate: Arc::new(Semaphore::new(NOTICES_AT_ONCE)) };
        Poster(tokio::spawn(run(hub, work, due)))
    }
}

#[derive(Debug, Clone)]
struct Work {
    poster: post::Poster,
    gate: Arc<Semaphore>,
}

async fn run(hub: Weak<Shared>, work: Work, mut due: mpsc::UnboundedReceiver<Due>) {
    let mut under_way = BTreeSet::new();
    let mut posts = JoinSet::new();
    loop {
        tokio::select! {
            next = due.recv() => {
                let Some(next) = next else { return };
                // After the store did not take a record, what is due is said again.
                if under_way.insert(next.job) {
                    posts.spawn(work.clone().insist(next));
                }
            }
            Some(ended) = posts.join_next() => {
                let Ok((job, tries, error)) = ended else { continue };
                under_way.remove(&job);
                let Some(hub) = hub.upgrade() else { return };
                hub.handle.input(Input::NoticeEnded { job, tries, error }, 0).await;
            }
        }
    }
}

impl Work {
    /// Posts until it is taken, or was tried often enough.
    async fn insist(self, due: Due) -> (JobId, u32, Option<String>) {
        let (job, due) = (due.job, Arc::new(due));
        let mut pause = NOTICE_PAUSE;
        let mut tries = 0;
        loop {
            tries += 1;
            let Err(why) = self.post(due.clone()).await else {
                info!(%job, tries, "the end of a job was posted");
                return (job, tries, None);
            };
            if tries >= NOTICE_TRIES {
                warn!(%job, tries, why, "the end of a job could not be posted and is given up");
                return (job, tries, Some(why));
            }
            info!(%job, tries, why, "the end of a job could not be posted and is tried again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(NOTICE_PAUSE_MAX);
        }
    }

    async fn post(&self, due: Arc<Due>) -> Result<(), String> {
        // Held until the thread is free again; it is never closed.
        let _permit = self.gate.acquire().await.map_err(|error| error.to_string())?;
        let poster = self.poster.clone();
        let posted = tokio::task::spawn_blocking(move || poster.post(&due.url, &due.json)).await;
        posted.unwrap_or_else(|error| Err(error.to_string()))
    }
}
