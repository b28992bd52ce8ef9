//! TLS towards PostgreSQL: from `sslmode` to a configuration, what a refusal means, and the channel binding of SCRAM.

use std::io;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::crypto::ring::cipher_suite;
use rustls::pki_types::CertificateDer;

use super::url::{RootCert, SslMode, Target};
use crate::tls::{Identity, Refusal, TlsConfigError, Trust, Verify, client_config, refusal};

/// The configuration for connections of `target` that verify as `mode` says.
pub(crate) fn config_for(target: &Target, mode: SslMode) -> Result<Arc<ClientConfig>, TlsConfigError> {
    let verify = match mode {
        SslMode::VerifyFull => Verify::ChainAndName,
        SslMode::VerifyCa => Verify::Chain,
        SslMode::Require | SslMode::Prefer | SslMode::Allow | SslMode::Disable => Verify::Nothing,
    };
    let (system_roots, ca_file) = match &target.root_cert {
        Some(RootCert::File(path)) => (false, Some(path.clone())),
        Some(RootCert::System) | None => (true, None),
    };
    let identity = target.client_cert.clone().map(|(cert_file, key_file)| Identity { cert_file, key_file });
    client_config(&Trust { verify, system_roots, ca_file }, identity.as_ref()).map(Arc::new)
}

/// What was refused and which setting helps, for a handshake that failed.
pub(crate) fn explain(error: &io::Error, host: &str) -> String {
    match refusal(error) {
        Some(Refusal::UnknownAuthority) => format!(
            "the certificate of `{host}` is self-signed or of an authority that is not trusted here; \
             name its CA in DATABASE_URL with sslrootcert=/path/to/ca.pem (or encrypt without verifying: sslmode=require)"
        ),
        Some(Refusal::OtherHost(names)) if names.is_empty() => format!(
            "the certificate names no host in its subjectAltName (a common name does not count), so it is not for `{host}`; \
             make one that does, or check its authority only: sslmode=verify-ca with sslrootcert=/path/to/ca.pem"
        ),
        Some(Refusal::OtherHost(names)) => format!(
            "the certificate is for {}, not for `{host}`; write the host in DATABASE_URL as the certificate does, \
             or check its authority only: sslmode=verify-ca with sslrootcert=/path/to/ca.pem",
            names.join(", ")
        ),
        Some(Refusal::Dates) => {
            format!(
                "the certificate of `{host}` has expired or is not valid yet; renew it, and check this machine's clock"
            )
        }
        Some(Refusal::Other(words)) => format!("the certificate of `{host}` was refused: {words}"),
        None => error.to_string(),
    }
}

/// The `tls-server-end-point` binding of a server's certificate (RFC 5929, section 4.1): its hash, by the hash function
/// of its signature, SHA-256 standing in for MD5 and SHA-1. `None` for signatures that name no hash that we have:
/// then SCRAM goes without binding.
pub(crate) fn end_point(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    // DER of the algorithm identifiers: RFC 8017 appendix A.2.4 (sha1, sha256, sha384 with RSA), RFC 5758 section 3.2 (with ECDSA).
    const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
    const ECDSA_SHA2: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03];
    let algorithm = signature_algorithm(certificate)?;
    let suite = match (algorithm.strip_prefix(RSA), algorithm.strip_prefix(ECDSA_SHA2)) {
        (Some([0x04 | 0x05 | 0x0b]), _) | (_, Some([0x02])) => cipher_suite::TLS13_AES_128_GCM_SHA256,
        (Some([0x0c]), _) | (_, Some([0x03])) => cipher_suite::TLS13_AES_256_GCM_SHA384,
        _ => return None,
    };
    Some(suite.tls13()?.common.hash_provider.hash(certificate).as_ref().to_vec())
}

/// The object identifier in `Certificate.signatureAlgorithm` (RFC 5280, section 4.1).
fn signature_algorithm(certificate: &[u8]) -> Option<&[u8]> {
    const SEQUENCE: u8 = 0x30;
    const OBJECT_IDENTIFIER: u8 = 0x06;
    let (certificate, _) = der_value(certificate, SEQUENCE)?;
    let (_to_be_signed, rest) = der_value(certificate, SEQUENCE)?;
    let (algorithm, _) = der_value(rest, SEQUENCE)?;
    let (identifier, _) = der_value(algorithm, OBJECT_IDENTIFIER)?;
    Some(identifier)
}

/// The content of the DER value at the start of `bytes`, if it has this tag, and what follows it.
fn der_value(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&first, rest) = bytes.split_first()?;
    let (&length, rest) = rest.split_first()?;
    let (length, rest) = if length < 0x80 {
        (usize::from(length), rest)
    } else {
        let (digits, rest) =
            rest.split_at_checked(usize::from(length & 0x7f)).filter(|(digits, _)| digits.len() <= 4)?;
        (digits.iter().fold(0, |length, &digit| length << 8 | usize::from(digit)), rest)
    };
    rest.split_at_checked(length).filter(|_| first == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_point_is_the_hash_that_the_signature_uses() {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["db".to_owned()]).unwrap().self_signed(&key).unwrap();
        assert_eq!(end_point(certificate.der()).unwrap().len(), 48);

        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["db".to_owned()]).unwrap().self_signed(&key).unwrap();
        assert_eq!(end_point(certificate.der()).unwrap().len(), 32);

        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["db".to_owned()]).unwrap().self_signed(&key).unwrap();
        assert_eq!(end_point(certificate.der()), None, "Ed25519 names no hash");
    }

    #[test]
    fn bytes_that_are_no_certificate_have_no_end_point() {
        for bytes in [&[][..], &[0x30], &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff], &[0x30, 0xff], &[0x30, 0x02, 0x30, 0x05]]
        {
            assert_eq!(end_point(&CertificateDer::from(bytes)), None);
        }
    }
}
