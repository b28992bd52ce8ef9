//! TLS for both servers: what a peer's certificate is checked against, and what a refusal means.
//!
//! rustls with *ring*, given explicitly: the process-wide default provider is whatever some library installed first.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// How much of the peer's certificate is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verify {
    /// Encryption only: whoever answers is believed.
    Nothing,
    /// An authority that we trust has signed it; for which host does not matter.
    Chain,
    /// The same, and it is for the host that we asked for.
    ChainAndName,
}

/// What a peer's certificate is checked against. Read from the files at each connect, so that rotation needs no restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trust {
    pub(crate) verify: Verify,
    /// The authorities that the operating system trusts.
    pub(crate) system_roots: bool,
    /// More authorities, in PEM. A certificate in this file is also trusted as it stands: a self-signed server
    /// certificate may be its own authority.
    pub(crate) ca_file: Option<PathBuf>,
}

/// Our own certificate (with its intermediates) and its key, both in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) cert_file: PathBuf,
    pub(crate) key_file: PathBuf,
}

/// TLS cannot be set up as configured.
#[derive(Debug, thiserror::Error)]
pub enum TlsConfigError {
    #[error("cannot read `{path}`: {source}; it must be a PEM file that this user may read")]
    File { path: PathBuf, source: pem::Error },
    #[error("`{path}` holds no certificate in PEM form")]
    NoCertificate { path: PathBuf },
    #[error("no certificate authorities were found on this system; install its `ca-certificates` or name a CA file")]
    NoSystemRoots,
    #[error("`{path}` holds a certificate that cannot be an authority: {source}")]
    BadAuthority { path: PathBuf, source: rustls::Error },
    #[error("the client certificate `{path}` does not work with its key: {source}")]
    Identity { path: PathBuf, source: rustls::Error },
    #[error("TLS cannot be set up: {0}")]
    Rustls(#[from] rustls::Error),
}

/// A rustls configuration for TLS 1.2 and later.
pub(crate) fn client_config(trust: &Trust, identity: Option<&Identity>) -> Result<ClientConfig, TlsConfigError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Verifier::load(trust, &provider)?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let Some(Identity { cert_file, key_file }) = identity else { return Ok(config.with_no_client_auth()) };
    let chain = certificates(cert_file)?;
    let key = PrivateKeyDer::from_pem_file(key_file)
        .map_err(|source| TlsConfigError::File { path: key_file.clone(), source })?;
    config
        .with_client_auth_cert(chain, key)
        .map_err(|source| TlsConfigError::Identity { path: cert_file.clone(), source })
}

/// Every certificate of a PEM file; at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsConfigError> {
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|source| TlsConfigError::File { path: path.to_owned(), source })?;
    if certificates.is_empty() {
        return Err(TlsConfigError::NoCertificate { path: path.to_owned() });
    }
    Ok(certificates)
}

/// The one verifier for all three degrees of [`Verify`]. Handshake signatures are checked in each of them: the peer owns
/// the key of the certificate that it shows.
#[derive(Debug)]
struct Verifier {
    verify: Verify,
    roots: RootCertStore,
    /// The certificates of the CA file, trusted as they stand when the peer shows one of them. Their dates are not
    /// checked then: the operator pinned them.
    pinned: Vec<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn load(trust: &Trust, provider: &CryptoProvider) -> Result<Self, TlsConfigError> {
        let mut verifier = Verifier {
            verify: trust.verify,
            roots: RootCertStore::empty(),
            pinned: Vec::new(),
            algorithms: provider.signature_verification_algorithms,
        };
        if trust.verify == Verify::Nothing {
            return Ok(verifier);
        }
        if trust.system_roots {
            // Some of a system's certificates may be unreadable or odd; what is left decides.
            verifier.roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if verifier.roots.is_empty() && trust.ca_file.is_none() {
                return Err(TlsConfigError::NoSystemRoots);
            }
        }
        if let Some(path) = &trust.ca_file {
            verifier.pinned = certificates(path)?;
            for certificate in &verifier.pinned {
                verifier
                    .roots
                    .add(certificate.clone())
                    .map_err(|source| TlsConfigError::BadAuthority { path: path.clone(), source })?;
            }
        }
        Ok(verifier)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.verify == Verify::Nothing {
            return Ok(ServerCertVerified::assertion());
        }
        let certificate = ParsedCertificate::try_from(end_entity)?;
        if !self.pinned.contains(end_entity) {
            let algorithms = self.algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, algorithms)?;
        }
        if self.verify == Verify::ChainAndName {
            verify_server_name(&certificate, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Why the peer's certificate was refused. Each server's module says which of its settings help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Self-signed, or signed by an authority that is not trusted here.
    UnknownAuthority,
    /// For other names (as the certificate has them; none if it names its host in the common name only).
    OtherHost(Vec<String>),
    /// Not valid any more, or not yet.
    Dates,
    /// Anything else, in rustls' words.
    Other(String),
}

/// Whether the peer refuses the certificate that it was shown, or misses one. With TLS 1.3 that comes after the handshake, in the
/// place of the peer's first answer (RFC 8446, section 4.4.2.4).
pub(crate) fn refuses_ours(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let Some(rustls::Error::AlertReceived(alert)) = inner else { return false };
    matches!(
        alert,
        AlertDescription::NoCertificate
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError
            | AlertDescription::CertificateRequired
    )
}

/// The refusal inside the error of a TLS handshake; `None` if the peer's certificate was not the reason.
pub(crate) fn refusal(error: &io::Error) -> Option<Refusal> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    let rustls::Error::InvalidCertificate(reason) = error else { return None };
    Some(match reason {
        // A bad signature is an authority's namesake with another key: a CA that was made anew.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => Refusal::UnknownAuthority,
        CertificateError::NotValidForName => Refusal::OtherHost(Vec::new()),
        CertificateError::NotValidForNameContext { presented, .. } => Refusal::OtherHost(presented.clone()),
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => Refusal::Dates,
        // What webpki says of a self-signed certificate that calls itself an authority, as `openssl req -x509` makes them.
        CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => Refusal::UnknownAuthority,
        other => Refusal::Other(other.to_string()),
    })
}
