//! An init that has programs: those it was given, in their order.
//!
//! Held by `cage`, which gives it blocks and hears its reports. An init starts what it was given one after the other and
//! reports each before the next begins. What is always true: the first in here runs, or will be the next to, or is over
//! and its report is on the way; those behind it have not begun as far as anybody was told, and an order to give back
//! brings those that have not.
//!
//! ```text
//!            give                 report of the end: the first leaves
//!   Pool ──────────► [first, …] ───────────────────────────────────────► empty ──► Pool
//!                        │ │ Started: it runs for longer, the others come back; from then on nothing is given
//!                        │ └ recall ──► Returned: the others come back
//!                        └ alone and unwanted: order to end
//! ```
//!
//! Deliberately not here: the programs (`program`), signals and sockets (`cage`), inits without a program (`pool`).

use std::collections::VecDeque;

use crate::init::Handle;
use crate::limits::GIVEN_MAX;
use crate::protocol::ProgramId;

/// An init with programs.
pub(crate) struct Post {
    pub(crate) init: Handle,
    /// Its programs may wait: they count together, and may stand in a queue.
    pub(crate) is_shared: bool,
    given: VecDeque<ProgramId>,
    /// It was told to give back what waits, and has not answered.
    is_recalled: bool,
    /// It was told to end its program.
    is_stopped: bool,
    /// Its program is known to run for longer.
    is_long: bool,
    /// We kill it. Programs that it reports all the same wait for its death.
    is_condemned: bool,
    told: Vec<ProgramId>,
}

/// What an init is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// End the program.
    Stop,
    /// Give back what waits.
    Return,
}

impl Post {
    /// An init that was just given its first program.
    pub(crate) fn new(init: Handle, is_shared: bool, first: ProgramId) -> Post {
        let given = VecDeque::from([first]);
        let (is_recalled, is_stopped, is_long, is_condemned) = (false, false, false, false);
        Post { init, is_shared, given, is_recalled, is_stopped, is_long, is_condemned, told: Vec::new() }
    }

    /// How many it has, if it may get another one behind them.
    pub(crate) fn room_behind(&self) -> Option<usize> {
        let is_open = self.is_shared && !self.is_recalled && !self.is_stopped && !self.is_long && !self.is_condemned;
        (is_open && self.given.len() < GIVEN_MAX).then_some(self.given.len())
    }

    /// Notes that it was given another one.
    pub(crate) fn give(&mut self, id: ProgramId) {
        self.given.push_back(id);
    }

    /// The one that runs, or is next to.
    pub(crate) fn first(&self) -> Option<ProgramId> {
        self.given.front().copied()
    }

    /// All that it has.
    pub(crate) fn given(&self) -> impl DoubleEndedIterator<Item = ProgramId> {
        self.given.iter().copied()
    }

    /// Is its next report worth a wake-up? Otherwise it has more to do, and what it says may wait a little.
    pub(crate) fn is_awaited(&self) -> bool {
        self.given.len() <= 1 || self.is_recalled
    }

    /// Was it told to end the program that it has?
    pub(crate) fn is_stopped(&self) -> bool {
        self.is_stopped
    }

    /// Does its program run for longer?
    pub(crate) fn is_long(&self) -> bool {
        self.is_long
    }

    /// The first has begun and runs for longer; so many behind it were dropped and are given here.
    pub(crate) fn started(&mut self, returned: u32) -> Vec<ProgramId> {
        self.is_long = true;
        self.take(1, returned)
    }

    /// It was told to give back, or thought so; so many are given here.
    pub(crate) fn returned(&mut self, count: u32, is_running: bool) -> Vec<ProgramId> {
        self.is_recalled = false;
        self.take(usize::from(is_running), count)
    }

    fn take(&mut self, from: usize, count: u32) -> Vec<ProgramId> {
        let from = from.min(self.given.len());
        let until = from.saturating_add(count as usize).min(self.given.len());
        self.given.drain(from..until).collect()
    }

    /// It is killed: it gets nothing more, and is done when it is reaped.
    pub(crate) fn condemn(&mut self) {
        self.is_condemned = true;
    }

    /// Is it being killed?
    pub(crate) fn is_condemned(&self) -> bool {
        self.is_condemned
    }

    /// The first is over, but its last word waits for the death of this init.
    pub(crate) fn ended_condemned(&mut self) {
        self.told.extend(self.first());
        self.ended();
    }

    /// Those that wait for its death.
    pub(crate) fn told(&self) -> impl Iterator<Item = ProgramId> {
        self.told.iter().copied()
    }

