//! Stories about the worker's decisions, and random inputs for it.
//!
//! Each story takes the effects out one by one and ends with "nothing else was asked for".
//! Deliberately not here: the hub's side of the same stories (`hub_scenarios`).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use essaim_core::worker::{Effect, Input, PhaseEnd, Worker};
use essaim_proto::job::{FileSpec, Needs, Phase, Reason, StdinSpec, TaskResult, Verdict};
use essaim_proto::link::{GivenBack, PhaseSpec, Progress, Start, TakeBack};
use essaim_proto::{AttemptId, JobId, TaskId, TaskSet};
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};

/// A worker and what it asked for.
struct Story {
    worker: Worker,
    effects: VecDeque<Effect>,
}

fn id(job: u64) -> AttemptId {
    AttemptId { job: JobId(job), task: TaskId(1), attempt: 1 }
}

fn phase(phase: Phase) -> PhaseSpec {
    PhaseSpec { phase, argv: vec![phase.name().into()], wall_ms: 5_000, ..PhaseSpec::default() }
}

/// A compiled program that reads what is typed.
fn compiled(job: u64) -> Start {
    Start {
        attempt: id(job),
        lang: "c".into(),
        files: vec![FileSpec { path: "main.c".into(), ..FileSpec::default() }],
        phases: vec![phase(Phase::Compile), phase(Phase::Run)],
        stdin: StdinSpec::Live,
        ..Start::default()
    }
}

fn end(verdict: Verdict) -> PhaseEnd {
    PhaseEnd { verdict, exit_code: Some(3), cpu_ms: 10, wall_ms: 20, memory_peak_bytes: 7, ..PhaseEnd::default() }
}

impl Story {
    /// A connected worker.
    fn new(slots: u32) -> Story {
        let mut story = Story { worker: Worker::new(slots), effects: VecDeque::new() };
        story.connect(&[], &[]);
        story
    }

    fn give(&mut self, input: Input) {
        let mut out = Vec::new();
        self.worker.step(input, &mut out);
        self.effects.extend(out);
    }

    fn connect(&mut self, keep: &[AttemptId], kill: &[AttemptId]) {
        self.give(Input::Registered { keep: keep.to_vec(), kill: kill.to_vec() });
    }

    fn start(&mut self, start: Start) {
        self.give(Input::Start(Box::new(start)));
    }

    fn phase_ended(&mut self, job: u64, verdict: Verdict) {
        self.give(Input::PhaseEnded { attempt: id(job), end: end(verdict) });
    }

    fn take(&mut self) -> Effect {
        self.effects.pop_front().expect("nothing was asked for")
    }

    fn prepare(&mut self, job: u64) {
        let effect = self.take();
        assert!(matches!(&effect, Effect::Prepare { attempt, .. } if *attempt == id(job)), "{effect:?}");
    }

    /// The phase is launched, and the hub told when it can hear it.
    fn launch(&mut self, job: u64, wanted: Phase, reads: StdinSpec) {
        match self.take() {
            Effect::Launch { attempt, phase, stdin, .. } => {
                assert_eq!((attempt, phase.phase, stdin), (id(job), wanted, reads));
            }
            other => panic!("expected a launch: {other:?}"),
        }
    }

    fn told(&mut self, job: u64, phase: Phase, waiting_for_input: bool) {
        assert_eq!(self.take(), Effect::Progress(Progress { attempt: id(job), phase, waiting_for_input }));
    }

    fn clean(&mut self, job: u64) {
        assert_eq!(self.take(), Effect::Clean { attempt: id(job) });
    }

    fn forget(&mut self, job: u64) {
        assert_eq!(self.take(), Effect::Forget { attempt: id(job) });
    }

    fn ended(&mut self, job: u64, verdict: Verdict) -> TaskResult {
        match self.take() {
            Effect::End { attempt, result } if attempt == id(job) => {
                assert_eq!(result.verdict, verdict);
                *result
            }
            other => panic!("expected an end: {other:?}"),
        }
    }

