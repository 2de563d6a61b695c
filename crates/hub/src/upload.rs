//! A blob on its way in from a client.
//!
//! A client session keeps one per open transfer and feeds it frames. Bytes may come before the core has said that the
//! client may upload; they wait here. Always true: a peer that sends beyond its window is refused; the hash is checked
//! before anyone can see the blob.
//! Deliberately not here: who may upload (the core), what a window is ([`essaim_net::transfer`]).

use essaim_net::transfer::Incoming;
use essaim_proto::api::BlobPut;
use essaim_proto::limits::BLOB_BYTES_MAX;
use essaim_proto::{BlobHash, Frame, Refusal, RefusalCode};
use essaim_store::{BlobWriter, Blobs, PutError};

/// One upload.
pub(crate) struct Upload {
    put: BlobPut,
    incoming: Incoming,
    writer: Option<BlobWriter>,
    /// What came before the upload was granted: at most a window, since nothing is credited before.
    early: Vec<u8>,
    last: bool,
}

/// How far an upload is.
#[derive(Debug)]
pub(crate) enum Progress {
    /// More is to come; a credit to send, when one is due.
    Open(Option<Frame>),
    /// The blob is stored.
    Whole,
}

impl Upload {
    /// Transfer `id`.
    ///
    /// # Errors
    /// `too_large`.
    pub(crate) fn new(id: u64, put: BlobPut) -> Result<Upload, Refusal> {
        if put.size_bytes > BLOB_BYTES_MAX {
            return Err(Refusal::new(RefusalCode::TooLarge).with("what", "a file").with("limit", BLOB_BYTES_MAX));
        }
        let incoming = Incoming::new(id, Some(put.hash), Some(put.size_bytes));
        Ok(Upload { put, incoming, writer: None, early: Vec::new(), last: false })
    }

    /// The blob's.
    pub(crate) fn hash(&self) -> BlobHash {
        self.put.hash
    }

    /// The client may upload. Space is promised at once, so that a full store refuses the first frame and not the last.
    pub(crate) fn grant(&mut self, blobs: &Blobs) -> Result<Progress, Refusal> {
        self.writer = Some(blobs.begin(self.put.size_bytes).map_err(|error| self.refusal(&error))?);
        let early = std::mem::take(&mut self.early);
        self.write(&early)
    }

    /// Takes a chunk.
    pub(crate) fn take(&mut self, frame: &Frame) -> Result<Progress, Refusal> {
        self.last = self.incoming.accept(frame).map_err(|error| error.refusal(self.put.hash))?;
        if self.writer.is_some() {
            return self.write(&frame.value);
        }
        self.early.extend_from_slice(&frame.value);
        Ok(Progress::Open(None))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<Progress, Refusal> {
        let written = self.writer.as_mut().map_or(Ok(()), |writer| writer.write(bytes));
        written.map_err(|error| self.refusal(&error))?;
        if !self.last {
            return Ok(Progress::Open(self.incoming.wrote(bytes.len())));
        }
        let finished = self.writer.take().map_or(Ok(()), |writer| writer.finish(self.put.hash));
        finished.map_err(|error| self.refusal(&error))?;
        Ok(Progress::Whole)
    }

    fn refusal(&self, error: &PutError) -> Refusal {
        match error {
            PutError::Mismatch { .. } | PutError::WrongSize { .. } => {
                Refusal::new(RefusalCode::BlobMismatch).with("hash", self.put.hash)
            }
            error if error.is_full() => RefusalCode::StoreFull.into(),
            _ => RefusalCode::StoreError.into(),
        }
    }
}
