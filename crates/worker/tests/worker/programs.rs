//! Programs: what a hub gives, and what comes back.

use crate::SECRET;
use crate::bench::{Home, attempt, blob, file, is_alive, kill, live, phase, shell, until};
use crate::hub::{Hub, Outcome};
use essaim_proto::job::{Phase, Verdict};
use essaim_proto::limits::{OUTPUT_WINDOW_BYTES, STDIN_WINDOW_BYTES};
use essaim_proto::link::{Ended, EndedMany, GivenBack, PhaseSpec, Progress, Start, TakeBack};
use essaim_proto::{Frame, Function, JobId};
use essaim_worker::WorkerEvent;
use std::collections::BTreeSet;

pub(crate) fn first_number(outcome: &[u8]) -> i32 {
    std::str::from_utf8(outcome).unwrap().lines().next().unwrap().trim().parse().unwrap()
}

// The whole walk: join, register, start, output on both streams, exit code, acknowledgement, nothing left.
pub(crate) async fn a_program_runs_from_join_to_end() {
    let (hub, home) = (Hub::open().await, Home::new());
    let mut worker = home.worker(&hub);
    let (mut session, register) = hub.worker_with(|_| Default::default()).await;
    assert!(register.facts.cpus > 0 && register.facts.memory_bytes > 0 && register.slots == 4 && register.probing);
    assert_eq!(register.facts.addresses[0], "127.0.0.1");
    worker.event(|event| matches!(event, WorkerEvent::Joined { name } if name.as_str() == "n1").then_some(())).await;
    let connected = |event| matches!(event, WorkerEvent::Connected { hub, .. } if hub == "test hub").then_some(());
    worker.event(connected).await;

    let mut start = shell(1, "cat sub/in.txt; echo words >&2; pwd; exit 3");
    start.files.push(file("sub/in.txt", b"from a file\n"));
    let outcome = session.run(&start).await;
    let folder = worker.folder(start.attempt).canonicalize().unwrap_or_else(|_| worker.folder(start.attempt));
    assert_eq!(outcome.stdout(), format!("from a file\n{}\n", folder.display()));
    assert_eq!(outcome.stderr(), "words\n");
    let result = &outcome.result;
    assert_eq!((result.verdict, result.phase, result.exit_code), (Verdict::RuntimeError, Phase::Run, Some(3)));
    assert!(result.memory_peak_bytes > 0);
    worker.is_clean().await;
    let outcome = session.run(&shell(2, "exit 0")).await;
    assert_eq!(outcome.result.verdict, Verdict::Ok);
    worker.finish(session).await;
}

// A compiler's words are on stderr whatever stream it uses, a program that does not compile does not run; one that does
// runs with line buffering.
pub(crate) async fn a_compiler_speaks_on_stderr() {
    let (hub, home) = (Hub::open().await, Home::new());
    let worker = home.worker(&hub);
    let mut session = hub.worker().await;
    let c = |job, source: &str| Start {
        attempt: attempt(job),
        files: vec![file("sum.c", source.as_bytes())],
        phases: vec![
            phase(Phase::Compile, &["gcc", "-o", "sum.out", "sum.c"]),
            PhaseSpec { line_buffered: true, ..phase(Phase::Run, &["./sum.out"]) },
        ],
        ..Start::default()
    };
    let outcome = session.run(&c(1, "int main(void) { return wrong; }")).await;
    assert_eq!((outcome.result.verdict, outcome.result.phase), (Verdict::CompileError, Phase::Compile));
    assert!(outcome.stdout.is_empty() && outcome.stderr().contains("wrong"), "{outcome:?}");
    let outcome = session.run(&c(2, "#include <stdio.h>\nint main(void) { puts(\"sum\"); return 0; }")).await;
    assert_eq!((outcome.result.verdict, outcome.stdout()), (Verdict::Ok, "sum\n"), "{outcome:?}");

    let talk = Start {
        phases: vec![
            phase(Phase::Compile, &["sh", "-c", "cat; echo on stdout; echo on stderr >&2"]),
            phase(Phase::Run, &["sh", "-c", "echo ran; echo and said >&2"]),
        ],
        ..shell(3, "")
    };
    let outcome = session.run(&talk).await;
    assert_eq!((outcome.stdout(), outcome.stderr()), ("ran\n", "on stdout\non stderr\nand said\n"));
    worker.finish(session).await;
}

