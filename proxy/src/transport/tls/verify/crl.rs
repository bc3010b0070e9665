//! Certificate revocation lists: read when a context is compiled, asked for each certificate of a path.
//!
//! Invariant: where lists are asked and the right one is missing, the certificate is refused.

use super::{
    der,
    fault::{Fault, FaultKind},
    parsed::{CRL_SIGN, Parsed, Signed},
    path::Budget,
};
use std::collections::{HashMap, HashSet};
use x509_parser::{
    extensions::ParsedExtension,
    prelude::{CertificateRevocationList, FromDer},
};

/// Lists by their issuer's name.
#[derive(Debug)]
pub struct Crls {
    by_issuer: HashMap<Box<[u8]>, Vec<Crl>>,
    only_leaf: bool,
}

#[derive(Debug)]
struct Crl {
    issuer: Box<[u8]>,
    signed: Signed,
    authority_key_id: Option<Box<[u8]>>,
    /// Seconds since the epoch.
    this_update: i64,
    /// Seconds since the epoch.
    next_update: Option<i64>,
    revoked: HashSet<Box<[u8]>>,
    /// It says of some certificates only, or is to be understood in a way that is not known.
    has_unknown_critical: bool,
}

impl Crls {
    /// None yet. `only_leaf`: only the peer's own certificate will be looked up.
    pub fn new(only_leaf: bool) -> Self {
        Self { by_issuer: HashMap::new(), only_leaf }
    }

    /// Adds a DER list.
    ///
    /// # Errors
    /// Why it is none.
    pub fn add(&mut self, der: &[u8]) -> Result<(), &'static str> {
        let crl = Crl::parse(der)?;
        self.by_issuer.entry(crl.issuer.clone()).or_default().push(crl);
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.by_issuer.is_empty()
    }

    /// True if an issuer of a certificate of the path has a list here.
    pub(super) fn are_of(&self, path: &[&Parsed]) -> bool {
        path.iter().any(|certificate| self.by_issuer.contains_key(&certificate.issuer))
    }

    /// Looks up the certificates of a path. `now`: `None` if validity in time does not count.
    pub(super) fn check(&self, path: &[&Parsed], now: Option<i64>, budget: &mut Budget) -> Result<(), Fault> {
        let count = if self.only_leaf { 1 } else { path.len() };
        for (depth, certificate) in path.iter().enumerate().take(count) {
            // The last one answers for itself if it is a root; else who would answer is not known.
            let issuer = path.get(depth + 1).or(certificate.is_self_signed().then_some(certificate));
            self.look_up(certificate, issuer.copied(), now, budget).map_err(|kind| kind.at(depth))?;
        }
        Ok(())
    }

    fn look_up(
        &self,
        certificate: &Parsed,
        issuer: Option<&Parsed>,
        now: Option<i64>,
        budget: &mut Budget,
    ) -> Result<(), FaultKind> {
        let of_issuer = |crl: &&Crl| match (&crl.authority_key_id, issuer.and_then(|it| it.subject_key_id.as_ref())) {
            (Some(wanted), Some(found)) => wanted == found,
            _ => true,
        };
        let lists = self.by_issuer.get(&certificate.issuer).into_iter().flatten().filter(of_issuer);
        // One that is valid now if there is one, the newest of these, the first of those.
        let crl = lists
            .rev()
            .max_by_key(|crl| (crl.validity(now).is_ok(), !crl.has_unknown_critical, crl.this_update))
            .ok_or(FaultKind::NoCrl)?;
        let issuer = issuer.ok_or(FaultKind::NoCrl)?;
        if !issuer.may_be_used_to(CRL_SIGN) {
            return Err(FaultKind::CrlIssuerUsage);
        }
        crl.validity(now)?;
        budget.verify(&crl.signed, &issuer.key).map_err(|kind| match kind {
            FaultKind::TooLong => kind,
            _ => FaultKind::CrlSignature,
        })?;
        if crl.has_unknown_critical {
            return Err(FaultKind::CrlCriticalExtension);
        }
        match crl.revoked.contains(&certificate.serial) {
            true => Err(FaultKind::Revoked),
            false => Ok(()),
        }
    }
}

impl Crl {
    fn parse(whole: &[u8]) -> Result<Self, &'static str> {
        let (rest, crl) = CertificateRevocationList::from_der(whole).map_err(|_| "is no X.509 CRL")?;
        if !rest.is_empty() {
            return Err("has bytes after its end");
        }
        let signed = Signed::parse(whole).ok_or("is no X.509 CRL")?;
        let (algorithm, issuer) = algorithm_and_issuer(&signed.message).ok_or("is no X.509 CRL")?;
        if algorithm != &*signed.algorithm {
            return Err("names two signature algorithms");
        }
        let issuer = issuer.into();
        let entries = || crl.iter_revoked_certificates().flat_map(|entry| entry.extensions());
        Ok(Self {
            issuer,
            authority_key_id: crl.extensions().iter().find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0.into()),
                _ => None,
            }),
            this_update: crl.last_update().timestamp(),
            next_update: crl.next_update().map(|time| time.timestamp()),
            revoked: crl.iter_revoked_certificates().map(|entry| entry.raw_serial().into()).collect(),
            has_unknown_critical: crl.extensions().iter().chain(entries()).any(|extension| {
                let is_known = matches!(
                    extension.parsed_extension(),
                    ParsedExtension::AuthorityKeyIdentifier(_)
                        | ParsedExtension::CRLNumber(_)
                        | ParsedExtension::ReasonCode(_)
                        | ParsedExtension::InvalidityDate(_)
                );
                extension.critical && !is_known
            }),
            signed,
        })
    }

    fn validity(&self, now: Option<i64>) -> Result<(), FaultKind> {
        let Some(now) = now else { return Ok(()) };
        if now < self.this_update {
            return Err(FaultKind::CrlNotYetValid);
        }
        match self.next_update.is_some_and(|next| next < now) {
            true => Err(FaultKind::CrlExpired),
            false => Ok(()),
        }
    }
}

/// Where they stand in the signed part.
fn algorithm_and_issuer(message: &[u8]) -> Option<(&[u8], &[u8])> {
    let (fields, _) = der::expect(message, der::SEQUENCE)?;
    let fields = match der::expect(fields, der::INTEGER) {
        Some((_, rest)) => rest,
        None => fields,
    };
    let (algorithm, fields) = der::expect(fields, der::SEQUENCE)?;
    let (issuer, _) = der::element(fields)?;
    Some((algorithm, issuer))
}
