//! What an init tells the cage: the record that every packet from init begins with.
//!
//! What is always true: records have one size, decoding of any bytes gives a record or nothing. What follows a record in
//! its packet is captured output. Deliberately not here: MessagePack; these never leave the machine's kernel, and no
//! program ever holds the socket.

use crate::protocol::{Isolation, Step};

/// Size of every record: room for what later limits add.
pub(crate) const REPORT_BYTES: usize = 8 * WORDS;

const WORDS: usize = 10;

/// What failed before the program ran, and the system's error number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) step: Step,
    pub(crate) errno: i32,
}

impl Failure {
    pub(crate) fn new(step: Step, errno: rustix::io::Errno) -> Failure {
        Failure { step, errno: errno.raw_os_error() }
    }
}

/// What a room has not, because the kernel has not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Missing {
    /// There is no /proc at all.
    pub(crate) proc: bool,
    /// Its /proc shows more than the room's own processes.
    pub(crate) proc_limits: bool,
    pub(crate) landlock: bool,
    pub(crate) seccomp: bool,
}

impl Missing {
    fn to_word(self) -> u64 {
        let bits = [self.proc, self.proc_limits, self.landlock, self.seccomp];
        bits.iter().rev().fold(0, |word, bit| word << 1 | u64::from(*bit))
    }

    fn from_word(word: u64) -> Missing {
        let bit = |place: u32| word >> place & 1 == 1;
        Missing { proc: bit(0), proc_limits: bit(1), landlock: bit(2), seccomp: bit(3) }
    }

    /// In the worker's words.
    pub(crate) fn isolation(self) -> Isolation {
        let all = [
            (self.proc, "proc"),
            (self.proc_limits, "proc limits"),
            (self.landlock, "landlock"),
            (self.seccomp, "seccomp"),
        ];
        let missing: Vec<String> =
            all.iter().filter(|(is_missing, _)| *is_missing).map(|(_, word)| (*word).to_owned()).collect();
        if missing.is_empty() { Isolation::Full } else { Isolation::Reduced { missing } }
    }
}

/// What an init found when its tree was empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Finished {
    pub(crate) exit_code: Option<i32>,
    pub(crate) signal: Option<i32>,
    /// The program died of our SIGKILL, not by itself.
    pub(crate) stopped: bool,
    /// When the program's process was made, as `Moment::nanos`.
    pub(crate) began_nanos: u64,
    /// When the program itself was reaped, as `Moment::nanos`.
    pub(crate) ended_nanos: u64,
    pub(crate) cpu_micros: u64,
    pub(crate) memory_peak_bytes: u64,
    /// How many of the bytes that follow are of stdout; the others are of stderr.
    pub(crate) stdout_bytes: u64,
}

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// A room's walls stand and it waits for its first program. The folder of its /box comes along. Said once, first; a room
    /// that cannot be made says `Failed` instead, and ends.
    Ready { missing: Missing },
    /// exec succeeded. The pipes of captured output come along, if there are any.
    Started {
        pid: i32,
        /// CPU time of what init had waited for before this program.
        reaped_before_micros: u64,
        /// When the program's process was made, as `Moment::nanos`.
        began_nanos: u64,
        /// So many blocks that came behind this program's were dropped unread.
        returned: u32,
    },
    /// Blocks were dropped unread, those that came first.
    Returned {
        /// How many.
        count: u32,
        /// Behind the block of a program that runs.
        is_running: bool,
    },
    /// exec did not succeed; init is ready for the next program.
    Failed(Failure),
    /// The program ended and nothing below init is alive; init is ready for the next program.
    Finished(Finished),
}

const STARTED: u64 = 1;
const FAILED: u64 = 2;
const FINISHED: u64 = 3;
const RETURNED: u64 = 4;
const READY: u64 = 5;

/// "No value" for exit codes and signals, which are never negative.
const NONE: i64 = -1;

