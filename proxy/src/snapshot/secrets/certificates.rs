//! Which certificates TLS contexts present and trust now, for the admin API and for stats.

use super::{Live, Store};
use crate::{
    base::Certificate,
    transport::tls::{material::Identity, verify::Authority},
};
use std::sync::Arc;
use weft_config::tls::SecretRef;

/// A context's certificates.
pub struct ContextCertificates {
    pub authorities: Vec<Loaded>,
    pub identities: Vec<Loaded>,
}

/// A certificate and where it is from.
pub struct Loaded {
    /// The file, in front of it the trust domain that the certificate stands for; `<inline>`.
    pub path: String,
    pub certificate: Arc<Certificate>,
    /// When its OCSP staple ends, in seconds since the epoch; `None` without one.
    pub staple_until: Option<u64>,
}

impl Store {
    /// The certificates of all contexts that have what they need.
    pub fn certificates(&self) -> Vec<ContextCertificates> {
        let of_context = |context: &Live| {
            let (identities, authorities): (Vec<_>, Vec<_>) = match context {
                Live::Server(context, _) => {
                    let revision = context.revisions.now()?;
                    let trusted = revision.verifier.iter().flat_map(|verifier| verifier.authorities());
                    let domain = self.domain(context.config.secrets());
                    let trusted = trusted.map(|found| authority(found, domain));
                    (revision.identities.iter().map(identity).collect(), trusted.collect())
                }
                Live::Client(context, _) => {
                    let revision = context.revisions.now()?;
                    let trusted = revision.verifier.iter().flat_map(|verifier| verifier.authorities());
                    let domain = self.domain(context.config.secrets());
                    let trusted = trusted.map(|found| authority(found, domain));
                    (revision.identity.iter().map(identity).collect(), trusted.collect())
                }
            };
            Some(ContextCertificates { authorities, identities })
        };
        self.contexts().iter().filter_map(of_context).collect()
    }

    /// Whose authorities are in these secrets, where their source says so.
    fn domain<'a>(&self, mut secrets: impl Iterator<Item = &'a SecretRef>) -> Option<&Arc<str>> {
        secrets.find_map(|secret| self.secrets.find(secret)?.trust_domain.as_ref())
    }
}

const INLINE: &str = "<inline>";

fn identity(identity: &Arc<Identity>) -> Loaded {
    Loaded {
        path: identity.filename.clone().unwrap_or_else(|| INLINE.to_owned()),
        certificate: identity.certificate.clone(),
        staple_until: identity.staple.as_ref().and_then(|staple| staple.next_update),
    }
}

fn authority(authority: &Authority, domain: Option<&Arc<str>>) -> Loaded {
    let path = authority.path.as_deref().unwrap_or(INLINE);
    Loaded {
        path: authority
            .trust_domain
            .as_ref()
            .or(domain)
            .map_or_else(|| path.to_owned(), |domain| format!("{domain}: {path}")),
        certificate: authority.certificate.clone(),
        staple_until: None,
    }
}
