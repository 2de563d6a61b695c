//! A program's output as the user sees it: bytes, safe text on a terminal, or JSON lines.
//!
//! `follow` gives it chunks and results, it gives pieces to the pump (`print`). Always true: without `--json` and off a
//! terminal the bytes are the program's, every one and no other; a JSON line's offset is where its bytes begin in the
//! stream, and a character cut between two chunks is not torn into base64. Of an array only whole lines appear, and a
//! progress bar is never in their way.
//! Deliberately not here: writing (`print`), where the output comes from (`follow`).

use crate::exit::Failure;
use crate::lines::{Lines, Piece};
use crate::print::{Printer, Pump, Side};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use essaim_proto::api::{OutputChunk, Stream};
use essaim_proto::job::{JobState, Phase, TaskCounts, TaskResult, TaskState, TaskView, Verdict};
use essaim_proto::{AttemptId, JobId, TaskId, TaskSet};
use essaim_view::TerminalFilter;
use serde::Serialize;
use std::collections::BTreeMap;

/// What of an output is shown, and how.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Shown {
    /// Only this stream.
    pub(crate) only: Option<Stream>,
    /// Control codes reach the terminal.
    pub(crate) raw: bool,
    /// Of an array: the task's number in front of each line.
    pub(crate) prefix: bool,
}

/// Where a program's output appears.
pub(crate) struct Screen {
    pump: Pump,
    printer: Printer,
    shown: Shown,
    stdout: Face,
    stderr: Face,
    /// Of an array: its lines that have begun.
    array: Option<Array>,
    /// Is a progress bar where the cursor is?
    has_bar: bool,
    /// Was something that was to be shown damaged?
    is_damaged: bool,
    /// Where the last shown byte left the cursor: talk begins on a line of its own.
    at_line_start: bool,
}

/// How one stream is shown.
enum Face {
    Bytes,
    Terminal(TerminalFilter),
    Json(Tails),
}

/// What is special about the output of an array.
#[derive(Debug, Default)]
struct Array {
    lines: Lines,
    /// How wide the largest number is.
    width: usize,
}

/// The beginnings of characters, one for each task that has one.
#[derive(Debug, Default)]
struct Tails(BTreeMap<TaskId, Tail>);

/// The beginning of a character whose rest has not come.
#[derive(Debug, Default)]
struct Tail {
    attempt: AttemptId,
    offset: u64,
    bytes: Vec<u8>,
}

impl Screen {
    /// A screen on our standard output and error.
    ///
    /// # Errors
    /// When the system has no thread or stream for it.
    pub(crate) fn new(printer: Printer, shown: Shown) -> Result<Screen, Failure> {
        let face = |is_terminal: bool| match (printer.is_json(), is_terminal && !shown.raw) {
            (true, _) => Face::Json(Tails::default()),
            (false, true) => Face::Terminal(TerminalFilter::new()),
            (false, false) => Face::Bytes,
        };
        Ok(Screen {
            pump: Pump::start()?,
            printer,
            shown,
            stdout: face(printer.stdout_is_terminal()),
            stderr: face(printer.stderr_is_terminal()),
            array: None,
            has_bar: false,
            is_damaged: false,
            at_line_start: true,
        })
    }

    /// The pump behind it.
    pub(crate) fn pump(&self) -> &Pump {
        &self.pump
    }

    /// What comes is the output of many tasks: only whole lines are shown from now on.
    pub(crate) fn show_array(&mut self, tasks: &TaskSet) {
        let last = u32::try_from(tasks.len().saturating_sub(1)).ok().and_then(|place| tasks.at(place));
        let width = last.unwrap_or_default().to_string().len();
        self.array = Some(Array { lines: Lines::default(), width });
    }

    /// What comes is the output of one task.
    pub(crate) fn show_one(&mut self) {
        self.flush();
        self.erase_bar();
        self.array = None;
    }

