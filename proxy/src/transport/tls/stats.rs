//! `listener.ADDRESS.ssl.*` and `cluster.NAME.ssl.*`, with Envoy's names, and those of the contexts' secrets.

use super::{failure::Cause, staple::Action, verify::Demand};
use crate::{
    base::TlsConnection,
    observe::stats::{Counter, Gauge, StatGroup, StatRef},
    stats,
};
use std::collections::BTreeMap;

stats! {
    /// What is there from the start.
    pub struct HandshakeStats {
        counter connection_error,
        counter handshake,
        counter session_reused,
        counter no_certificate,
        counter fail_verify_no_cert,
        counter fail_verify_error,
        counter fail_verify_san,
        counter fail_verify_cert_hash,
        counter ocsp_staple_failed,
        counter ocsp_staple_omitted,
        counter ocsp_staple_responses,
        counter ocsp_staple_requests,
    }
}

stats! {
    /// `listener.ADDRESS.server_ssl_socket_factory.*`
    pub struct ServerSocketFactoryStats {
        counter downstream_context_secrets_not_ready,
        counter ssl_context_update_by_sds,
        counter upstream_context_secrets_not_ready,
    }
}

stats! {
    /// `cluster.NAME.client_ssl_socket_factory.*`
    pub struct ClientSocketFactoryStats {
        counter downstream_context_secrets_not_ready,
        counter ssl_context_update_by_sds,
        counter upstream_context_secrets_not_ready,
    }
}

const VERSIONS: [&str; 2] = ["TLSv1.2", "TLSv1.3"];
const CIPHERS: [&str; 9] = [
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
];
const CURVES: [&str; 5] = ["X25519MLKEM768", "X25519", "P-256", "P-384", "MLKEM1024"];
const SIGALGS: [&str; 10] = [
    "ecdsa_secp256r1_sha256",
    "ecdsa_secp384r1_sha384",
    "ecdsa_secp521r1_sha512",
    "ed25519",
    "rsa_pss_rsae_sha256",
    "rsa_pss_rsae_sha384",
    "rsa_pss_rsae_sha512",
    "rsa_pkcs1_sha256",
    "rsa_pkcs1_sha384",
    "rsa_pkcs1_sha512",
];

/// `ssl.certificate.NAME.expiration_unix_time_seconds` of what a scope's contexts present and trust, read when it is asked for.
pub struct Expirations(Box<dyn Fn() -> Vec<(String, i64)> + Send + Sync>);

impl Expirations {
    /// `read` gives names and ends of validity; of one name the last counts.
    pub fn new(read: impl Fn() -> Vec<(String, i64)> + Send + Sync + 'static) -> Self {
        Self(Box::new(read))
    }
}

impl StatGroup for Expirations {
    fn visit(&self, visit: &mut dyn FnMut(&str, StatRef<'_>)) {
        let ends: BTreeMap<String, i64> = (self.0)().into_iter().collect();
        for (name, end) in ends {
            let gauge = Gauge::default();
            gauge.set(u64::try_from(end).unwrap_or_default());
            visit(&format!("{name}.expiration_unix_time_seconds"), StatRef::Gauge(&gauge));
        }
    }
}

/// One thread's part of a scope's TLS stats.
#[derive(Debug, Default)]
pub struct SslStats {
    pub counters: HandshakeStats,
    /// Ours, there from its first value on: handshakes begun with a certificate of ours that had expired.
    pub own_certificate_expired: Counter,
    /// The same: connections that were cut because their peer is trusted no longer.
    pub distrusted: Counter,
    versions: Named<2>,
    ciphers: Named<9>,
    curves: Named<5>,
    sigalgs: Named<10>,
}

/// Counters that are there from their first value on.
#[derive(Debug)]
struct Named<const N: usize>([Counter; N]);

impl<const N: usize> Default for Named<N> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl<const N: usize> Named<N> {
    fn inc(&self, names: [&str; N], name: &str) {
        if let Some(counter) = names.iter().position(|known| *known == name).and_then(|at| self.0.get(at)) {
            counter.inc();
        }
    }

    fn visit(&self, group: &str, names: [&str; N], visit: &mut dyn FnMut(&str, StatRef<'_>)) {
        for (name, counter) in names.iter().zip(&self.0).filter(|(_, counter)| counter.get() > 0) {
            visit(&format!("{group}.{name}"), StatRef::Counter(counter));
        }
    }
}

impl StatGroup for SslStats {
    fn visit(&self, visit: &mut dyn FnMut(&str, StatRef<'_>)) {
        self.counters.visit(visit);
        if self.distrusted.get() > 0 {
            visit("distrusted", StatRef::Counter(&self.distrusted));
        }
        if self.own_certificate_expired.get() > 0 {
            visit("own_certificate_expired", StatRef::Counter(&self.own_certificate_expired));
        }
        self.versions.visit("versions", VERSIONS, visit);
        self.ciphers.visit("ciphers", CIPHERS, visit);
        self.curves.visit("curves", CURVES, visit);
        self.sigalgs.visit("sigalgs", SIGALGS, visit);
    }
}

impl SslStats {
    /// Counts a handshake that succeeded. `scheme`: with which the peer signed.
    pub fn established(&self, tls: &TlsConnection, scheme: Option<&str>) {
        self.counters.handshake.inc();
        if tls.resumed {
            self.counters.session_reused.inc();
        }
        if tls.peer_chain.is_empty() {
            self.counters.no_certificate.inc();
        }
        self.versions.inc(VERSIONS, tls.version);
        self.ciphers.inc(CIPHERS, tls.cipher);
        self.curves.inc(CURVES, tls.group);
        if let Some(scheme) = scheme {
            self.sigalgs.inc(SIGALGS, scheme);
        }
    }

    /// Counts what became of a staple.
    pub fn stapled(&self, action: Option<Action>) {
        let what = match action {
            None | Some(Action::NotAsked) => return,
            Some(Action::Staple) => &self.counters.ocsp_staple_responses,
            Some(Action::Omit) => &self.counters.ocsp_staple_omitted,
            Some(Action::Fail) => &self.counters.ocsp_staple_failed,
        };
        self.counters.ocsp_staple_requests.inc();
        what.inc();
    }

    /// Counts a handshake that failed.
    pub fn failed(&self, cause: Cause) {
        let counters = &self.counters;
        match cause {
            Cause::NoCertificate => &counters.fail_verify_no_cert,
            Cause::Refused(Demand::Chain | Demand::Crl) => &counters.fail_verify_error,
            Cause::Refused(Demand::San) => &counters.fail_verify_san,
            Cause::Refused(Demand::Pin) => &counters.fail_verify_cert_hash,
            Cause::Protocol => &counters.connection_error,
            Cause::Closed => return,
        }
        .inc();
    }
}
