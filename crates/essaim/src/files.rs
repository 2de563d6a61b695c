//! The files of a job: found, checked, hashed, and split into what travels inside the job and what is a blob.
//!
//! `spec` calls [`collect`]; `submit` uploads the blobs. Always true: limits are checked before a byte is read; a
//! file keeps its name; nothing is left out silently (a folder goes whole but for `.git`, and links that lead out of it
//! are named in [`Collected::left_out`]).
//! Deliberately not here: which file starts in a folder and what language it is (the hub's table), uploading.

use crate::exit::Failure;
use essaim_proto::BlobHash;
use essaim_proto::job::FileSpec;
use essaim_proto::limits::{BLOB_BYTES_MAX, INLINE_BYTES_MAX, JOB_FILES_MAX, JOB_PATHS_BYTES_MAX};
use serde_bytes::ByteBuf;
use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The one folder that is never part of a program.
const NOT_SENT: &str = ".git";

/// Folders within folders: deeper is a loop that we did not recognise, or a trap.
const DEPTH_MAX: usize = 64;

/// What goes along with a job.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    /// The file that starts; empty when the hub shall find it in a folder.
    pub(crate) entry: String,
    /// All files, by path.
    pub(crate) files: Vec<FileSpec>,
    /// Those that travel as blobs, each hash once.
    pub(crate) blobs: BTreeMap<BlobHash, Blob>,
    /// Links that lead out of a sent folder or nowhere.
    pub(crate) left_out: Vec<PathBuf>,
}

/// A file that travels on its own.
#[derive(Debug)]
pub(crate) struct Blob {
    /// Its length when it was hashed.
    pub(crate) size_bytes: u64,
    /// Where its bytes are.
    pub(crate) source: Source,
}

/// Where bytes are.
#[derive(Debug)]
pub(crate) enum Source {
    /// In a file.
    Path(PathBuf),
    /// Here: they came through standard input.
    Bytes(Vec<u8>),
}

/// What starts.
#[derive(Debug)]
pub(crate) enum Program {
    /// A file or a folder.
    Path(PathBuf),
    /// Bytes that came through standard input, and the name that their language gives them.
    Bytes(String, Vec<u8>),
    /// Nothing of ours: a command of the node.
    Command,
}

/// A file that was found and not yet read.
struct Found {
    source: Source,
    size_bytes: u64,
    executable: bool,
}

/// Finds and reads all files of a job: the program, then `extra` files and folders below their own names.
///
/// # Errors
/// A usage failure that names the file: unreadable, too large, too many, no file at all, the same name twice.
pub(crate) fn collect(program: Program, extra: &[PathBuf]) -> Result<Collected, Failure> {
    let mut search = Search::default();
    let mut entry = String::new();
    match program {
        Program::Command => {}
        Program::Bytes(name, bytes) => {
            let size_bytes = bytes.len() as u64;
            search.add(name.clone(), Found { source: Source::Bytes(bytes), size_bytes, executable: false })?;
            entry = name;
        }
        Program::Path(path) => {
            let meta = metadata(&path)?;
            if meta.is_dir() {
                search.folder(&path, "")?;
                if search.found.is_empty() {
                    return Err(Failure::usage("no_files", format!("the folder {} has no files", path.display())));
                }
            } else {
                entry = own_name(&path)?;
                search.file(&path, entry.clone(), &meta)?;
            }
        }
    }
    for path in extra {
        let meta = metadata(path)?;
        let name = own_name(path)?;
        match meta.is_dir() {
            true => search.folder(path, &name)?,
            false => search.file(path, name, &meta)?,
        }
    }
    search.read(entry)
}

#[derive(Default)]
struct Search {
    found: BTreeMap<String, Found>,
    path_bytes: usize,
    left_out: Vec<PathBuf>,
}

impl Search {
    fn file(&mut self, path: &Path, name: String, meta: &Metadata) -> Result<(), Failure> {
        if !meta.is_file() {
            let message = format!("{} is neither a file nor a folder", path.display());
            return Err(Failure::usage("not_a_file", message).hint("a program may also come through standard input: -"));
        }
        let found =
            Found { source: Source::Path(path.to_owned()), size_bytes: meta.len(), executable: is_executable(meta) };
        self.add(name, found)
    }

