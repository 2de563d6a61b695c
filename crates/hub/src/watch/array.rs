//! A watched array: its tasks one after the other, each with all of its output.
//!
//! [`super::Watching`] calls it for arrays. It follows the log of ended tasks ([`crate::ends`]): its tail in the job's
//! feed, and in the catalog what is older. A task is told when it has ended; what a running task prints is shown then.
//!
//! Always true: the output of a task is sent whole, between no two pieces of it another task's; a task is named in
//! [`JobEvent::ended`] once, behind its output; however many tasks there are and however slow the client is, a watch costs
//! a bit or two per task, a window of output, and [`ORDER_BYTES_MAX`] of output that waits for its turn.
//! Deliberately not here: single jobs, whose output is sent while they run.

use super::{Cursor, Step, Watching, Wrote};
use crate::catalog::unpacked;
use crate::ends::{Ends, Next, Places, Tail, shown};
use crate::feeds::Feed;
use crate::limits::{CATALOG_RETRY, ORDER_BYTES_MAX, TOLD_AT_ONCE};
use essaim_net::SendError;
use essaim_proto::api::{JobEvent, OutputChunk};
use essaim_proto::job::{TaskState, TaskView};
use essaim_proto::limits::{CHUNK_BYTES, OUTPUT_WINDOW_BYTES};
use essaim_proto::link::TaskEnd;
use essaim_proto::{AttemptId, Frame, Function, JobId, TaskId, TaskSet};
use essaim_store::{Seq, Small};
use std::collections::BTreeMap;

/// How far a watch is.
struct Log {
    job: JobId,
    /// The array's tasks; everything else counts by their places.
    ids: TaskSet,
    /// Tasks that were sent, or that are not wanted.
    sent: Places,
    /// Tasks that are still to be sent.
    left: u64,
    /// What ended up to here was seen,
    at: Seq,
    /// and in the catalog up to this part.
    part: u64,
    /// Sent, and not yet named in an event.
    told: Vec<TaskId>,
    /// How the job stands.
    stand: JobEvent,
    order: Option<Order>,
}

/// What waits for its turn.
struct Order {
    /// The place whose turn it is.
    next: u32,
    /// Tasks that have ended.
    ended: Places,
    /// Those of them that are at hand: as a rule the first ones.
    held: BTreeMap<u32, Held>,
    bytes: usize,
}

/// How a task ended, and where.
struct Held {
    end: TaskEnd,
    node: String,
}

impl Held {
    fn of(end: &TaskEnd, part: &Ends) -> Held {
        Held { end: end.clone(), node: part.node.clone() }
    }

    fn bytes(&self) -> usize {
        size_of::<Held>() + self.node.len() + self.end.stdout.len() + self.end.stderr.len()
    }
}

impl Log {
    fn new(job: JobId, ids: TaskSet, only: Option<&TaskSet>, in_order: bool) -> Log {
        let mut sent = Places::new(ids.len());
        let mut left = ids.len();
        if let Some(only) = only {
            let mut wanted = only.iter().peekable();
            for (place, task) in ids.iter().enumerate() {
                while wanted.next_if(|wanted| *wanted < task).is_some() {}
                if wanted.peek() != Some(&task) {
                    sent.set(place as u32);
                    left -= 1;
                }
            }
        }
        let order = || Order { next: 0, ended: Places::new(ids.len()), held: BTreeMap::new(), bytes: 0 };
        let order = in_order.then(order);
        let stand = JobEvent { job, ..JobEvent::default() };
        Log { job, ids, sent, left, at: Seq(0), part: 0, told: Vec::new(), stand, order }
    }

    /// A task has been dealt with.
    fn done(&mut self, place: u32, task: TaskId) {
        if self.sent.set(place) {
            self.left -= 1;
            self.told.push(task);
        }
    }
}

impl Order {
    /// Keeps it for its turn, if there is room or it comes before others that are kept.
    fn keep(&mut self, place: u32, held: Held) {
        let before = self.held.insert(place, held);
        self.bytes -= before.map_or(0, |held| held.bytes());
        self.bytes += self.held.get(&place).map_or(0, Held::bytes);
        while self.bytes > ORDER_BYTES_MAX {
            let Some((_, last)) = self.held.pop_last() else { return };
            self.bytes -= last.bytes();
        }
    }

    fn take(&mut self, place: u32) -> Option<Held> {
        let held = self.held.remove(&place)?;
        self.bytes -= held.bytes();
        Some(held)
    }
}

impl Watching {
    pub(super) async fn show_array(&mut self, event: JobEvent, ids: TaskSet) -> Result<(), SendError> {
        let mut log = Log::new(event.job, ids, self.tasks.as_ref(), self.in_order);
        log.stand = JobEvent { last: false, ..event };
        let head = self.past.last_end();
        while log.at < head && log.left > 0 {
            self.read_catalog(&mut log, head).await?;
        }
        self.end_array(&mut log, true).await
    }

