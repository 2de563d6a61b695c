//! Attempts that bring no files and read no live input: they begin, run and end within the driver, without a task, a
//! pipe or a folder of their own, because a program of half a millisecond should not cost as much again.
//!
//! The driver holds all of them in one [`Quicks`], tells it what happens, and gives the inputs that come back to the
//! core. What takes longer gets help: a room that is not there is made by a task, a program that outlives its capture
//! gets a pump (`output`) for what it prints, and so does an end with more than little output.
//!
//! ```text
//!   prepare ─▶ a spare room, or one is made ─▶ Prepared ─▶ launch ─▶ ended, with all output ─▶ PhaseEnded ─▶ end
//!                                                           └─▶ output: a pump reads ─▶ ended ─▶ read ─┘
//! ```
//!
//! Always true: nothing here waits; output goes out before the end and is kept until the hub has it; a room serves an
//! attempt only if it is as new.
//! Deliberately not here: attempts with files or live input (`attempt`), decisions (the core).

use crate::attempt::{
    Failure, Launch, PumpHand, Reading, Workshop, is_joined, output_max, phase_end, refused_by_cage, remove_folders,
    start_failed,
};
use crate::cage::Streams;
use crate::driver::Event;
use crate::folder::{Places, Room};
use crate::limits::{LITTLE_OUTPUT_BYTES, PROGRAM_NICE};
use crate::link::{Link, Offsets};
use crate::output::{Printing, cut};
use essaim_core::worker::Input;
use essaim_proto::api::Stream;
use essaim_proto::job::{Phase, Reason, TaskResult, Verdict};
use essaim_proto::link::{AttemptOutput, Ended};
use essaim_proto::{AttemptId, Frame, Function};
use essaim_sandbox::{CageError, Capture, Evidence, Limits, Order, OutputPipes, Printed, ProgramId, Start};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::task::spawn_blocking;

/// What a task tells, that was begun for one of these attempts.
#[derive(Debug)]
pub(crate) enum QuickNews {
    /// A room was made, or why not.
    Room {
        /// For whom.
        attempt: AttemptId,
        /// What came of it.
        made: Result<Room, String>,
    },
    /// The cage was asked, after it could not be at once.
    Asked {
        /// For whom.
        attempt: AttemptId,
        /// To start this.
        program: ProgramId,
        /// Which cage, by its number.
        asked: Result<u64, CageError>,
    },
}

/// All such attempts of a worker.
pub(crate) struct Quicks {
    workshop: Workshop,
    attempts: BTreeMap<AttemptId, Quick>,
    spare: Vec<Room>,
    /// As many as may be in use at once.
    spare_max: usize,
    rooms_made: u64,
    /// The last cage that died.
    died: u64,
    /// What the cage is still to be asked, of one turn of the driver.
    asks: Vec<Ask>,
    /// The same, as the cage wants it.
    orders: Vec<Order>,
}

/// A start that the cage is to be asked for.
struct Ask {
    attempt: AttemptId,
    start: Start,
    capture: Capture,
}

struct Quick {
    /// The session that brought it.
    born: u64,
    /// `None`: it is being made, or was given back.
    room: Option<Room>,
    running: Option<Running>,
    output: Output,
}

/// A program that the cage was asked to start.
struct Running {
    program: ProgramId,
    /// The word that named it.
    word: String,
    phase: Phase,
    /// Bytes that it may print.
    output_max: u64,
    /// The cage that was asked; `None`: it is still being asked.
    generation: Option<u64>,
    /// Its pipes are read.
    reading: Option<Reading>,
}

/// What an attempt has printed.
enum Output {
    /// It is here, and nobody was told.
    Here {
        bytes: [Vec<u8>; 2],
        /// What the hub has.
        acked: Offsets,
    },
    /// A pump has it.
    Pumped(PumpHand),
}

impl Quicks {
    /// None yet; at most so many attempts have begun and are not over.
    pub(crate) fn new(workshop: Workshop, begun_max: u32) -> Quicks {
        Quicks {
            workshop,
            attempts: BTreeMap::new(),
            spare: Vec::new(),
            spare_max: begun_max as usize,
            rooms_made: 0,
            died: 0,
            asks: Vec::new(),
            orders: Vec::new(),
        }
    }

    /// Is it one of these?
    pub(crate) fn has(&self, attempt: AttemptId) -> bool {
        self.attempts.contains_key(&attempt)
    }

