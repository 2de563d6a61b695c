//! `key`: make, list and revoke keys.
//!
//! Deliberately not here: who may (the hub says), keeping keys (the user does).

use super::{Context, ago};
use crate::cli::Key;
use crate::exit::{Cause, OK, Outcome};
use essaim_proto::RefusalCode;
use essaim_proto::api::{KeyCreate, KeyList, KeyRevoke};
use essaim_proto::hello::Role;
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

pub(super) async fn run(context: &Context, command: Key) -> Outcome {
    let mut link = context.link().await?;
    let printer = context.printer;
    match command {
        Key::Create { name, role } => {
            let role = Role::from(role);
            // Its secret is in the answer alone: asked twice, the second answer would be that it exists.
            let asked = link.request_once(&KeyCreate { name: name.to_string(), role }).await;
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
                    vec![key.name.clone(), key.role.name().to_owned(), ago(key.created_ms)]
                };
                let rows: Vec<Vec<String>> = page.keys.iter().map(row).collect();
                printer.table(&["NAME", "ROLE", "MADE"], &rows)?;
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
