//! `run`: a program somewhere, as if it were here.
//!
//! Words and files become a job (`spec`); then it is one client like any other, of a hub that is there or of one for this
//! run ([`crate::embedded`]). Always true: files are read before anybody is dialled; the embedded hub is stopped in every
//! case.
//! Deliberately not here: making the job (`spec`), submitting it (`submit`), following it (`follow`), exit codes (`exit`).

use super::Context;
use crate::cli::{Beside, Run};
use crate::embedded::Embedded;
use crate::exit::{CANCELLED, Failure, NOT_RUN, OK, Outcome, of_result};
use crate::files::Program;
use crate::follow::{End, Follow, Manner, OnInterrupt, array_summary, summary};
use crate::link::Link;
use crate::notify::{self, Notify};
use crate::screen::{Screen, Shown};
use crate::signals::Interrupts;
use crate::spec::{Built, Draft};
use crate::stdin::{self, Stdin};
use crate::submit;
use crate::supervise;
use crate::tally::Tally;
use crate::target::{self, Target};
use essaim_core::lang::LanguageTable;
use essaim_proto::api::Submitted;
use essaim_proto::job::{Limits, StdinSpec};
use essaim_proto::limits::BLOB_BYTES_MAX;
use essaim_proto::{JobId, SubmitKey};
use serde::Serialize;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

/// A goodbye may take so long: on a dead network nobody hears it.
const GOODBYE_TIME: Duration = Duration::from_millis(500);

/// A job ready to be submitted.
struct Prepared {
    job: Built,
    stdin: Option<Stdin>,
    detach: bool,
    in_order: bool,
    /// The command of `--notify`.
    on_end: Option<String>,
    shown: Shown,
}

/// The number of a job that nobody follows.
#[derive(Serialize)]
pub(super) struct Detached {
    /// `submitted`.
    pub(super) r#type: &'static str,
    /// Which.
    pub(super) job: JobId,
}

pub(super) fn run(context: &Context, words: Run) -> Outcome {
    let table = context.home.languages()?;
    let prepared = prepare(context, words, &table)?;
    match target::find(&context.home, &context.settings)? {
        Some(target) => super::on_one_thread(async {
            let mut interrupts = Interrupts::listen()?;
            on_hub(context, prepared, target, &mut interrupts, false).await
        }),
        None if prepared.detach => Err(Failure::unreachable("no_hub", "no hub is running to leave the job with")
            .hint("start one with `essaim up`, or leave out --detach")),
        None if prepared.job.spec.notify.is_some() => {
            Err(Failure::unreachable("no_hub", "no hub is running to tell a URL")
                .hint("start one with `essaim up`, or let a command do it here: --notify 'curl -d @- URL'"))
        }
        // A hub is more than a client: its driver must not wait for our output.
        None => super::on_all_threads(without_hub(context, prepared, table)),
    }
}

async fn without_hub(context: &Context, prepared: Prepared, table: LanguageTable) -> Outcome {
    // The hub would say the same, only later.
    let program = table.resolve(&prepared.job.spec).map_err(|refusal| Failure::from_refusal(&refusal))?;
    let mut interrupts = Interrupts::listen()?;
    context.printer.note("no hub is running: using one for this run (start `essaim up` to keep one)");
    // One program needs one slot; many, or a large one, may have the machine.
    let is_one = prepared.job.spec.array.is_none() && prepared.job.spec.needs.is_plain();
    let slots = if is_one { 1 } else { supervise::default_slots(1)? };
    let embedded = Embedded::start(table, program.lang.as_deref(), &context.log_level(), slots).await?;
    let outcome = match embedded.target() {
        Ok(target) => on_hub(context, prepared, target, &mut interrupts, true).await,
        Err(failure) => Err(failure),
    };
    embedded.stop().await;
    outcome
}

/// Words and files become a job.
fn prepare(context: &Context, words: Run, table: &LanguageTable) -> Result<Prepared, Failure> {
    let Run {
        words: mut argv,
        lang,
        stdin,
        file,
        on,
        time,
        output_limit,
        name,
        env,
        detach,
        ephemeral,
        command,
        raw,
        notify,
        ..
    } = words;
    let (array, demands) = (words.array, words.demands);
    let reads_program = !command && argv.first().is_some_and(|first| first == "-");
    let json = context.printer.is_json();
    array.check(Beside { json, detach, stdin: stdin.is_some(), program_from_stdin: reads_program })?;
    let needs = demands.needs()?;
    let (notify, on_end) = Notify::split(notify, detach)?;
    let program = if command {
        Program::Command
    } else {
        let first = argv.remove(0);
        if reads_program { program_from_stdin(lang.as_deref(), table)? } else { Program::Path(PathBuf::from(first)) }
    };
    let (in_order, prefix, is_array) = (array.keep_order, array.prefix, array.is_wanted());
    let draft = Draft {
        name,
        program,
        args: argv,
        lang,
        files: file,
        env: env.into_iter().collect(),
        on,
        limits: Limits { wall_ms: time, output_bytes: output_limit, ..Limits::default() },
        ephemeral,
        array: array.array,
        each_line: array.each_line,
        needs,
        priority: demands.priority.unwrap_or(0),
        retry: demands.retry.unwrap_or(0),
        after: demands.after,
        notify,
    };
    let mut job = draft.build()?;
    if let Some(note) = &job.note {
        context.printer.note(note);
    }
    let stdin = match stdin {
        Some(path) => Some(Stdin::file(&path)?),
        None if is_array || detach || reads_program || stdin::is_null() => None,
        None => Some(Stdin::own()?),
    };
    if stdin.is_some() {
        job.spec.stdin = StdinSpec::Live;
    }
    Ok(Prepared { job, stdin, detach, in_order, on_end, shown: Shown { only: None, raw, prefix } })
}

