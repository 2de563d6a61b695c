//! A seeded simulator: hub, workers and clients in one thread, with virtual time and every fault that we could think of.
//!
//! What we want to know: does the real [`essaim_core::hub::Hub`], with the real [`essaim_core::worker::Worker`], between
//! shells that behave like ours, keep its promises whatever breaks in whatever order? How we look: each seed deals a small
//! world (1 to 4 workers, 1 to 3 clients, 3 to 16 jobs, some of them arrays of 1 to 60 tasks with needs, priorities, tries
//! and jobs that they wait for) and some kinds of faults; a judge beside it sees all that becomes
//! durable, all that is said and all that runs.
//!
//! ```text
//! cargo test -p essaim-core --test sim                                  a thousand seeds
//! ESSAIM_SEEDS=0..1000000 cargo test --release -p essaim-core --test sim seeds    more of them
//! ESSAIM_SEED=7 cargo test -p essaim-core --test sim one_seed           one seed, with its story
//! ```
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]
#![allow(clippy::print_stdout, reason = "figures and stories, for who asks for them")]

mod client;
mod faults;
mod hub;
mod judge;
mod net;
mod plan;
mod queue;
mod rng;
mod session;
mod store;
mod trace;
mod watch;
mod worker;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;
use world::{Outcome, Sabotage, run};

/// Seeds of the suite.
const SEEDS: u64 = 1_000;

/// Lines of a story that a failure shows.
const STORY_LINES: usize = 120;

/// Runs a seed; a panic is a finding too.
fn outcome(seed: u64, sabotage: Sabotage) -> Outcome {
    catch_unwind(AssertUnwindSafe(|| run(seed, sabotage))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Outcome { finding: Some(format!("panic: {}", text.unwrap_or_default())), ..Outcome::default() }
    })
}

/// The story of a seed: its last lines.
fn story(seed: u64, lines_max: usize) -> String {
    trace::begin(lines_max);
    let outcome = outcome(seed, Sabotage::None);
    let story = trace::take().join("\n");
    trace::begin(0);
    format!("{story}\n\nseed {seed}: {outcome:?}")
}

/// Runs seeds on all processors; the first seeds that fail.
fn failing(from: u64, to: u64, sabotage: Sabotage, at_most: usize) -> (Vec<(u64, String)>, u64) {
    let (next, steps) = (AtomicU64::new(from), AtomicU64::new(0));
    let found = Mutex::new(Vec::new());
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= to || found.lock().unwrap().len() >= at_most {
                        return;
                    }
                    let outcome = outcome(seed, sabotage);
                    steps.fetch_add(outcome.steps, Ordering::Relaxed);
                    if let Some(finding) = outcome.finding {
                        found.lock().unwrap().push((seed, finding));
                    }
                }
            });
        }
    });
    let mut found = found.into_inner().unwrap();
    found.sort();
    (found, steps.into_inner())
}

// Does any of the seeds find a broken promise? `ESSAIM_SEEDS=from..to` says which seeds.
#[test]
fn seeds() {
    let asked = std::env::var("ESSAIM_SEEDS").ok();
    let range = asked.as_deref().and_then(|text| text.split_once(".."));
    let (from, to) = range.map_or((0, SEEDS), |(from, to)| (from.parse().unwrap(), to.parse().unwrap()));
    let begun = Instant::now();
    let (found, steps) = failing(from, to, Sabotage::None, 20);
    println!("{} seeds, {steps} events, {:.1} s", to - from, begun.elapsed().as_secs_f64());
    if let Some((seed, _)) = found.first() {
        let all: Vec<String> = found.iter().map(|(seed, finding)| format!("seed {seed}: {finding}")).collect();
        panic!("{}\n\n{}\n\nESSAIM_SEED={seed} repeats it", story(*seed, STORY_LINES), all.join("\n"));
    }
}

// Does a seed tell the same story each time? With `ESSAIM_SEED=n` its story is shown.
#[test]
fn one_seed() {
    let asked: Option<u64> = std::env::var("ESSAIM_SEED").ok().and_then(|text| text.parse().ok());
    let seed = asked.unwrap_or(1);
    let told = story(seed, 1_000_000);
    if asked.is_some() {
        println!("{told}");
    }
    assert!(told == story(seed, 1_000_000), "seed {seed} tells another story the second time");
    assert_eq!(outcome(seed, Sabotage::None).finding, None);
}

/// Builds a mistake into the model of the shells: the judge must find it within the seeds of the suite.
fn finds(sabotage: Sabotage) {
    let (found, _) = failing(0, SEEDS, sabotage, 1);
    let Some((seed, finding)) = found.first() else { panic!("{sabotage:?} was not found in {SEEDS} seeds") };
    println!("{sabotage:?}: seed {seed}, {finding}");
}

#[test]
fn finds_effects_that_leave_before_their_records_are_durable() {
    finds(Sabotage::SendBeforePersist);
}

#[test]
fn finds_output_that_is_acknowledged_before_it_is_durable() {
    finds(Sabotage::AckVisible);
}

#[test]
fn finds_ends_that_are_recorded_before_their_output_is_durable() {
    finds(Sabotage::EndBeforeOutput);
}

#[test]
fn finds_ends_that_are_never_acknowledged() {
    finds(Sabotage::ForgetEndAck);
}

#[test]
fn finds_ends_of_older_attempts_that_count() {
    finds(Sabotage::TakeStaleEnds);
}

#[test]
fn finds_a_hub_that_goes_on_after_a_failed_append() {
    finds(Sabotage::GoOnAfterFailure);
}

#[test]
fn finds_a_disk_that_lies() {
    finds(Sabotage::DiskLies);
}

#[test]
fn finds_a_worker_that_drops_output_when_it_is_sent() {
    finds(Sabotage::DropWhenSent);
}

#[test]
fn finds_a_worker_that_tells_an_end_once() {
    finds(Sabotage::TellEndOnce);
}

#[test]
fn finds_a_worker_that_starts_again_as_the_same_instance() {
    finds(Sabotage::SameInstance);
}

#[test]
fn finds_a_worker_that_runs_what_it_gave_back() {
    finds(Sabotage::RunsWhatItGaveBack);
}

#[test]
fn finds_a_hub_that_forgets_tasks_that_go_on() {
    finds(Sabotage::ForgetKeepMany);
}

#[test]
fn finds_ends_of_a_batch_that_are_recorded_twice() {
    finds(Sabotage::EndTwice);
}

#[test]
fn finds_a_number_of_a_try_that_is_not_raised() {
    finds(Sabotage::SameTry);
}

#[test]
fn finds_a_worker_that_runs_more_than_it_has_slots_for() {
    finds(Sabotage::IgnoreSlots);
}

#[test]
fn finds_a_client_that_submits_again_under_another_key() {
    finds(Sabotage::NewSubmitKey);
}
