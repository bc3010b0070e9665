//! What is trusted, read from PEM and bundles when a context is compiled.
//!
//! Invariant: all or nothing; something that cannot be read is a problem, and nothing is trusted by it.

use super::{crl::Crls, parsed::Parsed, path::Anchors, spiffe};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, pem::PemObject};
use std::{collections::HashMap, sync::Arc};
use weft_config::{Context, data_source::DataSource, tls::SpiffeValidator};

/// The certificates of a PEM text.
pub fn certificates(source: &DataSource, cx: &mut Context) -> Option<Vec<Arc<Parsed>>> {
    let mut all = Vec::new();
    for (i, found) in CertificateDer::pem_slice_iter(&source.data).enumerate() {
        match found {
            Ok(der) => match Parsed::parse(&der) {
                Ok(parsed) => all.push(Arc::new(parsed)),
                Err(why) => cx.problem(format!("Failed to load trusted CA certificates: certificate {i} {why}")),
            },
            Err(e) => {
                cx.problem(format!("Failed to load trusted CA certificates: no PEM after certificate {i}: {e:?}"));
                return None;
            }
        }
    }
    if all.is_empty() {
        cx.problem("Failed to load trusted CA certificates: found no PEM certificate");
    }
    (!cx.has_problems()).then_some(all)
}

/// The lists of a PEM text.
pub fn crls(source: &DataSource, only_leaf: bool, cx: &mut Context) -> Option<Crls> {
    let mut crls = Crls::new(only_leaf);
    cx.field("crl", |cx| {
        for (i, found) in CertificateRevocationListDer::pem_slice_iter(&source.data).enumerate() {
            match found {
                Ok(der) => {
                    if let Err(why) = crls.add(&der) {
                        cx.problem(format!("Failed to load CRL: list {i} {why}"));
                    }
                }
                Err(e) => {
                    cx.problem(format!("Failed to load CRL: no PEM after list {i}: {e:?}"));
                    return None;
                }
            }
        }
        if crls.is_empty() {
            cx.problem("Failed to load CRL: found no PEM list");
        }
        (!cx.has_problems()).then_some(crls)
    })
}

/// Bundles by trust domain.
pub fn domains(config: &SpiffeValidator, cx: &mut Context) -> Option<HashMap<String, Anchors>> {
    let mut domains = HashMap::new();
    cx.field("custom_validator_config.typed_config", |cx| {
        cx.unsupported_if("trust_bundles", config.trust_bundles.is_some());
        for (i, (name, bundle)) in config.trust_domains.iter().enumerate() {
            cx.element("trust_domains", i, |cx| {
                if !spiffe::is_trust_domain(name) {
                    cx.problem_at("name", format!("found {name:?}, which is no SPIFFE trust domain"));
                }
                let mut anchors = Anchors::default();
                let certificates = cx.field("trust_bundle", |cx| certificates(bundle, cx))?;
                certificates.into_iter().for_each(|certificate| anchors.add(certificate));
                domains.insert(name.clone(), anchors)
            });
        }
    });
    (!cx.has_problems()).then_some(domains)
}
