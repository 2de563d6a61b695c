//! What this machine can do to shut programs in, found by trying.
//!
//! Called by whoever tells people about it, and by `cage` for the reason why there is no room. From any process, with any
//! number of threads: what has to be tried in a child is tried in one that shares our memory for some microseconds and does
//! nothing but system calls.
//!
//! What is always true: a capability that is there was used; one that is not has a sentence that says what is missed and, if
//! there is one, the command that changes it. Words are stable, for those who have sentences of their own. Nothing on the
//! machine is changed.
//!
//! Deliberately not here: walls (`room`, `walls`) and limits by cgroups. Theirs is only whether they could be.

use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use crate::protocol::Isolation;
use crate::{room, sys};
use std::os::fd::AsFd;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// One of each kind, in the order in which they matter.
    pub findings: Vec<Finding>,
    /// The version of Landlock's rules; 0: none.
    pub landlock_abi: u32,
    /// How limits over all processes of a program could be kept.
    pub cgroups: Cgroups,
}

/// One thing that a machine can do, or cannot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// `user`, `mount`, `pid`, `net`, `ipc`, `uts`, `cgroup` (the namespaces), `proc`, `proc limits`, `landlock`, `seccomp`,
    /// `cgroups`.
    pub word: &'static str,
    /// `None`: it is there.
    pub lack: Option<Lack>,
}

/// What is missed without it, and what can be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    /// A sentence.
    pub sentence: String,
    /// A command that changes it, or what to change if there is no command.
    pub fix: String,
}

/// The kind of control groups that this process finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cgroups {
    /// One tree for all.
    V2 {
        /// Controllers that our own group could hand on: `memory`, `pids`, `cpu` and others.
        controllers: Vec<String>,
    },
    /// A tree for each controller.
    V1 {
        /// Those that are mounted.
        controllers: Vec<String>,
    },
    /// None is mounted.
    None,
}

/// Namespaces, each with what is missed without it.
const NAMESPACES: [(&str, i32, &str); 7] = [
    ("user", 0, "programs cannot be shut in at all: this user may not make user namespaces"),
    ("mount", libc::CLONE_NEWNS, "programs see the files of this machine"),
    ("pid", libc::CLONE_NEWPID, "programs see the processes of this machine"),
    ("net", libc::CLONE_NEWNET, "programs reach the network"),
    ("ipc", libc::CLONE_NEWIPC, "programs share memory and queues with others"),
    ("uts", libc::CLONE_NEWUTS, "programs see this machine's name"),
    ("cgroup", libc::CLONE_NEWCGROUP, "programs see this machine's control groups"),
];

/// Looks at this machine, as this user.
pub fn capabilities() -> Capabilities {
    let mut findings: Vec<Finding> = NAMESPACES.map(|(word, flag, missed)| namespace(word, flag, missed)).into();
    if let Some(mount) = findings.iter_mut().find(|finding| finding.word == "mount" && finding.lack.is_none()) {
        mount.lack = mounting();
    }
    findings.extend(processes());
    let landlock_abi = sys::landlock_abi();
    findings.push(Finding { word: "landlock", lack: (landlock_abi == 0).then(no_landlock) });
    findings.push(Finding { word: "seccomp", lack: (!has_filter()).then(no_filter) });
    let cgroups = Cgroups::of_this_process();
    findings.push(Finding { word: "cgroups", lack: cgroups.lack() });
    Capabilities { findings, landlock_abi, cgroups }
}

impl Capabilities {
    /// How well a room of this machine is shut. `None`: there cannot be any; `reason` says why.
    pub fn isolation(&self) -> Option<Isolation> {
        if self.reason().is_some() {
            return None;
        }
        // Limits come with the meter; a room without cgroups is as well shut as one with them.
        let lacks = self.findings.iter().filter(|finding| finding.lack.is_some() && finding.word != "cgroups");
        let missing: Vec<String> = lacks.map(|finding| finding.word.to_owned()).collect();
        Some(if missing.is_empty() { Isolation::Full } else { Isolation::Reduced { missing } })
    }

    /// The first thing without which there is no room.
    pub fn reason(&self) -> Option<&Lack> {
        let is_needed = |finding: &&Finding| NAMESPACES.iter().any(|(word, ..)| *word == finding.word);
        self.findings.iter().filter(is_needed).find_map(|finding| finding.lack.as_ref())
    }
}

fn namespace(word: &'static str, flag: i32, missed: &str) -> Finding {
    let error = sys::try_in_namespaces(libc::CLONE_NEWUSER | flag, &mut || {}).err();
    Finding { word, lack: error.map(|error| denied(word, missed, error)) }
}

