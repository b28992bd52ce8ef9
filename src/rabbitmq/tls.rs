//! TLS to RabbitMQ: what the URL says, in the terms of [`crate::tls`].

use std::io;
use std::sync::Arc;

use rustls::ClientConfig;

use super::url::TlsOptions;
use crate::tls::{Identity, Refusal, TlsConfigError, Trust, Verify, client_config, refusal};

/// Reads the files anew at each connect, so that rotated certificates need no restart.
pub(super) fn config(options: &TlsOptions) -> Result<Arc<ClientConfig>, TlsConfigError> {
    let trust = Trust {
        verify: if options.verify_none { Verify::Nothing } else { Verify::ChainAndName },
        system_roots: true,
        ca_file: options.ca_file.clone(),
    };
    let identity = options.identity.clone().map(|(cert_file, key_file)| Identity { cert_file, key_file });
    client_config(&trust, identity.as_ref()).map(Arc::new)
}

/// What an operator can do about a handshake that failed.
pub(super) fn hint(error: &io::Error) -> String {
    match refusal(error) {
        Some(Refusal::UnknownAuthority) => {
            "its certificate is self-signed or signed by an authority that is not trusted here; \
             set amqp_ca_file (or cacertfile in AMQP_URL) to the CA's PEM file"
                .to_owned()
        }
        Some(Refusal::OtherHost(names)) if names.is_empty() => {
            "its certificate names no host; it needs a subjectAltName for this one".to_owned()
        }
        Some(Refusal::OtherHost(names)) => format!(
            "its certificate is for {}; connect by such a name, or set server_name_indication in AMQP_URL",
            names.join(", ")
        ),
        Some(Refusal::Dates) => {
            "its certificate has expired or is not valid yet; renew it, or check the clocks".to_owned()
        }
        Some(Refusal::Other(reason)) => format!("its certificate is not acceptable: {reason}"),
        None if plaintext(error) => {
            "it does not speak TLS on this port (5671 is usual for amqps://, 5672 is plaintext)".to_owned()
        }
        None => format!("{error}; its log says more"),
    }
}

/// A server that speaks plaintext AMQP answers a ClientHello with its protocol header.
fn plaintext(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidMessage(_)))
}
