//! Captured programs and the inits that run one after the other, from outside.
//!
//! How long a program lives under load is nobody's promise, so every test takes output from wherever it comes; the few
//! that want it from one place try until they got it, or make the program wait.

use std::io::{PipeReader, Read, Write};
use std::os::fd::OwnedFd;
use std::time::Duration;

use essaim_sandbox::{Capture, Event, Limits, OutputPipes, PROGRAMS_MAX, Start, Stop};

use crate::support::{Bench, children, open_files, until};

/// Tries of something that a busy machine may prevent.
const TRIES: usize = 200;

/// Runs a script until it was over at once.
fn at_once(bench: &mut Bench, script: &str, capture: Capture) -> (String, String) {
    for _ in 0..TRIES {
        let ended = bench.run_captured(script, capture);
        if ended.at_once {
            return (ended.text().to_owned(), String::from_utf8(ended.stderr).unwrap());
        }
    }
    panic!("never over at once: {script}");
}

/// The number of the init that runs the next program.
fn init_of_the_next(bench: &mut Bench) -> i32 {
    bench.run_captured("echo $PPID", Capture::Apart).text().trim().parse().unwrap()
}

/// Does a short program cost one event, with its output and its figures?
pub(crate) fn short_programs_have_one_event() {
    let mut bench = Bench::new();
    for _ in 0..TRIES {
        let ended = bench.run_captured("echo out; echo err >&2; exit 3", Capture::Apart);
        assert_eq!((ended.text(), &ended.stderr[..]), ("out\n", &b"err\n"[..]));
        assert_eq!((ended.evidence.exit_code, ended.evidence.stopped_by), (Some(3), None));
        assert!(ended.evidence.memory_peak_bytes > 0 && ended.evidence.processes_peak == 1);
        if ended.at_once {
            assert_eq!(bench.others(), []);
            return;
        }
    }
    panic!("never over at once");
}

/// Can what a long program printed be read while it runs, and the rest when it has ended?
pub(crate) fn long_programs_are_read_live() {
    let mut bench = Bench::new();
    let folder = tempfile::tempdir().unwrap();
    let gate = folder.path().join("gate");
    let script = format!("echo first; while [ ! -e {} ]; do sleep 0.01; done; echo last; echo err >&2", gate.display());
    let start = bench.shell(&script);
    let id = bench.start_captured(start, Capture::Apart);
    bench.started(id);
    let pipes = bench.output(id);
    let mut stdout = PipeReader::from(pipes.stdout.unwrap());
    let mut line = [0; 6];
    stdout.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"first\n");
    std::fs::File::create(&gate).unwrap();
    assert_eq!(bench.ended(id).exit_code, Some(0));
    let (mut rest, mut stderr) = (String::new(), String::new());
    stdout.read_to_string(&mut rest).unwrap();
    PipeReader::from(pipes.stderr.unwrap()).read_to_string(&mut stderr).unwrap();
    assert_eq!((rest.as_str(), stderr.as_str()), ("last\n", "err\n"));
}

/// Does every byte arrive once and in order, below, at and above what an event carries and what a pipe holds?
pub(crate) fn output_is_whole_whatever_its_size() {
    let mut bench = Bench::new();
    for (stdout, stderr) in [(1, 0), (0, 1), (65_536, 0), (32_768, 32_768), (32_768, 32_769), (65_000, 65_000)] {
        let write = |bytes: usize, first: usize| format!("seq {first} 99999 | head -c {bytes}");
        let script = format!("{}; {} >&2", write(stdout, 10_000), write(stderr, 50_000));
        let ended = bench.run_captured(&script, Capture::Apart);
        let expected = |bytes: usize, first: usize| -> Vec<u8> {
            (first..=99_999).flat_map(|number| format!("{number}\n").into_bytes()).take(bytes).collect()
        };
        assert!(ended.stdout == expected(stdout, 10_000), "{stdout} {stderr}");
        assert!(ended.stderr == expected(stderr, 50_000), "{stdout} {stderr}");
    }
    // More than a pipe holds: the program waits until somebody reads.
    let start = bench.shell("seq 1 745000 | head -c 5000000; echo end >&2");
    let id = bench.start_captured(start, Capture::Apart);
    let OutputPipes { stdout, stderr } = bench.output(id);
    let read = |end: Option<OwnedFd>| {
        let mut bytes = Vec::new();
        PipeReader::from(end.unwrap()).read_to_end(&mut bytes).unwrap();
        bytes
    };
    let expected: Vec<u8> =
        (1..=745_000).flat_map(|number| format!("{number}\n").into_bytes()).take(5_000_000).collect();
    assert!(read(stdout) == expected, "stdout differs");
    assert_eq!(read(stderr), b"end\n");
    assert_eq!(bench.ended(id).exit_code, Some(0));
}

