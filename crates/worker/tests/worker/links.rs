//! Connections: joining, losing, coming back, leaving.

use crate::bench::{Home, Worker, attempt, blob, is_alive, live, shell, until, within};
use crate::hub::{Hub, Outcome, probe};
use essaim_net::DialError;
use essaim_proto::frame::FLAG_ANSWER;
use essaim_proto::job::Verdict;
use essaim_proto::limits::CHUNK_BYTES;
use essaim_proto::link::{
    AttemptOutput, AttemptOutputAck, BlobWanted, EndAckMany, Ended, HeldMany, Leave, Registered, Report, Start,
};
use essaim_proto::{Frame, Function, JobId, Refusal, RefusalCode, TaskSet};
use essaim_worker::{Order, RunError, WorkerEvent};

pub(crate) fn disconnected(event: WorkerEvent) -> Option<String> {
    match event {
        WorkerEvent::Disconnected { why, .. } => Some(why),
        _ => None,
    }
}

fn keep(stdout: u64) -> Registered {
    let keep = vec![AttemptOutputAck { attempt: attempt(1), stdout, stderr: 0 }];
    Registered { keep, ..Registered::default() }
}

// The worker looks for what the hub names and tells what it found; a reconnect asks nothing again.
pub(crate) async fn probes_find_what_is_there() {
    let (hub, home) = (Hub::open().await, Home::new());
    let (mut config, cages) = home.config(&hub);
    config.only = Some(vec!["shell".to_owned(), "missing".to_owned()]);
    let mut worker = Worker::begin(config, cages);
    let languages = || Registered {
        languages: vec![
            probe("shell", &[&["sh", "-c", "echo a shell"]]),
            probe("missing", &[&["no-such-program"]]),
            probe("not wanted", &[&["sh", "-c", "echo 1"]]),
        ],
        ..Registered::default()
    };
    let (mut session, register) = hub.worker_with(|_| languages()).await;
    assert!(register.probing && register.toolchains.is_empty());
    let toolchains = loop {
        let report: Report = session.wait_for(Function::REPORT).await.message().unwrap();
        if !report.probing {
            break report.toolchains.unwrap();
        }
    };
    assert_eq!(toolchains.len(), 1);
    assert_eq!((toolchains[0].lang.as_str(), toolchains[0].version.as_str()), ("shell", "a shell"));
    drop(session);
    worker.event(disconnected).await;
    let (session, register) = hub.worker_with(|_| languages()).await;
    assert!(!register.probing && register.toolchains == toolchains);
    worker.finish(session).await;
}

// A program goes on without a connection; the new one gets exactly the bytes that the hub does not have.
pub(crate) async fn output_is_sent_again_from_what_the_hub_has() {
    let (hub, home) = (Hub::open().await, Home::new());
    let mut worker = home.worker(&hub);
    let (mut session, first) = hub.worker_with(|_| Registered::default()).await;
    let start = shell(
        1,
        "echo first; while [ ! -e go ]; do sleep 0.01; done; echo second; touch done; \
        while [ ! -e more ]; do sleep 0.01; done; echo third",
    );
    session.start(&start);
    session.stdout_until("first\n").await;
    session.output_ack(start.attempt, 3, 0);
    drop(session);
    worker.event(disconnected).await;
    let folder = worker.folder(start.attempt);
    std::fs::write(folder.join("go"), "").unwrap();
    until("the program goes on", || folder.join("done").exists()).await;

    // The hub had recorded more than it could say.
    let (mut session, second) = hub.worker_with(|_| keep(5)).await;
    assert_eq!((second.machine, second.instance), (first.machine, first.instance));
    assert_eq!(second.held, [start.attempt]);
    let output = session.output().await;
    assert_eq!((output.offset, output.bytes.as_slice()), (5, b"\nsecond\n".as_slice()));
    std::fs::write(folder.join("more"), "").unwrap();
    let outcome = Outcome { stdout: b"first\nsecond\n".to_vec(), ..Outcome::default() };
    let outcome = session.end_from(start.attempt, outcome).await;
    assert_eq!((outcome.stdout(), outcome.result.verdict), ("first\nsecond\nthird\n", Verdict::Ok));
    worker.finish(session).await;
}

