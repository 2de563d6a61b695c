//! Copies of what is in files beside the databases: segments of outputs, and blobs.
//!
//! `backup` calls it, in both directions, on a store that may be in use. Always true: the source is only read; what is
//! copied was checked, byte for byte, in the copy. Files that never change are linked where the disk allows it, so that a
//! backup beside its store costs no space; the newest segment, which may still grow, is always copied.
//! Deliberately not here: the databases (`backup`), making the copy last.

use crate::blob_files::{self, BLOBS};
use crate::error::OpenError;
use crate::folder::file_error;
use crate::packed::attempt::Extent;
use crate::packed::index;
use crate::packed::segments::{ExtentError, SEGMENTS, file_name, read_extent};
use crate::sqlite;
use essaim_proto::BlobHash;
use rusqlite::Connection;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Copies from store to store the segments that a copied index names, and checks every byte that it names. Says false
/// when one was dropped since the index was copied: then the index is to be copied anew, and what is copied already
/// counts.
///
/// # Errors
/// When the copy cannot be made, or is not what was written.
pub(crate) fn segments(copied_index: &Connection, from: &Path, to: &Path) -> Result<bool, OpenError> {
    let (from, to) = (from.join(SEGMENTS), to.join(SEGMENTS));
    make_folder(&to)?;
    let index_file = || to.with_file_name(index::SCHEMA.file);
    let named = index::extents(copied_index).map_err(|error| sqlite::open_error(&index_file(), error))?;
    let newest = named.last().map(|extent| extent.segment);
    for extents in named.chunk_by(|a, b| a.segment == b.segment) {
        let Some(segment) = extents.first().map(|first| first.segment) else { continue };
        let (source, copy) = (from.join(file_name(segment)), to.join(file_name(segment)));
        if !copy.exists() && !copy_file(&source, &copy, Some(segment) != newest)? {
            return Ok(false);
        }
        check_segment(&copy, extents)?;
    }
    Ok(true)
}

/// Copies the blobs from store to store and checks each. One that is removed meanwhile is nobody's any more.
///
/// # Errors
/// When the copy cannot be made, or is not what was written.
pub(crate) fn blobs(from: &Path, to: &Path) -> Result<(), OpenError> {
    let (from, to) = (from.join(BLOBS), to.join(BLOBS));
    make_folder(&to)?;
    let mut all: Vec<(BlobHash, PathBuf)> = Vec::new();
    let listed = blob_files::each(&from, |hash, path, _| all.push((hash, path.to_owned())));
    match listed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(file_error(&from, error)),
        _ => {}
    }
    for (hash, path) in all {
        let Ok(name) = path.strip_prefix(&from) else { continue };
        let copy = to.join(name);
        make_folder(copy.parent().unwrap_or(&to))?;
        if copy_file(&path, &copy, true)? {
            check_blob(&copy, hash)?;
        }
    }
    Ok(())
}

fn check_segment(path: &Path, extents: &[Extent]) -> Result<(), OpenError> {
    let file = File::open(path).map_err(|source| file_error(path, source))?;
    let mut bytes = Vec::new();
    for extent in extents {
        bytes.clear();
        read_extent(&file, extent, &mut bytes).map_err(|error| match error {
            ExtentError::Io(source) => file_error(path, source),
            ExtentError::Corrupt => {
                let what = format!("the {} bytes at {} are not what was written", extent.length, extent.position);
                OpenError::Corrupt { path: path.to_owned(), source: what.into() }
            }
        })?;
    }
    Ok(())
}

fn check_blob(path: &Path, hash: BlobHash) -> Result<(), OpenError> {
    let mut hasher = blake3::Hasher::new();
    let read = File::open(path).and_then(|file| hasher.update_reader(file).map(drop));
    read.map_err(|source| file_error(path, source))?;
    let found = BlobHash(*hasher.finalize().as_bytes());
    if found != hash {
        let what = format!("its bytes hash to {found}, not to {hash}");
        return Err(OpenError::Corrupt { path: path.to_owned(), source: what.into() });
    }
    Ok(())
}

/// Says false when there is no such file any more.
fn copy_file(from: &Path, to: &Path, may_link: bool) -> Result<bool, OpenError> {
    if may_link && std::fs::hard_link(from, to).is_ok() {
        return Ok(true);
    }
    let mut source = match File::open(from) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(file_error(from, error)),
    };
    let copy = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
    copy.and_then(|mut copy| io::copy(&mut source, &mut copy)).map_err(|source| file_error(to, source))?;
    Ok(true)
}

fn make_folder(path: &Path) -> Result<(), OpenError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| file_error(path, source))
}

#[cfg(test)]
#[path = "copies_tests.rs"]
mod tests;
