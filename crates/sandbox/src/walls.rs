//! The walls of a room beside its namespaces: privileges, forbidden system calls, Landlock.
//!
//! `cage` prepares the filter once; `room` drops privileges and puts the filter up before the first program, so that every
//! program is born behind it; the Landlock rules are prepared there too and put up by each program-to-be (`init`), which
//! keeps init itself on the other side.
//!
//! What is always true: nothing here is taken back; a program gains no privilege by any file (`no_new_privs`, no mount
//! with setuid). What a kernel does not have is left out and said (`missing` of the room).
//!
//! Deliberately not here: namespaces and mounts (`room`), and limits of one program (`init`).

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
    Scope, path_beneath_rules,
};
use rustix::io::Errno;
use rustix::process::DumpableBehavior;
use rustix::thread::{CapabilitiesSecureBits, CapabilitySet, CapabilitySets};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

/// The newest rules that we know; older kernels take what they know of them.
const LANDLOCK: ABI = ABI::V6;

/// Where a program may write.
const WRITABLE: [&str; 3] = ["/box", "/tmp", "/dev/shm"];

/// Devices that it may write to.
const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

/// Calls that no program of a room may make; they give EPERM. What they have in common: they are about the machine, about
/// other processes, or they are large parts of the kernel that programs of this kind do not need.
const FORBIDDEN: &[i64] = &[
    // Mounts and namespaces. clone's flags are looked at below.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    STATMOUNT,
    LISTMOUNT,
    OPEN_TREE_ATTR,
    libc::SYS_unshare,
    libc::SYS_setns,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // Keys: no namespace keeps them apart.
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    // Large, and often broken.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_fanotify_init,
    libc::SYS_fanotify_mark,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
    // Files by their handle, past all folders.
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    // The machine.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_reboot,
    libc::SYS_syslog,
    libc::SYS_acct,
    libc::SYS_vhangup,
    libc::SYS_clock_settime,
    libc::SYS_settimeofday,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    // Where memory is.
    libc::SYS_mbind,
    libc::SYS_set_mempolicy,
    SET_MEMPOLICY_HOME_NODE,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
];

/// Those that one processor only has.
#[cfg(target_arch = "x86_64")]
const FORBIDDEN_HERE: &[i64] = &[
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_uselib,
    libc::SYS_ustat,
    libc::SYS_sysfs,
    libc::SYS__sysctl,
];
#[cfg(not(target_arch = "x86_64"))]
const FORBIDDEN_HERE: &[i64] = &[];

/// Numbers that libc does not name yet, the same on every machine.
const SET_MEMPOLICY_HOME_NODE: i64 = 450;
const STATMOUNT: i64 = 457;
const LISTMOUNT: i64 = 458;
const OPEN_TREE_ATTR: i64 = 467;

/// Flags of clone that make namespaces. `CLONE_NEWTIME` cannot be given to clone.
const NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
];

/// Requests to a terminal that put words into the mouth of whoever sits at it.
const TIOCSTI: u64 = 0x5412;
const TIOCLINUX: u64 = 0x541c;

/// The filter, ready to be put up.
pub(crate) struct Filter(BpfProgram);

impl Filter {
    /// `None`: this processor is not known to us.
    pub(crate) fn new() -> Option<Filter> {
        // The table cannot be wrong without the test below noticing.
        let judged = judged_by_arguments().ok()?;
        Some(Filter([prologue(), search(), judged].concat()))
    }

    /// Puts it up for this process and all that come from it.
    ///
    /// # Errors
    /// The kernel has no filters.
    pub(crate) fn put_up(&self) -> Result<(), Errno> {
        seccompiler::apply_filter(&self.0).map_err(|_| Errno::NOSYS)
    }
}

const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;
const ALLOW: u32 = 0x7fff_0000;
const KILL: u32 = 0x8000_0000;
/// With the error number below.
const REFUSE: u32 = 0x0005_0000;

fn step(code: u16, jt: usize, jf: usize, k: u32) -> sock_filter {
    // What is skipped is a few steps; a longer way is a mistake that the kernel would refuse, and the test below.
    let short = |count| u8::try_from(count).unwrap_or(u8::MAX);
    sock_filter { code, jt: short(jt), jf: short(jf), k }
}