// Input that the hub repeats after a lost connection, because it has heard no acknowledgement, is read once.
pub(crate) async fn repeated_input_is_read_once() {
    let (hub, home) = (Hub::open().await, Home::new());
    let mut worker = home.worker(&hub);
    let mut session = hub.worker().await;
    let start = live(shell(1, "while read line; do echo \"got $line\"; done"));
    session.start(&start);
    session.stdin(start.attempt, 0, b"one\n", false);
    session.stdout_until("got one\n").await;
    drop(session);
    worker.event(disconnected).await;
    let (mut session, _) = hub.worker_with(|_| keep(0)).await;
    // A hub that was started anew knows nothing of it: it is told without asking.
    session.stdin_acked(start.attempt, 4).await;
    session.stdin(start.attempt, 0, b"one\n", false);
    session.stdin_acked(start.attempt, 4).await;
    session.stdin(start.attempt, 0, b"one\ntwo\n", true);
    let (mut stdout, mut ended) = (Vec::new(), None);
    while ended.is_none() {
        let frame = session.next().await;
        match frame.function {
            Function::ATTEMPT_OUTPUT => stdout.extend(frame.message::<AttemptOutput>().unwrap().bytes),
            Function::ENDED => ended = Some(frame.message::<Ended>().unwrap()),
            _ => {}
        }
    }
    // What came before the acknowledgement was waited for is not kept here.
    assert_eq!(ended.unwrap().result.stdout_bytes, "got one\ngot two\n".len() as u64);
    assert!(stdout.ends_with(b"got two\n"));
    worker.finish(session).await;
}

// An end that was not recorded is told again with its output, over any number of connections; then it is forgotten.
pub(crate) async fn a_result_is_kept_until_it_is_recorded() {
    let (hub, home) = (Hub::open().await, Home::new());
    let mut worker = home.worker(&hub);
    let mut session = hub.worker().await;
    let start = shell(1, "echo result; exit 7");
    session.start(&start);
    session.wait_for(Function::ENDED).await;
    for has in [0, 7, 7] {
        drop(session);
        worker.event(disconnected).await;
        let (again, register) = hub.worker_with(|_| keep(has)).await;
        assert_eq!(register.held, [start.attempt]);
        session = again;
        let outcome = Outcome { stdout: b"result\n"[..has as usize].to_vec(), ..Outcome::default() };
        let outcome = session.end_from(start.attempt, outcome).await;
        assert_eq!((outcome.stdout(), outcome.result.exit_code), ("result\n", Some(7)));
    }
    session.end_ack(start.attempt);
    // Words are taken in order: after the next end, that acknowledgement has been heard.
    session.run(&shell(2, "")).await;
    session.run(&shell(3, "")).await;
    drop(session);
    worker.event(disconnected).await;
    let (session, register) = hub.worker_with(|_| Registered::default()).await;
    assert!(!register.held.contains(&start.attempt), "{:?}", register.held);
    worker.finish(session).await;
}

// A program whose hub has given it up is killed at the next registration, although its window is full and it waits.
pub(crate) async fn what_the_hub_no_longer_wants_is_killed() {
    let (hub, home) = (Hub::open().await, Home::new());
    let mut worker = home.worker(&hub);
    let mut session = hub.worker().await;
    let start = shell(1, "echo $$; exec cat /dev/zero");
    session.start(&start);
    let output = session.output().await;
    let line = output.bytes.iter().position(|byte| *byte == b'\n').unwrap();
    let pid: i32 = std::str::from_utf8(&output.bytes[..line]).unwrap().parse().unwrap();
    drop(session);
    worker.event(disconnected).await;
    let (mut session, _) = hub.worker_with(|_| Registered { kill: vec![start.attempt], ..Registered::default() }).await;
    until("the program is dead", || !is_alive(pid)).await;
    worker.is_clean().await;
    assert_eq!(session.run(&shell(2, "echo next")).await.stdout(), "next\n", "nothing of the other one comes");
    worker.finish(session).await;
}

