//! The model of the hub's driver. The decisions are the real [`Hub`]'s.
//!
//! As in `crates/hub/src/driver.rs`: commands are taken in batches, the records of a batch are appended, effects leave in
//! order when their sequence is durable; a failed append lets all appends under way end, then the state is thrown away
//! and replayed; small outputs travel with the record of an end; lists are answered from what is durable.
//! Deliberately not here: sessions (`session`), watches (`watch`).

use crate::net::{CONTROL, ConnId, Far, FromHub, Peer};
use crate::store::{Bytes, Disk, Row};
use crate::trace;
use crate::watch::Watching;
use crate::world::{Event, Sabotage, World};
use essaim_core::Now;
use essaim_core::hub::{Answer, Durable, Effect, Hub, Input, Out, Query, Record, SessionId, SmallOutput};
use essaim_core::lang::LanguageTable;
use essaim_core::limits::LEASE_MS;
use essaim_proto::api::{JobList, JobView};
use essaim_proto::hello::Role;
use essaim_proto::link::Ended;
use essaim_proto::{AttemptId, BlobHash, JobId, KeyName, RefusalCode};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// How often the driver tells the core that time has passed.
const TICK_MS: u64 = 1_000;

/// Appends that may be under way.
const APPENDS_MAX: usize = 64;

/// The hub's process, and what its machine remembers.
#[derive(Debug)]
pub(crate) struct HubShell {
    pub(crate) is_up: bool,
    /// Counts processes: words for an older one go nowhere.
    pub(crate) generation: u32,
    pub(crate) hub: Hub,
    pub(crate) began: u64,
    /// Time that the machine slept since then: its monotonic clock stood still.
    pub(crate) slept: u64,
    /// The clock for people, beside the true time.
    pub(crate) unix_shift: i64,
    /// With the whole output of what ended, when that is little.
    commands: VecDeque<(Input, Option<Bytes>)>,
    is_woken: bool,
    asked: u64,
    durable: u64,
    under_way: usize,
    failed: Option<RefusalCode>,
    /// Is what the journal holds being read back?
    is_recovering: bool,
    waiting: VecDeque<Leaving>,
    /// What the core was last told about room in the store.
    told_full: bool,
    failed_full: bool,
    pub(crate) mailboxes: BTreeSet<SessionId>,
    /// Attempts that a worker's session may speak of, with the end that waits for its output.
    pub(crate) mine: BTreeMap<SessionId, BTreeMap<AttemptId, Option<Box<Ended>>>>,
    pub(crate) watches: BTreeMap<(JobId, ConnId, u64), Watching>,
    /// What a watch that is asked for begins with.
    pub(crate) asked_from: BTreeMap<(ConnId, u64), (AttemptId, [u64; 2])>,
    /// Clients whose session ended since the state was taken up, and jobs that a client has asked for since.
    left: BTreeSet<KeyName>,
    pub(crate) asked_for: BTreeSet<JobId>,
    taken_up: u64,
    /// When each worker was last heard, on the hub's clock.
    heard: BTreeMap<usize, u64>,
    /// The durable part as far as it is durable.
    published: Durable,
    published_at: u64,
}

/// What leaves when its batch is durable.
#[derive(Debug)]
struct Leaving {
    needs: u64,
    records: Row,
    effects: Vec<Effect>,
}

pub(crate) fn key_of(client: usize) -> KeyName {
    format!("client-{client}").parse().unwrap()
}

pub(crate) fn secret_of(client: usize) -> BlobHash {
    BlobHash([client as u8 + 1; 32])
}

pub(crate) fn session_of(conn: ConnId) -> SessionId {
    SessionId(conn as u64 + 1)
}

pub(crate) fn conn_of(session: SessionId) -> ConnId {
    session.0 as usize - 1
}

thread_local! {
    static TABLE: LanguageTable = LanguageTable::built_in();
}

fn table() -> LanguageTable {
    TABLE.with(LanguageTable::clone)
}

/// Puts what a program printed into the record of its end.
fn attach(records: &mut [Record], ended: AttemptId, output: Option<Bytes>) {
    let Some([stdout, stderr]) = output else { return };
    let small = Some(Box::new(SmallOutput { stdout, stderr }));
    for record in records {
        if let Record::TaskEnded { attempt, output, .. } = record
            && *attempt == ended
        {
            output.clone_from(&small);
        }
    }
}

