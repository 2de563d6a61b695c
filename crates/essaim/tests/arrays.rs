//! The client's side of an array, against a hub that plays a written part: what a real one does only now and then (tasks
//! that print at once, a connection that breaks in the middle of a line) happens here every time.
//!
//! Always true: the part is played with the protocol's own frames, over TLS.
//! Deliberately not here: arrays on a real hub.
#![allow(clippy::unwrap_used)]

mod swarm;

use essaim_net::door::{Accepted, Door};
use essaim_net::hello::{await_hello, send_welcome};
use essaim_net::{Authority, DoorKind, FrameSender, Ticket, TicketKind, ticket};
use essaim_proto::api::{JobEvent, JobView, OutputChunk, Stream, Submit, Submitted, TaskList, TaskPage, Watch};
use essaim_proto::frame::FLAG_ANSWER;
use essaim_proto::hello::{Role, Secret, Welcome};
use essaim_proto::job::{JobState, TaskCounts, TaskResult, TaskState, TaskView, Verdict};
use essaim_proto::{AttemptId, Frame, Function, JobId, TaskId, TaskSet};
use std::sync::{Arc, Mutex};
use swarm::{Home, Ran};

const JOB: JobId = JobId(12);

/// What the hub says after one Submit or Watch.
#[derive(Clone, Default)]
struct Life {
    steps: Vec<Step>,
    /// Then the connection breaks.
    breaks: bool,
}

#[derive(Clone)]
enum Step {
    Output(OutputChunk),
    Event(JobEvent),
}

/// What it was asked.
#[derive(Default)]
struct Asked {
    submits: Vec<Submit>,
    watches: Vec<Watch>,
}

#[derive(Clone)]
struct Hub {
    lives: Arc<Mutex<Vec<Life>>>,
    asked: Arc<Mutex<Asked>>,
    /// The ends of all tasks.
    ends: Arc<Vec<TaskView>>,
}

impl Hub {
    async fn serve(self, accepted: Accepted) {
        let mut connection = accepted.connection;
        await_hello(&mut connection).await.unwrap();
        let welcome =
            Welcome { proto: 1, heartbeat_ms: 5_000, silence_ms: 30_000, role: Role::Admin, ..Welcome::default() };
        send_welcome(&mut connection, &welcome).unwrap();
        let sender = connection.sender.clone();
        while let Ok(Some(frame)) = connection.reader.next().await {
            match frame.function {
                Function::SUBMIT => {
                    self.asked.lock().unwrap().submits.push(frame.message().unwrap());
                    answer(&sender, &frame, &Submitted { job: JOB, ..Submitted::default() });
                    self.play(&sender, frame.id).await;
                }
                Function::WATCH => {
                    self.asked.lock().unwrap().watches.push(frame.message().unwrap());
                    answer(&sender, &frame, &essaim_proto::api::Done {});
                    self.play(&sender, frame.id).await;
                }
                Function::TASK_LIST => {
                    let list: TaskList = frame.message().unwrap();
                    let fits = |view: &&TaskView| list.states.is_empty() || list.states.contains(&view.state);
                    let found: Vec<TaskView> = self.ends.iter().filter(fits).cloned().collect();
                    let set = found.iter().map(|view| view.task).collect();
                    let tasks = if list.numbers_only { Vec::new() } else { found };
                    answer(&sender, &frame, &TaskPage { tasks, more: false, set });
                }
                Function::JOB_SHOW => {
                    let array = Some(self.ends.iter().map(|view| view.task).collect());
                    answer(&sender, &frame, &JobView { job: JOB, array, ..JobView::default() });
                }
                _ => {}
            }
        }
    }

    async fn play(&self, sender: &FrameSender, id: u64) {
        let life = self.lives.lock().unwrap().remove(0);
        for step in life.steps {
            let frame = match step {
                Step::Output(chunk) => Frame::of(Function::OUTPUT, id, &chunk),
                Step::Event(event) => Frame::of(Function::EVENT, id, &event),
            };
            sender.bulk(frame).await.unwrap();
        }
        if life.breaks {
            sender.close("test");
        }
    }
}

