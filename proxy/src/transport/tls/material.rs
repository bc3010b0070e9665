//! Certificates and keys as they are configured, understood: PEM to what a handshake presents.

use super::{expiry, staple::Staple};
use crate::base::Certificate;
use rustls::{
    crypto::aws_lc_rs::sign::any_supported_type,
    pki_types::{
        CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer,
        pem::{self, PemObject},
    },
    sign::{CertifiedKey, SigningKey},
};
use std::{os::unix::fs::PermissionsExt as _, sync::Arc};
use weft_config::{Context, tls::TlsCertificate};
use x509_parser::{
    prelude::{FromDer, X509Certificate},
    public_key::PublicKey,
};
use zeroize::Zeroize as _;

/// A certificate with its key, ready to be presented.
#[derive(Debug)]
pub struct Identity {
    /// Of the secret that it is from; empty for one that stands in its context.
    pub name: Box<str>,
    pub key: Arc<CertifiedKey>,
    pub certificate: Arc<Certificate>,
    /// The rest of the chain, as facts for `/certs`.
    pub chain: Vec<Certificate>,
    pub is_ecdsa: bool,
    /// The common name of its subject: what it is for if it has no DNS names.
    pub common_name: Option<Box<str>>,
    pub staple: Option<Staple>,
    /// The certificate demands to be stapled (RFC 7633).
    pub must_staple: bool,
    /// The same key without a staple.
    pub bare_key: Arc<CertifiedKey>,
    /// The file that it is from.
    pub filename: Option<String>,
}

impl Identity {
    /// Understands a certificate and its key; `None` if a problem was reported.
    pub fn compile(config: &TlsCertificate, name: &str, cx: &mut Context) -> Option<Arc<Self>> {
        let (chain_origin, key_origin) = (config.certificate_chain.origin(), config.private_key.origin());
        let refused = |why: String| format!("Failed to load certificate chain from {chain_origin}: {why}");
        let chain = match certificates(&config.certificate_chain.data) {
            Ok(chain) if !chain.is_empty() => chain,
            Ok(_) => {
                cx.problem_at("certificate_chain", refused(no_certificate(&config.certificate_chain.data).to_owned()));
                return None;
            }
            Err(why) => {
                cx.problem_at("certificate_chain", refused(why));
                return None;
            }
        };
        let parsed = |der: &CertificateDer<'_>| Certificate::parse(der);
        let facts: Result<Vec<_>, _> = chain.iter().map(parsed).collect();
        let mut facts = facts.map_err(|why| cx.problem_at("certificate_chain", refused(why))).ok()?;
        // What a key of this kind lacks is said better of the certificate.
        let usable = usable(&chain).map_err(|why| cx.problem_at("certificate_chain", refused(why))).ok()?;
        let password = config.password.as_ref().map(|password| &password.data[..]);
        let key = match signing_key(&config.private_key.data, password) {
            Ok(key) => key,
            Err(why) => {
                cx.problem_at("private_key", format!("Failed to load private key from {key_origin}: {why}"));
                return None;
            }
        };
        if let Some(file) = &config.private_key.filename {
            warn_if_others_can_read(file);
        }
        let mut certified = CertifiedKey::new(chain, key);
        if certified.keys_match().is_err() {
            cx.problem_at(
                "private_key",
                format!(
                    "Failed to load private key from {key_origin}: it is not the key of the first certificate of \
                     certificate_chain, {:?}",
                    facts.first().map(|facts| &*facts.subject).unwrap_or_default()
                ),
            );
            return None;
        }
        let staple = match config.ocsp_staple.as_ref().filter(|staple| !staple.data.is_empty()) {
            Some(staple) => Some(
                Staple::parse(&staple.data, &usable.serial).map_err(|why| cx.problem_at("ocsp_staple", why)).ok()?,
            ),
            None => None,
        };
        if usable.must_staple && staple.is_none() {
            cx.problem_at("ocsp_staple", "OCSP response is required for must-staple certificate");
            return None;
        }
        let named = if name.is_empty() { chain_origin.to_owned() } else { format!("secret {name:?}") };
        facts.iter().for_each(|facts| expiry::warn(facts, "the certificate", &named));
        let bare_key = Arc::new(certified.clone());
        certified.ocsp = staple.as_ref().map(|staple| staple.response.clone());
        let certificate = Arc::new(facts.remove(0));
        Some(Arc::new(Self {
            name: name.into(),
            key: Arc::new(certified),
            certificate,
            chain: facts,
            is_ecdsa: usable.is_ecdsa,
            common_name: usable.common_name,
            staple,
            must_staple: usable.must_staple,
            bare_key,
            filename: config.certificate_chain.filename.clone(),
        }))
    }
}

