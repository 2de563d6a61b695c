//! Rooms from outside: what programs see, what they can do, and what is left. Each question is asked of a room that root has
//! made, if we are root, and of one of an ordinary user.

use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use essaim_sandbox::verdict::{Phase, Verdict, verdict};
use essaim_sandbox::{Capture, Isolation, Limits, RoomPlan, Start, Stop, TreeError, capabilities};

use crate::support::{Bench, Room, children, open_files, send_signal, until};

/// An ordinary user, who need not exist.
const ORDINARY: u32 = 54_321;

/// A cage of each kind of user that this machine lets us be.
fn benches() -> Vec<Bench> {
    let mut benches = vec![Bench::new()];
    if rustix::process::geteuid().is_root() {
        benches.push(Bench::of_user(ORDINARY));
    }
    benches
}

fn with_rooms(test: fn(&mut Bench, &Room)) {
    for mut bench in benches() {
        let room = bench.room();
        test(&mut bench, &room);
        bench.cage.close_room(room.id).unwrap();
        until("the room is gone", || rooms_of(&bench).is_empty());
    }
}

/// First processes of rooms, dead ones included.
fn rooms_of(bench: &Bench) -> Vec<i32> {
    let list = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", bench.pid())).unwrap_or_default();
    let all = list.split_ascii_whitespace().map(|word| word.parse().unwrap());
    all.filter(|pid: &i32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "essaim-room")
    })
    .collect()
}

fn shell(bench: &mut Bench, room: &Room, script: &str) -> String {
    bench.run_in(room, &["/bin/sh", "-c", script]).ok().to_owned()
}

/// Do programs of several languages run, compilers too, with files that go in and come out by the room's descriptor? Are
/// all walls there on this machine?
pub(crate) fn programs_run() {
    with_rooms(|bench, room| {
        assert_eq!(room.isolation, Isolation::Full);
        assert_eq!(bench.run_in(room, &["/bin/true"]).ok(), "");
        room.put("in/hello.py", "print(open('/box/in/name').read() + '!'); open('out', 'w').write('from python')");
        room.put("in/name", "room");
        assert_eq!(bench.run_in(room, &["/usr/bin/python3", "in/hello.py"]).ok(), "room!\n");
        assert_eq!(room.get("out"), "from python");
        room.put("sum.c", "#include <stdio.h>\nint main(void) { printf(\"%d\\n\", 40 + 2); return 3; }");
        assert_eq!(bench.run_in(room, &["/usr/bin/gcc", "-O1", "-o", "sum", "sum.c"]).ok(), "");
        let ended = bench.run_in(room, &["./sum"]);
        assert_eq!((ended.text(), ended.evidence.exit_code), ("42\n", Some(3)));
        let names: Vec<PathBuf> = room.folder.list(100).unwrap().into_iter().map(|found| found.name).collect();
        assert_eq!(names, ["in/hello.py", "in/name", "out", "sum", "sum.c"].map(PathBuf::from));
        if Path::new("/usr/bin/javac").exists() {
            room.put(
                "Main.java",
                "class Main { public static void main(String[] a) { System.out.println(\"java\"); } }",
            );
            bench.run_in(room, &["/usr/bin/javac", "Main.java"]).ok();
            assert_eq!(bench.run_in(room, &["/usr/bin/java", "Main"]).ok(), "java\n");
        }
    });
}

/// Do streams go through a wall, with input, and can they be opened by their names?
pub(crate) fn streams_go_through() {
    with_rooms(|bench, room| {
        // Worker and cage are of one user. Here only the cage of root is, for the pipes are ours.
        let (out, err) = if user_of(bench) == 0 { ("> /dev/stdout", "> /dev/stderr") } else { ("", ">&2") };
        let start = bench.in_room(room, &["/bin/sh", "-c", &format!("cat; echo out {out}; echo err {err}")]);
        let mut running = bench.start(start);
        running.stdin.as_mut().unwrap().write_all(b"in\n").unwrap();
        running.stdin = None;
        let ended = bench.finish(running);
        assert_eq!((ended.ok(), &ended.stderr[..]), ("in\nout\n", &b"err\n"[..]));
        assert_eq!(shell(bench, room, "echo captured > /dev/stdout"), "captured\n");
        // Longer than a moment.
        let long = bench.run_in(room, &["/bin/sh", "-c", "head -c 60000 /dev/zero; sleep 0.1"]);
        assert_eq!((long.ok().len(), long.at_once), (60_000, false));
    });
}

