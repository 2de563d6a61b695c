//! A phrase for every reason: why a task waits, why a node stands as it does, what failed besides the program.
//!
//! Every face calls [`reason`]. Always true: a code that has no phrase here is shown as it is with its parameters, so a
//! newer hub is still understood. A phrase is without a full stop, because it stands behind a state or a verdict.
//! Deliberately not here: which reason applies (`core`).

use crate::language::Language;
use crate::sentence::{fallback, fill};
use essaim_proto::job::Reason;
use essaim_proto::{Refusal, RefusalCode};

macro_rules! phrases {
    ($($code:literal: $english:literal, $french:literal;)+) => {
        /// All codes that have a phrase.
        #[cfg(test)]
        pub(crate) const CODES: &[&str] = &[$($code),+];

        fn template(code: &str, language: Language) -> Option<&'static str> {
            match code {
                $($code => Some(language.pick($english, $french)),)+
                _ => None,
            }
        }
    };
}

// Why a task waits or is where it is, then why a node is as it is, then what is said beside a verdict.
phrases! {
    "no_free_slot":
        "waiting for a free slot ({busy} of {slots} in use)",
        "en attente d'un emplacement libre ({busy} sur {slots} occupés)";
    "no_node":
        "no node is connected",
        "aucun nœud n'est connecté";
    "node_offline":
        "node {node} is not connected",
        "le nœud {node} n'est pas connecté";
    "node_probing":
        "{nodes|a node is still finding out what it|# nodes are still finding out what they} can run",
        "{nodes|un nœud cherche|# nœuds cherchent} encore ce qui peut y être exécuté";
    "no_toolchain":
        "no connected node can run {lang} (`{tool}` was not found)",
        "aucun nœud connecté ne peut exécuter {lang} (`{tool}` introuvable)";
    "node_busy":
        "waiting for a free slot on {node}",
        "en attente d'un emplacement libre sur {node}";
    "node_draining":
        "node {node} finishes its work and takes nothing new",
        "le nœud {node} termine son travail et n'accepte plus rien";
    "no_node_fits":
        "{nodes|the connected node does not have|none of the # connected nodes has} what it needs",
        "{nodes|le nœud connecté n'a|aucun des # nœuds connectés n'a} ce qu'il lui faut";
    "no_room":
        "waiting for a node with {slots|a free slot|# free slots}[ and {memory:bytes} of free memory]",
        "en attente d'un nœud avec {slots|un emplacement libre|# emplacements libres}[ et {memory:bytes} de mémoire libre]";
    "reserved":
        "waiting behind job {job}, which needs more at once than is free",
        "en attente derrière le job {job}, à qui il faut davantage d'un coup que ce qui est libre";
    "all_silent":
        "nothing is heard from the nodes that could run it at the moment",
        "aucun signe de vie pour le moment des nœuds qui pourraient l'exécuter";
    "all_draining":
        "the nodes that could run it finish their work and take nothing new",
        "les nœuds qui pourraient l'exécuter terminent leur travail et n'acceptent plus rien";
    "local_mode_off":
        "local mode is off: this machine takes nothing new (`essaim config set local-mode on` changes that)",
        "le mode local est désactivé : cette machine n'accepte plus rien (`essaim config set local-mode on` pour changer)";
    "all_overloaded":
        "the nodes that could run it are busy with other people's work",
        "les nœuds qui pourraient l'exécuter sont pris par le travail d'autrui";
    "after":
        "waiting for the end of {jobs}",
        "en attente de la fin de {jobs}";
    "after_failed":
        "job {job}, which it waited for, did not end well",
        "le job {job}, qu'il attendait, ne s'est pas bien terminé";
    "starting":
        "being started on {node}",
        "en cours de démarrage sur {node}";
    "node_lost":
        "node {node} was lost during attempt {attempt}; it will run again",
        "le nœud {node} a été perdu pendant l'essai {attempt} ; nouvelle exécution à venir";
    "node_stopped":
        "node {node} was stopped during attempt {attempt}; it will run again",
        "le nœud {node} a été arrêté pendant l'essai {attempt} ; nouvelle exécution à venir";
    "attempt_failed":
        "node {node} could not run attempt {attempt}; it will run again",
        "le nœud {node} n'a pas pu exécuter l'essai {attempt} ; nouvelle exécution à venir";
    "given_back":
        "node {node} gave attempt {attempt} back; it will run again",
        "le nœud {node} a rendu l'essai {attempt} ; nouvelle exécution à venir";
    "not_started":
        "node {node} did not start attempt {attempt}; it will run again",
        "le nœud {node} n'a pas démarré l'essai {attempt} ; nouvelle exécution à venir";
    "node_silent":
        "nothing is heard from node {node} at the moment",
        "aucun signe de vie du nœud {node} pour le moment";
    "hub_draining":
        "the hub is shutting down and starts nothing new",
        "le hub s'arrête et ne démarre plus rien";
    "hub_full":
        "the hub's disk is full; it starts when there is room",
        "le disque du hub est plein ; démarrage dès qu'il y aura de la place";
    "cancelling":
        "being cancelled",
        "en cours d'annulation";

    "connected":
        "connected",
        "connecté";
    "connection_lost":
        "the connection was lost",
        "la connexion a été perdue";
    "clean_stop":
        "it was stopped",
        "il a été arrêté";
    "not_needed":
        "it had nothing left to do",
        "il n'avait plus rien à faire";
    "crashed":
        "its worker ended unexpectedly",
        "son worker s'est arrêté de façon inattendue";
    "silent":
        "nothing was heard from it for {seconds} s",
        "aucun signe de vie depuis {seconds} s";
    "draining":
        "it finishes its work and takes nothing new",
        "il termine son travail et n'accepte plus rien";
    "replaced":
        "a new start of the same worker took its place",
        "un nouveau démarrage du même worker a pris sa place";
    "restarted":
        "its worker was started again",
        "son worker a été redémarré";
    "slept":
        "its machine slept for {ms:duration}",
        "sa machine était en veille pendant {ms:duration}";
    "hub_slept":
        "the hub itself stood still for {ms:duration} (its machine slept or its clock was set)",
        "le hub lui-même s'est arrêté pendant {ms:duration} (veille de sa machine ou réglage de son horloge)";
    "not_seen":
        "it has not been seen since the hub started",
        "il n'a pas été vu depuis le démarrage du hub";
    "never_joined":
        "it has never joined",
        "il n'a jamais adhéré";

    "cannot_start":
        "`{program}` could not be started: {error}",
        "impossible de démarrer `{program}` : {error}";
    "program_missing":
        "`{program}` was not found on the node",
        "`{program}` est introuvable sur le nœud";
    "program_not_executable":
        "`{program}` cannot be executed on the node ({step}: {why})",
        "`{program}` ne peut pas être exécuté sur le nœud ({step} : {why})";
    "start_failed":
        "the node could not start `{program}` ({step}: {why})",
        "le nœud n'a pas pu démarrer `{program}` ({step} : {why})";
    "arguments_too_long":
        "its arguments are longer than the node can pass on",
        "ses arguments sont plus longs que ce que le nœud peut transmettre";
    "work_folder":
        "its work folder could not be made on the node: {why}",
        "son dossier de travail n'a pas pu être créé sur le nœud : {why}";
    "blob_mismatch":
        "a file arrived damaged at the node ({hash})",
        "un fichier est arrivé endommagé sur le nœud ({hash})";
    "blob_stalled":
        "a file did not arrive at the node ({hash})",
        "un fichier n'est pas arrivé sur le nœud ({hash})";
    "blob_missing":
        "the hub no longer has a file of it ({hash})",
        "le hub n'a plus un de ses fichiers ({hash})";
    "store_full":
        "the hub has no room for more output",
        "le hub n'a plus de place pour la sortie";
    "wall_limit":
        "stopped after {limit_ms:duration}",
        "arrêté après {limit_ms:duration}";
    "cancelled_by":
        "cancelled by {who}",
        "annulé par {who}";
    "lost_attempts":
        "its node was lost {count|once|# times}",
        "son nœud a été perdu {count|une fois|# fois}";
    "compile_failed":
        "the program did not compile",
        "le programme ne compile pas";
    "output_limit":
        "it printed more than {limit:bytes}",
        "il a écrit plus de {limit:bytes}";
    "files_failed":
        "its files could not be prepared on the node: {error}",
        "ses fichiers n'ont pas pu être préparés sur le nœud : {error}";
    "cage_failed":
        "the process that runs programs on the node died",
        "le processus qui exécute les programmes sur le nœud s'est arrêté";
    "client_gone":
        "the client that submitted it went away",
        "le client qui l'a soumis est parti";
    "stdin_lost":
        "what was typed into it was lost with its node",
        "ce qui lui a été saisi a été perdu avec son nœud";
    "worker_stopped":
        "its worker was stopped",
        "son worker a été arrêté";
    "queue_full":
        "the queue is full",
        "la file d'attente est pleine";
}

