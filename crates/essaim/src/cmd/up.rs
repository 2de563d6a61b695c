//! `up` and `hub`: a hub in this process, with or without local workers.
//!
//! ```text
//!   starting ─▶ ready (one line) ── first Ctrl+C ─▶ draining, at most 10 s ─▶ workers stopped ─▶ hub stopped
//!                                                       └─ second Ctrl+C ──────▲
//! ```
//!
//! Always true: the ready line comes once, when the doors are open; afterwards no process, port or hub file is left.
//! Deliberately not here: the hub (`essaim-hub`), keeping workers alive (`supervise`).

use super::Context;
use crate::cli::Offered;
use crate::exit::{Failure, OK, Outcome, chain};
use crate::settings::{self, Limit, Origin, Profile, Settings, Size, Time};
use crate::signals::Interrupts;
use crate::supervise::{self, Crew, CrewPlan};
use essaim_core::hub::{KeyLimits, LocalPlan, Rules, Url};
use essaim_core::lang::run_limits;
use essaim_core::limits::{LOCAL_IDLE_MS, LOCAL_WORKERS_MAX, WALL_DEFAULT_MS, WALL_MAX_MS};
use essaim_hub::{HubConfig, Keep, Keeping, RunningHub, StartError};
use essaim_proto::job::Limits;
use serde::Serialize;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

/// What runs gets so long after the first Ctrl+C.
const DRAIN_TIME: Duration = Duration::from_secs(10);

/// How often we look whether something still runs.
const DRAIN_POLL: Duration = Duration::from_millis(50);

/// Jobs named one by one when the hub drains; more are counted.
const NAMED_JOBS_MAX: usize = 10;

/// With local workers?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Workers {
    /// `up`.
    Local,
    /// `hub`.
    None,
}

#[derive(Serialize)]
struct Ready {
    ready: bool,
    name: String,
    client_addresses: Vec<String>,
    worker_addresses: Vec<String>,
    authority: String,
    pid: u32,
    home: String,
}

pub(super) fn run(context: &Context, workers: Workers) -> Outcome {
    supervise::raise_open_files();
    context.start_logs()?;
    let (config, plan) = translate(context, workers)?;
    crate::home::make_private_folder(context.home.path())?;
    super::on_all_threads(serve(context, config, plan))
}

fn translate(context: &Context, workers: Workers) -> Result<(HubConfig, Option<CrewPlan>), Failure> {
    let settings = &context.settings;
    let text = |name: &str| settings.get(name).map(|value| value.text.clone());
    let config = HubConfig {
        home: context.home.path().to_owned(),
        name: text(settings::NAME).unwrap_or_else(super::worker::host_name),
        client_addr: text(settings::CLIENT_ADDR).unwrap_or_default(),
        worker_addr: text(settings::WORKER_ADDR).unwrap_or_default(),
        table: context.home.languages()?,
        keeping: Keeping::Folder,
        keep: keep(settings)?,
        notify_urls: notify_urls(settings)?,
        rules: rules(settings)?,
    };
    if workers == Workers::None {
        return Ok((config, None));
    }
    let local = local(settings)?;
    // What the workers may promise is the hub's to say, of each of them.
    let offer = Offered::of(settings, local.workers)?;
    let local = LocalPlan { labels: offer.labels.clone(), memory_bytes: offer.memory_bytes, ..local };
    Ok((config, Some(CrewPlan { home: context.home.clone(), local, offer, log: context.log_level(), only: None })))
}

