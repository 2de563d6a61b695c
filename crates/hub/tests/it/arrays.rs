//! An array from its submission to its end: what its watchers are sent, task by task.

use crate::scene::{Scene, Worker, command, noise, soon, submit_of};
use essaim_net::{Client, Subscription};
use essaim_proto::api::{JobCancel, JobEvent, OutputAck, OutputChunk, Stream, Submit, Submitted, TaskList, Watch};
use essaim_proto::job::{ArraySpec, JobSpec, JobState, TaskResult, TaskState, TaskView, Verdict};
use essaim_proto::limits::OUTPUT_WINDOW_BYTES;
use essaim_proto::link::{Ended, EndedMany, Start, TaskEnd};
use essaim_proto::{Frame, Function, InstanceId, JobId, TaskId, TaskSet};
use std::collections::{BTreeMap, BTreeSet};

fn array(tasks: &str) -> JobSpec {
    let tasks = tasks.parse().unwrap();
    JobSpec { array: Some(Box::new(ArraySpec { tasks, lines: None })), ..command() }
}

/// What a task prints: most nothing much, some a lot, some nothing.
fn printed(task: TaskId) -> [Vec<u8>; 2] {
    let n = u64::from(task.0);
    let length = match n % 10 {
        0 => 0,
        7 => 1_500,
        _ => 40,
    };
    [noise(length, n + 1), noise(length / 5, n + 7)]
}

fn fails(task: TaskId) -> bool {
    task.0 % 100 == 99
}

fn end_of(task: TaskId, attempt: u32) -> TaskEnd {
    let [stdout, stderr] = printed(task);
    let verdict = if fails(task) { Verdict::RuntimeError } else { Verdict::Ok };
    let result = TaskResult {
        verdict,
        exit_code: Some(i32::from(fails(task))),
        stdout_bytes: stdout.len() as u64,
        stderr_bytes: stderr.len() as u64,
        ..TaskResult::default()
    };
    TaskEnd { task, attempt, result, stdout, stderr }
}

/// Runs what it is given, the last first, until so many tasks have ended.
async fn work(worker: &mut Worker, mut left: usize) {
    while left > 0 {
        let start: Start = worker.expect_past(Function::START).await;
        let tasks: Vec<TaskId> = start.tasks.as_ref().unwrap().iter().collect();
        let ends: Vec<TaskEnd> =
            tasks.iter().rev().take(left).map(|task| end_of(*task, start.attempt.attempt)).collect();
        left -= ends.len();
        let ended = EndedMany { job: start.attempt.job, ends };
        soon(worker.connection.sender.bulk(Frame::of(Function::ENDED_MANY, 0, &ended))).await.unwrap();
    }
}

/// A watch of an array and all that it has brought.
struct Watcher {
    client: Client,
    frames: Subscription,
    output: BTreeMap<TaskId, [Vec<u8>; 2]>,
    /// Tasks in the order in which their output came.
    order: Vec<TaskId>,
    ended: Vec<TaskId>,
    failed: Vec<TaskId>,
    received: u64,
    acks: bool,
}

impl Watcher {
    fn new(client: &Client, frames: Subscription) -> Watcher {
        Watcher {
            client: client.clone(),
            frames,
            output: BTreeMap::new(),
            order: Vec::new(),
            ended: Vec::new(),
            failed: Vec::new(),
            received: 0,
            acks: true,
        }
    }

    async fn submit(client: &Client, spec: JobSpec, in_order: bool) -> (JobId, Watcher) {
        let submit = Submit { watch: true, in_order, ..submit_of(spec) };
        let (Submitted { job, .. }, frames) = soon(client.open(&submit)).await.unwrap();
        (job, Watcher::new(client, frames))
    }

    async fn watch(client: &Client, watch: Watch) -> Watcher {
        let (_, frames) = soon(client.open(&Watch { output: true, ..watch })).await.unwrap();
        Watcher::new(client, frames)
    }

