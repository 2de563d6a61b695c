//! One session after the other: dial, greet, register, pass frames on; again when the connection is gone.
//!
//! `run` polls it until the worker leaves. Always true: programs do not notice a lost connection; what the hub refuses
//! for good ends the worker with the hub's own words, everything else is tried for ever with growing pauses; an unknown
//! function is answered and never fatal.
//! Deliberately not here: what frames lead to (`driver`), joining (`join`).

use crate::driver::{Event, Snapshot};
use crate::error::RunError;
use crate::facts::facts;
use crate::join::Passport;
use crate::limits::{LOCAL_BACKOFF_MAX, REGISTER_TIME, SESSION_STOOD};
use crate::link::{Link, NotTaken};
use crate::{Offer, WorkerEvent};
use essaim_core::worker::Input;
use essaim_net::hello::{greet, ours, refuse};
use essaim_net::identity::IdentityError;
use essaim_net::limits::BACKOFF_FIRST;
use essaim_net::{Backoff, Connection, DialError, FrameReader, HelloError, JoinError, ReadError, dial};
use essaim_proto::hello::PeerKind;
use essaim_proto::limits::{BATCH_TASKS_MAX, NAMED_TASKS_MAX};
use essaim_proto::link::{EndAck, EndAckMany, HeldMany, Leave, Register, Registered, Start, Stop};
use essaim_proto::{DecodeError, Frame, Function, InstanceId, MachineId, Refusal, RefusalCode, TaskSet};
use std::error::Error;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// The id of the registration's request; transfers count on from it.
const REGISTER_ID: u64 = 1;

