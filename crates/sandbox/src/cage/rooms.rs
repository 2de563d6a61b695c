//! The rooms of a cage: which are being made, which wait, which the worker has.
//!
//! Part of `cage`, which calls it for the worker's requests, for what a room says, and when it has nothing else to do.
//!
//! ```text
//!   spawn ──► Building ──Ready──► Waiting ──OpenRoom──► Open ──CloseRoom, plan changed──► Closing ──reaped──► gone
//!                │  └──────Ready, somebody waits for it────▲ │
//!                └──Failed: who waits hears why             └─ Start: its init is a post, until the program is over
//! ```
//!
//! What is always true: a room that was opened is opened once, and killed when it is closed; a room is in the list until its
//! first process is reaped, which the kernel allows when nothing of it is alive; of a number that was asked for, exactly one
//! of `RoomReady` and `RoomFailed` is said. A room that somebody waits for is made at once; the others are made one at a time,
//! when there is nothing to hear. Rooms and posts together are at most `PROGRAMS_MAX`.
//!
//! Deliberately not here: making one (`room`), and its programs, which are posts like all others.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Gid, Uid};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustix::process::Pid;

use super::Inside;
use crate::blueprint;
use crate::capabilities::capabilities;
use crate::clock::Moment;
use crate::init::Handle;
use crate::limits::{PROGRAMS_MAX, ROOM_PAUSE, ROOMS_MADE_AT_ONCE, ROOMS_READY_MAX};
use crate::post::Post;
use crate::proc::{Proc, RawPid};
use crate::program::Program;
use crate::protocol::{Event, Isolation, RoomId, RoomPlan, Step, Stop};
use crate::report::{Failure, REPORT_BYTES, Report};
use crate::room::{self, Plan};
use crate::tree;
use crate::tree_fd::RoomFolder;
use crate::walls::Filter;
use crate::wire::{self, Packet};

/// The rooms.
#[derive(Default)]
pub(super) struct Rooms {
    asked: RoomPlan,
    /// Drawn when the first room is made.
    plan: Option<Plan>,
    /// Changes with the plan.
    generation: u64,
    rooms: BTreeMap<RawPid, Room>,
    open: BTreeMap<RoomId, RawPid>,
    /// Those who wait for a room that is being made.
    wanted: VecDeque<RoomId>,
    /// How many were begun.
    count: u32,
    /// When the last one was handed out.
    handed_out: Option<Moment>,
    /// The last one failed: none is made ahead until somebody asks for one.
    is_broken: bool,
}

struct Room {
    generation: u64,
    /// What its user is outside, unless that is our own.
    user: Option<u32>,
    state: State,
}

enum State {
    Building(Handle),
    Waiting(Handle, RoomFolder, Isolation),
    /// `None`: it has a program, and its init is a post.
    Open(Option<Handle>),
    /// Killed, not reaped yet.
    Closing,
}

impl Rooms {
    /// All first processes.
    pub(super) fn pids(&self) -> impl Iterator<Item = Pid> {
        self.rooms.keys().filter_map(|pid| Pid::from_raw(*pid))
    }

    pub(super) fn has(&self, pid: RawPid) -> bool {
        self.rooms.contains_key(&pid)
    }

    /// Those that will say something.
    pub(super) fn building(&self) -> impl Iterator<Item = (RawPid, &OwnedFd)> {
        self.rooms.iter().filter_map(|(pid, room)| match &room.state {
            State::Building(init) => Some((*pid, &init.socket)),
            _ => None,
        })
    }

    /// When one is to be made ahead, if there is nothing else to do then. `None`: not at all.
    pub(super) fn lacks_from(&self) -> Option<Moment> {
        let is_urgent = 2 * self.waiting().count() < self.asked.ready as usize;
        let pause = self.handed_out.filter(|_| !is_urgent).map(|at| at.plus(ROOM_PAUSE));
        self.lacks().then_some(pause.unwrap_or(Moment::from_nanos(0)))
    }

    fn lacks(&self) -> bool {
        let building = self.building().count();
        let ahead = building.saturating_sub(self.wanted.len()) + self.waiting().count();
        !self.is_broken
            && building < ROOMS_MADE_AT_ONCE
            && ahead < self.asked.ready as usize
            && self.rooms.len() < PROGRAMS_MAX
    }

