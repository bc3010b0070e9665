//! `CommonTlsContext`: what both directions of TLS have.

use super::{CertificateValidationContext, SecretRef, TlsCertificate, ValidationContextBytes};
use crate::{Context, address::CidrRange};
use weft_control_api::envoy::extensions::transport_sockets::tls::v3::{
    self as pb, common_tls_context::ValidationContextType, tls_parameters,
};

/// What both directions of TLS have.
#[derive(Clone, Debug)]
pub struct CommonTlsContext {
    pub parameters: TlsParameters,
    /// All of one kind: given here, or secrets.
    pub certificates: Vec<CertificateSource>,
    pub validation: ValidationSource,
    /// What is offered, or taken, in order of preference.
    pub alpn: Vec<Box<[u8]>>,
    pub key_log: Option<KeyLog>,
}

/// Where a certificate is from.
#[derive(Clone, Debug)]
pub enum CertificateSource {
    Here(Box<TlsCertificate>),
    Sds(Box<SecretRef>),
}

/// How a peer is verified, and where that is said.
#[derive(Clone, Debug)]
pub enum ValidationSource {
    /// Not at all.
    None,
    Here(Box<CertificateValidationContext>),
    Sds(Box<SecretRef>),
    /// What is said here, with a secret merged over it.
    Combined {
        default: Box<ValidationContextBytes>,
        dynamic: Box<SecretRef>,
    },
}

/// TLS versions that are spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    V1_2,
    V1_3,
}

/// Versions, cipher suites and groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsParameters {
    pub min: TlsVersion,
    pub max: TlsVersion,
    /// Cipher suites of TLS 1.2 by OpenSSL's name, in order of preference.
    pub ciphers: CipherSuites,
    /// AES-128 and ChaCha20 are equals: what the client prefers is taken.
    pub has_equal_ciphers: bool,
    /// Key exchange groups by BoringSSL's name, in order of preference; empty: the default ones.
    pub groups: Vec<&'static str>,
    /// Signature algorithms by their names in RFC 8446; empty: the default ones.
    pub signature_algorithms: Vec<&'static str>,
    /// TLS 1.3 without ChaCha20.
    pub aes_only: bool,
}

/// The cipher suites of TLS 1.2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CipherSuites {
    Default,
    These(Vec<&'static str>),
}

/// Where secrets of connections are written, for debugging.
#[derive(Clone, Debug)]
pub struct KeyLog {
    pub path: String,
    /// Empty: all.
    pub local: Vec<CidrRange>,
    /// Empty: all.
    pub remote: Vec<CidrRange>,
}

