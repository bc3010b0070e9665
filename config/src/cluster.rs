//! Clusters (`envoy.config.cluster.v3.Cluster`): where requests go, by which rules, over which connections.
//!
//! Read from the bootstrap and from CDS; compiled by the proxy's `upstream`. Invariant: a cluster that was read without a
//! problem can be compiled; what Weft does not do was refused here, with its path.

mod breakers;
mod discovery;
mod dns;
mod health_check;
mod outlier_detection;
mod transport_socket;

pub use breakers::{CircuitBreakers, RetryBudget, Thresholds};
pub(crate) use discovery::metadata_path;
pub use discovery::{Discovery, Eds, OriginalDst};
pub use dns::{Dns, DnsLookupFamily};
pub use health_check::{GrpcHealthCheck, HealthCheck, HealthCheckKind, HttpHealthCheck, Intervals, TcpHealthCheck};
pub use outlier_detection::{Enforcing, OutlierDetection};
pub use transport_socket::{PassTlvs, ProxyProtocol, ProxyProtocolVersion, TransportSocket, TransportSocketMatch};

use crate::{
    Context,
    address::{BindConfig, TcpKeepalive},
    endpoint::ClusterLoadAssignment,
    http_protocol_options::{
        CommonHttpProtocolOptions, Http1ProtocolOptions, Http2ProtocolOptions, UpstreamHttpOptions,
        UpstreamHttpProtocolOptions, UpstreamProtocol,
    },
    load_balancing::{self, LoadBalancing},
    metadata::{self, Metadata},
};
use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::Duration,
};
use weft_control_api::{
    Any,
    envoy::{
        config::{
            cluster::v3::{self as pb, cluster as parts},
            core::v3::{self as core, config_source::ConfigSourceSpecifier},
        },
        extensions::upstreams::{
            http::{generic::v3::GenericConnectionPoolProto, v3::HttpProtocolOptions},
            tcp::v3::TcpProtocolOptions,
        },
    },
};

/// A cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub name: String,
    /// In stat names, in place of the name; empty: the name.
    pub alt_stat_name: String,
    pub discovery: Discovery,
    /// Default 5 s.
    pub connect_timeout: Duration,
    /// Default 1 MiB.
    pub per_connection_buffer_limit_bytes: u32,
    pub load_balancing: LoadBalancing,
    /// The hosts, unless they come over EDS or with requests.
    pub load_assignment: ClusterLoadAssignment,
    pub circuit_breakers: CircuitBreakers,
    pub outlier_detection: Option<Box<OutlierDetection>>,
    pub health_check: Option<Box<HealthCheck>>,
    pub http: Arc<UpstreamHttpOptions>,
    /// `None`: no limit.
    pub max_requests_per_connection: Option<u32>,
    /// Default true.
    pub wait_for_warm_on_init: bool,
    /// Default 5 s.
    pub cleanup_interval: Duration,
    /// `None`: the cluster manager's.
    pub upstream_bind_config: Option<Arc<BindConfig>>,
    pub transport_socket: TransportSocket,
    pub transport_socket_matches: Vec<TransportSocketMatch>,
    pub metadata: Metadata,
    pub tcp_keepalive: Option<TcpKeepalive>,
    pub close_connections_on_host_health_failure: bool,
    pub ignore_health_on_host_removal: bool,
    pub connection_pool_per_downstream_connection: bool,
    /// Connections to a host for each stream that it has or that waits for one: 1 to 3.
    pub per_upstream_preconnect_ratio: f64,
}

