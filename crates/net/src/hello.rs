//! The first words of a connection, for both ends.
//!
//! Diallers call [`greet`] or [`join`], the hub's sessions [`await_hello`] and [`send_welcome`]. Always true: each waits
//! for [`HELLO_TIME`] at most; whoever was welcomed is trusted with whole frames and watched by the keepalive that the
//! hub chose.
//! Deliberately not here: whether a key, a secret or a certificate is good (the hub's sessions).

use crate::connection::{Connection, FrameSender, ReadError, SendError};
use crate::identity::{Identity, IdentityError};
use crate::limits::HELLO_TIME;
use crate::ticket::Ticket;
use crate::tls::authority_hash;
use essaim_proto::frame::FLAG_ANSWER;
use essaim_proto::hello::{Hello, Join, Joined, PROTOCOL_MAX, PROTOCOL_MIN, PeerKind, Secret, Welcome};
use essaim_proto::{DecodeError, Frame, Function, NodeName, Refusal, RefusalCode};
use std::time::Duration;

/// Why a connection got no further than its first words.
#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    /// The hub said no.
    #[error("the hub refused the connection: {}", .0.code.name())]
    Refused(Refusal),
    /// The connection broke.
    #[error("the connection was lost before it was open")]
    Lost(#[source] ReadError),
    /// The connection could not be written to.
    #[error("the connection was closed before it was open")]
    Send(#[from] SendError),
    /// The peer closed without a word, or with this one.
    #[error("the peer closed the connection ({reason})")]
    Closed {
        /// Its reason, if it gave one.
        reason: String,
    },
    /// The peer did not say the first word in time.
    #[error("the peer said nothing within {} s", HELLO_TIME.as_secs())]
    Timeout,
    /// The peer began with another frame.
    #[error("the peer began with {0:?}")]
    Unexpected(Function),
    /// The first frame's value is not what it should be.
    #[error("the peer's first frame cannot be read")]
    BadValue(#[from] DecodeError),
}

impl HelloError {
    /// May another try succeed without anybody changing anything?
    pub fn is_retryable(&self) -> bool {
        match self {
            HelloError::Refused(refusal) => {
                matches!(refusal.code, RefusalCode::ShuttingDown | RefusalCode::TooMany)
            }
            // A hub that refuses our certificate looks like this too: TLS 1.3 tells a client only after its handshake.
            HelloError::Lost(ReadError::Lost(error)) => !crate::tls::is_tls(error),
            HelloError::Lost(_) | HelloError::Send(_) | HelloError::Closed { .. } | HelloError::Timeout => true,
            HelloError::Unexpected(_) | HelloError::BadValue(_) => false,
        }
    }
}

/// Why a machine could not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// No answer, or a refusal ([`HelloError::Refused`]).
    #[error(transparent)]
    Hello(#[from] HelloError),
    /// The own key could not be made.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// What the hub gave is not a certificate of its authority for our key.
    #[error("the hub gave a certificate that does not fit")]
    BadCertificate,
    /// The hub gave a name that is none.
    #[error("the hub gave a name that is none")]
    BadName(#[from] essaim_proto::id::NameError),
}

/// This version's hello.
pub fn ours(kind: PeerKind, key: Option<Secret>) -> Hello {
    Hello {
        proto_min: PROTOCOL_MIN,
        proto_max: PROTOCOL_MAX,
        software: concat!("essaim ", env!("CARGO_PKG_VERSION")).to_owned(),
        kind,
        features: Vec::new(),
        key,
    }
}

/// Says hello and waits for the welcome; then the hub is trusted and the keepalive runs.
///
/// # Errors
/// [`HelloError`].
pub async fn greet(connection: &mut Connection, hello: Hello) -> Result<Welcome, HelloError> {
    connection.sender.control(Frame::of(Function::HELLO, 0, &hello))?;
    let frame = first_frame(connection).await?;
    if frame.function != Function::WELCOME {
        return Err(HelloError::Unexpected(frame.function));
    }
    let welcome: Welcome = frame.message()?;
    open(connection, &welcome);
    Ok(welcome)
}

/// Asks the hub for a certificate with the line's secret. `name` is a wish, the hub decides. The connection is of no use
/// afterwards: dial again with the identity, which has the line's addresses.
///
/// # Errors
/// [`JoinError`]; [`HelloError::Refused`] inside it for a line that is unknown, expired or used up.
pub async fn join(connection: &mut Connection, ticket: &Ticket, name: Option<NodeName>) -> Result<Identity, JoinError> {
    let request = Identity::generate_csr()?;
    let join = Join { secret: ticket.secret.clone(), csr: request.csr_der, name };
    // Both in one write: the hub was proved before, so nothing is gained by waiting for its welcome.
    let send = |frame| connection.sender.control(frame).map_err(HelloError::Send);
    send(Frame::of(Function::HELLO, 0, &ours(PeerKind::Joiner, None)))?;
    send(Frame::of(Function::JOIN, 1, &join))?;
    let mut frame = first_frame(connection).await?;
    if frame.function == Function::WELCOME {
        frame = first_frame(connection).await?;
    }
    if frame.function != Function::JOIN {
        return Err(HelloError::Unexpected(frame.function).into());
    }
    let joined: Joined = frame.message().map_err(HelloError::BadValue)?;
    let is_ours = joined.chain.len() >= 2
        && joined.chain[1..].iter().any(|certificate| authority_hash(certificate) == ticket.authority);
    let identity = Identity {
        name: joined.name.parse()?,
        authority: ticket.authority,
        addresses: ticket.addresses.clone(),
        key_pem: request.key_pem,
        chain_hex: joined.chain.iter().map(hex::encode).collect(),
    };
    // Making a configuration checks that key and certificate belong together.
    let fits = is_ours && crate::tls::client_config(ticket.authority, Some(&identity)).is_ok();
    if fits { Ok(identity) } else { Err(JoinError::BadCertificate) }
}

/// The hub's side: the dialler's hello. A hello of a version that we do not speak is an `Ok`; see [`negotiate`].
///
/// # Errors
/// [`HelloError`]: the connection is to be dropped.
pub async fn await_hello(connection: &mut Connection) -> Result<Hello, HelloError> {
    let frame = first_frame(connection).await?;
    if frame.function != Function::HELLO {
        return Err(HelloError::Unexpected(frame.function));
    }
    Ok(frame.message()?)
}

/// The newest protocol that both ends speak.
///
/// # Errors
/// [`RefusalCode::Version`] with what we speak.
pub fn negotiate(hello: &Hello) -> Result<u16, Refusal> {
    let proto = hello.proto_max.min(PROTOCOL_MAX);
    if proto >= hello.proto_min.max(PROTOCOL_MIN) {
        return Ok(proto);
    }
    Err(Refusal::new(RefusalCode::Version).with("min", PROTOCOL_MIN).with("max", PROTOCOL_MAX))
}

/// The hub's side: says welcome, trusts the peer with whole frames and starts the keepalive that the welcome names.
///
/// # Errors
/// [`SendError`] when the connection has closed meanwhile.
pub fn send_welcome(connection: &mut Connection, welcome: &Welcome) -> Result<(), SendError> {
    connection.sender.control(Frame::of(Function::WELCOME, 0, welcome).with_flag(FLAG_ANSWER))?;
    open(connection, welcome);
    Ok(())
}

/// Answers the request `id` (0: the hello) with a "no".
///
/// # Errors
/// [`SendError`] when the connection is closed.
pub fn refuse(sender: &FrameSender, id: u64, refusal: &Refusal) -> Result<(), SendError> {
    sender.control(Frame::of(Function::REFUSED, id, refusal).with_flag(FLAG_ANSWER))
}

fn open(connection: &mut Connection, welcome: &Welcome) {
    let ms = |ms: u32| Duration::from_millis(ms.into());
    connection.reader.trust();
    connection.reader.keepalive(ms(welcome.heartbeat_ms), ms(welcome.silence_ms));
}

async fn first_frame(connection: &mut Connection) -> Result<Frame, HelloError> {
    let next = tokio::time::timeout(HELLO_TIME, connection.reader.next()).await;
    let frame = next.map_err(|_| HelloError::Timeout)?.map_err(HelloError::Lost)?;
    let Some(frame) = frame else {
        return Err(HelloError::Closed { reason: connection.reader.goodbye().unwrap_or_default().to_owned() });
    };
    if frame.function == Function::REFUSED {
        return Err(HelloError::Refused(frame.message()?));
    }
    Ok(frame)
}
