//! Rust source as the rules see it: what is code, what is a comment or a string, which lines are tests.
//!
//! `rules` asks, nobody else. A lexer of one page instead of a parser: the rules look for words, and a word in a comment
//! or in a text is not a use of it. Always true: blanking keeps every line where it was.
//! Deliberately not here: the rules, and files on disk.

/// One Rust file.
pub(crate) struct Source {
    /// Path from the workspace's root, `/` between components.
    pub(crate) path: String,
    /// The file as it is.
    pub(crate) raw: String,
    /// The same text with comments and the insides of strings blanked.
    pub(crate) code: String,
    /// The same text with only comments blanked.
    pub(crate) uncommented: String,
    /// For each line: does it belong to a test?
    is_test: Vec<bool>,
    /// Every path that a `use` names, groups written out, with its line (from 0).
    pub(crate) imports: Vec<(usize, String)>,
}

impl Source {
    pub(crate) fn new(path: &str, raw: &str) -> Source {
        let code = blank(raw, true);
        let is_test = mark_tests(path, &code);
        let imports = imports(&code);
        let uncommented = blank(raw, false);
        Source { path: path.to_owned(), raw: raw.to_owned(), code, uncommented, is_test, imports }
    }

    /// Does line `line` (from 0) belong to a test?
    pub(crate) fn is_test(&self, line: usize) -> bool {
        self.is_test.get(line).copied().unwrap_or(false)
    }

    /// Each function: its name, its first line (from 0) and how many lines it has.
    pub(crate) fn functions(&self) -> Vec<(String, usize, usize)> {
        let mut found = Vec::new();
        for at in word_positions(&self.code, "fn") {
            let rest = &self.code[at + 2..];
            let name: String = rest.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if name.is_empty() {
                continue; // `fn(u8) -> u8` is a type.
            }
            let Some(end) = body_end(&self.code, at) else { continue };
            let first = line_of(&self.code, at);
            found.push((name, first, line_of(&self.code, end) - first + 1));
        }
        found
    }
}

/// Is this whole file a test?
pub(crate) fn is_test_file(path: &str) -> bool {
    let stem = path.rsplit('/').next().unwrap_or(path).trim_end_matches(".rs");
    path.split('/').any(|part| part == "tests" || part == "benches") || stem == "tests" || stem.ends_with("_tests")
}

/// Where `word` stands in `text` and is not a part of a longer word.
pub(crate) fn word_positions<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).map(|(at, _)| at).filter(move |&at| {
        let before = text[..at].chars().next_back().is_some_and(is_part) && word.starts_with(is_part);
        let after = text[at + word.len()..].chars().next().is_some_and(is_part) && word.ends_with(is_part);
        !before && !after
    })
}

/// The line (from 0) of a position.
pub(crate) fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes()[..at].iter().filter(|b| **b == b'\n').count()
}

/// `raw` with comments blanked and, if asked, the insides of strings and characters too.
fn blank(raw: &str, strings: bool) -> String {
    let bytes = raw.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let (length, wipe) = if rest.starts_with(b"//") {
            (rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len()), true)
        } else if rest.starts_with(b"/*") {
            (block_comment(rest), true)
        } else if let Some(length) = string(bytes, at) {
            (length, strings)
        } else {
            (1, false)
        };
        if wipe {
            out[at..at + length].iter_mut().filter(|b| **b != b'\n').for_each(|b| *b = b' ');
        }
        at += length;
    }
    String::from_utf8(out).expect("whole comments and strings were replaced by spaces")
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut at, mut depth) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest[at..].starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
        } else {
            at += 1;
        }
        if depth == 0 {
            break;
        }
    }
    at.min(rest.len())
}

/// The length of the string or character that begins at `at`, if one does.
fn string(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = &bytes[at..];
    match rest[0] {
        b'"' => Some(quoted(rest, b'"')),
        // A lifetime has no second quote one (possibly escaped, possibly wide) character later.
        b'\'' if rest.get(1) == Some(&b'\\') => Some(quoted(rest, b'\'')),
        b'\'' => {
            let length = match rest.get(1)? {
                0..0x80 => 1,
                0x80..0xE0 => 2,
                0xE0..0xF0 => 3,
                _ => 4,
            };
            (rest.get(1 + length) == Some(&b'\'')).then_some(length + 2)
        }
        b'r' if at == 0 || !is_word_byte(bytes[at - 1]) || matches!(bytes[at - 1], b'b' | b'c') => raw_string(rest),
        _ => None,
    }
}

fn quoted(rest: &[u8], end: u8) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != end {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

fn raw_string(rest: &[u8]) -> Option<usize> {
    let hashes = rest[1..].iter().take_while(|b| **b == b'#').count();
    if rest.get(1 + hashes) != Some(&b'"') {
        return None;
    }
    let mut end = vec![b'"'];
    end.resize(1 + hashes, b'#');
    let body = &rest[2 + hashes..];
    let length = body.windows(end.len()).position(|w| w == end).map_or(body.len(), |at| at + end.len());
    Some(2 + hashes + length)
}

fn is_word_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_'
}

