//! Verification of peers: what a validation context demands of a certificate and its chain.
//!
//! Compiled once for each revision of a context's trust. Who verifies is the handshake ([`ClientVerifier`] for clients'
//! certificates, [`ServerVerifier`] for servers'), and whoever looks at live peers again after trust changed.
//!
//! Invariant: it fails closed; an error says which of Envoy's stats counts it.

mod bundle;
mod constraints;
mod crl;
mod der;
mod fault;
mod handshake;
mod key_usage;
mod parsed;
mod path;
pub mod san;
mod signatures;
pub mod spiffe;
mod trust;

use aws_lc_rs::digest::{SHA256, digest};
use crl::Crls;
use fault::{Fault, FaultKind};
pub use handshake::{ClientVerifier, ServerVerifier, WantedName};
use parsed::{Name, Parsed};
use path::{Algorithms, Anchors, Budget, Demands};
use rustls::{
    CertificateError, DistinguishedName, Error, OtherError,
    pki_types::{CertificateDer, UnixTime},
};
use std::{collections::HashSet, fmt, sync::Arc};
pub use trust::Authority;
use trust::Domains;
use weft_config::{
    Context,
    tls::{CertificateValidationContext, SanMatcher, SanType},
};

/// Certificates of a path after the peer's own, if nothing else is said.
const MAX_DEPTH: usize = 100;

/// Whose certificate it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Client,
    Server,
}

/// What verified well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verified {
    /// It leads to something that is trusted, or is pinned.
    Trusted,
    /// Nothing was demanded, or what leads nowhere is let through.
    Unverified,
}

/// Which of a context's demands was not met; each has a stat of Envoy's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// `fail_verify_error`
    Chain,
    /// `fail_verify_san`
    San,
    /// `fail_verify_cert_hash`
    Pin,
    /// `fail_verify_crl` has no stat of its own in Envoy: it counts as `fail_verify_error`.
    Crl,
}

/// Why a certificate was refused.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub demand: Demand,
    /// Decides about the alert.
    pub error: CertificateError,
    /// For logs and `%DOWNSTREAM_TRANSPORT_FAILURE_REASON%`.
    pub details: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.details)
    }
}

impl std::error::Error for Refusal {}

/// A context's demands, compiled.
#[derive(Debug)]
pub struct Verifier {
    config: CertificateValidationContext,
    trust: Trust,
    crls: Option<Crls>,
    /// The name that is asked for takes the place of the matchers.
    names_replace_matchers: bool,
    /// A matcher speaks of SPIFFE IDs: what it lets through must be an SVID.
    wants_svids: bool,
    hints: Vec<DistinguishedName>,
    authorities: Vec<Authority>,
    algorithms: Algorithms,
}

/// What a chain must lead to.
#[derive(Debug)]
enum Trust {
    /// Chains are not asked for.
    Nothing,
    Anchors(Anchors),
    /// By trust domain.
    Domains(Domains),
}

/// Looks at a certificate (DER) that is to be an authority of a SPIFFE trust domain.
///
/// # Errors
/// What is wrong with it, or with the name.
pub fn check_authority(domain: &str, der: &[u8]) -> Result<(), String> {
    if !spiffe::is_trust_domain(domain) {
        return Err("the name is no SPIFFE trust domain".into());
    }
    parsed::Parsed::parse(der).map(drop).map_err(|why| format!("a certificate {why}"))
}

