//! The addresses of this machine, IPv4 and IPv6, found without sending anything.
//!
//! The hub fills join lines with them, the worker reports them. Always true: what others cannot reach from elsewhere
//! (loopback, link-local) is marked, and sorted last. Deliberately not here: which of them a firewall lets through.

use std::io;
use std::net::{IpAddr, SocketAddr};

/// One address of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnAddress {
    /// The address.
    pub ip: IpAddr,
    /// The interface that has it.
    pub interface: String,
    /// Can only this machine, or only its own cable, reach it?
    pub is_local: bool,
}

/// All addresses of this machine: IPv4 before IPv6, loopback and link-local ones last, otherwise in the system's order.
///
/// # Errors
/// The system's, when it cannot list its interfaces.
pub fn own() -> io::Result<Vec<OwnAddress>> {
    let mut addresses: Vec<OwnAddress> = if_addrs::get_if_addrs()?
        .into_iter()
        .map(|interface| OwnAddress {
            ip: interface.ip(),
            is_local: interface.is_loopback() || interface.is_link_local(),
            interface: interface.name,
        })
        .collect();
    addresses.sort_by_key(|address| (address.is_local, address.ip.is_ipv6()));
    Ok(addresses)
}

/// The addresses of this machine as text, the one that a connection uses first: `local` is the near end of the
/// connection to the hub.
///
/// # Errors
/// The system's, when it cannot list its interfaces.
pub fn own_with_first(local: IpAddr) -> io::Result<Vec<IpAddr>> {
    Ok(with_first(local.to_canonical(), own()?.into_iter().map(|address| address.ip).collect()))
}

/// The `HOST:PORT`s under which others may reach a door that is bound to `bound`: that address, or for a wildcard all
/// that are not local to this machine. Empty when the machine has none.
///
/// # Errors
/// The system's, when it cannot list its interfaces.
pub fn reachable(bound: SocketAddr) -> io::Result<Vec<String>> {
    if !bound.ip().is_unspecified() {
        return Ok(vec![bound.to_string()]);
    }
    let fits = |address: &OwnAddress| !address.is_local && (bound.is_ipv6() || address.ip.is_ipv4());
    let own = own()?.into_iter().filter(fits);
    Ok(own.map(|address| SocketAddr::new(address.ip, bound.port()).to_string()).collect())
}

fn with_first(first: IpAddr, mut all: Vec<IpAddr>) -> Vec<IpAddr> {
    all.retain(|ip| *ip != first);
    all.insert(0, first);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    // Loopback is there and last, the used address comes first and once.
    #[test]
    fn own_addresses_are_ordered() {
        let all = own().unwrap();
        let loopback = all.iter().position(|address| address.ip.is_loopback()).unwrap();
        assert!(all[loopback..].iter().all(|address| address.is_local));
        let used: IpAddr = "127.0.0.1".parse().unwrap();
        let ordered = own_with_first(used).unwrap();
        assert_eq!(ordered[0], used);
        assert_eq!(ordered.iter().filter(|ip| **ip == used).count(), 1);
    }

    // A bound address stands for itself, a wildcard for what others can reach.
    #[test]
    fn a_wildcard_is_spelled_out() {
        assert_eq!(reachable("127.0.0.1:5200".parse().unwrap()).unwrap(), ["127.0.0.1:5200"]);
        for address in reachable("0.0.0.0:5200".parse().unwrap()).unwrap() {
            let address: SocketAddr = address.parse().unwrap();
            assert!(address.is_ipv4() && !address.ip().is_loopback() && address.port() == 5200);
        }
    }
}
