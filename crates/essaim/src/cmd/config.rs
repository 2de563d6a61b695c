//! `config`: every setting, its value and where it comes from; changing one in the file, or of a hub that runs.
//!
//! Always true: what else stands in the file stays as it is; what the file could not be read with is never written.
//! Deliberately not here: what the settings are (`settings`), what a change means to a hub (the hub).

use super::{Context, on_one_thread};
use crate::cli::Config;
use crate::exit::{Failure, OK, Outcome};
use crate::settings::with_setting;
use essaim_net::private_file::write_private;
use essaim_proto::api::LocalSet;
use essaim_view::Language;
use serde::Serialize;

#[derive(Serialize)]
struct Shown {
    name: &'static str,
    value: Option<String>,
    origin: String,
    meaning: &'static str,
}

pub(super) fn run(context: &Context, command: Config) -> Outcome {
    match command {
        Config::Show => show(context),
        Config::Set { name, value } => match of_the_hub(&name, &value)? {
            Some(set) => on_one_thread(change(context, set)),
            None => write(context, &name, Some(&value)),
        },
        Config::Unset { name } => write(context, &name, None),
    }
}

/// What a hub is asked that runs, when the setting is its own.
fn of_the_hub(name: &str, value: &str) -> Result<Option<LocalSet>, Failure> {
    let number = || {
        let wrong = || Failure::usage("bad_value", format!("{value:?} is no number of workers"));
        value.parse::<u32>().map(Some).map_err(|_| wrong())
    };
    Ok(Some(match (name.replace('_', "-").as_str(), value) {
        ("local-mode", "on") => LocalSet { mode: Some(true), ..LocalSet::default() },
        ("local-mode", "off") => LocalSet { mode: Some(false), ..LocalSet::default() },
        ("local-mode", _) => {
            return Err(Failure::usage("bad_value", format!("local-mode is on or off, not {value:?}")));
        }
        ("local-workers", _) => LocalSet { workers: number()?, ..LocalSet::default() },
        ("local-workers-max", _) => LocalSet { workers_max: number()?, ..LocalSet::default() },
        _ => return Ok(None),
    }))
}

async fn change(context: &Context, set: LocalSet) -> Outcome {
    let mut link = context.link().await?;
    let local = link.request(&set).await?;
    link.close().await;
    if context.printer.is_json() {
        context.printer.json(&local)?;
    } else {
        context.printer.note(&essaim_view::local_workers(&local, Language::English));
    }
    Ok(OK)
}

#[derive(Serialize)]
struct Written<'a> {
    name: &'a str,
    value: Option<&'a str>,
    file: String,
}

fn write(context: &Context, name: &str, value: Option<&str>) -> Outcome {
    let path = context.home.settings_file();
    let file = path.display().to_string();
    let broken =
        |error: &dyn std::error::Error| Failure::broken("bad_settings", format!("{file} cannot be changed"), error);
    let text = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        text => text.map_err(|error| broken(&error))?,
    };
    let new = with_setting(&file, &text, name, value)?;
    crate::home::make_private_folder(context.home.path())?;
    write_private(&path, new.as_bytes()).map_err(|error| broken(&error))?;
    if context.printer.is_json() {
        context.printer.json(&Written { name, value, file })?;
    } else {
        let done = value.map_or_else(|| format!("{name} is no longer in"), |value| format!("{name} is {value} in"));
        context.printer.note(&format!("{done} {file}; a hub or worker takes it when it is started next"));
    }
    Ok(OK)
}

fn show(context: &Context) -> Outcome {
    let mut shown = vec![Shown {
        name: "home",
        value: Some(context.home.path().display().to_string()),
        origin: context.home.origin().to_owned(),
        meaning: "the data folder",
    }];
    for (key, value, origin) in context.settings.shown() {
        shown.push(Shown { name: key.name, value, origin: origin.to_string(), meaning: key.meaning });
    }
    if context.printer.is_json() {
        context.printer.json(&shown)?;
    } else {
        let row = |shown: &Shown| {
            let value = shown.value.clone().unwrap_or_else(|| "-".into());
            vec![shown.name.to_owned(), value, shown.origin.clone(), shown.meaning.to_owned()]
        };
        let rows: Vec<Vec<String>> = shown.iter().map(row).collect();
        context.printer.whole_table(&["SETTING", "VALUE", "FROM", "WHAT FOR"], &rows)?;
        context.printer.note(&format!("the file is {}", context.home.settings_file().display()));
    }
    Ok(OK)
}