impl Cluster {
    pub fn from_proto(p: pb::Cluster, cx: &mut Context) -> Option<Self> {
        let pb::Cluster {
            transport_socket_matches,
            transport_socket_matcher,
            name,
            alt_stat_name,
            stats_matcher,
            eds_cluster_config,
            connect_timeout,
            per_connection_buffer_limit_bytes,
            per_connection_buffer_high_watermark_timeout,
            lb_policy,
            load_assignment,
            health_checks,
            max_requests_per_connection,
            circuit_breakers,
            upstream_http_protocol_options,
            common_http_protocol_options,
            http_protocol_options,
            http2_protocol_options,
            typed_extension_protocol_options,
            dns_refresh_rate,
            dns_jitter,
            dns_failure_refresh_rate,
            respect_dns_ttl,
            dns_lookup_family,
            dns_resolvers,
            use_tcp_for_dns_lookups,
            dns_resolution_config,
            typed_dns_resolver_config,
            wait_for_warm_on_init,
            outlier_detection,
            cleanup_interval,
            upstream_bind_config,
            lb_subset_config,
            common_lb_config,
            transport_socket,
            metadata,
            protocol_selection,
            upstream_connection_options,
            close_connections_on_host_health_failure,
            ignore_health_on_host_removal,
            filters,
            load_balancing_policy,
            lrs_server,
            lrs_report_endpoint_metrics,
            track_timeout_budgets,
            upstream_config,
            track_cluster_stats,
            preconnect_policy,
            connection_pool_per_downstream_connection,
            queuing_policies,
            cluster_discovery_type,
            lb_config,
        } = p;
        if name.is_empty() {
            cx.problem_at("name", "must not be empty");
        }
        cx.unsupported_if("transport_socket_matcher", transport_socket_matcher.is_some());
        cx.unsupported_if(
            "per_connection_buffer_high_watermark_timeout",
            per_connection_buffer_high_watermark_timeout.is_some(),
        );
        if health_checks.len() > 1 {
            cx.problem_at("health_checks", "more than one is not supported");
        }
        cx.unsupported_if("filters", !filters.is_empty());
        // Whether load is reported, and where, is for the bootstrap to say: only that may be repeated here.
        let is_other =
            |p: &core::ConfigSource| !matches!(p.config_source_specifier, Some(ConfigSourceSpecifier::Self_(_)));
        cx.unsupported_if("lrs_server", lrs_server.as_ref().is_some_and(is_other));
        cx.unsupported_if("lrs_report_endpoint_metrics", !lrs_report_endpoint_metrics.is_empty());
        cx.unsupported_if("queuing_policies", queuing_policies.is_some());
        cx.ignored_if("stats_matcher", stats_matcher.is_some());
        cx.ignored_if("track_timeout_budgets", track_timeout_budgets);
        cx.ignored_if("track_cluster_stats", track_cluster_stats.is_some());
        let per_upstream_preconnect_ratio = preconnect(preconnect_policy, cx);
        connection_pool(upstream_config, cx);

        let dns = dns::Fields {
            refresh_rate: dns_refresh_rate,
            jitter: dns_jitter,
            failure_refresh_rate: dns_failure_refresh_rate,
            respect_ttl: respect_dns_ttl,
            lookup_family: dns_lookup_family,
            resolvers: dns_resolvers,
            use_tcp: use_tcp_for_dns_lookups,
            resolution_config: dns_resolution_config,
            typed_resolver_config: typed_dns_resolver_config,
        };
        let original_dst = match &lb_config {
            Some(parts::LbConfig::OriginalDstLbConfig(p)) => Some(p.clone()),
            _ => None,
        };
        let discovery = Discovery::from_proto(cluster_discovery_type, eds_cluster_config, original_dst, dns, &name, cx);
        let has_assignment = load_assignment.is_some();
        let load_assignment = load_assignment
            .and_then(|p| cx.field("load_assignment", |cx| ClusterLoadAssignment::from_proto(p, cx)))
            .unwrap_or_default();
        if let Some(discovery) = &discovery {
            discovery.check_hosts(&load_assignment, has_assignment, cx);
        }
        let load_balancing = LoadBalancing::from_proto(
            load_balancing::Fields {
                lb_policy,
                lb_config,
                load_balancing_policy,
                common_lb_config,
                lb_subset_config,
                provides: match &discovery {
                    Some(Discovery::OriginalDst(_)) => Some("an ORIGINAL_DST"),
                    Some(Discovery::Aggregate(_)) => Some("an aggregate"),
                    _ => None,
                },
                has_names: matches!(discovery, Some(Discovery::StrictDns(_))),
            },
            cx,
        );
        let typed = typed_options(typed_extension_protocol_options, cx);
        let deprecated = DeprecatedHttp {
            common: common_http_protocol_options,
            upstream: upstream_http_protocol_options,
            http1: http_protocol_options,
            http2: http2_protocol_options,
            protocol_selection,
        };
        let http = match typed {
            Some(typed) => {
                deprecated.ignored(cx);
                typed
            }
            None => deprecated.read(cx),
        };
        let tcp_keepalive = upstream_connection_options.and_then(|p| connection_options(p, cx));
        let transport_socket =
            transport_socket.and_then(|p| TransportSocket::from_proto("transport_socket", p, cx)).unwrap_or_default();
        if matches!(http.protocol, UpstreamProtocol::Auto { .. }) && !transport_socket.speaks_tls() {
            cx.problem_at(
                "transport_socket",
                format!("ALPN configured for cluster {name} which has a non-ALPN transport socket"),
            );
        }
        let positive = |name: &str, value, default, cx: &mut Context| {
            let value = cx.duration(name, value);
            if value == Some(Duration::ZERO) {
                cx.problem_at(name, "must be greater than 0 s");
            }
            value.unwrap_or(default)
        };
        Some(Self {
            alt_stat_name,
            connect_timeout: positive("connect_timeout", connect_timeout, Duration::from_secs(5), cx),
            per_connection_buffer_limit_bytes: per_connection_buffer_limit_bytes.unwrap_or(1 << 20),
            load_balancing,
            load_assignment,
            health_check: cx
                .elements("health_checks", health_checks, |cx, p| HealthCheck::from_proto(p, cx))
                .pop()
                .map(Box::new),
            outlier_detection: outlier_detection
                .map(|p| cx.field("outlier_detection", |cx| Box::new(OutlierDetection::read(p, cx)))),
            circuit_breakers: circuit_breakers
                .map(|p| cx.field("circuit_breakers", |cx| CircuitBreakers::from_proto(p, cx)))
                .unwrap_or_default(),
            max_requests_per_connection: http
                .common
                .max_requests_per_connection
                .or(max_requests_per_connection.filter(|n| *n > 0)),
            http,
            wait_for_warm_on_init: wait_for_warm_on_init.unwrap_or(true),
            cleanup_interval: positive("cleanup_interval", cleanup_interval, Duration::from_secs(5), cx),
            upstream_bind_config: upstream_bind_config
                .map(|p| cx.field("upstream_bind_config", |cx| Arc::new(BindConfig::from_proto(p, cx)))),
            transport_socket,
            transport_socket_matches: cx.elements("transport_socket_matches", transport_socket_matches, |cx, p| {
                TransportSocketMatch::from_proto(p, cx)
            }),
            metadata: metadata::from_proto("metadata", metadata, cx),
            tcp_keepalive,
            close_connections_on_host_health_failure,
            ignore_health_on_host_removal,
            connection_pool_per_downstream_connection,
            per_upstream_preconnect_ratio,
            discovery: discovery?,
            name,
        })
    }

