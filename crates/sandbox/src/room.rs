//! A room: an init with walls around it, in namespaces of its own, for the phases of one attempt.
//!
//! `spawn` is called by `cage`; everything else runs in the new process, which becomes an `Init` when the walls stand.
//!
//! ```text
//!   cage ── clone: user and pid namespaces ─► room, pid 1
//!    │ writes the map of users                 │ other namespaces; takes hold of what is shown of the host
//!    └── one word: go ───────────────────────► │ becomes user 1000
//!                                              │ root on a tmpfs, read-only; /proc; ONE tmpfs at /box, /tmp, /dev/shm
//!                                              │ pivot_root; the host's mounts are gone
//!                                              │ privileges dropped, filter put up
//!   cage ◄── Report::Ready, with the folder of /box ── waits for blocks (init)
//! ```
//!
//! What is always true:
//! - The room's first process is its init: who kills it kills everything in the room, whatever it does, and the kernel says
//!   that it is gone only when all of it is gone. It dies with the cage.
//! - A room's user is user 1000 in it. Outside that is the cage's own user, or, if the cage is root, a number that nobody
//!   else has: a program that got out of all mounts would find no file that is its own. Groups of the cage are given up
//!   where the kernel lets us (as root); elsewhere they stay, and there is nothing in a room that a group opens.
//! - What is shown of the host is taken hold of while the process is still the cage's user, for that one may enter the
//!   folders above it.
//! - Nothing of a room is on a disk, and nothing is left to remove: its mounts go with its last process, and with the
//!   descriptor of its folder.
//! - The new /proc is mounted before the old one is out of sight: the kernel wants that.
//!
//! Deliberately not here: what is shown (`blueprint`), which calls are forbidden (`walls`), when rooms are made (`cage`),
//! CPU and memory of a room (`meter`; a cgroup would be joined where the map of users is written).

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree, unmount,
};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::process::{PidfdFlags, Resource, Rlimit, Signal};
use rustix::thread::{Gid, Uid};
use rustix::time::Timespec;

use crate::blueprint::{Piece, Shown};
use crate::init::{Handle, Init};
use crate::limits::{ROOM_ROOT_BYTES, ROOM_ROOT_FILES, ROOM_USER_FIRST, ROOM_USERS};
use crate::proc::{Proc, RawPid};
use crate::protocol::Step;
use crate::report::{Failure, Missing, Report};
use crate::sys;
use crate::walls::{self, Filter};
use crate::wire::{self, Packet};

/// The user and group that a program is in its room.
const USER: u32 = 1000;

/// What a room calls its machine.
const HOST_NAME: &[u8] = b"room";

/// How rooms of one cage are made; the same for all.
pub(crate) struct Plan {
    pub(crate) pieces: Vec<Piece>,
    /// Of the tmpfs that a program writes to.
    pub(crate) size_bytes: u64,
    pub(crate) files_max: u64,
    /// `None`: this processor has no filter.
    pub(crate) filter: Option<Filter>,
}

/// The user that the `count`th room of this cage is outside. `None`: the cage's own.
pub(crate) fn user_outside(count: u32) -> Option<u32> {
    let is_root = rustix::process::geteuid().is_root();
    // Rooms of two cages of one machine begin at different places.
    let place = rustix::process::getpid().as_raw_pid().cast_unsigned().wrapping_mul(4096).wrapping_add(count);
    is_root.then_some(ROOM_USER_FIRST + place % ROOM_USERS)
}