// A file that was half here goes on from where it broke.
pub(crate) async fn a_transfer_goes_on_over_a_new_connection() {
    let (hub, home) = (Hub::open().await, Home::new());
    let mut worker = home.worker(&hub);
    let mut session = hub.worker().await;
    let bytes: Vec<u8> = (0..500_000_u32).map(|n| (n / 251) as u8).collect();
    let mut start = shell(1, "cat data");
    start.files.push(blob("data", &bytes));
    session.start(&start);
    let request = session.wait_for(Function::BLOB_GET).await;
    assert_eq!(request.message::<BlobWanted>().unwrap().attempt, start.attempt);
    let sender = session.connection.sender.clone();
    sender.bulk(Frame::bytes(Function::BLOB_BYTES, request.id, bytes[..CHUNK_BYTES].to_vec())).await.unwrap();
    // It is sent, and then the connection ends.
    drop(session);
    within("the connection ends", sender.closed()).await;
    worker.event(disconnected).await;
    let (mut session, _) = hub.worker_with(|_| keep(0)).await;
    assert_eq!(session.serve_blob(&bytes).await, CHUNK_BYTES as u64);
    let outcome = session.end_from(start.attempt, Outcome::default()).await;
    assert!(outcome.stdout == bytes);
    worker.finish(session).await;
}

// A join line that is used up ends the worker with the hub's own words, and nothing is saved.
pub(crate) async fn a_used_join_line_ends_the_worker() {
    let (hub, home) = (Hub::open().await, Home::new());
    let first = home.worker(&hub);
    hub.worker().await;
    first.finish_alone().await;
    let other = Home::new();
    let mut second = other.worker(&hub);
    match second.end().await {
        Err(RunError::Refused { refusal }) => assert_eq!(refusal.code, RefusalCode::JoinUsed),
        ended => panic!("{ended:?}"),
    }
    assert!(!second.home.join("identity.json").exists());
    // Without a line there is nothing to do.
    let (mut config, cages) = other.config(&hub);
    config.ticket = None;
    assert!(matches!(Worker::begin(config, cages).end().await, Err(RunError::NotJoined)));
}

// A worker that has joined uses its identity, with the same line, without any, and beside the line of another hub not.
pub(crate) async fn an_identity_is_used_again() {
    let (hub, home) = (Hub::open().await, Home::new());
    let worker = home.worker(&hub);
    let (_, first) = hub.worker_with(|_| Registered::default()).await;
    worker.finish_alone().await;
    let worker = home.worker(&hub);
    let (_, second) = hub.worker_with(|_| Registered::default()).await;
    assert_eq!(first.machine, second.machine);
    assert_ne!(first.instance, second.instance);
    worker.finish_alone().await;
    let (mut config, cages) = home.config(&hub);
    config.ticket = None;
    let worker = Worker::begin(config, cages);
    hub.worker().await;
    worker.finish_alone().await;
    let other_hub = Hub::open().await;
    let mut worker = home.worker(&other_hub);
    other_hub.worker().await;
    worker.event(|event| matches!(event, WorkerEvent::Joined { .. }).then_some(())).await;
    worker.finish_alone().await;
}

// A node that was revoked while its connection was lost ends with the hub's words, and its programs with it.
pub(crate) async fn a_revoked_worker_ends_with_its_programs() {
    let (hub, home) = (Hub::open().await, Home::new());
    let mut worker = home.worker(&hub);
    let mut session = hub.worker().await;
    session.start(&shell(1, "echo $$; exec sleep 1000"));
    let pid: i32 = std::str::from_utf8(&session.output().await.bytes).unwrap().trim().parse().unwrap();
    drop(session);
    let (connection, frame, _) = hub.registering().await;
    let refusal = Refusal::new(RefusalCode::NodeRevoked);
    essaim_net::hello::refuse(&connection.sender, frame.id, &refusal).unwrap();
    match worker.end().await {
        Err(RunError::Refused { refusal }) => assert_eq!(refusal.code, RefusalCode::NodeRevoked),
        ended => panic!("{ended:?}"),
    }
    assert!(!is_alive(pid) && !worker.home.join("work").exists());
}

// An address where another hub answers is not tried for ever, and no secret is sent there.
pub(crate) async fn another_hub_ends_the_worker() {
    let (hub, stranger, home) = (Hub::open().await, Hub::open().await, Home::new());
    let (mut config, cages) = home.config(&hub);
    let mut ticket = hub.ticket();
    ticket.addresses = vec![stranger.address.clone()];
    config.ticket = Some(ticket);
    match Worker::begin(config, cages).end().await {
        Err(RunError::OtherHub { address }) => assert_eq!(address, stranger.address),
        ended => panic!("{ended:?}"),
    }
    let (mut config, cages) = home.config(&hub);
    config.ticket.as_mut().unwrap().addresses.clear();
    let ended = Worker::begin(config, cages).end().await;
    assert!(matches!(ended, Err(RunError::Dial(DialError::NoAddress))), "{ended:?}");
}