/// What no list can judge comes first: calls in the way of another processor, or of x32, whose numbers mean other calls,
/// kill; clone3, whose flags are in memory and cannot be seen, is said not to exist, and libc takes clone.
fn prologue() -> BpfProgram {
    /// Bits of x32's numbers; no other processor has numbers so large.
    const X32: u32 = 0x4000_0000;
    let clone3 = u32::try_from(libc::SYS_clone3).unwrap_or(u32::MAX);
    vec![
        step(LOAD, 0, 0, 4),
        step(JUMP_EQUAL, 1, 0, OUR_ARCH),
        step(RETURN, 0, 0, KILL),
        step(LOAD, 0, 0, 0),
        step(JUMP_AT_LEAST, 0, 1, X32),
        step(RETURN, 0, 0, KILL),
        step(JUMP_EQUAL, 0, 1, clone3),
        step(RETURN, 0, 0, REFUSE | libc::ENOSYS.cast_unsigned()),
    ]
}

/// Finds the number of the call in a sorted list, by halves. When a filter is put up the kernel plays it once for every
/// number that there is; one step for each forbidden call took longer than all mounts of a room. What is to be judged by its
/// arguments leaves at the end.
fn search() -> BpfProgram {
    let numbers = |calls: &[i64]| calls.iter().filter_map(|call| u32::try_from(*call).ok()).collect::<Vec<u32>>();
    let mut calls: Vec<(u32, bool)> = numbers(FORBIDDEN).into_iter().map(|call| (call, false)).collect();
    calls.extend(numbers(FORBIDDEN_HERE).into_iter().map(|call| (call, false)));
    calls.extend(numbers(&JUDGED).into_iter().map(|call| (call, true)));
    calls.sort_unstable();
    let mut program = search_in(&calls);
    let count = program.len();
    for (place, step) in program.iter_mut().enumerate().filter(|(_, step)| step.code == JUMP) {
        step.k = u32::try_from(count - place - 1).unwrap_or(u32::MAX);
    }
    program
}

/// Every way through what this gives ends in it, or in a jump that is to be pointed to the end.
fn search_in(calls: &[(u32, bool)]) -> BpfProgram {
    /// So few are looked at one by one.
    const FEW: usize = 3;
    if calls.len() > FEW {
        let (left, right) = calls.split_at(calls.len() / 2);
        let (less, at_least) = (search_in(left), search_in(right));
        return [vec![step(JUMP_AT_LEAST, less.len(), 0, right[0].0)], less, at_least].concat();
    }
    let mut program = Vec::new();
    for (call, is_judged) in calls {
        program.push(step(JUMP_EQUAL, 0, 1, *call));
        program.push(match is_judged {
            true => step(JUMP, 0, 0, 0),
            false => step(RETURN, 0, 0, REFUSE | libc::EPERM.cast_unsigned()),
        });
    }
    program.push(step(RETURN, 0, 0, ALLOW));
    program
}

#[cfg(target_arch = "x86_64")]
const OUR_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const OUR_ARCH: u32 = 0xc000_00b7;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const OUR_ARCH: u32 = 0;

/// Calls that some arguments make a forbidden one.
const JUDGED: [i64; 4] = [libc::SYS_clone, libc::SYS_socket, libc::SYS_socketpair, libc::SYS_ioctl];

/// The rules for these.
fn judged_by_arguments() -> Result<BpfProgram, seccompiler::Error> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let when = |argument, operator, value| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value).map_err(seccompiler::Error::from)
    };
    let rule = |conditions| SeccompRule::new(conditions).map_err(seccompiler::Error::from);
    let mut clone = Vec::new();
    for flag in NAMESPACES {
        let flag = u64::from(flag.cast_unsigned());
        clone.push(rule(vec![when(0, SeccompCmpOp::MaskedEq(flag), flag)?])?);
    }
    rules.insert(libc::SYS_clone, clone);
    let other_than = |families: &[i32]| {
        let families = families.iter().map(|family| when(0, SeccompCmpOp::Ne, u64::from(family.cast_unsigned())));
        rule(families.collect::<Result<_, _>>()?)
    };
    rules.insert(libc::SYS_socket, vec![other_than(&[libc::AF_UNIX, libc::AF_INET, libc::AF_INET6])?]);
    rules.insert(libc::SYS_socketpair, vec![other_than(&[libc::AF_UNIX])?]);
    let requests = [TIOCSTI, TIOCLINUX].map(|request| rule(vec![when(1, SeccompCmpOp::Eq, request)?]));
    rules.insert(libc::SYS_ioctl, requests.into_iter().collect::<Result<_, seccompiler::Error>>()?);
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let refuse = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch)?.try_into()?)
}

