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
    pub(crate) async fn grant(&mut self, blobs: &Blobs) -> Result<Progress, Refusal> {
        let (blobs, size) = (blobs.clone(), self.put.size_bytes);
        self.writer = Some(self.blocking(move || blobs.begin(size)).await?);
        let early = std::mem::take(&mut self.early);
        self.write(early).await
    }

    /// Takes a chunk.
    pub(crate) async fn take(&mut self, frame: &Frame) -> Result<Progress, Refusal> {
        self.last = self.incoming.accept(frame).map_err(|error| error.refusal(self.put.hash))?;
        if self.writer.is_some() {
            return self.write(frame.value.clone()).await;
        }
        self.early.extend_from_slice(&frame.value);
        Ok(Progress::Open(None))
    }

    async fn write(&mut self, bytes: Vec<u8>) -> Result<Progress, Refusal> {
        let Some(mut writer) = self.writer.take() else { return Err(RefusalCode::StoreError.into()) };
        let (count, hash, last) = (bytes.len(), self.put.hash, self.last);
        let write = move || {
            writer.write(&bytes)?;
            if last { writer.finish(hash).map(|()| None) } else { Ok(Some(writer)) }
        };
        self.writer = self.blocking(write).await?;
        Ok(if last { Progress::Whole } else { Progress::Open(self.incoming.wrote(count)) })
    }

    /// On a thread that may wait for the disk: this session waits with it, nobody else does.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, PutError> + Send + 'static,
    ) -> Result<T, Refusal> {
        // A panic was in the log when it happened.
        let done = tokio::task::spawn_blocking(work).await.map_err(|_| Refusal::new(RefusalCode::StoreError))?;
        done.map_err(|error| self.refusal(&error))
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
