//! Files of which each task of an array gets a line: brought once, kept while they are used.
//!
//! The driver asks for a task's line before it prepares the attempt. Always true: a file is loaded by one task however many
//! wait for it; at most [`KEPT`] files are kept, so a worker that serves many arrays in turn loads some of them again; line n
//! is that of task n, without its end, and may hold anything but a NUL byte.
//! Deliberately not here: what becomes of the line (a variable of the program, set by the driver).

use crate::attempt::Workshop;
use crate::driver::Event;
use crate::folder::Places;
use essaim_proto::job::{FileSpec, Reason, StdinSpec};
use essaim_proto::limits::LINE_BYTES_MAX;
use essaim_proto::{AttemptId, BlobHash, TaskId};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Files that are kept at once.
const KEPT: usize = 4;

/// The name of the file in the folder that it is fetched into.
const NAME: &str = "lines";

/// A file, cut into lines.
#[derive(Debug)]
pub(crate) struct Lines {
    bytes: Vec<u8>,
    /// Where each line begins, and where the last one ends.
    begins: Vec<u32>,
}

/// An attempt that waits for its line.
#[derive(Debug)]
pub(crate) struct Waits {
    pub(crate) attempt: AttemptId,
    pub(crate) files: Vec<FileSpec>,
    pub(crate) stdin: StdinSpec,
}

/// All such files of a worker.
#[derive(Debug, Default)]
pub(crate) struct Library {
    /// The one that was used last at the end.
    kept: VecDeque<(BlobHash, Arc<Lines>)>,
    waiting: BTreeMap<BlobHash, Vec<Waits>>,
    loads: u64,
}

impl Lines {
    fn of(bytes: Vec<u8>) -> Lines {
        let mut begins = vec![0];
        // Its size was checked: less than 4 GiB.
        begins.extend(bytes.iter().zip(1..).filter(|(byte, _)| **byte == b'\n').map(|(_, next)| next));
        if bytes.last().is_some_and(|last| *last != b'\n') {
            begins.push(bytes.len() as u32 + 1);
        }
        Lines { bytes, begins }
    }

    /// The line of a task.
    ///
    /// # Errors
    /// `no_line`, `bad_line`.
    pub(crate) fn of_task(&self, task: TaskId) -> Result<String, Reason> {
        let at = (task.0 as usize).checked_sub(1);
        let span = at.and_then(|at| Some((*self.begins.get(at)? as usize, *self.begins.get(at + 1)? as usize - 1)));
        let Some((begin, end)) = span else {
            let there = self.begins.len().saturating_sub(1);
            return Err(Reason::new("no_line").with("task", task).with("lines", there));
        };
        let line = &self.bytes[begin..end];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match std::str::from_utf8(line) {
            Ok(text) if line.len() <= LINE_BYTES_MAX && !line.contains(&0) => Ok(text.to_owned()),
            _ => Err(Reason::new("bad_line").with("task", task).with("bytes", line.len())),
        }
    }
}

impl Library {
    /// The file, if it is here.
    pub(crate) fn get(&mut self, hash: BlobHash) -> Option<Arc<Lines>> {
        let at = self.kept.iter().position(|(kept, _)| *kept == hash)?;
        let found = self.kept.remove(at)?;
        let lines = found.1.clone();
        self.kept.push_back(found);
        Some(lines)
    }

    /// The attempt waits for the file, which somebody brings.
    pub(crate) fn wait(&mut self, workshop: &Workshop, file: FileSpec, waits: Waits) {
        let (hash, attempt) = (file.hash, waits.attempt);
        let waiting = self.waiting.entry(hash).or_default();
        waiting.push(waits);
        if waiting.len() == 1 {
            self.loads += 1;
            tokio::spawn(load(workshop.clone(), attempt, file, self.loads));
        }
    }

    /// The file is here, or cannot be had: who waited for it?
    pub(crate) fn loaded(&mut self, hash: BlobHash, lines: Option<Arc<Lines>>) -> Vec<Waits> {
        if let Some(lines) = lines {
            if self.kept.len() == KEPT {
                self.kept.pop_front();
            }
            self.kept.push_back((hash, lines));
        }
        self.waiting.remove(&hash).unwrap_or_default()
    }
}

async fn load(workshop: Workshop, attempt: AttemptId, file: FileSpec, number: u64) {
    let hash = file.hash;
    let lines = bring(&workshop, attempt, file, number).await.map(|bytes| Arc::new(Lines::of(bytes)));
    // Without a driver the worker is ending.
    let _ = workshop.driver.send(Event::Lines { hash, lines }).await;
}

async fn bring(workshop: &Workshop, attempt: AttemptId, file: FileSpec, number: u64) -> Result<Vec<u8>, Reason> {
    if let Some(bytes) = file.inline {
        return Ok(bytes.into_vec());
    }
    let broken = |why: &dyn std::fmt::Display| Reason::new("work_folder").with("why", why);
    let places = Places {
        folder: workshop.work.join(format!("lines.{number}")),
        tmp: workshop.work.join(format!("lines.{number}.tmp")),
    };
    let (path, made) = (places.folder.clone(), places.clone());
    let folder = tokio::task::spawn_blocking(move || made.make()).await;
    let folder = folder.map_err(|error| broken(&error))?.map_err(|error| broken(&error))?;
    let file = FileSpec { path: NAME.to_owned(), executable: false, ..file };
    let fetched = workshop.fetcher.clone().fetch(attempt, Arc::new(folder), file).await;
    let bytes = match fetched {
        Ok(()) => tokio::fs::read(path.join(NAME)).await.map_err(|error| broken(&error)),
        Err(reason) => Err(reason),
    };
    // What is left of it is removed with the work folder at the next start.
    let _ = tokio::task::spawn_blocking(move || places.remove()).await;
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    // Is line n that of task n, with and without an end of the last one?
    #[test]
    fn each_task_has_its_line() {
        for text in ["one\ntwo words\r\n\nfour", "one\ntwo words\r\n\nfour\n"] {
            let lines = Lines::of(text.as_bytes().to_vec());
            let all: Vec<String> = (1..=4).map(|n| lines.of_task(TaskId(n)).unwrap()).collect();
            assert_eq!(all, ["one", "two words", "", "four"]);
            for n in [0, 5, u32::MAX] {
                assert_eq!(lines.of_task(TaskId(n)).unwrap_err().code, "no_line", "{n}");
            }
        }
        assert_eq!(Lines::of(Vec::new()).of_task(TaskId(1)).unwrap_err().code, "no_line");
        let bad = Lines::of([b"a\0b\n".as_slice(), &[0xFF, b'\n'], &vec![b'x'; LINE_BYTES_MAX + 1]].concat());
        for n in 1..=3 {
            assert_eq!(bad.of_task(TaskId(n)).unwrap_err().code, "bad_line", "{n}");
        }
    }
}
