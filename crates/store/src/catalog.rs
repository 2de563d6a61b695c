//! The catalog: jobs that are over, to be listed, searched and shown long after the hub's state forgot them, and how each
//! task of an array ended, from the moment on at which that is durable.
//!
//! The hub's applier writes it, behind the journal; its readers list from it. Never on the path of a reply to a worker.
//! Always true: rows and the sequence up to which the journal was applied change together, so an applier that was killed
//! goes on where it was; a reader has its own connection, sees one moment and does not wait for the writer.
//! Deliberately not here: jobs that run (`core` has them), what a `view` and the ends of tasks hold, when a job is old (the
//! hub decides).

use crate::error::{CatalogError, OpenError};
use crate::folder::FolderLock;
use crate::limits::{CATALOG_PARTS_BYTES, CATALOG_ROWS_MAX};
use crate::port::{Seq, Small};
use crate::sqlite::{self, Fault, Readers, Schema};
use essaim_proto::job::JobState;
use essaim_proto::{AttemptId, JobId, TaskId};
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Row, params, params_from_iter};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

pub(crate) const SCHEMA: Schema = Schema { file: "catalog.db", steps: &[VERSION_1, VERSION_2] };

// `job` is slim, so that looking at every job of a hundred thousand is quick; what is long is in `body`. An index has all
// columns that a filter looks at: the row itself is only read for a match. `applied` is the sequence with which the row
// came: a backup takes away what is ahead of its journal.
const VERSION_1: &str = "
    CREATE TABLE meta (one INTEGER PRIMARY KEY CHECK (one = 1), applied INTEGER NOT NULL) STRICT;
    INSERT INTO meta VALUES (1, 0);
    CREATE TABLE job (
        id INTEGER PRIMARY KEY, owner TEXT NOT NULL, name TEXT NOT NULL, folded TEXT NOT NULL, state TEXT NOT NULL,
        node TEXT NOT NULL, submitted_ms INTEGER NOT NULL, ended_ms INTEGER NOT NULL, task INTEGER NOT NULL,
        attempt INTEGER NOT NULL, applied INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX job_owner ON job (owner, id, state, node, folded);
    CREATE INDEX job_node ON job (node, id, state, folded);
    CREATE INDEX job_state ON job (state, id, folded);
    CREATE INDEX job_ended ON job (ended_ms, id);
    CREATE TABLE body (id INTEGER PRIMARY KEY, view BLOB NOT NULL, stdout BLOB, stderr BLOB) STRICT;
";

// A row of `ends` is how some thousand tasks of one array ended, in the order in which they did: `id` rises, so that a
// reader goes on where it was. `began` is what had been applied before the row's transaction: a backup that takes the
// row away gives its sequences to the journal again.
const VERSION_2: &str = "
    ALTER TABLE job ADD COLUMN began INTEGER;
    CREATE TABLE ends (
        id INTEGER PRIMARY KEY, job INTEGER NOT NULL, first_task INTEGER NOT NULL, last_task INTEGER NOT NULL,
        began INTEGER NOT NULL, applied INTEGER NOT NULL, body BLOB NOT NULL
    ) STRICT;
    CREATE INDEX ends_job ON ends (job, applied);
    CREATE INDEX ends_task ON ends (job, first_task, last_task);
";

/// A finished job as the applier hands it in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CatalogRow {
    /// Which.
    pub job: JobId,
    /// Whose.
    pub owner: String,
    /// Its name.
    pub name: String,
    /// How it ended.
    pub state: JobState,
    /// Where its last task ran; empty when none did.
    pub node: String,
    /// When it was submitted.
    pub submitted_ms: u64,
    /// When it was over.
    pub ended_ms: u64,
    /// Its last attempt, whose output is the job's.
    pub attempt: AttemptId,
    /// The job as its owner sees it, encoded by the hub.
    pub view: Vec<u8>,
    /// Its whole output, when that was small.
    pub output: Option<Small>,
}

