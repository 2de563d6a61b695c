//! Promises of the lead: one at a time, for a time, and fenced afterwards.
//!
//! Deliberately not here: what a leader writes (`journal`).

use super::Open;
use super::journal::append;
use crate::{AppendError, LeadError, Seq, StoreLimits, Term};

// A term says who came later.
pub(crate) fn terms_grow(open: Open) {
    let opened = open(StoreLimits::default());
    let lead = &opened.store.lead;
    let mut before = Term(0);
    for (n, holder) in ["a", "b", "a", "c"].into_iter().enumerate() {
        let term = lead.acquire(holder, n as u64 * 100, 100).expect("expired");
        assert!(term > before, "{term} after {before}");
        before = term;
    }
}

// While one leads, another hears who and until when.
pub(crate) fn a_held_lead_is_refused(open: Open) {
    let opened = open(StoreLimits::default());
    let first = opened.store.lead.acquire("hub-a", 1_000, 500).expect("nobody leads");
    let error = opened.store.lead.acquire("hub-b", 1_499, 500).expect_err("held");
    let LeadError::HeldBy { holder, term, expires_ms } = error else { panic!("{error}") };
    assert_eq!((holder.as_str(), term, expires_ms), ("hub-a", first, 1_500));
}

// At the very millisecond of its expiry the lead is free.
pub(crate) fn an_expired_lead_is_taken(open: Open) {
    let opened = open(StoreLimits::default());
    opened.store.lead.acquire("hub-a", 1_000, 500).expect("nobody leads");
    opened.store.lead.acquire("hub-b", 1_500, 500).expect("expired");
}

// Renewing moves the end; time to live is counted from the renewal, and a time without end does not overflow.
pub(crate) fn renewing_keeps_the_lead(open: Open) {
    let opened = open(StoreLimits::default());
    let lead = &opened.store.lead;
    let term = lead.acquire("hub-a", 0, 500).expect("nobody leads");
    lead.renew(term, 400, 500).expect("in time");
    assert!(matches!(lead.acquire("hub-b", 899, 500), Err(LeadError::HeldBy { expires_ms: 900, .. })));
    lead.renew(term, 899, u64::MAX).expect("in time");
    assert!(lead.acquire("hub-b", u64::MAX - 1, 500).is_err());
}

// One who renews too late has lost the lead, even when nobody took it; he may acquire again.
pub(crate) fn a_late_renewal_is_lost(open: Open) {
    let opened = open(StoreLimits::default());
    let lead = &opened.store.lead;
    let term = lead.acquire("hub-a", 0, 500).expect("nobody leads");
    let error = lead.renew(term, 500, 500).expect_err("late");
    assert!(matches!(error, LeadError::Lost { term: lost, .. } if lost == term), "{error}");
    let again = lead.acquire("hub-a", 501, 500).expect("free");
    assert!(matches!(lead.renew(term, 502, 500), Err(LeadError::Lost { current, .. }) if current == again));
    lead.renew(again, 502, 500).expect("in time");
    assert!(lead.renew(Term(0), 503, 500).is_err());
}

// A released lead is free at once, and its term may neither append nor renew; releasing twice, or a foreign lead's
// old term, does no harm.
pub(crate) fn a_released_lead_is_free(open: Open) {
    let opened = open(StoreLimits::default());
    let lead = &opened.store.lead;
    let first = lead.acquire("hub-a", 0, 500).expect("nobody leads");
    lead.release(first).expect("released");
    let error = append(&opened.store.journal, 0, first, b"late").expect_err("deposed");
    assert!(matches!(error, AppendError::Deposed { .. }), "{error}");
    assert!(lead.renew(first, 1, 500).is_err());
    let second = lead.acquire("hub-b", 1, 500).expect("free");
    lead.release(first).expect("no error");
    append(&opened.store.journal, 0, second, b"x").expect("still leads");
}

// A hub that restarts within its own time leads again at once, and what its former life still sends is refused.
pub(crate) fn the_same_holder_gets_a_new_term(open: Open) {
    let opened = open(StoreLimits::default());
    let lead = &opened.store.lead;
    let first = lead.acquire("hub-a", 0, 500).expect("nobody leads");
    let second = lead.acquire("hub-a", 10, 500).expect("its own");
    assert!(second > first);
    assert!(matches!(append(&opened.store.journal, 0, first, b"x"), Err(AppendError::Deposed { .. })));
    append(&opened.store.journal, 0, second, b"x").expect("leads");
}

// The case that fencing is for: A pauses, B leads and appends, A wakes up and appends on the true end, which it may
// have read. It must fail all the same.
pub(crate) fn the_old_lead_is_fenced(open: Open) {
    let opened = open(StoreLimits::default());
    let (lead, journal) = (&opened.store.lead, &opened.store.journal);
    let a = lead.acquire("hub-a", 0, 500).expect("nobody leads");
    append(journal, 0, a, b"a").expect("leads");
    append(journal, 1, a, b"expired, but nobody took the lead").expect("still the present term");
    let b = lead.acquire("hub-b", 500, 500).expect("expired");
    append(journal, 2, b, b"b").expect("leads");
    for expected in [2, 3, 4] {
        let error = append(journal, expected, a, b"a again").expect_err("deposed");
        assert!(matches!(error, AppendError::Deposed { term, current } if term == a && current == b), "{error}");
    }
    assert_eq!(journal.last(), Seq(3));
}
