//! Connections over a pipe in memory: order, limits, silence. Time is the test's own and jumps when nothing is to do.

use essaim_net::limits::{BULK_QUEUE_BYTES, CONTROL_QUEUE_BYTES, UNTRUSTED_VALUE_BYTES, WRITE_STALL};
use essaim_net::{Connection, ReadError, SendError};
use essaim_proto::frame::ValueType;
use essaim_proto::limits::{CHUNK_BYTES, VALUE_BYTES_MAX};
use essaim_proto::{Decoder, Frame, FrameError, Function};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::{Instant, timeout};

const SECOND: Duration = Duration::from_secs(1);

/// Two connections that are each other's peer, both trusting.
fn pair(pipe_bytes: usize) -> (Connection, Connection) {
    let (near, far) = duplex(pipe_bytes);
    let (mut near, mut far) = (Connection::over(near), Connection::over(far));
    near.reader.trust();
    far.reader.trust();
    (near, far)
}

/// One connection whose peer is the test, byte by byte.
fn half(pipe_bytes: usize) -> (Connection, DuplexStream) {
    let (near, far) = duplex(pipe_bytes);
    (Connection::over(near), far)
}

fn bulk(id: u64, bytes: usize) -> Frame {
    Frame::bytes(Function::OUTPUT, id, vec![b'x'; bytes])
}

fn bytes_of(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.write_to(&mut bytes);
    bytes
}

// Frames must arrive as they were sent, in the order of their queue, and a close must come after all of them.
#[tokio::test(start_paused = true)]
async fn frames_arrive_in_order_and_then_the_goodbye() {
    let (near, mut far) = pair(1 << 16);
    for id in 0..500 {
        near.sender.bulk(bulk(id, 100)).await.unwrap();
    }
    near.sender.close("done");
    assert_eq!(near.sender.bulk(bulk(0, 1)).await, Err(SendError::Closed));
    assert_eq!(near.sender.control(bulk(0, 1)), Err(SendError::Closed));
    for id in 0..500 {
        assert_eq!(far.reader.next().await.unwrap().unwrap(), bulk(id, 100));
    }
    assert!(far.reader.next().await.unwrap().is_none());
    assert_eq!(far.reader.goodbye(), Some("done"));
    assert!(far.reader.next().await.unwrap().is_none(), "and it stays so");
    let ended = near.sender.clone();
    drop((near, far));
    ended.closed().await;
}

// With a full pipe and bulk waiting, a control frame must be the next after what is being written.
#[tokio::test(start_paused = true)]
async fn control_overtakes_bulk_when_the_peer_is_slow() {
    let (near, mut far) = pair(64);
    for id in 1..=5 {
        near.sender.bulk(bulk(id, CHUNK_BYTES)).await.unwrap();
    }
    while near.sender.queued().bulk_bytes > 4 * (CHUNK_BYTES + 16) {
        tokio::task::yield_now().await;
    }
    near.sender.control(Frame::empty(Function::JOB_CANCEL, 100)).unwrap();
    near.sender.control(Frame::empty(Function::JOB_CANCEL, 101)).unwrap();
    let mut order = Vec::new();
    for _ in 0..7 {
        order.push(far.reader.next().await.unwrap().unwrap().id);
    }
    assert_eq!(order, [1, 100, 101, 2, 3, 4, 5]);
}

// A sender to a peer that does not read must wait, with a bounded queue, and go on when the peer reads.
#[tokio::test(start_paused = true)]
async fn bulk_waits_for_room() {
    let (near, mut far) = pair(64);
    let sender = near.sender.clone();
    let mut sending = tokio::spawn(async move {
        for id in 0..100 {
            sender.bulk(bulk(id, CHUNK_BYTES)).await.unwrap();
            assert!(sender.queued().bulk_bytes <= BULK_QUEUE_BYTES, "{:?}", sender.queued());
        }
    });
    // Time jumps only when every task waits: after this second nothing more can be queued.
    assert!(timeout(SECOND, &mut sending).await.is_err());
    assert!(near.sender.queued().bulk_bytes > BULK_QUEUE_BYTES - 2 * CHUNK_BYTES);
    for id in 0..100 {
        assert_eq!(far.reader.next().await.unwrap().unwrap().id, id);
    }
    sending.await.unwrap();
}

// The largest frame exceeds the whole bulk queue and must pass all the same; a larger one is our own mistake.
#[tokio::test(start_paused = true)]
async fn the_largest_frame_passes() {
    let (near, mut far) = pair(1 << 16);
    let received = tokio::spawn(async move { far.reader.next().await.unwrap().unwrap().value.len() });
    near.sender.bulk(bulk(1, VALUE_BYTES_MAX)).await.unwrap();
    assert_eq!(received.await.unwrap(), VALUE_BYTES_MAX);
    let too_large = bulk(1, VALUE_BYTES_MAX + 1);
    assert_eq!(near.sender.control(too_large), Err(SendError::TooLarge(VALUE_BYTES_MAX + 1)));
}

