//! Attempts that bring no files and read no live input, which the worker runs without a task of their own.

use crate::bench::{Home, attempt, is_alive, phase, until};
use crate::hub::{Hub, Outcome};
use crate::links::disconnected;
use crate::programs::first_number;
use essaim_proto::Function;
use essaim_proto::job::{Phase, Verdict};
use essaim_proto::link::{AttemptOutput, AttemptOutputAck, Ended, Registered, Start};

/// A shell script as job `job`, without a file.
fn words(job: u64, script: &str) -> Start {
    Start { attempt: attempt(job), phases: vec![phase(Phase::Run, &["sh", "-c", script])], ..Start::default() }
}

// Is a short program told as any other: both streams, its result, its phases, what cannot be started?
pub(crate) async fn short_programs_are_told() {
    let (hub, home) = (Hub::open().await, Home::new());
    let worker = home.worker(&hub);
    let mut session = hub.worker().await;
    for job in 1..20 {
        let outcome = session.run(&words(job, "echo $ESSAIM_JOB; echo err >&2; exit 3")).await;
        assert_eq!((outcome.stdout(), outcome.stderr()), (format!("{job}\n").as_str(), "err\n"));
        assert_eq!((outcome.result.verdict, outcome.result.exit_code), (Verdict::RuntimeError, Some(3)));
    }
    let mut start = words(20, "echo run; echo more >&2");
    start.phases.insert(0, phase(Phase::Compile, &["sh", "-c", "echo a; echo b >&2; echo c"]));
    let outcome = session.run(&start).await;
    assert_eq!((outcome.stdout(), outcome.stderr()), ("run\n", "a\nb\nc\nmore\n"));
    start.attempt = attempt(21);
    start.phases[0] = phase(Phase::Compile, &["sh", "-c", "echo no; exit 1"]);
    let outcome = session.run(&start).await;
    assert_eq!((outcome.result.verdict, outcome.stderr()), (Verdict::CompileError, "no\n"));
    for (job, argv) in [(22, "no-such-program"), (23, "./no-such-file")] {
        let start = Start { phases: vec![phase(Phase::Run, &[argv])], ..words(job, "") };
        let outcome = session.run(&start).await;
        assert_eq!(outcome.result.verdict, Verdict::Rejected);
        assert_eq!(outcome.result.reason.unwrap().code, "program_missing");
    }
    assert_eq!(session.run(&words(24, "cat; echo end")).await.stdout(), "end\n");
    worker.finish(session).await;
}

// Does the next program get the folder of the last one only if nothing was done to it?
pub(crate) async fn a_folder_left_as_it_was_serves_again() {
    let (hub, home) = (Hub::open().await, Home::new());
    let worker = home.worker(&hub);
    let mut session = hub.worker().await;
    let first = session.run(&words(1, "pwd; ls -A . $TMPDIR >&2")).await;
    assert_eq!(first.stderr(), ".:\n\n".to_owned() + first.stderr().lines().nth(2).unwrap() + "\n");
    for job in 2..10 {
        assert_eq!(session.run(&words(job, "pwd")).await.stdout(), first.stdout());
    }
    let (mut last, mut job) = (first.stdout().to_owned(), 10);
    for change in
        ["touch x", "mkdir $TMPDIR/x", "chmod 755 .", "touch x; chmod 500 .", "rmdir $TMPDIR", "cd /; rmdir $HOME"]
    {
        let dirty = session.run(&words(job, &format!("pwd; {change}"))).await;
        assert_eq!((dirty.stdout(), dirty.result.verdict), (last.as_str(), Verdict::Ok), "{change}");
        let next = session.run(&words(job + 1, "pwd; ls -A . $TMPDIR; test $HOME = $(pwd)")).await;
        assert_eq!(next.result.verdict, Verdict::Ok);
        let folder = next.stdout().lines().next().unwrap().to_owned() + "\n";
        assert_ne!(folder, last, "{change}");
        assert_eq!(next.stdout().lines().filter(|line| !line.is_empty()).count(), 3, "{}", next.stdout());
        let old = std::path::PathBuf::from(last.trim_end());
        until("the folder is gone", || !old.exists()).await;
        (last, job) = (folder, job + 2);
    }
    worker.finish(session).await;
}

// Does a program that runs on speak live, and is much output whole, below and above every limit on its way?
pub(crate) async fn long_programs_and_long_output() {
    let (hub, home) = (Hub::open().await, Home::new());
    let worker = home.worker(&hub);
    let mut session = hub.worker().await;
    let gate = tempfile::tempdir().unwrap();
    let gate = gate.path().join("go");
    let start = words(1, &format!("echo first; while [ ! -e {} ]; do sleep 0.01; done; echo last", gate.display()));
    session.start(&start);
    session.stdout_until("first\n").await;
    std::fs::write(&gate, "").unwrap();
    let outcome = Outcome { stdout: b"first\n".to_vec(), ..Outcome::default() };
    let outcome = session.end_from(start.attempt, outcome).await;
    assert_eq!((outcome.stdout(), outcome.result.verdict), ("first\nlast\n", Verdict::Ok));
    session.end_ack(start.attempt);
    for (job, bytes) in (2..).zip([4_095, 4_096, 4_097, 20_000, 65_536, 65_537, 300_000, 5_000_000]) {
        let outcome = session.run(&words(job, &format!("seq 1 9999999 | head -c {bytes}; echo end >&2"))).await;
        let expected: Vec<u8> = (1..).flat_map(|n: u32| format!("{n}\n").into_bytes()).take(bytes).collect();
        assert!(outcome.stdout == expected, "{bytes}");
        assert_eq!(outcome.stderr(), "end\n");
    }
    // A long phase before a short one, and the other way round.
    let mut start = words(20, "echo run");
    start.phases.insert(0, phase(Phase::Compile, &["sh", "-c", "echo a; sleep 0.1; echo b"]));
    let outcome = session.run(&start).await;
    assert_eq!((outcome.stdout(), outcome.stderr()), ("run\n", "a\nb\n"));
    let mut start = words(21, "echo run; sleep 0.1; echo on");
    start.phases.insert(0, phase(Phase::Compile, &["echo", "a"]));
    let outcome = session.run(&start).await;
    assert_eq!((outcome.stdout(), outcome.stderr()), ("run\non\n", "a\n"));
    worker.finish(session).await;
}

