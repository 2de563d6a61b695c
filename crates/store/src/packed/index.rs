//! The index of outputs on disk: which bytes of which stream stand where, and what was dropped. `outputs.db`.
//!
//! `packed` loads attempts from it, `writer` and `drops` change it. Always true: a change is one transaction and durable
//! when it returns; a row names only bytes that are durable; readers have connections of their own and wait for nobody.
//! Whoever changes rows holds the one writing connection until the attempts in memory say the same, so that both never
//! differ for anybody who holds it.
//! Deliberately not here: the bytes.

use super::attempt::{Attempt, Extent, Failure, Output};
use crate::error::OpenError;
use crate::sqlite::{self, Fault, Readers, Schema};
use essaim_proto::api::Stream;
use essaim_proto::{AttemptId, JobId, TaskId};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

pub(crate) const SCHEMA: Schema = Schema {
    file: "outputs.db",
    steps: &["
        CREATE TABLE extents (
            job INTEGER NOT NULL, task INTEGER NOT NULL, attempt INTEGER NOT NULL, stream INTEGER NOT NULL,
            start INTEGER NOT NULL,     -- of these bytes in their stream
            length INTEGER NOT NULL,
            segment INTEGER NOT NULL,   -- the file that has them
            position INTEGER NOT NULL,  -- in the file
            sum INTEGER NOT NULL,       -- the first 8 bytes of their BLAKE3, as a little-endian number
            PRIMARY KEY (job, task, attempt, stream, start)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX extents_by_segment ON extents (segment, length);
        CREATE TABLE dropped (
            job INTEGER NOT NULL, task INTEGER NOT NULL, attempt INTEGER NOT NULL, stream INTEGER NOT NULL,
            below INTEGER NOT NULL,     -- bytes below are gone, whatever the first row of the stream says
            PRIMARY KEY (job, task, attempt, stream)
        ) STRICT, WITHOUT ROWID;"],
};

/// Why an attempt's rows could not be read.
#[derive(Debug)]
pub(crate) enum LoadError {
    /// The database failed.
    Database(rusqlite::Error),
    /// Its rows leave a hole.
    Hole {
        /// In which stream.
        stream: Stream,
        /// Where it begins.
        at: u64,
    },
}

impl From<rusqlite::Error> for LoadError {
    fn from(error: rusqlite::Error) -> LoadError {
        LoadError::Database(error)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Index {
    path: PathBuf,
    /// Closed before the writer, which tidies up.
    readers: Readers,
    writing: Mutex<Connection>,
    /// Every job that has rows, and some that had: most programs are short, and their jobs need no look into the file.
    jobs: RwLock<HashSet<JobId>>,
}

/// What the rows of a whole store say.
#[derive(Debug, Default)]
pub(super) struct Totals {
    /// Bytes that can be read.
    pub(super) used: u64,
    /// Bytes that are named, by segment.
    pub(super) named: BTreeMap<u32, u64>,
    /// Jobs that have rows.
    jobs: HashSet<JobId>,
}

/// A row of a segment that goes.
#[derive(Debug)]
pub(super) struct Doomed {
    pub(super) id: AttemptId,
    pub(super) stream: Stream,
    pub(super) extent: Extent,
    /// What was dropped of its stream before.
    dropped_below: u64,
}

impl Doomed {
    /// Bytes of it that could be read.
    pub(super) fn live(&self) -> u64 {
        self.extent.end().saturating_sub(self.extent.start.max(self.dropped_below))
    }
}

/// The right to change rows.
pub(super) struct Writing<'a> {
    connection: MutexGuard<'a, Connection>,
    path: &'a Path,
}

impl Index {
    pub(super) fn open(folder: &Path) -> Result<(Index, Totals), OpenError> {
        let path = folder.join(SCHEMA.file);
        let connection = sqlite::open(folder, &SCHEMA)?;
        let mut totals = totals(&connection).map_err(|error| sqlite::open_error(&path, error))?;
        let readers = Readers::new(path.clone());
        let jobs = RwLock::new(std::mem::take(&mut totals.jobs));
        Ok((Index { path, writing: Mutex::new(connection), readers, jobs }, totals))
    }

    /// What it knows of an attempt.
    pub(super) fn load(&self, id: AttemptId, into: &mut Attempt) -> Result<(), LoadError> {
        if !self.may_know(id.job) {
            into.is_loaded = true;
            return Ok(());
        }
        (into.stdout, into.stderr) = self
            .readers
            .with(|rows| Ok::<_, LoadError>((load(rows, id, Stream::Stdout)?, load(rows, id, Stream::Stderr)?)))?;
        into.is_loaded = true;
        Ok(())
    }

    fn may_know(&self, job: JobId) -> bool {
        self.jobs.read().unwrap_or_else(PoisonError::into_inner).contains(&job)
    }

    /// The job is about to have rows.
    pub(super) fn expect(&self, job: JobId) {
        self.jobs.write().unwrap_or_else(PoisonError::into_inner).insert(job);
    }

    /// The first attempts of those from `first` to `last` that have rows.
    pub(super) fn attempts(&self, first: AttemptId, last: AttemptId, most: usize) -> rusqlite::Result<Vec<AttemptId>> {
        if first.job == last.job && !self.may_know(first.job) {
            return Ok(Vec::new());
        }
        self.readers.with(|rows| {
            // From attempt to attempt, not from row to row.
            let mut next = rows.prepare_cached(
                "SELECT job, task, attempt FROM (
                    SELECT * FROM (SELECT job, task, attempt FROM extents WHERE (job, task, attempt) > (?1, ?2, ?3)
                        ORDER BY job, task, attempt LIMIT 1)
                    UNION ALL
                    SELECT * FROM (SELECT job, task, attempt FROM dropped WHERE (job, task, attempt) > (?1, ?2, ?3)
                        ORDER BY job, task, attempt LIMIT 1)
                    ORDER BY 1, 2, 3 LIMIT 1)",
            )?;
            let mut after = (number(first.job.0), i64::from(first.task.0), i64::from(first.attempt) - 1);
            let mut found: Vec<AttemptId> = Vec::new();
            while found.len() < most {
                let id = next
                    .query_row(params![after.0, after.1, after.2], |row| {
                        Ok(AttemptId { job: JobId(unsigned(row, 0)?), task: TaskId(row.get(1)?), attempt: row.get(2)? })
                    })
                    .optional()?;
                let Some(id) = id.filter(|id| *id <= last) else { break };
                after = (number(id.job.0), i64::from(id.task.0), i64::from(id.attempt));
                found.push(id);
            }
            Ok(found)
        })
    }

    /// What is in a segment, by stream and start.
    pub(super) fn in_segment(&self, segment: u32) -> rusqlite::Result<Vec<Doomed>> {
        self.readers.with(|rows| {
            let mut found = rows.prepare_cached(
                "SELECT e.job, e.task, e.attempt, e.stream, e.start, e.length, e.segment, e.position, e.sum,
                    COALESCE(d.below, 0)
                 FROM extents e LEFT JOIN dropped d USING (job, task, attempt, stream)
                 WHERE e.segment = ?1 ORDER BY 1, 2, 3, 4, 5",
            )?;
            let doomed = found.query_map([segment], |row| {
                let id = AttemptId { job: JobId(unsigned(row, 0)?), task: TaskId(row.get(1)?), attempt: row.get(2)? };
                Ok(Doomed {
                    id,
                    stream: stream(row.get(3)?),
                    extent: extent(row, 4)?,
                    dropped_below: unsigned(row, 9)?,
                })
            })?;
            doomed.collect()
        })
    }

    /// The right to change rows, for one at a time.
    pub(super) fn writing(&self) -> Writing<'_> {
        let connection = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        Writing { connection, path: &self.path }
    }
}

impl Writing<'_> {
    /// All that `change` does, or nothing.
    pub(super) fn change(
        &mut self,
        change: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<()>,
    ) -> Result<(), Failure> {
        let done = self.connection.transaction().and_then(|rows| {
            change(&rows)?;
            rows.commit()
        });
        done.map_err(|error| failure(&error, self.path))
    }
}

