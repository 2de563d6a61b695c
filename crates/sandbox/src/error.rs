//! What can go wrong between a worker and its cage.
//!
//! Returned by `run_cage` (the cage's side) and by `Cage` (the worker's side). Deliberately not
//! here: a program that cannot be started. That is no error of ours but the event `StartFailed`.

use std::io;
use std::path::PathBuf;

/// An error of the cage or of the socket to it.
#[derive(Debug, thiserror::Error)]
pub enum CageError {
    /// The cage's own process could not be prepared.
    #[error("cannot prepare the cage: {what}")]
    Setup {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// `run_cage` was called in a process that already has other threads, where a fork is not safe.
    #[error("the cage needs a process with one thread, this one has {threads}")]
    ManyThreads {
        /// Threads found.
        threads: usize,
    },
    /// The socket failed in another way than by being closed.
    #[error("the socket between worker and cage failed")]
    Socket(#[source] io::Error),
    /// The other side is gone: the cage ended or was killed. Its programs are dead or dying.
    #[error("the cage is gone")]
    Gone,
    /// The cage did not take a request in time: it is stopped or stuck. Or, when nobody waited, it has nothing to say or
    /// no room yet.
    #[error("the cage does not take requests")]
    Busy,
    /// A message is too large to send; arguments or environment are too long.
    #[error("a message of {bytes} bytes is over the limit of {bytes_max}: arguments and environment are too long")]
    TooLarge {
        /// Size of the message, or of what was received of it.
        bytes: usize,
        /// The limit, `MESSAGE_BYTES_MAX` for requests.
        bytes_max: usize,
    },
    /// A message could not be written. It cannot happen with the messages that we have.
    #[error("cannot encode a message")]
    Encode(#[source] rmp_serde::encode::Error),
    /// The other side sent something that is no message; both sides are the same executable, so this is a bug.
    #[error("cannot decode a message")]
    Decode(#[source] rmp_serde::decode::Error),
    /// A wall limit of zero. "No limit" is `None`; zero is a mistake and is refused.
    #[error("a wall limit of zero is refused: leave it out if no limit is meant")]
    ZeroWallLimit,
    /// A folder was not given from the root; the cage's current folder is nobody's business.
    #[error("the path {} is not absolute", path.display())]
    RelativePath {
        /// The path.
        path: PathBuf,
    },
    /// A path that must never be owned, or shown in a room: the root itself, one with `..` in it, one where rooms have
    /// something of their own.
    #[error("the path {} cannot be used for this", path.display())]
    UnfitPath {
        /// The path.
        path: PathBuf,
    },
    /// Over `EXTRA_PLACES_MAX`.
    #[error("a room shows at most {places_max} places beside the system's")]
    TooManyPlaces {
        /// The limit.
        places_max: usize,
    },
    /// A room that a program cannot write a byte or a file to.
    #[error("a room of no bytes or no files is refused: nothing could be put in")]
    EmptyRoom,
    /// Over `OWNED_FOLDERS_MAX`.
    #[error("the cage owns {folders_max} folders already")]
    TooManyFolders {
        /// The limit.
        folders_max: usize,
    },
    /// An owned folder could not be removed after the worker was gone. The others were removed.
    #[error("cannot remove the folder {}", path.display())]
    Folder {
        /// The first folder that failed.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}
