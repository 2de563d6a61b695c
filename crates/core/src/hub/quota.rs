//! How much each key uses, and how much it may.
//!
//! Called where a job is accepted, an upload granted and a key changed; [`Hub::note`] keeps the count with each record.
//! Always true: the tasks of a key are the sum over its jobs that wait or run; each file counts once for a key, however many
//! of its jobs need it, from its upload until the last of them has ended; what is over counts nothing, so that whoever
//! waits is let through.
//! Deliberately not here: how often a key may ask ([`crate::rate`], kept by the shell), output (the hub's retention bounds
//! it: the oldest goes, nobody is refused).

use super::accepted::{Accepted, files};
use super::effect::{Answer, Effect, Out};
use super::input::SessionId;
use super::record::Record;
use super::{Broken, Durable, Hub, Live};
use crate::Now;
use crate::lang::{check_limits, run_limits};
use crate::limits::{UPLOAD_COUNTED_MS, UPLOADS_COUNTED_MAX};
use essaim_proto::api::{KeyPage, KeySet, KeyView};
use essaim_proto::hello::Role;
use essaim_proto::job::{JobSpec, Limits};
use essaim_proto::quota::{Quota, QuotaView, Quotas};
use essaim_proto::{BlobHash, JobId, KeyName, Refusal, RefusalCode};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// What a hub's settings say about all that have nothing else said of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// What a key may use that is no admin's.
    pub keys: KeyLimits,
    /// What a program may use when neither its job nor its language says it; `u64::MAX`: as much as it likes.
    pub limits: Limits,
    /// The most that a program may use, whatever its job asks for.
    pub limits_max: Limits,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules { keys: KeyLimits::default(), limits: run_limits(), limits_max: Limits::default() }
    }
}

/// What a key may use; `None`: as much as it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KeyLimits {
    /// Tasks that wait or run.
    pub queued_tasks: Option<u64>,
    /// Bytes of files that its jobs keep on the hub.
    pub stored_bytes: Option<u64>,
    /// Requests in a second.
    pub requests_per_second: Option<u64>,
}

/// What a key uses now. Derived from the durable part, but for uploads.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Used {
    tasks: u64,
    /// Bytes of `files`, and of small files inside jobs.
    bytes: u64,
    inline_bytes: u64,
    files: BTreeMap<BlobHash, Stored>,
}

/// A file that a key keeps on the hub.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Stored {
    bytes: u64,
    /// Its jobs that need it.
    jobs: u32,
    /// When its upload was granted last, on the monotonic clock.
    asked_mono_ms: u64,
}

/// An upload that was granted.
#[derive(Debug, Clone)]
pub(super) struct Upload {
    at_mono_ms: u64,
    key: KeyName,
    hash: BlobHash,
}

/// A job before a record that may change what its owner uses.
pub(super) struct Before {
    job: JobId,
    tasks: u64,
    accepted: Option<Arc<Accepted>>,
}

fn inline_bytes(spec: &JobSpec) -> u64 {
    files(spec).filter_map(|file| file.inline.as_ref()).map(|bytes| bytes.len() as u64).sum()
}

impl Used {
    fn add(&mut self, accepted: &Accepted) {
        if !accepted.has_files() {
            return;
        }
        let spec = accepted.spec();
        let inline = inline_bytes(&spec);
        self.inline_bytes += inline;
        self.bytes += inline;
        for file in files(&spec).filter(|file| file.inline.is_none()) {
            self.store(file.hash, file.size_bytes).jobs += 1;
        }
    }

    fn remove(&mut self, accepted: &Accepted) {
        if !accepted.has_files() {
            return;
        }
        let spec = accepted.spec();
        let inline = inline_bytes(&spec);
        self.inline_bytes = self.inline_bytes.saturating_sub(inline);
        self.bytes = self.bytes.saturating_sub(inline);
        for file in files(&spec).filter(|file| file.inline.is_none()) {
            let Some(stored) = self.files.get_mut(&file.hash) else { continue };
            stored.jobs = stored.jobs.saturating_sub(1);
            if stored.jobs == 0 {
                self.forget(file.hash);
            }
        }
    }

