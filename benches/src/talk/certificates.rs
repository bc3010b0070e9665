//! Who the load generator, the proxies and the backend are: an authority and three certificates with SPIFFE IDs, ECDSA
//! with P-256, made when they are not there.
//!
//! They are kept, so that a proxy that was started by hand goes on knowing the load generator.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// PEM files; the proxy's are `proxy.crt` and `proxy.key`.
pub struct Files {
    pub authority: PathBuf,
    authority_key: PathBuf,
    pub client: Pair,
    pub backend: Pair,
}

pub struct Pair {
    pub chain: PathBuf,
    pub key: PathBuf,
}

impl Pair {
    fn of(folder: &Path, name: &str) -> Self {
        Self { chain: folder.join(format!("{name}.crt")), key: folder.join(format!("{name}.key")) }
    }
}

impl Files {
    /// Those in `folder`, made if they are not there.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn in_folder(folder: &Path) -> Result<Self, String> {
        let files = Self {
            authority: folder.join("authority.crt"),
            authority_key: folder.join("authority.key"),
            client: Pair::of(folder, "client"),
            backend: Pair::of(folder, "backend"),
        };
        // It is written last: where it is, the others are.
        if !files.authority_key.exists() {
            make(folder, &files).map_err(|e| format!("{}: {e}", folder.display()))?;
        }
        Ok(files)
    }

    /// Another certificate for the proxy, and its key, in PEM.
    ///
    /// # Errors
    /// The authority's key cannot be read.
    pub fn renewed(&self) -> Result<(String, String), String> {
        let key = fs::read_to_string(&self.authority_key).map_err(|e| e.to_string())?;
        let key = KeyPair::from_pem(&key).map_err(|e| e.to_string())?;
        authority().and_then(|authority| leaf("proxy", &Issuer::new(authority, key))).map_err(|e| e.to_string())
    }
}

fn authority() -> Result<CertificateParams, Box<dyn std::error::Error>> {
    let mut authority = CertificateParams::default();
    authority.distinguished_name = named("authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    authority.subject_alt_names = vec![SanType::URI("spiffe://bench.example".try_into()?)];
    Ok(authority)
}

/// A certificate and its key, in PEM.
fn leaf(name: &str, issuer: &Issuer<'_, KeyPair>) -> Result<(String, String), Box<dyn std::error::Error>> {
    let key = KeyPair::generate()?;
    // The load generator looks for the DNS name, proxies for the URI.
    let mut leaf = CertificateParams::new(["bench.example".to_owned()])?;
    leaf.distinguished_name = named(name);
    leaf.subject_alt_names.push(SanType::URI(format!("spiffe://bench.example/{name}").try_into()?));
    leaf.is_ca = IsCa::ExplicitNoCa;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok((leaf.signed_by(&key, issuer)?.pem(), key.serialize_pem()))
}

fn make(folder: &Path, files: &Files) -> Result<(), Box<dyn std::error::Error>> {
    fs::create_dir_all(folder)?;
    let key = KeyPair::generate()?;
    let authority = authority()?;
    let certificate = authority.self_signed(&key)?.pem();
    let authority_key = key.serialize_pem();
    let issuer = Issuer::new(authority, key);
    for name in ["client", "proxy", "backend"] {
        let pair = Pair::of(folder, name);
        let (chain, key) = leaf(name, &issuer)?;
        fs::write(pair.chain, &chain)?;
        secret(&pair.key, &key)?;
        // Both in one, as HAProxy wants it.
        secret(&folder.join(format!("{name}.pem")), &(chain + &key))?;
    }
    fs::write(&files.authority, certificate)?;
    secret(&files.authority_key, &authority_key)?;
    Ok(())
}

fn secret(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}
