//! `run`: a program somewhere, as if it were here.
//!
//! Words and files become a [`JobSpec`]; then it is one client like any other, of a hub that is there or of one for this
//! run ([`crate::embedded`]). Always true: files are read before anybody is dialled; the embedded hub is stopped in every
//! case.
//! Deliberately not here: following the job (`follow`), what files there are (`files`), exit codes (`exit`).

use super::Context;
use crate::cli::{Array, Beside, Run};
use crate::each_line;
use crate::embedded::Embedded;
use crate::exit::{CANCELLED, Failure, NOT_RUN, OK, Outcome, of_result};
use crate::files::{self, Blob, Collected, Program, Source};
use crate::follow::{End, Follow, Manner, OnInterrupt, array_summary, summary};
use crate::link::{self, HUB_BACK, HUB_GONE, Link};
use crate::screen::{Screen, Shown};
use crate::signals::Interrupts;
use crate::stdin::{self, Stdin};
use crate::supervise;
use crate::tally::Tally;
use crate::target::{self, Target};
use essaim_core::lang::LanguageTable;
use essaim_net::{ClientError, Subscription};
use essaim_proto::api::{BlobsMissing, JobCancel, Submit, Submitted};
use essaim_proto::job::{ArraySpec, FileSpec, JobKind, JobSpec, Limits, StdinSpec};
use essaim_proto::limits::BLOB_BYTES_MAX;
use essaim_proto::{BlobHash, JobId, SubmitKey};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

/// A Submit that was interrupted is waited for so long, so that its job can be cancelled by its id.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// A goodbye may take so long: on a dead network nobody hears it.
const GOODBYE_TIME: Duration = Duration::from_millis(500);

/// Hashes asked for in one message: far below a frame.
const HASHES_PER_QUESTION: usize = 1_000;

/// A job ready to be submitted.
struct Prepared {
    spec: JobSpec,
    blobs: BTreeMap<BlobHash, Blob>,
    stdin: Option<Stdin>,
    detach: bool,
    in_order: bool,
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
        // A hub is more than a client: its driver must not wait for our output.
        None => super::on_all_threads(without_hub(context, prepared, table)),
    }
}

async fn without_hub(context: &Context, prepared: Prepared, table: LanguageTable) -> Outcome {
    // The hub would say the same, only later.
    let program = table.resolve(&prepared.spec).map_err(|refusal| Failure::from_refusal(&refusal))?;
    let mut interrupts = Interrupts::listen()?;
    context.printer.note("no hub is running: using one for this run (start `essaim up` to keep one)");
    // One program needs one slot; many, or a large one, may have the machine.
    let is_one = prepared.spec.array.is_none() && prepared.spec.needs.is_plain();
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
    let Run { words: mut argv, lang, stdin, file, on, time, name, env, detach, ephemeral, command, raw, .. } = words;
    let (array, demands) = (words.array, words.demands);
    let reads_program = !command && argv.first().is_some_and(|first| first == "-");
    let json = context.printer.is_json();
    array.check(Beside { json, detach, stdin: stdin.is_some(), program_from_stdin: reads_program })?;
    let needs = demands.needs()?;
    let program = if command {
        Program::Command
    } else {
        let first = argv.remove(0);
        if reads_program { program_from_stdin(lang.as_deref(), table)? } else { Program::Path(PathBuf::from(first)) }
    };
    let Collected { entry, files, mut blobs, left_out } = files::collect(program, &file)?;
    if let Some(first) = left_out.first() {
        let count = left_out.len();
        let note =
            format!("not sent: {} ({count} in all), links that lead out of their folder or nowhere", first.display());
        context.printer.note(&note);
    }
    let (in_order, prefix) = (array.keep_order, array.prefix);
    let is_array = array.is_wanted();
    let array = array_spec(array, &files, &mut blobs)?;
    let stdin = match stdin {
        Some(path) => Some(Stdin::file(&path)?),
        None if is_array || detach || reads_program || stdin::is_null() => None,
        None => Some(Stdin::own()?),
    };
    let spec = JobSpec {
        name: name.unwrap_or_default(),
        kind: if command { JobKind::Command } else { JobKind::Program },
        lang,
        entry,
        files,
        args: argv,
        env: env.into_iter().collect(),
        stdin: if stdin.is_some() { StdinSpec::Live } else { StdinSpec::Empty },
        on,
        limits: Limits { wall_ms: time },
        ephemeral,
        array,
        needs,
        priority: demands.priority.unwrap_or(0),
        retry: demands.retry.unwrap_or(0),
        after: demands.after,
    };
    Ok(Prepared { spec, blobs, stdin, detach, in_order, shown: Shown { only: None, raw, prefix } })
}

