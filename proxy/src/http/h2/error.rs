//! How streams end, as Envoy's reset reasons, and the codes that tell the peer.

use super::{frame::Code, streams::Over};
use crate::base::{ResetReason, Side, StreamError};

/// Envoy's response code details of this codec.
pub(super) const REMOTE_RESET: &str = "http2.remote_reset";
pub(super) const REMOTE_REFUSE: &str = "http2.remote_refuse";
pub(super) const MESSAGING: &str = "http2.violation.of.messaging.rule";
pub(super) const TOO_MANY_HEADERS: &str = "http2.too_many_headers";
pub(super) const UNDERSCORE: &str = "http2.unexpected_underscore";
pub(super) const PING_TIMEOUT: &str = "http2_ping_timeout";
pub(super) const CODEC: &str = "http2.codec_error";
pub(super) const INBOUND_FLOOD: &str = "http2.inbound_frames_flood";
pub(super) const OUTBOUND_FLOOD: &str = "http2.outbound_frames_flood";

/// The code that tells the peer why we reset a stream.
pub(super) fn reset_code(reason: ResetReason) -> Code {
    match reason {
        ResetReason::LocalRefusedStreamReset => Code::REFUSED_STREAM,
        ResetReason::ConnectError => Code::CONNECT_ERROR,
        ResetReason::ProtocolError => Code::PROTOCOL_ERROR,
        _ => Code::INTERNAL_ERROR,
    }
}

/// What the end of a stream looks like to who used it.
pub(super) fn stream_error(side: Side, over: Over) -> StreamError {
    match over {
        Over::Local => StreamError::new(side, ResetReason::LocalReset, ""),
        Over::Remote(Code::REFUSED_STREAM) | Over::Refused => {
            StreamError::new(side, ResetReason::RemoteRefusedStreamReset, REMOTE_REFUSE).retry_safe()
        }
        Over::Remote(Code::CONNECT_ERROR) => StreamError::new(side, ResetReason::ConnectError, REMOTE_RESET),
        Over::Remote(_) => StreamError::new(side, ResetReason::RemoteReset, REMOTE_RESET),
        Over::Messaging => {
            let reason = if side == Side::Upstream { ResetReason::ProtocolError } else { ResetReason::LocalReset };
            StreamError::new(side, reason, MESSAGING)
        }
        Over::TooLarge => StreamError::new(side, ResetReason::ProtocolError, TOO_MANY_HEADERS),
    }
}
