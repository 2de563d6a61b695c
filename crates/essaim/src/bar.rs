//! How far an array is, as one line of a terminal.
//!
//! `follow` feeds it and asks for the line several times a second. Always true: the line fits the terminal, so that it can
//! be drawn over; rate and time left come from the last seconds, because an array is not equally fast all the time.
//! Deliberately not here: drawing and erasing (`screen`), when there is a bar at all (`follow`).

use essaim_proto::job::TaskCounts;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// How often it is drawn: smooth enough for an eye, and nothing for a processor.
pub(crate) const BAR_STEP: Duration = Duration::from_millis(100);

/// What the rate is measured over.
const RATE_OVER: Duration = Duration::from_secs(5);

/// A rate over less is a guess.
const RATE_OVER_MIN: Duration = Duration::from_millis(500);

/// Cells between the brackets.
const CELLS: u64 = 20;

/// The bar of one array.
#[derive(Debug, Default)]
pub(crate) struct Bar {
    /// When so many were over, the oldest first.
    samples: VecDeque<(Instant, u64)>,
}

impl Bar {
    /// The line for `counts`, at most `width` wide.
    pub(crate) fn line(&mut self, counts: &TaskCounts, now: Instant, width: usize) -> String {
        let over = over(counts);
        self.samples.push_back((now, over));
        while self.samples.get(1).is_some_and(|(at, _)| now - *at >= RATE_OVER) {
            self.samples.pop_front();
        }
        let rate = self.samples.front().filter(|(at, _)| now - *at >= RATE_OVER_MIN).map(|(at, before)| {
            // Tasks that are run once more are not over any more.
            over.saturating_sub(*before) as f64 / (now - *at).as_secs_f64()
        });
        line(counts, rate, width)
    }
}

fn over(counts: &TaskCounts) -> u64 {
    counts.done + counts.failed + counts.cancelled
}

fn line(counts: &TaskCounts, rate: Option<f64>, width: usize) -> String {
    let over = over(counts);
    let filled = (over * CELLS).checked_div(counts.total).unwrap_or(0).min(CELLS) as usize;
    let bar = format!("[{}{}]", "#".repeat(filled), ".".repeat(CELLS as usize - filled));
    let mut parts = vec![bar, format!("{over}/{}", counts.total)];
    for (count, word) in [(counts.failed, "failed"), (counts.cancelled, "cancelled"), (counts.running, "running")] {
        if count > 0 {
            parts.push(format!("{count} {word}"));
        }
    }
    if let Some(rate) = rate.filter(|rate| *rate > 0.0) {
        parts.push(if rate < 10.0 { format!("{rate:.1}/s") } else { format!("{rate:.0}/s") });
        let left = counts.total.saturating_sub(over);
        if left > 0 {
            // Whole seconds: tenths would only flicker.
            let seconds = (left as f64 / rate).ceil().max(1.0) as u64;
            parts.push(format!("{} left", essaim_view::duration(seconds.saturating_mul(1_000))));
        }
    }
    let mut line = String::new();
    for part in parts {
        let gap = if line.is_empty() { "" } else { "  " };
        if line.len() + gap.len() + part.len() > width {
            break;
        }
        line.push_str(gap);
        line.push_str(&part);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(done: u64, failed: u64, running: u64) -> TaskCounts {
        TaskCounts { total: 1_000, done, failed, running, ..TaskCounts::default() }
    }

    // The line as people see it, from the beginning to the end, on a wide and on a narrow terminal.
    #[test]
    fn the_line_says_how_far() {
        assert_eq!(line(&counts(0, 0, 0), None, 99), "[....................]  0/1000");
        assert_eq!(
            line(&counts(509, 3, 4), Some(118.4), 99),
            "[##########..........]  512/1000  3 failed  4 running  118/s  5 s left"
        );
        assert_eq!(line(&counts(1_000, 0, 0), Some(1.25), 99), "[####################]  1000/1000  1.2/s");
        assert_eq!(line(&counts(509, 3, 4), Some(118.4), 45), "[##########..........]  512/1000  3 failed");
        assert_eq!(line(&counts(1, 0, 1), None, 5), "");
        assert_eq!(line(&TaskCounts::default(), Some(0.0), 99), "[....................]  0/0");
    }

    // The rate is that of the last seconds.
    #[test]
    fn the_rate_is_of_the_last_seconds() {
        let (mut bar, begin) = (Bar::default(), Instant::now());
        let mut said = String::new();
        for step in 0..200_u64 {
            // Ten seconds at 10/s, then at 40/s.
            let done = if step < 100 { step } else { 100 + (step - 100) * 4 };
            said = bar.line(&counts(done, 0, 1), begin + BAR_STEP * step as u32, 99);
        }
        assert!(said.contains("40/s"), "{said}");
        assert!(bar.samples.len() <= 52, "{}", bar.samples.len());
        assert!(!Bar::default().line(&counts(5, 0, 1), begin, 99).contains("/s"));
    }
}
