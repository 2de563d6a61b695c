//! `join-line`: the command to paste on another machine.
//!
//! Deliberately not here: the line itself, which the hub makes.

use super::Context;
use crate::cli::JoinLine;
use crate::exit::{OK, Outcome};
use essaim_proto::api::JoinLineMake;
use serde::Serialize;
use std::net::SocketAddr;

#[derive(Serialize)]
struct Made<'a> {
    command: &'a str,
    line: &'a str,
    addresses: &'a [String],
    expires_ms: u64,
    uses: u32,
}

pub(super) async fn run(context: &Context, words: JoinLine) -> Outcome {
    let JoinLine { open, open_clients, uses, ttl } = words;
    let mut link = context.link().await?;
    let made = link.request(&JoinLineMake { open, open_clients, uses, ttl_ms: ttl }).await?;
    link.close().await;
    let command = format!("essaim worker {}", made.line.0);
    if context.printer.is_json() {
        let addresses = &made.addresses;
        let made = Made { command: &command, line: &made.line.0, addresses, expires_ms: made.expires_ms, uses };
        context.printer.json(&made)?;
        return Ok(OK);
    }
    context.printer.data(&command)?;
    let times = if uses == 1 { "once".to_owned() } else { format!("{uses} times") };
    context.printer.note(&format!("good {times}, for {}", essaim_view::duration(ttl)));
    let is_loopback = |address: &String| address.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_loopback());
    if made.addresses.iter().all(is_loopback) {
        context.printer.note("only this machine can use it; for others add --open ADDR (0.0.0.0: all addresses)");
    }
    Ok(OK)
}
