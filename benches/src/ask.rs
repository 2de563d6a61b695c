//! A client beside the hub, and what the tables ask it for: jobs, arrays, their ends.
//!
//! `accept`, `core`, `history`, `simulated` and `turns` call it. Always true: each submit is a new job; the times of a job are the
//! hub's own.
//! Deliberately not here: the command line (`Swarm`), what is measured.

use anyhow::{Context, Result};
use essaim_net::private_file::read_private;
use essaim_net::{Client, ConnectOptions, DialTarget, HubFile, Ticket, TicketKind};
use essaim_proto::api::{JobShow, JobView, Submit};
use essaim_proto::job::{ArraySpec, JobKind, JobSpec};
use essaim_proto::{JobId, SubmitKey, TaskSet};
use std::path::Path;
use std::time::Duration;

/// Between two looks at a job.
const LOOK: Duration = Duration::from_millis(2);

/// Connects to the hub of `home` as its own user does.
pub(crate) async fn connect(home: &Path) -> Result<Client> {
    let key = read_private(&home.join("admin.key"))?.context("no key")?;
    connect_with(home, &String::from_utf8(key)?).await
}

/// Connects to the hub of `home` with a key of its own.
pub(crate) async fn connect_with(home: &Path, key: &str) -> Result<Client> {
    let file = HubFile::read(home)?.context("no hub file")?;
    let ticket = Ticket::parse(key, TicketKind::Key)?;
    let target =
        DialTarget { addresses: file.client_addresses, authority: ticket.authority, identity: None, bind: None };
    let options = ConnectOptions { key: Some(ticket.to_line()), ..ConnectOptions::default() };
    Ok(Client::connect(|| target.clone(), options, |_| ()).await?)
}

/// A program that is there, with its arguments.
pub(crate) fn command(words: &[&str]) -> JobSpec {
    JobSpec { kind: JobKind::Command, args: words.iter().map(ToString::to_string).collect(), ..JobSpec::default() }
}

/// The same for each number from 1.
pub(crate) fn array(tasks: u32, words: &[&str]) -> JobSpec {
    JobSpec { array: Some(Box::new(ArraySpec { tasks: TaskSet::span(1, tasks), lines: None })), ..command(words) }
}

/// Submits a new job that nobody watches.
pub(crate) async fn submit(client: &Client, spec: JobSpec) -> Result<JobId> {
    let key = SubmitKey(essaim_net::ticket::random());
    Ok(client.request(&Submit { key, spec, watch: false, in_order: false }).await?.job)
}

/// Waits for a job's end.
pub(crate) async fn ended(client: &Client, job: JobId) -> Result<JobView> {
    loop {
        let view = client.request(&JobShow { job }).await?;
        if view.state.is_over() {
            return Ok(view);
        }
        tokio::time::sleep(LOOK).await; // poll: until it is over
    }
}

/// How long the hub had a job that is over.
pub(crate) fn lasted(view: &JobView) -> Duration {
    Duration::from_millis(view.ended_ms.unwrap_or_default().saturating_sub(view.submitted_ms))
}