    /// Started, prepared, compiled; its program runs.
    fn run(&mut self, job: u64) {
        self.start(compiled(job));
        self.prepare(job);
        self.give(Input::Prepared { attempt: id(job) });
        self.launch(job, Phase::Compile, StdinSpec::Empty);
        self.told(job, Phase::Compile, false);
        self.phase_ended(job, Verdict::Ok);
        self.launch(job, Phase::Run, StdinSpec::Live);
        self.told(job, Phase::Run, false);
    }

    fn nothing_else(&self) {
        assert!(self.effects.is_empty(), "something else was asked for: {:#?}", self.effects);
    }
}

/// In which order is a program prepared, compiled, run, told and forgotten? We follow one; only its last phase reads
/// what is typed, and the times of both phases are added.
#[test]
fn a_program_walks_from_start_to_forgotten() {
    let mut story = Story::new(1);
    story.run(1);
    assert_eq!((story.worker.busy(), story.worker.held()), (1, vec![id(1)]));
    story.phase_ended(1, Verdict::RuntimeError);
    story.clean(1);
    let result = story.ended(1, Verdict::RuntimeError);
    assert_eq!((result.phase, result.exit_code, result.cpu_ms, result.wall_ms), (Phase::Run, Some(3), 20, 40));
    assert_eq!((story.worker.busy(), story.worker.held()), (0, vec![id(1)]));
    story.give(Input::EndAck { attempt: id(1) });
    story.forget(1);
    assert!(story.worker.held().is_empty());
    story.nothing_else();
}

/// Does a compiler's error end the attempt, with the compiler's exit code and without a run?
#[test]
fn a_compile_error_is_the_end() {
    let mut story = Story::new(1);
    story.start(compiled(1));
    story.prepare(1);
    story.give(Input::Prepared { attempt: id(1) });
    story.launch(1, Phase::Compile, StdinSpec::Empty);
    story.told(1, Phase::Compile, false);
    story.phase_ended(1, Verdict::CompileError);
    story.clean(1);
    let result = story.ended(1, Verdict::CompileError);
    assert_eq!((result.phase, result.exit_code), (Phase::Compile, Some(3)));
    story.nothing_else();
}

/// Is a time limit told with the limit of its phase?
#[test]
fn a_time_limit_names_the_limit() {
    let mut story = Story::new(1);
    story.run(1);
    story.phase_ended(1, Verdict::TimeLimit);
    story.clean(1);
    let reason = story.ended(1, Verdict::TimeLimit).reason.unwrap();
    assert_eq!((reason.code.as_str(), reason.params["limit_ms"].as_str()), ("wall_limit", "5000"));
    story.nothing_else();
}

/// What does a stop do in each stage? While files come it ends at once, and the folder that comes too late is removed;
/// while something runs that is killed, once; after the end nothing.
#[test]
fn a_stop_works_in_each_stage() {
    let mut story = Story::new(1);
    let stop = || Input::Stop { attempt: id(1) };
    story.give(stop());
    story.nothing_else();

    story.start(compiled(1));
    story.prepare(1);
    story.give(stop());
    story.clean(1);
    story.ended(1, Verdict::Cancelled);
    story.give(stop());
    story.give(Input::Prepared { attempt: id(1) });
    story.clean(1);
    story.give(Input::EndAck { attempt: id(1) });
    story.forget(1);
    story.give(Input::Prepared { attempt: id(1) });
    story.clean(1);

    // While it compiles: the compiler may have ended well meanwhile, the program does not start.
    for compiler in [Verdict::Cancelled, Verdict::Ok] {
        story.start(compiled(1));
        story.prepare(1);
        story.give(Input::Prepared { attempt: id(1) });
        story.launch(1, Phase::Compile, StdinSpec::Empty);
        story.told(1, Phase::Compile, false);
        story.give(stop());
        assert_eq!(story.take(), Effect::Kill { attempt: id(1) });
        story.give(stop());
        story.phase_ended(1, compiler);
        story.clean(1);
        story.ended(1, Verdict::Cancelled);
        story.give(Input::EndAck { attempt: id(1) });
        story.forget(1);
    }

    // While it runs: a program that ended by itself before the kill keeps its end.
    for (program, told) in [(Verdict::Cancelled, Verdict::Cancelled), (Verdict::Ok, Verdict::Ok)] {
        story.run(1);
        story.give(stop());
        assert_eq!(story.take(), Effect::Kill { attempt: id(1) });
        story.phase_ended(1, program);
        story.clean(1);
        story.ended(1, told);
        story.give(Input::EndAck { attempt: id(1) });
        story.forget(1);
    }
    story.nothing_else();
}

