//! `worker`: this machine's slots for a hub.
//!
//! Three ways in: a join line (as an argument or from `-`), the identity of an earlier join, or `up` (`--local`), whose
//! worker reads its line from a pipe that stays open as long as `up` lives. Always true: the first Ctrl+C finishes what
//! runs (at most 10 s), the second stops at once; without its `up` a local worker ends within a minute.
//! Deliberately not here: running programs (`essaim-worker`), starting cages (`supervise`).

use super::Context;
use crate::cli::Worker;
use crate::embedded::NO_LANGUAGE;
use crate::exit::{Failure, OK, Outcome, chain};
use crate::print::Printer;
use crate::settings;
use crate::signals::Interrupts;
use crate::supervise::{self, FOLDER_TAKEN};
use essaim_net::hubfile::HUB_FILE;
use essaim_net::limits::TICKET_BYTES_MAX;
use essaim_net::{Ticket, TicketKind};
use essaim_proto::NodeName;
use essaim_proto::limits::NAME_BYTES_MAX;
use essaim_worker::{Order, RunError, WorkerConfig, WorkerEvent};
use std::io::{BufRead, Read};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// What runs gets so long after the first Ctrl+C.
const DRAIN_TIME: Duration = Duration::from_secs(10);

/// A worker without programs is gone by then, and there is nothing to say.
const TALK_AFTER: Duration = Duration::from_millis(300);

/// What runs gets so long when `up` is gone.
const ORPHAN_TIME: Duration = Duration::from_secs(60);

/// The exit code of a local worker whose `up` is gone; nobody is left to read it.
const ORPHANED: u8 = 76;

pub(super) fn run(context: &Context, words: Worker) -> Outcome {
    supervise::raise_open_files();
    context.start_logs()?;
    let Some(number) = words.local else {
        let config = joined(context, words.line.as_deref())?;
        return super::on_all_threads(serve(context.printer, config, None));
    };
    let is_embedded = words.only.is_some();
    let config = local(context, number, words.only)?;
    let lifeline = Lifeline { gone: watch_stdin()?, patience: if is_embedded { Duration::ZERO } else { ORPHAN_TIME } };
    let outcome = super::on_all_threads(serve(context.printer, config, Some(lifeline)));
    if is_embedded && outcome == Ok(ORPHANED) {
        // The hub's folder was for one run, and whoever should have removed it was killed.
        let _ = std::fs::remove_dir_all(context.home.path());
    }
    outcome
}

/// What tells a local worker that its `up` is gone.
struct Lifeline {
    gone: oneshot::Receiver<()>,
    /// What runs gets so long then.
    patience: Duration,
}

/// A worker that joins, or has joined, a hub by a line.
fn joined(context: &Context, line: Option<&str>) -> Result<WorkerConfig, Failure> {
    let ticket = match line {
        Some("-") => Some(read_ticket()?),
        Some(line) => Some(parse_ticket(line)?),
        None => None,
    };
    let name = match context.settings.parsed::<NodeName>(settings::NAME)? {
        Some(name) => Some(name),
        None => host_name().parse().ok(),
    };
    Ok(WorkerConfig {
        home: context.home.worker(),
        ticket,
        hub_file: None,
        slots: slots(context)?,
        name,
        local: false,
        only: None,
        bind: context.settings.parsed::<IpAddr>(settings::BIND)?,
        cage: cage()?,
        new_cage: Box::new(supervise::start_cage),
    })
}

/// A worker of `up`.
fn local(context: &Context, number: u32, only: Option<String>) -> Result<WorkerConfig, Failure> {
    Ok(WorkerConfig {
        home: context.home.local_worker(number),
        ticket: Some(read_ticket()?),
        hub_file: Some(context.home.path().join(HUB_FILE)),
        slots: slots(context)?,
        name: supervise::local_name(number).parse().ok(),
        local: true,
        only: only.map(|lang| if lang == NO_LANGUAGE { Vec::new() } else { vec![lang] }),
        bind: None,
        cage: cage()?,
        new_cage: Box::new(supervise::start_cage),
    })
}

fn slots(context: &Context) -> Result<u32, Failure> {
    let slots = context.settings.parsed::<u32>(settings::SLOTS)?;
    slots.map_or_else(|| supervise::default_slots(1), Ok)
}

fn cage() -> Result<OwnedFd, Failure> {
    supervise::start_cage()
        .map_err(|error| Failure::broken("cage", "the process that runs programs cannot be started", &error))
}

fn read_ticket() -> Result<Ticket, Failure> {
    let mut line = String::new();
    let mut input = std::io::stdin().lock().take(TICKET_BYTES_MAX as u64 + 2);
    input.read_line(&mut line).map_err(|error| {
        Failure::usage("bad_join_line", format!("no join line can be read from standard input: {error}"))
    })?;
    parse_ticket(&line)
}

fn parse_ticket(line: &str) -> Result<Ticket, Failure> {
    // Who pastes the whole command means its line.
    let line = line.trim();
    let line = line.strip_prefix("essaim worker ").unwrap_or(line);
    Ticket::parse(line, TicketKind::Join).map_err(|error| {
        Failure::usage("bad_join_line", format!("this is no join line: {error}"))
            .hint("print one at the hub with `essaim join-line`")
    })
}

