//! Who a worker is: its key, the certificate that a hub gave it, its name, and where that hub is.
//!
//! `hello::join` makes one, the worker saves it in its data folder and dials with it ever after. Always true: the key is
//! made here and never leaves the machine; the file is private and replaced as a whole.
//! Deliberately not here: renewal (certificates live ten years for now, see [`crate::limits`]), and the hub's side.

use crate::private_file::{PrivateFileError, read_private, write_private};
use essaim_proto::NodeName;
use essaim_proto::hello::Secret;
use essaim_proto::id::AuthorityHash;
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The file's name in the worker's data folder.
pub const IDENTITY_FILE: &str = "identity.json";

/// Why an identity could not be made, read or kept.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A key or a certificate request could not be made.
    #[error("a key pair or certificate request cannot be made")]
    Make(#[source] rcgen::Error),
    /// The file could not be read or written.
    #[error(transparent)]
    File(#[from] PrivateFileError),
    /// The file's content is not an identity.
    #[error("{IDENTITY_FILE} is damaged: remove it and join again")]
    Damaged(#[source] serde_json::Error),
    /// The key in the identity is no key.
    #[error("the key in {IDENTITY_FILE} cannot be read: remove the file and join again")]
    Key(#[source] rustls::pki_types::pem::Error),
    /// Key and certificate do not belong together, or are of a kind that TLS does not take.
    #[error("the certificate in {IDENTITY_FILE} does not fit its key: remove the file and join again")]
    Unfit(#[source] rustls::Error),
}

/// A worker's key and certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The name that the hub gave.
    pub name: NodeName,
    /// The hub's authority.
    pub authority: AuthorityHash,
    /// `HOST:PORT`s of the hub's workers' door, best first.
    pub addresses: Vec<String>,
    /// The private key, PKCS #8 PEM.
    pub key_pem: Secret,
    /// Own certificate first, then the authority's; DER in hexadecimal.
    pub chain_hex: Vec<String>,
}

/// A fresh key with its request, before a hub has said yes.
#[derive(Debug)]
pub struct Request {
    /// The certificate request, DER. Holds no name: the hub decides that.
    pub csr_der: Vec<u8>,
    /// The private key, PKCS #8 PEM.
    pub key_pem: Secret,
}

impl Identity {
    /// Makes a key (ECDSA P-256) and a certificate request for it.
    ///
    /// # Errors
    /// [`IdentityError::Make`], which does not happen while the system has randomness.
    pub fn generate_csr() -> Result<Request, IdentityError> {
        let key = KeyPair::generate().map_err(IdentityError::Make)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let csr = params.serialize_request(&key).map_err(IdentityError::Make)?;
        Ok(Request { csr_der: csr.der().to_vec(), key_pem: Secret(key.serialize_pem()) })
    }

    /// The identity in `folder`, or `None` if this machine has not joined yet.
    ///
    /// # Errors
    /// [`IdentityError`] when the file is there and cannot be used.
    pub fn load(folder: &Path) -> Result<Option<Identity>, IdentityError> {
        let Some(bytes) = read_private(&folder.join(IDENTITY_FILE))? else { return Ok(None) };
        let identity: Identity = serde_json::from_slice(&bytes).map_err(IdentityError::Damaged)?;
        identity.certificate()?;
        Ok(Some(identity))
    }

    /// Keeps the identity in `folder`, which must exist.
    ///
    /// # Errors
    /// [`IdentityError::File`]; what was there before is untouched then.
    pub fn save(&self, folder: &Path) -> Result<(), IdentityError> {
        let bytes = serde_json::to_vec_pretty(self).map_err(IdentityError::Damaged)?;
        Ok(write_private(&folder.join(IDENTITY_FILE), &bytes)?)
    }

    /// Chain and key as TLS wants them.
    pub(crate) fn certificate(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), IdentityError> {
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.0.as_bytes()).map_err(IdentityError::Key)?;
        let decode = |text: &String| hex::decode(text).map(CertificateDer::from);
        let chain: Result<Vec<_>, _> = self.chain_hex.iter().map(decode).collect();
        let chain = chain.map_err(|_| IdentityError::Unfit(rustls::CertificateError::BadEncoding.into()))?;
        Ok((chain, key))
    }
}
