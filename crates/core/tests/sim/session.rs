//! The model of the hub's sessions: what leaves becomes frames, what arrives becomes inputs, output goes to the store.
//!
//! As in `crates/hub/src/worker.rs` and `client.rs`: output of an attempt that the session holds goes to the store beside
//! the core and is acknowledged when it is durable; the end of an attempt goes to the core when its output is durable, or
//! small enough to travel inside the record. Always true: what is said to a peer is looked at before it leaves.
//! Deliberately not here: the driver (`hub`), watches (`watch`).

use crate::hub::{conn_of, secret_of, session_of};
use crate::net::{CONTROL, ConnId, Far, FromHub, Peer, ToHub};
use crate::plan::Kind;
use crate::store::Output;
use crate::trace;
use crate::world::{Event, Sabotage, World};
use essaim_core::hub::{Answer, Input, Query, SessionId, ToWorker};
use essaim_proto::job::TaskState;
use essaim_proto::link::{AttemptOutputAck, Ended, HeldMany, Leave};
use essaim_proto::{AttemptId, TaskSet};

impl World {
    pub(crate) fn answer(&mut self, session: SessionId, request: u64, answer: Answer) {
        let conn = conn_of(session);
        match answer {
            Answer::Submitted { job, repeated, .. } => {
                self.hub.asked_for.insert(job);
                if !self.judge.truth.jobs.contains_key(&job) {
                    self.judge.find(format!("job {job} is said to be accepted and is not on the disk"));
                }
                self.mail(session, CONTROL, FromHub::Submitted { request, job });
                if repeated {
                    // It may be over: ask how it stands.
                    self.command(Input::Query { session, request, query: Query::Watch { job, key: None } });
                } else {
                    self.begin_watch(conn, request, job, None);
                }
            }
            Answer::Watching(view) => {
                self.hub.asked_for.insert(view.job);
                self.mail(session, CONTROL, FromHub::Done);
                let job = view.job;
                self.begin_watch(conn, request, job, Some(view));
            }
            _ => self.mail(session, CONTROL, FromHub::Done),
        }
    }

    pub(crate) fn tell(&mut self, session: SessionId, message: ToWorker) {
        let frame = match message {
            ToWorker::Registered(mut registered) => {
                for kept in &mut registered.keep {
                    self.may_keep(session, kept.attempt);
                    let has = self.has_of(kept.attempt);
                    *kept = AttemptOutputAck { attempt: kept.attempt, stdout: has[0], stderr: has[1] };
                }
                // Tasks of which there is output are named one by one.
                for many in &mut registered.keep_many {
                    let attempts: Vec<AttemptId> = many.attempts().collect();
                    attempts.iter().for_each(|attempt| self.may_keep(session, *attempt));
                    let has_none = |attempt: &&AttemptId| self.has_of(**attempt) == [0, 0];
                    many.tasks = attempts.iter().filter(has_none).map(|attempt| attempt.task).collect();
                    for attempt in attempts {
                        let [stdout, stderr] = self.has_of(attempt);
                        if [stdout, stderr] != [0, 0] {
                            registered.keep.push(AttemptOutputAck { attempt, stdout, stderr });
                        }
                    }
                }
                let killed = registered.kill_many.iter().flat_map(HeldMany::attempts);
                for attempt in registered.kill.iter().copied().chain(killed) {
                    self.may_forget(attempt);
                }
                if self.sabotage == Sabotage::ForgetKeepMany {
                    registered.keep_many.clear();
                }
                let mine = self.hub.mine.entry(session).or_default();
                for kept in &registered.keep {
                    mine.entry(kept.attempt).or_default();
                }
                for attempt in registered.keep_many.iter().flat_map(HeldMany::attempts) {
                    mine.entry(attempt).or_default();
                }
                FromHub::Registered(Box::new(registered))
            }
            ToWorker::Start(mut start) => {
                if self.sabotage == Sabotage::SameTry && start.tasks.is_some() {
                    start.attempt.attempt = start.attempt.attempt.saturating_sub(1).max(1);
                }
                for attempt in start.attempts() {
                    self.may_keep(session, attempt);
                    // Told again: an end that waits for its output goes on waiting.
                    self.hub.mine.entry(session).or_default().entry(attempt).or_default();
                }
                FromHub::Start(start)
            }
            ToWorker::Stop(stop) => FromHub::Stop(stop.attempt),
            ToWorker::EndAck(ack) => {
                self.may_forget(ack.attempt);
                self.hub.mine.entry(session).or_default().remove(&ack.attempt);
                if self.sabotage == Sabotage::ForgetEndAck {
                    return;
                }
                FromHub::EndAck(ack.attempt)
            }
            ToWorker::EndAckMany(ack) => {
                for (attempt, tasks) in &ack.tasks {
                    for task in tasks.iter() {
                        let attempt = AttemptId { job: ack.job, task, attempt: *attempt };
                        self.may_forget(attempt);
                        self.hub.mine.entry(session).or_default().remove(&attempt);
                    }
                }
                if self.sabotage == Sabotage::ForgetEndAck {
                    return;
                }
                FromHub::EndAckMany(ack)
            }
            ToWorker::TakeBack(wanted) => FromHub::TakeBack(wanted),
            ToWorker::Leave(Leave { leave }) => FromHub::Leave(leave),
        };
        self.mail(session, CONTROL, frame);
    }