/// Tells when the pipe to `up` ends.
fn watch_stdin() -> Result<oneshot::Receiver<()>, Failure> {
    let (tell, gone) = oneshot::channel();
    let thread = std::thread::Builder::new().name("lifeline".into());
    let watching = thread.spawn(move || {
        // Nothing is expected; the end is what counts, and an error is an end too.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = tell.send(());
    });
    watching.map_err(|error| Failure::broken("internal", "the worker cannot start a thread", &error))?;
    Ok(gone)
}

async fn serve(printer: Printer, config: WorkerConfig, lifeline: Option<Lifeline>) -> Outcome {
    let mut interrupts = Interrupts::listen()?;
    let (orders, told) = watch::channel(Order::Run);
    let is_local = config.local;
    let voice = Voice { printer, last: Mutex::default() };
    let running = essaim_worker::run(config, told, move |event| voice.say(event));
    tokio::pin!(running);
    let patience = lifeline.as_ref().map(|lifeline| lifeline.patience);
    let gone = async {
        match lifeline {
            Some(lifeline) => lifeline.gone.await.unwrap_or(()),
            None => std::future::pending().await,
        }
    };
    let (time, code) = tokio::select! {
        ended = &mut running => return answer(ended, is_local),
        () = interrupts.next() => (DRAIN_TIME, OK),
        () = gone => (patience.unwrap_or_default(), ORPHANED),
    };
    orders.send_replace(if time.is_zero() { Order::Stop } else { Order::Drain });
    let talk = async {
        tokio::time::sleep(TALK_AFTER).await;
        printer.note("waiting up to 10 s for what runs; Ctrl+C once more stops at once");
        std::future::pending::<()>().await;
    };
    tokio::select! {
        ended = &mut running => return answer(ended, is_local).map(|_| code),
        () = interrupts.next() => {}
        () = tokio::time::sleep(time) => {}
        () = talk => {}
    }
    orders.send_replace(Order::Stop);
    answer(running.await, is_local).map(|_| code)
}

fn answer(ended: Result<(), RunError>, is_local: bool) -> Outcome {
    let error = match ended {
        Ok(()) => return Ok(OK),
        Err(error) => error,
    };
    match &error {
        RunError::HomeTaken { .. } if is_local => Ok(FOLDER_TAKEN),
        RunError::HomeTaken { .. } => Err(Failure::refused("already_running", chain(&error))
            .hint("set ESSAIM_HOME to another folder for a second worker")),
        RunError::Refused { refusal } => Err(Failure::from_refusal(refusal)),
        RunError::OtherHub { .. } => Err(Failure::refused("other_hub", chain(&error))
            .hint("the line or the saved identity belongs to a different hub; get a new line there")),
        RunError::NotJoined => Err(Failure::usage("not_joined", chain(&error))
            .hint("`essaim join-line` at the hub prints the command to paste here")),
        RunError::NotAJoinLine => Err(Failure::usage("bad_join_line", chain(&error))),
        _ => Err(Failure::internal("worker", chain(&error))),
    }
}

/// Says what happens to the worker, and each thing once.
struct Voice {
    printer: Printer,
    last: Mutex<String>,
}

impl Voice {
    fn say(&self, event: WorkerEvent) {
        let text = match event {
            WorkerEvent::Joined { name } => format!("joined as {name}; from now on `essaim worker` alone is enough"),
            WorkerEvent::Connected { hub, address, name } => format!("connected to hub {hub} at {address} as {name}"),
            // The pause grows with each try; saying it each time would only fill the screen.
            WorkerEvent::Disconnected { why, .. } => format!("lost the hub: {why}; trying again"),
            WorkerEvent::Draining => return,
        };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if *last != text {
            self.printer.note(&essaim_view::visible(&text));
            *last = text;
        }
    }
}

/// This machine's name, as far as it can name a node.
pub(super) fn host_name() -> String {
    let uname = rustix::system::uname();
    let name = uname.nodename().to_string_lossy().into_owned();
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let name: String = name.chars().map(|c| if fits(c) { c } else { '-' }).take(NAME_BYTES_MAX).collect();
    let name = name.trim_start_matches(['.', '-']);
    if name.is_empty() { "node".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The whole command, pasted after `essaim worker -`, is as good as its line; a key is told as such.
    #[test]
    fn a_pasted_command_is_a_line() {
        let (authority, secret) = ("07".repeat(32), "ab".repeat(16));
        let line = format!("essaim-join.{authority}.{secret}@127.0.0.1:5200");
        assert!(parse_ticket(&format!("essaim worker {line}\n")).is_ok());
        let failure = parse_ticket(&format!("essaim-key.{authority}.{secret}")).unwrap_err();
        assert!(failure.message.contains("an essaim-join line is needed"), "{failure:?}");
    }

    // Whatever the machine is called, the name is one.
    #[test]
    fn the_machines_name_is_a_name() {
        assert!(host_name().parse::<NodeName>().is_ok());
    }

    // Two workers in one folder: `up` tries another one, a person is told.
    #[test]
    fn a_taken_folder_is_a_refusal_or_a_sign_for_up() {
        let taken = || Err(RunError::HomeTaken { folder: "/x".into(), pid: 7 });
        assert_eq!(answer(taken(), true), Ok(FOLDER_TAKEN));
        let failure = answer(taken(), false).unwrap_err();
        assert_eq!(failure.cause, crate::exit::Cause::Refused);
        assert!(failure.message.contains("process 7"), "{failure:?}");
    }
}