    /// A file of which the largest size counts that anybody has named.
    fn store(&mut self, hash: BlobHash, bytes: u64) -> &mut Stored {
        let stored = self.files.entry(hash).or_default();
        self.bytes = self.bytes.saturating_add(bytes.saturating_sub(stored.bytes));
        stored.bytes = stored.bytes.max(bytes);
        stored
    }

    fn forget(&mut self, hash: BlobHash) {
        if let Some(stored) = self.files.remove(&hash) {
            self.bytes = self.bytes.saturating_sub(stored.bytes);
        }
    }

    /// Bytes that a job would add.
    fn more(&self, spec: &JobSpec) -> u64 {
        let mut new = BTreeMap::new();
        for file in files(spec).filter(|file| file.inline.is_none()) {
            let known = self.files.get(&file.hash).map_or(0, |stored| stored.bytes);
            new.insert(file.hash, file.size_bytes.saturating_sub(known));
        }
        new.into_values().fold(inline_bytes(spec), u64::saturating_add)
    }

    fn is_nothing(&self) -> bool {
        self.tasks == 0 && self.bytes == 0 && self.files.is_empty()
    }
}

impl KeyLimits {
    /// Of a key for which `quotas` are said: an admin is bound by nothing else.
    fn of(self, role: Role, quotas: &Quotas) -> KeyLimits {
        let hubs = if role == Role::Admin { KeyLimits::default() } else { self };
        KeyLimits {
            queued_tasks: quotas.queued_tasks.limit(hubs.queued_tasks),
            stored_bytes: quotas.stored_bytes.limit(hubs.stored_bytes),
            requests_per_second: quotas.requests_per_second.limit(hubs.requests_per_second),
        }
    }
}

impl Live {
    fn uses(&self, key: &KeyName) -> (u64, u64) {
        self.uses.get(key).map_or((0, 0), |used| (used.tasks, used.bytes))
    }
}

impl Hub {
    /// With these rules instead of none. They are the hub's settings: not in the journal, and the same for its whole life.
    pub fn with_rules(mut self, rules: Rules) -> Hub {
        self.rules = rules;
        self
    }

    /// What a key may use now. One that is revoked may finish what it has.
    pub(super) fn key_limits(&self, key: &KeyName) -> KeyLimits {
        let known = self.durable.keys.get(key);
        known.map_or(self.rules.keys, |known| self.rules.keys.of(known.role, &known.quotas))
    }

    /// May the key submit this too?
    ///
    /// # Errors
    /// `task_quota`, `byte_quota`.
    pub(super) fn has_quota(&self, key: &KeyName, tasks: u64, spec: &JobSpec) -> Result<(), Refusal> {
        let used = self.live.uses(key).0;
        if let Some(limit) = self.key_limits(key).queued_tasks.filter(|limit| used.saturating_add(tasks) > *limit) {
            let refusal = Refusal::new(RefusalCode::TaskQuota).with("key", key).with("tasks", tasks);
            return Err(refusal.with("used", used).with("limit", limit));
        }
        let more = self.live.uses.get(key).map_or_else(|| Used::default().more(spec), |used| used.more(spec));
        self.may_store(key, more)
    }

    fn may_store(&self, key: &KeyName, more: u64) -> Result<(), Refusal> {
        let used = self.live.uses(key).1;
        let limit = self.key_limits(key).stored_bytes;
        match limit.filter(|limit| more > 0 && used.saturating_add(more) > *limit) {
            Some(limit) => {
                let refusal = Refusal::new(RefusalCode::ByteQuota).with("key", key).with("bytes", more);
                Err(refusal.with("used", used).with("limit", limit))
            }
            None => Ok(()),
        }
    }

    /// A job's limits as its language and the hub's settings want them. What the table and the built-in defaults do not say
    /// by themselves is recorded with the job: other settings cannot change it later. What is more than the hub gives is cut,
    /// and noted with the job.
    ///
    /// # Errors
    /// `bad_job`, `too_large`.
    pub(super) fn rule_limits(&self, spec: &mut JobSpec) -> Result<(), Refusal> {
        check_limits(&spec.limits)?;
        let mut asked = spec.limits;
        spec.clamped = asked.clamp(&self.rules.limits_max);
        let of_language = self.table.run_limits(spec);
        let mut given = asked.or(&of_language).or(&self.rules.limits);
        // A default that is too large is nobody's wish.
        given.clamp(&self.rules.limits_max);
        let plain = of_language.or(&run_limits());
        given.retain(|limit, value| plain.get(limit).unwrap_or(u64::MAX) != value);
        spec.limits = given;
        Ok(())
    }

