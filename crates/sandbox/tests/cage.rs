//! The cage from outside: a real cage process, real programs, and a look at /proc for what is left.
//!
//! This executable is also the cage process (`__cage`), because `run_cage` needs a process with one thread that is used
//! for nothing else; hence its own `main`. Arguments that are no options select tests by a part of their name.
// A test with its own main is still a test.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

mod captured;
mod queued;
mod rooms;
mod support;

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use essaim_sandbox::verdict::{Phase, Verdict, verdict};
use essaim_sandbox::{CageError, Event, Limits, MESSAGE_BYTES_MAX, PROGRAMS_MAX, Start, Stop};
use support::{Bench, children, is_there, open_files, send_signal, until};

macro_rules! tests {
    ($($name:path),* $(,)?) => { &[$((stringify!($name), $name as fn())),*] };
}

const TESTS: &[(&str, fn())] = tests![
    exit_codes_and_signals,
    output_is_apart_and_exact,
    stdin_reaches_the_program,
    environment_and_folder_are_exact,
    state_of_the_new_program,
    wall_limit_kills,
    term_is_ignored_and_killed_anyway,
    kill_takes_the_whole_tree,
    kill_outruns_a_spawner,
    kill_of_a_stranger_is_ignored,
    orphan_with_stdout_does_not_delay_the_end,
    start_failures_are_named,
    too_many_programs_are_refused,
    oversized_arguments_are_refused,
    waiting_for_input,
    waiting_for_input_in_a_thread_and_a_child,
    cpu_of_grandchildren_counts,
    memory_and_processes_are_seen,
    samples_come,
    socket_closed_kills_and_removes,
    worker_killed_kills_and_removes,
    term_to_the_cage_is_like_a_closed_socket,
    cage_killed_kills_all,
    init_killed_leaves_nothing,
    init_stopped_leaves_nothing,
    nothing_leaks_in_the_cage,
    captured::short_programs_have_one_event,
    captured::long_programs_are_read_live,
    captured::output_is_whole_whatever_its_size,
    captured::joined_output_keeps_its_order,
    captured::stdin_is_empty,
    captured::failures_are_named,
    captured::one_init_serves_many,
    captured::killed_init_costs_one_program,
    captured::what_is_left_behind_dies,
    captured::late_signals_hit_nobody,
    captured::limits_and_kills_work,
    captured::figures_are_of_one_program,
    captured::nothing_leaks,
    captured::worker_that_does_not_read_loses_nothing,
    queued::few_run_at_once_and_each_has_its_own,
    queued::nobody_waits_behind_a_long_one,
    queued::a_kill_hits_only_who_is_meant,
    queued::a_dead_init_costs_one_program,
    queued::limits_count_from_the_beginning,
    queued::more_than_fit,
    queued::ends_do_not_wait_for_the_last,
    rooms::programs_run,
    rooms::streams_go_through,
    rooms::host_is_not_seen,
    rooms::only_own_folders_are_written,
    rooms::no_network,
    rooms::no_signal_gets_out,
    rooms::calls_are_refused,
    rooms::nothing_outlives,
    rooms::limits_of_time_and_kills,
    rooms::early_kills_hit,
    rooms::limits_of_processes,
    rooms::traps_in_the_folder,
    rooms::room_is_limited,
    rooms::rooms_are_apart,
    rooms::mistakes_are_named,
    rooms::rooms_wait,
    rooms::extra_places_are_shown,
    rooms::no_room_leaves_anything,
    rooms::rooms_die_with_the_cage,
    rooms::denied_namespaces_are_said,
    rooms::many_at_once,
    worker_that_does_not_read,
    folder_without_permissions_as_ordinary_user,
    threads_are_refused,
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("__cage") => return run_cage(),
        Some("__worker") => run_worker(Path::new(&arguments[1]), &arguments[2]),
        Some("__remove") => {
            return match essaim_sandbox::remove_tree(Path::new(&arguments[1])) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            };
        }
        _ => {}
    }
    let listing = arguments.iter().any(|word| word == "--list");
    let wanted: Vec<&String> = arguments.iter().filter(|word| !word.starts_with('-')).collect();
    let (mut passed, mut failed) = (0, Vec::new());
    for (name, test) in TESTS {
        if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        if listing {
            println!("{name}: test");
            continue;
        }
        let begin = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(test));
        let word = if outcome.is_ok() { "ok" } else { "FAILED" };
        println!("test {name} ... {word} ({} ms)", begin.elapsed().as_millis());
        match outcome {
            Ok(()) => passed += 1,
            Err(_) => failed.push(*name),
        }
    }
    if listing {
        return ExitCode::SUCCESS;
    }
    let word = if failed.is_empty() { "ok" } else { "FAILED" };
    println!("test result: {word}. {passed} passed; {} failed", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The cage process: its socket is its stdin.
fn run_cage() -> ExitCode {
    let socket = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3).unwrap();
    match essaim_sandbox::run_cage(socket) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// A worker process that has a cage, owns a folder, runs a program with a mark, says so, and waits to be killed.
fn run_worker(folder: &Path, mark: &str) -> ! {
    let mut bench = Bench::new();
    bench.mark = mark.to_owned();
    bench.cage.own(folder).unwrap();
    let start = bench.shell("setsid sleep 1000 & sleep 1000");
    let id = bench.start_quiet(start);
    bench.started(id);
    println!("running");
    std::io::stdout().flush().unwrap();
    loop {
        std::thread::park();
    }
}

/// Does every way to end by oneself arrive as it was?
fn exit_codes_and_signals() {
    let mut bench = Bench::new();
    for (script, code, signal, expected) in [
        ("exit 0", Some(0), None, Verdict::Ok),
        ("exit 3", Some(3), None, Verdict::RuntimeError),
        ("exit 255", Some(255), None, Verdict::RuntimeError),
        ("kill -SEGV $$", None, Some(11), Verdict::RuntimeError),
        ("kill -TERM $$", None, Some(15), Verdict::RuntimeError),
        ("kill -KILL $$", None, Some(9), Verdict::RuntimeError),
    ] {
        let evidence = bench.run(script).evidence;
        assert_eq!((evidence.exit_code, evidence.signal), (code, signal), "{script}");
        assert_eq!(evidence.stopped_by, None);
        assert_eq!(verdict(Phase::Run, &evidence), expected);
        assert!(evidence.processes_peak >= 1 && evidence.memory_peak_bytes > 0);
    }
}

/// Do 5 MB on each stream arrive byte by byte, each on its own? Afterwards every Started has exactly one Ended.
fn output_is_apart_and_exact() {
    let mut bench = Bench::new();
    let ended = bench.run("seq 1 745000 | head -c 5000000; seq 2000000 2745000 | head -c 5000000 >&2");
    let numbers = |from: u32| -> Vec<u8> {
        let mut bytes: Vec<u8> = (from..from + 745_000).flat_map(|number| format!("{number}\n").into_bytes()).collect();
        bytes.truncate(5_000_000);
        bytes
    };
    assert!(ended.stdout == numbers(1), "stdout differs");
    assert!(ended.stderr == numbers(2_000_000), "stderr differs");
    let others = bench.others();
    assert!(others.iter().all(|event| !matches!(event, Event::Ended { .. })), "{others:?}");
}

/// Does what is written to stdin come back, and does its end arrive?
fn stdin_reaches_the_program() {
    let mut bench = Bench::new();
    let start = bench.argv(&["/bin/cat"]);
    let mut running = bench.start(start);
    let text = "é\0 line\n".repeat(100_000);
    running.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    running.stdin = None;
    assert!(bench.finish(running).stdout == text.as_bytes());
}

/// Is the environment exactly what was asked for, the folder too, and a relative program found from it?
fn environment_and_folder_are_exact() {
    let mut bench = Bench::new();
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/usr/bin/env", folder.path().join("show")).unwrap();
    let mut start = bench.argv(&["./show"]);
    start.env = vec![("A".to_owned(), "x=y z".to_owned()), ("ESSAIM_SANDBOX_TEST".to_owned(), bench.mark.clone())];
    start.cwd = folder.path().to_owned();
    let running = bench.start(start);
    let ended = bench.finish(running);
    assert_eq!(ended.text(), format!("A=x=y z\nESSAIM_SANDBOX_TEST={}\n", bench.mark));
    let mut start = bench.argv(&["/bin/pwd"]);
    start.cwd = folder.path().to_owned();
    let running = bench.start(start);
    assert_eq!(Path::new(bench.finish(running).text().trim_end()), folder.path().canonicalize().unwrap());
}

/// Does a program begin in the state that it may expect: niceness, signals, umask, descriptors, a session of its own?
fn state_of_the_new_program() {
    let mut bench = Bench::new();
    assert_eq!(bench.run("nice").text(), "5\n");
    assert_eq!(bench.run("umask").text(), "0022\n");
    let status = bench.run("exec cat /proc/self/status");
    for (line, expected) in [("SigBlk:", "0000000000000000"), ("SigIgn:", "0000000000000000")] {
        let found = status.text().lines().find_map(|found| found.strip_prefix(line)).unwrap();
        assert_eq!(found.trim(), expected, "{line}");
    }
    let start = bench.argv(&["/bin/ls", "/proc/self/fd"]);
    let running = bench.start(start);
    // The fourth is the folder that ls reads.
    assert_eq!(bench.finish(running).text(), "0\n1\n2\n3\n");
    // Fields 1 and 6 of stat: its own number and its session.
    let stat = bench.run("exec cut -d ' ' -f 1,6 /proc/self/stat");
    let words: Vec<&str> = stat.text().split_ascii_whitespace().collect();
    assert_eq!(words[0], words[1], "it leads its own session");
    // The terminal's Ctrl+C must not reach the cage either.
    let session = std::fs::read_to_string(format!("/proc/{}/stat", bench.pid())).unwrap();
    let session: Vec<&str> = session.rsplit(')').next().unwrap().split_ascii_whitespace().collect();
    assert_eq!(session[3], bench.pid().to_string());
    assert_eq!(std::fs::read_to_string(format!("/proc/{}/comm", bench.pid())).unwrap(), "essaim-cage\n");
}

/// Is a program over its wall limit killed after it, not before, and soon?
fn wall_limit_kills() {
    let mut bench = Bench::new();
    let start =
        Start { wall_limit_ms: Some(300), ..bench.shell("sleep 1000 & setsid sleep 1000 & while :; do :; done") };
    let id = bench.start_quiet(start);
    let evidence = bench.ended(id);
    assert_eq!(bench.marked(), []);
    assert_eq!(evidence.stopped_by, Some(Stop::Wall));
    assert_eq!(verdict(Phase::Run, &evidence), Verdict::TimeLimit);
    assert_eq!(verdict(Phase::Compile, &evidence), Verdict::TimeLimit);
    assert!((300..5_000).contains(&evidence.wall_ms), "{} ms", evidence.wall_ms);
    // A program that is done in time does not meet its limit.
    let start = Start { wall_limit_ms: Some(20_000), ..bench.shell("exit 0") };
    let id = bench.start_quiet(start);
    assert_eq!(bench.ended(id).stopped_by, None);
}

/// Does ignoring the polite signals help?
fn term_is_ignored_and_killed_anyway() {
    let mut bench = Bench::new();
    let start = bench.shell("trap '' TERM INT HUP QUIT; echo ready; while :; do sleep 1000; done");
    let running = bench.start(start);
    bench.started(running.id);
    until("it sleeps", || bench.marked().len() == 2);
    bench.cage.kill(running.id).unwrap();
    let ended = bench.finish(running);
    assert_eq!(bench.marked(), []);
    assert_eq!((ended.text(), ended.evidence.signal), ("ready\n", Some(9)));
    assert_eq!(verdict(Phase::Run, &ended.evidence), Verdict::Cancelled);
}

/// A tree that hides in every way we know: own sessions, double forks, stopped children, children of stopped children.
const TREE: &str = "
    sleep 1000 &
    setsid sleep 1000 &
    (setsid sh -c '(setsid sleep 1000 &) ; sleep 1000' &)
    (sleep 1000 & sleep 1000 &)
    sh -c 'sleep 1000 & kill -STOP $$; sleep 1000' &
    sleep 1000 & kill -STOP $!
    exec sleep 1000";

/// `TREE` counted: the shells and sleeps that are there once it has grown.
const TREE_PROCESSES: usize = 11;

/// Is nothing alive when the end of such a tree is told?
fn kill_takes_the_whole_tree() {
    let mut bench = Bench::new();
    let start = bench.shell(TREE);
    let id = bench.start_quiet(start);
    until("the tree has grown", || bench.marked().len() >= TREE_PROCESSES - 1);
    bench.cage.kill(id).unwrap();
    let evidence = bench.ended(id);
    assert_eq!(bench.marked(), [], "alive although the end was told");
    assert_eq!(evidence.stopped_by, Some(Stop::Kill));
    until("all inits wait", || children(bench.pid()).is_empty());
}

/// Does a kill win against programs that start others as fast as they can? (At most 200 each, should it lose.)
fn kill_outruns_a_spawner() {
    let mut bench = Bench::new();
    let script = "
        spawn() { i=0; while [ $i -lt 200 ]; do setsid sleep 1000 & i=$((i+1)); done; wait; }
        spawn & spawn & (spawn &) & spawn";
    let start = bench.shell(script);
    let id = bench.start_quiet(start);
    until("it spawns", || bench.marked().len() > 40);
    bench.cage.kill(id).unwrap();
    assert_eq!(bench.ended(id).stopped_by, Some(Stop::Kill));
    assert_eq!(bench.marked(), []);
    // A chain: each link starts the next in a new session and ends, so that there is never anyone to stop for long.
    let chain = "n=$1; [ $n -gt 5000 ] && exit 0; setsid sh -c \"$0\" \"$0\" $((n+1)) & exit 0";
    let mut start = bench.argv(&["/bin/sh", "-c", chain, chain, "0"]);
    // The first link ends at once, and with it the program; whatever it left must be gone when that is told.
    start.wall_limit_ms = Some(20_000);
    let id = bench.start_quiet(start);
    assert_eq!(bench.ended(id).exit_code, Some(0));
    assert_eq!(bench.marked(), []);
}

/// Is a kill of a program that is over, or never was, nothing?
fn kill_of_a_stranger_is_ignored() {
    let mut bench = Bench::new();
    bench.cage.kill(77).unwrap();
    let start = bench.shell("exit 0");
    let id = bench.start_quiet(start);
    bench.ended(id);
    bench.cage.kill(id).unwrap();
    assert_eq!(bench.run("echo still").text(), "still\n");
}

/// Is a program over when it ends, although a background process holds its stdout?
fn orphan_with_stdout_does_not_delay_the_end() {
    let mut bench = Bench::new();
    let ended = bench.run("setsid sleep 1000 & echo done");
    assert_eq!(ended.text(), "done\n", "stdout ended, so its last holder is dead");
    assert_eq!(ended.evidence.exit_code, Some(0));
    assert_eq!(ended.evidence.stopped_by, None);
    assert!(ended.evidence.wall_ms < 20_000);
    assert_eq!(bench.marked(), []);
}

/// Is each reason for which nothing starts told with its step and error number, and is the cage fine afterwards?
fn start_failures_are_named() {
    let mut bench = Bench::new();
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain");
    std::fs::write(&plain, "no program").unwrap();
    let plain = plain.to_str().unwrap().to_owned();
    let rows: Vec<(Start, &str, i32)> = vec![
        (bench.argv(&["/nowhere/prog"]), "exec", libc::ENOENT),
        (bench.argv(&["./prog"]), "exec", libc::ENOENT),
        (bench.argv(&[&plain]), "exec", libc::EACCES),
        (bench.argv(&["/tmp"]), "exec", libc::EACCES),
        (bench.argv(&["true"]), "argv", libc::EINVAL),
        (bench.argv(&[]), "argv", libc::EINVAL),
        (bench.argv(&["/bin/echo", "a\0b"]), "argv", libc::EINVAL),
        (Start { cwd: "/nowhere".into(), ..bench.shell("exit 0") }, "chdir", libc::ENOENT),
        (Start { cwd: PathBuf::from(&plain), ..bench.shell("exit 0") }, "chdir", libc::ENOTDIR),
        (Start { env: vec![("A=B".to_owned(), String::new())], ..bench.shell("exit 0") }, "env", libc::EINVAL),
        (Start { env: vec![(String::new(), String::new())], ..bench.shell("exit 0") }, "env", libc::EINVAL),
    ];
    for (start, step, errno) in rows {
        let shown = format!("{:?}", start.argv);
        let running = bench.start(start);
        assert_eq!(bench.start_failed(running.id), (step.to_owned(), errno), "{shown}");
    }
    let first = bench.shell("sleep 1000");
    let id = bench.start_quiet(first.clone());
    bench.started(id);
    bench.start_quiet(first);
    assert_eq!(bench.start_failed(id), ("id in use".to_owned(), libc::EEXIST));
    bench.cage.kill(id).unwrap();
    bench.ended(id);
    assert_eq!(bench.run("echo fine").text(), "fine\n");
    let others = bench.others();
    assert!(others.iter().all(|event| matches!(event, Event::Started { .. })), "{others:?}");
}

/// Is the program after the last allowed one refused, and is there room again when one has ended?
fn too_many_programs_are_refused() {
    let mut bench = Bench::new();
    let mut ids = Vec::new();
    for _ in 0..PROGRAMS_MAX {
        let start = bench.argv(&["/bin/sleep", "1000"]);
        ids.push(bench.start_quiet(start));
    }
    for id in &ids {
        bench.started(*id);
    }
    let start = bench.argv(&["/bin/sleep", "1000"]);
    let refused = bench.start_quiet(start);
    assert_eq!(bench.start_failed(refused), ("too many".to_owned(), libc::EAGAIN));
    for id in &ids {
        bench.cage.kill(*id).unwrap();
    }
    for id in &ids {
        assert_eq!(bench.ended(*id).stopped_by, Some(Stop::Kill));
    }
    assert_eq!(bench.run("echo room").text(), "room\n");
}

/// Are arguments over the size of a message refused on the worker's side, and those just below passed on whole?
fn oversized_arguments_are_refused() {
    let mut bench = Bench::new();
    let large = "x".repeat(100_000);
    let start = bench.argv(&["/bin/echo", &large]);
    let running = bench.start(start);
    assert_eq!(bench.finish(running).text().len(), large.len() + 1);
    let (reader, writer) = std::io::pipe().unwrap();
    let streams = essaim_sandbox::Stdio3 {
        stdin: reader.into(),
        stdout: writer.try_clone().unwrap().into(),
        stderr: writer.into(),
    };
    let start = bench.argv(&["/bin/echo", &"x".repeat(MESSAGE_BYTES_MAX)]);
    assert!(matches!(bench.cage.start(start, streams), Err(CageError::TooLarge { .. })));
}

fn waiting(bench: &mut Bench, id: u64) -> bool {
    bench.event(|event| match event {
        Event::WaitingForInput { id: found, waiting } if *found == id => Some(*waiting),
        _ => None,
    })
}

/// Is it told when a program waits for its stdin, and when it does so no more? One that sleeps does not wait for input.
fn waiting_for_input() {
    let mut bench = Bench::new();
    let start = bench.shell("read a; echo got $a; sleep 0.3; read b; exit 0");
    let mut running = bench.start(start);
    let stdin = running.stdin.as_mut().unwrap();
    assert!(waiting(&mut bench, running.id));
    stdin.write_all(b"one\n").unwrap();
    assert!(!waiting(&mut bench, running.id));
    assert!(waiting(&mut bench, running.id));
    running.stdin = None;
    assert_eq!(bench.finish(running).text(), "got one\n");
    let start = bench.shell("sleep 0.4");
    let running = bench.start(start);
    let id = running.id;
    bench.finish(running);
    let waits = |event: &Event| matches!(event, Event::WaitingForInput { id: found, .. } if *found == id);
    assert!(!bench.others().iter().any(waits));
}

/// Is a reader seen that is a child of a child in another session, and one whose stdin is another pipe not?
fn waiting_for_input_in_a_thread_and_a_child() {
    let mut bench = Bench::new();
    let start = bench.shell("exec 3<&0; (setsid sh -c 'read a <&0; exit 0' <&3); exit 7");
    let mut running = bench.start(start);
    assert!(waiting(&mut bench, running.id));
    running.stdin.as_mut().unwrap().write_all(b"x\n").unwrap();
    assert_eq!(bench.finish(running).evidence.exit_code, Some(7));
    let start = bench.shell("sleep 0.4 | cat");
    let running = bench.start(start);
    let id = running.id;
    bench.finish(running);
    let waits = |event: &Event| matches!(event, Event::WaitingForInput { id: found, .. } if *found == id);
    assert!(!bench.others().iter().any(waits), "the inner pipe is not the program's stdin");
    if !is_there(Path::new("/usr/bin/python3")) {
        return;
    }
    let script = "import os,threading\nt=threading.Thread(target=lambda: os.read(0,1))\nt.start(); t.join()";
    let start = bench.argv(&["/usr/bin/python3", "-c", script]);
    let mut running = bench.start(start);
    assert!(waiting(&mut bench, running.id), "a thread reads");
    running.stdin = None;
    assert_eq!(bench.finish(running).evidence.exit_code, Some(0));
}

const BURN: &str = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done";

/// Is the CPU time of grandchildren counted, of those that the program waited for and of those that it left?
fn cpu_of_grandchildren_counts() {
    let mut bench = Bench::new();
    let alone = bench.run(BURN).evidence.cpu_ms;
    assert!(alone >= 50, "the loop is too short to be measured: {alone} ms");
    let below = bench.run(&format!("(sh -c '{BURN}'; true); true")).evidence.cpu_ms;
    assert!(below >= alone / 3, "{below} ms below, {alone} ms alone");
    // The pipe makes the program wait for the end of a process that is not its child.
    let orphan = bench.run(&format!("(setsid sh -c '{BURN}; echo done' &) | read x")).evidence.cpu_ms;
    assert!(orphan >= alone / 3, "{orphan} ms in an orphan, {alone} ms alone");
}

/// Is the peak of memory seen, also when it is spread over processes, and the number of processes?
fn memory_and_processes_are_seen() {
    let mut bench = Bench::new();
    let small = bench.run("exit 0").evidence.memory_peak_bytes;
    assert!(small < 32 << 20, "{small} bytes for a shell");
    let large = bench.run("head -c 50000000 /dev/zero | tail -c 50000000 >/dev/null").evidence.memory_peak_bytes;
    assert!((45 << 20..200 << 20).contains(&large), "{large} bytes");
    let start = bench.shell("sleep 1000 & sleep 1000 & sleep 1000 & wait");
    let id = bench.start_quiet(start);
    until("all are there", || bench.marked().len() == 4);
    let processes = bench.event(|event| match event {
        Event::Sample { processes, .. } => Some(*processes),
        _ => None,
    });
    assert_eq!(processes, 4);
    bench.cage.kill(id).unwrap();
    assert_eq!(bench.ended(id).processes_peak, 4);
}

/// Do samples of a long program come, grow, and stay at most one a second?
fn samples_come() {
    let mut bench = Bench::new();
    let begin = Instant::now();
    let start = bench.shell("while :; do :; done");
    let id = bench.start_quiet(start);
    let mut cpu = Vec::new();
    while cpu.len() < 2 {
        cpu.push(bench.event(|event| match event {
            Event::Sample { cpu_ms, memory_bytes, .. } => {
                assert!(*memory_bytes > 0);
                Some(*cpu_ms)
            }
            _ => None,
        }));
    }
    assert!(begin.elapsed() >= Duration::from_millis(2000));
    assert!(cpu[1] > cpu[0], "{cpu:?}");
    bench.cage.kill(id).unwrap();
    assert!(bench.ended(id).cpu_ms >= cpu[1]);
}

/// A folder with something in it, to be owned.
fn folder_with_content(home: &Path) -> PathBuf {
    let folder = home.join("owned");
    std::fs::create_dir_all(folder.join("a/b")).unwrap();
    std::fs::write(folder.join("a/b/file"), "x").unwrap();
    std::os::unix::fs::symlink("/etc", folder.join("a/link")).unwrap();
    folder
}

/// Does a closed socket kill everything and remove what is owned, and only that?
fn socket_closed_kills_and_removes() {
    let mut bench = Bench::new();
    let home = tempfile::tempdir().unwrap();
    let folder = folder_with_content(home.path());
    let kept = home.path().join("kept");
    std::fs::create_dir(&kept).unwrap();
    bench.cage.own(&folder).unwrap();
    bench.cage.own(&kept).unwrap();
    bench.cage.disown(&kept).unwrap();
    for _ in 0..3 {
        let start = bench.shell(TREE);
        bench.start_quiet(start);
    }
    until("the trees have grown", || bench.marked().len() >= 3 * (TREE_PROCESSES - 1));
    let begin = Instant::now();
    bench.cage.shut_down();
    assert!(bench.wait_for_exit().success());
    assert_eq!(bench.marked(), []);
    assert!(!is_there(&folder) && is_there(&kept));
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}

/// Does the same happen when the worker is killed, with nobody left to close anything politely?
fn worker_killed_kills_and_removes() {
    let home = tempfile::tempdir().unwrap();
    let folder = folder_with_content(home.path());
    let mark = format!("worker-{}", std::process::id());
    let mut worker = std::process::Command::new(std::env::current_exe().unwrap())
        .arg("__worker")
        .arg(&folder)
        .arg(&mark)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let stdout = worker.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
    assert_eq!(line, "running\n");
    until("its program runs", || support::marked(&mark).len() >= 2);
    worker.kill().unwrap();
    worker.wait().unwrap();
    until("its programs are gone", || support::marked(&mark).is_empty());
    until("its folder is gone", || !is_there(&folder));
}

/// Is SIGTERM understood, and are the signals of a terminal ignored?
fn term_to_the_cage_is_like_a_closed_socket() {
    let mut bench = Bench::new();
    let home = tempfile::tempdir().unwrap();
    let folder = folder_with_content(home.path());
    bench.cage.own(&folder).unwrap();
    // Before its first answer the cage may still be starting, with the signals as it found them.
    assert_eq!(bench.run("echo started").text(), "started\n");
    for name in ["INT", "HUP", "PIPE"] {
        send_signal(name, bench.pid());
    }
    assert_eq!(bench.run("echo alive").text(), "alive\n");
    let start = bench.shell(TREE);
    let id = bench.start_quiet(start);
    bench.started(id);
    send_signal("TERM", bench.pid());
    assert!(bench.wait_for_exit().success());
    assert_eq!(bench.marked(), []);
    assert!(!is_there(&folder));
}

/// Does nothing survive the cage when it is killed?
fn cage_killed_kills_all() {
    let mut bench = Bench::new();
    for _ in 0..3 {
        let start = bench.shell(TREE);
        bench.start_quiet(start);
    }
    until("the trees have grown", || bench.marked().len() >= 3 * (TREE_PROCESSES - 1));
    bench.process.kill().unwrap();
    until("all are gone", || bench.marked().is_empty());
}

/// What if a program kills its init? Everything of it dies, it is told, and other programs do not notice.
fn init_killed_leaves_nothing() {
    let mut bench = Bench::new();
    let other = bench.shell("read a; echo $a");
    let mut other = bench.start(other);
    let start = bench.shell(&TREE.replace("exec sleep 1000", "read a; kill -KILL $PPID; sleep 1000"));
    let mut running = bench.start(start);
    until("the tree has grown", || bench.marked().len() >= TREE_PROCESSES);
    running.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    let ended = bench.finish(running);
    assert_eq!((ended.evidence.exit_code, ended.evidence.signal, ended.evidence.stopped_by), (None, None, None));
    assert_eq!(verdict(Phase::Run, &ended.evidence), Verdict::RuntimeError);
    assert_eq!(bench.marked().len(), 1, "only the other program is alive");
    other.stdin.as_mut().unwrap().write_all(b"unharmed\n").unwrap();
    assert_eq!(bench.finish(other).text(), "unharmed\n");
    // The other's init says so, and falls asleep a moment later.
    until("its init waits", || children(bench.pid()).is_empty());
}

/// What if a program stops its init? It is set going again, and a kill works in any case.
fn init_stopped_leaves_nothing() {
    let mut bench = Bench::new();
    let ended = bench.run("kill -STOP $PPID; echo on; exit 4");
    assert_eq!((ended.text(), ended.evidence.exit_code), ("on\n", Some(4)));
    let start = bench.shell("(while :; do kill -STOP $PPID; done) & while :; do kill -STOP $PPID; done");
    let id = bench.start_quiet(start);
    bench.started(id);
    bench.cage.kill(id).unwrap();
    assert_eq!(bench.ended(id).stopped_by, Some(Stop::Kill));
    assert_eq!(bench.marked(), []);
}

/// After 200 runs of all kinds: has the cage the same descriptors as before, no child, no zombie, about the same
/// memory?
fn nothing_leaks_in_the_cage() {
    let mut bench = Bench::new();
    bench.run("exit 0");
    let files = open_files(bench.pid());
    for round in 0..200 {
        match round % 4 {
            0 => assert_eq!(bench.run("echo x").text(), "x\n"),
            1 => {
                let start = bench.argv(&["/nowhere"]);
                let running = bench.start(start);
                bench.start_failed(running.id);
            }
            2 => {
                let start = bench.shell("sleep 1000 & sleep 1000");
                let id = bench.start_quiet(start);
                bench.started(id);
                bench.cage.kill(id).unwrap();
                bench.ended(id);
            }
            _ => assert_eq!(bench.run("setsid sleep 1000 & exit 1").evidence.exit_code, Some(1)),
        }
    }
    assert_eq!(open_files(bench.pid()), files);
    // An init says that its program is over, and falls asleep a moment later.
    until("all inits wait", || children(bench.pid()).is_empty());
}

/// Does a worker that never reads an event keep its own requests waiting, and nothing else? Afterwards all ends are
/// there.
fn worker_that_does_not_read() {
    let (worker_end, cage_end) = essaim_sandbox::socket_pair().unwrap();
    let mut process = std::process::Command::new(std::env::current_exe().unwrap())
        .arg("__cage")
        .stdin(std::process::Stdio::from(cage_end))
        .spawn()
        .unwrap();
    let cage = essaim_sandbox::Cage::new(worker_end);
    let null = || std::fs::File::open("/dev/null").unwrap().into();
    let mut asked = 0;
    // Each of these gives one event. The limit is far above what all the queues together hold.
    while asked < 100_000 {
        let start = Start {
            id: asked,
            argv: vec!["true".to_owned()],
            env: Vec::new(),
            cwd: "/".into(),
            wall_limit_ms: None,
            nice: 0,
            at_once: None,
            room: None,
            limits: Limits::default(),
        };
        match cage.start(start, essaim_sandbox::Stdio3 { stdin: null(), stdout: null(), stderr: null() }) {
            Ok(()) => asked += 1,
            Err(CageError::Busy) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(asked < 100_000, "the cage keeps an endless queue");
    for expected in 0..asked {
        match cage.next_event().unwrap() {
            Some(Event::StartFailed { id, .. }) => assert_eq!(id, expected),
            other => panic!("{other:?}"),
        }
    }
    drop(cage);
    assert!(process.wait().unwrap().success());
}

/// Does an ordinary user get rid of a tree whose folders forbid everything? (Root is forbidden nothing, so another user
/// asks.)
fn folder_without_permissions_as_ordinary_user() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let executable = home.path().join("remover");
    std::fs::copy(std::env::current_exe().unwrap(), &executable).unwrap();
    std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let made = std::process::Command::new("/bin/sh")
        .args([
            "-c",
            "mkdir -p t/a/b/c t/d && touch t/a/b/file t/d/file && chmod 0 t/a/b/c t/a/b t/a && chmod 0500 t/d t",
        ])
        .current_dir(home.path())
        .uid(65_534)
        .gid(65_534)
        .status();
    assert!(made.unwrap().success());
    let removed = std::process::Command::new(&executable)
        .arg("__remove")
        .arg(home.path().join("t"))
        .uid(65_534)
        .gid(65_534)
        .status();
    assert!(removed.unwrap().success());
    assert!(!is_there(&home.path().join("t")));
}

/// Is a process with threads refused as a cage, before anything in it is changed?
fn threads_are_refused() {
    let (_worker_end, cage_end) = essaim_sandbox::socket_pair().unwrap();
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || receiver.recv());
    assert!(matches!(essaim_sandbox::run_cage(cage_end), Err(CageError::ManyThreads { .. })));
    drop(sender);
    assert!(thread.join().unwrap().is_err());
}
