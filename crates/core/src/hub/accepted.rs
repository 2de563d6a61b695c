//! What was accepted of a job: the part that never changes while it waits and runs, in little memory.
//!
//! [`super::durable`] keeps one for each job, made once with the record and shared by every durable part that applies it:
//! a hub has two, and a hundred thousand jobs may wait. Always true: what lists, turns and placement look at is at hand;
//! the rest of a description is packed and costs a few microseconds when somebody needs it; what many jobs have in common
//! is there once.
//! Deliberately not here: how a job stands ([`super::job`]), how a description is written in the journal ([`super::record`]).

use super::queue::Class;
use crate::limits::NOTICE_ERROR_CHARS_MAX;
use essaim_proto::job::{ArraySpec, Clamped, FileSpec, JobKind, JobSpec, Limits, Needs, StdinSpec};
use essaim_proto::{JobId, KeyName, NodeName, SubmitKey};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a job's description costs beside its words, in bytes: its places in the maps and the fixed fields.
const JOB_BYTES: usize = 1_024;

/// What one word or one file of a description costs beside its text, in bytes.
const WORD_BYTES: usize = 32;
const FILE_BYTES: usize = 128;

/// Bytes of small files that a job keeps when it is over, so that it can be run again.
const INLINE_KEPT_BYTES: usize = 8 << 10;

/// A description that costs more than this is not packed: beside its words little would be saved, and to unpack it would
/// take long.
const PACKED_BYTES_MAX: usize = 4 << 10;
const _: () = assert!(PACKED_BYTES_MAX <= u16::MAX as usize);

/// The part of a job that does not change.
#[derive(Debug, Clone, PartialEq)]
pub struct Accepted {
    kind: Arc<Kind>,
    /// The client's own key for it.
    pub key: SubmitKey,
    /// When it was accepted, in milliseconds since 1970.
    pub submitted_ms: u64,
    words: Words,
    /// About what the description costs in memory, for the limits.
    cost_bytes: u32,
    /// How much of the packed words is the name.
    name_bytes: u16,
    has_files: bool,
}

/// What many jobs have in common, and what only few have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kind {
    pub(super) owner: KeyName,
    pub(super) class: Arc<Class>,
    pub(super) priority: i32,
    pub(super) retry: u32,
    pub(super) is_ephemeral: bool,
    pub(super) after: Vec<JobId>,
    pub(super) notify: Option<String>,
}

/// A description.
#[derive(Debug, Clone, PartialEq)]
enum Words {
    /// The name, then the rest as [`Brief`] writes it.
    Packed(Box<[u8]>),
    /// Of an array, which is read for each batch of its tasks, or a large one.
    Whole(Arc<JobSpec>),
}

/// How [`JobSpec`] is packed: short names, and nothing of what is as usual. In memory only, so that it may change.
#[derive(Serialize, Deserialize)]
#[serde(remote = "JobSpec", default = "JobSpec::default")]
struct Brief {
    /// Before the rest, to be read without it.
    #[serde(skip)]
    name: String,
    #[serde(rename = "k", skip_serializing_if = "is_usual")]
    kind: JobKind,
    #[serde(rename = "l", skip_serializing_if = "is_usual")]
    lang: Option<String>,
    #[serde(rename = "e", skip_serializing_if = "is_usual")]
    entry: String,
    #[serde(rename = "f", skip_serializing_if = "is_usual")]
    files: Vec<FileSpec>,
    #[serde(rename = "a", skip_serializing_if = "is_usual")]
    args: Vec<String>,
    #[serde(rename = "v", skip_serializing_if = "is_usual")]
    env: BTreeMap<String, String>,
    #[serde(rename = "i", skip_serializing_if = "is_usual")]
    stdin: StdinSpec,
    #[serde(rename = "o", skip_serializing_if = "is_usual")]
    on: Option<NodeName>,
    #[serde(rename = "m", skip_serializing_if = "is_usual")]
    limits: Limits,
    #[serde(rename = "c", skip_serializing_if = "is_usual")]
    clamped: Vec<Clamped>,
    #[serde(rename = "x", skip_serializing_if = "is_usual")]
    ephemeral: bool,
    #[serde(rename = "t", skip_serializing_if = "is_usual")]
    array: Option<Box<ArraySpec>>,
    #[serde(rename = "n", skip_serializing_if = "is_usual")]
    needs: Needs,
    #[serde(rename = "p", skip_serializing_if = "is_usual")]
    priority: i32,
    #[serde(rename = "r", skip_serializing_if = "is_usual")]
    retry: u32,
    #[serde(rename = "w", skip_serializing_if = "is_usual")]
    after: Vec<JobId>,
    #[serde(rename = "u", skip_serializing_if = "is_usual")]
    notify: Option<String>,
}

