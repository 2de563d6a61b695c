//! Decisions, without IO: what the hub and a worker answer to what happens.
//!
//! The shells (`hub`, `worker`) call `step(now, input, &mut out)` and carry out what comes back; tests do the same with
//! a made-up clock. [`hub::Input`] and [`hub::Effect`] are one page each, and so are [`worker::Input`] and
//! [`worker::Effect`]: whoever has read the four knows everything that can happen here.
//!
//! Always true: `step` never waits, never fails for bad input (a refusal is an effect), does bounded work, and gives the
//! same answer to the same inputs. Time is an argument; maps are ordered.
//! Deliberately not here: IO, a clock, randomness, logs (the effects are the log), output bytes (they pass beside).

pub mod hub;
pub mod lang;
pub mod limits;
pub mod rate;
pub mod worker;

/// The time of a batch of inputs, read once by the shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// Monotonic milliseconds from any beginning: leases and silence are measured with it.
    pub mono_ms: u64,
    /// Milliseconds since 1970: what people are shown, and expiry of join lines.
    pub unix_ms: u64,
}