/// How some tasks of an array ended, as the applier hands it in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CatalogEnds {
    /// Of which job.
    pub job: JobId,
    /// The smallest number among them,
    pub first: TaskId,
    /// and the greatest.
    pub last: TaskId,
    /// How they ended, encoded by the hub.
    pub body: Vec<u8>,
}

/// How some tasks of an array ended, as a reader gets it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CatalogPart {
    /// Rises with what is applied: a reader goes on behind the last one that it has.
    pub id: u64,
    /// The smallest number among them,
    pub first: TaskId,
    /// and the greatest.
    pub last: TaskId,
    /// How they ended.
    pub body: Vec<u8>,
}

/// A finished job as a list gives it: all but the output.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CatalogJob {
    /// Which.
    pub job: JobId,
    /// Whose.
    pub owner: String,
    /// Its name.
    pub name: String,
    /// How it ended.
    pub state: JobState,
    /// Where its last task ran; empty when none did.
    pub node: String,
    /// When it was submitted.
    pub submitted_ms: u64,
    /// When it was over.
    pub ended_ms: u64,
    /// Its last attempt, whose output is the job's.
    pub attempt: AttemptId,
    /// The job as its owner sees it, encoded by the hub.
    pub view: Vec<u8>,
}

/// Which jobs to list. What is empty or `None` does not filter.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CatalogQuery {
    /// Only jobs with a smaller id.
    pub before: Option<JobId>,
    /// At most so many, and never more than [`crate::limits::CATALOG_ROWS_MAX`].
    pub limit: usize,
    /// In one of these states.
    pub states: Vec<JobState>,
    /// Of this owner.
    pub owner: Option<String>,
    /// Whose last task ran on this node.
    pub node: Option<String>,
    /// Whose name contains this, whatever the case of its letters.
    pub text: Option<String>,
}

/// Jobs that are over. A cheap handle.
#[derive(Debug, Clone)]
pub struct Catalog(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// `None`: in memory, where everybody uses the one connection. Closed before the writer, which tidies up.
    readers: Option<Readers>,
    writer: Mutex<Connection>,
    path: PathBuf,
    /// Given back after the database is closed.
    _lock: Option<Arc<FolderLock>>,
}

impl Catalog {
    /// The catalog in a store's folder, which `lock` says is ours.
    pub(crate) fn open(folder: &Path, lock: Arc<FolderLock>) -> Result<Catalog, OpenError> {
        let path = folder.join(SCHEMA.file);
        let writer = Mutex::new(sqlite::open(folder, &SCHEMA)?);
        Ok(Catalog(Arc::new(Inner { writer, readers: Some(Readers::new(path.clone())), path, _lock: Some(lock) })))
    }

    pub(crate) fn in_memory() -> Result<Catalog, OpenError> {
        let writer = Mutex::new(sqlite::open_in_memory(&SCHEMA)?);
        Ok(Catalog(Arc::new(Inner { writer, readers: None, path: SCHEMA.file.into(), _lock: None })))
    }

    /// The sequence of the journal up to which it was applied.
    ///
    /// # Errors
    /// When the back-end fails.
    pub fn applied(&self) -> Result<Seq, CatalogError> {
        self.read(|connection| Ok(Seq(applied(connection)?)))
    }

