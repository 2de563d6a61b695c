//! Workers of the hub's own machine: when is one more started, when does one go, and what does local mode do?
//!
//! A [`House`] does what `up` and its workers do: it starts whoever is wanted, and lets go whoever was told to leave and
//! has nothing left.

use crate::array_story::{LONG_MS, array};
use crate::story::{Story, attempt, command, instance, node, python, register, toolchains};
use essaim_core::hub::{Answer, Effect, Input, LocalPlan, Query, SessionId, ToWorker};
use essaim_core::limits::{LOCAL_WAIT_MS, LOCAL_WORKERS_MAX};
use essaim_proto::api::{LocalSet, LocalWorkers, NodePage};
use essaim_proto::hello::Role;
use essaim_proto::job::{FileSpec, JobSpec, Needs, Verdict};
use essaim_proto::link::{Leave, Register, Report};
use essaim_proto::node::NodeState;
use essaim_proto::{AttemptId, JobId, RefusalCode};
use std::collections::{BTreeMap, BTreeSet};

/// One beyond the first goes after so long without work.
const IDLE_MS: u64 = 20_000;

/// An `up` with its workers of one slot.
struct House {
    story: Story,
    admin: SessionId,
    /// Numbers that the hub wants, as it told them last.
    wanted: BTreeSet<u32>,
    /// Each time that it told others.
    told: Vec<BTreeSet<u32>>,
    /// Those that are here.
    here: BTreeMap<u32, SessionId>,
    /// Those of them that were told to leave.
    leaving: BTreeSet<u32>,
    running: BTreeSet<AttemptId>,
    starts: u8,
}

fn plan(workers: u32, workers_max: u32) -> LocalPlan {
    LocalPlan { workers, workers_max, idle_ms: IDLE_MS, slots: 1, memory_bytes: 1 << 30, ..LocalPlan::default() }
}

fn name(number: u32) -> String {
    format!("local-{number}")
}

fn program(path: &str) -> JobSpec {
    JobSpec { files: vec![FileSpec { path: path.into(), ..FileSpec::default() }], ..JobSpec::default() }
}

fn set(mode: Option<bool>, workers: Option<u32>, workers_max: Option<u32>) -> LocalSet {
    LocalSet { mode, workers, workers_max }
}

impl House {
    /// So many always, and up to so many; the first ones are here.
    fn new(workers: u32, workers_max: u32) -> House {
        House::of(Story::new(), plan(workers, workers_max))
    }

    fn of(mut story: Story, plan: LocalPlan) -> House {
        let admin = story.admin();
        let mut house = House::empty(story, admin);
        house.give(Input::LocalPlan { plan: Box::new(plan) });
        house.start_missing();
        house
    }

    /// Before `up` has said anything.
    fn empty(story: Story, admin: SessionId) -> House {
        House {
            story,
            admin,
            wanted: BTreeSet::new(),
            told: Vec::new(),
            here: BTreeMap::new(),
            leaving: BTreeSet::new(),
            running: BTreeSet::new(),
            starts: 0,
        }
    }

    fn give(&mut self, input: Input) {
        self.story.give(input);
        self.hear();
    }

    /// The end of the story.
    fn end(mut self) {
        self.hear();
        self.story.end();
    }

    /// What the hub said.
    fn hear(&mut self) {
        let effects = self.story.skip_all();
        self.heed(effects);
    }

