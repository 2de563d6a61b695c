//! The hub's decisions: who may, what is accepted, where it runs, when it is lost.
//!
//! The hub's driver calls [`Hub::step`] with one [`Input`] after the other and carries out what the [`Out`] holds:
//! first the records become durable, then the effects leave ("persist before send").
//!
//! ```text
//!            submit                place               ended
//!   client ─────────▶ Ready ─────────────────▶ Placed ─────────▶ Done | Failed | Cancelled
//!                       ▲                        │
//!                       └── node lost (3 times: ends as lost)
//! ```
//!
//! Always true: [`Durable`] changes only by [`Durable::apply`] of a record that is in the same [`Out`], so a replayed
//! journal gives an equal durable part; a task has one attempt at a time and ends once; a late word about an older
//! attempt changes nothing and is counted.
//! Deliberately not here: output and input bytes (they pass beside), sockets, the clock, sentences.

mod accepted;
mod array;
mod changes;
mod check;
mod checked;
mod durable;
mod effect;
mod ephemeral;
mod input;
mod job;
mod jobs;
mod keys;
mod listed;
mod local;
mod nodes;
mod notice;
mod pace;
mod patience;
mod placement;
mod queue;
mod quota;
mod record;
mod remembered;
mod snapshot;
mod submits;
mod succession;
mod view;
mod waiting;

pub use accepted::Accepted;
pub use array::{Array, Placed, Tries};
pub use check::Broken;
pub use durable::{Durable, Key};
pub use effect::{Answer, Effect, Out, ToWorker};
pub use input::{Input, NewKey, Query, SessionId};
pub use job::{Job, Standing, Task};
pub use jobs::cancelled_by;
pub use listed::Jobs;
pub use local::{LocalPlan, LocalSettings};
pub use notice::Url;
pub use quota::{KeyLimits, Rules};
pub use record::{NewJob, Record, SmallOutput, decode_batch, encode_batch};
pub use remembered::Remembered;
pub use view::{may_watch, sight};

use crate::Now;
use crate::lang::LanguageTable;
use crate::limits::LOST_ATTEMPTS_MAX;
use ephemeral::Ephemeral;
use essaim_proto::hello::Role;
use essaim_proto::job::{JobState, Phase};
use essaim_proto::{AttemptId, JobId, KeyName, NodeName, Refusal, RefusalCode};
use local::Local;
use nodes::{LiveNode, Needed};
use pace::Pace;
use patience::Patience;
use queue::Queue;
use quota::{Uploads, Used};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use submits::Submits;

/// The hub's state: a durable part and a volatile one.
#[derive(Debug)]
pub struct Hub {
    durable: Durable,
    live: Live,
    table: LanguageTable,
    rules: Rules,
}

/// What a restart forgets.
#[derive(Debug, Default)]
struct Live {
    sessions: BTreeMap<SessionId, Session>,
    nodes: BTreeMap<NodeName, LiveNode>,
    /// Attempts that a node holds, as far as the hub knows.
    attempts: BTreeMap<AttemptId, Held>,
    /// Jobs by the key that their client drew. Derived from the durable part.
    submits: Submits,
    /// Jobs with tasks that could run now. Derived from the durable part.
    queue: Queue,
    /// How many attempts of each job run, as far as their workers have said so. Derived from `attempts`.
    running: BTreeMap<JobId, u32>,
    /// Jobs to be cancelled before the step ends, and because of whom.
    doomed: VecDeque<(JobId, String)>,
    /// Slots that the tasks of each owner have now. Derived.
    used: BTreeMap<KeyName, u64>,
    /// What each key uses. Derived, but for files that no job needs yet, which are in `uploads`.
    uses: BTreeMap<KeyName, Used>,
    uploads: Uploads,
    /// Jobs that wait for a job that is not over. Derived.
    dependents: BTreeMap<JobId, BTreeSet<JobId>>,
    /// How long tasks of arrays take.
    pace: Pace,
    /// Arrays of which something changed in this step, and how their jobs were told to stand last.
    touched: BTreeSet<JobId>,
    told: BTreeMap<JobId, JobState>,
    /// Where a ready task was lost before: it goes elsewhere if it can, so that a broken node that ends everything at
    /// once does not take all of its tries.
    avoid: BTreeMap<JobId, NodeName>,
    /// Jobs to cancel when a session ends.
    ephemeral: Ephemeral,
    /// Clients' jobs that are over, oldest first, to forget beyond the limit. Derived.
    ended: VecDeque<JobId>,
    /// Jobs whose end is to be posted and whose record does not say yet what became of that. Derived.
    notices: BTreeSet<JobId>,
    /// Beginnings of the URLs that may be posted to; nothing until the shell has said so.
    notify_urls: Option<Vec<Url>>,
    local: Local,
    draining: bool,
    /// The store has no room: nothing new is accepted or placed.
    storage_full: bool,
    patience: Patience,
    late_messages: u64,
}

