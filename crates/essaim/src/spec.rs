//! What was said about a job becomes a [`JobSpec`] and the files that go along: the one place where that is done.
//!
//! `cmd::run` makes a [`Draft`] of words, `job_file` of a file's tables; both call [`Draft::build`]. Always true: files are
//! read here and before anybody is dialled; what was not said has no value, so that the hub's defaults count.
//! Deliberately not here: what goes together on a command line (`cli`) or in a file (`job_file`), what the program reads
//! (`cmd::run`), bringing the job to a hub (`submit`).

use crate::each_line;
use crate::exit::Failure;
use crate::files::{self, Blob, Collected, Program};
use essaim_proto::job::{ArraySpec, FileSpec, JobKind, JobSpec, Limits, Needs, StdinSpec};
use essaim_proto::{BlobHash, JobId, NodeName, TaskSet};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What was said about a job.
#[derive(Debug)]
pub(crate) struct Draft {
    /// Its name in lists.
    pub(crate) name: Option<String>,
    /// What starts.
    pub(crate) program: Program,
    /// The program's arguments; of a command all of it.
    pub(crate) args: Vec<String>,
    /// Its language.
    pub(crate) lang: Option<String>,
    /// Files and folders that go along.
    pub(crate) files: Vec<PathBuf>,
    /// Variables.
    pub(crate) env: BTreeMap<String, String>,
    /// The only machine for it.
    pub(crate) on: Option<NodeName>,
    /// What its program may use.
    pub(crate) limits: Limits,
    /// It ends with its client.
    pub(crate) ephemeral: bool,
    /// The numbers of its tasks.
    pub(crate) array: Option<TaskSet>,
    /// A task for each line of this file.
    pub(crate) each_line: Option<PathBuf>,
    /// What a node must have.
    pub(crate) needs: Needs,
    /// Which goes first.
    pub(crate) priority: i32,
    /// Tries after a failure.
    pub(crate) retry: u32,
    /// Jobs that it waits for.
    pub(crate) after: Vec<JobId>,
    /// A URL that the hub tells of its end.
    pub(crate) notify: Option<String>,
}

/// A job that can be submitted.
#[derive(Debug)]
pub(crate) struct Built {
    /// What it is; it reads nothing so far.
    pub(crate) spec: JobSpec,
    /// Files that the hub must have before it.
    pub(crate) blobs: BTreeMap<BlobHash, Blob>,
    /// What is to be said about files that are not sent.
    pub(crate) note: Option<String>,
}

impl Draft {
    /// Reads the files and makes the job.
    ///
    /// # Errors
    /// A usage failure that names the file or the line that cannot be used.
    pub(crate) fn build(self) -> Result<Built, Failure> {
        let kind = if matches!(self.program, Program::Command) { JobKind::Command } else { JobKind::Program };
        let Collected { entry, files, mut blobs, left_out } = files::collect(self.program, &self.files)?;
        let note = left_out.first().map(|first| {
            let (first, count) = (first.display(), left_out.len());
            format!("not sent: {first} ({count} in all), links that lead out of their folder or nowhere")
        });
        let array = array(self.array, self.each_line, &files, &mut blobs)?;
        let spec = JobSpec {
            name: self.name.unwrap_or_default(),
            kind,
            lang: self.lang,
            entry,
            files,
            args: self.args,
            env: self.env,
            stdin: StdinSpec::Empty,
            on: self.on,
            limits: self.limits,
            clamped: Vec::new(),
            ephemeral: self.ephemeral,
            array: array.map(Box::new),
            needs: self.needs,
            priority: self.priority,
            retry: self.retry,
            after: self.after,
            notify: self.notify,
        };
        Ok(Built { spec, blobs, note })
    }
}

/// The tasks of an array; their lines go along with the other files.
fn array(
    tasks: Option<TaskSet>,
    each_line: Option<PathBuf>,
    files: &[FileSpec],
    blobs: &mut BTreeMap<BlobHash, Blob>,
) -> Result<Option<ArraySpec>, Failure> {
    let Some(path) = each_line else {
        return Ok(tasks.map(|tasks| ArraySpec { tasks, lines: None }));
    };
    let inline = files.iter().filter(|file| file.inline.is_some()).map(|file| file.size_bytes).sum();
    let each_line::Lines { array, blob } = each_line::read(&path, tasks, inline)?;
    blobs.extend(blob);
    Ok(Some(array))
}
