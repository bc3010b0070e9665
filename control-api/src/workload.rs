//! The SPIFFE Workload API: its messages, and the secrets that they stand for.
//!
//! An agent that speaks it is another kind of secret server: who asks it gets the same [`Secret`]s as over SDS, by the names
//! that SPIRE's own SDS has. The messages are few and written by hand; nothing else of their package is needed. Invariant: a
//! response is the whole state; what it does not hold is no more.

use crate::envoy::{
    config::core::v3::{DataSource, TypedExtensionConfig, data_source::Specifier},
    extensions::transport_sockets::tls::v3::{
        CertificateValidationContext, Secret, SpiffeCertValidatorConfig, TlsCertificate, secret,
        spiffe_cert_validator_config::TrustDomain,
    },
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use prost::{Message, Name as _};
use std::collections::BTreeMap;

/// The gRPC method that streams [`X509SvidResponse`]s. Its request is an empty message.
pub const FETCH_X509_SVID: &str = "/SpiffeWorkloadAPI/FetchX509SVID";
/// Must go with every request, so that no browser can be made to send one.
pub const METADATA: (&str, &str) = ("workload.spiffe.io", "true");

/// All identities of a workload, and whom it may trust.
#[derive(Clone, PartialEq, Message)]
pub struct X509SvidResponse {
    #[prost(message, repeated, tag = "1")]
    pub svids: Vec<X509Svid>,
    /// DER.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub crl: Vec<Vec<u8>>,
    /// Certificates of other trust domains by their SPIFFE ID; DER, one after the other.
    #[prost(btree_map = "string, bytes", tag = "3")]
    pub federated_bundles: BTreeMap<String, Vec<u8>>,
}

/// One identity.
#[derive(Clone, PartialEq, Message)]
pub struct X509Svid {
    #[prost(string, tag = "1")]
    pub spiffe_id: String,
    /// The chain, its own certificate first; DER, one after the other.
    #[prost(bytes = "vec", tag = "2")]
    pub x509_svid: Vec<u8>,
    /// PKCS#8, DER.
    #[prost(bytes = "vec", tag = "3")]
    pub x509_svid_key: Vec<u8>,
    /// Certificates of its trust domain; DER, one after the other.
    #[prost(bytes = "vec", tag = "4")]
    pub bundle: Vec<u8>,
    #[prost(string, tag = "5")]
    pub hint: String,
}

impl X509SvidResponse {
    /// The secret of this name, if there is such a one: `default` (the first identity), `ROOTCA` (the authorities of its trust
    /// domain), `ALL` (those of all trust domains, each for its own), the SPIFFE ID of an identity or of a trust domain.
    pub fn secret(&self, name: &str) -> Option<Secret> {
        let value = match name {
            "default" => certificate(self.svids.first()?),
            "ROOTCA" => {
                let first = self.svids.first()?;
                self.authorities(trust_domain(&first.spiffe_id)?)?
            }
            "ALL" => self.all_authorities()?,
            id => match self.svids.iter().find(|svid| svid.spiffe_id == id) {
                Some(svid) => certificate(svid),
                None => self.authorities(trust_domain(id).filter(|domain| id.len() == SCHEME.len() + domain.len())?)?,
            },
        };
        Some(Secret { name: name.to_owned(), r#type: Some(value) })
    }

    /// By trust domain. Those of the workload's own come before what is said of them elsewhere.
    fn bundles(&self) -> BTreeMap<&str, &[u8]> {
        let federated = self.federated_bundles.iter().map(|(id, bundle)| (id.as_str(), &**bundle));
        let own = self.svids.iter().map(|svid| (svid.spiffe_id.as_str(), &*svid.bundle));
        federated.chain(own).filter_map(|(id, bundle)| Some((trust_domain(id)?, bundle))).collect()
    }

    fn authorities(&self, domain: &str) -> Option<secret::Type> {
        let bundle = self.bundles().get(domain).copied()?;
        Some(secret::Type::ValidationContext(CertificateValidationContext {
            trusted_ca: Some(inline(pem("CERTIFICATE", split(bundle)))),
            ..self.revocations()
        }))
    }

    fn all_authorities(&self) -> Option<secret::Type> {
        let bundles = self.bundles();
        if bundles.is_empty() {
            return None;
        }
        let trust_domains = bundles.into_iter().map(|(name, bundle)| TrustDomain {
            name: name.to_owned(),
            trust_bundle: Some(inline(pem("CERTIFICATE", split(bundle)))),
            ..TrustDomain::default()
        });
        let config = SpiffeCertValidatorConfig {
            trust_domains: trust_domains.collect(),
            ..SpiffeCertValidatorConfig::default()
        };
        let any = crate::Any { type_url: SpiffeCertValidatorConfig::type_url(), value: config.encode_to_vec() };
        let validator =
            TypedExtensionConfig { name: "envoy.tls.cert_validator.spiffe".into(), typed_config: Some(any) };
        Some(secret::Type::ValidationContext(CertificateValidationContext {
            custom_validator_config: Some(validator),
            ..self.revocations()
        }))
    }

    /// What the agent knows to be revoked. It may know of leaves alone.
    fn revocations(&self) -> CertificateValidationContext {
        let lists = self.crl.iter().flat_map(|lists| split(lists));
        let text = pem("X509 CRL", lists);
        CertificateValidationContext {
            only_verify_leaf_cert_crl: !text.is_empty(),
            crl: (!text.is_empty()).then(|| inline(text)),
            ..CertificateValidationContext::default()
        }
    }
}

const SCHEME: &str = "spiffe://";

/// The trust domain of a SPIFFE ID.
fn trust_domain(id: &str) -> Option<&str> {
    id.strip_prefix(SCHEME)?.split('/').next().filter(|domain| !domain.is_empty())
}

fn certificate(svid: &X509Svid) -> secret::Type {
    secret::Type::TlsCertificate(TlsCertificate {
        certificate_chain: Some(inline(pem("CERTIFICATE", split(&svid.x509_svid)))),
        private_key: Some(inline(pem("PRIVATE KEY", [&*svid.x509_svid_key]))),
        ..TlsCertificate::default()
    })
}

fn inline(text: String) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineString(text)), ..DataSource::default() }
}

