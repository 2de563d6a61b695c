//! A door of the hub: accepts, proves itself by TLS, and hands connections to the hub's sessions.
//!
//! The hub binds two (clients, workers) and gives each a handler. Always true: a handshake runs in its own task with its
//! own limit, so that a silent or rude peer costs nobody else anything; handshakes and connections are counted; when
//! places for handshakes run out the oldest makes room, since an honest one is over in milliseconds; when
//! [`Door::serve`] ends or is dropped the port is closed at once.
//! Deliberately not here: hello, keys, and whether a certificate was revoked (the hub's sessions).

use crate::authority::WORKER_UNIT;
use crate::connection::Connection;
use crate::limits::{CONNECTIONS_MAX, HANDSHAKE_AGE_MIN, HANDSHAKE_TIME, HANDSHAKES_MAX, HANDSHAKES_PER_ADDRESS_MAX};
use crate::tcp::{self, BindError, Listener, Stream};
use crate::tls::ALPN;
use essaim_proto::NodeName;
use rustls::ServerConfig;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

/// A peer that has come through the door.
#[derive(Debug)]
pub struct Accepted {
    /// Frames to and from it. Its values are limited until the reader trusts it.
    pub connection: Connection,
    /// Where it comes from.
    pub peer: SocketAddr,
    /// Where it came in: one of this machine's addresses that it can reach.
    pub local: SocketAddr,
    /// The node's name in its certificate of ours; `None` for a peer without one, and at the clients' door.
    pub node: Option<NodeName>,
    /// That certificate's serial in lower-case hexadecimal, to look up whether it was revoked.
    pub serial: Option<String>,
}

/// An open door.
#[derive(Debug)]
pub struct Door {
    listener: Listener,
    config: Arc<ServerConfig>,
}

impl Door {
    /// Opens `address` (`HOST:PORT`, port 0: any). Connections wait in the kernel until [`Door::serve`].
    ///
    /// # Errors
    /// [`BindError`]; a taken port names its owner.
    pub async fn bind(address: &str, config: Arc<ServerConfig>) -> Result<Door, BindError> {
        Ok(Door { listener: tcp::listen(address).await?, config })
    }

    /// What was bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// Accepts until `shutdown`. Each peer gets its own task in which `handler` runs; its place at the door is free again
    /// when the handler's future ends. Handlers that run when the door closes run on: ending sessions is the hub's work.
    pub async fn serve<H, F>(self, handler: H, shutdown: impl Future<Output = ()>)
    where
        H: Fn(Accepted) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send,
    {
        let handler = Arc::new(handler);
        let acceptor = TlsAcceptor::from(Arc::clone(&self.config));
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        // Dropped at the end of this function, and all unfinished handshakes with it.
        let handshakes = Handshakes::default();
        let mut was_full = false;
        let accept = async {
            loop {
                let (stream, peer) = self.listener.accept().await;
                let place = Arc::clone(&places).try_acquire_owned();
                if place.is_err() && !was_full {
                    tracing::warn!(address = %self.local_addr(), limit = CONNECTIONS_MAX, "the door is full");
                }
                was_full = place.is_err();
                let Ok(place) = place else { continue };
                let Some(slot) = handshakes.enter(peer.ip()).await else { continue };
                let (acceptor, handler) = (acceptor.clone(), Arc::clone(&handler));
                tokio::spawn(async move {
                    if let Some(accepted) = receive(&acceptor, stream, peer, slot).await {
                        handler(accepted).await;
                    }
                    drop(place);
                });
            }
        };
        tokio::select! {
            biased;
            () = shutdown => {}
            () = accept => {}
        }
    }
}

/// The handshake, within its time and for as long as its slot is not given to another.
async fn receive(acceptor: &TlsAcceptor, stream: Stream, peer: SocketAddr, slot: Slot) -> Option<Accepted> {
    let Slot { mut pushed_out, entry: _entry } = slot;
    let shaken = tokio::select! {
        biased;
        shaken = tokio::time::timeout(HANDSHAKE_TIME, shake_hands(acceptor, stream, peer)) => shaken,
        _ = &mut pushed_out => {
            tracing::debug!(%peer, "a handshake made room for others");
            return None;
        }
    };
    match shaken {
        Ok(Ok(accepted)) => Some(accepted),
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "a handshake failed");
            None
        }
        Err(_) => {
            tracing::debug!(%peer, "a handshake took too long");
            None
        }
    }
}

async fn shake_hands(acceptor: &TlsAcceptor, stream: Stream, peer: SocketAddr) -> io::Result<Accepted> {
    let local = stream.local_addr()?;
    let local = SocketAddr::new(local.ip().to_canonical(), local.port());
    let stream = acceptor.accept(stream).await?;
    let (_, tls) = stream.get_ref();
    if tls.alpn_protocol() != Some(ALPN) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the peer does not ask for essaim/1"));
    }
    let certificate = tls.peer_certificates().and_then(|chain| chain.first()).map(|leaf| node_of(leaf)).transpose()?;
    let (node, serial) = certificate.unzip();
    let connection = Connection::over(stream).with_addresses(Some(local), Some(peer));
    Ok(Accepted { connection, peer, local, node, serial })
}