    fn heed(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::LocalWorkers { numbers } => {
                    self.wanted = numbers.clone();
                    self.told.push(numbers);
                }
                Effect::Tell { session, message: ToWorker::Leave(Leave { leave }) } => {
                    let number = *self.here.iter().find(|(_, here)| **here == session).expect("it is here").0;
                    match leave {
                        true => assert!(self.leaving.insert(number), "told twice"),
                        false => assert!(self.leaving.remove(&number), "it stays anyhow"),
                    }
                }
                Effect::Tell { session, message: ToWorker::Start(start) } => {
                    let number = self.here.iter().find(|(_, here)| **here == session).map(|(number, _)| number);
                    assert!(number.is_none_or(|number| !self.leaving.contains(number)), "work for one that leaves");
                    self.running.extend(start.attempts());
                }
                _ => {}
            }
        }
    }

    fn says(&mut self, number: u32, probing: bool) -> Register {
        self.starts += 1;
        let toolchains = if probing { Vec::new() } else { toolchains(&["python"]) };
        let memory_bytes = if number == 1 { 1 << 30 } else { 0 };
        Register {
            local: true,
            local_number: number,
            instance: instance(self.starts),
            probing,
            toolchains,
            memory_bytes,
            ..register(1)
        }
    }

    /// A worker comes.
    fn comes(&mut self, number: u32, probing: bool) -> SessionId {
        let says = self.says(number, probing);
        let session = self.story.next_session();
        self.here.insert(number, session);
        self.give(Input::Register { session, name: node(&name(number)), register: Box::new(says) });
        session
    }

    fn start_missing(&mut self) {
        for number in self.wanted.clone() {
            if !self.here.contains_key(&number) {
                self.comes(number, false);
            }
        }
    }

    /// Time passes; workers come and go as the hub wants.
    fn pass(&mut self, seconds: u64) {
        for _ in 0..2 * seconds {
            self.tick(500);
        }
    }

    fn tick(&mut self, ms: u64) {
        self.story.stand_still(ms, ms);
        self.hear();
        for session in self.here.values().copied().collect::<Vec<_>>() {
            let held = self.held(session);
            let report = Report { held, draining: self.is_leaving(session), ..Report::default() };
            self.story.report(session, report);
        }
        self.hear();
        let done: Vec<u32> = self.leaving.iter().copied().filter(|n| self.held(self.here[n]).is_empty()).collect();
        for number in done {
            self.leaving.remove(&number);
            let session = self.here.remove(&number).unwrap();
            self.give(Input::SessionClosed { session, clean: true });
        }
        self.start_missing();
    }

    fn is_leaving(&self, session: SessionId) -> bool {
        self.leaving.iter().any(|number| self.here[number] == session)
    }

    /// What runs on a worker.
    fn held(&self, session: SessionId) -> Vec<AttemptId> {
        let number = self.here.iter().find(|(_, here)| **here == session).map(|(number, _)| *number);
        let on = |attempt: &&AttemptId| {
            let job = &self.story.hub.durable().jobs[&attempt.job];
            job.placed(attempt.task).map(|(node, _)| node.to_string()) == number.map(name)
        };
        self.running.iter().filter(on).copied().collect()
    }

    /// Submits; some of it may start.
    fn submit(&mut self, spec: JobSpec) -> JobId {
        self.story.ask_submit(self.admin, spec);
        let job = self.story.submitted(false);
        self.hear();
        job
    }

    fn single(&mut self) -> JobId {
        self.submit(command(&["true"]))
    }

    fn several(&mut self, jobs: u32) {
        for _ in 0..jobs {
            self.single();
        }
    }

    /// Everything that runs ends, and what starts by that goes on.
    fn end_running(&mut self) {
        for attempt in std::mem::take(&mut self.running) {
            let job = &self.story.hub.durable().jobs[&attempt.job];
            let node = job.placed(attempt.task).unwrap().0.to_string();
            let number = self.here.keys().find(|number| name(**number) == node);
            let session = self.here[number.expect("it runs here")];
            match job.array.is_some() {
                true => self.story.end_tasks(
                    session,
                    attempt.job,
                    attempt.attempt,
                    &attempt.task.to_string(),
                    (Verdict::Ok, LONG_MS),
                ),
                false => self.story.ended(session, attempt, Verdict::Ok),
            }
            self.hear();
        }
    }

    fn wanted(&self) -> Vec<u32> {
        self.wanted.iter().copied().collect()
    }

    fn change(&mut self, set: LocalSet) -> LocalWorkers {
        let request = self.story.next_request();
        self.story.give(Input::LocalSet { session: self.admin, request, set });
        let effects = self.story.skip_all();
        let answer = effects.iter().find_map(|effect| match effect {
            Effect::Answer { answer: Answer::Local(local), .. } => Some(*local),
            _ => None,
        });
        self.heed(effects);
        answer.expect("an answer")
    }

    fn reason(&mut self, job: JobId) -> String {
        self.story.task(self.admin, job).reason.unwrap().code
    }

    fn nodes(&mut self) -> NodePage {
        match self.story.query(self.admin, Query::NodeList { after: None }) {
            Answer::Nodes(page) => page,
            other => panic!("expected nodes: {other:?}"),
        }
    }

    /// How a node stands, and why.
    fn node(&mut self, number: u32) -> (NodeState, String) {
        let found = self.nodes().nodes.into_iter().find(|node| node.name == name(number)).unwrap();
        (found.state, found.reason.unwrap().code)
    }
}