    pub(super) async fn follow_array(&mut self, feed: &Feed, tail: &Tail) -> Result<(), SendError> {
        let (mut events, mut told) = (feed.event.subscribe(), tail.told.subscribe());
        let mut log: Option<Log> = None;
        let mut said = JobEvent::default();
        loop {
            // Marked as seen before the log is read, the event first: all ends that it follows from are in the log then.
            let newest = events.borrow_and_update().clone();
            let head = *told.borrow_and_update();
            if let Some(event) = newest {
                let begin = || Log::new(event.job, tail.ids.clone(), self.tasks.as_ref(), self.in_order);
                let log = log.get_or_insert_with(begin);
                log.stand = JobEvent { task: None, last: false, ..event.clone() };
                self.read_log(log, tail, head).await?;
                // All that is wanted was sent: of a job that is over, its last event is awaited.
                let has_all = log.left == 0 && !tail.is_over();
                if event.last || self.no_follow || has_all {
                    return self.end_array(log, event.last).await;
                }
                if !log.told.is_empty() || said != log.stand {
                    said = log.stand.clone();
                    self.tell_ends(log, None, false).await?;
                }
            }
            let changed = tokio::select! {
                changed = events.changed() => changed,
                changed = told.changed() => changed,
            };
            changed.map_err(|_| SendError::Closed)?;
        }
    }

    /// Sends what ended up to `head`.
    async fn read_log(&mut self, log: &mut Log, tail: &Tail, head: Seq) -> Result<(), SendError> {
        while log.at < head {
            match tail.next(log.at) {
                Next::Batch(seq, parts) => {
                    for part in parts {
                        self.take(log, &part).await?;
                    }
                    log.at = seq;
                }
                Next::InCatalog => self.read_catalog(log, head).await?,
                Next::Nothing => log.at = head,
            }
        }
        self.drain(log, false).await
    }

    /// Sends what the catalog has next; when that is all of it up to `head`, says so in the log.
    async fn read_catalog(&mut self, log: &mut Log, head: Seq) -> Result<(), SendError> {
        let Some((parts, is_whole)) = self.past.ends_after(log.job, log.at, log.part, head).await else {
            // It was said in the hub's log. Who watches waits for a disk like everybody else.
            tokio::time::sleep(CATALOG_RETRY).await;
            return Ok(());
        };
        if parts.is_empty() {
            match is_whole {
                true => log.at = head,
                false => tokio::time::sleep(CATALOG_RETRY).await,
            }
        }
        for part in parts {
            for ends in unpacked(log.job, &part.body) {
                self.take(log, &ends).await?;
            }
            log.part = part.id;
        }
        Ok(())
    }

    /// Sends the tasks of one record, or has them wait for their turn.
    async fn take(&mut self, log: &mut Log, part: &Ends) -> Result<(), SendError> {
        for end in &part.ends {
            let Some(place) = log.ids.index_of(end.task).filter(|place| !log.sent.has(*place)) else { continue };
            match &mut log.order {
                // What prints nothing disturbs no order.
                Some(order) if self.output && wrote(end) != [0, 0] => {
                    order.ended.set(place);
                    order.keep(place, Held::of(end, part));
                }
                _ => self.send_end(log, place, end, &part.node).await?,
            }
        }
        for task in part.cancelled.iter() {
            if let Some(place) = log.ids.index_of(task) {
                log.done(place, task);
            }
            self.tell_if_many(log).await?;
        }
        self.drain(log, false).await
    }

    /// In order: sends the tasks whose turn has come. At the end those that have ended, whatever is missing between them.
    async fn drain(&mut self, log: &mut Log, is_end: bool) -> Result<(), SendError> {
        let total = log.ids.len() as u32;
        while let Some(order) = &mut log.order {
            while order.next < total && log.sent.has(order.next) {
                order.next += 1;
            }
            let ended = (order.next..total).take(if is_end { usize::MAX } else { 1 });
            let ready = |place: &u32| order.ended.has(*place) && !log.sent.has(*place);
            let Some(place) = ended.into_iter().find(ready) else { return Ok(()) };
            order.next = place;
            match order.take(place) {
                Some(held) => self.send_end(log, place, &held.end, &held.node).await?,
                None => self.fetch(log, place).await?,
            }
        }
        Ok(())
    }