/// Is nothing of the host to be seen: folders, processes, accounts, names, variables, descriptors?
pub(crate) fn host_is_not_seen() {
    with_rooms(|bench, room| {
        let places = "/root /home /mnt /srv /run /boot /sys /media /etc/shadow /etc/hostname /etc/ssh /var/lib";
        assert_eq!(shell(bench, room, &format!("for p in {places}; do test ! -e $p || echo $p; done")), "");
        // Itself, ls and wc.
        assert_eq!(shell(bench, room, "cd /proc; ls -d [0-9]* | wc -l"), "3\n");
        assert_eq!(shell(bench, room, "ls /proc | grep -v '[0-9]'"), "self\nthread-self\n");
        assert_eq!(shell(bench, room, "id -u; id -g; uname -n; pwd; umask"), "1000\n1000\nroom\n/box\n0022\n");
        let mut start = bench.in_room(room, &["/usr/bin/env"]);
        start.env.retain(|(name, _)| name != "PATH");
        let id = bench.start_captured(start, Capture::Apart);
        assert_eq!(bench.finish_captured(id).ok(), format!("ESSAIM_SANDBOX_TEST={}\n", bench.mark));
        // The last one is the folder that ls reads.
        assert_eq!(bench.run_in(room, &["/bin/ls", "/proc/self/fd"]).ok(), "0\n1\n2\n3\n");
        let status = shell(bench, room, "exec cat /proc/self/status");
        for line in ["CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
            assert!(status.lines().any(|found| found == line), "{line}\n{status}");
        }
        for signals in ["SigBlk", "SigIgn"] {
            assert!(status.contains(&format!("{signals}:\t0000000000000000\n")), "{status}");
        }
        let capacity = shell(bench, room, "ulimit -c");
        assert_eq!(capacity, "0\n");
    });
}

/// Can a program write where it should, and nowhere else?
pub(crate) fn only_own_folders_are_written() {
    with_rooms(|bench, room| {
        let tries = "
            for folder in / /usr /usr/bin /usr/local /opt /etc /etc/ssl /dev /proc /var /lib /bin; do
                { echo > $folder/new; } 2>/dev/null && echo $folder
                mkdir $folder/dir 2>/dev/null && echo $folder
                chmod 777 $folder 2>/dev/null && echo chmod $folder
            done
            { echo x >> /etc/passwd; } 2>/dev/null && echo passwd
            mv /etc/hosts /etc/other 2>/dev/null && echo mv
            rm -f /dev/null /etc/hosts 2>/dev/null && echo rm
            chmod 000 /dev/null 2>/dev/null && echo chmod null
            ln /usr/bin/env /box/env 2>/dev/null && echo ln
            true";
        assert_eq!(shell(bench, room, tries), "");
        let own = "for folder in /box /tmp /dev/shm; do
                mkdir $folder/dir && echo x > $folder/dir/f && mv $folder/dir/f $folder/g && cat $folder/g || exit 1
                cp /bin/true $folder/true && $folder/true || exit 2
            done; cd /var/tmp; ls g; echo lost > /dev/null; head -c 3 /dev/zero | wc -c";
        assert_eq!(shell(bench, room, own), "x\nx\nx\ng\n3\n");
    });
}

/// Is there no way out by a socket: no interface that is up, nobody behind an address of the host, no abstract socket?
pub(crate) fn no_network() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let name = format!("essaim-test-{}", std::process::id());
    let address = <std::os::unix::net::SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(&name);
    let _abstract = std::os::unix::net::UnixListener::bind_addr(&address.unwrap()).unwrap();
    for mut bench in benches() {
        let room = bench.room();
        let interfaces = shell(&mut bench, &room, "tail -n +3 /proc/self/net/dev | cut -d: -f1 | tr -d ' '");
        assert_eq!(interfaces, "lo\n");
        room.put(
            "try.py",
            "
import socket, sys, fcntl, struct
def attempt(what, call):
    try:
        call()
        print(what)
    except OSError:
        pass
port, name = int(sys.argv[1]), sys.argv[2]
attempt('tcp', lambda: socket.create_connection(('127.0.0.1', port), 5))
attempt('tcp6', lambda: socket.create_connection(('::1', port), 5))
attempt('far', lambda: socket.create_connection(('192.0.2.1', 80), 5))
attempt('udp', lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', port)))
attempt('name', lambda: socket.getaddrinfo('example.org', 80))
attempt('abstract', lambda: socket.socket(socket.AF_UNIX).connect('\\0' + name))
flags = struct.unpack('16sh', fcntl.ioctl(socket.socket(), 0x8913, struct.pack('16sh', b'lo', 0))[:18])[1]
attempt('up', lambda: fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sh', b'lo', flags | 1)))
print('flags', flags & 1)
",
        );
        assert_eq!(bench.run_in(&room, &["/usr/bin/python3", "try.py", &port.to_string(), &name]).ok(), "flags 0\n");
        bench.cage.close_room(room.id).unwrap();
    }
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "somebody came");
}