/// The Landlock rules of a room, made within its root. `None`: the kernel has no Landlock.
///
/// # Errors
/// A rule cannot be made, which is a bug.
pub(crate) fn landlock_rules() -> Result<Option<OwnedFd>, RulesetError> {
    let read = AccessFs::from_read(LANDLOCK);
    // Devices cannot be made in a room anyway.
    let write = AccessFs::from_all(LANDLOCK) & !(AccessFs::MakeChar | AccessFs::MakeBlock);
    let rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::ConnectTcp)?
        .scope(Scope::AbstractUnixSocket | Scope::Signal)?
        .create()?
        .add_rules(path_beneath_rules(["/"], read))?
        .add_rules(path_beneath_rules(WRITABLE, write))?
        .add_rules(path_beneath_rules(DEVICES, read | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev))?;
    Ok(rules.into())
}

/// Gives up, for good, every privilege that this process has in its namespaces, and the way to any other. Other processes
/// of the same user cannot look into it afterwards.
///
/// # Errors
/// The kernel refuses, which it has no reason to.
pub(crate) fn drop_privileges() -> Result<(), Errno> {
    let locked = CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::NO_SETUID_FIXUP
        | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
        | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
    rustix::thread::set_capabilities_secure_bits(locked)?;
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // That was the last one that this kernel knows.
            Err(Errno::INVAL) => break,
            removed => removed?,
        }
    }
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    rustix::thread::set_no_new_privs(true)?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the search says of a call: the value that it returns, or `None` when it leaves at the end.
    fn found(program: &[sock_filter], call: u32) -> (Option<u32>, usize) {
        let (mut place, mut steps) = (0, 0);
        while let Some(step) = program.get(place) {
            steps += 1;
            let jump = |is: bool| usize::from(if is { step.jt } else { step.jf });
            place += 1 + match step.code {
                RETURN => return (Some(step.k), steps),
                JUMP => step.k as usize,
                JUMP_EQUAL => jump(call == step.k),
                JUMP_AT_LEAST => jump(call >= step.k),
                other => panic!("{other}"),
            };
        }
        assert_eq!(place, program.len());
        (None, steps)
    }

    /// Is every number found for what it is, in few steps? Whether the kernel thinks so too, the tests of rooms find out with
    /// real programs.
    #[test]
    fn search_is_exact() {
        let program = search();
        for call in (0..1000).chain([u32::MAX]) {
            let (verdict, steps) = found(&program, call);
            let expected = match i64::from(call) {
                call if JUDGED.contains(&call) => None,
                call if FORBIDDEN.contains(&call) || FORBIDDEN_HERE.contains(&call) => Some(REFUSE | 1),
                _ => Some(ALLOW),
            };
            assert_eq!(verdict, expected, "{call}");
            assert!(steps < 16, "{steps}");
        }
    }

    /// Can the whole be made?
    #[test]
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    fn filter_is_made() {
        let Filter(program) = Filter::new().unwrap();
        assert!((100..1000).contains(&program.len()), "{}", program.len());
    }

    /// Is no call forbidden twice, or without a number?
    #[test]
    fn table_is_a_set() {
        let all: Vec<i64> = FORBIDDEN.iter().chain(FORBIDDEN_HERE).copied().collect();
        let set: std::collections::BTreeSet<i64> = all.iter().copied().collect();
        assert!(
            set.len() == all.len() && JUDGED.iter().all(|call| !set.contains(call)) && set.iter().all(|call| *call > 0)
        );
    }
}
