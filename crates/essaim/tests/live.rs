//! Output while it is made, input while it is wanted, and every byte of both, with real processes.
//!
//! No clock decides here: a program waits for an input that the test sends only after it has read the output before it.
//! Always true: what arrives is compared byte for byte (large outputs by their BLAKE3).
//! Deliberately not here: how long a byte takes (the benches), lost connections (`deaths`).
#![allow(clippy::unwrap_used)]

mod swarm;

use std::path::PathBuf;
use swarm::{Swarm, example, tree, wait_for, wait_until};

/// Writes a program into the swarm's folder.
fn program(swarm: &Swarm, name: &str, text: &str) -> String {
    let file: PathBuf = swarm.home.path().join(name);
    std::fs::write(&file, text).unwrap();
    file.display().to_string()
}

/// The id of the only job that is not over.
fn live_job(swarm: &Swarm) -> String {
    wait_for("a job", || {
        let list = swarm.essaim(&["job", "list", "--live", "--json"]).run().good().json();
        Some(list.get(0)?["job"].to_string())
    })
}

/// Prints line n, without flushing, before it wants line n. `read` itself, so that no C library flushes for it.
const C_STEPS: &str = r#"
#include <stdio.h>
#include <unistd.h>
int main(void)
{
    char byte;
    for (int n = 1; n <= 5; n++) {
        printf("line %d\n", n);
        do {
            if (read(0, &byte, 1) != 1)
                return 9;
        } while (byte != '\n');
    }
    printf("the end");
    return 0;
}
"#;

const PYTHON_STEPS: &str = r#"
import os
for n in range(1, 6):
    print("line", n)
    while (byte := os.read(0, 1)) != b"\n":
        if not byte:
            raise SystemExit(9)
print("the end", end="")
"#;

// Ordinary programs do not flush; their lines are seen all the same, each before the next is made.
#[test]
fn lines_that_nobody_flushes_are_seen_one_by_one() {
    let swarm = Swarm::start();
    for (name, text) in [("steps.c", C_STEPS), ("steps.py", PYTHON_STEPS)] {
        let mut run = swarm.run(&[&program(&swarm, name, text)]).start();
        for n in 1..=5 {
            assert_eq!(run.line(), format!("line {n}"), "{name}");
            run.send("go on\n");
        }
        assert_eq!(run.line(), "the end", "{name}: also without an end of line");
        let ran = run.end().good();
        assert_eq!(ran.text(), "line 1\nline 2\nline 3\nline 4\nline 5\nthe end");
    }
    swarm.stop();
}

// A conversation, in each language; the hub knows that the program waits for its partner.
#[test]
fn programs_can_be_talked_to() {
    let swarm = Swarm::start();
    let answers = ["python/answer.py", "c/answer.c", "cpp/answer.cpp", "java/Answer.java", "shell/answer.sh"];
    for name in answers.into_iter().chain(["javascript/answer.js"]) {
        let mut run = swarm.run(&[&example(name)]).start();
        for who in ["Ann", "Bob", "Zoë"] {
            run.send(&format!("{who}\n"));
            assert_eq!(run.line(), format!("Hello, {who}!"), "{name}");
        }
        let ran = run.end().good();
        assert!(ran.text().ends_with("\n3 answered.\n"), "{name}: {}", ran.text());
    }
    let run = swarm.run(&[&example("python/answer.py")]).start();
    let job = live_job(&swarm);
    wait_until("the job waiting for input", || {
        let view = swarm.essaim(&["job", "show", &job, "--json"]).run().good().json();
        view["tasks"][0]["waiting_for_input"] == true
    });
    assert_eq!(run.end().good().text(), "0 answered.\n");
    swarm.stop();
}

// A second client joins in the middle: it gets the beginning too, and then each line as the first one does.
#[test]
fn two_clients_see_the_same_job() {
    let swarm = Swarm::start();
    let mut run = swarm.run(&[&program(&swarm, "steps.c", C_STEPS)]).start();
    assert_eq!(run.line(), "line 1");
    run.send("\n");
    assert_eq!(run.line(), "line 2");
    let job = live_job(&swarm);
    let mut logs = swarm.essaim(&["job", "logs", &job]).start();
    assert_eq!((logs.line(), logs.line()), ("line 1".to_owned(), "line 2".to_owned()));
    let so_far = swarm.essaim(&["job", "logs", &job, "--no-follow"]).run().good();
    assert_eq!(so_far.text(), "line 1\nline 2\n", "what is there, without waiting for more");
    for n in 3..=5 {
        run.send("\n");
        assert_eq!((run.line(), logs.line()), (format!("line {n}"), format!("line {n}")));
    }
    run.send("\n");
    let (ran, logged) = (run.end().good(), logs.end().good());
    assert_eq!(ran.stdout, logged.stdout);
    let again = swarm.essaim(&["job", "logs", &job]).run().good();
    assert_eq!(again.stdout, ran.stdout, "the job is over, its output is not");
    swarm.stop();
}

