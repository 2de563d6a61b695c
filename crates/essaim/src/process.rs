//! A process that is no child of ours: is it there, when does it end, and words to it.
//!
//! `supervise` watches local workers that outlived their `up`, and such a worker watches the `up` that took it over
//! (`cmd::worker`). Always true: it is held by a descriptor and not by its number, so a number that the system gives to
//! somebody else is never watched or signalled by mistake.
//! Deliberately not here: starting processes (`supervise`), and whose process it is (the caller knows from a lock or a
//! file).

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::sync::watch;

/// A process that was there a moment ago.
#[derive(Debug)]
pub(crate) struct Process {
    handle: Arc<OwnedFd>,
    ended: watch::Receiver<bool>,
}

impl Process {
    /// The process of this number; `None` when there is none, or no thread to watch it.
    pub(crate) fn of(pid: u32) -> Option<Process> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
        let handle = Arc::new(pidfd_open(pid, PidfdFlags::empty()).ok()?);
        let (tell, ended) = watch::channel(false);
        let theirs = Arc::clone(&handle);
        // The descriptor is readable from the end on. A thread that waits for it costs nothing and ends with us.
        let waiting = move || {
            while poll(&mut [PollFd::new(&*theirs, PollFlags::IN)], None) == Err(Errno::INTR) {}
            tell.send_replace(true);
        };
        std::thread::Builder::new().name("process-end".into()).spawn(waiting).ok()?;
        Some(Process { handle, ended })
    }

    /// Returns when it has ended, at once if it has.
    pub(crate) async fn ended(&self) {
        // The thread ends with its word; it cannot end without one.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }

    /// Sends it a signal; one that has ended hears nothing.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&*self.handle, signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    // Is its end noticed, by whatever it comes, and is somebody who is not there not found?
    #[tokio::test]
    async fn the_end_of_a_process_is_seen() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let process = Process::of(child.id()).unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(20), process.ended()).await.is_err());
        process.signal(Signal::TERM);
        process.ended().await;
        assert_eq!(child.wait().unwrap().signal(), Some(Signal::TERM.as_raw()));
        process.signal(Signal::KILL);
        assert!(Process::of(0).is_none() && Process::of(u32::MAX).is_none());
    }
}
