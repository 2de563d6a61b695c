//! Which process listens on an address, so that "port taken" can say by whom.
//!
//! `tcp` asks when a bind fails, `essaim doctor` may ask too. Linux reads `/proc`; elsewhere the answer is `None`.
//! Always true: nothing is sent, and a process whose folders we may not read is simply not found.
//! Deliberately not here: TCP itself (see [`crate::tcp`]).

use std::fmt;
use std::net::SocketAddr;

/// A process that listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Its process id.
    pub pid: u32,
    /// Its program's name, as the kernel keeps it (15 bytes at most).
    pub command: String,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {})", self.command, self.pid)
    }
}

/// The process that listens on `address`, or on all addresses with that port.
#[cfg(target_os = "linux")]
pub fn port_owner(address: SocketAddr) -> Option<Owner> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| std::fs::read_to_string(table).ok())
        .find_map(|table| listening_inode(&table, address))?;
    let wanted = format!("socket:[{inode}]");
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let mut files = std::fs::read_dir(entry.path().join("fd")).ok()?.flatten();
        files.find(|file| std::fs::read_link(file.path()).is_ok_and(|target| target.as_os_str() == wanted.as_str()))?;
        let command = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        Some(Owner { pid, command: command.trim().to_owned() })
    })
}

/// Always `None`: this system has no `/proc`.
#[cfg(not(target_os = "linux"))]
pub fn port_owner(_address: SocketAddr) -> Option<Owner> {
    None
}

/// The socket that listens on `address` in a table such as `/proc/net/tcp` (proc(5)).
#[cfg(target_os = "linux")]
fn listening_inode(table: &str, address: SocketAddr) -> Option<u64> {
    const LISTEN: &str = "0A";
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let local = parse_local(fields.nth(1)?)?;
        let state = fields.nth(1)?;
        let inode = fields.nth(5)?.parse().ok()?;
        let same_host = local.ip() == address.ip() || local.ip().is_unspecified() || address.ip().is_unspecified();
        (state == LISTEN && local.port() == address.port() && same_host).then_some(inode)
    })
}

/// `0100007F:1068` is 127.0.0.1:4200: each 32-bit word as this machine's number, then the port.
#[cfg(target_os = "linux")]
fn parse_local(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::new();
    for word in host.as_bytes().chunks(8) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    let ip = match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok()?.into(),
        16 => std::net::IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    // The kernel's table has its own spelling; the wildcard and the mapped form must be recognised.
    #[test]
    fn the_kernels_table_is_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:1068 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0\n\
            1: 0100007F:1069 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0\n\
            2: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 4713 1\n";
        assert_eq!(listening_inode(table, "127.0.0.1:4200".parse().unwrap()), Some(4711));
        assert_eq!(listening_inode(table, "0.0.0.0:4200".parse().unwrap()), Some(4711));
        assert_eq!(listening_inode(table, "10.0.0.1:4200".parse().unwrap()), None);
        assert_eq!(listening_inode(table, "127.0.0.1:4201".parse().unwrap()), None, "connected, not listening");
        assert_eq!(listening_inode(table, "127.0.0.1:8080".parse().unwrap()), Some(4713));
        assert_eq!(parse_local("0000000000000000FFFF00000100007F:0001"), "127.0.0.1:1".parse().ok());
    }
}
