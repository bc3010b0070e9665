//! `CertificateValidationContext`: what a peer's certificate must be.

use super::secret::directory;
use crate::{Context, data_source::DataSource, string_matcher::StringMatcher};
use weft_control_api::{
    Any, Message as _,
    envoy::{
        config::core::v3 as core,
        extensions::transport_sockets::tls::v3::{
            self as pb, certificate_validation_context::TrustChainVerification, subject_alt_name_matcher,
        },
    },
};

/// What a peer's certificate must be.
#[derive(Clone, Debug, Default)]
pub struct CertificateValidationContext {
    /// PEM. `None`: chains are not verified at all.
    pub trusted_ca: Option<DataSource>,
    /// SHA-256 of the public key, any of these.
    pub spki_pins: Vec<[u8; 32]>,
    /// SHA-256 of the certificate, any of these.
    pub certificate_pins: Vec<[u8; 32]>,
    /// One of the certificate's names must match one of these.
    pub sans: Vec<SanMatcher>,
    /// PEM.
    pub crl: Option<DataSource>,
    /// CRLs are asked of the peer's own certificate alone.
    pub only_verify_leaf_cert_crl: bool,
    pub allow_expired_certificate: bool,
    /// A chain that leads to nothing trusted is let through, and the connection told so.
    pub accept_untrusted: bool,
    /// Certificates between the peer's and the anchor.
    pub max_verify_depth: Option<u32>,
    /// Clients are not told which authorities are trusted.
    pub suppress_client_ca_list: bool,
    /// Takes the place of nearly all of the above.
    pub spiffe: Option<SpiffeValidator>,
    /// In place of the files' own directories, what is watched for changes.
    pub watched_directory: Option<String>,
}

/// A test of one of a certificate's names.
#[derive(Clone, Debug)]
pub struct SanMatcher {
    pub kind: SanType,
    pub matcher: StringMatcher,
    /// Of other names, which.
    pub oid: String,
}

pub use subject_alt_name_matcher::SanType;

/// `envoy.tls.cert_validator.spiffe`.
#[derive(Clone, Debug)]
pub struct SpiffeValidator {
    /// Name and PEM bundle.
    pub trust_domains: Vec<(String, DataSource)>,
    pub trust_bundles: Option<TrustBundles>,
}

/// A SPIFFE bundle map (JSON) by trust domain.
#[derive(Clone, Debug)]
pub struct TrustBundles {
    pub source: DataSource,
    /// Changes when something is moved in here.
    pub watched_directory: Option<String>,
}

/// A validation context as bytes, so that another may be merged over it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ValidationContextBytes(Vec<u8>);

impl ValidationContextBytes {
    /// Takes the context for a later merge; `None` if a problem was reported.
    pub(super) fn from_proto(p: pb::CertificateValidationContext, cx: &mut Context) -> Option<Self> {
        let bytes = p.encode_to_vec();
        CertificateValidationContext::from_proto(p, cx)?;
        Some(Self(bytes))
    }

    /// Reads the context; `None` if a problem was reported.
    pub fn read(&self, cx: &mut Context) -> Option<CertificateValidationContext> {
        Self::parse(&self.0, cx)
    }

    /// Reads this context with `dynamic` merged over it as protobuf messages are: single fields are replaced, lists joined.
    pub fn read_merged(&self, dynamic: &Self, cx: &mut Context) -> Option<CertificateValidationContext> {
        // Encodings one after the other are the encoding of the merged message.
        Self::parse(&[&*self.0, &*dynamic.0].concat(), cx)
    }

    fn parse(bytes: &[u8], cx: &mut Context) -> Option<CertificateValidationContext> {
        match pb::CertificateValidationContext::decode(bytes) {
            Ok(p) => CertificateValidationContext::from_proto(p, cx),
            Err(e) => {
                cx.problem(format!("found bytes that are no validation context: {e}"));
                None
            }
        }
    }
}

const SPIFFE_VALIDATOR: &str = "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";

