//! What /proc says about processes, parsed and nothing more.
//!
//! Used by `tree` (who is whose child) and `meter` (what they use, what they wait for). Reads through a directory
//! opened when the cage started, so that a mount over /proc does not blind us.
//!
//! What is always true: a process that is gone, or a file that cannot be read, gives `None` or an empty list, never an
//! error; every caller must live with a process that ends between two reads anyway.
//!
//! Deliberately not here: decisions. The one thing written is who the users of a new namespace are (`room`). A number read here may belong to someone else a moment
//! later. What makes it safe to act on one is written in `tree`.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

/// A process or thread number as /proc prints it.
pub(crate) type RawPid = i32;

/// The fields of `/proc/PID/stat` that we use. Times in clock ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    /// It is dead and only waits to be reaped. A process whose first thread ended while others go on looks like a
    /// zombie too, but lives; its count of threads tells.
    pub(crate) is_zombie: bool,
    pub(crate) parent: RawPid,
    /// User and system time of its own, of living and ended threads.
    pub(crate) own_ticks: u64,
    /// The same of children that it waited for.
    pub(crate) reaped_ticks: u64,
    pub(crate) threads: u64,
}

/// The fields of `/proc/PID/statm` that we use, in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) resident_pages: u64,
    /// The part of it that is backed by files or shared memory.
    pub(crate) shared_pages: u64,
}

/// A file as the kernel knows it: device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileId {
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

impl FileId {
    /// The identity of an open pipe or socket; `None` for anything else, since only these make a reader wait for us.
    pub(crate) fn of_stream(fd: BorrowedFd<'_>) -> Option<FileId> {
        let stat = rustix::fs::fstat(fd).ok()?;
        let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
        matches!(kind, rustix::fs::FileType::Fifo | rustix::fs::FileType::Socket)
            .then_some(FileId { device: stat.st_dev, inode: stat.st_ino })
    }
}

/// An open /proc.
pub(crate) struct Proc {
    dir: OwnedFd,
}

