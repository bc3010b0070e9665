//! What can be configured of HTTP/1, named as in Envoy's `Http1ProtocolOptions`, and the limits of both sides.
//!
//! Compiled from configuration once; shared by all connections of a listener or cluster.

use bytes::Bytes;
use std::{fmt, time::Duration};

/// How header names are spelled on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeaderKeyFormat {
    /// Lower case.
    #[default]
    Default,
    /// `Content-Type`: the first letter of each word is upper case.
    ProperCaseWords,
    /// As they were received, where they were.
    PreserveCase {
        forward_reason_phrase: bool,
        /// Names that this proxy added are spelled in proper case.
        proper_case_on_added: bool,
    },
}

/// Says whether an `Upgrade` header's value is to be ignored.
pub type UpgradeFilter = Box<dyn Fn(&[u8]) -> bool>;

/// Envoy's `Http1ProtocolOptions`; the defaults are Envoy's.
pub struct Http1ProtocolOptions {
    pub allow_absolute_url: bool,
    pub accept_http_10: bool,
    /// For HTTP/1.0 requests without `Host`; empty for none.
    pub default_host_for_http_10: Bytes,
    pub header_key_format: HeaderKeyFormat,
    pub enable_trailers: bool,
    pub allow_chunked_length: bool,
    /// A message that is HTTP but not acceptable ends its stream only, not the connection.
    pub override_stream_error_on_invalid_http_message: bool,
    pub send_fully_qualified_url: bool,
    pub allow_custom_methods: bool,
    pub ignore_http_11_upgrade: Option<UpgradeFilter>,
}

impl Default for Http1ProtocolOptions {
    fn default() -> Self {
        Self {
            allow_absolute_url: true,
            accept_http_10: false,
            default_host_for_http_10: Bytes::new(),
            header_key_format: HeaderKeyFormat::Default,
            enable_trailers: false,
            allow_chunked_length: false,
            override_stream_error_on_invalid_http_message: false,
            send_fully_qualified_url: false,
            allow_custom_methods: false,
            ignore_http_11_upgrade: None,
        }
    }
}

impl fmt::Debug for Http1ProtocolOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http1ProtocolOptions")
            .field("header_key_format", &self.header_key_format)
            .finish_non_exhaustive()
    }
}

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
