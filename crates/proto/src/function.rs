//! The functions: what a frame asks for.
//!
//! A number, not a Rust enum, decides what a frame is: an unknown one is answered with
//! [`crate::RefusalCode::UnknownFunction`] and the connection lives. A number is never given a second meaning.
//! `docs/protocol.md` lists the same table; a test compares them.
//! Deliberately not here: the values (see `hello`, `api`, `link`).

use std::fmt;

/// The number in a frame's header.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Function(pub u16);

macro_rules! functions {
    ($($(#[doc = $doc:literal])+ $constant:ident = $number:literal, $name:literal;)+) => {
        impl Function {
            $($(#[doc = $doc])+ pub const $constant: Function = Function($number);)+

            /// All functions of this version, for the page that documents them.
            pub const ALL: &'static [Function] = &[$(Function::$constant),+];

            /// Its name in the documentation, or `None` for a number of another version.
            pub fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some($name),)+
                    _ => None,
                }
            }
        }
    };
}

functions! {
    /// Answer to a request: no, with a [`crate::Refusal`].
    REFUSED = 0, "refused";
    /// First frame of the side that dialled: [`crate::hello::Hello`]. Frozen for ever.
    HELLO = 1, "hello";
    /// First frame of the hub: [`crate::hello::Welcome`].
    WELCOME = 2, "welcome";
    /// Sign of life that wants a [`Function::PONG`] with the same id.
    PING = 3, "ping";
    /// Answer to [`Function::PING`].
    PONG = 4, "pong";
    /// This side ends the connection: [`crate::hello::Goodbye`].
    GOODBYE = 5, "goodbye";
    /// A joiner asks for its certificate: [`crate::hello::Join`], answered with [`crate::hello::Joined`].
    JOIN = 6, "join";

    /// [`crate::api::Submit`], answered with [`crate::api::Submitted`].
    SUBMIT = 16, "submit";
    /// [`crate::api::Watch`]: events of a job follow under the same id.
    WATCH = 17, "watch";
    /// Event of a watched job: [`crate::api::JobEvent`].
    EVENT = 18, "event";
    /// [`crate::api::OutputChunk`] of a watched job.
    OUTPUT = 19, "output";
    /// [`crate::api::OutputAck`]: the watcher has dealt with so many bytes of this watch.
    OUTPUT_ACK = 20, "output_ack";
    /// [`crate::api::StdinChunk`] for a running task.
    STDIN = 21, "stdin";
    /// [`crate::api::StdinAck`]: the receiver has the bytes up to an offset.
    STDIN_ACK = 22, "stdin_ack";
    /// [`crate::api::JobCancel`], answered with [`crate::api::Done`].
    JOB_CANCEL = 23, "job_cancel";
    /// [`crate::api::JobList`], answered with [`crate::api::JobPage`].
    JOB_LIST = 24, "job_list";
    /// [`crate::api::JobShow`], answered with [`crate::api::JobView`].
    JOB_SHOW = 25, "job_show";
    /// Ends the watch with this id.
    UNWATCH = 26, "unwatch";
    /// [`crate::api::StatesWatch`]: changes of nodes and jobs follow under the same id until [`Function::UNWATCH`].
    STATES = 27, "states";
    /// One [`crate::api::StateChange`].
    STATE = 28, "state";
    /// [`crate::api::TaskList`], answered with [`crate::api::TaskPage`].
    TASK_LIST = 29, "task_list";
    /// [`crate::api::JobRerun`], answered with [`crate::api::Submitted`].
    JOB_RERUN = 30, "job_rerun";

    /// [`crate::api::BlobsMissing`], answered with the hashes that the hub lacks.
    BLOBS_MISSING = 32, "blobs_missing";
    /// [`crate::api::BlobPut`]: bytes follow as [`Function::BLOB_BYTES`] with the same id, answered at the end.
    BLOB_PUT = 33, "blob_put";
    /// [`crate::api::BlobGet`]: bytes come as [`Function::BLOB_BYTES`] with the same id.
    BLOB_GET = 34, "blob_get";
    /// Raw bytes of a blob; the last frame has the flag.
    BLOB_BYTES = 35, "blob_bytes";
    /// [`crate::api::Credit`]: so many more bytes of this transfer may be sent.
    CREDIT = 36, "credit";

    /// Answered with [`crate::api::NodePage`].
    NODE_LIST = 48, "node_list";
    /// [`crate::api::KeyCreate`], answered with [`crate::api::KeyCreated`].
    KEY_CREATE = 64, "key_create";
    /// Answered with [`crate::api::KeyPage`].
    KEY_LIST = 65, "key_list";
    /// [`crate::api::KeyRevoke`], answered with [`crate::api::Done`].
    KEY_REVOKE = 66, "key_revoke";
    /// [`crate::api::JoinLineMake`], answered with [`crate::api::JoinLineMade`].
    JOIN_LINE = 67, "join_line";
    /// [`crate::api::KeySet`], answered with [`crate::api::Done`].
    KEY_SET = 68, "key_set";
    /// [`crate::api::LocalSet`], answered with [`crate::api::LocalWorkers`].
    LOCAL_SET = 69, "local_set";

    /// Worker: [`crate::link::Register`], answered with [`crate::link::Registered`].
    REGISTER = 80, "register";
    /// Hub: [`crate::link::Start`] an attempt.
    START = 81, "start";
    /// Hub: [`crate::link::Stop`] an attempt.
    STOP = 82, "stop";
    /// Worker: [`crate::link::Progress`] of an attempt.
    PROGRESS = 83, "progress";
    /// Worker: [`crate::link::Ended`]; kept until [`Function::END_ACK`].
    ENDED = 84, "ended";
    /// Hub: [`crate::link::EndAck`], the end is recorded.
    END_ACK = 85, "end_ack";
    /// Worker: [`crate::link::Report`] of load, held attempts and toolchains.
    REPORT = 86, "report";
    /// Worker: [`crate::link::AttemptOutput`].
    ATTEMPT_OUTPUT = 87, "attempt_output";
    /// Hub: [`crate::link::AttemptOutputAck`].
    ATTEMPT_OUTPUT_ACK = 88, "attempt_output_ack";
    /// Hub: [`crate::link::AttemptStdin`].
    ATTEMPT_STDIN = 89, "attempt_stdin";
    /// Worker: [`crate::link::AttemptStdinAck`].
    ATTEMPT_STDIN_ACK = 90, "attempt_stdin_ack";
    /// Worker: [`crate::link::EndedMany`], ends of an array's tasks; kept until [`Function::END_ACK_MANY`].
    ENDED_MANY = 91, "ended_many";
    /// Hub: [`crate::link::EndAckMany`], those ends are recorded.
    END_ACK_MANY = 92, "end_ack_many";
    /// Hub: [`crate::link::TakeBack`] tasks that have not started.
    TAKE_BACK = 93, "take_back";
    /// Worker: [`crate::link::GivenBack`], those had not started and never will here.
    GIVEN_BACK = 94, "given_back";
    /// Hub: [`crate::link::Leave`] when nothing is left to finish, or stay after all.
    LEAVE = 95, "leave";
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "function {}", self.0),
        }
    }
}