    /// Takes the next frame; gives the event if it was one.
    async fn step(&mut self) -> Option<JobEvent> {
        let frame = soon(self.frames.next()).await.expect("the watch goes on");
        if frame.function == Function::EVENT {
            let event: JobEvent = frame.message().unwrap();
            self.ended.extend(event.ended.iter());
            if let Some(task) = &event.task {
                assert!(event.ended.contains(task.task) && task.result.is_some());
                self.failed.push(task.task);
            }
            return Some(event);
        }
        assert_eq!(frame.function, Function::OUTPUT);
        let chunk: OutputChunk = frame.message().unwrap();
        let task = chunk.attempt.task;
        if self.order.last() != Some(&task) {
            assert!(!self.order.contains(&task), "task {task} in two pieces");
            self.order.push(task);
        }
        assert!(!self.ended.contains(&task), "output behind its end");
        let known = &mut self.output.entry(task).or_default()[usize::from(chunk.stream == Stream::Stderr)];
        assert_eq!(chunk.offset, known.len() as u64);
        known.extend(&chunk.bytes);
        self.received += chunk.bytes.len() as u64;
        if self.acks {
            self.ack().await;
        }
        None
    }

    async fn ack(&self) {
        let ack = Frame::of(Function::OUTPUT_ACK, self.frames.id(), &OutputAck { received_bytes: self.received });
        self.client.send_control(ack).await.unwrap();
    }

    /// Takes everything to the last event.
    async fn finish(&mut self) -> JobEvent {
        loop {
            if let Some(event) = self.step().await.filter(|event| event.last) {
                return event;
            }
        }
    }

    /// Is exactly this here, each task once?
    fn check(&mut self, tasks: &str) {
        let wanted: Vec<TaskId> = tasks.parse::<TaskSet>().unwrap().iter().collect();
        self.ended.sort_unstable();
        assert!(self.ended == wanted, "{:?}", self.ended.iter().copied().collect::<TaskSet>());
        for task in wanted {
            let output = self.output.remove(&task).unwrap_or_default();
            assert!(output == printed(task), "task {task}");
        }
        assert!(self.output.is_empty());
    }
}

// Does each of a thousand tasks reach a watcher whole and once, in whatever order, and one who comes late, or wants some
// of them, or wants them in order?
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_task_is_sent_whole_and_once() {
    let scene = Scene::open().await;
    let (client, mut worker) = (scene.admin().await, scene.worker().await);
    let (job, mut first) = Watcher::submit(&client, array("1-1000"), false).await;
    let (last, ()) = tokio::join!(first.finish(), work(&mut worker, 1_000));
    first.check("1-1000");
    let counts = last.counts.unwrap();
    assert_eq!((last.state, counts.total, counts.done, counts.failed), (JobState::Failed, 1_000, 990, 10));
    first.failed.sort_unstable();
    assert!(first.failed == (0..10).map(|n| TaskId(99 + 100 * n)).collect::<Vec<_>>());

    let mut late = Watcher::watch(&client, Watch { job, in_order: true, ..Watch::default() }).await;
    assert_eq!(late.finish().await.state, JobState::Failed);
    assert!(late.order.is_sorted());
    late.check("1-1000");
    let some = Watch { job, tasks: Some("3,40-49,1000-2000".parse().unwrap()), ..Watch::default() };
    let mut part = Watcher::watch(&client, some).await;
    part.finish().await;
    part.check("3,40-49,1000");
}

// In order: does what ended late and belongs before wait for nobody behind it, and everybody for it?
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_in_order_waits_for_its_turn() {
    let scene = Scene::open().await;
    let (client, mut worker) = (scene.admin().await, scene.worker().await);
    let (_, mut watcher) = Watcher::submit(&client, array("11-3010"), true).await;
    let (last, ()) = tokio::join!(watcher.finish(), work(&mut worker, 3_000));
    assert!(last.last && watcher.order.is_sorted());
    watcher.check("11-3010");
}

// Is every byte sent once to one who takes nothing for a while, is then away, and asks for the rest; and do others go on
// meanwhile?
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_watcher_comes_back_for_the_rest() {
    let scene = Scene::open().await;
    let (client, mut worker) = (scene.admin().await, scene.worker().await);
    let (job, mut fast) = Watcher::submit(&client, array("1-12000"), false).await;
    let other = scene.admin().await;
    let mut slow = Watcher::watch(&other, Watch { job, ..Watch::default() }).await;
    slow.acks = false;
    let (_, ()) = tokio::join!(fast.finish(), work(&mut worker, 12_000));
    fast.check("1-12000");
    // It gets its window, and then what it is to know of that.
    while slow.received < OUTPUT_WINDOW_BYTES {
        slow.step().await;
    }
    assert_eq!(slow.received, OUTPUT_WINDOW_BYTES);
    slow.ack().await;
    slow.acks = true;
    while slow.ended.len() < 8_000 {
        slow.step().await;
    }
    // It forgets what it does not know to be whole.
    let known: BTreeSet<TaskId> = slow.ended.iter().copied().collect();
    let rest: TaskSet = "1-12000".parse::<TaskSet>().unwrap().iter().filter(|task| !known.contains(task)).collect();
    slow.output.retain(|task, _| known.contains(task));
    let back = scene.admin().await;
    let mut again = Watcher::watch(&back, Watch { job, tasks: Some(rest), ..Watch::default() }).await;
    again.finish().await;
    slow.ended.extend(&again.ended);
    slow.output.extend(again.output);
    slow.check("1-12000");
}

