//! The TCP proxy's configuration (`envoy.extensions.filters.network.tcp_proxy.v3`).

use crate::{
    Context,
    access_log::AccessLog,
    header_value::HeaderValueOption,
    metadata::{self, Metadata},
    on_demand::OnDemandClusters,
};
use std::time::Duration;
use weft_control_api::envoy::{
    config::core::v3 as core,
    extensions::filters::network::tcp_proxy::v3::{self as pb, tcp_proxy},
    r#type::v3 as types,
};

/// `envoy.filters.network.tcp_proxy`.
#[derive(Clone, Debug)]
pub struct TcpProxy {
    pub stat_prefix: String,
    /// (name, weight, metadata match); one cluster is a list of one.
    pub clusters: Vec<WeightedCluster>,
    pub metadata_match: Metadata,
    /// Default one hour; `None`: none.
    pub idle_timeout: Option<Duration>,
    pub access_log: Vec<AccessLog>,
    /// Default 1.
    pub max_connect_attempts: u32,
    /// First and longest pause between attempts; `None`: at once.
    pub backoff: Option<(Duration, Duration)>,
    pub hash_policy: Vec<HashPolicy>,
    pub max_downstream_connection_duration: Option<Duration>,
    /// Percent.
    pub max_duration_jitter: f64,
    pub access_log_flush_interval: Option<Duration>,
    pub flush_access_log_on_connected: bool,
    pub flush_access_log_on_start: bool,
    /// The connection goes through an HTTP request.
    pub tunneling: Option<Tunneling>,
    /// Connect only once the client sent something, of which about this many bytes are read ahead.
    pub early_data: Option<usize>,
    /// Clusters that are not there are asked for.
    pub on_demand: Option<OnDemandClusters>,
}

/// How a connection is carried in an HTTP request.
#[derive(Clone, Debug)]
pub struct Tunneling {
    /// The authority; may have format operators.
    pub hostname: String,
    /// The path of a POST; `None`: CONNECT.
    pub post_path: Option<String>,
    pub headers_to_add: Vec<HeaderValueOption>,
}

impl Tunneling {
    fn from_proto(p: tcp_proxy::TunnelingConfig, cx: &mut Context) -> Self {
        let tcp_proxy::TunnelingConfig {
            hostname,
            use_post,
            headers_to_add,
            propagate_response_headers,
            post_path,
            propagate_response_trailers,
            request_id_extension,
            request_id_header,
            request_id_metadata_key,
            formatters,
        } = p;
        cx.unsupported_if("propagate_response_headers", propagate_response_headers);
        cx.unsupported_if("propagate_response_trailers", propagate_response_trailers);
        cx.unsupported_if("request_id_extension", request_id_extension.is_some());
        cx.unsupported_if("request_id_header", !request_id_header.is_empty());
        cx.unsupported_if("request_id_metadata_key", !request_id_metadata_key.is_empty());
        cx.unsupported_if("formatters", !formatters.is_empty());
        if !use_post && !post_path.is_empty() {
            cx.problem_at("post_path", "Can't set a post path when POST method isn't used");
        }
        Self {
            hostname,
            post_path: use_post.then(|| if post_path.is_empty() { "/".to_owned() } else { post_path }),
            headers_to_add: cx.elements("headers_to_add", headers_to_add, |cx, p| HeaderValueOption::from_proto(p, cx)),
        }
    }
}