/// Does no signal reach a process outside, even of the same user, or the room's own init?
pub(crate) fn no_signal_gets_out() {
    for mut bench in benches() {
        let room = bench.room();
        let user = std::fs::metadata(format!("/proc/{}", bench.pid())).unwrap();
        let user = std::os::unix::fs::MetadataExt::uid(&user).to_string();
        let mut outside = Command::new("setpriv").args(["--reuid", &user, "--", "sleep", "1000"]).spawn().unwrap();
        let victims = format!("{} {} {}", outside.id(), bench.pid(), std::process::id());
        let script = format!(
            "for p in {victims}; do kill -KILL $p 2>/dev/null && echo $p; done; kill -KILL 1; kill -TERM 1; kill -USR1 1; true"
        );
        assert_eq!(shell(&mut bench, &room, &script), "");
        // The second wall by itself: without it the program could at least ask whether init is there, and name itself.
        if capabilities().landlock_abi >= 6 {
            let script =
                "import os\nfor attempt in (lambda: os.kill(1, 0), lambda: open('/proc/self/comm', 'w').write('x')):
    try: attempt(); print('possible')
    except PermissionError: pass";
            assert_eq!(bench.run_in(&room, &["/usr/bin/python3", "-c", script]).ok(), "");
        }
        // Everybody whom it may reach, which is itself.
        let ended = bench.run_in(&room, &["/usr/bin/python3", "-c", "import os; os.kill(-1, 9); print('alive')"]);
        assert!(ended.evidence.signal.is_none_or(|signal| signal == 9) && ended.evidence.stopped_by.is_none());
        assert!(outside.try_wait().unwrap().is_none());
        assert_eq!(shell(&mut bench, &room, "echo still"), "still\n");
        outside.kill().unwrap();
        outside.wait().unwrap();
        bench.cage.close_room(room.id).unwrap();
    }
}

/// Are the calls refused that no program needs, and killed that no filter can judge?
pub(crate) fn calls_are_refused() {
    with_rooms(|bench, room| {
        room.put("calls.c", include_str!("calls.c"));
        bench.run_in(room, &["/usr/bin/gcc", "-o", "calls", "calls.c"]).ok();
        assert_eq!(bench.run_in(room, &["./calls"]).ok(), "done\n");
        for way in ["foreign", "x32"] {
            let ended = bench.run_in(room, &["./calls", way]);
            // SIGSYS; or x32 is not in this kernel, and the call was refused before.
            assert_eq!((ended.text(), ended.evidence.signal), ("", Some(31)), "{way}");
        }
        // Threads of a C library that would rather take clone3.
        let threads = "import threading; [threading.Thread(target=print, args=('t',)).start() for _ in range(3)]";
        assert_eq!(bench.run_in(room, &["/usr/bin/python3", "-c", threads]).ok(), "t\nt\nt\n");
        // A program with setuid is an ordinary one.
        assert_eq!(
            shell(
                bench,
                room,
                "su -c true </dev/null >/dev/null 2>&1; cat /proc/self/status | grep -c 'Uid:.1000.1000'"
            ),
            "1\n"
        );
    });
}

