//! What may be wrong with a path, in the words and with the alerts of Envoy's TLS library, which users search their logs for.

use rustls::{CertificateError, OtherError};
use std::{fmt, sync::Arc};

/// What is wrong, and with which certificate of the path (0: the peer's own).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub kind: FaultKind,
    pub depth: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    NoIssuer,
    SelfSigned,
    SelfSignedInChain,
    Expired,
    NotYetValid,
    BadSignature,
    /// Signed in a way, or by a key, that is not supported or too weak.
    UnsupportedSignature,
    NotCa,
    PathLength,
    Purpose,
    CriticalExtension,
    InvalidExtension,
    TooLong,
    Revoked,
    NoCrl,
    CrlExpired,
    CrlNotYetValid,
    CrlSignature,
    CrlIssuerUsage,
    CrlCriticalExtension,
    NotPermitted,
    Excluded,
    UnsupportedConstraint,
    WeakKey,
}

impl FaultKind {
    pub fn at(self, depth: usize) -> Fault {
        Fault { kind: self, depth }
    }

    /// True for what CRLs say.
    pub fn is_of_crl(self) -> bool {
        use FaultKind::*;
        matches!(
            self,
            Revoked | NoCrl | CrlExpired | CrlNotYetValid | CrlSignature | CrlIssuerUsage | CrlCriticalExtension
        )
    }

    fn words(self) -> &'static str {
        use FaultKind::*;
        match self {
            NoIssuer => "unable to get local issuer certificate",
            SelfSigned => "self signed certificate",
            SelfSignedInChain => "self signed certificate in certificate chain",
            Expired => "certificate has expired",
            NotYetValid => "certificate is not yet valid",
            BadSignature => "certificate signature failure",
            UnsupportedSignature => "unsupported signature algorithm",
            NotCa => "invalid CA certificate",
            PathLength => "path length constraint exceeded",
            Purpose => "unsupported certificate purpose",
            CriticalExtension => "unhandled critical extension",
            InvalidExtension => "invalid or inconsistent certificate extension",
            TooLong => "certificate chain too long",
            Revoked => "certificate revoked",
            NoCrl => "unable to get certificate CRL",
            CrlExpired => "CRL has expired",
            CrlNotYetValid => "CRL is not yet valid",
            CrlSignature => "CRL signature failure",
            CrlIssuerUsage => "key usage does not include CRL signing",
            CrlCriticalExtension => "unhandled critical CRL extension",
            NotPermitted => "permitted subtree violation",
            Excluded => "excluded subtree violation",
            UnsupportedConstraint => "unsupported name constraint type",
            WeakKey => "RSA key of less than 2048 bits",
        }
    }

    /// The error of rustls whose alert is the one that Envoy sends.
    pub fn error(self) -> CertificateError {
        use FaultKind::*;
        match self {
            NoIssuer | SelfSigned | SelfSignedInChain | NotCa | PathLength | TooLong | NoCrl => {
                CertificateError::UnknownIssuer
            }
            Expired | CrlExpired => CertificateError::Expired,
            NotYetValid | CrlNotYetValid => CertificateError::NotValidYet,
            BadSignature | CrlSignature => CertificateError::BadSignature,
            Purpose => CertificateError::InvalidPurpose,
            Revoked => CertificateError::Revoked,
            UnsupportedSignature
            | CriticalExtension
            | InvalidExtension
            | CrlIssuerUsage
            | CrlCriticalExtension
            | NotPermitted
            | Excluded
            | UnsupportedConstraint
            | WeakKey => CertificateError::Other(OtherError(Arc::new(Words(self)))),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of_crl = match self.kind.is_of_crl() {
            true => "certificate revocation check against provided CRLs failed: ",
            false => "",
        };
        let words = self.kind.words();
        write!(f, "X509_verify_cert: certificate verification error at depth {}: {of_crl}{words}", self.depth)
    }
}

#[derive(Debug)]
struct Words(FaultKind);

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.words())
    }
}

impl std::error::Error for Words {}
