//! The one task that writes a connection: coalesces, flushes when nothing waits, pings, says goodbye.
//!
//! Started by `Connection::over`; takes from `queue`. Always true: one write carries all that fits; nothing stays in a
//! buffer of TLS while the queues are empty; a write without progress ends the connection; the task ends in bounded time
//! after a close.
//! Deliberately not here: what is sent.

use super::queue::{Failure, Phase, ReadHalf, Shared, Taken};
use crate::limits::{WRITE_BYTES, WRITE_IDLE_BYTES, WRITE_STALL};
use essaim_proto::hello::Goodbye;
use essaim_proto::{Frame, Function};
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep_until, timeout};

type WriteHalf = Box<dyn AsyncWrite + Send + Unpin>;

/// Writes until the connection ends.
pub(super) async fn run(mut io: WriteHalf, shared: Arc<Shared>) {
    let failure = tokio::select! {
        result = write_all(&mut io, &shared) => result.err(),
        () = time_is_up(&shared) => None,
    };
    // Before the end is told: whoever waited for it may count on the socket being gone.
    drop(io);
    drop(shared.take_returned());
    shared.end(failure);
}

/// Returns when the connection was ended elsewhere, or its time to close is over.
async fn time_is_up(shared: &Shared) {
    let mut phase = shared.phase.subscribe();
    let until = match phase.wait_for(|phase| !matches!(phase, Phase::Open)).await.as_deref() {
        Ok(Phase::Closing { until }) => *until,
        _ => return,
    };
    tokio::select! {
        () = sleep_until(until) => {}
        _ = phase.wait_for(|phase| matches!(phase, Phase::Ended(_))) => {}
    }
}

async fn write_all(io: &mut WriteHalf, shared: &Shared) -> Result<(), Failure> {
    let mut buffer = Vec::new();
    let mut is_flushed = true;
    loop {
        buffer.clear();
        match shared.take(&mut buffer, Instant::now()) {
            Taken::Filled => {
                write_buffer(io, &buffer).await?;
                is_flushed = false;
            }
            // TLS keeps the end of what was written until it is flushed; look again afterwards, since that took time.
            _ if !is_flushed => {
                progress(io.flush()).await?;
                is_flushed = true;
            }
            Taken::Empty { ping_at } => {
                buffer.shrink_to(WRITE_IDLE_BYTES);
                wait(shared, ping_at).await;
            }
            Taken::Finished { reason } => return finish(io, shared, reason).await,
        }
    }
}

async fn wait(shared: &Shared, ping_at: Option<Instant>) {
    match ping_at {
        None => shared.wake.notified().await,
        Some(at) => {
            // Whichever it was, the caller looks into the queues again.
            let _ = tokio::time::timeout_at(at, shared.wake.notified()).await;
        }
    }
}

async fn write_buffer(io: &mut WriteHalf, buffer: &[u8]) -> Result<(), Failure> {
    let mut written = 0;
    while written < buffer.len() {
        // Each piece that the kernel takes is progress: only a peer that takes nothing runs into the limit.
        let end = buffer.len().min(written + WRITE_BYTES);
        match progress(io.write(&buffer[written..end])).await? {
            0 => return Err(Failure::Write(Arc::new(io::ErrorKind::WriteZero.into()))),
            count => written += count,
        }
    }
    Ok(())
}

async fn progress<T>(step: impl Future<Output = io::Result<T>>) -> Result<T, Failure> {
    match timeout(WRITE_STALL, step).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Failure::Write(Arc::new(error))),
        Err(_) => Err(Failure::Stalled(WRITE_STALL)),
    }
}

/// GOODBYE, the end of our half, then the peer's end: a socket closed with unread bytes would reset the connection and
/// take our last words with it.
async fn finish(io: &mut WriteHalf, shared: &Shared, reason: String) -> Result<(), Failure> {
    let mut buffer = Vec::new();
    Frame::of(Function::GOODBYE, 0, &Goodbye { reason }).write_to(&mut buffer);
    write_buffer(io, &buffer).await?;
    progress(io.flush()).await?;
    progress(io.shutdown()).await?;
    loop {
        if let Some(half) = shared.take_returned() {
            read_to_end(half).await;
            return Ok(());
        }
        // Until then the reader's holder reads.
        shared.reader_returned.notified().await;
    }
}

async fn read_to_end(mut half: ReadHalf) {
    let mut scrap = vec![0; WRITE_IDLE_BYTES];
    while matches!(half.read(&mut scrap).await, Ok(count) if count > 0) {}
}