impl HubShell {
    pub(crate) fn new() -> HubShell {
        let hub = Hub::new(Now::default(), Durable::default(), table());
        HubShell {
            is_up: false,
            generation: 0,
            hub,
            began: 0,
            slept: 0,
            unix_shift: 0,
            commands: VecDeque::new(),
            is_woken: false,
            asked: 0,
            durable: 0,
            under_way: 0,
            failed: None,
            is_recovering: false,
            waiting: VecDeque::new(),
            told_full: false,
            failed_full: false,
            mailboxes: BTreeSet::new(),
            mine: BTreeMap::new(),
            watches: BTreeMap::new(),
            asked_from: BTreeMap::new(),
            left: BTreeSet::new(),
            asked_for: BTreeSet::new(),
            taken_up: 0,
            heard: BTreeMap::new(),
            published: Durable::default(),
            published_at: 0,
        }
    }

    /// Is nothing decided that is not recorded and said?
    pub(crate) fn is_at_rest(&self) -> bool {
        self.commands.is_empty() && self.waiting.is_empty() && self.under_way == 0 && !self.is_recovering
    }

    fn is_ready(&self) -> bool {
        self.failed.is_none() && !self.is_recovering && self.under_way < APPENDS_MAX
    }
}

impl World {
    pub(crate) fn hub_now(&self) -> Now {
        let mono_ms = self.now - self.hub.began - self.hub.slept + 1;
        let unix_ms = (1_700_000_000_000 + self.now as i64 + self.hub.unix_shift) as u64;
        Now { mono_ms, unix_ms }
    }

    // The process.

    pub(crate) fn start_hub(&mut self) {
        if self.hub.is_up {
            return;
        }
        let (generation, unix_shift) = (self.hub.generation + 1, self.hub.unix_shift);
        trace::line(self.now, || format!("the hub starts, process {generation}"));
        self.hub = HubShell { is_up: true, generation, unix_shift, began: self.now, ..HubShell::new() };
        self.judge.forget_changes();
        self.take_up();
        self.give_keys();
        self.queue.push(self.now + TICK_MS, Event::Tick(generation));
    }

    /// The keys of the data folder: there before any door opens.
    fn give_keys(&mut self) {
        for client in (0..self.clients.len()).rev() {
            let (name, secret) = (key_of(client), secret_of(client));
            self.hub.commands.push_front((Input::LocalKey { name, role: Role::Operator, secret }, None));
        }
        self.wake_driver();
    }

    /// The state as the store holds it.
    fn take_up(&mut self) {
        let durable = self.store.replay();
        self.judge.replayed(&durable);
        let last = self.store.last();
        (self.hub.asked, self.hub.durable) = (last, last);
        self.hub.published = durable.clone();
        self.hub.published_at = last;
        self.hub.heard.clear();
        let now = self.hub_now();
        self.hub.taken_up = now.mono_ms;
        self.hub.hub = Hub::new(now, durable, table());
        self.check_hub();
    }

    /// Dies without a word. With `power` lost, the peers notice by silence only.
    pub(crate) fn crash_hub(&mut self, power: bool, down_ms: u64) {
        if !self.hub.is_up {
            return;
        }
        // What was under way may be on the disk, up to some point.
        let kept = self.rng.below(self.store.under_way.len() as u64 + 1);
        trace::line(self.now, || {
            format!("the hub crashes; {kept} of {} rows under way are on the disk", self.store.under_way.len())
        });
        for _ in 0..kept {
            self.row_is_durable();
        }
        self.store.under_way.clear();
        if self.sabotage == Sabotage::DiskLies {
            self.store.forget_last_row();
        }
        self.store.fall_back(&mut self.rng);
        self.hub_is_gone(power, down_ms);
    }

    /// Stops in order: everything that was decided is recorded and said.
    pub(crate) fn stop_hub(&mut self) {
        if !self.hub.is_up {
            return;
        }
        while !self.store.under_way.is_empty() {
            self.row_is_durable();
        }
        if self.hub.failed.is_none() {
            self.hub.durable = self.store.last();
            self.leave_durable();
        }
        for output in self.store.outputs.values_mut() {
            output.durable = output.visible.each_ref().map(Vec::len);
        }
        trace::line(self.now, || "the hub stops".to_owned());
        let down_ms = self.rng.below(5_000);
        self.hub_is_gone(false, down_ms);
    }

