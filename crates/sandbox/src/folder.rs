//! Removes a work folder that other people's programs have written in.
//!
//! Called by the worker after a program, and by `cage` for a worker that is gone. Every process that wrote there must
//! be dead before; nothing here waits for one.
//!
//! What is always true:
//! - Nothing outside the folder is removed: every step goes from an open directory to one name in it, symbolic links
//!   are unlinked and never followed, and mount points are not crossed (a program that was root may have mounted /
//!   there).
//! - Folders without any permission are opened by giving ourselves the permission first.
//! - Depth costs neither stack nor descriptors: below `FOLDER_DEPTH_MAX` a folder is renamed to the top of the tree and
//!   emptied there.
//! - One entry that cannot be removed does not keep the others: the first error is returned at the end.
//!
//! Deliberately not here: quotas and making folders.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::limits::{FOLDER_DEPTH_MAX, FOLDER_PASSES_MAX};

/// Removes `path` and all that is below it. A symbolic link or a file at `path` itself is unlinked. It is no error if
/// there is nothing at `path`. The folders above `path` are trusted: they may hold symbolic links.
///
/// # Errors
/// The first entry that could not be removed, for example EXDEV or EBUSY for a mount point, EPERM for an immutable file. All
/// other entries were removed.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let name = CString::new(name.as_bytes()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let above = match path.parent() {
        Some(above) if !above.as_os_str().is_empty() => above,
        _ => Path::new("."),
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let above = match rustix::fs::open(above, flags, Mode::empty()) {
        Ok(above) => above,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    match rustix::fs::unlinkat(&above, &name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // Linux says EISDIR for a folder; POSIX says EPERM.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let top = open_folder(&above, &name)?;
    let mut sweep = Sweep { top, carried: 0, first_error: None };
    sweep.empty_top();
    let removed = rustix::fs::unlinkat(&above, &name, AtFlags::REMOVEDIR);
    match (sweep.first_error, removed) {
        (Some(error), Err(_)) | (None, Err(error)) => Err(error.into()),
        // The folder is gone, so whatever failed on the way is gone too.
        (_, Ok(())) => Ok(()),
    }
}

/// One removal in progress.
struct Sweep {
    top: OwnedFd,
    /// Folders carried to the top so far; their new names are numbered.
    carried: u64,
    first_error: Option<Errno>,
}

impl Sweep {
    /// Empties the top until a pass carries nothing up any more.
    fn empty_top(&mut self) {
        loop {
            let carried_before = self.carried;
            let Ok(top) = rustix::io::fcntl_dupfd_cloexec(&self.top, 0) else {
                self.note(Errno::MFILE);
                return;
            };
            self.empty(&top, 0);
            if self.carried == carried_before {
                return;
            }
        }
    }

    /// Removes all entries of a folder that is `depth` below the top. Removing while listing keeps memory small
    /// whatever the number of entries; where a file system skips entries because of it, the next pass finds them.
    fn empty(&mut self, folder: &OwnedFd, depth: usize) {
        for _ in 0..FOLDER_PASSES_MAX {
            let entries = match Dir::read_from(folder) {
                Ok(entries) => entries,
                Err(error) => return self.note(error),
            };
            let mut removed_any = false;
            for entry in entries {
                let entry = match entry {
                    Ok(entry) => entry,
                    Err(error) => return self.note(error),
                };
                let name = entry.file_name();
                if matches!(name.to_bytes(), b"." | b"..") {
                    continue;
                }
                let removed = match entry.file_type() {
                    FileType::Directory => self.remove_folder(folder, name, depth),
                    _ => self.remove_file(folder, name, depth),
                };
                match removed {
                    Ok(()) => removed_any = true,
                    Err(Errno::NOENT) => {}
                    Err(error) => self.note(error),
                }
            }
            if !removed_any {
                return;
            }
        }
    }

    fn remove_file(&mut self, folder: &OwnedFd, name: &CStr, depth: usize) -> Result<(), Errno> {
        match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
            // The file system did not say what it is (DT_UNKNOWN), and it is a folder.
            Err(Errno::ISDIR) => self.remove_folder(folder, name, depth),
            outcome => outcome,
        }
    }

    fn remove_folder(&mut self, folder: &OwnedFd, name: &CStr, depth: usize) -> Result<(), Errno> {
        match rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            outcome => return outcome,
        }
        let inner = open_folder(folder, name)?;
        if depth >= FOLDER_DEPTH_MAX {
            return self.carry_up(folder, name);
        }
        self.empty(&inner, depth + 1);
        rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR)
    }

    /// Renames a folder into the top, under a name that is free.
    fn carry_up(&mut self, folder: &OwnedFd, name: &CStr) -> Result<(), Errno> {
        loop {
            let new_name = format!("carried-{}", self.carried);
            self.carried += 1;
            match rustix::fs::renameat_with(
                folder,
                name,
                &self.top,
                new_name.as_str(),
                rustix::fs::RenameFlags::NOREPLACE,
            ) {
                Err(Errno::EXIST) => continue,
                outcome => return outcome,
            }
        }
    }

    fn note(&mut self, error: Errno) {
        self.first_error.get_or_insert(error);
    }
}

