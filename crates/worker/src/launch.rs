//! From a phase to a command: where the program is, what it is told, what surrounds it.
//!
//! An attempt asks for the command of each phase, `probe` for the same surroundings, so that what a probe finds is what a
//! job gets. Always true: nothing of the worker's own environment is inherited but PATH and the user's name; no shell
//! sits between us and a program's arguments.
//! Deliberately not here: starting it (`attempt`, the cage), and the words themselves (the hub's table of languages).

use essaim_proto::AttemptId;
use essaim_proto::job::Reason;
use essaim_proto::link::PhaseSpec;
use std::path::{Path, PathBuf};

/// PATH where the worker has none.
const PATH_DEFAULT: &str = "/usr/local/bin:/usr/bin:/bin";

/// Where coreutils keep the library that makes stdio write line by line; Debian, Debian before 12, Arch, Fedora.
const STDBUF_PLACES: [&str; 5] = [
    "/usr/libexec/coreutils/libstdbuf.so",
    "/usr/lib/x86_64-linux-gnu/coreutils/libstdbuf.so",
    "/usr/lib/aarch64-linux-gnu/coreutils/libstdbuf.so",
    "/usr/lib/coreutils/libstdbuf.so",
    "/usr/lib64/coreutils/libstdbuf.so",
];

/// What every program of this worker gets; found once.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings {
    path: String,
    user: Option<String>,
    stdbuf: Option<String>,
}

/// What really stands behind a word of a language (behind a version manager's shim).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolved {
    /// The first word of the language's first probe.
    pub(crate) word: String,
    /// What runs in its place.
    pub(crate) program: PathBuf,
}

/// What the cage starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Command {
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
}

impl Surroundings {
    /// Those of this process.
    pub(crate) fn of_this_process() -> Surroundings {
        let variable = |name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        Surroundings {
            path: variable("PATH").filter(|path| !path.is_empty()).unwrap_or_else(|| PATH_DEFAULT.to_owned()),
            user: variable("USER").or_else(|| variable("LOGNAME")),
            stdbuf: STDBUF_PLACES.into_iter().find(|place| Path::new(place).exists()).map(str::to_owned),
        }
    }

    /// The file behind `word` on the worker's PATH; a word with a slash stands for itself.
    pub(crate) fn find(&self, word: &str) -> Option<String> {
        if word.contains('/') {
            return Some(word.to_owned());
        }
        // A relative entry of PATH would mean another place for every program.
        let folders = std::env::split_paths(&self.path).filter(|folder| folder.is_absolute());
        let candidates = folders.map(|folder| folder.join(word));
        let found = candidates.into_iter().find(|file| is_program(file))?;
        found.into_os_string().into_string().ok()
    }

    /// The plain set of variables, for a program that lives in `folder` and may leave things in `tmp`.
    pub(crate) fn variables(&self, folder: &Path, tmp: &Path) -> Vec<(String, String)> {
        let mut variables = vec![
            ("PATH".to_owned(), self.path.clone()),
            ("HOME".to_owned(), folder.to_string_lossy().into_owned()),
            ("TMPDIR".to_owned(), tmp.to_string_lossy().into_owned()),
            ("LANG".to_owned(), "C.UTF-8".to_owned()),
        ];
        if let Some(user) = &self.user {
            variables.push(("USER".to_owned(), user.clone()));
            variables.push(("LOGNAME".to_owned(), user.clone()));
        }
        variables
    }

    /// The command of a phase.
    ///
    /// # Errors
    /// `program_missing` when there is no such program.
    pub(crate) fn command(
        &self,
        attempt: AttemptId,
        phase: &PhaseSpec,
        resolved: Option<&Resolved>,
        (folder, tmp): (&Path, &Path),
    ) -> Result<Command, Reason> {
        let word = phase.argv.first().map_or("", String::as_str);
        let missing = || Reason::new("program_missing").with("program", word);
        let program = match resolved.filter(|resolved| resolved.word == word) {
            Some(resolved) => Some(resolved.program.to_string_lossy().into_owned()),
            None => self.find(word).filter(|program| !program.is_empty()),
        };
        let mut argv = vec![program.ok_or_else(missing)?];
        argv.extend(phase.argv.iter().skip(1).cloned());

        let mut env = self.variables(folder, tmp);
        for (name, value) in &phase.env {
            set(&mut env, name, value.clone());
        }
        if let Some(stdbuf) = self.stdbuf.as_ref().filter(|_| phase.line_buffered) {
            let theirs = phase.env.get("LD_PRELOAD").map_or(String::new(), |theirs| format!(":{theirs}"));
            set(&mut env, "LD_PRELOAD", format!("{stdbuf}{theirs}"));
            set(&mut env, "_STDBUF_O", "L".to_owned());
        }
        set(&mut env, "ESSAIM_JOB", attempt.job.to_string());
        set(&mut env, "ESSAIM_TASK_ID", attempt.task.to_string());
        set(&mut env, "ESSAIM_ATTEMPT", attempt.attempt.to_string());
        Ok(Command { argv, env })
    }
}