/// Is one more started when work has waited, and not a moment before?
#[test]
fn one_more_is_started_after_the_wait() {
    let mut house = House::new(1, 3);
    assert_eq!(house.wanted(), [1]);
    for _ in 0..2 {
        house.single();
    }
    // The wait is counted from the look that saw it.
    house.tick(100);
    house.tick(LOCAL_WAIT_MS - 1);
    assert_eq!(house.wanted(), [1]);
    house.tick(1);
    assert_eq!(house.wanted(), [1, 2]);
    assert_eq!(house.running.len(), 2);
    house.pass(10);
    assert_eq!(house.wanted(), [1, 2], "nothing waits any more");
    assert_eq!(house.nodes().local, Some(LocalWorkers { mode: true, workers: 1, workers_max: 3, wanted: 2 }));
    house.end();
}

/// Do tasks that each begin within a moment start nobody, however long they go on coming?
#[test]
fn a_stream_that_flows_starts_nobody() {
    let mut house = House::new(1, 3);
    house.single();
    for _ in 0..100 {
        // There is always one that waits, and never the same for long.
        house.single();
        house.tick(LOCAL_WAIT_MS / 2);
        house.end_running();
    }
    assert_eq!(house.wanted(), [1]);
    assert_eq!(house.told.len(), 1);
    house.end();
}

/// Do many get all that there may be, one after the other, each when the one before it is here and knows what it can run?
#[test]
fn up_to_the_most_one_after_the_other() {
    let mut house = House::new(1, 3);
    house.submit(JobSpec { array: array("1-100").array, ..python() });
    house.story.stand_still(500, 500);
    house.story.stand_still(LOCAL_WAIT_MS, LOCAL_WAIT_MS);
    house.hear();
    assert_eq!(house.wanted(), [1, 2]);
    for _ in 0..20 {
        house.story.stand_still(500, 500);
    }
    house.hear();
    assert_eq!(house.wanted(), [1, 2], "the second one has not come");
    let second = house.comes(2, true);
    for _ in 0..20 {
        house.story.stand_still(500, 500);
    }
    house.hear();
    assert_eq!(house.wanted(), [1, 2], "it is looking around");
    let report = Report { toolchains: Some(toolchains(&["python"])), ..Report::default() };
    house.story.report(second, report);
    house.hear();
    assert_eq!(house.running.len(), 2);
    house.pass(30);
    assert_eq!(house.wanted(), [1, 2, 3], "and no more than that");
    assert_eq!(house.running.len(), 3);
    let told: Vec<usize> = house.told.iter().map(BTreeSet::len).collect();
    assert_eq!(told, [1, 2, 3]);
    house.end();
}

/// What no worker of this machine could ever run, or what waits for something else than slots, starts none.
#[test]
fn nobody_is_started_in_vain() {
    let needs = |needs: Needs| JobSpec { needs, ..command(&["true"]) };
    let labels = [("gpu".to_owned(), "a100".to_owned())].into();
    let vain = [
        ("another node", JobSpec { on: Some(node("far")), ..command(&["true"]) }),
        ("a worker of this machine, by name", JobSpec { on: Some(node("local-1")), ..command(&["true"]) }),
        ("a label", needs(Needs { labels, ..Needs::default() })),
        ("slots", needs(Needs { cpus: 2, ..Needs::default() })),
        ("memory, which only the first one may promise", needs(Needs { memory_bytes: 1 << 20, ..Needs::default() })),
        ("a language", program("main.c")),
    ];
    for (what, spec) in vain {
        let mut house = House::new(1, 3);
        let far = Register { toolchains: toolchains(&["c"]), memory_bytes: 1 << 40, ..register(2) };
        let far_session = house.story.next_session();
        house.give(Input::Register { session: far_session, name: node("far"), register: Box::new(far) });
        // All are busy.
        for on in ["far", "far", "local-1"] {
            house.submit(JobSpec { on: Some(node(on)), ..command(&["true"]) });
        }
        assert_eq!(house.running.len(), 3);
        house.submit(spec);
        house.story.give(Input::SessionClosed { session: far_session, clean: false });
        house.hear();
        house.pass(5);
        assert_eq!(house.wanted(), [1], "{what}");
        house.end();
    }
    // It is not slots that are wanting.
    let mut house = House::new(1, 3);
    house.single();
    house.single();
    let session = house.here[&1];
    for _ in 0..10 {
        let held = house.held(session);
        house.story.report(session, Report { held, overloaded: true, ..Report::default() });
        house.story.stand_still(500, 500);
    }
    house.hear();
    assert_eq!(house.wanted(), [1], "others use the machine");
    house.give(Input::Storage { full: true });
    house.pass(5);
    assert_eq!(house.wanted(), [1], "the store is full");
    house.give(Input::Storage { full: false });
    house.give(Input::Drain);
    house.pass(5);
    assert_eq!(house.wanted(), [1], "the hub is shutting down");
    house.end();
}