/// Who speaks on a session.
#[derive(Debug, Clone)]
enum Session {
    Client { key: KeyName, role: Role },
    Worker { node: NodeName },
}

/// An attempt on a node.
#[derive(Debug, Clone)]
struct Held {
    node: NodeName,
    /// What runs, once the worker has said so.
    phase: Option<Phase>,
    waiting_for_input: bool,
    stopping: bool,
    /// Leased beyond the slots of its node.
    is_ahead: bool,
    /// When its node was last told to start it, on the monotonic clock, and how often.
    told_mono_ms: u64,
    told: u32,
}

impl Held {
    /// Does a process of it run?
    fn runs(&self) -> bool {
        self.phase.is_some_and(|phase| phase != Phase::Prepare)
    }

    fn by(node: NodeName, now: Now) -> Held {
        let (phase, waiting_for_input, stopping, is_ahead) = (None, false, false, false);
        Held { node, phase, waiting_for_input, stopping, is_ahead, told_mono_ms: now.mono_ms, told: 0 }
    }
}

impl Hub {
    /// A hub whose durable part was replayed (or is new).
    pub fn new(now: Now, durable: Durable, table: LanguageTable) -> Hub {
        let mut hub = Hub { durable, live: Live::default(), table, rules: Rules::default() };
        hub.look_at_the_clock(now);
        hub.derive(now);
        hub
    }

    /// Rebuilds from the durable part what is derived from it: the ready tasks, and a fresh lease for every attempt
    /// that was placed before the restart.
    fn derive(&mut self, now: Now) {
        let mut over: Vec<(u64, JobId)> = Vec::new();
        let mut placed = Vec::new();
        for (id, job) in self.durable.jobs.iter() {
            if job.is_over() {
                over.push((job.ended_ms.unwrap_or(0), id));
                continue;
            }
            if job.accepted.is_ephemeral() {
                self.live.ephemeral.orphan(now, id);
            }
            for (attempt, node) in job.placements(id) {
                // A cancel may have been recorded and its word to the worker lost: it is said again.
                placed.push((attempt, Held { stopping: job.is_unwanted(attempt.task), ..Held::by(node.clone(), now) }));
            }
        }
        self.live.submits = Submits::of(&self.durable.jobs);
        self.derive_uses();
        for (attempt, held) in placed {
            self.live.nodes.entry(held.node.clone()).or_insert_with(|| LiveNode::offline(now));
            self.hold(attempt, held);
        }
        let live: Vec<JobId> = self.durable.jobs.iter().filter(|(_, job)| !job.is_over()).map(|(id, _)| id).collect();
        live.into_iter().for_each(|job| self.is_ready(job));
        let arrays = self.durable.jobs.iter().filter(|(_, job)| job.array.is_some() && !job.is_over());
        self.live.told = arrays.map(|(id, job)| (id, self.job_state(id, job))).collect();
        over.sort_unstable();
        self.live.ended = over.into_iter().map(|(_, id)| id).collect();
    }

    /// The durable part, for snapshots and for checks.
    pub fn durable(&self) -> &Durable {
        &self.durable
    }

    /// Takes one input; what must happen is added to `out`.
    pub fn step(&mut self, now: Now, input: Input, out: &mut Out) {
        self.look_at_the_clock(now);
        match input {
            Input::ClientOpened { session, secret } => self.open_client(session, secret, out),
            Input::Register { session, name, register } => self.register(now, session, name, *register, out),
            Input::Join { session, request, secret, wish } => self.join(now, session, request, secret, wish, out),
            Input::SessionClosed { session, clean } => self.close_session(now, session, clean, out),
            Input::Submit { session, request, key, spec } => self.submit(now, session, request, key, *spec, out),
            Input::Cancel { session, request, job, tasks } => self.cancel(now, session, request, job, tasks, out),
            Input::Rerun { session, request, rerun } => self.rerun(now, session, request, rerun, out),
            Input::Query { session, request, query } => self.query(session, request, &query, out),
            Input::Upload { session, request, hash, size_bytes } => {
                self.upload(now, session, request, (hash, size_bytes), out);
            }
            Input::KeyCreate { session, request, name, key } => self.create_key(now, session, request, name, key, out),
            Input::KeySet { session, request, name, set } => self.set_key(session, request, name, &set, out),
            Input::KeyRevoke { session, request, name } => self.revoke_key(now, session, request, name, out),
            Input::JoinCreate { session, request, secret, uses, ttl_ms } => {
                self.create_join(now, session, request, secret, uses, ttl_ms, out);
            }
            Input::LocalKey { name, role, secret } => self.local_key(now, name, role, secret, out),
            Input::LocalJoin { secret, uses, ttl_ms } => {
                self.local_join(now, secret, uses, ttl_ms, out);
            }
            Input::Report { session, report, rtt_us } => self.report(now, session, *report, rtt_us, out),
            Input::Progress { session, progress } => self.progress(now, session, progress, out),
            Input::Ended { session, ended } => self.ended(now, session, *ended, out),
            Input::EndedMany { session, ended } => self.ended_many(now, session, *ended, out),
            Input::GivenBack { session, given } => self.given_back(now, session, &given, out),
            Input::WorkerProcessEnded { node } => self.worker_process_ended(now, node, out),
            Input::LocalPlan { plan } => self.plan_local(now, *plan, out),
            Input::LocalSet { session, request, set } => self.set_local(now, session, request, set, out),
            Input::Tick => self.tick(now, out),
            Input::Drain => self.live.draining = true,
            Input::NotifyUrls { urls } => self.allow_notices(now, urls, out),
            Input::NoticeEnded { job, tries, error } => self.notice_ended(now, job, tries, error, out),
            Input::Storage { full } => self.storage(now, full, out),
        }
        self.cancel_doomed(now, out);
        self.tell_arrays(now, out);
    }

