//! Verification in handshakes, as rustls asks for it.
//!
//! Invariant: what a verifier says is captured, so that whoever drives the handshake can tell why it failed.

use super::{Peer, Refusal, Verifier, key_usage};
use crate::transport::tls::capture;
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::WebPkiSupportedAlgorithms,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use std::sync::Arc;

/// Verifies clients' certificates in a handshake.
#[derive(Debug)]
pub struct ClientVerifier {
    pub verifier: Arc<Verifier>,
    /// A client without a certificate is refused.
    pub required: bool,
    pub algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.hints()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verdict = self.verifier.verify_but_key_usage(Peer::Client, end_entity, intermediates, None, now);
        capture::verdict(&verdict);
        verdict?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The name that a server's certificate must be for.
#[derive(Debug)]
pub enum WantedName {
    Any,
    /// That which was sent.
    Sent,
    /// Another one.
    Other(ServerName<'static>),
}

/// Verifies servers' certificates in a handshake.
#[derive(Debug)]
pub struct ServerVerifier {
    /// `None`: any certificate will do.
    pub verifier: Option<Arc<Verifier>>,
    pub name: WantedName,
    pub algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let name = match &self.name {
            WantedName::Any => None,
            WantedName::Sent => Some(server_name.to_str()),
            WantedName::Other(name) => Some(name.to_str()),
        };
        let verdict = match (&self.verifier, name) {
            (None, None) => return Ok(ServerCertVerified::assertion()),
            (None, Some(_)) => Err(Refusal::unverifiable()),
            (Some(verifier), name) => {
                verifier.verify_but_key_usage(Peer::Server, end_entity, intermediates, name.as_deref(), now)
            }
        };
        capture::verdict(&verdict);
        verdict?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// That the peer has the certificate's key, in TLS 1.2; the certificate may be used for that.
fn tls12_signature(
    message: &[u8],
    cert: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    key_usage::check_in_tls12(cert)?;
    capture::scheme(dss.scheme);
    rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
}

/// The same in TLS 1.3.
fn tls13_signature(
    message: &[u8],
    cert: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    key_usage::check_in_tls13(cert)?;
    capture::scheme(dss.scheme);
    rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
}
