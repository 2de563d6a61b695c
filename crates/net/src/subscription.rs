//! Frames that come for one id: from the client's reading task to whoever subscribed.
//!
//! [`crate::client`] makes them. Always true: the reading task never waits for a reader here (it must answer pings), so
//! the queue is bounded by ending the subscription; dropping a subscription frees its id.
//! Deliberately not here: telling the hub that nobody listens any more (send UNWATCH for a watch).

use crate::limits::{FRAME_COST_MIN, SUBSCRIPTION_BYTES};
use essaim_proto::Frame;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::sync::mpsc;

#[derive(Debug, Default)]
pub(crate) struct Level {
    bytes: AtomicUsize,
    is_overrun: AtomicBool,
}

/// The writing end, held by the client's routes.
#[derive(Debug)]
pub(crate) struct Feed {
    frames: mpsc::UnboundedSender<Frame>,
    level: Arc<Level>,
}

/// The frames of one id after its answer, in order.
pub struct Subscription {
    id: u64,
    frames: mpsc::UnboundedReceiver<Frame>,
    level: Arc<Level>,
    /// Frees the id when it is dropped.
    _registration: Box<dyn Send + Sync>,
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscription").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The reading end before its id is known.
pub(crate) struct Outlet {
    frames: mpsc::UnboundedReceiver<Frame>,
    level: Arc<Level>,
}

/// A queue bounded by [`SUBSCRIPTION_BYTES`].
pub(crate) fn pipe() -> (Feed, Outlet) {
    let (sender, frames) = mpsc::unbounded_channel();
    let level = Arc::<Level>::default();
    (Feed { frames: sender, level: Arc::clone(&level) }, Outlet { frames, level })
}

impl Outlet {
    /// The subscription of `id`; `registration` is dropped with it.
    pub(crate) fn subscription(self, id: u64, registration: impl Send + Sync + 'static) -> Subscription {
        Subscription { id, frames: self.frames, level: self.level, _registration: Box::new(registration) }
    }
}

impl Feed {
    /// `false` when the subscription is over: dropped, or too far behind.
    pub(crate) fn push(&self, frame: Frame) -> bool {
        let cost = cost(&frame);
        let before = self.level.bytes.fetch_add(cost, Ordering::Relaxed);
        if before + cost > SUBSCRIPTION_BYTES {
            self.level.is_overrun.store(true, Ordering::Relaxed);
            return false;
        }
        self.frames.send(frame).is_ok()
    }
}

fn cost(frame: &Frame) -> usize {
    frame.wire_bytes().max(FRAME_COST_MIN)
}

impl Subscription {
    /// The id that its frames carry.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The next frame, or `None` when no more will come: the connection is over ([`crate::Client::closed`] says why), a
    /// REFUSED was the last frame, or the reader fell too far behind ([`Subscription::is_overrun`]). Cancellation-safe.
    pub async fn next(&mut self) -> Option<Frame> {
        let frame = self.frames.recv().await?;
        self.level.bytes.fetch_sub(cost(&frame), Ordering::Relaxed);
        Some(frame)
    }

    /// Did frames get lost because [`SUBSCRIPTION_BYTES`] waited? Then it has ended, and must be opened anew.
    pub fn is_overrun(&self) -> bool {
        self.level.is_overrun.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use essaim_proto::Function;

    // A reader that sleeps must cost bounded memory and learn that it missed something.
    #[tokio::test]
    async fn a_sleeping_reader_loses_the_subscription() {
        let (feed, outlet) = pipe();
        let mut subscription = outlet.subscription(7, ());
        let mut count = 0;
        while feed.push(Frame::empty(Function::EVENT, 7)) {
            count += 1;
        }
        assert_eq!(count, SUBSCRIPTION_BYTES / FRAME_COST_MIN);
        drop(feed);
        let mut received = 0;
        while subscription.next().await.is_some() {
            received += 1;
        }
        assert_eq!(received, count);
        assert!(subscription.is_overrun());
    }
}
