//! The words of `job`.
//!
//! `cli` has them in its tree, `cmd::job` and `cmd::job_list` translate them. Always true: a job is called by its number,
//! tasks of an array by ranges of theirs.
//! Deliberately not here: what the words do (`cmd`).

use crate::notify::Notify;
use clap::{Args, Subcommand};
use essaim_proto::job::{JobState, TaskState};
use essaim_proto::{JobId, TaskSet};
use std::path::PathBuf;
use std::str::FromStr;

pub(super) const JOB: &str = "\
Examples:
  essaim job list
  essaim job submit pipeline.toml
  essaim job logs 7 --stderr
  essaim job wait 7 && echo it worked
  essaim job cancel 7
  essaim job rerun 7 --only failed";

/// `job`.
#[derive(Debug, Subcommand)]
pub(crate) enum Job {
    /// List jobs, newest first.
    #[command(after_help = JOB_LIST)]
    List(JobFilter),
    /// Show one job in full.
    #[command(after_help = SHOW)]
    Show {
        /// Which.
        #[arg(value_parser = parse_job)]
        job: JobId,
        /// Of an array: list its tasks, those that wait like all others left out.
        #[arg(long)]
        tasks: bool,
        /// Of those only the ones that are waiting, ready, placed, running, done, failed or cancelled; several with
        /// commas.
        #[arg(long, value_name = "STATE", value_delimiter = ',', value_parser = parse_task_state, requires = "tasks")]
        state: Vec<TaskState>,
        /// At most so many of them.
        #[arg(long, value_name = "N", default_value_t = 1_000, requires = "tasks")]
        limit: usize,
    },
    /// Submit the jobs of a file, all of them or none, and print their numbers.
    #[command(after_help = SUBMIT)]
    Submit(Submit),
    /// Print a job's output; while it runs, go on until its end.
    #[command(
        after_help = "Examples:\n  essaim job logs 7\n  essaim job logs 7 --no-follow\n  essaim job logs 7 --stdout > out.txt\n  essaim job logs 7 --from $(stat -c %s out.txt) >> out.txt\n  essaim job logs 12 --task 17\n  essaim job logs 12 --keep-order --prefix"
    )]
    Logs {
        /// Which.
        #[arg(value_parser = parse_job)]
        job: JobId,
        /// Print what is there and leave.
        #[arg(long)]
        no_follow: bool,
        /// Only standard output.
        #[arg(long, conflicts_with = "stderr")]
        stdout: bool,
        /// Only standard error.
        #[arg(long)]
        stderr: bool,
        /// Begin at this byte of standard output (with --stderr: of standard error), and print that stream alone.
        #[arg(long, value_name = "BYTES")]
        from: Option<u64>,
        /// Let all control codes of the output through to the terminal.
        #[arg(long)]
        raw: bool,
        /// Of an array: only these tasks (17, 1-10 or 3,7,10-20).
        #[arg(long, value_name = "RANGE")]
        task: Option<TaskSet>,
        /// Of an array: the task's number in front of each line.
        #[arg(long)]
        prefix: bool,
        /// Of an array: the output of one task after the other, by number.
        #[arg(long)]
        keep_order: bool,
    },
    /// Wait for the end of jobs and exit like `run` would have; of several, with the worst.
    #[command(
        after_help = "Examples:\n  essaim job wait 7\n  essaim job wait 7 8 9\n  essaim job wait 7 --notify 'mail -s \"job $ESSAIM_JOB\" ada'\n  id=$(essaim run --detach long.py) && essaim job wait $id"
    )]
    Wait {
        /// Which.
        #[arg(required = true, value_parser = parse_job)]
        jobs: Vec<JobId>,
        /// At the end of each run this command here, with the job as JSON on its standard input.
        #[arg(long, value_name = "CMD")]
        notify: Option<Notify>,
    },
    /// Cancel jobs, or tasks of an array: what runs is killed with all its children.
    #[command(
        after_help = "Examples:\n  essaim job cancel 7\n  essaim job cancel 7 8 9\n  essaim job cancel 12 --only 500-1000"
    )]
    Cancel {
        /// Which.
        #[arg(required = true, value_parser = parse_job)]
        jobs: Vec<JobId>,
        /// Of an array: only these tasks.
        #[arg(long, value_name = "RANGE")]
        only: Option<TaskSet>,
    },
    /// Run a job, or tasks of it, once more: a new job with the same program.
    #[command(after_help = RERUN)]
    Rerun {
        /// Which.
        #[arg(value_parser = parse_job)]
        job: JobId,
        /// Of an array: only these tasks, or those that failed.
        #[arg(long, value_name = "failed|RANGE")]
        only: Option<Only>,
        /// Show its output and exit like `run`, instead of printing its number.
        #[arg(long)]
        follow: bool,
        /// With --follow: the task's number in front of each line.
        #[arg(long, requires = "follow")]
        prefix: bool,
        /// With --follow: the output of one task after the other, by number.
        #[arg(long, requires = "follow")]
        keep_order: bool,
    },
}

const SUBMIT: &str = "\
A file has a [[job]] for each, with the keys of the flags of `run`; paths count from its folder.
When the hub refuses one, those that were submitted before are cancelled.