    /// Gets from the catalog what there was no room for when it came, and others behind it.
    async fn fetch(&mut self, log: &mut Log, place: u32) -> Result<(), SendError> {
        let Some(task) = log.ids.at(place) else { return Ok(()) };
        let mut behind = None;
        loop {
            let Ok(parts) = self.past.ends_among(log.job, (task, task), behind.take()).await else {
                tokio::time::sleep(CATALOG_RETRY).await;
                return Ok(());
            };
            if parts.is_empty() {
                // Retention took it.
                log.done(place, task);
                return Ok(());
            }
            for part in &parts {
                let all = unpacked(log.job, &part.body);
                let Some(order) = &mut log.order else { return Ok(()) };
                for (ends, end) in all.iter().flat_map(|ends| ends.ends.iter().map(move |end| (ends, end))) {
                    let at = log.ids.index_of(end.task).filter(|at| !log.sent.has(*at) && order.ended.has(*at));
                    if let Some(at) = at.filter(|at| !order.held.contains_key(at)) {
                        order.keep(at, Held::of(end, ends));
                    }
                }
                if order.held.contains_key(&place) {
                    return Ok(());
                }
            }
            behind = parts.into_iter().next_back();
        }
    }

    async fn send_end(&mut self, log: &mut Log, place: u32, end: &TaskEnd, node: &str) -> Result<(), SendError> {
        if self.output {
            self.send_output(log, end).await?;
        }
        log.done(place, end.task);
        if end.result.verdict.task_state() == TaskState::Failed {
            return self.tell_ends(log, Some(shown(end, node)), false).await;
        }
        self.tell_if_many(log).await
    }

    async fn send_output(&mut self, log: &mut Log, end: &TaskEnd) -> Result<(), SendError> {
        let attempt = AttemptId { job: log.job, task: end.task, attempt: end.attempt };
        let wrote = wrote(end);
        let small = [&end.stdout, &end.stderr];
        if small.iter().zip(wrote).all(|(bytes, wrote)| bytes.len() as u64 >= wrote) {
            for (stream, bytes) in super::STREAMS.into_iter().zip(small) {
                let mut offset = 0;
                while offset < bytes.len() {
                    let room = self.room(log).await?;
                    let until = bytes.len().min(offset + room.min(CHUNK_BYTES as u64) as usize);
                    let piece = bytes[offset..until].to_vec();
                    let chunk =
                        OutputChunk { attempt, stream, offset: offset as u64, bytes: piece, ..OutputChunk::default() };
                    self.sent_bytes += (until - offset) as u64;
                    offset = until;
                    self.sender.bulk(Frame::of(Function::OUTPUT, self.id, &chunk)).await?;
                }
            }
            return Ok(());
        }
        // It is in the store, or was dropped there.
        let wrote = Some(Wrote { bytes: wrote, truncated: end.result.truncated });
        let small = Some(Small { stdout: end.stdout.clone(), stderr: end.stderr.clone() });
        let mut cursor = Cursor { attempt, next: [0, 0], until: [u64::MAX, u64::MAX], turn: 0, wrote, small };
        loop {
            match self.send_next(&mut cursor).await? {
                Step::Sent => {}
                Step::NoRoom => drop(self.room(log).await?),
                Step::Drained => return Ok(()),
            }
        }
    }

    /// Waits until at least a byte may be sent, and says how many may.
    async fn room(&mut self, log: &mut Log) -> Result<u64, SendError> {
        loop {
            let acked = *self.acked.borrow_and_update();
            let room = acked.saturating_add(OUTPUT_WINDOW_BYTES).saturating_sub(self.sent_bytes);
            if room > 0 {
                return Ok(room);
            }
            // Meanwhile the client knows what it has.
            if !log.told.is_empty() {
                self.tell_ends(log, None, false).await?;
            }
            self.acked.changed().await.map_err(|_| SendError::Closed)?;
        }
    }

    async fn tell_if_many(&mut self, log: &mut Log) -> Result<(), SendError> {
        if log.told.len() >= TOLD_AT_ONCE { self.tell_ends(log, None, false).await } else { Ok(()) }
    }

    /// Names the tasks that were sent.
    async fn tell_ends(&mut self, log: &mut Log, task: Option<TaskView>, last: bool) -> Result<(), SendError> {
        log.told.sort_unstable();
        let ended = log.told.drain(..).collect();
        self.tell(JobEvent { task, ended, last, ..log.stand.clone() }).await
    }

    /// The last event, behind everything else.
    async fn end_array(&mut self, log: &mut Log, is_over: bool) -> Result<(), SendError> {
        self.drain(log, true).await?;
        if is_over && log.left > 0 {
            // Of these nothing is kept any more.
            for (place, task) in log.ids.clone().iter().enumerate() {
                log.done(place as u32, task);
                self.tell_if_many(log).await?;
            }
        }
        self.tell_ends(log, None, true).await
    }
}

/// What a task printed, by stream.
fn wrote(end: &TaskEnd) -> [u64; 2] {
    let TaskEnd { result, stdout, stderr, .. } = end;
    [result.stdout_bytes.max(stdout.len() as u64), result.stderr_bytes.max(stderr.len() as u64)]
}