/// What choosing a certificate depends on.
struct Usable {
    is_ecdsa: bool,
    common_name: Option<Box<str>>,
    serial: Vec<u8>,
    must_staple: bool,
}

/// What Envoy takes for a server's or client's own: RSA from 2048 bits, ECDSA on the curves P-256, P-384 and P-521.
fn usable(chain: &[CertificateDer<'_>]) -> Result<Usable, String> {
    let leaf = chain.first().ok_or("is empty")?;
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|e| format!("is no X.509 certificate: {e}"))?;
    let key = leaf.public_key().parsed().map_err(|e| format!("has a public key that cannot be read: {e}"))?;
    let is_ecdsa = match key {
        PublicKey::RSA(rsa) if rsa.key_size() < 2048 => {
            return Err(format!("has an RSA key of {} bits: at least 2048 are needed", rsa.key_size()));
        }
        PublicKey::EC(_) => true,
        _ => false,
    };
    // As in Envoy, of such keys alone: they could also be for key agreement, which nobody does.
    let usage = leaf.key_usage().map_err(|e| format!("has a key usage that cannot be read: {e}"))?;
    if is_ecdsa && usage.is_some_and(|usage| !usage.value.digital_signature()) {
        return Err("has an EC key that may not sign: its key usage is without digitalSignature".to_owned());
    }
    let name = leaf.subject().iter_common_name().next().and_then(|name| name.as_str().ok()).map(Into::into);
    let must_staple = leaf.extensions().iter().any(|extension| {
        // A list of extension numbers, of which 5 asks for a staple.
        extension.oid.to_id_string() == "1.3.6.1.5.5.7.1.24" && extension.value.windows(3).any(|part| part == [2, 1, 5])
    });
    Ok(Usable { is_ecdsa, common_name: name, serial: leaf.raw_serial().to_vec(), must_staple })
}

/// All PEM certificates.
///
/// # Errors
/// What is broken.
pub fn certificates(data: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_slice_iter(data).collect::<Result<_, _>>().map_err(broken)
}

const NO_LINES: &str = "found broken PEM: \"-----BEGIN ...-----\" has to be a line of its own";

/// What is broken in a PEM text, without any of what stands there.
pub fn broken(e: pem::Error) -> String {
    match e {
        pem::Error::MissingSectionEnd { end_marker } => {
            let label = String::from_utf8_lossy(&end_marker);
            // What is longer is a text without line breaks, and may be a key.
            match label.len() <= 40 && label.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b' ')
            {
                true => format!(
                    "found \"-----BEGIN {label}-----\" and no \"-----END {label}-----\": a PEM block without its end"
                ),
                false => NO_LINES.to_owned(),
            }
        }
        pem::Error::IllegalSectionStart { .. } => NO_LINES.to_owned(),
        pem::Error::Base64Decode(_) => "found a PEM block whose content is no base64".to_owned(),
        pem::Error::SectionTooLarge => "found a PEM block that is too large".to_owned(),
        pem::Error::NoItemsFound => "found no PEM of that kind".to_owned(),
        _ => "found broken PEM".to_owned(),
    }
}

/// What is wrong with a text that has no PEM certificate.
pub fn no_certificate(data: &[u8]) -> &'static str {
    let has = |text: &str| memchr::memmem::find(data, text.as_bytes()).is_some();
    if data.iter().all(u8::is_ascii_whitespace) {
        "it is empty, a PEM certificate is needed"
    } else if has("PRIVATE KEY-----") {
        "found a private key and no PEM certificate"
    } else if has("-----BEGIN ") {
        "found no PEM certificate, but PEM of another kind"
    } else {
        "found no PEM certificate (-----BEGIN CERTIFICATE-----)"
    }
}

/// Says that a key is not as secret as it should be.
fn warn_if_others_can_read(file: &str) {
    let mode = std::fs::metadata(file).map_or(0, |metadata| metadata.permissions().mode() & 0o777);
    if mode & 0o077 != 0 {
        tracing::warn!(target: "config", "private key {file} has mode {mode:o}: others than its owner have access to it");
    }
}

