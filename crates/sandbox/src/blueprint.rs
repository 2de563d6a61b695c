//! What the root of a room is made of: a list of pieces, drawn once by the cage and built by every room.
//!
//! `cage` draws it, `room` builds it. Nothing of the host is in a room that is not in this list: system folders as they are
//! (read-only), those parts of /etc that programs read, five devices, and the places that the worker names (interpreters
//! that live elsewhere).
//!
//! What is always true: pieces come in an order in which they can be built, a folder before what is in it; names are
//! relative to the new root. Links of the host are made again as links, never followed: `/bin -> usr/bin` stays what it is.
//!
//! Deliberately not here: the folders that a program may write in, /proc, and mounting (`room`).

use std::collections::BTreeSet;
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// The folders of a system, as far as there are any.
const SYSTEM: [&str; 8] = ["usr", "lib", "lib32", "lib64", "libx32", "bin", "sbin", "opt"];

/// What programs read in /etc, as far as it is there: the linker, names of programs, certificates, fonts, time. No accounts,
/// no names of machines, no configuration of services. Each costs a mount, which is most of what a room costs.
const ETC: [&str; 15] = [
    "R",
    "alternatives",
    "crypto-policies",
    "fonts",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "mime.types",
    "mono",
    "os-release",
    "perl",
    "pki",
    "ssl",
    "timezone",
];

/// Whose names begin so is there too: the folders of each version of Java and PHP.
const ETC_PREFIXES: [&str; 2] = ["java-", "php"];

/// Devices that every program may use.
const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];

/// Where a room has something of its own: no place of the worker can be there.
const OWN: [&str; 7] = ["/proc", "/dev", "/sys", "/box", "/tmp", "/etc", "/var"];

/// The files that say who is who. 1000 is the program; the owner of the system's files is seen as nobody.
const FILES: [(&str, &str); 4] = [
    (
        "etc/passwd",
        "root:x:0:0:root:/:/usr/sbin/nologin\nbox:x:1000:1000:box:/box:/bin/sh\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
    ),
    ("etc/group", "root:x:0:\nbox:x:1000:\nnogroup:x:65534:\n"),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\nnetworks: files\n"),
];

const LINKS: [(&str, &str); 5] = [
    ("dev/fd", "/proc/self/fd"),
    ("dev/stdin", "/proc/self/fd/0"),
    ("dev/stdout", "/proc/self/fd/1"),
    ("dev/stderr", "/proc/self/fd/2"),
    ("var/tmp", "/tmp"),
];

/// One piece; names have no leading slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// An empty folder.
    Folder(CString),
    /// A symbolic link with this text.
    Link(CString, CString),
    /// A file with these bytes.
    File(CString, &'static [u8]),
    /// Something of the host, read-only: its path there, its name here.
    Shown(CString, CString, Shown),
}

/// What is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    Folder,
    File,
    Device,
}

/// Can this be shown in a room beside what is there anyway? Absolute, without `..`, not the root, not where a room has
/// something of its own.
pub(crate) fn is_fit(place: &Path) -> bool {
    let plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    place.is_absolute()
        && place.file_name().is_some()
        && place.components().all(plain)
        && !OWN.iter().any(|own| place.starts_with(own))
}

/// Draws the root of this machine's rooms. A place that is not there is left out.
///
/// # Errors
/// A folder of the host cannot be looked at, or a name holds a NUL byte.
pub(crate) fn draw(places: &[PathBuf]) -> io::Result<Vec<Piece>> {
    let mut drawing = Drawing::default();
    for name in ["proc", "box", "tmp", "dev", "dev/shm", "etc", "var"] {
        drawing.folder(Path::new(name))?;
    }
    for name in SYSTEM {
        drawing.show(&Path::new("/").join(name))?;
    }
    let mut names: BTreeSet<PathBuf> = ETC.iter().map(PathBuf::from).collect();
    for entry in std::fs::read_dir("/etc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        if ETC_PREFIXES.iter().any(|prefix| name.as_bytes().starts_with(prefix.as_bytes())) {
            names.insert(name.into());
        }
    }
    for name in names {
        drawing.show(&Path::new("/etc").join(name))?;
    }
    for (name, bytes) in FILES {
        drawing.pieces.push(Piece::File(text(Path::new(name))?, bytes.as_bytes()));
    }
    for (name, to) in LINKS {
        drawing.pieces.push(Piece::Link(text(Path::new(name))?, text(Path::new(to))?));
    }
    for name in DEVICES {
        let at = Path::new("dev").join(name);
        drawing.pieces.push(Piece::Shown(text(&Path::new("/").join(&at))?, text(&at)?, Shown::Device));
    }
    // Outer places before inner ones, which they show already.
    let mut places: Vec<&PathBuf> = places.iter().filter(|place| is_fit(place)).collect();
    places.sort();
    for place in places {
        drawing.show(place)?;
    }
    Ok(drawing.pieces)
}