fn failure(error: &rusqlite::Error, path: &Path) -> Failure {
    let kind = match sqlite::fault(error, path) {
        Fault::Full => io::ErrorKind::StorageFull,
        Fault::ReadOnly => io::ErrorKind::ReadOnlyFilesystem,
        Fault::Corrupt => io::ErrorKind::InvalidData,
        Fault::Other => io::ErrorKind::Other,
    };
    Failure::of(&io::Error::new(
        kind,
        format!("the index of outputs in {} could not be written: {error}", path.display()),
    ))
}

/// Rows for `extents`, in place of those of the stream from `from` on.
pub(super) fn put(
    rows: &Transaction<'_>,
    id: AttemptId,
    of: Stream,
    from: u64,
    extents: &[Extent],
) -> rusqlite::Result<()> {
    let AttemptId { job, task, attempt } = id;
    rows.prepare_cached("DELETE FROM extents WHERE (job, task, attempt, stream) = (?1, ?2, ?3, ?4) AND start >= ?5")?
        .execute(params![number(job.0), task.0, attempt, code(of), number(from)])?;
    let mut insert = rows.prepare_cached("INSERT INTO extents VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")?;
    for extent in extents {
        let Extent { start, length, segment, position, sum } = *extent;
        let key = params![
            number(job.0),
            task.0,
            attempt,
            code(of),
            number(start),
            length,
            segment,
            position,
            sum.cast_signed(),
        ];
        insert.execute(key)?;
    }
    Ok(())
}

