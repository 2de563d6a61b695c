//! The first words of a connection.
//!
//! ```text
//! dialler                         hub
//!   hello{key?}  ───────────────▶  protocol, door, key
//!                ◀───────────────  welcome  (or refused, then the connection closes)
//! joiner: hello, join{secret, csr} ▶      ◀ joined{chain}
//! ```
//!
//! `hello` and `refused` are frozen for ever, so that any two versions can at least say why they part.
//! Deliberately not here: TLS, which has proved the hub before the first byte (`net`).

use crate::id::NodeName;
use serde::{Deserialize, Serialize};

/// The oldest protocol that this version speaks.
pub const PROTOCOL_MIN: u16 = 1;
/// The newest protocol that this version speaks. Changes only when something is taken away.
pub const PROTOCOL_MAX: u16 = 1;

/// What the dialler is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerKind {
    /// Speaks for a person, with a key.
    Client,
    /// Offers slots, with a certificate.
    Worker,
    /// Has a join line and wants a certificate.
    Joiner,
    /// A kind of a newer version.
    #[default]
    #[serde(other)]
    Unknown,
}

/// Text that is never shown: prints stars.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// First frame of the side that dialled.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Hello {
    /// Oldest protocol spoken.
    pub proto_min: u16,
    /// Newest protocol spoken.
    pub proto_max: u16,
    /// Program and version, for logs.
    pub software: String,
    /// What the dialler is.
    pub kind: PeerKind,
    /// Options beyond the protocol that the dialler has.
    pub features: Vec<String>,
    /// A client's key (`essaim-key.…`).
    pub key: Option<Secret>,
}

/// First frame of the hub.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Welcome {
    /// The protocol of this connection.
    pub proto: u16,
    /// Program and version of the hub.
    pub software: String,
    /// The hub's name.
    pub hub: String,
    /// Options that both ends have.
    pub features: Vec<String>,
    /// Send something at least this often, in milliseconds.
    pub heartbeat_ms: u32,
    /// Silence after which the connection is closed, in milliseconds.
    pub silence_ms: u32,
    /// Silence after which a worker's attempts are given to others, in milliseconds.
    pub lease_ms: u32,
    /// The name of the key or node that the hub recognised.
    pub you: String,
    /// The role of the key.
    pub role: Role,
    /// The address from which the hub sees this connection.
    pub seen_from: String,
}

/// What a key may do; each role may do all that the ones before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Names and states of all.
    #[default]
    Viewer,
    /// That, and his own jobs in full.
    User,
    /// Everything that runs.
    Operator,
    /// Keys and settings too.
    Admin,
}

impl Role {
    /// The role's word.
    pub fn name(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::User => "user",
            Role::Operator => "operator",
            Role::Admin => "admin",
        }
    }
}

impl std::str::FromStr for Role {
    type Err = ();
    fn from_str(text: &str) -> Result<Role, ()> {
        [Role::Viewer, Role::User, Role::Operator, Role::Admin].into_iter().find(|r| r.name() == text).ok_or(())
    }
}

/// A joiner asks for its certificate.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Join {
    /// The secret of the join line.
    pub secret: Secret,
    /// The certificate request, DER; only its public key counts, the hub decides name and role.
    #[serde(with = "crate::bytes_text")]
    pub csr: Vec<u8>,
    /// The name that the joiner would like.
    pub name: Option<NodeName>,
}

/// The joiner's certificate.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Joined {
    /// Certificate chain, DER: own certificate first, then the authority.
    #[serde(with = "crate::bytes_text::list")]
    pub chain: Vec<serde_bytes::ByteBuf>,
    /// The name that the hub gave.
    pub name: String,
}

/// Why a side ends the connection.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Goodbye {
    /// Why, as a code (`shutdown`, `done`, `silence`, `protocol` …).
    pub reason: String,
}
