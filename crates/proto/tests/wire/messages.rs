//! Every message survives the wire, and versions that differ understand each other.

use crate::samples::{self, Message, Visit};
use crate::value::Value;
use essaim_proto::api::{JobEvent, OutputChunk, Submit};
use essaim_proto::hello::{Hello, Joined, PeerKind};
use essaim_proto::job::{
    FileSpec, JobKind, JobSpec, JobState, Phase, StdinSpec, TaskResult, TaskState, TaskView, Verdict,
};
use essaim_proto::limits::VALUE_DEPTH_MAX;
use essaim_proto::node::{NodeState, NodeView};
use essaim_proto::{Frame, Refusal, RefusalCode, decode, encode};
use proptest::prelude::*;
use std::fmt::Debug;

struct RoundTrip;

impl Visit for RoundTrip {
    fn message<T: Message>(&mut self, name: &'static str, frame: Frame, sample: T) {
        assert_eq!(frame.message::<T>().unwrap(), sample, "{name}");
        self.part(name, sample);
    }

    fn part<T: Message>(&mut self, name: &'static str, sample: T) {
        for message in [sample, T::default()] {
            assert_eq!(decode::<T>(&encode(&message)).unwrap(), message, "{name} in MessagePack");
            let text = serde_json::to_string(&message).unwrap();
            assert_eq!(serde_json::from_str::<T>(&text).unwrap(), message, "{name} in JSON: {text}");
        }
    }
}

// Does each message come back as it was, from MessagePack and from JSON?
#[test]
fn messages_come_back() {
    samples::each(&mut RoundTrip);
}

struct OldReadsNew;

impl Visit for OldReadsNew {
    fn message<T: Message>(&mut self, name: &'static str, _frame: Frame, sample: T) {
        self.part(name, sample);
    }

    fn part<T: Message>(&mut self, name: &'static str, sample: T) {
        let unknown = [
            Value::Nil,
            Value::Float(0.5),
            Value::Text("x".into()),
            Value::Bytes(vec![1, 2]),
            Value::List(vec![Value::Map(vec![("a".into(), Value::Signed(-1))])]),
            Value::Map(vec![("b".into(), Value::List(vec![Value::Bool(true)]))]),
        ];
        for added in unknown {
            let mut newer = Value::of(&sample);
            newer.each_struct(&mut |fields| {
                fields.insert(fields.len() / 2, ("zz_middle".into(), added.clone()));
                fields.insert(0, ("zz_first".into(), added.clone()));
                fields.push(("zz_last".into(), added.clone()));
            });
            assert_eq!(decode::<T>(&encode(&newer)).unwrap(), sample, "{name} with {added:?}");
        }
    }
}

// Does an old version skip the fields that a newer one adds, at any place and depth?
#[test]
fn old_reads_new() {
    samples::each(&mut OldReadsNew);
}

struct NewReadsOld;

impl Visit for NewReadsOld {
    fn message<T: Message>(&mut self, name: &'static str, _frame: Frame, sample: T) {
        self.part(name, sample);
    }

    fn part<T: Message>(&mut self, name: &'static str, sample: T) {
        assert_eq!(decode::<T>(&[0x80]).unwrap(), T::default(), "{name} without any field");
        let (whole, default) = (Value::of(&sample), Value::of(&T::default()));
        let (Value::Map(fields), Value::Map(defaults)) = (&whole, &default) else { panic!("{name} is not a map") };
        for index in 0..fields.len() {
            let (mut older, mut filled) = (fields.clone(), fields.clone());
            older.remove(index);
            // A field that is not written when it is empty is not there at all.
            match defaults.iter().find(|(name, _)| *name == fields[index].0) {
                Some(default) => filled[index] = default.clone(),
                None => drop(filled.remove(index)),
            }
            let read: T = decode(&encode(&Value::Map(older))).unwrap();
            assert_eq!(Value::of(&read), Value::Map(filled), "{name} without {}", fields[index].0);
        }
        // Inside other structs too.
        let mut shortened = whole.clone();
        shortened.each_struct(&mut |fields| drop(fields.pop()));
        assert!(decode::<T>(&encode(&shortened)).is_ok(), "{name} with shorter structs inside");
    }
}