/// Does everything that a program leaves behind die with it, and what runs die with the room?
pub(crate) fn nothing_outlives() {
    with_rooms(|bench, room| {
        let fork = "(setsid sh -c '(setsid sleep 1000 &) ; sleep 1000' &) ; setsid sleep 1000 & sleep 0.05; echo main";
        assert_eq!(shell(bench, room, fork), "main\n");
        assert_eq!(bench.marked(), [], "alive although the end was told");
        // A bomb that ends by itself only when it cannot fork.
        let start = Start {
            limits: Limits { processes: Some(30), ..Limits::default() },
            wall_limit_ms: Some(1_000),
            ..bench.in_room(room, &["/bin/sh", "-c", "bomb() { bomb | bomb & sleep 1000; }; bomb"])
        };
        let id = bench.start_quiet(start);
        bench.ended(id);
        assert_eq!(bench.marked(), []);
        assert_eq!(shell(bench, room, "echo next"), "next\n");
        let other = bench.room();
        let start = bench.in_room(&other, &["/bin/sh", "-c", "setsid sleep 1000 & sleep 1000"]);
        let id = bench.start_quiet(start);
        until("it has begun", || bench.marked().len() == 3);
        bench.cage.close_room(other.id).unwrap();
        let evidence = bench.ended(id);
        assert_eq!(bench.marked(), []);
        assert_eq!((evidence.stopped_by, evidence.signal), (Some(Stop::Kill), Some(9)));
        until("that room is gone", || rooms_of(bench).len() == 1);
    });
}

/// Do limits of time and kills work as they do without walls, and is the room good for the next program then?
pub(crate) fn limits_of_time_and_kills() {
    with_rooms(|bench, room| {
        let script = "trap '' TERM; sleep 1000 & setsid sleep 1000 & while :; do :; done";
        let start = Start { wall_limit_ms: Some(200), ..bench.in_room(room, &["/bin/sh", "-c", script]) };
        let id = bench.start_quiet(start);
        let evidence = bench.ended(id);
        assert_eq!((bench.marked(), verdict(Phase::Run, &evidence)), (vec![], Verdict::TimeLimit));
        assert!((200..5_000).contains(&evidence.wall_ms), "{} ms", evidence.wall_ms);
        let start = bench.in_room(room, &["/bin/sh", "-c", script]);
        let id = bench.start_quiet(start);
        let pid = bench.started(id);
        // A moment after it has let go of its init's memory it has its own name.
        until("the number is the host's", || std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap() == "sh\n");
        until("it has begun", || bench.marked().len() == 3);
        bench.cage.kill(id).unwrap();
        assert_eq!(verdict(Phase::Run, &bench.ended(id)), Verdict::Cancelled);
        for (script, code, signal) in [("exit 7", Some(7), None), ("kill -SEGV $$", None, Some(11))] {
            let evidence = bench.run_in(room, &["/bin/sh", "-c", script]).evidence;
            assert_eq!((evidence.exit_code, evidence.signal, evidence.stopped_by), (code, signal, None));
        }
        // What the meter sees goes through the wall too.
        let busy = "import time; x = bytearray(50_000_000); e = time.time() + 0.3\nwhile time.time() < e: pass";
        let evidence = bench.run_in(room, &["/usr/bin/python3", "-c", busy]).evidence;
        assert!(evidence.cpu_ms >= 50 && evidence.memory_peak_bytes > 50_000_000, "{evidence:?}");
    });
}

/// Does a kill hit that comes before the program has begun, without costing the room?
pub(crate) fn early_kills_hit() {
    with_rooms(|bench, room| {
        for _ in 0..100 {
            let start = bench.in_room(room, &["/bin/sleep", "1000"]);
            let id = bench.start_quiet(start);
            bench.cage.kill(id).unwrap();
            let evidence = bench.ended(id);
            assert_eq!((evidence.stopped_by, evidence.signal), (Some(Stop::Kill), Some(9)));
        }
        assert_eq!(shell(bench, room, "echo still there"), "still there\n");
    });
}