#[derive(Clone, Debug)]
pub struct WeightedCluster {
    pub name: String,
    pub weight: u32,
    pub metadata_match: Metadata,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashPolicy {
    SourceIp,
    FilterState(String),
}

impl TcpProxy {
    pub fn from_proto(p: pb::TcpProxy, cx: &mut Context) -> Option<Self> {
        let pb::TcpProxy {
            stat_prefix,
            on_demand,
            metadata_match,
            idle_timeout,
            downstream_idle_timeout,
            upstream_idle_timeout,
            access_log,
            max_connect_attempts,
            backoff_options,
            hash_policy,
            tunneling_config,
            max_downstream_connection_duration,
            max_downstream_connection_duration_jitter_percentage,
            access_log_flush_interval,
            flush_access_log_on_connected,
            access_log_options,
            proxy_protocol_tlvs,
            proxy_protocol_tlv_merge_policy,
            upstream_connect_mode,
            max_early_data_bytes,
            check_drain_close,
            cluster_specifier,
        } = p;
        cx.unsupported_if("check_drain_close", check_drain_close == Some(true));
        let on_demand = on_demand
            .filter(|p| p.odcds_config.is_some())
            .and_then(|p| cx.field("on_demand", |cx| OnDemandClusters::from_tcp(p, cx)));
        cx.unsupported_if("downstream_idle_timeout", downstream_idle_timeout.is_some());
        cx.unsupported_if("upstream_idle_timeout", upstream_idle_timeout.is_some());
        cx.unsupported_if("proxy_protocol_tlvs", !proxy_protocol_tlvs.is_empty());
        cx.unsupported_if("proxy_protocol_tlv_merge_policy", proxy_protocol_tlv_merge_policy != 0);
        let mode = cx.enumeration::<pb::UpstreamConnectMode>("upstream_connect_mode", upstream_connect_mode);
        match mode {
            pb::UpstreamConnectMode::Immediate => {
                cx.unsupported_if("max_early_data_bytes", max_early_data_bytes.is_some());
            }
            pb::UpstreamConnectMode::OnDownstreamData => {}
            pb::UpstreamConnectMode::OnDownstreamTlsHandshake => cx.unsupported_if("upstream_connect_mode", true),
        }
        if mode != pb::UpstreamConnectMode::Immediate && max_early_data_bytes.is_none() {
            cx.problem("max_early_data_bytes must be set when upstream_connect_mode is not IMMEDIATE");
        }
        let clusters = match cluster_specifier {
            Some(tcp_proxy::ClusterSpecifier::Cluster(name)) => {
                vec![WeightedCluster { name, weight: 1, metadata_match: Metadata::new() }]
            }
            Some(tcp_proxy::ClusterSpecifier::WeightedClusters(p)) => cx.field("weighted_clusters", |cx| {
                cx.elements("clusters", p.clusters, |cx, p| {
                    let tcp_proxy::weighted_cluster::ClusterWeight { name, weight, metadata_match } = p;
                    Some(WeightedCluster {
                        name,
                        weight,
                        metadata_match: metadata::from_proto("metadata_match", metadata_match, cx),
                    })
                })
            }),
            None => {
                cx.problem("one of cluster, weighted_clusters is required");
                return None;
            }
        };
        let idle = cx.duration("idle_timeout", idle_timeout);
        let (options_interval, on_connected, on_start) = match access_log_options {
            Some(tcp_proxy::TcpAccessLogOptions {
                access_log_flush_interval,
                flush_access_log_on_connected,
                flush_access_log_on_start,
            }) => {
                let interval = cx.field("access_log_options", |cx| {
                    cx.duration("access_log_flush_interval", access_log_flush_interval)
                });
                (interval, flush_access_log_on_connected, flush_access_log_on_start)
            }
            None => (None, false, false),
        };
        let old_interval = cx.duration("access_log_flush_interval", access_log_flush_interval);
        Some(Self {
            stat_prefix,
            on_demand,
            clusters,
            metadata_match: metadata::from_proto("metadata_match", metadata_match, cx),
            idle_timeout: Some(idle.unwrap_or(Duration::from_secs(3600))).filter(|d| !d.is_zero()),
            access_log: cx.elements("access_log", access_log, |cx, p| AccessLog::from_proto(p, cx)),
            max_connect_attempts: max_connect_attempts.unwrap_or(1),
            backoff: backoff_options.and_then(|core::BackoffStrategy { base_interval, max_interval }| {
                cx.field("backoff_options", |cx| {
                    let base = cx.duration("base_interval", base_interval)?;
                    let most = cx.duration("max_interval", max_interval).unwrap_or(base * 10);
                    if most < base {
                        cx.problem_at("max_interval", "must be greater than or equal to the base_interval");
                    }
                    Some((base, most))
                })
            }),
            hash_policy: cx.elements("hash_policy", hash_policy, |_, types::HashPolicy { policy_specifier }| {
                use types::hash_policy::PolicySpecifier;
                Some(match policy_specifier? {
                    PolicySpecifier::SourceIp(_) => HashPolicy::SourceIp,
                    PolicySpecifier::FilterState(state) => HashPolicy::FilterState(state.key),
                })
            }),
            max_downstream_connection_duration: cx
                .duration("max_downstream_connection_duration", max_downstream_connection_duration),
            max_duration_jitter: max_downstream_connection_duration_jitter_percentage.map_or(0.0, |p| p.value),
            access_log_flush_interval: options_interval.or(old_interval),
            flush_access_log_on_connected: flush_access_log_on_connected || on_connected,
            flush_access_log_on_start: on_start,
            tunneling: tunneling_config.map(|p| cx.field("tunneling_config", |cx| Tunneling::from_proto(p, cx))),
            early_data: max_early_data_bytes.map(|most| most as usize),
        })
    }
}
