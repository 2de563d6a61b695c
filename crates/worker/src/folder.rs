//! Work folders: made fresh, filled, removed.
//!
//! An attempt makes one, `fetch` fills in what does not travel inline; attempts without files get a [`Room`], which the
//! next one gets too if it is as new. Always true: a folder is new when an attempt gets it, or proved to be as if it
//! were; every step goes from an open directory to one name in it, links are never followed, and an existing name is
//! never overwritten; nothing is written after a program has run there.
//! Deliberately not here: where the bytes come from, and who removes what a dead worker left (the cage, `home`).

use crate::limits::{CLEAN_PAUSE, CLEAN_TRIES, SETTLED};
use essaim_proto::AttemptId;
use essaim_proto::job::FileSpec;
use essaim_sandbox::remove_tree;
use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The places of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Places {
    /// Where the program runs, with its files.
    pub(crate) folder: PathBuf,
    /// What it finds as TMPDIR. Beside the folder, so that a program that lists its files sees its own only.
    pub(crate) tmp: PathBuf,
}

impl Places {
    /// Those of `attempt` below `work`.
    pub(crate) fn of(work: &Path, attempt: AttemptId) -> Places {
        let name = format!("{}.{}.{}", attempt.job, attempt.task, attempt.attempt);
        Places { tmp: work.join(format!("{name}.tmp")), folder: work.join(name) }
    }

    /// Those of room `number` below `rooms`.
    pub(crate) fn of_room(rooms: &Path, number: u64) -> Places {
        Places { tmp: rooms.join(format!("{number}.tmp")), folder: rooms.join(number.to_string()) }
    }

    /// Makes both, empty, for this user only; gives the open folder. Blocks on the disk.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn make(&self) -> io::Result<Folder> {
        for path in [&self.folder, &self.tmp] {
            remove_tree(path)?;
            rustix::fs::mkdir(path, Mode::RWXU)?;
        }
        Ok(Folder(rustix::fs::open(&self.folder, DIRECTORY, Mode::empty())?))
    }

    /// Removes both with all that is in them; their programs are dead, or dying. Blocks on the disk.
    ///
    /// # Errors
    /// The first that could not be removed.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let removed = [&self.folder, &self.tmp].map(|path| remove_patiently(path));
        removed.into_iter().collect()
    }
}