/// Do both streams of a compiler stay one text, at once and from the pipe?
pub(crate) fn joined_output_keeps_its_order() {
    let mut bench = Bench::new();
    let both = (String::new(), "a\nb\nc\n".to_owned());
    assert_eq!(at_once(&mut bench, "echo a; echo b >&2; echo c", Capture::Joined), both);
    let ended = bench.run_captured("echo a; echo b >&2; sleep 0.1; echo c", Capture::Joined);
    assert!(!ended.at_once && ended.stdout.is_empty());
    assert_eq!(ended.stderr, b"a\nb\nc\n");
}

/// Does a captured program find an empty input, and no other descriptor than its three?
pub(crate) fn stdin_is_empty() {
    let mut bench = Bench::new();
    assert_eq!(bench.run_captured("cat; echo read", Capture::Apart).text(), "read\n");
    for capture in [Capture::Apart, Capture::Joined] {
        let start = bench.argv(&["/bin/ls", "/proc/self/fd"]);
        let id = bench.start_captured(start, capture);
        let ended = bench.finish_captured(id);
        // The fourth is the folder that ls reads.
        assert_eq!([&ended.stdout[..], &ended.stderr[..]].concat(), b"0\n1\n2\n3\n");
    }
    let status = bench.run_captured("exec cat /proc/self/status", Capture::Apart);
    for (line, expected) in [("SigBlk:", "0000000000000000"), ("SigIgn:", "0000000000000000")] {
        let found = status.text().lines().find_map(|found| found.strip_prefix(line)).unwrap();
        assert_eq!(found.trim(), expected, "{line}");
    }
}

/// Is a captured program that cannot start told as any other, and does its init go on?
pub(crate) fn failures_are_named() {
    let mut bench = Bench::new();
    let before = init_of_the_next(&mut bench);
    for (start, step) in [
        (bench.argv(&["/nowhere/prog"]), "exec"),
        (Start { cwd: "/nowhere".into(), ..bench.shell("exit 0") }, "chdir"),
        (bench.argv(&["true"]), "argv"),
    ] {
        let id = bench.start_captured(start, Capture::Apart);
        assert_eq!(bench.start_failed(id).0, step);
    }
    assert_eq!(init_of_the_next(&mut bench), before);
}

/// Is an init used again, as many as run at once, and no more?
pub(crate) fn one_init_serves_many() {
    let mut bench = Bench::new();
    let first = init_of_the_next(&mut bench);
    for _ in 0..20 {
        assert_eq!(init_of_the_next(&mut bench), first);
    }
    assert_eq!(bench.run("echo $PPID").text().trim(), first.to_string(), "also for a program with streams");
    let ids: Vec<u64> = (0..8)
        .map(|_| {
            let start = bench.shell("echo $PPID; sleep 1000");
            bench.start_captured(start, Capture::Apart)
        })
        .collect();
    let mut inits: Vec<String> = Vec::new();
    for id in &ids {
        let mut line = [0; 16];
        let mut stdout = PipeReader::from(bench.output(*id).stdout.unwrap());
        let count = stdout.read(&mut line).unwrap();
        inits.push(String::from_utf8(line[..count].to_vec()).unwrap());
        bench.cage.kill(*id).unwrap();
        assert_eq!(bench.ended(*id).stopped_by, Some(Stop::Kill));
    }
    inits.sort();
    inits.dedup();
    assert_eq!(inits.len(), 8);
    let next = format!("{}\n", init_of_the_next(&mut bench));
    assert!(inits.contains(&next), "killed programs do not cost their inits");
}

