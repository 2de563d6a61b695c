//! How much a key may use, and who is let through when.

use crate::array_story::array;
use crate::story::{Story, attempt, command, key, python, result, secret};
use essaim_core::hub::{Answer, Effect, Input, KeyLimits, NewKey, Query, Rules, SessionId};
use essaim_core::limits::UPLOAD_COUNTED_MS;
use essaim_proto::api::{KeySet, KeyView};
use essaim_proto::hello::Role;
use essaim_proto::job::{Clamped, FileSpec, JobSpec, Limit, Limits, TaskState, Verdict};
use essaim_proto::quota::{Quota, Quotas};
use essaim_proto::{BlobHash, JobId, RefusalCode};

/// Rules of a small class.
fn class() -> Rules {
    let keys = KeyLimits { queued_tasks: Some(5), stored_bytes: Some(1_000), requests_per_second: Some(20) };
    let limits = Limits { wall_ms: Some(10_000), ..Rules::default().limits };
    Rules { keys, limits, limits_max: Limits { wall_ms: Some(600_000), ..Limits::default() } }
}

fn large(name: &str, size_bytes: u64) -> JobSpec {
    let file = FileSpec { path: name.into(), size_bytes, hash: BlobHash::of(name.as_bytes()), ..FileSpec::default() };
    JobSpec { files: vec![file], ..command(&["true"]) }
}

fn small(bytes: usize) -> JobSpec {
    let text = vec![b'x'; bytes];
    let hash = BlobHash::of(&text);
    let inline = Some(serde_bytes::ByteBuf::from(text));
    let file = FileSpec { path: "a".into(), size_bytes: bytes as u64, hash, inline, ..FileSpec::default() };
    JobSpec { files: vec![file], ..command(&["true"]) }
}

impl Story {
    /// An operator who is told how often he may ask.
    fn pupil(&mut self, name: &str, per_second: Option<u64>) -> SessionId {
        self.give(Input::LocalKey { name: key(name), role: Role::Operator, secret: secret(name) });
        let session = self.next_session();
        self.give(Input::ClientOpened { session, secret: secret(name) });
        assert_eq!(self.take(), Effect::Admit { session, name: name.into(), role: Role::Operator, per_second });
        session
    }

    fn upload(&mut self, session: SessionId, name: &str, size_bytes: u64) {
        let request = self.next_request();
        self.give(Input::Upload { session, request, hash: BlobHash::of(name.as_bytes()), size_bytes });
    }

    fn set(&mut self, admin: SessionId, name: &str, set: KeySet) {
        let request = self.next_request();
        self.give(Input::KeySet { session: admin, request, name: key(name), set: Box::new(set) });
    }

    /// A key as its list shows it.
    fn uses(&mut self, admin: SessionId, name: &str) -> KeyView {
        let Answer::Keys(page) = self.query(admin, Query::KeyList) else { panic!("expected keys") };
        page.keys.into_iter().find(|key| key.name == name).unwrap()
    }

    fn used(&mut self, admin: SessionId, name: &str) -> (u64, u64) {
        let view = self.uses(admin, name);
        (view.queued_tasks.used.unwrap(), view.stored_bytes.used.unwrap())
    }

    fn accepted(&mut self, client: SessionId, spec: JobSpec) -> JobId {
        self.ask_submit(client, spec);
        let job = self.submitted(false);
        self.skip_all();
        job
    }
}

/// Does each task of an array count, and is what would exceed the quota refused as a whole, with the figures? The other
/// key goes on, an admin is not bound, and what has ended makes room.
#[test]
fn waiting_and_running_tasks_are_bounded() {
    let mut story = Story::with_rules(class());
    let (admin, anna) = (story.admin(), story.pupil("anna", Some(20)));
    let bert = story.pupil("bert", Some(20));
    let job = story.accepted(anna, array("1-4"));
    let records = story.records.len();
    story.ask_submit(anna, array("1-2"));
    let refusal = story.refused(RefusalCode::TaskQuota);
    let params = ["key", "tasks", "used", "limit"].map(|name| refusal.param(name));
    assert_eq!((params, story.records.len()), (["anna", "2", "4", "5"], records));
    story.accepted(anna, command(&["true"]));
    story.accepted(bert, array("1-5"));
    story.accepted(admin, array("1-100"));
    assert_eq!(story.used(admin, "anna"), (5, 0));
    story.cancel_tasks(anna, job, "2-3");
    story.skip_all();
    assert_eq!(story.used(admin, "anna"), (3, 0));
    // Placed and running tasks count until they are over.
    let lab = story.worker("lab", 200);
    story.skip_all();
    assert_eq!(story.used(admin, "anna"), (3, 0));
    story.end_tasks(lab, job, 1, "1,4", (Verdict::Ok, 1_000));
    story.skip_all();
    assert_eq!(story.used(admin, "anna"), (1, 0));
    // Another run of them is a new submission.
    story.rerun(anna, job, &[], 77);
    story.submitted(false);
    story.skip_all();
    story.rerun(anna, job, &[], 78);
    story.refused(RefusalCode::TaskQuota);
    // A repeated one is the first job, not a new one.
    story.rerun(anna, job, &[], 77);
    story.submitted(true);
    story.end();
}

