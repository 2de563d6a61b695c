//! How much a key may use, as words.
//!
//! `key create` and `key set` take them. Always true: `none` is as much as it likes, `hub` what the hub's settings say.
//! Deliberately not here: what counts (`essaim-core`).

use clap::Args;
use essaim_proto::quota::Quota;

pub(super) const SET: &str = "\
N and SIZE may also be none (as much as it likes) or hub (as the hub's settings say).

Examples:
  essaim key set ada --queued-tasks 500
  essaim key set ada --stored-bytes 2G --requests-per-second 50
  essaim key set ada --queued-tasks none
  essaim key set ada --queued-tasks hub --json";

/// Quotas of a key; what is not said stays.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Quotas {
    /// Tasks that may wait or run; of an array each counts.
    #[arg(long, value_name = "N", value_parser = count)]
    pub(crate) queued_tasks: Option<Quota>,
    /// Bytes of files that its waiting and running jobs may keep on the hub (200M, 50G).
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) stored_bytes: Option<Quota>,
    /// Requests in a second, over all its connections.
    #[arg(long, value_name = "N", value_parser = rate)]
    pub(crate) requests_per_second: Option<Quota>,
}

fn count(text: &str) -> Result<Quota, String> {
    text.parse().map_err(|error: essaim_proto::quota::QuotaError| error.to_string())
}

fn rate(text: &str) -> Result<Quota, String> {
    match count(text)? {
        Quota::At(0) => Err("with none a second nobody could ask anything; revoke the key instead".to_owned()),
        quota => Ok(quota),
    }
}

fn size(text: &str) -> Result<Quota, String> {
    match text {
        "none" | "hub" => count(text),
        size => essaim_view::parse_size_bytes(size).map(Quota::At).map_err(|error| error.to_string()),
    }
}