/// How many workers of this machine, with how many slots.
fn local(settings: &Settings) -> Result<LocalPlan, Failure> {
    let number = |name: &str| match settings.parsed::<u32>(name)? {
        Some(number) if number > LOCAL_WORKERS_MAX => {
            let message = format!("{name} is {number}; at most {LOCAL_WORKERS_MAX} are possible");
            Err(Failure::usage("bad_settings", message))
        }
        number => Ok(number),
    };
    let workers = number(settings::LOCAL_WORKERS)?.unwrap_or(1);
    let workers_max = number(settings::LOCAL_WORKERS_MAX)?.unwrap_or(workers);
    if workers_max < workers {
        let message = format!("local_workers_max is {workers_max}, fewer than the {workers} of local_workers");
        return Err(Failure::usage("bad_settings", message));
    }
    let slots = match settings.parsed::<u32>(settings::SLOTS)? {
        Some(slots) => slots,
        None => supervise::default_slots(workers)?,
    };
    let is_said = |name: &str| settings.get(name).is_some_and(|value| matches!(value.origin, Origin::Flag(_)));
    let is_said = [is_said(settings::LOCAL_WORKERS), is_said(settings::LOCAL_WORKERS_MAX)];
    let idle_ms = settings.parsed::<Time>(settings::LOCAL_IDLE)?.map_or(LOCAL_IDLE_MS, |idle| idle.0);
    Ok(LocalPlan { workers, workers_max, is_said, idle_ms, slots, ..LocalPlan::default() })
}

/// The beginnings of URLs that jobs may be told to.
fn notify_urls(settings: &Settings) -> Result<Vec<Url>, Failure> {
    let Some(value) = settings.get(settings::NOTIFY_URLS) else { return Ok(Vec::new()) };
    let urls = value.text.split(',').map(str::trim).filter(|url| !url.is_empty());
    let parse = |url: &str| {
        let wrong =
            |why| Failure::usage("bad_settings", format!("{}: {url:?} is no URL for notify_urls: {why}", value.origin));
        Url::parse(url).map_err(wrong)
    };
    urls.map(parse).collect()
}

fn keep(settings: &Settings) -> Result<Keep, Failure> {
    let keep = Keep::default();
    let output = settings.parsed::<Size>(settings::KEEP_OUTPUT)?;
    Ok(Keep {
        jobs_days: settings.parsed(settings::KEEP_JOBS_DAYS)?.unwrap_or(keep.jobs_days),
        output_bytes: output.map_or(keep.output_bytes, |size| size.0),
    })
}

/// What keys and jobs may when nothing else is said of them.
fn rules(settings: &Settings) -> Result<Rules, Failure> {
    settings.parsed::<Profile>(settings::PROFILE)?;
    let limit = |name| Ok::<_, Failure>(settings.parsed::<Limit<u64>>(name)?.and_then(|limit| limit.0));
    let bytes = settings.parsed::<Limit<Size>>(settings::QUOTA_STORED_BYTES)?.and_then(|limit| limit.0);
    let rate = settings.parsed::<Limit<NonZeroU64>>(settings::QUOTA_REQUESTS_PER_SECOND)?.and_then(|limit| limit.0);
    let keys = KeyLimits {
        queued_tasks: limit(settings::QUOTA_QUEUED_TASKS)?,
        stored_bytes: bytes.map(|size| size.0),
        requests_per_second: rate.map(NonZeroU64::get),
    };
    let time = |name| Ok::<_, Failure>(settings.parsed::<Time>(name)?.map(|time| time.0));
    let output = |name| match settings.parsed::<Limit<Size>>(name)?.and_then(|limit| limit.0) {
        Some(Size(0)) => Err(Failure::usage("bad_settings", format!("{name} is 0, which no program can keep"))),
        limit => Ok(limit.map(|size| size.0)),
    };
    let limits_max = Limits {
        wall_ms: Some(time(settings::TIME_MAX)?.unwrap_or(WALL_MAX_MS).clamp(1, WALL_MAX_MS)),
        output_bytes: output(settings::OUTPUT_MAX)?,
        ..Limits::default()
    };
    let mut limits = Limits {
        wall_ms: Some(time(settings::TIME_DEFAULT)?.unwrap_or(WALL_DEFAULT_MS).max(1)),
        // `none` is said, for else the built-in default counted.
        output_bytes: Some(output(settings::OUTPUT_DEFAULT)?.unwrap_or(u64::MAX)),
        ..run_limits()
    };
    // Who lowers the most need not think of the default.
    limits.clamp(&limits_max);
    Ok(Rules { keys, limits, limits_max })
}

