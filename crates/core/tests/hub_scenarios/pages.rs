//! Lists, and who sees what in them.

use crate::story::{Story, attempt, command, key, node, python, register};
use essaim_core::hub::{Answer, Effect, Query, SessionId, may_watch, sight};
use essaim_core::limits::NODE_PAGE_ENTRIES;
use essaim_proto::api::{JobList, JobPage};
use essaim_proto::hello::Role;
use essaim_proto::job::{JobSpec, JobState, Phase, TaskState, Verdict};
use essaim_proto::limits::PAGE_ENTRIES_MAX;
use essaim_proto::node::NodeState;
use essaim_proto::{JobId, RefusalCode};

fn jobs(story: &mut Story, session: SessionId, list: JobList) -> JobPage {
    match story.query(session, Query::JobList(list)) {
        Answer::Jobs(page) => page,
        other => panic!("expected jobs: {other:?}"),
    }
}

fn ids(page: &JobPage) -> Vec<u64> {
    page.jobs.iter().map(|job| job.job.0).collect()
}

/// Do pages go from the newest to the oldest, each job once, and say whether there are more?
#[test]
fn pages_of_jobs_follow_each_other() {
    let mut story = Story::new();
    let client = story.admin();
    for _ in 0..5 {
        story.submit(client, python());
    }
    let first = jobs(&mut story, client, JobList { limit: 2, ..JobList::default() });
    assert_eq!((ids(&first), first.more), (vec![5, 4], true));
    let second = jobs(&mut story, client, JobList { limit: 2, before: Some(JobId(4)), ..JobList::default() });
    assert_eq!((ids(&second), second.more), (vec![3, 2], true));
    let third = jobs(&mut story, client, JobList { limit: 2, before: Some(JobId(2)), ..JobList::default() });
    assert_eq!((ids(&third), third.more), (vec![1], false));
    let exact = jobs(&mut story, client, JobList { limit: 5, ..JobList::default() });
    assert_eq!((exact.jobs.len(), exact.more), (5, false));
    let none = jobs(&mut story, client, JobList { before: Some(JobId(0)), ..JobList::default() });
    assert_eq!((none.jobs.len(), none.more), (0, false));
    story.end();
}

/// Does "only what lives" leave out what is over, and is a page never longer than the limit of the wire?
#[test]
fn pages_can_leave_out_what_is_over() {
    let mut story = Story::new();
    let client = story.admin();
    let over = story.submit(client, python());
    story.ask_cancel(client, over);
    story.event(over, TaskState::Cancelled);
    story.done();
    for _ in 0..PAGE_ENTRIES_MAX + 1 {
        story.submit(client, python());
    }
    let page = jobs(&mut story, client, JobList { limit: u32::MAX, live_only: true, ..JobList::default() });
    assert_eq!((page.jobs.len(), page.more), (PAGE_ENTRIES_MAX, true));
    let rest = JobList { live_only: true, before: Some(page.jobs[PAGE_ENTRIES_MAX - 1].job), ..JobList::default() };
    let page = jobs(&mut story, client, rest);
    assert_eq!((ids(&page), page.more), (vec![2], false));
    story.end();
}