/// Is a start that comes twice run once? Before, while and after it runs, until its end is recorded.
#[test]
fn a_second_start_is_ignored() {
    let mut story = Story::new(2);
    story.start(compiled(1));
    story.prepare(1);
    story.start(compiled(1));
    story.give(Input::Prepared { attempt: id(1) });
    story.launch(1, Phase::Compile, StdinSpec::Empty);
    story.told(1, Phase::Compile, false);
    story.start(compiled(1));
    story.give(Input::Prepared { attempt: id(1) });
    story.phase_ended(1, Verdict::CompileError);
    story.clean(1);
    story.ended(1, Verdict::CompileError);
    story.start(compiled(1));
    story.nothing_else();
}

/// What if there is no slot? The attempt waits for one. And if the worker finishes? What waits goes back, and what comes
/// then does as an internal error, for another node.
#[test]
fn what_finds_no_room_waits_or_goes_back() {
    let mut story = Story::new(1);
    story.run(1);
    story.start(compiled(2));
    story.start(compiled(4));
    story.nothing_else();
    story.phase_ended(1, Verdict::Ok);
    story.clean(1);
    story.ended(1, Verdict::Ok);
    story.prepare(2);
    story.give(Input::Drain);
    let given = GivenBack { job: JobId(4), tasks: vec![(1, TaskSet::one(TaskId(1)))] };
    assert_eq!(story.take(), Effect::GiveBack(given));
    story.start(compiled(3));
    story.clean(3);
    assert_eq!(story.ended(3, Verdict::InternalError).reason.unwrap().code, "worker_stopped");
    story.nothing_else();
}

/// Is what could not be prepared or launched told with its reason, and such a word out of turn ignored?
#[test]
fn failures_before_the_program_are_told() {
    let mut story = Story::new(2);
    let reason = || Reason::new("disk_full");
    let launch_failed =
        |job, verdict| Input::LaunchFailed { attempt: id(job), verdict, reason: Reason::new("program_missing") };
    story.start(compiled(1));
    story.prepare(1);
    story.give(launch_failed(1, Verdict::Rejected)); // Out of turn.
    story.give(Input::PrepareFailed { attempt: id(1), reason: reason() });
    story.clean(1);
    assert_eq!(story.ended(1, Verdict::InternalError).reason, Some(reason()));
    story.run(2);
    story.give(Input::PrepareFailed { attempt: id(2), reason: reason() }); // Out of turn: the program runs.
    story.nothing_else();
    story.give(launch_failed(2, Verdict::Rejected));
    story.clean(2);
    assert_eq!(story.ended(2, Verdict::Rejected).reason.unwrap().code, "program_missing");

    // A launch that failed while the program was to be killed is what was wanted.
    story.run(3);
    story.give(Input::Stop { attempt: id(3) });
    assert_eq!(story.take(), Effect::Kill { attempt: id(3) });
    story.give(launch_failed(3, Verdict::InternalError));
    story.clean(3);
    story.ended(3, Verdict::Cancelled);

    let empty = Start { phases: Vec::new(), ..compiled(4) };
    story.start(empty);
    story.prepare(4);
    story.give(Input::Prepared { attempt: id(4) });
    story.clean(4);
    story.ended(4, Verdict::Rejected);
    story.nothing_else();
}