    fn add(&mut self, name: String, found: Found) -> Result<(), Failure> {
        if found.size_bytes > BLOB_BYTES_MAX {
            let size = essaim_view::bytes(found.size_bytes);
            let limit = essaim_view::bytes(BLOB_BYTES_MAX);
            return Err(Failure::usage("too_large", format!("{name} has {size}; a file of a job may have {limit}")));
        }
        self.path_bytes += name.len();
        if self.found.len() >= JOB_FILES_MAX || self.path_bytes > JOB_PATHS_BYTES_MAX {
            let message = format!("these are more than {JOB_FILES_MAX} files, or their names are too long together");
            return Err(Failure::usage("too_large", message).hint("name the files that the program needs"));
        }
        if self.found.contains_key(&name) {
            let message = format!("two files would both be called {name} where the program runs");
            return Err(Failure::usage("same_name", message).hint("rename one of them, or send a folder that holds it"));
        }
        self.found.insert(name, found);
        Ok(())
    }

    /// Everything in `root`, below `name`.
    fn folder(&mut self, root: &Path, name: &str) -> Result<(), Failure> {
        let real_root = root.canonicalize().map_err(|error| unreadable(root, &error))?;
        let mut open = vec![(root.to_owned(), name.to_owned(), 0)];
        while let Some((folder, prefix, depth)) = open.pop() {
            if depth > DEPTH_MAX {
                let message = format!("{} lies more than {DEPTH_MAX} folders deep", folder.display());
                return Err(Failure::usage("too_large", message));
            }
            let entries = std::fs::read_dir(&folder).map_err(|error| unreadable(&folder, &error))?;
            for entry in entries {
                let path = entry.map_err(|error| unreadable(&folder, &error))?.path();
                let own = own_name(&path)?;
                if own == NOT_SENT {
                    continue;
                }
                let name = if prefix.is_empty() { own } else { format!("{prefix}/{own}") };
                let meta = path.symlink_metadata().map_err(|error| unreadable(&path, &error))?;
                if meta.is_dir() {
                    open.push((path, name, depth + 1));
                } else if meta.is_symlink() {
                    self.link(&real_root, path, name)?;
                } else if meta.is_file() {
                    self.file(&path, name, &meta)?;
                } else {
                    // A socket or a pipe is not part of a program.
                    self.left_out.push(path);
                }
            }
        }
        Ok(())
    }

    /// A link counts as the file that it leads to, if that lies in the same folder.
    fn link(&mut self, real_root: &Path, path: PathBuf, name: String) -> Result<(), Failure> {
        let inside = path.canonicalize().ok().filter(|real| real.starts_with(real_root));
        match inside.and_then(|real| real.metadata().ok()).filter(Metadata::is_file) {
            Some(meta) => self.file(&path, name, &meta),
            None => {
                self.left_out.push(path);
                Ok(())
            }
        }
    }

    /// Reads what was found; the smallest files go inside the job until they fill [`INLINE_BYTES_MAX`].
    fn read(self, entry: String) -> Result<Collected, Failure> {
        let mut sizes: Vec<u64> = self.found.values().map(|found| found.size_bytes).collect();
        sizes.sort_unstable();
        let mut room = INLINE_BYTES_MAX;
        let fitting = sizes.into_iter().take_while(|size| {
            let fits = *size <= room;
            room = room.saturating_sub(*size);
            fits
        });
        let inline_max = fitting.last();
        let mut inline_room = INLINE_BYTES_MAX;
        let mut collected = Collected { entry, left_out: self.left_out, ..Collected::default() };
        for (path, Found { source, size_bytes, executable }) in self.found {
            // Of several files of the largest size that fits some may not fit: the room decides.
            let bytes = if inline_max.is_some_and(|max| size_bytes <= max) && size_bytes <= inline_room {
                read_small(&source, inline_room)?
            } else {
                None
            };
            match bytes {
                Some(bytes) => {
                    inline_room -= bytes.len() as u64;
                    let (hash, size_bytes) = (BlobHash::of(&bytes), bytes.len() as u64);
                    let inline = Some(ByteBuf::from(bytes));
                    collected.files.push(FileSpec { path, hash, size_bytes, executable, inline });
                }
                None => {
                    let (hash, size_bytes) = hash(&source)?;
                    collected.files.push(FileSpec { path, hash, size_bytes, executable, inline: None });
                    collected.blobs.insert(hash, Blob { size_bytes, source });
                }
            }
        }
        Ok(collected)
    }
}