// Control never waits: a peer that lets it pile up loses its connection, and everybody who waits is told.
#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_read_is_closed() {
    let (mut near, _far) = half(64);
    let sender = near.sender.clone();
    let waiting = tokio::spawn(async move { while sender.bulk(bulk(1, CHUNK_BYTES)).await.is_ok() {} });
    let error = loop {
        let before = near.sender.queued().control_bytes;
        assert!(before <= CONTROL_QUEUE_BYTES);
        if let Err(error) = near.sender.control(bulk(2, 1000)) {
            break error;
        }
    };
    assert_eq!(error, SendError::Overflow);
    assert!(matches!(near.reader.next().await, Err(ReadError::Overflow(_))));
    waiting.await.unwrap();
    near.sender.closed().await;
    assert_eq!(near.sender.queued(), Default::default());
}

// Those who may wait must leave room for those who may not.
#[tokio::test(start_paused = true)]
async fn waiting_control_leaves_room_for_answers() {
    let (near, mut far) = pair(64);
    let sender = near.sender.clone();
    let mut asking = tokio::spawn(async move {
        for id in 0..10_000 {
            sender.control_when_room(bulk(id, 1000)).await.unwrap();
        }
    });
    assert!(timeout(SECOND, &mut asking).await.is_err());
    let free = CONTROL_QUEUE_BYTES - near.sender.queued().control_bytes;
    assert!(free >= CONTROL_QUEUE_BYTES / 2, "{free}");
    near.sender.control(Frame::empty(Function::EVENT, 0)).unwrap();
    for _ in 0..10_001 {
        far.reader.next().await.unwrap().unwrap();
    }
    asking.await.unwrap();
}

// A peer that says nothing must be noticed although the session's loop does other things all the time.
#[tokio::test(start_paused = true)]
async fn silence_is_noticed() {
    let (mut near, _far) = half(1 << 16);
    near.reader.keepalive(5 * SECOND, 15 * SECOND);
    let begin = Instant::now();
    let error = loop {
        // Each turn drops the read and begins another one.
        if let Ok(end) = timeout(SECOND / 10, near.reader.next()).await {
            break end.unwrap_err();
        }
    };
    assert!(matches!(error, ReadError::Silent(_)), "{error:?}");
    assert!(begin.elapsed() >= 15 * SECOND && begin.elapsed() < 16 * SECOND, "{:?}", begin.elapsed());
}

// A session that was busy itself must not blame the peer for it.
#[tokio::test(start_paused = true)]
async fn bytes_that_nobody_looked_at_are_no_silence() {
    let (mut near, far) = pair(1 << 16);
    near.reader.keepalive(5 * SECOND, 15 * SECOND);
    far.sender.control(Frame::empty(Function::EVENT, 1)).unwrap();
    tokio::time::advance(60 * SECOND).await;
    assert_eq!(near.reader.next().await.unwrap().unwrap().id, 1);
}

// Two idle ends with heartbeats must stay together for hours, and know their round trip.
#[tokio::test(start_paused = true)]
async fn heartbeats_keep_an_idle_connection() {
    let (mut near, mut far) = pair(1 << 16);
    near.reader.keepalive(5 * SECOND, 15 * SECOND);
    far.reader.keepalive(5 * SECOND, 15 * SECOND);
    let both = async {
        tokio::select! { end = near.reader.next() => end, end = far.reader.next() => end }
    };
    assert!(timeout(3_600 * SECOND, both).await.is_err());
    assert!(near.sender.rtt_us().is_some() && far.sender.rtt_us().is_some());
}

// A PING must come back as PONG with its id, before any bulk, without the session doing anything.
#[tokio::test(start_paused = true)]
async fn a_ping_is_answered() {
    let (mut near, mut far) = half(1 << 16);
    far.write_all(&bytes_of(&Frame::empty(Function::PING, 77))).await.unwrap();
    let mut answer = [0; 16];
    tokio::select! {
        read = far.read_exact(&mut answer) => { read.unwrap(); }
        frame = near.reader.next() => panic!("{frame:?}"),
    }
    assert_eq!(answer.to_vec(), bytes_of(&Frame::empty(Function::PONG, 77)));
}

// A write into a peer that takes nothing must end, and say why.
#[tokio::test(start_paused = true)]
async fn a_stalled_write_ends_the_connection() {
    let (mut near, _far) = half(64);
    let begin = Instant::now();
    near.sender.bulk(bulk(1, 1000)).await.unwrap();
    assert!(matches!(near.reader.next().await, Err(ReadError::Stalled(WRITE_STALL))));
    assert!(begin.elapsed() >= WRITE_STALL);
}

// Closing towards a peer that takes nothing must be over in bounded time.
#[tokio::test(start_paused = true)]
async fn closing_takes_bounded_time() {
    let (near, _far) = half(64);
    near.sender.bulk(bulk(1, 1000)).await.unwrap();
    near.sender.close("shutdown");
    let begin = Instant::now();
    near.sender.closed().await;
    assert!(begin.elapsed() <= essaim_net::limits::CLOSE_TIME + SECOND);
}