/// The key that PEM holds, ready to sign; what it was read from is wiped.
fn signing_key(data: &[u8], password: Option<&[u8]>) -> Result<Arc<dyn SigningKey>, String> {
    let mut key = private_key(data, password)?;
    let ready = any_supported_type(&key).map_err(|_| {
        "found a key of a kind that is not supported, or a broken one: allowed are RSA from 2048 bits, ECDSA on P-256, P-384 \
         and P-521, and Ed25519"
            .to_owned()
    });
    key.zeroize();
    ready
}

/// The first PEM private key: PKCS#8, with a password if it has one, PKCS#1 or SEC 1.
fn private_key(data: &[u8], password: Option<&[u8]>) -> Result<PrivateKeyDer<'static>, String> {
    if memchr::memmem::find(data, b"Proc-Type: 4,ENCRYPTED").is_some() {
        return Err("found a key encrypted the traditional way (Proc-Type: 4,ENCRYPTED), which is not supported: \
                    convert it with `openssl pkcs8 -topk8`"
            .into());
    }
    match PrivateKeyDer::from_pem_slice(data) {
        Ok(key) => return Ok(key),
        Err(pem::Error::NoItemsFound) => {}
        Err(e) => return Err(broken(e)),
    }
    let text = std::str::from_utf8(data).map_err(|_| "found bytes that are no text")?;
    let Some(at) = text.find("-----BEGIN ENCRYPTED PRIVATE KEY-----") else {
        return Err(match data.iter().all(u8::is_ascii_whitespace) {
            true => "it is empty, a PEM private key is needed".into(),
            false => "found no PEM private key".into(),
        });
    };
    let Some(password) = password else {
        return Err("found a key under a password, and no password".into());
    };
    let (_, document) = pkcs8::SecretDocument::from_pem(text.get(at..).unwrap_or_default().trim())
        .map_err(|_| "found a PEM block of an encrypted key that is broken")?;
    let encrypted = pkcs8::EncryptedPrivateKeyInfo::try_from(document.as_bytes()).map_err(
        |_| "found an encrypted key that is broken, or of a kind that is not supported: allowed is PKCS#8 with PBES2",
    )?;
    let opened = encrypted.decrypt(password).map_err(|_| "the password does not open the key")?;
    Ok(PrivatePkcs8KeyDer::from(opened.as_bytes().to_vec()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMIGHsecret\n-----END PRIVATE KEY-----\n";

    #[test]
    fn what_is_wrong_with_a_key_is_said_in_words_and_without_it() {
        let traditional = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nMIGHsecret\n\
                           -----END RSA PRIVATE KEY-----\n";
        for (text, about) in [
            (String::new(), "it is empty"),
            ("MIGHsecret".into(), "found no PEM private key"),
            (KEY.replace("-----END PRIVATE KEY-----\n", ""), "and no \"-----END PRIVATE KEY-----\""),
            (KEY.replace('\n', ""), "a line of its own"),
            (KEY.replace("MIGH", "MIGH!"), "no base64"),
            (KEY.into(), "allowed are RSA from 2048 bits"),
            (traditional.into(), "openssl pkcs8 -topk8"),
            (KEY.replace("PRIVATE", "ENCRYPTED PRIVATE"), "no password"),
        ] {
            let why = signing_key(text.as_bytes(), None).expect_err("no key");
            assert!(why.contains(about) && !why.contains("MIGH") && !why.contains('['), "{why}");
        }
        let why = signing_key(KEY.replace("PRIVATE", "ENCRYPTED PRIVATE").as_bytes(), Some(b"pw")).expect_err("no key");
        assert!(!why.contains("MIGH"), "{why}");
    }

    #[test]
    fn what_stands_in_place_of_a_certificate_is_said() {
        assert!(no_certificate(b" \n").contains("is empty"));
        assert!(no_certificate(KEY.as_bytes()).contains("private key"));
        assert!(no_certificate(b"\x30\x82").contains("BEGIN CERTIFICATE"));
        let half = "-----BEGIN CERTIFICATE-----\nMIIB";
        let why = certificates(half.as_bytes()).expect_err("no end");
        assert!(why.contains("no \"-----END CERTIFICATE-----\""), "{why}");
    }
}
