//! Files in and out of a room, by the descriptor of its work folder.
//!
//! Called by the worker with the folder that came with `Event::RoomReady`, before, between and after programs.
//!
//! What is always true:
//! - No path of the host, and no link: every name is resolved by the kernel below the descriptor, with symbolic links and
//!   /proc's links refused (`openat2`). What a program has left there can make a call fail, never lead it elsewhere.
//! - A name is relative, of plain components; what is opened is a regular file, asked of the open descriptor; a pipe or
//!   device that lies in its place keeps nobody waiting.
//! - Nothing is written into a file that was there before: it is removed and made anew.
//! - A worker that is root makes and reads files as the room's user: it can do nothing there that the program could not,
//!   and what it puts in is the program's own and counts for its limits.
//! - What comes out is bounded by the caller, whatever size a file says it has.
//!
//! Deliberately not here: folders on the host's disk (`folder`), and trees of processes (`tree`).

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::limits::{FILE_CHUNK_BYTES, LIST_DEPTH_MAX};
use crate::sys::AsUser;

/// The work folder of a room (/box in it).
#[derive(Debug)]
pub struct RoomFolder(OwnedFd);

/// Why a file did not go in or out.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A name that is absolute, empty, or has `.` or `..` in it.
    #[error("{} is no name of a file in a room", name.display())]
    UnfitName {
        /// The name.
        name: PathBuf,
    },
    /// There is a link on the way, or something that is no regular file at its end.
    #[error("{} is no regular file, or lies behind a link", name.display())]
    NoFile {
        /// The name.
        name: PathBuf,
    },
    /// The file is larger than the caller takes.
    #[error("{} is larger than {bytes_max} bytes", name.display())]
    TooLarge {
        /// The name.
        name: PathBuf,
        /// What the caller takes.
        bytes_max: u64,
    },
    /// There are more files than the caller takes.
    #[error("there are more than {files_max} files and folders, or they are too deep")]
    TooMany {
        /// What the caller takes.
        files_max: usize,
    },
    /// The room has no more place: its limit of bytes or of files.
    #[error("the room is full")]
    Full,
    /// The system's, for example that there is no such file.
    #[error("{}", name.display())]
    System {
        /// The name.
        name: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A file that a program has left, as it was seen for a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Relative to the folder.
    pub name: PathBuf,
    /// Its size, bytes.
    pub size_bytes: u64,
    /// Whether it may be executed by its owner.
    pub is_executable: bool,
}

/// How names are resolved.
const BELOW: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

impl RoomFolder {
    /// A folder that was opened in a room.
    pub(crate) fn new(folder: OwnedFd) -> RoomFolder {
        RoomFolder(folder)
    }