/// Begins to make a room. It reports when it is ready, or why it cannot be.
///
/// # Errors
/// The step that failed; nothing of it is left.
pub(crate) fn spawn(proc: &Proc, plan: &Plan, user: Option<u32>) -> Result<Handle, Failure> {
    let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let (socket, theirs) = pair.map_err(at(Step::Pipe))?;
    let own = rustix::process::getpid();
    let cage = rustix::process::pidfd_open(own, PidfdFlags::empty()).map_err(at(Step::Init))?;
    let pid = sys::fork_into(libc::CLONE_NEWUSER | libc::CLONE_NEWPID, move || {
        Room { plan, user, socket: theirs, cage }.live()
    });
    let handle = Handle { pid: pid.map_err(at(Step::Namespaces))?, socket };
    let told = map_users(proc, handle.pid.as_raw_pid(), user)
        .and_then(|()| wire::send(handle.socket.as_fd(), &[b"go"], &[], SendFlags::DONTWAIT));
    // Without the word it leaves by itself: the socket is closed with the handle.
    told.map_err(at(Step::Users))?;
    Ok(handle)
}

/// Says who user 1000 of a room is outside.
fn map_users(proc: &Proc, pid: RawPid, user: Option<u32>) -> Result<(), Errno> {
    let (uid, gid) = match user {
        Some(user) => (user, user),
        None => {
            // The kernel's condition for who is not root.
            proc.write(pid, "setgroups", "deny")?;
            (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
        }
    };
    proc.write(pid, "uid_map", &format!("{USER} {uid} 1"))?;
    proc.write(pid, "gid_map", &format!("{USER} {gid} 1"))
}

fn at(step: Step) -> impl Fn(Errno) -> Failure {
    move |error| Failure::new(step, error)
}

/// Inside the new process.
struct Room<'a> {
    plan: &'a Plan,
    user: Option<u32>,
    socket: OwnedFd,
    /// The cage's process, to see whether it is alive.
    cage: OwnedFd,
}

/// What of the host is shown, held but not placed yet.
type Held<'a> = Vec<(OwnedFd, &'a CStr, Shown)>;

