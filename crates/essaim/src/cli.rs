//! The words of the command line.
//!
//! `main` parses them, `cmd` translates them. Always true: what stands after FILE belongs to the program; every
//! subcommand has examples in its help; a flag that is also a setting is an `Option`, so that `settings` knows whether
//! it was given.
//! Deliberately not here: defaults of settings (`settings`), what the words do (`cmd`).

mod job;
mod many;
mod offer;
mod quota;

pub(crate) use job::{Job, JobFilter, Only, Submit};
pub(crate) use many::{Array, Beside, Demands, labels, parse_label};
pub(crate) use offer::Offered;
pub(crate) use quota::Quotas;

use crate::notify::Notify;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use essaim_proto::hello::Role;
use essaim_proto::{KeyName, NodeName};
use std::net::IpAddr;
use std::path::PathBuf;

/// Makes one computer out of several.
#[derive(Debug, Parser)]
#[command(name = "essaim", version, max_term_width = 110, after_help = HELP)]
pub(crate) struct Cli {
    /// What every subcommand takes.
    #[command(flatten)]
    pub(crate) common: Common,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

const HELP: &str = "\
Examples:
  essaim run hello.py              run a program; without a hub one is used for this run only
  essaim up                        start a hub with a worker on this machine
  essaim join-line --open 0.0.0.0  print the line that makes another machine join
  essaim node list                 see all machines";

/// What every subcommand takes.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Common {
    /// Print JSON: one object, or one line per event.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Say nothing on standard error but errors.
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    /// The hub to speak to, HOST or HOST:PORT, several with commas.
    #[arg(long, global = true, value_name = "ADDR", help_heading = "Connection")]
    pub(crate) hub: Option<String>,
    /// The file with the key for that hub.
    #[arg(long, global = true, value_name = "FILE", help_heading = "Connection")]
    pub(crate) key_file: Option<PathBuf>,
    /// Tries to reach a hub, or to reach it again [default: 5].
    #[arg(long, global = true, value_name = "N", help_heading = "Connection")]
    pub(crate) retries: Option<u32>,
    /// The local address to speak from.
    #[arg(long, global = true, value_name = "IP", help_heading = "Connection")]
    pub(crate) bind: Option<IpAddr>,
    /// Log on standard error: error, warn, info, debug or trace [default: warn].
    #[arg(long, global = true, value_name = "LEVEL", help_heading = "Connection")]
    pub(crate) log: Option<String>,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a hub and workers on this machine.
    #[command(after_help = UP)]
    Up(Up),
    /// Start a hub alone.
    #[command(after_help = HUB)]
    Hub(Hub),
    /// Offer this machine to a hub.
    #[command(after_help = WORKER)]
    Worker(Worker),
    /// Print the line that makes another machine join.
    #[command(after_help = JOIN_LINE)]
    JoinLine(JoinLine),
    /// Run a program somewhere: its output live, its exit code.
    #[command(after_help = RUN)]
    Run(Run),
    /// See and steer jobs.
    #[command(after_help = job::JOB, subcommand_required = true)]
    Job {
        /// What to do.
        #[command(subcommand)]
        command: Job,
    },
    /// See the machines.
    #[command(after_help = NODE, subcommand_required = true)]
    Node {
        /// What to do.
        #[command(subcommand)]
        command: Node,
    },
    /// Make, list and revoke keys.
    #[command(after_help = KEY, subcommand_required = true)]
    Key {
        /// What to do.
        #[command(subcommand)]
        command: Key,
    },
    /// Copy the hub into a folder, also while it runs.
    #[command(after_help = BACKUP)]
    Backup {
        /// The folder to make.
        #[arg(value_name = "DIR")]
        to: PathBuf,
    },
    /// Bring back what `backup` has copied.
    #[command(after_help = RESTORE)]
    Restore {
        /// The folder that `backup` made.
        #[arg(value_name = "DIR")]
        from: PathBuf,
    },
    /// Look at what this machine has and what it lacks.
    #[command(after_help = DOCTOR)]
    Doctor,
    /// See and change the settings.
    #[command(after_help = CONFIG, subcommand_required = true)]
    Config {
        /// What to do.
        #[command(subcommand)]
        command: Config,
    },
    /// Print what makes a shell complete our words.
    #[command(after_help = COMPLETIONS)]
    Completions {
        /// Which shell.
        shell: Shell,
    },
}

