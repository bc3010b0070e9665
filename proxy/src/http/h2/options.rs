//! What configuration decides about an HTTP/2 connection, with Envoy's names and defaults. Made by listeners and
//! clusters once, shared by all their connections.

use super::{frame::setting, stats::Http2Stats};
use std::{sync::Arc, time::Duration};

/// Envoy's `Http2ProtocolOptions`.
#[derive(Clone, Debug)]
pub struct Http2Options {
    /// Largest HPACK table, in bytes, that the peer may use.
    pub hpack_table_size: u32,
    /// Streams that the peer may have open at once; upstream also the most that we open.
    pub max_concurrent_streams: u32,
    /// Bytes; at least 65535.
    pub initial_stream_window_size: u32,
    /// Bytes; at least 65535.
    pub initial_connection_window_size: u32,
    /// Extended CONNECT (RFC 8441).
    pub allow_connect: bool,
    /// HEADERS, CONTINUATION and DATA in a row that carry nothing.
    pub max_consecutive_inbound_frames_with_empty_payload: u32,
    pub max_inbound_priority_frames_per_stream: u32,
    pub max_inbound_window_update_frames_per_data_frame_sent: u32,
    /// Frames that may wait for the peer to read them, and those among them that answer frames of its own.
    pub max_outbound_frames: u32,
    pub max_outbound_control_frames: u32,
    /// RST_STREAM frames taken at once, and per second after that, before the connection is closed.
    pub stream_reset_burst: u64,
    pub stream_reset_rate: u64,
    /// An invalid message ends its stream only, not the connection
    /// (`override_stream_error_on_invalid_http_message`, after the older options were consulted).
    pub stream_error_on_invalid_http_message: bool,
    /// Further SETTINGS, as (identifier, value).
    pub custom_settings_parameters: Vec<(u16, u32)>,
    pub connection_keepalive: Option<Keepalive>,
}

/// Envoy's `KeepaliveSettings`.
#[derive(Clone, Debug)]
pub struct Keepalive {
    /// Between PINGs; `None` sends none at intervals.
    pub interval: Option<Duration>,
    /// How long the answer may take; any frame starts it anew.
    pub timeout: Duration,
    /// Percent of the interval that chance adds at most.
    pub interval_jitter: f64,
    /// Upstream: a PING goes ahead of a stream that starts after this much silence.
    pub connection_idle_interval: Option<Duration>,
}

/// Envoy's `headers_with_underscores_action`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnderscoreAction {
    #[default]
    Allow,
    RejectRequest,
    DropHeader,
}

/// A downstream connection's options.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    pub http2: Http2Options,
    /// Names and values of one head together.
    pub max_request_headers_kb: u32,
    pub max_headers_count: u32,
    pub headers_with_underscores_action: UnderscoreAction,
    /// Without streams for this long, the connection drains.
    pub idle_timeout: Option<Duration>,
    pub max_connection_duration: Option<Duration>,
    /// After this many streams the connection drains.
    pub max_requests_per_connection: Option<u32>,
    /// Between the GOAWAY that warns and the one that names the last stream.
    pub drain_timeout: Duration,
    /// How long a closing connection is still read, so that what was written arrives.
    pub delayed_close_timeout: Option<Duration>,
    /// How long a head may stay incomplete.
    pub head_timeout: Option<Duration>,
    pub stats: Arc<Http2Stats>,
}

/// An upstream connection's options.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    pub http2: Http2Options,
    pub max_response_headers_kb: u32,
    pub max_headers_count: u32,
    pub stats: Arc<Http2Stats>,
}

impl Default for Http2Options {
    fn default() -> Self {
        Self {
            hpack_table_size: 4096,
            max_concurrent_streams: 1024,
            initial_stream_window_size: 16 << 20,
            initial_connection_window_size: 24 << 20,
            allow_connect: false,
            max_consecutive_inbound_frames_with_empty_payload: 1,
            max_inbound_priority_frames_per_stream: 100,
            max_inbound_window_update_frames_per_data_frame_sent: 10,
            max_outbound_frames: 10_000,
            max_outbound_control_frames: 1000,
            stream_reset_burst: 1000,
            stream_reset_rate: 33,
            stream_error_on_invalid_http_message: false,
            custom_settings_parameters: Vec::new(),
            connection_keepalive: None,
        }
    }
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            http2: Http2Options::default(),
            max_request_headers_kb: 60,
            max_headers_count: 100,
            headers_with_underscores_action: UnderscoreAction::default(),
            idle_timeout: Some(Duration::from_secs(3600)),
            max_connection_duration: None,
            max_requests_per_connection: None,
            drain_timeout: Duration::from_secs(5),
            delayed_close_timeout: Some(Duration::from_secs(1)),
            head_timeout: Some(Duration::from_secs(300)),
            stats: Arc::default(),
        }
    }
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            http2: Http2Options::default(),
            max_response_headers_kb: 60,
            max_headers_count: 100,
            stats: Arc::default(),
        }
    }
}

impl Http2Options {
    /// The SETTINGS of the connection preface, in the order in which Envoy sends them.
    pub(super) fn settings(&self, client: bool) -> Vec<(u16, u32)> {
        let mut settings = Vec::with_capacity(5 + self.custom_settings_parameters.len());
        if client {
            settings.push((setting::ENABLE_PUSH, 0));
        }
        settings.extend(self.custom_settings_parameters.iter().copied());
        settings.push((setting::HEADER_TABLE_SIZE, self.hpack_table_size));
        settings.push((setting::ENABLE_CONNECT_PROTOCOL, self.allow_connect.into()));
        settings.push((setting::MAX_CONCURRENT_STREAMS, self.max_concurrent_streams));
        settings.push((setting::INITIAL_WINDOW_SIZE, self.initial_stream_window_size));
        settings
    }
}
