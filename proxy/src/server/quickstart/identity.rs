//! The identities of the mesh: an authority that lives as long as the process, and what it issues over SDS.
//!
//! Every proxy gets `default`, its certificate with its key, and `ROOTCA`, whom to trust. Certificates live for minutes and
//! are replaced at half of their life. Keys exist in memory alone.

use super::NODES;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use std::{
    convert::Infallible,
    time::{Duration, SystemTime},
};
use weft_control_api::{
    Message as _, ResourceType,
    envoy::{
        config::core::v3::{DataSource, data_source::Specifier},
        extensions::transport_sockets::tls::v3::{CertificateValidationContext, Secret, TlsCertificate, secret},
    },
    server::{Resource, SnapshotCache},
};

/// The trust domain; the files of the mesh name it too.
const TRUST_DOMAIN: &str = "quickstart.local";
/// So long a certificate is good for.
const LIFE: Duration = Duration::from_secs(600);
/// Clocks may differ by so much.
const BACKDATED: Duration = Duration::from_secs(60);
/// Of the authority itself.
const LIFE_OF_AUTHORITY: Duration = Duration::from_secs(365 * 24 * 3600);

/// Whom the mesh trusts.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    /// A new one.
    ///
    /// # Errors
    /// There is no randomness.
    pub fn new() -> Result<Self, String> {
        let mut params = params(SystemTime::now(), LIFE_OF_AUTHORITY);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "Weft quickstart");
        params.subject_alt_names = vec![uri(&format!("spiffe://{TRUST_DOMAIN}"))?];
        let key = KeyPair::generate().map_err(failed)?;
        let pem = params.self_signed(&key).map_err(failed)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }

    /// Gives every node a new certificate.
    ///
    /// # Errors
    /// There is no randomness.
    pub fn issue(&self, cache: &SnapshotCache) -> Result<(), String> {
        for node in NODES {
            let secrets = [self.certificate(node, SystemTime::now())?, self.authorities()];
            let resources = secrets.map(|secret| (secret.name.clone(), Resource::new(secret.encode_to_vec())));
            cache.set_beside(node, ResourceType::Secret, resources);
        }
        Ok(())
    }

    /// Does so again and again; returns why it cannot.
    pub async fn keep_issuing(&self, cache: &SnapshotCache) -> String {
        let keep = async || -> Result<Infallible, String> {
            loop {
                tokio::time::sleep(LIFE / 2).await;
                self.issue(cache)?;
            }
        };
        match keep().await {
            Ok(never) => match never {},
            Err(why) => why,
        }
    }

    fn certificate(&self, node: &str, now: SystemTime) -> Result<Secret, String> {
        let mut params = params(now, LIFE);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.distinguished_name.push(DnType::CommonName, node);
        params.subject_alt_names = vec![uri(&format!("spiffe://{TRUST_DOMAIN}/{node}"))?];
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(Secret {
            name: "default".into(),
            r#type: Some(secret::Type::TlsCertificate(TlsCertificate {
                certificate_chain: Some(inline(certificate.pem())),
                private_key: Some(inline(key.serialize_pem())),
                ..TlsCertificate::default()
            })),
        })
    }

    fn authorities(&self) -> Secret {
        Secret {
            name: "ROOTCA".into(),
            r#type: Some(secret::Type::ValidationContext(CertificateValidationContext {
                trusted_ca: Some(inline(self.pem.clone())),
                ..CertificateValidationContext::default()
            })),
        }
    }
}

fn params(now: SystemTime, life: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + life).into();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
}

fn uri(text: &str) -> Result<SanType, String> {
    Ok(SanType::URI(text.try_into().map_err(failed)?))
}

fn inline(pem: String) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineString(pem)), ..DataSource::default() }
}

fn failed(e: rcgen::Error) -> String {
    format!("cannot issue certificates: {e}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Certificate;
    use rustls::pki_types::{CertificateDer, pem::PemObject as _};

    #[test]
    fn a_certificate_is_an_identity_for_minutes() {
        let authority = Authority::new().unwrap();
        let secret = authority.certificate("sidecar-a", SystemTime::now()).unwrap();
        let Some(secret::Type::TlsCertificate(TlsCertificate { certificate_chain: Some(chain), .. })) = secret.r#type
        else {
            panic!("no certificate");
        };
        let Some(Specifier::InlineString(pem)) = chain.specifier else { panic!("no PEM") };
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let certificate = Certificate::parse(&der).unwrap();
        let uris: Vec<_> = certificate.uri_sans.iter().map(ToString::to_string).collect();
        assert_eq!(uris, ["spiffe://quickstart.local/sidecar-a"]);
        assert!(!certificate.is_expired());
    }
}
