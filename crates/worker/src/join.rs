//! Who this worker is to which hub: the saved identity, or a new one from a join line.
//!
//! The sessions ask for it before each dial. Always true: a join line is used only when there is no identity of its
//! hub yet, since most lines work once; an identity is saved before it is used.
//! Deliberately not here: the words of joining (`net`), registration (`session`).

use crate::error::RunError;
use crate::session::DialFailure;
use essaim_net::hello::join;
use essaim_net::hubfile::HUB_FILE;
use essaim_net::{DialTarget, HubFile, Identity, Ticket, TicketKind, dial};
use essaim_proto::NodeName;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What leads to the hub.
#[derive(Debug)]
pub(crate) struct Passport {
    home: PathBuf,
    /// The join line, as long as it is needed.
    ticket: Option<Ticket>,
    hub_folder: Option<PathBuf>,
    wished_name: Option<NodeName>,
    bind: Option<SocketAddr>,
    identity: Option<Arc<Identity>>,
}

impl Passport {
    /// What `home` and the join line give. Blocks on the disk.
    ///
    /// # Errors
    /// [`RunError::NotJoined`], [`RunError::NotAJoinLine`], [`RunError::Identity`].
    pub(crate) fn new(
        home: &Path,
        ticket: Option<Ticket>,
        hub_file: Option<&Path>,
        wished_name: Option<NodeName>,
        bind: Option<IpAddr>,
    ) -> Result<Passport, RunError> {
        if ticket.as_ref().is_some_and(|ticket| ticket.kind != TicketKind::Join) {
            return Err(RunError::NotAJoinLine);
        }
        let mut passport = Passport {
            home: home.to_owned(),
            ticket: None,
            hub_folder: hub_file.map(folder_of),
            wished_name,
            bind: bind.map(|ip| SocketAddr::new(ip, 0)),
            identity: None,
        };
        match (Identity::load(home), ticket) {
            (Ok(Some(saved)), Some(ticket)) if saved.authority == ticket.authority => {
                passport.identity = Some(Arc::new(with_addresses(saved, &ticket, home)?));
            }
            // A new line replaces what cannot be read or belongs to another hub.
            (_, Some(ticket)) => passport.ticket = Some(ticket),
            (saved, None) => passport.identity = Some(Arc::new(saved?.ok_or(RunError::NotJoined)?)),
        }
        Ok(passport)
    }

    /// Joins, if that is still to be done. Gives the new name.
    ///
    /// # Errors
    /// [`DialFailure`].
    pub(crate) async fn join_if_needed(&mut self) -> Result<Option<NodeName>, DialFailure> {
        let Some(ticket) = &self.ticket else { return Ok(None) };
        let addresses = self.addresses(&ticket.addresses);
        let target = DialTarget { addresses, authority: ticket.authority, identity: None, bind: self.bind };
        let mut connection = dial(&target, essaim_net::limits::DIAL_TIME).await?;
        let identity = join(&mut connection, ticket, self.wished_name.clone()).await?;
        identity.save(&self.home)?;
        let name = identity.name.clone();
        self.identity = Some(Arc::new(identity));
        self.ticket = None;
        Ok(Some(name))
    }

    /// Where and as whom to dial now. `None` before joining.
    pub(crate) fn target(&self) -> Option<DialTarget> {
        let identity = self.identity.clone()?;
        let addresses = self.addresses(&identity.addresses);
        Some(DialTarget { addresses, authority: identity.authority, identity: Some(identity), bind: self.bind })
    }

    /// What a hub on this machine has bound now, else what is remembered.
    fn addresses(&self, remembered: &[String]) -> Vec<String> {
        let Some(folder) = &self.hub_folder else { return remembered.to_vec() };
        match HubFile::read(folder) {
            Ok(Some(file)) if !file.worker_addresses.is_empty() => file.worker_addresses,
            Ok(_) => remembered.to_vec(),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the hub's file cannot be read");
                remembered.to_vec()
            }
        }
    }

    /// Does another try make sense when no address is known?
    pub(crate) fn follows_a_file(&self) -> bool {
        self.hub_folder.is_some()
    }
}

/// The hub's folder, named itself or by its file.
fn folder_of(hub_file: &Path) -> PathBuf {
    match hub_file.file_name() {
        Some(name) if name == HUB_FILE => hub_file.parent().unwrap_or(hub_file).to_owned(),
        _ => hub_file.to_owned(),
    }
}

/// A second line of the same hub may know a better way to it.
fn with_addresses(mut saved: Identity, ticket: &Ticket, home: &Path) -> Result<Identity, RunError> {
    let mut addresses = ticket.addresses.clone();
    addresses.extend(saved.addresses.iter().filter(|known| !ticket.addresses.contains(known)).cloned());
    addresses.truncate(essaim_net::limits::TICKET_ADDRESSES_MAX);
    if addresses != saved.addresses {
        saved.addresses = addresses;
        saved.save(home)?;
    }
    Ok(saved)
}
