//! How a command finds its hub and shows who it is.
//!
//! The clients' subcommands call [`find`] once; `link` dials what it gives. Always true: what was named explicitly wins
//! over what lies in the data folder; a hub that is named is never replaced by another one; the hub file is read again
//! before each dial, since a restarted hub may have other ports.
//!
//! ```text
//! address: --hub, ESSAIM_HUB, hub = …   else the key's own (after '@')   else hub.json in the data folder
//! key:     --key-file, ESSAIM_KEY, ESSAIM_KEY_FILE, key_file = …         else admin.key in the data folder
//! ```
//! Deliberately not here: connecting (`link`), a hub for one run (`embedded`).

use crate::exit::Failure;
use crate::home::Home;
use crate::settings::{self, Origin, Settings};
use essaim_net::private_file::read_private;
use essaim_net::{DialTarget, HubFile, Ticket, TicketKind};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// The clients' port when an address names none.
const CLIENT_PORT: u16 = 4200;

/// A hub to speak to.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    addresses: Addresses,
    /// Who we are, and which hub it must be.
    pub(crate) key: Ticket,
    bind: Option<SocketAddr>,
}

#[derive(Debug, Clone)]
enum Addresses {
    /// Named by somebody.
    Named(Vec<String>),
    /// Those of the hub on this data folder, as last read.
    OfHome(PathBuf, Vec<String>),
}

impl Target {
    /// What to dial now.
    pub(crate) fn dial(&self) -> DialTarget {
        let addresses = match &self.addresses {
            Addresses::Named(addresses) => addresses.clone(),
            Addresses::OfHome(home, last) => match HubFile::read(home) {
                Ok(Some(file)) => file.client_addresses,
                _ => last.clone(),
            },
        };
        DialTarget { addresses, authority: self.key.authority, identity: None, bind: self.bind }
    }

    /// The hub that `home` belongs to, with these addresses and this key.
    pub(crate) fn of_home(home: &Home, addresses: Vec<String>, key: Ticket) -> Target {
        Target { addresses: Addresses::OfHome(home.path().to_owned(), addresses), key, bind: None }
    }
}

/// The hub that the settings and the data folder lead to; `None` when nobody named one and none runs here.
///
/// # Errors
/// A usage failure when what was named cannot be used (a key that is none, a key file that is missing).
pub(crate) fn find(home: &Home, settings: &Settings) -> Result<Option<Target>, Failure> {
    find_with(home, settings, live_hub)
}

/// The same, for who cannot do without: a hub that was killed has left its file, and may be started again in the next
/// second.
///
/// # Errors
/// As [`find`].
pub(crate) fn find_or_expect(home: &Home, settings: &Settings) -> Result<Option<Target>, Failure> {
    find_with(home, settings, last_hub)
}

fn find_with(
    home: &Home,
    settings: &Settings,
    hub_of: impl FnOnce(&Home) -> Result<Option<HubFile>, Failure>,
) -> Result<Option<Target>, Failure> {
    let bind = settings.parsed::<IpAddr>(settings::BIND)?.map(|ip| SocketAddr::new(ip, 0));
    let named_key = named_key(home, settings)?;
    let named_hub = settings.get(settings::HUB).map(|value| parse_addresses(&value.text)).transpose()?;
    let of_key = named_key.as_ref().map(|key| key.addresses.clone()).filter(|addresses| !addresses.is_empty());
    if let Some(addresses) = named_hub.or(of_key) {
        let key = match named_key {
            Some(key) => key,
            None => home_key(home)?.ok_or_else(|| no_key(home))?,
        };
        return Ok(Some(Target { addresses: Addresses::Named(addresses), key, bind }));
    }
    let Some(file) = hub_of(home)? else {
        if named_key.is_some() {
            let message = "the key names no address and no hub runs here; name the hub with --hub ADDR";
            return Err(Failure::usage("no_address", message));
        }
        return Ok(None);
    };
    let key = match named_key {
        Some(key) => key,
        None => home_key(home)?.ok_or_else(|| no_key(home))?,
    };
    Ok(Some(Target { bind, ..Target::of_home(home, file.client_addresses, key) }))
}