fn is_usual<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[derive(Serialize)]
struct ToPack<'a>(#[serde(with = "Brief")] &'a JobSpec);

#[derive(Deserialize)]
struct Unpacked(#[serde(with = "Brief")] JobSpec);

fn pack(spec: &JobSpec) -> Box<[u8]> {
    let rest = essaim_proto::encode(&ToPack(spec));
    let mut packed = Vec::with_capacity(spec.name.len() + rest.len());
    packed.extend_from_slice(spec.name.as_bytes());
    packed.extend_from_slice(&rest);
    packed.into_boxed_slice()
}

fn unpack(name: &str, rest: &[u8]) -> JobSpec {
    let Unpacked(spec) = essaim_proto::decode(rest).expect("what was packed here can be unpacked");
    JobSpec { name: name.to_owned(), ..spec }
}

/// The files of a job and of the lines of its tasks.
pub(super) fn files(spec: &JobSpec) -> impl Iterator<Item = &FileSpec> {
    spec.files.iter().chain(spec.array.iter().filter_map(|array| array.lines.as_ref()))
}

fn inline(file: &FileSpec) -> usize {
    file.inline.as_ref().map_or(0, |bytes| bytes.len())
}

/// About what a description costs in memory when it is whole.
fn cost(spec: &JobSpec) -> usize {
    let words = spec.args.iter().map(|arg| arg.len() + WORD_BYTES).sum::<usize>();
    let variables = spec.env.iter().map(|(name, value)| name.len() + value.len() + 2 * WORD_BYTES).sum::<usize>();
    let files = spec.files.iter().map(|file| file.path.len() + inline(file) + FILE_BYTES).sum::<usize>();
    let lines = spec.array.as_ref().and_then(|array| array.lines.as_ref()).map_or(0, inline);
    let notify = spec.notify.as_ref().map_or(0, |url| url.len() + NOTICE_ERROR_CHARS_MAX);
    JOB_BYTES + notify + spec.name.len() + spec.entry.len() + words + variables + files + lines
}

impl Accepted {
    /// A job of this owner, not yet shared with those that have much in common with it ([`Kinds`]).
    pub(super) fn new(owner: KeyName, key: SubmitKey, spec: &Arc<JobSpec>, submitted_ms: u64) -> Accepted {
        let class = Arc::new(Class::of_spec(spec, spec.lang.clone()));
        let JobSpec { priority, retry, ephemeral: is_ephemeral, .. } = **spec;
        let (after, notify) = (spec.after.clone(), spec.notify.clone());
        let kind = Kind { owner, class, priority, retry, is_ephemeral, after, notify };
        Accepted::of_kind(Arc::new(kind), key, spec, submitted_ms)
    }

    fn of_kind(kind: Arc<Kind>, key: SubmitKey, spec: &Arc<JobSpec>, submitted_ms: u64) -> Accepted {
        let cost_bytes = cost(spec);
        let is_whole = spec.array.is_some() || cost_bytes > PACKED_BYTES_MAX;
        Accepted {
            kind,
            key,
            submitted_ms,
            words: if is_whole { Words::Whole(spec.clone()) } else { Words::Packed(pack(spec)) },
            // What a message holds is far below this.
            cost_bytes: u32::try_from(cost_bytes).unwrap_or(u32::MAX),
            // One that is longer is not packed.
            name_bytes: u16::try_from(spec.name.len()).unwrap_or(u16::MAX),
            has_files: files(spec).next().is_some(),
        }
    }

    /// Whose key.
    pub fn owner(&self) -> &KeyName {
        &self.kind.owner
    }

    /// Shown in lists.
    pub fn name(&self) -> &str {
        match &self.words {
            Words::Packed(packed) => name_in(packed, self.name_bytes),
            Words::Whole(spec) => &spec.name,
        }
    }

    /// What was submitted. That of a single job is unpacked for it: whoever needs more than one field asks once.
    pub fn spec(&self) -> Cow<'_, JobSpec> {
        match &self.words {
            Words::Packed(packed) => {
                let name = name_in(packed, self.name_bytes);
                Cow::Owned(unpack(name, &packed[name.len()..]))
            }
            Words::Whole(spec) => Cow::Borrowed(spec),
        }
    }

    /// What its tasks need.
    pub(super) fn class(&self) -> &Arc<Class> {
        &self.kind.class
    }

    /// Goes before jobs of a lower one.
    pub(super) fn priority(&self) -> i32 {
        self.kind.priority
    }

    /// Tries after failures.
    pub(super) fn retry(&self) -> u32 {
        self.kind.retry
    }

    /// Does it live no longer than its client?
    pub(super) fn is_ephemeral(&self) -> bool {
        self.kind.is_ephemeral
    }

    /// Jobs that it names to wait for.
    pub(super) fn after(&self) -> &[JobId] {
        &self.kind.after
    }

    /// Where its end is posted.
    pub(super) fn notify(&self) -> Option<&str> {
        self.kind.notify.as_deref()
    }

    /// Has it a file?
    pub(super) fn has_files(&self) -> bool {
        self.has_files
    }

    /// About what the description costs in memory.
    pub(super) fn cost_bytes(&self) -> usize {
        self.cost_bytes as usize
    }

    /// The same, as it is kept of a job that is over, if that is something else: little stays for another run; of much
    /// only names and hashes stay.
    pub(super) fn shortened(&self) -> Option<Accepted> {
        if !self.has_files || self.cost_bytes() <= INLINE_KEPT_BYTES {
            return None;
        }
        let spec = self.spec();
        if spec.files.iter().map(inline).sum::<usize>() <= INLINE_KEPT_BYTES {
            return None;
        }
        let mut spec = spec.into_owned();
        spec.files.iter_mut().for_each(|file| file.inline = None);
        Some(Accepted::of_kind(self.kind.clone(), self.key, &Arc::new(spec), self.submitted_ms))
    }
}

