//! The cage: the main loop of the process that starts, watches and kills programs for one worker.
//!
//! `run_cage` is called by the binary for `essaim __cage`. It uses `init`, `pool` and `post` to start, `program` to
//! remember, `tree` to kill, `meter` to look, `wire` to talk.
//!
//! One turn of the loop: wait (socket, SIGCHLD and SIGTERM, sockets of inits, next deadline or tick) → hear inits → reap
//! → enforce deadlines → say last words → take requests → start what waits → look at programs → send events.
//!
//! A program that may wait is started by an init of its own while there are fewer than may run at once; then its block goes
//! behind others into the socket of the init that has fewest, or it waits here. Inits with several programs are heard every
//! few milliseconds only: one wake-up of this process, and of the worker, is for many short programs.
//!
//! A program for a room goes to the room's own init (`rooms`), and nowhere else.
//!
//! What is always true:
//! - One thread, no blocking call but poll. A worker that does not read cannot stop it: events wait in a bounded queue,
//!   and when that is full no requests are read.
//! - Children of this process are inits, with a program or waiting for one, rooms included, and, if an init was killed, its orphans.
//!   Whoever is not an init may be killed.
//! - A program begins once. One that was given to an init and may have begun is never given to another; what an init gives
//!   back, and what stood behind another program when the init died, has not begun.
//! - A signal hits who it is meant for: an init is told to end its program only while it has no other.
//! - When the worker's socket closes (or SIGTERM comes) everything is killed, then the owned folders are removed.
//!
//! Deliberately not here: what a program is allowed to do (`init` applies it), and any word of the hub.

mod rooms;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustix::process::{Pid, Signal};
use rustix::time::Timespec;

use crate::clock::Moment;
use crate::error::CageError;
use crate::folder::remove_tree;
use crate::init::{self, Handle, RETURN};
use crate::launch;
use crate::limits::{
    EVENTS_WAITING_MAX, HEAR_EVERY, INSPECTED_PER_TICK, KNOWN_MAX, OWNED_FOLDERS_MAX, PACKET_BYTES_MAX,
    PIPES_WAITING_MAX, PROGRAMS_MAX, REAP_WAIT, REQUESTS_PER_TURN, SHUT_DOWN_MAX, TICK,
};
use crate::meter::Meter;
use crate::pool::Pool;
use crate::post::{Post, Word};
use crate::proc::{FileId, Proc, RawPid};
use crate::program::Program;
use crate::protocol::{Capture, Event, List, OutputPipes, ProgramId, Request, Start, Step, Stop, decode, encode};
use crate::report::{Failure, REPORT_BYTES, Report};
use crate::sys::{self, Change};
use crate::tree;
use crate::wire::{self, Packet};
use rooms::Rooms;

/// The whole life of a cage process: serves the worker at the other end of `socket` until it is gone, kills what still
/// runs, removes the owned folders. The caller should exit right after. Changes this process for good (signals,
/// session, name, subreaper), so it must have been started for this only.
///
/// # Errors
/// `Setup`, `ManyThreads`: nothing was started. `Socket`, `TooLarge`, `Decode`, `TooManyFolders`: the worker spoke nonsense
/// and was treated as gone. `Folder`: an owned folder could not be removed.
pub fn run_cage(socket: OwnedFd) -> Result<(), CageError> {
    let mut cage = Inside::set_up(socket)?;
    let served = cage.serve();
    cage.empty();
    served.and(cage.remove_folders())
}

