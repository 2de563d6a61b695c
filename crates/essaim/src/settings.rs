//! The settings: defaults, those of a profile, then `essaim.toml`, then `ESSAIM_*`, then flags; each value remembers where it
//! comes from.
//!
//! `main` reads them once for every subcommand, `config show` shows them. One table ([`KEYS`]) names them all. Always
//! true: an unknown key of the file is refused with its line; a wrong value is told with the place it stands in; a
//! secret is never shown.
//! Deliberately not here: the data folder itself (`home`), what only makes sense as a flag (`cli`).

use crate::cli::{Cli, Command, Common, Hub, Offered};
use crate::exit::Failure;
use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU64;
use std::path::Path;
use std::str::FromStr;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The file is read whole; a larger one is not ours.
const FILE_BYTES_MAX: u64 = 256 << 10;

/// One setting.
#[derive(Debug)]
pub(crate) struct Key {
    /// Its name in the file; in the environment it is `ESSAIM_` and this in capitals.
    pub(crate) name: &'static str,
    /// Its value when nobody says anything.
    default: Option<&'static str>,
    /// What it is for.
    pub(crate) meaning: &'static str,
    /// Is it shown as stars?
    is_secret: bool,
    /// May it stand in the file?
    in_file: bool,
}

macro_rules! keys {
    ($($constant:ident = $name:literal, $default:expr, $meaning:literal;)+) => {
        $(pub(crate) const $constant: &str = $name;)+
        /// All settings.
        pub(crate) const KEYS: &[Key] = &[$(Key {
            name: $name,
            default: $default,
            meaning: $meaning,
            // A file with settings is easily shown to others: a key has its own, private file.
            is_secret: matches!($name.as_bytes(), b"key"),
            in_file: !matches!($name.as_bytes(), b"key"),
        }),+];
    };
}

keys! {
    HUB = "hub", None, "address of the hub, HOST or HOST:PORT, several with commas";
    KEY = "key", None, "the key for that hub, as text";
    KEY_FILE = "key_file", None, "the file with the key for that hub";
    RETRIES = "retries", Some("5"), "tries to reach the hub, or to reach it again";
    BIND = "bind", None, "local address to speak from";
    LOG = "log", Some("warn"), "log level of up, hub and worker";
    NAME = "name", None, "name of the hub or worker";
    CLIENT_ADDR = "client_addr", Some("127.0.0.1:4200"), "where the hub's clients connect";
    WORKER_ADDR = "worker_addr", Some("127.0.0.1:5200"), "where the hub's workers connect";
    LOCAL_WORKERS = "local_workers", Some("1"), "worker processes of up";
    LOCAL_WORKERS_MAX = "local_workers_max", None, "worker processes of up at most, while work waits";
    LOCAL_IDLE = "local_idle", Some("60s"), "time without work after which one that was started for it ends";
    KEEP_JOBS_DAYS = "keep_jobs_days", Some("30"), "days that the hub keeps finished jobs";
    KEEP_OUTPUT = "keep_output", Some("20G"), "bytes of output that the hub keeps, like 500M or 20G";
    NOTIFY_URLS = "notify_urls", None, "beginnings of the URLs that a hub may post the ends of jobs to, several with commas";
    PROFILE = "profile", None, "class or lab: what a hub allows, where no other setting says it";
    QUOTA_QUEUED_TASKS = "quota_queued_tasks", Some("none"), "waiting and running tasks of one key";
    QUOTA_STORED_BYTES = "quota_stored_bytes", Some("none"), "bytes of files that the jobs of one key keep on the hub, like 200M";
    QUOTA_REQUESTS_PER_SECOND = "quota_requests_per_second", Some("none"), "requests of one key in a second";
    TIME_DEFAULT = "time_default", Some("3m"), "wall time of a program that names none";
    TIME_MAX = "time_max", Some("7d"), "longest wall time that a program gets";
    OUTPUT_DEFAULT = "output_default", Some("1G"), "bytes of output of a program that names none";
    OUTPUT_MAX = "output_max", Some("none"), "most bytes of output that a program gets";
    SLOTS = "slots", None, "programs that a worker runs at once";
    LABELS = "labels", None, "what a worker is called by, like gpu=a100,room=B12";
    MEM = "mem", None, "memory of a worker that programs may reserve, like 16G";
    MAX_TASKS = "max_tasks", None, "programs of a worker at once, however many slots are free";
    MAX_CPU = "max_cpu", None, "percent of its processors that others may use before a worker takes nothing new";
}