const UP: &str = "\
The first Ctrl+C waits up to 10 s for what runs, the second stops at once.

Examples:
  essaim up
  essaim up --local-workers 2 --slots 4
  essaim up --profile class
  essaim up --local-workers 1 --local-workers-max 4 --local-idle 5m
  essaim up --client-addr 127.0.0.1:0 --worker-addr 127.0.0.1:0 --json
  ESSAIM_HOME=/tmp/second essaim up --client-addr 127.0.0.1:4300 --worker-addr 127.0.0.1:5300";

/// `up`.
#[derive(Debug, Args)]
pub(crate) struct Up {
    /// Local worker processes that are always there [default: 1].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=256))]
    pub(crate) local_workers: Option<u32>,
    /// While work waits for slots more are started, one after the other, up to so many; each of them has as many slots as
    /// the others, and no memory for --mem of run [default: no more].
    #[arg(long, value_name = "M", value_parser = clap::value_parser!(u32).range(..=256))]
    pub(crate) local_workers_max: Option<u32>,
    /// Such a worker ends when it has had no work for so long (30s, 10m) [default: 60s].
    #[arg(long, value_name = "TIME", value_parser = time_text)]
    pub(crate) local_idle: Option<String>,
    /// Programs that each local worker runs at once [default: the processors shared among those that are always there].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) slots: Option<u32>,
    /// The hub's doors.
    #[command(flatten)]
    pub(crate) doors: Hub,
    /// What each local worker offers.
    #[command(flatten)]
    pub(crate) offered: Offered,
}

const HUB: &str = "\
Examples:
  essaim hub
  essaim hub --client-addr 0.0.0.0:4200 --worker-addr 0.0.0.0:5200
  essaim hub --name lab --profile lab --json";

/// `hub`.
#[derive(Debug, Args)]
pub(crate) struct Hub {
    /// Where clients connect; port 0 takes any free one [default: 127.0.0.1:4200].
    #[arg(long, value_name = "ADDR")]
    pub(crate) client_addr: Option<String>,
    /// Where workers connect [default: 127.0.0.1:5200].
    #[arg(long, value_name = "ADDR")]
    pub(crate) worker_addr: Option<String>,
    /// The hub's name [default: this machine's].
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// What keys and jobs may when nothing else is said of them: class or lab [default: as much as they like].
    #[arg(long, value_name = "PROFILE", value_parser = ["class", "lab"])]
    pub(crate) profile: Option<String>,
}

const WORKER: &str = "\
The line comes from `essaim join-line` at the hub. Once joined, `essaim worker` alone is enough.
The first Ctrl+C waits up to 10 s for what runs, the second stops at once.

Examples:
  essaim worker essaim-join.3f…9a.07…c1@192.168.1.10:5200
  cat line.txt | essaim worker -
  essaim worker --slots 8 --name garage
  essaim worker --label gpu=a100 --mem 48G --max-cpu 50";

/// `worker`.
#[derive(Debug, Args)]
pub(crate) struct Worker {
    /// The join line, or - to read it from standard input; not needed when this machine has joined before.
    #[arg(value_name = "JOIN")]
    pub(crate) line: Option<String>,
    /// Programs that it runs at once [default: the processors].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) slots: Option<u32>,
    /// The name that it would like [default: this machine's].
    #[arg(long)]
    pub(crate) name: Option<NodeName>,
    /// What it offers.
    #[command(flatten)]
    pub(crate) offered: Offered,
    /// `up` starts its workers with this: the number of the worker. Standard input is the join line, then stays open.
    #[arg(long, hide = true, value_name = "NUMBER", conflicts_with = "line")]
    pub(crate) local: Option<u32>,
    /// `run` without a hub starts its worker with this: look for this language only, and remove the data folder at the
    /// end.
    #[arg(long, hide = true, value_name = "LANG", requires = "local")]
    pub(crate) only: Option<String>,
}

const JOIN_LINE: &str = "\
The hub listens on this machine only until an address is opened.

