//! `doctor`: what this machine has, what it lacks, and what to do about it.
//!
//! Looks only: nothing is started, nothing is changed but a file that is written to the data folder and removed again.
//! Always true: a line is `ok` or `missing`; only what is needed makes the exit code 1.
//! Deliberately not here: what other machines have (`node list`), trying toolchains out (the worker does).

use super::Context;
use crate::exit::{OK, Outcome, WORK_FAILED};
use crate::link::Link;
use crate::target;
use serde::Serialize;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Below this many open files a hub cannot hold a hundred nodes with their programs.
const OPEN_FILES_MIN: u64 = 1_024;

/// Where systems keep the library that makes C programs write line by line.
const STDBUF_FOLDERS: [&str; 4] =
    ["/usr/libexec/coreutils", "/usr/lib/coreutils", "/usr/lib64/coreutils", "/usr/local/libexec/coreutils"];

/// One finding.
#[derive(Debug, Serialize)]
struct Finding {
    what: String,
    /// `ok` or `missing`.
    state: &'static str,
    /// Does essaim work badly without it?
    needed: bool,
    /// What was found, or what to do.
    detail: String,
}

impl Finding {
    fn ok(what: impl Into<String>, detail: impl Into<String>) -> Finding {
        Finding { what: what.into(), state: "ok", needed: false, detail: detail.into() }
    }

    fn missing(what: impl Into<String>, detail: impl Into<String>) -> Finding {
        Finding { what: what.into(), state: "missing", needed: false, detail: detail.into() }
    }

    fn unknown(what: impl Into<String>, detail: impl Into<String>) -> Finding {
        Finding { what: what.into(), state: "unknown", needed: false, detail: detail.into() }
    }

    fn needed(self) -> Finding {
        Finding { needed: true, ..self }
    }
}

pub(super) async fn run(context: &Context) -> Outcome {
    let mut findings = vec![home(context.home.path())];
    findings.push(hub(context).await);
    findings.extend(toolchains(context)?);
    findings.push(stdbuf());
    findings.push(open_files());
    findings.extend(walls());
    let is_bad = findings.iter().any(|finding| finding.needed && finding.state == "missing");
    if context.printer.is_json() {
        context.printer.json(&findings)?;
    } else {
        let row = |finding: &Finding| vec![finding.state.to_owned(), finding.what.clone(), finding.detail.clone()];
        let rows: Vec<Vec<String>> = findings.iter().map(row).collect();
        context.printer.whole_table(&["STATE", "WHAT", "DETAIL"], &rows)?;
    }
    Ok(if is_bad { WORK_FAILED } else { OK })
}

/// Can the data folder be written to?
fn home(path: &Path) -> Finding {
    let what = "data folder";
    // Asking makes nothing: a folder that is not there yet must be makable where its first existing parent is.
    let existing = path.ancestors().find(|parent| parent.is_dir()).unwrap_or(Path::new("/"));
    match tempfile::Builder::new().prefix(".essaim-doctor-").tempfile_in(existing) {
        Ok(_) => Finding::ok(what, path.display().to_string()),
        Err(error) => {
            let detail = format!("{} cannot be written: {error}; set ESSAIM_HOME to a folder of yours", path.display());
            Finding::missing(what, detail).needed()
        }
    }
}

/// Does the hub that a command would use answer? None at all is fine: `run` brings its own.
async fn hub(context: &Context) -> Finding {
    let what = "hub";
    let found = match target::find(&context.home, &context.settings) {
        Ok(None) => return Finding::ok(what, "none runs here and none is named; `essaim run` uses one of its own"),
        Ok(Some(target)) => Link::open(target, &context.settings, context.printer).await,
        Err(failure) => Err(failure),
    };
    match found {
        Ok(link) => {
            let client = link.client();
            let address = client.peer_addr().map(|address| address.to_string()).unwrap_or_default();
            let welcome = client.welcome();
            let detail = format!("{} at {address}, as {} ({})", welcome.hub, welcome.you, welcome.role.name());
            link.close().await;
            Finding::ok(what, detail)
        }
        Err(failure) => Finding::missing(what, failure.message).needed(),
    }
}

