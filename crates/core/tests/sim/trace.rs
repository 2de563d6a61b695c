//! What happened, as lines, for whoever looks at a failing seed.
//!
//! Off unless a run is repeated for its story, so that a million runs do not write a million stories. Kept per thread, so
//! that it is still there after a panic.
//! Deliberately not here: what is worth a line (each model says it).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

thread_local! {
    static LINES_MAX: Cell<usize> = const { Cell::new(0) };
    static LINES: RefCell<VecDeque<String>> = const { RefCell::new(VecDeque::new()) };
}

/// Keeps the last `lines_max` lines from now on; 0 turns it off.
pub(crate) fn begin(lines_max: usize) {
    LINES_MAX.set(lines_max);
    LINES.with_borrow_mut(VecDeque::clear);
}

pub(crate) fn is_on() -> bool {
    LINES_MAX.get() > 0
}

pub(crate) fn line(now: u64, text: impl FnOnce() -> String) {
    if !is_on() {
        return;
    }
    let text = format!("{:>9.3} s  {}", now as f64 / 1_000.0, text());
    LINES.with_borrow_mut(|lines| {
        if lines.len() == LINES_MAX.get() {
            lines.pop_front();
        }
        lines.push_back(text);
    });
}

pub(crate) fn take() -> Vec<String> {
    LINES.with_borrow_mut(|lines| lines.drain(..).collect())
}
