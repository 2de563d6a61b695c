//! The worker from outside: a real worker and a real cage process, and a hub made of doors that speaks the protocol.
//!
//! This executable is also the cage process (`__cage`), because a cage needs a process with one thread that is used for
//! nothing else; hence its own `main`. Arguments that are no options select tests by a part of their name.
// A test with its own main is still a test.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

mod bench;
mod hub;
mod links;
mod programs;
mod quick;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::process::{Command, ExitCode};
use std::time::Instant;

/// In the environment of this process and its cages, and nowhere else.
const SECRET: (&str, &str) = ("ESSAIM_KEY", "essaim-key.of.the-worker");

type Test = fn() -> Pin<Box<dyn Future<Output = ()>>>;

macro_rules! tests {
    ($($module:ident::$name:ident),* $(,)?) => { &[$((stringify!($name), || Box::pin($module::$name()))),*] };
}

const TESTS: &[(&str, Test)] = tests![
    programs::a_program_runs_from_join_to_end,
    programs::a_compiler_speaks_on_stderr,
    programs::live_input_is_echoed_and_ends,
    programs::input_that_nobody_reads_is_acknowledged,
    programs::a_stop_takes_the_whole_tree,
    programs::a_stop_while_files_are_on_their_way,
    programs::what_cannot_be_started_is_rejected,
    programs::a_time_limit_is_told,
    programs::the_environment_is_clean,
    programs::blobs_come_in_chunks,
    programs::a_wrong_blob_is_refused,
    programs::lines_come_as_they_are_written,
    programs::a_flood_arrives_whole,
    programs::output_that_somebody_else_holds_does_not_delay_the_end,
    programs::more_than_its_slots_waits,
    programs::a_dead_cage_is_replaced,
    quick::short_programs_are_told,
    quick::a_folder_left_as_it_was_serves_again,
    quick::long_programs_and_long_output,
    quick::ends_are_kept_until_they_are_recorded,
    quick::they_can_be_killed,
    quick::a_cage_that_dies_costs_what_runs,
    links::probes_find_what_is_there,
    links::output_is_sent_again_from_what_the_hub_has,
    links::repeated_input_is_read_once,
    links::a_result_is_kept_until_it_is_recorded,
    links::what_the_hub_no_longer_wants_is_killed,
    links::a_transfer_goes_on_over_a_new_connection,
    links::a_used_join_line_ends_the_worker,
    links::a_revoked_worker_ends_with_its_programs,
    links::an_identity_is_used_again,
    links::another_hub_ends_the_worker,
    links::a_moved_hub_is_found_by_its_file,
    links::an_unknown_function_is_answered,
    links::a_hub_that_names_too_many_tasks_is_left,
    links::a_folder_has_one_worker,
    links::a_drained_worker_leaves_when_all_is_recorded,
    links::a_worker_leaves_when_its_hub_says_so,
    links::a_stopped_worker_leaves_nothing,
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|word| word == "__cage") {
        let socket = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3).unwrap();
        let served = essaim_sandbox::run_cage(socket);
        return if served.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    if std::env::var_os(SECRET.0).is_none() {
        let again = Command::new(std::env::current_exe().unwrap()).args(&arguments).env(SECRET.0, SECRET.1).status();
        return if again.unwrap().success() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
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
        let outcome = catch_unwind(AssertUnwindSafe(|| run(*test)));
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
    println!("test result: {word}. {passed} passed; {} failed {failed:?}", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(test: Test) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(test());
}