// What is typed reaches the program once and in order, the hub hears that it did, and the end ends it.
pub(crate) async fn live_input_is_echoed_and_ends() {
    let (hub, home) = (Hub::open().await, Home::new());
    let worker = home.worker(&hub);
    let mut session = hub.worker().await;
    let start = live(shell(1, "while read line; do echo \"got $line\"; done; echo over"));
    let id = start.attempt;
    // Before the program runs, with a repetition.
    session.start(&start);
    session.stdin(id, 0, b"one\n", false);
    session.stdin(id, 0, b"one\ntw", false);
    session.stdin_acked(id, 6).await;
    session.stdin(id, 6, b"o\n", false);
    session.stdin_acked(id, 8).await;
    // The program waits for someone to type.
    loop {
        let progress: Progress = session.wait_for(Function::PROGRESS).await.message().unwrap();
        if progress.waiting_for_input {
            break;
        }
    }
    session.stdin(id, 8, b"three\n", true);
    let outcome = Outcome { stdout: b"got one\ngot two\n".to_vec(), ..Outcome::default() };
    let outcome = session.end_from(id, outcome).await;
    assert_eq!(outcome.stdout(), "got one\ngot two\ngot three\nover\n");
    assert_eq!(outcome.result.verdict, Verdict::Ok);
    worker.finish(session).await;
}

// A program that does not read, and one that is over, must not hold up who types.
pub(crate) async fn input_that_nobody_reads_is_acknowledged() {
    let (hub, home) = (Hub::open().await, Home::new());
    let worker = home.worker(&hub);
    let mut session = hub.worker().await;
    let start = live(shell(1, "exec 0<&-; echo closed; while [ ! -e go ]; do sleep 0.01; done"));
    let id = start.attempt;
    session.start(&start);
    session.stdout_until("closed").await;
    let window = vec![b'x'; STDIN_WINDOW_BYTES as usize];
    session.stdin(id, 0, &window, false);
    session.stdin_acked(id, STDIN_WINDOW_BYTES).await;
    std::fs::write(worker.folder(id).join("go"), "").unwrap();
    session.wait_for(Function::ENDED).await;
    session.stdin(id, STDIN_WINDOW_BYTES, &window, true);
    session.stdin_acked(id, 2 * STDIN_WINDOW_BYTES).await;
    session.end_ack(id);
    // A program that was given no live input at all.
    let start = shell(2, "while [ ! -e go ]; do sleep 0.01; done");
    session.start(&start);
    session.stdin(start.attempt, 0, b"for nobody", true);
    session.stdin_acked(start.attempt, 10).await;
    session.stop(start.attempt);
    session.wait_for(Function::ENDED).await;
    worker.finish(session).await;
}

// A cancelled program dies with what left its session and its group, and the hub hears that it was cancelled.
pub(crate) async fn a_stop_takes_the_whole_tree() {
    let (hub, home) = (Hub::open().await, Home::new());
    let worker = home.worker(&hub);
    let mut session = hub.worker().await;
    let start = shell(1, "setsid sh -c 'echo $$; exec sleep 1000' & trap '' TERM; wait; sleep 1000");
    session.start(&start);
    let output = session.output().await;
    let pid = first_number(&output.bytes);
    assert!(is_alive(pid));
    session.stop(start.attempt);
    let outcome = session.end_from(start.attempt, Outcome { stdout: output.bytes, ..Outcome::default() }).await;
    assert_eq!(outcome.result.verdict, Verdict::Cancelled);
    assert!(!is_alive(pid), "the tree is dead before its end is told");
    session.end_ack(start.attempt);
    worker.is_clean().await;
    worker.finish(session).await;
}

// An attempt whose files never come can be cancelled, and leaves no folder.
pub(crate) async fn a_stop_while_files_are_on_their_way() {
    let (hub, home) = (Hub::open().await, Home::new());
    let worker = home.worker(&hub);
    let mut session = hub.worker().await;
    let start = Start { files: vec![blob("never", b"comes")], ..shell(1, "") };
    session.start(&start);
    let asked = session.wait_for(Function::BLOB_GET).await;
    session.stop(start.attempt);
    // The transfer is given up, and the end is told, in any order.
    let mut awaited = vec![Function::UNWATCH, Function::ENDED];
    while !awaited.is_empty() {
        let frame = session.next().await;
        awaited.retain(|function| *function != frame.function);
        match frame.function {
            Function::UNWATCH => assert_eq!(frame.id, asked.id),
            Function::ENDED => assert_eq!(frame.message::<Ended>().unwrap().result.verdict, Verdict::Cancelled),
            _ => {}
        }
    }
    worker.is_clean().await;
    worker.finish(session).await;
}

