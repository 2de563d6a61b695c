//! What walls cost: `/bin/true` in a room that waits, in one that has to be made, plainly spawned, and in bubblewrap.
//!
//! `main` calls [`rooms`]. A real cage process of the real binary is driven directly, as a worker would: a room is opened, one
//! captured program runs in it, the room is closed. The sides alternate, one program each.
//! Deliberately not here: programs without walls (`launch`), files in and out.

use crate::launch::PROGRAM;
use crate::{load, median};
use anyhow::{Context, Result, bail};
use essaim_sandbox::{Cage, Capture, Event, Limits, RoomPlan, Start, socket_pair};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Programs of each side in the table of latencies.
const ROUNDS: usize = 300;
/// Programs of each row in the table of rates.
const PROGRAMS: u64 = 1_500;
/// Between two programs: long enough for the room that was used to be replaced, and for the old one to be gone.
const PAUSE: Duration = Duration::from_millis(6);

/// What bubblewrap shows; a room shows some files more.
const BUBBLEWRAP: &str = "--unshare-all --die-with-parent --ro-bind /usr /usr --symlink usr/bin /bin --symlink usr/lib /lib \
    --symlink usr/lib64 /lib64 --ro-bind /opt /opt --ro-bind /etc/alternatives /etc/alternatives \
    --ro-bind /etc/ld.so.cache /etc/ld.so.cache --ro-bind /etc/ssl /etc/ssl --proc /proc --dev /dev --tmpfs /tmp \
    --tmpfs /box --chdir /box";

/// Two tables: how long one takes, how many a second.
pub(crate) fn rooms(binary: &Path) -> Result<()> {
    let (warm, cold) = (Driver::start(binary, 4)?, Driver::start(binary, 0)?);
    let (mut warm, mut cold) = (warm, cold);
    let has_bubblewrap = Command::new("bwrap").arg("--version").stdout(Stdio::null()).status().is_ok();
    let (mut plain, mut waiting, mut made, mut open, mut bubble) = (vec![], vec![], vec![], vec![], vec![]);
    warm.caged()?;
    for _ in 0..ROUNDS {
        settle();
        plain.push(timed(|| Ok(_ = Command::new(PROGRAM).status()?))?);
        let begun = Instant::now();
        let room = warm.open()?;
        let opened = begun.elapsed();
        warm.run(room)?;
        waiting.push(begun.elapsed());
        open.push(opened);
        warm.close(room)?;
        settle();
        made.push(timed(|| cold.caged())?);
        settle();
        if has_bubblewrap {
            let arguments = BUBBLEWRAP.split_ascii_whitespace();
            bubble.push(timed(|| Ok(_ = Command::new("bwrap").args(arguments).arg(PROGRAM).status()?))?);
        }
    }
    let (floor, first) = (median(&plain).as_secs_f64() * 1e3, at(&plain, 10));
    println!();
    println!("load {}; `{PROGRAM}`, median of {ROUNDS}", load());
    println!("| how | p10 | median | p99 | over plain | p10 over plain | of bubblewrap |");
    println!("|---|---:|---:|---:|---:|---:|---:|");
    let bubblewrap = (!bubble.is_empty()).then(|| median(&bubble).as_secs_f64() * 1e3);
    for (how, times) in [
        ("plainly spawned", plain),
        ("a room that waits: opened", open),
        ("a room that waits: opened, program over", waiting),
        ("a room that has to be made, program over", made),
        ("bubblewrap", bubble),
    ] {
        if times.is_empty() {
            continue;
        }
        let middle = median(&times).as_secs_f64() * 1e3;
        let (early, late) = (at(&times, 10), at(&times, 99));
        let share = bubblewrap.map_or("-".to_owned(), |other| format!("{:.2}", middle / other));
        println!(
            "| {how} | {early:.3} ms | {middle:.3} ms | {late:.3} ms | {:.3} ms | {:.3} ms | {share} |",
            middle - floor,
            early - first
        );
    }
    println!();
    println!("| in rooms, used once each | a second |");
    println!("|---|---:|");
    for at_once in [1, 2, 4] {
        let mut driver = Driver::start(binary, 8)?;
        let begun = Instant::now();
        driver.many(PROGRAMS, at_once)?;
        println!("| {at_once} at once | {:.0} |", PROGRAMS as f64 / begun.elapsed().as_secs_f64());
    }
    Ok(())
}