impl Verifier {
    /// Compiles a context; `None` if a problem was reported.
    pub fn compile(config: &CertificateValidationContext, cx: &mut Context) -> Option<Self> {
        let crls = match &config.crl {
            Some(source) => Some(trust::crls(source, config.only_verify_leaf_cert_crl, cx)?),
            None => None,
        };
        let (trust, authorities) = match (&config.spiffe, &config.trusted_ca) {
            (Some(spiffe), _) => {
                let (domains, authorities) = trust::domains(spiffe, cx)?;
                (Trust::Domains(domains), authorities)
            }
            (None, Some(source)) => {
                let certificates = cx.field("trusted_ca", |cx| trust::certificates(source, cx))?;
                let authorities = Authority::all(&certificates, None, source.filename.as_deref());
                (Trust::Anchors(Anchors::new(certificates)), authorities)
            }
            (None, None) => (Trust::Nothing, Vec::new()),
        };
        let mut seen = HashSet::new();
        let subjects = authorities.iter().map(|authority| &authority.subject);
        let subjects = subjects.filter(|subject| !config.suppress_client_ca_list && seen.insert(*subject));
        let hints = subjects.map(|subject| DistinguishedName::from(subject.to_vec())).collect();
        let wants_svids = config.sans.iter().any(speaks_of_spiffe);
        let algorithms = webpki::ALL_VERIFICATION_ALGS;
        Some(Self {
            config: config.clone(),
            trust,
            crls,
            names_replace_matchers: false,
            wants_svids,
            hints,
            authorities,
            algorithms,
        })
    }

    /// A name that is asked for takes the place of the matchers from now on (`auto_sni_san_validation`).
    pub fn let_names_replace_matchers(&mut self) {
        self.names_replace_matchers = true;
    }

    /// Verifies a chain at `now`. `name` is one that the certificate must be for besides all else
    /// (`auto_san_validation`).
    ///
    /// # Errors
    /// Why it is refused.
    pub fn verify(
        &self,
        peer: Peer,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: Option<&str>,
        now: UnixTime,
    ) -> Result<Verified, Refusal> {
        if self.demands_certificate() || name.is_some() {
            key_usage::check(leaf)?;
        }
        self.verify_but_key_usage(peer, leaf, intermediates, name, now)
    }

    /// The same, where the key usage is looked at elsewhere: a certificate that may not sign is let through.
    fn verify_but_key_usage(
        &self,
        peer: Peer,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: Option<&str>,
        now: UnixTime,
    ) -> Result<Verified, Refusal> {
        match self.check(peer, leaf, intermediates, name, now) {
            // Whatever is wrong: what leads nowhere may do so.
            Err(_) if self.config.accept_untrusted && self.config.spiffe.is_none() => Ok(Verified::Unverified),
            verdict => verdict,
        }
    }