/// What each profile says (docs/quotas.md tells why).
pub(crate) const PROFILES: &[(&str, &[(&str, &str)])] = &[
    (
        "class",
        &[
            (QUOTA_QUEUED_TASKS, "1000"),
            (QUOTA_STORED_BYTES, "200M"),
            (QUOTA_REQUESTS_PER_SECOND, "20"),
            (TIME_DEFAULT, "10s"),
            (TIME_MAX, "10m"),
            (OUTPUT_DEFAULT, "16M"),
            (OUTPUT_MAX, "256M"),
            (KEEP_JOBS_DAYS, "30"),
            (KEEP_OUTPUT, "5G"),
        ],
    ),
    (
        "lab",
        &[
            (QUOTA_QUEUED_TASKS, "1000000"),
            (QUOTA_STORED_BYTES, "50G"),
            (QUOTA_REQUESTS_PER_SECOND, "200"),
            (TIME_DEFAULT, "7d"),
            (TIME_MAX, "7d"),
            (KEEP_JOBS_DAYS, "90"),
        ],
    ),
];

/// A profile's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Profile;

impl FromStr for Profile {
    type Err = ();

    fn from_str(text: &str) -> Result<Profile, ()> {
        if PROFILES.iter().any(|(name, _)| *name == text) { Ok(Profile) } else { Err(()) }
    }
}

/// A number of bytes as people write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

impl FromStr for Size {
    type Err = essaim_view::SizeError;

    fn from_str(text: &str) -> Result<Size, Self::Err> {
        essaim_view::parse_size_bytes(text).map(Size)
    }
}

/// A limit as people write it, or `none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limit<T>(pub(crate) Option<T>);

impl<T: FromStr> FromStr for Limit<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Limit<T>, T::Err> {
        if text == "none" { Ok(Limit(None)) } else { text.parse().map(|limit| Limit(Some(limit))) }
    }
}

/// A span of time as people write it, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Time(pub(crate) u64);

impl FromStr for Time {
    type Err = essaim_view::DurationError;

    fn from_str(text: &str) -> Result<Time, Self::Err> {
        essaim_view::parse_duration_ms(text).map(Time)
    }
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Nobody said anything.
    Default,
    /// The profile says so.
    Profile(&'static str),
    /// A line of `essaim.toml`.
    File {
        /// The file.
        path: String,
        /// From 1.
        line: usize,
    },
    /// A variable.
    Environment(String),
    /// A flag.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::Profile(name) => write!(f, "profile {name}"),
            Origin::File { path, line } => write!(f, "{path}:{line}"),
            Origin::Environment(name) => f.write_str(name),
            Origin::Flag(name) => f.write_str(name),
        }
    }
}

/// A value and where it comes from.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Value {
    /// The value as text.
    pub(crate) text: String,
    /// Where it comes from.
    pub(crate) origin: Origin,
}

