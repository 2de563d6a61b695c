//! The hub's own authority: it signs the hub's certificate and those of the machines that join.
//!
//! The hub loads it once and asks it for the configuration of its doors and for each joiner's certificate. Four files in
//! the data folder: `authority.pem`, `authority.key.pem`, `server.pem`, `server.key.pem`. Always true: a key is written
//! before the certificate that needs it, so a stop in between leaves something that the next start repairs; an authority
//! whose key is gone is an error and never replaced, since every machine that joined knows its hash.
//! Deliberately not here: who may join, which certificates are revoked (the hub's table of serials).

use crate::limits::WORKER_CERTIFICATE_LIFE;
use crate::private_file::{PrivateFileError, read_private, write_private};
use crate::ticket::random;
use crate::tls::{ALPN, SERVER_NAME, authority_hash, provider};
use essaim_proto::NodeName;
use essaim_proto::id::AuthorityHash;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SerialNumber, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{RootCertStore, ServerConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// The files that make the authority, in its folder: its key, then its certificate. Who has both is the hub.
pub const AUTHORITY_FILES: [&str; 2] = ["authority.key.pem", "authority.pem"];

/// The organisational unit in a worker's certificate.
pub const WORKER_UNIT: &str = "worker";

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// One of the four files could not be read or written.
    #[error(transparent)]
    File(#[from] PrivateFileError),
    /// The authority's certificate is there, its key is not. A new one would be a stranger to all who joined.
    #[error("{0} is missing: restore it from a backup, or remove authority.pem and let every machine join again")]
    KeyMissing(PathBuf),
    /// A file does not hold what its name says.
    #[error("{0} is damaged: restore it from a backup")]
    Damaged(PathBuf),
    /// Certificate and key do not belong together.
    #[error("the hub's certificate and key do not fit each other")]
    Unfit(#[source] rustls::Error),
    /// A key or certificate could not be made.
    #[error("the hub's own certificate cannot be made")]
    Make(#[source] rcgen::Error),
}

/// Why a joiner got no certificate.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The request is malformed, or is not signed by the key that it names.
    #[error("the certificate request is malformed or not signed by its own key")]
    BadRequest(#[source] rcgen::Error),
    /// Signing failed.
    #[error("the certificate cannot be signed")]
    Sign(#[source] rcgen::Error),
}

/// Which door a configuration is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DoorKind {
    /// Asks for a certificate of ours; a peer without one may only join. One of another authority is refused.
    Worker,
    /// Asks for none: clients have keys.
    Client,
}

/// A certificate for a worker.
#[derive(Debug, Clone)]
pub struct Signed {
    /// The worker's certificate first, then the authority's; DER.
    pub chain: Vec<Vec<u8>>,
    /// The certificate's serial in lower-case hexadecimal, as [`crate::door::Accepted::serial`] will show it.
    pub serial: String,
}

/// The hub's authority and the hub's own certificate.
pub struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    server_certificate: CertificateDer<'static>,
    server_key: PrivateKeyDer<'static>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority({})", self.hash())
    }
}

impl Authority {
    /// The authority in `folder`, made now if there is none. The folder must exist. Blocks on the disk.
    ///
    /// # Errors
    /// [`AuthorityError`]. A damaged authority is never overwritten.
    pub fn load_or_create(folder: &Path) -> Result<Authority, AuthorityError> {
        let (certificate, issuer) = load_or_create_authority(folder)?;
        let (server_certificate, server_key) = load_or_create_server(folder, &certificate, &issuer)?;
        let authority = Authority { certificate, issuer, server_certificate, server_key };
        // Found out now and not at the first connection.
        authority.try_server_config(DoorKind::Worker)?;
        Ok(authority)
    }

    /// The hub's identity: SHA-256 of the authority's certificate (DER).
    pub fn hash(&self) -> AuthorityHash {
        authority_hash(&self.certificate)
    }

    /// A certificate for the worker that will be called `name`. Of the request only its public key counts.
    ///
    /// # Errors
    /// [`SignError::BadRequest`] when the request is not signed by its own key.
    pub fn sign_worker(&self, csr_der: &[u8], name: &NodeName) -> Result<Signed, SignError> {
        let request = CertificateSigningRequestDer::from(csr_der);
        let request = CertificateSigningRequestParams::from_der(&request).map_err(SignError::BadRequest)?;
        let mut params = plain_params(name.as_str());
        params.distinguished_name.push(DnType::OrganizationalUnitName, WORKER_UNIT);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        params.not_after = date_time_ymd(1970, 1, 1) + now + WORKER_CERTIFICATE_LIFE;
        let serial = params.serial_number.as_ref().map(SerialNumber::to_bytes).unwrap_or_default();
        let signed = params.signed_by(&request.public_key, &self.issuer).map_err(SignError::Sign)?;
        Ok(Signed { chain: vec![signed.der().to_vec(), self.certificate.to_vec()], serial: hex::encode(serial) })
    }

    /// How a door speaks TLS: 1.3 only, ALPN `essaim/1`, no resumption.
    pub fn server_config(&self, door: DoorKind) -> Arc<ServerConfig> {
        self.try_server_config(door).expect("the same configuration was made when the authority was loaded")
    }

    fn try_server_config(&self, door: DoorKind) -> Result<Arc<ServerConfig>, AuthorityError> {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .expect("the provider speaks TLS 1.3");
        let builder = match door {
            DoorKind::Client => builder.with_no_client_auth(),
            DoorKind::Worker => {
                let mut roots = RootCertStore::empty();
                roots.add(self.certificate.clone()).map_err(AuthorityError::Unfit)?;
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
                    .allow_unauthenticated()
                    .build()
                    .expect("one root and no revocation list make a verifier");
                builder.with_client_cert_verifier(verifier)
            }
        };
        // The authority travels too: a joiner knows only its hash.
        let chain = vec![self.server_certificate.clone(), self.certificate.clone()];
        let mut config = builder.with_single_cert(chain, self.server_key.clone_key()).map_err(AuthorityError::Unfit)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Arc::new(config))
    }
}

