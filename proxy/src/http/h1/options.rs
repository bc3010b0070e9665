//! What can be configured of HTTP/1 connections on both sides. The defaults are Envoy's.
//!
//! Compiled from configuration once; shared by all connections of a listener or cluster.

use std::time::Duration;
pub use weft_config::http_protocol_options::{HeaderKeyFormat, Http1ProtocolOptions};

/// How large a head may be.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// Bytes of the head with its start line.
    pub bytes: usize,
    pub headers: usize,
}

/// A downstream connection's options.
#[derive(Debug)]
pub struct ServerOptions {
    /// With `override_stream_error_on_invalid_http_message` filled in from the connection manager where it is `None`.
    pub http1: Http1ProtocolOptions,
    pub limits: HeadLimits,
    /// Bytes of response that may wait to be written before the stream is held back.
    pub buffer_limit: usize,
    /// With no active stream.
    pub idle_timeout: Option<Duration>,
    /// From the first byte of a head to its end.
    pub request_headers_timeout: Option<Duration>,
    /// The same without `request_headers_timeout`. Once a head is whole the connection manager keeps this time.
    pub stream_idle_timeout: Option<Duration>,
    pub max_connection_duration: Option<Duration>,
    /// A connection that is older ends with its next response, not while it waits for a request.
    pub safe_max_connection_duration: bool,
    /// How long an idle connection may stay after `max_connection_duration`.
    pub drain_timeout: Duration,
    /// How long a connection stays after its last response if the client was not done sending. `None`: not at all.
    pub delayed_close_timeout: Option<Duration>,
    /// `None`: no limit.
    pub max_requests_per_connection: Option<u32>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            http1: Http1ProtocolOptions::default(),
            limits: HeadLimits { bytes: 60 * 1024, headers: 100 },
            buffer_limit: 1024 * 1024,
            idle_timeout: Some(Duration::from_secs(3600)),
            request_headers_timeout: None,
            stream_idle_timeout: Some(Duration::from_secs(300)),
            max_connection_duration: None,
            safe_max_connection_duration: false,
            drain_timeout: Duration::from_secs(5),
            delayed_close_timeout: Some(Duration::from_secs(1)),
            max_requests_per_connection: None,
        }
    }
}

/// An upstream connection's options.
#[derive(Debug)]
pub struct ClientOptions {
    pub http1: Http1ProtocolOptions,
    pub limits: HeadLimits,
    /// Bytes of request that may wait to be written before the stream is held back.
    pub buffer_limit: usize,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            http1: Http1ProtocolOptions::default(),
            limits: HeadLimits { bytes: 80 * 1024, headers: 100 },
            buffer_limit: 1024 * 1024,
        }
    }
}
