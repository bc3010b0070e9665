//! Certificates and keys as they are configured, understood: PEM to what a handshake presents.

use super::staple::Staple;
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
        let chain = match certificates(&config.certificate_chain.data) {
            Ok(chain) if !chain.is_empty() => chain,
            Ok(_) => {
                cx.problem_at("certificate_chain", "Failed to load certificate chain: found no PEM certificate");
                return None;
            }
            Err(why) => {
                cx.problem_at("certificate_chain", format!("Failed to load certificate chain: {why}"));
                return None;
            }
        };
        let password = config.password.as_ref().map(|password| &password.data[..]);
        let key = match signing_key(&config.private_key.data, password) {
            Ok(key) => key,
            Err(why) => {
                cx.problem_at("private_key", format!("Failed to load private key: {why}"));
                return None;
            }
        };
        if let Some(file) = &config.private_key.filename {
            warn_if_others_can_read(file);
        }
        let parsed = |der: &CertificateDer<'_>| Certificate::parse(der);
        let facts: Result<Vec<_>, _> = chain.iter().map(parsed).collect();
        let mut facts = facts.map_err(|why| cx.problem_at("certificate_chain", why)).ok()?;
        let usable = usable(&chain).map_err(|why| cx.problem_at("certificate_chain", why)).ok()?;
        let mut certified = CertifiedKey::new(chain, key);
        if let Err(e) = certified.keys_match() {
            cx.problem_at("private_key", format!("Failed to load private key: the certificate is of another: {e}"));
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

fn broken(e: pem::Error) -> String {
    match e {
        pem::Error::NoItemsFound => "found no PEM of that kind".to_owned(),
        other => format!("found broken PEM: {other}"),
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
    let ready = any_supported_type(&key).map_err(|e| e.to_string());
    key.zeroize();
    ready
}

/// The first PEM private key: PKCS#8, with a password if it has one, PKCS#1 or SEC 1.
fn private_key(data: &[u8], password: Option<&[u8]>) -> Result<PrivateKeyDer<'static>, String> {
    match PrivateKeyDer::from_pem_slice(data) {
        Ok(key) => return Ok(key),
        Err(pem::Error::NoItemsFound) => {}
        Err(e) => return Err(broken(e)),
    }
    let text = std::str::from_utf8(data).map_err(|_| "found bytes that are no text")?;
    let Some(at) = text.find("-----BEGIN ENCRYPTED PRIVATE KEY-----") else {
        return Err("found no PEM private key".into());
    };
    let Some(password) = password else {
        return Err("found a key under a password, and no password".into());
    };
    let (_, document) = pkcs8::SecretDocument::from_pem(text.get(at..).unwrap_or_default().trim())
        .map_err(|e| format!("found a broken key: {e}"))?;
    let encrypted = pkcs8::EncryptedPrivateKeyInfo::try_from(document.as_bytes())
        .map_err(|e| format!("found a broken key: {e}"))?;
    let opened = encrypted.decrypt(password).map_err(|_| "the password does not open the key")?;
    Ok(PrivatePkcs8KeyDer::from(opened.as_bytes().to_vec()).into())
}
