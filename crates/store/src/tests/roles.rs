//! This test program as a child process with a role: what is killed, limited or has no rights must not be ourselves.
//!
//! The other tests start it. Always true: without a role in its environment, the test `plays_its_role` does nothing.
//! Deliberately not here: what the roles do.

use super::{crash, faults};
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

const ROLE: &str = "ESSAIM_STORE_TEST_ROLE";
const FOLDER: &str = "ESSAIM_STORE_TEST_FOLDER";

/// A command that plays `role` on `folder`, with a pipe for what it prints.
pub(super) fn child(role: &str, folder: &Path) -> Command {
    let program = std::env::current_exe().expect("this program");
    child_of(program.into(), role, folder)
}

/// The same, for a user who may not read where this program is: it is copied into `place` first.
pub(super) fn child_copied_to(place: &Path, role: &str, folder: &Path) -> Command {
    let program = place.join("program");
    if !program.exists() {
        std::fs::copy(std::env::current_exe().expect("this program"), &program).expect("copied");
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("set");
    }
    child_of(program.into(), role, folder)
}

fn child_of(program: OsString, role: &str, folder: &Path) -> Command {
    // A file that grows beyond its limit is an error in the child, not its death: the shell gives this on.
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; exec \"$0\" --exact tests::roles::plays_its_role --nocapture --test-threads=1"]);
    command.arg(program).env(ROLE, role).env(FOLDER, folder).stdout(Stdio::piped());
    command
}

#[test]
fn plays_its_role() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let folder = std::env::var_os(FOLDER).expect("a folder");
    let folder = Path::new(&folder);
    // The name of the test stands in front of what it prints, on the same line.
    println!();
    match role.as_str() {
        "append" => crash::append_until_killed(folder),
        "limited" => faults::append_under_a_limit(folder),
        "open" => faults::open_and_say(folder),
        other => panic!("no such role: {other}"),
    }
}
