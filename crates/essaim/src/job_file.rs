//! A job file: jobs as TOML tables, checked as a whole before anybody is asked.
//!
//! `cmd::job_submit` calls [`read`].
//!
//! ```text
//!   text ──serde──▶ Table (spans) ──own rules──▶ Draft ──files are read──▶ Planned
//! ```
//!
//! Always true: a mistake is told with line and column, and nothing was submitted then; a path counts from the file's own
//! folder; the order of submission has each job after those that it names.
//! Deliberately not here: making a job of what was said (`spec`), numbers of jobs and whether they exist (the hub).

use crate::cli::{labels, parse_label};
use crate::exit::Failure;
use crate::files::{Program, unreadable};
use crate::notify::Notify;
use crate::spec::{Built, Draft};
use essaim_core::limits::RETRY_MAX;
use essaim_proto::job::{Limits, Needs};
use essaim_proto::{JobId, TaskSet};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::Spanned;

/// The file is read whole; a larger one is generated, and an array does the same with less.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Jobs of one file: all of them are checked and held before the first is submitted, each with up to 64 KiB of its files.
const JOBS_MAX: usize = 1_000;

/// What the file of standard input is called.
const STANDARD_INPUT: &str = "standard input";

/// A complete file with every key, explained. It can be submitted as it is.
pub(crate) const EXAMPLE: &str = include_str!("job_file_example.toml");

/// The jobs of a file.
#[derive(Debug)]
pub(crate) struct Jobs {
    /// As they stand in the file.
    pub(crate) list: Vec<Planned>,
    /// Indices of the list, each job after those that it waits for.
    pub(crate) order: Vec<usize>,
}

/// A job that can be submitted once those are that it waits for.
#[derive(Debug)]
pub(crate) struct Planned {
    /// What lists call it.
    pub(crate) name: String,
    /// The job; it waits for nobody so far.
    pub(crate) job: Built,
    /// Jobs of this file that it waits for, as indices.
    pub(crate) awaits: Vec<usize>,
    /// Jobs that the hub has already, and where the file names them.
    pub(crate) after: Vec<(JobId, Place)>,
    /// A command to run here at its end, and where it stands in the file.
    pub(crate) on_end: Option<(String, Place)>,
    /// Where it stands.
    pub(crate) place: Place,
}

/// A place in a file, as people write it: `pipeline.toml:3:9`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place(String);

impl Place {
    /// The same failure with where it comes from.
    pub(crate) fn blame(&self, failure: Failure) -> Failure {
        Failure { message: format!("{}: {}", self.0, failure.message), ..failure }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tables {
    #[serde(default)]
    job: Vec<Spanned<Table>>,
}

/// One `[[job]]`, before its words are understood.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Table {
    name: Option<Spanned<String>>,
    file: Option<Spanned<String>>,
    command: Option<Spanned<Vec<String>>>,
    args: Vec<String>,
    lang: Option<String>,
    files: Vec<Spanned<String>>,
    env: Option<Spanned<BTreeMap<String, String>>>,
    array: Option<Spanned<String>>,
    each_line: Option<Spanned<String>>,
    on: Option<Spanned<String>>,
    cpus: Option<Spanned<u32>>,
    mem: Option<Spanned<String>>,
    labels: Option<Spanned<BTreeMap<String, String>>>,
    priority: Option<i32>,
    retry: Option<Spanned<u32>>,
    time: Option<Spanned<String>>,
    output_limit: Option<Spanned<String>>,
    after: Vec<Spanned<After>>,
    notify: Option<Spanned<String>>,
    // Known, so that their absence is explained and not only told.
    stdin: Option<Spanned<IgnoredAny>>,
    ephemeral: Option<Spanned<IgnoredAny>>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "write the name of a job of this file, or the number of a job that the hub has")]
enum After {
    Number(u64),
    Name(String),
}

/// Reads and checks a file; `-` is our standard input, whose paths count from the present folder.
///
/// # Errors
/// A usage failure with line and column.
pub(crate) fn read(path: &Path) -> Result<Jobs, Failure> {
    let mut bytes = Vec::new();
    let (shown, folder) = if path.as_os_str() == "-" {
        let read = io::stdin().lock().take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes);
        read.map_err(|error| Failure::broken("unreadable", "the jobs cannot be read from standard input", &error))?;
        (STANDARD_INPUT.to_owned(), PathBuf::from("."))
    } else {
        let opened = std::fs::File::open(path);
        let read = opened.and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
        read.map_err(|error| unreadable(path, &error))?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        (path.display().to_string(), folder.unwrap_or(Path::new(".")).to_owned())
    };
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let message = format!("{shown} has more than {}", essaim_view::bytes(FILE_BYTES_MAX));
        return Err(Failure::usage("too_large", message).hint("many tasks of one program are an `array`"));
    }
    let text = String::from_utf8(bytes)
        .map_err(|error| Failure::usage("bad_job_file", format!("{shown} is no text: {error}")))?;
    Reader { text: &text, shown: &shown, folder: &folder }.jobs()
}