Examples:
  essaim join-line --open 0.0.0.0
  essaim join-line --open 192.168.1.10:5200 --uses 10 --ttl 8h
  essaim join-line | ssh garage sh";

/// `join-line`.
#[derive(Debug, Args)]
pub(crate) struct JoinLine {
    /// Open the workers' door on this address too, HOST or HOST:PORT.
    #[arg(long, value_name = "ADDR")]
    pub(crate) open: Option<String>,
    /// Open the clients' door on this address too.
    #[arg(long, value_name = "ADDR")]
    pub(crate) open_clients: Option<String>,
    /// How many machines may use the line.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) uses: u32,
    /// How long it is good for (30s, 10m, 1h, 2d).
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = essaim_view::parse_duration_ms)]
    pub(crate) ttl: u64,
}

const RUN: &str = "\
Exit code: the program's own; 128+N after signal N; 124 time limit;
123 another limit; 130 cancelled; 125 when essaim failed or refused.
Of an array: that of its worst task, in this order.
Ctrl+C cancels the program wherever it runs.

Examples:
  essaim run hello.py Ada
  essaim run --time 5s --file data.csv sum.c -- data.csv
  essaim run --on garage project/ --verbose
  essaim run --command -- uname -a
  essaim run --array 1-1000 --keep-order simulate.py
  essaim run --each-line urls.txt --prefix --retry 2 fetch.sh
  essaim run --notify 'mail -s $ESSAIM_JOB_STATE ada' long.py
  essaim run --cpus 4 --mem 8G --label gpu=a100 train.py";

/// `run`.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// The program (a file, a folder, or - for standard input) and its arguments; with --command its whole command.
    #[arg(value_name = "FILE|DIR|- [ARGS]", required = true, trailing_var_arg = true)]
    pub(crate) words: Vec<String>,
    /// The language, when the file's extension does not tell.
    #[arg(long)]
    pub(crate) lang: Option<String>,
    /// What the program reads, instead of our own standard input.
    #[arg(long, value_name = "FILE")]
    pub(crate) stdin: Option<PathBuf>,
    /// A file or folder that goes along; may be repeated.
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Vec<PathBuf>,
    /// Run on this machine and nowhere else.
    #[arg(long, value_name = "NODE")]
    pub(crate) on: Option<NodeName>,
    /// Wall time of the program (500ms, 5s, 2m) [default: 3m].
    #[arg(long, value_name = "TIME", value_parser = essaim_view::parse_duration_ms)]
    pub(crate) time: Option<u64>,
    /// Bytes of standard output and standard error together (1M) [default: 1G].
    #[arg(long, value_name = "SIZE", value_parser = essaim_view::parse_size_bytes)]
    pub(crate) output_limit: Option<u64>,
    /// The job's name in lists.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// A variable for the program; may be repeated.
    #[arg(long, value_name = "K=V", value_parser = parse_variable)]
    pub(crate) env: Vec<(String, String)>,
    /// Print the job's id and leave; `essaim job logs ID` shows its output.
    #[arg(long, conflicts_with_all = ["stdin", "ephemeral"])]
    pub(crate) detach: bool,
    /// Cancel the job when this command vanishes.
    #[arg(long)]
    pub(crate) ephemeral: bool,
    /// At its end run this command here, with the job as JSON on its standard input, or let the hub post that to a URL.
    #[arg(long, value_name = "CMD|URL")]
    pub(crate) notify: Option<Notify>,
    /// Run a program that is already on the machine instead of sending one.
    #[arg(long, conflicts_with = "lang")]
    pub(crate) command: bool,
    /// Let all control codes of the output through to the terminal.
    #[arg(long)]
    pub(crate) raw: bool,
    /// Many tasks.
    #[command(flatten)]
    pub(crate) array: Array,
    /// Where and when.
    #[command(flatten)]
    pub(crate) demands: Demands,
}

const NODE: &str = "\
Examples:
  essaim node list
  essaim node list --watch
  essaim node show local-1
  essaim node list --json";

const NODE_LIST: &str = "\
With --watch the list is followed by a line for each change, until Ctrl+C.

