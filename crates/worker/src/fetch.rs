//! Blobs: a file's bytes from the hub into the work folder.
//!
//! An attempt fetches the files that did not travel inside its start. Always true: a file counts as fetched only when its
//! BLAKE3 is the one that was named; a lost connection is continued from the byte where it broke; at most a window of
//! bytes is on its way.
//! Deliberately not here: a cache of blobs (each attempt fetches its own), and folders (`folder`).

use crate::folder::Folder;
use crate::limits::{FETCH_FAILURES_MAX, FETCH_STALL, FETCHES_AT_ONCE};
use crate::link::{Link, LinkWatch, link_after};
use essaim_net::limits::CREDIT_STEP_BYTES;
use essaim_proto::api::Credit;
use essaim_proto::frame::FLAG_LAST;
use essaim_proto::job::{FileSpec, Reason};
use essaim_proto::link::BlobWanted;
use essaim_proto::{AttemptId, BlobHash, Frame, Function, Refusal};
use std::io;
use std::sync::Arc;
use tokio::fs::File;
use tokio::io::{AsyncSeekExt, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

/// Fetches blobs for all attempts of a worker.
#[derive(Debug, Clone)]
pub(crate) struct Fetcher {
    link: LinkWatch,
    places: Arc<Semaphore>,
}

/// Which blob, and for whom.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    attempt: AttemptId,
    hash: BlobHash,
    size_bytes: u64,
}

/// How one session's part of a transfer ended.
enum Part {
    /// All bytes are there.
    Whole,
    /// The connection is over: go on with the next.
    Broken,
    /// Nothing came for too long.
    Stalled,
}

/// Why a blob could not be fetched.
enum Failure {
    Refused(Refusal),
    Disk(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Disk(error)
    }
}

impl Fetcher {
    /// A fetcher over the links that `link` brings.
    pub(crate) fn new(link: LinkWatch) -> Fetcher {
        Fetcher { link, places: Arc::new(Semaphore::new(FETCHES_AT_ONCE)) }
    }

    /// Makes `file` in `folder` and fills it. Dropping the future gives the transfer up.
    ///
    /// # Errors
    /// A reason: the hub's refusal, `blob_mismatch`, `blob_stalled` or `work_folder`.
    pub(crate) async fn fetch(mut self, attempt: AttemptId, folder: Arc<Folder>, file: FileSpec) -> Result<(), Reason> {
        // Before the file is opened: a job may have thousands.
        let _place = self.places.clone().acquire_owned().await;
        let hash = file.hash;
        let wanted = Wanted { attempt, hash, size_bytes: file.size_bytes };
        let made = tokio::task::spawn_blocking(move || folder.create(&file.path, file.executable)).await;
        let made = made.unwrap_or_else(|error| Err(io::Error::other(error)));
        let to = made.map_err(|error| wanted.reason(Failure::Disk(error)))?;
        let mut download = Download { wanted, file: File::from_std(to), hasher: blake3::Hasher::new(), offset: 0 };
        let (mut epoch, mut failures, mut reason) = (0, 0, Reason::new("blob_stalled"));
        while failures < FETCH_FAILURES_MAX {
            let Some(link) = link_after(&mut self.link, epoch).await else {
                return Err(Reason::new("worker_stopped"));
            };
            let part = download.over(&link).await;
            reason = match part {
                Ok(Part::Whole) if download.is_right() => return Ok(()),
                Ok(Part::Whole) => {
                    download.begin_anew().await.map_err(|error| wanted.reason(Failure::Disk(error)))?;
                    Reason::new("blob_mismatch").with("hash", hash)
                }
                Ok(Part::Broken) => {
                    epoch = link.epoch;
                    continue;
                }
                Ok(Part::Stalled) => Reason::new("blob_stalled").with("hash", hash),
                Err(failure) => return Err(wanted.reason(failure)),
            };
            failures += 1;
        }
        Err(reason)
    }
}

/// One blob on its way, over any number of sessions.
struct Download {
    wanted: Wanted,
    file: File,
    hasher: blake3::Hasher,
    offset: u64,
}

/// Ends the transfer however its holder ends.
struct Transfer<'a> {
    link: &'a Link,
    id: u64,
    /// The hub has said its last word.
    is_over: bool,
}

impl Drop for Transfer<'_> {
    fn drop(&mut self) {
        self.link.end_transfer(self.id);
        if !self.is_over {
            // The hub would wait for credits as long as the connection lives. A closed one needs no word.
            let _ = self.link.sender.control(Frame::empty(Function::UNWATCH, self.id));
        }
    }
}

impl Download {
    async fn over(&mut self, link: &Link) -> Result<Part, Failure> {
        let (id, mut frames) = link.open_transfer();
        let mut transfer = Transfer { link, id, is_over: false };
        let wanted = BlobWanted { attempt: self.wanted.attempt, hash: self.wanted.hash, offset: self.offset };
        if link.sender.control_when_room(Frame::of(Function::BLOB_GET, id, &wanted)).await.is_err() {
            return Ok(Part::Broken);
        }
        let part = self.receive(&mut transfer, &mut frames).await;
        // A write may still be under way, and the next one must not overtake it.
        self.file.flush().await?;
        part
    }

    async fn receive(
        &mut self,
        transfer: &mut Transfer<'_>,
        frames: &mut mpsc::Receiver<Frame>,
    ) -> Result<Part, Failure> {
        let mut uncredited = 0;
        loop {
            let frame = match timeout(FETCH_STALL, frames.recv()).await {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok(Part::Broken),
                Err(_) => return Ok(Part::Stalled),
            };
            match frame.function {
                Function::BLOB_BYTES => {}
                Function::REFUSED => {
                    transfer.is_over = true;
                    return Err(Failure::Refused(frame.message().unwrap_or_default()));
                }
                // An answer that says yes: the bytes say more.
                _ => continue,
            }
            // In this order, so that a disk's refusal leaves the count of what is written.
            transfer.is_over = frame.has(FLAG_LAST);
            self.file.write_all(&frame.value).await?;
            self.hasher.update(&frame.value);
            self.offset += frame.value.len() as u64;
            // Too many bytes are as wrong as other ones: the hash says so.
            if transfer.is_over || self.offset > self.wanted.size_bytes {
                return Ok(Part::Whole);
            }
            uncredited += frame.value.len() as u64;
            if uncredited >= CREDIT_STEP_BYTES {
                let credit = Credit { bytes: std::mem::take(&mut uncredited) };
                if transfer.link.sender.control(Frame::of(Function::CREDIT, transfer.id, &credit)).is_err() {
                    return Ok(Part::Broken);
                }
            }
        }
    }

    fn is_right(&self) -> bool {
        self.hasher.finalize().as_bytes() == &self.wanted.hash.0
    }

    async fn begin_anew(&mut self) -> io::Result<()> {
        self.file.set_len(0).await?;
        self.file.rewind().await?;
        self.hasher.reset();
        self.offset = 0;
        Ok(())
    }
}

impl Wanted {
    fn reason(&self, failure: Failure) -> Reason {
        match failure {
            Failure::Refused(refusal) => {
                let mut reason = Reason::new(refusal.code.name());
                reason.params = refusal.params;
                reason.params.entry("hash".to_owned()).or_insert_with(|| self.hash.to_string());
                reason
            }
            Failure::Disk(error) => Reason::new("work_folder").with("why", error),
        }
    }
}
