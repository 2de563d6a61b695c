//! A blob on its way to a worker.
//!
//! A worker session begins one per request and hands it the credits that come back; a task of its own reads the store
//! and sends. Always true: never more than a window on its way without a credit, so a slow disk at the other end holds
//! up nothing but this transfer; dropping it ends it.
//! Deliberately not here: who may read (the session), what a window is ([`essaim_net::transfer`]).

use crate::session::{answered, refused};
use essaim_net::FrameSender;
use essaim_net::transfer::{TransferError, Window, send};
use essaim_proto::api::{Credit, Done};
use essaim_proto::link::BlobWanted;
use essaim_proto::{AttemptId, BlobHash, Function, Refusal, RefusalCode};
use essaim_store::Blobs;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::task::AbortHandle;
use tracing::warn;

/// What sends, to be spawned.
pub(crate) type Sending = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The session's end of a download.
pub(crate) struct Download {
    attempt: AttemptId,
    window: Arc<Window>,
    task: AbortHandle,
}

impl Download {
    /// Begins to send the blob of `size` bytes as transfer `id`. `spawn` puts the task where it ends with its session.
    pub(crate) fn begin(
        spawn: impl FnOnce(Sending) -> AbortHandle,
        blobs: Blobs,
        sender: FrameSender,
        id: u64,
        wanted: BlobWanted,
        size: u64,
    ) -> Download {
        let window = Arc::new(Window::new());
        let credits = window.clone();
        let task = spawn(Box::pin(async move {
            let source = Source { blobs, hash: wanted.hash, offset: wanted.offset.min(size) };
            // Before the bytes: control overtakes them anyway.
            let _ = sender.control(answered(Function::BLOB_GET, id, &Done {}));
            let sent = send(&sender, id, &credits, size - source.offset, source).await;
            if let Err(error @ (TransferError::Source(_) | TransferError::SourceShort { .. })) = sent {
                warn!(hash = %wanted.hash, %error, "a blob cannot be read");
                let refusal = Refusal::new(RefusalCode::BlobMissing).with("hash", wanted.hash);
                let _ = sender.control(refused(id, &refusal));
            }
        }));
        Download { attempt: wanted.attempt, window, task }
    }

    /// The attempt for which it was asked.
    pub(crate) fn attempt(&self) -> AttemptId {
        self.attempt
    }

    /// The worker has written so many more bytes.
    pub(crate) fn credit(&self, credit: Credit) {
        self.window.add(credit);
    }

    /// The id of its task.
    pub(crate) fn task(&self) -> tokio::task::Id {
        self.task.id()
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A stored blob as something to read from.
struct Source {
    blobs: Blobs,
    hash: BlobHash,
    offset: u64,
}

impl AsyncRead for Source {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = self.blobs.get(self.hash, self.offset, into.remaining());
        let bytes = read.map_err(io::Error::other)?.ok_or(io::ErrorKind::NotFound)?;
        into.put_slice(&bytes);
        self.offset += bytes.len() as u64;
        Poll::Ready(Ok(()))
    }
}