    fn check(
        &self,
        peer: Peer,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: Option<&str>,
        now: UnixTime,
    ) -> Result<Verified, Refusal> {
        let mut verified = Verified::Unverified;
        if !self.demands_certificate() && name.is_none() {
            return Ok(verified);
        }
        let leaf = Parsed::parse(leaf).map_err(|why| Refusal::malformed(0, why))?;
        if !leaf.may_be_used_to(parsed::DIGITAL_SIGNATURE) {
            return Ok(verified);
        }
        if leaf.key.rsa_bits.is_some_and(|bits| bits < path::MIN_RSA_BITS) {
            return Err(FaultKind::WeakKey.at(0).into());
        }
        let svid = |why: &str| Refusal::new(Demand::Chain, why.to_owned());
        let anchors = match &self.trust {
            Trust::Nothing => None,
            Trust::Anchors(anchors) => Some(anchors),
            Trust::Domains(domains) => {
                spiffe::check_leaf(&leaf).map_err(|_| svid("cert precheck"))?;
                let id = spiffe::id(&leaf).map_err(svid)?;
                Some(domains.get(id.trust_domain).ok_or_else(|| svid(spiffe::NO_BUNDLE))?)
            }
        };
        if let Some(anchors) = anchors {
            let presented = parse_all(intermediates)?;
            let demands = Demands {
                anchors,
                crls: self.crls.as_ref(),
                // Of several trust domains, one may have lists and another none.
                all_crls: self.config.spiffe.is_none(),
                now: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
                peer,
                allow_expired: self.config.allow_expired_certificate,
                max_depth: self.config.max_verify_depth.map_or(MAX_DEPTH, |depth| depth.max(1) as usize),
                purpose_of_cas: self.config.spiffe.is_none(),
            };
            let path = path::verify(&leaf, &presented, &demands, &mut Budget::new(self.algorithms))?;
            if self.config.spiffe.is_some() || self.wants_svid_of(&leaf) {
                path.iter().skip(1).try_for_each(|issuer| spiffe::check_issuer(issuer)).map_err(svid)?;
            }
            verified = Verified::Trusted;
        }
        if name.is_some()
            && anchors.is_none()
            && self.config.certificate_pins.is_empty()
            && self.config.spki_pins.is_empty()
        {
            return Err(Refusal::unverifiable());
        }
        match name.map(|name| (name, san::is_for(name, &leaf))) {
            Some((_, true)) | None => {}
            Some((_, false)) if self.names_replace_matchers => return Err(Refusal::unmatched(&leaf)),
            Some((name, false)) => {
                let names = names_of(&leaf);
                let why = format!("verify SAN list, expected SANs: [{name}], certificate SANs: [{names}]");
                return Err(Refusal::new(Demand::San, why));
            }
        }
        if name.is_none() || !self.names_replace_matchers {
            self.check_names(&leaf)?;
        }
        let pins = (&self.config.certificate_pins, &self.config.spki_pins);
        if !pins.0.is_empty() || !pins.1.is_empty() {
            let is_pinned = |pins: &[[u8; 32]], data: &[u8]| {
                let digest = digest(&SHA256, data);
                pins.iter().any(|pin| pin == digest.as_ref())
            };
            if !is_pinned(pins.0, &leaf.der) && !is_pinned(pins.1, &leaf.key.der) {
                return Err(Refusal::new(Demand::Pin, "cert hash and spki".to_owned()));
            }
            verified = Verified::Trusted;
        }
        Ok(verified)
    }

    /// Asks the matchers, and the rules of SVIDs where SPIFFE IDs are what is matched.
    fn check_names(&self, leaf: &Parsed) -> Result<(), Refusal> {
        // The SPIFFE validator knows URIs alone.
        let counts = |matcher: &&SanMatcher| self.config.spiffe.is_none() || matcher.kind == SanType::Uri;
        let mut matchers = self.config.sans.iter().filter(counts).peekable();
        // Deprecated matchers are of all kinds, and IDs of one.
        let is_of_kind = |matcher: &SanMatcher| matcher.kind == SanType::Uri || !speaks_of_spiffe(matcher);
        if matchers.peek().is_some() && !matchers.any(|matcher| is_of_kind(matcher) && san::matches(matcher, leaf)) {
            return Err(match self.config.spiffe {
                Some(_) => Refusal::new(Demand::San, "SAN match".to_owned()),
                None => Refusal::unmatched(leaf),
            });
        }
        if self.config.spiffe.is_none() && self.wants_svid_of(leaf) {
            let svid = |why: &str| Refusal::new(Demand::San, why.to_owned());
            spiffe::id(leaf).map_err(svid)?;
            spiffe::check_leaf(leaf).map_err(svid)?;
        }
        Ok(())
    }

    /// True if the certificate must be an SVID: a matcher speaks of SPIFFE IDs, and the certificate has one, or nothing else
    /// lets it through.
    fn wants_svid_of(&self, leaf: &Parsed) -> bool {
        let claims = |name: &Name| matches!(name, Name::Uri(uri) if spiffe::claims_to_be_id(uri));
        let matches_otherwise = |matcher: &SanMatcher| !speaks_of_spiffe(matcher) && san::matches(matcher, leaf);
        self.wants_svids && (leaf.names.iter().any(claims) || !self.config.sans.iter().any(matches_otherwise))
    }

    /// Subjects that a server hints to clients.
    pub fn hints(&self) -> &[DistinguishedName] {
        &self.hints
    }

