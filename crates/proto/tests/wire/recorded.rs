//! Frames that past releases sent: every later version reads them, and reads the same in them.
//!
//! One folder per release (`tests/frames-0.1`), one file per message: the value as JSON, then the frame in hexadecimal.
//! `ESSAIM_RECORD=1 cargo test -p essaim-proto --test wire recorded` writes the files that are missing and never
//! changes one that is there.

use crate::samples::{self, Message, Visit};
use essaim_proto::{Decoder, Frame};
use serde_json::Value as Json;
use std::path::{Path, PathBuf};

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

fn release() -> String {
    let mut numbers = env!("CARGO_PKG_VERSION").split('.');
    format!("frames-{}.{}", numbers.next().unwrap(), numbers.next().unwrap())
}

struct Record(PathBuf);

impl Visit for Record {
    fn message<T: Message>(&mut self, name: &'static str, frame: Frame, sample: T) {
        let path = self.0.join(format!("{name}.hex"));
        if !path.exists() {
            let mut bytes = Vec::new();
            frame.write_to(&mut bytes);
            let hex = hex::encode(bytes);
            let lines: Vec<&str> = hex.as_bytes().chunks(96).map(|line| std::str::from_utf8(line).unwrap()).collect();
            let json = serde_json::to_string(&sample).unwrap();
            std::fs::write(&path, format!("{json}\n{}\n", lines.join("\n"))).unwrap();
        }
    }
}

struct Read {
    folder: PathBuf,
    seen: usize,
    missing: Vec<&'static str>,
}

impl Visit for Read {
    fn message<T: Message>(&mut self, name: &'static str, frame: Frame, _sample: T) {
        let Ok(text) = std::fs::read_to_string(self.folder.join(format!("{name}.hex"))) else {
            self.missing.push(name);
            return;
        };
        let (json, hex) = text.split_once('\n').unwrap();
        let mut decoder = Decoder::default();
        decoder.feed(&hex::decode(hex.split_whitespace().collect::<String>()).unwrap());
        let recorded = decoder.next_frame().unwrap().unwrap();
        assert_eq!((recorded.function, recorded.flags, recorded.id), (frame.function, frame.flags, frame.id), "{name}");
        assert_eq!(decoder.pending_bytes(), 0, "{name}");
        let message: T = recorded.message().unwrap_or_else(|error| panic!("{name}: {error:?}"));
        let then: Json = serde_json::from_str(json).unwrap();
        same(&then, &serde_json::to_value(message).unwrap(), name);
        self.seen += 1;
    }
}

/// Everything that was said then is read now; what is new now was not said then.
fn same(then: &Json, now: &Json, place: &str) {
    match (then, now) {
        (Json::Object(then), Json::Object(now)) => {
            for (name, value) in then {
                same(value, now.get(name).unwrap_or(&Json::Null), &format!("{place}.{name}"));
            }
        }
        (Json::Array(then), Json::Array(now)) if then.len() == now.len() => {
            then.iter().zip(now).for_each(|(then, now)| same(then, now, place));
        }
        _ => assert_eq!(then, now, "{place}"),
    }
}

// Are the frames of every release still read, every one of them?
#[test]
fn recorded_frames_are_read() {
    if std::env::var_os("ESSAIM_RECORD").is_some() {
        let folder = tests().join(release());
        std::fs::create_dir_all(&folder).unwrap();
        samples::each(&mut Record(folder));
    }
    let mut releases = 0;
    for entry in std::fs::read_dir(tests()).unwrap() {
        let folder = entry.unwrap().path();
        if !folder.file_name().unwrap().to_string_lossy().starts_with("frames-") {
            continue;
        }
        releases += 1;
        let files = std::fs::read_dir(&folder).unwrap().count();
        let mut read = Read { folder: folder.clone(), seen: 0, missing: Vec::new() };
        samples::each(&mut read);
        assert_eq!(read.seen, files, "a file in {} belongs to no message", folder.display());
        if folder.ends_with(release()) {
            assert!(read.missing.is_empty(), "not recorded yet (ESSAIM_RECORD=1 does it): {:?}", read.missing);
        }
    }
    assert!(releases > 0, "no recorded frames");
}
