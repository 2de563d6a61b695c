//! What the cage knows of one program, from its start to its last word.
//!
//! Owned by `cage`. Pure but for the numbers that it keeps: no call to the system, time is an argument.
//!
//! ```text
//!   waits in the cage ◄──► given to an init, behind others ──► first of its init: Starting
//!      └── unwanted: Event::Ended, without having run; all that may run do so for longer: Event::Returned
//!
//!   Starting ──Started──► Running ──Finished──► Over ──► Event::Ended
//!      │ └───────────Finished (captured)─────────▲
//!      │                     └──────init reaped without a word: lost──► orphans killed ──► Event::Ended
//!      ├──Failed──► Failed ──► Event::StartFailed
//!      └──init reaped without a word: lost ──► orphans killed ──► Event::StartFailed, captured: Event::Ended
//! ```
//!
//! What is always true: there is exactly one last word, and it is said only when init has proved that the tree is empty,
//! or was reaped itself. A stop is asked for once; the first reason is the reason. An init that we had to kill is reaped
//! before the last word, and gets no other program. Deliberately not here: signals and waiting (`cage`), and the verdict
//! (`verdict`).

use std::time::Duration;

use rustix::io::Errno;

use crate::clock::Moment;
use crate::limits::{GIVEN_BYTES_MAX, GIVEN_WALL_MIN, INIT_GRACE, REAP_WAIT, SAMPLE_EVERY, WAITING_TICKS};
use crate::meter::Reading;
use crate::proc::{FileId, RawPid};
use crate::protocol::{Capture, Event, Evidence, Printed, ProgramId, Start, Step, Stop};
use crate::report::{Failure, Finished, Report};

/// One program of a cage.
pub(crate) struct Program {
    pub(crate) id: ProgramId,
    /// The init that has it. `None`: it waits.
    pub(crate) init: Option<RawPid>,
    /// What init is told; empty when nobody will be told again.
    pub(crate) block: Vec<u8>,
    /// How many that may wait run at once; `None`: it may not.
    pub(crate) at_once: Option<u32>,
    capture: Option<Capture>,
    /// Its stdin, if a reader of it may wait for the worker.
    pub(crate) stdin: Option<FileId>,
    /// When init was told, or has told.
    began: Moment,
    /// It was given behind others: init knows when it began.
    is_late: bool,
    wall_limit: Option<Duration>,
    deadline: Option<Moment>,
    state: State,
    stopping: Option<Stopping>,
    init_reaped: Option<Moment>,
    /// CPU time of what init had waited for before this program.
    reaped_before: Duration,
    peak: Reading,
    blocked_ticks: u32,
    told_waiting: bool,
    sampled: Moment,
}

#[derive(Clone, Debug)]
enum State {
    Starting,
    Running,
    Failed(Failure),
    Over(Finished, Printed),
}

#[derive(Clone, Copy, Debug)]
struct Stopping {
    why: Stop,
    /// When to tell init again: an order that comes before it has begun the program is taken for one about another.
    repeat_at: Moment,
    /// When init will have had its chance, or when to try again.
    force_at: Moment,
    is_forced: bool,
}

impl Program {
    /// A program that no init was told of yet.
    pub(crate) fn new(start: &Start, capture: Option<Capture>, block: Vec<u8>, now: Moment) -> Program {
        Program {
            id: start.id,
            init: None,
            block,
            at_once: start.at_once.filter(|_| capture.is_some()),
            capture,
            stdin: None,
            began: now,
            is_late: false,
            wall_limit: start.wall_limit_ms.map(Duration::from_millis),
            deadline: None,
            state: State::Starting,
            stopping: None,
            init_reaped: None,
            reaped_before: Duration::ZERO,
            peak: Reading::default(),
            blocked_ticks: 0,
            told_waiting: false,
            sampled: now,
        }
    }

    /// May it stand behind another one in the socket of an init?
    pub(crate) fn may_stand_behind(&self) -> bool {
        self.at_once.is_some()
            && self.block.len() <= GIVEN_BYTES_MAX
            && self.wall_limit.is_none_or(|limit| limit >= GIVEN_WALL_MIN)
    }

    /// `init` was told to start it: at once, or after others.
    pub(crate) fn give(&mut self, init: RawPid, is_late: bool, now: Moment) {
        (self.init, self.is_late, self.began) = (Some(init), is_late, now);
        self.deadline = self.wall_limit.filter(|_| !is_late).map(|limit| now.plus(limit));
    }