/// Name and serial in a certificate that TLS has verified as one of ours.
fn node_of(certificate: &[u8]) -> io::Result<(NodeName, String)> {
    let strange = |why| io::Error::new(io::ErrorKind::InvalidData, why);
    let (_, leaf) =
        x509_parser::parse_x509_certificate(certificate).map_err(|_| strange("an unreadable certificate"))?;
    let subject = leaf.subject();
    let unit = subject.iter_organizational_unit().next().and_then(|unit| unit.as_str().ok());
    let name = subject.iter_common_name().next().and_then(|name| name.as_str().ok());
    let name = name.filter(|_| unit == Some(WORKER_UNIT)).and_then(|name| name.parse().ok());
    Ok((name.ok_or_else(|| strange("a certificate that is not a worker's"))?, hex::encode(leaf.raw_serial())))
}

/// The unfinished handshakes of one door, oldest first.
#[derive(Debug, Default)]
struct Handshakes {
    shared: Arc<HandshakeList>,
}

#[derive(Debug, Default)]
struct HandshakeList {
    pending: Mutex<Pending>,
    room: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    next: u64,
    by_age: BTreeMap<u64, Waiting>,
}

/// Dropping it pushes the handshake out.
#[derive(Debug)]
struct Waiting {
    from: IpAddr,
    since: Instant,
    _push_out: oneshot::Sender<()>,
}

/// One handshake's place; dropping `entry` frees it.
struct Slot {
    pushed_out: oneshot::Receiver<()>,
    entry: SlotEntry,
}

struct SlotEntry {
    number: u64,
    list: Arc<HandshakeList>,
}

impl HandshakeList {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handshakes {
    /// A place for a handshake from `from`; waits while all are taken by young ones. `None` when that address has its
    /// share of unfinished ones already.
    async fn enter(&self, from: IpAddr) -> Option<Slot> {
        loop {
            let full_until = {
                let mut pending = self.shared.pending();
                let same = pending.by_age.values().filter(|waiting| waiting.from == from).count();
                if !from.is_loopback() && same >= HANDSHAKES_PER_ADDRESS_MAX {
                    tracing::debug!(peer = %from, "too many unfinished handshakes from one address");
                    return None;
                }
                match pending.make_room() {
                    None => return Some(self.admit(&mut pending, from)),
                    Some(until) => until,
                }
            };
            // Whichever it was, look again.
            let _ = tokio::time::timeout_at(full_until, self.shared.room.notified()).await;
        }
    }

    fn admit(&self, pending: &mut Pending, from: IpAddr) -> Slot {
        let (push_out, pushed_out) = oneshot::channel();
        let number = pending.next;
        pending.next += 1;
        pending.by_age.insert(number, Waiting { from, since: Instant::now(), _push_out: push_out });
        Slot { pushed_out, entry: SlotEntry { number, list: Arc::clone(&self.shared) } }
    }
}

impl Drop for Handshakes {
    fn drop(&mut self) {
        self.shared.pending().by_age.clear();
    }
}

impl Pending {
    /// Pushes out the oldest if all places are taken; if even that one is young, says when it no longer is.
    fn make_room(&mut self) -> Option<Instant> {
        if self.by_age.len() < HANDSHAKES_MAX {
            return None;
        }
        let oldest = self.by_age.first_entry()?;
        let grown_up = oldest.get().since + HANDSHAKE_AGE_MIN;
        if grown_up > Instant::now() {
            return Some(grown_up);
        }
        oldest.remove();
        None
    }
}

impl Drop for SlotEntry {
    fn drop(&mut self) {
        self.list.pending().by_age.remove(&self.number);
        self.list.room.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A flood of silent peers must neither lock others out nor push out those who have only just come.
    #[tokio::test(start_paused = true)]
    async fn the_oldest_handshake_makes_room_once_it_is_old() {
        let handshakes = Handshakes::default();
        let loopback = IpAddr::from([127, 0, 0, 1]);
        let mut slots = Vec::new();
        for _ in 0..HANDSHAKES_MAX {
            slots.push(handshakes.enter(loopback).await.unwrap());
        }
        let before = Instant::now();
        let newest = handshakes.enter(loopback).await.unwrap();
        assert!(before.elapsed() >= HANDSHAKE_AGE_MIN);
        assert!(slots[0].pushed_out.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed));
        assert!(slots[1].pushed_out.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty));
        drop(slots);
        assert_eq!(handshakes.shared.pending().by_age.len(), 1);
        drop(newest);
        assert!(handshakes.shared.pending().by_age.is_empty());
    }

    // One address other than our own has its share and no more; another one still gets in.
    #[tokio::test]
    async fn one_address_has_its_share() {
        let handshakes = Handshakes::default();
        let (rude, honest) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let mut slots = Vec::new();
        for _ in 0..HANDSHAKES_PER_ADDRESS_MAX {
            slots.push(handshakes.enter(rude).await.unwrap());
        }
        assert!(handshakes.enter(rude).await.is_none());
        assert!(handshakes.enter(honest).await.is_some());
        slots.pop();
        assert!(handshakes.enter(rude).await.is_some());
    }
}
