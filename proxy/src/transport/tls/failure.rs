//! Why a handshake failed: which stat counts it, and Envoy's words for it.

use super::{
    hello::Bad,
    verify::{Demand, Refusal},
};
use rustls::{AlertDescription, Error, InvalidMessage, PeerIncompatible, PeerMisbehaved};
use std::io;

/// A handshake that failed.
#[derive(Debug)]
pub struct Failure {
    pub cause: Cause,
    /// `%DOWNSTREAM_TRANSPORT_FAILURE_REASON%`, `%UPSTREAM_TRANSPORT_FAILURE_REASON%`; may be empty.
    pub details: String,
}

/// What a failure counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A client without the certificate that is required.
    NoCertificate,
    /// The peer's certificate does not meet a demand.
    Refused(Demand),
    /// Anything else about the protocol.
    Protocol,
    /// The peer went away.
    Closed,
}

impl Failure {
    /// From what a handshake ended with, and what its verifier found.
    pub fn new(error: &io::Error, refusal: Option<&Refusal>) -> Self {
        if let Some(refusal) = refusal {
            return Self { cause: Cause::Refused(refusal.demand), details: refused(&refusal.details) };
        }
        let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
            return Self { cause: Cause::Closed, details: String::new() };
        };
        let cause = match error {
            Error::NoCertificatesPresented => Cause::NoCertificate,
            Error::InvalidCertificate(_) => Cause::Refused(Demand::Chain),
            _ => Cause::Protocol,
        };
        Self { cause, details: words(error) }
    }

    /// For the log.
    pub fn words(&self) -> &str {
        if self.details.is_empty() { "the peer closed the connection in the handshake" } else { &self.details }
    }

    /// A resumed session whose peer would be refused now.
    pub fn refused(refusal: &Refusal) -> Self {
        Self { cause: Cause::Refused(refusal.demand), details: refused(&refusal.details) }
    }

    /// A name that no certificate can be for.
    pub fn bad_name(name: &str) -> Self {
        Self { cause: Cause::Refused(Demand::San), details: refused(&format!("{name} is no name of a server")) }
    }

    /// What came is no ClientHello that is understood.
    pub fn hello(error: &Error) -> Self {
        let details = match error {
            Error::InvalidMessage(_) => library(0x83, "CLIENTHELLO_PARSE_FAILED"),
            other => words(other),
        };
        Self { cause: Cause::Protocol, details }
    }

    /// The first record is none that begins a connection; and the alert that says so, if one does.
    pub fn not_hello(first: &[u8]) -> (Self, Option<AlertDescription>) {
        let (alert, details) = match first {
            [b'G', b'E', b'T', b' ', ..]
            | [b'P', b'O', b'S', b'T', b' ', ..]
            | [b'H', b'E', b'A', b'D', b' ', ..]
            | [b'P', b'U', b'T', b' ', ..] => (None, library(0x9c, "HTTP_REQUEST")),
            [b'C', b'O', b'N', b'N', b'E', ..] => (None, library(0x9b, "HTTPS_PROXY_REQUEST")),
            [21, 3, _, _, _, _, alert, ..] => (None, alert_words(AlertDescription::from(*alert))),
            [22, 3, _, high, low, message, ..] if *message != 1 && (*high, *low) <= (0x40, 0xff) => {
                (Some(AlertDescription::UnexpectedMessage), library(0xdf, "UNEXPECTED_MESSAGE"))
            }
            [22, 3, ..] => (Some(AlertDescription::RecordOverflow), library(0x92, "ENCRYPTED_LENGTH_TOO_LONG")),
            [20..=23, 3, ..] => (Some(AlertDescription::UnexpectedMessage), library(0xe1, "UNEXPECTED_RECORD")),
            _ => (Some(AlertDescription::ProtocolVersion), library(0xf7, "WRONG_VERSION_NUMBER")),
        };
        (Self { cause: Cause::Protocol, details }, alert)
    }

    /// The client knows only versions that are no longer spoken.
    pub fn old_version() -> Self {
        Self { cause: Cause::Protocol, details: library(0xf0, "UNSUPPORTED_PROTOCOL") }
    }

    /// It is no hello, whatever the library may say.
    pub fn unreadable_hello() -> Self {
        Self { cause: Cause::Protocol, details: library(0x83, "CLIENTHELLO_PARSE_FAILED") }
    }

    /// No name of a server can be read in the hello; and the alert that says so.
    pub fn bad_server_name(bad: Bad) -> (Self, AlertDescription) {
        let alert = match bad {
            Bad::Encoding => AlertDescription::DecodeError,
            Bad::Name => AlertDescription::UnrecognisedName,
        };
        (Self { cause: Cause::Protocol, details: library(0x95, "ERROR_PARSING_EXTENSION") }, alert)
    }

    /// The client says that it tried a newer version, which is spoken here, and was refused.
    pub fn fallback() -> Self {
        Self { cause: Cause::Protocol, details: library(0x9d, "INAPPROPRIATE_FALLBACK") }
    }

    /// The client goes on with a connection that is none of ours.
    pub fn renegotiation() -> Self {
        Self { cause: Cause::Protocol, details: library(0xca, "RENEGOTIATION_MISMATCH") }
    }

    /// The client's renegotiation info cannot be read.
    pub fn renegotiation_encoding() -> Self {
        Self { cause: Cause::Protocol, details: library(0xc9, "RENEGOTIATION_ENCODING_ERR") }
    }

    /// The peer went away.
    pub fn closed() -> Self {
        Self { cause: Cause::Closed, details: String::new() }
    }

    /// The peer's certificate is none that can be read.
    pub fn unreadable(why: &str) -> Self {
        Self { cause: Cause::Refused(Demand::Chain), details: refused(why) }
    }

    /// The client names no server where one is required.
    pub fn no_server_name() -> Self {
        Self { cause: Cause::Protocol, details: library(0xea, "TLSV1_UNRECOGNIZED_NAME") }
    }
}