    /// The store has room, or none: what needs some is refused by name and nothing new is placed; the rest goes on.
    fn storage(&mut self, now: Now, full: bool, out: &mut Out) {
        let had_room = !std::mem::replace(&mut self.live.storage_full, full);
        if !full && !had_room {
            self.place(now, out);
        }
    }

    /// # Errors
    /// `store_full` while the store has no room for anything new.
    fn has_room(&self) -> Result<(), Refusal> {
        if self.live.storage_full { Err(RefusalCode::StoreFull.into()) } else { Ok(()) }
    }

    /// Messages about attempts that were no longer current: ignored and counted.
    pub fn late_messages(&self) -> u64 {
        self.live.late_messages
    }

    /// Jobs whose programs are on a node now: what a shutdown waits for.
    pub fn running(&self) -> Vec<(JobId, String, NodeName)> {
        let named = |(attempt, held): (&AttemptId, &Held)| {
            let job = self.durable.jobs.get(&attempt.job)?;
            Some((attempt.job, job.accepted.name().to_owned(), held.node.clone()))
        };
        self.live.attempts.iter().filter_map(named).collect()
    }

    /// Notes a record: it changes the durable part now and becomes durable before any effect of this batch leaves. Facts
    /// of one kind about tasks of one array become one record.
    fn note(&mut self, record: Record, out: &mut Out) {
        let before = self.before(&record);
        match &record {
            Record::JobAccepted(new) => self.live.submits.insert(&new.accepted, new.job),
            Record::JobForgotten { job } => {
                if let Some(known) = self.durable.jobs.get(job) {
                    self.live.submits.remove(&known.accepted, *job);
                }
            }
            _ => {}
        }
        self.durable.apply(&record);
        if let Some(before) = before {
            self.count(before);
        }
        let left = match out.records.last_mut() {
            Some(last) => last.join(record),
            None => Some(record),
        };
        out.records.extend(left);
    }

    /// A node has the attempt from now on.
    fn hold(&mut self, attempt: AttemptId, held: Held) {
        let Some(job) = self.durable.jobs.get(&attempt.job) else { return };
        let needs = Needed::of(job);
        if let Some(node) = self.live.nodes.get_mut(&held.node) {
            if held.is_ahead && node.ahead == 0 {
                // How long it stands still there is counted from now.
                node.moved_mono_ms = held.told_mono_ms;
            }
            node.take(attempt, needs, held.is_ahead);
        }
        *self.live.used.entry(job.accepted.owner().clone()).or_default() += u64::from(needs.slots);
        *self.live.running.entry(attempt.job).or_default() += u32::from(held.runs());
        self.live.attempts.insert(attempt, held);
    }

    /// Its worker says what runs of it.
    fn runs_now(&mut self, attempt: AttemptId, phase: Option<Phase>, waiting_for_input: bool) {
        let Some(held) = self.live.attempts.get_mut(&attempt) else { return };
        let ran = held.runs();
        (held.phase, held.waiting_for_input) = (phase, waiting_for_input);
        let running = self.live.running.entry(attempt.job).or_default();
        *running = running.saturating_add(u32::from(held.runs())).saturating_sub(u32::from(ran));
    }

    /// No node has it any more; says which one had.
    fn release(&mut self, now: Now, attempt: AttemptId) -> Option<NodeName> {
        let held = self.live.attempts.remove(&attempt)?;
        if let Some(running) = self.live.running.get_mut(&attempt.job) {
            *running = running.saturating_sub(u32::from(held.runs()));
        }
        let Some(job) = self.durable.jobs.get(&attempt.job) else { return Some(held.node) };
        let needs = Needed::of(job);
        if let Some(node) = self.live.nodes.get_mut(&held.node) {
            node.give_back(attempt, needs, held.is_ahead);
            node.moved_mono_ms = now.mono_ms;
        }
        if let Some(used) = self.live.used.get_mut(job.accepted.owner()) {
            *used = used.saturating_sub(u64::from(needs.slots));
            if *used == 0 {
                self.live.used.remove(job.accepted.owner());
            }
        }
        Some(held.node)
    }
}
