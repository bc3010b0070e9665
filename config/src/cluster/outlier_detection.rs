//! Outlier detection: hosts that fail more than others take no traffic for a while (`envoy.config.cluster.v3.OutlierDetection`).

use crate::Context;
use std::time::Duration;
use weft_control_api::envoy::config::cluster::v3 as pb;

/// `OutlierDetection`; percentages where nothing else is said.
#[derive(Clone, Debug, PartialEq)]
pub struct OutlierDetection {
    /// Default 5, as the two below.
    pub consecutive_5xx: u32,
    pub consecutive_gateway_failure: u32,
    pub consecutive_local_origin_failure: u32,
    /// Default 10 s.
    pub interval: Duration,
    /// Default 30 s.
    pub base_ejection_time: Duration,
    /// Default 300 s, or the base where that is longer.
    pub max_ejection_time: Duration,
    pub max_ejection_time_jitter: Duration,
    /// Default 10.
    pub max_ejection_percent: u32,
    pub always_eject_one_host: bool,
    /// A good active check brings a host back at once. Default true.
    pub check_brings_back: bool,
    /// Failures of ours to reach the host count apart from what it answers.
    pub split_external_local_origin_errors: bool,
    /// Default 5.
    pub success_rate_minimum_hosts: u32,
    /// Default 100.
    pub success_rate_request_volume: u32,
    /// In thousandths; default 1900.
    pub success_rate_stdev_factor: u32,
    /// Default 85.
    pub failure_percentage_threshold: u32,
    /// Default 5.
    pub failure_percentage_minimum_hosts: u32,
    /// Default 50.
    pub failure_percentage_request_volume: u32,
    /// How likely what is detected is acted upon.
    pub enforcing: Enforcing,
}

/// Percentages, by what was detected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Enforcing {
    /// Default 100.
    pub consecutive_5xx: u32,
    pub consecutive_gateway_failure: u32,
    /// Default 100, as the two success rates.
    pub consecutive_local_origin_failure: u32,
    pub success_rate: u32,
    pub local_origin_success_rate: u32,
    pub failure_percentage: u32,
    pub failure_percentage_local_origin: u32,
}

impl OutlierDetection {
    /// Reads what a cluster says.
    pub fn read(p: pb::OutlierDetection, cx: &mut Context) -> Self {
        let pb::OutlierDetection {
            consecutive_5xx,
            interval,
            base_ejection_time,
            max_ejection_percent,
            enforcing_consecutive_5xx,
            enforcing_success_rate,
            success_rate_minimum_hosts,
            success_rate_request_volume,
            success_rate_stdev_factor,
            consecutive_gateway_failure,
            enforcing_consecutive_gateway_failure,
            split_external_local_origin_errors,
            consecutive_local_origin_failure,
            enforcing_consecutive_local_origin_failure,
            enforcing_local_origin_success_rate,
            failure_percentage_threshold,
            enforcing_failure_percentage,
            enforcing_failure_percentage_local_origin,
            failure_percentage_minimum_hosts,
            failure_percentage_request_volume,
            max_ejection_time,
            max_ejection_time_jitter,
            successful_active_health_check_uneject_host,
            monitors,
            always_eject_one_host,
            detect_degraded_hosts,
        } = p;
        cx.unsupported_if("monitors", !monitors.is_empty());
        cx.unsupported_if("detect_degraded_hosts", detect_degraded_hosts.unwrap_or_default());
        let seconds = Duration::from_secs;
        let base_ejection_time = cx.duration("base_ejection_time", base_ejection_time).unwrap_or(seconds(30));
        let longest = cx.duration("max_ejection_time", max_ejection_time);
        if longest.is_some_and(|longest| longest < base_ejection_time) {
            cx.problem_at("max_ejection_time", "must not be shorter than base_ejection_time");
        }
        Self {
            consecutive_5xx: consecutive_5xx.unwrap_or(5),
            consecutive_gateway_failure: consecutive_gateway_failure.unwrap_or(5),
            consecutive_local_origin_failure: consecutive_local_origin_failure.unwrap_or(5),
            interval: cx.duration("interval", interval).unwrap_or(seconds(10)),
            max_ejection_time: longest.unwrap_or(base_ejection_time.max(seconds(300))),
            base_ejection_time,
            max_ejection_time_jitter: cx
                .duration("max_ejection_time_jitter", max_ejection_time_jitter)
                .unwrap_or_default(),
            max_ejection_percent: max_ejection_percent.unwrap_or(10),
            always_eject_one_host: always_eject_one_host.unwrap_or_default(),
            check_brings_back: successful_active_health_check_uneject_host.unwrap_or(true),
            split_external_local_origin_errors,
            success_rate_minimum_hosts: success_rate_minimum_hosts.unwrap_or(5),
            success_rate_request_volume: success_rate_request_volume.unwrap_or(100),
            success_rate_stdev_factor: success_rate_stdev_factor.unwrap_or(1900),
            failure_percentage_threshold: failure_percentage_threshold.unwrap_or(85),
            failure_percentage_minimum_hosts: failure_percentage_minimum_hosts.unwrap_or(5),
            failure_percentage_request_volume: failure_percentage_request_volume.unwrap_or(50),
            enforcing: Enforcing {
                consecutive_5xx: enforcing_consecutive_5xx.unwrap_or(100),
                consecutive_gateway_failure: enforcing_consecutive_gateway_failure.unwrap_or(0),
                consecutive_local_origin_failure: enforcing_consecutive_local_origin_failure.unwrap_or(100),
                success_rate: enforcing_success_rate.unwrap_or(100),
                local_origin_success_rate: enforcing_local_origin_success_rate.unwrap_or(100),
                failure_percentage: enforcing_failure_percentage.unwrap_or(0),
                failure_percentage_local_origin: enforcing_failure_percentage_local_origin.unwrap_or(0),
            },
        }
    }
}
