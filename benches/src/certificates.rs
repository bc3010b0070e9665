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
            client: Pair::of(folder, "client"),
            backend: Pair::of(folder, "backend"),
        };
        // It is written last: where it is, the others are.
        if !files.authority.exists() {
            make(folder, &files).map_err(|e| format!("{}: {e}", folder.display()))?;
        }
        Ok(files)
    }
}

fn make(folder: &Path, files: &Files) -> Result<(), Box<dyn std::error::Error>> {
    fs::create_dir_all(folder)?;
    let key = KeyPair::generate()?;
    let mut authority = CertificateParams::default();
    authority.distinguished_name = named("authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    authority.subject_alt_names = vec![SanType::URI("spiffe://bench.example".try_into()?)];
    let certificate = authority.self_signed(&key)?;
    let issuer = Issuer::new(authority, key);
    for name in ["client", "proxy", "backend"] {
        let key = KeyPair::generate()?;
        // The load generator looks for the DNS name, proxies for the URI.
        let mut leaf = CertificateParams::new(["bench.example".to_owned()])?;
        leaf.distinguished_name = named(name);
        leaf.subject_alt_names.push(SanType::URI(format!("spiffe://bench.example/{name}").try_into()?));
        leaf.is_ca = IsCa::ExplicitNoCa;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let pair = Pair::of(folder, name);
        fs::write(pair.chain, leaf.signed_by(&key, &issuer)?.pem())?;
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(pair.key)?;
        file.write_all(key.serialize_pem().as_bytes())?;
    }
    fs::write(&files.authority, certificate.pem())?;
    Ok(())
}

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}
