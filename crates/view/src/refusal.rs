//! A sentence for every refusal: what failed, why, what to try.
//!
//! Every face calls [`refusal`]. Always true: each code of `proto` has a sentence in each language (the match is
//! exhaustive) that uses every parameter documented there (a test reads that page).
//! Deliberately not here: exit codes and HTTP statuses.

use crate::language::Language;
use crate::sentence::{fallback, fill};
use essaim_proto::{Refusal, RefusalCode};

macro_rules! sentences {
    ($($code:ident: $english:literal, $french:literal;)+) => {
        fn template(code: RefusalCode, language: Language) -> Option<&'static str> {
            match code {
                $(RefusalCode::$code => Some(language.pick($english, $french)),)+
                RefusalCode::Unknown => None,
            }
        }
    };
}

sentences! {
    UnknownFunction:
        "The other side does not know function {function}: it runs another version of essaim. Update the older one.",
        "L'autre côté ne connaît pas la fonction {function} : sa version d'essaim est différente. Mettez à jour la plus ancienne.";
    BadValue:
        "The message for function {function} could not be read. If both sides run the same version of essaim, please report this.",
        "Le message de la fonction {function} est illisible. Si les deux côtés ont la même version d'essaim, merci de le signaler.";
    Version:
        "The two sides share no protocol version: the other one speaks {min} to {max}. Update the older one.",
        "Les deux côtés n'ont aucune version du protocole en commun : l'autre parle {min} à {max}. Mettez à jour le plus ancien.";
    WrongKey:
        "The hub does not accept this key: it is unknown or was revoked. Ask whoever runs the hub for a new one (`essaim key create`).",
        "Le hub n'accepte pas cette clé : elle est inconnue ou révoquée. Demandez-en une à qui gère le hub (`essaim key create`).";
    NotAllowed:
        "This key may not do that: its role is {role}, and {needs} is needed.",
        "Cette clé n'en a pas le droit : son rôle est {role}, il faut {needs}.";
    WrongDoor:
        "This address is not meant for that: it is the hub's door for {door}. Check the port.",
        "Cette adresse ne sert pas à cela : c'est la porte du hub pour {door}. Vérifiez le port.";
    JoinUnknown:
        "The hub does not know this join line. Make a new one there with `essaim join-line`.",
        "Le hub ne connaît pas cette ligne d'adhésion. Créez-en une nouvelle avec `essaim join-line`.";
    JoinExpired:
        "This join line has expired. Make a new one with `essaim join-line`.",
        "Cette ligne d'adhésion a expiré. Créez-en une nouvelle avec `essaim join-line`.";
    JoinUsed:
        "This join line was used as often as it allows. Make a new one with `essaim join-line`.",
        "Cette ligne d'adhésion a servi autant de fois que permis. Créez-en une nouvelle avec `essaim join-line`.";
    NodeRevoked:
        "Node {node} was removed from this hub and may not come back with its old certificate. Let it join again with a new line (`essaim join-line`).",
        "Le nœud {node} a été retiré de ce hub et ne peut pas revenir avec son ancien certificat. Faites-le adhérer à nouveau (`essaim join-line`).";
    NameTaken:
        "A connected node is already called {node}. Choose another name for this one.",
        "Un nœud connecté s'appelle déjà {node}. Choisissez un autre nom pour celui-ci.";
    TooMany:
        "Too many: {what}. The hub allows {limit}. Wait until there are fewer, then try again.",
        "Trop nombreux : {what}. Le hub en permet {limit}. Attendez qu'il y en ait moins, puis réessayez.";
    TooLarge:
        "Too large: {what}. At most {limit} is allowed.",
        "Trop grand : {what}. Le maximum permis est {limit}.";
    NoSuchJob:
        "There is no job {job}, or it is not yours. `essaim job list` shows those that you may see.",
        "Le travail {job} n'existe pas ou n'est pas à vous. `essaim job list` montre ceux que vous pouvez voir.";
    NoSuchNode:
        "There is no node {node}.[ Did you mean {near}?] `essaim node list` shows all of them.",
        "Le nœud {node} n'existe pas.[ Vouliez-vous dire {near} ?] `essaim node list` les montre tous.";
    NoSuchKey:
        "There is no key called {key}. `essaim key list` shows all of them.",
        "Aucune clé ne s'appelle {key}. `essaim key list` les montre toutes.";
    KeyExists:
        "A key called {key} exists already. Choose another name, or revoke it first (`essaim key revoke {key}`).",
        "Une clé s'appelle déjà {key}. Choisissez un autre nom ou révoquez-la d'abord (`essaim key revoke {key}`).";
    UnknownLanguage:
        "The language of {file} is unknown.[ Known extensions: {known}.] Say it with `--lang`.",
        "Le langage de {file} est inconnu.[ Extensions connues : {known}.] Indiquez-le avec `--lang`.";
    NoSuchLanguage:
        "There is no language called {lang}.[ Known languages: {known}.]",
        "Aucun langage ne s'appelle {lang}.[ Langages connus : {known}.]";
    NoEntry:
        "Which file of the folder is the program cannot be told.[ It could be: {candidates}.] Name one of its files, or call it `main`.",
        "Impossible de savoir quel fichier du dossier est le programme.[ Candidats : {candidates}.] Nommez l'un d'eux ou appelez-le `main`.";
    NoToolchain:
        "No node can run {lang}: `{tool}` was {nodes|not found on the only connected node|found on none of the # connected nodes}. Install it there (`essaim node list` shows what each node has).",
        "Aucun nœud ne peut exécuter {lang} : `{tool}` est introuvable {nodes|sur le nœud connecté (#)|sur les # nœuds connectés}. Installez-le (`essaim node list` montre ce qu'a chaque nœud).";
    NoToolchainOnNode:
        "Node {node} cannot run {lang}: `{tool}` was not found there. Install it on {node}, or leave out `--on` to use another node.",
        "Le nœud {node} ne peut pas exécuter {lang} : `{tool}` y est introuvable. Installez-le sur {node} ou enlevez `--on` pour utiliser un autre nœud.";
    TooManyTasks:
        "{tasks} tasks are too many: {limit} are allowed. Submit them in parts.",
        "{tasks} tâches, c'est trop : {limit} sont autorisées. Soumettez-les par parties.";
    TaskQuota:
        "Key {key} may have {limit} waiting and running tasks and has {used}: {tasks} more are too many. Wait until some end, or ask an admin: `essaim key set {key} --queued-tasks N`.",
        "La clé {key} peut avoir {limit} tâches en attente ou en cours et en a {used} : {tasks} de plus, c'est trop. Attendez que certaines se terminent, ou demandez à un admin : `essaim key set {key} --queued-tasks N`.";
    ByteQuota:
        "Key {key} may keep {limit:bytes} of files on the hub and keeps {used:bytes}: {bytes:bytes} more are too many. Wait until some of its jobs end, or ask an admin: `essaim key set {key} --stored-bytes SIZE`.",
        "La clé {key} peut garder {limit:bytes} de fichiers sur le hub et en garde {used:bytes} : {bytes:bytes} de plus, c'est trop. Attendez que certains de ses travaux se terminent, ou demandez à un admin : `essaim key set {key} --stored-bytes TAILLE`.";
    RateLimited:
        "This key asks more often than it may: {limit|once|# times} a second. Try again in {retry_after_ms:duration}.",
        "Cette clé demande plus souvent que permis : {limit|une fois|# fois} par seconde. Réessayez dans {retry_after_ms:duration}.";
    NeedsTooMuch:
        "No connected node could ever run it.[ It needs {slots} slots and the largest node has {slots_best}.][ It needs {memory:bytes} of memory and the largest node offers {memory_best:bytes}.][ No node has the label {label}.] Ask for less, or let such a node join (`essaim join-line`).",
        "Aucun nœud connecté ne pourra jamais l'exécuter.[ Il lui faut {slots} emplacements et le plus grand nœud en a {slots_best}.][ Il lui faut {memory:bytes} de mémoire et le plus grand nœud en offre {memory_best:bytes}.][ Aucun nœud n'a l'étiquette {label}.] Demandez moins, ou faites adhérer un tel nœud (`essaim join-line`).";
    BadJob:
        "The job cannot be accepted: {field} is wrong ({why}).",
        "Le travail ne peut pas être accepté : {field} est incorrect ({why}).";
    NotifyNotAllowed:
        "The hub may not post to {url}. Its admin allows addresses by their beginning with the setting `notify_urls` (in the hub's essaim.toml: `notify_urls = \"http://host:8000/path\"`; then it is started again).",
        "Le hub ne peut rien envoyer à {url}. Son administrateur autorise les adresses par leur début avec le réglage `notify_urls` (dans le fichier essaim.toml du hub : `notify_urls = \"http://hôte:8000/chemin\"` ; puis on le redémarre).";
    BlobMissing:
        "A file of the job is not on the hub (hash {hash}): its upload did not finish. Run the command again.",
        "Un fichier du travail n'est pas sur le hub (empreinte {hash}) : son envoi ne s'est pas terminé. Relancez la commande.";
    BlobMismatch:
        "A file arrived with other bytes than announced (hash {hash}): it was changed while it was sent. Run the command again.",
        "Un fichier est arrivé avec un autre contenu qu'annoncé (empreinte {hash}) : il a changé pendant l'envoi. Relancez la commande.";
    JobEnded:
        "Job {job} has ended already: it is {state}.",
        "Le travail {job} est déjà terminé : son état est {state}.";
    NoStdin:
        "Job {job} does not read input while it runs: it was started without.",
        "Le travail {job} ne lit pas d'entrée pendant qu'il s'exécute : il a été lancé sans.";
    ShuttingDown:
        "The hub is shutting down and takes nothing new. Try again when it is back.",
        "Le hub s'arrête et n'accepte plus rien. Réessayez quand il sera revenu.";
    StoreFull:
        "The hub's store is full, so nothing new can be recorded. Free disk space on the hub's machine, then try again.",
        "Le stockage du hub est plein : rien de nouveau ne peut être enregistré. Libérez de l'espace sur la machine du hub, puis réessayez.";
    StoreError:
        "The hub could not record this: its store failed. The hub's log says why.",
        "Le hub n'a pas pu enregistrer la demande : son stockage a échoué. Le journal du hub dit pourquoi.";
    CannotListen:
        "The hub cannot open {address}: {why}. Choose another address or port.",
        "Le hub ne peut pas ouvrir {address} : {why}. Choisissez une autre adresse ou un autre port.";
    LastAdmin:
        "This is the last key that may administer the hub, so it cannot be revoked. Create another admin key first.",
        "C'est la dernière clé qui peut administrer le hub : elle ne peut pas être révoquée. Créez d'abord une autre clé admin.";
    NoLocalWorkers:
        "This hub starts no workers of its own: it was started with `essaim hub`. Start it with `essaim up` to have some.",
        "Ce hub ne démarre pas de workers lui-même : il a été lancé avec `essaim hub`. Lancez-le avec `essaim up` pour en avoir.";
}

