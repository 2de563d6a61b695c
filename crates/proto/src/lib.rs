//! The words of the wire: ids, frames, messages, limits and refusal codes.
//!
//! Everybody calls this crate; it calls nobody of ours. A value built here can be sent as it is: as MessagePack with
//! field names inside a [`frame::Frame`], or as JSON for people (`docs/protocol.md` specifies both).
//!
//! Always true here: nothing does IO, reads a clock or draws a random number. A struct accepts fields that it does not
//! know and fills fields that are missing, so that an old peer and a new one understand each other.
//!
//! Deliberately not here: sockets (`net`), decisions (`core`), sentences for people (`view`).

pub mod api;
mod bytes_text;
pub mod codec;
pub mod frame;
pub mod function;
pub mod hello;
pub mod id;
pub mod job;
pub mod limits;
pub mod link;
pub mod node;
pub mod quota;
pub mod refusal;
pub mod task_set;

pub use codec::{DecodeError, decode, encode};
pub use frame::{Decoder, Frame, FrameError};
pub use function::Function;
pub use id::{AttemptId, BlobHash, InstanceId, JobId, KeyName, MachineId, NodeName, SubmitKey, TaskId};
pub use refusal::{Refusal, RefusalCode};
pub use task_set::TaskSet;
