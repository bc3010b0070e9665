//! `cluster.NAME.*`: one group per thread and cluster that it uses. What shows before there is any traffic is in `shown.rs`.

use crate::stats;

stats! {
    /// `cluster.NAME.ring_hash_lb.*`; the control thread's.
    pub struct RingHashStats {
        gauge max_hashes_per_host,
        gauge min_hashes_per_host,
        gauge size,
    }
}

stats! {
    /// `cluster.NAME.*` of clusters with subsets; the control thread's.
    pub struct SubsetStats {
        gauge lb_subsets_single_host_per_subset_duplicate,
    }
}

stats! {
    /// `cluster.NAME.maglev_lb.*`; the control thread's.
    pub struct MaglevStats {
        gauge max_entries_per_host,
        gauge min_entries_per_host,
    }
}

stats! {
    /// A cluster's stats, with Envoy's names.
    pub struct ClusterStats {
        counter assignment_stale,
        counter assignment_timeout_received,
        counter assignment_use_cached,
        counter bind_errors,
        counter lb_healthy_panic,
        counter lb_local_cluster_not_ok,
        counter lb_recalculate_zone_structures,
        counter lb_subsets_created,
        counter lb_subsets_fallback,
        counter lb_subsets_fallback_panic,
        counter lb_subsets_removed,
        counter lb_subsets_selected,
        counter lb_zone_cluster_too_small,
        counter lb_zone_no_capacity_left,
        counter lb_zone_routing_all_directly,
        counter lb_zone_routing_cross_zone,
        counter lb_zone_routing_sampled,
        counter membership_change,
        counter original_dst_host_invalid,
        counter retry_or_shadow_abandoned,
        counter update_attempt,
        counter update_empty,
        counter update_failure,
        counter update_no_rebuild,
        counter update_success,
        counter upstream_cx_close_notify,
        counter upstream_cx_connect_attempts_exceeded,
        counter upstream_cx_connect_fail,
        counter upstream_cx_connect_timeout,
        counter upstream_cx_connect_with_0_rtt,
        counter upstream_cx_destroy,
        counter upstream_cx_destroy_local,
        counter upstream_cx_destroy_local_with_active_rq,
        counter upstream_cx_destroy_remote,
        counter upstream_cx_destroy_remote_with_active_rq,
        counter upstream_cx_destroy_with_active_rq,
        counter upstream_cx_http1_total,
        counter upstream_cx_http2_total,
        counter upstream_cx_http3_total,
        counter upstream_cx_idle_timeout,
        counter upstream_cx_max_duration_reached,
        counter upstream_cx_max_requests,
        counter upstream_cx_none_healthy,
        counter upstream_cx_overflow,
        counter upstream_cx_pool_overflow,
        counter upstream_cx_preconnect_skipped,
        counter upstream_cx_protocol_error,
        counter upstream_cx_rx_bytes_total,
        counter upstream_cx_total,
        counter upstream_cx_tx_bytes_total,
        counter upstream_flow_control_backed_up_total,
        counter upstream_flow_control_drained_total,
        counter upstream_flow_control_paused_reading_total,
        counter upstream_flow_control_resumed_reading_total,
        counter upstream_http3_broken,
        counter upstream_internal_redirect_failed_total,
        counter upstream_internal_redirect_succeeded_total,
        counter upstream_queue_overloaded,
        lazy_codes upstream_rq,
        lazy_codes canary_upstream_rq as "canary.upstream_rq",
        lazy_codes external_upstream_rq as "external.upstream_rq",
        lazy_codes internal_upstream_rq as "internal.upstream_rq",
        lazy_codes retry_upstream_rq as "retry.upstream_rq",
        counter upstream_rq_0rtt,
        counter upstream_rq_active_overflow,
        counter upstream_rq_cancelled,
        counter upstream_rq_maintenance_mode,
        counter upstream_rq_max_duration_reached,
        counter upstream_rq_pending_failure_eject,
        counter upstream_rq_pending_overflow,
        counter upstream_rq_pending_total,
        counter upstream_rq_per_try_idle_timeout,
        counter upstream_rq_per_try_timeout,
        counter upstream_rq_retry,
        counter upstream_rq_retry_backoff_exponential,
        counter upstream_rq_retry_backoff_ratelimited,
        counter upstream_rq_retry_limit_exceeded,
        counter upstream_rq_retry_overflow,
        counter upstream_rq_retry_success,
        counter upstream_rq_rx_reset,
        counter upstream_rq_rx_reset_no_error,
        counter upstream_rq_timeout,
        counter upstream_rq_total,
        counter upstream_rq_tx_reset,
        gauge lb_subsets_active,
        gauge max_host_weight,
        gauge membership_degraded,
        gauge membership_excluded,
        gauge membership_healthy,
        gauge membership_total,
        gauge upstream_cx_active,
        gauge upstream_cx_rx_bytes_buffered,
        gauge upstream_cx_tx_bytes_buffered,
        gauge upstream_rq_active,
        gauge upstream_rq_pending_active,
        gauge version,
        gauge warming_state,
        lazy_histogram(Milliseconds) external_upstream_rq_time as "external.upstream_rq_time",
        lazy_histogram(Milliseconds) internal_upstream_rq_time as "internal.upstream_rq_time",
        histogram(Milliseconds) upstream_cx_connect_ms,
        histogram(Milliseconds) upstream_cx_length_ms,
        histogram(Unspecified) upstream_rq_per_cx,
        lazy_histogram(Milliseconds) upstream_rq_time,
    }
}

stats! {
    /// What the EDS subscription of a cluster adds to [`ClusterStats`], below the same prefix.
    pub struct EdsStats {
        counter init_fetch_timeout,
        counter update_rejected,
        gauge update_time,
        histogram(Milliseconds) update_duration,
    }
}
