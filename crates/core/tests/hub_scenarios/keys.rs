//! Who comes in, and what each may do.

use crate::story::{Story, attempt, command, key, python, register, secret};
use essaim_core::hub::{Answer, Effect, Input, NewKey, Query};
use essaim_proto::api::{JobList, JobRerun};
use essaim_proto::hello::Role;
use essaim_proto::job::{TaskState, Verdict};
use essaim_proto::quota::Quotas;
use essaim_proto::{JobId, RefusalCode, SubmitKey};

fn new_key(name: &str, role: Role) -> NewKey {
    NewKey { role, secret: secret(name), quotas: Quotas::default() }
}

/// Does a known key open the door and an unknown one not? We show both.
#[test]
fn a_key_admits_and_a_wrong_one_is_refused() {
    let mut story = Story::new();
    story.admin();
    let session = story.next_session();
    story.give(Input::ClientOpened { session, secret: secret("guess") });
    assert_eq!(story.take(), Effect::Refuse { session, request: 0, refusal: RefusalCode::WrongKey.into() });
    // What it asks all the same is refused too.
    story.ask_submit(session, python());
    story.refused(RefusalCode::WrongDoor);
    story.end();
}

/// Can a session show a second key, or become a worker? Each session says who it is once.
#[test]
fn a_session_says_once_who_it_is() {
    let mut story = Story::new();
    let client = story.admin();
    story.give(Input::ClientOpened { session: client, secret: secret("admin") });
    story.refused(RefusalCode::BadValue);
    let name = "lab".parse().unwrap();
    story.give(Input::Register { session: client, name, register: Box::new(register(1)) });
    story.refused(RefusalCode::BadValue);
    let worker = story.worker("lab", 1);
    story.give(Input::ClientOpened { session: worker, secret: secret("admin") });
    story.refused(RefusalCode::BadValue);
    // Both are still what they were.
    story.run(client, worker);
    story.end();
}

/// What may each role do? We try submit, upload, list, keys and join lines with each.
#[test]
fn roles_allow_what_they_say() {
    let mut story = Story::new();
    for role in [Role::Viewer, Role::User] {
        let session = story.client(role.name(), role);
        story.ask_submit(session, python());
        let refusal = story.refused(RefusalCode::NotAllowed);
        assert_eq!((refusal.param("role"), refusal.param("needs")), (role.name(), "operator"));
        let request = story.next_request();
        story.give(Input::Query { session, request, query: Query::Upload });
        story.refused(RefusalCode::NotAllowed);
        assert!(matches!(story.query(session, Query::JobList(JobList::default())), Answer::Jobs(_)));
    }
    let operator = story.client("operator", Role::Operator);
    assert_eq!(story.query(operator, Query::Upload), Answer::Done);
    story.submit(operator, python());
    for input in [
        Input::KeyCreate { session: operator, request: 1, name: key("x"), key: new_key("x", Role::Viewer) },
        Input::KeyRevoke { session: operator, request: 2, name: key("admin") },
        Input::JoinCreate { session: operator, request: 3, secret: secret("j"), uses: 1, ttl_ms: 0 },
        Input::Query { session: operator, request: 4, query: Query::KeyList },
    ] {
        story.give(input);
        assert_eq!(story.refused(RefusalCode::NotAllowed).param("needs"), "admin");
    }
    story.end();
}

/// May a viewer or a foreign user cancel or watch? We try on another's job.
#[test]
fn a_foreign_job_is_for_its_owner_and_operators() {
    let mut story = Story::new();
    let admin = story.admin();
    let user = story.client("anna", Role::User);
    let viewer = story.client("wall", Role::Viewer);
    let job = story.submit(admin, python());
    for session in [user, viewer] {
        story.ask_cancel(session, job);
        story.refused(RefusalCode::NotAllowed);
        let request = story.next_request();
        story.give(Input::Query { session, request, query: Query::Watch { job, key: None } });
        story.refused(RefusalCode::NotAllowed);
        assert_eq!(story.task(session, job).state, TaskState::Ready);
    }
    story.end();
}

/// Can a client end up watching another job that has its job's number, after a hub without memory? We watch one with the
/// key of another Submit, then with its own.
#[test]
fn a_job_is_watched_by_its_own_submit_only() {
    let mut story = Story::new();
    let admin = story.admin();
    story.give(Input::Submit { session: admin, request: 1, key: SubmitKey([1; 16]), spec: Box::new(python()) });
    let job = story.submitted(false);
    story.event(job, TaskState::Ready);
    let request = story.next_request();
    let watch = |key| Query::Watch { job, key: Some(SubmitKey([key; 16])) };
    story.give(Input::Query { session: admin, request, query: watch(2) });
    story.refused(RefusalCode::NoSuchJob);
    assert!(matches!(story.query(admin, watch(1)), Answer::Watching(_)));
    story.end();
}

