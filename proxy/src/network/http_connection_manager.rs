//! `envoy.filters.network.http_connection_manager`: HTTP on a connection. What it does is in [`crate::http`].

use super::{CompileContext, Connection, NetworkFilter, Terminal};
use crate::{
    http::{
        Thread, codec,
        codec::{Codec, ConnectionEvent, ServerOptions},
        connection::{HttpConnection, Service},
        connection_manager::{ConnectionManager, Routes},
        filter_chain::ActiveFilters,
        h1, h2,
        scopes::ScopeSeat,
        stats::{ConnectionManagerStats, ListenerHttpStats},
    },
    route::RouteTable,
    transport::Meter,
};
use futures_util::FutureExt as _;
use std::{cell::Cell, future::Future, pin::Pin, rc::Rc, sync::Arc, time::Duration};
use weft_config::{
    Context,
    http_connection_manager::{CodecType, HttpConnectionManager, RouteSource},
    http_protocol_options::HeadersWithUnderscoresAction,
    scoped_routes::{ScopedRoutes, Scopes},
};
use weft_control_api::{Any, envoy::extensions::filters::network::http_connection_manager::v3 as pb};

pub const TYPE: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

struct Manager(Arc<ConnectionManager>);

pub fn compile(any: &Any, compile: &mut CompileContext<'_>, cx: &mut Context) -> Option<Arc<dyn NetworkFilter>> {
    let config: pb::HttpConnectionManager = cx.unpack("", any)?;
    let config = HttpConnectionManager::from_proto(config, cx)?;
    let routes = match &config.routes {
        RouteSource::Inline(routes) => {
            cx.field("route_config", |cx| cx.unsupported_if("vhds", routes.vhds.is_some()));
            if routes.validate_clusters != Some(false) {
                for to in routes.clusters().filter(|to| !(compile.cluster_exists)(to.name)) {
                    // Where something is wrong already, routes may be left out and places shifted.
                    let path = match cx.has_problems() {
                        true => "route_config".to_owned(),
                        false => format!("route_config.{}", to.path()),
                    };
                    cx.problem_at(&path, format!("route: unknown cluster '{}'", to.name));
                }
            }
            Routes::Inline(Arc::new(cx.field("route_config", |cx| RouteTable::compile(routes, compile.names, cx))))
        }
        RouteSource::Scoped(scoped) => {
            Routes::Scoped(cx.field("scoped_routes", |cx| compile_scopes(scoped, &config.stat_prefix, compile, cx)))
        }
        RouteSource::Rds { config_source, name } => {
            Routes::Rds(compile.routes.slot(name, config_source, &config.stat_prefix))
        }
    };
    let manager = ConnectionManager::compile(config, routes, compile, cx);
    Some(Arc::new(Manager(Arc::new(manager))))
}

/// A seat for scopes; those that stand here are in it already.
fn compile_scopes(
    scoped: &ScopedRoutes,
    stat_prefix: &str,
    compile: &mut CompileContext<'_>,
    cx: &mut Context,
) -> Arc<ScopeSeat> {
    let seat = Arc::new(ScopeSeat::new(scoped.clone(), stat_prefix));
    if let Scopes::Inline(scopes) = &scoped.scopes {
        let scopes = scopes.iter().enumerate().map(|(i, (scope, _))| {
            let table = scope.route_configuration.as_ref().map(|config| {
                cx.field("scoped_route_configurations_list", |cx| {
                    cx.element("scoped_route_configurations", i, |cx| {
                        cx.field("route_configuration", |cx| Arc::new(RouteTable::compile(config, compile.names, cx)))
                    })
                })
            });
            (scope.clone(), table)
        });
        let scopes = scopes.collect();
        let wanted = compile.routes.take_wanted();
        let table = compile.routes.scope_table(&seat, scopes);
        compile.routes.want(wanted);
        seat.put(table);
    }
    compile.routes.add_scoped(&seat);
    seat
}

/// One worker's part.
struct Active {
    filters: Rc<ActiveFilters>,
    options: ServerOptions,
    codec: Option<Codec>,
    stats: Arc<ConnectionManagerStats>,
    listener_stats: Arc<ListenerHttpStats>,
    codec_stats: Arc<h1::CodecStats>,
}

