//! The words of `run` that are about many tasks, and about where and when they run.
//!
//! `cli` has them in `run`, `cmd::run` translates them. Always true: a word that makes no sense without another one is
//! refused in a sentence, before a file is read or a hub is asked ([`Array::check`]).
//! Deliberately not here: reading the file of lines (`each_line`), deciding where anything runs (the hub).

use super::job::parse_job;
use crate::exit::Failure;
use clap::Args;
use essaim_core::limits::RETRY_MAX;
use essaim_proto::job::Needs;
use essaim_proto::limits::LABELS_MAX;
use essaim_proto::{JobId, TaskSet};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Many tasks of one program.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Arrays")]
pub(crate) struct Array {
    /// Run it once for each number of 1-1000, 0-99:10 or 3,7,10-20; it finds its own in ESSAIM_TASK_ID.
    #[arg(long, value_name = "RANGE")]
    pub(crate) array: Option<TaskSet>,
    /// Run it once for each line of a file (-: of standard input); it finds its own in ESSAIM_LINE.
    #[arg(long, value_name = "FILE")]
    pub(crate) each_line: Option<PathBuf>,
    /// Show the output of one task after the other, by number, and not as it comes.
    #[arg(long)]
    pub(crate) keep_order: bool,
    /// Show the task's number in front of each line.
    #[arg(long)]
    pub(crate) prefix: bool,
}

/// What else was said, as far as it must fit to an array.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Beside {
    /// `--json`.
    pub(crate) json: bool,
    /// `--detach`.
    pub(crate) detach: bool,
    /// `--stdin`.
    pub(crate) stdin: bool,
    /// The program itself comes through standard input.
    pub(crate) program_from_stdin: bool,
}

impl Array {
    /// Is there an array at all?
    pub(crate) fn is_wanted(&self) -> bool {
        self.array.is_some() || self.each_line.is_some()
    }

    /// Does the line of words make sense?
    ///
    /// # Errors
    /// A usage failure that says what does not go together, and why.
    pub(crate) fn check(&self, beside: Beside) -> Result<(), Failure> {
        let no = |message: &str| Err(Failure::usage("bad_words", message));
        if !self.is_wanted() {
            return match (self.keep_order, self.prefix) {
                (true, _) => no("--keep-order is for arrays: say --array or --each-line too"),
                (_, true) => no("--prefix is for arrays: say --array or --each-line too"),
                _ => Ok(()),
            };
        }
        let lines_from_stdin = self.each_line.as_ref().is_some_and(|path| path.as_os_str() == "-");
        if beside.stdin {
            return no("the tasks of an array read no standard input; send the file with --file, or a line to each \
                       task with --each-line");
        }
        if lines_from_stdin && beside.program_from_stdin {
            return no("standard input can be the program or its lines, not both; put one of them into a file");
        }
        if beside.detach && (self.keep_order || self.prefix) {
            return no("--detach shows no output; give --keep-order and --prefix to `essaim job logs`");
        }
        if beside.json && self.prefix {
            return no("--json names the task in each of its lines; leave out --prefix");
        }
        Ok(())
    }
}

/// Where and when.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Where and when")]
pub(crate) struct Demands {
    /// Slots that it has for itself; of an array each task [default: 1].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) cpus: Option<u32>,
    /// Memory that it has for itself (64M, 8G); of an array each task.
    #[arg(long, value_name = "SIZE", value_parser = essaim_view::parse_size_bytes)]
    pub(crate) mem: Option<u64>,
    /// Run on machines with this label only; may be repeated.
    #[arg(long, value_name = "K=V", value_parser = parse_label)]
    pub(crate) label: Vec<(String, String)>,
    /// Go before jobs of a lower number, which may be below 0 [default: 0].
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) priority: Option<i32>,
    /// Try again so often when the program fails.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(RETRY_MAX)))]
    pub(crate) retry: Option<u32>,
    /// Begin when these jobs have ended well; several with commas, may be repeated.
    #[arg(long, value_name = "JOB", value_delimiter = ',', value_parser = parse_job)]
    pub(crate) after: Vec<JobId>,
}

impl Demands {
    /// What a node must have.
    ///
    /// # Errors
    /// A usage failure when a label is asked for twice, or there are too many.
    pub(crate) fn needs(&self) -> Result<Needs, Failure> {
        Ok(Needs {
            cpus: self.cpus.unwrap_or(0),
            memory_bytes: self.mem.unwrap_or(0),
            labels: labels(self.label.iter().cloned())?,
        })
    }
}

