//! SPIFFE IDs and the rules of X.509 SVIDs.
//!
//! The rules are asked of every certificate that the SPIFFE validator verifies, and of certificates that a matcher of SPIFFE IDs
//! lets through (see [`super::Verifier`]). Envoy asks for less: it takes several URIs and IDs that are malformed.
//!
//! The parser is ours: the `spiffe` crate takes IDs that are read with a case-insensitive scheme, and brings its gRPC client along.
//!
//! Invariant: an ID that was read is in its one canonical form, so that equal text is equal identity.

use super::parsed::{CRL_SIGN, DIGITAL_SIGNATURE, KEY_CERT_SIGN, Name, Parsed};

/// The longest ID.
const MAX_ID: usize = 2048;
/// The longest trust domain.
const MAX_TRUST_DOMAIN: usize = 255;
const SCHEME: &str = "spiffe://";

/// Envoy's words for a certificate of which no bundle can be told, or whose trust domain has none.
pub const NO_BUNDLE: &str = "no trust bundle store";

/// A SPIFFE ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpiffeId<'a> {
    pub trust_domain: &'a str,
    /// Begins with a slash; empty for that of a trust domain.
    pub path: &'a str,
}

impl<'a> SpiffeId<'a> {
    /// Reads an ID.
    ///
    /// # Errors
    /// Which rule it breaks.
    pub fn parse(text: &'a str) -> Result<Self, &'static str> {
        if text.len() > MAX_ID {
            return Err("SPIFFE ID of more than 2048 bytes");
        }
        let rest = text.strip_prefix(SCHEME).ok_or(NO_BUNDLE)?;
        let (trust_domain, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if !is_trust_domain(trust_domain) {
            return Err(NO_BUNDLE);
        }
        let is_segment = |segment: &str| {
            let is_allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
            !matches!(segment, "" | "." | "..") && segment.bytes().all(is_allowed)
        };
        match path.strip_prefix('/').is_none_or(|path| path.split('/').all(is_segment)) {
            true => Ok(Self { trust_domain, path }),
            false => Err("SPIFFE ID with a malformed path"),
        }
    }
}

/// True for the name of a trust domain.
pub fn is_trust_domain(text: &str) -> bool {
    let is_allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    (1..=MAX_TRUST_DOMAIN).contains(&text.len()) && text.bytes().all(is_allowed)
}

/// True if a URI claims to be a SPIFFE ID, well-formed or not.
pub fn claims_to_be_id(uri: &str) -> bool {
    uri.get(.."spiffe:".len()).is_some_and(|scheme| scheme.eq_ignore_ascii_case("spiffe:"))
}

/// The ID of an SVID.
///
/// # Errors
/// Which rule the certificate breaks.
pub fn id(certificate: &Parsed) -> Result<SpiffeId<'_>, &'static str> {
    let mut uris = certificate.names.iter().filter(|name| name.is_uri());
    let uri = match (uris.next(), uris.next()) {
        (Some(Name::Uri(uri)), None) => uri,
        (None, _) => return Err(NO_BUNDLE),
        (Some(_), None) => return Err("URI SAN that cannot be read"),
        (Some(_), Some(_)) => return Err("more than one URI SAN"),
    };
    let id = SpiffeId::parse(uri)?;
    match id.path.is_empty() {
        false => Ok(id),
        true => Err(NO_BUNDLE),
    }
}

/// Checks that a peer's certificate is one that an SVID may be.
///
/// # Errors
/// Which rule it breaks.
pub fn check_leaf(certificate: &Parsed) -> Result<(), &'static str> {
    match certificate.basic_constraints {
        None => return Err("no basic constraints"),
        Some(constraints) if constraints.is_ca => return Err("a CA certificate is no SVID"),
        Some(_) => {}
    }
    match certificate.key_usage {
        None => Err("no key usage"),
        Some(usage) if usage & (KEY_CERT_SIGN | CRL_SIGN) != 0 => Err("a signing certificate is no SVID"),
        Some(usage) if usage & DIGITAL_SIGNATURE == 0 => Err("no digital signature in the key usage"),
        Some(_) => Ok(()),
    }
}

/// Checks that a presented issuer does not have the ID of a workload.
///
/// # Errors
/// Which rule it breaks.
pub fn check_issuer(certificate: &Parsed) -> Result<(), &'static str> {
    let has_path = |name: &Name| match name {
        Name::Uri(uri) if claims_to_be_id(uri) => SpiffeId::parse(uri).is_ok_and(|id| !id.path.is_empty()),
        _ => false,
    };
    match certificate.names.iter().any(has_path) {
        true => Err("signing certificate with the SPIFFE ID of a workload"),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_one_form() {
        let long = format!("spiffe://example.org/{}", "a".repeat(MAX_ID - 21));
        for good in
            ["spiffe://example.org/a", "spiffe://e_x-1.org/a/B.c-d_e", "spiffe://example.org", "spiffe://1/...", &long]
        {
            assert!(SpiffeId::parse(good).is_ok(), "{good}");
        }
        let long = long + "a";
        let domain = format!("spiffe://{}/a", "a".repeat(256));
        for bad in [
            "",
            "spiffe://",
            "spiffe:///a",
            "spiffe:/example.org/a",
            "Spiffe://example.org/a",
            "spiffe://Example.org/a",
            "spiffe://example.org/",
            "spiffe://example.org/a/",
            "spiffe://example.org//a",
            "spiffe://example.org/./a",
            "spiffe://example.org/../a",
            "spiffe://example.org/%61",
            "spiffe://example.org/a?q",
            "spiffe://example.org/a#f",
            "spiffe://example.org?q",
            "spiffe://u@example.org/a",
            "spiffe://example.org:1/a",
            "spiffe://example.org/a b",
            "https://example.org/a",
            "spiffe://example.org/a\0",
            "spiffe://exämple.org/a",
            "spiffe://[::1]/a",
            &long,
            &domain,
        ] {
            assert!(SpiffeId::parse(bad).is_err(), "{bad}");
        }
        let id = SpiffeId::parse("spiffe://example.org/a/b").unwrap();
        assert_eq!((id.trust_domain, id.path), ("example.org", "/a/b"));
        assert!(claims_to_be_id("SPIFFE:x") && !claims_to_be_id("https://x"));
    }
}
