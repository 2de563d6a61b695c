//! The table of languages: how a file becomes a program that runs.
//!
//! The hub reads it once and asks it for each job; workers get its probes at registration and need no table of their
//! own, so a language added at the hub is known everywhere.
//!
//! Always true: a command is a list of words from the table to the node; no shell sits in between.
//! Deliberately not here: which node has what (`hub::nodes`), and looking for programs on a disk (the worker's shell).

use crate::limits::{
    COMPILE_OUTPUT_BYTES, COMPILE_WALL_MS, LANGUAGES_MAX, OUTPUT_DEFAULT_BYTES, PROBE_BYTES_MAX, WALL_DEFAULT_MS,
    WALL_MAX_MS,
};
use essaim_proto::job::{JobKind, JobSpec, Limit, Limits, Phase};
use essaim_proto::limits::{
    ARGUMENT_BYTES_MAX, BLOB_BYTES_MAX, INLINE_BYTES_MAX, JOB_FILES_MAX, JOB_PATHS_BYTES_MAX, NAME_BYTES_MAX,
    PATH_BYTES_MAX,
};
use essaim_proto::link::{LanguageProbe, PhaseSpec};
use essaim_proto::{BlobHash, Refusal, RefusalCode};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// The table that is built in.
const BUILT_IN: &str = include_str!("languages.toml");

/// One language.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Language {
    /// Other names that people use.
    pub aliases: Vec<String>,
    /// Extensions of its files, without the dot.
    pub extensions: Vec<String>,
    /// Name of the file when the program comes without one.
    pub source: String,
    /// Command that compiles; empty when nothing is compiled.
    pub compile: Vec<String>,
    /// Command that runs.
    pub run: Vec<String>,
    /// Variables for both.
    pub env: BTreeMap<String, String>,
    /// Commands whose first line of output is a version; all must work.
    pub probes: Vec<Vec<String>>,
    /// Command that prints what stands behind the first word of `run`.
    pub resolve: Option<Vec<String>>,
    /// Must the C library be told to write line by line?
    pub line_buffered: bool,
    /// What its programs may use where a job does not say.
    pub limits: PhaseLimits,
}

/// Limits that workers keep; the others have a word and nobody who looks after them yet.
const KEPT: [Limit; 2] = [Limit::Time, Limit::Output];

/// Limits of each phase, by their words, in milliseconds or bytes.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PhaseLimits {
    /// Of its compiler.
    pub compile: BTreeMap<Limit, u64>,
    /// Of its programs.
    pub run: BTreeMap<Limit, u64>,
}

fn limits_of(table: &BTreeMap<Limit, u64>) -> Limits {
    let mut limits = Limits::default();
    table.iter().for_each(|(limit, value)| limits.set(*limit, Some(*value)));
    limits
}