impl CertificateValidationContext {
    pub fn from_proto(p: pb::CertificateValidationContext, cx: &mut Context) -> Option<Self> {
        let pb::CertificateValidationContext {
            trusted_ca,
            ca_certificate_provider_instance,
            system_root_certs,
            watched_directory,
            verify_certificate_spki,
            verify_certificate_hash,
            match_typed_subject_alt_names,
            match_subject_alt_names,
            require_signed_certificate_timestamp,
            crl,
            allow_expired_certificate,
            trust_chain_verification,
            custom_validator_config,
            only_verify_leaf_cert_crl,
            max_verify_depth,
            suppress_client_ca_list,
        } = p;
        cx.unsupported_if("ca_certificate_provider_instance", ca_certificate_provider_instance.is_some());
        cx.unsupported_if("require_signed_certificate_timestamp", require_signed_certificate_timestamp == Some(true));
        let trusted_ca = match (optional("trusted_ca", trusted_ca, cx)?, system_root_certs) {
            (None, Some(pb::certificate_validation_context::SystemRootCerts {})) => {
                Some(cx.field("system_root_certs", system_roots)?)
            }
            (given, _) => given,
        };
        let crl = optional("crl", crl, cx)?;
        let spki_pins = cx.elements("verify_certificate_spki", verify_certificate_spki, |cx, text| {
            let pin = base64(&text).and_then(|bytes| bytes.try_into().ok());
            if pin.is_none() {
                cx.problem(format!("Invalid base64-encoded SHA-256 {text}"));
            }
            pin
        });
        let certificate_pins = cx.elements("verify_certificate_hash", verify_certificate_hash, |cx, text| {
            let pin = hex(&text).and_then(|bytes| bytes.try_into().ok());
            if pin.is_none() {
                cx.problem(format!("Invalid hex-encoded SHA-256 {text}"));
            }
            pin
        });
        let typed = cx.elements("match_typed_subject_alt_names", match_typed_subject_alt_names, |cx, p| {
            SanMatcher::from_proto(p, cx)
        });
        let untyped =
            cx.elements("match_subject_alt_names", match_subject_alt_names, |cx, p| StringMatcher::from_proto(p, cx));
        // The deprecated list counts for every kind of name, and only where the other one is empty.
        let sans = if typed.is_empty() {
            let kinds = [SanType::Dns, SanType::Uri, SanType::Email, SanType::IpAddress];
            let all = |matcher: &StringMatcher| {
                kinds.map(|kind| SanMatcher { kind, matcher: matcher.clone(), oid: String::new() })
            };
            untyped.iter().flat_map(all).collect()
        } else {
            typed
        };
        let spiffe = match custom_validator_config {
            Some(p) => Some(cx.field("custom_validator_config", |cx| SpiffeValidator::from_extension(p, cx))?),
            None => None,
        };
        let accept_untrusted = match cx.enumeration("trust_chain_verification", trust_chain_verification) {
            TrustChainVerification::VerifyTrustChain => false,
            TrustChainVerification::AcceptUntrusted => true,
        };
        if let Some(depth) = max_verify_depth.filter(|depth| *depth > 100) {
            cx.problem_at("max_verify_depth", format!("found {depth}, allowed are 0 to 100"));
        }
        Some(Self {
            trusted_ca,
            spki_pins,
            certificate_pins,
            sans,
            crl,
            only_verify_leaf_cert_crl,
            allow_expired_certificate,
            accept_untrusted,
            max_verify_depth,
            suppress_client_ca_list,
            spiffe,
            watched_directory: cx.field("watched_directory", |cx| directory(watched_directory, cx)),
        })
    }

    /// Reports what cannot be asked for without an authority to trust. Done once all parts of a context are together.
    pub fn check(&self, cx: &mut Context) {
        if self.trusted_ca.is_some() || self.spiffe.is_some() {
            return;
        }
        if !self.sans.is_empty() {
            cx.problem("SAN-based verification of peer certificates without trusted CA is insecure and not allowed");
        }
        if self.allow_expired_certificate {
            cx.problem("Certificate validity period is always ignored without trusted CA");
        }
        if self.crl.is_some() {
            cx.problem("a CRL without trusted CA is never asked");
        }
    }

    /// The files that it was read from.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        let sources = [self.trusted_ca.as_ref(), self.crl.as_ref()].into_iter().flatten();
        sources.filter_map(|source| source.filename.as_deref())
    }
}

/// Where systems keep the authorities that they trust.
const SYSTEM_ROOTS: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/usr/local/etc/ssl/cert.pem",
];

/// The authorities that this system trusts.
fn system_roots(cx: &mut Context) -> Option<DataSource> {
    let found = SYSTEM_ROOTS.iter().find_map(|path| Some((path, std::fs::read(path).ok()?)));
    if found.is_none() {
        cx.problem(format!("found none of {}", SYSTEM_ROOTS.join(", ")));
    }
    found.map(|(path, data)| DataSource { data: data.into(), filename: Some((*path).to_owned()) })
}