fn answer<T: serde::Serialize>(sender: &FrameSender, asked: &Frame, value: &T) {
    sender.control(Frame::of(asked.function, asked.id, value).with_flag(FLAG_ANSWER)).unwrap();
}

fn output(task: u32, offset: u64, text: &str) -> Step {
    let attempt = AttemptId { job: JOB, task: TaskId(task), attempt: 1 };
    Step::Output(OutputChunk { attempt, stream: Stream::Stdout, offset, bytes: text.into(), ..OutputChunk::default() })
}

fn ended(tasks: &str) -> JobEvent {
    JobEvent { job: JOB, state: JobState::Running, ended: tasks.parse().unwrap(), ..JobEvent::default() }
}

fn end(task: u32, exit_code: i32) -> TaskView {
    let (verdict, state) = match exit_code {
        0 => (Verdict::Ok, TaskState::Done),
        _ => (Verdict::RuntimeError, TaskState::Failed),
    };
    let result = TaskResult { verdict, exit_code: Some(exit_code), attempt: 1, ..TaskResult::default() };
    TaskView { task: TaskId(task), state, attempt: 1, result: Some(result), ..TaskView::default() }
}

fn last(done: u64, failed: u64) -> Step {
    let state = if failed > 0 { JobState::Failed } else { JobState::Done };
    let counts = Some(TaskCounts { total: done + failed, done, failed, ..TaskCounts::default() });
    Step::Event(JobEvent { job: JOB, state, counts, last: true, ..JobEvent::default() })
}

/// Runs the binary against a hub that plays `lives`, one after each Submit or Watch.
fn played(words: &[&str], lives: Vec<Life>, ends: Vec<TaskView>) -> (Ran, Arc<Mutex<Asked>>) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let asked = Arc::<Mutex<Asked>>::default();
    let hub = Hub { lives: Arc::new(Mutex::new(lives)), asked: Arc::clone(&asked), ends: Arc::new(ends) };
    let key = runtime.block_on(async {
        let authority = Authority::load_or_create(folder.path()).unwrap();
        let door = Door::bind("127.0.0.1:0", authority.server_config(DoorKind::Client)).await.unwrap();
        let (addresses, authority) = (vec![door.local_addr().to_string()], authority.hash());
        tokio::spawn(door.serve(move |accepted| hub.clone().serve(accepted), std::future::pending()));
        Ticket { kind: TicketKind::Key, authority, secret: Secret(secret()), addresses }.to_line()
    });
    let home = Home::new();
    let ran = home.essaim(words).env("ESSAIM_KEY", &key.0).run();
    runtime.shutdown_background();
    (ran, asked)
}