impl Room<'_> {
    /// The whole life of a room; returns its exit code, which nobody reads.
    fn live(self) -> u8 {
        match self.build() {
            Ok((missing, folder, rules)) => {
                let report = Report::Ready { missing }.to_bytes();
                let sent = wire::send(self.socket.as_fd(), &[&report], &[folder.as_fd()], SendFlags::empty());
                drop(folder);
                drop(self.cage);
                if sent.is_err() { 1 } else { Init::in_room(self.socket, rules).run() }
            }
            Err(failure) => {
                // Nobody to hear it: then nobody misses it.
                let _ =
                    wire::send(self.socket.as_fd(), &[&Report::Failed(failure).to_bytes()], &[], SendFlags::empty());
                1
            }
        }
    }

    /// Everything that has to be there before the first program. Gives the folder of /box, and the Landlock rules.
    fn build(&self) -> Result<(Missing, OwnedFd, Option<OwnedFd>), Failure> {
        rustix::thread::set_name(c"essaim-room").map_err(at(Step::Init))?;
        sys::close_all_except(&[self.socket.as_fd(), self.cage.as_fd()]);
        // So that no other descriptor gets these numbers.
        take_null_streams().map_err(at(Step::Stdio))?;
        sys::restore_dispositions();
        rustix::process::umask(Mode::empty());
        sys::unshare(
            libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWCGROUP,
        )
        .map_err(at(Step::Namespaces))?;
        let held = self.take_hold().map_err(at(Step::Mounts))?;
        self.become_user()?;
        let mut missing = Missing::default();
        let folder = self.build_root(held, &mut missing)?;
        rustix::system::sethostname(HOST_NAME).map_err(at(Step::Namespaces))?;
        // The first ones belong to the host's tree, which would live as long as they do.
        take_null_streams().map_err(at(Step::Stdio))?;
        let none = Rlimit { current: Some(0), maximum: Some(0) };
        rustix::process::setrlimit(Resource::Core, none).map_err(at(Step::Limits))?;
        walls::drop_privileges().map_err(at(Step::Walls))?;
        let rules = walls::landlock_rules().map_err(|_| Failure::new(Step::Walls, Errno::INVAL))?;
        missing.landlock = rules.is_none();
        missing.seccomp = match &self.plan.filter {
            Some(filter) => filter.put_up().is_err(),
            None => true,
        };
        rustix::process::umask(Mode::from_raw_mode(0o022));
        Ok((missing, folder, rules))
    }

    /// Takes hold of what is shown, in a copy of the host's mounts that can only be read. What is not there any more, or
    /// may not be seen by the cage's user, is left out.
    fn take_hold(&self) -> Result<Held<'_>, Errno> {
        let mut held = Vec::with_capacity(self.plan.pieces.len());
        for piece in &self.plan.pieces {
            let Piece::Shown(path, name, kind) = piece else { continue };
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_RECURSIVE
                | OpenTreeFlags::AT_NO_AUTOMOUNT;
            let mount = match open_tree(CWD, path.as_c_str(), flags) {
                Err(Errno::NOENT | Errno::ACCESS | Errno::NOTDIR) => continue,
                mount => mount?,
            };
            let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOSUID;
            let more = match kind {
                Shown::Device => MountAttrFlags::MOUNT_ATTR_NOEXEC,
                Shown::Folder | Shown::File => MountAttrFlags::MOUNT_ATTR_NODEV,
            };
            sys::restrict_mount(mount.as_fd(), u64::from((read_only | more).bits()), true)?;
            held.push((mount, name.as_c_str(), *kind));
        }
        Ok(held)
    }

    /// Becomes user 1000 as soon as the cage has said who that is, and binds its life to the cage's.
    fn become_user(&self) -> Result<(), Failure> {
        match wire::receive(self.socket.as_fd(), &mut [0; 8], RecvFlags::empty()) {
            Ok(Packet::Whole(..)) => {}
            _ => return Err(Failure::new(Step::Users, Errno::PIPE)),
        }
        if self.user.is_some() {
            rustix::thread::set_thread_groups(&[]).map_err(at(Step::Users))?;
        }
        let (user, group) = (Uid::from_raw(USER), Gid::from_raw(USER));
        rustix::thread::set_thread_res_gid(group, group, group).map_err(at(Step::Users))?;
        rustix::thread::set_thread_res_uid(user, user, user).map_err(at(Step::Users))?;
        // A change of user takes this back, so it comes after. The cage may have died before.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(at(Step::Init))?;
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut cage = [PollFd::new(&self.cage, PollFlags::IN)];
        match rustix::event::poll(&mut cage, Some(&now)) {
            Ok(0) => Ok(()),
            Ok(_) => Err(Failure::new(Step::Init, Errno::SRCH)),
            Err(error) => Err(Failure::new(Step::Init, error)),
        }
    }

    /// Builds the new root, moves into it and lets go of the old one. Gives the folder of /box.
    fn build_root(&self, held: Held<'_>, missing: &mut Missing) -> Result<OwnedFd, Failure> {
        let mounts = at(Step::Mounts);
        let root = tmpfs(ROOM_ROOT_BYTES, ROOM_ROOT_FILES, c"755").map_err(&mounts)?;
        // Any folder will do: what is shown is held already, and nobody else sees this.
        place(&root, CWD, c"/tmp").or_else(|_| place(&root, CWD, c"/usr")).map_err(&mounts)?;
        self.build_pieces(&root).map_err(&mounts)?;
        for (mount, name, kind) in held {
            match kind {
                Shown::Folder => rustix::fs::mkdirat(&root, name, Mode::from_raw_mode(0o755)).map_err(&mounts)?,
                Shown::File | Shown::Device => drop(create(&root, name).map_err(&mounts)?),
            }
            place(&mount, &root, name).map_err(&mounts)?;
        }
        match processes() {
            Ok((proc, is_whole)) => {
                place(&proc, &root, c"proc").map_err(at(Step::Proc))?;
                missing.proc_limits = is_whole;
            }
            Err(_) => missing.proc = true,
        }
        let folder = self.build_writable(&root).map_err(&mounts)?;
        let flags = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        sys::restrict_mount(root.as_fd(), u64::from(flags.bits()), false).map_err(&mounts)?;
        rustix::process::fchdir(&root).map_err(&mounts)?;
        rustix::process::pivot_root(c".", c".").map_err(&mounts)?;
        // The old root lies over the new one now.
        unmount(c".", UnmountFlags::DETACH).map_err(&mounts)?;
        rustix::process::chdir(c"/").map_err(&mounts)?;
        Ok(folder)
    }

    fn build_pieces(&self, root: &OwnedFd) -> Result<(), Errno> {
        for piece in &self.plan.pieces {
            match piece {
                Piece::Folder(name) => {
                    rustix::fs::mkdirat(root, name.as_c_str(), Mode::from_raw_mode(0o755))?;
                }
                Piece::Link(name, to) => rustix::fs::symlinkat(to.as_c_str(), root, name.as_c_str())?,
                Piece::File(name, bytes) => {
                    rustix::io::write(create(root, name)?, bytes)?;
                }
                Piece::Shown(..) => {}
            }
        }
        Ok(())
    }

    /// The one tmpfs of the program, of which three folders are bound, so that one limit is for all. Its own root lies
    /// below /box, where nobody gets to.
    fn build_writable(&self, root: &OwnedFd) -> Result<OwnedFd, Errno> {
        let all = tmpfs(self.plan.size_bytes, self.plan.files_max, c"700")?;
        place(&all, root, c"box")?;
        for (name, at, mode) in [(c"tmp", c"tmp", 0o1777), (c"shm", c"dev/shm", 0o1777), (c"box", c"box", 0o755)] {
            rustix::fs::mkdirat(&all, name, Mode::from_raw_mode(mode))?;
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            place(&open_tree(&all, name, flags)?, root, at)?;
        }
        rustix::fs::openat(&all, c"box", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
    }
}