    /// A worker hears that the attempt is its own: it must be recorded as placed.
    fn may_keep(&mut self, session: SessionId, attempt: AttemptId) {
        if !self.hub.mailboxes.contains(&session) {
            return;
        }
        let known = self.judge.truth.jobs.get(&attempt.job);
        if known.is_none_or(|job| job.tries(attempt.task).attempt < attempt.attempt) {
            self.judge.find(format!("a worker is given attempt {attempt}, which is not recorded"));
        }
    }

    /// A worker hears that it may forget the attempt: it must be recorded as over or lost, with its output.
    fn may_forget(&mut self, attempt: AttemptId) {
        let Some(job) = self.judge.truth.jobs.get(&attempt.job) else { return };
        let current = job.tries(attempt.task).attempt;
        let is_current = current == attempt.attempt;
        if current < attempt.attempt || is_current && job.placed(attempt.task).is_some() {
            return self.judge.find(format!("a worker may forget attempt {attempt}, whose end is not recorded"));
        }
        if is_current && job.task_state(attempt.task).is_some_and(TaskState::is_over) {
            let stored = self.store.outputs.get(&attempt).map(|output| {
                let mut bytes = output.visible.clone();
                bytes.iter_mut().zip(output.durable).for_each(|(bytes, durable)| bytes.truncate(durable));
                bytes
            });
            self.judge.complete(attempt, stored.as_ref());
        }
    }

    /// What the store is sure to keep of an attempt's output.
    fn has_of(&self, attempt: AttemptId) -> [u64; 2] {
        let Some(output) = self.store.outputs.get(&attempt) else { return [0, 0] };
        if self.sabotage == Sabotage::AckVisible { output.visible_lengths() } else { output.durable_lengths() }
    }

    // Sessions.

    /// A session is over, however that came.
    pub(crate) fn end_session(&mut self, conn: ConnId, clean: bool) {
        if self.conns[conn].far != Far::Open {
            return;
        }
        self.close_far(conn);
        let session = session_of(conn);
        self.hub.mine.remove(&session);
        self.hub.watches.retain(|(_, of, _), _| *of != conn);
        self.hub.asked_from.retain(|(of, _), _| *of != conn);
        self.command(Input::SessionClosed { session, clean });
    }

    pub(crate) fn far_closed(&mut self, conn: ConnId, clean: bool) {
        if self.hub.is_up && self.conns[conn].generation == self.hub.generation {
            trace::line(self.now, || format!("the hub sees the end of connection {conn}, clean: {clean}"));
            self.end_session(conn, clean);
        }
    }

    /// A frame arrives at the hub.
    pub(crate) fn hub_hears(&mut self, conn: ConnId, frame: ToHub) {
        let Peer::Worker(worker) = self.conns[conn].peer else { return self.hear_client(conn, frame) };
        let session = session_of(conn);
        if self.conns[conn].far == Far::New {
            self.conns[conn].far = Far::Open;
        }
        match frame {
            ToHub::Register(register) => {
                let name = self.workers[worker].name.clone();
                if self.plan.has(Kind::RegisterAgain) && self.rng.percent(30) {
                    self.command(Input::Register { session, name: name.clone(), register: register.clone() });
                }
                self.command(Input::Register { session, name, register });
            }
            ToHub::Report(report) => self.command(Input::Report { session, report, rtt_us: None }),
            ToHub::Progress(progress) => self.command(Input::Progress { session, progress }),
            ToHub::Output { attempt, stream, offset, bytes } => self.take_output(conn, attempt, stream, offset, &bytes),
            ToHub::Ended(ended) => self.take_end(conn, ended),
            ToHub::EndedMany(ended) => self.command(Input::EndedMany { session, ended }),
            ToHub::GivenBack(given) => {
                let mine = self.hub.mine.entry(session).or_default();
                mine.retain(|attempt, _| {
                    let gives =
                        |(number, tasks): &(u32, TaskSet)| *number == attempt.attempt && tasks.contains(attempt.task);
                    attempt.job != given.job || !given.tasks.iter().any(gives)
                });
                self.command(Input::GivenBack { session, given });
            }
            _ => {}
        }
    }

