//! The file of `--each-line`: a line for each task.
//!
//! `spec` calls [`read`]. Always true: line n is for task n; every line fits a variable of a program's environment, or
//! the one that does not is named; the file is read once and never held whole, unless it came through standard input.
//! Deliberately not here: cutting the lines for the tasks (the worker), uploading (`submit`).

use crate::exit::Failure;
use crate::files::{Blob, Source, unreadable};
use essaim_proto::job::{ArraySpec, FileSpec};
use essaim_proto::limits::{ARRAY_TASKS_MAX, BLOB_BYTES_MAX, INLINE_BYTES_MAX, LINE_BYTES_MAX};
use essaim_proto::{BlobHash, TaskSet};
use serde_bytes::ByteBuf;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

/// What the file is called on its way: nobody sees it, for it is not put into the work folder.
const NAME: &str = "lines";

/// An array with its lines, and the blob when they do not travel inside the job.
pub(crate) struct Lines {
    /// The array.
    pub(crate) array: ArraySpec,
    /// The file's bytes, when they travel on their own.
    pub(crate) blob: Option<(BlobHash, Blob)>,
}

/// What was found in the file.
#[derive(Debug, PartialEq)]
struct Counted {
    lines: u64,
    size_bytes: u64,
    hash: BlobHash,
    /// The bytes, when they are no more than asked for.
    small: Option<Vec<u8>>,
}

/// Reads the file; `-` is our standard input. `inline_bytes` of the job's other files travel inside the job.
///
/// # Errors
/// A usage failure: unreadable, empty, too large, a line that no variable can hold, a task without a line.
pub(crate) fn read(path: &Path, tasks: Option<TaskSet>, inline_bytes: u64) -> Result<Lines, Failure> {
    let room = INLINE_BYTES_MAX.saturating_sub(inline_bytes);
    let (counted, source) = if path.as_os_str() == "-" {
        let mut bytes = Vec::new();
        let mut input = io::stdin().lock().take(BLOB_BYTES_MAX + 1);
        input
            .read_to_end(&mut bytes)
            .map_err(|error| Failure::broken("unreadable", "the lines cannot be read from standard input", &error))?;
        (count(bytes.as_slice(), room, path)?, Source::Bytes(bytes))
    } else {
        let file = File::open(path).map_err(|error| unreadable(path, &error))?;
        (count(BufReader::new(file), room, path)?, Source::Path(path.to_owned()))
    };
    let Counted { lines, size_bytes, hash, small } = counted;
    let tasks = fitting(tasks, lines, path)?;
    let blob = small.is_none().then_some((hash, Blob { size_bytes, source }));
    let inline = small.map(ByteBuf::from);
    let file = FileSpec { path: NAME.into(), hash, size_bytes, executable: false, inline };
    Ok(Lines { array: ArraySpec { tasks, lines: Some(file) }, blob })
}

/// All lines, or those that were asked for, as far as there are lines for them.
fn fitting(tasks: Option<TaskSet>, lines: u64, path: &Path) -> Result<TaskSet, Failure> {
    let path = path.display();
    let Some(tasks) = tasks else {
        return match u32::try_from(lines).ok().filter(|_| lines <= ARRAY_TASKS_MAX) {
            Some(0) => Err(Failure::usage("no_lines", format!("{path} has no lines: there is nothing to run"))),
            Some(lines) => Ok(TaskSet::span(1, lines)),
            None => {
                let message = format!("{path} has {lines} lines; an array may have {ARRAY_TASKS_MAX} tasks");
                Err(Failure::usage("too_large", message))
            }
        };
    };
    let last = tasks.at(u32::try_from(tasks.len() - 1).unwrap_or(u32::MAX)).unwrap_or_default();
    if tasks.first().is_some_and(|first| first.0 == 0) || u64::from(last.0) > lines {
        let message = format!("{path} has {lines} lines: line n is for task n, and --array {tasks} asks for others");
        return Err(Failure::usage("no_lines", message).hint("leave out --array to run each line"));
    }
    Ok(tasks)
}