/// Makes /dev/null the three standard streams of this process.
fn take_null_streams() -> Result<(), Errno> {
    for (number, flags) in [(0, OFlags::RDONLY), (1, OFlags::WRONLY), (2, OFlags::WRONLY)] {
        sys::keep_as(rustix::fs::open(c"/dev/null", flags, Mode::empty())?, number)?;
    }
    Ok(())
}

/// A new tmpfs that is nowhere yet.
fn tmpfs(size_bytes: u64, files_max: u64, mode: &CStr) -> Result<OwnedFd, Errno> {
    let context = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, c"size", size_bytes.to_string())?;
    fsconfig_set_string(&context, c"nr_inodes", files_max.to_string())?;
    fsconfig_set_string(&context, c"mode", mode)?;
    fsconfig_create(&context)?;
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)
}

/// A new /proc that is nowhere yet, and whether it shows more than processes because the kernel cannot do with less. System calls only: it is tried in children that share memory.
pub(crate) fn processes() -> Result<(OwnedFd, bool), Errno> {
    let context = fsopen(c"proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let limited = fsconfig_set_string(&context, c"subset", c"pid")
        .and_then(|()| fsconfig_set_string(&context, c"hidepid", c"invisible"));
    let context = match limited {
        Ok(()) => context,
        // Before Linux 5.8. A context that has refused something is used up.
        Err(_) => fsopen(c"proc", FsOpenFlags::FSOPEN_CLOEXEC)?,
    };
    fsconfig_create(&context)?;
    let flags =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok((fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)?, limited.is_err()))
}

/// Puts a mount that is nowhere yet at a name.
fn place(mount: &OwnedFd, folder: impl AsFd, name: &CStr) -> Result<(), Errno> {
    move_mount(mount, c"", folder.as_fd(), name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// An empty file that everybody may read.
fn create(folder: &OwnedFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    rustix::fs::openat(folder, name, flags, Mode::from_raw_mode(0o444))
}