fn load_or_create_authority(
    folder: &Path,
) -> Result<(CertificateDer<'static>, Issuer<'static, KeyPair>), AuthorityError> {
    let [key_path, certificate_path] = AUTHORITY_FILES.map(|name| folder.join(name));
    let certificate = match read_private(&certificate_path)? {
        Some(pem) => CertificateDer::from_pem_slice(&pem).map_err(|_| AuthorityError::Damaged(certificate_path))?,
        None => create_authority(&certificate_path, &key_path)?,
    };
    let key = read_private(&key_path)?.ok_or_else(|| AuthorityError::KeyMissing(key_path.clone()))?;
    let key = std::str::from_utf8(&key).ok().and_then(|pem| KeyPair::from_pem(pem).ok());
    let key = key.ok_or(AuthorityError::Damaged(key_path))?;
    let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(AuthorityError::Make)?;
    Ok((certificate, issuer))
}

fn create_authority(certificate: &Path, key_path: &Path) -> Result<CertificateDer<'static>, AuthorityError> {
    let key = KeyPair::generate().map_err(AuthorityError::Make)?;
    // Random, so that two authorities never have the same subject: a verifier would confuse them.
    let mut params = plain_params(&format!("essaim authority {}", hex::encode(random::<8>())));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = false;
    let made = params.self_signed(&key).map_err(AuthorityError::Make)?;
    write_private(key_path, key.serialize_pem().as_bytes())?;
    write_private(certificate, made.pem().as_bytes())?;
    Ok(made.der().clone())
}

/// The hub's own certificate. Unlike the authority it may be made anew whenever one of its files is missing.
fn load_or_create_server(
    folder: &Path,
    authority: &CertificateDer<'_>,
    issuer: &Issuer<'static, KeyPair>,
) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), AuthorityError> {
    let (certificate_path, key_path) = (folder.join("server.pem"), folder.join("server.key.pem"));
    if let (Some(certificate), Some(key)) = (read_private(&certificate_path)?, read_private(&key_path)?) {
        let certificate = CertificateDer::from_pem_slice(&certificate)
            .map_err(|_| AuthorityError::Damaged(certificate_path.clone()))?;
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| AuthorityError::Damaged(key_path.clone()))?;
        // An authority restored from a backup, or one made anew, leaves a server certificate that is not its own.
        if is_signed_by(&certificate, authority) {
            return Ok((certificate, key));
        }
    }
    let key = KeyPair::generate().map_err(AuthorityError::Make)?;
    let mut params = plain_params("essaim hub");
    let name = SERVER_NAME.try_into().map_err(AuthorityError::Make)?;
    params.subject_alt_names = vec![rcgen::SanType::DnsName(name)];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let made = params.signed_by(&key, issuer).map_err(AuthorityError::Make)?;
    write_private(&key_path, key.serialize_pem().as_bytes())?;
    write_private(&certificate_path, made.pem().as_bytes())?;
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes());
    Ok((made.der().clone(), key.map_err(|_| AuthorityError::Damaged(key_path))?))
}

fn is_signed_by(certificate: &CertificateDer<'_>, authority: &CertificateDer<'_>) -> bool {
    let leaf = x509_parser::parse_x509_certificate(certificate);
    let root = x509_parser::parse_x509_certificate(authority);
    match (leaf, root) {
        (Ok((_, leaf)), Ok((_, root))) => leaf.issuer().as_raw() == root.subject().as_raw(),
        _ => false,
    }
}

