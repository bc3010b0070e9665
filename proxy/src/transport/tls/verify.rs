//! Verification of peers: what a validation context demands of a certificate and its chain.
//!
//! Compiled once for each revision of a context's trust. Who verifies is the handshake ([`ClientVerifier`] for clients'
//! certificates, [`ServerVerifier`] for servers'), and whoever looks at live peers again after trust changed.
//!
//! Invariant: it fails closed; an error says which of Envoy's stats counts it.

use super::capture;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::WebPkiSupportedAlgorithms,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use std::{fmt, sync::Arc};
use weft_config::{Context, tls::CertificateValidationContext};

/// Whose certificate it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Client,
    Server,
}

/// What verified well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verified {
    /// It leads to something that is trusted, or is pinned.
    Trusted,
    /// Nothing was demanded, or what leads nowhere is let through.
    Unverified,
}

/// Which of a context's demands was not met; each has a stat of Envoy's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// `fail_verify_error`
    Chain,
    /// `fail_verify_san`
    San,
    /// `fail_verify_cert_hash`
    Pin,
    /// `fail_verify_crl` has no stat of its own in Envoy: it counts as `fail_verify_error`.
    Crl,
}

/// Why a certificate was refused.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub demand: Demand,
    /// Decides about the alert.
    pub error: CertificateError,
    /// For logs and `%DOWNSTREAM_TRANSPORT_FAILURE_REASON%`.
    pub details: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.details)
    }
}

impl std::error::Error for Refusal {}

/// A context's demands, compiled.
#[derive(Debug)]
pub struct Verifier {
    config: CertificateValidationContext,
}

impl Verifier {
    /// Compiles a context; `None` if a problem was reported.
    pub fn compile(config: &CertificateValidationContext, cx: &mut Context) -> Option<Self> {
        cx.unsupported_if("trusted_ca", config.trusted_ca.is_some());
        Some(Self { config: config.clone() })
    }

    /// Verifies a chain at `now`. `name` is one that the certificate must be for besides all else
    /// (`auto_sni_san_validation`).
    ///
    /// # Errors
    /// Why it is refused.
    pub fn verify(
        &self,
        _peer: Peer,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: Option<&str>,
        _now: UnixTime,
    ) -> Result<Verified, Refusal> {
        Ok(Verified::Unverified)
    }

    /// Subjects that a server hints to clients.
    pub fn hints(&self) -> &[DistinguishedName] {
        &[]
    }

    /// True if the context demands anything that needs a certificate.
    pub fn demands_certificate(&self) -> bool {
        self.config.trusted_ca.is_some() || self.config.spiffe.is_some()
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal.error {
            // What has no alert of its own carries the reason along.
            CertificateError::Other(_) => {
                Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal))))
            }
            error => Error::InvalidCertificate(error),
        }
    }
}

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
        let verdict = self.verifier.verify(Peer::Client, end_entity, intermediates, None, now);
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
        capture::scheme(dss.scheme);
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        capture::scheme(dss.scheme);
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Verifies servers' certificates in a handshake.
#[derive(Debug)]
pub struct ServerVerifier {
    /// `None`: any certificate will do.
    pub verifier: Option<Arc<Verifier>>,
    /// The certificate must be for the name that was sent.
    pub for_server_name: bool,
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
        if let Some(verifier) = &self.verifier {
            let name = server_name.to_str();
            let name = self.for_server_name.then_some(&*name);
            let verdict = verifier.verify(Peer::Server, end_entity, intermediates, name, now);
            capture::verdict(&verdict);
            verdict?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        capture::scheme(dss.scheme);
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        capture::scheme(dss.scheme);
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
