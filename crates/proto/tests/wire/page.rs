//! `docs/protocol.md` says what the code does: same functions, codes, limits, fields, and bytes.

use crate::samples::{self, Message, Visit};
use crate::value::Value;
use essaim_proto::api::*;
use essaim_proto::frame::{FLAG_ANSWER, FLAG_LAST, ValueType};
use essaim_proto::hello::*;
use essaim_proto::job::*;
use essaim_proto::{
    AttemptId, BlobHash, Decoder, Frame, Function, JobId, Refusal, RefusalCode, SubmitKey, TaskId, encode, limits,
};
use std::collections::BTreeMap;
use std::path::Path;

fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/protocol.md");
    std::fs::read_to_string(path).expect("docs/protocol.md can be read")
}

/// The cells of the table rows under the heading `title`, without the backticks around a cell.
fn rows(page: &str, title: &str) -> Vec<Vec<String>> {
    let level = |line: &str| line.bytes().take_while(|b| *b == b'#').count();
    let mut lines = page.lines().skip_while(|line| level(line) == 0 || line.trim_start_matches('#').trim() != title);
    let heading = lines.next().unwrap_or_else(|| panic!("no heading {title:?}"));
    let section = lines.take_while(|line| level(line) == 0 || level(line) > level(heading));
    let table = section.filter(|line| line.starts_with("| ") && !line.starts_with("|--"));
    // The first row of a table names its columns; every table of the page has one.
    let cells =
        |line: &str| line.trim_matches('|').split(" | ").map(|c| c.trim().trim_matches('`').to_owned()).collect();
    table.map(cells).skip(1).collect()
}

// Is every function listed with its number and name, and none that does not exist?
#[test]
fn functions_are_listed() {
    let listed: Vec<(String, String)> =
        rows(&page(), "Functions").into_iter().map(|row| (row[0].clone(), row[1].clone())).collect();
    let real: Vec<(String, String)> =
        Function::ALL.iter().map(|f| (f.0.to_string(), f.name().unwrap().to_owned())).collect();
    assert_eq!(listed, real);
}

// Is every refusal listed, and none that does not exist?
#[test]
fn refusals_are_listed() {
    let listed: Vec<String> = rows(&page(), "Refusals").into_iter().map(|row| row[0].clone()).collect();
    let real: Vec<&str> = RefusalCode::ALL.iter().map(|code| code.name()).collect();
    assert_eq!(listed, real);
}