/// The tasks of an array; their lines go along with the other files.
fn array_spec(
    words: Array,
    files: &[FileSpec],
    blobs: &mut BTreeMap<BlobHash, Blob>,
) -> Result<Option<ArraySpec>, Failure> {
    let Some(path) = words.each_line else {
        return Ok(words.array.map(|tasks| ArraySpec { tasks, lines: None }));
    };
    let inline = files.iter().filter(|file| file.inline.is_some()).map(|file| file.size_bytes).sum();
    let each_line::Lines { array, blob } = each_line::read(&path, words.array, inline)?;
    blobs.extend(blob);
    Ok(Some(array))
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
    let Some((submitted, watch)) = hand_over(context, &mut link, &prepared, key, interrupts).await? else {
        return Ok(CANCELLED);
    };
    let Submitted { job, .. } = submitted;
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
        retries: prepared.spec.retry > 0,
        key: Some(key),
    };
    let array = prepared.spec.array.as_ref().map(|array| Tally::new(array.tasks.clone(), prepared.in_order));
    let follow = Follow::new(&mut link, &mut screen, interrupts, job, manner).with_stdin(stdin).with_array(array);
    let end = follow.finish(Some(watch)).await;
    let code = end.as_ref().map_or(NOT_RUN, |end| ended(&mut screen, end));
    let written = screen.finish().await;
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

/// The hub's answer to a Submit, and the watch when one was asked for.
type Answered = (Submitted, Option<Subscription>);

/// Why a job did not get to the hub.
enum Trouble {
    /// The hub went away; whether it has the job is not known.
    Lost(ClientError),
    /// Another try changes nothing.
    Final(Failure),
}

impl From<ClientError> for Trouble {
    fn from(error: ClientError) -> Trouble {
        if matches!(error, ClientError::Lost(_)) { Trouble::Lost(error) } else { Trouble::Final(link::failure(&error)) }
    }
}

/// Brings the job to the hub, once, whatever happens to the connection: its key makes a repetition harmless. `None`:
/// interrupted; the job is cancelled if the hub has it.
async fn hand_over(
    context: &Context,
    link: &mut Link,
    prepared: &Prepared,
    key: SubmitKey,
    interrupts: &mut Interrupts,
) -> Result<Option<Answered>, Failure> {
    let printer = context.printer;
    let mut tries_left = link.tries();
    loop {
        tries_left -= 1;
        // The files again too: a hub that was started anew has forgotten those that no job refers to.
        let brought = tokio::select! {
            biased;
            () = interrupts.next() => return Ok(None),
            brought = bring_files(link, prepared) => brought,
        };
        let answered = match brought {
            Ok(()) => submit(link, prepared, key, interrupts).await,
            Err(trouble) => Err(trouble),
        };
        match answered {
            Ok(answered) => return Ok(answered),
            Err(Trouble::Lost(error)) if tries_left == 0 => return Err(link::failure(&error)),
            Err(Trouble::Lost(_)) => {}
            Err(Trouble::Final(failure)) => return Err(failure),
        }
        printer.note(HUB_GONE);
        let mut talk = |text: &str| printer.note(text);
        tokio::select! {
            biased;
            () = interrupts.next() => {
                printer.note("the hub is away and may have the job already; `essaim job list` shows it later");
                return Ok(None);
            }
            reopened = link.reopen(&mut talk) => reopened?,
        }
        printer.note(HUB_BACK);
    }
}

/// Brings the hub the files that it lacks.
async fn bring_files(link: &Link, prepared: &Prepared) -> Result<(), Trouble> {
    let hashes: Vec<BlobHash> = prepared.blobs.keys().copied().collect();
    for asked in hashes.chunks(HASHES_PER_QUESTION) {
        let missing = link.client().request(&BlobsMissing { hashes: asked.to_vec() }).await?;
        for hash in missing.hashes {
            // Only what we have can be asked of us.
            let Some(blob) = prepared.blobs.get(&hash) else { continue };
            upload(link, hash, blob).await?;
        }
    }
    Ok(())
}

async fn upload(link: &Link, hash: BlobHash, blob: &Blob) -> Result<(), Trouble> {
    match &blob.source {
        Source::Bytes(bytes) => link.client().put_blob(hash, blob.size_bytes, bytes.as_slice()).await?,
        Source::Path(path) => {
            let unreadable = |error: std::io::Error| {
                Trouble::Final(Failure::usage("unreadable", format!("{} cannot be read: {error}", path.display())))
            };
            let file = tokio::fs::File::open(path).await.map_err(unreadable)?;
            link.client().put_blob(hash, blob.size_bytes, file).await?;
        }
    }
    Ok(())
}

/// Submits. `None`: interrupted; the job is cancelled if the hub has it.
async fn submit(
    link: &Link,
    prepared: &Prepared,
    key: SubmitKey,
    interrupts: &mut Interrupts,
) -> Result<Option<Answered>, Trouble> {
    let submit = Submit { key, spec: prepared.spec.clone(), watch: !prepared.detach, in_order: prepared.in_order };
    let client = link.client();
    let asked = async {
        if submit.watch {
            client.open(&submit).await.map(|(submitted, watch)| (submitted, Some(watch)))
        } else {
            client.request(&submit).await.map(|submitted| (submitted, None))
        }
    };
    tokio::pin!(asked);
    tokio::select! {
        biased;
        answer = &mut asked => Ok(Some(answer?)),
        () = interrupts.next() => {
            if let Ok(Ok((submitted, _))) = tokio::time::timeout(ANSWER_TIME, asked).await {
                let cancel = JobCancel { job: submitted.job, tasks: None };
                let _ = tokio::time::timeout(ANSWER_TIME, client.request(&cancel)).await;
            }
            Ok(None)
        }
    }
}
