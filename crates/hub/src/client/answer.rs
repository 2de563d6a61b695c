//! What comes back to a client: the driver's letters as frames, and the watches that they begin.
//!
//! Called by the session's loop. Always true: an answer is queued before the watch that it grants begins, so nothing of
//! the watch can come before it.
//! Deliberately not here: what a watch sends ([`crate::watch`]).

use super::{ClientSession, Pending, TaskEnd, WatchEnd};
use crate::driver::present;
use crate::feeds::Feed;
use crate::handle::Mail;
use crate::session::{answered, refused};
use crate::watch::{Subject, Watching};
use essaim_core::hub::{Answer, Query};
use essaim_net::{Ticket, TicketKind};
use essaim_proto::api::{
    BlobsMissing, Done, JobEvent, JobView, JoinLineMade, JoinLineMake, KeyCreated, Submitted, Watch,
};
use essaim_proto::hello::Secret;
use essaim_proto::{Frame, Function, JobId, RefusalCode};
use std::sync::Arc;
use tokio::sync::watch;

impl ClientSession {
    pub(super) async fn mail(&mut self, letter: Mail) {
        match letter {
            Mail::Answer { request, answer, feed } => self.answer(request, answer, feed).await,
            Mail::Refused { request, refusal } => {
                self.uploads.remove(&request);
                let pending = self.pending.remove(&request);
                let pending = match self.watch_again(request, pending, refusal.code).await {
                    Some(pending) => pending,
                    None => return,
                };
                if refusal.code != RefusalCode::NoSuchJob || !self.look_for(request, pending) {
                    self.send(refused(request, &refusal));
                }
            }
            Mail::BlobsMissing { request, hashes } => {
                self.pending.remove(&request);
                self.send(answered(Function::BLOBS_MISSING, request, &BlobsMissing { hashes }));
            }
            // The rest is for workers and joiners.
            _ => {}
        }
    }

    async fn answer(&mut self, request: u64, answer: Answer, feed: Option<Arc<Feed>>) {
        let Some(pending) = self.pending.remove(&request) else { return };
        match (pending, answer) {
            (Pending::Submit { watch, in_order }, Answer::Submitted { job, repeated, clamped }) => {
                self.send(answered(Function::SUBMIT, request, &Submitted { job, repeated, clamped }));
                if watch {
                    self.watch_submitted(request, job, in_order, feed).await;
                }
            }
            (Pending::Watch { watch, answered: is_answered }, Answer::Watching(view)) => {
                if !is_answered {
                    self.send(answered(Function::WATCH, request, &Done {}));
                }
                if let Some(watch) = watch {
                    let job = view.job;
                    self.begin_watch(request, &watch, job, feed.map_or_else(|| over(*view), Subject::Live));
                }
            }
            (Pending::Upload, Answer::Done) => {
                let Some(upload) = self.uploads.get_mut(&request) else { return };
                let progress = upload.grant(&self.shared.store.blobs).await;
                if let Err(refusal) = self.uploaded(request, progress).await {
                    self.send(refused(request, &refusal));
                }
            }
            (Pending::Missing(asked), Answer::Done) => {
                self.shared.handle.blobs_missing(self.session, request, asked.hashes).await;
                self.pending.insert(request, Pending::Plain(Function::BLOBS_MISSING));
            }
            (Pending::Key { secret }, Answer::KeyMade) => {
                let addresses = self.shared.doors.client_addresses();
                let ticket = Ticket { addresses: addresses.clone(), ..self.shared.key_line(secret) };
                self.send(answered(Function::KEY_CREATE, request, &KeyCreated { key: ticket.to_line(), addresses }));
            }
            (Pending::Join { secret, make }, Answer::JoinMade { expires_ms }) => {
                let frame = self.join_made(request, secret, &make, expires_ms).await;
                self.send(frame);
            }
            (Pending::List(list), Answer::Jobs(page)) => self.complete(request, list, page),
            (Pending::Tasks(list), Answer::Tasks(page)) => self.complete_tasks(request, list.job, page),
            (Pending::Show(_), answer) => self.send(plain(Function::JOB_SHOW, request, &answer)),
            (Pending::Plain(function), answer) => self.send(plain(function, request, &answer)),
            (_, answer) => tracing::error!(?answer, "an answer does not fit its request"),
        }
    }
}