Examples:
  essaim node list
  essaim node list --json
  essaim node list --watch
  essaim node list --watch --json | jq -c 'select(.type == \"node_change\")'";

/// `node`.
#[derive(Debug, Subcommand)]
pub(crate) enum Node {
    /// List the machines.
    #[command(after_help = NODE_LIST)]
    List {
        /// Go on with each change, until Ctrl+C.
        #[arg(long)]
        watch: bool,
    },
    /// Show one machine in full.
    #[command(after_help = "Examples:\n  essaim node show local-1\n  essaim node show local-1 --json")]
    Show {
        /// Which.
        node: NodeName,
    },
}

const KEY: &str = "\
Examples:
  essaim key create ada --role operator
  essaim key set ada --queued-tasks 500
  essaim key list
  essaim key revoke ada";

/// `key`.
#[derive(Debug, Subcommand)]
pub(crate) enum Key {
    /// Make a key and print it; it is shown this once.
    #[command(
        after_help = "Examples:\n  essaim key create ada --role operator --queued-tasks 500 --stored-bytes 1G\n  ESSAIM_KEY=$(essaim key create ada) essaim node list"
    )]
    Create {
        /// Its name, for lists.
        name: KeyName,
        /// What it may do.
        #[arg(long, value_enum, default_value_t = RoleWord::User)]
        role: RoleWord,
        /// How much it may use.
        #[command(flatten)]
        quotas: quota::Quotas,
    },
    /// Change how much a key may use, at once and without a restart.
    #[command(after_help = quota::SET)]
    Set {
        /// Its name.
        name: KeyName,
        /// How much it may use.
        #[command(flatten)]
        quotas: quota::Quotas,
    },
    /// List the keys, with what they use and may, without their secrets.
    #[command(after_help = "Examples:\n  essaim key list\n  essaim key list --json")]
    List,
    /// Revoke a key; who uses it is disconnected at once.
    #[command(after_help = "Examples:\n  essaim key revoke ada\n  essaim key revoke ada --quiet")]
    Revoke {
        /// Its name.
        name: KeyName,
    },
}

/// A role as a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoleWord {
    /// Sees names and states.
    Viewer,
    /// Sees that, and its own jobs in full.
    User,
    /// Runs and steers everything that runs.
    Operator,
    /// Makes and revokes keys too.
    Admin,
}

impl From<RoleWord> for Role {
    fn from(word: RoleWord) -> Role {
        match word {
            RoleWord::Viewer => Role::Viewer,
            RoleWord::User => Role::User,
            RoleWord::Operator => Role::Operator,
            RoleWord::Admin => Role::Admin,
        }
    }
}

const DOCTOR: &str = "\
Exit code: 0 when nothing that is needed is missing, 1 otherwise.

Examples:
  essaim doctor
  essaim doctor --json";

const CONFIG: &str = "\
Examples:
  essaim config show
  essaim config show --json
  essaim config set profile class
  essaim config set local-mode off";

const CONFIG_SET: &str = "\
Three settings are the running hub's own and are kept by it, also over a restart, until they are
set again; they need an admin key, and the words of a later `up` (--local-workers,
--local-workers-max) count more:
  local-mode on|off    off: the workers of the hub's own machine take nothing new, finish what
                       they run and end; what waits for them waits until it is on, or runs on
                       other machines
  local-workers N      local workers that are always there
  local-workers-max M  local workers at most, while work waits
All others are written into essaim.toml; a hub or worker takes them when it is started next.

Examples:
  essaim config set profile class
  essaim config set quota_stored_bytes 500M
  essaim config set time_max 1h
  essaim config set local-mode off
  essaim config set local-workers-max 8 --json";

/// `config`.
#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Show every setting and where its value comes from.
    #[command(after_help = "Examples:\n  essaim config show\n  ESSAIM_RETRIES=9 essaim config show --json")]
    Show,
    /// Change a setting: in essaim.toml, or of a hub that runs.
    #[command(after_help = CONFIG_SET)]
    Set {
        /// Which.
        name: String,
        /// Its value.
        value: String,
    },
    /// Take a setting out of essaim.toml.
    #[command(after_help = "Examples:\n  essaim config unset profile")]
    Unset {
        /// Which.
        name: String,
    },
}

