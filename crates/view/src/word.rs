//! One word per state, verdict and phase.
//!
//! Faces call it for lists. Always true: English is the word of the code with spaces; French is the same idea.
//! Deliberately not here: the words of JSON, which are the codes themselves in every language.

use crate::language::Language;
use essaim_proto::job::{JobState, Phase, TaskState, Verdict};
use essaim_proto::node::NodeState;

/// How a program ended, in a word or two.
pub fn verdict(verdict: Verdict, language: Language) -> &'static str {
    match verdict {
        Verdict::Ok => language.pick("ok", "réussi"),
        Verdict::RuntimeError => language.pick("runtime error", "erreur d'exécution"),
        Verdict::TimeLimit => language.pick("time limit", "limite de temps"),
        Verdict::MemoryLimit => language.pick("memory limit", "limite de mémoire"),
        Verdict::OutputLimit => language.pick("output limit", "limite de sortie"),
        Verdict::ProcessLimit => language.pick("process limit", "limite de processus"),
        Verdict::FileLimit => language.pick("file limit", "limite de fichiers"),
        Verdict::Forbidden => language.pick("forbidden", "interdit"),
        Verdict::CompileError => language.pick("compile error", "erreur de compilation"),
        Verdict::Cancelled => language.pick("cancelled", "annulé"),
        Verdict::Rejected => language.pick("rejected", "rejeté"),
        Verdict::Lost => language.pick("lost", "perdu"),
        Verdict::InternalError => language.pick("internal error", "erreur interne"),
    }
}

/// How a job stands.
pub fn job_state(state: JobState, language: Language) -> &'static str {
    match state {
        JobState::Queued => language.pick("queued", "en file"),
        JobState::Running => language.pick("running", "en cours"),
        JobState::Done => language.pick("done", "terminé"),
        JobState::Failed => language.pick("failed", "échoué"),
        JobState::Cancelled => language.pick("cancelled", "annulé"),
        JobState::Unknown => language.pick("unknown", "inconnu"),
    }
}

/// How a task stands.
pub fn task_state(state: TaskState, language: Language) -> &'static str {
    match state {
        TaskState::Waiting => language.pick("waiting", "en attente"),
        TaskState::Ready => language.pick("ready", "prêt"),
        TaskState::Placed => language.pick("placed", "placé"),
        TaskState::Running => language.pick("running", "en cours"),
        TaskState::Done => language.pick("done", "terminé"),
        TaskState::Failed => language.pick("failed", "échoué"),
        TaskState::Cancelled => language.pick("cancelled", "annulé"),
        TaskState::Unknown => language.pick("unknown", "inconnu"),
    }
}

/// How a node stands.
pub fn node_state(state: NodeState, language: Language) -> &'static str {
    match state {
        NodeState::Listed => language.pick("listed", "inscrit"),
        NodeState::Connecting => language.pick("connecting", "en connexion"),
        NodeState::Online => language.pick("online", "en ligne"),
        NodeState::Draining => language.pick("draining", "se vide"),
        NodeState::Suspect => language.pick("suspect", "suspect"),
        NodeState::Offline => language.pick("offline", "hors ligne"),
        NodeState::Stopped => language.pick("stopped", "arrêté"),
        NodeState::Unknown => language.pick("unknown", "inconnu"),
    }
}

/// What a program is doing.
pub fn phase(phase: Phase, language: Language) -> &'static str {
    match phase {
        Phase::Prepare => language.pick("preparing", "préparation"),
        Phase::Compile => language.pick("compiling", "compilation"),
        Phase::Run => language.pick("running", "exécution"),
        Phase::Unknown => language.pick("unknown", "inconnue"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // We want to know that our English words are those of the codes, so that people find what they read in the docs.
    #[test]
    fn english_is_the_code() {
        for state in [JobState::Queued, JobState::Running, JobState::Done, JobState::Failed, JobState::Cancelled] {
            assert_eq!(job_state(state, Language::English), state.name());
        }
        for state in [TaskState::Waiting, TaskState::Ready, TaskState::Placed, TaskState::Running] {
            assert_eq!(task_state(state, Language::English), state.name());
        }
        for state in [NodeState::Listed, NodeState::Online, NodeState::Suspect, NodeState::Stopped] {
            assert_eq!(node_state(state, Language::English), state.name());
        }
        for word in [Verdict::Ok, Verdict::RuntimeError, Verdict::ProcessLimit, Verdict::InternalError] {
            assert_eq!(verdict(word, Language::English), word.name().replace('_', " "));
        }
    }
}