/// Why namespaces are denied is behind one of a few switches.
fn denied(word: &str, missed: &str, error: Errno) -> Lack {
    let is = |path: &str, value: &str| std::fs::read_to_string(path).is_ok_and(|text| text.trim() == value);
    let knob = match word {
        "mount" => "user.max_mnt_namespaces".to_owned(),
        word => format!("user.max_{word}_namespaces"),
    };
    let fix = if is("/proc/sys/user/max_user_namespaces", "0") {
        "sysctl -w user.max_user_namespaces=10000".to_owned()
    } else if is(&format!("/proc/sys/{}", knob.replace('.', "/")), "0") {
        format!("sysctl -w {knob}=10000")
    } else if is("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        "sysctl -w kernel.unprivileged_userns_clone=1".to_owned()
    } else if is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") {
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0".to_owned()
    } else if is_filtered() {
        "docker run --security-opt seccomp=unconfined … (a filter around this process forbids it)".to_owned()
    } else {
        format!("a kernel with namespaces of this kind ({word}), and a user that may make them")
    };
    Lack { sentence: format!("{missed} ({error})"), fix }
}

/// Is this process itself behind a filter, as in a container?
fn is_filtered() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2"))
}

/// Can something be mounted in a namespace of ours, and be made read-only with all below it?
fn mounting() -> Option<Lack> {
    let mut outcome = Ok(());
    let mut mount = || {
        outcome = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).and_then(|context| {
            fsconfig_create(&context)?;
            let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
            sys::restrict_mount(mount.as_fd(), u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits()), true)
        });
    };
    let tried = sys::try_in_namespaces(libc::CLONE_NEWUSER | libc::CLONE_NEWNS, &mut mount);
    match tried.and(outcome) {
        Ok(()) => None,
        Err(error @ Errno::NOSYS) => Some(Lack {
            sentence: format!(
                "programs see the files of this machine: its kernel cannot shut a tree of mounts ({error})"
            ),
            fix: "a kernel of version 5.12 or later".to_owned(),
        }),
        Err(error) => Some(denied("mount", "programs see the files of this machine: nothing can be mounted", error)),
    }
}

/// Can a room have its own /proc, and one that shows processes only?
fn processes() -> [Finding; 2] {
    let mut outcome = Err(Errno::PERM);
    let mut mount = || outcome = room::processes().map(|(_, is_whole)| is_whole);
    let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWPID;
    let outcome = sys::try_in_namespaces(flags, &mut mount).and(outcome);
    let none = outcome.err().map(|error| Lack {
        sentence: format!("rooms have no /proc, which some programs want ({error})"),
        fix:
            "docker run --security-opt systempaths=unconfined … (the kernel wants a /proc of which nothing is covered)"
                .to_owned(),
    });
    let whole = (outcome == Ok(true)).then(|| Lack {
        sentence: "the /proc of a room tells about the machine too".to_owned(),
        fix: "a kernel of version 5.8 or later".to_owned(),
    });
    [Finding { word: "proc", lack: none }, Finding { word: "proc limits", lack: whole }]
}

fn no_landlock() -> Lack {
    Lack {
        sentence: "rooms have no second wall around their files".to_owned(),
        fix: "a kernel of version 5.13 or later, started with `landlock` among those in `lsm=`".to_owned(),
    }
}

fn has_filter() -> bool {
    cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) && sys::has_seccomp()
}

fn no_filter() -> Lack {
    Lack {
        sentence: "programs may make every call of the kernel".to_owned(),
        fix: "a kernel with CONFIG_SECCOMP_FILTER, on x86-64 or ARM64".to_owned(),
    }
}

impl Cgroups {
    fn of_this_process() -> Cgroups {
        let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
        let mounts = read(Path::new("/proc/self/mountinfo"));
        let own = read(Path::new("/proc/self/cgroup"));
        Cgroups::parse(&mounts, &own, |group| read(&group.join("cgroup.controllers")))
    }

