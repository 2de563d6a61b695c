//! Limits of programs in words: their flags, their values, and what a hub has cut.
//!
//! Every face that shows a limit calls [`clamped`] or [`limit_value`]. Always true: one line, no full stop, because it stands
//! beside other things. Deliberately not here: which limits count (`core`), what a program ran into ([`crate::outcome`]).

use crate::language::Language;
use crate::units::{bytes, duration};
use essaim_proto::job::{Clamped, Limit};

/// The flag that asks for it.
pub fn limit_flag(limit: Limit) -> &'static str {
    match limit {
        Limit::Time => "--time",
        Limit::CpuTime => "--cpu-time",
        Limit::Memory => "--mem",
        Limit::Processes => "--procs",
        Limit::Output => "--output-limit",
        Limit::FileSize => "--file-size",
        Limit::Disk => "--disk",
        Limit::Unknown => "?",
    }
}

/// A value in the limit's own unit, such as `2 GiB`; the largest number of all is no limit.
pub fn limit_value(limit: Limit, value: u64, language: Language) -> String {
    match limit {
        _ if value == u64::MAX => language.pick("no limit", "sans limite").to_owned(),
        Limit::Time | Limit::CpuTime => duration(value),
        Limit::Processes | Limit::Unknown => value.to_string(),
        Limit::Memory | Limit::Output | Limit::FileSize | Limit::Disk => bytes(value),
    }
}

/// What a hub has cut, such as `--mem 8 GiB is more than this hub gives: 1 GiB is the limit`.
pub fn clamped(cut: &Clamped, language: Language) -> String {
    let value = |value| limit_value(cut.limit, value, language);
    let (flag, asked, given) = (limit_flag(cut.limit), value(cut.asked), value(cut.given));
    match language {
        Language::English => format!("{flag} {asked} is more than this hub gives: {given} is the limit"),
        Language::French => format!("{flag} {asked} dépasse ce que ce hub accorde : la limite est {given}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // We want to read it in each unit and language.
    #[test]
    fn read_aloud() {
        let cut = |limit, asked, given, language| clamped(&Clamped { limit, asked, given }, language);
        assert_eq!(
            cut(Limit::Memory, 8 << 30, 1 << 30, Language::English),
            "--mem 8 GiB is more than this hub gives: 1 GiB is the limit"
        );
        assert_eq!(
            cut(Limit::CpuTime, 90_000, 2_000, Language::French),
            format!(
                "--cpu-time {} dépasse ce que ce hub accorde : la limite est {}",
                duration(90_000),
                duration(2_000)
            )
        );
        assert_eq!(limit_value(Limit::Processes, 32, Language::English), "32");
        assert_eq!(limit_value(Limit::Disk, u64::MAX, Language::English), "no limit");
    }
}
