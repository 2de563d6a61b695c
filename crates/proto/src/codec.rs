//! One way to turn a message into bytes and back: MessagePack with field names.
//!
//! Always true: names, never positions (an old peer skips what it does not know, a new one fills what is missing), and
//! a value that is too deep is refused before it is built.
//! Deliberately not here: frames (see [`crate::frame`]).

use crate::limits::VALUE_DEPTH_MAX;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Bytes that are not the message that was expected.
#[derive(Debug, thiserror::Error)]
#[error("the value is not what its function says")]
pub struct DecodeError(#[from] rmp_serde::decode::Error);

/// `message` as MessagePack with field names.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    // Our messages are plain structs: writing them into memory cannot fail.
    rmp_serde::to_vec_named(message).expect("a message of ours can be written into memory")
}

/// The message in `bytes`.
///
/// # Errors
/// [`DecodeError`] when the bytes are cut, followed by others, of another shape, or nested deeper than
/// [`VALUE_DEPTH_MAX`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let mut decoder = rmp_serde::Deserializer::from_read_ref(bytes);
    decoder.set_max_depth(VALUE_DEPTH_MAX);
    let message = T::deserialize(&mut decoder)?;
    // The decoder does not say how much is left; only an exhausted one fails before it has read a marker.
    match bool::deserialize(&mut decoder) {
        Err(rmp_serde::decode::Error::InvalidMarkerRead(_)) => Ok(message),
        _ => Err(DecodeError(serde::de::Error::custom("bytes follow the value"))),
    }
}