/// If a program kills its init, does only that one end, and does a new init come?
pub(crate) fn killed_init_costs_one_program() {
    let mut bench = Bench::new();
    let other = bench.shell("read a; echo $a");
    let mut other = bench.start(other);
    for _ in 0..20 {
        let before = init_of_the_next(&mut bench);
        let ended = bench.run_captured("sleep 1000 & setsid sleep 1000 & kill -KILL $PPID; sleep 1000", Capture::Apart);
        let evidence = ended.evidence;
        assert_eq!((evidence.exit_code, evidence.signal, evidence.stopped_by), (None, None, None));
        assert_eq!(bench.marked().len(), 1, "only the other program is alive");
        assert_ne!(init_of_the_next(&mut bench), before);
    }
    // An init that is killed while it waits is replaced too, whether or not its death was noticed.
    for _ in 0..20 {
        let waiting = init_of_the_next(&mut bench);
        let killed = rustix::process::kill_process(
            rustix::process::Pid::from_raw(waiting).unwrap(),
            rustix::process::Signal::KILL,
        );
        killed.unwrap();
        until("it is gone", || !std::path::Path::new(&format!("/proc/{waiting}")).exists());
        assert_ne!(init_of_the_next(&mut bench), waiting);
    }
    other.stdin.as_mut().unwrap().write_all(b"unharmed\n").unwrap();
    assert_eq!(bench.finish(other).text(), "unharmed\n");
}

/// Is nothing of a program alive when its end is told, so that the next one in the same init finds nothing of it?
pub(crate) fn what_is_left_behind_dies() {
    let mut bench = Bench::new();
    let init = init_of_the_next(&mut bench);
    for _ in 0..20 {
        let script = "setsid sleep 1000 & (sleep 1000 &) ; sh -c 'kill -STOP $$; sleep 1000' & echo done";
        let ended = bench.run_captured(script, Capture::Apart);
        assert_eq!((ended.text(), ended.evidence.exit_code), ("done\n", Some(0)));
        assert_eq!(bench.marked(), []);
        assert_eq!(init_of_the_next(&mut bench), init);
    }
    // An init says that its program is over, and falls asleep a moment later.
    until("all inits wait", || children(bench.pid()).is_empty());
}

/// Do signals that were meant for one program spare the next one of the same init?
pub(crate) fn late_signals_hit_nobody() {
    let mut bench = Bench::new();
    let init = init_of_the_next(&mut bench);
    for _ in 0..50 {
        let start = bench.shell("exit 0");
        let id = bench.start_captured(start, Capture::Apart);
        bench.cage.kill(id).unwrap();
        let ended = bench.finish_captured(id);
        assert!(ended.evidence.stopped_by == Some(Stop::Kill) || ended.evidence.exit_code == Some(0));
        bench.cage.kill(id).unwrap();
        assert_eq!(init_of_the_next(&mut bench), init);
    }
    // It may be fast enough to end by itself.
    let ended = bench.run_captured("kill -TERM $PPID; exit 0", Capture::Apart);
    assert_eq!(ended.evidence.stopped_by, None);
    // While no program runs, the order to stop one means nothing.
    rustix::process::kill_process(rustix::process::Pid::from_raw(init).unwrap(), rustix::process::Signal::TERM)
        .unwrap();
    assert_eq!(init_of_the_next(&mut bench), init);
    bench.run_captured("kill -STOP $PPID", Capture::Apart);
    assert_eq!(init_of_the_next(&mut bench), init);
}

/// Are the wall limit and a kill kept for captured programs, before and after their output was given away?
pub(crate) fn limits_and_kills_work() {
    let mut bench = Bench::new();
    for limit in [1, 3, 5, 50] {
        let start =
            Start { wall_limit_ms: Some(limit), ..bench.shell("echo x; sleep 1000 & setsid sleep 1000 & wait") };
        let id = bench.start_captured(start, Capture::Apart);
        let ended = bench.finish_captured(id);
        assert_eq!(ended.evidence.stopped_by, Some(Stop::Wall));
        assert!((limit..5_000).contains(&ended.evidence.wall_ms), "{} ms", ended.evidence.wall_ms);
        assert_eq!(bench.marked(), []);
    }
    let start = bench.shell("echo x; trap '' TERM; sleep 1000 & sleep 1000");
    let id = bench.start_captured(start, Capture::Joined);
    bench.started(id);
    bench.cage.kill(id).unwrap();
    let ended = bench.finish_captured(id);
    assert_eq!((ended.evidence.stopped_by, ended.evidence.signal), (Some(Stop::Kill), Some(9)));
}