/// Do those beyond the first go when they have had nothing to do, the last one first, and never one of the first?
#[test]
fn the_last_idle_one_goes_first() {
    let mut house = House::new(2, 4);
    let jobs: Vec<JobId> = (0..8).map(|_| house.single()).collect();
    house.pass(10);
    assert_eq!(house.wanted(), [1, 2, 3, 4]);
    house.end_running();
    house.end_running();
    assert!(jobs.iter().all(|job| house.story.hub.durable().jobs[job].is_over()));
    let before = house.told.len();
    house.pass(IDLE_MS / 1_000 - 1);
    assert_eq!(house.wanted(), [1, 2, 3, 4], "not yet");
    house.pass(60);
    let told: Vec<Vec<u32>> = house.told[before..].iter().map(|told| told.iter().copied().collect()).collect();
    assert_eq!(told, [vec![1, 2, 3], vec![1, 2]]);
    assert_eq!(house.here.keys().copied().collect::<Vec<_>>(), [1, 2]);
    assert_eq!(house.node(4), (NodeState::Stopped, "not_needed".into()));
    assert_eq!(house.node(2).0, NodeState::Online);
    // The numbers are used again, the lowest first.
    house.several(3);
    house.pass(5);
    assert_eq!(house.wanted(), [1, 2, 3]);
    house.end();
}

/// One that is busy stays, also when it is the last; so does every one while something waits that it could run.
#[test]
fn a_busy_one_stays() {
    let mut house = House::new(1, 3);
    house.several(3);
    house.pass(10);
    assert_eq!(house.wanted(), [1, 2, 3]);
    let on_last = house.held(house.here[&3]);
    let others: Vec<AttemptId> = house.running.iter().copied().filter(|attempt| !on_last.contains(attempt)).collect();
    house.running = others.into_iter().collect();
    house.end_running();
    house.running.extend(on_last);
    house.pass(60);
    assert_eq!(house.wanted(), [1, 3]);
    house.end_running();
    house.pass(60);
    assert_eq!(house.wanted(), [1]);
    house.end();
}

/// Does load that comes and goes leave the workers alone?
#[test]
fn flapping_load_does_not_flap_workers() {
    let mut house = House::new(1, 3);
    for _ in 0..20 {
        house.several(3);
        house.pass(8);
        house.end_running();
        house.end_running();
        house.end_running();
        house.pass(8);
    }
    let told: Vec<usize> = house.told.iter().map(BTreeSet::len).collect();
    assert_eq!(told, [1, 2, 3]);
    house.end();
}

/// Nobody at first: is the first one started when something comes, and has it all of the memory?
#[test]
fn none_until_something_comes() {
    let mut house = House::new(0, 2);
    assert!(house.wanted().is_empty());
    let job = house.submit(JobSpec { needs: Needs { memory_bytes: 1 << 20, ..Needs::default() }, ..python() });
    house.pass(3);
    assert_eq!((house.wanted(), house.running.len()), (vec![1], 1));
    house.end_running();
    assert!(house.story.hub.durable().jobs[&job].is_over());
    house.pass(60);
    assert!(house.wanted().is_empty());
    // Beside another machine without the language it is not refused: one of these might have it, and had.
    let far = Register { toolchains: toolchains(&["c"]), ..register(2) };
    let session = house.story.next_session();
    house.give(Input::Register { session, name: node("far"), register: Box::new(far) });
    house.submit(python());
    house.pass(3);
    assert_eq!((house.wanted(), house.running.len()), (vec![1], 1));
    house.story.ask_submit(house.admin, program("Main.java"));
    house.story.refused(RefusalCode::NoToolchain);
    house.end();
}