async fn ends(client: &Client, job: JobId) -> Vec<TaskView> {
    let mut found: Vec<TaskView> = Vec::new();
    loop {
        let after = found.last().map(|task| task.task);
        let states = vec![TaskState::Done, TaskState::Failed, TaskState::Cancelled];
        let page = soon(client.request(&TaskList { job, after, states, ..TaskList::default() })).await.unwrap();
        found.extend(page.tasks);
        if !page.more {
            return found;
        }
    }
}

// A hub that ends in the middle: does the next one know each end once, with its result and its output, large and small,
// and go on to a watcher that comes back?
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_in_the_middle_tells_no_end_twice() {
    let scene = Scene::open().await;
    let (client, machine) = (scene.admin().await, scene.machine().await);
    let mut worker = Worker::connect(scene.workers(), machine.clone(), InstanceId([1; 16]), Vec::new()).await;
    let job = soon(client.request(&submit_of(array("1-1000")))).await.unwrap().job;
    // The first prints much, the long way.
    let start: Start = worker.expect(Function::START).await;
    let large = noise(300_000, 3);
    worker.output(start.attempt, Stream::Stdout, 0, &large).await;
    let stdout_bytes = large.len() as u64;
    let result = TaskResult { verdict: Verdict::Ok, exit_code: Some(0), stdout_bytes, ..TaskResult::default() };
    let ended = Ended { attempt: start.attempt, result };
    worker.connection.sender.bulk(Frame::of(Function::ENDED, 0, &ended)).await.unwrap();
    let rest = start.tasks.unwrap().iter().skip(1).map(|task| end_of(task, 1)).collect();
    worker.send(Function::ENDED_MANY, &EndedMany { job, ends: rest });
    work(&mut worker, 496).await;
    while ends(&client, job).await.len() < 500 {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await; // poll: nobody watches here
    }
    drop(worker);
    let scene = scene.restart().await;
    let client = scene.admin().await;
    let before = ends(&client, job).await;
    assert_eq!(before.len(), 500);
    assert!(before.iter().all(|task| task.result.as_ref().is_some_and(|result| result.exit_code.is_some())));
    let mut watcher = Watcher::watch(&client, Watch { job, ..Watch::default() }).await;
    let cancel = JobCancel { job, tasks: Some("701-1000".parse().unwrap()) };
    soon(client.request(&cancel)).await.unwrap();
    let last = async {
        // Started anew, it has lost what it had.
        let mut worker = Worker::connect(scene.workers(), machine, InstanceId([2; 16]), Vec::new()).await;
        let left = 1_000 - ends(&client, job).await.len();
        work(&mut worker, left).await;
    };
    let (event, ()) = tokio::join!(watcher.finish(), last);
    let counts = event.counts.unwrap();
    assert_eq!(counts.done + counts.failed + counts.cancelled, 1_000);
    assert!(watcher.output.remove(&TaskId(1)).unwrap() == [large, Vec::new()]);
    watcher.ended.sort_unstable();
    assert!(watcher.ended == (1..=1_000).map(TaskId).collect::<Vec<_>>());
    let after = ends(&client, job).await;
    assert_eq!(after.len(), 1_000);
    for task in after {
        let result = task.result.unwrap();
        assert_eq!(result.verdict == Verdict::Cancelled, task.state == TaskState::Cancelled);
        let output = watcher.output.remove(&task.task).unwrap_or_default();
        let is_plain = task.task == TaskId(1) || task.state == TaskState::Cancelled;
        assert!(output == if is_plain { Default::default() } else { printed(task.task) }, "task {}", task.task);
    }
}