/// Do the filters of a list find by state, by owner, by node and by a part of the name, alone and together? Jobs of two
/// owners on two nodes, in every state; also where a job was before it was lost.
#[test]
fn filters_find_what_they_name() {
    let mut story = Story::new();
    let (anna, bert) = (story.client("anna", Role::Operator), story.client("bert", Role::Operator));
    let lab = story.worker("lab", 2);
    let named = |name: &str| JobSpec { name: name.into(), ..python() };
    let done = story.submit(anna, named("Übung 1"));
    story.start(lab, attempt(done, 1));
    story.ended(lab, attempt(done, 1), Verdict::Ok);
    story.event(done, TaskState::Done);
    story.acked(lab, attempt(done, 1));
    let runs = story.submit(bert, named("Sort.py"));
    story.start(lab, attempt(runs, 1));
    story.progress(lab, attempt(runs, 1), Phase::Run);
    story.event(runs, TaskState::Running);
    let placed = story.submit(anna, named("resort"));
    story.start(lab, attempt(placed, 1));
    let waits = story.submit(bert, crate::story::on("lab", named("übung 2")));
    let gone = story.submit(bert, named("gone"));
    story.ask_cancel(bert, gone);
    story.event(gone, TaskState::Cancelled);
    story.done();

    let found = |story: &mut Story, list: JobList| ids(&jobs(story, anna, list));
    let states = |states: &[JobState]| JobList { states: states.to_vec(), ..JobList::default() };
    assert_eq!(found(&mut story, states(&[JobState::Queued])), [waits.0, placed.0]);
    assert_eq!(found(&mut story, states(&[JobState::Running, JobState::Done])), [runs.0, done.0]);
    assert_eq!(found(&mut story, states(&[JobState::Failed])), [0; 0]);
    let owner = |name: &str| JobList { owner: Some(name.into()), ..JobList::default() };
    assert_eq!(found(&mut story, owner("anna")), [placed.0, done.0]);
    assert_eq!(found(&mut story, owner("ann")), [0; 0]);
    let node = |name: &str| JobList { node: Some(name.into()), ..JobList::default() };
    assert_eq!(found(&mut story, node("lab")), [placed.0, runs.0, done.0]);
    let text = |text: &str| JobList { text: Some(text.into()), ..JobList::default() };
    assert_eq!(found(&mut story, text("SORT")), [placed.0, runs.0]);
    assert_eq!(found(&mut story, text("ÜBUNG")), [waits.0, done.0]);
    assert_eq!(found(&mut story, text("")).len(), 5);
    let both = JobList { live_only: true, limit: 1, ..text("sort") };
    let page = jobs(&mut story, anna, both.clone());
    assert_eq!((ids(&page), page.more), (vec![placed.0], true));
    assert_eq!(found(&mut story, JobList { before: Some(placed), ..both }), [runs.0]);
    assert_eq!(found(&mut story, JobList { owner: Some("bert".into()), ..node("lab") }), [runs.0]);

    story.goodbye(lab);
    story.event(runs, TaskState::Ready);
    story.event(placed, TaskState::Ready);
    assert_eq!(found(&mut story, node("lab")), [placed.0, runs.0, done.0]);
    story.end();
}

/// What does a question answer from a durable part that lags behind? What is durable: a job that is not recorded yet is
/// unknown, one whose end is on its way to the disk still runs. Sessions and rights are those of now.
#[test]
fn questions_are_answered_from_what_is_durable() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 1);
    let (job, first) = story.run(client, lab);
    story.progress(lab, first, Phase::Run);
    story.event(job, TaskState::Running);
    let durable = story.hub.durable().clone();
    story.ended(lab, first, Verdict::Ok);
    story.event(job, TaskState::Done);
    story.acked(lab, first);
    let (next, _) = story.run(client, lab);
    let ask = |story: &Story, session, query| story.hub.read(&durable, session, 5, &query);
    match ask(&story, client, Query::JobList(JobList::default())) {
        Effect::Answer { session, request: 5, answer: Answer::Jobs(page) } if session == client => {
            assert_eq!(ids(&page), [job.0]);
            assert_eq!((page.jobs[0].state, page.jobs[0].tasks[0].state), (JobState::Running, TaskState::Running));
        }
        other => panic!("expected jobs: {other:?}"),
    }
    let refused = |effect, code| matches!(effect, Effect::Refuse { refusal, .. } if refusal.code == code);
    assert!(refused(ask(&story, client, Query::JobShow(next)), RefusalCode::NoSuchJob));
    story.gone(client);
    assert!(refused(ask(&story, client, Query::JobShow(job)), RefusalCode::WrongDoor));
    story.end();
}

