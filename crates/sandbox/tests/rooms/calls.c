/* Tries what no program of a room may do; prints a line for each thing that was possible. With an argument: calls the
   kernel in a way that kills. */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void refused(const char *what, long result, int expected) {
    if (result != -1 || errno != expected) printf("%s: %ld, %s\n", what, result, strerror(errno));
}

int main(int argc, char **argv) {
    char space[256] = {0};
    if (argc > 1) {
#if defined(__x86_64__)
        long result = 20; /* getpid of 32 bit */
        if (!strcmp(argv[1], "foreign")) __asm__ volatile("int $0x80" : "+a"(result) : : "memory");
        if (!strcmp(argv[1], "x32")) result = syscall(0x40000000 + SYS_getpid);
        printf("alive: %ld\n", result);
#else
        raise(SIGSYS);
#endif
        return 0;
    }
    refused("unshare user", unshare(CLONE_NEWUSER), EPERM);
    refused("unshare mounts", unshare(CLONE_NEWNS), EPERM);
    refused("unshare files", unshare(CLONE_FILES), EPERM);
    refused("clone user", syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0), EPERM);
    refused("clone net", syscall(SYS_clone, CLONE_NEWNET | SIGCHLD, 0, 0, 0, 0), EPERM);
    refused("clone3", syscall(SYS_clone3, space, 64), ENOSYS);
    refused("setns", setns(0, 0), EPERM);
    refused("mount", mount("none", "/tmp", "tmpfs", 0, 0), EPERM);
    refused("umount", umount2("/tmp", MNT_DETACH), EPERM);
    refused("fsopen", syscall(430, "tmpfs", 0), EPERM);
    refused("open_tree", syscall(428, -100, "/box", 1), EPERM);
    refused("chroot", chroot("/box"), EPERM);
    refused("pivot_root", syscall(SYS_pivot_root, ".", "."), EPERM);
    refused("ptrace", ptrace(PTRACE_TRACEME, 0, 0, 0), EPERM);
    refused("ptrace of init", ptrace(PTRACE_ATTACH, 1, 0, 0), EPERM);
    refused("process_vm_readv", syscall(SYS_process_vm_readv, 1, 0, 0, 0, 0, 0), EPERM);
    refused("pidfd_getfd", syscall(438, 0, 0, 0), EPERM);
    refused("keyctl", syscall(SYS_keyctl, 0, -3, 0, 0, 0), EPERM);
    refused("add_key", syscall(SYS_add_key, "user", "x", "x", 1, -3), EPERM);
    refused("request_key", syscall(SYS_request_key, "user", "x", 0, 0), EPERM);
    refused("io_uring", syscall(425, 1, space), EPERM);
    refused("bpf", syscall(SYS_bpf, 0, space, 16), EPERM);
    refused("perf_event_open", syscall(SYS_perf_event_open, space, 0, -1, -1, 0), EPERM);
    refused("userfaultfd", syscall(SYS_userfaultfd, 0), EPERM);
    refused("open_by_handle_at", syscall(SYS_open_by_handle_at, -100, space, 0), EPERM);
    refused("init_module", syscall(SYS_init_module, space, 1, ""), EPERM);
    refused("reboot", syscall(SYS_reboot, 0, 0, 0, 0), EPERM);
    refused("syslog", syscall(SYS_syslog, 3, space, 10), EPERM);
    refused("sethostname", sethostname("x", 1), EPERM);
    refused("clock_settime", syscall(SYS_clock_settime, 0, space), EPERM);
    refused("setuid", setuid(0), EINVAL);
    refused("setgid", setgid(65534), EINVAL);
    refused("netlink", socket(AF_NETLINK, SOCK_RAW, 0), EPERM);
    refused("packet", socket(AF_PACKET, SOCK_RAW, 0), EPERM);
    refused("vsock", socket(40, SOCK_STREAM, 0), EPERM);
    refused("raw", socket(AF_INET, SOCK_RAW, 1), EPERM);
    refused("TIOCSTI", ioctl(0, TIOCSTI, "x"), EPERM);
    refused("TIOCSTI with high bits", syscall(SYS_ioctl, 0, 0x100000000UL | TIOCSTI, "x"), EPERM);
    /* What must go: threads and children. */
    int status = -1;
    pid_t child = fork();
    if (child == 0) _exit(7);
    if (waitpid(child, &status, 0) != child || WEXITSTATUS(status) != 7) printf("fork\n");
    printf("done\n");
    return 0;
}
