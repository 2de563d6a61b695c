//! The typed client: requests and their answers, subscriptions, blobs, over one connection.
//!
//! The command line and the window use it; a worker may lay one over its own connection ([`Client::over`]).
//!
//! ```text
//!   request ─ id, route ─▶ FrameSender        reading task ─ by id ─▶ waiter (answer, REFUSED)
//!                                                           └───────▶ Subscription (everything after the answer)
//! ```
//!
//! Always true: ids are drawn here, from 1; every waiter ends, by an answer or by the loss of the connection; the reading
//! task waits for nobody; the connection closes when the last clone of the client is dropped.
//! Deliberately not here: reconnecting after a connection stood (the caller knows what to do again), sentences.

mod blobs;
mod patience;
mod route;

use crate::backoff::Backoff;
use crate::connection::{Connection, FrameReader, FrameSender, ReadError, SendError};
use crate::dial::{DialError, DialTarget, dial};
use crate::hello::{HelloError, greet, ours};
use crate::limits::{CLIENT_TRIES, DIAL_TIME};
use crate::subscription::Subscription;
use crate::transfer::TransferError;
use essaim_proto::api::Request;
use essaim_proto::hello::{PeerKind, Secret, Welcome};
use essaim_proto::{DecodeError, Frame, Function, Refusal};
use patience::Patience;
use route::{Answer, Routes};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// How the client's connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// There is none (any more).
    Shutdown,
    /// It is being opened.
    InProgress,
    /// The hub has said welcome.
    Running,
}

/// How to connect.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// The key's whole text (`essaim-key.…`).
    pub key: Option<Secret>,
    /// What the dialler is.
    pub kind: PeerKind,
    /// How often to try before giving up; at least once. A refusal by the hub is not tried again. Also how often a request
    /// is asked that the hub refuses because its key asks too often.
    pub tries: u32,
    /// How long each address may take.
    pub dial_time: Duration,
    /// The pauses between tries.
    pub pauses: Backoff,
    /// The hub was reached before and is to be reached again: what else answers at its address is in its way for as long
    /// as it restarts, and no reason to give up.
    pub was_open: bool,
}

