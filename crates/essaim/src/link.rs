//! The way to the hub: connecting, asking, connecting again, and what each failure is called.
//!
//! Every client subcommand opens a [`Link`]; `follow` connects it again when it breaks. Always true: an error names the
//! hub's address and says what to try; a refusal keeps its code.
//! Deliberately not here: which hub it is (`target`), what is asked (`cmd`).

use crate::exit::{Failure, chain};
use crate::settings::{self, Settings};
use crate::target::Target;
use essaim_net::{Client, ClientError, ConnectError, ConnectOptions, DialError, HelloError};
use essaim_proto::api::Request;

/// A connection to a hub that can be made again.
pub(crate) struct Link {
    client: Client,
    target: Target,
    options: ConnectOptions,
}

impl Link {
    /// Connects.
    ///
    /// # Errors
    /// When no hub answers, another one does, or it refuses the key.
    pub(crate) async fn open(target: Target, settings: &Settings) -> Result<Link, Failure> {
        let tries = settings.parsed::<u32>(settings::RETRIES)?.unwrap_or(essaim_net::limits::CLIENT_TRIES);
        let key = Some(target.key.to_line());
        let options = ConnectOptions { key, tries, ..ConnectOptions::default() };
        let client = connect(&target, &options).await?;
        Ok(Link { client, target, options })
    }

    /// Connects again, with as many tries as at first.
    ///
    /// # Errors
    /// As [`Link::open`].
    pub(crate) async fn reopen(&mut self) -> Result<(), Failure> {
        self.client = connect(&self.target, &self.options).await?;
        Ok(())
    }

    /// The connection.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// A refusal, or the loss of the connection.
    pub(crate) async fn request<R: Request>(&self, request: &R) -> Result<R::Answer, Failure> {
        self.client.request(request).await.map_err(|error| failure(&error))
    }

    /// Says goodbye; what was sent before has left when this returns.
    pub(crate) async fn close(self) {
        self.client.close("done").await;
    }
}

async fn connect(target: &Target, options: &ConnectOptions) -> Result<Client, Failure> {
    let connected = Client::connect(|| target.dial(), options.clone(), |_| ()).await;
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
