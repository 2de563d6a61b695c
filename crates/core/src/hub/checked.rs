//! What peers say about themselves, cut to size before it is kept.
//!
//! Called where a registration, a report or an end comes in. Always true: whatever a worker says, the views and records
//! made of it stay small, hold no control characters and no number that is none.
//! Deliberately not here: what a job may contain (`lang` refuses, it does not cut).

use crate::limits::{
    FACT_CHARS_MAX, LANGUAGES_MAX, PRIORITY_MAX, REASON_CHARS_MAX, REASON_PARAMS_MAX, RETRY_MAX, SLOTS_MAX,
};
use essaim_proto::job::{Isolation, JobSpec, Reason, StdinSpec, TaskResult};
use essaim_proto::limits::{AFTER_MAX, BLOB_BYTES_MAX, INLINE_BYTES_MAX, LABELS_MAX, TASK_RANGES_MAX};
use essaim_proto::node::{Facts, Load, Toolchain};
use essaim_proto::{Refusal, RefusalCode, TaskId};
use std::collections::BTreeMap;

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

/// Labels as their owner gave them, the first ones.
pub(super) fn labels(labels: BTreeMap<String, String>) -> BTreeMap<String, String> {
    labels.into_iter().take(LABELS_MAX).map(|(name, value)| (cut(name), cut(value))).collect()
}

/// May a job ask for this?
///
/// # Errors
/// `bad_job`, `too_large`.
pub(super) fn tasks(spec: &JobSpec) -> Result<(), Refusal> {
    let bad = |field: &str, why: &str| Err(Refusal::new(RefusalCode::BadJob).with("field", field).with("why", why));
    let too_large =
        |what: &str, limit: usize| Err(Refusal::new(RefusalCode::TooLarge).with("what", what).with("limit", limit));
    if spec.needs.cpus > SLOTS_MAX {
        return too_large("cpus", SLOTS_MAX as usize);
    }
    if spec.needs.labels.len() > LABELS_MAX {
        return too_large("labels", LABELS_MAX);
    }
    if spec.needs.labels.iter().any(|(name, value)| name.len() + value.len() > FACT_CHARS_MAX) {
        return too_large("a label", FACT_CHARS_MAX);
    }
    if spec.priority.abs() > PRIORITY_MAX {
        return too_large("priority", PRIORITY_MAX as usize);
    }
    if spec.retry > RETRY_MAX {
        return too_large("retry", RETRY_MAX as usize);
    }
    if spec.after.len() > AFTER_MAX {
        return too_large("jobs to wait for", AFTER_MAX);
    }
    let Some(array) = &spec.array else { return Ok(()) };
    if array.tasks.is_empty() {
        return bad("array", "it has no task");
    }
    // What the tasks of a rerun were gathered from.
    if array.tasks.ranges() > TASK_RANGES_MAX {
        return too_large("ranges of tasks", TASK_RANGES_MAX);
    }
    if spec.stdin != StdinSpec::Empty {
        return bad("stdin", "the tasks of an array read nothing");
    }
    match &array.lines {
        Some(_) if array.tasks.contains(TaskId(0)) => {
            bad("array", "lines are counted from 1, there is none for task 0")
        }
        Some(lines) if lines.size_bytes > BLOB_BYTES_MAX => too_large("lines", BLOB_BYTES_MAX as usize),
        Some(lines) => match &lines.inline {
            Some(bytes) if bytes.len() as u64 != lines.size_bytes || bytes.len() as u64 > INLINE_BYTES_MAX => {
                bad("lines", "the file is not what it says")
            }
            _ => Ok(()),
        },
        None => Ok(()),
    }
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

/// In place: there are millions of them, and hardly one has anything to cut.
pub(super) fn result(result: &mut TaskResult) {
    if let Isolation::Other(word) = &result.isolation {
        result.isolation = Isolation::from(cut_to(word, FACT_CHARS_MAX).as_str());
    }
    if let Some(said) = result.reason.take() {
        result.reason = Some(reason(said));
    }
}

fn reason(reason: Reason) -> Reason {
    let params = reason.params.into_iter().take(REASON_PARAMS_MAX);
    let cut_one = |(name, value): (String, String)| (cut(name), cut_to(&value, REASON_CHARS_MAX));
    Reason { code: cut(reason.code), params: params.map(cut_one).collect() }
}