struct Reader<'a> {
    text: &'a str,
    shown: &'a str,
    folder: &'a Path,
}

impl Reader<'_> {
    fn jobs(&self) -> Result<Jobs, Failure> {
        let tables: Tables =
            toml::from_str(self.text).map_err(|error| self.bad(&error.span().unwrap_or(0..0), error.message()))?;
        if tables.job.is_empty() {
            let message = format!("{} describes no job: begin each with [[job]]", self.shown);
            return Err(Failure::usage("bad_job_file", message).hint("`essaim job submit --example` prints a file"));
        }
        if let Some(extra) = tables.job.get(JOBS_MAX) {
            let why = format!("a file may have {JOBS_MAX} jobs; many tasks of one program are an `array`");
            return Err(self.bad(&extra.span(), why));
        }
        let names = self.names(&tables.job)?;
        let list = tables.job.into_iter().map(|table| self.planned(table, &names)).collect::<Result<Vec<_>, _>>()?;
        let order = order(&list)?;
        Ok(Jobs { list, order })
    }

    fn place(&self, span: &Range<usize>) -> Place {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Place(format!("{}:{line}:{column}", self.shown))
    }

    fn bad(&self, span: &Range<usize>, why: impl Display) -> Failure {
        self.place(span).blame(Failure::usage("bad_job_file", why))
    }

    /// Which job has which name.
    fn names(&self, tables: &[Spanned<Table>]) -> Result<BTreeMap<String, usize>, Failure> {
        let mut names = BTreeMap::new();
        for (index, table) in tables.iter().enumerate() {
            let Some(name) = &table.get_ref().name else { continue };
            if name.get_ref().is_empty() {
                return Err(self.bad(&name.span(), "a name may not be empty"));
            }
            if names.insert(name.get_ref().clone(), index).is_some() {
                return Err(
                    self.bad(&name.span(), format!("another job of this file is called {} too", name.get_ref()))
                );
            }
        }
        Ok(names)
    }

    fn planned(&self, table: Spanned<Table>, names: &BTreeMap<String, usize>) -> Result<Planned, Failure> {
        let place = self.place(&table.get_ref().name.as_ref().map_or_else(|| table.span(), Spanned::span));
        let table = table.into_inner();
        let (mut awaits, mut after) = (Vec::new(), Vec::new());
        for word in &table.after {
            match word.get_ref() {
                After::Number(number) => after.push((JobId(*number), self.place(&word.span()))),
                After::Name(name) => awaits.push(*names.get(name).ok_or_else(|| {
                    let why = format!("no job of this file is called {name}; a job of the hub is named by its number");
                    self.bad(&word.span(), why)
                })?),
            }
        }
        let told = table.notify.as_ref().map(|word| self.place(&word.span()));
        let notify = self.parsed(table.notify.clone(), str::parse::<Notify>)?;
        let (url, command) = Notify::split(notify, false)?;
        let on_end = command.zip(told);
        let draft = Draft { notify: url, ..self.draft(table, &place)? };
        let job = draft.build().map_err(|failure| place.blame(failure))?;
        let spec = &job.spec;
        let own = [&spec.name, &spec.entry].into_iter().find(|name| !name.is_empty());
        let name = own.or(spec.args.first()).cloned().unwrap_or_default();
        Ok(Planned { name, job, awaits, after, on_end, place })
    }

    /// What a table says, understood.
    fn draft(&self, table: Table, place: &Place) -> Result<Draft, Failure> {
        let nobody = "nobody is there to send it: put the file among `files` and read it from there";
        let leaves = "whoever submits a file leaves, and the job would end with it";
        for (word, why) in [(&table.stdin, nobody), (&table.ephemeral, leaves)] {
            if let Some(word) = word {
                return Err(self.bad(&word.span(), format!("this is for `run`, not for a job file: {why}")));
            }
        }
        let mut args = table.args;
        let program = match (table.file, table.command) {
            (Some(file), None) => Program::Path(self.existing(&file)?),
            (None, Some(command)) => {
                if command.get_ref().is_empty() {
                    return Err(self.bad(&command.span(), "a command has at least one word"));
                }
                args.splice(0..0, command.into_inner());
                Program::Command
            }
            (Some(_), Some(command)) => return Err(self.bad(&command.span(), "a job has a `file` or a `command`")),
            (None, None) => {
                let message = "say what runs: `file` for a program that is sent, `command` for one that is there";
                return Err(place.blame(Failure::usage("bad_job_file", message)));
            }
        };
        let labels = self.labels(table.labels)?;
        let cpus = self.within(table.cpus, 1..=4_096)?;
        let memory_bytes = self.parsed(table.mem, essaim_view::parse_size_bytes)?;
        Ok(Draft {
            name: table.name.map(Spanned::into_inner),
            program,
            args,
            lang: table.lang,
            files: table.files.iter().map(|file| self.existing(file)).collect::<Result<_, _>>()?,
            env: self.env(table.env)?,
            on: self.parsed(table.on, str::parse)?,
            limits: Limits {
                wall_ms: self.parsed(table.time, essaim_view::parse_duration_ms)?,
                output_bytes: self.parsed(table.output_limit, essaim_view::parse_size_bytes)?,
                ..Limits::default()
            },
            ephemeral: false,
            array: self.parsed(table.array, str::parse::<TaskSet>)?,
            each_line: table.each_line.map(|file| self.existing(&file)).transpose()?,
            needs: Needs { cpus: cpus.unwrap_or(0), memory_bytes: memory_bytes.unwrap_or(0), labels },
            priority: table.priority.unwrap_or(0),
            retry: self.within(table.retry, 1..=RETRY_MAX)?.unwrap_or(0),
            after: Vec::new(),
            notify: None,
        })
    }

    /// A path from the file's folder; what is not there is told where it is named.
    fn existing(&self, path: &Spanned<String>) -> Result<PathBuf, Failure> {
        let full = self.folder.join(path.get_ref());
        match full.metadata() {
            Ok(_) => Ok(full),
            Err(error) => Err(self.place(&path.span()).blame(unreadable(&full, &error))),
        }
    }

    fn parsed<T, E: Display>(
        &self,
        word: Option<Spanned<String>>,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Result<Option<T>, Failure> {
        let Some(word) = word else { return Ok(None) };
        parse(word.get_ref()).map(Some).map_err(|error| self.bad(&word.span(), error))
    }

    fn within(
        &self,
        number: Option<Spanned<u32>>,
        allowed: std::ops::RangeInclusive<u32>,
    ) -> Result<Option<u32>, Failure> {
        match number {
            Some(number) if !allowed.contains(number.get_ref()) => {
                let why = format!("write a number from {} to {}", allowed.start(), allowed.end());
                Err(self.bad(&number.span(), why))
            }
            number => Ok(number.map(Spanned::into_inner)),
        }
    }

    fn labels(&self, table: Option<Spanned<BTreeMap<String, String>>>) -> Result<BTreeMap<String, String>, Failure> {
        let Some(table) = table else { return Ok(BTreeMap::new()) };
        let span = table.span();
        let pairs = table.into_inner().into_iter().map(|(name, value)| parse_label(&format!("{name}={value}")));
        let pairs = pairs.collect::<Result<Vec<_>, _>>().map_err(|error| self.bad(&span, error))?;
        labels(pairs.into_iter()).map_err(|failure| self.place(&span).blame(failure))
    }

    fn env(&self, table: Option<Spanned<BTreeMap<String, String>>>) -> Result<BTreeMap<String, String>, Failure> {
        let Some(table) = table else { return Ok(BTreeMap::new()) };
        match table.get_ref().keys().find(|name| name.is_empty() || name.contains('=')) {
            Some(name) => Err(self.bad(&table.span(), format!("{name:?} is no name of a variable"))),
            None => Ok(table.into_inner()),
        }
    }
}

