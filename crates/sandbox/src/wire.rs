//! Packets with file descriptors over the sockets between worker and cage, and between cage and inits.
//!
//! Used by `client`, `cage` and `init`. What is always true: a packet is whole or refused; received descriptors are
//! close-on-exec from the first moment; a closed other side never raises SIGPIPE. Deliberately not here: what the
//! packets mean (`protocol`).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sockopt,
};

use crate::limits::SEND_BUFFER_BYTES;

/// stdin, stdout, stderr.
const FDS_MAX: usize = 3;

/// Makes the two ends of the socket: the worker's, then the cage's. Both are close-on-exec; whoever starts the cage's
/// process puts the second in place (as its stdin, for instance), which clears that.
///
/// # Errors
/// No descriptors left.
pub fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (worker, cage) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    for end in [&worker, &cage] {
        sockopt::set_socket_send_buffer_size(end, SEND_BUFFER_BYTES)?;
    }
    Ok((worker, cage))
}

/// Sends one packet, the parts one behind the other.
///
/// # Errors
/// AGAIN: no room now (with `DONTWAIT`) or not in time. PIPE, CONNRESET: the other side is gone.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    parts: &[&[u8]],
    fds: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::INVAL);
    }
    let [first, second] = [0, 1].map(|place| IoSlice::new(parts.get(place).copied().unwrap_or_default()));
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(socket, &[first, second], &mut control, flags | SendFlags::NOSIGNAL)
    })?;
    Ok(())
}

/// What came out of the socket.
pub(crate) enum Packet {
    /// This many bytes, and the descriptors that came along.
    Whole(usize, Vec<OwnedFd>),
    /// It did not fit the buffer.
    TooLarge,
    /// The other side is gone, and everything it had sent before was received.
    End,
}

/// Receives one packet into `buffer`.
///
/// # Errors
/// AGAIN: nothing there (with `DONTWAIT`).
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8], flags: RecvFlags) -> Result<Packet, Errno> {
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(buffer)];
        let got = match rustix::net::recvmsg(socket, &mut slices, &mut control, flags | RecvFlags::CMSG_CLOEXEC) {
            // The other side closed without reading all that we had sent. The kernel says so once, before it hands out
            // what is still queued for us, and that must not be lost: it may be a folder to remove.
            Err(Errno::INTR | Errno::CONNRESET) => continue,
            got => got?,
        };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
        if got.flags.contains(ReturnFlags::TRUNC) {
            return Ok(Packet::TooLarge);
        }
        if got.bytes == 0 {
            return Ok(Packet::End);
        }
        return Ok(Packet::Whole(got.bytes, fds));
    }
}
