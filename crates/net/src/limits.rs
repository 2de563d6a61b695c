//! The limits of this crate, each with its reason.
//!
//! Every module of the crate reads them here; relations between them are checked when the crate is compiled.
//! Deliberately not here: limits of the wire (`essaim_proto::limits`).

use essaim_proto::limits::{BLOB_WINDOW_BYTES, CHUNK_BYTES, HEADER_BYTES, VALUE_BYTES_MAX};
use std::time::Duration;

/// Largest value before a peer has shown who it is, in bytes: a hello with a key, or a join with its certificate
/// request, is below 2 KiB; a stranger gets no more of our memory than this.
pub const UNTRUSTED_VALUE_BYTES: usize = 16 << 10;

/// Bytes of one read. One TLS record holds 16 KiB, so a larger buffer would mostly be empty memory.
pub const READ_BYTES: usize = 16 << 10;

/// Bytes that the writer gathers for one write: a chunk of bulk and its envelope. More would let bulk stand in front of
/// control; less would cost a system call per small frame (16 M frames/s against 0.2 M/s, NET.md section 1).
pub const WRITE_BYTES: usize = CHUNK_BYTES + 4_096;

/// Bytes of write buffer that an idle connection keeps, so that a thousand idle peers cost 8 MB and not 68.
pub const WRITE_IDLE_BYTES: usize = 8 << 10;

/// What any frame in a queue counts at least, in bytes: its own memory. It bounds the number of frames too.
pub const FRAME_COST_MIN: usize = 256;

/// Control frames that wait for one peer, in bytes. 4 MiB: four of the largest answers, or 16,384 small frames. A peer
/// that lets more pile up does not read, and its connection is closed.
pub const CONTROL_QUEUE_BYTES: usize = 4 << 20;

/// The part of the control queue that senders who wait for room may fill. The rest stays free for those who cannot wait
/// (answers, pongs).
pub const CONTROL_WAITING_BYTES: usize = CONTROL_QUEUE_BYTES / 2;

/// Bulk frames that wait for one peer, in bytes. Enough to keep the writer busy while the sender reads the next chunk
/// from a disk; what waits here is memory per connection.
pub const BULK_QUEUE_BYTES: usize = 512 << 10;

/// No progress of a write for so long closes the connection: TCP's own patience is 15 minutes.
pub const WRITE_STALL: Duration = Duration::from_secs(30);

/// A closing connection gets so long to send what is queued, its goodbye, and to see the peer's end.
pub const CLOSE_TIME: Duration = Duration::from_secs(5);

/// Silence is believed only when a read has been waiting for so long: bytes may have come while nobody looked.
pub const SILENCE_GRACE: Duration = Duration::from_secs(1);

/// Bytes in the kernel that are not yet sent, before the socket counts as full: control overtakes all but these.
pub const NOTSENT_LOWAT_BYTES: u32 = 128 << 10;

/// Sent data without acknowledgement for so long breaks the connection: a pulled cable is noticed while writing.
pub const TCP_USER_TIMEOUT: Duration = Duration::from_secs(20);

/// Connections that the kernel holds before we accept them: a thousand workers return at once after a hub's restart.
pub const LISTEN_BACKLOG: i32 = 1_024;

/// A TLS handshake takes a millisecond of computing and a few round trips; who needs longer does not speak TLS.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(5);

/// Handshakes at the same time at one door, about 40 KB each. When all are taken the oldest makes room.
pub const HANDSHAKES_MAX: usize = 1_024;

/// An unfinished handshake younger than this is not pushed out by a newer one: it may be honest and far away.
pub const HANDSHAKE_AGE_MIN: Duration = Duration::from_millis(500);

/// Handshakes at the same time from one address other than our own machine: a class behind one router still gets in, one
/// silent machine cannot take all places.
pub const HANDSHAKES_PER_ADDRESS_MAX: usize = 64;

/// Connections at one door. 1,000 nodes are promised; a file descriptor and about 50 KB each.
pub const CONNECTIONS_MAX: usize = 4_096;

/// Pause after the system has no file descriptor left. Those who wait stay in the kernel's queue meanwhile.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The first frame must come within this time after the handshake, and the answer to it too.
pub const HELLO_TIME: Duration = Duration::from_secs(10);

/// One address gets so long for TCP and TLS, unless the caller says otherwise.
pub const DIAL_TIME: Duration = Duration::from_secs(5);

/// First pause of a reconnect: a restarted hub is back in less than a second.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(100);

/// Longest pause of a reconnect: a hub that returns after a night is noticed within this time.
pub const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// One post of a notice, from the look-up of the name to the answer: who listens for notices answers at once, and each
/// holds a thread meanwhile.
pub const POST_TIMEOUT: Duration = Duration::from_secs(10);
/// The first pause before a request is asked again that the hub refused because its key asks too often: several programs
/// with one key ask again at different times and all get through in the end.
pub const RATE_PAUSE_FIRST: Duration = Duration::from_millis(250);
/// The longest one: the slowest rate is one request in a second.
pub const RATE_PAUSE_MAX: Duration = Duration::from_secs(10);

/// Tries of a client before it gives up.
pub const CLIENT_TRIES: u32 = 5;

/// Bytes that wait in a client for one subscription's reader. Output is held back by its own window; this is for events,
/// some 100,000 of them. A reader that falls further behind loses the subscription, not the connection.
pub const SUBSCRIPTION_BYTES: usize = 32 << 20;

/// Requests and subscriptions that one client has open.
pub const ROUTES_MAX: usize = 65_536;

/// A credit is sent when so many bytes were dealt with: a quarter of the window keeps the sender going with 4 frames.
pub const CREDIT_STEP_BYTES: u64 = BLOB_WINDOW_BYTES / 4;

/// Length of a join line or key, in bytes: a secret and some hundred addresses. Longer text is something else.
pub const TICKET_BYTES_MAX: usize = 4_096;

/// Addresses in one join line.
pub const TICKET_ADDRESSES_MAX: usize = 64;

/// Random bytes of a secret: 128 bits cannot be guessed.
pub const SECRET_BYTES: usize = 16;

/// Length of one of our own small files (identity, hub file, certificates), in bytes: larger is not ours.
pub const PRIVATE_FILE_BYTES_MAX: u64 = 256 << 10;

/// Life of a worker's certificate. NET.md plans 90 days with renewal over the live connection; as long as there is no
/// renewal a certificate must outlive the machine, and revocation by serial is what ends it.
pub const WORKER_CERTIFICATE_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3_600);

const _: () = assert!(CHUNK_BYTES + HEADER_BYTES <= WRITE_BYTES, "one chunk fits one write");
const _: () = assert!(VALUE_BYTES_MAX + HEADER_BYTES <= CONTROL_WAITING_BYTES, "the largest frame finds room");
const _: () = assert!(BULK_QUEUE_BYTES >= 4 * CHUNK_BYTES, "the writer always has a next chunk");
const _: () = assert!(CREDIT_STEP_BYTES + CHUNK_BYTES as u64 <= BLOB_WINDOW_BYTES, "a credit comes before the end");
const _: () = assert!(SUBSCRIPTION_BYTES as u64 > 4 * BLOB_WINDOW_BYTES, "a window always fits its queue");
