//! Names and meanings of signals.
//!
//! `outcome` and faces call it. Numbers are those of Linux on x86-64 and ARM (signal(7)): they travel as the worker saw
//! them. Deliberately not here: real-time signals, which have no names of their own.

use crate::language::Language;

const NAMES: [&str; 31] = [
    "SIGHUP",
    "SIGINT",
    "SIGQUIT",
    "SIGILL",
    "SIGTRAP",
    "SIGABRT",
    "SIGBUS",
    "SIGFPE",
    "SIGKILL",
    "SIGUSR1",
    "SIGSEGV",
    "SIGUSR2",
    "SIGPIPE",
    "SIGALRM",
    "SIGTERM",
    "SIGSTKFLT",
    "SIGCHLD",
    "SIGCONT",
    "SIGSTOP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGXCPU",
    "SIGXFSZ",
    "SIGVTALRM",
    "SIGPROF",
    "SIGWINCH",
    "SIGIO",
    "SIGPWR",
    "SIGSYS",
];

/// The signal's name, such as `SIGSEGV`; nothing for numbers that have none.
pub fn signal_name(signal: i32) -> Option<&'static str> {
    let index = usize::try_from(signal.checked_sub(1)?).ok()?;
    NAMES.get(index).copied()
}

/// What a signal that ends programs means, in a few words; nothing when its name says all there is to say.
pub fn signal_meaning(signal: i32, language: Language) -> Option<&'static str> {
    Some(match signal_name(signal)? {
        "SIGHUP" => language.pick("terminal closed", "terminal fermé"),
        "SIGINT" => language.pick("interrupted", "interrompu"),
        "SIGILL" => language.pick("illegal instruction", "instruction illégale"),
        "SIGABRT" => language.pick("aborted itself", "abandon par le programme"),
        "SIGBUS" => language.pick("bad memory access", "accès mémoire invalide"),
        "SIGFPE" => language.pick(
            "arithmetic error, such as a division by zero",
            "erreur arithmétique, par exemple une division par zéro",
        ),
        "SIGKILL" => language.pick("killed from outside", "tué de l'extérieur"),
        "SIGSEGV" => language.pick("segmentation fault", "erreur de segmentation"),
        "SIGPIPE" => language.pick("nobody reads its output", "personne ne lit sa sortie"),
        "SIGALRM" => language.pick("its own alarm", "sa propre alarme"),
        "SIGTERM" => language.pick("asked to end", "prié de s'arrêter"),
        "SIGXCPU" => language.pick("too much CPU time", "trop de temps processeur"),
        "SIGXFSZ" => language.pick("too large a file", "fichier trop grand"),
        "SIGSYS" => language.pick("forbidden system call", "appel système interdit"),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // We want to know that the table did not slip: the numbers that everybody knows by heart.
    #[test]
    fn well_known_numbers() {
        let known = [(1, "SIGHUP"), (6, "SIGABRT"), (9, "SIGKILL"), (11, "SIGSEGV"), (15, "SIGTERM"), (19, "SIGSTOP")];
        for (signal, name) in known.into_iter().chain([(24, "SIGXCPU"), (25, "SIGXFSZ"), (31, "SIGSYS")]) {
            assert_eq!(signal_name(signal), Some(name));
        }
        for signal in [0, -1, 32, 64, i32::MIN, i32::MAX] {
            assert_eq!(signal_name(signal), None);
            assert_eq!(signal_meaning(signal, Language::English), None);
        }
    }
}