/// Is what the catalog keeps of a job what its owner sees, and is it hidden from others in the same way?
#[test]
fn the_catalog_gets_what_the_owner_sees() {
    let mut story = Story::new();
    let owner = story.client("owner", Role::Operator);
    let lab = story.worker("lab", 1);
    let job = story.submit(owner, JobSpec { name: "n".repeat(300), ..command(&["echo", "secret"]) });
    story.start(lab, attempt(job, 1));
    assert_eq!(story.hub.durable().ended_view(job), None);
    story.ended(lab, attempt(job, 1), Verdict::RuntimeError);
    story.event(job, TaskState::Failed);
    story.acked(lab, attempt(job, 1));
    let kept = story.hub.durable().ended_view(job).unwrap();
    let shown = |story: &mut Story, session| match story.query(session, Query::JobShow(job)) {
        Answer::Job(view) => *view,
        other => panic!("expected a job: {other:?}"),
    };
    assert_eq!(kept, shown(&mut story, owner));
    for (name, role) in [("viewer", Role::Viewer), ("user", Role::User), ("op", Role::Operator)] {
        let session = story.client(name, role);
        assert_eq!(sight(kept.clone(), &key(name), role), shown(&mut story, session));
        let watched = story.hub.read(story.hub.durable(), session, 1, &Query::Watch { job, key: None });
        let may = matches!(watched, Effect::Answer { .. });
        assert_eq!(may_watch(&kept.owner, &key(name), role).is_ok(), may);
        assert_eq!(may, role == Role::Operator);
    }
    story.end();
}

/// Who sees a job's arguments? Its owner and operators; names and states all.
#[test]
fn arguments_are_for_owners_and_operators() {
    let mut story = Story::new();
    let owner = story.client("owner", Role::Operator);
    let spec = JobSpec { name: "greet".into(), ..command(&["echo", "secret"]) };
    let job = story.submit(owner, spec);
    let shown = |story: &mut Story, session| match story.query(session, Query::JobShow(job)) {
        Answer::Job(view) => (view.name.clone(), view.args.clone()),
        other => panic!("expected a job: {other:?}"),
    };
    let full = ("greet".to_owned(), vec!["echo".to_owned(), "secret".to_owned()]);
    for (name, role) in [("owner", Role::Operator), ("op", Role::Operator), ("admin", Role::Admin)] {
        let session = story.client(name, role);
        assert_eq!(shown(&mut story, session), full);
    }
    for (name, role) in [("view", Role::Viewer), ("user", Role::User)] {
        let session = story.client(name, role);
        assert_eq!(shown(&mut story, session), ("greet".to_owned(), Vec::new()));
        assert!(jobs(&mut story, session, JobList::default()).jobs[0].args.is_empty());
    }
    story.end();
}

/// Does a list of nodes name all that are known, connected or not, in pages by name, with what they hold?
#[test]
fn pages_of_nodes_name_all_that_are_known() {
    let mut story = Story::new();
    let client = story.admin();
    for n in 0..NODE_PAGE_ENTRIES + 1 {
        story.worker(&format!("n{n:02}"), 2);
    }
    let nodes = |story: &mut Story, after: Option<&str>| match story
        .query(client, Query::NodeList { after: after.map(str::to_owned) })
    {
        Answer::Nodes(page) => page,
        other => panic!("expected nodes: {other:?}"),
    };
    let first = nodes(&mut story, None);
    assert_eq!((first.nodes.len(), first.more), (NODE_PAGE_ENTRIES, true));
    let rest = nodes(&mut story, Some(&first.nodes[NODE_PAGE_ENTRIES - 1].name));
    assert_eq!((rest.nodes.len(), rest.more, rest.nodes[0].name.as_str()), (1, false, "n20"));

    let job = story.submit(client, crate::story::on("n20", python()));
    let worker = SessionId(1 + 21);
    story.start(worker, attempt(job, 1));
    let busy = &nodes(&mut story, Some("n19")).nodes[0];
    assert_eq!((busy.slots, busy.slots_used, busy.jobs.as_slice()), (2, 1, &[job.0][..]));
    story.ended(worker, attempt(job, 1), Verdict::Ok);
    story.event(job, TaskState::Done);
    story.acked(worker, attempt(job, 1));

    // After a restart they are known and not seen.
    story.restart_hub();
    let client = story.admin();
    let (_, registered) = story.register("n00", register(1));
    assert_eq!(registered.name, "n00");
    let page = match story.query(client, Query::NodeList { after: None }) {
        Answer::Nodes(page) => page,
        other => panic!("expected nodes: {other:?}"),
    };
    let state = |n: usize| (page.nodes[n].state, page.nodes[n].reason.clone().unwrap().code);
    assert_eq!(state(0), (NodeState::Online, "connected".into()));
    assert_eq!(state(1), (NodeState::Offline, "not_seen".into()));
    assert_eq!(page.nodes[0].name, node("n00").to_string());
    story.end();
}