fn pem<'a>(label: &str, parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut out = String::new();
    for part in parts {
        out.push_str(&format!("-----BEGIN {label}-----\n"));
        let text = STANDARD.encode(part);
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (line, after) = rest.split_at(rest.len().min(64));
            out.push_str(line);
            out.push('\n');
            rest = after;
        }
        out.push_str(&format!("-----END {label}-----\n"));
    }
    out
}

/// DER values that stand one after the other. What cannot be told apart is one: whoever reads it will say what is wrong.
fn split(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    while !bytes.is_empty() {
        let (part, rest) = bytes.split_at(length(bytes).filter(|length| *length <= bytes.len()).unwrap_or(bytes.len()));
        parts.push(part);
        bytes = rest;
    }
    parts
}

/// The length of the value at the beginning, head included.
fn length(bytes: &[u8]) -> Option<usize> {
    match *bytes.get(1)? {
        short if short < 0x80 => Some(2 + usize::from(short)),
        long => {
            let count = usize::from(long & 0x7f);
            let digits = bytes.get(2..2 + count).filter(|_| (1..=4).contains(&count))?;
            let length = digits.iter().fold(0usize, |all, digit| (all << 8) | usize::from(*digit));
            Some(2 + count + length)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response() -> X509SvidResponse {
        let svid = |id: &str| X509Svid {
            spiffe_id: id.into(),
            x509_svid: [&[0x30, 1, 7][..], &[0x30, 0x81, 2, 8, 9]].concat(),
            x509_svid_key: vec![0x30, 0],
            bundle: vec![0x30, 1, 1],
            hint: String::new(),
        };
        X509SvidResponse {
            svids: vec![svid("spiffe://a.org/x"), svid("spiffe://a.org/y")],
            crl: Vec::new(),
            federated_bundles: BTreeMap::from([("spiffe://b.org".to_owned(), vec![0x30, 1, 2])]),
        }
    }

    #[test]
    fn secrets_by_name() {
        let response = X509SvidResponse::decode(&*response().encode_to_vec()).unwrap();
        let is_certificate = |name| match response.secret(name)?.r#type? {
            secret::Type::TlsCertificate(p) => match p.certificate_chain?.specifier? {
                Specifier::InlineString(text) => Some(text.matches("BEGIN CERTIFICATE").count() == 2),
                _ => None,
            },
            _ => Some(false),
        };
        for name in ["default", "spiffe://a.org/x", "spiffe://a.org/y"] {
            assert_eq!(is_certificate(name), Some(true), "{name}");
        }
        for name in ["ROOTCA", "ALL", "spiffe://a.org", "spiffe://b.org"] {
            assert_eq!(is_certificate(name), Some(false), "{name}");
        }
        for name in ["", "spiffe://a.org/z", "spiffe://c.org", "spiffe://a.org/", "other"] {
            assert_eq!(response.secret(name), None, "{name}");
        }
        assert_eq!(X509SvidResponse::default().secret("ALL"), None);
    }

    #[test]
    fn der_is_told_apart() {
        for (bytes, parts) in [
            (&[0x30, 1, 7, 0x30, 0][..], &[&[0x30, 1, 7][..], &[0x30, 0]][..]),
            (&[0x30, 9, 1], &[&[0x30, 9, 1]]),
            (&[0x30, 0x85, 1, 1, 1, 1, 1], &[&[0x30, 0x85, 1, 1, 1, 1, 1]]),
            (&[0x30], &[&[0x30]]),
            (&[], &[]),
        ] {
            assert_eq!(split(bytes), parts);
        }
    }
}
