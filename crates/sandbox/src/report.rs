//! The two tiny records that travel through pipes below the cage.
//!
//! `Report`: init → cage through the status pipe, 64 bytes each, so that a write is atomic and a read never sees half
//! of one. `Failure`: program-to-be → init through a pipe that exec closes; silence means that exec succeeded.
//!
//! What is always true: encoding needs no memory from the heap (it runs between fork and exec), and decoding of any
//! bytes gives a record or nothing. Deliberately not here: MessagePack; these never leave the machine's kernel, and the
//! program itself never holds either pipe once it runs.

use crate::protocol::Step;

/// Size of every record in the status pipe: far below PIPE_BUF, room for what later limits add.
pub(crate) const REPORT_BYTES: usize = 64;

/// Size of a failure record.
pub(crate) const FAILURE_BYTES: usize = 5;

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

    pub(crate) fn to_bytes(self) -> [u8; FAILURE_BYTES] {
        let [a, b, c, d] = self.errno.to_ne_bytes();
        [self.step.number(), a, b, c, d]
    }

    pub(crate) fn from_bytes(bytes: [u8; FAILURE_BYTES]) -> Option<Failure> {
        let [step, a, b, c, d] = bytes;
        Some(Failure { step: Step::from_number(step)?, errno: i32::from_ne_bytes([a, b, c, d]) })
    }
}

/// What an init found when its tree was empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Finished {
    pub(crate) exit_code: Option<i32>,
    pub(crate) signal: Option<i32>,
    /// The program died of our SIGKILL, not by itself.
    pub(crate) stopped: bool,
    /// When the program itself was reaped, as `Moment::nanos`.
    pub(crate) ended_nanos: u64,
    pub(crate) cpu_micros: u64,
    pub(crate) memory_peak_bytes: u64,
}

/// One record of the status pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// exec succeeded.
    Started { pid: i32 },
    /// It did not; init exits next.
    Failed(Failure),
    /// The program ended and nothing below init is alive; init exits next.
    Finished(Finished),
}

const STARTED: u64 = 1;
const FAILED: u64 = 2;
const FINISHED: u64 = 3;

/// "No value" for exit codes and signals, which are never negative.
const NONE: i64 = -1;

impl Report {
    /// Eight words of eight bytes: kind first, then the fields in the order of their declaration.
    pub(crate) fn to_bytes(self) -> [u8; REPORT_BYTES] {
        let optional = |value: Option<i32>| value.map_or(NONE, i64::from).cast_unsigned();
        let words: [u64; 8] = match self {
            Report::Started { pid } => [STARTED, i64::from(pid).cast_unsigned(), 0, 0, 0, 0, 0, 0],
            Report::Failed(failure) => {
                let errno = i64::from(failure.errno).cast_unsigned();
                [FAILED, u64::from(failure.step.number()), errno, 0, 0, 0, 0, 0]
            }
            Report::Finished(end) => [
                FINISHED,
                optional(end.exit_code),
                optional(end.signal),
                u64::from(end.stopped),
                end.ended_nanos,
                end.cpu_micros,
                end.memory_peak_bytes,
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
        let mut words = [0_u64; 8];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_ne_bytes(chunk.try_into().ok()?);
        }
        let number = |word: u64| i32::try_from(word.cast_signed()).ok();
        let optional = |word: u64| number(word).filter(|value| *value >= 0);
        match words[0] {
            STARTED => Some(Report::Started { pid: number(words[1])? }),
            FAILED => Some(Report::Failed(Failure {
                step: Step::from_number(u8::try_from(words[1]).ok()?)?,
                errno: number(words[2])?,
            })),
            FINISHED => Some(Report::Finished(Finished {
                exit_code: optional(words[1]),
                signal: optional(words[2]),
                stopped: words[3] != 0,
                ended_nanos: words[4],
                cpu_micros: words[5],
                memory_peak_bytes: words[6],
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
            ended_nanos: u64::MAX,
            cpu_micros: 12,
            memory_peak_bytes: 1 << 40,
        };
        let failure = Failure { step: Step::Chdir, errno: 2 };
        for report in [
            Report::Started { pid: 4_194_304 },
            Report::Failed(failure),
            Report::Finished(finished),
            Report::Finished(Finished { exit_code: Some(0), signal: None, stopped: false, ..finished }),
        ] {
            assert_eq!(Report::from_bytes(&report.to_bytes()), Some(report));
        }
        assert_eq!(Failure::from_bytes(failure.to_bytes()), Some(failure));
    }

    /// Are unknown kinds and steps refused?
    #[test]
    fn unknown_records_are_refused() {
        assert_eq!(Report::from_bytes(&[0; REPORT_BYTES]), None);
        assert_eq!(Report::from_bytes(&[0xff; REPORT_BYTES]), None);
        assert_eq!(Failure::from_bytes([200, 0, 0, 0, 0]), None);
    }
}
