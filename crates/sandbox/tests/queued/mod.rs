//! Captured programs that may wait for their turn, from outside: many are given at once, few run at once.
//!
//! What waits, what runs and what is over when a kill or a death comes is a matter of microseconds, so these tests do many
//! rounds and look at what must be true in each case.

use std::time::{Duration, Instant};

use essaim_sandbox::{Capture, Event, Evidence, KNOWN_MAX, Order, Start, Stop};

use crate::support::{Bench, DEADLINE, Ended, children, open_files, until};

/// Gives programs of which so many run at once.
fn give(bench: &Bench, at_once: u32, starts: Vec<Start>) -> Vec<Start> {
    let starts = starts.into_iter().map(|start| Start { at_once: Some(at_once), ..start });
    let starts: Vec<Start> = starts.collect();
    send(bench, &starts);
    starts
}

fn send(bench: &Bench, starts: &[Start]) {
    let orders: Vec<Order> = starts.iter().map(|start| Order::new(start, Capture::Apart).unwrap()).collect();
    let mut rest = &orders[..];
    until("the cage takes all", || {
        rest = &rest[bench.cage.try_start_all(rest).0..];
        rest.is_empty()
    });
}

fn give_scripts(bench: &mut Bench, at_once: u32, scripts: &[&str]) -> Vec<Start> {
    let starts = scripts.iter().map(|script| bench.shell(script)).collect();
    give(bench, at_once, starts)
}

/// Waits for the end of one; what a busy machine has made wait too long is given again, as a worker does.
fn finish(bench: &mut Bench, start: &Start) -> Ended {
    loop {
        match bench.finish_or_return(start.id) {
            Some(ended) => return ended,
            None => send(bench, std::slice::from_ref(start)),
        }
    }
}

fn finish_all(bench: &mut Bench, starts: &[Start]) -> Vec<Ended> {
    starts.iter().map(|start| finish(bench, start)).collect()
}

fn is_ok(evidence: &Evidence) -> bool {
    (evidence.exit_code, evidence.signal, evidence.stopped_by) == (Some(0), None, None)
}

fn nothing_is_left(bench: &Bench) {
    assert_eq!(bench.marked(), []);
    until("all inits wait", || children(bench.pid()).is_empty());
}

/// Does each get its own output, do never more run at once than may, and is every figure there?
pub(crate) fn few_run_at_once_and_each_has_its_own() {
    let mut bench = Bench::new();
    for at_once in [1, 3] {
        let folder = tempfile::tempdir().unwrap();
        let script = |number: u32| {
            let place = folder.path().display();
            format!("mkdir {place}/{number}; ls {place} | wc -l; echo {number} >&2; rmdir {place}/{number}")
        };
        let starts = (0..60).map(|number| bench.shell(&script(number))).collect();
        let ids = give(&bench, at_once, starts);
        for (number, ended) in finish_all(&mut bench, &ids).into_iter().enumerate() {
            let together: u32 = ended.text().trim().parse().unwrap();
            assert!((1..=at_once).contains(&together), "{together} at once");
            assert_eq!(ended.stderr, format!("{number}\n").into_bytes());
            assert!(is_ok(&ended.evidence) && ended.evidence.memory_peak_bytes > 0 && ended.evidence.wall_ms < 10_000);
        }
        nothing_is_left(&bench);
    }
}

