//! TCP: listen, accept, connect, and the options of every socket. The only file that imports TCP.
//!
//! `door` and `dial` use it, and so does the hub's HTTP door. Always true: small writes leave at once on both sides,
//! before the handshake (without it a join took 44 ms instead of 0.7, NET.md section 6); the kernel's queue of unsent
//! bytes is short, so that control can overtake bulk; unacknowledged data breaks the connection after 20 s.
//! Deliberately not here: TLS and frames.

use crate::limits::{ACCEPT_PAUSE, LISTEN_BACKLOG, NOTSENT_LOWAT_BYTES, TCP_USER_TIMEOUT};
use crate::owner::{Owner, port_owner};
use socket2::SockRef;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket};

/// One accepted or dialled connection.
pub type Stream = tokio::net::TcpStream;

/// Why an address could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody listens there already.
    #[error("{address} is taken by {}", .owner.as_ref().map_or("another program".to_owned(), Owner::to_string))]
    Taken {
        /// Which address.
        address: SocketAddr,
        /// Who, if we may see it.
        owner: Option<Owner>,
    },
    /// The text is no address, or its host has none.
    #[error("{address} is not an address of the form HOST:PORT that this machine can look up")]
    Unresolved {
        /// The text.
        address: String,
        /// The resolver's answer.
        source: io::Error,
    },
    /// The address belongs to another machine.
    #[error("{address} is not an address of this machine")]
    NotOurs {
        /// Which address.
        address: SocketAddr,
    },
    /// Ports below 1024 are for the system.
    #[error("{address} may not be opened by this user: ports below 1024 belong to the system")]
    Denied {
        /// Which address.
        address: SocketAddr,
    },
    /// Anything else that the system says.
    #[error("{address} cannot be opened")]
    Io {
        /// Which address.
        address: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
}

/// An open address.
#[derive(Debug)]
pub struct Listener {
    inner: TcpListener,
    local: SocketAddr,
}

/// Opens `address` (`HOST:PORT`; port 0 lets the system choose). `[::]` takes IPv4 too. Of a host with several addresses
/// the first that can be opened is taken. Needs a tokio runtime.
///
/// # Errors
/// [`BindError`], for a host with several addresses the first one's.
pub async fn listen(address: &str) -> Result<Listener, BindError> {
    let unresolved = |source| BindError::Unresolved { address: address.to_owned(), source };
    let mut first_error = None;
    for candidate in resolve(address).await.map_err(unresolved)? {
        match listen_on(candidate).and_then(|inner| Ok((inner.local_addr()?, inner))) {
            Ok((local, inner)) => return Ok(Listener { inner, local }),
            Err(source) => {
                first_error.get_or_insert((candidate, source));
            }
        }
    }
    Err(match first_error {
        Some((candidate, source)) => bind_error(candidate, source),
        None => unresolved(io::ErrorKind::NotFound.into()),
    })
}

fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = new_socket(address)?;
    if address.is_ipv6() {
        SockRef::from(&socket).set_only_v6(false)?;
    }
    // A restarted hub takes its port back although old connections linger. Elsewhere than on Unix the option would let a
    // second hub steal the port.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(LISTEN_BACKLOG as u32)
}

fn bind_error(address: SocketAddr, source: io::Error) -> BindError {
    match source.kind() {
        io::ErrorKind::AddrInUse => BindError::Taken { address, owner: port_owner(address) },
        io::ErrorKind::AddrNotAvailable => BindError::NotOurs { address },
        io::ErrorKind::PermissionDenied => BindError::Denied { address },
        _ => BindError::Io { address, source },
    }
}