    /// Puts the jobs and the tasks of arrays in that ended up to sequence `to`, and `to` with them: all or nothing. A job
    /// that is there already is replaced; its output stays when the new row has none. Nothing happens when it was applied up to `to` before.
    ///
    /// # Errors
    /// Disk full, read-only, damaged: what is there stays.
    pub fn apply(&self, to: Seq, rows: &[CatalogRow], ends: &[CatalogEnds]) -> Result<(), CatalogError> {
        self.write(|transaction| {
            let began = applied(transaction)?;
            if to.0 <= began {
                return Ok(());
            }
            put_ends(transaction, began, to, ends)?;
            let mut job = transaction.prepare_cached(
                "INSERT OR REPLACE INTO job (id, owner, name, folded, state, node, submitted_ms, ended_ms, task, attempt, \
                 began, applied) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )?;
            // A row that is written again, for something that was learnt later, comes without its output.
            let mut body = transaction.prepare_cached(
                "INSERT INTO body (id, view, stdout, stderr) VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET \
                 view = excluded.view, stdout = coalesce(excluded.stdout, stdout), \
                 stderr = coalesce(excluded.stderr, stderr)",
            )?;
            for row in rows {
                job.execute(params![
                    row.job.0 as i64,
                    row.owner,
                    row.name,
                    row.name.to_lowercase(),
                    row.state.name(),
                    row.node,
                    row.submitted_ms as i64,
                    row.ended_ms as i64,
                    row.attempt.task.0,
                    row.attempt.attempt,
                    began as i64,
                    to.0 as i64,
                ])?;
                let output = row.output.as_ref();
                body.execute(params![
                    row.job.0 as i64,
                    row.view,
                    output.map(|small| &small.stdout),
                    output.map(|small| &small.stderr),
                ])?;
            }
            transaction.execute("UPDATE meta SET applied = ?", [to.0 as i64])?;
            Ok(())
        })
    }

    /// Jobs that match, newest first.
    ///
    /// # Errors
    /// When the back-end fails.
    pub fn list(&self, query: &CatalogQuery) -> Result<Vec<CatalogJob>, CatalogError> {
        let (wanted, values) = filter(query);
        let sql = format!("SELECT {COLUMNS} FROM job JOIN body USING (id) {wanted} ORDER BY job.id DESC LIMIT ?");
        self.read(|connection| {
            let mut select = connection.prepare_cached(&sql)?;
            select.query_map(params_from_iter(values), job_of)?.collect()
        })
    }

    /// One job. `None`: it is not here, never was or was removed.
    ///
    /// # Errors
    /// When the back-end fails.
    pub fn job(&self, job: JobId) -> Result<Option<CatalogJob>, CatalogError> {
        let sql = format!("SELECT {COLUMNS} FROM job JOIN body USING (id) WHERE job.id = ?");
        self.read(|connection| connection.prepare_cached(&sql)?.query_row([job.0 as i64], job_of).optional())
    }

    /// The output of a job that printed little. `None`: the job is not here, or its output is among the large ones.
    ///
    /// # Errors
    /// When the back-end fails.
    pub fn output(&self, job: JobId) -> Result<Option<Small>, CatalogError> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT stdout, stderr FROM body WHERE id = ? AND stdout IS NOT NULL")?
                .query_row([job.0 as i64], |row| Ok(Small { stdout: row.get(0)?, stderr: row.get(1)? }))
                .optional()
        })
    }

    /// How tasks of an array ended, in the order in which they did: what came with sequences after `after`, behind the part
    /// with the id `behind`. No more than one part beyond [`CATALOG_PARTS_BYTES`].
    ///
    /// # Errors
    /// When the back-end fails.
    pub fn ends_after(&self, job: JobId, after: Seq, behind: u64) -> Result<Vec<CatalogPart>, CatalogError> {
        self.read(|connection| {
            let mut select = connection.prepare_cached(
                "SELECT id, first_task, last_task, body FROM ends WHERE job = ? AND applied > ? AND id > ? \
                 ORDER BY applied, id",
            )?;
            some_parts(select.query(params![job.0 as i64, after.0 as i64, behind as i64])?)
        })
    }

    /// The parts that may tell how tasks of an array from `first` to `last` ended, by their smallest task, without those
    /// that come before `behind`. No more than one part beyond [`CATALOG_PARTS_BYTES`].
    ///
    /// # Errors
    /// When the back-end fails.
    pub fn ends_among(
        &self,
        job: JobId,
        first: TaskId,
        last: TaskId,
        behind: Option<&CatalogPart>,
    ) -> Result<Vec<CatalogPart>, CatalogError> {
        let (task, id) = behind.map_or((-1, 0), |part| (i64::from(part.first.0), part.id as i64));
        self.read(|connection| {
            let mut select = connection.prepare_cached(
                "SELECT id, first_task, last_task, body FROM ends WHERE job = ? AND first_task <= ? AND last_task >= ? \
                 AND (first_task, id) > (?, ?) ORDER BY first_task, id",
            )?;
            some_parts(select.query(params![job.0 as i64, last.0, first.0, task, id])?)
        })
    }

    /// Removes the jobs that ended first: those that ended before `ended_before_ms`, and as many more as there are beyond
    /// `keep_max`; no more than `at_most` in one call. Says which.
    ///
    /// # Errors
    /// Disk full, read-only, damaged: nothing was removed.
    pub fn expire(&self, ended_before_ms: u64, keep_max: usize, at_most: usize) -> Result<Vec<JobId>, CatalogError> {
        self.write(|transaction| {
            let count: i64 = transaction.query_row("SELECT count(*) FROM job", [], |row| row.get(0))?;
            let beyond = usize::try_from(count).unwrap_or(usize::MAX).saturating_sub(keep_max);
            let mut oldest =
                transaction.prepare_cached("SELECT id, ended_ms FROM job ORDER BY ended_ms, id LIMIT ?")?;
            let mut rows = oldest.query([at_most as i64])?;
            let mut gone = Vec::new();
            while let Some(row) = rows.next()? {
                let ended_ms = row.get::<_, i64>(1)? as u64;
                if gone.len() >= beyond && ended_ms >= ended_before_ms {
                    break;
                }
                gone.push(JobId(row.get::<_, i64>(0)? as u64));
            }
            drop(rows);
            for (table, id) in [("job", "id"), ("body", "id"), ("ends", "job")] {
                let mut delete = transaction.prepare_cached(&format!("DELETE FROM {table} WHERE {id} = ?"))?;
                for job in &gone {
                    delete.execute([job.0 as i64])?;
                }
            }
            Ok(gone)
        })
    }

    fn read<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, CatalogError> {
        match &self.0.readers {
            Some(readers) => readers.with(read),
            None => read(&self.writer()),
        }
        .map_err(|error| self.failed(error))
    }

    fn write<T>(&self, write: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, CatalogError> {
        let mut connection = self.writer();
        let attempt = move || {
            let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            let done = write(&transaction)?;
            transaction.commit()?;
            Ok(done)
        };
        attempt().map_err(|error| self.failed(error))
    }

    fn writer(&self) -> std::sync::MutexGuard<'_, Connection> {
        // A transaction that a panic left is rolled back by its guard: the connection is whole.
        self.0.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, error: rusqlite::Error) -> CatalogError {
        match sqlite::fault(&error, &self.0.path) {
            Fault::Full => CatalogError::Full(error.into()),
            Fault::ReadOnly => CatalogError::ReadOnly(error.into()),
            Fault::Corrupt => CatalogError::Corrupt(error.into()),
            Fault::Other => CatalogError::Io(error.into()),
        }
    }
}