// Are the limits those of the code?
#[test]
fn limits_are_listed() {
    let listed: BTreeMap<String, u64> = rows(&page(), "Limits of the wire")
        .into_iter()
        .map(|row| (row[0].clone(), row[1].replace(',', "").parse().expect("a limit is a number")))
        .collect();
    let real: BTreeMap<String, u64> = [
        ("HEADER_BYTES", limits::HEADER_BYTES as u64),
        ("VALUE_BYTES_MAX", limits::VALUE_BYTES_MAX as u64),
        ("CHUNK_BYTES", limits::CHUNK_BYTES as u64),
        ("OUTPUT_WINDOW_BYTES", limits::OUTPUT_WINDOW_BYTES),
        ("STDIN_WINDOW_BYTES", limits::STDIN_WINDOW_BYTES),
        ("BLOB_WINDOW_BYTES", limits::BLOB_WINDOW_BYTES),
        ("INLINE_BYTES_MAX", limits::INLINE_BYTES_MAX),
        ("BLOB_BYTES_MAX", limits::BLOB_BYTES_MAX),
        ("JOB_FILES_MAX", limits::JOB_FILES_MAX as u64),
        ("JOB_PATHS_BYTES_MAX", limits::JOB_PATHS_BYTES_MAX as u64),
        ("ARGUMENT_BYTES_MAX", limits::ARGUMENT_BYTES_MAX as u64),
        ("NAME_BYTES_MAX", limits::NAME_BYTES_MAX as u64),
        ("PATH_BYTES_MAX", limits::PATH_BYTES_MAX as u64),
        ("PAGE_ENTRIES_MAX", limits::PAGE_ENTRIES_MAX as u64),
        ("ARRAY_TASKS_MAX", limits::ARRAY_TASKS_MAX),
        ("TASK_RANGES_MAX", limits::TASK_RANGES_MAX as u64),
        ("LINE_BYTES_MAX", limits::LINE_BYTES_MAX as u64),
        ("AFTER_MAX", limits::AFTER_MAX as u64),
        ("LABELS_MAX", limits::LABELS_MAX as u64),
        ("SHOWN_TASKS_MAX", limits::SHOWN_TASKS_MAX as u64),
        ("BATCH_TASKS_MAX", limits::BATCH_TASKS_MAX as u64),
        ("NAMED_TASKS_MAX", limits::NAMED_TASKS_MAX),
        ("VALUE_DEPTH_MAX", limits::VALUE_DEPTH_MAX as u64),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect();
    assert_eq!(listed, real);
}

struct Fields(String);

impl Visit for Fields {
    fn message<T: Message>(&mut self, name: &'static str, _frame: Frame, sample: T) {
        self.part(name, sample);
    }

    fn part<T: Message>(&mut self, name: &'static str, sample: T) {
        let listed: Vec<String> = rows(&self.0, name).into_iter().map(|row| row[0].clone()).collect();
        assert_eq!(listed, Value::of(&sample).names(), "fields of {name}");
    }
}

// Is every message listed with its fields, in the order in which they are written?
#[test]
fn fields_are_listed() {
    samples::each(&mut Fields(page()));
}

/// The frames of the page's test vectors.
fn vectors() -> Vec<(&'static str, Frame)> {
    let hello = Hello {
        proto_min: 1,
        proto_max: 1,
        software: "demo 1".into(),
        kind: PeerKind::Client,
        features: Vec::new(),
        key: Some(Secret("essaim-key.demo".into())),
    };
    let welcome = Welcome {
        proto: 1,
        software: "essaim 0.1.0".into(),
        hub: "lab".into(),
        heartbeat_ms: 5_000,
        silence_ms: 30_000,
        lease_ms: 60_000,
        you: "ann".into(),
        role: Role::User,
        seen_from: "192.0.2.7:51234".into(),
        ..Welcome::default()
    };
    let source = b"print('hello')\n".to_vec();
    let file = FileSpec {
        path: "hello.py".into(),
        hash: BlobHash::of(&source),
        size_bytes: source.len() as u64,
        executable: false,
        inline: Some(source.into()),
    };
    let spec = JobSpec { entry: "hello.py".into(), files: vec![file], ..JobSpec::default() };
    let attempt = AttemptId { job: JobId(1), task: TaskId(1), attempt: 1 };
    let output = OutputChunk { attempt, bytes: b"hello\n".to_vec(), ..OutputChunk::default() };
    let result = TaskResult {
        verdict: Verdict::Ok,
        phase: Phase::Run,
        exit_code: Some(0),
        cpu_ms: 11,
        wall_ms: 14,
        stdout_bytes: 6,
        isolation: Isolation::Full,
        node: "here-1".into(),
        attempt: 1,
        ..TaskResult::default()
    };
    let task = TaskView { task: TaskId(1), state: TaskState::Done, attempt: 1, ..TaskView::default() };
    let task = TaskView { result: Some(result), ..task };
    let event = JobEvent { job: JobId(1), state: JobState::Done, task: Some(task), last: true, ..JobEvent::default() };
    vec![
        ("ping", Frame::empty(Function::PING, 7)),
        ("pong", Frame::empty(Function::PONG, 7)),
        ("hello", Frame::of(Function::HELLO, 0, &hello)),
        ("welcome", Frame::of(Function::WELCOME, 0, &welcome)),
        (
            "submit",
            Frame::of(Function::SUBMIT, 1, &Submit { key: SubmitKey([0x11; 16]), spec, watch: true, in_order: false }),
        ),
        (
            "submitted",
            Frame::of(Function::SUBMIT, 1, &Submitted { job: JobId(1), ..Submitted::default() }).with_flag(FLAG_ANSWER),
        ),
        ("output", Frame::of(Function::OUTPUT, 1, &output)),
        ("output_ack", Frame::of(Function::OUTPUT_ACK, 1, &OutputAck { received_bytes: 6 })),
        ("event", Frame::of(Function::EVENT, 1, &event)),
        ("unwatch", Frame::empty(Function::UNWATCH, 1)),
        ("blob_bytes", Frame::bytes(Function::BLOB_BYTES, 2, b"print('hello')\n".to_vec()).with_flag(FLAG_LAST)),
        ("credit", Frame::of(Function::CREDIT, 2, &Credit { bytes: 15 })),
        (
            "refused",
            Frame::of(Function::REFUSED, 3, &Refusal::new(RefusalCode::NoSuchJob).with("job", 42))
                .with_flag(FLAG_ANSWER),
        ),
    ]
}

/// A vector as it stands in the page.
fn rendered(name: &str, frame: &Frame) -> String {
    let mut bytes = Vec::new();
    frame.write_to(&mut bytes);
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ");
    let mut text = format!("```vector {name}\n");
    let value_type = frame.value_type;
    let fields = [
        (0..4, format!("length {}", frame.value.len())),
        (4..6, format!("function {} {:?}", frame.function.0, frame.function)),
        (6..7, format!("type {} {value_type:?}", value_type as u8)),
        (7..8, format!("flags {}", frame.flags)),
        (8..16, format!("id {}", frame.id)),
    ];
    for (range, comment) in fields {
        text += &format!("{:<48}# {comment}\n", hex(&bytes[range]));
    }
    for line in frame.value.chunks(16) {
        let plain = |b: &u8| if b.is_ascii_graphic() { *b as char } else { '.' };
        text += &format!("{:<48}# {}\n", hex(line), line.iter().map(plain).collect::<String>());
    }
    text + "```\n"
}

/// The bytes of each vector in the page.
fn vectors_of(page: &str) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some(name) = line.strip_prefix("```vector ") else { continue };
        let block = lines.by_ref().take_while(|line| !line.starts_with("```"));
        let digits: String = block.flat_map(|line| line.split('#').next().unwrap().split_whitespace()).collect();
        found.insert(name.to_owned(), hex::decode(digits).unwrap_or_else(|error| panic!("{name}: {error}")));
    }
    found
}

// Do the bytes in the page decode to what the page says they are, and are they what we write?
#[test]
fn vectors_are_true() {
    let mut listed = vectors_of(&page());
    let vectors = vectors();
    let fresh: String = vectors.iter().map(|(name, frame)| rendered(name, frame) + "\n").collect();
    for (name, frame) in vectors {
        let bytes = listed.remove(name).unwrap_or_else(|| panic!("{name} is missing; these are right:\n{fresh}"));
        let mut decoder = Decoder::default();
        decoder.feed(&bytes);
        let read = decoder.next_frame().unwrap();
        assert_eq!(read.as_ref(), Some(&frame), "{name} differs; these are right:\n{fresh}");
        assert_eq!(decoder.pending_bytes(), 0, "{name}");
        if frame.value_type == ValueType::Value {
            // Readable without our structs: any reader of MessagePack sees a map with field names.
            assert_eq!(encode(&frame.message::<Value>().unwrap()), frame.value, "{name}");
        }
    }
    assert!(listed.is_empty(), "vectors of no frame: {:?}", listed.keys());
}