    fn waiting(&self) -> impl Iterator<Item = RawPid> {
        self.rooms.iter().filter(|(_, room)| matches!(room.state, State::Waiting(..))).map(|(pid, _)| *pid)
    }

    /// Begins to make one.
    pub(super) fn make(&mut self, proc: &Proc) -> Result<(), Failure> {
        let plan = match &mut self.plan {
            Some(plan) => plan,
            None => {
                let pieces = blueprint::draw(&self.asked.extra_places);
                let pieces = pieces.map_err(|error| Failure {
                    step: Step::Mounts,
                    errno: error.raw_os_error().unwrap_or(libc::EINVAL),
                })?;
                let RoomPlan { size_bytes, files_max, .. } = self.asked;
                self.plan.insert(Plan { pieces, size_bytes, files_max, filter: Filter::new() })
            }
        };
        self.count = self.count.wrapping_add(1);
        let user = room::user_outside(self.count);
        let init = room::spawn(proc, plan, user)?;
        let pid = init.pid.as_raw_pid();
        self.rooms.insert(pid, Room { generation: self.generation, user, state: State::Building(init) });
        Ok(())
    }

    /// Kills a room and all that is in it.
    fn kill(&mut self, pid: RawPid) {
        if let Some(room) = self.rooms.get_mut(&pid)
            && let Some(init) = Pid::from_raw(pid)
        {
            // It is in the list, so it is not reaped.
            tree::kill_own_child(init);
            room.state = State::Closing;
        }
    }

    /// From now on none is made ahead.
    pub(super) fn make_no_more(&mut self) {
        self.asked.ready = 0;
    }

    /// Kills all.
    pub(super) fn kill_all(&mut self) {
        let all: Vec<RawPid> = self.rooms.keys().copied().collect();
        all.into_iter().for_each(|pid| self.kill(pid));
        self.wanted.clear();
        self.open.clear();
    }

    /// Takes a plan. Rooms of another one go, but for those that the worker has.
    fn plan(&mut self, plan: RoomPlan) {
        if plan == self.asked {
            return;
        }
        let is_same = RoomPlan { ready: plan.ready, ..self.asked.clone() } == plan;
        self.asked = plan;
        self.asked.ready = self.asked.ready.min(ROOMS_READY_MAX);
        self.is_broken = false;
        if !is_same {
            self.plan = None;
            self.generation += 1;
        }
        let kept = if is_same { self.asked.ready as usize } else { 0 };
        let too_many: Vec<RawPid> = self.waiting().skip(kept).collect();
        too_many.into_iter().for_each(|pid| self.kill(pid));
    }

    /// The init of an open room that has no program.
    fn take(&mut self, id: RoomId) -> Result<Handle, Failure> {
        let room = self.open.get(&id).and_then(|pid| self.rooms.get_mut(pid));
        match room.map(|room| &mut room.state) {
            Some(State::Open(init)) => init.take().ok_or(Failure::new(Step::Room, Errno::BUSY)),
            _ => Err(Failure::new(Step::Room, Errno::NOENT)),
        }
    }

    /// Gives the init back whose program is over. `Some`: it is of no room.
    pub(super) fn give_back(&mut self, init: Handle) -> Option<Handle> {
        match self.rooms.get_mut(&init.pid.as_raw_pid()).map(|room| &mut room.state) {
            Some(State::Open(place)) => _ = place.insert(init),
            Some(_) => {}
            None => return Some(init),
        }
        None
    }

    /// A report with the program's number as we see it, and not as its room does; 0 if it is gone already.
    pub(super) fn seen_from_here(&self, init: RawPid, report: Report, proc: &Proc) -> Report {
        match report {
            Report::Started { reaped_before_micros, began_nanos, returned, .. } if self.has(init) => {
                let pid = proc.children(init).first().copied().unwrap_or(0);
                Report::Started { pid, reaped_before_micros, began_nanos, returned }
            }
            report => report,
        }
    }

    fn user_of(&self, pid: RawPid) -> Option<u32> {
        self.rooms.get(&pid)?.user
    }