impl Report {
    /// Ten words of eight bytes: kind first, then the fields in the order of their declaration.
    pub(crate) fn to_bytes(self) -> [u8; REPORT_BYTES] {
        let optional = |value: Option<i32>| value.map_or(NONE, i64::from).cast_unsigned();
        let words: [u64; WORDS] = match self {
            Report::Ready { missing } => [READY, missing.to_word(), 0, 0, 0, 0, 0, 0, 0, 0],
            Report::Started { pid, reaped_before_micros, began_nanos, returned } => {
                let pid = i64::from(pid).cast_unsigned();
                [STARTED, pid, reaped_before_micros, began_nanos, u64::from(returned), 0, 0, 0, 0, 0]
            }
            Report::Returned { count, is_running } => {
                [RETURNED, u64::from(count), u64::from(is_running), 0, 0, 0, 0, 0, 0, 0]
            }
            Report::Failed(failure) => {
                let errno = i64::from(failure.errno).cast_unsigned();
                [FAILED, u64::from(failure.step.number()), errno, 0, 0, 0, 0, 0, 0, 0]
            }
            Report::Finished(end) => [
                FINISHED,
                optional(end.exit_code),
                optional(end.signal),
                u64::from(end.stopped),
                end.began_nanos,
                end.ended_nanos,
                end.cpu_micros,
                end.memory_peak_bytes,
                end.stdout_bytes,
                0,
            ],
        };
        let mut bytes = [0; REPORT_BYTES];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8; REPORT_BYTES]) -> Option<Report> {
        let mut words = [0_u64; WORDS];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_ne_bytes(chunk.try_into().ok()?);
        }
        let number = |word: u64| i32::try_from(word.cast_signed()).ok();
        let optional = |word: u64| number(word).filter(|value| *value >= 0);
        match words[0] {
            STARTED => Some(Report::Started {
                pid: number(words[1])?,
                reaped_before_micros: words[2],
                began_nanos: words[3],
                returned: u32::try_from(words[4]).ok()?,
            }),
            READY => Some(Report::Ready { missing: Missing::from_word(words[1]) }),
            RETURNED => Some(Report::Returned { count: u32::try_from(words[1]).ok()?, is_running: words[2] != 0 }),
            FAILED => Some(Report::Failed(Failure {
                step: Step::from_number(u8::try_from(words[1]).ok()?)?,
                errno: number(words[2])?,
            })),
            FINISHED => Some(Report::Finished(Finished {
                exit_code: optional(words[1]),
                signal: optional(words[2]),
                stopped: words[3] != 0,
                began_nanos: words[4],
                ended_nanos: words[5],
                cpu_micros: words[6],
                memory_peak_bytes: words[7],
                stdout_bytes: words[8],
            })),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Does each record come back as it was?
    #[test]
    fn records_survive_the_trip() {
        let finished = Finished {
            exit_code: None,
            signal: Some(9),
            stopped: true,
            began_nanos: 5,
            ended_nanos: u64::MAX,
            cpu_micros: 12,
            memory_peak_bytes: 1 << 40,
            stdout_bytes: 7,
        };
        let failure = Failure { step: Step::Chdir, errno: 2 };
        let missing = Missing { proc: false, proc_limits: true, landlock: false, seccomp: true };
        let words = vec!["proc limits".to_owned(), "seccomp".to_owned()];
        assert_eq!(missing.isolation(), Isolation::Reduced { missing: words });
        assert_eq!(Missing::default().isolation(), Isolation::Full);
        for report in [
            Report::Ready { missing },
            Report::Ready { missing: Missing { proc: true, landlock: true, ..Missing::default() } },
            Report::Started { pid: 4_194_304, reaped_before_micros: u64::MAX, began_nanos: 3, returned: u32::MAX },
            Report::Returned { count: 7, is_running: true },
            Report::Returned { count: 0, is_running: false },
            Report::Failed(failure),
            Report::Finished(finished),
            Report::Finished(Finished { exit_code: Some(0), signal: None, stopped: false, ..finished }),
        ] {
            assert_eq!(Report::from_bytes(&report.to_bytes()), Some(report));
        }
    }

    /// Are unknown kinds and steps refused?
    #[test]
    fn unknown_records_are_refused() {
        assert_eq!(Report::from_bytes(&[0; REPORT_BYTES]), None);
        assert_eq!(Report::from_bytes(&[0xff; REPORT_BYTES]), None);
        let mut failed = Report::Failed(Failure { step: Step::Chdir, errno: 2 }).to_bytes();
        failed[8] = 200;
        assert_eq!(Report::from_bytes(&failed), None);
    }
}
