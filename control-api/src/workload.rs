//! The SPIFFE Workload API: its messages, and the secrets that they stand for.
//!
//! An agent that speaks it is another kind of secret server: who asks it gets the same [`Secret`]s as over SDS, by the names
//! that SPIRE's own SDS has. The messages are few and written by hand; nothing else of their package is needed. Who listens
//! makes a [`Statement`] of each response. Invariant: a response is the whole state; what it does not hold is no more.

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

/// The name of the cluster whose hosts speak the Workload API.
pub const CLUSTER: &str = "spiffe_workload_api";
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

/// What an agent says: a response that was looked through.
///
/// Invariant: a trust domain is here with authorities that can be read, or not at all. A domain without authorities has
/// revoked all that it ever issued, so nothing of it is trusted. The same goes for one whose authorities cannot be read: the
/// response replaces what was said before, so nobody vouches for the old ones any more. The other domains are not touched.
#[derive(Clone, Default, PartialEq)]
pub struct Statement {
    svids: Vec<X509Svid>,
    crl: Vec<Vec<u8>>,
    /// By trust domain; DER, one after the other.
    bundles: BTreeMap<String, Vec<u8>>,
    refused: BTreeMap<String, String>,
}

impl Statement {
    /// Looks through a response. `check` says what is wrong with a certificate (DER) as an authority of a trust domain.
    pub fn new(response: X509SvidResponse, check: impl Fn(&str, &[u8]) -> Result<(), String>) -> Self {
        let X509SvidResponse { svids, crl, federated_bundles } = response;
        let (mut bundles, mut refused) = (BTreeMap::new(), BTreeMap::new());
        for (id, bundle) in federated_bundles {
            match domain_of_bundle(&id) {
                Some(domain) => drop(bundles.insert(domain.to_owned(), bundle)),
                None => drop(refused.insert(id, "is no SPIFFE ID of a trust domain".to_owned())),
            }
        }
        // Those of the workload's own domains come before what is said of them elsewhere; of those, the first identity's.
        for svid in svids.iter().rev() {
            match trust_domain(&svid.spiffe_id) {
                Some(domain) => drop(bundles.insert(domain.to_owned(), svid.bundle.clone())),
                None => drop(refused.insert(svid.spiffe_id.clone(), "is no SPIFFE ID".to_owned())),
            }
        }
        bundles.retain(|domain, bundle| match split(bundle).into_iter().try_for_each(|der| check(domain, der)) {
            Ok(()) => !bundle.is_empty(),
            Err(why) => {
                refused.insert(domain.clone(), why);
                false
            }
        });
        Self { svids, crl, bundles, refused }
    }

    /// Trust domains whose authorities cannot be read, and why.
    pub fn refused(&self) -> impl Iterator<Item = (&str, &str)> {
        self.refused.iter().map(|(domain, why)| (domain.as_str(), why.as_str()))
    }

    /// True if the secret of this name lacks authorities because they cannot be read.
    pub fn is_maimed(&self, name: &str) -> bool {
        match name {
            "ALL" => !self.refused.is_empty(),
            name => self.trust_domain_of(name).is_some_and(|domain| self.refused.contains_key(domain)),
        }
    }