/// What is drawn so far.
#[derive(Default)]
struct Drawing {
    pieces: Vec<Piece>,
    folders: BTreeSet<PathBuf>,
    /// What of the host is shown, and everything below it.
    shown: Vec<PathBuf>,
}

impl Drawing {
    fn folder(&mut self, name: &Path) -> io::Result<()> {
        for part in name.ancestors().collect::<Vec<_>>().into_iter().rev().filter(|part| *part != Path::new("")) {
            if self.folders.insert(part.to_owned()) {
                self.pieces.push(Piece::Folder(text(part)?));
            }
        }
        Ok(())
    }

    /// Shows what is at `path` of the host at the same path of the room, if it is there.
    fn show(&mut self, path: &Path) -> io::Result<()> {
        if self.shown.iter().any(|shown| path.starts_with(shown)) {
            return Ok(());
        }
        let Ok(found) = path.symlink_metadata() else { return Ok(()) };
        let at = path.strip_prefix("/").unwrap_or(path);
        if let Some(above) = at.parent() {
            self.folder(above)?;
        }
        let at = text(at)?;
        self.pieces.push(if found.is_symlink() {
            Piece::Link(at, text(&path.read_link()?)?)
        } else if found.is_dir() {
            Piece::Shown(text(path)?, at, Shown::Folder)
        } else if found.is_file() {
            Piece::Shown(text(path)?, at, Shown::File)
        } else {
            return Ok(());
        });
        self.shown.push(path.to_owned());
        Ok(())
    }
}

fn text(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(piece: &Piece) -> &str {
        let (Piece::Folder(at) | Piece::Link(at, _) | Piece::File(at, _) | Piece::Shown(_, at, _)) = piece;
        at.to_str().unwrap()
    }

    /// Is each folder there before what is in it, and nothing drawn twice?
    #[test]
    fn buildable_in_order() {
        let home = tempfile::tempdir_in("/var/tmp").unwrap();
        let pieces = draw(&["/home/nobody-knows".into(), "/usr/lib".into(), home.path().to_owned()]).unwrap();
        let mut names: BTreeSet<&str> = BTreeSet::new();
        for piece in &pieces {
            let above = name(piece).rsplit_once('/').map(|(above, _)| above);
            assert!(above.is_none_or(|above| names.contains(above)), "{piece:?}");
            assert!(names.insert(name(piece)), "{piece:?} twice");
            assert!(!name(piece).starts_with('/'), "{piece:?}");
        }
        assert!(names.contains("usr") && names.contains("etc/passwd") && names.contains("dev/null"));
        assert!(!names.iter().any(|name| name.starts_with("home") || name.starts_with("usr/")), "{names:?}");
    }

    /// Is a place of the worker shown where it is, with the folders above it, and a link as a link?
    #[test]
    fn places_of_the_worker() {
        let home = tempfile::tempdir().unwrap();
        let mut drawing = Drawing::default();
        std::fs::write(home.path().join("file"), "x").unwrap();
        std::os::unix::fs::symlink("file", home.path().join("link")).unwrap();
        for name in ["link", "file", "file", "missing"] {
            drawing.show(&home.path().join(name)).unwrap();
        }
        let [.., folder, link, file] = &drawing.pieces[..] else { panic!("{:?}", drawing.pieces) };
        assert!(matches!(folder, Piece::Folder(at) if Path::new("/").join(at.to_str().unwrap()) == home.path()));
        assert!(matches!(link, Piece::Link(_, to) if to.as_c_str() == c"file"));
        assert!(matches!(file, Piece::Shown(_, _, Shown::File)));
    }

    /// Which places can be shown?
    #[test]
    fn fit_places() {
        for place in ["/root/.pyenv", "/srv/x", "/usr/share", "/data"] {
            assert!(is_fit(Path::new(place)), "{place}");
        }
        for place in ["/", "x", "/a/../b", "/proc", "/proc/1", "/dev/sda", "/tmp/x", "/etc/shadow", "/box"] {
            assert!(!is_fit(Path::new(place)), "{place}");
        }
    }
}