// A worker on the hub's machine follows it to another port, and waits for its file.
pub(crate) async fn a_moved_hub_is_found_by_its_file() {
    let (hub, home, hub_folder) = (Hub::open().await, Home::new(), tempfile::tempdir().unwrap());
    let (mut config, cages) = home.config(&hub);
    config.ticket.as_mut().unwrap().addresses.clear();
    config.hub_file = Some(hub_folder.path().join("hub.json"));
    config.local = Some(3);
    let mut worker = Worker::begin(config, cages);
    worker.event(disconnected).await;
    hub.write_file(hub_folder.path());
    let (session, register) = hub.worker_with(|_| Registered::default()).await;
    assert_eq!((register.local, register.local_number), (true, 3));
    let hub = hub.moved().await;
    drop(session);
    hub.write_file(hub_folder.path());
    let address = hub.address.clone();
    hub.worker().await;
    let connected = |event| matches!(event, WorkerEvent::Connected { address: to, .. } if to == address).then_some(());
    worker.event(connected).await;
    worker.finish_alone().await;
}

// What a newer hub says is answered, not fatal, and not answered when nobody asked.
pub(crate) async fn an_unknown_function_is_answered() {
    let (hub, home) = (Hub::open().await, Home::new());
    let worker = home.worker(&hub);
    let mut session = hub.worker().await;
    session.send(Frame::empty(Function(7_777), 0));
    session.send(Frame::empty(Function(7_777), 5));
    let refused = session.next().await;
    assert_eq!((refused.function, refused.id, refused.has(FLAG_ANSWER)), (Function::REFUSED, 5, true));
    let refusal: Refusal = refused.message().unwrap();
    assert_eq!((refusal.code, refusal.param("function")), (RefusalCode::UnknownFunction, "7777"));
    assert_eq!(session.run(&shell(1, "echo lives")).await.stdout(), "lives\n");
    worker.finish(session).await;
}

// A second worker in the same folder is told by whom it is held, and disturbs nothing.
pub(crate) async fn a_folder_has_one_worker() {
    let (hub, home) = (Hub::open().await, Home::new());
    let worker = home.worker(&hub);
    let mut session = hub.worker().await;
    match home.worker(&hub).end().await {
        Err(RunError::HomeTaken { pid, .. }) => assert_eq!(pid, std::process::id()),
        ended => panic!("{ended:?}"),
    }
    assert_eq!(session.run(&shell(1, "echo lives")).await.stdout(), "lives\n");
    worker.finish(session).await;
}

// A drained worker says so, takes nothing new, and leaves with a goodbye when the hub has recorded its last end.
pub(crate) async fn a_drained_worker_leaves_when_all_is_recorded() {
    let (hub, home) = (Hub::open().await, Home::new());
    let mut worker = home.worker(&hub);
    let mut session = hub.worker().await;
    let start = shell(1, "echo begun; while [ ! -e go ]; do sleep 0.01; done; echo end");
    session.start(&start);
    session.stdout_until("begun\n").await;
    worker.orders.send_replace(Order::Drain);
    worker.event(|event| (event == WorkerEvent::Draining).then_some(())).await;
    loop {
        let report: Report = session.wait_for(Function::REPORT).await.message().unwrap();
        if report.draining {
            break;
        }
    }
    session.start(&shell(2, "echo never"));
    let ended: Ended = session.wait_for(Function::ENDED).await.message().unwrap();
    assert_eq!(ended.result.reason.unwrap().code, "worker_stopped");
    session.end_ack(attempt(2));
    std::fs::write(worker.folder(start.attempt).join("go"), "").unwrap();
    let outcome = Outcome { stdout: b"begun\n".to_vec(), ..Outcome::default() };
    assert_eq!(session.end_from(start.attempt, outcome).await.stdout(), "begun\nend\n");
    session.end_ack(start.attempt);
    while within("the goodbye comes", session.connection.reader.next()).await.unwrap().is_some() {}
    assert_eq!(session.connection.reader.goodbye(), Some("shutdown"));
    drop(session);
    worker.end().await.unwrap();
    assert!(!worker.home.join("work").exists());
}

