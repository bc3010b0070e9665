//! What can be wrong with a message, in Envoy's response code details, with the status that answers it.

use crate::base::{ResetReason, Side, StreamError};
use http::StatusCode;

/// A message that is not acceptable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadMessage {
    pub status: StatusCode,
    pub details: &'static str,
}

impl BadMessage {
    const fn new(status: StatusCode, details: &'static str) -> Self {
        Self { status, details }
    }

    const fn bad_request(details: &'static str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, details)
    }

    /// The same as the end of a stream; `peer` sent it. Of an upstream's message Envoy tells no details.
    pub fn error(self, peer: Side) -> StreamError {
        let details = if peer == Side::Upstream { "" } else { self.details };
        StreamError::new(peer, ResetReason::ProtocolError, details)
    }
}

pub(super) const CODEC_ERROR: BadMessage = BadMessage::bad_request("http1.codec_error");
pub(super) const INVALID_CHARACTERS: BadMessage = BadMessage::bad_request("http1.invalid_characters");
pub(super) const INVALID_URL: BadMessage = BadMessage::bad_request("http1.invalid_url");
pub(super) const INVALID_SCHEME: BadMessage = BadMessage::bad_request("http1.invalid_scheme");
pub(super) const INVALID_AUTHORITY: BadMessage = BadMessage::bad_request("http.invalid_authority");
pub(super) const MISSING_HOST: BadMessage = BadMessage::bad_request("missing_host_header");
pub(super) const BODY_DISALLOWED: BadMessage = BadMessage::bad_request("http1.body_disallowed");
pub(super) const CHUNKED_CONTENT_LENGTH: BadMessage =
    BadMessage::bad_request("http1.content_length_and_chunked_not_allowed");
pub(super) const CONNECTION_HEADER: BadMessage = BadMessage::bad_request("http1.connection_header_rejected");
pub(super) const CONTENT_LENGTH_NOT_ALLOWED: BadMessage = BadMessage::bad_request("http1.content_length_not_allowed");
pub(super) const TRANSFER_ENCODING_NOT_ALLOWED: BadMessage =
    BadMessage::bad_request("http1.transfer_encoding_not_allowed");
pub(super) const TRANSFER_ENCODING: BadMessage =
    BadMessage::new(StatusCode::NOT_IMPLEMENTED, "http1.invalid_transfer_encoding");
pub(super) const LOW_VERSION: BadMessage = BadMessage::new(StatusCode::UPGRADE_REQUIRED, "low_version");
pub(super) const HEADERS_TOO_LARGE: BadMessage =
    BadMessage::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "http1.headers_too_large");
pub(super) const TOO_MANY_HEADERS: BadMessage =
    BadMessage::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "http1.too_many_headers");
pub(super) const HEADER_TIMEOUT: BadMessage = BadMessage::new(StatusCode::REQUEST_TIMEOUT, "request_header_timeout");
pub(super) const STREAM_TIMEOUT: BadMessage = BadMessage::new(StatusCode::REQUEST_TIMEOUT, "stream_idle_timeout");
/// The client went away in the middle of a head: there is nobody to answer.
pub(super) const DISCONNECTED: BadMessage = BadMessage::bad_request("downstream_remote_disconnect");

/// The status that answers a request whose body failed with these details.
pub fn status_of(details: &str) -> StatusCode {
    if details == HEADERS_TOO_LARGE.details || details == TOO_MANY_HEADERS.details {
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
    } else {
        StatusCode::BAD_REQUEST
    }
}