    /// The descriptor, to be sent.
    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.0
    }

    /// Puts a file in, with the folders above it, in place of what was there under its name; `mode` as for chmod, of which
    /// the nine bits for who may do what count. Says how many bytes it has.
    ///
    /// # Errors
    /// `UnfitName`; `NoFile`: there is a link or file where a folder should be, or a folder where the file should be; `Full`;
    /// `System`, also what `content` fails with.
    pub fn put(&self, name: &Path, mut content: impl Read, mode: u32) -> Result<u64, TreeError> {
        let error = |error| tree_error(name, error);
        let (above, last) = split(name)?;
        let user = self.as_its_user();
        let mut folder = rustix::io::fcntl_dupfd_cloexec(&self.0, 3).map_err(error)?;
        for part in above.components() {
            folder = match rustix::fs::openat2(&folder, part.as_os_str(), FOLDER, Mode::empty(), BELOW) {
                Err(Errno::NOENT) => {
                    rustix::fs::mkdirat(&folder, part.as_os_str(), Mode::from_raw_mode(0o755)).map_err(error)?;
                    rustix::fs::openat2(&folder, part.as_os_str(), FOLDER, Mode::empty(), BELOW).map_err(error)?
                }
                opened => opened.map_err(error)?,
            };
        }
        match rustix::fs::unlinkat(&folder, last, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(found) => return Err(error(found)),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat2(&folder, last, flags, Mode::RUSR | Mode::WUSR, BELOW).map_err(error)?;
        // Not left to the umask. Before the bytes, and by the descriptor: the name may be something else soon.
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o777)).map_err(error)?;
        // What is read from is none of the room's business.
        drop(user);
        copy(&mut content, &mut File::from(file)).map_err(|source| io_error(name, source))
    }

    /// Opens a file to be read. It may change or grow while it is read if a program runs.
    ///
    /// # Errors
    /// `UnfitName`, `NoFile`, `System`.
    pub fn open(&self, name: &Path) -> Result<File, TreeError> {
        split(name)?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let user = self.as_its_user();
        let file = rustix::fs::openat2(&self.0, name, flags, Mode::empty(), BELOW);
        drop(user);
        let file = file.map_err(|error| tree_error(name, error))?;
        let stat = rustix::fs::fstat(&file).map_err(|error| tree_error(name, error))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(TreeError::NoFile { name: name.to_owned() });
        }
        Ok(File::from(file))
    }

    /// The bytes of a file, at most `bytes_max`.
    ///
    /// # Errors
    /// As `open`; `TooLarge`.
    pub fn get(&self, name: &Path, bytes_max: u64) -> Result<Vec<u8>, TreeError> {
        let file = self.open(name)?;
        let mut bytes = Vec::new();
        let limit = bytes_max.saturating_add(1);
        file.take(limit).read_to_end(&mut bytes).map_err(|source| io_error(name, source))?;
        if u64::try_from(bytes.len()).is_ok_and(|count| count <= bytes_max) {
            return Ok(bytes);
        }
        Err(TreeError::TooLarge { name: name.to_owned(), bytes_max })
    }

    /// All regular files, in the order of their names; links and everything else are passed over, and so is a folder that may
    /// not be read.
    ///
    /// # Errors
    /// `TooMany` beyond `files_max` entries of any kind, or if folders are deeper than anybody needs; `System`.
    pub fn list(&self, files_max: usize) -> Result<Vec<Found>, TreeError> {
        let _user = self.as_its_user();
        let mut listing = Listing { found: Vec::new(), left: files_max, files_max };
        let top = rustix::fs::openat2(&self.0, c".", FOLDER, Mode::empty(), BELOW);
        listing.add(&top.map_err(|error| tree_error(Path::new("."), error))?, Path::new(""), 0)?;
        listing.found.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(listing.found)
    }

    /// Lets this thread act as who owns the folder.
    fn as_its_user(&self) -> Option<AsUser> {
        let own = rustix::process::geteuid();
        let stat = rustix::fs::fstat(&self.0).ok()?;
        (own.is_root() && stat.st_uid != 0).then(|| AsUser::new(stat.st_uid, stat.st_gid))
    }
}

impl AsFd for RoomFolder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl PartialEq for RoomFolder {
    fn eq(&self, other: &RoomFolder) -> bool {
        self.0.as_raw_fd() == other.0.as_raw_fd()
    }
}

/// A walk through a folder.
struct Listing {
    found: Vec<Found>,
    left: usize,
    files_max: usize,
}