fn applied(connection: &Connection) -> rusqlite::Result<u64> {
    connection
        .prepare_cached("SELECT applied FROM meta")?
        .query_row([], |row| row.get::<_, i64>(0))
        .map(|applied| applied as u64)
}

fn put_ends(transaction: &Connection, began: u64, to: Seq, ends: &[CatalogEnds]) -> rusqlite::Result<()> {
    let mut part = transaction.prepare_cached(
        "INSERT INTO ends (job, first_task, last_task, began, applied, body) VALUES (?, ?, ?, ?, ?, ?)",
    )?;
    for ends in ends {
        let (began, to) = (began as i64, to.0 as i64);
        part.execute(params![ends.job.0 as i64, ends.first.0, ends.last.0, began, to, ends.body])?;
    }
    Ok(())
}

/// As many parts as a reader takes at once.
fn some_parts(mut rows: rusqlite::Rows<'_>) -> rusqlite::Result<Vec<CatalogPart>> {
    let (mut parts, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let id = row.get::<_, i64>(0)? as u64;
        let body: Vec<u8> = row.get(3)?;
        bytes += body.len();
        parts.push(CatalogPart { id, first: TaskId(row.get(1)?), last: TaskId(row.get(2)?), body });
        if bytes >= CATALOG_PARTS_BYTES || parts.len() >= CATALOG_ROWS_MAX {
            break;
        }
    }
    Ok(parts)
}