    /// Shows a chunk.
    pub(crate) fn chunk(&mut self, chunk: OutputChunk) {
        let counted = chunk.bytes.len() as u64;
        if self.shown.only.is_some_and(|only| only != chunk.stream) {
            return self.skip(counted);
        }
        let task = if self.array.is_some() { format!(" of task {}", chunk.attempt.task) } else { String::new() };
        if chunk.dropped {
            let what = stream_word(chunk.stream);
            self.talk(&format!("the beginning of {what}{task} is no longer kept: it goes on at byte {}", chunk.offset));
        }
        if chunk.damaged_bytes > 0 {
            self.is_damaged = true;
            let (what, to) = (stream_word(chunk.stream), chunk.offset);
            let from = to.saturating_sub(chunk.damaged_bytes);
            // Also with `--quiet`: what is shown is not what the program printed.
            self.say(&format!(
                "error: bytes {from} to {to} of {what}{task} are damaged where the hub kept them, and lost"
            ));
        }
        let stream = chunk.stream;
        let (face, side) = match stream {
            Stream::Stdout => (&mut self.stdout, Side::Stdout),
            Stream::Stderr => (&mut self.stderr, Side::Stderr),
        };
        match (face, &mut self.array) {
            (Face::Json(tails), _) => {
                let lines = tails.lines(chunk);
                self.emit(Side::Stdout, lines, counted);
            }
            (_, Some(array)) => {
                let pieces = array.lines.push(chunk.attempt.task, stream, chunk.bytes);
                // What is held counts as shown: it is little, and a hub that waits for its newline would wait for ever.
                self.skip(counted);
                self.lines(pieces);
            }
            (Face::Bytes, None) => self.emit(side, chunk.bytes, counted),
            (Face::Terminal(filter), None) => {
                let bytes = filter.filter(&chunk.bytes);
                self.emit(side, bytes, counted);
            }
        }
    }

    /// Bytes that are not shown count all the same.
    pub(crate) fn skip(&mut self, counted: u64) {
        self.pump.push(Side::Stdout, Vec::new(), counted);
    }

    /// Nothing more comes of these tasks.
    pub(crate) fn tasks_over(&mut self, tasks: &TaskSet) {
        if let Some(array) = &mut self.array {
            let pieces = array.lines.end(tasks);
            self.lines(pieces);
        }
        for (face, stream) in [(&mut self.stdout, Stream::Stdout), (&mut self.stderr, Stream::Stderr)] {
            if let Face::Json(tails) = face {
                self.pump.push(Side::Stdout, tails.end(tasks, stream), 0);
            }
        }
    }