fn timed(run: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let begun = Instant::now();
    run()?;
    Ok(begun.elapsed())
}

/// Lets what the last program left behind be done.
fn settle() {
    std::thread::sleep(PAUSE); // poll: a cage does not say when it has made a room ahead.
}

/// Milliseconds that so many of a hundred did not take longer than.
fn at(times: &[Duration], percent: usize) -> f64 {
    let mut times = times.to_vec();
    times.sort();
    times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3
}

/// A cage and who asks it.
struct Driver {
    cage: Option<Cage>,
    process: Child,
    next: u64,
}

impl Driver {
    fn start(binary: &Path, ready: u32) -> Result<Driver> {
        let (ours, theirs) = socket_pair()?;
        let process = Command::new(binary).arg("__cage").stdin(Stdio::from(theirs)).spawn()?;
        let cage = Cage::new(ours);
        cage.plan_rooms(RoomPlan { ready, ..RoomPlan::default() })?;
        Ok(Driver { cage: Some(cage), process, next: 0 })
    }

    fn cage(&self) -> Result<&Cage> {
        self.cage.as_ref().context("no cage")
    }

    fn open(&mut self) -> Result<u64> {
        self.next += 1;
        self.cage()?.open_room(self.next)?;
        match self.cage()?.next_event()?.context("the cage is gone")? {
            Event::RoomReady { id, .. } => Ok(id),
            other => bail!("{other:?}"),
        }
    }

    fn run(&self, room: u64) -> Result<()> {
        self.begin(room)?;
        loop {
            match self.cage()?.next_event()?.context("the cage is gone")? {
                Event::Ended { .. } => return Ok(()),
                // It was held up for more than a moment.
                Event::Started { .. } | Event::Output { .. } => {}
                other => bail!("{other:?}"),
            }
        }
    }

    fn begin(&self, room: u64) -> Result<()> {
        let start = Start {
            id: room,
            argv: vec![PROGRAM.to_owned()],
            env: vec![("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned())],
            cwd: "/box".into(),
            wall_limit_ms: Some(60_000),
            // As the others, or it would be their programs that are measured on a busy machine.
            nice: 0,
            at_once: None,
            room: Some(room),
            limits: Limits { open_files: Some(256), processes: Some(64), ..Limits::default() },
        };
        Ok(self.cage()?.start_captured(&start, Capture::Apart)?)
    }

    fn close(&self, room: u64) -> Result<()> {
        Ok(self.cage()?.close_room(room)?)
    }

    fn caged(&mut self) -> Result<()> {
        let room = self.open()?;
        self.run(room)?;
        self.close(room)
    }

    /// So many, each in a room of its own.
    fn many(&mut self, programs: u64, at_once: u64) -> Result<()> {
        let (mut asked, mut over) = (0, 0);
        while over < programs {
            while asked < programs && asked - over < at_once {
                asked += 1;
                self.next += 1;
                self.cage()?.open_room(self.next)?;
            }
            match self.cage()?.next_event()?.context("the cage is gone")? {
                Event::RoomReady { id, .. } => self.begin(id)?,
                Event::Ended { id, .. } => {
                    self.close(id)?;
                    over += 1;
                }
                Event::Started { .. } | Event::Output { .. } | Event::Sample { .. } => {}
                other => bail!("{other:?}"),
            }
        }
        Ok(())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.cage = None;
        // It kills and removes what it has; its end is that of all rooms.
        let _ = self.process.wait();
    }
}
