//! All unsafe code of essaim: the few system calls that `rustix` does not offer, each behind a safe function.
//!
//! Used by `cage`, `init`, `room`, `proc` and those who look at what a machine can do. Everything that rustix offers (prctl, pidfd, dup, chdir, sockets, poll) is called
//! there directly.
//!
//! What is always true:
//! - `fork`, `vfork` and the signal functions are called by a process with one thread (`run_cage` refuses any other), so
//!   the child may use the heap and no lock can be held by a thread that the child does not have.
//! - A child never returns into the caller's frames: it ends by exec or `_exit`, also when it panics.
//! - What exec needs was made before the child (`ExecImage`), so that an invalid argument is found while there is still
//!   someone to tell.
//!
//! Deliberately not here: decisions. A function is one call, or the few that only make sense together.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::Pid;

/// Exit code of a forked child that panicked. Nobody reads it; it is seen in `strace` only.
const PANICKED: u8 = 101;

/// Size of a `Stack`.
const STACK_BYTES: usize = 128 * 1024;

/// Runs `child` in a new process, which exits with what it returns. In the parent, `child` is dropped, and with it the
/// file descriptors that it owned.
///
/// # Errors
/// EAGAIN or ENOMEM: too many processes or no memory.
pub(crate) fn fork(child: impl FnOnce() -> u8) -> Result<Pid, Errno> {
    // SAFETY: this process has one thread (see the header), so the child's copy of memory is consistent and fork's
    // restriction to async-signal-safe functions, which is about threads, does not apply.
    let forked = unsafe { libc::fork() };
    if forked == 0 {
        let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(PANICKED);
        // SAFETY: _exit has no preconditions; it ends the child without running the parent's atexit handlers.
        unsafe { libc::_exit(i32::from(code)) }
    }
    Pid::from_raw(forked).filter(|_| forked > 0).ok_or_else(last_errno)
}

/// As `fork`, into new namespaces: `flags` are those of clone(2), `CLONE_NEW…` only. The parent gets the child's number in
/// its own namespace.
///
/// # Errors
/// As `fork`; EPERM, EINVAL or ENOSPC: this machine, or this user, may not make such namespaces.
pub(crate) fn fork_into(flags: i32, child: impl FnOnce() -> u8) -> Result<Pid, Errno> {
    // The first version of the kernel's `clone_args`: flags, four numbers that we leave out, the signal at the end, and two
    // more. All zeroes would be valid: no stack of its own, no memory that the kernel writes to.
    let (flags, signal) = (u64::from(flags.cast_unsigned()), u64::from(libc::SIGCHLD.cast_unsigned()));
    let arguments: [u64; 8] = [flags, 0, 0, 0, signal, 0, 0, 0];
    // SAFETY: without CLONE_VM this is fork. What libc's fork does beside it is for threads (this process has one) and
    // for the number of the thread that libc keeps, which nothing here asks for.
    let forked = unsafe { libc::syscall(libc::SYS_clone3, arguments.as_ptr(), size_of_val(&arguments)) };
    if forked == 0 {
        let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(PANICKED);
        // SAFETY: as in `fork`.
        unsafe { libc::_exit(i32::from(code)) }
    }
    i32::try_from(forked).ok().filter(|_| forked > 0).and_then(Pid::from_raw).ok_or_else(last_errno)
}

/// Moves this process, which has one thread, into new namespaces. `flags` as for `fork_into`.
///
/// # Errors
/// As `fork_into`.
pub(crate) fn unshare(flags: i32) -> Result<(), Errno> {
    // SAFETY: without CLONE_FILES and CLONE_FS, which nobody passes, no memory or descriptor of ours changes its meaning.
    if unsafe { libc::unshare(flags) } < 0 { Err(last_errno()) } else { Ok(()) }
}

/// The memory on which the child of a `vfork` runs until it calls exec.
pub(crate) struct Stack(Vec<u128>);

impl Stack {
    /// Room for what happens between start and exec: a few frames and system calls, and a panic's message.
    pub(crate) fn new() -> Stack {
        Stack(vec![0; STACK_BYTES / size_of::<u128>()])
    }
}

