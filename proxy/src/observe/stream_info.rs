//! Everything that is known of one stream (an HTTP exchange, or a TCP connection as the TCP proxy sees it), for
//! access logs, header formatters, local replies and filters.
//!
//! Filled by the connection manager, the router and the TCP proxy as things happen; read at any time.

use crate::base::{Address, ConnectionInfo, ResponseFlag, ResponseFlags, TlsConnection, clock};
use bytes::Bytes;
use foldhash::HashMap;
use smallvec::SmallVec;
use std::{
    borrow::Cow,
    rc::Rc,
    sync::Arc,
    time::{Instant, SystemTime},
};

/// A filter's name in metadata, and its values: `filter_metadata` as JSON objects.
pub type Metadata = HashMap<Box<str>, serde_json::Map<String, serde_json::Value>>;

/// The facts of one stream.
#[derive(Debug)]
pub struct StreamInfo {
    pub connection: Rc<ConnectionInfo>,
    pub start_time: SystemTime,
    pub start: Instant,
    /// `HTTP/1.0`, `HTTP/1.1`, `HTTP/2`; `None` for TCP.
    pub protocol: Option<&'static str>,
    pub flags: ResponseFlags,
    /// 0 while there is none.
    pub response_code: u16,
    /// `%RESPONSE_CODE_DETAILS%`.
    pub response_code_details: Option<Cow<'static, str>>,
    /// `%CONNECTION_TERMINATION_DETAILS%` of this stream.
    pub connection_termination_details: Option<&'static str>,
    /// The client after `x-forwarded-for` had its say; the connection's peer until then.
    pub downstream_remote: Address,
    pub points: TimePoints,
    pub bytes: ByteCounts,
    pub route_name: Option<Arc<str>>,
    pub virtual_host_name: Option<Arc<str>>,
    pub virtual_cluster_name: Option<Arc<str>>,
    /// A route was found; it may be without a name and without metadata.
    pub has_route: bool,
    pub route_metadata: Option<Arc<Metadata>>,
    pub listener_metadata: Option<Arc<Metadata>>,
    pub virtual_host_metadata: Option<Arc<Metadata>>,
    /// Set by filters; merged by name.
    pub dynamic_metadata: Metadata,
    /// The names under which filters set typed metadata. Nothing reads the values.
    pub typed_metadata: Vec<Arc<str>>,
    /// Filter state, as text.
    pub filter_state: HashMap<Box<str>, FilterState>,
    pub upstream: UpstreamInfo,
    /// Tries so far.
    pub attempt_count: u32,
    /// `%STREAM_ID%`: `x-request-id` where there is one.
    pub stream_id: Option<Bytes>,
    /// The health check filter answered it.
    pub is_health_check: bool,
    /// `%TRACE_ID%`, `%SPAN_ID%`.
    pub trace_id: Option<Box<str>>,
    pub span_id: Option<Box<str>>,
}

/// One value of the filter state.
#[derive(Clone, Debug)]
pub struct FilterState {
    pub text: Bytes,
    pub is_mutable: bool,
}

/// The moments of a stream.
#[derive(Clone, Copy, Debug, Default)]
pub struct TimePoints {
    /// The last byte of the request arrived.
    pub downstream_rx_end: Option<Instant>,
    pub upstream_tx_start: Option<Instant>,
    pub upstream_tx_end: Option<Instant>,
    pub upstream_rx_start: Option<Instant>,
    pub upstream_rx_end: Option<Instant>,
    pub downstream_tx_start: Option<Instant>,
    pub downstream_tx_end: Option<Instant>,
    pub upstream_connect_start: Option<Instant>,
    pub upstream_connect_end: Option<Instant>,
    /// The stream is over.
    pub end: Option<Instant>,
}

/// Bytes on the wire and of payload.
#[derive(Clone, Copy, Debug, Default)]
pub struct ByteCounts {
    /// `%BYTES_RECEIVED%`: payload from the client.
    pub received: u64,
    /// `%BYTES_SENT%`: payload to the client.
    pub sent: u64,
    pub downstream_headers_received: u64,
    pub downstream_headers_sent: u64,
    pub downstream_wire_received: u64,
    pub downstream_wire_sent: u64,
    pub upstream_headers_received: u64,
    pub upstream_headers_sent: u64,
    pub upstream_wire_received: u64,
    pub upstream_wire_sent: u64,
}

/// The far side, as far as it is known.
#[derive(Clone, Debug, Default)]
pub struct UpstreamInfo {
    /// `%UPSTREAM_CLUSTER%`: its observability name.
    pub cluster: Option<Arc<str>>,
    pub cluster_metadata: Option<Arc<Metadata>>,
    /// `%UPSTREAM_HOST%`.
    pub host: Option<Address>,
    pub host_name: Option<Arc<str>>,
    pub host_metadata: Option<Arc<Metadata>>,
    pub local: Option<Address>,
    pub remote: Option<Address>,
    pub connection_id: Option<u64>,
    /// What TLS established with the host.
    pub tls: Option<Rc<TlsConnection>>,
    pub protocol: Option<&'static str>,
    /// `%UPSTREAM_TRANSPORT_FAILURE_REASON%`.
    pub transport_failure: Option<Cow<'static, str>>,
    /// `%UPSTREAM_HOSTS_ATTEMPTED%` and its kin.
    pub attempted: SmallVec<[Address; 1]>,
}

impl StreamInfo {
    /// A stream that begins now.
    pub fn new(connection: Rc<ConnectionInfo>) -> Self {
        Self {
            start_time: SystemTime::now(),
            start: clock::now(),
            protocol: None,
            flags: ResponseFlags::default(),
            response_code: 0,
            response_code_details: None,
            connection_termination_details: None,
            downstream_remote: connection.remote.clone(),
            points: TimePoints::default(),
            bytes: ByteCounts::default(),
            route_name: None,
            virtual_host_name: None,
            virtual_cluster_name: None,
            has_route: false,
            route_metadata: None,
            listener_metadata: None,
            virtual_host_metadata: None,
            dynamic_metadata: Metadata::default(),
            typed_metadata: Vec::new(),
            filter_state: HashMap::default(),
            upstream: UpstreamInfo::default(),
            attempt_count: 0,
            stream_id: None,
            is_health_check: false,
            trace_id: None,
            span_id: None,
            connection,
        }
    }

    pub fn set_flag(&mut self, flag: ResponseFlag) {
        self.flags.set(flag);
    }

    /// Sets flag and details of how the stream ended; the first details stay.
    pub fn set_details(&mut self, details: impl Into<Cow<'static, str>>) {
        self.response_code_details.get_or_insert_with(|| details.into());
    }
}
