//! The limits of what is shown, each with its reason.
//!
//! Deliberately not here: limits of what is sent (`proto`).

/// Bytes of an SGR sequence that the terminal filter holds back while it waits for its end. The longest in use, two
/// colours of 24 bits with attributes, have some 50; beyond this it is somebody who wants us to wait.
pub(crate) const SGR_BYTES_MAX: usize = 64;

/// Largest number that a duration or a size may have: what a browser can hold exactly (2^53 - 1).
pub(crate) const NUMBER_MAX: u64 = (1 << 53) - 1;

/// Narrowest column of a table that is cut: three characters and the sign that something is missing.
pub(crate) const COLUMN_WIDTH_MIN: usize = 4;
