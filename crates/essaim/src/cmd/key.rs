//! `key`: make, list, change and revoke keys.
//!
//! Deliberately not here: who may (the hub says), keeping keys (the user does).

use super::{Context, ago};
use crate::cli::{Key, Quotas};
use crate::exit::{Cause, Failure, OK, Outcome};
use essaim_proto::api::{KeyCreate, KeyList, KeyRevoke, KeySet};
use essaim_proto::hello::Role;
use essaim_proto::quota::QuotaView;
use essaim_proto::{KeyName, RefusalCode};
use serde::Serialize;

#[derive(Serialize)]
struct Created<'a> {
    name: &'a str,
    role: Role,
    key: &'a str,
    addresses: &'a [String],
}

#[derive(Serialize)]
struct Revoked<'a> {
    revoked: &'a str,
}

fn change(name: &KeyName, quotas: Quotas) -> KeySet {
    let Quotas { queued_tasks, stored_bytes, requests_per_second } = quotas;
    KeySet { name: name.to_string(), queued_tasks, stored_bytes, requests_per_second }
}

/// What is used of what.
fn used_of(quota: QuotaView, show: impl Fn(u64) -> String) -> String {
    match (quota.used, quota.limit) {
        (Some(used), Some(limit)) => format!("{} of {}", show(used), show(limit)),
        (Some(used), None) => show(used),
        (None, Some(limit)) => show(limit),
        (None, None) => "-".to_owned(),
    }
}

pub(super) async fn run(context: &Context, command: Key) -> Outcome {
    let mut link = context.link().await?;
    let printer = context.printer;
    match command {
        Key::Create { name, role, quotas } => {
            let role = Role::from(role);
            // Its secret is in the answer alone: asked twice, the second answer would be that it exists.
            let asked = link
                .request_once(&KeyCreate {
                    name: name.to_string(),
                    role,
                    quotas: change(&name, quotas).of(Default::default()),
                })
                .await;
            let made = asked.map_err(|failure| match failure.cause {
                Cause::Unreachable => failure.hint(format!(
                    "whether the key was made is not known: if `essaim key list` shows {name}, revoke it and try again"
                )),
                _ => failure,
            })?;
            if printer.is_json() {
                let addresses = &made.addresses;
                printer.json(&Created { name: name.as_str(), role, key: &made.key.0, addresses })?;
            } else {
                printer.data(&made.key.0)?;
                printer.note("shown this once; its holder sets ESSAIM_KEY to it, or uses --key-file");
            }
        }
        Key::List => {
            let page = link.request(&KeyList {}).await?;
            if printer.is_json() {
                printer.json(&page.keys)?;
            } else {
                let row = |key: &essaim_proto::api::KeyView| {
                    let tasks = used_of(key.queued_tasks, |count| count.to_string());
                    let files = used_of(key.stored_bytes, essaim_view::bytes);
                    let rate = used_of(key.requests_per_second, |count| count.to_string());
                    vec![key.name.clone(), key.role.name().to_owned(), ago(key.created_ms), tasks, files, rate]
                };
                let rows: Vec<Vec<String>> = page.keys.iter().map(row).collect();
                printer.table(&["NAME", "ROLE", "MADE", "TASKS", "FILES", "REQUESTS/S"], &rows)?;
            }
        }
        Key::Set { name, quotas } => {
            let set = change(&name, quotas);
            if set == (KeySet { name: name.to_string(), ..KeySet::default() }) {
                let message = "nothing to set: say --queued-tasks, --stored-bytes or --requests-per-second";
                return Err(Failure::usage("nothing_to_set", message));
            }
            link.request(&set).await?;
            if printer.is_json() {
                printer.json(&set)?;
            } else {
                printer.note(&format!("key {name} is changed; `essaim key list` shows what it may and uses"));
            }
        }
        Key::Revoke { name } => {
            match link.request_again(&KeyRevoke { name: name.to_string() }).await {
                // What we asked for before the hub went away was done.
                Err((failure, true)) if failure.code == RefusalCode::NoSuchKey.name() => {}
                answer => drop(answer.map_err(|(failure, _)| failure)?),
            }
            if printer.is_json() {
                printer.json(&Revoked { revoked: name.as_str() })?;
            } else {
                printer.note(&format!("key {name} is revoked"));
            }
        }
    }
    link.close().await;
    Ok(OK)
}