    /// The first is over.
    pub(crate) fn ended(&mut self) {
        self.given.pop_front();
        (self.is_stopped, self.is_long) = (false, false);
    }

    /// What it must be told now, once, if these are unwanted.
    pub(crate) fn word(&mut self, is_unwanted: impl Fn(ProgramId) -> bool) -> Option<Word> {
        match self.given.len() {
            0 => None,
            // It cannot be another one that the order hits: nothing is given to it until this one is over.
            1 => {
                let must = !self.is_stopped && is_unwanted(self.given[0]);
                self.is_stopped |= must;
                must.then_some(Word::Stop)
            }
            _ => {
                let must = !self.is_recalled && (self.is_long || self.given().any(is_unwanted));
                self.is_recalled |= must;
                must.then_some(Word::Return)
            }
        }
    }

    /// With no program left: may it get others? Not if an order is on its way that would be taken for one about them.
    pub(crate) fn is_reusable(&self) -> bool {
        !self.is_recalled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::Pid;

    fn post() -> Post {
        let socket = std::fs::File::open("/dev/null").unwrap().into();
        Post::new(Handle { pid: Pid::from_raw(1_000_000).unwrap(), socket }, true, 1)
    }

    fn given(post: &Post) -> Vec<ProgramId> {
        post.given().collect()
    }

    /// Does it take a bounded number, in their order, and let them go one by one?
    #[test]
    fn in_order_and_bounded() {
        let mut post = post();
        let mut next = 2;
        while let Some(count) = post.room_behind() {
            assert_eq!(count + 1, usize::try_from(next).unwrap());
            post.give(next);
            next += 1;
        }
        assert_eq!(given(&post).len(), GIVEN_MAX);
        assert!(!post.is_awaited());
        for first in 1..next {
            assert_eq!(post.first(), Some(first));
            post.ended();
        }
        assert!(post.first().is_none() && post.is_awaited() && post.is_reusable());
        post.is_shared = false;
        assert_eq!(post.room_behind(), None);
    }

    /// One that runs for longer gives back the others, those too that came to it late, and gets no more.
    #[test]
    fn behind_a_long_one() {
        let mut post = post();
        (2..=4).for_each(|id| post.give(id));
        assert_eq!(post.word(|_| false), None);
        assert_eq!(post.started(2), [2, 3]);
        assert_eq!((post.room_behind(), given(&post)), (None, vec![1, 4]));
        assert_eq!(post.word(|_| false), Some(Word::Return), "4 was given while it said so");
        assert_eq!((post.word(|_| false), post.is_awaited()), (None, true));
        assert_eq!(post.returned(1, true), [4]);
        assert_eq!((post.word(|_| false), post.is_reusable()), (None, true));
        post.ended();
        assert!(post.room_behind().is_some());
    }

    /// One that is killed gets nothing more; what it reports meanwhile waits for its death.
    #[test]
    fn condemned() {
        let mut post = post();
        post.give(2);
        post.condemn();
        assert!(post.is_condemned() && post.room_behind().is_none());
        post.ended_condemned();
        assert_eq!((post.told().collect::<Vec<_>>(), given(&post)), (vec![1], vec![2]));
    }

    /// Is the order to end given only to an init with one program, and only once?
    #[test]
    fn only_who_is_meant_is_hit() {
        let mut post = post();
        (2..=3).for_each(|id| post.give(id));
        let unwanted = |id| id == 2;
        assert_eq!(post.word(unwanted), Some(Word::Return));
        assert_eq!((post.word(unwanted), post.room_behind()), (None, None));
        // 1 ends before the order is taken, 2 runs: it is hit when it is alone.
        post.ended();
        assert_eq!(post.word(unwanted), None);
        assert_eq!(post.returned(1, true), [3]);
        assert_eq!((post.word(unwanted), post.word(unwanted)), (Some(Word::Stop), None));
        assert_eq!(post.room_behind(), None);
        post.ended();
        // 2 has not begun: it comes back itself.
        let mut post = self::post();
        post.give(2);
        assert_eq!(post.word(unwanted), Some(Word::Return));
        assert_eq!(post.returned(1, true), [2]);
        assert_eq!(post.word(unwanted), None);
        // All ended before the order was taken: it would be taken for one about others.
        let mut post = self::post();
        post.give(2);
        assert_eq!(post.word(unwanted), Some(Word::Return));
        post.ended();
        post.ended();
        assert!(!post.is_reusable());
        assert_eq!(post.returned(9, true), Vec::<ProgramId>::new());
    }
}