/// A certificate that is refused, as the TLS library of Envoy words it.
fn refused(why: &str) -> String {
    library(0x7d, &format!("CERTIFICATE_VERIFY_FAILED:{why}"))
}

/// An error of the TLS library by its reason.
fn library(reason: u32, name: &str) -> String {
    format!("TLS_error:|{}:SSL routines:OPENSSL_internal:{name}:TLS_error_end", 0x1000_0000 | reason).replace(' ', "_")
}

fn words(error: &Error) -> String {
    let (reason, name) = match error {
        Error::NoCertificatesPresented => {
            (0xc0, "PEER_DID_NOT_RETURN_A_CERTIFICATE:peer did not provide required client certificate")
        }
        Error::InvalidCertificate(_) => (0x7d, "CERTIFICATE_VERIFY_FAILED"),
        Error::DecryptError => (0x8b, "DECRYPTION_FAILED_OR_BAD_RECORD_MAC"),
        Error::PeerSentOversizedRecord => (0x92, "ENCRYPTED_LENGTH_TOO_LONG"),
        Error::InappropriateMessage { .. } | Error::InappropriateHandshakeMessage { .. } => {
            (0xdf, "UNEXPECTED_MESSAGE")
        }
        Error::InvalidMessage(message) => match message {
            InvalidMessage::UnknownProtocolVersion | InvalidMessage::InvalidContentType => {
                (0xf7, "WRONG_VERSION_NUMBER")
            }
            InvalidMessage::MessageTooLarge | InvalidMessage::HandshakePayloadTooLarge => {
                (0x96, "EXCESSIVE_MESSAGE_SIZE")
            }
            _ => (0x89, "DECODE_ERROR"),
        },
        Error::PeerIncompatible(why) => match why {
            PeerIncompatible::NoCipherSuitesInCommon => (0xb8, "NO_SHARED_CIPHER"),
            PeerIncompatible::NoKxGroupsInCommon => (0x10a, "NO_SHARED_GROUP"),
            PeerIncompatible::NoSignatureSchemesInCommon => (0xfd, "NO_COMMON_SIGNATURE_ALGORITHMS"),
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled => (0xf0, "UNSUPPORTED_PROTOCOL"),
            _ => (0x89, "DECODE_ERROR"),
        },
        Error::PeerMisbehaved(PeerMisbehaved::BadCertChainExtensions) => (0x12e, "KEY_USAGE_BIT_INCORRECT"),
        Error::PeerMisbehaved(PeerMisbehaved::InvalidCertCompression) => (0x89, "DECODE_ERROR"),
        Error::PeerMisbehaved(_) => (0xdf, "UNEXPECTED_MESSAGE"),
        Error::AlertReceived(alert) => return alert_words(*alert),
        Error::NoApplicationProtocol => (0x108, "NO_APPLICATION_PROTOCOL"),
        _ => (0x44, "INTERNAL_ERROR"),
    };
    library(reason, name)
}

/// Reasons of received alerts are their numbers and this.
pub const ALERT_REASONS: u32 = 1000;

fn alert_words(alert: AlertDescription) -> String {
    library(ALERT_REASONS + u32::from(u8::from(alert)), alert_name(alert))
}

/// The name of an alert in Envoy's TLS library.
pub fn alert_name(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::CloseNotify => "SSLV3_ALERT_CLOSE_NOTIFY",
        AlertDescription::UnexpectedMessage => "SSLV3_ALERT_UNEXPECTED_MESSAGE",
        AlertDescription::BadRecordMac => "SSLV3_ALERT_BAD_RECORD_MAC",
        AlertDescription::HandshakeFailure => "SSLV3_ALERT_HANDSHAKE_FAILURE",
        AlertDescription::BadCertificate => "SSLV3_ALERT_BAD_CERTIFICATE",
        AlertDescription::UnsupportedCertificate => "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        AlertDescription::CertificateRevoked => "SSLV3_ALERT_CERTIFICATE_REVOKED",
        AlertDescription::CertificateExpired => "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        AlertDescription::CertificateUnknown => "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        AlertDescription::IllegalParameter => "SSLV3_ALERT_ILLEGAL_PARAMETER",
        AlertDescription::UnknownCA => "TLSV1_ALERT_UNKNOWN_CA",
        AlertDescription::AccessDenied => "TLSV1_ALERT_ACCESS_DENIED",
        AlertDescription::DecodeError => "TLSV1_ALERT_DECODE_ERROR",
        AlertDescription::DecryptError => "TLSV1_ALERT_DECRYPT_ERROR",
        AlertDescription::ProtocolVersion => "TLSV1_ALERT_PROTOCOL_VERSION",
        AlertDescription::InsufficientSecurity => "TLSV1_ALERT_INSUFFICIENT_SECURITY",
        AlertDescription::InternalError => "TLSV1_ALERT_INTERNAL_ERROR",
        AlertDescription::UserCanceled => "TLSV1_ALERT_USER_CANCELLED",
        AlertDescription::UnrecognisedName => "TLSV1_ALERT_UNRECOGNIZED_NAME",
        AlertDescription::CertificateRequired => "TLSV1_ALERT_CERTIFICATE_REQUIRED",
        AlertDescription::NoApplicationProtocol => "TLSV1_ALERT_NO_APPLICATION_PROTOCOL",
        _ => "UNKNOWN_ALERT_TYPE",
    }
}