/// What a worker tells its hub about itself that never changes.
#[derive(Debug, Clone)]
pub(crate) struct Itself {
    pub(crate) machine: MachineId,
    pub(crate) instance: InstanceId,
    pub(crate) local: Option<u32>,
    pub(crate) slots: u32,
    pub(crate) offer: Offer,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialFailure {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error(transparent)]
    Hello(#[from] HelloError),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the hub refused the registration: {}", .0.code.name())]
    Register(Refusal),
    #[error("the connection was lost during the registration")]
    Lost(#[source] ReadError),
    #[error("the connection ended during the registration")]
    Ended,
    #[error("the hub did not answer the registration within {} s", REGISTER_TIME.as_secs())]
    Silent,
    #[error("the hub's answer to the registration names more than {NAMED_TASKS_MAX} tasks")]
    TooManyTasks,
    #[error("the hub's answer to the registration cannot be read")]
    BadValue(#[from] DecodeError),
}

/// All sessions of a worker.
pub(crate) struct Sessions<F> {
    pub(crate) passport: Passport,
    pub(crate) itself: Itself,
    pub(crate) driver: mpsc::Sender<Event>,
    pub(crate) on_event: Arc<F>,
    pub(crate) epoch: u64,
}

/// An open session.
struct Session {
    reader: FrameReader,
    link: Arc<Link>,
}

impl<F: Fn(WorkerEvent)> Sessions<F> {
    /// Goes on for ever; ends with what makes another try pointless.
    pub(crate) async fn run(mut self) -> RunError {
        let mut backoff = match self.itself.local {
            Some(_) => Backoff::between(BACKOFF_FIRST, LOCAL_BACKOFF_MAX),
            None => Backoff::new(),
        };
        let mut was_open = false;
        loop {
            let why = match self.open().await {
                Ok(session) => {
                    was_open = true;
                    let since = Instant::now();
                    let why = self.serve(session).await;
                    if since.elapsed() >= SESSION_STOOD {
                        backoff.reset();
                    }
                    why
                }
                Err(failure) => match self.given_up(failure, was_open) {
                    Ok(error) => return error,
                    Err(failure) => told(&failure),
                },
            };
            let retry_in = backoff.next_pause();
            tracing::info!(why, retry_ms = retry_in.as_millis() as u64, "not connected to the hub");
            (self.on_event)(WorkerEvent::Disconnected { why, retry_in });
            tokio::time::sleep(retry_in).await;
        }
    }

    async fn open(&mut self) -> Result<Session, DialFailure> {
        if let Some(name) = self.passport.join_if_needed().await? {
            (self.on_event)(WorkerEvent::Joined { name });
        }
        let target = self.passport.target().ok_or(DialError::NoAddress)?;
        let mut connection = dial(&target, essaim_net::limits::DIAL_TIME).await?;
        let welcome = greet(&mut connection, ours(PeerKind::Worker, None)).await?;
        let address = connection.peer.map(|peer| peer.to_string()).unwrap_or_default();
        let registered = tokio::time::timeout(REGISTER_TIME, self.register(&mut connection)).await;
        let registered = registered.map_err(|_| DialFailure::Silent)??;
        self.epoch += 1;
        let one = registered.keep.iter().map(|ack| (ack.attempt, [ack.stdout, ack.stderr]));
        // Of tasks that are named by ranges the hub has nothing.
        let many = registered.keep_many.iter().flat_map(HeldMany::attempts);
        let keep = many.map(|attempt| (attempt, [0, 0])).chain(one).collect();
        let Connection { reader, sender, .. } = connection;
        let link = Arc::new(Link::new(self.epoch, sender, keep, REGISTER_ID));
        let (hub, name) = (welcome.hub, registered.name.clone());
        tracing::info!(hub, address, node = name, "connected to the hub");
        self.tell(Event::Registered { registered: Box::new(registered), link: Arc::clone(&link) }).await;
        (self.on_event)(WorkerEvent::Connected { hub, address, name });
        Ok(Session { reader, link })
    }

    async fn register(&self, connection: &mut Connection) -> Result<Registered, DialFailure> {
        let (answer, asked) = oneshot::channel();
        self.tell(Event::Snapshot(answer)).await;
        let Snapshot { held, held_many, toolchains, probing, draining, slept_ms } =
            asked.await.map_err(|_| DialFailure::Ended)?;
        let Itself { machine, instance, local, slots, offer } = self.itself.clone();
        let Offer { labels, memory_bytes, tasks_max, cpu_percent_max: _ } = offer;
        let facts = facts(connection.local.map(|local| local.ip()));
        let register = Register {
            machine,
            instance,
            local: local.is_some(),
            slots,
            facts,
            toolchains,
            probing,
            held,
            held_many,
            draining,
            labels,
            memory_bytes,
            tasks_max,
            slept_ms,
            local_number: local.unwrap_or(0),
        };
        let frame = Frame::of(Function::REGISTER, REGISTER_ID, &register);
        connection.sender.control(frame).map_err(HelloError::Send)?;
        loop {
            let frame = connection.reader.next().await.map_err(DialFailure::Lost)?.ok_or(DialFailure::Ended)?;
            match frame.function {
                Function::REGISTER => {
                    let registered: Registered = frame.message()?;
                    let is_bounded = registered.tasks_named() <= NAMED_TASKS_MAX;
                    return if is_bounded { Ok(registered) } else { Err(DialFailure::TooManyTasks) };
                }
                Function::REFUSED => return Err(DialFailure::Register(frame.message()?)),
                _ => refuse_unknown(&connection.sender, &frame),
            }
        }
    }

    /// Passes on frames until the connection is over; says why it is.
    async fn serve(&self, mut session: Session) -> String {
        let why = loop {
            match session.reader.next().await {
                Ok(Some(frame)) => {
                    if let Err(why) = self.take(&session.link, frame).await {
                        session.link.sender.close("protocol");
                        break why;
                    }
                }
                Ok(None) => {
                    break match session.reader.goodbye() {
                        Some(reason) => format!("the hub closed the connection ({reason})"),
                        None => "the connection was closed".to_owned(),
                    };
                }
                Err(error) => break told(&error),
            }
        };
        session.link.close();
        self.tell(Event::Disconnected).await;
        why
    }

    /// One frame of the hub. An error: the hub breaks the protocol, and how.
    async fn take(&self, link: &Link, frame: Frame) -> Result<(), String> {
        let event = match frame.function {
            Function::START => match frame.message() {
                Ok::<Box<Start>, _>(start) if start.tasks.as_ref().map_or(0, TaskSet::len) > BATCH_TASKS_MAX as u64 => {
                    return Err(format!("the hub starts more than {BATCH_TASKS_MAX} tasks at once"));
                }
                start => start.map(Event::Start),
            },
            Function::STOP => frame.message().map(|Stop { attempt }| Event::Core(Input::Stop { attempt })),
            Function::TAKE_BACK => frame.message().map(|wanted| Event::Core(Input::TakeBack(wanted))),
            Function::LEAVE => frame.message().map(|Leave { leave }| Event::Leave(leave)),
            Function::END_ACK => frame.message().map(|EndAck { attempt }| Event::Core(Input::EndAck { attempt })),
            Function::END_ACK_MANY => match frame.message() {
                Ok::<EndAckMany, _>(ack) if ack.tasks_named() > NAMED_TASKS_MAX => {
                    return Err(format!("the hub names more than {NAMED_TASKS_MAX} tasks at once"));
                }
                ack => ack.map(Event::EndAckMany),
            },
            Function::ATTEMPT_OUTPUT_ACK => frame.message().map(Event::OutputAck),
            Function::ATTEMPT_STDIN => frame.message().map(Event::Stdin),
            Function::BLOB_BYTES | Function::REFUSED | Function::BLOB_GET => {
                let (function, id) = (frame.function, frame.id);
                return match link.deliver(frame) {
                    Ok(()) => Ok(()),
                    Err(NotTaken::Unknown) => {
                        tracing::debug!(?function, id, "a frame of no transfer was dropped");
                        Ok(())
                    }
                    Err(NotTaken::TooMany) => Err("the hub sent more of a file than was asked for".to_owned()),
                };
            }
            _ => {
                refuse_unknown(&link.sender, &frame);
                return Ok(());
            }
        };
        match event {
            Ok(event) => self.tell(event).await,
            Err(error) => return Err(format!("{:?}: {}", frame.function, told(&error))),
        }
        Ok(())
    }

    async fn tell(&self, event: Event) {
        // Without a driver the worker is ending, and this task with it.
        let _ = self.driver.send(event).await;
    }

    /// The end of all tries that a failure means, or the failure back.
    fn given_up(&self, failure: DialFailure, was_open: bool) -> Result<RunError, DialFailure> {
        match failure {
            DialFailure::Hello(HelloError::Refused(refusal))
            | DialFailure::Join(JoinError::Hello(HelloError::Refused(refusal)))
            | DialFailure::Register(refusal)
                if is_final(&refusal) =>
            {
                Ok(RunError::Refused { refusal })
            }
            // Once this was the right hub; now a stranger has its address, perhaps for as long as it restarts.
            DialFailure::Dial(DialError::OtherHub { address }) if !was_open => Ok(RunError::OtherHub { address }),
            DialFailure::Dial(DialError::NoAddress) if !self.passport.follows_a_file() => {
                Ok(RunError::Dial(DialError::NoAddress))
            }
            DialFailure::Dial(error @ DialError::CannotBind { .. }) if !was_open => Ok(RunError::Dial(error)),
            DialFailure::Dial(DialError::Identity(error))
            | DialFailure::Identity(error)
            | DialFailure::Join(JoinError::Identity(error)) => Ok(RunError::Identity(error)),
            failure => Err(failure),
        }
    }
}

/// Will the hub say the same for ever?
fn is_final(refusal: &Refusal) -> bool {
    !matches!(
        refusal.code,
        RefusalCode::ShuttingDown
            | RefusalCode::TooMany
            | RefusalCode::NameTaken
            | RefusalCode::StoreFull
            | RefusalCode::StoreError
            | RefusalCode::Unknown
    )
}

/// A function of a newer version, or one that a worker does not have.
fn refuse_unknown(sender: &essaim_net::FrameSender, frame: &Frame) {
    tracing::debug!(function = ?frame.function, "an unknown function was refused");
    if frame.id != 0 {
        let function = frame.function.name().map_or_else(|| frame.function.0.to_string(), str::to_owned);
        let refusal = Refusal::new(RefusalCode::UnknownFunction).with("function", function);
        // A closed connection is found by the next read.
        let _ = refuse(sender, frame.id, &refusal);
    }
}

/// An error with all that stands behind it, as one sentence.
fn told(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        // Transparent errors repeat themselves.
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}
