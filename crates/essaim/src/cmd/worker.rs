//! `worker`: this machine's slots for a hub.
//!
//! Three ways in: a join line (as an argument or from `-`), the identity of an earlier join, or `up` (`--local`), whose
//! worker reads its line from a pipe that stays open as long as `up` lives. Always true: the first Ctrl+C finishes what
//! runs (at most 10 s), the second stops at once; a local worker whose `up` is gone goes on for a minute, and ends when no
//! new hub has come to the data folder by then.
//! Deliberately not here: running programs (`essaim-worker`), starting cages (`supervise`).

use super::Context;
use crate::cli::{Offered, Worker};
use crate::embedded::NO_LANGUAGE;
use crate::exit::{Failure, OK, Outcome, chain};
use crate::home::Home;
use crate::print::Printer;
use crate::process::Process;
use crate::settings::{self, Origin};
use crate::signals::Interrupts;
use crate::supervise::{self, FOLDER_TAKEN};
use essaim_net::hubfile::HUB_FILE;
use essaim_net::limits::TICKET_BYTES_MAX;
use essaim_net::{HubFile, Ticket, TicketKind};
use essaim_proto::NodeName;
use essaim_proto::limits::NAME_BYTES_MAX;
use essaim_worker::{Offer, Order, RunError, WorkerConfig, WorkerEvent};
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

/// A local worker waits so long for a new `up` when its own is gone: whoever starts it again by hand needs a moment, and
/// nobody wants programs that run for ever under nobody.
const ORPHAN_TIME: Duration = Duration::from_secs(60);

/// How often it looks for one.
const ORPHAN_POLL: Duration = Duration::from_millis(200);

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
    let lifeline = Lifeline {
        gone: watch_stdin()?,
        hub: hub_file(&context.home),
        home: context.home.clone(),
        patience: if is_embedded { Duration::ZERO } else { ORPHAN_TIME },
    };
    let outcome = super::on_all_threads(serve(context.printer, config, Some(lifeline)));
    if is_embedded && outcome == Ok(ORPHANED) {
        // The hub's folder was for one run, and whoever should have removed it was killed.
        let _ = std::fs::remove_dir_all(context.home.path());
    }
    outcome
}

/// What tells a local worker that its `up` is gone, and that there is a new one.
struct Lifeline {
    gone: oneshot::Receiver<()>,
    /// The hub of its `up`.
    hub: Option<HubFile>,
    home: Home,
    /// A new one may take so long.
    patience: Duration,
}

impl Lifeline {
    /// Returns when `up` is gone and no other hub came to its folder in time.
    async fn cut(self) {
        let Lifeline { gone, mut hub, home, patience } = self;
        let _ = gone.await;
        if patience.is_zero() {
            return;
        }
        loop {
            tracing::warn!(
                seconds = patience.as_secs(),
                "the hub's process is gone; programs go on, waiting for a new one"
            );
            let Ok((file, process)) = tokio::time::timeout(patience, next_hub(&home, hub.as_ref())).await else {
                return;
            };
            tracing::info!(pid = file.pid, "there is a new hub");
            hub = Some(file);
            process.ended().await;
        }
    }
}

/// The next hub on this folder, and its process. A file of the same start says nothing: it stays behind when its hub is
/// killed, and the system may give its process's number to anybody.
async fn next_hub(home: &Home, last: Option<&HubFile>) -> (HubFile, Process) {
    loop {
        let next = hub_file(home).filter(|file| Some(file) != last);
        if let Some(found) = next.and_then(|file| Process::of(file.pid).map(|process| (file, process))) {
            return found;
        }
        tokio::time::sleep(ORPHAN_POLL).await;
    }
}

/// What the hub of this folder says of itself; what cannot be read in this moment can be in the next.
fn hub_file(home: &Home) -> Option<HubFile> {
    HubFile::read(home.path()).ok().flatten()
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
        offer: Offered::of(&context.settings, 1)?,
        name,
        local: None,
        only: None,
        bind: context.settings.parsed::<IpAddr>(settings::BIND)?,
        cage: cage()?,
        new_cage: Box::new(supervise::start_cage),
    })
}

/// A worker of `up`.
fn local(context: &Context, number: u32, only: Option<String>) -> Result<WorkerConfig, Failure> {
    let offer = Offered::of(&context.settings, 1)?;
    // `up` says what it may promise; the settings are about the whole machine.
    let is_said = context.settings.get(settings::MEM).is_some_and(|value| matches!(value.origin, Origin::Flag(_)));
    let memory_bytes = if is_said { offer.memory_bytes } else { 0 };
    Ok(WorkerConfig {
        home: context.home.local_worker(number),
        ticket: Some(read_ticket()?),
        hub_file: Some(context.home.path().join(HUB_FILE)),
        slots: slots(context)?,
        offer: Offer { memory_bytes, ..offer },
        name: supervise::local_name(number).parse().ok(),
        local: Some(number),
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
    let is_local = config.local.is_some();
    let voice = Voice { printer, last: Mutex::default() };
    let running = essaim_worker::run(config, told, move |event| voice.say(event));
    tokio::pin!(running);
    let cut = async {
        match lifeline {
            Some(lifeline) => lifeline.cut().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        ended = &mut running => return answer(ended, is_local),
        () = interrupts.next() => {}
        () = cut => {
            orders.send_replace(Order::Stop);
            return answer(running.await, is_local).map(|_| ORPHANED);
        }
    }
    orders.send_replace(Order::Drain);
    let talk = async {
        tokio::time::sleep(TALK_AFTER).await;
        printer.note("waiting up to 10 s for what runs; Ctrl+C once more stops at once");
        std::future::pending::<()>().await;
    };
    tokio::select! {
        ended = &mut running => return answer(ended, is_local),
        () = interrupts.next() => {}
        () = tokio::time::sleep(DRAIN_TIME) => {}
        () = talk => {}
    }
    orders.send_replace(Order::Stop);
    answer(running.await, is_local)
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

    // Does a local worker stay while there is a hub, also a second one, and leave when none comes?
    #[tokio::test]
    async fn a_local_worker_waits_for_the_next_hub() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path());
        let write = |pid: u32, started_ms: u64| {
            let file = HubFile { pid, started_ms, ..HubFile::default() };
            file.write(folder.path()).unwrap();
            file
        };
        let first = write(std::process::id(), 1);
        let (tell, gone) = oneshot::channel();
        let patience = Duration::from_millis(500);
        let lifeline = Lifeline { gone, hub: Some(first), home, patience };
        let cut = tokio::spawn(lifeline.cut());
        tell.send(()).unwrap();
        let mut second = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        write(second.id(), 2);
        tokio::time::sleep(2 * patience).await; // poll: long enough to have given up without a new hub
        assert!(!cut.is_finished(), "there is a hub");
        second.kill().unwrap();
        second.wait().unwrap();
        tokio::time::timeout(20 * patience, cut).await.unwrap().unwrap();
    }

    // Whatever the machine is called, the name is one.
    #[test]
    fn the_machines_name_is_a_name() {
        assert!(host_name().parse::<NodeName>().is_ok());
    }

    // Two workers in one folder: `up` adopts the other one, a person is told.
    #[test]
    fn a_taken_folder_is_a_refusal_or_a_sign_for_up() {
        let taken = || Err(RunError::HomeTaken { folder: "/x".into(), pid: 7 });
        assert_eq!(answer(taken(), true), Ok(FOLDER_TAKEN));
        let failure = answer(taken(), false).unwrap_err();
        assert_eq!(failure.cause, crate::exit::Cause::Refused);
        assert!(failure.message.contains("process 7"), "{failure:?}");
    }
}
