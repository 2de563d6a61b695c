//! What leaves the driver when its records are durable: the published state moves on, then effects go to their sessions.
//!
//! Always true: in the order of the batches; nobody is waited for. Deliberately not here: what the effects are
//! (`essaim_core`), what sessions make of them.

use super::Driver;
use crate::ends::Ends;
use crate::feeds::Feed;
use crate::handle::Mail;
use crate::notices::Due;
use essaim_core::hub::{Answer, Effect, Record, SessionId, ToWorker};
use essaim_proto::JobId;
use essaim_proto::api::{JobEvent, JobView};
use essaim_store::Seq;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::mpsc;
use tracing::{trace, warn};

impl Driver {
    /// Everything up to `durable` is durable.
    pub(super) fn leave_durable(&mut self, durable: Seq) {
        while self.waiting.front().is_some_and(|(needs, _)| *needs <= durable) {
            let Some((at, leaving)) = self.waiting.pop_front() else { return };
            self.publish(at, leaving.records);
            for effect in leaving.effects {
                trace!(?effect, "effect");
                self.carry_out(effect, &leaving.watching);
            }
            for flushed in leaving.flushed {
                let _ = flushed.send(());
            }
        }
    }

    /// The published state takes what is durable now, and the catalog hears what ended by it.
    pub(super) fn publish(&mut self, at: Seq, records: Vec<Record>) {
        if records.is_empty() {
            return;
        }
        let forgets = records.iter().any(|record| matches!(record, Record::JobForgotten { .. }));
        let over = self.published.apply(at, records);
        if !over.is_empty() {
            self.parts.past.ended(at);
        }
        let tasks = over.tasks.clone();
        self.parts.follower.push(at, over);
        self.tell_ends(at, tasks);
        if forgets {
            // From now on only the catalog knows it: readers see to it that it does.
            self.parts.past.must_see(at);
        }
    }

    /// Who watches an array hears which of its tasks have ended.
    fn tell_ends(&self, at: Seq, tasks: Vec<(JobId, Arc<Ends>)>) {
        let mut by_job: BTreeMap<JobId, Vec<Arc<Ends>>> = BTreeMap::new();
        for (job, ends) in tasks {
            by_job.entry(job).or_default().push(ends);
        }
        for (job, ends) in by_job {
            if let Some(tail) = self.parts.feeds.known(job).as_ref().and_then(|feed| feed.array.as_ref()) {
                let is_over = self.published.durable.jobs.get(&job).is_none_or(|known| known.is_over());
                tail.push(at, ends, is_over);
            }
        }
    }

    /// Carries out one effect. Those who are `watching` want to watch what they have submitted.
    pub(super) fn carry_out(&mut self, effect: Effect, watching: &[(SessionId, u64)]) {
        match effect {
            Effect::Admit { session, name, role, per_second } => {
                // Before it can ask anything.
                if let Ok(key) = name.parse() {
                    self.parts.rates.set(&key, per_second);
                }
                self.mail(session, Mail::Admitted { name, role });
            }
            Effect::Rate { key, per_second } => self.parts.rates.set(&key, per_second),
            Effect::Answer { session, request, answer } => {
                let feed = self.watched(&answer, watching.contains(&(session, request)));
                self.mail(session, Mail::Answer { request, answer, feed });
            }
            Effect::Refuse { session, request, refusal } => self.mail(session, Mail::Refused { request, refusal }),
            Effect::GrantJoin { session, name, .. } => self.mail(session, Mail::GrantJoin { name }),
            Effect::Tell { session, message } => {
                let feeds = match &message {
                    ToWorker::Start(start) => vec![self.feed(start.attempt.job)],
                    ToWorker::Registered(registered) => {
                        let one = registered.keep.iter().map(|kept| self.feed(kept.attempt.job));
                        let many = registered.keep_many.iter().flat_map(|many| {
                            let feed = self.feed(many.job);
                            many.tasks.iter().map(move |_| feed.clone())
                        });
                        one.chain(many).collect()
                    }
                    _ => Vec::new(),
                };
                self.mail(session, Mail::Tell { message, feeds });
            }
            Effect::Publish { event } => {
                let feeds = &self.parts.feeds;
                // Without a feed nobody watches, and whoever begins to is told how the job stands.
                let feed = if event.last { feeds.end(event.job) } else { feeds.known(event.job) };
                if let Some(feed) = feed {
                    feed.event.send_replace(Some(event));
                }
            }
            Effect::Changed { change } => self.parts.changes.send(change),
            Effect::Notify { job, url } => {
                // As it is durable. One that is forgotten by now was given up.
                if let Some(due) = Due::of(&self.published.durable, job, url) {
                    drop(self.parts.notices.send(due));
                }
            }
            Effect::LocalWorkers { numbers } => drop(self.parts.local.send_replace(numbers)),
            Effect::Close { session, reason } => {
                self.mail(session, Mail::Close { reason });
                self.mailboxes.remove(&session);
            }
        }
    }

    /// The feed of a job whose end has not left yet.
    fn feed(&self, job: JobId) -> Arc<Feed> {
        let known = self.hub.durable().jobs.get(&job);
        // Of a new array nobody need look for what has ended.
        let is_new = known.and_then(|known| known.array.as_ref()).is_some_and(|array| array.ends() == [0, 0, 0]);
        let from = if is_new { Seq(0) } else { self.published.at() };
        self.parts.feeds.of(job, known.map(|known| known.accepted.spec()).as_deref(), from)
    }

    /// The feed of the job that an answer lets its session watch. None when the job is over: nothing will follow.
    fn watched(&self, answer: &Answer, submitter_watches: bool) -> Option<Arc<Feed>> {
        match answer {
            // Its first event follows.
            Answer::Submitted { job, repeated: false, .. } if submitter_watches => Some(self.feed(*job)),
            Answer::Watching(view) if !view.state.is_over() => {
                let feed = self.feed(view.job);
                // Reasons change without an event: who begins to watch sees the present one.
                feed.event.send_replace(Some(present(view)));
                Some(feed)
            }
            _ => None,
        }
    }

    /// Never waits: a session that does not empty its mailbox is cut off by closing it.
    pub(super) fn mail(&mut self, session: SessionId, mail: Mail) {
        let Some(mailbox) = self.mailboxes.get(&session) else { return };
        if let Err(error) = mailbox.try_send(mail) {
            if matches!(error, mpsc::error::TrySendError::Full(_)) {
                warn!(session = session.0, "a session does not keep up and is closed");
            }
            self.mailboxes.remove(&session);
        }
    }
}

/// A job as its watchers are told that it stands. Of an array no task is told: each watch tells those that it has sent.
pub(crate) fn present(view: &JobView) -> JobEvent {
    let event = JobEvent { job: view.job, state: view.state, ..JobEvent::default() };
    match view.array {
        None => JobEvent { task: view.tasks.first().cloned(), ..event },
        Some(_) => JobEvent { counts: Some(view.counts), ..event },
    }
}