// What is not there, or is no program, is the program's fault and says so; the worker goes on.
pub(crate) async fn what_cannot_be_started_is_rejected() {
    let (hub, home) = (Hub::open().await, Home::new());
    let worker = home.worker(&hub);
    let mut session = hub.worker().await;
    let cases: [(&[&str], &str); 4] = [
        (&["no-such-program", "x"], "program_missing"),
        (&["./no-such-file"], "program_missing"),
        (&["./main.sh"], "program_not_executable"),
        (&[], "program_missing"),
    ];
    for (job, (argv, code)) in (1..).zip(cases) {
        let start = Start { phases: vec![phase(Phase::Run, argv)], ..shell(job, "echo never") };
        let outcome = session.run(&start).await;
        let reason = outcome.result.reason.as_ref().unwrap();
        assert_eq!((outcome.result.verdict, reason.code.as_str()), (Verdict::Rejected, code), "{argv:?}");
        assert_eq!(reason.params["program"], argv.first().copied().unwrap_or_default());
    }
    let mut start = Start { phases: vec![phase(Phase::Run, &["./main.sh"])], ..shell(9, "#!/bin/sh\necho runs") };
    start.files[0].executable = true;
    assert_eq!(session.run(&start).await.stdout(), "runs\n");
    worker.is_clean().await;
    worker.finish(session).await;
}

// A program over its wall time is killed and the reason names the limit.
pub(crate) async fn a_time_limit_is_told() {
    let (hub, home) = (Hub::open().await, Home::new());
    let worker = home.worker(&hub);
    let mut session = hub.worker().await;
    let mut start = shell(1, "echo begins; sleep 1000");
    start.phases[0].wall_ms = 300;
    let outcome = session.run(&start).await;
    assert_eq!((outcome.result.verdict, outcome.stdout()), (Verdict::TimeLimit, "begins\n"));
    assert_eq!(outcome.result.reason.unwrap().params["limit_ms"], "300");
    worker.finish(session).await;
}

// A program sees the plain set of variables, its own and its numbers, and nothing of the worker's.
pub(crate) async fn the_environment_is_clean() {
    assert_eq!(std::env::var(SECRET.0).unwrap(), SECRET.1, "there is something to hide");
    let (hub, home) = (Hub::open().await, Home::new());
    let worker = home.worker(&hub);
    let mut session = hub.worker().await;
    let mut start = shell(1, "");
    start.phases = vec![phase(Phase::Run, &["env"])];
    start.phases[0].env.insert("OWN".to_owned(), "own value".to_owned());
    let outcome = session.run(&start).await;
    let mut names: BTreeSet<&str> = outcome.stdout().lines().map(|line| line.split_once('=').unwrap().0).collect();
    for known in ["USER", "LOGNAME"] {
        names.remove(known);
    }
    let expected = ["ESSAIM_ATTEMPT", "ESSAIM_JOB", "ESSAIM_TASK_ID", "HOME", "LANG", "OWN", "PATH", "TMPDIR"];
    assert_eq!(names.into_iter().collect::<Vec<_>>(), expected);
    assert!(outcome.stdout().contains("OWN=own value\n") && outcome.stdout().contains("ESSAIM_JOB=1\n"));

    let script = "echo x > $TMPDIR/x && test $HOME = $(pwd) && ls -a . && ls /proc/self/fd | wc -l; umask";
    let outcome = session.run(&shell(2, script)).await;
    assert_eq!(outcome.stdout().lines().collect::<Vec<_>>()[..4], [".", "..", "main.sh", "4"], "{outcome:?}");
    worker.is_clean().await;
    worker.finish(session).await;
}

// Files that are blobs arrive whole, in more chunks than one window, also the empty one.
pub(crate) async fn blobs_come_in_chunks() {
    let (hub, home) = (Hub::open().await, Home::new());
    let worker = home.worker(&hub);
    let mut session = hub.worker().await;
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut start = shell(1, "cat data/large.bin; wc -c < data/empty >&2");
    start.files.push(blob("data/large.bin", &bytes));
    session.start(&start);
    assert_eq!(session.serve_blob(&bytes).await, 0);
    let outcome = session.end_from(start.attempt, Outcome::default()).await;
    assert_eq!(outcome.result.verdict, Verdict::RuntimeError, "the other file was not sent");
    assert!(outcome.stdout == bytes, "the bytes are the same");
    session.end_ack(start.attempt);

    let mut start = shell(2, "wc -c < empty");
    start.files.push(blob("empty", b""));
    session.start(&start);
    session.serve_blob(b"").await;
    assert_eq!(session.end_from(start.attempt, Outcome::default()).await.stdout(), "0\n");
    worker.finish(session).await;
}