    /// Gives an attempt of the session `born` a room, now or when one is made.
    pub(crate) fn prepare(&mut self, attempt: AttemptId, born: u64) -> Option<Input> {
        let mut room = self.spare.pop();
        let prepared = room.as_mut().map(|room| {
            room.take();
            Input::Prepared { attempt }
        });
        if room.is_none() {
            self.rooms_made += 1;
            tokio::spawn(make_room(self.workshop.clone(), attempt, self.rooms_made));
        }
        let output = Output::Here { bytes: Default::default(), acked: [0, 0] };
        self.attempts.insert(attempt, Quick { born, room, running: None, output });
        prepared
    }

    /// Takes the news of a task.
    pub(crate) fn hear(&mut self, news: QuickNews) -> Option<Input> {
        match news {
            QuickNews::Room { attempt, made: Ok(room) } => {
                let Some(quick) = self.attempts.get_mut(&attempt) else {
                    self.put_back(room);
                    return None;
                };
                quick.room = Some(room);
                // If it has ended meanwhile, the answer is that it should be cleaned.
                Some(Input::Prepared { attempt })
            }
            QuickNews::Room { attempt, made: Err(why) } => {
                Some(Input::PrepareFailed { attempt, reason: Reason::new("work_folder").with("why", why) })
            }
            QuickNews::Asked { attempt, program, asked } => self.asked(attempt, program, asked),
        }
    }

    /// Starts a phase, with all others of this turn: see [`Quicks::ask`].
    pub(crate) fn launch(&mut self, attempt: AttemptId, launch: Launch) -> Option<Input> {
        let Launch { program, phase, stdin: _, resolved, at_once } = launch;
        let quick = self.attempts.get_mut(&attempt)?;
        let Some(room) = &quick.room else {
            return Some(failed(attempt, (Verdict::InternalError, Reason::new("work_folder"))));
        };
        let Places { folder, tmp } = room.places();
        let command = self.workshop.surroundings.command(attempt, &phase, resolved.as_ref(), (folder, tmp));
        let command = match command {
            Ok(command) => command,
            Err(reason) => return Some(failed(attempt, (Verdict::Rejected, reason))),
        };
        let start = Start {
            id: program,
            argv: command.argv,
            env: command.env,
            cwd: folder.clone(),
            wall_limit_ms: Some(phase.wall_ms),
            nice: PROGRAM_NICE,
            at_once,
            room: None,
            limits: Limits::default(),
        };
        let capture = if is_joined(phase.phase) { Capture::Joined } else { Capture::Apart };
        let output_max = output_max(&phase);
        let word = phase.argv.into_iter().next().unwrap_or_default();
        match Order::new(&start, capture) {
            Ok(order) => self.orders.push(order),
            Err(error) => return Some(failed(attempt, refused_by_cage(error))),
        }
        self.asks.push(Ask { attempt, start, capture });
        quick.running =
            Some(Running { program, word, phase: phase.phase, output_max, generation: None, reading: None });
        None
    }

    /// Asks the cage for all that was launched since.
    pub(crate) fn ask(&mut self) {
        if self.orders.is_empty() {
            return;
        }
        let (generation, sent) = self.workshop.hand.start_all(&self.orders);
        self.orders.clear();
        for (place, Ask { attempt, start, capture }) in self.asks.drain(..).enumerate() {
            if place >= sent {
                tokio::spawn(ask_patiently(self.workshop.clone(), attempt, start, capture));
            } else if let Some(running) = self.attempts.get_mut(&attempt).and_then(|quick| quick.running.as_mut()) {
                running.generation = Some(generation);
            }
        }
    }

    fn asked(&mut self, attempt: AttemptId, program: ProgramId, asked: Result<u64, CageError>) -> Option<Input> {
        let running = self.attempts.get_mut(&attempt)?.running.as_mut().filter(|it| it.program == program)?;
        match asked {
            Ok(generation) if generation > self.died => {
                running.generation = Some(generation);
                None
            }
            Ok(_) => self.fail(attempt, cage_failed()),
            Err(error) => self.fail(attempt, refused_by_cage(error)),
        }
    }

    /// Kills what runs; its end follows.
    pub(crate) fn kill(&mut self, attempt: AttemptId) {
        // The cage must have heard of it.
        self.ask();
        if let Some(running) = self.attempts.get(&attempt).and_then(|quick| quick.running.as_ref()) {
            self.workshop.hand.kill_now(running.program);
        }
    }

