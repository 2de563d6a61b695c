//! The hub's own absences: while it stood still it heard nobody, so nobody's silence counts.
//!
//! Called by [`super::Hub::step`] with the time of each input. Always true: time that passed without a look at the clock
//! (the process was stopped, its machine slept, the store hung) is added to every term that runs, so that workers and
//! clients get the time to come back that they would have had; who is missing soon after it is told so.
//! Deliberately not here: the terms themselves ([`super::nodes`], [`super::ephemeral`]).

use super::Hub;
use crate::Now;
use crate::limits::{SILENCE_MS, SLEPT_MS, STALL_MS};
use essaim_proto::job::Reason;

/// When the hub last looked at the clock, and what it noticed.
#[derive(Debug, Default)]
pub(super) struct Patience {
    last: Option<Now>,
    woke: Option<Woke>,
}

#[derive(Debug)]
struct Woke {
    at_mono_ms: u64,
    /// For how long it was away.
    ms: u64,
}

impl Hub {
    pub(super) fn look_at_the_clock(&mut self, now: Now) {
        let last = self.live.patience.last.replace(now).unwrap_or(now);
        let stood_ms = now.mono_ms.saturating_sub(last.mono_ms);
        // The monotonic clock of a machine that sleeps stands still, its calendar goes on.
        let passed_ms = now.unix_ms.saturating_sub(last.unix_ms);
        if passed_ms.saturating_sub(stood_ms) >= SLEPT_MS || stood_ms >= STALL_MS {
            self.live.patience.woke = Some(Woke { at_mono_ms: now.mono_ms, ms: passed_ms.max(stood_ms) });
        }
        if stood_ms < STALL_MS {
            return;
        }
        for node in self.live.nodes.values_mut() {
            node.last_word_mono_ms += stood_ms;
        }
        for held in self.live.attempts.values_mut() {
            held.told_mono_ms += stood_ms;
        }
        self.live.ephemeral.wait_longer(stood_ms);
    }

    /// Why a node is gone: because of this, or because the hub itself was away just now.
    pub(super) fn gone_because(&self, now: Now, reason: Reason) -> Reason {
        let patience = &self.live.patience;
        match patience.woke.as_ref().filter(|woke| now.mono_ms.saturating_sub(woke.at_mono_ms) <= SILENCE_MS) {
            Some(woke) => Reason::new("hub_slept").with("ms", woke.ms),
            None => reason,
        }
    }
}