// Bytes with another hash are never run; what the hub lacks is told in its own words.
pub(crate) async fn a_wrong_blob_is_refused() {
    let (hub, home) = (Hub::open().await, Home::new());
    let worker = home.worker(&hub);
    let mut session = hub.worker().await;
    let mut start = shell(1, "echo never");
    start.files.push(blob("data", b"right"));
    session.start(&start);
    for _ in 0..3 {
        session.serve_blob(b"wrong").await;
    }
    let outcome = session.end_from(start.attempt, Outcome::default()).await;
    assert_eq!(outcome.result.reason.unwrap().code, "blob_mismatch");

    start.attempt = attempt(2);
    session.start(&start);
    let request = session.wait_for(Function::BLOB_GET).await;
    let refusal = essaim_proto::Refusal::new(essaim_proto::RefusalCode::BlobMissing);
    essaim_net::hello::refuse(&session.connection.sender, request.id, &refusal).unwrap();
    let outcome = session.end_from(start.attempt, Outcome::default()).await;
    let reason = outcome.result.reason.unwrap();
    assert_eq!((outcome.result.verdict, reason.code.as_str()), (Verdict::InternalError, "blob_missing"));
    worker.is_clean().await;
    worker.finish(session).await;
}

// A line is here although the program goes on and nobody acknowledges anything, from the C library too.
pub(crate) async fn lines_come_as_they_are_written() {
    let (hub, home) = (Hub::open().await, Home::new());
    let worker = home.worker(&hub);
    let mut session = hub.worker().await;
    let source = "#include <stdio.h>\n#include <unistd.h>\n\
        int main(void) { for (int n = 0; n < 50; n++) { printf(\"line %d\\n\", n); if (getchar() < 0) return 1; } return 0; }";
    let start = live(Start {
        attempt: attempt(1),
        files: vec![file("talk.c", source.as_bytes())],
        phases: vec![
            phase(Phase::Compile, &["gcc", "-o", "talk.out", "talk.c"]),
            PhaseSpec { line_buffered: true, ..phase(Phase::Run, &["./talk.out"]) },
        ],
        ..Start::default()
    });
    session.start(&start);
    for n in 0..50 {
        session.stdout_until(&format!("line {n}\n")).await;
        session.stdin(start.attempt, n, b"y", false);
    }
    session.wait_for(Function::ENDED).await;
    worker.finish(session).await;
}

// Much output, from a program that writes much at a time and from one that writes little, arrives whole; nothing is read
// beyond the window that the hub gives.
pub(crate) async fn a_flood_arrives_whole() {
    let (hub, home) = (Hub::open().await, Home::new());
    let worker = home.worker(&hub);
    let mut session = hub.worker().await;
    let outcome = session.run(&shell(1, "head -c 50000000 /dev/zero; echo end >&2")).await;
    assert_eq!((outcome.stdout.len(), outcome.stderr()), (50_000_000, "end\n"));
    let outcome = session.run(&shell(2, "dd if=/dev/zero bs=1 count=300000 2>/dev/null")).await;
    assert_eq!(outcome.stdout.len(), 300_000);

    let start = shell(3, "head -c 3000000 /dev/zero");
    session.start(&start);
    let mut taken = 0;
    while taken < OUTPUT_WINDOW_BYTES {
        taken += session.output().await.bytes.len() as u64;
    }
    assert_eq!(taken, OUTPUT_WINDOW_BYTES, "no byte beyond the window");
    session.output_ack(start.attempt, taken, 0);
    let outcome = Outcome { stdout: vec![0; taken as usize], ..Outcome::default() };
    assert_eq!(session.end_from(start.attempt, outcome).await.stdout.len(), 3_000_000);
    worker.finish(session).await;
}

