//! The files of outputs on disk: segments that are written once, at their end, and never changed after.
//!
//! `writer` writes, readers read from any thread, `drops` unlinks. A segment is the bytes of many streams one behind the
//! other, with nothing between; `index` knows which are whose. Always true: a segment that an earlier process made is
//! never written to again, so it may be linked into a backup; bytes that no row names are garbage; a segment in which no
//! byte is named is unlinked.
//! Deliberately not here: whose bytes they are.

use super::attempt::Extent;
use crate::error::OpenError;
use crate::folder::{self, file_error};
use crate::limits::{SEGMENT_BYTES_MAX, SEGMENTS_OPEN_MAX};
use std::collections::{BTreeMap, VecDeque};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The folder of segments in the store's folder.
pub(crate) const SEGMENTS: &str = "outputs";

/// Name of a segment's file.
pub(crate) fn file_name(segment: u32) -> String {
    format!("{segment:08}.seg")
}

fn number(name: &str) -> Option<u32> {
    name.strip_suffix(".seg")?.parse().ok()
}

/// Checksum of an extent's bytes: the beginning of their BLAKE3, against damage and not against people.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *blake3::hash(bytes).as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// Why bytes could not be read back.
#[derive(Debug)]
pub(crate) enum ExtentError {
    /// They are not those that were written.
    Corrupt,
    /// The system failed.
    Io(io::Error),
}

/// All segments.
#[derive(Debug)]
pub(super) struct Segments {
    folder: PathBuf,
    size_max: u64,
    /// Locked by the one writer alone.
    end: Mutex<End>,
    known: Mutex<BTreeMap<u32, Segment>>,
    open: Mutex<VecDeque<(u32, Arc<File>)>>,
    #[cfg(test)]
    pub(super) broken: std::sync::atomic::AtomicU8,
}

/// Where the next bytes go.
#[derive(Debug)]
struct End {
    current: Option<(u32, Arc<File>)>,
    position: u64,
    next: u32,
}

#[derive(Debug, Default, Clone, Copy)]
struct Segment {
    /// Bytes that rows name, or will.
    named: u64,
    /// Bytes on disk.
    size: u64,
    /// Are bytes still added to it?
    is_written: bool,
}

/// Where a run of bytes was written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) segment: u32,
    pub(super) position: u32,
}

impl Segments {
    /// Opens the segments of the store in `folder`, of which rows name so many bytes each, and removes the others.
    pub(super) fn open(folder: &Path, named: &BTreeMap<u32, u64>) -> Result<Segments, OpenError> {
        let path = folder.join(SEGMENTS);
        let known = list(&path, named).map_err(|source| file_error(&path, source))?;
        folder::sync(folder).map_err(|source| file_error(folder, source))?;
        let next = known.keys().last().map_or(1, |last| last + 1);
        Ok(Segments {
            folder: path,
            size_max: SEGMENT_BYTES_MAX,
            end: Mutex::new(End { current: None, position: 0, next }),
            known: Mutex::new(known),
            open: Mutex::default(),
            #[cfg(test)]
            broken: std::sync::atomic::AtomicU8::new(0),
        })
    }

    #[cfg(test)]
    pub(super) fn set_size_max(&mut self, bytes: u64) {
        self.size_max = bytes;
    }

    /// Writes runs of bytes, which stand in `bytes` one behind the other, and makes them durable. They count as named
    /// from now on: who makes no row of one unnames it. After an error none of them is anywhere that counts.
    pub(super) fn write(&self, bytes: &[u8], lengths: &[usize]) -> io::Result<Vec<Place>> {
        let mut end = lock(&self.end);
        let mut places = Vec::with_capacity(lengths.len());
        let Err(error) = self.write_at(&mut end, bytes, lengths, &mut places) else { return Ok(places) };
        // What the system has of it, nobody knows. The next try begins elsewhere.
        self.leave(&mut end);
        drop(end);
        for (place, length) in places.iter().zip(lengths) {
            self.unname(place.segment, *length as u64);
        }
        self.sweep(places.iter().map(|place| place.segment));
        Err(error)
    }

    fn write_at(&self, end: &mut End, bytes: &[u8], lengths: &[usize], places: &mut Vec<Place>) -> io::Result<()> {
        // Of `bytes`, what is not written yet and has its places: they are behind each other in the current segment.
        let (mut from, mut to) = (0, 0);
        for length in lengths {
            let after = end.position + (to - from + length) as u64;
            if end.current.is_none() || after > self.size_max {
                self.flush(end, &bytes[from..to])?;
                self.begin(end)?;
                from = to;
            }
            let (segment, _) = end.current.as_ref().ok_or(io::ErrorKind::NotFound)?;
            let position = u32::try_from(end.position + (to - from) as u64).map_err(|_| io::ErrorKind::FileTooLarge)?;
            places.push(Place { segment: *segment, position });
            lock(&self.known).entry(*segment).or_default().named += *length as u64;
            to += length;
        }
        self.flush(end, &bytes[from..to])
    }

