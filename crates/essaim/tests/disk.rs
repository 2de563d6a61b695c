//! A disk that is full or may not be written, under a real hub. The disk is a file system in memory that the test mounts,
//! which takes root: elsewhere the tests say so and do nothing.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]
#![allow(clippy::print_stdout)] // A failed test shows what it printed.

mod swarm;

use rustix::process::Signal;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use swarm::{Home, Running, Swarm, up, wait_for, wait_until};
use tempfile::TempDir;

/// Room on the disk: more than what a store keeps free for the ends of what runs (64 MiB), and quickly filled.
const DISK_MB: u64 = 160;

/// Room that is left when the disk is nearly full: less than what is kept free.
const NEARLY_FULL_BYTES: u64 = 24 << 20;

/// A small disk.
struct Disk {
    folder: TempDir,
}

impl Disk {
    /// `None` when nothing can be mounted here; that is said then.
    fn mount() -> Option<Disk> {
        let disk = Disk { folder: tempfile::Builder::new().prefix("essaim-disk-").tempdir().unwrap() };
        let size = format!("size={DISK_MB}m");
        match mounting(&["mount", "-t", "tmpfs", "-o", &size, "tmpfs"], disk.path()) {
            Ok(()) => Some(disk),
            Err(why) => {
                println!("skipped: a disk for this test cannot be mounted: {why}");
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn free_bytes(&self) -> u64 {
        let disk = rustix::fs::statvfs(self.path()).unwrap();
        disk.f_bavail * disk.f_frsize
    }

    /// Fills it until only `left` bytes are free, or as near as it gets.
    fn fill(&self, left: u64) -> Ballast {
        let ballast = Ballast { path: self.path().join("ballast") };
        let mut file = std::fs::File::options().create(true).append(true).open(&ballast.path).unwrap();
        let zeros = vec![0; 64 << 10];
        while self.free_bytes() > left {
            let count = (self.free_bytes() - left).min(zeros.len() as u64) as usize;
            // Others write too: the last bytes may be theirs.
            if file.write_all(&zeros[..count]).is_err() {
                break;
            }
        }
        ballast
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = mounting(&["umount", "-l"], self.path());
    }
}

/// What takes the room; gives it back when dropped.
struct Ballast {
    path: PathBuf,
}

impl Drop for Ballast {
    fn drop(&mut self) {
        std::fs::remove_file(&self.path).unwrap();
    }
}

fn mounting(words: &[&str], place: &Path) -> Result<(), String> {
    let ran = Command::new(words[0]).args(&words[1..]).arg(place).output().map_err(|error| error.to_string())?;
    if ran.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&ran.stderr).trim().to_owned()) }
}

/// Begins a program that ends when the file `flag` is there.
fn patient(swarm: &Swarm, flag: &Path) -> Running {
    let script = format!("echo begun; until [ -e '{}' ]; do sleep 0.05; done; echo ended; exit 7", flag.display());
    let mut run = swarm.run(&["--command", "--", "sh", "-c", &script]).start();
    assert_eq!(run.line(), "begun");
    run
}

fn echo(swarm: &Swarm) -> swarm::Words {
    swarm.run(&["--command", "--", "echo", "well"])
}

/// Everything that only looks.
fn looks(swarm: &Swarm) {
    let list = swarm.essaim(&["job", "list", "--json"]).run().good().json();
    assert!(!list.as_array().unwrap().is_empty());
    assert_eq!(swarm.essaim(&["job", "logs", "1"]).run().good().text(), "well\n");
    assert_eq!(swarm.nodes().len(), 1);
}

// A nearly full disk: new work is refused by name, what runs ends and is recorded, looking goes on, and with room again
// everything works.
#[test]
fn a_full_disk_refuses_new_work_and_nothing_else() {
    let Some(disk) = Disk::mount() else { return };
    let flags = tempfile::tempdir().unwrap();
    let home = Home::on(disk.path());
    let words = up(&home, &["--slots", "4"]);
    let swarm = Swarm::of(home, words);
    echo(&swarm).run().good();
    let running = patient(&swarm, &flags.path().join("nearly"));
    let ballast = disk.fill(NEARLY_FULL_BYTES);
    let refused = wait_for("new work is refused", || {
        let ran = echo(&swarm).run();
        (ran.code() != 0).then_some(ran)
    });
    let refused = refused.ended(125);
    assert!(refused.stderr.contains("The hub's store is full"), "{}", refused.stderr);
    let key = swarm.essaim(&["key", "create", "ada", "--role", "admin"]).run().ended(1);
    assert!(key.stderr.contains("The hub's store is full"), "{}", key.stderr);
    looks(&swarm);
    std::fs::write(flags.path().join("nearly"), "").unwrap();
    assert_eq!(running.end().ended(7).text(), "begun\nended\n");
    drop(ballast);
    wait_until("new work is accepted again", || echo(&swarm).run().code() == 0);
    swarm.stop();
}

// Not a byte is left: the end of a program waits at its worker until there is room, looking goes on, the hub lives.
#[test]
fn an_end_waits_for_room() {
    let Some(disk) = Disk::mount() else { return };
    let flags = tempfile::tempdir().unwrap();
    let home = Home::on(disk.path());
    let words = up(&home, &["--slots", "4"]);
    let swarm = Swarm::of(home, words);
    echo(&swarm).run().good();
    let running = patient(&swarm, &flags.path().join("full"));
    let ballast = disk.fill(0);
    wait_until("new work is refused", || echo(&swarm).run().code() != 0);
    std::fs::write(flags.path().join("full"), "").unwrap();
    for _ in 0..10 {
        looks(&swarm);
    }
    drop(ballast);
    assert_eq!(running.end().ended(7).text(), "begun\nended\n");
    wait_until("new work is accepted again", || echo(&swarm).run().code() == 0);
    swarm.stop();
}

// A disk that may not be written: one sentence that says so.
#[test]
fn a_read_only_disk_is_named() {
    let Some(disk) = Disk::mount() else { return };
    let home = Home::on(disk.path());
    let words = up(&home, &[]);
    let swarm = Swarm::of(home, words);
    swarm.up.signal(Signal::INT);
    let Swarm { home, up: running, .. } = swarm;
    running.end().good();
    mounting(&["mount", "-o", "remount,ro"], disk.path()).unwrap();
    let ran = up(&home, &[]).run().ended(3);
    let lines: Vec<&str> = ran.stderr.lines().collect();
    assert_eq!(lines.len(), 1, "{}", ran.stderr);
    assert!(lines[0].starts_with("error: ") && lines[0].contains(&home.path().display().to_string()), "{}", lines[0]);
    assert!(lines[0].to_lowercase().contains("read-only"), "{}", lines[0]);
    mounting(&["mount", "-o", "remount,rw"], disk.path()).unwrap();
}