/// A child that borrows this process's memory and holds this process up until it called exec or exited: no page is
/// copied, whatever the size of this process. What `child` wrote is seen here afterwards.
///
/// # Errors
/// EAGAIN or ENOMEM: too many processes or no memory.
pub(crate) fn vfork<F: FnMut() -> u8>(stack: &mut Stack, mut child: F) -> Result<Pid, Errno> {
    extern "C" fn run<F: FnMut() -> u8>(child: *mut c_void) -> c_int {
        // SAFETY: the pointer is to the closure below, which nobody else uses until the child is gone.
        let child = unsafe { &mut *child.cast::<F>() };
        let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(PANICKED);
        // SAFETY: _exit has no preconditions; it ends the child alone.
        unsafe { libc::_exit(i32::from(code)) }
    }
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the child has a stack of its own, whose end is aligned as every ABI wants it. This process has one thread
    // and sleeps until the child has left its memory, so nothing is used by two at once. All signals are blocked and no
    // handler is installed, so nothing else runs in the child. File descriptors, signals and folder are copies.
    let pid = unsafe { libc::clone(run::<F>, stack.0.as_mut_ptr_range().end.cast(), flags, (&raw mut child).cast()) };
    Pid::from_raw(pid).filter(|_| pid > 0).ok_or_else(last_errno)
}

/// Runs `attempt` in a child that is in new namespaces (`flags` as for `fork_into`), has every privilege there, and shares
/// the memory of the caller, who may have other threads: `attempt` makes system calls and writes what it borrows, and nothing
/// else, no allocation above all.
///
/// # Errors
/// As `fork_into`; then it did not run.
pub(crate) fn try_in_namespaces<F: FnMut()>(flags: i32, attempt: &mut F) -> Result<(), Errno> {
    extern "C" fn run<F: FnMut()>(attempt: *mut c_void) -> c_int {
        // SAFETY: the pointer is to the caller's closure, which nobody else uses until the child is gone.
        unsafe { (*attempt.cast::<F>())() };
        0
    }
    let mut stack = Stack::new();
    let mut all = signal_set(&[]);
    let mut before = signal_set(&[]);
    let flags = flags | libc::CLONE_VM | libc::CLONE_VFORK;
    let attempt: *mut F = attempt;
    // SAFETY: this thread sleeps until the child has left its memory, and takes no signal meanwhile, so neither do handlers
    // of ours run in the child; other threads go on, and what the child touches is not theirs. The child has a stack of its
    // own, whose end is aligned, and ends by libc's exit of one task. It sends no signal when it is over, so nobody else's
    // waiting is disturbed.
    let (pid, error) = unsafe {
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        let pid = libc::clone(run::<F>, stack.0.as_mut_ptr_range().end.cast(), flags, attempt.cast());
        let error = (pid < 0).then(last_errno);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut());
        (pid, error)
    };
    if let Some(error) = error {
        return Err(error);
    }
    // SAFETY: it is our child; the status is not wanted.
    while unsafe { libc::waitpid(pid, ptr::null_mut(), libc::__WALL) } < 0 && last_errno() == Errno::INTR {}
    Ok(())
}

/// The version of Landlock that the kernel has; 0: none, or switched off.
pub(crate) fn landlock_abi() -> u32 {
    const VERSION: c_int = 1;
    // SAFETY: with this flag the kernel reads no memory.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, ptr::null::<u8>(), 0_usize, VERSION) };
    u32::try_from(version).unwrap_or(0)
}

/// Whether the kernel knows filters of system calls.
pub(crate) fn has_seccomp() -> bool {
    const ACTION_IS_AVAILABLE: c_int = 2;
    let refuse: u32 = 0x0005_0000;
    // SAFETY: the kernel reads four bytes.
    unsafe { libc::syscall(libc::SYS_seccomp, ACTION_IS_AVAILABLE, 0, &raw const refuse) == 0 }
}

/// A program, its arguments and its environment as exec wants them, within the block of bytes that they came in.
pub(crate) struct ExecImage<'a> {
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    _block: PhantomData<&'a [u8]>,
}