// A pipe that a process outside the tree holds open: here the cage was told to let the tree go, so we hold it ourselves.
pub(crate) async fn output_that_somebody_else_holds_does_not_delay_the_end() {
    let (hub, home) = (Hub::open().await, Home::new());
    let worker = home.worker(&hub);
    let mut session = hub.worker().await;
    let start = shell(1, "echo $$; echo told; while [ ! -e go ]; do sleep 0.01; done; echo last");
    session.start(&start);
    let mut stdout = Vec::new();
    while !stdout.ends_with(b"told\n") {
        stdout.extend(session.output().await.bytes);
    }
    // Another process of this machine takes the pipe's end for itself.
    let stolen = std::fs::File::options().write(true).open(format!("/proc/{}/fd/1", first_number(&stdout))).unwrap();
    std::fs::write(worker.folder(start.attempt).join("go"), "").unwrap();
    let outcome = session.end_from(start.attempt, Outcome { stdout, ..Outcome::default() }).await;
    assert!(outcome.stdout().ends_with("told\nlast\n"));
    assert_eq!(outcome.result.verdict, Verdict::Ok);
    drop(stolen);
    worker.finish(session).await;
}

// What finds no slot waits for one, in its order, and a task of an array goes back when it is asked for.
pub(crate) async fn more_than_its_slots_waits() {
    let (hub, home) = (Hub::open().await, Home::new());
    let (mut config, cages) = home.config(&hub);
    config.slots = 1;
    let worker = crate::bench::Worker::begin(config, cages);
    let mut session = hub.worker().await;
    let first = shell(1, "sleep 1000");
    session.start(&first);
    let second = shell(2, "echo $ESSAIM_TASK_ID");
    session.start(&second);
    let phases = vec![phase(Phase::Run, &["sh", "-c", "echo $ESSAIM_TASK_ID"])];
    let many = Start { attempt: attempt(3), tasks: Some("1-3".parse().unwrap()), phases, ..Start::default() };
    session.start(&many);
    session.send(Frame::of(Function::TAKE_BACK, 0, &TakeBack { job: JobId(3), tasks: "2-9".parse().unwrap() }));
    let given: GivenBack = session.wait_for(Function::GIVEN_BACK).await.message().unwrap();
    assert_eq!((given.job, given.tasks), (JobId(3), vec![(1, "2-3".parse().unwrap())]));
    session.stop(first.attempt);
    for (start, verdict) in [(first, Verdict::Cancelled), (second, Verdict::Ok)] {
        let ended: Ended = session.wait_for(Function::ENDED).await.message().unwrap();
        assert_eq!((ended.attempt, ended.result.verdict), (start.attempt, verdict));
    }
    let ended: EndedMany = session.wait_for(Function::ENDED_MANY).await.message().unwrap();
    assert_eq!((ended.job, ended.ends.len(), ended.ends[0].stdout.as_slice()), (JobId(3), 1, b"1\n".as_slice()));
    worker.finish(session).await;
}

// When the cage is killed, what ran in it ends by name and is dead, and the next program runs in a new cage.
pub(crate) async fn a_dead_cage_is_replaced() {
    let (hub, home) = (Hub::open().await, Home::new());
    let worker = home.worker(&hub);
    let mut session = hub.worker().await;
    let start = shell(1, "setsid sh -c 'echo $$; exec sleep 1000' & wait");
    session.start(&start);
    let output = session.output().await;
    let pid = first_number(&output.bytes);
    worker.kill_cage();
    let outcome = session.end_from(start.attempt, Outcome { stdout: output.bytes, ..Outcome::default() }).await;
    assert_eq!(outcome.result.verdict, Verdict::InternalError);
    assert_eq!(outcome.result.reason.unwrap().code, "cage_failed");
    session.end_ack(start.attempt);
    until("the tree is dead", || !is_alive(pid)).await;
    let mut job = 2;
    // Until the new cage is there, programs are told that there is none.
    let outcome = loop {
        let outcome = session.run(&shell(job, "echo again")).await;
        match outcome.result.reason.as_ref().map(|reason| reason.code.as_str()) {
            Some("cage_failed") => job += 1,
            _ => break outcome,
        }
    };
    assert_eq!((outcome.result.verdict, outcome.stdout()), (Verdict::Ok, "again\n"));
    worker.is_clean().await;
    let start = shell(job + 1, "echo $$; sleep 1000");
    session.start(&start);
    kill(first_number(&session.output().await.bytes));
    let ended = session.wait_for(Function::ENDED).await;
    let ended: Ended = ended.message().unwrap();
    assert_eq!((ended.result.verdict, ended.result.signal), (Verdict::RuntimeError, Some(9)));
    worker.finish(session).await;
}