fn set(env: &mut Vec<(String, String)>, name: &str, value: String) {
    match env.iter_mut().find(|(known, _)| known == name) {
        Some(entry) => entry.1 = value,
        None => env.push((name.to_owned(), value)),
    }
}

fn is_program(file: &Path) -> bool {
    file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use essaim_proto::{JobId, TaskId};

    fn surroundings() -> Surroundings {
        Surroundings {
            path: "relative:/nowhere:/bin:/usr/bin".to_owned(),
            user: Some("anna".to_owned()),
            stdbuf: Some("/lib/libstdbuf.so".to_owned()),
        }
    }

    fn command(phase: &PhaseSpec, resolved: Option<&Resolved>) -> Result<Command, Reason> {
        let attempt = AttemptId { job: JobId(7), task: TaskId(2), attempt: 3 };
        surroundings().command(attempt, phase, resolved, (Path::new("/w/7.2.3"), Path::new("/w/7.2.3.tmp")))
    }

    fn phase(argv: &[&str]) -> PhaseSpec {
        PhaseSpec { argv: argv.iter().map(|word| (*word).to_owned()).collect(), ..PhaseSpec::default() }
    }

    fn variable<'a>(command: &'a Command, name: &str) -> Option<&'a str> {
        let found: Vec<&str> = command.env.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect();
        assert!(found.len() <= 1, "{name} is there twice");
        found.first().copied()
    }

    // Where does a program come from: PATH, its own path, or what stands behind a shim?
    #[test]
    fn programs_are_found() {
        let first = |argv: &[&str], resolved| command(&phase(argv), resolved).map(|command| command.argv[0].clone());
        assert!(first(&["sh", "-c", "x"], None).unwrap().ends_with("bin/sh"));
        assert_eq!(first(&["./sum.out"], None).unwrap(), "./sum.out");
        let resolved = Resolved { word: "sh".to_owned(), program: "/opt/real/sh".into() };
        assert_eq!(first(&["sh"], Some(&resolved)).unwrap(), "/opt/real/sh");
        assert!(first(&["ls"], Some(&resolved)).unwrap().ends_with("bin/ls"));
        for missing in ["no-such-program", ""] {
            let reason = first(&[missing], None).unwrap_err();
            assert_eq!((reason.code.as_str(), reason.params["program"].as_str()), ("program_missing", missing));
        }
        assert_eq!(command(&phase(&[]), None).unwrap_err().code, "program_missing");
    }

    // Is the environment the plain set, the job's own words over it, and ours last?
    #[test]
    fn the_environment_is_made_and_not_inherited() {
        let mut phase = phase(&["sh"]);
        phase.env = [("PATH", "/mine"), ("A", "b"), ("ESSAIM_JOB", "999"), ("LD_PRELOAD", "/own.so")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        phase.line_buffered = true;
        let command = command(&phase, None).unwrap();
        let expected = [
            ("PATH", "/mine"),
            ("HOME", "/w/7.2.3"),
            ("TMPDIR", "/w/7.2.3.tmp"),
            ("LANG", "C.UTF-8"),
            ("USER", "anna"),
            ("LOGNAME", "anna"),
            ("A", "b"),
            ("LD_PRELOAD", "/lib/libstdbuf.so:/own.so"),
            ("_STDBUF_O", "L"),
            ("ESSAIM_JOB", "7"),
            ("ESSAIM_TASK_ID", "2"),
            ("ESSAIM_ATTEMPT", "3"),
        ];
        for (name, value) in expected {
            assert_eq!(variable(&command, name), Some(value), "{name}");
        }
        assert_eq!(command.env.len(), expected.len());
    }
}
