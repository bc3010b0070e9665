//! Why a stream ended before its time: by whom, how, and whether another try is safe.

use super::ResponseFlag;
use std::{borrow::Cow, fmt};

/// Whose doing it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Downstream,
    Upstream,
    /// A limit, policy or timeout of this proxy.
    Ours,
}

/// Envoy's `StreamResetReason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetReason {
    /// The peer closed or reset the connection.
    ConnectionTermination,
    /// No connection could be had.
    LocalConnectionFailure,
    RemoteConnectionFailure,
    /// The connect timeout passed.
    ConnectionTimeout,
    /// We reset the stream.
    LocalReset,
    /// REFUSED_STREAM by us, by the peer.
    LocalRefusedStreamReset,
    RemoteRefusedStreamReset,
    /// The peer reset the stream.
    RemoteReset,
    /// A breaker was open or a pool full.
    Overflow,
    /// The peer spoke no valid HTTP.
    ProtocolError,
    /// CONNECT_ERROR from the peer.
    ConnectError,
    OverloadManager,
}

impl ResetReason {
    /// The word in `upstream_reset_before_response_started{...}` and in logs, as Envoy spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConnectionTermination => "connection termination",
            Self::LocalConnectionFailure => "local connection failure",
            Self::RemoteConnectionFailure => "remote connection failure",
            Self::ConnectionTimeout => "connection timeout",
            Self::LocalReset => "local reset",
            Self::LocalRefusedStreamReset => "local refused-stream reset",
            Self::RemoteRefusedStreamReset => "remote refused-stream reset",
            Self::RemoteReset => "remote reset",
            Self::Overflow => "overflow",
            Self::ProtocolError => "protocol error",
            Self::ConnectError => "remote error with CONNECT request",
            Self::OverloadManager => "overload manager reset",
        }
    }

    /// The response flag that this reason sets when an upstream did it.
    pub fn upstream_flag(self) -> ResponseFlag {
        match self {
            Self::ConnectionTermination => ResponseFlag::UpstreamConnectionTermination,
            Self::LocalConnectionFailure | Self::RemoteConnectionFailure | Self::ConnectionTimeout => {
                ResponseFlag::UpstreamConnectionFailure
            }
            Self::LocalReset | Self::LocalRefusedStreamReset => ResponseFlag::LocalReset,
            Self::RemoteReset | Self::RemoteRefusedStreamReset | Self::ConnectError => {
                ResponseFlag::UpstreamRemoteReset
            }
            Self::Overflow => ResponseFlag::UpstreamOverflow,
            Self::ProtocolError => ResponseFlag::UpstreamProtocolError,
            Self::OverloadManager => ResponseFlag::OverloadManager,
        }
    }
}

/// The end of a stream, or of the connection below it, before its message was whole.
#[derive(Clone, Debug)]
pub struct StreamError {
    pub side: Side,
    pub reason: ResetReason,
    /// Envoy's response code details or transport failure reason, where one is known: `http1.codec_error`, an OS error.
    pub details: Cow<'static, str>,
    /// True if nothing of the request was processed, so that it may be sent again.
    pub retry_is_safe: bool,
}

impl StreamError {
    pub fn new(side: Side, reason: ResetReason, details: impl Into<Cow<'static, str>>) -> Self {
        Self { side, reason, details: details.into(), retry_is_safe: false }
    }

    /// The same, with the promise that the peer processed nothing.
    pub fn retry_safe(mut self) -> Self {
        self.retry_is_safe = true;
        self
    }
}

impl fmt::Display for StreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?}): {}", self.reason.as_str(), self.side, self.details)
    }
}

impl std::error::Error for StreamError {}