impl NetworkFilter for Manager {
    fn activate(self: Arc<Self>, thread: &Rc<Thread>) -> Rc<dyn Terminal> {
        let manager = self.0.clone();
        let config = &manager.config;
        let registry = &thread.registry;
        let prefix = manager.stat_name();
        let h2_stats: Arc<_> = registry.attach("http2");
        Rc::new(Active {
            options: ServerOptions { h1: Rc::new(h1_options(&manager)), h2: Rc::new(h2_options(&manager, h2_stats)) },
            codec: match config.codec_type {
                CodecType::Http1 => Some(Codec::Http1),
                CodecType::Http2 => Some(Codec::Http2),
                CodecType::Auto | CodecType::Http3 => None,
            },
            stats: registry.attach(&format!("http.{prefix}")),
            listener_stats: registry.attach(&format!("listener.{}.http.{prefix}", manager.listener_stat_name)),
            codec_stats: registry.attach("http1"),
            filters: Rc::new(manager.activate_filters(thread)),
        })
    }
}

fn some(duration: Duration) -> Option<Duration> {
    (!duration.is_zero()).then_some(duration)
}

fn h1_options(manager: &ConnectionManager) -> h1::ServerOptions {
    let config = &manager.config;
    let mut http1 = config.http1.clone();
    http1.override_stream_error_on_invalid_http_message =
        http1.override_stream_error_on_invalid_http_message.or(config.stream_error_on_invalid_http_message);
    h1::ServerOptions {
        http1,
        limits: h1::HeadLimits {
            bytes: config.max_request_headers_kb as usize * 1024,
            headers: config.common.max_headers_count as usize,
        },
        buffer_limit: manager.buffer_limit,
        idle_timeout: config.common.idle_timeout,
        request_headers_timeout: some(if config.request_timeout_comes_first() {
            config.request_timeout
        } else {
            config.request_headers_timeout
        }),
        stream_idle_timeout: some(config.stream_idle_timeout),
        max_connection_duration: config.common.max_connection_duration,
        safe_max_connection_duration: config.http1_safe_max_connection_duration,
        drain_timeout: config.drain_timeout,
        delayed_close_timeout: some(config.delayed_close_timeout),
        max_requests_per_connection: config.common.max_requests_per_connection.filter(|n| *n > 0),
    }
}

fn h2_options(manager: &ConnectionManager, stats: Arc<h2::Http2Stats>) -> h2::ServerOptions {
    let config = &manager.config;
    let http2 = &config.http2;
    let default = h2::Http2Options::default();
    h2::ServerOptions {
        http2: h2::Http2Options {
            hpack_table_size: http2.hpack_table_size,
            max_concurrent_streams: http2.max_concurrent_streams,
            initial_stream_window_size: http2.initial_stream_window_size,
            initial_connection_window_size: http2.initial_connection_window_size,
            allow_connect: http2.allow_connect,
            max_consecutive_inbound_frames_with_empty_payload: http2.max_consecutive_inbound_frames_with_empty_payload,
            max_inbound_priority_frames_per_stream: http2.max_inbound_priority_frames_per_stream,
            max_inbound_window_update_frames_per_data_frame_sent: http2
                .max_inbound_window_update_frames_per_data_frame_sent,
            max_outbound_frames: http2.max_outbound_frames,
            max_outbound_control_frames: http2.max_outbound_control_frames,
            stream_reset_burst: http2.stream_reset_burst.unwrap_or(default.stream_reset_burst),
            stream_reset_rate: http2.stream_reset_rate.unwrap_or(default.stream_reset_rate),
            stream_error_on_invalid_http_message: http2
                .override_stream_error_on_invalid_http_message
                .or(config.stream_error_on_invalid_http_message)
                .unwrap_or_default(),
            custom_settings_parameters: http2.custom_settings_parameters.clone(),
            connection_keepalive: http2.connection_keepalive.as_ref().map(|k| h2::Keepalive {
                interval: k.interval,
                timeout: k.timeout,
                interval_jitter: k.interval_jitter,
                connection_idle_interval: k.connection_idle_interval,
            }),
        },
        max_request_headers_kb: config.max_request_headers_kb,
        max_headers_count: config.common.max_headers_count,
        headers_with_underscores_action: match config.common.headers_with_underscores_action {
            HeadersWithUnderscoresAction::Allow => h2::UnderscoreAction::Allow,
            HeadersWithUnderscoresAction::RejectRequest => h2::UnderscoreAction::RejectRequest,
            HeadersWithUnderscoresAction::DropHeader => h2::UnderscoreAction::DropHeader,
        },
        idle_timeout: config.common.idle_timeout,
        max_connection_duration: config.common.max_connection_duration,
        max_requests_per_connection: config.common.max_requests_per_connection.filter(|n| *n > 0),
        drain_timeout: config.drain_timeout,
        delayed_close_timeout: some(config.delayed_close_timeout),
        head_timeout: some(config.request_headers_timeout).or(some(config.stream_idle_timeout)),
        stats,
    }
}

