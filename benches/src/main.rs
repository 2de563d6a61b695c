//! How fast essaim is from outside: the real binary against the floor of the machine, in the same run, as ratios.
//!
//! `cargo build --release && cargo run --release -p essaim-benches` prints the table of docs/performance.md. Every
//! figure is the median of interleaved rounds, so that a noisy machine disturbs both sides alike.
//! Deliberately not here: assertions. A timed test would fail on a busy machine; figures are read by people.

mod accept;
mod arrays;
mod ask;
mod core;
mod history;
mod launch;
mod rooms;
mod simulated;
mod turns;

use anyhow::{Context, Result, bail, ensure};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Runs of each side in one figure.
const ROUNDS: usize = 60;
/// Bytes of the large output.
const FLOOD_BYTES: usize = 50_000_000;

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let only = words.next().unwrap_or_default();
    let binary = binary()?;
    match only.as_str() {
        "" => all(&binary),
        "simulate" => simulated::simulate(&words.next().context("how many workers?")?),
        "latency" => latency(&binary),
        "launch" => launch::launches(&binary),
        "rooms" => rooms::rooms(&binary),
        "arrays" => arrays::arrays(&binary),
        "turns" => turns::turns(&binary),
        "hub" => simulated::hub(&binary),
        "memory" => simulated::memory(&binary),
        "accept" => accept::accepted(&binary),
        "history" => history::history(&binary),
        "core" => core::core(),
        _ => bail!("{only:?} is none of: latency launch rooms arrays turns hub memory accept history core"),
    }
}

/// Every table.
fn all(binary: &Path) -> Result<()> {
    println!("machine: {} processors, load {}", std::thread::available_parallelism()?, load());
    println!("binary:  {}", binary.display());
    latency(binary)?;
    launch::launches(binary)?;
    rooms::rooms(binary)?;
    arrays::arrays(binary)?;
    turns::turns(binary)?;
    simulated::hub(binary)?;
    accept::accepted(binary)?;
    history::history(binary)?;
    core::core()
}

/// How soon programs begin and their output is there.
fn latency(binary: &Path) -> Result<()> {
    let swarm = Swarm::start(binary)?;
    println!();
    println!("| what | median | p95 | against | ratio or difference |");
    println!("|---|---:|---:|---|---:|");
    start_up(binary)?;
    warm_run(&swarm)?;
    live_lines(&swarm, "Python", "clock.py", PYTHON_CLOCK, Command::new("python3").args(["-u", "-c", PYTHON_CLOCK]))?;
    let (clock, stdbuf) = (c_clock(&swarm)?, ["-oL"]);
    live_lines(&swarm, "C", "clock.c", C_CLOCK, Command::new("stdbuf").args(stdbuf).arg(clock))?;
    flood(&swarm)?;
    swarm.stop().map(drop)
}

/// The binary beside this one: both come from the same build.
fn binary() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let path = own.with_file_name("essaim");
    ensure!(path.exists(), "{} is missing: build it first with the same profile", path.display());
    Ok(path)
}

fn load() -> String {
    std::fs::read_to_string("/proc/loadavg").unwrap_or_default().split(' ').next().unwrap_or("?").to_owned()
}

/// A hub with one local worker in a folder of its own.
struct Swarm {
    binary: PathBuf,
    home: tempfile::TempDir,
    up: Child,
}

impl Swarm {
    fn start(binary: &Path) -> Result<Swarm> {
        let swarm = Swarm::on(binary, tempfile::tempdir()?, &[])?;
        // The first runs warm caches and wait for the worker.
        for _ in 0..5 {
            swarm.timed(&["run", "--command", "--", "/bin/true"])?;
        }
        Ok(swarm)
    }

    /// A hub that only accepts.
    fn without_workers(binary: &Path) -> Result<Swarm> {
        Swarm::on(binary, tempfile::tempdir()?, &["--local-workers", "0"])
    }

    fn on(binary: &Path, home: tempfile::TempDir, more: &[&str]) -> Result<Swarm> {
        let mut up = Command::new(binary)
            .args(["up", "--json", "--client-addr", "127.0.0.1:0", "--worker-addr", "127.0.0.1:0"])
            .args(more)
            .env("ESSAIM_HOME", home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut ready = String::new();
        BufReader::new(up.stdout.take().context("no stdout")?).read_line(&mut ready)?;
        ensure!(!ready.is_empty(), "`essaim up` ended before it was ready");
        Ok(Swarm { binary: binary.to_owned(), home, up })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(args).env("ESSAIM_HOME", self.home.path()).stdin(Stdio::null());
        command
    }

    fn timed(&self, args: &[&str]) -> Result<Duration> {
        timed(&mut self.command(args))
    }

    /// Stops the hub and gives its folder back.
    fn stop(mut self) -> Result<tempfile::TempDir> {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.up), rustix::process::Signal::INT)?;
        let status = self.up.wait()?;
        ensure!(status.success(), "`essaim up` ended with {status}");
        Ok(self.home)
    }
}

fn timed(command: &mut Command) -> Result<Duration> {
    let begun = Instant::now();
    let status = command.stdout(Stdio::null()).status()?;
    let took = begun.elapsed();
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(took)
}

