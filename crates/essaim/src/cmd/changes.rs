//! `--watch`: a list, then a line for each change, until Ctrl+C.
//!
//! `cmd::node` and `cmd::job` bring a [`Board`]. Always true: the hub is asked for changes before it is asked for the
//! list, so nothing falls between the two; after changes that were missed, or a hub that was away, the list is fetched
//! again and what is different is told; Ctrl+C is the usual end and exits with 0.
//! Deliberately not here: how a list or a change looks (the boards), what a change is (the hub says).

use crate::exit::{Failure, OK, Outcome};
use crate::link::{self, HUB_BACK, HUB_GONE, Link};
use crate::print::Printer;
use crate::signals::Interrupts;
use essaim_net::{ClientError, Subscription};
use essaim_proto::api::{StateChange, StatesWatch};
use essaim_proto::{Frame, Function, Refusal};

/// What is watched.
pub(super) trait Board {
    /// Which changes it wants.
    fn wanted(&self) -> StatesWatch;

    /// Fetches the list: shows it the first time, later what is different.
    ///
    /// # Errors
    /// As [`Link::request`]; standard output is gone.
    async fn list(&mut self, link: &mut Link) -> Result<(), Failure>;

    /// Shows a change, unless the list has told it.
    ///
    /// # Errors
    /// Standard output is gone.
    fn change(&mut self, change: StateChange) -> Result<(), Failure>;
}

/// Watches until Ctrl+C.
///
/// # Errors
/// A refusal; the hub does not come back; standard output is gone.
pub(super) async fn watch(printer: Printer, link: &mut Link, board: &mut impl Board) -> Outcome {
    let mut interrupts = Interrupts::listen()?;
    tokio::select! {
        biased;
        () = interrupts.next() => Ok(OK),
        failure = follow(printer, link, board) => Err(failure),
    }
}

/// Follows for ever; gives why it cannot.
async fn follow(printer: Printer, link: &mut Link, board: &mut impl Board) -> Failure {
    let mut losses_in_a_row = 0;
    loop {
        match follow_once(printer, link, board, &mut losses_in_a_row).await {
            Ok(()) => {}
            Err(failure) => return failure,
        }
        losses_in_a_row += 1;
        printer.note(HUB_GONE);
        if losses_in_a_row > link.tries() {
            return Failure::unreachable("lost", "the hub goes away again each time it is reached");
        }
        if let Err(failure) = link.reopen(&mut |text| printer.note(text)).await {
            return failure;
        }
    }
}

/// Follows until the connection is lost.
async fn follow_once(
    printer: Printer,
    link: &mut Link,
    board: &mut impl Board,
    losses: &mut u32,
) -> Result<(), Failure> {
    let mut changes = match open(link, board).await {
        Ok(changes) => changes,
        Err(ClientError::Lost(_)) => return Ok(()),
        Err(error) => return Err(link::failure(&error)),
    };
    board.list(link).await?;
    if std::mem::take(losses) > 0 {
        printer.note(HUB_BACK);
    }
    while let Some(frame) = changes.next().await {
        let Some(change) = change_of(&frame)? else { continue };
        let was_behind = change.missed > 0;
        board.change(change)?;
        if was_behind {
            board.list(link).await?;
        }
    }
    Ok(())
}

async fn open(link: &Link, board: &impl Board) -> Result<Subscription, ClientError> {
    let (_, changes) = link.client().open(&board.wanted()).await?;
    Ok(changes)
}

/// The change of a frame; nothing for news of a newer hub.
fn change_of(frame: &Frame) -> Result<Option<StateChange>, Failure> {
    let unreadable = |error| link::failure(&ClientError::BadAnswer(error));
    match frame.function {
        Function::STATE => frame.message().map(Some).map_err(unreadable),
        Function::REFUSED => Err(Failure::from_refusal(&frame.message::<Refusal>().map_err(unreadable)?)),
        _ => Ok(None),
    }
}

/// `was → now`, or only what is known.
pub(super) fn step(was: Option<&str>, now: &str) -> String {
    match was {
        Some(was) if was != now => format!("{was} → {now}"),
        _ => now.to_owned(),
    }
}
