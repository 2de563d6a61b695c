//! The hub's doors: opened at start and, for a join line, while the hub runs.
//!
//! [`crate::hub`] opens the first two, a client's session more of them. Always true: `hub.json` names what is open; a door
//! that is served ends with the hub; if the first two cannot both be opened, none is.
//! Deliberately not here: what is said at a door ([`crate::client`], [`crate::worker`]).

use crate::hub::{Shared, StartError};
use crate::limits::DOORS_MAX;
use essaim_net::private_file::{read_private, write_private};
use essaim_net::{Accepted, BindError, Door, DoorKind, HubFile};
use essaim_proto::api::JoinLineMake;
use essaim_proto::{Refusal, RefusalCode};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tracing::{info, warn};

/// Which ports were bound last, so that a restart on port 0 takes the same ones.
const DOORS_FILE: &str = "doors";

/// What is open.
#[derive(Debug, Default)]
pub(crate) struct Doors {
    bound: Mutex<Bound>,
    /// Held while more doors are opened, so that two join lines do not stand in each other's way.
    opening: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Bound {
    clients: Vec<SocketAddr>,
    workers: Vec<SocketAddr>,
}

impl Doors {
    pub(crate) fn client_addresses(&self) -> Vec<String> {
        reachable(&self.bound().clients)
    }

    pub(crate) fn worker_addresses(&self) -> Vec<String> {
        reachable(&self.bound().workers)
    }

    /// Would who goes there come to one of these doors?
    pub(crate) fn are_at(&self, address: SocketAddr) -> bool {
        let bound = self.bound();
        let ip = address.ip().to_canonical();
        let is_ours = || {
            let own = essaim_net::addresses::own().unwrap_or_default();
            ip.is_loopback() || ip.is_unspecified() || own.iter().any(|own| own.ip == ip)
        };
        let mut ports = bound.clients.iter().chain(&bound.workers).map(SocketAddr::port);
        ports.any(|port| port == address.port()) && is_ours()
    }

    fn of(&self, kind: DoorKind) -> Vec<SocketAddr> {
        match kind {
            DoorKind::Client => self.bound().clients.clone(),
            DoorKind::Worker => self.bound().workers.clone(),
        }
    }

    fn add(&self, kind: DoorKind, address: SocketAddr) {
        match kind {
            DoorKind::Client => self.bound().clients.push(address),
            DoorKind::Worker => self.bound().workers.push(address),
        }
    }

    fn bound(&self) -> MutexGuard<'_, Bound> {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Opens the first two doors and tells where they are.
    pub(crate) async fn open_doors(self: &Arc<Self>, clients: &str, workers: &str) -> Result<(), StartError> {
        let last = read_private(&self.home.join(DOORS_FILE))?.and_then(|bytes| String::from_utf8(bytes).ok());
        let mut last = last.as_deref().unwrap_or_default().lines();
        let client_door = self.bind_first(DoorKind::Client, clients, last.next()).await?;
        let worker_door = self.bind_first(DoorKind::Worker, workers, last.next()).await?;
        let (client_addr, worker_addr) = (client_door.local_addr(), worker_door.local_addr());
        write_private(&self.home.join(DOORS_FILE), format!("{client_addr}\n{worker_addr}\n").as_bytes())?;
        self.doors.add(DoorKind::Client, client_addr);
        self.doors.add(DoorKind::Worker, worker_addr);
        self.write_hub_file()?;
        // Who came already waits in the kernel. Served only now: nothing can fail any more.
        self.serve(DoorKind::Client, client_door);
        self.serve(DoorKind::Worker, worker_door);
        Ok(())
    }

    /// Binds a door; for port 0 first where it was the last time, so that workers find it again.
    async fn bind_first(&self, kind: DoorKind, address: &str, last: Option<&str>) -> Result<Door, BindError> {
        let host = address.strip_suffix(":0");
        let same_host = |last: &&str| host.is_some() && last.rsplit_once(':').map(|(host, _)| host) == host;
        if let Some(last) = last.filter(same_host)
            && let Ok(door) = self.bind(kind, last).await
        {
            return Ok(door);
        }
        self.bind(kind, address).await
    }

    async fn bind(&self, kind: DoorKind, address: &str) -> Result<Door, BindError> {
        Door::bind(address, self.authority.server_config(kind)).await
    }

