//! The model of clients: they submit under keys of their own, watch, cancel, go away and come back.
//!
//! As `essaim run` does: what was not answered is submitted again under the same key, what was answered is watched again
//! from where the output ended; a refusal for lack of room or for a shutdown is tried again later.
//! Deliberately not here: lists and pages, files, what people are shown.

use crate::net::{CONTROL, ConnId, FromHub, Peer, ToHub};
use crate::plan::{JobPlan, Lang};
use crate::trace;
use crate::world::{Event, Sabotage, World};
use essaim_proto::api::{JobEvent, JobRerun};
use essaim_proto::job::{ArraySpec, FileSpec, JobKind, JobSpec, Needs, TaskState};
use essaim_proto::{AttemptId, JobId, NodeName, RefusalCode, SubmitKey};

const BACKOFF_FIRST_MS: u64 = 100;
const BACKOFF_MAX_MS: u64 = 10_000;
const DIAL_MS: u64 = 5_000;

/// A client's process.
#[derive(Debug, Default)]
pub(crate) struct ModelClient {
    pub(crate) conn: Option<ConnId>,
    is_admitted: bool,
    /// It never comes back.
    pub(crate) is_gone: bool,
    backoff_ms: u64,
    last_request: u64,
    pub(crate) wishes: Vec<Wish>,
}

/// A job as its client sees it.
#[derive(Debug)]
pub(crate) struct Wish {
    /// Its place in the plan.
    pub(crate) plan: usize,
    key: SubmitKey,
    /// The request under which it is watched or asked for.
    request: u64,
    cancel_request: u64,
    pub(crate) job: Option<JobId>,
    wants_cancel: bool,
    /// It waits for this job.
    after: Option<JobId>,
    /// It runs this one again, all of it or what failed.
    reruns: Option<(JobId, bool)>,
    attempt: AttemptId,
    seen: [u64; 2],
    /// Refused for good, or its last event has come.
    pub(crate) is_over: bool,
}

impl ModelClient {
    fn next_request(&mut self) -> u64 {
        self.last_request += 1;
        self.last_request
    }

    pub(crate) fn is_satisfied(&self) -> bool {
        self.is_gone || self.wishes.iter().all(|wish| wish.is_over)
    }
}

fn spec_of(plan: &JobPlan, number: usize, node: Option<NodeName>, after: Option<JobId>) -> Box<JobSpec> {
    let file = |path: &str| vec![FileSpec { path: path.into(), ..FileSpec::default() }];
    let spec = JobSpec {
        name: number.to_string(),
        on: node,
        ephemeral: plan.ephemeral,
        array: plan.tasks.clone().map(|tasks| Box::new(ArraySpec { tasks, lines: None })),
        needs: Needs { cpus: plan.cpus, memory_bytes: plan.memory_bytes, ..Needs::default() },
        priority: plan.priority,
        retry: plan.retry,
        after: after.into_iter().collect(),
        ..JobSpec::default()
    };
    Box::new(match plan.lang {
        Lang::Command => JobSpec { kind: JobKind::Command, args: vec!["true".into()], ..spec },
        Lang::Python => JobSpec { files: file("main.py"), ..spec },
        Lang::C => JobSpec { files: file("main.c"), ..spec },
    })
}

impl World {
    /// What the plan says of a job; its name is its place there.
    pub(crate) fn job_plan(&self, job: JobId) -> Option<&JobPlan> {
        let place: usize = self.judge.truth.jobs.get(&job)?.accepted.name().parse().ok()?;
        self.plan.jobs.get(place)
    }

    // Wishes.

    pub(crate) fn wish(&mut self, plan: usize) {
        let at = self.plan.jobs[plan].client;
        if self.clients[at].is_gone {
            return;
        }
        let known = self.clients[at].wishes.iter().filter_map(|wish| wish.job).next_back();
        let after = known.filter(|_| self.plan.jobs[plan].is_after);
        self.new_wish(plan, after, None);
    }

    /// The client wants a job of its own to run once more.
    pub(crate) fn wish_rerun(&mut self, plan: usize) {
        let at = self.plan.jobs[plan].client;
        let Some((_, failed)) = self.plan.jobs[plan].rerun_at.filter(|_| !self.clients[at].is_gone) else { return };
        let known = self.clients[at].wishes.iter().find(|wish| wish.plan == plan).and_then(|wish| wish.job);
        if let Some(job) = known {
            self.new_wish(plan, None, Some((job, failed)));
        }
    }

