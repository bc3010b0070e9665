//! The overload manager: what of it is supported, which is the limit for downstream connections.

use crate::Context;
use weft_control_api::envoy::{
    config::overload::v3::{self as pb, resource_monitor::ConfigType},
    extensions::resource_monitors::downstream_connections::v3 as monitor,
};

/// Limits that hold for the process as a whole.
#[derive(Clone, Debug, Default)]
pub struct Overload {
    /// Downstream connections of all listeners together.
    pub max_downstream_connections: Option<u64>,
}

impl Overload {
    pub(super) fn from_proto(p: pb::OverloadManager, cx: &mut Context) -> Self {
        let pb::OverloadManager {
            refresh_interval,
            resource_monitors,
            actions,
            loadshed_points,
            buffer_factory_config,
        } = p;
        // Nothing is measured at intervals.
        cx.ignored_if("refresh_interval", refresh_interval.is_some());
        cx.unsupported_if("actions", !actions.is_empty());
        cx.unsupported_if("loadshed_points", !loadshed_points.is_empty());
        cx.unsupported_if("buffer_factory_config", buffer_factory_config.is_some());
        let limits = cx.elements("resource_monitors", resource_monitors, |cx, p| {
            let pb::ResourceMonitor { name: _, config_type } = p;
            let Some(ConfigType::TypedConfig(any)) = config_type else {
                cx.problem_at("typed_config", "is required");
                return None;
            };
            let name = any.type_url.rsplit('/').next().unwrap_or_default();
            if name != "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig" {
                cx.problem_at(
                    "typed_config",
                    format!("found {name}, which is not supported; allowed: the limit for downstream connections"),
                );
                return None;
            }
            let monitor::DownstreamConnectionsConfig { max_active_downstream_connections: most } =
                cx.unpack("typed_config", &any)?;
            u64::try_from(most).ok()
        });
        Self { max_downstream_connections: limits.into_iter().min() }
    }
}
