//! A program to start, as one block of bytes that init needs not translate.
//!
//! `cage` checks what the worker asked for and writes the block; `init` finds in it what exec wants, without copying a
//! string. What is always true: a block that can be written can be read; a request that cannot become a program is
//! refused here, before any init hears of it.
//!
//! Deliberately not here: the streams, which travel beside the block as descriptors, and starting (`init`).

use std::ffi::CStr;
use std::os::unix::ffi::OsStrExt;

use rustix::io::Errno;

use crate::limits::MESSAGE_BYTES_MAX;
use crate::protocol::{Capture, Limits, Start, Step};
use crate::report::Failure;
use crate::sys::ExecImage;

/// The numbers before the strings: niceness, count of arguments, capture, whether it may be given back, limits.
const HEAD_BYTES: usize = 10 + 8 * LIMITS;

const LIMITS: usize = 4;

/// No limit, in a block. As a limit it would be none too.
const UNLIMITED: u64 = u64::MAX;

/// What init is told, in the block that it received.
pub(crate) struct Launch<'a> {
    pub(crate) nice: i32,
    /// `None`: its streams come along.
    pub(crate) capture: Option<Capture>,
    pub(crate) limits: Limits,
    pub(crate) cwd: &'a CStr,
    pub(crate) image: ExecImage<'a>,
}

/// Checks a request and writes the block: the head, then NUL-terminated the folder, the arguments, the environment.
///
/// # Errors
/// The part of it that cannot be: something holds a NUL byte, the program is no path, a name is no name.
pub(crate) fn block(start: &Start, capture: Option<Capture>) -> Result<Vec<u8>, Failure> {
    let unfit = |step| Failure::new(step, Errno::INVAL);
    if !start.argv.first().is_some_and(|program| program.contains('/')) {
        return Err(unfit(Step::Argv));
    }
    if !start.cwd.is_absolute() {
        return Err(unfit(Step::Cwd));
    }
    // A room has one program at a time, and nobody waits before it.
    if start.room.is_some() && start.at_once.is_some() {
        return Err(unfit(Step::Room));
    }
    if start.room.is_none() && start.limits.processes.is_some() {
        return Err(unfit(Step::Limits));
    }
    let mut block = Vec::with_capacity(1024);
    block.extend(start.nice.to_ne_bytes());
    block.extend(u32::try_from(start.argv.len()).map_err(|_| unfit(Step::Argv))?.to_ne_bytes());
    block.push(capture_number(capture));
    block.push(u8::from(start.at_once.is_some() && capture.is_some()));
    let Limits { open_files, file_bytes, stack_bytes, processes } = start.limits;
    for limit in [open_files, file_bytes, stack_bytes, processes] {
        block.extend(limit.unwrap_or(UNLIMITED).to_ne_bytes());
    }
    let mut push = |parts: &[&[u8]], step| {
        for part in parts {
            if part.contains(&0) {
                return Err(unfit(step));
            }
            block.extend_from_slice(part);
        }
        block.push(0);
        Ok(())
    };
    push(&[start.cwd.as_os_str().as_bytes()], Step::Cwd)?;
    for argument in &start.argv {
        push(&[argument.as_bytes()], Step::Argv)?;
    }
    for (name, value) in &start.env {
        if name.is_empty() || name.contains('=') {
            return Err(unfit(Step::Env));
        }
        push(&[name.as_bytes(), b"=", value.as_bytes()], Step::Env)?;
    }
    // It holds the same strings as the request with less between them, so it fits if the request did.
    if block.len() > MESSAGE_BYTES_MAX { Err(Failure::new(Step::Argv, Errno::TOOBIG)) } else { Ok(block) }
}

impl Launch<'_> {
    /// Reads what `block` wrote.
    pub(crate) fn from_block(block: &[u8]) -> Option<Launch<'_>> {
        let (head, strings) = block.split_first_chunk::<HEAD_BYTES>()?;
        let (head, limits) = head.split_first_chunk::<10>()?;
        let [a, b, c, d, e, f, g, h, capture, _] = *head;
        let limits: Vec<Option<u64>> = limits
            .chunks_exact(8)
            .map(|limit| limit.try_into().ok().map(u64::from_ne_bytes).filter(|limit| *limit != UNLIMITED))
            .collect();
        let [open_files, file_bytes, stack_bytes, processes] = limits.try_into().ok()?;
        let limits = Limits { open_files, file_bytes, stack_bytes, processes };
        let arguments = u32::from_ne_bytes([e, f, g, h]);
        let cwd = CStr::from_bytes_until_nul(strings).ok()?;
        let image = ExecImage::new(&strings[cwd.count_bytes() + 1..], usize::try_from(arguments).ok()?)?;
        let capture = match capture {
            0 => None,
            1 => Some(Capture::Apart),
            2 => Some(Capture::Joined),
            _ => return None,
        };
        Some(Launch { nice: i32::from_ne_bytes([a, b, c, d]), capture, limits, cwd, image })
    }
}