fn secret() -> String {
    ticket::random::<16>().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The lines of a run that broke in the middle.
fn broken_run() -> (Vec<Life>, Vec<TaskView>) {
    let first = vec![
        output(1, 0, "a1 begun"),
        output(2, 0, "b1\nb2 without end"),
        output(1, 8, " and done\na2 "),
        Step::Event(ended("2,4-12")),
        output(1, 21, "is lo"),
    ];
    // What was not complete comes again from its beginning.
    let second = vec![
        output(1, 0, "a1 begun and done\na2 is long\n"),
        output(3, 0, "c1\nc2"),
        Step::Event(JobEvent { task: Some(end(3, 7)), ..ended("1,3") }),
        last(11, 1),
    ];
    let ends = (1..=12).map(|task| end(task, if task == 3 { 7 } else { 0 })).collect();
    (vec![Life { steps: first, breaks: true }, Life { steps: second, breaks: false }], ends)
}

// Tasks print at once and the connection breaks in the middle of a line: every line comes whole and once, the exit code is
// that of the worst task, and one line says which.
#[test]
fn lines_come_whole_and_once() {
    let (lives, ends) = broken_run();
    let (ran, asked) = played(&["run", "--array", "1-12", "--command", "x"], lives, ends);
    let ran = ran.ended(7);
    assert_eq!(ran.text(), "b1\na1 begun and done\nb2 without end\na2 is long\nc1\nc2\n", "{}", ran.stderr);
    let said = "1 of 12 tasks failed: 3; essaim job rerun 12 --only failed\n";
    assert!(ran.stderr.ends_with(said) && ran.stderr.matches("failed").count() == 2, "{}", ran.stderr);
    let asked = asked.lock().unwrap();
    let spec = &asked.submits[0].spec;
    assert_eq!(spec.array.as_ref().unwrap().tasks, TaskSet::span(1, 12));
    assert_eq!((asked.submits.len(), asked.watches.len()), (1, 1));
    assert_eq!(asked.watches[0].tasks, Some("1,3".parse().unwrap()));
    assert_eq!(asked.watches[0].key, Some(asked.submits[0].key));
}

// The same with numbers in front, all equally wide; `job logs` asks by itself what it is about.
#[test]
fn a_prefix_names_the_task() {
    let (lives, ends) = broken_run();
    let (ran, _) = played(&["job", "logs", "12", "--prefix"], lives, ends);
    let expected = " 2: b1\n 1: a1 begun and done\n 2: b2 without end\n 1: a2 is long\n 3: c1\n 3: c2\n";
    assert_eq!(ran.good().text(), expected);
}

// In order a task's last line ends with the next task's first byte.
#[test]
fn in_order_a_line_ends_with_its_turn() {
    let steps = vec![output(1, 0, "one"), output(2, 0, "two"), output(2, 3, ", still two"), last(2, 0)];
    let words = ["run", "--array", "1-2", "--keep-order", "--command", "x"];
    let (ran, asked) = played(&words, vec![Life { steps, breaks: false }], vec![end(1, 0), end(2, 0)]);
    assert_eq!(ran.good().text(), "one\ntwo, still two\n");
    assert!(asked.lock().unwrap().submits[0].in_order);
}

// With --json each line names its task, each task has its result once, and the array has its end.
#[test]
fn json_names_the_task_of_each_line() {
    let (lives, ends) = broken_run();
    let (ran, _) = played(&["run", "--json", "--array", "1-12", "--command", "x"], lives, ends);
    let lines = ran.ended(7).json_lines();
    let of = |kind: &str| lines.iter().filter(|line| line["type"] == kind).cloned().collect::<Vec<_>>();
    let mut texts = vec![String::new(); 13];
    for line in of("output") {
        let text = &mut texts[line["task"].as_u64().unwrap() as usize];
        assert_eq!(line["offset"].as_u64().unwrap(), text.len() as u64, "{line}");
        text.push_str(line["text"].as_str().unwrap());
    }
    assert_eq!(texts[1..4], ["a1 begun and done\na2 is long\n", "b1\nb2 without end", "c1\nc2"]);
    let mut results: Vec<u64> = of("result").iter().map(|line| line["task"].as_u64().unwrap()).collect();
    results.sort_unstable();
    assert_eq!(results, (1..=12).collect::<Vec<u64>>());
    let array = lines.last().unwrap();
    assert_eq!((array["type"].as_str(), array["job"].as_u64()), (Some("array"), Some(12)));
    assert_eq!((array["done"].as_u64(), array["failed_tasks"].as_str()), (Some(11), Some("3")));
}

// All is well: no word on standard error, and waiting for it needs no output.
#[test]
fn an_array_that_ends_well_says_nothing() {
    let life =
        || vec![Life { steps: vec![output(1, 0, "one\n"), Step::Event(ended("1-2")), last(2, 0)], breaks: false }];
    let ends = || vec![end(1, 0), end(2, 0)];
    let (ran, _) = played(&["run", "--array", "1-2", "--command", "x"], life(), ends());
    let ran = ran.good();
    assert_eq!((ran.text(), ran.stderr.as_str()), ("one\n", ""));
    let (ran, asked) = played(&["job", "wait", "12"], vec![Life { steps: vec![last(2, 0)], breaks: false }], ends());
    assert_eq!(ran.good().text(), "");
    assert!(!asked.lock().unwrap().watches[0].output);
}
