//! The output of attempts on its way to the disk, and their ends behind it.
//!
//! ```text
//!   output ──▶ append (seen at once) ──▶ settle ──▶ durable ──▶ acknowledged: the worker may drop it
//!   ended ──▶ little was printed: it travels with the record of the end
//!         └─▶ settle now ──▶ all is durable ──▶ the core hears of the end
//! ```
//!
//! Called by the worker's session. Always true: what is acknowledged is durable, or nobody wants it; the core hears of an
//! end when no byte of its output can be lost any more. Little output may take a second to be acknowledged, much of it never
//! more than a write: the worker's window of a megabyte is four times [`SETTLE_NOW_BYTES`], so it cannot fill up before
//! somebody has asked for that write.
//! Deliberately not here: how output is kept (the store), what an end means (the core).

use super::WorkerSession;
use crate::feeds::Stopped;
use crate::limits::{SETTLE_NOW_BYTES, SETTLE_RETRY};
use essaim_core::hub::Input;
use essaim_proto::api::Stream;
use essaim_proto::job::{Reason, Verdict};
use essaim_proto::link::{AttemptOutput, AttemptOutputAck, Ended, EndedMany};
use essaim_proto::{AttemptId, Frame, Function};
use essaim_store::{Lengths, OutputError, Settle, Small};
use tracing::warn;

/// What is under way for the output of one attempt.
#[derive(Debug, Default)]
pub(super) struct Settling {
    /// The store was asked to settle soon, and now, and has not answered yet.
    soon: bool,
    now: bool,
    /// It failed and is tried again after a while.
    pauses: bool,
    /// The attempt's end, with the size of its frame, until its output is settled.
    ended: Option<(Box<Ended>, usize)>,
}

#[cfg(test)]
impl Settling {
    /// Does the attempt's end wait for its output?
    pub(super) fn is_ending(&self) -> bool {
        self.ended.is_some()
    }
}

/// What comes back for an attempt.
#[derive(Debug)]
pub(super) enum Word {
    /// The store has settled, or could not.
    Settled { attempt: AttemptId, when: Settle, end: Result<Lengths, OutputError> },
    /// A pause is over.
    Again { attempt: AttemptId },
}

impl WorkerSession {
    pub(super) fn output(&mut self, chunk: AttemptOutput) {
        let AttemptOutput { attempt, stream, offset, bytes } = chunk;
        let is_wanted = |mine: &&super::Mine| mine.feed.stopped(attempt) != Some(Stopped::StoreFull);
        if self.mine.get(&attempt).filter(is_wanted).is_some() {
            match self.shared.store.outputs.append(attempt, stream, offset, &bytes) {
                Ok(_) => {
                    self.shared.feeds.grown(attempt);
                    return self.settle(attempt);
                }
                Err(error) if error.is_full() => {
                    warn!(%attempt, %error, "output is dropped and its program stopped");
                    self.stop(attempt, Stopped::StoreFull);
                }
                Err(error) => {
                    // A gap is the worker's mistake; it sends again from what is acknowledged.
                    warn!(%attempt, %error, "output was not taken");
                    return self.acknowledge(attempt, self.shared.store.outputs.durable(attempt));
                }
            }
        }
        // Acknowledged all the same: the worker need not keep what nobody wants.
        let mut lengths = self.shared.store.outputs.durable(attempt);
        let length = if stream == Stream::Stdout { &mut lengths.stdout } else { &mut lengths.stderr };
        *length = (*length).max(offset.saturating_add(bytes.len() as u64));
        self.acknowledge(attempt, lengths);
    }

    fn acknowledge(&self, attempt: AttemptId, lengths: Lengths) {
        let ack = AttemptOutputAck { attempt, stdout: lengths.stdout, stderr: lengths.stderr };
        self.send(Frame::of(Function::ATTEMPT_OUTPUT_ACK, 0, &ack));
    }

    /// Asks for what is not durable yet, if nobody has.
    pub(super) fn settle(&mut self, attempt: AttemptId) {
        let outputs = &self.shared.store.outputs;
        let Some(mine) = self.mine.get_mut(&attempt) else { return };
        let (there, durable) = (outputs.lengths(attempt), outputs.durable(attempt));
        let left = (there.stdout + there.stderr).saturating_sub(durable.stdout + durable.stderr);
        let settling = &mut mine.settling;
        let when = match left {
            // Repeated bytes: the worker has not heard that they are durable.
            0 if settling.ended.is_none() => return self.acknowledge(attempt, durable),
            _ if settling.pauses || settling.now => return,
            _ if settling.ended.is_some() || left >= SETTLE_NOW_BYTES => Settle::Now,
            _ if settling.soon => return,
            _ => Settle::Soon,
        };
        match when {
            Settle::Soon => settling.soon = true,
            Settle::Now => settling.now = true,
        }
        let words = self.words.clone();
        // A session that has ended hears nothing: the worker sends again what was not acknowledged.
        let done = move |end| drop(words.send(Word::Settled { attempt, when, end }));
        self.shared.store.outputs.settle(attempt, when, Box::new(done));
    }