/// Does the hub hear when a program waits for someone to type, once for each change, and not of a compiler that ended?
#[test]
fn waiting_for_input_is_told_when_it_changes() {
    let mut story = Story::new(1);
    let waits = |waiting| Input::WaitingForInput { attempt: id(1), waiting };
    story.give(waits(true));
    story.run(1);
    story.give(waits(false));
    story.give(waits(true));
    story.told(1, Phase::Run, true);
    story.give(waits(true));
    story.give(waits(false));
    story.told(1, Phase::Run, false);
    story.phase_ended(1, Verdict::Ok);
    story.clean(1);
    story.ended(1, Verdict::Ok);
    story.give(waits(true));
    story.nothing_else();
}

/// Do programs run on without a connection, and does the hub hear on the next one how far each is? One still runs, one
/// has ended, one was never the hub's business.
#[test]
fn a_lost_connection_stops_nothing() {
    let mut story = Story::new(3);
    story.run(1);
    story.run(2);
    story.give(Input::Disconnected);
    story.phase_ended(1, Verdict::Ok);
    story.clean(1);
    story.give(Input::WaitingForInput { attempt: id(2), waiting: true });
    story.nothing_else();
    assert_eq!(story.worker.held(), [id(1), id(2)]);
    for _ in 0..2 {
        story.connect(&[id(1), id(2), id(77)], &[id(78)]);
        story.ended(1, Verdict::Ok);
        story.told(2, Phase::Run, true);
        story.nothing_else();
        story.give(Input::Disconnected);
    }
}

/// Is what the hub gave up killed and forgotten without a word, in each stage? Its slot is free at once: the hub gives
/// it away together with the list.
#[test]
fn the_kill_list_kills_and_forgets() {
    let mut story = Story::new(3);
    story.run(1);
    story.run(2);
    story.phase_ended(2, Verdict::Ok);
    story.clean(2);
    story.ended(2, Verdict::Ok);
    story.start(compiled(3));
    story.prepare(3);
    story.give(Input::Disconnected);
    story.connect(&[], &[id(1), id(2), id(3)]);
    assert_eq!(story.take(), Effect::Kill { attempt: id(1) });
    story.forget(2);
    story.clean(3);
    story.forget(3);
    assert!(story.worker.held().is_empty());

    for job in 11..=13 {
        story.start(compiled(job));
        story.prepare(job);
    }
    story.phase_ended(1, Verdict::Cancelled);
    story.clean(1);
    story.forget(1);
    story.nothing_else();
}

/// Is something that was being killed by order already, and is on the kill list now, killed once and forgotten?
#[test]
fn a_stopped_program_on_the_kill_list_is_forgotten() {
    let mut story = Story::new(1);
    story.run(1);
    story.give(Input::Stop { attempt: id(1) });
    assert_eq!(story.take(), Effect::Kill { attempt: id(1) });
    story.connect(&[], &[id(1)]);
    story.nothing_else();
    story.phase_ended(1, Verdict::Cancelled);
    story.clean(1);
    story.forget(1);
    story.nothing_else();
}

/// When is a draining worker idle? When nothing runs and every end is recorded; at once when it has nothing.
#[test]
fn a_draining_worker_is_idle_when_all_is_recorded() {
    let mut story = Story::new(1);
    story.run(1);
    story.give(Input::Drain);
    assert!(story.worker.is_draining());
    story.phase_ended(1, Verdict::Ok);
    story.clean(1);
    story.ended(1, Verdict::Ok);
    story.nothing_else();
    story.give(Input::EndAck { attempt: id(1) });
    story.forget(1);
    assert_eq!(story.take(), Effect::Idle);
    story.nothing_else();

    let mut idle = Story::new(1);
    idle.give(Input::Drain);
    assert_eq!(idle.take(), Effect::Idle);
    idle.nothing_else();
}

