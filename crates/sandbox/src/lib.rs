//! The room where other people's programs run: the cage process, and the worker's end of the socket that speaks to it.
//!
//! Called by the worker (`Cage`, `Start`, `Event`, `RoomFolder`, `verdict`, `remove_tree`) and by the binary's `supervise` module,
//! which starts the same executable a second time and hands one end of `socket_pair` to `run_cage`. It calls nobody of
//! ours.
//!
//! ```text
//!   worker   tokio, many threads, holds secrets                                                          client
//!     │ SOCK_SEQPACKET socketpair: requests and stdio descriptors down, events up                  protocol, wire
//!     ▼
//!   cage     one thread, small; polls sockets, signals, deadlines, tick                       cage, program, pool
//!     │ fork, one init per program that runs at once; a socket to each              launch, post, report
//!     ▼
//!   init     subreaper; one program after the other: captures output, reaps, counts CPU, kills what is left  init
//!     │ vfork, exec
//!     ▼
//!   program  and whatever it starts: own sessions, double forks, stopped children              tree, meter, proc
//! ```
//!
//! A program runs on the host, as the worker's user and without walls, or in a *room*: an init in namespaces of its own, made
//! ahead, used for the phases of one attempt and thrown away.
//!
//! ```text
//!   cage ── clone: user, pid namespaces ─► room ─ other namespaces, root, /proc, one tmpfs, no privileges, filter
//!    │   ◄── ready, with the folder of /box ──┘ │ init of the room, which serves like any other              room
//!    │                                          │ vfork, limits, Landlock, exec                              walls
//!   worker ── files in, files out, by that descriptor only ─► /box                                        tree_fd
//! ```
//!
//! A program that is captured and over within some milliseconds costs one message down and one up on each of the two
//! sockets, a vfork and two pipes: no fork, no descriptor that travels, nothing for the worker to read.
//!
//! What is always true:
//! - The worker never forks a program itself: the cage is small and has one thread, so a fork is cheap and safe, and
//!   the worker's secrets are never in the memory that is forked. An init serves programs of one worker only, and the
//!   next one begins when nothing of the one before is alive.
//! - Whoever dies first takes the programs along: the worker (socket closes), the cage (init's parent-death signal), an
//!   init (its orphans fall to the cage, which kills them), the program (init kills the rest of its tree).
//! - When `Event::Ended` is sent, no process of that program is alive.
//! - What a program in a room can reach is listed in `blueprint`; nothing that it leaves behind is opened by a path. A room
//!   serves one attempt and is never cleaned for another.
//! - All unsafe code is in `sys`.
//!
//! Deliberately not here: cgroups and limits of CPU and memory (they join behind the same messages: `room::map_users` is the
//! place where a room would join a group, `meter` the place that reads it), languages, words of the hub, tokio, and any
//! system but Linux. Without a room a program of the same user is not *kept* from harming the cage; what is promised then is
//! that one which does not aim at the cage leaves nothing behind. A room does not protect from holes in the kernel.

mod blueprint;
mod cage;
mod capabilities;
mod client;
mod clock;
mod error;
mod folder;
mod init;
mod launch;
mod limits;
mod meter;
mod pool;
mod post;
mod proc;
mod program;
mod protocol;
mod report;
mod room;
mod sys;
mod tree;
mod tree_fd;
pub mod verdict;
mod walls;
mod wire;

pub use cage::run_cage;
pub use capabilities::{Capabilities, Cgroups, Finding, Lack, capabilities};
pub use client::{Cage, Order, Stdio3};
pub use error::CageError;
pub use folder::remove_tree;
pub use limits::{EXTRA_PLACES_MAX, KNOWN_MAX, MESSAGE_BYTES_MAX, OWNED_FOLDERS_MAX, PROGRAMS_MAX, ROOMS_READY_MAX};
pub use protocol::{
    Capture, Event, Evidence, Isolation, Limits, OutputPipes, Printed, ProgramId, RoomId, RoomPlan, Start, Stop,
};
pub use tree_fd::{Found, RoomFolder, TreeError};
pub use wire::socket_pair;