    /// Takes the store's word.
    pub(super) async fn settled(&mut self, word: Word) {
        let (attempt, when, end) = match word {
            Word::Settled { attempt, when, end } => (attempt, when, end),
            Word::Again { attempt } => {
                if let Some(mine) = self.mine.get_mut(&attempt) {
                    mine.settling.pauses = false;
                }
                return self.settle(attempt);
            }
        };
        let Some(mine) = self.mine.get_mut(&attempt) else { return };
        match when {
            Settle::Soon => mine.settling.soon = false,
            Settle::Now => mine.settling.now = false,
        }
        match end {
            Ok(durable) => {
                let there = self.shared.store.outputs.lengths(attempt);
                if mine.settling.ended.is_some() && durable == there {
                    self.tell_end(attempt, None).await;
                } else {
                    self.acknowledge(attempt, durable);
                    if durable != there {
                        self.settle(attempt);
                    }
                }
            }
            Err(error) => self.not_settled(attempt, &error).await,
        }
    }

    async fn not_settled(&mut self, attempt: AttemptId, error: &OutputError) {
        if error.is_full() {
            warn!(%attempt, %error, "output cannot be kept and its program is stopped");
            self.stop(attempt, Stopped::StoreFull);
            // Acknowledged all the same: the worker need not keep what nobody wants.
            self.acknowledge(attempt, self.shared.store.outputs.lengths(attempt));
            return self.tell_end(attempt, None).await;
        }
        let Some(mine) = self.mine.get_mut(&attempt) else { return };
        if mine.settling.pauses {
            return;
        }
        warn!(%attempt, %error, "output is not durable yet; it is tried again");
        mine.settling.pauses = true;
        let words = self.words.clone();
        tokio::spawn(async move {
            tokio::time::sleep(SETTLE_RETRY).await;
            drop(words.send(Word::Again { attempt }));
        });
    }

    /// An attempt is over and all of its output is here.
    pub(super) async fn ended(&mut self, ended: Box<Ended>, bytes: usize) {
        let (attempt, session) = (ended.attempt, self.session);
        let Some(mine) = self.mine.get_mut(&attempt) else {
            // Nobody's business any more, which the core says.
            return self.shared.handle.input(Input::Ended { session, ended }, bytes).await;
        };
        mine.settling.ended = Some((ended, bytes));
        let outputs = &self.shared.store.outputs;
        let small = outputs.small(attempt);
        let is_durable = outputs.durable(attempt) == outputs.lengths(attempt);
        if small.is_some() || is_durable || mine.feed.stopped(attempt) == Some(Stopped::StoreFull) {
            self.tell_end(attempt, small).await;
        } else {
            self.settle(attempt);
        }
    }

    /// Tasks of an array are over. Their output becomes durable with the record of their end, and is seen from then on.
    pub(super) async fn ended_many(&mut self, ended: EndedMany, bytes: usize) {
        let session = self.session;
        self.shared.handle.input(Input::EndedMany { session, ended: Box::new(ended) }, bytes).await;
    }

    /// Tells the core of an end whose output is durable, or goes with it.
    async fn tell_end(&mut self, attempt: AttemptId, small: Option<Small>) {
        let session = self.session;
        let taken = self.mine.get_mut(&attempt).and_then(|mine| mine.settling.ended.take());
        let Some((mut ended, bytes)) = taken else { return };
        self.complete(&mut ended);
        self.shared.handle.ended(Input::Ended { session, ended }, bytes, small).await;
    }

    /// Adds to an end what only the hub knows.
    fn complete(&self, ended: &mut Ended) {
        let result = &mut ended.result;
        match self.mine.get(&ended.attempt).and_then(|mine| mine.feed.stopped(ended.attempt)) {
            Some(Stopped::StoreFull) => {
                result.truncated = true;
                result.verdict = Verdict::OutputLimit;
                result.reason = Some(Reason::new("store_full"));
            }
            // Only if that is what ended it: the program may have needed no input any more. Not lost: another try would
            // lack the same bytes.
            Some(Stopped::InputLost) if result.verdict == Verdict::Cancelled => {
                result.verdict = Verdict::Rejected;
                result.reason = Some(Reason::new("stdin_lost"));
            }
            _ => {}
        }
    }
}
