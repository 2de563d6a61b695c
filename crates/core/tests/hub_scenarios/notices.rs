//! Notices: which ends are posted, when nothing is, and what a restart remembers of it.

use super::story::*;
use essaim_core::hub::{Answer, Effect, Input, Query, SessionId, Url};
use essaim_proto::api::JobView;
use essaim_proto::job::{JobSpec, TaskState, Verdict};
use essaim_proto::{JobId, RefusalCode};

const HOOK: &str = "http://ada:8000/hook";

fn allow(story: &mut Story, urls: &[&str]) {
    let urls = urls.iter().map(|url| Url::parse(url).unwrap()).collect();
    story.give(Input::NotifyUrls { urls });
}

fn told(url: &str) -> JobSpec {
    JobSpec { notify: Some(url.to_owned()), ..command(&["true"]) }
}

/// The hub asks its shell to post the end of a job.
fn posts(story: &mut Story) -> (JobId, String) {
    match story.take() {
        Effect::Notify { job, url } => (job, url),
        other => panic!("expected a notice: {other:?}"),
    }
}

fn shown(story: &mut Story, client: SessionId, job: JobId) -> JobView {
    match story.query(client, Query::JobShow(job)) {
        Answer::Job(view) => *view,
        other => panic!("expected a job: {other:?}"),
    }
}

fn end(story: &mut Story, worker: SessionId, job: JobId, verdict: Verdict, state: TaskState) {
    story.ended(worker, attempt(job, 1), verdict);
    story.event(job, state);
    let notice = posts(story);
    assert_eq!(notice, (job, HOOK.to_owned()));
    story.acked(worker, attempt(job, 1));
}

/// Is the end posted once, whatever it is, and is what became of it shown? And is nothing posted that no rule allows?
#[test]
fn ends_are_posted_where_that_is_allowed() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 2);
    story.ask_submit(client, told(HOOK));
    assert_eq!(story.refused(RefusalCode::NotifyNotAllowed).param("url"), HOOK);
    allow(&mut story, &["http://ada:8000/hook", "https://b"]);
    for (url, code) in [
        ("http://ada:8000/hooks", RefusalCode::NotifyNotAllowed),
        ("http://b/", RefusalCode::NotifyNotAllowed),
        ("ada:8000/hook", RefusalCode::BadJob),
        ("http://ada:8000/hook/../x", RefusalCode::BadJob),
    ] {
        story.ask_submit(client, told(url));
        story.refused(code);
    }
    let good = story.submit(client, told(HOOK));
    story.start(lab, attempt(good, 1));
    let bad = story.submit(client, told(HOOK));
    story.start(lab, attempt(bad, 1));
    end(&mut story, lab, good, Verdict::Ok, TaskState::Done);
    end(&mut story, lab, bad, Verdict::RuntimeError, TaskState::Failed);
    assert_eq!(shown(&mut story, client, good).notice, None);
    story.give(Input::NoticeEnded { job: good, tries: 1, error: None });
    story.give(Input::NoticeEnded { job: bad, tries: 10, error: Some("no\nanswer".into()) });
    // Said twice, or of a job without one: nothing.
    story.give(Input::NoticeEnded { job: good, tries: 2, error: Some("late".into()) });
    story.give(Input::NoticeEnded { job: JobId(99), tries: 2, error: None });
    let notice = shown(&mut story, client, good).notice.unwrap();
    assert_eq!((notice.tries, notice.error), (1, None));
    let view = shown(&mut story, client, bad);
    let notice = view.notice.unwrap();
    assert_eq!((notice.tries, notice.error.as_deref(), view.notify.as_deref()), (10, Some("noanswer"), Some(HOOK)));
    story.end();
}

/// Is what was not told before a restart told after it, and is what was told not told again? And what if the rules have
/// changed meanwhile?
#[test]
fn a_restart_forgets_no_notice() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 4);
    allow(&mut story, &[HOOK]);
    let jobs: Vec<JobId> = (0..3)
        .map(|_| {
            let job = story.submit(client, told(HOOK));
            story.start(lab, attempt(job, 1));
            job
        })
        .collect();
    end(&mut story, lab, jobs[0], Verdict::Ok, TaskState::Done);
    end(&mut story, lab, jobs[1], Verdict::Ok, TaskState::Done);
    story.give(Input::NoticeEnded { job: jobs[0], tries: 1, error: None });
    story.restart_hub();
    allow(&mut story, &[HOOK]);
    assert_eq!(posts(&mut story).0, jobs[1]);
    story.restart_hub();
    allow(&mut story, &["http://ada:8000/other"]);
    let client = story.admin();
    let notice = shown(&mut story, client, jobs[1]).notice.unwrap();
    assert!(notice.error.unwrap().contains("no longer allow"));
    story.end();
}