/// Are the limits of a process exact, and can they not be raised again?
pub(crate) fn limits_of_processes() {
    with_rooms(|bench, room| {
        let limits =
            Limits { open_files: Some(20), file_bytes: Some(1 << 20), stack_bytes: Some(1 << 20), processes: Some(30) };
        let mut run = |script: &str| {
            let start = Start { limits, ..bench.in_room(room, &["/usr/bin/python3", "-c", script]) };
            let id = bench.start_captured(start, Capture::Apart);
            bench.finish_captured(id)
        };
        let forks = "
import os, time
count = 1
try:
    while True:
        if os.fork() == 0: time.sleep(1000)
        count += 1
except BlockingIOError:
    print(count)";
        assert_eq!(run(forks).ok(), "30\n");
        assert_eq!(run("import os\ntry:\n  while 1: n = os.dup(0)\nexcept OSError: print(n)").ok(), "19\n");
        let write = run("f = open('f', 'wb')\nwhile 1: f.write(bytes(65536))").evidence;
        assert!(write.signal == Some(25) || write.exit_code == Some(1), "{write:?}");
        let raise = "import resource as r\nprint(r.getrlimit(r.RLIMIT_STACK))\nr.setrlimit(r.RLIMIT_CORE, (9, 9))";
        let raised = run(raise);
        assert_eq!((raised.text(), raised.evidence.exit_code), ("(1048576, 1048576)\n", Some(1)));
        let size = room.folder.list(10).unwrap().into_iter().find(|found| found.name == Path::new("f")).unwrap();
        assert!(size.size_bytes <= 1 << 20);
    });
}

/// Is what a program leaves in the place of its files no way to other files, for who takes files out or puts some in?
pub(crate) fn traps_in_the_folder() {
    with_rooms(|bench, room| {
        let traps = "ln -s /etc/passwd link; ln -s / root; mkfifo pipe; mkdir dir; ln -s ../../../etc dir/up
            ln -s /proc/self/root magic; touch none; chmod 000 none; mkdir shut; touch shut/in; chmod 000 shut; echo x > good; ln good hard";
        shell(bench, room, traps);
        for name in ["link", "root/etc/passwd", "pipe", "dir", "dir/up/passwd", "magic/etc/passwd"] {
            let got = room.folder.get(Path::new(name), 1000);
            assert!(matches!(got, Err(TreeError::NoFile { .. })), "{name}: {got:?}");
            let put = room.folder.put(Path::new(&format!("{name}/x")), &b"x"[..], 0o644);
            assert!(put.is_err() || name == "dir", "{name}");
        }
        for name in ["none", "shut/in"] {
            assert!(matches!(room.folder.get(Path::new(name), 1000), Err(TreeError::System { .. })), "{name}");
        }
        assert_eq!((room.get("good"), room.get("hard")), ("x\n".to_owned(), "x\n".to_owned()));
        let names: Vec<PathBuf> = room.folder.list(100).unwrap().into_iter().map(|found| found.name).collect();
        assert_eq!(names, ["dir/x", "good", "hard", "none"].map(PathBuf::from));
        room.put("link", "new");
        assert_eq!(room.get("link"), "new");
        assert_eq!(shell(bench, room, "stat -c %u:%g:%a link; grep -c root /etc/passwd"), "1000:1000:644\n1\n");
        // Even while a program changes what lies there as fast as it can, only its own files come out.
        let swap = "while :; do rm -f s; ln -s /etc/passwd s; rm -f s; echo mine > s; done";
        let start = bench.in_room(room, &["/bin/sh", "-c", swap]);
        let id = bench.start_quiet(start);
        let mut seen = 0;
        until("it was seen often", || {
            if let Ok(bytes) = room.folder.get(Path::new("s"), 1000) {
                assert!(bytes == b"mine\n" || bytes.is_empty());
                seen += 1;
            }
            seen > 50
        });
        bench.cage.kill(id).unwrap();
        bench.ended(id);
    });
}

/// Is there one limit for all that a room may hold, and does it stop the worker too?
pub(crate) fn room_is_limited() {
    for mut bench in benches() {
        let plan = RoomPlan { size_bytes: 64 << 20, files_max: 100, ..RoomPlan::default() };
        bench.cage.plan_rooms(plan).unwrap();
        let room = bench.room();
        let write = "for place in /box /tmp /dev/shm; do head -c 100000000 /dev/zero > $place/big 2>/dev/null; done
            cat /box/big /tmp/big /dev/shm/big | wc -c; rm /box/big /tmp/big /dev/shm/big";
        let written: u64 = shell(&mut bench, &room, write).trim().parse().unwrap();
        assert!((60 << 20..=64 << 20).contains(&written), "{written}");
        let count = "i=0; while : > /tmp/$i; do i=$((i+1)); done 2>/dev/null; ls /tmp | wc -l; rm /tmp/*";
        let ended = bench.run_in(&room, &["/bin/bash", "-c", count]);
        let files: u64 = ended.ok().trim().parse().unwrap();
        assert!((50..=100).contains(&files), "{files}");
        let big = room.folder.put(Path::new("big"), std::io::repeat(1), 0o644);
        assert!(matches!(big, Err(TreeError::Full)), "{big:?}");
        bench.cage.close_room(room.id).unwrap();
        // By default 256 MB, of which 300 are too many.
        bench.cage.plan_rooms(RoomPlan::default()).unwrap();
        let room = bench.room();
        let ended = bench.run_in(&room, &["/bin/sh", "-c", "head -c 300000000 /dev/zero > big"]);
        assert_ne!(ended.evidence.exit_code, Some(0));
        assert!(String::from_utf8_lossy(&ended.stderr).contains("No space left"));
        bench.cage.close_room(room.id).unwrap();
    }
}