/// Do files count once for a key however many jobs need them, from the upload on and until the last job that needs them
/// has ended? Small files inside jobs count with each.
#[test]
fn files_count_as_long_as_they_are_kept() {
    let mut story = Story::with_rules(class());
    let (admin, anna) = (story.admin(), story.pupil("anna", Some(20)));
    story.upload(anna, "data", 700);
    story.done();
    assert_eq!(story.used(admin, "anna"), (0, 700));
    story.upload(anna, "data", 700);
    story.done();
    story.upload(anna, "more", 301);
    let refusal = story.refused(RefusalCode::ByteQuota);
    assert_eq!(["key", "bytes", "used", "limit"].map(|name| refusal.param(name)), ["anna", "301", "700", "1000"]);
    let jobs = [1, 2].map(|_| story.accepted(anna, large("data", 700)));
    let third = story.accepted(anna, small(300));
    assert_eq!(story.used(admin, "anna"), (3, 1_000));
    story.ask_submit(anna, small(1));
    story.refused(RefusalCode::ByteQuota);
    // Nothing more is no matter, however full it is.
    story.accepted(anna, command(&["true"]));
    // The upload alone would have been forgotten by now.
    story.pass(UPLOAD_COUNTED_MS / 1_000 + 1);
    for (job, bytes) in [(jobs[0], 1_000), (third, 700), (jobs[1], 0)] {
        story.ask_cancel(anna, job);
        story.skip_all();
        assert_eq!(story.used(admin, "anna").1, bytes);
    }
    // An upload that no job follows is forgotten; one that is asked for again counts from then on.
    story.upload(anna, "never", 900);
    story.done();
    story.pass(UPLOAD_COUNTED_MS / 2_000);
    story.upload(anna, "never", 900);
    story.done();
    story.pass(UPLOAD_COUNTED_MS / 2_000 + 1);
    assert_eq!(story.used(admin, "anna").1, 900);
    story.pass(UPLOAD_COUNTED_MS / 2_000);
    assert_eq!(story.used(admin, "anna").1, 0);
    story.end();
}

/// Is a small file of a job that is over, which the hub no longer keeps, taken from the count as it was added?
#[test]
fn what_ended_counts_nothing() {
    let mut story = Story::new();
    let admin = story.admin();
    let lab = story.worker("lab", 1);
    let job = story.accepted(admin, small(60_000));
    assert_eq!(story.used(admin, "admin"), (1, 60_000));
    story.give(Input::Ended {
        session: lab,
        ended: Box::new(essaim_proto::link::Ended { attempt: attempt(job, 1), result: result(Verdict::Ok) }),
    });
    story.event(job, TaskState::Done);
    story.acked(lab, attempt(job, 1));
    assert_eq!(story.used(admin, "admin"), (0, 0));
    story.end();
}

/// Are quotas of one key changed by an admin, at once, and are they the same after a restart? We lift, set and give back
/// to the hub's rules.
#[test]
fn quotas_of_a_key_outlive_the_hub() {
    let mut story = Story::with_rules(class());
    let admin = story.admin();
    let quotas = Quotas { queued_tasks: Quota::At(1), ..Quotas::default() };
    let new = NewKey { role: Role::Operator, secret: secret("anna"), quotas };
    story.give(Input::KeyCreate { session: admin, request: 1, name: key("anna"), key: new });
    assert!(matches!(story.take(), Effect::Answer { answer: Answer::KeyMade, .. }));
    let anna = story.pupil("anna", Some(20));
    story.accepted(anna, command(&["true"]));
    story.ask_submit(anna, command(&["true"]));
    assert_eq!(story.refused(RefusalCode::TaskQuota).param("limit"), "1");

    story.set(anna, "anna", KeySet { queued_tasks: Some(Quota::Unlimited), ..KeySet::default() });
    story.refused(RefusalCode::NotAllowed);
    story.set(admin, "nobody", KeySet::default());
    story.refused(RefusalCode::NoSuchKey);
    let set =
        KeySet { queued_tasks: Some(Quota::Unlimited), requests_per_second: Some(Quota::At(3)), ..KeySet::default() };
    story.set(admin, "anna", set);
    assert_eq!(story.take(), Effect::Rate { key: key("anna"), per_second: Some(3) });
    story.done();
    story.accepted(anna, array("1-50"));
    // An admin's own key may be bound too.
    story.set(admin, "admin", KeySet { stored_bytes: Some(Quota::At(10)), ..KeySet::default() });
    assert_eq!(story.take(), Effect::Rate { key: key("admin"), per_second: None });
    story.done();

    story.restart_hub();
    let admin = story.admin();
    let view = story.uses(admin, "anna");
    let shown = |view: essaim_proto::quota::QuotaView| (view.used, view.limit, view.own);
    assert_eq!(shown(view.queued_tasks), (Some(51), None, true));
    assert_eq!(shown(view.stored_bytes), (Some(0), Some(1_000), false));
    assert_eq!(shown(view.requests_per_second), (None, Some(3), true));
    let session = story.next_session();
    story.give(Input::ClientOpened { session, secret: secret("anna") });
    let (name, role) = ("anna".into(), Role::Operator);
    assert_eq!(story.take(), Effect::Admit { session, name, role, per_second: Some(3) });
    story.ask_submit(admin, small(11));
    story.refused(RefusalCode::ByteQuota);

    story.set(admin, "anna", KeySet { queued_tasks: Some(Quota::Hub), ..KeySet::default() });
    assert_eq!(story.take(), Effect::Rate { key: key("anna"), per_second: Some(3) });
    story.done();
    story.ask_submit(session, command(&["true"]));
    assert_eq!(story.refused(RefusalCode::TaskQuota).param("used"), "51");
    story.give(Input::KeyRevoke { session: admin, request: 9, name: key("anna") });
    assert_eq!(story.take(), Effect::Rate { key: key("anna"), per_second: None });
    story.done();
    story.closed(session, "key_revoked");
    story.end();
}

