//! A phrase for the workers that a hub's own `up` starts: how many there are, and may be.
//!
//! Whoever lists nodes or changes those workers calls [`local_workers`]. Always true: like a reason it is without a full
//! stop. Deliberately not here: how many there should be (`core`).

use crate::language::Language;
use crate::sentence::fill;
use essaim_proto::api::LocalWorkers;
use essaim_proto::job::Reason;
use std::collections::BTreeMap;

/// The phrase.
pub fn local_workers(local: &LocalWorkers, language: Language) -> String {
    if !local.mode {
        return crate::reason(&Reason::new("local_mode_off"), language);
    }
    let template = match local.workers_max > local.workers {
        true => language.pick(
            "{wanted|one local worker|# local workers} now, {workers} at least, up to {most} while work waits",
            "{wanted|# worker local|# workers locaux} à présent, {workers} au moins, jusqu'à {most} quand du travail attend",
        ),
        false => language.pick("{workers|one local worker|# local workers}", "{workers|# worker local|# workers locaux}"),
    };
    let numbers = [("wanted", local.wanted), ("workers", local.workers), ("most", local.workers_max)];
    let params: BTreeMap<String, String> =
        numbers.into_iter().map(|(name, number)| (name.to_owned(), number.to_string())).collect();
    fill(template, &params, language)
}

#[cfg(test)]
mod tests {
    use super::*;

    // We want to read it in each situation.
    #[test]
    fn read_aloud() {
        let told = |mode, workers, workers_max, wanted| {
            local_workers(&LocalWorkers { mode, workers, workers_max, wanted }, Language::English)
        };
        assert_eq!(told(true, 1, 1, 1), "one local worker");
        assert_eq!(told(true, 0, 0, 0), "0 local workers");
        assert_eq!(told(true, 1, 4, 2), "2 local workers now, 1 at least, up to 4 while work waits");
        assert!(told(false, 1, 4, 0).starts_with("local mode is off: "));
        let french =
            local_workers(&LocalWorkers { mode: true, workers: 2, workers_max: 2, wanted: 2 }, Language::French);
        assert_eq!(french, "2 workers locaux");
    }
}