/// All settings with their values.
#[derive(Clone, Default)]
pub(crate) struct Settings(BTreeMap<&'static str, Value>);

impl Settings {
    /// Reads the file, the environment and the flags.
    ///
    /// # Errors
    /// A usage failure that names the line of an unknown key or of what is no TOML.
    pub(crate) fn read(file: &Path, cli: &Cli) -> Result<Settings, Failure> {
        let text = match std::fs::metadata(file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Ok(meta) if meta.len() > FILE_BYTES_MAX => {
                let message = format!("{} has more than {FILE_BYTES_MAX} bytes", file.display());
                return Err(Failure::usage("bad_settings", message));
            }
            Ok(_) | Err(_) => Some(std::fs::read_to_string(file).map_err(|error| {
                Failure::usage("bad_settings", format!("{} cannot be read: {error}", file.display()))
            })?),
        };
        let mut settings = Settings::defaults();
        if let Some(text) = text {
            settings.take_file(&file.display().to_string(), &text)?;
        }
        settings.take_environment(&|name| std::env::var(name).ok());
        settings.take_flags(cli);
        settings.take_profile();
        Ok(settings)
    }

    fn defaults() -> Settings {
        let known = KEYS.iter().filter_map(|key| {
            let value = Value { text: key.default?.to_owned(), origin: Origin::Default };
            Some((key.name, value))
        });
        Settings(known.collect())
    }

    fn take_file(&mut self, path: &str, text: &str) -> Result<(), Failure> {
        let parsed = DeTable::parse(text).map_err(|error| {
            let line = error.span().map_or(1, |span| line_of(text, span.start));
            Failure::usage("bad_settings", format!("{path}:{line}: {}", error.message()))
        })?;
        for (name, value) in parsed.get_ref() {
            let line = line_of(text, name.span().start);
            let fail = |why: String| Failure::usage("bad_settings", format!("{path}:{line}: {why}"));
            let name: &str = name.get_ref();
            let key = KEYS.iter().find(|key| key.name == name).ok_or_else(|| fail(unknown(name)))?;
            if !key.in_file {
                return Err(fail(format!("`{name}` does not belong here, where others may read it; use key_file")));
            }
            let value = plain(value).ok_or_else(|| fail(format!("`{name}` must be text or a whole number")))?;
            let origin = Origin::File { path: path.to_owned(), line };
            self.0.insert(key.name, Value { text: value, origin });
        }
        Ok(())
    }

    fn take_environment(&mut self, variable: &dyn Fn(&str) -> Option<String>) {
        for key in KEYS {
            let name = format!("ESSAIM_{}", key.name.to_ascii_uppercase());
            // Empty means unset, so that a script can take a variable back for one command.
            if let Some(text) = variable(&name).filter(|text| !text.is_empty()) {
                self.0.insert(key.name, Value { text, origin: Origin::Environment(name) });
            }
        }
    }

    /// What a profile says stands in the place of defaults. One that does not exist says nothing: who starts a hub with it
    /// is told.
    fn take_profile(&mut self) {
        let wanted = self.get(PROFILE).map(|value| value.text.as_str());
        let Some((profile, values)) = PROFILES.iter().find(|(name, _)| Some(*name) == wanted) else { return };
        for (name, text) in *values {
            if self.get(name).is_none_or(|value| value.origin == Origin::Default) {
                self.0.insert(name, Value { text: (*text).to_owned(), origin: Origin::Profile(profile) });
            }
        }
    }

    fn take_flags(&mut self, cli: &Cli) {
        let Common { hub, key_file, retries, bind, log, .. } = &cli.common;
        self.flag(HUB, "--hub", hub.as_ref());
        self.flag(KEY_FILE, "--key-file", key_file.as_ref().map(|path| path.display()));
        self.flag(RETRIES, "--retries", *retries);
        self.flag(BIND, "--bind", *bind);
        self.flag(LOG, "--log", log.as_ref());
        match &cli.command {
            Command::Up(up) => {
                self.flag(LOCAL_WORKERS, "--local-workers", up.local_workers);
                self.flag(LOCAL_WORKERS_MAX, "--local-workers-max", up.local_workers_max);
                self.flag(LOCAL_IDLE, "--local-idle", up.local_idle.as_ref());
                self.flag(SLOTS, "--slots", up.slots);
                self.take_offered(&up.offered);
                self.take_doors(&up.doors);
            }
            Command::Hub(doors) => self.take_doors(doors),
            Command::Worker(worker) => {
                self.flag(SLOTS, "--slots", worker.slots);
                self.flag(NAME, "--name", worker.name.as_ref());
                self.take_offered(&worker.offered);
            }
            _ => {}
        }
    }

    fn take_offered(&mut self, offered: &Offered) {
        self.flag(LABELS, "--label", offered.label_text());
        self.flag(MEM, "--mem", offered.mem.as_ref());
        self.flag(MAX_TASKS, "--max-tasks", offered.max_tasks);
        self.flag(MAX_CPU, "--max-cpu", offered.max_cpu);
    }

    /// Defaults and flags alone.
    #[cfg(test)]
    pub(crate) fn of_flags(cli: &Cli) -> Settings {
        let mut settings = Settings::defaults();
        settings.take_flags(cli);
        settings
    }

    fn take_doors(&mut self, doors: &Hub) {
        self.flag(CLIENT_ADDR, "--client-addr", doors.client_addr.as_ref());
        self.flag(WORKER_ADDR, "--worker-addr", doors.worker_addr.as_ref());
        self.flag(NAME, "--name", doors.name.as_ref());
        self.flag(PROFILE, "--profile", doors.profile.as_ref());
    }

    fn flag(&mut self, name: &'static str, flag: &str, value: Option<impl fmt::Display>) {
        if let Some(value) = value {
            self.0.insert(name, Value { text: value.to_string(), origin: Origin::Flag(flag.to_owned()) });
        }
    }

    /// A setting's value, if it has one.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// A setting's value as what it stands for.
    ///
    /// # Errors
    /// A usage failure that names the place of a value that cannot be that.
    pub(crate) fn parsed<T: FromStr>(&self, name: &str) -> Result<Option<T>, Failure> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let parsed = value.text.parse().map(Some);
        parsed.map_err(|_| {
            let meaning = KEYS.iter().find(|key| key.name == name).map_or("", |key| key.meaning);
            let Value { text, origin } = value;
            Failure::usage("bad_settings", format!("{origin}: {text:?} is no value for {name} ({meaning})"))
        })
    }

    /// Can each setting be what it should? For what is about to be written into the file.
    ///
    /// # Errors
    /// A usage failure that names the place of a value that cannot be that.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        for key in KEYS {
            match key.name {
                RETRIES | LOCAL_WORKERS | LOCAL_WORKERS_MAX | SLOTS | MAX_TASKS | MAX_CPU | KEEP_JOBS_DAYS => {
                    self.parsed::<u32>(key.name).map(drop)
                }
                BIND => self.parsed::<std::net::IpAddr>(key.name).map(drop),
                KEEP_OUTPUT | MEM => self.parsed::<Size>(key.name).map(drop),
                PROFILE => self.parsed::<Profile>(key.name).map(drop),
                QUOTA_STORED_BYTES | OUTPUT_DEFAULT | OUTPUT_MAX => self.parsed::<Limit<Size>>(key.name).map(drop),
                QUOTA_QUEUED_TASKS => self.parsed::<Limit<u64>>(key.name).map(drop),
                QUOTA_REQUESTS_PER_SECOND => self.parsed::<Limit<NonZeroU64>>(key.name).map(drop),
                TIME_DEFAULT | TIME_MAX | LOCAL_IDLE => self.parsed::<Time>(key.name).map(drop),
                // Text, or what only its user can judge.
                _ => Ok(()),
            }?;
        }
        Ok(())
    }

    /// Name, value (a secret as stars) and origin of every setting, in the table's order.
    pub(crate) fn shown(&self) -> Vec<(&'static Key, Option<String>, Origin)> {
        let show = |key: &'static Key| match self.get(key.name) {
            None => (key, None, Origin::Default),
            Some(value) if key.is_secret => (key, Some("***".to_owned()), value.origin.clone()),
            Some(value) => (key, Some(value.text.clone()), value.origin.clone()),
        };
        KEYS.iter().map(show).collect()
    }
}