impl<'a> ExecImage<'a> {
    /// `block` holds strings that each end with NUL: first `arguments` of them, of which the first is the path of the
    /// program, then the environment. `None`: it does not.
    pub(crate) fn new(block: &'a [u8], arguments: usize) -> Option<ExecImage<'a>> {
        let mut strings = block.split_inclusive(|byte| *byte == 0);
        let pointers = |strings: &mut dyn Iterator<Item = &'a [u8]>| {
            let pointers = strings.map(|string| CStr::from_bytes_with_nul(string).ok().map(CStr::as_ptr));
            pointers.chain([Some(ptr::null())]).collect::<Option<Vec<_>>>()
        };
        let argv = pointers(&mut strings.by_ref().take(arguments))?;
        let envp = pointers(&mut strings)?;
        (arguments > 0 && argv.len() == arguments + 1).then_some(ExecImage { argv, envp, _block: PhantomData })
    }

    /// Replaces this process. Returns only if that failed.
    pub(crate) fn exec(&self) -> Errno {
        // SAFETY: both arrays end with a null pointer, and what they point to is NUL-terminated and borrowed.
        unsafe { libc::execve(self.argv[0], self.argv.as_ptr(), self.envp.as_ptr()) };
        last_errno()
    }
}

/// How a child changed its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Exited(i32),
    Signaled(i32),
    Stopped,
}

/// A child that changed its state; unless it only stopped, it is gone and its number is free.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waited {
    pub(crate) pid: i32,
    pub(crate) change: Change,
    /// User and system time of the child and of all descendants that it had waited for.
    pub(crate) cpu: Duration,
    /// Peak resident memory of the largest of them.
    pub(crate) memory_peak_bytes: u64,
}

/// Takes the next child that ended (or, if `stopped_too`, stopped). `Ok(None)`: there are children, none of them
/// changed.
///
/// # Errors
/// ECHILD: there is no child at all.
pub(crate) fn wait_any(stopped_too: bool) -> Result<Option<Waited>, Errno> {
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // __WALL: an adopted child may have been cloned with another exit signal than SIGCHLD.
    let options = libc::WNOHANG | libc::__WALL | if stopped_too { libc::WUNTRACED } else { 0 };
    // SAFETY: both pointers are valid for writing for the whole call.
    let pid = unsafe { libc::wait4(-1, &raw mut status, options, usage.as_mut_ptr()) };
    match pid {
        0 => return Ok(None),
        pid if pid < 0 => return Err(last_errno()),
        _ => {}
    }
    // SAFETY: all zeroes is a valid rusage, and wait4 filled it.
    let usage = unsafe { usage.assume_init() };
    let change = if libc::WIFSTOPPED(status) {
        Change::Stopped
    } else if libc::WIFSIGNALED(status) {
        Change::Signaled(libc::WTERMSIG(status))
    } else {
        Change::Exited(libc::WEXITSTATUS(status))
    };
    Ok(Some(Waited {
        pid,
        change,
        cpu: cpu_of(&usage),
        memory_peak_bytes: u64::try_from(usage.ru_maxrss).unwrap_or(0).saturating_mul(1024),
    }))
}

fn cpu_of(usage: &libc::rusage) -> Duration {
    let time = |time: libc::timeval| {
        let micros = u64::try_from(time.tv_usec).unwrap_or(0);
        Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0)) + Duration::from_micros(micros)
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// A set of the given signals.
fn signal_set(signals: &[i32]) -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: sigemptyset initialises the set before it is read; sigaddset refuses numbers that are no signals.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        set.assume_init()
    }
}

/// Blocks every signal that can be blocked, so that signals are only taken where we ask for them.
pub(crate) fn block_signals() {
    let mut all = signal_set(&[]);
    // SAFETY: the set is initialised; the old mask is not wanted.
    unsafe {
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, ptr::null_mut());
    }
}

/// Sets what a signal does to `SIG_IGN` or `SIG_DFL`. Numbers that cannot be changed are left alone.
fn dispose(signal: i32, disposition: libc::sighandler_t) {
    // SAFETY: neither disposition is a function, so nothing of ours will ever run in signal context.
    unsafe { libc::signal(signal, disposition) };
}

/// Ignores these signals.
pub(crate) fn ignore_signals(signals: &[i32]) {
    for signal in signals {
        dispose(*signal, libc::SIG_IGN);
    }
}