    /// The number under which the worker has a room.
    fn id_of(&self, pid: RawPid) -> Option<RoomId> {
        self.open.iter().find(|(_, found)| **found == pid).map(|(id, _)| *id)
    }
}

fn is_own_pipe(stream: &OwnedFd) -> bool {
    let own = rustix::process::geteuid().as_raw();
    rustix::fs::fstat(stream).is_ok_and(|stat| {
        stat.st_uid == own && FileType::from_raw_mode(stat.st_mode) == FileType::Fifo && stat.st_nlink <= 1
    })
}

/// What the worker reads when there is no room for it.
fn why(failure: Failure) -> String {
    if matches!(failure.step, Step::Namespaces | Step::Users | Step::Mounts)
        && let Some(lack) = capabilities().reason()
    {
        return format!("a room cannot be made: {}; what helps: {}", lack.sentence, lack.fix);
    }
    let error = std::io::Error::from_raw_os_error(failure.errno);
    let what = match failure.step {
        Step::Namespaces => "this user may not make namespaces here",
        Step::Users => "the users of a new namespace cannot be named",
        Step::Mounts => "its root cannot be mounted",
        Step::TooMany => "there are too many rooms",
        Step::IdInUse => "there is one of that number",
        _ => "it cannot be prepared",
    };
    format!("a room cannot be made: {what} ({}: {error})", failure.step.word())
}

impl Inside {
    pub(super) fn plan_rooms(&mut self, plan: RoomPlan) {
        self.rooms.plan(plan);
    }

    /// Gives a room that waits, or begins to make one.
    pub(super) fn open_room(&mut self, id: RoomId) {
        let rooms = &mut self.rooms;
        if rooms.open.contains_key(&id) || rooms.wanted.contains(&id) {
            self.refuse_room(id, Failure::new(Step::IdInUse, Errno::EXIST));
            return;
        }
        let waiting = rooms.waiting().next();
        if let Some(pid) = waiting {
            self.hand_out(pid, id);
            return;
        }
        if rooms.rooms.len() + self.posts.len() >= PROGRAMS_MAX {
            self.refuse_room(id, Failure::new(Step::TooMany, Errno::AGAIN));
            return;
        }
        // One that is made ahead is for who comes first.
        rooms.wanted.push_back(id);
        if rooms.building().count() < rooms.wanted.len()
            && let Err(failure) = rooms.make(&self.proc)
        {
            rooms.wanted.pop_back();
            self.refuse_room(id, failure);
        }
    }

    fn refuse_room(&mut self, id: RoomId, failure: Failure) {
        self.events.push_back(Event::RoomFailed { id, why: why(failure) });
    }

    fn hand_out(&mut self, pid: RawPid, id: RoomId) {
        let Some(room) = self.rooms.rooms.get_mut(&pid) else { return };
        match std::mem::replace(&mut room.state, State::Closing) {
            State::Waiting(init, folder, isolation) => {
                room.state = State::Open(Some(init));
                self.rooms.open.insert(id, pid);
                self.rooms.handed_out = Some(Moment::now());
                self.events.push_back(Event::RoomReady { id, isolation, folder: Some(folder) });
                self.pipes_waiting += 1;
            }
            other => room.state = other,
        }
    }

    /// Kills a room with what runs in it.
    pub(super) fn close_room(&mut self, id: RoomId) {
        if let Some(place) = self.rooms.wanted.iter().position(|wanted| *wanted == id) {
            self.rooms.wanted.remove(place);
            let why = "it was closed before it was there".to_owned();
            self.events.push_back(Event::RoomFailed { id, why });
        }
        let Some(pid) = self.rooms.open.remove(&id) else { return };
        if let Some(post) = self.posts.get_mut(&pid) {
            post.condemn();
            if let Some(program) = post.first() {
                self.stop(program, Stop::Kill);
            }
        }
        self.rooms.kill(pid);
    }

    /// Makes one ahead. To be called when there is nothing else to do.
    pub(super) fn make_room_ahead(&mut self) {
        let is_due = self.rooms.lacks_from().is_some_and(|from| from <= Moment::now());
        if is_due && self.rooms.make(&self.proc).is_err() {
            self.rooms.is_broken = true;
        }
    }

