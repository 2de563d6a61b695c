//! The open session to the hub, as the rest of the worker sees it: a way to send, and transfers that it opened.
//!
//! The session makes one per connection, the driver publishes it, attempts send their output and fetch their files
//! through it. Always true: a link never comes back, a later one has a higher epoch; when it is closed, every transfer
//! on it ends.
//! Deliberately not here: reading (`session`), what is sent.

use crate::limits::FETCH_FRAMES;
use essaim_net::FrameSender;
use essaim_proto::{AttemptId, Frame};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{mpsc, watch};

/// What the hub has of an attempt's output: bytes of standard output, then of standard error.
pub(crate) type Offsets = [u64; 2];

/// The link of the moment, or none.
pub(crate) type LinkWatch = watch::Receiver<Option<Arc<Link>>>;

/// One open session.
#[derive(Debug)]
pub(crate) struct Link {
    /// Counts sessions, from 1.
    pub(crate) epoch: u64,
    /// The way to send.
    pub(crate) sender: FrameSender,
    /// Attempts that go on, with what the hub has of their output.
    pub(crate) keep: BTreeMap<AttemptId, Offsets>,
    transfers: Mutex<Transfers>,
}

#[derive(Debug, Default)]
struct Transfers {
    last_id: u64,
    is_closed: bool,
    open: BTreeMap<u64, mpsc::Sender<Frame>>,
}

/// Why a frame of a transfer was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotTaken {
    /// No such transfer: it was given up while the frame was on its way.
    Unknown,
    /// More came than the window allows.
    TooMany,
}

impl Link {
    /// A link over `sender`. Ids of its transfers begin above `last_id`.
    pub(crate) fn new(epoch: u64, sender: FrameSender, keep: BTreeMap<AttemptId, Offsets>, last_id: u64) -> Link {
        let transfers = Transfers { last_id, ..Transfers::default() };
        Link { epoch, sender, keep, transfers: Mutex::new(transfers) }
    }

    /// A fresh id, and the frames that will come under it. They end when the link does.
    pub(crate) fn open_transfer(&self) -> (u64, mpsc::Receiver<Frame>) {
        let (to, from) = mpsc::channel(FETCH_FRAMES);
        let mut transfers = self.transfers();
        transfers.last_id += 1;
        let id = transfers.last_id;
        if !transfers.is_closed {
            transfers.open.insert(id, to);
        }
        (id, from)
    }

    /// The transfer is over; what still comes is dropped.
    pub(crate) fn end_transfer(&self, id: u64) {
        self.transfers().open.remove(&id);
    }

    /// Gives a frame to its transfer.
    ///
    /// # Errors
    /// [`NotTaken`].
    pub(crate) fn deliver(&self, frame: Frame) -> Result<(), NotTaken> {
        let transfers = self.transfers();
        let to = transfers.open.get(&frame.id).ok_or(NotTaken::Unknown)?;
        to.try_send(frame).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => NotTaken::TooMany,
            mpsc::error::TrySendError::Closed(_) => NotTaken::Unknown,
        })
    }

    /// The connection is over.
    pub(crate) fn close(&self) {
        let mut transfers = self.transfers();
        transfers.is_closed = true;
        transfers.open.clear();
    }

    fn transfers(&self) -> MutexGuard<'_, Transfers> {
        self.transfers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The link of the moment; waits until there is one after `epoch`. `None` when the worker ends.
pub(crate) async fn link_after(watch: &mut LinkWatch, epoch: u64) -> Option<Arc<Link>> {
    let is_later = |link: &Option<Arc<Link>>| link.as_ref().is_some_and(|link| link.epoch > epoch);
    watch.wait_for(is_later).await.ok()?.clone()
}