async fn serve(context: &Context, config: HubConfig, plan: Option<CrewPlan>) -> Outcome {
    let mut interrupts = Interrupts::listen()?;
    let name = config.name.clone();
    let hub = Arc::new(RunningHub::start(config).await.map_err(|error| start_failure(&error))?);
    let crew = plan.as_ref().map(|plan| Crew::start(&hub, plan));
    let said = say_ready(context, &hub, name, crew.as_ref());
    let failed = match &said {
        Ok(()) => run_until_told(context, &hub, &mut interrupts).await,
        Err(_) => None,
    };
    if let Some(crew) = crew {
        crew.stop().await;
    }
    if let Some(hub) = Arc::into_inner(hub) {
        hub.shutdown().await;
    }
    said?;
    failed.map_or(Ok(OK), Err)
}

/// Runs until the user has enough, or until the hub can promise nothing any more.
async fn run_until_told(context: &Context, hub: &RunningHub, interrupts: &mut Interrupts) -> Option<Failure> {
    tokio::select! {
        () = interrupts.next() => {}
        error = hub.failed() => {
            let why = chain(&*error);
            return Some(Failure::internal("store", format!("the hub's store failed: {why}")));
        }
    }
    drain(context, hub, interrupts).await;
    None
}

fn start_failure(error: &StartError) -> Failure {
    let why = chain(error);
    match error {
        StartError::AlreadyRunning { .. } => Failure::refused("already_running", why),
        StartError::Bind(_) => Failure::refused("cannot_listen", why)
            .hint("choose another address with --client-addr or --worker-addr (port 0: any free one)"),
        StartError::Store(error) => super::store_failure(error),
        StartError::Home { .. } => {
            Failure::refused("bad_home", why).hint("set ESSAIM_HOME to a folder that you may write to")
        }
        _ => Failure::internal("hub", format!("the hub cannot start: {why}")),
    }
}

fn say_ready(context: &Context, hub: &RunningHub, name: String, crew: Option<&Crew>) -> Result<(), Failure> {
    let ready = Ready {
        ready: true,
        name,
        client_addresses: hub.client_addresses(),
        worker_addresses: hub.worker_addresses(),
        authority: hub.authority().to_string(),
        pid: std::process::id(),
        home: context.home.path().display().to_string(),
    };
    if context.printer.is_json() {
        context.printer.json(&ready)?;
    } else {
        let (clients, workers) = (ready.client_addresses.join(" "), ready.worker_addresses.join(" "));
        context.printer.data(&format!("hub {} is ready: clients {clients}, workers {workers}", ready.name))?;
    }
    let local = match crew {
        Some(crew) if crew.adopted() > 0 => "local workers of an earlier start go on with what they run",
        Some(_) => "local workers are starting",
        None => "no worker yet",
    };
    context.printer.note(&format!("{local}; Ctrl+C stops. In another terminal:"));
    context.printer.note("  essaim run FILE               run a program");
    context.printer.note("  essaim join-line --open ADDR  let another machine join");
    Ok(())
}

/// Waits for what runs, as long as the user wants.
async fn drain(context: &Context, hub: &RunningHub, interrupts: &mut Interrupts) {
    hub.drain().await;
    let running = hub.running().await;
    if running.is_empty() {
        return;
    }
    let seconds = DRAIN_TIME.as_secs();
    context
        .printer
        .note_after_key(&format!("waiting up to {seconds} s for what runs; Ctrl+C once more stops at once:"));
    for (job, name, node) in running.iter().take(NAMED_JOBS_MAX) {
        context.printer.note(&format!("  job {job}  {name}  on {node}"));
    }
    if running.len() > NAMED_JOBS_MAX {
        context.printer.note(&format!("  and {} more", running.len() - NAMED_JOBS_MAX));
    }
    let all_ended = async {
        while !hub.running().await.is_empty() {
            tokio::time::sleep(DRAIN_POLL).await;
        }
    };
    tokio::select! {
        () = interrupts.next() => {}
        ended = tokio::time::timeout(DRAIN_TIME, all_ended) => {
            if ended.is_err() {
                context.printer.note("stopping what still runs");
            }
        }
    }
}