/// Do two rooms share nothing, and is the second phase in the same place as the first?
pub(crate) fn rooms_are_apart() {
    with_rooms(|bench, room| {
        let other = bench.room();
        shell(bench, room, "for place in /box /tmp /dev/shm; do echo one > $place/x; done");
        assert_eq!(shell(bench, &other, "ls /box /tmp /dev/shm | grep '^x'; true"), "");
        assert_eq!(shell(bench, room, "cat /box/x /tmp/x /dev/shm/x"), "one\none\none\n");
        assert!(other.folder.list(10).unwrap().is_empty());
        // A System V segment and a queue of one are not in the other.
        let make = "import ctypes; print(ctypes.CDLL(None).shmget(77, 4096, 0o1666))";
        assert_ne!(bench.run_in(room, &["/usr/bin/python3", "-c", make]).ok(), "-1\n");
        let find = "import ctypes; print(ctypes.CDLL(None).shmget(77, 4096, 0o666))";
        assert_eq!(bench.run_in(&other, &["/usr/bin/python3", "-c", find]).ok(), "-1\n");
        bench.cage.close_room(other.id).unwrap();
        // What is in the folder can be had after the room is gone.
        until("that room is gone", || rooms_of(bench).len() == 1);
        other.put("late", "late");
        assert_eq!(other.get("late"), "late");
    });
}

/// Are mistakes answered by name, and does a dead room cost nobody else anything?
pub(crate) fn mistakes_are_named() {
    with_rooms(|bench, room| {
        bench.cage.open_room(room.id).unwrap();
        assert!(bench.room_ready(room.id).err().unwrap().contains("there is one of that number"));
        bench.cage.close_room(9_999_999).unwrap();
        let missing = Start { room: Some(9_999_999), ..bench.in_room(room, &["/bin/true"]) };
        let id = bench.start_quiet(missing);
        assert_eq!(bench.start_failed(id), ("room".to_owned(), libc_enoent()));
        let start = bench.in_room(room, &["/bin/sleep", "1000"]);
        let sleeping = bench.start_quiet(start);
        let start = bench.in_room(room, &["/bin/true"]);
        let id = bench.start_quiet(start);
        assert_eq!(bench.start_failed(id).0, "room");
        bench.cage.kill(sleeping).unwrap();
        bench.ended(sleeping);
        for (argv, cwd, step) in [("/no/such", "/box", "exec"), ("/bin/true", "/work", "chdir")] {
            let start = Start { cwd: cwd.into(), ..bench.in_room(room, &[argv]) };
            let id = bench.start_quiet(start);
            assert_eq!(bench.start_failed(id).0, step);
        }
        // The room's first process is killed by somebody, with a program and without.
        let (first, second) = (bench.room(), bench.room());
        let start = bench.in_room(&first, &["/bin/sleep", "1000"]);
        let id = bench.start_quiet(start);
        bench.started(id);
        let own = |bench: &Bench| rooms_of(bench).len();
        assert_eq!(own(bench), 3);
        let busy =
            rooms_of(bench).into_iter().find(|pid| !children(bench.pid()).is_empty() && has_child(*pid)).unwrap();
        send_signal("KILL", busy);
        assert_eq!(bench.ended(id).exit_code, None);
        assert_eq!(bench.marked(), []);
        bench.cage.close_room(second.id).unwrap();
        until("two are gone", || own(bench) == 1);
        let start = bench.in_room(&first, &["/bin/true"]);
        let id = bench.start_quiet(start);
        assert_eq!(bench.start_failed(id).0, "room");
        assert_eq!(shell(bench, room, "echo unharmed"), "unharmed\n");
        assert_eq!(bench.run("echo host").text(), "host\n");
    });
}