    fn hub_is_gone(&mut self, power: bool, down_ms: u64) {
        self.hub.is_up = false;
        self.queue.push(self.now + down_ms, Event::HubStart);
        self.store.last_persist = self.now;
        self.store.last_notice = self.now;
        for conn in self.open_conns() {
            if self.conns[conn].generation != self.hub.generation {
                continue;
            }
            if power {
                self.cut(conn);
                self.conns[conn].far = Far::Closed;
            } else if self.conns[conn].far == Far::New {
                // The system accepted it, nobody ever will.
                self.conns[conn].far = Far::Open;
                self.close_far(conn);
            } else {
                self.close_far(conn);
            }
        }
    }

    // The driver.

    pub(crate) fn command(&mut self, input: Input) {
        self.command_with(input, None);
    }

    /// A command with an output that is to travel with what it leads to.
    pub(crate) fn command_with(&mut self, input: Input, output: Option<Bytes>) {
        self.hub.commands.push_back((input, output));
        self.wake_driver();
    }

    /// A client opens its session: that waits for nothing, not even for the store.
    pub(crate) fn open_client(&mut self, session: SessionId, secret: BlobHash) {
        let mut out = Out::default();
        self.take(self.hub_now(), Input::ClientOpened { session, secret }, &mut out);
        out.effects.into_iter().for_each(|effect| self.carry_out(effect));
    }

    fn wake_driver(&mut self) {
        if !std::mem::replace(&mut self.hub.is_woken, true) {
            let delay = self.rng.below(3);
            self.queue.push(self.now + delay, Event::DriverWake(self.hub.generation));
        }
    }

    pub(crate) fn driver_wakes(&mut self) {
        self.hub.is_woken = false;
        if !self.hub.is_ready() || self.hub.commands.is_empty() {
            return;
        }
        let now = self.hub_now();
        let mut out = Out::default();
        for _ in 0..self.rng.between(1, self.plan.batch_max) {
            let Some((input, output)) = self.hub.commands.pop_front() else { break };
            let ended = if let Input::Ended { ended, .. } = &input { ended.attempt } else { AttemptId::default() };
            let before = out.records.len();
            self.take(now, input, &mut out);
            attach(&mut out.records[before..], ended, output);
        }
        self.commit(out);
        if !self.hub.commands.is_empty() {
            self.wake_driver();
        }
    }

    pub(crate) fn tick(&mut self) {
        self.queue.push(self.now + TICK_MS, Event::Tick(self.hub.generation));
        if self.hub.is_ready() {
            let (now, mut out) = (self.hub_now(), Out::default());
            let full = matches!(self.store.disk, Disk::Reserve | Disk::Full);
            if full != self.hub.told_full {
                self.hub.told_full = full;
                self.take(now, Input::Storage { full }, &mut out);
            }
            self.take(now, Input::Tick, &mut out);
            self.commit(out);
            self.read_published();
        }
    }

    /// A list of nodes says what was told of each.
    pub(crate) fn list_nodes(&mut self) {
        for session in self.hub.mailboxes.clone() {
            let query = Query::NodeList { after: None };
            let effect = self.hub.hub.read(&self.hub.published, session, 1, &query);
            if let Effect::Answer { answer: Answer::Nodes(page), .. } = effect {
                return self.judge.knows(&page.nodes);
            }
        }
    }

    /// A list, answered from what is durable only.
    fn read_published(&mut self) {
        let Some(session) = self.hub.mailboxes.first().copied().filter(|_| self.rng.percent(5)) else { return };
        let query = Query::JobList(JobList::default());
        let effect = self.hub.hub.read(&self.hub.published, session, 1, &query);
        if let Effect::Answer { answer: Answer::Jobs(page), .. } = effect {
            let is_true = |view: &JobView| {
                self.judge
                    .truth
                    .jobs
                    .get(&view.job)
                    .is_some_and(|job| !view.state.is_over() || job.state() == view.state)
            };
            if let Some(view) = page.jobs.into_iter().find(|view| !is_true(view)) {
                self.judge.find(format!("a list shows what is not recorded: {view:?}"));
            }
        }
    }