impl Terminal for Active {
    fn serve(self: Rc<Self>, connection: Connection) -> Pin<Box<dyn Future<Output = ()>>> {
        let Connection { io, info, is_tls, drain, thread, dynamic_metadata, filter_state: _, facts: _ } = connection;
        let alpn = info.tls.as_ref().and_then(|tls| tls.alpn.as_deref());
        let codec = self.codec.or(alpn.map(codec::by_alpn));
        let counted = Rc::new(Counted::new(self.stats.clone(), is_tls));
        let io = io.metered(counted.clone());
        let connection = HttpConnection::new(
            thread,
            self.filters.clone(),
            info,
            self.stats.clone(),
            self.listener_stats.clone(),
            self.codec_stats.clone(),
            drain,
            dynamic_metadata,
        );
        let (own_drain, service) = (connection.drain.clone(), Service(connection.clone()));
        let events = counted.clone();
        let serving =
            codec::serve(io, codec, self.options.clone(), service, own_drain, move |event| events.event(event));
        Box::pin(serving.map(move |()| counted.active_requests.set(connection.active.get() > 0)))
    }

    fn missed(&self, connection: Connection) {
        let failed = connection.is_tls && connection.info.tls.is_none();
        Counted::new(self.stats.clone(), connection.is_tls).closed_by_us.set(!failed);
    }
}

/// Counts the connection as long as it lives.
struct Counted {
    stats: Arc<ConnectionManagerStats>,
    start: std::time::Instant,
    is_tls: bool,
    codec: Cell<Option<Codec>>,
    active_requests: Cell<bool>,
    closed_by_us: Cell<bool>,
}

impl Counted {
    fn new(stats: Arc<ConnectionManagerStats>, is_tls: bool) -> Self {
        stats.downstream_cx_total.inc();
        stats.downstream_cx_active.inc();
        if is_tls {
            stats.downstream_cx_ssl_total.inc();
            stats.downstream_cx_ssl_active.inc();
        }
        Self {
            stats,
            is_tls,
            start: std::time::Instant::now(),
            codec: Cell::new(None),
            active_requests: Cell::new(false),
            closed_by_us: Cell::new(false),
        }
    }

    fn event(&self, event: ConnectionEvent) {
        let stats = &self.stats;
        match event {
            ConnectionEvent::Codec(codec) => {
                self.codec.set(Some(codec));
                let (total, active) = match codec {
                    Codec::Http1 => (&stats.downstream_cx_http1_total, &stats.downstream_cx_http1_active),
                    Codec::Http2 => (&stats.downstream_cx_http2_total, &stats.downstream_cx_http2_active),
                };
                total.inc();
                active.inc();
                return;
            }
            ConnectionEvent::IdleTimeout => stats.downstream_cx_idle_timeout.inc(),
            ConnectionEvent::MaxDuration => stats.downstream_cx_max_duration_reached.inc(),
            ConnectionEvent::MaxRequests => stats.downstream_cx_max_requests_reached.inc(),
            ConnectionEvent::ProtocolError => stats.downstream_cx_protocol_error.inc(),
            ConnectionEvent::ClosedByUs => {}
        }
        self.closed_by_us.set(true);
    }
}

impl Meter for Counted {
    fn received(&self, bytes: usize) {
        self.stats.downstream_cx_rx_bytes_total.add(bytes as u64);
    }

    fn sent(&self, bytes: usize) {
        self.stats.downstream_cx_tx_bytes_total.add(bytes as u64);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let stats = &self.stats;
        stats.downstream_cx_active.dec();
        if self.is_tls {
            stats.downstream_cx_ssl_active.dec();
        }
        match self.codec.get() {
            Some(Codec::Http1) => stats.downstream_cx_http1_active.dec(),
            Some(Codec::Http2) => stats.downstream_cx_http2_active.dec(),
            None => {}
        }
        stats.downstream_cx_destroy.inc();
        let (by, by_active) = if self.closed_by_us.get() {
            (&stats.downstream_cx_destroy_local, &stats.downstream_cx_destroy_local_active_rq)
        } else {
            (&stats.downstream_cx_destroy_remote, &stats.downstream_cx_destroy_remote_active_rq)
        };
        by.inc();
        if self.active_requests.get() {
            by_active.inc();
            stats.downstream_cx_destroy_active_rq.inc();
        }
        stats.downstream_cx_length_ms.record(self.start.elapsed().as_millis() as u64);
    }
}