    /// Whole lines of tasks, as they look here.
    fn lines(&mut self, pieces: Vec<Piece>) {
        for (task, stream, lines) in pieces {
            let (face, side) = match stream {
                Stream::Stdout => (&mut self.stdout, Side::Stdout),
                Stream::Stderr => (&mut self.stderr, Side::Stderr),
            };
            let prefix = self.array.as_ref().filter(|_| self.shown.prefix).map_or_else(String::new, |array| {
                let (dim, off) = if self.printer.may_colour(side) { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
                format!("{dim}{task:>width$}:{off} ", task = task.0, width = array.width)
            });
            let lines = dressed(face, &prefix, lines);
            self.emit(side, lines, 0);
        }
    }

    fn emit(&mut self, side: Side, bytes: Vec<u8>, counted: u64) {
        if !bytes.is_empty() && (side == Side::Stderr || self.printer.stdout_is_terminal()) {
            self.erase_bar();
        }
        if let Some(last) = bytes.last() {
            self.at_line_start = *last == b'\n';
        }
        self.pump.push(side, bytes, counted);
    }

    /// How wide a bar may be; `None`: nobody would see it as one.
    pub(crate) fn bar_width(&self) -> Option<usize> {
        let cannot_erase = || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        if self.printer.is_quiet() || self.printer.is_json() || cannot_erase() {
            return None;
        }
        // In the last column some terminals are on the next line already.
        self.printer.stderr_width().map(|width| width.saturating_sub(1))
    }

    /// Draws the bar, over the one before.
    pub(crate) fn draw_bar(&mut self, line: &str) {
        if self.at_line_start {
            self.has_bar = true;
            self.pump.push(Side::Stderr, format!("\r{line}\x1b[K").into_bytes(), 0);
        }
    }

    fn erase_bar(&mut self) {
        if std::mem::take(&mut self.has_bar) {
            self.pump.push(Side::Stderr, b"\r\x1b[K".to_vec(), 0);
        }
    }

    /// Talk among the output, on a line of its own; not with `--quiet`.
    pub(crate) fn talk(&mut self, text: &str) {
        if !self.printer.is_quiet() {
            self.say(text);
        }
    }

    /// The same with `--quiet` too.
    fn say(&mut self, text: &str) {
        self.erase_bar();
        let both = self.printer.stderr_is_terminal() && self.printer.stdout_is_terminal();
        if both && !self.at_line_start && !self.printer.is_json() {
            self.pump.push(Side::Stderr, b"\n".to_vec(), 0);
        }
        self.at_line_start = true;
        self.pump.note(text);
    }

    /// Was something damaged that was to be shown? That was said.
    pub(crate) fn is_damaged(&self) -> bool {
        self.is_damaged
    }

    /// Talk that follows a Ctrl+C: the terminal has shown `^C` where the cursor was.
    pub(crate) fn talk_after_key(&mut self, text: &str) {
        self.at_line_start = false;
        self.talk(text);
    }

    /// The end of a task as a JSON line; nothing otherwise.
    pub(crate) fn result(&mut self, job: JobId, task: TaskId, result: &TaskResult) {
        match &self.array {
            Some(_) => self.tasks_over(&TaskSet::one(task)),
            None => self.flush(),
        }
        if self.printer.is_json() {
            self.pump.push(Side::Stdout, line(&ResultLine::new(job, task, result)), 0);
        }
    }

    /// The same of a task of which only the state is known.
    pub(crate) fn state(&mut self, job: JobId, view: &TaskView) {
        self.tasks_over(&TaskSet::one(view.task));
        if self.printer.is_json() {
            self.pump.push(Side::Stdout, line(&ResultLine::of_state(job, view)), 0);
        }
    }

    /// Are the ends of tasks asked for one by one?
    pub(crate) fn is_json(&self) -> bool {
        self.printer.is_json()
    }

    /// The end of an array as a JSON line; nothing otherwise.
    pub(crate) fn array_over(&mut self, job: JobId, state: JobState, counts: TaskCounts, failed: &TaskSet) {
        self.flush();
        if self.printer.is_json() {
            let TaskCounts { total, done, failed: failures, cancelled, .. } = counts;
            let failed_tasks = failed.to_string();
            let end = ArrayLine { r#type: "array", job, state, total, done, failed: failures, cancelled, failed_tasks };
            self.pump.push(Side::Stdout, line(&end), 0);
        }
    }

    /// Shows what was held back: half a line, half a character, half a colour.
    fn flush(&mut self) {
        if let Some(array) = &mut self.array {
            let pieces = array.lines.end_all();
            self.lines(pieces);
        }
        for (face, side, stream) in
            [(&mut self.stdout, Side::Stdout, Stream::Stdout), (&mut self.stderr, Side::Stderr, Stream::Stderr)]
        {
            match face {
                Face::Bytes => {}
                Face::Terminal(filter) => self.pump.push(side, filter.finish(), 0),
                Face::Json(tails) => self.pump.push(Side::Stdout, tails.flush(stream), 0),
            }
        }
    }

    /// Waits until all is written.
    ///
    /// # Errors
    /// When standard output is gone or full.
    pub(crate) async fn finish(mut self) -> Result<(), Failure> {
        self.flush();
        self.erase_bar();
        self.pump.finish().await
    }
}

fn stream_word(stream: Stream) -> &'static str {
    match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    }
}