/// Does what stands behind a program that runs on start elsewhere? And if all that may run at once run on, does what waits
/// come back unbegun, and is it started when it is given again?
pub(crate) fn nobody_waits_behind_a_long_one() {
    let mut bench = Bench::new();
    for _ in 0..10 {
        let mut scripts = vec!["exit 0"; 30];
        scripts[0] = "echo long; sleep 1000";
        let begin = Instant::now();
        let ids = give_scripts(&mut bench, 2, &scripts);
        assert!(finish_all(&mut bench, &ids[1..]).iter().all(|ended| is_ok(&ended.evidence)));
        assert!(begin.elapsed() < DEADLINE / 2, "{:?}", begin.elapsed());
        assert_eq!(bench.marked().len(), 2, "the shell and its sleep go on");
        bench.cage.kill(ids[0].id).unwrap();
        let long = bench.finish_captured(ids[0].id);
        assert_eq!((long.text(), long.evidence.stopped_by), ("long\n", Some(Stop::Kill)));
        nothing_is_left(&bench);
    }
    let long = give_scripts(&mut bench, 2, &["sleep 1000", "sleep 1000", "echo a", "echo b", "echo c"]);
    let mut returned: Vec<u64> = (0..3)
        .map(|_| {
            bench.event(|event| match event {
                Event::Returned { id } => Some(*id),
                _ => None,
            })
        })
        .collect();
    // They stood behind two.
    returned.sort_unstable();
    assert_eq!(returned, [long[2].id, long[3].id, long[4].id]);
    bench.cage.kill(long[0].id).unwrap();
    assert_eq!(bench.ended(long[0].id).stopped_by, Some(Stop::Kill));
    let starts = returned.iter().map(|id| Start { id: *id, ..bench.shell("echo again") }).collect();
    let again = give(&bench, 2, starts);
    assert!(finish_all(&mut bench, &again).iter().all(|ended| ended.text() == "again\n"));
    bench.cage.kill(long[1].id).unwrap();
    bench.ended(long[1].id);
    nothing_is_left(&bench);
}

/// Does a kill hit the one that it names, whether it waits, runs or is over, and nobody else?
pub(crate) fn a_kill_hits_only_who_is_meant() {
    let mut bench = Bench::new();
    let (mut cancelled, mut finished) = (0, 0);
    for round in 0..60 {
        let ids = give_scripts(&mut bench, 1 + round % 3, &["echo x"; 24]);
        let victims = [ids[round as usize % 24].id, ids[(7 * round as usize + 3) % 24].id];
        if round % 4 > 0 {
            finish(&mut bench, &ids[round as usize % 4]);
        }
        victims.iter().for_each(|id| bench.cage.kill(*id).unwrap());
        for (place, start) in ids.iter().enumerate() {
            if round % 4 > 0 && place == round as usize % 4 {
                continue;
            }
            let ended = finish(&mut bench, start);
            match ended.evidence.stopped_by {
                Some(Stop::Kill) if victims.contains(&start.id) => cancelled += 1,
                None if is_ok(&ended.evidence) && ended.text() == "x\n" => finished += 1,
                _ => panic!("round {round}, program {place}: {:?}", ended.evidence),
            }
        }
    }
    assert!(cancelled > 0 && finished > 0, "{cancelled} {finished}");
    // One that runs, in front of others and between them: it dies at once, the others do not notice.
    for place in [0, 5] {
        let mut scripts = vec!["echo x"; 12];
        scripts[place] = "sleep 1000 & setsid sleep 1000 & wait";
        let ids = give_scripts(&mut bench, 1, &scripts);
        bench.cage.kill(ids[place].id).unwrap();
        for (at, start) in ids.iter().enumerate() {
            let stopped = loop {
                match bench.finish_or_return(start.id) {
                    Some(ended) => break ended.evidence.stopped_by,
                    None => send(&bench, std::slice::from_ref(start)),
                }
                if at == place {
                    bench.cage.kill(start.id).unwrap();
                }
            };
            assert_eq!(stopped, (at == place).then_some(Stop::Kill), "{at} of {place}");
        }
        nothing_is_left(&bench);
    }
    // All at once, as when a job is cancelled.
    let ids = give_scripts(&mut bench, 2, &["sleep 1000"; 20]);
    ids.iter().for_each(|start| bench.cage.kill(start.id).unwrap());
    for Start { id, .. } in ids {
        bench.event(|event| match event {
            Event::Ended { id: found, evidence, .. } if *found == id => {
                assert_eq!(evidence.stopped_by, Some(Stop::Kill));
                Some(())
            }
            Event::Returned { id: found } if *found == id => Some(()),
            _ => None,
        });
    }
    nothing_is_left(&bench);
}