/// What all our certificates share: a subject, a random serial, and a life that begins before any clock's mistake. A
/// machine that starts without a battery believes in 1970; identity is the authority's hash, not the calendar.
fn plain_params(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = date_time_ymd(1970, 1, 1);
    // RFC 5280, 4.1.2.5: "has no well-defined expiration date".
    params.not_after = date_time_ymd(9999, 12, 31);
    // RFC 5280, 4.1.2.2: positive, at most 20 bytes; a first byte below 128 that is not 0 reads the same everywhere.
    let mut serial = random::<16>();
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.use_authority_key_identifier_extension = true;
    params
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;

    // The second start must find the same authority, and a lost server certificate is simply made again.
    #[test]
    fn the_same_authority_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let first = Authority::load_or_create(folder.path()).unwrap();
        let second = Authority::load_or_create(folder.path()).unwrap();
        assert_eq!(first.hash(), second.hash());
        assert_eq!(first.server_certificate, second.server_certificate);
        std::fs::remove_file(folder.path().join("server.key.pem")).unwrap();
        let third = Authority::load_or_create(folder.path()).unwrap();
        assert_eq!(first.hash(), third.hash());
        assert_ne!(first.server_certificate, third.server_certificate);
        #[cfg(unix)]
        for name in ["authority.pem", "authority.key.pem", "server.pem", "server.key.pem"] {
            use std::os::unix::fs::PermissionsExt;
            let mode = std::fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }

    // Half an authority must never be replaced behind the back of those who joined.
    #[test]
    fn a_lost_or_damaged_authority_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let hash = Authority::load_or_create(folder.path()).unwrap().hash();
        let key_path = folder.path().join("authority.key.pem");
        let key = std::fs::read(&key_path).unwrap();
        std::fs::write(&key_path, b"nonsense").unwrap();
        assert!(matches!(Authority::load_or_create(folder.path()), Err(AuthorityError::Damaged(_))));
        std::fs::remove_file(&key_path).unwrap();
        assert!(matches!(Authority::load_or_create(folder.path()), Err(AuthorityError::KeyMissing(_))));
        std::fs::write(&key_path, key).unwrap();
        assert_eq!(Authority::load_or_create(folder.path()).unwrap().hash(), hash);
    }

    // Only a request signed by its own key gets a certificate, and what it asks for beyond the key is ignored.
    #[test]
    fn only_the_public_key_of_a_request_counts() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(folder.path()).unwrap();
        let name: NodeName = "pc-1".parse().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["essaim-hub".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let csr = params.serialize_request(&key).unwrap();
        let signed = authority.sign_worker(csr.der(), &name).unwrap();
        let (_, leaf) = x509_parser::parse_x509_certificate(&signed.chain[0]).unwrap();
        assert_eq!(leaf.subject().to_string(), "CN=pc-1, OU=worker");
        assert!(!leaf.is_ca());
        assert!(leaf.subject_alternative_name().unwrap().is_none());
        let usage = leaf.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && !usage.server_auth);
        assert_eq!(hex::encode(leaf.raw_serial()), signed.serial);
        assert_eq!(authority_hash(&signed.chain[1]), authority.hash());

        let mut broken = csr.der().to_vec();
        *broken.last_mut().unwrap() ^= 1;
        assert!(matches!(authority.sign_worker(&broken, &name), Err(SignError::BadRequest(_))));
        assert!(matches!(authority.sign_worker(b"", &name), Err(SignError::BadRequest(_))));
    }

    // An identity survives its file, and a damaged one says what to do.
    #[test]
    fn an_identity_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(folder.path()).unwrap();
        assert!(Identity::load(folder.path()).unwrap().is_none());
        let request = Identity::generate_csr().unwrap();
        let name: NodeName = "pc-1".parse().unwrap();
        let signed = authority.sign_worker(&request.csr_der, &name).unwrap();
        let identity = Identity {
            name,
            authority: authority.hash(),
            addresses: vec!["127.0.0.1:5200".to_owned()],
            key_pem: request.key_pem,
            chain_hex: signed.chain.iter().map(hex::encode).collect(),
        };
        identity.save(folder.path()).unwrap();
        assert_eq!(Identity::load(folder.path()).unwrap().unwrap(), identity);
        assert!(!format!("{identity:?}").contains("PRIVATE KEY"));
        std::fs::write(folder.path().join("identity.json"), b"{}").unwrap();
        assert!(Identity::load(folder.path()).unwrap_err().to_string().contains("join again"));
    }
}