/// Is what earlier programs of an init used not counted again?
pub(crate) fn figures_are_of_one_program() {
    let mut bench = Bench::new();
    let burnt = bench.run_captured("i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done", Capture::Apart).evidence.cpu_ms;
    assert!(burnt >= 50, "{burnt} ms");
    let large = "head -c 50000000 /dev/zero | tail -c 50000000 >/dev/null";
    assert!(bench.run_captured(large, Capture::Apart).evidence.memory_peak_bytes > 45 << 20);
    for captured in [true, false] {
        // Long enough for the meter to look.
        let evidence = match captured {
            true => bench.run_captured("sleep 0.2", Capture::Apart).evidence,
            false => bench.run("sleep 0.2").evidence,
        };
        assert!(evidence.cpu_ms < burnt / 2, "{} ms after {burnt} ms", evidence.cpu_ms);
        assert!(evidence.memory_peak_bytes < 32 << 20);
    }
}

/// After many captured programs of all kinds: has the cage the same descriptors as before, has its init?
pub(crate) fn nothing_leaks() {
    let mut bench = Bench::new();
    let init = init_of_the_next(&mut bench);
    let files = (open_files(bench.pid()), open_files(init));
    for round in 0..200 {
        match round % 5 {
            0 => assert_eq!(bench.run_captured("echo x", Capture::Apart).text(), "x\n"),
            1 => assert_eq!(bench.run_captured("echo x", Capture::Joined).stderr, b"x\n"),
            2 => {
                let start = bench.argv(&["/nowhere"]);
                let id = bench.start_captured(start, Capture::Joined);
                bench.start_failed(id);
            }
            3 => {
                let start = bench.shell("sleep 1000 & sleep 1000");
                let id = bench.start_captured(start, Capture::Apart);
                bench.output(id);
                bench.cage.kill(id).unwrap();
                bench.ended(id);
            }
            _ => assert_eq!(bench.run("setsid sleep 1000 & exit 1").evidence.exit_code, Some(1)),
        }
    }
    assert_eq!(init_of_the_next(&mut bench), init);
    assert_eq!((open_files(bench.pid()), open_files(init)), files);
    // An init says that its program is over, and falls asleep a moment later.
    until("all inits wait", || children(bench.pid()).is_empty());
}

/// If the worker reads no event while very many captured programs give their output away, is none of it lost, and does
/// the cage have descriptors left?
pub(crate) fn worker_that_does_not_read_loses_nothing() {
    let (worker_end, cage_end) = essaim_sandbox::socket_pair().unwrap();
    let mut process = std::process::Command::new(std::env::current_exe().unwrap())
        .arg("__cage")
        .stdin(std::process::Stdio::from(cage_end))
        .spawn()
        .unwrap();
    let cage = essaim_sandbox::Cage::new(worker_end);
    let count = PROGRAMS_MAX as u64;
    for id in 0..count {
        let start = Start {
            id,
            argv: ["/bin/sh", "-c", &format!("echo {id}; sleep 0.5; echo {id} >&2")].map(str::to_owned).into(),
            env: vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())],
            cwd: "/".into(),
            wall_limit_ms: None,
            nice: 5,
            at_once: None,
            room: None,
            limits: Limits::default(),
        };
        cage.start_captured(&start, Capture::Apart).unwrap();
    }
    std::thread::sleep(Duration::from_millis(1_500)); // poll: what is waited for is that nothing can be waited for.
    let mut pipes = std::collections::BTreeMap::new();
    let mut ended = 0;
    while ended < count {
        match cage.next_event().unwrap().unwrap() {
            Event::Output { id, pipes: found } => assert!(pipes.insert(id, found).is_none()),
            Event::Ended { id, output, .. } => {
                ended += 1;
                let (mut stdout, mut stderr) = (output.stdout, output.stderr);
                if let Some(OutputPipes { stdout: Some(out), stderr: Some(err) }) = pipes.remove(&id) {
                    PipeReader::from(out).read_to_end(&mut stdout).unwrap();
                    PipeReader::from(err).read_to_end(&mut stderr).unwrap();
                }
                let expected = format!("{id}\n").into_bytes();
                assert!(stdout == expected && stderr == expected, "{id}: {stdout:?} {stderr:?}");
            }
            Event::StartFailed { id, step, errno } => panic!("{id}: {step} {errno}"),
            _ => {}
        }
    }
    drop(cage);
    assert!(process.wait().unwrap().success());
}