/// The cage's state.
struct Inside {
    socket: OwnedFd,
    signals: OwnedFd,
    proc: Proc,
    meter: Meter,
    own: RawPid,
    programs: BTreeMap<ProgramId, Program>,
    /// Those that no init has, in the order in which they begin.
    waiting: VecDeque<ProgramId>,
    /// Of those that may wait, so many run at once.
    at_once: u32,
    /// Those whose init died without a word of them.
    lost: BTreeSet<ProgramId>,
    /// The inits that have programs.
    posts: BTreeMap<RawPid, Post>,
    idle: Pool,
    rooms: Rooms,
    /// When to hear inits that have several programs; `None` while there are none.
    hear_at: Option<Moment>,
    owned: BTreeSet<PathBuf>,
    events: VecDeque<Event>,
    /// How many of the events hold descriptors.
    pipes_waiting: usize,
    /// For one packet.
    buffer: Vec<u8>,
    /// When to look at the programs again; `None` while there are none.
    next_tick: Option<Moment>,
    /// The init whose program gets its look first.
    tick_from: RawPid,
}

/// What a wait found.
#[derive(Default)]
struct Ready {
    socket: bool,
    hung_up: bool,
    signals: bool,
    inits: Vec<RawPid>,
    rooms: Vec<RawPid>,
    /// Nothing at all.
    idle: bool,
}

/// Whether the worker is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Worker {
    There,
    Gone,
}

impl Inside {
    fn set_up(socket: OwnedFd) -> Result<Inside, CageError> {
        let setup = |what| move |error: Errno| CageError::Setup { what, source: error.into() };
        let open_proc = || Proc::open().map_err(|source| CageError::Setup { what: "open /proc", source });
        let own = rustix::process::getpid();
        let threads = open_proc()?.threads(own.as_raw_pid(), usize::MAX).len();
        if threads != 1 {
            return Err(CageError::ManyThreads { threads });
        }
        rustix::thread::set_name(c"essaim-cage").map_err(setup("set its name"))?;
        let socket = keep_above_stdio(socket).map_err(setup("keep its streams"))?;
        // Ctrl+C in the worker's terminal is the worker's business. The only error is that we lead a session already.
        let _ = rustix::process::setsid();
        sys::ignore_signals(&[libc::SIGINT, libc::SIGHUP, libc::SIGPIPE]);
        sys::restore_child_signal();
        sys::block_signals();
        rustix::process::set_child_subreaper(Some(own)).map_err(setup("become a subreaper"))?;
        let signals = sys::signal_fd(&[libc::SIGCHLD, libc::SIGTERM])
            .map_err(|source| CageError::Setup { what: "make a signal descriptor", source })?;
        Ok(Inside {
            socket,
            signals,
            proc: open_proc()?,
            meter: Meter::new(),
            own: own.as_raw_pid(),
            programs: BTreeMap::new(),
            waiting: VecDeque::new(),
            at_once: 0,
            lost: BTreeSet::new(),
            posts: BTreeMap::new(),
            hear_at: None,
            idle: Pool::default(),
            rooms: Rooms::default(),
            owned: BTreeSet::new(),
            events: VecDeque::new(),
            pipes_waiting: 0,
            buffer: vec![0; PACKET_BYTES_MAX],
            next_tick: None,
            tick_from: 0,
        })
    }

    /// Serves until the worker is gone.
    fn serve(&mut self) -> Result<(), CageError> {
        loop {
            let ready = self.wait(true)?;
            if ready.signals && self.take_signals() {
                return Ok(());
            }
            self.watch(&ready);
            if ready.idle {
                self.make_room_ahead();
            }
            if ready.socket && self.take_requests(ready.hung_up)? == Worker::Gone {
                return Ok(());
            }
            self.start_waiting();
            self.tick(Moment::now());
            self.send_events()?;
        }
    }

    /// Kills all programs and waits until no child is left, within limits.
    fn empty(&mut self) {
        let give_up_at = Moment::now().plus(SHUT_DOWN_MAX);
        self.rooms.make_no_more();
        let ids: Vec<ProgramId> = self.programs.keys().copied().collect();
        for id in ids {
            self.stop(id, Stop::Kill);
        }
        while !self.programs.is_empty() && Moment::now() < give_up_at {
            // Nothing but memory can fail in poll; then we go round without waiting, which is no worse.
            let ready = self.wait(false).unwrap_or_default();
            if ready.signals {
                self.take_signals();
            }
            self.watch(&ready);
            self.events.clear();
            self.pipes_waiting = 0;
        }
        // Inits that wait leave when their socket ends. Nothing of ours is to be there when we are gone.
        self.idle = Pool::default();
        self.rooms.kill_all();
        while Moment::now() < give_up_at {
            match sys::wait_any(false) {
                Ok(Some(_)) => {}
                Err(Errno::CHILD) => return,
                _ => {
                    sys::wait_signal(&[libc::SIGCHLD], Some(REAP_WAIT));
                }
            }
        }
    }