/// Does a worker's session have a client's rights? It asks for jobs.
#[test]
fn a_worker_is_no_client() {
    let mut story = Story::new();
    let worker = story.worker("lab", 1);
    story.give(Input::Query { session: worker, request: 1, query: Query::JobList(JobList::default()) });
    story.refused(RefusalCode::WrongDoor);
    // And a client is no worker: what it says about attempts is nothing.
    let admin = story.admin();
    story.ended(admin, attempt(JobId(1), 1), Verdict::Ok);
    story.end();
}

/// Are keys made, listed and revoked, and does a revoked key's session end at once, with its rights and its ephemeral
/// jobs? A second admin does it to a third.
#[test]
fn a_revoked_key_has_no_rights_from_that_moment() {
    let mut story = Story::new();
    let admin = story.admin();
    let create = |name: &str, request| Input::KeyCreate {
        session: admin,
        request,
        name: key(name),
        key: new_key(name, Role::Operator),
    };
    story.give(create("anna", 1));
    assert_eq!(story.take(), Effect::Answer { session: admin, request: 1, answer: Answer::KeyMade });
    story.give(create("anna", 2));
    story.refused(RefusalCode::KeyExists);
    let Answer::Keys(page) = story.query(admin, Query::KeyList) else { panic!("expected keys") };
    let names: Vec<&str> = page.keys.iter().map(|k| k.name.as_str()).collect();
    assert_eq!(names, ["admin", "anna"]);

    let anna = story.client("anna", Role::Operator);
    let job = story.submit(anna, essaim_proto::job::JobSpec { ephemeral: true, ..command(&["sleep"]) });
    story.give(Input::KeyRevoke { session: admin, request: 3, name: key("anna") });
    story.done();
    story.closed(anna, "key_revoked");
    assert_eq!(story.event(job, TaskState::Cancelled).reason.unwrap().code, "client_gone");
    // Its connection is not gone yet, its rights are.
    story.ask_submit(anna, python());
    story.refused(RefusalCode::WrongDoor);
    story.gone(anna);

    story.give(Input::KeyRevoke { session: admin, request: 4, name: key("anna") });
    story.refused(RefusalCode::NoSuchKey);
    story.give(Input::KeyRevoke { session: admin, request: 5, name: key("admin") });
    story.refused(RefusalCode::LastAdmin);
    story.end();
}

/// May an admin revoke the key that speaks, when there is another admin? The answer comes before the end.
#[test]
fn an_admin_may_revoke_its_own_key_unless_it_is_the_last() {
    let mut story = Story::new();
    let admin = story.admin();
    story.client("second", Role::Admin);
    story.give(Input::KeyRevoke { session: admin, request: 1, name: key("admin") });
    story.done();
    story.closed(admin, "key_revoked");
    story.end();
}

/// Is the key in the hub's own folder taken up, and a changed one put in the place of the old?
#[test]
fn the_local_key_is_recorded_once() {
    let mut story = Story::new();
    let before = story.records.len();
    story.give(Input::LocalKey { name: key("admin"), role: Role::Admin, secret: secret("admin") });
    assert_eq!(story.records.len(), before);
    story.give(Input::LocalKey { name: key("admin"), role: Role::Admin, secret: secret("new") });
    let session = story.next_session();
    story.give(Input::ClientOpened { session, secret: secret("admin") });
    story.refused(RefusalCode::WrongKey);
    story.end();
}

/// Who is told whether the files of a job are there? Only who may submit it, and not for what was submitted before.
#[test]
fn only_who_may_submit_is_told_of_missing_files() {
    let mut story = Story::new();
    let (admin, user) = (story.admin(), story.client("ada", Role::User));
    let job = story.submit(admin, python());
    let rerun = |session, job| {
        let rerun = JobRerun { job, key: SubmitKey([9; 16]), ..JobRerun::default() };
        Input::Rerun { session, request: 1, rerun }
    };
    let submit = |session, key| Input::Submit { session, request: 1, key: SubmitKey(key), spec: Box::new(python()) };
    let hub = &story.hub;
    assert!(hub.submits(&rerun(admin, job)).is_some() && hub.submits(&submit(admin, [9; 16])).is_some());
    assert!(hub.submits(&rerun(user, job)).is_none() && hub.submits(&submit(user, [9; 16])).is_none());
    assert!(hub.submits(&rerun(admin, JobId(99))).is_none());
    let again = hub.durable().jobs[&job].accepted.key;
    assert!(hub.submits(&submit(admin, again.0)).is_none(), "the answer is the first job");
    story.end();
}
