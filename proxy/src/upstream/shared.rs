//! What a cluster's hosts, pools and connections on one thread share.

use super::{
    cluster::ClusterInfo,
    connect::{Connect, ConnectError, Connected, Target, TargetTls},
    connection::{ClosedBy, Tally},
    host::Host,
    stats::ClusterStats,
};
use crate::{
    base::{ConnectionInfo, ResetReason, Side, StreamError},
    http::{h1, h2},
    observe::stats::Registry,
    transport::{
        Meter,
        tls::{ClientOptions, SslStats, stats::ClientSocketFactoryStats},
    },
};
use std::{
    cell::{Cell, OnceCell},
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
};
use weft_config::{
    http_protocol_options::{self as config, CommonHttpProtocolOptions, UpstreamProtocol},
    route::Priority,
};

type TlsStats = (Arc<SslStats>, Arc<ClientSocketFactoryStats>);

/// What all clusters of a thread have in common.
pub(super) struct Context {
    pub registry: Registry,
    pub connector: Rc<dyn Connect>,
    /// Hosts under TLS are looked at again when authorities or CRLs change.
    pub looks_again: Cell<bool>,
    /// By [`Alpn`].
    tls_options: [Rc<ClientOptions>; 4],
    /// For clusters that speak no TLS, which have no such stats.
    no_tls: TlsStats,
}

/// What is offered by ALPN where a cluster's TLS says nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alpn {
    None,
    Http1,
    Http2,
    Both,
}

impl Alpn {
    const ALL: [Self; 4] = [Self::None, Self::Http1, Self::Http2, Self::Both];

    pub fn offer(self) -> Vec<Box<[u8]>> {
        let names: &[&[u8]] = match self {
            Self::None => &[],
            Self::Http1 => &[b"http/1.1"],
            Self::Http2 => &[b"h2"],
            Self::Both => &[b"h2", b"http/1.1"],
        };
        names.iter().map(|name| Box::from(*name)).collect()
    }
}

impl Context {
    pub fn new(registry: Registry, connector: Rc<dyn Connect>) -> Self {
        let options = |alpn: Alpn| Rc::new(ClientOptions { alpn_fallback: alpn.offer(), ..Default::default() });
        Self {
            registry,
            connector,
            looks_again: Cell::new(false),
            tls_options: Alpn::ALL.map(options),
            no_tls: TlsStats::default(),
        }
    }

    /// For connections that nothing else is said of.
    pub fn tls_options(&self, alpn: Alpn) -> Rc<ClientOptions> {
        self.tls_options[alpn as usize].clone()
    }
}

/// One cluster's configuration, stats and options on one thread.
pub(super) struct Shared {
    pub info: Arc<ClusterInfo>,
    pub context: Rc<Context>,
    stats: OnceCell<Arc<ClusterStats>>,
    http1: OnceCell<Rc<h1::ClientOptions>>,
    http2: OnceCell<Rc<h2::ClientOptions>>,
    tls: OnceCell<TlsStats>,
}

impl Shared {
    /// `before`: the cluster with an earlier configuration, whose stats go on.
    pub fn new(info: Arc<ClusterInfo>, context: Rc<Context>, before: Option<&Self>) -> Rc<Self> {
        let (stats, tls) = before.map(|before| (before.stats.clone(), before.tls.clone())).unwrap_or_default();
        Rc::new(Self { info, context, stats, http1: OnceCell::new(), http2: OnceCell::new(), tls })
    }

    pub fn stats(&self) -> &Arc<ClusterStats> {
        self.stats.get_or_init(|| self.context.registry.attach(&self.info.stat_prefix))
    }

    pub fn common(&self) -> &CommonHttpProtocolOptions {
        &self.info.config.http.common
    }

    pub fn http1(&self) -> &Rc<h1::ClientOptions> {
        self.http1.get_or_init(|| {
            let default = config::Http1ProtocolOptions::default();
            let options = match &self.info.config.http.protocol {
                UpstreamProtocol::Http1(http1)
                | UpstreamProtocol::UseDownstream { http1, .. }
                | UpstreamProtocol::Auto { http1, .. } => http1,
                UpstreamProtocol::Http2(_) => &default,
            };
            let common = self.common();
            Rc::new(h1::ClientOptions {
                http1: options.clone(),
                limits: h1::HeadLimits {
                    // Envoy's default for HTTP/1 responses.
                    bytes: common.max_response_headers_kb.unwrap_or(80) as usize * 1024,
                    headers: common.max_headers_count as usize,
                },
                buffer_limit: self.info.config.per_connection_buffer_limit_bytes as usize,
            })
        })
    }

