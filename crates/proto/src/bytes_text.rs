//! How fields of bytes travel: bytes in MessagePack, base64 text in JSON.
//!
//! Named in `#[serde(with = …)]` of a field: this module for `Vec<u8>`, [`option`] and [`list`] for what holds
//! `ByteBuf`s. Always true: standard alphabet with padding; other text is refused, not guessed.
//! Deliberately not here: hashes and keys, which are hexadecimal text in JSON (see [`crate::id`]).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_bytes::{ByteBuf, Bytes};

/// Writes `bytes`.
pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    Written(bytes).serialize(serializer)
}

/// Reads bytes.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    Ok(Read::deserialize(deserializer)?.0)
}

struct Written<'a>(&'a [u8]);

impl Serialize for Written<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.serialize_str(&STANDARD.encode(self.0))
        } else {
            Bytes::new(self.0).serialize(serializer)
        }
    }
}

struct Read(Vec<u8>);

impl<'de> Deserialize<'de> for Read {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Read, D::Error> {
        use serde::de::Error;
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            STANDARD.decode(text).map(Read).map_err(D::Error::custom)
        } else {
            ByteBuf::deserialize(deserializer).map(|bytes| Read(bytes.into_vec()))
        }
    }
}

/// For `Option<ByteBuf>`: missing is nil or `null`.
pub(crate) mod option {
    use super::{ByteBuf, Deserialize, Deserializer, Read, Serialize, Serializer, Written};

    pub(crate) fn serialize<S: Serializer>(bytes: &Option<ByteBuf>, serializer: S) -> Result<S::Ok, S::Error> {
        bytes.as_ref().map(|bytes| Written(bytes)).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ByteBuf>, D::Error> {
        Ok(Option::<Read>::deserialize(deserializer)?.map(|read| ByteBuf::from(read.0)))
    }
}

/// For `Vec<ByteBuf>`: a list.
pub(crate) mod list {
    use super::{ByteBuf, Deserialize, Deserializer, Read, Serializer, Written};

    pub(crate) fn serialize<S: Serializer>(list: &[ByteBuf], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(list.iter().map(|bytes| Written(bytes)))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ByteBuf>, D::Error> {
        let list = Vec::<Read>::deserialize(deserializer)?;
        Ok(list.into_iter().map(|read| ByteBuf::from(read.0)).collect())
    }
}