impl Default for ConnectOptions {
    fn default() -> ConnectOptions {
        ConnectOptions {
            key: None,
            kind: PeerKind::Client,
            tries: CLIENT_TRIES,
            dial_time: DIAL_TIME,
            pauses: Backoff::new(),
            was_open: false,
        }
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The hub could not be reached.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The hub was reached and let us no further.
    #[error(transparent)]
    Hello(#[from] HelloError),
}

impl ConnectError {
    /// May another try succeed without anybody changing anything?
    pub fn is_retryable(&self) -> bool {
        match self {
            ConnectError::Dial(error) => error.is_retryable(),
            ConnectError::Hello(error) => error.is_retryable(),
        }
    }

    /// Did somebody else answer at the hub's address?
    fn is_a_strangers(&self) -> bool {
        matches!(self, ConnectError::Dial(DialError::OtherHub { .. } | DialError::Tls { .. }))
    }
}

/// Why the connection is over.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// One side closed it.
    #[error("the connection was closed ({reason})")]
    Closed {
        /// The peer's code, or empty when we closed it.
        reason: String,
    },
    /// It broke.
    #[error("the connection was lost")]
    Broken(#[from] ReadError),
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The hub said no.
    #[error("the hub refused: {}", .0.code.name())]
    Refused(Refusal),
    /// The connection is over; whether the hub has seen the request is not known.
    #[error(transparent)]
    Lost(#[from] Arc<Lost>),
    /// The answer is not what it should be.
    #[error("the hub's answer cannot be read")]
    BadAnswer(#[from] DecodeError),
    /// The request does not fit a frame.
    #[error("the request is too large")]
    TooLarge(#[source] SendError),
    /// More requests are open than [`crate::limits::ROUTES_MAX`].
    #[error("too many requests are open")]
    TooMany,
    /// A blob could not be sent or received.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// A received blob could not be written.
    #[error("the received bytes cannot be written")]
    Sink(#[source] std::io::Error),
}

/// A connection to a hub. Clones share it.
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    sender: FrameSender,
    routes: Arc<Routes>,
    welcome: Welcome,
    local: Option<SocketAddr>,
    peer: Option<SocketAddr>,
    /// How often a request is asked whose key asks too often.
    tries: u32,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.sender.close("done");
    }
}

impl Client {
    /// Dials, says hello and waits for the welcome, up to `options.tries` times with pauses. `find` is asked before each
    /// try: a restarted hub may have other ports (`hub.json`). `on_state` hears of each change, the last one
    /// ([`State::Shutdown`]) possibly long after this call, from the reading task: it must not wait.
    ///
    /// # Errors
    /// The last try's [`ConnectError`].
    pub async fn connect(
        mut find: impl FnMut() -> DialTarget,
        options: ConnectOptions,
        mut on_state: impl FnMut(State) + Send + 'static,
    ) -> Result<Client, ConnectError> {
        on_state(State::InProgress);
        let mut pauses = options.pauses.clone();
        let mut tries_left = options.tries.max(1);
        loop {
            let error = match connect_once(&find(), &options).await {
                Ok((connection, welcome)) => {
                    on_state(State::Running);
                    let at_end = move || on_state(State::Shutdown);
                    return Ok(Client::start(connection, welcome, Routes::new(None), options.tries, at_end));
                }
                Err(error) => error,
            };
            tries_left -= 1;
            let may_pass = error.is_retryable() || (options.was_open && error.is_a_strangers());
            if tries_left == 0 || !may_pass {
                on_state(State::Shutdown);
                return Err(error);
            }
            tracing::debug!(tries_left, error = &error as &dyn std::error::Error, "the hub was not reached");
            tokio::time::sleep(pauses.next_pause()).await;
        }
    }

    /// A client over a connection that has said its hello already. The subscription gets every frame that belongs to no
    /// request of this client: what the hub asks on its own. The hub's ids must not be mistaken for ours, so what it
    /// sends on its own carries id 0.
    pub fn over(connection: Connection, welcome: Welcome) -> (Client, Subscription) {
        let (feed, outlet) = crate::subscription::pipe();
        (Client::start(connection, welcome, Routes::new(Some(feed)), 1, || ()), outlet.subscription(0, ()))
    }

    fn start(
        connection: Connection,
        welcome: Welcome,
        routes: Routes,
        tries: u32,
        at_end: impl FnOnce() + Send + 'static,
    ) -> Client {
        let Connection { reader, sender, local, peer } = connection;
        let routes = Arc::new(routes);
        tokio::spawn(read(reader, Arc::clone(&routes), at_end));
        Client { inner: Arc::new(Inner { sender, routes, welcome, local, peer, tries }) }
    }

    /// What the hub said first.
    pub fn welcome(&self) -> &Welcome {
        &self.inner.welcome
    }

    /// The near end's address.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.inner.local
    }

    /// The hub's address.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.inner.peer
    }

    /// The last measured round trip in microseconds.
    pub fn rtt_us(&self) -> Option<u64> {
        self.inner.sender.rtt_us()
    }

    /// Asks and waits for the answer; a request that comes too soon after others of its key is asked again, as often as
    /// the options of [`Client::connect`] allow. Cancellation-safe: the answer to a dropped request is ignored.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn request<R: Request>(&self, request: &R) -> Result<R::Answer, ClientError> {
        Ok(self.call(R::FUNCTION, request).await?.message()?)
    }

    /// Asks for `function` with any value and gives the answer's frame.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn call<T: serde::Serialize>(&self, function: Function, value: &T) -> Result<Frame, ClientError> {
        let mut patience = Patience::new(self.inner.tries);
        loop {
            let (registration, answer) = self.inner.routes.register(None)?;
            self.send_control(Frame::of(function, registration.id(), value)).await?;
            match self.answered(answer).await {
                Err(error) if patience.helps(&error).await => {}
                answered => return answered,
            }
        }
    }