impl Listing {
    fn add(&mut self, folder: &OwnedFd, name: &Path, depth: usize) -> Result<(), TreeError> {
        let too_many = TreeError::TooMany { files_max: self.files_max };
        if depth > LIST_DEPTH_MAX {
            return Err(too_many);
        }
        let entries = Dir::read_from(folder).map_err(|error| tree_error(name, error))?;
        for entry in entries {
            let entry = entry.map_err(|error| tree_error(name, error))?;
            if matches!(entry.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            self.left = self.left.checked_sub(1).ok_or(TreeError::TooMany { files_max: self.files_max })?;
            let part: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(entry.file_name().to_bytes());
            let inner = name.join(part);
            // It may have gone meanwhile, or be something else now; only the descriptor and this look tell.
            let Ok(stat) = rustix::fs::statat(folder, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) else { continue };
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => self.found.push(Found {
                    name: inner,
                    size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
                    is_executable: stat.st_mode & 0o100 != 0,
                }),
                FileType::Directory => {
                    let opened = rustix::fs::openat2(folder, entry.file_name(), FOLDER, Mode::empty(), BELOW);
                    let Ok(opened) = opened else { continue };
                    self.add(&opened, &inner, depth + 1)?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// A name as the folders above it and its last part.
fn split(name: &Path) -> Result<(&Path, &std::ffi::OsStr), TreeError> {
    let unfit = || TreeError::UnfitName { name: name.to_owned() };
    // `components` swallows single dots and double slashes; only what it leaves as it is is plain.
    let is_plain = name.components().all(|part| matches!(part, Component::Normal(_)));
    let rejoined: PathBuf = name.components().collect();
    if !is_plain || rejoined.as_os_str() != name.as_os_str() {
        return Err(unfit());
    }
    let last = name.file_name().ok_or_else(unfit)?;
    Ok((name.parent().unwrap_or(Path::new("")), last))
}

fn copy(from: &mut impl Read, to: &mut File) -> io::Result<u64> {
    let (mut buffer, mut copied) = (vec![0; FILE_CHUNK_BYTES], 0_u64);
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(copied),
            Ok(count) => {
                to.write_all(&buffer[..count])?;
                copied = copied.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn tree_error(name: &Path, error: Errno) -> TreeError {
    match error {
        // A link on the way; a device nobody serves; not a folder; a folder; another mount.
        Errno::LOOP | Errno::NXIO | Errno::NOTDIR | Errno::ISDIR | Errno::XDEV | Errno::NODEV => {
            TreeError::NoFile { name: name.to_owned() }
        }
        Errno::NOSPC | Errno::DQUOT => TreeError::Full,
        error => TreeError::System { name: name.to_owned(), source: error.into() },
    }
}

fn io_error(name: &Path, source: io::Error) -> TreeError {
    match Errno::from_io_error(&source) {
        Some(error) => tree_error(name, error),
        None => TreeError::System { name: name.to_owned(), source },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn folder() -> (tempfile::TempDir, RoomFolder) {
        let home = tempfile::tempdir().unwrap();
        let folder = rustix::fs::open(home.path(), FOLDER, Mode::empty()).unwrap();
        (home, RoomFolder::new(folder))
    }

    fn put(folder: &RoomFolder, name: &str, bytes: &[u8]) -> Result<u64, TreeError> {
        folder.put(Path::new(name), bytes, 0o644)
    }

    fn get(folder: &RoomFolder, name: &str) -> Result<Vec<u8>, TreeError> {
        folder.get(Path::new(name), 1000)
    }

    /// Does what goes in come out, with its permissions, in place of what was there?
    #[test]
    fn in_and_out() {
        let (home, folder) = folder();
        assert_eq!(put(&folder, "a/b/c.txt", b"one").unwrap(), 3);
        assert_eq!(folder.put(Path::new("run"), &b"#!"[..], 0o4755).unwrap(), 2);
        put(&folder, "a/b/c.txt", b"two!").unwrap();
        assert_eq!(get(&folder, "a/b/c.txt").unwrap(), b"two!");
        let mode = home.path().join("run").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755, "no setuid");
        let found = |name: &str, size_bytes, is_executable| Found { name: name.into(), size_bytes, is_executable };
        assert_eq!(folder.list(4).unwrap(), [found("a/b/c.txt", 4, false), found("run", 2, true)]);
        assert!(matches!(folder.list(3), Err(TreeError::TooMany { files_max: 3 })));
        assert!(matches!(folder.get(Path::new("run"), 1), Err(TreeError::TooLarge { bytes_max: 1, .. })));
        assert!(matches!(get(&folder, "nothing"), Err(TreeError::System { .. })));
    }

    /// Are names refused that are not plain?
    #[test]
    fn names() {
        let (_home, folder) = folder();
        for name in ["", "/", "/etc/passwd", "..", "../x", "a/../b", ".", "./a", "a//b", "a/", "a/."] {
            assert!(matches!(put(&folder, name, b""), Err(TreeError::UnfitName { .. })), "{name:?}");
            assert!(matches!(get(&folder, name), Err(TreeError::UnfitName { .. })), "{name:?}");
        }
        assert!(matches!(put(&folder, "\0", b""), Err(TreeError::System { .. })));
    }

    /// Do links, pipes and folders lead nowhere, and keep nobody waiting?
    #[test]
    fn traps() {
        let (home, folder) = folder();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "s").unwrap();
        symlink(outside.path(), home.path().join("way")).unwrap();
        symlink(outside.path().join("secret"), home.path().join("file")).unwrap();
        symlink("/proc/self/root", home.path().join("magic")).unwrap();
        std::fs::create_dir(home.path().join("folder")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, home.path().join("pipe"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        for name in ["way/secret", "file", "magic/etc/passwd", "pipe", "folder", "pipe/x"] {
            assert!(matches!(get(&folder, name), Err(TreeError::NoFile { .. })), "{name}");
        }
        for name in ["way/secret", "way/new", "folder", "file/x"] {
            assert!(matches!(put(&folder, name, b"x"), Err(TreeError::NoFile { .. })), "{name}");
        }
        // A link in the place of a file goes, and what it points to stays.
        put(&folder, "file", b"x").unwrap();
        put(&folder, "pipe", b"x").unwrap();
        assert_eq!(std::fs::read(outside.path().join("secret")).unwrap(), b"s");
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
        let names: Vec<PathBuf> = folder.list(100).unwrap().into_iter().map(|found| found.name).collect();
        assert_eq!(names, [Path::new("file"), Path::new("pipe")]);
    }

    /// Does a deep tree cost an error, and not the stack?
    #[test]
    fn deep() {
        let (_home, folder) = folder();
        let deep = ["d/"; LIST_DEPTH_MAX + 2].concat() + "f";
        put(&folder, &deep, b"x").unwrap();
        assert!(matches!(folder.list(1000), Err(TreeError::TooMany { .. })));
        assert_eq!(get(&folder, &deep).unwrap(), b"x");
    }
}
