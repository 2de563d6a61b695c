//! Blobs through the typed client: put and get with credits.
//!
//! Both put the halves of [`crate::transfer`] on one id of the client. Always true: what `get_blob` has written is
//! complete and checked when it returns `Ok`, and to be thrown away otherwise.
//! Deliberately not here: files (the caller opens them, and renames what came).

use super::{Client, ClientError};
use crate::connection::SendError;
use crate::subscription::Subscription;
use crate::transfer::{Incoming, TransferError, Window, send};
use essaim_proto::api::{BlobGet, BlobPut, Credit, Done};
use essaim_proto::{BlobHash, Frame, Function};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

impl Client {
    /// Uploads a blob of `size` bytes that hash to `hash`. Ask with `BlobsMissing` first.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::Refused`] may come before all bytes have left.
    pub async fn put_blob(&self, hash: BlobHash, size: u64, source: impl AsyncRead + Unpin) -> Result<(), ClientError> {
        let (mut credits, answer) = self.subscribe()?;
        let id = credits.id();
        self.send_control(Frame::of(Function::BLOB_PUT, id, &BlobPut { hash, size_bytes: size })).await?;
        let window = Window::new();
        let sending = async {
            match send(&self.inner.sender, id, &window, size, source).await {
                // The answer decides; a lost connection shows there too, with its reason.
                Ok(()) | Err(TransferError::Send(SendError::Closed | SendError::Overflow)) => {
                    std::future::pending().await
                }
                Err(error) => error,
            }
        };
        let crediting = async {
            while let Some(frame) = credits.next().await {
                if frame.function == Function::CREDIT {
                    window.add(frame.message::<Credit>().unwrap_or_default());
                }
            }
            // The connection is over: the answer fails, and says why.
            std::future::pending::<ClientError>().await
        };
        tokio::select! {
            answer = self.answered(answer) => {
                answer?.message::<Done>()?;
                Ok(())
            }
            error = sending => Err(error.into()),
            error = crediting => Err(error),
        }
    }

    /// Downloads into `sink` and gives the number of bytes. The hash is checked unless `get.offset` asks for a part. After
    /// a failure the hub hears UNWATCH with the transfer's id.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get_blob(&self, get: &BlobGet, mut sink: impl AsyncWrite + Unpin) -> Result<u64, ClientError> {
        let (_, mut chunks) = self.open(get).await?;
        let id = chunks.id();
        let received = self.receive(get, &mut chunks, &mut sink).await;
        if received.is_err() {
            // The hub would wait for credits until the connection ends. If that is over already, so is the transfer.
            let _ = self.inner.sender.control(Frame::empty(Function::UNWATCH, id));
        }
        received
    }

    async fn receive(
        &self,
        get: &BlobGet,
        chunks: &mut Subscription,
        sink: &mut (impl AsyncWrite + Unpin),
    ) -> Result<u64, ClientError> {
        let mut incoming = Incoming::new(chunks.id(), (get.offset == 0).then_some(get.hash), None);
        loop {
            let Some(frame) = chunks.next().await else { return Err(self.closed().await.into()) };
            if frame.function == Function::REFUSED {
                return Err(ClientError::Refused(frame.message()?));
            }
            let is_last = incoming.accept(&frame)?;
            sink.write_all(&frame.value).await.map_err(ClientError::Sink)?;
            if is_last {
                sink.flush().await.map_err(ClientError::Sink)?;
                return Ok(incoming.received_bytes());
            }
            if let Some(credit) = incoming.wrote(frame.value.len()) {
                self.send_control(credit).await?;
            }
        }
    }
}
