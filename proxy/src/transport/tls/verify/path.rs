//! Paths from a peer's certificate to something that is trusted (RFC 5280, 6): built, and checked.
//!
//! rustls-webpki cannot take its place here: what Envoy's users rely on is a certificate that is trusted itself, expired ones that are
//! let through, deep paths, roots whose own validity counts, and errors that tell of a depth; and it does not look at key usages.
//! The cryptography is the TLS library's.
//!
//! Invariant: the work for one path is bounded, whatever a peer presents.

use super::{
    constraints::Comparisons,
    crl::Crls,
    fault::{Fault, FaultKind},
    parsed::{DIGITAL_SIGNATURE, KEY_AGREEMENT, KEY_ENCIPHERMENT, Parsed, PublicKeyInfo, Signed},
    signatures,
};
use crate::transport::tls::verify::Peer;
use rustls::pki_types::SignatureVerificationAlgorithm;
use std::{collections::HashMap, sync::Arc};

/// Signatures that are checked for one path, CRLs' included.
const SIGNATURES: usize = 32;
/// Candidates for an issuer that are looked at for one path.
const CANDIDATES: usize = 1000;
/// RSA keys below are refused.
pub const MIN_RSA_BITS: usize = 2048;

/// Certificates that are trusted, by subject.
#[derive(Debug, Default)]
pub struct Anchors {
    by_subject: HashMap<Box<[u8]>, Vec<Arc<Parsed>>>,
}

impl Anchors {
    pub fn new(certificates: impl IntoIterator<Item = Arc<Parsed>>) -> Self {
        let mut anchors = Self::default();
        certificates.into_iter().for_each(|certificate| anchors.add(certificate));
        anchors
    }

    fn add(&mut self, certificate: Arc<Parsed>) {
        let same = self.by_subject.entry(certificate.subject.clone()).or_default();
        if same.iter().all(|known| known.der != certificate.der) {
            same.push(certificate);
        }
    }

    fn with_subject(&self, subject: &[u8]) -> impl Iterator<Item = &Parsed> + Clone {
        self.by_subject.get(subject).into_iter().flatten().map(|certificate| &**certificate)
    }

    fn contains(&self, certificate: &Parsed) -> bool {
        self.with_subject(&certificate.subject).any(|known| known.der == certificate.der)
    }
}

/// What is asked of a path.
#[derive(Debug)]
pub struct Demands<'a> {
    pub anchors: &'a Anchors,
    pub crls: Option<&'a Crls>,
    /// Lists are asked even where none is by an issuer of the path.
    pub all_crls: bool,
    /// Seconds since the epoch.
    pub now: i64,
    pub peer: Peer,
    pub allow_expired: bool,
    /// Certificates after the peer's own, the first that is trusted among them.
    pub max_depth: usize,
    /// CAs' extended key usages count too.
    pub purpose_of_cas: bool,
}

/// The algorithms whose signatures are understood.
pub type Algorithms = &'static [&'static dyn SignatureVerificationAlgorithm];

/// Work that may still be done.
#[derive(Debug)]
pub struct Budget {
    algorithms: Algorithms,
    signatures: usize,
    candidates: usize,
}

impl Budget {
    pub fn new(algorithms: Algorithms) -> Self {
        Self { algorithms, signatures: SIGNATURES, candidates: CANDIDATES }
    }

    /// Checks a signature.
    pub fn verify(&mut self, signed: &Signed, by: &PublicKeyInfo) -> Result<(), FaultKind> {
        if by.rsa_bits.is_some_and(|bits| bits < MIN_RSA_BITS) {
            return Err(FaultKind::WeakKey);
        }
        let fits = |algorithm: &&&dyn SignatureVerificationAlgorithm| {
            algorithm.signature_alg_id().as_ref() == &*signed.algorithm
                && algorithm.public_key_alg_id().as_ref() == &*by.algorithm
        };
        let algorithm = self.algorithms.iter().find(fits).ok_or(FaultKind::UnsupportedSignature)?;
        self.signatures = self.signatures.checked_sub(1).ok_or(FaultKind::TooLong)?;
        signatures::check(*algorithm, signed, by).map_err(|_| FaultKind::BadSignature)
    }
}

/// Finds a path from `leaf` to an anchor and checks it. The path begins with the leaf.
///
/// # Errors
/// What is wrong with the path, or with the most promising one if there is none.
pub fn verify<'a>(
    leaf: &'a Parsed,
    presented: &'a [Parsed],
    demands: &Demands<'a>,
    budget: &mut Budget,
) -> Result<Vec<&'a Parsed>, Fault> {
    let mut builder = Builder { presented, demands, budget, path: vec![leaf] };
    builder.extend(demands.anchors.contains(leaf))?;
    let path = builder.path;
    check_extensions(&path, demands)?;
    let asks = |crls: &&Crls| demands.all_crls || crls.are_of(&path);
    if let Some(crls) = demands.crls.filter(asks) {
        crls.check(&path, (!demands.allow_expired).then_some(demands.now), budget)?;
    }
    // The anchor's end comes first, as signatures are checked from there.
    for (depth, certificate) in path.iter().enumerate().rev().filter(|_| !demands.allow_expired) {
        if demands.now < certificate.not_before {
            return Err(FaultKind::NotYetValid.at(depth));
        }
        if demands.now > certificate.not_after {
            return Err(FaultKind::Expired.at(depth));
        }
    }
    check_constraints(&path)?;
    Ok(path)
}