    fn take(&mut self, now: Now, mut input: Input, out: &mut Out) {
        match &mut input {
            Input::ClientOpened { session, .. } | Input::Register { session, .. } => {
                self.hub.mailboxes.insert(*session);
            }
            Input::SessionClosed { session, .. } => {
                self.hub.mailboxes.remove(session);
                if let Peer::Client(at) = self.conns[conn_of(*session)].peer {
                    self.hub.left.insert(key_of(at));
                }
            }
            Input::Ended { ended, .. } if self.sabotage == Sabotage::TakeStaleEnds => {
                let current = self.hub.hub.durable().jobs.get(&ended.attempt.job);
                ended.attempt.attempt = current.map_or(0, |job| job.tries(ended.attempt.task).attempt);
            }
            _ => {}
        }
        let is_tick = input == Input::Tick;
        if !is_tick {
            trace::line(self.now, || format!("hub <- {input:?}"));
        }
        let before = out.records.len() + out.effects.len();
        let records_before = out.records.len();
        let about = self.about_whom(now, &input);
        let goodbye = matches!(input, Input::SessionClosed { clean: true, .. });
        self.hub.hub.step(now, input, out);
        for record in &out.records[records_before..] {
            self.may_be_noted(now, record, about);
            let counts = matches!(
                record,
                Record::AttemptLost { given_back: false, .. } | Record::TasksLost { given_back: false, .. }
            );
            if goodbye && counts {
                self.judge.find(format!("an ordered stop counts as a lost try: {record:?}"));
            }
        }
        let is_new = |record: &Record| {
            matches!(record, Record::JobAccepted { .. } | Record::TaskPlaced { .. } | Record::TasksPlaced { .. })
        };
        if self.hub.told_full && out.records[records_before..].iter().any(is_new) {
            self.judge.find(format!("something new without room in the store: {:?}", out.records));
        }
        if !is_tick || out.records.len() + out.effects.len() > before {
            self.check_hub();
        }
    }

    /// The worker that an input is about, which may have lost something; its words are signs of life.
    fn about_whom(&mut self, now: Now, input: &Input) -> Option<usize> {
        match input {
            Input::Register { session, .. }
            | Input::Report { session, .. }
            | Input::Progress { session, .. }
            | Input::Ended { session, .. }
            | Input::EndedMany { session, .. }
            | Input::GivenBack { session, .. } => {
                let Peer::Worker(at) = self.conns[conn_of(*session)].peer else { return None };
                // A session that is over is not listened to.
                let is_open = self.hub.mailboxes.contains(session);
                is_open.then(|| self.hub.heard.insert(at, now.mono_ms));
                Some(at)
            }
            Input::SessionClosed { session, clean: true } => match self.conns[conn_of(*session)].peer {
                Peer::Worker(at) => Some(at),
                Peer::Client(_) => None,
            },
            Input::WorkerProcessEnded { node } => self.workers.iter().position(|worker| worker.name == *node),
            _ => None,
        }
    }

    /// An attempt is lost by what its own worker says or does, or by its silence. An ephemeral job is cancelled when its
    /// client's session ended, or when its client did not ask for it again in time.
    fn may_be_noted(&mut self, now: Now, record: &Record, about: Option<usize>) {
        match record {
            Record::AttemptLost { attempt, .. } => self.may_be_lost(now, *attempt, about),
            Record::TasksLost { job, tasks, attempt, .. } => {
                for task in tasks.iter() {
                    self.may_be_lost(now, AttemptId { job: *job, task, attempt: *attempt }, about);
                }
            }
            Record::JobAccepted(new) => drop(self.hub.asked_for.insert(new.job)),
            Record::CancelWanted { job, by } if by == "client_gone" => {
                let owner = self.hub.hub.durable().jobs.get(job).map(|job| job.accepted.owner().clone());
                let left = owner.is_some_and(|owner| self.hub.left.contains(&owner));
                let in_vain = now.mono_ms >= self.hub.taken_up + LEASE_MS && !self.hub.asked_for.contains(job);
                if !left && !in_vain {
                    self.judge.find(format!("job {job} is cancelled, though its client is there"));
                }
            }
            _ => {}
        }
    }

