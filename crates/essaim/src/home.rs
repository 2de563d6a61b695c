//! The data folder: where a hub, its workers and the commands of one user find each other.
//!
//! Asked by every subcommand. `ESSAIM_HOME` names it, otherwise the platform's folder for data. Always true: a folder
//! that we make is for its owner alone (0700); asking where something is makes nothing.
//! Deliberately not here: what stands in the files (`essaim-net`, `essaim-hub`, `essaim-worker`).

use crate::exit::Failure;
use essaim_core::lang::LanguageTable;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The variable that moves the data folder.
pub(crate) const HOME_VARIABLE: &str = "ESSAIM_HOME";

/// The data folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Home {
    path: PathBuf,
    /// Was it named by `ESSAIM_HOME`?
    is_named: bool,
}

impl Home {
    /// The file of the key that the hub makes for the user who started it.
    pub(crate) const ADMIN_KEY: &str = "admin.key";

    /// The folder of the local workers' folders.
    pub(crate) const LOCAL: &str = "local";

    /// The data folder that the environment asks for.
    ///
    /// # Errors
    /// A usage failure when the environment says nothing that could be one.
    pub(crate) fn find() -> Result<Home, Failure> {
        Home::find_in(&|name| std::env::var_os(name).filter(|value| !value.is_empty()))
    }

    fn find_in(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Home, Failure> {
        if let Some(named) = variable(HOME_VARIABLE) {
            // Others are told this path: a child with another current folder must find the same place.
            let path = std::path::absolute(&named)
                .map_err(|error| Failure::usage("bad_home", format!("{HOME_VARIABLE} is no usable path: {error}")))?;
            return Ok(Home { path, is_named: true });
        }
        let absolute = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let path = if cfg!(windows) {
            absolute("LOCALAPPDATA")
        } else if cfg!(target_os = "macos") {
            absolute("HOME").map(|home| home.join("Library/Application Support"))
        } else {
            // A relative XDG path is to be ignored (XDG Base Directory Specification, "Basics").
            absolute("XDG_DATA_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
        };
        let none = "there is no data folder: neither HOME nor ESSAIM_HOME is set; set ESSAIM_HOME to a folder of yours";
        let path = path.ok_or_else(|| Failure::usage("no_home", none))?;
        Ok(Home { path: path.join("essaim"), is_named: false })
    }

    /// This folder, whatever the environment says.
    pub(crate) fn at(path: &Path) -> Home {
        Home { path: path.to_owned(), is_named: true }
    }

    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where its path comes from, for `config show`.
    pub(crate) fn origin(&self) -> &'static str {
        if self.is_named { HOME_VARIABLE } else { "default" }
    }

    /// The settings.
    pub(crate) fn settings_file(&self) -> PathBuf {
        self.path.join("essaim.toml")
    }

    /// The key that the hub makes for the user who started it.
    pub(crate) fn admin_key_file(&self) -> PathBuf {
        self.path.join(Home::ADMIN_KEY)
    }

    /// The languages that the user adds.
    pub(crate) fn languages_file(&self) -> PathBuf {
        self.path.join("languages.toml")
    }

    /// What the hub keeps.
    pub(crate) fn store(&self) -> PathBuf {
        self.path.join("store")
    }

    /// The folder of a worker that joined a hub elsewhere.
    pub(crate) fn worker(&self) -> PathBuf {
        self.path.join("worker")
    }

    /// The folder of the n-th local worker.
    pub(crate) fn local_worker(&self, number: u32) -> PathBuf {
        self.path.join(Home::LOCAL).join(number.to_string())
    }

    /// The built-in languages and those of `languages.toml`.
    ///
    /// # Errors
    /// A usage failure that names the file and the line.
    pub(crate) fn languages(&self) -> Result<LanguageTable, Failure> {
        let path = self.languages_file();
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(LanguageTable::built_in()),
            Err(error) => {
                return Err(Failure::broken("bad_languages", format!("{} cannot be read", path.display()), &error));
            }
        };
        LanguageTable::with_user_entries(&text).map_err(|error| {
            let cause = crate::exit::chain(&error);
            Failure::usage("bad_languages", format!("{}: {}", path.display(), cause.trim_end()))
        })
    }
}

/// Makes a folder for its owner alone, with all that is above it.
///
/// # Errors
/// An internal failure that names the folder.
pub(crate) fn make_private_folder(path: &Path) -> Result<(), Failure> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).map_err(|error| {
        let what = format!("the folder {} cannot be made", path.display());
        Failure::broken("bad_home", what, &error).hint("set ESSAIM_HOME to a folder that you may write to")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(variables: &[(&str, &str)]) -> Result<Home, Failure> {
        Home::find_in(&|name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into()))
    }

    // The order in which the environment is believed.
    #[test]
    fn the_named_folder_comes_first_then_the_platforms() {
        let all = [("ESSAIM_HOME", "/a"), ("XDG_DATA_HOME", "/b"), ("HOME", "/c")];
        assert_eq!(find(&all).unwrap().path(), Path::new("/a"));
        assert_eq!(find(&all).unwrap().origin(), "ESSAIM_HOME");
        if cfg!(target_os = "linux") {
            assert_eq!(find(&all[1..]).unwrap().path(), Path::new("/b/essaim"));
            assert_eq!(find(&all[2..]).unwrap().path(), Path::new("/c/.local/share/essaim"));
            let relative = [("XDG_DATA_HOME", "b"), ("HOME", "/c")];
            assert_eq!(find(&relative).unwrap().path(), Path::new("/c/.local/share/essaim"));
        }
        assert_eq!(find(&[]).unwrap_err().code, "no_home");
    }

    // A relative name is made absolute: local workers start elsewhere.
    #[test]
    fn a_relative_home_becomes_absolute() {
        assert!(find(&[("ESSAIM_HOME", "x")]).unwrap().path().is_absolute());
    }

    // A mistake in the user's languages is told with file and line.
    #[test]
    fn a_mistake_in_languages_is_told_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("languages.toml"), "[tcl]\nruns = []\n").unwrap();
        let failure = Home::at(folder.path()).languages().unwrap_err();
        assert!(failure.message.contains("languages.toml") && failure.message.contains("line 2"), "{failure:?}");
    }
}
