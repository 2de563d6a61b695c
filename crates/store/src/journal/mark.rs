//! The mark: how far the journal was said to be durable, beside the journal.
//!
//! The writer moves it after each commit and before anybody hears of it; opening compares. It is the one thing that can
//! tell a journal whose newest part was cut off, removed or damaged (a log that a database ends with is only read as far
//! as it is whole) from one that never was longer. Always true: it is never ahead of what was durable when it was
//! written, so a journal that ends before it has lost something.
//! Deliberately not here: a promise. The mark is not synced: after a power loss it may be behind, which does no harm.

use crate::error::OpenError;
use crate::folder;
use crate::port::Seq;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const FILE: &str = "journal.mark";

/// A sequence and the beginning of its hash: a torn write is no mark.
const BYTES: usize = 16;

#[derive(Debug)]
pub(super) struct Mark(File);

impl Mark {
    /// Opens the mark; says where it stands, 0 when there was none.
    pub(super) fn open(folder: &Path) -> Result<(Mark, Seq), OpenError> {
        let path = folder.join(FILE);
        let mark = Mark(folder::make_file(&path)?);
        let mut bytes = [0; BYTES];
        let found = match mark.0.read_exact_at(&mut bytes, 0) {
            Ok(()) => decode(bytes).unwrap_or_default(),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                // Its room on the disk is taken now: moving it later works on a full disk too.
                mark.0.write_all_at(&encode(Seq(0)), 0).map_err(|source| folder::file_error(&path, source))?;
                Seq(0)
            }
            Err(source) => return Err(folder::file_error(&path, source)),
        };
        Ok((mark, found))
    }

    /// Moves it. One that could not be moved is behind, which does no harm.
    pub(super) fn set(&self, seq: Seq) {
        self.0.write_all_at(&encode(seq), 0).ok();
    }
}

/// Where the mark in `folder` stands, which is only read; 0 when there is none.
pub(crate) fn found(folder: &Path) -> Result<Seq, OpenError> {
    let path = folder.join(FILE);
    match std::fs::read(&path) {
        Ok(bytes) => Ok(bytes.try_into().ok().and_then(decode).unwrap_or_default()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Seq(0)),
        Err(source) => Err(folder::file_error(&path, source)),
    }
}

/// Makes the mark of a copy.
pub(crate) fn write(folder: &Path, seq: Seq) -> Result<(), OpenError> {
    let path = folder.join(FILE);
    folder::make_file(&path)?.write_all_at(&encode(seq), 0).map_err(|source| folder::file_error(&path, source))
}

fn encode(seq: Seq) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    let number = seq.0.to_le_bytes();
    bytes[..8].copy_from_slice(&number);
    bytes[8..].copy_from_slice(&blake3::hash(&number).as_bytes()[..8]);
    bytes
}

fn decode(bytes: [u8; BYTES]) -> Option<Seq> {
    let seq = Seq(u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")));
    (encode(seq) == bytes).then_some(seq)
}