// Is an end with its output, little or much, told again until it is recorded, from what the hub has?
pub(crate) async fn ends_are_kept_until_they_are_recorded() {
    let (hub, home) = (Hub::open().await, Home::new());
    let mut worker = home.worker(&hub);
    let mut session = hub.worker().await;
    for (job, bytes) in [(1, 7_usize), (2, 50_000)] {
        let start = words(job, &format!("seq 1 99999 | head -c {bytes}; exit 7"));
        let expected: Vec<u8> = (1..).flat_map(|n: u32| format!("{n}\n").into_bytes()).take(bytes).collect();
        session.start(&start);
        session.wait_for(Function::ENDED).await;
        // What a hub has said to have is dropped here, so it has more each time.
        for has in [0, 3, bytes] {
            drop(session);
            worker.event(disconnected).await;
            let kept = AttemptOutputAck { attempt: start.attempt, stdout: has as u64, stderr: 0 };
            let (again, register) = hub.worker_with(|_| Registered { keep: vec![kept], ..Registered::default() }).await;
            assert_eq!(register.held, [start.attempt]);
            session = again;
            let mut stdout = expected[..has].to_vec();
            let ended: Ended = loop {
                let frame = session.next().await;
                match frame.function {
                    Function::ATTEMPT_OUTPUT => {
                        let output: AttemptOutput = frame.message().unwrap();
                        assert_eq!(output.offset, stdout.len() as u64);
                        stdout.extend(output.bytes);
                    }
                    Function::ENDED => break frame.message().unwrap(),
                    other => panic!("{other:?}"),
                }
            };
            assert!(stdout == expected, "{bytes} bytes, {has} of them there");
            assert_eq!((ended.attempt, ended.result.exit_code), (start.attempt, Some(7)));
            assert_eq!(ended.result.stdout_bytes, bytes as u64);
        }
        session.end_ack(start.attempt);
        session.run(&words(job + 10, "")).await;
    }
    worker.finish(session).await;
}

// Does a program that was short until now die by order, by its limit, and with its cage?
pub(crate) async fn they_can_be_killed() {
    let (hub, home) = (Hub::open().await, Home::new());
    let worker = home.worker(&hub);
    let mut session = hub.worker().await;
    let start = words(1, "setsid sh -c 'echo $$; exec sleep 1000' & wait");
    session.start(&start);
    let output = session.output().await;
    let pid = first_number(&output.bytes);
    session.stop(start.attempt);
    let outcome = session.end_from(start.attempt, Outcome { stdout: output.bytes, ..Outcome::default() }).await;
    assert_eq!(outcome.result.verdict, Verdict::Cancelled);
    assert!(!is_alive(pid), "the tree is dead before its end is told");
    session.end_ack(start.attempt);
    for (job, wall_ms) in (2..).zip([1, 3, 50]) {
        let mut start = words(job, "sleep 1000");
        start.phases[0].wall_ms = wall_ms;
        assert_eq!(session.run(&start).await.result.verdict, Verdict::TimeLimit);
    }
    // A stop that comes with the start finds it somewhere on its way.
    for job in 10..40 {
        let start = words(job, "sleep 1000");
        session.start(&start);
        session.stop(start.attempt);
        let outcome = session.end_from(start.attempt, Outcome::default()).await;
        assert_eq!(outcome.result.verdict, Verdict::Cancelled);
        session.end_ack(start.attempt);
    }
    let start = words(50, "echo $$; exec sleep 1000");
    session.start(&start);
    let output = session.output().await;
    let pid = first_number(&output.bytes);
    worker.kill_cage();
    let outcome = session.end_from(start.attempt, Outcome { stdout: output.bytes, ..Outcome::default() }).await;
    assert_eq!(outcome.result.verdict, Verdict::InternalError);
    assert_eq!(outcome.result.reason.unwrap().code, "cage_failed");
    session.end_ack(start.attempt);
    until("it is dead", || !is_alive(pid)).await;
    let mut job = 51;
    // Until the new cage is there, programs are told that there is none.
    while session.run(&words(job, "exit 0")).await.result.verdict != Verdict::Ok {
        job += 1;
    }
    worker.finish(session).await;
}

// Do programs that end while their cage dies end once each, however it comes?
pub(crate) async fn a_cage_that_dies_costs_what_runs() {
    let (hub, home) = (Hub::open().await, Home::new());
    let worker = home.worker(&hub);
    let mut session = hub.worker().await;
    for round in 0..5 {
        for job in 0..20 {
            session.start(&words(round * 100 + job + 1, "exit 0"));
            if job == 10 {
                worker.kill_cage();
            }
            let ended: Ended = session.wait_for(Function::ENDED).await.message().unwrap();
            assert_eq!(ended.attempt, attempt(round * 100 + job + 1));
            let code = ended.result.reason.as_ref().map(|reason| reason.code.as_str());
            assert!(ended.result.verdict == Verdict::Ok || code == Some("cage_failed"), "{ended:?}");
            session.end_ack(ended.attempt);
        }
    }
    worker.finish(session).await;
}
