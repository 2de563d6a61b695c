//! Plain tables for listings.
//!
//! The command line calls it. Always true: one line per row, columns begin at the same place whatever the characters'
//! width, no line is wider than asked, nothing follows the last cell of a line.
//! Deliberately not here: frames, colours, and what is in the cells.

use crate::limits::COLUMN_WIDTH_MIN;
use crate::terminal::visible;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Between two columns.
const GAP: &str = "  ";
/// Where something was cut.
const CUT: char = '…';

/// Lines of a table, each with its `\n`: the headers, then the rows. With a width (columns of the terminal) the widest
/// columns are cut until all fit; without one nothing is cut. A row that is short has empty cells, cells beyond the
/// headers are left out, control characters are made visible.
pub fn table(headers: &[&str], rows: &[Vec<String>], width: Option<usize>) -> String {
    let header = headers.iter().map(|text| visible(text)).collect();
    let mut lines: Vec<Vec<String>> = vec![header];
    for row in rows {
        lines.push((0..headers.len()).map(|n| row.get(n).map(|cell| visible(cell)).unwrap_or_default()).collect());
    }
    let mut widths: Vec<usize> = (0..headers.len()).map(|n| widest(&lines, n)).collect();
    if let Some(width) = width {
        narrow(&mut widths, width);
    }
    let mut text = String::new();
    for line in &lines {
        let drawn = draw(line, &widths);
        text.push_str(&cut(&drawn, width.unwrap_or(usize::MAX)));
        text.push('\n');
    }
    text
}

/// Columns that a text takes on a terminal: 2 for 字, 0 for a combining accent.
pub fn width_of(text: &str) -> usize {
    text.width()
}

fn widest(lines: &[Vec<String>], column: usize) -> usize {
    lines.iter().map(|line| width_of(&line[column])).max().unwrap_or(0)
}

/// Takes from the widest column, one by one, until the line fits or no column can give more.
fn narrow(widths: &mut [usize], width: usize) {
    let gaps = GAP.len() * widths.len().saturating_sub(1);
    let mut sum: usize = widths.iter().sum();
    while sum + gaps > width {
        let Some(widest) = widths.iter_mut().max_by_key(|width| **width) else { return };
        if *widest <= COLUMN_WIDTH_MIN {
            return;
        }
        // Down to the terminal's width in one step: a cell of a megabyte must not take a million.
        let next = (*widest - 1).min(width.max(COLUMN_WIDTH_MIN));
        sum -= *widest - next;
        *widest = next;
    }
}

fn draw(cells: &[String], widths: &[usize]) -> String {
    let mut line = String::new();
    for (n, (cell, width)) in cells.iter().zip(widths).enumerate() {
        if n > 0 {
            line.push_str(GAP);
        }
        let cell = cut(cell, *width);
        line.push_str(&cell);
        line.extend(std::iter::repeat_n(' ', width - width_of(&cell)));
    }
    line.truncate(line.trim_end_matches(' ').len());
    line
}

/// The text in at most `width` columns, its end replaced with … when it does not fit.
fn cut(text: &str, width: usize) -> String {
    if width_of(text) <= width {
        return text.to_owned();
    }
    let mut kept = String::new();
    let mut used = 0;
    for c in text.chars() {
        used += c.width().unwrap_or(0);
        if used + 1 > width {
            break;
        }
        kept.push(c);
    }
    if width > 0 {
        kept.push(CUT);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rows(cells: &[&[&str]]) -> Vec<Vec<String>> {
        cells.iter().map(|row| row.iter().map(|cell| (*cell).to_owned()).collect()).collect()
    }

    // We want to see a listing with wide characters, an empty cell, a short row and a hostile name.
    #[test]
    fn columns_are_aligned() {
        let rows = rows(&[&["1", "字字", "done"], &["20", "", "running"], &["3"], &["4", "a\nb\x1b[2J", "x"]]);
        let expected =
            "ID  NAME         STATE\n1   字字         done\n20               running\n3\n4   a\\nb\\x1b[2J  x\n";
        assert_eq!(table(&["ID", "NAME", "STATE"], &rows, None), expected);
    }

    // We want to see that the widest column pays when the terminal is narrow, and that short ones stay whole.
    #[test]
    fn the_widest_column_is_cut() {
        let rows = rows(&[&["1", "a-very-long-name-of-a-program.py", "done"]]);
        let expected = "ID  NAME         STATE\n1   a-very-lon…  done\n";
        assert_eq!(table(&["ID", "NAME", "STATE"], &rows, Some(22)), expected);
        assert_eq!(table(&["ID", "NAME", "STATE"], &rows, Some(5)), "ID  …\n1   …\n");
        assert_eq!(cut("字字字", 4), "字…");
    }

    // A table without rows is its headers; one without columns is empty lines.
    #[test]
    fn empty_tables() {
        assert_eq!(table(&["A", "B"], &[], Some(80)), "A  B\n");
        assert_eq!(table(&[], &[vec!["x".to_owned()]], Some(80)), "\n\n");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        // We want to know that no cell breaks a line or makes one wider than asked.
        #[test]
        fn any_cells_fit(cells in proptest::collection::vec(proptest::collection::vec("\\PC{0,30}|[\\x00-\\x20é字]{0,9}", 0..5), 0..6), width in 0usize..60) {
            let text = table(&["A", "BB", "CCC"], &cells, Some(width));
            prop_assert_eq!(text.lines().count(), cells.len() + 1);
            for line in text.lines() {
                prop_assert!(width_of(line) <= width, "{:?}", line);
            }
        }
    }
}
