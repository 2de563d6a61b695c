//! Frames: a fixed 16-byte header, then the value.
//!
//! ```text
//!  0        4          6      7       8                16
//!  | length | function | type | flags | id             | value (length bytes) …
//!    u32      u16        u8     u8      u64              all little endian
//! ```
//!
//! `net` feeds a [`Decoder`] with whatever the socket gave and takes frames out. Always true: a length is checked before
//! anything is reserved for it, and a decoder that failed once stays failed (the stream has lost its step).
//! Deliberately not here: what a function means (see [`crate::function`]), and sockets.

use crate::function::Function;
use crate::limits::{HEADER_BYTES, VALUE_BYTES_MAX};

/// What the value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ValueType {
    /// No bytes at all.
    Empty = 0,
    /// One MessagePack value with field names.
    Value = 1,
    /// Raw bytes, a chunk of a transfer.
    Bytes = 2,
}

impl ValueType {
    fn from_u8(n: u8) -> Option<ValueType> {
        match n {
            0 => Some(ValueType::Empty),
            1 => Some(ValueType::Value),
            2 => Some(ValueType::Bytes),
            _ => None,
        }
    }
}

/// Flag: this frame answers the request with the same id.
pub const FLAG_ANSWER: u8 = 0b0000_0001;
/// Flag: this is the last frame of its transfer or stream.
pub const FLAG_LAST: u8 = 0b0000_0010;

/// One frame, header and value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What to do. Kept as a number: an unknown function is answered, never fatal.
    pub function: Function,
    /// What the value is.
    pub value_type: ValueType,
    /// [`FLAG_ANSWER`], [`FLAG_LAST`]; other bits are carried untouched and ignored.
    pub flags: u8,
    /// Request, subscription or transfer that this frame belongs to; 0 when it stands alone. Chosen by the side that
    /// opened it.
    pub id: u64,
    /// The value's bytes, at most [`VALUE_BYTES_MAX`].
    pub value: Vec<u8>,
}

impl Frame {
    /// A frame without a value.
    pub fn empty(function: Function, id: u64) -> Frame {
        Frame { function, value_type: ValueType::Empty, flags: 0, id, value: Vec::new() }
    }

    /// A frame that carries `message` as MessagePack with field names.
    pub fn of<T: serde::Serialize>(function: Function, id: u64, message: &T) -> Frame {
        Frame { function, value_type: ValueType::Value, flags: 0, id, value: crate::codec::encode(message) }
    }

    /// A chunk of raw bytes.
    pub fn bytes(function: Function, id: u64, value: Vec<u8>) -> Frame {
        Frame { function, value_type: ValueType::Bytes, flags: 0, id, value }
    }

    /// The same frame with `flag` set.
    pub fn with_flag(mut self, flag: u8) -> Frame {
        self.flags |= flag;
        self
    }

    /// Is `flag` set?
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The value as a message.
    pub fn message<T: serde::de::DeserializeOwned>(&self) -> Result<T, crate::codec::DecodeError> {
        crate::codec::decode(&self.value)
    }

    /// Appends header and value to `out`.
    ///
    /// # Panics
    /// If the value is larger than [`VALUE_BYTES_MAX`]: the sender checks sizes where the value is made.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        assert!(self.value.len() <= VALUE_BYTES_MAX, "a value of {} bytes exceeds one frame", self.value.len());
        out.reserve(HEADER_BYTES + self.value.len());
        out.extend_from_slice(&(self.value.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.function.0.to_le_bytes());
        out.push(self.value_type as u8);
        out.push(self.flags);
        out.extend_from_slice(&self.id.to_le_bytes());
        out.extend_from_slice(&self.value);
    }

    /// Bytes on the wire.
    pub fn wire_bytes(&self) -> usize {
        HEADER_BYTES + self.value.len()
    }
}

/// Why bytes are not a frame. The connection must be closed: nothing after this point can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The header announces more than [`VALUE_BYTES_MAX`] (or the lower limit given to the decoder).
    #[error("a frame of {announced} bytes was announced, the limit is {limit}")]
    TooLong {
        /// What the header says.
        announced: u32,
        /// What is allowed here.
        limit: u32,
    },
    /// The type byte is none that we know.
    #[error("value type {0} is unknown")]
    UnknownType(u8),
    /// An empty value with a length.
    #[error("an empty value announces {0} bytes")]
    EmptyWithBytes(u32),
}

/// Takes bytes in any cut and gives frames.
#[derive(Debug)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
    value_bytes_max: u32,
    failed: Option<FrameError>,
}

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder::with_limit(VALUE_BYTES_MAX)
    }
}

impl Decoder {
    /// A decoder that refuses values over `value_bytes_max` bytes: small before a peer has shown who it is.
    pub fn with_limit(value_bytes_max: usize) -> Decoder {
        let limit = value_bytes_max.min(VALUE_BYTES_MAX) as u32;
        Decoder { buffer: Vec::new(), start: 0, value_bytes_max: limit, failed: None }
    }

    /// Changes the limit for the frames to come (after the peer has shown who it is).
    pub fn set_limit(&mut self, value_bytes_max: usize) {
        self.value_bytes_max = value_bytes_max.min(VALUE_BYTES_MAX) as u32;
    }

    /// Adds bytes from the peer. The caller takes all frames out before it feeds more, so the buffer never holds more
    /// than one incomplete frame and one read.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.failed.is_some() {
            return;
        }
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, or `None` until more bytes come.
    ///
    /// # Errors
    /// [`FrameError`], and the same one for ever after.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let frame = self.take();
        if let Err(error) = frame {
            self.failed = Some(error);
            self.buffer = Vec::new();
            self.start = 0;
        }
        frame
    }

    /// Bytes that wait for the rest of their frame.
    pub fn pending_bytes(&self) -> usize {
        self.buffer.len() - self.start
    }

    fn take(&mut self) -> Result<Option<Frame>, FrameError> {
        let bytes = &self.buffer[self.start..];
        let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        // Refused from the header alone: a liar's length never becomes a reservation.
        if length > self.value_bytes_max {
            return Err(FrameError::TooLong { announced: length, limit: self.value_bytes_max });
        }
        let value_type = ValueType::from_u8(header[6]).ok_or(FrameError::UnknownType(header[6]))?;
        if value_type == ValueType::Empty && length > 0 {
            return Err(FrameError::EmptyWithBytes(length));
        }
        let Some(value) = bytes.get(HEADER_BYTES..HEADER_BYTES + length as usize) else { return Ok(None) };
        let frame = Frame {
            function: Function(u16::from_le_bytes([header[4], header[5]])),
            value_type,
            flags: header[7],
            id: u64::from_le_bytes([
                header[8], header[9], header[10], header[11], header[12], header[13], header[14], header[15],
            ]),
            value: value.to_vec(),
        };
        self.start += frame.wire_bytes();
        Ok(Some(frame))
    }
}
