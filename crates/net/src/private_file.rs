//! Small files that only their owner may read: keys, identities, the hub file.
//!
//! `authority`, `identity` and `hubfile` write and read through here. Always true: a reader sees the old file or the new
//! one, never a half; the file has mode 0600 from its first byte; a file that is far too large is not read.
//! Deliberately not here: what stands in the files, and folders' rights (`essaim up` makes its folder 0700).

use crate::limits::PRIVATE_FILE_BYTES_MAX;
use crate::ticket::random;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Why a private file could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum PrivateFileError {
    /// The operating system refused.
    #[error("{path} cannot be {what}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// `written` or `read`.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// Nothing of ours is that large.
    #[error("{path} has more than {PRIVATE_FILE_BYTES_MAX} bytes")]
    TooLarge {
        /// Which file.
        path: PathBuf,
    },
}

/// Writes `bytes` to `path` with mode 0600: a new file beside it, made durable, then renamed over the old one.
///
/// # Errors
/// [`PrivateFileError::Io`] when the folder is missing, full or not ours; the old file is untouched then.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), PrivateFileError> {
    let suffix = hex::encode(random::<6>());
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{suffix}.tmp"));
    let beside = path.with_file_name(name);
    let result =
        write_new(&beside, bytes).and_then(|()| std::fs::rename(&beside, path)).and_then(|()| sync_folder(path));
    result.map_err(|source| {
        // Nothing to be done if even this fails: the name tells what the left-over is.
        let _ = std::fs::remove_file(&beside);
        PrivateFileError::Io { path: path.to_owned(), what: "written", source }
    })
}

/// The file's bytes, or `None` if there is no such file.
///
/// # Errors
/// [`PrivateFileError`] when it exists and cannot be read, or is far too large.
pub fn read_private(path: &Path) -> Result<Option<Vec<u8>>, PrivateFileError> {
    let failed = |source| PrivateFileError::Io { path: path.to_owned(), what: "read", source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    file.take(PRIVATE_FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > PRIVATE_FILE_BYTES_MAX {
        return Err(PrivateFileError::TooLarge { path: path.to_owned() });
    }
    Ok(Some(bytes))
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// A rename is durable when its folder is.
fn sync_folder(path: &Path) -> io::Result<()> {
    let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) else { return Ok(()) };
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A rewritten file must be whole, private, and alone in its folder.
    #[test]
    fn a_rewritten_file_is_private_and_leaves_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        assert!(read_private(&path).unwrap().is_none());
        write_private(&path, b"one").unwrap();
        write_private(&path, b"two").unwrap();
        assert_eq!(read_private(&path).unwrap().unwrap(), b"two");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    // A missing folder is an error that names the file, and a huge file is not read into memory.
    #[test]
    fn what_cannot_be_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let error = write_private(&folder.path().join("no/such"), b"x").unwrap_err();
        assert!(error.to_string().contains("no/such"), "{error}");
        let path = folder.path().join("huge");
        File::create(&path).unwrap().set_len(PRIVATE_FILE_BYTES_MAX + 1).unwrap();
        assert!(matches!(read_private(&path), Err(PrivateFileError::TooLarge { .. })));
    }
}