    /// It is the first of its init. If it was given behind others, it has not begun before the last report of them; its
    /// limit is counted from here on until init says better.
    pub(crate) fn is_first(&mut self, now: Moment) {
        if self.is_late && self.deadline.is_none() {
            self.began = now;
            self.deadline = self.wall_limit.map(|limit| now.plus(limit));
        }
    }

    /// It has not begun, and waits again.
    pub(crate) fn take_back(&mut self) {
        (self.init, self.deadline) = (None, None);
    }

    /// Takes a report of init and the output that came with it.
    pub(crate) fn hear(&mut self, report: Report, output: &[u8]) -> Option<Event> {
        match report {
            Report::Returned { .. } | Report::Ready { .. } => {}
            Report::Started { pid, reaped_before_micros, began_nanos, .. } => {
                self.state = State::Running;
                self.block = Vec::new();
                self.begun_at(began_nanos);
                self.reaped_before = Duration::from_micros(reaped_before_micros);
                return Some(Event::Started { id: self.id, pid });
            }
            Report::Failed(failure) => self.state = State::Failed(failure),
            Report::Finished(finished) => {
                self.begun_at(finished.began_nanos);
                let (stdout, stderr) = match self.capture {
                    Some(Capture::Joined) => (&output[..0], output),
                    _ => {
                        let stdout_bytes = usize::try_from(finished.stdout_bytes).unwrap_or(usize::MAX);
                        output.split_at(stdout_bytes.min(output.len()))
                    }
                };
                self.state = State::Over(finished, Printed { stdout: stdout.to_vec(), stderr: stderr.to_vec() });
            }
        }
        None
    }

    fn begun_at(&mut self, nanos: u64) {
        if self.is_late {
            self.began = Moment::from_nanos(nanos);
            self.deadline = self.wall_limit.map(|limit| self.began.plus(limit));
        }
    }

    /// Whether init has said the last that it has to say of this program.
    pub(crate) fn is_told(&self) -> bool {
        matches!(self.state, State::Failed(_) | State::Over(..))
    }

    /// Whether its exec is known to have succeeded, and its end is not known yet.
    pub(crate) fn is_running(&self) -> bool {
        matches!(self.state, State::Running)
    }

    /// Notes that init is gone.
    pub(crate) fn init_gone(&mut self, now: Moment) {
        self.init_reaped = Some(now);
    }

    /// Whether init is gone.
    pub(crate) fn is_init_gone(&self) -> bool {
        self.init_reaped.is_some()
    }

    /// Whether init is gone without saying how the program ended: processes of it may be alive, as children of the
    /// cage.
    pub(crate) fn is_lost(&self) -> bool {
        self.is_init_gone() && !self.is_told()
    }

    /// Whether a stop has begun.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    /// Begins a stop. Returns whether something must be done about it, which is the case once.
    pub(crate) fn stop(&mut self, why: Stop, now: Moment) -> bool {
        if self.stopping.is_some() || self.is_init_gone() {
            return false;
        }
        self.stopping =
            Some(Stopping { why, repeat_at: now.plus(REAP_WAIT), force_at: now.plus(INIT_GRACE), is_forced: false });
        true
    }

