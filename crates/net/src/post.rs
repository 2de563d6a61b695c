//! Posting JSON to a URL, for notices.
//!
//! The hub's `notices` calls [`Poster::post`] on a thread that may wait. Always true: one request takes at most
//! [`POST_TIMEOUT`] from the look-up of the name to the answer; no redirect is followed, no proxy of the environment is
//! used, and no address is spoken to that `is_forbidden` names, whatever the name in the URL is said to stand for now.
//! Deliberately not here: which URLs are allowed (`core`), when it is tried again (the hub).

use crate::limits::POST_TIMEOUT;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::tls::{TlsConfig, TlsProvider};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, Error};

/// What is said when all addresses of a name are forbidden.
const FORBIDDEN: &str = "that is this hub itself";

/// Which addresses may not be spoken to.
pub type IsForbidden = Arc<dyn Fn(SocketAddr) -> bool + Send + Sync>;

/// Posts.
#[derive(Debug, Clone)]
pub struct Poster {
    agent: Agent,
}

impl Poster {
    /// One that keeps away from some addresses.
    pub fn new(is_forbidden: IsForbidden) -> Poster {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = TlsConfig::builder().provider(TlsProvider::Rustls).unversioned_rustls_crypto_provider(provider);
        let config = Agent::config_builder()
            .timeout_global(Some(POST_TIMEOUT))
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .proxy(None)
            // A connection that is kept may be one that the other side has left.
            .max_idle_connections(0)
            .user_agent(concat!("essaim/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls.build())
            .build();
        let resolver = Careful { names: DefaultResolver::default(), is_forbidden };
        Poster { agent: Agent::with_parts(config, DefaultConnector::default(), resolver) }
    }

    /// Posts once, and waits for the answer.
    ///
    /// # Errors
    /// Why it was not taken, as part of a sentence.
    pub fn post(&self, url: &str, json: &[u8]) -> Result<(), String> {
        let sent = self.agent.post(url).content_type("application/json").send(json);
        match sent.map(|answer| answer.status()) {
            Ok(status) if status.is_success() => Ok(()),
            Ok(status) if status.is_redirection() => {
                Err(format!("the answer was {status}, and redirects are not followed"))
            }
            Ok(status) => Err(format!("the answer was {status}")),
            Err(Error::Timeout(_)) => Err(format!("no answer within {} s", POST_TIMEOUT.as_secs())),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Looks names up and keeps what may be spoken to.
struct Careful {
    names: DefaultResolver,
    is_forbidden: IsForbidden,
}

impl fmt::Debug for Careful {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Careful")
    }
}

impl Resolver for Careful {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let found = self.names.resolve(uri, config, timeout)?;
        let mut allowed = self.empty();
        found.iter().filter(|address| !(self.is_forbidden)(**address)).for_each(|address| allowed.push(*address));
        if allowed.is_empty() { Err(Error::Other(FORBIDDEN.into())) } else { Ok(allowed) }
    }
}
