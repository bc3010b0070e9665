//! The bootstrap: who this proxy is, what it serves from the start, and where the rest comes from.
//!
//! Read once, by the server's boot and by `--mode validate`. Static listeners, clusters and secrets stay resources here
//! (a type and bytes): they take the same way as those that come over xDS.

mod admin;
mod cluster_manager;
mod dynamic_resources;
mod extensions;
mod node;
mod overload;
mod static_resources;
mod stats;
#[cfg(test)]
mod tests;

pub use admin::Admin;
pub use cluster_manager::ClusterManager;
pub use dynamic_resources::DynamicResources;
pub use extensions::InternalListener;
pub use node::{Locality, Node};
pub use overload::Overload;
pub use static_resources::{Resource, StaticResources};
pub use stats::{HistogramBuckets, StatsConfig, StatsMatcher, Tag, TagValue};

use crate::{
    Context, DnsResolver, Problem,
    runtime::{self, RuntimeLayer, RuntimeSource},
};
use std::time::Duration;
use weft_control_api::envoy::config::bootstrap::v3::{self as pb, bootstrap};

/// How often stats are flushed to sinks, if nothing else is said.
const DEFAULT_STATS_FLUSH_INTERVAL: Duration = Duration::from_secs(5);

/// A bootstrap's meaning.
#[derive(Clone, Debug)]
pub struct Bootstrap {
    pub node: Node,
    pub static_resources: StaticResources,
    pub dynamic_resources: DynamicResources,
    pub cluster_manager: ClusterManager,
    /// `None`: no admin API.
    pub admin: Option<Admin>,
    /// A later layer wins.
    pub runtime_layers: Vec<RuntimeLayer>,
    pub stats: StatsConfig,
    /// `None`: only when the admin API asks.
    pub stats_flush_interval: Option<Duration>,
    /// What `server.version` shows instead of the build's.
    pub server_version_override: Option<u64>,
    /// What Envoy's own headers start with: `x-envoy`.
    pub header_prefix: String,
    pub dns_resolver: DnsResolver,
    /// Set: internal listeners may be used.
    pub internal_listener: Option<InternalListener>,
    pub overload: Overload,
}