    /// A client wants to upload a file: it counts from now on.
    pub(super) fn upload(
        &mut self,
        now: Now,
        session: SessionId,
        request: u64,
        (hash, bytes): (BlobHash, u64),
        out: &mut Out,
    ) {
        let checked = self.allowed(session, Role::Operator).and_then(|(key, _)| {
            let known = self.live.uses.get(&key).and_then(|used| used.files.get(&hash)).map_or(0, |known| known.bytes);
            self.may_store(&key, bytes.saturating_sub(known)).map(|()| key)
        });
        let effect = match checked {
            Err(refusal) => Effect::Refuse { session, request, refusal },
            Ok(key) => {
                self.live.uploaded(Upload { at_mono_ms: now.mono_ms, key, hash }, bytes);
                Effect::Answer { session, request, answer: Answer::Done }
            }
        };
        out.effects.push(effect);
    }

    /// Files that were uploaded long ago and that no job needs are no longer here.
    pub(super) fn expire_uploads(&mut self, now: Now) {
        let is_old = |upload: &Upload| now.mono_ms.saturating_sub(upload.at_mono_ms) >= UPLOAD_COUNTED_MS;
        while self.live.uploads.front().is_some_and(is_old) {
            if let Some(upload) = self.live.uploads.pop_front() {
                self.live.upload_ends(&upload);
            }
        }
    }

    /// What the hub before this one counted and no record knows of.
    pub(super) fn succeed_uploads(&mut self, before: &Hub) {
        for upload in &before.live.uploads {
            let stored = before.live.uses.get(&upload.key).and_then(|used| used.files.get(&upload.hash));
            if let Some(stored) = stored {
                self.live.uploaded(upload.clone(), stored.bytes);
            }
        }
    }

    /// Counts what the durable part holds.
    pub(super) fn derive_uses(&mut self) {
        for job in self.durable.jobs.values().filter(|job| !job.is_over()) {
            let used = self.live.uses.entry(job.accepted.owner().clone()).or_default();
            used.tasks += job.live();
            used.add(&job.accepted);
        }
    }

    /// To be asked before a record is applied.
    pub(super) fn before(&self, record: &Record) -> Option<Before> {
        let job = match record {
            Record::JobAccepted(new) => new.job,
            Record::TasksEnded { job, .. } | Record::TasksCancelled { job, .. } => *job,
            Record::TaskEnded { attempt, .. } => attempt.job,
            _ => return None,
        };
        let known = self.durable.jobs.get(&job);
        Some(Before { job, tasks: known.map_or(0, |job| job.live()), accepted: known.map(|job| job.accepted.clone()) })
    }

    /// To be told after it was.
    pub(super) fn count(&mut self, Before { job, tasks: before, accepted }: Before) {
        let Some(known) = self.durable.jobs.get(&job) else { return };
        let tasks = known.live();
        if tasks == before {
            return;
        }
        let owner = known.accepted.owner();
        if !self.live.uses.contains_key(owner) {
            self.live.uses.insert(owner.clone(), Used::default());
        }
        let Some(used) = self.live.uses.get_mut(owner) else { return };
        used.tasks = (used.tasks + tasks).saturating_sub(before);
        match (before, tasks, accepted) {
            (0, ..) => used.add(&known.accepted),
            // As it was: of what is over small files are forgotten.
            (_, 0, Some(accepted)) => used.remove(&accepted),
            _ => {}
        }
        if used.is_nothing() {
            self.live.uses.remove(owner);
        }
    }