fn name_in(packed: &[u8], bytes: u16) -> &str {
    packed.get(..usize::from(bytes)).and_then(|name| std::str::from_utf8(name).ok()).unwrap_or_default()
}

/// The kinds of all jobs that are listed, and how many jobs are of each. Derived.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Kinds(BTreeMap<Arc<Kind>, usize>);

impl Kinds {
    /// The same, of a kind that other jobs are of too, if there are any.
    pub(super) fn share(&self, accepted: Accepted) -> Accepted {
        match self.0.get_key_value(&accepted.kind) {
            Some((kind, _)) => Accepted { kind: kind.clone(), ..accepted },
            None => accepted,
        }
    }

    /// One more job is listed; as it is to be kept.
    pub(super) fn add(&mut self, accepted: &Arc<Accepted>) -> Arc<Accepted> {
        let known = self.0.get_key_value(&accepted.kind).map(|(kind, _)| kind.clone());
        let kind = known.unwrap_or_else(|| accepted.kind.clone());
        *self.0.entry(kind.clone()).or_default() += 1;
        if Arc::ptr_eq(&kind, &accepted.kind) {
            return accepted.clone();
        }
        // It comes from the disk.
        Arc::new(Accepted { kind, ..Accepted::clone(accepted) })
    }

    /// It is no longer listed.
    pub(super) fn remove(&mut self, accepted: &Accepted) {
        let Some(jobs) = self.0.get_mut(&accepted.kind) else { return };
        *jobs -= 1;
        if *jobs == 0 {
            self.0.remove(&accepted.kind);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use essaim_proto::BlobHash;

    fn everything() -> JobSpec {
        let inline = Some(serde_bytes::ByteBuf::from(vec![0, 255, 7]));
        let file =
            FileSpec { path: "a/é.py".into(), hash: BlobHash([9; 32]), size_bytes: 3, executable: true, inline };
        let named = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
        JobSpec {
            name: "nom 🐝".into(),
            kind: JobKind::Command,
            lang: Some("python".into()),
            entry: "a/é.py".into(),
            files: vec![file, FileSpec::default()],
            args: vec![String::new(), "x".repeat(300)],
            env: named("A", "b"),
            stdin: StdinSpec::Live,
            on: Some("node-1".parse().unwrap()),
            limits: Limits { wall_ms: Some(5), ..Limits::default() },
            clamped: vec![Clamped { asked: 6, given: 5, ..Clamped::default() }],
            ephemeral: true,
            array: None,
            needs: Needs { cpus: 3, memory_bytes: 1 << 30, labels: named("gpu", "a100") },
            priority: -7,
            retry: 2,
            after: vec![JobId(1), JobId(u64::MAX)],
            notify: Some("https://example.org/a".into()),
        }
    }

    fn accepted(spec: &JobSpec) -> Accepted {
        Accepted::new("me".parse().unwrap(), SubmitKey([1; 16]), &Arc::new(spec.clone()), 5)
    }

    // Does packing lose anything? A description where no field is as usual, one where each is, and what is never packed.
    #[test]
    fn what_is_packed_is_unpacked_as_it_was() {
        let array = Some(Box::new(ArraySpec { tasks: essaim_proto::TaskSet::span(1, 9), lines: None }));
        let packed = [everything(), JobSpec::default(), JobSpec { name: String::new(), ..everything() }];
        let whole = [JobSpec { array, ..everything() }, JobSpec { args: vec!["y".repeat(9_000)], ..everything() }];
        for (specs, is_packed) in [(&packed[..], true), (&whole[..], false)] {
            for spec in specs {
                let accepted = accepted(spec);
                assert_eq!(matches!(accepted.words, Words::Packed(_)), is_packed, "{spec:?}");
                assert_eq!(*accepted.spec(), *spec);
                assert_eq!((accepted.name(), accepted.after()), (spec.name.as_str(), spec.after.as_slice()));
                assert_eq!((accepted.notify(), accepted.priority()), (spec.notify.as_deref(), spec.priority));
                assert_eq!((accepted.retry(), accepted.is_ephemeral()), (spec.retry, spec.ephemeral));
            }
        }
    }

    // What a hundred thousand jobs of one user cost: does a short description become short, and is what they have in
    // common there once, also when each comes from the disk by itself?
    #[test]
    fn what_waits_is_small() {
        assert!(size_of::<Accepted>() <= 56, "{}", size_of::<Accepted>());
        let args = vec!["/bin/true".to_owned(), "7".repeat(200)];
        let spec = JobSpec { name: "/bin/true".into(), kind: JobKind::Command, args, ..JobSpec::default() };
        let Words::Packed(packed) = accepted(&spec).words else { panic!("it is not packed") };
        assert!(packed.len() <= 250, "{}", packed.len());
        let mut kinds = Kinds::default();
        let [first, second] = [(); 2].map(|()| kinds.add(&Arc::new(accepted(&spec))));
        assert!(Arc::ptr_eq(&first.kind, &second.kind));
        let other = kinds.add(&Arc::new(accepted(&JobSpec { priority: 1, ..spec })));
        assert!(!Arc::ptr_eq(&first.kind, &other.kind));
        [first, other].iter().for_each(|gone| kinds.remove(gone));
        assert_eq!(kinds.0.into_iter().collect::<Vec<_>>(), [(second.kind.clone(), 1)]);
    }

    // Of what a job that is over carried itself little is kept, of much nothing; its names stay.
    #[test]
    fn much_is_not_kept_for_another_run() {
        let with = |bytes: usize| {
            let inline = Some(serde_bytes::ByteBuf::from(vec![7; bytes]));
            JobSpec { files: vec![FileSpec { path: "main.py".into(), inline, ..FileSpec::default() }], ..everything() }
        };
        assert_eq!(accepted(&with(INLINE_KEPT_BYTES)).shortened(), None);
        assert_eq!(accepted(&JobSpec { args: vec!["y".repeat(9_000)], ..everything() }).shortened(), None);
        let shortened = accepted(&with(INLINE_KEPT_BYTES + 1)).shortened().unwrap();
        let mut spec = with(0);
        spec.files[0].inline = None;
        assert_eq!(shortened, accepted(&spec));
    }
}
