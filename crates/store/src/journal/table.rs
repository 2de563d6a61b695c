//! The journal's tables: each function is one question or one change, in the caller's transaction.
//!
//! The writer and the readers of the journal call it, and a backup that checks itself. Always true: every row that holds
//! bytes of the hub carries a checksum over its place and its bytes, so a row that changed or moved is found out.
//! Deliberately not here: what is allowed (`rules`), transactions, threads.

use crate::port::{Seq, Term};
use crate::rules::{Held, LeadState};
use crate::sqlite::Schema;
use rusqlite::{Connection, OptionalExtension, params};

pub(crate) const SCHEMA: Schema = Schema { file: "journal.db", steps: &[VERSION_1] };

// `base`: all batches up to this one were trimmed; rows of theirs that are still there count no more. A snapshot is the
// row in `snapshot` and the pieces of its generation; pieces without such a row count no more, or not yet.
const VERSION_1: &str = "
    CREATE TABLE meta (one INTEGER PRIMARY KEY CHECK (one = 1), base INTEGER NOT NULL) STRICT;
    INSERT INTO meta VALUES (1, 0);
    CREATE TABLE batch (seq INTEGER PRIMARY KEY, term INTEGER NOT NULL, sum BLOB NOT NULL, bytes BLOB NOT NULL) STRICT;
    CREATE TABLE lead (
        one INTEGER PRIMARY KEY CHECK (one = 1), newest INTEGER NOT NULL, holder TEXT NOT NULL, term INTEGER NOT NULL,
        expires_ms INTEGER NOT NULL
    ) STRICT;
    INSERT INTO lead VALUES (1, 0, '', 0, 0);
    CREATE TABLE snapshot (
        generation INTEGER PRIMARY KEY, at INTEGER NOT NULL, pieces INTEGER NOT NULL, sum BLOB NOT NULL
    ) STRICT;
    CREATE TABLE piece (
        generation INTEGER NOT NULL, number INTEGER NOT NULL, sum BLOB NOT NULL, bytes BLOB NOT NULL,
        PRIMARY KEY (generation, number)
    ) STRICT;
";

/// The checksum of a row: over what says where it belongs, and its bytes.
fn sum(place: [u64; 2], bytes: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for number in place {
        hasher.update(&number.to_le_bytes());
    }
    hasher.update(bytes);
    *hasher.finalize().as_bytes()
}

pub(crate) fn base(connection: &Connection) -> rusqlite::Result<Seq> {
    connection.prepare_cached("SELECT base FROM meta")?.query_row([], |row| row.get::<_, i64>(0)).map(|n| Seq(n as u64))
}

/// The newest sequence, whether trimmed or not.
pub(crate) fn last(connection: &Connection) -> rusqlite::Result<Seq> {
    let newest: Option<i64> =
        connection.prepare_cached("SELECT max(seq) FROM batch")?.query_row([], |row| row.get(0))?;
    Ok(base(connection)?.max(Seq(newest.unwrap_or(0) as u64)))
}

/// Bytes of the batches with `above < seq <= to`.
pub(crate) fn bytes_between(connection: &Connection, above: Seq, to: Seq) -> rusqlite::Result<u64> {
    connection
        .query_row(
            "SELECT coalesce(sum(length(bytes)), 0) FROM batch WHERE seq > ? AND seq <= ?",
            [above.0 as i64, to.0 as i64],
            |row| row.get::<_, i64>(0),
        )
        .map(|bytes| bytes as u64)
}

pub(crate) fn insert(connection: &Connection, seq: Seq, term: Term, bytes: &[u8]) -> rusqlite::Result<()> {
    connection
        .prepare_cached("INSERT INTO batch (seq, term, sum, bytes) VALUES (?, ?, ?, ?)")?
        .execute(params![seq.0 as i64, term.0 as i64, sum([seq.0, term.0], bytes), bytes])
        .map(|_| ())
}

/// What a look at the next batch found.
pub(crate) enum Found {
    Batch(Vec<u8>),
    /// The row is missing, although later ones are there, or is not what was written.
    Damaged,
}

/// Gives the batches from `from` on to `take` until it says stop, or a batch is damaged, which is given last.
pub(crate) fn batches(
    connection: &Connection,
    from: Seq,
    mut take: impl FnMut(Seq, Found) -> bool,
) -> rusqlite::Result<()> {
    let mut select =
        connection.prepare_cached("SELECT seq, term, sum, bytes FROM batch WHERE seq >= ? ORDER BY seq")?;
    let mut rows = select.query([from.0 as i64])?;
    let mut next = from;
    while let Some(row) = rows.next()? {
        let (seq, term) = (row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64);
        let bytes = row.get_ref(3)?.as_blob()?;
        let is_whole = seq == next.0 && row.get_ref(2)?.as_blob()? == sum([seq, term], bytes);
        let found = if is_whole { Found::Batch(bytes.to_vec()) } else { Found::Damaged };
        if !take(next, found) || !is_whole {
            break;
        }
        next = next.next();
    }
    Ok(())
}

pub(crate) fn lead(connection: &Connection) -> rusqlite::Result<LeadState> {
    let mut select = connection.prepare_cached("SELECT newest, holder, term, expires_ms FROM lead")?;
    select.query_row([], |row| {
        let term = Term(row.get::<_, i64>(2)? as u64);
        let held = match term {
            Term(0) => None,
            // A time without end does not fit a signed number: its bits do.
            term => Some(Held { holder: row.get(1)?, term, expires_ms: row.get::<_, i64>(3)? as u64 }),
        };
        Ok(LeadState { newest: Term(row.get::<_, i64>(0)? as u64), held })
    })
}