/// Local mode off: what runs is finished, nothing new begins, everybody leaves, and what waits says why. On: as before.
#[test]
fn local_mode_goes_off_and_on() {
    let mut house = House::new(2, 3);
    let first = house.single();
    let local = house.change(set(Some(false), None, None));
    assert_eq!(local, LocalWorkers { mode: false, workers: 2, workers_max: 3, wanted: 0 });
    assert_eq!(house.leaving, [1, 2].into());
    assert_eq!(house.node(1), (NodeState::Draining, "local_mode_off".into()));
    let waits = house.single();
    assert_eq!(house.reason(waits), "local_mode_off");
    house.pass(10);
    assert_eq!(house.here.keys().copied().collect::<Vec<_>>(), [1], "one has something to finish");
    assert_eq!(house.node(2), (NodeState::Stopped, "local_mode_off".into()));
    house.end_running();
    assert!(house.story.hub.durable().jobs[&first].is_over());
    house.pass(1);
    assert!(house.here.is_empty() && house.running.is_empty());
    assert_eq!(house.reason(waits), "local_mode_off");
    let named = house.submit(JobSpec { on: Some(node("local-1")), ..command(&["true"]) });
    assert_eq!(house.reason(named), "local_mode_off");
    let wide = house.submit(JobSpec { needs: Needs { cpus: 9, ..Needs::default() }, ..command(&["true"]) });
    assert_eq!(house.reason(wide), "no_node", "local mode would not help it");
    house.pass(30);
    assert!(house.wanted().is_empty());

    let local = house.change(set(Some(true), None, None));
    assert_eq!(local, LocalWorkers { mode: true, workers: 2, workers_max: 3, wanted: 2 });
    assert_eq!(house.node(2), (NodeState::Stopped, "clean_stop".into()));
    house.start_missing();
    assert_eq!(house.running, [attempt(waits, 1)].into());
    house.end_running();
    assert_eq!(house.running, [attempt(named, 1)].into());
    assert_eq!(house.node(2).0, NodeState::Online);
    house.end();
}

/// Off and on again before a task has ended: does its worker stay and take more, also when it has not heard of either?
#[test]
fn a_worker_stays_when_local_mode_is_on_again() {
    let mut house = House::new(1, 1);
    house.single();
    let session = house.here[&1];
    house.change(set(Some(false), None, None));
    let next = house.single();
    house.change(set(Some(true), None, None));
    assert!(house.leaving.is_empty());
    house.end_running();
    assert_eq!(house.running, [attempt(next, 1)].into());
    // The word to leave was on its way: what it says now is of yesterday.
    let held = house.held(session);
    house.story.report(session, Report { draining: true, held, ..Report::default() });
    assert_eq!(house.node(1), (NodeState::Draining, "draining".into()));
    house.tick(500);
    assert_eq!(house.node(1).0, NodeState::Online);
    // Its connection broke in between, and it believes that it is to leave.
    house.give(Input::SessionClosed { session, clean: false });
    let held = vec![attempt(next, 1)];
    let says = Register { held, draining: true, instance: instance(1), local_number: 1, ..register(1) };
    let session = house.story.next_session();
    house.here.insert(1, session);
    house.leaving.insert(1);
    house.give(Input::Register { session, name: node("local-1"), register: Box::new(says) });
    assert!(house.leaving.is_empty(), "it was told to stay");
    house.tick(500);
    assert_eq!(house.node(1).0, NodeState::Online);
    house.end();
}

