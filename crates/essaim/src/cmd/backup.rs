//! `backup` and `restore`: the whole hub in a folder, and back.
//!
//! A backup is the copy of the store that `essaim-store` makes, beside it the small files that make this hub this hub, and
//! at the end a file that says that it is complete. Always true: nothing that is there is replaced, neither by a backup nor
//! by a restore; a folder without the last file is no backup.
//! Deliberately not here: what a store is made of (`essaim-store`).

use super::{Context, unix_ms};
use crate::exit::{Failure, OK, Outcome, chain};
use crate::home::{Home, make_private_folder};
use crate::target;
use essaim_net::AUTHORITY_FILES;
use essaim_net::identity::IDENTITY_FILE;
use essaim_net::private_file::{PrivateFileError, read_private, write_private};
use essaim_store::BackupError;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Says that the backup is complete, and of what.
const LABEL_FILE: &str = "backup.json";

/// Files of the user: those that are there are kept.
const WISHES: [&str; 2] = ["essaim.toml", "languages.toml"];

/// What stands in [`LABEL_FILE`].
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Label {
    /// The data folder that it was made of.
    home: String,
    /// When, in milliseconds since 1970.
    made_ms: u64,
    /// The version of essaim.
    version: String,
}

#[derive(Serialize)]
struct Done<'a> {
    r#type: &'static str,
    home: &'a Path,
    folder: &'a Path,
    bytes: u64,
}

pub(super) fn backup(context: &Context, to: &Path) -> Outcome {
    let (home, printer) = (&context.home, context.printer);
    if !home.store().exists() {
        let message = format!("there is nothing to back up: no hub has kept anything in {}", home.path().display());
        return Err(Failure::usage("no_store", message).hint("set ESSAIM_HOME to the hub's data folder"));
    }
    let to = absolute(to)?;
    if !is_empty(&to) {
        let message = format!("{} is there already and not empty", to.display());
        return Err(Failure::usage("not_empty", message).hint("name a folder that is not there yet"));
    }
    make_private_folder(&to)?;
    printer.note(&format!("copying {} to {}", home.path().display(), to.display()));
    let copied = essaim_store::backup(&home.store(), &to.join("store")).map_err(|error| failure(&error))?;
    for name in names(home.path()) {
        if let Some(bytes) = read(&home.path().join(&name))? {
            write(&to.join(&name), &bytes)?;
        }
    }
    let label = Label {
        home: home.path().display().to_string(),
        made_ms: unix_ms(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let label = serde_json::to_vec_pretty(&label)
        .map_err(|error| Failure::broken("internal", "the backup's label cannot be written", &error))?;
    write(&to.join(LABEL_FILE), &label)?;
    if printer.is_json() {
        printer.json(&Done { r#type: "backup", home: home.path(), folder: &to, bytes: copied.bytes })?;
    } else {
        printer.data(&format!("backup complete: {} ({})", to.display(), essaim_view::bytes(copied.bytes)))?;
        printer.note("it holds the hub's keys: keep it as safe as the data folder");
    }
    Ok(OK)
}

pub(super) fn restore(context: &Context, from: &Path) -> Outcome {
    let (home, printer) = (&context.home, context.printer);
    let from = absolute(from)?;
    let label = label_of(&from)?;
    if let Some(hub) = target::live_hub(home)? {
        let message = format!("a hub runs on {} (process {})", home.path().display(), hub.pid);
        return Err(Failure::refused("in_use", message).hint("stop it first, or set ESSAIM_HOME to another folder"));
    }
    refuse_another_hub(home, &from)?;
    make_private_folder(home.path())?;
    printer.note(&format!("bringing back the backup of {}, made {}", label.home, super::ago(label.made_ms)));
    let copied = essaim_store::restore(&from.join("store"), &home.store()).map_err(|error| failure(&error))?;
    for name in names(&from) {
        let place = home.path().join(&name);
        match read(&from.join(&name))? {
            Some(_) if place.exists() => printer.note(&format!("{} is there and stays as it is", place.display())),
            Some(bytes) => write(&place, &bytes)?,
            None => {}
        }
    }
    if printer.is_json() {
        printer.json(&Done { r#type: "restore", home: home.path(), folder: &from, bytes: copied.bytes })?;
    } else {
        printer.data(&format!("restored: {} ({})", home.path().display(), essaim_view::bytes(copied.bytes)))?;
        printer.note("`essaim up` starts it");
    }
    Ok(OK)
}

/// The small files beside the store, whether there or not. Local workers keep their names by their identities.
fn names(folder: &Path) -> Vec<PathBuf> {
    let own = AUTHORITY_FILES.into_iter().chain([Home::ADMIN_KEY]).chain(WISHES).map(PathBuf::from);
    let locals = std::fs::read_dir(folder.join(Home::LOCAL)).into_iter().flatten().flatten();
    own.chain(locals.map(|entry| Path::new(Home::LOCAL).join(entry.file_name()).join(IDENTITY_FILE))).collect()
}

/// With another hub's identity the restored one would be a stranger to all of its workers and keys.
fn refuse_another_hub(home: &Home, from: &Path) -> Result<(), Failure> {
    for name in AUTHORITY_FILES.into_iter().chain([Home::ADMIN_KEY]) {
        let place = home.path().join(name);
        let (there, theirs) = (read(&place)?, read(&from.join(name))?);
        if there.is_some() && theirs.is_some() && there != theirs {
            let message = format!("{} belongs to another hub than the backup", place.display());
            return Err(Failure::refused("other_hub", message)
                .hint("set ESSAIM_HOME to an empty folder, or move the old files away"));
        }
    }
    Ok(())
}

fn label_of(from: &Path) -> Result<Label, Failure> {
    let no_backup = |why: &str| {
        let message = format!("{} is no complete backup: {why}", from.display());
        Failure::usage("no_backup", message).hint("name a folder that `essaim backup` has made to its end")
    };
    let bytes = read(&from.join(LABEL_FILE))?.ok_or_else(|| no_backup(&format!("it has no {LABEL_FILE}")))?;
    serde_json::from_slice(&bytes).map_err(|error| no_backup(&format!("its {LABEL_FILE} cannot be read ({error})")))
}

/// What cannot be listed is not empty: making something in it will say why.
fn is_empty(folder: &Path) -> bool {
    match std::fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path)
        .map_err(|error| Failure::usage("bad_folder", format!("{} is no usable path: {error}", path.display())))
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, Failure> {
    read_private(path).map_err(|error| file_failure(&error))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    if let Some(folder) = path.parent() {
        make_private_folder(folder)?;
    }
    write_private(path, bytes).map_err(|error| file_failure(&error))
}

fn file_failure(error: &PrivateFileError) -> Failure {
    Failure::broken("file", "a file of the hub cannot be copied", error)
}

fn failure(error: &BackupError) -> Failure {
    match error {
        BackupError::Open(error) => super::store_failure(error),
        BackupError::NoStore { .. } => Failure::usage("no_store", chain(error)),
        BackupError::NotEmpty { .. } => Failure::refused("not_empty", chain(error)),
        BackupError::Damaged { .. } => Failure::refused("damaged", chain(error)),
    }
}