    /// The program runs on: its output is read from its pipes.
    pub(crate) fn outlived(&mut self, attempt: AttemptId, pipes: OutputPipes) {
        let Some(quick) = self.attempts.get_mut(&attempt) else { return };
        let hand = quick.output.pumped(&self.workshop, attempt, quick.born);
        if let Some(running) = &mut quick.running {
            let budget = self.workshop.budget(running.program, running.output_max);
            running.reading = hand.read(pipes, Printed::default(), budget);
        }
    }

    /// The program's tree is dead.
    pub(crate) fn ended(&mut self, attempt: AttemptId, evidence: Evidence, printed: Printed) -> Option<Input> {
        let quick = self.attempts.get_mut(&attempt)?;
        let running = quick.running.take()?;
        let end = move |phase, printing| Input::PhaseEnded { attempt, end: phase_end(phase, &evidence, printing) };
        let Running { program, phase, output_max, .. } = running;
        let reading = match &mut quick.output {
            Output::Here { bytes: [stdout, stderr], .. } => {
                let (printed, is_cut) = cut(printed, output_max);
                join(stdout, printed.stdout);
                join(stderr, printed.stderr);
                let ends = [stdout.len() as u64, stderr.len() as u64];
                return Some(end(phase, Printing { ends, is_cut }));
            }
            Output::Pumped(hand) => running
                .reading
                .or_else(|| hand.read(OutputPipes::default(), printed, self.workshop.budget(program, output_max)))?,
        };
        self.when_read(reading, move |printing| end(phase, printing));
        None
    }

    /// The program has not begun and will not soon: nothing of it is left here.
    pub(crate) fn returned(&mut self, attempt: AttemptId) -> Option<Input> {
        self.attempts.get_mut(&attempt)?.running.take()?;
        Some(Input::Returned { attempt })
    }

    /// The program could not be started.
    pub(crate) fn start_failed(&mut self, attempt: AttemptId, step: &str, errno: i32) -> Option<Input> {
        let running = self.attempts.get(&attempt)?.running.as_ref()?;
        let failure = start_failed(&running.word, step, errno);
        self.fail(attempt, failure)
    }

    /// This cage, and all before it, are dead.
    pub(crate) fn cage_died(&mut self, generation: u64) -> Vec<Input> {
        self.died = self.died.max(generation);
        let asked = |quick: &Quick| quick.running.as_ref().and_then(|running| running.generation);
        let hit = self.attempts.iter().filter(|(_, quick)| asked(quick).is_some_and(|asked| asked <= generation));
        let hit: Vec<AttemptId> = hit.map(|(attempt, _)| *attempt).collect();
        hit.into_iter().filter_map(|attempt| self.fail(attempt, cage_failed())).collect()
    }

    /// What runs is over without an end; what it printed before is read.
    fn fail(&mut self, attempt: AttemptId, failure: Failure) -> Option<Input> {
        let running = self.attempts.get_mut(&attempt)?.running.take()?;
        let Some(reading) = running.reading else { return Some(failed(attempt, failure)) };
        self.when_read(reading, move |_| failed(attempt, failure));
        None
    }

    /// Tells the core when a pump has read all that its pipes held.
    fn when_read(&self, reading: Reading, input: impl FnOnce(Printing) -> Input + Send + 'static) {
        let driver = self.workshop.driver.clone();
        tokio::spawn(async move {
            // Without a pump the attempt is gone, without a driver the worker.
            if let Some(printing) = reading.rest().await {
                let _ = driver.send(Event::Core(input(printing))).await;
            }
        });
    }

    /// Tells the end, behind all output.
    pub(crate) fn end(&mut self, attempt: AttemptId, epoch: u64, result: TaskResult, link: Option<&Link>) {
        let Some(quick) = self.attempts.get_mut(&attempt) else { return };
        if let (Output::Here { bytes, acked }, Some(link)) = (&quick.output, link)
            && bytes.iter().map(Vec::len).sum::<usize>() <= LITTLE_OUTPUT_BYTES
        {
            // All on one queue, so they arrive in this order. A closed connection is the session's news: everything is
            // told again after the next registration.
            for (stream, (bytes, acked)) in [Stream::Stdout, Stream::Stderr].into_iter().zip(bytes.iter().zip(acked)) {
                let from = usize::try_from(*acked).unwrap_or(usize::MAX).min(bytes.len());
                if from < bytes.len() {
                    let bytes = bytes[from..].to_vec();
                    let output = AttemptOutput { attempt, stream, offset: *acked, bytes };
                    let _ = link.sender.control(Frame::of(Function::ATTEMPT_OUTPUT, 0, &output));
                }
            }
            let _ = link.sender.control(Frame::of(Function::ENDED, 0, &Ended { attempt, result }));
            return;
        }
        let hand = quick.output.pumped(&self.workshop, attempt, quick.born);
        let end = Some((epoch, Arc::new(result)));
        hand.wishes.send_modify(|wishes| wishes.end = end);
    }

