//! How a task ended, in one line for a terminal or a list.
//!
//! Every face calls [`outcome`]. Always true: one line, no full stop, the verdict first unless a signal says more.
//! Deliberately not here: how long it took and how much it used (columns of their own), and exit codes.

use crate::language::Language;
use crate::limit::limit_flag;
use crate::reason::reason;
use crate::signal::{signal_meaning, signal_name};
use crate::units::{bytes, duration};
use crate::word::verdict;
use essaim_proto::job::{Limit, Phase, TaskResult, Verdict};

/// One line such as `runtime error: exit code 3`, `killed by SIGSEGV (segmentation fault)`,
/// `time limit: stopped after 180 s`, `compile error`, `ok`.
pub fn outcome(result: &TaskResult, language: Language) -> String {
    let word = verdict(result.verdict, language);
    let detail = result.reason.as_ref().map(|why| reason(why, language));
    match result.verdict {
        Verdict::Ok => word.to_owned(),
        // The reason of a compile error says the same once more.
        Verdict::CompileError => word.to_owned(),
        // "cancelled: cancelled by ann" says it twice.
        Verdict::Cancelled => match (&result.reason, detail) {
            (Some(why), Some(detail)) if why.code == "cancelled_by" => detail,
            (_, detail) => with_detail(word, language, detail),
        },
        Verdict::RuntimeError => match (detail, result.signal, result.exit_code) {
            (Some(detail), _, _) => with_detail(word, language, Some(detail)),
            (None, Some(signal), _) => killed(signal, language),
            (None, None, Some(code)) => {
                format!("{word}{} {code}", language.pick(": exit code", " : code de sortie"))
            }
            (None, None, None) => word.to_owned(),
        },
        Verdict::TimeLimit => {
            let line = with_detail(word, language, detail.or_else(|| Some(stopped_after(result.wall_ms, language))));
            with_flag(line, result, language)
        }
        Verdict::OutputLimit => with_flag(with_detail(word, language, detail), result, language),
        Verdict::MemoryLimit => {
            with_detail(word, language, detail.or_else(|| used_memory(result.memory_peak_bytes, language)))
        }
        _ => with_detail(word, language, detail),
    }
}

fn with_detail(word: &str, language: Language, detail: Option<String>) -> String {
    match detail {
        Some(detail) => format!("{word}{} {detail}", language.pick(":", " :")),
        None => word.to_owned(),
    }
}

/// Behind a limit that the job may ask for: with which word. What a compiler may use is not the job's to say.
fn with_flag(line: String, result: &TaskResult, language: Language) -> String {
    let limit = match result.reason.as_ref().map(|why| why.code.as_str()) {
        Some("wall_limit") => Limit::Time,
        Some("output_limit") => Limit::Output,
        _ => return line,
    };
    if result.phase != Phase::Run {
        return line;
    }
    format!("{line} ({} {})", limit_flag(limit), language.pick("allows more", "permet davantage"))
}

fn killed(signal: i32, language: Language) -> String {
    let by = language.pick("killed by", "tué par");
    match (signal_name(signal), signal_meaning(signal, language)) {
        (Some(name), Some(meaning)) => format!("{by} {name} ({meaning})"),
        (Some(name), None) => format!("{by} {name}"),
        _ => format!("{by} {} {signal}", language.pick("signal", "le signal")),
    }
}

fn stopped_after(wall_ms: u64, language: Language) -> String {
    format!("{} {}", language.pick("stopped after", "arrêté après"), duration(wall_ms))
}

fn used_memory(peak_bytes: u64, language: Language) -> Option<String> {
    (peak_bytes > 0).then(|| format!("{} {}", language.pick("it reached", "il a atteint"), bytes(peak_bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use essaim_proto::job::Reason;

    fn ended(verdict: Verdict) -> TaskResult {
        TaskResult { verdict, ..TaskResult::default() }
    }

    fn english(result: TaskResult) -> String {
        outcome(&result, Language::English)
    }

    // We want to read the line of each kind of end.
    #[test]
    fn read_aloud() {
        let failed = TaskResult { exit_code: Some(3), ..ended(Verdict::RuntimeError) };
        assert_eq!(outcome(&failed, Language::French), "erreur d'exécution : code de sortie 3");
        assert_eq!(english(failed), "runtime error: exit code 3");
        let crashed = TaskResult { signal: Some(11), ..ended(Verdict::RuntimeError) };
        assert_eq!(english(crashed), "killed by SIGSEGV (segmentation fault)");
        assert_eq!(english(TaskResult { signal: Some(40), ..ended(Verdict::RuntimeError) }), "killed by signal 40");
        assert_eq!(english(TaskResult { signal: Some(10), ..ended(Verdict::RuntimeError) }), "killed by SIGUSR1");
        let late = Reason::new("wall_limit").with("limit_ms", 180_000);
        let late = TaskResult { signal: Some(9), reason: Some(late), wall_ms: 180_020, ..ended(Verdict::TimeLimit) };
        assert_eq!(english(late), "time limit: stopped after 180 s");
        let flood = Reason::new("output_limit").with("limit", 1 << 20);
        let flood = TaskResult { phase: Phase::Run, reason: Some(flood), ..ended(Verdict::OutputLimit) };
        assert_eq!(english(flood.clone()), "output limit: it printed more than 1 MiB (--output-limit allows more)");
        let compiler = TaskResult { phase: Phase::Compile, ..flood };
        assert_eq!(english(compiler), "output limit: it printed more than 1 MiB");
        assert_eq!(
            english(TaskResult { wall_ms: 2_000, ..ended(Verdict::TimeLimit) }),
            "time limit: stopped after 2 s"
        );
        assert_eq!(english(TaskResult { exit_code: Some(1), ..ended(Verdict::CompileError) }), "compile error");
        assert_eq!(english(TaskResult { exit_code: Some(0), ..ended(Verdict::Ok) }), "ok");
        let peak = TaskResult { memory_peak_bytes: 256 << 20, ..ended(Verdict::MemoryLimit) };
        assert_eq!(english(peak), "memory limit: it reached 256 MiB");
        let by =
            TaskResult { reason: Some(Reason::new("cancelled_by").with("who", "ann")), ..ended(Verdict::Cancelled) };
        assert_eq!(english(by), "cancelled by ann");
        let gone = TaskResult { reason: Some(Reason::new("client_gone")), ..ended(Verdict::Cancelled) };
        assert_eq!(english(gone), "cancelled: the client that submitted it went away");
        let lost = TaskResult { reason: Some(Reason::new("lost_attempts").with("count", 3)), ..ended(Verdict::Lost) };
        assert_eq!(english(lost), "lost: its node was lost 3 times");
        assert_eq!(english(ended(Verdict::InternalError)), "internal error");
    }
}