Examples:
  essaim job submit pipeline.toml
  essaim job submit pipeline.toml --dry-run
  essaim job submit --wait - < pipeline.toml
  essaim job submit --example > pipeline.toml";

/// `job submit`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Submit {
    /// The file, or - for standard input.
    #[arg(value_name = "FILE", required_unless_present = "example")]
    pub(crate) file: Option<PathBuf>,
    /// Wait for the end of all and exit like `job wait`.
    #[arg(long)]
    pub(crate) wait: bool,
    /// Check the file and print what would be submitted, without a hub.
    #[arg(long, conflicts_with = "wait")]
    pub(crate) dry_run: bool,
    /// Print a file that explains every key.
    #[arg(long, conflicts_with_all = ["file", "wait", "dry_run"])]
    pub(crate) example: bool,
}

const SHOW: &str = "\
Examples:
  essaim job show 7
  essaim job show 7 --json
  essaim job show 12 --tasks --state failed";

const RERUN: &str = "\
Examples:
  essaim job rerun 7
  essaim job rerun 12 --only failed --follow
  essaim job rerun 12 --only 17,204-205";

/// Which tasks of an array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Only {
    /// Those that failed.
    Failed,
    /// These.
    Tasks(TaskSet),
}

impl FromStr for Only {
    type Err = String;

    fn from_str(text: &str) -> Result<Only, String> {
        match text {
            "failed" => Ok(Only::Failed),
            _ => text.parse().map(Only::Tasks).map_err(|error| format!("write failed, or a range: {error}")),
        }
    }
}

const JOB_LIST: &str = "\
With --watch the list is followed by a line for each change, until Ctrl+C.

Examples:
  essaim job list
  essaim job list --live --json
  essaim job list --state failed --owner ada --limit 5
  essaim job list --search render --node garage
  essaim job list --watch";

/// Which jobs `job list` shows.
#[derive(Debug, Clone, Args)]
pub(crate) struct JobFilter {
    /// Only those that are not over.
    #[arg(long)]
    pub(crate) live: bool,
    /// Only those that are queued, running, done, failed or cancelled; several with commas.
    #[arg(long, value_name = "STATE", value_delimiter = ',', value_parser = parse_job_state)]
    pub(crate) state: Vec<JobState>,
    /// Only those of this key.
    #[arg(long, value_name = "KEY")]
    pub(crate) owner: Option<String>,
    /// Only those that are on this machine, or were last.
    #[arg(long)]
    pub(crate) node: Option<String>,
    /// Only those whose name contains this, in capitals or not.
    #[arg(long, value_name = "TEXT")]
    pub(crate) search: Option<String>,
    /// At most so many.
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub(crate) limit: usize,
    /// Go on with each change, until Ctrl+C.
    #[arg(long)]
    pub(crate) watch: bool,
}

pub(super) fn parse_job(text: &str) -> Result<JobId, String> {
    text.parse().map_err(|_| "a job is called by its number; `essaim job list` shows them".to_owned())
}

fn parse_job_state(text: &str) -> Result<JobState, String> {
    let states = [JobState::Queued, JobState::Running, JobState::Done, JobState::Failed, JobState::Cancelled];
    let found = states.into_iter().find(|state| state.name() == text);
    found.ok_or_else(|| format!("use one of {}", states.map(JobState::name).join(", ")))
}

fn parse_task_state(text: &str) -> Result<TaskState, String> {
    use TaskState::{Cancelled, Done, Failed, Placed, Ready, Running, Waiting};
    let states = [Waiting, Ready, Placed, Running, Done, Failed, Cancelled];
    let found = states.into_iter().find(|state| state.name() == text);
    found.ok_or_else(|| format!("use one of {}", states.map(TaskState::name).join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn job(words: &[&str]) -> Result<Job, String> {
        let all = ["essaim", "job"].iter().chain(words);
        match Cli::try_parse_from(all).map_err(|error| error.to_string())?.command {
            Command::Job { command } => Ok(command),
            other => panic!("{other:?}"),
        }
    }

    // Tasks are named by ranges, failed ones by their word, and what goes together is asked for together.
    #[test]
    fn tasks_are_called_by_ranges() {
        let Job::Rerun { only, .. } = job(&["rerun", "12", "--only", "failed"]).unwrap() else { panic!() };
        assert_eq!(only, Some(Only::Failed));
        let Job::Rerun { only, .. } = job(&["rerun", "12", "--only", "3,7-9"]).unwrap() else { panic!() };
        assert_eq!(only, Some(Only::Tasks("3,7-9".parse().unwrap())));
        let Job::Cancel { only, jobs } = job(&["cancel", "12", "--only", "500-1000"]).unwrap() else { panic!() };
        assert_eq!((only.unwrap().len(), jobs), (501, vec![JobId(12)]));
        for words in [
            &["rerun", "12", "--only", "lost"][..],
            &["rerun", "12", "--prefix"],
            &["show", "12", "--state", "failed"],
            &["show", "12", "--tasks", "--state", "over"],
            &["wait"],
        ] {
            assert!(job(words).is_err(), "{words:?}");
        }
        let Job::Show { state, .. } = job(&["show", "12", "--tasks", "--state", "failed,running"]).unwrap() else {
            panic!()
        };
        assert_eq!(state, [TaskState::Failed, TaskState::Running]);
    }
}
