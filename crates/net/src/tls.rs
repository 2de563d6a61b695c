//! TLS as both ends use it: one provider, TLS 1.3, one protocol name, and a hub proved by its authority's hash.
//!
//! `dial` asks for the client's configuration, `authority` for the provider and the names. Always true: nothing is sent
//! before the hub is proved; the process-wide default provider is neither used nor set; no session is resumed (machines
//! keep their one connection, so a ticket would only be a second way in).
//! Deliberately not here: sockets, and what the hub does with a certificate.

use crate::identity::{Identity, IdentityError};
use aws_lc_rs::digest;
use essaim_proto::id::AuthorityHash;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::version::TLS13;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};
use std::sync::Arc;

/// The protocol's name in the handshake.
pub const ALPN: &[u8] = b"essaim/1";

/// The name in every hub's certificate. A hub is known by its authority's hash, so this says nothing and never changes.
pub const SERVER_NAME: &str = "essaim-hub";

/// Our provider of cryptography. Passed explicitly everywhere: with two providers in a tree the process-wide default
/// would panic at the first connection (NET.md section 1).
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// SHA-256 of a certificate's DER.
pub fn authority_hash(certificate_der: &[u8]) -> AuthorityHash {
    let digest = digest::digest(&digest::SHA256, certificate_der);
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.as_ref());
    AuthorityHash(bytes)
}

/// The hub that answered has another authority. Travels inside rustls' error; see [`is_other_hub`].
#[derive(Debug, thiserror::Error)]
#[error("another hub answers")]
struct OtherHub;

/// Was the handshake ended because another hub answers?
pub fn is_other_hub(error: &std::io::Error) -> bool {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner)))) => inner.is::<OtherHub>(),
        _ => false,
    }
}

/// Is this an error of TLS rather than of the socket?
pub fn is_tls(error: &std::io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
}

/// How a dialler speaks TLS to the hub of `authority`: with a certificate if it has an `identity`.
///
/// # Errors
/// [`IdentityError`] when the identity's key cannot be read.
pub fn client_config(authority: AuthorityHash, identity: Option<&Identity>) -> Result<ClientConfig, IdentityError> {
    let provider = provider();
    let verifier = HubVerifier {
        authority,
        algorithms: provider.signature_verification_algorithms,
        provider: Arc::clone(&provider),
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .expect("the provider speaks TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match identity {
        Some(identity) => {
            let (chain, key) = identity.certificate()?;
            builder.with_client_auth_cert(chain, key).map_err(IdentityError::Unfit)?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(config)
}

/// Trusts one authority: the one whose hash was in the join line or the key.
#[derive(Debug)]
struct HubVerifier {
    authority: AuthorityHash,
    algorithms: WebPkiSupportedAlgorithms,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for HubVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let ours = intermediates.iter().find(|certificate| authority_hash(certificate) == self.authority);
        let Some(ours) = ours else {
            return Err(CertificateError::Other(OtherError(Arc::new(OtherHub))).into());
        };
        // The hash proves which authority is meant; that the leaf was signed by it, for servers, is webpki's work.
        let mut roots = RootCertStore::empty();
        roots.add(ours.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let name = ServerName::try_from(SERVER_NAME).expect("the fixed name is a name");
        verifier.verify_server_cert(end_entity, &[], &name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