    /// Asks, and keeps the id open: what comes under it beyond the answer goes to the subscription. Nothing can come
    /// before the subscription stands.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn open<R: Request>(&self, request: &R) -> Result<(R::Answer, Subscription), ClientError> {
        let mut patience = Patience::new(self.inner.tries);
        loop {
            let (subscription, answer) = self.subscribe()?;
            self.send_control(Frame::of(R::FUNCTION, subscription.id(), request)).await?;
            match self.answered(answer).await {
                Ok(frame) => return Ok((frame.message()?, subscription)),
                Err(error) if patience.helps(&error).await => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends a frame that goes before all bulk (UNWATCH, acknowledgements); waits only while very many wait already.
    ///
    /// # Errors
    /// [`ClientError::Lost`] or [`ClientError::TooLarge`].
    pub async fn send_control(&self, frame: Frame) -> Result<(), ClientError> {
        let sent = self.inner.sender.control_when_room(frame).await;
        self.sent(sent).await
    }

    /// Sends a frame behind all other bulk; waits for room.
    ///
    /// # Errors
    /// [`ClientError::Lost`] or [`ClientError::TooLarge`].
    pub async fn send_bulk(&self, frame: Frame) -> Result<(), ClientError> {
        let sent = self.inner.sender.bulk(frame).await;
        self.sent(sent).await
    }

    /// Closes cleanly with `reason` (a code) and returns when all that was sent has left, in bounded time. Without it a
    /// process that ends at once may take its last frames with it.
    pub async fn close(&self, reason: &str) {
        self.inner.sender.close(reason);
        self.inner.sender.closed().await;
    }

    /// Returns when the connection is over, with why.
    pub async fn closed(&self) -> Arc<Lost> {
        self.inner.routes.lost().await
    }

    fn subscribe(&self) -> Result<(Subscription, Answer), ClientError> {
        let (feed, outlet) = crate::subscription::pipe();
        let (registration, answer) = self.inner.routes.register(Some(feed))?;
        let subscription = outlet.subscription(registration.id(), registration);
        Ok((subscription, answer))
    }

    async fn answered(&self, answer: Answer) -> Result<Frame, ClientError> {
        let Ok(frame) = answer.await else { return Err(self.closed().await.into()) };
        if frame.function == Function::REFUSED {
            return Err(ClientError::Refused(frame.message()?));
        }
        Ok(frame)
    }

    async fn sent(&self, sent: Result<(), SendError>) -> Result<(), ClientError> {
        match sent {
            Ok(()) => Ok(()),
            Err(error @ SendError::TooLarge(_)) => Err(ClientError::TooLarge(error)),
            Err(SendError::Closed | SendError::Overflow) => Err(self.closed().await.into()),
        }
    }
}

async fn connect_once(target: &DialTarget, options: &ConnectOptions) -> Result<(Connection, Welcome), ConnectError> {
    let mut connection = dial(target, options.dial_time).await?;
    let welcome = greet(&mut connection, ours(options.kind, options.key.clone())).await?;
    Ok((connection, welcome))
}

/// The reading task: ends with the connection.
async fn read(mut reader: FrameReader, routes: Arc<Routes>, at_end: impl FnOnce()) {
    let lost = loop {
        match reader.next().await {
            Ok(Some(frame)) => routes.deliver(frame),
            Ok(None) => break Lost::Closed { reason: reader.goodbye().unwrap_or_default().to_owned() },
            Err(error) => break Lost::Broken(error),
        }
    };
    tracing::debug!(error = &lost as &dyn std::error::Error, "the connection to the hub is over");
    drop(reader);
    routes.end(lost);
    at_end();
}