fn row(what: &str, mut ours: Vec<Duration>, against: &str, comparison: &str) {
    ours.sort();
    let at = |part: f64| ours[((ours.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
    println!("| {what} | {:.2} ms | {:.2} ms | {against} | {comparison} |", at(0.5), at(0.95));
}

fn median(values: &[Duration]) -> Duration {
    let mut sorted = values.to_vec();
    sorted.sort();
    sorted[sorted.len() / 2]
}

/// Start to first byte of a subcommand that needs nothing.
fn start_up(binary: &Path) -> Result<()> {
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(first_byte(Command::new(binary).arg("--version"))?);
        floor.push(first_byte(Command::new("/bin/echo").arg("x"))?);
    }
    let ratio = median(&ours).as_secs_f64() / median(&floor).as_secs_f64();
    row("`essaim --version`, start to first byte", ours, "`/bin/echo`", &format!("{ratio:.1} ×"));
    Ok(())
}

fn first_byte(command: &mut Command) -> Result<Duration> {
    let begun = Instant::now();
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut byte = [0];
    child.stdout.as_mut().context("no stdout")?.read_exact(&mut byte)?;
    let took = begun.elapsed();
    child.wait()?;
    Ok(took)
}

/// One warm run of a program that does nothing, command line to command line.
fn warm_run(swarm: &Swarm) -> Result<()> {
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(swarm.timed(&["run", "--command", "--", "/bin/true"])?);
        floor.push(timed(&mut Command::new("/bin/true"))?);
    }
    let over = (median(&ours).as_secs_f64() - median(&floor).as_secs_f64()) * 1e3;
    row("`essaim run --command -- /bin/true`, warm", ours, "`/bin/true` itself", &format!("+ {over:.2} ms"));
    Ok(())
}

/// Prints the time at which each line is written; does not flush.
const PYTHON_CLOCK: &str = "import time
for i in range(30):
    print(time.time())
    time.sleep(0.05)
";

/// The same in C.
const C_CLOCK: &str = r#"#include <stdio.h>
#include <time.h>
int main(void) {
    for (int i = 0; i < 30; i++) {
        struct timespec now, pause = {0, 50000000};
        clock_gettime(CLOCK_REALTIME, &now);
        printf("%lld.%09ld\n", (long long)now.tv_sec, now.tv_nsec);
        nanosleep(&pause, 0);
    }
}
"#;

/// The C clock, compiled for the floor's side.
fn c_clock(swarm: &Swarm) -> Result<PathBuf> {
    let (source, program) = (swarm.home.path().join("floor.c"), swarm.home.path().join("floor"));
    std::fs::write(&source, C_CLOCK)?;
    let status = Command::new("gcc").arg("-o").arg(&program).arg(&source).status()?;
    ensure!(status.success(), "gcc failed");
    Ok(program)
}

/// How long after a line was written it is read from the command line's output, with a cleared environment.
fn live_lines(swarm: &Swarm, name: &str, file: &str, source: &str, floor: &mut Command) -> Result<()> {
    let script = swarm.home.path().join(file);
    std::fs::write(&script, source)?;
    let delays = |command: &mut Command| -> Result<Vec<Duration>> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut delays = Vec::new();
        for line in BufReader::new(child.stdout.take().context("no stdout")?).lines() {
            let written: f64 = line?.trim().parse()?;
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
            delays.push(Duration::from_secs_f64((now - written).max(0.0)));
        }
        ensure!(child.wait()?.success(), "the clock failed");
        Ok(delays)
    };
    let mut run = swarm.command(&["run"]);
    run.arg(&script).env_clear().env("ESSAIM_HOME", swarm.home.path()).env("PATH", "/usr/bin:/bin");
    let ours = delays(&mut run)?;
    let floor = delays(floor)?;
    let over = (median(&ours).as_secs_f64() - median(&floor).as_secs_f64()) * 1e3;
    row(&format!("a line of {name}, written to read"), ours, "the same through a pipe", &format!("+ {over:.2} ms"));
    Ok(())
}

/// A large output, byte-exact.
fn flood(swarm: &Swarm) -> Result<()> {
    let argument = format!("head -c {FLOOD_BYTES} /dev/zero | tr '\\0' 'e'");
    let read = |command: &mut Command| -> Result<(Duration, blake3::Hash)> {
        let begun = Instant::now();
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(child.stdout.take().context("no stdout")?)?;
        ensure!(child.wait()?.success(), "the flood failed");
        Ok((begun.elapsed(), hasher.finalize()))
    };
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let (took, hash) = read(&mut swarm.command(&["run", "--command", "--", "sh", "-c", &argument]))?;
        let (plain, plain_hash) = read(Command::new("sh").args(["-c", &argument]))?;
        if hash != plain_hash {
            bail!("the output differs from the program's own");
        }
        ours.push(took);
        floor.push(plain);
    }
    let ratio = median(&ours).as_secs_f64() / median(&floor).as_secs_f64();
    let rate = FLOOD_BYTES as f64 / 1e6 / median(&ours).as_secs_f64();
    let what = format!("50 MB of output ({rate:.0} MB/s), BLAKE3 equal");
    row(&what, ours, "the same through a pipe", &format!("{ratio:.1} ×"));
    std::io::stdout().flush()?;
    Ok(())
}