/// Opens a folder by its name in another, for listing it and removing from it.
fn open_folder(above: &OwnedFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let folder = match open_beneath(above, name, OFlags::RDONLY) {
        Err(Errno::ACCESS) => {
            // We may not read it. Its owner may change that, but chmod by name would follow a link put there instead;
            // the /proc name of a descriptor leads to exactly what we hold.
            let held = open_beneath(above, name, OFlags::PATH)?;
            let held_name = format!("/proc/self/fd/{}", held.as_raw_fd());
            rustix::fs::chmod(held_name, Mode::RWXU)?;
            open_beneath(above, name, OFlags::RDONLY)?
        }
        opened => opened?,
    };
    // Removing entries needs write and search permission on the folder. If we may not change it, unlink will say so.
    let _ = rustix::fs::fchmod(&folder, Mode::RWXU);
    Ok(folder)
}

fn open_beneath(above: impl AsFd, name: &CStr, access: OFlags) -> Result<OwnedFd, Errno> {
    let flags = access | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(above.as_fd(), name, flags, Mode::empty(), resolve) {
        // A kernel before 5.6 or a filter that does not know the call. Then mounts below the folder are crossed.
        Err(Errno::NOSYS) => rustix::fs::openat(above.as_fd(), name, flags, Mode::empty()),
        opened => opened,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// Does an ordinary tree go, with files, links, a pipe and folders without permissions, and does what a link points
    /// to stay?
    #[test]
    fn removes_everything_inside_and_nothing_outside() {
        let home = tempfile::tempdir().unwrap();
        let outside = home.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        let tree = home.path().join("tree");
        fs::create_dir_all(tree.join("a/b/c")).unwrap();
        for count in 0..300 {
            fs::write(tree.join(format!("a/b/file-{count}")), "x").unwrap();
        }
        symlink(&outside, tree.join("a/link")).unwrap();
        symlink("nowhere", tree.join("a/dangling")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, tree.join("pipe"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        fs::set_permissions(tree.join("a/b"), fs::Permissions::from_mode(0o000)).unwrap();
        fs::set_permissions(tree.join("a"), fs::Permissions::from_mode(0o000)).unwrap();

        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert_eq!(fs::read(outside.join("kept")).unwrap(), b"x");
    }

    /// Is the tree's own name treated like any other: nothing there is fine, a link is unlinked, a file too?
    #[test]
    fn the_name_itself() {
        let home = tempfile::tempdir().unwrap();
        remove_tree(&home.path().join("nothing")).unwrap();
        remove_tree(&home.path().join("nothing/below")).unwrap();
        let target = home.path().join("target");
        fs::create_dir(&target).unwrap();
        symlink(&target, home.path().join("link")).unwrap();
        remove_tree(&home.path().join("link")).unwrap();
        assert!(target.is_dir() && !home.path().join("link").is_symlink());
        fs::write(home.path().join("file"), "x").unwrap();
        remove_tree(&home.path().join("file")).unwrap();
        assert!(!home.path().join("file").exists());
        assert!(remove_tree(Path::new("/")).is_err());
        assert!(remove_tree(Path::new("..")).is_err());
    }

    /// Does a tree go that is far deeper than there are descriptors? Made by going down, since no path can name its
    /// end.
    #[test]
    fn deep_tree() {
        let home = tempfile::tempdir().unwrap();
        let tree = home.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let mut folder = rustix::fs::open(&tree, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..2000 {
            rustix::fs::mkdirat(&folder, "d", Mode::RWXU).unwrap();
            folder = rustix::fs::openat(&folder, "d", OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }

    /// Is a name that we would use for carrying folders up allowed to exist already?
    #[test]
    fn deep_tree_with_our_names() {
        let home = tempfile::tempdir().unwrap();
        let tree = home.path().join("tree");
        fs::create_dir_all(tree.join("carried-0/x")).unwrap();
        fs::create_dir_all(tree.join(["d/"; 2 * FOLDER_DEPTH_MAX].concat())).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }
}
