//! Inits that wait for a program.
//!
//! Held by `cage`, which takes one per start and gives it back when its program is over. What is always true: an init in
//! here has no program and no child, so dropping it is its end; the one that worked last works next, so those at the
//! bottom were not needed for a while and go after `INIT_IDLE`: what stays is as many as ran at once lately.
//!
//! Deliberately not here: making inits (`init`) and the ones that have a program (`program`).

use rustix::process::Pid;

use crate::clock::Moment;
use crate::init::Handle;
use crate::limits::{INIT_IDLE, INITS_KEPT};
use crate::proc::RawPid;

/// The waiting inits.
#[derive(Default)]
pub(crate) struct Pool {
    /// Since when each waits; those that came last are at the end.
    waiting: Vec<(Moment, Handle)>,
}

impl Pool {
    /// The init that worked last.
    pub(crate) fn take(&mut self) -> Option<Handle> {
        self.waiting.pop().map(|(_, init)| init)
    }

    /// Takes back an init whose program is over.
    pub(crate) fn give(&mut self, init: Handle, now: Moment) {
        self.waiting.push((now, init));
    }

    /// Notes that a process is gone.
    pub(crate) fn forget(&mut self, pid: RawPid) {
        self.waiting.retain(|(_, init)| Some(init.pid) != Pid::from_raw(pid));
    }

    /// When the next init has waited long enough.
    pub(crate) fn next_expiry(&self) -> Option<Moment> {
        self.waiting.first().filter(|_| self.waiting.len() > INITS_KEPT).map(|(since, _)| since.plus(INIT_IDLE))
    }

    /// Lets go those that have waited long enough.
    pub(crate) fn expire(&mut self, now: Moment) {
        while self.next_expiry().is_some_and(|expiry| expiry <= now) {
            self.waiting.remove(0);
        }
    }

    /// The processes in here.
    pub(crate) fn pids(&self) -> impl Iterator<Item = Pid> {
        self.waiting.iter().map(|(_, init)| init.pid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn init(number: i32) -> Handle {
        let socket = std::fs::File::open("/dev/null").unwrap().into();
        Handle { pid: Pid::from_raw(number).unwrap(), socket }
    }

    fn at(ms: u64) -> Moment {
        Moment::from_nanos(ms * 1_000_000)
    }

    /// Does the last one work next, and do those go that were not needed for a while, but never all?
    #[test]
    fn as_many_as_ran_lately() {
        let mut pool = Pool::default();
        assert!(pool.take().is_none() && pool.next_expiry().is_none());
        for number in 1..=5 {
            pool.give(init(number), at(0));
        }
        let last = pool.take().unwrap();
        assert_eq!(last.pid.as_raw_pid(), 5);
        pool.give(last, at(1000));
        let expiry = pool.next_expiry().unwrap();
        assert_eq!(expiry, at(0).plus(INIT_IDLE));
        pool.expire(at(0));
        assert_eq!(pool.pids().count(), 5);
        pool.expire(expiry);
        assert_eq!(pool.pids().count(), INITS_KEPT.max(1));
        pool.expire(expiry.plus(Duration::from_secs(1_000_000)));
        assert_eq!(pool.pids().count(), INITS_KEPT);
        assert_eq!(pool.next_expiry(), None);
        pool.forget(5);
        assert!(pool.pids().all(|pid| pid.as_raw_pid() != 5));
    }
}
