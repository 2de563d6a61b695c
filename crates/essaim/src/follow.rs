//! Following one job to its end: output out, input in, events, acknowledgements, lost connections, Ctrl+C.
//!
//! `run`, `job logs` and `job wait` call [`Follow::finish`].
//!
//! ```text
//!   watching ── last event ──────────────▶ over
//!      │ ▲ └─── connection lost ─▶ connect again, watch from where we were (up to --retries)
//!      │ └──────────────────────────┘
//!      └─ first Ctrl+C ─▶ cancelling ── last event, second Ctrl+C, or 5 s ─▶ interrupted
//! ```
//!
//! Always true: an offset is shown once, whatever happens to the connection; what was shown is acknowledged only when it
//! is written; a job is cancelled by Ctrl+C only when it is ours to cancel ([`OnInterrupt`]).
//! Deliberately not here: submitting (`cmd::run`), how output looks (`screen`), exit codes (`exit`), what is known of an
//! array (`tally`).

mod array;

pub(crate) use array::{ArrayEnd, array_summary, named};

use crate::bar::{BAR_STEP, Bar};
use crate::exit::Failure;
use crate::link::{HUB_BACK, Link};
use crate::print::Progress;
use crate::screen::Screen;
use crate::signals::Interrupts;
use crate::stdin::Stdin;
use crate::tally::Tally;
use essaim_net::client::Lost;
use essaim_net::{ClientError, Subscription};
use essaim_proto::api::{
    JobCancel, JobEvent, JobShow, OutputAck, OutputChunk, OutputFrom, StdinAck, StdinChunk, Stream, Watch,
};
use essaim_proto::id::TASK_ONE;
use essaim_proto::job::{JobState, Reason, TaskState, TaskView};
use essaim_proto::limits::OUTPUT_WINDOW_BYTES;
use essaim_proto::{Frame, Function, JobId, Refusal, RefusalCode, SubmitKey, TaskSet};
use essaim_view::Language;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Written bytes that are acknowledged together: the hub has always most of a window left, and short outputs cost no
/// frame at all.
const ACK_STEP_BYTES: u64 = OUTPUT_WINDOW_BYTES / 8;

/// A cancelled program is dead within a second; the rest is for a slow network.
const CANCEL_TIME: Duration = Duration::from_secs(5);

/// A wait shorter than this is not worth a word to a person at a terminal,
const TALK_AFTER_TERMINAL: Duration = Duration::from_millis(300);
/// and this to a log.
const TALK_AFTER: Duration = Duration::from_secs(2);
/// Reasons change without an event; this is how often we ask while a job waits.
const REASON_POLL: Duration = Duration::from_secs(1);
/// Ctrl+C is not heard while we wait for the answer.
const LOOK_TIME: Duration = Duration::from_millis(500);
/// With a worker of our own we ask as often as this: it says within a second what it has.
const REASON_POLL_EMBEDDED: Duration = Duration::from_millis(100);

/// What Ctrl+C means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnInterrupt {
    /// The job is ours: cancel it.
    Cancel,
    /// We only look on.
    Leave,
}

/// How to follow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    /// With output?
    pub(crate) output: bool,
    /// End at what is there now?
    pub(crate) no_follow: bool,
    /// What Ctrl+C means.
    pub(crate) on_interrupt: OnInterrupt,
    /// Does a person see our talk?
    pub(crate) to_person: bool,
    /// Does a person type the program's input?
    pub(crate) from_person: bool,
    /// Is this a hub of our own, so that what it lacks nobody will bring?
    pub(crate) is_embedded: bool,
    /// May an attempt be a second try after a failure?
    pub(crate) retries: bool,
    /// The key of the job's Submit, if it was ours: after a lost connection we must not follow another job that a hub
    /// without memory gave the same number.
    pub(crate) key: Option<SubmitKey>,
}

/// How it ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The job is over (or `no_follow` was asked): its last state.
    Over(Box<JobEvent>),
    /// An array is over.
    Array(Box<ArrayEnd>),
    /// The user did not want to wait for that.
    Interrupted,
}

/// One job being followed.
pub(crate) struct Follow<'a> {
    link: &'a mut Link,
    screen: &'a mut Screen,
    interrupts: &'a mut Interrupts,
    manner: Manner,
    job: JobId,
    stdin: Option<Stdin>,
    /// How far each stream of the attempt was received.
    seen: OutputFrom,
    /// Of an array: what is known of its tasks.
    tally: Option<Tally>,
    /// Of an array that a person waits for: how far it is.
    bar: Option<Bar>,
    next_draw: Instant,
    acks: Acks,
    talk: Talk,
}