    fn new_wish(&mut self, plan: usize, after: Option<JobId>, reruns: Option<(JobId, bool)>) {
        let at = self.plan.jobs[plan].client;
        let key = SubmitKey(self.rng.bytes16());
        self.clients[at].wishes.push(Wish {
            plan,
            key,
            request: 0,
            cancel_request: 0,
            job: None,
            wants_cancel: false,
            after,
            reruns,
            attempt: AttemptId::default(),
            seen: [0, 0],
            is_over: false,
        });
        let wish = self.clients[at].wishes.len() - 1;
        self.ask(at, wish);
    }

    pub(crate) fn wish_cancel(&mut self, plan: usize) {
        let at = self.plan.jobs[plan].client;
        let Some(wish) = self.clients[at].wishes.iter().position(|wish| wish.plan == plan) else { return };
        self.clients[at].wishes[wish].wants_cancel = true;
        self.ask_cancel(at, wish);
    }

    /// Says what the client wants of a job, if it can.
    fn ask(&mut self, at: usize, wish: usize) {
        let client = &mut self.clients[at];
        let Some(conn) = client.conn.filter(|_| client.is_admitted && !client.wishes[wish].is_over) else { return };
        let request = client.next_request();
        let known = &mut client.wishes[wish];
        known.request = request;
        if self.sabotage == Sabotage::NewSubmitKey && known.job.is_none() {
            known.key = SubmitKey(self.rng.bytes16());
        }
        let key = known.key;
        let frame = match known.job {
            Some(job) => ToHub::Watch { request, job, key, from: (known.attempt, known.seen) },
            None => {
                // Everything from the beginning.
                known.seen = [0, 0];
                known.attempt = AttemptId::default();
                let plan = &self.plan.jobs[known.plan];
                let node = plan.on.map(|node| self.workers[node].name.clone());
                match known.reruns {
                    Some((job, failed)) => {
                        let states = if failed { vec![TaskState::Failed] } else { Vec::new() };
                        ToHub::Rerun { request, rerun: JobRerun { job, key, states, ..JobRerun::default() } }
                    }
                    None => ToHub::Submit { request, key, spec: spec_of(plan, known.plan, node, known.after) },
                }
            }
        };
        self.send_to_hub(conn, CONTROL, frame);
        self.ask_cancel(at, wish);
    }

    fn ask_cancel(&mut self, at: usize, wish: usize) {
        let client = &mut self.clients[at];
        let Some(conn) = client.conn.filter(|_| client.is_admitted) else { return };
        let known = &client.wishes[wish];
        let Some(job) = known.job.filter(|_| known.wants_cancel && !known.is_over) else { return };
        let request = client.next_request();
        client.wishes[wish].cancel_request = request;
        let tasks = self.plan.jobs[client.wishes[wish].plan].cancel_tasks.clone();
        self.send_to_hub(conn, CONTROL, ToHub::Cancel { request, job, tasks });
    }

    /// The fault of a Submit that is said twice on one session.
    pub(crate) fn submit_again(&mut self, at: usize) {
        let count = self.clients[at].wishes.len();
        if count > 0 {
            let wish = self.rng.index(count);
            // Its answer starts a new watch; the old one goes on, and is not listened to.
            self.clients[at].wishes[wish].job = None;
            self.ask(at, wish);
        }
    }

    // Sessions.

    pub(crate) fn dial_client(&mut self, at: usize) {
        if self.clients[at].conn.is_some() || self.clients[at].is_gone {
            return;
        }
        let blocked = self.unreachable_until(Peer::Client(at)) > self.now;
        match self.connect(Peer::Client(at), ToHub::Hello) {
            Some(conn) => self.clients[at].conn = Some(conn),
            None => self.dial_client_later(at, if blocked { DIAL_MS } else { 0 }),
        }
    }

    pub(crate) fn dial_client_later(&mut self, at: usize, after: u64) {
        let client = &mut self.clients[at];
        let step = client.backoff_ms.max(BACKOFF_FIRST_MS);
        client.backoff_ms = (step * 2).min(BACKOFF_MAX_MS);
        let pause = after + step / 2 + self.rng.below(step / 2 + 1);
        self.queue.push(self.now + pause, Event::DialClient(at));
    }

    pub(crate) fn client_lost_connection(&mut self, at: usize, conn: ConnId) {
        self.conns[conn].near_is_open = false;
        if self.clients[at].conn != Some(conn) {
            return;
        }
        trace::line(self.now, || format!("client {at} has lost connection {conn}"));
        self.clients[at].conn = None;
        self.clients[at].is_admitted = false;
        self.dial_client_later(at, 0);
    }

