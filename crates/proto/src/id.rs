//! Ids and names, each a type of its own so that two of them cannot be swapped.
//!
//! In MessagePack numbers are numbers and hashes are bytes; in JSON hashes are hexadecimal text. Numbers stay below
//! 2^53, so a browser can hold them.
//! Deliberately not here: how ids are drawn (`core` counts them, shells draw random ones).

use crate::limits::NAME_BYTES_MAX;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

macro_rules! number_id {
    ($(#[doc = $doc:literal])+ $name:ident($inner:ty)) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }

        impl FromStr for $name {
            type Err = std::num::ParseIntError;
            fn from_str(text: &str) -> Result<$name, Self::Err> {
                text.parse().map($name)
            }
        }
    };
}

number_id!(
    /// A job: what is submitted. Counted from 1 by the hub, never reused.
    JobId(u64)
);
number_id!(
    /// A task of a job. A job that is not an array has the one task 1.
    TaskId(u32)
);

/// The only task of a job that is not an array.
pub const TASK_ONE: TaskId = TaskId(1);

/// The n-th try of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AttemptId {
    /// The job.
    pub job: JobId,
    /// The task in it.
    pub task: TaskId,
    /// Its try, from 1.
    pub attempt: u32,
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}#{}", self.job, self.task, self.attempt)
    }
}

macro_rules! bytes_id {
    ($(#[doc = $doc:literal])+ $name:ident[$length:literal]) => {
        $(#[doc = $doc])+
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        pub struct $name(pub [u8; $length]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = hex::FromHexError;
            fn from_str(text: &str) -> Result<$name, Self::Err> {
                let mut bytes = [0; $length];
                hex::decode_to_slice(text, &mut bytes)?;
                Ok($name(bytes))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serializer.serialize_bytes(&self.0)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                use serde::de::Error;
                if deserializer.is_human_readable() {
                    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
                } else {
                    let bytes = serde_bytes::ByteArray::<$length>::deserialize(deserializer)?;
                    Ok($name(bytes.into_array()))
                }
            }
        }
    };
}

bytes_id!(
    /// BLAKE3 of a blob's bytes.
    BlobHash[32]
);
bytes_id!(
    /// SHA-256 of the certificate of a hub's own authority: the hub's identity, whatever its address is.
    AuthorityHash[32]
);
bytes_id!(
    /// Drawn by a client for each Submit: a repeated Submit returns the first job.
    SubmitKey[16]
);
bytes_id!(
    /// Stays with a machine's data folder.
    MachineId[16]
);
bytes_id!(
    /// Drawn at each start of a worker: tells a restart from a reconnect.
    InstanceId[16]
);

impl BlobHash {
    /// The hash of `bytes`.
    pub fn of(bytes: &[u8]) -> BlobHash {
        BlobHash(*blake3::hash(bytes).as_bytes())
    }
}

/// Text that is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a name: 1 to 63 letters, digits, '.', '_' or '-', not starting with '.' or '-'")]
pub struct NameError(pub String);

fn check_name(text: &str) -> Result<(), NameError> {
    let fits = !text.is_empty() && text.len() <= NAME_BYTES_MAX;
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if fits && plain && !text.starts_with(['.', '-']) { Ok(()) } else { Err(NameError(text.to_owned())) }
}

macro_rules! name_id {
    ($(#[doc = $doc:literal])+ $name:ident) => {
        $(#[doc = $doc])+
        ///
        /// A copy costs no memory: lists of a million tasks name their nodes.
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<$name, NameError> {
                check_name(&text)?;
                Ok($name(text.into()))
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<$name, NameError> {
                $name::try_from(text.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name_id!(
    /// A node's name, unique at its hub.
    NodeName
);
name_id!(
    /// A key's name, unique at its hub; the owner of what the key submits.
    KeyName
);
