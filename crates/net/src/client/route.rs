//! Who waits for which id.
//!
//! The client registers, the reading task delivers. Always true: an id is used once; an entry goes away with its answer,
//! or with the subscription that holds it; after the end of the connection nobody can register, and nobody waits.
//! Deliberately not here: what the frames say.

use super::{ClientError, Lost};
use crate::limits::ROUTES_MAX;
use crate::subscription::Feed;
use essaim_proto::frame::FLAG_ANSWER;
use essaim_proto::{Frame, Function};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{oneshot, watch};

/// Gives the answer's frame, or an error when the connection is over.
pub(super) type Answer = oneshot::Receiver<Frame>;

#[derive(Debug)]
struct Route {
    /// Taken when the answer has come.
    answer: Option<oneshot::Sender<Frame>>,
    /// Where everything else under the id goes.
    feed: Option<Feed>,
}

#[derive(Debug, Default)]
struct Table {
    open: HashMap<u64, Route>,
    last_id: u64,
    is_over: bool,
}

/// The open ids of one client.
#[derive(Debug)]
pub(super) struct Routes {
    table: Mutex<Table>,
    /// Gets what belongs to no open id.
    rest: Mutex<Option<Feed>>,
    lost: watch::Sender<Option<Arc<Lost>>>,
}

/// Holds an id; dropping it frees the id.
#[derive(Debug)]
pub(super) struct Registration {
    id: u64,
    routes: Arc<Routes>,
}

impl Registration {
    pub(super) fn id(&self) -> u64 {
        self.id
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.routes.table().open.remove(&self.id);
    }
}

impl Routes {
    pub(super) fn new(rest: Option<Feed>) -> Routes {
        Routes { table: Mutex::default(), rest: Mutex::new(rest), lost: watch::Sender::new(None) }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A fresh id, from 1. After the end of the connection the answer fails at once.
    pub(super) fn register(self: &Arc<Routes>, feed: Option<Feed>) -> Result<(Registration, Answer), ClientError> {
        let (sender, answer) = oneshot::channel();
        let mut table = self.table();
        if table.open.len() >= ROUTES_MAX {
            return Err(ClientError::TooMany);
        }
        table.last_id += 1;
        let id = table.last_id;
        if !table.is_over {
            table.open.insert(id, Route { answer: Some(sender), feed });
        }
        Ok((Registration { id, routes: Arc::clone(self) }, answer))
    }

    /// Gives a frame to whom it belongs.
    pub(super) fn deliver(&self, frame: Frame) {
        let mut table = self.table();
        let Some(route) = table.open.get_mut(&frame.id) else {
            drop(table);
            self.deliver_to_rest(frame);
            return;
        };
        let is_refusal = frame.function == Function::REFUSED;
        let id = frame.id;
        let goes_on = match route.answer.take_if(|_| is_refusal || frame.has(FLAG_ANSWER)) {
            Some(waiter) => {
                // The waiter may have been dropped a moment ago: its business.
                let _ = waiter.send(frame);
                route.feed.is_some()
            }
            None => route.feed.as_ref().is_some_and(|feed| feed.push(frame)),
        };
        if is_refusal || !goes_on {
            table.open.remove(&id);
        }
    }

    fn deliver_to_rest(&self, frame: Frame) {
        let mut rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        let function = frame.function;
        match rest.as_ref().map(|feed| feed.push(frame)) {
            Some(true) => {}
            Some(false) => *rest = None,
            None => tracing::trace!(?function, "a frame belongs to nobody"),
        }
    }

    /// The connection is over: every waiter and every subscription ends.
    pub(super) fn end(&self, lost: Lost) {
        // First the reason: whoever wakes up asks for it.
        self.lost.send_replace(Some(Arc::new(lost)));
        let mut table = self.table();
        table.is_over = true;
        table.open.clear();
        drop(table);
        *self.rest.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(super) async fn lost(&self) -> Arc<Lost> {
        let mut lost = self.lost.subscribe();
        let seen = lost.wait_for(Option::is_some).await.ok().and_then(|lost| lost.clone());
        seen.expect("the sender lives in self, so the wait ends with a reason")
    }
}
