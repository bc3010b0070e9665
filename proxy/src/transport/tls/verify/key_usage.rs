//! A peer signs in every handshake: its certificate's key usage, where it has one, must allow that.
//!
//! Envoy's TLS library looks at it whatever a context demands, and tells of it in one alert in TLS 1.2 and in another in TLS 1.3.
//! Which of them is spoken is known where signatures are verified, so it is looked at there.

use super::{Demand, FaultKind, Refusal, parsed::DIGITAL_SIGNATURE};
use crate::transport::tls::{capture, recent};
use rustls::{CertificateError, Error, PeerMisbehaved, pki_types::CertificateDer};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Checks a peer's certificate.
///
/// # Errors
/// Why it is refused.
pub fn check(leaf: &CertificateDer<'_>) -> Result<(), Refusal> {
    if recent::may_sign(leaf) {
        return Ok(());
    }
    let malformed = || Refusal {
        demand: Demand::Chain,
        error: CertificateError::BadEncoding,
        details: "verify cert failed: the certificate cannot be read".to_owned(),
    };
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| malformed())?;
    match parsed.key_usage().map_err(|_| malformed())? {
        Some(usage) if usage.value.flags & DIGITAL_SIGNATURE == 0 => Err(FaultKind::Purpose.at(0).into()),
        _ => Ok(()),
    }
}

/// Checks it in a TLS 1.2 handshake.
pub fn check_in_tls12(leaf: &CertificateDer<'_>) -> Result<(), Error> {
    check(leaf).inspect_err(|refusal| capture::verdict(&Err(refusal.clone()))).map_err(Error::from)
}

/// Checks it in a TLS 1.3 handshake.
pub fn check_in_tls13(leaf: &CertificateDer<'_>) -> Result<(), Error> {
    // Becomes the alert `illegal_parameter`.
    check(leaf).map_err(|_| Error::PeerMisbehaved(PeerMisbehaved::BadCertChainExtensions))
}
