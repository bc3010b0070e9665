//! A peer signs in every handshake: its certificate's key usage, where it has one, must allow that.
//!
//! Envoy's TLS library looks at it before anything else, whatever a context demands, and tells of it in one alert in TLS 1.2 and
//! in another in TLS 1.3. Which of them is spoken is known where signatures are verified, so it is looked at there.

use super::{Demand, Refusal, capture, parsed::DIGITAL_SIGNATURE};
use rustls::{CertificateError, Error, PeerMisbehaved, pki_types::CertificateDer};
use x509_parser::prelude::{FromDer, X509Certificate};

/// What Envoy's TLS library calls it.
const DETAILS: &str = "KEY_USAGE_BIT_INCORRECT";

/// Checks a peer's certificate.
///
/// # Errors
/// Why it is refused.
pub fn check(leaf: &CertificateDer<'_>) -> Result<(), Refusal> {
    let refusal = |error| Refusal { demand: Demand::Chain, error, details: DETAILS.to_owned() };
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| refusal(CertificateError::BadEncoding))?;
    match parsed.key_usage() {
        Ok(Some(usage)) if usage.value.flags & DIGITAL_SIGNATURE == 0 => Err(refusal(CertificateError::InvalidPurpose)),
        Ok(_) => Ok(()),
        Err(_) => Err(refusal(CertificateError::BadEncoding)),
    }
}

/// Checks it in a TLS 1.2 handshake.
pub fn check_in_tls12(leaf: &CertificateDer<'_>) -> Result<(), Error> {
    captured(leaf).map_err(Error::from)
}

/// Checks it in a TLS 1.3 handshake.
pub fn check_in_tls13(leaf: &CertificateDer<'_>) -> Result<(), Error> {
    captured(leaf).map_err(|refusal| match refusal.error {
        // Becomes the alert `illegal_parameter`.
        CertificateError::InvalidPurpose => Error::PeerMisbehaved(PeerMisbehaved::BadCertChainExtensions),
        _ => refusal.into(),
    })
}

fn captured(leaf: &CertificateDer<'_>) -> Result<(), Refusal> {
    check(leaf).inspect_err(|refusal| capture::verdict(&Err(refusal.clone())))
}