/// Whole lines as they look here: each behind `prefix`, on a terminal each with its colours closed.
fn dressed(face: &mut Face, prefix: &str, lines: Vec<u8>) -> Vec<u8> {
    if prefix.is_empty() && matches!(face, Face::Bytes) {
        return lines;
    }
    let mut dressed = Vec::with_capacity(lines.len());
    for line in lines.split_inclusive(|byte| *byte == b'\n') {
        dressed.extend_from_slice(prefix.as_bytes());
        match face {
            Face::Terminal(filter) => {
                dressed.extend(filter.filter(line.strip_suffix(b"\n").unwrap_or(line)));
                // The next line is another task's.
                dressed.extend(filter.finish());
                dressed.push(b'\n');
            }
            Face::Bytes | Face::Json(_) => dressed.extend_from_slice(line),
        }
    }
    dressed
}

impl Tails {
    fn lines(&mut self, chunk: OutputChunk) -> Vec<u8> {
        let task = chunk.attempt.task;
        let tail = self.0.entry(task).or_default();
        let lines = tail.lines(chunk);
        if tail.bytes.is_empty() {
            self.0.remove(&task);
        }
        lines
    }

    fn end(&mut self, tasks: &TaskSet, stream: Stream) -> Vec<u8> {
        let mut lines = Vec::new();
        for task in tasks.iter() {
            if self.0.is_empty() {
                break;
            }
            lines.extend(self.0.remove(&task).map(|mut tail| tail.flush(stream)).unwrap_or_default());
        }
        lines
    }

    fn flush(&mut self, stream: Stream) -> Vec<u8> {
        std::mem::take(&mut self.0).into_values().flat_map(|mut tail| tail.flush(stream)).collect()
    }
}

impl Tail {
    /// The lines for a chunk: text as far as it is text, else base64.
    fn lines(&mut self, chunk: OutputChunk) -> Vec<u8> {
        let OutputChunk { attempt, stream, mut offset, mut bytes, .. } = chunk;
        let mut lines = Vec::new();
        if !self.bytes.is_empty() {
            if self.attempt == attempt && self.offset + self.bytes.len() as u64 == offset {
                offset = self.offset;
                self.bytes.append(&mut bytes);
                bytes = std::mem::take(&mut self.bytes);
            } else {
                lines = self.flush(stream);
            }
        }
        if let Err(error) = std::str::from_utf8(&bytes)
            && error.error_len().is_none()
        {
            let tail = bytes.split_off(error.valid_up_to());
            *self = Tail { attempt, offset: offset + bytes.len() as u64, bytes: tail };
        }
        if !bytes.is_empty() {
            lines.extend(output_line(attempt.task, stream, offset, &bytes));
        }
        lines
    }

    fn flush(&mut self, stream: Stream) -> Vec<u8> {
        let bytes = std::mem::take(&mut self.bytes);
        if bytes.is_empty() { bytes } else { output_line(self.attempt.task, stream, self.offset, &bytes) }
    }
}

#[derive(Serialize)]
struct OutputLine<'a> {
    r#type: &'a str,
    task: TaskId,
    stream: &'a str,
    offset: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