    /// The name in stats: `alt_stat_name` or the name, with `:` replaced.
    pub fn stat_name(&self) -> String {
        let name = if self.alt_stat_name.is_empty() { &self.name } else { &self.alt_stat_name };
        name.replace(':', "_")
    }
}

/// Connections made ahead of need: how many to each host. Those to a host that is only predicted are not done.
fn preconnect(p: Option<parts::PreconnectPolicy>, cx: &mut Context) -> f64 {
    let Some(p) = p else { return 1.0 };
    let parts::PreconnectPolicy {
        per_upstream_preconnect_ratio,
        predictive_preconnect_ratio,
        preconnect_enabled_metadata,
    } = p;
    let asks = |ratio: Option<f64>| ratio.is_some_and(|ratio| ratio != 1.0);
    cx.field("preconnect_policy", |cx| {
        cx.unsupported_if("predictive_preconnect_ratio", asks(predictive_preconnect_ratio));
        cx.unsupported_if("preconnect_enabled_metadata", preconnect_enabled_metadata.is_some());
        let ratio = per_upstream_preconnect_ratio.unwrap_or(1.0);
        if !(1.0..=3.0).contains(&ratio) {
            cx.problem_at("per_upstream_preconnect_ratio", format!("found {ratio}, allowed are 1 to 3"));
        }
        ratio
    })
}

/// `upstream_config`: only the generic pool, which is what happens without it.
fn connection_pool(p: Option<core::TypedExtensionConfig>, cx: &mut Context) {
    let Some(core::TypedExtensionConfig { name: _, typed_config }) = p else { return };
    cx.field("upstream_config", |cx| {
        if let Some(any) = cx.required("typed_config", typed_config) {
            cx.unpack::<GenericConnectionPoolProto>("typed_config", &any);
        }
    });
}

fn connection_options(p: pb::UpstreamConnectionOptions, cx: &mut Context) -> Option<TcpKeepalive> {
    let pb::UpstreamConnectionOptions {
        tcp_keepalive,
        set_local_interface_name_on_upstream_connections,
        happy_eyeballs_config,
    } = p;
    cx.field("upstream_connection_options", |cx| {
        cx.ignored_if(
            "set_local_interface_name_on_upstream_connections",
            set_local_interface_name_on_upstream_connections,
        );
        cx.unsupported_if("happy_eyeballs_config", happy_eyeballs_config.is_some());
    });
    tcp_keepalive.map(TcpKeepalive::from_proto)
}