    /// Changes the quotas of a key, from now on and for what it has already.
    pub(super) fn set_key(&mut self, session: SessionId, request: u64, name: KeyName, set: &KeySet, out: &mut Out) {
        let checked = self.allowed(session, Role::Admin).and_then(|_| {
            self.has_room()?;
            let known = self.durable.keys.get(&name);
            known.map(|known| known.quotas).ok_or_else(|| Refusal::new(RefusalCode::NoSuchKey).with("key", &name))
        });
        let quotas = match checked {
            Ok(before) => set.of(before),
            Err(refusal) => return out.effects.push(Effect::Refuse { session, request, refusal }),
        };
        self.note(Record::KeyQuotas { name: name.clone(), quotas }, out);
        let per_second = self.key_limits(&name).requests_per_second;
        out.effects.push(Effect::Rate { key: name, per_second });
        out.effects.push(Effect::Answer { session, request, answer: Answer::Done });
    }

    /// The keys with what they use and may.
    pub(super) fn key_page(&self, durable: &Durable) -> KeyPage {
        let keys = durable.keys.iter().map(|(name, key)| {
            let limits = self.rules.keys.of(key.role, &key.quotas);
            let (tasks, bytes) = self.live.uses(name);
            let view = |used, limit, quota: Quota| QuotaView { used, limit, own: !quota.is_hubs() };
            KeyView {
                name: name.to_string(),
                role: key.role,
                created_ms: key.created_ms,
                queued_tasks: view(Some(tasks), limits.queued_tasks, key.quotas.queued_tasks),
                stored_bytes: view(Some(bytes), limits.stored_bytes, key.quotas.stored_bytes),
                requests_per_second: view(None, limits.requests_per_second, key.quotas.requests_per_second),
            }
        });
        KeyPage { keys: keys.collect() }
    }

    /// Is what each key uses the sum over its jobs?
    ///
    /// # Errors
    /// The first key of which it is not.
    pub(super) fn check_uses(&self) -> Result<(), Broken> {
        let mut summed: BTreeMap<&KeyName, Used> = BTreeMap::new();
        for job in self.durable.jobs.values().filter(|job| !job.is_over()) {
            let used = summed.entry(job.accepted.owner()).or_default();
            used.tasks += job.live();
            used.add(&job.accepted);
        }
        let wrong = |key: &KeyName| Broken::Use { key: key.clone() };
        let nothing = Used::default();
        if let Some(key) = summed.keys().find(|key| !self.live.uses.contains_key(**key)) {
            return Err(wrong(key));
        }
        for (key, used) in &self.live.uses {
            let jobs = summed.get(key).unwrap_or(&nothing);
            let needed = |used: &Used| {
                let needed = used.files.iter().filter(|(_, stored)| stored.jobs > 0);
                needed.map(|(hash, stored)| (*hash, stored.jobs)).collect::<Vec<_>>()
            };
            let bytes = used.files.values().map(|stored| stored.bytes).sum::<u64>() + used.inline_bytes;
            let agree = (used.tasks, used.inline_bytes, used.bytes) == (jobs.tasks, jobs.inline_bytes, bytes)
                && needed(used) == needed(jobs);
            if !agree || used.is_nothing() {
                return Err(wrong(key));
            }
        }
        Ok(())
    }
}

impl Live {
    fn uploaded(&mut self, upload: Upload, bytes: u64) {
        if self.uploads.len() == UPLOADS_COUNTED_MAX
            && let Some(oldest) = self.uploads.pop_front()
        {
            self.upload_ends(&oldest);
        }
        let used = self.uses.entry(upload.key.clone()).or_default();
        used.store(upload.hash, bytes).asked_mono_ms = upload.at_mono_ms;
        self.uploads.push_back(upload);
    }

    fn upload_ends(&mut self, upload: &Upload) {
        let Some(used) = self.uses.get_mut(&upload.key) else { return };
        // A job that needs it ends it, a later upload outlives it.
        let is_idle = |stored: &&Stored| stored.jobs == 0 && stored.asked_mono_ms == upload.at_mono_ms;
        if used.files.get(&upload.hash).filter(is_idle).is_some() {
            used.forget(upload.hash);
        }
        if used.is_nothing() {
            self.uses.remove(&upload.key);
        }
    }
}

/// Uploads in the order in which they were granted.
pub(super) type Uploads = VecDeque<Upload>;