    /// Closes its connection, and comes back or not.
    pub(crate) fn client_leaves(&mut self, at: usize, for_good: bool) {
        self.clients[at].is_gone |= for_good;
        if let Some(conn) = self.clients[at].conn {
            self.close_near(conn, true);
            self.client_lost_connection(at, conn);
        }
    }

    pub(crate) fn client_hears(&mut self, at: usize, conn: ConnId, frame: FromHub) {
        if self.clients[at].conn != Some(conn) {
            return;
        }
        let by_request = |world: &World, request| world.clients[at].wishes.iter().position(|w| w.request == request);
        match frame {
            FromHub::Welcome => {
                self.clients[at].is_admitted = true;
                self.clients[at].backoff_ms = 0;
                (0..self.clients[at].wishes.len()).for_each(|wish| self.ask(at, wish));
            }
            FromHub::Submitted { request, job } => {
                let Some(wish) = by_request(self, request) else { return };
                let known = &mut self.clients[at].wishes[wish];
                known.job = Some(job);
                self.judge.submitted(known.key, job);
                self.ask_cancel(at, wish);
            }
            FromHub::Refused { request, code } => self.refused(at, conn, request, code),
            FromHub::Output { request, attempt, stream, offset, bytes } => {
                if let Some(wish) = by_request(self, request) {
                    self.see(at, wish, attempt, stream, offset, &bytes);
                }
            }
            FromHub::Event { request, event } => {
                if let Some(wish) = by_request(self, request).filter(|_| event.last) {
                    self.last_event(at, wish, &event);
                }
            }
            _ => {}
        }
    }

    fn refused(&mut self, at: usize, conn: ConnId, request: u64, code: RefusalCode) {
        trace::line(self.now, || format!("client {at}: request {request} is refused: {code:?}"));
        if request == 0 {
            self.close_near(conn, true);
            return self.client_lost_connection(at, conn);
        }
        let is_late = matches!(code, RefusalCode::StoreFull | RefusalCode::StoreError | RefusalCode::ShuttingDown);
        let mut wishes = self.clients[at].wishes.iter();
        if let Some(wish) = wishes.position(|wish| wish.request == request) {
            let known = &mut self.clients[at].wishes[wish];
            if is_late {
                let again = self.now + self.rng.between(500, 2_000);
                self.queue.push(again, Event::AskAgain { client: at, wish, request });
            } else {
                if let Some(job) = known.job {
                    self.judge.find(format!("job {job} was accepted, and its watch is refused: {code:?}"));
                }
                known.is_over = true;
            }
        } else if let Some(wish) = self.clients[at].wishes.iter().position(|wish| wish.cancel_request == request)
            && is_late
        {
            let again = self.now + self.rng.between(500, 2_000);
            self.queue.push(again, Event::CancelAgain { client: at, wish, request });
        }
    }

    pub(crate) fn ask_again(&mut self, at: usize, wish: usize, request: u64) {
        if self.clients[at].wishes[wish].request == request {
            self.ask(at, wish);
        }
    }

    pub(crate) fn cancel_again(&mut self, at: usize, wish: usize, request: u64) {
        if self.clients[at].wishes[wish].cancel_request == request {
            self.ask_cancel(at, wish);
        }
    }

    fn see(&mut self, at: usize, wish: usize, attempt: AttemptId, stream: usize, offset: u64, bytes: &[u8]) {
        self.judge.bytes("a client", attempt, stream, offset, bytes);
        let known = &mut self.clients[at].wishes[wish];
        if attempt != known.attempt {
            if attempt < known.attempt {
                self.judge.find(format!("a reader of {} is given the older {attempt}", known.attempt));
            }
            known.attempt = attempt;
            known.seen = [0, 0];
        }
        if known.seen[stream] != offset {
            let text =
                format!("a reader of {attempt}, stream {stream}, is at {} and is given {offset}", known.seen[stream]);
            self.judge.find(text);
        }
        known.seen[stream] = offset + bytes.len() as u64;
    }

    fn last_event(&mut self, at: usize, wish: usize, event: &JobEvent) {
        let known = &mut self.clients[at].wishes[wish];
        known.is_over = true;
        let Some(task) = &event.task else { return };
        let Some(result) = task.result.as_ref().filter(|result| result.memory_peak_bytes != 0) else { return };
        let counted = [result.stdout_bytes, result.stderr_bytes];
        let attempt = task.attempt_id(event.job);
        let seen = if known.attempt == attempt { known.seen } else { [0, 0] };
        if seen != counted {
            self.judge.find(format!("client {at} has seen {seen:?} bytes of {attempt}, which counts {counted:?}"));
        }
    }
}
