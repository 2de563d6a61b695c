//! What every face shows alike: words, sentences, units and tables, in English and French.
//!
//! Command line, web, window and hub call it with codes and parameters from `proto`; it calls nobody else of ours.
//!
//! Always true here: everything is a pure function, and text that comes from other people (names, errors, output)
//! leaves without control characters that could move a terminal's cursor.
//! Deliberately not here: printing, colours of our own, and the decision what to show.

pub mod exit_code;
mod language;
mod limit;
mod limits;
mod local;
mod outcome;
mod reason;
mod refusal;
mod ruled_out;
mod sentence;
mod signal;
mod table;
mod terminal;
mod units;
mod word;

pub use language::Language;
pub use limit::{clamped, limit_flag, limit_value};
pub use local::local_workers;
pub use outcome::outcome;
pub use reason::reason;
pub use refusal::refusal;
pub use ruled_out::ruled_out;
pub use signal::{signal_meaning, signal_name};
pub use table::{table, width_of};
pub use terminal::{TerminalFilter, escape_terminal, visible};
pub use units::{DurationError, SizeError, age, bytes, duration, parse_duration_ms, parse_size_bytes, time_of_day};
pub use word::{job_state, node_state, phase, task_state, verdict};
