//! The network: connections that keep their order, and all that can happen to them.
//!
//! Always true: frames of one lane of one direction arrive in order; control may overtake bulk (as the real writer sends
//! it first), bulk never overtakes control that was sent before it; frames of different connections keep no order; a
//! connection that is cut delivers nothing more, and each end notices in its own time, at the latest by silence.
//! Deliberately not here: what frames mean.

use crate::trace;
use crate::world::{Event, World};
use essaim_proto::api::{JobEvent, JobRerun};
use essaim_proto::job::JobSpec;
use essaim_proto::link::{
    EndAckMany, Ended, EndedMany, GivenBack, Progress, Register, Registered, Report, Start, TakeBack,
};
use essaim_proto::{AttemptId, JobId, RefusalCode, SubmitKey, TaskSet};

/// An index of all connections that ever were; the session's number is one more.
pub(crate) type ConnId = usize;

/// By silence, both ends of a real connection give it up.
const SILENCE_MS: u64 = 31_000;

/// Lanes of one direction.
pub(crate) const CONTROL: usize = 0;
pub(crate) const BULK: usize = 1;

/// Who is not the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Peer {
    Worker(usize),
    Client(usize),
}

/// What goes to the hub.
#[derive(Debug, Clone)]
pub(crate) enum ToHub {
    Hello,
    Register(Box<Register>),
    Report(Box<Report>),
    Progress(Progress),
    Output { attempt: AttemptId, stream: usize, offset: u64, bytes: Vec<u8> },
    Ended(Box<Ended>),
    EndedMany(Box<EndedMany>),
    GivenBack(GivenBack),
    Submit { request: u64, key: SubmitKey, spec: Box<JobSpec> },
    Watch { request: u64, job: JobId, key: SubmitKey, from: (AttemptId, [u64; 2]) },
    Cancel { request: u64, job: JobId, tasks: Option<TaskSet> },
    Rerun { request: u64, rerun: JobRerun },
}

/// What comes from the hub.
#[derive(Debug, Clone)]
pub(crate) enum FromHub {
    Welcome,
    Refused { request: u64, code: RefusalCode },
    Registered(Box<Registered>),
    Start(Box<Start>),
    Stop(AttemptId),
    EndAck(AttemptId),
    EndAckMany(EndAckMany),
    TakeBack(TakeBack),
    Leave(bool),
    OutputAck { attempt: AttemptId, has: [u64; 2] },
    Submitted { request: u64, job: JobId },
    Done,
    Output { request: u64, attempt: AttemptId, stream: usize, offset: u64, bytes: Vec<u8> },
    Event { request: u64, event: Box<JobEvent> },
}

/// How the hub's end stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Far {
    /// Nothing has come yet.
    New,
    Open,
    Closed,
}

/// A connection, or what is left of it.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) peer: Peer,
    /// The hub's process that it leads to.
    pub(crate) generation: u32,
    pub(crate) is_cut: bool,
    pub(crate) stalled_until: u64,
    pub(crate) near_is_open: bool,
    pub(crate) far: Far,
    /// When the last frame of each direction and lane arrives.
    last: [[u64; 2]; 2],
}

impl World {
    /// A new connection with its first words; none while the hub is not there or cannot be reached.
    pub(crate) fn connect(&mut self, peer: Peer, first: ToHub) -> Option<ConnId> {
        if !self.hub.is_up || self.unreachable_until(peer) > self.now {
            return None;
        }
        let id = self.conns.len();
        self.conns.push(Conn {
            peer,
            generation: self.hub.generation,
            is_cut: false,
            stalled_until: 0,
            near_is_open: true,
            far: Far::New,
            last: [[0; 2]; 2],
        });
        self.send_to_hub(id, CONTROL, first);
        Some(id)
    }

    fn arrival(&mut self, conn: ConnId, direction: usize, lane: usize) -> u64 {
        let latency = self.rng.below(self.plan.latency_ms + 1);
        let last = &mut self.conns[conn].last[direction];
        let after = if lane == BULK { last[CONTROL].max(last[BULK]) } else { last[CONTROL] };
        last[lane] = after.max(self.now + latency);
        last[lane]
    }

    pub(crate) fn send_to_hub(&mut self, conn: ConnId, lane: usize, frame: ToHub) {
        if self.conns[conn].is_cut || !self.conns[conn].near_is_open {
            return;
        }
        self.judge.frames += 1;
        let at = self.arrival(conn, 0, lane);
        self.queue.push(at, Event::ToHub(conn, frame));
    }

    pub(crate) fn send_from_hub(&mut self, conn: ConnId, lane: usize, frame: FromHub) {
        if self.conns[conn].is_cut || self.conns[conn].far != Far::Open {
            return;
        }
        self.judge.frames += 1;
        let at = self.arrival(conn, 1, lane);
        self.queue.push(at, Event::FromHub(conn, frame));
    }

    /// The peer closes its end; `clean`: with a goodbye that says that it leaves for good.
    pub(crate) fn close_near(&mut self, conn: ConnId, clean: bool) {
        if !std::mem::replace(&mut self.conns[conn].near_is_open, false) || self.conns[conn].is_cut {
            return;
        }
        let at = self.arrival(conn, 0, BULK);
        self.queue.push(at, Event::FarClosed { conn, clean });
    }

    /// The hub closes its end.
    pub(crate) fn close_far(&mut self, conn: ConnId) {
        if std::mem::replace(&mut self.conns[conn].far, Far::Closed) == Far::Closed || self.conns[conn].is_cut {
            return;
        }
        let at = self.arrival(conn, 1, BULK);
        self.queue.push(at, Event::NearClosed(conn));
    }

    /// Nothing more arrives on it; both ends notice when they notice.
    pub(crate) fn cut(&mut self, conn: ConnId) {
        if std::mem::replace(&mut self.conns[conn].is_cut, true) {
            return;
        }
        trace::line(self.now, || format!("connection {conn} of {:?} is cut", self.conns[conn].peer));
        let (near, far) = (self.silence_ms(), self.silence_ms());
        self.queue.push(self.now + near, Event::NearClosed(conn));
        self.queue.push(self.now + far, Event::FarClosed { conn, clean: false });
    }

    fn silence_ms(&mut self) -> u64 {
        if self.rng.percent(50) { self.rng.below(500) } else { self.rng.below(SILENCE_MS) }
    }

    /// All that is open now.
    pub(crate) fn open_conns(&self) -> Vec<ConnId> {
        (0..self.conns.len()).filter(|id| self.conns[*id].near_is_open || self.conns[*id].far == Far::Open).collect()
    }
}
