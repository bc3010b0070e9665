//! What holds for all clusters.

use crate::{Context, address::BindConfig, config_source::ApiConfigSource};
use weft_control_api::envoy::config::bootstrap::v3 as pb;

/// Settings for all clusters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClusterManager {
    /// The cluster that this proxy is a member of, for zone aware routing; empty: none.
    pub local_cluster_name: String,
    /// Where upstream connections come from, unless their cluster says otherwise.
    pub upstream_bind: Option<BindConfig>,
    /// Who is told of the load (LRS).
    pub load_stats: Option<ApiConfigSource>,
}

impl ClusterManager {
    pub(super) fn from_proto(pb: pb::ClusterManager, cx: &mut Context) -> Self {
        let pb::ClusterManager {
            local_cluster_name,
            outlier_detection,
            upstream_bind_config,
            load_stats_config,
            enable_deferred_cluster_creation,
        } = pb;
        if let Some(pb::cluster_manager::OutlierDetection { event_log_path, event_service }) = outlier_detection {
            cx.field("outlier_detection", |cx| {
                cx.ignored_if("event_log_path", !event_log_path.is_empty());
                cx.ignored_if("event_service", event_service.is_some());
            });
        }
        let load_stats = load_stats_config.and_then(|p| {
            cx.field("load_stats_config", |cx| {
                let source = ApiConfigSource::from_proto(p, cx)?;
                if source.aggregated || source.delta {
                    cx.problem_at("api_type", "load reports go over a stream of their own: allowed is GRPC");
                }
                Some(source)
            })
        });
        cx.ignored_if("enable_deferred_cluster_creation", enable_deferred_cluster_creation);
        Self {
            local_cluster_name,
            load_stats,
            upstream_bind: upstream_bind_config
                .map(|bind| cx.field("upstream_bind_config", |cx| BindConfig::from_proto(bind, cx))),
        }
    }
}
