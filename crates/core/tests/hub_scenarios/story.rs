//! The fixture: a hub, a made-up clock, and a queue of what the hub wants to have done.

use crate::observer::Observer;
use essaim_core::Now;
use essaim_core::hub::{Answer, Durable, Effect, Hub, Input, Out, Query, Record, Rules, SessionId, ToWorker};
use essaim_core::lang::LanguageTable;
use essaim_proto::api::StateChange;
use essaim_proto::hello::Role;
use essaim_proto::job::{
    FileSpec, Isolation, JobKind, JobSpec, JobState, Phase, Reason, TaskResult, TaskState, TaskView, Verdict,
};
use essaim_proto::link::{Ended, Progress, Register, Registered, Report, Start};
use essaim_proto::node::{NodeState, Toolchain};
use essaim_proto::{
    AttemptId, BlobHash, InstanceId, JobId, KeyName, NodeName, Refusal, RefusalCode, SubmitKey, TaskId,
};
use std::collections::{BTreeSet, VecDeque};

/// A hub and all that happens to it.
pub(crate) struct Story {
    pub(crate) hub: Hub,
    /// The hub's settings.
    rules: Rules,
    pub(crate) now: Now,
    pub(crate) records: Vec<Record>,
    effects: VecDeque<Effect>,
    /// Changes of state, when the story is about them.
    changes: Option<VecDeque<StateChange>>,
    observer: Observer,
    /// The last client that came: who lists for the observer.
    lister: Option<SessionId>,
    last_session: u64,
    last_request: u64,
    last_key: u128,
    ended: bool,
}

pub(crate) fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

pub(crate) fn key(name: &str) -> KeyName {
    name.parse().unwrap()
}

/// The hash of a secret that a test made up.
pub(crate) fn secret(text: &str) -> BlobHash {
    BlobHash::of(text.as_bytes())
}

pub(crate) fn attempt(job: JobId, attempt: u32) -> AttemptId {
    AttemptId { job, task: TaskId(1), attempt }
}

pub(crate) fn instance(n: u8) -> InstanceId {
    InstanceId([n; 16])
}

pub(crate) fn python() -> JobSpec {
    let file = FileSpec { path: "main.py".into(), ..FileSpec::default() };
    JobSpec { files: vec![file], ..JobSpec::default() }
}

pub(crate) fn command(words: &[&str]) -> JobSpec {
    let args = words.iter().map(|word| (*word).to_owned()).collect();
    JobSpec { kind: JobKind::Command, args, ..JobSpec::default() }
}

pub(crate) fn on(name: &str, spec: JobSpec) -> JobSpec {
    JobSpec { on: Some(node(name)), ..spec }
}

pub(crate) fn toolchains(langs: &[&str]) -> Vec<Toolchain> {
    langs.iter().map(|lang| Toolchain { lang: (*lang).into(), version: "1.0".into() }).collect()
}

/// What a worker with Python says.
pub(crate) fn register(slots: u32) -> Register {
    Register { instance: instance(1), slots, toolchains: toolchains(&["python"]), ..Register::default() }
}

pub(crate) fn result(verdict: Verdict) -> TaskResult {
    TaskResult { verdict, phase: Phase::Run, isolation: Isolation::None, ..TaskResult::default() }
}

impl Story {
    /// A new hub with one admin key, `admin`.
    pub(crate) fn new() -> Story {
        Story::with_rules(Rules::default())
    }

    /// The same of a hub with such settings.
    pub(crate) fn with_rules(rules: Rules) -> Story {
        Story::on(Durable::default(), rules)
    }

    fn on(durable: Durable, rules: Rules) -> Story {
        let now = Now { mono_ms: 1_000, unix_ms: 1_700_000_000_000 };
        let hub = Hub::new(now, durable, LanguageTable::built_in()).with_rules(rules);
        let mut story = Story {
            hub,
            rules,
            now,
            records: Vec::new(),
            effects: VecDeque::new(),
            changes: None,
            observer: Observer::default(),
            lister: None,
            last_session: 0,
            last_request: 0,
            last_key: 0,
            ended: false,
        };
        story.give(Input::LocalKey { name: key("admin"), role: Role::Admin, secret: secret("admin") });
        story
    }

