//! OCSP staples: what a certificate's issuer says of it, handed to clients that ask (RFC 6066, 8; RFC 6960).
//!
//! Invariant: a staple that is over is never sent.

use der::Decode as _;
use std::time::{SystemTime, UNIX_EPOCH};
use weft_config::tls::OcspStaplePolicy as Policy;
use x509_ocsp::{BasicOcspResponse, OcspResponse, OcspResponseStatus};

/// A staple of one certificate.
#[derive(Clone, Debug)]
pub struct Staple {
    pub response: Vec<u8>,
    /// Seconds since the epoch; `None`: it is good for nothing, as the issuer does not say until when.
    pub next_update: Option<u64>,
}

/// What a client gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It did not ask.
    NotAsked,
    Staple,
    Omit,
    /// The certificate must not be served.
    Fail,
}

impl Staple {
    /// Reads a response for the certificate of this serial number.
    ///
    /// # Errors
    /// Why it is none.
    pub fn parse(response: &[u8], serial: &[u8]) -> Result<Self, String> {
        let broken = |e: der::Error| format!("is no OCSP response: {e}");
        let parsed = OcspResponse::from_der(response).map_err(broken)?;
        if parsed.response_status != OcspResponseStatus::Successful {
            return Err(format!("OCSP response was unsuccessful: {:?}", parsed.response_status));
        }
        let bytes = parsed.response_bytes.ok_or("OCSP response has no body")?;
        let basic = BasicOcspResponse::from_der(bytes.response.as_bytes()).map_err(broken)?;
        let [single] = &basic.tbs_response_data.responses[..] else {
            return Err("OCSP Response must be for one certificate only".into());
        };
        if strip(single.cert_id.serial_number.as_bytes()) != strip(serial) {
            return Err("OCSP response does not match its TLS certificate".into());
        }
        let next_update = single.next_update.map(|time| time.0.to_unix_duration().as_secs());
        Ok(Self { response: response.to_vec(), next_update })
    }

    fn is_over(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.next_update.is_none_or(|until| until < now)
    }
}

/// Leading zeros do not count.
fn strip(mut serial: &[u8]) -> &[u8] {
    while let [0, rest @ ..] = serial {
        serial = rest;
    }
    serial
}

/// What a client gets by a context's policy; a certificate that says it must be stapled has its own.
pub fn action(asked: bool, staple: Option<&Staple>, must_staple: bool, policy: Policy) -> Action {
    if !asked {
        return Action::NotAsked;
    }
    let policy = if must_staple { Policy::MustStaple } else { policy };
    let is_valid = staple.is_some_and(|staple| !staple.is_over());
    match policy {
        _ if is_valid => Action::Staple,
        Policy::LenientStapling => Action::Omit,
        Policy::StrictStapling if staple.is_none() => Action::Omit,
        Policy::StrictStapling | Policy::MustStaple => Action::Fail,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_decide_what_becomes_of_staples_that_are_over_or_missing() {
        let until = |next_update| Staple { response: vec![1], next_update };
        let (good, old, endless) = (until(Some(u64::MAX)), until(Some(1)), until(None));
        let lenient = |staple, must| action(true, staple, must, Policy::LenientStapling);
        assert_eq!(lenient(Some(&good), false), Action::Staple);
        assert_eq!(lenient(Some(&old), false), Action::Omit);
        assert_eq!(lenient(Some(&endless), false), Action::Omit);
        assert_eq!(lenient(None, true), Action::Fail, "the certificate's own demand");
        assert_eq!(action(true, Some(&old), false, Policy::StrictStapling), Action::Fail);
        assert_eq!(action(true, None, false, Policy::StrictStapling), Action::Omit);
        assert_eq!(action(true, None, false, Policy::MustStaple), Action::Fail);
        assert_eq!(action(false, None, true, Policy::MustStaple), Action::NotAsked);
    }

    #[test]
    fn what_is_no_response_is_refused() {
        assert!(Staple::parse(b"", &[1]).is_err());
        assert!(Staple::parse(&[0x30, 3, 0x0a, 1, 6], &[1]).is_err(), "unauthorized");
    }
}
