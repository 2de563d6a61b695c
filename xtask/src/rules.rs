//! The rules that look at one Rust file.
//!
//! `tidy` calls [`check`] for each file of ours. A rule that bans a word is a row of [`BANS`]: what, where it is at home,
//! and what to do instead. When we say the same thing twice in review, it becomes a row.
//! Deliberately not here: rules that compare files (`house`), and what rustc and clippy refuse already.

use crate::text::{Source, is_test_file, line_of, word_positions};
use crate::tidy::Finding;

/// Longest file: a reader loses the thread beyond it.
const FILE_LINES_MAX: usize = 800;
/// Longest function: two screens.
const FUNCTION_LINES_MAX: usize = 80;
/// Shortest header of a room: what it is for, who calls it, what is not in it.
const HEADER_LINES_MIN: usize = 3;

/// Where a rule looks.
#[derive(Clone, Copy, PartialEq)]
enum Lines {
    /// Everywhere, tests too.
    All,
    /// Not in tests.
    Product,
    /// Only in tests.
    Tests,
}

/// Words that have a home, or none.
struct Ban {
    rule: &'static str,
    words: &'static [&'static str],
    lines: Lines,
    /// Do texts in quotes count too?
    quoted: bool,
    /// May this file use them?
    at_home: fn(&str) -> bool,
    instead: &'static str,
}

const BANS: &[Ban] = &[
    Ban {
        rule: "unwrap",
        words: &["unwrap(", "todo!", "dbg!"],
        lines: Lines::Product,
        quoted: false,
        at_home: |_| false,
        instead: "return a named error, or `expect` with why it cannot happen",
    },
    Ban {
        rule: "unsafe",
        words: &["unsafe"],
        lines: Lines::All,
        quoted: false,
        at_home: |path| path == "crates/sandbox/src/sys.rs",
        instead: "all unsafe is in crates/sandbox/src/sys.rs: add a safe function there",
    },
    Ban {
        rule: "tcp",
        words: &["TcpListener", "TcpStream", "TcpSocket", "socket2"],
        lines: Lines::Product,
        quoted: false,
        at_home: |path| path == "crates/net/src/tcp.rs",
        instead: "TCP is imported in crates/net/src/tcp.rs only: use what it gives",
    },
    Ban {
        rule: "spawn",
        words: &["std::process::Command", "process::Command", "std::process::*", "tokio::process"],
        lines: Lines::Product,
        quoted: false,
        at_home: |path| {
            path.starts_with("crates/sandbox/")
                || path.starts_with("xtask/")
                || matches!(
                    path,
                    "crates/essaim/src/supervise.rs" | "crates/essaim/src/notify.rs" | "crates/worker/src/probe.rs"
                )
        },
        instead: "other people's programs start in crates/sandbox, our own in crates/essaim/src/supervise.rs",
    },
    Ban {
        rule: "print",
        words: &["println!", "eprintln!", "print!", "eprint!", "process::exit"],
        lines: Lines::Product,
        quoted: false,
        at_home: |path| {
            path.starts_with("xtask/") || matches!(path, "crates/essaim/src/print.rs" | "crates/essaim/src/main.rs")
        },
        instead: "return the value; crates/essaim/src/print.rs shows it. For the log use tracing",
    },
    Ban {
        rule: "pure",
        words: &[
            "Instant::now",
            "SystemTime::now",
            "thread::sleep",
            "tokio",
            "std::fs",
            "std::net",
            "HashMap",
            "HashSet",
            "rand",
        ],
        lines: Lines::Product,
        quoted: false,
        at_home: |path| !path.starts_with("crates/core/src/") && !path.starts_with("crates/proto/src/"),
        instead: "core and proto decide without the world: time and drawn numbers are arguments, maps are BTreeMap",
    },
    Ban {
        rule: "backend",
        words: &["sqlite", "rusqlite", "etcd", "SQLite", "Sqlite"],
        lines: Lines::Product,
        quoted: true,
        at_home: |path| {
            !path.starts_with("crates/")
                || path.starts_with("crates/store/")
                || path.starts_with("crates/essaim/src/config")
        },
        instead: "a back-end's name belongs in crates/store and the configuration: speak to the port",
    },
    Ban {
        rule: "ignored-test",
        words: &["#[ignore"],
        lines: Lines::Tests,
        quoted: false,
        at_home: |_| false,
        instead: "make the test pass where it runs, or delete it",
    },
];