    fn hear_client(&mut self, conn: ConnId, frame: ToHub) {
        let Peer::Client(client) = self.conns[conn].peer else { return };
        let session = session_of(conn);
        match frame {
            ToHub::Hello => {
                self.conns[conn].far = Far::Open;
                self.open_client(session, secret_of(client));
            }
            ToHub::Submit { request, key, spec } => self.command(Input::Submit { session, request, key, spec }),
            ToHub::Watch { request, job, key, from } => {
                self.hub.asked_from.insert((conn, request), from);
                let query = Query::Watch { job, key: Some(key) };
                self.command(Input::Query { session, request, query });
            }
            ToHub::Cancel { request, job, tasks } => self.command(Input::Cancel { session, request, job, tasks }),
            ToHub::Rerun { request, rerun } => self.command(Input::Rerun { session, request, rerun }),
            _ => {}
        }
    }

    fn take_output(&mut self, conn: ConnId, attempt: AttemptId, stream: usize, offset: u64, bytes: &[u8]) {
        let is_mine = self.hub.mine.get(&session_of(conn)).is_some_and(|mine| mine.contains_key(&attempt));
        if !is_mine {
            // Acknowledged all the same: the worker need not keep what nobody wants.
            let mut has = self.has_of(attempt);
            has[stream] = has[stream].max(offset + bytes.len() as u64);
            return self.send_from_hub(conn, CONTROL, FromHub::OutputAck { attempt, has });
        }
        self.judge.bytes("the hub", attempt, stream, offset, bytes);
        let visible = &mut self.store.outputs.entry(attempt).or_default().visible[stream];
        let length = visible.len() as u64;
        if offset > length {
            return self
                .judge
                .find(format!("a gap in the output of {attempt}, stream {stream}: {offset} after {length}"));
        }
        let known = ((length - offset) as usize).min(bytes.len());
        visible.extend_from_slice(&bytes[known..]);
        self.grown(attempt);
        // Soon: small pieces gather for up to a second.
        let delay = self.rng.below(1_000) + self.disk_ms();
        self.settle(conn, attempt, delay);
    }

    fn settle(&mut self, conn: ConnId, attempt: AttemptId, delay: u64) {
        let lengths = self.store.outputs.get(&attempt).map_or([0, 0], |output| output.visible.each_ref().map(Vec::len));
        let generation = self.hub.generation;
        self.queue.push(self.now + delay, Event::Settled { generation, conn, attempt, lengths });
    }

    /// Output is durable up to `lengths`; its session, if it is still there, says so, or tells the end that waits for it.
    pub(crate) fn settled(&mut self, conn: ConnId, attempt: AttemptId, lengths: [usize; 2]) {
        if let Some(output) = self.store.outputs.get_mut(&attempt) {
            for (durable, length) in output.durable.iter_mut().zip(lengths) {
                *durable = (*durable).max(length);
            }
        }
        let is_whole = self.is_durable(attempt);
        let session = session_of(conn);
        let Some(ended) = self.hub.mine.get_mut(&session).and_then(|mine| mine.get_mut(&attempt)) else { return };
        match ended.take_if(|_| is_whole) {
            Some(ended) => self.command(Input::Ended { session, ended }),
            None => {
                let has = self.has_of(attempt);
                self.send_from_hub(conn, CONTROL, FromHub::OutputAck { attempt, has });
            }
        }
    }

    fn is_durable(&self, attempt: AttemptId) -> bool {
        let output = self.store.outputs.get(&attempt);
        output.is_none_or(|output| output.durable == output.visible.each_ref().map(Vec::len))
    }

    fn take_end(&mut self, conn: ConnId, ended: Box<Ended>) {
        let (session, attempt) = (session_of(conn), ended.attempt);
        let (is_small, is_durable) = (self.is_small(attempt), self.is_durable(attempt));
        match self.hub.mine.get_mut(&session).and_then(|mine| mine.get_mut(&attempt)) {
            Some(waits) if !is_small && !is_durable && self.sabotage != Sabotage::EndBeforeOutput => {
                *waits = Some(ended);
                let delay = self.disk_ms();
                self.settle(conn, attempt, delay);
            }
            Some(_) if is_small && self.sabotage != Sabotage::EndBeforeOutput => {
                let output = self.store.outputs.get(&attempt).map(|output| output.visible.clone());
                self.command_with(Input::Ended { session, ended }, output);
            }
            // Nobody's business any more, which the core says.
            _ => self.command(Input::Ended { session, ended }),
        }
    }

    /// Where a watch asked to begin.
    pub(crate) fn take_from(&mut self, conn: ConnId, request: u64) -> Option<(AttemptId, [u64; 2])> {
        self.hub.asked_from.remove(&(conn, request))
    }

    /// Does its output travel inside the record of its end?
    fn is_small(&self, attempt: AttemptId) -> bool {
        let bytes = |output: &Output| output.visible.iter().map(Vec::len).sum::<usize>();
        self.store.outputs.get(&attempt).is_none_or(|output| bytes(output) <= self.plan.small_bytes)
    }
}
