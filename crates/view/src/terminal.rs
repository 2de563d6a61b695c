//! What other people's programs print, made safe for a terminal.
//!
//! The command line sends output through a [`TerminalFilter`], one per stream. What passes:
//!
//! ```text
//! printable ASCII, \n \t \r              as it is
//! whole UTF-8 characters                 as they are, but for the control characters U+0080 to U+009F
//! ESC [ digits ; : … m   (SGR)           as it is: colours and attributes
//! every other control byte, broken UTF-8 as visible text: \x1b, \x07, \xff
//! ```
//!
//! Always true: an ESC that comes out begins a whole SGR sequence, wherever the input was cut; no byte is lost.
//! Deliberately not here: whether the output is a terminal at all, and `--raw`.

use crate::limits::SGR_BYTES_MAX;

const ESC: u8 = 0x1b;

/// Filters a stream that comes in pieces.
#[derive(Debug, Clone, Default)]
pub struct TerminalFilter {
    /// An SGR sequence or a character that has begun and not ended, as it came.
    held: Vec<u8>,
    /// Has the stream left colours or attributes on?
    coloured: bool,
}

/// What may follow the bytes that are held.
enum Step {
    /// It belongs to them and more may come.
    Hold,
    /// It ends them: they pass as they are.
    Pass,
    /// It does not belong to them: they are shown, and it is looked at afresh.
    Break,
}

impl TerminalFilter {
    /// A filter at the beginning of a stream.
    pub fn new() -> TerminalFilter {
        TerminalFilter::default()
    }

    /// The next piece, filtered. What cannot be judged yet (at most 64 bytes) is held back.
    pub fn filter(&mut self, piece: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(piece.len() + self.held.len());
        let mut rest = piece;
        while let Some(&byte) = rest.first() {
            if self.held.is_empty() {
                let plain = rest.iter().position(|b| !is_plain(*b)).unwrap_or(rest.len());
                if plain > 0 {
                    out.extend_from_slice(&rest[..plain]);
                    rest = &rest[plain..];
                    continue;
                }
            }
            match self.step(byte) {
                Step::Hold => self.held.push(byte),
                Step::Pass => {
                    self.held.push(byte);
                    self.pass(&mut out);
                }
                Step::Break if self.held.is_empty() => show(byte, &mut out),
                Step::Break => {
                    self.show_held(&mut out);
                    continue;
                }
            }
            rest = &rest[1..];
        }
        out
    }

    /// The end of the stream: shows what is held back, and switches colours off that the stream left on.
    pub fn finish(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        self.show_held(&mut out);
        if std::mem::take(&mut self.coloured) {
            out.extend_from_slice(b"\x1b[0m");
        }
        out
    }

    fn step(&self, byte: u8) -> Step {
        match self.held.as_slice() {
            [] if byte == ESC || character_length(byte) > 1 => Step::Hold,
            [] => Step::Break,
            [ESC] if byte == b'[' => Step::Hold,
            [ESC] => Step::Break,
            [ESC, ..] if byte == b'm' => Step::Pass,
            [ESC, ..] if matches!(byte, b'0'..=b'9' | b';' | b':') && self.held.len() < SGR_BYTES_MAX => Step::Hold,
            [ESC, ..] => Step::Break,
            [first, ..] => self.step_character(*first, byte),
        }
    }

    /// Inside a character of several bytes.
    fn step_character(&self, first: u8, byte: u8) -> Step {
        let mut character = [0; 4];
        let length = self.held.len() + 1;
        character[..length - 1].copy_from_slice(&self.held);
        character[length - 1] = byte;
        match std::str::from_utf8(&character[..length]) {
            // C1 control characters are ESC sequences in one character for some terminals.
            Ok(text) if text.chars().any(char::is_control) => Step::Break,
            Ok(_) => Step::Pass,
            Err(error) if error.error_len().is_none() && length < character_length(first) => Step::Hold,
            Err(_) => Step::Break,
        }
    }

    fn pass(&mut self, out: &mut Vec<u8>) {
        if self.held[0] == ESC {
            // `ESC [ m` and `ESC [ 0 m` switch everything off; of others we assume the worst.
            self.coloured = !matches!(&self.held[2..], b"m" | b"0m");
        }
        out.append(&mut self.held);
    }

    fn show_held(&mut self, out: &mut Vec<u8>) {
        for byte in self.held.drain(..) {
            show(byte, out);
        }
    }
}

/// A whole output, filtered: for what comes in one piece.
pub fn escape_terminal(bytes: &[u8]) -> Vec<u8> {
    let mut filter = TerminalFilter::new();
    let mut out = filter.filter(bytes);
    out.extend(filter.finish());
    out
}

/// Text for one line: every control character visible, `\n` and `\t` too, and those that turn the direction of what
/// follows. For names and errors of others inside our own sentences.
pub fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            // Rust writes \u{1b}; everywhere else we write \x1b.
            '\x1b' => shown.push_str("\\x1b"),
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => shown.extend(c.escape_default()),
            c if c.is_control() => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
}

fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~' | b'\n' | b'\t' | b'\r')
}

/// Bytes of the character that begins with `first`; 1 for what begins none.
fn character_length(first: u8) -> usize {
    match first {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => 1,
    }
}

fn show(byte: u8, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    if is_plain(byte) {
        out.push(byte);
    } else {
        out.extend_from_slice(&[b'\\', b'x', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
    }
}

#[cfg(test)]
#[path = "terminal_tests.rs"]
mod tests;