    /// The trust domain whose authorities the secret of this name has, if it is one alone.
    pub fn trust_domain_of<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        match name {
            "ROOTCA" => trust_domain(&self.svids.first()?.spiffe_id),
            id => domain_of_bundle(id),
        }
    }

    /// Who the identity of this name is.
    pub fn identity_of(&self, name: &str) -> Option<&str> {
        let svid = match name {
            "default" => self.svids.first(),
            id => self.svids.iter().find(|svid| svid.spiffe_id == id),
        };
        svid.map(|svid| svid.spiffe_id.as_str())
    }

    /// The names of all secrets that there are.
    pub fn names(&self) -> Vec<String> {
        let fixed = ["default", "ROOTCA", "ALL"].into_iter().filter(|name| self.secret(name).is_some());
        let identities = self.svids.iter().map(|svid| svid.spiffe_id.clone());
        let domains = self.bundles.keys().map(|domain| format!("{SCHEME}{domain}"));
        fixed.map(str::to_owned).chain(identities).chain(domains).collect()
    }

    /// The secret of this name, if there is such a one: `default` (the first identity), `ROOTCA` (the authorities of its trust
    /// domain), `ALL` (those of all trust domains, each for its own), the SPIFFE ID of an identity or of a trust domain.
    pub fn secret(&self, name: &str) -> Option<Secret> {
        let identity = self.identity_of(name).and_then(|id| self.svids.iter().find(|svid| svid.spiffe_id == id));
        let value = match (identity, name) {
            (Some(svid), _) => certificate(svid),
            (None, "ALL") => self.all_authorities()?,
            (None, name) => self.authorities(self.trust_domain_of(name)?)?,
        };
        Some(Secret { name: name.to_owned(), r#type: Some(value) })
    }

    fn authorities(&self, domain: &str) -> Option<secret::Type> {
        let bundle = self.bundles.get(domain)?;
        Some(secret::Type::ValidationContext(CertificateValidationContext {
            trusted_ca: Some(inline(pem("CERTIFICATE", split(bundle)))),
            ..self.revocations()
        }))
    }

    fn all_authorities(&self) -> Option<secret::Type> {
        if self.bundles.is_empty() {
            return None;
        }
        let trust_domains = self.bundles.iter().map(|(name, bundle)| TrustDomain {
            name: name.clone(),
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

/// The trust domain of its own SPIFFE ID, which has no path.
fn domain_of_bundle(id: &str) -> Option<&str> {
    trust_domain(id).filter(|domain| id.len() == SCHEME.len() + domain.len())
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
        let said = Statement::new(response, |_, _| Ok(()));
        let is_certificate = |name| match said.secret(name)?.r#type? {
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
            assert_eq!(said.secret(name), None, "{name}");
        }
        let names =
            ["default", "ROOTCA", "ALL", "spiffe://a.org/x", "spiffe://a.org/y", "spiffe://a.org", "spiffe://b.org"];
        assert_eq!(said.names(), names);
        assert_eq!(said.identity_of("default"), Some("spiffe://a.org/x"));
        assert_eq!(said.trust_domain_of("ROOTCA"), Some("a.org"));
        let nothing = Statement::default();
        assert!(nothing.secret("ALL").is_none() && nothing.names().is_empty());
    }

    #[test]
    fn a_domain_without_authorities_that_can_be_read_has_none_and_others_keep_theirs() {
        let odd = |der: &[u8]| if der == [0x30, 1, 9] { Err("is odd".to_owned()) } else { Ok(()) };
        let said = |change: &dyn Fn(&mut X509SvidResponse)| {
            let mut response = response();
            change(&mut response);
            Statement::new(response, |_, der| odd(der))
        };
        let own =
            |bundle: &'static [u8]| said(&move |r| r.svids.iter_mut().for_each(|svid| svid.bundle = bundle.to_vec()));
        let federated = |bundle: &'static [u8]| {
            said(&move |r| drop(r.federated_bundles.insert("spiffe://b.org".into(), bundle.to_vec())))
        };
        // Who has authorities; who is refused; whether ALL lacks some for that.
        let there = |said: &Statement| {
            let names = ["ROOTCA", "ALL", "spiffe://a.org", "spiffe://b.org"].map(|name| said.secret(name).is_some());
            (names, said.refused().map(|(domain, _)| domain.to_owned()).collect::<Vec<_>>(), said.is_maimed("ALL"))
        };
        assert_eq!(there(&own(&[])), ([false, true, false, true], vec![], false));
        assert_eq!(there(&federated(&[])), ([true, true, true, false], vec![], false));
        assert_eq!(there(&own(&[0x30, 1, 9])), ([false, true, false, true], vec!["a.org".to_owned()], true));
        assert_eq!(
            there(&federated(&[0x30, 1, 1, 0x30, 1, 9])),
            ([true, true, true, false], vec!["b.org".into()], true)
        );
        let nowhere = said(&|r| drop(r.federated_bundles.insert("b.org".into(), vec![0x30, 1, 1])));
        assert_eq!(there(&nowhere), ([true; 4], vec!["b.org".to_owned()], true));
        assert!(!nowhere.is_maimed("ROOTCA") && own(&[0x30, 1, 9]).is_maimed("ROOTCA"));
        // The identity itself is nobody's but its own.
        assert!(own(&[]).secret("default").is_some());
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