// A worker that its hub does not need goes on when the hub changes its mind, and else leaves with a goodbye when the last
// end is recorded.
pub(crate) async fn a_worker_leaves_when_its_hub_says_so() {
    let (hub, home) = (Hub::open().await, Home::new());
    let mut worker = home.worker(&hub);
    let mut session = hub.worker().await;
    let start = shell(1, "echo begun; while [ ! -e go ]; do sleep 0.01; done");
    session.start(&start);
    session.stdout_until("begun\n").await;
    for leave in [true, false, true] {
        session.send(Frame::of(Function::LEAVE, 0, &Leave { leave }));
        loop {
            let report: Report = session.wait_for(Function::REPORT).await.message().unwrap();
            if report.draining == leave {
                break;
            }
        }
        if !leave {
            assert_eq!(session.run(&shell(2, "echo more")).await.stdout(), "more\n");
        }
    }
    std::fs::write(worker.folder(start.attempt).join("go"), "").unwrap();
    let outcome = Outcome { stdout: b"begun\n".to_vec(), ..Outcome::default() };
    session.end_from(start.attempt, outcome).await;
    session.end_ack(start.attempt);
    while within("the goodbye comes", session.connection.reader.next()).await.unwrap().is_some() {}
    assert_eq!(session.connection.reader.goodbye(), Some("shutdown"));
    drop(session);
    worker.end().await.unwrap();
}

// A stopped worker kills what runs, says goodbye, tells no ends, and leaves no folder.
pub(crate) async fn a_stopped_worker_leaves_nothing() {
    let (hub, home) = (Hub::open().await, Home::new());
    let worker = home.worker(&hub);
    let mut session = hub.worker().await;
    session.start(&shell(1, "setsid sh -c 'echo $$; exec sleep 1000' & trap '' TERM; wait; sleep 1000"));
    let output = session.output().await;
    let pid: i32 = std::str::from_utf8(&output.bytes).unwrap().trim().parse().unwrap();
    let stopping = tokio::spawn(worker.finish_alone());
    while let Some(frame) = within("the goodbye comes", session.connection.reader.next()).await.unwrap() {
        assert_ne!(frame.function, Function::ENDED, "a stopped worker's program may run elsewhere");
    }
    assert_eq!(session.connection.reader.goodbye(), Some("shutdown"));
    assert!(!is_alive(pid), "nothing lives when the hub hears the goodbye");
    drop(session);
    stopping.await.unwrap();
}

// A hub that names more tasks than this worker could hold, or starts more than a message may, breaks the protocol: its
// connection ends before anything is made of them, and a new one serves.
pub(crate) async fn a_hub_that_names_too_many_tasks_is_left() {
    let (hub, home) = (Hub::open().await, Home::new());
    let mut worker = home.worker(&hub);
    let tasks = || TaskSet::span(0, 9_999_999);
    let kill_many = vec![HeldMany { job: JobId(1), attempt: 1, tasks: tasks() }; 1_000];
    let registered = Registered { kill_many, ..Registered::default() };
    let (session, _) = hub.worker_with(|_| registered).await;
    let why = worker.event(disconnected).await;
    drop(session);
    assert!(why.contains("more than 32768 tasks"), "{why}");
    let ack = EndAckMany { job: JobId(1), tasks: vec![(1, tasks()); 1_000] };
    let start = Start { tasks: Some(tasks()), ..shell(1, "echo never") };
    for frame in [Frame::of(Function::END_ACK_MANY, 0, &ack), Frame::of(Function::START, 0, &start)] {
        let (session, _) = hub.worker_with(|_| Registered::default()).await;
        session.send(frame);
        let why = worker.event(disconnected).await;
        assert!(why.starts_with("the hub ") && why.ends_with("tasks at once"), "{why}");
    }
    let (mut session, _) = hub.worker_with(|_| Registered::default()).await;
    assert_eq!(session.run(&shell(1, "echo still here")).await.stdout(), "still here\n");
    worker.finish(session).await;
}
