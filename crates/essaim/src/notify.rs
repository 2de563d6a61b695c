//! `--notify`: what is told of a job's end, by whom, and the commands that we start for that ourselves.
//!
//! `cli` and `job_file` read a [`Notify`], `cmd::run` and `cmd::job` call [`tell`] when the end has come. Always true: a
//! command runs here, as who asked for it, and only while we are here to see the end; what it prints goes to standard
//! error, because standard output is the program's; whatever becomes of it, our exit code is the job's.
//! Deliberately not here: posting to URLs (the hub does it, whether we are here or not).

use crate::exit::{Failure, chain};
use crate::link::Link;
use crate::print::Printer;
use crate::signals::Interrupts;
use essaim_proto::JobId;
use essaim_proto::api::{JobNotice, JobShow};
use std::io;
use std::os::fd::AsFd;
use std::process::Stdio;
use std::str::FromStr;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Who is told of a job's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Notify {
    /// A shell command of this machine, by us.
    Command(String),
    /// A web address, by the hub.
    Url(String),
}

impl FromStr for Notify {
    type Err = String;

    fn from_str(text: &str) -> Result<Notify, String> {
        let text = text.trim();
        let is_scheme = |scheme: &str| {
            scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.chars().all(|c| c.is_ascii_alphanumeric())
        };
        match text.split_once("://") {
            _ if text.is_empty() => Err("write a command, or a URL".to_owned()),
            Some(("http" | "https", _)) => Ok(Notify::Url(text.to_owned())),
            Some((scheme, _)) if is_scheme(scheme) => {
                Err(format!("{scheme}:// cannot be posted to: use http or https"))
            }
            _ => Ok(Notify::Command(text.to_owned())),
        }
    }
}

impl Notify {
    /// The URL that goes along with the job, and the command that stays here.
    ///
    /// # Errors
    /// A usage failure when there is a command and nobody here to run it: we leave before the end.
    pub(crate) fn split(notify: Option<Notify>, leaves: bool) -> Result<(Option<String>, Option<String>), Failure> {
        match notify {
            None => Ok((None, None)),
            Some(Notify::Url(url)) => Ok((Some(url), None)),
            Some(Notify::Command(_)) if leaves => {
                let message = "the command of --notify runs here when the job ends, and nobody is here then";
                Err(Failure::usage("bad_words", message)
                    .hint("run it later with `essaim job wait JOB --notify CMD`, or give a URL, which the hub tells"))
            }
            Some(Notify::Command(command)) => Ok((None, Some(command))),
        }
    }
}

/// Runs the command for a job that is over: the job as JSON on its standard input, what matters most as variables.
pub(crate) async fn tell(
    printer: Printer,
    link: &mut Link,
    interrupts: &mut Interrupts,
    (job, exit_code): (JobId, u8),
    command: &str,
) {
    let ran = async {
        let view = link.request(&JobShow { job }).await.map_err(|failure| failure.message)?;
        run(command, &JobNotice { job: view, exit_code }).await
    };
    let said = tokio::select! {
        biased;
        () = interrupts.next() => Err("it was interrupted".to_owned()),
        ran = ran => ran,
    };
    if let Err(why) = said {
        printer.note(&format!("job {job} has ended, but --notify did not work: {why}"));
    }
}

async fn run(command: &str, notice: &JobNotice) -> Result<(), String> {
    let JobNotice { job, exit_code } = notice;
    let broken = |error: &io::Error| format!("the command cannot be run: {}", chain(error));
    let stderr = io::stderr().as_fd().try_clone_to_owned().map_err(|error| broken(&error))?;
    let mut child = Command::new("sh")
        .args(["-c", command])
        .env("ESSAIM_JOB", job.job.to_string())
        .env("ESSAIM_JOB_NAME", &job.name)
        .env("ESSAIM_JOB_STATE", job.state.name())
        .env("ESSAIM_JOB_EXIT_CODE", exit_code.to_string())
        .env("ESSAIM_JOB_DONE", job.counts.done.to_string())
        .env("ESSAIM_JOB_FAILED", job.counts.failed.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::from(stderr))
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| broken(&error))?;
    let text = serde_json::to_vec(notice).map_err(|error| format!("the job cannot be written as JSON: {error}"))?;
    let stdin = child.stdin.take();
    let write = async {
        if let Some(mut stdin) = stdin {
            // A command that does not read it has its reasons.
            let _ = stdin.write_all(&[&text[..], b"\n"].concat()).await;
        }
    };
    let (status, ()) = tokio::join!(child.wait(), write);
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("the command ended with {status}")),
        Err(error) => Err(broken(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A URL is told by its scheme; everything else is a command, but for schemes that nobody can post to.
    #[test]
    fn urls_and_commands_are_told_apart() {
        let command = |text: &str| Ok(Notify::Command(text.to_owned()));
        let url = |text: &str| Ok(Notify::Url(text.to_owned()));
        for (text, expected) in [
            ("mail -s done ada", command("mail -s done ada")),
            (" http://a:1/x ", url("http://a:1/x")),
            ("https://a/x", url("https://a/x")),
            ("curl -d @- http://a/x", command("curl -d @- http://a/x")),
        ] {
            assert_eq!(text.parse::<Notify>(), expected);
        }
        for text in ["", "  ", "ftp://a/x"] {
            assert!(text.parse::<Notify>().is_err(), "{text:?}");
        }
    }

    // Who leaves before the end runs no command then.
    #[test]
    fn who_leaves_runs_no_command() {
        let command = || Some(Notify::Command("true".into()));
        assert!(Notify::split(command(), true).unwrap_err().message.contains("job wait JOB --notify"));
        assert_eq!(Notify::split(command(), false), Ok((None, Some("true".into()))));
        assert_eq!(Notify::split(Some(Notify::Url("http://a".into())), true), Ok((Some("http://a".into()), None)));
    }
}