/// The order of submission: that of the file, as far as nobody waits for a later one.
fn order(jobs: &[Planned]) -> Result<Vec<usize>, Failure> {
    let mut order: Vec<usize> = Vec::new();
    let mut is_done = vec![false; jobs.len()];
    while order.len() < jobs.len() {
        let before = order.len();
        for (index, job) in jobs.iter().enumerate() {
            if !is_done[index] && job.awaits.iter().all(|other| is_done[*other]) {
                is_done[index] = true;
                order.push(index);
            }
        }
        if order.len() == before {
            return Err(circle(jobs, &is_done));
        }
    }
    Ok(order)
}

/// Says which jobs wait for each other. One that is not done waits for one that is not done.
fn circle(jobs: &[Planned], is_done: &[bool]) -> Failure {
    let mut way: Vec<usize> = Vec::new();
    let mut next = is_done.iter().position(|is_done| !is_done);
    while let Some(index) = next {
        if let Some(begin) = way.iter().position(|seen| *seen == index) {
            way.drain(..begin);
            way.push(index);
            break;
        }
        way.push(index);
        next = jobs[index].awaits.iter().copied().find(|other| !is_done[*other]);
    }
    let names: Vec<&str> = way.iter().map(|index| jobs[*index].name.as_str()).collect();
    let message = format!("these jobs wait for each other and none could begin: {}", names.join(" after "));
    let failure = Failure::usage("bad_job_file", message);
    way.first().map_or_else(|| failure.clone(), |index| jobs[*index].place.blame(failure.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use essaim_proto::job::JobKind;

    fn jobs(text: &str) -> Result<Jobs, Failure> {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in [("main.py", "print(1)\n"), ("data.csv", "1\n"), ("lines", "a\nb\n")] {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        Reader { text, shown: "p.toml", folder: folder.path() }.jobs()
    }

    // Every key, as people write it, becomes what `run` would make of its flag.
    #[test]
    fn every_key_is_understood() {
        let text = r#"
            [[job]]
            name = "all"
            file = "main.py"
            args = ["-v", "x"]
            lang = "python"
            files = ["data.csv"]
            env = { A = "b=c" }
            array = "2-2"
            each_line = "lines"
            on = "garage"
            cpus = 4
            mem = "8G"
            labels = { gpu = "a100" }
            priority = -2
            retry = 3
            time = "1.5s"
            output_limit = "16M"
            after = [7, 8]
            notify = "http://ada:8000/x"
            [[job]]
            notify = "mail ada"
            command = ["sh", "-c"]
            args = ["true"]
        "#;
        let all = jobs(text).unwrap();
        let (first, second) = (&all.list[0], &all.list[1]);
        let spec = &first.job.spec;
        assert_eq!((first.name.as_str(), spec.entry.as_str(), spec.files.len()), ("all", "main.py", 2));
        assert_eq!((spec.args.join(" "), spec.lang.as_deref()), ("-v x".to_owned(), Some("python")));
        assert_eq!((spec.env["A"].as_str(), spec.on.as_ref().unwrap().as_str()), ("b=c", "garage"));
        let array = spec.array.as_ref().unwrap();
        assert_eq!((array.tasks.to_string(), array.lines.is_some()), ("2".to_owned(), true));
        assert_eq!((spec.needs.cpus, spec.needs.memory_bytes), (4, 8 << 30));
        assert_eq!(spec.needs.labels["gpu"], "a100");
        assert_eq!((spec.priority, spec.retry, spec.limits.wall_ms), (-2, 3, Some(1_500)));
        assert_eq!(spec.limits.output_bytes, Some(16 << 20));
        assert_eq!((spec.notify.as_deref(), &first.on_end), (Some("http://ada:8000/x"), &None));
        assert_eq!(second.on_end.as_ref().unwrap().0, "mail ada");
        assert_eq!(first.after.iter().map(|(job, _)| job.0).collect::<Vec<_>>(), [7, 8]);
        assert_eq!((second.name.as_str(), second.job.spec.kind), ("sh", JobKind::Command));
        assert_eq!(second.job.spec.args, ["sh", "-c", "true"]);
    }

    // What is wrong is told with its line and column, in words.
    #[test]
    fn a_mistake_is_told_with_its_place() {
        let cases = [
            ("", "p.toml describes no job"),
            ("[[job]]\ncommand = [\"a\"]\ntiem = \"5s\"\n", "p.toml:3:1: unknown field `tiem`"),
            ("[[jobs]]\n", "p.toml:1:3: unknown field `jobs`"),
            ("[[job]]\ncommand = \"true\"\n", "p.toml:2:11: invalid type: string"),
            ("[[job]]\ncommand = []\n", "p.toml:2:11: a command has"),
            ("[[job]]\nname = \"a\"\n", "p.toml:2:8: say what runs"),
            ("[[job]]\nfile = \"main.py\"\ncommand = [\"a\"]\n", "p.toml:3:11: a job has a `file` or"),
            ("[[job]]\nfile = \"gone.py\"\n", "p.toml:2:8: "),
            ("[[job]]\nfile = \"main.py\"\nfiles = [\"data.csv\", \"gone\"]\n", "p.toml:3:22: "),
            ("[[job]]\ncommand = [\"a\"]\ntime = \"5\"\n", "p.toml:3:8: "),
            ("[[job]]\ncommand = [\"a\"]\nmem = \"lots\"\n", "p.toml:3:7: "),
            ("[[job]]\ncommand = [\"a\"]\ncpus = 0\n", "p.toml:3:8: write a number from 1 to 4096"),
            ("[[job]]\ncommand = [\"a\"]\ncpus = \"2\"\n", "p.toml:3:8: invalid type: string"),
            ("[[job]]\ncommand = [\"a\"]\narray = \"9-1\"\n", "p.toml:3:9: "),
            ("[[job]]\ncommand = [\"a\"]\nlabels = { gpu = \"\" }\n", "p.toml:3:10: write NAME=VALUE"),
            ("[[job]]\ncommand = [\"a\"]\nenv = { \"\" = \"x\" }\n", "p.toml:3:7: \"\" is no name"),
            ("[[job]]\ncommand = [\"a\"]\nstdin = \"x\"\n", "p.toml:3:9: this is for `run`"),
            ("[[job]]\ncommand = [\"a\"]\nafter = [\"x\"]\n", "p.toml:3:10: no job of this file is called x"),
            ("[[job]]\ncommand = [\"a\"]\nafter = [true]\n", "p.toml:3:9: write the name of a job"),
            ("# é\n[[job]]\ncommand = [\"é\"] x\n", "p.toml:3:17: "),
            (
                "[[job]]\nname = \"a\"\ncommand = [\"a\"]\n[[job]]\nname = \"a\"\ncommand = [\"a\"]\n",
                "p.toml:5:8: another",
            ),
        ];
        for (text, sentence) in cases {
            let failure = jobs(text).map(|_| ()).unwrap_err();
            assert!(failure.message.starts_with(sentence), "{text}: {failure:?}");
        }
    }

    // A job comes after those that it waits for, otherwise the file's order stays; a circle is named.
    #[test]
    fn the_order_follows_the_dependencies() {
        let job =
            |name: &str, after: &str| format!("[[job]]\nname = \"{name}\"\ncommand = [\"a\"]\nafter = [{after}]\n");
        let text = [job("c", "\"a\", \"b\""), job("a", ""), job("d", ""), job("b", "\"a\"")].concat();
        let jobs_of = jobs(&text).unwrap();
        let names: Vec<&str> = jobs_of.order.iter().map(|index| jobs_of.list[*index].name.as_str()).collect();
        assert_eq!(names, ["a", "d", "b", "c"]);
        let circles = [
            (job("a", "\"a\""), "a after a"),
            (
                [job("x", ""), job("q", "\"a\""), job("a", "\"x\", \"b\""), job("b", "\"a\"")].concat(),
                "a after b after a",
            ),
        ];
        for (text, way) in circles {
            let failure = jobs(&text).map(|_| ()).unwrap_err();
            assert!(failure.message.ends_with(way), "{failure:?}");
            assert!(failure.message.starts_with("p.toml:"), "{failure:?}");
        }
    }

    // The example is whole, and says every key there is, also those that are commented out.
    #[test]
    fn the_example_names_every_key() {
        let all = jobs(EXAMPLE).unwrap();
        assert!(all.list.len() >= 3);
        let awake: String =
            EXAMPLE.lines().map(|line| line.strip_prefix("#: ").unwrap_or(line).to_owned() + "\n").collect();
        let awake = awake
            .replace("\"sum.py\"", "\"main.py\"")
            .replace("\"data\"", "\"data.csv\"")
            .replace("\"names.txt\"", "\"lines\"");
        let whole = jobs(&awake).unwrap();
        assert!(whole.list.len() > all.list.len());
        let unknown = jobs("[[job]]\nx = 1\n").map(|_| ()).unwrap_err().message;
        let keys: Vec<&str> = unknown.split('`').skip(3).step_by(2).collect();
        assert!(keys.len() > 15, "{unknown}");
        for key in keys.iter().filter(|key| !["stdin", "ephemeral"].contains(key)) {
            assert!(awake.lines().any(|line| line.starts_with(&format!("{key} ="))), "the example lacks {key}");
        }
    }
}