    /// All that is trusted, in the order that it is configured in.
    pub fn authorities(&self) -> &[Authority] {
        &self.authorities
    }

    /// The trust domains that the SPIFFE validator knows, those without an authority too.
    pub fn trust_domains(&self) -> impl Iterator<Item = &str> {
        let domains = match &self.trust {
            Trust::Domains(domains) => Some(domains),
            Trust::Nothing | Trust::Anchors(_) => None,
        };
        domains.into_iter().flat_map(|domains| domains.keys().map(String::as_str))
    }

    /// True if a client without a certificate is refused whatever else is said: what it would be known by is demanded.
    /// As in Envoy, `ACCEPT_UNTRUSTED` waives that, but not for the SPIFFE validator.
    pub fn requires_certificate(&self) -> bool {
        let config = &self.config;
        let demands = !config.sans.is_empty() || !config.certificate_pins.is_empty() || !config.spki_pins.is_empty();
        config.spiffe.is_some() || (demands && !config.accept_untrusted)
    }

    /// True if clients are asked for a certificate, be it only to tell of it.
    pub fn asks_for_certificate(&self) -> bool {
        self.config.accept_untrusted || self.demands_certificate()
    }

    /// True if the context demands anything that needs a certificate.
    fn demands_certificate(&self) -> bool {
        let config = &self.config;
        !matches!(self.trust, Trust::Nothing)
            || !config.sans.is_empty()
            || !config.certificate_pins.is_empty()
            || !config.spki_pins.is_empty()
    }
}

/// A certificate's names for a log. They are a peer's choice: only so many are told.
fn names_of(leaf: &Parsed) -> String {
    const MOST: usize = 20;
    leaf.names.iter().take(MOST).map(Name::to_string).collect::<Vec<_>>().join(", ")
}

/// True for a matcher whose pattern has the scheme of SPIFFE IDs in it.
fn speaks_of_spiffe(matcher: &SanMatcher) -> bool {
    matcher.matcher.pattern().to_ascii_lowercase().contains("spiffe:")
}

fn parse_all(certificates: &[CertificateDer<'_>]) -> Result<Vec<Parsed>, Refusal> {
    let parse =
        |(i, der): (usize, &CertificateDer<'_>)| Parsed::parse(der).map_err(|why| Refusal::malformed(i + 1, why));
    certificates.iter().enumerate().map(parse).collect()
}

impl Refusal {
    fn new(demand: Demand, why: String) -> Self {
        let details = format!("verify cert failed: {why}");
        Self { demand, error: CertificateError::Other(OtherError(Arc::new(Why(details.clone())))), details }
    }

    /// None of the names is one that a matcher asks for.
    fn unmatched(leaf: &Parsed) -> Self {
        Self::new(Demand::San, format!("SAN matcher, certificate SANs are [{}]", names_of(leaf)))
    }

    /// A name is demanded, and nobody vouches for names: whoever answers could have written it.
    pub fn unverifiable() -> Self {
        Self {
            demand: Demand::Chain,
            error: CertificateError::UnknownIssuer,
            details: "verify cert failed: a name is demanded, and there is no trusted_ca that would vouch for it"
                .to_owned(),
        }
    }

    fn malformed(depth: usize, why: &str) -> Self {
        let details = format!("verify cert failed: certificate {depth} of the chain {why}");
        Self { demand: Demand::Chain, error: CertificateError::BadEncoding, details }
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        let demand = if fault.kind.is_of_crl() { Demand::Crl } else { Demand::Chain };
        Self { demand, error: fault.kind.error(), details: format!("verify cert failed: {fault}") }
    }
}

/// A reason as an error.
#[derive(Debug)]
struct Why(String);

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Why {}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal.error {
            // What has no alert of its own carries the reason along.
            CertificateError::Other(_) => {
                Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal))))
            }
            error => Error::InvalidCertificate(error),
        }
    }
}

#[cfg(test)]
mod tests;
