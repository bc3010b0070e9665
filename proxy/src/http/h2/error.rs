//! The crate's errors and RST_STREAM codes as Envoy's reset reasons, and back.

use crate::base::{ResetReason, Side, StreamError};
use h2::Reason;

/// Envoy's response code details of this codec.
pub(super) const REMOTE_RESET: &str = "http2.remote_reset";
pub(super) const REMOTE_REFUSE: &str = "http2.remote_refuse";
pub(super) const MESSAGING: &str = "http2.violation.of.messaging.rule";
pub(super) const TOO_MANY_HEADERS: &str = "http2.too_many_headers";
pub(super) const UNDERSCORE: &str = "http2.unexpected_underscore";
pub(super) const PING_TIMEOUT: &str = "http2_ping_timeout";

/// The code that tells the peer why we reset a stream.
pub(super) fn reset_code(reason: ResetReason) -> Reason {
    match reason {
        ResetReason::LocalRefusedStreamReset => Reason::REFUSED_STREAM,
        ResetReason::ConnectError => Reason::CONNECT_ERROR,
        ResetReason::ProtocolError => Reason::PROTOCOL_ERROR,
        _ => Reason::INTERNAL_ERROR,
    }
}

/// What a peer's RST_STREAM means.
pub(super) fn remote_reset(side: Side, code: Reason) -> StreamError {
    match code {
        Reason::REFUSED_STREAM => refused(side),
        Reason::CONNECT_ERROR => StreamError::new(side, ResetReason::ConnectError, REMOTE_RESET),
        _ => StreamError::new(side, ResetReason::RemoteReset, REMOTE_RESET),
    }
}

/// The peer did nothing with the stream.
pub(super) fn refused(side: Side) -> StreamError {
    StreamError::new(side, ResetReason::RemoteRefusedStreamReset, REMOTE_REFUSE).retry_safe()
}

/// The peer broke HTTP's rules on this stream.
pub(super) fn messaging(side: Side) -> StreamError {
    let reason = if side == Side::Upstream { ResetReason::ProtocolError } else { ResetReason::LocalReset };
    StreamError::new(side, reason, MESSAGING)
}

/// An error that the crate gave for a stream. `closed` is how the connection ended, if it did.
pub(super) fn stream_error(side: Side, error: h2::Error, closed: Option<StreamError>) -> StreamError {
    if error.is_reset() {
        let code = error.reason().unwrap_or(Reason::INTERNAL_ERROR);
        if error.is_remote() {
            return remote_reset(side, code);
        }
        if error.is_library() && code == Reason::PROTOCOL_ERROR {
            return messaging(side);
        }
        return StreamError::new(side, ResetReason::LocalReset, "");
    }
    if error.is_go_away() && error.is_remote() && side == Side::Upstream {
        // The stream's id is above the one that GOAWAY named.
        return refused(side);
    }
    if let Some(closed) = closed {
        return closed;
    }
    if error.is_go_away() && error.is_library() {
        return StreamError::new(side, ResetReason::ProtocolError, "http2.codec_error");
    }
    match error.get_io() {
        Some(io) => StreamError::new(side, ResetReason::ConnectionTermination, io.to_string()),
        None => StreamError::new(side, ResetReason::ConnectionTermination, ""),
    }
}