struct Builder<'a, 'b> {
    presented: &'a [Parsed],
    demands: &'b Demands<'a>,
    budget: &'b mut Budget,
    path: Vec<&'a Parsed>,
}

impl<'a> Builder<'a, '_> {
    /// Extends the path until it ends; true in `trusted` if there is an anchor in it already. What is trusted comes before
    /// what is presented.
    fn extend(&mut self, trusted: bool) -> Result<(), Fault> {
        let depth = self.path.len() - 1;
        let Some(&last) = self.path.last() else { return Err(FaultKind::NoIssuer.at(0)) };
        let end = |fault: FaultKind| if trusted { Ok(()) } else { Err(fault.at(depth)) };
        if last.is_self_signed() {
            return end(if depth == 0 { FaultKind::SelfSigned } else { FaultKind::SelfSignedInChain });
        }
        if depth >= self.demands.max_depth {
            return end(FaultKind::NoIssuer);
        }
        let mut fault = FaultKind::NoIssuer.at(depth);
        let anchors = self.demands.anchors;
        if self.follow(last, anchors.with_subject(&last.issuer), true, &mut fault) || trusted {
            return Ok(());
        }
        match self.follow(last, self.presented.iter(), false, &mut fault) {
            true => Ok(()),
            false => Err(fault),
        }
    }

    /// Tries candidates for the issuer of `last`, those first that are valid now. The first thing wrong stays in `fault`.
    fn follow(
        &mut self,
        last: &'a Parsed,
        candidates: impl Iterator<Item = &'a Parsed> + Clone,
        trusted: bool,
        fault: &mut Fault,
    ) -> bool {
        let now = self.demands.now;
        for wanted in [true, false] {
            for issuer in candidates.clone() {
                let is_valid = (issuer.not_before..=issuer.not_after).contains(&now);
                let is_in_path = || self.path.iter().any(|known| known.der == issuer.der);
                if is_valid != wanted
                    || !last.may_be_issued_by(issuer)
                    || !issuer.may_be_used_to(super::parsed::KEY_CERT_SIGN)
                    || is_in_path()
                {
                    continue;
                }
                let depth = self.path.len() - 1;
                let Some(left) = self.budget.candidates.checked_sub(1) else {
                    *fault = FaultKind::TooLong.at(depth);
                    return false;
                };
                self.budget.candidates = left;
                let found = match self.budget.verify(&last.signed, &issuer.key) {
                    Ok(()) => {
                        self.path.push(issuer);
                        let found = self.extend(trusted);
                        if found.is_err() {
                            self.path.truncate(depth + 1);
                        }
                        found
                    }
                    // The weak key is the issuer's.
                    Err(kind @ FaultKind::WeakKey) => Err(kind.at(depth + 1)),
                    Err(kind) => Err(kind.at(depth)),
                };
                match found {
                    Ok(()) => return true,
                    Err(found) if fault.kind == FaultKind::NoIssuer => *fault = found,
                    Err(_) => {}
                }
            }
        }
        false
    }
}

fn check_extensions(path: &[&Parsed], demands: &Demands<'_>) -> Result<(), Fault> {
    // Certificates below that do not issue themselves.
    let mut below = 0_usize;
    for (depth, certificate) in path.iter().enumerate() {
        if certificate.has_unknown_critical {
            return Err(FaultKind::CriticalExtension.at(depth));
        }
        if depth > 0 && !certificate.is_ca() {
            return Err(FaultKind::NotCa.at(depth));
        }
        if depth == 0 || demands.purpose_of_cas {
            check_purpose(certificate, depth, demands.peer)?;
        }
        let limit = certificate.basic_constraints.and_then(|constraints| constraints.path_len);
        // The peer's own certificate is not counted.
        if depth > 1 && limit.is_some_and(|limit| below - 1 > limit as usize) {
            return Err(FaultKind::PathLength.at(depth));
        }
        if certificate.key.rsa_bits.is_some_and(|bits| bits < MIN_RSA_BITS) {
            return Err(FaultKind::WeakKey.at(depth));
        }
        if depth == 0 || !certificate.is_self_issued() {
            below += 1;
        }
    }
    Ok(())
}

fn check_purpose(certificate: &Parsed, depth: usize, peer: Peer) -> Result<(), Fault> {
    let usages = match peer {
        Peer::Client => DIGITAL_SIGNATURE | KEY_AGREEMENT,
        Peer::Server => DIGITAL_SIGNATURE | KEY_ENCIPHERMENT | KEY_AGREEMENT,
    };
    let is_for_peer = certificate.extended_key_usage.is_none_or(|usage| match peer {
        Peer::Client => usage.client,
        Peer::Server => usage.server,
    });
    match is_for_peer && (depth > 0 || certificate.may_be_used_to(usages)) {
        true => Ok(()),
        false => Err(FaultKind::Purpose.at(depth)),
    }
}

fn check_constraints(path: &[&Parsed]) -> Result<(), Fault> {
    let mut left = Comparisons::default();
    for (depth, certificate) in path.iter().enumerate() {
        // A CA that issued itself is not bound by its own kind.
        if depth > 0 && certificate.is_self_issued() {
            continue;
        }
        for constraints in path.iter().skip(depth + 1).filter_map(|issuer| issuer.constraints.as_ref()) {
            constraints.check(certificate, &mut left).map_err(|kind| kind.at(depth))?;
        }
    }
    Ok(())
}
