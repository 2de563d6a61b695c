//! Refusals: every "no" that a peer can hear, as a code with parameters.
//!
//! `core` and the shells make them, `view` renders the sentence in the reader's language, and one function each maps
//! them to exit codes and HTTP. Always true: a code's name and the names of its parameters are never reused.
//! Deliberately not here: errors (something broke) and sentences.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

macro_rules! refusal_codes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal;)+) => {
        /// Why something was refused. On the wire its text.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
        pub enum RefusalCode {
            $($(#[doc = $doc])+ #[serde(rename = $name)] $variant,)+
            /// A code of a newer version.
            #[default]
            #[serde(other, rename = "unknown")]
            Unknown,
        }

        impl RefusalCode {
            /// All codes of this version.
            pub const ALL: &'static [RefusalCode] = &[$(RefusalCode::$variant),+];

            /// Its text on the wire.
            pub fn name(self) -> &'static str {
                match self {
                    $(RefusalCode::$variant => $name,)+
                    RefusalCode::Unknown => "unknown",
                }
            }
        }
    };
}

refusal_codes! {
    /// The function's number is unknown here. `function`
    UnknownFunction = "unknown_function";
    /// The value is not what its function says. `function`
    BadValue = "bad_value";
    /// No common protocol version. `min`, `max`
    Version = "version";
    /// The key is unknown or revoked.
    WrongKey = "wrong_key";
    /// The role of the key does not allow it. `role`, `needs`
    NotAllowed = "not_allowed";
    /// The door is for others (a client at the workers' door …). `door`
    WrongDoor = "wrong_door";
    /// The join line is unknown to this hub.
    JoinUnknown = "join_unknown";
    /// The join line has expired.
    JoinExpired = "join_expired";
    /// The join line was used as often as it allows.
    JoinUsed = "join_used";
    /// The worker's certificate was revoked. `node`
    NodeRevoked = "node_revoked";
    /// Another live worker has this name. `node`
    NameTaken = "name_taken";
    /// The hub has as many of these as it allows. `what`, `limit`
    TooMany = "too_many";
    /// Something is larger than allowed. `what`, `limit`
    TooLarge = "too_large";
    /// No such job. `job`
    NoSuchJob = "no_such_job";
    /// No such node. `node`, `near`
    NoSuchNode = "no_such_node";
    /// No such key. `key`
    NoSuchKey = "no_such_key";
    /// A key of this name exists. `key`
    KeyExists = "key_exists";
    /// The file's language is unknown. `file`, `known`
    UnknownLanguage = "unknown_language";
    /// No such language in the table. `lang`, `known`
    NoSuchLanguage = "no_such_language";
    /// A folder without a program that can be told. `candidates`
    NoEntry = "no_entry";
    /// No node has the toolchain. `lang`, `tool`, `nodes`
    NoToolchain = "no_toolchain";
    /// The named node has no such toolchain. `lang`, `tool`, `node`
    NoToolchainOnNode = "no_toolchain_on_node";
    /// More tasks than an array, or a key, may have. `tasks`, `limit`
    TooManyTasks = "too_many_tasks";
    /// The key has as many waiting and running tasks as it may. `key`, `tasks` (those that were to come), `used`, `limit`
    TaskQuota = "task_quota";
    /// The key's jobs keep as many bytes of files on the hub as they may. `key`, `bytes` (those that were to come), `used`,
    /// `limit`
    ByteQuota = "byte_quota";
    /// The key asks more often than it may in a second: again after a while. `limit`, `retry_after_ms`
    RateLimited = "rate_limited";
    /// No node that is connected could ever run it: each that is given was asked for, beside it what the best node has.
    /// `slots`, `slots_best`, `memory`, `memory_best` (bytes), `label`
    NeedsTooMuch = "needs_too_much";
    /// The job is malformed. `field`, `why`
    BadJob = "bad_job";
    /// The hub's admin does not allow posting there. `url`
    NotifyNotAllowed = "notify_not_allowed";
    /// A file of the job was not uploaded. `hash`
    BlobMissing = "blob_missing";
    /// The uploaded bytes have another hash. `hash`
    BlobMismatch = "blob_mismatch";
    /// The job has ended already. `job`, `state`
    JobEnded = "job_ended";
    /// The task does not read live input. `job`
    NoStdin = "no_stdin";
    /// The hub is shutting down.
    ShuttingDown = "shutting_down";
    /// The store is full.
    StoreFull = "store_full";
    /// The store failed.
    StoreError = "store_error";
    /// An address cannot be opened. `address`, `why`
    CannotListen = "cannot_listen";
    /// The last key that may administer cannot be revoked.
    LastAdmin = "last_admin";
    /// The hub starts no workers of its own.
    NoLocalWorkers = "no_local_workers";
}

/// A "no".
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Refusal {
    /// Which.
    pub code: RefusalCode,
    /// What it is about, by the names that [`RefusalCode`] documents.
    pub params: BTreeMap<String, String>,
}

impl Refusal {
    /// A refusal without parameters.
    pub fn new(code: RefusalCode) -> Refusal {
        Refusal { code, params: BTreeMap::new() }
    }

    /// The same refusal with a parameter.
    pub fn with(mut self, name: &str, value: impl ToString) -> Refusal {
        self.params.insert(name.to_owned(), value.to_string());
        self
    }

    /// A parameter, or nothing.
    pub fn param(&self, name: &str) -> &str {
        self.params.get(name).map_or("", String::as_str)
    }
}

impl From<RefusalCode> for Refusal {
    fn from(code: RefusalCode) -> Refusal {
        Refusal::new(code)
    }
}