/// The text of the file with a setting in it, or without it: whatever else stands there stays as it is.
///
/// # Errors
/// A usage failure for a setting that does not exist, that does not belong into the file, or a value that it cannot have.
pub(crate) fn with_setting(path: &str, text: &str, name: &str, value: Option<&str>) -> Result<String, Failure> {
    let fail = |why: String| Failure::usage("bad_settings", why);
    let key = KEYS.iter().find(|key| key.name == name).ok_or_else(|| fail(unknown(name)))?;
    if !key.in_file {
        return Err(fail(format!("`{name}` does not belong into a file that others may read; use key_file")));
    }
    let parsed = DeTable::parse(text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_of(text, span.start));
        fail(format!("{path}:{line}: {}", error.message()))
    })?;
    let written = parsed.get_ref().iter().find(|(known, _)| known.get_ref() == name);
    let quoted = value.map(|value| toml::Value::from(value).to_string());
    let new = match (written, quoted) {
        (Some((_, old)), Some(quoted)) => {
            let span = old.span();
            format!("{}{quoted}{}", &text[..span.start], &text[span.end..])
        }
        (Some((name, old)), None) => {
            let begin = text[..name.span().start].rfind('\n').map_or(0, |at| at + 1);
            let end = text[old.span().end..].find('\n').map_or(text.len(), |at| old.span().end + at + 1);
            format!("{}{}", &text[..begin], &text[end..])
        }
        (None, Some(quoted)) => {
            let gap = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
            format!("{text}{gap}{name} = {quoted}\n")
        }
        (None, None) => text.to_owned(),
    };
    let mut settings = Settings::defaults();
    settings.take_file(path, &new)?;
    settings.check()?;
    Ok(new)
}