/// Labels as a map, each once.
///
/// # Errors
/// A usage failure when one is there twice with two values, or there are too many.
pub(crate) fn labels(pairs: impl Iterator<Item = (String, String)>) -> Result<BTreeMap<String, String>, Failure> {
    let mut labels = BTreeMap::new();
    for (name, value) in pairs {
        if let Some(other) = labels.insert(name.clone(), value.clone()).filter(|other| *other != value) {
            let message = format!("label {name} cannot be both {other} and {value}");
            return Err(Failure::usage("bad_words", message));
        }
    }
    if labels.len() > LABELS_MAX {
        return Err(Failure::usage("too_large", format!("these are more than {LABELS_MAX} labels")));
    }
    Ok(labels)
}

/// One label.
pub(crate) fn parse_label(text: &str) -> Result<(String, String), String> {
    let fits = |part: &str| !part.is_empty() && !part.contains([',', '=']) && !part.chars().any(char::is_control);
    match text.split_once('=') {
        Some((name, value)) if fits(name.trim()) && fits(value.trim()) => {
            Ok((name.trim().to_owned(), value.trim().to_owned()))
        }
        _ => Err("write NAME=VALUE, without commas, such as gpu=a100".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command, Run};
    use clap::Parser;

    fn run(words: &[&str]) -> Result<Run, String> {
        let all = ["essaim", "run"].iter().chain(words);
        match Cli::try_parse_from(all).map_err(|error| error.to_string())?.command {
            Command::Run(run) => Ok(run),
            other => panic!("{other:?}"),
        }
    }

    // What people write for where and when.
    #[test]
    fn demands_are_read() {
        let words = ["--cpus", "4", "--mem", "8G", "--label", "gpu=a100", "--label", "room=B 12", "--priority", "-2"];
        let more = ["--retry", "3", "--after", "7,8", "--after", "9", "x.py"];
        let demands = run(&[&words[..], &more[..]].concat()).unwrap().demands;
        let needs = demands.needs().unwrap();
        assert_eq!((needs.cpus, needs.memory_bytes, needs.labels.len()), (4, 8 << 30, 2));
        assert_eq!(needs.labels["room"], "B 12");
        assert_eq!((demands.priority, demands.retry), (Some(-2), Some(3)));
        // What the hub would refuse is refused here.
        assert!(run(&["--retry", "100", "x.py"]).is_ok() && run(&["--retry", "101", "x.py"]).is_err());
        assert_eq!(demands.after, [JobId(7), JobId(8), JobId(9)]);
        assert!(run(&["x.py"]).unwrap().demands.needs().unwrap().is_plain());
        for words in [["--cpus", "0"], ["--mem", "lots"], ["--label", "gpu"], ["--label", "=x"], ["--after", "x"]] {
            assert!(run(&[&words[..], &["x.py"]].concat()).is_err(), "{words:?}");
        }
        let both = run(&["--label", "gpu=a100", "--label", "gpu=h100", "x.py"]).unwrap().demands.needs();
        assert!(both.unwrap_err().message.contains("both a100 and h100"));
    }

    // A range is read where it stands, and what is none is told with an example.
    #[test]
    fn arrays_are_read() {
        let array = run(&["--array", "1-1000:10", "x.py", "--array", "3"]).unwrap();
        assert_eq!((array.array.array.unwrap().len(), array.words.len()), (100, 3));
        assert!(run(&["--array", "1..9", "x.py"]).unwrap_err().contains("1-1000"));
    }

    // What does not go together is refused in a sentence.
    #[test]
    fn words_that_make_no_sense_are_refused() {
        let array = Array { array: Some(TaskSet::span(1, 9)), ..Array::default() };
        let lines = Array { each_line: Some("-".into()), ..Array::default() };
        let plain = Beside::default();
        assert!(array.check(plain).is_ok() && lines.check(plain).is_ok() && Array::default().check(plain).is_ok());
        let refused = [
            (Array { prefix: true, ..Array::default() }, plain),
            (Array { keep_order: true, ..Array::default() }, plain),
            (array.clone(), Beside { stdin: true, ..plain }),
            (lines, Beside { program_from_stdin: true, ..plain }),
            (Array { prefix: true, ..array.clone() }, Beside { detach: true, ..plain }),
            (Array { prefix: true, ..array.clone() }, Beside { json: true, ..plain }),
        ];
        for (array, beside) in refused {
            let failure = array.check(beside).unwrap_err();
            assert!(failure.message.len() > 40, "{failure:?}");
        }
        assert!(array.check(Beside { detach: true, json: true, program_from_stdin: true, ..plain }).is_ok());
    }
}