/// The bytes, or `None` when there are more than `room` by now.
fn read_small(source: &Source, room: u64) -> Result<Option<Vec<u8>>, Failure> {
    let path = match source {
        Source::Bytes(bytes) => return Ok(Some(bytes.clone())),
        Source::Path(path) => path,
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| unreadable(path, &error))?;
    file.take(room + 1).read_to_end(&mut bytes).map_err(|error| unreadable(path, &error))?;
    Ok((bytes.len() as u64 <= room).then_some(bytes))
}

fn hash(source: &Source) -> Result<(BlobHash, u64), Failure> {
    let path = match source {
        Source::Bytes(bytes) => return Ok((BlobHash::of(bytes), bytes.len() as u64)),
        Source::Path(path) => path,
    };
    let mut hasher = blake3::Hasher::new();
    let file = File::open(path).map_err(|error| unreadable(path, &error))?;
    hasher.update_reader(file.take(BLOB_BYTES_MAX)).map_err(|error| unreadable(path, &error))?;
    Ok((BlobHash(*hasher.finalize().as_bytes()), hasher.count()))
}

fn metadata(path: &Path) -> Result<Metadata, Failure> {
    path.metadata().map_err(|error| unreadable(path, &error))
}

/// A file that cannot be read, as a sentence.
pub(crate) fn unreadable(path: &Path, error: &io::Error) -> Failure {
    let why = match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".to_owned(),
        io::ErrorKind::PermissionDenied => "you may not read it".to_owned(),
        _ => error.to_string(),
    };
    Failure::usage("unreadable", format!("{} cannot be read: {why}", path.display()))
}

/// The last part of a path, also of `.` and `..`.
fn own_name(path: &Path) -> Result<String, Failure> {
    let real;
    let name = match path.file_name() {
        Some(name) => name,
        None => {
            real = path.canonicalize().map_err(|error| unreadable(path, &error))?;
            real.file_name().ok_or_else(|| Failure::usage("not_a_file", format!("{} has no name", path.display())))?
        }
    };
    let name = name.to_str().filter(|name| !name.contains('\\'));
    name.map(str::to_owned).ok_or_else(|| {
        let message = format!("the name of {} cannot be kept on other machines", path.display());
        Failure::usage("bad_name", message).hint("rename it with letters that are UTF-8, and without a backslash")
    })
}

#[cfg(unix)]
fn is_executable(meta: &Metadata) -> bool {
    std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o111 != 0
}