    fn flush(&self, end: &mut End, bytes: &[u8]) -> io::Result<()> {
        let Some((segment, file)) = &end.current else { return Ok(()) };
        if bytes.is_empty() {
            return Ok(());
        }
        #[cfg(test)]
        self.fail_if_broken(1)?;
        file.write_all_at(bytes, end.position)?;
        #[cfg(test)]
        self.fail_if_broken(2)?;
        file.sync_data()?;
        end.position += bytes.len() as u64;
        lock(&self.known).entry(*segment).or_default().size = end.position;
        Ok(())
    }

    fn begin(&self, end: &mut End) -> io::Result<()> {
        self.leave(end);
        let number = end.next;
        let path = self.folder.join(file_name(number));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        end.next = number.checked_add(1).ok_or(io::ErrorKind::StorageFull)?;
        // Its name must last before a row names it.
        if let Err(error) = folder::sync(&self.folder) {
            let _ = std::fs::remove_file(&path);
            return Err(error);
        }
        end.current = Some((number, Arc::new(file)));
        end.position = 0;
        lock(&self.known).insert(number, Segment { is_written: true, ..Segment::default() });
        Ok(())
    }

    /// Nothing is written to the current segment any more.
    fn leave(&self, end: &mut End) {
        let Some((number, _)) = end.current.take() else { return };
        if let Some(segment) = lock(&self.known).get_mut(&number) {
            segment.is_written = false;
        }
        self.sweep([number]);
    }

    /// Ends the current segment, so that its space can be given back.
    pub(super) fn end_current(&self) {
        self.leave(&mut lock(&self.end));
    }

    /// The bytes of an extent, checked, behind those that are in `into` already: those from `from` to `to` of it.
    pub(super) fn read(&self, extent: &Extent, from: usize, to: usize, into: &mut Vec<u8>) -> Result<(), ExtentError> {
        let file = self.file(extent.segment).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ExtentError::Corrupt,
            _ => ExtentError::Io(error),
        })?;
        let begin = into.len();
        read_extent(&file, extent, into)?;
        into.truncate(begin + to);
        into.drain(begin..begin + from);
        Ok(())
    }

    fn file(&self, segment: u32) -> io::Result<Arc<File>> {
        let mut open = lock(&self.open);
        if let Some((_, file)) = open.iter().find(|(number, _)| *number == segment) {
            return Ok(file.clone());
        }
        let file = Arc::new(File::open(self.folder.join(file_name(segment)))?);
        if open.len() >= SEGMENTS_OPEN_MAX {
            open.pop_front();
        }
        open.push_back((segment, file.clone()));
        Ok(file)
    }

    /// So many bytes of a segment are no longer named. Who has said so for all that it dropped calls [`Segments::sweep`].
    pub(super) fn unname(&self, segment: u32, bytes: u64) {
        let mut known = lock(&self.known);
        let segment = known.entry(segment).or_default();
        segment.named = segment.named.saturating_sub(bytes);
    }

    /// Unlinks those of `segments` of which nothing is named and to which nothing is written. A reader that has one open
    /// ends well.
    pub(super) fn sweep(&self, segments: impl IntoIterator<Item = u32>) {
        for number in segments {
            let mut known = lock(&self.known);
            if known.get(&number).is_none_or(|segment| segment.named > 0 || segment.is_written) {
                continue;
            }
            known.remove(&number);
            drop(known);
            lock(&self.open).retain(|(open, _)| *open != number);
            // A file that stays is removed at the next start: no row names it.
            let _ = std::fs::remove_file(self.folder.join(file_name(number)));
        }
    }

    /// The oldest segment in which bytes are named.
    pub(super) fn oldest(&self) -> Option<u32> {
        lock(&self.known).iter().find(|(_, segment)| segment.named > 0).map(|(number, _)| *number)
    }

    /// Bytes on disk, named or not.
    pub(super) fn size(&self) -> u64 {
        lock(&self.known).values().map(|segment| segment.size).sum()
    }

    #[cfg(test)]
    fn fail_if_broken(&self, step: u8) -> io::Result<()> {
        match self.broken.load(std::sync::atomic::Ordering::SeqCst) == step {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => Ok(()),
        }
    }
}

/// Adds an extent's bytes to `into` and checks them.
pub(crate) fn read_extent(file: &File, extent: &Extent, into: &mut Vec<u8>) -> Result<(), ExtentError> {
    let begin = into.len();
    into.resize(begin + extent.length as usize, 0);
    file.read_exact_at(&mut into[begin..], u64::from(extent.position)).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => ExtentError::Corrupt,
        _ => ExtentError::Io(error),
    })?;
    if checksum(&into[begin..]) != extent.sum {
        return Err(ExtentError::Corrupt);
    }
    Ok(())
}

/// The segments in a folder, which is made if it is missing; those of which nothing is named are removed.
fn list(path: &Path, named: &BTreeMap<u32, u64>) -> io::Result<BTreeMap<u32, Segment>> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    // One whose file is gone stays known: who reads it is told that it is damaged.
    let mut known: BTreeMap<u32, Segment> =
        named.iter().map(|(number, named)| (*number, Segment { named: *named, ..Segment::default() })).collect();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let Some(number) = entry.file_name().to_str().and_then(number) else { continue };
        match known.get_mut(&number) {
            Some(segment) => segment.size = entry.metadata()?.len(),
            None => std::fs::remove_file(entry.path())?,
        }
    }
    Ok(known)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
