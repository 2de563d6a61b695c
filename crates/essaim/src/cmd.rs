//! The subcommands: each translates its words, calls, and answers.
//!
//! `main` calls [`run`]. Always true: a subcommand that only speaks to a hub lives on one thread; those that are a hub
//! or a worker get the runtime of all processors.
//! Deliberately not here: decisions (they are the hub's), printing (`print`).

mod backup;
mod changes;
mod completions;
mod config;
mod doctor;
mod job;
mod job_list;
mod job_rerun;
mod job_show;
mod job_submit;
mod join_line;
mod key;
mod node;
mod run;
mod up;
mod worker;

use crate::cli::{Command, Common, Job};
use crate::exit::{Failure, Outcome, chain};
use crate::home::Home;
use crate::link::Link;
use crate::print::Printer;
use crate::settings::{self, Settings};
use crate::target;
use essaim_store::OpenError;
use std::future::Future;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What every subcommand has.
pub(crate) struct Context {
    /// The data folder.
    pub(crate) home: Home,
    /// The settings.
    pub(crate) settings: Settings,
    /// Where answers go.
    pub(crate) printer: Printer,
}

/// Does a subcommand.
///
/// # Errors
/// Why it did not do what it was asked.
pub(crate) fn run(context: &Context, command: Command) -> Outcome {
    match command {
        Command::Up(_) => up::run(context, up::Workers::Local),
        Command::Hub(_) => up::run(context, up::Workers::None),
        Command::Worker(worker) => worker::run(context, worker),
        Command::JoinLine(join_line) => on_one_thread(join_line::run(context, join_line)),
        Command::Run(run) => run::run(context, run),
        Command::Job { command: Job::Submit(submit) } => job_submit::run(context, submit),
        Command::Job { command } => on_one_thread(job::run(context, command)),
        Command::Node { command } => on_one_thread(node::run(context, command)),
        Command::Key { command } => on_one_thread(key::run(context, command)),
        Command::Backup { to } => backup::backup(context, &to),
        Command::Restore { from } => backup::restore(context, &from),
        Command::Doctor => on_one_thread(doctor::run(context)),
        Command::Config { command } => config::run(context, command),
        Command::Completions { shell } => completions::run(context, shell),
    }
}

/// Runs a client's future: one thread is enough and starts fast.
fn on_one_thread(future: impl Future<Output = Outcome>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    finish(runtime, future)
}

/// Runs a future of a hub or worker.
fn on_all_threads(future: impl Future<Output = Outcome>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    finish(runtime, future)
}

fn finish(runtime: std::io::Result<tokio::runtime::Runtime>, future: impl Future<Output = Outcome>) -> Outcome {
    let runtime = runtime.map_err(|error| Failure::broken("internal", "essaim cannot start", &error))?;
    let outcome = runtime.block_on(future);
    // A lookup that still hangs must not hold up the end.
    runtime.shutdown_background();
    outcome
}

impl Context {
    /// Connects to the hub that the settings and the data folder lead to.
    ///
    /// # Errors
    /// When there is none, or it cannot be used.
    async fn link(&self) -> Result<Link, Failure> {
        let target = target::find_or_expect(&self.home, &self.settings)?.ok_or_else(|| {
            let message = format!("no hub runs on {}", self.home.path().display());
            Failure::unreachable("no_hub", message).hint("start one with `essaim up`, or name one with --hub ADDR")
        })?;
        Link::open(target, &self.settings, self.printer).await
    }

    /// Logs of a hub or worker, on standard error.
    ///
    /// # Errors
    /// A usage failure when the level is none.
    fn start_logs(&self) -> Result<(), Failure> {
        let level = self.log_level();
        let filter = tracing_subscriber::EnvFilter::try_new(&level).map_err(|_| {
            let message = format!("{level:?} is no log level");
            Failure::usage("bad_settings", message).hint("use error, warn, info, debug or trace")
        })?;
        let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        // A second subscriber in one process is a mistake of ours that costs logs, nothing else. Colours are not built in:
        // asking for them would be a panic.
        let _ = logs.with_ansi(false).try_init();
        Ok(())
    }

    fn log_level(&self) -> String {
        self.settings.get(settings::LOG).map_or_else(|| "warn".to_owned(), |value| value.text.clone())
    }
}

/// What `main` makes of the common flags before the settings are read.
pub(crate) fn printer(common: &Common) -> Printer {
    Printer::new(common.json, common.quiet)
}

/// Why a store cannot be opened. Its sentences say what to try themselves.
fn store_failure(error: &OpenError) -> Failure {
    let code = match error {
        OpenError::InUse { .. } => "in_use",
        OpenError::Newer { .. } => "newer_store",
        OpenError::ReadOnly { .. } => "read_only",
        OpenError::Corrupt { .. } | OpenError::Cut { .. } => "damaged",
        OpenError::Full { .. } => "store_full",
        OpenError::Spool { .. } | OpenError::Io { .. } => return Failure::internal("store", chain(error)),
    };
    Failure::refused(code, chain(error))
}

/// Milliseconds since 1970.
fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis() as u64
}

/// How long ago a moment was, for lists.
fn ago(then_ms: u64) -> String {
    essaim_view::age(unix_ms().saturating_sub(then_ms), essaim_view::Language::English)
}
