//! After an append that failed: back to what is durable, without a restart.
//!
//! ```text
//!   failed ──▶ all appends under way have ended ──▶ what waits is refused by name
//!          ──▶ rows beyond the published state are read back (beside the driver)
//!          ──▶ a new state; clients stay, workers come back
//! ```
//!
//! Always true: whatever the store really took is found again, also where it said that it did not know; nothing else is.
//! Deliberately not here: when there is room again ([`crate::keeper`] looks, the core decides what to refuse meanwhile).

use super::published::rows_after;
use super::{Driver, Leaving, News, ReplayError};
use crate::handle::Mail;
use essaim_core::hub::{Effect, Hub, Input, Out, Record, SessionId};
use essaim_proto::{JobId, RefusalCode};
use essaim_store::{AppendError, Seq, Store};
use std::collections::BTreeSet;
use std::time::Instant;
use tracing::error;

/// What the journal holds beyond the published state.
pub(super) type Recovered = Vec<(Seq, Vec<Record>)>;

impl Driver {
    /// Nothing is under way any more: finds out what the store took. It may take its time, so not here.
    pub(super) fn recover(&mut self) {
        let Some(cause) = self.failed.take() else { return };
        error!(error = %cause, "the store did not take a record; what was not durable is refused");
        let is_full = matches!(cause, AppendError::Full(_));
        if is_full {
            // Until the next look at the disk says that there is room. What the journal holds twice makes some.
            self.full_since = Some(Instant::now());
            self.published.since_snapshot_bytes = u64::MAX;
        }
        self.refuse_waiting(if is_full { RefusalCode::StoreFull } else { RefusalCode::StoreError });
        self.is_recovering = true;
        let (store, at, news) = (self.parts.store.clone(), self.published.at, self.news_sender.clone());
        tokio::task::spawn_blocking(move || drop(news.send(News::Recovered(read_back(&store, at)))));
    }

    /// Throws the state away and goes on from what the store really holds.
    pub(super) fn recovered(&mut self, rows: Recovered) {
        self.is_recovering = false;
        let found: BTreeSet<JobId> = rows.iter().flat_map(|(_, records)| records).filter_map(Record::job).collect();
        for (at, records) in rows {
            self.publish(at, records);
        }
        self.asked = self.published.at;
        let now = self.now();
        let durable = self.published.durable.clone();
        self.blobs.rebuild(&durable, now.mono_ms);
        let before = std::mem::replace(&mut self.hub, Hub::new(now, durable, self.parts.table.clone()));
        let mut out = Out::default();
        let clients = self.hub.succeed(now, &before, &self.parts.feeds.jobs(), &found, &mut out);
        let closed: Vec<SessionId> = self.mailboxes.keys().filter(|id| !clients.contains(id)).copied().collect();
        for session in closed {
            self.carry_out(Effect::Close { session, reason: "store_error" }, &[]);
        }
        if self.full_since.is_some() {
            self.hub.step(now, Input::Storage { full: true }, &mut out);
        }
        self.commit(now, out, Leaving::default());
    }

    fn refuse_waiting(&mut self, code: RefusalCode) {
        for (_, leaving) in std::mem::take(&mut self.waiting) {
            for (session, request) in leaving.effects.iter().filter_map(asked_by) {
                self.mail(session, Mail::Refused { request, refusal: code.into() });
            }
        }
    }
}

fn read_back(store: &Store, mut at: Seq) -> Result<Recovered, ReplayError> {
    let mut recovered = Recovered::new();
    loop {
        let rows = rows_after(store, at)?;
        let Some((last, ..)) = rows.last() else { return Ok(recovered) };
        at = *last;
        recovered.extend(rows.into_iter().map(|(seq, records, _)| (seq, records)));
    }
}

/// Who waits for an effect, under which request.
fn asked_by(effect: &Effect) -> Option<(SessionId, u64)> {
    match effect {
        Effect::Answer { session, request, .. }
        | Effect::Refuse { session, request, .. }
        | Effect::GrantJoin { session, request, .. } => Some((*session, *request)),
        Effect::Admit { session, .. } => Some((*session, 0)),
        _ => None,
    }
}