    /// Hears a room that is being made.
    pub(super) fn hear_room(&mut self, pid: RawPid) {
        let Some(Room { state: State::Building(init), .. }) = self.rooms.rooms.get(&pid) else { return };
        let heard = match wire::receive(init.socket.as_fd(), &mut self.buffer, RecvFlags::DONTWAIT) {
            Ok(Packet::Whole(count, fds)) => {
                let report = self.buffer[..count].first_chunk::<REPORT_BYTES>().and_then(Report::from_bytes);
                (report, fds.into_iter().next())
            }
            Err(Errno::AGAIN) => return,
            _ => (None, None),
        };
        let failure = match heard {
            (Some(Report::Ready { missing }), Some(folder)) => {
                self.room_is_ready(pid, RoomFolder::new(folder), missing.isolation());
                return;
            }
            (Some(Report::Failed(failure)), _) => failure,
            // It died on the way, and took its reason along.
            _ => Failure::new(Step::Init, Errno::SRCH),
        };
        self.rooms.kill(pid);
        self.room_failed(failure);
    }

    fn room_is_ready(&mut self, pid: RawPid, folder: RoomFolder, isolation: Isolation) {
        let rooms = &mut self.rooms;
        let Some(room) = rooms.rooms.get_mut(&pid) else { return };
        if let State::Building(init) = std::mem::replace(&mut room.state, State::Closing) {
            room.state = State::Waiting(init, folder, isolation);
        }
        rooms.is_broken = false;
        let is_old = room.generation != rooms.generation;
        if let (false, Some(id)) = (is_old, rooms.wanted.front().copied()) {
            rooms.wanted.pop_front();
            self.hand_out(pid, id);
        } else if is_old || rooms.waiting().count() > rooms.asked.ready as usize {
            rooms.kill(pid);
            self.make_wanted();
        }
    }

    /// One that was being made will not be.
    fn room_failed(&mut self, failure: Failure) {
        match self.rooms.wanted.pop_front() {
            Some(id) => self.refuse_room(id, failure),
            None => self.rooms.is_broken = true,
        }
        self.make_wanted();
    }

    /// Sees to it that as many are being made as are waited for.
    fn make_wanted(&mut self) {
        while self.rooms.building().count() < self.rooms.wanted.len() {
            if let Err(failure) = self.rooms.make(&self.proc)
                && let Some(id) = self.rooms.wanted.pop_front()
            {
                self.refuse_room(id, failure);
            }
        }
    }

    /// Notes that a room's first process was reaped: nothing of the room is alive.
    pub(super) fn room_gone(&mut self, pid: RawPid) {
        let Some(room) = self.rooms.rooms.remove(&pid) else { return };
        if let Some(id) = self.rooms.id_of(pid) {
            self.rooms.open.remove(&id);
        }
        if matches!(room.state, State::Building(_)) {
            self.room_failed(Failure::new(Step::Init, Errno::SRCH));
        }
    }

    /// Gives a program and its streams to the init of a room.
    pub(super) fn give_to_room(
        &mut self,
        id: RoomId,
        program: &mut Program,
        streams: &[OwnedFd],
        now: Moment,
    ) -> Result<(), Failure> {
        let init = self.rooms.take(id)?;
        // Pipes that we have made belong to us: as the program's own, /dev/stdout can be opened too.
        if let Some(user) = self.rooms.user_of(init.pid.as_raw_pid()) {
            let (user, group) = (Some(Uid::from_raw(user)), Some(Gid::from_raw(user)));
            for stream in streams.iter().filter(|stream| is_own_pipe(stream)) {
                let _ = rustix::fs::fchown(stream, user, group);
            }
        }
        let fds: Vec<_> = streams.iter().map(OwnedFd::as_fd).collect();
        if let Err(error) = wire::send(init.socket.as_fd(), &[&program.block], &fds, SendFlags::DONTWAIT) {
            // Its death is still to be reaped.
            self.rooms.give_back(init);
            return Err(Failure::new(Step::Room, error));
        }
        program.block = Vec::new();
        program.give(init.pid.as_raw_pid(), false, now);
        self.expect_tick(now);
        self.posts.insert(init.pid.as_raw_pid(), Post::new(init, false, program.id));
        Ok(())
    }
}