/// Is this a Rust file that the rules speak about?
pub(crate) fn is_ours(path: &str) -> bool {
    path.ends_with(".rs") && (path.starts_with("crates/") || path.starts_with("xtask/") || path.starts_with("benches/"))
}

/// What breaks a rule in one file.
pub(crate) fn check(source: &Source) -> Vec<Finding> {
    let mut found = Vec::new();
    check_header(source, &mut found);
    check_size(source, &mut found);
    for ban in BANS {
        check_ban(source, ban, &mut found);
    }
    check_sleep(source, &mut found);
    found
}

fn finding(source: &Source, line: usize, rule: &'static str, message: String) -> Finding {
    Finding { path: source.path.clone(), line: line + 1, rule, message }
}

fn check_header(source: &Source, found: &mut Vec<Finding>) {
    let header: Vec<&str> = source.raw.lines().map_while(|line| line.strip_prefix("//!")).map(str::trim).collect();
    if is_test_file(&source.path) || !source.path.contains("/src/") {
        if header.is_empty() {
            let message = "open the file with a `//!` sentence: what do we want to know, and how do we look?".into();
            found.push(finding(source, 0, "header", message));
        }
        return;
    }
    let says_absences = header.join(" ").to_lowercase().contains("not here");
    if header.len() < HEADER_LINES_MIN || !says_absences {
        let message = format!(
            "open the file with at least {HEADER_LINES_MIN} lines of `//!`: what the room is for, who calls it, what is \
             always true, and what is \"Deliberately not here\""
        );
        found.push(finding(source, 0, "header", message));
    }
}

fn check_size(source: &Source, found: &mut Vec<Finding>) {
    let lines = source.raw.lines().count();
    if lines > FILE_LINES_MAX {
        let message =
            format!("{lines} lines, at most {FILE_LINES_MAX}: if the header has two subjects, make two files");
        found.push(finding(source, 0, "file-size", message));
    }
    for (name, line, lines) in source.functions() {
        if lines > FUNCTION_LINES_MAX {
            let message = format!(
                "`{name}` has {lines} lines, at most {FUNCTION_LINES_MAX}: push the branches up and the loops down"
            );
            found.push(finding(source, line, "function-size", message));
        }
    }
}

fn check_ban(source: &Source, ban: &Ban, found: &mut Vec<Finding>) {
    if (ban.at_home)(&source.path) {
        return;
    }
    let text = if ban.quoted { &source.uncommented } else { &source.code };
    let mut hits: Vec<(usize, &str)> = Vec::new();
    for word in ban.words {
        hits.extend(word_positions(text, word).map(|at| (line_of(text, at), *word)));
        let imported = source.imports.iter().filter(|(_, path)| word_positions(path, word).next().is_some());
        hits.extend(imported.map(|(line, _)| (*line, *word)));
    }
    hits.sort();
    hits.dedup_by_key(|(line, _)| *line);
    for (line, word) in hits {
        let concerned = match ban.lines {
            Lines::All => true,
            Lines::Product => !source.is_test(line),
            Lines::Tests => source.is_test(line),
        };
        if concerned {
            found.push(finding(source, line, ban.rule, format!("`{word}` is not allowed here: {}", ban.instead)));
        }
    }
}

