//! The worker's folder: one worker at a time, its machine's id, and the place for work folders.
//!
//! `run` opens it first and holds it to the end; `up` asks [`holder`] before it starts a worker. Always true: whoever holds a [`Home`] holds the lock, so what lies in
//! `work` when it is opened was left by a dead worker and is removed.
//! Deliberately not here: the identity (`join`), what is inside one work folder (`folder`).

use crate::error::RunError;
use crate::limits::{LOCK_PAUSE, LOCK_TRIES};
use essaim_net::private_file::{read_private, write_private};
use essaim_net::ticket::random;
use essaim_proto::MachineId;
use essaim_sandbox::remove_tree;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Holds the process id of the worker that runs here; locked as long as it lives.
const LOCK_FILE: &str = "worker.lock";

/// The machine's id, in hexadecimal.
const MACHINE_FILE: &str = "machine-id";

/// An open worker's folder. Dropping it lets another worker in.
#[derive(Debug)]
pub(crate) struct Home {
    /// The folder itself, absolute.
    pub(crate) folder: PathBuf,
    /// Where work folders are made; empty when the worker starts.
    pub(crate) work: PathBuf,
    /// The same for work folders that serve more than one attempt.
    pub(crate) rooms: PathBuf,
    /// Stays with the folder.
    pub(crate) machine: MachineId,
    lock: File,
}

impl Home {
    /// Opens `folder`, made now (0700) if it is not there. Blocks on the disk.
    ///
    /// # Errors
    /// [`RunError::HomeTaken`] when a worker runs there, [`RunError::Home`] when it cannot be used.
    pub(crate) fn open(folder: &Path) -> Result<Home, RunError> {
        let failed = |what: &'static str| {
            let folder = folder.to_owned();
            move |source| RunError::Home { folder, what, source }
        };
        make_private_folder(folder).map_err(failed("made"))?;
        let folder = std::fs::canonicalize(folder).map_err(failed("found"))?;
        let lock = lock(&folder)?;
        let (work, rooms) = (folder.join("work"), folder.join("rooms"));
        for folder in [&work, &rooms] {
            if let Err(error) = remove_tree(folder) {
                // What is left does not disturb: every attempt begins with a folder of its own.
                tracing::warn!(folder = %folder.display(), %error, "old work folders cannot be removed");
            }
            make_private_folder(folder).map_err(failed("filled"))?;
        }
        let machine = machine_id(&folder)?;
        Ok(Home { folder, work, rooms, machine, lock })
    }
}

impl Drop for Home {
    // Closing would not do: a process that was forked a moment ago has a copy of the descriptor until it calls exec.
    fn drop(&mut self) {
        // What fails here is given back with the last copy.
        let _ = rustix::fs::flock(&self.lock, FlockOperation::Unlock);
    }
}

/// The process of the worker that holds `folder`, if one does: it lives, or its last breath is not over yet.
pub fn holder(folder: &Path) -> Option<u32> {
    let file = File::open(folder.join(LOCK_FILE)).ok()?;
    // Shared, and given back at once: whoever wants the folder in this moment tries again.
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(Errno::WOULDBLOCK) => read_pid(file),
        _ => None,
    }
}

/// The holder may be about to write it: then nobody knows.
fn read_pid(lock: File) -> Option<u32> {
    let mut pid = String::new();
    let _ = lock.take(20).read_to_string(&mut pid);
    pid.trim().parse().ok()
}

fn make_private_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

fn lock(folder: &Path) -> Result<File, RunError> {
    let failed = |source| RunError::Home { folder: folder.to_owned(), what: "locked", source };
    let path = folder.join(LOCK_FILE);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(&path).map_err(failed)?;
    if let Err(error) = lock_patiently(&file) {
        if error != Errno::WOULDBLOCK {
            return Err(failed(error.into()));
        }
        return Err(RunError::HomeTaken { folder: folder.to_owned(), pid: read_pid(file).unwrap_or(0) });
    }
    file.set_len(0).and_then(|()| file.rewind()).map_err(failed)?;
    writeln!(file, "{}", std::process::id()).map_err(failed)?;
    Ok(file)
}

/// A process that was forked a moment ago holds a copy of each lock until it calls exec, also of a worker that is gone.
fn lock_patiently(file: &File) -> Result<(), Errno> {
    let mut tries = 1;
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if tries < LOCK_TRIES => {
                tries += 1;
                std::thread::sleep(LOCK_PAUSE);
            }
            locked => return locked,
        }
    }
}

fn machine_id(folder: &Path) -> Result<MachineId, RunError> {
    let path = folder.join(MACHINE_FILE);
    let failed = |source| RunError::HomeFile { source };
    let text = read_private(&path).map_err(failed)?;
    let known = text.and_then(|bytes| std::str::from_utf8(&bytes).ok()?.trim().parse().ok());
    if let Some(known) = known {
        return Ok(known);
    }
    let fresh = MachineId(random());
    write_private(&path, fresh.to_string().as_bytes()).map_err(failed)?;
    Ok(fresh)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Can a second worker get in, is it told by whom the folder is held, and is an old work folder gone?
    #[test]
    fn one_worker_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::open(folder.path()).unwrap();
        std::fs::create_dir_all(home.work.join("1.1.1/sub")).unwrap();
        std::fs::create_dir_all(home.rooms.join("1/sub")).unwrap();
        match Home::open(folder.path()) {
            Err(RunError::HomeTaken { pid, .. }) => assert_eq!(pid, std::process::id()),
            other => panic!("{other:?}"),
        }
        assert!(home.work.join("1.1.1").exists(), "the second one touches nothing");
        assert_eq!(holder(folder.path()), Some(std::process::id()));
        let machine = home.machine;
        drop(home);
        assert_eq!((holder(folder.path()), holder(&folder.path().join("no"))), (None, None));
        let home = Home::open(folder.path()).unwrap();
        assert_eq!(home.machine, machine);
        assert_eq!(std::fs::read_dir(&home.work).unwrap().count() + std::fs::read_dir(&home.rooms).unwrap().count(), 0);
    }
}