impl Listener {
    /// What was bound; the port is never 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The next connection, its options set. Never fails: when the system has no file descriptor left it says so once,
    /// waits and goes on, since those who wait stay in the kernel's queue. Cancellation-safe.
    pub async fn accept(&self) -> (Stream, SocketAddr) {
        let mut is_starved = false;
        loop {
            match self.inner.accept().await {
                Ok((stream, peer)) => match set_options(&stream) {
                    Ok(()) => return (stream, SocketAddr::new(peer.ip().to_canonical(), peer.port())),
                    // The peer is gone already.
                    Err(error) => tracing::debug!(%peer, %error, "a connection ended before it began"),
                },
                Err(error) if is_of_connection(&error) => {}
                Err(error) => {
                    if !is_starved {
                        tracing::warn!(address = %self.local, %error, "connections cannot be accepted for now");
                    }
                    is_starved = true;
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Does the error concern one connection that went away while it waited (accept(2)), and not the listener?
fn is_of_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// Why an address could not be reached.
#[derive(Debug)]
pub enum ConnectError {
    /// The local address cannot be used.
    CannotBind(io::Error),
    /// Nobody answered in time.
    Timeout,
    /// The system's answer, often a refusal.
    Io(io::Error),
}

/// Connects to `address` within `limit`, from the local address `bind` if one is given (port 0: any).
///
/// # Errors
/// [`ConnectError`].
pub async fn connect(address: SocketAddr, bind: Option<SocketAddr>, limit: Duration) -> Result<Stream, ConnectError> {
    let socket = new_socket(address).map_err(ConnectError::Io)?;
    if let Some(local) = bind {
        // A fixed local port is usable again at once after a lost connection.
        let reuse = if local.port() == 0 { Ok(()) } else { socket.set_reuseaddr(true) };
        reuse.and_then(|()| socket.bind(local)).map_err(ConnectError::CannotBind)?;
    }
    let stream = match tokio::time::timeout(limit, socket.connect(address)).await {
        Ok(stream) => stream.map_err(ConnectError::Io)?,
        Err(_) => return Err(ConnectError::Timeout),
    };
    set_options(&stream).map_err(ConnectError::Io)?;
    Ok(stream)
}

/// The addresses behind `HOST:PORT`, in the resolver's order.
///
/// # Errors
/// The resolver's, or `InvalidInput` for text of another form.
pub async fn resolve(address: &str) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = address.parse() {
        return Ok(vec![address]);
    }
    Ok(tokio::net::lookup_host(address).await?.collect())
}

/// A local address as people write it after `--bind`: `ADDR` or `ADDR:PORT`.
pub fn parse_bind(text: &str) -> Option<SocketAddr> {
    text.parse().ok().or_else(|| Some(SocketAddr::new(text.parse::<IpAddr>().ok()?, 0)))
}

fn new_socket(address: SocketAddr) -> io::Result<TcpSocket> {
    if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
}

fn set_options(stream: &Stream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    {
        let socket = SockRef::from(stream);
        socket.set_tcp_notsent_lowat(NOTSENT_LOWAT_BYTES)?;
        socket.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    // A second hub on the same port must name the first one; here both are this test.
    #[tokio::test]
    async fn a_taken_port_names_its_owner() {
        let first = listen("127.0.0.1:0").await.unwrap();
        let error = listen(&first.local_addr().to_string()).await.unwrap_err();
        let BindError::Taken { address, owner: Some(owner) } = &error else { panic!("{error:?}") };
        assert_eq!((*address, owner.pid), (first.local_addr(), std::process::id()));
        assert!(error.to_string().contains(&format!("(process {})", std::process::id())), "{error}");
        drop(first);
        listen(&address.to_string()).await.unwrap();
    }

    // Each way in which an address cannot be opened must be told apart.
    #[tokio::test]
    async fn bad_addresses_are_told_apart() {
        assert!(matches!(listen("203.0.113.7:4200").await, Err(BindError::NotOurs { .. })));
        assert!(matches!(listen("nonsense").await, Err(BindError::Unresolved { .. })));
        assert!(matches!(listen("").await, Err(BindError::Unresolved { .. })));
    }

    // Both ends must have the options, and `[::]` must serve IPv4 with the plain form of its address.
    #[tokio::test]
    async fn both_ends_send_small_writes_at_once() {
        let Ok(listener) = listen("[::]:0").await else { return };
        let target = SocketAddr::new("127.0.0.1".parse().unwrap(), listener.local_addr().port());
        let bind = parse_bind("127.0.0.1");
        let near = connect(target, bind, Duration::from_secs(5)).await.unwrap();
        let (far, peer) = listener.accept().await;
        assert_eq!(peer, near.local_addr().unwrap());
        for stream in [&near, &far] {
            assert!(stream.nodelay().unwrap());
            assert_eq!(SockRef::from(stream).tcp_user_timeout().unwrap(), Some(TCP_USER_TIMEOUT));
            assert_eq!(SockRef::from(stream).tcp_notsent_lowat().unwrap(), NOTSENT_LOWAT_BYTES);
        }
        let bad = connect(target, parse_bind("203.0.113.7:0"), Duration::from_secs(5)).await;
        assert!(matches!(bad, Err(ConnectError::CannotBind(_))));
        assert_eq!(parse_bind("no address"), None);
    }
}