impl ClientSession {
    /// A question that was asked in the same moment as something that the store did not take went down with it, although
    /// it needs no room: it is asked again. Gives back what was not.
    async fn watch_again(
        &mut self,
        request: u64,
        pending: Option<Pending>,
        code: RefusalCode,
    ) -> Option<Option<Pending>> {
        let is_stores = matches!(code, RefusalCode::StoreFull | RefusalCode::StoreError);
        match pending {
            Some(Pending::Watch { watch: Some(watch), answered }) if is_stores && !*self.shared.shutdown.borrow() => {
                let query = Query::Watch { job: watch.job, key: watch.key };
                let pending = Pending::Watch { watch: Some(watch), answered };
                if let Err(refusal) = self.ask(request, pending, query).await {
                    self.send(refused(request, &refusal));
                }
                None
            }
            pending => Some(pending),
        }
    }

    /// A Submit with `watch` was accepted: its client hears everything from the beginning.
    async fn watch_submitted(&mut self, request: u64, job: JobId, in_order: bool, feed: Option<Arc<Feed>>) {
        let watch = Watch { job, output: true, in_order, ..Watch::default() };
        match feed {
            Some(feed) => self.begin_watch(request, &watch, job, Subject::Live(feed)),
            None => {
                // It was repeated, and may be over: ask how it stands. A refusal is sent like any other.
                let pending = Pending::Watch { watch: Some(Box::new(watch)), answered: true };
                if let Err(refusal) = self.ask(request, pending, Query::Watch { job, key: None }).await {
                    self.send(refused(request, &refusal));
                }
            }
        }
    }

    pub(super) fn begin_watch(&mut self, id: u64, watch: &Watch, job: JobId, subject: Subject) {
        let (acked, received) = watch::channel(0);
        let feed = match &subject {
            Subject::Live(feed) if watch.output => Some(feed.clone()),
            _ => None,
        };
        let watching = Watching {
            id,
            output: watch.output,
            no_follow: watch.no_follow,
            from: watch.from,
            tasks: watch.tasks.clone(),
            in_order: watch.in_order,
            sender: self.sender.clone(),
            acked: received,
            outputs: self.shared.store.outputs.clone(),
            past: self.shared.past.clone(),
            sent_bytes: 0,
        };
        let task = self.tasks.spawn(async move {
            watching.run(subject).await;
            TaskEnd::Watch(id)
        });
        self.watches.insert(id, WatchEnd { job, acked, feed, task });
    }

    /// The core has said that this client may; now the doors that the line shall name are opened.
    async fn join_made(&self, request: u64, secret: Secret, make: &JoinLineMake, expires_ms: u64) -> Frame {
        if let Err(refusal) = self.shared.open_more(make).await {
            return refused(request, &refusal);
        }
        let addresses = self.shared.doors.worker_addresses();
        let authority = self.shared.authority.hash();
        let ticket = Ticket { kind: TicketKind::Join, authority, secret, addresses: addresses.clone() };
        answered(Function::JOIN_LINE, request, &JoinLineMade { line: ticket.to_line(), expires_ms, addresses })
    }
}

fn plain(function: Function, request: u64, answer: &Answer) -> Frame {
    match answer {
        Answer::Jobs(page) => answered(function, request, page),
        Answer::Job(view) => answered(function, request, &**view),
        Answer::Submitted { job, repeated, clamped } => {
            let clamped = clamped.clone();
            answered(function, request, &Submitted { job: *job, repeated: *repeated, clamped })
        }
        Answer::Tasks(page) => answered(function, request, page),
        Answer::Nodes(page) => answered(function, request, page),
        Answer::Keys(page) => answered(function, request, page),
        Answer::Local(local) => answered(function, request, local),
        _ => answered(function, request, &Done {}),
    }
}

/// A job that is over, as its watcher is told.
pub(super) fn over(view: JobView) -> Subject {
    let event = Box::new(JobEvent { last: true, ..present(&view) });
    match view.array {
        None => Subject::Over(event),
        Some(tasks) => Subject::OverArray(event, tasks),
    }
}
