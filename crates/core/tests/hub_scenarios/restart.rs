//! A hub that was killed and started again.

use crate::story::{Story, attempt, instance, python, register};
use essaim_core::hub::{Answer, Durable, Hub, Input, Out, Query, Record};
use essaim_core::lang::LanguageTable;
use essaim_core::limits::LEASE_MS;
use essaim_proto::SubmitKey;
use essaim_proto::job::{JobSpec, TaskState, Verdict};
use essaim_proto::link::Register;

/// Does a program survive a restart of the hub? Its worker comes back with it within the lease.
#[test]
fn what_runs_is_kept() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 1);
    let (job, first) = story.run(client, lab);
    let waits = story.submit(client, python());
    story.restart_hub();
    story.pass(59);
    let (lab, registered) = story.register("lab", Register { held: vec![first], ..register(1) });
    assert_eq!(registered.keep[0].attempt, first);
    story.ended(lab, first, Verdict::Ok);
    story.event(job, TaskState::Done);
    story.acked(lab, first);
    story.start(lab, attempt(waits, 1));
    story.end();
}

/// Are leases fresh after a restart, and do they run out for a worker that does not come back?
#[test]
fn what_does_not_come_back_is_lost() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 1);
    let (job, _) = story.run(client, lab);
    story.restart_hub();
    story.pass(59);
    story.nothing_else();
    story.pass(1);
    story.event(job, TaskState::Ready);
    let other = story.worker("other", 1);
    story.start(other, attempt(job, 2));
    story.end();
}

/// What if a worker comes back without an attempt that it was given before the restart? The hub cannot know whether it
/// ran and died with an older instance; a second run under the same number could mix two outputs, so it gets a new one.
#[test]
fn an_attempt_that_may_have_run_is_not_started_again_under_its_number() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 1);
    let (job, _) = story.run(client, lab);
    story.restart_hub();
    let (lab, _) = story.register("lab", Register { instance: instance(2), ..register(1) });
    story.event(job, TaskState::Ready);
    story.start(lab, attempt(job, 2));
    story.end();
}

/// Is a cancel that was recorded before the restart said again to the worker that has the program?
#[test]
fn a_cancel_is_said_again() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 1);
    let (job, first) = story.run(client, lab);
    story.ask_cancel(client, job);
    story.told_to_stop(lab, first);
    story.event(job, TaskState::Placed);
    story.done();
    story.restart_hub();
    let (lab, _) = story.register("lab", Register { held: vec![first], ..register(1) });
    story.told_to_stop(lab, first);
    story.ended(lab, first, Verdict::Cancelled);
    story.event(job, TaskState::Cancelled);
    story.acked(lab, first);
    story.end();
}

/// Does an ephemeral job live through a restart when its client comes back (with its Submit or to watch), and is it
/// cancelled when it does not?
#[test]
fn an_ephemeral_job_waits_for_its_client_once() {
    for comes_back in ["not", "submits", "watches"] {
        let mut story = Story::new();
        let client = story.admin();
        let spec = || Box::new(JobSpec { ephemeral: true, ..python() });
        story.give(Input::Submit { session: client, request: 1, key: SubmitKey([7; 16]), spec: spec() });
        let job = story.submitted(false);
        story.event(job, TaskState::Ready);
        story.restart_hub();
        let client = story.admin();
        match comes_back {
            "submits" => {
                story.give(Input::Submit { session: client, request: 1, key: SubmitKey([7; 16]), spec: spec() });
                assert_eq!(story.submitted(true), job);
            }
            "watches" => assert!(matches!(story.query(client, Query::Watch { job, key: None }), Answer::Watching(_))),
            _ => {}
        }
        story.pass(LEASE_MS / 1_000 - 1);
        story.nothing_else();
        story.pass(1);
        if comes_back != "not" {
            story.nothing_else();
            story.gone(client);
        }
        assert_eq!(story.event(job, TaskState::Cancelled).reason.unwrap().code, "client_gone");
        story.end();
    }
}

/// What if the hub died between recording that a task was placed and saying so? The same start of the worker comes back
/// and has never heard of it: it is told now, under the same number, and no try is lost, however often that happens.
#[test]
fn a_word_that_died_with_the_hub_is_said_by_the_next() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 1);
    let (job, first) = story.run(client, lab);
    for _ in 0..4 {
        story.restart_hub();
        let (lab, registered) = story.register("lab", register(1));
        assert!(registered.keep.is_empty() && registered.kill.is_empty());
        story.told_to_start(lab, first);
    }
    assert_eq!(story.hub.durable().jobs[&job].task.lost, 0);
    story.end();
}

/// What of a program that ended while the hub was away? Its worker comes back with the attempt, the hub wants it, hears
/// the end, records it once, and acknowledges it as often as it is told: also by the hub after the next.
#[test]
fn an_end_while_the_hub_was_away_is_recorded_once() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 1);
    let (job, first) = story.run(client, lab);
    story.restart_hub();
    let held = || Register { held: vec![first], ..register(1) };
    let (lab, registered) = story.register("lab", held());
    assert_eq!((registered.keep[0].attempt, registered.kill.len()), (first, 0));
    story.ended(lab, first, Verdict::Ok);
    story.event(job, TaskState::Done);
    story.acked(lab, first);
    // The acknowledgement was lost with this hub as well: the worker brings the attempt again, and may forget it.
    story.restart_hub();
    let (lab, registered) = story.register("lab", held());
    assert_eq!((registered.keep.len(), registered.kill.as_slice()), (0, &[first][..]));
    story.ended(lab, first, Verdict::Ok);
    story.acked(lab, first);
    let ends = story.records.iter().filter(|record| matches!(record, Record::TaskEnded { .. })).count();
    assert_eq!(ends, 1);
    story.end();
}

