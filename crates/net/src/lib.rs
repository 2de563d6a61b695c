//! Bytes on sockets: doors, dialling, framed connections, and the typed [`Client`].
//!
//! The hub opens [`Door`]s and takes [`Connection`]s from them; a worker dials one; the command line and the window use
//! [`Client`]. All speak the frames of `essaim-proto`; this crate calls nobody else of ours.
//!
//! ```text
//!   Client ── hello ── dial ─┐                    ┌─ door ── (hub's session)
//!      │                     ├── tls ── tcp ──────┤
//!   transfer ── connection ──┘      authority, ticket, identity
//! ```
//!
//! Always true: everything between two machines is TLS 1.3 with a hub whose authority's hash was known beforehand; every
//! queue has a limit ([`limits`]); TCP is imported in the module `tcp` alone.
//! Deliberately not here: jobs, what a key may do, HTTP, and sentences for people.

pub mod addresses;
pub mod authority;
pub mod backoff;
pub mod client;
pub mod connection;
pub mod dial;
pub mod door;
pub mod hello;
pub mod hubfile;
pub mod identity;
pub mod limits;
pub mod owner;
pub mod post;
pub mod private_file;
pub mod subscription;
pub mod tcp;
pub mod ticket;
pub mod tls;
pub mod transfer;

pub use authority::{AUTHORITY_FILES, Authority, AuthorityError, DoorKind, Signed};
pub use backoff::Backoff;
pub use client::{Client, ClientError, ConnectError, ConnectOptions, State};
pub use connection::{Connection, FrameReader, FrameSender, ReadError, SendError};
pub use dial::{DialError, DialTarget, dial};
pub use door::{Accepted, Door};
pub use hello::{HelloError, JoinError};
pub use hubfile::HubFile;
pub use identity::Identity;
pub use owner::Owner;
pub use subscription::Subscription;
pub use tcp::BindError;
pub use ticket::{Ticket, TicketError, TicketKind};
