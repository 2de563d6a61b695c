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
        deny_list().ok().map(|rules| Filter([prologue(), rules].concat()))
    }

    /// Puts it up for this process and all that come from it.
    ///
    /// # Errors
    /// The kernel has no filters.
    pub(crate) fn put_up(&self) -> Result<(), Errno> {
        seccompiler::apply_filter(&self.0).map_err(|_| Errno::NOSYS)
    }
}

/// Whether the kernel refuses what the filter cannot judge. A number of another way to call is not in the list, so these
/// come first: a foreign processor's call and x32's kill; clone3, whose flags are in memory and cannot be seen, is said not
/// to exist, and libc takes clone.
fn prologue() -> BpfProgram {
    const LOAD: u16 = 0x20;
    const JUMP_EQUAL: u16 = 0x15;
    const JUMP_AT_LEAST: u16 = 0x35;
    const RETURN: u16 = 0x06;
    /// Bits of x32's numbers; no other processor has numbers so large.
    const X32: u32 = 0x4000_0000;
    let clone3 = u32::try_from(libc::SYS_clone3).unwrap_or(u32::MAX);
    let no_such_call = 0x0005_0000 | libc::ENOSYS.cast_unsigned();
    let step = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    vec![
        step(LOAD, 0, 0, 4),
        step(JUMP_EQUAL, 1, 0, OUR_ARCH),
        step(RETURN, 0, 0, 0x8000_0000),
        step(LOAD, 0, 0, 0),
        step(JUMP_AT_LEAST, 0, 1, X32),
        step(RETURN, 0, 0, 0x8000_0000),
        step(JUMP_EQUAL, 0, 1, clone3),
        step(RETURN, 0, 0, no_such_call),
    ]
}

#[cfg(target_arch = "x86_64")]
const OUR_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const OUR_ARCH: u32 = 0xc000_00b7;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const OUR_ARCH: u32 = 0;

fn deny_list() -> Result<BpfProgram, seccompiler::Error> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in FORBIDDEN.iter().chain(FORBIDDEN_HERE) {
        rules.insert(*call, Vec::new());
    }
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

    /// Can the filter be made, and does it fit the kernel's limit? Whether it refuses what it should, the tests of rooms
    /// find out with real programs.
    #[test]
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    fn filter_is_made() {
        let Filter(program) = Filter::new().unwrap();
        assert!((100..4096).contains(&program.len()), "{}", program.len());
    }

    /// Is no call forbidden twice, or without a number?
    #[test]
    fn table_is_a_set() {
        let all: Vec<i64> = FORBIDDEN.iter().chain(FORBIDDEN_HERE).copied().collect();
        let set: std::collections::BTreeSet<i64> = all.iter().copied().collect();
        assert!(set.len() == all.len() && !set.contains(&libc::SYS_clone) && set.iter().all(|call| *call > 0));
    }
}
