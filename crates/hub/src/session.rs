//! What client and worker sessions have in common: the hello, answers and refusals as frames.
//!
//! Called by [`crate::client`] and [`crate::worker`]. Always true: an answer has its request's id and the answer flag.
//! Deliberately not here: what the frames ask for.

use crate::hub::Shared;
use essaim_core::hub::SessionId;
use essaim_core::limits::{HEARTBEAT_MS, LEASE_MS, SILENCE_MS};
use essaim_net::hello::refuse;
use essaim_net::limits::CLOSE_TIME;
use essaim_net::{Connection, FrameSender};
use essaim_proto::frame::FLAG_ANSWER;
use essaim_proto::hello::{PROTOCOL_MAX, Role, Welcome};
use essaim_proto::limits::VALUE_BYTES_MAX;
use essaim_proto::{Frame, Function, Refusal, RefusalCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::net::SocketAddr;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::debug;

/// Says why and closes: the answer to a hello.
pub(crate) fn refuse_and_close(connection: &Connection, refusal: &Refusal) {
    refuse_request(connection, 0, refusal);
}

/// Says why a request is refused, and closes.
pub(crate) fn refuse_request(connection: &Connection, request: u64, refusal: &Refusal) {
    debug!(code = refusal.code.name(), "connection refused");
    // A connection that is closed already has nobody to hear it.
    let _ = refuse(&connection.sender, request, refusal);
    connection.sender.close("refused");
}

/// After the last word: waits until it has left, when the hub's process may end next. `ends` is what a shutdown waits
/// for, so it is dropped here and not before.
pub(crate) async fn last_word(sender: &FrameSender, ends: watch::Receiver<bool>) {
    if *ends.borrow() {
        sender.closed().await;
    }
}

/// Watches over a peer that goes on sending on a connection which takes nothing from us any more (it did not read, so it
/// was closed): its last words are heard, then it is left.
#[derive(Debug, Default)]
pub(crate) struct LastWords {
    until: Option<Instant>,
}

impl LastWords {
    /// To be asked after each frame.
    pub(crate) fn are_over(&mut self, sender: &FrameSender) -> bool {
        sender.is_closed() && *self.until.get_or_insert_with(|| Instant::now() + CLOSE_TIME) <= Instant::now()
    }
}

/// Is this something to be answered? What has no id cannot be (a refusal with id 0 speaks about the whole connection), an
/// answer is not.
fn is_request(frame: &Frame) -> bool {
    frame.id != 0 && !frame.has(FLAG_ANSWER)
}

/// The hub's first word.
pub(crate) fn welcome(shared: &Shared, you: String, role: Role, peer: SocketAddr) -> Welcome {
    Welcome {
        proto: PROTOCOL_MAX,
        software: concat!("essaim ", env!("CARGO_PKG_VERSION")).into(),
        hub: shared.name.clone(),
        features: Vec::new(),
        heartbeat_ms: HEARTBEAT_MS as u32,
        silence_ms: SILENCE_MS as u32,
        lease_ms: LEASE_MS as u32,
        you,
        role,
        seen_from: peer.to_string(),
    }
}

/// Waits until the hub shuts down (or is gone).
pub(crate) async fn told_to_end(shutdown: &mut watch::Receiver<bool>) {
    // The value is a guard of the channel, which must not live across the caller's waits.
    let _ = shutdown.wait_for(|ends| *ends).await.is_ok();
}

/// The message in a frame.
pub(crate) fn read<T: DeserializeOwned>(frame: &Frame) -> Result<T, Refusal> {
    frame.message().map_err(|_| bad_value(frame))
}

/// The refusal of a frame that is not what its function says.
pub(crate) fn bad_value(frame: &Frame) -> Refusal {
    Refusal::new(RefusalCode::BadValue).with("function", frame.function.name().unwrap_or("?"))
}

/// The answer to a request.
pub(crate) fn answered<T: Serialize>(function: Function, request: u64, message: &T) -> Frame {
    let frame = Frame::of(function, request, message).with_flag(FLAG_ANSWER);
    if frame.value.len() <= VALUE_BYTES_MAX {
        return frame;
    }
    // Pages are cut so that this does not happen; if it does, the one who asked hears it and nobody else is hurt.
    refused(request, &Refusal::new(RefusalCode::TooLarge).with("what", "the answer").with("limit", VALUE_BYTES_MAX))
}

/// Refuses a frame that could not be dealt with: a request hears why, anything else is skipped.
pub(crate) fn refuse_frame(sender: &FrameSender, session: SessionId, frame: &Frame, refusal: &Refusal) {
    if is_request(frame) {
        // A queue that is full closes the connection, which the next read reports.
        let _ = sender.control(refused(frame.id, refusal));
    } else {
        debug!(session = session.0, code = refusal.code.name(), "a frame was skipped");
    }
}

/// The refusal of a request.
pub(crate) fn refused(request: u64, refusal: &Refusal) -> Frame {
    Frame::of(Function::REFUSED, request, refusal).with_flag(FLAG_ANSWER)
}

/// The refusal of a function that this version does not know.
pub(crate) fn unknown_function(function: Function) -> Refusal {
    Refusal::new(RefusalCode::UnknownFunction).with("function", function.0)
}