/// May an init give this block back instead of starting its program?
pub(crate) fn is_returnable(block: &[u8]) -> bool {
    block.get(9) == Some(&1)
}

fn capture_number(capture: Option<Capture>) -> u8 {
    match capture {
        None => 0,
        Some(Capture::Apart) => 1,
        Some(Capture::Joined) => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::borrow::Cow;

    use crate::protocol::{Request, encode};

    fn start() -> Start {
        Start {
            id: 1,
            argv: vec!["/bin/echo".to_owned(), String::new(), "é".to_owned()],
            env: vec![("A".to_owned(), "x=y".to_owned()), ("B".to_owned(), String::new())],
            cwd: "/tmp".into(),
            wall_limit_ms: None,
            nice: -3,
            at_once: None,
            room: None,
            limits: Limits::default(),
        }
    }

    /// Does the block hold everything, and no more than the request did?
    #[test]
    fn blocks_survive_the_trip() {
        for capture in [None, Some(Capture::Apart), Some(Capture::Joined)] {
            let bytes = block(&start(), capture).unwrap();
            assert!(bytes.ends_with(b"/tmp\0/bin/echo\0\0\xc3\xa9\0A=x=y\0B=\0"));
            let launch = Launch::from_block(&bytes).unwrap();
            assert_eq!((launch.nice, launch.capture, launch.cwd), (-3, capture, c"/tmp"));
            assert!(bytes.len() <= encode(&Request::Start { start: Cow::Owned(start()), capture }).unwrap().len());
        }
        let limits = Limits { open_files: Some(0), processes: Some(7), ..Limits::default() };
        let limited = block(&Start { limits, room: Some(1), ..start() }, None).unwrap();
        assert_eq!(Launch::from_block(&limited).unwrap().limits, limits);
        let queued = Start { at_once: Some(4), ..start() };
        assert!(is_returnable(&block(&queued, Some(Capture::Apart)).unwrap()));
        assert!(!is_returnable(&block(&queued, None).unwrap()), "its streams cannot come again");
        assert!(!is_returnable(&block(&start(), Some(Capture::Apart)).unwrap()) && !is_returnable(&[]));
        let bare = Start { env: Vec::new(), ..start() };
        assert!(Launch::from_block(&block(&bare, None).unwrap()).is_some());
    }

    /// Is every part that cannot be refused by its name?
    #[test]
    fn refusals() {
        let pair = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
        for (start, step) in [
            (Start { argv: Vec::new(), ..start() }, Step::Argv),
            (Start { argv: vec!["true".to_owned()], ..start() }, Step::Argv),
            (Start { argv: vec!["/a".to_owned(), "\0".to_owned()], ..start() }, Step::Argv),
            (Start { env: pair("", "x"), ..start() }, Step::Env),
            (Start { env: pair("a=b", "x"), ..start() }, Step::Env),
            (Start { env: pair("a", "\0"), ..start() }, Step::Env),
            (Start { room: Some(1), at_once: Some(1), ..start() }, Step::Room),
            (Start { limits: Limits { processes: Some(1), ..Limits::default() }, ..start() }, Step::Limits),
            (Start { cwd: "tmp".into(), ..start() }, Step::Cwd),
            (Start { cwd: "/a\0b".into(), ..start() }, Step::Cwd),
        ] {
            assert_eq!(block(&start, None).unwrap_err(), Failure::new(step, Errno::INVAL), "{start:?}");
        }
    }

    /// Does garbage give nothing, and never a panic?
    #[test]
    fn garbage_is_refused() {
        let bytes = block(&start(), None).unwrap();
        for end in 0..bytes.len() {
            let _ = Launch::from_block(&bytes[..end]);
        }
        assert!(Launch::from_block(&bytes[..HEAD_BYTES + 5]).is_none(), "a program without arguments");
        assert!(Launch::from_block(&bytes[..bytes.len() - 1]).is_none(), "a string without an end");
    }
}