/// What was received and what of it was acknowledged, under the present watch.
struct Acks {
    progress: watch::Receiver<Progress>,
    /// Bytes received under all watches so far.
    received: u64,
    /// Bytes received under earlier watches.
    before: u64,
    acked: u64,
}

/// What was said about waiting.
struct Talk {
    waiting_since: Option<Instant>,
    next_look: Instant,
    said_reason: Option<Reason>,
    said_input: bool,
    attempt: u32,
}

/// What one turn of listening came to.
enum Turn {
    GoOn,
    Over(Box<JobEvent>),
    Lost,
    Interrupted,
}

impl<'a> Follow<'a> {
    /// Follows `job`, whose watch may be open already.
    pub(crate) fn new(
        link: &'a mut Link,
        screen: &'a mut Screen,
        interrupts: &'a mut Interrupts,
        job: JobId,
        manner: Manner,
    ) -> Follow<'a> {
        let acks = Acks { progress: screen.pump().progress(), received: 0, before: 0, acked: 0 };
        let now = Instant::now();
        let talk = Talk { waiting_since: Some(now), next_look: now, said_reason: None, said_input: false, attempt: 0 };
        let mut follow = Follow {
            link,
            screen,
            interrupts,
            manner,
            job,
            stdin: None,
            seen: OutputFrom::default(),
            tally: None,
            bar: None,
            next_draw: now + TALK_AFTER_TERMINAL,
            acks,
            talk,
        };
        follow.talk.next_look = now + follow.patience();
        follow
    }

    /// With input for the program.
    pub(crate) fn with_stdin(mut self, stdin: Option<Stdin>) -> Follow<'a> {
        self.stdin = stdin;
        self
    }

    /// With output from there on only.
    pub(crate) fn beginning_at(mut self, from: OutputFrom) -> Follow<'a> {
        self.seen = from;
        self
    }

    /// Follows to the end. `watch` is the open watch of a Submit; without one it is opened here.
    ///
    /// # Errors
    /// A refusal; the hub is gone for good; standard output is gone (the job is cancelled then if it is ours).
    pub(crate) async fn finish(mut self, watch: Option<Subscription>) -> Result<End, Failure> {
        let opened = match watch {
            Some(watch) => Ok(watch),
            None => self.watch().await,
        };
        let mut watch = match opened {
            Ok(watch) => watch,
            Err(ClientError::Lost(_)) => match self.watch_again().await? {
                Some(watch) => watch,
                None => return Ok(End::Interrupted),
            },
            Err(error) => return Err(crate::link::failure(&error)),
        };
        loop {
            match self.turn(&mut watch).await? {
                Turn::GoOn => {}
                Turn::Over(event) => return self.over(event).await,
                Turn::Interrupted if self.manner.on_interrupt == OnInterrupt::Leave => return Ok(End::Interrupted),
                Turn::Interrupted => return self.cancel(watch).await,
                Turn::Lost => {
                    drop(watch);
                    match self.watch_again().await? {
                        Some(again) => watch = again,
                        None => return Ok(End::Interrupted),
                    }
                }
            }
        }
    }

    async fn turn(&mut self, watch: &mut Subscription) -> Result<Turn, Failure> {
        let Follow { stdin, acks, talk, interrupts, bar, next_draw, .. } = self;
        let draw = async {
            match bar {
                Some(_) => tokio::time::sleep_until(*next_draw).await,
                None => std::future::pending().await,
            }
        };
        let input = async {
            match stdin {
                Some(stdin) => stdin.next().await,
                None => std::future::pending().await,
            }
        };
        let look = async {
            match talk.waiting_since {
                Some(_) => tokio::time::sleep_until(talk.next_look).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = interrupts.next() => Ok(Turn::Interrupted),
            // Before the frames, which may never leave a gap.
            () = draw => {
                self.draw();
                Ok(Turn::GoOn)
            }
            frame = watch.next() => match frame {
                Some(frame) => self.frame(frame),
                None => Ok(Turn::Lost),
            },
            changed = acks.progress.changed() => {
                // Without a writer there is nothing to acknowledge; its last word says why.
                let failed = acks.progress.borrow_and_update().failed.clone();
                if let Some(failure) = failed {
                    self.give_up().await;
                    return Err(failure);
                }
                changed.map_err(|_| Failure::internal("internal", "the output's thread is gone"))?;
                self.acknowledge(watch.id()).await
            }
            part = input => {
                let chunk = StdinChunk { job: self.job, task: TASK_ONE, offset: part.offset, bytes: part.bytes, end: part.end };
                let sent = self.link.client().send_bulk(Frame::of(Function::STDIN, watch.id(), &chunk)).await;
                lost_or_go_on(sent)
            }
            () = look => self.look().await,
        }
    }

    fn frame(&mut self, frame: Frame) -> Result<Turn, Failure> {
        let unreadable = |error| crate::link::failure(&ClientError::BadAnswer(error));
        match frame.function {
            Function::OUTPUT => {
                self.chunk(frame.message().map_err(unreadable)?);
                Ok(Turn::GoOn)
            }
            Function::STDIN_ACK => {
                let ack: StdinAck = frame.message().map_err(unreadable)?;
                if let Some(stdin) = &mut self.stdin {
                    stdin.taken(ack.offset);
                }
                Ok(Turn::GoOn)
            }
            Function::EVENT => {
                let event: JobEvent = frame.message().map_err(unreadable)?;
                self.event(&event);
                Ok(if event.last { Turn::Over(Box::new(event)) } else { Turn::GoOn })
            }
            Function::REFUSED => Err(Failure::from_refusal(&frame.message::<Refusal>().map_err(unreadable)?)),
            // The answer to a watch that the hub opened for a repeated Submit, or news of a newer hub.
            _ => Ok(Turn::GoOn),
        }
    }

    fn chunk(&mut self, chunk: OutputChunk) {
        self.acks.received += chunk.bytes.len() as u64;
        if self.tally.is_some() {
            return self.array_chunk(chunk);
        }
        if chunk.attempt != self.seen.attempt {
            self.seen = OutputFrom { attempt: chunk.attempt, stdout: 0, stderr: 0 };
        }
        let seen = match chunk.stream {
            Stream::Stdout => &mut self.seen.stdout,
            Stream::Stderr => &mut self.seen.stderr,
        };
        *seen = chunk.offset + chunk.bytes.len() as u64;
        self.screen.chunk(chunk);
    }

    fn event(&mut self, event: &JobEvent) {
        if self.tally.is_some() {
            return self.array_event(event);
        }
        let Some(task) = &event.task else { return };
        if task.attempt > self.talk.attempt {
            if self.talk.attempt > 0 {
                let why = if self.manner.retries { "it failed or its node was lost" } else { "its node was lost" };
                self.screen.talk(&format!("job {}: {why}, this is attempt {}", self.job, task.attempt));
            }
            self.talk.attempt = task.attempt;
        }
        if task.waiting_for_input && self.manner.from_person && !self.talk.said_input {
            self.talk.said_input = true;
            self.screen.talk("waiting for input (Ctrl+D ends it)");
        }
        let is_waiting = matches!(task.state, TaskState::Waiting | TaskState::Ready) && !event.last;
        self.waits(is_waiting, task.node.as_deref());
    }

    /// Does the job wait now? Where it runs is said when it was said before that it waits.
    fn waits(&mut self, is_waiting: bool, node: Option<&str>) {
        match (is_waiting, self.talk.waiting_since) {
            (true, None) => {
                self.talk.waiting_since = Some(Instant::now());
                self.talk.next_look = Instant::now() + self.patience();
            }
            (false, Some(_)) => {
                self.talk.waiting_since = None;
                if self.talk.said_reason.take().is_some()
                    && let Some(node) = node
                {
                    self.screen.talk(&format!("job {}: running on {node}", self.job));
                }
            }
            _ => {}
        }
    }

    /// How long a wait is left without a word.
    fn patience(&self) -> Duration {
        match (self.manner.is_embedded, self.manner.to_person) {
            (true, _) => REASON_POLL_EMBEDDED,
            (false, true) => TALK_AFTER_TERMINAL,
            (false, false) => TALK_AFTER,
        }
    }

    /// Asks what the job waits for, and says it when that is news.
    async fn look(&mut self) -> Result<Turn, Failure> {
        let poll = if self.manner.is_embedded { REASON_POLL_EMBEDDED } else { REASON_POLL };
        self.talk.next_look = Instant::now() + poll;
        let show = JobShow { job: self.job };
        let job = match tokio::time::timeout(LOOK_TIME, self.link.client().request(&show)).await {
            Ok(Ok(job)) => job,
            Ok(Err(ClientError::Lost(_))) => return Ok(Turn::Lost),
            // Who may watch and not look hears no reasons; a hub that is slow is asked again.
            Ok(Err(_)) | Err(_) => return Ok(Turn::GoOn),
        };
        let waits = |task: &TaskView| matches!(task.state, TaskState::Waiting | TaskState::Ready);
        let reason = match job.array {
            Some(_) => job.reason.filter(|_| array::has_not_begun(&job.counts)),
            None => job.tasks.into_iter().find(waits).and_then(|task| task.reason),
        };
        let Some(reason) = reason else { return Ok(Turn::GoOn) };
        if self.manner.is_embedded {
            return self.only_hub(&reason);
        }
        if self.talk.said_reason.as_ref().map(|said| &said.code) != Some(&reason.code) {
            let why = essaim_view::reason(&reason, Language::English);
            self.screen.talk(&format!("job {} is queued: {why}", self.job));
            self.talk.said_reason = Some(reason);
        }
        Ok(Turn::GoOn)
    }

    /// With a hub for this run only, nobody will ever install the missing tool: that is a refusal and no wait.
    fn only_hub(&mut self, reason: &Reason) -> Result<Turn, Failure> {
        if reason.code == "no_node_fits" {
            return Err(Failure::from_refusal(&RefusalCode::NeedsTooMuch.into()));
        }
        if reason.code != "no_toolchain" {
            return Ok(Turn::GoOn);
        }
        let param = |name: &str| reason.params.get(name).cloned().unwrap_or_default();
        let refusal = Refusal::new(RefusalCode::NoToolchain).with("lang", param("lang"));
        Err(Failure::from_refusal(&refusal.with("tool", param("tool")).with("nodes", 1)))
    }

    async fn acknowledge(&mut self, watch: u64) -> Result<Turn, Failure> {
        let written = self.acks.progress.borrow_and_update().written.saturating_sub(self.acks.before);
        if written < self.acks.acked + ACK_STEP_BYTES {
            return Ok(Turn::GoOn);
        }
        self.acks.acked = written;
        let ack = Frame::of(Function::OUTPUT_ACK, watch, &OutputAck { received_bytes: written });
        lost_or_go_on(self.link.client().send_control(ack).await)
    }

    async fn watch(&mut self) -> Result<Subscription, ClientError> {
        let from = (self.seen.attempt.attempt > 0).then_some(self.seen);
        let Manner { output, no_follow, key, .. } = self.manner;
        let tasks = self.tally.as_ref().and_then(Tally::rest);
        let in_order = self.tally.as_ref().is_some_and(Tally::in_order);
        let (_, watch) =
            self.link.client().open(&Watch { job: self.job, output, from, no_follow, key, tasks, in_order }).await?;
        Ok(watch)
    }

    /// Did the hub say that it ends?
    async fn was_hub_stopped(&self) -> bool {
        // A watch can be lost without its connection, when we were too slow: then nobody says why.
        let lost = tokio::time::timeout(LOOK_TIME, self.link.client().closed()).await;
        lost.is_ok_and(|lost| matches!(&*lost, Lost::Closed { reason } if reason == "shutdown"))
    }

    /// After a loss: connects and watches from where we were. `None`: the user did not want to wait for that.
    async fn watch_again(&mut self) -> Result<Option<Subscription>, Failure> {
        let job = self.job;
        let (what, hint) = if self.was_hub_stopped().await {
            let hint =
                format!("job {job} was not over: it runs again when the hub is started, unless it is cancelled then");
            ("the hub was stopped", hint)
        } else {
            let hint = format!("job {job} may still be running; `essaim job logs {job}` shows its output");
            ("the connection to the hub was lost", hint)
        };
        self.screen.talk(&format!("job {job}: {what}, trying to reach it again"));
        // A hub may be gone again before it has answered.
        let mut tries_left = self.link.tries();
        loop {
            tries_left -= 1;
            if !self.connect_again(&hint).await? {
                return Ok(None);
            }
            match self.watch().await {
                Ok(watch) => {
                    self.screen.talk(&format!("job {job}: {HUB_BACK}"));
                    return Ok(Some(watch));
                }
                Err(ClientError::Lost(_)) if tries_left > 0 => {}
                Err(ClientError::Refused(refusal)) if refusal.code == RefusalCode::NoSuchJob => {
                    let forgotten = format!("job {job} is lost: the hub was started again and does not know it");
                    return Err(Failure::refused(refusal.code.name(), forgotten));
                }
                Err(error) => return Err(crate::link::failure(&error).hint(&hint)),
            }
        }
    }

    /// Connects; `false`: the user did not want to wait for that.
    async fn connect_again(&mut self, hint: &str) -> Result<bool, Failure> {
        let Follow { link, screen, interrupts, job, .. } = self;
        let mut talk = |text: &str| screen.talk(text);
        let reopened = tokio::select! {
            biased;
            () = interrupts.next() => None,
            reopened = link.reopen(&mut talk) => Some(reopened),
        };
        match reopened {
            Some(reopened) => reopened.map_err(|failure| failure.hint(hint))?,
            None if self.manner.on_interrupt == OnInterrupt::Leave => return Ok(false),
            None => {
                let later = format!("`essaim job cancel {job}` does it later");
                self.screen.talk(&format!("job {job} was not cancelled: the hub is away; {later}"));
                return Ok(false);
            }
        }
        self.acks.before = self.acks.received;
        self.acks.acked = 0;
        if let Some(stdin) = &mut self.stdin {
            stdin.rewind();
        }
        Ok(true)
    }

    /// The first Ctrl+C: cancels, and shows what still comes until the job is over.
    async fn cancel(&mut self, mut watch: Subscription) -> Result<End, Failure> {
        self.screen.talk_after_key(&format!("cancelling job {} (once more: leave at once)", self.job));
        self.stdin = None;
        let client = self.link.client().clone();
        let cancel = JobCancel { job: self.job, tasks: None };
        let asked = client.request(&cancel);
        let until = tokio::time::sleep(CANCEL_TIME);
        tokio::pin!(asked, until);
        let mut is_asked = false;
        loop {
            let turn = tokio::select! {
                biased;
                // The cancel leaves before anything else is looked at.
                _ = &mut asked, if !is_asked => {
                    is_asked = true;
                    Turn::GoOn
                }
                () = &mut until => Turn::Interrupted,
                turn = self.turn(&mut watch) => turn?,
            };
            match turn {
                Turn::GoOn => {}
                Turn::Lost => {
                    let job = self.job;
                    let later = format!("`essaim job show {job}` tells later whether it has");
                    self.screen
                        .talk(&format!("job {job}: the hub was gone before it said that it has cancelled it; {later}"));
                    return Ok(End::Interrupted);
                }
                Turn::Over(_) | Turn::Interrupted => return Ok(End::Interrupted),
            }
        }
    }

    /// Nobody reads what the program writes: a job of ours ends as a local program would.
    async fn give_up(&mut self) {
        if self.manner.on_interrupt == OnInterrupt::Cancel {
            let cancel = JobCancel { job: self.job, tasks: None };
            let asked = self.link.client().request(&cancel);
            // Whether it is late or refused: nobody is left who could be told.
            let _ = tokio::time::timeout(CANCEL_TIME, asked).await;
        }
    }
}

fn lost_or_go_on(sent: Result<(), ClientError>) -> Result<Turn, Failure> {
    match sent {
        Ok(()) => Ok(Turn::GoOn),
        Err(ClientError::Lost(_)) => Ok(Turn::Lost),
        Err(error) => Err(crate::link::failure(&error)),
    }
}

/// The one line about an end that is worth a word: where, and why not well.
pub(crate) fn summary(event: &JobEvent) -> Option<String> {
    let task = event.task.as_ref()?;
    let result = task.result.as_ref()?;
    if event.state == JobState::Done {
        return None;
    }
    let place = if result.node.is_empty() { String::new() } else { format!(" on {}", result.node) };
    let outcome = essaim_view::outcome(result, Language::English);
    let compiled = match result.exit_code {
        Some(code) if result.verdict == essaim_proto::job::Verdict::CompileError => format!(" (exit code {code})"),
        _ => String::new(),
    };
    Some(format!("job {}{place}: {outcome}{compiled}", event.job))
}