/// The languages whose programs are all on the PATH. One language is enough to be of use.
fn toolchains(context: &Context) -> Result<Vec<Finding>, crate::exit::Failure> {
    let table = context.home.languages()?;
    let mut findings = Vec::new();
    for probe in table.probes() {
        let what = format!("language {}", probe.lang);
        let tools = probe.probes.iter().filter_map(|argv| argv.first());
        let (found, lacking): (Vec<_>, Vec<_>) =
            tools.map(|tool| (tool, on_path(tool))).partition(|(_, path)| path.is_some());
        if lacking.is_empty() {
            let paths = found.into_iter().filter_map(|(_, path)| Some(path?.display().to_string()));
            findings.push(Finding::ok(what, paths.collect::<Vec<_>>().join(", ")));
        } else {
            let names: Vec<&str> = lacking.into_iter().map(|(tool, _)| tool.as_str()).collect();
            findings.push(Finding::missing(what, format!("install {} to run such programs here", names.join(", "))));
        }
    }
    if findings.iter().all(|finding| finding.state == "missing") {
        findings.push(Finding::missing("any language", "this machine can only run commands that it has").needed());
    }
    Ok(findings)
}

fn on_path(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    find_in(tool, &path)
}

fn find_in(tool: &str, path: &OsStr) -> Option<PathBuf> {
    let is_program = |file: &PathBuf| {
        let meta = file.metadata();
        meta.is_ok_and(|meta| {
            meta.is_file() && std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o111 != 0
        })
    };
    std::env::split_paths(path).map(|folder| folder.join(tool)).find(is_program)
}

fn stdbuf() -> Finding {
    let what = "live output of C";
    let multiarch = format!("/usr/lib/{}-linux-gnu/coreutils", std::env::consts::ARCH);
    let folders = STDBUF_FOLDERS.into_iter().chain([multiarch.as_str()]);
    match folders.map(|folder| Path::new(folder).join("libstdbuf.so")).find(|library| library.exists()) {
        Some(library) => Finding::ok(what, library.display().to_string()),
        None => {
            Finding::missing(what, "libstdbuf.so is not there: C programs are seen when they flush; install coreutils")
        }
    }
}

fn open_files() -> Finding {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let what = "open files";
    if limit >= OPEN_FILES_MIN {
        return Finding::ok(what, format!("{limit} may be open at once"));
    }
    Finding::missing(what, format!("only {limit} may be open at once; raise the hard limit (ulimit -Hn)")).needed()
}

/// What the kernel offers to keep programs apart. None of it is needed to run them.
fn walls() -> Vec<Finding> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let mut findings = Vec::new();
    let namespaces = read("/proc/sys/user/max_user_namespaces");
    let is_off = read("/proc/sys/kernel/unprivileged_userns_clone").trim() == "0"
        || read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").trim() == "1";
    let is_root = rustix::process::geteuid().is_root();
    findings.push(match namespaces.trim().parse::<u64>() {
        Ok(count) if count > 0 && (is_root || !is_off) => Finding::ok("user namespaces", format!("up to {count}")),
        Ok(_) => Finding::missing(
            "user namespaces",
            "switched off on this machine (sysctl); an administrator may allow them",
        ),
        Err(_) => Finding::missing("user namespaces", "this kernel has none"),
    });
    findings.push(if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        Finding::ok("control groups", format!("v2: {}", read("/sys/fs/cgroup/cgroup.controllers").trim()))
    } else if Path::new("/sys/fs/cgroup/memory").exists() {
        Finding::ok("control groups", "v1")
    } else {
        Finding::missing("control groups", "not mounted; limits are kept by other means")
    });
    let modules = read("/sys/kernel/security/lsm");
    findings.push(if modules.split(',').any(|module| module.trim() == "landlock") {
        Finding::ok("Landlock", "on")
    } else if modules.is_empty() {
        Finding::unknown("Landlock", "cannot be seen here (securityfs is not mounted)")
    } else {
        Finding::missing("Landlock", "not among this kernel's security modules; a newer kernel has it (lsm=landlock,…)")
    });
    findings.push(if read("/proc/self/status").contains("\nSeccomp:") {
        Finding::ok("seccomp", "on")
    } else {
        Finding::missing("seccomp", "this kernel was built without it")
    });
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    // Only an executable file counts, and the first folder of the path wins.
    #[test]
    fn programs_are_found_on_the_path() {
        use std::os::unix::fs::PermissionsExt;
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (folder, mode) in [(&first, 0o644), (&second, 0o755)] {
            let file = folder.path().join("tool");
            std::fs::write(&file, "").unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let path = std::env::join_paths([first.path(), second.path()]).unwrap();
        assert_eq!(find_in("tool", &path), Some(second.path().join("tool")));
        assert_eq!(find_in("other", &path), None);
    }

    // A data folder that does not exist yet is fine where it could be made, and is not made by looking.
    #[test]
    fn looking_at_the_data_folder_makes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let home_path = folder.path().join("a/b");
        assert_eq!(home(&home_path).state, "ok");
        assert!(!home_path.exists());
    }
}