    fn may_be_lost(&mut self, now: Now, attempt: AttemptId, about: Option<usize>) {
        let Some(job) = self.hub.published.jobs.get(&attempt.job) else { return };
        let placed = job.placed(attempt.task).filter(|_| job.tries(attempt.task).attempt == attempt.attempt);
        let node = placed.map(|(node, _)| node);
        let Some(at) = self.workers.iter().position(|worker| Some(&worker.name) == node) else { return };
        let heard = self.hub.heard.get(&at).copied().unwrap_or(self.hub.taken_up);
        if about != Some(at) && now.mono_ms < heard + LEASE_MS {
            self.judge.find(format!("attempt {attempt} is lost while its worker is heard"));
        }
    }

    fn check_hub(&mut self) {
        if let Err(broken) = self.hub.hub.check() {
            self.judge.find(format!("Hub::check: {broken}"));
        }
    }

    fn commit(&mut self, out: Out) {
        let Out { mut records, effects } = out;
        if self.sabotage == Sabotage::EndTwice {
            let twice = |record: Record| match &record {
                Record::TasksEnded { .. } => vec![record.clone(), record],
                _ => vec![record],
            };
            records = records.into_iter().flat_map(twice).collect();
        }
        if records.is_empty() && effects.is_empty() {
            return;
        }
        for record in &records {
            trace::line(self.now, || format!("    record {record:?}"));
        }
        let needs = self.hub.asked + u64::from(!records.is_empty());
        let needs = if self.sabotage == Sabotage::SendBeforePersist { 0 } else { needs };
        let row = records.clone();
        self.hub.waiting.push_back(Leaving { needs, records, effects });
        if !row.is_empty() {
            self.append(row);
        }
        self.leave_durable();
    }

    /// How long the disk takes, now.
    pub(crate) fn disk_ms(&mut self) -> u64 {
        let quick = self.rng.below(self.plan.append_ms + 1);
        if self.now < self.store.slow_until { quick + self.rng.below(8_000) } else { quick }
    }

    fn append(&mut self, row: Row) {
        self.hub.asked += 1;
        self.hub.under_way += 1;
        self.store.under_way.push_back((self.hub.asked, row));
        let at = self.store.last_persist.max(self.now + self.disk_ms());
        self.store.last_persist = at;
        self.queue.push(at, Event::Persist(self.hub.generation));
    }

    /// The disk comes to the oldest row under way.
    pub(crate) fn persist(&mut self) {
        let Some((seq, _)) = self.store.under_way.front() else { return };
        if *seq != self.store.last() + 1 {
            // It expects a row before it that failed.
            self.store.under_way.pop_front();
            return self.notice(Err(RefusalCode::StoreError));
        }
        if self.store.disk <= Disk::Reserve {
            self.row_is_durable();
            return self.notice(Ok(self.store.last()));
        }
        let code = if self.store.disk == Disk::Full { RefusalCode::StoreFull } else { RefusalCode::StoreError };
        // A write that failed may be there all the same; what comes behind it expects another sequence, and fails too.
        if self.store.disk == Disk::Failing && self.rng.percent(20) {
            self.row_is_durable();
            self.notice(Err(code));
        }
        for _ in std::mem::take(&mut self.store.under_way) {
            self.notice(Err(code));
        }
    }

    fn row_is_durable(&mut self) {
        if let Some(row) = self.store.persist() {
            self.judge.persisted(&row);
        }
    }

    fn notice(&mut self, end: Result<u64, RefusalCode>) {
        let at = self.store.last_notice.max(self.now + self.rng.below(3));
        self.store.last_notice = at;
        self.queue.push(at, Event::Appended(self.hub.generation, end));
    }

    pub(crate) fn appended(&mut self, end: Result<u64, RefusalCode>) {
        self.hub.under_way -= 1;
        match end {
            Ok(seq) => {
                self.hub.durable = self.hub.durable.max(seq);
                self.leave_durable();
            }
            Err(_) if self.sabotage == Sabotage::GoOnAfterFailure => self.hub.durable = self.hub.asked,
            Err(code) => {
                self.hub.failed.get_or_insert(code);
            }
        }
        if self.hub.under_way == 0 {
            match self.hub.failed.take() {
                Some(code) => self.recover(code),
                None => self.maybe_snapshot(),
            }
        }
        if !self.hub.commands.is_empty() {
            self.wake_driver();
        }
    }

