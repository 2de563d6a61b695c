//! Whatever a peer sends, and however the network cuts it: the same frames come out, or the same error for ever.

use essaim_proto::frame::{Decoder, Frame, FrameError, ValueType};
use essaim_proto::function::Function;
use essaim_proto::limits::{HEADER_BYTES, VALUE_BYTES_MAX};
use proptest::prelude::*;

fn a_frame() -> impl Strategy<Value = Frame> {
    let value = prop_oneof![
        1 => Just((ValueType::Empty, Vec::new())),
        3 => prop::collection::vec(any::<u8>(), 0..300).prop_map(|bytes| (ValueType::Value, bytes)),
        3 => prop::collection::vec(any::<u8>(), 0..3_000).prop_map(|bytes| (ValueType::Bytes, bytes)),
    ];
    (any::<u16>(), any::<u8>(), any::<u64>(), value).prop_map(|(function, flags, id, (value_type, value))| Frame {
        function: Function(function),
        value_type,
        flags,
        id,
        value,
    })
}

fn wire(frames: &[Frame]) -> Vec<u8> {
    let mut out = Vec::new();
    frames.iter().for_each(|frame| frame.write_to(&mut out));
    out
}

fn header(length: u32, value_type: u8) -> Vec<u8> {
    let mut out = length.to_le_bytes().to_vec();
    out.extend([3, 0, value_type, 0]);
    out.extend(7_u64.to_le_bytes());
    out
}

fn drain(decoder: &mut Decoder) -> Result<Vec<Frame>, FrameError> {
    let mut frames = Vec::new();
    while let Some(frame) = decoder.next_frame()? {
        frames.push(frame);
    }
    Ok(frames)
}

proptest! {
    // Do the cuts of a stream change its frames? Feed pieces of every size and compare.
    #[test]
    fn every_cut_gives_the_same_frames(
        frames in prop::collection::vec(a_frame(), 0..8),
        sizes in prop::collection::vec(1_usize..700, 1..40),
    ) {
        let bytes = wire(&frames);
        let mut decoder = Decoder::default();
        let mut seen = Vec::new();
        let (mut rest, mut sizes) = (&bytes[..], sizes.iter().cycle());
        while !rest.is_empty() {
            let (piece, after) = rest.split_at((*sizes.next().unwrap()).min(rest.len()));
            decoder.feed(piece);
            seen.extend(drain(&mut decoder).unwrap());
            rest = after;
        }
        prop_assert_eq!(seen, frames);
        prop_assert_eq!(decoder.pending_bytes(), 0);
    }

    // Is a length over the limit refused from the header alone, with nothing kept for it?
    #[test]
    fn every_bad_length_is_refused(over in 1_u32.., limit in 0_usize..=VALUE_BYTES_MAX, value_type in 0_u8..=255) {
        let announced = (limit as u32).saturating_add(over);
        let mut decoder = Decoder::with_limit(limit);
        decoder.feed(&header(announced, value_type));
        let error = FrameError::TooLong { announced, limit: limit as u32 };
        prop_assert_eq!(decoder.next_frame(), Err(error));
        prop_assert_eq!(decoder.pending_bytes(), 0);
        // A decoder that lost its step takes nothing more, not even good frames.
        decoder.feed(&wire(&[Frame::empty(Function::PING, 1)]));
        prop_assert_eq!(decoder.pending_bytes(), 0);
        prop_assert_eq!(decoder.next_frame(), Err(error));
    }

    // Is a type of another version refused, before its bytes are waited for?
    #[test]
    fn every_unknown_type_is_refused(value_type in 3_u8..=255, length in 0..=VALUE_BYTES_MAX as u32) {
        let mut decoder = Decoder::default();
        decoder.feed(&header(length, value_type));
        prop_assert_eq!(decoder.next_frame(), Err(FrameError::UnknownType(value_type)));
        prop_assert_eq!(decoder.next_frame(), Err(FrameError::UnknownType(value_type)));
    }

    // Does garbage ever do more than fail? Feed it in two pieces and look at the state after.
    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..600), cut in 0_usize..600) {
        let mut decoder = Decoder::default();
        let (first, second) = bytes.split_at(cut.min(bytes.len()));
        let mut failed = None;
        for piece in [first, second] {
            decoder.feed(piece);
            let now = drain(&mut decoder).err();
            prop_assert!(failed.is_none() || failed == now);
            failed = now;
        }
        prop_assert!(decoder.pending_bytes() <= bytes.len());
    }

    // Frames with damaged bits: an error, or frames; never a panic, never more bytes than came.
    #[test]
    fn damaged_frames_never_panic(
        frames in prop::collection::vec(a_frame(), 1..4),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0_u8..8), 1..6),
    ) {
        let mut bytes = wire(&frames);
        for (index, bit) in flips {
            let at = index.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        let mut decoder = Decoder::default();
        decoder.feed(&bytes);
        if let Ok(seen) = drain(&mut decoder) {
            let whole: usize = seen.iter().map(Frame::wire_bytes).sum();
            prop_assert_eq!(whole + decoder.pending_bytes(), bytes.len());
        }
    }
}

// An empty value with a length would lose the step of the stream: refused.
#[test]
fn empty_with_bytes_is_refused() {
    let mut decoder = Decoder::default();
    decoder.feed(&header(1, 0));
    assert_eq!(decoder.next_frame(), Err(FrameError::EmptyWithBytes(1)));
}

// The largest value passes, byte by byte at its end; one byte more does not.
#[test]
fn limit_is_exact() {
    let frame = Frame::bytes(Function::BLOB_BYTES, 1, vec![0xA5; VALUE_BYTES_MAX]);
    let bytes = wire(std::slice::from_ref(&frame));
    let mut decoder = Decoder::default();
    decoder.feed(&bytes[..bytes.len() - 1]);
    assert_eq!(decoder.next_frame(), Ok(None));
    assert_eq!(decoder.pending_bytes(), HEADER_BYTES + VALUE_BYTES_MAX - 1);
    decoder.feed(&bytes[bytes.len() - 1..]);
    assert_eq!(decoder.next_frame(), Ok(Some(frame)));
    assert_eq!(decoder.pending_bytes(), 0);
}

// A peer that has not shown who it is gets a small limit, which can be raised; nobody gets more than the largest.
#[test]
fn limit_can_be_raised() {
    let bytes = wire(&[Frame::bytes(Function::BLOB_BYTES, 1, vec![1; 100])]);
    let mut decoder = Decoder::with_limit(64);
    decoder.set_limit(usize::MAX);
    decoder.feed(&bytes);
    assert!(decoder.next_frame().unwrap().is_some());
    decoder.feed(&header(VALUE_BYTES_MAX as u32 + 1, 2));
    assert!(decoder.next_frame().is_err());
}
