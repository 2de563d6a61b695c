//! Join lines and keys as text, and the secrets in them.
//!
//! ```text
//! essaim-join.<authority, 64 hex>.<secret, 32 hex>[@ADDR[,ADDR…]]
//! essaim-key.<authority, 64 hex>.<secret, 32 hex>[@ADDR[,ADDR…]]
//! ```
//!
//! The hub makes tickets, people paste them, workers and clients read them. Always true: a secret is never shown by
//! `Debug` or in an error; the hub keeps only [`secret_hash`], and compares hashes, never secrets.
//! Deliberately not here: who may do what with a key, when a line expires (`core`).

use crate::limits::{SECRET_BYTES, TICKET_ADDRESSES_MAX, TICKET_BYTES_MAX};
use essaim_proto::BlobHash;
use essaim_proto::hello::Secret;
use essaim_proto::id::AuthorityHash;
use std::fmt;
use std::str::FromStr;

/// What a ticket is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TicketKind {
    /// A worker joins with it.
    Join,
    /// A person's commands carry it.
    Key,
}

impl TicketKind {
    /// The word that the text begins with.
    pub fn word(self) -> &'static str {
        match self {
            TicketKind::Join => "essaim-join",
            TicketKind::Key => "essaim-key",
        }
    }
}

/// A join line or a key, taken apart.
#[derive(Clone, PartialEq, Eq)]
pub struct Ticket {
    /// What it is good for.
    pub kind: TicketKind,
    /// Whose it is: the hash of the hub's authority.
    pub authority: AuthorityHash,
    /// 32 lower-case hexadecimal characters.
    pub secret: Secret,
    /// `HOST:PORT`s where the hub may be found, best first; empty when the text names none.
    pub addresses: Vec<String>,
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.***@{}", self.kind.word(), self.authority, self.addresses.join(","))
    }
}

/// Why text is no ticket. No variant shows the text: it may hold a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// Nothing was given.
    #[error("the line is empty")]
    Empty,
    /// No ticket is that long.
    #[error("the line has more than {TICKET_BYTES_MAX} bytes")]
    TooLong,
    /// The first word is another one.
    #[error("the line begins neither with essaim-join. nor with essaim-key.")]
    WrongWord,
    /// A key where a join line was wanted, or the reverse.
    #[error("an {} line is needed here, this is an {} line", .wanted.word(), .found.word())]
    WrongKind {
        /// What is needed.
        wanted: TicketKind,
        /// What was given.
        found: TicketKind,
    },
    /// The second part is not a hash.
    #[error("the authority, after the first dot, is not 64 hexadecimal characters")]
    BadAuthority,
    /// The third part is missing or no secret.
    #[error("the secret, after the second dot, is not 32 hexadecimal characters")]
    BadSecret,
    /// An address is empty or has characters that no address has.
    #[error("address {number} of the line is not HOST:PORT")]
    BadAddress {
        /// Which, from 1.
        number: usize,
    },
    /// More addresses than anybody has.
    #[error("the line has more than {TICKET_ADDRESSES_MAX} addresses")]
    TooManyAddresses,
}

impl FromStr for Ticket {
    type Err = TicketError;

    /// Reads a line; blanks around it are ignored, upper-case hexadecimal is accepted.
    fn from_str(text: &str) -> Result<Ticket, TicketError> {
        // Before trimming: a file of a gigabyte is refused without looking at it.
        if text.len() > TICKET_BYTES_MAX {
            return Err(TicketError::TooLong);
        }
        let text = text.trim();
        if text.is_empty() {
            return Err(TicketError::Empty);
        }
        let (word, rest) = text.split_once('.').ok_or(TicketError::WrongWord)?;
        let kind = [TicketKind::Join, TicketKind::Key].into_iter().find(|kind| kind.word() == word);
        let kind = kind.ok_or(TicketError::WrongWord)?;
        let (authority, rest) = rest.split_once('.').ok_or(TicketError::BadAuthority)?;
        let authority = authority.parse().map_err(|_| TicketError::BadAuthority)?;
        let (secret, addresses) = match rest.split_once('@') {
            Some((secret, addresses)) => (secret, parse_addresses(addresses)?),
            None => (rest, Vec::new()),
        };
        if secret.len() != 2 * SECRET_BYTES || !secret.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(TicketError::BadSecret);
        }
        Ok(Ticket { kind, authority, secret: Secret(secret.to_ascii_lowercase()), addresses })
    }
}

impl Ticket {
    /// Reads a line that must be of this kind.
    ///
    /// # Errors
    /// [`TicketError`]; [`TicketError::WrongKind`] when it is a good line of the other kind.
    pub fn parse(text: &str, wanted: TicketKind) -> Result<Ticket, TicketError> {
        let ticket: Ticket = text.parse()?;
        if ticket.kind == wanted { Ok(ticket) } else { Err(TicketError::WrongKind { wanted, found: ticket.kind }) }
    }

    /// The ticket as its one line of text, without a line end.
    pub fn to_line(&self) -> Secret {
        let mut line = format!("{}.{}.{}", self.kind.word(), self.authority, self.secret.0);
        if !self.addresses.is_empty() {
            line.push('@');
            line.push_str(&self.addresses.join(","));
        }
        Secret(line)
    }
}

fn parse_addresses(text: &str) -> Result<Vec<String>, TicketError> {
    let mut addresses = Vec::new();
    for (index, address) in text.split(',').enumerate() {
        if index == TICKET_ADDRESSES_MAX {
            return Err(TicketError::TooManyAddresses);
        }
        if !is_address(address) {
            return Err(TicketError::BadAddress { number: index + 1 });
        }
        addresses.push(address.to_owned());
    }
    Ok(addresses)
}