/// A worker that the hub does not need: does it finish what runs and give the rest back, does it go on when the hub has
/// changed its mind, and leave in the end all the same when whoever started it says so?
#[test]
fn a_worker_leaves_or_stays_as_its_hub_says() {
    let mut story = Story::new(1);
    story.run(1);
    story.give(Input::Start(Box::new(Start { tasks: Some(TaskSet::span(1, 5)), ..compiled(2) })));
    story.nothing_else();
    story.give(Input::Leave { leave: true });
    let given = GivenBack { job: JobId(2), tasks: vec![(1, TaskSet::span(1, 5))] };
    assert_eq!(story.take(), Effect::GiveBack(given));
    assert!(story.worker.is_draining());
    story.nothing_else();
    story.give(Input::Leave { leave: false });
    assert!(!story.worker.is_draining());
    story.phase_ended(1, Verdict::Ok);
    story.clean(1);
    story.ended(1, Verdict::Ok);
    story.give(Input::EndAck { attempt: id(1) });
    story.forget(1);
    story.nothing_else();

    story.give(Input::Drain);
    assert_eq!(story.take(), Effect::Idle);
    story.give(Input::Leave { leave: false });
    assert!(story.worker.is_draining(), "that is not the hub's to take back");
    assert_eq!(story.take(), Effect::Idle);
    story.nothing_else();
}

/// Does an acknowledgement that comes too early forget a program that runs?
#[test]
fn an_early_acknowledgement_is_ignored() {
    let mut story = Story::new(1);
    story.run(1);
    story.give(Input::EndAck { attempt: id(1) });
    story.give(Input::EndAck { attempt: id(9) });
    assert_eq!(story.worker.busy(), 1);
    story.nothing_else();
}

/// An array of commands that need nothing but a slot.
fn plain_array(job: u64, tasks: TaskSet) -> Start {
    Start { tasks: Some(tasks), phases: vec![phase(Phase::Run)], ..Start { attempt: id(job), ..Start::default() } }
}

/// The programs that a story launched since, with how many may run at once; all else that it asked for is dropped.
fn launched(story: &mut Story) -> Vec<(AttemptId, Option<u32>)> {
    let mut launched = Vec::new();
    while let Some(effect) = story.effects.pop_front() {
        match effect {
            Effect::Prepare { attempt, .. } => story.give(Input::Prepared { attempt }),
            Effect::Launch { attempt, at_once, .. } => launched.push((attempt, at_once)),
            _ => {}
        }
    }
    launched
}

/// Ends programs that took so long, and gives what is launched in their place.
fn end_after(story: &mut Story, ended: &[(AttemptId, Option<u32>)], wall_ms: u64) -> Vec<(AttemptId, Option<u32>)> {
    for (attempt, _) in ended {
        story.give(Input::PhaseEnded { attempt: *attempt, end: PhaseEnd { wall_ms, ..end(Verdict::Ok) } });
    }
    launched(story)
}

