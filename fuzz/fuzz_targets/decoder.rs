//! What can a peer's bytes do to us? The first byte of the input says how the rest is cut; whatever comes out of the
//! decoder is read as the message that its function carries, and written again.
#![no_main]

use essaim_proto::{Decoder, Frame, FrameError, Function, Refusal, api, hello, link};
use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};

fuzz_target!(|input: &[u8]| {
    let Some((cut, bytes)) = input.split_first() else { return };
    let whole = frames(bytes, bytes.len().max(1));
    let pieces = frames(bytes, usize::from(*cut) + 1);
    assert_eq!(whole, pieces, "a cut changed the frames");
    whole.0.iter().for_each(read);
});

/// The frames in `bytes` when they come in pieces, and the error after them.
fn frames(bytes: &[u8], piece: usize) -> (Vec<Frame>, Option<FrameError>) {
    let mut decoder = Decoder::default();
    let mut frames = Vec::new();
    for piece in bytes.chunks(piece) {
        decoder.feed(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

fn read(frame: &Frame) {
    match frame.function {
        Function::HELLO => again::<hello::Hello>(frame),
        Function::WELCOME => again::<hello::Welcome>(frame),
        Function::JOIN => again::<hello::Join>(frame),
        Function::SUBMIT => again::<api::Submit>(frame),
        Function::WATCH => again::<api::Watch>(frame),
        Function::EVENT => again::<api::JobEvent>(frame),
        Function::OUTPUT => again::<api::OutputChunk>(frame),
        Function::STDIN => again::<api::StdinChunk>(frame),
        Function::JOB_LIST => again::<api::JobPage>(frame),
        Function::BLOBS_MISSING => again::<api::BlobsMissing>(frame),
        Function::BLOB_PUT => again::<api::BlobPut>(frame),
        Function::NODE_LIST => again::<api::NodePage>(frame),
        Function::LOCAL_SET => again::<api::LocalSet>(frame),
        Function::LEAVE => again::<link::Leave>(frame),
        Function::REGISTER => again::<link::Register>(frame),
        Function::START => again::<link::Start>(frame),
        Function::ENDED => again::<link::Ended>(frame),
        Function::REPORT => again::<link::Report>(frame),
        Function::ATTEMPT_OUTPUT => again::<link::AttemptOutput>(frame),
        _ => again::<Refusal>(frame),
    }
}

/// What was read can be written, and is the same when it is read again.
fn again<T: Serialize + DeserializeOwned>(frame: &Frame) {
    if let Ok(message) = frame.message::<T>() {
        let once = essaim_proto::encode(&message);
        let twice: T = essaim_proto::decode(&once).expect("what we write we can read");
        assert_eq!(essaim_proto::encode(&twice), once);
    }
}