impl CommonTlsContext {
    /// Reads the context; `None` if a problem was reported.
    pub fn from_proto(p: pb::CommonTlsContext, is_server: bool, cx: &mut Context) -> Option<Self> {
        let pb::CommonTlsContext {
            tls_params,
            tls_certificates,
            tls_certificate_sds_secret_configs,
            tls_certificate_provider_instance,
            custom_tls_certificate_selector,
            tls_certificate_certificate_provider,
            tls_certificate_certificate_provider_instance,
            alpn_protocols,
            custom_handshaker,
            key_log,
            validation_context_type,
        } = p;
        cx.unsupported_if("tls_certificate_provider_instance", tls_certificate_provider_instance.is_some());
        cx.unsupported_if("custom_tls_certificate_selector", custom_tls_certificate_selector.is_some());
        cx.unsupported_if("tls_certificate_certificate_provider", tls_certificate_certificate_provider.is_some());
        cx.unsupported_if(
            "tls_certificate_certificate_provider_instance",
            tls_certificate_certificate_provider_instance.is_some(),
        );
        cx.unsupported_if("custom_handshaker", custom_handshaker.is_some());
        let parameters =
            cx.field("tls_params", |cx| TlsParameters::from_proto(tls_params.unwrap_or_default(), is_server, cx));
        if !is_server && tls_certificates.len() > 1 {
            cx.problem_at("tls_certificates", "Multiple TLS certificates are not supported for client contexts");
        }
        if !is_server && tls_certificate_sds_secret_configs.len() > 1 {
            cx.problem_at(
                "tls_certificate_sds_secret_configs",
                "Multiple TLS certificates are not supported for client contexts",
            );
        }
        let mut certificates: Vec<_> = cx
            .elements("tls_certificates", tls_certificates, |cx, p| TlsCertificate::from_proto(p, cx))
            .into_iter()
            .map(|certificate| CertificateSource::Here(Box::new(certificate)))
            .collect();
        let secrets = cx.elements("tls_certificate_sds_secret_configs", tls_certificate_sds_secret_configs, |cx, p| {
            SecretRef::from_proto(p, cx)
        });
        // Certificates that stand here win over secrets.
        if certificates.is_empty() {
            certificates.extend(secrets.into_iter().map(|secret| CertificateSource::Sds(Box::new(secret))));
        }
        let validation = match validation_context_type {
            None => ValidationSource::None,
            Some(ValidationContextType::ValidationContext(p)) => {
                let read = cx.field("validation_context", |cx| {
                    let read = CertificateValidationContext::from_proto(p, cx)?;
                    read.check(cx);
                    Some(read)
                });
                ValidationSource::Here(Box::new(read?))
            }
            Some(ValidationContextType::ValidationContextSdsSecretConfig(p)) => ValidationSource::Sds(Box::new(
                cx.field("validation_context_sds_secret_config", |cx| SecretRef::from_proto(p, cx))?,
            )),
            Some(ValidationContextType::CombinedValidationContext(p)) => {
                cx.field("combined_validation_context", |cx| combined(p, cx))?
            }
            Some(ValidationContextType::ValidationContextCertificateProvider(_)) => {
                cx.problem_at("validation_context_certificate_provider", "is not supported");
                return None;
            }
            Some(ValidationContextType::ValidationContextCertificateProviderInstance(_)) => {
                cx.problem_at("validation_context_certificate_provider_instance", "is not supported");
                return None;
            }
        };
        let alpn = cx.elements("alpn_protocols", alpn_protocols, |cx, text| {
            // An element may hold several, as Envoy has always allowed.
            let names: Vec<Box<[u8]>> =
                text.split(',').filter(|_| !text.is_empty()).map(|name| name.as_bytes().into()).collect();
            if names.iter().any(|name| name.is_empty() || name.len() > 255) {
                cx.problem(format!("Invalid ALPN protocol string: found {text:?}, allowed are 1 to 255 bytes each"));
                return None;
            }
            Some(names)
        });
        let key_log = match key_log {
            Some(p) => Some(cx.field("key_log", |cx| KeyLog::from_proto(p, cx))?),
            None => None,
        };
        Some(Self { parameters: parameters?, certificates, validation, alpn: alpn.concat(), key_log })
    }

    /// Every secret that it waits for.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretRef> {
        let certificates = self.certificates.iter().filter_map(|source| match source {
            CertificateSource::Sds(secret) => Some(&**secret),
            CertificateSource::Here(_) => None,
        });
        let validation = match &self.validation {
            ValidationSource::Sds(secret) | ValidationSource::Combined { dynamic: secret, .. } => Some(&**secret),
            ValidationSource::None | ValidationSource::Here(_) => None,
        };
        certificates.chain(validation)
    }

    /// True if the peer's chain is verified, as far as can be said before secrets are there.
    pub fn validates_peer(&self) -> bool {
        match &self.validation {
            ValidationSource::None => false,
            ValidationSource::Here(context) => context.trusted_ca.is_some() || context.spiffe.is_some(),
            ValidationSource::Sds(_) | ValidationSource::Combined { .. } => true,
        }
    }
}

fn combined(
    p: pb::common_tls_context::CombinedCertificateValidationContext,
    cx: &mut Context,
) -> Option<ValidationSource> {
    let pb::common_tls_context::CombinedCertificateValidationContext {
        default_validation_context,
        validation_context_sds_secret_config,
        validation_context_certificate_provider,
        validation_context_certificate_provider_instance,
    } = p;
    cx.unsupported_if("validation_context_certificate_provider", validation_context_certificate_provider.is_some());
    cx.unsupported_if(
        "validation_context_certificate_provider_instance",
        validation_context_certificate_provider_instance.is_some(),
    );
    let default = cx.required("default_validation_context", default_validation_context)?;
    let dynamic = cx.required("validation_context_sds_secret_config", validation_context_sds_secret_config)?;
    let default = cx.field("default_validation_context", |cx| ValidationContextBytes::from_proto(default, cx))?;
    let dynamic = cx.field("validation_context_sds_secret_config", |cx| SecretRef::from_proto(dynamic, cx))?;
    Some(ValidationSource::Combined { default: Box::new(default), dynamic: Box::new(dynamic) })
}