/// Are tasks that take a moment launched several for each slot, others one for each, and who comes with a higher priority
/// when those in hand are over? Does what comes back unbegun wait here again, and go back to the hub when asked for?
#[test]
fn tasks_of_a_moment_are_handed_over_in_numbers() {
    let mut story = Story::new(2);
    story.start(plain_array(1, TaskSet::span(1, 500)));
    let mut hand = launched(&mut story);
    for _ in 0..4 {
        assert!(hand.len() == 2 && hand.iter().all(|(_, at_once)| at_once.is_none()), "{hand:?}");
        hand = end_after(&mut story, &hand, 1);
    }
    // The last end but one was too early to know: task 9 has a slot of its own, the others share what is left.
    assert_eq!(hand[0], (AttemptId { task: TaskId(9), ..id(1) }, None));
    assert!(hand.len() == 11 && hand[1..].iter().all(|(_, at_once)| *at_once == Some(1)), "{hand:?}");
    let more = end_after(&mut story, &hand[..1], 1);
    assert!(more.len() == 10 && more.iter().all(|(_, at_once)| *at_once == Some(2)), "{more:?}");
    assert_eq!(story.worker.busy(), 20);
    assert_eq!(end_after(&mut story, &hand[1..5], 1).len(), 4);

    // A job with a slot of its own waits until those in hand leave it one; the array goes on with what is left.
    story.start(Start { priority: 1, phases: vec![phase(Phase::Run)], attempt: id(2), ..Start::default() });
    let mut hand: Vec<AttemptId> = story.worker.held().into_iter().filter(|held| held.job == JobId(1)).collect();
    hand.retain(|attempt| (14..34).contains(&attempt.task.0));
    assert!(launched(&mut story).is_empty());
    let all: Vec<_> = hand.iter().map(|attempt| (*attempt, None)).collect();
    assert_eq!(end_after(&mut story, &all[..18], 1), []);
    let next = end_after(&mut story, &all[18..19], 1);
    assert_eq!(next[0], (id(2), None));
    assert!(next.len() == 10 && next[1..].iter().all(|(_, at_once)| *at_once == Some(1)), "{next:?}");

    // One of them runs on: nothing is told at first, and what comes back is here as if it had never begun.
    story.give(Input::RunsOn { attempt: all[19].0 });
    let back: Vec<AttemptId> = next[1..].iter().map(|(attempt, _)| *attempt).collect();
    back.iter().for_each(|attempt| story.give(Input::Returned { attempt: *attempt }));
    assert_eq!(launched(&mut story), []);
    story.give(Input::Returned { attempt: back[0] });
    assert_eq!(story.worker.busy(), 2);
    story.give(Input::TakeBack(TakeBack { job: JobId(1), tasks: TaskSet::one(back[3].task) }));
    let given = vec![(1, TaskSet::one(back[3].task))];
    assert_eq!(story.take(), Effect::GiveBack(GivenBack { job: JobId(1), tasks: given }));
    story.phase_ended(2, Verdict::Ok);
    assert_eq!(launched(&mut story), [(back[0], None)], "it is the first, alone");
    story.give(Input::Tick);
    story.give(Input::Tick);
    let told = |effect: &Effect| matches!(effect, Effect::Progress(Progress { attempt, .. }) if *attempt == all[19].0);
    assert!(story.effects.iter().any(told), "{:?}", story.effects);
}

/// What if one comes back that is to be stopped, or while the worker finishes?
#[test]
fn what_comes_back_unwanted_is_over() {
    let mut story = Story::new(1);
    story.start(plain_array(1, TaskSet::span(1, 40)));
    let mut hand = launched(&mut story);
    while hand.len() == 1 {
        hand = end_after(&mut story, &hand, 0);
    }
    let (stopped, other) = (hand[0].0, hand[1].0);
    story.give(Input::Stop { attempt: stopped });
    assert_eq!(story.take(), Effect::Kill { attempt: stopped });
    story.give(Input::Returned { attempt: stopped });
    assert_eq!(story.take(), Effect::Clean { attempt: stopped });
    assert!(
        matches!(story.take(), Effect::End { attempt, result } if attempt == stopped && result.verdict == Verdict::Cancelled)
    );
    story.give(Input::Drain);
    story.effects.clear();
    story.give(Input::Returned { attempt: other });
    assert_eq!(story.take(), Effect::Clean { attempt: other });
    assert_eq!(story.take(), Effect::Forget { attempt: other });
    let tasks = vec![(1, TaskSet::one(other.task))];
    assert_eq!(story.take(), Effect::GiveBack(GivenBack { job: JobId(1), tasks }));
    story.nothing_else();
}