impl Proc {
    /// Opens /proc.
    ///
    /// # Errors
    /// It is not mounted, or no file descriptor is left.
    pub(crate) fn open() -> io::Result<Proc> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Proc { dir: rustix::fs::open("/proc", flags, Mode::empty())? })
    }

    /// Children of a process, over all its threads. A list read while the process runs may miss some; see `tree`.
    pub(crate) fn children(&self, pid: RawPid) -> Vec<RawPid> {
        let mut children = Vec::new();
        for thread in self.threads(pid, usize::MAX) {
            self.children_of_thread(pid, thread, &mut children);
        }
        children
    }

    /// Adds the children that one thread has made or adopted.
    pub(crate) fn children_of_thread(&self, pid: RawPid, thread: RawPid, children: &mut Vec<RawPid>) {
        let list = self.read(format_args!("{pid}/task/{thread}/children"));
        let text = list.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
        children.extend(text.split_ascii_whitespace().filter_map(|word| word.parse::<RawPid>().ok()));
    }

    /// At most `count_max` threads of a process.
    pub(crate) fn threads(&self, pid: RawPid, count_max: usize) -> Vec<RawPid> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut name = [0; NAME_BYTES];
        let Some(name) = write_name(&mut name, format_args!("{pid}/task")) else { return Vec::new() };
        let Ok(dir) = rustix::fs::openat(&self.dir, name, flags, Mode::empty()) else { return Vec::new() };
        let Ok(dir) = rustix::fs::Dir::new(dir) else { return Vec::new() };
        let names = dir.filter_map(Result::ok);
        names.filter_map(|entry| entry.file_name().to_str().ok()?.parse().ok()).take(count_max).collect()
    }

    /// What `/proc/PID/stat` says.
    pub(crate) fn stat(&self, pid: RawPid) -> Option<Stat> {
        parse_stat(&self.read(format_args!("{pid}/stat"))?)
    }

    /// What `/proc/PID/statm` says.
    pub(crate) fn memory(&self, pid: RawPid) -> Option<Memory> {
        let bytes = self.read(format_args!("{pid}/statm"))?;
        let mut words = std::str::from_utf8(&bytes).ok()?.split_ascii_whitespace().skip(1);
        Some(Memory { resident_pages: words.next()?.parse().ok()?, shared_pages: words.next()?.parse().ok()? })
    }

    /// Whether a thread is blocked in read(2) or readv(2) of its file descriptor 0. False if we may not know.
    pub(crate) fn reads_stdin(&self, pid: RawPid, thread: RawPid) -> bool {
        self.read(format_args!("{pid}/task/{thread}/syscall")).is_some_and(|line| is_read_of_stdin(&line))
    }

    /// The file behind a process's file descriptor 0.
    pub(crate) fn stdin(&self, pid: RawPid) -> Option<FileId> {
        let mut name = [0; NAME_BYTES];
        let name = write_name(&mut name, format_args!("{pid}/fd/0"))?;
        let stat = rustix::fs::statat(&self.dir, name, AtFlags::empty()).ok()?;
        Some(FileId { device: stat.st_dev, inode: stat.st_ino })
    }

    /// Writes a whole file of a process.
    ///
    /// # Errors
    /// The system's: EPERM, EACCES, EINVAL.
    pub(crate) fn write(&self, pid: RawPid, name: &str, text: &str) -> Result<(), Errno> {
        let mut path = [0; NAME_BYTES];
        let path = write_name(&mut path, format_args!("{pid}/{name}")).ok_or(Errno::NAMETOOLONG)?;
        let file = rustix::fs::openat(&self.dir, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::write(file, text.as_bytes()).map(drop)
    }

    fn read(&self, path: std::fmt::Arguments<'_>) -> Option<Vec<u8>> {
        let mut name = [0; NAME_BYTES];
        let name = write_name(&mut name, path)?;
        let file = rustix::fs::openat(&self.dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let mut bytes = vec![0; 1024];
        let mut filled = 0;
        loop {
            match rustix::io::read(&file, &mut bytes[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(Errno::INTR) => continue,
                Err(_) => return None,
            }
            if filled == bytes.len() {
                bytes.resize(2 * filled, 0);
            }
        }
        bytes.truncate(filled);
        Some(bytes)
    }
}

impl AsFd for Proc {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

/// Room for the longest path below /proc that is asked for, two numbers of ten digits included.
const NAME_BYTES: usize = 64;

fn write_name<'a>(buffer: &'a mut [u8; NAME_BYTES], name: std::fmt::Arguments<'_>) -> Option<&'a str> {
    let mut rest = &mut buffer[..];
    rest.write_fmt(name).ok()?;
    let used = NAME_BYTES - rest.len();
    std::str::from_utf8(&buffer[..used]).ok()
}

fn parse_stat(bytes: &[u8]) -> Option<Stat> {
    // The second field is the program's own name in parentheses and may hold anything, so we count from the last one.
    let end = bytes.iter().rposition(|byte| *byte == b')')?;
    let fields: Vec<&str> = std::str::from_utf8(&bytes[end + 1..]).ok()?.split_ascii_whitespace().collect();
    // `man 5 proc` numbers the fields from 1; the first one here is its third.
    let number = |field: usize| fields.get(field - 3)?.parse::<i64>().ok();
    let ticks = |field: usize| Some(u64::try_from(number(field)?).unwrap_or(0));
    let threads = ticks(20)?;
    Some(Stat {
        is_zombie: matches!(*fields.first()?, "Z" | "X") && threads <= 1,
        parent: RawPid::try_from(number(4)?).ok()?,
        own_ticks: ticks(14)?.saturating_add(ticks(15)?),
        reaped_ticks: ticks(16)?.saturating_add(ticks(17)?),
        threads,
    })
}

/// Numbers of read and readv. On another machine than these we never say that a program waits.
#[cfg(target_arch = "x86_64")]
const READ_CALLS: [&str; 2] = ["0", "19"];
#[cfg(target_arch = "aarch64")]
const READ_CALLS: [&str; 2] = ["63", "65"];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const READ_CALLS: [&str; 0] = [];

/// A line of `/proc/PID/task/TID/syscall`: the call's number and its arguments, or "running".
fn is_read_of_stdin(line: &[u8]) -> bool {
    let Ok(line) = std::str::from_utf8(line) else { return false };
    let mut words = line.split_ascii_whitespace();
    words.next().is_some_and(|call| READ_CALLS.contains(&call)) && words.next() == Some("0x0")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Are the fields found behind a name made to mislead?
    #[test]
    fn stat_with_a_hostile_name() {
        let line = b"12 (a) Z 1 (b) S 7 12 12 0 -1 4194304 100 0 0 0 11 22 33 44 20 0 3 0 5 6 7\n";
        let stat = parse_stat(line).unwrap();
        assert_eq!(stat, Stat { is_zombie: false, parent: 7, own_ticks: 33, reaped_ticks: 77, threads: 3 });
    }

    /// Is a process whose first thread ended, but not its second, told from a dead one?
    #[test]
    fn zombie_leader_lives() {
        let line = |threads: &str| format!("9 (x) Z 7 9 9 0 -1 0 0 0 0 0 0 0 0 0 20 0 {threads} 0 5 6 7\n");
        assert!(parse_stat(line("1").as_bytes()).unwrap().is_zombie);
        assert!(!parse_stat(line("2").as_bytes()).unwrap().is_zombie);
    }

    /// Is what is no stat line refused instead of misread?
    #[test]
    fn garbage_is_no_stat() {
        for garbage in [&b""[..], b")", b"1 (x)", b"1 (x) S", b"1 (x) S y", b"\xff (\xff) \xff"] {
            assert_eq!(parse_stat(garbage), None);
        }
    }

    /// Which lines mean "blocked in a read of stdin"?
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn reads() {
        for (line, expected) in [
            ("0 0x0 0x7ffe 0x400 0x0 0x0 0x0 0x7ffe 0x7f00\n", true),
            ("19 0x0 0x7ffe 0x2 0x0 0x0 0x0 0x7ffe 0x7f00\n", true),
            ("0 0x3 0x7ffe 0x400 0x0 0x0 0x0 0x7ffe 0x7f00\n", false),
            ("1 0x0 0x7ffe 0x400 0x0 0x0 0x0 0x7ffe 0x7f00\n", false),
            ("running\n", false),
            ("-1 0x7ffe 0x7f00\n", false),
            ("", false),
        ] {
            assert_eq!(is_read_of_stdin(line.as_bytes()), expected, "{line}");
        }
    }

    /// Do the readers work on a process that surely exists, and stay quiet on one that cannot?
    #[test]
    fn own_process() {
        let proc = Proc::open().unwrap();
        let own = rustix::process::getpid().as_raw_pid();
        let stat = proc.stat(own).unwrap();
        assert!(!stat.is_zombie && stat.threads >= 1);
        assert!(proc.memory(own).unwrap().resident_pages > 0);
        assert!(proc.threads(own, usize::MAX).contains(&own));
        assert_eq!(proc.threads(own, 1).len(), 1);
        assert_eq!(proc.stat(0), None);
        assert!(proc.children(0).is_empty());
    }
}