/// Gives SIGCHLD its default back: a parent that ignored it would otherwise leave us without any child to wait for.
pub(crate) fn restore_child_signal() {
    dispose(libc::SIGCHLD, libc::SIG_DFL);
}

/// Gives every signal its default disposition, which is what a new program expects and inherits.
pub(crate) fn restore_dispositions() {
    // The system call and not libc's function: libc keeps two real-time signals for itself and refuses to touch them,
    // but a parent of ours may have left even those ignored. All zeroes is SIG_DFL with no flags, in the layout of
    // every machine.
    let default = [0_u64; 4];
    for signal in 1..=64 {
        // SAFETY: the kernel reads at most 32 bytes here; the default disposition runs no code of ours. KILL and STOP
        // give EINVAL.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), ptr::null_mut::<u64>(), 8_usize) };
    }
}

/// Unblocks all signals, as a new program expects it. Signals that were pending arrive now.
pub(crate) fn unblock_signals() {
    let none = signal_set(&[]);
    // SAFETY: the set is initialised; the old mask is not wanted.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut()) };
}

/// A file descriptor, non-blocking and close-on-exec, that becomes readable when one of these blocked signals arrives.
///
/// # Errors
/// EMFILE and the like.
pub(crate) fn signal_fd(signals: &[i32]) -> io::Result<OwnedFd> {
    let set = signal_set(signals);
    // SAFETY: the set is initialised; -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Size of one record of a signal file descriptor; the signal's number is its first four bytes.
pub(crate) const SIGNAL_RECORD_BYTES: usize = size_of::<libc::signalfd_siginfo>();

/// Waits until one of these blocked signals arrives, and takes it. `None` if `wait` passed or something disturbed.
pub(crate) fn wait_signal(signals: &[i32], wait: Option<Duration>) -> Option<i32> {
    let set = signal_set(signals);
    let timeout = wait.map(timespec);
    let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: the set is initialised, the details are not wanted, and the timeout is null or alive during the call.
    let signal = unsafe { libc::sigtimedwait(&raw const set, ptr::null_mut(), timeout) };
    (signal > 0).then_some(signal)
}

/// As `wait_signal`, with the process that sent it; 0 is the kernel, or a process that has no number in our namespace.
pub(crate) fn wait_signal_from(signals: &[i32], wait: Option<Duration>) -> Option<(i32, i32)> {
    let set = signal_set(signals);
    let timeout = wait.map(timespec);
    let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
    let mut details = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: the set is initialised, the details are valid for writing, the timeout is null or alive during the call.
    let signal = unsafe { libc::sigtimedwait(&raw const set, details.as_mut_ptr(), timeout) };
    // SAFETY: all zeroes is a valid siginfo, and for the signals that a process sends the field is the sender.
    let sender = unsafe { details.assume_init().si_pid() };
    (signal > 0).then_some((signal, sender))
}

fn timespec(wait: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: libc::time_t::try_from(wait.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: wait.subsec_nanos().into(),
    }
}

/// Sends SIGKILL to every process of our namespace but ourselves. Only the first process of a namespace may do that: for
/// anybody else it does nothing.
pub(crate) fn kill_namespace() {
    // SAFETY: getpid and kill have no preconditions.
    unsafe {
        if libc::getpid() == 1 {
            libc::kill(-1, libc::SIGKILL);
        }
    }
}

/// Changes what may be done through a mount, and through those below it if `recursive`: adds `MOUNT_ATTR_…` flags and
/// cuts it off from what is mounted elsewhere later.
///
/// # Errors
/// ENOSYS before Linux 5.12; EPERM.
pub(crate) fn restrict_mount(mount: BorrowedFd<'_>, flags: u64, recursive: bool) -> Result<(), Errno> {
    let attributes = libc::mount_attr { attr_set: flags, attr_clr: 0, propagation: libc::MS_PRIVATE, userns_fd: 0 };
    let how = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    let size = size_of::<libc::mount_attr>();
    let mount = mount.as_raw_fd();
    // SAFETY: the path is an empty string that lives for ever, and the attributes are of the size that we say.
    let changed =
        unsafe { libc::syscall(libc::SYS_mount_setattr, mount, c"".as_ptr(), how, &raw const attributes, size) };
    if changed < 0 { Err(last_errno()) } else { Ok(()) }
}

/// Puts this process for good behind the rules of a Landlock ruleset.
///
/// # Errors
/// EPERM without `no_new_privs`.
pub(crate) fn landlock(ruleset: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: plain integers.
    let restricted = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) };
    if restricted < 0 { Err(last_errno()) } else { Ok(()) }
}