/// If one kills its init, is only that one lost, and does each of the others run exactly once?
pub(crate) fn a_dead_init_costs_one_program() {
    let mut bench = Bench::new();
    for round in 0..30 {
        let folder = tempfile::tempdir().unwrap();
        let count = |number: usize| format!("echo x >> {}/{number}; echo {number}", folder.path().display());
        let killer = round % 16;
        let starts = (0..16)
            .map(|number| match number == killer {
                true => bench.shell("setsid sleep 1000 & kill -KILL $PPID; sleep 1000"),
                false => bench.shell(&count(number)),
            })
            .collect();
        let ids = give(&bench, 1 + (round % 2) as u32, starts);
        for (number, start) in ids.iter().enumerate() {
            let ended = finish(&mut bench, start);
            if number == killer {
                let Evidence { exit_code, signal, stopped_by, .. } = ended.evidence;
                assert_eq!((exit_code, signal, stopped_by), (None, None, None));
                continue;
            }
            assert!(is_ok(&ended.evidence), "{number} of round {round}: {:?}", ended.evidence);
            assert_eq!(ended.text(), format!("{number}\n"));
            assert_eq!(std::fs::read(folder.path().join(number.to_string())).unwrap(), b"x\n", "it ran once");
        }
        nothing_is_left(&bench);
    }
}

/// Does the wall limit count from a program's own beginning, and is a short one kept too?
pub(crate) fn limits_count_from_the_beginning() {
    let mut bench = Bench::new();
    for (limit, least) in [(1_000, 1_000), (30, 30)] {
        let mut starts: Vec<Start> = (0..12).map(|_| bench.shell("exit 0")).collect();
        let limited = bench.shell("sleep 1000 & setsid sleep 1000 & wait");
        starts.insert(6, Start { wall_limit_ms: Some(limit), ..limited });
        let ids = give(&bench, 1, starts);
        for (place, start) in ids.iter().enumerate() {
            let Evidence { wall_ms, stopped_by, .. } = match finish(&mut bench, start).evidence {
                evidence if place == 6 => evidence,
                evidence => {
                    assert!(is_ok(&evidence), "{place}: {evidence:?}");
                    continue;
                }
            };
            assert_eq!(stopped_by, Some(Stop::Wall));
            assert!((least..5_000).contains(&wall_ms), "{wall_ms} ms");
        }
        nothing_is_left(&bench);
    }
}

/// If more is given than the cage may know, is each started or refused by name, and does nothing leak?
pub(crate) fn more_than_fit() {
    let mut bench = Bench::new();
    give_scripts(&mut bench, 4, &["exit 0"; 8]).iter().for_each(|start| drop(bench.finish_or_return(start.id)));
    let files = open_files(bench.pid());
    let starts: Vec<Start> = (0..2 * KNOWN_MAX).map(|_| bench.argv(&["/bin/true"])).collect();
    let ids = give(&bench, 4, starts);
    let (mut ended, mut refused) = (0, 0);
    for Start { id, .. } in &ids {
        let is_refused = bench.event(|event| match event {
            Event::Ended { id: found, evidence, .. } if found == id => {
                assert!(is_ok(evidence));
                Some(false)
            }
            Event::StartFailed { id: found, step, .. } if found == id => {
                assert_eq!(step, "too many");
                Some(true)
            }
            Event::Returned { id: found } if found == id => Some(true),
            _ => None,
        });
        *(if is_refused { &mut refused } else { &mut ended }) += 1;
    }
    assert!(ended > 0, "{ended} ended, {refused} refused");
    // One too large to stand behind another waits for its turn too.
    let large = "x".repeat(20_000);
    let starts = (0..9).map(|_| bench.argv(&["/bin/echo", &large])).collect();
    let ids = give(&bench, 2, starts);
    assert!(finish_all(&mut bench, &ids).iter().all(|ended| ended.stdout.len() == large.len() + 1));
    nothing_is_left(&bench);
    until("files are closed", || open_files(bench.pid()) <= files);
}

/// Are ends told while there is more to do, and soon?
pub(crate) fn ends_do_not_wait_for_the_last() {
    let mut bench = Bench::new();
    let ids = give_scripts(&mut bench, 1, &["echo x; sleep 0.003"; 64]);
    let begin = Instant::now();
    finish(&mut bench, &ids[0]);
    let first = begin.elapsed();
    finish_all(&mut bench, &ids[1..]);
    let last = begin.elapsed();
    assert!(last >= Duration::from_millis(100) && first < last / 2, "{first:?} of {last:?}");
}
