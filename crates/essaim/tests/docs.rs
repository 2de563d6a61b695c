//! Runs every example of the pages that have some, so that they stay true.
//!
//! A ```console block is one shell session in the project's root: `$ ` begins a command, the lines up to the next one
//! are its standard output, `…` stands for anything within a line and, alone on a line, for any lines; `[exit N]` is the
//! exit code, 0 where nothing is said. Always true: `essaim` is the built binary, its hub one that `up` started.
//! Deliberately not here: what stands between the blocks.
#![allow(clippy::unwrap_used)]

mod swarm;

use std::path::PathBuf;
use swarm::{Swarm, Words, root};

/// Begins the line that tells a command's exit code; nothing else prints it.
const CODE: &str = "\u{1}code ";

/// A command, what it prints and how it ends.
#[derive(Debug, Default, PartialEq)]
struct Example {
    command: String,
    output: Vec<String>,
    code: i32,
}

/// The blocks of a page.
fn blocks(page: &str) -> Vec<Vec<Example>> {
    let mut blocks: Vec<Vec<Example>> = Vec::new();
    let mut is_inside = false;
    for line in page.lines() {
        match line {
            "```console" => {
                is_inside = true;
                blocks.push(Vec::new());
                continue;
            }
            "```" => is_inside = false,
            _ => {}
        }
        let Some(block) = blocks.last_mut().filter(|_| is_inside) else { continue };
        if let Some(command) = line.strip_prefix("$ ") {
            block.push(Example { command: command.to_owned(), ..Example::default() });
        } else if let Some(code) = line.strip_prefix("[exit ").and_then(|rest| rest.strip_suffix(']')) {
            block.last_mut().unwrap().code = code.parse().unwrap();
        } else {
            block.last_mut().unwrap().output.push(line.to_owned());
        }
    }
    blocks
}

/// Is `text` what `pattern` says, where `…` is anything?
fn fits_line(pattern: &str, text: &str) -> bool {
    match pattern.split_once('…') {
        None => pattern == text,
        Some((front, rest)) => text.strip_prefix(front).is_some_and(|text| {
            let cuts = text.char_indices().map(|(at, _)| at).chain([text.len()]);
            cuts.into_iter().any(|cut| fits_line(rest, &text[cut..]))
        }),
    }
}

/// Are `lines` what `patterns` say, where `…` alone is any number of lines?
fn fits(patterns: &[String], lines: &[&str]) -> bool {
    match patterns.split_first() {
        None => lines.is_empty(),
        Some((first, rest)) if first == "…" => (0..=lines.len()).any(|skip| fits(rest, &lines[skip..])),
        Some((first, rest)) => {
            lines.split_first().is_some_and(|(line, more)| fits_line(first, line) && fits(rest, more))
        }
    }
}

/// What a shell does with the commands of a block: for each its output and its exit code.
fn session(swarm: &Swarm, block: &[Example]) -> (Vec<(String, i32)>, String) {
    let tell = |example: &Example| format!("{}\nprintf '\\001code %d\\n' $?\n", example.command);
    let script: String = block.iter().map(tell).collect();
    let binary = PathBuf::from(swarm::ESSAIM);
    let old = std::env::var_os("PATH").unwrap();
    let folders = std::iter::once(binary.parent().unwrap().to_owned()).chain(std::env::split_paths(&old));
    let path = std::env::join_paths(folders).unwrap();
    let home = swarm.home.path().display().to_string();
    let words = Words::new("sh", &["-c", &script]).env("PATH", path.to_str().unwrap()).env("ESSAIM_HOME", &home);
    let ran = words.run().good();
    let mut answers = Vec::new();
    let mut rest = ran.text();
    while let Some((output, more)) = rest.split_once(CODE) {
        let (code, more) = more.split_once('\n').unwrap();
        answers.push((output.to_owned(), code.parse().unwrap()));
        rest = more;
    }
    (answers, ran.stderr)
}

// Does docs/run.md say what happens?
#[test]
fn the_examples_of_run_are_true() {
    examples_are_true("docs/run.md");
}

// Does docs/arrays.md?
#[test]
fn the_examples_of_arrays_are_true() {
    examples_are_true("docs/arrays.md");
}

// Does docs/job-file.md?
#[test]
fn the_examples_of_job_files_are_true() {
    examples_are_true("docs/job-file.md");
}

// Does docs/quotas.md?
#[test]
fn the_examples_of_quotas_are_true() {
    examples_are_true("docs/quotas.md");
}

// Does docs/local-workers.md?
#[test]
fn the_examples_of_local_workers_are_true() {
    examples_are_true("docs/local-workers.md");
}

fn examples_are_true(page: &str) {
    let page = std::fs::read_to_string(root().join(page)).unwrap();
    let blocks = blocks(&page);
    assert!(blocks.len() >= 2 && blocks.iter().all(|block| !block.is_empty()), "{blocks:?}");
    let swarm = Swarm::start();
    for block in &blocks {
        let (answers, complaint) = session(&swarm, block);
        assert_eq!(answers.len(), block.len(), "{block:?}\n{complaint}");
        for (example, (output, code)) in block.iter().zip(answers) {
            let lines: Vec<&str> = output.lines().collect();
            let said = format!("$ {}\n{output}[exit {code}]\n{complaint}", example.command);
            assert_eq!(code, example.code, "{said}");
            assert!(fits(&example.output, &lines), "expected {:?}\n{said}", example.output);
        }
    }
    swarm.stop();
}

// Would the test notice a page that is wrong?
#[test]
fn patterns_fit_what_they_should() {
    assert!(fits_line("… shapes.h", "154 shapes.h") && !fits_line("… shapes.h", "154 shapes.c"));
    assert!(fits_line("a…b…c", "a1b2c") && !fits_line("a…b…c", "a1b2"));
    let patterns = ["one".to_owned(), "…".to_owned(), "four".to_owned()];
    assert!(fits(&patterns, &["one", "two", "three", "four"]) && fits(&patterns, &["one", "four"]));
    assert!(!fits(&patterns, &["one", "two"]) && !fits(&patterns, &["one", "four", "five"]));
    assert!(!fits(&["one".to_owned()], &[]) && !fits(&[], &["one"]));
    let page = "x\n```console\n$ a\nout\n[exit 3]\n$ b\n```\n```toml\n$ c\n```\n";
    let first = Example { command: "a".into(), output: vec!["out".into()], code: 3 };
    assert_eq!(blocks(page), [vec![first, Example { command: "b".into(), ..Example::default() }]]);
}
