//! A phrase for why one node does not take a task: it stands behind that node's name.
//!
//! `job show` and other faces call [`ruled_out`] for each entry of a job's list; [`crate::reason`] asks here for codes
//! that it does not know itself. Always true: a phrase does not name the node, because its reader sees the name beside
//! it; a code without a phrase here is told as a reason.
//! Deliberately not here: which nodes are ruled out (`core`), the list's order.

use crate::language::Language;
use crate::sentence::fill;
use essaim_proto::job::Reason;

macro_rules! phrases {
    ($($code:literal: $english:literal, $french:literal;)+) => {
        #[cfg(test)]
        const CODES: &[&str] = &[$($code),+];

        fn template(code: &str, language: Language) -> Option<&'static str> {
            match code {
                $($code => Some(language.pick($english, $french)),)+
                _ => None,
            }
        }
    };
}

phrases! {
    "slots_busy":
        "{slots|its only slot is|all of its # slots are} in use",
        "{slots|son seul emplacement est occupé|ses # emplacements sont tous occupés}";
    "slots_taken":
        "{free|# of its slots is|# of its slots are} free, {needs} are needed at once",
        "{free|# emplacement libre|# emplacements libres}, il en faut {needs} à la fois";
    "too_few_slots":
        "has {slots|one slot|# slots}, {needs} are needed",
        "a {slots|un emplacement|# emplacements}, il en faut {needs}";
    "too_little_memory":
        "offers {bytes:bytes} of memory, {needs:bytes} are needed",
        "offre {bytes:bytes} de mémoire, il en faut {needs:bytes}";
    "memory_in_use":
        "{free:bytes} of its memory are free, {needs:bytes} are needed",
        "{free:bytes} de sa mémoire sont libres, il en faut {needs:bytes}";
    "no_label":
        "has no label {label}",
        "n'a pas l'étiquette {label}";
    "no_toolchain":
        "cannot run {lang} (`{tool}` was not found)",
        "ne peut pas exécuter {lang} (`{tool}` introuvable)";
    "node_probing":
        "is still finding out what it can run",
        "cherche encore ce qu'il peut exécuter";
    "node_draining":
        "finishes its work and takes nothing new",
        "termine son travail et n'accepte plus rien";
    "node_silent":
        "nothing is heard from it at the moment",
        "aucun signe de vie pour le moment";
    "node_offline":
        "is not connected",
        "n'est pas connecté";
    "overloaded":
        "its processors are busy with other people's work",
        "ses processeurs sont pris par le travail d'autrui";
    "reserved":
        "is kept free for job {job}, which needs more of it at once",
        "est réservé au job {job}, qui en demande davantage d'un coup";
    "tasks_max":
        "runs {limit|the one program|the # programs} that its owner allows at once",
        "exécute déjà {limit|le seul programme|les # programmes} que son propriétaire autorise à la fois";
    "not_wanted":
        "the job asked for {wanted}",
        "le job a demandé {wanted}";
    "avoided":
        "the task was lost there before; it is tried elsewhere first",
        "la tâche y a déjà été perdue ; d'autres sont essayés d'abord";
}

/// Why a node that is named beside it does not take a task, as a phrase without a full stop.
pub fn ruled_out(reason: &Reason, language: Language) -> String {
    phrase(reason, language).unwrap_or_else(|| crate::reason(reason, language))
}

/// The phrase of a code that has one here.
pub(crate) fn phrase(reason: &Reason, language: Language) -> Option<String> {
    template(&reason.code, language).map(|template| fill(template, &reason.params, language))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sentence::names;
    use std::collections::BTreeSet;

    /// The parameters that `core` gives.
    const PARAMS: &[(&str, &[&str])] = &[
        ("slots_busy", &["slots"]),
        ("slots_taken", &["free", "needs"]),
        ("too_few_slots", &["slots", "needs"]),
        ("too_little_memory", &["bytes", "needs"]),
        ("memory_in_use", &["free", "needs"]),
        ("no_label", &["label"]),
        ("no_toolchain", &["lang", "tool"]),
        ("reserved", &["job"]),
        ("tasks_max", &["limit"]),
        ("not_wanted", &["wanted"]),
    ];

    // We want to know that every phrase uses exactly the parameters that come with its code, in each language.
    #[test]
    fn every_code_uses_its_parameters() {
        for code in CODES {
            let given = PARAMS.iter().find(|(name, _)| name == code).map_or(&[][..], |(_, params)| params);
            for language in Language::ALL {
                let template = template(code, language).expect("it has a phrase");
                let used: BTreeSet<&str> = names(template).collect();
                assert_eq!(used, given.iter().copied().collect(), "{code} in {language:?}");
                assert!(!template.ends_with('.'), "{template}");
            }
        }
    }

    // We want to read some of them as a user does: behind the node's name, as the job's own reason, and unknown ones.
    #[test]
    fn read_aloud() {
        let taken = Reason::new("slots_taken").with("free", 1).with("needs", 4);
        assert_eq!(ruled_out(&taken, Language::English), "1 of its slots is free, 4 are needed at once");
        assert_eq!(ruled_out(&taken.with("free", 0), Language::French), "0 emplacement libre, il en faut 4 à la fois");
        let busy = Reason::new("slots_busy").with("slots", 1);
        assert_eq!(ruled_out(&busy, Language::English), "its only slot is in use");
        let small = Reason::new("too_little_memory").with("bytes", 1u64 << 30).with("needs", 8u64 << 30);
        assert_eq!(ruled_out(&small, Language::English), "offers 1 GiB of memory, 8 GiB are needed");
        assert_eq!(crate::reason(&small, Language::English), ruled_out(&small, Language::English));
        let full = Reason::new("hub_full");
        assert_eq!(ruled_out(&full, Language::English), crate::reason(&full, Language::English));
        assert_eq!(ruled_out(&Reason::new("eclipse"), Language::English), "eclipse");
    }
}