    /// From the lists of mounts and of own groups, and what a group of version 2 says of its controllers.
    fn parse(mounts: &str, own: &str, controllers: impl Fn(&Path) -> String) -> Cgroups {
        let (mut first, mut second) = (Vec::new(), None);
        for line in mounts.lines() {
            let Some((mount, kind)) = line.split_once(" - ") else { continue };
            let place = Path::new(mount.split(' ').nth(4).unwrap_or_default());
            let mut kind = kind.split(' ');
            match (kind.next(), kind.nth(1)) {
                (Some("cgroup2"), _) => {
                    let group = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
                    let found = controllers(&place.join(group));
                    second = Some(found.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>());
                }
                (Some("cgroup"), Some(options)) => {
                    let is_controller = |word: &&str| !matches!(*word, "rw" | "ro" | "xattr") && !word.contains('=');
                    first.extend(options.split(',').filter(is_controller).map(str::to_owned));
                }
                _ => {}
            }
        }
        first.sort();
        first.dedup();
        let has_memory = |list: &[String]| list.iter().any(|word| word == "memory");
        match second {
            Some(controllers) if has_memory(&controllers) || first.is_empty() => Cgroups::V2 { controllers },
            _ if !first.is_empty() => Cgroups::V1 { controllers: first },
            _ => Cgroups::None,
        }
    }

    fn lack(&self) -> Option<Lack> {
        let (Cgroups::V2 { controllers } | Cgroups::V1 { controllers }) = self else {
            return Some(Lack {
                sentence: "memory and processes of a program can only be looked at now and then".to_owned(),
                fix: "mount -t cgroup2 none /sys/fs/cgroup".to_owned(),
            });
        };
        let missing: Vec<&str> =
            ["memory", "pids"].into_iter().filter(|word| !controllers.iter().any(|found| found == word)).collect();
        (!missing.is_empty()).then(|| Lack {
            sentence: format!("the control groups of this process have no controller for {}", missing.join(" and ")),
            fix: "systemctl edit the service with `Delegate=memory pids cpu`, or systemd-run --user --scope -p Delegate=yes"
                .to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Is everything looked at, each once, and is what is said true of the machine that runs this test? Where rooms can be
    /// made is where the tests of rooms run.
    #[test]
    fn this_machine() {
        let found = capabilities();
        let words: Vec<&str> = found.findings.iter().map(|finding| finding.word).collect();
        let expected =
            ["user", "mount", "pid", "net", "ipc", "uts", "cgroup", "proc", "proc limits", "landlock", "seccomp"];
        assert_eq!(words, [&expected[..], &["cgroups"]].concat());
        assert_eq!(found.landlock_abi > 0, found.findings.iter().any(|f| f.word == "landlock" && f.lack.is_none()));
        for lack in found.findings.iter().filter_map(|finding| finding.lack.as_ref()) {
            assert!(!lack.sentence.is_empty() && !lack.fix.is_empty());
        }
        assert_eq!(found, capabilities(), "it left something behind");
    }

    /// What follows from what is missing?
    #[test]
    fn isolation_follows() {
        let lack = || Some(Lack { sentence: "s".to_owned(), fix: "f".to_owned() });
        let with = |missing: &[&'static str]| {
            let all = ["user", "net", "proc", "landlock", "cgroups"];
            let finding = |word| Finding { word, lack: if missing.contains(&word) { lack() } else { None } };
            Capabilities { findings: all.map(finding).into(), landlock_abi: 0, cgroups: Cgroups::None }
        };
        assert_eq!(with(&[]).isolation(), Some(Isolation::Full));
        assert_eq!(with(&["cgroups"]).isolation(), Some(Isolation::Full));
        let missing = vec!["proc".to_owned(), "landlock".to_owned()];
        assert_eq!(with(&["proc", "landlock"]).isolation(), Some(Isolation::Reduced { missing }));
        assert_eq!((with(&["net"]).isolation(), with(&["net"]).reason().is_some()), (None, true));
    }

    /// Are the kinds of control groups told apart: one tree, many, both with the empty one ours, none?
    #[test]
    fn control_groups() {
        let v2 = "31 23 0:28 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n";
        let v1 = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                  36 31 0:33 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
                  40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n";
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let asked = |group: &Path| {
            assert_eq!(group, Path::new("/sys/fs/cgroup/user/x"));
            "cpu memory pids".to_owned()
        };
        let found = Cgroups::parse(v2, "0::/user/x\n", asked);
        assert_eq!(found, Cgroups::V2 { controllers: words(&["cpu", "memory", "pids"]) });
        assert_eq!(found.lack(), None);
        let found = Cgroups::parse(&[v2, v1].concat(), "", |_| String::new());
        assert_eq!(found, Cgroups::V1 { controllers: words(&["memory", "pids"]) });
        let found = Cgroups::parse(v2, "", |_| "cpu".to_owned());
        assert!(found.lack().unwrap().sentence.ends_with("memory and pids"));
        assert_eq!(Cgroups::parse("22 1 0:5 / /proc rw - proc proc rw\n", "", |_| String::new()), Cgroups::None);
        assert!(Cgroups::None.lack().is_some());
    }
}
