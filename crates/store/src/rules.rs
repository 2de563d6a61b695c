//! Who may append, and who may lead: the rules that every journal judges by.
//!
//! The journals of all back-ends call it, each under its own lock or in its own transaction. Always true: a rule that
//! says no has changed nothing, and a term is given once.
//! Deliberately not here: a clock (expiry is judged with the caller's time), keeping what was decided.

use crate::error::{AppendError, LeadError, NoRoom};
use crate::limits::{BATCH_BYTES_MAX, JOURNAL_NEAR_SIXTEENTHS};
use crate::port::{Seq, Term};

/// May a batch of `bytes` bytes follow sequence `expected`, in a journal that ends at `last` and keeps `kept` of at most
/// `limit` bytes? Its sequence, if so.
pub(crate) fn judge_append(
    last: Seq,
    lead: &LeadState,
    (kept, limit): (u64, u64),
    (expected, term, bytes): (Seq, Term, usize),
) -> Result<Seq, AppendError> {
    let current = lead.term();
    if term != current || term == Term(0) {
        return Err(AppendError::Deposed { term, current });
    }
    if expected < last {
        return Err(AppendError::Fenced { expected, actual: last });
    }
    if expected > last {
        return Err(AppendError::AfterFailed { expected, actual: last });
    }
    if bytes > BATCH_BYTES_MAX {
        return Err(AppendError::TooLarge { bytes, limit: BATCH_BYTES_MAX });
    }
    if kept + bytes as u64 > limit {
        return Err(AppendError::Full(NoRoom::Limit(limit)));
    }
    Ok(last.next())
}

/// Is a journal that keeps `kept` of at most `limit` bytes far enough from its limit for new work?
pub(crate) fn judge_room(kept: u64, limit: u64) -> Result<(), AppendError> {
    match kept < limit / 16 * JOURNAL_NEAR_SIXTEENTHS {
        true => Ok(()),
        false => Err(AppendError::Full(NoRoom::Limit(limit))),
    }
}

/// The lead as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct LeadState {
    /// The newest term ever given.
    pub(crate) newest: Term,
    pub(crate) held: Option<Held>,
}

/// Who leads, or led and let its time run out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) holder: String,
    pub(crate) term: Term,
    pub(crate) expires_ms: u64,
}

impl LeadState {
    /// The term that may append; 0 when nobody leads.
    pub(crate) fn term(&self) -> Term {
        self.held.as_ref().map_or(Term(0), |held| held.term)
    }

    pub(crate) fn acquire(&mut self, holder: &str, now_ms: u64, ttl_ms: u64) -> Result<Term, LeadError> {
        if let Some(held) = &self.held
            && held.holder != holder
            && now_ms < held.expires_ms
        {
            let Held { holder, term, expires_ms } = held.clone();
            return Err(LeadError::HeldBy { holder, term, expires_ms });
        }
        let term = Term(self.newest.0 + 1);
        self.newest = term;
        self.held = Some(Held { holder: holder.to_owned(), term, expires_ms: now_ms.saturating_add(ttl_ms) });
        Ok(term)
    }

    pub(crate) fn renew(&mut self, term: Term, now_ms: u64, ttl_ms: u64) -> Result<(), LeadError> {
        let current = self.term();
        match &mut self.held {
            // One who renews too late must acquire again, as with an engine that has forgotten it by then.
            Some(held) if held.term == term && now_ms < held.expires_ms => {
                held.expires_ms = now_ms.saturating_add(ttl_ms);
                Ok(())
            }
            _ => Err(LeadError::Lost { term, current }),
        }
    }

    pub(crate) fn release(&mut self, term: Term) {
        if self.term() == term {
            self.held = None;
        }
    }
}