/// No row for what is below `below`, and a row that says so.
pub(super) fn drop_below(rows: &Transaction<'_>, id: AttemptId, of: Stream, below: u64) -> rusqlite::Result<()> {
    let AttemptId { job, task, attempt } = id;
    let key = params![number(job.0), task.0, attempt, code(of), number(below)];
    rows.prepare_cached(
        "DELETE FROM extents WHERE (job, task, attempt, stream) = (?1, ?2, ?3, ?4) AND start < ?5 AND start + length <= ?5",
    )?
    .execute(key)?;
    rows.prepare_cached(
        "INSERT INTO dropped VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT DO UPDATE SET below = MAX(below, excluded.below)",
    )?
    .execute(key)?;
    Ok(())
}

/// No row for an attempt.
pub(super) fn forget(rows: &Transaction<'_>, id: AttemptId) -> rusqlite::Result<()> {
    for table in ["extents", "dropped"] {
        rows.prepare_cached(&format!("DELETE FROM {table} WHERE (job, task, attempt) = (?1, ?2, ?3)"))?
            .execute(params![number(id.job.0), id.task.0, id.attempt])?;
    }
    Ok(())
}

fn load(rows: &Connection, id: AttemptId, of: Stream) -> Result<Output, LoadError> {
    let key = params![number(id.job.0), id.task.0, id.attempt, code(of)];
    let below = rows
        .prepare_cached(
            "SELECT COALESCE(MAX(below), 0) FROM dropped WHERE (job, task, attempt, stream) = (?1, ?2, ?3, ?4)",
        )?
        .query_row(key, |row| unsigned(row, 0))?;
    let mut found = rows.prepare_cached(
        "SELECT start, length, segment, position, sum FROM extents
         WHERE (job, task, attempt, stream) = (?1, ?2, ?3, ?4) ORDER BY start",
    )?;
    let extents = found.query_map(key, |row| extent(row, 0))?.collect::<rusqlite::Result<VecDeque<Extent>>>()?;
    let mut at = extents.front().map_or(0, |first| if first.start <= below { first.start } else { below });
    for extent in &extents {
        if extent.start != at {
            return Err(LoadError::Hole { stream: of, at });
        }
        at = extent.end();
    }
    Ok(Output::of(below, extents))
}

fn totals(rows: &Connection) -> rusqlite::Result<Totals> {
    let mut found = Totals::default();
    let mut by_segment = rows.prepare("SELECT segment, SUM(length) FROM extents GROUP BY segment")?;
    for segment in by_segment.query_map([], |row| Ok((row.get(0)?, unsigned(row, 1)?)))? {
        let (segment, named) = segment?;
        found.named.insert(segment, named);
        found.used += named;
    }
    for table in ["extents", "dropped"] {
        // From job to job, not from row to row.
        let mut jobs = rows.prepare(&format!(
            "WITH RECURSIVE jobs (job) AS (
                SELECT MIN(job) FROM {table}
                UNION ALL SELECT (SELECT MIN(job) FROM {table} t WHERE t.job > jobs.job) FROM jobs WHERE job IS NOT NULL)
             SELECT job FROM jobs WHERE job IS NOT NULL"
        ))?;
        for job in jobs.query_map([], |row| unsigned(row, 0))? {
            found.jobs.insert(JobId(job?));
        }
    }
    // Of an extent that is dropped in part, the rest is counted.
    let cut = rows.query_row(
        "SELECT COALESCE(SUM(MIN(d.below - e.start, e.length)), 0) FROM dropped d
         JOIN extents e USING (job, task, attempt, stream) WHERE e.start < d.below",
        [],
        |row| unsigned(row, 0),
    )?;
    found.used = found.used.saturating_sub(cut);
    Ok(found)
}

/// Every row that names bytes, in the order in which they stand in the segments, for who copies them.
pub(crate) fn extents(rows: &Connection) -> rusqlite::Result<Vec<Extent>> {
    let mut all =
        rows.prepare("SELECT start, length, segment, position, sum FROM extents ORDER BY segment, position")?;
    all.query_map([], |row| extent(row, 0))?.collect()
}

fn extent(row: &Row<'_>, from: usize) -> rusqlite::Result<Extent> {
    let sum: i64 = row.get(from + 4)?;
    Ok(Extent {
        start: unsigned(row, from)?,
        length: row.get(from + 1)?,
        segment: row.get(from + 2)?,
        position: row.get(from + 3)?,
        sum: sum.cast_unsigned(),
    })
}

fn stream(code: u8) -> Stream {
    if code == code_of_stderr() { Stream::Stderr } else { Stream::Stdout }
}

fn code(stream: Stream) -> u8 {
    match stream {
        Stream::Stdout => 1,
        Stream::Stderr => code_of_stderr(),
    }
}

const fn code_of_stderr() -> u8 {
    2
}

/// SQLite's numbers have a sign. Ids and lengths stay below 2^53; whatever is beyond is as large as can be.
fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, value))
}