    fn remove_folders(&mut self) -> Result<(), CageError> {
        let mut outcome = Ok(());
        for path in std::mem::take(&mut self.owned) {
            if let Err(source) = remove_tree(&path) {
                outcome = outcome.and(Err(CageError::Folder { path, source }));
            }
        }
        outcome
    }

    /// Everything about programs that is not a request: reports, deaths, deadlines, last words.
    fn watch(&mut self, ready: &Ready) {
        for pid in &ready.inits {
            self.hear(*pid);
        }
        for pid in &ready.rooms {
            self.hear_room(*pid);
        }
        let now = Moment::now();
        self.hear_the_busy(now);
        if ready.signals {
            self.reap();
        }
        self.enforce(now);
        self.conclude();
        self.idle.expire(now);
    }

    /// Hears the inits that nobody waited for, when it is time to.
    fn hear_the_busy(&mut self, now: Moment) {
        if self.hear_at.is_some_and(|at| at <= now) && self.may_hear() {
            let busy = self.posts.iter().filter(|(_, post)| !post.is_awaited());
            let busy: Vec<RawPid> = busy.map(|(pid, _)| *pid).collect();
            busy.into_iter().for_each(|pid| self.hear(pid));
            self.hear_at = None;
        }
        self.expect_the_busy(now);
    }

    /// Sees to it that inits are heard that nobody waits for.
    fn expect_the_busy(&mut self, now: Moment) {
        if self.hear_at.is_none() && self.posts.values().any(|post| !post.is_awaited()) {
            self.hear_at = Some(now.plus(HEAR_EVERY));
        }
    }

    fn may_hear(&self) -> bool {
        self.pipes_waiting < PIPES_WAITING_MAX
    }

