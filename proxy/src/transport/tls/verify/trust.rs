//! What is trusted, read from PEM and bundles when a context is compiled.
//!
//! Invariant: all or nothing; something that cannot be read is a problem, and nothing is trusted by it.

use super::{bundle, crl::Crls, parsed::Parsed, path::Anchors, spiffe};
use crate::{
    base::Certificate,
    transport::tls::material::{broken, no_certificate},
};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, pem::PemObject};
use std::{collections::HashMap, sync::Arc};
use weft_config::{
    Context,
    data_source::DataSource,
    tls::{SpiffeValidator, TrustBundles},
};

/// A certificate that is trusted, for who asks what is.
#[derive(Clone, Debug)]
pub struct Authority {
    pub certificate: Arc<Certificate>,
    /// Whose it is under the SPIFFE validator.
    pub trust_domain: Option<Arc<str>>,
    /// The file that it is from.
    pub path: Option<Arc<str>>,
    /// Its name as it is encoded.
    pub subject: Box<[u8]>,
}

impl Authority {
    fn new(parsed: &Parsed, trust_domain: Option<&str>, path: Option<&str>) -> Option<Self> {
        let certificate = Arc::new(Certificate::parse(&parsed.der).ok()?);
        let subject = parsed.subject.clone();
        Some(Self { certificate, trust_domain: trust_domain.map(Arc::from), path: path.map(Arc::from), subject })
    }

    /// All of one source.
    pub fn all(certificates: &[Arc<Parsed>], trust_domain: Option<&str>, path: Option<&str>) -> Vec<Self> {
        certificates.iter().filter_map(|parsed| Self::new(parsed, trust_domain, path)).collect()
    }
}

/// The certificates of a PEM text.
pub fn certificates(source: &DataSource, cx: &mut Context) -> Option<Vec<Arc<Parsed>>> {
    let origin = source.origin();
    let found = CertificateDer::pem_slice_iter(&source.data).enumerate().map(|(i, found)| {
        let der = found.map_err(|e| format!("certificate {i}: {}", broken(e)))?;
        Parsed::parse(&der).map(Arc::new).map_err(|why| format!("certificate {i} {why}"))
    });
    let all = match found.collect::<Result<Vec<_>, _>>() {
        Ok(all) if all.is_empty() => Err(no_certificate(&source.data).to_owned()),
        all => all,
    };
    all.map_err(|why| cx.problem(format!("Failed to load trusted CA certificates from {origin}: {why}"))).ok()
}

/// The lists of a PEM text.
pub fn crls(source: &DataSource, only_leaf: bool, cx: &mut Context) -> Option<Crls> {
    let mut crls = Crls::new(only_leaf);
    let mut read = || {
        for (i, found) in CertificateRevocationListDer::pem_slice_iter(&source.data).enumerate() {
            let der = found.map_err(|e| format!("list {i}: {}", broken(e)))?;
            crls.add(&der).map_err(|why| format!("list {i} {why}"))?;
        }
        if crls.is_empty() { Err("found no PEM list".to_owned()) } else { Ok(()) }
    };
    match read() {
        Ok(()) => Some(crls),
        Err(why) => {
            cx.problem_at("crl", format!("Failed to load CRL from {}: {why}", source.origin()));
            None
        }
    }
}

/// Anchors by trust domain.
pub type Domains = HashMap<String, Anchors>;

/// What the SPIFFE validator trusts. A map of bundles comes before bundles one by one.
pub fn domains(config: &SpiffeValidator, cx: &mut Context) -> Option<(Domains, Vec<Authority>)> {
    cx.field("custom_validator_config.typed_config", |cx| {
        if let Some(bundles) = &config.trust_bundles {
            return match map(bundles) {
                Ok(found) => Some(found),
                Err(why) => {
                    let origin = bundles.source.origin();
                    cx.problem_at(
                        "trust_bundles",
                        format!("Failed to load the SPIFFE bundle map from {origin}: {why}"),
                    );
                    None
                }
            };
        }
        let (mut domains, mut authorities) = (Some(Domains::new()), Vec::new());
        for (i, (name, bundle)) in config.trust_domains.iter().enumerate() {
            let certificates = cx.element("trust_domains", i, |cx| {
                if !spiffe::is_trust_domain(name) {
                    cx.problem_at("name", format!("found {name:?}, which is no SPIFFE trust domain"));
                    return None;
                }
                cx.field("trust_bundle", |cx| certificates(bundle, cx))
            });
            match (certificates, &mut domains) {
                (Some(certificates), Some(domains)) => {
                    authorities.extend(Authority::all(&certificates, Some(name), bundle.filename.as_deref()));
                    domains.insert(name.clone(), Anchors::new(certificates));
                }
                _ => domains = None,
            }
        }
        domains.map(|domains| (domains, authorities))
    })
}

fn map(bundles: &TrustBundles) -> Result<(Domains, Vec<Authority>), String> {
    let TrustBundles { source: DataSource { data, filename }, watched_directory: _ } = bundles;
    // What is compiled again is compiled because the file changed.
    let parsed = match filename {
        Some(name) => {
            bundle::parse(&std::fs::read(name).map_err(|e| format!("found {name:?}, which cannot be read: {e}"))?)
        }
        None => bundle::parse(data),
    }?;
    let (mut domains, mut authorities) = (Domains::new(), Vec::new());
    for (name, certificates) in parsed {
        authorities.extend(Authority::all(&certificates, Some(&name), filename.as_deref()));
        domains.insert(name, Anchors::new(certificates));
    }
    Ok((domains, authorities))
}
