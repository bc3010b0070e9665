//! Versions, cipher suites and groups: from configured names to rustls, and from what was negotiated to Envoy's names.

use rustls::{
    CipherSuite, NamedGroup, ProtocolVersion, SignatureScheme, SupportedCipherSuite, SupportedProtocolVersion,
    crypto::{
        CryptoProvider, SupportedKxGroup,
        aws_lc_rs::{self, cipher_suite as suite, kx_group},
    },
    version,
};
use std::sync::Arc;
use weft_config::tls::{CipherSuites, TlsParameters, TlsVersion};

/// rustls' provider with what a context allows; ChaCha20 before AES if that is asked for.
pub fn provider(parameters: &TlsParameters, chacha_first: bool) -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = suites(parameters);
    if chacha_first {
        provider.cipher_suites.sort_by_key(|suite| !is_chacha(suite.suite()));
    }
    if !parameters.groups.is_empty() {
        provider.kx_groups = parameters.groups.iter().filter_map(|name| group(name)).collect();
    }
    if !parameters.signature_algorithms.is_empty() {
        let all = provider.signature_verification_algorithms;
        let wanted: Vec<_> = parameters.signature_algorithms.iter().filter_map(|name| scheme(name)).collect();
        let mapping: Vec<_> = all.mapping.iter().filter(|(scheme, _)| wanted.contains(scheme)).copied().collect();
        // Configurations are few and live long.
        provider.signature_verification_algorithms.mapping = mapping.leak();
    }
    Arc::new(provider)
}

/// True if a client prefers ChaCha20 to AES-128, in TLS 1.2.
pub fn prefers_chacha(offered: &[CipherSuite]) -> bool {
    let first = offered.iter().find(|suite| is_chacha(**suite) || is_aes_128(**suite));
    first.is_some_and(|suite| is_chacha(*suite))
}

fn is_chacha(suite: CipherSuite) -> bool {
    use CipherSuite as C;
    matches!(suite, C::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 | C::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256)
}

fn is_aes_128(suite: CipherSuite) -> bool {
    use CipherSuite as C;
    matches!(suite, C::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 | C::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256)
}

/// The versions that a context allows.
pub fn versions(parameters: &TlsParameters) -> &'static [&'static SupportedProtocolVersion] {
    const ONLY_12: &[&SupportedProtocolVersion] = &[&version::TLS12];
    const ONLY_13: &[&SupportedProtocolVersion] = &[&version::TLS13];
    match (parameters.min, parameters.max) {
        (_, TlsVersion::V1_2) => ONLY_12,
        (TlsVersion::V1_3, TlsVersion::V1_3) => ONLY_13,
        (TlsVersion::V1_2, TlsVersion::V1_3) => rustls::ALL_VERSIONS,
    }
}

/// Cipher suites of TLS 1.2 in Envoy's order of preference.
const SUITES: [(&str, SupportedCipherSuite); 6] = [
    ("ECDHE-ECDSA-AES128-GCM-SHA256", suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    ("ECDHE-ECDSA-CHACHA20-POLY1305", suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
    ("ECDHE-RSA-AES128-GCM-SHA256", suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
    ("ECDHE-RSA-CHACHA20-POLY1305", suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
    ("ECDHE-ECDSA-AES256-GCM-SHA384", suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    ("ECDHE-RSA-AES256-GCM-SHA384", suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
];

fn suites(parameters: &TlsParameters) -> Vec<SupportedCipherSuite> {
    // The order of TLS 1.3's suites is the library's there too, and AES-128 costs the least.
    let mut suites = vec![suite::TLS13_AES_128_GCM_SHA256, suite::TLS13_AES_256_GCM_SHA384];
    if !parameters.aes_only {
        suites.push(suite::TLS13_CHACHA20_POLY1305_SHA256);
    }
    match &parameters.ciphers {
        CipherSuites::Default => suites.extend(SUITES.map(|(_, suite)| suite)),
        CipherSuites::These(names) => suites.extend(
            names.iter().filter_map(|wanted| SUITES.iter().find(|(name, _)| name == wanted).map(|(_, suite)| *suite)),
        ),
    }
    suites
}

fn group(name: &str) -> Option<&'static dyn SupportedKxGroup> {
    Some(match name {
        "X25519MLKEM768" => kx_group::X25519MLKEM768,
        "X25519" => kx_group::X25519,
        "P-256" => kx_group::SECP256R1,
        "P-384" => kx_group::SECP384R1,
        "MLKEM1024" => kx_group::MLKEM1024,
        _ => return None,
    })
}

/// Signature schemes by their names in RFC 8446.
const SCHEMES: [(&str, SignatureScheme); 10] = [
    ("ecdsa_secp256r1_sha256", SignatureScheme::ECDSA_NISTP256_SHA256),
    ("ecdsa_secp384r1_sha384", SignatureScheme::ECDSA_NISTP384_SHA384),
    ("ecdsa_secp521r1_sha512", SignatureScheme::ECDSA_NISTP521_SHA512),
    ("ed25519", SignatureScheme::ED25519),
    ("rsa_pss_rsae_sha256", SignatureScheme::RSA_PSS_SHA256),
    ("rsa_pss_rsae_sha384", SignatureScheme::RSA_PSS_SHA384),
    ("rsa_pss_rsae_sha512", SignatureScheme::RSA_PSS_SHA512),
    ("rsa_pkcs1_sha256", SignatureScheme::RSA_PKCS1_SHA256),
    ("rsa_pkcs1_sha384", SignatureScheme::RSA_PKCS1_SHA384),
    ("rsa_pkcs1_sha512", SignatureScheme::RSA_PKCS1_SHA512),
];

/// The scheme of a configured name.
pub fn scheme(name: &str) -> Option<SignatureScheme> {
    SCHEMES.iter().find(|(known, _)| *known == name).map(|(_, scheme)| *scheme)
}

/// The name of a scheme, for stats.
pub fn scheme_name(scheme: SignatureScheme) -> &'static str {
    SCHEMES.iter().find(|(_, known)| *known == scheme).map_or("unknown", |(name, _)| name)
}

/// `TLSv1.2`, `TLSv1.3`.
pub fn version_name(version: Option<ProtocolVersion>) -> &'static str {
    match version {
        Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
        Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
        _ => "",
    }
}

/// OpenSSL's name of a suite.
pub fn cipher_name(suite: Option<SupportedCipherSuite>) -> &'static str {
    match suite.map(|suite| suite.suite()) {
        Some(CipherSuite::TLS13_AES_128_GCM_SHA256) => "TLS_AES_128_GCM_SHA256",
        Some(CipherSuite::TLS13_AES_256_GCM_SHA384) => "TLS_AES_256_GCM_SHA384",
        Some(CipherSuite::TLS13_CHACHA20_POLY1305_SHA256) => "TLS_CHACHA20_POLY1305_SHA256",
        Some(found) => SUITES.iter().find(|(_, known)| known.suite() == found).map_or("", |(name, _)| name),
        None => "",
    }
}

/// BoringSSL's name of a group.
pub fn group_name(group: NamedGroup) -> &'static str {
    match group {
        NamedGroup::X25519MLKEM768 => "X25519MLKEM768",
        NamedGroup::X25519 => "X25519",
        NamedGroup::secp256r1 => "P-256",
        NamedGroup::secp384r1 => "P-384",
        NamedGroup::MLKEM1024 => "MLKEM1024",
        _ => "unknown",
    }
}
