//! A request that was refused because its key asks too often: wait, then ask again.
//!
//! Called by [`super::Client`] for each answer. Always true: a request is asked no more often than the client may try to
//! connect; each pause is as long as the hub wants at least.
//! Deliberately not here: which requests count, and how often they may come (the hub).

use super::ClientError;
use crate::backoff::Backoff;
use crate::limits::{RATE_PAUSE_FIRST, RATE_PAUSE_MAX};
use essaim_proto::RefusalCode;
use std::time::Duration;

/// What is left of it for one request.
pub(super) struct Patience {
    tries_left: u32,
    pauses: Backoff,
}

impl Patience {
    /// For a request that may be asked so often.
    pub(super) fn new(tries: u32) -> Patience {
        Patience { tries_left: tries.saturating_sub(1), pauses: Backoff::between(RATE_PAUSE_FIRST, RATE_PAUSE_MAX) }
    }

    /// Is the request to be asked again? Waits before it says so.
    pub(super) async fn helps(&mut self, error: &ClientError) -> bool {
        let ClientError::Refused(refusal) = error else { return false };
        if refusal.code != RefusalCode::RateLimited || self.tries_left == 0 {
            return false;
        }
        self.tries_left -= 1;
        let wanted = refusal.param("retry_after_ms").parse().map_or(Duration::ZERO, Duration::from_millis);
        let pause = self.pauses.next_pause().max(wanted).min(RATE_PAUSE_MAX);
        tracing::debug!(pause_ms = pause.as_millis() as u64, "the key asks too often; the request is asked again");
        tokio::time::sleep(pause).await;
        true
    }
}