    /// All that an attempt printed, when it is little and the hub has nothing of it: it can go with the end.
    pub(crate) fn little(&self, attempt: AttemptId) -> Option<[Vec<u8>; 2]> {
        match &self.attempts.get(&attempt)?.output {
            Output::Here { bytes, acked: [0, 0] }
                if bytes.iter().map(Vec::len).sum::<usize>() <= LITTLE_OUTPUT_BYTES =>
            {
                Some(bytes.clone())
            }
            _ => None,
        }
    }

    /// The hub has output up to here.
    pub(crate) fn acked(&mut self, attempt: AttemptId, offsets: Offsets) {
        match self.attempts.get_mut(&attempt).map(|quick| &mut quick.output) {
            Some(Output::Here { acked, .. }) => *acked = offsets,
            Some(Output::Pumped(hand)) => hand.wishes.send_modify(|wishes| wishes.acked = offsets),
            None => {}
        }
    }

    /// There is another session: its hub may have more or less than the one before.
    pub(crate) fn registered(&mut self, link: &Link) {
        for (attempt, quick) in &mut self.attempts {
            if let Output::Here { acked, .. } = &mut quick.output {
                *acked = link.keep.get(attempt).copied().unwrap_or_default();
            }
        }
    }

    /// Gives the room back.
    pub(crate) fn clean(&mut self, attempt: AttemptId) {
        if let Some(room) = self.attempts.get_mut(&attempt).and_then(|quick| quick.room.take()) {
            self.put_back(room);
        }
    }

    /// Nobody will ask for it any more.
    pub(crate) fn forget(&mut self, attempt: AttemptId) {
        self.clean(attempt);
        self.attempts.remove(&attempt);
    }

    fn put_back(&mut self, room: Room) {
        if self.spare.len() < self.spare_max && room.is_as_new() {
            self.spare.push(room);
        } else {
            tokio::spawn(remove_folders(self.workshop.clone(), room.places().clone()));
        }
    }
}

impl Output {
    /// Gives what is here to a pump, if that was not done yet.
    fn pumped(&mut self, workshop: &Workshop, attempt: AttemptId, born: u64) -> &mut PumpHand {
        if let Output::Here { bytes, acked } = self {
            let hand = PumpHand::start(workshop, attempt, born, std::mem::take(bytes));
            hand.wishes.send_modify(|wishes| wishes.acked = *acked);
            *self = Output::Pumped(hand);
        }
        match self {
            Output::Pumped(hand) => hand,
            Output::Here { .. } => unreachable!("it was replaced above"),
        }
    }
}

/// The first phase's bytes need not be copied.
fn join(kept: &mut Vec<u8>, mut more: Vec<u8>) {
    if kept.is_empty() {
        *kept = more;
    } else {
        kept.append(&mut more);
    }
}

fn failed(attempt: AttemptId, (verdict, reason): Failure) -> Input {
    Input::LaunchFailed { attempt, verdict, reason }
}

fn cage_failed() -> Failure {
    (Verdict::InternalError, Reason::new("cage_failed"))
}

async fn make_room(workshop: Workshop, attempt: AttemptId, number: u64) {
    let made = match own_room(&workshop, number).await {
        Ok(()) => {
            let rooms = workshop.rooms.clone();
            let made = spawn_blocking(move || Room::make(&rooms, number).map_err(|error| error.to_string())).await;
            made.unwrap_or_else(|error| Err(error.to_string()))
        }
        Err(error) => Err(error.to_string()),
    };
    // Without a driver the worker is ending.
    let _ = workshop.driver.send(Event::Quick(QuickNews::Room { attempt, made })).await;
}

async fn own_room(workshop: &Workshop, number: u64) -> Result<(), CageError> {
    let Places { folder, tmp } = Places::of_room(&workshop.rooms, number);
    for path in [folder, tmp] {
        match workshop.hand.own(path).await {
            Ok(()) | Err(CageError::Gone) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Waits for room in the cage's socket, or for the next cage.
async fn ask_patiently(workshop: Workshop, attempt: AttemptId, start: Start, capture: Capture) {
    let program = start.id;
    let asked = workshop.hand.start(start, Streams::Captured(capture)).await;
    let _ = workshop.driver.send(Event::Quick(QuickNews::Asked { attempt, program, asked })).await;
}