/// Bytes of the program below: a generator that any language can write down.
fn noise(count: usize) -> Vec<u8> {
    let mut state: u64 = 1;
    let mut bytes = Vec::with_capacity(count + 4);
    while bytes.len() < count {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&((state >> 32) as u32).to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

const C_NOISE: &str = r#"
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(int argc, char **argv)
{
    static unsigned char part[1 << 16];
    uint64_t state = 1;
    long left = atol(argv[1]);
    while (left > 0) {
        size_t size = left < (long)sizeof part ? (size_t)left : sizeof part;
        for (size_t at = 0; at < sizeof part; at += 4) {
            state = state * 6364136223846793005ULL + 1442695040888963407ULL;
            for (int n = 0; n < 4; n++)
                part[at + n] = (unsigned char)(state >> (32 + 8 * n));
        }
        for (size_t done = 0; done < size;) {
            ssize_t count = write(argc > 2 ? 2 : 1, part + done, size - done);
            if (count < 0)
                return 9;
            done += (size_t)count;
        }
        left -= (long)size;
    }
    return 0;
}
"#;

// More than any window, buffer or queue holds: every byte, in order, live and afterwards, on both streams.
#[test]
fn fifty_megabytes_are_exact() {
    const SIZE: usize = 50_000_000;
    let swarm = Swarm::start();
    let program = program(&swarm, "noise.c", C_NOISE);
    let expected = blake3::hash(&noise(SIZE));
    let ran = swarm.run(&[&program, &SIZE.to_string()]).run().good();
    assert_eq!((ran.stdout.len(), blake3::hash(&ran.stdout)), (SIZE, expected));
    let list = swarm.essaim(&["job", "list", "--json"]).run().good().json();
    assert_eq!(list[0]["tasks"][0]["result"]["stdout_bytes"], SIZE);
    let logs = swarm.essaim(&["job", "logs", &list[0]["job"].to_string()]).run().good();
    assert_eq!((logs.stdout.len(), blake3::hash(&logs.stdout)), (SIZE, expected));
    let few = swarm.run(&["--json", &program, "300000", "stderr"]).run().good();
    let lines = few.json_lines();
    assert_eq!(lines.last().unwrap()["stderr_bytes"], 300_000);
    let mut bytes = Vec::new();
    for line in lines.iter().filter(|line| line["type"] == "output") {
        assert_eq!((&line["stream"], &line["offset"]), (&"stderr".into(), &bytes.len().into()));
        match line["text"].as_str() {
            Some(text) => bytes.extend_from_slice(text.as_bytes()),
            None => bytes.extend(
                base64::Engine::decode(&base64::engine::general_purpose::STANDARD, line["base64"].as_str().unwrap())
                    .unwrap(),
            ),
        }
    }
    assert_eq!(blake3::hash(&bytes), blake3::hash(&noise(300_000)));
    swarm.stop();
}

// The same the other way: input of many windows, from a pipe and from a file.
#[test]
fn megabytes_of_input_are_exact() {
    let swarm = Swarm::start();
    let input = noise(5_000_000);
    let ran = swarm.run(&["--command", "cat"]).input(input.clone()).run().good();
    assert_eq!((ran.stdout.len(), blake3::hash(&ran.stdout)), (input.len(), blake3::hash(&input)));
    let file = swarm.home.path().join("input");
    std::fs::write(&file, &input).unwrap();
    let ran = swarm.run(&["--stdin", file.to_str().unwrap(), "--command", "cat"]).run().good();
    assert_eq!((ran.stdout.len(), blake3::hash(&ran.stdout)), (input.len(), blake3::hash(&input)));
    // Who does not read it all ends all the same.
    let ran = swarm.run(&["--command", "--", "head", "-c", "3"]).input(input.clone()).run().good();
    assert_eq!(ran.stdout, input[..3]);
    swarm.stop();
}

// Streams stay apart and bytes stay bytes, whatever they mean to a terminal.
#[test]
fn streams_stay_apart_and_bytes_stay_bytes() {
    let swarm = Swarm::start();
    let text = "import os\nfor n in range(256):\n    os.write(1, bytes([n]))\n    os.write(2, bytes([255 - n]))\n";
    let program = program(&swarm, "bytes.py", text);
    let all: Vec<u8> = (0..=255).collect();
    let ran = swarm.run(&["--json", &program]).run().good();
    let result = ran.json_lines().pop().unwrap();
    assert_eq!((&result["stdout_bytes"], &result["stderr_bytes"]), (&256.into(), &256.into()));
    let plain = swarm.run(&[&program]).run().good();
    assert_eq!(plain.stdout, all);
    let job = result["job"].to_string();
    assert_eq!(swarm.essaim(&["job", "logs", &job, "--stdout"]).run().good().stdout, all);
    let reversed: Vec<u8> = all.iter().rev().copied().collect();
    let errors = swarm.essaim(&["job", "logs", &job, "--stderr"]).run().good();
    assert_eq!((errors.stdout.len(), errors.stderr), (0, String::from_utf8_lossy(&reversed).into_owned()));
    swarm.stop();
}

// Whoever closes our standard output has enough: the job ends, nothing of it stays.
#[test]
fn a_reader_that_has_enough_ends_the_job() {
    let swarm = Swarm::start();
    let words = format!("{} run --command yes | head -n 2", swarm::ESSAIM);
    let home = swarm.home.path().display().to_string();
    let ran = swarm::Words::new("sh", &["-c", &words]).env("ESSAIM_HOME", &home).run().good();
    assert_eq!((ran.text(), ran.stderr.as_str()), ("y\ny\n", ""));
    wait_until("no live job", || {
        swarm.essaim(&["job", "list", "--live", "--json"]).run().good().json() == serde_json::json!([])
    });
    let work = swarm.home.path().join("local/1/work");
    wait_until("no work folder", || tree(&work).is_empty());
    swarm.stop();
}