/// The reason as a phrase without a full stop.
pub fn reason(reason: &Reason, language: Language) -> String {
    match template(&reason.code, language) {
        Some(template) => fill(template, &reason.params, language),
        None => (crate::ruled_out::phrase(reason, language))
            .or_else(|| as_refusal(reason, language))
            .unwrap_or_else(|| fallback(&reason.code, &reason.params)),
    }
}

/// What was accepted and refused later (a file that is gone, a language that changed) has the refusal's code.
fn as_refusal(reason: &Reason, language: Language) -> Option<String> {
    let code = *RefusalCode::ALL.iter().find(|code| code.name() == reason.code)?;
    let sentence = crate::refusal(&Refusal { code, params: reason.params.clone() }, language);
    Some(sentence.trim_end_matches('.').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sentence::names;
    use std::collections::BTreeSet;

    /// The parameters that `core` and the shells give.
    const PARAMS: &[(&str, &[&str])] = &[
        ("no_free_slot", &["busy", "slots"]),
        ("no_node_fits", &["nodes"]),
        ("no_room", &["slots", "memory"]),
        ("reserved", &["job"]),
        ("after", &["jobs"]),
        ("after_failed", &["job"]),
        ("node_offline", &["node"]),
        ("node_probing", &["nodes"]),
        ("no_toolchain", &["lang", "tool"]),
        ("node_busy", &["node"]),
        ("node_draining", &["node"]),
        ("starting", &["node"]),
        ("node_lost", &["node", "attempt"]),
        ("node_stopped", &["node", "attempt"]),
        ("attempt_failed", &["node", "attempt"]),
        ("given_back", &["node", "attempt"]),
        ("not_started", &["node", "attempt"]),
        ("slept", &["ms"]),
        ("hub_slept", &["ms"]),
        ("silent", &["seconds"]),
        ("cannot_start", &["program", "error"]),
        ("program_missing", &["program"]),
        ("program_not_executable", &["program", "step", "why"]),
        ("start_failed", &["program", "step", "why"]),
        ("node_silent", &["node"]),
        ("work_folder", &["why"]),
        ("blob_mismatch", &["hash"]),
        ("blob_stalled", &["hash"]),
        ("blob_missing", &["hash"]),
        ("wall_limit", &["limit_ms"]),
        ("cancelled_by", &["who"]),
        ("lost_attempts", &["count"]),
        ("output_limit", &["limit"]),
        ("files_failed", &["error"]),
    ];

    // We want to know that every phrase uses exactly the parameters that come with its code, in each language, and that
    // no code is there twice.
    #[test]
    fn every_code_uses_its_parameters() {
        assert_eq!(CODES.iter().collect::<BTreeSet<_>>().len(), CODES.len());
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

    // We want to read some of them as a user does, and one that nobody knows.
    #[test]
    fn read_aloud() {
        let full = Reason::new("no_free_slot").with("busy", 4).with("slots", 4);
        assert_eq!(reason(&full, Language::English), "waiting for a free slot (4 of 4 in use)");
        let late = Reason::new("wall_limit").with("limit_ms", 180_000);
        assert_eq!(reason(&late, Language::French), "arrêté après 180 s");
        let lost = Reason::new("lost_attempts").with("count", 3);
        assert_eq!(reason(&lost, Language::English), "its node was lost 3 times");
        let refused = Reason::new("no_such_language").with("lang", "cobol").with("known", "c, python");
        assert!(reason(&refused, Language::English).contains("cobol"), "{}", reason(&refused, Language::English));
        let newer = Reason::new("eclipse").with("of", "the sun");
        assert_eq!(reason(&newer, Language::French), "eclipse: of=the sun");
    }
}