pub(crate) fn set_lead(connection: &Connection, lead: &LeadState) -> rusqlite::Result<()> {
    let (holder, expires_ms) = lead.held.as_ref().map_or(("", 0), |held| (held.holder.as_str(), held.expires_ms));
    connection
        .prepare_cached("UPDATE lead SET newest = ?, holder = ?, term = ?, expires_ms = ?")?
        .execute(params![lead.newest.0 as i64, holder, lead.term().0 as i64, expires_ms as i64])
        .map(|_| ())
}

/// The latest snapshot that is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    generation: i64,
    pub(crate) at: Seq,
    pieces: i64,
    /// Is the row what was written?
    is_whole: bool,
}

impl Head {
    fn sum(generation: i64, at: Seq, pieces: i64) -> [u8; 32] {
        sum([generation as u64, at.0], &pieces.to_le_bytes())
    }
}

pub(crate) fn head(connection: &Connection) -> rusqlite::Result<Option<Head>> {
    connection
        .prepare_cached("SELECT generation, at, pieces, sum FROM snapshot ORDER BY generation DESC LIMIT 1")?
        .query_row([], |row| {
            let (generation, at, pieces) = (row.get(0)?, Seq(row.get::<_, i64>(1)? as u64), row.get(2)?);
            let is_whole = row.get_ref(3)?.as_blob()? == Head::sum(generation, at, pieces);
            Ok(Head { generation, at, pieces, is_whole })
        })
        .optional()
}

/// The bytes of a snapshot. `None`: it is damaged.
pub(crate) fn snapshot(connection: &Connection, head: Head) -> rusqlite::Result<Option<Vec<u8>>> {
    let mut select =
        connection.prepare_cached("SELECT number, sum, bytes FROM piece WHERE generation = ? ORDER BY number")?;
    let mut rows = select.query([head.generation])?;
    let mut whole = Vec::new();
    let mut next = 0;
    while let Some(row) = rows.next()? {
        let bytes = row.get_ref(2)?.as_blob()?;
        let number: i64 = row.get(0)?;
        if number != next || row.get_ref(1)?.as_blob()? != sum([head.generation as u64, number as u64], bytes) {
            return Ok(None);
        }
        whole.extend_from_slice(bytes);
        next += 1;
    }
    Ok((next == head.pieces && head.is_whole).then_some(whole))
}

/// A generation that no snapshot and no piece has.
pub(crate) fn new_generation(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row(
        "SELECT 1 + max((SELECT coalesce(max(generation), 0) FROM snapshot),
                        (SELECT coalesce(max(generation), 0) FROM piece))",
        [],
        |row| row.get(0),
    )
}

pub(crate) fn insert_piece(
    connection: &Connection,
    generation: i64,
    number: i64,
    bytes: &[u8],
) -> rusqlite::Result<()> {
    connection
        .prepare_cached("INSERT INTO piece (generation, number, sum, bytes) VALUES (?, ?, ?, ?)")?
        .execute(params![generation, number, sum([generation as u64, number as u64], bytes), bytes])
        .map(|_| ())
}

/// From now on the pieces of `generation` are the latest snapshot, and no other is one.
pub(crate) fn set_head(connection: &Connection, generation: i64, at: Seq, pieces: i64) -> rusqlite::Result<()> {
    connection.execute("DELETE FROM snapshot", [])?;
    connection
        .execute(
            "INSERT INTO snapshot (generation, at, pieces, sum) VALUES (?, ?, ?, ?)",
            params![generation, at.0 as i64, pieces, Head::sum(generation, at, pieces)],
        )
        .map(|_| ())
}

/// All batches up to `base` count no more.
pub(crate) fn set_base(connection: &Connection, base: Seq) -> rusqlite::Result<()> {
    connection.execute("UPDATE meta SET base = ?", [base.0 as i64]).map(|_| ())
}

/// Takes away at most about `bytes_max` bytes of what counts no more. Says if there may be more of it.
pub(crate) fn sweep(connection: &Connection, bytes_max: usize) -> rusqlite::Result<bool> {
    let dead_batches = "SELECT seq, length(bytes) FROM batch WHERE seq <= (SELECT base FROM meta) ORDER BY seq";
    let dead_pieces = "SELECT rowid, length(bytes) FROM piece
        WHERE generation NOT IN (SELECT generation FROM snapshot) ORDER BY generation, number";
    for (select, delete) in
        [(dead_batches, "DELETE FROM batch WHERE seq = ?"), (dead_pieces, "DELETE FROM piece WHERE rowid = ?")]
    {
        let mut bytes = 0;
        let mut dead: Vec<i64> = Vec::new();
        let mut select = connection.prepare_cached(select)?;
        let mut rows = select.query([])?;
        while bytes < bytes_max
            && let Some(row) = rows.next()?
        {
            dead.push(row.get(0)?);
            // An empty row costs something too.
            bytes += row.get::<_, i64>(1)? as usize + ROW_BYTES;
        }
        drop(rows);
        let mut delete = connection.prepare_cached(delete)?;
        for id in &dead {
            delete.execute([id])?;
        }
        if bytes > 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// About what a row takes beside its bytes.
const ROW_BYTES: usize = 64;