    fn maybe_snapshot(&mut self) {
        let every = self.plan.snapshot_every;
        if self.hub.waiting.is_empty() && self.store.last() == self.hub.durable && self.sabotage == Sabotage::None {
            let same = *self.hub.hub.durable() == self.judge.truth && self.hub.published == self.judge.truth;
            if !same {
                self.judge.find("the hub's durable part differs from what is recorded".to_owned());
            }
            if every > 0 && self.store.rows_since_snapshot() >= every {
                let durable = self.hub.published.clone();
                self.store.take_snapshot(self.hub.durable, &durable);
            }
        }
    }

    /// Nothing is under way any more: what waits is refused, and what the store took is read back.
    fn recover(&mut self, code: RefusalCode) {
        trace::line(self.now, || format!("the hub starts over: {code:?}"));
        for leaving in std::mem::take(&mut self.hub.waiting) {
            for effect in leaving.effects {
                if let Effect::Answer { session, request, .. } | Effect::Refuse { session, request, .. } = effect {
                    self.mail(session, CONTROL, FromHub::Refused { request, code });
                }
            }
        }
        self.hub.is_recovering = true;
        self.hub.failed_full = code == RefusalCode::StoreFull;
        let at = self.now + self.disk_ms();
        self.queue.push(at, Event::Recovered(self.hub.generation));
    }

    /// A new state, made of what the store really holds: clients stay, workers come back.
    pub(crate) fn recovered(&mut self) {
        self.hub.is_recovering = false;
        let found = self.store.jobs_after(self.hub.published_at);
        let names = self.workers.iter().map(|worker| worker.name.to_string());
        self.judge.start_over(names);
        let before = std::mem::replace(&mut self.hub.hub, Hub::new(Now::default(), Durable::default(), table()));
        self.take_up();
        let mut watched: Vec<JobId> = self.hub.watches.keys().map(|(job, _, _)| *job).collect();
        watched.dedup();
        let mut out = Out::default();
        let clients = self.hub.hub.succeed(self.hub_now(), &before, &watched, &found, &mut out);
        for session in self.hub.mailboxes.clone() {
            if !clients.contains(&session) {
                self.carry_out(Effect::Close { session, reason: "store_error" });
            }
        }
        self.hub.told_full = self.hub.failed_full;
        if self.hub.told_full {
            self.take(self.hub_now(), Input::Storage { full: true }, &mut out);
        }
        self.commit(out);
        self.give_keys();
    }

    fn leave_durable(&mut self) {
        while self.hub.waiting.front().is_some_and(|leaving| leaving.needs <= self.hub.durable) {
            let Some(Leaving { needs, records, effects }) = self.hub.waiting.pop_front() else { return };
            self.hub.published_at = self.hub.published_at.max(needs);
            records.iter().for_each(|record| self.hub.published.apply(record));
            for effect in effects {
                trace::line(self.now, || format!("hub -> {effect:?}"));
                self.carry_out(effect);
            }
        }
    }

    pub(crate) fn mail(&mut self, session: SessionId, lane: usize, frame: FromHub) {
        if self.hub.mailboxes.contains(&session) {
            self.send_from_hub(conn_of(session), lane, frame);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Admit { session, .. } => self.mail(session, CONTROL, FromHub::Welcome),
            Effect::Answer { session, request, answer } => self.answer(session, request, answer),
            Effect::Refuse { session, request, refusal } => {
                self.mail(session, CONTROL, FromHub::Refused { request, code: refusal.code });
            }
            Effect::Tell { session, message } => self.tell(session, message),
            Effect::Publish { event } => self.publish(&event),
            Effect::Close { session, .. } => {
                self.hub.mailboxes.remove(&session);
                self.end_session(conn_of(session), false);
            }
            Effect::Changed { change } => self.judge.changed(&change),
            // No plan asks for a notice, and the model starts its workers itself.
            Effect::GrantJoin { .. } | Effect::Notify { .. } | Effect::Rate { .. } => {}
            Effect::LocalWorkers { .. } => {}
        }
    }
}
