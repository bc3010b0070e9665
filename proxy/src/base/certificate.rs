//! What a certificate says of its holder: the facts that access logs, matchers, RBAC and XFCC read.
//!
//! Made once for each certificate that is served (when configuration is compiled) and once for each peer's (at the
//! handshake). What few ask for, digests and PEM, is computed at its first use. Verification is not its business.

mod name;

pub use name::other_name;
mod pem;

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::OnceLock,
    time::{SystemTime, UNIX_EPOCH},
};
use x509_parser::{
    extensions::{GeneralName, ParsedExtension},
    oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME,
    prelude::{FromDer, X509Certificate},
};

/// A parsed certificate.
#[derive(Debug)]
pub struct Certificate {
    der: Box<[u8]>,
    /// As RFC 2253 writes it; ASCII without control characters, whatever the certificate holds.
    pub subject: Box<str>,
    /// As RFC 2253 writes it; ASCII without control characters.
    pub issuer: Box<str>,
    /// Lower-case hex, two digits a byte.
    pub serial: Box<str>,
    // Names are as long as the certificate says, NUL bytes included. A byte that is no text makes a replacement
    // character of its name's part: the name stays one, and is nobody else's.
    pub uri_sans: Vec<Box<str>>,
    pub dns_sans: Vec<Box<str>>,
    pub ip_sans: Vec<IpAddr>,
    pub email_sans: Vec<Box<str>>,
    /// Of the form OID, value as text.
    pub other_name_sans: Vec<(Box<str>, Box<str>)>,
    /// Seconds since the epoch.
    pub not_before: i64,
    /// Seconds since the epoch.
    pub not_after: i64,
    /// Its key usage, if it says one, allows signatures: without that it proves nobody's identity in a handshake.
    pub may_sign: bool,
    sha256: OnceLock<[u8; 32]>,
    sha1: OnceLock<[u8; 20]>,
}

impl Certificate {
    /// Reads a DER certificate.
    ///
    /// # Errors
    /// Why it is none.
    pub fn parse(der: &[u8]) -> Result<Self, String> {
        let (rest, parsed) = X509Certificate::from_der(der).map_err(|e| format!("is no X.509 certificate: {e}"))?;
        if !rest.is_empty() {
            return Err(format!("has {} bytes after its end", rest.len()));
        }
        let mut this = Self {
            der: der.into(),
            subject: name::rfc2253(parsed.subject()).into(),
            issuer: name::rfc2253(parsed.issuer()).into(),
            serial: hex(strip_zeros(parsed.raw_serial())).into(),
            uri_sans: Vec::new(),
            dns_sans: Vec::new(),
            ip_sans: Vec::new(),
            email_sans: Vec::new(),
            other_name_sans: Vec::new(),
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
            may_sign: parsed.key_usage().is_ok_and(|usage| usage.is_none_or(|usage| usage.value.digital_signature())),
            sha256: OnceLock::new(),
            sha1: OnceLock::new(),
        };
        for extension in parsed.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => {
                    names.general_names.iter().for_each(|name| this.add_san(name));
                }
                // Names that cannot be read would be names that are not there.
                ParsedExtension::ParseError { error } if extension.oid == OID_X509_EXT_SUBJECT_ALT_NAME => {
                    return Err(format!("has subject alternative names that cannot be read: {error}"));
                }
                _ => {}
            }
        }
        Ok(this)
    }

    fn add_san(&mut self, name: &GeneralName<'_>) {
        match name {
            GeneralName::URI(uri) => self.uri_sans.push((*uri).into()),
            GeneralName::DNSName(name) => self.dns_sans.push((*name).into()),
            GeneralName::RFC822Name(email) => self.email_sans.push((*email).into()),
            GeneralName::IPAddress(octets) => self.ip_sans.extend(ip(octets)),
            GeneralName::OtherName(oid, value) => {
                let text = other_name(value).unwrap_or_else(|| hex(value));
                self.other_name_sans.push((oid.to_id_string().into(), text.into()));
            }
            GeneralName::Invalid(tag, bytes) => {
                let text = || String::from_utf8_lossy(bytes).into();
                match tag.0 {
                    1 => self.email_sans.push(text()),
                    2 => self.dns_sans.push(text()),
                    6 => self.uri_sans.push(text()),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    /// The certificate itself.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// True if its validity is over.
    pub fn is_expired(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(now.as_secs()).is_ok_and(|now| self.not_after < now)
    }

    /// PEM, its lines ended by a newline each.
    pub fn pem(&self) -> String {
        pem::encode(&self.der)
    }

    pub fn sha256(&self) -> &[u8; 32] {
        self.sha256.get_or_init(|| digest(&aws_lc_rs::digest::SHA256, &self.der))
    }

    pub fn sha1(&self) -> &[u8; 20] {
        self.sha1.get_or_init(|| digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, &self.der))
    }
}

fn digest<const N: usize>(algorithm: &'static aws_lc_rs::digest::Algorithm, data: &[u8]) -> [u8; N] {
    let digest = aws_lc_rs::digest::digest(algorithm, data);
    digest.as_ref().try_into().unwrap_or([0; N])
}

/// PEM of a certificate as it goes into a URL.
pub fn url_encoded_pem(der: &[u8]) -> String {
    pem::url_encoded(der)
}

/// PEM of a certificate.
pub fn pem(der: &[u8]) -> String {
    pem::encode(der)
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn strip_zeros(serial: &[u8]) -> &[u8] {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    serial.get(zeros.min(serial.len().saturating_sub(1))..).unwrap_or_default()
}

fn ip(octets: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(octets).ok().map(|octets| IpAddr::V4(Ipv4Addr::from(octets)));
    v4.or_else(|| <[u8; 16]>::try_from(octets).ok().map(|octets| IpAddr::V6(Ipv6Addr::from(octets))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serials_have_two_digits_a_byte_and_no_zeros_in_front() {
        assert_eq!(hex(strip_zeros(&[0, 0xff, 1])), "ff01");
        assert_eq!(hex(strip_zeros(&[0x0a])), "0a");
        assert_eq!(hex(strip_zeros(&[0])), "00");
        assert_eq!(hex(strip_zeros(&[])), "");
    }

    #[test]
    fn what_is_no_certificate_is_an_error() {
        for bytes in [&[][..], &[0x30], &[0x30, 0x80], b"-----BEGIN CERTIFICATE-----"] {
            assert!(Certificate::parse(bytes).is_err());
        }
    }
}
