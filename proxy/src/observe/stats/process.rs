//! Groups of stats that tell of the process as a whole. Each is written by the control thread alone.

crate::stats! {
    /// `server.*`
    pub struct ServerStats {
        gauge concurrency,
        gauge days_until_first_cert_expiring,
        counter debug_assertion_failures,
        counter dropped_stat_flushes,
        counter dynamic_unknown_fields,
        counter envoy_bug_failures,
        counter envoy_notifications,
        gauge fips_mode as "compilation_settings.fips_mode",
        gauge hot_restart_epoch,
        histogram(Milliseconds) initialization_time_ms,
        gauge live,
        gauge memory_allocated,
        gauge memory_heap_size,
        gauge memory_physical_size,
        gauge parent_connections,
        gauge seconds_until_first_ocsp_response_expiring,
        gauge state,
        counter static_unknown_fields,
        gauge stats_recent_lookups,
        gauge total_connections,
        gauge uptime,
        gauge version,
        counter wip_protos,
    }
}

crate::stats! {
    /// `listener_manager.*`
    pub struct ListenerManagerStats {
        counter listener_added,
        counter listener_create_failure,
        counter listener_create_success,
        counter listener_in_place_updated,
        counter listener_modified,
        counter listener_removed,
        counter listener_stopped,
        gauge total_filter_chains_draining,
        gauge total_listeners_active,
        gauge total_listeners_draining,
        gauge total_listeners_warming,
        gauge workers_pinned,
        gauge workers_started,
    }
}

crate::stats! {
    /// `cluster_manager.*`
    pub struct ClusterManagerStats {
        gauge active_clusters,
        counter cluster_added,
        counter cluster_modified,
        counter cluster_removed,
        counter cluster_updated,
        counter cluster_updated_via_merge,
        counter update_merge_cancelled,
        counter update_out_of_merge_window,
        gauge warming_clusters,
    }
}

crate::stats! {
    /// `runtime.*`
    pub struct RuntimeStats {
        gauge admin_overrides_active,
        gauge deprecated_feature_seen_since_process_start,
        counter deprecated_feature_use,
        counter load_error,
        counter load_success,
        gauge num_keys,
        gauge num_layers,
        counter override_dir_exists,
        counter override_dir_not_exists,
    }
}

crate::stats! {
    /// `cluster_manager.cds.*`, `listener_manager.lds.*`, `http.PREFIX.rds.NAME.*`, `cluster.NAME.*` of EDS: one subscription.
    pub struct SubscriptionStats {
        counter init_fetch_timeout,
        counter update_attempt,
        histogram(Milliseconds) update_duration,
        counter update_failure,
        counter update_rejected,
        counter update_success,
        gauge update_time,
        gauge version,
        text version_text,
    }
}

crate::stats! {
    /// `extension_config_discovery.KIND.NAME.*`, beside its subscription's.
    pub struct ExtensionStats {
        counter config_conflict,
        counter config_fail,
        counter config_reload,
        gauge config_reload_time_ms,
    }
}

crate::stats! {
    /// `http.PREFIX.rds.vhds.ROUTES.*`, beside its subscription's.
    pub struct VirtualHostStats {
        counter config_reload,
        counter update_empty,
    }
}

crate::stats! {
    /// `http.PREFIX.scoped_rds.NAME.*`, beside its subscription's.
    pub struct ScopeStats {
        gauge active_scopes,
        gauge all_scopes,
        counter config_reload,
        gauge config_reload_time_ms,
        gauge on_demand_scopes,
        counter update_empty,
    }
}

crate::stats! {
    /// `sds.NAME.*`, beside its subscription's.
    pub struct SecretStats {
        counter key_rotation_failed,
    }
}

crate::stats! {
    /// `control_plane.*`: the stream to a control plane.
    pub struct ControlPlaneStats {
        gauge connected_state,
        text identifier,
        gauge pending_requests,
        counter rate_limit_enforced,
    }
}
