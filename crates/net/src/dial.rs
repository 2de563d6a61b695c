//! Dialling a hub: TCP, then TLS that proves the hub, then frames.
//!
//! Workers and `client` call it. Always true: nothing of ours is sent before the hub is proved by its authority's hash;
//! each address gets its time and its turn.
//! Deliberately not here: hello (see [`crate::hello`]), pauses between tries (see [`crate::backoff`]).

use crate::connection::Connection;
use crate::identity::{Identity, IdentityError};
use crate::tcp::{self, ConnectError};
use crate::tls::{SERVER_NAME, client_config, is_other_hub, is_tls};
use essaim_proto::id::AuthorityHash;
use rustls::pki_types::ServerName;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::TlsConnector;

/// Whom to dial, and as whom.
#[derive(Debug, Clone)]
pub struct DialTarget {
    /// `HOST:PORT`s of the hub, best first.
    pub addresses: Vec<String>,
    /// The hub's identity: any other hub is refused.
    pub authority: AuthorityHash,
    /// A worker's certificate; `None` for clients and for those who join.
    pub identity: Option<Arc<Identity>>,
    /// The local address to dial from; port 0 means any. See [`tcp::parse_bind`].
    pub bind: Option<SocketAddr>,
}

/// Why a hub could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// There is nothing to dial.
    #[error("no address of the hub is known")]
    NoAddress,
    /// The host has no address, or the text is none.
    #[error("{address} cannot be looked up")]
    Unresolved {
        /// The text.
        address: String,
        /// The resolver's answer.
        source: io::Error,
    },
    /// Nobody listens there.
    #[error("nobody listens on {address}")]
    Refused {
        /// Where.
        address: String,
    },
    /// Nobody answered in time.
    #[error("{address} did not answer within {} ms", .limit.as_millis())]
    Timeout {
        /// Where.
        address: String,
        /// How long we waited.
        limit: Duration,
    },
    /// A hub answers, but not the one that was meant.
    #[error("another hub answers at {address}")]
    OtherHub {
        /// Where.
        address: String,
    },
    /// Something answers that is no hub of ours.
    #[error("what answers at {address} is not a hub")]
    Tls {
        /// Where.
        address: String,
        /// What TLS says.
        source: io::Error,
    },
    /// The local address cannot be used.
    #[error("{bind} cannot be used as the local address to reach {address}")]
    CannotBind {
        /// The local address.
        bind: SocketAddr,
        /// The hub's address.
        address: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The network's answer.
    #[error("{address} cannot be reached")]
    Io {
        /// Where.
        address: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The own certificate is unusable.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl DialError {
    /// May another try succeed without anybody changing anything?
    pub fn is_retryable(&self) -> bool {
        match self {
            DialError::Unresolved { .. }
            | DialError::Refused { .. }
            | DialError::Timeout { .. }
            | DialError::Io { .. } => true,
            DialError::NoAddress
            | DialError::OtherHub { .. }
            | DialError::Tls { .. }
            | DialError::CannotBind { .. }
            | DialError::Identity(_) => false,
        }
    }
}

/// Connects to the first of the target's addresses that answers as the right hub. Each address gets `limit` for its
/// lookup, TCP and TLS together.
///
/// # Errors
/// [`DialError`]: of several addresses the first error that is worth another try, else the first.
pub async fn dial(target: &DialTarget, limit: Duration) -> Result<Connection, DialError> {
    let config = client_config(target.authority, target.identity.as_deref())?;
    let connector = TlsConnector::from(Arc::new(config));
    let mut worst: Option<DialError> = None;
    for address in &target.addresses {
        let tried = tokio::time::timeout(limit, dial_one(&connector, address, target.bind, limit)).await;
        let error = match tried {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => error,
            Err(_) => DialError::Timeout { address: address.clone(), limit },
        };
        tracing::debug!(address, error = &error as &dyn std::error::Error, "an address of the hub was tried in vain");
        // Among a hub's addresses one may lead to a stranger (every machine has a 172.17.0.1): that does not decide.
        if worst.as_ref().is_none_or(|worst| error.is_retryable() && !worst.is_retryable()) {
            worst = Some(error);
        }
    }
    Err(worst.unwrap_or(DialError::NoAddress))
}

async fn dial_one(
    connector: &TlsConnector,
    address: &str,
    bind: Option<SocketAddr>,
    limit: Duration,
) -> Result<Connection, DialError> {
    let unresolved = |source| DialError::Unresolved { address: address.to_owned(), source };
    let mut last = unresolved(io::ErrorKind::NotFound.into());
    for candidate in tcp::resolve(address).await.map_err(unresolved)? {
        match tcp::connect(candidate, bind, limit).await {
            Ok(stream) => return shake_hands(connector, address, stream).await,
            Err(error) => last = connect_error(address, bind, limit, error),
        }
    }
    Err(last)
}

async fn shake_hands(connector: &TlsConnector, address: &str, stream: tcp::Stream) -> Result<Connection, DialError> {
    let (local, peer) = (stream.local_addr().ok(), stream.peer_addr().ok());
    let name = ServerName::try_from(SERVER_NAME).expect("the fixed name is a name");
    let address = || address.to_owned();
    match connector.connect(name, stream).await {
        Ok(stream) => Ok(Connection::over(stream).with_addresses(local, peer)),
        Err(error) if is_other_hub(&error) => Err(DialError::OtherHub { address: address() }),
        Err(source) if is_tls(&source) => Err(DialError::Tls { address: address(), source }),
        Err(source) => Err(DialError::Io { address: address(), source }),
    }
}

fn connect_error(address: &str, bind: Option<SocketAddr>, limit: Duration, error: ConnectError) -> DialError {
    let address = address.to_owned();
    match (error, bind) {
        (ConnectError::CannotBind(source), Some(bind)) => DialError::CannotBind { bind, address, source },
        (ConnectError::Timeout, _) => DialError::Timeout { address, limit },
        (ConnectError::Io(source), _) if source.kind() == io::ErrorKind::ConnectionRefused => {
            DialError::Refused { address }
        }
        (ConnectError::Io(source) | ConnectError::CannotBind(source), _) => DialError::Io { address, source },
    }
}
