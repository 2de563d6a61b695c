//! `config show`: every setting, its value and where it comes from.
//!
//! Deliberately not here: changing them; the file is the user's.

use super::Context;
use crate::cli::Config;
use crate::exit::{OK, Outcome};
use serde::Serialize;

#[derive(Serialize)]
struct Shown {
    name: &'static str,
    value: Option<String>,
    origin: String,
    meaning: &'static str,
}

pub(super) fn run(context: &Context, command: Config) -> Outcome {
    let Config::Show = command;
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
