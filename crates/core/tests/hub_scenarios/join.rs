//! Machines that come with a join line.

use crate::story::{Story, node, secret};
use essaim_core::hub::{Answer, Effect, Input, Record};
use essaim_core::limits::{JOIN_MEMORY_MS, JOIN_TTL_DEFAULT_MS};
use essaim_proto::RefusalCode;

fn join(story: &mut Story, line: &str, wish: Option<&str>) -> Effect {
    let (session, request) = (story.next_session(), story.next_request());
    story.give(Input::Join { session, request, secret: secret(line), wish: wish.map(node) });
    story.take()
}

fn joined(story: &mut Story, line: &str, wish: Option<&str>) -> String {
    match join(story, line, wish) {
        Effect::GrantJoin { name, .. } => name.to_string(),
        other => panic!("expected a name: {other:?}"),
    }
}

fn join_refused(story: &mut Story, line: &str) -> RefusalCode {
    match join(story, line, None) {
        Effect::Refuse { refusal, .. } => refusal.code,
        other => panic!("expected a refusal: {other:?}"),
    }
}

/// Is each line that cannot be used refused by its own name? An unknown one, a used one, an expired one.
#[test]
fn a_line_is_unknown_used_or_expired() {
    let mut story = Story::new();
    let admin = story.admin();
    assert_eq!(join_refused(&mut story, "never made"), RefusalCode::JoinUnknown);

    story.give(Input::JoinCreate { session: admin, request: 1, secret: secret("once"), uses: 0, ttl_ms: 0 });
    let expires_ms = story.now.unix_ms + JOIN_TTL_DEFAULT_MS;
    let answer = Answer::JoinMade { expires_ms };
    assert_eq!(story.take(), Effect::Answer { session: admin, request: 1, answer });
    assert_eq!(joined(&mut story, "once", Some("lab")), "lab");
    assert_eq!(join_refused(&mut story, "once"), RefusalCode::JoinUsed);

    story.give(Input::LocalJoin { secret: secret("short"), uses: 5, ttl_ms: 10_000 });
    story.pass(10);
    assert_eq!(join_refused(&mut story, "short"), RefusalCode::JoinExpired);
    story.end();
}

/// Is an expired line remembered for a day, to say so by name, and then forgotten for good?
#[test]
fn an_expired_line_is_forgotten_after_a_day() {
    let mut story = Story::new();
    story.give(Input::LocalJoin { secret: secret("line"), uses: 1, ttl_ms: 1_000 });
    story.pass(1 + JOIN_MEMORY_MS / 1_000 - 1);
    assert_eq!(join_refused(&mut story, "line"), RefusalCode::JoinExpired);
    story.pass(1);
    assert_eq!(join_refused(&mut story, "line"), RefusalCode::JoinUnknown);
    assert!(story.records.contains(&Record::JoinForgotten { secret: secret("line") }));
    story.end();
}

/// Does a line for three machines take three, and do equal wishes become different names?
#[test]
fn a_line_for_several_gives_each_its_own_name() {
    let mut story = Story::new();
    story.give(Input::LocalJoin { secret: secret("class"), uses: 4, ttl_ms: 0 });
    assert_eq!(joined(&mut story, "class", Some("lab")), "lab");
    assert_eq!(joined(&mut story, "class", Some("lab")), "lab-2");
    assert_eq!(joined(&mut story, "class", Some("lab")), "lab-3");
    assert_eq!(joined(&mut story, "class", None), "node");
    assert_eq!(join_refused(&mut story, "class"), RefusalCode::JoinUsed);
    story.end();
}

/// Is a long name that is free given whole, and cut only to make room for a number?
#[test]
fn a_long_name_is_kept_when_it_is_free() {
    let mut story = Story::new();
    let long = "a".repeat(63);
    story.give(Input::LocalJoin { secret: secret("two"), uses: 2, ttl_ms: 0 });
    assert_eq!(joined(&mut story, "two", Some(&long)), long);
    assert_eq!(joined(&mut story, "two", Some(&long)), format!("{}-2", "a".repeat(50)));
    story.end();
}

/// May a machine whose certificate is ours register although this hub does not know its name (its journal is older)?
#[test]
fn a_certificate_makes_a_node_known() {
    let mut story = Story::new();
    story.worker("lab", 1);
    assert!(story.records.contains(&Record::NodeKnown { name: node("lab") }));
    // The second time it is known already, after a restart of the hub too.
    story.restart_hub();
    let records = story.records.len();
    story.worker("lab", 1);
    assert_eq!(story.records.len(), records);
    story.end();
}