/// Why a table cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// Not the expected TOML; the source names line and field.
    #[error("the table of languages cannot be read")]
    Toml(#[from] toml::de::Error),
    /// An entry cannot work.
    #[error("language {name}: {why}")]
    Entry {
        /// Which.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// All languages by name.
#[derive(Debug, Clone, PartialEq)]
pub struct LanguageTable(BTreeMap<String, Language>);

/// What a job becomes: nothing is left to decide but where.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Program {
    /// The language's name; `None` for a command.
    pub lang: Option<String>,
    /// The file that starts; empty for a command.
    pub entry: String,
    /// What runs, one after the other.
    pub phases: Vec<PhaseSpec>,
}

impl LanguageTable {
    /// The built-in table.
    pub fn built_in() -> LanguageTable {
        LanguageTable::parse(BUILT_IN).expect("the built-in table is tested")
    }

    /// The built-in table with the user's entries over it.
    ///
    /// # Errors
    /// [`TableError`], with the line of what cannot be read.
    pub fn with_user_entries(text: &str) -> Result<LanguageTable, TableError> {
        let mut table = LanguageTable::built_in();
        table.0.extend(LanguageTable::parse(text)?.0);
        // Each half may be small enough and both together not.
        table.check_size()?;
        Ok(table)
    }

    fn parse(text: &str) -> Result<LanguageTable, TableError> {
        let table: BTreeMap<String, Language> = toml::from_str(text)?;
        for (name, language) in &table {
            let fail = |why| Err(TableError::Entry { name: name.clone(), why });
            if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains(char::is_control) {
                return fail("a name has 1 to 63 bytes and no control characters");
            }
            if language.run.is_empty() {
                return fail("`run` is missing");
            }
            if language.probes.is_empty() || language.probes.iter().any(Vec::is_empty) {
                return fail("`probes` needs at least one command");
            }
            let limits = || language.limits.compile.iter().chain(&language.limits.run);
            if limits().any(|(limit, _)| !KEPT.contains(limit)) {
                return fail("`limits` knows time and output");
            }
            if limits().any(|(_, value)| *value == 0) {
                return fail("0 is no limit that a program can keep");
            }
            if language.extensions.is_empty() || language.source.is_empty() {
                return fail("`extensions` and `source` are needed");
            }
        }
        let table = LanguageTable(table);
        table.check_size()?;
        Ok(table)
    }

    /// Workers get all probes in one message and name what they have in another: both must fit.
    fn check_size(&self) -> Result<(), TableError> {
        let fail = |why| Err(TableError::Entry { name: "(all)".into(), why });
        if self.0.len() > LANGUAGES_MAX {
            return fail("there are too many entries");
        }
        let words = |l: &Language| {
            l.probes.iter().flatten().chain(l.resolve.iter().flatten()).map(|w| w.len() + 5).sum::<usize>()
        };
        let probe_bytes: usize = self.0.iter().map(|(name, l)| name.len() + words(l)).sum();
        if probe_bytes > PROBE_BYTES_MAX { fail("the probes are too long") } else { Ok(()) }
    }

    /// How a worker finds out what it can run.
    pub fn probes(&self) -> Vec<LanguageProbe> {
        self.0
            .iter()
            .map(|(name, language)| LanguageProbe {
                lang: name.clone(),
                probes: language.probes.clone(),
                resolve: language.resolve.clone(),
            })
            .collect()
    }

    /// The programs that a node needs for a language, for sentences: `javac, java`.
    pub fn tools(&self, lang: &str) -> String {
        let Some(language) = self.0.get(lang) else { return lang.to_owned() };
        let tools: BTreeSet<&str> = language.probes.iter().map(|argv| argv[0].as_str()).collect();
        tools.into_iter().collect::<Vec<_>>().join(", ")
    }

    /// Turns a job into phases, or says why that cannot be.
    ///
    /// # Errors
    /// A refusal with the code `bad_job`, `too_large`, `unknown_language`, `no_such_language` or `no_entry`.
    pub fn resolve(&self, spec: &JobSpec) -> Result<Program, Refusal> {
        check_sizes(spec)?;
        check_limits(&spec.limits)?;
        match spec.kind {
            JobKind::Command => command(spec),
            JobKind::Program => self.program(spec),
            JobKind::Unknown => Err(bad_job("kind", "this hub does not know that kind of job")),
        }
    }

    fn program(&self, spec: &JobSpec) -> Result<Program, Refusal> {
        let entry = self.entry(spec)?;
        let (name, language) = self.language_of(spec, &entry)?;
        let sources = sources(spec, language, &entry);
        let phase = |phase, argv: &[String], (wall_ms, limits)| PhaseSpec {
            phase,
            argv: expand(argv, &entry, &sources, &spec.args),
            env: language.env.iter().chain(&spec.env).map(|(k, v)| (k.clone(), v.clone())).collect(),
            line_buffered: language.line_buffered,
            wall_ms,
            limits,
        };
        let mut phases = Vec::new();
        if !language.compile.is_empty() {
            let limits = phase_limits(limits_of(&language.limits.compile).or(&compile_limits()));
            phases.push(PhaseSpec { line_buffered: false, ..phase(Phase::Compile, &language.compile, limits) });
        }
        let limits = spec.limits.or(&limits_of(&language.limits.run)).or(&run_limits());
        phases.push(phase(Phase::Run, &language.run, phase_limits(limits)));
        // Sources can make a command longer than the job's own arguments.
        let words = |p: &PhaseSpec| p.argv.iter().map(|word| word.len() + 1).sum::<usize>();
        if phases.iter().any(|p| words(p) > ARGUMENT_BYTES_MAX) {
            return Err(too_large("the command line", ARGUMENT_BYTES_MAX));
        }
        Ok(Program { lang: Some(name.to_owned()), entry, phases })
    }

    /// What the table says about the limits of a job's program.
    pub(crate) fn run_limits(&self, spec: &JobSpec) -> Limits {
        let named = || spec.lang.as_deref().and_then(|lang| self.find(lang));
        let entry = || {
            let entry = self.entry(spec).ok()?;
            self.by_extension(extension(&entry)?)
        };
        let language = (spec.kind == JobKind::Program).then(|| named().or_else(entry)).flatten();
        language.map(|(_, language)| limits_of(&language.limits.run)).unwrap_or_default()
    }

    /// The file that starts: the one that was named, the only one, or the one called `main` (in a folder).
    fn entry(&self, spec: &JobSpec) -> Result<String, Refusal> {
        if !spec.entry.is_empty() {
            let known = spec.files.iter().any(|file| file.path == spec.entry);
            return if known { Ok(spec.entry.clone()) } else { Err(bad_job("entry", "it is not among the files")) };
        }
        let top: Vec<&str> = spec.files.iter().map(|f| f.path.as_str()).filter(|p| !p.contains('/')).collect();
        let fits = |path: &&str| match &spec.lang {
            Some(lang) => {
                self.find(lang).is_some_and(|(_, l)| l.extensions.iter().any(|e| Some(e.as_str()) == extension(path)))
            }
            None => extension(path).is_some_and(|e| self.by_extension(e).is_some()),
        };
        let programs: Vec<&str> = top.iter().copied().filter(fits).collect();
        let mains: Vec<&str> = programs.iter().copied().filter(|p| stem(p).eq_ignore_ascii_case("main")).collect();
        match (mains.as_slice(), programs.as_slice()) {
            ([one], _) | ([], [one]) => Ok((*one).to_owned()),
            _ => {
                let named = if mains.is_empty() { programs } else { mains };
                Err(Refusal::new(RefusalCode::NoEntry).with("candidates", named.join(", ")))
            }
        }
    }

    fn language_of(&self, spec: &JobSpec, entry: &str) -> Result<(&str, &Language), Refusal> {
        if let Some(lang) = &spec.lang {
            return self.find(lang).ok_or_else(|| {
                Refusal::new(RefusalCode::NoSuchLanguage).with("lang", lang).with("known", self.names())
            });
        }
        extension(entry).and_then(|e| self.by_extension(e)).ok_or_else(|| {
            Refusal::new(RefusalCode::UnknownLanguage).with("file", entry).with("known", self.extensions())
        })
    }

    /// The language called so: by its exact name, by its name in other letters' case, or by an alias. In this order, so
    /// that a name which was recorded with a job always finds its own entry again.
    pub fn find(&self, name: &str) -> Option<(&str, &Language)> {
        let same = |text: &str| text.eq_ignore_ascii_case(name);
        let by_case = || self.0.iter().find(|(key, _)| same(key));
        let by_alias = || self.0.iter().find(|(_, l)| l.aliases.iter().any(|alias| same(alias)));
        let found = self.0.get_key_value(name).or_else(by_case).or_else(by_alias);
        found.map(|(key, language)| (key.as_str(), language))
    }

    fn by_extension(&self, extension: &str) -> Option<(&str, &Language)> {
        self.0.iter().find(|(_, l)| l.extensions.iter().any(|e| e == extension)).map(|(k, l)| (k.as_str(), l))
    }

    fn names(&self) -> String {
        self.0.keys().cloned().collect::<Vec<_>>().join(", ")
    }

    fn extensions(&self) -> String {
        let all: Vec<String> = self.0.values().flat_map(|l| l.extensions.iter().map(|e| format!(".{e}"))).collect();
        all.join(" ")
    }
}

fn bad_job(field: &str, why: &str) -> Refusal {
    Refusal::new(RefusalCode::BadJob).with("field", field).with("why", why)
}

fn too_large(what: &str, limit: impl ToString) -> Refusal {
    Refusal::new(RefusalCode::TooLarge).with("what", what).with("limit", limit)
}

fn command(spec: &JobSpec) -> Result<Program, Refusal> {
    if spec.args.first().is_none_or(String::is_empty) {
        return Err(bad_job("args", "a command needs a program"));
    }
    let (wall_ms, limits) = phase_limits(spec.limits.or(&run_limits()));
    let (argv, env) = (spec.args.clone(), spec.env.clone());
    let phase = PhaseSpec { phase: Phase::Run, argv, env, line_buffered: true, wall_ms, limits };
    Ok(Program { lang: None, entry: String::new(), phases: vec![phase] })
}

/// What a program may use where neither its job nor the table says it.
pub fn run_limits() -> Limits {
    Limits { wall_ms: Some(WALL_DEFAULT_MS), output_bytes: Some(OUTPUT_DEFAULT_BYTES), ..Limits::default() }
}

/// The limits of a phase: wall time on its own, the others without those that mean nothing.
fn phase_limits(limits: Limits) -> (u64, Limits) {
    let wall_ms = limits.wall_ms.unwrap_or(WALL_DEFAULT_MS);
    let mut rest = Limits { wall_ms: None, ..limits };
    rest.retain(|_, value| value != u64::MAX);
    (wall_ms, rest)
}

/// What a compiler may use where the table does not say.
fn compile_limits() -> Limits {
    Limits { wall_ms: Some(COMPILE_WALL_MS), output_bytes: Some(COMPILE_OUTPUT_BYTES), ..Limits::default() }
}

/// Limits that a program could keep?
///
/// # Errors
/// `bad_job`, `too_large`.
pub(crate) fn check_limits(limits: &Limits) -> Result<(), Refusal> {
    for limit in Limit::ALL {
        match limits.get(limit) {
            None => {}
            Some(0) => {
                let why = "0 is no limit that a program can keep; leave it out for the default";
                return Err(bad_job(limit.name(), why));
            }
            Some(_) if !KEPT.contains(&limit) => return Err(bad_job(limit.name(), "no worker keeps that limit yet")),
            Some(_) => {}
        }
    }
    if limits.wall_ms.is_some_and(|ms| ms > WALL_MAX_MS) { Err(too_large("time", "7 days")) } else { Ok(()) }
}

fn check_sizes(spec: &JobSpec) -> Result<(), Refusal> {
    if spec.files.len() > JOB_FILES_MAX {
        return Err(too_large("files", JOB_FILES_MAX));
    }
    let words: usize = spec.args.iter().map(|a| a.len() + 1).sum::<usize>()
        + spec.env.iter().map(|(k, v)| k.len() + v.len() + 2).sum::<usize>();
    if words > ARGUMENT_BYTES_MAX {
        return Err(too_large("arguments", ARGUMENT_BYTES_MAX));
    }
    if spec.args.iter().any(|a| a.contains('\0')) || spec.env.iter().any(|(k, v)| bad_variable(k, v)) {
        return Err(bad_job("args", "a NUL byte or a malformed variable cannot be passed to a program"));
    }
    if spec.name.len() > PATH_BYTES_MAX {
        return Err(too_large("name", PATH_BYTES_MAX));
    }
    check_files(spec)
}

fn bad_variable(name: &str, value: &str) -> bool {
    name.is_empty() || name.contains(['=', '\0']) || value.contains('\0')
}

fn check_files(spec: &JobSpec) -> Result<(), Refusal> {
    let mut seen = BTreeSet::new();
    let mut inline_bytes = 0;
    if spec.files.iter().map(|f| f.path.len()).sum::<usize>() > JOB_PATHS_BYTES_MAX {
        return Err(too_large("the files' names", JOB_PATHS_BYTES_MAX));
    }
    for file in &spec.files {
        check_path(&file.path)?;
        if !seen.insert(file.path.as_str()) {
            return Err(bad_job("files", &format!("{} is there twice", file.path)));
        }
        if file.size_bytes > BLOB_BYTES_MAX {
            return Err(too_large(&file.path, "1 GiB"));
        }
        if let Some(bytes) = &file.inline {
            inline_bytes += bytes.len() as u64;
            if bytes.len() as u64 != file.size_bytes || BlobHash::of(bytes) != file.hash {
                return Err(Refusal::new(RefusalCode::BlobMismatch).with("hash", file.hash));
            }
        }
    }
    // A path below another file's path could not be written.
    for path in &seen {
        let mut parent = *path;
        while let Some((above, _)) = parent.rsplit_once('/') {
            if seen.contains(above) {
                return Err(bad_job("files", &format!("{above} is a file and a folder")));
            }
            parent = above;
        }
    }
    if inline_bytes > INLINE_BYTES_MAX { Err(too_large("inline files", INLINE_BYTES_MAX)) } else { Ok(()) }
}

/// Relative, plain components, nothing that could leave the work folder.
fn check_path(path: &str) -> Result<(), Refusal> {
    let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(['\0', '\\']);
    if path.len() <= PATH_BYTES_MAX && path.split('/').all(plain) {
        return Ok(());
    }
    Err(bad_job("files", &format!("{path:?} is not a plain relative path")))
}

fn extension(path: &str) -> Option<&str> {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.rsplit_once('.').filter(|(stem, _)| !stem.is_empty()).map(|(_, extension)| extension)
}

fn stem(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.rsplit_once('.').map_or(name, |(stem, _)| stem)
}

/// All files of the language, the entry first.
fn sources(spec: &JobSpec, language: &Language, entry: &str) -> Vec<String> {
    let others = spec.files.iter().map(|f| f.path.as_str()).filter(|path| *path != entry);
    let same = others.filter(|path| extension(path).is_some_and(|e| language.extensions.iter().any(|x| x == e)));
    std::iter::once(entry).chain(same).map(plain_argument).collect()
}

/// A file called `-x.c` must not read as an option.
fn plain_argument(path: &str) -> String {
    if path.starts_with('-') { format!("./{path}") } else { path.to_owned() }
}

fn expand(argv: &[String], entry: &str, sources: &[String], args: &[String]) -> Vec<String> {
    let mut words = Vec::new();
    for word in argv {
        match word.as_str() {
            "{sources}" => words.extend(sources.iter().cloned()),
            "{args}" => words.extend(args.iter().cloned()),
            "{entry}" => words.push(plain_argument(entry)),
            other => words.push(other.replace("{stem}", stem(entry))),
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use essaim_proto::job::FileSpec;

    fn job(files: &[&str]) -> JobSpec {
        let files = files.iter().map(|path| FileSpec { path: (*path).into(), ..FileSpec::default() }).collect();
        JobSpec { files, ..JobSpec::default() }
    }

    fn argv(program: &Program, phase: usize) -> String {
        program.phases[phase].argv.join(" ")
    }

    #[test]
    fn a_c_program_is_compiled_from_all_its_sources_then_run_with_its_arguments() {
        let spec = JobSpec {
            entry: "sum.c".into(),
            args: vec!["1".into(), "two words".into()],
            ..job(&["sum.c", "lib/add.c", "lib/add.h"])
        };
        let program = LanguageTable::built_in().resolve(&spec).unwrap();
        assert_eq!(argv(&program, 0), "gcc -O2 -o sum.out sum.c lib/add.c -lm -pthread");
        assert_eq!(program.phases[1].argv, ["./sum.out", "1", "two words"]);
        assert!(program.phases[1].line_buffered && !program.phases[0].line_buffered);
    }

    #[test]
    fn java_runs_the_class_named_like_its_file() {
        let spec = JobSpec { entry: "Hello.java".into(), ..job(&["Hello.java", "Greeter.java"]) };
        let program = LanguageTable::built_in().resolve(&spec).unwrap();
        assert!(argv(&program, 0).ends_with("-d . Hello.java Greeter.java"));
        assert!(argv(&program, 1).ends_with("-cp . Hello"));
    }

    #[test]
    fn a_folder_starts_at_main_or_at_its_only_program() {
        let table = LanguageTable::built_in();
        assert_eq!(table.resolve(&job(&["util.py", "main.py", "README.md"])).unwrap().entry, "main.py");
        assert_eq!(table.resolve(&job(&["tool.py", "data.csv"])).unwrap().entry, "tool.py");
        let refusal = table.resolve(&job(&["a.py", "b.py"])).unwrap_err();
        assert_eq!((refusal.code, refusal.param("candidates")), (RefusalCode::NoEntry, "a.py, b.py"));
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        let table = LanguageTable::built_in();
        let code = |spec: JobSpec| table.resolve(&spec).unwrap_err().code;
        assert_eq!(code(JobSpec { entry: "a.xyz".into(), ..job(&["a.xyz"]) }), RefusalCode::UnknownLanguage);
        let lang = Some("cobol".into());
        assert_eq!(code(JobSpec { entry: "a.py".into(), lang, ..job(&["a.py"]) }), RefusalCode::NoSuchLanguage);
        for path in ["../a.py", "/a.py", "a//b.py", "a/./b.py", "", "a\\b.py"] {
            assert_eq!(code(JobSpec { entry: path.into(), ..job(&[path]) }), RefusalCode::BadJob, "{path}");
        }
        assert_eq!(code(job(&["a.py", "a.py/b.py"])), RefusalCode::BadJob);
        assert_eq!(code(JobSpec { kind: JobKind::Command, ..job(&[]) }), RefusalCode::BadJob);
        let zero = Limits { wall_ms: Some(0), ..Limits::default() };
        assert_eq!(code(JobSpec { limits: zero, ..job(&["main.py"]) }), RefusalCode::BadJob);
    }

    #[test]
    fn a_file_that_looks_like_an_option_is_passed_as_a_path() {
        let spec = JobSpec { entry: "-o.py".into(), ..job(&["-o.py"]) };
        assert_eq!(argv(&LanguageTable::built_in().resolve(&spec).unwrap(), 0), "python3 ./-o.py");
    }

    #[test]
    fn a_user_adds_a_language_and_mistakes_are_named_with_their_line() {
        let text = "[tcl]\nextensions = [\"tcl\"]\nsource = \"main.tcl\"\nrun = [\"tclsh\", \"{entry}\"]\nprobes = [[\"tclsh\"]]\n";
        let table = LanguageTable::with_user_entries(text).unwrap();
        assert_eq!(table.resolve(&job(&["main.tcl"])).unwrap().lang.as_deref(), Some("tcl"));
        let wrong = LanguageTable::with_user_entries("[tcl]\nruns = []\n").unwrap_err();
        let TableError::Toml(source) = wrong else { panic!("expected a TOML error") };
        assert!(source.to_string().contains("line 2"), "{source}");
    }

    /// Does the name that was recorded with a job find its own entry again, whatever letters it has and whoever has it
    /// as an alias?
    #[test]
    fn a_recorded_name_finds_its_own_entry() {
        let entry = |name: &str, extension: &str| {
            format!("[{name}]\nextensions = [\"{extension}\"]\nsource = \"m\"\nrun = [\"x\"]\nprobes = [[\"x\"]]\n")
        };
        let text = entry("Tcl", "tcl") + &entry("node", "nd");
        let table = LanguageTable::with_user_entries(&text).unwrap();
        for (file, lang) in [("main.tcl", "Tcl"), ("main.nd", "node"), ("main.js", "javascript")] {
            let spec = job(&[file]);
            let found = table.resolve(&spec).unwrap();
            assert_eq!(found.lang.as_deref(), Some(lang));
            let recorded = JobSpec { lang: found.lang.clone(), entry: found.entry.clone(), ..spec };
            assert_eq!(table.resolve(&recorded).unwrap(), found);
        }
        assert_eq!(table.find("TCL").unwrap().0, "Tcl");
        assert_eq!(table.find("JS").unwrap().0, "javascript");
    }

    /// Is a table refused that would not fit the messages to workers: too many entries in all, too long probes, a name
    /// that no report could carry?
    #[test]
    fn a_table_that_is_too_large_is_refused() {
        let entry = |name: &str, probe: &str| {
            format!("[{name}]\nextensions = [\"e\"]\nsource = \"m\"\nrun = [\"x\"]\nprobes = [[\"{probe}\"]]\n")
        };
        let many: String = (0..LANGUAGES_MAX).map(|n| entry(&format!("l{n}"), "x")).collect();
        for text in [many, entry("l", &"x".repeat(PROBE_BYTES_MAX)), entry(&"l".repeat(64), "x")] {
            let error = LanguageTable::with_user_entries(&text).unwrap_err();
            assert!(matches!(error, TableError::Entry { .. }), "{error}");
        }
    }
}