/// Does `text` look like `HOST:PORT`, `1.2.3.4:PORT` or `[v6]:PORT`? Resolving it is another matter.
fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    // `parse` alone would accept "+5".
    let port_fits = port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok();
    let host_fits = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_')),
    };
    port_fits && host_fits
}

/// A fresh secret: 32 hexadecimal characters from the system's generator.
pub fn new_secret() -> Secret {
    Secret(hex::encode(random::<SECRET_BYTES>()))
}

/// What the hub keeps instead of the secret. A plain hash is enough: a secret has 128 random bits, nothing to guess.
pub fn secret_hash(secret: &Secret) -> BlobHash {
    BlobHash::of(secret.0.as_bytes())
}

/// `N` random bytes, for ids and secrets.
///
/// # Panics
/// If the operating system has no randomness to give: nothing safe can be done then.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ticket(addresses: &[&str]) -> Ticket {
        Ticket {
            kind: TicketKind::Join,
            authority: AuthorityHash([7; 32]),
            secret: new_secret(),
            addresses: addresses.iter().map(|a| (*a).to_owned()).collect(),
        }
    }

    // Each way to spoil a good line must get its own sentence.
    #[test]
    fn every_malformed_form_is_named() {
        let good = ticket(&["10.0.0.1:5200", "[fe80::1]:5200", "hub.example:5200"]).to_line().0;
        assert!(good.parse::<Ticket>().is_ok());
        assert!(format!("  {good}\r\n").parse::<Ticket>().is_ok(), "blanks around it");
        let (a, s) = ("07".repeat(32), "ab".repeat(16));
        let cases = [
            (String::new(), TicketError::Empty),
            (" \n".to_owned(), TicketError::Empty),
            ("x".repeat(TICKET_BYTES_MAX + 1), TicketError::TooLong),
            ("hello".to_owned(), TicketError::WrongWord),
            (format!("essaim.{a}.{s}"), TicketError::WrongWord),
            (format!("Essaim-join.{a}.{s}"), TicketError::WrongWord),
            ("essaim-join.".to_owned(), TicketError::BadAuthority),
            (format!("essaim-join.{a}"), TicketError::BadAuthority),
            (format!("essaim-join.{}.{s}", &a[2..]), TicketError::BadAuthority),
            (format!("essaim-join.{}zz.{s}", &a[2..]), TicketError::BadAuthority),
            (format!("essaim-join.{a}."), TicketError::BadSecret),
            (format!("essaim-join.{a}.{}", &s[1..]), TicketError::BadSecret),
            (format!("essaim-join.{a}.{s}00"), TicketError::BadSecret),
            (format!("essaim-join.{a}.{s}.x"), TicketError::BadSecret),
            (format!("essaim-join.{a}.{}é", &s[2..]), TicketError::BadSecret),
            (format!("essaim-join.{a}.{s}@"), TicketError::BadAddress { number: 1 }),
            (format!("essaim-join.{a}.{s}@h:1,"), TicketError::BadAddress { number: 2 }),
            (format!("essaim-join.{a}.{s}@h"), TicketError::BadAddress { number: 1 }),
            (format!("essaim-join.{a}.{s}@h:70000"), TicketError::BadAddress { number: 1 }),
            (format!("essaim-join.{a}.{s}@h:+5"), TicketError::BadAddress { number: 1 }),
            (format!("essaim-join.{a}.{s}@h:"), TicketError::BadAddress { number: 1 }),
            (format!("essaim-join.{a}.{s}@::1:5"), TicketError::BadAddress { number: 1 }),
            (format!("essaim-join.{a}.{s}@a b:5"), TicketError::BadAddress { number: 1 }),
            (format!("essaim-join.{a}.{s}@{}", vec!["h:1"; 65].join(",")), TicketError::TooManyAddresses),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<Ticket>(), Err(error), "{text}");
        }
    }

    // A key pasted where a join line is needed must be told as such.
    #[test]
    fn the_other_kind_is_told() {
        let line = ticket(&[]).to_line().0;
        let wrong = Ticket::parse(&line, TicketKind::Key).unwrap_err();
        assert_eq!(wrong, TicketError::WrongKind { wanted: TicketKind::Key, found: TicketKind::Join });
        assert!(wrong.to_string().contains("an essaim-key line is needed"), "{wrong}");
    }

    // Logs print tickets with Debug: the secret must not be in there.
    #[test]
    fn debug_hides_the_secret() {
        let ticket = ticket(&["h:1"]);
        assert!(!format!("{ticket:?} {:?}", ticket.to_line()).contains(&ticket.secret.0));
        assert_ne!(new_secret(), new_secret());
        assert_ne!(secret_hash(&new_secret()), secret_hash(&new_secret()));
    }

    proptest! {
        // What we write we read, with any addresses.
        #[test]
        fn a_line_survives_the_way_through_text(
            key in any::<bool>(), authority in any::<[u8; 32]>(), secret in "[0-9a-f]{32}",
            addresses in prop::collection::vec("[a-z0-9.-]{1,20}:[1-9][0-9]{0,3}", 0..8),
        ) {
            let kind = if key { TicketKind::Key } else { TicketKind::Join };
            let ticket = Ticket { kind, authority: AuthorityHash(authority), secret: Secret(secret), addresses };
            prop_assert_eq!(ticket.to_line().0.parse::<Ticket>().unwrap(), ticket);
        }

        // Any text is an answer, never a panic, and no error repeats the text.
        #[test]
        fn any_text_is_answered(text in "\\PC*", cut in 0usize..120) {
            let good = ticket(&["h:1"]).to_line().0;
            let _ = text.parse::<Ticket>();
            let _ = format!("{}{text}", &good[..cut.min(good.len())]).parse::<Ticket>();
        }
    }
}