/// The hub file, if the process that wrote it is alive.
///
/// # Errors
/// When the file is there and cannot be read.
pub(crate) fn live_hub(home: &Home) -> Result<Option<HubFile>, Failure> {
    Ok(last_hub(home)?.filter(|file| is_alive(file.pid)))
}

/// The hub file, whether its hub lives or was killed. One that ended has removed it.
fn last_hub(home: &Home) -> Result<Option<HubFile>, Failure> {
    HubFile::read(home.path())
        .map_err(|error| Failure::broken("hub_file", "the hub of this data folder cannot be found", &error))
}

#[cfg(unix)]
fn is_alive(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    // A process of another user answers EPERM: it lives.
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH))
}

#[cfg(not(unix))]
fn is_alive(_pid: u32) -> bool {
    true
}

fn no_key(home: &Home) -> Failure {
    let path = home.admin_key_file();
    let message = format!("there is no key for this hub: {} does not exist", path.display());
    Failure::usage("no_key", message).hint("give one with --key-file FILE or ESSAIM_KEY")
}

fn home_key(home: &Home) -> Result<Option<Ticket>, Failure> {
    read_key(&home.admin_key_file())
}

/// The key that a flag, a variable or the settings file names. A flag wins over `ESSAIM_KEY`, which wins over the rest.
fn named_key(home: &Home, settings: &Settings) -> Result<Option<Ticket>, Failure> {
    let file = settings.get(settings::KEY_FILE);
    let text = settings.get(settings::KEY);
    match (file, text) {
        (Some(file), text) if text.is_none() || matches!(file.origin, Origin::Flag(_)) => {
            // In the settings file a relative path is relative to that file, not to where one happens to be.
            let path = match &file.origin {
                Origin::File { .. } => home.path().join(&file.text),
                _ => PathBuf::from(&file.text),
            };
            let missing = || {
                let message = format!("the key file {} (from {}) does not exist", path.display(), file.origin);
                Failure::usage("no_key", message)
            };
            read_key(&path)?.ok_or_else(missing).map(Some)
        }
        (_, Some(text)) => parse_key(&text.text, &text.origin.to_string()).map(Some),
        _ => Ok(None),
    }
}

fn read_key(path: &Path) -> Result<Option<Ticket>, Failure> {
    let bytes = read_private(path).map_err(|error| {
        Failure::usage("bad_key", format!("the key cannot be used: {}", crate::exit::chain(&error)))
    })?;
    let Some(bytes) = bytes else { return Ok(None) };
    parse_key(&String::from_utf8_lossy(&bytes), &path.display().to_string()).map(Some)
}

fn parse_key(text: &str, origin: &str) -> Result<Ticket, Failure> {
    Ticket::parse(text, TicketKind::Key)
        .map_err(|error| Failure::usage("bad_key", format!("the key in {origin} cannot be used: {error}")))
}