/// `typed_extension_protocol_options`: HTTP's and TCP's.
fn typed_options(options: HashMap<String, Any>, cx: &mut Context) -> Option<Arc<UpstreamHttpOptions>> {
    let mut found = None;
    let mut options: Vec<_> = options.into_iter().collect();
    options.sort_by(|a, b| a.0.cmp(&b.0));
    for (key, any) in options {
        cx.entry("typed_extension_protocol_options", &key.clone(), |cx| match key.as_str() {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions" => {
                found = cx
                    .unpack::<HttpProtocolOptions>("", &any)
                    .map(|p| Arc::new(UpstreamHttpOptions::from_proto(p, cx)));
            }
            "envoy.extensions.upstreams.tcp.v3.TcpProtocolOptions" => {
                if let Some(TcpProtocolOptions { idle_timeout }) = cx.unpack("", &any) {
                    // Of connections that wait in a pool; none does here.
                    cx.ignored_if("idle_timeout", idle_timeout.is_some());
                }
            }
            _ => cx.problem(format!(
                "Didn't find a registered network or http filter or protocol options implementation for name: '{key}'"
            )),
        });
    }
    found
}

/// The cluster's own fields about HTTP, which `typed_extension_protocol_options` took the place of.
#[derive(Default, PartialEq)]
struct DeprecatedHttp {
    common: Option<core::HttpProtocolOptions>,
    upstream: Option<core::UpstreamHttpProtocolOptions>,
    http1: Option<core::Http1ProtocolOptions>,
    http2: Option<core::Http2ProtocolOptions>,
    protocol_selection: i32,
}

impl DeprecatedHttp {
    /// The typed options are there, so that none of these counts.
    fn ignored(self, cx: &mut Context) {
        let Self { common, upstream, http1, http2, protocol_selection } = self;
        cx.ignored_if("common_http_protocol_options", common.is_some());
        cx.ignored_if("upstream_http_protocol_options", upstream.is_some());
        cx.ignored_if("http_protocol_options", http1.is_some());
        cx.ignored_if("http2_protocol_options", http2.is_some());
        cx.ignored_if("protocol_selection", protocol_selection != 0);
    }

    /// Most clusters say nothing of it, and share the same.
    fn read(self, cx: &mut Context) -> Arc<UpstreamHttpOptions> {
        static NOTHING_SAID: OnceLock<Arc<UpstreamHttpOptions>> = OnceLock::new();
        match self == Self::default() {
            true => NOTHING_SAID.get_or_init(|| Arc::new(self.options(cx))).clone(),
            false => Arc::new(self.options(cx)),
        }
    }

    fn options(self, cx: &mut Context) -> UpstreamHttpOptions {
        use parts::ClusterProtocolSelection::{UseConfiguredProtocol, UseDownstreamProtocol};
        let Self { common, upstream, http1, http2, protocol_selection } = self;
        let selection = cx.enumeration("protocol_selection", protocol_selection);
        if selection == UseConfiguredProtocol && http1.is_some() && http2.is_some() {
            cx.problem(
                "cluster: Both HTTP1 and HTTP2 options may only be configured with non-default 'protocol_selection' values",
            );
        }
        let http1 =
            cx.field("http_protocol_options", |cx| Http1ProtocolOptions::from_proto(http1.unwrap_or_default(), cx));
        let http2 = http2.map(|p| cx.field("http2_protocol_options", |cx| Http2ProtocolOptions::from_proto(p, cx)));
        UpstreamHttpOptions {
            common: cx.field("common_http_protocol_options", |cx| {
                CommonHttpProtocolOptions::from_proto(common.unwrap_or_default(), cx)
            }),
            upstream: UpstreamHttpProtocolOptions::from_proto(upstream.unwrap_or_default()),
            hash_policies: Vec::new(),
            protocol: match (selection, http2) {
                (UseDownstreamProtocol, http2) => {
                    UpstreamProtocol::UseDownstream { http1, http2: Some(http2.unwrap_or_default()) }
                }
                (UseConfiguredProtocol, Some(http2)) => UpstreamProtocol::Http2(http2),
                (UseConfiguredProtocol, None) => UpstreamProtocol::Http1(http1),
            },
        }
    }
}

#[cfg(test)]
mod tests;