#[derive(Debug, Clone)]
enum Step {
    Start(u64, usize),
    /// The tasks of an array, with so many slots each, of this priority.
    StartMany(u64, u32, i32),
    TakeBack(u64),
    Tick,
    Stop(u64),
    EndAck(u64),
    Prepared(u64),
    PrepareFailed(u64),
    LaunchFailed(u64),
    PhaseEnded(u64, usize),
    Waiting(u64, bool),
    Disconnect,
    /// Each bit: does the hub want to keep that attempt?
    Register(u8),
    Drain,
    Leave(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let job = || 0..6u64;
    prop_oneof![
        6 => (job(), 0..3usize).prop_map(|(j, phases)| Step::Start(j, phases)),
        3 => (job(), 0..3u32, 0..2i32).prop_map(|(j, cpus, priority)| Step::StartMany(j, cpus, priority)),
        1 => job().prop_map(Step::TakeBack),
        1 => Just(Step::Tick),
        2 => job().prop_map(Step::Stop),
        3 => job().prop_map(Step::EndAck),
        6 => job().prop_map(Step::Prepared),
        1 => job().prop_map(Step::PrepareFailed),
        1 => job().prop_map(Step::LaunchFailed),
        6 => (job(), 0..4usize).prop_map(|(j, verdict)| Step::PhaseEnded(j, verdict)),
        1 => (job(), any::<bool>()).prop_map(|(j, waiting)| Step::Waiting(j, waiting)),
        2 => Just(Step::Disconnect),
        3 => any::<u8>().prop_map(Step::Register),
        1 => prop::bool::weighted(0.2).prop_map(Step::Leave),
        1 => prop::bool::weighted(0.1).prop_map(|d| if d { Step::Drain } else { Step::Disconnect }),
    ]
}

/// What the worker's shell knows of an attempt.
#[derive(Debug, Default)]
struct Seen {
    prepared: bool,
    runs: bool,
    /// Results that were told; all must be equal.
    told: Option<TaskResult>,
    cleaned: bool,
}

/// Checks one effect against what was seen of its attempt.
fn check(effect: &Effect, connected: bool, seen: &mut BTreeMap<AttemptId, Seen>) {
    match effect {
        Effect::Prepare { attempt, .. } => {
            let known = seen.get_mut(attempt).unwrap();
            assert!(!std::mem::replace(&mut known.prepared, true), "prepared once");
        }
        Effect::Launch { attempt, .. } => {
            let known = seen.get_mut(attempt).unwrap();
            assert!(!known.runs && !known.cleaned && known.told.is_none(), "one program at a time, none after the end");
            known.runs = true;
        }
        Effect::Kill { attempt } => assert!(seen[attempt].runs),
        Effect::End { attempt, result } => {
            assert!(connected);
            let known = seen.get_mut(attempt).unwrap();
            assert!(!known.runs && known.cleaned, "the end comes after the program");
            assert_eq!(known.told.get_or_insert_with(|| (**result).clone()), &**result);
        }
        Effect::Clean { attempt } => {
            // Also of what is unknown: a folder that came too late.
            let Some(known) = seen.get_mut(attempt) else { return };
            assert!(!known.runs, "nobody takes the folder from under a program");
            known.cleaned = true;
        }
        Effect::Forget { attempt } => {
            let known = seen.remove(attempt).unwrap();
            assert!(!known.runs && known.cleaned);
        }
        Effect::GiveBack(given) => {
            assert!(connected);
            for (attempt, tasks) in &given.tasks {
                for task in tasks.iter() {
                    let gone = seen.remove(&AttemptId { job: given.job, task, attempt: *attempt }).unwrap();
                    assert!(!gone.prepared, "what has begun is not given back");
                }
            }
        }
        Effect::Progress(_) => assert!(connected),
        Effect::Idle => assert!(seen.values().all(|known| !known.runs)),
    }
}

/// The tasks of every array: the first is one that the other steps are about.
fn many() -> TaskSet {
    TaskSet::span(1, 5)
}

fn input(step: Step, worker: &Worker) -> Input {
    let verdicts = [Verdict::Ok, Verdict::RuntimeError, Verdict::Cancelled, Verdict::TimeLimit];
    match step {
        Step::Start(job, phases) => {
            let mut start = compiled(job);
            start.phases.truncate(phases);
            Input::Start(Box::new(start))
        }
        Step::StartMany(job, cpus, priority) => {
            let (tasks, needs) = (Some(many()), Needs { cpus, ..Needs::default() });
            Input::Start(Box::new(Start { tasks, needs, priority, ..compiled(job) }))
        }
        Step::TakeBack(job) => Input::TakeBack(TakeBack { job: JobId(job), tasks: TaskSet::span(1, 9) }),
        Step::Tick => Input::Tick,
        Step::Stop(job) => Input::Stop { attempt: id(job) },
        Step::EndAck(job) => Input::EndAck { attempt: id(job) },
        Step::Prepared(job) => Input::Prepared { attempt: id(job) },
        Step::PrepareFailed(job) => Input::PrepareFailed { attempt: id(job), reason: Reason::new("disk_full") },
        Step::LaunchFailed(job) => {
            Input::LaunchFailed { attempt: id(job), verdict: Verdict::Rejected, reason: Reason::new("program_missing") }
        }
        Step::PhaseEnded(job, verdict) => {
            let end = PhaseEnd { cpu_ms: u64::MAX, wall_ms: u64::MAX, ..end(verdicts[verdict]) };
            Input::PhaseEnded { attempt: id(job), end }
        }
        Step::Waiting(job, waiting) => Input::WaitingForInput { attempt: id(job), waiting },
        Step::Disconnect => Input::Disconnected,
        Step::Register(bits) => {
            let (keep, kill) = worker.held().into_iter().partition(|attempt| bits & (1 << attempt.job.0) != 0);
            Input::Registered { keep, kill }
        }
        Step::Drain => Input::Drain,
        Step::Leave(leave) => Input::Leave { leave },
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens in whatever order: does each attempt end once, with one program at a time, nothing told without
    /// a connection, and no more programs wanted than slots?
    #[test]
    fn an_attempt_ends_once(slots in 1..4u32, steps in prop::collection::vec(step(), 1..150)) {
        let mut worker = Worker::new(slots);
        let mut connected = false;
        let mut seen: BTreeMap<AttemptId, Seen> = BTreeMap::new();
        for step in steps {
            match &step {
                // A phase ends only if it runs: the shell knows that.
                Step::PhaseEnded(job, _) | Step::LaunchFailed(job) => match seen.get_mut(&id(*job)) {
                    Some(known) if known.runs => known.runs = false,
                    _ => continue,
                },
                // A folder is made only where one was asked for; the word may come late.
                Step::Prepared(job) | Step::PrepareFailed(job)
                    if seen.get(&id(*job)).is_some_and(|known| !known.prepared) =>
                {
                    continue;
                }
                Step::Start(job, _) => {
                    seen.entry(id(*job)).or_default();
                }
                Step::StartMany(job, ..) => {
                    for task in many().iter() {
                        seen.entry(AttemptId { task, ..id(*job) }).or_default();
                    }
                }
                Step::Disconnect => connected = false,
                Step::Register(_) => connected = true,
                _ => {}
            }
            let input = input(step, &worker);
            let mut out = Vec::new();
            worker.step(input, &mut out);
            for effect in &out {
                check(effect, connected, &mut seen);
            }
            let wanted = worker.held().iter().filter(|id| seen.get(id).is_some_and(|known| known.runs)).count();
            prop_assert!(wanted <= slots as usize);
        }
    }
}
