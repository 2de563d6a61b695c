//! The way to the hub: connecting, asking, connecting again, and what each failure is called.
//!
//! Every client subcommand opens a [`Link`]; when it breaks, requests that may arrive twice are asked again over a new
//! connection, and `follow` and `cmd::run` go on over one. Always true: an error names the hub's address and says what to
//! try; a refusal keeps its code; that the hub is away, and that it is back, is said once each and as talk.
//! Deliberately not here: which hub it is (`target`), what is asked (`cmd`).

use crate::exit::{Failure, chain};
use crate::print::Printer;
use crate::settings::{self, Settings};
use crate::target::Target;
use essaim_net::{Backoff, Client, ClientError, ConnectError, ConnectOptions, DialError, HelloError};
use essaim_proto::api::Request;
use std::time::Duration;

/// The pauses while a hub that was there is away: the first try comes at once, the next ones leave a hub that was killed
/// the time to be started again. Five tries last 8 to 15 seconds.
const RETURN_FIRST: Duration = Duration::from_secs(1);
/// A hub that comes back after minutes, for who waits so long (`--retries`), is noticed within this time.
const RETURN_MAX: Duration = Duration::from_secs(10);

/// A connection to a hub that can be made again.
pub(crate) struct Link {
    client: Client,
    target: Target,
    options: ConnectOptions,
    printer: Printer,
}

impl Link {
    /// Connects. What is said meanwhile goes to `printer`.
    ///
    /// # Errors
    /// When no hub answers, another one does, or it refuses the key.
    pub(crate) async fn open(target: Target, settings: &Settings, printer: Printer) -> Result<Link, Failure> {
        let tries = settings.parsed::<u32>(settings::RETRIES)?.unwrap_or(essaim_net::limits::CLIENT_TRIES);
        let key = Some(target.key.to_line());
        let mut options = ConnectOptions { key, tries, ..ConnectOptions::default() };
        let client = connect(&target, &options, &mut |text| printer.note(text)).await?;
        options.was_open = true;
        options.pauses = Backoff::between(RETURN_FIRST, RETURN_MAX);
        Ok(Link { client, target, options, printer })
    }

    /// Connects again, with as many tries as at first; `talk` hears of each but the first.
    ///
    /// # Errors
    /// As [`Link::open`].
    pub(crate) async fn reopen(&mut self, talk: &mut dyn FnMut(&str)) -> Result<(), Failure> {
        self.client = connect(&self.target, &self.options, talk).await?;
        Ok(())
    }

    /// How often a hub that is away is tried, and a request that it did not answer.
    pub(crate) fn tries(&self) -> u32 {
        self.options.tries.max(1)
    }

    /// The connection.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Asks and waits for the answer. When the hub goes away meanwhile it is asked again, so this is for requests that
    /// may arrive twice.
    ///
    /// # Errors
    /// A refusal; the hub does not come back.
    pub(crate) async fn request<R: Request>(&mut self, request: &R) -> Result<R::Answer, Failure> {
        self.request_again(request).await.map_err(|(failure, _)| failure)
    }

    /// The same; a failure comes with whether the hub may have done it already when we asked before.
    ///
    /// # Errors
    /// As [`Link::request`].
    pub(crate) async fn request_again<R: Request>(&mut self, request: &R) -> Result<R::Answer, (Failure, bool)> {
        let printer = self.printer;
        let mut asked = 0;
        loop {
            let error = match self.client.request(request).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            asked += 1;
            if !matches!(error, ClientError::Lost(_)) || asked >= self.tries() {
                return Err((failure(&error), asked > 1));
            }
            printer.note(HUB_GONE);
            self.reopen(&mut |text| printer.note(text)).await.map_err(|failure| (failure, true))?;
            printer.note(HUB_BACK);
        }
    }

    /// Asks once: for what must not be done twice.
    ///
    /// # Errors
    /// A refusal, or the loss of the connection, after which nobody knows whether it was done.
    pub(crate) async fn request_once<R: Request>(&self, request: &R) -> Result<R::Answer, Failure> {
        self.client.request(request).await.map_err(|error| failure(&error))
    }

    /// Says goodbye; what was sent before has left when this returns.
    pub(crate) async fn close(self) {
        self.client.close("done").await;
    }
}

/// The connection broke.
pub(crate) const HUB_GONE: &str = "the hub is gone, trying to reach it again";
/// And there is another one.
pub(crate) const HUB_BACK: &str = "the hub is back";

async fn connect(target: &Target, options: &ConnectOptions, talk: &mut dyn FnMut(&str)) -> Result<Client, Failure> {
    let mut tried = 0;
    // It is asked before each try, because a hub that was started anew may be at another address.
    let find = || {
        tried += 1;
        if tried > 1 {
            talk(&format!("hub not reachable, try {tried} of {}", options.tries));
        }
        target.dial()
    };
    let connected = Client::connect(find, options.clone(), |_| ()).await;
    connected.map_err(|error| connect_failure(&error))
}

/// What it means for a request to fail.
pub(crate) fn failure(error: &ClientError) -> Failure {
    match error {
        ClientError::Refused(refusal) => Failure::from_refusal(refusal),
        ClientError::Lost(_) => Failure::unreachable("lost", format!("the hub is gone: {}", chain(error))),
        ClientError::TooLarge(_) => Failure::usage("too_large", chain(error)),
        ClientError::BadAnswer(_) | ClientError::TooMany | ClientError::Transfer(_) | ClientError::Sink(_) => {
            Failure::internal("internal", chain(error))
        }
    }
}

fn connect_failure(error: &ConnectError) -> Failure {
    let why = chain(error);
    match error {
        ConnectError::Hello(HelloError::Refused(refusal)) => Failure::from_refusal(refusal),
        ConnectError::Hello(_) => Failure::unreachable("unreachable", format!("the hub cannot be used: {why}")),
        ConnectError::Dial(error) => {
            let failure = |code, message| Failure::unreachable(code, message);
            match error {
                DialError::Refused { .. } => failure("unreachable", format!("the hub cannot be reached: {why}"))
                    .hint("is it running? start one with `essaim up`"),
                // As for a worker's join line: somebody answers, and the answer is no.
                DialError::OtherHub { .. } => Failure::refused("other_hub", format!("the hub cannot be used: {why}"))
                    .hint("the key belongs to a different hub; check the address, or get a key from this one"),
                DialError::Tls { .. } => {
                    failure("no_hub", format!("the hub cannot be used: {why}")).hint("check the address and its port")
                }
                DialError::CannotBind { .. } => Failure::usage("cannot_bind", why),
                _ => failure("unreachable", format!("the hub cannot be reached: {why}")),
            }
        }
    }
}