#[cfg(not(unix))]
fn is_executable(_meta: &Metadata) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, bytes: &[u8]) {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    fn paths(collected: &Collected) -> Vec<&str> {
        collected.files.iter().map(|file| file.path.as_str()).collect()
    }

    // A single file keeps its name, wherever it lies, and goes inside the job.
    #[test]
    fn a_file_keeps_its_name() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "deep/hello.py", b"print(1)\n");
        let collected = collect(Program::Path(folder.path().join("deep/hello.py")), &[]).unwrap();
        assert_eq!(collected.entry, "hello.py");
        let file = &collected.files[0];
        assert_eq!((file.path.as_str(), file.size_bytes, file.executable), ("hello.py", 9, false));
        assert_eq!(file.inline.as_ref().unwrap().as_ref(), b"print(1)\n");
        assert_eq!(file.hash, BlobHash::of(b"print(1)\n"));
        assert!(collected.blobs.is_empty());
    }

    // A folder goes whole but for .git; hidden and ignored files are files too; extra files lie below their own names.
    #[test]
    fn a_folder_goes_whole() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for path in ["p/main.py", "p/lib/a.py", "p/.env", "p/.gitignore", "p/.git/config", "p/target/x", "d/x/y.csv"] {
            write(root, path, path.as_bytes());
        }
        let extra = [root.join("d"), root.join("p/lib/a.py")];
        let collected = collect(Program::Path(root.join("p")), &extra).unwrap();
        let expected = [".env", ".gitignore", "a.py", "d/x/y.csv", "lib/a.py", "main.py", "target/x"];
        assert_eq!(paths(&collected), expected);
        assert_eq!(collected.entry, "");
    }

    // Links count as what they lead to only inside the folder; the others are named.
    #[cfg(unix)]
    #[test]
    fn links_out_of_the_folder_are_left_out_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        write(root, "p/main.py", b"1");
        write(root, "secret", b"2");
        for (target, link) in [("main.py", "in"), ("../secret", "out"), ("nowhere", "dangling"), (".", "loop")] {
            std::os::unix::fs::symlink(target, root.join("p").join(link)).unwrap();
        }
        let collected = collect(Program::Path(root.join("p")), &[]).unwrap();
        assert_eq!(paths(&collected), ["in", "main.py"]);
        assert_eq!(collected.left_out.len(), 3);
    }

    // Small files travel inside the job as long as they fit, the others as blobs; equal ones once.
    #[test]
    fn large_files_become_blobs() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let large = vec![7; INLINE_BYTES_MAX as usize];
        write(root, "p/main.py", b"1");
        write(root, "p/a.bin", &large);
        write(root, "p/b.bin", &large);
        let collected = collect(Program::Path(root.join("p")), &[]).unwrap();
        let inline: Vec<bool> = collected.files.iter().map(|file| file.inline.is_some()).collect();
        assert_eq!(inline, [false, false, true]);
        assert_eq!(collected.blobs.len(), 1);
        assert_eq!(collected.blobs[&BlobHash::of(&large)].size_bytes, INLINE_BYTES_MAX);
        // All of the same size, together too many: what goes inside never exceeds the limit.
        for n in 0..5 {
            write(root, &format!("q/{n}"), &vec![n; INLINE_BYTES_MAX as usize / 4]);
        }
        let collected = collect(Program::Path(root.join("q")), &[]).unwrap();
        assert_eq!(collected.files.iter().filter(|file| file.inline.is_some()).count(), 4);
    }

    // What cannot be sent is said in one sentence that names it.
    #[test]
    fn what_cannot_be_sent_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let code = |program: PathBuf, extra: &[PathBuf]| collect(Program::Path(program), extra).unwrap_err();
        let missing = code(root.join("no.py"), &[]);
        assert!(missing.message.contains("no.py") && missing.message.contains("no such file"), "{missing:?}");
        write(root, "a/main.py", b"1");
        write(root, "b/main.py", b"2");
        assert_eq!(code(root.join("a/main.py"), &[root.join("b/main.py")]).code, "same_name");
        std::fs::create_dir(root.join("empty")).unwrap();
        assert_eq!(code(root.join("empty"), &[]).code, "no_files");
        let huge = root.join("huge.bin");
        File::create(&huge).unwrap().set_len(BLOB_BYTES_MAX + 1).unwrap();
        assert_eq!(code(huge, &[]).code, "too_large");
        for n in 0..=JOB_FILES_MAX {
            write(root, &format!("many/{n}"), b"");
        }
        assert_eq!(code(root.join("many"), &[]).code, "too_large");
        #[cfg(unix)]
        assert_eq!(code(PathBuf::from("/dev/null"), &[]).code, "not_a_file");
    }

    // A program from standard input has the name that its language gives.
    #[test]
    fn a_program_may_come_as_bytes() {
        let collected = collect(Program::Bytes("main.py".into(), b"1".to_vec()), &[]).unwrap();
        assert_eq!((collected.entry.as_str(), paths(&collected)), ("main.py", vec!["main.py"]));
    }
}