/// A test that sleeps hopes; one that polls until a deadline knows. The comment says which it is.
fn check_sleep(source: &Source, found: &mut Vec<Finding>) {
    for at in word_positions(&source.code, "sleep(") {
        let line = line_of(&source.code, at);
        let excused = source.raw.lines().nth(line).is_some_and(|text| text.contains("// poll:"));
        if source.is_test(line) && !excused {
            let message =
                "wait for the event, or poll until a deadline and say so with `// poll: …` on this line".into();
            found.push(finding(source, line, "test-sleep", message));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "//! A room.\n//! Always true: nothing.\n//! Deliberately not here: the rest.\n";

    fn rules_broken(path: &str, body: &str) -> Vec<&'static str> {
        check(&Source::new(path, &format!("{HEADER}{body}"))).into_iter().map(|f| f.rule).collect()
    }

    // A room without a sign on its door is refused; a test needs one sentence.
    #[test]
    fn header_is_required() {
        let rules = |path: &str, text: &str| check(&Source::new(path, text)).len();
        assert_eq!(rules("crates/hub/src/a.rs", "//! One line.\nfn a() {}\n"), 1);
        assert_eq!(rules("crates/hub/src/a.rs", "//! One.\n//! Two.\n//! Three.\n"), 1);
        assert_eq!(rules("crates/hub/src/a.rs", HEADER), 0);
        assert_eq!(rules("crates/hub/tests/a.rs", "fn a() {}\n"), 1);
        assert_eq!(rules("crates/hub/tests/a.rs", "//! We look at a.\n"), 0);
    }

    // Files and functions have a hard limit.
    #[test]
    fn sizes_are_limited() {
        assert_eq!(rules_broken("crates/hub/src/a.rs", &"// x\n".repeat(798)), ["file-size"]);
        assert!(rules_broken("crates/hub/src/a.rs", &"// x\n".repeat(797)).is_empty());
        let function = |lines: usize| format!("fn a() {{\n{}}}\n", "    b();\n".repeat(lines - 2));
        assert_eq!(rules_broken("crates/hub/src/a.rs", &function(81)), ["function-size"]);
        assert!(rules_broken("crates/hub/src/a.rs", &function(80)).is_empty());
    }

    // Each banned word is refused away from its home, and nowhere else: (rule, bad file, good file, text).
    #[test]
    fn words_have_a_home() {
        let cases = [
            ("unsafe", "crates/hub/src/a.rs", "crates/sandbox/src/sys.rs", "unsafe fn a() {}"),
            ("tcp", "crates/hub/src/tcp.rs", "crates/net/src/tcp.rs", "use std::{io, net::{IpAddr, TcpStream}};"),
            ("spawn", "crates/hub/src/a.rs", "crates/sandbox/src/a.rs", "use std::process::{Child, Command};"),
            ("spawn", "crates/worker/src/a.rs", "crates/worker/src/probe.rs", "fn a() { tokio::process::x(); }"),
            ("spawn", "crates/essaim/src/a.rs", "crates/essaim/src/supervise.rs", "use std::process::Command;"),
            ("print", "crates/essaim/src/run.rs", "crates/essaim/src/print.rs", "fn a() { println!(\"x\"); }"),
            ("print", "crates/essaim/src/run.rs", "crates/essaim/src/main.rs", "fn a() { std::process::exit(1); }"),
            ("pure", "crates/core/src/a.rs", "crates/hub/src/a.rs", "use std::{collections::HashMap, fmt};"),
            ("pure", "crates/proto/src/a.rs", "crates/net/src/a.rs", "use tokio::time::sleep;"),
            ("pure", "crates/core/src/a.rs", "crates/worker/src/a.rs", "fn a() { std::time::Instant::now(); }"),
            ("backend", "crates/hub/src/a.rs", "crates/store/src/a.rs", "fn a() { open(\"etcd\"); }"),
            ("backend", "crates/hub/src/a.rs", "crates/essaim/src/config.rs", "use rusqlite::Connection;"),
        ];
        for (rule, bad, good, text) in cases {
            assert_eq!(rules_broken(bad, text), [rule], "{text} in {bad}");
            assert!(rules_broken(good, text).is_empty(), "{text} in {good}");
        }
    }

    // `unwrap` is for tests; words in comments, in texts and inside longer words are no use of them.
    #[test]
    fn unwrap_is_for_tests() {
        assert_eq!(rules_broken("crates/hub/src/a.rs", "fn a() { b().unwrap(); }"), ["unwrap"]);
        assert_eq!(rules_broken("crates/hub/src/a.rs", "fn a() { todo!() }"), ["unwrap"]);
        assert!(rules_broken("crates/hub/src/a.rs", "#[cfg(test)]\nmod tests { fn a() { b().unwrap(); } }").is_empty());
        assert!(rules_broken("crates/hub/tests/a.rs", "fn a() { b().unwrap(); }").is_empty());
        assert!(rules_broken("crates/hub/src/a.rs", "fn a() { b().unwrap_or(0); } // .unwrap()").is_empty());
        assert!(rules_broken("crates/core/src/a.rs", "fn a() { operand(\"tokio\"); } // tokio").is_empty());
    }

    // Tests neither hide nor hope.
    #[test]
    fn tests_do_not_sleep() {
        let path = "crates/hub/tests/a.rs";
        assert_eq!(rules_broken(path, "#[test]\n#[ignore = \"slow\"]\nfn a() {}"), ["ignored-test"]);
        assert_eq!(rules_broken(path, "fn a() { std::thread::sleep(X); }"), ["test-sleep"]);
        assert_eq!(rules_broken(path, "async fn a() { sleep(X).await; }"), ["test-sleep"]);
        assert!(rules_broken(path, "fn a() { sleep(X); } // poll: until the port answers, 5 s").is_empty());
        assert!(rules_broken("crates/hub/src/a.rs", "fn a() { sleep(X); }").is_empty());
    }
}
