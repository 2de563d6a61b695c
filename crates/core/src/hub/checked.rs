//! What peers say about themselves, cut to size before it is kept.
//!
//! Called where a registration, a report or an end comes in. Always true: whatever a worker says, the views and records
//! made of it stay small, hold no control characters and no number that is none.
//! Deliberately not here: what a job may contain (`lang` refuses, it does not cut).

use crate::limits::{FACT_CHARS_MAX, LANGUAGES_MAX, REASON_CHARS_MAX, REASON_PARAMS_MAX};
use essaim_proto::job::{Reason, TaskResult};
use essaim_proto::node::{Facts, Load, Toolchain};

/// Addresses that are kept of a node: a machine with more is a router.
const ADDRESSES_MAX: usize = 32;

fn cut_to(text: &str, chars_max: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(chars_max).collect()
}

fn cut(text: String) -> String {
    cut_to(&text, FACT_CHARS_MAX)
}

pub(super) fn toolchains(toolchains: Vec<Toolchain>) -> Vec<Toolchain> {
    let cut_one = |t: Toolchain| Toolchain { lang: cut(t.lang), version: cut(t.version) };
    toolchains.into_iter().take(LANGUAGES_MAX).map(cut_one).collect()
}

pub(super) fn facts(facts: Facts) -> Facts {
    Facts {
        hostname: cut(facts.hostname),
        os: cut(facts.os),
        arch: cut(facts.arch),
        version: cut(facts.version),
        addresses: facts.addresses.into_iter().take(ADDRESSES_MAX).map(cut).collect(),
        ..facts
    }
}

pub(super) fn load(load: Load) -> Load {
    // Not a number stays itself in `clamp`, and JSON has no word for it.
    let cpu = if load.cpu.is_nan() { 0.0 } else { load.cpu.clamp(0.0, 1.0) };
    Load { cpu, ..load }
}

pub(super) fn result(result: TaskResult) -> TaskResult {
    TaskResult { isolation: cut(result.isolation), reason: result.reason.map(reason), ..result }
}

fn reason(reason: Reason) -> Reason {
    let params = reason.params.into_iter().take(REASON_PARAMS_MAX);
    let cut_one = |(name, value): (String, String)| (cut(name), cut_to(&value, REASON_CHARS_MAX));
    Reason { code: cut(reason.code), params: params.map(cut_one).collect() }
}