/// The cipher suites of TLS 1.2 that are spoken.
const CIPHERS: [&str; 6] = [
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
];

/// Those that Envoy has beside them: without forward secrecy, or with CBC. Lists that name them stay valid, as Istio's do.
const WEAK_CIPHERS: [&str; 13] = [
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-SHA",
    "AES256-SHA",
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES256-SHA",
    "ECDHE-RSA-AES128-SHA256",
    "ECDHE-PSK-AES128-CBC-SHA",
    "ECDHE-PSK-AES256-CBC-SHA",
    "PSK-AES128-CBC-SHA",
    "PSK-AES256-CBC-SHA",
];

/// Groups with the other names that BoringSSL knows them by.
const GROUPS: [(&str, &[&str]); 5] = [
    ("X25519MLKEM768", &[]),
    ("X25519", &["x25519"]),
    ("P-256", &["prime256v1"]),
    ("P-384", &["secp384r1"]),
    ("MLKEM1024", &[]),
];

fn group_names() -> String {
    GROUPS.map(|(name, _)| name).join(", ")
}

const SIGNATURE_ALGORITHMS: [&str; 10] = [
    "ecdsa_secp256r1_sha256",
    "ecdsa_secp384r1_sha384",
    "ecdsa_secp521r1_sha512",
    "ed25519",
    "rsa_pss_rsae_sha256",
    "rsa_pss_rsae_sha384",
    "rsa_pss_rsae_sha512",
    "rsa_pkcs1_sha256",
    "rsa_pkcs1_sha384",
    "rsa_pkcs1_sha512",
];