fn has_child(pid: i32) -> bool {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    list.is_ok_and(|list| !list.is_empty())
}

fn libc_enoent() -> i32 {
    rustix::io::Errno::NOENT.raw_os_error()
}

/// Are as many rooms made ahead as were asked for, made again when they are used, and other ones when the plan changes?
pub(crate) fn rooms_wait() {
    for mut bench in benches() {
        let ready = |bench: &Bench, count: usize| {
            until("rooms are ready", || {
                let rooms = rooms_of(bench);
                rooms.len() == count && rooms.iter().all(|pid| is_asleep(*pid))
            });
        };
        bench.cage.plan_rooms(RoomPlan { ready: 2, ..RoomPlan::default() }).unwrap();
        ready(&bench, 2);
        let before = rooms_of(&bench);
        let room = bench.room();
        ready(&bench, 3);
        assert!(before.iter().all(|pid| rooms_of(&bench).contains(pid)));
        let unfit = RoomPlan { extra_places: vec!["/var/lib".into()], ..RoomPlan::default() };
        assert!(bench.cage.plan_rooms(unfit).is_err(), "/var is the room's own");
        // Others: those that wait go, the one that is open stays.
        let waiting = rooms_of(&bench);
        bench.cage.plan_rooms(RoomPlan { ready: 2, files_max: 1000, ..RoomPlan::default() }).unwrap();
        until("they were replaced", || rooms_of(&bench).iter().filter(|pid| waiting.contains(pid)).count() == 1);
        ready(&bench, 3);
        bench.cage.plan_rooms(RoomPlan { ready: 1, files_max: 1000, ..RoomPlan::default() }).unwrap();
        ready(&bench, 2);
        assert_eq!(shell(&mut bench, &room, "echo open"), "open\n");
        bench.cage.plan_rooms(RoomPlan { ready: 0, files_max: 1000, ..RoomPlan::default() }).unwrap();
        ready(&bench, 1);
        bench.cage.close_room(room.id).unwrap();
        ready(&bench, 0);
    }
}

/// Is a place shown that the worker names, read-only, even one in a folder that only root may enter?
pub(crate) fn extra_places_are_shown() {
    for mut bench in benches() {
        // Not in /tmp, where a room has its own: at the top, or beside this executable.
        let beside = std::env::current_exe().unwrap();
        let make = |place: &Path| tempfile::Builder::new().prefix("essaim-place-").tempdir_in(place);
        let home = make(Path::new("/")).or_else(|_| make(beside.parent().unwrap())).unwrap();
        let tool = home.path().join("inner/tool");
        std::fs::create_dir(home.path().join("inner")).unwrap();
        std::fs::write(&tool, "#!/bin/sh\necho tool\n").unwrap();
        let mode = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(&tool, mode(0o755)).unwrap();
        let inner = home.path().join("inner");
        std::fs::set_permissions(&inner, mode(0o755)).unwrap();
        if user_of(&bench) == 0 {
            std::fs::set_permissions(home.path(), mode(0o700)).unwrap();
        } else {
            std::fs::set_permissions(home.path(), mode(0o755)).unwrap();
        }
        let places = vec![inner.clone(), "/no/such/place".into()];
        bench.cage.plan_rooms(RoomPlan { ready: 1, extra_places: places, ..RoomPlan::default() }).unwrap();
        let room = bench.room();
        assert_eq!(bench.run_in(&room, &[tool.to_str().unwrap()]).ok(), "tool\n");
        let script = format!("ls {}; echo x > {}/new || echo no; ls /", home.path().display(), inner.display());
        let seen = shell(&mut bench, &room, &format!("{{ {script}; }} 2>/dev/null"));
        assert!(seen.starts_with("inner\nno\n") && !seen.contains("work"), "{seen}");
    }
}

fn user_of(bench: &Bench) -> u32 {
    std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(format!("/proc/{}", bench.pid())).unwrap())
}

/// Gone, or not yet taken by whoever gets the orphans of this machine.
fn is_dead(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z")) || !has_folder(pid)
}

fn has_folder(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

fn is_asleep(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains("(essaim-room) S"))
}