impl Bootstrap {
    /// Reads a bootstrap; `None` if a problem was reported.
    pub fn from_proto(pb: pb::Bootstrap, cx: &mut Context) -> Option<Self> {
        let pb::Bootstrap {
            node,
            node_context_params,
            static_resources,
            dynamic_resources,
            cluster_manager,
            hds_config,
            flags_path,
            stats_sinks,
            deferred_stat_options,
            stats_config,
            stats_flush_interval,
            watchdog,
            watchdogs,
            tracing,
            layered_runtime,
            admin,
            overload_manager,
            enable_dispatcher_stats,
            header_prefix,
            stats_server_version_override,
            use_tcp_for_dns_lookups,
            dns_resolution_config,
            typed_dns_resolver_config,
            bootstrap_extensions,
            fatal_actions,
            config_sources,
            default_config_source,
            default_socket_interface,
            certificate_provider_instances,
            inline_headers,
            perf_tracing_file_path,
            default_regex_engine,
            xds_delegate_extension,
            xds_config_tracker_extension,
            listener_manager,
            application_log_config,
            grpc_async_client_manager_config,
            memory_allocator_manager,
            enable_worker_cpu_affinity,
            stats_flush,
            stats_eviction,
        } = pb;

        // What would change traffic, security or what a control plane sees.
        cx.unsupported_if("node_context_params", !node_context_params.is_empty());
        cx.unsupported_if("hds_config", hds_config.is_some());
        cx.unsupported_if("flags_path", !flags_path.is_empty());
        cx.unsupported_if("stats_sinks", !stats_sinks.is_empty());
        cx.unsupported_if("tracing", tracing.is_some());
        cx.unsupported_if("config_sources", !config_sources.is_empty());
        cx.unsupported_if("default_config_source", default_config_source.is_some());
        cx.unsupported_if("default_socket_interface", !default_socket_interface.is_empty());
        cx.unsupported_if("certificate_provider_instances", !certificate_provider_instances.is_empty());
        cx.unsupported_if("xds_delegate_extension", xds_delegate_extension.is_some());
        cx.unsupported_if("xds_config_tracker_extension", xds_config_tracker_extension.is_some());

        // What tunes Envoy's own insides, or how it logs.
        cx.ignored_if("deferred_stat_options", deferred_stat_options.is_some());
        cx.ignored_if("watchdog", watchdog.is_some());
        cx.ignored_if("watchdogs", watchdogs.is_some());
        cx.ignored_if("enable_dispatcher_stats", enable_dispatcher_stats);
        cx.ignored_if("fatal_actions", !fatal_actions.is_empty());
        cx.ignored_if("inline_headers", !inline_headers.is_empty());
        cx.ignored_if("perf_tracing_file_path", !perf_tracing_file_path.is_empty());
        cx.ignored_if("application_log_config", application_log_config.is_some());
        cx.ignored_if("grpc_async_client_manager_config", grpc_async_client_manager_config.is_some());
        cx.ignored_if("memory_allocator_manager", memory_allocator_manager.is_some());
        cx.ignored_if("enable_worker_cpu_affinity", enable_worker_cpu_affinity);
        cx.ignored_if("stats_eviction", stats_eviction.is_some());

        extensions::listener_manager(listener_manager, cx);
        extensions::regex_engine(default_regex_engine, cx);

        let on_admin = matches!(stats_flush, Some(bootstrap::StatsFlush::StatsFlushOnAdmin(true)));
        if on_admin && stats_flush_interval.is_some() {
            cx.problem_at("stats_flush_on_admin", "cannot be set together with stats_flush_interval");
        }
        let interval =
            cx.duration("stats_flush_interval", stats_flush_interval).unwrap_or(DEFAULT_STATS_FLUSH_INTERVAL);

        let bootstrap = Self {
            node: cx.field("node", |cx| Node::from_proto(node.unwrap_or_default(), cx)),
            static_resources: StaticResources::from_proto(static_resources.unwrap_or_default()),
            dynamic_resources: cx.field("dynamic_resources", |cx| {
                DynamicResources::from_proto(dynamic_resources.unwrap_or_default(), cx)
            }),
            cluster_manager: cx
                .field("cluster_manager", |cx| ClusterManager::from_proto(cluster_manager.unwrap_or_default(), cx)),
            admin: admin.and_then(|admin| cx.field("admin", |cx| Admin::from_proto(admin, cx))),
            runtime_layers: layered_runtime
                .map(|layers| cx.field("layered_runtime", |cx| runtime::layers(layers, cx)))
                .unwrap_or_default(),
            stats: cx.field("stats_config", |cx| StatsConfig::from_proto(stats_config.unwrap_or_default(), cx)),
            stats_flush_interval: Some(interval).filter(|_| !on_admin),
            server_version_override: stats_server_version_override,
            header_prefix: if header_prefix.is_empty() { "x-envoy".to_owned() } else { header_prefix },
            dns_resolver: DnsResolver::from_proto(
                use_tcp_for_dns_lookups,
                dns_resolution_config,
                typed_dns_resolver_config,
                cx,
            )
            .unwrap_or_default(),
            internal_listener: extensions::bootstrap_extensions(bootstrap_extensions, cx),
            overload: overload_manager
                .map(|p| cx.field("overload_manager", |cx| Overload::from_proto(p, cx)))
                .unwrap_or_default(),
        };
        bootstrap.check_clusters(cx);
        Some(bootstrap)
    }

    fn has_cluster(&self, name: &str) -> bool {
        self.static_resources.clusters.iter().any(|cluster| cluster.name == name)
    }

    /// A control plane must be reachable before anything came from it, and the local cluster known from the start:
    /// their clusters stand in the bootstrap.
    fn check_clusters(&self, cx: &mut Context) {
        let local = &self.cluster_manager.local_cluster_name;
        if !local.is_empty() && !self.has_cluster(local) {
            let about = format!("found {local:?}, which is no cluster of static_resources");
            cx.problem_at("cluster_manager.local_cluster_name", about);
        }
        for (path, cluster) in self.dynamic_resources.control_planes() {
            if !self.has_cluster(cluster) {
                cx.problem_at(&path, format!("found {cluster:?}, which is no cluster of static_resources"));
            }
        }
    }

    /// What a control plane needs to know of this proxy, but does not: to be asked when the command line's flags were
    /// put into the node.
    pub fn missing_identity(&self) -> Vec<Problem> {
        let rtds = self.runtime_layers.iter().any(|layer| matches!(layer.source, RuntimeSource::Rtds { .. }));
        if !rtds && self.dynamic_resources.control_planes().next().is_none() {
            return Vec::new();
        }
        [("node.id", &self.node.id, "--service-node"), ("node.cluster", &self.node.cluster, "--service-cluster")]
            .into_iter()
            .filter(|(_, value, _)| value.is_empty())
            .map(|(path, _, flag)| {
                Problem::new(path, format!("is required to use a control plane; {flag} sets it too"))
            })
            .collect()
    }
}