/// `HOST`, `HOST:PORT`, `[v6]:PORT` or a bare v6 address, several with commas.
fn parse_addresses(text: &str) -> Result<Vec<String>, Failure> {
    let parse = |one: &str| -> Result<String, Failure> {
        let one = one.trim();
        let has_port = |(host, port): (&str, &str)| !host.is_empty() && port.parse::<u16>().is_ok();
        if let Ok(ip) = one.trim_matches(['[', ']']).parse::<IpAddr>() {
            return Ok(SocketAddr::new(ip, CLIENT_PORT).to_string());
        }
        match one.rsplit_once(':') {
            None if !one.is_empty() => Ok(format!("{one}:{CLIENT_PORT}")),
            Some(parts) if has_port(parts) => Ok(one.to_owned()),
            _ => Err(Failure::usage("bad_address", format!("{one:?} is no address of a hub: write HOST or HOST:PORT"))),
        }
    };
    text.split(',').map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser;
    use essaim_net::private_file::write_private;
    use essaim_net::ticket::new_secret;
    use essaim_proto::id::AuthorityHash;

    fn key(authority: u8, addresses: &[&str]) -> Ticket {
        let addresses = addresses.iter().map(|address| (*address).to_owned()).collect();
        Ticket { kind: TicketKind::Key, authority: AuthorityHash([authority; 32]), secret: new_secret(), addresses }
    }

    fn settings(home: &Path, toml: &str, words: &[&str]) -> Settings {
        std::fs::write(home.join("essaim.toml"), toml).unwrap();
        let words = ["essaim"].iter().chain(words).chain(&["node", "list"]);
        Settings::read(&home.join("essaim.toml"), &Cli::try_parse_from(words).unwrap()).unwrap()
    }

    fn write_key(path: &Path, key: &Ticket) {
        write_private(path, key.to_line().0.as_bytes()).unwrap();
    }

    fn write_hub(home: &Path, pid: u32) {
        let file = HubFile { pid, client_addresses: vec!["127.0.0.1:7".into()], ..HubFile::default() };
        file.write(home).unwrap();
    }

    // Nothing named, nothing running: no target, and no error either.
    #[test]
    fn nobody_and_nothing_is_no_target() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path());
        assert!(find(&home, &settings(folder.path(), "", &[])).unwrap().is_none());
        // A hub that died leaves its file behind.
        write_hub(folder.path(), 0x7fff_fff0);
        assert!(find(&home, &settings(folder.path(), "", &[])).unwrap().is_none());
        write_key(&home.admin_key_file(), &key(1, &[]));
        let expected = find_or_expect(&home, &settings(folder.path(), "", &[])).unwrap().unwrap();
        assert_eq!(expected.dial().addresses, ["127.0.0.1:7"], "it may come back");
    }

    // The data folder alone leads to its hub, and the file is read again at each dial.
    #[test]
    fn the_data_folder_leads_to_its_hub() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path());
        write_hub(folder.path(), std::process::id());
        let failure = find(&home, &settings(folder.path(), "", &[])).unwrap_err();
        assert_eq!(failure.code, "no_key");
        write_key(&home.admin_key_file(), &key(1, &[]));
        let target = find(&home, &settings(folder.path(), "", &[])).unwrap().unwrap();
        assert_eq!(target.dial().addresses, ["127.0.0.1:7"]);
        assert_eq!(target.dial().authority, AuthorityHash([1; 32]));
        let moved = HubFile { pid: 1, client_addresses: vec!["127.0.0.1:8".into()], ..HubFile::default() };
        moved.write(folder.path()).unwrap();
        assert_eq!(target.dial().addresses, ["127.0.0.1:8"]);
    }

    // A key that carries its addresses is enough; a named hub wins over them.
    #[test]
    fn a_key_with_addresses_is_enough() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path());
        write_key(&folder.path().join("ada.key"), &key(2, &["10.0.0.1:4200", "10.0.0.2:4200"]));
        let by_file = settings(folder.path(), "key_file = \"ada.key\"\n", &[]);
        let target = find(&home, &by_file).unwrap().unwrap();
        assert_eq!(target.dial().addresses, ["10.0.0.1:4200", "10.0.0.2:4200"]);
        let by_flag = settings(folder.path(), "key_file = \"ada.key\"\n", &["--hub", "lab,127.0.0.1:9,::1"]);
        let target = find(&home, &by_flag).unwrap().unwrap();
        assert_eq!(target.dial().addresses, ["lab:4200", "127.0.0.1:9", "[::1]:4200"]);
        assert_eq!(target.dial().authority, AuthorityHash([2; 32]));
    }

    // What was named and cannot be used is said, not replaced by something else.
    #[test]
    fn what_was_named_and_is_wrong_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path());
        let failure = |toml: &str, words: &[&str]| find(&home, &settings(folder.path(), toml, words)).unwrap_err();
        assert_eq!(failure("", &["--key-file", "/no/such/key"]).code, "no_key");
        assert_eq!(failure("", &["--hub", "a:b:c"]).code, "bad_address");
        assert_eq!(failure("", &["--hub", "lab"]).code, "no_key");
        std::fs::write(folder.path().join("bad.key"), "hello").unwrap();
        assert_eq!(failure("key_file = \"bad.key\"\n", &[]).code, "bad_key");
        write_key(&folder.path().join("bare.key"), &key(3, &[]));
        assert_eq!(failure("key_file = \"bare.key\"\n", &[]).code, "no_address");
    }
}