/// Is nothing left of five hundred rooms: no process, mount, descriptor, of the cage or of us?
pub(crate) fn no_room_leaves_anything() {
    for mut bench in benches() {
        // It has begun, and has an init that waits.
        assert_eq!(bench.run("echo begun").text(), "begun\n");
        let mounts = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap().lines().count();
        let own = i32::try_from(std::process::id()).unwrap();
        let count = |bench: &Bench| (mounts(bench.pid()), mounts(own), open_files(bench.pid()), open_files(own));
        until("the init waits", || children(bench.pid()).is_empty());
        let (theirs, ours, files, own_files) = count(&bench);
        bench.cage.plan_rooms(RoomPlan { ready: 2, ..RoomPlan::default() }).unwrap();
        // A room that waits is a socket and a folder for the cage.
        let expected = (theirs, ours, files + 4, own_files);
        until("two rooms wait", || count(&bench) == expected);
        for _ in 0..250 {
            let room = bench.room();
            room.put("in", "x");
            assert_eq!(shell(&mut bench, &room, "cat in; (sleep 1000 &); echo > out"), "x");
            assert_eq!(room.get("out"), "\n");
            bench.cage.close_room(room.id).unwrap();
        }
        until("all is as it was", || count(&bench) == expected && rooms_of(&bench).len() == 2);
        assert_eq!(bench.marked(), []);
    }
}

/// Do rooms die with their cage, however it dies, and with what is in them?
pub(crate) fn rooms_die_with_the_cage() {
    for mut bench in benches() {
        bench.cage.plan_rooms(RoomPlan { ready: 2, ..RoomPlan::default() }).unwrap();
        let room = bench.room();
        let start = bench.in_room(&room, &["/bin/sh", "-c", "setsid sleep 1000 & sleep 1000"]);
        bench.start_quiet(start);
        until("it has begun", || bench.marked().len() == 3 && rooms_of(&bench).len() == 3);
        let rooms = rooms_of(&bench);
        send_signal("KILL", bench.pid());
        bench.wait_for_exit();
        until("all is dead", || bench.marked().is_empty() && rooms.iter().all(|pid| is_dead(*pid)));
    }
}

/// Is a machine that has no namespaces for us told from one that has, with the reason?
pub(crate) fn denied_namespaces_are_said() {
    let (worker_end, cage_end) = essaim_sandbox::socket_pair().unwrap();
    let script = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$0\" __cage";
    let mut process = Command::new("unshare")
        .args(["--user", "--map-root-user", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .stdin(Stdio::from(cage_end))
        .spawn()
        .unwrap();
    let cage = essaim_sandbox::Cage::new(worker_end);
    cage.plan_rooms(RoomPlan { ready: 2, ..RoomPlan::default() }).unwrap();
    for id in [1, 2] {
        cage.open_room(id).unwrap();
        match cage.next_event().unwrap() {
            Some(essaim_sandbox::Event::RoomFailed { id: found, why }) => {
                assert_eq!(found, id);
                assert!(why.contains("may not make user namespaces"), "{why}");
                assert!(why.ends_with("sysctl -w user.max_user_namespaces=10000"), "{why}");
            }
            other => panic!("{other:?}"),
        }
    }
    drop(cage);
    until("the cage exits", || process.try_wait().unwrap().is_some());
}

/// Is a worker that opens many rooms at once served, each with its own?
pub(crate) fn many_at_once() {
    let mut bench = Bench::new();
    bench.cage.plan_rooms(RoomPlan { ready: 4, ..RoomPlan::default() }).unwrap();
    for id in 1000..1040 {
        bench.cage.open_room(id).unwrap();
    }
    bench.cage.close_room(1039).unwrap();
    // Whichever was first: it is there, or it was closed before.
    assert!(bench.room_ready(1039).err().is_none_or(|why| why.contains("closed before")));
    let rooms: Vec<Room> = (1000..1039).map(|id| bench.room_ready(id).unwrap()).collect();
    let starts: Vec<Start> =
        rooms.iter().map(|room| bench.in_room(room, &["/bin/sh", "-c", "echo $$ > mine; sleep 0.2"])).collect();
    let ids: Vec<u64> = starts.into_iter().map(|start| bench.start_captured(start, Capture::Apart)).collect();
    for id in ids {
        bench.finish_captured(id).ok();
    }
    for room in &rooms {
        assert!(room.get("mine").trim().parse::<u32>().is_ok_and(|pid| pid < 10));
        bench.cage.close_room(room.id).unwrap();
    }
    until("four wait", || rooms_of(&bench).len() == 4);
}