/// Removes a folder in which someone may still write: the tree of a killed cage, or our own task that was given up half-way.
/// Blocks on the disk.
///
/// # Errors
/// The first entry that could not be removed.
pub(crate) fn remove_patiently(path: &Path) -> io::Result<()> {
    let mut tries = 1;
    loop {
        match remove_tree(path) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty && tries < CLEAN_TRIES => {
                tries += 1;
                std::thread::sleep(CLEAN_PAUSE);
            }
            removed => return removed,
        }
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// An open work folder.
#[derive(Debug)]
pub(crate) struct Folder(OwnedFd);

impl Folder {
    /// Writes the files that travelled inline. Blocks on the disk.
    ///
    /// # Errors
    /// The path that could not be written, and the system's answer.
    pub(crate) fn write_inline(&self, files: &[FileSpec]) -> Result<(), (String, io::Error)> {
        for file in files {
            let Some(bytes) = &file.inline else { continue };
            let written = self.create(&file.path, file.executable).and_then(|mut to| to.write_all(bytes));
            written.map_err(|error| (file.path.clone(), error))?;
        }
        Ok(())
    }

    /// Makes a file that is not there yet, with the folders above it. Blocks on the disk.
    ///
    /// # Errors
    /// `InvalidInput` for a path that is not plain and relative (the hub has checked it; this does not depend on it),
    /// otherwise the system's.
    pub(crate) fn create(&self, path: &str, executable: bool) -> io::Result<File> {
        let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
        if !path.split('/').all(plain) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut above: Option<OwnedFd> = None;
        let mut rest = path;
        while let Some((part, below)) = rest.split_once('/') {
            let at = above.as_ref().unwrap_or(&self.0);
            match rustix::fs::mkdirat(at, part, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            above = Some(rustix::fs::openat(at, part, DIRECTORY, Mode::empty())?);
            rest = below;
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(if executable { 0o755 } else { 0o644 });
        let file = rustix::fs::openat(above.as_ref().unwrap_or(&self.0), rest, flags, mode)?;
        // The worker's own umask is nobody's business.
        rustix::fs::fchmod(&file, mode)?;
        Ok(file.into())
    }
}

/// Both folders of attempts that bring no files. A program that leaves them as it found them leaves them to the next.
#[derive(Debug)]
pub(crate) struct Room {
    places: Places,
    /// In the order of `places`.
    folders: [(OwnedFd, Stamp); 2],
    /// When the program of now began to be possible.
    taken: Duration,
}

/// What a folder says of itself. The time of the last change is of anything: entries, name, mode, owner, attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    changed: Duration,
    mode: u32,
    device: u64,
    inode: u64,
}

impl Stamp {
    fn new(stat: &rustix::fs::Stat) -> Stamp {
        let seconds = u64::try_from(stat.st_ctime).unwrap_or(0);
        let nanos = u32::try_from(stat.st_ctime_nsec).unwrap_or(0);
        Stamp { changed: Duration::new(seconds, nanos), mode: stat.st_mode, device: stat.st_dev, inode: stat.st_ino }
    }
}

impl Room {
    /// Makes both folders, empty, for this user only. Blocks on the disk.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn make(rooms: &Path, number: u64) -> io::Result<Room> {
        let places = Places::of_room(rooms, number);
        let Folder(folder) = places.make()?;
        let tmp = rustix::fs::open(&places.tmp, DIRECTORY, Mode::empty())?;
        let stamped = |fd: OwnedFd| rustix::fs::fstat(&fd).map(|stat| (fd, Stamp::new(&stat)));
        Ok(Room { folders: [stamped(folder)?, stamped(tmp)?], places, taken: now() })
    }

    /// Where they are.
    pub(crate) fn places(&self) -> &Places {
        &self.places
    }

    /// An attempt gets it.
    pub(crate) fn take(&mut self) {
        self.taken = now();
    }

    /// Is it as new, now that the program is dead? Fast enough for who must not wait: it asks for what is in memory.
    pub(crate) fn is_as_new(&self) -> bool {
        let paths = [&self.places.folder, &self.places.tmp];
        self.folders.iter().zip(paths).all(|((fd, before), path)| {
            let Ok(stat) = rustix::fs::fstat(fd) else { return false };
            let is_same = Stamp::new(&stat) == *before;
            // A change that comes very soon after the one before may have the same time: then it must be looked for.
            let is_settled = self.taken >= before.changed + SETTLED;
            is_same && (is_settled || is_empty_and_there(fd, *before, path))
        })
    }
}

fn is_empty_and_there(fd: &OwnedFd, before: Stamp, path: &Path) -> bool {
    let stat = rustix::fs::statat(rustix::fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW);
    let is_there = stat.is_ok_and(|stat| Stamp::new(&stat) == before);
    let mut entries = Dir::read_from(fd.as_fd()).into_iter().flatten();
    is_there && entries.all(|entry| entry.is_ok_and(|entry| matches!(entry.file_name().to_bytes(), b"." | b"..")))
}

/// The clock of files.
fn now() -> Duration {
    // Before 1970 every folder is from the future, and nothing is settled.
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use essaim_proto::{JobId, TaskId};
    use serde_bytes::ByteBuf;
    use std::os::unix::fs::PermissionsExt;

    fn file(path: &str, executable: bool) -> FileSpec {
        FileSpec { path: path.into(), inline: Some(ByteBuf::from("x")), executable, ..FileSpec::default() }
    }

    fn places(work: &Path) -> Places {
        Places::of(work, AttemptId { job: JobId(1), task: TaskId(2), attempt: 3 })
    }

    // Is a folder fresh, private, filled as told, and gone at the end?
    #[test]
    fn a_work_folder_lives_once() {
        let work = tempfile::tempdir().unwrap();
        let places = places(work.path());
        std::fs::create_dir_all(places.folder.join("old")).unwrap();
        let folder = places.make().unwrap();
        folder.write_inline(&[file("a/b/c.sh", true), file("a/d.txt", false), file("e", false)]).unwrap();
        let mode = |path: &str| places.folder.join(path).metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("."), mode("a/b/c.sh"), mode("a/d.txt")), (0o700, 0o755, 0o644));
        assert!(!places.folder.join("old").exists() && places.tmp.is_dir());
        let (path, error) = folder.write_inline(&[file("e", false)]).unwrap_err();
        assert_eq!((path.as_str(), error.kind()), ("e", io::ErrorKind::AlreadyExists));
        places.remove().unwrap();
        assert_eq!(std::fs::read_dir(work.path()).unwrap().count(), 0);
        places.remove().unwrap();
    }

    // Is a room that was left as it was told from one where anything was done, at once and after a while?
    #[test]
    fn a_room_is_as_new_or_not() {
        let rooms = tempfile::tempdir().unwrap();
        let mut number = 0;
        let mut check = |is_old: bool, expected: bool, change: &dyn Fn(&Places)| {
            number += 1;
            let mut room = Room::make(rooms.path(), number).unwrap();
            if is_old {
                // As if the folders had been made long before they were taken.
                room.taken += 2 * SETTLED;
                // The clock that stamps files goes in ticks of some milliseconds and tells nobody.
                std::thread::sleep(Duration::from_millis(20)); // poll: until the next tick
            }
            change(room.places());
            assert_eq!(room.is_as_new(), expected, "change {number}");
        };
        for is_old in [false, true] {
            check(is_old, true, &|_| {});
            check(is_old, true, &|places| assert_eq!(std::fs::read_dir(&places.folder).unwrap().count(), 0));
            check(is_old, false, &|places| std::fs::write(places.folder.join("x"), "").unwrap());
            check(is_old, false, &|places| std::fs::create_dir(places.tmp.join("x")).unwrap());
            check(is_old, false, &|places| {
                std::fs::set_permissions(&places.tmp, std::fs::Permissions::from_mode(0o777)).unwrap();
            });
            check(is_old, false, &|places| std::fs::remove_dir(&places.folder).unwrap());
            check(is_old, false, &|places| {
                std::fs::remove_dir(&places.folder).unwrap();
                std::fs::create_dir(&places.folder).unwrap();
            });
            check(is_old, false, &|places| std::fs::rename(&places.tmp, rooms.path().join("elsewhere")).unwrap());
            let _ = std::fs::remove_dir(rooms.path().join("elsewhere"));
        }
        check(true, false, &|places| {
            std::fs::write(places.folder.join("x"), "").unwrap();
            std::fs::remove_file(places.folder.join("x")).unwrap();
        });
    }

    // Can a path or a link lead out of the folder?
    #[test]
    fn nothing_leads_out() {
        let work = tempfile::tempdir().unwrap();
        let places = places(work.path());
        let folder = places.make().unwrap();
        std::os::unix::fs::symlink(work.path(), places.folder.join("link")).unwrap();
        for path in ["../x", "/x", "a//x", "", ".", "a/../../x", "link/x", "link"] {
            assert!(folder.create(path, false).is_err(), "{path}");
        }
        assert_eq!(std::fs::read_dir(work.path()).unwrap().count(), 2);
        places.remove().unwrap();
        assert!(folder.create("late", false).is_err(), "what comes after the end finds no folder");
    }
}