// Does a new version fill the fields that an old one does not send?
#[test]
fn new_reads_old() {
    samples::each(&mut NewReadsOld);
}

struct Cut;

impl Visit for Cut {
    fn message<T: Message>(&mut self, name: &'static str, frame: Frame, _sample: T) {
        for length in 0..frame.value.len() {
            assert!(decode::<T>(&frame.value[..length]).is_err(), "{name} cut to {length} bytes");
        }
        let longer = [&frame.value[..], &[0xC0]].concat();
        assert!(decode::<T>(&longer).is_err(), "{name} with a byte too many");
    }
}

// Is a value that was cut, or that goes on after its end, refused?
#[test]
fn cut_and_overlong_values_are_refused() {
    samples::each(&mut Cut);
}

struct Damage(Vec<u8>, Vec<(prop::sample::Index, u8)>);

impl Visit for Damage {
    fn message<T: Message>(&mut self, _name: &'static str, frame: Frame, _sample: T) {
        // Only a panic would fail here: what comes out of damaged bytes is the peer's business.
        let _ = decode::<T>(&self.0);
        let _ = serde_json::from_slice::<T>(&self.0);
        let mut bytes = frame.value;
        for (index, byte) in &self.1 {
            let at = index.index(bytes.len());
            bytes[at] = *byte;
        }
        let _ = decode::<T>(&bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    // Do random bytes, or messages with damaged bytes, ever panic?
    #[test]
    fn damage_never_panics(
        garbage in prop::collection::vec(any::<u8>(), 0..200),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        samples::each(&mut Damage(garbage, changes));
    }

    // Any bytes in a chunk come back, from MessagePack and as base64 from JSON.
    #[test]
    fn any_bytes_come_back(bytes in prop::collection::vec(any::<u8>(), 0..2_000)) {
        let chunk = OutputChunk { bytes, ..OutputChunk::default() };
        prop_assert_eq!(&decode::<OutputChunk>(&encode(&chunk)).unwrap(), &chunk);
        let text = serde_json::to_string(&chunk).unwrap();
        prop_assert_eq!(&serde_json::from_str::<OutputChunk>(&text).unwrap(), &chunk);
    }
}

// A list of `depth` lists inside each other, as the unknown field of a message.
fn nested(depth: usize) -> Vec<u8> {
    let mut bytes = vec![0x81, 0xA1, b'x'];
    bytes.resize(3 + depth, 0x91);
    bytes.push(0xC0);
    bytes
}

// Is a value that is too deep refused before the stack ends, also in a field that nobody knows?
#[test]
fn depth_is_limited() {
    assert!(decode::<Submit>(&nested(VALUE_DEPTH_MAX - 2)).is_ok());
    assert!(decode::<Submit>(&nested(VALUE_DEPTH_MAX)).is_err());
    assert!(decode::<Submit>(&nested(500_000)).is_err());
}

// A field that a newer version writes as a timestamp (an extension of MessagePack) is skipped like any other.
#[test]
fn extensions_are_skipped() {
    let mut bytes = vec![0x82, 0xA1, b'x', 0xD6, 0xFF, 1, 2, 3, 4];
    bytes.extend([0xA4]);
    bytes.extend(b"last");
    bytes.push(0xC3);
    assert!(decode::<JobEvent>(&bytes).unwrap().last);
}

// A length inside a value that no bytes stand behind is refused, and nothing is reserved for it.
#[test]
fn lying_lengths_are_refused() {
    for marker in [0xC6_u8, 0xDB, 0xDD, 0xDF] {
        let mut bytes = vec![0x81, 0xA5];
        bytes.extend(b"bytes");
        bytes.extend([marker, 0xFF, 0xFF, 0xFF, 0xFF, 0x00]);
        assert!(decode::<OutputChunk>(&bytes).is_err(), "{marker:#x}");
        assert!(decode::<Value>(&bytes).is_err(), "{marker:#x}");
    }
}

fn with_field<T: Message>(name: &str, value: &str) -> Result<T, impl Debug> {
    decode::<T>(&encode(&Value::Map(vec![(name.into(), Value::Text(value.into()))])))
}

// A word of a newer version becomes `Unknown` where the enum has one: the message is still read.
#[test]
fn unknown_words_are_read() {
    assert_eq!(with_field::<Hello>("kind", "robot").unwrap().kind, PeerKind::Unknown);
    assert_eq!(with_field::<JobSpec>("kind", "pipeline").unwrap().kind, JobKind::Unknown);
    assert_eq!(with_field::<JobSpec>("stdin", "socket").unwrap().stdin, StdinSpec::Unknown);
    assert_eq!(with_field::<TaskResult>("phase", "warm_up").unwrap().phase, Phase::Unknown);
    assert_eq!(with_field::<TaskResult>("verdict", "evicted").unwrap().verdict, Verdict::InternalError);
    assert_eq!(with_field::<Refusal>("code", "too_loud").unwrap().code, RefusalCode::Unknown);
    assert_eq!(with_field::<JobEvent>("state", "paused").unwrap().state, JobState::Unknown);
    assert_eq!(with_field::<TaskView>("state", "paused").unwrap().state, TaskState::Unknown);
    assert_eq!(with_field::<NodeView>("state", "asleep").unwrap().state, NodeState::Unknown);
}

// The closed sets of docs/protocol.md: a word outside them is refused, never read as something else.
#[test]
fn closed_sets_are_closed() {
    assert!(with_field::<OutputChunk>("stream", "stdlog").is_err());
    assert!(with_field::<essaim_proto::api::KeyCreate>("role", "owner").is_err());
}

// The words of the wire are those of the documentation, and each code has one.
#[test]
fn words_are_written_as_documented() {
    for code in RefusalCode::ALL {
        assert_eq!(Value::of(&Refusal::new(*code)).names(), ["code", "params"]);
        assert_eq!(with_field::<Refusal>("code", code.name()).unwrap().code, *code);
    }
    assert_eq!(with_field::<TaskResult>("verdict", "runtime_error").unwrap().verdict, Verdict::RuntimeError);
}

// In JSON bytes are base64 text and hashes hexadecimal text; in MessagePack both are bytes.
#[test]
fn bytes_are_text_in_json() {
    let file = FileSpec {
        inline: Some(serde_bytes::ByteBuf::from(vec![0x00, 0xFF, 0x0A])),
        hash: essaim_proto::BlobHash([0xAB; 32]),
        ..FileSpec::default()
    };
    let json = serde_json::to_value(&file).unwrap();
    assert_eq!(json["inline"], "AP8K");
    assert_eq!(json["hash"], "ab".repeat(32));
    let Value::Map(fields) = Value::of(&file) else { panic!("a map") };
    assert!(fields.contains(&("inline".into(), Value::Bytes(vec![0x00, 0xFF, 0x0A]))));
    assert!(fields.contains(&("hash".into(), Value::Bytes(vec![0xAB; 32]))));

    let joined = Joined { chain: vec![vec![1].into(), vec![].into()], name: String::new() };
    assert_eq!(serde_json::to_value(&joined).unwrap()["chain"], serde_json::json!(["AQ==", ""]));
    assert_eq!(serde_json::from_str::<FileSpec>("{\"inline\":null}").unwrap().inline, None);
    assert!(serde_json::from_str::<FileSpec>("{\"inline\":\"no base64\"}").is_err());
    assert!(serde_json::from_str::<OutputChunk>("{\"bytes\":[1,2]}").is_err());
}
