//! What the hub keeps: one port, and the back-ends behind it.
//!
//! `hub` opens a [`Store`] and hands its parts around: [`Journal`] and [`Lead`] to the driver, [`Blobs`] and [`Outputs`]
//! to the sessions. This crate calls `proto` for ids, the file system, and nobody else of ours.
//!
//! Always true here: what a caller may count on is written at the top of [`port`], and the same suite of tests
//! (`conformance`) runs against every back-end. A back-end's name is not seen outside this crate and configuration.
//! Deliberately not here: decisions (`core`), the meaning of a batch's bytes, clocks (time is an argument), tokio.

mod backup;
mod blob_files;
mod budget;
mod catalog;
mod copies;
mod error;
mod folder;
mod journal;
pub mod limits;
mod memory;
mod packed;
pub mod port;
mod rules;
mod sqlite;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod tests;

pub use backup::{Copied, backup, restore};
pub use catalog::{Catalog, CatalogEnds, CatalogJob, CatalogPart, CatalogQuery, CatalogRow};
pub use error::{
    AppendError, BackupError, BlobReadError, BlobRemoveError, CatalogError, Cause, LeadError, NoRoom, OpenError,
    OutputError, OutputReadError, PutError, ReadError, SnapshotError, TrimError,
};
pub use limits::StoreLimits;
pub use port::{BlobWriter, Blobs, Chunk, Journal, Lead, Lengths, Outputs, Seq, Settle, Settled, Small, Store, Term};