/// What of a program whose job was cancelled after the restart, before its worker came back, or that ran elsewhere
/// meanwhile? It is killed when its worker comes.
#[test]
fn what_nobody_wants_any_more_is_killed() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 2);
    let (cancelled, first) = story.run(client, lab);
    let (elsewhere, second) = story.run(client, lab);
    story.restart_hub();
    let client = story.admin();
    story.ask_cancel(client, cancelled);
    story.event(cancelled, TaskState::Cancelled);
    story.done();
    story.pass(60);
    story.event(elsewhere, TaskState::Ready);
    let other = story.worker("other", 1);
    story.start(other, attempt(elsewhere, 2));
    let never = attempt(essaim_proto::JobId(77), 1);
    let (_, registered) = story.register("lab", Register { held: vec![first, second, never], ..register(2) });
    assert_eq!((registered.keep.len(), registered.kill.as_slice()), (0, &[first, second, never][..]));
    story.end();
}

/// Does a repeated Submit find its job after a restart too: one that waits, one that runs, one that is over?
#[test]
fn a_repeated_submit_finds_its_job_after_a_restart() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 1);
    let submit =
        |session, n: u8| Input::Submit { session, request: 1, key: SubmitKey([n; 16]), spec: Box::new(python()) };
    for n in 1..=3 {
        story.give(submit(client, n));
        let job = story.submitted(false);
        match n {
            1 => {
                story.start(lab, attempt(job, 1));
                story.ended(lab, attempt(job, 1), Verdict::Ok);
                story.event(job, TaskState::Done);
                story.acked(lab, attempt(job, 1));
            }
            2 => drop(story.start(lab, attempt(job, 1))),
            _ => drop(story.event(job, TaskState::Ready)),
        }
    }
    for _ in 0..2 {
        let client = story.admin();
        for n in 1..=3 {
            story.give(submit(client, n));
            assert_eq!(story.submitted(true), essaim_proto::JobId(n.into()));
        }
        story.restart_hub();
    }
    story.end();
}

/// What if the table has lost a language since a job was accepted? A node that claims it does not get half a start; the
/// job ends with the reason instead of holding a slot for ever.
#[test]
fn a_job_whose_language_is_gone_is_rejected() {
    let text = "[tcl]\nextensions = [\"tcl\"]\nsource = \"main.tcl\"\nrun = [\"tclsh\", \"{entry}\"]\nprobes = [[\"tclsh\"]]\n";
    let table = LanguageTable::with_user_entries(text).unwrap();
    let mut story = Story::new();
    let records = story.records.clone();
    let mut durable = Durable::default();
    records.iter().for_each(|record| durable.apply(record));
    story.hub = Hub::new(story.now, durable, table);
    let client = story.admin();
    let mut spec = python();
    spec.files[0].path = "main.tcl".into();
    let job = story.submit(client, spec);
    story.restart_hub();
    let tcl = crate::story::toolchains(&["tcl"]);
    story.register("lab", Register { toolchains: tcl, ..register(1) });
    let over = story.event(job, TaskState::Failed).result.unwrap();
    assert_eq!((over.verdict, over.reason.unwrap().code.as_str()), (Verdict::Rejected, "no_such_language"));
    story.end();
}

/// Does a snapshot give back the same durable part as the journal? With jobs in every state, keys, lines and nodes.
#[test]
fn a_snapshot_is_the_durable_part() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 1);
    let (job, first) = story.run(client, lab);
    story.submit(client, python());
    story.give(Input::LocalJoin { secret: crate::story::secret("line"), uses: 2, ttl_ms: 0 });
    story.ended(lab, first, Verdict::Ok);
    story.event(job, TaskState::Done);
    story.acked(lab, first);
    story.skip_all();
    let bytes = essaim_proto::encode(story.hub.durable());
    let back: Durable = essaim_proto::decode(&bytes).unwrap();
    assert_eq!(&back, story.hub.durable());
    story.end();
}

/// Does a damaged journal (records twice, out of order, of other attempts) break the durable part's own counts?
#[test]
fn records_that_do_not_fit_change_nothing() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 1);
    let (job, first) = story.run(client, lab);
    let mut durable = story.hub.durable().clone();
    let accepted = story.records.iter().find(|r| matches!(r, Record::JobAccepted { .. })).unwrap().clone();
    let result = Box::new(crate::story::result(Verdict::Ok));
    for nonsense in [
        accepted,
        Record::TaskPlaced { attempt: first, node: "moon".parse().unwrap(), instance: instance(1) },
        Record::TaskPlaced { attempt: attempt(job, 2), node: "moon".parse().unwrap(), instance: instance(1) },
        Record::AttemptLost { attempt: attempt(job, 7), given_back: false },
        Record::TaskEnded { attempt: attempt(job, 7), result, at_ms: 1, output: None },
        Record::JobForgotten { job },
    ] {
        durable.apply(&nonsense);
        assert_eq!(&durable, story.hub.durable(), "{nonsense:?}");
    }
    let mut out = Out::default();
    Hub::new(story.now, durable, LanguageTable::built_in()).step(story.now, Input::Tick, &mut out);
    assert_eq!(out, Out::default());
    story.end();
}