// Announced lengths must be refused from the header alone: 4 GiB always, more than a hello before trust.
#[tokio::test(start_paused = true)]
async fn announced_lengths_are_refused() {
    let (mut near, mut far) = half(1 << 16);
    far.write_all(&[0xff; 16]).await.unwrap();
    let error = near.reader.next().await.unwrap_err();
    assert!(matches!(error, ReadError::Frame(FrameError::TooLong { announced: u32::MAX, .. })), "{error:?}");

    let large = bytes_of(&bulk(1, UNTRUSTED_VALUE_BYTES + 1));
    let (mut near, mut far) = half(1 << 16);
    far.write_all(&large).await.unwrap();
    assert!(matches!(near.reader.next().await, Err(ReadError::Frame(FrameError::TooLong { .. }))));
    let (mut near, mut far) = half(1 << 16);
    near.reader.trust();
    far.write_all(&large).await.unwrap();
    assert_eq!(near.reader.next().await.unwrap().unwrap().value_type, ValueType::Bytes);
}

// After a frame that is none the peer must hear a goodbye that says so.
#[tokio::test(start_paused = true)]
async fn garbage_is_answered_with_a_goodbye() {
    let (mut near, mut far) = half(1 << 16);
    far.write_all(b"GET / HTTP/1.1\r\nHost: hub\r\n\r\n").await.unwrap();
    assert!(matches!(near.reader.next().await, Err(ReadError::Frame(_))));
    drop(near);
    let mut bytes = Vec::new();
    far.read_to_end(&mut bytes).await.unwrap();
    let mut decoder = Decoder::default();
    decoder.feed(&bytes);
    let goodbye = decoder.next_frame().unwrap().unwrap();
    assert_eq!(goodbye.message::<essaim_proto::hello::Goodbye>().unwrap().reason, "protocol");
}

// A stream that ends inside a frame is not a clean end; one that ends between frames is.
#[tokio::test(start_paused = true)]
async fn a_cut_frame_is_told_from_an_end() {
    let bytes = bytes_of(&bulk(1, 10));
    let (mut near, mut far) = half(1 << 16);
    far.write_all(&bytes[..20]).await.unwrap();
    drop(far);
    assert!(matches!(near.reader.next().await, Err(ReadError::CutOff)));
    let (mut near, mut far) = half(1 << 16);
    far.write_all(&bytes).await.unwrap();
    drop(far);
    assert!(near.reader.next().await.unwrap().is_some());
    assert!(near.reader.next().await.unwrap().is_none());
}

// A read that is dropped at any moment must lose nothing: bytes come one by one, each wait is given up.
#[tokio::test(start_paused = true)]
async fn reading_may_be_cancelled() {
    let (mut near, mut far) = half(1 << 16);
    let mut received = Vec::new();
    for byte in (0..20).flat_map(|id| bytes_of(&bulk(id, 5))) {
        far.write_all(&[byte]).await.unwrap();
        if let Ok(frame) = timeout(SECOND / 1000, near.reader.next()).await {
            received.push(frame.unwrap().unwrap().id);
        }
    }
    assert_eq!(received, (0..20).collect::<Vec<_>>());
}

// Dropping the reader alone must end the connection, and the task behind it.
#[tokio::test(start_paused = true)]
async fn a_dropped_reader_ends_the_connection() {
    let (near, mut far) = pair(1 << 16);
    let Connection { reader, sender, .. } = near;
    drop(reader);
    assert!(sender.is_closed());
    assert!(far.reader.next().await.unwrap().is_none());
    drop(far);
    sender.closed().await;
}

// A sender that somebody keeps must not keep the socket open, neither after a failure nor after a close.
#[tokio::test(start_paused = true)]
async fn a_kept_sender_does_not_keep_the_socket() {
    let (mut near, mut far) = half(64);
    near.sender.bulk(bulk(1, 1000)).await.unwrap();
    assert!(matches!(near.reader.next().await, Err(ReadError::Stalled(_))));
    near.sender.closed().await;
    let Connection { reader, sender: kept, .. } = near;
    drop(reader);
    assert!(timeout(SECOND, far.read_to_end(&mut Vec::new())).await.is_ok());
    assert!(far.write_all(b"x").await.is_err(), "nobody is there any more");
    drop(kept);

    let (near, mut far) = half(1 << 16);
    let Connection { reader, sender: kept, .. } = near;
    drop(reader);
    far.shutdown().await.unwrap();
    kept.closed().await;
    assert!(timeout(SECOND, far.read_to_end(&mut Vec::new())).await.is_ok());
}

// The welcome must be the first frame of the hub although the keepalive begins with a ping.
#[tokio::test(start_paused = true)]
async fn the_first_ping_follows_what_was_queued() {
    let (mut near, mut far) = half(1 << 16);
    near.sender.control(Frame::empty(Function::WELCOME, 0)).unwrap();
    near.reader.keepalive(SECOND, 15 * SECOND);
    let mut bytes = [0; 32];
    far.read_exact(&mut bytes).await.unwrap();
    assert_eq!(bytes[..16], bytes_of(&Frame::empty(Function::WELCOME, 0)));
    assert_eq!(bytes[16..], bytes_of(&Frame::empty(Function::PING, 1)));
}