/// What an administrator sets outlives the hub's process, and counts less than what the next `up` says itself.
#[test]
fn what_is_set_is_kept() {
    let mut house = House::new(1, 1);
    house.change(set(Some(false), Some(2), Some(4)));
    let mut story = house.story;
    story.restart_hub();
    let mut house = House::of(story, plan(1, 1));
    assert!(house.wanted().is_empty());
    assert_eq!(house.nodes().local, Some(LocalWorkers { mode: false, workers: 2, workers_max: 4, wanted: 0 }));
    house.change(set(Some(true), None, None));
    assert_eq!(house.wanted(), [1, 2]);
    let mut story = house.story;
    story.restart_hub();
    let mut house = House::of(story, LocalPlan { is_said: [true, false], ..plan(1, 1) });
    assert_eq!(house.wanted(), [1], "its own words count more");
    assert_eq!(house.change(set(None, Some(3), Some(2))).workers_max, 3, "never fewer than always");
    assert_eq!(house.wanted(), [1, 2, 3]);
    house.start_missing();
    house.change(set(None, Some(1), Some(2)));
    assert_eq!((house.wanted(), &house.leaving), (vec![1, 2], &[3].into()), "the second may go when it is idle");
    house.pass(60);
    assert_eq!(house.wanted(), [1]);
    house.story.end();
}

/// Who may, and what is refused.
#[test]
fn setting_is_for_administrators() {
    let mut story = Story::new();
    let admin = story.admin();
    let ask = |story: &mut Story, session, set| story.give(Input::LocalSet { session, request: 9, set });
    ask(&mut story, admin, set(Some(false), None, None));
    story.refused(RefusalCode::NoLocalWorkers);
    let mut house = House::of(story, plan(1, 1));
    let operator = house.story.client("oscar", Role::Operator);
    ask(&mut house.story, operator, set(Some(false), None, None));
    house.story.refused(RefusalCode::NotAllowed);
    ask(&mut house.story, house.admin, set(None, None, Some(LOCAL_WORKERS_MAX + 1)));
    house.story.refused(RefusalCode::TooMany);
    house.give(Input::Storage { full: true });
    ask(&mut house.story, house.admin, set(Some(false), None, None));
    house.story.refused(RefusalCode::StoreFull);
    assert_eq!(house.wanted(), [1]);
    house.story.end();
}

/// Workers that outlived their `up`: do those that may be there go on until they are idle, and the others finish what they
/// run and go?
#[test]
fn outlived_workers_are_taken_over() {
    let mut house = House::new(1, 2);
    assert_eq!(house.wanted(), [1]);
    house.comes(2, false);
    assert_eq!((house.wanted(), house.leaving.is_empty()), (vec![1, 2], true));
    house.comes(3, false);
    assert_eq!((house.wanted(), &house.leaving), (vec![1, 2], &[3].into()));
    house.pass(60);
    assert_eq!((house.wanted(), house.here.len()), (vec![1], 1));
    // They may be here before `up` has said what it wants.
    let mut story = house.story;
    story.restart_hub();
    let admin = story.admin();
    let mut house = House::empty(story, admin);
    for number in 1..=3 {
        house.comes(number, false);
    }
    house.give(Input::LocalPlan { plan: Box::new(plan(1, 2)) });
    assert_eq!((house.wanted(), &house.leaving), (vec![1, 2], &[3].into()));
    house.pass(60);
    assert_eq!((house.wanted(), house.here.len()), (vec![1], 1));
    // One that crashes after it was told to leave had nothing left: it has left.
    house.comes(3, false);
    house.give(Input::WorkerProcessEnded { node: node("local-3") });
    assert_eq!(house.node(3), (NodeState::Stopped, "not_needed".into()));
    house.end();
}

/// A new hub takes the place of the old one because the store failed: does `up` hear again who is wanted?
#[test]
fn a_failed_store_forgets_no_worker() {
    let mut house = House::new(1, 2);
    house.several(2);
    house.pass(5);
    assert_eq!(house.wanted(), [1, 2]);
    let durable = house.story.records.len();
    house.change(set(Some(false), None, None));
    assert!(house.wanted().is_empty());
    house.story.store_failed(durable, &[]);
    house.hear();
    assert_eq!(house.wanted(), [1], "that local mode is off was never true");
    house.leaving.clear();
    house.comes(2, false);
    assert_eq!((house.wanted(), house.leaving.is_empty()), (vec![1, 2], true), "it was never told to leave");
    house.end();
}