/// A time that is kept as it was typed.
fn time_text(text: &str) -> Result<String, essaim_view::DurationError> {
    essaim_view::parse_duration_ms(text).map(|_| text.to_owned())
}

const BACKUP: &str = "\
A backup has the hub's jobs, keys, output and files, its identity and its settings. Who has
it can be the hub: keep it as safe as the data folder.

Examples:
  essaim backup /mnt/usb/essaim-monday
  ESSAIM_HOME=/srv/essaim essaim backup ~/essaim-copy";

const RESTORE: &str = "\
Nothing that is there is replaced: no hub may run, and an old store must be moved away first.

Examples:
  essaim restore /mnt/usb/essaim-monday
  ESSAIM_HOME=/srv/elsewhere essaim restore ~/essaim-copy
  mv ~/.local/share/essaim/store ~/old-store && essaim restore ~/essaim-copy";

const COMPLETIONS: &str = "\
Examples:
  essaim completions bash > ~/.local/share/bash-completion/completions/essaim
  essaim completions zsh > ~/.zfunc/_essaim
  essaim completions fish > ~/.config/fish/completions/essaim.fish";

fn parse_variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn run(words: &[&str]) -> Run {
        let all = ["essaim", "run"].iter().chain(words);
        match Cli::try_parse_from(all).unwrap_or_else(|error| panic!("{error}")).command {
            Command::Run(run) => run,
            other => panic!("{other:?}"),
        }
    }

    // clap checks what can be checked about the whole tree.
    #[test]
    fn the_command_tree_is_sound() {
        Cli::command().debug_assert();
    }

    // Everything after FILE belongs to the program, our own words and `--` too.
    #[test]
    fn what_follows_the_file_belongs_to_the_program() {
        for words in [
            &["main.py", "--json", "--lang", "c", "-q"][..],
            &["main.py", "--", "--on", "x"],
            &["main.py", "-", "--help"],
            &["-", "--time", "5s"],
            &["main.py", "--version"],
        ] {
            let run = run(words);
            assert_eq!(run.words, words);
            assert_eq!((run.lang, run.on, run.time), (None, None, None));
        }
    }

    // What stands before FILE is ours.
    #[test]
    fn what_precedes_the_file_is_ours() {
        let run = run(&["--lang", "c", "--time", "1.5s", "--env", "A=b=c", "--file", "x", "--file", "y", "m.c", "a"]);
        assert_eq!(run.words, ["m.c", "a"]);
        assert_eq!((run.lang.as_deref(), run.time), (Some("c"), Some(1_500)));
        assert_eq!(run.env, [("A".to_owned(), "b=c".to_owned())]);
        assert_eq!(run.file.len(), 2);
    }

    // A command may be written with and without `--`; a file that looks like an option needs it.
    #[test]
    fn two_dashes_before_the_first_word_are_ours() {
        assert_eq!(run(&["--command", "--", "ls", "-l", "--", "x"]).words, ["ls", "-l", "--", "x"]);
        assert_eq!(run(&["--command", "ls", "-l"]).words, ["ls", "-l"]);
        assert_eq!(run(&["--", "-x.py", "-v"]).words, ["-x.py", "-v"]);
        assert!(Cli::try_parse_from(["essaim", "run", "-x.py"]).is_err());
        assert!(Cli::try_parse_from(["essaim", "run"]).is_err());
    }

    // Common flags are understood on both sides of the subcommand.
    #[test]
    fn common_flags_go_everywhere() {
        for words in [["essaim", "--json", "node", "list"], ["essaim", "node", "list", "--json"]] {
            assert!(Cli::try_parse_from(words).unwrap().common.json);
        }
    }

    // A time without a unit is asked about, not guessed.
    #[test]
    fn a_time_needs_its_unit() {
        let error = Cli::try_parse_from(["essaim", "run", "--time", "5", "x.py"]).unwrap_err();
        assert!(error.to_string().contains("5s"), "{error}");
    }

    // Every subcommand shows examples.
    #[test]
    fn every_help_has_examples() {
        fn check(command: &clap::Command) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Examples:\n"), "{} has no examples", command.get_name());
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }
}