fn count(mut input: impl BufRead, room: u64, path: &Path) -> Result<Counted, Failure> {
    let shown = path.display();
    let mut hasher = blake3::Hasher::new();
    let mut counted = Counted { lines: 0, size_bytes: 0, hash: BlobHash([0; 32]), small: Some(Vec::new()) };
    let mut line = Vec::new();
    loop {
        line.clear();
        // A byte more than a line may have, and its end: enough to know.
        let mut limited = input.by_ref().take(LINE_BYTES_MAX as u64 + 2);
        let read = limited.read_until(b'\n', &mut line).map_err(|error| unreadable(path, &error))?;
        if read == 0 {
            break;
        }
        counted.lines += 1;
        counted.size_bytes += read as u64;
        let number = counted.lines;
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        if text.len() > LINE_BYTES_MAX {
            let message = format!("line {number} of {shown} has more than {LINE_BYTES_MAX} bytes");
            return Err(Failure::usage("too_large", message)
                .hint("a line is given to the program as a variable; name a file in it instead"));
        }
        if text.contains(&0) {
            let message = format!("line {number} of {shown} has a zero byte, which no variable can hold");
            return Err(Failure::usage("bad_line", message));
        }
        if counted.size_bytes > BLOB_BYTES_MAX {
            let message = format!("{shown} has more than {}", essaim_view::bytes(BLOB_BYTES_MAX));
            return Err(Failure::usage("too_large", message));
        }
        hasher.update(&line);
        match &mut counted.small {
            Some(small) if counted.size_bytes <= room => small.extend_from_slice(&line),
            small => *small = None,
        }
    }
    counted.hash = BlobHash(*hasher.finalize().as_bytes());
    Ok(counted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(bytes: &[u8], tasks: Option<&str>, room_used: u64) -> Result<Lines, Failure> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("urls.txt");
        std::fs::write(&path, bytes).unwrap();
        read(&path, tasks.map(|tasks| tasks.parse().unwrap()), room_used)
    }

    // As many tasks as lines, the last one without its newline too; the bytes travel inside the job.
    #[test]
    fn each_line_is_a_task() {
        for (bytes, count) in [(&b"a\nb\n"[..], 2), (b"a\n\nb", 3), (b"\n", 1)] {
            let Lines { array, blob } = lines(bytes, None, 0).unwrap();
            assert_eq!(array.tasks, TaskSet::span(1, count));
            let file = array.lines.unwrap();
            assert_eq!((file.size_bytes, file.hash), (bytes.len() as u64, BlobHash::of(bytes)));
            assert_eq!(file.inline.unwrap().as_slice(), bytes);
            assert!(blob.is_none());
        }
    }

    // What has no room in the job is a blob, with the same hash.
    #[test]
    fn many_lines_are_a_blob() {
        let bytes = b"0123456789\n".repeat(10_000);
        let Lines { array, blob } = lines(&bytes, None, 0).unwrap();
        assert_eq!(array.tasks.len(), 10_000);
        assert!(array.lines.unwrap().inline.is_none());
        let (hash, blob) = blob.unwrap();
        assert_eq!((hash, blob.size_bytes), (BlobHash::of(&bytes), bytes.len() as u64));
        assert!(lines(b"a\n", None, INLINE_BYTES_MAX).unwrap().blob.is_some());
    }

    // Some of the lines, and what there is no line for.
    #[test]
    fn tasks_need_their_lines() {
        assert_eq!(lines(b"a\nb\nc\n", Some("2-3"), 0).unwrap().array.tasks.to_string(), "2-3");
        for tasks in ["0-2", "3-4", "9"] {
            let failure = lines(b"a\nb\nc\n", Some(tasks), 0).map(|_| ()).unwrap_err();
            assert!(failure.message.contains("has 3 lines"), "{failure:?}");
        }
        assert!(lines(b"", None, 0).map(|_| ()).unwrap_err().message.contains("no lines"));
    }

    // A line that no variable can hold is named.
    #[test]
    fn a_bad_line_is_named() {
        let long = [b"ok\n".to_vec(), vec![b'x'; LINE_BYTES_MAX + 1]].concat();
        assert!(lines(&long, None, 0).map(|_| ()).unwrap_err().message.contains("line 2"));
        assert!(lines(&long[..long.len() - 1], None, 0).is_ok());
        assert!(lines(b"a\nb\0\n", None, 0).map(|_| ()).unwrap_err().message.contains("line 2"));
    }
}