    /// Waits for something to do. `with_socket`: requests and room for events count as something.
    fn wait(&self, with_socket: bool) -> Result<Ready, CageError> {
        let mut fds = Vec::with_capacity(self.posts.len() + 2);
        fds.push(PollFd::new(&self.signals, PollFlags::IN));
        let mut pids = Vec::with_capacity(self.posts.len());
        for (pid, post) in self.posts.iter().filter(|(_, post)| self.may_hear() && post.is_awaited()) {
            fds.push(PollFd::new(&post.init.socket, PollFlags::IN));
            pids.push(*pid);
        }
        let mut rooms = Vec::new();
        for (pid, socket) in self.rooms.building().filter(|_| self.may_hear()) {
            fds.push(PollFd::new(socket, PollFlags::IN));
            rooms.push(pid);
        }
        if with_socket {
            let mut wanted = PollFlags::empty();
            wanted.set(PollFlags::IN, self.events.len() < EVENTS_WAITING_MAX);
            wanted.set(PollFlags::OUT, !self.events.is_empty());
            fds.push(PollFd::new(&self.socket, wanted));
        }
        let timeout = self.timeout(Moment::now());
        let idle = match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(count) => count == 0,
            Err(Errno::INTR) => return Ok(Ready::default()),
            Err(error) => return Err(CageError::Setup { what: "poll", source: error.into() }),
        };
        let socket =
            if with_socket { fds.last().map_or(PollFlags::empty(), PollFd::revents) } else { PollFlags::empty() };
        let (count, said) = (pids.len(), |(fd, pid): (&PollFd<'_>, RawPid)| (!fd.revents().is_empty()).then_some(pid));
        let inits = fds[1..].iter().zip(pids).filter_map(said).collect();
        let rooms = fds[1 + count..].iter().zip(rooms).filter_map(said).collect();
        Ok(Ready {
            socket: !socket.difference(PollFlags::OUT).is_empty(),
            hung_up: socket.intersects(PollFlags::HUP | PollFlags::ERR),
            signals: !fds[0].revents().is_empty(),
            inits,
            rooms,
            idle,
        })
    }

    /// Time until the next deadline, tick or round of killing. `None`: nothing is due ever.
    fn timeout(&self, now: Moment) -> Option<Timespec> {
        let wakes = self.firsts().filter_map(|(_, program)| program.next_wake());
        let hear_at = self.hear_at.filter(|_| self.may_hear());
        let wakes = wakes.chain(self.next_tick).chain(self.idle.next_expiry()).chain(hear_at);
        // When that moment is there, a room is made ahead if there is nothing else to do.
        let wakes = wakes.chain(self.rooms.lacks_from().filter(|_| self.events.is_empty()));
        let mut wait = wakes.min().map(|wake| wake.since(now));
        if !self.lost.is_empty() {
            wait = Some(wait.map_or(REAP_WAIT, |wait| wait.min(REAP_WAIT)));
        }
        // Never wake before the moment: rounding is the kernel's, and it rounds up.
        wait.map(|wait| Timespec::try_from(wait).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 }))
    }

    /// Empties the signal descriptor. Returns whether we are asked to leave.
    fn take_signals(&mut self) -> bool {
        let mut leave = false;
        let mut record = [0; sys::SIGNAL_RECORD_BYTES];
        while let Ok(count) = rustix::io::read(&self.signals, &mut record) {
            let number = record.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
            leave |= count > 0 && number == Some(libc::SIGTERM.cast_unsigned());
        }
        leave
    }

    /// The programs that run, or are next to, with the process of their init.
    fn firsts(&self) -> impl Iterator<Item = (Pid, &Program)> {
        let first = |post: &Post| Some((post.init.pid, self.programs.get(&post.first()?)?));
        self.posts.values().filter_map(first)
    }

    /// Reads what an init has reported, up to its last word of its last program.
    fn hear(&mut self, pid: RawPid) {
        while let Some(post) = self.posts.get(&pid) {
            let Some(program) = post.first().and_then(|id| self.programs.get_mut(&id)) else { break };
            let packet = wire::receive(post.init.socket.as_fd(), &mut self.buffer, RecvFlags::DONTWAIT);
            // An error: there is no report, or the init is gone, which SIGCHLD tells.
            let Ok(Packet::Whole(count, pipes)) = packet else { break };
            let Some((record, output)) = self.buffer[..count].split_first_chunk::<REPORT_BYTES>() else { break };
            let Some(report) = Report::from_bytes(record) else { break };
            let report = self.rooms.seen_from_here(pid, report, &self.proc);
            let id = program.id;
            self.events.extend(program.hear(report, output));
            if !pipes.is_empty() {
                self.events.push_back(Event::Output { id, pipes: OutputPipes::new(pipes) });
                self.pipes_waiting += 1;
            }
            self.take_report(pid, id, report);
        }
    }

    /// What follows from a report about the first program of an init.
    fn take_report(&mut self, pid: RawPid, id: ProgramId, report: Report) {
        let Some(post) = self.posts.get_mut(&pid) else { return };
        let returned = match report {
            Report::Started { returned, .. } => post.started(returned),
            Report::Returned { count, is_running } => post.returned(count, is_running),
            // A room says it before it has a program, and is heard elsewhere.
            Report::Ready { .. } => Vec::new(),
            Report::Failed(_) | Report::Finished(_) => {
                let Some(program) = self.programs.get_mut(&id) else { return };
                if post.is_condemned() {
                    // It is reaped before the last word.
                    post.ended_condemned();
                } else {
                    post.ended();
                    self.events.push_back(program.last_word());
                    self.programs.remove(&id);
                }
                Vec::new()
            }
        };
        self.take_back(returned);
        self.settle(pid);
    }

    /// These have not begun, and stand before all others that wait.
    fn take_back(&mut self, ids: Vec<ProgramId>) {
        for id in ids.into_iter().rev() {
            let Some(program) = self.programs.get_mut(&id) else { continue };
            program.take_back();
            if program.is_stopping() {
                self.events.push_back(program.never_ran());
                self.programs.remove(&id);
            } else {
                self.waiting.push_front(id);
            }
        }
    }

    /// After any change of what an init has: tells it what it must know, or lets it wait for another program.
    fn settle(&mut self, pid: RawPid) {
        let Some(post) = self.posts.get_mut(&pid) else { return };
        let Some(first) = post.first() else {
            if post.is_condemned() {
                return;
            }
            let Some(post) = self.posts.remove(&pid) else { return };
            if post.is_reusable()
                && let Some(init) = self.rooms.give_back(post.init)
            {
                self.idle.give(init, Moment::now());
            }
            return;
        };
        if let Some(program) = self.programs.get_mut(&first) {
            program.is_first(Moment::now());
        }
        let programs = &self.programs;
        let word = post.word(|id| programs.get(&id).is_some_and(Program::is_stopping));
        let signal = match word {
            Some(Word::Stop) => Signal::TERM,
            Some(Word::Return) => RETURN,
            None => return,
        };
        // Init is our child and not reaped yet, so the number is its own.
        let _ = rustix::process::kill_process(post.init.pid, signal);
    }

    /// Takes all children that ended, inits and orphans.
    fn reap(&mut self) {
        while let Ok(Some(child)) = sys::wait_any(true) {
            let has_programs = self.posts.contains_key(&child.pid);
            if child.change == Change::Stopped {
                // Nobody stops an init but its own program. It must go on, or the program's end would not be noticed.
                // One that waits would not begin. Orphans are killed, stopped or not.
                let is_init = has_programs
                    || self.rooms.has(child.pid)
                    || self.idle.pids().any(|pid| pid.as_raw_pid() == child.pid);
                if let Some(init) = Pid::from_raw(child.pid).filter(|_| is_init) {
                    let _ = rustix::process::kill_process(init, Signal::CONT);
                }
                continue;
            }
            if has_programs {
                self.hear(child.pid);
            }
            self.idle.forget(child.pid);
            self.room_gone(child.pid);
            let Some(post) = self.posts.remove(&child.pid) else { continue };
            let mut given = post.given();
            let first = given.next();
            // What it has said came before its death, and it says how each one ended before the next begins.
            let behind: Vec<ProgramId> = given.collect();
            self.take_back(behind);
            for id in first.into_iter().chain(post.told()) {
                if let Some(program) = self.programs.get_mut(&id) {
                    program.init_gone(Moment::now());
                    self.lost.insert(id);
                }
            }
        }
    }

    /// Stops programs that are over their wall limit; kills the trees of inits that did not manage to.
    fn enforce(&mut self, now: Moment) {
        let overdue = self.firsts().filter(|(_, program)| program.is_overdue(now));
        let overdue: Vec<ProgramId> = overdue.map(|(_, program)| program.id).collect();
        for id in overdue {
            self.stop(id, Stop::Wall);
        }
        for post in self.posts.values_mut() {
            let Some(program) = post.first().and_then(|id| self.programs.get_mut(&id)) else { continue };
            if post.is_stopped() && program.must_repeat(now) {
                let _ = rustix::process::kill_process(post.init.pid, Signal::TERM);
            }
            if program.must_force(now) {
                post.condemn();
                // With the first process of a room goes all of it.
                if !self.rooms.has(post.init.pid.as_raw_pid()) {
                    tree::kill_below(&self.proc, post.init.pid.as_raw_pid(), &BTreeSet::new());
                }
                tree::kill_own_child(post.init.pid);
            }
        }
    }

    /// Sees to it that a program ends, or does not begin.
    fn stop(&mut self, id: ProgramId, why: Stop) {
        let Some(program) = self.programs.get_mut(&id) else { return };
        if !program.stop(why, Moment::now()) {
            return;
        }
        match program.init {
            Some(pid) => self.settle(pid),
            None => {
                self.waiting.retain(|waiting| *waiting != id);
                self.take_back(vec![id]);
            }
        }
    }

    /// Says the last word of programs whose init died. Orphans are killed first; since they are nobody's in particular any
    /// more, all lost programs wait for all orphans. What an init that we killed has told needs no more.
    fn conclude(&mut self) {
        if !self.lost.is_empty() {
            let is_lost = |id: &ProgramId| self.programs.get(id).is_some_and(Program::is_lost);
            let orphans_gone = self.lost.iter().any(is_lost) && self.kill_orphans();
            for id in std::mem::take(&mut self.lost) {
                match self.programs.get_mut(&id) {
                    Some(program) if program.is_told() || orphans_gone => {
                        self.events.push_back(program.last_word());
                        self.programs.remove(&id);
                    }
                    Some(_) => _ = self.lost.insert(id),
                    None => {}
                }
            }
        }
        if self.posts.is_empty() {
            self.next_tick = None;
        }
    }

    /// One round of killing our children that are no inits. Returns whether there are none.
    fn kill_orphans(&mut self) -> bool {
        let inits = self.posts.values().map(|post| post.init.pid).chain(self.idle.pids());
        let inits = inits.chain(self.rooms.pids());
        let inits: BTreeSet<RawPid> = inits.map(Pid::as_raw_pid).collect();
        tree::kill_below(&self.proc, self.own, &inits);
        self.reap();
        // A child leaves this list only by being reaped, and only we reap: the list is exact. An init that was reaped
        // just now is not in it any more.
        self.proc.children(self.own).iter().all(|child| inits.contains(child))
    }

    /// Looks at the programs if it is time to.
    fn tick(&mut self, now: Moment) {
        if self.next_tick.is_none_or(|tick| now < tick) {
            return;
        }
        self.next_tick = Some(now.plus(TICK));
        let after = self.posts.range(self.tick_from..).map(|(pid, _)| *pid);
        let before = self.posts.range(..self.tick_from).map(|(pid, _)| *pid);
        let order: Vec<RawPid> = after.chain(before).collect();
        let mut looks_left = INSPECTED_PER_TICK;
        for pid in order {
            // A worker that does not read gets no news; what it needs to know comes with the end.
            if looks_left == 0 || self.events.len() >= EVENTS_WAITING_MAX {
                self.tick_from = pid;
                return;
            }
            let first = self.posts.get(&pid).and_then(Post::first);
            let program = first.and_then(|id| self.programs.get_mut(&id));
            let Some(program) = program.filter(|program| program.is_running()) else { continue };
            let reading = self.meter.read(&self.proc, pid, program.stdin);
            looks_left = looks_left.saturating_sub(reading.looks);
            self.events.extend(program.note(reading, now));
        }
    }

    /// Takes some requests; all that there are if the worker hung up.
    fn take_requests(&mut self, hung_up: bool) -> Result<Worker, CageError> {
        let mut taken = 0;
        while hung_up || (taken < REQUESTS_PER_TURN && self.events.len() < EVENTS_WAITING_MAX) {
            let packet = match wire::receive(self.socket.as_fd(), &mut self.buffer, RecvFlags::DONTWAIT) {
                Ok(packet) => packet,
                Err(Errno::AGAIN) => return Ok(Worker::There),
                Err(error) => return Err(CageError::Socket(error.into())),
            };
            match packet {
                Packet::End => return Ok(Worker::Gone),
                Packet::TooLarge => {
                    return Err(CageError::TooLarge { bytes: PACKET_BYTES_MAX + 1, bytes_max: PACKET_BYTES_MAX });
                }
                Packet::Whole(count, fds) => {
                    let requests: Vec<Request<'_>> = decode(&self.buffer[..count], PACKET_BYTES_MAX)?;
                    taken += requests.len().max(1);
                    for request in requests {
                        self.take(request, &fds, hung_up)?;
                    }
                }
            }
        }
        Ok(Worker::There)
    }

    fn take(&mut self, request: Request<'_>, fds: &[OwnedFd], hung_up: bool) -> Result<(), CageError> {
        match request {
            // Nobody would read its output; it would only be killed again.
            Request::Start { .. } if hung_up => {}
            Request::Start { start, capture } => {
                let id = start.id;
                if let Err(failure) = self.start(&start, capture, fds) {
                    let step = failure.step.word().to_owned();
                    self.events.push_back(Event::StartFailed { id, step, errno: failure.errno });
                }
            }
            Request::Kill { id } => self.stop(id, Stop::Kill),
            Request::PlanRooms { plan } => self.plan_rooms(plan),
            // Nobody would get it.
            Request::OpenRoom { .. } if hung_up => {}
            Request::OpenRoom { id } => self.open_room(id),
            Request::CloseRoom { id } => self.close_room(id),
            Request::Own { path } => {
                // The worker's end counts too; more than that is a bug there, and forgetting a folder would hide it.
                if self.owned.len() >= OWNED_FOLDERS_MAX {
                    return Err(CageError::TooManyFolders { folders_max: OWNED_FOLDERS_MAX });
                }
                self.owned.insert(path);
            }
            Request::Disown { path } => {
                self.owned.remove(&path);
            }
        }
        Ok(())
    }

    /// Starts a program, or lets it wait if it may.
    fn start(&mut self, start: &Start, capture: Option<Capture>, fds: &[OwnedFd]) -> Result<(), Failure> {
        if self.programs.len() >= KNOWN_MAX {
            return Err(Failure::new(Step::TooMany, Errno::AGAIN));
        }
        if self.programs.contains_key(&start.id) {
            return Err(Failure::new(Step::IdInUse, Errno::EXIST));
        }
        let now = Moment::now();
        let mut program = Program::new(start, capture, launch::block(start, capture)?, now);
        program.stdin = fds.first().and_then(|stdin| FileId::of_stream(stdin.as_fd()));
        if let Some(at_once) = program.at_once {
            self.at_once = at_once.max(1);
            self.waiting.push_back(start.id);
        } else if let Some(room) = start.room {
            self.give_to_room(room, &mut program, fds, now)?;
        } else {
            let init = self.give_to_new(&mut program, fds, now)?;
            program.block = Vec::new();
            self.posts.insert(init.pid.as_raw_pid(), Post::new(init, false, start.id));
        }
        self.programs.insert(start.id, program);
        Ok(())
    }

    /// Starts what waits, as far as it may.
    fn start_waiting(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let now = Moment::now();
        while let Some(id) = self.waiting.front().copied() {
            match self.place(id, now) {
                Ok(true) => {}
                Ok(false) => break,
                Err(failure) => {
                    self.programs.remove(&id);
                    let step = failure.step.word().to_owned();
                    self.events.push_back(Event::StartFailed { id, step, errno: failure.errno });
                }
            }
            self.waiting.pop_front();
        }
        self.expect_the_busy(now);
        let mut shared = self.posts.values().filter(|post| post.is_shared);
        if !self.waiting.is_empty() && shared.all(Post::is_long) {
            // None of them will soon be over: the worker may know better what to do with those that wait.
            for id in std::mem::take(&mut self.waiting) {
                self.programs.remove(&id);
                self.events.push_back(Event::Returned { id });
            }
        }
    }

    /// Gives a program that waits to an init, if one may have it.
    fn place(&mut self, id: ProgramId, now: Moment) -> Result<bool, Failure> {
        let Some(mut program) = self.programs.remove(&id) else { return Ok(true) };
        let placed = self.place_program(&mut program, now);
        self.programs.insert(id, program);
        placed
    }

    fn place_program(&mut self, program: &mut Program, now: Moment) -> Result<bool, Failure> {
        let shared = self.posts.values().filter(|post| post.is_shared).count();
        if shared < self.at_once as usize {
            if shared > 0 && self.posts.len() >= PROGRAMS_MAX {
                return Ok(false);
            }
            let init = self.give_to_new(program, &[], now)?;
            self.posts.insert(init.pid.as_raw_pid(), Post::new(init, true, program.id));
            return Ok(true);
        }
        if !program.may_stand_behind() {
            return Ok(false);
        }
        let open = self.posts.values_mut().filter_map(|post| Some((post.room_behind()?, post)));
        let Some((_, post)) = open.min_by_key(|(count, _)| *count) else { return Ok(false) };
        // No room, or it is dead: its end will be noticed, and this one waits for that.
        let given = wire::send(post.init.socket.as_fd(), &[&program.block], &[], SendFlags::DONTWAIT);
        if given.is_ok() {
            post.give(program.id);
            program.give(post.init.pid.as_raw_pid(), true, now);
        }
        Ok(given.is_ok())
    }

    /// Gives a program and its streams to an init that waits, or to a new one.
    fn give_to_new(&mut self, program: &mut Program, streams: &[OwnedFd], now: Moment) -> Result<Handle, Failure> {
        if self.posts.len() + self.rooms.pids().count() >= PROGRAMS_MAX {
            return Err(Failure::new(Step::TooMany, Errno::AGAIN));
        }
        let fds: Vec<_> = streams.iter().map(OwnedFd::as_fd).collect();
        let block = &program.block;
        let give = |init: &Handle| wire::send(init.socket.as_fd(), &[block], &fds, SendFlags::DONTWAIT);
        let mut given = None;
        while let Some(init) = self.idle.take() {
            if give(&init).is_ok() {
                given = Some(init);
                break;
            }
            // Somebody has killed it; its death is still to be reaped.
        }
        let init = match given {
            Some(init) => init,
            None => {
                let init = init::spawn(&self.proc)?;
                give(&init).map_err(|error| Failure::new(Step::Init, error))?;
                init
            }
        };
        program.give(init.pid.as_raw_pid(), false, now);
        self.expect_tick(now);
        Ok(init)
    }

    fn expect_tick(&mut self, now: Moment) {
        self.next_tick.get_or_insert(now.plus(TICK));
    }

    /// Sends what the socket takes, many events in one packet.
    fn send_events(&mut self) -> Result<(), CageError> {
        while let Some(first) = self.events.front() {
            let mut list = List::default();
            let fds: Vec<_> = first.fds().map(OwnedFd::as_fd).collect();
            for event in &self.events {
                // One that comes with descriptors is alone in its packet.
                let ends_before = event.fds().next().is_some() && list.count() > 0;
                if ends_before || !list.push(&encode(event)?) || !fds.is_empty() {
                    break;
                }
            }
            match wire::send(self.socket.as_fd(), &[&list.head(), list.bytes()], &fds, SendFlags::DONTWAIT) {
                Ok(()) => self.pipes_waiting -= usize::from(!fds.is_empty()),
                Err(Errno::AGAIN) => return Ok(()),
                // The worker reads no more. What it sent before is still to be taken: poll will say that it hung up.
                Err(Errno::PIPE | Errno::CONNRESET) => {
                    self.events.clear();
                    self.pipes_waiting = 0;
                    return Ok(());
                }
                Err(error) => return Err(CageError::Socket(error.into())),
            }
            self.events.drain(..list.count());
        }
        Ok(())
    }
}

/// Sees to it that no descriptor of ours has the number of a standard stream: inits put theirs there.
fn keep_above_stdio(socket: OwnedFd) -> Result<OwnedFd, Errno> {
    let socket = match socket.as_raw_fd() {
        0..3 => rustix::io::fcntl_dupfd_cloexec(&socket, 3)?,
        _ => socket,
    };
    loop {
        let null = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty())?;
        if null.as_raw_fd() >= 3 {
            return Ok(socket);
        }
        let _ = null.into_raw_fd();
    }
}