    /// Serves a door until the hub ends. Sessions open doors and doors open sessions: the box ends that circle of types.
    fn serve(self: &Arc<Self>, kind: DoorKind, door: Door) {
        info!(address = %door.local_addr(), door = ?kind, "door open");
        // Connections outlive the hub by their last words; what it holds must not.
        let hub = Arc::downgrade(self);
        let (mut shutdown, open) = (self.shutdown.subscribe(), self.shutdown.subscribe());
        let ends = async move { crate::session::told_to_end(&mut shutdown).await };
        let session = move |accepted: Accepted| -> Pin<Box<dyn Future<Output = ()> + Send>> {
            match (kind, hub.upgrade()) {
                (DoorKind::Client, Some(shared)) => Box::pin(crate::client::serve(shared, accepted)),
                (DoorKind::Worker, Some(shared)) => Box::pin(crate::worker::serve(shared, accepted)),
                (_, None) => Box::pin(std::future::ready(())),
            }
        };
        tokio::spawn(async move {
            door.serve(session, ends).await;
            // A shutdown waits for this: the port is free again.
            drop(open);
        });
    }

    /// Opens the doors that a join line shall name; those that are open already stay as they are.
    pub(crate) async fn open_more(self: &Arc<Self>, make: &JoinLineMake) -> Result<(), Refusal> {
        let wanted = [(DoorKind::Worker, &make.open), (DoorKind::Client, &make.open_clients)];
        let _alone = self.doors.opening.lock().await;
        for (kind, address) in wanted {
            if let Some(address) = address {
                self.open_another(kind, address).await?;
            }
        }
        Ok(())
    }

    async fn open_another(self: &Arc<Self>, kind: DoorKind, address: &str) -> Result<(), Refusal> {
        let known = self.doors.of(kind);
        let address = with_port(address, known.first().map_or(0, SocketAddr::port));
        let door = match self.bind(kind, &address).await {
            Ok(door) if known.len() < DOORS_MAX => door,
            Ok(_) => return Err(Refusal::new(RefusalCode::TooMany).with("what", "doors").with("limit", DOORS_MAX)),
            // By ourselves: that is what was wanted.
            Err(BindError::Taken { address, .. }) if known.iter().any(|bound| covers(*bound, address)) => return Ok(()),
            Err(error) => {
                let refusal = Refusal::new(RefusalCode::CannotListen).with("address", &address);
                return Err(refusal.with("why", sentence(&error)));
            }
        };
        self.doors.add(kind, door.local_addr());
        self.serve(kind, door);
        if let Err(error) = self.write_hub_file() {
            warn!(%error, "hub.json does not name the new door");
        }
        Ok(())
    }

    fn write_hub_file(&self) -> Result<(), essaim_net::hubfile::HubFileError> {
        let file = HubFile {
            pid: std::process::id(),
            hub: self.name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            authority: self.authority.hash(),
            client_addresses: self.doors.client_addresses(),
            worker_addresses: self.doors.worker_addresses(),
            http_addresses: Vec::new(),
            started_ms: self.started_ms,
        };
        file.write(&self.home)
    }
}

/// Does a door at `bound` take what is sent to `wanted`?
fn covers(bound: SocketAddr, wanted: SocketAddr) -> bool {
    let takes_all = match bound.ip() {
        IpAddr::V4(ip) => ip.is_unspecified() && wanted.is_ipv4(),
        IpAddr::V6(ip) => ip.is_unspecified(),
    };
    bound.port() == wanted.port() && (takes_all || bound.ip() == wanted.ip())
}

/// An error with its causes, for a parameter of a refusal.
fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// `HOST` or `HOST:PORT`, with the port filled in.
fn with_port(address: &str, port: u16) -> String {
    match address.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, port).to_string(),
        Err(_) if address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) => address.to_owned(),
        Err(_) => format!("{address}:{port}"),
    }
}

fn reachable(bound: &[SocketAddr]) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    // Addresses that only this machine can reach come last: a pasted line should try the others first.
    for local in [false, true] {
        for address in bound.iter().filter(|address| address.ip().is_loopback() == local) {
            let named = essaim_net::addresses::reachable(*address).unwrap_or_else(|_| vec![address.to_string()]);
            for name in named {
                if !all.contains(&name) {
                    all.push(name);
                }
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    // Does an address that is covered already need no second door, and does another one?
    #[test]
    fn a_door_covers_its_own_address_and_an_open_one_all() {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let cases = [
            ("127.0.0.1:5200", "127.0.0.1:5200", true),
            ("127.0.0.1:5200", "127.0.0.2:5200", false),
            ("0.0.0.0:5200", "10.0.0.5:5200", true),
            ("0.0.0.0:5200", "10.0.0.5:5201", false),
            ("0.0.0.0:5200", "[::1]:5200", false),
            ("[::]:5200", "10.0.0.5:5200", true),
        ];
        for (bound, wanted, expected) in cases {
            assert_eq!(covers(address(bound), address(wanted)), expected, "{bound} {wanted}");
        }
        assert_eq!(with_port("::1", 7), "[::1]:7");
        assert_eq!(with_port("lab.example", 7), "lab.example:7");
        assert_eq!(with_port("lab.example:8", 7), "lab.example:8");
    }
}