    /// Whether its wall limit has passed and nothing was done about it yet.
    pub(crate) fn is_overdue(&self, now: Moment) -> bool {
        self.stopping.is_none() && self.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// Whether init is to be told to stop once more, now.
    pub(crate) fn must_repeat(&mut self, now: Moment) -> bool {
        match &mut self.stopping {
            Some(stopping) if self.init_reaped.is_none() && !stopping.is_forced && stopping.repeat_at <= now => {
                stopping.repeat_at = now.plus(REAP_WAIT);
                true
            }
            _ => false,
        }
    }

    /// Whether init was told to stop and did not manage. Says so again some time later if it is still there.
    pub(crate) fn must_force(&mut self, now: Moment) -> bool {
        match &mut self.stopping {
            Some(stopping) if self.init_reaped.is_none() && stopping.force_at <= now => {
                stopping.is_forced = true;
                stopping.force_at = now.plus(REAP_WAIT);
                true
            }
            _ => false,
        }
    }

    /// When `is_overdue`, `must_repeat` or `must_force` may change, if nothing else happens.
    pub(crate) fn next_wake(&self) -> Option<Moment> {
        match self.stopping {
            _ if self.is_init_gone() => None,
            Some(stopping) if stopping.is_forced => Some(stopping.force_at),
            Some(stopping) => Some(stopping.force_at.min(stopping.repeat_at)),
            None => self.deadline,
        }
    }

    /// Takes a look of the meter; gives the events that follow from it.
    pub(crate) fn note(&mut self, reading: Reading, now: Moment) -> Vec<Event> {
        let mut events = Vec::new();
        if !self.is_running() {
            return events;
        }
        self.peak.cpu = self.peak.cpu.max(reading.cpu.saturating_sub(self.reaped_before));
        self.peak.memory_bytes = self.peak.memory_bytes.max(reading.memory_bytes);
        self.peak.processes = self.peak.processes.max(reading.processes);
        self.blocked_ticks = if reading.reads_stdin { self.blocked_ticks.saturating_add(1) } else { 0 };
        let waiting = self.blocked_ticks >= WAITING_TICKS;
        if waiting != self.told_waiting {
            self.told_waiting = waiting;
            events.push(Event::WaitingForInput { id: self.id, waiting });
        }
        if now.since(self.sampled) >= SAMPLE_EVERY {
            self.sampled = now;
            events.push(Event::Sample {
                id: self.id,
                cpu_ms: millis(self.peak.cpu),
                memory_bytes: reading.memory_bytes,
                processes: reading.processes,
            });
        }
        events
    }

    /// The last event of a program that was stopped before it began.
    pub(crate) fn never_ran(&self) -> Event {
        let evidence = Evidence { stopped_by: self.stopping.map(|stopping| stopping.why), ..Evidence::default() };
        Event::Ended { id: self.id, evidence, output: Printed::default() }
    }

    /// The last event of this program. To be called when init has told, or is gone; if the program is lost, its orphans
    /// too.
    pub(crate) fn last_word(&mut self) -> Event {
        let failed = |failure: Failure| Event::StartFailed {
            id: self.id,
            step: failure.step.word().to_owned(),
            errno: failure.errno,
        };
        match self.state {
            State::Failed(failure) => failed(failure),
            // Of a captured program nobody says that it started. An init that dies has a program that kills it, or
            // died of something that the program did.
            State::Starting if self.capture.is_none() => failed(Failure::new(Step::Init, Errno::SRCH)),
            State::Starting | State::Running => {
                Event::Ended { id: self.id, evidence: self.evidence_of_lost(), output: Printed::default() }
            }
            State::Over(finished, ref mut output) => {
                let output = std::mem::take(output);
                Event::Ended { id: self.id, evidence: self.evidence(finished), output }
            }
        }
    }

    fn evidence(&self, finished: Finished) -> Evidence {
        // If we had to kill the tree ourselves, init may have reaped the program before it got to know why.
        let stopped =
            |stopping: &Stopping| finished.stopped || (stopping.is_forced && finished.signal == Some(libc::SIGKILL));
        Evidence {
            exit_code: finished.exit_code,
            signal: finished.signal,
            stopped_by: self.stopping.filter(stopped).map(|stopping| stopping.why),
            // A process whose parent ignores SIGCHLD is in no sum of waitpid; the meter may have seen it.
            cpu_ms: millis(self.peak.cpu.max(Duration::from_micros(finished.cpu_micros))),
            wall_ms: millis(Moment::from_nanos(finished.ended_nanos).since(self.began)),
            memory_peak_bytes: self.peak.memory_bytes.max(finished.memory_peak_bytes),
            processes_peak: self.peak.processes.max(1),
        }
    }

    /// Init was killed: all that is known is what we did and what the meter saw.
    fn evidence_of_lost(&self) -> Evidence {
        Evidence {
            exit_code: None,
            signal: self.stopping.map(|_| libc::SIGKILL),
            stopped_by: self.stopping.map(|stopping| stopping.why),
            cpu_ms: millis(self.peak.cpu),
            wall_ms: millis(self.init_reaped.unwrap_or(self.began).since(self.began)),
            memory_peak_bytes: self.peak.memory_bytes,
            processes_peak: self.peak.processes.max(1),
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Limits;

    const MS: Duration = Duration::from_millis(1);

    fn at(ms: u64) -> Moment {
        Moment::from_nanos(ms * 1_000_000)
    }

    const STARTED: Report =
        Report::Started { pid: 9, reaped_before_micros: 40_000, began_nanos: 1_002_000_000, returned: 0 };

    fn start(wall_limit_ms: Option<u64>, at_once: Option<u32>) -> Start {
        let (argv, env, cwd) = (Vec::new(), Vec::new(), std::path::PathBuf::new());
        Start { id: 5, argv, env, cwd, wall_limit_ms, nice: 0, at_once, room: None, limits: Limits::default() }
    }

    fn program(wall_limit_ms: Option<u64>) -> Program {
        let mut program = Program::new(&start(wall_limit_ms, None), None, Vec::new(), at(900));
        program.give(1_000_000, false, at(1000));
        program
    }

    fn captured(capture: Capture) -> Program {
        let mut program = Program::new(&start(None, None), Some(capture), Vec::new(), at(900));
        program.give(1_000_000, false, at(1000));
        program
    }

    fn finished(exit_code: Option<i32>, signal: Option<i32>, stopped: bool) -> Report {
        Report::Finished(Finished {
            exit_code,
            signal,
            stopped,
            began_nanos: at(1002).nanos(),
            ended_nanos: at(1250).nanos(),
            cpu_micros: 3_000,
            memory_peak_bytes: 77,
            stdout_bytes: 2,
        })
    }

    fn evidence(program: &mut Program) -> Evidence {
        match program.last_word() {
            Event::Ended { id: 5, evidence, .. } => evidence,
            other => panic!("{other:?}"),
        }
    }

    /// The ordinary life: does every figure arrive?
    #[test]
    fn exits_by_itself() {
        let mut program = program(None);
        assert_eq!(program.hear(STARTED, &[]), Some(Event::Started { id: 5, pid: 9 }));
        assert_eq!(program.next_wake(), None);
        assert_eq!(program.hear(finished(Some(3), None, false), &[]), None);
        assert!(program.is_told() && !program.is_lost());
        let expected = Evidence {
            exit_code: Some(3),
            cpu_ms: 3,
            wall_ms: 250,
            memory_peak_bytes: 77,
            processes_peak: 1,
            ..Evidence::default()
        };
        assert_eq!(evidence(&mut program), expected);
    }

    /// Does the wall limit of one that waits count from its own beginning, and is its wall time its own?
    #[test]
    fn late_ones_count_from_their_beginning() {
        let late = |wall_limit_ms| {
            let start = start(Some(wall_limit_ms), Some(2));
            let mut program = Program::new(&start, Some(Capture::Apart), vec![1], at(900));
            assert_eq!((program.next_wake(), program.is_overdue(at(90_000))), (None, false));
            program.give(7, true, at(1000));
            assert_eq!(program.next_wake(), None);
            program
        };
        assert!(late(1000).may_stand_behind() && !late(999).may_stand_behind());
        let mut program = late(2000);
        program.is_first(at(1100));
        assert_eq!(program.next_wake(), Some(at(3100)));
        program.take_back();
        assert_eq!((program.init, program.next_wake()), (None, None));
        program.give(8, true, at(1150));
        program.is_first(at(1200));
        program.is_first(at(1300));
        assert_eq!(program.next_wake(), Some(at(3200)));
        program.hear(STARTED, &[]);
        assert!(program.next_wake() == Some(at(3002)) && program.block.is_empty());
        program.hear(finished(Some(0), None, false), &[]);
        assert_eq!(evidence(&mut program).wall_ms, 248);
        // One that never ran says only who did not want it.
        let mut program = late(2000);
        assert!(program.stop(Stop::Kill, at(1100)) && program.is_stopping());
        let expected = Evidence { stopped_by: Some(Stop::Kill), ..Evidence::default() };
        assert!(matches!(program.never_ran(), Event::Ended { evidence, .. } if evidence == expected));
    }

    /// Is the wall limit noticed at its moment, acted on once, and forced after the grace?
    #[test]
    fn wall_limit() {
        let mut program = program(Some(100));
        program.hear(STARTED, &[]);
        assert_eq!(program.next_wake(), Some(at(1100)));
        assert!(!program.is_overdue(at(1099)) && program.is_overdue(at(1100)));
        assert!(program.stop(Stop::Wall, at(1100)));
        assert!(!program.is_overdue(at(1101)) && !program.stop(Stop::Kill, at(1101)));
        assert_eq!(program.next_wake(), Some(at(1100).plus(REAP_WAIT)));
        assert!(!program.must_repeat(at(1101)) && !program.must_force(at(1101)));
        assert!(program.must_repeat(at(1100).plus(REAP_WAIT)) && !program.must_repeat(at(1100).plus(REAP_WAIT)));
        assert_eq!(program.next_wake(), Some(at(1100).plus(2 * REAP_WAIT)));
        assert!(program.must_force(at(1100).plus(INIT_GRACE)));
        assert!(!program.must_force(at(1100).plus(INIT_GRACE + MS)) && !program.must_repeat(at(90_000)));
        program.hear(finished(None, Some(9), true), &[]);
        assert_eq!(evidence(&mut program).stopped_by, Some(Stop::Wall));
    }

    /// Who ended it, if the program ends in the very moment of a stop? Only what really died of our signal was stopped.
    #[test]
    fn stopped_by() {
        let rows = [
            (finished(Some(0), None, false), false, None),
            (finished(None, Some(9), true), false, Some(Stop::Kill)),
            (finished(None, Some(9), false), false, None),
            (finished(None, Some(9), false), true, Some(Stop::Kill)),
            (finished(None, Some(11), false), true, None),
        ];
        for (report, forced, expected) in rows {
            let mut program = program(None);
            program.hear(STARTED, &[]);
            program.stop(Stop::Kill, at(1100));
            if forced {
                assert!(program.must_force(at(9000)));
            }
            program.hear(report, &[]);
            assert_eq!(evidence(&mut program).stopped_by, expected, "{report:?} {forced}");
        }
    }

    /// What is said of a program whose init was killed?
    #[test]
    fn lost() {
        let mut running = program(None);
        running.hear(STARTED, &[]);
        running.init_gone(at(1400));
        assert!(running.is_lost());
        let found = evidence(&mut running);
        assert_eq!((found.exit_code, found.signal, found.stopped_by, found.wall_ms), (None, None, None, 400));
        let mut starting = program(None);
        starting.init_gone(at(1400));
        assert!(starting.is_lost());
        assert!(matches!(starting.last_word(), Event::StartFailed { id: 5, .. }));
    }

    /// Does the output of a captured program come with its end, split at the right place? What is said if its init was
    /// killed before it said anything?
    #[test]
    fn captured_output() {
        let rows = [(Capture::Apart, "ab", "cde"), (Capture::Joined, "", "abcde")];
        for (capture, stdout, stderr) in rows {
            let mut program = captured(capture);
            assert!(!program.is_told());
            program.hear(finished(Some(0), None, false), b"abcde");
            assert!(program.is_told() && !program.is_lost());
            let Event::Ended { output, .. } = program.last_word() else { panic!("no end") };
            assert_eq!((&output.stdout[..], &output.stderr[..]), (stdout.as_bytes(), stderr.as_bytes()));
        }
        let mut short = captured(Capture::Apart);
        short.hear(finished(Some(0), None, false), b"a");
        assert!(matches!(short.last_word(), Event::Ended { output, .. } if output.stdout == b"a"));
        let mut lost = captured(Capture::Apart);
        lost.init_gone(at(1400));
        assert!(lost.is_lost());
        assert_eq!(evidence(&mut lost).exit_code, None);
    }

    /// Is "waits for input" said after two looks, once, and taken back at once? Are samples a second apart?
    #[test]
    fn notes() {
        let mut program = program(None);
        let reads = Reading { reads_stdin: true, ..Reading::default() };
        assert_eq!(program.note(reads, at(1050)), [], "nothing is said before it started");
        program.hear(STARTED, &[]);
        assert_eq!(program.note(reads, at(1100)), []);
        assert_eq!(program.note(reads, at(1150)), [Event::WaitingForInput { id: 5, waiting: true }]);
        assert_eq!(program.note(reads, at(1200)), []);
        let runs = Reading { memory_bytes: 5, processes: 2, cpu: 47 * MS, ..Reading::default() };
        assert_eq!(program.note(runs, at(1250)), [Event::WaitingForInput { id: 5, waiting: false }]);
        let sample = Event::Sample { id: 5, cpu_ms: 7, memory_bytes: 5, processes: 2 };
        assert_eq!(program.note(runs, at(2000)), [sample]);
        assert_eq!(program.note(runs, at(2900)), []);
    }
}
