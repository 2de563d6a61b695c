//! `hub.json` in the data folder: what the running hub bound, for everybody else on this machine.
//!
//! The hub writes it when its doors are open and removes it when it ends; commands and local workers read it before each
//! dial. Always true: it is replaced as a whole, holds no secret, and an unknown field is skipped.
//! Deliberately not here: whether the hub still lives (dial it), and the lock against a second one.

use crate::private_file::{PrivateFileError, read_private, write_private};
use essaim_proto::id::AuthorityHash;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The file's name in the data folder.
pub const HUB_FILE: &str = "hub.json";

/// Why the hub file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum HubFileError {
    /// The file could not be read or written.
    #[error(transparent)]
    File(#[from] PrivateFileError),
    /// The content is something else.
    #[error("{HUB_FILE} is damaged; the hub writes it anew when it starts")]
    Damaged(#[source] serde_json::Error),
}

/// What the running hub says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HubFile {
    /// The hub's process id.
    pub pid: u32,
    /// The hub's name.
    pub hub: String,
    /// Its version.
    pub version: String,
    /// Its identity.
    pub authority: AuthorityHash,
    /// What the clients' door bound, `HOST:PORT`.
    pub client_addresses: Vec<String>,
    /// What the workers' door bound, `HOST:PORT`.
    pub worker_addresses: Vec<String>,
    /// What the HTTP door bound, `HOST:PORT`; empty when there is none.
    pub http_addresses: Vec<String>,
    /// When the hub started, in milliseconds since 1970.
    pub started_ms: u64,
}

impl HubFile {
    /// The hub file in `folder`, or `None` when no hub runs there.
    ///
    /// # Errors
    /// [`HubFileError`] when there is one that cannot be read.
    pub fn read(folder: &Path) -> Result<Option<HubFile>, HubFileError> {
        let Some(bytes) = read_private(&folder.join(HUB_FILE))? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(HubFileError::Damaged)
    }

    /// Writes it to `folder`.
    ///
    /// # Errors
    /// [`HubFileError::File`].
    pub fn write(&self, folder: &Path) -> Result<(), HubFileError> {
        let bytes = serde_json::to_vec_pretty(self).map_err(HubFileError::Damaged)?;
        Ok(write_private(&folder.join(HUB_FILE), &bytes)?)
    }

    /// Removes it from `folder` if it is the one of process `pid`: a hub that ends late must not take its successor's.
    pub fn remove(folder: &Path, pid: u32) {
        if matches!(HubFile::read(folder), Ok(Some(file)) if file.pid == pid) {
            // Left behind it does no harm: whoever dials finds nobody.
            let _ = std::fs::remove_file(folder.join(HUB_FILE));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // An older command must read a newer hub's file, and only its own hub removes it.
    #[test]
    fn the_hub_file_is_read_across_versions() {
        let folder = tempfile::tempdir().unwrap();
        assert!(HubFile::read(folder.path()).unwrap().is_none());
        let file = HubFile { pid: 7, authority: AuthorityHash([3; 32]), ..HubFile::default() };
        file.write(folder.path()).unwrap();
        assert_eq!(HubFile::read(folder.path()).unwrap().unwrap(), file);
        HubFile::remove(folder.path(), 8);
        assert!(HubFile::read(folder.path()).unwrap().is_some());
        let newer = br#"{"pid": 9, "news": {"from": "tomorrow"}}"#;
        std::fs::write(folder.path().join(HUB_FILE), newer).unwrap();
        assert_eq!(HubFile::read(folder.path()).unwrap().unwrap().pid, 9);
        HubFile::remove(folder.path(), 9);
        assert!(HubFile::read(folder.path()).unwrap().is_none());
        std::fs::write(folder.path().join(HUB_FILE), b"{").unwrap();
        assert!(matches!(HubFile::read(folder.path()), Err(HubFileError::Damaged(_))));
    }
}
