//! A store without room: what is refused, what goes on, and what happens when there is room again.

use crate::story::{Story, attempt, key, python, register, secret};
use essaim_core::hub::{Answer, Input, NewKey, Query, SessionId};
use essaim_proto::hello::Role;
use essaim_proto::job::{TaskState, Verdict};
use essaim_proto::link::Report;
use essaim_proto::quota::Quotas;
use essaim_proto::{JobId, RefusalCode, SubmitKey};

fn submit(session: SessionId, n: u8) -> Input {
    Input::Submit { session, request: 1, key: SubmitKey([n; 16]), spec: Box::new(python()) }
}

fn full(story: &mut Story, full: bool) {
    story.give(Input::Storage { full });
}

/// Is everything that would add to the store refused by that name, without a record?
#[test]
fn what_needs_room_is_refused_by_name() {
    let mut story = Story::new();
    let client = story.admin();
    story.client("anna", Role::User);
    full(&mut story, true);
    let before = story.records.len();
    story.give(submit(client, 1));
    story.refused(RefusalCode::StoreFull);
    let new = NewKey { role: Role::User, secret: secret("bert"), quotas: Quotas::default() };
    story.give(Input::KeyCreate { session: client, request: 2, name: key("bert"), key: new });
    story.refused(RefusalCode::StoreFull);
    story.give(Input::KeySet { session: client, request: 2, name: key("anna"), set: Box::default() });
    story.refused(RefusalCode::StoreFull);
    story.give(Input::KeyRevoke { session: client, request: 3, name: key("anna") });
    story.refused(RefusalCode::StoreFull);
    story.give(Input::JoinCreate { session: client, request: 4, secret: secret("line"), uses: 1, ttl_ms: 0 });
    story.refused(RefusalCode::StoreFull);
    assert_eq!(story.records.len(), before);
    // Who may not is told that, and not how full the disk is.
    let anna = story.client("anna", Role::User);
    story.give(submit(anna, 1));
    story.refused(RefusalCode::NotAllowed);
    story.end();
}

/// Does the rest go on? Questions, a repeated Submit, a cancel, and the end of what runs, from the reserve.
#[test]
fn what_runs_goes_on() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 1);
    story.give(submit(client, 1));
    let job = story.submitted(false);
    story.start(lab, attempt(job, 1));
    let waits = story.submit(client, python());
    full(&mut story, true);
    assert!(matches!(story.query(client, Query::JobShow(job)), Answer::Job(_)));
    story.give(submit(client, 1));
    assert_eq!(story.submitted(true), job);
    story.ended(lab, attempt(job, 1), Verdict::Ok);
    story.event(job, TaskState::Done);
    story.acked(lab, attempt(job, 1));
    // The slot is free, and nothing is placed on it.
    story.report(lab, Report::default());
    story.ask_cancel(client, waits);
    story.event(waits, TaskState::Cancelled);
    story.done();
    story.end();
}

/// Does waiting work start, once, when there is room again? And is an attempt that is lost meanwhile not placed again
/// before?
#[test]
fn placing_goes_on_when_there_is_room() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 1);
    let (job, _) = story.run(client, lab);
    full(&mut story, true);
    story.goodbye(lab);
    story.event(job, TaskState::Ready);
    let (lab, _) = story.register("lab", register(1));
    assert_eq!(story.task(client, job).reason.unwrap().code, "hub_full");
    full(&mut story, true);
    story.nothing_else();
    full(&mut story, false);
    story.start(lab, attempt(job, 2));
    full(&mut story, false);
    story.give(submit(client, 9));
    assert_eq!(story.submitted(false), JobId(2));
    story.event(JobId(2), TaskState::Ready);
    story.end();
}