/// Takes away what came from beyond sequence `last`: this is a copy, and its journal ends there. What came in one
/// transaction goes as a whole, and is taken from the journal again.
pub(crate) fn cut(copy: &Connection, last: Seq) -> rusqlite::Result<()> {
    let last = last.0 as i64;
    let transaction = copy.unchecked_transaction()?;
    let began: Option<i64> = transaction.query_row(
        "SELECT min(began) FROM (SELECT began FROM job WHERE applied > ?1 UNION ALL \
         SELECT began FROM ends WHERE applied > ?1)",
        [last],
        |row| row.get(0),
    )?;
    transaction.execute("DELETE FROM body WHERE id IN (SELECT id FROM job WHERE applied > ?)", [last])?;
    transaction.execute("DELETE FROM job WHERE applied > ?", [last])?;
    transaction.execute("DELETE FROM ends WHERE applied > ?", [last])?;
    transaction.execute("UPDATE meta SET applied = min(applied, ?)", [last.min(began.unwrap_or(last))])?;
    transaction.commit()
}

const COLUMNS: &str = "job.id, owner, name, state, node, submitted_ms, ended_ms, task, attempt, view";

fn job_of(row: &Row<'_>) -> rusqlite::Result<CatalogJob> {
    let number = |column| row.get::<_, i64>(column).map(|number| number as u64);
    let job = JobId(number(0)?);
    Ok(CatalogJob {
        job,
        owner: row.get(1)?,
        name: row.get(2)?,
        state: state_of(row.get_ref(3)?.as_str()?),
        node: row.get(4)?,
        submitted_ms: number(5)?,
        ended_ms: number(6)?,
        attempt: AttemptId { job, task: TaskId(row.get(7)?), attempt: row.get(8)? },
        view: row.get(9)?,
    })
}

fn state_of(name: &str) -> JobState {
    use JobState::{Cancelled, Done, Failed, Queued, Running};
    [Done, Failed, Cancelled, Queued, Running]
        .into_iter()
        .find(|state| state.name() == name)
        .unwrap_or(JobState::Unknown)
}

/// The conditions of a query and their values, the limit last.
fn filter(query: &CatalogQuery) -> (String, Vec<Value>) {
    let mut conditions: Vec<String> = Vec::new();
    let mut values = Vec::new();
    if let Some(before) = query.before {
        conditions.push("job.id < ?".to_owned());
        // A database's numbers are signed.
        values.push(Value::Integer(i64::try_from(before.0).unwrap_or(i64::MAX)));
    }
    for (column, wanted) in [("owner", &query.owner), ("node", &query.node)] {
        if let Some(wanted) = wanted {
            conditions.push(format!("{column} = ?"));
            values.push(wanted.clone().into());
        }
    }
    match query.states.len() {
        0 => (),
        1 => conditions.push("state = ?".to_owned()),
        // The plus keeps the index of states away, which would give as many orders to be merged.
        count => conditions.push(format!("+state IN (?{})", ", ?".repeat(count - 1))),
    }
    values.extend(query.states.iter().map(|state| Value::from(state.name().to_owned())));
    if let Some(text) = query.text.as_deref().filter(|text| !text.is_empty()) {
        conditions.push("instr(folded, ?) > 0".to_owned());
        values.push(text.to_lowercase().into());
    }
    let wanted = if conditions.is_empty() { String::new() } else { format!("WHERE {}", conditions.join(" AND ")) };
    values.push(Value::Integer(query.limit.min(CATALOG_ROWS_MAX) as i64));
    (wanted, values)
}