/// The refusal as a sentence or two. A code of a newer version is shown as it is, with its parameters.
pub fn refusal(refusal: &Refusal, language: Language) -> String {
    match template(refusal.code, language) {
        Some(template) => fill(template, &refusal.params, language),
        None => fallback(refusal.code.name(), &refusal.params),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sentence::names;
    use std::collections::{BTreeMap, BTreeSet};

    /// What `proto` documents: the names in backquotes in front of each code.
    fn documented() -> BTreeMap<String, BTreeSet<String>> {
        let mut codes = BTreeMap::new();
        let mut params = BTreeSet::new();
        for line in include_str!("../../proto/src/refusal.rs").lines().map(str::trim) {
            if let Some(doc) = line.strip_prefix("///") {
                params.extend(doc.split('`').skip(1).step_by(2).map(str::to_owned));
            } else {
                if let Some((_, name)) = line.trim_end_matches("\";").split_once(" = \"") {
                    codes.insert(name.to_owned(), params.clone());
                }
                params.clear();
            }
        }
        codes
    }

    // We want to know that every code has a sentence in each language that uses exactly the documented parameters.
    #[test]
    fn every_code_has_its_sentences() {
        let documented = documented();
        for code in RefusalCode::ALL {
            let expected = documented.get(code.name()).expect("every code is documented");
            for language in Language::ALL {
                let template = template(*code, language).expect("every code has a sentence");
                let used: BTreeSet<String> = names(template).map(str::to_owned).collect();
                assert_eq!(&used, expected, "{} in {language:?}", code.name());
                assert!(template.ends_with(['.', ']']), "{template}");
            }
        }
    }

    // We want to know that every sentence shows the value of each of its parameters, and none of the template's marks.
    #[test]
    fn every_parameter_is_seen() {
        for code in RefusalCode::ALL {
            let params = &documented()[code.name()];
            let full = params.iter().enumerate().fold(Refusal::new(*code), |r, (n, name)| r.with(name, 70 + n));
            for language in Language::ALL {
                let text = refusal(&full, language);
                for n in 0..params.len() {
                    assert!(text.contains(&(70 + n).to_string()), "{text}");
                }
                assert!(!text.contains(['{', '}', '[', ']', '|', '#']), "{text}");
                assert!(refusal(&Refusal::new(*code), language).len() > 20);
            }
        }
    }

    // We want to read some of them as a user does.
    #[test]
    fn read_aloud() {
        let no_java = Refusal::new(RefusalCode::NoToolchain).with("lang", "Java").with("tool", "javac");
        assert_eq!(
            refusal(&no_java.clone().with("nodes", 3), Language::English),
            "No node can run Java: `javac` was found on none of the 3 connected nodes. Install it there (`essaim node \
             list` shows what each node has)."
        );
        assert_eq!(
            refusal(&no_java.with("nodes", 1), Language::French),
            "Aucun nœud ne peut exécuter Java : `javac` est introuvable sur le nœud connecté (1). Installez-le (`essaim \
             node list` montre ce qu'a chaque nœud)."
        );
        let near = Refusal::new(RefusalCode::NoSuchNode).with("node", "wbe1").with("near", "web1");
        assert_eq!(
            refusal(&near, Language::English),
            "There is no node wbe1. Did you mean web1? `essaim node list` shows all of them."
        );
        let newer = Refusal::new(RefusalCode::Unknown).with("why", "moon");
        assert_eq!(refusal(&newer, Language::English), "unknown: why=moon");
    }
}
