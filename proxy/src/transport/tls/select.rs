//! Which of a context's certificates a client gets: Envoy's rules.
//!
//! The name decides first: exact, then wildcard. Among certificates of one name, and where no name fits, ECDSA goes to
//! clients that can verify it.

use super::{
    capture,
    material::Identity,
    staple::{self, Action},
};
use foldhash::HashMap;
use rustls::{
    CipherSuite,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use std::sync::Arc;
use weft_config::tls::{DownstreamTlsContext, OcspStaplePolicy};

/// A context's certificates by the names that they are for.
#[derive(Debug)]
pub struct Selection {
    identities: Vec<Arc<Identity>>,
    exact: HashMap<Box<str>, Vec<usize>>,
    /// By what follows the star: `.example.com`.
    wildcards: HashMap<Box<str>, Vec<usize>>,
    /// A name that nobody has is no reason to take the first certificate at once.
    full_scan: bool,
    /// TLS 1.3 is spoken here.
    has_tls13: bool,
    policy: OcspStaplePolicy,
}

impl Selection {
    pub fn new(identities: Vec<Arc<Identity>>, config: &DownstreamTlsContext, has_tls13: bool) -> Self {
        let full_scan = config.full_scan_certs_on_sni_mismatch;
        let policy = config.ocsp_staple_policy;
        let mut this =
            Self { exact: HashMap::default(), wildcards: HashMap::default(), full_scan, has_tls13, policy, identities };
        for (i, identity) in this.identities.iter().enumerate() {
            let names = &identity.certificate.dns_sans;
            // Without a name in its SANs a certificate is for its common name.
            let fallback = identity.common_name.iter().filter(|_| names.is_empty());
            for name in names.iter().chain(fallback) {
                let name = name.to_ascii_lowercase();
                match name.strip_prefix('*') {
                    Some(suffix) if suffix.starts_with('.') => this.wildcards.entry(suffix.into()).or_default().push(i),
                    _ => this.exact.entry(name.into()).or_default().push(i),
                }
            }
        }
        this
    }

    /// The certificate for a client, among those that `may` be served.
    fn choose(
        &self,
        server_name: Option<&str>,
        takes_ecdsa: bool,
        may: impl Fn(&Identity) -> bool,
    ) -> Option<&Arc<Identity>> {
        let identity = |i: &usize| self.identities.get(*i).filter(|identity| may(identity));
        let best = |candidates: &[usize]| {
            let mut served = candidates.iter().filter_map(identity);
            let wanted = served.clone().find(|identity| identity.is_ecdsa == takes_ecdsa);
            // ECDSA for a client that cannot verify it helps nobody.
            wanted.or_else(|| served.next().filter(|_| takes_ecdsa))
        };
        if let Some(name) = server_name.filter(|name| !name.is_empty()) {
            let name = name.to_ascii_lowercase();
            let wildcard = || self.wildcards.get(name.get(name.find('.')?..)?);
            let found = self.exact.get(name.as_str()).map(|found| &found[..]);
            if let Some(found) = found.and_then(best).or_else(|| best(wildcard()?)) {
                return Some(found);
            }
            if !self.full_scan {
                return identity(&0);
            }
        }
        let mut served = self.identities.iter().filter(|identity| may(identity));
        let wanted = served.clone().find(|identity| identity.is_ecdsa == takes_ecdsa);
        wanted.or_else(|| served.next())
    }

    fn takes_ecdsa(&self, hello: &ClientHello<'_>) -> bool {
        let signs = hello.signature_schemes().iter().any(|scheme| scheme_is_ecdsa(*scheme));
        let suites = hello.cipher_suites();
        let in_13 = self.has_tls13 && suites.iter().any(|suite| is_tls13(*suite));
        signs && (in_13 || suites.iter().any(|suite| is_ecdsa(*suite)))
    }
}

fn scheme_is_ecdsa(scheme: rustls::SignatureScheme) -> bool {
    use rustls::SignatureScheme as S;
    matches!(scheme, S::ECDSA_NISTP256_SHA256 | S::ECDSA_NISTP384_SHA384 | S::ECDSA_NISTP521_SHA512)
}

fn is_tls13(suite: CipherSuite) -> bool {
    use CipherSuite as C;
    matches!(suite, C::TLS13_AES_128_GCM_SHA256 | C::TLS13_AES_256_GCM_SHA384 | C::TLS13_CHACHA20_POLY1305_SHA256)
}

fn is_ecdsa(suite: CipherSuite) -> bool {
    use CipherSuite as C;
    matches!(
        suite,
        C::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
            | C::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
            | C::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
    )
}

impl ResolvesServerCert for Selection {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let asks = capture::asks_for_staple();
        let action =
            |identity: &Identity| staple::action(asks, identity.staple.as_ref(), identity.must_staple, self.policy);
        let takes_ecdsa = self.takes_ecdsa(&hello);
        let Some(chosen) = self.choose(hello.server_name(), takes_ecdsa, |id| action(id) != Action::Fail) else {
            capture::staple(Action::Fail);
            return None;
        };
        let action = action(chosen);
        capture::presented(chosen);
        capture::staple(action);
        // A key that the client cannot verify ends in the alert of what they have not in common.
        Some(if action == Action::Staple { chosen.key.clone() } else { chosen.bare_key.clone() })
    }
}