    pub fn http2(&self) -> &Rc<h2::ClientOptions> {
        self.http2.get_or_init(|| {
            let default = config::Http2ProtocolOptions::default();
            let options = match &self.info.config.http.protocol {
                UpstreamProtocol::Http2(http2)
                | UpstreamProtocol::UseDownstream { http2: Some(http2), .. }
                | UpstreamProtocol::Auto { http2, .. } => http2,
                UpstreamProtocol::Http1(_) | UpstreamProtocol::UseDownstream { http2: None, .. } => &default,
            };
            let common = self.common();
            Rc::new(h2::ClientOptions {
                http2: http2_options(options),
                max_response_headers_kb: common.max_response_headers_kb.unwrap_or(60),
                max_headers_count: common.max_headers_count,
                stats: self.context.registry.attach(&format!("{}.http2", self.info.stat_prefix)),
            })
        })
    }

    fn tls_stats(&self) -> &TlsStats {
        if !self.info.transport_sockets().any(|socket| socket.tls().is_some()) {
            return &self.context.no_tls;
        }
        let name = |name: &str| format!("{}.{name}", self.info.stat_prefix);
        let registry = &self.context.registry;
        self.tls.get_or_init(|| (registry.attach(&name("ssl")), registry.attach(&name("client_ssl_socket_factory"))))
    }

    /// Takes a connection's place with the breakers. `needed`: without this one nothing would ever be served.
    pub fn may_connect(&self, host: &Host, priority: Priority, needed: bool) -> bool {
        let breakers = &self.info.breakers;
        let connections = &breakers.of(priority).connections;
        let per_host = breakers.per_host_max_connections;
        let host_is_full = per_host.is_some_and(|most| host.state.cx_active.load(Relaxed) >= most);
        if !host_is_full && connections.try_take() {
            return true;
        }
        self.stats().upstream_cx_overflow.inc();
        if needed {
            connections.take();
        }
        needed
    }

    /// Connects to `host` within the connect timeout.
    pub async fn connect(
        &self,
        host: Arc<Host>,
        downstream: Option<Rc<ConnectionInfo>>,
        options: Rc<ClientOptions>,
        tally: &Tally,
    ) -> Result<Connected, StreamError> {
        let config = &self.info.config;
        let (ssl, factory) = self.tls_stats().clone();
        let tls = TargetTls { options, ssl, factory, looks_again: self.context.looks_again.get() };
        let target = Target { host, bind: self.info.bind.clone(), keepalive: config.tcp_keepalive, downstream, tls };
        let connecting = self.context.connector.connect(target);
        match tokio::time::timeout(config.connect_timeout, connecting).await {
            Ok(Ok(connected)) => {
                tally.connected();
                self.sent(connected.sent);
                Ok(connected)
            }
            Ok(Err(ConnectError { reason, details, bind })) => {
                let ours = reason == ResetReason::LocalConnectionFailure;
                tally.failed(if ours { ClosedBy::Us } else { ClosedBy::Peer });
                if bind {
                    self.stats().bind_errors.inc();
                }
                Err(StreamError::new(Side::Upstream, reason, details).retry_safe())
            }
            Err(_) => {
                tally.failed(ClosedBy::Us);
                self.stats().upstream_cx_connect_timeout.inc();
                Err(StreamError::new(Side::Upstream, ResetReason::ConnectionTimeout, "").retry_safe())
            }
        }
    }
}

impl Meter for Shared {
    fn received(&self, bytes: usize) {
        self.stats().upstream_cx_rx_bytes_total.add(bytes as u64);
    }

    fn sent(&self, bytes: usize) {
        self.stats().upstream_cx_tx_bytes_total.add(bytes as u64);
    }
}

fn http2_options(p: &config::Http2ProtocolOptions) -> h2::Http2Options {
    let default = h2::Http2Options::default();
    h2::Http2Options {
        hpack_table_size: p.hpack_table_size,
        max_concurrent_streams: p.max_concurrent_streams,
        initial_stream_window_size: p.initial_stream_window_size,
        initial_connection_window_size: p.initial_connection_window_size,
        allow_connect: p.allow_connect,
        max_consecutive_inbound_frames_with_empty_payload: p.max_consecutive_inbound_frames_with_empty_payload,
        max_inbound_priority_frames_per_stream: p.max_inbound_priority_frames_per_stream,
        max_inbound_window_update_frames_per_data_frame_sent: p.max_inbound_window_update_frames_per_data_frame_sent,
        max_outbound_frames: p.max_outbound_frames,
        max_outbound_control_frames: p.max_outbound_control_frames,
        stream_reset_burst: p.stream_reset_burst.unwrap_or(default.stream_reset_burst),
        stream_reset_rate: p.stream_reset_rate.unwrap_or(default.stream_reset_rate),
        stream_error_on_invalid_http_message: p.override_stream_error_on_invalid_http_message.unwrap_or_default(),
        custom_settings_parameters: p.custom_settings_parameters.clone(),
        connection_keepalive: p.connection_keepalive.as_ref().map(|k| h2::Keepalive {
            interval: k.interval,
            timeout: k.timeout,
            interval_jitter: k.interval_jitter,
            connection_idle_interval: k.connection_idle_interval,
        }),
    }
}