impl TlsParameters {
    pub(super) fn from_proto(p: pb::TlsParameters, is_server: bool, cx: &mut Context) -> Option<Self> {
        let pb::TlsParameters {
            tls_minimum_protocol_version,
            tls_maximum_protocol_version,
            cipher_suites,
            ecdh_curves,
            signature_algorithms,
            compliance_policies,
        } = p;
        let auto = if is_server { TlsVersion::V1_3 } else { TlsVersion::V1_2 };
        let min = version("tls_minimum_protocol_version", tls_minimum_protocol_version, TlsVersion::V1_2, cx);
        let max = version("tls_maximum_protocol_version", tls_maximum_protocol_version, auto, cx);
        let has_equal_ciphers = cipher_suites.is_empty() || cipher_suites.iter().any(|text| text.contains('['));
        let ciphers = ciphers(&cipher_suites, cx);
        let known_group = |text: &str| {
            let is = |(name, others): &&(&'static str, &[&str])| *name == text || others.contains(&text);
            GROUPS.iter().find(is).map(|(name, _)| *name)
        };
        let names: Vec<String> = ecdh_curves.iter().flat_map(|text| text.split(':').map(str::to_owned)).collect();
        let given = !names.is_empty();
        let groups: Vec<_> = cx.elements("ecdh_curves", names, |cx, text| {
            let known = known_group(&text);
            match (known, text.as_str()) {
                // Known to others and rarely used: leaving it out leaves a stronger one.
                (None, "P-521" | "secp521r1" | "P-224" | "secp224r1") => cx.ignored_if("", true),
                (None, _) => {
                    cx.problem(format!("Failed to initialize ECDH curves {text}: allowed are {}", group_names()));
                }
                _ => {}
            }
            known
        });
        if given && groups.is_empty() && !cx.has_problems() {
            cx.problem_at("ecdh_curves", format!("none of these is supported, allowed: {}", group_names()));
        }
        let signature_algorithms = cx.elements("signature_algorithms", signature_algorithms, |cx, text| {
            let known = SIGNATURE_ALGORITHMS.iter().find(|name| **name == text).copied();
            if known.is_none() {
                let allowed = SIGNATURE_ALGORITHMS.join(", ");
                cx.problem(format!(
                    "Failed to initialize TLS signature algorithms: found {text:?}, allowed: {allowed}"
                ));
            }
            known
        });
        let (mut min, mut max) = (min?, max?);
        let (mut ciphers, mut groups, mut aes_only) = (ciphers?, groups, false);
        for (i, policy) in compliance_policies.into_iter().enumerate() {
            use tls_parameters::CompliancePolicy;
            match cx.element("compliance_policies", i, |cx| cx.enumeration("", policy)) {
                CompliancePolicy::Fips202205 => {
                    (min, max) = (TlsVersion::V1_2, TlsVersion::V1_3);
                    ciphers = CipherSuites::These(CIPHERS[..4].to_vec());
                    groups = vec!["P-256", "P-384"];
                    aes_only = true;
                }
                CompliancePolicy::Cnsa2202603 | CompliancePolicy::Cnsa1202603 => {
                    cx.element("compliance_policies", i, |cx| cx.problem("is not supported, allowed: FIPS_202205"))
                }
            }
        }
        if min > max {
            cx.problem("the minimum protocol version is above the maximum");
        }
        Some(Self { min, max, ciphers, has_equal_ciphers, groups, signature_algorithms, aes_only })
    }
}

fn version(name: &str, value: i32, auto: TlsVersion, cx: &mut Context) -> Option<TlsVersion> {
    use tls_parameters::TlsProtocol;
    match cx.enumeration(name, value) {
        TlsProtocol::TlsAuto => Some(auto),
        TlsProtocol::TlSv12 => Some(TlsVersion::V1_2),
        TlsProtocol::TlSv13 => Some(TlsVersion::V1_3),
        old @ (TlsProtocol::TlSv10 | TlsProtocol::TlSv11) => {
            cx.problem_at(
                name,
                format!("found {}, which is not supported: allowed are TLSv1_2, TLSv1_3", old.as_str_name()),
            );
            None
        }
    }
}

/// Reads BoringSSL's cipher strings: names separated by colons, some in brackets to be taken as equals.
fn ciphers(texts: &[String], cx: &mut Context) -> Option<CipherSuites> {
    if texts.is_empty() {
        return Some(CipherSuites::Default);
    }
    let mut known = Vec::new();
    for (i, text) in texts.iter().enumerate() {
        let is_separator = |c: char| matches!(c, ':' | '[' | ']' | '|');
        for name in text.split(is_separator).filter(|name| !name.is_empty()) {
            let name = name.trim();
            match name {
                "ALL" | "HIGH" | "DEFAULT" => {
                    known.extend(CIPHERS.iter().filter(|cipher| !known.contains(*cipher)).copied().collect::<Vec<_>>());
                    continue;
                }
                "-ALL" | "!ALL" => {
                    known.clear();
                    continue;
                }
                _ => {}
            }
            match CIPHERS.iter().find(|cipher| **cipher == name) {
                Some(cipher) => known.push(*cipher),
                None => cx.element("cipher_suites", i, |cx| {
                    if WEAK_CIPHERS.contains(&name) {
                        cx.ignored_if("", true);
                    } else {
                        let allowed = CIPHERS.join(", ");
                        cx.problem(format!("Failed to initialize cipher suites {text}: allowed are {allowed}"));
                    }
                }),
            }
        }
    }
    if known.is_empty() && !cx.has_problems() {
        cx.problem_at("cipher_suites", format!("none of these is supported, allowed: {}", CIPHERS.join(", ")));
    }
    Some(CipherSuites::These(known))
}

impl KeyLog {
    fn from_proto(p: pb::TlsKeyLog, cx: &mut Context) -> Option<Self> {
        let pb::TlsKeyLog { path, local_address_range, remote_address_range } = p;
        if path.is_empty() {
            cx.problem_at("path", "is required");
        }
        Some(Self {
            path,
            local: cx.elements("local_address_range", local_address_range, |cx, p| CidrRange::from_proto(p, cx)),
            remote: cx.elements("remote_address_range", remote_address_range, |cx, p| CidrRange::from_proto(p, cx)),
        })
    }
}
