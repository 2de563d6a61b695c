//! Lists, and who sees what in them.

use crate::story::{Story, attempt, command, node, python, register};
use essaim_core::hub::{Answer, Query, SessionId};
use essaim_core::limits::NODE_PAGE_ENTRIES;
use essaim_proto::JobId;
use essaim_proto::api::{JobList, JobPage};
use essaim_proto::hello::Role;
use essaim_proto::job::{JobSpec, TaskState, Verdict};
use essaim_proto::limits::PAGE_ENTRIES_MAX;
use essaim_proto::node::NodeState;

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