/// What the store did not take is not counted, and an upload that no record knows of still is.
#[test]
fn a_failed_append_is_not_counted() {
    let mut story = Story::with_rules(class());
    let (_, anna) = (story.admin(), story.pupil("anna", Some(20)));
    let before = story.records.len();
    story.upload(anna, "data", 600);
    story.done();
    story.accepted(anna, large("data", 600));
    story.accepted(anna, array("1-4"));
    story.store_failed(before, &[]);
    story.skip_all();
    let admin = story.admin();
    assert_eq!(story.used(admin, "anna"), (0, 600));
    story.accepted(anna, array("1-5"));
    story.ask_submit(anna, command(&["true"]));
    story.refused(RefusalCode::TaskQuota);
    story.end();
}

/// Do a hub's settings give jobs their limits, and cut what is more than they allow? What they say is recorded with the job.
#[test]
fn the_limits_are_the_hubs() {
    let mut story = Story::with_rules(class());
    let admin = story.admin();
    let asked = |wall_ms| JobSpec { limits: Limits { wall_ms, ..Limits::default() }, ..python() };
    let lab = story.worker("lab", 4);
    let cut = Clamped { limit: Limit::Time, asked: 600_001, given: 600_000 };
    for (asked_ms, given_ms, clamped) in
        [(None, 10_000, vec![]), (Some(600_000), 600_000, vec![]), (Some(600_001), 600_000, vec![cut.clone()])]
    {
        // What a client says of that is nobody's word.
        story.ask_submit(admin, JobSpec { clamped: vec![Clamped::default()], ..asked(asked_ms) });
        let job = story.submitted(false);
        let start = story.start(lab, attempt(job, 1));
        assert_eq!(start.phases[0].wall_ms, given_ms);
        let spec = story.hub.durable().jobs[&job].accepted.spec().into_owned();
        assert_eq!((spec.limits.wall_ms, &spec.clamped), (Some(given_ms), &clamped));
        let Answer::Job(view) = story.query(admin, Query::JobShow(job)) else { panic!("expected the job") };
        assert_eq!(view.clamped, clamped);
    }
    story.ask_submit(admin, asked(Some(0)));
    assert_eq!(story.refused(RefusalCode::BadJob).param("field"), "time");
    story.end();
}

/// Where does each limit of a phase come from? First the job's word, then the hub's, then what is built in; the compiler has its
/// own; what is as it would be anyway is not recorded, and what no worker keeps is refused.
#[test]
fn a_limit_has_one_origin() {
    let limits = Limits { output_bytes: Some(u64::MAX), ..Rules::default().limits };
    let mut story = Story::with_rules(Rules { limits, ..Rules::default() });
    let admin = story.admin();
    let lab = story.worker("lab", 4);
    let built_in = Rules::default().limits;
    for (asked, given, recorded) in [
        (None, None, Some(u64::MAX)),
        (Some(7), Some(7), Some(7)),
        (built_in.output_bytes, built_in.output_bytes, None),
    ] {
        let limits = Limits { output_bytes: asked, ..Limits::default() };
        story.ask_submit(admin, JobSpec { limits, ..python() });
        let job = story.submitted(false);
        let phase = story.start(lab, attempt(job, 1)).phases.remove(0);
        assert_eq!((phase.wall_ms, phase.limits.wall_ms), (built_in.wall_ms.unwrap(), None));
        assert_eq!(phase.limits.output_bytes, given);
        let limits = story.hub.durable().jobs[&job].accepted.spec().limits;
        assert_eq!((limits.wall_ms, limits.output_bytes), (None, recorded));
    }
    story.ask_submit(admin, JobSpec { limits: Limits { cpu_ms: Some(5), ..Limits::default() }, ..python() });
    assert_eq!(story.refused(RefusalCode::BadJob).param("field"), "cpu_time");
    story.end();
}
