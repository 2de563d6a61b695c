//! The model of a watched job: the task of the hub's shell that tells a client events and output.
//!
//! As in `crates/hub/src/watch.rs`: all output of an attempt is sent before the event that carries its end; events may be
//! skipped when newer ones are there, the last one never.
//! Deliberately not here: the window (outputs are small), standard input.

use crate::net::{BULK, ConnId, FromHub};
use crate::world::{Event, World};
use essaim_proto::api::{JobEvent, JobView};
use essaim_proto::{AttemptId, JobId};

/// Bytes of one chunk: small, so that outputs have several.
const CHUNK_BYTES: usize = 40;

/// One watch.
#[derive(Debug, Default)]
pub(crate) struct Watching {
    from: Option<(AttemptId, [u64; 2])>,
    newest: Option<JobEvent>,
    cursor: Option<(AttemptId, [u64; 2])>,
    told: Option<JobEvent>,
    is_woken: bool,
}

fn attempt_of(event: &JobEvent) -> AttemptId {
    event.task.as_ref().map(|task| task.attempt_id(event.job)).unwrap_or_default()
}

impl World {
    /// A watch begins; with a view if the job was there before.
    pub(crate) fn begin_watch(&mut self, conn: ConnId, request: u64, job: JobId, view: Option<Box<JobView>>) {
        if !self.hub.mailboxes.contains(&crate::hub::session_of(conn)) {
            return;
        }
        let from = self.take_from(conn, request);
        self.hub.watches.insert((job, conn, request), Watching { from, ..Watching::default() });
        if let Some(view) = view {
            let last = view.state.is_over();
            // Tasks of an array are not told one by one.
            let task = view.tasks.first().filter(|_| view.array.is_none()).cloned();
            let counts = view.array.is_some().then_some(view.counts);
            let event = JobEvent { job, state: view.state, task, counts, last, ..JobEvent::default() };
            self.publish(&event);
        }
    }

    /// Tells whoever watches the job.
    pub(crate) fn publish(&mut self, event: &JobEvent) {
        if event.last && !self.judge.truth.jobs.get(&event.job).is_some_and(|job| job.state().is_over()) {
            self.judge.find(format!("job {} is said to be over and is not on the disk", event.job));
        }
        self.judge.counted(event);
        for (_, watch) in self.hub.watches.range_mut(all_of(event.job)) {
            watch.newest = Some(event.clone());
        }
        self.wake_watches(event.job);
    }

    pub(crate) fn grown(&mut self, attempt: AttemptId) {
        self.wake_watches(attempt.job);
    }

    fn wake_watches(&mut self, job: JobId) {
        let generation = self.hub.generation;
        for (key, watch) in self.hub.watches.range_mut(all_of(job)) {
            if !std::mem::replace(&mut watch.is_woken, true) {
                let delay = self.rng.below(3);
                self.queue.push(self.now + delay, Event::Pump { generation, watch: *key });
            }
        }
    }

    /// Sends what is there.
    pub(crate) fn pump(&mut self, key: (JobId, ConnId, u64)) {
        let Some(mut watch) = self.hub.watches.remove(&key) else { return };
        watch.is_woken = false;
        let (_, conn, request) = key;
        let Some(event) = watch.newest.clone() else {
            self.hub.watches.insert(key, watch);
            return;
        };
        loop {
            let attempt = attempt_of(&event);
            let from = watch.from.filter(|(of, _)| *of == attempt).map_or([0, 0], |(_, from)| from);
            let mut cursor = watch.cursor.unwrap_or((attempt, from));
            let is_current = cursor.0 == attempt;
            if is_current && !event.last && watch.told.as_ref() != Some(&event) {
                self.send_from_hub(conn, BULK, FromHub::Event { request, event: Box::new(event.clone()) });
                watch.told = Some(event.clone());
            }
            self.send_output(conn, request, &mut cursor);
            watch.cursor = Some(cursor);
            if !is_current {
                watch.cursor = Some((attempt, from));
                continue;
            }
            if event.last {
                return self.send_from_hub(conn, BULK, FromHub::Event { request, event: Box::new(event) });
            }
            break;
        }
        self.hub.watches.insert(key, watch);
    }

    fn send_output(&mut self, conn: ConnId, request: u64, (attempt, next): &mut (AttemptId, [u64; 2])) {
        for (stream, next) in next.iter_mut().enumerate() {
            loop {
                let Some(output) = self.store.outputs.get(attempt) else { return };
                let bytes = output.visible[stream].get(*next as usize..).unwrap_or_default();
                if bytes.is_empty() {
                    break;
                }
                let bytes = bytes[..bytes.len().min(CHUNK_BYTES)].to_vec();
                let (attempt, offset) = (*attempt, *next);
                *next += bytes.len() as u64;
                self.send_from_hub(conn, BULK, FromHub::Output { request, attempt, stream, offset, bytes });
            }
        }
    }
}

fn all_of(job: JobId) -> std::ops::RangeInclusive<(JobId, ConnId, u64)> {
    (job, 0, 0)..=(job, ConnId::MAX, u64::MAX)
}
