//! Why a worker ends without having been told to.
//!
//! Returned by `run`; the binary prints the sentence and what stands behind it. Always true: a broken network is not
//! among them, since a worker tries for ever.
//! Deliberately not here: the ends of programs (they are verdicts), refusals' sentences (`view`).

use essaim_net::DialError;
use essaim_net::identity::IdentityError;
use essaim_net::private_file::PrivateFileError;
use essaim_proto::Refusal;
use std::io;
use std::path::PathBuf;

/// Why a worker gave up.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Another worker holds the folder.
    #[error("a worker (process {pid}) already runs with the folder {}", folder.display())]
    HomeTaken {
        /// Which folder.
        folder: PathBuf,
        /// The process that holds it; 0 when it has not said so yet.
        pid: u32,
    },
    /// The folder cannot be used.
    #[error("the worker's folder {} cannot be {what}", folder.display())]
    Home {
        /// Which folder.
        folder: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A file in the folder cannot be used.
    #[error("the worker's folder cannot be used")]
    HomeFile {
        /// Which, and why.
        source: PrivateFileError,
    },
    /// There is no identity in the folder and no join line was given.
    #[error("this machine has not joined a hub yet: a join line is needed")]
    NotJoined,
    /// A key was given where a join line is needed.
    #[error("a join line is needed here, this is a key")]
    NotAJoinLine,
    /// The hub said no, and will say so again.
    #[error("the hub refused: {}", .refusal.code.name())]
    Refused {
        /// Its words.
        refusal: Refusal,
    },
    /// Another hub answers at the address.
    #[error("another hub than the one that was meant answers at {address}")]
    OtherHub {
        /// Where.
        address: String,
    },
    /// The hub cannot be dialled, and not for reasons of the network.
    #[error("the hub cannot be dialled")]
    Dial(#[source] DialError),
    /// The saved identity cannot be used.
    #[error("the worker's identity cannot be used")]
    Identity(#[from] IdentityError),
    /// A thread could not be started.
    #[error("the worker cannot start a thread")]
    Thread(#[source] io::Error),
}