/// While it lives, this thread opens and makes files as another user, with that user's rights only. The kernel takes such a
/// change as a reason to forget this thread's parent-death signal and to write no core of this process.
pub(crate) struct AsUser {
    /// It is about one thread.
    _thread: PhantomData<*const ()>,
}

impl AsUser {
    /// Only root can; for others nothing changes.
    pub(crate) fn new(user: u32, group: u32) -> AsUser {
        // SAFETY: plain integers. libc changes this thread alone; for root it cannot fail, and for others a failure
        // means what this promises.
        unsafe {
            libc::setfsgid(group);
            libc::setfsuid(user);
        }
        AsUser { _thread: PhantomData }
    }
}

impl Drop for AsUser {
    fn drop(&mut self) {
        // SAFETY: as above; what is set is what it was, for nothing else in this process changes it.
        unsafe {
            libc::setfsuid(libc::geteuid());
            libc::setfsgid(libc::getegid());
        }
    }
}

/// Makes `from` the file descriptor `number` (0, 1 or 2), to be kept over exec.
pub(crate) fn install_fd(from: BorrowedFd<'_>, number: RawFd) -> Result<(), Errno> {
    // SAFETY: only called in a child of ours for the standard streams, which no object of ours owns.
    if unsafe { libc::dup2(from.as_raw_fd(), number) } < 0 { Err(last_errno()) } else { Ok(()) }
}

/// Makes `fd` the file descriptor `number` (0, 1 or 2) for the rest of this process's life.
pub(crate) fn keep_as(fd: OwnedFd, number: RawFd) -> Result<(), Errno> {
    if fd.as_raw_fd() == number {
        let _ = fd.into_raw_fd();
        return Ok(());
    }
    install_fd(fd.as_fd(), number)
}

/// Closes every file descriptor except `keep`. For a forked child that never returns: objects of the parent that own
/// the closed ones are never dropped here.
pub(crate) fn close_all_except(keep: &[BorrowedFd<'_>]) {
    let mut kept: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(fd.as_raw_fd()).ok()).collect();
    kept.sort_unstable();
    let mut from = 0;
    for fd in kept {
        if fd > from {
            close_range(from, fd - 1);
        }
        from = fd + 1;
    }
    close_range(from, u32::MAX);
}

/// close_range(2) of a kernel that has it (5.9), otherwise the same one by one.
fn close_range(first: u32, last: u32) {
    // SAFETY: plain integers; callers see to it that nobody uses the closed descriptors.
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } == 0 {
        return;
    }
    // SAFETY: sysconf has no preconditions.
    let open_max = u32::try_from(unsafe { libc::sysconf(libc::_SC_OPEN_MAX) }).unwrap_or(1 << 16);
    for number in first..=last.min(open_max) {
        let Ok(fd) = RawFd::try_from(number) else { break };
        // SAFETY: as above; a number that is not open gives EBADF.
        unsafe { libc::close(fd) };
    }
}

/// Bytes of a memory page.
pub(crate) fn page_bytes() -> u64 {
    // SAFETY: sysconf has no preconditions.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// User and system time of all children that this process has waited for, and of all that they had waited for.
pub(crate) fn cpu_of_children() -> Duration {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is valid for writing, and all zeroes is a valid rusage should the call fail.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr());
        usage.assume_init()
    };
    cpu_of(&usage)
}

/// Clock ticks a second, the unit of times in /proc.
pub(crate) fn ticks_per_second() -> u64 {
    // SAFETY: sysconf has no preconditions.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).ok().filter(|ticks| *ticks > 0).unwrap_or(100)
}

fn last_errno() -> Errno {
    let number = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    Errno::from_raw_os_error(number)
}