/// Where the item that begins at `at` ends: the `}` of its body, or its `;`.
fn body_end(code: &str, at: usize) -> Option<usize> {
    let (mut braces, mut others) = (0, 0);
    for (offset, b) in code.bytes().enumerate().skip(at) {
        match b {
            b'(' | b'[' => others += 1,
            b')' | b']' => others -= 1,
            b'{' => braces += 1,
            b'}' => {
                braces -= 1;
                if braces <= 0 {
                    return Some(offset);
                }
            }
            b';' if braces == 0 && others == 0 => return Some(offset),
            _ => {}
        }
    }
    None
}

fn mark_tests(path: &str, code: &str) -> Vec<bool> {
    let mut marks = vec![is_test_file(path); code.lines().count()];
    for (at, _) in code.match_indices("#[cfg(") {
        let Some(close) = code[at..].find(']') else { continue };
        let attribute = &code[at..at + close];
        let for_tests = word_positions(attribute, "test").next().is_some() && !attribute.contains("not(test");
        if let (true, Some(end)) = (for_tests, body_end(code, at + close + 1)) {
            let last = line_of(code, end);
            marks[line_of(code, at)..=last].fill(true);
        }
    }
    marks
}

fn imports(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for at in word_positions(code, "use") {
        let Some(end) = code[at..].find(';') else { continue };
        let tree: String = code[at + 3..at + end].split_whitespace().collect::<Vec<_>>().join(" ");
        let mut paths = Vec::new();
        write_out("", &tree, &mut paths);
        found.extend(paths.into_iter().map(|path| (line_of(code, at), path)));
    }
    found
}

/// `a::{b, c::{d, e}}` as `a::b`, `a::c::d`, `a::c::e`.
fn write_out(prefix: &str, tree: &str, paths: &mut Vec<String>) {
    let tree = tree.trim();
    let Some(open) = tree.find('{') else {
        paths.push(format!("{prefix}{tree}"));
        return;
    };
    let prefix = format!("{prefix}{}", &tree[..open]);
    let inside = tree[open + 1..].trim_end().trim_end_matches('}');
    // The last brace closes this group; those of inner groups were trimmed with it and are not needed to split.
    let (mut depth, mut start) = (0, 0);
    for (at, c) in inside.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                write_out(&prefix, &inside[start..at], paths);
                start = at + 1;
            }
            _ => {}
        }
    }
    if !inside[start..].trim().is_empty() {
        write_out(&prefix, &inside[start..], paths);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A word in a comment, a string or a character is no code; everything stays on its line.
    #[test]
    fn comments_and_strings_are_blank() {
        let raw = "let a = \"x // unsafe \\\" {\"; // unsafe\n/* unsafe\n /* } */ */ let b = '{'; let c: &'static str = r#\"\"unsafe\"\"#;\nd";
        let source = Source::new("crates/core/src/a.rs", raw);
        assert!(!source.code.contains("unsafe") && !source.code.contains('{') && !source.code.contains('}'));
        assert_eq!(source.code.lines().count(), 4);
        assert!(source.code.contains("&'static str"));
        assert!(source.uncommented.contains("\"\"unsafe\"\"") && !source.uncommented.contains("// unsafe\n"));
    }

    // Wide characters and escapes inside quotes do not unbalance the lexer.
    #[test]
    fn characters_and_lifetimes_are_told_apart() {
        let source = Source::new("a.rs", "fn f<'a>(x: &'a str) { let _ = ('é', '\\'', b'\"', '·', '\\u{1F600}'); }\n");
        assert_eq!(source.functions(), [("f".to_owned(), 0, 1)]);
    }

    // Lines of a test module are tests, lines around it are not.
    #[test]
    fn test_lines_are_known() {
        let source =
            Source::new("crates/core/src/a.rs", "fn a() {}\n#[cfg(test)]\nmod tests {\n  fn b() {}\n}\nfn c() {}\n");
        let marks: Vec<bool> = (0..6).map(|line| source.is_test(line)).collect();
        assert_eq!(marks, [false, true, true, true, true, false]);
        assert!(!Source::new("a.rs", "#[cfg(not(test))]\nfn a() {}\n").is_test(1));
        assert!(is_test_file("crates/net/tests/a.rs") && is_test_file("crates/net/src/conn/tests.rs"));
    }

    // Groups of imports are written out, so that a rule sees the whole path.
    #[test]
    fn imports_are_written_out() {
        let source = Source::new("a.rs", "use std::{fs, net::{IpAddr, TcpStream}, io};\nuse a::b;\n");
        let paths: Vec<&str> = source.imports.iter().map(|(_, path)| path.as_str()).collect();
        assert_eq!(paths, ["std::fs", "std::net::IpAddr", "std::net::TcpStream", "std::io", "a::b"]);
    }

    // A function's length counts from `fn` to its last brace; a declaration ends at its semicolon.
    #[test]
    fn functions_are_measured() {
        let source = Source::new("a.rs", "fn a(x: [u8; 3]) {\n  if x {\n  }\n}\ntrait T { fn b(&self); }\n");
        assert_eq!(source.functions(), [("a".to_owned(), 0, 4), ("b".to_owned(), 4, 1)]);
    }
}
