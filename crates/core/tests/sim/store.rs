//! The model of the store: a journal that is durable a little later, and outputs that are visible before they are durable.
//!
//! Always true: rows become durable in order; when one fails, all behind it that are under way fail too; a crash keeps a
//! beginning of what was under way; an output falls back to something between what is durable and what was visible.
//! Deliberately not here: the driver that uses it (`hub`), and files.

use crate::rng::Rng;
use essaim_core::hub::{Durable, Record, decode_batch, encode_batch};
use essaim_proto::{AttemptId, JobId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Both streams of an attempt.
pub(crate) type Bytes = [Vec<u8>; 2];

/// A row of the journal: the records of one batch.
pub(crate) type Row = Vec<Record>;

/// How the disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Disk {
    Well,
    /// Appends are taken, and there is no room for anything new.
    Reserve,
    Full,
    Failing,
}

/// The output of one attempt.
#[derive(Debug, Clone, Default)]
pub(crate) struct Output {
    pub(crate) visible: Bytes,
    pub(crate) durable: [usize; 2],
}

impl Output {
    pub(crate) fn visible_lengths(&self) -> [u64; 2] {
        self.visible.each_ref().map(|bytes| bytes.len() as u64)
    }

    pub(crate) fn durable_lengths(&self) -> [u64; 2] {
        self.durable.map(|length| length as u64)
    }
}

/// All that is on the hub's disk.
#[derive(Debug)]
pub(crate) struct Store {
    /// The state at `snapshot.0` rows; what is before was trimmed.
    snapshot: (u64, Durable),
    snapshot_bytes: Option<Vec<u8>>,
    rows: Vec<Row>,
    row_bytes: Vec<Vec<u8>>,
    pub(crate) under_way: VecDeque<(u64, Row)>,
    pub(crate) outputs: BTreeMap<AttemptId, Output>,
    pub(crate) disk: Disk,
    pub(crate) slow_until: u64,
    /// When the last append that was asked for is on the disk, and when the driver hears of it.
    pub(crate) last_persist: u64,
    pub(crate) last_notice: u64,
    as_bytes: bool,
}

impl Store {
    pub(crate) fn new(as_bytes: bool) -> Store {
        Store {
            snapshot: (0, Durable::default()),
            snapshot_bytes: None,
            rows: Vec::new(),
            row_bytes: Vec::new(),
            under_way: VecDeque::new(),
            outputs: BTreeMap::new(),
            disk: Disk::Well,
            slow_until: 0,
            last_persist: 0,
            last_notice: 0,
            as_bytes,
        }
    }

    /// The sequence of the last durable row.
    pub(crate) fn last(&self) -> u64 {
        self.snapshot.0 + self.rows.len() as u64
    }

    /// The oldest row under way is on the disk, unless it expects another row before it.
    pub(crate) fn persist(&mut self) -> Option<Row> {
        let (seq, row) = self.under_way.pop_front()?;
        if seq != self.last() + 1 {
            return None;
        }
        if self.as_bytes {
            self.row_bytes.push(encode_batch(&row));
        }
        for record in &row {
            if let Record::TaskEnded { attempt, output: Some(small), .. } = record {
                let output = self.outputs.entry(*attempt).or_default();
                output.visible = [small.stdout.clone(), small.stderr.clone()];
                output.durable = output.visible.each_ref().map(Vec::len);
            }
        }
        for record in &row {
            let Record::TasksEnded { job, ends, .. } = record else { continue };
            for end in ends.iter().filter(|end| end.stdout.len() + end.stderr.len() > 0) {
                let attempt = AttemptId { job: *job, task: end.task, attempt: end.attempt };
                let output = self.outputs.entry(attempt).or_default();
                output.visible = [end.stdout.clone(), end.stderr.clone()];
                output.durable = output.visible.each_ref().map(Vec::len);
            }
        }
        self.rows.push(row.clone());
        Some(row)
    }

    /// For the sabotage of a disk that lies.
    pub(crate) fn forget_last_row(&mut self) {
        if self.rows.pop().is_some() {
            self.row_bytes.pop();
        }
    }

    /// What a restart finds.
    pub(crate) fn replay(&self) -> Durable {
        let mut durable = match &self.snapshot_bytes {
            Some(bytes) => essaim_proto::decode(bytes).unwrap(),
            None => self.snapshot.1.clone(),
        };
        for (at, row) in self.rows.iter().enumerate() {
            match self.row_bytes.get(at) {
                Some(bytes) => decode_batch(bytes).unwrap().iter().for_each(|record| durable.apply(record)),
                None => row.iter().for_each(|record| durable.apply(record)),
            }
        }
        durable
    }

    /// Jobs of the records after that sequence.
    pub(crate) fn jobs_after(&self, seq: u64) -> BTreeSet<JobId> {
        let first = seq.saturating_sub(self.snapshot.0) as usize;
        self.rows.iter().skip(first).flatten().filter_map(Record::job).collect()
    }

    pub(crate) fn rows_since_snapshot(&self) -> u64 {
        self.rows.len() as u64
    }

    /// The state after `seq` rows; what is before is trimmed.
    pub(crate) fn take_snapshot(&mut self, seq: u64, durable: &Durable) {
        let trimmed = (seq - self.snapshot.0) as usize;
        self.rows.drain(..trimmed);
        if self.as_bytes {
            self.row_bytes.drain(..trimmed);
            self.snapshot_bytes = Some(essaim_proto::encode(durable));
        }
        self.snapshot = (seq, durable.clone());
    }

    /// The process is gone: what was not durable may be there or not.
    pub(crate) fn fall_back(&mut self, rng: &mut Rng) {
        let all = rng.percent(50);
        for output in self.outputs.values_mut() {
            for (bytes, durable) in output.visible.iter_mut().zip(&mut output.durable) {
                let kept = if all { *durable } else { rng.between(*durable as u64, bytes.len() as u64) as usize };
                bytes.truncate(kept);
                *durable = kept;
            }
        }
    }
}