/// A program that comes through standard input has no name: its language gives one.
fn program_from_stdin(lang: Option<&str>, table: &LanguageTable) -> Result<Program, Failure> {
    let lang = lang.ok_or_else(|| {
        let message = "a program from standard input has no extension that tells its language";
        Failure::usage("no_language", message).hint("say it with --lang, for example --lang python")
    })?;
    let (_, language) = table.find(lang).ok_or_else(|| {
        Failure::usage("no_such_language", format!("{lang} is no language of this machine's table"))
            .hint("`essaim doctor` lists them")
    })?;
    let mut bytes = Vec::new();
    let mut input = std::io::stdin().lock().take(BLOB_BYTES_MAX + 1);
    input
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::broken("unreadable", "the program cannot be read from standard input", &error))?;
    Ok(Program::Bytes(language.source.clone(), bytes))
}

/// Submits and follows.
async fn on_hub(
    context: &Context,
    mut prepared: Prepared,
    target: Target,
    interrupts: &mut Interrupts,
    is_embedded: bool,
) -> Outcome {
    let stdin = prepared.stdin.take();
    let key = SubmitKey(essaim_net::ticket::random());
    let mut link = tokio::select! {
        biased;
        () = interrupts.next() => return Ok(CANCELLED),
        link = Link::open(target, &context.settings, context.printer) => link?,
    };
    let manner = submit::Manner { key, watch: !prepared.detach, in_order: prepared.in_order };
    let handed = submit::hand_over(context.printer, &mut link, &prepared.job, manner, interrupts).await?;
    let Some((submitted, watch)) = handed else {
        return Ok(CANCELLED);
    };
    let Submitted { job, clamped, .. } = submitted;
    for cut in &clamped {
        context.printer.note(&essaim_view::clamped(cut, essaim_view::Language::English));
    }
    let Some(watch) = watch else {
        let printed = match context.printer.is_json() {
            true => context.printer.json(&Detached { r#type: "submitted", job }),
            false => context.printer.data(&job.to_string()),
        };
        link.close().await;
        return printed.map(|()| OK);
    };
    let mut screen = Screen::new(context.printer, prepared.shown)?;
    let manner = Manner {
        output: true,
        no_follow: false,
        on_interrupt: OnInterrupt::Cancel,
        to_person: context.printer.stderr_is_terminal(),
        from_person: stdin.is_some() && stdin::is_terminal(),
        is_embedded,
        retries: prepared.job.spec.retry > 0,
        key: Some(key),
    };
    let array = prepared.job.spec.array.as_ref().map(|array| Tally::new(array.tasks.clone(), prepared.in_order));
    let follow = Follow::new(&mut link, &mut screen, interrupts, job, manner).with_stdin(stdin).with_array(array);
    let end = follow.finish(Some(watch)).await;
    let code = end.as_ref().map_or(NOT_RUN, |end| ended(&mut screen, end));
    let written = screen.finish().await;
    if let (Ok(End::Over(_) | End::Array(_)), Some(command)) = (&end, &prepared.on_end) {
        notify::tell(context.printer, &mut link, interrupts, (job, code), command).await;
    }
    // A second Ctrl+C must not wait for a network that is gone.
    let _ = tokio::time::timeout(GOODBYE_TIME, link.close()).await;
    end?;
    written.map(|()| code)
}

/// Shows how it ended and gives the exit code.
pub(super) fn ended(screen: &mut Screen, end: &End) -> u8 {
    let event = match end {
        End::Over(event) => event,
        End::Array(end) => {
            screen.array_over(end.job, end.state, end.counts, &end.failed);
            if let Some(summary) = array_summary(end) {
                screen.talk(&summary);
            }
            return end.severity.code();
        }
        End::Interrupted => return CANCELLED,
    };
    let task = event.task.as_ref();
    let Some((task, result)) = task.and_then(|task| Some((task.task, task.result.as_ref()?))) else {
        return NOT_RUN;
    };
    screen.result(event.job, task, result);
    if let Some(summary) = summary(event) {
        screen.talk(&summary);
    }
    of_result(result)
}