    pub(crate) fn give(&mut self, input: Input) {
        let mut out = Out::default();
        self.hub.step(self.now, input.clone(), &mut out);
        self.records.extend(out.records);
        for effect in out.effects {
            match effect {
                Effect::Changed { change } => {
                    self.observer.hear(&change);
                    self.changes.iter_mut().for_each(|changes| changes.push_back(change.clone()));
                }
                other => self.effects.push_back(other),
            }
        }
        if let Some(session) = self.lister {
            self.observer.compare(&self.hub, session);
        }
        if let Err(broken) = self.hub.check() {
            panic!("after {input:?}: {broken}");
        }
    }

    /// Time passes, and the hub looks at its watch every second.
    pub(crate) fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.stand_still(1_000, 1_000);
        }
    }

    /// Time passes while the hub looks at nothing: so much on the clock that cannot be set, so much on the calendar.
    pub(crate) fn stand_still(&mut self, mono_ms: u64, unix_ms: u64) {
        self.now.mono_ms += mono_ms;
        self.now.unix_ms += unix_ms;
        self.give(Input::Tick);
    }

    /// From now on changes of state are part of the story.
    pub(crate) fn watch_states(&mut self) {
        self.changes = Some(VecDeque::new());
    }

    /// The next change of a node: its name, how it stood and stands, and why.
    pub(crate) fn node_changed(&mut self) -> (String, NodeState, NodeState, String) {
        let change = self.changed();
        let node = change.node.unwrap_or_else(|| panic!("expected a node: {:?}", change.job));
        (node.name, node.was, node.state, node.reason.unwrap().code)
    }

    /// The next change of a job, which is this one: its state, attempt, node and reason.
    pub(crate) fn job_changed(&mut self, of: JobId) -> (JobState, u32, Option<String>, Option<Reason>) {
        let change = self.changed();
        let job = change.job.unwrap_or_else(|| panic!("expected a job: {:?}", change.node));
        assert_eq!(job.job, of);
        (job.state, job.attempt, job.node, job.reason)
    }

    /// The next change of state.
    pub(crate) fn changed(&mut self) -> StateChange {
        let change = self.changes.as_mut().expect("it watches").pop_front().expect("nothing changed");
        assert_eq!(change.at_ms, self.now.unix_ms);
        change
    }

    /// The hub stops without a word and starts again with what its journal holds.
    pub(crate) fn restart_hub(&mut self) {
        self.nothing_else();
        let mut durable = Durable::default();
        self.records.iter().for_each(|record| durable.apply(record));
        self.now.mono_ms = 50;
        self.now.unix_ms += 5_000;
        self.hub = Hub::new(self.now, durable, LanguageTable::built_in()).with_rules(self.rules);
        (self.observer, self.lister) = (Observer::default(), None);
        assert_eq!(self.hub.check(), Ok(()));
    }

    /// The same when everything that the store took was told.
    pub(crate) fn store_failed(&mut self, records: usize, watched: &[JobId]) -> BTreeSet<SessionId> {
        self.store_failed_unsaid(records, records, watched)
    }

    /// The store took only so many of the records: what followed them is thrown away, sent or not, and a new hub takes
    /// the place of the old one; of jobs in `told_to` records on, nobody was told. Says which sessions stay.
    pub(crate) fn store_failed_unsaid(
        &mut self,
        told_to: usize,
        records: usize,
        watched: &[JobId],
    ) -> BTreeSet<SessionId> {
        let found = self.records[told_to..records].iter().filter_map(Record::job).collect();

        self.records.truncate(records);
        self.effects.clear();
        let mut durable = Durable::default();
        self.records.iter().for_each(|record| durable.apply(record));
        let before = std::mem::replace(&mut self.hub, Hub::new(self.now, durable, LanguageTable::built_in()));
        let mut out = Out::default();
        let kept = self.hub.succeed(self.now, &before, watched, &found, &mut out);
        assert!(out.records.is_empty());
        for effect in out.effects {
            match effect {
                // Told whether it is news or not.
                Effect::Changed { change } => {
                    self.changes.iter_mut().for_each(|changes| changes.push_back(change.clone()))
                }
                other => self.effects.push_back(other),
            }
        }
        (self.observer, self.lister) = (Observer::default(), None);
        assert_eq!(self.hub.check(), Ok(()));
        kept
    }

    /// Nothing more was sent so far.
    pub(crate) fn nothing_else(&self) {
        assert!(self.effects.is_empty(), "something else was sent: {:#?}", self.effects);
        let changes = self.changes.iter().flatten().count();
        assert_eq!(changes, 0, "something else changed: {:#?}", self.changes);
    }

    /// The end: nothing else was sent, and a replay tells the same.
    pub(crate) fn end(mut self) {
        self.nothing_else();
        let mut durable = Durable::default();
        self.records.iter().for_each(|record| durable.apply(record));
        assert_eq!(&durable, self.hub.durable());
        self.ended = true;
    }

    /// The end of a story whose records were too large to keep.
    pub(crate) fn end_without_replay(mut self) {
        self.nothing_else();
        self.ended = true;
    }

    // Who speaks.

    pub(crate) fn next_session(&mut self) -> SessionId {
        self.last_session += 1;
        SessionId(self.last_session)
    }

    pub(crate) fn next_request(&mut self) -> u64 {
        self.last_request += 1;
        self.last_request
    }

    pub(crate) fn admin(&mut self) -> SessionId {
        self.client("admin", Role::Admin)
    }

    pub(crate) fn client(&mut self, name: &str, role: Role) -> SessionId {
        if !self.hub.durable().keys.contains_key(&key(name)) {
            self.give(Input::LocalKey { name: key(name), role, secret: secret(name) });
        }
        let session = self.next_session();
        self.give(Input::ClientOpened { session, secret: secret(name) });
        assert_eq!(self.take(), Effect::Admit { session, name: name.into(), role, per_second: None });
        self.lister = Some(session);
        session
    }

    /// A worker with Python comes for the first time.
    pub(crate) fn worker(&mut self, name: &str, slots: u32) -> SessionId {
        let (session, registered) = self.register(name, register(slots));
        assert!(registered.kill.is_empty() && registered.keep.is_empty(), "{registered:?}");
        session
    }

    pub(crate) fn register(&mut self, name: &str, register: Register) -> (SessionId, Registered) {
        let session = self.next_session();
        self.give(Input::Register { session, name: node(name), register: Box::new(register) });
        let registered = self.registered(session, name);
        (session, registered)
    }

    /// The same while the hub still believes in the old session, which it closes.
    pub(crate) fn register_over(&mut self, name: &str, old: SessionId, register: Register) -> (SessionId, Registered) {
        let session = self.next_session();
        self.give(Input::Register { session, name: node(name), register: Box::new(register) });
        self.closed(old, "replaced");
        let registered = self.registered(session, name);
        (session, registered)
    }

    pub(crate) fn report(&mut self, session: SessionId, report: Report) {
        self.give(Input::Report { session, report: Box::new(report), rtt_us: Some(300) });
    }

    pub(crate) fn progress(&mut self, session: SessionId, attempt: AttemptId, phase: Phase) {
        self.give(Input::Progress { session, progress: Progress { attempt, phase, waiting_for_input: false } });
    }

    pub(crate) fn ended(&mut self, session: SessionId, attempt: AttemptId, verdict: Verdict) {
        let ended = Ended { attempt, result: result(verdict) };
        self.give(Input::Ended { session, ended: Box::new(ended) });
    }

    pub(crate) fn gone(&mut self, session: SessionId) {
        self.give(Input::SessionClosed { session, clean: false });
    }

    pub(crate) fn goodbye(&mut self, session: SessionId) {
        self.give(Input::SessionClosed { session, clean: true });
    }

    /// Submits under a fresh key; the answer is left to be taken.
    pub(crate) fn ask_submit(&mut self, session: SessionId, spec: JobSpec) -> u64 {
        self.last_key += 1;
        let key = SubmitKey(self.last_key.to_be_bytes());
        let request = self.next_request();
        self.give(Input::Submit { session, request, key, spec: Box::new(spec) });
        request
    }

    /// Submits; the job is accepted and its watchers hear that it waits, if it does not start at once.
    pub(crate) fn submit(&mut self, session: SessionId, spec: JobSpec) -> JobId {
        self.ask_submit(session, spec);
        let job = self.submitted(false);
        if matches!(self.effects.front(), Some(Effect::Publish { event }) if event.job == job) {
            self.event(job, TaskState::Ready);
        }
        job
    }

    /// Submits, and the job starts at once on this worker.
    pub(crate) fn run(&mut self, client: SessionId, worker: SessionId) -> (JobId, AttemptId) {
        let job = self.submit(client, python());
        let first = attempt(job, 1);
        self.start(worker, first);
        (job, first)
    }

    pub(crate) fn ask_cancel(&mut self, session: SessionId, job: JobId) {
        let request = self.next_request();
        self.give(Input::Cancel { session, request, job, tasks: None });
    }

    pub(crate) fn query(&mut self, session: SessionId, query: Query) -> Answer {
        let request = self.next_request();
        self.give(Input::Query { session, request, query });
        match self.take() {
            Effect::Answer { answer, .. } => answer,
            other => panic!("expected an answer: {other:?}"),
        }
    }

    /// How the only task of a job stands.
    pub(crate) fn task(&mut self, session: SessionId, job: JobId) -> TaskView {
        match self.query(session, Query::JobShow(job)) {
            Answer::Job(view) => view.tasks[0].clone(),
            other => panic!("expected a job: {other:?}"),
        }
    }

    // What the hub does.

    /// The next effect.
    pub(crate) fn take(&mut self) -> Effect {
        self.effects.pop_front().expect("nothing was sent")
    }

    pub(crate) fn refused(&mut self, code: RefusalCode) -> Refusal {
        match self.take() {
            Effect::Refuse { refusal, .. } if refusal.code == code => refusal,
            other => panic!("expected {code:?}: {other:?}"),
        }
    }

    pub(crate) fn done(&mut self) {
        let effect = self.take();
        assert!(matches!(effect, Effect::Answer { answer: Answer::Done, .. }), "{effect:?}");
    }

    pub(crate) fn submitted(&mut self, again: bool) -> JobId {
        match self.take() {
            Effect::Answer { answer: Answer::Submitted { job, repeated, .. }, .. } if repeated == again => job,
            other => panic!("expected a job: {other:?}"),
        }
    }

    pub(crate) fn registered(&mut self, to: SessionId, name: &str) -> Registered {
        match self.take() {
            Effect::Tell { session, message: ToWorker::Registered(registered) } if session == to => {
                assert_eq!(registered.name, name);
                registered
            }
            other => panic!("expected registered: {other:?}"),
        }
    }

    /// The watchers hear that the job's task stands so.
    pub(crate) fn event(&mut self, of: JobId, state: TaskState) -> TaskView {
        match self.take() {
            Effect::Publish { event } if event.job == of => {
                let task = event.task.unwrap();
                assert_eq!(task.state, state, "{task:?}");
                assert_eq!(event.last, state.is_over());
                task
            }
            other => panic!("expected an event of job {of}: {other:?}"),
        }
    }

    /// The worker is told to start, without more.
    pub(crate) fn told_to_start(&mut self, to: SessionId, attempt: AttemptId) -> Start {
        match self.take() {
            Effect::Tell { session, message: ToWorker::Start(start) } if session == to => {
                assert_eq!(start.attempt, attempt);
                *start
            }
            other => panic!("expected a start of {attempt}: {other:?}"),
        }
    }

    /// The worker is told to start, the watchers hear that it was placed.
    pub(crate) fn start(&mut self, to: SessionId, attempt: AttemptId) -> Start {
        let start = self.told_to_start(to, attempt);
        self.event(attempt.job, TaskState::Placed);
        start
    }

    pub(crate) fn told_to_stop(&mut self, to: SessionId, attempt: AttemptId) {
        match self.take() {
            Effect::Tell { session, message: ToWorker::Stop(stop) } if session == to => {
                assert_eq!(stop.attempt, attempt);
            }
            other => panic!("expected a stop of {attempt}: {other:?}"),
        }
    }

    pub(crate) fn acked(&mut self, to: SessionId, attempt: AttemptId) {
        match self.take() {
            Effect::Tell { session, message: ToWorker::EndAck(ack) } if session == to => {
                assert_eq!(ack.attempt, attempt);
            }
            other => panic!("expected the end of {attempt} to be acknowledged: {other:?}"),
        }
    }

    pub(crate) fn closed(&mut self, whom: SessionId, why: &str) {
        match self.take() {
            Effect::Close { session, reason } if session == whom => assert_eq!(reason, why),
            other => panic!("expected {whom:?} to be closed: {other:?}"),
        }
    }

    /// Takes effects until there are none, without looking.
    pub(crate) fn skip_all(&mut self) -> Vec<Effect> {
        self.effects.drain(..).collect()
    }
}

impl Drop for Story {
    fn drop(&mut self) {
        assert!(self.ended || std::thread::panicking(), "a story must end with `end`");
    }
}