fn output_line(task: TaskId, stream: Stream, offset: u64, bytes: &[u8]) -> Vec<u8> {
    let text = std::str::from_utf8(bytes).ok();
    let base64 = text.is_none().then(|| STANDARD.encode(bytes));
    line(&OutputLine { r#type: "output", task, stream: stream_word(stream), offset, text, base64 })
}

/// The end of a task, in the order that the documentation shows.
#[derive(Serialize)]
pub(crate) struct ResultLine<'a> {
    r#type: &'a str,
    task: TaskId,
    verdict: &'a str,
    phase: &'a str,
    exit_code: Option<i32>,
    signal: Option<i32>,
    cpu_ms: Option<u64>,
    wall_ms: Option<u64>,
    memory_peak_bytes: Option<u64>,
    stdout_bytes: Option<u64>,
    stderr_bytes: Option<u64>,
    truncated: Option<bool>,
    isolation: Option<&'a str>,
    node: &'a str,
    attempt: u32,
    cache_hit: Option<bool>,
    job: JobId,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a essaim_proto::job::Reason>,
}

/// The end of an array.
#[derive(Serialize)]
struct ArrayLine {
    r#type: &'static str,
    job: JobId,
    state: JobState,
    total: u64,
    done: u64,
    failed: u64,
    cancelled: u64,
    failed_tasks: String,
}

impl<'a> ResultLine<'a> {
    /// The line of this end.
    pub(crate) fn new(job: JobId, task: TaskId, result: &'a TaskResult) -> ResultLine<'a> {
        ResultLine {
            r#type: "result",
            task,
            verdict: result.verdict.name(),
            phase: result.phase.name(),
            exit_code: result.exit_code,
            signal: result.signal,
            cpu_ms: Some(result.cpu_ms),
            wall_ms: Some(result.wall_ms),
            memory_peak_bytes: Some(result.memory_peak_bytes),
            stdout_bytes: Some(result.stdout_bytes),
            stderr_bytes: Some(result.stderr_bytes),
            truncated: Some(result.truncated),
            isolation: Some(result.isolation.as_str()),
            node: &result.node,
            attempt: result.attempt,
            cache_hit: Some(result.cache_hit),
            job,
            reason: result.reason.as_ref(),
        }
    }

    /// The line of a task of which only the state is known: a hub keeps no more of the millions that end well.
    fn of_state(job: JobId, view: &'a TaskView) -> ResultLine<'a> {
        let is_done = view.state == TaskState::Done;
        let verdict = if is_done { Verdict::Ok } else { Verdict::Cancelled };
        ResultLine {
            r#type: "result",
            task: view.task,
            verdict: verdict.name(),
            phase: if is_done { Phase::Run.name() } else { Phase::Prepare.name() },
            exit_code: is_done.then_some(0),
            signal: None,
            cpu_ms: None,
            wall_ms: None,
            memory_peak_bytes: None,
            stdout_bytes: None,
            stderr_bytes: None,
            truncated: None,
            isolation: None,
            node: view.node.as_deref().unwrap_or_default(),
            attempt: view.attempt,
            cache_hit: None,
            job,
            reason: view.reason.as_ref(),
        }
    }
}

fn line(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("our own lines have text keys and no failing parts");
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use essaim_proto::id::TASK_ONE;
    use essaim_proto::job::Isolation;

    fn attempt(attempt: u32) -> AttemptId {
        AttemptId { job: JobId(7), task: TASK_ONE, attempt }
    }

    fn chunk(offset: u64, bytes: &[u8]) -> OutputChunk {
        OutputChunk { attempt: attempt(1), offset, bytes: bytes.to_vec(), ..OutputChunk::default() }
    }

    fn text(lines: Vec<u8>) -> String {
        String::from_utf8(lines).unwrap()
    }

    // The lines that the documentation shows, letter by letter.
    #[test]
    fn output_is_a_line_of_text_or_base64() {
        let mut tail = Tail::default();
        assert_eq!(
            text(tail.lines(chunk(0, b"one \"two\"\n"))),
            "{\"type\":\"output\",\"task\":1,\"stream\":\"stdout\",\"offset\":0,\"text\":\"one \\\"two\\\"\\n\"}\n"
        );
        assert_eq!(
            text(tail.lines(chunk(10, b"\xff\x00"))),
            "{\"type\":\"output\",\"task\":1,\"stream\":\"stdout\",\"offset\":10,\"base64\":\"/wA=\"}\n"
        );
    }

    // A character that comes in two chunks stays text; half a character at the end is base64; no byte is lost.
    #[test]
    fn a_cut_character_is_not_torn() {
        let mut tail = Tail::default();
        let euro = "€".as_bytes();
        assert!(text(tail.lines(chunk(0, &[b"a", &euro[..2]].concat()))).contains("\"offset\":0,\"text\":\"a\""));
        assert!(text(tail.lines(chunk(3, &[&euro[2..], b"b"].concat()))).contains("\"offset\":1,\"text\":\"€b\""));
        assert_eq!(tail.lines(chunk(5, &euro[..1])), b"");
        assert!(text(tail.flush(Stream::Stdout)).contains("\"offset\":5,\"base64\":\"4g==\""));
        assert_eq!(tail.flush(Stream::Stdout), b"");
        // A half that is followed by another attempt is shown before it.
        tail.lines(chunk(6, &euro[..1]));
        let again = OutputChunk { attempt: attempt(2), ..chunk(0, b"x") };
        let lines = text(tail.lines(again));
        assert_eq!(lines.lines().count(), 2);
        assert!(lines.starts_with("{\"type\":\"output\",\"task\":1,\"stream\":\"stdout\",\"offset\":6,\"base64\""));
    }

    // Two tasks at once: the half character of each waits for its other half, and goes out when its task is over.
    #[test]
    fn each_task_has_its_own_half() {
        let mut tails = Tails::default();
        let euro = "€".as_bytes();
        let of = |task: u32, offset, bytes| OutputChunk {
            attempt: AttemptId { task: TaskId(task), ..attempt(1) },
            ..chunk(offset, bytes)
        };
        assert_eq!(tails.lines(of(1, 0, &euro[..1])), b"");
        assert_eq!(tails.lines(of(2, 0, &euro[..2])), b"");
        assert!(
            text(tails.lines(of(1, 1, &euro[1..])))
                .contains("\"task\":1,\"stream\":\"stdout\",\"offset\":0,\"text\":\"€\"")
        );
        assert_eq!(tails.end(&TaskSet::span(3, 9), Stream::Stdout), b"");
        assert!(text(tails.end(&TaskSet::span(1, 9), Stream::Stdout)).contains("\"task\":2"));
        assert_eq!(tails.flush(Stream::Stdout), b"");
    }

    // A line behind its task's number; on a terminal no colour runs into the next one.
    #[test]
    fn lines_are_dressed() {
        let lines = b"\x1b[31mred\nplain\n".to_vec();
        assert_eq!(dressed(&mut Face::Bytes, "", lines.clone()), lines);
        assert_eq!(text(dressed(&mut Face::Bytes, " 7: ", b"a\n\nb\n".to_vec())), " 7: a\n 7: \n 7: b\n");
        let mut terminal = Face::Terminal(TerminalFilter::new());
        assert_eq!(text(dressed(&mut terminal, "7: ", lines)), "7: \x1b[31mred\x1b[0m\n7: plain\n");
        assert_eq!(text(dressed(&mut terminal, "", b"\x1b[2J\xe2\n".to_vec())), "\\x1b[2J\\xe2\n");
    }

    // Of a task that ended well only that may be known: the fields are there, and say that nobody knows.
    #[test]
    fn what_nobody_knows_is_null() {
        let view = TaskView { task: TaskId(5), state: TaskState::Done, attempt: 2, ..TaskView::default() };
        let said = text(line(&ResultLine::of_state(JobId(7), &view)));
        assert!(said.contains(
            "\"task\":5,\"verdict\":\"ok\",\"phase\":\"run\",\"exit_code\":0,\"signal\":null,\"cpu_ms\":null"
        ));
        assert!(said.ends_with("\"attempt\":2,\"cache_hit\":null,\"job\":7}\n"), "{said}");
        let view = TaskView { state: TaskState::Cancelled, ..view };
        assert!(
            text(line(&ResultLine::of_state(JobId(7), &view)))
                .contains("\"cancelled\",\"phase\":\"prepare\",\"exit_code\":null")
        );
    }

    // The end of a task has every documented field, in order.
    #[test]
    fn a_result_has_all_fields() {
        let result = TaskResult {
            verdict: Verdict::Ok,
            phase: Phase::Run,
            exit_code: Some(0),
            isolation: Isolation::None,
            node: "local-1".into(),
            attempt: 1,
            ..TaskResult::default()
        };
        let expected = "{\"type\":\"result\",\"task\":1,\"verdict\":\"ok\",\"phase\":\"run\",\"exit_code\":0,\"signal\":null,\
            \"cpu_ms\":0,\"wall_ms\":0,\"memory_peak_bytes\":0,\"stdout_bytes\":0,\"stderr_bytes\":0,\"truncated\":false,\
            \"isolation\":\"none\",\"node\":\"local-1\",\"attempt\":1,\"cache_hit\":false,\"job\":7}\n";
        assert_eq!(text(line(&ResultLine::new(JobId(7), TASK_ONE, &result))), expected);
    }
}