/// The data of an optional field; the outer `None` if a problem was reported.
fn optional(name: &str, p: Option<core::DataSource>, cx: &mut Context) -> Option<Option<DataSource>> {
    match p {
        Some(p) => cx.field(name, |cx| DataSource::from_proto(p, cx)).map(Some),
        None => Some(None),
    }
}

impl SanMatcher {
    pub(crate) fn from_proto(p: pb::SubjectAltNameMatcher, cx: &mut Context) -> Option<Self> {
        let pb::SubjectAltNameMatcher { san_type, matcher, oid } = p;
        let kind: SanType = cx.enumeration("san_type", san_type);
        if kind == SanType::Unspecified {
            cx.problem_at("san_type", "is required, allowed: EMAIL, DNS, URI, IP_ADDRESS, OTHER_NAME");
        }
        if kind == SanType::OtherName && !is_oid(&oid) {
            cx.problem_at("oid", format!("Failed to parse OID: found {oid:?}, which OTHER_NAME needs"));
        }
        let matcher = cx.required("matcher", matcher)?;
        let matcher = cx.field("matcher", |cx| StringMatcher::from_proto(matcher, cx))?;
        Some(Self { kind, matcher, oid })
    }
}

fn is_oid(text: &str) -> bool {
    let parts: Vec<_> = text.split('.').collect();
    parts.len() >= 2 && parts.iter().all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
}

impl SpiffeValidator {
    fn from_extension(p: core::TypedExtensionConfig, cx: &mut Context) -> Option<Self> {
        let core::TypedExtensionConfig { name: _, typed_config } = p;
        let any: Any = cx.required("typed_config", typed_config)?;
        let found = any.type_url.rsplit('/').next().unwrap_or_default();
        if found != SPIFFE_VALIDATOR {
            cx.problem_at(
                "typed_config",
                format!("found {found}, which is not supported; allowed: {SPIFFE_VALIDATOR}"),
            );
            return None;
        }
        let p: pb::SpiffeCertValidatorConfig = cx.unpack("typed_config", &any)?;
        cx.field("typed_config", |cx| Self::from_proto(p, cx))
    }

    fn from_proto(p: pb::SpiffeCertValidatorConfig, cx: &mut Context) -> Option<Self> {
        let pb::SpiffeCertValidatorConfig { trust_domains, trust_bundles } = p;
        let trust_bundles = match trust_bundles {
            Some(mut p) => Some(cx.field("trust_bundles", |cx| {
                let watched_directory = p.watched_directory.take();
                let watched_directory = cx.field("watched_directory", |cx| directory(watched_directory, cx));
                Some(TrustBundles { source: DataSource::from_proto(p, cx)?, watched_directory })
            })?),
            None => None,
        };
        if trust_domains.is_empty() && trust_bundles.is_none() {
            cx.problem("one of trust_domains, trust_bundles is required");
        }
        let trust_domains = cx.elements("trust_domains", trust_domains, |cx, p| {
            let pb::spiffe_cert_validator_config::TrustDomain { name, trust_bundle, workload_trust_domain } = p;
            cx.unsupported_if("workload_trust_domain", !workload_trust_domain.is_empty());
            let bundle = cx.required("trust_bundle", trust_bundle)?;
            Some((name, cx.field("trust_bundle", |cx| DataSource::from_proto(bundle, cx))?))
        });
        for (i, (name, _)) in trust_domains.iter().enumerate() {
            if trust_domains.iter().take(i).any(|(other, _)| other == name) {
                cx.element("trust_domains", i, |cx| {
                    cx.problem_at("name", format!("Multiple trust bundles are given for one trust domain for {name}"));
                });
            }
        }
        Some(Self { trust_domains, trust_bundles })
    }
}

/// Standard base64 with its padding.
fn base64(text: &str) -> Option<Vec<u8>> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    STANDARD.decode(text).ok()
}

/// Hex, with or without colons between the bytes.
fn hex(text: &str) -> Option<Vec<u8>> {
    let is_misplaced = |(i, b): (usize, u8)| (b == b':') != (i % 3 == 2);
    if text.contains(':') && text.bytes().enumerate().any(is_misplaced) {
        return None;
    }
    let digits: Vec<u8> = text.bytes().filter(|b| *b != b':').collect();
    let nibble = |b: u8| (b as char).to_digit(16).and_then(|n| u8::try_from(n).ok());
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits.chunks(2).map(|pair| Some((nibble(*pair.first()?)? << 4) | nibble(*pair.get(1)?)?)).collect()
}