fn unknown(name: &str) -> String {
    let known: Vec<&str> = KEYS.iter().filter(|key| key.in_file).map(|key| key.name).collect();
    let near = known.iter().filter(|key| distance(key, name) <= 2).min_by_key(|key| distance(key, name));
    match near {
        Some(near) => format!("there is no setting `{name}`; did you mean `{near}`?"),
        None => format!("there is no setting `{name}`; the settings are {}", known.join(", ")),
    }
}

/// How many letters must be changed, added or removed (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut before = row[0];
        row[0] = i + 1;
        for (j, right) in b.iter().enumerate() {
            let changed = before + usize::from(left != *right);
            before = row[j + 1];
            row[j + 1] = changed.min(before + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

fn plain(value: &Spanned<DeValue<'_>>) -> Option<String> {
    match value.get_ref() {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => Some(number.to_string()),
        // A list of texts is the same text with commas.
        DeValue::Array(list) => {
            let texts = list.iter().map(|part| part.get_ref().as_str().map(str::to_owned));
            texts.collect::<Option<Vec<String>>>().map(|texts| texts.join(","))
        }
        _ => None,
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn settings(file: &str, environment: &[(&str, &str)], words: &[&str]) -> Result<Settings, Failure> {
        let mut settings = Settings::defaults();
        settings.take_file("essaim.toml", file)?;
        settings.take_environment(&|name| {
            environment.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        });
        settings.take_flags(&Cli::try_parse_from(std::iter::once(&"essaim").chain(words)).unwrap());
        settings.take_profile();
        Ok(settings)
    }

    fn value(settings: &Settings, name: &str) -> (String, String) {
        let value = settings.get(name).unwrap();
        (value.text.clone(), value.origin.to_string())
    }

    // Later places win, and each value knows its place.
    #[test]
    fn each_value_remembers_its_origin() {
        let file = "# mine\nretries = 7\nlog = \"info\"\nhub = \"a:1\"\nnotify_urls = [\"http://a/x\", \"http://b\"]\n";
        let environment = [("ESSAIM_LOG", "debug"), ("ESSAIM_HUB", "b:2"), ("ESSAIM_KEY", "secret")];
        let settings = settings(file, &environment, &["--hub", "c:3", "node", "list"]).unwrap();
        assert_eq!(value(&settings, RETRIES), ("7".into(), "essaim.toml:2".into()));
        assert_eq!(value(&settings, LOG), ("debug".into(), "ESSAIM_LOG".into()));
        assert_eq!(value(&settings, HUB), ("c:3".into(), "--hub".into()));
        assert_eq!(value(&settings, CLIENT_ADDR), ("127.0.0.1:4200".into(), "default".into()));
        assert!(settings.get(SLOTS).is_none());
        assert_eq!(value(&settings, NOTIFY_URLS), ("http://a/x,http://b".into(), "essaim.toml:5".into()));
        let shown = settings.shown();
        let key = shown.iter().find(|(key, ..)| key.name == KEY).unwrap();
        assert_eq!(key.1.as_deref(), Some("***"), "a secret is not shown");
    }

    // A mistake in the file names its line and what was meant.
    #[test]
    fn unknown_keys_are_refused_with_their_line() {
        let cases = [
            ("\nretrys = 7\n", "essaim.toml:2: there is no setting `retrys`; did you mean `retries`?"),
            ("colour = 1\n", "essaim.toml:1: there is no setting `colour`; the settings are hub, "),
            ("log = \"warn\"\n\nslots = [1]\n", "essaim.toml:3: `slots` must be text or a whole number"),
            ("key = \"x\"\n", "essaim.toml:1: `key` does not belong here"),
            ("log = \"warn\"\n\nslots == 1\n", "essaim.toml:3: "),
        ];
        for (file, sentence) in cases {
            let failure = settings(file, &[], &["node", "list"]).map(|_| ()).unwrap_err();
            assert!(failure.message.starts_with(sentence), "{failure:?}");
        }
    }

    // A value that cannot be what it should is told with its place.
    #[test]
    fn a_wrong_value_is_told_with_its_place() {
        let settings = settings("", &[("ESSAIM_RETRIES", "many")], &["node", "list"]).unwrap();
        let failure = settings.parsed::<u32>(RETRIES).unwrap_err();
        assert!(failure.message.starts_with("ESSAIM_RETRIES: \"many\" is no value for retries"), "{failure:?}");
    }

    // A profile stands in the place of defaults only, and each value says so.
    #[test]
    fn a_profile_gives_way_to_single_settings() {
        let settings = settings("profile = \"lab\"\ntime_max = \"1h\"\n", &[], &["up", "--profile", "class"]).unwrap();
        assert_eq!(value(&settings, PROFILE), ("class".into(), "--profile".into()));
        assert_eq!(value(&settings, QUOTA_STORED_BYTES), ("200M".into(), "profile class".into()));
        assert_eq!(value(&settings, TIME_MAX), ("1h".into(), "essaim.toml:2".into()));
        assert_eq!(value(&settings, RETRIES), ("5".into(), "default".into()));
        for (name, _) in PROFILES {
            let file = format!("profile = \"{name}\"\n");
            assert!(self::settings(&file, &[], &["node", "list"]).unwrap().check().is_ok(), "{name}");
        }
        let wrong = self::settings("profile = \"school\"\n", &[], &["node", "list"]).unwrap();
        assert!(wrong.check().unwrap_err().message.starts_with("essaim.toml:1: \"school\" is no value for profile"));
    }

    // What is set and taken back leaves the rest of the file as it was.
    #[test]
    fn a_setting_is_written_in_its_place() {
        let write = |text: &str, name: &str, value| with_setting("essaim.toml", text, name, value);
        let file = "# mine\nretries = 7 # many\nlog = \"info\"";
        let new = write(file, "retries", Some("9")).unwrap();
        assert_eq!(new, "# mine\nretries = \"9\" # many\nlog = \"info\"");
        let new = write(&new, "profile", Some("class")).unwrap();
        assert_eq!(new, "# mine\nretries = \"9\" # many\nlog = \"info\"\nprofile = \"class\"\n");
        let new = write(&new, "retries", None).unwrap();
        assert_eq!(write(&new, "log", None).unwrap(), "# mine\nprofile = \"class\"\n");
        assert_eq!(write("", "name", Some("a \"b\"")).unwrap(), "name = 'a \"b\"'\n");
        assert_eq!(write("", "name", None).unwrap(), "");
        for (name, value) in [("profile", "school"), ("quota_requests_per_second", "0"), ("nam", "x"), ("key", "x")] {
            assert!(write("", name, Some(value)).is_err(), "{name} = {value}");
        }
    }

    // Flags of a subcommand reach the settings too.
    #[test]
    fn flags_of_up_are_settings() {
        let settings = settings("slots = 9\n", &[], &["up", "--slots", "2", "--name", "lab"]).unwrap();
        assert_eq!(value(&settings, SLOTS), ("2".into(), "--slots".into()));
        assert_eq!(value(&settings, NAME), ("lab".into(), "--name".into()));
    }
}
