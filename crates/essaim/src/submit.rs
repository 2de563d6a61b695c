//! Bringing a job to the hub: its files first, then the Submit, once, whatever happens to the connection.
//!
//! `cmd::run` and `cmd::job_submit` call [`hand_over`]. Always true: the job's key makes a repetition harmless; Ctrl+C
//! meanwhile leaves no job behind, or says that there may be one.
//! Deliberately not here: what the job is (`spec`), following it (`follow`).

use crate::exit::Failure;
use crate::files::{Blob, Source};
use crate::link::{self, HUB_BACK, HUB_GONE, Link};
use crate::print::Printer;
use crate::signals::Interrupts;
use crate::spec::Built;
use essaim_net::{ClientError, Subscription};
use essaim_proto::api::{BlobsMissing, JobCancel, Submit, Submitted};
use essaim_proto::{BlobHash, SubmitKey};
use std::time::Duration;

/// A Submit that was interrupted is waited for so long, so that its job can be cancelled by its id.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// Hashes asked for in one message: far below a frame.
const HASHES_PER_QUESTION: usize = 1_000;

/// How a job is handed over.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    /// Makes a repeated Submit return the first job.
    pub(crate) key: SubmitKey,
    /// Watch it from its first moment?
    pub(crate) watch: bool,
    /// Of a watched array: one task after the other?
    pub(crate) in_order: bool,
}

/// The hub's answer to a Submit, and the watch when one was asked for.
pub(crate) type Answered = (Submitted, Option<Subscription>);

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
///
/// # Errors
/// A refusal; a file that cannot be read; the hub does not come back.
pub(crate) async fn hand_over(
    printer: Printer,
    link: &mut Link,
    job: &Built,
    manner: Manner,
    interrupts: &mut Interrupts,
) -> Result<Option<Answered>, Failure> {
    let mut tries_left = link.tries();
    loop {
        tries_left -= 1;
        // The files again too: a hub that was started anew has forgotten those that no job refers to.
        let brought = tokio::select! {
            biased;
            () = interrupts.next() => return Ok(None),
            brought = bring_files(link, job) => brought,
        };
        let answered = match brought {
            Ok(()) => submit(link, job, manner, interrupts).await,
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
async fn bring_files(link: &Link, job: &Built) -> Result<(), Trouble> {
    let hashes: Vec<BlobHash> = job.blobs.keys().copied().collect();
    for asked in hashes.chunks(HASHES_PER_QUESTION) {
        let missing = link.client().request(&BlobsMissing { hashes: asked.to_vec() }).await?;
        for hash in missing.hashes {
            // Only what we have can be asked of us.
            let Some(blob) = job.blobs.get(&hash) else { continue };
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
    job: &Built,
    manner: Manner,
    interrupts: &mut Interrupts,
) -> Result<Option<Answered>, Trouble> {
    let Manner { key, watch, in_order } = manner;
    let submit = Submit { key, spec: job.spec.clone(), watch, in_order };
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
